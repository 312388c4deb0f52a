//! `results.csv`: a line a cell, seed and measure, in the measure's own unit, for pandas or R.

use crate::compare::results::{Comparison, Measure};
use anyhow::Result;
use serde_json::Value;

pub(super) fn csv(comparison: &Comparison) -> Result<String> {
    let mut text = String::from("set,method,rank,alpha,lr,seed,measure,value\n");
    for cell in &comparison.cells {
        for (measure, values) in &cell.measures {
            let name = name(*measure)?;
            // Where a seed lacks the measure, no one knows which.
            let known = values.each.len() == cell.seeds.len();
            for (i, value) in values.each.iter().enumerate() {
                let fields = [
                    quoted(&cell.set),
                    quoted(&cell.method),
                    cell.rank.map_or_else(String::new, |rank| rank.to_string()),
                    cell.alpha.map_or_else(String::new, |alpha| alpha.to_string()),
                    cell.lr.map_or_else(String::new, |lr| lr.to_string()),
                    cell.seeds.get(i).filter(|_| known).map_or_else(String::new, u64::to_string),
                    name.clone(),
                    value.to_string(),
                ];
                text += &fields.join(",");
                text.push('\n');
            }
        }
    }
    Ok(text)
}

/// As in `results.json`.
fn name(measure: Measure) -> Result<String> {
    Ok(match serde_json::to_value(measure)? {
        Value::String(name) => name,
        other => other.to_string(),
    })
}

fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.into()
    }
}

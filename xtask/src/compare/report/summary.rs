//! What the terminal shows when all is done: who is best, and a line a cell.

use super::findings::{self, headline};
use super::numbers::{NOTHING, interval, of, spread};
use super::tables::COMMONEST;
use super::view::{Entrant, Section, sections};
use crate::compare::results::{Commonest, Comparison, Measure};

pub(super) fn summary(comparison: &Comparison) -> String {
    let parts = sections(comparison).into_iter().map(|section| part(&section));
    let left = findings::runs_left(comparison);
    parts.chain(left.map(|left| format!("runs      {left}"))).collect::<Vec<_>>().join("\n\n")
}

fn part(section: &Section<'_>) -> String {
    let measures: Vec<Measure> =
        section.score.into_iter().chain([Measure::TokensPerSecond, Measure::PeakBytes]).collect();
    let mut rows = vec![head(section, &measures)];
    rows.extend(section.commonest().map(|commonest| constant(commonest, &measures)));
    rows.extend(section.entrants.iter().map(|entrant| row(entrant, &measures)));
    let wide = |column: usize| {
        rows.iter().filter_map(|r| r.get(column)).map(|f| f.chars().count()).max().unwrap_or(0)
    };
    let columns = rows[0].len();
    let line = |row: &Vec<String>| {
        let fields = row.iter().enumerate().map(|(column, field)| match column {
            // Words to the left, numbers to the right.
            0 => format!("{field:<width$}", width = wide(column)),
            _ if column + 1 == columns => field.clone(),
            _ => format!("{field:>width$}", width = wide(column)),
        });
        fields.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let table: Vec<_> = rows.iter().map(line).collect();
    format!("{}\n\n{}", headline(section), table.join("\n"))
}

fn head(section: &Section<'_>, measures: &[Measure]) -> Vec<String> {
    let mut names = vec!["method".to_owned()];
    for (nth, measure) in measures.iter().enumerate() {
        let shown = measure.shown();
        let why = section.not_comparable(*measure).map_or_else(String::new, |why| format!(" ({why})"));
        names.push(format!("{} {}", shown.name, shown.unit).trim_end().to_owned() + &why);
        if nth == 0 {
            let one = if section.rows_alone() { ", one seed" } else { "" };
            names.push(format!("less the best's{one}"));
        }
    }
    names.push(String::new());
    names
}

/// What it would score to say the commonest label of every row.
fn constant(commonest: &Commonest, measures: &[Measure]) -> Vec<String> {
    let mut fields = vec![COMMONEST.to_owned()];
    for (nth, measure) in measures.iter().enumerate() {
        fields.push(match measure {
            Measure::Accuracy => of(commonest.share, &measure.shown()),
            _ => NOTHING.into(),
        });
        if nth == 0 {
            fields.push(String::new());
        }
    }
    fields.push(String::new());
    fields
}

fn row(entrant: &Entrant<'_>, measures: &[Measure]) -> Vec<String> {
    let mut fields = vec![entrant.name.clone()];
    for (nth, measure) in measures.iter().enumerate() {
        let shown = measure.shown();
        let values = entrant.cell.measures.get(measure);
        let mean = values.map_or_else(|| NOTHING.into(), |values| of(values.mean, &shown));
        // The spread of the score alone: the line is short.
        let sd = values.and_then(|values| spread(values, *measure)).filter(|_| nth == 0);
        fields.push(sd.map_or(mean.clone(), |sd| format!("{mean} ± {sd}")));
        if nth == 0 {
            fields.push(entrant.cell.behind.map_or_else(String::new, |behind| interval(&behind, &shown)));
        }
    }
    fields.push(entrant.marks());
    fields
}

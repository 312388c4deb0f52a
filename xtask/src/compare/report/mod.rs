//! stub
use super::results::Comparison;
use anyhow::Result;
use std::path::Path;
pub(crate) fn write(comparison: &Comparison, folder: &Path) -> Result<()> {
    std::fs::write(folder.join("results.json"), serde_json::to_string_pretty(comparison)?)?;
    Ok(())
}
pub(crate) fn summary(comparison: &Comparison) -> String {
    use super::results::Measure;
    let mut t = String::new();
    for c in &comparison.cells {
        let m = |m: Measure| c.measures.get(&m).map_or("-".into(), |v| format!("{:.3}", v.mean * m.shown().times));
        t += &format!("{:8} {:24} {:>4?} {:>6} {:>6} {:>7} {:>6} {:>6} {:>5} {:?} {}\n", c.set, c.method, c.rank.unwrap_or(0), m(Measure::Accuracy), m(Measure::MacroF1), m(Measure::Loss), m(Measure::GradientNorm), m(Measure::EffectiveRank), m(Measure::TokensPerSecond), c.behind, if c.best {"best"} else {""});
    }
    t
}

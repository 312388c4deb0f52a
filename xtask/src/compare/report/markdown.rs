//! `report.md`: the sentences and the tables, without the figures.

use super::page::Page;
use super::table::inline;

pub(super) fn markdown(page: &Page<'_>) -> String {
    let mut text = format!("# {}\n\n", inline(&page.title));
    for sentence in &page.headlines {
        text += &format!("{}\n\n", inline(sentence));
    }
    for (name, value) in &page.facts {
        text += &format!("- {}: {}\n", inline(name), inline(value));
    }
    text += &format!("- made by: {}\n\n", code(page.command));
    text += "The figures, and every cell's settings and command lines, are in [report.html](report.html); all numbers are in \
             [results.csv](results.csv) and [results.json](results.json).\n\n";
    text += &page.data.markdown();
    for part in &page.parts {
        text += &format!("## {}\n\n", inline(part.section.name));
        for sentence in &part.findings {
            text += &format!("- {}\n", inline(sentence));
        }
        if !part.findings.is_empty() {
            text.push('\n');
        }
        for table in part.scores.iter().chain(&part.further).chain(&part.peers).chain(&part.tuning) {
            text += &table.markdown();
        }
    }
    text.trim_end().to_owned() + "\n"
}

/// In as many backticks as it takes.
fn code(text: &str) -> String {
    let line = text.replace(['\n', '\r'], " ");
    let longest = line.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let ticks = "`".repeat(longest + 1);
    let blank = if longest > 0 { " " } else { "" };
    format!("{ticks}{blank}{line}{blank}{ticks}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backticks_stay_inside() {
        assert_eq!(code("cargo xtask compare"), "`cargo xtask compare`");
        assert_eq!(code("echo `date`"), "`` echo `date` ``");
    }
}

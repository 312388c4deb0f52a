//! Every cell's settings, values seed by seed, and command lines, folded away.

use super::findings::measured;
use super::numbers::{NOTHING, short};
use super::tables::link;
use super::text::{count, escape};
use super::view::{Entrant, Section};
use crate::compare::results::Measure;

pub(super) fn html(section: &Section<'_>) -> String {
    let title = format!(
        "Settings, values seed by seed and command lines of {}",
        count(section.entrants.len(), "cell")
    );
    let mut html = format!("<details class=\"cells\"><summary>{title}</summary>\n");
    for entrant in &section.entrants {
        html += &cell(entrant);
    }
    html + "</details>\n"
}

fn cell(entrant: &Entrant<'_>) -> String {
    let cell = entrant.cell;
    let number = |value: Option<f64>| value.map_or(NOTHING.into(), short);
    let seeds: Vec<_> = cell.seeds.iter().map(u64::to_string).collect();
    let settings = [
        ("method", cell.method.clone()),
        ("rank", cell.rank.map_or(NOTHING.into(), |rank| rank.to_string())),
        ("α", number(cell.alpha)),
        ("learning rate", number(cell.lr)),
        ("seeds", seeds.join(", ")),
    ];
    let mut html =
        format!("<details id=\"{}\"><summary>{}</summary>\n<dl>\n", link(entrant), escape(&entrant.name));
    for (name, value) in settings {
        html += &format!("<div><dt>{name}</dt><dd>{}</dd></div>\n", escape(&value));
    }
    html += "</dl>\n";
    let rows: Vec<_> = Measure::ALL.into_iter().filter_map(|measure| measured(entrant, measure)).collect();
    if !rows.is_empty() {
        html += "<div class=\"scroll\" tabindex=\"0\"><table><thead><tr><th scope=\"col\">measure</th><th \
                 scope=\"col\">mean</th><th scope=\"col\">seed by seed</th></tr></thead><tbody>\n";
        for [name, mean, each] in rows {
            let [name, mean, each] = [name, mean, each].map(|text| escape(text.trim_end()));
            html += &format!("<tr><th scope=\"row\">{name}</th><td>{mean}</td><td>{each}</td></tr>\n");
        }
        html += "</tbody></table></div>\n";
    }
    for failure in &cell.failures {
        html += &format!("<p class=\"failure\">✗ {}</p>\n", escape(failure));
    }
    if !cell.commands.is_empty() {
        html += &format!("<pre tabindex=\"0\">{}</pre>\n", escape(&cell.commands.join("\n")));
    }
    html + "</details>\n"
}

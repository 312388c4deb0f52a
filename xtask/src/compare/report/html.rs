//! `report.html`: one file, nothing loaded, nothing to run.

use super::page::{Page, Part};
use super::text::escape;
use super::{details, figures};
use anyhow::Result;

const STYLE: &str = include_str!("style.css");

pub(super) fn html(page: &Page<'_>) -> Result<String> {
    let title = escape(&page.title);
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n<title>{title}</title>\n<style>\n{STYLE}{}</style>\n\
         </head>\n<body>\n<header>\n<h1>{title}</h1>\n",
        figures::look::css()
    );
    for sentence in &page.headlines {
        html += &format!("<p class=\"lead\">{}</p>\n", said(sentence));
    }
    html += "<dl>\n";
    for (name, value) in &page.facts {
        html += &format!("<div><dt>{}</dt><dd>{}</dd></div>\n", escape(name), escape(value));
    }
    html += "</dl>\n";
    if page.parts.len() > 1 {
        let links = page.parts.iter().enumerate();
        let links: Vec<_> = links
            .map(|(nth, part)| format!("<a href=\"#set-{nth}\">{}</a>", escape(part.section.name)))
            .collect();
        html += &format!("<nav aria-label=\"Data sets\">{}</nav>\n", links.join(" "));
    }
    html += "</header>\n<main>\n<section>\n";
    html += &page.data.html("data");
    html += &folded("The command that makes this report again", page.command);
    html += &folded("The plan", page.plan);
    html += "</section>\n";
    for (nth, part) in page.parts.iter().enumerate() {
        html += &self::part(part, &format!("set-{nth}"))?;
    }
    html += "</main>\n<footer><p>The numbers are in results.csv and results.json beside this file; report.md has the tables \
             alone.</p></footer>\n</body>\n</html>\n";
    Ok(html)
}

fn part(part: &Part<'_>, id: &str) -> Result<String> {
    let mut html =
        format!("<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{}</h2>\n", escape(part.section.name));
    if !part.findings.is_empty() {
        let items: String = part.findings.iter().map(|text| format!("<li>{}</li>\n", said(text))).collect();
        html += &format!("<ul class=\"findings\">\n{items}</ul>\n");
    }
    for (nth, table) in part.scores.iter().enumerate() {
        html += &table.html(&format!("{id}-table-{nth}"));
    }
    for (nth, figure) in figures::all(&part.section).iter().enumerate() {
        html += &figure.html(&format!("{id}-figure-{nth}"))?;
    }
    let further = [(&part.further, "further"), (&part.peers, "peers"), (&part.tuning, "tuning")];
    for (table, name) in further {
        html += &table.as_ref().map_or_else(String::new, |table| table.html(&format!("{id}-{name}")));
        if let Some(figure) = figures::peers(&part.section).filter(|_| name == "peers") {
            html += &figure.html(&format!("{id}-losses"))?;
        }
    }
    html += &details::html(&part.section);
    html += "</section>\n";
    Ok(html)
}

/// A number is not torn from its sign or unit.
fn said(sentence: &str) -> String {
    let mut text = escape(sentence);
    for (torn, whole) in
        [(" %", "\u{a0}%"), ("± ", "±\u{a0}"), (" MB", "\u{a0}MB"), (" r=", "\u{a0}r="), (" 0.", "\u{a0}0.")]
    {
        text = text.replace(torn, whole);
    }
    text
}

fn folded(title: &str, text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let text = escape(text.trim_end());
    format!("<details><summary>{title}</summary>\n<pre tabindex=\"0\">{text}</pre>\n</details>\n")
}

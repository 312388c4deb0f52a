//! The figures of a set: groups of panels with one legend.

mod axis;
mod canvas;
mod curves;
mod fronts;
pub(super) mod look;
mod panel;
mod peers;
mod ranks;
mod tags;

use super::text::escape;
use super::view::Section;
use anyhow::Result;
use panel::{Kind, Panel};

pub(super) struct Figure {
    title: String,
    /// How to read it.
    text: String,
    panels: Vec<Panel>,
}

/// Those there is something to draw for.
pub(super) fn all(section: &Section<'_>) -> Vec<Figure> {
    let figures = [
        ranks::figure(section),
        fronts::figure(section),
        curves::figure(section),
        curves::gradients(section),
    ];
    figures.into_iter().flatten().collect()
}

/// Ours over the peers'.
pub(super) fn peers(section: &Section<'_>) -> Option<Figure> {
    peers::figure(section)
}

impl Figure {
    /// None without panels.
    fn new(title: &str, text: &str, panels: Vec<Panel>) -> Option<Self> {
        let panels: Vec<_> = panels.into_iter().flat_map(Panel::split).collect();
        (!panels.is_empty()).then(|| Self { title: title.into(), text: text.into(), panels })
    }

    pub(super) fn html(&self, id: &str) -> Result<String> {
        let columns = if [1, 2, 4].contains(&self.panels.len()) { "two" } else { "three" };
        let mut html = format!(
            "<figure aria-labelledby=\"{id}\">\n<figcaption><h3 id=\"{id}\">{}</h3>\n<p>{}</p></figcaption>\n{}<div \
             class=\"panels {columns}\">\n",
            escape(&self.title),
            escape(&self.text),
            self.legend()
        );
        for (nth, panel) in self.panels.iter().enumerate() {
            html += &format!("<div class=\"panel\">\n<h4>{}{}</h4>\n", escape(&panel.title), panel.scale());
            html += &panel.svg(&format!("{id}-{nth}"))?;
            let notes = panel.notes();
            if !notes.is_empty() {
                html += &format!("<p class=\"note\">{}</p>\n", escape(&notes));
            }
            html += "</div>\n";
        }
        html += "</div>\n</figure>\n";
        Ok(html)
    }

    /// Every series once, outside of the panels: it wraps where they are narrow.
    fn legend(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        let mut items = String::new();
        for series in self.panels.iter().flat_map(|panel| &panel.series) {
            if !names.contains(&series.name.as_str()) {
                names.push(&series.name);
                let swatch = series.look.swatch(series.kind != Kind::Dots, series.kind != Kind::Level);
                items += &format!("<li>{swatch} {}</li>\n", escape(&series.name));
            }
        }
        if names.len() < 2 && self.panels.len() < 2 {
            String::new()
        } else {
            format!("<ul class=\"legend\">\n{items}</ul>\n")
        }
    }
}

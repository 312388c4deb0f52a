//! A table before it is HTML or Markdown.

use super::text::escape;

/// Letters that a column takes without wrapping.
const LONG: usize = 32;

pub(super) struct Table {
    pub(super) title: String,
    /// How to read it; may be empty.
    pub(super) note: String,
    pub(super) head: Vec<Head>,
    pub(super) rows: Vec<Row>,
}

pub(super) struct Head {
    pub(super) name: String,
    pub(super) unit: String,
    /// Words; else numbers, set to the right.
    pub(super) words: bool,
}

#[derive(Default)]
pub(super) struct Row {
    /// The first names the row.
    pub(super) fields: Vec<Field>,
    /// Where the name leads to.
    pub(super) link: Option<String>,
    /// Set apart from the row above.
    pub(super) group: bool,
    /// Stands out.
    pub(super) best: bool,
}

#[derive(Default, Clone)]
pub(super) struct Field {
    pub(super) text: String,
    /// In small type behind it: a spread, a mark.
    pub(super) aside: String,
    pub(super) bold: bool,
}

impl Head {
    pub(super) fn number(name: &str, unit: &str) -> Self {
        Self { name: name.into(), unit: unit.into(), words: false }
    }

    pub(super) fn words(name: &str) -> Self {
        Self { name: name.into(), unit: String::new(), words: true }
    }
}

impl From<String> for Field {
    fn from(text: String) -> Self {
        Self { text, ..Self::default() }
    }
}

impl From<&str> for Field {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl Table {
    /// In a box that scrolls by itself where the page is narrow. The id must be the page's only one.
    pub(super) fn html(&self, id: &str) -> String {
        let mut html = format!("<h3 id=\"{id}\">{}</h3>\n", escape(&self.title));
        if !self.note.is_empty() {
            html += &format!("<p class=\"note\">{}</p>\n", escape(&self.note));
        }
        html += &format!(
            "<div class=\"scroll\" role=\"region\" aria-labelledby=\"{id}\" tabindex=\"0\">\n<table>\n<thead><tr>"
        );
        for (column, head) in self.head.iter().enumerate() {
            let unit = if head.unit.is_empty() {
                String::new()
            } else {
                format!(" <small>{}</small>", escape(&head.unit))
            };
            html +=
                &format!("<th scope=\"col\"{}>{}{unit}</th>", self.class(column), whole_words(&head.name));
        }
        html += "</tr></thead>\n<tbody>\n";
        for row in &self.rows {
            html += &self.row(row);
        }
        html += "</tbody>\n</table>\n</div>\n";
        html
    }

    fn row(&self, row: &Row) -> String {
        let classes: Vec<_> =
            [("group", row.group), ("best", row.best)].into_iter().filter(|c| c.1).map(|c| c.0).collect();
        let mut html =
            if classes.is_empty() { "<tr>".into() } else { format!("<tr class=\"{}\">", classes.join(" ")) };
        for (place, field) in row.fields.iter().enumerate() {
            let mut text = escape(&field.text);
            if field.bold {
                text = format!("<b>{text}</b>");
            }
            if let Some(link) = row.link.as_ref().filter(|_| place == 0) {
                text = format!("<a href=\"#{}\">{text}</a>", escape(link));
            }
            if !field.aside.is_empty() {
                text += &format!(" <small>{}</small>", escape(&field.aside));
            }
            html += &match place {
                0 => format!("<th scope=\"row\">{text}</th>"),
                _ => format!("<td{}>{text}</td>", self.class(place)),
            };
        }
        html + "</tr>\n"
    }

    /// Words stand to the left; many of them may wrap.
    fn class(&self, column: usize) -> &'static str {
        let long = |row: &Row| row.fields.get(column).is_some_and(|field| field.text.chars().count() > LONG);
        match self.head[column].words {
            true if self.rows.iter().any(long) => " class=\"words long\"",
            true => " class=\"words\"",
            false => "",
        }
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n", inline(&self.title));
        if !self.note.is_empty() {
            text += &format!("{}\n\n", inline(&self.note));
        }
        let line = |fields: Vec<String>| format!("| {} |\n", fields.join(" | "));
        let name = |head: &Head| inline(format!("{} {}", head.name, bracketed(&head.unit)).trim());
        text += &line(self.head.iter().map(name).collect());
        text += &line(self.head.iter().map(|h| if h.words { "---" } else { "---:" }.into()).collect());
        for row in &self.rows {
            text += &line(row.fields.iter().map(field).collect());
        }
        text + "\n"
    }
}

/// No word breaks at its hyphen.
fn whole_words(name: &str) -> String {
    let word = |word: &str| match word.contains('-') {
        true => format!("<span class=\"whole\">{}</span>", escape(word)),
        false => escape(word),
    };
    name.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn bracketed(unit: &str) -> String {
    if unit.is_empty() { String::new() } else { format!("({unit})") }
}

fn field(field: &Field) -> String {
    let text = inline(&field.text);
    let text = if field.bold { format!("**{text}**") } else { text };
    format!("{text} {}", inline(&field.aside)).trim_end().to_owned()
}

/// For Markdown, in one line: what would be read as its marks stays itself.
pub(super) fn inline(text: &str) -> String {
    let mut safe = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\r' => safe.push(' '),
            '|' | '*' | '_' | '`' | '<' | '[' | ']' | '\\' => safe.extend(['\\', c]),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let fields = vec![
            Field { text: "a<b|c".into(), aside: "≈ tie".into(), bold: false },
            Field { text: "81.2".into(), aside: "± 0.6".into(), bold: true },
        ];
        Table {
            title: "Scores".into(),
            note: String::new(),
            head: vec![Head::words("method"), Head::number("accuracy", "%")],
            rows: vec![Row { fields, link: Some("cell-1".into()), group: true, best: false }],
        }
    }

    #[test]
    fn both_kinds_say_the_same() {
        let html = table().html("t");
        assert!(html.contains(
            "<tr class=\"group\"><th scope=\"row\"><a href=\"#cell-1\">a&lt;b|c</a> <small>≈ tie</small></th>"
        ));
        assert!(html.contains("<td><b>81.2</b> <small>± 0.6</small></td>"), "{html}");
        let markdown = table().markdown();
        assert!(markdown.contains("| method | accuracy (%) |\n| --- | ---: |\n"), "{markdown}");
        assert!(markdown.contains("| a\\<b\\|c ≈ tie | **81.2** ± 0.6 |\n"), "{markdown}");
    }
}

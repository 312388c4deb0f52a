//! Words: what HTML would misread, and lists as one says them.

/// For HTML, in text and in attributes.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // No document may hold these, not even escaped.
            c if c.is_control() && !matches!(c, '\n' | '\t') => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// `a`, `a and b`, `a, b and c`; of more than `most` the first, and how many are left.
pub(crate) fn list(names: &[String], most: usize) -> String {
    let left = names.len().saturating_sub(most);
    let mut shown: Vec<String> = names.iter().take(most).cloned().collect();
    if left > 0 {
        shown.push(format!("{left} more"));
    }
    match shown.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// `1 seed`, `3 seeds`.
pub(crate) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_html_would_misread_is_escaped() {
        assert_eq!(escape(r#"<a href="x">&'"#), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
        assert_eq!(escape("a\u{1b}b\nc"), "a\u{fffd}b\nc");
    }

    #[test]
    fn lists_are_said_as_one_says_them() {
        let names = ["a", "b", "c", "d"].map(String::from);
        assert_eq!(list(&names[..0], 3), "");
        assert_eq!(list(&names[..1], 3), "a");
        assert_eq!(list(&names[..3], 3), "a, b and c");
        assert_eq!(list(&names, 2), "a, b and 2 more");
        assert_eq!((count(1, "seed"), count(0, "row")), ("1 seed".into(), "0 rows".into()));
    }
}

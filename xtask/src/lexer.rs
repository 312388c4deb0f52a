//! Rust source with comments (and, if wished, the insides of strings) blanked out, line for line.

/// Blanks comments; newlines stay, so that line numbers do.
pub(crate) fn without_comments(source: &str) -> String {
    blank(source, false)
}

/// Blanks comments and the contents of string literals.
pub(crate) fn code_only(source: &str) -> String {
    blank(source, true)
}

fn blank(source: &str, strings: bool) -> String {
    let text: Vec<char> = source.chars().collect();
    let at = |i: usize| text.get(i).copied().unwrap_or('\0');
    let mut out = String::with_capacity(source.len());
    let mut i = 0;
    while i < text.len() {
        let (end, hide) = match (at(i), at(i + 1)) {
            ('/', '/') => (find(&text, i, |j| at(j) == '\n'), true),
            ('/', '*') => (block_comment(&text, i), true),
            ('r', '"' | '#') if !is_word(i.checked_sub(1).map_or('\0', at)) => match raw_string(&text, i) {
                Some(end) => (end, strings),
                None => (i + 1, false),
            },
            ('"', _) => (quoted(&text, i), strings),
            ('\'', '\\') => (find(&text, i + 3, |j| at(j) == '\'') + 1, false),
            ('\'', _) if at(i + 2) == '\'' => (i + 3, false),
            _ => (i + 1, false),
        };
        let end = end.min(text.len());
        out.extend(text[i..end].iter().map(|&c| if hide && c != '\n' { ' ' } else { c }));
        i = end;
    }
    out
}

fn find(text: &[char], from: usize, is: impl Fn(usize) -> bool) -> usize {
    (from..text.len()).find(|&j| is(j)).unwrap_or(text.len())
}

/// The end of a block comment; Rust's nest.
fn block_comment(text: &[char], start: usize) -> usize {
    let (mut depth, mut i) = (0, start);
    while i + 1 < text.len() {
        match (text[i], text[i + 1]) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    text.len()
}

/// The end of `r"..."`, `r#"..."#` and so on; none for a raw identifier.
fn raw_string(text: &[char], start: usize) -> Option<usize> {
    let hashes = text[start + 1..].iter().take_while(|&&c| c == '#').count();
    let open = start + 1 + hashes;
    if text.get(open) != Some(&'"') {
        return None;
    }
    let closes = |j: usize| {
        text[j] == '"' && text[j + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes
    };
    Some(find(text, open + 1, closes) + 1 + hashes)
}

fn quoted(text: &[char], start: usize) -> usize {
    let mut i = start + 1;
    while i < text.len() && text[i] != '"' {
        i += if text[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// Whether `c` may stand in an identifier.
pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_go_and_code_stays() {
        for (source, comments, all) in [
            ("a // b\nc", "a     \nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e", "a                   e"),
            (r#"f("// no", 'x')"#, r#"f("// no", 'x')"#, "f(       , 'x')"),
            (r#"f("a\"b") // c"#, r#"f("a\"b")     "#, "f(      )     "),
            ("r#\"x\"y\"# z", "r#\"x\"y\"# z", "         z"),
            ("r#type // t", "r#type     ", "r#type     "),
            (
                "fn f<'a>(x: &'a str) { '\"' } // q",
                "fn f<'a>(x: &'a str) { '\"' }     ",
                "fn f<'a>(x: &'a str) { '\"' }     ",
            ),
            (r"'\'' // c", r"'\''     ", r"'\''     "),
            ("\"two\nlines\" b", "\"two\nlines\" b", "    \n       b"),
        ] {
            assert_eq!(without_comments(source), comments, "{source}");
            assert_eq!(code_only(source), all, "{source}");
        }
    }
}

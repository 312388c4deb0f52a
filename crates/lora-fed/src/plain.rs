//! Others' words for people.

/// Others' words as they can be put on a terminal: nothing in them moves its cursor, or hides, turns or begins a line. Done
/// twice it is the same.
pub fn plain(words: &str) -> String {
    let harmless = |c: char| matches!(c, '"' | '\'' | '\\');
    let mut plain = String::new();
    for part in words.split_inclusive(harmless) {
        let text = part.trim_end_matches(harmless);
        plain.extend(text.escape_debug());
        plain.push_str(&part[text.len()..]);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn words_stay_and_nothing_moves() {
        let words = "it's \"late\" \\\\ dr\u{e9}, re\u{301}\u{1b}[2J\r\nround 2/2  3 of 3 clients\u{202e}";
        let told = "it's \"late\" \\\\ dr\u{e9}, re\u{301}\\u{1b}[2J\\r\\nround 2/2  3 of 3 clients\\u{202e}";
        assert_eq!((plain(words).as_str(), plain(told).as_str()), (told, told));
    }
}

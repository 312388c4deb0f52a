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

/// The most characters of somebody's reason that are sent or kept.
#[cfg(feature = "engine")]
const MOST: usize = 1000;

/// As much of somebody's words as is sent or kept.
#[cfg(feature = "engine")]
pub(crate) fn cut(words: &str) -> String {
    words.chars().take(MOST).collect()
}

/// Why somebody's part does not count, as it is kept and shown: it may quote them at any length.
#[cfg(feature = "engine")]
pub(crate) fn reason(words: &str) -> String {
    // Made harmless they are longer.
    cut(&plain(&cut(words)))
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

    #[cfg(feature = "engine")]
    #[test]
    fn reasons_are_cut() {
        use super::{MOST, reason};
        assert_eq!(reason("no\n"), "no\\n");
        for long in ["\u{1}", "\u{e9}", "\"", "no "] {
            let told = reason(&long.repeat(MOST));
            assert!(told.chars().count() == MOST && plain(&told) == told, "{told}");
        }
    }
}

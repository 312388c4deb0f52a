//! Others' words for people.

/// Others' words as they can be put on a terminal: nothing in them moves its cursor, or hides, turns or begins a line. Done
/// twice it is the same.
pub fn plain(words: &str) -> String {
    let mut plain = String::new();
    for c in words.chars() {
        if is_harmless(c) { plain.push(c) } else { plain.extend(c.escape_debug()) }
    }
    plain
}

/// All but what moves the cursor, or hides, turns or ends lines: what joins letters, emoji and marks belongs to words.
fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..)
        && !matches!(c, '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}')
        && !matches!(c, '\u{2060}'..='\u{206f}' | '\u{fff0}'..='\u{fffb}')
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

    /// A family, Persian, Hindi, a mark behind a quote, wide and narrow spaces.
    #[test]
    fn what_belongs_to_words_stays() {
        let words = "👩\u{200d}👩\u{200d}👧 می\u{200c}خواهم क्\u{200d}ष \"\u{301} 日本\u{3000}語 5\u{202f}%";
        assert_eq!(plain(words), words);
        for c in [
            '\u{7f}',
            '\u{9b}',
            '\t',
            '\u{200b}',
            '\u{202a}',
            '\u{2066}',
            '\u{2028}',
            '\u{feff}',
            '\u{e0041}',
        ] {
            assert_eq!(plain(&c.to_string()), c.escape_unicode().to_string().replace("\\u{9}", "\\t"));
        }
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

//! Python's `re` in the words of the engine that is here: PEFT reads patterns by Python's, and where the two read one pattern
//! differently (`[a&&b]`, `\<`, `\161`) Python's reading counts.

mod cursor;

use cursor::{Cursor, Read, fault};

/// A pattern of Python's as one of the engine's that means the same.
///
/// # Errors
/// What is wrong: Python would refuse it, or the engine lacks it.
pub(super) fn translate(pattern: &str) -> Read<String> {
    let (out, started, names, open) = Default::default();
    let mut reader = Reader { from: Cursor::new(pattern), out, started, last: Last::Nothing, names, open };
    while let Some(c) = reader.from.next() {
        reader.piece(c)?;
    }
    match reader.open.is_empty() {
        true => Ok(reader.out),
        false => fault("a group does not end"),
    }
}

/// What a repetition would be of.
enum Last {
    Nothing,
    Item,
    Repeated,
}

/// A group that has begun: its number, if it has one; of a condition, how many `|` it may still have.
struct Open {
    number: Option<usize>,
    bars: Option<usize>,
}

struct Reader {
    from: Cursor,
    out: String,
    /// Whether there was more than flags for all of it, and comments.
    started: bool,
    last: Last,
    /// Of the numbered groups that have begun; empty for one without a name.
    names: Vec<String>,
    open: Vec<Open>,
}

impl Reader {
    fn push(&mut self, text: &str, last: Last) {
        self.out.push_str(text);
        self.started = true;
        self.last = last;
    }

    fn literal(&mut self, c: char) {
        // `\<` and `\>` are edges of words to the engine.
        let escape = if c.is_ascii_punctuation() && !"<>".contains(c) { "\\" } else { "" };
        self.push(&format!("{escape}{c}"), Last::Item);
    }

    fn piece(&mut self, c: char) -> Read<()> {
        match c {
            '\\' => return self.escape(),
            '[' => return self.set(),
            '(' => return self.group(),
            ')' => match self.open.pop() {
                Some(_) => self.push(")", Last::Item),
                None => return fault("a `)` has no `(`"),
            },
            '|' => {
                match self.open.last_mut().and_then(|group| group.bars.as_mut()) {
                    Some(0) => return fault("a condition has two branches at most"),
                    Some(bars) => *bars -= 1,
                    None => {}
                }
                self.push("|", Last::Nothing);
            }
            '*' | '+' | '?' => return self.repeat(&c.to_string()),
            '{' => match self.from.bounds()? {
                Some(bounds) => return self.repeat(&bounds),
                None => self.literal(c),
            },
            '^' | '$' => self.push(&c.to_string(), Last::Nothing),
            '.' => self.push(".", Last::Item),
            c => self.literal(c),
        }
        Ok(())
    }

    fn repeat(&mut self, how: &str) -> Read<()> {
        match self.last {
            Last::Nothing => return fault("there is nothing to repeat"),
            Last::Repeated => return fault("two repetitions in a row"),
            Last::Item => self.push(how, Last::Repeated),
        }
        // As few as will do; or as many as there are, whatever comes.
        for kind in ["?", "+"] {
            if self.from.take(kind) {
                self.out.push_str(kind);
                break;
            }
        }
        Ok(())
    }

    fn escape(&mut self) -> Read<()> {
        match self.from.escaped()? {
            // The second is Python 3.14's.
            'Z' | 'z' => self.push(r"\z", Last::Nothing),
            c @ ('A' | 'b' | 'B') => self.push(&format!("\\{c}"), Last::Nothing),
            c @ ('d' | 'D' | 's' | 'S' | 'w' | 'W') => self.push(&format!("\\{c}"), Last::Item),
            c @ '1'..='9' if !self.from.is_octal(c) => {
                let second = self.from.take_if(|c| c.is_ascii_digit());
                let number: String = [c].into_iter().chain(second).collect();
                return self.reference(number.parse().unwrap_or(0));
            }
            c => {
                let c = self.from.character(c)?;
                self.literal(c);
            }
        }
        Ok(())
    }

    /// What a group has matched, once more.
    fn reference(&mut self, number: usize) -> Read<()> {
        let is_open = self.open.iter().any(|group| group.number == Some(number));
        if !(1..=self.names.len()).contains(&number) || is_open {
            return fault(&format!("`\\{number}` is of no group that has ended"));
        }
        // In brackets, so that no further digit belongs to it.
        self.push(&format!("(?:\\{number})"), Last::Item);
        Ok(())
    }

    /// A set of characters, behind its `[`: `[`, `&&`, `--` and `~~` are characters like any.
    fn set(&mut self) -> Read<()> {
        self.out.push('[');
        if self.from.take("^") {
            self.out.push('^');
        }
        let mut first = true;
        while first || !self.from.take("]") {
            first = false;
            let low = self.member()?;
            let ranges = self.from.peek(0) == Some('-') && self.from.peek(1).is_some_and(|c| c != ']');
            if ranges {
                self.from.next();
                self.out.push('-');
                match (low, self.member()?) {
                    (Some(low), Some(high)) if low <= high => {}
                    _ => return fault("a range of characters that is none"),
                }
            }
        }
        self.push("]", Last::Item);
        Ok(())
    }

    /// One character of a set, or a kind of them.
    fn member(&mut self) -> Read<Option<char>> {
        let c = match self.from.next() {
            None => return fault("a set of characters does not end"),
            Some('\\') => match self.from.escaped()? {
                kind @ ('d' | 'D' | 's' | 'S' | 'w' | 'W') => {
                    self.out.push_str(&format!("\\{kind}"));
                    return Ok(None);
                }
                'b' => '\u{8}',
                c => self.from.character(c)?,
            },
            Some(c) => c,
        };
        self.literal(c);
        Ok(Some(c))
    }

    /// A group, behind its `(`.
    fn group(&mut self) -> Read<()> {
        if !self.from.take("?") {
            return self.begin("(", Some(String::new()), None);
        }
        for kind in [":", "=", "!", "<=", "<!", ">"] {
            if self.from.take(kind) {
                return self.begin(&format!("(?{kind}"), None, None);
            }
        }
        if self.from.take("#") {
            return self.from.comment();
        }
        if self.from.take("P<") {
            let name = self.from.name('>')?;
            if self.names.contains(&name) {
                return fault(&format!("two groups are called {name:?}"));
            }
            return self.begin(&format!("(?P<{name}>"), Some(name), None);
        }
        if self.from.take("P=") {
            let name = self.from.name(')')?;
            let number = self.number_of(&name)?;
            return self.reference(number);
        }
        if self.from.take("(") {
            let group = self.from.until(')')?;
            let number = match group.parse() {
                Ok(number) if (1..=self.names.len()).contains(&number) => number,
                _ => self.number_of(&group)?,
            };
            // The engine takes a condition with nothing behind it for an assertion.
            return self.begin(&format!("(?({number})(?=)"), None, Some(1));
        }
        if self.from.peek(0).is_some_and(|c| c == '<' || c == '\'') {
            return fault("Python names a group `(?P<name>...)`");
        }
        let flags = self.from.flags()?;
        match self.from.next() {
            Some(':') => return self.begin(&format!("(?{flags}:"), None, None),
            // Of `u` alone nothing is left.
            Some(')') if !self.started && flags.is_empty() => {}
            Some(')') if !self.started => self.out.push_str(&format!("(?{flags})")),
            _ => return fault("flags end in `:`, or stand in brackets of their own, first of all"),
        }
        Ok(())
    }

    fn begin(&mut self, text: &str, name: Option<String>, bars: Option<usize>) -> Read<()> {
        self.names.extend(name.clone());
        self.open.push(Open { number: name.map(|_| self.names.len()), bars });
        self.push(text, Last::Nothing);
        Ok(())
    }

    fn number_of(&self, name: &str) -> Read<usize> {
        match self.names.iter().position(|known| known == name && !name.is_empty()) {
            Some(before) => Ok(before + 1),
            None => fault(&format!("no group is called {name:?}")),
        }
    }
}

//! A pattern, character by character.

/// What was read, or what is wrong with it.
pub(crate) type Read<T> = Result<T, String>;

pub(super) fn fault<T>(what: &str) -> Read<T> {
    Err(what.to_owned())
}

/// Where a reader stands in a pattern.
pub(super) struct Cursor {
    chars: Vec<char>,
    at: usize,
}

impl Cursor {
    pub(super) fn new(pattern: &str) -> Self {
        Self { chars: pattern.chars().collect(), at: 0 }
    }

    pub(super) fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    pub(super) fn next(&mut self) -> Option<char> {
        self.take_if(|_| true)
    }

    pub(super) fn take_if(&mut self, such: impl Fn(char) -> bool) -> Option<char> {
        let c = self.peek(0).filter(|c| such(*c))?;
        self.at += 1;
        Some(c)
    }

    /// Goes over `text`, if it is next.
    pub(super) fn take(&mut self, text: &str) -> bool {
        let there = text.chars().enumerate().all(|(i, c)| self.peek(i) == Some(c));
        self.at += if there { text.chars().count() } else { 0 };
        there
    }

    fn run(&mut self, such: impl Fn(char) -> bool) -> String {
        std::iter::from_fn(|| self.take_if(&such)).collect()
    }

    /// Up to `end`, and over it.
    pub(super) fn until(&mut self, end: char) -> Read<String> {
        let text = self.run(|c| c != end);
        match self.next() {
            Some(_) => Ok(text),
            None => fault(&format!("a `{end}` is missing")),
        }
    }

    /// Over a comment, whose `)` is none behind a `\`.
    pub(super) fn comment(&mut self) -> Read<()> {
        while let Some(c) = self.next() {
            match c {
                ')' => return Ok(()),
                '\\' => drop(self.next()),
                _ => {}
            }
        }
        fault("a comment does not end")
    }

    /// A group's name, up to `end`.
    pub(super) fn name(&mut self, end: char) -> Read<String> {
        let name = self.until(end)?;
        let word = name.chars().all(|c| c.is_alphanumeric() || c == '_');
        match word && name.starts_with(|c: char| !c.is_numeric()) {
            true => Ok(name),
            false => fault(&format!("{name:?} is no name of a group")),
        }
    }

    /// Flags, as in `(?i-s:`, behind the `?`. Those that change how a pattern is written, or what a letter is, are not read;
    /// `u`, which says what is so anyway, is left out.
    pub(super) fn flags(&mut self) -> Read<String> {
        let flags = self.run(|c| c.is_ascii_alphabetic() || c == '-');
        let (on, off) = flags.split_once('-').map_or((flags.as_str(), None), |(on, off)| (on, Some(off)));
        let known = |flags: &str, all: &str| flags.chars().all(|c| all.contains(c));
        let turns = |off: &str| !off.is_empty() && known(off, "ims") && !off.chars().any(|c| on.contains(c));
        if flags.is_empty() || !known(on, "imsu") || !off.is_none_or(turns) {
            return fault(&format!("`(?{flags}` is nothing of Python's, or not read here"));
        }
        Ok(flags.replace('u', ""))
    }

    /// `{2,3}` behind its `{`, in full. Anything else is no repetition, and nothing is read.
    pub(super) fn bounds(&mut self) -> Read<Option<String>> {
        let begin = self.at;
        let least = self.run(|c| c.is_ascii_digit());
        let most = if self.take(",") { Some(self.run(|c| c.is_ascii_digit())) } else { None };
        if !self.take("}") || least.is_empty() && most.is_none() {
            self.at = begin;
            return Ok(None);
        }
        let number = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u32>().ok() };
        let unlimited = most.as_ref().is_some_and(String::is_empty);
        match (number(&least), number(most.as_ref().unwrap_or(&least))) {
            (Some(least), _) if unlimited => Ok(Some(format!("{{{least},}}"))),
            (Some(least), Some(most)) if least <= most => Ok(Some(format!("{{{least},{most}}}"))),
            _ => fault("so many times nothing is repeated"),
        }
    }

    /// The character behind a `\`.
    pub(super) fn escaped(&mut self) -> Read<char> {
        self.next().map_or_else(|| fault("nothing behind the last `\\`"), Ok)
    }

    /// Whether `\` and `first` begin three octal digits, which are a character's number, and a group's otherwise.
    pub(super) fn is_octal(&self, first: char) -> bool {
        [Some(first), self.peek(0), self.peek(1)].iter().all(|c| c.is_some_and(|c| c.is_digit(8)))
    }

    /// The character that `\` and `first` mean.
    pub(super) fn character(&mut self, first: char) -> Read<char> {
        let number = match first {
            'a' => 0x07,
            'f' => 0x0c,
            'n' => 0x0a,
            'r' => 0x0d,
            't' => 0x09,
            'v' => 0x0b,
            'x' => self.hex(2)?,
            'u' => self.hex(4)?,
            'U' => self.hex(8)?,
            '0'..='7' => {
                let more = (0..2).filter_map(|_| self.take_if(|c| c.is_digit(8)));
                let digits: String = [first].into_iter().chain(more).collect();
                u8::from_str_radix(&digits, 8).map_or(u32::MAX, u32::from)
            }
            'N' => return fault("a character's name is not read here: write the character"),
            c if c.is_ascii_alphanumeric() => return fault(&format!("Python has no `\\{c}`")),
            c => return Ok(c),
        };
        char::from_u32(number).map_or_else(|| fault("an escape of no character"), Ok)
    }

    fn hex(&mut self, digits: usize) -> Read<u32> {
        let text: String = (0..digits).filter_map(|_| self.take_if(|c| c.is_ascii_hexdigit())).collect();
        match u32::from_str_radix(&text, 16) {
            Ok(number) if text.len() == digits => Ok(number),
            _ => fault(&format!("an escape wants {digits} hexadecimal digits")),
        }
    }
}

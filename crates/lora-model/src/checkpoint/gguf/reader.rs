//! A reader that believes no number it reads: every length is checked against what is left of the file
//! before anything is allocated.

use std::io::{ErrorKind as IoKind, Read};

use lora_core::{Error, Result};

use super::Value;

/// Longest string taken (chat templates are the longest in practice, tens of kilobytes).
const MAX_STRING: u64 = 16 << 20;

/// A little-endian cursor over `len` bytes.
pub(super) struct Reader<R> {
    inner: R,
    pos: u64,
    len: u64,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(inner: R, len: u64) -> Self {
        Self { inner, pos: 0, len }
    }

    pub(super) fn pos(&self) -> u64 {
        self.pos
    }

    pub(super) fn left(&self) -> u64 {
        self.len.saturating_sub(self.pos)
    }

    fn fault(&self, what: impl Into<String>) -> Error {
        Error::data(what).at(format!("byte {}", self.pos))
    }

    fn cut(&self, want: u64) -> Error {
        self.fault(format!("the file ends here: {want} bytes expected, {} left", self.left()))
            .hint("the file is cut short or damaged: fetch it again")
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<()> {
        let want = buf.len() as u64;
        if want > self.left() {
            return Err(self.cut(want));
        }
        self.inner.read_exact(buf).map_err(|e| match e.kind() {
            IoKind::UnexpectedEof => self.cut(want),
            _ => self.fault(format!("cannot read: {e}")).because(e),
        })?;
        self.pos += want;
        Ok(())
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut buf = [0; N];
        self.fill(&mut buf)?;
        Ok(buf)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A number of things of at least `size` bytes each, which the rest of the file must be able to hold.
    pub(super) fn count(&mut self, of: &str, size: u64) -> Result<u64> {
        let n = self.u64()?;
        match n.checked_mul(size) {
            Some(bytes) if bytes <= self.left() => Ok(n),
            _ => Err(self
                .fault(format!("{n} {of} do not fit into the {} bytes left", self.left()))
                .hint("the file is cut short or damaged: fetch it again")),
        }
    }

    pub(super) fn string(&mut self) -> Result<String> {
        let n = self.count("string bytes", 1)?;
        if n > MAX_STRING {
            return Err(self.fault(format!("a string of {n} bytes (at most {MAX_STRING} are taken)")));
        }
        let mut buf = vec![0; n as usize];
        self.fill(&mut buf)?;
        String::from_utf8(buf).map_err(|_| self.fault("a string is not UTF-8"))
    }

    /// One metadata value of GGUF type `kind`.
    pub(super) fn value(&mut self, kind: u32) -> Result<Value> {
        match kind {
            8 => self.string().map(Value::Str),
            9 => self.array(),
            _ => self.scalar(kind),
        }
    }

    fn scalar(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::U64(u64::from(u8::from_le_bytes(self.bytes()?))),
            1 => Value::I64(i64::from(i8::from_le_bytes(self.bytes()?))),
            2 => Value::U64(u64::from(u16::from_le_bytes(self.bytes()?))),
            3 => Value::I64(i64::from(i16::from_le_bytes(self.bytes()?))),
            4 => Value::U64(u64::from(self.u32()?)),
            5 => Value::I64(i64::from(i32::from_le_bytes(self.bytes()?))),
            6 => Value::F64(f64::from(f32::from_le_bytes(self.bytes()?))),
            7 => match self.bytes::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [b] => return Err(self.fault(format!("a truth value is {b}, neither 0 nor 1"))),
            },
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.bytes()?)),
            12 => Value::F64(f64::from_le_bytes(self.bytes()?)),
            _ => return Err(self.fault(format!("metadata type {kind} is unknown"))),
        })
    }

    fn array(&mut self) -> Result<Value> {
        let kind = self.u32()?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err(self.fault("arrays of arrays are not taken")),
            _ => return Err(self.fault(format!("array element type {kind} is unknown"))),
        };
        let n = self.count("array elements", size)?;
        // No capacity is asked for: the vectors grow only as the file delivers.
        if kind == 8 {
            return (0..n).map(|_| self.string()).collect::<Result<_>>().map(Value::Strs);
        }
        if matches!(kind, 6 | 12) {
            let mut out = Vec::new();
            for _ in 0..n {
                if let Value::F64(x) = self.scalar(kind)? {
                    out.push(x);
                }
            }
            return Ok(Value::F64s(out));
        }
        let mut out = Vec::new();
        for _ in 0..n {
            out.push(match self.scalar(kind)? {
                Value::I64(x) => x,
                Value::Bool(x) => i64::from(x),
                Value::U64(x) => i64::try_from(x)
                    .map_err(|_| self.fault(format!("array element {x} does not fit into 63 bits")))?,
                _ => return Err(self.fault("the array's elements differ in type")),
            });
        }
        Ok(Value::I64s(out))
    }
}

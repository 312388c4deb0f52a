//! What may be chosen of the storage.

use lora_core::{Error, Result};

use crate::tables::{FP4, NF4, floats};

/// Which 16 numbers the 4 bits stand for, as shares of a block's largest magnitude.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// 4-bit NormalFloat: quantiles of a normal distribution.
    Nf4,
    /// A sign, two bits of exponent, one of mantissa.
    Fp4,
}

impl Code {
    /// bitsandbytes' name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }

    /// The number of each code.
    pub fn book(self) -> [f32; 16] {
        match self {
            Self::Nf4 => floats(NF4),
            Self::Fp4 => floats(FP4),
        }
    }
}

/// How weights are quantised. The default is bitsandbytes' and the paper's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// What the codes stand for.
    pub code: Code,
    /// Weights that share one scale: 32, 64, ... 4096.
    pub block: usize,
    /// Whether the scales are quantised, too.
    pub nested: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { code: Code::Nf4, block: 64, nested: true }
    }
}

impl Options {
    /// Reads what stands behind `qlora:` - `nf4` or `fp4`, a block size, `single` for scales in f32 - in any order,
    /// joined by colons.
    ///
    /// # Errors
    /// [`Error::usage`] for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let mut options = Self::default();
        for word in text.split(':').filter(|word| !word.is_empty()) {
            match (word, word.parse()) {
                ("nf4", _) => options.code = Code::Nf4,
                ("fp4", _) => options.code = Code::Fp4,
                ("single", _) => options.nested = false,
                (_, Ok(block)) => options.block = checked(block)?,
                _ => {
                    return Err(Error::usage(format!("`{word}` is no option of `qlora`")).hint(
                        "it takes nf4 or fp4, a block size, and `single` for scales that are not quantised: qlora:fp4:128:single",
                    ));
                }
            }
        }
        Ok(options)
    }
}

/// A block size that bitsandbytes knows.
pub(crate) fn checked(block: usize) -> Result<usize> {
    if block.is_power_of_two() && (32..=4096).contains(&block) {
        return Ok(block);
    }
    Err(Error::usage(format!("a block size of {block}")).hint("it is a power of two from 32 to 4096"))
}

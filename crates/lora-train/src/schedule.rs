//! Learning rates over time, as transformers' `get_scheduler` gives them.

use std::f64::consts::PI;
use std::str::FromStr;

use lora_core::{Error, Result};

/// The shape after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// The peak rate throughout.
    Constant,
    /// Straight to zero.
    Linear,
    /// Half a cosine to zero.
    Cosine,
}

impl Schedule {
    /// The factor on the peak rate at `step` (from 0) of `total`, `warmup` steps of which rise from 0.
    pub fn factor(self, step: u64, warmup: u64, total: u64) -> f64 {
        if step < warmup {
            return step as f64 / warmup.max(1) as f64;
        }
        let done = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Linear => (1.0 - done).max(0.0),
            Self::Cosine => (0.5 * (1.0 + (PI * done.min(1.0)).cos())).max(0.0),
        }
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "constant" => Ok(Self::Constant),
            "linear" => Ok(Self::Linear),
            "cosine" => Ok(Self::Cosine),
            _ => Err(Error::usage(format!("there is no schedule `{name}`"))
                .hint("the schedules are constant, linear, cosine")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `get_linear_schedule_with_warmup(opt, 4, 20)` and the cosine one of transformers 5.23, lr 1.
    #[test]
    fn factors_are_those_of_transformers() {
        let linear = [(0, 0.0), (1, 0.25), (4, 1.0), (12, 0.5), (19, 0.0625), (20, 0.0)];
        let cosine = [(0, 0.0), (4, 1.0), (8, 0.853_553_390_593_273_8), (12, 0.5), (20, 0.0)];
        for (schedule, table) in [(Schedule::Linear, &linear[..]), (Schedule::Cosine, &cosine[..])] {
            for &(step, factor) in table {
                assert!((schedule.factor(step, 4, 20) - factor).abs() < 1e-12, "{schedule:?} {step}");
            }
        }
    }
}

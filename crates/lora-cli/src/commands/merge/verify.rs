//! Whether a merged model answers as base and adapter do.

use std::path::Path;

use anyhow::Result;
use lora::model::{Keep, Llama, Model, ModelConfig, Texts, Tokenizer};
use lora::train::read_ids;
use lora::{Error, Mode, Recipe};
use tch::{Device, Kind, Tensor};

use super::Args;
use crate::commands::{emit, say};
use crate::rounding::Rounding;

/// Texts to compare on where no data is named.
const TEXTS: [&str; 4] = [
    "The central bank left its main interest rate unchanged on Thursday, as most economists had expected.",
    "def area(radius: float) -> float:\n    return 3.14159 * radius ** 2\n",
    "Le petit chat dort sur le canapé pendant que la pluie tombe dehors.",
    "Question: What is 17 + 25?\nAnswer: 42. Question: What is the capital of Japan?\nAnswer: Tokyo.",
];

impl Args {
    /// Token ids to compare on, if that is asked for: of the rows, or of the built-in texts.
    ///
    /// # Errors
    /// The rows cannot be read.
    pub(super) fn texts(&self, tokenizer: &Tokenizer, config: &ModelConfig) -> Result<Option<Vec<Vec<i64>>>> {
        let rows = match &self.verify {
            None => return Ok(None),
            Some(None) => {
                let ids = TEXTS.iter().map(|t| tokenizer.encode(t, true));
                return Ok(Some(ids.collect::<lora::Result<_>>()?));
            }
            Some(Some(rows)) => rows,
        };
        let longest = usize::try_from(config.max_positions).unwrap_or(usize::MAX).min(1024);
        let mut texts = read_ids(rows, tokenizer, self.limit.unwrap_or(16), longest)?;
        // Logits of all of them are kept: at most so many.
        let mut tokens = 0;
        texts.retain(|ids| {
            let fits = tokens == 0 || (tokens + ids.len()) as i64 * config.vocab_size <= LOGITS;
            tokens += if fits { ids.len() } else { 0 };
            fits
        });
        Ok(Some(texts))
    }

    /// Compares the merged model in `folder` with the adapter beside the base as `trained` keeps it, and says how far they
    /// are apart. `rounding`: of a result in 4 bits.
    ///
    /// # Errors
    /// Merging changed more than the tolerance allows.
    pub(super) fn verify(
        &self,
        folder: &Path,
        texts: &[Vec<i64>],
        trained: &Recipe,
        rounding: Option<&Rounding>,
    ) -> Result<()> {
        let merged: Vec<Tensor> = {
            let keep = Keep { packed: self.model.packed(), ..Keep::DENSE };
            let model = self.model.load(lora::open(folder)?.as_ref(), keep)?;
            texts.iter().map(|ids| logits(&model, ids)).collect::<Result<_>>()?
        };
        let beside = |variant: &str| -> Result<Difference> {
            let opened = self.model.open(Some(&self.adapter), variant)?;
            compare(&opened.model, texts, &merged)
        };
        let found = beside(&self.variant)?;
        // What rounding the base had changed is no fault of merging; a result that is rounded again is to be like that, though.
        let apart = !trained.is_dense() && rounding.is_none();
        let merging = apart.then(|| beside("lora")).transpose()?;
        if self.json {
            let mut object = found.json();
            if let Some(merging) = &merging {
                object["merging"] = merging.json();
            }
            if let Some(rounding) = rounding {
                object["rounding"] = rounding.json();
            }
            emit(object);
        } else {
            let of = merging.as_ref().map_or_else(String::new, |_| format!(" beside the base as {trained}"));
            say!("adapter{of} against merged model, {found}");
            if let Some(merging) = &merging {
                say!("and beside the base that is merged into, {merging}");
            }
        }
        let difference = merging.unwrap_or(found);
        if !(difference.mean_kl <= self.tolerance) {
            return Err(Error::data(format!(
                "the merged model differs by a mean KL of {:.2e}, above the tolerance of {:.2e}; it was not kept",
                difference.mean_kl, self.tolerance
            ))
            .hint(match (rounding, self.model.kind()) {
                (Some(_), _) => "leave out --requantize, or raise --tolerance",
                (None, Kind::Float) => "raise --tolerance",
                (None, _) => "merge in --dtype f32, or raise --tolerance",
            })
            .into());
        }
        Ok(())
    }
}

/// A gigabyte of f32.
const LOGITS: i64 = 1 << 28;

/// Kept on the CPU, whatever computes them.
fn logits(model: &Llama, ids: &[i64]) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    let ids = Tensor::from_slice(ids).unsqueeze(0).to_device(model.device());
    Ok(model.logits(Texts::Rows(&ids), None, Mode::Eval)?.squeeze_dim(0).to_device(Device::Cpu))
}

/// How far two models are apart.
struct Difference {
    positions: i64,
    largest: f64,
    mean_kl: f64,
    max_kl: f64,
    agree: f64,
}

/// Of `model`, and of another one's logits.
fn compare(model: &Llama, texts: &[Vec<i64>], merged: &[Tensor]) -> Result<Difference> {
    let mut d = Difference { positions: 0, largest: 0.0, mean_kl: 0.0, max_kl: 0.0, agree: 0.0 };
    for (b, ids) in merged.iter().zip(texts) {
        let a = logits(model, ids)?;
        let (p, q) = (a.log_softmax(-1, Kind::Double), b.log_softmax(-1, Kind::Double));
        let kl = (p.exp() * (&p - q)).sum_dim_intlist([-1i64].as_slice(), false, Kind::Double);
        d.positions += kl.size()[0];
        d.mean_kl += kl.sum(Kind::Double).double_value(&[]);
        d.max_kl = d.max_kl.max(kl.max().double_value(&[]));
        d.largest = d.largest.max((&a - b).abs().max().double_value(&[]));
        d.agree += a.argmax(-1, false).eq_tensor(&b.argmax(-1, false)).sum(Kind::Double).double_value(&[]);
    }
    d.mean_kl /= d.positions.max(1) as f64;
    d.agree /= d.positions.max(1) as f64;
    Ok(d)
}

impl Difference {
    fn json(&self) -> serde_json::Value {
        serde_json::json!({ "positions": self.positions, "largest": self.largest, "mean_kl": self.mean_kl,
            "max_kl": self.max_kl, "same": self.agree })
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} positions:", self.positions)?;
        writeln!(f, "  largest logit difference  {:.3e}", self.largest)?;
        writeln!(f, "  KL divergence             mean {:.3e}, largest {:.3e}", self.mean_kl, self.max_kl)?;
        write!(f, "  same likeliest token      {:.2} %", 100.0 * self.agree)
    }
}

//! Generation, greedy or sampled, over the key-value cache.

use lora_core::{Error, Mode, Result};
use tch::{Kind, Tensor};

use crate::model::{Model, Texts};
use crate::ops::Cache;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    /// The likeliest; of equals the first.
    Greedy,
    /// At random, from libtorch's generator: seed it for a repeatable text.
    Random {
        /// Divides the logits; below 1 sharpens.
        temperature: f64,
        /// Keep the k likeliest (0: all).
        top_k: i64,
        /// Keep the likeliest whose probabilities reach this sum (1: all).
        top_p: f64,
    },
}

/// Continues `prompt` by at most `limit` tokens, up to and without one of `stop`. Each new token goes to
/// `each`, which may end the generation by `false`.
///
/// # Errors
/// [`Error::data`] if the prompt is empty, or leaves no room in the model's context; [`Error::non_finite`] if the logits are not
/// finite.
pub fn generate(
    model: &dyn Model,
    prompt: &[i64],
    limit: usize,
    stop: &[i64],
    sampling: Sampling,
    mut each: impl FnMut(i64) -> bool,
) -> Result<Vec<i64>> {
    if prompt.is_empty() {
        return Err(Error::data("the prompt has no tokens").hint("give at least one"));
    }
    let _guard = tch::no_grad_guard();
    let mut cache = Cache::new();
    let mut text = Vec::new();
    let mut input = prompt.to_vec();
    let room = usize::try_from(model.config().max_positions).unwrap_or(0).saturating_sub(prompt.len());
    if room == 0 && limit > 0 {
        let what = format!(
            "a prompt of {} tokens leaves no room in the model's context of {}",
            prompt.len(),
            model.config().max_positions
        );
        return Err(Error::data(what).hint("shorten it"));
    }
    while text.len() < limit.min(room) {
        let ids = Tensor::from_slice(&input).unsqueeze(0).to_device(model.device());
        let hidden = model.hidden(Texts::Rows(&ids), Some(&mut cache), Mode::Eval)?;
        let last = hidden.narrow(1, hidden.size()[1] - 1, 1);
        let logits = model.head().forward(&last, Mode::Eval).to_kind(Kind::Float).reshape(-1);
        let next = choose(&logits, sampling)?;
        if stop.contains(&next) {
            break;
        }
        text.push(next);
        if !each(next) {
            break;
        }
        input = vec![next];
    }
    Ok(text)
}

fn choose(logits: &Tensor, sampling: Sampling) -> Result<i64> {
    let (most, likeliest) = logits.max_dim(0, false);
    if !most.double_value(&[]).is_finite() {
        return Err(Error::non_finite("the model's logits are not finite")
            .hint("compute in f32 or bf16 (`--dtype`), or look at the adapter's norms (`lora inspect`)"));
    }
    let Sampling::Random { temperature, top_k, top_p } = sampling else {
        return Ok(likeliest.int64_value(&[]));
    };
    // Of the likeliest it is 0, whatever the temperature.
    let mut logits = (logits - most) / temperature;
    if top_k > 0 && top_k < logits.size()[0] {
        let (best, _) = logits.topk(top_k, 0, true, true);
        logits = logits.masked_fill(&logits.lt_tensor(&best.min()), f64::NEG_INFINITY);
    }
    if top_p < 1.0 {
        let (sorted, order) = logits.sort(0, true);
        let p = sorted.softmax(0, Kind::Float);
        // A token stays if the ones before it do not reach the sum: the likeliest always does.
        let beyond = (p.cumsum(0, Kind::Float) - p).ge(top_p);
        logits = sorted.masked_fill(&beyond, f64::NEG_INFINITY).gather(0, &order.argsort(0, false), false);
    }
    Ok(logits.softmax(0, Kind::Float).multinomial(1, false).int64_value(&[0]))
}

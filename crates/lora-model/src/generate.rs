//! Generation, greedy or sampled, over the key-value cache.

use lora_core::{Error, Mode, Result};
use tch::{Kind, Tensor};

use crate::model::{Model, Texts};
use crate::ops::Cache;
use crate::pieces::Piece;

/// A shorter beginning is not worth a pass of its own.
const LEAST: usize = 8;

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
    let mut texts = go_on(model, &[(prompt, limit)], stop, sampling, &mut |_, token| each(token))?;
    Ok(texts.swap_remove(0))
}

/// Continues several prompts at once, each by at most so many tokens, as [`generate`] does one: the weights are read once
/// for all of them, and what all prompts begin with is read once. A text is what it would be alone, up to the rounding of
/// sums.
///
/// # Errors
/// As [`generate`], for any of them.
pub fn generate_all(
    model: &dyn Model,
    prompts: &[(&[i64], usize)],
    stop: &[i64],
    sampling: Sampling,
) -> Result<Vec<Vec<i64>>> {
    go_on(model, prompts, stop, sampling, &mut |_, _| true)
}

fn go_on(
    model: &dyn Model,
    prompts: &[(&[i64], usize)],
    stop: &[i64],
    sampling: Sampling,
    each: &mut dyn FnMut(usize, i64) -> bool,
) -> Result<Vec<Vec<i64>>> {
    let limits = prompts.iter().map(|prompt| limit(model, prompt)).collect::<Result<Vec<_>>>()?;
    let _guard = tch::no_grad_guard();
    let mut texts: Vec<Vec<i64>> = prompts.iter().map(|_| Vec::new()).collect();
    let mut cache = Cache::new();
    // The texts that go on, and what of each is read next.
    let mut open: Vec<usize> = (0..prompts.len()).filter(|&i| limits[i] > 0).collect();
    let mut input: Vec<&[i64]> = open.iter().map(|&i| prompts[i].0).collect();
    let begin = beginning(&input);
    if begin >= LEAST {
        let _ = hidden(model, &[&input[0][..begin]], &mut cache)?;
        cache.keep(&vec![0; input.len()]);
        input.iter_mut().for_each(|prompt| *prompt = &prompt[begin..]);
    }
    let mut last;
    while !open.is_empty() {
        let next = next(model, &input, &mut cache, sampling)?;
        let goes_on: Vec<usize> = (0..open.len())
            .filter(|&at| {
                let (text, token) = (open[at], next[at]);
                if stop.contains(&token) {
                    return false;
                }
                texts[text].push(token);
                each(text, token) && texts[text].len() < limits[text]
            })
            .collect();
        if goes_on.len() < open.len() {
            cache.keep(&goes_on);
            open = goes_on.iter().map(|&at| open[at]).collect();
        }
        last = goes_on.iter().map(|&at| next[at]).collect::<Vec<_>>();
        input = last.chunks(1).collect();
    }
    Ok(texts)
}

/// How many tokens a prompt is continued by at the most.
fn limit(model: &dyn Model, &(prompt, limit): &(&[i64], usize)) -> Result<usize> {
    if prompt.is_empty() {
        return Err(Error::data("the prompt has no tokens").hint("give at least one"));
    }
    let most = model.config().max_positions;
    let room = usize::try_from(most).unwrap_or(0).saturating_sub(prompt.len());
    if room == 0 && limit > 0 {
        let what =
            format!("a prompt of {} tokens leaves no room in the model's context of {most}", prompt.len());
        return Err(Error::data(what).hint("shorten it"));
    }
    Ok(limit.min(room))
}

/// How many tokens all of several texts begin with; one is left to each.
fn beginning(texts: &[&[i64]]) -> usize {
    let [first, rest @ ..] = texts else { return 0 };
    let alike = |text: &&[i64]| {
        let most = text.len().min(first.len()) - 1;
        (0..most).take_while(|&i| text[i] == first[i]).count()
    };
    rest.iter().map(alike).min().unwrap_or(0)
}

/// What follows each of `texts`, of which these are the tokens that were not read yet.
fn next(model: &dyn Model, texts: &[&[i64]], cache: &mut Cache, sampling: Sampling) -> Result<Vec<i64>> {
    let ends: Vec<i64> = texts
        .iter()
        .scan(0, |end, text| {
            *end += text.len() as i64;
            Some(*end - 1)
        })
        .collect();
    let ends = hidden(model, texts, cache)?.index_select(1, &there(model, &ends));
    choose(&model.head().forward(&ends, Mode::Eval).to_kind(Kind::Float).squeeze_dim(0), sampling)
}

/// The states `[1, tokens, hidden]` of what `texts` go on with.
fn hidden(model: &dyn Model, texts: &[&[i64]], cache: &mut Cache) -> Result<Tensor> {
    let pieces = Piece::texts(&texts.iter().map(|text| text.len() as i64).collect::<Vec<_>>());
    let ids = there(model, &texts.concat()).unsqueeze(0);
    model.hidden(Texts::Packed(&ids, &pieces), Some(cache), Mode::Eval)
}

fn there(model: &dyn Model, numbers: &[i64]) -> Tensor {
    Tensor::from_slice(numbers).to_device(model.device())
}

/// A token for each row of `logits [n, vocab]`.
fn choose(logits: &Tensor, sampling: Sampling) -> Result<Vec<i64>> {
    let (most, likeliest) = logits.max_dim(1, true);
    if !most.sum(Kind::Double).double_value(&[]).is_finite() {
        return Err(Error::non_finite("the model's logits are not finite")
            .hint("compute in f32 or bf16 (`--dtype`), or look at the adapter's norms (`lora inspect`)"));
    }
    let numbers = |t: &Tensor| {
        Vec::try_from(t.reshape([-1])).map_err(|e: tch::TchError| Error::internal(e.to_string()))
    };
    let Sampling::Random { temperature, top_k, top_p } = sampling else { return numbers(&likeliest) };
    // The sums are in f32, in which neither may be 0.
    let [temperature, top_p] = [temperature, top_p].map(|x| x.max(f64::from(f32::MIN_POSITIVE)));
    // Of the likeliest it is 0, whatever the temperature.
    let mut logits = (logits - most) / temperature;
    if top_k > 0 && top_k < logits.size()[1] {
        let (best, _) = logits.topk(top_k, 1, true, true);
        logits = logits.masked_fill(&logits.lt_tensor(&best.narrow(1, top_k - 1, 1)), f64::NEG_INFINITY);
    }
    if top_p < 1.0 {
        let (sorted, order) = logits.sort(1, true);
        let p = sorted.softmax(1, Kind::Float);
        // A token stays if the ones before it do not reach the sum: the likeliest always does.
        let beyond = (p.cumsum(1, Kind::Float) - p).ge(top_p);
        logits = sorted.masked_fill(&beyond, f64::NEG_INFINITY).gather(1, &order.argsort(1, false), false);
    }
    numbers(&logits.softmax(1, Kind::Float).multinomial(1, false))
}

//! What lies beside the weights, as arrays that stay as they are from round to round.
//!
//! A round adds rows to every A and columns to every B. Array `n` has ranks `8 n` to `8 n + 7` of all modules, so one that
//! is full is never another again, and a node, which knows what it has by its hash, fetches only the new ones.

use crate::flower::{Value, Values};
use lora_core::{Error, Result};
use std::collections::BTreeMap;
use tch::Tensor;

/// Ranks of an array.
const RANKS: i64 = 8;

/// `A [r, in]` and `B [out, r]` by module.
type Pairs = BTreeMap<String, (Tensor, Tensor)>;

/// The modules' ranks, and the arrays by their numbers.
pub(super) fn of_beside(beside: &Pairs) -> Result<(Values, BTreeMap<String, Tensor>)> {
    let ranks = beside.iter().map(|(module, (a, _))| (module.clone(), a.size()[0]));
    let ranks: BTreeMap<String, i64> = ranks.collect();
    let count = (ranks.values().max().copied().unwrap_or(0) + RANKS - 1) / RANKS;
    let slices = (0..count).map(|n| {
        let mut parts = Vec::new();
        for (a, b) in beside.values() {
            let (from, rows) = of_module(a.size()[0], n);
            parts.push(a.f_narrow(0, from, rows)?.f_reshape([-1])?);
            parts.push(b.f_narrow(1, from, rows)?.f_transpose(0, 1)?.f_reshape([-1])?);
        }
        Ok((name(n), Tensor::f_cat(&parts, 0)?))
    });
    let slices = slices.collect::<Result<_>>()?;
    Ok((ranks.into_iter().map(|(module, rank)| (module, Value::Int(rank))).collect(), slices))
}

/// The same back; inputs and outputs are those of the adapter's own factors, `(in, out)` by `widths`.
pub(super) fn to_beside(
    ranks: &Values,
    slices: &BTreeMap<String, Tensor>,
    widths: impl Fn(&str) -> Option<(i64, i64)>,
) -> Result<Pairs> {
    let mut modules = Vec::new();
    for (module, rank) in ranks {
        let most = RANKS * slices.len() as i64;
        let rank = match rank {
            Value::Int(rank) if (1..=most).contains(rank) => *rank,
            _ => return Err(Error::data("it is no rank of what is there").at(module)),
        };
        let widths =
            widths(module).ok_or_else(|| Error::data("the adapter has no such module").at(module))?;
        modules.push((module, rank, widths, Vec::new(), Vec::new()));
    }
    for n in 0..slices.len() as i64 {
        let slice = slices.get(&name(n)).ok_or_else(|| Error::data("it is missing").at(name(n)))?;
        let sizes = modules.iter().map(|(_, rank, (inp, out), ..)| of_module(*rank, n).1 * (inp + out));
        let (size, wanted) = (slice.size(), sizes.sum::<i64>());
        if size != [wanted] || wanted == 0 {
            return Err(Error::data(format!("{size:?} numbers, not {wanted}")).at(name(n)));
        }
        let mut at = 0;
        let mut next = |rows: i64, width: i64| -> Result<Tensor> {
            let part = slice.f_narrow(0, at, rows * width)?.f_view([rows, width])?;
            at += rows * width;
            Ok(part)
        };
        for (_, rank, (inp, out), a, b) in &mut modules {
            let rows = of_module(*rank, n).1;
            a.push(next(rows, *inp)?);
            b.push(next(rows, *out)?);
        }
    }
    let whole = |(module, _, _, a, b): (&String, _, _, Vec<Tensor>, Vec<Tensor>)| {
        Ok((
            module.clone(),
            (Tensor::f_cat(&a, 0)?, Tensor::f_cat(&b, 0)?.f_transpose(0, 1)?.f_contiguous()?),
        ))
    };
    modules.into_iter().map(whole).collect()
}

/// Where a module's ranks in array `n` begin, and how many they are.
fn of_module(rank: i64, n: i64) -> (i64, i64) {
    let from = (RANKS * n).min(rank);
    (from, RANKS.min(rank - from))
}

fn name(n: i64) -> String {
    format!("{n:06}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn random(size: &[i64]) -> Tensor {
        Tensor::rand(size, (Kind::Float, Device::Cpu))
    }

    fn pairs(ranks: [i64; 2]) -> Pairs {
        let of = |name: &str, rank, (inp, out): (i64, i64)| {
            (name.to_owned(), (random(&[rank, inp]), random(&[out, rank])))
        };
        [of("m", ranks[0], WIDTHS[0]), of("n", ranks[1], WIDTHS[1])].into()
    }

    const WIDTHS: [(i64, i64); 2] = [(5, 4), (3, 7)];

    fn widths(module: &str) -> Option<(i64, i64)> {
        Some(WIDTHS[["m", "n"].iter().position(|name| *name == module)?])
    }

    #[test]
    fn they_come_back_and_what_was_full_stays() {
        let _guard = tch::no_grad_guard();
        for ranks in [[1, 1], [8, 8], [24, 3], [9, 24], [40, 41]] {
            let beside = pairs(ranks);
            let (told, slices) = of_beside(&beside).unwrap();
            assert_eq!(slices.len() as i64, (ranks[0].max(ranks[1]) + 7) / 8);
            assert_eq!(to_beside(&told, &slices, widths).unwrap(), beside, "{ranks:?}");
            let more = pairs([24, 24]);
            let grown = beside.iter().map(|(name, (a, b))| {
                let (more_a, more_b) = &more[name];
                (name.clone(), (Tensor::cat(&[a, more_a], 0), Tensor::cat(&[b, more_b], 1)))
            });
            let (_, later) = of_beside(&grown.collect()).unwrap();
            let full = ranks[0].min(ranks[1]) / 8;
            assert!((0..full).all(|n| slices[&name(n)] == later[&name(n)]), "{ranks:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (told, slices) = of_beside(&pairs([9, 24])).unwrap();
        let refused = |told: &Values, slices: &BTreeMap<String, Tensor>| {
            to_beside(told, slices, widths).map(drop).unwrap_err().to_string()
        };
        for rank in [Value::Int(0), Value::Int(25), Value::Int(i64::MAX), Value::Float(3.0)] {
            let wrong = [("m".to_owned(), Value::Int(9)), ("n".to_owned(), rank)].into_iter().collect();
            assert!(refused(&wrong, &slices).contains('n'));
        }
        let wrong: Values = [("x".to_owned(), Value::Int(9))].into_iter().collect();
        assert!(refused(&wrong, &slices).contains('x'));
        let none = Values::new();
        assert!(refused(&none, &slices).contains("000000"));
        for n in 0..3 {
            let mut fewer: BTreeMap<_, _> =
                slices.iter().map(|(k, t)| (k.clone(), t.shallow_clone())).collect();
            fewer.insert(name(n), random(&[3]));
            assert!(refused(&told, &fewer).contains(&name(n)));
            fewer.remove(&name(n));
            refused(&told, &fewer);
        }
    }
}

//! Beginnings that texts of a batch have in common, an instruction or a system message: read once for all of them.
//!
//! What a causal model makes of a beginning does not depend on what follows. So its states are computed once, each text
//! goes on from them, and the gradients of all meet in them: the same sums, of fewer products. Only what is not learnt is
//! shared, and nothing where dropout would draw one mask for several texts.

use lora_core::{Linear, Linears};
use lora_model::{IGNORE, joins};
use tch::{Device, Kind};

use crate::data::Sample;

/// A shorter beginning is not worth a piece of its own.
const LEAST: usize = 8;

/// Texts with a beginning in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shared {
    /// Which, by their place in the batch.
    pub(crate) texts: Vec<usize>,
    /// How many tokens.
    pub(crate) tokens: usize,
}

/// Whether texts may share in training that is not private. Elsewhere than on a CPU, and in other dtypes than bf16 and f32,
/// attention reads texts that are each by themselves faster.
pub fn may_share(device: Device, kind: Kind, dropout: bool) -> bool {
    joins(device, kind) && !dropout
}

/// The first layer of the model that drops out what it reads.
pub(crate) fn drops_out(model: &(impl Linears + ?Sized)) -> Option<String> {
    let drops = |layer: &Linear| layer.adapter().is_some_and(|a| a.dropout() > 0.0);
    model.linears().into_iter().find(|(_, layer)| drops(layer)).map(|(name, _)| name)
}

/// Groups that spare many tokens; a text is in one at the most.
pub(crate) fn shared(samples: &[&Sample]) -> Vec<Shared> {
    let given = |sample: &&Sample| {
        let n = sample.labels.iter().take_while(|&&label| label == IGNORE).count();
        // Something is left for the text itself.
        n.min(sample.ids.len().saturating_sub(1))
    };
    let given: Vec<&[i64]> = samples.iter().map(|sample| &sample.ids[..given(sample)]).collect();
    let mut order: Vec<usize> = (0..samples.len()).collect();
    order.sort_by_key(|&i| given[i]);
    let next: Vec<usize> = order.windows(2).map(|pair| alike(given[pair[0]], given[pair[1]])).collect();
    // In this order texts that begin alike are neighbours. `most[n]`: what the first n texts spare at best in groups of
    // neighbours, where the last group begins, and how much it shares.
    let mut most = vec![(0, 0, 0)];
    for n in 1..=order.len() {
        let mut best = (most[n - 1].0, n - 1, 0);
        let mut common = usize::MAX;
        for start in (0..n - 1).rev() {
            common = common.min(next[start]);
            if common < LEAST {
                break;
            }
            let spared = most[start].0 + (n - 1 - start) * common;
            if spared > best.0 {
                best = (spared, start, common);
            }
        }
        most.push(best);
    }
    let (mut groups, mut n) = (Vec::new(), order.len());
    while n > 0 {
        let (_, start, tokens) = most[n];
        if tokens > 0 {
            groups.push(Shared { texts: order[start..n].to_vec(), tokens });
        }
        n = start;
    }
    groups
}

fn alike(a: &[i64], b: &[i64]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(given: &[i64], learnt: &[i64]) -> Sample {
        let ids = [given, learnt].concat();
        let labels = given.iter().map(|_| IGNORE).chain(learnt.iter().copied()).collect();
        Sample { ids, labels, line: 1 }
    }

    fn groups(samples: &[Sample]) -> Vec<(Vec<usize>, usize)> {
        let all = shared(&samples.iter().collect::<Vec<_>>());
        let mut all: Vec<_> = all.into_iter().map(|g| (g.texts, g.tokens)).collect();
        all.iter_mut().for_each(|(texts, _)| texts.sort_unstable());
        all.sort();
        all
    }

    #[test]
    fn the_groups_that_spare_most() {
        let run = |from: i64, n: i64| (from..from + n).collect::<Vec<_>>();
        let with = |begin: &[i64], n: i64| sample(&[begin, &run(100 * n, 5)].concat(), &[7]);
        let (long, short) = (run(0, 30), run(0, 10));
        // Four begin with ten tokens, two of them with thirty: together they spare 30, the two alone 30 as well with the
        // others' 10 beside.
        let texts = [with(&long, 1), with(&short, 2), with(&long, 3), with(&short, 4)];
        assert_eq!(groups(&texts), [(vec![0, 2], 30), (vec![1, 3], 10)]);
        // Many short ones are worth more than one long pair.
        let texts: Vec<_> =
            [&long, &short, &short, &long, &short, &short].iter().zip(1..).map(|(b, n)| with(b, n)).collect();
        assert_eq!(groups(&texts), [(vec![0, 3], 30), (vec![1, 2, 4, 5], 10)]);
        assert_eq!(groups(&texts[1..3]), [(vec![0, 1], 10)]);
    }

    #[test]
    fn what_is_learnt_or_short_is_each_texts_own() {
        let begin: Vec<i64> = (0..12).collect();
        // The same text twice: all but its last token, which is learnt.
        let twice = [sample(&begin, &[7, 8]), sample(&begin, &[7, 8])];
        assert_eq!(groups(&twice), [(vec![0, 1], 12)]);
        // Of one text everything is learnt.
        assert_eq!(groups(&[sample(&[], &begin), sample(&[], &begin)]), []);
        assert_eq!(groups(&[sample(&begin[..7], &[1]), sample(&begin[..7], &[2])]), []);
        // Cut so that nothing of it is learnt.
        let cut = Sample { ids: begin.clone(), labels: vec![IGNORE; 12], line: 1 };
        assert_eq!(groups(&[cut.clone(), cut]), [(vec![0, 1], 11)]);
        assert_eq!(groups(&[]), []);
    }
}

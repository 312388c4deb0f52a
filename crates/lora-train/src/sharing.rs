//! Beginnings that texts of a batch have in common, an instruction or a system message: read once for all of them.
//!
//! What a causal model makes of a beginning does not depend on what follows. So its states are computed once, each text
//! goes on from them, and the gradients of all meet in them: the same sums, of fewer products. Only what is not learnt is
//! shared, and nothing where dropout would draw one mask for several texts.

use lora_core::{Linear, Linears};
use lora_model::{IGNORE, Piece, joins};
use tch::{Device, Kind};

use crate::data::Sample;

/// Fewer tokens spared are not worth a piece of their own.
const LEAST: usize = 8;

/// A run of tokens of one text, or of several that are alike up to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    text: usize,
    from: usize,
    to: usize,
    behind: Option<usize>,
}

/// Texts, of which what they begin with alike is there once: a tree of runs of tokens, those of several texts in front of each
/// text's own.
#[derive(Debug)]
pub(crate) struct Tree {
    parts: Vec<Part>,
    /// Where each begins in the row.
    starts: Vec<usize>,
    /// The part in which each text ends; none of a text without tokens.
    ends: Vec<Option<usize>>,
}

impl Tree {
    /// Of texts that may share so many of their first tokens, where `least` or more are spared.
    pub(crate) fn of(texts: &[&[i64]], may: impl Fn(usize) -> usize, least: usize) -> Self {
        let alike: Vec<&[i64]> = texts.iter().enumerate().map(|(i, text)| &text[..may(i)]).collect();
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&i| alike[i]);
        let mut tree = Self { parts: Vec::new(), starts: Vec::new(), ends: Vec::new() };
        let mut begun = vec![(None, 0); texts.len()];
        tree.grow((&alike, least), &order, (None, 0), &mut begun);
        for (text, (ids, (behind, from))) in texts.iter().zip(begun).enumerate() {
            let own = (from < ids.len()).then_some(tree.parts.len());
            tree.parts.extend(own.map(|_| Part { text, from, to: ids.len(), behind }));
            tree.ends.push(own.or(behind));
        }
        let next = |at: &mut usize, part: &Part| Some(std::mem::replace(at, *at + part.to - part.from));
        tree.starts = tree.parts.iter().scan(0, next).collect();
        tree
    }

    /// Of samples, which share what none of them learns, or nothing.
    pub(crate) fn of_samples(samples: &[&Sample], may: bool) -> Self {
        let texts: Vec<&[i64]> = samples.iter().map(|sample| &sample.ids[..]).collect();
        let given = |i: usize| {
            let learnt = samples[i].labels.iter().position(|&label| label != IGNORE);
            // Something is left for the text itself.
            let most = samples[i].ids.len().saturating_sub(1);
            if may { learnt.unwrap_or(most).min(most) } else { 0 }
        };
        Self::of(&texts, given, LEAST)
    }

    /// Finds what `order`, sorted texts that are alike up to `from`, have in common behind that; where each text's own begins.
    fn grow(
        &mut self,
        (alike, least): (&[&[i64]], usize),
        order: &[usize],
        (mut behind, mut from): (Option<usize>, usize),
        begun: &mut [(Option<usize>, usize)],
    ) {
        let (Some(&first), Some(&last)) = (order.first(), order.last()) else { return };
        if order.len() == 1 {
            begun[first] = (behind, from);
            return;
        }
        let common = alike[first].iter().zip(alike[last]).take_while(|(a, b)| a == b).count();
        if (order.len() - 1) * (common - from) >= least.max(1) {
            self.parts.push(Part { text: first, from, to: common, behind });
            (behind, from) = (Some(self.parts.len() - 1), common);
        }
        let next = |i: &usize| alike[*i].get(common);
        for group in order.chunk_by(|a, b| next(a).is_some() && next(a) == next(b)) {
            self.grow((alike, least), group, (behind, from), begun);
        }
    }

    /// What lies in the row.
    pub(crate) fn pieces(&self) -> Vec<Piece> {
        let piece = |part: &Part| Piece { len: (part.to - part.from) as i64, behind: part.behind };
        self.parts.iter().map(piece).collect()
    }

    /// The row of what each text has at its tokens.
    pub(crate) fn row<'a>(&self, of: impl Fn(usize) -> &'a [i64]) -> Vec<i64> {
        self.parts.iter().flat_map(|part| &of(part.text)[part.from..part.to]).copied().collect()
    }

    /// Where a token of a text lies in the row.
    pub(crate) fn place(&self, text: usize, token: usize) -> Option<usize> {
        let mut at = self.ends[text]?;
        while token < self.parts[at].from {
            at = self.parts[at].behind?;
        }
        (token < self.parts[at].to).then(|| self.starts[at] + token - self.parts[at].from)
    }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn sample(given: &[i64], learnt: &[i64]) -> Sample {
        let ids = [given, learnt].concat();
        let labels = given.iter().map(|_| IGNORE).chain(learnt.iter().copied()).collect();
        Sample { ids, labels, line: 1 }
    }

    fn tree(samples: &[Sample]) -> Tree {
        Tree::of_samples(&samples.iter().collect::<Vec<_>>(), true)
    }

    /// What each text reads, by its chain of pieces.
    fn read(tree: &Tree, texts: &[&[i64]]) -> Vec<Vec<i64>> {
        let row = tree.row(|text| texts[text]);
        (0..texts.len())
            .map(|text| (0..texts[text].len()).map(|at| row[tree.place(text, at).unwrap()]).collect())
            .collect()
    }

    proptest! {
        /// Each text is there, and nothing twice.
        #[test]
        fn a_tree_holds_each_beginning_once(texts in prop::collection::vec(prop::collection::vec(0i64..3, 0..9), 0..12)) {
            let texts: Vec<&[i64]> = texts.iter().map(|text| &text[..]).collect();
            let tree = Tree::of(&texts, |i| texts[i].len(), 1);
            prop_assert_eq!(read(&tree, &texts), texts.iter().map(|text| text.to_vec()).collect::<Vec<_>>());
            let beginnings: BTreeSet<_> =
                texts.iter().flat_map(|text| (1..=text.len()).map(|n| &text[..n])).collect();
            prop_assert_eq!(tree.row(|text| texts[text]).len(), beginnings.len());
            let ends = Piece::ends(&tree.pieces());
            for (text, end) in texts.iter().zip(&tree.ends) {
                prop_assert_eq!(end.map_or(0, |at| ends[at]), text.len() as i64);
            }
            for (i, piece) in tree.pieces().iter().enumerate() {
                prop_assert!(piece.len > 0 && piece.behind.is_none_or(|at| at < i));
            }
        }
    }

    #[test]
    fn beginnings_go_on_from_beginnings() {
        let run = |from: i64, n: i64| (from..from + n).collect::<Vec<_>>();
        let with = |begin: &[i64], n: i64| sample(&[begin, &run(100 * n, 5)].concat(), &[7]);
        let (long, short) = (run(0, 30), run(0, 10));
        let texts = [with(&long, 1), with(&short, 2), with(&long, 3), with(&short, 4)];
        let pieces = tree(&texts).pieces();
        let (alone, behind) = (|len| Piece { len, behind: None }, |at, len| Piece { len, behind: Some(at) });
        let own = [behind(1, 6), behind(0, 6), behind(1, 6), behind(0, 6)];
        assert_eq!(pieces, [&[alone(10), behind(0, 20)][..], &own].concat());
        // Two that share seven tokens spare too little; of three it is enough.
        let begin = run(0, 7);
        assert_eq!(tree(&[with(&begin, 1), with(&begin, 2)]).pieces(), [alone(13), alone(13)]);
        let three = tree(&[with(&begin, 1), with(&begin, 2), with(&begin, 3)]).pieces();
        assert_eq!(three, [alone(7), behind(0, 6), behind(0, 6), behind(0, 6)]);
    }

    #[test]
    fn what_is_learnt_is_each_texts_own() {
        let begin: Vec<i64> = (0..12).collect();
        let lengths = |samples: &[Sample]| tree(samples).pieces().iter().map(|p| p.len).collect::<Vec<_>>();
        // The same text twice: all but its last token, which is learnt.
        assert_eq!(lengths(&[sample(&begin, &[7, 8]), sample(&begin, &[7, 8])]), [12, 2, 2]);
        // Of one text everything is learnt.
        assert_eq!(lengths(&[sample(&[], &begin), sample(&[], &begin)]), [12, 12]);
        // Cut so that nothing of it is learnt.
        let cut = Sample { ids: begin.clone(), labels: vec![IGNORE; 12], line: 1 };
        assert_eq!(lengths(&[cut.clone(), cut]), [11, 1, 1]);
        assert_eq!(lengths(&[]), [0i64; 0]);
        let apart = [sample(&begin, &[1]), sample(&begin, &[2])];
        let pieces = Tree::of_samples(&apart.iter().collect::<Vec<_>>(), false).pieces();
        assert_eq!(pieces, Piece::texts(&[13, 13]));
    }
}

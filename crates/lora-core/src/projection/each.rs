//! Gradients of each text by itself, as differential privacy clips them: `dA_t = s dh_tᵀ x_t`, `dB_t = dv_tᵀ h_t`,
//! `dm_t = Σ dy_t ∘ z_t / n` over the rows of text t alone. The products are those of the whole batch, cut at the texts'
//! ends, so nothing is computed twice; what grows is what is written, the adapter once for every text.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tch::Tensor;
use tch_ext::{Product, Sum, gemm};

use super::flat_of;
use super::part::{Low, Part};
use crate::weight::master_kind;

thread_local! {
    static CURRENT: RefCell<Option<Texts>> = const { RefCell::new(None) };
}

struct Texts {
    lengths: Vec<i64>,
    /// By the address of the leaf's numbers.
    sinks: BTreeMap<usize, Tensor>,
    written: Arc<Mutex<Vec<usize>>>,
}

/// Runs `pass`, forward and backward, over rows that are texts of `lengths` one behind another. The gradient of each
/// leaf of `sinks` is written text by text into the `[texts, ..leaf's sizes]` beside it, in its dtype, and not added to
/// the leaf's own. In text order; nothing else of the pass changes.
///
/// The second value says whether that could be done for every leaf. Where it is false (an adapter without a normal form,
/// a layer that reads a part of the rows, as an output head does), do one text at a time: then the leaf's own gradient
/// is the text's.
pub fn each_text<T>(lengths: &[i64], sinks: &[(&Tensor, Tensor)], pass: impl FnOnce() -> T) -> (T, bool) {
    struct Reset(Option<Texts>);
    impl Drop for Reset {
        fn drop(&mut self) {
            CURRENT.set(self.0.take());
        }
    }
    let written = Arc::new(Mutex::new(Vec::new()));
    let map: BTreeMap<usize, Tensor> =
        sinks.iter().map(|(leaf, to)| (key(leaf), to.shallow_clone())).collect();
    let wanted: Vec<usize> = map.keys().copied().collect();
    let now = Texts { lengths: lengths.to_vec(), sinks: map, written: Arc::clone(&written) };
    let reset = Reset(CURRENT.replace(Some(now)));
    let result = pass();
    drop(reset);
    let mut written = std::mem::take(&mut *written.lock().unwrap_or_else(PoisonError::into_inner));
    written.sort_unstable();
    // Twice would have overwritten: a leaf that is used in two places.
    (result, written == wanted)
}

fn key(leaf: &Tensor) -> usize {
    leaf.data_ptr() as usize
}

/// Where a node's gradients go, text by text.
pub(super) struct Each {
    lengths: Vec<i64>,
    /// Of each leaf, in the order of the node's; none of one that is frozen.
    sinks: Vec<Option<(usize, Tensor)>>,
    written: Arc<Mutex<Vec<usize>>>,
}

impl Each {
    /// That of a node with these leaves, if it is wanted and the rows are the texts'.
    pub(super) fn of<'a>(leaves: impl Iterator<Item = &'a Tensor>, rows: i64) -> Option<Self> {
        CURRENT.with_borrow(|current| {
            let Texts { lengths, sinks, written } = current.as_ref()?;
            let sink = |leaf: &Tensor| Some((key(leaf), sinks.get(&key(leaf))?.shallow_clone()));
            let wanted = leaves.map(|leaf| (leaf.requires_grad(), sink(leaf)));
            let wanted: Vec<_> = wanted.collect();
            let all = wanted.iter().all(|(wants, sink)| *wants == sink.is_some());
            let sinks: Vec<_> = wanted.into_iter().map(|(_, sink)| sink).collect();
            (all && lengths.iter().sum::<i64>() == rows && sinks.iter().any(Option::is_some)).then(|| Self {
                lengths: lengths.clone(),
                sinks,
                written: Arc::clone(written),
            })
        })
    }

    /// Writes the gradients of all leaves. `dvs` and `dys`: of each part after and before its gain, if one came;
    /// `h`, `dh [n, all ranks]`; `x [n, in]`.
    pub(super) fn write(
        &self,
        parts: &[Part],
        (dys, dvs): (&[Option<Tensor>], &[Option<Tensor>]),
        (h, dh): (&Tensor, &Tensor),
        x: &Tensor,
    ) {
        let mut sinks = self.sinks.iter();
        for ((part, dy), dv) in parts.iter().zip(dys).zip(dvs) {
            let Some(low) = &part.low else { continue };
            let leaves: Vec<_> = sinks.by_ref().take(low.leaves()).collect();
            let (Some(dy), Some(dv)) = (dy, dv) else { continue };
            let [a, b, m] = [0, 1, 2].map(|i| Some(&leaves.get(i)?.as_ref()?.1));
            if let Some(a) = a {
                self.a(low, &low.columns(dh), x, a);
            }
            if let Some(b) = b {
                self.b(low, &low.columns(h), dv, b);
            }
            if let Some(m) = m {
                self.magnitude(low, &flat_of(dy), m);
            }
            let keys = leaves.iter().copied().flatten().map(|(key, _)| *key);
            self.written.lock().unwrap_or_else(PoisonError::into_inner).extend(keys);
        }
    }

    fn a(&self, low: &Low, dh: &Tensor, x: &Tensor, to: &Tensor) {
        let seen = low.seen(x);
        let texts: Vec<_> = self.ranges().map(|r| (cut(dh, r), cut(&seen, r))).collect();
        let targets: Vec<_> = (0..).map(|t| to.select(0, t)).take(texts.len()).collect();
        let sums = texts
            .iter()
            .zip(&targets)
            .map(|((dh, x), to)| Sum { scale: low.scale, ..Sum::new(vec![Product::over_tokens(dh, x)], to) });
        gemm(&sums.collect::<Vec<_>>());
    }

    fn b(&self, low: &Low, h: &Tensor, dv: &Tensor, to: &Tensor) {
        let texts: Vec<_> = self.ranges().map(|r| (cut(h, r), cut(dv, r))).collect();
        let sizes = [&[texts.len() as i64], &low.b.tr().size()[..]].concat();
        let all = Tensor::empty(sizes, (master_kind(dv.kind()), dv.device()));
        let targets: Vec<_> = (0..).map(|t| all.select(0, t)).take(texts.len()).collect();
        let sums =
            texts.iter().zip(&targets).map(|((h, dv), to)| Sum::new(vec![Product::over_tokens(h, dv)], to));
        gemm(&sums.collect::<Vec<_>>());
        to.shallow_clone().copy_(&all.transpose(1, 2));
    }

    fn magnitude(&self, low: &Low, dy: &Tensor, m: &Tensor) {
        let Some((gain, y)) = low.gain.as_ref().and_then(|gain| Some((gain, gain.y.as_ref()?))) else {
            return;
        };
        let all = dy.to_kind(gain.value.kind()) * flat_of(y.get());
        let slope = if gain.before { gain.slope.shallow_clone() } else { &gain.slope / &gain.value };
        for (t, range) in self.ranges().enumerate() {
            let sum = cut(&all, range).sum_dim_intlist([0i64].as_slice(), false, None::<tch::Kind>);
            m.select(0, t as i64).copy_(&(sum * &slope));
        }
    }

    /// Where each text begins, and how long it is.
    fn ranges(&self) -> impl Iterator<Item = (i64, i64)> {
        self.lengths.iter().scan(0, |next, &len| {
            let start = *next;
            *next += len;
            Some((start, len))
        })
    }
}

/// Rows of a text.
fn cut(t: &Tensor, (start, len): (i64, i64)) -> Tensor {
    t.narrow(0, start, len)
}

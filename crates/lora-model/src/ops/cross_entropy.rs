//! The loss, without logits that are kept.

use lora_core::{Linear, Mode, master_kind};
use tch::{Device, Kind, Reduction, Tensor};
use tch_ext::number::{Number, Wide, fold, narrow_in_place, sum, write};
use tch_ext::{Function, Product, Rows, Sum, attach, gemm, kernel, parallel_rows, simd};

use super::{LOSS, cuda, one, wide};

/// Labels with this value are not supervised.
pub const IGNORE: i64 = -100;

/// The summed cross-entropy of `hidden [n, d]` through `head` against `labels [n]` (i64, [`IGNORE`]: not
/// supervised), an f32 scalar, and how many labels count.
///
/// Only supervised rows reach the head. A constant head with nothing beside its weight works in chunks and makes the
/// gradient on the way: logits are never kept.
pub fn cross_entropy(hidden: &Tensor, labels: &Tensor, head: &Linear, mode: Mode) -> (Tensor, i64) {
    let rows = labels.not_equal(IGNORE).nonzero().reshape(-1);
    (cross_entropy_of(hidden, &rows, &labels.index_select(0, &rows), head, mode), rows.size()[0])
}

/// The same of `rows [m]`, whose labels are `targets [m]`; a device is not asked which they are.
pub(crate) fn cross_entropy_of(
    hidden: &Tensor,
    rows: &Tensor,
    targets: &Tensor,
    head: &Linear,
    mode: Mode,
) -> Tensor {
    let _inside = LOSS.enter();
    let hidden = hidden.index_select(0, rows);
    match head.constant() {
        Some(base) if head.bias().is_none() && base.beside().is_none() => {
            chunked(&hidden, targets, &base.dense(hidden.kind()))
        }
        _ => {
            let logits = wide(&head.forward(&hidden, mode));
            logits.cross_entropy_loss::<Tensor>(targets, None, Reduction::Sum, IGNORE, 0.0)
        }
    }
}

/// Rows whose logits exist at one time, at the most. The head's weight is read once a chunk; a GPU has memory to spare.
fn chunk(device: Device) -> i64 {
    if device == Device::Cpu { 352 } else { 1024 }
}

/// Of so many rows, in chunks as large as one another. It does not rise with the rows: plans take [`chunk`] itself.
fn chunk_of(rows: i64, device: Device) -> i64 {
    let count = (rows / chunk(device) + i64::from(rows % chunk(device) > 0)).max(1);
    rows / count + i64::from(rows % count > 0)
}

/// Whether the gradient takes the place of the logits.
fn in_place((kind, device): (Kind, Device)) -> bool {
    device == Device::Cpu && matches!(kind, Kind::BFloat16 | Kind::Float | Kind::Double)
}

/// The most that is held of logits and their gradient in `kind`, of so many supervised rows: for plans.
pub(crate) fn logits_bytes(rows: i64, vocabulary: i64, (kind, device): (Kind, Device), adapted: bool) -> u64 {
    let (narrow, wide) = (kind.elt_size_in_bytes() as i64, master_kind(kind).elt_size_in_bytes() as i64);
    // Through an adapted head: logits, the same in f32, their logarithms, and the gradients of both.
    // Pairs of an odd number of logits are read from a copy that has one more.
    let copied = kind == Kind::BFloat16 && vocabulary % 2 == 1;
    let beside = if in_place((kind, device)) && !copied { 0 } else { narrow };
    let bytes =
        if adapted { rows * (2 * narrow + 3 * wide) } else { rows.min(chunk(device)) * (beside + wide) };
    (bytes * vocabulary).unsigned_abs()
}

fn chunked(hidden: &Tensor, labels: &Tensor, head: &Tensor) -> Tensor {
    let wanted = hidden.requires_grad();
    let guard = tch::no_grad_guard();
    let (kind, device) = (hidden.kind(), hidden.device());
    let (rows, vocabulary) = (hidden.size()[0], head.size()[0]);
    let (hidden_now, dx) = (hidden.detach().contiguous(), hidden.empty_like());
    let mut losses = Vec::new();
    let chunk = chunk_of(rows, device);
    let logits = Tensor::empty([chunk, vocabulary], (master_kind(kind), device));
    for start in (0..rows).step_by(chunk.max(1) as usize) {
        let n = chunk.min(rows - start);
        let (h, labels) = (hidden_now.narrow(0, start, n), labels.narrow(0, start, n));
        let mut logits = logits.narrow(0, 0, n);
        gemm(&[Sum::new(vec![Product::transposed(&h, head)], &logits)]);
        let (loss, d) = cuda::softmax(&logits, &labels, kind)
            .or_else(|| kernel!(&h, softmax(&mut logits, &labels)))
            .unwrap_or_else(|| definition(&mut logits, &labels, kind));
        losses.push(loss);
        if wanted {
            gemm(&[Sum::new(vec![Product::plain(&d, head)], &dx.narrow(0, start, n))]);
        }
    }
    // In f64, on the device: nothing waits for it.
    let total =
        if losses.is_empty() { Tensor::zeros([], (Kind::Double, device)) } else { Tensor::stack(&losses, 0) };
    let loss = total.sum(Kind::Double).to_kind(master_kind(kind));
    drop(guard);
    one(attach(&[&loss], &[hidden], Scaled(wanted.then_some(dx))))
}

/// The summed loss of `logits [n, V]`, which are overwritten, in f64, and its gradient in `kind`.
fn definition(logits: &mut Tensor, labels: &Tensor, kind: Kind) -> (Tensor, Tensor) {
    let ignored = labels.less(0).unsqueeze(1);
    let label = labels.clamp_min(0).unsqueeze(1);
    // torch's log_softmax adds up a row's terms one after another in f32, which moves gradients by 3e-4.
    let _ = logits.g_sub_(&logits.amax([1i64].as_slice(), true));
    let chosen = logits.gather(1, &label, false);
    let sum = logits.exp_().sum_dim_intlist([1i64].as_slice(), true, None);
    let loss = (sum.log() - chosen).masked_fill(&ignored, 0.0).sum(Kind::Double);
    let mut d = logits.g_div_(&sum.masked_fill(&ignored, f64::INFINITY));
    let _ = d.scatter_add_(1, &label, &(ignored.to_kind(d.kind()) - 1.0));
    (loss, d.to_kind(kind))
}

/// The same by rows; the gradient takes the logits' place.
fn softmax<T: Number>(logits: &mut Tensor, labels: &Tensor) -> (Tensor, Tensor) {
    let (rows, width) = (logits.size()[0] as usize, logits.size()[1] as usize);
    let mut losses = vec![0.0; rows];
    let labels: &[i64] = &Vec::<i64>::try_from(labels).expect("labels [n]");
    let work = (Rows { data: write::<T::Wide>(logits), width }, Rows { data: &mut losses, width: 1 });
    parallel_rows(work, rows, 1, |first, _, (logits, losses)| {
        let rows = logits.data.chunks_exact_mut(width).zip(&labels[first..]);
        for (loss, (z, &label)) in losses.data.iter_mut().zip(rows) {
            match usize::try_from(label) {
                Ok(label) => *loss = row::<T>(z, label),
                Err(_) => z.fill(T::Wide::of(0.0)),
            }
        }
    });
    let d = logits.view_dtype(T::KIND).narrow(1, 0, width as i64);
    (Tensor::from(losses.iter().sum::<f64>()), d)
}

simd! {
    /// One row: its loss, and `softmax(z) - onehot(label)` at its beginning.
    fn row<T: Number>(z: &mut [T::Wide], label: usize) -> f64 {
        let mut lanes = [z[0]; 32];
        let chunks = z.chunks_exact(32);
        let rest = chunks.remainder();
        for chunk in chunks {
            for (lane, &z) in lanes.iter_mut().zip(chunk) {
                *lane = if z > *lane { z } else { *lane };
            }
        }
        let more = |a, b| if b > a { b } else { a };
        let most = rest.iter().fold(fold(lanes, more), |most, &z| more(most, z));
        let chosen = (z[label] - most).f64();
        z.iter_mut().for_each(|z| *z = (*z - most).exp());
        let total = sum(z, |z| z);
        let (inverse, of_label) = (T::Wide::of(1.0 / total), z[label]);
        narrow_in_place::<T>(z, inverse)[label] = T::narrow(of_label * inverse - T::Wide::of(1.0));
        total.ln() - chosen
    }
}

struct Scaled(Option<Tensor>);

impl Function for Scaled {
    fn backward(&mut self, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        let _inside = LOSS.enter();
        vec![grads[0].as_ref().zip(self.0.as_ref()).map(|(g, d)| times(d, g))]
    }
}

/// `d g`, rounded once. On a CPU libtorch takes a lone factor as wide as it is; on a GPU it rounds it to d's dtype first, but not
/// a row of one factor, for which a CPU would copy d.
fn times(d: &Tensor, g: &Tensor) -> Tensor {
    if d.device() == Device::Cpu { d * g } else { d.mul_out(&d.empty_like(), &g.reshape([1])) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_do_not_count_have_no_loss_and_no_gradient() {
        let (n, kept) = (Tensor::randn([5, 37], (Kind::Float, Device::Cpu)), [0i64, 2, 4]);
        let labels = Tensor::from_slice(&[3, IGNORE, 36, IGNORE, 0]);
        let chosen = Tensor::from_slice(&kept);
        type Way = fn(&Tensor, &Tensor) -> (Tensor, Tensor);
        let ways: [Way; 4] = [
            |z, labels| softmax::<f32>(&mut z.copy(), labels),
            |z, labels| softmax::<tch_ext::bf16>(&mut z.copy(), labels),
            |z, labels| definition(&mut z.copy(), labels, Kind::Float),
            |z, labels| tch_ext::cuda::emulated(|| cuda::softmax(z, labels, Kind::Float)).expect("a kernel"),
        ];
        for way in ways {
            let (loss, d) = way(&n, &labels);
            let (want, some) = way(&n.index_select(0, &chosen), &labels.index_select(0, &chosen));
            assert!((loss.double_value(&[]) - want.double_value(&[])).abs() < 1e-6);
            assert_eq!(d.index_select(0, &chosen), some);
            assert_eq!(
                d.abs().sum(Kind::Double).double_value(&[]),
                some.abs().sum(Kind::Double).double_value(&[])
            );
        }
    }

    #[test]
    fn a_label_that_there_is_not_has_no_loss_on_a_device() {
        let all = Tensor::zeros([3, 37], (Kind::Float, Device::Cpu));
        // What is behind the rows could be read as their logits.
        let (z, labels) = (all.narrow(0, 0, 2), Tensor::from_slice(&[36, 37i64]));
        let run = || cuda::softmax(&z, &labels, Kind::Float);
        let (loss, d) = tch_ext::cuda::emulated(run).expect("a kernel");
        assert!(loss.double_value(&[]).is_nan());
        let norm = |row| d.select(0, row).norm().double_value(&[]);
        assert!(norm(0) > 0.9 && norm(1) == 0.0);
    }

    /// The most rows of a run need not be those of which the most logits exist: 353 are halves of a kind, 352 one chunk.
    #[test]
    fn what_is_planned_is_enough_for_fewer_rows() {
        let planned = |rows, vocabulary, kind| logits_bytes(rows, vocabulary, (kind, Device::Cpu), false);
        let half = |rows, vocabulary| planned(rows, vocabulary, Kind::BFloat16);
        for rows in [0, 1, 351, 352, 353, 704, 705, 5000] {
            let (held, count) = (chunk_of(rows, Device::Cpu), rows.max(1));
            assert!(
                held <= chunk(Device::Cpu)
                    && held * ((count + chunk(Device::Cpu) - 1) / chunk(Device::Cpu)) >= rows
            );
            for fewer in [rows / 2, rows - 1, rows].into_iter().filter(|&fewer| fewer >= 0) {
                assert!(
                    half(rows, 1000) >= 4000 * chunk_of(fewer, Device::Cpu).unsigned_abs(),
                    "{rows}, {fewer}"
                );
            }
        }
        // Of an odd number of logits, and in f16, the gradient lies beside them.
        assert_eq!([half(10, 1000), half(10, 1001)], [40_000, 60_060]);
        assert_eq!([Kind::Half, Kind::Float].map(|kind| planned(10, 1000, kind)), [60_000, 40_000]);
    }
}

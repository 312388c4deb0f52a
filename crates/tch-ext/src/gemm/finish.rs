//! What is done to a tile's sums before they are written.

use super::pack::{Matrix, WIDTH};
use crate::Number;

/// Where `width` columns go, and what is done on the way.
pub(super) struct Finish<'a, T> {
    pub(super) width: usize,
    pub(super) scale: f32,
    pub(super) gain: Option<&'a [f32]>,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) onto: Option<Matrix<T>>,
    /// Whether to add to what is there.
    pub(super) add: bool,
    pub(super) out: *mut T,
    pub(super) stride: usize,
}

/// Writes a tile's rows.
///
/// # Safety
/// `out` and `onto` have these rows and columns, a gain and a bias these columns, and nobody else writes them.
pub(super) unsafe fn finish<T: Number<Wide = f32>>(sums: &mut [f32], to: Finish<'_, T>) {
    rows(sums, to);
}

crate::simd! {
    fn rows<T: Finished>(sums: &mut [f32], to: Finish<'_, T>) {
        for (i, sums) in sums.chunks_exact_mut(WIDTH).enumerate() {
            let sums = &mut sums[..to.width];
            if to.scale != 1.0 {
                sums.iter_mut().for_each(|sum| *sum *= to.scale);
            }
            if let Some(gain) = to.gain {
                sums.iter_mut().zip(gain).for_each(|(sum, gain)| *sum *= gain);
            }
            if let Some(bias) = to.bias {
                sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
            }
            if let Some(onto) = to.onto {
                // SAFETY: the caller's promise.
                let onto = unsafe { onto.row(i, 0, to.width) };
                sums.iter_mut().zip(onto).for_each(|(sum, x)| *sum += x.wide());
            }
            // SAFETY: as above.
            let out = unsafe { std::slice::from_raw_parts_mut(to.out.add(i * to.stride), to.width) };
            if to.add {
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = T::narrow(out.wide() + *sum));
            } else {
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = T::narrow(*sum));
            }
        }
    }
}

/// What sums are stored as.
trait Finished: Number<Wide = f32> {}
impl<T: Number<Wide = f32>> Finished for T {}

//! One block of a sum: panels packed, tiles summed, rows written.

use half::bf16;

use super::ahead::Ahead;
use super::finish::{Finish, finish};
use super::lines::Lines;
use super::pack::{Matrix, Packed, WIDTH};
use super::panels::{DEPTH, Item, Job, Slab};
use super::product::{self, Block, Term, products};
use crate::Number;

/// Computes a block. `fresh`: the panels must be packed; `next`: what will be after it.
///
/// # Safety
/// The block lies in the matrices, and nobody else writes it.
pub(super) unsafe fn block<T: Packed>(
    job: &Job<'_, T>,
    item: Item,
    fresh: bool,
    next: Option<&Ahead<'_, T>>,
    panel: &mut Lines,
    tile: &mut Lines,
) {
    let Item { column, row, rows, .. } = item;
    let (width, direct, most) = (WIDTH.min(job.columns - column), job.direct(), product::rows(T::HALF));
    // A depth may be rounded up to a pair twice in a pass.
    panel.resize::<T>((DEPTH / size_of::<T>() + T::PAIR * job.passes[0].len()) * WIDTH);
    tile.resize::<f32>(rows.next_multiple_of(most) * WIDTH);
    let (panel, tile) = (panel.of_mut::<T>(), tile.of_mut::<f32>());
    for (i, pass) in job.passes.iter().enumerate() {
        if fresh {
            // SAFETY: the columns lie in every b of the pass.
            unsafe { pack(pass, column, width, panel) };
        }
        let mine = job.passes.get(i + 1).map(|pass| Ahead { pass, column, columns: job.columns });
        let ahead = mine.as_ref().or(next);
        for start in (0..rows).step_by(most) {
            if let Some(ahead) = ahead {
                ahead.fetch(start / most, rows.div_ceil(most));
            }
            let count = most.min(rows - start);
            let sums = &mut tile[start * WIDTH..(start + count) * WIDTH];
            let (out, stride) = if direct {
                // SAFETY: the block's own place in `out`.
                (
                    unsafe { job.out.cast::<f32>().add((row + start) * job.out_stride + column) },
                    job.out_stride,
                )
            } else {
                (sums.as_mut_ptr(), WIDTH)
            };
            let terms = pass.iter().map(|slab| Term {
                a: slab.a.data.wrapping_add((row + start) * slab.a.stride),
                lda: slab.a.stride,
                b: panel[slab.offset..].as_ptr(),
                k: slab.padded,
            });
            let block = Block { m: count, n: width, ldc: stride, add: i > 0 || direct && job.add };
            // SAFETY: `count` rows of a, `padded` rows of the panel, `count` rows of `out`.
            unsafe { products(block, terms, out) };
            if i + 1 == job.passes.len() && !direct {
                // SAFETY: `count` rows of `width` from here on are this block's.
                unsafe {
                    if job.out_half {
                        write::<bf16, T>(job, row + start, column, width, sums);
                    } else {
                        write::<f32, T>(job, row + start, column, width, sums);
                    }
                }
            }
        }
    }
}

/// Packs the columns of a pass.
///
/// # Safety
/// They lie in every b of the pass.
unsafe fn pack<T: Packed>(pass: &[Slab<T>], column: usize, width: usize, panel: &mut [T]) {
    for slab in pass {
        let into = &mut panel[slab.offset..slab.offset + slab.padded * WIDTH];
        // What lay there may be no number.
        into[slab.depth.next_multiple_of(T::PAIR) * WIDTH..].fill(T::narrow(0.0));
        // SAFETY: the caller's promise.
        unsafe {
            if slab.transposed {
                T::pack_transposed(slab.b, slab.k, slab.depth, column, width, into);
            } else {
                T::pack(slab.b, slab.k, slab.depth, column, width, into);
            }
        }
    }
}

/// Writes a tile's rows.
///
/// # Safety
/// They lie in `out`, whose dtype is T, and nobody else writes them.
unsafe fn write<T: Number<Wide = f32>, S>(
    job: &Job<'_, S>,
    row: usize,
    column: usize,
    width: usize,
    sums: &mut [f32],
) {
    let columns = column..column + width;
    let to = Finish {
        width,
        scale: job.scale,
        gain: job.gain.map(|gain| &gain[columns.clone()]),
        bias: job.bias.as_ref().map(|bias| &bias[columns]),
        onto: job.onto.map(|(data, stride)| Matrix {
            data: data.cast::<T>().wrapping_add(row * stride + column),
            stride,
        }),
        add: job.add,
        out: job.out.cast::<T>().wrapping_add(row * job.out_stride + column),
        stride: job.out_stride,
    };
    // SAFETY: the caller's promise; `onto` has the sizes and the dtype of `out`.
    unsafe { finish(sums, to) };
}

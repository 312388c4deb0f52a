//! One block of a sum: panels packed, tiles summed, rows written.

use half::bf16;

use super::ahead::Ahead;
use super::pack::{Packed, WIDTH};
use super::panels::{DEPTH, Item, Job, Slab};
use super::product::{self, Shape, product};
use crate::round_bf16;

/// Computes a block. `fresh`: the panels must be packed; `next`: what will be after it.
///
/// # Safety
/// The block lies in the matrices, and nobody else writes it.
pub(super) unsafe fn block<T: Packed>(
    job: &Job<'_, T>,
    item: Item,
    fresh: bool,
    next: Option<&Ahead<'_, T>>,
    panel: &mut Vec<u32>,
    tile: &mut Vec<f32>,
) {
    let Item { column, row, rows, .. } = item;
    let (width, direct, most) = (WIDTH.min(job.columns - column), job.direct(), product::rows(T::HALF));
    // A depth may be rounded up to a pair twice in a pass.
    panel.resize((DEPTH / 4 + job.passes[0].len()) * WIDTH, 0);
    tile.resize(rows.next_multiple_of(most).max(tile.len() / WIDTH) * WIDTH, 0.0);
    for (i, pass) in job.passes.iter().enumerate() {
        // SAFETY: words are larger than, or as large as, T, which has no invalid bits.
        let panel = unsafe {
            std::slice::from_raw_parts_mut(panel.as_mut_ptr().cast::<T>(), panel.len() * 4 / size_of::<T>())
        };
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
            for (j, slab) in pass.iter().enumerate() {
                // SAFETY: `count` rows of a, `padded` rows of the panel, `count` rows of `out`.
                unsafe {
                    let a = slab.a.data.add((row + start) * slab.a.stride);
                    let shape = Shape {
                        m: count,
                        n: width,
                        k: slab.padded,
                        lda: slab.a.stride,
                        ldc: stride,
                        add: i + j > 0 || direct && job.add,
                    };
                    product(shape, a, panel.as_ptr().add(slab.offset), out);
                }
            }
            if i + 1 == job.passes.len() && !direct {
                // SAFETY: `count` rows of `width` from here on are this block's.
                unsafe { write(job, row + start, column, width, sums) };
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
/// They lie in `out`, and nobody else writes them.
unsafe fn write<T>(job: &Job<'_, T>, row: usize, column: usize, width: usize, sums: &mut [f32]) {
    for (i, sums) in sums.chunks_exact_mut(WIDTH).enumerate() {
        let (sums, offset) = (&mut sums[..width], (row + i) * job.out_stride + column);
        if job.scale != 1.0 {
            sums.iter_mut().for_each(|s| *s *= job.scale);
        }
        if let Some(gain) = job.gain {
            sums.iter_mut().zip(&gain[column..]).for_each(|(s, g)| *s *= g);
        }
        if let Some(bias) = &job.bias {
            sums.iter_mut().zip(&bias[column..]).for_each(|(s, b)| *s += b);
        }
        // SAFETY: the caller's promise; `onto` has the sizes and the dtype of `out`.
        unsafe {
            let onto = job.onto.map(|(data, stride)| (data, (row + i) * stride + column));
            if job.out_half {
                if let Some((data, at)) = onto {
                    add_half(sums, std::slice::from_raw_parts(data.cast::<bf16>().add(at), width));
                }
                let out = std::slice::from_raw_parts_mut(job.out.cast::<bf16>().add(offset), width);
                store_half(out, sums, job.add);
            } else {
                if let Some((data, at)) = onto {
                    add_single(sums, std::slice::from_raw_parts(data.cast::<f32>().add(at), width));
                }
                let out = std::slice::from_raw_parts_mut(job.out.cast::<f32>().add(offset), width);
                if job.add {
                    add_single(out, sums);
                } else {
                    out.copy_from_slice(sums);
                }
            }
        }
    }
}

crate::simd! {
    fn add_half(sums: &mut [f32], x: &[bf16]) {
        sums.iter_mut().zip(x).for_each(|(s, x)| *s += f32::from_bits(u32::from(x.to_bits()) << 16));
    }
}

crate::simd! {
    fn add_single(sums: &mut [f32], x: &[f32]) {
        sums.iter_mut().zip(x).for_each(|(s, x)| *s += x);
    }
}

crate::simd! {
    fn store_half(out: &mut [bf16], sums: &[f32], add: bool) {
        if add {
            out.iter_mut().zip(sums).for_each(|(o, s)| *o = round_bf16(o.to_f32() + s));
        } else {
            out.iter_mut().zip(sums).for_each(|(o, s)| *o = round_bf16(*s));
        }
    }
}

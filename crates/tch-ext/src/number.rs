//! The element types that the loops are written for.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use half::{bf16, f16};

use crate::{Element, elements, elements_mut, round_bf16};

/// How numbers are stored.
pub trait Number: Element {
    /// What they are computed in.
    type Wide: Wide;
    /// To what it is computed in.
    fn wide(self) -> Self::Wide;
    /// Back, rounded.
    fn narrow(x: Self::Wide) -> Self;
    /// The nearest number that can be stored so.
    #[inline(always)]
    fn rounded(x: Self::Wide) -> Self::Wide {
        Self::narrow(x).wide()
    }
}

/// f32 or f64.
pub trait Wide:
    Number<Wide = Self>
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    /// Rounded.
    fn of(x: f64) -> Self;
    /// Exactly.
    fn f64(self) -> f64;
    /// `e^x`. In f32 good to two units in the last place, and without branches; 0 below the normal numbers, and
    /// infinite above them.
    fn exp(self) -> Self;
}

impl Number for bf16 {
    type Wide = f32;
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn narrow(x: f32) -> bf16 {
        round_bf16(x)
    }
}

impl Number for f16 {
    type Wide = f32;
    #[inline(always)]
    fn wide(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(x: f32) -> f16 {
        f16::from_f32(x)
    }
    /// Without branches, so that loops of it vectorise.
    #[inline(always)]
    fn rounded(x: f32) -> f32 {
        // Beside `shift` the last place of an f32 is that of x as an f16, 2^-24 at least: their sum is rounded there.
        let exponent = (x.to_bits() & 0x7f80_0000).clamp(113 << 23, 142 << 23);
        let shift = f32::from_bits((exponent + (13 << 23)) | 1 << 22);
        let y = (x.abs() + shift) - shift;
        let y = if y > 65504.0 { f32::INFINITY } else { y };
        y.copysign(x)
    }
}

impl Number for f32 {
    type Wide = f32;
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }
}

impl Number for f64 {
    type Wide = f64;
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
    #[inline(always)]
    fn narrow(x: f64) -> f64 {
        x
    }
}

impl Wide for f32 {
    #[inline(always)]
    fn of(x: f64) -> f32 {
        x as f32
    }
    #[inline(always)]
    fn f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn exp(self) -> f32 {
        // 2^n e^r with |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to a whole number. ln 2 in two parts.
        const ROUND: f32 = 12_582_912.0;
        let shifted = self.mul_add(std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let r = (-n).mul_add(0.693_359_4, self);
        let r = n.mul_add(2.121_944_4e-4, r);
        let p = r.mul_add(1.987_569_1e-4, 1.398_199_9e-3);
        let p = p.mul_add(r, 8.333_452e-3);
        let p = p.mul_add(r, 4.166_579_6e-2);
        let p = p.mul_add(r, 1.666_666_6e-1);
        let p = p.mul_add(r, 0.5);
        let e = p.mul_add(r * r, r) + 1.0;
        // n lies in the low bits of `shifted`; from there it goes to the exponent.
        let y = f32::from_bits(e.to_bits().wrapping_add(shifted.to_bits() << 23));
        // The last of which the power is finite, and normal.
        let y = if self > 88.722_83 { f32::INFINITY } else { y };
        let y = if self < -87.336_54 { 0.0 } else { y };
        if self.is_nan() { self } else { y }
    }
}

impl Wide for f64 {
    #[inline(always)]
    fn of(x: f64) -> f64 {
        x
    }
    #[inline(always)]
    fn f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn exp(self) -> f64 {
        f64::exp(self)
    }
}

const LANES: usize = 32;

/// All 32 lanes as one, by halves: one after another they would wait for each other.
#[inline(always)]
pub fn fold<W: Copy>(mut lanes: [W; LANES], join: impl Fn(W, W) -> W) -> W {
    for half in [16, 8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = join(lanes[i], lanes[i + half]);
        }
    }
    lanes[0]
}

/// The sum of `term(x)` over a slice, in lanes that vectorise; lanes are emptied into f64 in time.
#[inline(always)]
pub fn sum<T: Copy, W: Wide>(x: &[T], term: impl Fn(T) -> W) -> f64 {
    let mut total = 0.0;
    for block in x.chunks(1024) {
        let mut lanes = [W::of(0.0); LANES];
        let chunks = block.chunks_exact(LANES);
        total += chunks.remainder().iter().map(|&x| term(x).f64()).sum::<f64>();
        for x in chunks {
            lanes.iter_mut().zip(x).for_each(|(lane, &x)| *lane += term(x));
        }
        total += fold(lanes.map(Wide::f64), |a, b| a + b);
    }
    total
}

/// The sum of `a b c`, element by element; as [`sum`].
#[inline(always)]
pub fn dot<T: Number>(a: &[T], b: &[T], c: &[T]) -> f64 {
    let term = |((a, b), c): ((&T, &T), &T)| a.wide() * b.wide() * c.wide();
    let mut total = 0.0;
    for ((a, b), c) in a.chunks(1024).zip(b.chunks(1024)).zip(c.chunks(1024)) {
        let mut lanes = [T::Wide::of(0.0); LANES];
        let (a, b, c) = (a.chunks_exact(LANES), b.chunks_exact(LANES), c.chunks_exact(LANES));
        let rest = a.remainder().iter().zip(b.remainder()).zip(c.remainder());
        total += rest.map(|x| term(x).f64()).sum::<f64>();
        for ((a, b), c) in a.zip(b).zip(c) {
            let terms = a.iter().zip(b).zip(c);
            lanes.iter_mut().zip(terms).for_each(|(lane, x)| *lane += term(x));
        }
        total += fold(lanes.map(Wide::f64), |a, b| a + b);
    }
    total
}

crate::simd! {
    /// `x factor` of each number, rounded to T, in the memory of the numbers themselves, from its beginning on; T is no
    /// larger. What lies behind these is what was left there.
    pub fn narrow_in_place<T: Number>(row: &mut [T::Wide], factor: T::Wide) -> &mut [T] {
        const { assert!(size_of::<T>() <= size_of::<T::Wide>() && align_of::<T>() <= align_of::<T::Wide>()) };
        let (n, from) = (row.len(), row.as_mut_ptr());
        let out = from.cast::<T>();
        let blocks = n / LANES * LANES;
        for first in (0..blocks).step_by(LANES) {
            // SAFETY: these are there, and what is written lies before what is still to be read.
            unsafe {
                let block: [T::Wide; LANES] = from.add(first).cast::<[T::Wide; LANES]>().read();
                block.iter().enumerate().for_each(|(i, &x)| *out.add(first + i) = T::narrow(x * factor));
            }
        }
        for i in blocks..n {
            // SAFETY: as above.
            unsafe { *out.add(i) = T::narrow(from.add(i).read() * factor) };
        }
        // SAFETY: these n were just written, and the row stays borrowed.
        unsafe { std::slice::from_raw_parts_mut(out, n) }
    }
}

/// Calls `$f::<T>($args)` with the element type of `$tensor` if it lies on the CPU and is bf16, f32 or f64; `None` if
/// not.
#[macro_export]
macro_rules! kernel {
    ($tensor:expr, $f:ident($($arg:expr),* $(,)?)) => {{
        let tensor: &tch::Tensor = $tensor;
        match (tensor.device(), tensor.kind()) {
            (tch::Device::Cpu, tch::Kind::BFloat16) => Some($f::<$crate::bf16>($($arg),*)),
            (tch::Device::Cpu, tch::Kind::Float) => Some($f::<f32>($($arg),*)),
            (tch::Device::Cpu, tch::Kind::Double) => Some($f::<f64>($($arg),*)),
            _ => None,
        }
    }};
}
/// The elements of a contiguous CPU tensor of that type; panics if it is another.
pub fn read<T: Number>(t: &tch::Tensor) -> &[T] {
    elements(t).expect("a contiguous CPU tensor of this type")
}

/// As [`read`], to be written.
pub fn write<T: Number>(t: &mut tch::Tensor) -> &mut [T] {
    elements_mut(t).expect("a contiguous CPU tensor of this type")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_good_to_two_units() {
        for i in -8_700_000..8_870_000 {
            let x = i as f32 * 1e-5;
            let exact = f64::from(x).exp();
            let error = (f64::from(Wide::exp(x)) / exact - 1.0).abs();
            assert!(error < 2.4e-7, "{x}: {error:e}");
        }
        assert_eq!(Wide::exp(-1e9f32), 0.0);
        assert_eq!(Wide::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Wide::exp(f32::INFINITY), f32::INFINITY);
        assert!(Wide::exp(f32::NAN).is_nan());
    }

    /// All floats around them.
    #[test]
    fn exp_ends_where_normal_numbers_do() {
        let around = |from: f32, to: f32| (from.to_bits()..to.to_bits()).map(f32::from_bits);
        for x in around(-86.9, -87.5).chain(around(88.6, 88.8)) {
            let (got, exact) = (f64::from(Wide::exp(x)), f64::from(x).exp());
            let right = match exact {
                below if below < f64::from(f32::MIN_POSITIVE) => got == 0.0,
                above if above > f64::from(f32::MAX) => got == f64::INFINITY,
                normal => (got / normal - 1.0).abs() < 2.4e-7,
            };
            assert!(right, "{x}: {got:e}, not {exact:e}");
        }
    }

    #[test]
    fn rounding_to_f16_is_the_way_through_it() {
        let check = |bits: u32| {
            let x = f32::from_bits(bits);
            let (got, want) = (f16::rounded(x), f16::narrow(x).wide());
            let same = got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan());
            assert!(same, "{x:e}: {got:e}, {want:e}");
        };
        (0..=u32::MAX).step_by(997).for_each(check);
        // Around every f16, and every tie between two of them.
        for half in 0..0x7bffu16 {
            let [x, next] = [half, half + 1].map(|half| f16::from_bits(half).wide());
            for at in [x, (x + next) / 2.0].map(f32::to_bits) {
                (at.saturating_sub(1)..=at + 1).flat_map(|bits| [bits, bits | 1 << 31]).for_each(check);
            }
        }
    }

    #[test]
    fn rows_are_narrowed_where_they_lie() {
        fn check<T: Number + PartialEq + std::fmt::Debug>() {
            for n in [0, 1, 31, 32, 100, 1000] {
                let mut row: Vec<T::Wide> = (0..n).map(|i| T::Wide::of(f64::from(i) * 0.37 - 5.0)).collect();
                let half = T::Wide::of(0.5);
                let want: Vec<T> = row.iter().map(|&x| T::narrow(x * half)).collect();
                assert_eq!(narrow_in_place::<T>(&mut row, half), want);
            }
        }
        check::<bf16>();
        check::<f32>();
        check::<f64>();
    }

    #[test]
    fn sums_of_any_length() {
        for n in [0usize, 1, 31, 32, 33, 1023, 1024, 1025, 49152] {
            let want = (n * n.saturating_sub(1) / 2) as f64;
            let (wide, narrow): (Vec<f64>, Vec<f32>) = (0..n).map(|i| (i as f64, i as f32)).unzip();
            assert_eq!(sum(&wide, |x| x), want);
            assert!((sum(&narrow, |x| x) - want).abs() <= want * 1e-6);
            assert_eq!(dot(&wide, &vec![2.0; n], &vec![0.5; n]), want);
        }
    }
}

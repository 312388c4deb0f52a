//! Run-time choice of the instruction set.

use std::sync::OnceLock;

use half::bf16;

/// What loops may be compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Simd {
    /// What the binary was built for.
    Plain,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL, and BMI2.
    Avx512,
}

impl Simd {
    /// The best that the machine has, and oneDNN's `ONEDNN_MAX_CPU_ISA` allows.
    pub fn best() -> Self {
        static BEST: OnceLock<Simd> = OnceLock::new();
        *BEST.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            {
                let most = std::env::var("ONEDNN_MAX_CPU_ISA").unwrap_or_default().to_uppercase();
                if matches!(most.as_str(), "SSE41" | "AVX") {
                    return Self::Plain;
                }
                if !most.starts_with("AVX2") && crate::simd_features!(Avx512 detected) {
                    return Self::Avx512;
                }
                if crate::simd_features!(Avx2 detected) {
                    return Self::Avx2;
                }
            }
            Self::Plain
        })
    }
}

/// The instructions that [`Simd`]'s members stand for: asked of the machine, or switched on for a function. One list for both,
/// for a function with more of them than were asked for would be undefined behaviour.
#[doc(hidden)]
#[macro_export]
macro_rules! simd_features {
    (Avx512 $($what:tt)+) => {
        $crate::simd_features!(["avx512f" "avx512bw" "avx512dq" "avx512vl" "avx2" "fma" "bmi2"] $($what)+)
    };
    (Avx2 $($what:tt)+) => { $crate::simd_features!(["avx2" "fma"] $($what)+) };
    ([$($feature:tt)+] detected) => { true $(&& ::std::arch::is_x86_feature_detected!($feature))+ };
    ([$($feature:tt)+] fn $($function:tt)+) => {
        #[cfg(target_arch = "x86_64")]
        $(#[target_feature(enable = $feature)])+
        fn $($function)+
    };
}

/// A function that is compiled for several instruction sets, of which a call takes the best that the machine has.
/// The compiler vectorises plain loops in it, and in what is inlined into it: mark helpers `#[inline(always)]`,
/// and keep closures small.
///
/// ```
/// tch_ext::simd! {
///     /// Adds x to y.
///     pub fn add(y: &mut [f32], x: &[f32]) {
///         y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
///     }
/// }
/// let mut y = [1.0; 20];
/// add(&mut y, &[2.0; 20]);
/// assert_eq!(y, [3.0; 20]);
/// ```
#[macro_export]
macro_rules! simd {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($t:ident: $bound:path),+>)? ($($arg:ident: $ty:ty),* $(,)?)
        $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? $body
            $crate::simd_features! {
                Avx512 fn avx512 $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                    body$(::<$($t),+>)?($($arg),*)
                }
            }
            $crate::simd_features! {
                Avx2 fn avx2 $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                    body$(::<$($t),+>)?($($arg),*)
                }
            }
            match $crate::Simd::best() {
                // SAFETY: the machine has been asked.
                #[cfg(target_arch = "x86_64")]
                $crate::Simd::Avx512 => unsafe { avx512$(::<$($t),+>)?($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::Simd::Avx2 => unsafe { avx2$(::<$($t),+>)?($($arg),*) },
                _ => body$(::<$($t),+>)?($($arg),*),
            }
        }
    };
}

/// To the nearest bf16, ties to even; a NaN stays one. Without branches, so that loops of it vectorise.
#[inline(always)]
pub fn round_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    bf16::from_bits(if x.is_nan() { 0x7fc0 } else { rounded })
}

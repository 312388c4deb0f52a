//! What kernels begin with, emulated.

use tch::{Device, Kind, Tensor};
use tch_ext::cuda::{Arg, Source, emulated};
use tch_ext::{bf16, elements, round_bf16};

const TEXT: &str = "
KERNEL rounded(T* y, const float* x, i64 n) {
  i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) narrow(y[i], x[i]);
}
KERNEL joins(W* sums, W* most, const T* x) {
  W mine = wide(x[blockIdx.x * blockDim.x + threadIdx.x]);
  W sum = block_sum(mine), top = block_max(mine);
  if (threadIdx.x == blockDim.x - 1) {
    sums[blockIdx.x] = sum;
    most[blockIdx.x] = top;
  }
}
";
static SOURCE: Source = tch_ext::cuda_source!("prelude", TEXT);

#[test]
fn rounding_is_to_the_nearest_even() {
    // Both ends of every exponent, ties and their neighbours, infinities, NaN.
    let patterns =
        (0..=0xffffu32).flat_map(|high| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| high << 16 | low));
    let x: Vec<f32> = patterns.map(f32::from_bits).collect();
    let y = Tensor::empty([x.len() as i64], (Kind::BFloat16, Device::Cpu));
    emulated(|| {
        let source = Tensor::from_slice(&x);
        let args =
            [Arg::Of(&y, Kind::BFloat16, x.len()), Arg::Of(&source, Kind::Float, x.len()), Arg::Int(x.len())];
        SOURCE.on(&[&y], 1).unwrap().run("rounded", x.len().div_ceil(1024), 1024, &args);
    });
    for (x, y) in x.iter().zip(elements::<bf16>(&y).unwrap()) {
        let want = round_bf16(*x);
        assert!(y.to_bits() == want.to_bits() || x.is_nan() && y.is_nan(), "{x:e}: {y:e}, not {want:e}");
    }
}

#[test]
fn a_block_joins_what_its_threads_hold() {
    for threads in [32, 96, 1024] {
        let blocks = 3;
        let x = -Tensor::rand([blocks, threads], (Kind::Double, Device::Cpu)) - 1.0;
        let [sums, most] = [(); 2].map(|()| Tensor::empty([blocks], (Kind::Double, Device::Cpu)));
        emulated(|| {
            let args = [&sums, &most, &x].map(|t| Arg::Of(t, Kind::Double, t.numel()));
            SOURCE.on(&[&x], 1).unwrap().run("joins", blocks as usize, threads as usize, &args);
        });
        let sum = x.sum_dim_intlist([1i64].as_slice(), false, None::<Kind>);
        assert!((sums - sum).abs().max().double_value(&[]) < 1e-11);
        assert_eq!(most, x.amax([1i64].as_slice(), false));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = Tensor::zeros([8], (Kind::Float, Device::Cpu));
    let refused = |args: &[Arg<'_>], kernel: &str| {
        let run = || emulated(|| SOURCE.on(&[&x], 1).unwrap().run(kernel, 1, 32, args));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err()
    };
    let x = |n| Arg::Of(&x, Kind::Float, n);
    assert!(!refused(&[x(8), x(8), Arg::Int(8)], "rounded"));
    assert!(refused(&[x(8), x(9), Arg::Int(9)], "rounded"), "too short");
    assert!(refused(&[x(8), x(8)], "rounded"), "a parameter is missing");
    assert!(refused(&[x(8)], "nothing"), "no such kernel");
    assert!(
        SOURCE.on(&[&Tensor::zeros([1], (Kind::Float, Device::Cpu))], 1).is_none(),
        "not on a CPU, but emulated"
    );
}

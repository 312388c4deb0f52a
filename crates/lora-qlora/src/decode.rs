//! From codes to weights.

use tch::{Device, Kind, Tensor};
use tch_ext::cuda::{Arg, Source};
use tch_ext::{Number, Rows, bf16, elements, elements_mut, f16, nibbles, parallel_rows};

use crate::encode::GRAIN;
use crate::four_bit::FourBit;
use crate::scales::Scales;

impl FourBit {
    /// All blocks in `kind`, by libtorch's operations: made in f32, rounded to the state's dtype, and only then to `kind`.
    pub(crate) fn definition(&self, kind: Kind) -> Tensor {
        // A byte is looked up whole: both of its codes at once.
        let book = &self.book;
        let pairs: Vec<f32> = (0..256usize).flat_map(|byte| [book[byte >> 4], book[byte & 15]]).collect();
        let table = Tensor::from_slice(&pairs).view([256, 2]).to_device(self.packed.device());
        let codes = table.index_select(0, &self.packed.to_kind(Kind::Int)).view([-1, self.block as i64]);
        (codes * self.scales.dense().unsqueeze(1)).view(-1).to_kind(self.state).to_kind(kind)
    }

    /// The same by one kernel, whose result is rounded on where one rounding is not all; `None` elsewhere than on CUDA.
    pub(crate) fn on_cuda(&self, kind: Kind) -> Option<Tensor> {
        let first = if self.state == Kind::Float { kind } else { self.state };
        // There are no kernels for f16.
        let made = self.by_kernel(if first == Kind::Half { Kind::Float } else { first })?;
        Some(made.to_kind(first).to_kind(kind))
    }

    /// All blocks, rounded to `kind` alone.
    fn by_kernel(&self, kind: Kind) -> Option<Tensor> {
        let n = 2 * self.packed.numel();
        let device = self.packed.device();
        let out = Tensor::empty([0], (kind, device));
        let ready = SOURCE.on(&[&out], n)?;
        let out = Tensor::empty([n as i64], (kind, device));
        let tables = self.tables.get_or_init(|| {
            let map = self.scales.map().unwrap_or(&[0.0; 256]);
            let both: Vec<f32> = self.book.iter().chain(map).copied().collect();
            Tensor::from_slice(&both).to_device(device)
        });
        let blocks = n / self.block;
        let mut args = vec![
            Arg::Of(&out, kind, n),
            Arg::Of(&self.packed, Kind::Uint8, n / 2),
            Arg::Of(tables, Kind::Float, 272),
        ];
        let kernel = match &self.scales {
            Scales::Plain(absmax) => {
                args.push(Arg::Of(absmax, Kind::Float, blocks));
                "plain"
            }
            Scales::Nested(nested) => {
                args.extend([
                    Arg::Of(&nested.codes, Kind::Uint8, blocks),
                    Arg::Of(&nested.absmax, Kind::Float, blocks.div_ceil(256)),
                    Arg::Of(&nested.offset, Kind::Float, 1),
                ]);
                "nested"
            }
        };
        args.extend([Arg::Int(self.block), Arg::Int(n)]);
        ready.run(kernel, n.div_ceil(256 * ready.vec()).min(1 << 14), 256, &args);
        Some(out)
    }

    /// The same in one pass on the CPU; `None` elsewhere, and for f64.
    pub(crate) fn on_cpu(&self, kind: Kind) -> Option<Tensor> {
        match self.state {
            Kind::BFloat16 if kind != Kind::BFloat16 => self.through::<bf16>(kind),
            Kind::Half if kind != Kind::Half => self.through::<f16>(kind),
            _ => self.through::<f32>(kind),
        }
    }

    fn through<S: Number<Wide = f32>>(&self, kind: Kind) -> Option<Tensor> {
        match kind {
            Kind::Float => self.dequantised::<S, f32>(),
            Kind::BFloat16 => self.dequantised::<S, bf16>(),
            Kind::Half => self.dequantised::<S, f16>(),
            _ => None,
        }
    }

    /// Rounded to S, and then to T.
    fn dequantised<S: Number<Wide = f32>, T: Number<Wide = f32>>(&self) -> Option<Tensor> {
        let (packed, scales) = (elements::<u8>(&self.packed)?, self.scales.on_cpu()?);
        let mut out = Tensor::empty([2 * packed.len() as i64], (T::KIND, Device::Cpu));
        // A block may be long: its numbers are looked up in pieces that stay in registers and cache.
        let piece = self.block.min(64);
        let per = self.block / piece;
        let book = &self.book;
        let rows = Rows { data: elements_mut::<T>(&mut out)?, width: piece };
        parallel_rows(rows, packed.len() * 2 / piece, GRAIN, |first, _, out| {
            let mut codes = [0f32; 64];
            let codes = &mut codes[..piece];
            let bytes = packed[first * piece / 2..].chunks_exact(piece / 2);
            for (i, (out, bytes)) in out.data.chunks_exact_mut(piece).zip(bytes).enumerate() {
                nibbles(codes, bytes, book);
                scaled::<S, T>(out, codes, scales.of((first + i) / per));
            }
        });
        Some(out)
    }
}

// The kernels write n weights, and read n / 2 bytes, a scale for each block of them, 272 table entries.
static SOURCE: Source = tch_ext::cuda_source!("four_bit", include_str!("four_bit.cu"));
/// The kernels of this crate, to be compiled for devices that are not here.
pub const CUDA_SOURCES: [&Source; 1] = [&SOURCE];

tch_ext::simd! {
    fn scaled<S: Number<Wide = f32>, T: Number<Wide = f32>>(out: &mut [T], codes: &[f32], scale: f32) {
        out.iter_mut().zip(codes).for_each(|(out, code)| *out = T::narrow(S::rounded(code * scale)));
    }
}

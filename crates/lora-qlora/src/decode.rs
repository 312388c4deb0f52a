//! From codes to weights.

use tch::{Device, Kind, Tensor};
use tch_ext::cuda::{Arg, Source};
use tch_ext::{Number, Rows, elements, elements_mut, nibbles, parallel_rows};

use crate::nf4::{BLOCK, GRAIN, Nf4};
use crate::tables::{DYNAMIC, NF4, floats};

impl Nf4 {
    /// All blocks in f32, by libtorch's operations.
    pub(crate) fn definition(&self) -> Tensor {
        // A byte is looked up whole: both of its codes at once.
        let book = floats(NF4);
        let pairs: Vec<f32> = (0..256usize).flat_map(|byte| [book[byte >> 4], book[byte & 15]]).collect();
        let table = Tensor::from_slice(&pairs).view([256, 2]).to_device(self.packed.device());
        let codes = table.index_select(0, &self.packed.to_kind(Kind::Int)).view([-1, BLOCK]);
        (codes * self.scales.dense().unsqueeze(1)).view(-1)
    }

    /// The same by one kernel; `None` elsewhere than on CUDA.
    pub(crate) fn on_cuda(&self, kind: Kind) -> Option<Tensor> {
        let n = 2 * self.packed.numel();
        let device = self.packed.device();
        let out = Tensor::empty([0], (kind, device));
        let ready = SOURCE.on(&[&out], n)?;
        let out = Tensor::empty([n as i64], (kind, device));
        let tables = self.tables.get_or_init(|| {
            let both: Vec<f32> = floats(NF4).into_iter().chain(floats(DYNAMIC)).collect();
            Tensor::from_slice(&both).to_device(device)
        });
        let [codes, nested, offset] = self.scales.parts();
        let blocks = n / BLOCK as usize;
        let args = [
            Arg::Of(&out, kind, n),
            Arg::Of(&self.packed, Kind::Uint8, n / 2),
            Arg::Of(codes, Kind::Uint8, blocks),
            Arg::Of(nested, Kind::Float, blocks.div_ceil(256)),
            Arg::Of(offset, Kind::Float, 1),
            Arg::Of(tables, Kind::Float, 272),
            Arg::Int(n),
        ];
        ready.run("dequantise", n.div_ceil(256 * ready.vec()).min(1 << 14), 256, &args);
        Some(out)
    }

    /// The same in one pass on the CPU, rounded to T; `None` elsewhere.
    pub(crate) fn dequantised<T: Number<Wide = f32>>(&self) -> Option<Tensor> {
        let (packed, scales) = (elements::<u8>(&self.packed)?, self.scales.on_cpu()?);
        let mut out = Tensor::empty([2 * packed.len() as i64], (T::KIND, Device::Cpu));
        let book = floats(NF4);
        let rows = Rows { data: elements_mut::<T>(&mut out)?, width: BLOCK as usize };
        parallel_rows(rows, packed.len() * 2 / BLOCK as usize, GRAIN, |first, _, out| {
            let mut codes = [0f32; BLOCK as usize];
            let bytes = packed[first * BLOCK as usize / 2..].chunks_exact(BLOCK as usize / 2);
            for (i, (out, bytes)) in out.data.chunks_exact_mut(BLOCK as usize).zip(bytes).enumerate() {
                nibbles(&mut codes, bytes, &book);
                scaled(out, &codes, scales.of(first + i));
            }
        });
        Some(out)
    }
}

// The kernel writes n weights, and reads n / 2 bytes, a scale for 64 weights, 272 table entries.
static SOURCE: Source = tch_ext::cuda_source!("nf4", include_str!("nf4.cu"));
/// The kernels of this crate, to be compiled for devices that are not here.
pub const CUDA_SOURCES: [&Source; 1] = [&SOURCE];

tch_ext::simd! {
    fn scaled<T: Number<Wide = f32>>(out: &mut [T], codes: &[f32], scale: f32) {
        out.iter_mut().zip(codes).for_each(|(out, code)| *out = T::narrow(code * scale));
    }
}

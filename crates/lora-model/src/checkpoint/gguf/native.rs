//! A weight kept in the blocks that its file has.

use std::cell::OnceCell;

use lora_core::{BaseWeight, row_norms_sq};
use tch::{Device, Kind, Tensor};
use tch_ext::cuda::{Arg, Source};
use tch_ext::{Number, Region, bf16, elements, elements_mut, f16};

use super::blocks::BlockType;

static DEQUANTISED: Region = Region::new("dequantised");

/// `W [out, in]` as ggml's blocks, a row being a whole number of them.
#[derive(Debug)]
pub(super) struct Blocks {
    /// u8 `[out, bytes a row]`.
    bytes: Tensor,
    block: BlockType,
    shape: (i64, i64),
    kind: Kind,
    norms_sq: OnceCell<Tensor>,
}

impl Blocks {
    /// Of `bytes`, which are `shape.0` rows of `shape.1` values in type `block`; to be computed in `kind`.
    pub(super) fn new(bytes: Tensor, block: BlockType, shape: (i64, i64), kind: Kind) -> Self {
        Self { bytes, block, shape, kind, norms_sq: OnceCell::new() }
    }

    /// By one kernel; `None` elsewhere than on CUDA, and for f16.
    fn on_cuda(&self, kind: Kind) -> Option<Tensor> {
        let (rows, width) = self.shape;
        let n = (rows * width) as usize;
        let like = Tensor::empty([0], (kind, self.bytes.device()));
        let ready = SOURCE.on(&[&like], n)?;
        let out = Tensor::empty([rows, width], (kind, self.bytes.device()));
        let (bytes, name) = (self.bytes.contiguous(), self.block.to_string().to_lowercase());
        let args = [Arg::Of(&out, kind, n), Arg::Of(&bytes, Kind::Uint8, bytes.numel()), Arg::Int(n)];
        ready.run(&name, n.div_ceil(256 * ready.vec()).min(1 << 14), 256, &args);
        Some(out)
    }

    fn values<T: Number<Wide = f32>>(&self) -> Tensor {
        let mut out = Tensor::empty([self.shape.0, self.shape.1], (T::KIND, Device::Cpu));
        let bytes = self.bytes.to_device(Device::Cpu).contiguous();
        if let (Some(bytes), Some(out)) = (elements::<u8>(&bytes), elements_mut::<T>(&mut out)) {
            self.block.dequantize(bytes, out);
        }
        out
    }
}

impl BaseWeight for Blocks {
    fn shape(&self) -> (i64, i64) {
        self.shape
    }

    fn device(&self) -> Device {
        self.bytes.device()
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn bytes(&self) -> u64 {
        self.bytes.numel() as u64
    }

    fn dense(&self, kind: Kind) -> Tensor {
        let _guard = tch::no_grad_guard();
        let _inside = DEQUANTISED.enter();
        if let Some(w) = self.on_cuda(kind) {
            return w;
        }
        let w = match kind {
            Kind::BFloat16 => self.values::<bf16>(),
            Kind::Half => self.values::<f16>(),
            _ => self.values::<f32>(),
        };
        w.to_device(self.device()).to_kind(kind)
    }

    fn to_device(&self, device: Device) -> Box<dyn BaseWeight> {
        let mut there = Self::new(self.bytes.to_device(device), self.block, self.shape, self.kind);
        if device == self.device() {
            there.norms_sq = self.norms_sq.get().map(|t| t.shallow_clone().into()).unwrap_or_default();
        }
        Box::new(there)
    }

    fn row_norms_sq(&self) -> Tensor {
        self.norms_sq.get_or_init(|| row_norms_sq(&self.dense(self.kind))).shallow_clone()
    }
}

// The kernels write n values, and read the whole blocks that they are made of.
pub(crate) static SOURCE: Source = tch_ext::cuda_source!("blocks", include_str!("blocks.cu"));

#[cfg(test)]
mod tests {
    use super::*;
    use tch_ext::cuda::{emulated, here};

    /// Random blocks of every type, by the kernels for CUDA: bit for bit.
    #[test]
    fn kernels_give_the_same_bits() {
        for block in BlockType::PACKED {
            let (values, size) = block.layout().map(|(v, b)| (v as i64, b as i64)).unwrap();
            let shape = (7, 3 * values);
            let bytes = Tensor::randint(256, [shape.0, 3 * size], (Kind::Uint8, Device::Cpu));
            for kind in [Kind::Float, Kind::BFloat16, Kind::Double] {
                let w = Blocks::new(bytes.shallow_clone(), block, shape, kind);
                let there = w.to_device(here());
                let (want, got) = (w.dense(kind), emulated(|| there.dense(kind)).to_device(Device::Cpu));
                // Scales are any f16: NaN is where NaN was.
                let same = got.isnan().logical_and(&want.isnan()).logical_or(&got.eq_tensor(&want));
                assert!(same.all().int64_value(&[]) == 1, "{block} {kind:?}");
            }
        }
    }

    /// Rows are dequantised on their own: a part of the bytes gives that part of the weight.
    #[test]
    fn rows_are_independent() {
        let bytes = Tensor::randint_low(0, 0x3C, [300, 2 * 144], (Kind::Uint8, Device::Cpu));
        let all = Blocks::new(bytes.shallow_clone(), BlockType::Q4K, (300, 512), Kind::Float);
        assert_eq!((all.bytes(), all.row_norms_sq().size()), (300 * 288, vec![300]));
        for (first, n) in [(0, 1), (17, 200), (299, 1)] {
            let some = Blocks::new(bytes.narrow(0, first, n), BlockType::Q4K, (n, 512), Kind::Float);
            for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double] {
                assert_eq!(some.dense(kind), all.dense(kind).narrow(0, first, n), "{kind:?}");
            }
        }
    }
}

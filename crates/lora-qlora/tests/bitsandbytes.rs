//! Against what bitsandbytes makes of the same weights (`data/make.py`).

use std::collections::BTreeMap;
use std::path::Path;

use lora_core::{BaseWeight, read_tensors};
use lora_qlora::Nf4;
use tch::{Kind, Tensor};

fn golden() -> BTreeMap<String, Tensor> {
    read_tensors(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nf4.safetensors")).unwrap()
}

/// Packed codes, scales and the order of roundings are all in this: one bit of difference in any would show.
#[test]
fn dequantised_weights_are_those_of_bitsandbytes_bit_for_bit() {
    let golden = golden();
    for name in ["f32", "bf16", "many"] {
        let (weight, theirs) = (&golden[&format!("{name}.weight")], &golden[&format!("{name}.dense")]);
        let ours = Nf4::new(weight).unwrap().dense(weight.kind());
        assert_eq!(ours.kind(), theirs.kind());
        let differ = ours.ne_tensor(theirs).sum(Kind::Int64).int64_value(&[]);
        assert_eq!(differ, 0, "{name}: {differ} of {} weights differ", ours.numel());
        let zeros = theirs.reshape(-1).narrow(0, 640, 64);
        assert_eq!(zeros.abs().max().double_value(&[]), 0.0, "{name}: the block of zeros");
    }
}

/// Two codes a byte, one a scale, one f32 for 256 scales, one for all.
#[test]
fn it_takes_as_many_bytes_as_bitsandbytes() {
    let golden = golden();
    for name in ["f32", "bf16", "many"] {
        let parts = ["packed", "codes", "nested", "offset"].map(|part| &golden[&format!("{name}.{part}")]);
        let theirs: usize = parts.iter().map(|t| t.numel() * t.kind().elt_size_in_bytes()).sum();
        // The last block may be padded up to a whole one, the last nest to whole scales.
        let ours = Nf4::new(&golden[&format!("{name}.weight")]).unwrap().bytes();
        assert!(ours.abs_diff(theirs as u64) <= 32, "{name}: {ours} bytes, theirs {theirs}");
    }
}

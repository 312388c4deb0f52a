//! GGUF weights kept in their blocks: the same numbers as the dense ones, in less memory.

use std::path::{Path, PathBuf};

use lora_core::{ErrorKind, Linears, Mode, beside};
use lora_model::{Keep, Llama, Model, Texts, open};
use tch::{Device, Kind, Tensor};
use tch_ext::cuda::{emulated, here};

const NATIVE: Keep<'_> = Keep::NATIVE;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// Every type, the rows of q and k permuted where the architecture has them so, in every dtype.
#[test]
fn packed_weights_are_the_loaded_ones() {
    for file in ["llama.gguf", "llama3.gguf", "qwen2.gguf", "qwen3.gguf", "k_quants.gguf"] {
        let model = open(&data(file)).unwrap();
        assert!(!model.prefers_packed());
        let mut seen = 0;
        for name in model.names() {
            for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double] {
                let want = model.load(&name, kind);
                let got = model.packed(&name, kind).map(|packed| packed.map(|w| (w.dense(kind), w)));
                match (want, got) {
                    (Ok(_), Ok(None)) => {}
                    (Ok(want), Ok(Some((dense, w)))) => {
                        assert_eq!(dense.kind(), kind);
                        assert!(dense.equal(&want), "{file} {name} {kind:?}");
                        if kind != Kind::Half {
                            let there = w.to_device(here());
                            let dense = emulated(|| there.dense(kind)).to_device(Device::Cpu);
                            assert!(dense.equal(&want), "{file} {name} {kind:?}, CUDA");
                        }
                        assert_eq!((vec![w.shape().0, w.shape().1], w.kind()), (want.size(), kind));
                        assert!(w.bytes() < want.numel() as u64 * 5 / 4, "{file} {name}");
                        assert_eq!(w.share().row_norms_sq(), w.row_norms_sq());
                        seen += 1;
                    }
                    // The files of random blocks hold what no f16 can.
                    (Err(want), Err(got)) => assert_eq!(got.to_string(), want.to_string()),
                    // A plain tensor is not packed, whatever it holds.
                    (Err(_), Ok(None)) => assert_eq!(kind, Kind::Half, "{file} {name}"),
                    (want, got) => panic!("{file} {name} {kind:?}: {want:?} and {got:?}"),
                }
            }
        }
        assert_eq!(seen > 0, file != "llama3.gguf", "{file}");
    }
}

/// Not only near: the very logits.
#[test]
fn a_native_model_is_the_dense_one() {
    let checkpoint = open(&data("k_quants.gguf")).unwrap();
    for kind in [Kind::Float, Kind::BFloat16] {
        let [dense, native] =
            [Keep::DENSE, NATIVE].map(|keep| Llama::load(checkpoint.as_ref(), kind, here(), keep).unwrap());
        let bytes = |model: &Llama| model.linears().iter().map(|(_, l)| l.base().bytes()).sum::<u64>();
        assert!(bytes(&native) * 3 < bytes(&dense), "{} {}", bytes(&native), bytes(&dense));
        let ids = Tensor::from_slice(&[1i64, 5, 9, 2, 15, 0]).unsqueeze(0).to_device(here());
        let [want, got] = [&dense, &native].map(|m| m.logits(Texts::Rows(&ids), None, Mode::Eval).unwrap());
        assert!(lora_core::all_finite(&want) && want.equal(&got), "{kind:?}");
    }
}

/// A change that is laid beside a weight, as a federation does it, leaves the blocks as they are.
#[test]
fn blocks_stay_blocks_whatever_lies_beside() {
    let checkpoint = open(&data("k_quants.gguf")).unwrap();
    let model = Llama::load(checkpoint.as_ref(), Kind::Float, Device::Cpu, NATIVE).unwrap();
    let mut seen = 0;
    for (name, layer) in model.linears() {
        let ((out, inp), own) = (layer.base().shape(), layer.base().bytes());
        if own < (out * inp) as u64 {
            let ones = |size: [i64; 2]| Tensor::ones(size, (Kind::Float, Device::Cpu));
            let both = beside(layer.base().share(), &ones([1, inp]), &ones([out, 1])).unwrap();
            assert_eq!(both.bytes(), own + ((out + inp) * 4) as u64, "{name}");
            assert_eq!(both.dense(Kind::Float), layer.base().dense(Kind::Float) + 1.0, "{name}");
            let norms = [both.row_norms_sq(), both.row_norms_sq()];
            assert_eq!(norms[0].data_ptr(), norms[1].data_ptr(), "made once");
            seen += 1;
        }
    }
    assert!(seen > 0);
}

/// An infinite scale is refused when the weight is read, packed or not, in the same words.
#[test]
fn scales_that_are_not_finite_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.gguf");
    let name = "model.layers.0.mlp.down_proj.weight";
    let mut bytes = std::fs::read(data("k_quants.gguf")).unwrap();
    // `ffn_down` is the last tensor, and a block of Q2_K ends with `dmin`.
    let at = bytes.len() - 2;
    bytes[at..].copy_from_slice(&0x7C00u16.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let model = open(&path).unwrap();
    let [load, packed] = [model.load(name, Kind::Float).map(drop), model.packed(name, Kind::Float).map(drop)]
        .map(Result::unwrap_err);
    assert_eq!((load.kind(), load.to_string()), (packed.kind(), packed.to_string()));
    assert_eq!(packed.kind(), ErrorKind::NonFinite);
    assert!(packed.to_string().contains("blk.0.ffn_down.weight"), "{packed}");
}

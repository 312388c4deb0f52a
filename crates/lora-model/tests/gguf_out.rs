//! GGUF files written here, and read again. Against the gguf package and llama.cpp: `xtask/peers/check_gguf.py`.

use std::path::{Path, PathBuf};

use lora_core::Error;
use lora_model::{Checkpoint, Gguf, GgufKind, GgufOut, open};
use tch::{Device, Kind, Tensor};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// The model of `from`, written as `kind`.
fn copy(from: &Path, kind: GgufKind, to: &Path) -> Box<dyn Checkpoint> {
    let (base, model) = (Gguf::open(from).unwrap(), open(from).unwrap());
    let mut out = GgufOut::like(&base, model.config(), kind).unwrap();
    for name in model.names() {
        let (model, key) = (model.as_ref(), name.clone());
        out.tensor(&name, "", &model.shape(&name).unwrap(), true, move || model.read(&key, Kind::Float))
            .unwrap();
    }
    out.write(to).unwrap();
    open(to).unwrap()
}

/// Rows of q and k, rotary tables, biases, tokenizers: nothing is lost, and nothing is in another order.
#[test]
fn what_is_written_is_what_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("copy.gguf");
    let mut narrow = 0;
    for name in ["llama.gguf", "llama3.gguf", "qwen2.gguf", "qwen3.gguf", "k_quants.gguf"] {
        let (from, base) = (data(name), open(&data(name)).unwrap());
        let same = copy(&from, GgufKind::F32, &to);
        assert_eq!(same.names(), base.names());
        assert_eq!(same.config(), base.config(), "{name}");
        for tensor in base.names() {
            let kind = Kind::Float;
            assert_eq!(
                same.load(&tensor, kind).unwrap(),
                base.load(&tensor, kind).unwrap(),
                "{name}, {tensor}"
            );
        }
        let (a, b) = (Gguf::open(&from).unwrap(), Gguf::open(&to).unwrap());
        for (key, value) in a.metadata().iter().filter(|(k, _)| k.starts_with("tokenizer.")) {
            assert_eq!(b.meta(key), Some(value), "{name}, {key}");
        }
        let largest = |t: String| base.load(&t, Kind::Float).unwrap().abs().max().double_value(&[]);
        if base.names().into_iter().map(largest).fold(0.0, f64::max) > 6e4 {
            // Of random blocks: too large for f16.
            continue;
        }
        narrow += 1;
        for (kind, within) in [(GgufKind::F16, 1e-3), (GgufKind::BF16, 1e-2), (GgufKind::Q8_0, 1e-2)] {
            let near = copy(&from, kind, &to);
            for tensor in base.names() {
                let (a, b) =
                    (near.load(&tensor, Kind::Float).unwrap(), base.load(&tensor, Kind::Float).unwrap());
                let error = (&a - &b).norm().double_value(&[]) / b.norm().double_value(&[]).max(1e-9);
                assert!(error < within, "{name}, {tensor}: {error}");
                assert!(b.dim() > 1 || a == b, "{name}, {tensor}: vectors stay f32");
            }
        }
    }
    assert!(narrow > 0);
}

/// What cannot be written leaves the file that is there as it was.
#[test]
fn a_fault_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("out.gguf");
    std::fs::write(&to, "old").unwrap();
    let model = open(&data("llama.gguf")).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    let faults: [(&dyn Fn() -> lora_core::Result<Tensor>, &str); 4] = [
        (&|| Err(Error::data("cannot be read")), "cannot be read"),
        (&|| Ok(Tensor::zeros([2, 64], (Kind::Float, Device::Cpu))), "was planned"),
        (&|| Ok(Tensor::full([4, 64], 1e9, (Kind::Float, Device::Cpu))), "too large for F16"),
        (&|| Ok(Tensor::full([4, 64], f64::NAN, (Kind::Float, Device::Cpu))), "NaN"),
    ];
    for (make, says) in faults {
        let mut out = GgufOut::new(model.config(), GgufKind::F16);
        out.tensor(name, "", &[4, 64], true, make).unwrap();
        let e = out.write(&to).unwrap_err().to_string();
        assert!(e.contains(says) && (says == "cannot be read" || e.contains("blk.0.ffn_up.weight")), "{e}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(std::fs::read(&to).unwrap(), b"old");
    }
    let mut out = GgufOut::new(model.config(), GgufKind::F16);
    let e =
        out.tensor("model.layers.0.mlp.router.weight", "", &[4, 64], true, || Ok(Tensor::new())).unwrap_err();
    assert!(e.to_string().contains("router"));
}

/// How the base's file was split and quantised is not so of the copy.
#[test]
fn what_is_of_the_file_alone_is_not_copied() {
    let folder = tempfile::tempdir().unwrap();
    let (base, copy) = (folder.path().join("base.gguf"), folder.path().join("copy.gguf"));
    let model = open(&data("llama.gguf")).unwrap();
    let llama = Gguf::open(&data("llama.gguf")).unwrap();
    let mut out = GgufOut::like(&llama, model.config(), GgufKind::F16).unwrap();
    let theirs = ["split.no", "quantize.imatrix.file", "general.author"];
    theirs.iter().for_each(|key| out.text(key, "someone's"));
    out.write(&base).unwrap();
    let base = Gguf::open(&base).unwrap();
    GgufOut::like(&base, model.config(), GgufKind::F16).unwrap().write(&copy).unwrap();
    let copy = Gguf::open(&copy).unwrap();
    assert_eq!(theirs.map(|key| copy.meta(key).is_some()), [false, false, true]);
}

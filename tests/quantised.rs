//! Models written in 4 bits, and opened again.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use lora::model::{Export, Keep, Llama, Model, OnDisk, Pack, Texts};
use lora::qlora::Options;
use lora::train::{Dataset, Sample, TrainConfig, train};
use lora::{Linears, Mode, OutputFolder, Recipe, VARIANTS, params};
use tch::{Device, Kind, Tensor};

/// libtorch's generator is one for the whole process.
static RANDOM: Mutex<()> = Mutex::new(());

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/llama2/model")
}

fn load(path: &Path, keep: Keep<'_>) -> Llama {
    let checkpoint = lora::open(path).unwrap();
    Llama::load(checkpoint.as_ref(), Kind::Float, Device::Cpu, keep).unwrap()
}

fn logits(model: &Llama) -> Tensor {
    let ids = Tensor::arange(24, (Kind::Int64, Device::Cpu)).view([2, 12]);
    model.logits(Texts::Rows(&ids), None, Mode::Eval).unwrap()
}

fn quantised(options: &Options, skip: &[String], kind: Kind, folder: &Path) {
    let ours = lora::model::is_model_file(&source(), folder);
    let out = OutputFolder::create(folder, true, ours).unwrap();
    let checkpoint = lora::open(&source()).unwrap();
    Export {
        checkpoint: checkpoint.as_ref(),
        tokenizer: None,
        kind,
        replaced: &|_| Ok(None),
        packed: Some(Pack { storage: options, skip, seen: &|_, _, _| {} }),
    }
    .write(&out)
    .unwrap();
    out.commit().unwrap();
}

/// The written model is the one that is quantised while it is loaded, and stays packed; unpacked it is the same.
#[test]
fn a_model_written_in_4_bits_is_the_model_quantised_while_loading() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for options in ["", "fp4:32:single", "nf4:128"] {
        let options = Options::parse(options).unwrap();
        let skip = ["mlp.down_proj".to_owned()];
        quantised(&options, &skip, Kind::Float, &out);
        let at_once = load(&source(), Keep { storage: &options, packed: None, skip: &skip });
        let written = load(&out, Keep::NATIVE);
        let config = std::fs::read_to_string(out.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let skipped = &config["quantization_config"]["llm_int8_skip_modules"];
        let down = |layer: u8| format!("model.layers.{layer}.mlp.down_proj");
        assert_eq!(*skipped, serde_json::json!(["lm_head", down(0), down(1)]));
        let dense = load(&out, Keep::DENSE);
        assert_eq!(logits(&written), logits(&at_once));
        assert_eq!(logits(&dense), logits(&at_once));
        assert_ne!(logits(&written), logits(&load(&source(), Keep::DENSE)));
        for ((name, a), (_, b)) in written.linears().into_iter().zip(dense.linears()) {
            let packed = name.contains("layers") && !name.ends_with("down_proj");
            assert_eq!(a.base().parts().is_some(), packed, "{name}");
            assert!(b.base().parts().is_none());
            assert!(a.base().bytes() * if packed { 5 } else { 1 } <= b.base().bytes(), "{name}");
        }
    }
}

/// The base is merged into as it was trained beside, in bf16: from memory, from the disk, and in f32 as well.
#[test]
fn what_is_merged_into_is_the_weight_of_training() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let options = Options::default();
    quantised(&options, &[], Kind::BFloat16, &out);
    let keep = Keep { storage: &options, packed: None, skip: &[] };
    let checkpoint = lora::open(&source()).unwrap();
    let trained = Llama::load(checkpoint.as_ref(), Kind::BFloat16, Device::Cpu, keep).unwrap();
    let wide = load(&out, Keep::NATIVE);
    let on_disk = OnDisk::new(lora::open(&out).unwrap(), Kind::Float).unwrap();
    let layers = trained.linears().into_iter().zip(wide.linears()).zip(on_disk.linears());
    for (((name, trained), (_, wide)), (_, on_disk)) in layers {
        let weight = trained.base().dense(Kind::BFloat16).to_kind(Kind::Float);
        for layer in [trained, wide, on_disk] {
            // As merging asks for it: in f32, to add to.
            assert_eq!(layer.base().dense(Kind::Float), weight, "{name}");
        }
    }
    on_disk.check().unwrap();
}

/// A folder whose configuration promises packed weights that are not there.
#[test]
fn a_model_that_lost_its_packed_weights_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    quantised(&Options::default(), &[], Kind::Float, &out);
    std::fs::remove_file(out.join("model.safetensors")).unwrap();
    for entry in std::fs::read_dir(source()).unwrap().flatten() {
        if entry.file_name() != "config.json" {
            std::fs::copy(entry.path(), out.join(entry.file_name())).unwrap();
        }
    }
    assert!(lora::open(&out).unwrap_err().to_string().contains("none is"));
    let e = lora::model::open(&out).unwrap_err();
    assert!(e.to_string().contains("packed"), "{e}");
}

/// Read one by one from the disk, weights and what an adapter makes of them are those of the model in memory; what
/// cannot be read is told.
#[test]
fn a_model_on_disk_gives_the_weights_of_one_in_memory() {
    let recipe = Recipe::parse("dora", VARIANTS).unwrap();
    let config = lora::AdapterConfig { r: 4, ..Default::default() };
    let _alone = RANDOM.lock();
    let attach = |model: &mut dyn Linears| {
        tch::manual_seed(3);
        lora::attach(model, "a", &recipe, &config).unwrap();
    };
    let mut there = load(&source(), Keep::DENSE);
    let mut on_disk = OnDisk::new(lora::open(&source()).unwrap(), Kind::Float).unwrap();
    attach(&mut there);
    attach(&mut on_disk);
    for ((a, ours), (b, theirs)) in on_disk.linears().into_iter().zip(there.linears()) {
        assert_eq!(a, b);
        assert_eq!(ours.base().bytes(), 0);
        assert_eq!(ours.effective(Kind::Float), theirs.effective(Kind::Float), "{a}");
    }
    on_disk.check().unwrap();

    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(source()).unwrap().flatten() {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let broken = OnDisk::new(lora::open(folder.path()).unwrap(), Kind::Float).unwrap();
    for shard in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        let file = std::fs::OpenOptions::new().write(true).open(folder.path().join(shard)).unwrap();
        file.set_len(4096).unwrap();
    }
    let zero = broken.linears()[0].1.effective(Kind::Float);
    assert_eq!(zero.abs().max().double_value(&[]), 0.0);
    assert!(broken.check().unwrap_err().to_string().contains("model-0000"));
    broken.check().unwrap();
}

/// Beside a GGUF file's own blocks an adapter learns what it learns beside what they say, to the bit: four bits cost nothing
/// where the file has no more.
#[test]
fn an_adapter_beside_blocks_learns_the_same() {
    let _alone = RANDOM.lock();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/lora-model/tests/data/k_quants.gguf");
    let sample = |line: i64| Sample {
        ids: (0..9).map(|i| (7 * line + i * i) % 11).collect(),
        labels: (0..9).map(|i| (line + i) % 11).collect(),
        line: line as usize,
    };
    let samples = (1..=6).map(sample).collect();
    let data = Dataset { path: "none".into(), rows: vec![], samples, truncated: 0, left_out: 0 };
    let config = TrainConfig { batch_size: 2, epochs: 2.0, ..TrainConfig::default() };
    for kind in [Kind::Float, Kind::BFloat16] {
        for (variant, recompute) in [("lora", 0), ("dora", usize::MAX)] {
            let [dense, native] = [Keep::DENSE, Keep::NATIVE].map(|keep| {
                let checkpoint = lora::open(&path).unwrap();
                let mut model = Llama::load(checkpoint.as_ref(), kind, Device::Cpu, keep).unwrap();
                tch::manual_seed(3);
                let recipe = Recipe::parse(variant, VARIANTS).unwrap();
                lora::attach(&mut model, "a", &recipe, &lora::AdapterConfig::default()).unwrap();
                let start: Vec<Tensor> = params(&model, "a").iter().map(|p| p.tensor.copy()).collect();
                let config = TrainConfig { recompute, ..config.clone() };
                train(&model, params(&model, "a"), &data, None, &config, &mut |_| Ok(())).unwrap();
                let learnt: Vec<Tensor> =
                    params(&model, "a").iter().map(|p| p.tensor.shallow_clone()).collect();
                assert!(learnt.iter().zip(&start).any(|(a, b)| a != b));
                learnt
            });
            assert!(dense == native, "{kind:?} {variant}");
        }
    }
}

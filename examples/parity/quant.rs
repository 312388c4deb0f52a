//! 4 bits, beside bitsandbytes and transformers (`xtask/peers/quant.py`).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use lora::model::{Checkpoint, Export, Keep, Llama, Pack};
use lora::qlora::{Bitsandbytes, FourBit, Options};
use lora::{BaseWeight, Error, OutputFolder, Packing, Parts, Result, VARIANTS, read_tensors};
use tch::{Device, Kind, Tensor};

use crate::common::{Tensors, curve, curve_error, first_step, relative};
use crate::{Table, logits, merged, tensor, worst};

pub(crate) fn check(dir: &Path, table: &mut Table) -> Result<()> {
    let quant = dir.join("quant");
    cases(&quant, table)?;
    blocks(&quant.join("gguf"), table)?;
    for (code, options) in [("nf4", ""), ("fp4", "fp4:single")] {
        checkpoint(&dir.join("hf"), &quant, code, &Options::parse(options)?, table)?;
    }
    training(&quant, table)
}

/// Every code, block size, nesting and dtype: what we make of the weights, and of their parts.
fn cases(quant: &Path, table: &mut Table) -> Result<()> {
    let sources = read_tensors(&quant.join("source.safetensors"))?;
    let text = std::fs::read(quant.join("crc.json")).unwrap_or_default();
    let crcs: BTreeMap<String, BTreeMap<String, u32>> =
        serde_json::from_slice(&text).map_err(|e| Error::data(format!("crc.json: {e}")))?;
    let (mut made, mut read, mut count) = (0, 0, 0);
    for (case, crcs) in &crcs {
        let (options, dtype) = case.split_once(' ').unwrap_or((case, ""));
        let (options, kind) = (Options::parse(options)?, kind(dtype));
        let file = read_tensors(&quant.join("cases").join(format!("{case}.safetensors")))?;
        for (name, crc) in crcs {
            let prefix = format!("{name}.weight");
            let theirs: Tensors = file
                .iter()
                .filter_map(|(key, t)| {
                    Some((key.strip_prefix(&prefix)?.trim_start_matches('.').to_owned(), t))
                })
                .map(|(part, t)| (part, t.shallow_clone()))
                .collect();
            let ours = FourBit::new(&tensor(&sources, name)?.to_kind(kind), options)?;
            let parts: Tensors = ours.parts().unwrap_or_default().into_iter().collect();
            let same = parts.len() == theirs.len()
                && parts.iter().all(|(part, t)| theirs.get(part).is_some_and(|u| bits(t) == bits(u)));
            made += usize::from(!same);
            let names: Vec<&str> = theirs.keys().map(String::as_str).collect();
            let load = |part: &str| Ok(theirs[part].shallow_clone());
            let dense = Bitsandbytes.read(&Parts { names: &names, load: &load }, kind)?.dense(kind);
            read += usize::from(crc32fast::hash(&bits(&dense)) != *crc);
            count += 1;
        }
    }
    table.same("quantised by us: all parts, bit for bit", made, count);
    table.same("dequantised by us: all weights, bit for bit", read, count);
    Ok(())
}

/// Every type of GGUF's: the values of its blocks, dequantised when read, and when kept as they are.
fn blocks(folder: &Path, table: &mut Table) -> Result<()> {
    const NAME: &str = "model.layers.0.mlp.down_proj.weight";
    let text = std::fs::read(folder.join("crc.json")).unwrap_or_default();
    let crcs: BTreeMap<String, u32> =
        serde_json::from_slice(&text).map_err(|e| Error::data(format!("gguf/crc.json: {e}")))?;
    let mut differ = 0;
    for (case, crc) in &crcs {
        let checkpoint = lora::open(&folder.join(format!("{case}.gguf")))?;
        let read = checkpoint.load(NAME, Kind::Float)?;
        let kept = checkpoint.packed(NAME, Kind::Float)?.map(|weight| weight.dense(Kind::Float));
        let same = |t: &Tensor| crc32fast::hash(&bits(t)) == *crc;
        differ += usize::from(!same(&read) || kept.is_some_and(|t| !same(&t)));
    }
    table.same("GGUF's types, real and random blocks: as the gguf package", differ, crcs.len());
    Ok(())
}

fn kind(dtype: &str) -> Kind {
    match dtype {
        "bfloat16" => Kind::BFloat16,
        "float16" => Kind::Half,
        _ => Kind::Float,
    }
}

fn bits(t: &Tensor) -> Vec<u8> {
    let bytes = t.contiguous().view([-1]).view_dtype(Kind::Uint8);
    Vec::try_from(bytes).unwrap_or_default()
}

/// The whole model: our files, tensor by tensor, and what transformers makes of them.
fn checkpoint(hf: &Path, quant: &Path, code: &str, options: &Options, table: &mut Table) -> Result<()> {
    let (ours, theirs) = (quant.join(format!("ours-{code}")), quant.join(format!("theirs-{code}")));
    let out = OutputFolder::create(&ours, true, lora::model::is_model_file(hf, &ours))?;
    let checkpoint = lora::open(hf)?;
    Export {
        checkpoint: checkpoint.as_ref(),
        tokenizer: None,
        kind: Kind::BFloat16,
        replaced: &|_| Ok(None),
        packed: Some(Pack { storage: options, skip: &[], seen: &|_, _, _| {} }),
    }
    .write(&out)?;
    out.commit()?;
    let (a, b) = (all(&ours)?, all(&theirs)?);
    let differ = b.iter().filter(|(name, t)| a.get(*name).is_none_or(|u| bits(t) != bits(u))).count();
    let more = a.keys().filter(|name| !b.contains_key(*name)).count();
    table.same(&format!("{code}: a checkpoint written here, tensors"), differ + more, b.len());

    let Some(python) = std::env::var_os("LORA_PARITY_PYTHON") else {
        println!("(transformers does not read our {code} folder: LORA_PARITY_PYTHON is not set)");
        return Ok(());
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("xtask/peers/quant.py");
    let mut run = Command::new(python);
    run.arg(script).arg("check").arg("--ours").arg(&ours).arg("--theirs").arg(&theirs);
    let passed = run.status().is_ok_and(|status| status.success());
    table.row(&format!("{code}: transformers' logits of it"), passed, "", "those of its own checkpoint");
    Ok(())
}

/// All tensors of a folder.
fn all(folder: &Path) -> Result<Tensors> {
    let list = std::fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))?;
    let mut tensors = Tensors::new();
    for path in list.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|e| e == "safetensors") {
            tensors.extend(read_tensors(&path)?);
        }
    }
    Ok(tensors)
}

/// bitsandbytes' checkpoint, packed as it is and computed with in f32: logits, and a LoRA beside it, merged and trained, as
/// PEFT has them on what bitsandbytes dequantises.
fn training(quant: &Path, table: &mut Table) -> Result<()> {
    let golden = read_tensors(&quant.join("unpacked.safetensors"))?;
    let ids = tensor(&golden, "input_ids")?;
    let checkpoint: Box<dyn Checkpoint> = lora::open(&quant.join("theirs-nf4"))?;
    let mut model = Llama::load(checkpoint.as_ref(), Kind::Float, Device::Cpu, Keep::NATIVE)?;
    let error = relative(&logits(&model, ids)?, tensor(&golden, "logits")?);
    table.near("bitsandbytes' checkpoint: logits", error, 1e-5);
    let golden = read_tensors(&quant.join("unpacked/golden.safetensors"))?;
    lora::load(&mut model, "a", &quant.join("unpacked/adapter"), VARIANTS)?;
    merged("bitsandbytes' checkpoint", &mut model, &golden, table)?;
    let labels = tensor(&golden, "labels")?;
    let (loss, gradients) = first_step(&model, "a", ids, labels)?;
    let theirs = tensor(&golden, "loss")?.double_value(&[0]);
    table.near("bitsandbytes' checkpoint: loss of a LoRA", (loss / theirs - 1.0).abs(), 1e-5);
    let theirs = golden.iter().filter_map(|(key, t)| Some((key.strip_prefix("grad.")?, t)));
    let error = worst(theirs, &gradients);
    table.near(&format!("bitsandbytes' checkpoint: worst of {} gradients", gradients.len()), error, 1e-4);
    let (losses, _) = curve(&model, "a", (ids, labels), 1e-3, false)?;
    let error = curve_error(&losses, tensor(&golden, "curve")?);
    table.near("bitsandbytes' checkpoint: the curve of 20 steps", error, 1e-3);
    Ok(())
}

//! Adapter folders of ours, read by PEFT.

use std::path::Path;
use std::process::Command;

use lora::{AdapterConfig, Error, Result, VARIANTS, params, read_tensors, recipe};
use tch::Tensor;

use crate::common::{llama, relative};
use crate::{Table, logits};

/// Writes an adapter of each kind into `DIR/ours`, and compares PEFT's logits with ours.
pub(crate) fn check(dir: &Path, ids: &Tensor, table: &mut Table) -> Result<()> {
    let ours = dir.join("ours");
    let mut folders = Vec::new();
    for (name, spec, config) in adapters() {
        let folder = ours.join(name);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io("make the folder", &folder, e))?;
        let mut model = llama(&dir.join("hf"))?;
        let recipe = recipe(spec)?;
        lora::tch_ext::cuda::seed(name.len() as i64);
        lora::attach(&mut model, "a", &recipe, &config)?;
        tch::no_grad(|| {
            for mut param in params(&model, "a") {
                // As if trained: B is not zero, and magnitudes moved.
                let noise = param.tensor.randn_like();
                let step = if param.name.contains("magnitude") {
                    noise * &param.tensor * 0.05
                } else {
                    noise * 0.01
                };
                let _ = param.tensor.g_add_(&step);
            }
        });
        lora::save(&model, "a", &recipe, &config, VARIANTS, &folder)?;
        folders.push((name, folder, logits(&model, ids)?));
    }
    let Some(python) = std::env::var_os("LORA_PARITY_PYTHON") else {
        println!("(PEFT does not read our {} folders: LORA_PARITY_PYTHON is not set)", folders.len());
        return Ok(());
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("xtask/peers/check_adapters.py");
    let out = ours.join("logits.safetensors");
    let mut theirs = Command::new(&python);
    theirs.arg(script).arg("--model").arg(dir.join("hf"));
    theirs.arg("--ids").arg(dir.join("base.safetensors")).arg("--out").arg(&out);
    theirs.args(folders.iter().map(|(_, folder, _)| folder));
    let status = theirs.status().map_err(|e| Error::io("run", Path::new(&python), e))?;
    if !status.success() {
        table.row("our folders are read by PEFT", false, &status.to_string(), "success");
        return Ok(());
    }
    let theirs = read_tensors(&out)?;
    for (name, _, ours) in &folders {
        let error = theirs.get(*name).map_or(f64::INFINITY, |theirs| relative(ours, theirs));
        table.near(&format!("our {name} read by PEFT: logits"), error, 1e-5);
    }
    Ok(())
}

fn adapters() -> [(&'static str, &'static str, AdapterConfig); 6] {
    let plain = AdapterConfig { r: 8, lora_alpha: 16.0, ..AdapterConfig::default() };
    let patterns = AdapterConfig {
        rank_pattern: vec![("q_proj".to_owned(), 4), (r"layers\.(0|29)\.mlp\.down_proj".to_owned(), 12)],
        alpha_pattern: vec![("v_proj".to_owned(), 5.5)],
        ..plain.clone()
    };
    [
        ("lora", "lora", plain.clone()),
        ("rslora", "rslora", plain.clone()),
        ("dora", "dora", plain.clone()),
        ("dora+rslora", "dora+rslora", plain.clone()),
        ("patterns", "lora", patterns),
        ("float-alpha", "lora", AdapterConfig { lora_alpha: 12.5, ..plain }),
    ]
}

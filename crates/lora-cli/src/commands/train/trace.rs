//! What repeats a run elsewhere: the adapter as it starts, and every step's texts.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use lora::train::{Batches, Dataset, TrainConfig};
use lora::{Error, OutputFolder, Result};

use super::is_adapter_file;

/// What is read step by step.
const BATCHES: &str = "batches.jsonl";

/// Writes the folder; `save` writes the adapter into it.
///
/// # Errors
/// Those of [`OutputFolder`], and of `save`.
pub(super) fn write(
    (path, overwrite): (&Path, bool),
    (data, config): (&Dataset, &TrainConfig),
    save: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let folder =
        OutputFolder::create(path, overwrite, |path| is_adapter_file(path) || path == Path::new(BATCHES))?;
    folder.write_with(BATCHES, |file| batches(file, data, config))?;
    save(folder.path())?;
    folder.commit()
}

fn batches(file: &mut File, data: &Dataset, config: &TrainConfig) -> Result<()> {
    let mut batches = Batches::new(&data.samples, config.batch_size, config.seed);
    let write = || {
        let mut file = BufWriter::new(file);
        for step in 1..=config.steps(data.samples.len()) {
            let texts = batches.next_step(config.accumulate).into_iter().flatten();
            let texts: Vec<_> =
                texts.map(|s| serde_json::json!({ "ids": s.ids, "labels": s.labels })).collect();
            writeln!(file, "{}", serde_json::json!({ "step": step, "texts": texts }))?;
        }
        file.flush()
    };
    write().map_err(|e| Error::io("write", Path::new(BATCHES), e))
}

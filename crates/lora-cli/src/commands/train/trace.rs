//! A run to be repeated elsewhere: the adapter as it starts, and what is read step by step.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use lora::model::Llama;
use lora::train::{Batches, Dataset, TrainConfig};
use lora::{AdapterConfig, Error, OutputFolder, Recipe, VARIANTS};

use super::{Args, is_adapter_file};
use crate::open::ADAPTER;

const BATCHES: &str = "batches.jsonl";

impl Args {
    /// Writes both into the folder that `--trace` names, if it names one.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(super) fn write_trace(
        &self,
        (model, recipe, config): (&Llama, &Recipe, &AdapterConfig),
        data: &Dataset,
        training: &TrainConfig,
    ) -> lora::Result<()> {
        let Some(path) = &self.trace else { return Ok(()) };
        let ours = |path: &Path| is_adapter_file(path) || path == Path::new(BATCHES);
        let folder = OutputFolder::create(path, self.overwrite, ours)?;
        folder.write_with(BATCHES, |file| batches(file, data, training))?;
        lora::save(model, ADAPTER, recipe, config, VARIANTS, folder.path())?;
        folder.commit()
    }
}

fn batches(file: &mut File, data: &Dataset, config: &TrainConfig) -> lora::Result<()> {
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

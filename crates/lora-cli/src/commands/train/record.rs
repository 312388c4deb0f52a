//! What a run is known by, and what is written of it beside the adapter.

use anyhow::Result;
use lora::train::{Dataset, Outcome, TrainConfig, fingerprint};
use lora::{AdapterConfig, Recipe};
use sha2::{Digest, Sha256};

use super::Args;
use crate::planning;
use crate::privacy::{bound_to, hash_of};

impl Args {
    /// The model's files, how they are kept, and all settings that shape a gradient.
    ///
    /// # Errors
    /// The files cannot be read.
    pub(super) fn bound_to(
        &self,
        (recipe, packed): (&Recipe, Option<bool>),
        config: &AdapterConfig,
        training: &TrainConfig,
    ) -> Result<Vec<u8>> {
        let settings = format!("{recipe} {packed:?} {config:?} {training:?}");
        Ok([bound_to(&self.model)?, settings.into_bytes()].concat())
    }

    /// A name for all that the adapter hangs on. How a step is cut into passes is nothing of that, unless passes draw masks.
    ///
    /// # Errors
    /// The model's files, or those of the adapter that it begins with, cannot be read.
    pub(super) fn run(
        &self,
        kept: (&Recipe, Option<bool>),
        config: &AdapterConfig,
        training: &TrainConfig,
        data: &Dataset,
    ) -> Result<String> {
        let mut training = TrainConfig { record: true, eval_every: None, save: None, ..training.clone() };
        if config.lora_dropout == 0.0 {
            training.batch_size *= training.accumulate.max(1);
            (training.accumulate, training.recompute) = (1, 0);
        }
        let mut hash = Sha256::new().chain_update(self.bound_to(kept, config, &training)?);
        hash.update(fingerprint(data));
        if let Some(start) = &self.adapter {
            hash.update(hash_of(&[start.join(lora::CONFIG_FILE), lora::weights_file(start)?])?);
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// What was done, for whoever finds the folder later.
    pub(super) fn summary(
        &self,
        recipe: &Recipe,
        packed: Option<bool>,
        config: &TrainConfig,
        (outcome, trained, loaded): (&Outcome, usize, f64),
        private: Option<serde_json::Value>,
    ) -> Vec<u8> {
        let storage = packed.map_or("auto", |packed| if packed { "native" } else { "dense" });
        let device = self.model.device().unwrap_or(tch::Device::Cpu);
        let mut summary = serde_json::json!({
            "program": concat!("lora ", env!("CARGO_PKG_VERSION")),
            "variant": recipe.to_string(),
            "model": self.model.model.display().to_string(),
            "data": self.data.display().to_string(),
            "dtype": self.model.dtype,
            "base_storage": storage,
            "skip": self.model.skip,
            "seed": config.seed,
            "learning_rate": config.learning_rate,
            "schedule": self.training.step.schedule,
            "warmup": config.warmup,
            "batch_size": config.batch_size,
            "accumulate": config.accumulate,
            "weight_decay": config.adamw.weight_decay,
            "clip": config.clip,
            "recompute": config.recompute,
            "parameters": trained,
            "device": format!("{device:?}"),
        });
        // Losses, times and memory come from the rows without noise: no promise covers them, so they do not travel with the
        // adapter.
        match private {
            Some(private) => summary["privacy"] = private,
            None => {
                summary["outcome"] = serde_json::json!(outcome);
                summary["load_seconds"] = loaded.into();
                summary["peak_bytes"] = planning::memory_on(device).map(|m| m.peak).into();
            }
        }
        format!("{summary:#}\n").into_bytes()
    }
}

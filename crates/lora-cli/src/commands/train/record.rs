//! What a run is known by, and what is written of it beside the adapter.

use lora::model::Checkpoint;
use lora::train::{Dataset, Outcome, TrainConfig, fingerprint};
use lora::{AdapterConfig, Recipe};
use sha2::{Digest, Sha256};

use super::Args;
use crate::planning;

impl Args {
    /// All settings that shape a gradient.
    pub(super) fn bound_to(
        &self,
        recipe: &Recipe,
        config: &AdapterConfig,
        training: &TrainConfig,
    ) -> Vec<u8> {
        format!("{recipe} {config:?} {training:?} {} {:?}", self.model.dtype, self.model.device())
            .into_bytes()
    }

    /// A name for all that the adapter hangs on; how a step is cut into passes is nothing of that.
    pub(super) fn run(
        &self,
        recipe: &Recipe,
        config: &AdapterConfig,
        training: &TrainConfig,
        (data, checkpoint): (&Dataset, &dyn Checkpoint),
    ) -> String {
        let training = TrainConfig {
            batch_size: training.batch_size * training.accumulate.max(1),
            accumulate: 1,
            recompute: 0,
            record: true,
            eval_every: None,
            save: None,
            ..training.clone()
        };
        let (model, bytes) = (checkpoint.config(), checkpoint.stored_bytes());
        let (start, dtype) = (&self.adapter, &self.model.dtype);
        let settings = format!("{recipe} {config:?} {training:?} {model:?} {bytes} {start:?} {dtype}");
        let hash = Sha256::new().chain_update(settings).chain_update(fingerprint(data)).finalize();
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
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

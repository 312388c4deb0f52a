//! What a run is known by, and what is written of it beside the adapter.

use anyhow::Result;
use lora::train::{Dataset, Outcome, SavePoint, TrainConfig, fingerprint};
use lora::{AdapterConfig, Recipe};
use sha2::{Digest, Sha256};

use super::Args;
use crate::paths;
use crate::planning;
use crate::privacy::{bound_to, hash_of};
use crate::stop::{Heard, Stopped};

impl Args {
    /// Refuses outputs that would replace what is read, or one another: what lies beside OUT is replaced unasked.
    pub(super) fn apart(&self) -> lora::Result<()> {
        let beside = ["metrics.jsonl", "metrics.earlier.jsonl", "resume.safetensors"];
        let [metrics, earlier, saved] = beside.map(|ending| lora::sibling(&self.out, ending));
        let outputs = [
            ("--out", Some(self.out.as_path())),
            ("--trace", self.trace.as_deref()),
            ("OUT.metrics.jsonl", Some(metrics.as_path())),
            ("OUT.metrics.earlier.jsonl", Some(earlier.as_path())),
            ("OUT.resume.safetensors", Some(saved.as_path())),
            ("--dp-ledger", self.dp_ledger.as_deref()),
        ];
        let inputs = [
            ("the data", Some(self.data.as_path())),
            ("the held-out rows", self.eval.as_deref()),
            ("the model", Some(self.model.model.as_path())),
            ("the adapter", self.adapter.as_deref()),
        ];
        paths::apart(&outputs, &inputs)
    }

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
            hash.update(hash_of(&[start.join(lora::CONFIG_FILE), start.join(lora::WEIGHTS_FILE)])?);
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// What is told of a run of so many steps that a signal ended before; none of one that is done.
    ///
    /// # Errors
    /// What it was saved in cannot be read.
    pub(super) fn stopped(
        &self,
        heard: &Heard,
        save: Option<&SavePoint>,
        (done, steps): (u64, u64),
    ) -> Result<Option<Stopped>> {
        let Some(signal) = heard.signal().filter(|_| done < steps) else { return Ok(None) };
        let became = match save.map(SavePoint::steps).transpose()?.flatten() {
            Some(saved) => format!("the same command goes on after step {saved}"),
            None if self.privacy.dp_epsilon.is_some() => {
                "no adapter was written; the same command does these steps again, \
                 and what they gave away is not charged twice"
                    .to_owned()
            }
            None => "nothing was kept; --save-every STEPS keeps what was learnt".to_owned(),
        };
        Ok(Some(Stopped { signal, said: format!("stopped after step {done} of {steps}: {became}") }))
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

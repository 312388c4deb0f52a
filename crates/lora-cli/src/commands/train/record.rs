//! What a run is known by, and what is written of it beside the adapter.

use anyhow::Result;
use lora::model::Checkpoint;
use lora::train::{Dataset, Outcome, SavePoint, TrainConfig, fingerprint};
use lora::{AdapterConfig, Recipe};
use sha2::{Digest, Sha256};

use super::Args;
use crate::origin::Origin;
use crate::paths;
use crate::planning;
use crate::privacy::{bound_to, hash_of};
use crate::rounding;
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
            // One may go on in its own place: it is read whole before it is replaced.
            ("the adapter", self.adapter.as_deref().filter(|_| !self.overwrite)),
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

    /// A name for all that the adapter hangs on, and the settings among it by their names. How a step is cut into passes is
    /// nothing of that, unless passes draw masks.
    ///
    /// # Errors
    /// The model's files, or those of the adapter that it begins with, cannot be read.
    pub(super) fn run(
        &self,
        kept: (&Recipe, Option<bool>),
        config: &AdapterConfig,
        training: &TrainConfig,
        data: &Dataset,
    ) -> Result<(String, Vec<(String, String)>)> {
        let mut training = TrainConfig { record: true, eval_every: None, save: None, ..training.clone() };
        if config.lora_dropout == 0.0 {
            training.batch_size *= training.accumulate.max(1);
            (training.accumulate, training.recompute) = (1, 0);
        }
        let bound = self.bound_to(kept, config, &training)?;
        let start = self
            .adapter
            .as_ref()
            .map(|folder| hash_of(&[folder.join(lora::CONFIG_FILE), lora::weights_file(folder)?]));
        let (rows, start) = (fingerprint(data), start.transpose()?.unwrap_or_default());
        let run = Sha256::new().chain_update(&bound).chain_update(rows).chain_update(&start).finalize();
        // The model's files come first in what is bound.
        let files = bound.get(..32).unwrap_or(&bound);
        let hashes =
            [("model", hex(files)), ("set of rows", hex(&rows)), ("adapter to begin with", hex(&start))];
        let settings = hashes.into_iter().chain(self.settings(kept, config, &training));
        Ok((hex(&run), settings.map(|(name, value)| (name.to_owned(), value)).collect()))
    }

    /// As the options are called.
    fn settings(
        &self,
        (recipe, _): (&Recipe, Option<bool>),
        config: &AdapterConfig,
        training: &TrainConfig,
    ) -> [(&'static str, String); 25] {
        [
            ("--dtype", self.model.dtype.clone()),
            ("--base-storage", self.model.base_storage.clone()),
            ("--skip", self.model.skip.join(",")),
            ("--device", self.model.device().map_or_else(|_| String::new(), |d| format!("{d:?}"))),
            ("--variant", recipe.to_string()),
            ("--rank", config.r.to_string()),
            ("--alpha", config.lora_alpha.to_string()),
            ("--dropout", config.lora_dropout.to_string()),
            ("--targets", format!("{:?}", config.target_modules)),
            ("--exclude", format!("{:?}", config.exclude_modules)),
            ("--layers", format!("{:?}", config.layers_to_transform)),
            ("--rank-pattern", format!("{:?}", config.rank_pattern)),
            ("--alpha-pattern", format!("{:?}", config.alpha_pattern)),
            ("--init", format!("{:?}", config.init)),
            ("--epochs", training.epochs.to_string()),
            ("--max-steps", training.max_steps.map_or("none".to_owned(), |most| most.to_string())),
            ("texts a step", (training.batch_size * training.accumulate.max(1)).to_string()),
            ("--lr", training.learning_rate.to_string()),
            ("--schedule", self.training.step.schedule.clone()),
            ("--warmup", training.warmup.to_string()),
            ("--weight-decay", training.adamw.weight_decay.to_string()),
            ("--clip", training.clip.unwrap_or(0.0).to_string()),
            ("--seed", training.seed.to_string()),
            ("--accumulate", training.accumulate.to_string()),
            ("--recompute", training.recompute.to_string()),
        ]
    }

    /// The base that is trained beside, with a note where it is rounded twice, or the adapter to go on with is of another one.
    pub(super) fn base(&self, checkpoint: &dyn Checkpoint, kept: (&Recipe, Option<bool>)) -> Origin {
        if !kept.0.is_dense() && kept.1.is_none() {
            rounding::tell_twice(checkpoint);
        }
        let base = Origin::of(checkpoint, Some(kept));
        let Some(folder) = &self.adapter else { return base };
        let own = Origin::read(folder);
        own.tell(&base, true);
        // Of another base that is told, and it is this one's adapter from now on.
        let same = own.is_of(&base);
        base.started(own.start().filter(|_| same))
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
        (recipe, packed): (&Recipe, Option<bool>),
        base: &Origin,
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
            "base": base,
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

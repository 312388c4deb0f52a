//! A run written down while it goes on, and taken up again where it was.

use std::path::PathBuf;

use lora_core::{Error, Result, read_metadata, read_tensors, write_tensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::arena::Arena;
use crate::limit::Work;
use crate::optim::AdamW;

/// Where a run is written down, and how often; where a [`Stop`](crate::Stop) ends it, too. The file holds the parameters, the
/// optimiser's moments and how far it has come; seeds and the order of the samples follow from the step, so that a run that goes
/// on is the run that was never interrupted, bit for bit, on a machine that adds up alike. A GPU does where steps are not
/// recorded ([`TrainConfig::record`](crate::TrainConfig::record)): what was recorded, and when, is not written down.
#[derive(Debug, Clone, PartialEq)]
pub struct SavePoint {
    /// The file, in safetensors' format; replaced whole.
    pub path: PathBuf,
    /// Steps from one writing to the next.
    pub every: u64,
    /// A name for all that the result hangs on: weights, data, settings. The file of another run is refused.
    pub run: String,
    /// The settings among that, by name, for an error to say which are others.
    pub settings: Vec<(String, String)>,
}

/// How far a run has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Done {
    /// Of each step.
    pub(crate) losses: Vec<f64>,
    pub(crate) tally: Tally,
}

/// What is added up on the way.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) tokens: usize,
    pub(crate) seconds: f64,
    pub(crate) eval_loss: Option<f64>,
    pub(crate) work: Work,
}

const ANEW: &str = "go on with the command that it was written by, or delete it to begin anew";

const VALUES: &str = "values";
const FIRST: &str = "exp_avg";
const SECOND: &str = "exp_avg_sq";
const LOSSES: &str = "losses";

impl SavePoint {
    /// The steps that the file holds; none where there is no file.
    ///
    /// # Errors
    /// The file is malformed, or of another run.
    pub fn steps(&self) -> Result<Option<u64>> {
        if !self.path.exists() {
            return Ok(None);
        }
        let metadata = read_metadata(&self.path).map_err(|e| e.hint(ANEW))?;
        let of = |name: &str| metadata.get(name).map(String::as_str).unwrap_or_default();
        let Ok(steps) = of("step").parse() else {
            return Err(self.refused("it holds no run that can go on"));
        };
        match of("run") == self.run {
            true => Ok(Some(steps)),
            false => Err(self.refused(&format!("it is of another run: {}", self.unlike(of("settings"))))),
        }
    }

    /// What is another one in the file's settings, as far as it tells them.
    fn unlike(&self, told: &str) -> String {
        /// A longer value is a hash, or nothing to read.
        const LONGEST: usize = 40;
        let told: Vec<(String, String)> = serde_json::from_str(told).unwrap_or_default();
        let others = self.settings.iter().filter_map(|(name, here)| {
            let (_, there) = told.iter().find(|(told, there)| told == name && there != here)?;
            Some(match there.len().max(here.len()) <= LONGEST {
                true => format!("{name} {there} there and {here} here"),
                false => format!("another {name}"),
            })
        });
        let others: Vec<_> = others.collect();
        if others.is_empty() { "other data, model or settings".to_owned() } else { others.join(", ") }
    }

    pub(crate) fn is_due(&self, step: u64) -> bool {
        step.is_multiple_of(self.every.max(1))
    }

    /// Writes the run down.
    pub(crate) fn write(&self, arena: &Arena, optimiser: &AdamW, done: &Done) -> Result<()> {
        let (m, v) = optimiser.moments();
        let here = |t: &Tensor| t.detach().to_device(Device::Cpu);
        let tensors = [
            (VALUES.to_owned(), here(arena.values())),
            (FIRST.to_owned(), here(m)),
            (SECOND.to_owned(), here(v)),
            (LOSSES.to_owned(), Tensor::from_slice(&done.losses)),
        ];
        let tally = serde_json::to_string(&done.tally).map_err(|e| Error::internal(e.to_string()))?;
        let step = done.losses.len().to_string();
        let settings = serde_json::to_string(&self.settings).map_err(|e| Error::internal(e.to_string()))?;
        let metadata = [
            ("run", &*self.run),
            ("settings", &*settings),
            ("parameters", &*names(arena)),
            ("step", &*step),
            ("tally", &*tally),
        ];
        write_tensors(&self.path, &tensors, &metadata)
    }

    /// Takes the run up where the file has it; none where there is no file.
    pub(crate) fn read(&self, arena: &mut Arena, optimiser: &mut AdamW) -> Result<Option<Done>> {
        let Some(steps) = self.steps()? else { return Ok(None) };
        let metadata = read_metadata(&self.path)?;
        if metadata.get("parameters") != Some(&names(arena)) {
            return Err(self.refused("other parameters trained"));
        }
        let tally = metadata.get("tally").and_then(|text| serde_json::from_str(text).ok());
        let tally = tally.ok_or_else(|| self.refused("it holds no run that can go on"))?;
        let mut tensors = read_tensors(&self.path).map_err(|e| e.hint(ANEW))?;
        let mut take = |name: &str, kind: Kind, len: usize| match tensors.remove(name) {
            Some(t) if t.kind() == kind && t.numel() == len => Ok(t),
            _ => Err(self.refused("a tensor is missing, or of another size").at(name)),
        };
        let (kind, len) = (arena.values().kind(), arena.values().numel());
        let [values, m, v] = [take(VALUES, kind, len)?, take(FIRST, kind, len)?, take(SECOND, kind, len)?];
        let losses = take(LOSSES, Kind::Double, usize::try_from(steps).unwrap_or(usize::MAX))?;
        let losses =
            Vec::try_from(losses.reshape([-1])).map_err(|e: tch::TchError| Error::internal(e.to_string()))?;
        {
            let _guard = tch::no_grad_guard();
            arena.both_mut().0.copy_(&values);
        }
        optimiser.restore(steps, (&m, &v));
        Ok(Some(Done { losses, tally }))
    }

    fn refused(&self, why: &str) -> Error {
        Error::data(why).at(self.path.display()).hint(ANEW)
    }
}

/// A hash of the parameters' names and sizes.
fn names(arena: &Arena) -> String {
    Sha256::digest(arena.names()).iter().map(|byte| format!("{byte:02x}")).collect()
}

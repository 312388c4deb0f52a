//! Opening a model, with an adapter or without: what several verbs share.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use lora::model::{Checkpoint, Keep, Llama, Tokenizer};
use lora::{AdapterConfig, Error, Recipe, VARIANTS};
use tch::{Device, Kind};

use crate::origin;

/// The name of the adapter that the command line works on.
pub(crate) const ADAPTER: &str = "default";

#[derive(Args)]
pub(crate) struct ModelArgs {
    /// A Hugging Face folder (config.json, *.safetensors, tokenizer.json) or a .gguf file
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,

    /// What the base is computed in: bf16, f16 or f32 (exact, slower)
    #[arg(long, default_value = "bf16", value_parser = ["bf16", "f16", "f32"])]
    pub(crate) dtype: String,

    /// Keep packed weights as the file has them (native), or unpack them (dense); auto: native for checkpoints of
    /// bitsandbytes, and for other files as the variant says
    #[arg(long, default_value = "auto", value_parser = ["auto", "native", "dense"], value_name = "HOW")]
    pub(crate) base_storage: String,

    /// Modules that stay dense, by the end of their path; the output head always does
    #[arg(long, value_name = "MODULES", value_delimiter = ',')]
    pub(crate) skip: Vec<String>,

    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,

    /// CPU threads (default: all cores)
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<i32>,
}

/// A model in memory and what it came from.
pub(crate) struct Opened {
    pub(crate) checkpoint: Box<dyn Checkpoint>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) model: Llama,
    /// How the base is kept.
    storage: Recipe,
    packed: Option<bool>,
}

impl Opened {
    /// A note where the adapter that was opened was trained beside another base.
    pub(crate) fn tell_of(&self, adapter: Option<&Path>) {
        if let Some(folder) = adapter {
            origin::tell(folder, self.checkpoint.as_ref(), Some((&self.storage, self.packed)));
        }
    }
}

/// Four for each core at the most, and 256 anywhere: each of more waits for all others.
fn most_threads() -> i32 {
    let cores =
        std::thread::available_parallelism().map_or(1, |n| i32::try_from(n.get()).unwrap_or(i32::MAX));
    cores.saturating_mul(4).max(256)
}

impl ModelArgs {
    pub(crate) fn kind(&self) -> Kind {
        kind_of(&self.dtype)
    }

    /// Threads and CUDA first, then the checkpoint's configuration and tokenizer: nothing large is read yet.
    pub(crate) fn checkpoint(&self) -> Result<(Box<dyn Checkpoint>, Tokenizer)> {
        lora::tch_ext::load_cuda();
        lora::tch_ext::memory::manage();
        if let Some(threads) = self.threads {
            let most = most_threads();
            if !(1..=most).contains(&threads) {
                return Err(Error::usage(format!("--threads must be from 1 to {most}")).into());
            }
            tch::set_num_threads(threads);
        }
        self.device()?;
        Ok((lora::open(&self.model)?, Tokenizer::open(&self.model)?))
    }

    pub(crate) fn device(&self) -> Result<Device> {
        let count = tch::Cuda::device_count();
        let wanted = match self.device.as_str() {
            "auto" => return Ok(Device::cuda_if_available()),
            "cpu" => return Ok(Device::Cpu),
            "cuda" => Some(0),
            name => name.strip_prefix("cuda:").and_then(|n| n.parse::<usize>().ok()),
        };
        match wanted {
            Some(n) if (n as i64) < count => Ok(Device::Cuda(n)),
            Some(n) => Err(Error::usage(format!("there is no CUDA device {n}; {count} were found"))
                .hint("`lora doctor` says what was found and why; use --device cpu")
                .into()),
            None => Err(Error::usage(format!("`{}` is no device", self.device))
                .hint("use auto, cpu, cuda or cuda:N")
                .into()),
        }
    }

    /// Whether packed weights stay so.
    pub(crate) fn packed(&self) -> Option<bool> {
        match self.base_storage.as_str() {
            "native" => Some(true),
            "dense" => Some(false),
            _ => None,
        }
    }

    /// Loads the weights as `keep` says.
    pub(crate) fn load(&self, checkpoint: &dyn Checkpoint, keep: Keep<'_>) -> Result<Llama> {
        Ok(Llama::load(checkpoint, self.kind(), self.device()?, keep)?)
    }

    /// All of it, with the adapter of that folder if one is named, on the storage that `variant` names.
    pub(crate) fn open(&self, adapter: Option<&Path>, variant: &str) -> Result<Opened> {
        // Its files first: cheap, and the likeliest to be wrong.
        let config = adapter.map(AdapterConfig::read).transpose()?;
        let storage = chosen(variant, config.as_ref())?;
        adapter.map(lora::weights_file).transpose()?;
        let (checkpoint, tokenizer) = self.checkpoint()?;
        let keep = Keep { storage: storage.storage(), packed: self.packed(), skip: &self.skip };
        let mut model = self.load(checkpoint.as_ref(), keep)?;
        if let Some(folder) = adapter {
            lora::load(&mut model, ADAPTER, folder, VARIANTS)?;
        }
        Ok(Opened { checkpoint, tokenizer, model, storage, packed: self.packed() })
    }
}

/// What `--variant` names where no adapter is made. Only the storage is left to choose then: a method that is not the
/// adapter's own would do nothing.
///
/// # Errors
/// Usage: such a method, and what [`Recipe::parse`] refuses.
pub(crate) fn chosen(variant: &str, adapter: Option<&AdapterConfig>) -> lora::Result<Recipe> {
    let asked = Recipe::parse(variant, VARIANTS)?;
    let flags = asked.flags();
    let what = match adapter {
        _ if flags.is_empty() => return Ok(asked),
        Some(config) if config.flags == flags => return Ok(asked),
        Some(config) => {
            let own = Recipe::from_flags(&config.flags, VARIANTS)?;
            format!("the adapter is of another method than `{variant}`: {own}")
        }
        None => format!("no adapter is named that `{variant}` could be the method of"),
    };
    Err(Error::usage(what).hint("of --variant only how the base is kept is to be chosen here, as qlora"))
}

/// The dtype of that name on the command line.
pub(crate) fn kind_of(dtype: &str) -> Kind {
    match dtype {
        "f32" => Kind::Float,
        "f16" => Kind::Half,
        _ => Kind::BFloat16,
    }
}

/// The name of that dtype there.
pub(crate) fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bf16",
        Kind::Half => "f16",
        Kind::Double => "f64",
        _ => "f32",
    }
}

/// The share of base and adapter that trains, as PEFT counts it.
pub(crate) fn share(trained: usize, frozen: usize) -> f64 {
    trained as f64 / (frozen + trained) as f64
}

/// `123456` as `123,456`.
pub(crate) fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(c);
    }
    text
}

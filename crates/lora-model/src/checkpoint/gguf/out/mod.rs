//! Writing GGUF files.

mod encode;
mod file;
mod model;

use std::path::Path;

use lora_core::{Error, Result, write_file_with};
use tch::Tensor;

use super::blocks::BlockType;
use super::{Gguf, names};
use crate::checkpoint::Checkpoint;
use crate::{ModelConfig, Tokenizer};
pub(crate) use file::Metadata;
use file::Planned;

/// Of ggml's quantised types, as llama.cpp counts them.
const QUANTIZATION: u32 = 2;

/// How tensors of two dimensions are written; the rest is F32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufKind {
    /// As f32.
    F32,
    /// As f16.
    F16,
    /// As bf16.
    BF16,
    /// 32 bytes and an f16 scale for 32 values; F16 where rows are no whole blocks.
    Q8_0,
}

impl GgufKind {
    fn block(self, shape: &[i64]) -> BlockType {
        match (self, shape) {
            (Self::F32, _) | (_, [] | [_]) => BlockType::F32,
            (Self::BF16, _) => BlockType::BF16,
            (Self::Q8_0, [.., row]) if row % 32 == 0 => BlockType::Q8_0,
            _ => BlockType::F16,
        }
    }

    /// llama.cpp's `general.file_type`.
    fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::BF16 => 32,
        }
    }
}

/// A GGUF file to be written: metadata, and tensors that are made one at a time.
pub struct GgufOut<'a> {
    config: &'a ModelConfig,
    kind: GgufKind,
    metadata: Metadata,
    planned: Vec<Planned>,
    makers: Vec<Make<'a>>,
}

type Make<'a> = Box<dyn FnOnce() -> Result<Tensor> + 'a>;

impl<'a> GgufOut<'a> {
    /// An empty file for the architecture of `config`.
    pub fn new(config: &'a ModelConfig, kind: GgufKind) -> Self {
        let mut metadata = Metadata::default();
        metadata.put("general.architecture", names::arch(config));
        metadata.put("general.file_type", kind.file_type());
        Self { config, kind, metadata, planned: Vec::new(), makers: Vec::new() }
    }

    /// One with all that `base` says of the model and its tokenizer, and its rotary table.
    ///
    /// # Errors
    /// What reading `base` gives.
    pub fn like(base: &'a Gguf, config: &'a ModelConfig, kind: GgufKind) -> Result<Self> {
        let mut out = Self::new(config, kind);
        for (key, bytes) in base.raw_metadata()? {
            // Of the base's file, not of the model: how it is aligned, split, and was quantised.
            let of_the_file = ["general.alignment", "general.quantization_version"].contains(&&*key);
            if !of_the_file && !key.starts_with("split.") && !key.starts_with("quantize.") {
                out.metadata.put_raw(key, bytes);
            }
        }
        out.metadata.put("general.file_type", kind.file_type());
        out.metadata.put("general.quantization_version", QUANTIZATION);
        for (name, info) in base.tensors().iter().filter(|(name, _)| names::is_table(name)) {
            let shape = info.shape.clone();
            out.planned.push(Planned { name: name.clone(), shape, block: BlockType::F32 });
            out.makers.push(Box::new(move || super::weights::read(base, info, tch::Kind::Float)));
        }
        Ok(out)
    }

    /// One for a model folder: its configuration and its tokenizer, whose way of splitting text llama.cpp calls `pre`,
    /// where that is not to be found out.
    ///
    /// # Errors
    /// What reading the folder gives; [`Error::unsupported`] for a network or a tokenizer that llama.cpp has no match for.
    pub fn of_folder(model: &'a dyn Checkpoint, kind: GgufKind, pre: Option<&str>) -> Result<Self> {
        let config = model.config();
        model::check(config).map_err(|e| e.at(model.source().display()))?;
        let mut out = Self::new(config, kind);
        model::general(model, &mut out.metadata)?;
        model::network(config, &mut out.metadata);
        let tokenizer = Tokenizer::open(model.source())?;
        tokenizer.to_gguf(config, pre, &mut out.metadata).map_err(|e| e.at(model.source().display()))?;
        out.metadata.put("general.quantization_version", QUANTIZATION);
        if let Some(factors) = model::factors(config)? {
            let (name, shape) = ("rope_freqs.weight".to_owned(), factors.size());
            out.planned.push(Planned { name, shape, block: BlockType::F32 });
            out.makers.push(Box::new(move || Ok(factors)));
        }
        Ok(out)
    }

    /// Puts a text into the metadata.
    pub fn text(&mut self, key: &str, value: &str) {
        self.metadata.put(key, value);
    }

    /// Puts a number into the metadata, as f32.
    pub fn number(&mut self, key: &str, value: f64) {
        self.metadata.put(key, value as f32);
    }

    /// Adds the tensor that is called `name` in Hugging Face's model, with `suffix` behind ggml's name for it. `rows`:
    /// its rows are the weight's, and are put into ggml's order where that is another.
    ///
    /// # Errors
    /// [`Error::unsupported`] for a name that ggml has none for.
    pub fn tensor(
        &mut self,
        name: &str,
        suffix: &str,
        shape: &[i64],
        rows: bool,
        make: impl FnOnce() -> Result<Tensor> + 'a,
    ) -> Result<()> {
        let ggml = names::gguf_name(name)
            .ok_or_else(|| Error::unsupported("GGUF has no name for this tensor").at(name))?;
        let heads = names::permuted_heads(&ggml, self.config).filter(|_| rows);
        let block = self.kind.block(shape);
        self.planned.push(Planned { name: ggml + suffix, shape: shape.to_vec(), block });
        self.makers.push(match heads {
            Some(heads) => Box::new(move || names::permute(&make()?, heads)),
            None => Box::new(make),
        });
        Ok(())
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// What making the tensors and writing give; [`Error::non_finite`], naming the tensor, for what the type cannot hold.
    pub fn write(self, path: &Path) -> Result<()> {
        let Self { metadata, planned, makers, .. } = self;
        let mut makers = makers.into_iter();
        write_file_with(path, |to| {
            let next =
                |_| makers.next().map_or_else(|| Err(Error::internal("no such tensor")), |make| make());
            file::write(to, &metadata, &planned, next).map_err(|e| e.at(path.display()))
        })
    }
}

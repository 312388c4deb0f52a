//! The llama family: Llama 2 and 3, SmolLM, Mistral, Qwen2, Qwen3. They differ in biases, head norms, rotary
//! scaling and window, all of it read from [`ModelConfig`].

mod memory;
mod recompute;

use lora_core::{Error, Linear, Linears, Mode, Result, project, project_onto};
use tch::{Device, Kind, Tensor};
use tch_ext::Region;

use crate::checkpoint::{Checkpoint, Keep, check_skip};
use crate::config::ModelConfig;
use crate::model::{Model, Texts};
use crate::ops::{Angles, Cache, Step, attention, heads, rms_norm, rms_norm_beside, swiglu, tokens};
use crate::pieces::Pieces;
use crate::rope::Rope;
use crate::shapes::EMBEDDING;
use crate::slots::Slots;

pub use memory::{StepMemory, StepSize, step_memory};

static WEIGHTS: Region = Region::new("weights");

/// The output head's name.
pub(crate) const HEAD: &str = "lm_head";

/// The names of a block's linear layers.
pub(crate) const PARTS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// The names of all linear layers, in the model's order.
pub(crate) fn linear_names(config: &ModelConfig) -> impl Iterator<Item = String> + use<> {
    let inner = (0..config.layers).flat_map(|i| PARTS.map(|part| format!("model.layers.{i}.{part}")));
    inner.chain([HEAD.to_owned()])
}

/// A decoder of the llama family.
#[derive(Debug)]
pub struct Llama {
    config: ModelConfig,
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    head: Linear,
    rope: Rope,
}

#[derive(Debug)]
struct Block {
    input_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    head_norms: Option<(Tensor, Tensor)>,
    post_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
    window: Option<i64>,
}

impl Llama {
    /// Reads a checkpoint tensor by tensor, linear weights as `keep` says, so that the peak is the stored model and one
    /// tensor.
    ///
    /// # Errors
    /// Missing tensors, shapes that disagree with the configuration (both all at once), weights that are not
    /// finite, and what the storage refuses.
    pub fn load(checkpoint: &dyn Checkpoint, kind: Kind, device: Device, keep: Keep<'_>) -> Result<Self> {
        let _inside = WEIGHTS.enter();
        let config = checkpoint.config().clone();
        crate::shapes::check(checkpoint)?;
        check_skip(&config, keep.skip)?;
        let tensor = |name: &str| -> Result<Tensor> { Ok(checkpoint.load(name, kind)?.to_device(device)) };
        let linear = |path: &str, bias: bool| -> Result<Linear> {
            let weight = keep.weight(checkpoint, path, (kind, device))?;
            let bias = if bias { Some(tensor(&format!("{path}.bias"))?) } else { None };
            Ok(Linear::new(weight, bias))
        };
        let mut blocks = Vec::new();
        for i in 0..config.layers {
            let at = |part: &str| format!("model.layers.{i}.{part}");
            let head_norms = if config.qk_norm {
                Some((tensor(&at("self_attn.q_norm.weight"))?, tensor(&at("self_attn.k_norm.weight"))?))
            } else {
                None
            };
            blocks.push(Block {
                input_norm: tensor(&at("input_layernorm.weight"))?,
                q: linear(&at("self_attn.q_proj"), config.qkv_bias)?,
                k: linear(&at("self_attn.k_proj"), config.qkv_bias)?,
                v: linear(&at("self_attn.v_proj"), config.qkv_bias)?,
                o: linear(&at("self_attn.o_proj"), config.o_bias)?,
                head_norms,
                post_norm: tensor(&at("post_attention_layernorm.weight"))?,
                gate: linear(&at("mlp.gate_proj"), config.mlp_bias)?,
                up: linear(&at("mlp.up_proj"), config.mlp_bias)?,
                down: linear(&at("mlp.down_proj"), config.mlp_bias)?,
                window: config.sliding_window,
            });
        }
        let embedding = tensor(EMBEDDING)?;
        let head = if config.tie_word_embeddings {
            Linear::dense(embedding.shallow_clone(), None)
        } else {
            linear(HEAD, false)?
        };
        let norm = tensor("model.norm.weight")?;
        let rope = Rope::new(&config, device);
        tch_ext::memory::trim();
        Ok(Self { config, embedding, blocks, norm, head, rope })
    }
}

/// What all blocks need to know of a pass.
struct Around {
    angles: Angles,
    texts: Option<Pieces>,
    mode: Mode,
}

/// A layer's place in a cache.
type Kept<'a> = (usize, &'a mut Cache, &'a Step);

impl Llama {
    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        // A GPU would have to be waited for.
        if ids.device() == Device::Cpu && ids.numel() > 0 {
            let (most, have) = (ids.max().int64_value(&[]), self.config.vocab_size);
            if most >= have || ids.min().int64_value(&[]) < 0 {
                let what = format!("a token has the number {most}, and the model has {have} of them");
                return Err(Error::data(what).hint("is it this model's tokenizer?"));
            }
        }
        Ok(Tensor::f_embedding(&self.embedding, ids, -1, false, false)?)
    }

    /// `had`: positions that each text had before.
    fn around(&self, texts: Texts<'_>, had: &[i64], mode: Mode) -> Result<Around> {
        let options = (Kind::Float, self.device());
        let had = had.iter().copied().chain(std::iter::repeat(0));
        let (longest, positions, texts) = match texts {
            Texts::Rows(ids) => {
                let start = had.take(1).sum();
                let n = start + ids.size2()?.1;
                (n, Tensor::arange_start(start, n, options), None)
            }
            Texts::Packed(_, pieces) => {
                let starts = Pieces::starts(pieces).zip(had).map(|(start, had)| start + had);
                let ranges: Vec<_> =
                    starts.zip(pieces).map(|(start, piece)| start..start + piece.len).collect();
                let all: Vec<i64> = ranges.iter().cloned().flatten().collect();
                let positions = Tensor::from_slice(&all).to_device(self.device()).to_kind(Kind::Float);
                let longest = ranges.iter().map(|range| range.end).max().unwrap_or(0);
                (longest, positions, Some(Pieces::of(pieces)?))
            }
        };
        if longest > self.config.max_positions {
            let most = self.config.max_positions;
            return Err(Error::data(format!("{longest} tokens do not fit the model's context of {most}"))
                .hint("shorten the text"));
        }
        Ok(Around { angles: self.rope.angles(&positions, self.kind()), texts, mode })
    }
}

impl Block {
    fn forward(&self, x: &Tensor, config: &ModelConfig, around: &Around, kept: Option<Kept<'_>>) -> Tensor {
        let &Around { ref angles, ref texts, mode } = around;
        let eps = config.rms_norm_eps;
        let (batch, t) = (x.size()[0], x.size()[1]);
        let (x, normed) = rms_norm_beside(x, &self.input_norm, eps);
        let qkv = project(&[&self.q, &self.k, &self.v], normed, mode);
        let (mut q, mut k) = (qkv[0].shallow_clone(), qkv[1].shallow_clone());
        if let Some((q_norm, k_norm)) = &self.head_norms {
            let each = |x: &Tensor, weight| {
                let y = rms_norm(&x.view([batch, t, -1, config.head_dim]), weight, eps);
                y.tensor().view([batch, t, -1])
            };
            (q, k) = (each(&q, q_norm), each(&k, k_norm));
        }
        let (q, k) = (heads(&q, config.heads, Some(angles)), heads(&k, config.kv_heads, Some(angles)));
        let v = heads(&qkv[2], config.kv_heads, None);
        let mixed = match kept {
            Some((layer, cache, step)) => {
                cache.attention(layer, step, (&q, &k, &v), self.window, texts.as_ref())
            }
            None => attention(&q, &k, &v, self.window, texts.as_ref()),
        };
        let mixed = tokens(&mixed);
        let x = project_onto(&x, &self.o, mixed, mode);
        let (x, normed) = rms_norm_beside(&x, &self.post_norm, eps);
        let gate_up = project(&[&self.gate, &self.up], normed, mode);
        project_onto(&x, &self.down, swiglu(&gate_up[0], &gate_up[1]), mode)
    }

    /// The linear layers, in the order of [`PARTS`].
    fn parts(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    fn parts_mut(&mut self) -> [&mut Linear; 7] {
        let Self { q, k, v, o, gate, up, down, .. } = self;
        [q, k, v, o, gate, up, down]
    }
}

impl Model for Llama {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn device(&self) -> Device {
        self.embedding.device()
    }

    fn kind(&self) -> Kind {
        self.embedding.kind()
    }

    fn hidden(&self, texts: Texts<'_>, mut cache: Option<&mut Cache>, mode: Mode) -> Result<Tensor> {
        let around = self.around(texts, cache.as_ref().map_or(&[], |c| c.lengths()), mode)?;
        let mut x = self.embed(texts.ids())?;
        let step = cache.as_mut().map(|c| c.step(texts, self.device())).transpose()?;
        for (i, block) in self.blocks.iter().enumerate() {
            let kept = cache.as_deref_mut().zip(step.as_ref()).map(|(cache, step)| (i, cache, step));
            x = block.forward(&x, &self.config, &around, kept);
        }
        Ok(rms_norm(&x, &self.norm, self.config.rms_norm_eps).tensor())
    }

    fn head(&self) -> &Linear {
        &self.head
    }

    fn backward(&self, texts: Texts<'_>, labels: &Tensor, scale: f64, recompute: usize) -> Result<f64> {
        recompute::backward(self, texts, labels, scale, recompute)
    }

    fn gradients(&self, slots: &Slots) -> Result<Tensor> {
        recompute::gradients(self, slots)
    }
}

impl Linears for Llama {
    fn linears(&self) -> Vec<(String, &Linear)> {
        let layers = self.blocks.iter().flat_map(Block::parts).chain([&self.head]);
        linear_names(&self.config).zip(layers).collect()
    }

    fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let layers = self.blocks.iter_mut().flat_map(Block::parts_mut).chain([&mut self.head]);
        linear_names(&self.config).zip(layers).collect()
    }

    fn output_head(&self) -> Option<&str> {
        Some(HEAD)
    }
}

//! A model of which nothing is in memory: for what looks at each weight once, as merging does.

use std::cell::OnceCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lora_core::{BaseWeight, Error, Linear, Linears, Result, row_norms_sq};
use tch::{Device, Kind, Tensor};

use crate::checkpoint::Checkpoint;
use crate::llama::HEAD;
use crate::shapes::EMBEDDING;

/// The linear layers of a checkpoint. A weight is read, on the CPU, whenever it is asked for; what goes wrong then is
/// kept for [`OnDisk::check`], and the weight is 0.
#[derive(Debug)]
pub struct OnDisk {
    layers: Vec<(String, Linear)>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    checkpoint: Box<dyn Checkpoint>,
    fault: Option<Error>,
}

impl OnDisk {
    /// The layers of `checkpoint`, computed in `kind`.
    ///
    /// # Errors
    /// Tensors that are missing or of another shape than the configuration says.
    pub fn new(checkpoint: Box<dyn Checkpoint>, kind: Kind) -> Result<Self> {
        let layers = crate::shapes::linear_shapes(checkpoint.as_ref())?;
        let tied = checkpoint.config().tie_word_embeddings;
        let shared = Arc::new(Mutex::new(Shared { checkpoint, fault: None }));
        let layer = |(path, shape): (String, (i64, i64))| {
            let embeds = tied && path == HEAD;
            let name = if embeds { EMBEDDING.to_owned() } else { format!("{path}.weight") };
            let norms_sq = OnceCell::new();
            let weight = Unread { shared: Arc::clone(&shared), name, shape, kind, norms_sq };
            (path, Linear::new(Box::new(weight), None))
        };
        let layers = layers.into_iter().map(layer).collect();
        Ok(Self { layers, shared })
    }

    /// What went wrong when weights were read.
    ///
    /// # Errors
    /// The first fault since the last time that this was asked.
    pub fn check(&self) -> Result<()> {
        lock(&self.shared).fault.take().map_or(Ok(()), Err)
    }
}

impl Linears for OnDisk {
    fn linears(&self) -> Vec<(String, &Linear)> {
        self.layers.iter().map(|(name, layer)| (name.clone(), layer)).collect()
    }

    fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        self.layers.iter_mut().map(|(name, layer)| (name.clone(), layer)).collect()
    }

    fn output_head(&self) -> Option<&str> {
        Some(HEAD)
    }
}

#[derive(Debug)]
struct Unread {
    shared: Arc<Mutex<Shared>>,
    name: String,
    shape: (i64, i64),
    kind: Kind,
    norms_sq: OnceCell<Tensor>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BaseWeight for Unread {
    fn shape(&self) -> (i64, i64) {
        self.shape
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn bytes(&self) -> u64 {
        0
    }

    fn dense(&self, kind: Kind) -> Tensor {
        let mut shared = lock(&self.shared);
        shared.checkpoint.read(&self.name, kind).unwrap_or_else(|e| {
            shared.fault.get_or_insert(e);
            Tensor::zeros([self.shape.0, self.shape.1], (kind, Device::Cpu))
        })
    }

    fn to_device(&self, _: Device) -> Box<dyn BaseWeight> {
        let (shared, name) = (Arc::clone(&self.shared), self.name.clone());
        Box::new(Self { shared, name, norms_sq: OnceCell::new(), shape: self.shape, kind: self.kind })
    }

    fn row_norms_sq(&self) -> Tensor {
        self.norms_sq.get_or_init(|| row_norms_sq(&self.dense(self.kind))).shallow_clone()
    }
}

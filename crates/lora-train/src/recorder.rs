//! A pass that a GPU is told at once.
//!
//! Operation by operation, telling a small model's pass takes several times as long as doing it. So the first batch of
//! a size runs as ever, the second is recorded ([`tch_ext::cuda::Graph`]), and from then on each that fits is put where
//! the recorded one was, and all is told again in one call.

use lora_core::{Error, ErrorKind, Param, Result};
use lora_model::{Model, Slots};
use tch::{Device, Tensor};
use tch_ext::cuda::{Graph, OwnStream};
use tch_ext::{changed, has_flash_attention, profiling};

use crate::batches::Batch;
use crate::limit::required_flops;

/// Passes of more work than that keep a GPU busy for longer than it takes to tell them.
const LARGEST: f64 = 2e13;
/// Sizes that are recorded at most: each keeps the memory that it runs in.
const SIZES: usize = 8;

/// Backward passes of one model on one thread, recorded where that pays.
#[derive(Debug)]
pub struct Recorder {
    sizes: Vec<Size>,
    /// Behind the graphs: they go first.
    stream: Option<OwnStream>,
    replayed: u64,
}

#[derive(Debug)]
struct Size {
    slots: Slots,
    ran: bool,
    /// The loss, which goes first: it lies in the graph's memory.
    pass: Option<(Tensor, Graph)>,
}

impl Recorder {
    /// Nothing is recorded if that is not `wanted`, and elsewhere than on CUDA. Until it is dropped, what this thread
    /// tells the device goes to a stream of its own.
    pub fn new(model: &dyn Model, wanted: bool) -> Self {
        let able = wanted && has_flash_attention(model.device(), model.kind(), model.config().head_dim);
        let stream = match model.device() {
            Device::Cuda(index) if able => OwnStream::enter(index),
            _ => None,
        };
        Self { sizes: Vec::new(), stream, replayed: 0 }
    }

    /// Passes that were told at once.
    pub fn replayed(&self) -> u64 {
        self.replayed
    }

    /// Adds the gradient of `scale *` the batch's summed loss to `params`; that product. See [`Model::backward`].
    ///
    /// # Errors
    /// Its; if the loss is not finite, the error says what else is not, and gradients that are not may have been added.
    pub fn backward(
        &mut self,
        model: &dyn Model,
        params: &[Param],
        batch: &Batch,
        scale: f64,
        recompute: usize,
    ) -> Result<f64> {
        if self.suits(model, batch, recompute)
            && let Some(loss) = self.told(model, params, batch, scale)?
        {
            let value = loss.double_value(&[]);
            return if value.is_finite() { Ok(value) } else { Err(not_finite(value, params)) };
        }
        backward(model, params, batch, scale, recompute)
    }

    fn suits(&self, model: &dyn Model, batch: &Batch, recompute: usize) -> bool {
        self.stream.is_some()
            && recompute == 0
            && batch.is_apart()
            && batch.longest() <= model.config().max_positions
            && required_flops(model, &batch.work()) <= LARGEST
            && !profiling()
    }

    /// The loss, of which nobody knows yet whether it is finite; none if there is no room.
    fn told(
        &mut self,
        model: &dyn Model,
        params: &[Param],
        batch: &Batch,
        scale: f64,
    ) -> Result<Option<Tensor>> {
        let fits = |size: &Size| batch.fits(&size.slots) && size.slots.tokens() <= 2 * batch.tokens + 64;
        if !self.sizes.iter().any(fits) && self.sizes.len() < SIZES {
            self.sizes.push(Size { slots: batch.slots(), ran: false, pass: None });
        }
        let fitting = (0..self.sizes.len()).filter(|&i| fits(&self.sizes[i]));
        let Some(at) = fitting.min_by_key(|&i| self.sizes[i].slots.tokens()) else { return Ok(None) };
        batch.put(&mut self.sizes[at].slots, scale)?;
        if self.sizes[at].ran && self.sizes[at].pass.is_none() {
            // What is made once for a step must be made in each.
            params.iter().for_each(|p| changed(&p.tensor));
            let beside = self.sizes.iter().find_map(|size| size.pass.as_ref()).map(|(_, graph)| graph);
            let slots = &self.sizes[at].slots;
            let made = self.stream.as_ref().map(|s| Graph::record(s, beside, || model.gradients(slots)));
            match made {
                Some(Ok((graph, Ok(loss)))) => {
                    // Its copies are its own: another graph may write over them.
                    params.iter().for_each(|p| changed(&p.tensor));
                    self.sizes[at].pass = Some((loss, graph));
                }
                // Whoever cannot record, runs.
                _ => {
                    params.iter().for_each(|p| changed(&p.tensor));
                    self.sizes.clear();
                    self.stream = None;
                    return Ok(None);
                }
            }
        }
        let size = &mut self.sizes[at];
        size.ran = true;
        let Some((loss, graph)) = &size.pass else { return model.gradients(&size.slots).map(Some) };
        graph.replay()?;
        self.replayed += 1;
        Ok(Some(loss.shallow_clone()))
    }
}

/// The model's backward pass, told operation by operation.
pub(crate) fn backward(
    model: &dyn Model,
    params: &[Param],
    batch: &Batch,
    scale: f64,
    recompute: usize,
) -> Result<f64> {
    model.backward(batch.texts(), batch.labels(), scale, recompute).map_err(|e| match e.kind() {
        ErrorKind::NonFinite => named(e, params),
        _ => e,
    })
}

fn not_finite(loss: f64, params: &[Param]) -> Error {
    named(Error::non_finite(format!("the loss is {loss}")), params)
}

/// The error, with what is not finite, as far as one can see.
fn named(error: Error, params: &[Param]) -> Error {
    let bad = params.iter().find(|p| !p.tensor.norm().double_value(&[]).is_finite());
    let culprit = match bad {
        Some(p) => format!("the parameter {} is not finite", p.key()),
        None => "all parameters are finite, so it arose in the forward pass".to_owned(),
    };
    Error::non_finite(format!("{error}; {culprit}"))
        .hint("lower the learning rate; with bf16, try --dtype f32; look at the lines named")
}

//! The gradient of the loss, with a choice of what is kept from the forward pass: of the lowest blocks their input
//! alone. They are run again, one at a time, when the gradient comes down to them (Chen et al. 2016,
//! arXiv 1604.06174).

use lora_core::{Error, Mode, Result};
use tch::{Kind, Tensor};
use tch_ext::{Function, attach};

use super::{Around, Block, Llama};
use crate::model::Texts;
use crate::ops::{IGNORE, cross_entropy_of, rms_norm};
use crate::slots::Slots;

pub(super) fn backward(
    model: &Llama,
    texts: Texts<'_>,
    labels: &Tensor,
    scale: f64,
    recompute: usize,
) -> Result<f64> {
    let around = model.around(texts, &[], Mode::Train)?;
    let (again, kept) = model.blocks.split_at(recompute.min(model.blocks.len()));
    let seed =
        (!again.is_empty()).then(|| Tensor::randint_low(0, i64::MAX, [1], (Kind::Int64, tch::Device::Cpu)));
    let seed = seed.map_or(0, |t| t.int64_value(&[0]));
    let run = |i: usize, x: &Tensor| {
        // Dropout must drop the same, whenever the block is run.
        tch::manual_seed(seed.wrapping_add(i as i64));
        again[i].forward(x, &model.config, &around, None)
    };
    // Below the first that trains none is run again.
    let lowest = again.iter().position(Block::trains);
    let mut inputs = Vec::new();
    let mut x = model.embed(texts.ids())?;
    let guard = tch::no_grad_guard();
    for i in 0..again.len() {
        let y = run(i, &x);
        let input = std::mem::replace(&mut x, y);
        if lowest.is_some_and(|lowest| i >= lowest) {
            inputs.push(input);
        }
    }
    drop(guard);

    let border = x.detach().set_requires_grad(lowest.is_some());
    drop(x);
    // Where the gradient comes down to them, if it does.
    let below = lowest.map(|lowest| (lowest, border.shallow_clone()));
    let labels = labels.reshape(-1);
    let rows = labels.not_equal(IGNORE).nonzero().reshape(-1);
    let targets = labels.index_select(0, &rows);
    let loss = loss(model, kept, border, &around, (&rows, &targets)) * scale;
    let value = loss.double_value(&[]);
    if !value.is_finite() {
        return Err(Error::non_finite(format!("the loss is {value}")));
    }
    loss.f_backward()?;

    let Some((lowest, border)) = below else { return Ok(value) };
    let mut dy = border.grad();
    drop(border);
    while let Some(x) = inputs.pop() {
        let i = lowest + inputs.len();
        let x = x.detach().set_requires_grad(i > lowest);
        let y = run(i, &x);
        with_gradient(&y, dy)?;
        dy = x.grad();
    }
    Ok(value)
}

/// See [`crate::Model::gradients`].
pub(super) fn gradients(model: &Llama, slots: &Slots) -> Result<Tensor> {
    let angles = model.rope.angles(&slots.positions(), model.embedding.kind());
    let around = Around { angles, texts: Some(slots.pieces()?), mode: Mode::Train };
    let (rows, targets) = slots.learnt();
    let x = model.embed(&slots.ids())?;
    let loss = loss(model, &model.blocks, x, &around, (&rows, &targets)) * slots.scale();
    loss.f_backward()?;
    Ok(loss.detach())
}

/// The summed loss of these rows of what the last blocks make of x.
fn loss(
    model: &Llama,
    blocks: &[Block],
    mut x: Tensor,
    around: &Around,
    (rows, targets): (&Tensor, &Tensor),
) -> Tensor {
    for block in blocks {
        x = block.forward(&x, &model.config, around, None);
    }
    let hidden = rms_norm(&x, &model.norm, model.config.rms_norm_eps).tensor();
    drop(x);
    let hidden = hidden.reshape([-1, model.config.hidden_size]);
    cross_entropy_of(&hidden, rows, targets, &model.head, Mode::Train)
}

/// The backward pass of y, whose gradient is `dy`.
fn with_gradient(y: &Tensor, dy: Tensor) -> Result<()> {
    struct Given(Option<Tensor>);
    impl Function for Given {
        fn backward(&mut self, _: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
            vec![self.0.take()]
        }
    }
    if !y.requires_grad() {
        return Ok(());
    }
    let root = Tensor::zeros([1], (Kind::Float, y.device()));
    let root = attach(&[&root], &[y], Given(Some(dy)))?.swap_remove(0);
    Ok(root.f_backward()?)
}

impl Block {
    /// Whether anything in it wants a gradient.
    fn trains(&self) -> bool {
        self.parts().iter().any(|layer| layer.constant().is_none())
    }
}

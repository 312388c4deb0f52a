//! The gradient of the loss, with a choice of what is kept from the forward pass: of the lowest blocks their input
//! alone. They are run again, one at a time, when the gradient comes down to them (Chen et al. 2016,
//! arXiv 1604.06174).

use lora_core::{Error, Mode, Result};
use tch::{Kind, Tensor};
use tch_ext::{Function, attach};

use super::{Block, Llama};
use crate::model::{Model, Texts};
use crate::ops::{cross_entropy, rms_norm};

pub(super) fn backward(
    model: &Llama,
    texts: Texts<'_>,
    labels: &Tensor,
    scale: f64,
    recompute: usize,
) -> Result<f64> {
    let around = model.around(texts, 0, Mode::Train)?;
    let (again, kept) = model.blocks.split_at(recompute.min(model.blocks.len()));
    let seed =
        (!again.is_empty()).then(|| Tensor::randint_low(0, i64::MAX, [1], (Kind::Int64, tch::Device::Cpu)));
    let seed = seed.map_or(0, |t| t.int64_value(&[0]));
    let run = |i: usize, x: &Tensor| {
        // Dropout must drop the same, whenever the block is run.
        tch::manual_seed(seed.wrapping_add(i as i64));
        again[i].forward(x, &model.config, &around, None)
    };
    let mut inputs = Vec::new();
    let mut x = model.embed(texts);
    for i in 0..again.len() {
        let y = tch::no_grad(|| run(i, &x));
        inputs.push(std::mem::replace(&mut x, y));
    }

    let lowest = again.iter().position(Block::trains);
    let border = x.detach().set_requires_grad(lowest.is_some());
    let mut x = border.shallow_clone();
    for block in kept {
        x = block.forward(&x, &model.config, &around, None);
    }
    let hidden = rms_norm(&x, &model.norm, model.config.rms_norm_eps).tensor();
    drop(x);
    let hidden = hidden.reshape([-1, model.config.hidden_size]);
    let (sum, _) = cross_entropy(&hidden, &labels.reshape(-1), model.head(), Mode::Train);
    drop(hidden);
    let loss = sum * scale;
    let value = loss.double_value(&[]);
    if !value.is_finite() {
        return Err(Error::non_finite(format!("the loss is {value}")));
    }
    loss.f_backward()?;

    let Some(lowest) = lowest else { return Ok(value) };
    let mut dy = border.grad();
    drop(border);
    for (i, x) in inputs.into_iter().enumerate().skip(lowest).rev() {
        let x = x.detach().set_requires_grad(i > lowest);
        let y = run(i, &x);
        with_gradient(&y, dy)?;
        dy = x.grad();
    }
    Ok(value)
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

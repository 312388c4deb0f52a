//! The update and top holes: what is trained beside the frozen weight.

use std::fmt::Debug;

use tch::Tensor;

use crate::factors::Factors;
use crate::footprint::Built;
use crate::weight::{BaseWeight, whole};

/// Whether dropout acts. An argument, never state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Dropout on.
    Train,
    /// Dropout off.
    Eval,
}

/// A trainable map from a frozen `W [out, in]` to an effective `W' [out, in]`.
///
/// `effective` and `params` are enough for a new method to be right everywhere: training, merging, saving,
/// composing. `factors` and `row_norms` are shortcuts, which the laws of `testkit` hold to the definition.
pub trait Adapter: Debug + Send {
    /// The definition: `W'` from `w [out, in]`, in w's dtype, differentiable in the parameters.
    fn effective(&self, w: &Tensor) -> Tensor;

    /// The trainable leaves, named as in the adapter file (`lora_A.weight`), f32 masters.
    fn params(&self) -> Vec<(&'static str, &Tensor)>;

    /// The normal form, if W' has it: it is never built then. `w` is the base's weight, dense ([`BaseWeight::bare`]), in the
    /// dtype that is computed in.
    fn factors(&self, base: &dyn BaseWeight, w: &Tensor) -> Option<Factors<'_>> {
        let _ = (base, w);
        None
    }

    /// What building W' holds of memory, where there is no normal form: for plans. `None`: nobody knows, and no run of it is
    /// planned.
    fn built(&self) -> Option<Built> {
        None
    }

    /// Gives up what it has made from the weight that it lay beside: it comes to another.
    fn forget(&mut self) {}

    /// The chance with which [`Mode::Train`] leaves out a number of the input.
    fn dropout(&self) -> f64 {
        0.0
    }

    /// `‖W'ᵢ‖` of each row `[out]` in the master dtype, without gradient; `w` as for `factors`.
    fn row_norms(&self, base: &dyn BaseWeight, w: &Tensor) -> Tensor {
        let _guard = tch::no_grad_guard();
        let w = self.effective(&whole(base, w));
        w.square().sum_dim_intlist([1i64].as_slice(), false, None).sqrt()
    }
}

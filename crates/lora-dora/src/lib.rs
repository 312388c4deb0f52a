//! DoRA, weight-decomposed low-rank adaptation: `W' = m ∘ V / ‖V‖`, `V = W + s B A`, the norm of each row, with
//! a trained magnitude `m [out]` (Liu et al. 2024, arXiv 2402.09353, equation 5).
//!
//! The norm takes no part in the gradient (section 4.3 of the paper), and is computed from factors: nothing of
//! size `[out, in]` is built in the forward pass. Any update can lie inside; LoRA's is the default.
//!
//! In a tch program of one's own:
//!
//! ```
//! use lora_core::{DENSE, Init, LORA, Linear, Mode, Recipe};
//! use tch::{Device, Kind, Tensor};
//!
//! let options = (Kind::Float, Device::Cpu);
//! let mut layer = Linear::dense(Tensor::randn([32, 64], options), None);
//! let recipe = Recipe::parse("dora", &[DENSE, LORA, lora_dora::DORA])?;
//! let adapter = recipe.adapter(layer.base(), 8, 16.0, 0.0, Init::Kaiming)?;
//! layer.attach("mine", adapter)?;
//!
//! let x = Tensor::randn([4, 64], options);
//! let loss = layer.forward(&x, Mode::Train).square().mean(Kind::Float);
//! loss.backward();
//! for (name, parameter) in layer.adapter().unwrap().params() {
//!     assert!(parameter.grad().defined(), "{name}");
//! }
//! layer.merge()?; // from here on it costs what the bare layer costs
//! # Ok::<(), lora_core::Error>(())
//! ```

use std::cell::RefCell;

use lora_core::{Adapter, BaseWeight, Built, Factors, Gain, Part, Result, Variant};
use tch::{Kind, Tensor};
use tch_ext::cuda::{Arg, Source};

/// Fills the top hole. PEFT: `use_dora`, `tuners/lora/dora.py`.
pub const DORA: Variant = Variant {
    name: "dora",
    about: "a trained magnitude for each row, the update turns only the direction",
    paper: "Liu et al. 2024, arXiv 2402.09353",
    flag: Some("use_dora"),
    part: Part::Top(|direction, base| Ok(Box::new(Dora::new(direction, base)?))),
};

/// A magnitude `m [out]` (f32) over a direction.
#[derive(Debug)]
pub struct Dora {
    direction: Box<dyn Adapter>,
    magnitude: Tensor,
    known: RefCell<Option<Known>>,
}

/// A gain and its slope, for as long as nothing trains.
#[derive(Debug)]
struct Known {
    /// The parameters' versions, and the dtype of the weight: what they were made from. The weight stays, until
    /// [`Adapter::forget`].
    of: (Vec<i64>, Kind),
    value: Tensor,
    slope: Tensor,
}

impl Dora {
    /// Starts with `m = ‖V‖`, so that `W' = V`. In f32, where PEFT rounds m to a bf16 base's dtype and so
    /// moves the output at step 0.
    ///
    /// # Errors
    /// None today; a top may refuse a base.
    pub fn new(direction: Box<dyn Adapter>, base: &dyn BaseWeight) -> Result<Self> {
        let magnitude = direction.row_norms(base, &base.bare(base.kind())).set_requires_grad(true);
        Ok(Self { direction, magnitude, known: RefCell::default() })
    }

    /// `m / ‖V‖`, and its slope in m; a row of zeros, which has no direction, is left alone.
    fn gain(&self, norms: &Tensor) -> (Tensor, Tensor) {
        let zero = norms.eq(0.0);
        let norms = norms.masked_fill(&zero, f64::INFINITY);
        (&self.magnitude / &norms + zero, norms.reciprocal())
    }

    /// The same in one kernel, through which no gradient flows.
    fn gain_on_cuda(&self, norms: &Tensor) -> Option<(Tensor, Tensor)> {
        const THREADS: usize = 256;
        let (ready, rows) = (SOURCE.on(&[norms], 1)?, norms.numel());
        let (value, slope) = (norms.empty_like(), norms.empty_like());
        let of = |t| Arg::Of(t, norms.kind(), rows);
        let args = [of(&value), of(&slope), of(&self.magnitude), of(norms), Arg::Int(rows)];
        ready.run("gain", rows.div_ceil(THREADS), THREADS, &args);
        Some((value, slope))
    }
}

// Each thread writes two of `rows` numbers, and reads two.
static SOURCE: Source = tch_ext::cuda_source!("dora", include_str!("gain.cu"));
/// The kernels of this crate, to be compiled for devices that are not here.
pub const CUDA_SOURCES: [&Source; 1] = [&SOURCE];

impl Adapter for Dora {
    fn effective(&self, w: &Tensor) -> Tensor {
        let v = self.direction.effective(w).to_kind(self.magnitude.kind());
        let norms = v.detach().square().sum_dim_intlist([1i64].as_slice(), false, None).sqrt();
        (v * self.gain(&norms).0.unsqueeze(1)).to_kind(w.kind())
    }

    fn params(&self) -> Vec<(&'static str, &Tensor)> {
        let mut params = self.direction.params();
        params.push(("lora_magnitude_vector", &self.magnitude));
        params
    }

    fn forget(&mut self) {
        *self.known.get_mut() = None;
        self.direction.forget();
    }

    fn dropout(&self) -> f64 {
        self.direction.dropout()
    }

    fn factors(&self, base: &dyn BaseWeight, w: &Tensor) -> Option<Factors<'_>> {
        let factors = self.direction.factors(base, w).filter(|f| f.gain.is_none())?;
        let versions = self.params().iter().map(|(_, t)| t.internal_version()).collect();
        let of = (versions, w.kind());
        let mut known = self.known.borrow_mut();
        let now = known.take().filter(|known| known.of == of).unwrap_or_else(|| {
            let _guard = tch::no_grad_guard();
            let norms = self.direction.row_norms(base, w);
            let (value, slope) = self.gain_on_cuda(&norms).unwrap_or_else(|| self.gain(&norms));
            Known { of, value, slope }
        });
        let (value, slope) = (now.value.shallow_clone(), now.slope.shallow_clone());
        *known = Some(now);
        Some(Factors { gain: Some(Gain { magnitude: &self.magnitude, value, slope }), ..factors })
    }

    /// The gradient needs V. It passes as that of W', of V, and of the magnitude before rows are summed.
    fn built(&self) -> Option<Built> {
        let Built { kept, passing } = self.direction.built()?;
        Some(Built { kept: kept + 1, passing: passing.max(3) })
    }

    fn row_norms(&self, _: &dyn BaseWeight, _: &Tensor) -> Tensor {
        self.magnitude.detach().abs()
    }
}

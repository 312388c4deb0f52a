//! Random layers.

use std::sync::{Mutex, PoisonError};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRng, TestRunner};
use tch::{Kind, Tensor};
use tch_ext::cuda::here;

use crate::{AdapterConfig, Init, Linear, Linears, Recipe, Variant};

/// A random layer and adapter.
#[derive(Debug, Clone)]
pub struct Case {
    /// Rows of W.
    pub out: i64,
    /// Columns of W.
    pub inp: i64,
    /// Rank.
    pub rank: i64,
    /// Alpha.
    pub alpha: f64,
    /// How A starts.
    pub init: Init,
    /// The dtype of W and x.
    pub kind: Kind,
    /// Whether the layer has a bias.
    pub bias: bool,
    /// Seed of all numbers.
    pub seed: i64,
}

fn cases() -> impl Strategy<Value = Case> {
    let sizes =
        (1i64..48, 1i64..48).prop_flat_map(|(out, inp)| (Just(out), Just(inp), 1..=out.min(inp).min(12)));
    let kinds = prop::sample::select(vec![Kind::Double, Kind::Float, Kind::BFloat16]);
    let inits = prop::sample::select(vec![Init::Kaiming, Init::Gaussian]);
    (sizes, 0.25f64..32.0, inits, kinds, any::<bool>(), 0i64..1 << 40).prop_map(
        |((out, inp, rank), alpha, init, kind, bias, seed)| {
            // A result of few numbers may cancel down to bf16's rounding: there is nothing to compare then.
            // Nor in f32, where W and its update may cancel in a row of one or two weights.
            let least = match kind {
                Kind::BFloat16 => 8,
                Kind::Float => 4,
                _ => 1,
            };
            Case { out: out.max(least), inp: inp.max(least), rank, alpha, init, kind, bias, seed }
        },
    )
}

/// Runs `law` on 256 random cases of the recipe; panics with the smallest case that breaks it.
pub fn check(spec: &str, variants: &[Variant], law: fn(&Recipe, &[Variant], &Case) -> Result<(), String>) {
    // libtorch's generator is one for all threads: two laws at once would draw each other's numbers.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let recipe = Recipe::parse(spec, variants).expect("the recipe parses");
    let config = Config { cases: 256, failure_persistence: None, ..Config::default() };
    // The same cases in every run: a red build is repeated by running it again.
    let random = TestRng::deterministic_rng(config.rng_algorithm);
    let result = TestRunner::new_with_rng(config, random)
        .run(&cases(), |case| law(&recipe, variants, &case).map_err(TestCaseError::fail));
    if let Err(e) = result {
        panic!("{spec}: {e}");
    }
}

/// Numbers of mean 0 and variance 1 that depend on `seed` alone: libtorch's generator is one for all threads.
pub fn noise(size: &[i64], seed: i64) -> Tensor {
    let n: i64 = size.iter().product();
    let phase = (seed % 1_000_003) as f64 * 0.618_033_988_749_894_9;
    let hash = (Tensor::arange(n, (Kind::Double, here())) * 12.9898 + phase).sin() * 43758.5453;
    ((&hash - hash.floor()) * 2.0 - 1.0).view(size) * 3f64.sqrt()
}

/// `‖a − b‖ / ‖b‖`, in f64.
pub fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    let scale = b.norm().double_value(&[]);
    (a - b).norm().double_value(&[]) / scale.max(1e-30)
}

impl Case {
    /// What rounding in this dtype may do to a result.
    pub fn tolerance(&self) -> f64 {
        match self.kind {
            Kind::Double => 1e-9,
            Kind::Float => 2e-4,
            _ => 4e-2,
        }
    }

    /// `x [16, in]`.
    pub fn input(&self) -> Tensor {
        noise(&[16, self.inp], self.seed ^ 1).to_kind(self.kind)
    }

    /// A frozen layer on the recipe's storage.
    pub fn layer(&self, recipe: &Recipe) -> Linear {
        let random = |size: &[i64]| noise(size, self.seed).to_kind(self.kind);
        let base = recipe.store(random(&[self.out, self.inp])).expect("a finite weight is stored");
        Linear::new(base, self.bias.then(|| random(&[self.out])))
    }

    /// Attaches a fresh adapter.
    pub fn attach(&self, recipe: &Recipe, layer: &mut Linear) {
        let adapter = recipe.adapter(layer.base(), self.rank, self.alpha, 0.0, self.init);
        layer.attach("a", adapter.expect("the rank fits")).expect("the name is free");
    }

    /// A layer with an adapter that was, in effect, trained.
    pub fn trained(&self, recipe: &Recipe) -> Linear {
        let mut layer = self.layer(recipe);
        self.attach(recipe, &mut layer);
        scramble(&layer, self.seed);
        layer
    }
}

/// Moves every parameter of the active adapter.
fn scramble(layer: &Linear, seed: i64) {
    let _guard = tch::no_grad_guard();
    for (i, (_, p)) in layer.adapter().map(|a| a.params()).unwrap_or_default().into_iter().enumerate() {
        let moved = noise(&p.size(), seed ^ (2 + i as i64)).to_kind(p.kind());
        // Matrices anew, vectors (magnitudes) by a fifth: the same in every run, whatever the start drew.
        let value = if p.dim() > 1 { moved * 0.3 } else { p.detach() * (moved * 0.2 + 1.0) };
        p.detach().copy_(&value);
    }
}

/// Two layers with names, for what is done to whole models.
#[derive(Debug)]
pub struct Toy(pub [Linear; 2]);

const NAMES: [&str; 2] = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"];

impl Toy {
    /// Twice the case's layer, without adapters.
    pub fn new(case: &Case, recipe: &Recipe) -> Self {
        Self([case.layer(recipe), Case { seed: case.seed ^ 3, ..case.clone() }.layer(recipe)])
    }

    /// A configuration for all layers.
    pub fn config(case: &Case) -> AdapterConfig {
        AdapterConfig {
            r: case.rank,
            lora_alpha: case.alpha,
            init: case.init,
            target_modules: crate::Targets::AllLinear,
            ..AdapterConfig::default()
        }
    }

    /// Moves every parameter of the active adapters.
    pub fn scramble(&self, seed: i64) {
        self.0.iter().enumerate().for_each(|(i, l)| scramble(l, seed ^ (i as i64) << 8));
    }
}

impl Linears for Toy {
    fn linears(&self) -> Vec<(String, &Linear)> {
        NAMES.iter().map(|n| n.to_string()).zip(&self.0).collect()
    }

    fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        NAMES.iter().map(|n| n.to_string()).zip(&mut self.0).collect()
    }
}

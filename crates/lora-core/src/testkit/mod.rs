//! For the tests and benches of variant crates (feature `testkit`): the laws that every recipe obeys, and the
//! bench of a layer.
//!
//! ```ignore
//! // tests/laws.rs of a variant crate
//! lora_core::law_tests!(dora: "dora", &[DENSE, LORA, DORA]);
//! // benches/layer.rs
//! lora_core::testkit::layer_bench("dora", &[DENSE, LORA, DORA]);
//! ```

mod bench;
mod case;
mod laws;

use tch::Tensor;

use crate::Adapter;

pub use bench::layer_bench;
pub use case::{Case, Toy, check, noise, relative};
pub use laws::{
    attaching_changes_nothing, merging_keeps_the_function, parameters_get_gradients, saving_is_the_identity,
    shortcut_is_the_definition,
};

/// An adapter whose W' nobody can have: it panics.
#[derive(Debug)]
pub struct Faulty;

impl Adapter for Faulty {
    fn effective(&self, _: &Tensor) -> Tensor {
        panic!("planted")
    }

    fn params(&self) -> Vec<(&'static str, &Tensor)> {
        Vec::new()
    }
}

/// A module of tests, one a law, each of 256 random cases over shapes, ranks, scales, dtypes and seeds.
#[macro_export]
macro_rules! law_tests {
    ($module:ident: $spec:expr, $variants:expr) => {
        mod $module {
            use super::*;
            use $crate::testkit;

            #[test]
            fn attaching_changes_nothing() {
                testkit::check($spec, $variants, testkit::attaching_changes_nothing);
            }

            #[test]
            fn parameters_get_gradients() {
                testkit::check($spec, $variants, testkit::parameters_get_gradients);
            }

            #[test]
            fn shortcut_is_the_definition() {
                testkit::check($spec, $variants, testkit::shortcut_is_the_definition);
            }

            #[test]
            fn merging_keeps_the_function() {
                testkit::check($spec, $variants, testkit::merging_keeps_the_function);
            }

            #[test]
            fn saving_is_the_identity() {
                testkit::check($spec, $variants, testkit::saving_is_the_identity);
            }
        }
    };
}

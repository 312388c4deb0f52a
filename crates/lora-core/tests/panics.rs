//! A panic in an operation leaves the thread its gradients.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lora_core::testkit::Faulty;
use lora_core::{Adapter, Init, LORA, Linear, Recipe, row_norms_sq};
use tch::{Device, Kind, Tensor};

#[test]
fn a_panic_leaves_the_thread_its_gradients() {
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let (w, narrow, row) = (zeros(&[6, 5]), zeros(&[6, 3]), zeros(&[5]));
    let mut faulty = Linear::dense(w.shallow_clone(), None);
    faulty.attach("a", Box::new(Faulty)).unwrap();
    let recipe = Recipe::parse("lora", &[LORA]).unwrap();
    let lora = recipe.adapter(faulty.base(), 2, 4.0, 0.0, Init::Kaiming).unwrap();
    let operations: [(&str, &dyn Fn() -> Tensor); 4] = [
        ("W'", &|| faulty.effective(Kind::Float)),
        ("norms of W'", &|| Faulty.row_norms(faulty.base(), &w)),
        ("norms from factors", &|| lora.row_norms(faulty.base(), &narrow)),
        ("norms of W", &|| row_norms_sq(&row)),
    ];
    for (what, operation) in operations {
        assert!(catch_unwind(AssertUnwindSafe(operation)).is_err(), "{what}");
        assert!(tch_ext::grad_enabled(), "{what}");
    }
}

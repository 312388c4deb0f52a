//! What a run is charged whose parameters have left the finite range.

use lora::train::{Event, train_privately};
use lora::{AdapterConfig, ErrorKind, Promise, params};

use super::{RANDOM, data, leaves, model, training};

/// A step that follows: every text would be left out, for the price of any other step.
#[test]
fn what_has_diverged_is_not_charged() {
    let _alone = RANDOM.lock();
    let folder = tempfile::tempdir().unwrap();
    let promise =
        Promise { epsilon: 4.0, delta: Some(1e-5), clip: 1.0, ledger: folder.path().join("ledger") };
    let model = model("lora", &AdapterConfig::default());
    let (rows, all) = (data(&model, 40), params(&model, "a"));
    let terms = promise.terms(40, 8, 3).unwrap();
    let mut release =
        promise.release(&rows, (8, terms), leaves(&model).numel(), "a run", b"a model").unwrap();
    let mut each = |event: &Event| {
        if let Event::Step(_) = event {
            tch::no_grad(|| drop(all[0].tensor.shallow_clone().fill_(f64::NAN)));
        }
        Ok(())
    };
    let (trained, training) = (params(&model, "a"), training(4, 2, 3));
    let done = train_privately(&model, trained, &rows, None, &training, &mut release, &mut each);
    let e = done.unwrap_err();
    assert!(e.kind() == ErrorKind::NonFinite && e.to_string().contains("step 1 left"), "{e}");
    assert_eq!(release.ledger().charges(), 1);
}

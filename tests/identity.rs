//! What saved runs, and ledgers of private ones, are known by: the text of their settings. Another text makes them other runs, which
//! begin anew, and are charged again.

use lora::AdapterConfig;
use lora::train::{Stop, TrainConfig};

#[test]
fn settings_have_the_text_that_they_had() {
    let training = TrainConfig { stop: Some(Stop::default()), ..TrainConfig::default() };
    assert_eq!(
        format!("{training:?}"),
        "TrainConfig { epochs: 2.0, max_steps: None, batch_size: 8, accumulate: 1, learning_rate: 0.0002, schedule: Cosine, \
         warmup: 0.05, adamw: AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }, clip: Some(1.0), \
         proximal: None, recompute: 0, record: true, seed: 42, eval_every: None, save: None }"
    );
    let config = AdapterConfig { trained: true, ..AdapterConfig::default() };
    assert_eq!(
        format!("{config:?}"),
        "AdapterConfig { base_model: None, revision: None, task_type: Some(\"CAUSAL_LM\"), r: 8, lora_alpha: 8.0, \
         lora_dropout: 0.0, target_modules: AllLinear, exclude_modules: None, layers_to_transform: None, layers_pattern: [], \
         rank_pattern: [], alpha_pattern: [], init: Kaiming, flags: {} }"
    );
}

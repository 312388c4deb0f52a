//! By the allocator's count: at no moment of a training step are more dequantised weights alive than those of the layers
//! that read one input, whatever is recomputed.

use lora::AdapterConfig;
use lora::model::{Keep, Llama, Model, Texts};
use lora::tch_ext::memory;
use tch::{Device, Kind, Tensor};

#[path = "common/small_model.rs"]
mod small_model;
use small_model::{HIDDEN, INNER, write_model};

/// One test, since the allocator is the process's own.
#[test]
fn no_more_is_dequantised_at_a_time_than_what_one_input_meets() {
    assert!(memory::manage());
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let ids = Tensor::arange(128, (Kind::Int64, Device::Cpu)).view([2, 64]);
    let largest = (2 * INNER * HIDDEN * 2) as u64;
    for spec in ["qlora", "qlora:fp4:128:single", "qlora+dora"] {
        let recipe = lora::recipe(spec).unwrap();
        let checkpoint = lora::open(folder.path()).unwrap();
        let keep = Keep { storage: recipe.storage(), packed: None, skip: &[] };
        let mut model = Llama::load(checkpoint.as_ref(), Kind::BFloat16, Device::Cpu, keep).unwrap();
        lora::attach(&mut model, "a", &recipe, &AdapterConfig { r: 4, ..Default::default() }).unwrap();
        for recompute in [0, 3, usize::MAX] {
            // DoRA takes the norms of the weights once, at first.
            for first in [true, false] {
                memory::reset_peak();
                model.backward(Texts::Rows(&ids), &ids, 1.0, recompute).unwrap();
                let most = memory::most_alive();
                let most = most.iter().find(|part| part.name == "dequantised").map_or(0, |part| part.bytes);
                if !first {
                    assert_eq!(most, largest, "{spec}, recompute {recompute}");
                }
            }
        }
    }
}

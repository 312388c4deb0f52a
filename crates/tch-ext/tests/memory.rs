//! The allocator of CPU tensors.

use tch::{Device, Kind, Tensor};
use tch_ext::{Region, memory};

static MINE: Region = Region::new("mine");

/// One test, since the allocator is the process's own.
#[test]
fn cpu_memory_is_counted_reused_and_known_by_region() {
    assert!(memory::cpu().is_none());
    let older = Tensor::ones([1 << 16], (Kind::Float, Device::Cpu));
    assert!(memory::manage() && memory::manage());
    drop(older);
    let options = (Kind::Float, Device::Cpu);
    let place = |t: &Tensor| t.data_ptr();

    let (first, outside) = {
        let _mine = MINE.enter();
        (Tensor::zeros([1 << 18], options), Tensor::zeros([1 << 17], options))
    };
    let usage = memory::cpu().unwrap();
    assert_eq!((usage.current, usage.peak), ((1 << 20) + (1 << 19), (1 << 20) + (1 << 19)));
    let old = place(&first);
    drop(first);
    let again = Tensor::ones([1 << 18], options);
    assert_eq!(place(&again), old, "what is given back is used first");
    assert_eq!(old as usize % 64, 0);
    assert_eq!(memory::alive_at_peak(), [memory::Part { name: "mine", bytes: 3 << 19 }]);
    drop(outside);
    memory::reset_peak();
    assert_eq!(memory::alive_at_peak(), [memory::Part { name: "other", bytes: 1 << 20 }]);

    // Of a region, the most at any time, whatever else there was then.
    for bytes in [1, 3, 2] {
        let _mine = MINE.enter();
        drop(Tensor::zeros([bytes << 14], options));
    }
    let most = |name| memory::most_alive().into_iter().find(|part| part.name == name).map(|part| part.bytes);
    assert_eq!((most("mine"), most("other")), (Some(3 << 16), Some(1 << 20)));

    // What is trimmed comes back as memory, and sums are right all the while.
    drop(again);
    memory::trim();
    let many: Vec<Tensor> = (1..200).map(|i| Tensor::full([i * 997], i, options)).collect();
    for (i, t) in many.iter().enumerate().rev().step_by(2) {
        assert_eq!(t.min().double_value(&[]), (i + 1) as f64);
    }
    drop(many);
    assert_eq!(memory::cpu().unwrap().current, 0);
    let error = Tensor::f_empty([1 << 50], options).unwrap_err().to_string();
    assert!(error.contains("cannot allocate"), "{error}");
}

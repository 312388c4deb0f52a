//! Parts of a packed weight that do not fit one another: an error that says what is wrong, before anything large is
//! allocated.

use std::collections::BTreeMap;

use lora_core::{BaseWeight, Packing, Parts, Result};
use lora_qlora::{Bitsandbytes, FourBit, Options};
use tch::{Device, Kind, Tensor};

const STATE: &str = "quant_state.bitsandbytes__nf4";

type Tensors = BTreeMap<String, Tensor>;

fn good(options: &str) -> Tensors {
    let w = Tensor::randn([9, 70], (Kind::Float, Device::Cpu));
    FourBit::new(&w, Options::parse(options).unwrap()).unwrap().parts().unwrap().into_iter().collect()
}

fn read(tensors: &Tensors) -> Result<Box<dyn BaseWeight>> {
    let names: Vec<&str> = tensors.keys().map(String::as_str).collect();
    let load = |part: &str| Ok(tensors[part].shallow_clone());
    let parts = Parts { names: &names, load: &load };
    Bitsandbytes.describe(&parts)?;
    Bitsandbytes.read(&parts, Kind::Float)
}

/// The state with one piece of its text replaced.
fn state(tensors: &mut Tensors, from: &str, to: &str) {
    let text: Vec<u8> = tensors[STATE].iter::<i64>().unwrap().map(|b| b as u8).collect();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains(from), "{text}");
    tensors.insert(STATE.into(), Tensor::from_slice(text.replace(from, to).as_bytes()));
}

fn refused(options: &str, change: impl Fn(&mut Tensors), says: &str) {
    let mut tensors = good(options);
    assert!(read(&tensors).is_ok());
    change(&mut tensors);
    let e = read(&tensors).expect_err(says);
    assert!(e.to_string().contains(says), "`{e}` does not say `{says}`");
    assert!(e.hint_text().is_some(), "`{e}` has no hint");
}

fn shorten(tensors: &mut Tensors, part: &str) {
    let t = tensors[part].reshape([-1]);
    tensors.insert(part.into(), t.narrow(0, 0, t.size()[0] - 1).copy());
}

fn spoil(tensors: &mut Tensors, part: &str, value: f64) {
    let t = tensors[part].copy();
    let _ = t.view([-1]).narrow(0, 0, 1).fill_(value);
    tensors.insert(part.into(), t);
}

#[test]
fn parts_that_are_missing_or_of_another_length() {
    for part in ["absmax", "nested_absmax", "nested_quant_map", "quant_map"] {
        refused("", |t| drop(t.remove(part)), &format!("its `{part}` is missing"));
        refused("", |t| shorten(t, part), &format!("`{part}` have"));
    }
    refused("", |t| shorten(t, ""), "the codes have 314 elements, where its shape asks for 315");
    refused("single", |t| shorten(t, "absmax"), "`absmax` have 9 elements");
    let twice =
        |t: &mut Tensors| drop(t.insert("absmax".into(), Tensor::zeros([20], (Kind::Uint8, Device::Cpu))));
    refused("", twice, "`absmax` have 20 elements");
}

#[test]
fn numbers_that_are_not_finite() {
    for value in [f64::NAN, f64::INFINITY] {
        for part in ["nested_absmax", "nested_quant_map", "quant_map"] {
            refused("", |t| spoil(t, part, value), &format!("`{part}` is not of finite"));
        }
        refused("single", |t| spoil(t, "absmax", value), "`absmax` is not of finite");
    }
    refused(
        "",
        |t| state(t, "\"nested_offset\": ", "\"nested_offset\": 1e300, \"was\": "),
        "`nested_offset` of inf",
    );
}

#[test]
fn states_that_say_something_else() {
    refused("", |t| state(t, "nf4", "nf5"), "holds the state of `nf5`");
    refused("", |t| state(t, "[9, 70]", "[9, 71]"), "the codes have");
    refused("", |t| state(t, "[9, 70]", "[0, 70]"), "a weight of shape [0, 70]");
    refused("", |t| state(t, "[9, 70]", "[-9, -70]"), "a weight of shape");
    refused("", |t| state(t, "[9, 70]", "[4611686018427387904, 4]"), "a weight of shape");
    refused("", |t| state(t, "[9, 70]", "[576460752303423488, 1]"), "the codes have");
    refused("", |t| state(t, "[9, 70]", "[630]"), "a weight of shape [630]");
    refused("", |t| state(t, "\"blocksize\": 64", "\"blocksize\": 0"), "blocks of 0");
    refused("", |t| state(t, "\"blocksize\": 64", "\"blocksize\": 48"), "blocks of 48");
    refused("", |t| state(t, "\"blocksize\": 64", "\"blocksize\": -1"), "is malformed");
    refused("", |t| state(t, "256", "18446744073709551615"), "nested blocks of");
    refused("", |t| state(t, "\"nested_dtype\": \"float32\"", "\"nested_dtype\": \"float16\""), "in float16");
    refused(
        "",
        |t| state(t, "\"dtype\": \"float32\", \"shape\"", "\"dtype\": \"int8\", \"shape\""),
        "a dtype `int8`",
    );
    refused("", |t| state(t, "{", "["), "is malformed");
    refused("single", |t| state(t, "}", ", \"nested_offset\": 1.0}"), "for nested scales");
    let long =
        |t: &mut Tensors| drop(t.insert(STATE.into(), Tensor::zeros([1 << 17], (Kind::Uint8, Device::Cpu))));
    refused("", long, "131072 elements");
}

/// A type that nobody knows is told apart from damage.
#[test]
fn a_type_that_is_not_known() {
    let mut tensors = good("");
    state(&mut tensors, "nf4", "int4");
    let text = tensors.remove(STATE).unwrap();
    tensors.insert("quant_state.bitsandbytes__int4".into(), text);
    assert!(read(&tensors).unwrap_err().to_string().contains("quantisation type `int4`"));
}

/// Codes stored as another type of the same memory, as for sharded training in Python.
#[test]
fn codes_may_be_stored_as_another_type() {
    let w = Tensor::randn([8, 64], (Kind::Float, Device::Cpu));
    let stored = FourBit::new(&w, Options::default()).unwrap();
    let mut tensors: Tensors = stored.parts().unwrap().into_iter().collect();
    tensors.insert(String::new(), tensors[""].view([-1]).view_dtype(Kind::BFloat16).view([-1, 1]));
    assert_eq!(read(&tensors).unwrap().dense(Kind::Float), stored.dense(Kind::Float));
}

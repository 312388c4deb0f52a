//! Against what bitsandbytes makes of the same weights (`data/make.py`).

use std::collections::BTreeMap;
use std::path::Path;

use lora_core::{BaseWeight, Packing, Parts, read_tensors};
use lora_qlora::{Bitsandbytes, FourBit, Options};
use tch::{Kind, Tensor};

fn golden() -> BTreeMap<String, Tensor> {
    read_tensors(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nf4.safetensors")).unwrap()
}

type Tensors = BTreeMap<String, Tensor>;

/// The cases of the file, by name, each with the weight that it was made from as `source`.
fn cases() -> BTreeMap<String, Tensors> {
    let mut cases: BTreeMap<String, Tensors> = BTreeMap::new();
    for (key, tensor) in golden() {
        let (case, part) = key.split_once('.').unwrap();
        cases.entry(case.to_owned()).or_default().insert(part.to_owned(), tensor);
    }
    let sources = cases.remove("source").unwrap();
    assert!(cases.len() > 50);
    for (name, case) in &mut cases {
        let (_, about) = name.split_once(' ').unwrap();
        case.insert("source".to_owned(), sources[about].shallow_clone());
    }
    cases
}

fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    let bits = |t: &Tensor| t.contiguous().view([-1]).view_dtype(Kind::Uint8);
    a.kind() == b.kind() && a.numel() == b.numel() && bits(a) == bits(b)
}

/// Codes, scales, maps and the text of the state: every part that would be saved, bit for bit.
#[test]
fn what_is_made_here_is_what_bitsandbytes_makes() {
    for (name, case) in cases() {
        let (options, _) = name.split_once(' ').unwrap();
        let weight = FourBit::new(&case["source"], Options::parse(options).unwrap()).unwrap();
        let parts = weight.parts().unwrap();
        assert_eq!(parts.len() + 2, case.len(), "{name}");
        for (part, ours) in parts {
            let key = if part.is_empty() { "weight".to_owned() } else { format!("weight.{part}") };
            let theirs = &case[&key];
            if part.starts_with("quant_state") {
                let text = |t: &Tensor| {
                    String::from_utf8(t.iter::<i64>().unwrap().map(|b| b as u8).collect()).unwrap()
                };
                assert_eq!(text(&ours), text(theirs), "{name}");
            }
            assert!(same_bits(&ours, theirs), "{name}: {key} differs");
        }
    }
}

/// Read from bitsandbytes' parts, and dequantised: whatever is computed in, first to the dtype that bitsandbytes does, which
/// is written again.
#[test]
fn what_bitsandbytes_made_is_read_and_dequantised_to_its_bits() {
    for (name, case) in cases() {
        let names: Vec<&str> =
            case.keys().filter_map(|k| k.strip_prefix("weight")).map(|k| k.trim_start_matches('.')).collect();
        let load = |part: &str| {
            Ok(case[&if part.is_empty() { "weight".to_owned() } else { format!("weight.{part}") }]
                .shallow_clone())
        };
        let parts = Parts { names: &names, load: &load };
        let theirs = &case["dense"];
        let (shape, kind) = Bitsandbytes.describe(&parts).unwrap().unwrap();
        assert_eq!((shape, kind), (theirs.size2().unwrap(), theirs.kind()), "{name}");
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double] {
            let ours = Bitsandbytes.read(&parts, kind).unwrap();
            assert!(same_bits(&ours.dense(kind), &theirs.to_kind(kind)), "{name} in {kind:?}");
            for (part, t) in ours.parts().unwrap() {
                let state = part.starts_with("quant_state");
                assert!(!state || same_bits(&t, &case[&format!("weight.{part}")]), "{name} in {kind:?}");
            }
        }
    }
}

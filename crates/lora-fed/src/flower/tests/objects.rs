//! Known records: our bytes and ids are flwr's, and what flwr wrote reads back as what went in.

use std::collections::BTreeMap;

use indexmap::indexmap;
use prost::Message as _;
use tch::{Kind, Tensor};

use super::super::deflate::{Parcel, deflate};
use super::super::inflate::inflate;
use super::super::messages::{Error, Metadata, ObjectTree};
use super::super::objects::{self, Limits};
use super::super::records::{Arrays, Dtype, NdArray, Record, Records, metric, only_arrays};
use super::super::tensors::{to_arrays, to_tensors};
use super::super::values::{Value, Values};
use super::{bytes, golden, metadata, reply};

fn f32s(shape: &[usize], numbers: &[f32]) -> NdArray {
    NdArray::of_f32(shape.to_vec(), numbers).unwrap()
}

fn f64s(shape: &[usize], numbers: &[f64]) -> NdArray {
    let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    NdArray::new(Dtype::F64, shape.to_vec(), bytes).unwrap()
}

fn arrays() -> Arrays {
    let steps = [1, -2, 3, 1i64 << 62].iter().flat_map(|x| x.to_le_bytes()).collect();
    let first = f32s(&[2, 3], &[0.0, 0.5, 1.0, 1.5, 2.0, 2.5]);
    indexmap! {
        "l.lora_A.weight".into() => first.clone(),
        "scalar".into() => f64s(&[], &[-1.5]),
        "steps".into() => NdArray::new(Dtype::I64, vec![4], steps).unwrap(),
        "empty".into() => f32s(&[0, 3], &[]),
        "ünï \"\\\n\x7f\x01 😀".into() => f32s(&[1], &[0.1]),
        "same".into() => first,
        "five".into() => f64s(&[1, 2, 1, 2, 1], &[1.0; 4]),
    }
}

fn config() -> Values {
    indexmap! {
        "lr".into() => Value::Float(0.25),
        "server-round".into() => Value::Int(3),
        "negative".into() => Value::Int(-5),
        "large".into() => Value::Unsigned(u64::MAX),
        "flag".into() => Value::Bool(true),
        "off".into() => Value::Bool(false),
        "text".into() => Value::Text("grüße".into()),
        "bytes".into() => Value::Bytes(vec![0, 255]),
        "floats".into() => Value::Floats(vec![0.5, -1.0]),
        "ints".into() => Value::Ints(vec![1, -1]),
        "larges".into() => Value::Unsigneds(vec![1 << 63, 1]),
        "flags".into() => Value::Bools(vec![true, false]),
        "texts".into() => Value::Texts(vec!["a".into(), String::new()]),
        "byte-strings".into() => Value::ByteStrings(vec![vec![], vec![1]]),
        "none".into() => Value::Bools(vec![]),
        "zero".into() => Value::Int(0),
    }
}

fn everything() -> Records {
    let metrics = indexmap! {
        "loss".into() => Value::Float(0.125),
        "num-examples".into() => Value::Int(942),
        "large".into() => Value::Unsigned(1 << 63),
        "many".into() => Value::Floats(vec![1.5, 2.5]),
        "counts".into() => Value::Ints(vec![3, 4]),
    };
    indexmap! {
        "arrays".into() => Record::Arrays(arrays()),
        "config".into() => Record::Config(config()),
        "again".into() => Record::Arrays(arrays()),
        "metrics".into() => Record::Metrics(metrics),
    }
}

fn made(name: &str) -> (Metadata, Result<Records, Error>) {
    let one = |name: &str, record| Records::from([(name.to_owned(), record)]);
    match name {
        "everything" => (metadata(), Ok(everything())),
        "reply" => {
            let metrics = Values::from([("num-examples".to_owned(), Value::Int(1))]);
            (reply(), Ok(one("metrics", Record::Metrics(metrics))))
        }
        "error" => (reply(), Err(Error { code: 2, reason: "out of memory".into() })),
        "nothing" => (metadata(), Ok(Records::new())),
        "fortran" => {
            let numbers: Vec<f64> = (0..24).map(f64::from).collect();
            let arrays = Arrays::from([("f".to_owned(), f64s(&[2, 3, 4], &numbers))]);
            (metadata(), Ok(one("arrays", Record::Arrays(arrays))))
        }
        "chunks" => {
            let zeros = NdArray::new(Dtype::F32, vec![4, 1 << 20], vec![0; 16 << 20]).unwrap();
            (metadata(), Ok(one("arrays", Record::Arrays(Arrays::from([("z".to_owned(), zeros)])))))
        }
        other => panic!("no such case: {other}"),
    }
}

fn parcel(name: &str) -> Parcel {
    let (metadata, content) = made(name);
    deflate(metadata, content.as_ref().map_err(Clone::clone)).unwrap()
}

#[test]
fn our_objects_are_flowers_byte_for_byte() {
    for (name, case) in golden().iter().filter(|(name, _)| *name != "fortran") {
        let ours = parcel(name);
        assert_eq!(ours.tree.object_id, case.root, "{name}: another id");
        assert_eq!(ours.tree.encode_to_vec(), bytes(&case.tree), "{name}: another tree");
        assert_eq!(ours.message.encode_to_vec(), bytes(&case.announced), "{name}: announced otherwise");
        assert!(ours.objects.keys().eq(case.objects.keys()), "{name}: other objects, or in another order");
        for (id, object) in &ours.objects {
            match case.objects[id].as_u64() {
                Some(length) => assert_eq!(object.len() as u64, length),
                None => assert_eq!(*object, bytes(case.objects[id].as_str().unwrap()), "{name}"),
            }
        }
    }
}

#[test]
fn flowers_objects_read_back_as_what_went_in() {
    for (name, case) in golden().iter().filter(|(name, _)| *name != "chunks") {
        let tree = ObjectTree::decode(bytes(&case.tree).as_slice()).unwrap();
        let ids = objects::ids(&tree, &Limits::default()).unwrap();
        assert!(ids.iter().eq(case.objects.keys()), "{name}: another order");
        let (metadata, content) = made(name);
        let read = inflate(&case.root, &case.objects(), &Limits::default()).unwrap();
        assert_eq!(read.metadata, metadata, "{name}");
        // Maps compare without their order, which is part of what travels.
        assert_eq!(format!("{:?}", read.content), format!("{content:?}"), "{name}");
    }
}

#[test]
fn many_chunks_read_back() {
    let whole = parcel("chunks");
    assert_eq!(whole.objects.len(), 7, "equal chunks are one object");
    let read = inflate(&whole.tree.object_id, &whole.objects, &Limits::default()).unwrap();
    assert_eq!(read.content, made("chunks").1);
}

#[test]
fn records_are_asked_by_name() {
    let records = everything();
    assert_eq!(metric(&records, "num-examples"), Some(942.0));
    assert_eq!(metric(&records, "lr"), None, "a setting is no metric");
    assert!(only_arrays(&records).unwrap_err().to_string().contains("several"));
    let one = Records::from([("arrays".to_owned(), Record::Arrays(arrays()))]);
    assert_eq!(only_arrays(&one).unwrap()["scalar"].to_f64(), [-1.5]);
}

#[test]
fn tensors_travel_as_f32() {
    let exact = Tensor::from_slice(&[0.5f32, -1.25, 3.0, 0.0, 1.0, 2.0]).reshape([2, 3]);
    let tensors = BTreeMap::from([
        ("bf16".to_owned(), exact.to_kind(Kind::BFloat16)),
        ("double".to_owned(), exact.to_kind(Kind::Double)),
        ("f32".to_owned(), exact.copy()),
        ("steps".to_owned(), Tensor::from_slice(&[1i64, -2])),
        ("turned".to_owned(), exact.tr()),
    ]);
    let arrays = to_arrays(&tensors).unwrap();
    for name in ["bf16", "double", "f32"] {
        assert_eq!(arrays[name], f32s(&[2, 3], &[0.5, -1.25, 3.0, 0.0, 1.0, 2.0]), "{name}");
    }
    assert_eq!(arrays["turned"], f32s(&[3, 2], &[0.5, 0.0, -1.25, 1.0, 3.0, 2.0]));
    let back = to_tensors(&arrays).unwrap();
    assert_eq!(back["turned"], exact.tr());
    assert_eq!(back["steps"].kind(), Kind::Int64);
    let truth = BTreeMap::from([("b".to_owned(), Tensor::from_slice(&[true]))]);
    assert!(to_arrays(&truth).unwrap_err().to_string().contains("b: Bool does not travel"));
}

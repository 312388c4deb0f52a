//! Safetensors files, against one that the Python library wrote (`data/make.py`) and against mutations of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lora_core::{ErrorKind, read_metadata, read_tensors, write_tensors, write_tensors_to};
use proptest::prelude::*;
use tch::{Kind, Tensor};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// dtype, shape, and the bytes in hex, as PyTorch has them.
fn golden() -> BTreeMap<String, (String, Vec<i64>, String)> {
    serde_json::from_str(&std::fs::read_to_string(data("tensors.json")).unwrap()).unwrap()
}

fn hex(tensor: &Tensor) -> String {
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn kind(dtype: &str) -> Kind {
    match dtype {
        "float64" => Kind::Double,
        "float32" => Kind::Float,
        "float16" => Kind::Half,
        "bfloat16" => Kind::BFloat16,
        "int64" => Kind::Int64,
        "int32" => Kind::Int,
        "int16" => Kind::Int16,
        "int8" => Kind::Int8,
        "uint8" => Kind::Uint8,
        "bool" => Kind::Bool,
        other => panic!("{other}"),
    }
}

fn assert_golden(read: &BTreeMap<String, Tensor>) {
    let golden = golden();
    assert!(read.keys().eq(golden.keys()));
    for (name, (dtype, shape, bytes)) in golden {
        let tensor = &read[&name];
        assert_eq!((tensor.kind(), tensor.size(), hex(tensor)), (kind(&dtype), shape, bytes), "{name}");
    }
}

#[test]
fn reads_what_python_wrote_and_writes_it_bit_for_bit() {
    let read = read_tensors(&data("tensors.safetensors")).unwrap();
    assert_golden(&read);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ours.safetensors");
    let mut named: Vec<_> = read.into_iter().collect();
    write_tensors(&path, &named, &[]).unwrap();
    assert_golden(&read_tensors(&path).unwrap());
    // As long as Python's own, and the same whatever the order in which tensors and remarks are given.
    let ours = std::fs::read(&path).unwrap();
    assert_eq!(ours.len(), std::fs::metadata(data("tensors.safetensors")).unwrap().len() as usize);
    named.reverse();
    let (mut one, mut other) = (Vec::new(), Vec::new());
    write_tensors_to(&mut one, &named, &[("b", "2"), ("a", "\"1\"")]).unwrap();
    named.swap(1, 5);
    write_tensors_to(&mut other, &named, &[("a", "\"1\""), ("b", "2")]).unwrap();
    assert!(one == other);
    std::fs::write(&path, one).unwrap();
    let metadata = read_metadata(&path).unwrap();
    let expected = [("a", "\"1\""), ("b", "2"), ("format", "pt")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(metadata, BTreeMap::from(expected));
}

/// A transposed or sliced tensor is written as what it shows, with or without a gradient.
#[test]
fn views_are_written_as_they_look() {
    let base = Tensor::arange(12, (Kind::Float, tch::Device::Cpu)).reshape([3, 4]);
    let view = base.transpose(0, 1).narrow(0, 1, 2).set_requires_grad(true);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.safetensors");
    write_tensors(&path, &[("v".to_owned(), view)], &[]).unwrap();
    let read = read_tensors(&path).unwrap();
    assert_eq!(read["v"].size(), [2, 3]);
    assert_eq!(Vec::<f32>::try_from(read["v"].reshape([-1])).unwrap(), [1., 5., 9., 2., 6., 10.]);
}

fn file(header: &str, data: &[u8]) -> tempfile::NamedTempFile {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

#[test]
fn bad_files_are_refused_with_the_tensor() {
    let f32s = |n: f32| [n, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    let ok = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    read_tensors(file(ok, &f32s(0.5)).path()).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let e = read_tensors(file(ok, &f32s(bad)).path()).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::NonFinite);
        assert!(e.to_string().contains("tensor \"w\""), "{e}");
    }
    let half = r#"{"w":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}"#;
    assert_eq!(read_tensors(file(half, &[0x80, 0x7f]).path()).unwrap_err().kind(), ErrorKind::NonFinite);
    let long =
        format!(r#"{{"w":{{"dtype":"F32","shape":[{}0],"data_offsets":[0,0]}}}}"#, "0,".repeat(200_000));
    let twice = r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    for (header, said) in [
        (twice, "\"w\" comes twice"),
        (&long, "more values than its tensors can have"),
        (&format!(" {ok}"), "does not begin"),
        (&format!("{ok} x"), "malformed"),
        (r#"{"w":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}"#, "its dtype is \"F8_E4M3\""),
        (r#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, "not a whole safetensors file"),
        (r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, "not a whole safetensors file"),
        (r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, "not a whole safetensors file"),
        (
            r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"v":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            "not a whole",
        ),
        (
            r#"{"w":{"dtype":"U8","shape":[0,18446744073709551615],"data_offsets":[0,0]}}"#,
            "its shape is absurd",
        ),
        (r#"{"w":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,8],"data_offsets":[0,8]}}"#, "its shape is absurd"),
        (r#"{"w":{"dtype":"U8","shape":[-8],"data_offsets":[0,8]}}"#, "its shape is absurd"),
        (r#"{"w":{"dtype":"BOOL","shape":[8],"data_offsets":[0,8]}}"#, "neither 0 nor 1"),
        (
            r#"{"__metadata__":{"a":"b","a":"c"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
            "comes twice",
        ),
        (r#"{"__metadata__":{"a":1},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, "malformed"),
    ] {
        let bad = file(header, &f32s(0.5));
        let e = read_tensors(bad.path()).unwrap_err();
        assert!(e.to_string().contains(said), "{header}: {e}");
        match read_metadata(bad.path()) {
            Ok(_) => assert_eq!(said, "neither 0 nor 1", "values alone are not looked at"),
            Err(e) => assert!(e.to_string().contains(said), "{header}: {e}"),
        }
    }
    let short = tempfile::NamedTempFile::new().unwrap();
    for bytes in [&b""[..], b"1234567", &[255; 16], &[0; 8], &[9, 0, 0, 0, 0, 0, 0, 0, b'{']] {
        std::fs::write(short.path(), bytes).unwrap();
        assert_eq!(read_tensors(short.path()).unwrap_err().kind(), ErrorKind::Data);
        assert_eq!(read_metadata(short.path()).unwrap_err().kind(), ErrorKind::Data);
    }
    assert_eq!(read_tensors(Path::new("/nowhere/at/all")).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(read_metadata(Path::new("/nowhere/at/all")).unwrap_err().kind(), ErrorKind::Io);
    let t = || Tensor::from_slice(&[1.0f32]);
    for names in [["a", "a"], ["b", "__metadata__"]] {
        let named = names.map(|n| (n.to_owned(), t()));
        assert_eq!(write_tensors_to(&mut Vec::new(), &named, &[]).unwrap_err().kind(), ErrorKind::Usage);
    }
}

/// What a run is gone on with from may have many gigabytes: its remarks are read without them, and its length is checked.
#[test]
fn remarks_are_read_without_the_tensors() {
    let long = 1_u64 << 42;
    let tensor = format!(r#"{{"dtype":"F32","shape":[{}],"data_offsets":[0,{long}]}}"#, long / 4);
    let header = format!(r#"{{"__metadata__":{{"step":"7"}},"w":{tensor}}}"#);
    let sparse = file(&header, b"");
    let whole = 8 + header.len() as u64 + long;
    sparse.as_file().set_len(whole).unwrap();
    let expected = BTreeMap::from([("step".to_owned(), "7".to_owned())]);
    assert_eq!(read_metadata(sparse.path()).unwrap(), expected);
    for size in [whole - 1, whole + 1, whole - long] {
        sparse.as_file().set_len(size).unwrap();
        let e = read_metadata(sparse.path()).unwrap_err();
        assert!(e.to_string().contains("not a whole safetensors file"), "{size}: {e}");
    }
}

/// What is accepted after mutation is a whole file still: everything in it can be used and written again.
#[test]
fn mutated_files_never_panic() {
    let original = std::fs::read(data("tensors.safetensors")).unwrap();
    let path = tempfile::NamedTempFile::new().unwrap();
    let accepted = std::cell::Cell::new(0);
    let mutation = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..6_u8), 1..4);
    let config = ProptestConfig { cases: 3000, ..ProptestConfig::default() };
    proptest!(config, |(changes in mutation, header_only in any::<bool>())| {
        let mut bytes = original.clone();
        for (at, byte, what) in changes {
            let at = at.index(if header_only { bytes.len().min(900) } else { bytes.len() });
            match what {
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte % 8),
                2 => bytes[at] = b"0123456789[]{}\",:"[usize::from(byte) % 17],
                3 if bytes.len() > 1 => { bytes.remove(at); }
                3 => bytes[at] = byte,
                4 => bytes.insert(at, byte),
                _ => bytes.truncate(at.max(1)),
            }
        }
        std::fs::write(path.path(), &bytes).unwrap();
        if let Ok(read) = read_tensors(path.path()) {
            accepted.set(accepted.get() + 1);
            prop_assert!(read.values().all(|t| t.numel() < 2000));
            write_tensors_to(&mut Vec::new(), &read.into_iter().collect::<Vec<_>>(), &[]).unwrap();
        }
    });
    assert!(accepted.get() > 100, "{accepted:?}: the mutations reach nothing but the first check");
}

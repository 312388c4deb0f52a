//! Every limit refuses, every check fails, and no bytes make it panic.

use proptest::prelude::*;

use super::super::deflate::deflate;
use super::super::inflate::inflate;
use super::super::messages::{Message, ObjectTree, PullMessagesResponse};
use super::super::objects::{self, Limits, Objects, id, object};
use super::super::records::{Arrays, Dtype, NdArray, Record, Records};
use super::super::values::{Value, Values};
use super::super::{npy, values};
use super::{bytes, golden, metadata};
use prost::Message as _;

fn records(arrays: &[(&str, usize)]) -> Records {
    let one = |(name, n): &(&str, usize)| {
        ((*name).to_owned(), NdArray::new(Dtype::F32, vec![*n], vec![1; 4 * n]).unwrap())
    };
    Records::from([("arrays".to_owned(), Record::Arrays(arrays.iter().map(one).collect::<Arrays>()))])
}

/// A sound message; `(root, objects)`.
fn sound() -> (String, Objects) {
    let parcel = deflate(metadata(), Ok(&records(&[("a", 8), ("b", 9)]))).unwrap();
    (parcel.tree.object_id, parcel.objects)
}

/// Replaces the object of type `kind` by one with this body (and children), and all that stand above it.
fn forged(
    kind: &str,
    change: impl Fn(&[String], &[u8]) -> (String, Vec<String>, Vec<u8>),
) -> (String, Objects) {
    let (mut root, objects) = sound();
    let mut forged = Objects::new();
    let mut renamed = std::collections::BTreeMap::<String, String>::new();
    let mut done = false;
    for (old, bytes) in &objects {
        let parts = objects::parse(old, bytes, &Limits::default()).unwrap();
        let new_name = |c: &str| renamed.get(c).cloned().unwrap_or_else(|| c.to_owned());
        let children: Vec<String> = parts.children.iter().map(|c| new_name(c)).collect();
        let mut body = parts.body.to_vec();
        if matches!(parts.kind, "RecordDict" | "ArrayRecord") {
            let mut text = String::from_utf8(body).unwrap();
            for (from, to) in &renamed {
                text = text.replace(from.as_str(), to);
            }
            body = text.into_bytes();
        }
        let made = if parts.kind == kind && !done {
            done = true;
            let (kind, children, body) = change(&children, &body);
            object(&kind, &children, &body)
        } else {
            object(parts.kind, &children, &body)
        };
        let new = id(&made);
        if *old == root {
            root.clone_from(&new);
        }
        renamed.insert(old.clone(), new.clone());
        forged.insert(new, made);
    }
    (root, forged)
}

fn refused(what: &str, (root, objects): (String, Objects), why: &str) {
    refused_under(what, (root, objects), why, &Limits::default());
}

fn refused_under(what: &str, (root, objects): (String, Objects), why: &str, limits: &Limits) {
    match inflate(&root, &objects, limits) {
        Ok(_) => panic!("{what}: taken"),
        Err(e) => assert!(e.to_string().contains(why), "{what}: refused for another reason: {e}"),
    }
}

#[test]
fn what_is_no_object_is_refused() {
    let (root, objects) = sound();
    inflate(&root, &objects, &Limits::default()).unwrap();
    inflate(&root, &forged("none", |_, _| unreachable!()).1, &Limits::default()).unwrap();

    for i in 0..objects.len() {
        let mut fewer = objects.clone();
        fewer.shift_remove_index(i);
        refused("an object missing", (root.clone(), fewer), "is missing");
        let mut other = objects.clone();
        other[i].push(0);
        refused("a byte more", (root.clone(), other), "hash");
    }
    let raw = |bytes: &[u8]| (id(bytes), Objects::from([(id(bytes), bytes.to_vec())]));
    refused("no head", raw(b"Message"), "no head");
    refused("two parts", raw(b"Message 0\0"), "three parts");
    refused("four parts", raw(b"Message  0 0\0"), "three parts");
    refused("another length", raw(b"Message  1\0"), "its head says");
    refused("a signed length", raw(b"Message  +0\0"), "its head says");
    refused("no text", raw(b"\xff  0\0"), "no text");
    refused("children that are none", raw(b"Message abc 0\0"), "ids");
    let large = format!("Message {} 0\0", "AB".repeat(32));
    refused("large digits", raw(large.as_bytes()), "ids");
    let twice = format!("Message {0},{0} 0\0", "ab".repeat(32));
    refused("a child twice", raw(twice.as_bytes()), "distinct");
    refused("another type", raw(b"RecordDict  2\0{}"), "Message is wanted");
    refused("no metadata", raw(b"Message  0\0"), "no metadata");
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let keep =
        |kind: &str, children: &[String], body: &[u8]| (kind.to_owned(), children.to_vec(), body.to_vec());
    let none = |kind: &str, body: &[u8]| (kind.to_owned(), vec![], body.to_vec());
    let message = |c: &[String], b: &[u8]| keep("Message", c, b);
    inflate(&forged("Message", message).0, &forged("Message", message).1, &Limits::default()).unwrap();

    refused(
        "neither content nor error",
        forged("Message", |_, b| none("Message", b)),
        "either content or an error",
    );
    refused("a wrong type", forged("ArrayRecord", |c, b| keep("Array", c, b)), "is wanted");
    refused("an unknown type", forged("ArrayRecord", |c, b| keep("Pickle", c, b)), "is wanted");
    refused(
        "names of nothing",
        forged("ArrayRecord", |c, _| keep("ArrayRecord", c, b"{}")),
        "just its children",
    );
    refused("no JSON", forged("ArrayRecord", |c, _| keep("ArrayRecord", c, b"[]")), "not as it should be");
    let twice = |c: &[String], _: &[u8]| {
        let body = format!("{{\"a\": \"{0}\", \"a\": \"{1}\"}}", c[0], c[1]);
        keep("ArrayRecord", c, body.as_bytes())
    };
    refused("a name twice", forged("ArrayRecord", twice), "comes twice");
    refused(
        "a chunk with children",
        forged("ArrayChunk", |_, b| ("ArrayChunk".to_owned(), vec!["ab".repeat(32)], b.to_vec())),
        "no children",
    );

    let about = |text: &'static str| {
        forged("Array", move |c, _| ("Array".to_owned(), c.to_vec(), text.as_bytes().to_vec()))
    };
    let right = r#"{"dtype": "float32", "shape": [8], "stype": "numpy.ndarray", "arraychunk_ids": [0]}"#;
    let (root, objects) = about(right);
    inflate(&root, &objects, &Limits::default()).unwrap();
    refused(
        "another shape",
        about(r#"{"dtype": "float32", "shape": [2, 4], "stype": "numpy.ndarray", "arraychunk_ids": [0]}"#),
        "announced",
    );
    refused(
        "another dtype",
        about(r#"{"dtype": "int64", "shape": [8], "stype": "numpy.ndarray", "arraychunk_ids": [0]}"#),
        "announced",
    );
    refused(
        "an unknown dtype",
        about(r#"{"dtype": "object", "shape": [8], "stype": "numpy.ndarray", "arraychunk_ids": [0]}"#),
        "numbers of type",
    );
    refused(
        "a file's dtype",
        about(r#"{"dtype": "<f4", "shape": [8], "stype": "numpy.ndarray", "arraychunk_ids": [0]}"#),
        "numbers of type",
    );
    refused(
        "pickle",
        about(r#"{"dtype": "float32", "shape": [8], "stype": "pickle", "arraychunk_ids": [0]}"#),
        "arrays of type",
    );
    refused(
        "a negative size",
        about(r#"{"dtype": "float32", "shape": [-8], "stype": "numpy.ndarray", "arraychunk_ids": [0]}"#),
        "not as it should be",
    );
    refused(
        "no such chunk",
        about(r#"{"dtype": "float32", "shape": [8], "stype": "numpy.ndarray", "arraychunk_ids": [1]}"#),
        "it has not",
    );
    refused(
        "an unused chunk",
        about(r#"{"dtype": "float32", "shape": [8], "stype": "numpy.ndarray", "arraychunk_ids": []}"#),
        "does not use",
    );
    refused(
        "chunks twice",
        about(r#"{"dtype": "float32", "shape": [8], "stype": "numpy.ndarray", "arraychunk_ids": [0, 0]}"#),
        "bytes cannot be",
    );
    refused(
        "more fields",
        about(
            r#"{"dtype": "float32", "shape": [8], "stype": "numpy.ndarray", "arraychunk_ids": [0], "x": 1}"#,
        ),
        "unknown field",
    );
    let long = |c: &[String], _: &[u8]| keep("Array", c, " ".repeat(1 << 20).as_bytes().repeat(2).as_slice());
    refused("a long description", forged("Array", long), "to describe an array");
}

#[test]
fn every_limit_holds() {
    let (root, objects) = sound();
    let largest = objects.values().map(Vec::len).max().unwrap();
    let total: usize = objects.values().map(Vec::len).sum();
    let fits = Limits { object: largest, message: total, objects: objects.len(), items: 2, dims: 1 };
    inflate(&root, &objects, &fits).unwrap();
    let message = || (root.clone(), objects.clone());
    refused_under("a large object", message(), "the limit is", &Limits { object: largest - 1, ..fits });
    refused_under("a large message", message(), "a message of more", &Limits { message: total - 1, ..fits });
    refused_under("many arrays", message(), "the limit is", &Limits { items: 1, ..fits });
    refused_under("many dimensions", message(), "understood", &Limits { dims: 0, ..fits });

    // A thousand names of one array cost as much as a thousand arrays.
    let names: Vec<String> = (0..1000).map(|i| format!("n{i}")).collect();
    let same: Vec<(&str, usize)> = names.iter().map(|n| (n.as_str(), 1000)).collect();
    let parcel = deflate(metadata(), Ok(&records(&same))).unwrap();
    assert!(parcel.objects.len() < 10);
    let bomb = (parcel.tree.object_id, parcel.objects);
    // Nor do empty strings come at two bytes.
    let texts = Value::Texts(vec![String::new(); 1 << 16]);
    let config = Record::Config(Values::from([("texts".to_owned(), texts)]));
    let parcel = deflate(metadata(), Ok(&Records::from([("config".to_owned(), config)]))).unwrap();
    assert!(parcel.objects.values().map(Vec::len).sum::<usize>() < 1 << 18);
    let strings = (parcel.tree.object_id, parcel.objects);
    inflate(&strings.0, &strings.1, &Limits::default()).unwrap();
    let tight = Limits { message: 1 << 20, ..Limits::default() };
    refused_under("a bomb of strings", strings, "a message of more", &tight);
    refused_under(
        "a bomb of names",
        bomb,
        "a message of more",
        &Limits { message: 1 << 20, ..Limits::default() },
    );
}

#[test]
fn trees_are_bounded() {
    let node = |children| ObjectTree { object_id: "ab".repeat(32), children };
    let deep = |depth| (1..depth).fold(node(vec![]), |tree, _| node(vec![tree]));
    objects::ids(&deep(5), &Limits::default()).unwrap();
    assert!(objects::ids(&deep(6), &Limits::default()).unwrap_err().to_string().contains("deeper"));
    let leaf = |i: usize| ObjectTree { object_id: format!("{i:064x}"), children: vec![] };
    let wide = |n| node((0..n).map(leaf).collect());
    let limits = Limits { objects: 4, ..Limits::default() };
    assert_eq!(objects::ids(&wide(3), &limits).unwrap().len(), 4);
    assert!(objects::ids(&wide(4), &limits).unwrap_err().to_string().contains("more than 4 objects"));
    let odd = ObjectTree { object_id: "../../etc/passwd".into(), children: vec![] };
    assert!(objects::ids(&odd, &limits).unwrap_err().to_string().contains("no object id"));
}

#[test]
fn values_are_checked() {
    let config = |bytes: &[u8]| values::decode(bytes, false, 3).map_err(|e| e.to_string());
    let item = |key: &str, value: &[u8]| {
        let mut inner = vec![0x0a, key.len() as u8];
        inner.extend(key.as_bytes());
        inner.extend([0x12, value.len() as u8]);
        inner.extend(value);
        [&[0x0a, inner.len() as u8], inner.as_slice()].concat()
    };
    assert_eq!(config(&item("k", &[0x20, 1])).unwrap().len(), 1);
    assert!(config(&item("k", &[])).unwrap_err().contains("no value"));
    assert!(config(&item("k", &[0x20, 1]).repeat(2)).unwrap_err().contains("twice"));
    assert!(config(&item("k", &[0x20, 1]).repeat(4)).unwrap_err().contains("at most 3"));
    assert!(config(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
    let e = values::decode(&item("k", &[0x20, 1]), true, 3).unwrap_err().to_string();
    assert!(e.contains("a metric is a number"), "{e}");
}

#[test]
fn numpy_files_are_checked() {
    let array = NdArray::of_f32(vec![2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
    let file = npy::write(&array);
    assert_eq!(npy::read(&file, 8).unwrap(), array);
    let change = |from: &str, to: &str| {
        let header = String::from_utf8_lossy(&file[10..128]).replacen(from, to, 1);
        let header = format!("{:117}\n", header.trim_end());
        [&file[..10], header.as_bytes(), &file[128..]].concat()
    };
    assert_eq!(npy::read(&change("(2, 3)", "(2, 3)"), 8).unwrap(), array);
    let turned = npy::read(&change("False", "True"), 8).unwrap();
    assert_eq!(turned.to_f64(), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
    for (from, to) in [
        ("<f4", ">f4"),
        ("<f4", "|O"),
        ("<f4", "float32"),
        ("False", "Maybe"),
        ("(2, 3)", "(2, 4)"),
        ("(2, 3)", "(-2, -3)"),
        ("(2, 3)", "(2.0, 3)"),
        ("(2, 3)", "(+2, 3)"),
        ("(2, 3)", "(18446744073709551615, 3)"),
        ("(2, 3)", "(9223372036854775807, 9223372036854775807)"),
        ("(2, 3)", "(0, 9223372036854775807, 9223372036854775807)"),
        ("(2, 3)", "(2, 3), 'x': (1)"),
        ("'descr'", "'dtype'"),
    ] {
        assert!(npy::read(&change(from, to), 8).is_err(), "{from} as {to}");
    }
    // No numbers, whatever the other dimensions say, and in either order.
    let empty = change("(2, 3)", "(0, 9223372036854775807, 9223372036854775807)");
    npy::read(&empty[..128], 8).unwrap();
    let turned = String::from_utf8_lossy(&empty[..128]).replace("False", "True ");
    assert!(npy::read(turned.as_bytes(), 8).is_err());
    for cut in 0..file.len() {
        assert!(npy::read(&file[..cut], 8).is_err(), "cut at {cut}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// One changed byte in one of flwr's objects: its hash gives it away.
    #[test]
    fn changed_bytes_are_refused(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let case = &golden()["everything"];
        let mut objects = case.objects();
        let i = which.index(objects.len());
        let n = at.index(objects[i].len());
        objects[i][n] ^= flip;
        prop_assert!(inflate(&case.root, &objects, &Limits::default()).is_err());
    }

    /// Changed bodies under true hashes: refused or read, never a panic, never more than there is.
    #[test]
    fn forged_bodies_never_panic(
        kind in prop::sample::select(vec!["Message", "RecordDict", "ArrayRecord", "Array", "ArrayChunk"]),
        at in any::<prop::sample::Index>(), with in prop::collection::vec(any::<u8>(), 0..12),
    ) {
        let (root, objects) = forged(kind, |children, body| {
            let n = at.index(body.len() + 1);
            let body = [&body[..n], &with, body.get(n + with.len() / 2..).unwrap_or(&[])].concat();
            (kind.to_owned(), children.to_vec(), body)
        });
        let _ = inflate(&root, &objects, &Limits::default());
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = npy::read(&bytes, 8);
        let _ = npy::read(&[b"\x93NUMPY\x01\x00", bytes.as_slice()].concat(), 8);
        let _ = values::decode(&bytes, false, 8);
        let _ = Message::decode(bytes.as_slice());
        let _ = objects::parse(&id(&bytes), &bytes, &Limits::default());
        let _ = inflate(&id(&bytes), &Objects::from([(id(&bytes), bytes)]), &Limits::default());
    }

    /// Announcements with a changed byte.
    #[test]
    fn changed_announcements_are_survived(at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut tree = bytes(&golden()["everything"].tree);
        let n = at.index(tree.len());
        tree[n] = with;
        if let Ok(tree) = ObjectTree::decode(tree.as_slice()) {
            let _ = objects::ids(&tree, &Limits::default());
        }
        let _ = PullMessagesResponse::decode(tree.as_slice());
    }
}

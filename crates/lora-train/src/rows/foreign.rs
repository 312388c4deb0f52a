//! Files that are no JSON lines, and how they become some.

use std::path::Path;

use lora_core::{Error, Result};
use serde_json::Value;

/// What a file begins with, what it is, and what writes it as JSON lines, or at least unpacked.
const KNOWN: [(&[u8], &str, &str); 9] = [
    (b"\x1f\x8b", "packed by gzip", "gzip -dc FILE > NEW.jsonl"),
    (b"PK\x03\x04", "packed by zip", "unzip -p FILE > NEW.jsonl"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", "zstd -dc FILE > NEW.jsonl"),
    (b"\xfd7zXZ", "packed by xz", "xz -dc FILE > NEW.jsonl"),
    (b"BZh", "packed by bzip2", "bzip2 -dc FILE > NEW.jsonl"),
    (b"\xff\xfe", "UTF-16", "iconv -f UTF-16 -t UTF-8 FILE > NEW.jsonl"),
    (b"\xfe\xff", "UTF-16", "iconv -f UTF-16 -t UTF-8 FILE > NEW.jsonl"),
    (
        b"PAR1",
        "a Parquet file",
        r#"python3 -c 'import pandas; pandas.read_parquet("FILE").to_json("NEW.jsonl", orient="records", lines=True)'"#,
    ),
    (b"[", "a JSON array", "jq -c '.[]' FILE > NEW.jsonl"),
];

/// Refuses a file that begins as no JSON lines do.
pub(super) fn refuse(beginning: &[u8], path: &Path) -> Result<()> {
    // A byte order mark is no part of a text.
    let text = beginning.strip_prefix(b"\xef\xbb\xbf").unwrap_or(beginning).trim_ascii_start();
    let known = KNOWN.iter().find(|(magic, ..)| text.starts_with(magic));
    let (what, how) = match known {
        Some((_, what, how)) => (*what, (*how).to_owned()),
        None => match separator(text, path) {
            Some(separator) => ("CSV", from_csv(separator)),
            None => return Ok(()),
        },
    };
    Err(Error::data(format!("is {what}, and not JSON lines"))
        .at(path.display())
        .hint(format!("one JSON object a line: `{how}`, with the fields of docs/data.md")))
}

/// What stands between the columns of a table, if it is one: by its name, or as its first two lines have the same columns.
fn separator(text: &[u8], path: &Path) -> Option<char> {
    let mut lines = text.split(|byte| *byte == b'\n');
    let (first, second) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    if first.is_empty() || first.starts_with(b"{") {
        return None;
    }
    let named = |ending: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending));
    let columns = |line: &[u8], separator: char| line.split(|byte| *byte == separator as u8).count();
    if named("tsv") || named("csv") {
        let tabs = named("tsv") || columns(first, '\t') > 1;
        return Some(if tabs { '\t' } else { ',' });
    }
    let alike = |separator: &char| {
        columns(first, *separator) > 1 && columns(first, *separator) == columns(second, *separator)
    };
    if is_json(first) || is_json(second) { None } else { ['\t', ','].into_iter().find(alike) }
}

/// Whether a line is JSON, or begins as an object or a list of it, whatever its faults.
fn is_json(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    line.starts_with(b"{") || line.starts_with(b"[") || serde_json::from_slice::<Value>(line).is_ok()
}

fn from_csv(separator: char) -> String {
    let tabs = if separator == '\t' { r#", delimiter="\t""# } else { "" };
    format!(
        "python3 -c 'import csv, json, sys; [print(json.dumps(row)) for row in csv.DictReader(sys.stdin{tabs})]' \
         < FILE > NEW.jsonl"
    )
}

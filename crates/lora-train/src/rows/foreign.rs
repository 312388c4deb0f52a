//! Files that are no JSON lines, and how they become some.

use std::path::Path;

use lora_core::{Error, Result};

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

/// What stands between the columns of a table's first line, if it is one.
fn separator(text: &[u8], path: &Path) -> Option<char> {
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if line.is_empty() || line.starts_with(b"{") {
        return None;
    }
    let named = |ending: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending));
    [('\t', "tsv"), (',', "csv")]
        .into_iter()
        .find(|(separator, ending)| line.contains(&(*separator as u8)) || named(ending))
        .map(|(separator, _)| separator)
}

fn from_csv(separator: char) -> String {
    let tabs = if separator == '\t' { r#", delimiter="\t""# } else { "" };
    format!(
        "python3 -c 'import csv, json, sys; [print(json.dumps(row)) for row in csv.DictReader(sys.stdin{tabs})]' \
         < FILE > NEW.jsonl"
    )
}

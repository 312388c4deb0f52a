//! Rows for training, for choosing the learning rate, and for judging: never the same.

use super::plan::Data;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The files of one set, under the comparison's folder.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) train: PathBuf,
    pub(crate) held_out: PathBuf,
    /// The training part again, in two: to learn from, and to choose by.
    pub(crate) fit: PathBuf,
    pub(crate) validation: PathBuf,
    pub(crate) train_rows: usize,
    pub(crate) held_out_rows: usize,
    /// Of the held-out rows those whose question is trained on too: of two files there may be some.
    pub(crate) common: usize,
}

/// Splits `data` into files under `dir`. Of one file, the rows whose question's sha256 begins with a byte that 5
/// divides are held out; of the rest, those whose second byte 5 divides are for validation.
pub(crate) fn split(data: &Data, dir: &Path) -> Result<Parts> {
    parts(data, dir, true)
}

/// The same files where they are there already: nothing is written.
pub(crate) fn there(data: &Data, dir: &Path) -> Result<Parts> {
    parts(data, dir, false)
}

fn parts(data: &Data, dir: &Path, may_write: bool) -> Result<Parts> {
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    match data {
        Data::Split(file) => {
            for row in rows(file)? {
                if row.hash[0] % 5 == 0 { &mut held_out } else { &mut train }.push(row);
            }
        }
        Data::Given { train: a, held_out: b } => (train, held_out) = (rows(a)?, rows(b)?),
    }
    let trained: BTreeSet<&[u8; 32]> = train.iter().map(|row| &row.asked).collect();
    let common = held_out.iter().filter(|row| trained.contains(&row.asked)).count();
    let name = data.name();
    let (validation, fit): (Vec<_>, Vec<_>) = train.iter().partition(|row| row.hash[1] % 5 == 0);
    let whole = [("training", train.len()), ("held-out", held_out.len())];
    let parts = [("learning-rate training", fit.len()), ("validation", validation.len())];
    for (what, n) in whole.iter().chain(&parts) {
        ensure!(*n > 0, "{name}: too few rows to split: none is left for the {what} part");
    }
    let folder = dir.join(&name);
    if may_write {
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    let write = |file: &str, rows: &[&Row], source: &Path| -> Result<PathBuf> {
        let time = fs::metadata(source)?.modified().ok();
        let path = folder.join(file);
        let text = rows.iter().fold(String::new(), |mut text, row| {
            let _ = writeln!(text, "{}", row.text);
            text
        });
        // Left alone if it is there: a run may be reading it.
        if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            ensure!(
                may_write,
                "{} is not what the plan's data give, and another comparison may be reading it\n  hint: try again when \
                 it has ended",
                path.display()
            );
            fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
        // Of what a template prints the date hangs on it (docs/data.md).
        if let (true, Some(time)) = (may_write, time) {
            File::options().append(true).open(&path)?.set_modified(time)?;
        }
        Ok(path)
    };
    Ok(Parts {
        train: write("train.jsonl", &train.iter().collect::<Vec<_>>(), data.train())?,
        held_out: write("heldout.jsonl", &held_out.iter().collect::<Vec<_>>(), data.held_out())?,
        fit: write("fit.jsonl", &fit, data.train())?,
        validation: write("validation.jsonl", &validation, data.train())?,
        train_rows: train.len(),
        held_out_rows: held_out.len(),
        common,
        name,
    })
}

struct Row {
    text: String,
    /// Of the question, or of all that is learnt where there is none apart.
    asked: [u8; 32],
    /// What decides for which part it is.
    hash: [u8; 2],
}

fn rows(file: &Path) -> Result<Vec<Row>> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let lines =
        text.trim_start_matches('\u{feff}').lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let sha256 = |text: &str| -> [u8; 32] { Sha256::digest(text).into() };
    let mut first = BTreeMap::new();
    lines
        .map(|(n, line)| {
            let row: Value =
                serde_json::from_str(line).with_context(|| format!("{}:{}", file.display(), n + 1))?;
            let (asked, hash) = match question(&row) {
                Some(question) => {
                    let asked = sha256(&question);
                    (asked, asked)
                }
                // By its line a text was always dealt out, with its other fields: it goes where its first line does.
                None => {
                    let asked = sha256(row["text"].as_str().unwrap_or(line));
                    (asked, *first.entry(asked).or_insert_with(|| sha256(line)))
                }
            };
            Ok(Row { text: line.to_owned(), asked, hash: [hash[0], hash[1]] })
        })
        .collect()
}

/// What stands before the answer; the fields count in the order in which training takes them (docs/data.md).
fn question(row: &Value) -> Option<String> {
    let text = |given: &Value| match given {
        Value::String(text) => text.clone(),
        given => {
            let mut given = given.clone();
            given.sort_all_objects();
            given.to_string()
        }
    };
    if let Some((_, before)) = row["messages"].as_array().and_then(|all| all.split_last()) {
        return Some(text(&Value::from(before)));
    }
    let both = |a: &str, b: &str| row.get(a).filter(|_| row.get(b).is_some()).map(text);
    both("prompt", "completion").or_else(|| both("context", "target"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    /// One question lies on one side, whatever its answers and its row's other fields.
    #[test]
    fn a_question_is_on_one_side() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("set.jsonl");
        let asked = |i: i32| format!("{{\"role\": \"user\", \"content\": \"question {i}\"}}");
        let chat = |i: i32, answer: &str| {
            let asked = asked(i);
            format!(
                "{{\"messages\": [{asked}, {{\"role\": \"assistant\", \"content\": \"{answer}\"}}], \"context\": \"x\"}}\n"
            )
        };
        let pair = |i: i32, answer: &str| {
            let asked = asked(i);
            format!("{{\"completion\": [\"{answer}\"], \"prompt\": [{asked}], \"context\": \"x\"}}\n")
        };
        for line in [&chat as &dyn Fn(i32, &str) -> String, &pair] {
            let rows: String = (0..60).flat_map(|i| [line(i, "a"), line(i, "b")]).collect();
            fs::write(&file, format!("\u{feff}{rows}")).unwrap();
            let parts = split(&Data::Split(file.clone()), dir.path()).unwrap();
            assert!(parts.held_out_rows > 4 && parts.held_out_rows < 60);
            for part in [&parts.train, &parts.held_out, &parts.fit, &parts.validation] {
                let text = fs::read_to_string(part).unwrap();
                assert!(!text.starts_with('\u{feff}'));
                let lines: Vec<_> = text.lines().collect();
                let together =
                    |pair: &[&str]| pair.len() == 2 && pair[1] == pair[0].replace("\"a\"", "\"b\"");
                assert!(lines.chunks(2).all(together), "{text}");
            }
        }
    }

    /// Whatever else its rows have; where each is there once, as older builds dealt them out.
    #[test]
    fn a_text_is_on_one_side() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("set.jsonl");
        let line = |i: i32, source: &str| format!("{{\"text\": \"text {i}\", \"source\": \"{source}\"}}\n");
        let first: String = (0..60).map(|i| line(i, "a")).collect();
        fs::write(&file, &first).unwrap();
        let lines = |parts: &Parts, source: &str| -> [Vec<String>; 2] {
            [&parts.train, &parts.held_out].map(|part| {
                let text = fs::read_to_string(part).unwrap();
                text.lines().filter(|line| line.contains(source)).map(str::to_owned).collect()
            })
        };
        let before = lines(&split(&Data::Split(file.clone()), dir.path()).unwrap(), "");
        let by_line = |line: &String| Sha256::digest(line)[0] % 5 == 0;
        assert!(!before[0].iter().any(by_line) && before[1].iter().all(by_line));
        let second: String = (0..60).map(|i| line(i, "b")).collect();
        fs::write(&file, first + &second).unwrap();
        let parts = split(&Data::Split(file), dir.path()).unwrap();
        assert_eq!(parts.common, 0);
        assert_eq!(lines(&parts, "\"a\""), before);
        let with_b =
            before.map(|lines| lines.iter().map(|line| line.replace("\"a\"", "\"b\"")).collect::<Vec<_>>());
        assert_eq!(lines(&parts, "\"b\""), with_b);
    }

    /// Of one file they never are; of two, somebody has to say so.
    #[test]
    fn questions_that_are_trained_on_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let [train, held_out] = ["train.jsonl", "heldout.jsonl"].map(|name| dir.path().join(name));
        let line =
            |i: i32, answer: &str| format!("{{\"context\": \"question {i}\", \"target\": \"{answer}\"}}\n");
        fs::write(&train, (0..60).map(|i| line(i, "a")).collect::<String>()).unwrap();
        fs::write(&held_out, (50..70).map(|i| line(i, "b")).collect::<String>()).unwrap();
        let parts = split(&Data::Given { train: train.clone(), held_out }, dir.path()).unwrap();
        assert_eq!((parts.common, parts.held_out_rows), (10, 20));
        assert_eq!(split(&Data::Split(train), dir.path()).unwrap().common, 0);
    }

    #[test]
    fn parts_are_apart_and_say_so_when_they_cannot_be() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("set.jsonl");
        let line = |i: i32| format!("{{\"context\": \"question {i}\", \"target\": \"a\"}}\n");
        fs::write(&file, (0..200).map(line).collect::<String>()).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        File::options().append(true).open(&file).unwrap().set_modified(long_ago).unwrap();
        let parts = split(&Data::Split(file.clone()), dir.path()).unwrap();
        let read = |path: &Path| -> Vec<String> {
            fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
        };
        let (train, held_out) = (read(&parts.train), read(&parts.held_out));
        assert_eq!((train.len() + held_out.len(), train.len()), (200, parts.train_rows));
        for part in [&parts.train, &parts.held_out, &parts.fit, &parts.validation] {
            let time = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
            assert_eq!(time(part), time(&file), "a template may print the date");
        }
        assert!(held_out.iter().all(|row| !train.contains(row)) && (20..60).contains(&held_out.len()));
        let (mut again, validation) = (read(&parts.fit), read(&parts.validation));
        assert!(!validation.is_empty() && validation.iter().all(|row| !again.contains(row)));
        again.extend(validation);
        again.sort();
        let mut train = train;
        train.sort();
        assert_eq!(again, train);
        // Who may not write takes what is there, or nothing.
        let data = Data::Split(file.clone());
        assert_eq!(there(&data, dir.path()).unwrap().train, parts.train);
        fs::write(&file, (0..300).map(line).collect::<String>()).unwrap();
        for folder in [dir.path().to_owned(), dir.path().join("nowhere")] {
            let error = there(&data, &folder).unwrap_err().to_string();
            assert!(error.contains("another comparison may be reading it"), "{error}");
        }
        assert!(read(&parts.train).len() < 200 && !dir.path().join("nowhere").exists());
        fs::write(&file, line(1)).unwrap();
        let error = split(&Data::Split(file), dir.path()).unwrap_err().to_string();
        assert!(error.contains("too few rows"), "{error}");
    }
}

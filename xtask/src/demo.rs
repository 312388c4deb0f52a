//! `demo`: the whole story on one screen, told by running the `lora` binary as anyone could.

use crate::{setup, sh};
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which method to train with: lora, rslora, dora, qlora, or several as in qlora+dora
    #[arg(long, default_value = "lora")]
    variant: String,
    /// A few steps only, to see that it runs
    #[arg(long)]
    quick: bool,
}

const HELD_OUT: &str = "docs/demo/heldout.jsonl";
const ADAPTER: &str = "target/demo/adapter";
const MERGED: &str = "target/demo/merged";

/// The command lines of the story, all in one place.
struct Story {
    before: Vec<String>,
    train: Vec<String>,
    after: Vec<String>,
    merge: Vec<String>,
    merged: Vec<String>,
}

fn story(gguf: &str, args: &Args) -> Story {
    let words = |line: &str, quick: &str| -> Vec<String> {
        let quick = if args.quick { quick } else { "" };
        let all = line.split_whitespace().chain(quick.split_whitespace());
        all.map(|word| word.replace("{model}", gguf).replace("{variant}", &args.variant)).collect()
    };
    let eval = format!("eval --model {{model}} --data {HELD_OUT} --json");
    Story {
        before: words(&format!("{eval} --samples 3"), "--limit 8"),
        train: words(
            &format!(
                "train --model {{model}} --data docs/demo/train.jsonl --eval {HELD_OUT} \
                 --variant {{variant}} --lr 2e-3 --epochs 2 --out {ADAPTER} --overwrite"
            ),
            "--max-steps 8 --limit 8",
        ),
        // Beside the base as it was kept in training.
        after: words(&format!("{eval} --samples 3 --adapter {ADAPTER} --variant {{variant}}"), "--limit 8"),
        merge: words(
            &format!(
                "merge --model {{model}} --adapter {ADAPTER} --out {MERGED} --verify {HELD_OUT} --overwrite"
            ),
            "--limit 8",
        ),
        merged: words(&format!("eval --model {MERGED} --data {HELD_OUT} --samples 1 --limit 1 --json"), ""),
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    setup::ensure(false)?;
    let gguf = setup::model()?;
    eprintln!("Building the `lora` binary (the first time takes some minutes) ...");
    let program = sh::lora()?;
    let lora = |args: &[String]| lora(&program, args);
    let story = story(&gguf.to_string_lossy(), args);
    let ready = Instant::now();

    tell(
        1,
        "What the model can do",
        "Questions that training will never see; this is the base model's score.",
    );
    let before = lora(&story.before)?;
    tell(2, "Train", "The model stays frozen; only a small adapter learns. Watch the loss fall.");
    lora(&story.train)?;
    tell(3, "What it can do now", "The same questions, the same model, with the adapter attached.");
    let after = lora(&story.after)?;
    tell(4, "Merge", "The adapter is folded into the weights, and both are checked to answer alike.");
    lora(&story.merge)?;
    tell(5, "The merged model on its own", "An ordinary model folder now, which any program can load.");
    lora(&story.merged)?;

    println!("\n== The result\n");
    print!("{}", result(before.as_ref(), after.as_ref()));
    let (adapter, model) = (bytes_in(&sh::root().join(ADAPTER)), bytes_in(&gguf));
    println!(
        "\nThe adapter takes {:.1} MB, the model {:.1} MB. The story took {:.0} s, and {:.0} s of getting ready.",
        adapter as f64 / 1e6,
        model as f64 / 1e6,
        ready.elapsed().as_secs_f64(),
        (ready - start).as_secs_f64()
    );
    println!("{}", next(&program, &gguf.to_string_lossy(), &args.variant));
    Ok(())
}

fn tell(number: u32, title: &str, text: &str) {
    println!("\n== {number}. {title}\n{text}\n");
}

fn next(program: &Path, gguf: &str, variant: &str) -> String {
    let lora = sh::show(&sh::ours(program));
    format!(
        "\n== What next\n
  talk to it     {lora} generate --model {gguf} --adapter {ADAPTER} \\
                   --variant {variant} --system 'Bank inbox' --prompt 'My card is gone'
  other methods  cargo xtask demo --variant dora        (or rslora, qlora, qlora+dora+rslora)
  your own data  a file like docs/demo/train.jsonl: one JSON object a line
  all commands   {lora} --help
  read on        README.md, then ARCHITECTURE.md"
    )
}

/// Runs one `lora` command, shown as one would type it; what it prints goes on to the screen, but for a JSON object,
/// which is returned.
fn lora(program: &Path, args: &[String]) -> Result<Option<Value>> {
    let mut command = sh::ours(program);
    command.args(args).current_dir(sh::root());
    println!("$ {}\n", sh::show(&command));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", sh::show(&command)))?;
    let mut object = None;
    for line in BufReader::new(child.stdout.take().context("its output")?).lines() {
        let line = line.context("its output")?;
        match serde_json::from_str::<Value>(&line).ok().filter(Value::is_object) {
            Some(found) => object = Some(found),
            None => println!("{line}"),
        }
    }
    sh::checked(&command, child.wait()?)?;
    Ok(object)
}

fn result(before: Option<&Value>, after: Option<&Value>) -> String {
    let cell = |run: Option<&Value>, key: &str, percent: bool| match run.and_then(|r| r[key].as_f64()) {
        Some(value) if percent => format!("{:.1} %", 100.0 * value),
        Some(value) => format!("{value:.3}"),
        None => "-".into(),
    };
    let examples =
        before.and_then(|b| b["examples"].as_u64()).map_or(String::new(), |n| format!(" ({n} held-out)"));
    let mut text = format!("{:24} {:>10} {:>10}\n", format!("score{examples}"), "before", "after");
    for (name, key, percent) in [("right answers", "accuracy", true), ("loss", "loss", false)] {
        text += &format!("{name:24} {:>10} {:>10}\n", cell(before, key, percent), cell(after, key, percent));
    }
    text
}

fn bytes_in(path: &Path) -> u64 {
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|e| bytes_in(&e.path())).sum(),
        Err(_) => fs::metadata(path).map_or(0, |m| m.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_story_names_what_was_asked_for() {
        let story = story("/a b/m.gguf", &Args { variant: "qlora+dora".into(), quick: true });
        let after =
            |args: &[String], flag: &str| args[args.iter().position(|a| a == flag).unwrap() + 1].clone();
        assert_eq!(after(&story.train, "--variant"), "qlora+dora");
        assert_eq!(after(&story.train, "--model"), "/a b/m.gguf", "a path with a blank stays one argument");
        assert_eq!(after(&story.train, "--max-steps"), "8");
        assert_eq!(after(&story.after, "--adapter"), after(&story.train, "--out"));
        assert_eq!(after(&story.after, "--variant"), "qlora+dora", "its storage is that of training");
        assert!(next(Path::new("lora"), "m.gguf", "qlora+dora").contains("--variant qlora+dora "));
        assert_eq!(after(&story.merged, "--model"), after(&story.merge, "--out"));
    }

    #[test]
    fn the_result_has_a_dash_for_what_is_unknown() {
        let text = result(Some(&json!({"accuracy": 0.125, "loss": 2.5, "examples": 8})), None);
        assert!(
            text.contains("score (8 held-out)") && text.contains("12.5 %") && text.contains("2.500"),
            "{text}"
        );
        assert!(text.contains(" -\n"), "{text}");
    }
}

//! SmolLM2-135M, full size, beside transformers and PEFT: `parity --dir DIR --gguf FILE`, where DIR is what
//! `xtask/peers/parity.py` wrote. `cargo xtask parity` does both. Prints a table; exit code 1 if a row fails. With
//! `--quant`, 4 bits alone, beside what `xtask/peers/quant.py` wrote.
//!
//! With LORA_PARITY_PYTHON (a Python with PEFT) the adapters that we write are read by PEFT too.

#![allow(clippy::print_stdout)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod files;
mod quant;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use common::{Tensors, curve, curve_error, first_step, llama, relative};
use lora::model::{Llama, Message, Model, Sampling, Texts, Tokenizer, generate};
use lora::{Error, Linears, Mode, Result, VARIANTS, read_tensors};
use serde_json::Value;
use tch::{Kind, Tensor};

const RECIPES: [&str; 4] = ["lora", "rslora", "dora", "patterns"];

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (mut dir, mut gguf, mut quant) = (None, None, false);
    while let Some(flag) = args.next() {
        match flag.as_str() {
            "--dir" => dir = args.next().map(PathBuf::from),
            "--gguf" => gguf = args.next().map(PathBuf::from),
            "--quant" => quant = true,
            _ => {}
        }
    }
    let (Some(dir), Some(gguf)) = (dir, gguf) else {
        eprintln!("usage: parity --dir DIR --gguf FILE   (or: cargo xtask parity)");
        return ExitCode::from(2);
    };
    let mut table = Table::default();
    let done = if quant { quant::check(&dir, &mut table) } else { run(&dir, &gguf, &mut table) };
    if let Err(e) = done {
        eprintln!("error: {e}");
        e.hint_text().iter().for_each(|hint| eprintln!("  hint: {hint}"));
        return ExitCode::FAILURE;
    }
    println!("{} of {} passed", table.rows - table.failed, table.rows);
    if table.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints each row as it comes.
#[derive(Default)]
struct Table {
    rows: usize,
    failed: usize,
}

impl Table {
    fn row(&mut self, what: &str, passed: bool, figure: &str, tolerance: &str) {
        self.rows += 1;
        self.failed += usize::from(!passed);
        println!("{}  {what:<52} {figure:>18}  {tolerance}", if passed { "PASS" } else { "FAIL" });
    }

    fn near(&mut self, what: &str, error: f64, tolerance: f64) {
        self.row(what, error <= tolerance, &format!("{error:.2e}"), &format!("at most {tolerance:.0e}"));
    }

    /// For things that must be identical.
    fn same(&mut self, what: &str, differ: usize, count: usize) {
        self.row(what, differ == 0 && count > 0, &format!("{differ} of {count}"), "none may differ");
    }
}

fn run(dir: &Path, gguf: &Path, table: &mut Table) -> Result<()> {
    texts(dir, gguf, table)?;
    let hf = dir.join("hf");
    let golden = read_tensors(&dir.join("base.safetensors"))?;
    let ids = tensor(&golden, "input_ids")?;
    for (what, path) in [("Hugging Face folder", hf.as_path()), ("GGUF file", gguf)] {
        let error = relative(&logits(&llama(path)?, ids)?, tensor(&golden, "logits")?);
        table.near(&format!("base logits, {what}"), error, 1e-5);
    }
    for recipe in RECIPES {
        adapter(dir, recipe, ids, table)?;
    }
    greedy(dir, &hf, table)?;
    files::check(dir, ids, table)
}

fn adapter(dir: &Path, recipe: &str, ids: &Tensor, table: &mut Table) -> Result<()> {
    let golden = read_tensors(&dir.join(recipe).join("golden.safetensors"))?;
    let mut model = llama(&dir.join("hf"))?;
    lora::load(&mut model, "a", &dir.join(recipe).join("adapter"), VARIANTS)?;
    let labels = tensor(&golden, "labels")?;
    let error = relative(&logits(&model, ids)?, tensor(&golden, "logits")?);
    table.near(&format!("{recipe}: logits"), error, 1e-5);

    merged(recipe, &mut model, &golden, table)?;
    let (loss, gradients) = first_step(&model, "a", ids, labels)?;
    let theirs = tensor(&golden, "loss")?.double_value(&[0]);
    table.near(&format!("{recipe}: loss"), (loss / theirs - 1.0).abs(), 1e-5);
    let theirs = golden.iter().filter_map(|(key, t)| Some((key.strip_prefix("grad.")?, t)));
    let error = worst(theirs, &gradients);
    table.near(&format!("{recipe}: worst of {} gradients", gradients.len()), error, 1e-4);
    let (losses, _) = curve(&model, "a", (ids, labels), 1e-3, false)?;
    let error = curve_error(&losses, tensor(&golden, "curve")?);
    table.near(&format!("{recipe}: the curve of 20 steps"), error, 1e-3);
    Ok(())
}

/// The merged weights that the golden has.
fn merged(what: &str, model: &mut Llama, golden: &Tensors, table: &mut Table) -> Result<()> {
    lora::merge(model)?;
    for (name, layer) in model.linears() {
        if let Some(theirs) = golden.get(&format!("merged.{name}.weight")) {
            let ours = layer.constant().map(|w| w.dense(Kind::Float));
            let error = ours.map_or(f64::INFINITY, |ours| relative(&ours, theirs));
            table.near(&format!("{what}: merged {}", name.trim_start_matches("model.")), error, 1e-5);
        }
    }
    lora::unmerge(model);
    Ok(())
}

/// The largest relative error; infinite unless both have the same names.
fn worst<'a>(theirs: impl Iterator<Item = (&'a str, &'a Tensor)>, ours: &Tensors) -> f64 {
    let mut left = ours.len();
    let error = |(key, theirs): (&str, &Tensor)| {
        left = left.saturating_sub(1);
        ours.get(key).map_or(f64::INFINITY, |ours| relative(ours, theirs))
    };
    let worst = theirs.map(error).fold(0.0, f64::max);
    if left == 0 { worst } else { f64::INFINITY }
}

/// Texts to ids and conversations to texts, by the tokenizer of either source.
fn texts(dir: &Path, gguf: &Path, table: &mut Table) -> Result<()> {
    let (tokens, chats) = (list(&dir.join("tokens.json"))?, list(&dir.join("chat.json"))?);
    for (what, path) in [("Hugging Face folder", dir.join("hf").as_path()), ("GGUF file", gguf)] {
        let tokenizer = Tokenizer::open(path)?;
        let differs = |text: &str, ids: &Value| tokenizer.encode(text, false).ok() != numbers(ids);
        let differ = tokens.iter().filter(|t| t["text"].as_str().is_none_or(|text| differs(text, &t["ids"])));
        table.same(&format!("token ids of texts, {what}"), differ.count(), tokens.len());

        let template = tokenizer.chat_template();
        let wrong = |chat: &Value, reply: bool, text: &str, ids: &str| {
            let messages: Option<Vec<Message>> = serde_json::from_value(chat["messages"].clone()).ok();
            let ours = template.zip(messages).and_then(|(t, m)| t.render(&m, reply).ok());
            ours.is_none_or(|ours| chat[text] != ours.as_str() || differs(&ours, &chat[ids]))
        };
        let either = |c: &&Value| wrong(c, false, "text", "ids") || wrong(c, true, "prompt", "prompt_ids");
        let differ = chats.iter().filter(either).count();
        table.same(&format!("conversations, text and ids, {what}"), differ, chats.len());
    }
    Ok(())
}

fn greedy(dir: &Path, hf: &Path, table: &mut Table) -> Result<()> {
    let (model, tokenizer, prompts) = (llama(hf)?, Tokenizer::open(hf)?, list(&dir.join("greedy.json"))?);
    let (mut differ, mut tokens) = (0, 0);
    for prompt in &prompts {
        let ids = numbers(&prompt["ids"]).unwrap_or_default();
        let mut theirs = numbers(&prompt["new"]).unwrap_or_default();
        let ours = generate(&model, &ids, 64, tokenizer.eos_ids(), Sampling::Greedy, |_| true)?;
        // They keep the token that ends a reply.
        if theirs.last().is_some_and(|last| tokenizer.eos_ids().contains(last)) {
            theirs.pop();
        }
        tokens += theirs.len();
        differ += usize::from(ours != theirs);
    }
    table.same(&format!("greedy replies ({tokens} tokens)"), differ, prompts.len());
    Ok(())
}

fn logits(model: &Llama, ids: &Tensor) -> Result<Tensor> {
    tch::no_grad(|| model.logits(Texts::Rows(ids), None, Mode::Eval))
}

fn tensor<'a>(tensors: &'a Tensors, name: &str) -> Result<&'a Tensor> {
    tensors.get(name).ok_or_else(|| Error::data(format!("the golden has no `{name}`")))
}

fn numbers(list: &Value) -> Option<Vec<i64>> {
    list.as_array()?.iter().map(Value::as_i64).collect()
}

fn list(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::data(e.to_string()).at(path.display()))
}

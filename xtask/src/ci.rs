//! `ci`: all that must hold before a commit, the cheapest first.

use crate::{setup, sh, test, tidy};
use anyhow::Result;
use std::process::Command;
use std::time::Instant;

type Step = (&'static str, &'static str, Box<dyn Fn() -> Result<()>>);

pub(crate) fn run() -> Result<()> {
    let begin = Instant::now();
    let steps = steps();
    for (index, (name, repeat, step)) in steps.iter().enumerate() {
        eprintln!("\n=== {}/{} {name}", index + 1, steps.len());
        let start = Instant::now();
        if let Err(error) = step() {
            eprintln!("=== {name} FAILED after {:.1} s; to repeat: {repeat}", start.elapsed().as_secs_f64());
            return Err(error);
        }
        eprintln!("=== {name}: ok, {:.1} s", start.elapsed().as_secs_f64());
    }
    eprintln!("\nAll of it holds ({:.0} s).", begin.elapsed().as_secs_f64());
    Ok(())
}

fn steps() -> Vec<Step> {
    let all_of = |commands: Vec<Command>| {
        let commands = std::cell::RefCell::new(commands);
        Box::new(move || commands.borrow_mut().iter_mut().try_for_each(sh::run))
    };
    let clippy = ["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
    // The binary's pages would lie over the facade's: both are called `lora`.
    let doc = ["doc", "--release", "--workspace", "--no-deps", "--exclude", "lora-cli", "--exclude", "xtask"];
    let mut documentation = cargo(&doc);
    documentation.env("RUSTDOCFLAGS", "-D warnings");
    let mut demo = sh::cargo();
    demo.args(["xtask", "demo", "--quick"]);
    vec![
        ("format", "cargo fmt --all", all_of(vec![cargo(&["fmt", "--all", "--check"])])),
        ("tidy", "cargo xtask tidy", Box::new(tidy::run)),
        (
            "setup",
            "cargo xtask setup --nvrtc",
            Box::new(|| setup::ensure(false).and_then(|()| setup::nvrtc())),
        ),
        (
            "lints",
            "cargo clippy --release --workspace --all-targets -- -D warnings",
            all_of(vec![cargo(&clippy)]),
        ),
        ("tests", "cargo xtask test", all_of(test::commands(&[]))),
        (
            "docs",
            "RUSTDOCFLAGS='-D warnings' cargo doc --release --workspace --no-deps --exclude lora-cli --exclude xtask",
            all_of(vec![documentation]),
        ),
        ("demo", "cargo xtask demo --quick", all_of(vec![demo])),
    ]
}

fn cargo(args: &[&str]) -> Command {
    let mut cargo = sh::cargo();
    cargo.args(args);
    cargo
}

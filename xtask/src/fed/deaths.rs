//! `fed --deaths`: every start of the coordinator dies behind its first durable write, or, while its stores hold what they
//! held, behind its second, third, ...: so behind every change of state, and every write on the way to one. What comes of it
//! is what comes of an undisturbed run, in every bit.

use super::deployment::{Deployment, Isolation};
use super::{CLIENTS, DISTURBED, ROUNDS, Trial};
use crate::sh;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const MOST: usize = 1000;

impl Trial {
    pub(super) fn deaths(&self) -> Result<()> {
        let shim = self.at("deaths.so");
        let source = sh::root().join("xtask/src/fed/deaths.c");
        sh::run(
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).arg(source).arg("-ldl"),
        )
        .context("the coordinator is made to die by a small C library")?;
        let simulated = self.simulate(DISTURBED, ROUNDS, &CLIENTS, &[])?;
        let mut flower = Deployment::start(&self.venv, &self.at("deaths"), Isolation::Process)?;
        self.join(&mut flower, None)?;
        flower.submit("")?;
        let (out, log, died) =
            (self.at("undying"), flower.at("coordinator.log"), flower.at("coordinator.died"));
        let done = || out.join("adapter_model.safetensors").exists();
        let (mut starts, mut changes, mut after, mut held) = (0, 0, 1, self.held(&out)?);
        while !done() {
            let mut serve = self.serve(&flower, flower.address(), &out, (DISTURBED, ROUNDS, CLIENTS.len()));
            serve.env("LD_PRELOAD", &shim).env("DIE_AFTER", after.to_string()).env("DIE_LOG", &died);
            let to = fs::OpenOptions::new().create(true).append(true).open(&log)?;
            let status = serve.stdin(Stdio::null()).stdout(to.try_clone()?).stderr(to).status()?;
            starts += 1;
            if (status.code().is_some() || starts == MOST) && !done() {
                bail!(
                    "the coordinator gave up, or was not done after {starts} starts\n  hint: see {}",
                    log.display()
                );
            }
            let now = self.held(&out)?;
            let changed = now != held;
            (changes, after, held) =
                (changes + usize::from(changed), if changed { 1 } else { after + 1 }, now);
        }
        println!("{ROUNDS} rounds, {starts} starts of the coordinator, {changes} changes of state");
        println!("it died behind a write of: {}", by_file(&fs::read_to_string(&died)?));
        self.equal(&out.join("adapter_model.safetensors"), &simulated)
    }

    /// What the coordinator's stores hold, as a hash.
    fn held(&self, out: &Path) -> Result<String> {
        let mut python = Command::new(self.venv.join("bin/python"));
        python.arg(sh::root().join("xtask/peers/store_content.py"));
        sh::capture(python.args(["state", "flower"].map(|end| out.with_extension(end))))
    }
}

/// How often each file comes, temporary ones without their numbers.
fn by_file(names: &str) -> String {
    let mut files = BTreeMap::<String, usize>::new();
    for name in names.lines() {
        let partial = name.split_once(".partial-").map(|(file, _)| format!("{file}.partial"));
        *files.entry(partial.unwrap_or_else(|| name.to_owned())).or_default() += 1;
    }
    files.iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn writes_are_counted_by_file() {
        let names = "run.state-wal\na.json.partial-7-0\nrun.state-wal\na.json.partial-8-0\n";
        assert_eq!(super::by_file(names), "a.json.partial 2, run.state-wal 2");
    }
}

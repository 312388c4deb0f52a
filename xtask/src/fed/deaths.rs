//! `fed --deaths`: each start of the coordinator dies behind its first durable write, or, where a round gets no further by
//! that, its second, third, ...: so behind every change of its state. What comes of it is what comes of an undisturbed
//! run, in every bit.

use super::deployment::{Deployment, Isolation};
use super::{CLIENTS, ROUNDS, Trial};
use crate::sh;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

/// After so many deaths in a round a start may write once more: what a start itself writes is no progress.
const STUCK: usize = 12;
const MOST: usize = 400;

impl Trial {
    pub(super) fn deaths(&self) -> Result<()> {
        let shim = self.at("deaths.so");
        let source = sh::root().join("xtask/src/fed/deaths.c");
        sh::run(
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).arg(source).arg("-ldl"),
        )
        .context("the coordinator is made to die by a small C library")?;
        let simulated = self.simulate("fedsvd", ROUNDS, &[])?;
        let mut flower = Deployment::start(&self.venv, &self.at("deaths"), Isolation::Process)?;
        for client in CLIENTS {
            let node = self.node(&flower, client, "ca.pem")?;
            flower.register(client)?;
            flower.spawn(client, node)?;
        }
        flower.submit("")?;
        let (out, log, died) =
            (self.at("undying"), flower.at("coordinator.log"), flower.at("coordinator.died"));
        let mut deaths = 0;
        let mut here = (0, 0);
        while !out.join("adapter_model.safetensors").exists() {
            let rounds =
                fs::read_to_string(out.with_extension("rounds.jsonl")).unwrap_or_default().lines().count();
            here = if here.0 == rounds { (rounds, here.1 + 1) } else { (rounds, 1) };
            let writes = 1 + here.1 / STUCK;
            let mut serve = self.serve(&flower, flower.address(), &out, ROUNDS);
            serve.env("LD_PRELOAD", &shim).env("DIE_AFTER", writes.to_string()).env("DIE_LOG", &died);
            let to = fs::OpenOptions::new().create(true).append(true).open(&log)?;
            let status = serve.stdin(Stdio::null()).stdout(to.try_clone()?).stderr(to).status()?;
            if status.code().is_some() && !out.join("adapter_model.safetensors").exists() {
                bail!("the coordinator ended by itself\n  hint: see {}", log.display());
            }
            deaths += 1;
            if deaths > MOST {
                bail!("no end after {MOST} deaths\n  hint: see {}", log.display());
            }
        }
        let mut files = BTreeMap::<String, usize>::new();
        for name in fs::read_to_string(&died)?.lines() {
            let partial = name.split_once(".partial-").map(|(file, _)| format!("{file}.partial"));
            *files.entry(partial.unwrap_or_else(|| name.to_owned())).or_default() += 1;
        }
        let list: Vec<_> = files.iter().map(|(name, n)| format!("{name} {n}")).collect();
        println!(
            "{ROUNDS} rounds, {deaths} starts of the coordinator; it died behind a write of: {}",
            list.join(", ")
        );
        self.equal(&out.join("adapter_model.safetensors"), &simulated)
    }
}

//! `fed --faults N`: nodes and coordinator are killed at random moments, and the network between them and the SuperLink
//! misbehaves, N times in all; what comes of it is what comes of an undisturbed run, in every bit.

use super::deployment::{Deployment, Isolation};
use super::network::Network;
use super::{CLIENTS, DISTURBED, Trial};
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Rounds of a run: some minutes, undisturbed.
const ROUNDS: u64 = 14;
/// Between a death and the next, at most.
const PAUSE: u64 = 8000;
const SERVER: &str = "coordinator";

impl Trial {
    pub(super) fn faults(&self, wanted: usize) -> Result<()> {
        let simulated = self.simulate(DISTURBED, ROUNDS, &CLIENTS, &[])?;
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let (mut deaths, mut run) = (BTreeMap::<&str, usize>::new(), 0);
        let mut met = BTreeMap::<&str, usize>::new();
        while deaths.values().chain(met.values()).sum::<usize>() < wanted {
            run += 1;
            let out = self.at(&format!("stormy-{run}"));
            let mut flower =
                Deployment::start(&self.venv, &self.at(&format!("faults-{run}")), Isolation::Process)?;
            let network = Network::before(flower.address())?;
            self.join(&mut flower, Some(network.address()))?;
            flower.submit("")?;
            let serve = |flower: &Deployment| -> Command {
                self.serve(flower, network.address(), &out, (DISTURBED, ROUNDS, CLIENTS.len()))
            };
            let command = serve(&flower);
            flower.spawn(SERVER, command)?;
            let until = Instant::now() + Duration::from_secs(1800);
            while !out.join("adapter_model.safetensors").exists() {
                if Instant::now() > until {
                    bail!("run {run} did not end\n  hint: see {}", flower.at("").display());
                }
                sleep(Duration::from_millis(random.below(PAUSE)));
                let victims = [CLIENTS[0], CLIENTS[1], SERVER];
                let victim = victims[random.below(victims.len() as u64) as usize];
                if !flower.kill(victim)? {
                    // The coordinator is done, or a process gave up, which it must not.
                    if out.join("adapter_model.safetensors").exists() {
                        break;
                    }
                    if victim != SERVER {
                        bail!(
                            "{victim} ended by itself\n  hint: see {}",
                            flower.at(&format!("{victim}.log")).display()
                        );
                    }
                } else {
                    *deaths.entry(victim).or_default() += 1;
                }
                let again = match victim {
                    SERVER => serve(&flower),
                    node => self.node_at(&flower, network.address(), node, "ca.pem")?,
                };
                flower.spawn(victim, again)?;
            }
            network.met().into_iter().for_each(|(what, n)| *met.entry(what).or_default() += n);
            let list = |of: &BTreeMap<&str, usize>| {
                of.iter().map(|(what, n)| format!("{what} {n}")).collect::<Vec<_>>().join(", ")
            };
            println!("run {run}: so far killed: {}; of the network: {}", list(&deaths), list(&met));
            self.equal(&out.join("adapter_model.safetensors"), &simulated)?;
        }
        Ok(())
    }
}

/// Which, and when: the same every time, as far as chance goes (splitmix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n.max(1)
    }
}

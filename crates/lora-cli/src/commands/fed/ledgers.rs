//! Where a simulation's clients keep their promises to rows.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use lora::{Error, Promise, sibling};

use super::federation::OutArgs;
use crate::commands::say;
use crate::paths;
use crate::privacy::{PrivacyArgs, ledger_of};

/// By name, with the file of its rows.
type Client = (String, PathBuf);

#[derive(clap::Args)]
pub(super) struct LedgerArgs {
    #[command(flatten)]
    privacy: PrivacyArgs,
    /// Clients' ledgers are FOLDER/NAME.jsonl, and know of no other run: for trying things on rows that nobody has to protect
    /// [default: beside each client's rows, where `lora train` has it; --data has none]
    #[arg(long, value_name = "FOLDER", help_heading = "Privacy", requires = "dp_epsilon")]
    dp_ledgers: Option<PathBuf>,
}

impl LedgerArgs {
    /// Refuses what would keep a promise by a ledger that is not that of the rows, unasked.
    pub(super) fn check(&self, out: &OutArgs, clients: &[Client], data: Option<&Path>) -> Result<()> {
        // Nobody is asked any more where a run is ended.
        if self.privacy.dp_epsilon.is_none() || out.end {
            return Ok(());
        }
        if let Some(folder) = &self.dp_ledgers {
            let rows = clients.iter().map(|(_, rows)| rows.as_path()).chain(data).chain(out.eval.as_deref());
            let rows: Vec<_> = rows.map(|rows| ("these rows", Some(rows))).collect();
            paths::apart(&[("--dp-ledgers", Some(folder.as_path()))], &rows)?;
            // What is there is written anew, or removed at the end.
            let own = [out.out.clone(), sibling(&out.out, "kept"), sibling(&out.out, "clients")];
            if let Some(own) = own.iter().find(|own| paths::real(folder).starts_with(paths::real(own))) {
                let what = format!("--dp-ledgers lies in {}, which the run itself fills", own.display());
                let e = Error::usage(what).at(folder.display());
                return Err(e.hint("ledgers outlive a run: give them a folder of their own").into());
            }
            return Ok(());
        }
        let former = sibling(&out.out, "privacy");
        if former.is_dir() {
            let e =
                Error::usage("here are ledgers of such a run, and those beside the rows do not know of them");
            let hint = format!(
                "go on with them: --dp-ledgers {}; or, if that run is over, move the folder away",
                former.display()
            );
            return Err(e.at(former.display()).hint(hint).into());
        }
        if data.is_some() {
            let e = Error::usage(
                "--dp-epsilon with --data: a client's rows are no file, beside which its ledger lies",
            );
            return Err(e
                .hint("give each client a file, by --client, or say where ledgers lie: --dp-ledgers")
                .into());
        }
        let mut ledgers = BTreeMap::new();
        for (name, rows) in clients {
            if let Some(other) = ledgers.insert(paths::real(&ledger_of(rows)), name) {
                let e =
                    Error::usage(format!("{other} and {name} have the same rows, and so one ledger for two"));
                let hint = "give each client a file of its own, or say where ledgers lie: --dp-ledgers";
                return Err(e.at(rows.display()).hint(hint).into());
            }
        }
        Ok(())
    }

    /// What is promised to the rows of each, if anything is; [`check`](Self::check) comes before.
    pub(super) fn promises<'a>(
        &self,
        clients: &[Client],
        names: impl Iterator<Item = &'a String>,
    ) -> Result<BTreeMap<String, Promise>> {
        let ledger = |name: &String| match &self.dp_ledgers {
            Some(folder) => Some(folder.join(format!("{name}.jsonl"))),
            None => clients.iter().find(|(client, _)| client == name).map(|(_, rows)| ledger_of(rows)),
        };
        let promise = |name: &String| Some((name.clone(), self.privacy.promise(ledger(name)?)?));
        let promises: BTreeMap<_, _> = names.filter_map(promise).collect();
        let Some(epsilon) = promises.values().next().map(|promise| promise.epsilon) else {
            return Ok(promises);
        };
        match &self.dp_ledgers {
            Some(folder) => {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
                made.map_err(|e| Error::io("create the ledgers' folder", folder, e))?;
                say!("privacy     epsilon {epsilon} a row, by ledgers in {} alone", folder.display());
                say!("            what other runs give away of these rows is not in them, and comes on top");
            }
            None => say!("privacy     epsilon {epsilon} a row, by the ledgers beside the clients' rows"),
        }
        Ok(promises)
    }
}

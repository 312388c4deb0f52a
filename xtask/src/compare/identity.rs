//! By what a run is known: what its settings mean, however they are spelt.

use super::outcome::{DIVERGED, RESULT};
use super::plan::{Parts, split};
use super::run::Settings;
use crate::cache;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The order of a recipe's parts; others stand behind them, by their names.
const PARTS: [&str; 6] = ["dense", "qlora", "lora", "full", "dora", "rslora"];

/// What `lora train` does where an option is left out.
const DEFAULTS: [(&str, &str); 8] = [
    ("--accumulate", "1"),
    ("--clip", "1"),
    ("--dropout", "0"),
    ("--init", "kaiming"),
    ("--recompute", "none"),
    ("--schedule", "cosine"),
    ("--warmup", "0.05"),
    ("--weight-decay", "0"),
];

impl Settings {
    /// Letters and digits, the same for all settings that mean one run.
    pub(crate) fn hash(&self) -> String {
        let (variant, targets, extra) = (recipe(&self.variant), names(&self.targets), options(&self.extra));
        let mut layers = self.layers.clone();
        layers.sort_unstable();
        layers.dedup();
        digest(&Self { variant, targets, extra, layers, ..self.clone() })
    }

    /// By what older builds knew it: as it is spelt, and `full` beside other parts with a rank; by another name of the set too.
    fn former(&self) -> Vec<String> {
        let (rank, alpha) = self.point.unzip();
        let ranked = |s: &Self| Self { rank: s.rank.or(rank), alpha: s.alpha.or(alpha), ..s.clone() };
        let mut names = vec![digest(self), digest(&ranked(self))];
        if let Some(set) = &self.former_set {
            let named = Self { set: set.clone(), ..self.clone() };
            names.extend([named.hash(), digest(&named), digest(&ranked(&named))]);
        }
        names
    }

    /// Where what came of it lies among `runs`: it may have been done by an older build.
    pub(crate) fn home(&self, runs: &Path) -> PathBuf {
        let home = runs.join(self.hash());
        let ended = |dir: &PathBuf| [RESULT, DIVERGED].iter().any(|name| dir.join(name).exists());
        if ended(&home) {
            return home;
        }
        self.former().iter().map(|name| runs.join(name)).find(ended).unwrap_or(home)
    }
}

fn digest(settings: &Settings) -> String {
    let text = serde_json::to_string(settings).unwrap_or_default();
    cache::hex(&Sha256::digest(text))[..16].to_owned()
}

/// A plan's variant in the one spelling of all that mean the same.
pub(crate) fn variant(spelt: &str) -> String {
    let Parts { recipe: parts, start, rule } = split(spelt);
    let behind = |mark: &str, part: Option<&str>| part.map_or(String::new(), |part| format!("{mark}{part}"));
    format!("{}{}{}", recipe(parts), behind("@", start), behind(" by ", rule))
}

fn recipe(spelt: &str) -> String {
    let mut parts: Vec<String> = spelt.split('+').map(|part| storage(part.trim())).collect();
    if parts.len() > 1 {
        // The update where none is named.
        parts.retain(|part| part != "lora");
    }
    parts.sort_by_cached_key(|part| {
        let name = part.split(':').next();
        (PARTS.iter().position(|known| Some(*known) == name).unwrap_or(PARTS.len()), part.clone())
    });
    parts.join("+")
}

/// A recipe's part, `qlora`'s options without those that say the default, in one order; of one thing the last counts.
fn storage(spelt: &str) -> String {
    let Some(("qlora", options)) = spelt.split_once(':') else { return spelt.to_owned() };
    let (mut code, mut block, mut scales) = ("", String::new(), "");
    for word in options.split(':') {
        match (word, word.parse::<u64>()) {
            ("", _) => {}
            ("nf4", _) => code = "",
            ("fp4", _) => code = "fp4",
            ("single", _) => scales = "single",
            (_, Ok(64)) => block.clear(),
            (_, Ok(weights)) => block = weights.to_string(),
            // `lora` refuses it.
            _ => return spelt.to_owned(),
        }
    }
    let parts = ["qlora", code, &block, scales];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(":")
}

/// Modules by their names, which have no order.
fn names(spelt: &str) -> String {
    if spelt.starts_with("regex:") {
        return spelt.to_owned();
    }
    let names: BTreeSet<_> = spelt.split(',').map(str::trim).collect();
    names.into_iter().collect::<Vec<_>>().join(",")
}

/// Options by their names, without those that say the default. One that is repeated keeps its order.
fn options(words: &[String]) -> Vec<String> {
    let mut options: Vec<(&str, Vec<String>)> = Vec::new();
    for word in words {
        match options.last_mut().filter(|_| !word.starts_with("--")) {
            Some((_, values)) => values.push(value(word)),
            None => {
                let (name, given) = word.split_once('=').map_or((word.as_str(), None), |(n, v)| (n, Some(v)));
                options.push((name, given.into_iter().map(value).collect()));
            }
        }
    }
    options
        .retain(|(name, values)| !DEFAULTS.iter().any(|(known, value)| known == name && *values == [*value]));
    options.sort_by_key(|(name, _)| *name);
    options.into_iter().flat_map(|(name, values)| [name.to_owned()].into_iter().chain(values)).collect()
}

/// A number in one spelling, anything else as it is.
fn value(word: &str) -> String {
    // A float holds not every whole number.
    let whole = word.parse::<u64>().ok().map(|n| n.to_string());
    let float = || word.parse::<f64>().ok().filter(|n| n.is_finite()).map(|n| n.to_string());
    whole.or_else(float).unwrap_or_else(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::jobs::tests::{grid, plan};
    use super::*;
    use std::fs;

    /// The only trained run of a plan like this: its variant, and the rest of it.
    fn run(variant: &str, rest: &str) -> Settings {
        let plan = plan(&format!(
            "variants = ['{variant}']\nranks = [4, 8]\nlearning_rates = [1e-4]\nseeds = [1]\n{rest}"
        ));
        grid(&plan).grid(|_, _| plan.learning_rates[0]).remove(0).settings
    }

    #[test]
    fn what_means_one_run_is_one() {
        for (spellings, other) in [
            (["qlora+dora+rslora", "rslora+dora+ qlora", "lora+dora+rslora+qlora:64:nf4"], "qlora+dora"),
            (
                ["qlora:fp4:128:single", "qlora:single:128:fp4", "lora+qlora:single:nf4:fp4:128"],
                "qlora:fp4:128",
            ),
            (["lora", "lora", "lora"], "dense+lora"),
            (["loha+dora+b", "b+dora+loha", "dora+b+loha"], "loha+b"),
        ] {
            let hashes = spellings.map(|spelt| run(spelt, "").hash());
            assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{spellings:?}");
            assert_ne!(run(other, "").hash(), hashes[0], "{other}");
            let named = spellings.map(|spelt| variant(&format!("{spelt}@loftq by fedit")));
            assert!(
                named.iter().all(|name| *name == named[0] && name.ends_with("@loftq by fedit")),
                "{named:?}"
            );
        }
        for (spellings, other) in [
            (
                ["", "train = ['--warmup', '5e-2', '--schedule=cosine']", "dtype = 'bf16'\nepochs = 1.0"],
                "epochs = 2",
            ),
            (
                [
                    "train = ['--clip', '0.5', '--truncate']",
                    "train = ['--truncate', '--clip=5e-1']",
                    "train = ['--truncate', '--clip', '.5']",
                ],
                "train = ['--clip', '0.5']",
            ),
            (
                [
                    "targets = 'q_proj,v_proj'",
                    "targets = 'v_proj, q_proj'",
                    "targets = 'v_proj,q_proj,v_proj'",
                ],
                "targets = 'q_proj'",
            ),
            (
                ["targets = 'regex:a,b'", "targets = 'regex:a,b'", "targets = 'regex:a,b'"],
                "targets = 'regex:b,a'",
            ),
            (
                ["train = ['--rank-pattern', 'a=4', '--rank-pattern=b=8']"; 3],
                "train = ['--rank-pattern', 'b=8', '--rank-pattern', 'a=4']",
            ),
        ] {
            let hashes = spellings.map(|rest| run("lora", rest).hash());
            assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{spellings:?}");
            assert_ne!(run("lora", other).hash(), hashes[0], "{other}");
        }
        let layers = |layers: &str| run("full", &format!("full_layers = {layers}")).hash();
        assert_eq!(layers("[29, 28]"), layers("[28, 29, 28]"));
    }

    /// Those of an older build lie under the names that it gave them.
    #[test]
    fn what_an_older_build_did_is_found() {
        // The saved runs' spellings, among them those of docs/comparison/runs.
        for spelt in
            ["lora", "rslora", "dora", "qlora", "qlora+dora+rslora", "qlora@loftq", "full", "lora by fedsvd"]
        {
            let settings = run(spelt, "train = ['--max-steps', '20']");
            assert_eq!(settings.hash(), digest(&settings), "{spelt}");
        }
        let runs = tempfile::tempdir().unwrap();
        let done = |name: &str, file: &str| {
            let dir = runs.path().join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(file), "").unwrap();
            dir
        };
        let full = run("full+qlora", "");
        let ranked = Settings { rank: Some(4), alpha: Some(8.0), ..full.clone() };
        // From a plan that was called from its own folder.
        let moved = Settings { former_set: Some("train".into()), ..run("lora", "") };
        let then = Settings { set: "train".into(), ..moved.clone() };
        let spelt = run("rslora+qlora", "");
        for (settings, older) in [(spelt.clone(), spelt), (full, ranked), (moved, then)] {
            let (now, then) = (settings.hash(), digest(&older));
            assert_ne!(now, then);
            assert_eq!(settings.home(runs.path()), runs.path().join(&now), "where it is to lie");
            let older = done(&then, DIVERGED);
            done(&now, "log.txt");
            assert_eq!(settings.home(runs.path()), older, "what is half done is not what came of it");
            let newer = done(&now, RESULT);
            assert_eq!(settings.home(runs.path()), newer);
        }
    }

    /// What is said of `lora` here is so.
    #[test]
    fn defaults_are_those_of_the_program() {
        let read = |file: &str| fs::read_to_string(crate::sh::root().join(file)).unwrap();
        let options = read("crates/lora-cli/src/settings.rs");
        for (name, default) in DEFAULTS {
            let field = format!("pub(crate) {}:", name.trim_start_matches('-').replace('-', "_"));
            let (before, _) = options.split_once(&field).unwrap_or_else(|| panic!("{name}"));
            let (_, said) = before.rsplit_once("#[arg(").unwrap();
            let (_, said) = said.split_once("default_value").unwrap_or_else(|| panic!("{name} has none"));
            let said = said.split_once("= ").and_then(|(_, said)| said.split([',', ')']).next()).unwrap();
            assert_eq!(value(said.trim_matches('"')), default, "{name}");
        }
        let quantised = read("crates/lora-qlora/src/options.rs");
        assert!(quantised.contains("Self { code: Code::Nf4, block: 64, nested: true }"));
    }
}

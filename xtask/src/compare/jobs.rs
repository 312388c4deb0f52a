//! Which runs a plan means.

use super::plan::{Data, NONE, Parts, Plan, is_full, split};
use super::run::{Federation, Fingerprint, Measure, Settings};
use super::split::Parts as Split;
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// What all runs of a comparison share.
pub(crate) struct Grid<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) program: String,
    pub(crate) model: Fingerprint,
    /// Name and files, set by set.
    pub(crate) sets: Vec<(String, Files)>,
    /// The texts that forgetting is measured on (`run::general`).
    pub(crate) general: Option<String>,
}

/// A run, and the run of ours that a peer repeats.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) settings: Settings,
    pub(crate) ours: Option<Settings>,
}

impl Grid<'_> {
    fn blank(&self, set: &str, files: &Files) -> Settings {
        let plan = self.plan;
        Settings {
            program: self.program.clone(),
            model: self.model.clone(),
            train: files.train.clone(),
            held_out: files.held_out.clone(),
            set: set.to_owned(),
            former_set: plan.data.iter().find(|data| data.name() == set).and_then(Data::former_name),
            variant: NONE.into(),
            start: None,
            rank: None,
            alpha: None,
            point: None,
            lr: None,
            seed: None,
            epochs: plan.epochs,
            batch_size: plan.batch_size,
            targets: plan.targets.clone(),
            dtype: plan.dtype.clone(),
            base_storage: plan.base_storage.clone(),
            extra: plan.train.clone(),
            layers: Vec::new(),
            federation: None,
            measure: Measure { generate: plan.generate, general: true, merge: false, trace: false },
            general: self.general.clone(),
            peer: None,
        }
    }

    /// No training, on each set.
    pub(crate) fn floors(&self) -> Vec<Job> {
        let floor = |(set, files): &(String, Files)| Job { settings: self.blank(set, files), ours: None };
        self.sets.iter().map(floor).collect()
    }

    /// A variant's settings at one point of the grid.
    fn at(
        &self,
        (set, files): &(String, Files),
        variant: &str,
        rank: u64,
        alpha: f64,
        lr: f64,
        seed: u64,
    ) -> Settings {
        let Parts { recipe, start, rule } = split(variant);
        let full = is_full(recipe);
        let (clients, rounds) = (self.plan.clients, self.plan.rounds);
        Settings {
            variant: recipe.to_owned(),
            start: start.map(str::to_owned),
            federation: rule.map(|rule| Federation { rule: rule.to_owned(), clients, rounds }),
            rank: (!full).then_some(rank),
            alpha: (!full).then_some(alpha),
            point: full.then_some((rank, alpha)),
            lr: Some(lr),
            seed: Some(seed),
            layers: if full { self.plan.full_layers.clone() } else { Vec::new() },
            ..self.blank(set, files)
        }
    }

    fn variants(&self) -> impl Iterator<Item = &String> {
        self.plan.variants.iter().filter(|v| *v != NONE)
    }

    /// Learning rates on the validation part, if there are several: a set and a variant each.
    pub(crate) fn tuning(&self) -> Vec<Job> {
        let mut jobs = Vec::new();
        if self.plan.learning_rates.len() < 2 {
            return jobs;
        }
        let rank = self.plan.tune_rank();
        let alpha = self.plan.alphas.first().and_then(|a| a.at(rank)).unwrap_or(rank as f64);
        let seed = self.plan.seeds.first().copied().unwrap_or(0);
        for set in &self.sets {
            for variant in self.variants() {
                for &lr in &self.plan.learning_rates {
                    let mut settings = self.at(set, variant, rank, alpha, lr, seed);
                    (settings.train, settings.held_out) = (set.1.fit.clone(), set.1.validation.clone());
                    settings.measure =
                        Measure { generate: false, general: false, merge: false, trace: false };
                    settings.general = None;
                    jobs.push(Job { settings, ours: None });
                }
            }
        }
        jobs
    }

    /// The grid itself, seed after seed, so that what is there when one stops early is whole; a peer's run behind
    /// ours. `lr` gives the rate of a set and a variant.
    pub(crate) fn grid(&self, lr: impl Fn(&str, &str) -> f64) -> Vec<Job> {
        let mut jobs = Vec::new();
        let plan = self.plan;
        for &seed in &plan.seeds {
            for set in &self.sets {
                for variant in self.variants() {
                    let lr = lr(&set.0, variant);
                    let mut points = plan.ranks.iter().flat_map(|&rank| {
                        plan.alphas.iter().filter_map(move |alpha| Some((rank, alpha.at(rank)?)))
                    });
                    let mut points: Vec<_> = match is_full(split(variant).recipe) {
                        true => vec![points.next().unwrap_or((1, 1.0))],
                        false => points.collect(),
                    };
                    // Two alphas may be one at a rank, wherever they stand.
                    let mut seen = BTreeSet::new();
                    points.retain(|(rank, alpha)| seen.insert((*rank, alpha.to_bits())));
                    for (rank, alpha) in points {
                        let mut settings = self.at(set, variant, rank, alpha, lr, seed);
                        let at_rank = plan.peer_ranks.is_empty() || plan.peer_ranks.contains(&rank);
                        let beside = plan.peers.contains(variant) && at_rank;
                        settings.measure.merge =
                            plan.seeds.first() == Some(&seed) && settings.start.is_none();
                        settings.measure.trace = beside;
                        let ours = settings.clone();
                        jobs.push(Job { settings, ours: None });
                        if beside {
                            // It measures no forgetting.
                            let peer = Settings { peer: Some("peft".into()), general: None, ..ours.clone() };
                            jobs.push(Job { settings: peer, ours: Some(ours) });
                        }
                    }
                }
            }
        }
        jobs
    }
}

/// The files that a set's runs read.
pub(crate) struct Files {
    pub(crate) train: Fingerprint,
    pub(crate) held_out: Fingerprint,
    pub(crate) fit: Fingerprint,
    pub(crate) validation: Fingerprint,
}

impl Files {
    pub(crate) fn of(parts: &Split) -> Result<Self> {
        let of = |path: &PathBuf| Fingerprint::of(path);
        Ok(Self {
            train: of(&parts.train)?,
            held_out: of(&parts.held_out)?,
            fit: of(&parts.fit)?,
            validation: of(&parts.validation)?,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::PathBuf;

    pub(crate) fn plan(text: &str) -> Plan {
        Plan::parse(&format!("name = 'x'\ndata = ['a.jsonl', 'b.jsonl']\n{text}")).unwrap()
    }

    pub(crate) fn grid(plan: &Plan) -> Grid<'_> {
        let file = |name: &str| Fingerprint { path: PathBuf::from(name), sha256: name.into() };
        let files = |set: &str| {
            let at = |part: &str| file(&format!("{set}-{part}"));
            Files {
                train: at("train"),
                held_out: at("heldout"),
                fit: at("fit"),
                validation: at("validation"),
            }
        };
        let sets = ["a", "b"].map(|set| (set.to_owned(), files(set))).into();
        Grid { plan, program: "lora 0".into(), model: file("model"), sets, general: None }
    }

    /// A floor on some texts and a method on others would give a forgetting of neither.
    #[test]
    fn other_texts_are_other_runs_where_forgetting_is_measured() {
        let plan = plan(
            "variants = ['lora']\nranks = [8]\nlearning_rates = [1e-3, 1e-4]\nseeds = [1]\npeers = ['lora']",
        );
        let hashes = |general: Option<&str>| {
            let grid = Grid { general: general.map(str::to_owned), ..grid(&plan) };
            let of = |jobs: Vec<Job>| jobs.iter().map(|job| job.settings.hash()).collect::<Vec<_>>();
            [of(grid.floors()), of(grid.tuning()), of(grid.grid(|_, _| 1e-3))]
        };
        let ([floors, tuning, runs], [other_floors, other_tuning, others]) =
            (hashes(None), hashes(Some("of others")));
        assert!(floors.iter().zip(&other_floors).all(|(a, b)| a != b));
        assert_eq!(tuning, other_tuning);
        for (nth, (a, b)) in runs.iter().zip(&others).enumerate() {
            assert_eq!(a == b, nth % 2 == 1, "the peer's stands behind ours");
        }
        // Runs that name no texts were measured on these.
        let file = crate::sh::root().join("xtask/data/general.jsonl");
        assert_eq!(super::super::run::general(&file).unwrap(), None);
        let changed = tempfile::NamedTempFile::new().unwrap();
        assert!(super::super::run::general(changed.path()).unwrap().is_some());
    }

    /// Two alphas that are one at a rank are one run.
    #[test]
    fn alphas_that_meet_are_one_point() {
        let plan = plan(
            "variants = ['lora']\nranks = [8, 64]\nalphas = [16, 'r', '2r']\nlearning_rates = [1e-3]\nseeds = [1, 2]",
        );
        let jobs = grid(&plan).grid(|_, _| 1.0);
        let seen: BTreeSet<_> = jobs.iter().map(|job| job.settings.hash()).collect();
        // Two sets, two seeds, and at rank 8 two alphas, the first and the last of which are one; at 64 three.
        assert_eq!((jobs.len(), seen.len()), (20, 20));
    }

    #[test]
    fn every_point_once_and_peers_behind_ours() {
        let plan = plan(
            "variants = ['none', 'lora', 'qlora@loftq', 'full', 'qlora+full']\nranks = [4, 8]\nalphas = [16, 'r']\n\
             learning_rates = [1e-3, 1e-4]\nseeds = [1, 2, 3]\npeers = ['lora']\npeer_ranks = [8]",
        );
        let grid = grid(&plan);
        let jobs = grid.grid(|_, variant| if variant == "full" { 1e-5 } else { 1e-3 });
        // A set and a seed: LoRA and LoftQ at 2 ranks and 2 alphas, full once in each storage, the peer at one rank.
        assert_eq!(jobs.len(), 2 * 3 * (4 + 4 + 1 + 1 + 2));
        for job in jobs.iter().filter(|job| job.settings.variant.contains("full")) {
            let steps =
                job.settings.steps(std::path::Path::new("run"), std::path::Path::new("general.jsonl"));
            assert!(
                steps.iter().all(|step| step.name != "inspect" && !step.args.contains(&"--rank".to_owned()))
            );
        }
        let hashes: BTreeSet<_> = jobs.iter().map(|j| j.settings.hash()).collect();
        assert_eq!(hashes.len(), jobs.len(), "no two runs are one");
        let at = jobs.iter().position(|j| j.ours.is_some()).unwrap();
        assert_eq!(jobs[at].ours.as_ref(), Some(&jobs[at - 1].settings));
        assert!(jobs[at - 1].settings.measure.trace);
        // What is chosen by must not be what is judged by.
        assert!(jobs.iter().all(|j| j.settings.train.sha256.ends_with("-train")));
        let tuning = grid.tuning();
        assert_eq!(tuning.len(), 2 * 4 * 2);
        assert!(tuning.iter().all(|j| j.settings.held_out.sha256.ends_with("-validation")));
        assert!(tuning.iter().all(|j| j.settings.train.sha256.ends_with("-fit")));
    }

    #[test]
    fn a_federation_has_as_many_passes_as_training_in_one_place() {
        let plan = plan(
            "variants = ['lora', 'qlora@loftq by ffa']\nranks = [8]\nlearning_rates = [1e-3]\nseeds = [1]\n\
             epochs = 3\nclients = 4\nrounds = 6",
        );
        let grid = grid(&plan);
        let jobs = grid.grid(|_, _| 1e-3);
        let (central, federated) = (&jobs[0].settings, &jobs[1].settings);
        assert!(
            !serde_json::to_string(central).unwrap().contains("federation"),
            "older runs are found still"
        );
        assert_eq!(super::super::gather::method(federated), "qlora@loftq by ffa");
        let steps = federated.steps(std::path::Path::new("run"), std::path::Path::new("general.jsonl"));
        let line = steps[1].args.join(" ");
        assert!(line.starts_with("fed simulate --model run/start/base"), "{line}");
        for part in ["--split 4", "--rule ffa", "--rounds 6", "--epochs 0.5", "--adapter run/start/adapter"] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert_eq!(steps[1].name, "train");
    }

    #[test]
    fn command_lines_are_what_the_settings_say() {
        let plan = plan("variants = ['qlora@loftq']\nranks = [8]\nlearning_rates = [1e-3]\nseeds = [1]");
        let grid = grid(&plan);
        let job = grid.grid(|_, _| 1e-3).remove(0);
        let steps = job.settings.steps(std::path::Path::new("run"), std::path::Path::new("general.jsonl"));
        let lines: Vec<_> = steps.iter().map(|s| s.args.join(" ")).collect();
        assert!(lines[0].starts_with("init --model model --init loftq"), "{}", lines[0]);
        assert!(
            lines[1].contains("--model run/start/base") && lines[1].contains("--adapter run/start/adapter")
        );
        assert!(
            !lines[1].contains("--rank") && lines[1].contains("--seed 1") && lines[1].contains("--lr 1e-3")
        );
        assert!(
            lines[2].contains("--adapter run/adapter --variant qlora")
                && lines[2].contains("--data a-heldout")
        );
        // A base that was rounded is rounded alike wherever it is judged.
        let rounded = Settings { variant: "dora+qlora:fp4".into(), start: None, ..job.settings.clone() };
        let rounded = Settings { measure: Measure { merge: true, ..rounded.measure }, ..rounded };
        for step in rounded.steps(std::path::Path::new("run"), std::path::Path::new("general.jsonl")) {
            let said = step.args.join(" ").contains("--variant dora+qlora:fp4");
            assert_eq!(said, step.name != "inspect", "{}", step.name);
        }
        let mut other = job.settings.clone();
        other.seed = Some(2);
        assert_ne!(other.hash(), job.settings.hash());
    }
}

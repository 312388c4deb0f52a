//! What a plan is refused for.

use super::plan::{DEFAULT, Plan, home};
use std::fs;
use std::path::Path;

#[test]
fn the_default_plan_is_sound() {
    let mut plan = Plan::parse(DEFAULT).unwrap();
    plan.under(crate::sh::root());
    assert_eq!(plan.faults(), Vec::<String>::new());
}

/// A set of two files has the name of its folder, and a run that of its set.
#[test]
fn a_plan_is_one_from_wherever_it_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("news");
    fs::create_dir_all(folder.join("below")).unwrap();
    let text = "name = 'x'\ndata = [{ train = 'train.jsonl', held_out = 'heldout.jsonl' }]\nvariants = ['lora']\nranks = [8]\n\
                learning_rates = [1e-3]\nseeds = [1]";
    fs::write(folder.join("p.toml"), text).unwrap();
    let [a, b] = ["p.toml", "below/../p.toml"].map(|path| Plan::read(&folder.join(path)).unwrap().0);
    assert_eq!((a.data[0].name(), b.data[0].name()), ("news".into(), "news".into()));
    assert_eq!(a.data[0].train(), b.data[0].train());
    assert_eq!(b.data[0].former_name().as_deref(), Some("train"));
    assert_eq!(home(Path::new("p.toml")).unwrap(), fs::canonicalize(".").unwrap());
}

#[test]
fn one_file_does_not_judge_what_was_trained_on_it() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.jsonl", "b.jsonl"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    for (held_out, refused) in [("./a.jsonl", true), ("b.jsonl", false)] {
        let mut plan = Plan::parse(&format!(
            "name = 'x'\ndata = [{{ train = 'a.jsonl', held_out = '{held_out}' }}]\nvariants = ['lora']\nranks = [8]\n\
             learning_rates = [1e-3]\nseeds = [1]"
        ))
        .unwrap();
        plan.under(dir.path());
        let faults = plan.faults().join("\n");
        assert_eq!(faults.contains("a.jsonl is to train on and to judge by"), refused, "{faults}");
    }
}

#[test]
fn all_faults_are_named_at_once() {
    let plan = Plan::parse(
        "name = 'a/b'\ndata = ['nowhere.jsonl']\nvariants = ['lora', 'lora']\nranks = [0, 8]\nalphas = ['3r']\n\
         learning_rates = [-1.0]\nseeds = [1, 1]\nepochs = 0\npeers = ['dora']",
    )
    .unwrap();
    let faults = plan.faults().join("\n");
    let wanted =
        ["name:", "variants: lora is", "ranks: 0", "alphas:", "learning_rates:", "seeds: 1 is", "epochs:"];
    for part in wanted.iter().chain(&["no file nowhere.jsonl", "peers: dora is not among"]) {
        assert!(faults.contains(part), "{part} in {faults}");
    }
    let plan = Plan::parse(
        "name = 'x'\ndata = ['a']\nvariants = ['lora by fedfoo', 'dora+full by ffa', 'full+dora by ffa']\n\
         ranks = [8]\nlearning_rates = [1e-3]\nseeds = [1]\npeers = ['lora by fedfoo']",
    );
    let faults = plan.unwrap().faults().join("\n");
    let wanted = ["fedfoo is none of", "dora+full by ffa has no adapter", "full+dora by ffa is there twice"];
    for part in wanted.iter().chain(&["clients:", "rounds:", "no counterpart"]) {
        assert!(faults.contains(part), "{part} in {faults}");
    }
    assert!(Plan::parse("nmae = 'x'").unwrap_err().to_string().contains("nmae"));
    let empty =
        Plan::parse("name = 'x'\ndata = []\nvariants = []\nranks = []\nlearning_rates = []\nseeds = []");
    assert_eq!(empty.unwrap().faults().len(), 4);
}

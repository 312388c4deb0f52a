use super::*;
use clap::Parser as _;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn parse(words: &str) -> Args {
    let words = ["rules"].into_iter().chain(words.split_whitespace());
    Line::try_parse_from(words).ok().unwrap().args
}

fn method(name: &str, tuning: bool) -> Method {
    Method { name: name.into(), lr: 1e-3, seed: 1, epsilon: None, tuning }
}

/// Parts that lie in `home`, all of one client.
fn runner<'a>(args: &'a Args, home: &Path) -> Runner<'a> {
    let part = Parts {
        name: "fpb".into(),
        train: home.join("train"),
        held_out: home.join("held-out"),
        fit: home.join("fit"),
        validation: home.join("validation"),
        train_rows: 1,
        held_out_rows: 1,
        common: 0,
    };
    Runner {
        args,
        lora: home.join("lora"),
        build: "a build".into(),
        model: home.join("model"),
        base: "a model".into(),
        home: home.to_owned(),
        parts: vec![part],
        threads: Vec::new(),
    }
}

/// By what a rule's run, the same for a rate to be chosen, and all rows in one place are found again.
fn keys(runner: &Runner<'_>) -> [String; 3] {
    [("fedit", false), ("fedit", true), ("central", false)]
        .map(|(name, tuning)| runner.settings(&method(name, tuning)).unwrap())
}

#[test]
fn a_run_is_found_again_by_all_that_made_it() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    ["train", "held-out", "fit", "validation"].into_iter().for_each(|name| write(name, name));
    let args = parse("");
    let before = keys(&runner(&args, dir.path()));
    let differs = |now: [String; 3]| [0, 1, 2].map(|i| now[i] != before[i]);

    for (name, wanted) in [
        ("train", [true, false, true]),
        ("held-out", [true, false, true]),
        ("fit", [false, true, false]),
        ("validation", [false, true, false]),
    ] {
        write(name, "other rows");
        assert_eq!(differs(keys(&runner(&args, dir.path()))), wanted, "{name}");
        write(name, name);
    }
    let rebuilt = Runner { build: "another".into(), ..runner(&args, dir.path()) };
    let rebased = Runner { base: "another".into(), ..runner(&args, dir.path()) };
    assert_eq!([&rebuilt, &rebased].map(|runner| differs(keys(runner))), [[true; 3]; 2]);
    for (words, wanted) in [
        ("--rounds 9", [true, true, false]),
        ("--client-batch 2", [true, true, false]),
        ("--weights equal", [true, true, false]),
        ("--server adam:1e-2", [true, true, false]),
        ("--passes 2", [true; 3]),
        ("--held-out 9", [true; 3]),
        ("--jobs 2", [false; 3]),
    ] {
        assert_eq!(differs(keys(&runner(&parse(words), dir.path()))), wanted, "{words}");
    }
}

/// Nothing is kept under the name of a build that is gone.
#[test]
fn a_build_on_the_way_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let args = parse("");
    fs::write(dir.path().join("lora"), "one").unwrap();
    let build = build_of(&dir.path().join("lora")).unwrap();
    let runner = Runner { build, ..runner(&args, dir.path()) };
    runner.is_its_build().unwrap();
    fs::write(dir.path().join("lora"), "two").unwrap();
    let error = runner.is_its_build().unwrap_err().to_string();
    assert!(error.contains("built anew") && error.contains("hint: "), "{error}");
}

#[test]
fn nothing_is_counted_twice() {
    for words in [
        "--seeds 1,2,1",
        "--epsilons 8,8.0",
        "--rates 1e-3,0.001 --rule fedit",
        "--rule fedit:1e-3,ffa,fedit:0.001",
        "--rule fedit,fedit:1e-3",
        "--rule fedit,fedit --rates 1e-3",
    ] {
        let error = parse(words).check().unwrap_err().to_string();
        assert!(error.contains("twice\n  hint: "), "{words}: {error}");
    }
    assert!(parse("--rule fedit:fast").check().unwrap_err().to_string().contains("has no rate"));
    let args = parse("--rule fedit,fedit:1e-3,fedit:3e-3 --rates 1e-3,3e-3 --seeds 1,2");
    args.check().unwrap();
    let chosen = Rates::from([("fedit".to_owned(), 3e-3), ("central".to_owned(), 1e-3)]);
    let methods = args.methods(&chosen).unwrap();
    let rules: Vec<_> = methods.iter().filter(|m| m.is_rule()).map(|m| (m.lr, m.seed)).collect();
    assert_eq!(rules, [(3e-3, 1), (1e-3, 1), (3e-3, 2), (1e-3, 2)]);
    assert_eq!(methods.len(), 2 * (1 + CLIENTS.len() + 2));
}

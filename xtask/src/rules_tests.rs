use super::*;

const GRAPH: [(&str, &[&str]); 9] = [
    ("tch-ext", &[]),
    ("lora-core", &["tch-ext"]),
    ("lora-dora", &["lora-core"]),
    ("lora-qlora", &["lora-core", "tch-ext"]),
    ("lora-model", &["lora-core"]),
    ("lora-train", &["lora-model", "lora-core"]),
    ("lora", &["lora-core", "lora-dora", "lora-qlora", "lora-model", "lora-train"]),
    ("lora-cli", &["lora"]),
    ("xtask", &[]),
];

fn local(name: &str, dev: bool) -> Dependency {
    Dependency { name: name.into(), local: true, dev, testkit: dev }
}

/// A workspace without fault.
fn tree() -> Tree {
    let package = |(name, deps): (&str, &[&str])| Package {
        name: name.into(),
        dir: match name {
            "lora" => String::new(),
            "xtask" => "xtask".into(),
            _ => format!("crates/{name}"),
        },
        manifest: "[package]\nname = \"x\"\n\n[lints]\nworkspace = true\n".into(),
        dependencies: deps.iter().map(|d| local(d, false)).collect(),
    };
    let packages: Vec<_> = GRAPH.into_iter().map(package).collect();
    let readme = packages.iter().map(|p| format!("{}/  what it is\n", p.dir)).collect();
    let files = BTreeMap::from([("README.md".to_owned(), readme)]);
    Tree {
        packages,
        files,
        tracked: vec!["README.md".into(), "crates/lora-cli/tests/snapshots/a.snap".into()],
    }
}

/// The faults of that workspace with one change.
fn with(change: impl Fn(&mut Tree)) -> Vec<String> {
    let mut tree = tree();
    change(&mut tree);
    faults(&tree)
}

fn with_file(path: &str, text: &str) -> Vec<String> {
    with(|tree| drop(tree.files.insert(path.into(), text.into())))
}

fn with_dependency(of: &str, dependency: fn() -> Dependency) -> Vec<String> {
    with(|tree| {
        tree.packages.iter_mut().filter(|p| p.name == of).for_each(|p| p.dependencies.push(dependency()))
    })
}

#[test]
fn the_design_itself_is_without_fault() {
    assert_eq!(with(|_| ()), [""; 0]);
}

#[test]
fn wrong_arrows_are_found() {
    for (of, dependency) in [
        ("lora-dora", (|| local("lora-qlora", false)) as fn() -> Dependency),
        ("lora-dora", || local("lora-qlora", true)),
        ("lora-core", || local("lora-model", false)),
        ("lora-model", || local("lora-dora", false)),
        ("lora-cli", || local("lora-core", false)),
        ("tch-ext", || local("lora-core", false)),
        ("xtask", || local("lora-core", true)),
    ] {
        let found = with_dependency(of, dependency);
        assert_eq!(found.len(), 1, "{of}: {found:?}");
        assert!(found[0].contains(&format!("{of} may not depend on")), "{found:?}");
    }
    assert_eq!(with_dependency("lora-cli", || local("lora-core", true)), [""; 0], "the testkit is for all");
    let testkit = || Dependency { testkit: true, ..local("lora-core", false) };
    assert!(with_dependency("lora-dora", testkit)[0].contains("dev-dependencies"));
    let foreign = || Dependency { local: false, ..local("lora-qlora", false) };
    assert_eq!(with_dependency("lora-dora", foreign), [""; 0]);
}

#[test]
fn a_new_method_must_be_wired_in_and_keeps_to_itself() {
    let method = || Package {
        name: "lora-loha".into(),
        dir: "crates/lora-loha".into(),
        manifest: "[lints]\nworkspace = true".into(),
        dependencies: vec![local("lora-core", false), local("lora-dora", false)],
    };
    let found = with(|tree| tree.packages.push(method()));
    let want = [
        "Cargo.toml: lora must depend on lora-loha",
        "crates/lora-loha/Cargo.toml: lora-loha may not depend on lora-dora (it may on: tch-ext, lora-core)",
        "README.md: its tree does not name lora-loha",
    ];
    assert_eq!(found, want);
}

#[test]
fn manifests_without_the_lints_are_found() {
    for manifest in ["", "[lints]\n", "[lints.rust]\nworkspace = true", "[lints]\n[x]\nworkspace = true"] {
        let found = with(|tree| tree.packages[1].manifest = manifest.into());
        assert_eq!(found, ["crates/lora-core/Cargo.toml: lacks `[lints] workspace = true`"], "{manifest}");
    }
}

#[test]
fn unsafe_printing_and_loose_ends_are_found_where_they_stand() {
    let unsafe_code = "// unsafe\nlet s = \"unsafe\";\nunsafe { f() }\n#![forbid(unsafe_code)]\n";
    assert_eq!(
        with_file("crates/lora-train/src/a.rs", unsafe_code),
        ["crates/lora-train/src/a.rs:3: `unsafe` stands in tch-ext only"]
    );
    assert_eq!(with_file("crates/tch-ext/src/a.rs", unsafe_code), [""; 0]);

    let print = "fn f() {\n    println!(\"x\");\n    writeln!(f, \"println!\");\n}\n";
    assert_eq!(with_file("crates/lora-core/src/a.rs", print).len(), 1);
    assert_eq!(with_file("src/lib.rs", print).len(), 1);
    for free in
        ["crates/lora-cli/src/main.rs", "xtask/src/a.rs", "crates/lora-core/tests/a.rs", "examples/a.rs"]
    {
        assert_eq!(with_file(free, print), [""; 0], "{free}");
    }
    let unfinished = "#[ignore]\nfn a() { todo!() }\nfn b() { unimplemented!() }\n";
    assert_eq!(with_file("tests/a.rs", unfinished).len(), 3);
    assert!(with_file("src/long.rs", &"\n".repeat(401))[0].contains("401 lines"));
    assert_eq!(with_file("src/long.rs", &"\n".repeat(400)), [""; 0]);
}

#[test]
fn models_and_core_know_no_methods() {
    let model = "use lora_core::Linear; // any adapter\nlet x = lora_core::f();\nlet a = MyAdapter;\nlet lora_a = 1;\n";
    let found = with_file("crates/lora-model/src/llama.rs", model);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("llama.rs:3:") && found[1].contains("llama.rs:4:"), "{found:?}");

    let core = "//! Not DoRA.\nlet key = \"use_dora\";\nstruct Nf4;\n#[cfg(test)]\nmod tests { const D: &str = \"dora\"; }\n";
    let found = with_file("crates/lora-core/src/config.rs", core);
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(with_file("crates/lora-core/src/testkit/laws.rs", core), [""; 0]);
    assert_eq!(with_file("crates/lora-dora/src/lib.rs", core), [""; 0]);
}

#[test]
fn closures_without_gradient_are_found_outside_tests() {
    let code = "// no_grad(\nlet _guard = tch::no_grad_guard();\nlet y = tch::no_grad(|| x);\n\
                #[cfg(test)]\nmod tests { fn f() { no_grad(|| 1); } }\n";
    for shipped in ["src/a.rs", "crates/lora-core/src/a.rs", "crates/lora-cli/src/commands/a.rs"] {
        let found = with_file(shipped, code);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(&format!("{shipped}:3: after a panic")), "{found:?}");
    }
    for free in
        ["crates/lora-core/tests/a.rs", "crates/tch-ext/src/gemm/tests.rs", "tests/a.rs", "examples/a.rs"]
    {
        assert_eq!(with_file(free, code), [""; 0], "{free}");
    }
}

/// One was committed once.
#[test]
fn snapshots_that_nobody_accepted_are_found() {
    let found = with(|tree| tree.tracked.push("crates/lora-cli/tests/snapshots/a.snap.new".into()));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("crates/lora-cli/tests/snapshots/a.snap.new: a snapshot"), "{found:?}");
}

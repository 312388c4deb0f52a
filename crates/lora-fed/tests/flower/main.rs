//! Against an unmodified Flower: a SuperLink, a stock SuperNode, Flower's own FedAvg; TLS and node authentication on.
//!
//! ```text
//! python3 -m venv ~/flwr && ~/flwr/bin/pip install flwr==1.41.0
//! cargo build --release -p lora-fed --examples
//! FLWR=~/flwr cargo test --release -p lora-fed --test flower -- --nocapture
//! ```
//!
//! Without `FLWR` these tests say so and do nothing.

mod deployment;
mod nodes;

use deployment::{Deployment, Isolation, venv};
use nodes::Node;
use std::time::Duration;

/// `w` after so many rounds, if each adds the mean of (constant, examples), weighted.
fn closed_form(nodes: &[(f64, f64)], rounds: f64) -> Vec<f64> {
    let examples: f64 = nodes.iter().map(|n| n.1).sum();
    let step: f64 = nodes.iter().map(|n| n.0 * n.1).sum::<f64>() / examples;
    [0.5, -1.0, 2.0].iter().map(|start| start + rounds * step).collect()
}

fn check(what: &str, found: &[f64], wanted: &[f64]) {
    let off = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    eprintln!("{what}: {found:?}, off by {off:.1e}");
    assert!(found.len() == wanted.len() && off < 1e-6, "{what}: {found:?} is not {wanted:?}");
}

/// How often each instruction was computed, most often first.
fn computed(node: &Node, kind: &str) -> Vec<usize> {
    let log = node.log();
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for line in log.lines().filter_map(|l| l.strip_prefix(&format!("computes {kind} "))) {
        *counts.entry(line).or_default() += 1;
    }
    let mut counts: Vec<usize> = counts.into_values().collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    counts
}

#[test]
fn nodes_beside_a_stock_one_under_flowers_fedavg() {
    let Some(venv) = venv() else { return };
    let mut flower = Deployment::start(&venv, Isolation::Subprocess);
    let mut a = flower.node("a", 1.0, 10);
    let mut b = flower.node("b", 2.0, 20);

    // Who is not known, does not trust, or speaks in clear is refused.
    let stranger = flower.node("stranger", 9.0, 9);
    for (what, node) in
        [("an unregistered key", flower.node("stranger", 9.0, 9)), ("self-registration", stranger)]
    {
        let flags: &[&str] = if what == "self-registration" { &["--self-register"] } else { &[] };
        let said = node.refused(flags);
        assert!(said.contains("HTTP 412"), "{what}: {said}");
        eprintln!("{what}: {}", said.trim());
    }
    flower.register(&a);
    flower.register(&b);
    let said = a.refused_with_roots(&flower.other_ca());
    assert!(said.contains("TLS") && said.contains("ertificate"), "{said}");
    eprintln!("a wrong CA: {}", said.trim());
    let said = a.refused_in_clear();
    assert!(said.starts_with("error: SuperLink"), "{said}");
    eprintln!("plaintext: {}", said.trim());

    a.run(&[]);
    b.run(&[]);
    flower.stock_node();
    let nodes = [(1.0, 10.0), (2.0, 20.0), (0.5, 30.0)];
    check("three rounds of FedAvg", &flower.fedavg(3, 3), &closed_form(&nodes, 3.0));
    assert_eq!(computed(&a, "train"), [1; 3]);
    assert_eq!(computed(&a, "evaluate"), [1; 3]);

    // A SuperLink that was killed is waited for.
    flower.restart_superlink(Duration::from_secs(3));
    check("after the SuperLink was killed", &flower.fedavg(1, 3), &closed_form(&nodes, 1.0));
    assert!(a.log().contains("Offline"), "{}", a.log());

    // Killed before it confirmed, while computing, with the reply on the disk, and in the midst of its upload.
    for (place, times) in [("received", 1), ("computing", 2), ("replied", 1), ("uploading", 1)] {
        b.stop();
        b.forget_log();
        b.run(&["--die", place]);
        let run = flower.start_fedavg(2, 3);
        assert!(b.wait_for_death(Duration::from_secs(90)), "{place}: the node did not die");
        assert!(!run.is_done(), "{place}: the run ended without it");
        b.run(&[]);
        check(&format!("killed while {place}"), &run.finish(), &closed_form(&nodes, 2.0));
        assert_eq!(computed(&b, "train")[0], times, "{place}: computed otherwise");
        assert_eq!(computed(&b, "train").len(), 2, "{place}");
    }
    a.stop();
    b.stop();
    assert!(a.log().contains("Joined") && !a.log().contains("Dropped"), "{}", a.log());
}

#[test]
fn a_server_app_and_its_nodes() {
    let Some(venv) = venv() else { return };
    let mut flower = Deployment::start(&venv, Isolation::Process);
    let mut a = flower.node("a", 1.0, 10);
    let mut b = flower.node("b", 2.0, 20);
    flower.register(&a);
    flower.register(&b);
    a.run(&[]);
    b.run(&[]);
    let wanted = closed_form(&[(1.0, 10.0), (2.0, 20.0)], 3.0);

    flower.submit(3, 2);
    let said = flower.server_refused();
    assert!(said.contains("HTTP 401"), "{said}");
    eprintln!("another secret: {}", said.trim());
    flower.serve(&[]);
    check("a server app in Rust", &flower.served(), &wanted);

    // Killed in the second round: it goes on in that round, with the replies that it has.
    for place in ["sent", "received", "added", "confirmed"] {
        a.forget_log();
        flower.submit(3, 2);
        flower.serve(&["--die", place]);
        assert!(flower.server_died(Duration::from_secs(90)), "{place}: the server app did not die");
        flower.serve(&[]);
        check(&format!("server killed when {place}"), &flower.served(), &wanted);
        assert_eq!(computed(&a, "train"), [1; 3], "{place}: a node was asked twice");
    }
    a.stop();
    b.stop();
}

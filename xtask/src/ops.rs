//! `bench --ops`: the operations' criterion benches, against what was kept. A time says little on another machine, or
//! another day; what is kept is each operation's time over that of libtorch's own, in the same run, for each kind of
//! processor.

use crate::{setup, sh};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What the others are compared with.
const REFERENCES: [&str; 2] = ["libtorch", "dense"];
/// So much worse is no noise.
const SLACK: f64 = 1.3;

/// Ratios by name.
type Ratios = BTreeMap<String, f64>;
/// By what the processor has.
type Kept = BTreeMap<String, Ratios>;

/// What the times hang on, in oneDNN's and our code: what the processor has, as far as `ONEDNN_MAX_CPU_ISA` allows both
/// to use it.
pub(crate) fn processor() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    let has = [
        is_x86_feature_detected!("avx2"),
        is_x86_feature_detected!("avx512bw"),
        is_x86_feature_detected!("avx512bf16"),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let has = [false; 3];
    kind(has, &std::env::var("ONEDNN_MAX_CPU_ISA").unwrap_or_default())
}

/// `has`: AVX2, AVX-512, and products of bf16; `most`: oneDNN's limit.
fn kind(has: [bool; 3], most: &str) -> &'static str {
    let allowed = match most.to_uppercase().as_str() {
        "SSE41" | "AVX" => 0,
        most if most.starts_with("AVX2") => 1,
        "AVX512_CORE" | "AVX512_CORE_VNNI" => 2,
        _ => 3,
    };
    let best = (0..allowed).rev().find(|&at| has[at]);
    best.map_or(std::env::consts::ARCH, |at| ["AVX2", "AVX-512", HALVES][at])
}

/// Has products of bf16.
const HALVES: &str = "AVX512-BF16";
/// Elsewhere libtorch's bf16 takes minutes, and says nothing: ours is compared with its f32.
const WITHOUT_HALVES: &str = "/ours$|[ /]Float[ /].*/(libtorch|dense)$";

pub(crate) fn run(keep: bool) -> Result<()> {
    setup::ensure(false)?;
    let kept_in = sh::root().join("benches/ratios.json");
    let folder = sh::root().join("target/criterion");
    crate::cache::remove(&folder)?;
    let processor = processor();
    measure(if processor == HALVES { "" } else { WITHOUT_HALVES })?;
    let mut now = ratios(&medians(&folder)?);
    let text = fs::read(&kept_in).with_context(|| kept_in.display().to_string())?;
    let mut all: Kept = serde_json::from_slice(&text).with_context(|| kept_in.display().to_string())?;
    if keep {
        all.insert(processor.to_owned(), rounded(&now));
        let text = serde_json::to_string_pretty(&all)? + "\n";
        fs::write(&kept_in, text).with_context(|| format!("cannot write {}", kept_in.display()))?;
        println!("{} ratios of a processor with {processor} kept in {}", now.len(), kept_in.display());
        return Ok(());
    }
    let kept = all.remove(processor).unwrap_or_default();
    if kept.is_empty() {
        println!("nothing was kept for a processor with {processor}; --keep keeps these");
    }
    // What seems slower is looked at once more, alone: machines have bad moments.
    let slow = now.iter().filter(|(name, ratio)| slower(**ratio, kept.get(*name)));
    let slow: Vec<String> = slow.map(|(name, _)| name.replace('+', "\\+")).collect();
    if !slow.is_empty() {
        let beside = |name: &String| if processor == HALVES { name.clone() } else { single(name) };
        let beside: Vec<String> = slow.iter().map(beside).collect();
        measure(&format!("^({})/ours$|^({})/", slow.join("|"), beside.join("|")))?;
        for (name, again) in ratios(&medians(&folder)?) {
            now.entry(name).and_modify(|ratio| *ratio = ratio.min(again));
        }
    }
    let (text, slips) = compared(&now, &kept);
    print!("{text}");
    if slips > 0 {
        bail!(
            "{slips} operations are slower than what was kept\n  hint: run it again; if it stays so, what changed?"
        );
    }
    Ok(())
}

/// Runs the benches whose names match.
fn measure(filter: &str) -> Result<()> {
    let mut cargo = sh::cargo();
    // Not in the target folder that cargo may have been told of.
    cargo.env("CRITERION_HOME", sh::root().join("target/criterion"));
    // All packages, so that features are those of every other build.
    cargo.args(["bench", "--workspace", "--bench", "gemm", "--bench", "ops", "--bench", "layer", "--"]);
    sh::run(cargo.args(["--noplot", "--warm-up-time", "0.5", "--measurement-time", "1"]).arg(filter))
}

fn slower(now: f64, kept: Option<&f64>) -> bool {
    kept.is_some_and(|kept| now > kept * SLACK)
}

/// The medians of every bench that criterion left, by its full name.
fn medians(folder: &Path) -> Result<Ratios> {
    let mut all = Ratios::new();
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(dir) = folders.pop() {
        for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            }
        }
        if dir.ends_with("new") {
            let read =
                |name: &str| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(dir.join(name))?)?) };
            let (what, times) = (read("benchmark.json")?, read("estimates.json")?);
            let (name, median) = (what["full_id"].as_str(), times["median"]["point_estimate"].as_f64());
            let (name, median) =
                name.zip(median).with_context(|| format!("{}: no estimate", dir.display()))?;
            all.insert(name.to_owned(), median);
        }
    }
    Ok(all)
}

/// The same in f32.
fn single(name: &str) -> String {
    name.replace("BFloat16", "Float")
}

/// `NAME/ours` over `NAME/libtorch`, or whichever reference it has; if it has none, over that of f32.
fn ratios(medians: &Ratios) -> Ratios {
    let ours = medians.iter().filter_map(|(name, time)| Some((name.strip_suffix("/ours")?, time)));
    let over = ours.filter_map(|(name, time)| {
        let reference = |name: &str| REFERENCES.iter().find_map(|r| medians.get(&format!("{name}/{r}")));
        Some((name.to_owned(), time / reference(name).or_else(|| reference(&single(name)))?))
    });
    over.collect()
}

fn rounded(ratios: &Ratios) -> Ratios {
    ratios.iter().map(|(name, ratio)| (name.clone(), (ratio * 1e3).round() / 1e3)).collect()
}

/// A table, and how many have become slower.
fn compared(now: &Ratios, kept: &Ratios) -> (String, usize) {
    let (mut text, mut slips) = (format!("{:58} {:>7} {:>7}\n", "time over libtorch's", "kept", "now"), 0);
    for (name, ratio) in now {
        let before = kept.get(name);
        let slip = slower(*ratio, before);
        slips += usize::from(slip);
        let before = before.map_or("-".to_owned(), |b| format!("{b:.3}"));
        text += &format!("{name:58} {before:>7} {ratio:7.3}{}\n", if slip { "  slower" } else { "" });
    }
    for name in kept.keys().filter(|name| !now.contains_key(*name)) {
        slips += 1;
        text += &format!("{name:58} was kept, and is gone\n");
    }
    (text, slips)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, f64)]) -> Ratios {
        pairs.iter().map(|(name, x)| ((*name).to_owned(), *x)).collect()
    }

    /// What is kept of a processor that may not use all it has is not put in the place of one that does.
    #[test]
    fn a_processor_is_what_it_may_use() {
        let all = [true; 3];
        for (most, want) in [
            ("", HALVES),
            ("ALL", HALVES),
            ("AVX512_CORE_AMX", HALVES),
            ("avx512_core_bf16", HALVES),
            ("AVX512_CORE", "AVX-512"),
            ("AVX2", "AVX2"),
            ("avx2_vnni_2", "AVX2"),
            ("SSE41", std::env::consts::ARCH),
        ] {
            assert_eq!(kind(all, most), want, "{most}");
        }
        assert_eq!(kind([true, true, false], ""), "AVX-512");
        assert_eq!(kind([true, false, false], "AVX512_CORE_BF16"), "AVX2");
        assert_eq!(kind([false; 3], "AVX2"), std::env::consts::ARCH);
    }

    #[test]
    fn ratios_are_over_the_reference_of_the_same_name() {
        let times = of(&[
            ("a/f/ours", 3.0),
            ("a/f/libtorch", 6.0),
            ("b/g/ours", 2.0),
            ("b/g/dense", 1.0),
            ("c/ours", 1.0),
            ("d Float/libtorch", 4.0),
            ("d BFloat16/ours", 1.0),
        ]);
        assert_eq!(ratios(&times), of(&[("a/f", 0.5), ("b/g", 2.0), ("d BFloat16", 0.25)]));
    }

    /// Of the names that were kept: all of ours are measured, and of the references those of f32 alone.
    #[test]
    fn without_halves_no_reference_of_them_is_measured() {
        let kept = fs::read(sh::root().join("benches/ratios.json")).unwrap();
        let kept: Kept = serde_json::from_slice(&kept).unwrap();
        let filter = regex::Regex::new(WITHOUT_HALVES).unwrap();
        for name in kept["AVX2"].keys() {
            assert!(filter.is_match(&format!("{name}/ours")), "{name}");
            for reference in REFERENCES {
                let full = format!("{name}/{reference}");
                assert_eq!(filter.is_match(&full), !name.contains("BFloat16"), "{full}");
                assert!(filter.is_match(&single(&full)), "{full}");
            }
        }
        assert!(kept["AVX2"].keys().any(|name| name.contains("BFloat16")));
    }

    #[test]
    fn a_slip_is_seen_and_noise_is_not() {
        let kept = of(&[("a", 0.5), ("b", 0.5), ("c", 1.0)]);
        let (text, slips) = compared(&of(&[("a", 0.6), ("b", 0.7), ("d", 9.0)]), &kept);
        assert_eq!(slips, 2, "{text}");
        assert!(text.contains("gone") && text.lines().any(|l| l.starts_with("b ") && l.ends_with("slower")));
    }
}

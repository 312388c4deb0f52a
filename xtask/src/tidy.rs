//! `tidy`: gathers the workspace's crates and sources, and reports every fault that [`crate::rules`] find.

use crate::rules::{self, Dependency, Package, Tree};
use crate::sh;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

pub(crate) fn run() -> Result<()> {
    let tree = gather(sh::root())?;
    let faults = rules::faults(&tree);
    for fault in &faults {
        eprintln!("{fault}");
    }
    match faults.len() {
        0 => eprintln!("tidy: {} crates, {} files, no fault", tree.packages.len(), tree.files.len()),
        n => bail!("tidy: {n} fault{}", if n == 1 { "" } else { "s" }),
    }
    Ok(())
}

fn gather(root: &Path) -> Result<Tree> {
    let text = sh::capture(sh::cargo().args(["metadata", "--no-deps", "--format-version=1", "--offline"]))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata")?;
    let mut tree = Tree { packages: Vec::new(), files: BTreeMap::new(), tracked: tracked(root) };
    for package in array(&metadata["packages"]) {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let dir = manifest.parent().and_then(|d| d.strip_prefix(root).ok());
        let dir = dir.with_context(|| format!("{} lies outside of the workspace", manifest.display()))?;
        tree.packages.push(Package {
            name: string(&package["name"]),
            dir: dir.to_string_lossy().into_owned(),
            manifest: fs::read_to_string(manifest).with_context(|| manifest.display().to_string())?,
            dependencies: array(&package["dependencies"]).iter().map(dependency).collect(),
        });
    }
    for place in ["crates", "src", "tests", "benches", "examples", "fuzz", "xtask", "README.md"] {
        read_into(&mut tree.files, root, &root.join(place))?;
    }
    Ok(tree)
}

/// What git keeps; nothing where there is no git, as in an archive of the sources.
fn tracked(root: &Path) -> Vec<String> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output();
    let listed = listed.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    let listed = String::from_utf8_lossy(&listed.unwrap_or_default()).into_owned();
    listed.split_terminator('\0').map(str::to_owned).collect()
}

fn dependency(json: &Value) -> Dependency {
    Dependency {
        name: string(&json["name"]),
        local: json["path"].is_string(),
        dev: json["kind"] == "dev",
        testkit: array(&json["features"]).iter().any(|f| f == "testkit"),
    }
}

/// The files that people read as code.
const KINDS: [&str; 5] = ["rs", "py", "cpp", "h", "md"];

/// Every such file under `path`.
fn read_into(files: &mut BTreeMap<String, String>, root: &Path, path: &Path) -> Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path).with_context(|| path.display().to_string())? {
            let entry = entry?.path();
            let hidden = |n: &std::ffi::OsStr| n == "target" || n.as_encoded_bytes().starts_with(b".");
            if !entry.file_name().is_some_and(hidden) {
                read_into(files, root, &entry)?;
            }
        }
        return Ok(());
    }
    if !path.exists() {
        return Ok(()); // `examples`, say: a rule says so where it is needed
    }
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    if let (true, Ok(name)) = (KINDS.contains(&extension.as_ref()), path.strip_prefix(root)) {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        files.insert(name.to_string_lossy().replace('\\', "/"), text);
    }
    Ok(())
}

fn array(json: &Value) -> &[Value] {
    json.as_array().map_or(&[], Vec::as_slice)
}

fn string(json: &Value) -> String {
    json.as_str().unwrap_or_default().to_owned()
}

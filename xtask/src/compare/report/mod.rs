//! The reports of a comparison: a page to read, the same as Markdown, and the numbers for other programs.

mod csv;
mod details;
mod figures;
mod findings;
mod html;
mod json;
mod markdown;
mod numbers;
mod page;
mod summary;
mod table;
mod tables;
pub(crate) mod text;
mod view;

#[cfg(test)]
mod browser;
#[cfg(test)]
mod sample;
#[cfg(test)]
mod tests;

use super::results::Comparison;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// For the terminal: a sentence and a small table a set.
pub(crate) fn summary(comparison: &Comparison) -> String {
    summary::summary(comparison)
}

/// Writes `report.html`, `report.md`, `results.csv` and `results.json` into the folder, which is made if need be.
pub(crate) fn write(comparison: &Comparison, folder: &Path) -> Result<()> {
    let page = page::Page::new(comparison);
    // All is made before anything is written: a fault leaves the last report as it was.
    let files = [
        ("report.html", html::html(&page).context("report.html")?),
        ("report.md", markdown::markdown(&page)),
        ("results.csv", csv::csv(comparison)?),
        ("results.json", json::json(comparison)?),
    ];
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, text) in files {
        whole(&folder.join(name), &text)?;
    }
    Ok(())
}

/// Whole or not at all: written beside its place, then moved there.
fn whole(path: &Path, text: &str) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!("{name}.partial-{}", std::process::id()));
    fs::write(&beside, text)
        .and_then(|()| fs::rename(&beside, path))
        .inspect_err(|_| drop(fs::remove_file(&beside)))
        .with_context(|| format!("cannot write {}", path.display()))
}

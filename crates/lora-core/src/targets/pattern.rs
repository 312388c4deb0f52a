//! PEFT's patterns, ready to match.

use fancy_regex::{Regex, RegexBuilder};

use super::python::translate;
use crate::{Error, Result};

/// What Python's `re.match` finds of `pattern`: from the beginning on. Look-around and backreferences are there; a pattern that
/// would search for ever is given up.
fn compile(pattern: &str, end: &str) -> Result<Regex> {
    let faulty = |why: &str| Error::usage(format!("the pattern does not compile: {why}"));
    let pattern = translate(pattern).map_err(|why| faulty(&why))?;
    RegexBuilder::new(&format!(r"\A(?:{pattern}){end}")).backtrack_limit(100_000).build().map_err(|e| {
        let text = e.to_string();
        faulty(text.lines().next_back().unwrap_or_default())
    })
}

/// `target_modules` or `exclude_modules`.
pub(crate) fn full_pattern(pattern: &str) -> Result<Regex> {
    compile(pattern, r"\z").map_err(|e| e.at(format!("{pattern:?}")))
}

/// Where PEFT finds a layer's index (`check_target_module_exists`): the first number, not the last, so that
/// an expert's index is not taken for it.
pub(crate) fn layer_pattern(list: Option<&str>) -> Result<Regex> {
    match list {
        None => compile(r".*?\.[^.]*\.(?P<idx>\d+)\.", ""),
        Some(list) => {
            compile(&format!(r"(?:^|.*?\.){list}\.(?P<idx>\d+)\."), "").map_err(|e| e.at(format!("{list:?}")))
        }
    }
}

/// A key of `rank_pattern` or `alpha_pattern` (`get_pattern_key`).
pub(crate) fn rank_key_pattern(key: &str) -> Result<Regex> {
    compile(&format!(r"(.*\.)?({key})$"), "").map_err(|e| e.at(format!("{key:?}")))
}

pub(super) fn matches(pattern: &Regex, name: &str) -> Result<bool> {
    pattern.is_match(name).map_err(|_| too_long(pattern, name))
}

/// Said of a pattern that is given up.
pub(super) fn too_long(pattern: &Regex, name: &str) -> Error {
    Error::usage(format!("matching {name:?} takes too long")).at(format!("{:?}", pattern.as_str()))
}

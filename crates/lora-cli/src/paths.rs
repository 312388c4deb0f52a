//! What paths lead to, however they are spelt: no output may take the place of what is read, or of another output.

use std::path::{Path, PathBuf};

use lora::{Error, Result};

/// A path that may be given, behind what an error calls it: `--rows`, `the data`.
pub(crate) type Named<'a> = (&'a str, Option<&'a Path>);

/// Refuses outputs that lead to one place with each other or with what is read, and folders that hold what is read.
///
/// # Errors
/// Usage, naming both.
pub(crate) fn apart(outputs: &[Named<'_>], inputs: &[Named<'_>]) -> Result<()> {
    for (at, &(output, path)) in outputs.iter().enumerate() {
        let Some(path) = path else { continue };
        let place = real(path);
        let same = |(_, other): &&Named<'_>| other.is_some_and(|other| real(other) == place);
        if let Some((other, _)) = outputs[..at].iter().find(same) {
            return Err(Error::usage(format!("{other} and {output} are one file or folder"))
                .at(path.display())
                .hint("give each a place of its own"));
        }
        for &(input, read) in inputs {
            let Some(read) = read.map(real) else { continue };
            if read.starts_with(&place) {
                let what = if read == place { "would replace" } else { "is a folder that holds" };
                return Err(Error::usage(format!("{output} {what} {input}"))
                    .at(path.display())
                    .hint("write it elsewhere"));
            }
        }
    }
    Ok(())
}

/// Refuses to replace a file in a folder that is read: it may be one of those that are. What is new there replaces nothing.
///
/// # Errors
/// Usage, naming both.
pub(crate) fn spares((output, path): Named<'_>, inputs: &[Named<'_>]) -> Result<()> {
    let Some(path) = path.filter(|path| path.exists()) else { return Ok(()) };
    let place = real(path);
    let holds = |(_, read): &&Named<'_>| read.is_some_and(|read| place.starts_with(real(read)));
    match inputs.iter().find(holds) {
        None => Ok(()),
        Some((input, _)) => Err(Error::usage(format!("{output} would replace a file of {input}"))
            .at(path.display())
            .hint("write it elsewhere")),
    }
}

/// The file or folder that a path leads to, links followed; of one that is not there yet, where it would be.
pub(crate) fn real(path: &Path) -> PathBuf {
    if let Ok(there) = path.canonicalize() {
        return there;
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return path.to_owned() };
    real(if parent.as_os_str().is_empty() { Path::new(".") } else { parent }).join(name)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_place_has_many_spellings() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("data"), "").unwrap();
        symlink("a/b", at("folder")).unwrap();
        symlink("data", at("link")).unwrap();
        for (one, other, same) in [
            ("data", "a/../data", true),
            ("data", "link", true),
            ("data", "a/./b/../../link", true),
            // Of what is not there.
            ("x", "a/../x", true),
            ("a/b/x", "folder/x", true),
            ("a/x", "folder/../x", true),
            ("new/x", "a/../new/./x", true),
            ("a/b/x/", "folder/x", true),
            ("x", "folder/x", false),
            ("new/x", "x", false),
        ] {
            let paths = [at(one), at(other)];
            let [one, other] = [("--one", Some(paths[0].as_path())), ("--other", Some(paths[1].as_path()))];
            assert_eq!(apart(&[one, other], &[]).is_err(), same, "{paths:?}");
            assert_eq!(apart(&[one], &[other]).is_err(), same, "{paths:?}");
        }
        for (output, input, held, within) in [
            ("a", "folder/x", true, false),
            ("folder", "a/b/c/x", true, false),
            ("new", "new/x", true, false),
            ("a/b", "a", false, true),
            ("link", ".", false, true),
            ("x", ".", false, false),
            ("a/b", "a/bc", false, false),
        ] {
            let paths = [at(output), at(input)];
            let [output, input] = [("--out", Some(paths[0].as_path())), ("it", Some(paths[1].as_path()))];
            assert_eq!(apart(&[output], &[input]).is_err(), held, "{paths:?}");
            assert_eq!(spares(output, &[input]).is_err(), within, "{paths:?}");
        }
        assert_eq!(real(Path::new("x")), std::env::current_dir().unwrap().canonicalize().unwrap().join("x"));
        assert_eq!(real(Path::new("")), Path::new(""));
    }
}

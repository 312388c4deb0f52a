//! Output that is there whole or not at all: whatever fails, whenever the process dies, the target is what it was.

mod staged;

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::{Error, Result};
use staged::Staged;

/// A folder being written beside its target, as `NAME.partial-HOST-PID-N`, that takes the target's place at
/// [`commit`](Self::commit), in one step. Dropped before, it is deleted; if its process was killed, by the next that
/// writes the same target on the same host (a minute later, if another process has its number).
pub struct OutputFolder {
    target: PathBuf,
    overwrite: bool,
    is_ours: Box<dyn Fn(&Path) -> bool + Send + Sync>,
    staged: Staged,
}

impl fmt::Debug for OutputFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("OutputFolder");
        shown.field("target", &self.target).field("staged", &self.staged).finish_non_exhaustive()
    }
}

impl OutputFolder {
    /// Begins a folder that is to be `target`. A missing parent is made. `is_ours` says of a file there (a path inside the
    /// folder, such as `adapter_config.json`) whether it may be overwritten.
    ///
    /// # Errors
    /// The target is a file, a link, `/`, or holds the current folder; is not empty and `overwrite` is not
    /// set; or holds a file for which `is_ours` is false, which is never deleted.
    pub fn create(
        target: &Path,
        overwrite: bool,
        is_ours: impl Fn(&Path) -> bool + Send + Sync + 'static,
    ) -> Result<Self> {
        let (parent, target) = locate(target)?;
        check_target(&target, overwrite, &is_ours)?;
        make_folder(&parent)?;
        let staged = Staged::new(&target, |path| DirBuilder::new().create(path))?.0;
        Ok(Self { target, overwrite, is_ours: Box::new(is_ours), staged })
    }

    /// Refuses to be one of two that are being written for the same target: for who writes more beside it than this.
    ///
    /// # Errors
    /// Usage, naming the process of this host that has the other.
    pub fn alone(self) -> Result<Self> {
        match self.staged.rival(&self.target) {
            None => Ok(self),
            Some(process) => Err(Error::usage(format!("process {process} is writing it"))
                .at(self.target.display())
                .hint("wait until it has ended, or name another folder")),
        }
    }

    /// The folder while it is being written.
    pub fn path(&self) -> &Path {
        &self.staged.path
    }

    /// Writes one new file, `name` being a path inside the folder; folders on the way are made.
    ///
    /// # Errors
    /// `name` leads out of the folder or is there already; `fill` fails; the disk is full.
    pub fn write_with(
        &self,
        name: impl AsRef<Path>,
        fill: impl FnOnce(&mut File) -> Result<()>,
    ) -> Result<()> {
        let (mut file, shown) = self.create_file(name.as_ref())?;
        fill(&mut file).map_err(|e| e.at(shown.display()))
    }

    /// The new file, and its path as it will be.
    fn create_file(&self, name: &Path) -> Result<(File, PathBuf)> {
        let inside = name.components().all(|part| matches!(part, Component::Normal(_)));
        let shown = self.target.join(name);
        if !inside || name.file_name().is_none() {
            return Err(Error::usage("a file of a folder must lie in it").at(name.display()));
        }
        let path = self.path().join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| Error::io("make the folder of", &shown, e))?;
        }
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        Ok((file.map_err(|e| Error::io("create the file", &shown, e))?, shown))
    }

    /// Writes one new file with these bytes, as [`write_with`](Self::write_with).
    ///
    /// # Errors
    /// As [`write_with`](Self::write_with).
    pub fn write(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
        let (mut file, shown) = self.create_file(name.as_ref())?;
        file.write_all(bytes.as_ref()).map_err(|e| Error::io("write", &shown, e))
    }

    /// Brings everything to disk and puts it in the target's place, in one step. What was there is deleted.
    ///
    /// # Errors
    /// The disk is full or fails; the target is what it was. Or the target has become one that may not be overwritten, or
    /// that cannot be replaced: then what is finished stays beside it, as `NAME.finished-PID-N`, and the error says so. Only
    /// when the last two steps fail (bringing the exchange itself to disk, deleting the old folder) is the new one in place,
    /// and the error says so.
    pub fn commit(mut self) -> Result<()> {
        sync_all(&self.staged.path)?;
        let placed = check_target(&self.target, self.overwrite, &*self.is_ours).and_then(|()| {
            put_in_place(&self.staged.path, &self.target, self.overwrite)
                .map_err(|e| Error::io("put the finished folder in place", &self.target, e))
        });
        let exchanged = match placed {
            Ok(exchanged) => exchanged,
            Err(e) => return Err(self.staged.keep(&self.target, e)),
        };
        self.staged.armed = false;
        let done = |e: Error| e.at("the output is in place, but");
        sync(self.target.parent().unwrap_or(Path::new("."))).map_err(done)?;
        match exchanged {
            true => fs::remove_dir_all(&self.staged.path)
                .map_err(|e| done(Error::io("delete the folder it replaced", &self.staged.path, e))),
            false => Ok(()),
        }
    }
}

/// Writes one file whole or not at all, replacing a file that is there. A missing parent is made.
///
/// # Errors
/// The target is a folder or a link, or the disk is full; the file is what it was.
pub fn write_file(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    OutputFile::create(path)?.commit(bytes)
}

/// As [`write_file`], with what `fill` writes.
///
/// # Errors
/// As [`write_file`], and what `fill` gives.
pub fn write_file_with(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    OutputFile::create(path)?.commit_with(fill)
}

/// A file that takes its target's place at [`commit`](Self::commit), in one step: begun early, it shows early that it can be
/// written. Dropped before, it is deleted, and the target is what it was.
#[derive(Debug)]
pub struct OutputFile {
    target: PathBuf,
    staged: Staged,
    file: File,
}

impl OutputFile {
    /// Begins a file that is to be `target`, replacing a file that is there. A missing parent is made.
    ///
    /// # Errors
    /// The target is a folder or a link; nothing can be written there.
    pub fn create(target: &Path) -> Result<Self> {
        Self::begin(target, 0o666)
    }

    /// As [`create`](Self::create), of a file that is its owner's alone to read and to write.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn private(target: &Path) -> Result<Self> {
        Self::begin(target, 0o600)
    }

    fn begin(target: &Path, mode: u32) -> Result<Self> {
        let (parent, target) = locate(target)?;
        match fs::symlink_metadata(&target) {
            Ok(there) if !there.is_file() => {
                return Err(Error::usage("not a plain file").at(target.display()).hint("name another file"));
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => make_folder(&parent)?,
            Err(e) => return Err(Error::io("look at", &target, e)),
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(mode);
        let (staged, file) = Staged::new(&target, |staged| options.open(staged))?;
        Ok(Self { target, staged, file })
    }

    /// Writes these bytes, and puts them in the target's place.
    ///
    /// # Errors
    /// The disk is full; the file is what it was.
    pub fn commit(self, bytes: impl AsRef<[u8]>) -> Result<()> {
        let path = self.target.clone();
        self.commit_with(|file| file.write_all(bytes.as_ref()).map_err(|e| Error::io("write", &path, e)))
    }

    /// As [`commit`](Self::commit), with what `fill` writes.
    ///
    /// # Errors
    /// As [`commit`](Self::commit), and what `fill` gives.
    pub fn commit_with(mut self, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
        let target = &self.target;
        fill(&mut self.file)?;
        self.file.sync_all().map_err(|e| Error::io("bring to disk", target, e))?;
        fs::rename(&self.staged.path, target)
            .map_err(|e| Error::io("put the finished file in place", target, e))?;
        self.staged.armed = false;
        sync(target.parent().unwrap_or(Path::new(".")))
    }
}

/// `NAME.ending` beside `target`, which may end in a slash.
pub fn sibling(target: &Path, ending: &str) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(ending);
    target.with_file_name(name)
}

/// The parent folder, and the target in it without a trailing slash, which would follow a link.
fn locate(target: &Path) -> Result<(PathBuf, PathBuf)> {
    let Some(name) = target.file_name() else {
        return Err(Error::usage("not a name that output can have")
            .at(format!("{:?}", target.display().to_string()))
            .hint("name a file or folder, such as `my-adapter`"));
    };
    let parent = match target.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let target = parent.join(name);
    Ok((parent, target))
}

fn check_target(target: &Path, overwrite: bool, is_ours: &dyn Fn(&Path) -> bool) -> Result<()> {
    let place = target.display();
    match fs::symlink_metadata(target) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("look at", target, e)),
        Ok(there) if !there.is_dir() => {
            return Err(Error::usage("not a folder, so it is left alone")
                .at(place)
                .hint("name another folder"));
        }
        Ok(_) => {}
    }
    let whole = fs::canonicalize(target).map_err(|e| Error::io("look at", target, e))?;
    if std::env::current_dir().is_ok_and(|here| here.starts_with(&whole)) {
        return Err(Error::usage("holds the current folder").at(place).hint("name another folder"));
    }
    let files = walk(target)?;
    if !files.is_empty() && !overwrite {
        return Err(Error::usage("is there already and not empty")
            .at(place)
            .hint("name another folder, or replace it with `--overwrite`"));
    }
    let foreign = files.iter().find(|(file, kind)| match kind {
        kind if kind.is_dir() => false,
        kind => !kind.is_file() || !is_ours(file),
    });
    match foreign {
        Some((file, _)) => {
            Err(Error::usage(format!("holds {:?}, which is not of this program's making", file))
                .at(place)
                .hint("move it elsewhere, or name another folder; nothing was changed"))
        }
        None => Ok(()),
    }
}

/// Everything in a folder, as paths inside it, a folder before what it holds. Links are not followed.
fn walk(root: &Path) -> Result<Vec<(PathBuf, fs::FileType)>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let list = |e| Error::io("list the folder", &root.join(&folder), e);
        for entry in fs::read_dir(root.join(&folder)).map_err(list)? {
            let entry = entry.map_err(list)?;
            let kind = entry.file_type().map_err(list)?;
            let inside = folder.join(entry.file_name());
            if kind.is_dir() {
                folders.push(inside.clone());
            }
            found.push((inside, kind));
        }
    }
    Ok(found)
}

/// Makes a folder and those above it, each known to the disk.
fn make_folder(folder: &Path) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
    if folder.file_name().is_some() {
        make_folder(parent)?;
    }
    match fs::create_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        made => made.map_err(|e| Error::io("make the folder", folder, e)),
    }?;
    sync(parent)
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| Error::io("bring to disk", path, e))
}

/// Every file, then every folder from the inside out.
fn sync_all(root: &Path) -> Result<()> {
    let (folders, files): (Vec<_>, Vec<_>) = walk(root)?.into_iter().partition(|(_, kind)| kind.is_dir());
    for (inside, _) in files.iter().chain(folders.iter().rev()) {
        sync(&root.join(inside))?;
    }
    sync(root)
}

/// Whether the old folder now lies at `staged`.
fn put_in_place(staged: &Path, target: &Path, overwrite: bool) -> io::Result<bool> {
    // Replaces nothing but an empty folder; a folder that has come there in the meantime stays.
    match fs::rename(staged, target) {
        Err(e) if overwrite && not_empty(&e) => {}
        moved => return moved.map(|()| false),
    }
    match renameat_with(CWD, staged, CWD, target, RenameFlags::EXCHANGE) {
        Ok(()) => return Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
        Err(e) => return Err(e.into()),
    }
    // A file system without exchange: for a moment there is no target, but at all times a whole folder.
    let mut aside = staged.as_os_str().to_owned();
    aside.push("-old");
    fs::rename(target, &aside)?;
    if let Err(e) = fs::rename(staged, target) {
        fs::rename(&aside, target)?;
        return Err(e);
    }
    fs::rename(&aside, staged)?;
    Ok(true)
}

/// File systems may say either.
fn not_empty(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists)
}

//! Our nodes, as processes.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::deployment::{Group, example, wait_for};

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) key: PathBuf,
    pub(crate) store: PathBuf,
    pub(crate) roots: PathBuf,
    pub(crate) numbers: [String; 2],
    pub(crate) child: Option<Group>,
}

impl Node {
    fn command(&self, roots: &Path) -> Command {
        let mut node = Command::new(example("node"));
        node.args(["--address", &self.address, "--add", &self.numbers[0], "--examples", &self.numbers[1]]);
        node.arg("--key").arg(&self.key).arg("--store").arg(&self.store).arg("--roots").arg(roots);
        node
    }

    pub(crate) fn run(&mut self, flags: &[&str]) {
        let _ = fs::remove_file(self.with(".stop"));
        self.child = None;
        let log = self.with(".err");
        self.child = Some(Group::start(self.command(&self.roots).args(flags), &log));
    }

    fn with(&self, suffix: &str) -> PathBuf {
        PathBuf::from(format!("{}{suffix}", self.store.display()))
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.with(".log")).unwrap_or_default()
    }

    pub(crate) fn forget_log(&self) {
        fs::write(self.with(".log"), "").unwrap();
    }

    /// Ends it politely.
    pub(crate) fn stop(&mut self) {
        fs::write(self.with(".stop"), "").unwrap();
        if let Some(child) = &mut self.child {
            wait_for("a node to leave", Duration::from_secs(20), || child.ended());
        }
        self.child = None;
    }

    pub(crate) fn wait_for_death(&mut self, most: Duration) -> bool {
        let until = Instant::now() + most;
        let child = self.child.as_mut().unwrap();
        while !child.ended() {
            if Instant::now() > until {
                return false;
            }
            sleep(Duration::from_millis(50));
        }
        true
    }

    fn fails(mut command: Command) -> String {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while child.try_wait().unwrap().is_none() && Instant::now() < until {
            sleep(Duration::from_millis(100));
        }
        let refused = child.try_wait().unwrap().is_some_and(|status| !status.success());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(refused, "a node was not refused");
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }

    pub(crate) fn refused(&self, flags: &[&str]) -> String {
        let mut command = self.command(&self.roots);
        command.args(flags);
        Self::fails(command)
    }

    pub(crate) fn refused_with_roots(&self, roots: &Path) -> String {
        Self::fails(self.command(roots))
    }

    pub(crate) fn refused_in_clear(&self) -> String {
        let mut node = Command::new(example("node"));
        node.args(["--address", &self.address, "--insecure", "--key"])
            .arg(&self.key)
            .arg("--store")
            .arg(&self.store);
        Self::fails(node)
    }
}

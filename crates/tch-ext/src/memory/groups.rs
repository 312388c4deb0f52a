//! What control groups leave to their processes.

use std::path::{Component, Path};

/// A group's files.
struct Files {
    limit: &'static str,
    used: &'static str,
    /// In `memory.stat`, of the group and those below it: pages of files, which the kernel gives up for a process.
    cached: [&'static str; 2],
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cached: ["total_inactive_file", "total_active_file"],
};
const V2: Files =
    Files { limit: "memory.max", used: "memory.current", cached: ["inactive_file", "active_file"] };

/// Bytes that are left in the groups of a process and all groups above them, the least. `mine`: the process's
/// `/proc/self/cgroup`; `root`: where the groups are mounted. `None` where nothing is limited.
pub(super) fn available(mine: &str, root: &Path) -> Option<u64> {
    let groups = mine.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        if controllers.is_empty() {
            return V2.least(root, group);
        }
        let memory = controllers.split(',').any(|name| name == "memory");
        if memory { V1.least(&root.join("memory"), group) } else { None }
    });
    groups.min()
}

impl Files {
    /// What the group and those above it leave, as far as they are seen here: in a container its own may be the root.
    fn least(&self, mount: &Path, group: &str) -> Option<u64> {
        let group = Path::new(group.trim_start_matches('/'));
        // A process outside of what is mounted has a way that leads upwards.
        let below = group.components().all(|part| matches!(part, Component::Normal(_)));
        let group = if below { group } else { Path::new("") };
        group.ancestors().filter_map(|group| self.left(&mount.join(group))).min()
    }

    fn left(&self, folder: &Path) -> Option<u64> {
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
        let number = |name: &str| -> Option<u64> { read(name)?.trim().parse().ok() };
        let (limit, used) = (number(self.limit)?, number(self.used)?);
        let stat = read("memory.stat").unwrap_or_default();
        let cached = stat.lines().filter_map(|line| {
            let (name, bytes) = line.split_once(' ')?;
            if self.cached.contains(&name) { bytes.trim().parse::<u64>().ok() } else { None }
        });
        Some(limit.saturating_sub(used.saturating_sub(cached.sum())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of groups, deleted at the end.
    struct Mount(std::path::PathBuf);

    impl Mount {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("tch-ext-{name}-{}", std::process::id())))
        }

        fn group(&self, path: &str, files: &Files, limit: &str, used: u64, stat: &str) -> &Self {
            let folder = self.0.join(path);
            std::fs::create_dir_all(&folder).unwrap();
            let used = format!("{used}\n");
            for (name, text) in [(files.limit, limit), (files.used, &used[..]), ("memory.stat", stat)] {
                std::fs::write(folder.join(name), text).unwrap();
            }
            self
        }

        fn left(&self, mine: &str) -> Option<u64> {
            available(mine, &self.0)
        }
    }

    impl Drop for Mount {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_least_of_a_group_and_those_above_it_counts() {
        let mount = Mount::new("v2");
        mount
            .group("", &V2, "max\n", 5000, "")
            .group("a", &V2, "1000\n", 900, "")
            .group("a/b", &V2, "max\n", 800, "");
        assert_eq!(mount.left("0::/a/b\n"), Some(100));
        mount.group("a/b", &V2, "850\n", 800, "");
        assert_eq!(mount.left("0::/a/b\n"), Some(50));
        assert_eq!(mount.left("0::/a\n"), Some(100));
        assert_eq!(mount.left("0::/\n"), None, "no limit");
        assert_eq!(mount.left(""), None);
        // In a container: its group is the root, and the name is the machine's.
        mount.group("", &V2, "700\n", 600, "");
        assert_eq!(mount.left("0::/elsewhere/x\n"), Some(100));
        assert_eq!(mount.left("0::/a/../a/b\n"), Some(100), "a way upwards is not gone");
    }

    #[test]
    fn copies_of_files_make_room() {
        let mount = Mount::new("cached");
        let stat = "anon 300\nfile 550\ninactive_file 400\nactive_file 100\nshmem 50\ntotal_active_file 7\n";
        mount.group("a", &V2, "1000\n", 900, stat);
        assert_eq!(mount.left("0::/a\n"), Some(600));
        // The first version's numbers are those of this group alone, and of all below it in total.
        let stat = "inactive_file 1\nactive_file 2\ntotal_inactive_file 40\ntotal_active_file 20\n";
        mount
            .group("memory", &V1, "9223372036854771712\n", 950, "")
            .group("memory/c", &V1, "500\n", 400, stat);
        assert_eq!(mount.left("5:cpu,cpuacct:/a\n4:memory:/c\n0::/\n"), Some(160));
        assert_eq!(mount.left("5:cpuset,memory:/c\n0::/a\n"), Some(160));
        // Never more than the limit, whenever the files were read.
        mount.group("a", &V2, "1000\n", 90, "inactive_file 400\n");
        assert_eq!(mount.left("0::/a\n"), Some(1000));
    }
}

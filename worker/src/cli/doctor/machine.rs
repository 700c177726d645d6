//! Processor and memory, by the files of Linux.

use crate::kernel::cpu::simd::Isa;
use crate::memory;
use serde::Serialize;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// More of a file is not read.
const MAX_BYTES: u64 = 1 << 20;

/// What the fast engine for processors has.
#[derive(Debug, Serialize)]
pub(super) struct Processor {
    /// As the system calls it.
    pub(super) name: Option<String>,
    /// The instructions that the engine uses here.
    pub(super) instructions: String,
    /// Threads that run at once in this process.
    pub(super) threads: usize,
    /// Those of the machine; more than `threads` where a limit or an affinity is set.
    pub(super) threads_of_machine: Option<usize>,
}

impl Processor {
    pub(super) fn look() -> Self {
        let info = read(Path::new("/proc/cpuinfo")).unwrap_or_default();
        let name = info.lines().find_map(|line| value(line, "model name"));
        let all = info
            .lines()
            .filter(|line| value(line, "processor").is_some())
            .count();
        Self {
            name: name.map(str::to_owned),
            instructions: Isa::best().to_string(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            threads_of_machine: (all > 0).then_some(all),
        }
    }
}

/// Memory of the machine, in bytes.
#[derive(Debug, Serialize)]
pub(super) struct Memory {
    pub(super) total: Option<u64>,
    pub(super) available: Option<u64>,
    /// What this process's group may have at most.
    pub(super) limit: Option<u64>,
}

impl Memory {
    pub(super) fn look() -> Self {
        let info = read(Path::new("/proc/meminfo")).unwrap_or_default();
        let kib = info.lines().find_map(|line| {
            let value = line.strip_prefix("MemTotal:")?;
            value.split_whitespace().next()?.parse::<u64>().ok()
        });
        let total = kib.and_then(|kib| kib.checked_mul(1024));
        let group = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
        let limit = limits(&group).filter_map(|path| read(Path::new(&path)));
        let limit = limit
            .filter_map(|text| text.trim().parse::<u64>().ok())
            .min();
        Self {
            total,
            available: memory::available_bytes(),
            // Version 1 has a huge number where there is no limit.
            limit: limit.filter(|&limit| total.is_none_or(|total| limit < total)),
        }
    }
}

/// The files that may have the limit of a process of these groups: in a container its own is the root.
fn limits(groups: &str) -> impl Iterator<Item = String> {
    let own = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let path = path.trim_end_matches('/');
        match controllers {
            "" => Some(format!("/sys/fs/cgroup{path}/memory.max")),
            "memory" => Some(format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")),
            _ => None,
        }
    });
    let roots = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    own.chain(roots.map(str::to_owned))
}

/// What a line of `/proc/cpuinfo` says of a key.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (name, value) = line.split_once(':')?;
    (name.trim() == key).then(|| value.trim())
}

/// A file as text, as far as it is short.
pub(super) fn read(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_looked_for_in_the_own_group_and_at_the_root() {
        let files: Vec<_> = limits("0::/user.slice/a:b\n").collect();
        assert_eq!(files[0], "/sys/fs/cgroup/user.slice/a:b/memory.max");
        let files: Vec<_> = limits("5:cpu,cpuacct:/x\n4:memory:/docker/1\ngarbage\n").collect();
        assert_eq!(
            files[0],
            "/sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes"
        );
        assert_eq!(files.len(), 3, "{files:?}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_a_processor_and_memory() {
        let processor = Processor::look();
        assert!(processor.threads <= processor.threads_of_machine.unwrap());
        let memory = Memory::look();
        assert!(memory.available.unwrap() <= memory.total.unwrap());
    }
}

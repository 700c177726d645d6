//! MPI: the launchers on `PATH`, and what this program is linked to.

use super::Missing;
use super::machine::read;
use serde::Serialize;
use std::env;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// For a launcher to say its version.
const PATIENCE: Duration = Duration::from_secs(3);
/// More of what it says is not read.
const MAX_BYTES: u64 = 4096;
/// Letters of a version that are shown.
const MAX_LETTERS: usize = 100;
const LAUNCHERS: &[&str] = &["mpirun", "mpiexec"];

/// What there is of MPI.
#[derive(Debug, Serialize)]
pub(super) struct Mpi {
    /// Whether this program can be a rank of it.
    pub(super) is_built_in: bool,
    /// The library that is loaded into it.
    pub(super) library: Option<PathBuf>,
    /// The first launcher on `PATH`.
    pub(super) launcher: Option<Launcher>,
}

/// A program that starts ranks.
#[derive(Debug, Serialize)]
pub(super) struct Launcher {
    pub(super) path: PathBuf,
    /// What it says of itself; absent where it says nothing in time.
    pub(super) version: Option<String>,
}

impl Mpi {
    pub(super) fn look(is_built_in: bool) -> Self {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders: Vec<PathBuf> = env::split_paths(&path).collect();
        let mut files = LAUNCHERS
            .iter()
            .flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
        let launcher = files.find(|file| file.is_file());
        Self {
            is_built_in,
            library: is_built_in.then(library).flatten(),
            launcher: launcher.map(|path| Launcher {
                version: version(&path),
                path,
            }),
        }
    }

    pub(super) fn missing(&self) -> Option<Missing> {
        let (why, remedy) = match (self.is_built_in, &self.launcher) {
            (false, _) => (
                "this synfire was built without MPI",
                "cargo build --release --features mpi, with MPI's headers and libclang; ranks of one \
                 machine need none of it: synfire launch",
            ),
            (true, None) => (
                "there is no mpirun on PATH",
                "install the MPI that synfire was built with (Debian: openmpi-bin or mpich)",
            ),
            (true, Some(_)) => return None,
        };
        Some(Missing {
            what: "MPI",
            why: why.to_owned(),
            remedy: remedy.to_owned(),
            cuda_needs_it: false,
        })
    }
}

/// The MPI that the loader has put into this process.
fn library() -> Option<PathBuf> {
    let maps = read(Path::new("/proc/self/maps"))?;
    let mut paths = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]));
    let path = paths.find(|path| {
        let name = path.rsplit('/').next().unwrap_or_default();
        name.starts_with("libmpi.so") || name.starts_with("libmpich.so")
    });
    path.map(PathBuf::from)
}

/// What a launcher says of its version.
fn version(launcher: &Path) -> Option<String> {
    let mut child = Command::new(launcher)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let output = child.stdout.take()?;
    let (send, receive) = mpsc::sync_channel(1);
    // It ends with the pipe, which a process that the launcher has left behind may hold open.
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = output.take(MAX_BYTES).read_to_end(&mut bytes);
        let _ = send.send(bytes);
    });
    let bytes = receive.recv_timeout(PATIENCE);
    // It has said what it has to say, or has had its time.
    let _ = child.kill();
    let _ = child.wait();
    named(&String::from_utf8_lossy(&bytes.ok()?))
}

/// Name and version in what a launcher says: Open MPI in its first line, MPICH's in a list.
fn named(text: &str) -> Option<String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next()?;
    let told = if first.starts_with("HYDRA") {
        let version = lines.find_map(|line| line.strip_prefix("Version:"))?;
        format!("MPICH {}", version.trim())
    } else {
        first.to_owned()
    };
    let shown = told.chars().filter(|letter| !letter.is_control());
    Some(shown.take(MAX_LETTERS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_say_their_version_each_in_its_way() {
        let open = "mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org\n";
        assert_eq!(named(open).as_deref(), Some("mpirun (Open MPI) 4.1.4"));
        let hydra =
            "HYDRA build details:\n    Version:                4.0.2\n    Release Date: x\n";
        assert_eq!(named(hydra).as_deref(), Some("MPICH 4.0.2"));
        assert_eq!(named("\n \n"), None);
        assert_eq!(named("HYDRA build details:\n"), None);
        assert_eq!(named(&"\u{7}x".repeat(5000)).unwrap().len(), MAX_LETTERS);
    }
}

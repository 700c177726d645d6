//! Processes of a test: they write to logs, get signals, and end with the test.

use crate::folder::Folder;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What is waited for is there by then, or never.
pub(crate) const DEADLINE: Duration = Duration::from_mins(2);
/// Made up, as long as the coordinator wants it.
pub(crate) const TOKEN: &str = "0123456789abcdef-of-the-tests";

/// Waits until something holds.
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < DEADLINE, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A process that ends with the test.
pub(crate) struct Process {
    pub(crate) child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it; what it says goes to the end of this file.
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log);
        let file = file.unwrap();
        command.stdin(Stdio::null());
        command.stdout(file.try_clone().unwrap()).stderr(file);
        Self {
            child: command.spawn().unwrap(),
            log: log.to_owned(),
        }
    }

    /// All that processes with this log have said.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    /// Sends a signal: "KILL", "STOP".
    pub(crate) fn signal(&self, signal: &str) {
        let mut kill = Command::new("kill");
        kill.args(["-s", signal, &self.child.id().to_string()]);
        assert!(kill.status().unwrap().success(), "{signal}");
    }

    pub(crate) fn kill(&mut self) {
        // It is no error that it has ended.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end; the exit status.
    pub(crate) fn code(&mut self) -> Option<i32> {
        self.code_within(DEADLINE)
    }

    pub(crate) fn code_within(&mut self, limit: Duration) -> Option<i32> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            let log = || self.log();
            assert!(begin.elapsed() < limit, "it does not end:\n{}", log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until its log has these words.
    pub(crate) fn wait_until_it_says(&self, words: &str) {
        self.wait_until_it_says_one_of(&[words]);
    }

    /// Waits until its log has some of these words.
    pub(crate) fn wait_until_it_says_one_of(&self, words: &[&str]) {
        let begin = Instant::now();
        let says = |log: String| words.iter().any(|words| log.contains(words));
        while !says(self.log()) {
            let log = || self.log();
            assert!(begin.elapsed() < DEADLINE, "no {words:?} in:\n{}", log());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command of synfire that finds the folder's store and knows the token.
pub(crate) fn synfire(folder: &Folder<'_>) -> Command {
    prepared(Command::new(env!("CARGO_BIN_EXE_synfire")), folder)
}

fn prepared(mut command: Command, folder: &Folder<'_>) -> Command {
    if let Some(server) = folder.server() {
        server.environment(&mut command);
    }
    command
        // What a test holds back is in time as long as that.
        .env("SYNFIRE_STORE_DEADLINE_SECONDS", "80")
        .env("SYNFIRE_STORE_LEASE_SECONDS", "1")
        .env("SYNFIRE_TOKEN", TOKEN)
        .env_remove("SYNFIRE_COORDINATOR")
        .env_remove("SYNFIRE_LOG");
    command
}

/// The arguments of a tiny run of so many batches.
pub(crate) fn train(folder: &Folder<'_>, batches: u64) -> Vec<String> {
    let sets = [
        "model.width=0.25".to_owned(),
        "algorithm.time_steps=2".to_owned(),
        "data.batch=16".to_owned(),
        "run.threads=1".to_owned(),
        "checkpoint.every_batches=1".to_owned(),
        // Measured, it would not be the same in two runs.
        "ranks.bucket_mib=1.0".to_owned(),
        format!("run.folder={}", folder.location()),
        format!("run.max_batches={batches}"),
    ];
    let sets = sets.into_iter().flat_map(|set| ["--set".to_owned(), set]);
    std::iter::once("train".to_owned()).chain(sets).collect()
}

/// A coordinator and its workers.
pub(crate) struct Group<'a> {
    pub(crate) folder: Folder<'a>,
    pub(crate) workers: Vec<Process>,
    pub(crate) coordinator: Process,
    pub(crate) address: SocketAddr,
    arguments: Vec<String>,
    logs: PathBuf,
}

impl<'a> Group<'a> {
    /// Starts all of them; logs go to this folder.
    pub(crate) fn start(
        folder: Folder<'a>,
        ranks: usize,
        arguments: Vec<String>,
        logs: PathBuf,
    ) -> Self {
        fs::create_dir_all(&logs).unwrap();
        let coordinator = coordinator(&folder, ranks, "127.0.0.1:0", &logs);
        let mut address = None;
        wait_for("the coordinator does not listen", || {
            let log = coordinator.log();
            let line = log.lines().find(|line| line.contains(" at http://"));
            let url = line.and_then(|line| line.split_once("http://"));
            address = url.and_then(|(_, address)| address.parse().ok());
            address.is_some()
        });
        let mut group = Self {
            folder,
            workers: Vec::new(),
            coordinator,
            address: address.unwrap(),
            arguments,
            logs,
        };
        for rank in 0..ranks {
            let worker = group.worker(rank);
            group.workers.push(worker);
        }
        group
    }

    pub(crate) fn command(&self, rank: usize) -> Command {
        let mut command = synfire(&self.folder);
        command.args(&self.arguments);
        let url = format!("http://{}", self.address);
        command.args(["--coordinator", &url, "--rank", &rank.to_string()]);
        command
    }

    fn worker(&self, rank: usize) -> Process {
        let log = self.logs.join(format!("rank-{rank}.log"));
        Process::start(self.command(rank), &log)
    }

    pub(crate) fn start_worker(&mut self, rank: usize) {
        self.workers[rank] = self.worker(rank);
    }

    /// Starts another process in the place of this one, which is left to itself.
    pub(crate) fn replace_worker(&mut self, rank: usize) -> Process {
        let other = self.worker(rank);
        std::mem::replace(&mut self.workers[rank], other)
    }

    /// Starts the coordinator again, at the address that it had.
    pub(crate) fn start_coordinator(&mut self) {
        let address = self.address.to_string();
        let ranks = self.workers.len();
        self.coordinator = coordinator(&self.folder, ranks, &address, &self.logs);
    }

    /// Waits until a checkpoint of at least so many batches is there.
    pub(crate) fn wait_for_batches(&self, batches: u64) {
        let what = format!("no checkpoint after {batches} batches");
        wait_for(&what, || self.folder.newest() >= batches);
    }

    /// Waits until all have ended well.
    pub(crate) fn finish(&mut self) {
        for worker in &mut self.workers {
            let code = worker.code();
            assert_eq!(code, Some(0), "{}", worker.log());
        }
        let code = self.coordinator.code();
        assert_eq!(code, Some(0), "{}", self.coordinator.log());
    }
}

fn coordinator(folder: &Folder<'_>, ranks: usize, address: &str, logs: &Path) -> Process {
    let program = Path::new(env!("CARGO_BIN_EXE_synfire")).with_file_name("synfire-coordinator");
    assert!(
        program.exists(),
        "there is no {}: cargo build --release --package synfire-coordinator",
        program.display()
    );
    let mut command = prepared(Command::new(program), folder);
    command.args(["--run", &folder.location(), "--ranks", &ranks.to_string()]);
    command.args(["--listen", address, "--until-over"]);
    Process::start(command, &logs.join("coordinator.log"))
}

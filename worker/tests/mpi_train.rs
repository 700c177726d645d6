//! `mpirun -n N synfire train`: what it computes, how it is stopped, and how it fails.
//!
//! `tests/run` calls this for Open MPI and for MPICH; `SYNFIRE_MPIRUN` names the `mpirun`,
//! `SYNFIRE_OTHER_MPIRUN` that of the MPI for which this was not built.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use synfire_shared::checkpoint::manifest_of_name;

mod mpirun;

/// In the environment of all processes of a job: its folder, by which they are found.
const JOB: &str = "SYNFIRE_TEST_MPI_JOB";

/// What a job may take on a loaded machine; none that passes comes near.
const LIMIT: Duration = Duration::from_mins(2);

/// Why the test's files can be read and its processes be started.
const OWN: &str = "they are the test's own";

/// A run folder that goes when the test passes.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = format!("synfire-mpi-{name}-{}", std::process::id());
        let folder = env::temp_dir().join(folder);
        let _ = fs::remove_dir_all(&folder);
        Self(folder)
    }

    /// The batches before the newest checkpoint; 0 without one.
    fn newest(&self) -> u64 {
        let Ok(entries) = fs::read_dir(self.0.join("checkpoints")) else {
            return 0;
        };
        let names = entries.map(|entry| entry.expect(OWN).file_name().into_string().expect(OWN));
        let numbers = names.filter_map(|name| Some(manifest_of_name(&name)?.batches_done));
        numbers.max().unwrap_or(0)
    }

    /// The bytes of the weights after so many batches.
    fn weights(&self, batches: u64) -> Vec<u8> {
        let folder = self.0.join("checkpoints");
        let entries = fs::read_dir(&folder).expect(OWN);
        let mut names =
            entries.map(|entry| entry.expect(OWN).file_name().into_string().expect(OWN));
        let start = format!("{batches:012}-");
        let name = names.find(|name| name.starts_with(&start) && name.contains("weights"));
        fs::read(folder.join(name.expect("there is such a checkpoint"))).expect(OWN)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
            let _ = fs::remove_file(said_in(&self.0));
        }
    }
}

/// Where the processes of a job in this folder say what they say.
fn said_in(folder: &Path) -> PathBuf {
    folder.with_extension("txt")
}

/// The arguments of a tiny run.
fn train(folder: &Folder, more: &[&str]) -> Vec<String> {
    let mut arguments = vec![env!("CARGO_BIN_EXE_synfire").to_owned(), "train".into()];
    let folder = format!("run.folder={}", folder.0.display());
    for set in [
        "model.width=0.25",
        "algorithm.time_steps=2",
        "data.batch=16",
        "run.threads=1",
        "checkpoint.every_batches=1",
        &folder,
    ] {
        arguments.extend(["--set".to_owned(), set.to_owned()]);
    }
    arguments.extend(more.iter().map(|more| (*more).to_owned()));
    arguments
}

/// A job under way.
struct Job {
    child: Child,
    folder: PathBuf,
}

impl Job {
    /// So many ranks of a tiny run, with more arguments.
    fn of(ranks: u32, folder: &Folder, more: &[&str]) -> Self {
        Self::with_options(&[], ranks, folder, more)
    }

    /// The same, with options of `mpirun`.
    fn with_options(options: &[&str], ranks: u32, folder: &Folder, more: &[&str]) -> Self {
        let mut command = mpirun::mpirun().0;
        command.args(options).arg("-n").arg(ranks.to_string());
        command.args(train(folder, more));
        Self::start(command, folder)
    }

    fn start(mut command: Command, folder: &Folder) -> Self {
        let said = File::create(said_in(&folder.0)).expect(OWN);
        command.stderr(said.try_clone().expect(OWN)).stdout(said);
        command.env(JOB, &folder.0);
        Self {
            child: command.spawn().expect(OWN),
            folder: folder.0.clone(),
        }
    }

    fn text(&self) -> String {
        let said = fs::read(said_in(&self.folder)).expect(OWN);
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Waits for something while the job runs.
    fn wait_for(&mut self, what: &str, look: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !look(self) {
            let ended = self.child.try_wait().expect(OWN);
            assert!(ended.is_none(), "before {what}, {ended:?}: {}", self.text());
            let seconds = LIMIT.as_secs();
            let is_late = begin.elapsed() > LIMIT;
            assert!(!is_late, "no {what} within {seconds} s: {}", self.text());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end.
    fn end(mut self) -> (ExitStatus, String) {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect(OWN) {
                return (status, self.text());
            }
            let seconds = LIMIT.as_secs();
            let is_late = begin.elapsed() > LIMIT;
            assert!(!is_late, "no end within {seconds} s: {}", self.text());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn succeeds(self) -> String {
        let (status, text) = self.end();
        assert!(status.success(), "{status}: {text}");
        text
    }

    fn fails(self, words: &[&str]) -> String {
        let (status, text) = self.end();
        assert!(!status.success(), "{text}");
        for word in words {
            assert!(text.contains(word), "no {word:?} in:\n{text}");
        }
        text
    }

    /// The processes of both ranks, once they train.
    fn ranks(&mut self) -> [u32; 2] {
        self.wait_for("training", |job| job.text().contains("ranks average over"));
        [0, 1].map(|rank| self.rank(rank))
    }

    fn rank(&self, rank: u32) -> u32 {
        let ranks = ["OMPI_COMM_WORLD_RANK", "PMI_RANK"].map(|name| format!("{name}={rank}"));
        let mut processes = self.processes().into_iter();
        let found = processes.find(|(_, values)| ranks.iter().any(|rank| values.contains(rank)));
        let found = found.unwrap_or_else(|| panic!("no rank {rank}: {}", self.text()));
        found.0
    }

    /// The processes of this job, with their environments.
    fn processes(&self) -> Vec<(u32, Vec<String>)> {
        let job = format!("{JOB}={}", self.folder.display());
        let entries = fs::read_dir("/proc").expect(OWN);
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let with_values = |pid: u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let values = environment.split(|&byte| byte == 0);
            let values = values.map(|value| String::from_utf8_lossy(value).into_owned());
            (pid, values.collect::<Vec<_>>())
        };
        let all = pids.map(with_values);
        all.filter(|(_, values)| values.contains(&job)).collect()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // Only a test that has failed leaves one; `mpirun` ends its ranks.
        if matches!(self.child.try_wait(), Ok(None)) {
            signal("TERM", self.child.id());
            thread::sleep(Duration::from_secs(3));
            let _ = self.child.kill();
            let _ = self.child.wait();
            // Also those that stand still, or of which a killed `mpirun` knows nothing any more.
            for (left, _) in self.processes() {
                let kill = format!("kill -KILL {left} 2>/dev/null");
                let _ = Command::new("sh").args(["-c", &kill]).status();
            }
        }
    }
}

fn signal(name: &str, pid: u32) {
    let status = Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid}")])
        .status();
    assert!(status.expect(OWN).success(), "kill -{name} {pid}");
}

/// Waits until a process is gone, or is nothing but a status that nobody has asked for.
fn assert_ends(pid: u32) {
    let begin = Instant::now();
    let is_there = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next());
        state.filter(|&state| state != 'Z')
    };
    while let Some(state) = is_there() {
        let is_late = begin.elapsed() > Duration::from_secs(30);
        if is_late {
            signal("KILL", pid);
        }
        assert!(!is_late, "process {pid} is left behind in state {state}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn batches(number: u64) -> [String; 2] {
    ["--set".into(), format!("run.max_batches={number}")]
}

#[test]
#[ignore = "needs MPI"]
fn needs_mpi_the_same_seed_gives_the_same_bits_and_other_ranks_go_on() {
    let [set, four] = &batches(4);
    let [_, two] = &batches(2);
    let (first, second, third) = (
        Folder::new("first"),
        Folder::new("second"),
        Folder::new("third"),
    );
    let text = Job::of(2, &first, &[set, four]).succeeds();
    assert!(text.contains("generation 1 of 2 ranks"), "{text}");
    assert!(text.contains("2 ranks average over mpi ("), "{text}");
    // Only the last checkpoint is sure to be there: one that is due while another is written is left out.
    Job::of(2, &second, &[set, two]).succeeds();
    Job::of(2, &third, &[set, two]).succeeds();
    assert!(third.weights(2) == second.weights(2), "bits differ");
    Job::of(2, &second, &[set, four]).succeeds();
    assert!(first.weights(4) == second.weights(4), "bits differ");

    let text = Job::of(3, &third, &[set, four]).succeeds();
    for words in [
        "resumed from",
        "after 2 of its batches",
        "3 ranks average over mpi (",
    ] {
        assert!(text.contains(words), "no {words:?} in:\n{text}");
    }
    assert_eq!(third.newest(), 4);
}

#[test]
#[ignore = "needs MPI"]
fn needs_mpi_a_signal_to_mpirun_saves() {
    let folder = Folder::new("signal");
    // It would last for long, and but for ends of epochs only a signal writes a checkpoint.
    let (long, rarely) = ("run.epochs=1000", "checkpoint.every_batches=1000000");
    let set = ["--set", long, "--set", rarely];
    let is_open_mpi = mpirun::mpirun().1;
    // Seconds until Open MPI hands the signal on, and again until it kills.
    let options: &[&str] = if is_open_mpi {
        &["--mca", "odls_base_sigkill_timeout", "5"]
    } else {
        &[]
    };
    let mut job = Job::with_options(options, 2, &folder, &set);
    let ranks = job.ranks();
    signal("TERM", job.child.id());
    let (status, text) = job.end();
    assert!(
        text.contains("stopped by SIGTERM; the same command goes on"),
        "{text}"
    );
    // MPICH's now and then gives 0, whatever its ranks end with.
    assert!(!is_open_mpi || !status.success(), "{text}");
    ranks.into_iter().for_each(assert_ends);
    let saved = folder.newest();
    assert!(saved > 0);
    let [flag, more] = &batches(saved + 1);
    let text = Job::of(2, &folder, &[&set[..], &[flag.as_str(), more]].concat()).succeeds();
    assert!(text.contains("resumed from"), "{text}");
}

#[test]
#[ignore = "needs MPI"]
fn needs_mpi_a_killed_rank_ends_the_job_and_the_same_command_goes_on_to_the_same_bits() {
    const ALL: u64 = 600;
    let [set, all] = &batches(ALL);
    let (whole, killed) = (Folder::new("whole"), Folder::new("killed"));
    Job::of(2, &whole, &[set, all]).succeeds();
    for rank in [1, 0] {
        let before = killed.newest();
        let mut job = Job::of(2, &killed, &[set, all]);
        let ranks = job.ranks();
        job.wait_for("a checkpoint", |_| killed.newest() > before + 1);
        signal("KILL", ranks[rank]);
        job.fails(&[]);
        ranks.into_iter().for_each(assert_ends);
        assert!(killed.newest() < ALL);
    }
    let text = Job::of(2, &killed, &[set, all]).succeeds();
    assert!(text.contains("resumed from"), "{text}");
    assert!(whole.weights(ALL) == killed.weights(ALL), "bits differ");
}

#[test]
#[ignore = "needs MPI"]
fn needs_mpi_a_stopped_rank_is_named_and_not_left_behind() {
    for (rank, words) in [
        (1, "was last heard of"),
        (0, "rank 0, which has the coordinator, has not answered for"),
    ] {
        let folder = Folder::new("stopped");
        // Not the deadline of an average notices it, but the heartbeat.
        let deadline = "ranks.deadline_seconds=1000";
        let long = "run.epochs=1000";
        let mut job = Job::of(2, &folder, &["--set", deadline, "--set", long]);
        let ranks = job.ranks();
        job.wait_for("a checkpoint", |_| folder.newest() >= 1);
        signal("STOP", ranks[rank]);
        job.fails(&[words, &format!("rank {rank}")]);
        ranks.into_iter().for_each(assert_ends);
    }
}

#[test]
#[ignore = "needs MPI"]
fn needs_mpi_another_configuration_is_refused_with_the_difference_named() {
    let folder = Folder::new("other");
    let mut command = mpirun::mpirun().0;
    command.args(["-n", "1"]).args(train(&folder, &[]));
    command.args([":", "-n", "1"]);
    command.args(train(&folder, &["--set", "optimiser.lr=0.0123"]));
    Job::start(command, &folder).fails(&["optimiser.lr", "0.0123"]);
}

#[test]
#[ignore = "needs MPI"]
fn needs_mpi_a_rank_that_cannot_begin_ends_the_job() {
    let folder = Folder::new("begin");
    let page = folder.0.join("none/there/report.html");
    let page = page.display().to_string();
    let words = ["rank 0 gave up", "is no folder: make it first"];
    Job::of(2, &folder, &["--report", &page]).fails(&words);
    let weights = folder.0.join("none/there/weights.safetensors");
    let weights = weights.display().to_string();
    Job::of(2, &folder, &["--save-weights", &weights]).fails(&["rank 0 gave up: --save-weights"]);
}

#[test]
#[ignore = "needs MPI"]
fn needs_mpi_the_mpirun_of_another_mpi_is_told() {
    let other = env::var("SYNFIRE_OTHER_MPIRUN");
    let other = other.expect("SYNFIRE_OTHER_MPIRUN names the mpirun of the other MPI");
    let folder = Folder::new("mismatch");
    let mut command = mpirun::with_name(&other).0;
    command.args(["-n", "2"]).args(train(&folder, &[]));
    Job::start(command, &folder).fails(&["synfire was built with another MPI than this mpirun"]);
    assert_eq!(folder.newest(), 0);
}

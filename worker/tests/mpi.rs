//! The suite of `tests/collectives.rs` on ranks of a real MPI job, and how such a job fails.
//!
//! Each test starts this very binary under `mpirun` (`SYNFIRE_MPIRUN` names another), where
//! `needs_mpi_one_rank` is what one rank does. `tests/run` calls this for Open MPI and for MPICH.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "the ranks of the tests are not tests themselves"
)]

use std::env;
use std::fmt::Write;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use synfire::collective::environment::launched_by_mpi;
use synfire::collective::{Collective, CollectiveError, Mpi, Wire};
use synfire_shared::ids::Rank;

#[expect(
    dead_code,
    unreachable_pub,
    reason = "it is a module of another crate as well"
)]
#[path = "../../tests/support/ranks.rs"]
mod ranks;

mod mpirun;

/// In the environment of the ranks: what they do.
const CASE: &str = "SYNFIRE_TEST_MPI_CASE";

/// Seconds that a job may take on a loaded machine; none that passes comes near.
const LIMIT: &str = "120";
/// Seconds after which what does not end when it is told to is killed.
const GRACE: &str = "10";

/// A job of so many ranks that play this case.
fn job(ranks: usize, case: &str) -> Output {
    let (mpirun, began) = (mpirun::mpirun().0, Instant::now());
    // Told to end, `mpirun` ends its ranks.
    let mut command = Command::new("timeout");
    command
        .args(["-s", "TERM", "-k", GRACE, LIMIT])
        .arg(mpirun.get_program());
    command.args(mpirun.get_args());
    command.arg("-n").arg(ranks.to_string());
    command.arg(env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "needs_mpi_one_rank", "--nocapture"]);
    command.env(CASE, case).stdin(Stdio::null());
    let output = command.output().unwrap();
    // What `timeout` says of a job that it had to end; without a number it was killed itself.
    let is_late = matches!(output.status.code(), Some(124 | 137) | None);
    assert!(
        !is_late || began.elapsed().as_secs_f64() < LIMIT.parse::<f64>().unwrap(),
        "{case} on {ranks} ranks has not ended within {LIMIT} s and was ended:\n{}",
        said(&output)
    );
    output
}

/// All that the ranks and `mpirun` have said.
fn said(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    write!(text, "\n{errors}\nstatus: {}", output.status).unwrap();
    text
}

/// A job that must fail, with these words in its output.
fn fails(ranks: usize, case: &str, words: &[&str]) {
    let began = Instant::now();
    let output = job(ranks, case);
    let text = said(&output);
    assert!(!output.status.success(), "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in:\n{text}");
    }
    let seconds = began.elapsed().as_secs_f64();
    assert!(seconds < 60.0, "it took {seconds} s:\n{text}");
}

#[test]
#[ignore = "needs MPI"]
fn needs_mpi_ranks_average_broadcast_and_gather() {
    for ranks in 1..=5 {
        let output = job(ranks, "suite");
        let text = said(&output);
        assert!(output.status.success(), "{text}");
        for rank in 0..ranks {
            let passed = format!("rank {rank} of world {ranks} passed");
            assert!(text.contains(&passed), "no {passed:?} in:\n{text}");
        }
    }
}

#[test]
#[ignore = "needs MPI"]
fn needs_mpi_unequal_lengths_and_calls_are_refused_on_every_rank() {
    for ranks in [2, 3] {
        let words = ["refused on rank 0", "refused on rank 1", "20000 on rank 1"];
        fails(ranks, "unequal", &words);
    }
    let expected = "rank 1 asked for a gather while this rank asked for a mean in f32";
    fails(2, "out_of_step", &[expected]);
}

#[test]
#[ignore = "needs MPI"]
fn needs_mpi_a_rank_that_hangs_or_is_stopped_is_named_at_the_deadline() {
    let words = ["gave up: waited 1.0 s for rank 1"];
    fails(2, "hang", &words);
    fails(3, "hang", &words);
    fails(3, "stopped", &words);
}

#[test]
#[ignore = "needs MPI"]
fn needs_mpi_a_rank_that_dies_or_gives_up_ends_the_job() {
    fails(3, "death", &[]);
    fails(2, "panic", &["the rank panics"]);
    fails(3, "abort", &["rank 1 gave up: the disk is full"]);
}

#[test]
#[ignore = "needs MPI"]
fn needs_mpi_an_interrupt_ends_a_wait_at_once() {
    let words = ["rank 0 gave up: interrupted: rank 1 is cut off"];
    fails(2, "interrupt", &words);
}

/// What one rank of a job does; alone it does nothing.
#[test]
#[ignore = "needs MPI"]
fn needs_mpi_one_rank() {
    let Ok(case) = env::var(CASE) else { return };
    let launch = launched_by_mpi().expect("mpirun tells in the environment");
    let mut mpi = Mpi::start().unwrap();
    assert_eq!(launch.rank, mpi.rank());
    assert_eq!(launch.world, Some(mpi.world()));
    assert!(mpi.name().starts_with("mpi ("), "{}", mpi.name());
    match case.as_str() {
        "suite" => suite(&mut mpi),
        "unequal" => unequal(&mut mpi),
        "out_of_step" => out_of_step(&mut mpi),
        "hang" => late(&mut mpi, || thread::sleep(Duration::from_secs(100))),
        "stopped" => late(&mut mpi, || signal("STOP")),
        "death" => late(&mut mpi, || signal("KILL")),
        "panic" => late(&mut mpi, || panic!("the rank panics")),
        "abort" => abort(&mut mpi),
        "interrupt" => interrupt(&mut mpi),
        other => panic!("no case {other}"),
    }
}

fn suite(mpi: &mut Mpi) {
    ranks::check(mpi, ranks::Order::Any);
    println!("{} of {} passed", mpi.rank(), mpi.world());
}

fn mean(mpi: &mut Mpi, length: usize) -> Result<Vec<f32>, CollectiveError> {
    let pending = mpi.start_mean(vec![1.0; length], Wire::F32);
    pending.and_then(synfire::collective::Pending::wait)
}

fn unequal(mpi: &mut Mpi) {
    mean(mpi, 10).unwrap();
    let length = if mpi.rank() == Rank(1) { 20_000 } else { 10 };
    let error = mean(mpi, length).unwrap_err();
    assert!(matches!(error, CollectiveError::Unequal { .. }), "{error}");
    println!("refused on {}", mpi.rank());
    // So that each has said it before the job ends.
    thread::sleep(Duration::from_secs(2));
    mpi.abort(&error.to_string());
}

fn out_of_step(mpi: &mut Mpi) {
    let error = match mpi.rank() {
        Rank(0) => mean(mpi, 1).unwrap_err(),
        _ => mpi.gather(&[]).unwrap_err(),
    };
    if mpi.rank() == Rank(0) {
        mpi.abort(&error.to_string());
    }
    thread::sleep(Duration::from_secs(100));
}

/// Rank 1 does something else than to call.
fn late(mpi: &mut Mpi, other: impl FnOnce()) {
    mean(mpi, 10).unwrap();
    if mpi.rank() == Rank(1) {
        other();
        return;
    }
    mpi.set_deadline(Duration::from_secs(1));
    let error = mean(mpi, 100_000).unwrap_err();
    mpi.abort(&error.to_string());
}

fn signal(name: &str) {
    let kill = format!("kill -{name} {}", std::process::id());
    let status = Command::new("sh").args(["-c", &kill]).status();
    status.unwrap();
}

fn abort(mpi: &mut Mpi) {
    mean(mpi, 10).unwrap();
    if mpi.rank() == Rank(1) {
        mpi.abort("the disk is full");
    }
    mean(mpi, 10).unwrap_err();
}

fn interrupt(mpi: &mut Mpi) {
    if mpi.rank() == Rank(1) {
        thread::sleep(Duration::from_secs(100));
    }
    let interrupt = mpi.interrupt();
    let caller = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        interrupt.interrupt("rank 1 is cut off".into());
    });
    let error = mean(mpi, 10).unwrap_err();
    caller.join().unwrap();
    mpi.abort(&error.to_string());
}

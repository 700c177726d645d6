//! Random and hand-written histories of a run: workers and coordinators that die, hang, are stopped
//! and cut off, messages that are lost, doubled and late, a store that fails.
//!
//! Whatever happens, of two generations only one makes progress that counts, a finished run has
//! learnt from each sample of an epoch once, and a run with enough live workers finishes.
//!
//! `SYNFIRE_HISTORY=n cargo test --release -p synfire-coordinator --test histories` plays one of the
//! random ones and prints it; `SYNFIRE_HISTORIES=n` plays so many.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm,
    reason = "a test, all of it"
)]

mod sim;

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};

use sim::{Outcome, Script, play, random};

const HISTORIES: u64 = 10_000;

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number")),
    )
}

/// Plays all of these, on all cores; the first that fails is printed.
fn play_all(
    seeds: std::ops::Range<u64>,
    script_of: fn(u64) -> Script,
    holds: fn(&Outcome) -> bool,
) -> Outcome {
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let play_some = || {
        let mut sum = Outcome::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return sum;
            }
            let script = script_of(seed);
            match play(&script, false) {
                Ok(outcome) if holds(&outcome) => sum.add(&outcome),
                Ok(outcome) => panic!("history {seed}: {outcome:#?}\n{script}"),
                Err(fault) => panic!("history {seed}: {fault}\n{script}"),
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(play_some)).collect();
        let mut sum = Outcome::default();
        for thread in threads {
            let part = thread.join();
            sum.add(&part.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        sum
    })
}

#[test]
fn random_histories_keep_one_line_and_finish() {
    if let Some(seed) = from_environment("SYNFIRE_HISTORY") {
        let script = random::any(seed);
        println!("{script}");
        let outcome = play(&script, true).unwrap_or_else(|fault| panic!("{fault}"));
        println!("{outcome:?}");
        return;
    }
    let histories = from_environment("SYNFIRE_HISTORIES").unwrap_or(HISTORIES);
    let outcome = play_all(0..histories, random::any, |_| true);
    println!("{outcome:#?}");
    // That these happen at all is what makes the histories worth playing.
    for (what, times) in outcome.counts() {
        let at_least = histories / 1000;
        assert!(
            times >= at_least,
            "{what}: only {times} in {histories} histories"
        );
    }
}

#[test]
fn a_coordinator_that_restarts_stops_nobody() {
    let holds = |outcome: &Outcome| outcome.generations == 1;
    let outcome = play_all(0..HISTORIES / 10, random::coordinator_only, holds);
    assert!(
        outcome.coordinator_starts > 2 * HISTORIES / 10,
        "{outcome:#?}"
    );
}

#[test]
fn histories_in_plain_text_end_as_they_say() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut cases: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    cases.sort();
    assert!(cases.len() >= 10, "only {} cases", cases.len());
    let mut faults = Vec::new();
    for case in cases {
        let name = case.file_name().unwrap_or_default().display();
        let text = std::fs::read_to_string(&case).unwrap();
        let script: Script = text.parse().unwrap_or_else(|e| panic!("{name}: {e}"));
        let outcome = play(&script, false).unwrap_or_else(|fault| panic!("{name}: {fault}"));
        if let Err(fault) = script.holds(&outcome) {
            faults.push(format!("{name}: {fault}\n{outcome:#?}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_script_reads_back_equal() {
    for seed in 0..200 {
        let script = random::any(seed);
        assert_eq!(
            script.to_string().parse::<Script>().unwrap().to_string(),
            script.to_string()
        );
    }
}

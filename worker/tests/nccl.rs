//! Averages between GPUs, in 1 to 4 processes: what they compute, and how they fail.
//!
//! Each test starts this very binary once per rank; `needs_nccl_one_rank` is what a rank does. It wants
//! NVRTC and the stand-ins of `tests/cuda` and `tests/nccl` (or, for one rank, a real GPU with NCCL), where
//! the loader finds them. `tests/run` brings all that.

#![cfg(feature = "nccl")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "the ranks of the tests are not tests themselves"
)]
#![allow(
    unsafe_code,
    reason = "a launch that fails is one of a kernel with a promised argument"
)]

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use synfire::collective::{Collective, Nccl};

#[path = "nccl/job.rs"]
mod job;
#[path = "nccl/member.rs"]
mod member;
#[expect(
    dead_code,
    unreachable_pub,
    reason = "it is a module of another crate as well"
)]
#[path = "../../tests/support/ranks.rs"]
mod ranks;
#[path = "nccl/training.rs"]
mod training;

use job::{Ended, Seat, job};
use member::Member;

const LONG: Duration = Duration::from_mins(1);
const SHORT: Duration = Duration::from_secs(1);
/// The stand-in's own words; see tests/nccl/nccl.c.
const STAND_IN: &str = "SYNFIRE_STAND_IN_NCCL";

fn plainly(world: usize, case: &str) -> Vec<Ended> {
    job(world, case, |_| Vec::new())
}

/// A job in which this rank's NCCL is told something.
fn told(world: usize, case: &str, rank: usize, words: &str) -> Vec<Ended> {
    job(world, case, |other| {
        let words = (other == rank).then(|| (STAND_IN, words.to_owned()));
        words.into_iter().collect()
    })
}

/// That ranks ended well, and said this; none of those that are `lost`.
#[track_caller]
fn said(ended: &[Ended], lost: &[usize], words: &str) {
    for (rank, ended) in ended.iter().enumerate() {
        if lost.contains(&rank) {
            continue;
        }
        let text = &ended.text;
        assert!(ended.status.success(), "rank {rank}:\n{text}");
        assert!(
            text.contains(words),
            "rank {rank}: no {words:?} in:\n{text}"
        );
    }
}

#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_ranks_sum_on_their_gpus() {
    for world in 1..=4 {
        said(&plainly(world, "sums"), &[], "passed");
    }
}

/// What a machine with one GPU can show of NCCL itself.
#[test]
#[ignore = "needs a CUDA driver and NCCL, or the stand-ins of tests/cuda and tests/nccl"]
fn needs_nccl_a_rank_alone_needs_no_more_than_one_gpu() {
    for case in ["sums", "order", "training"] {
        said(&plainly(1, case), &[], "passed");
    }
}

#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_the_group_on_the_host_is_still_there() {
    for world in 1..=3 {
        said(&plainly(world, "host"), &[], "passed");
    }
}

#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_sums_come_after_what_computes_and_before_what_uses_them() {
    for world in 1..=4 {
        said(&plainly(world, "order"), &[], "passed");
    }
}

#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_training_is_that_through_the_host() {
    for world in 1..=4 {
        said(&plainly(world, "training"), &[], "passed");
    }
}

#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_a_rank_that_hangs_is_named_at_the_deadline() {
    for world in 2..=4 {
        let ended = plainly(world, "hang");
        said(&ended, &[1], "over: waited 1.0 s for rank 1\n");
    }
}

#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_a_rank_that_is_killed_is_named() {
    for world in 2..=3 {
        // NCCL reports it, or says nothing and the deadline is what notices.
        let ended = plainly(world, "death");
        said(&ended, &[1], "over: rank 1 is lost");
        assert!(!ended[1].status.success());
        let hang = |_| vec![(STAND_IN, "hang_lost".to_owned())];
        said(&job(world, "death", hang), &[1], "over: rank 1 is lost");
    }
}

#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_a_rank_that_is_killed_in_training_ends_it_for_the_others() {
    let ended = plainly(3, "lost training");
    said(&ended, &[1], "over: rank 1 is lost");
    said(&ended, &[1], "passed");
    assert!(!ended[1].status.success());
}

/// Its numbers are finite, so nothing but its word tells the others.
#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_a_rank_whose_gpu_fails_says_so_before_anything_of_the_batch_is_kept() {
    for (case, broken, first) in [
        ("broken training", &[1][..], 1),
        ("twice broken training", &[0, 1], 0),
    ] {
        let ended = plainly(3, case);
        let over = format!("over: rank {first} gave up: its device has failed");
        said(&ended, broken, &over);
        said(&ended, &[], "passed");
        // Each of them has a reason of its own, which is not told here.
        for rank in broken {
            let text = &ended[*rank].text;
            assert!(!text.contains("over: "), "rank {rank}:\n{text}");
        }
    }
}

/// A rank that is killed on the same machine often shows as an error that could be the rank's own.
#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_an_unclear_error_is_another_ranks_only_where_one_is_gone() {
    for result in [2, 3] {
        let lost = |_| vec![(STAND_IN, format!("lost_as={result}"))];
        said(&job(3, "death", lost), &[1], "over: rank 1 is lost");
        let words = format!("error_after=2,error_as={result}");
        let ended = told(2, "error", 1, &words);
        let own = if result == 2 {
            "system error"
        } else {
            "internal error"
        };
        said(&ended[1..], &[], "over: averaging between GPUs failed: ");
        said(&ended[1..], &[], own);
        said(&ended[..1], &[], "over: rank 1 gave up: averaging");
    }
}

/// One rank hears at once that a connection is lost, the others hear nothing until their deadline.
#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_ranks_that_notice_later_are_not_missing() {
    let ended = job(3, "later", |rank| {
        let words = if rank == 1 {
            "error_after=1,error_as=6"
        } else {
            "hang_lost"
        };
        vec![(STAND_IN, words.to_owned())]
    });
    said(&ended[1..2], &[], "over: averaging between GPUs failed: ");
    said(&ended[1..2], &[], "set NCCL_DEBUG=WARN for the reason");
    said(&ended, &[1], "over: waited 3.0 s for the other ranks\n");
}

#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_an_error_of_a_gpu_ends_the_group_and_names_its_rank() {
    for world in 2..=3 {
        let ended = told(world, "error", 1, "error_after=2");
        said(&ended[1..2], &[], "over: averaging between GPUs failed: ");
        said(&ended[1..2], &[], "unhandled cuda error");
        said(
            &ended,
            &[1],
            "over: rank 1 gave up: averaging between GPUs failed",
        );
    }
}

#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_an_interrupt_ends_a_wait_for_the_gpu_at_once() {
    let ended = plainly(2, "interrupt");
    said(&ended, &[1], "over: interrupted: the generation is over");
}

#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_a_rank_that_gives_up_says_why() {
    for world in 2..=3 {
        let ended = plainly(world, "abort");
        said(&ended, &[1], "over: rank 1 gave up: the disk is full");
    }
}

#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_unequal_lengths_end_the_group() {
    for world in 2..=3 {
        let words = "over: averaging between GPUs failed";
        for ended in plainly(world, "unequal") {
            // Whoever asks second hears it from the first.
            let text = &ended.text;
            assert!(ended.status.success(), "{text}");
            assert!(text.contains(words) || text.contains("gave up"), "{text}");
        }
    }
}

#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_a_rank_that_does_not_come_to_the_opening_is_named() {
    let ended = plainly(3, "absent");
    said(&ended, &[1], "refused: waited 1.0 s for rank 1\n");
    // It comes, says that all is well, and NCCL never connects it.
    let ended = told(2, "opening", 1, "hang_init");
    said(&ended, &[], "refused: waited 1.0 s for the other ranks");
    // It is stopped in the middle.
    let ended = told(2, "stopped", 1, "hang_init");
    said(&ended, &[1], "refused: waited");
    said(&ended, &[1], "s for rank 1\n");
}

/// As in containers of one machine that are given one GPU each.
#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_gpus_of_the_same_number_may_be_two() {
    let seen = |rank: usize| vec![("SYNFIRE_STAND_IN_FIRST", rank.to_string())];
    said(&job(2, "containers", seen), &[], "joined");
}

#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_a_group_that_cannot_be_is_refused_on_every_rank() {
    let words = "refused: no group of ranks: rank 0 and rank 1 have the same GPU, number 0";
    said(&plainly(2, "same_gpu"), &[], words);
    // To the one it is number 1, to the other number 0.
    let seen = |rank: usize| vec![("SYNFIRE_STAND_IN_FIRST", rank.to_string())];
    let words =
        "rank 0 and rank 1 have the same GPU, number 1 to the one and 0 to the other (GPU-0";
    said(&job(2, "turned", seen), &[], words);
    let one = |_| vec![("SYNFIRE_STAND_IN_DEVICES", "1".to_owned())];
    let words = "rank 1 cannot average on its GPU: there is no GPU 1: 1 found";
    said(&job(2, "opening", one), &[], words);
    let words = "rank 1 has NCCL 2.27.0 and rank 0 has 2.28.9";
    said(&told(2, "opening", 1, "version=22700"), &[], words);
    let words = "is NCCL 2.17.1, and 2.18.0 is the oldest that will do";
    said(&told(2, "opening", 1, "version=21701"), &[], words);
}

/// A library with these functions, made in a folder of its own.
fn library(name: &str, code: &str) -> std::path::PathBuf {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let source = folder.join("nccl.c");
    std::fs::write(&source, code).unwrap();
    let library = folder.join("libnccl.so.2");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wl,-soname,libnccl.so.2", "-o"])
        .args([&library, &source])
        .status();
    assert!(status.unwrap().success());
    folder
}

#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_a_library_that_lacks_a_function_is_named_with_it() {
    let folder = library(
        "nccl_without_init",
        "int ncclGetVersion(int *v) { *v = 22809; return 0; }
        int ncclGetUniqueId(void *id) { (void)id; return 0; }",
    );
    let shown = folder.display().to_string();
    let ended = job(2, "opening", |rank| {
        let libraries = ("SYNFIRE_LIBRARIES", shown.clone());
        (rank == 1).then_some(libraries).into_iter().collect()
    });
    said(&ended, &[], "rank 1 cannot average on its GPU");
    said(
        &ended,
        &[],
        &format!("{shown}/libnccl.so.2 has no function ncclCommInitRankConfig"),
    );
    said(&ended, &[], "pip install nvidia-nccl-cu13");
}

#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_a_missing_library_is_an_error_that_says_where_it_was_looked_for() {
    // The driver and NVRTC are found, NCCL is not.
    let found = std::env::var("LD_LIBRARY_PATH").unwrap();
    let without = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("without_nccl");
    std::fs::create_dir_all(&without).unwrap();
    for folder in std::env::split_paths(&found) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.contains(".so") && !name.contains("nccl") {
                let _ = std::os::unix::fs::symlink(entry.path(), without.join(&name));
            }
        }
    }
    let shown = without.display().to_string();
    let ended = job(2, "opening", |rank| {
        let path = ("LD_LIBRARY_PATH", shown.clone());
        (rank == 1).then_some(path).into_iter().collect()
    });
    said(
        &ended,
        &[],
        "rank 1 cannot average on its GPU: libnccl.so.2",
    );
    said(&ended, &[], &shown);
}

// ------------------------------------------------------------------------------------ a rank

/// What one rank of a job does; alone it does nothing.
#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_one_rank() {
    let Some((case, seat)) = job::seat() else {
        return;
    };
    match case.as_str() {
        "opening" | "stopped" => return opening(&seat, &case),
        "absent" => return absent(&seat),
        "same_gpu" => return refused(Box::new(seat.tcp()), 0),
        "turned" => return refused(Box::new(seat.tcp()), u32::from(seat.rank == 0)),
        "containers" => {
            let mut group: Box<dyn Collective> = Box::new(seat.tcp());
            Nccl::join(&mut group, 0, LONG).unwrap();
            // The other one has joined as well before this one goes.
            group.gather(&[]).unwrap();
            return println!("joined");
        }
        "training" => return training::compare(&seat),
        "lost training" => return training::in_trouble(&seat, training::Trouble::Killed),
        "broken training" => return training::in_trouble(&seat, training::Trouble::Broken(&[1])),
        "twice broken training" => {
            return training::in_trouble(&seat, training::Trouble::Broken(&[0, 1]));
        }
        _ => {}
    }
    let mut rank = Member::new(&seat);
    match case.as_str() {
        "sums" => rank.sums(),
        "host" => ranks::check(&mut *rank.group, ranks::Order::Rank),
        "order" => rank.order(),
        "hang" => rank.without_rank_1(|_| thread::sleep(Duration::from_secs(7))),
        "death" => rank.without_rank_1(|_| signal("KILL")),
        "error" => rank.until_the_end(),
        "later" => rank.late(),
        "interrupt" => rank.interrupted(),
        "abort" => rank.without_rank_1(|rank| rank.group.abort("the disk is full")),
        "unequal" => rank.unequal(),
        other => panic!("no case {other}"),
    }
    println!("passed");
}

fn signal(name: &str) {
    let kill = format!("kill -{name} {}", std::process::id());
    Command::new("sh").args(["-c", &kill]).status().unwrap();
}

/// A group that is refused.
fn refused(mut group: Box<dyn Collective>, gpu: u32) {
    let began = Instant::now();
    let error = Nccl::join(&mut group, gpu, SHORT).unwrap_err();
    println!("refused: {error}");
    assert_eq!(group.name(), "tcp");
    assert!(began.elapsed() < Duration::from_secs(30));
    // What was said has to come over before this ends.
    thread::sleep(Duration::from_millis(200));
}

fn opening(seat: &Seat, case: &str) {
    let group = Box::new(seat.tcp());
    if case == "stopped" && seat.rank == 1 {
        // The others never see its second gather.
        let stop = || {
            thread::sleep(Duration::from_millis(700));
            signal("KILL");
        };
        // Its connections stay open until it is killed, long after the others' deadline.
        thread::spawn(move || {
            thread::sleep(Duration::from_secs(14));
            stop();
        });
        let mut group: Box<dyn Collective> = group;
        let _ = Nccl::join(&mut group, 1, LONG);
        return;
    }
    refused(group, u32::try_from(seat.rank).unwrap());
}

fn absent(seat: &Seat) {
    let group = Box::new(seat.tcp());
    if seat.rank == 1 {
        thread::sleep(Duration::from_secs(4));
        return;
    }
    refused(group, u32::try_from(seat.rank).unwrap());
}

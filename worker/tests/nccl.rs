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

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use synfire::collective::device::Piece;
use synfire::collective::{Collective, CollectiveError, Nccl, Wire, bf16};
use synfire::kernel::cuda::device::{Device, Memory};

#[path = "nccl/gpu.rs"]
mod gpu;
#[path = "nccl/job.rs"]
mod job;
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

#[test]
#[ignore = "needs NVRTC and the stand-ins of tests/cuda and tests/nccl: tests/run brings them"]
fn needs_nccl_a_group_that_cannot_be_is_refused_on_every_rank() {
    let words = "refused: no group of ranks: rank 0 and rank 1 have the same GPU, number 0";
    said(&plainly(2, "same_gpu"), &[], words);
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
        "training" => return training::compare(&seat),
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

struct Member {
    group: Box<dyn Collective>,
    device: Device,
    rank: usize,
    world: usize,
}

impl Member {
    fn new(seat: &Seat) -> Self {
        let gpu = u32::try_from(seat.rank).unwrap();
        let device = Device::open(gpu).unwrap();
        let mut group: Box<dyn Collective> = Box::new(seat.tcp());
        Nccl::join(&mut group, gpu, LONG).unwrap();
        assert!(group.name().starts_with("nccl 2."), "{}", group.name());
        assert!(group.name().ends_with(" beside tcp"), "{}", group.name());
        Self {
            group,
            device,
            rank: seat.rank,
            world: seat.world,
        }
    }

    fn memory(&self, values: &[f32]) -> Memory {
        let memory = self.device.allocate(4 * values.len() as u64).unwrap();
        self.device.write_values(memory.pointer(), values);
        memory
    }

    fn start(&mut self, pieces: &[Piece]) -> Result<(), CollectiveError> {
        let stream = self.device.stream();
        let device = self.group.on_device().unwrap();
        let started = device.start(stream, pieces)?;
        device.join(stream, started)
    }

    fn check(&mut self) -> Result<(), CollectiveError> {
        self.device.wait();
        self.group.on_device().unwrap().check()
    }

    /// A sum of ones.
    fn ones(&mut self, length: usize) -> Result<(), CollectiveError> {
        let memory = self.memory(&vec![1.0; length]);
        self.start(&[piece(&memory, length, 1.0)])?;
        self.check()?;
        let mut found = vec![0.0; length];
        self.device.read_values(memory.pointer(), &mut found);
        assert_eq!(found, vec![self.world as f32; length]);
        Ok(())
    }

    fn sums(&mut self) {
        for (salt, length) in (0..).zip([1, 2, 5, 1000, 4097, 65_537, 200_001, ranks::LARGE]) {
            self.sum_f32(length, salt, false);
            self.sum_f32(length, salt, true);
            self.sum_bf16(length.min(200_001), salt);
        }
        self.ones(3).unwrap();
    }

    /// Of all ranks' numbers by equal shares, or by shares of 1, 2, 3 ...
    fn sum_f32(&mut self, length: usize, salt: u32, by_rank: bool) {
        let (rank, world) = (self.rank, self.world);
        let whole = (world * (world + 1) / 2) as f32;
        let factor = |rank: usize| {
            if by_rank {
                (rank + 1) as f32 / whole
            } else {
                1.0 / world as f32
            }
        };
        let memory = self.memory(&ranks::numbers(rank, length, salt));
        self.start(&[piece(&memory, length, factor(rank))]).unwrap();
        let mut found = vec![0.0; length];
        self.device.read_values(memory.pointer(), &mut found);
        self.check().unwrap();
        let all: Vec<Vec<f32>> = (0..world)
            .map(|r| ranks::numbers(r, length, salt))
            .collect();
        for (i, found) in found.iter().enumerate() {
            let expected: f64 = (0..world)
                .map(|r| f64::from(all[r][i]) * f64::from(factor(r)))
                .sum();
            // Up to four products below 4 in f32.
            assert!(
                (f64::from(*found) - expected).abs() < 2e-6,
                "{i}: {found} {expected}"
            );
        }
        self.agree(&found);
    }

    fn sum_bf16(&mut self, length: usize, salt: u32) {
        let (rank, world) = (self.rank, self.world);
        let given = |rank| -> Vec<u16> {
            let numbers = ranks::numbers(rank, length, salt);
            numbers.into_iter().map(bf16::to_bf16).collect()
        };
        let memory = self.device.allocate(2 * length as u64).unwrap();
        self.device.write_values(memory.pointer(), &given(rank));
        let wire = Wire::Bf16;
        self.start(&[Piece {
            wire,
            ..piece(&memory, length, 1.0)
        }])
        .unwrap();
        let mut found = vec![0_u16; length];
        self.device.read_values(memory.pointer(), &mut found);
        self.check().unwrap();
        let all: Vec<Vec<u16>> = (0..world).map(given).collect();
        for (i, found) in found.iter().enumerate() {
            let terms = all
                .iter()
                .map(|numbers| f64::from(bf16::from_bf16(numbers[i])));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
            // Rounded to 8 bits at each of at most 3 additions.
            let error = (f64::from(bf16::from_bf16(*found)) - sum).abs();
            assert!(error <= 3.0 / 256.0 * size, "{i}: {error} of {size}");
        }
    }

    /// That all ranks have the same bits.
    fn agree(&mut self, values: &[f32]) {
        let bytes: Vec<u8> = values
            .iter()
            .take(10_000)
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let all = self.group.gather(&bytes).unwrap();
        assert!(all.iter().all(|other| *other == bytes));
    }

    /// Buckets start as they are computed and are used in that order, while ranks are early and late:
    /// what is summed is what was computed before, and what is used is the sum.
    fn order(&mut self) {
        const LENGTH: usize = 300_000;
        const BUCKETS: usize = 6;
        let bytes = 4 * LENGTH as u64;
        for round in 0..4_usize {
            let value = |rank: usize, bucket: usize| (100 * round + 10 * bucket + rank) as f32;
            let sources: Vec<Memory> = (0..BUCKETS)
                .map(|bucket| self.memory(&vec![value(self.rank, bucket); LENGTH]))
                .collect();
            let zeros = self.memory(&vec![0.0; LENGTH]);
            let buckets: Vec<Memory> = (0..BUCKETS)
                .map(|_| self.memory(&vec![0.0; LENGTH]))
                .collect();
            let used: Vec<Memory> = (0..BUCKETS)
                .map(|_| self.memory(&vec![0.0; LENGTH]))
                .collect();
            self.device.wait();
            if (round + self.rank).is_multiple_of(2) {
                thread::sleep(Duration::from_millis(30));
            }
            let stream = self.device.stream();
            let mut under_way = Vec::new();
            for (source, bucket) in sources.iter().zip(&buckets) {
                // The stream is busy when the sum is called for.
                for _ in 0..20 {
                    self.device.copy(zeros.pointer(), bucket.pointer(), bytes);
                }
                self.device.copy(source.pointer(), bucket.pointer(), bytes);
                let device = self.group.on_device().unwrap();
                under_way.push(device.start(stream, &[piece(bucket, LENGTH, 1.0)]).unwrap());
            }
            for (index, started) in under_way.into_iter().enumerate() {
                self.group
                    .on_device()
                    .unwrap()
                    .join(stream, started)
                    .unwrap();
                self.device
                    .copy(buckets[index].pointer(), used[index].pointer(), bytes);
                // The next round's gradients may overwrite it now.
                self.device
                    .copy(zeros.pointer(), buckets[index].pointer(), bytes);
            }
            for (index, used) in used.iter().enumerate() {
                let expected: f32 = (0..self.world).map(|rank| value(rank, index)).sum();
                let mut found = vec![0.0; LENGTH];
                self.device.read_values(used.pointer(), &mut found);
                assert_eq!(
                    found,
                    vec![expected; LENGTH],
                    "bucket {index} of round {round}"
                );
            }
            self.check().unwrap();
        }
    }

    /// All have come so far: what one of them says from here on harms no sum before.
    fn meet(&mut self) {
        self.group.gather(&[]).unwrap();
    }

    /// Rank 1 does something else than to call.
    fn without_rank_1(mut self, other: impl FnOnce(&mut Self)) {
        self.ones(10).unwrap();
        self.meet();
        self.group.set_deadline(SHORT);
        if self.rank == 1 {
            other(&mut self);
            return;
        }
        self.until_the_end_of(1000);
    }

    fn until_the_end(mut self) {
        self.ones(5).unwrap();
        self.ones(5).unwrap();
        self.meet();
        self.group.set_deadline(Duration::from_secs(20));
        self.until_the_end_of(7);
    }

    /// A sum that fails, with others behind it; then the group is over and says so again.
    fn until_the_end_of(mut self, length: usize) {
        let began = Instant::now();
        let memory = self.memory(&vec![1.0; length]);
        let started = (0..3).try_for_each(|_| self.start(&[piece(&memory, length, 1.0)]));
        let error = started.and_then(|()| self.check()).unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(15));
        println!("over: {error}");
        assert_eq!(self.check().unwrap_err().to_string(), error.to_string());
        let again = self.start(&[piece(&memory, length, 1.0)]).unwrap_err();
        assert_eq!(again.to_string(), error.to_string());
        let bytes = self.group.gather(&[]).unwrap_err();
        assert_eq!(bytes.to_string(), error.to_string());
        if matches!(error, CollectiveError::Device { .. }) {
            self.group.abort(&error.to_string());
        }
        // The GPU goes on.
        self.device.wait();
        assert!(self.device.fault().is_none());
        // What was told has to come over before this ends.
        thread::sleep(Duration::from_millis(500));
    }

    fn interrupted(mut self) {
        self.ones(5).unwrap();
        if self.rank == 1 {
            thread::sleep(Duration::from_secs(5));
            return;
        }
        let interrupt = self.group.interrupt();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            interrupt.interrupt("the generation is over".into());
        });
        let began = Instant::now();
        let memory = self.memory(&[1.0; 5]);
        self.start(&[piece(&memory, 5, 1.0)]).unwrap();
        let error = self.check().unwrap_err();
        println!("over: {error}");
        assert!(began.elapsed() < Duration::from_secs(3));
    }

    fn unequal(mut self) {
        self.ones(5).unwrap();
        self.meet();
        self.group.set_deadline(Duration::from_secs(5));
        let length = if self.rank == 1 { 8 } else { 5 };
        self.until_the_end_of(length);
    }
}

fn piece(memory: &Memory, length: usize, factor: f32) -> Piece {
    Piece {
        address: memory.pointer().0,
        length,
        wire: Wire::F32,
        factor,
    }
}

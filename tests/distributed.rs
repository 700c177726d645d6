//! Several ranks are one: the same samples, the same updates, the same results.
//!
//! Ranks are threads of this process here; that other groups compute the same is the claim of
//! `collectives.rs`.

#![allow(
    clippy::unwrap_used,
    reason = "a helper that fails fails the test that called it"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;

use sha2::{Digest, Sha256};
use synfire::collective::threads;
use synfire::data::{Place, Source};
use synfire::kernel::Arena;
use synfire::train::{self, Event, Options, Trained};
use synfire_shared::Run;
use synfire_shared::ids::{Epoch, Rank, World};
use synfire_shared::run::QUICKSTART;

/// A small run on pictures that are built in.
fn run(set: &[&str]) -> Run {
    let common = ["run.threads=1", "model.width=0.25", "ranks.bucket_mib=0.01"];
    let set: Vec<String> = common.iter().chain(set).map(ToString::to_string).collect();
    Run::from_toml(QUICKSTART, "quickstart", &set).unwrap()
}

/// Trains with so many ranks; what each has in the end, by rank.
fn ranks(run: &Run, world: usize) -> Vec<Trained> {
    let group = threads::group(world);
    let ranks: Vec<_> = group
        .into_iter()
        .map(|rank| {
            let run = run.clone();
            thread::spawn(move || {
                let options = Options::default();
                train::train_in(&run, &options, Box::new(rank), &mut |event| {
                    if let Event::Warning(warning) = event {
                        panic!("{warning}");
                    }
                })
                .unwrap()
            })
        })
        .collect();
    ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
}

/// All that a checkpoint would have of the network.
fn numbers(trained: &mut Trained) -> BTreeMap<&'static str, Vec<f32>> {
    let node = &mut trained.node;
    let layout = &node.learner.network.plan().layout;
    [
        ("weights", Arena::Weights, layout.len()),
        ("state", Arena::State, layout.len()),
        ("statistics", Arena::Statistics, layout.statistics_len()),
    ]
    .into_iter()
    .map(|(name, arena, len)| {
        let mut numbers = vec![0.0; len];
        node.kernels.read_arena(arena, 0, &mut numbers);
        (name, numbers)
    })
    .collect()
}

fn bits(numbers: &BTreeMap<&'static str, Vec<f32>>) -> Vec<u32> {
    let all = numbers.values().flatten();
    all.map(|number| number.to_bits()).collect()
}

/// The largest difference, by the largest number.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let largest = a.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let pairs = a.iter().zip(b);
    let distance = pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    // Nothing at all is near nothing.
    distance / largest.max(f32::MIN_POSITIVE)
}

/// That these are the same numbers within a tolerance.
fn assert_near(
    want: &BTreeMap<&'static str, Vec<f32>>,
    got: &BTreeMap<&'static str, Vec<f32>>,
    tolerance: f32,
    who: &str,
) {
    for (name, want) in want {
        let distance = distance(want, &got[name]);
        assert!(distance <= tolerance, "{who}: {name} by {distance}");
    }
}

/// Trains alone and with several ranks, and compares weights, velocities and running statistics.
fn compare(set: &[&str], worlds: &[usize], tolerance: f32) {
    let run = run(set);
    let mut alone = ranks(&run, 1).remove(0);
    let want = numbers(&mut alone);
    for &world in worlds {
        let mut all = ranks(&run, world);
        let got = numbers(&mut all[0]);
        assert_near(&want, &got, tolerance, &format!("{world} ranks"));
        for (rank, other) in all.iter_mut().enumerate() {
            // Each has it to the bit, and everybody has counted everything.
            assert!(
                bits(&numbers(other)) == bits(&got),
                "rank {rank} of {world}"
            );
            let (alone, other) = (&alone.epochs[0], &other.epochs[0]);
            assert_eq!(other.train.samples, alone.train.samples);
            assert_eq!(other.train.neurons, alone.train.neurons);
            let losses = (other.train.mean_loss(), alone.train.mean_loss());
            assert!((losses.0 - losses.1).abs() < 1e-4, "{losses:?}");
            let test = |record: &train::EpochRecord| record.test.clone().unwrap();
            let (theirs, mine) = (test(other), test(alone));
            assert_eq!(theirs.samples, mine.samples, "every test sample once");
            // The mean over samples, though ranks cut the set into other batches.
            let losses = (theirs.mean_loss(), mine.mean_loss());
            assert!((losses.0 - losses.1).abs() < 1e-3 * losses.1, "{losses:?}");
        }
    }
}

#[test]
fn ranks_without_batch_norm_learn_what_one_rank_does() {
    let set = [
        "data.batch=24",
        "run.max_batches=1",
        "model.name=ms_resnet18",
        "model.norm=none",
        "model.width=0.125",
        "optimiser.lr=0.01",
    ];
    compare(&set, &[2, 3, 5], 1e-5);
}

#[test]
fn ranks_with_synchronised_batch_norm_learn_what_one_rank_does() {
    let set = [
        "data.batch=24",
        "run.max_batches=1",
        "batch_norm.sync=true",
        "optimiser.lr=0.01",
    ];
    compare(&set, &[2, 3, 5], 1e-4);
}

#[test]
fn gradients_as_bf16_are_near() {
    let set = |wire| {
        [
            "data.batch=24",
            "run.max_batches=1",
            "model.name=ms_resnet18",
            "model.norm=none",
            "model.width=0.125",
            "optimiser.lr=0.01",
            wire,
        ]
    };
    let weights = |wire, world| numbers(&mut ranks(&run(&set(wire)), world)[0])["state"].clone();
    let (f32, bf16) = (weights("ranks.wire=f32", 2), weights("ranks.wire=bf16", 2));
    let distance = distance(&f32, &bf16);
    assert!(distance > 0.0 && distance < 0.01, "{distance}");
}

#[test]
fn the_same_seed_and_world_give_the_same_bits() {
    for world in [2, 3] {
        let run = run(&["data.batch=24", "run.max_batches=3"]);
        let results = [0, 1].map(|_| bits(&numbers(&mut ranks(&run, world)[0])));
        assert!(results[0] == results[1], "{world} ranks");
    }
}

#[test]
fn overlap_and_buckets_change_no_bit() {
    let weights = |set: &[&str]| {
        let all: Vec<&str> = ["data.batch=24", "run.max_batches=2"]
            .iter()
            .chain(set)
            .copied()
            .collect();
        bits(&numbers(&mut ranks(&run(&all), 2)[0]))
    };
    let one = weights(&[]);
    assert!(one == weights(&["ranks.overlap=false"]));
    assert!(one == weights(&["ranks.bucket_mib=0"]));
    assert!(one == weights(&["ranks.bucket_mib=64"]));
}

#[test]
fn running_statistics_are_the_same_on_all_ranks_with_local_batch_norm() {
    let run = run(&["data.batch=24", "run.max_batches=2"]);
    for world in [2, 5] {
        let mut all = ranks(&run, world);
        let first = bits(&numbers(&mut all[0]));
        for other in &mut all[1..] {
            assert!(bits(&numbers(other)) == first);
        }
    }
}

#[test]
fn bptt_too_is_the_same_on_several_ranks() {
    let set = [
        "data.batch=24",
        "run.max_batches=1",
        "model.name=ms_resnet18",
        "model.norm=none",
        "model.width=0.125",
        "algorithm.name=bptt",
        "algorithm.window=",
        "optimiser.lr=0.01",
    ];
    compare(&set, &[2, 3], 1e-5);
}

#[test]
fn bptt_with_synchronised_batch_norm_is_the_same_on_several_ranks() {
    let set = [
        "data.batch=24",
        "run.max_batches=1",
        "batch_norm.sync=true",
        "algorithm.name=bptt",
        "algorithm.window=",
        "optimiser.lr=0.01",
    ];
    compare(&set, &[2, 3, 5], 1e-4);
}

/// A folder of this machine that goes when the test passes.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if !thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// Trains some batches with two ranks, goes on with other numbers of ranks, and compares with one rank
/// throughout.
fn resume_at_another_world(name: &str, set: &[&str], tolerance: f32) {
    let of = |batches: u64, folder: Option<&str>| {
        let batches = format!("run.max_batches={batches}");
        let folder = folder.map(|folder| format!("run.folder={folder}"));
        let more = std::iter::once(batches.as_str()).chain(folder.as_deref());
        run(&set.iter().copied().chain(more).collect::<Vec<_>>())
    };
    let mut alone = ranks(&of(3, None), 1).remove(0);
    let want = numbers(&mut alone);
    for world in 1..=3 {
        let folder = format!("synfire-resume-{name}-{world}-{}", std::process::id());
        let scratch = Scratch(std::env::temp_dir().join(folder));
        let folder = scratch.0.display().to_string();
        let begun = ranks(&of(2, Some(&folder)), 2);
        assert_eq!(begun[0].kept.as_ref().map(|kept| kept.failures), Some(0));
        drop(begun);
        let mut all = ranks(&of(3, Some(&folder)), world);
        let got = numbers(&mut all[0]);
        assert_near(&want, &got, tolerance, &format!("2 ranks, then {world}"));
        for other in &mut all[1..] {
            assert!(bits(&numbers(other)) == bits(&got), "{world} ranks");
        }
        // What was counted before is counted once.
        let (resumed, alone) = (&all[0].epochs[0], &alone.epochs[0]);
        assert_eq!(resumed.train.samples, alone.train.samples);
        assert_eq!(resumed.train.neurons, alone.train.neurons);
    }
}

#[test]
fn a_run_that_is_resumed_at_another_world_size_learns_what_one_rank_does() {
    let plain = [
        "data.batch=24",
        "model.name=ms_resnet18",
        "model.norm=none",
        "model.width=0.125",
        "optimiser.lr=0.01",
    ];
    resume_at_another_world("plain", &plain, 1e-5);
    let synchronised = ["data.batch=24", "batch_norm.sync=true", "optimiser.lr=0.01"];
    resume_at_another_world("sync", &synchronised, 1e-4);
}

/// The digest of the numbers of all samples of an epoch, batch by batch: of so many ranks up to
/// each place, from the first place on.
fn digest(run: &Run, mut first: usize, worlds: &[(u32, Option<usize>)]) -> String {
    let mut digest = Sha256::new();
    for &(world, last) in worlds {
        let sources: Vec<Source> = (0..world)
            .map(|rank| {
                let source = Source::open(&run.data, run.seed).unwrap();
                source.of_rank(Rank(rank), World(world)).unwrap()
            })
            .collect();
        let place = Place {
            epoch: Epoch(1),
            batch_index: first,
        };
        let mut parts: Vec<_> = sources.iter().map(|s| s.train(place, Epoch(2))).collect();
        let last = last.unwrap_or(sources[0].train_batches());
        for _ in first..last {
            for part in &mut parts {
                for sample in &part.next_batch().unwrap().unwrap().samples {
                    digest.update(sample.to_le_bytes());
                }
            }
        }
        first = last;
    }
    format!("{:?}", digest.finalize())
}

#[test]
fn the_sequence_of_samples_is_that_of_one_rank_at_any_world_and_after_a_resume() {
    let run = run(&["data.batch=48"]);
    for first in [0, 17] {
        let want = digest(&run, first, &[(1, None)]);
        for world in 2..=4 {
            assert_eq!(digest(&run, first, &[(world, None)]), want, "{world} ranks");
            // Stopped after some batches, and resumed by another number of ranks.
            for other in 1..=3 {
                let worlds = [(world, Some(23)), (other, None)];
                assert_eq!(digest(&run, first, &worlds), want, "{worlds:?}");
            }
        }
    }
    assert_ne!(digest(&run, 0, &[(2, None)]), digest(&run, 1, &[(2, None)]));
}

#[test]
fn ranks_that_would_not_do_the_same_are_refused_and_told_why() {
    let runs = [
        run(&["data.batch=24"]),
        run(&["data.batch=24", "optimiser.lr=0.2"]),
    ];
    let ranks: Vec<_> = threads::group(2)
        .into_iter()
        .zip(runs)
        .map(|(rank, run)| {
            thread::spawn(move || {
                let result =
                    train::train_in(&run, &Options::default(), Box::new(rank), &mut |_| ());
                result.unwrap_err().to_string()
            })
        })
        .collect();
    for rank in ranks {
        let error = rank.join().unwrap();
        assert!(
            error.contains("rank 1 has 0.2 where rank 0 has 0.1"),
            "{error}"
        );
    }
}

#[test]
fn a_rank_that_fails_is_named_by_the_others() {
    // Numbers stop being finite on all ranks at once; a rank that cannot read its data fails alone.
    let runs = [
        run(&["data.batch=24"]),
        run(&["data.source=cifar10", "data.path=/nowhere", "data.batch=24"]),
    ];
    let ranks: Vec<_> = threads::group(2)
        .into_iter()
        .zip(runs)
        .map(|(rank, run)| {
            thread::spawn(move || {
                let result =
                    train::train_in(&run, &Options::default(), Box::new(rank), &mut |_| ());
                result.unwrap_err().to_string()
            })
        })
        .collect();
    let errors: Vec<String> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
    assert!(
        errors[0].contains("rank 1 gave up: ") && errors[0].contains("/nowhere"),
        "{}",
        errors[0]
    );
    assert!(
        errors[1].contains("/nowhere is missing") || errors[1].contains("missing"),
        "{}",
        errors[1]
    );
}

#[test]
fn a_rank_that_is_lost_ends_the_others_wherever_they_are() {
    // Many buckets: the loss is found in the middle of a backward.
    let run = run(&[
        "data.batch=24",
        "run.max_batches=64",
        "ranks.bucket_mib=0.0005",
    ]);
    let ranks: Vec<_> = threads::group(2)
        .into_iter()
        .enumerate()
        .map(|(number, rank)| {
            let run = run.clone();
            thread::spawn(move || {
                let mut tell = |event| {
                    let is_under_way = matches!(event, Event::Progress(_));
                    assert!(number == 0 || !is_under_way, "this rank dies here");
                };
                let options = Options::default();
                let result = train::train_in(&run, &options, Box::new(rank), &mut tell);
                result.map(|_| ()).unwrap_err().to_string()
            })
        })
        .collect();
    let mut ends = ranks.into_iter().map(thread::JoinHandle::join);
    let first = ends.next().unwrap().unwrap();
    assert!(first.contains("rank 1 is lost"), "{first}");
    assert!(ends.next().unwrap().is_err(), "it died");
}

#[test]
fn too_many_ranks_are_refused_naming_batches_that_fit() {
    let run = run(&["data.batch=29"]);
    let mut ranks = threads::group(32);
    let last = ranks.pop().unwrap();
    let error = train::train_in(&run, &Options::default(), Box::new(last), &mut |_| ());
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("at most 29 ranks, or a batch of 32"),
        "{error}"
    );
}

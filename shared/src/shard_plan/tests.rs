use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;
use crate::dataset::hex;

const BLOCKS: Shuffle = Shuffle::Blocks {
    block: 5,
    window: 17,
};

fn plan(shuffle: Shuffle, shard_lens: &[u64], batch: u32) -> ShardPlan {
    ShardPlan::new(7, [9; 32], shuffle, shard_lens.iter().copied(), batch).unwrap()
}

/// The samples of all batches of an epoch, one after another.
fn sequence(plan: &ShardPlan, epoch: Epoch) -> Vec<u32> {
    let order = plan.order(epoch);
    let batches = (0..plan.num_batches()).flat_map(|batch_index| order.batch(batch_index));
    batches.collect()
}

/// The same, put together from the shares of `world` ranks that start at batch `first`.
fn from_shares(plan: &ShardPlan, epoch: Epoch, world: u32, first: u32) -> Vec<u32> {
    let shares: Vec<Share> = (0..world)
        .map(|rank| plan.share(Rank(rank), World(world)).unwrap())
        .collect();
    let mut sequence = Vec::new();
    for batch_index in first..plan.num_batches() {
        let mut batch = vec![None; plan.batch() as usize];
        for share in &shares {
            // Each rank draws the order anew, as after a start.
            let order = plan.order(epoch);
            let samples = order.share(batch_index, share);
            assert_eq!(share.places().len(), share.num_samples() as usize);
            for (place, sample) in share.places().zip(samples) {
                assert_eq!(batch[place as usize].replace(sample), None, "taken twice");
            }
        }
        sequence.extend(batch.into_iter().map(|sample| sample.expect("taken once")));
    }
    sequence
}

fn digest(samples: &[u32]) -> String {
    let bytes: Vec<u8> = samples.iter().flat_map(|s| s.to_le_bytes()).collect();
    hex(&Sha256::digest(bytes))
}

#[test]
fn lanes_are_the_largest_divisor_up_to_64() {
    for (batch, lanes) in [(1, 1), (64, 64), (128, 64), (256, 64), (96, 48), (50, 50)] {
        assert_eq!(num_lanes(batch), lanes, "of {batch}");
    }
    assert_eq!(num_lanes(67), 1, "a prime above 64");
    assert_eq!(num_lanes(u32::MAX), 51, "3 * 17");
}

#[test]
fn orders_are_pinned() {
    // Made by this code at its first version; they hold until every run may change.
    let full = plan(Shuffle::Full, &[100, 28, 3], 32);
    assert_eq!(
        digest(&sequence(&full, Epoch(0))),
        "c804d4b2ad632836e0aecb138ecd08974608910f3f963239cf1f95eef61e2d16"
    );
    let blocks = plan(BLOCKS, &[100, 28, 3], 32);
    assert_eq!(
        digest(&sequence(&blocks, Epoch(0))),
        "56b05e733bf68ce4dc5d0334a55e79f682384226e04e2531f5aff8f060724e2c"
    );
    assert_eq!(
        digest(&sequence(&blocks, Epoch(1))),
        "4a1f66e61cdaf8a9f65257b445cc864a03f4d4683babe25dfb8f84e93be3eba4"
    );
}

#[test]
fn a_batch_takes_consecutive_samples_from_each_lane() {
    // B = 6 has L = 6 lanes of one sample; B = 134 = 2 * 67 has 2 lanes of 67.
    let plan = plan(Shuffle::Full, &[300], 134);
    assert_eq!((plan.num_lanes(), plan.num_batches()), (2, 2));
    let order = plan.order(Epoch(0));
    let second: Vec<u32> = order.batch(1).collect();
    let lane = |lane: usize| &order.samples[lane * 134..][67..134];
    assert_eq!(second, [lane(0), lane(1)].concat());
}

#[test]
fn seed_epoch_fingerprint_and_shuffle_each_change_the_order() {
    let order = |seed, print: u8, shuffle, epoch| {
        let mut fingerprint = [0; 32];
        fingerprint[31] = print;
        let plan = ShardPlan::new(seed, fingerprint, shuffle, [200], 10).unwrap();
        sequence(&plan, Epoch(epoch))
    };
    let base = order(1, 1, Shuffle::Full, 0);
    for (name, other) in [
        ("seed", order(2, 1, Shuffle::Full, 0)),
        ("fingerprint", order(1, 2, Shuffle::Full, 0)),
        ("epoch", order(1, 1, Shuffle::Full, 1)),
        ("shuffle", order(1, 1, BLOCKS, 0)),
    ] {
        assert_ne!(base, other, "{name}");
    }
}

#[test]
fn a_window_of_the_block_order_has_few_blocks() {
    let shuffle = Shuffle::Blocks {
        block: 8,
        window: 32,
    };
    let plan = plan(shuffle, &[64, 60, 64], 4);
    let order = plan.order(Epoch(2));
    // Shards of 64, 60 and 64 samples have 8, 8 and 8 blocks, of which one has 4 samples.
    let block = |sample: u32| match sample {
        0..64 => sample / 8,
        64..124 => 8 + (sample - 64) / 8,
        _ => 16 + (sample - 124) / 8,
    };
    for window in order.samples.chunks(32) {
        let blocks: std::collections::BTreeSet<u32> = window.iter().map(|&s| block(s)).collect();
        assert!(blocks.len() <= 6, "{blocks:?}");
        let ascending = window.windows(2).filter(|pair| pair[0] < pair[1]).count();
        assert!(ascending + 1 < window.len(), "a window is shuffled");
    }
}

#[test]
fn plans_that_cannot_be_are_refused() {
    let new = |shuffle, lens: &[u64], batch| {
        let plan = ShardPlan::new(1, [0; 32], shuffle, lens.iter().copied(), batch);
        plan.unwrap_err().to_string()
    };
    assert!(new(Shuffle::Full, &[5], 0).starts_with("a batch holds no sample"));
    let no_block = Shuffle::Blocks {
        block: 0,
        window: 1,
    };
    let no_window = Shuffle::Blocks {
        block: 1,
        window: 0,
    };
    assert!(new(no_block, &[5], 1).starts_with("a block"));
    assert!(new(no_window, &[5], 1).starts_with("a window"));
    assert!(new(Shuffle::Full, &[5], 6).contains("make the batch smaller"));
    assert!(new(Shuffle::Full, &[], 1).contains("0 samples"));
    for lens in [&[1 << 32][..], &[1 << 31, 1 << 31], &[u64::MAX, u64::MAX]] {
        assert!(
            new(Shuffle::Full, lens, 6).contains("the limit"),
            "{lens:?}"
        );
    }
}

#[test]
fn shares_that_cannot_be_are_refused() {
    let plan = plan(Shuffle::Full, &[100], 6);
    let error = |rank, world| plan.share(Rank(rank), World(world)).unwrap_err();
    assert!(error(2, 2).to_string().contains("no rank 2 among 2"));
    assert!(error(0, 0).to_string().contains("no rank 0 among 0"));
    assert!(error(0, 7).to_string().contains("at most 6 ranks"));
    assert!(test_share(10, Rank(3), World(3)).is_err());
}

fn shuffles() -> impl Strategy<Value = Shuffle> {
    let blocks = (1_u32..50, 1_u32..80);
    prop_oneof![
        Just(Shuffle::Full),
        blocks.prop_map(|(block, window)| Shuffle::Blocks { block, window }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_sample_comes_at_most_once_in_an_epoch(
        lens in prop::collection::vec(0_u64..60, 1..8),
        batch in 1_u32..90,
        shuffle in shuffles(),
        seed: u64,
        epoch: u32,
    ) {
        let num_samples: u64 = lens.iter().sum();
        prop_assume!(num_samples >= u64::from(batch));
        let plan = ShardPlan::new(seed, [3; 32], shuffle, lens, batch).unwrap();
        let mut all = plan.order(Epoch(epoch)).samples;
        all.sort_unstable();
        prop_assert!(all.iter().copied().eq(0..u32::try_from(num_samples).unwrap()));

        let mut seen = sequence(&plan, Epoch(epoch));
        prop_assert_eq!(seen.len() as u64, num_samples / u64::from(batch) * u64::from(batch));
        seen.sort_unstable();
        seen.dedup();
        prop_assert_eq!(seen.len(), (plan.num_batches() * batch) as usize);
    }

    #[test]
    fn batches_are_the_same_at_any_number_of_ranks_from_any_batch(
        len in 1_u64..400,
        batch in 1_u32..100,
        shuffle in shuffles(),
        seed: u64,
        first: u32,
    ) {
        prop_assume!(len >= u64::from(batch));
        let plan = ShardPlan::new(seed, [4; 32], shuffle, [len / 3, len - len / 3], batch).unwrap();
        let first = first % plan.num_batches();
        let one = sequence(&plan, Epoch(2)).split_off((first * batch) as usize);
        for world in (1..=4).chain([7, 64]).filter(|&world| world <= plan.num_lanes()) {
            prop_assert_eq!(&from_shares(&plan, Epoch(2), world, first), &one, "{} ranks", world);
        }
    }

    #[test]
    fn every_test_sample_is_of_one_rank_and_in_order(len: u64, world in 1_u32..100) {
        let mut end = 0;
        for rank in 0..world {
            let share = test_share(len, Rank(rank), World(world)).unwrap();
            prop_assert_eq!(share.start, end);
            prop_assert!(share.end - share.start <= len / u64::from(world) + 1);
            end = share.end;
        }
        prop_assert_eq!(end, len);
    }
}

#[test]
fn a_world_that_is_too_large_is_told_which_batches_fit() {
    let refused = |batch, world| {
        let plan = ShardPlan::new(1, [0; 32], Shuffle::Full, [1000], batch).unwrap();
        let share = plan.share(Rank(0), World(world));
        share.unwrap_err().to_string()
    };
    assert_eq!(
        refused(97, 4),
        "4 ranks cannot share a global batch of 97, which has 1 lane: use at most 1 rank, or a \
         batch of 96 or 98"
    );
    assert!(refused(6, 7).ends_with("at most 6 ranks, or a batch of 7"));
    assert!(refused(64, 65).ends_with("at most 64 ranks; no batch has more than 64 lanes"));
    for (batch, world) in [(97, 4), (101, 64), (202, 17)] {
        let text = refused(batch, world);
        let sizes = text.split("or a batch of ").nth(1).unwrap();
        for size in sizes.split(" or ") {
            let plan = ShardPlan::new(1, [0; 32], Shuffle::Full, [1000], size.parse().unwrap());
            assert!(plan.unwrap().share(Rank(0), World(world)).is_ok(), "{text}");
        }
    }
}

#[test]
fn batches_that_fit_have_lanes_for_all() {
    let of = |ranks, batch| batches_that_fit(World(ranks), batch);
    // 67 is a prime: one lane.
    assert_eq!(of(4, 67), [66, 68]);
    assert_eq!(of(64, 67), [64, 128]);
    assert_eq!(of(64, 3), [64]);
    assert_eq!(of(5, 3), [5]);
    assert_eq!(of(64, u32::MAX), [u32::MAX - 63]);
    assert!(of(65, 130).is_empty());
}

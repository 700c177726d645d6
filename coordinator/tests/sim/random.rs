//! Histories drawn by chance.

use super::{Fault, Script};

/// `SplitMix64` (Steele, Lea, Flood, 2014).
#[derive(Clone, Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to below `high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }

    /// Whether something happens that does so in so many of 100 cases.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

/// Everything may happen.
pub(crate) fn any(seed: u64) -> Script {
    let mut chance = Chance::new(seed);
    let ranks = u32::try_from(chance.between(1, 5)).unwrap();
    let min_ranks = if chance.percent(50) {
        ranks
    } else {
        u32::try_from(chance.between(1, u64::from(ranks) + 1)).unwrap()
    };
    let spare = if chance.percent(30) {
        chance.between(1, 3)
    } else {
        0
    };
    let has_ranks = chance.percent(40);
    let places = (0..u64::from(ranks) + spare).map(|place| {
        let place = u32::try_from(place).unwrap();
        // A spare process may claim the rank of another one.
        let rank = has_ranks
            .then_some(place % ranks)
            .filter(|_| place < ranks || seed.is_multiple_of(2));
        let at = if chance.percent(80) {
            chance.between(0, 2000)
        } else {
            chance.between(0, 15_000)
        };
        (rank, at)
    });
    let places: Vec<_> = places.collect();
    let is_rough = chance.percent(60);
    let rate = |chance: &mut Chance, most| if is_rough { chance.between(0, most) } else { 0 };
    let (lost, doubled) = (rate(&mut chance, 20), rate(&mut chance, 15));
    let late = rate(&mut chance, 10);
    let calm = chance.between(8000, 35_000);
    let count = chance.between(1, 13);
    let mut faults: Vec<_> = (0..count)
        .map(|_| (chance.between(500, calm), fault(&mut chance, places.len())))
        .collect();
    faults.sort_by_key(|(at, _)| *at);
    Script {
        seed,
        ranks,
        min_ranks,
        wait_seconds: chance.between(1, 8),
        places,
        lost,
        doubled,
        late,
        slow: 5,
        calm,
        is_bare: false,
        faults,
        expected: Vec::new(),
    }
}

fn fault(chance: &mut Chance, places: usize) -> Fault {
    let place = usize::try_from(chance.next()).unwrap() % places;
    let length = if chance.percent(60) {
        chance.between(100, 5000)
    } else {
        chance.between(5000, 25_000)
    };
    match chance.between(0, 22) {
        0..=2 => Fault::Kill(place),
        3..=4 => Fault::Cut(place),
        5..=8 => Fault::Stop(place, length),
        9..=12 => Fault::Part(place, length),
        13 => Fault::Hang(place),
        14 => Fault::Signal(place),
        15..=16 => Fault::Crash(length / 2),
        17 => Fault::Second(length / 4),
        18 => Fault::Freeze(length),
        19 => Fault::Jump(if chance.percent(70) {
            100_000
        } else {
            -100_000
        }),
        20 => Fault::Damage,
        _ => Fault::StoreFails(length),
    }
}

/// Workers are well; the coordinator and its clock are not.
pub(crate) fn coordinator_only(seed: u64) -> Script {
    let mut chance = Chance::new(seed ^ 0xc0_0bd1);
    let ranks = u32::try_from(chance.between(1, 5)).unwrap();
    let calm = 12_000;
    let count = chance.between(3, 7);
    let mut faults: Vec<_> = (0..count)
        .map(|_| {
            let length = chance.between(50, 6000);
            let fault = match chance.between(0, 6) {
                0..=2 => Fault::Crash(length),
                3 => Fault::Second(length / 4),
                4 => Fault::Freeze(2 * length),
                _ => Fault::Jump(if chance.percent(70) {
                    100_000
                } else {
                    -100_000
                }),
            };
            // A generation that is just being put may be met by the next coordinator.
            (chance.between(5000, calm), fault)
        })
        .collect();
    faults.insert(0, (5000, Fault::Crash(chance.between(50, 4000))));
    faults.insert(0, (5001, Fault::Crash(chance.between(50, 4000))));
    faults.sort_by_key(|(at, _)| *at);
    Script {
        seed,
        ranks,
        min_ranks: ranks,
        wait_seconds: 5,
        places: (0..ranks)
            .map(|_| (None, chance.between(0, 1000)))
            .collect(),
        lost: chance.between(0, 4),
        doubled: chance.between(0, 10),
        late: 0,
        slow: 0,
        calm,
        is_bare: false,
        faults,
        expected: Vec::new(),
    }
}

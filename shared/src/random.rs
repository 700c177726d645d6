//! Random draws keyed by (seed, purpose, words): the words are epoch, sample, parameter, as needed.
//!
//! A draw depends on its key alone, never on the draws made before it elsewhere, so results do not
//! change with the number of threads, after a resume, or when a new kind of draw is added.
//! The streams are pinned by tests with literal values: a change of any of them changes every run.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// 2^64 divided by the golden ratio, odd: splitmix64's increment (Steele, Lea, Flood, 2014,
/// <https://doi.org/10.1145/2714064.2660195>).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a draw is for: the same seed and words give unrelated streams for different purposes.
///
/// The numbers are part of the key: never change or reuse one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Weights before the first update. Words: the parameter's index.
    Initialise = 1,
    /// The order of samples. Words: epoch.
    Shuffle = 2,
    /// Shifts, flips and cutout of a training image. Words: epoch, sample.
    Augment = 3,
    /// Dropout masks. Words: epoch, sample (or batch), time step, layer.
    Dropout = 4,
    /// The sub-policy of AutoAugment and what becomes of it. Words: epoch, sample.
    AutoAugment = 5,
}

/// The stream of the key (seed, purpose, words); lists of words of different lengths differ.
pub fn keyed(seed: u64, purpose: Purpose, words: &[u64]) -> ChaCha8Rng {
    let length = words.len() as u64;
    let mut key = [0_u8; 32];
    for (lane, bytes) in (1_u64..).zip(key.chunks_exact_mut(8)) {
        // Four lanes from four starts: two keys meet only where all 256 bits do.
        let mut state = mix(seed.wrapping_add(GOLDEN.wrapping_mul(lane)));
        for word in [purpose as u64, length].iter().chain(words) {
            state = mix(state.wrapping_add(GOLDEN) ^ word);
        }
        bytes.copy_from_slice(&state.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// The finaliser of splitmix64: a bijection of 64 bits in which each bit of the input moves about
/// half of the output's.
pub const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The numbers 0..n in random order, each order equally likely (Fisher-Yates, from the end).
///
/// # Panics
///
/// If n is more than `u32::MAX`.
pub fn permutation(rng: &mut impl Rng, n: usize) -> Vec<u32> {
    let n = u32::try_from(n).expect("a permutation of more than u32::MAX samples");
    let mut order: Vec<u32> = (0..n).collect();
    for last in (1..n).rev() {
        let chosen = below(rng, last + 1);
        order.swap(last as usize, chosen as usize);
    }
    order
}

/// A whole number in 0..bound, each equally likely.
///
/// # Panics
///
/// If bound is 0.
pub fn below(rng: &mut impl Rng, bound: u32) -> u32 {
    assert!(bound > 0, "no whole number lies below 0");
    // Multiply and shift; the few low products that would make some numbers likelier are drawn
    // again (Lemire, 2019, https://doi.org/10.1145/3230636).
    let threshold = bound.wrapping_neg() % bound;
    loop {
        let product = u64::from(rng.next_u32()) * u64::from(bound);
        let [b0, b1, b2, b3, h0, h1, h2, h3] = product.to_le_bytes();
        if u32::from_le_bytes([b0, b1, b2, b3]) >= threshold {
            return u32::from_le_bytes([h0, h1, h2, h3]);
        }
    }
}

/// A number in [0, 1), a multiple of 2^-53.
pub fn unit(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// A number in [low, high).
///
/// # Panics
///
/// If low is not less than high, or their distance is not finite.
pub fn uniform(rng: &mut impl Rng, low: f64, high: f64) -> f64 {
    let length = high - low;
    assert!(
        length > 0.0 && length.is_finite(),
        "no interval: {low}..{high}"
    );
    // The sum may round up to `high`, which is not in the interval.
    (low + length * unit(rng)).min(high.next_down())
}

/// A draw from the normal distribution of mean 0 and variance 1.
///
/// Box-Muller without the second value: every draw takes two words, so the n-th normal of a stream
/// is at a known place. `ln` and `cos` are the platform's and may differ in the last bit elsewhere.
pub fn normal(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * (1.0 - unit(rng)).ln()).sqrt();
    radius * (std::f64::consts::TAU * unit(rng)).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix_is_splitmix64() {
        // The first two outputs of splitmix64 from state 0, as published with it.
        assert_eq!(mix(GOLDEN), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(GOLDEN.wrapping_mul(2)), 0x6e78_9e6a_a1b9_65f4);
        assert_eq!(mix(0), 0);
    }

    #[test]
    fn streams_are_pinned() {
        // Made by this code at its first version; they hold until every run may change.
        let mut rng = keyed(1, Purpose::Initialise, &[]);
        assert_eq!(rng.next_u64(), 0x1771_025b_8133_73f8);
        assert_eq!(rng.next_u64(), 0xe254_921a_2a3e_0c08);
        let mut rng = keyed(1, Purpose::Augment, &[3, 12_345]);
        assert_eq!(rng.next_u64(), 0x960c_57e2_7580_8998);
        let order = permutation(&mut keyed(1, Purpose::Shuffle, &[0]), 10);
        assert_eq!(order, [8, 4, 6, 7, 5, 9, 0, 1, 3, 2]);
        let mut rng = keyed(1, Purpose::Augment, &[0, 0]);
        assert_eq!([0; 8].map(|_| below(&mut rng, 9)), [6, 2, 2, 0, 6, 5, 2, 1]);
        let mut rng = keyed(1, Purpose::Dropout, &[]);
        let drawn = [0; 3].map(|_| uniform(&mut rng, -1.0, 3.0).to_bits());
        let expected = [
            -0.152_799_812_580_980_2,
            0.332_829_310_511_043_36,
            0.313_423_561_934_038_64,
        ];
        assert_eq!(drawn, expected.map(f64::to_bits));
        let mut rng = keyed(1, Purpose::Initialise, &[0]);
        for expected in [
            0.675_595_147_468_647_6,
            1.880_313_743_809_889_8,
            0.132_375_461_506_017_76,
        ] {
            // `ln` and `cos` are within an ulp or two on every platform.
            assert!((normal(&mut rng) - expected).abs() < 1e-14);
        }
    }

    #[test]
    fn keys_that_differ_anywhere_give_different_streams() {
        let first = |seed, purpose, words: &[u64]| keyed(seed, purpose, words).next_u64();
        let all = [
            first(1, Purpose::Initialise, &[]),
            first(1, Purpose::Initialise, &[0]),
            first(1, Purpose::Initialise, &[0, 0]),
            first(1, Purpose::Initialise, &[0, 1]),
            first(1, Purpose::Initialise, &[1, 0]),
            first(1, Purpose::Shuffle, &[]),
            first(1, Purpose::Augment, &[]),
            first(1, Purpose::Dropout, &[]),
            first(1, Purpose::AutoAugment, &[]),
            first(2, Purpose::Initialise, &[]),
            first(0, Purpose::Initialise, &[]),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[..index].contains(one), "stream {index} is not new");
        }
    }

    #[test]
    fn permutations_hold_every_number_once() {
        for n in [0, 1, 2, 3, 100] {
            let mut order = permutation(&mut keyed(5, Purpose::Shuffle, &[n as u64]), n);
            order.sort_unstable();
            assert_eq!(order, (0..u32::try_from(n).unwrap()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn draws_have_their_moments() {
        // 100,000 draws: five standard errors are 0.016 for a mean of variance 1.
        let mut rng = keyed(3, Purpose::Initialise, &[]);
        let num_draws = 100_000;
        let (mut sum, mut square, mut ones, mut dice) = (0.0, 0.0, 0.0, [0_u32; 6]);
        for _ in 0..num_draws {
            let value = normal(&mut rng);
            sum += value;
            square += value * value;
            ones += uniform(&mut rng, -1.0, 3.0);
            dice[below(&mut rng, 6) as usize] += 1;
        }
        let count = f64::from(num_draws);
        assert!((sum / count).abs() < 0.016, "mean {}", sum / count);
        assert!((square / count - 1.0).abs() < 0.023, "variance");
        assert!((ones / count - 1.0).abs() < 0.019, "uniform mean");
        for face in dice {
            assert!(
                (f64::from(face) / count - 1.0 / 6.0).abs() < 0.006,
                "{dice:?}"
            );
        }
    }

    #[test]
    fn whole_numbers_below_a_large_bound_are_equally_likely() {
        // Of 2^32 words and 3 2^30 numbers, each third number would come twice as often without
        // the second draw: 1/2 instead of 1/3.
        let mut rng = keyed(6, Purpose::Shuffle, &[]);
        let num_thirds = (0..10_000)
            .filter(|_| below(&mut rng, 3 << 30).is_multiple_of(3))
            .count();
        assert!((3100..3570).contains(&num_thirds), "{num_thirds}");
    }

    #[test]
    fn uniform_stays_inside_its_interval() {
        let mut rng = keyed(4, Purpose::Augment, &[]);
        let (low, high) = (1.0, 1.0_f64.next_up());
        for _ in 0..100 {
            let value = uniform(&mut rng, low, high);
            assert!(low <= value && value < high);
        }
    }
}

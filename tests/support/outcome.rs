//! Named results and how close they must be.

/// How close a result must come to what is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tolerance {
    /// Equal: spikes, counts, masks, positions.
    Exact,
    /// Equal, but for a back end that rounds what it stores: operands of convolutions.
    Stored,
    /// `1e-5 max|x| + 1e-6`: forward values, losses, statistics, weights. Some hundred terms summed
    /// in another order.
    Forward,
    /// `1e-4 max|g| + 1e-6`: gradients, which are differences of such sums.
    Gradient,
    /// `1e-5`: the gradient of a bias before a batch norm, which is 0 but for rounding.
    BiasBeforeNorm,
}

impl Tolerance {
    fn allowed(self, expected: &[f32]) -> f32 {
        let largest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        match self {
            Self::Exact | Self::Stored => 0.0,
            Self::Forward => 1e-5 * largest + 1e-6,
            Self::Gradient => 1e-4 * largest + 1e-6,
            Self::BiasBeforeNorm => 1e-5,
        }
    }
}

/// What a case gave, by name.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    entries: Vec<(String, Tolerance, Vec<f32>)>,
    /// A part of the largest number by which results may be off beside their tolerance.
    rounding: f32,
}

impl Outcome {
    /// The same, met by what is off by this part of the largest number, too.
    #[must_use]
    pub fn rounded_by(mut self, rounding: f32) -> Self {
        self.rounding = rounding;
        self
    }

    /// Adds a result.
    pub fn note(&mut self, name: impl Into<String>, tolerance: Tolerance, values: Vec<f32>) {
        self.entries.push((name.into(), tolerance, values));
    }

    /// The result of this name.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        let entry = self.entries.iter().find(|entry| entry.0 == name);
        entry.map(|entry| entry.2.as_slice())
    }

    /// The names, in the order of noting.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.0.as_str())
    }

    /// Holds another outcome to every result of this one.
    ///
    /// # Panics
    /// If a result is missing or too far off; names its worst element.
    pub fn assert_met_by(&self, actual: &Self, case: &str) {
        for (name, tolerance, expected) in &self.entries {
            let Some(actual) = actual.get(name) else {
                panic!("{case}: {name} is missing");
            };
            let what = format!("{case}: {name}");
            let mut allowed = tolerance.allowed(expected);
            if *tolerance != Tolerance::Exact {
                let largest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                allowed += self.rounding * largest;
            }
            assert_within(&what, allowed, expected, actual);
        }
    }
}

/// Compares two results of one name.
///
/// # Panics
/// If they are too far apart; names the worst element.
pub fn assert_close(what: &str, tolerance: Tolerance, expected: &[f32], actual: &[f32]) {
    assert_within(what, tolerance.allowed(expected), expected, actual);
}

fn assert_within(what: &str, allowed: f32, expected: &[f32], actual: &[f32]) {
    assert_eq!(expected.len(), actual.len(), "{what}: length");
    let off = |i: &usize| (expected[*i] - actual[*i]).abs();
    // A number that is not finite is worst, unless both are the same.
    let rank = |i: &usize| {
        if expected[*i].to_bits() == actual[*i].to_bits() {
            0.0
        } else if off(i).is_nan() {
            f32::INFINITY
        } else {
            off(i)
        }
    };
    let worst = (0..expected.len()).max_by(|a, b| rank(a).total_cmp(&rank(b)));
    if let Some(i) = worst {
        assert!(
            rank(&i) <= allowed,
            "{what}: element {i} of {} is {}, should be {} (off by {:e}, allowed {allowed:e})",
            expected.len(),
            actual[i],
            expected[i],
            off(&i),
        );
    }
}

//! How far two runs may be apart, and how far they are.

use std::collections::BTreeMap;
use std::fmt;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Quantity {
    /// The loss of a time step.
    Loss,
    /// The logits of a time step.
    Logits,
    /// The spikes of a layer of neurons at a time step: a count, or each of them.
    Spikes,
    /// What a single layer makes of its input.
    Value,
    /// A gradient.
    Gradient,
    /// A parameter after an update.
    Parameter,
    /// Running statistics of a batch norm.
    Statistic,
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Loss => "loss",
            Self::Logits => "logits",
            Self::Spikes => "spikes",
            Self::Value => "value",
            Self::Gradient => "gradient",
            Self::Parameter => "parameter",
            Self::Statistic => "statistic",
        })
    }
}

/// The largest error allowed: `relative` of the tensor's largest expected entry, plus `absolute`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Share of the largest expected entry of the tensor at that time step.
    pub relative: f64,
    /// On top of that.
    pub absolute: f64,
}

impl Tolerance {
    /// None at all.
    pub const EXACT: Self = Self {
        relative: 0.0,
        absolute: 0.0,
    };
    /// Of 32-bit arithmetic without time: losses, logits, values, parameters, statistics.
    pub const VALUES: Self = Self {
        relative: 1e-5,
        absolute: 1e-6,
    };
    /// Of 32-bit gradients.
    pub const GRADIENTS: Self = Self {
        relative: 1e-4,
        absolute: 1e-6,
    };
    /// Of the gradient of a bias before a batch norm: it is 0, but for rounding, which variances of
    /// 0 amplify by 1/sqrt(eps).
    pub const BIAS_BEFORE_NORM: Self = Self {
        relative: 0.0,
        absolute: 1e-5,
    };

    /// The tolerance of 32-bit floats (ALGORITHMS, section 10).
    pub fn of(quantity: Quantity) -> Self {
        match quantity {
            Quantity::Spikes => Self::EXACT,
            Quantity::Gradient => Self::GRADIENTS,
            Quantity::Loss
            | Quantity::Logits
            | Quantity::Value
            | Quantity::Parameter
            | Quantity::Statistic => Self::VALUES,
        }
    }

    /// What is allowed for a tensor that should be `expected`.
    pub fn allowed(self, expected: &[f32]) -> f64 {
        let magnitudes = expected.iter().map(|&e| f64::from(e).abs());
        self.relative * magnitudes.fold(0.0, f64::max) + self.absolute
    }

    /// The largest error as a multiple of what is allowed; infinite where `got` is no number or the
    /// lengths differ.
    pub fn ratio(self, got: &[f32], expected: &[f32]) -> f64 {
        let error = largest_error(got, expected);
        if error == 0.0 {
            0.0
        } else {
            error / self.allowed(expected)
        }
    }
}

/// The largest difference; infinite where `got` is no number or the lengths differ.
fn largest_error(got: &[f32], expected: &[f32]) -> f64 {
    if got.len() != expected.len() {
        return f64::INFINITY;
    }
    let errors = got.iter().zip(expected);
    let errors = errors.map(|(&g, &e)| (f64::from(g) - f64::from(e)).abs());
    // NaN compares with nothing: it must not be lost.
    errors.fold(0.0, |worst: f64, error| {
        if error.is_finite() {
            worst.max(error)
        } else {
            f64::INFINITY
        }
    })
}

/// The error of one tensor at one time step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deviation<'a> {
    /// The tensor.
    pub tensor: &'a str,
    /// The time step of all batches, or the update.
    pub time_step: usize,
    /// The largest error; for spikes, the difference of the counts.
    pub error: f64,
    /// What was allowed.
    pub allowed: f64,
    /// The error as a multiple of what was allowed.
    pub ratio: f64,
}

/// One comparison of one tensor at one time step.
#[derive(Clone, Copy, Debug)]
struct Entry {
    time_step: usize,
    error: f64,
    allowed: f64,
    ratio: f64,
}

/// The errors of a run against what was expected, by quantity, tensor and time step.
///
/// It prints as a table.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    errors: BTreeMap<Quantity, BTreeMap<String, Vec<Entry>>>,
    waiting: Vec<String>,
}

impl Comparison {
    /// A comparison of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Compares a tensor with the tolerance of its quantity.
    pub fn check(
        &mut self,
        quantity: Quantity,
        tensor: &str,
        time_step: usize,
        got: &[f32],
        expected: &[f32],
    ) {
        let tolerance = Tolerance::of(quantity);
        self.check_within(quantity, tensor, time_step, (got, expected), tolerance);
    }

    /// Compares a tensor with another tolerance.
    pub fn check_within(
        &mut self,
        quantity: Quantity,
        tensor: &str,
        time_step: usize,
        (got, expected): (&[f32], &[f32]),
        tolerance: Tolerance,
    ) {
        let entry = Entry {
            time_step,
            error: largest_error(got, expected),
            allowed: tolerance.allowed(expected),
            ratio: tolerance.ratio(got, expected),
        };
        self.record(quantity, tensor, entry);
    }

    /// Compares a count of spikes with `rate` times `neurons`, those of the whole batch: exactly.
    pub fn check_spikes(
        &mut self,
        layer: &str,
        time_step: usize,
        got: u64,
        rate: f32,
        neurons: usize,
    ) {
        let expected = (f64::from(rate) * neurons as f64).round();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a number that is too large saturates"
        )]
        let same = i128::from(got) == expected as i128;
        let entry = Entry {
            time_step,
            error: (got as f64 - expected).abs(),
            allowed: 0.0,
            ratio: if same { 0.0 } else { f64::INFINITY },
        };
        self.record(Quantity::Spikes, layer, entry);
    }

    /// Notes what cannot be compared yet, and why.
    pub fn wait(&mut self, what: String) {
        if !self.waiting.contains(&what) {
            self.waiting.push(what);
        }
    }

    /// What could not be compared, and why.
    pub fn waiting(&self) -> &[String] {
        &self.waiting
    }

    /// Takes over everything of another comparison.
    pub fn merge(&mut self, other: Self) {
        for (quantity, tensors) in other.errors {
            for (tensor, errors) in tensors {
                let mine = self.errors.entry(quantity).or_default();
                mine.entry(tensor).or_default().extend(errors);
            }
        }
        other.waiting.into_iter().for_each(|what| self.wait(what));
    }

    /// Every error, by quantity, then tensor, then as it was compared.
    pub fn deviations(&self) -> impl Iterator<Item = (Quantity, Deviation<'_>)> {
        let tensors = self.errors.iter().flat_map(|(quantity, tensors)| {
            tensors
                .iter()
                .map(move |(tensor, errors)| (*quantity, tensor, errors))
        });
        tensors.flat_map(|(quantity, tensor, errors)| {
            errors.iter().map(move |entry| {
                let deviation = Deviation {
                    tensor: tensor.as_str(),
                    time_step: entry.time_step,
                    error: entry.error,
                    allowed: entry.allowed,
                    ratio: entry.ratio,
                };
                (quantity, deviation)
            })
        })
    }

    /// The largest error of a quantity, the first of equals; `None` if nothing was compared.
    pub fn worst(&self, quantity: Quantity) -> Option<Deviation<'_>> {
        let all = self.deviations().filter(|(q, _)| *q == quantity);
        all.map(|(_, d)| d)
            .reduce(|worst, d| if d.ratio > worst.ratio { d } else { worst })
    }

    /// Whether something was compared and nothing was further off than allowed.
    pub fn passed(&self) -> bool {
        let mut ratios = self.deviations().map(|(_, d)| d.ratio).peekable();
        ratios.peek().is_some() && ratios.all(|ratio| ratio <= 1.0)
    }

    fn record(&mut self, quantity: Quantity, tensor: &str, entry: Entry) {
        let tensors = self.errors.entry(quantity).or_default();
        if let Some(errors) = tensors.get_mut(tensor) {
            errors.push(entry);
        } else {
            tensors.insert(tensor.to_owned(), vec![entry]);
        }
    }
}

impl fmt::Display for Deviation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>13.2e} {:>10.2e} {:>8.4} {:>9}  {}",
            self.error, self.allowed, self.ratio, self.time_step, self.tensor
        )
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<10} {:>7} {:>13} {:>10} {:>8} {:>9}  worst tensor",
            "what", "tensors", "largest error", "allowed", "ratio", "time step"
        )?;
        for (quantity, tensors) in &self.errors {
            let Some(worst) = self.worst(*quantity) else {
                continue;
            };
            write!(f, "\n{quantity:<10} {:>7} {worst}", tensors.len())?;
            if worst.ratio > 1.0 {
                f.write_str("  <- too far off")?;
            }
        }
        for what in &self.waiting {
            write!(f, "\nnot compared: {what}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_measured_in_tolerances_of_the_largest_entry() {
        let ratio = Tolerance::GRADIENTS.ratio(&[0.0, 100.005], &[0.0, 100.0]);
        assert!((ratio - 0.5).abs() < 1e-2, "{ratio}");
        let ratio = Tolerance::BIAS_BEFORE_NORM.ratio(&[2e-5], &[1e-9]);
        assert!((ratio - 2.0).abs() < 1e-2, "{ratio}");
        assert_eq!(
            Tolerance::EXACT.ratio(&[1.0, 0.0], &[1.0, 0.0]).to_bits(),
            0
        );
        assert!(Tolerance::EXACT.ratio(&[1.0], &[0.0]).is_infinite());
    }

    #[test]
    fn what_is_no_number_never_passes() {
        for got in [f32::NAN, f32::INFINITY] {
            assert!(
                Tolerance::VALUES
                    .ratio(&[0.0, got], &[0.0, 1.0])
                    .is_infinite()
            );
        }
        assert!(Tolerance::VALUES.ratio(&[0.0], &[0.0, 1.0]).is_infinite());
        assert!(
            Tolerance::VALUES
                .ratio(&[f32::NAN, 0.0], &[1.0, 0.0])
                .is_infinite()
        );
    }

    #[test]
    fn nothing_compared_is_nothing_passed() {
        let mut comparison = Comparison::new();
        comparison.wait("everything".into());
        assert!(!comparison.passed());
    }

    #[test]
    fn spike_counts_are_exact() {
        let mut comparison = Comparison::new();
        comparison.check_spikes("sn1", 3, 7, 7.0 / 24.0, 24);
        assert!(comparison.passed());
        comparison.check_spikes("sn1", 4, 6, 7.0 / 24.0, 24);
        assert!(!comparison.passed());
    }

    #[test]
    fn the_table_names_the_worst_tensor_and_time_step() {
        let mut comparison = Comparison::new();
        comparison.check(Quantity::Gradient, "fc.weight", 0, &[1.0], &[1.0]);
        comparison.check(Quantity::Gradient, "conv1.weight", 5, &[1.1], &[1.0]);
        comparison.check(Quantity::Loss, "", 0, &[2.0], &[2.0]);
        let mut more = Comparison::new();
        more.wait("lif/gu_old_t: waits for mode t".into());
        comparison.merge(more);
        let table = comparison.to_string();
        let line = table.lines().find(|l| l.starts_with("gradient"));
        let line = line.expect("gradients were compared");
        assert!(
            line.contains("conv1.weight")
                && line.contains(" 2 ")
                && line.contains(" 5 ")
                && line.contains("1.00e-1")
        );
        assert!(line.contains("too far off"), "{table}");
        assert!(
            table.ends_with("not compared: lif/gu_old_t: waits for mode t"),
            "{table}"
        );
    }
}

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

    /// The largest error as a multiple of what is allowed; infinite where `got` is no number or the
    /// lengths differ.
    pub fn ratio(self, got: &[f32], expected: &[f32]) -> f64 {
        if got.len() != expected.len() {
            return f64::INFINITY;
        }
        let largest = expected
            .iter()
            .fold(0.0_f64, |m, &e| m.max(f64::from(e).abs()));
        let allowed = self.relative * largest + self.absolute;
        let pairs = got.iter().zip(expected);
        pairs.fold(0.0, |worst: f64, (&g, &e)| {
            let error = (f64::from(g) - f64::from(e)).abs();
            // Not finite: `got` is none, whatever is expected.
            if error == 0.0 {
                worst
            } else if error.is_finite() {
                worst.max(error / allowed)
            } else {
                f64::INFINITY
            }
        })
    }
}

/// The error of one tensor at one time step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deviation<'a> {
    /// The tensor.
    pub tensor: &'a str,
    /// The time step of all batches, or the update.
    pub time_step: usize,
    /// The largest error as a multiple of its tolerance.
    pub ratio: f64,
}

/// The errors of a run against what was expected, by quantity, tensor and time step.
///
/// It prints as a table.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    errors: BTreeMap<Quantity, BTreeMap<String, Vec<(usize, f64)>>>,
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
        let ratio = Tolerance::of(quantity).ratio(got, expected);
        self.record(quantity, tensor, time_step, ratio);
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
        let ratio = tolerance.ratio(got, expected);
        self.record(quantity, tensor, time_step, ratio);
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
        let ratio = if same { 0.0 } else { f64::INFINITY };
        self.record(Quantity::Spikes, layer, time_step, ratio);
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
        self.waiting.extend(other.waiting);
    }

    /// Every error, by quantity, then tensor, then as it was compared.
    pub fn deviations(&self) -> impl Iterator<Item = (Quantity, Deviation<'_>)> {
        let tensors = self.errors.iter().flat_map(|(quantity, tensors)| {
            tensors
                .iter()
                .map(move |(tensor, errors)| (*quantity, tensor, errors))
        });
        tensors.flat_map(|(quantity, tensor, errors)| {
            errors.iter().map(move |&(time_step, ratio)| {
                let tensor = tensor.as_str();
                let deviation = Deviation {
                    tensor,
                    time_step,
                    ratio,
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

    fn record(&mut self, quantity: Quantity, tensor: &str, time_step: usize, ratio: f64) {
        let tensors = self.errors.entry(quantity).or_default();
        if let Some(errors) = tensors.get_mut(tensor) {
            errors.push((time_step, ratio));
        } else {
            tensors.insert(tensor.to_owned(), vec![(time_step, ratio)]);
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = [
            "what",
            "tensors",
            "worst error / tolerance",
            "time step",
            "worst tensor",
        ];
        let [what, tensors, error, step, tensor] = columns;
        write!(
            f,
            "{what:<10} {tensors:>7} {error:>24} {step:>10}  {tensor}"
        )?;
        for (quantity, tensors) in &self.errors {
            if let Some(worst) = self.worst(*quantity) {
                let mark = if worst.ratio <= 1.0 {
                    ""
                } else {
                    "  <- too far off"
                };
                let (count, step) = (tensors.len(), worst.time_step);
                write!(
                    f,
                    "\n{quantity:<10} {count:>7} {:>24.4} {step:>10}  ",
                    worst.ratio
                )?;
                write!(f, "{}{mark}", worst.tensor)?;
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
        assert!(line.contains("conv1.weight") && line.contains(" 2 ") && line.contains(" 5 "));
        assert!(line.contains("too far off"), "{table}");
        assert!(
            table.ends_with("not compared: lif/gu_old_t: waits for mode t"),
            "{table}"
        );
    }
}

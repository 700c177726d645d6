//! Dropout and residual joins.

use synfire::kernel::{Dropout, Phase, Residual, Window, dropout_keeps};
use synfire::shape::{Content, Join, Shape};

use crate::autodiff::{Value, constant, inner_series, leaves, note_errors, numbers};
use crate::outcome::{Outcome, Tolerance};
use crate::random::{Random, Series};
use crate::rig::{Case, Rig, at};

/// What is done with each number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Dropped inputs, the factor of kept ones.
    Dropout(f32, f32),
    /// A join, and whether the errors of a and of b are wanted.
    Residual(Join, bool, bool),
}

/// Dropout or a join at some time steps, and its backward over a window.
#[derive(Clone, Copy, Debug)]
pub struct PointwiseCase {
    /// What is done.
    pub kind: Kind,
    /// Training or, for dropout, evaluation.
    pub phase: Phase,
    /// Samples in the batch.
    pub samples: usize,
    /// One sample.
    pub shape: Shape,
    /// What a (or x) and b are.
    pub contents: [Content; 2],
    /// Time steps that run forward.
    pub num_steps: usize,
    /// The window of the backward.
    pub window: usize,
    /// How many of its newest steps an error arrives for.
    pub arrived: usize,
    /// Whether errors are added to what is there.
    pub accumulate: bool,
    /// The place of the first sample in the batch of all ranks: a place by which dropout draws.
    pub first_sample: usize,
}

/// The key of the mask of a time step.
fn key(t: usize) -> u64 {
    0x1234_5678_9abc_def0 ^ (t as u64) << 40
}

impl PointwiseCase {
    fn elements(&self) -> usize {
        self.samples * self.shape.elements()
    }

    fn steps(&self) -> (Window, Window) {
        let newest = self.num_steps - 1;
        let (len, arrived) = (self.window, self.arrived);
        (
            Window { newest, len },
            Window {
                newest,
                len: arrived,
            },
        )
    }

    /// a (or x), b and the errors.
    fn data(&self) -> [Series; 3] {
        let mut random = Random::new(31);
        let (steps, elements) = (self.num_steps, self.elements());
        [self.contents[0], self.contents[1], Content::Real]
            .map(|content| random.series(content, steps, elements))
    }

    /// What autodiff says of training.
    pub fn autodiff(&self) -> Outcome {
        let [a, b, dy] = self.data();
        let (_, arrived) = self.steps();
        let Shape {
            height,
            width,
            channels,
        } = self.shape;
        let dims = [self.samples, height, width, channels];
        let (a, b) = (leaves(&a, dims), leaves(&b, dims));
        let form = |t: usize| -> Value {
            let (a, b) = (a[t].clone(), b[t].clone());
            match self.kind {
                Kind::Dropout(p, scale) => {
                    let first = self.first_sample * self.shape.elements();
                    let keeps = |i: usize| dropout_keeps(key(t), (first + i) as u64, p);
                    let factor = |i: usize| if keeps(i) { scale } else { 0.0 };
                    let mask: Vec<f32> = (0..self.elements()).map(factor).collect();
                    a * constant(&mask, dims)
                }
                Kind::Residual(Join::Add, ..) => a + b,
                Kind::Residual(Join::And, ..) => a * b,
                Kind::Residual(Join::Iand, ..) => (a.ones_like() - a) * b,
            }
        };
        let ys: Vec<Value> = (0..self.num_steps).map(form).collect();
        let mut outcome = Outcome::default();
        for (t, y) in ys.iter().enumerate() {
            outcome.note(at("y", t), Tolerance::Forward, numbers(y.clone()));
        }
        let gradients = inner_series(&ys, &dy, arrived).backward();
        let (want_a, want_b) = match self.kind {
            Kind::Dropout(..) => (true, false),
            Kind::Residual(_, a, b) => (a, b),
        };
        for (name, leaves, wanted) in [("da", &a, want_a), ("db", &b, want_b)] {
            if wanted {
                let accumulate = self.accumulate;
                note_errors(&mut outcome, name, leaves, &gradients, arrived, accumulate);
            }
        }
        outcome
    }

    fn run_dropout(&self, rig: &mut Rig, p: f32, scale: f32) {
        let [x_data, _, dy] = self.data();
        let (samples, shape, elements) = (self.samples, self.shape, self.elements());
        let (window, arrived) = self.steps();
        let dropout = Dropout {
            samples,
            shape,
            mask: rig.plain(samples, shape, Content::Real, self.window),
            p,
            scale,
            first_sample: self.first_sample,
        };
        let x = rig.plain(samples, shape, self.contents[0], 1);
        let y = rig.operand(samples, shape, Content::Real, [self.window, 1]);
        for (t, x_t) in x_data.iter().enumerate() {
            rig.kernels.write(x, t, x_t);
            if self.phase == Phase::Train {
                rig.kernels.dropout_mask(&dropout, t, key(t));
                rig.note("mask", Tolerance::Exact, dropout.mask, t, elements);
            }
            rig.kernels.dropout_forward(&dropout, t, self.phase, x, y);
            rig.note("y", Tolerance::Forward, y, t, elements);
        }
        if self.phase == Phase::Train {
            let dy = rig.errors(samples, shape, window, arrived, &dy);
            let dx = rig.errors_out(samples, shape, window, self.accumulate);
            rig.kernels.dropout_backward(&dropout, dy, dx);
            rig.note_errors("da", dx, arrived, elements);
        }
    }

    fn run_residual(&self, rig: &mut Rig, join: Join, want_a: bool, want_b: bool) {
        let [a_data, b_data, dy] = self.data();
        let (samples, shape, elements) = (self.samples, self.shape, self.elements());
        let (window, arrived) = self.steps();
        let [a, b] = self
            .contents
            .map(|content| rig.plain(samples, shape, content, self.window));
        let content = match (join, self.contents) {
            (Join::And | Join::Iand, [Content::Spikes, Content::Spikes]) => Content::Spikes,
            (Join::Add | Join::And, [a, b]) if ![a, b].contains(&Content::Real) => Content::Counts,
            (Join::Add | Join::And | Join::Iand, _) => Content::Real,
        };
        let residual = Residual {
            samples,
            shape,
            join,
            a,
            b,
            y: rig.operand(samples, shape, content, [self.window, 1]),
        };
        for t in 0..self.num_steps {
            rig.kernels.write(a, t, &a_data[t]);
            rig.kernels.write(b, t, &b_data[t]);
            rig.kernels.residual_forward(&residual, t);
            rig.note("y", Tolerance::Forward, residual.y, t, elements);
        }
        let dy = rig.errors(samples, shape, window, arrived, &dy);
        let [da, db] = [want_a, want_b]
            .map(|wanted| wanted.then(|| rig.errors_out(samples, shape, window, self.accumulate)));
        rig.kernels.residual_backward(&residual, dy, da, db);
        for (name, errors) in [("da", da), ("db", db)] {
            if let Some(errors) = errors {
                rig.note_errors(name, errors, arrived, elements);
            }
        }
    }
}

impl Case for PointwiseCase {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn run(&self, rig: &mut Rig) {
        rig.allocate_arenas();
        match self.kind {
            Kind::Dropout(p, scale) => self.run_dropout(rig, p, scale),
            Kind::Residual(join, a, b) => self.run_residual(rig, join, a, b),
        }
    }
}

fn drawn(random: &mut Random, kind: Kind) -> PointwiseCase {
    let contents = [Content::Spikes, Content::Counts, Content::Real];
    let window = 1 + random.below(4);
    let channels = random.pick(&[1, 5, 16, 33, 64, 100]);
    PointwiseCase {
        kind,
        phase: Phase::Train,
        samples: 1 + random.below(3),
        shape: Shape::new(1 + random.below(4), 1 + random.below(4), channels),
        contents: [random.pick(&contents), random.pick(&contents)],
        num_steps: window + random.below(3),
        window,
        arrived: random.pick(&[1, window]),
        accumulate: random.coin(),
        first_sample: random.pick(&[0, 5]),
    }
}

/// Dropout in training: rates and factors.
pub fn dropouts() -> Vec<PointwiseCase> {
    let mut random = Random::new(7);
    let settings = [
        (0.0, 1.0),
        (0.3, 1.0),
        (0.3, 1.0 / 0.7),
        (0.5, 2.0),
        (0.9, 10.0),
    ];
    let twice = settings.iter().chain(&settings);
    let cases = twice.map(|&(p, scale)| drawn(&mut random, Kind::Dropout(p, scale)));
    cases.collect()
}

/// Dropout in evaluation.
pub fn dropouts_off() -> Vec<PointwiseCase> {
    let evaluated = |case| PointwiseCase {
        phase: Phase::Evaluate,
        ..case
    };
    dropouts().into_iter().map(evaluated).collect()
}

/// Every join with every choice of wanted errors.
pub fn residuals() -> Vec<PointwiseCase> {
    let mut random = Random::new(9);
    let mut cases = Vec::new();
    for join in [Join::Add, Join::And, Join::Iand] {
        for (a, b) in [(true, true), (true, false), (false, true)] {
            for _ in 0..4 {
                cases.push(drawn(&mut random, Kind::Residual(join, a, b)));
            }
        }
    }
    cases
}

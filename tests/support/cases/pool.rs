//! The three pools, flatten.

use burn::tensor::{Tensor, s};
use synfire::kernel::{Errors, ErrorsOut, Pool, PoolKind, Window};
use synfire::shape::{Content, Shape};

use crate::autodiff::{Value, inner_series, leaves, note_errors, numbers};
use crate::outcome::{Outcome, Tolerance};
use crate::random::{Random, Series};
use crate::rig::{Case, Rig, at};

/// What is done with a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Kernel, stride, padding.
    Max(usize, usize, usize),
    /// Kernel.
    Average(usize),
    /// Side of the output.
    Adaptive(usize),
    /// A vector, channel by channel.
    Flatten,
}

/// A pool or flatten at some time steps and its backward over a window.
#[derive(Clone, Copy, Debug)]
pub struct PoolCase {
    /// What is done.
    pub kind: Kind,
    /// Samples in the batch.
    pub samples: usize,
    /// One input sample.
    pub input: Shape,
    /// What the inputs are.
    pub content: Content,
    /// Time steps that run forward.
    pub num_steps: usize,
    /// The window of the backward.
    pub window: usize,
    /// How many of its newest steps an error arrives for.
    pub arrived: usize,
    /// Whether dx is added to what is there.
    pub accumulate: bool,
    /// Whether a convolution writes dy.
    pub of_conv: bool,
}

/// How a case is called on a back end.
enum Call {
    Pool(Pool),
    Flatten,
}

impl PoolCase {
    /// One output sample.
    pub fn output(&self) -> Shape {
        let Shape {
            height,
            width,
            channels,
        } = self.input;
        match self.kind {
            Kind::Max(kernel, stride, padding) => {
                let side = |n: usize| (n + 2 * padding - kernel) / stride + 1;
                Shape::new(side(height), side(width), channels)
            }
            Kind::Average(kernel) => Shape::new(height / kernel, width / kernel, channels),
            Kind::Adaptive(side) => Shape::new(side, side, channels),
            Kind::Flatten => Shape::vector(self.input.elements()),
        }
    }

    /// The steps of the backward and those that an error arrives for.
    pub fn steps(&self) -> (Window, Window) {
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

    /// Inputs and errors, the same every time.
    pub fn data(&self) -> (Series, Series) {
        let mut random = Random::new(23);
        let inputs = self.samples * self.input.elements();
        let outputs = self.samples * self.output().elements();
        let x = random.series(self.content, self.num_steps, inputs);
        (x, random.normal_series(self.num_steps, outputs))
    }

    fn call(&self, rig: &mut Rig) -> Call {
        let (samples, output) = (self.samples, self.output());
        let kind = match self.kind {
            Kind::Max(kernel, stride, padding) => PoolKind::Max {
                kernel,
                stride,
                padding,
                argmax: rig.plain(samples, output, Content::Real, self.window),
            },
            Kind::Average(kernel) => PoolKind::Average { kernel },
            Kind::Adaptive(_) => PoolKind::Adaptive,
            Kind::Flatten => return Call::Flatten,
        };
        Call::Pool(Pool {
            samples,
            input: self.input,
            output,
            kind,
        })
    }

    /// What autodiff says.
    pub fn autodiff(&self) -> Outcome {
        let (x, dy) = self.data();
        let (_, arrived) = self.steps();
        let Shape {
            height,
            width,
            channels,
        } = self.input;
        let xs = leaves(&x, [self.samples, height, width, channels]);
        let ys: Vec<Value> = xs.iter().map(|x| self.plain_form(x.clone())).collect();
        let mut outcome = Outcome::default();
        for (t, y) in ys.iter().enumerate() {
            outcome.note(at("y", t), Tolerance::Forward, numbers(y.clone()));
        }
        let gradients = inner_series(&ys, &dy, arrived).backward();
        note_errors(
            &mut outcome,
            "dx",
            &xs,
            &gradients,
            arrived,
            self.accumulate,
        );
        outcome
    }

    fn plain_form(&self, x: Value) -> Value {
        let x_nchw = x.clone().permute([0, 3, 1, 2]);
        match self.kind {
            Kind::Max(kernel, stride, padding) => first_maximum(&x, kernel, stride, padding),
            Kind::Average(k) => {
                let y = self.output();
                let whole = x.slice(s![.., 0..y.height * k, 0..y.width * k, ..]);
                let windows = [self.samples, y.height, k, y.width, k, y.channels];
                let means = whole.reshape(windows).mean_dims(&[2, 4]);
                means.reshape([self.samples, y.height, y.width, y.channels])
            }
            Kind::Adaptive(side) => bins(&x, side),
            Kind::Flatten => x_nchw.reshape([self.samples, 1, 1, self.input.elements()]),
        }
    }
}

/// Max pool by comparing one pixel after the other: autodiff follows the one that is kept.
pub(crate) fn first_maximum(x: &Value, kernel: usize, stride: usize, padding: usize) -> Value {
    let [_, h, w, _] = x.dims();
    let side = |n: usize| (n + 2 * padding - kernel) / stride + 1;
    let pixel = |row: usize, column: usize| {
        let rows = (row * stride).saturating_sub(padding)..(row * stride + kernel - padding).min(h);
        let columns = move || {
            (column * stride).saturating_sub(padding)..(column * stride + kernel - padding).min(w)
        };
        let pixels = rows.flat_map(move |r| columns().map(move |c| (r, c)));
        let pixels = pixels.map(|(r, c)| x.clone().slice(s![.., r..=r, c..=c, ..]));
        let first = |best: Value, next: Value| {
            let better = next.clone().greater(best.clone());
            best.mask_where(better, next)
        };
        pixels.reduce(first).expect("a window has pixels")
    };
    picture(side(h), side(w), pixel)
}

/// Adaptive average pool by the definition of its bins.
pub(crate) fn bins(x: &Value, side: usize) -> Value {
    let [_, h, w, _] = x.dims();
    let bin = |i: usize, n: usize| i * n / side..((i + 1) * n).div_ceil(side);
    picture(side, side, |row, column| {
        let bin = x.clone().slice(s![.., bin(row, h), bin(column, w), ..]);
        bin.mean_dims(&[1, 2])
    })
}

fn picture(height: usize, width: usize, pixel: impl Fn(usize, usize) -> Value) -> Value {
    let row = |row| Tensor::cat((0..width).map(|column| pixel(row, column)).collect(), 2);
    Tensor::cat((0..height).map(row).collect(), 1)
}

impl Case for PoolCase {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn run(&self, rig: &mut Rig) {
        let (data, dy) = self.data();
        let (window, arrived) = self.steps();
        let (samples, input, output) = (self.samples, self.input, self.output());
        rig.allocate_arenas();
        let call = self.call(rig);
        let x = rig.plain(samples, input, self.content, 1);
        let y_content = match self.kind {
            Kind::Max(..) | Kind::Flatten => self.content,
            Kind::Average(_) | Kind::Adaptive(_) => Content::Real,
        };
        // Read by a convolution, by something else, or by both.
        let slots = [[window.len, 0], [0, 1], [window.len, 1]][samples % 3];
        let y = rig.operand(samples, output, y_content, slots);
        let outputs = samples * output.elements();
        for (t, x_t) in data.iter().enumerate() {
            rig.kernels.write(x, t, x_t);
            match &call {
                Call::Pool(pool) => rig.kernels.pool_forward(pool, t, x, y),
                Call::Flatten => rig.kernels.flatten_forward(samples, input, t, x, y),
            }
            rig.note("y", Tolerance::Forward, y, t, outputs);
        }
        let arriving = rig.written(samples, output, window.len, self.of_conv);
        let dy: Errors = rig.errors_in(arriving, window, arrived, &dy);
        let dx: ErrorsOut = rig.errors_out(samples, input, window, self.accumulate);
        match &call {
            Call::Pool(pool) => rig.kernels.pool_backward(pool, dy, dx),
            Call::Flatten => rig.kernels.flatten_backward(samples, input, dy, dx),
        }
        rig.note_errors("dx", dx, arrived, samples * input.elements());
    }
}

/// Every kind with even and odd sides, spikes with their ties, windows and options in turn.
pub fn all() -> Vec<PoolCase> {
    let kinds = [
        (Kind::Max(3, 2, 1), [(8, 8), (7, 5), (1, 1), (2, 3)]),
        (Kind::Max(2, 2, 0), [(4, 6), (5, 5), (2, 2), (3, 7)]),
        (Kind::Max(3, 1, 2), [(3, 4), (5, 5), (2, 2), (1, 6)]),
        (Kind::Max(2, 3, 1), [(5, 5), (6, 4), (1, 1), (9, 8)]),
        (Kind::Average(2), [(8, 8), (7, 5), (2, 2), (3, 9)]),
        (Kind::Average(3), [(9, 9), (8, 7), (3, 3), (5, 11)]),
        (Kind::Adaptive(7), [(1, 1), (4, 4), (7, 7), (16, 9)]),
        (Kind::Adaptive(1), [(4, 4), (1, 1), (7, 5), (2, 9)]),
        (Kind::Adaptive(3), [(4, 5), (2, 2), (9, 9), (10, 3)]),
        (Kind::Flatten, [(4, 4), (1, 1), (7, 7), (2, 5)]),
    ];
    let mut random = Random::new(3);
    let mut cases = Vec::new();
    for (kind, sides) in kinds {
        for (height, width) in sides {
            for content in [Content::Spikes, Content::Counts, Content::Real] {
                let window = 1 + random.below(4);
                let channels = random.pick(&[1, 3, 16, 33, 64, 70]);
                cases.push(PoolCase {
                    kind,
                    samples: 1 + random.below(3),
                    input: Shape::new(height, width, channels),
                    content,
                    num_steps: window + random.below(3),
                    window,
                    arrived: random.pick(&[1, window]),
                    accumulate: random.coin(),
                    of_conv: false,
                });
            }
        }
    }
    cases
}

/// So many pixels that the blocks of a GPU's kernels take several turns, and in the last of them more than
/// two samples.
pub fn large() -> Vec<PoolCase> {
    vec![PoolCase {
        kind: Kind::Max(2, 1, 0),
        samples: 107,
        input: Shape::new(101, 101, 4),
        content: Content::Real,
        num_steps: 1,
        window: 1,
        arrived: 1,
        accumulate: false,
        of_conv: false,
    }]
}

/// Max pools between neurons and a convolution, which leaves numbers of eight bits.
pub fn between_convolutions() -> Vec<PoolCase> {
    let mut cases = Vec::new();
    for channels in [8, 16, 64, 136, 256] {
        for kind in [Kind::Max(3, 2, 1), Kind::Max(2, 2, 0), Kind::Max(2, 3, 1)] {
            for (arrived, accumulate) in [(1, false), (1, true), (2, false), (2, true)] {
                cases.push(PoolCase {
                    kind,
                    samples: 2,
                    input: Shape::new(7, 6, channels),
                    content: Content::Spikes,
                    num_steps: 3,
                    window: 2,
                    arrived,
                    accumulate,
                    of_conv: true,
                });
            }
        }
    }
    cases
}

//! Convolutions and linear layers.

use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use synfire::kernel::{Arena, Conv, Span, Step, Window};
use synfire::shape::{Content, Shape};

use crate::autodiff::{Value, gradient, inner_series, leaf, leaves, note_errors, numbers};
use crate::outcome::{Outcome, Tolerance};
use crate::random::{Random, Series};
use crate::rig::{Case, Rig, at};

/// A convolution at some time steps and its gradients over a window.
///
/// Between forward and backward the weights change, as they do between two time steps.
#[derive(Clone, Debug)]
pub struct ConvCase {
    /// Samples in the batch.
    pub samples: usize,
    /// One input sample.
    pub input: Shape,
    /// Output channels.
    pub outputs: usize,
    /// Side of the filter, distance between output pixels, zeros around the input.
    pub filter: [usize; 3],
    /// Whether there is a bias.
    pub bias: bool,
    /// What the inputs are.
    pub content: Content,
    /// Plain slots of the input, beside the operand's.
    pub plain_slots: usize,
    /// Time steps that run forward.
    pub num_steps: usize,
    /// The window of the backward.
    pub window: usize,
    /// How many of its newest steps an error arrives for.
    pub arrived: usize,
    /// Whether dx is added to what is there.
    pub accumulate: bool,
}

/// The numbers of a case.
#[derive(Debug)]
pub struct ConvData {
    /// Inputs, NHWC.
    pub x: Series,
    /// Weights of the forward, OIHW.
    pub w: Vec<f32>,
    /// Weights of the backward.
    pub w_of_now: Vec<f32>,
    /// Bias.
    pub b: Vec<f32>,
    /// Errors, NHWC.
    pub dy: Series,
}

impl ConvCase {
    /// A 3 x 3 convolution of spikes, one time step.
    pub fn plain(samples: usize, input: Shape, outputs: usize) -> Self {
        Self {
            samples,
            input,
            outputs,
            filter: [3, 1, 1],
            bias: false,
            content: Content::Spikes,
            plain_slots: 0,
            num_steps: 1,
            window: 1,
            arrived: 1,
            accumulate: false,
        }
    }

    /// One output sample.
    pub fn output(&self) -> Shape {
        let [kernel, stride, padding] = self.filter;
        let side = |n: usize| (n + 2 * padding - kernel) / stride + 1;
        Shape::new(
            side(self.input.height),
            side(self.input.width),
            self.outputs,
        )
    }

    /// The steps of the backward.
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

    /// Numbers in the weight.
    pub fn weight_elements(&self) -> usize {
        self.outputs * self.input.channels * self.filter[0] * self.filter[0]
    }

    /// The same numbers every time.
    pub fn data(&self) -> ConvData {
        let mut random = Random::new(11);
        let fan_in = self.weight_elements() / self.outputs;
        let scale = 1.0 / (fan_in as f32).sqrt();
        let mut weights = || {
            let normal = random.normal(self.weight_elements());
            normal.iter().map(|w| w * scale).collect()
        };
        let (w, w_of_now) = (weights(), weights());
        let inputs = self.samples * self.input.elements();
        let errors = self.samples * self.output().elements();
        ConvData {
            w,
            w_of_now,
            x: random.series(self.content, self.num_steps, inputs),
            b: random.normal(self.outputs),
            dy: random.normal_series(self.num_steps, errors),
        }
    }

    fn conv(&self, weight: Span, bias: Option<Span>) -> Conv {
        let [kernel, stride, padding] = self.filter;
        Conv {
            index: 0,
            samples: self.samples,
            input: self.input,
            output: self.output(),
            kernel,
            stride,
            padding,
            weight,
            bias,
        }
    }

    /// What autodiff says.
    pub fn autodiff(&self) -> Outcome {
        let data = self.data();
        let (_, arrived) = self.steps();
        let [kernel, stride, padding] = self.filter;
        let (input, outputs) = (self.input, self.outputs);
        let options = || ConvOptions::new([stride; 2], [padding; 2], [1; 2], 1);
        let w_dims = [outputs, input.channels, kernel, kernel];
        let xs = leaves(
            &data.x,
            [self.samples, input.height, input.width, input.channels],
        );
        let mut outcome = Outcome::default();
        let forward = |w: &[f32]| {
            let w = leaf(w, w_dims);
            let b = leaf(&data.b, [outputs]);
            let apply = |x: &Value| {
                let x_nchw = x.clone().permute([0, 3, 1, 2]);
                let b = self.bias.then(|| b.clone());
                conv2d(x_nchw, w.clone(), b, options()).permute([0, 2, 3, 1])
            };
            let ys: Vec<_> = xs.iter().map(apply).collect();
            (w, b, ys)
        };
        let (_, _, ys) = forward(&data.w);
        for (t, y) in ys.into_iter().enumerate() {
            outcome.note(at("y", t), Tolerance::Forward, numbers(y));
        }
        let (w, b, ys) = forward(&data.w_of_now);
        let gradients = inner_series(&ys, &data.dy, arrived).backward();
        note_errors(
            &mut outcome,
            "dx",
            &xs,
            &gradients,
            arrived,
            self.accumulate,
        );
        outcome.note("dw", Tolerance::Gradient, gradient(&w, &gradients));
        if self.bias {
            outcome.note("db", Tolerance::Gradient, gradient(&b, &gradients));
        }
        outcome
    }
}

impl Case for ConvCase {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn run(&self, rig: &mut Rig) {
        let data = self.data();
        let (window, arrived) = self.steps();
        let (samples, input, output) = (self.samples, self.input, self.output());
        let (inputs, outputs) = (samples * input.elements(), samples * output.elements());
        let weight = rig.parameter(data.w.len());
        let bias = self.bias.then(|| rig.parameter(self.outputs));
        rig.allocate_arenas();
        rig.kernels
            .write_arena(Arena::Weights, weight.offset, &data.w);
        if let Some(bias) = bias {
            rig.kernels
                .write_arena(Arena::Weights, bias.offset, &data.b);
        }
        let conv = self.conv(weight, bias);
        let slots = [self.window, self.plain_slots];
        let x = rig.operand(samples, input, self.content, slots);
        let y = rig.plain(samples, output, Content::Real, 1);
        for (t, x_t) in data.x.iter().enumerate() {
            rig.kernels.write(x, t, x_t);
            rig.kernels.conv_forward(&conv, t, x, y);
            rig.note("y", Tolerance::Forward, y, t, outputs);
            rig.note("x", Tolerance::Stored, x, t, inputs);
        }
        rig.kernels
            .write_arena(Arena::Weights, weight.offset, &data.w_of_now);
        let dy = rig.errors(samples, output, window, arrived, &data.dy);
        let dx = rig.errors_out(samples, input, window, self.accumulate);
        rig.kernels.conv_data_gradient(&conv, dy, dx);
        rig.kernels.conv_weight_gradient(&conv, x, dy);
        rig.note_errors("dx", dx, arrived, inputs);
        rig.note_arena("dw", Tolerance::Gradient, Arena::Gradients, weight);
        if let Some(bias) = bias {
            rig.note_arena("db", Tolerance::Gradient, Arena::Gradients, bias);
        }
        // Convolutions follow the weights wherever those come from.
        let step = Step::Sgd {
            lr: 0.1,
            momentum: 0.9,
            weight_decay: 1e-3,
        };
        rig.kernels.update(weight, step);
        rig.kernels.conv_forward(&conv, arrived.newest, x, y);
        rig.note("y updated", Tolerance::Forward, y, arrived.newest, outputs);
        rig.kernels.conv_data_gradient(&conv, dy, dx);
        rig.note_errors("dx updated", dx, arrived, inputs);
    }
}

/// Shapes at which back ends change their loops.
pub fn edges() -> Vec<ConvCase> {
    let shape = Shape::new;
    let of = ConvCase::plain;
    let filter = |case: ConvCase, filter| ConvCase { filter, ..case };
    let mut cases = vec![
        of(1, shape(1, 1, 1), 1),
        of(1, shape(2, 3, 1), 2),
        of(2, shape(5, 4, 3), 31),
        of(1, shape(4, 4, 63), 32),
        of(2, shape(6, 6, 64), 33),
        of(1, shape(7, 5, 65), 64),
        of(2, shape(8, 8, 128), 32),
        of(3, shape(9, 9, 64), 64),
        filter(of(2, shape(8, 8, 64), 64), [3, 2, 1]),
        filter(of(2, shape(7, 9, 32), 48), [3, 2, 1]),
        filter(of(2, shape(8, 8, 64), 32), [1, 2, 0]),
        filter(of(2, shape(7, 5, 40), 32), [1, 2, 0]),
        filter(of(1, shape(6, 6, 64), 128), [1, 1, 0]),
        filter(of(1, shape(14, 13, 3), 64), [7, 2, 3]),
        filter(of(1, shape(8, 8, 2), 16), [7, 2, 3]),
        filter(of(2, shape(5, 6, 8), 8), [3, 1, 0]),
        filter(of(1, shape(11, 9, 5), 7), [5, 3, 2]),
        filter(of(1, shape(6, 7, 5), 7), [2, 2, 0]),
        filter(of(4, Shape::vector(100), 10), [1, 1, 0]),
        filter(of(3, Shape::vector(513), 100), [1, 1, 0]),
    ];
    let as_counts = cases.clone().into_iter().map(|case| ConvCase {
        content: Content::Counts,
        plain_slots: 1,
        ..case
    });
    let as_real = cases.clone().into_iter().map(|case| ConvCase {
        content: Content::Real,
        bias: true,
        plain_slots: case.window,
        ..case
    });
    let others: Vec<ConvCase> = as_counts.chain(as_real).collect();
    cases.extend(others);
    cases
}

/// Random shapes, windows and options.
pub fn random(num: usize) -> Vec<ConvCase> {
    let mut random = Random::new(5);
    let mut draw = || {
        let kernel = random.pick(&[1, 1, 2, 3, 3, 3, 5, 7]);
        let stride = random.pick(&[1, 1, 2, 3]);
        let padding = random.below(kernel);
        let side = |random: &mut Random| kernel.max(2 * padding + 1) + random.below(7);
        let channels = random.pick(&[1, 3, 17, 32, 64, 70]);
        let window = 1 + random.below(4);
        ConvCase {
            samples: 1 + random.below(3),
            input: Shape::new(side(&mut random), side(&mut random), channels),
            outputs: random.pick(&[1, 5, 16, 32, 40, 64]),
            filter: [kernel, stride, padding],
            bias: random.coin(),
            content: random.pick(&[Content::Spikes, Content::Counts, Content::Real]),
            plain_slots: random.below(2),
            num_steps: window + random.below(3),
            window,
            arrived: random.pick(&[1, window]),
            accumulate: random.coin(),
        }
    };
    (0..num).map(|_| draw()).collect()
}

//! Every kernel against a loop in f64, for every instruction set of the machine.
use super::{ConvKernel, ConvScratch, ConvShape, Operand, bias_gradient};
use crate::kernel::cpu::simd::Isa;

/// height, width, inputs, outputs, kernel, stride, padding, samples.
const SHAPES: [[usize; 8]; 32] = [
    [5, 7, 1, 4, 3, 1, 1, 3],
    [6, 6, 3, 16, 3, 1, 1, 2],
    [28, 28, 1, 16, 3, 1, 1, 2],
    [7, 5, 4, 5, 3, 2, 1, 2],
    [8, 8, 6, 10, 3, 2, 1, 3],
    [9, 9, 12, 6, 3, 2, 0, 2],
    [10, 6, 54, 33, 3, 1, 1, 2],
    [8, 8, 64, 64, 3, 1, 1, 3],
    [4, 4, 130, 40, 3, 1, 1, 9],
    [8, 8, 64, 128, 3, 2, 1, 2],
    [8, 8, 64, 48, 1, 2, 0, 2],
    [6, 6, 70, 17, 1, 1, 0, 2],
    [5, 5, 5, 20, 1, 1, 3, 2],
    [16, 16, 3, 20, 7, 2, 3, 2],
    [15, 13, 4, 16, 7, 1, 3, 2],
    [7, 7, 8, 16, 7, 1, 0, 3],
    [1, 1, 54, 1000, 1, 1, 0, 4],
    [1, 1, 512, 10, 1, 1, 0, 5],
    [1, 1, 100, 10, 1, 1, 0, 1],
    [1, 1, 7, 6, 3, 1, 1, 4],
    [2, 3, 16, 32, 3, 2, 1, 5],
    [7, 7, 3, 4, 1, 3, 1, 2],
    [9, 8, 5, 7, 2, 2, 0, 2],
    [11, 10, 9, 18, 5, 3, 2, 2],
    [6, 7, 4, 8, 4, 2, 3, 2],
    [12, 11, 48, 32, 3, 1, 1, 3],
    [4, 4, 128, 80, 3, 1, 1, 70],
    [7, 8, 32, 160, 3, 1, 0, 2],
    [8, 6, 32, 32, 3, 1, 2, 2],
    [40, 44, 16, 32, 3, 1, 1, 5],
    [4, 4, 16, 512, 3, 1, 1, 70],
    [40, 33, 10, 16, 3, 1, 0, 2],
];

struct Draw(u64);

impl Draw {
    fn bits(&mut self) -> u64 {
        // Steele, Lea, Flood 2014: SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1_u64 << 24) as f32
    }

    fn reals(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.unit() * 2.0 - 1.0).collect()
    }
}

/// One drawn case: input as numbers, error, weights, bias.
struct Case {
    shape: ConvShape,
    samples: usize,
    bits: Option<Vec<u64>>,
    x: Vec<f32>,
    dy: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
}

impl Case {
    fn draw(shape: ConvShape, samples: usize, density: Option<f32>) -> Self {
        let mut draw = Draw(shape.inputs as u64 * 1000 + shape.outputs as u64);
        let pixels = samples * shape.height * shape.width;
        let mut x = draw.reals(pixels * shape.inputs);
        let mut bits = None;
        if let Some(density) = density {
            let words = shape.words();
            let mut packed = vec![0; pixels * words];
            for (i, x) in x.iter_mut().enumerate() {
                let spike = draw.unit() < density;
                *x = f32::from(u8::from(spike));
                let (pixel, c) = (i / shape.inputs, i % shape.inputs);
                packed[pixel * words + c / 64] |= u64::from(spike) << (c % 64);
            }
            bits = Some(packed);
        }
        let dy = draw.reals(samples * shape.positions() * shape.outputs);
        let w = draw.reals(shape.weights());
        Self {
            shape,
            samples,
            bits,
            x,
            dy,
            w,
            bias: draw.reals(shape.outputs),
        }
    }

    fn operand(&self) -> Operand<'_> {
        self.bits
            .as_ref()
            .map_or(Operand::Real(&self.x), |b| Operand::Spikes(b))
    }

    /// Calls with the indices into x, y and w of every product.
    fn products(&self, mut product: impl FnMut(usize, usize, usize)) {
        let s = &self.shape;
        let (out_height, out_width) = (s.out_height(), s.out_width());
        for position in 0..self.samples * out_height * out_width {
            let (row, ox) = (position / out_width, position % out_width);
            let (n, oy) = (row / out_height, row % out_height);
            for kh in 0..s.kernel {
                for kw in 0..s.kernel {
                    let iy = (oy * s.stride + kh).wrapping_sub(s.padding);
                    let ix = (ox * s.stride + kw).wrapping_sub(s.padding);
                    if iy >= s.height || ix >= s.width {
                        continue;
                    }
                    let pixel = (n * s.height + iy) * s.width + ix;
                    for o in 0..s.outputs {
                        for i in 0..s.inputs {
                            let w = ((o * s.inputs + i) * s.kernel + kh) * s.kernel + kw;
                            product(pixel * s.inputs + i, position * s.outputs + o, w);
                        }
                    }
                }
            }
        }
    }

    /// y, dx, dw by the definition.
    fn expected(&self) -> [Vec<f64>; 3] {
        let bias = |(i, _): (usize, _)| f64::from(self.bias[i % self.shape.outputs]);
        let mut y: Vec<f64> = self.dy.iter().enumerate().map(bias).collect();
        let mut dx = vec![0.0; self.x.len()];
        let mut dw = vec![0.0; self.w.len()];
        self.products(|x, o, w| {
            y[o] += f64::from(self.x[x]) * f64::from(self.w[w]);
            dx[x] += f64::from(self.dy[o]) * f64::from(self.w[w]);
            dw[w] += f64::from(self.x[x]) * f64::from(self.dy[o]);
        });
        [y, dx, dw]
    }

    /// y, dx, dw by the kernels.
    fn computed(&self, isa: Isa) -> [Vec<f32>; 3] {
        let mut scratch = ConvScratch::default();
        let mut kernel = ConvKernel::new(self.shape, isa);
        kernel.set_weights(&self.w);
        let mut y = vec![f32::NAN; self.dy.len()];
        let mut dx = vec![f32::NAN; self.x.len()];
        let mut dw = vec![f32::NAN; self.w.len()];
        // The second round meets scratch that is not zero.
        for _ in 0..2 {
            kernel.forward(
                self.samples,
                self.operand(),
                Some(&self.bias),
                &mut y,
                &mut scratch,
            );
            kernel.data_gradient(self.samples, &self.dy, &mut dx, false, &mut scratch);
            let x = self.operand();
            kernel.weight_gradient(self.samples, x, &self.dy, &mut dw, &mut scratch);
        }
        [y, dx, dw]
    }
}

/// 1e-5 of the largest value: f32 sums of up to 30,000 terms; 1e-6 for results near zero.
fn assert_close(got: &[f32], want: &[f64], what: &str) {
    let largest = want.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(
            error <= 1e-5 * largest + 1e-6,
            "{what}: [{i}] is {got}, should be {want}"
        );
    }
}

fn shapes() -> impl Iterator<Item = (ConvShape, usize)> {
    SHAPES.into_iter().map(|s| {
        let [
            height,
            width,
            inputs,
            outputs,
            kernel,
            stride,
            padding,
            samples,
        ] = s;
        (
            ConvShape {
                height,
                width,
                inputs,
                outputs,
                kernel,
                stride,
                padding,
            },
            samples,
        )
    })
}

fn drawn_shapes() -> impl Iterator<Item = (ConvShape, usize)> {
    let mut draw = Draw(7);
    let mut below = move |n: u64| usize::try_from(draw.bits() % n).expect("small");
    (0..24).map(move |_| {
        let [kernel, stride, padding] = [1 + below(5), 1 + below(3), below(4)];
        let [height, width] = [kernel + below(9), kernel + below(9)];
        let [inputs, outputs] = [1 + below(90), 1 + below(50)];
        let shape = ConvShape {
            height,
            width,
            inputs,
            outputs,
            kernel,
            stride,
            padding,
        };
        (shape, 1 + below(4))
    })
}

#[test]
fn kernels_match_the_definition() {
    for (shape, samples) in shapes().chain(drawn_shapes()) {
        for density in [
            None,
            Some(0.0),
            Some(0.02),
            Some(0.15),
            Some(0.5),
            Some(1.0),
        ] {
            let case = Case::draw(shape, samples, density);
            let want = case.expected();
            for isa in Isa::available() {
                let got = case.computed(isa);
                for (i, name) in ["y", "dx", "dw"].iter().enumerate() {
                    let what =
                        format!("{name} of {shape:?}, {samples} samples, {density:?}, {isa}");
                    assert_close(&got[i], &want[i], &what);
                }
            }
        }
    }
}

fn in_pool<T: Send>(threads: usize, run: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .expect("a pool");
    pool.install(run)
}

#[test]
fn results_have_the_same_bits_at_any_number_of_threads() {
    for (shape, samples) in shapes() {
        for density in [None, Some(0.15), Some(1.0)] {
            let case = Case::draw(shape, samples, density);
            let one = in_pool(1, || case.computed(Isa::best()));
            for threads in [2, 3] {
                let more = in_pool(threads, || case.computed(Isa::best()));
                assert!(one == more, "{shape:?} at {threads} threads");
            }
        }
    }
}

#[test]
fn avx512_and_avx2_have_the_same_bits() {
    if !Isa::Avx512.is_available() {
        return;
    }
    for (shape, samples) in shapes() {
        for density in [None, Some(0.15)] {
            let case = Case::draw(shape, samples, density);
            let same = case.computed(Isa::Avx512) == case.computed(Isa::Avx2);
            assert!(same, "{shape:?}");
        }
    }
}

#[test]
fn batches_larger_than_the_scratch_pass_in_parts() {
    let shape = ConvShape {
        height: 16,
        width: 16,
        inputs: 16,
        outputs: 16,
        kernel: 3,
        stride: 1,
        padding: 1,
    };
    for density in [None, Some(0.15)] {
        let many = Case::draw(shape, 1100, density);
        let [y, dx, dw] = many.computed(Isa::best());
        let mut sums = vec![0.0; dw.len()];
        for first in [0, 550] {
            let part = |v: &[f32]| v[first * v.len() / 1100..][..v.len() / 2].to_vec();
            let half = Case {
                bits: many
                    .bits
                    .as_ref()
                    .map(|b| b[first * 256..][..550 * 256].to_vec()),
                x: part(&many.x),
                dy: part(&many.dy),
                w: many.w.clone(),
                bias: many.bias.clone(),
                ..Case {
                    samples: 550,
                    ..Case::draw(shape, 1, density)
                }
            };
            let got = half.computed(Isa::best());
            assert!(
                got[0] == part(&y) && got[1] == part(&dx),
                "positions do not mix"
            );
            sums.iter_mut()
                .zip(&got[2])
                .for_each(|(s, g)| *s += f64::from(*g));
        }
        assert_close(&dw, &sums, "gradient over all parts");
    }
}

#[test]
fn accumulated_data_gradient_is_the_sum() {
    for (shape, samples) in shapes() {
        let case = Case::draw(shape, samples, None);
        let [_, dx, _] = case.expected();
        let want: Vec<f64> = dx
            .iter()
            .zip(&case.x)
            .map(|(d, x)| d + f64::from(*x))
            .collect();
        for isa in Isa::available() {
            let mut kernel = ConvKernel::new(shape, isa);
            kernel.set_weights(&case.w);
            let mut got = case.x.clone();
            kernel.data_gradient(
                samples,
                &case.dy,
                &mut got,
                true,
                &mut ConvScratch::default(),
            );
            assert_close(&got, &want, &format!("{shape:?}, {isa}"));
        }
    }
}

#[test]
fn bias_gradient_sums_positions() {
    let dy = Draw(3).reals(300 * 21);
    let mut db = vec![f32::NAN; 21];
    bias_gradient(300, &dy, &mut db);
    let want: Vec<f64> = (0..21)
        .map(|c| dy.iter().skip(c).step_by(21).map(|v| f64::from(*v)).sum())
        .collect();
    assert_close(&db, &want, "db");
}

#[test]
#[should_panic(expected = "bits beyond the inputs are zero")]
fn stray_bits_are_refused() {
    let shape = ConvShape {
        height: 1,
        width: 1,
        inputs: 3,
        outputs: 1,
        kernel: 1,
        stride: 1,
        padding: 0,
    };
    let mut kernel = ConvKernel::new(shape, Isa::best());
    let (mut y, mut scratch) = ([0.0], ConvScratch::default());
    kernel.forward(1, Operand::Spikes(&[8]), None, &mut y, &mut scratch);
}

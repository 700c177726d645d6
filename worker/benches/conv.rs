//! Convolutions of MS-ResNet18 on the CPU: forward at N = 16, backward at 2 N = 32, spikes of
//! density 15 %. Items per second are the floating-point operations of the dense definition.
use divan::{Bencher, counter::ItemsCount};
use synfire::kernel::cpu::conv::{ConvKernel, ConvScratch, ConvShape, Operand};
use synfire::kernel::cpu::simd::Isa;

const SAMPLES: usize = 16;
const DENSITY_PERCENT: u64 = 15;
/// Channels and side of the four stages.
const STAGES: [(usize, usize); 4] = [(64, 32), (128, 16), (256, 8), (512, 4)];
const THREADS: [usize; 2] = [1, 2];

fn main() {
    divan::main();
}

/// One stage on so many threads.
#[derive(Clone, Copy)]
struct Stage {
    channels: usize,
    side: usize,
    threads: usize,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}@{} threads={}",
            self.channels, self.side, self.threads
        )
    }
}

fn stages() -> impl Iterator<Item = Stage> {
    STAGES.into_iter().flat_map(|(channels, side)| {
        THREADS.into_iter().map(move |threads| Stage {
            channels,
            side,
            threads,
        })
    })
}

/// A case and the threads that run it.
struct Case {
    pool: rayon::ThreadPool,
    operations: u64,
    inner: Inner,
}

/// Data drawn from a fixed seed.
struct Inner {
    kernel: ConvKernel,
    scratch: ConvScratch,
    weights: Vec<f32>,
    bits: Vec<u64>,
    x: Vec<f32>,
    y: Vec<f32>,
}

impl Case {
    fn new(stage: Stage, samples: usize) -> Self {
        let Stage {
            channels,
            side,
            threads,
        } = stage;
        let shape = ConvShape {
            height: side,
            width: side,
            inputs: channels,
            outputs: channels,
            kernel: 3,
            stride: 1,
            padding: 1,
        };
        let mut state = 1_u64;
        let mut draw = move || {
            // Knuth's MMIX generator; the high bits are good enough to draw spikes.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state >> 33
        };
        let values = samples * side * side * channels;
        let mut bits = vec![0_u64; values / 64];
        for word in &mut bits {
            for bit in 0..64 {
                *word |= u64::from(draw() % 100 < DENSITY_PERCENT) << bit;
            }
        }
        let mut reals = |len: usize| -> Vec<f32> {
            (0..len)
                .map(|_| draw() as f32 / (1_u64 << 31) as f32 - 0.5)
                .collect()
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let inner = Inner {
            kernel: ConvKernel::new(shape, Isa::best()),
            scratch: ConvScratch::default(),
            weights: reals(channels * channels * 9),
            bits,
            x: reals(values),
            y: vec![0.0; values],
        };
        let operations = (values * channels * 9 * 2) as u64;
        Self {
            pool: pool.expect("threads start"),
            operations,
            inner,
        }
    }

    /// Times one call.
    fn run(mut self, bencher: Bencher<'_, '_>, call: impl Fn(&mut Inner) + Sync) {
        let inner = &mut self.inner;
        inner.kernel.set_weights(&inner.weights);
        let mut run = || self.pool.install(|| call(inner));
        run();
        bencher
            .counter(ItemsCount::new(self.operations))
            .bench_local(run);
    }
}

#[divan::bench(args = stages())]
fn forward_spikes(bencher: Bencher<'_, '_>, stage: Stage) {
    Case::new(stage, SAMPLES).run(bencher, |c| {
        let x = Operand::Spikes(&c.bits);
        c.kernel.forward(SAMPLES, x, None, &mut c.y, &mut c.scratch);
    });
}

#[divan::bench(args = stages())]
fn forward_real(bencher: Bencher<'_, '_>, stage: Stage) {
    Case::new(stage, SAMPLES).run(bencher, |c| {
        let x = Operand::Real(&c.x);
        c.kernel.forward(SAMPLES, x, None, &mut c.y, &mut c.scratch);
    });
}

#[divan::bench(args = stages())]
fn data_gradient(bencher: Bencher<'_, '_>, stage: Stage) {
    Case::new(stage, 2 * SAMPLES).run(bencher, |c| {
        c.kernel
            .data_gradient(2 * SAMPLES, &c.x, &mut c.y, false, &mut c.scratch);
    });
}

#[divan::bench(args = stages())]
fn weight_gradient_spikes(bencher: Bencher<'_, '_>, stage: Stage) {
    Case::new(stage, 2 * SAMPLES).run(bencher, |c| {
        let x = Operand::Spikes(&c.bits);
        c.kernel
            .weight_gradient(2 * SAMPLES, x, &c.x, &mut c.weights, &mut c.scratch);
    });
}

#[divan::bench(args = stages())]
fn weight_gradient_real(bencher: Bencher<'_, '_>, stage: Stage) {
    Case::new(stage, 2 * SAMPLES).run(bencher, |c| {
        let x = Operand::Real(&c.x);
        c.kernel
            .weight_gradient(2 * SAMPLES, x, &c.y, &mut c.weights, &mut c.scratch);
    });
}

#[divan::bench(args = stages())]
fn set_weights(bencher: Bencher<'_, '_>, stage: Stage) {
    Case::new(stage, 1).run(bencher, |c| c.kernel.set_weights(&c.weights));
}

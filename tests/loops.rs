//! The reference computes what plain loops in f64 compute.
//!
//! Autodiff (`gradients.rs`) shares burn's convolutions and sums with the reference. These loops
//! share nothing with it.

use synfire::shape::Shape;
use synfire_tests::cases::conv::{self, ConvCase, ConvData};
use synfire_tests::cases::loss::{self, LossCase};
use synfire_tests::cases::norm_lif::{NormLifCase, rows};
use synfire_tests::cases::pool::{self, Kind, PoolCase};
use synfire_tests::cases::update::{self, UpdateCase};
use synfire_tests::outcome::{Outcome, Tolerance};
use synfire_tests::rig::{Case, at, earlier_error, reference, run};

fn hold_to_loops<C: Case>(cases: &[C], loops: impl Fn(&C) -> Outcome) {
    for case in cases {
        loops(case).assert_met_by(&run(case, reference), &case.name());
    }
}

#[test]
fn reference_convolutions_match_loops() {
    hold_to_loops(&conv::edges(), conv_loops);
    hold_to_loops(&conv::random(60), conv_loops);
}

#[test]
fn reference_norms_and_neurons_match_loops() {
    let (parts, sizes) = (rows::parts(), rows::sizes());
    for cases in [
        rows::neurons(),
        rows::norms(),
        parts,
        sizes,
        rows::across(false),
        rows::evaluations(),
    ] {
        hold_to_loops(&cases, NormLifCase::loops);
    }
}

#[test]
fn reference_pools_and_flatten_match_loops() {
    hold_to_loops(&pool::all(), pool_loops);
}

#[test]
fn reference_counts_match_loops() {
    hold_to_loops(&loss::all(), LossCase::loops);
}

#[test]
fn reference_updates_match_loops() {
    hold_to_loops(&update::all(), UpdateCase::loops);
}

/// Where a number lies in NHWC.
fn nhwc(shape: Shape, n: usize, row: usize, column: usize, channel: usize) -> usize {
    ((n * shape.height + row) * shape.width + column) * shape.channels + channel
}

/// Every (n, row, column, channel) of a batch.
fn positions(samples: usize, shape: Shape) -> impl Iterator<Item = [usize; 4]> {
    let [h, w, c] = [shape.height, shape.width, shape.channels];
    (0..samples * shape.elements())
        .map(move |i| [i / (h * w * c), i / (w * c) % h, i / c % w, i % c])
}

#[expect(clippy::cast_possible_truncation, reason = "compared as f32")]
fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|x| *x as f32).collect()
}

/// An error as it should lie in memory.
fn handed_down(t: usize, accumulate: bool, mut error: Vec<f64>) -> Vec<f32> {
    if accumulate {
        let before = earlier_error(t, error.len());
        error
            .iter_mut()
            .zip(before)
            .for_each(|(e, b)| *e += f64::from(b));
    }
    narrow(&error)
}

/// Visits every product of a convolution: positions in x, in w and in y.
fn each_product(case: &ConvCase, mut visit: impl FnMut(usize, usize, usize)) {
    let [kernel, stride, padding] = case.filter;
    let (input, output) = (case.input, case.output());
    for [n, row, column, out] in positions(case.samples, output) {
        let y = nhwc(output, n, row, column, out);
        for tap in 0..kernel * kernel {
            let (r, c) = (row * stride + tap / kernel, column * stride + tap % kernel);
            let (Some(r), Some(c)) = (r.checked_sub(padding), c.checked_sub(padding)) else {
                continue;
            };
            if r >= input.height || c >= input.width {
                continue;
            }
            for i in 0..input.channels {
                let w = (out * input.channels + i) * kernel * kernel + tap;
                visit(nhwc(input, n, r, c, i), w, y);
            }
        }
    }
}

fn conv_loops(case: &ConvCase) -> Outcome {
    let ConvData {
        x,
        w,
        w_of_now,
        b,
        dy,
    } = case.data();
    let (_, arrived) = case.steps();
    let mut outcome = Outcome::default();
    for (t, x) in x.iter().enumerate() {
        let bias = |i: usize| {
            if case.bias {
                f64::from(b[i % case.outputs])
            } else {
                0.0
            }
        };
        let mut y: Vec<f64> = (0..dy[t].len()).map(bias).collect();
        each_product(case, |i, j, k| y[k] += f64::from(x[i]) * f64::from(w[j]));
        outcome.note(at("y", t), Tolerance::Forward, narrow(&y));
    }
    let mut dw = vec![0.0; w.len()];
    let mut db = vec![0.0; case.outputs];
    for t in arrived.newest_first() {
        let (x, dy) = (&x[t], &dy[t]);
        let mut dx = vec![0.0; x.len()];
        each_product(case, |i, j, k| {
            let g = f64::from(dy[k]);
            dx[i] += f64::from(w_of_now[j]) * g;
            dw[j] += f64::from(x[i]) * g;
        });
        for (k, g) in dy.iter().enumerate() {
            db[k % case.outputs] += f64::from(*g);
        }
        let dx = handed_down(t, case.accumulate, dx);
        outcome.note(at("dx", t), Tolerance::Gradient, dx);
    }
    outcome.note("dw", Tolerance::Gradient, narrow(&dw));
    if case.bias {
        outcome.note("db", Tolerance::Gradient, narrow(&db));
    }
    outcome
}

/// The pixels of the input that pixel (row, column) of the output is made of, row-major.
fn made_of(case: &PoolCase, row: usize, column: usize) -> Vec<(usize, usize)> {
    let (input, output) = (case.input, case.output());
    let range = |i: usize, n: usize, o: usize| match case.kind {
        Kind::Max(kernel, stride, padding) => {
            let start = i * stride;
            start.saturating_sub(padding)..(start + kernel - padding).min(n)
        }
        Kind::Average(kernel) => i * kernel..(i + 1) * kernel,
        Kind::Adaptive(_) => {
            let exact = n as f64 / o as f64;
            let covers = |p: &usize| {
                (*p as f64) < (i + 1) as f64 * exact - 1e-9
                    && (p + 1) as f64 > i as f64 * exact + 1e-9
            };
            let mut pixels = (0..n).filter(covers);
            let first = pixels.next().expect("a bin has pixels");
            first..pixels.next_back().unwrap_or(first) + 1
        }
        Kind::Flatten => unreachable!("flatten has no windows"),
    };
    let rows = range(row, input.height, output.height);
    let columns = range(column, input.width, output.width);
    rows.flat_map(|r| columns.clone().map(move |c| (r, c)))
        .collect()
}

fn pool_loops(case: &PoolCase) -> Outcome {
    let (x, dy) = case.data();
    let (_, arrived) = case.steps();
    let (input, output) = (case.input, case.output());
    let mut outcome = Outcome::default();
    for t in 0..case.num_steps {
        let x = &x[t];
        let mut y = vec![0.0; dy[t].len()];
        let mut dx = vec![0.0; x.len()];
        for [n, row, column, channel] in positions(case.samples, output) {
            if case.kind == Kind::Flatten {
                // The vector is in the order of channels, rows, columns.
                let [c, pixel] = [channel / input.pixels(), channel % input.pixels()];
                let i = nhwc(input, n, pixel / input.width, pixel % input.width, c);
                let k = nhwc(output, n, 0, 0, channel);
                y[k] = f64::from(x[i]);
                dx[i] += f64::from(dy[t][k]);
                continue;
            }
            let k = nhwc(output, n, row, column, channel);
            let g = f64::from(dy[t][k]);
            let pixels = made_of(case, row, column);
            let places = pixels.iter().map(|(r, c)| nhwc(input, n, *r, *c, channel));
            let places: Vec<usize> = places.collect();
            if let Kind::Max(..) = case.kind {
                let first = |best: usize, next| if x[next] > x[best] { next } else { best };
                let best = places
                    .into_iter()
                    .reduce(first)
                    .expect("a window has pixels");
                y[k] = f64::from(x[best]);
                dx[best] += g;
            } else {
                let size = places.len() as f64;
                y[k] = places.iter().map(|i| f64::from(x[*i])).sum::<f64>() / size;
                for i in places {
                    dx[i] += g / size;
                }
            }
        }
        outcome.note(at("y", t), Tolerance::Forward, narrow(&y));
        if arrived.newest_first().any(|step| step == t) {
            let dx = handed_down(t, case.accumulate, dx);
            outcome.note(at("dx", t), Tolerance::Gradient, dx);
        }
    }
    outcome
}

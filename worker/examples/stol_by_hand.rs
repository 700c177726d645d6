//! STOL with every number on the table: two neurons, three time steps, a window of two.
//!
//! Each number is computed here in plain arithmetic, beside the equation or the line of
//! Algorithm 1 (Xue, Liu, Wang, Qu) that it comes from. Then the engine does the same, and every
//! number that both have must agree.
//!
//! `cargo run --release --example stol_by_hand`

#![expect(clippy::print_stdout, reason = "the numbers are what it is for")]

use std::error::Error;
use synfire::engine::{Network, plan::Settings};
use synfire::graph::{Graph, Op};
use synfire::kernel::{Arena, Kernels, Loss, Neuron, Norms, Reset, cpu::CpuKernels};
use synfire::learn::{Algorithm, Batch, Input, Learner, Masks, Observer};
use synfire::learn::{optimiser::Optimiser, stol::Stol};
use synfire::shape::Shape;
use synfire_shared::run;

const INPUT: [f32; 3] = [1.0, 0.8, 0.6]; // One number per time step.
const LABEL: usize = 1; // Of two classes.
const TAU_M: f32 = 2.0; // v_th = alpha = 1.
const LR: f32 = 0.1;
const W1: [f32; 2] = [0.9, 1.2]; // Input to neurons; w2: neurons to classes; biases start at 0.
const W2: [f32; 4] = [0.5, -0.3, -0.2, 0.4];

/// Per time step: gradients, then weights after the update, each as w1, b1, w2, b2.
type Numbers = Vec<Vec<f32>>;

fn main() -> Result<(), Box<dyn Error>> {
    let (by_hand, by_engine) = (by_hand(), by_engine()?);
    println!("The engine's gradients and weights:");
    for (t, (hand, engine)) in by_hand.iter().zip(&by_engine).enumerate() {
        assert_eq!(hand.len(), engine.len());
        let distances = hand.iter().zip(engine).map(|(a, b)| (a - b).abs());
        let largest = distances.fold(0.0, f32::max);
        // Some ten roundings to f32 of numbers near 1.
        assert!(largest < 1e-6, "{hand:?}\n{engine:?}");
        println!(
            "  t = {t}: the same {} numbers, largest difference {largest:.0e}",
            hand.len()
        );
    }
    Ok(())
}

fn by_hand() -> Numbers {
    let (mut w1, mut b1, mut w2, mut b2) = (W1, [0.0; 2], W2, [0.0; 2]);
    let (mut u, mut s, mut old) = ([0.0; 2], [0.0; 2], ([0.0; 2], [0.0; 2], 0.0)); // section 3.3
    let mut numbers = Vec::new();
    for (t, &input) in INPUT.iter().enumerate() {
        println!("time step {t}, input {input}, label {LABEL}");
        let x = both(|i| w1[i] * input + b1[i]);
        show("x = w1 input + b1", "line 4", &x);
        u = both(|i| u[i] * (1.0 - s[i]) / TAU_M + x[i]);
        show("u = u (1 - s) / tau_m + x", "Eqs. (1), (2)", &u);
        s = both(|i| f32::from(u8::from(u[i] >= 1.0)));
        show("s = [u >= v_th]", "Eq. (3)", &s);
        let y = both(|c| w2[2 * c] * s[0] + w2[2 * c + 1] * s[1] + b2[c]);
        show("y = w2 s + b2", "the logits", &y);
        let sum = y[0].exp() + y[1].exp();
        let dy = both(|c| y[c].exp() / sum - f32::from(u8::from(c == LABEL)));
        show(
            "dy = softmax(y) - label",
            "line 11; Eq. (11), lambda = 0",
            &dy,
        );
        // Line 15: the readout's older time step gets no error.
        let ds = both(|i| w2[i] * dy[0] + w2[2 + i] * dy[1]);
        show("ds = w2^T dy", "at t alone: line 15", &ds);
        let du = both(|i| ds[i] * surrogate(u[i]));
        show("du = ds H'(u)", "line 17; Eq. (4)", &du);
        let (u_old, s_old, input_old) = old;
        let j = both(|i| (1.0 - s_old[i] - u_old[i] * surrogate(u_old[i])) / TAU_M);
        let du_old = if t == 0 {
            [0.0; 2]
        } else {
            both(|i| du[i] * j[i])
        };
        show("du(t-1) = du du/du(t-1)", "line 17; 0 at t = 0", &du_old);
        let dw1 = both(|i| du[i] * input + du_old[i] * input_old);
        show("dw1 = du input, both steps", "line 18", &dw1);
        let db1 = both(|i| du[i] + du_old[i]);
        let dw2 = [dy[0] * s[0], dy[0] * s[1], dy[1] * s[0], dy[1] * s[1]];
        show("dw2 = dy s^T", "line 18", &dw2);
        step(&mut w1, &dw1);
        step(&mut b1, &db1);
        step(&mut w2, &dw2);
        step(&mut b2, &dy); // db2 = dy
        show("w1 - lr dw1", "line 21", &w1);
        show("w2 - lr dw2", "line 21", &w2);
        println!();
        let parts: [&[f32]; 8] = [&dw1, &db1, &dw2, &dy, &w1, &b1, &w2, &b2];
        numbers.push(parts.concat());
        old = (u, s, input); // Line 7: saved as they were when the time step ran.
    }
    numbers
}

fn both(of: impl Fn(usize) -> f32) -> [f32; 2] {
    [of(0), of(1)]
}

fn surrogate(u: f32) -> f32 {
    (1.0 - (u - 1.0).abs()).max(0.0)
}

fn step(w: &mut [f32], dw: &[f32]) {
    w.iter_mut().zip(dw).for_each(|(w, dw)| *w -= LR * dw);
}

fn show(what: &str, source: &str, values: &[f32]) {
    let values: Vec<String> = values.iter().map(|v| format!("{v:8.5}")).collect();
    println!("  {what:<27}{:<36} {source}", values.join(" "));
}

fn by_engine() -> Result<Numbers, Box<dyn Error>> {
    let mut graph = Graph::new(Shape::vector(1));
    let x = graph.add("hidden", Op::Linear { outputs: 2 }, &[graph.input()])?;
    let s = graph.add("neurons", Op::Lif, &[x])?;
    let y = graph.add("readout", Op::Linear { outputs: 2 }, &[s])?;
    let settings = Settings {
        samples: 1,
        window: 2,
        neuron: Neuron {
            tau_m: TAU_M,
            v_th: 1.0,
            alpha: 1.0,
            reset: Reset::Hard,
            detach_reset: false,
        },
        bn_eps: 1e-5,
        bn_momentum: 0.1,
        dropout_rescale: true,
        seed: 0,
        norms: Norms::Own,
        first_sample: 0,
    };
    let mut kernels = CpuKernels::new(1, None)?;
    let network = Network::new(&graph.finish(y)?, &settings, 1, &mut kernels);
    network.set(&mut kernels, "hidden.weight", &W1)?;
    network.set(&mut kernels, "readout.weight", &W2)?;
    let (lr, momentum, weight_decay) = (f64::from(LR), 0.0, 0.0);
    let (samples, classes, ce, mse) = (1, 2, 1.0, 0.0);
    let mut learner = Learner::new(
        network,
        Loss {
            samples,
            classes,
            ce,
            mse,
        },
        Optimiser::new(run::Optimiser::Sgd {
            lr,
            momentum,
            weight_decay,
        }),
    );
    let batch = Batch {
        index: 0,
        input: Input::Frames(&INPUT),
        labels: &[u32::try_from(LABEL)?],
        num_time_steps: INPUT.len(),
        masks: Masks::Keyed,
    };
    let mut seen = Seen(Vec::new());
    Stol { window: 2 }.learn(&mut learner, &mut kernels, &batch, &mut seen)?;
    Ok(seen.0)
}

struct Seen(Numbers);

impl Observer for Seen {
    fn after_update(&mut self, network: &Network, kernels: &mut dyn Kernels) {
        let names = [
            "hidden.weight",
            "hidden.bias",
            "readout.weight",
            "readout.bias",
        ];
        let tensors = [Arena::Gradients, Arena::Weights].map(|arena| {
            let get = |name| network.get(kernels, arena, name).expect("the graph has it");
            names.map(get).concat()
        });
        self.0.push(tensors.concat());
    }
}

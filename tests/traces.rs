//! Recorded runs of an independent implementation, replayed number by number.

use std::path::{Path, PathBuf};

use synfire::engine::plan::{Plan, Settings};
use synfire::kernel::cpu::CpuKernels;
use synfire::kernel::{Arena, Kernels, Norms};
use synfire::trace::algorithm::{AlgorithmTrace, TracedAlgorithm};
use synfire::trace::common::CommonTrace;
use synfire::trace::compare::{Comparison, Quantity};
use synfire::trace::file;
use synfire::trace::replay::replay;
use synfire_tests::rig::reference;
use synfire_tests::training::{back_ends, cpu};

const NETS: [&str; 4] = ["mlp", "vgg", "ms", "sew"];
const ALGORITHMS: [&str; 6] = [
    "stol_k2_saved",
    "stol_k2_saved_soft",
    "stol_k3_saved",
    "stol_k4_saved",
    "bptt",
    "bptt_detach_reset",
];

/// A golden file: of this repository, or where `SYNFIRE_GOLDEN` says that they are on a machine without it.
fn path(name: &str) -> PathBuf {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let golden = std::env::var_os("SYNFIRE_GOLDEN").map_or_else(here, PathBuf::from);
    golden.join(format!("{name}.safetensors"))
}

fn common(net: &str) -> CommonTrace {
    CommonTrace::read(&path(&format!("{net}.common"))).expect("golden files load")
}

fn trace(net: &str, algorithm: &str) -> AlgorithmTrace {
    let path = path(&format!("{net}.{algorithm}"));
    AlgorithmTrace::read(&path, &common(net)).expect("golden files load")
}

/// A trace that claims something else: in the string `key`, `from` has become `to`.
fn edited(net: &str, algorithm: &str, [key, from, to]: [&str; 3]) -> AlgorithmTrace {
    let mut file = file::read(&path(&format!("{net}.{algorithm}"))).expect("golden files load");
    let text = file
        .metadata
        .get_mut(key)
        .expect("every trace has this key");
    assert!(text.contains(from), "{text}");
    *text = text.replace(from, to);
    AlgorithmTrace::from_file(&file, &common(net)).expect("the edited file is well formed")
}

fn replayed(net: &str, trace: &AlgorithmTrace, kernels: &mut dyn Kernels) -> Comparison {
    replay(&common(net), trace, kernels).expect("the algorithm is built")
}

/// Every quantity of the trace was compared, at every time step and update.
fn assert_complete(net: &str, trace: &AlgorithmTrace, comparison: &Comparison) {
    let common = common(net);
    let count = |quantity| {
        let all = comparison.deviations().filter(|(q, _)| *q == quantity);
        all.count()
    };
    let parameters = common.graph.parameters().len();
    let statistics = 2 * common.graph.batch_norms().len();
    let (steps, updates) = (trace.num_time_steps, trace.num_updates);
    for (quantity, expected) in [
        (Quantity::Loss, steps),
        (Quantity::Logits, steps),
        (Quantity::Spikes, steps * common.lif_order.len()),
        (Quantity::Statistic, steps * statistics),
        (Quantity::Gradient, updates * parameters),
        (Quantity::Parameter, updates * parameters),
    ] {
        assert_eq!(count(quantity), expected, "{}: {quantity}", trace.name);
    }
    assert!(
        comparison.waiting().is_empty(),
        "{:?}",
        comparison.waiting()
    );
}

/// Replays every trace of a net; returns how many there were.
fn assert_net_passes(net: &str) {
    let mut found = 0;
    for algorithm in ALGORITHMS {
        let trace = trace(net, algorithm);
        for mut kernels in back_ends() {
            let comparison = replayed(net, &trace, &mut *kernels);
            assert_complete(net, &trace, &comparison);
            assert!(
                comparison.passed(),
                "{net}.{algorithm} on {}:\n{comparison}",
                kernels.name()
            );
        }
        found += 1;
    }
    assert_eq!(found, 6);
}

#[test]
fn every_trace_of_mlp_replays_on_every_back_end() {
    assert_net_passes("mlp");
}

#[test]
fn every_trace_of_vgg_replays_on_every_back_end() {
    assert_net_passes("vgg");
}

#[test]
fn every_trace_of_ms_replays_on_every_back_end() {
    assert_net_passes("ms");
}

#[test]
fn every_trace_of_sew_replays_on_every_back_end() {
    assert_net_passes("sew");
}

#[test]
fn there_are_24_golden_traces_and_no_others() {
    let folder = path("x");
    let entries = std::fs::read_dir(folder.parent().expect("it has a folder"));
    let names = entries.expect("golden files are there").map(|entry| {
        let name = entry.expect("the folder can be listed").file_name();
        name.into_string().expect("names are plain")
    });
    let mut names: Vec<String> = names
        .filter_map(|name| name.strip_suffix(".safetensors").map(str::to_owned))
        .filter(|name| name != "ops" && !name.ends_with(".common"))
        .collect();
    let replayed = NETS
        .iter()
        .flat_map(|net| ALGORITHMS.map(|a| format!("{net}.{a}")));
    let mut expected: Vec<String> = replayed.collect();
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
    assert_eq!(names.len(), 24);
}

/// Replays under the wrong option on both back ends: both must notice.
fn assert_refused(net: &str, algorithm: &str, edit: [&str; 3]) {
    let trace = edited(net, algorithm, edit);
    for mut kernels in [reference(), cpu(2)] {
        let comparison = replayed(net, &trace, &mut *kernels);
        let name = kernels.name();
        assert!(
            !comparison.passed(),
            "{net}.{algorithm}, {edit:?}, on {name}"
        );
        // Not by a hair: what the option changes is no rounding.
        let ratios = comparison.deviations().map(|(_, d)| d.ratio);
        assert!(ratios.fold(0.0, f64::max) > 100.0, "{name}:\n{comparison}");
    }
}

#[test]
fn a_trace_of_window_3_is_refused_under_window_2() {
    for net in NETS {
        assert_refused(net, "stol_k3_saved", ["args", r#""k": 3"#, r#""k": 2"#]);
    }
}

#[test]
fn a_trace_of_window_2_is_refused_under_windows_1_and_3() {
    for net in NETS {
        assert_refused(net, "stol_k2_saved", ["args", r#""k": 2"#, r#""k": 1"#]);
        assert_refused(net, "stol_k2_saved", ["args", r#""k": 2"#, r#""k": 3"#]);
    }
}

#[test]
fn a_trace_of_soft_reset_is_refused_under_hard_reset_and_the_other_way_round() {
    for net in NETS {
        assert_refused(net, "stol_k2_saved_soft", ["neuron", "soft", "hard"]);
        assert_refused(net, "stol_k2_saved", ["neuron", "hard", "soft"]);
    }
}

#[test]
fn a_trace_of_one_leak_is_refused_under_another() {
    for net in NETS {
        let own = trace(net, "stol_k2_saved").neuron.tau_m;
        let (from, to) = (format!(r#""tau": {own:?}"#), r#""tau": 3.0"#);
        assert_refused(net, "stol_k2_saved", ["neuron", &from, to]);
    }
}

#[test]
fn bptt_with_and_without_a_detached_reset_are_told_apart() {
    for net in NETS {
        let (mut plain, mut detached) = (trace(net, "bptt"), trace(net, "bptt"));
        assert!(!plain.neuron.detach_reset);
        detached.neuron.detach_reset = true;
        assert!(replayed(net, &plain, &mut *cpu(1)).passed());
        assert!(!replayed(net, &detached, &mut *cpu(1)).passed());
        plain = trace(net, "bptt_detach_reset");
        assert!(plain.neuron.detach_reset);
        plain.neuron.detach_reset = false;
        assert!(!replayed(net, &plain, &mut *cpu(1)).passed());
    }
}

#[test]
fn one_number_that_is_off_by_ten_tolerances_is_noticed() {
    let mut file = file::read(&path("mlp.stol_k2_saved")).expect("golden files load");
    let gradients = file
        .tensors
        .iter_mut()
        .find(|(name, _)| name.starts_with("grad/"));
    let (_, gradient) = gradients.expect("a trace has gradients");
    let file::TensorData::F32(values) = &mut gradient.data else {
        panic!("gradients are floats");
    };
    let largest = values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    values[0] += 1e-3 * largest + 1e-5;
    let trace = AlgorithmTrace::from_file(&file, &common("mlp")).expect("it is well formed");
    assert!(!replayed("mlp", &trace, &mut *cpu(1)).passed());
}

/// The bits of all weights, velocities and running statistics after a replay.
fn bits_after(net: &str, trace: &AlgorithmTrace, threads: usize) -> Vec<u32> {
    let mut kernels = CpuKernels::new(threads, None).expect("the system has threads");
    replayed(net, trace, &mut kernels);
    let common = common(net);
    let window = match trace.algorithm {
        TracedAlgorithm::Stol { window, .. } => window,
        TracedAlgorithm::Bptt => common.num_time_steps,
        TracedAlgorithm::Sltt | TracedAlgorithm::Fptt | TracedAlgorithm::Ottt => 1,
    };
    let settings = Settings {
        samples: common.num_samples,
        window,
        neuron: trace.neuron,
        bn_eps: common.bn_eps,
        bn_momentum: common.bn_momentum,
        dropout_rescale: false,
        seed: 0,
        norms: Norms::Own,
        first_sample: 0,
    };
    let layout = Plan::new(&common.graph, &settings).layout;
    let mut bits = Vec::new();
    for (arena, len) in [
        (Arena::Weights, layout.len()),
        (Arena::State, layout.len()),
        (Arena::Statistics, layout.statistics_len()),
    ] {
        let mut values = vec![0.0; len];
        kernels.read_arena(arena, 0, &mut values);
        bits.extend(values.into_iter().map(f32::to_bits));
    }
    bits
}

#[test]
fn replays_give_the_same_bits_with_one_two_and_three_threads() {
    for net in ["ms", "sew", "vgg"] {
        for algorithm in ALGORITHMS {
            let trace = trace(net, algorithm);
            let one = bits_after(net, &trace, 1);
            assert!(one.iter().any(|bits| *bits != 0));
            for threads in [2, 3] {
                let more = bits_after(net, &trace, threads);
                assert!(one == more, "{net}.{algorithm} with {threads} threads");
            }
        }
    }
}

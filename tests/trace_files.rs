//! Trace files are read as what they are, or refused with one line; never more, never less.

use std::path::{Path, PathBuf};

use synfire::kernel::Kernels;
use synfire::kernel::reference::ReferenceKernels;
use synfire::trace::TraceError;
use synfire::trace::algorithm::{
    AlgorithmTrace, TracedAlgorithm, TracedHistory, TracedMode, TracedUpdate,
};
use synfire::trace::common::{CommonTrace, TracedLoss};
use synfire::trace::compare::Quantity;
use synfire::trace::file::{self, TensorData, TraceFile};

#[path = "trace_files/layers.rs"]
mod layers;
#[path = "trace_files/mutated.rs"]
mod mutated;
#[path = "trace_files/refused.rs"]
mod refused;

const NETS: [&str; 4] = ["mlp", "vgg", "ms", "sew"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(format!("{name}.safetensors"))
}

fn load(name: &str) -> TraceFile {
    file::read(&golden(name)).expect("golden files are well formed")
}

fn reference() -> Box<dyn Kernels> {
    Box::new(ReferenceKernels::new())
}

/// The one line of an error.
fn line(error: &TraceError) -> String {
    let line = error.to_string();
    assert!(
        !line.trim().is_empty() && line.lines().count() == 1,
        "{line:?}"
    );
    assert!(line.len() < 4_000, "{} bytes", line.len());
    line
}

fn refused<T>(result: Result<T, TraceError>) -> String {
    line(&result.err().expect("this file must be refused"))
}

/// Loads every trace of a folder; returns how many there were and what cannot be replayed yet.
fn load_all(folder: &Path) -> (usize, Vec<String>) {
    let mut missing = Vec::new();
    let mut count = 0;
    for net in NETS {
        let path = folder.join(format!("{net}.common.safetensors"));
        let common = CommonTrace::read(&path).expect("common files load");
        let entries = std::fs::read_dir(folder).expect("the folder of traces is there");
        for entry in entries {
            let path = entry.expect("the folder can be listed").path();
            let name = path
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            let Some(algorithm) = name.strip_prefix(&format!("{net}.")) else {
                continue;
            };
            count += 1;
            if algorithm != "common.safetensors" {
                let trace = AlgorithmTrace::read(&path, &common);
                let trace = trace.unwrap_or_else(|e| panic!("{e}"));
                missing.extend(trace.algorithm.not_built());
            }
        }
    }
    missing.sort();
    missing.dedup();
    (count, missing)
}

#[test]
fn every_golden_trace_loads_and_can_be_replayed() {
    let (count, missing) = load_all(golden("x").parent().expect("golden files lie in a folder"));
    assert_eq!(count, 28);
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
#[ignore = "needs SYNFIRE_SHARED"]
fn needs_shared_every_recorded_trace_loads() {
    let shared = std::env::var("SYNFIRE_SHARED").expect("SYNFIRE_SHARED names the shared folder");
    let folder = Path::new(&shared).join("traces");
    let (count, missing) = load_all(&folder);
    assert_eq!(count, 65);
    let expected = [
        "algorithm fptt",
        "algorithm ottt",
        "algorithm sltt",
        "history = recomputed",
        "history = recomputed, mode = o",
        "history = recomputed, mode = t",
        "mode = t",
    ];
    assert_eq!(missing, expected);
    file::read(&folder.join("ops.safetensors")).expect("the single layers load");
}

#[test]
fn a_common_trace_has_what_its_file_says() {
    let file = load("vgg.common");
    let common = CommonTrace::from_file(&file).expect("it loads");
    assert_eq!(
        (
            common.num_batches,
            common.num_time_steps,
            common.num_samples
        ),
        (2, 4, 3)
    );
    assert_eq!((common.num_classes, common.loss), (5, TracedLoss::CeMse));
    assert_eq!(common.neuron.tau_m.to_bits(), 4.0_f32.to_bits());
    assert_eq!(common.lif_order, ["sn1", "sn2", "sn3"]);
    assert_eq!(common.param_order.len(), 14);
    assert_eq!(common.neurons("sn1"), 3 * 4 * 10 * 10);
    assert_eq!(common.parameter("conv2.weight").len(), 6 * 4 * 9);
    assert_eq!(common.buffer("bn1.running_var"), [1.0; 4]);
    assert_eq!(common.labels(1).len(), 3);
    assert_eq!(common.mask("head.drop", 1, 3).len(), 3 * 54);
    assert!(common.is_bias_before_norm("conv1.bias"));
    for other in ["conv1.weight", "fc.bias", "bn1.bias", "nothing.bias"] {
        assert!(!common.is_bias_before_norm(other), "{other}");
    }
    // NCHW [2, 4, 3, 2, 10, 10] in the file, channels last here.
    let TensorData::F32(stored) = &file.tensors["input"].data else {
        panic!("inputs are floats");
    };
    let (batch, t, sample, channel, row, column) = (1, 2, 1, 1, 4, 7);
    let at = ((((batch * 4 + t) * 3 + sample) * 2 + channel) * 10 + row) * 10 + column;
    let here = ((sample * 10 + row) * 10 + column) * 2 + channel;
    let input = common.input(batch, t);
    assert_eq!(input.len(), 3 * 200);
    assert_eq!(input[here].to_bits(), stored[at].to_bits());
}

#[test]
fn an_algorithm_trace_has_what_its_file_says() {
    let common = CommonTrace::from_file(&load("vgg.common")).expect("it loads");
    let read = |name| AlgorithmTrace::from_file(&load(name), &common).expect("it loads");
    let stol = read("vgg.stol_k3_saved");
    let expected = TracedAlgorithm::Stol {
        window: 3,
        history: TracedHistory::Saved,
        mode: TracedMode::S,
    };
    assert_eq!(
        (stol.algorithm, stol.update),
        (expected, TracedUpdate::TimeStep)
    );
    assert_eq!((stol.num_time_steps, stol.num_updates), (8, 8));
    assert_eq!(stol.expected(Quantity::Logits, "", 7).len(), 3 * 5);
    assert_eq!(stol.expected(Quantity::Spikes, "", 0).len(), 3);
    assert_eq!(stol.expected(Quantity::Loss, "", 0).len(), 1);
    let bptt = read("vgg.bptt_detach_reset");
    assert!(bptt.neuron.detach_reset && !common.neuron.detach_reset);
    assert_eq!((bptt.update, bptt.num_updates), (TracedUpdate::Batch, 2));
    assert_eq!(
        bptt.expected(Quantity::Gradient, "conv2.weight", 1).len(),
        6 * 4 * 9
    );
    assert_eq!(
        bptt.expected(Quantity::Statistic, "bn2.running_mean", 7)
            .len(),
        6
    );
    // Firing rates are counts: of whole neurons.
    for row in 0..8 {
        let rates = stol.expected(Quantity::Spikes, "", row);
        for (rate, layer) in rates.iter().zip(&common.lif_order) {
            let spikes = f64::from(*rate) * common.neurons(layer) as f64;
            assert!((spikes - spikes.round()).abs() < 1e-3, "{spikes}");
        }
    }
}

#[test]
fn a_written_trace_reads_back_and_always_has_the_same_bytes() {
    let original = load("vgg.common");
    let bytes = file::to_bytes(&original, "vgg").expect("it fits");
    assert_eq!(file::to_bytes(&original, "other").expect("it fits"), bytes);
    let again = file::parse(&bytes, &original.name).expect("it reads back");
    assert_eq!(again, original);
    // The crate of the format agrees.
    let theirs = safetensors::SafeTensors::deserialize(&bytes).expect("the format is right");
    assert_eq!(theirs.len(), original.tensors.len());
    let labels = theirs.tensor("labels").expect("it has labels");
    assert_eq!(
        (labels.dtype(), labels.shape()),
        (safetensors::Dtype::I64, &[2, 3][..])
    );

    let folder = std::env::temp_dir().join(format!("synfire-trace-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    let path = folder.join("vgg.safetensors");
    for _ in 0..2 {
        file::write(&path, &original).expect("it can be written");
    }
    let left: Vec<_> = std::fs::read_dir(&folder).expect("it is there").collect();
    assert_eq!(left.len(), 1, "no temporary file may remain: {left:?}");
    assert_eq!(std::fs::read(&path).expect("it is there"), bytes);
    let missing = file::write(&folder.join("no/such/folder.safetensors"), &original);
    assert!(refused(missing).contains("cannot write"));
    assert!(refused(file::read(&folder)).contains("not a regular file"));
    assert!(refused(file::read(&folder.join("none"))).contains("cannot read"));
    std::fs::remove_dir_all(&folder).expect("it can be removed");
}

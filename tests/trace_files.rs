//! Trace files are read as what they are, or refused with one line; never more, never less.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};
use synfire::kernel::Kernels;
use synfire::kernel::reference::ReferenceKernels;
use synfire::trace::algorithm::{
    AlgorithmTrace, TracedAlgorithm, TracedHistory, TracedMode, TracedUpdate,
};
use synfire::trace::common::{CommonTrace, TracedLoss};
use synfire::trace::compare::Quantity;
use synfire::trace::file::{self, TensorData, TraceFile, TraceTensor};
use synfire::trace::{TraceError, ops};

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
fn the_reference_passes_every_single_layer() {
    let comparison = ops::check(&load("ops"), &mut reference).expect("the cases fit");
    println!("{comparison}");
    assert!(comparison.passed(), "\n{comparison}");
    // Modes t and o of each reset.
    assert_eq!(comparison.waiting().len(), 6);
}

#[test]
fn a_layer_that_is_off_does_not_pass() {
    for tensor in [
        "conv3x3_s2/y",
        "bn/grad/weight",
        "lif_soft/gu_old_s",
        "loss/paper/value",
    ] {
        let mut file = load("ops");
        let TensorData::F32(values) = &mut file.tensors.get_mut(tensor).expect(tensor).data else {
            panic!("{tensor} has floats");
        };
        let last = values.last_mut().expect("no tensor is empty");
        *last += 0.01;
        let comparison = ops::check(&file, &mut reference).expect("the cases fit");
        assert!(!comparison.passed(), "{tensor}\n{comparison}");
    }
    let mut file = load("ops");
    let TensorData::I64(argmax) = &mut file.tensors.get_mut("maxpool_ties/argmax").expect("").data
    else {
        panic!("positions are whole numbers");
    };
    argmax[3] += 1;
    let comparison = ops::check(&file, &mut reference).expect("the cases fit");
    assert!(!comparison.passed(), "{comparison}");
}

#[test]
fn layers_that_do_not_fit_or_are_unknown_are_refused() {
    let reshape = |tensor: &str, shape: &[usize]| {
        let mut file = load("ops");
        let elements = shape.iter().product();
        let tensor = file.tensors.get_mut(tensor).expect("the tensor is there");
        *tensor = TraceTensor::f32(shape, vec![0.0; elements]);
        refused(ops::check(&file, &mut reference))
    };
    assert!(reshape("conv3x3_s1/y", &[2, 4, 7, 5]).contains("\"conv3x3_s1/y\""));
    assert!(reshape("conv3x3_s1/param/weight", &[4, 5, 9, 9]).contains("conv3x3_s1"));
    assert!(reshape("conv3x3_s1/param/weight", &[4, 5, 0, 0]).contains("conv3x3_s1"));
    assert!(reshape("linear/x", &[]).contains("\"linear/x\""));
    assert!(reshape("lif_hard/x", &[3, 0, 6]).contains("\"lif_hard/x\""));
    assert!(reshape("bn/gy", &[3, 4, 5, 6]).contains("\"bn/gy\""));
    assert!(reshape("loss/labels", &[4]).contains("\"loss/labels\""));
    let mut file = load("ops");
    file.tensors
        .insert("conv5x5/x".into(), TraceTensor::f32(&[1], vec![1.0]));
    assert!(refused(ops::check(&file, &mut reference)).contains("\"conv5x5/x\""));
    file.tensors.remove("conv5x5/x");
    file.tensors.remove("linear/gx");
    assert!(refused(ops::check(&file, &mut reference)).contains("\"linear/gx\" is missing"));
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

/// A file of this header and this many bytes of data.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn broken_headers_are_refused_and_name_the_tensor() {
    let entry = |dtype: &str, shape: &str, start: u64, end: u64| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let (a, b) = (entry("F32", "[2]", 0, 8), entry("F32", "[2]", 8, 16));
    let good = format!(r#"{{"a":{a},"b":{b}}}"#);
    assert!(file::parse(&raw(&good, 16), "x").is_ok());
    let huge = entry("F32", "[1000000000000000000,1000000000000000000]", 0, 8);
    let far = entry("F32", "[1000000000000000000]", 0, 4_000_000_000_000_000_000);
    let deep = entry("F32", "[1,1,1,1,1,1,1,1,2]", 0, 8);
    for (header, data, needle) in [
        (
            format!(r#"{{"a":{a},"a":{b}}}"#),
            16,
            "\"a\": the name occurs twice",
        ),
        (format!(r#"{{"a":{a},"b":{a}}}"#), 8, "overlap"),
        (format!(r#"{{"b":{b}}}"#), 16, "\"b\": it begins at byte 8"),
        (good.clone(), 12, "\"b\": it lies at bytes 8 to 16 of 12"),
        (good.clone(), 17, "1 bytes follow"),
        (format!(r#"{{"a":{huge}}}"#), 8, "\"a\": shape"),
        (format!(r#"{{"a":{far}}}"#), 8, "\"a\": it lies at bytes"),
        (format!(r#"{{"a":{deep}}}"#), 8, "9 dimensions"),
        (
            format!(r#"{{"a":{}}}"#, entry("F32", "[3]", 0, 8)),
            8,
            "does not fit its 8 bytes",
        ),
        (
            format!(r#"{{"a":{}}}"#, entry("F32", "[2]", 8, 0)),
            8,
            "\"a\": it lies at",
        ),
        (
            format!(r#"{{"a":{}}}"#, entry("F16", "[4]", 0, 8)),
            8,
            "\"a\": its numbers are F16",
        ),
        (
            format!(r#"{{"a":{}}}"#, entry("F\\n3", "[4]", 0, 8)),
            8,
            "\"a\"",
        ),
        (
            format!(r#"{{"a":{}}}"#, entry("F32", "[-2]", 0, 8)),
            8,
            "\"a\"",
        ),
        (r#"{"__metadata__":{"k":1}}"#.into(), 0, "__metadata__"),
        (
            r#"{"__metadata__":{"k":"1","k":"2"}}"#.into(),
            0,
            "\"k\" occurs twice",
        ),
        (
            r#"{"__metadata__":{},"__metadata__":{}}"#.into(),
            0,
            "occurs twice",
        ),
        ("[]".into(), 0, "its header cannot be read"),
        (
            format!("{}1{}", "[".repeat(9_000), "]".repeat(9_000)),
            0,
            "cannot be read",
        ),
        (format!(r#"{{"{}":1}}"#, "x".repeat(100_000)), 0, "(cut)"),
    ] {
        let error = refused(file::parse(&raw(&header, data), "file.safetensors"));
        assert!(
            error.contains(needle) && error.contains("file.safetensors"),
            "{error}"
        );
    }
    let error = refused(file::parse(&u64::MAX.to_le_bytes(), "x"));
    assert!(error.contains("more than the limit"), "{error}");
    let wide = raw(&format!(r#"{{"a":{}}}"#, entry("F64", "[1]", 0, 8)), 8);
    let wide = file::parse(&wide, "x").expect("F64 is converted");
    assert_eq!(wide.tensors["a"], TraceTensor::f32(&[1], vec![0.0]));
}

/// A common file with its graph edited.
fn with_graph(net: &str, edit: impl FnOnce(&mut Vec<Value>)) -> TraceFile {
    let mut file = load(&format!("{net}.common"));
    let mut nodes: Vec<Value> = serde_json::from_str(&file.metadata["graph"]).expect("it is JSON");
    edit(&mut nodes);
    file.metadata
        .insert("graph".into(), Value::from(nodes).to_string());
    file
}

#[test]
fn graphs_that_are_none_are_refused_and_name_the_node() {
    let check = |net, needle: &str, edit: fn(&mut Vec<Value>)| {
        let error = refused(CommonTrace::from_file(&with_graph(net, edit)));
        assert!(error.contains(needle), "{needle}: {error}");
    };
    check("vgg", "\"conv1\" reads value \"sn3\"", |n| {
        n[0]["ins"] = json!(["sn3"])
    });
    check("vgg", "\"sn1\" reads value \"nowhere\"", |n| {
        n[2]["ins"] = json!(["nowhere"])
    });
    check("vgg", "\"sn1\" (lif) reads 2 values", |n| {
        n[2]["ins"] = json!(["bn1", "x"])
    });
    check("vgg", "\"sn1\" (lif) reads 0 values", |n| {
        n[2]["ins"] = json!([])
    });
    check("vgg", "\"sn1\": the operation \"gru\" is unknown", |n| {
        n[2]["kind"] = json!("gru")
    });
    check("vgg", "\"conv1\": the attribute \"dilation\"", |n| {
        n[0]["attrs"]["dilation"] = json!(2);
    });
    check("vgg", "\"conv1\": conv needs the attribute \"s\"", |n| {
        n[0]["attrs"] = json!({})
    });
    check("vgg", "\"conv1\": conv needs the attribute \"p\"", |n| {
        n[0]["attrs"]["p"] = json!(-1);
    });
    check("vgg", "\"conv1\": the stride is 1000000000000000000", |n| {
        n[0]["attrs"]["s"] = json!(1_000_000_000_000_000_000_u64);
    });
    check("vgg", "\"head.pool\": the output side", |n| {
        n[11]["attrs"]["o"] = json!(1_000_000_000_000_000_000_u64);
    });
    check("vgg", "\"head.drop\" (dropout)", |n| {
        n[13]["attrs"]["p"] = json!(1.0)
    });
    check("vgg", "\"head.drop\": dropout needs", |n| {
        n[13]["attrs"]["p"] = json!("x")
    });
    check("vgg", "unknown field", |n| n[0]["shape"] = json!([1]));
    check("vgg", "names must be unique", |n| {
        n[1]["name"] = json!("conv1")
    });
    check("vgg", "1 to 200 bytes", |n| {
        n[1]["out"] = json!("x".repeat(300))
    });
    check("vgg", "\"param/conv9.weight\" is missing", |n| {
        n[0]["name"] = json!("conv9")
    });
    check("vgg", "no node makes the value \"fc\"", |n| drop(n.pop()));
    check("vgg", "node 1 (after \"conv1\")", |n| {
        n[1]["attrs"] = json!(3)
    });
    check("ms", "(add) does not fit its input", |n| {
        n[8]["ins"] = json!(["layer1.0.bn2", "x"])
    });
    check("mlp", "has a bias", |n| {
        n[0]["attrs"] = json!({"bias": false})
    });
    check("mlp", "more nodes than the limit of 10000", |n| {
        *n = vec![n[1].clone(); 10_001];
    });
    check("mlp", "never read", |n| {
        n.push(json!({"kind": "lif", "name": "more", "ins": ["fc1"], "out": "more"}));
    });
}

#[test]
fn metadata_that_are_wrong_are_refused_and_name_the_key() {
    let check = |key: &str, value: Option<&str>, needle: &str| {
        let mut file = load("vgg.common");
        match value {
            Some(value) => file.metadata.insert(key.into(), value.into()),
            None => file.metadata.remove(key),
        };
        let error = refused(CommonTrace::from_file(&file));
        assert!(error.contains(needle), "{error}");
    };
    for key in ["graph", "output", "neuron", "loss", "sgd"] {
        check(key, None, &format!("the metadata have no \"{key}\""));
        check(key, Some("{"), &format!("metadata \"{key}\""));
    }
    check(
        "version",
        Some("2"),
        "version \"2\": this program reads version 1",
    );
    check("output", Some("x"), "cannot be the network's input");
    check("output", Some("conv1"), "logits are a vector");
    check("T", Some("5"), "the input has 4");
    check("T", Some("1e18"), "metadata \"T\"");
    check("batches", Some("1000000000000000000"), "the input has 2");
    check("loss", Some("hinge\nloss"), "\"hinge\\nloss\" is unknown");
    check("bn_eps", Some("0"), "metadata \"bn_eps\"");
    check("bn_momentum", Some("2"), "metadata \"bn_momentum\"");
    check(
        "sgd",
        Some(r#"{"lr":1e300,"momentum":0,"weight_decay":0}"#),
        "must be finite",
    );
    check("param_order", Some("[]"), "\"conv1.weight\" is not in it");
    check(
        "lif_order",
        Some(r#"["sn1","sn1","sn3"]"#),
        "\"sn1\" is not in the graph, or occurs",
    );
    let neuron = r#"{"tau":0,"v_th":1,"alpha":1,"reset":"hard"}"#;
    check("neuron", Some(neuron), "finite and positive");
    check(
        "neuron",
        Some(&neuron.replace('0', "2").replace("hard", "half")),
        "\"half\"",
    );
    check(
        "neuron",
        Some(&neuron.replace("tau", "lambda")),
        "unknown field `lambda`",
    );
    let spike = r#"{"tau":2,"v_th":1,"alpha":1,"reset":"hard","spike":"soft"}"#;
    check("neuron", Some(spike), "heaviside");

    let mut file = load("vgg.common");
    for key in [
        "bn_eps",
        "bn_momentum",
        "T",
        "batches",
        "param_order",
        "lif_order",
        "seed",
    ] {
        file.metadata.remove(key);
    }
    file.metadata.insert("version".into(), "1".into());
    let common = CommonTrace::from_file(&file).expect("these are optional");
    assert_eq!((common.bn_eps, common.bn_momentum), (1e-5, 0.1));
    let full = CommonTrace::from_file(&load("vgg.common")).expect("it loads");
    assert_eq!(
        (&common.param_order, &common.lif_order),
        (&full.param_order, &full.lif_order)
    );
}

#[test]
fn tensors_that_do_not_fit_are_refused_and_named() {
    let edited = |edit: &dyn Fn(&mut TraceFile)| {
        let mut file = load("vgg.common");
        edit(&mut file);
        refused(CommonTrace::from_file(&file))
    };
    let put = |name: &'static str, shape: &'static [usize], value: f32| {
        edited(&move |file| {
            let values = vec![value; shape.iter().product()];
            file.tensors
                .insert(name.into(), TraceTensor::f32(shape, values));
        })
    };
    assert!(put("param/conv2.weight", &[6, 5, 3, 3], 0.0).contains("needs [6, 4, 3, 3]"));
    assert!(put("param/conv2.weight", &[6, 4, 3, 1], 0.0).contains("\"conv2\": its filters"));
    assert!(put("param/conv2.weight", &[6], 0.0).contains("needs [O, I, k, k]"));
    assert!(put("param/conv2.bias", &[5], 0.0).contains("\"param/conv2.bias\""));
    assert!(put("param/conv2.bias", &[6], f32::NAN).contains("NaN at position 0"));
    assert!(put("param/other.bias", &[6], 0.0).contains("belongs to nothing"));
    assert!(put("buffer/bn1.running_var", &[4], -1.0).contains("a variance"));
    assert!(put("mask/head.drop", &[2, 4, 3, 53], 1.0).contains("\"mask/head.drop\""));
    assert!(put("input", &[2, 4, 3], 1.0).contains("\"input\""));
    assert!(put("input", &[2, 4, 0, 7], 1.0).contains("\"input\""));
    assert!(put("input", &[2, 50_001, 1, 1], 1.0).contains("batches times time steps is 100002"));
    assert!(put("input", &[1, 1, 1_000_001, 1], 1.0).contains("samples in a batch is 1000001"));
    assert!(put("labels", &[2, 3], 1.0).contains("must hold whole numbers"));
    let label = |label: i64| {
        edited(&move |file| {
            let labels = TraceTensor::i64(&[2, 3], vec![0, 0, 0, 0, label, 0]);
            file.tensors.insert("labels".into(), labels);
        })
    };
    for wrong in [5, -1, i64::MAX, 1 << 32] {
        let error = label(wrong);
        let needle = format!("the label of sample 1 in batch 1 is {wrong}");
        assert!(
            error.contains(&needle) && error.contains("0 to 4"),
            "{error}"
        );
    }
    let error = edited(&|file| drop(file.tensors.remove("mask/head.drop")));
    assert!(error.contains("\"mask/head.drop\" is missing"), "{error}");
}

#[test]
fn algorithm_files_that_do_not_fit_are_refused() {
    let common = CommonTrace::from_file(&load("mlp.common")).expect("it loads");
    let edited = |name: &str, edit: &dyn Fn(&mut TraceFile)| {
        let mut file = load(name);
        edit(&mut file);
        refused(AlgorithmTrace::from_file(&file, &common))
    };
    let meta = |name: &str, key: &'static str, value: &'static str| {
        edited(name, &|file| {
            drop(file.metadata.insert(key.into(), value.into()))
        })
    };
    let stol = "mlp.stol_k2_saved";
    assert!(meta(stol, "class", "RTRL").contains("\"RTRL\" is unknown"));
    assert!(meta(stol, "version", "7").contains("version \"7\""));
    assert!(meta(stol, "update", "epoch").contains("\"epoch\" is unknown"));
    assert!(meta(stol, "update", "batch").contains("does not update"));
    assert!(meta(stol, "args", r#"{"k":0,"variant":"saved"}"#).contains("at least 1"));
    assert!(meta(stol, "args", r#"{"k":2,"variant":"kept"}"#).contains("\"kept\""));
    assert!(meta(stol, "args", r#"{"k":2,"variant":"saved","mode":"q"}"#).contains("\"q\""));
    assert!(meta(stol, "args", r#"{"k":2,"variant":"saved","more":1}"#).contains("`more`"));
    let phantom = r#"{"k":2,"variant":"saved","phantom":true}"#;
    assert!(meta(stol, "args", phantom).contains("belong to variant"));
    assert!(meta("mlp.bptt", "args", r#"{"k":2}"#).contains("metadata \"args\""));
    for key in ["class", "args", "update"] {
        let error = edited(stol, &|file| drop(file.metadata.remove(key)));
        assert!(error.contains(&format!("have no \"{key}\"")), "{error}");
    }
    let error = edited(stol, &|file| drop(file.tensors.remove("grad/fc.bias")));
    assert!(error.contains("\"grad/fc.bias\" is missing"), "{error}");
    let put = |name: &'static str, shape: &'static [usize], value: f32| {
        edited(stol, &move |file| {
            let values = vec![value; shape.iter().product()];
            file.tensors
                .insert(name.into(), TraceTensor::f32(shape, values));
        })
    };
    assert!(put("grad/fc.bias", &[2, 5], 0.0).contains("needs [8, 5]"));
    assert!(put("rate", &[8, 2], 1.5).contains("a rate from 0 to 1"));
    assert!(put("loss", &[8], f32::INFINITY).contains("inf at position 0"));
    assert!(put("momentum/fc.bias", &[8, 5], 0.0).contains("belongs to nothing"));

    let mut file = load(stol);
    file.metadata.remove("neuron");
    let trace = AlgorithmTrace::from_file(&file, &common).expect("the neuron is optional");
    assert_eq!(trace.neuron, common.neuron);
}

/// Reads bytes as every kind of trace; whatever they are, each ends in a value or one line.
fn read_as_everything(bytes: &[u8]) {
    match file::parse(bytes, "untrusted") {
        Err(error) => drop(line(&error)),
        Ok(file) => {
            let common = CommonTrace::from_file(&file);
            drop(common.map_err(|e| line(&e)));
        }
    }
}

#[test]
fn a_trace_cut_off_anywhere_is_refused() {
    let bytes = std::fs::read(golden("mlp.common")).expect("the golden file is there");
    for length in 0..bytes.len() {
        assert!(file::parse(&bytes[..length], "cut").is_err(), "{length}");
    }
}

/// A golden file with its header's text replaced.
fn with_header(bytes: &[u8], edit: impl FnOnce(&str) -> String) -> Vec<u8> {
    let (length, rest) = bytes.split_first_chunk::<8>().expect("it has a length");
    let length = usize::try_from(u64::from_le_bytes(*length)).expect("it is small");
    let header = edit(std::str::from_utf8(&rest[..length]).expect("it is text"));
    let mut edited = (header.len() as u64).to_le_bytes().to_vec();
    edited.extend(header.as_bytes());
    edited.extend(&rest[length..]);
    edited
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn any_bytes_end_in_one_line(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        read_as_everything(&bytes);
    }

    #[test]
    fn any_header_ends_in_one_line(header in "[\\[\\]{}\":,0-9a-zA-Z_\\n\\\\ ]{0,80}") {
        read_as_everything(&raw(&header, 16));
    }

    #[test]
    fn flipped_bits_end_in_one_line(
        net in proptest::sample::select(&NETS[..]),
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), 0..8_u8), 1..6),
        in_header in any::<bool>(),
    ) {
        let mut bytes = std::fs::read(golden(&format!("{net}.common"))).expect("it is there");
        let end = if in_header { bytes.len().min(3_000) } else { bytes.len() };
        for (place, bit) in flips {
            bytes[place.index(end)] ^= 1 << bit;
        }
        read_as_everything(&bytes);
    }

    #[test]
    fn replaced_numbers_in_a_header_end_in_one_line(
        net in proptest::sample::select(&NETS[..]),
        place in any::<proptest::sample::Index>(),
        number in proptest::sample::select(&[
            "0", "-1", "1e18", "1000000000000000000", "18446744073709551615", "99999999999999999999",
            "4294967296", "4097", "0.5", "null", "[]", "{}", "\\\"\\\"", "true", "7", "15", "64",
        ][..]),
    ) {
        let bytes = std::fs::read(golden(&format!("{net}.common"))).expect("it is there");
        let edited = with_header(&bytes, |header| {
            let digits: Vec<usize> = header
                .char_indices()
                .filter(|(_, c)| c.is_ascii_digit())
                .map(|(i, _)| i)
                .collect();
            let at = digits[place.index(digits.len())];
            format!("{}{number}{}", &header[..at], &header[at + 1..])
        });
        read_as_everything(&edited);
    }

    #[test]
    fn exchanged_words_in_a_graph_end_in_one_line(
        net in proptest::sample::select(&NETS[..]),
        (node, other) in (any::<proptest::sample::Index>(), any::<proptest::sample::Index>()),
        key in proptest::sample::select(&["kind", "name", "ins", "out", "attrs"][..]),
    ) {
        let file = with_graph(net, |nodes| {
            let value = nodes[other.index(nodes.len())][key].clone();
            let count = nodes.len();
            nodes[node.index(count)][key] = value;
        });
        drop(CommonTrace::from_file(&file).map_err(|e| line(&e)));
    }

    #[test]
    fn an_algorithm_file_with_flipped_bits_ends_in_one_line(
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), 0..8_u8), 1..4),
    ) {
        let common = CommonTrace::from_file(&load("mlp.common")).expect("it loads");
        let mut bytes = std::fs::read(golden("mlp.bptt")).expect("it is there");
        for (place, bit) in flips {
            bytes[place.index(2_500)] ^= 1 << bit;
        }
        match file::parse(&bytes, "untrusted") {
            Err(error) => drop(line(&error)),
            Ok(file) => drop(AlgorithmTrace::from_file(&file, &common).map_err(|e| line(&e))),
        }
    }
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn single_layers_with_other_shapes_end_in_one_line(
        place in any::<proptest::sample::Index>(),
        shape in proptest::collection::vec(0..12_usize, 0..5),
    ) {
        let mut file = load("ops");
        let name = file.tensors.keys().nth(place.index(file.tensors.len())).cloned();
        let name = name.expect("the place is one of them");
        let values = vec![1.0; shape.iter().product()];
        file.tensors.insert(name, TraceTensor::f32(&shape, values));
        drop(ops::check(&file, &mut reference).map_err(|e| line(&e)));
    }
}

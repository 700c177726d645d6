//! Each way in which a trace can be wrong, and the words that say so.

use serde_json::{Value, json};
use synfire::trace::algorithm::AlgorithmTrace;
use synfire::trace::common::CommonTrace;
use synfire::trace::file::{self, TraceFile, TraceTensor};

use super::{load, refused};

/// A file of this header and this many bytes of data.
pub(super) fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn entry(dtype: &str, shape: &str, start: u64, end: u64) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
}

#[test]
fn broken_headers_are_refused_and_name_the_tensor() {
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
}

#[test]
fn absurd_lengths_are_refused_and_wide_floats_are_converted() {
    let error = refused(file::parse(&u64::MAX.to_le_bytes(), "x"));
    assert!(error.contains("more than the limit"), "{error}");
    let wide = raw(&format!(r#"{{"a":{}}}"#, entry("F64", "[1]", 0, 8)), 8);
    let wide = file::parse(&wide, "x").expect("F64 is converted");
    assert_eq!(wide.tensors["a"], TraceTensor::f32(&[1], vec![0.0]));
}

/// A common file with its graph edited.
pub(super) fn with_graph(net: &str, edit: impl FnOnce(&mut Vec<Value>)) -> TraceFile {
    let mut file = load(&format!("{net}.common"));
    let mut nodes: Vec<Value> = serde_json::from_str(&file.metadata["graph"]).expect("it is JSON");
    edit(&mut nodes);
    file.metadata
        .insert("graph".into(), Value::from(nodes).to_string());
    file
}

/// Refuses the net with the value at `place`, `<node>/<key>`, replaced.
fn graph_error(net: &str, place: &str, value: Value) -> String {
    let file = with_graph(net, |nodes| {
        let (node, path) = place.split_once('/').expect("a node and a key");
        let node = &mut nodes[node.parse::<usize>().expect("a position")];
        match path.split_once('/') {
            None => node[path] = value,
            Some((key, inner)) => node[key][inner] = value,
        }
    });
    refused(CommonTrace::from_file(&file))
}

#[test]
fn graphs_that_are_cyclic_or_incomplete_are_refused_and_name_the_node() {
    for (inputs, needle) in [
        (
            json!(["sn3"]),
            "\"sn1\" reads value \"sn3\", which no earlier",
        ),
        (json!(["sn1"]), "\"sn1\" reads value \"sn1\""),
        (json!(["nowhere"]), "\"sn1\" reads value \"nowhere\""),
        (json!(["bn1", "x"]), "\"sn1\" (lif) reads 2 values"),
        (json!([]), "\"sn1\" (lif) reads 0 values"),
    ] {
        let error = graph_error("vgg", "2/ins", inputs);
        assert!(error.contains(needle), "{needle}: {error}");
    }
    let inputs = json!(["layer1.0.bn2", "x"]);
    let error = graph_error("ms", "8/ins", inputs);
    assert!(error.contains("(add) does not fit its input"), "{error}");
}

#[test]
fn nodes_that_are_unknown_are_refused_and_named() {
    for (place, value, needle) in [
        ("2/kind", json!("gru"), "\"sn1\": the operation \"gru\""),
        ("0/shape", json!([1]), "node 0: unknown field `shape`"),
        ("1/attrs", json!(3), "node 1 (after \"conv1\")"),
        ("1/name", json!("conv1"), "names must be unique"),
        ("1/out", json!("x"), "names must be unique"),
        ("1/out", json!("x".repeat(300)), "1 to 200 bytes"),
        ("0/name", json!("c"), "\"param/c.weight\" is missing"),
    ] {
        let error = graph_error("vgg", place, value);
        assert!(error.contains(needle), "{needle}: {error}");
    }
}

#[test]
fn attributes_that_are_wrong_are_refused_and_name_the_node() {
    let absurd = || json!(1_000_000_000_000_000_000_u64);
    for (place, value, needle) in [
        ("0/attrs/d", json!(2), "\"conv1\": the attribute \"d\""),
        ("0/attrs", json!({}), "\"conv1\": conv needs the attribute"),
        (
            "0/attrs/p",
            json!(-1),
            "\"conv1\": conv needs the attribute",
        ),
        ("0/attrs/s", absurd(), "\"conv1\": the stride is 10000000"),
        ("11/attrs/o", absurd(), "\"head.pool\": the output side"),
        ("13/attrs/p", json!(1.0), "\"head.drop\" (dropout)"),
        ("13/attrs/p", json!("x"), "\"head.drop\": dropout needs"),
    ] {
        let error = graph_error("vgg", place, value);
        assert!(error.contains(needle), "{needle}: {error}");
    }
    let error = graph_error("mlp", "0/attrs", json!({"bias": false}));
    assert!(
        error.contains("\"fc1\": a linear layer has a bias"),
        "{error}"
    );
}

#[test]
fn graphs_with_too_many_or_too_few_nodes_are_refused() {
    let check = |needle: &str, edit: fn(&mut Vec<Value>)| {
        let error = refused(CommonTrace::from_file(&with_graph("mlp", edit)));
        assert!(error.contains(needle), "{needle}: {error}");
    };
    check("no node makes the value \"fc\"", |nodes| drop(nodes.pop()));
    check("no node makes the value \"fc\"", Vec::clear);
    check("more nodes than the limit of 10000", |nodes| {
        *nodes = vec![nodes[1].clone(); 10_001];
    });
    check("\"more\" is never read", |nodes| {
        nodes.push(json!({"kind": "lif", "name": "more", "ins": ["fc1"], "out": "more"}));
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
}

#[test]
fn metadata_that_may_be_missing_have_defaults() {
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
            drop(file.metadata.insert(key.into(), value.into()));
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

#[test]
fn a_graph_of_as_many_nodes_as_allowed_is_read() {
    let file = with_graph("mlp", |nodes| {
        // fc1, then neurons upon neurons, then fc2 of the last.
        let (first, rest) = (nodes[0].clone(), nodes.split_off(2));
        *nodes = vec![first];
        for i in 0..10_000 - 1 - rest.len() {
            let reads = if i == 0 {
                "fc1".into()
            } else {
                format!("n{}", i - 1)
            };
            let name = format!("n{i}");
            nodes.push(json!({"kind": "lif", "name": name, "ins": [reads], "out": name}));
        }
        let last = nodes[nodes.len() - 1]["out"].clone();
        nodes.extend(rest);
        let count = nodes.len();
        nodes[count - 3]["ins"] = json!([last]);
    });
    let mut file = file;
    file.metadata.remove("lif_order");
    let common = CommonTrace::from_file(&file).expect("10000 nodes are allowed");
    assert_eq!(common.graph.nodes().len(), 10_000);
}

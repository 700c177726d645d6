//! Weights from files: the logits that PyTorch computes from them, the names of other programs, what
//! is refused, and what a run starts from.
//!
//! `golden/weights/make.py` made the files; `benches/rivals/check_weights.py` is the other direction.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;

use synfire::kernel::{Arena, Phase};
use synfire::learn::{Batch, Input, Masks, Unobserved};
use synfire::node::{self, Node};
use synfire::shape::Shape;
use synfire::trace::file::{self, TensorData, TraceFile, TraceTensor};
use synfire::train::init;
use synfire::weights::{self, Readout, WeightsError};
use synfire_shared::Run;
use synfire_shared::run::QUICKSTART;

/// Sums in another order, of numbers up to about 1.
const TOLERANCE: f32 = 1e-5;
const TIME_STEPS: usize = 4;
/// Of the networks in the files.
const CLASSES: usize = 5;

fn golden(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/weights");
    folder.join(name).display().to_string()
}

fn run(model: &str, width: f64, batch: usize, more: &[&str]) -> Run {
    let mut set = vec![
        format!("model.name={model}"),
        format!("model.width={width}"),
        format!("data.batch={batch}"),
        format!("algorithm.time_steps={TIME_STEPS}"),
    ];
    set.extend(more.iter().map(ToString::to_string));
    Run::from_toml(QUICKSTART, "built-in", &set).expect("the keys are known")
}

fn numbers(tensor: &TraceTensor) -> &[f32] {
    match &tensor.data {
        TensorData::F32(values) => values,
        TensorData::I64(_) => panic!("whole numbers"),
    }
}

/// `[N, C, H, W]` as the engine has it.
fn nhwc(x: &TraceTensor) -> (Vec<f32>, Shape) {
    let &[n, c, h, w] = &x.shape[..] else {
        panic!("{:?}", x.shape)
    };
    let values = numbers(x);
    let mut x_nhwc = Vec::with_capacity(values.len());
    for sample in 0..n {
        for pixel in 0..h * w {
            x_nhwc.extend((0..c).map(|channel| values[(sample * c + channel) * h * w + pixel]));
        }
    }
    (x_nhwc, Shape::new(h, w, c))
}

/// `[T, N, K]`, the picture shown at every time step.
fn logits(node: &mut Node, x_nhwc: &[f32], phase: Phase) -> Vec<f32> {
    let network = &mut node.learner.network;
    let classes = network.num_classes() * network.plan().settings.samples;
    let mut all = Vec::new();
    node.kernels.run(&mut |kernels| {
        for t in 0..TIME_STEPS {
            if !network.input_is_resident(t) {
                network.write_input(kernels, t, x_nhwc);
            }
            network.forward(kernels, t, phase);
            let mut logits = vec![0.0; classes];
            network.read_logits(kernels, t, &mut logits);
            all.extend(logits);
        }
    });
    all
}

fn largest_difference(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let differences = got.iter().zip(want).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |most, d| if d <= most { most } else { d })
}

fn start_from(location: &str, skip_readout: bool, node: &mut Node) -> Result<usize, String> {
    let init = synfire_shared::run::Init {
        from: Some(location.to_owned()),
        skip_readout,
    };
    let mut tensors = 0;
    let started = init::initialise(&init, node, &mut |event| {
        if let synfire::train::Event::Initialised { taken, .. } = event {
            tensors = taken.tensors;
        }
    });
    started.map(|()| tensors).map_err(|error| error.to_string())
}

#[test]
fn weights_of_pytorch_give_the_logits_of_pytorch() {
    for (model, width, tensors) in [
        ("small", 0.125, 17),
        ("ms_resnet18", 0.031_25, 102),
        ("sew_resnet34", 0.031_25, 182),
    ] {
        let recorded = file::read(golden(&format!("{model}.run.safetensors")).as_ref()).unwrap();
        let (x_nhwc, input) = nhwc(&recorded.tensors["input"]);
        let samples = recorded.tensors["input"].shape[0];
        for engine in ["cpu", "burn"] {
            let run = run(model, width, samples, &[&format!("run.engine={engine}")]);
            let mut node = node::build(&run, input, CLASSES).unwrap();
            let from = golden(&format!("{model}.weights.safetensors"));
            assert_eq!(start_from(&from, false, &mut node), Ok(tensors));
            for (phase, name) in [
                (Phase::Evaluate, "logits_evaluate"),
                (Phase::Train, "logits_train"),
            ] {
                let got = logits(&mut node, &x_nhwc, phase);
                let difference = largest_difference(&got, numbers(&recorded.tensors[name]));
                println!("{model} {engine} {name}: {difference:.2e}");
                assert!(
                    difference <= TOLERANCE,
                    "{model} {engine} {name}: {difference}"
                );
            }
            let after = weights::collect(&node.learner.network, &mut *node.kernels);
            for (name, want) in &recorded.tensors {
                let Some(name) = name.strip_prefix("after/") else {
                    continue;
                };
                let got = numbers(&after.tensors[name]);
                let difference = largest_difference(got, numbers(want));
                assert!(
                    difference <= TOLERANCE,
                    "{model} {engine} {name}: {difference}"
                );
            }
        }
    }
}

fn sew_resnet18(classes: usize, seed: u64) -> Node {
    let seed = format!("run.seed={seed}");
    let run = run("sew_resnet18", 1.0 / 64.0, 2, &[&seed]);
    node::build(&run, Shape::new(32, 32, 3), classes).expect("the model takes such pictures")
}

fn collected(node: &mut Node) -> BTreeMap<String, TraceTensor> {
    weights::collect(&node.learner.network, &mut *node.kernels).tensors
}

#[test]
fn one_network_under_the_names_of_three_programs_is_the_same() {
    let ours = weights::read(&golden("ours.safetensors")).unwrap().tensors;
    for layout in ["ours.safetensors", "authors.pth", "torchvision.pth"] {
        let mut node = sew_resnet18(10, 1);
        assert_eq!(start_from(&golden(layout), false, &mut node), Ok(102));
        assert_eq!(collected(&mut node), ours, "{layout}");
    }
}

#[test]
fn every_kind_of_number_is_read() {
    let mut got = weights::read(&golden("numbers.pth")).unwrap().tensors;
    let whole = got.remove("whole").unwrap();
    assert_eq!(whole, TraceTensor::i64(&[2], vec![3, -4]));
    let want = weights::read(&golden("numbers.safetensors"))
        .unwrap()
        .tensors;
    assert_eq!(got, want);
}

#[test]
fn a_readout_of_other_classes_is_refused_or_left_out() {
    let mut node = sew_resnet18(7, 1);
    let before = collected(&mut node);
    let error = start_from(&golden("authors.pth"), false, &mut node).unwrap_err();
    for expected in [
        "authors.pth",
        "fc.bias",
        "[10]",
        "[7]",
        "init.skip_readout = true",
    ] {
        assert!(error.contains(expected), "no {expected} in {error}");
    }
    assert_eq!(collected(&mut node), before, "refused weights were taken");

    assert_eq!(start_from(&golden("authors.pth"), true, &mut node), Ok(100));
    let ours = weights::read(&golden("ours.safetensors")).unwrap().tensors;
    let after = collected(&mut node);
    for (name, tensor) in &after {
        let of = if name.starts_with("fc.") {
            &before
        } else {
            &ours
        };
        assert_eq!(tensor, &of[name], "{name}");
    }
    // The readout is drawn even where the file's would fit.
    let mut node = sew_resnet18(10, 2);
    let before = collected(&mut node);
    assert_eq!(start_from(&golden("authors.pth"), true, &mut node), Ok(100));
    assert_eq!(collected(&mut node)["fc.weight"], before["fc.weight"]);
}

/// Takes a changed copy of our own file.
fn take(change: impl FnOnce(&mut BTreeMap<String, TraceTensor>)) -> Result<Node, WeightsError> {
    let mut read = weights::read(&golden("ours.safetensors")).expect("it is a weights file");
    change(&mut read.tensors);
    read.name = "changed".into();
    let mut node = sew_resnet18(10, 1);
    let network = &node.learner.network;
    weights::apply(&read, network, &mut *node.kernels, Readout::Take)?;
    Ok(node)
}

#[test]
fn what_does_not_fit_is_named_with_the_first_of_each_kind() {
    let refused =
        |change: fn(&mut BTreeMap<String, TraceTensor>)| take(change).unwrap_err().to_string();
    let error = refused(|tensors| {
        tensors.retain(|name, _| !name.starts_with("layer1.0.bn"));
        tensors.insert("bn9.weight".into(), TraceTensor::f32(&[1], vec![0.0]));
        tensors.insert("stem.bn.bias".into(), TraceTensor::f32(&[2], vec![0.0; 2]));
    });
    assert_eq!(
        error,
        "changed was not saved from this model, width and number of classes: it lacks 8 tensors \
         (layer1.0.bn1.bias, layer1.0.bn1.running_mean, layer1.0.bn1.running_var, ...); it has, \
         unlike the network, 1 tensor (bn9.weight); of another shape are 1 tensor (stem.bn.bias is \
         [2], not [1])"
    );
    // As many numbers in another shape are another tensor.
    let error = refused(|tensors| {
        tensors.get_mut("layer2.0.conv1.weight").unwrap().shape = vec![2, 9, 1, 1];
    });
    assert!(
        error.contains("layer2.0.conv1.weight is [2, 9, 1, 1], not [2, 1, 3, 3]"),
        "{error}"
    );
    // A readout that is not alone in not fitting gets no such hint.
    let error = refused(|tensors| {
        tensors.remove("stem.bn.bias");
        tensors.insert("fc.bias".into(), TraceTensor::f32(&[3], vec![0.0; 3]));
    });
    assert!(
        !error.contains("skip_readout") && error.contains("fc.bias is [3]"),
        "{error}"
    );
    let error = refused(|tensors| {
        tensors.insert(
            "conv1.weight".into(),
            TraceTensor::f32(&[1, 3, 7, 7], vec![0.0; 147]),
        );
    });
    assert!(
        error.contains("\"stem.conv.weight\" is there twice"),
        "{error}"
    );
    let error = refused(|tensors| {
        tensors.insert("fc.bias".into(), TraceTensor::i64(&[10], vec![0; 10]));
    });
    assert!(error.contains("\"fc.bias\" holds whole numbers"), "{error}");
}

#[test]
fn a_convolution_without_a_bias_has_one_of_0() {
    let build = || {
        let run = run("vgg11", 0.05, 1, &[]);
        node::build(&run, Shape::new(32, 32, 2), 3).unwrap()
    };
    let (mut from, mut node) = (build(), build());
    let mut read = weights::collect(&from.learner.network, &mut *from.kernels);
    let network = &node.learner.network;
    let bias = vec![1.0; network.plan().layout.parameter("conv3.bias").unwrap().len];
    network
        .set(&mut *node.kernels, "conv3.bias", &bias)
        .unwrap();
    read.tensors.remove("conv3.bias");
    weights::apply(&read, network, &mut *node.kernels, Readout::Take).unwrap();
    let after = network.get(&mut *node.kernels, Arena::Weights, "conv3.bias");
    assert_eq!(after.unwrap(), vec![0.0; bias.len()]);
    for name in ["fc.bias", "bn3.bias", "conv3.weight"] {
        let mut read = weights::collect(network, &mut *node.kernels);
        read.tensors.remove(name);
        let error = weights::apply(&read, network, &mut *node.kernels, Readout::Take);
        assert!(error.unwrap_err().to_string().contains(name), "{name}");
    }
}

#[test]
fn what_is_no_weights_file_is_refused() {
    for (name, expected) in [
        ("nothing.pth", "nothing.pth"),
        ("make.py", "make.py"),
        ("", "golden/weights"),
    ] {
        let error = weights::read(&golden(name)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = weights::read("ftp://host/w.pth").unwrap_err().to_string();
    assert!(error.contains("s3://"), "{error}");
    let error = weights::read("https://user:secret@host/w.pth").unwrap_err();
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
}

/// A file with some bytes changed, cut out or doubled.
fn mutated(bytes: &[u8], changes: &[(prop::sample::Index, u8)], cut: (usize, usize)) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (index, byte) in changes {
        let at = index.index(bytes.len());
        bytes[at] = *byte;
    }
    let start = cut.0 % bytes.len();
    let end = (start + cut.1).min(bytes.len());
    bytes.drain(start..end);
    bytes
}

fn is_bounded(bytes: &[u8]) -> Result<(), TestCaseError> {
    match weights::parse(bytes, "mutated") {
        Ok(read) => {
            let numbers: usize = read.tensors.values().map(|t| t.data.len()).sum();
            prop_assert!(numbers <= bytes.len(), "{numbers} of {}", bytes.len());
        }
        Err(error) => prop_assert!(error.to_string().len() < 1000, "{error}"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_change_of_a_file_of_pytorch_makes_its_reader_panic_or_allocate_without_a_limit(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        pickle_changes in prop::collection::vec((0_usize..1200, any::<u8>()), 0..4),
        cut in (any::<usize>(), prop_oneof![3 => Just(0), 1 => 0_usize..300]),
        file in prop::sample::select(vec!["numbers.pth", "torchvision.pth", "authors.pth"]),
    ) {
        let bytes = std::fs::read(golden(file)).unwrap();
        is_bounded(&mutated(&bytes, &changes, cut))?;
        // The same with a right checksum: what is wrong must be found further in.
        let mut bytes = bytes;
        for (at, byte) in pickle_changes {
            bytes[64 + at] = byte;
        }
        if file != "torchvision.pth" {
            seal(&mut bytes);
        }
        is_bounded(&bytes)?;
    }
}

/// Gives the first entry of an archive, data.pkl, the checksum of its bytes.
fn seal(bytes: &mut [u8]) {
    let list = bytes.windows(4).position(|w| w == b"PK\x01\x02");
    let list = list.expect("it is an archive");
    let long = |at: usize| {
        let four = bytes[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(four) as usize
    };
    let short = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let start = 30 + short(26) + short(28);
    let data = &bytes[start..start + long(list + 24)];
    // The reflected polynomial of ISO 3309.
    let crc = !data.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    });
    bytes[list + 16..list + 20].copy_from_slice(&crc.to_le_bytes());
}

/// A folder of its own for a test.
fn folder(test: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("synfire-weights-{test}-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a temporary folder can be made");
    path
}

/// Trains a little, exports, and writes what the exported network computes.
fn export(model: &str, width: f64, folder: &Path) -> (PathBuf, PathBuf) {
    let (samples, input) = (4, Shape::new(32, 32, 3));
    let run = run(model, width, samples, &["optimiser.lr=0.005"]);
    let mut node = node::build(&run, input, CLASSES).expect("the model takes such pictures");
    let wave = |i: usize| ((i * 7919 % 1000) as f32 / 250.0) - 2.0;
    let x_nhwc: Vec<f32> = (0..samples * input.elements()).map(wave).collect();
    let labels: Vec<u32> = (0..4).collect();
    for index in 0..10 {
        let batch = Batch {
            index,
            input: Input::Static(&x_nhwc),
            labels: &labels,
            num_time_steps: TIME_STEPS,
            masks: Masks::Keyed,
        };
        let (learner, algorithm) = (&mut node.learner, &mut node.algorithm);
        node.kernels.run(&mut |kernels| {
            let learnt = algorithm.learn(learner, kernels, &batch, &mut Unobserved);
            learnt.expect("the loss is finite");
        });
    }
    let exported = folder.join(format!("{model}.weights.safetensors"));
    let saved = weights::save(&exported, &node.learner.network, &mut *node.kernels);
    saved.expect("the folder can be written");
    let mut seen = TraceFile::default();
    seen.metadata.insert("model".into(), model.into());
    let (h, w, c) = (input.height, input.width, input.channels);
    let nchw = (0..samples * c * h * w).map(|i| {
        let (pixel, channel, sample) = (i % (h * w), i / (h * w) % c, i / (h * w * c));
        x_nhwc[(sample * h * w + pixel) * c + channel]
    });
    let x = TraceTensor::f32(&[samples, c, h, w], nchw.collect());
    seen.tensors.insert("input".into(), x);
    for (phase, name) in [
        (Phase::Evaluate, "logits_evaluate"),
        (Phase::Train, "logits_train"),
    ] {
        let logits = logits(&mut node, &x_nhwc, phase);
        let tensor = TraceTensor::f32(&[TIME_STEPS, samples, CLASSES], logits);
        seen.tensors.insert(name.into(), tensor);
    }
    for (name, tensor) in collected(&mut node) {
        if name.contains("running") {
            seen.tensors.insert(format!("after/{name}"), tensor);
        }
    }
    let run = folder.join(format!("{model}.run.safetensors"));
    file::write(&run, &seen).expect("the folder can be written");
    (exported, run)
}

#[test]
#[ignore = "needs python3 with PyTorch"]
fn needs_torch_our_exported_weights_give_our_logits_there() {
    let folder = folder("export");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/rivals/check_weights.py");
    for (model, width) in [
        ("small", 0.25),
        ("ms_resnet18", 0.125),
        ("sew_resnet34", 0.125),
    ] {
        let (weights, run) = export(model, width, &folder);
        let mut python = Command::new("python3");
        let output = python.arg(&script).args([&weights, &run]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        print!("{said}");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}{error}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

//! The command as its users meet it: what it prints, what it refuses, how it ends.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn synfire(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_synfire"));
    command
        .args(arguments)
        .output()
        .expect("the binary was built for this test")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn golden(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    folder.join(name).display().to_string()
}

/// A folder of its own for a test.
fn folder(test: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("synfire-cli-{test}-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a temporary folder can be made");
    path
}

#[test]
fn without_arguments_it_prints_help() {
    let output = synfire(&[]);
    assert_eq!(output.status.code(), Some(0));
    for verb in ["train", "verify", "trace", "inspect", "bench", "doctor"] {
        assert!(text(&output.stdout).contains(verb), "{verb}");
    }
}

#[test]
fn wrong_usage_has_a_status_of_its_own() {
    assert_eq!(synfire(&["verify", "--nonsense"]).status.code(), Some(64));
    assert_eq!(
        synfire(&["inspect", "model", "smal"]).status.code(),
        Some(64)
    );
    assert_eq!(synfire(&["verify", "--help"]).status.code(), Some(0));
}

#[test]
fn the_printed_configuration_is_a_configuration() {
    let printed = synfire(&["train", "--print-config", "--set", "run.seed=7"]);
    let file = folder("config").join("mine.toml");
    std::fs::write(&file, &printed.stdout).unwrap();
    let again = synfire(&["train", file.to_str().unwrap(), "--print-config"]);
    assert_eq!(text(&printed.stdout), text(&again.stdout));
    assert!(text(&again.stdout).contains("seed = 7"));
}

#[test]
fn the_device_of_the_command_line_is_that_of_the_run() {
    let run = |arguments: &[&str]| {
        let all = [&["train", "--print-config"], arguments].concat();
        text(&synfire(&all).stdout)
    };
    assert!(run(&[]).contains("\ndevice = \"cpu\"\n"));
    let named = ["--device", "cuda:1", "--set", "run.device=cpu"];
    assert!(run(&named).contains("\ndevice = \"cuda:1\"\n"));
    for verb in ["train", "bench", "verify", "evaluate"] {
        assert_eq!(
            synfire(&[verb, "--device", "gpu"]).status.code(),
            Some(64),
            "{verb}"
        );
    }
    for on_gpus in [
        ["--precision", "bf16"],
        ["--convolutions", "graph"],
        ["--without", "graphs,updates"],
    ] {
        let bench = [&["bench", "--model", "small"][..], &on_gpus].concat();
        let output = synfire(&bench);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(
            told.contains(" with --device cuda and --engine fast"),
            "{told}"
        );
    }
    let unknown = synfire(&["bench", "--model", "small", "--without", "graph"]);
    assert_eq!(unknown.status.code(), Some(64));
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cuda_says_how_to_build_one_with_it() {
    let trace = golden("mlp.stol_k2_saved.safetensors");
    for arguments in [
        &["train", "--device", "cuda"][..],
        &["bench", "--model", "small", "--device", "cuda:1"],
        &["verify", "--device", "cuda", &trace],
    ] {
        let output = synfire(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let told = text(&output.stderr);
        let remedy = "cargo build --release --features cuda,nccl";
        assert!(told.contains(remedy), "{told}");
    }
}

#[test]
fn every_fault_of_a_configuration_is_told_at_once() {
    let set = ["optimizer.lr=1", "model.name=smal", "data.batch=0"];
    let arguments: Vec<&str> = set.iter().flat_map(|s| ["--set", s]).collect();
    let output = synfire(&[&["train"], &arguments[..]].concat());
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    for expected in ["\"optimiser.lr\"?", "\"small\"?", "\"data.batch\" must be"] {
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_short_training_ends_with_its_summary_and_weights_that_load() {
    let weights = folder("weights").join("w.safetensors");
    let weights = weights.to_str().unwrap();
    let set = ["run.max_batches=3", "data.batch=8", "run.evaluate_every=1"];
    let set: Vec<&str> = set.iter().flat_map(|s| ["--set", s]).collect();
    let output = synfire(&[&["train", "--save-weights", weights], &set[..]].concat());
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for expected in [
        "test accuracy after the last epoch",
        "t=3",
        "sn3",
        "memory:",
        "what to try next",
    ] {
        assert!(said.contains(expected), "no {expected:?} in {said}");
    }
    let bench = [
        "bench", "--model", "small", "--input", "1x28x28", "--width", "0.5",
    ];
    let more = [
        "--batch",
        "4",
        "--time-steps",
        "2",
        "--iterations",
        "2",
        "--json",
    ];
    let with = ["--weights", weights];
    let output = synfire(&[&bench[..], &more[..], &with[..]].concat());
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for key in ["median", "min", "max"] {
        assert!(json["images_per_second"][key].as_f64().unwrap() > 0.0);
    }
    for key in [
        "peak_memory_mib",
        "seconds_per_batch",
        "steps_T",
        "loss_is_finite",
        "threads",
    ] {
        assert!(!json[key].is_null(), "{key}");
    }
    let wider = [
        "bench",
        "--model",
        "small",
        "--input",
        "1x28x28",
        "--weights",
        weights,
    ];
    let output = synfire(&wider);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("was not saved from this model"));
}

#[test]
fn weights_that_could_not_be_written_are_refused_before_training() {
    let folder = folder("unwritable");
    for target in [folder.to_str().unwrap(), "/proc/nothing/w.safetensors"] {
        let output = synfire(&["train", "--save-weights", target]);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty(), "training had begun");
        assert!(text(&output.stderr).contains("--save-weights"));
    }
}

#[test]
fn verify_tells_passed_from_not_built_from_unreadable() {
    let good = golden("ms.stol_k2_saved.safetensors");
    let output = synfire(&["verify", &good, "--ops", &golden("ops.safetensors")]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("2 of 2 within tolerance"), "{said}");
    for row in [
        "loss",
        "logits",
        "spikes",
        "gradient",
        "parameter",
        "statistic",
    ] {
        assert!(said.contains(&format!("\n{row} ")), "{row} in {said}");
    }
    let every = text(&synfire(&["verify", "--all", &good]).stdout);
    assert!(every.lines().filter(|l| l.starts_with("gradient")).count() > 8 * 20);

    // One bad file does not keep the others from being checked.
    let broken = folder("broken").join("ms.stol_k2_saved.safetensors");
    std::fs::write(&broken, b"no trace").unwrap();
    let output = synfire(&["verify", broken.to_str().unwrap(), &good]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("1 of 2 within tolerance, 1 beyond"));
}

#[test]
fn a_recorded_trace_replays_on_the_other_back_end() {
    let out = folder("trace");
    let out = out.to_str().unwrap();
    let set = ["--set", "data.batch=4", "--set", "model.width=0.25"];
    for (algorithm, name) in [("stol", "stol_k2_saved"), ("bptt", "bptt")] {
        let chosen = format!("algorithm.name={algorithm}");
        let mut arguments = vec!["trace", "--net", "quick", "--out", out, "--set", &chosen];
        arguments.extend(set);
        if algorithm == "bptt" {
            arguments.extend(["--set", "algorithm.window="]);
        }
        let output = synfire(&arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let file = format!("{out}/quick.{name}.safetensors");
        let output = synfire(&["verify", &file, "--isa", "portable"]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    }
}

#[test]
fn what_does_not_fit_into_memory_is_refused_with_a_remedy() {
    let bench = ["bench", "--model", "sew_resnet34", "--batch", "65536"];
    let output = synfire(&bench);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("would fit"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn inspect_totals_are_those_of_the_published_networks() {
    let said = text(&synfire(&["inspect", "model", "ms_resnet18", "--batch", "16"]).stdout);
    for expected in ["11,173,962", "671,744", "555.4", "kept in the window"] {
        assert!(said.contains(expected), "no {expected:?} in {said}");
    }
}

/// Trains a little on the built-in pictures.
fn train(set: &[&str], more: &[&str]) -> Output {
    let few = ["data.batch=8", "run.evaluate_every=9", "run.epochs=9"];
    let set: Vec<&str> = few.iter().chain(set).flat_map(|s| ["--set", s]).collect();
    synfire(&[&["train"], more, &set[..]].concat())
}

#[test]
fn a_run_starts_from_weights_and_goes_on_without_them() {
    let folder = folder("init");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (old, new) = (path("old.safetensors"), path("new.safetensors"));
    let output = train(&["run.max_batches=2"], &["--save-weights", &old]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));

    // Where nothing is learnt, the parameters at the end are those at the start.
    let from = format!("init.from={old}");
    let still = ["run.seed=5", "optimiser.lr=0", "run.max_batches=1", &from];
    let output = train(&still, &["--save-weights", &new]);
    let said = text(&output.stdout);
    assert!(said.contains("starting from 17 tensors with "), "{said}");
    let read = |path: &str| synfire::weights::read(path).unwrap().tensors;
    let (before, after) = (read(&old), read(&new));
    for (name, tensor) in before.iter().filter(|(name, _)| !name.contains("running")) {
        assert_eq!(tensor, &after[name], "{name}");
    }

    // A run that is resumed does not miss the file that it began with.
    let run = format!("run.folder={}", path("run"));
    let output = train(&["run.max_batches=2", &from, &run], &[]);
    assert!(text(&output.stdout).contains("starting from 17 tensors"));
    std::fs::remove_file(&old).unwrap();
    let output = train(&["run.max_batches=3", &from, &run], &[]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(
        said.contains("resumed from") && !said.contains("starting from"),
        "{said}"
    );

    // One that begins does, before it writes a configuration.
    let other = format!("run.folder={}", path("other"));
    let output = train(&["run.max_batches=1", &from, &other], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("old.safetensors"));
    assert!(!folder.join("other/config.toml").exists());

    // A run folder and a checkpoint in it have weights too.
    let manifest = path("run/checkpoints/000000000003.json");
    for from in [path("run"), manifest.clone()] {
        let from = format!("init.from={from}");
        let output = train(&["run.max_batches=1", &from], &[]);
        let said = text(&output.stdout);
        assert!(
            said.contains("17 tensors") && said.contains("000000000003.json"),
            "{said}"
        );
    }
    let output = synfire(&["evaluate", "--checkpoint", &golden("weights/authors.pth")]);
    assert!(text(&output.stderr).contains("authors.pth was not saved from this model"));
    std::fs::remove_dir_all(&folder).unwrap();
}

/// With the feature, `tests/mpi_train.rs` is about the same.
#[cfg(not(feature = "mpi"))]
#[test]
fn ranks_of_mpirun_are_refused_where_mpi_is_not_built_in() {
    for (variables, launcher) in [
        (["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"], "Open MPI"),
        (["PMI_RANK", "PMI_SIZE"], "PMI"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_synfire"));
        command.args(["train", "--set", "run.max_batches=1"]);
        command.env(variables[0], "0").env(variables[1], "2");
        let output = command.output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let unset = format!("unset {}", variables[0]);
        for words in ["one of 2", launcher, "built without MPI", &unset] {
            assert!(said.contains(words), "no {words:?} in: {said}");
        }
        assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    }
}

/// What `bench` prints of a tiny network with these arguments.
fn tiny_bench(more: &[&str]) -> std::process::Output {
    let bench = [
        "bench", "--model", "small", "--input", "1x28x28", "--width", "0.25", "--json",
    ];
    let size = ["--batch", "4", "--time-steps", "3", "--iterations", "3"];
    synfire(&[&bench[..], &size[..], more].concat())
}

fn tiny_figures(more: &[&str]) -> serde_json::Value {
    let output = tiny_bench(more);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one line of JSON")
}

#[test]
fn pictures_that_stay_are_those_that_were_copied() {
    let (copied, kept) = (tiny_figures(&[]), tiny_figures(&["--keep-input"]));
    assert_eq!(copied["input"], "copied with every batch");
    assert_eq!(kept["input"], "kept");
    assert_eq!(copied["loss"], kept["loss"]);
    assert!(copied["loss"].as_f64().unwrap() > 0.0);
    // Processors are timed by layer in any case, forward and backward apart, and have no memory of
    // their own.
    for work in ["norm_and_neuron", "their_backward"] {
        let seconds = copied["seconds_by_work"][work].as_f64();
        assert!(seconds.unwrap() > 0.0, "{work}");
    }
    assert!(copied["device_memory"].is_null() && copied["convolutions"].is_null());
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_bench_times_a_gpu_its_memory_and_its_layers() {
    let gpu = ["--device", "cuda", "--precision", "bf16"];
    let figures = tiny_figures(&gpu);
    assert!(figures["images_per_second"]["median"].as_f64().unwrap() > 0.0);
    assert_eq!(figures["warmup"], 5);
    // The graphs are timed, not the parts.
    assert!(figures["profile"].is_null() && figures["seconds_by_work"].is_null());
    let memory = &figures["device_memory"];
    let held = memory["at_end"]["held_bytes"].as_u64().unwrap();
    assert!(held > 0);
    assert_eq!(memory["after_warmup"]["held_bytes"], held);
    let peak = memory["at_end"]["peak_bytes"].as_u64().unwrap();
    assert!(peak >= held);
    let mib = figures["peak_memory_mib"].as_f64().unwrap();
    assert!((mib * f64::from(1 << 20) - peak as f64).abs() < 1.0);

    let parts = tiny_figures(&[&gpu[..], &["--profile", "--keep-input"]].concat());
    let layers = parts["profile"].as_array().unwrap();
    let seconds = |layer: &serde_json::Value| -> f64 {
        let seconds = layer["seconds"].as_object().unwrap().values();
        seconds.map(|s| s.as_f64().unwrap()).sum()
    };
    let sum: f64 = layers.iter().map(seconds).sum();
    let whole = parts["profiled_seconds_per_batch"].as_f64().unwrap();
    assert!(sum > 0.0 && sum <= whole, "{sum} of {whole}");
    for layer in layers {
        assert!(seconds(layer) > 0.0, "{layer}");
    }

    assert_eq!(figures["convolutions"], "legacy");
    let graph = tiny_figures(&[&gpu[..], &["--convolutions", "graph"]].concat());
    assert_eq!(graph["convolutions"], "graph");
    let name = graph["device_name"].as_str().unwrap();
    assert!(name.ends_with("bf16, graph API)"), "{name}");

    let graphs = memory["at_end"]["graphs"].as_u64().unwrap();
    assert!(graphs > 0 && figures["without"].as_array().unwrap().is_empty());
    let written = tiny_figures(&[&gpu[..], &["--without", "updates,graphs"]].concat());
    assert_eq!(written["device_memory"]["at_end"]["graphs"], 0);
    assert_eq!(written["without"], serde_json::json!(["graphs", "updates"]));
    assert_eq!(written["loss"], figures["loss"], "the same bits");

    let soon = tiny_bench(&[&gpu[..], &["--warmup", "1"]].concat());
    assert_eq!(soon.status.code(), Some(1));
    assert!(text(&soon.stderr).contains("--warmup must be at least 2"));
}

/// What no layer needs may be missing; what one does need is named, with another way.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs the stand-in of tests/cuda"]
fn needs_cuda_stand_in_a_direction_that_no_layer_needs_may_have_no_algorithm() {
    let folder = folder("lacking");
    let bench = [
        "bench", "--model", "small", "--input", "1x28x28", "--width", "0.25", "--batch", "4",
    ];
    let graph = [&bench[..], &["--convolutions", "graph"]].concat();
    let run = format!("run.folder={}", folder.join("run").display());
    let train = [
        "train",
        "--set",
        "model.width=0.25",
        "--set",
        "run.max_batches=2",
        "--set",
        &run,
    ];
    // The pictures have one channel, and what the second layer reads has 8.
    for (lacks, verb, direction) in [
        ("data:1", &bench[..], None),
        ("data:8", &bench, Some("data gradient")),
        ("weight:8", &bench, Some("weight gradient")),
        ("forward:1", &bench, Some("forward")),
        ("data:8", &graph, None),
        ("data:8", &train, Some("data gradient")),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_synfire"));
        command.env("SYNFIRE_STAND_IN_LACKS", lacks);
        let output = command.args(verb).args(["--device", "cuda"]).output();
        let output = output.unwrap();
        let told = text(&output.stderr);
        let status = i32::from(direction.is_some());
        assert_eq!(output.status.code(), Some(status), "{lacks}: {told}");
        let direction = direction.unwrap_or("any");
        let words = format!("no deterministic algorithm for the {direction} of a 3x3 convolution");
        assert_eq!(
            told.matches(&words).count(),
            usize::from(status == 1),
            "{told}"
        );
        assert_eq!(
            told.contains("--convolutions, \"graph\""),
            status == 1,
            "{told}"
        );
    }
    let checkpoints = std::fs::read_dir(folder.join("run/checkpoints"));
    assert!(checkpoints.is_err() || checkpoints.unwrap().next().is_none());
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Without an engine cuDNN's graph API can do nothing: who asks for it is told so, who does not needs none.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs the stand-in of tests/cuda"]
fn needs_cuda_stand_in_convolutions_are_computed_by_the_interface_that_is_named() {
    let folder = folder("interfaces");
    let weights = folder.join("weights.safetensors");
    let weights = weights.to_str().unwrap();
    let output = train(&["run.max_batches=1"], &["--save-weights", weights]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_synfire"));
        command.env("SYNFIRE_STAND_IN_ENGINES", "");
        let output = command.args(arguments).args(["--device", "cuda"]).output();
        let output = output.unwrap();
        let told = text(&output.stderr);
        (output.status.code(), told)
    };
    let bench = [
        "bench", "--model", "small", "--input", "1x28x28", "--width", "0.25", "--batch", "4",
    ];
    let (status, told) = run(&bench);
    assert_eq!(status, Some(0), "{told}");
    let set = ["--set", "run.convolutions=graph"];
    for (verb, graph) in [
        (&bench[..], ["--convolutions", "graph"]),
        (&["evaluate", "--checkpoint", weights], set),
        (&["train"], set),
    ] {
        let (status, told) = run(&[verb, &graph].concat());
        // Not 75: no other try would find one.
        assert_eq!(status, Some(1), "{verb:?}");
        let words = "cuDNN's graph API has no plan for the forward of";
        assert!(told.contains(words), "{verb:?}: {told}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

//! `synfire doctor`: what it says of a machine, and that nothing on one makes it fail.

use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Names of the libraries' files.
const FILES: [&str; 4] = [
    "libcuda.so.1",
    "libnvrtc.so.13",
    "libcudnn.so.9",
    "libnccl.so.2",
];

/// A folder of its own for a test, which is gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let name = format!("synfire-doctor-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a temporary folder can be made");
        Self(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).expect("it can be written to");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Where libraries of this folder come first, and nothing else is on `PATH`.
fn doctor(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_synfire"))
        .arg("doctor")
        .args(arguments)
        .env("SYNFIRE_LIBRARIES", folder)
        .env("PATH", folder)
        .output()
        .expect("the binary was built for this test")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stdout));
    })
}

fn library<'a>(report: &'a Value, name: &str) -> &'a Value {
    let all = report["libraries"]
        .as_array()
        .expect("libraries are a list");
    all.iter()
        .find(|found| found["library"] == name)
        .expect("all are listed")
}

/// Text that a person reads.
fn shown(output: &Output) -> String {
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).expect("it is a text")
}

/// A library that this test itself has loaded, of another name and without a function of CUDA.
fn some_library() -> Vec<u8> {
    let maps = fs::read_to_string("/proc/self/maps").expect("this is Linux");
    let mut paths = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]));
    let path = paths
        .find(|path| path.contains("libgcc_s.so"))
        .expect("Rust unwinds by it");
    fs::read(path).expect("it was loaded")
}

#[test]
fn the_json_has_one_shape_on_every_machine() {
    let folder = Folder::new("shape");
    let output = doctor(&folder.0, &["--json"]);
    assert_eq!(output.status.code(), Some(0), "the cpu always trains");
    let report = json(&output);
    for key in [
        "synfire",
        "features",
        "processor",
        "memory",
        "libraries",
        "gpus",
        "tools",
        "mpi",
        "trains_on",
        "missing",
    ] {
        assert!(report.get(key).is_some(), "{key}");
    }
    assert_eq!(report["trains_on"][0], "cpu");
    assert!(report["processor"]["threads"].as_u64().unwrap() >= 1);
    assert_eq!(report["features"]["cuda"], cfg!(feature = "cuda"));
    assert_eq!(report["mpi"]["launcher"], Value::Null);
    let libraries = report["libraries"].as_array().unwrap();
    let names: Vec<_> = libraries.iter().map(|found| &found["library"]).collect();
    assert_eq!(names, ["driver", "nvrtc", "cudnn", "nccl"]);
    for found in libraries {
        for key in [
            "looked_in",
            "state",
            "path",
            "version",
            "package",
            "place",
            "passed_over",
            "enables",
        ] {
            assert!(found.get(key).is_some(), "{key}");
        }
    }
}

#[test]
fn garbage_under_the_names_of_libraries_is_named_and_not_taken() {
    let folder = Folder::new("garbage");
    for (index, file) in FILES.iter().enumerate() {
        let garbage: [&[u8]; 4] = [b"", b"no library", &[0x7f; 4096], b"\x7fELF"];
        folder.write(file, garbage[index]);
    }
    let report = json(&doctor(&folder.0, &["--json"]));
    for (found, file) in ["driver", "nvrtc", "cudnn", "nccl"].iter().zip(FILES) {
        let passed = &library(&report, found)["passed_over"][0];
        assert_eq!(passed["path"], folder.0.join(file).to_str().unwrap());
        assert_eq!(passed["why"], "is no library");
    }
    let text = shown(&doctor(&folder.0, &[]));
    let line = format!(
        "not taken: {} is no library",
        folder.0.join(FILES[0]).display()
    );
    assert!(text.contains(&line), "{text}");
}

#[test]
fn what_is_missing_has_a_remedy_and_fails_where_it_is_asked_for() {
    // A library of a form that is not there yet: it looks right, and no loader takes it.
    let folder = Folder::new("future");
    let mut future = some_library();
    future[20] = 2;
    for file in FILES {
        folder.write(file, &future);
    }
    let output = doctor(&folder.0, &["--json", "--device", "cuda"]);
    assert_eq!(output.status.code(), Some(1));
    let report = json(&output);
    assert_eq!(report["trains_on"].as_array().unwrap().len(), 1);
    let state = if cfg!(feature = "cuda") {
        "broken"
    } else {
        "found"
    };
    for name in ["driver", "nvrtc", "cudnn", "nccl"] {
        assert_eq!(library(&report, name)["state"], state, "{name}");
    }
    for missing in report["missing"].as_array().unwrap() {
        assert!(missing["why"].as_str().is_some_and(|why| !why.is_empty()));
        assert!(
            missing["remedy"]
                .as_str()
                .is_some_and(|remedy| !remedy.is_empty())
        );
    }
    let output = doctor(&folder.0, &["--device", "cuda:0"]);
    assert_eq!(output.status.code(), Some(1));
    let text = shown(&output);
    let last = text.trim_end().lines().last().unwrap();
    assert!(last.starts_with("cuda:0 would not train: "), "{text}");
    let needed = if cfg!(feature = "cuda") {
        "libcuda.so.1 cannot be loaded"
    } else {
        "cargo build --release --features cuda,nccl"
    };
    assert!(last.contains(needed), "{text}");
    assert_eq!(
        doctor(&folder.0, &[]).status.code(),
        Some(0),
        "the cpu trains"
    );
    assert_eq!(
        doctor(&folder.0, &["--device", "gpu"]).status.code(),
        Some(64)
    );
}

#[cfg(feature = "cuda")]
#[test]
fn a_library_without_the_functions_of_its_name_is_told_by_the_first_of_them() {
    let folder = Folder::new("other");
    for file in FILES {
        folder.write(file, &some_library());
    }
    let report = json(&doctor(&folder.0, &["--json"]));
    for (name, function) in [
        ("driver", "cuDriverGetVersion"),
        ("nvrtc", "nvrtcVersion"),
        ("cudnn", "cudnnGetVersion"),
        ("nccl", "ncclGetVersion"),
    ] {
        let found = library(&report, name);
        assert_eq!(found["state"], "broken");
        let problem = found["problem"].as_str().unwrap();
        let told = format!("has no function {function}");
        assert!(problem.contains(&told), "{problem}");
    }
}

/// Makes a library of this code.
#[cfg(feature = "cuda")]
fn compile(path: &Path, code: &str) {
    let source = path.with_extension("c");
    fs::write(&source, code).expect("it can be written to");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([path, &source])
        .status();
    assert!(status.expect("Rust links by it").success());
}

/// As NVIDIA's small libcudnn.so.9, which ends the process where a part is not to be had.
#[cfg(feature = "cuda")]
const CUDNN_OF_PARTS: &str = r#"
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <stdlib.h>
    unsigned long cudnnGetVersion(void) {
        const char *names[] = {"libcudnn_graph.so.9", "libcudnn_ops.so.9", "libcudnn_cnn.so.9",
            "libcudnn_heuristic.so.9", "libcudnn_engines_precompiled.so.9",
            "libcudnn_engines_runtime_compiled.so.9"};
        for (int i = 0; i < 6; i++)
            if (!dlopen(names[i], RTLD_NOW)) abort();
        return 91301;
    }"#;

#[cfg(feature = "cuda")]
#[test]
fn a_cudnn_without_its_parts_is_broken_and_ends_nothing() {
    let folder = Folder::new("parts");
    compile(&folder.0.join("libcudnn.so.9"), CUDNN_OF_PARTS);
    let cudnn = || {
        let output = doctor(&folder.0, &["--json"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        library(&json(&output), "cudnn").clone()
    };
    let broken = |name: &str, why: &str| {
        let found = cudnn();
        assert_eq!(found["state"], "broken", "{found}");
        let problem = found["problem"].as_str().unwrap();
        let path = folder.0.join(name).display().to_string();
        assert!(problem.contains(&path) && problem.contains(why), "{found}");
        let remedy = found["remedy"].as_str().unwrap();
        assert!(remedy.contains("pip install nvidia-cudnn-cu13"), "{found}");
    };
    broken("libcudnn_graph.so.9", "libcudnn.so.9 needs it");
    for part in [
        "graph",
        "ops",
        "cnn",
        "heuristic",
        "engines_precompiled",
        "engines_runtime_compiled",
    ] {
        let name = format!("libcudnn_{part}.so.9");
        let path = folder.0.join(&name);
        fs::write(&path, "half a file").unwrap();
        broken(&name, "it is no library");
        // What it needs is nowhere.
        compile(
            &path,
            "extern int nowhere; int *part(void) { return &nowhere; }",
        );
        broken(&name, "undefined symbol: nowhere");
        let soname = format!("-Wl,-soname,{name}");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-x", "c", "/dev/null", &soname, "-o"])
            .arg(&path)
            .status();
        assert!(status.unwrap().success());
    }
    let found = cudnn();
    assert_eq!(found["state"], "ready", "{found}");
    assert_eq!(found["version"], "9.13.1", "{found}");
}

#[test]
fn a_launcher_that_says_nothing_is_not_waited_for() {
    let folder = Folder::new("launcher");
    let script = |text: &str| {
        let path = folder.write("mpirun", text.as_bytes());
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        json(&doctor(&folder.0, &["--json"]))["mpi"]["launcher"].clone()
    };
    let told = script("#!/bin/sh\necho 'mpirun (Open MPI) 4.1.4'\n");
    assert_eq!(told["version"], "mpirun (Open MPI) 4.1.4");
    assert_eq!(script("no program\n")["version"], Value::Null);
    // What it has started holds the pipe open.
    let silent = script("#!/bin/sh\n/bin/sleep 20\n");
    assert_eq!(silent["version"], Value::Null);
    assert_eq!(silent["path"], folder.0.join("mpirun").to_str().unwrap());
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs NVRTC: tests/run installs it"]
fn needs_nvrtc_it_is_loaded_and_says_its_version() {
    let output = Command::new(env!("CARGO_BIN_EXE_synfire"))
        .args(["doctor", "--json"])
        .output();
    let report = json(&output.unwrap());
    let nvrtc = library(&report, "nvrtc");
    assert_eq!(nvrtc["state"], "ready", "{nvrtc}");
    let version = nvrtc["version"].as_str().unwrap();
    assert!(
        version.starts_with("12.") || version.starts_with("13."),
        "{version}"
    );
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs a CUDA driver and cuDNN, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_its_gpus_are_listed() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_synfire"));
        command.arg("doctor").args(arguments).output().unwrap()
    };
    let output = run(&["--json", "--device", "cuda:0"]);
    let report = json(&output);
    assert_eq!(output.status.code(), Some(0), "{report}");
    for name in ["driver", "nvrtc", "cudnn"] {
        assert_eq!(library(&report, name)["state"], "ready", "{report}");
    }
    let gpu = &report["gpus"][0];
    assert_eq!(gpu["ordinal"], 0);
    assert!(!gpu["name"].as_str().unwrap().is_empty());
    assert!(gpu["memory_bytes"].as_u64().unwrap() > 1 << 20);
    assert!(gpu["capability"][0].as_u64().unwrap() >= 8, "{gpu}");
    assert_eq!(report["trains_on"][1], "cuda:0");
    assert_eq!(run(&["--device", "cuda:1023"]).status.code(), Some(1));
}

//! Data flows one way: no module of the worker names one that lies upstream of it.
//!
//! The arrows are those of ARCHITECTURE.md; who adds one changes both. Unit tests count: a module
//! that cannot be tested without what is built on it is in the wrong place.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each module of the worker with the modules that it may name.
const ALLOWED: &[(&str, &[&str])] = &[
    ("libraries", &[]),
    ("memory", &[]),
    ("shape", &[]),
    ("pickle", &[]),
    ("collective", &["libraries"]),
    ("control", &[]),
    ("data", &["pickle"]),
    ("graph", &["shape"]),
    ("kernel", &["libraries", "shape"]),
    ("backend", &["kernel", "libraries"]),
    ("engine", &["graph", "kernel", "shape"]),
    ("learn", &["collective", "engine", "kernel"]),
    ("trace", &["engine", "graph", "kernel", "learn", "shape"]),
    ("weights", &["engine", "kernel", "pickle", "trace"]),
    (
        "node",
        &[
            "backend", "engine", "graph", "kernel", "learn", "memory", "shape",
        ],
    ),
    (
        "checkpoint",
        &["engine", "kernel", "node", "trace", "weights"],
    ),
    (
        "train",
        &[
            "collective",
            "engine",
            "checkpoint",
            "data",
            "graph",
            "kernel",
            "learn",
            "memory",
            "node",
            "shape",
            "weights",
        ],
    ),
    ("observe", &["memory", "train"]),
    ("report", &["train"]),
    // The verbs may name everything below them.
    (
        "cli",
        &[
            "backend",
            "checkpoint",
            "collective",
            "control",
            "data",
            "engine",
            "graph",
            "kernel",
            "learn",
            "libraries",
            "memory",
            "node",
            "shape",
            "observe",
            "report",
            "trace",
            "train",
            "weights",
        ],
    ),
];

/// From one module to another, with the places where the first names the second.
type Arrows = BTreeMap<(String, String), BTreeSet<String>>;

#[test]
fn every_arrow_of_the_worker_is_allowed() {
    let (files, arrows) = arrows_of_the_worker();
    assert!(files >= 50, "only {files} files: is this still the worker?");
    assert!(arrows.len() >= 10, "only these arrows: {arrows:?}");
    for (from, to) in [
        ("engine", "kernel"),
        ("learn", "engine"),
        ("trace", "learn"),
    ] {
        let arrow = (from.into(), to.into());
        assert!(arrows.contains_key(&arrow), "{from} -> {to} was not seen");
    }
    let forbidden = forbidden(&arrows);
    assert!(forbidden.is_empty(), "{}", forbidden.join("\n"));
}

#[test]
fn back_ends_do_not_know_each_other() {
    for (backend, other) in [("cpu", "reference"), ("reference", "cpu")] {
        let files = rust_files(&worker().join("kernel").join(backend));
        assert!(files.len() >= 5, "only {} files of {backend}", files.len());
        for file in files {
            let code = code_of(&fs::read_to_string(&file).unwrap());
            let names = [format!("{other}::"), format!("::{other}")];
            let named = names.iter().any(|n| code.contains(n.as_str()));
            assert!(!named, "{} names {other}", file.display());
        }
    }
}

#[test]
fn the_vocabulary_and_the_coordinator_know_no_tensors_and_no_trainer() {
    for (package, known) in [("shared", "serde"), ("coordinator", "synfire-shared")] {
        let manifest = worker().join("../..").join(package).join("Cargo.toml");
        let manifest = fs::read_to_string(manifest).unwrap();
        let (_, dependencies) = manifest.split_once("[dependencies]").unwrap();
        let names: Vec<&str> = dependencies
            .lines()
            .filter_map(|line| Some(line.split_once('=')?.0.trim()))
            .collect();
        assert!(names.contains(&known), "{names:?}");
        for name in ["burn", "cudarc", "mpi", "rayon", "synfire"] {
            assert!(!names.contains(&name), "{package} depends on {name}");
        }
    }
}

#[test]
fn what_the_coordinator_decides_it_decides_without_clock_socket_or_chance() {
    let sources = worker().join("../../coordinator/src");
    let mut files = rust_files(&sources.join("run"));
    let pure = [
        "admit", "clock", "ended", "event", "live", "policy", "pool", "run", "view",
    ];
    files.extend(pure.map(|name| sources.join(name).with_extension("rs")));
    assert!(files.len() >= 11, "only {} files", files.len());
    for file in files {
        let code = code_of(&fs::read_to_string(&file).unwrap());
        for word in [
            "Instant",
            "SystemTime",
            "TcpStream",
            " rand::",
            "tokio",
            "axum",
            "storage::",
        ] {
            assert!(!code.contains(word), "{} names {word}", file.display());
        }
    }
}

#[test]
fn the_parser_sees_every_way_to_name_a_module() {
    let seen = |module: &[&str], text: &str| {
        let found = modules_named(module, &code_of(text));
        found.into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(seen(&["kernel"], "use crate::learn::Stol;"), "learn");
    assert_eq!(
        seen(
            &["kernel"],
            "use crate::{engine::{Network, plan}, graph,\n  shape};"
        ),
        "engine graph shape"
    );
    assert_eq!(
        seen(&["kernel", "cpu"], "fn f(x: crate::train::Run) {}"),
        "train"
    );
    assert_eq!(seen(&["kernel"], "use super::engine::Network;"), "engine");
    assert_eq!(seen(&["kernel", "cpu"], "use super::super::cli;"), "cli");
    assert_eq!(seen(&["kernel", "cpu"], "use super::{Conv, Loss};"), "");
    assert_eq!(seen(&["kernel"], "// crate::learn\n/// [`crate::cli`]"), "");
    assert_eq!(
        seen(&["kernel"], "use synfire_shared::run; pub(crate) fn f() {}"),
        ""
    );
}

#[test]
fn a_forbidden_or_unknown_arrow_is_reported() {
    let arrow = |from: &str, to: &str| {
        let places = BTreeSet::from(["somewhere".into()]);
        forbidden(&Arrows::from([((from.into(), to.into()), places)]))
    };
    assert!(arrow("learn", "engine").is_empty());
    for (from, to) in [
        ("kernel", "engine"),
        ("data", "graph"),
        ("engine", "secret"),
    ] {
        let report = arrow(from, to);
        assert_eq!(report.len(), 1, "{from} -> {to}");
        assert!(report[0].contains("somewhere"), "{report:?}");
    }
    assert_eq!(arrow("secret", "shape").len(), 1);
}

fn worker() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/src")
}

/// The number of files that were read, and the arrows between different modules.
fn arrows_of_the_worker() -> (usize, Arrows) {
    let root = worker();
    let files = rust_files(&root);
    let mut arrows = Arrows::new();
    for file in &files {
        let module = module_of(file.strip_prefix(&root).expect("it was found there"));
        let module: Vec<&str> = module.iter().map(String::as_str).collect();
        // `lib.rs` and `main.rs` name everything.
        let Some(&from) = module.first() else {
            continue;
        };
        let code = code_of(&fs::read_to_string(file).expect("sources are text"));
        for to in modules_named(&module, &code) {
            if to != from {
                let places = arrows.entry((from.into(), to)).or_default();
                places.insert(file.display().to_string());
            }
        }
    }
    (files.len(), arrows)
}

fn forbidden(arrows: &Arrows) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut reports = Vec::new();
    for ((from, to), places) in arrows {
        let targets = allowed.get(from.as_str());
        if !targets.is_some_and(|t| t.contains(&to.as_str())) {
            let places: Vec<&str> = places.iter().map(String::as_str).collect();
            let places = places.join(", ");
            reports.push(format!(
                "{from} -> {to} is not in ARCHITECTURE.md: {places}"
            ));
        }
    }
    reports
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("sources lie beside the tests") {
        let path = entry.expect("folders can be listed").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The path of a file's module: `engine/plan.rs` is `["engine", "plan"]`, `lib.rs` is `[]`.
fn module_of(file: &Path) -> Vec<String> {
    let path = file.with_extension("");
    let mut parts: Vec<String> = path
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    if ["mod", "lib", "main"].contains(&parts.last().expect("a file has a name").as_str()) {
        parts.pop();
    }
    parts
}

/// A file without its comments.
fn code_of(text: &str) -> String {
    let code = |line: &str| {
        line.split_once("//")
            .map_or(line, |(code, _)| code)
            .to_owned()
    };
    text.lines().map(code).collect::<Vec<_>>().join("\n")
}

/// The modules of the crate's root that the code of `module` names: by `crate::`, or by as many
/// `super::` as lead out of it. In a module inside the file as many lead to a sibling of the file,
/// so what they name counts only if it is a module that the table has.
fn modules_named(module: &[&str], code: &str) -> BTreeSet<String> {
    let known = |name: &String| ALLOWED.iter().any(|(module, _)| module == name);
    let mut named = heads_after("crate::", code);
    // Constants and types of the root are no modules.
    named.retain(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
    let outwards = heads_after(&"super::".repeat(module.len()), code);
    named.extend(outwards.into_iter().filter(known));
    named
}

fn heads_after(prefix: &str, code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let before = code[..at].chars().next_back();
        if !before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            found.extend(heads(&code[at + prefix.len()..]));
        }
    }
    found
}

/// The first word of a path, or of each path in braces.
fn heads(path: &str) -> Vec<String> {
    let word = |text: &str| {
        let text = text.trim_start();
        let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_'));
        text[..end.unwrap_or(text.len())].to_owned()
    };
    let Some(list) = path.trim_start().strip_prefix('{') else {
        return vec![word(path)];
    };
    let (mut depth, mut start, mut heads) = (0, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            ',' if depth == 0 => {
                heads.push(word(&list[start..at]));
                start = at + 1;
            }
            '}' if depth == 0 => {
                heads.push(word(&list[start..at]));
                break;
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    heads
}

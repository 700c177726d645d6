//! What was found, for people.

use super::cuda::{LibraryReport, State};
use super::{Missing, Report};
use crate::cli::table::mib;
use crate::libraries::Library;
use std::fmt::Write as _;

/// Columns of the names of things.
const WIDTH: usize = 12;

pub(super) fn text(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let line = format!("{name:<WIDTH$}{value}");
        let _ = writeln!(text, "{}", line.trim_end());
    };
    line("synfire", built(report));
    line("processor", processor(report));
    line("memory", memory(report));
    for library in &report.libraries {
        line(label(library.library), library_line(library));
        for passed in &library.passed_over {
            line(
                "",
                format!("not taken: {} {}", passed.path.display(), passed.why),
            );
        }
        if library.library == Library::Driver {
            for (index, gpu) in gpus(report).into_iter().enumerate() {
                line(if index == 0 { "GPUs" } else { "" }, gpu);
            }
        }
    }
    line("MPI", mpi(report));
    for tool in &report.tools {
        if let Some(path) = &tool.path {
            line(tool.name, path.display().to_string());
        }
    }
    line("", String::new());
    line("trains on", report.trains_on.join(", "));
    line(
        "",
        "synfire launch, the coordinator, folders and object stores need nothing more".into(),
    );
    for (
        index,
        Missing {
            what, why, remedy, ..
        },
    ) in report.missing.iter().enumerate()
    {
        let _ = writeln!(
            text,
            "{:<WIDTH$}{what}: {why}\n{:<WIDTH$}  -> {remedy}",
            if index == 0 { "missing" } else { "" },
            ""
        );
    }
    text
}

const fn label(library: Library) -> &'static str {
    match library {
        Library::Driver => "driver",
        Library::Nvrtc | Library::Cudnn | Library::Nccl => library.name(),
    }
}

fn built(report: &Report) -> String {
    let names = |is_in: bool| {
        let all = report.features.all();
        let names = all.into_iter().filter(|(_, has)| *has == is_in);
        let names: Vec<&str> = names.map(|(name, _)| name).collect();
        if names.is_empty() {
            "nothing else".to_owned()
        } else {
            names.join(", ")
        }
    };
    let version = report.synfire;
    format!(
        "{version}, built with {}; without {}",
        names(true),
        names(false)
    )
}

fn processor(report: &Report) -> String {
    let processor = &report.processor;
    let name = processor.name.as_deref().unwrap_or("unknown");
    let mut text = format!(
        "{name}; {}; {} threads",
        processor.instructions, processor.threads
    );
    if let Some(all) = processor
        .threads_of_machine
        .filter(|&all| all > processor.threads)
    {
        let _ = write!(
            text,
            " of the machine's {all} (a limit or an affinity is set)"
        );
    }
    text
}

fn memory(report: &Report) -> String {
    let shown = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), mib);
    let memory = &report.memory;
    let mut text = format!(
        "{}, {} available",
        shown(memory.total),
        shown(memory.available)
    );
    if let Some(limit) = memory.limit {
        let _ = write!(text, "; this process's group may have {}", mib(limit));
    }
    text
}

fn library_line(library: &LibraryReport) -> String {
    let Some(path) = &library.path else {
        return match library.state {
            State::Broken => format!("of no use; enables: {}", library.enables),
            State::Ready | State::Found | State::Missing => {
                format!("not found; enables: {}", library.enables)
            }
        };
    };
    let mut parts = Vec::new();
    let version = library.version.as_ref().map(ToString::to_string);
    parts.push(version.unwrap_or("of unknown version".into()));
    parts.extend(
        library
            .cuda
            .as_ref()
            .map(|cuda| format!("takes CUDA {cuda}")),
    );
    parts.push(path.display().to_string());
    parts.extend(library.package.clone());
    parts.extend(match library.state {
        State::Ready => None,
        State::Found => Some("not loaded by this build".to_owned()),
        State::Broken | State::Missing => Some("of no use".to_owned()),
    });
    parts.push(format!("enables: {}", library.enables));
    parts.join("; ")
}

fn gpus(report: &Report) -> Vec<String> {
    let Some(gpus) = &report.gpus else {
        return vec!["unknown".to_owned()];
    };
    if gpus.is_empty() {
        return vec!["none".to_owned()];
    }
    let shown = gpus.iter().map(|gpu| {
        let [major, minor] = gpu.capability;
        format!(
            "cuda:{}: {}; {}; compute capability {major}.{minor}; {} multiprocessors",
            gpu.ordinal,
            gpu.name,
            mib(gpu.memory_bytes),
            gpu.multiprocessors
        )
    });
    shown.collect()
}

fn mpi(report: &Report) -> String {
    let mpi = &report.mpi;
    let launcher = match &mpi.launcher {
        None => "no mpirun on PATH".to_owned(),
        Some(launcher) => {
            let version = launcher.version.as_deref();
            let version = version.unwrap_or("of unknown version");
            format!("{version}; {}", launcher.path.display())
        }
    };
    let library = match (&mpi.library, mpi.is_built_in) {
        (Some(path), _) => format!("linked to {}", path.display()),
        (None, true) => "linked to an unknown library".to_owned(),
        (None, false) => "not built in".to_owned(),
    };
    format!("{launcher}; {library}; enables: ranks of an mpirun, across machines")
}

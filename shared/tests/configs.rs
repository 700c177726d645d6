//! Every file in configs/ against Table 2 of the paper and what is known of the released commands.
#![allow(
    clippy::unwrap_used,
    reason = "a helper that fails fails the test that called it"
)]

use std::collections::BTreeMap;
use std::fs;

use synfire_shared::Run;
use synfire_shared::run::{
    Algorithm, Augment, Depth, History, Loss, Model, Network, Neuron, Norm, Optimiser, Reset,
    Residual, Schedule, ScheduleKind, Source, Stem,
};

/// A row of Table 2 that static pictures can run, with what the released commands add.
struct Row {
    name: &'static str,
    network: Network,
    epochs: u32,
    batch: usize,
    lr: f64,
    weight_decay: f64,
    time_steps: usize,
    tau_m: f64,
    /// The cosine's end in the released commands, where it is given.
    released_t_max: Option<u32>,
    /// Random changes of training pictures in the released commands, and whether they flip.
    released_augment: (Augment, bool),
    /// Whether the released command starts from trained weights.
    released_tunes: bool,
}

const MS_RESNET18: Network = Network::MsResnet {
    depth: Depth::Eighteen,
    stem: Stem::Cifar,
    norm: Norm::Batch,
};

const TABLE_2: &[Row] = &[
    Row {
        name: "ms_resnet18-cifar10",
        network: MS_RESNET18,
        epochs: 200,
        batch: 64,
        lr: 0.05,
        weight_decay: 5e-5,
        time_steps: 6,
        tau_m: 2.0,
        released_t_max: None,
        released_augment: (Augment::Standard, true),
        released_tunes: false,
    },
    Row {
        name: "ms_resnet18-cifar100",
        network: MS_RESNET18,
        epochs: 300,
        batch: 128,
        lr: 0.02,
        weight_decay: 5e-4,
        time_steps: 6,
        tau_m: 2.0,
        released_t_max: Some(200),
        released_augment: (Augment::Standard, true),
        released_tunes: false,
    },
    Row {
        name: "sew_resnet34-imagenet",
        network: Network::SewResnet {
            depth: Depth::ThirtyFour,
            residual: Residual::Add,
            zero_init_residual: false,
        },
        epochs: 100,
        batch: 200,
        lr: 0.1,
        weight_decay: 0.0,
        time_steps: 6,
        tau_m: 2.0,
        released_t_max: Some(100),
        released_augment: (Augment::AutoAugment, false),
        released_tunes: true,
    },
];

/// The short names of the paper's recipes, which are links, and those of the files.
const LINKS: [(&str, &str); 3] = [
    ("cifar10", "ms_resnet18-cifar10"),
    ("cifar100", "ms_resnet18-cifar100"),
    ("imagenet", "sew_resnet34-imagenet"),
];

/// The files of configs/, links included, by name without its end.
fn files() -> BTreeMap<String, (String, Run)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs");
    let entries = fs::read_dir(folder).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert_eq!(path.extension().unwrap(), "toml", "{}", path.display());
        let text = fs::read_to_string(&path).unwrap();
        let run = Run::from_toml(&text, &name, &[]);
        let run = run.unwrap_or_else(|errors| panic!("{errors}"));
        (name, (text, run))
    });
    entries.collect()
}

#[test]
fn every_row_has_its_two_files_and_every_file_its_place() {
    let mut files = files();
    for (link, name) in LINKS {
        let (text, _) = files
            .remove(link)
            .unwrap_or_else(|| panic!("no {link}.toml"));
        assert_eq!(text, files[name].0, "{link}.toml is another {name}.toml");
    }
    for row in TABLE_2 {
        let released = format!("{}_released", row.name);
        for name in [row.name, released.as_str()] {
            let (text, run) = files
                .remove(name)
                .unwrap_or_else(|| panic!("no {name}.toml"));
            check_row(row, &run, name);
            check_comment(&text, name);
        }
    }
    for (name, (text, run)) in files {
        assert!(
            name.starts_with("small-") && name.ends_with("-cpu"),
            "{name}.toml: for what?"
        );
        assert_eq!(run.model.network, Network::Small, "{name}");
        // Minutes, not days.
        assert!(run.epochs <= 10 && run.time_steps <= 4, "{name}");
        assert_eq!(run.loss, Loss::Paper { lambda: 0.05 }, "{name}");
        check_common(&run, &name);
        check_comment(&text, &name);
    }
}

fn check_row(row: &Row, run: &Run, name: &str) {
    let is_released = name.ends_with("_released");
    let expected = Model {
        network: row.network,
        width: 1.0,
    };
    assert_eq!(run.model, expected, "{name}");
    assert_eq!((run.epochs, run.max_batches), (row.epochs, None), "{name}");
    assert_eq!(run.data.batch, row.batch, "{name}");
    assert_eq!(run.time_steps, row.time_steps, "{name}");
    let optimiser = Optimiser::Sgd {
        lr: row.lr,
        momentum: 0.9,
        weight_decay: row.weight_decay,
    };
    assert_eq!(run.optimiser, optimiser, "{name}");
    let neuron = Neuron {
        tau_m: row.tau_m,
        v_th: 1.0,
        alpha: 1.0,
        reset: Reset::Hard,
        detach_reset: false,
    };
    assert_eq!(run.neuron, neuron, "{name}");
    let (loss, t_max, augment) = if is_released {
        (Loss::Ce, row.released_t_max, row.released_augment)
    } else {
        let paper = Loss::Paper { lambda: 0.05 };
        (paper, None, (Augment::Standard, true))
    };
    assert_eq!(run.loss, loss, "{name}");
    let schedule = Schedule {
        kind: ScheduleKind::Cosine { t_max },
        warmup_epochs: 0,
    };
    assert_eq!(run.schedule, schedule, "{name}");
    let Source::Packed(packed) = &run.data.source else {
        panic!("{name}: {:?}", run.data.source)
    };
    assert_eq!((run.data.augment, packed.flip), augment, "{name}");
    assert_eq!(packed.side, 224, "{name}");
    let is_tuning = is_released && row.released_tunes;
    assert_eq!(run.init.from.is_some(), is_tuning, "{name}");
    check_common(run, name);
}

fn check_common(run: &Run, name: &str) {
    assert_eq!(run.algorithm, Algorithm::Stol { window: 2 }, "{name}");
    assert_eq!(run.history, History::Saved, "{name}");
}

/// The opening comment says what to reach, whose number that is, what we have reached, and where the
/// data come from; that of a released command, what differs.
fn check_comment(text: &str, name: &str) {
    let comment: Vec<&str> = text
        .lines()
        .map_while(|line| line.strip_prefix('#'))
        .collect();
    let comment = comment.concat();
    let has = |what: &str| assert!(comment.contains(what), "{name}: no {what:?}: {comment}");
    let reached = comment.contains("We reached ") || comment.contains("Not yet run");
    assert!(reached, "{name}: what have we reached?");
    has("synfire pack ");
    if name.ends_with("-cpu") {
        has("No number to");
    } else {
        has("authors' own log");
    }
    if name.ends_with("_released") {
        has("\"recomputed\", which does the same, comes later");
    }
    assert!(!comment.contains("NUMBER"), "{name}");
}

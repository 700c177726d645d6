//! A checked run as a configuration file, every key with its comment.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::keys::{Fallback, KEYS, Key, OLDER_ENGINES};
use crate::run::{Algorithm, Loss, Network, Optimiser, Packed, Run, ScheduleKind, Source};
use crate::values::Scalar;

/// Columns of a comment, its "# " included.
const COLUMNS: usize = 100;

type Entries = BTreeMap<&'static str, Scalar>;

pub(crate) fn to_toml(run: &Run) -> String {
    let entries = entries(run);
    let mut text = String::from("# A run of synfire, every default filled in.\n");
    let mut table = "";
    for key in KEYS {
        if !is_meaningful(key, &entries) {
            continue;
        }
        if key.table() != table {
            table = key.table();
            push(&mut text, format_args!("\n[{table}]\n"));
        }
        push_comment(&mut text, &comment(key));
        match entries.get(key.name) {
            Some(value) => push(
                &mut text,
                format_args!("{} = {}\n", key.leaf(), toml_value(value)),
            ),
            None => push(&mut text, format_args!("# {} is not set.\n", key.leaf())),
        }
    }
    text
}

/// Keys that change where a run goes or how long it takes, never a number of it; and those of the
/// weights at its start, which a checkpoint has behind it: they may have moved since.
const NO_SETTINGS: &[&str] = &[
    "run.max_batches",
    "run.threads",
    "run.device",
    "run.evaluate_every",
    "run.folder",
    "data.path",
    "data.on_bad_sample",
    "data.workers",
    "data.cache",
    "data.cache_gib",
    "init.from",
    "init.skip_readout",
    "ranks.transport",
    "ranks.bucket_mib",
    "ranks.overlap",
    "ranks.deadline_seconds",
];

/// Settings that older versions did not have: told where they are not what those did.
const NEWER: &[(&str, &str)] = &[
    ("ranks.wire", "\"f32\""),
    ("batch_norm.sync", "false"),
    ("run.precision", "\"f32\""),
    ("run.tf32", "false"),
    ("run.convolutions", "\"legacy\""),
];

pub(crate) fn settings(run: &Run) -> BTreeMap<String, String> {
    let matters = |name: &str| !NO_SETTINGS.contains(&name) && !name.starts_with("checkpoint.");
    entries(run)
        .iter()
        .filter(|(name, _)| matters(name))
        .map(|(&name, value)| (name.to_owned(), toml_value(value)))
        .filter(|(name, value)| !NEWER.contains(&(name.as_str(), value.as_str())))
        .map(as_older_versions)
        .collect()
}

/// A checkpoint of an older version has the older name of what computes.
fn as_older_versions((name, value): (String, String)) -> (String, String) {
    let is_engine = name == "run.engine";
    let mut older = OLDER_ENGINES.iter().filter(|_| is_engine);
    let older = older.find(|(_, today)| value == format!("{today:?}"));
    (name, older.map_or(value, |(old, _)| format!("{old:?}")))
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line).expect("a string takes everything");
}

fn is_meaningful(key: &Key, entries: &Entries) -> bool {
    let Some(only) = key.only else { return true };
    match entries.get(only.key) {
        Some(Scalar::Text(control)) => only.values.contains(&control.as_str()),
        Some(Scalar::Bool(_) | Scalar::Integer(_) | Scalar::Real(_)) | None => false,
    }
}

fn comment(key: &Key) -> String {
    let allowed = format!("{}. Allowed: {}", key.about, key.kind);
    match key.fallback {
        Fallback::Absent => format!("{allowed}."),
        Fallback::Required
        | Fallback::Bool(_)
        | Fallback::Integer(_)
        | Fallback::Real(_)
        | Fallback::Text(_) => format!("{allowed}; {}.", key.fallback),
    }
}

fn push_comment(text: &mut String, comment: &str) {
    let mut column = 0;
    for word in comment.split(' ') {
        let length = word.chars().count() + 1;
        if column == 0 || column + length > COLUMNS {
            let start = if column == 0 { "#" } else { "\n#" };
            text.push_str(start);
            column = 1;
        }
        text.push(' ');
        text.push_str(word);
        column += length;
    }
    text.push('\n');
}

fn toml_value(value: &Scalar) -> String {
    match value {
        Scalar::Bool(value) => value.to_string(),
        Scalar::Integer(value) => value.to_string(),
        // The shortest text that reads back to the same bits.
        Scalar::Real(value) => format!("{value:?}"),
        Scalar::Text(text) => toml::Value::String(text.clone()).to_string(),
    }
}

/// Each key that means something in this run, with its value.
fn entries(run: &Run) -> Entries {
    let mut entries = Entries::new();
    run_and_data(run, &mut entries);
    model_and_neuron(run, &mut entries);
    learning(run, &mut entries);
    schedule(run, &mut entries);
    checkpoint(run, &mut entries);
    ranks(run, &mut entries);
    entries
}

fn run_and_data(run: &Run, entries: &mut Entries) {
    entries.insert("run.seed", Scalar::Integer(run.seed));
    entries.insert("run.epochs", integer(run.epochs));
    if let Some(max_batches) = run.max_batches {
        entries.insert("run.max_batches", Scalar::Integer(max_batches));
    }
    entries.insert("run.threads", count(run.threads));
    entries.insert("run.engine", text(run.engine.name()));
    entries.insert("run.device", text(&run.device.to_string()));
    entries.insert("run.precision", text(run.precision.name()));
    entries.insert("run.tf32", Scalar::Bool(run.tf32));
    entries.insert("run.convolutions", text(run.convolutions.name()));
    entries.insert("run.evaluate_every", integer(run.evaluate_every));
    if let Some(folder) = &run.folder {
        entries.insert("run.folder", text(folder));
    }
    entries.insert("data.source", text(run.data.source.name()));
    match &run.data.source {
        Source::FashionMnistSubset => {}
        Source::Cifar10 { path } => {
            entries.insert("data.path", text(&path.to_string_lossy()));
        }
        Source::Packed(packed) => packed_data(packed, entries),
    }
    entries.insert("data.batch", count(run.data.batch));
    entries.insert("data.augment", text(run.data.augment.name()));
}

fn packed_data(packed: &Packed, entries: &mut Entries) {
    entries.insert("data.path", text(&packed.url));
    entries.insert("data.flip", Scalar::Bool(packed.flip));
    entries.insert("data.side", integer(packed.side));
    entries.insert("data.shuffle", text(packed.shuffle.name()));
    entries.insert("data.on_bad_sample", text(packed.on_bad_sample.name()));
    entries.insert("data.workers", count(packed.workers));
    if let Some(cache) = &packed.cache {
        entries.insert("data.cache", text(&cache.to_string_lossy()));
    }
    entries.insert("data.cache_gib", Scalar::Real(packed.cache_gib));
}

fn model_and_neuron(run: &Run, entries: &mut Entries) {
    entries.insert("model.name", text(run.model.network.name()));
    entries.insert("model.width", Scalar::Real(run.model.width));
    match run.model.network {
        Network::Small => {}
        Network::MsResnet {
            depth: _,
            stem,
            norm,
        } => {
            entries.insert("model.stem", text(stem.name()));
            entries.insert("model.norm", text(norm.name()));
        }
        Network::SewResnet {
            depth: _,
            residual,
            zero_init_residual,
        } => {
            entries.insert("model.residual", text(residual.name()));
            entries.insert("model.zero_init_residual", Scalar::Bool(zero_init_residual));
        }
        Network::Vgg11 { dropout } => {
            entries.insert("model.dropout", Scalar::Real(dropout));
        }
    }
    if let Some(from) = &run.init.from {
        entries.insert("init.from", text(from));
    }
    let skips = Scalar::Bool(run.init.skip_readout);
    entries.insert("init.skip_readout", skips);
    entries.insert("neuron.tau_m", Scalar::Real(run.neuron.tau_m));
    entries.insert("neuron.v_th", Scalar::Real(run.neuron.v_th));
    entries.insert("neuron.alpha", Scalar::Real(run.neuron.alpha));
    entries.insert("neuron.reset", text(run.neuron.reset.name()));
    entries.insert("neuron.detach_reset", Scalar::Bool(run.neuron.detach_reset));
    entries.insert("batch_norm.sync", Scalar::Bool(run.batch_norm.sync));
}

fn learning(run: &Run, entries: &mut Entries) {
    entries.insert("algorithm.name", text(run.algorithm.name()));
    match run.algorithm {
        Algorithm::Stol { window } => {
            entries.insert("algorithm.window", count(window));
        }
        Algorithm::Bptt => {}
    }
    entries.insert("algorithm.time_steps", count(run.time_steps));
    entries.insert("algorithm.history", text(run.history.name()));
    entries.insert("loss.kind", text(run.loss.name()));
    match run.loss {
        Loss::Paper { lambda } | Loss::CeMse { lambda } => {
            entries.insert("loss.lambda", Scalar::Real(lambda));
        }
        Loss::Ce => {}
    }
    entries.insert("optimiser.name", text(run.optimiser.name()));
    match run.optimiser {
        Optimiser::Sgd {
            lr,
            momentum,
            weight_decay,
        } => {
            entries.insert("optimiser.lr", Scalar::Real(lr));
            entries.insert("optimiser.weight_decay", Scalar::Real(weight_decay));
            entries.insert("optimiser.momentum", Scalar::Real(momentum));
        }
        Optimiser::AdamW {
            lr,
            beta1,
            beta2,
            epsilon,
            weight_decay,
        } => {
            entries.insert("optimiser.lr", Scalar::Real(lr));
            entries.insert("optimiser.weight_decay", Scalar::Real(weight_decay));
            entries.insert("optimiser.beta1", Scalar::Real(beta1));
            entries.insert("optimiser.beta2", Scalar::Real(beta2));
            entries.insert("optimiser.epsilon", Scalar::Real(epsilon));
        }
    }
}

fn schedule(run: &Run, entries: &mut Entries) {
    entries.insert("schedule.kind", text(run.schedule.kind.name()));
    entries.insert(
        "schedule.warmup_epochs",
        integer(run.schedule.warmup_epochs),
    );
    match run.schedule.kind {
        ScheduleKind::Constant | ScheduleKind::Cosine { t_max: None } => {}
        ScheduleKind::Cosine { t_max: Some(t_max) } => {
            entries.insert("schedule.t_max", integer(t_max));
        }
    }
}

fn checkpoint(run: &Run, entries: &mut Entries) {
    let checkpoint = run.checkpoint;
    let minutes = Scalar::Real(checkpoint.every_minutes);
    entries.insert("checkpoint.every_minutes", minutes);
    if let Some(batches) = checkpoint.every_batches {
        entries.insert("checkpoint.every_batches", Scalar::Integer(batches));
    }
    entries.insert("checkpoint.keep_last", count(checkpoint.keep_last));
    entries.insert("checkpoint.keep_best", Scalar::Bool(checkpoint.keep_best));
}

fn ranks(run: &Run, entries: &mut Entries) {
    let ranks = run.ranks;
    entries.insert("ranks.wire", text(ranks.wire.name()));
    entries.insert("ranks.transport", text(ranks.transport.name()));
    entries.insert("ranks.bucket_mib", Scalar::Real(ranks.bucket_mib));
    entries.insert("ranks.overlap", Scalar::Bool(ranks.overlap));
    if let Some(seconds) = ranks.deadline_seconds {
        entries.insert("ranks.deadline_seconds", Scalar::Real(seconds));
    }
}

fn integer(value: u32) -> Scalar {
    Scalar::Integer(value.into())
}

fn count(value: usize) -> Scalar {
    Scalar::Integer(value as u64)
}

fn text(value: &str) -> Scalar {
    Scalar::Text(value.to_owned())
}

#[cfg(test)]
mod tests {
    use std::ops::Bound;

    use proptest::prelude::*;

    use super::*;
    use crate::keys::{Kind, find};
    use crate::random::{Purpose, below, keyed, uniform};
    use crate::run::QUICKSTART;

    /// A random run as overrides on nothing: each key that means anything is set, or left out where
    /// it may be.
    fn random_run(seed: u64) -> Vec<String> {
        let mut rng = keyed(seed, Purpose::Initialise, &[]);
        let mut entries = Entries::new();
        for key in KEYS
            .iter()
            .filter(|key| key.only.is_none_or(|only| find(only.key).is_some()))
        {
            let is_required = matches!(key.fallback, Fallback::Required);
            // A control is always written, so that `is_meaningful` sees it.
            let is_control = KEYS
                .iter()
                .any(|other| other.only.is_some_and(|o| o.key == key.name));
            let is_left_out = !is_required && !is_control && below(&mut rng, 2) == 0;
            if is_left_out || !is_meaningful(key, &entries) {
                continue;
            }
            let value = match key.kind {
                Kind::Bool => Scalar::Bool(below(&mut rng, 2) == 0),
                Kind::Integer(low, high) => {
                    let high = if key.name == "run.seed" {
                        high
                    } else {
                        high.min(low + 20)
                    };
                    let draw = u64::from(below(&mut rng, u32::MAX)) << 32;
                    Scalar::Integer(low.max(high - draw % (high - low + 1).max(1)))
                }
                Kind::Real(Bound::Included(low) | Bound::Excluded(low), _) => {
                    Scalar::Real(low + uniform(&mut rng, 0.0, 1.0).max(1e-30))
                }
                Kind::Real(Bound::Unbounded, _) => unreachable!("no key is unbounded"),
                Kind::Text => Scalar::Text("a \"b\"\\ é\n\r\u{1}\t'c' #".to_owned()),
                Kind::Device => Scalar::Text(format!("cuda:{}", below(&mut rng, 8))),
                Kind::Choice { names, .. } => {
                    let index = below(&mut rng, u32::try_from(names.len()).unwrap());
                    text(names[index as usize])
                }
            };
            entries.insert(key.name, value);
        }
        entries
            .iter()
            .map(|(name, value)| format!("{name}={}", toml_value(value)))
            .collect()
    }

    proptest! {
        #[test]
        fn every_run_reads_back_equal(seed: u64) {
            let overrides = random_run(seed);
            match Run::from_toml("", "a.toml", &overrides) {
                Ok(run) => {
                    let text = run.to_toml();
                    prop_assert_eq!(Run::from_toml(&text, "b.toml", &[]), Ok(run), "{}", text);
                }
                Err(errors) => {
                    let free = [
                        "algorithm.window",
                        "schedule.warmup_epochs",
                        "init.skip_readout",
                        "run.precision",
                        "run.tf32",
                        "run.convolutions",
                    ];
                    for fault in errors.faults() {
                        prop_assert!(free.contains(&fault.key.as_str()), "{}", fault);
                    }
                }
            }
        }
    }

    #[test]
    fn settings_are_what_the_numbers_depend_on() {
        let run = |overrides: &[&str]| {
            let overrides: Vec<_> = overrides.iter().map(ToString::to_string).collect();
            Run::from_toml(QUICKSTART, "a.toml", &overrides).unwrap()
        };
        let plain = run(&[]).settings();
        let elsewhere = run(&[
            "run.folder=x",
            "run.threads=1",
            "run.device=cuda:1",
            "run.max_batches=3",
            "run.evaluate_every=2",
            "checkpoint.every_batches=5",
            "checkpoint.keep_last=1",
            "init.from=x.pth",
            "init.skip_readout=true",
        ]);
        assert_eq!(elsewhere.settings(), plain);
        for other in [
            "run.seed=2",
            "optimiser.lr=0.3",
            "run.epochs=7",
            "data.batch=8",
            "batch_norm.sync=true",
            "ranks.wire=bf16",
            "run.engine=burn",
        ] {
            let key = other.split('=').next().unwrap();
            let mut settings = run(&[other]).settings();
            assert_ne!(settings, plain, "{other}");
            match plain.get(key) {
                Some(value) => settings.insert(key.to_owned(), value.clone()),
                // What older versions did not have is told only where it differs.
                None => settings.remove(key),
            };
            assert_eq!(settings, plain, "{other}");
        }
        // What a GPU rounds, and how it sums.
        for other in [
            "run.precision=bf16",
            "run.tf32=true",
            "run.convolutions=graph",
        ] {
            let settings = run(&["run.device=cuda", other]).settings();
            assert_eq!(settings.len(), plain.len() + 1, "{other}");
        }
        assert_eq!(
            plain["run.engine"], "\"cpu\"",
            "its name in older checkpoints"
        );
    }

    #[test]
    fn every_key_has_a_comment_within_the_columns() {
        let overrides = [
            "data.source=cifar10",
            "data.path=x",
            "run.seed=18446744073709551615",
        ];
        let run = Run::from_toml(QUICKSTART, "a.toml", &overrides.map(str::to_owned)).unwrap();
        let text = run.to_toml();
        let mut previous = "";
        for line in text.lines() {
            assert!(line.chars().count() <= COLUMNS, "{line}");
            assert!(!line.contains('=') || line.starts_with('#') || previous.starts_with("# "));
            previous = line;
        }
        for key in [
            "seed = 18446744073709551615",
            "path = \"x\"",
            "lambda = 0.05",
        ] {
            assert!(
                text.contains(&format!("\n{key}\n")),
                "{key} is not in\n{text}"
            );
        }
        assert!(text.contains("# max_batches is not set.") && !text.contains("\ndropout"));
    }
}

//! Every key of a configuration file, in the file's order: type, range, default, meaning.
//!
//! One table serves reading, checking and writing, so that they cannot disagree.

use std::fmt;
use std::ops::Bound::{self, Excluded, Included};

use crate::device::Device;
use crate::faults::listed;
use crate::learn::{AlgorithmName, History, LossKind, OptimiserName};
use crate::model::{ModelName, Norm, Reset, Residual, Stem};
use crate::run::{
    Augment, Convolutions, Engine, OnBadSample, Precision, Shuffle, SourceName, Transport, Wire,
};
use crate::schedule::ScheduleName;

/// What a key may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// true or false.
    Bool,
    /// A whole number from the first to the second, both included.
    Integer(u64, u64),
    /// A finite number between two bounds.
    Real(Bound<f64>, Bound<f64>),
    /// Any text but the empty one.
    Text,
    /// The name of a [`Device`].
    Device,
    /// One of a few names.
    Choice {
        names: &'static [&'static str],
        /// Names that the design has and this version does not build.
        later: &'static [&'static str],
        /// What older versions called some of them, with the name of today.
        older: &'static [(&'static str, &'static str)],
    },
}

/// What a key holds where the file is silent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fallback {
    /// Silence is a fault.
    Required,
    /// Silence has a meaning of its own.
    Absent,
    Bool(bool),
    Integer(u64),
    Real(f64),
    Text(&'static str),
}

/// The condition under which a key means anything: another key holds one of these names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Only {
    pub(crate) key: &'static str,
    pub(crate) values: &'static [&'static str],
}

/// One key of a configuration file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// Table and key: `optimiser.lr`.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) fallback: Fallback,
    pub(crate) only: Option<Only>,
    /// What it is, with its unit; a sentence without the full stop.
    pub(crate) about: &'static str,
}

impl Key {
    const fn new(name: &'static str, kind: Kind, fallback: Fallback, about: &'static str) -> Self {
        Self {
            name,
            kind,
            fallback,
            only: None,
            about,
        }
    }

    const fn only(mut self, key: &'static str, values: &'static [&'static str]) -> Self {
        self.only = Some(Only { key, values });
        self
    }

    pub(crate) fn table(&self) -> &'static str {
        self.split().0
    }

    /// The name inside its table.
    pub(crate) fn leaf(&self) -> &'static str {
        self.split().1
    }

    fn split(&self) -> (&'static str, &'static str) {
        self.name
            .split_once('.')
            .expect("every key of the table has a dot")
    }
}

/// The key of this name.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The tables, in the order of the file.
pub(crate) fn tables() -> Vec<&'static str> {
    let mut tables: Vec<_> = KEYS.iter().map(Key::table).collect();
    tables.dedup();
    tables
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Bool => formatter.write_str("true or false"),
            Self::Integer(low, high) => {
                write!(formatter, "a whole number from {low} to {high}")
            }
            Self::Real(low, high) => {
                formatter.write_str("a number, ")?;
                match low {
                    Included(low) => write!(formatter, "at least {low}")?,
                    Excluded(low) => write!(formatter, "more than {low}")?,
                    Bound::Unbounded => formatter.write_str("of any sign")?,
                }
                match high {
                    Included(high) => write!(formatter, " and at most {high}"),
                    Excluded(high) => write!(formatter, " and less than {high}"),
                    Bound::Unbounded => Ok(()),
                }
            }
            Self::Text => formatter.write_str("a text in quotes"),
            Self::Device => formatter.write_str(Device::ALLOWED),
            Self::Choice { names, .. } => formatter.write_str(&listed(names)),
        }
    }
}

impl fmt::Display for Fallback {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Required => formatter.write_str("required"),
            Self::Absent => formatter.write_str("may be absent"),
            Self::Bool(value) => write!(formatter, "default {value}"),
            Self::Integer(value) => write!(formatter, "default {value}"),
            Self::Real(value) => write!(formatter, "default {value:?}"),
            Self::Text(value) => write!(formatter, "default {value:?}"),
        }
    }
}

/// More is taken for a slip of the keyboard; it also keeps every count within 32 bits.
const MANY: u64 = 1_000_000;
/// From 0 to here a number is as good in f32, in which the engine computes, as in f64.
const LARGE: Bound<f64> = Included(1e6);

const fn choice(names: &'static [&'static str]) -> Kind {
    Kind::Choice {
        names,
        later: &[],
        older: &[],
    }
}

/// What `run.engine` was called while there were processors alone.
pub(crate) const OLDER_ENGINES: &[(&str, &str)] = &[("cpu", "fast")];

/// A fraction: 0 is one, 1 is not.
const FRACTION: Kind = Kind::Real(Included(0.0), Excluded(1.0));

/// The source with shards.
const PACKED: &[&str] = &["packed"];
const MS_RESNETS: &[&str] = &["ms_resnet18", "ms_resnet34"];
const SEW_RESNETS: &[&str] = &["sew_resnet18", "sew_resnet34"];

/// Every key there is.
#[rustfmt::skip]
pub(crate) const KEYS: &[Key] = &[
    Key::new("run.seed", Kind::Integer(0, u64::MAX), Fallback::Integer(1),
        "Seed of every random draw: one seed, one result"),
    Key::new("run.epochs", Kind::Integer(1, MANY), Fallback::Integer(6),
        "Passes over the training set"),
    Key::new("run.max_batches", Kind::Integer(1, u64::MAX), Fallback::Absent,
        "Stop after so many training batches, counted over all epochs; absent: the whole run"),
    Key::new("run.threads", Kind::Integer(0, 1024), Fallback::Integer(0),
        "Threads that compute; 0: one per core. Results do not depend on it"),
    Key::new("run.engine",
        Kind::Choice { names: Engine::NAMES, later: &[], older: OLDER_ENGINES },
        Fallback::Text("fast"),
        "What computes: \"fast\" is the fast one of the device, \"burn\" the plain tensors that define \
         it"),
    Key::new("run.device", Kind::Device, Fallback::Text("cpu"),
        "On what: processors, or an NVIDIA GPU by its number; without one, several ranks of a machine \
         take a GPU each. A run may go on on another device"),
    Key::new("run.precision", choice(Precision::NAMES), Fallback::Text("f32"),
        "What is multiplied: \"bf16\" rounds the operands of convolutions, on a GPU alone; sums, \
         weights and potentials stay f32"),
    Key::new("run.tf32", Kind::Bool, Fallback::Bool(false),
        "Let a GPU round the operands of f32 convolutions to 11 significant bits, which is faster"),
    Key::new("run.convolutions", choice(Convolutions::NAMES), Fallback::Text("legacy"),
        "By which interface of cuDNN a GPU computes convolutions: its \"legacy\" calls or its \"graph\" \
         API. Each rounds in its own way"),
    Key::new("run.evaluate_every", Kind::Integer(1, MANY), Fallback::Integer(1),
        "Epochs from one pass over the test set to the next"),
    Key::new("run.folder", Kind::Text, Fallback::Absent,
        "Folder for the results: configuration, metrics.jsonl, report, checkpoints; a path, or a \
         URL as s3://bucket/runs/1 (also gs://, az://, file://). Absent: nothing is kept"),

    Key::new("data.source", choice(SourceName::NAMES), Fallback::Required,
        "The data set: \"packed\" is what synfire pack has written, \"cifar10\" the binary files of \
         CIFAR-10, \"fashion-mnist-subset\" is built in"),
    Key::new("data.path", Kind::Text, Fallback::Required,
        "Where it is. \"packed\": the folder of index.json, a path or a file://, s3://, gs://, az:// \
         or http(s):// URL; \"cifar10\": the folder with data_batch_1.bin to data_batch_5.bin and \
         test_batch.bin")
        .only("data.source", &["packed", "cifar10"]),
    Key::new("data.batch", Kind::Integer(1, MANY), Fallback::Required,
        "Training samples per batch"),
    Key::new("data.augment", choice(Augment::NAMES), Fallback::Text("standard"),
        "Random changes of training images. \"standard\" is, for grey pictures of one size, a shift \
         by up to 2 pixels and a flip; for coloured ones of one size, a crop after padding by 4, a \
         flip, and a cutout of 16 x 16; for pictures of any size, a crop of 8 to 100 % of the area, \
         resized, and a flip. \"autoaugment\" adds the ImageNet policy of AutoAugment to the last"),
    Key::new("data.flip", Kind::Bool, Fallback::Bool(true),
        "Whether the random changes of pictures of any size include the flip")
        .only("data.source", PACKED),
    Key::new("data.side", Kind::Integer(8, 1024), Fallback::Integer(224),
        "Height and width to which pictures of any size are brought, in pixels; those of one size \
         keep theirs")
        .only("data.source", PACKED),
    Key::new("data.shuffle", choice(Shuffle::NAMES), Fallback::Text("auto"),
        "Order of the training samples: \"full\" is any order; \"blocks\" puts blocks of 64 \
         neighbours in random order, then samples inside windows of 1024, for sets larger than \
         memory; \"auto\" is full up to 512 MiB of shards and blocks above")
        .only("data.source", PACKED),
    Key::new("data.on_bad_sample", choice(OnBadSample::NAMES), Fallback::Text("stop"),
        "What to do about a picture that does not decode: \"stop\" saves a checkpoint and names it; \
         \"replace\" trains on the next good one of the set instead and leaves it out of a test; \
         counted and listed")
        .only("data.source", PACKED),
    Key::new("data.workers", Kind::Integer(0, 1024), Fallback::Integer(0),
        "Threads that decode pictures; 0: one per core. Results do not depend on it")
        .only("data.source", PACKED),
    Key::new("data.cache", Kind::Text, Fallback::Absent,
        "Folder on a local disk for what was read from a remote store; processes share it. Absent: \
         synfire in the user's cache folder")
        .only("data.source", PACKED),
    Key::new("data.cache_gib", Kind::Real(Included(0.0), LARGE), Fallback::Real(10.0),
        "Most that the cache may hold, in GiB; 0: nothing is cached")
        .only("data.source", PACKED),

    Key::new("model.name", choice(ModelName::NAMES), Fallback::Required,
        "The network"),
    Key::new("model.width", Kind::Real(Excluded(0.0), Included(4.0)), Fallback::Real(1.0),
        "Factor on every layer's number of channels"),
    Key::new("model.stem", choice(Stem::NAMES), Fallback::Text("cifar"),
        "First layers: \"cifar\" keeps the image's size, \"imagenet\" divides its sides by 4")
        .only("model.name", MS_RESNETS),
    Key::new("model.norm", choice(Norm::NAMES), Fallback::Text("batch"),
        "Normalisation behind each convolution")
        .only("model.name", MS_RESNETS),
    Key::new("model.residual", choice(Residual::NAMES), Fallback::Text("add"),
        "How a block's branch a meets its shortcut b: a + b, a b, or (1 - a) b")
        .only("model.name", SEW_RESNETS),
    Key::new("model.zero_init_residual", Kind::Bool, Fallback::Bool(false),
        "Start the last normalisation of each block with a gain of 0")
        .only("model.name", SEW_RESNETS),
    Key::new("model.dropout", FRACTION, Fallback::Real(0.0),
        "Fraction of the readout's inputs set to 0 while training")
        .only("model.name", &["vgg11"]),

    Key::new("init.from", Kind::Text, Fallback::Absent,
        "Weights to start from: a path or URL of a .safetensors or .pth file, of a run folder or of \
         the manifest of a checkpoint. Absent: weights are drawn by run.seed. A run that is resumed \
         has its weights from its checkpoint"),
    Key::new("init.skip_readout", Kind::Bool, Fallback::Bool(false),
        "Draw the readout all the same, as for another number of classes; goes with init.from"),

    Key::new("neuron.tau_m", Kind::Real(Included(1.0), LARGE), Fallback::Real(2.0),
        "Membrane time constant in time steps: the potential keeps 1/tau_m from one to the next"),
    Key::new("neuron.v_th", Kind::Real(Excluded(0.0), LARGE), Fallback::Real(1.0),
        "Threshold: a neuron spikes where its potential is at least this"),
    Key::new("neuron.alpha", Kind::Real(Excluded(0.0), LARGE), Fallback::Real(1.0),
        "Surrogate gradient max(0, alpha - alpha^2 |u - v_th|): its height, and 1/half its width"),
    Key::new("neuron.reset", choice(Reset::NAMES), Fallback::Text("hard"),
        "After a spike: \"hard\" sets the potential to 0, \"soft\" subtracts v_th"),
    Key::new("neuron.detach_reset", Kind::Bool, Fallback::Bool(false),
        "Leave the path through the reset out of the gradient")
        .only("neuron.reset", &["hard", "soft"]),

    Key::new("batch_norm.sync", Kind::Bool, Fallback::Bool(false),
        "On several ranks, normalise with the mean and variance of all ranks' samples, with the exact \
         gradient: p ranks then train as one. false: each with those of its own share. Costs two \
         exchanges per batch norm and time step; with one rank it changes nothing"),

    Key::new("algorithm.name",
        Kind::Choice { names: AlgorithmName::NAMES, later: &["sltt", "ottt", "fptt"], older: &[] },
        Fallback::Required,
        "\"stol\" updates the weights at every time step, \"bptt\" once per batch"),
    Key::new("algorithm.window", Kind::Integer(1, 1024), Fallback::Integer(2),
        "Newest time steps that an error reaches; not more than time_steps, and the default is \
         time_steps where that is 1")
        .only("algorithm.name", &["stol"]),
    Key::new("algorithm.time_steps", Kind::Integer(1, 1024), Fallback::Required,
        "Time steps T for which each sample is shown"),
    Key::new("algorithm.history",
        Kind::Choice { names: History::NAMES, later: &["recomputed"], older: &[] },
        Fallback::Text("saved"),
        "Where earlier time steps' activations come from: \"saved\" keeps them as they were"),

    Key::new("loss.kind", choice(LossKind::NAMES), Fallback::Text("paper"),
        "\"paper\" is (1 - lambda) CE + lambda MSE, \"ce\" is CE, \"ce+mse\" is CE + lambda MSE"),
    Key::new("loss.lambda", Kind::Real(Included(0.0), Included(1.0)), Fallback::Real(0.05),
        "Weight of the squared error")
        .only("loss.kind", &["paper", "ce+mse"]),

    Key::new("optimiser.name", choice(OptimiserName::NAMES), Fallback::Text("sgd"),
        "The rule of an update"),
    Key::new("optimiser.lr", Kind::Real(Included(0.0), LARGE), Fallback::Required,
        "Learning rate per update, before the schedule; stol makes T updates per batch"),
    Key::new("optimiser.weight_decay", Kind::Real(Included(0.0), LARGE), Fallback::Real(0.0),
        "Weight decay, on every parameter"),
    Key::new("optimiser.momentum", FRACTION, Fallback::Real(0.9),
        "Share of the velocity kept from update to update")
        .only("optimiser.name", &["sgd"]),
    Key::new("optimiser.beta1", FRACTION, Fallback::Real(0.9),
        "Share of the gradient's running mean kept from update to update")
        .only("optimiser.name", &["adamw"]),
    Key::new("optimiser.beta2", FRACTION, Fallback::Real(0.999),
        "Share of the squared gradient's running mean kept from update to update")
        .only("optimiser.name", &["adamw"]),
    Key::new("optimiser.epsilon", Kind::Real(Excluded(0.0), Included(1.0)), Fallback::Real(1e-8),
        "Added to the root of the squared gradient's mean")
        .only("optimiser.name", &["adamw"]),

    Key::new("schedule.kind", choice(ScheduleName::NAMES), Fallback::Text("cosine"),
        "Learning rate over the epochs: \"cosine\" scales it by (1 + cos(pi epoch / t_max)) / 2"),
    Key::new("schedule.warmup_epochs", Kind::Integer(0, MANY), Fallback::Integer(0),
        "Epochs of linear warm-up, fewer than run.epochs"),
    Key::new("schedule.t_max", Kind::Integer(1, MANY), Fallback::Absent,
        "Epoch at which the cosine is 0, rising again after; absent: run.epochs")
        .only("schedule.kind", &["cosine"]),

    Key::new("checkpoint.every_minutes", Kind::Real(Excluded(0.0), LARGE), Fallback::Real(10.0),
        "Minutes from one checkpoint to the next, where run.folder is set"),
    Key::new("checkpoint.every_batches", Kind::Integer(1, u64::MAX), Fallback::Absent,
        "Training batches from one checkpoint to the next; absent: by minutes alone"),
    Key::new("checkpoint.keep_last", Kind::Integer(1, MANY), Fallback::Integer(3),
        "Newest checkpoints that are kept"),
    Key::new("checkpoint.keep_best", Kind::Bool, Fallback::Bool(true),
        "Keep the checkpoint with the best test accuracy too"),

    Key::new("ranks.wire", choice(Wire::NAMES), Fallback::Text("f32"),
        "How gradients travel between ranks: \"bf16\" halves their bytes and rounds them; sums are \
         formed in f32, by NCCL in bf16"),
    Key::new("ranks.transport", choice(Transport::NAMES), Fallback::Text("auto"),
        "How gradients reach other ranks: \"nccl\" from GPU to GPU; \"host\" through the memory of the \
         host, by MPI or by connections of the ranks' own; \"auto\": nccl where they lie on GPUs"),
    Key::new("ranks.bucket_mib", Kind::Real(Included(0.0), Included(1024.0)), Fallback::Real(0.0),
        "Gradients that are averaged at once, in MiB; 0: chosen by a short measurement at the start \
         and kept in run.folder"),
    Key::new("ranks.overlap", Kind::Bool, Fallback::Bool(true),
        "Average gradients while earlier layers still compute theirs; false is for measuring"),
    Key::new("ranks.deadline_seconds", Kind::Real(Excluded(0.0), LARGE), Fallback::Absent,
        "Longest wait for another rank; absent: 60 s, or 10 times the slowest time step so far if \
         that is more"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_tables_whole() {
        let mut names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KEYS.len());
        let mut sorted = tables();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), tables().len(), "a table is in two pieces");
    }

    #[test]
    fn conditions_name_choices_that_come_before_them() {
        for (index, key) in KEYS.iter().enumerate() {
            let Some(only) = key.only else { continue };
            let control = KEYS[..index]
                .iter()
                .find(|control| control.name == only.key);
            let Some(Key {
                kind: Kind::Choice { names, .. },
                only: None,
                ..
            }) = control
            else {
                panic!("{} depends on {}", key.name, only.key)
            };
            assert!(
                only.values.iter().all(|value| names.contains(value)),
                "{}",
                key.name
            );
        }
    }
}

//! A run as checked: every default filled in, nothing that contradicts anything else.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::check;
pub use crate::device::Device;
use crate::faults::RunErrors;
pub use crate::learn::{Algorithm, History, Loss, Optimiser};
pub use crate::model::{BatchNorm, Depth, Model, Network, Neuron, Norm, Reset, Residual, Stem};
use crate::named::named;
use crate::run_file;
pub use crate::schedule::{Schedule, ScheduleKind};
use crate::values::Values;
use crate::write;

/// The configuration of the first run, on data that are built in.
pub const QUICKSTART: &str = include_str!("quickstart.toml");

/// Everything that determines a run, but for the data themselves.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Run {
    /// Seed of every random draw.
    pub seed: u64,
    /// Passes over the training set, at least 1.
    pub epochs: u32,
    /// Stop after so many training batches over all epochs; absent: the whole run.
    pub max_batches: Option<u64>,
    /// Threads that compute; 0: one per core.
    pub threads: usize,
    /// What computes.
    pub engine: Engine,
    /// On what.
    pub device: Device,
    /// The numbers that it multiplies.
    pub precision: Precision,
    /// Whether a GPU may round the operands of f32 products to TF32.
    pub tf32: bool,
    /// By which interface of cuDNN a GPU computes convolutions.
    pub convolutions: Convolutions,
    /// Epochs from one pass over the test set to the next, at least 1.
    pub evaluate_every: u32,
    /// Where results are kept, as it was written; absent: nothing is kept.
    pub folder: Option<String>,
    /// What is learnt from.
    pub data: Data,
    /// The network.
    pub model: Model,
    /// The weights at the start.
    pub init: Init,
    /// The neurons of every layer.
    pub neuron: Neuron,
    /// How batch norms take their statistics on several ranks.
    pub batch_norm: BatchNorm,
    /// When to update, and how far back the error reaches.
    pub algorithm: Algorithm,
    /// Time steps T for which each sample is shown, at least 1.
    pub time_steps: usize,
    /// Where the activations of earlier time steps come from.
    pub history: History,
    /// The loss of one time step.
    pub loss: Loss,
    /// The rule of an update.
    pub optimiser: Optimiser,
    /// The learning rate over the epochs.
    pub schedule: Schedule,
    /// When checkpoints are written, and which are kept.
    pub checkpoint: Checkpoint,
    /// How several ranks work together.
    pub ranks: Ranks,
}

impl Run {
    /// The run that a configuration file describes, with overrides `key=value` in its place.
    ///
    /// An override's value is read as TOML, or as a text where it is not TOML; an empty value takes
    /// the key out of the file. Of two overrides of a key the later one holds.
    ///
    /// # Errors
    ///
    /// All faults of the text and the overrides at once, each with its place, its key, and what to
    /// write instead. `file_name` only names the file in them.
    pub fn from_toml(text: &str, file_name: &str, overrides: &[String]) -> Result<Self, RunErrors> {
        let file = run_file::read(text, file_name, overrides);
        check::check(file).map(|values| Self::from_values(&values))
    }

    /// The whole configuration as a file, every default filled in, a comment on every key.
    ///
    /// [`Run::from_toml`] gives an equal run for it.
    pub fn to_toml(&self) -> String {
        write::to_toml(self)
    }

    /// Every key on which the numbers of a run depend, with its value: what a checkpoint may be
    /// resumed with. Left out are threads and folders, when a run stops, is tested or saved.
    pub fn settings(&self) -> BTreeMap<String, String> {
        write::settings(self)
    }

    fn from_values(values: &Values) -> Self {
        let time_steps = values.count("algorithm.time_steps");
        Self {
            seed: values.integer("run.seed"),
            epochs: values.small("run.epochs"),
            max_batches: values.optional_integer("run.max_batches"),
            threads: values.count("run.threads"),
            engine: Engine::from_name(&values.text("run.engine")),
            device: Device::parse(&values.text("run.device")).expect("checked to be a device"),
            precision: Precision::from_name(&values.text("run.precision")),
            tf32: values.bool("run.tf32"),
            convolutions: Convolutions::from_name(&values.text("run.convolutions")),
            evaluate_every: values.small("run.evaluate_every"),
            folder: values.optional_text("run.folder"),
            data: Data::from_values(values),
            model: Model::from_values(values),
            init: Init::from_values(values),
            neuron: Neuron::from_values(values),
            batch_norm: BatchNorm::from_values(values),
            algorithm: Algorithm::from_values(values, time_steps),
            time_steps,
            history: History::from_name(&values.text("algorithm.history")),
            loss: Loss::from_values(values),
            optimiser: Optimiser::from_values(values),
            schedule: Schedule::from_values(values),
            checkpoint: Checkpoint::from_values(values),
            ranks: Ranks::from_values(values),
        }
    }
}

named! {
    /// What computes.
    pub enum Engine {
        /// What is fast on the device.
        Fast = "fast",
        /// Plain tensor operations: the definition of every other engine.
        Burn = "burn",
    }
}

named! {
    /// The numbers that convolutions read and write. Sums, weights, potentials and norms are f32 in any case.
    pub enum Precision {
        /// 24 significant bits.
        F32 = "f32",
        /// What convolutions and the readout read and write rounded to 8 significant bits, on a GPU.
        Bf16 = "bf16",
    }
}

named! {
    /// By which interface of cuDNN a GPU computes convolutions. They may take other kernels, which sum in another
    /// order: the choice decides bits.
    pub enum Convolutions {
        /// A call per direction, with an algorithm that cuDNN's heuristics name.
        Legacy = "legacy",
        /// The graph API: an execution plan per direction, of the engines that its heuristics name.
        Graph = "graph",
    }
}

/// What is learnt from.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Data {
    /// The data set and where it is.
    #[serde(flatten)]
    pub source: Source,
    /// Samples per batch, at least 1; evaluation uses the same.
    pub batch: usize,
    /// Random changes of training images.
    pub augment: Augment,
}

/// A data set and where it is.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(tag = "source")]
pub enum Source {
    /// The part of Fashion-MNIST that is built in.
    #[serde(rename = "fashion-mnist-subset")]
    FashionMnistSubset,
    /// CIFAR-10 in its binary form.
    #[serde(rename = "cifar10")]
    Cifar10 {
        /// The folder with `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`.
        path: PathBuf,
    },
    /// Shards and their index, as `synfire pack` writes them.
    #[serde(rename = "packed")]
    Packed(Packed),
}

/// A packed data set: where it is, and how it is read.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Packed {
    /// The folder of `index.json`: a path or URL.
    #[serde(rename = "path")]
    pub url: String,
    /// Whether random changes of pictures of any size include a flip.
    pub flip: bool,
    /// H and W to which pictures of any size are brought.
    pub side: u32,
    /// The order of training samples.
    pub shuffle: Shuffle,
    /// What to do about a picture that does not decode.
    pub on_bad_sample: OnBadSample,
    /// Threads that decode; 0: one per core.
    pub workers: usize,
    /// The cache's folder; absent: in the user's cache folder.
    pub cache: Option<PathBuf>,
    /// The most that it holds, in GiB; 0: no cache.
    pub cache_gib: f64,
}

named! {
    /// The order of the training samples of a packed set.
    pub enum Shuffle {
        /// `Full` for small sets, `Blocks` for others.
        Auto = "auto",
        /// Any order.
        Full = "full",
        /// Blocks of neighbours, then windows.
        Blocks = "blocks",
    }
}

named! {
    /// What to do about a picture that does not decode.
    pub enum OnBadSample {
        /// Save and name it.
        Stop = "stop",
        /// Take the next good one.
        Replace = "replace",
    }
}

named! {
    pub(crate) enum SourceName {
        FashionMnistSubset = "fashion-mnist-subset",
        Cifar10 = "cifar10",
        Packed = "packed",
    }
}

named! {
    /// Random changes of training images.
    pub enum Augment {
        /// Images as they are.
        None = "none",
        /// The data set's usual shifts, flips and cutout, or crops.
        Standard = "standard",
        /// Standard, then the ImageNet policy of AutoAugment.
        AutoAugment = "autoaugment",
    }
}

/// The weights at the start.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Init {
    /// Where they are read from, as it was written; absent: they are drawn.
    pub from: Option<String>,
    /// Whether the readout is drawn all the same.
    pub skip_readout: bool,
}

impl Init {
    fn from_values(values: &Values) -> Self {
        Self {
            from: values.optional_text("init.from"),
            skip_readout: values.bool("init.skip_readout"),
        }
    }
}

/// When checkpoints are written, and which are kept.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Checkpoint {
    /// Minutes from one to the next, more than 0.
    pub every_minutes: f64,
    /// Training batches from one to the next, at least 1; absent: minutes alone.
    pub every_batches: Option<u64>,
    /// The newest that are kept, at least 1.
    pub keep_last: usize,
    /// Whether the one with the best test accuracy is kept too.
    pub keep_best: bool,
}

impl Checkpoint {
    fn from_values(values: &Values) -> Self {
        Self {
            every_minutes: values.real("checkpoint.every_minutes"),
            every_batches: values.optional_integer("checkpoint.every_batches"),
            keep_last: values.count("checkpoint.keep_last"),
            keep_best: values.bool("checkpoint.keep_best"),
        }
    }
}

named! {
    /// How gradients travel between ranks.
    pub enum Wire {
        /// As they are.
        F32 = "f32",
        /// Rounded to 8 significant bits; sums are formed in f32, by NCCL in the same.
        Bf16 = "bf16",
    }
}

named! {
    /// How gradients reach other ranks.
    pub enum Transport {
        /// From GPU to GPU where they lie on GPUs, else through the host.
        Auto = "auto",
        /// From GPU to GPU.
        Nccl = "nccl",
        /// Through the memory of the host.
        Host = "host",
    }
}

/// How several ranks work together.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Ranks {
    /// How gradients travel.
    pub wire: Wire,
    /// How they reach other ranks.
    pub transport: Transport,
    /// Gradients that are averaged at once, in MiB; 0: chosen by a measurement.
    pub bucket_mib: f64,
    /// Whether gradients are averaged while earlier layers compute theirs.
    pub overlap: bool,
    /// The longest wait for another rank; absent: by the slowest time step.
    pub deadline_seconds: Option<f64>,
}

impl Ranks {
    fn from_values(values: &Values) -> Self {
        Self {
            wire: Wire::from_name(&values.text("ranks.wire")),
            transport: Transport::from_name(&values.text("ranks.transport")),
            bucket_mib: values.real("ranks.bucket_mib"),
            overlap: values.bool("ranks.overlap"),
            deadline_seconds: values.optional_real("ranks.deadline_seconds"),
        }
    }
}

impl Packed {
    fn from_values(values: &Values) -> Self {
        Self {
            url: values.text("data.path"),
            flip: values.bool("data.flip"),
            side: values.small("data.side"),
            shuffle: Shuffle::from_name(&values.text("data.shuffle")),
            on_bad_sample: OnBadSample::from_name(&values.text("data.on_bad_sample")),
            workers: values.count("data.workers"),
            cache: values.optional_text("data.cache").map(PathBuf::from),
            cache_gib: values.real("data.cache_gib"),
        }
    }
}

impl Source {
    /// The name that configuration files use.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::FashionMnistSubset => SourceName::FashionMnistSubset.name(),
            Self::Cifar10 { .. } => SourceName::Cifar10.name(),
            Self::Packed(_) => SourceName::Packed.name(),
        }
    }
}

impl Data {
    fn from_values(values: &Values) -> Self {
        Self {
            source: match SourceName::from_name(&values.text("data.source")) {
                SourceName::FashionMnistSubset => Source::FashionMnistSubset,
                SourceName::Cifar10 => Source::Cifar10 {
                    path: values.text("data.path").into(),
                },
                SourceName::Packed => Source::Packed(Packed::from_values(values)),
            },
            batch: values.count("data.batch"),
            augment: Augment::from_name(&values.text("data.augment")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quickstart_is_a_run() {
        let run = Run::from_toml(QUICKSTART, "quickstart.toml", &[]).unwrap();
        assert_eq!(run.data.source, Source::FashionMnistSubset);
        assert_eq!(run.algorithm, Algorithm::Stol { window: 2 });
    }

    #[test]
    fn serialised_runs_have_the_keys_of_the_file() {
        let run = Run::from_toml(QUICKSTART, "quickstart.toml", &[]).unwrap();
        let table = toml::Table::try_from(&run).unwrap();
        for (outer, key, value) in [
            ("data", "source", "fashion-mnist-subset"),
            ("model", "name", "small"),
            ("algorithm", "name", "stol"),
            ("loss", "kind", "paper"),
            ("optimiser", "name", "sgd"),
            ("schedule", "kind", "cosine"),
            ("neuron", "reset", "hard"),
        ] {
            assert_eq!(table[outer][key].as_str(), Some(value), "{outer}.{key}");
        }
    }

    fn never_panics(text: &str, overrides: &[String]) -> Result<(), TestCaseError> {
        match Run::from_toml(text, "a.toml", overrides) {
            Ok(run) => {
                let again = Run::from_toml(&run.to_toml(), "b.toml", &[]);
                prop_assert_eq!(again, Ok(run));
            }
            Err(errors) => {
                prop_assert!(!errors.faults().is_empty());
                prop_assert_eq!(errors.to_string().lines().count(), errors.faults().len());
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            never_panics(&String::from_utf8_lossy(&bytes), &[])?;
        }

        #[test]
        fn random_changes_of_a_valid_file_never_panic(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
            length in 0_usize..30,
        ) {
            let mut bytes = QUICKSTART.as_bytes().to_vec();
            let start = cut.index(bytes.len());
            bytes.drain(start..(start + length).min(bytes.len()));
            for (index, byte) in changes {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
            never_panics(&String::from_utf8_lossy(&bytes), &[])?;
        }

        #[test]
        fn random_overrides_never_panic(
            key in prop::sample::select(crate::keys::KEYS).prop_map(|key| key.name),
            value in "\\PC{0,12}|-?[0-9]{1,25}|[0-9]\\.[0-9]e-?[0-9]{1,3}",
            other in "\\PC{0,20}",
        ) {
            never_panics(QUICKSTART, &[format!("{key}={value}")])?;
            never_panics(QUICKSTART, &[format!("{key}={value}"), other])?;
        }
    }
}

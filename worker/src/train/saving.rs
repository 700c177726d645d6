//! What a run keeps in its folder, when it does, and where it starts again.

use super::line::EpochLine;
use super::pulse::Pulse;
use super::{EpochRecord, Event, Tally, TrainError, init};
use crate::checkpoint::state::{Loaded, Snapshot};
use crate::checkpoint::{
    Attempt, Begin, CheckpointError, Failure, Identity, Recording, RunFolder, Writable,
};
use crate::data::{BadSample, Source};
use crate::node::Node;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;
use synfire_shared::checkpoint::{Digest, Hits, ManifestName, Position};
use synfire_shared::run::{self, Run};
use synfire_shared::shard_plan::ShardPlan;

/// Where a run starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// From the newest good checkpoint in its folder, or anew where there is none.
    #[default]
    Auto,
    /// Anew.
    Never,
    /// From a checkpoint: a manifest, or a run folder with its newest good one.
    From(String),
}

/// The generation of ranks that a process is a member of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Its number, from 1.
    pub number: u64,
    /// The checkpoint in the run's folder that it starts from; absent at the beginning of a run.
    pub start: Option<ManifestName>,
}

/// What is asked of a run beside its configuration.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The run's data, where they are open already: for all ranks.
    pub source: Option<Source>,
    /// Where it starts, unless a generation says so.
    pub resume: Resume,
    /// The generation of ranks that this process is a member of, where a coordinator forms them.
    pub generation: Option<Generation>,
    /// Set, rank 0 saves a checkpoint after the batch at hand.
    pub save: Arc<AtomicBool>,
    /// Set to the number of a signal, it ends the run after the batch at hand, saved.
    pub stop: Arc<AtomicUsize>,
    /// Where training shows that it goes on.
    pub pulse: Arc<Pulse>,
}

/// What a run has kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The folder.
    pub folder: String,
    /// Checkpoints written.
    pub checkpoints: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Bytes of the newest.
    pub bytes: u64,
    /// Seconds for which training stood still, by checkpoint.
    pub stalls: Vec<f64>,
}

/// What has been counted of an epoch that is not over, and the best test accuracy so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Counted {
    pub(super) tally: Tally,
    pub(super) seconds: f64,
    pub(super) data_wait_seconds: f64,
    #[serde(default)]
    pub(super) exchange_wait_seconds: f64,
    #[serde(default)]
    pub(super) updates: u64,
    pub(super) best: Option<Hits>,
    /// The lines of the metrics so far, in a checkpoint alone: what the file has may be written by a
    /// generation that does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lines: Option<String>,
}

/// The run's folder and the times of its checkpoints.
pub(super) struct Saving {
    recording: Option<Recording>,
    policy: run::Checkpoint,
    stop: Arc<AtomicUsize>,
    /// Whether other ranks wait for this one.
    has_peers: bool,
    /// Set where a checkpoint is asked for.
    asked: Arc<AtomicBool>,
    /// Where training starts.
    pub(super) position: Position,
    counted: Option<Counted>,
    /// The best test accuracy of a checkpoint that is written.
    best: Option<Hits>,
    /// What has become of checkpoints, to be told.
    attempts: Vec<Attempt>,
    last: (Instant, u64),
    stalls: Vec<f64>,
    /// Stalls that have been told.
    stalls_told: usize,
    /// The newest checkpoint of this process.
    handed_over: Option<u64>,
    /// A checkpoint without which the run must not end well.
    awaited: Option<u64>,
}

impl Saving {
    /// For a rank that writes nothing and starts where rank 0 does.
    pub(super) fn follow(run: &Run, options: &Options) -> Self {
        Self {
            recording: None,
            policy: run.checkpoint,
            stop: Arc::clone(&options.stop),
            has_peers: false,
            asked: Arc::clone(&options.save),
            position: Position::default(),
            counted: None,
            best: None,
            attempts: Vec::new(),
            last: (Instant::now(), 0),
            stalls: Vec::new(),
            stalls_told: 0,
            handed_over: None,
            awaited: None,
        }
    }

    /// Whether this rank keeps the run's folder.
    pub(super) fn is_recording(&self) -> bool {
        self.recording.is_some()
    }

    /// What an earlier start of the run has found out about its ranks.
    pub(super) fn tuning(&self) -> Option<Vec<u8>> {
        self.recording.as_ref()?.tuning().map(<[u8]>::to_vec)
    }

    /// Keeps what was found out about the run's ranks.
    pub(super) fn keep_tuning(&self, text: &str) {
        if let Some(recording) = &self.recording {
            recording.keep_tuning(text);
        }
    }

    /// Where training starts, and what was counted of that epoch: to be told to other ranks.
    pub(super) fn start(&self) -> (Position, Option<Counted>) {
        (self.position, self.counted.clone())
    }

    /// Starts where rank 0 does.
    pub(super) fn start_at(&mut self, (position, counted): (Position, Option<Counted>)) {
        self.has_peers = true;
        self.position = position;
        self.best = counted.as_ref().and_then(|counted| counted.best);
        self.counted = counted;
        self.last = (Instant::now(), position.batches_done);
    }

    /// Opens the run's folder, if it has one, and brings the node to where training starts: to its
    /// checkpoint, or to the weights that it starts from.
    pub(super) fn begin(
        run: &Run,
        options: &Options,
        source: &Source,
        node: &mut Node,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Self, TrainError> {
        let mut saving = Self::follow(run, options);
        let folder = run.folder.as_deref().map(RunFolder::at).transpose()?;
        if folder.is_none() && !matches!(options.resume, Resume::From(_)) {
            init::initialise(&run.init, node, tell)?;
            return Ok(saving);
        }
        let identity = identity(run, source);
        let mut damaged = Vec::new();
        let mut warn = |number: Option<ManifestName>, warning: String| {
            damaged.extend(number);
            tell(Event::Warning(warning));
        };
        let folder = folder.map(|folder| match options.generation {
            None => folder.lock(&mut |text| warn(None, text)),
            Some(generation) => folder.of_generation(generation.number),
        });
        let folder = folder.transpose()?;
        let own = folder.as_ref().map(Writable::folder);
        let found = match (options.generation, &folder) {
            (Some(generation), Some(writable)) => {
                let load = |start| writable.folder().load(start, Some(&identity));
                let start = generation.start.map(load).transpose();
                start.map_err(|error| at_start(error, generation, writable))?
            }
            (Some(_), None) => None,
            (None, _) => find(own, &options.resume, &identity, &mut warn)?,
        };
        let start = found.as_ref().map(|loaded| loaded.manifest);
        // The weights at a run's start are behind its checkpoint: they are not even looked for.
        let mut lines = None;
        if let Some(loaded) = found {
            lines = saving.resume(run, source, &loaded, node)?;
            // Another run's are not this one's.
            lines = lines.filter(|_| folder.as_ref().is_some_and(|own| own.has(&loaded.name)));
            tell(Event::Resumed {
                from: loaded.name,
                position: saving.position,
            });
        } else {
            init::initialise(&run.init, node, tell)?;
        }
        if let Some(folder) = folder {
            let epoch = saving.position.epoch;
            let begin = Begin {
                start,
                epoch,
                lines,
                damaged,
            };
            let recording = folder.begin(run, identity, begin)?;
            tell(Event::Recording {
                page: recording.page(),
                earlier: EpochLine::of_file(recording.lines()),
            });
            saving.recording = Some(recording);
        }
        saving.last = (Instant::now(), saving.position.batches_done);
        Ok(saving)
    }

    /// Returns the lines of the metrics that the checkpoint has.
    fn resume(
        &mut self,
        run: &Run,
        source: &Source,
        loaded: &Loaded,
        node: &mut Node,
    ) -> Result<Option<String>, CheckpointError> {
        let refused = |reason: String| CheckpointError::Progress {
            name: loaded.name.clone(),
            reason,
        };
        let counted = serde_json::from_slice(&loaded.progress);
        let mut counted: Counted = counted.map_err(|e| refused(e.to_string()))?;
        let (p, batches) = (loaded.position, source.train_batches() as u64);
        let done = u64::from(p.epoch).checked_mul(batches);
        // One that ends an epoch was saved before its test.
        let fits =
            p.batch <= batches && (p.epoch < run.epochs || p.epoch == run.epochs && p.batch == 0);
        if !fits || done.and_then(|done| done.checked_add(p.batch)) != Some(p.batches_done) {
            return Err(refused(format!(
                "{p:?} is no place in epochs of {batches} batches"
            )));
        }
        loaded.restore(node)?;
        self.position = loaded.position;
        self.best = counted.best;
        let lines = counted.lines.take();
        self.counted = Some(counted);
        Ok(lines)
    }

    /// What was counted of the epoch in which training starts; nothing for every later one.
    pub(super) fn take_counted(&mut self) -> Counted {
        self.counted.take().unwrap_or_default()
    }

    /// What a signal sets.
    pub(super) fn stop_flag(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.stop)
    }

    /// The signal that ends the run, if one came.
    pub(super) fn stopped(&self) -> Option<usize> {
        Some(self.stop.load(Ordering::Relaxed)).filter(|&signal| signal != 0)
    }

    /// Whether a checkpoint should be written after so many batches.
    pub(super) fn is_due(&self, batches_done: u64) -> bool {
        let Some(recording) = &self.recording else {
            return false;
        };
        if recording.has_room() && self.asked.swap(false, Ordering::Relaxed) {
            return true;
        }
        let (when, batches) = self.last;
        let by_batches = self.policy.every_batches;
        let by_batches = by_batches.is_some_and(|every| batches_done / every > batches / every);
        let minutes = when.elapsed().as_secs_f64() / 60.0;
        // A busy writer is not waited for: after the next batch it may have room.
        (by_batches || minutes >= self.policy.every_minutes) && recording.has_room()
    }

    /// Learns what has become of checkpoints.
    fn settle(&mut self) {
        let attempts = self.recording.as_ref().map(Recording::take_attempts);
        for attempt in attempts.into_iter().flatten() {
            if attempt.bytes.is_some() {
                self.best = better(self.best, attempt.test);
            }
            self.attempts.push(attempt);
        }
    }

    /// Copies the node and hands the copy over.
    pub(super) fn save(
        &mut self,
        node: &mut Node,
        (epoch, batch, batches_done): (u32, usize, u64),
        mut counted: Counted,
        test: Option<Hits>,
    ) {
        self.settle();
        let Some(recording) = &mut self.recording else {
            return;
        };
        let begin = Instant::now();
        // Of what is still being written nobody knows whether it will be there.
        counted.best = better(self.best, test);
        counted.lines = String::from_utf8(recording.lines().to_vec()).ok();
        let position = Position {
            epoch,
            batch: batch as u64,
            update: node.learner.optimiser.updates(),
            batches_done,
        };
        let progress = serde_json::to_vec(&counted).expect("numbers and lists are JSON");
        let snapshot = Snapshot::of(node, position, test, progress);
        if node.kernels.failure().is_some() {
            // It failed while it was read, or before: whoever asks it next ends the run.
            return;
        }
        recording.save(snapshot);
        self.stalls.push(begin.elapsed().as_secs_f64());
        self.last = (Instant::now(), batches_done);
        self.handed_over = Some(batches_done);
    }

    /// Keeps an epoch: its line and, where one is due, it is the best, or it is the last thing of
    /// the run, a checkpoint.
    pub(super) fn end_of_epoch(
        &mut self,
        node: &mut Node,
        record: &EpochRecord,
        (epoch, batch, batches_done): (u32, usize, u64),
        is_last: bool,
    ) {
        self.settle();
        let names = &node.learner.network.plan().neurons;
        let is_last = is_last || self.stopped().is_some();
        let Some(recording) = &mut self.recording else {
            return;
        };
        let names = names.iter().map(|(name, counter)| (name, *counter));
        recording.add_line(&EpochLine::new(record, names).text());
        let test = record.test.as_ref().and_then(hits);
        let is_best = self.policy.keep_best && better(self.best, test) != self.best;
        // Other ranks are not made to wait for an older one to be written.
        let is_best = is_best && (!self.has_peers || recording.has_room());
        if is_last || is_best || self.is_due(batches_done) {
            // A run that ends inside an epoch goes on there, with what it has counted.
            let counted = if batch == 0 {
                Counted::default()
            } else {
                Counted {
                    tally: record.train.clone(),
                    seconds: record.train_seconds,
                    data_wait_seconds: record.data_wait_seconds,
                    exchange_wait_seconds: record.exchange_wait_seconds,
                    updates: record.updates,
                    ..Counted::default()
                }
            };
            self.save(node, (epoch, batch, batches_done), counted, test);
            self.awaited = is_last.then_some(batches_done);
        }
    }

    /// Saves because the run is told to stop, unless what there is to save is saved.
    pub(super) fn stop(&mut self, node: &mut Node, place: (u32, usize, u64), counted: Counted) {
        let done = Some(place.2);
        if self.handed_over != done && self.position.batches_done != place.2 {
            self.save(node, place, counted, None);
        }
        self.awaited = done.filter(|_| self.handed_over == done);
    }

    /// Keeps what is wrong with samples.
    pub(super) fn list_bad_samples(&mut self, bad: &[BadSample]) {
        if let Some(recording) = &mut self.recording {
            let line = |bad: &BadSample| {
                json!({
                    "sample": bad.name,
                    "reason": bad.reason,
                    "replaced_by": bad.replaced_by,
                })
                .to_string()
            };
            recording.add_bad_samples(bad.iter().map(line));
        }
    }

    /// Tells what has become of what was handed over.
    ///
    /// # Errors
    /// If another process writes to the folder now.
    pub(super) fn attend(&mut self, tell: &mut dyn FnMut(Event)) -> Result<(), CheckpointError> {
        for &stall_seconds in &self.stalls[self.stalls_told..] {
            tell(Event::CheckpointCopied { stall_seconds });
        }
        self.stalls_told = self.stalls.len();
        self.settle();
        let attempts = std::mem::take(&mut self.attempts);
        let Some(recording) = &self.recording else {
            return Ok(());
        };
        tell_written(attempts, recording.take_warnings(), tell);
        recording.check()
    }

    /// Waits until all is written.
    pub(super) fn finish(
        mut self,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Option<Kept>, TrainError> {
        self.attend(tell)?;
        let Some(recording) = self.recording else {
            return Ok(None);
        };
        let folder = recording.shown().to_owned();
        let written = recording.finish();
        let taken_over = written.taken_over(&folder);
        tell_written(written.attempts, written.warnings, tell);
        let kept = Kept {
            folder,
            checkpoints: written.checkpoints,
            failures: written.failures,
            bytes: written.bytes,
            stalls: self.stalls,
        };
        if let Some(error) = taken_over {
            return Err(error.into());
        }
        if self.awaited.is_some() && self.awaited != written.newest {
            let Failure { reason, may_pass } = written.failure.unwrap_or_default();
            return Err(CheckpointError::LastNotWritten { reason, may_pass }.into());
        }
        Ok(Some(kept))
    }
}

/// What must be the same where a run goes on.
fn identity(run: &Run, source: &Source) -> Identity {
    let plan = source.shard_plan();
    Identity {
        settings: run.settings(),
        data: source.info().fingerprint,
        plan: plan.map_or_else(Digest::default, ShardPlan::digest),
        lanes: plan.map_or(1, ShardPlan::num_lanes),
        batch: plan.map_or(1, ShardPlan::batch),
        folder: run.folder.clone(),
    }
}

fn tell_written(attempts: Vec<Attempt>, warnings: Vec<String>, tell: &mut dyn FnMut(Event)) {
    for attempt in attempts {
        tell(Event::CheckpointEnded {
            seconds: attempt.seconds,
            bytes: attempt.bytes,
            manifest: attempt.manifest,
            epoch: attempt.epoch,
        });
    }
    for warning in warnings {
        tell(Event::Warning(warning));
    }
}

/// What is wrong with the checkpoint that a generation starts from: another one can be formed that
/// starts from an older one, if it is damaged.
fn at_start(error: CheckpointError, generation: Generation, folder: &Writable) -> TrainError {
    match generation.start {
        Some(manifest) if error.is_damage() => match folder.put_aside(manifest) {
            Ok(has_older) => TrainError::DamagedStart {
                manifest,
                has_older,
                source: Box::new(error),
            },
            Err(error) => error.into(),
        },
        _ => error.into(),
    }
}

/// The checkpoint to start from. `warn` is told of damaged ones, with their numbers where they lie
/// in the run's own folder.
fn find(
    folder: Option<&RunFolder>,
    resume: &Resume,
    identity: &Identity,
    warn: &mut dyn FnMut(Option<ManifestName>, String),
) -> Result<Option<Loaded>, CheckpointError> {
    let newest = |folder: &RunFolder, warn: &mut dyn FnMut(Option<ManifestName>, String)| {
        folder.newest_good(Some(identity), &mut |manifest, text| {
            warn(Some(manifest), text);
        })
    };
    match (resume, folder) {
        (Resume::Auto, Some(folder)) => newest(folder, warn),
        (Resume::Never, Some(folder)) if folder.checkpoints()?.is_empty() => Ok(None),
        (Resume::Never, Some(folder)) => Err(CheckpointError::Occupied {
            folder: folder.shown().to_owned(),
        }),
        (Resume::Auto | Resume::Never, None) => Ok(None),
        (Resume::From(location), folder) => {
            // What is in the run's own folder must be of the same run; that all of it is damaged may
            // be why another place is named.
            let own = match folder.map(|folder| newest(folder, warn)).transpose() {
                Err(CheckpointError::NoneGood { .. }) => None,
                own => own?.flatten(),
            };
            let (from, number) = RunFolder::of_checkpoint(location)?;
            let loaded = match number {
                Some(number) => Some(from.load(number, Some(identity))?),
                None => from.newest_good(Some(identity), &mut |_, text| warn(None, text))?,
            };
            let folder = location.clone();
            let loaded = loaded.ok_or(CheckpointError::Nothing { folder })?;
            match own {
                Some(own) if loaded.position.batches_done < own.position.batches_done => {
                    let (name, newest) = (loaded.name, own.name);
                    Err(CheckpointError::Older { name, newest })
                }
                _ => Ok(Some(loaded)),
            }
        }
    }
}

/// The better of two; of equals the first.
fn better(first: Option<Hits>, second: Option<Hits>) -> Option<Hits> {
    let is_better = second.map(Hits::share) > first.map(Hits::share);
    if is_better { second } else { first }
}

/// What is right of a test set after the last time step, if it has samples.
fn hits(test: &Tally) -> Option<Hits> {
    let (&correct, &samples) = (test.correct.last()?, test.samples.last()?);
    Some(Hits { correct, samples }).filter(|hits| hits.samples > 0)
}

/// Sums as the numbers of their bits: JSON keeps whole numbers exactly.
pub(super) mod bits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(in crate::train) fn serialize<S: Serializer>(
        sums: &[f64],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let bits: Vec<u64> = sums.iter().map(|sum| sum.to_bits()).collect();
        bits.serialize(serializer)
    }

    pub(in crate::train) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<f64>, D::Error> {
        let bits = Vec::<u64>::deserialize(deserializer)?;
        Ok(bits.into_iter().map(f64::from_bits).collect())
    }
}

#[cfg(test)]
mod tests;

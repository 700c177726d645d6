//! What ranks tell each other between batches: that they do the same, where they start, what they
//! counted of the test set.

use super::saving::Counted;
use super::{Event, Pulse, Tally, TrainError};
#[cfg(feature = "nccl")]
use crate::collective::Nccl;
use crate::collective::{Collective, CollectiveError};
use crate::data::{BadSample, Source};
use crate::kernel::{Arena, DeviceArenas};
use crate::learn::exchange::Waiting;
use crate::node::Node;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use synfire_shared::checkpoint::Position;
use synfire_shared::ids::Rank;
use synfire_shared::run::{self, Run, Transport};

/// The longest wait for another rank until training begins: it may have a set to read, and rank 0 a
/// checkpoint to look for.
pub(super) const STARTUP: Duration = Duration::from_mins(10);
/// The longest wait for another rank in training, unless time steps are slow.
const DEADLINE: Duration = Duration::from_mins(1);
/// Sizes of buckets that a run remembers.
const MAX_TUNED: usize = 64;
/// Slowest time steps that are waited for.
const SLOW: f64 = 10.0;

/// The longest wait for another rank in training.
pub(super) fn deadline(run: &Run, slowest_step_seconds: f64) -> Duration {
    let seconds = run.ranks.deadline_seconds;
    let by_step = || (SLOW * slowest_step_seconds).max(DEADLINE.as_secs_f64());
    Duration::from_secs_f64(seconds.unwrap_or_else(by_step))
}

/// Gives every rank what every rank says, by rank.
fn exchanged<T: Serialize + DeserializeOwned>(
    collective: &mut dyn Collective,
    mine: &T,
) -> Result<Vec<T>, TrainError> {
    let bytes = serde_json::to_vec(mine).expect("numbers, texts and lists are JSON");
    let all = collective.gather(&bytes)?;
    let read = |(rank, bytes): (usize, &Vec<u8>)| {
        serde_json::from_slice(bytes).map_err(|error| {
            let rank = Rank(u32::try_from(rank).unwrap_or(u32::MAX));
            TrainError::Disagree {
                rank,
                what: format!(
                    "sent what this rank cannot read ({error}): do they run the same version?"
                ),
            }
        })
    };
    all.iter().enumerate().map(read).collect()
}

/// What must be the same on all ranks.
fn identity(run: &Run, source: &Source) -> BTreeMap<String, String> {
    let mut identity = run.settings();
    let batches = run
        .max_batches
        .map_or("none".to_owned(), |most| most.to_string());
    // Where a set lies may differ from rank to rank; what is done about a bad sample may not.
    let on_bad = match &run.data.source {
        run::Source::Packed(packed) => packed.on_bad_sample.name(),
        run::Source::FashionMnistSubset | run::Source::Cifar10 { .. } => "stop",
    };
    let more = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("the training set", source.info().fingerprint.to_string()),
        ("run.max_batches", batches),
        ("run.evaluate_every", run.evaluate_every.to_string()),
        ("data.on_bad_sample", on_bad.to_owned()),
        ("ranks.bucket_mib", run.ranks.bucket_mib.to_string()),
        ("ranks.transport", run.ranks.transport.name().to_owned()),
    ];
    identity.extend(more.map(|(key, value)| (key.to_owned(), value)));
    identity
}

/// Refuses a group whose ranks would not do the same.
pub(super) fn agree(
    collective: &mut dyn Collective,
    run: &Run,
    source: &Source,
) -> Result<(), TrainError> {
    let mine = identity(run, source);
    let all: Vec<BTreeMap<String, String>> = exchanged(collective, &mine)?;
    let first = &all[0];
    for (rank, theirs) in all.iter().enumerate() {
        let keys = first.keys().chain(theirs.keys());
        let Some(key) = keys
            .into_iter()
            .find(|key| first.get(*key) != theirs.get(*key))
        else {
            continue;
        };
        let shown = |map: &BTreeMap<String, String>| {
            map.get(key).map_or("nothing".to_owned(), Clone::clone)
        };
        return Err(TrainError::Disagree {
            rank: Rank(u32::try_from(rank).unwrap_or(u32::MAX)),
            what: format!(
                "has {} where rank 0 has {} for {key}: give all ranks the same configuration, data \
                 and version",
                shown(theirs),
                shown(first)
            ),
        });
    }
    Ok(())
}

/// What a rank averages: GPUs would not notice that lengths differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Lengths {
    is_on_gpu: bool,
    gradients: usize,
    moments: usize,
}

fn alike(all: &[Lengths]) -> Result<(), TrainError> {
    let first = all[0];
    let Some(other) = all.iter().position(|lengths| *lengths != first) else {
        return Ok(());
    };
    let theirs = all[other];
    let what = if theirs.is_on_gpu == first.is_on_gpu {
        format!(
            "has {} gradients and {} moments where rank 0 has {} and {}: give all ranks the same \
             version",
            theirs.gradients, theirs.moments, first.gradients, first.moments
        )
    } else {
        "does not compute on the kind of device that rank 0 does: give all ranks the same run.device"
            .into()
    };
    let rank = Rank(u32::try_from(other).unwrap_or(u32::MAX));
    Err(TrainError::Disagree { rank, what })
}

/// Where gradients lie on GPUs, has the group average them there, unless the run says otherwise. Rank 0
/// warns where it could be done and cannot in this build.
pub(super) fn connect_devices(
    collective: &mut Box<dyn Collective>,
    run: &Run,
    node: &Node,
    tell: &mut dyn FnMut(Event),
) -> Result<(), TrainError> {
    let (arenas, network) = (node.kernels.device_arenas(), &node.learner.network);
    let mine = Lengths {
        is_on_gpu: arenas.is_some(),
        gradients: network.plan().layout.len(),
        moments: network.moments_len(),
    };
    alike(&exchanged(&mut **collective, &mine)?)?;
    match (run.ranks.transport, arenas) {
        (Transport::Host, _) | (Transport::Auto, None) => Ok(()),
        (Transport::Nccl, None) => Err(TrainError::Ranks(CollectiveError::Group {
            reason: format!(
                "ranks.transport is \"nccl\", and gradients of {} lie in the memory of the host: \
                 train on GPUs (run.device = \"cuda\"), or take the key out",
                node.kernels.name()
            ),
        })),
        (_, Some(arenas)) if run.ranks.wire == run::Wire::Bf16 && arenas.wire == 0 => {
            let reason = "the GPU has no memory left for gradients as bf16: make data.batch smaller, or set \
                          ranks.wire to \"f32\"";
            Err(CollectiveError::Device {
                reason: reason.into(),
            }
            .into())
        }
        (transport, Some(arenas)) => join_devices(collective, run, transport, arenas, tell),
    }
}

#[cfg(feature = "nccl")]
fn join_devices(
    collective: &mut Box<dyn Collective>,
    run: &Run,
    _: Transport,
    arenas: DeviceArenas,
    _: &mut dyn FnMut(Event),
) -> Result<(), TrainError> {
    Nccl::join(collective, arenas.ordinal, deadline(run, 0.0))?;
    collective.set_deadline(STARTUP);
    Ok(())
}

#[cfg(not(feature = "nccl"))]
fn join_devices(
    collective: &mut Box<dyn Collective>,
    _: &Run,
    transport: Transport,
    _: DeviceArenas,
    tell: &mut dyn FnMut(Event),
) -> Result<(), TrainError> {
    let build = "this synfire was built without NCCL: cargo build --release --features cuda,nccl";
    if transport == Transport::Nccl {
        let reason = format!("ranks.transport is \"nccl\", and {build}");
        return Err(CollectiveError::Group { reason }.into());
    }
    if collective.rank() == Rank(0) {
        let warning = format!("gradients take the long way through the host's memory: {build}");
        tell(Event::Warning(warning));
    }
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Start {
    position: Position,
    counted: Option<Counted>,
}

/// Brings every rank to where rank 0 is: weights, running statistics, optimiser, place.
pub(super) fn share_start(
    collective: &mut dyn Collective,
    node: &mut Node,
    (position, counted): (Position, Option<Counted>),
) -> Result<(Position, Option<Counted>), TrainError> {
    let mine = Start { position, counted };
    let mut all: Vec<Start> = exchanged(collective, &mine)?;
    let start = all.swap_remove(0);
    let learner = &mut node.learner;
    let layout = &learner.network.plan().layout;
    let states = learner.optimiser.num_states();
    for (arena, len) in [
        (Arena::Weights, layout.len()),
        (Arena::Statistics, layout.statistics_len()),
        (Arena::State, if states > 0 { layout.len() } else { 0 }),
        (
            Arena::SecondState,
            if states > 1 { layout.len() } else { 0 },
        ),
    ] {
        let mut numbers = vec![0.0; len];
        node.kernels.read_arena(arena, 0, &mut numbers);
        if len > 0 {
            collective.broadcast(Rank(0), &mut numbers)?;
            node.kernels.write_arena(arena, 0, &numbers);
        }
    }
    learner.optimiser.set_updates(start.position.update);
    Ok((start.position, start.counted))
}

/// What a rank has of the test set.
#[derive(Serialize, Deserialize)]
struct Tested {
    /// Nothing where it was told to stop.
    tally: Option<Tally>,
    stopped: usize,
    bad: Vec<BadSample>,
}

/// What all ranks together have of the test set.
pub(super) struct AllTested {
    /// Nothing where a rank was told to stop.
    pub(super) tally: Option<Tally>,
    pub(super) bad: Vec<BadSample>,
    /// The signal by which one was told.
    pub(super) stopped: Option<usize>,
}

/// The test set of all ranks: their sums, unless one was told to stop; and the samples that any of
/// them left out.
pub(super) fn join_tests(
    collective: &mut dyn Collective,
    tally: Option<Tally>,
    stopped: usize,
    bad: Vec<BadSample>,
) -> Result<AllTested, TrainError> {
    let mine = Tested {
        tally,
        stopped,
        bad,
    };
    let all: Vec<Tested> = exchanged(collective, &mine)?;
    let stopped = all.iter().map(|tested| tested.stopped).max();
    let stopped = stopped.filter(|&signal| signal != 0);
    let mut bad = Vec::new();
    let mut sum = Some(Tally::default());
    for tested in all {
        bad.extend(tested.bad);
        match (&mut sum, tested.tally) {
            (Some(sum), Some(tally)) => sum.join(&tally),
            _ => sum = None,
        }
    }
    Ok(AllTested {
        tally: sum,
        bad,
        stopped,
    })
}

/// The samples that could not be used, of all ranks.
pub(super) fn join_bad(
    collective: &mut dyn Collective,
    bad: &[BadSample],
) -> Result<Vec<BadSample>, TrainError> {
    let all: Vec<Vec<BadSample>> = exchanged(collective, &bad.to_vec())?;
    Ok(all.into_iter().flatten().collect())
}

/// Tells a pulse of waits for other ranks, each of which is the end of some work.
pub(super) fn waiting(pulse: &Arc<Pulse>) -> Waiting {
    let pulse = Arc::clone(pulse);
    Arc::new(move |waits| pulse.beat(|beat| beat.waits = waits))
}

/// Waits for all ranks; rank 0 may have a checkpoint to write first.
pub(super) fn meet(collective: &mut dyn Collective) -> Result<(), TrainError> {
    collective.set_deadline(STARTUP);
    collective.gather(&[])?;
    Ok(())
}

/// Tells the other ranks why this one ends, if it is not they who end it.
pub(super) fn tell(error: &TrainError, collective: &mut dyn Collective) {
    let is_known = matches!(
        error,
        TrainError::Ranks(
            CollectiveError::Lost { .. }
                | CollectiveError::Unequal { .. }
                | CollectiveError::OutOfStep { .. }
                | CollectiveError::Left { .. }
        )
    );
    if is_known || collective.world().0 == 1 {
        return;
    }
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        reason = format!("{reason}: {error}");
        source = error.source();
    }
    collective.abort(&reason);
}

/// Sizes of buckets, in numbers, by what they depend on, in words.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Tuned {
    buckets: BTreeMap<String, usize>,
}

impl Tuned {
    /// What is known from earlier starts of the run; nothing where that cannot be read.
    pub(super) fn read(tuning: Option<&[u8]>) -> Self {
        let read = tuning.and_then(|bytes| serde_json::from_slice(bytes).ok());
        read.unwrap_or_default()
    }

    /// Adds one; of too many others all are forgotten.
    pub(super) fn add(&mut self, key: String, bucket: usize) {
        if self.buckets.len() >= MAX_TUNED {
            self.buckets.clear();
        }
        self.buckets.insert(key, bucket);
    }

    /// What the best size depends on.
    pub(super) fn key(run: &Run, collective: &dyn Collective, len: usize) -> String {
        let (name, world) = (collective.name(), collective.world().0);
        let wire = run.ranks.wire.name();
        format!("{len} gradients as {wire} over {name} between {world} ranks")
    }

    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers are JSON")
    }
}

/// The size that rank 0 knows from an earlier start of the run, if it is for the same group.
pub(super) fn known_bucket(
    collective: &mut dyn Collective,
    tuned: &Tuned,
    key: &str,
) -> Result<Option<usize>, TrainError> {
    let mine = tuned.buckets.get(key).copied();
    let mine = mine.filter(|&bucket| bucket > 0);
    let mut all: Vec<Option<usize>> = exchanged(collective, &mine)?;
    Ok(all.swap_remove(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_would_average_different_lengths_are_refused() {
        let lengths = |is_on_gpu, gradients| Lengths {
            is_on_gpu,
            gradients,
            moments: 8,
        };
        assert!(alike(&[lengths(true, 100); 3]).is_ok());
        let all = [lengths(true, 100), lengths(true, 100), lengths(true, 116)];
        let text = alike(&all).unwrap_err().to_string();
        assert!(text.starts_with("rank 2 has 116 gradients"), "{text}");
        let all = [lengths(true, 100), lengths(false, 100)];
        let text = alike(&all).unwrap_err().to_string();
        assert!(text.contains("run.device"), "{text}");
    }

    #[test]
    fn sizes_of_buckets_are_kept_for_every_group_a_run_had() {
        let mut tuned = Tuned::default();
        tuned.add("between 2 ranks".into(), 1024);
        tuned.add("between 3 ranks".into(), 4096);
        let text = tuned.text();
        let mut again = Tuned::read(Some(text.as_bytes()));
        assert_eq!(again, tuned);
        assert_eq!(again.buckets["between 2 ranks"], 1024);
        for number in 0..2 * MAX_TUNED {
            again.add(number.to_string(), 1);
            assert!(again.buckets.len() <= MAX_TUNED);
        }
        for broken in [None, Some(&b"{"[..]), Some(b"[1]"), Some(br#"{"key":-1}"#)] {
            assert_eq!(Tuned::read(broken), Tuned::default());
        }
    }
}

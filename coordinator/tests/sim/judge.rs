//! What must never happen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use synfire_shared::checkpoint::{ManifestName, manifest_of_name};
use synfire_shared::generation::{Generation, GenerationName, Lineage};
use synfire_shared::ids::{Epoch, Rank, World};
use synfire_shared::shard_plan::{ShardPlan, Shuffle};

use super::store::{History, Store};
use super::{Outcome, Script};

pub(crate) const BATCH: u32 = 8;
const SAMPLES: u64 = 43;
const BATCHES_PER_EPOCH: u64 = 5;
const EPOCHS: u32 = 7;
/// Batches of the whole run.
pub(crate) const BATCHES: u64 = BATCHES_PER_EPOCH * EPOCHS as u64;
const MAX_WORLD: u32 = 4;

/// By batch of the run, world and rank: the samples.
static SHARES: LazyLock<Vec<Vec<Vec<Vec<u32>>>>> = LazyLock::new(|| {
    let plan = plan();
    (0..BATCHES)
        .map(|batch| {
            let epoch = u32::try_from(batch / BATCHES_PER_EPOCH).unwrap();
            let order = plan.order(Epoch(epoch));
            let batch = u32::try_from(batch % BATCHES_PER_EPOCH).unwrap();
            let of_rank = |world, rank| {
                let share = plan.share(Rank(rank), World(world)).unwrap();
                order.share(batch, &share).collect()
            };
            let of_world = |world| (0..world).map(|rank| of_rank(world, rank)).collect();
            (0..=MAX_WORLD).map(of_world).collect()
        })
        .collect()
});

fn plan() -> ShardPlan {
    ShardPlan::new(7, [3; 32], Shuffle::Full, [20, SAMPLES - 20], BATCH).unwrap()
}

pub(crate) fn epoch_of(batches_done: u64) -> u32 {
    u32::try_from(batches_done / BATCHES_PER_EPOCH).unwrap()
}

/// Watches a history.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    pub(crate) outcome: Outcome,
    pub(crate) fault: Option<String>,
    /// The generations that began, with where they started.
    begun: BTreeMap<u64, String>,
    newest: u64,
    /// What the newest generation has learnt, what it started from included.
    line: History,
    final_state: Option<History>,
    /// Checkpoints of which their writers saw that they count.
    confirmed: BTreeSet<ManifestName>,
}

impl Judge {
    fn blame(&mut self, text: String) {
        self.fault.get_or_insert(text);
    }

    /// A coordinator tells ranks to start.
    pub(crate) fn begins(&mut self, generation: &Generation, store: &Store) {
        let number = generation.generation;
        self.outcome.generations += 1;
        if let Some(other) = self.begun.insert(number, generation.name().to_string()) {
            let name = generation.name();
            self.blame(format!(
                "two generations {number} began: {other} and {name}"
            ));
        }
        // One that is overtaken before it starts is stale from its birth.
        if number <= self.newest {
            return;
        }
        let none = History::new();
        let start = generation.start.as_ref().map(|start| {
            let name = manifest_of_name(&start.manifest).expect("it is checked");
            store.manifests.get(&name).expect("it is there")
        });
        let start = start.unwrap_or(&none);
        if !self.line.starts_with(start) {
            let (at, line) = (start.len(), self.line.len());
            let newest = self.newest;
            self.blame(format!(
                "generation {number} starts from {at} batches that are not among the {line} that \
                 generation {newest} has learnt: {start:?}, {:?}",
                self.line
            ));
        }
        if let Some(newest) = self.newest_confirmed(generation, store)
            && start.len() < newest
        {
            let at = start.len();
            self.blame(format!(
                "generation {number} starts from {at} batches, {newest} were saved"
            ));
        }
        self.newest = number;
        self.line.clone_from(start);
    }

    /// A rank saw that its checkpoint counts.
    pub(crate) fn confirms(&mut self, manifest: ManifestName) {
        self.confirmed.insert(manifest);
    }

    /// The batches of the newest checkpoint that counted for its writer and is whole, unless an
    /// allocation that came to nothing stands in the way.
    fn newest_confirmed(&self, own: &Generation, store: &Store) -> Option<usize> {
        let others = store
            .generations
            .values()
            .filter(|g| g.name() != own.name());
        let mut links = Vec::new();
        for generation in others {
            let begun = self.begun.get(&generation.generation)?;
            if *begun != generation.name().to_string() {
                return None;
            }
            links.push(generation.link());
        }
        let whole = self
            .confirmed
            .iter()
            .filter(|name| !store.damaged.contains(name));
        let newest = Lineage::of(links).newest(whole.copied())?;
        usize::try_from(newest.batches_done).ok()
    }

    /// The ranks of a generation learnt from a batch.
    pub(crate) fn learns(&mut self, generation: u64, history: &History) {
        if generation == self.newest {
            if history.len() != self.line.len() + 1 || !history.starts_with(&self.line) {
                self.blame(format!("generation {generation} is trained by two groups"));
            }
            self.line.clone_from(history);
            let worlds = history.windows(2).last().map(|w| w[0].world != w[1].world);
            self.outcome.worlds_changed += u64::from(worlds == Some(true));
        } else {
            self.outcome.stale_batches += 1;
        }
    }

    /// A rank says that the run is finished, in this state.
    pub(crate) fn finishes(&mut self, generation: u64, history: &History, now: u64) {
        if self.outcome.finished_at.is_none() {
            self.outcome.finished_at = Some(now);
            self.final_state = Some(history.clone());
        }
        if *history != self.line {
            let newest = self.newest;
            self.blame(format!(
                "generation {generation} finished, but generation {newest} went on from elsewhere"
            ));
        }
        if let Err(fault) = check_samples(history) {
            self.blame(fault);
        }
    }

    /// The run is over, as a coordinator says, but did not finish.
    pub(crate) fn over_without_finish(&self, store: &Store, script: &Script) -> Result<(), String> {
        if script.is_bare || store.is_all_damaged() {
            return Ok(());
        }
        Err(format!("over without a reason: {:?}", self.outcome.over))
    }

    /// What counts in the end is one line.
    pub(crate) fn end(&self, store: &Store) -> Result<(), String> {
        let Some(last) = &self.final_state else {
            return Err("everybody is gone and nothing is finished".into());
        };
        let links: Vec<_> = store.generations.values().map(Generation::link).collect();
        let lineage = Lineage::of(links.iter().copied());
        // A coordinator that ends while it allocates leaves a generation behind that never began, and
        // with it perhaps an older start: what was trained behind that is trained again, even the last
        // batches of a run that was finished (ARCHITECTURE.md).
        let has_begun = |name: GenerationName| {
            let begun = self.begun.get(&name.number);
            begun.is_some_and(|begun| *begun == name.to_string())
        };
        let finished = last.last().map_or(0, |learnt| learnt.generation);
        let goes_on_behind = |name: &ManifestName| {
            let mut links = links.iter().map(|link| link.name);
            let between = finished + 1..=name.generation;
            links.any(|link| between.contains(&link.number) && !has_begun(link))
        };
        for (name, history) in &store.manifests {
            if lineage.counts(*name) && !last.starts_with(history) && !goes_on_behind(name) {
                return Err(format!("{name:?} counts and leads elsewhere: {history:?}"));
            }
        }
        let begun = links.iter().copied().filter(|link| {
            let name = ManifestName {
                batches_done: 0,
                generation: link.name.number,
            };
            has_begun(link.name) && !goes_on_behind(&name)
        });
        let manifests = store.manifests.keys().copied();
        let newest = Lineage::of(begun).newest(manifests.filter(|name| !goes_on_behind(name)));
        let newest = newest.and_then(|name| store.manifests.get(&name));
        if newest != Some(last) {
            return Err("the last checkpoint does not count".into());
        }
        Ok(())
    }
}

/// Each sample of an epoch once, from the shares of the ranks that there were.
fn check_samples(history: &History) -> Result<(), String> {
    let mut seen: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for learnt in history {
        let samples = seen.entry(epoch_of(learnt.batch)).or_default();
        let shares = &SHARES[usize::try_from(learnt.batch).unwrap()];
        samples.extend(shares[learnt.world as usize].iter().flatten());
    }
    let plan = plan();
    for epoch in 0..EPOCHS {
        let order = plan.order(Epoch(epoch));
        let mut wanted: Vec<u32> = (0..plan.num_batches())
            .flat_map(|b| order.batch(b))
            .collect();
        let mut got = seen.remove(&epoch).unwrap_or_default();
        wanted.sort_unstable();
        got.sort_unstable();
        if got != wanted {
            return Err(format!(
                "epoch {epoch}: samples {got:?} instead of {wanted:?}"
            ));
        }
    }
    Ok(())
}

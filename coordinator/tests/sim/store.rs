//! What the run folder holds.

use std::collections::{BTreeMap, BTreeSet};

use synfire_shared::checkpoint::ManifestName;
use synfire_shared::generation::{Generation, GenerationName, Survey};

use super::judge::BATCHES;

/// A batch that was learnt from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Learnt {
    /// Its number in the run, by the position that the ranks had.
    pub(crate) batch: u64,
    pub(crate) generation: u64,
    pub(crate) world: u32,
}

/// All batches of which a state came, in their order.
pub(crate) type History = Vec<Learnt>;

#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    pub(crate) generations: BTreeMap<GenerationName, Generation>,
    pub(crate) manifests: BTreeMap<ManifestName, History>,
    pub(crate) damaged: BTreeSet<ManifestName>,
}

impl Store {
    pub(crate) fn survey(&self) -> Survey {
        let links: Vec<_> = self.generations.values().map(Generation::link).collect();
        let mut survey = Survey {
            links,
            newest: Vec::new(),
            manifests: self.manifests.keys().copied().collect(),
        };
        let number = survey.number();
        let newest = self.generations.values().filter(|g| g.generation == number);
        survey.newest = newest.cloned().collect();
        survey
    }

    pub(crate) fn newest_number(&self) -> u64 {
        self.generations
            .keys()
            .map(|name| name.number)
            .max()
            .unwrap_or(0)
    }

    /// The newest checkpoint that counts and is whole is damaged, if it is not the last of the run.
    pub(crate) fn damage(&mut self) {
        let is_out = |m: ManifestName| self.damaged.contains(&m) || m.batches_done == BATCHES;
        let newest = self.survey().newest_counting(None, &is_out);
        self.damaged.extend(newest);
    }

    /// Whether all checkpoints that count are damaged, and there is one.
    pub(crate) fn is_all_damaged(&self) -> bool {
        let survey = self.survey();
        survey.newest_counting(None, &|_| false).is_some()
            && survey
                .newest_counting(None, &|m| self.damaged.contains(&m))
                .is_none()
    }
}

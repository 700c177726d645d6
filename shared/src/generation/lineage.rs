//! Which checkpoints count.

use std::collections::BTreeMap;

use super::{Generation, GenerationName};
use crate::checkpoint::ManifestName;

/// A generation, as far as the lineage has to know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Link {
    /// Its name.
    pub name: GenerationName,
    /// Batches done where it started; absent at the beginning of a run.
    pub start: Option<u64>,
}

/// What a run folder holds of generations and checkpoints.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Survey {
    /// All generations, by name.
    pub links: Vec<Link>,
    /// Those with the highest number: one, or the rivals of an allocation that did not end.
    pub newest: Vec<Generation>,
    /// The manifests of all checkpoints, without a look inside.
    pub manifests: Vec<ManifestName>,
}

impl Survey {
    /// The highest number of a generation; 0 of none.
    pub fn number(&self) -> u64 {
        let numbers = self.links.iter().map(|link| link.name.number);
        numbers.max().unwrap_or(0)
    }

    /// Whether another generation stands in the way of this one: of the same number or a later one.
    pub fn has_rival(&self, own: GenerationName) -> bool {
        let mut names = self.links.iter().map(|link| link.name);
        names.any(|name| name != own && name.number >= own.number)
    }

    /// The newest checkpoint that counts and is not `excluded`, as the generation `but` would have
    /// it if it were not there.
    pub fn newest_counting(
        &self,
        but: Option<GenerationName>,
        excluded: &dyn Fn(ManifestName) -> bool,
    ) -> Option<ManifestName> {
        let links = self.links.iter().copied();
        let lineage = Lineage::of(links.filter(|link| Some(link.name) != but));
        let manifests = self.manifests.iter().copied();
        lineage.newest(manifests.filter(|&manifest| !excluded(manifest)))
    }
}

/// Which checkpoints count: one does if every later generation started from it or behind it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lineage {
    /// By number of a generation: the fewest batches from which it or a later one started; `None`
    /// where one of them started from nothing.
    limits: BTreeMap<u64, Option<u64>>,
}

impl Lineage {
    /// The lineage of these generations, all that a run folder has.
    pub fn of(links: impl IntoIterator<Item = Link>) -> Self {
        let mut limits = BTreeMap::new();
        for link in links {
            // Of rivals the one that counts least: so no start is ever believed that was not.
            let limit = limits.entry(link.name.number).or_insert(link.start);
            *limit = (*limit).min(link.start);
        }
        let mut later = None;
        for (_, limit) in limits.iter_mut().rev() {
            *limit = later.map_or(*limit, |later| (*limit).min(later));
            later = Some(*limit);
        }
        Self { limits }
    }

    /// Whether a checkpoint counts.
    pub fn counts(&self, manifest: ManifestName) -> bool {
        let mut later = self.limits.range(manifest.generation.saturating_add(1)..);
        match later.next() {
            None => true,
            Some((_, limit)) => limit.is_some_and(|limit| manifest.batches_done <= limit),
        }
    }

    /// The newest of these checkpoints that counts: where the next generation starts.
    pub fn newest(
        &self,
        manifests: impl IntoIterator<Item = ManifestName>,
    ) -> Option<ManifestName> {
        let counting = manifests.into_iter().filter(|&m| self.counts(m));
        counting.max()
    }
}

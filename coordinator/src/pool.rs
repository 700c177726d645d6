//! Who waits, and who becomes which rank.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use synfire_shared::protocol::{JoinRequest, Member};

/// Who has not asked for so long is gone; workers ask twice a second.
const GONE: Duration = Duration::from_secs(4);
/// Who has not asked for so long is not taken into a generation.
const FRESH: Duration = Duration::from_secs(2);
/// As many processes are kept.
const MOST: usize = 1024;

/// A process that asks to be a rank.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) request: JoinRequest,
    /// When it first asked.
    pub(crate) since: Duration,
    /// When it last asked.
    pub(crate) asked: Duration,
}

/// The processes that ask to be a rank.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool {
    by_process: BTreeMap<String, Waiting>,
}

impl Pool {
    /// A process asks. Returns whether it is new.
    pub(crate) fn ask(&mut self, request: JoinRequest, now: Duration) -> bool {
        if let Some(waiting) = self.by_process.get_mut(&request.process) {
            waiting.asked = now;
            waiting.request = request;
            return false;
        }
        if self.by_process.len() < MOST {
            let waiting = Waiting {
                request,
                since: now,
                asked: now,
            };
            let process = waiting.request.process.clone();
            self.by_process.insert(process, waiting);
        }
        true
    }

    /// Forgets a process.
    pub(crate) fn remove(&mut self, process: &str) {
        self.by_process.remove(process);
    }

    /// Forgets who is gone.
    pub(crate) fn forget(&mut self, now: Duration) {
        self.by_process
            .retain(|_, waiting| now.saturating_sub(waiting.asked) < GONE);
    }

    /// All, by process.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Waiting> {
        self.by_process.values()
    }

    /// When any process last asked.
    pub(crate) fn heard(&self) -> Option<Duration> {
        self.all().map(|waiting| waiting.asked).max()
    }

    /// When this process first asked.
    pub(crate) fn since(&self, process: &str) -> Option<Duration> {
        self.by_process.get(process).map(|waiting| waiting.since)
    }

    /// Who asked first for this rank and still does, if that is another process.
    pub(crate) fn holder(&self, rank: u32, process: &str, now: Duration) -> Option<&Waiting> {
        let claims = self
            .all()
            .filter(|w| w.request.rank == Some(rank) && w.is_fresh(now));
        let first = claims.min_by_key(|w| (w.since, w.request.process.as_str()))?;
        (first.request.process != process).then_some(first)
    }

    /// Who can be a rank now, at most `ranks` of them: who asks for one first, then who waits
    /// longest.
    pub(crate) fn eligible(&self, ranks: u32, now: Duration) -> Vec<&Waiting> {
        let mut found: Vec<&Waiting> = self.all().filter(|w| w.is_fresh(now)).collect();
        let age = |w: &&Waiting| (w.request.rank.is_none(), w.since, w.request.process.clone());
        found.sort_by_key(age);
        let mut taken = BTreeSet::new();
        found.retain(|w| w.request.rank.is_none_or(|rank| taken.insert(rank)));
        found.truncate(ranks as usize);
        found
    }
}

impl Waiting {
    fn is_fresh(&self, now: Duration) -> bool {
        now.saturating_sub(self.asked) <= FRESH
    }
}

/// These processes as ranks. Where all `ranks` are there each keeps the rank that it asks for, and
/// others the rank that they had; where some are missing the ranks close up in that order.
pub(crate) fn members(
    chosen: &[&Waiting],
    ranks: u32,
    before: &BTreeMap<String, u32>,
) -> Vec<Member> {
    let claim = |w: &Waiting| w.request.rank;
    let had = |w: &Waiting| before.get(&w.request.process).copied();
    let mut seats: BTreeMap<u32, &Waiting> = BTreeMap::new();
    if chosen.len() == ranks as usize {
        let mut left: Vec<&Waiting> = chosen.to_vec();
        for wish in [&claim as &dyn Fn(&Waiting) -> Option<u32>, &had] {
            left.retain(|w| {
                match wish(w).filter(|rank| *rank < ranks && !seats.contains_key(rank)) {
                    Some(rank) => seats.insert(rank, w).is_some(),
                    None => true,
                }
            });
        }
        let free: Vec<u32> = (0..ranks)
            .filter(|rank| !seats.contains_key(rank))
            .collect();
        seats.extend(free.into_iter().zip(left));
    } else {
        let mut ordered: Vec<&Waiting> = chosen.to_vec();
        ordered.sort_by_key(|w| (claim(w).or(had(w)).unwrap_or(u32::MAX), w.since));
        seats.extend((0..).zip(ordered));
    }
    let member = |(rank, waiting): (u32, &Waiting)| Member {
        rank,
        process: waiting.request.process.clone(),
        host: waiting.request.host.clone(),
        pid: waiting.request.pid,
        collective: waiting.request.collective,
        metrics: waiting.request.metrics,
    };
    seats.into_iter().map(member).collect()
}

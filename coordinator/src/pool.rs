//! Who waits, and who becomes which rank.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use synfire_shared::protocol::{JoinRequest, Member};

/// Who has not asked for so long is gone; workers ask twice a second.
const GONE: Duration = Duration::from_secs(4);
/// Who has not asked for so long is not taken into a generation.
const FRESH: Duration = Duration::from_secs(2);
/// As many processes are kept.
const MOST: usize = 1024;

/// A process that asks to be a rank. What it is going to train is not kept here: who is admitted is going
/// to train what all are, of which the run has one copy.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) process: String,
    pub(crate) host: String,
    pub(crate) pid: u32,
    /// The rank that it asks for.
    pub(crate) rank: Option<u32>,
    collective: Option<SocketAddr>,
    pub(crate) metrics: Option<SocketAddr>,
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
    pub(crate) fn ask(&mut self, request: &JoinRequest, now: Duration) -> bool {
        let known = self.by_process.get(&request.process);
        let since = known.map(|waiting| waiting.since);
        if since.is_some() || self.by_process.len() < MOST {
            let waiting = Waiting {
                process: request.process.clone(),
                host: request.host.clone(),
                pid: request.pid,
                rank: request.rank,
                collective: request.collective,
                metrics: request.metrics,
                since: since.unwrap_or(now),
                asked: now,
            };
            self.by_process.insert(request.process.clone(), waiting);
        }
        since.is_none()
    }

    /// Whether a process asks.
    pub(crate) fn has(&self, process: &str) -> bool {
        self.by_process.contains_key(process)
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
            .filter(|w| w.rank == Some(rank) && w.is_fresh(now));
        let first = claims.min_by_key(|w| (w.since, w.process.as_str()))?;
        (first.process != process).then_some(first)
    }

    /// Who can be a rank now, at most `ranks` of them: who asks for one first, then who waits
    /// longest.
    pub(crate) fn eligible(&self, ranks: u32, now: Duration) -> Vec<&Waiting> {
        let mut found: Vec<&Waiting> = self.all().filter(|w| w.is_fresh(now)).collect();
        let age = |w: &&Waiting| (w.rank.is_none(), w.since, w.process.clone());
        found.sort_by_key(age);
        let mut taken = BTreeSet::new();
        found.retain(|w| w.rank.is_none_or(|rank| taken.insert(rank)));
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
    let claim = |w: &Waiting| w.rank;
    let had = |w: &Waiting| before.get(&w.process).copied();
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
        process: waiting.process.clone(),
        host: waiting.host.clone(),
        pid: waiting.pid,
        collective: waiting.collective,
        metrics: waiting.metrics,
    };
    seats.into_iter().map(member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use synfire_shared::checkpoint::Digest;
    use synfire_shared::protocol::{Identity, PROTOCOL};

    #[test]
    fn what_waits_is_small_whatever_it_trains() {
        let setting = |at: u32| (format!("key.{at}"), "x".repeat(4000));
        let mut request = JoinRequest {
            protocol: PROTOCOL,
            version: "0.1.0".into(),
            process: String::new(),
            host: "host".into(),
            pid: 1,
            rank: None,
            world: None,
            identity: Identity {
                configuration: Digest::default(),
                settings: (0..200).map(setting).collect(),
                data: Digest::default(),
                plan: Digest::default(),
                lanes: 1,
                batch: 1,
                folder: None,
            },
            collective: None,
            metrics: None,
            left: 0,
        };
        let mut pool = Pool::default();
        for process in 0..2 * MOST {
            request.process = format!("{process:032x}");
            assert!(pool.ask(&request, Duration::ZERO));
        }
        assert_eq!(pool.by_process.len(), MOST);
        assert!(format!("{pool:?}").len() < 1024 * MOST);
    }
}

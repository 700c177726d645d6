//! One writer at a time in an object store, which has no locks: an object that says who writes.
//!
//! `owner.json` has an id and a count that grows while its process lives. Who finds it watches it
//! by a clock of his own, so that clocks need not agree: if the count stands still for the length
//! of the lease, the process is gone, and of those who see that one takes the folder over, where the
//! store can do conditional writes. Before anything is written that others read or that is deleted,
//! the owner looks whether it still is one.
//!
//! Between that look and the write there is time, and a process that is stopped in it for longer
//! than a lease writes once more. What it writes then is a checkpoint of the same run with the same
//! bits; ARCHITECTURE.md says what may happen.

use super::CheckpointError;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use synfire_shared::checkpoint::Digest;
use synfire_shared::storage::{
    Expected, Outcome, StorageError, Store, Version, seconds_from_environment,
};

/// The object that says who writes.
pub(super) const OWNER: &str = "owner.json";
/// A larger one is not ours.
const MAX_OWNER_BYTES: u64 = 4096;
/// The variable with the seconds after which a process that shows no life is taken for gone.
const LEASE_VARIABLE: &str = "SYNFIRE_STORE_LEASE_SECONDS";
/// Unless the environment says otherwise.
const LEASE: Duration = Duration::from_secs(30);
/// Longer is not waited, whatever an owner says of itself.
const MAX_LEASE_SECONDS: u64 = 3600;
/// Between two looks at another owner.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For two who write at the same time where the store cannot tell them apart.
const SETTLE: Duration = Duration::from_secs(2);
/// Changes of owner that are watched before the folder is left to the others.
const MAX_OWNERS: usize = 4;

/// Who writes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Owner {
    /// Drawn by each process.
    id: String,
    /// Grows while it lives.
    beat: u64,
    lease_seconds: u64,
}

impl Owner {
    fn new(lease: Duration) -> Self {
        // Seeded by the operating system.
        let drawn = RandomState::new();
        let [a, b] = [0, 1].map(|word: u64| drawn.hash_one(word).to_le_bytes());
        let process = std::process::id().to_le_bytes();
        let digest = Digest::of_all(&[&a, &b, &process]).to_string();
        Self {
            id: digest[..32].into(),
            beat: 0,
            lease_seconds: lease.as_secs(),
        }
    }

    fn bytes(&self) -> Bytes {
        let json = serde_json::to_vec(self);
        json.expect("text and numbers are JSON").into()
    }
}

/// The right to write to a run folder in an object store.
#[derive(Debug)]
pub(super) struct Lease {
    store: Store,
    id: String,
    /// Whether the store answered when it was last asked.
    is_reached: Arc<AtomicBool>,
    end: Option<SyncSender<()>>,
    beats: Option<JoinHandle<()>>,
}

impl Lease {
    /// Takes the folder; where it has an owner, waits until that shows life or its lease is over.
    pub(super) fn take(
        store: &Store,
        tell: &mut dyn FnMut(String),
    ) -> Result<Self, CheckpointError> {
        let lease = seconds_from_environment(LEASE_VARIABLE, LEASE)?;
        let mut pause = |time| thread::sleep(time);
        let owner = Owner::new(lease);
        take(store, &owner, tell, &mut pause)?;
        Ok(Self::start(store.clone(), owner, lease / 3))
    }

    fn start(store: Store, mut owner: Owner, every: Duration) -> Self {
        let (end, ended) = sync_channel(0);
        let (id, own) = (owner.id.clone(), store.clone());
        let is_reached = Arc::new(AtomicBool::new(true));
        let reached = Arc::clone(&is_reached);
        let work = move || {
            while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                owner.beat += 1;
                let beat = beat(&own, &owner);
                reached.store(beat.is_ok(), Ordering::Relaxed);
                if let Err(error) = beat {
                    // The writer finds out, too, when it next has something to write.
                    tracing::debug!(%error, "no sign of life is written");
                }
            }
        };
        let beats = thread::Builder::new().name("lease".into()).spawn(work);
        Self {
            store,
            id,
            is_reached,
            end: Some(end),
            beats: Some(beats.expect("the operating system gives a thread")),
        }
    }

    /// Asks whether the folder is still this process's own.
    pub(super) fn check(&self) -> Result<(), CheckpointError> {
        let found = read(&self.store);
        self.is_reached.store(found.is_ok(), Ordering::Relaxed);
        if found?.is_some_and(|found| found.is_of(&self.id)) {
            return Ok(());
        }
        Err(CheckpointError::TakenOver {
            folder: self.store.url().to_owned(),
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.end = None;
        if let Some(beats) = self.beats.take() {
            // Whether it panicked or not, it writes no more.
            let _ = beats.join();
        }
        // An owner that stays is in nobody's way for longer than its lease; a store that is not
        // there is not waited for again.
        if self.is_reached.load(Ordering::Relaxed) && self.check().is_ok() {
            let _ = self.store.delete(OWNER);
        }
    }
}

/// What is at [`OWNER`].
struct Found {
    bytes: Bytes,
    version: Version,
}

impl Found {
    /// The owner; nothing where another program wrote it.
    fn owner(&self) -> Option<Owner> {
        serde_json::from_slice(&self.bytes).ok()
    }

    fn is_of(&self, id: &str) -> bool {
        self.owner().is_some_and(|owner| owner.id == id)
    }

    /// How long it must stand still to be taken for gone.
    fn lease(&self) -> Duration {
        let seconds = self.owner().map_or(LEASE.as_secs(), |o| o.lease_seconds);
        Duration::from_secs(seconds.clamp(1, MAX_LEASE_SECONDS))
    }
}

fn read(store: &Store) -> Result<Option<Found>, CheckpointError> {
    match store.get_with_version(OWNER, MAX_OWNER_BYTES) {
        Ok((bytes, version)) => Ok(Some(Found { bytes, version })),
        Err(StorageError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn take(
    store: &Store,
    owner: &Owner,
    tell: &mut dyn FnMut(String),
    pause: &mut dyn FnMut(Duration),
) -> Result<(), CheckpointError> {
    let in_use = || CheckpointError::InUse {
        folder: store.url().to_owned(),
    };
    let mut failure = None;
    for _ in 0..MAX_OWNERS {
        let found = read(store)?;
        if let Some(found) = &found {
            if found.is_of(&owner.id) {
                return Ok(());
            }
            let (lease, folder) = (found.lease(), store.url());
            tell(format!(
                "{folder} has the {OWNER} of a process that is running or was killed: if it shows \
                 no life for {} s, this one takes over",
                lease.as_secs()
            ));
            let mut still = Duration::ZERO;
            while still < lease {
                pause(LOOK_EVERY);
                still += LOOK_EVERY;
                match read(store)? {
                    // It has ended.
                    None => break,
                    Some(now) if now.bytes == found.bytes => {}
                    Some(_) => return Err(in_use()),
                }
            }
            if still < lease {
                continue;
            }
        }
        let expected = found
            .as_ref()
            .map_or(Expected::Absent, |f| Expected::Unchanged(&f.version));
        // Somebody else may have been faster, or an answer have been lost; the next look tells.
        match store.put_if(OWNER, owner.bytes(), expected) {
            Ok(Outcome::Written | Outcome::Refused) => failure = None,
            Ok(Outcome::Unsupported) => {
                store.put(OWNER, owner.bytes())?;
                pause(SETTLE);
            }
            Err(error) => failure = Some(error),
        }
    }
    match (read(store)?, failure) {
        (Some(found), _) if found.is_of(&owner.id) => Ok(()),
        (None, Some(error)) => Err(error.into()),
        _ => Err(in_use()),
    }
}

/// Writes a sign of life, unless the owner is another by now.
fn beat(store: &Store, owner: &Owner) -> Result<(), CheckpointError> {
    let Some(found) = read(store)?.filter(|found| found.is_of(&owner.id)) else {
        return Ok(());
    };
    let expected = Expected::Unchanged(&found.version);
    if store.put_if(OWNER, owner.bytes(), expected)? == Outcome::Unsupported {
        store.put(OWNER, owner.bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(seconds: u64) -> Owner {
        Owner::new(Duration::from_secs(seconds))
    }

    /// Takes without a pause; `meanwhile` is called where one would be.
    fn try_take(
        store: &Store,
        owner: &Owner,
        meanwhile: &mut dyn FnMut(),
    ) -> (Result<(), CheckpointError>, Duration) {
        let mut paused = Duration::ZERO;
        let taken = take(store, owner, &mut |_| (), &mut |time| {
            paused += time;
            meanwhile();
        });
        (taken, paused)
    }

    fn id(store: &Store) -> Option<String> {
        read(store).unwrap()?.owner().map(|owner| owner.id)
    }

    /// A store that can do conditional writes, and a folder, which stands for those that cannot.
    fn with_stores(test: impl Fn(&Store)) {
        test(&Store::in_memory());
        let name = format!("synfire-lease-{}", Owner::new(LEASE).id);
        let folder = std::env::temp_dir().join(name);
        test(&Store::create(&folder.display().to_string()).unwrap());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_free_folder_is_taken_at_once_and_given_back() {
        with_stores(|store| {
            let mut told = 0;
            let lease = Lease::take(store, &mut |_| told += 1).unwrap();
            lease.check().unwrap();
            assert_eq!((id(store).as_ref(), told), (Some(&lease.id), 0));
            drop(lease);
            assert_eq!(id(store), None);
        });
    }

    #[test]
    fn who_shows_life_keeps_the_folder() {
        with_stores(|store| {
            let mut first = owner(30);
            try_take(store, &first, &mut || ()).0.unwrap();
            let mut pauses = 0;
            let (refused, paused) = try_take(store, &owner(1), &mut || {
                pauses += 1;
                if pauses == 10 {
                    first.beat += 1;
                    beat(store, &first).unwrap();
                }
            });
            let error = refused.unwrap_err();
            assert!(matches!(error, CheckpointError::InUse { .. }), "{error}");
            assert_eq!((paused.as_secs(), id(store)), (10, Some(first.id)));
        });
    }

    #[test]
    fn who_shows_no_life_for_a_lease_is_taken_over_and_notices() {
        with_stores(|store| {
            let first = owner(7);
            try_take(store, &first, &mut || ()).0.unwrap();
            let second = owner(30);
            let (taken, paused) = try_take(store, &second, &mut || ());
            taken.unwrap();
            // Its own lease counts, not that of the one who waits.
            assert!((7..=11).contains(&paused.as_secs()), "{paused:?}");
            beat(store, &first).unwrap();
            assert_eq!(id(store).as_ref(), Some(&second.id));
            let lost = Lease::start(store.clone(), first, LEASE);
            let error = lost.check().unwrap_err();
            assert!(
                matches!(error, CheckpointError::TakenOver { .. }),
                "{error}"
            );
            drop(lost);
            assert_eq!(
                id(store),
                Some(second.id),
                "it is not given back by another"
            );
        });
    }

    #[test]
    fn who_ends_meanwhile_is_not_waited_for() {
        with_stores(|store| {
            try_take(store, &owner(30), &mut || ()).0.unwrap();
            let second = owner(30);
            let mut left = false;
            let (taken, paused) = try_take(store, &second, &mut || {
                if !std::mem::replace(&mut left, true) {
                    store.delete(OWNER).unwrap();
                }
            });
            taken.unwrap();
            assert!(paused.as_secs() <= 3, "{paused:?}");
            assert_eq!(id(store), Some(second.id));
        });
    }

    #[test]
    fn of_two_who_see_the_same_one_takes_over() {
        let store = Store::in_memory();
        try_take(&store, &owner(1), &mut || ()).0.unwrap();
        let (second, mut third) = (owner(30), owner(30));
        // The third is faster: it takes over while the second still waits, and then lives.
        let (refused, _) = try_take(&store, &second, &mut || {
            if id(&store).as_ref() == Some(&third.id) {
                third.beat += 1;
                beat(&store, &third).unwrap();
            } else {
                try_take(&store, &third, &mut || ()).0.unwrap();
            }
        });
        let error = refused.unwrap_err();
        assert!(matches!(error, CheckpointError::InUse { .. }), "{error}");
        assert_eq!(id(&store), Some(third.id));
    }

    #[test]
    fn what_is_no_owner_is_waited_for_and_then_written_over() {
        let store = Store::in_memory();
        for bytes in [
            &b"{}"[..],
            b"\xff",
            b"{\"id\":\"\",\"beat\":-1,\"lease_seconds\":1}",
        ] {
            store.put(OWNER, bytes.to_vec()).unwrap();
            let (taken, paused) = try_take(&store, &owner(1), &mut || ());
            taken.unwrap();
            assert_eq!(paused, LEASE);
        }
        let endless = b"{\"id\":\"\",\"beat\":0,\"lease_seconds\":18446744073709551615}";
        store.put(OWNER, endless.to_vec()).unwrap();
        let (taken, paused) = try_take(&store, &owner(1), &mut || ());
        taken.unwrap();
        assert_eq!(paused.as_secs(), MAX_LEASE_SECONDS);
    }
}

//! What was read from a remote store, on a local disk.
//!
//! A file is a range of one shard, behind it the SHA-256 of its bytes; its name is that of the
//! shard's content, so a set that was packed anew is never mistaken for the old one. Files appear
//! whole, by renaming: a process that is killed leaves a `.partial` behind, which is swept away. Each
//! process checks a file's digest before it first reads from it. Any number of processes share a
//! folder; the one that finds it too large takes away what was first read longest ago.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use synfire_shared::run;
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

use crate::data::error::DataError;

const DIGEST_BYTES: usize = 32;
const PARTIAL: &str = ".partial";
/// Held while files are taken away.
const LOCK: &str = "lock";
/// A partial file that nobody has written to for so long is nobody's.
const STALE: Duration = Duration::from_hours(1);
/// The folder is looked at again after this part of its limit was written: the limit holds up to so
/// much for each process.
const LOOK_EVERY: u64 = 32;
/// What is left when files are taken away, in percent of the limit.
const LEFT_PERCENT: u64 = 90;

/// A folder with ranges of shards.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    limit_bytes: u64,
    /// Ranges that this process has seen whole, or is fetching.
    seen: Mutex<HashMap<String, Arc<OnceCell<()>>>>,
    /// Bytes written since the folder was last looked at.
    written: AtomicU64,
    partials: AtomicU64,
    /// Set when a file could not be written: reads go by the cache from then on.
    is_off: AtomicBool,
}

/// The cache of a run; none where its limit is 0 or the user has no folder for caches.
pub(super) fn open(packed: &run::Packed) -> Result<Option<Cache>, DataError> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a cast from float saturates, and the limit is at least 0"
    )]
    let limit_bytes = (packed.cache_gib * f64::from(1 << 30)) as u64;
    let folder = packed.cache.clone().or_else(user_folder);
    let Some(folder) = folder.filter(|_| limit_bytes > 0) else {
        return Ok(None);
    };
    match Cache::at(&folder, limit_bytes) {
        // Nobody asked for a cache in the user's folder.
        Err(error) if packed.cache.is_none() => {
            tracing::warn!(%error, "remote shards are not cached");
            Ok(None)
        }
        cache => cache.map(Some),
    }
}

/// Where the user's caches lie.
fn user_folder() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let caches = folder("XDG_CACHE_HOME").map(PathBuf::from);
    let caches = caches.filter(|path| path.is_absolute());
    let caches = caches.or_else(|| Some(PathBuf::from(folder("HOME")?).join(".cache")))?;
    Some(caches.join("synfire"))
}

impl Cache {
    /// The cache in a folder, which is made.
    pub(super) fn at(folder: &Path, limit_bytes: u64) -> Result<Self, DataError> {
        let failed = |source| DataError::Cache {
            path: folder.to_owned(),
            source,
        };
        fs::create_dir_all(folder).map_err(failed)?;
        let shared = Shared {
            limit_bytes,
            seen: Mutex::default(),
            written: AtomicU64::new(0),
            partials: AtomicU64::new(0),
            is_off: AtomicBool::new(false),
            folder: folder.to_owned(),
        };
        shared.sweep().map_err(failed)?;
        tracing::info!(folder = %folder.display(), limit_bytes, "remote shards are cached");
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The bytes of `wanted`, which lies inside `range` of the shard with this SHA-256; `fetch` reads
    /// the range where it is not here. Nothing when the cache cannot be written.
    pub(super) async fn read<F: Future<Output = Result<Bytes, DataError>>>(
        &self,
        sha256: &str,
        range: &Range<u64>,
        wanted: &Range<u64>,
        fetch: impl Fn() -> F,
    ) -> Result<Option<Bytes>, DataError> {
        let name = format!("{sha256}-{}-{}", range.start, range.end);
        // Again when another process has taken the file away in between.
        for _ in 0..3 {
            if self.shared.is_off.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let cell = self.shared.cell(&name);
            cell.get_or_try_init(|| self.make_sure(&name, range, &fetch))
                .await?;
            let part = wanted.start - range.start..wanted.end - range.start;
            let (shared, file) = (Arc::clone(&self.shared), name.clone());
            let read = spawn_blocking(move || shared.read_part(&file, &part)).await;
            match read.expect("reading does not panic") {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) => {
                    tracing::debug!(%error, name, "not in the cache any more");
                    self.shared.forget(&name, &cell);
                }
            }
        }
        Ok(None)
    }

    /// Takes a range away, so that it is fetched again.
    pub(super) fn discard(&self, sha256: &str, range: &Range<u64>) {
        let name = format!("{sha256}-{}-{}", range.start, range.end);
        let mut seen = self
            .shared
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if seen.remove(&name).is_some() {
            let _ = fs::remove_file(self.shared.path(&name));
        }
    }

    /// Has the file of a range there, whole.
    async fn make_sure<F: Future<Output = Result<Bytes, DataError>>>(
        &self,
        name: &str,
        range: &Range<u64>,
        fetch: impl Fn() -> F,
    ) -> Result<(), DataError> {
        let (shared, file) = (Arc::clone(&self.shared), name.to_owned());
        let len = range.end - range.start;
        let is_there = spawn_blocking(move || shared.is_whole(&file, len)).await;
        if is_there.expect("checking does not panic") {
            return Ok(());
        }
        let bytes = fetch().await?;
        let (shared, file) = (Arc::clone(&self.shared), name.to_owned());
        let put = spawn_blocking(move || shared.put(&file, &bytes)).await;
        if let Err(error) = put.expect("writing does not panic")
            && !self.shared.is_off.swap(true, Ordering::Relaxed)
        {
            let folder = self.shared.folder.display();
            tracing::warn!(%error, "{folder} cannot be written: shards are not cached");
        }
        Ok(())
    }
}

impl Shared {
    /// Names begin with a digest: so many folders keep each one small.
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(&name[..2]).join(name)
    }

    fn cell(&self, name: &str) -> Arc<OnceCell<()>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(seen.entry(name.to_owned()).or_default())
    }

    /// Forgets a range, unless somebody has fetched it again.
    fn forget(&self, name: &str, cell: &Arc<OnceCell<()>>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.get(name).is_some_and(|known| Arc::ptr_eq(known, cell)) {
            seen.remove(name);
        }
    }

    fn read_part(&self, name: &str, part: &Range<u64>) -> io::Result<Bytes> {
        let file = File::open(self.path(name))?;
        let len = usize::try_from(part.end - part.start).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, part.start)?;
        Ok(bytes.into())
    }

    /// Whether a file is there with the digest behind it; one that is damaged is taken away.
    fn is_whole(&self, name: &str, len: u64) -> bool {
        let path = self.path(name);
        let Ok(mut file) = File::open(&path) else {
            return false;
        };
        let is_right = || -> io::Result<bool> {
            if file.metadata()?.len() != len + DIGEST_BYTES as u64 {
                return Ok(false);
            }
            let mut hash = Sha256::new();
            let mut rest = (&mut file).take(len);
            let mut buffer = vec![0; 1 << 16];
            loop {
                match rest.read(&mut buffer)? {
                    0 => break,
                    read => hash.update(&buffer[..read]),
                }
            }
            let mut digest = [0; DIGEST_BYTES];
            file.read_exact(&mut digest)?;
            // Used just now: the last to be taken away.
            file.set_modified(now())?;
            Ok(hash.finalize()[..] == digest)
        };
        let mut is_right = is_right;
        let is_right = is_right().unwrap_or(false);
        if !is_right {
            tracing::warn!(path = %path.display(), "damaged in the cache, read again");
            let _ = fs::remove_file(&path);
        }
        is_right
    }

    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(name);
        let folder = path.parent().expect("files lie in folders");
        fs::create_dir_all(folder)?;
        let number = self.partials.fetch_add(1, Ordering::Relaxed);
        let partial = folder.join(format!("{}-{number}{PARTIAL}", std::process::id()));
        let write = || {
            let mut file = File::create(&partial)?;
            file.write_all(bytes)?;
            file.write_all(&Sha256::digest(bytes))?;
            // Not synced: what a power cut damages does not have its digest.
            fs::rename(&partial, &path)
        };
        write().inspect_err(|_| {
            let _ = fs::remove_file(&partial);
        })?;
        let len = bytes.len() as u64;
        let written = self.written.fetch_add(len, Ordering::Relaxed) + len;
        if written > self.limit_bytes / LOOK_EVERY {
            self.written.store(0, Ordering::Relaxed);
            self.sweep()?;
        }
        Ok(())
    }

    /// Takes away stale partial files, and while there is more than the limit, what was used longest
    /// ago. Only one process at a time does; others go on.
    fn sweep(&self) -> io::Result<()> {
        let lock = File::create(self.folder.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut files = Vec::new();
        for folder in folders(&self.folder)? {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                // Gone in between: taken away by hand.
                let Ok(meta) = fs::metadata(&path) else {
                    continue;
                };
                let used = meta.modified()?;
                if path.extension().is_some_and(|end| end == "partial") {
                    let age = now().duration_since(used).unwrap_or_default();
                    if age > STALE {
                        remove(&path)?;
                    }
                } else {
                    files.push((used, meta.len(), path));
                }
            }
        }
        let mut total: u64 = files.iter().map(|(_, len, _)| len).sum();
        if total <= self.limit_bytes {
            return Ok(());
        }
        files.sort();
        for (_, len, path) in files {
            if total <= self.limit_bytes / 100 * LEFT_PERCENT {
                break;
            }
            remove(&path)?;
            total -= len;
        }
        Ok(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "compared with the times of files, which the same clock wrote; no number depends on it"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

/// The folders of ranges: two hexadecimal digits each. Whatever else lies there is not ours.
fn folders(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_ours = name.len() == 2
            && name
                .to_string_lossy()
                .bytes()
                .all(|b| b.is_ascii_hexdigit());
        if is_ours && entry.file_type()?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use synfire_shared::storage::runtime;

    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let name = format!("synfire-cache-{}-{test}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }

        fn cache(&self, limit: u64) -> Cache {
            Cache::at(&self.0, limit).unwrap()
        }

        /// The files of ranges.
        fn files(&self) -> Vec<PathBuf> {
            let folders = folders(&self.0).unwrap().into_iter();
            let files = folders.flat_map(|folder| fs::read_dir(folder).unwrap());
            files.map(|entry| entry.unwrap().path()).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const SHARD: &str = "0f1e";

    /// Reads one byte of a range of 100 bytes that are all `number`; counts real fetches.
    fn read(cache: &Cache, number: u8, fetches: &AtomicUsize) -> Option<u8> {
        let start = u64::from(number) * 100;
        let fetch = || async {
            fetches.fetch_add(1, Ordering::Relaxed);
            Ok(Bytes::from(vec![number; 100]))
        };
        let (range, wanted) = (start..start + 100, start + 30..start + 31);
        let read = runtime().block_on(cache.read(SHARD, &range, &wanted, fetch));
        read.unwrap().map(|bytes| bytes[0])
    }

    #[test]
    fn a_range_is_fetched_once_for_all_processes() {
        let folder = Folder::new("once");
        let (one, other, count) = (
            folder.cache(1 << 20),
            folder.cache(1 << 20),
            AtomicUsize::new(0),
        );
        for _ in 0..3 {
            assert_eq!(read(&one, 7, &count), Some(7));
            assert_eq!(read(&other, 7, &count), Some(7));
        }
        assert_eq!(count.into_inner(), 1);
    }

    #[test]
    fn what_is_damaged_cut_off_or_gone_is_fetched_again() {
        let folder = Folder::new("damaged");
        let count = AtomicUsize::new(0);
        assert_eq!(read(&folder.cache(1 << 20), 7, &count), Some(7));
        let file = folder.files()[0].clone();
        let whole = fs::read(&file).unwrap();
        let mut flipped = whole.clone();
        flipped[30] ^= 1;
        for (times, damaged) in [&flipped[..], &whole[..50], &[]].into_iter().enumerate() {
            fs::write(&file, damaged).unwrap();
            assert_eq!(read(&folder.cache(1 << 20), 7, &count), Some(7));
            assert_eq!(count.load(Ordering::Relaxed), times + 2);
            assert_eq!(fs::read(&file).unwrap(), whole);
        }
        let cache = folder.cache(1 << 20);
        assert_eq!(read(&cache, 7, &count), Some(7));
        fs::remove_file(&file).unwrap();
        assert_eq!(read(&cache, 7, &count), Some(7));
        assert_eq!(count.into_inner(), 5);
    }

    #[test]
    fn the_limit_holds_and_the_newest_stay() {
        let folder = Folder::new("limit");
        let limit = 132 * 32;
        let (cache, count) = (folder.cache(limit), AtomicUsize::new(0));
        for number in 0..100 {
            assert_eq!(read(&cache, number, &count), Some(number));
            let files = folder.files();
            // Up to 1/32 more than the limit, for this one process.
            assert!(files.len() <= 34, "{} files", files.len());
            // File systems tell times apart by some milliseconds.
            std::thread::sleep(Duration::from_millis(3));
        }
        assert_eq!(count.load(Ordering::Relaxed), 100);
        assert_eq!(read(&cache, 99, &count), Some(99));
        assert_eq!(count.load(Ordering::Relaxed), 100);
        assert_eq!(read(&cache, 0, &count), Some(0));
        assert_eq!(count.into_inner(), 101);
    }

    #[test]
    fn stale_partial_files_are_swept_and_strangers_stay() {
        let folder = Folder::new("partial");
        let count = AtomicUsize::new(0);
        read(&folder.cache(1 << 20), 7, &count);
        let near = folder.files()[0].parent().unwrap().to_owned();
        let (stale, fresh) = (near.join("1-0.partial"), near.join("1-1.partial"));
        fs::write(&stale, "x").unwrap();
        fs::write(&fresh, "x").unwrap();
        fs::write(folder.0.join("notes.txt"), "x").unwrap();
        let old = now() - 2 * STALE;
        File::options()
            .write(true)
            .open(&stale)
            .unwrap()
            .set_modified(old)
            .unwrap();
        folder.cache(0);
        assert!(!stale.exists() && fresh.exists() && folder.0.join("notes.txt").exists());
        assert_eq!(folder.files(), [fresh], "a limit of nothing keeps nothing");
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_passed_by() {
        let folder = Folder::new("full");
        let (cache, count) = (folder.cache(1 << 20), AtomicUsize::new(0));
        // A file where the folder of the ranges would be.
        fs::write(folder.0.join(&SHARD[..2]), "x").unwrap();
        assert_eq!(read(&cache, 7, &count), None);
        assert_eq!(read(&cache, 8, &count), None);
        assert_eq!(count.into_inner(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = Folder::new("file");
        fs::write(&folder.0, "x").unwrap();
        let error = Cache::at(&folder.0.join("below"), 1)
            .unwrap_err()
            .to_string();
        assert!(error.contains("below: set data.cache"), "{error}");
        fs::remove_file(&folder.0).unwrap();
    }
}

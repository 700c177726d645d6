//! Where a run folder lies: named byte strings, each there at once or not at all.

use super::lineage::drawn;
use bytes::Bytes;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use synfire_shared::storage::{self, StorageError};

/// The end of a name that is still being written.
const PARTIAL: &str = ".partial";

/// Named byte strings. Names have `/` between folders; a put is seen whole or not at all.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Writes, over what was there before; after an error that is still there.
    ///
    /// # Errors
    /// What the system says.
    fn put(&self, name: &str, bytes: Bytes) -> io::Result<()>;

    /// Reads.
    ///
    /// # Errors
    /// What the system says; `FileTooLarge` where it has more than `limit` bytes, `IsADirectory` or
    /// `InvalidData` where it is something else than a file.
    fn get(&self, name: &str, limit: u64) -> io::Result<Vec<u8>>;

    /// The names inside a folder, not below it, in order; none where there is no such folder.
    ///
    /// # Errors
    /// What the system says.
    fn list(&self, folder: &str) -> io::Result<Vec<String>>;

    /// Takes a name away; one that is not there is no error.
    ///
    /// # Errors
    /// What the system says.
    fn delete(&self, name: &str) -> io::Result<()>;
}

/// An object store: what it has put is there, whole; what it failed to put shows nowhere.
impl Store for storage::Store {
    fn put(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        Self::put(self, name, bytes).map_err(told)
    }

    fn get(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let bytes = Self::get(self, name, limit).map_err(told)?;
        Ok(bytes.into())
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let entries = self.list_folder(folder).map_err(told)?;
        let names = entries.into_iter().map(|entry| {
            let name = entry.key.rsplit_once('/').map(|(_, name)| name.to_owned());
            name.unwrap_or(entry.key)
        });
        Ok(names.collect())
    }

    fn delete(&self, name: &str) -> io::Result<()> {
        Self::delete(self, name).map_err(told)
    }
}

fn told(error: StorageError) -> io::Error {
    let kind = match &error {
        StorageError::NotFound { .. } => io::ErrorKind::NotFound,
        StorageError::TooLarge { .. } => io::ErrorKind::FileTooLarge,
        StorageError::Url { .. }
        | StorageError::Open { .. }
        | StorageError::Environment { .. }
        | StorageError::Request { .. }
        | _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

/// A folder of the local file system.
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
    /// Keeps those apart that write the same name at once, also on two machines.
    nonce: u64,
    puts: AtomicU64,
}

impl LocalStore {
    /// A store in this folder, which the first put makes.
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            nonce: drawn(0),
            puts: AtomicU64::new(0),
        }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Takes away what a process that was killed had not finished writing.
    ///
    /// # Errors
    /// What the system says.
    pub fn clean(&self, folder: &str) -> io::Result<()> {
        for name in names(&self.path(folder))? {
            if name.ends_with(PARTIAL) {
                fs::remove_file(self.path(folder).join(name))?;
            }
        }
        Ok(())
    }
}

impl Store for LocalStore {
    fn put(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        let path = self.path(name);
        let folder = path.parent().expect("a name lies in a folder");
        fs::create_dir_all(folder)?;
        let put = self.puts.fetch_add(1, Ordering::Relaxed);
        let mut partial = path.clone().into_os_string();
        partial.push(format!(".{:016x}-{put}{PARTIAL}", self.nonce));
        let save = || {
            let mut file = File::create(&partial)?;
            file.write_all(&bytes)?;
            // Else a power cut could leave the new name with no bytes behind it.
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            File::open(folder)?.sync_all()
        };
        save().inspect_err(|_| {
            // What remains of a failed attempt is of no use; that it failed is said.
            let _ = fs::remove_file(&partial);
        })
    }

    fn get(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let path = self.path(name);
        // A pipe would wait for its writer, a device would never end.
        let kind = fs::metadata(&path)?;
        if !kind.is_file() {
            let kind = if kind.is_dir() {
                io::ErrorKind::IsADirectory
            } else {
                io::ErrorKind::InvalidData
            };
            return Err(io::Error::new(kind, "it is not a regular file"));
        }
        let mut bytes = Vec::new();
        let most = limit.saturating_add(1);
        File::open(&path)?.take(most).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            let reason = format!("it has more than {limit} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
        }
        Ok(bytes)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let mut names = names(&self.path(folder))?;
        names.retain(|name| !name.ends_with(PARTIAL));
        names.sort();
        Ok(names)
    }

    fn delete(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

/// The names in a folder that are text; none where there is no folder.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    /// A disk of so many bytes, in memory.
    #[derive(Debug, Default)]
    pub(crate) struct SmallDisk {
        pub(crate) files: Mutex<BTreeMap<String, Vec<u8>>>,
        pub(crate) capacity: AtomicU64,
        /// Whether no byte can be read, as from a disk that has gone away for a while.
        pub(crate) is_unreadable: AtomicBool,
    }

    impl SmallDisk {
        pub(crate) fn new(capacity: u64) -> Self {
            let files = Mutex::default();
            let capacity = AtomicU64::new(capacity);
            Self {
                files,
                capacity,
                is_unreadable: AtomicBool::new(false),
            }
        }
    }

    impl Store for SmallDisk {
        fn put(&self, name: &str, bytes: Bytes) -> io::Result<()> {
            let mut files = self.files.lock().unwrap();
            let used: usize = files.values().map(Vec::len).sum();
            let room = self.capacity.load(Ordering::Relaxed);
            if (used + bytes.len()) as u64 > room {
                return Err(io::ErrorKind::StorageFull.into());
            }
            files.insert(name.into(), bytes.into());
            Ok(())
        }

        fn get(&self, name: &str, _: u64) -> io::Result<Vec<u8>> {
            if self.is_unreadable.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::StaleNetworkFileHandle.into());
            }
            let files = self.files.lock().unwrap();
            files
                .get(name)
                .cloned()
                .ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn list(&self, folder: &str) -> io::Result<Vec<String>> {
            let files = self.files.lock().unwrap();
            let folder = format!("{folder}/");
            let names = files.keys().filter_map(|name| name.strip_prefix(&folder));
            Ok(names.map(str::to_owned).collect())
        }

        fn delete(&self, name: &str) -> io::Result<()> {
            self.files.lock().unwrap().remove(name);
            Ok(())
        }
    }

    #[test]
    fn a_local_put_is_whole_and_leaves_nothing_beside_it() {
        let root = std::env::temp_dir().join(format!("synfire-store-{}", std::process::id()));
        let store = LocalStore::new(root.clone());
        assert!(store.list("a").unwrap().is_empty());
        store.put("a/b", Bytes::from("one")).unwrap();
        store.put("a/b", Bytes::from("two")).unwrap();
        fs::write(root.join("a/c.7-0.partial"), b"cut o").unwrap();
        assert_eq!(store.list("a").unwrap(), ["b"]);
        assert_eq!(store.get("a/b", 3).unwrap(), b"two");
        let long = store.get("a/b", 2).unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::FileTooLarge);
        assert!(store.get("a", 10).is_err());
        // A folder of that name cannot be written over.
        assert!(store.put("a", Bytes::from("x")).is_err());
        store.clean("a").unwrap();
        assert_eq!(names(&root.join("a")).unwrap(), ["b"]);
        store.delete("a/b").unwrap();
        store.delete("a/b").unwrap();
        assert!(store.list("a").unwrap().is_empty());
        fs::remove_dir_all(root).unwrap();
    }
}

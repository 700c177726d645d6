//! Folders and object stores behind one interface: whole objects, ranges of them, lists.
//!
//! A URL is a plain path, `file://`, `s3://`, `gs://`, `az://`, or, to read from, `http://` or
//! `https://`. Credentials come from the environment alone, in the variables that each service's
//! own tools read; a URL that carries some is refused, so none can be printed, and what a server
//! says is told without them.
//!
//! # Layout
//!
//! - `location`: what a URL means; retries and their deadline. `repeat`: more of them.
//! - this file: [`Store`]: whole objects, ranges, lists.
//! - `upload`: large objects, in pieces; `conditional`: a write that expects what it finds.
//! - `reason`, `error`: what can go wrong, in one line without secrets.

mod conditional;
mod error;
mod location;
mod reason;
mod repeat;
mod upload;

use std::ops::Range;
use std::path::{Component, Path as FilePath, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _};
use tokio::runtime::Runtime;

pub use conditional::{Expected, Outcome, Version};
pub use error::{StorageError, system_error_may_pass};
pub(crate) use location::without_credentials;
pub use location::{DEADLINE_VARIABLE, seconds_from_environment};
use location::{Location, parse, remote, shown};
pub use reason::Reason;
use repeat::repeat;

/// Threads that wait for the network; decoding happens elsewhere.
const RUNTIME_THREADS: usize = 2;

/// The folder of this machine that `url` means, if it means one.
///
/// # Errors
///
/// [`StorageError::Url`] if it is of no known kind, or carries credentials.
pub fn folder_of(url: &str) -> Result<Option<PathBuf>, StorageError> {
    Ok(match parse(url)? {
        Location::Folder(folder) => Some(folder),
        Location::Remote(_) => None,
    })
}

/// A folder, or what stands for one in an object store.
#[derive(Debug, Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    url: String,
    folder: Option<PathBuf>,
    is_read_only: bool,
    /// For how long a request is asked again whose connection broke.
    deadline: Duration,
}

/// An object in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key, relative to the store.
    pub key: String,
    /// Its length.
    pub bytes: u64,
}

impl Store {
    /// The store at `url`, to read from; a folder need not be there yet.
    ///
    /// # Errors
    ///
    /// [`StorageError::Url`] or [`StorageError::Open`].
    pub fn open(url: &str) -> Result<Self, StorageError> {
        match parse(url)? {
            Location::Folder(folder) => Self::local(folder),
            Location::Remote(parsed) => remote(&parsed),
        }
    }

    /// The store at `url`, to write to; a folder is made.
    ///
    /// # Errors
    ///
    /// Those of [`Self::open`]; [`StorageError::Url`] for `http://`, which is only read.
    pub fn create(url: &str) -> Result<Self, StorageError> {
        let store = Self::open(url)?;
        if store.is_read_only {
            return Err(StorageError::Url {
                url: store.url,
                reason: "http servers are only read: write to a path, s3://, gs:// or az://".into(),
            });
        }
        if let Some(folder) = &store.folder {
            std::fs::create_dir_all(folder).map_err(|source| StorageError::Open {
                url: store.url.clone(),
                source: Reason::of(&source),
            })?;
        }
        Ok(store)
    }

    /// A store that is gone with its last clone, for tests of what uses one.
    pub fn in_memory() -> Self {
        Self {
            objects: Arc::new(InMemory::new()),
            prefix: Path::default(),
            url: "memory://".into(),
            folder: None,
            is_read_only: false,
            deadline: Duration::ZERO,
        }
    }

    /// The store that holds the object at `url`, and its key there.
    ///
    /// # Errors
    ///
    /// Those of [`Self::open`]; [`StorageError::Url`] when the URL ends without a name.
    pub fn open_parent(url: &str) -> Result<(Self, String), StorageError> {
        let nameless = || StorageError::Url {
            url: shown(url),
            reason: "it names no object".into(),
        };
        match parse(url)? {
            Location::Folder(path) => {
                let name = path.file_name().and_then(|name| name.to_str());
                let name = name.ok_or_else(nameless)?.to_owned();
                let parent = path.parent().unwrap_or(FilePath::new(""));
                Ok((Self::local(parent.into())?, name))
            }
            Location::Remote(mut parsed) => {
                let path = parsed.path().to_owned();
                let (parent, name) = path.rsplit_once('/').ok_or_else(nameless)?;
                if name.is_empty() {
                    return Err(nameless());
                }
                let encoded = Path::from_url_path(name).map_err(|_| nameless())?;
                parsed.set_path(parent);
                Ok((remote(&parsed)?, encoded.to_string()))
            }
        }
    }

    /// What the store is called in messages; has no credentials.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The folder, when the store is one.
    pub fn folder(&self) -> Option<&FilePath> {
        self.folder.as_deref()
    }

    /// What an object is called in messages.
    pub fn name(&self, key: &str) -> String {
        format!("{}/{key}", self.url.trim_end_matches('/'))
    }

    /// All of an object of at most `limit_bytes`.
    ///
    /// # Errors
    ///
    /// [`StorageError::NotFound`], [`StorageError::TooLarge`] or [`StorageError::Request`].
    pub fn get(&self, key: &str, limit_bytes: u64) -> Result<Bytes, StorageError> {
        wait(self.get_async(key, limit_bytes))
    }

    /// [`Self::get`] for a task of [`runtime`].
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub async fn get_async(&self, key: &str, limit_bytes: u64) -> Result<Bytes, StorageError> {
        let location = self.location(key)?;
        let read = repeat(self.deadline, || async {
            let object = self.objects.get(&location).await?;
            let bytes = object.meta.size;
            if bytes > limit_bytes {
                return Ok(Err(bytes));
            }
            object.bytes().await.map(Ok)
        });
        let read = read.await.map_err(|e| self.failed("read", key, &e))?;
        read.map_err(|bytes| StorageError::TooLarge {
            object: self.name(key),
            bytes,
            limit_bytes,
        })
    }

    /// A range of an object's bytes; shorter where the object ends before.
    ///
    /// # Errors
    ///
    /// [`StorageError::NotFound`] or [`StorageError::Request`].
    pub fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        wait(self.get_range_async(key, range))
    }

    /// [`Self::get_range`] for a task of [`runtime`].
    ///
    /// # Errors
    ///
    /// As [`Self::get_range`].
    pub async fn get_range_async(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<Bytes, StorageError> {
        let location = self.location(key)?;
        let failed = |source| self.failed("read", key, &source);
        let ask = || self.objects.get_range(&location, range.clone());
        repeat(self.deadline, ask).await.map_err(failed)
    }

    /// Writes an object, which is there whole or not at all; a large one goes up in pieces.
    ///
    /// # Errors
    ///
    /// [`StorageError::Request`].
    pub fn put(&self, key: &str, bytes: impl Into<Bytes>) -> Result<(), StorageError> {
        let location = self.location(key)?;
        let bytes = bytes.into();
        let put = repeat(self.deadline, || async {
            let bytes = bytes.clone();
            if self.folder.is_none() && bytes.len() > upload::PIECE_BYTES {
                return upload::in_pieces(&*self.objects, &location, bytes).await;
            }
            self.objects.put(&location, bytes.into()).await.map(|_| ())
        });
        wait(put).map_err(|source| self.failed("write", key, &source))
    }

    /// Removes an object; one that is not there is no error.
    ///
    /// # Errors
    ///
    /// [`StorageError::Request`].
    pub fn delete(&self, key: &str) -> Result<(), StorageError> {
        let location = self.location(key)?;
        match wait(repeat(self.deadline, || self.objects.delete(&location))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(self.failed("delete", key, &source)),
        }
    }

    /// The length of an object, or `None` when it is not there.
    ///
    /// # Errors
    ///
    /// [`StorageError::Request`].
    pub fn head(&self, key: &str) -> Result<Option<u64>, StorageError> {
        wait(self.head_async(key))
    }

    /// [`Self::head`] for a task of [`runtime`].
    ///
    /// # Errors
    ///
    /// As [`Self::head`].
    pub async fn head_async(&self, key: &str) -> Result<Option<u64>, StorageError> {
        let location = self.location(key)?;
        match repeat(self.deadline, || self.objects.head(&location)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.failed("look up", key, &source)),
        }
    }

    /// Every object below `prefix`, or of the whole store for `""`, sorted by key.
    ///
    /// # Errors
    ///
    /// [`StorageError::Request`]; [`StorageError::Url`] for `http://`, which has no lists.
    pub fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        self.must_list()?;
        let location = self.location(prefix)?;
        let ask = || self.objects.list(Some(&location)).try_collect::<Vec<_>>();
        let listed = wait(repeat(self.deadline, ask));
        let listed = listed.map_err(|source| self.failed("list", prefix, &source))?;
        Ok(self.entries(listed))
    }

    /// The objects in `folder`, not below it, sorted by key; none where there is no such folder.
    ///
    /// # Errors
    ///
    /// As [`Self::list`].
    pub fn list_folder(&self, folder: &str) -> Result<Vec<Entry>, StorageError> {
        self.must_list()?;
        let location = self.location(folder)?;
        let ask = || self.objects.list_with_delimiter(Some(&location));
        let listed = wait(repeat(self.deadline, ask));
        let listed = listed.map_err(|source| self.failed("list", folder, &source))?;
        Ok(self.entries(listed.objects))
    }

    fn must_list(&self) -> Result<(), StorageError> {
        if !self.is_read_only {
            return Ok(());
        }
        Err(StorageError::Url {
            url: self.url.clone(),
            reason: "http servers list no folders: give an archive, or a folder elsewhere".into(),
        })
    }

    fn entries(&self, listed: Vec<ObjectMeta>) -> Vec<Entry> {
        let depth = self.prefix.parts().count();
        let mut entries: Vec<Entry> = listed
            .into_iter()
            .map(|meta| Entry {
                key: meta
                    .location
                    .parts()
                    .skip(depth)
                    .collect::<Path>()
                    .to_string(),
                bytes: meta.size,
            })
            .collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        entries
    }

    fn local(folder: PathBuf) -> Result<Self, StorageError> {
        let url = folder.display().to_string();
        let prefix = absolute(&folder).and_then(|path| Path::from_absolute_path(path).ok());
        let prefix = prefix.ok_or_else(|| StorageError::Url {
            url: url.clone(),
            reason: "it is no path of plain text".into(),
        })?;
        Ok(Self {
            // On the disk before a put returns: what was reported as written survives a crash.
            objects: Arc::new(LocalFileSystem::new().with_fsync(true)),
            prefix,
            url,
            folder: Some(folder),
            is_read_only: false,
            deadline: Duration::ZERO,
        })
    }

    fn location(&self, key: &str) -> Result<Path, StorageError> {
        let key = Path::parse(key).map_err(|error| StorageError::Url {
            url: self.name(key),
            reason: error.to_string(),
        })?;
        Ok(self.prefix.parts().chain(key.parts()).collect())
    }

    fn failed(
        &self,
        action: &'static str,
        key: &str,
        source: &object_store::Error,
    ) -> StorageError {
        let object = if key.is_empty() {
            self.url.clone()
        } else {
            self.name(key)
        };
        if matches!(source, object_store::Error::NotFound { .. }) {
            return StorageError::NotFound { object };
        }
        StorageError::Request {
            action,
            object,
            source: Reason::of(source),
        }
    }
}

/// A path from the root, without `..`.
fn absolute(folder: &FilePath) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for part in std::path::absolute(folder).ok()?.components() {
        if part == Component::ParentDir {
            // Above a link is what is above where it leads.
            path = path.canonicalize().unwrap_or(path);
            path.pop();
        } else {
            path.push(part);
        }
    }
    Some(path)
}

/// The process's threads for the network.
///
/// # Panics
///
/// When the operating system gives no thread.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(RUNTIME_THREADS)
            .thread_name("storage")
            .enable_all()
            .build()
            .expect("the operating system gives two threads")
    })
}

fn wait<F: Future>(future: F) -> F::Output {
    runtime().block_on(future)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// A folder of its own for each test, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let name = format!("synfire-storage-{}-{test}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn url(&self) -> String {
            self.0.display().to_string()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_path_may_lead_out_of_folders() {
        let folder = Folder::new("parents");
        let url = folder.url();
        std::fs::create_dir(folder.0.join("inside")).unwrap();
        let store = Store::create(&format!("{url}/inside/../other/new")).unwrap();
        store.put("x", vec![1]).unwrap();
        assert_eq!(std::fs::read(folder.0.join("other/new/x")).unwrap(), [1]);
        let (store, key) = Store::open_parent(&format!("{url}/inside/../other/new/x")).unwrap();
        assert_eq!(store.get(&key, 1).unwrap().as_ref(), [1]);
        assert!(Store::open("..").is_ok());
    }

    #[test]
    fn a_folder_keeps_what_is_put() {
        let folder = Folder::new("keeps");
        for url in [
            format!("{}/a/b", folder.url()),
            format!("file://{}/c", folder.url()),
        ] {
            let store = Store::create(&url).unwrap();
            assert!(store.folder().is_some_and(FilePath::is_dir));
            store.put("x/one.bin", vec![1, 2, 3, 4]).unwrap();
            store.put("two words [1].bin", vec![5]).unwrap_or_else(|e| {
                assert!(matches!(e, StorageError::Url { .. }), "{e}");
            });
            store.put("two.bin", vec![5]).unwrap();
            assert_eq!(&store.get("x/one.bin", 4).unwrap()[..], [1, 2, 3, 4]);
            assert_eq!(&store.get_range("x/one.bin", 1..3).unwrap()[..], [2, 3]);
            assert_eq!(store.head("two.bin").unwrap(), Some(1));
            let keys = |prefix| -> Vec<String> {
                let entries = store.list(prefix).unwrap().into_iter();
                entries.map(|e| e.key).collect()
            };
            assert_eq!(keys("x"), ["x/one.bin"]);
            assert!(keys("").contains(&"two.bin".to_owned()));
            store.put("two.bin", vec![6, 7]).unwrap();
            assert_eq!(&store.get("two.bin", 9).unwrap()[..], [6, 7]);
            store.delete("two.bin").unwrap();
            store.delete("two.bin").unwrap();
            assert_eq!(store.head("two.bin").unwrap(), None);
        }
    }

    #[test]
    fn a_folder_s_list_has_not_what_lies_below() {
        let folder = Folder::new("list");
        for store in [Store::in_memory(), Store::create(&folder.url()).unwrap()] {
            for key in ["a/b/one", "a/two", "a/three", "four", "ab/five"] {
                store.put(key, vec![1]).unwrap();
            }
            let keys = |folder| -> Vec<String> {
                let entries = store.list_folder(folder).unwrap().into_iter();
                entries.map(|e| e.key).collect()
            };
            assert_eq!(keys("a"), ["a/three", "a/two"]);
            assert_eq!(keys(""), ["four"]);
            assert!(keys("none").is_empty());
        }
    }

    #[cfg(unix)]
    #[test]
    fn the_folder_above_a_link_is_where_it_leads() {
        let folder = Folder::new("above");
        std::fs::create_dir_all(folder.0.join("there/inside")).unwrap();
        let link = folder.0.join("link");
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(folder.0.join("there/inside"), &link).unwrap();
        let store = Store::create(&format!("{}/../made/../beside", link.display()));
        store.unwrap().put("a", "x").unwrap();
        assert!(folder.0.join("there/beside/a").is_file());
    }

    #[test]
    fn a_write_finds_what_it_expects_or_is_refused() {
        let store = Store::in_memory();
        let put = |text: &'static str, expected| store.put_if("a", text, expected).unwrap();
        assert_eq!(put("one", Expected::Absent), Outcome::Written);
        assert_eq!(put("two", Expected::Absent), Outcome::Refused);
        let (bytes, first) = store.get_with_version("a", 9).unwrap();
        assert_eq!(&bytes[..], b"one");
        assert_eq!(put("two", Expected::Unchanged(&first)), Outcome::Written);
        assert_eq!(put("three", Expected::Unchanged(&first)), Outcome::Refused);
        assert_eq!(&store.get("a", 9).unwrap()[..], b"two");
        store.delete("a").unwrap();
        assert_eq!(put("four", Expected::Unchanged(&first)), Outcome::Refused);
        let folder = Folder::new("conditional");
        let store = Store::create(&folder.url()).unwrap();
        let absent = store.put_if("a", "one", Expected::Absent).unwrap();
        assert_eq!(absent, Outcome::Written);
        let (_, first) = store.get_with_version("a", 9).unwrap();
        let outcome = store.put_if("a", "two", Expected::Unchanged(&first));
        assert_eq!(outcome.unwrap(), Outcome::Unsupported);
        assert!(store.get_with_version("a", 2).is_err());
    }

    #[test]
    fn a_large_object_is_whole() {
        let store = Store::in_memory();
        for extra in [0, 1, upload::PIECE_BYTES] {
            let len = upload::PIECE_BYTES + extra;
            let bytes: Vec<u8> = (0..=250).cycle().take(len).collect();
            store.put("large", bytes.clone()).unwrap();
            assert!(store.get("large", bytes.len() as u64).unwrap() == bytes);
        }
    }

    #[test]
    fn absent_and_large_objects_are_named() {
        let folder = Folder::new("absent");
        let store = Store::create(&folder.url()).unwrap();
        let error = store.get("none", 9).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("/none is not there: check the path or URL")
        );
        store.put("big", vec![0; 10]).unwrap();
        let error = store.get("big", 9).unwrap_err();
        assert!(matches!(error, StorageError::TooLarge { bytes: 10, .. }));
        let error = store.get("a/../../b", 9).unwrap_err();
        assert!(matches!(error, StorageError::Url { .. }), "{error}");
        std::fs::write(folder.0.join("file"), "x").unwrap();
        let error = Store::create(&format!("{}/file/below", folder.url())).unwrap_err();
        assert!(matches!(error, StorageError::Open { .. }), "{error}");
        let error = store.put("file/below", vec![1]).unwrap_err();
        assert!(
            matches!(
                error,
                StorageError::Request {
                    action: "write",
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn credentials_in_a_url_are_refused_and_not_shown() {
        for url in [
            "s3://key:secret@bucket/a",
            "https://host/a?X-Amz-Signature=secret",
            "az://c/a?sig=secret#secret",
            "ftp://key:secret@host/a",
        ] {
            let error = Store::open(url).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        let error = Store::create("http://127.0.0.1:1/x").unwrap_err();
        assert!(error.to_string().contains("only read"), "{error}");
        let error = Store::open("http://127.0.0.1:1/x").unwrap().list("");
        assert!(error.unwrap_err().to_string().contains("list no folders"));
    }

    #[test]
    fn an_object_has_a_store_and_a_key() {
        let (store, key) = Store::open_parent("/data/cifar.tar.gz").unwrap();
        assert_eq!((store.url(), key.as_str()), ("/data", "cifar.tar.gz"));
        let (store, key) = Store::open_parent("http://host/a/b%20c.tar").unwrap();
        assert_eq!((store.url(), key.as_str()), ("http://host/a", "b c.tar"));
        assert!(Store::open_parent("http://host/a/").is_err());
    }

    #[test]
    fn a_server_is_read_again_after_a_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let answers = [
                "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\
                 Last-Modified: Tue, 01 Jan 2030 00:00:00 GMT\r\n\r\nhello",
            ];
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 4096];
                let len = stream.read(&mut request).unwrap();
                assert!(request[..len].starts_with(b"GET /set/a.bin "));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let store = Store::open(&format!("http://127.0.0.1:{port}/set")).unwrap();
        assert_eq!(&store.get("a.bin", 9).unwrap()[..], b"hello");
        server.join().unwrap();
    }
}

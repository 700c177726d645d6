//! Compiled kernels on disk. An entry is its digest and its bytes; a damaged one is as none.

use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::path::PathBuf;

/// An image is never larger.
const LARGEST_BYTES: u64 = 64 << 20;
const DIGEST_BYTES: usize = 32;

/// What an entry depends on, as a digest.
pub(super) struct Key(Sha256);

impl Key {
    pub(super) fn new() -> Self {
        Self(Sha256::new())
    }

    /// Adds a part; ("ab", "c") differs from ("a", "bc").
    pub(super) fn add(&mut self, part: &[u8]) {
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    /// Its name.
    pub(super) fn finish(self) -> String {
        use std::fmt::Write as _;
        let mut name = String::new();
        for byte in self.0.finalize() {
            // Writing to a string does not fail.
            let _ = write!(name, "{byte:02x}");
        }
        name
    }
}

/// The folder of compiled kernels; none where there is no home either.
#[derive(Debug)]
pub(super) struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// `$SYNFIRE_CACHE`, `$XDG_CACHE_HOME/synfire` or `~/.cache/synfire`.
    pub(super) fn from_environment() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let folder = set("SYNFIRE_CACHE")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(set("XDG_CACHE_HOME")?).join("synfire")))
            .or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache/synfire")));
        Self { folder }
    }

    #[cfg(test)]
    fn at(folder: PathBuf) -> Self {
        Self {
            folder: Some(folder),
        }
    }

    /// An entry, if it is there and whole.
    pub(super) fn get(&self, key: &str) -> Option<Vec<u8>> {
        let path = self.path(key)?;
        let bytes = fs::metadata(&path).ok()?.len();
        if bytes > LARGEST_BYTES {
            return None;
        }
        let mut entry = fs::read(&path).ok()?;
        if entry.len() <= DIGEST_BYTES {
            return None;
        }
        let image = entry.split_off(DIGEST_BYTES);
        if entry[..] != Sha256::digest(&image)[..] {
            tracing::warn!(path = %path.display(), "a damaged kernel in the cache: compiled again");
            return None;
        }
        Some(image)
    }

    /// Keeps an entry, if it can.
    pub(super) fn put(&self, key: &str, image: &[u8]) {
        let Some(path) = self.path(key) else { return };
        if let Err(error) = write(&path, image) {
            let path = path.display();
            tracing::warn!(%path, %error, "compiled kernels cannot be kept: set SYNFIRE_CACHE");
        }
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{key}.cubin")))
    }
}

/// Writes beside, then renames: who reads sees all of it or nothing.
fn write(path: &std::path::Path, image: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let beside = path.with_extension(format!("{}.part", std::process::id()));
    let written = fs::File::create(&beside).and_then(|mut file| {
        file.write_all(&Sha256::digest(image))?;
        file.write_all(image)?;
        fs::rename(&beside, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::{Cache, Key};

    fn key(parts: &[&str]) -> String {
        let mut key = Key::new();
        for part in parts {
            key.add(part.as_bytes());
        }
        key.finish()
    }

    #[test]
    fn keys_tell_parts_apart() {
        assert_eq!(key(&["ab", "c"]), key(&["ab", "c"]));
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
    }

    #[test]
    fn entries_come_back_and_damaged_ones_do_not() {
        let folder = std::env::temp_dir().join(format!("synfire-cache-{}", std::process::id()));
        let cache = Cache::at(folder.clone());
        let key = key(&["a"]);
        assert_eq!(cache.get(&key), None);
        cache.put(&key, b"image");
        assert_eq!(cache.get(&key).as_deref(), Some(&b"image"[..]));
        let path = cache.path(&key).unwrap();
        for damage in [&b"short"[..], &[0; 40]] {
            std::fs::write(&path, damage).unwrap();
            assert_eq!(cache.get(&key), None);
        }
        cache.put(&key, b"image");
        let mut entry = std::fs::read(&path).unwrap();
        *entry.last_mut().unwrap() ^= 1;
        std::fs::write(&path, entry).unwrap();
        assert_eq!(cache.get(&key), None);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        std::fs::remove_dir_all(folder).unwrap();
    }
}

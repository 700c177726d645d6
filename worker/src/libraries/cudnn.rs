//! The parts of cuDNN. Its libcudnn.so.9 is a small file that loads the others when it is first called,
//! and ends the process where one is missing or damaged. So they are loaded before any call.

use super::open::{OpenError, load_part, told};
use super::{Library, binary};
use std::fs;
use std::path::{Path, PathBuf};

/// What convolutions need, each before those that need it.
const PARTS: [&str; 6] = [
    "libcudnn_graph.so.9",
    "libcudnn_ops.so.9",
    "libcudnn_cnn.so.9",
    "libcudnn_heuristic.so.9",
    "libcudnn_engines_precompiled.so.9",
    "libcudnn_engines_runtime_compiled.so.9",
];
/// By this a file is known that loads the parts: it has their names in it.
const NAME: &[u8] = b"libcudnn_graph.so";
/// A larger file has cuDNN in it; that which loads the parts has 0.13 MiB.
const MAX_BYTES: u64 = 4 << 20;

/// Loads all parts of a cuDNN that has some: those beside it, or else those that the system's loader finds.
///
/// # Errors
/// [`OpenError::Load`] with the part that is missing or damaged.
pub(super) fn load_parts(cudnn: &Path) -> Result<(), OpenError> {
    if !has_parts(cudnn) {
        return Ok(());
    }
    let real = fs::canonicalize(cudnn).ok();
    let files = [Some(cudnn), real.as_deref()];
    let folders: Vec<&Path> = files
        .into_iter()
        .flatten()
        .filter_map(Path::parent)
        .collect();
    PARTS.iter().try_for_each(|name| load(name, &folders))
}

fn has_parts(cudnn: &Path) -> bool {
    let is_small = fs::metadata(cudnn).is_ok_and(|meta| meta.len() <= MAX_BYTES);
    is_small
        && fs::read(cudnn).is_ok_and(|bytes| bytes.windows(NAME.len()).any(|part| part == NAME))
}

fn load(name: &str, folders: &[&Path]) -> Result<(), OpenError> {
    let failed = |path: PathBuf, reason: String| OpenError::Load {
        library: Library::Cudnn,
        path,
        reason,
    };
    let mut files = folders.iter().map(|folder| folder.join(name));
    let Some(path) = files.find(|file| file.exists()) else {
        return load_part(Path::new(name)).map_err(|error| {
            let reason = format!(
                "libcudnn.so.9 needs it, and it is not there ({})",
                told(&error)
            );
            let folder = folders.first().copied().unwrap_or(Path::new(""));
            failed(folder.join(name), reason)
        });
    };
    if let Err(why) = binary::check(&path) {
        return Err(failed(path, format!("it {why}")));
    }
    load_part(&path).map_err(|error| failed(path.clone(), told(&error)))
}

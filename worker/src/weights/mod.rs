//! Weights in files: read from our own and PyTorch's, written under PyTorch's names
//! (`layer2.0.down.conv.weight`, `layer2.0.bn1.running_mean`), OIHW and [out, in].
//!
//! # Layout
//!
//! - [`error`]: why weights cannot be read.
//! - `archive`, `storage`, `torch`: the files of `torch.save`, read without executing them.
//! - `names`: what other programs call the tensors.
//! - [`fit`]: a file's tensors against a network's.
//! - this file: [`read`], [`load`], [`save`].

mod archive;
pub mod error;
pub mod fit;
mod names;
mod storage;
mod torch;

use crate::engine::Network;
use crate::kernel::{Arena, Kernels};
use crate::trace::file::{self, MAX_FILE_BYTES, TensorData, TraceFile, TraceTensor};
pub use error::WeightsError;
pub use fit::{Readout, Taken, apply};
use std::path::Path;
use synfire_shared::storage::Store;

/// How the names of weights files end.
const ENDINGS: [&str; 5] = [".safetensors", ".pth", ".pt", ".pth.tar", ".bin"];

/// Writes every parameter and running statistic of a network.
///
/// # Errors
/// If the file cannot be written; what was there before is then still there.
pub fn save(path: &Path, network: &Network, kernels: &mut dyn Kernels) -> Result<(), WeightsError> {
    Ok(file::write(path, &collect(network, kernels))?)
}

/// Every parameter and running statistic of a network, copied to the host.
pub fn collect(network: &Network, kernels: &mut dyn Kernels) -> TraceFile {
    let layout = &network.plan().layout;
    let mut saved = TraceFile::default();
    for (parameter, span) in layout.parameters() {
        let mut values = vec![0.0; span.len];
        kernels.read_arena(Arena::Weights, span.offset, &mut values);
        let tensor = TraceTensor::f32(&parameter.shape, values);
        saved.tensors.insert(parameter.name.clone(), tensor);
    }
    for (name, span) in layout.statistics() {
        let mut values = vec![0.0; span.len];
        kernels.read_arena(Arena::Statistics, span.offset, &mut values);
        let tensor = TraceTensor::f32(&[span.len], values);
        saved.tensors.insert(name.clone(), tensor);
    }
    saved
        .metadata
        .insert("format".into(), "synfire weights 1".into());
    saved
}

/// Whether a location is that of a weights file by its name, not of a run folder or manifest.
pub fn is_file(location: &str) -> bool {
    ENDINGS.iter().any(|ending| location.ends_with(ending))
}

/// Reads the tensors of a file at a path or URL: safetensors, or what `torch.save` writes.
///
/// # Errors
/// If it cannot be fetched, has more than [`MAX_FILE_BYTES`], or is none of these.
pub fn read(location: &str) -> Result<TraceFile, WeightsError> {
    let (store, key) = Store::open_parent(location)?;
    if let Some(folder) = store.folder() {
        let path = folder.join(&key);
        return parse(&file::read_bytes(&path)?, &store.name(&key));
    }
    parse(&store.get(&key, MAX_FILE_BYTES)?, &store.name(&key))
}

/// Reads the tensors of a file's bytes that messages call `name`.
///
/// It allocates no more than a small multiple of `bytes`, whatever they say.
///
/// # Errors
/// If they are of no known kind, or damaged.
pub fn parse(bytes: &[u8], name: &str) -> Result<TraceFile, WeightsError> {
    if !torch::is_torch(bytes) {
        return Ok(file::parse(bytes, name)?);
    }
    let tensors = torch::read(bytes).map_err(|reason| WeightsError::Torch {
        file: name.into(),
        reason,
    })?;
    Ok(TraceFile {
        name: name.into(),
        tensors,
        ..TraceFile::default()
    })
}

/// Reads every parameter and running statistic of a network from a file at a path or URL.
///
/// # Errors
/// If the file cannot be read, or its tensors are not those of the network; nothing is changed then.
pub fn load(
    location: &str,
    network: &Network,
    kernels: &mut dyn Kernels,
) -> Result<Taken, WeightsError> {
    apply(&read(location)?, network, kernels, Readout::Take)
}

/// The numbers of a tensor that must be there with so many of them.
pub(crate) fn find<'a>(
    read: &'a TraceFile,
    name: &str,
    want: usize,
) -> Result<&'a [f32], WeightsError> {
    let (file, name) = (read.name.clone(), name.to_owned());
    let Some(tensor) = read.tensors.get(&name) else {
        return Err(WeightsError::Missing { file, name });
    };
    let TensorData::F32(values) = &tensor.data else {
        return Err(WeightsError::Integers { file, name });
    };
    if values.len() == want {
        return Ok(values);
    }
    let got = values.len();
    Err(WeightsError::Size {
        file,
        name,
        got,
        want,
    })
}

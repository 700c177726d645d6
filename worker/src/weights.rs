//! Weights in files: safetensors under PyTorch's names (`layer2.0.down.conv.weight`,
//! `layer2.0.bn1.running_mean`), OIHW and [out, in].

use crate::engine::{EngineError, Network};
use crate::kernel::{Arena, Kernels};
use crate::trace::TraceError;
use crate::trace::file::{self, TensorData, TraceFile, TraceTensor};
use std::path::Path;

/// Why weights cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file is no safetensors file, or cannot be read or written.
    #[error(transparent)]
    File(#[from] TraceError),
    /// A tensor does not fit the network.
    #[error("{file} was not saved from this model, width and number of classes")]
    Tensor {
        /// The file.
        file: String,
        /// What does not fit.
        #[source]
        source: EngineError,
    },
    /// A tensor of the network is not in the file.
    #[error("{file} has no tensor {name:?}; was it saved from this model?")]
    Missing {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
    },
    /// A tensor holds whole numbers.
    #[error("{file}: tensor {name:?} holds whole numbers, weights are f32")]
    Integers {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
    },
}

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

/// Reads every parameter and running statistic of a network.
///
/// # Errors
/// If the file cannot be read, or its tensors are not those of the network; nothing is changed then.
pub fn load(path: &Path, network: &Network, kernels: &mut dyn Kernels) -> Result<(), WeightsError> {
    apply(&file::read(path)?, network, kernels)
}

/// Sets every parameter and running statistic of a network.
///
/// # Errors
/// If the file's tensors are not those of the network; nothing is changed then.
///
/// # Panics
/// Never: names and sizes are checked before anything is set.
pub fn apply(
    read: &TraceFile,
    network: &Network,
    kernels: &mut dyn Kernels,
) -> Result<(), WeightsError> {
    let layout = &network.plan().layout;
    let parameters = layout
        .parameters()
        .iter()
        .map(|(p, span)| (&p.name, span.len));
    let statistics = layout.statistics().iter().map(|(n, span)| (n, span.len));
    let mut found = Vec::new();
    for (name, want) in parameters.chain(statistics) {
        found.push((name, find(read, name, want)?));
    }
    for (name, values) in found {
        let set = network.set(kernels, name, values);
        set.expect("name and size were checked above");
    }
    Ok(())
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
    let source = EngineError::TensorSize { name, got, want };
    Err(WeightsError::Tensor { file, source })
}

//! A file's tensors against a network's: by name and shape, all or nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::{WeightsError, names};
use crate::engine::Network;
use crate::kernel::Kernels;
use crate::trace::file::{TensorData, TraceFile, TraceTensor};

/// What the readout's tensors begin with.
const READOUT: &str = "fc.";
/// Tensors that a message names of each kind.
const MAX_NAMED: usize = 3;

/// What is done with the readout of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readout {
    /// It is taken.
    Take,
    /// The network keeps its own.
    Keep,
}

/// What a network has taken from a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Parameters and running statistics.
    pub tensors: usize,
    /// The numbers in them.
    pub numbers: usize,
    /// Whether the network has kept its readout.
    pub kept_readout: bool,
}

/// Sets every parameter and running statistic of a network, but for a readout that it keeps.
///
/// Names may be our own, torchvision's or the SEW-ResNet authors'. A convolution without a bias in
/// the file has a bias of 0.
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
    readout: Readout,
) -> Result<Taken, WeightsError> {
    let wanted = wanted(network, readout);
    let mut found = found(read, &wanted, readout)?;
    let missing = found.missing;
    let taken = Taken {
        tensors: found.tensors.len(),
        numbers: found.tensors.values().map(|values| values.len()).sum(),
        kept_readout: readout == Readout::Keep,
    };
    let zeros: Vec<(&str, Vec<f32>)> = missing
        .iter()
        .map(|name| (*name, vec![0.0; wanted[name].iter().product()]))
        .collect();
    for (name, zeros) in &zeros {
        found.tensors.insert(*name, zeros);
    }
    for (name, values) in found.tensors {
        let set = network.set(kernels, name, values);
        set.expect("name and size were checked above");
    }
    Ok(taken)
}

type Wanted<'a> = BTreeMap<&'a str, Vec<usize>>;

/// The shapes that a network takes.
fn wanted(network: &Network, readout: Readout) -> Wanted<'_> {
    let layout = &network.plan().layout;
    let parameters = layout.parameters().iter();
    let parameters = parameters.map(|(p, _)| (p.name.as_str(), p.shape.clone()));
    let statistics = layout.statistics().iter();
    let statistics = statistics.map(|(name, span)| (name.as_str(), vec![span.len]));
    let taken = |name: &str| readout == Readout::Take || !name.starts_with(READOUT);
    let all = parameters.chain(statistics);
    all.filter(|(name, _)| taken(name)).collect()
}

/// What a network takes from a file.
struct Found<'a> {
    tensors: BTreeMap<&'a str, &'a [f32]>,
    /// Biases of convolutions that have none in the file.
    missing: Vec<&'a str>,
}

fn found<'a>(
    read: &'a TraceFile,
    wanted: &'a Wanted<'_>,
    readout: Readout,
) -> Result<Found<'a>, WeightsError> {
    let (mut tensors, mut unknown, mut shaped) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
    for (theirs, tensor) in &read.tensors {
        // A name that the network has is its own: `conv1` of one is the stem of another.
        let is_own = wanted.contains_key(theirs.as_str());
        let Some(name) = is_own
            .then(|| theirs.clone())
            .or_else(|| names::ours(theirs))
        else {
            continue;
        };
        if readout == Readout::Keep && name.starts_with(READOUT) {
            continue;
        }
        let Some((&name, shape)) = wanted.get_key_value(name.as_str()) else {
            unknown.insert(theirs.as_str());
            continue;
        };
        if tensor.shape != *shape {
            shaped.push((name, tensor));
        }
        if tensors
            .insert(name, values(read, theirs, tensor)?)
            .is_some()
        {
            let (file, name) = (read.name.clone(), name.to_owned());
            return Err(WeightsError::Twice { file, name });
        }
    }
    let absent = wanted.keys().filter(|name| !tensors.contains_key(*name));
    let is_bias = |name: &&&str| {
        let weight = name.strip_suffix(".bias").map(|of| format!("{of}.weight"));
        let weight = weight.filter(|weight| tensors.contains_key(weight.as_str()));
        weight.is_some_and(|weight| wanted[weight.as_str()].len() == 4)
    };
    let (missing, absent): (Vec<&str>, Vec<&str>) =
        absent.copied().partition(|name| is_bias(&name));
    if absent.is_empty() && unknown.is_empty() && shaped.is_empty() {
        return Ok(Found { tensors, missing });
    }
    let file = read.name.clone();
    let only_readout = shaped.iter().all(|(name, _)| name.starts_with(READOUT));
    if let Some((name, tensor)) = shaped.first()
        && only_readout
        && absent.is_empty()
        && unknown.is_empty()
    {
        return Err(WeightsError::Readout {
            file,
            name: (*name).to_owned(),
            got: tensor.shape.clone(),
            want: wanted[name].clone(),
        });
    }
    let shaped = shaped
        .iter()
        .map(|(name, tensor)| format!("{name} is {:?}, not {:?}", tensor.shape, wanted[name]));
    let kinds = [
        ("it lacks", absent.iter().map(ToString::to_string).collect()),
        (
            "it has, unlike the network,",
            unknown.iter().map(|name| shortened(name)).collect(),
        ),
        ("of another shape are", shaped.collect::<Vec<String>>()),
    ];
    let kinds = kinds.iter().filter(|(_, names)| !names.is_empty());
    let kinds: Vec<String> = kinds.map(|(what, names)| listed(what, names)).collect();
    let differences = kinds.join("; ");
    Err(WeightsError::Misfit { file, differences })
}

fn values<'a>(
    read: &TraceFile,
    name: &str,
    tensor: &'a TraceTensor,
) -> Result<&'a [f32], WeightsError> {
    match &tensor.data {
        TensorData::F32(values) => Ok(values),
        TensorData::I64(_) => Err(WeightsError::Integers {
            file: read.name.clone(),
            name: shortened(name),
        }),
    }
}

/// A name from a file, fit for a message.
fn shortened(name: &str) -> String {
    let start: String = name.chars().take(60).collect();
    start.escape_debug().to_string()
}

/// How many there are, and the first.
fn listed(what: &str, names: &[String]) -> String {
    let first = names.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>();
    let more = if names.len() > MAX_NAMED { ", ..." } else { "" };
    format!(
        "{what} {} ({}{more})",
        tensors(names.len()),
        first.join(", ")
    )
}

fn tensors(count: usize) -> String {
    match count {
        1 => "1 tensor".into(),
        count => format!("{count} tensors"),
    }
}

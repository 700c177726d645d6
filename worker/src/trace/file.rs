//! Trace files: named tensors and a few strings, in the safetensors format.
//!
//! A header of JSON behind its length, then the tensors' bytes without gaps
//! (<https://github.com/huggingface/safetensors>). Read here rather than by the crate of that name
//! because a refused file should name the tensor at fault, and a written one always have the same
//! bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use safetensors::tensor::{Dtype, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use super::TraceError;
use super::error::{one_line, shown};
use super::metadata::Unique;

/// The largest file that is read.
pub const MAX_FILE_BYTES: u64 = 1 << 30;
/// The largest header that is read: four times a trace of the deepest network.
pub const MAX_HEADER_BYTES: usize = 1 << 24;
/// The largest number of dimensions of a tensor.
pub const MAX_RANK: usize = 8;

const METADATA: &str = "__metadata__";
const LENGTH_BYTES: usize = 8;

/// The numbers of a tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// Whole numbers: labels and positions.
    I64(Vec<i64>),
}

impl TensorData {
    /// How many numbers there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::I64(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::I64(_) => Dtype::I64,
        }
    }
}

/// A tensor: its shape and as many numbers as that says.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceTensor {
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Its numbers.
    pub data: TensorData,
}

impl TraceTensor {
    /// A tensor of floats.
    pub fn f32(shape: &[usize], values: Vec<f32>) -> Self {
        let shape = shape.to_vec();
        let data = TensorData::F32(values);
        Self { shape, data }
    }

    /// A tensor of whole numbers.
    pub fn i64(shape: &[usize], values: Vec<i64>) -> Self {
        let shape = shape.to_vec();
        let data = TensorData::I64(values);
        Self { shape, data }
    }
}

/// The content of a trace file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceFile {
    /// What messages call it: its path.
    pub name: String,
    /// Its tensors by name.
    pub tensors: BTreeMap<String, TraceTensor>,
    /// The strings beside them.
    pub metadata: BTreeMap<String, String>,
}

/// Reads a file.
///
/// # Errors
/// If it cannot be read, is larger than [`MAX_FILE_BYTES`], or is refused by [`parse`].
pub fn read(path: &Path) -> Result<TraceFile, TraceError> {
    parse(&read_bytes(path)?, &one_line(path.display()))
}

/// The bytes of a file.
///
/// # Errors
/// If it cannot be read, or is larger than [`MAX_FILE_BYTES`].
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>, TraceError> {
    let name = one_line(path.display());
    let failed = |source| TraceError::Read {
        file: name.clone(),
        source,
    };
    // A pipe would wait for its writer, a device would never end.
    let about = std::fs::metadata(path).map_err(failed)?;
    if !about.is_file() {
        return Err(TraceError::NotAFile { file: name });
    }
    file_limit(&name, about.len())?;
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    // It may have grown since.
    let mut bounded = file.take(MAX_FILE_BYTES + 1);
    bounded.read_to_end(&mut bytes).map_err(failed)?;
    file_limit(&name, bytes.len() as u64)?;
    Ok(bytes)
}

/// Reads the bytes of a file that messages call `name`.
///
/// It allocates no more than a small multiple of `bytes`, whatever they say.
///
/// # Errors
/// If the bytes are no safetensors file, or one with names that occur twice, with tensors that
/// overlap, leave gaps or exceed the file, or with numbers other than `F32`, `F64` and `I64`.
pub fn parse(bytes: &[u8], name: &str) -> Result<TraceFile, TraceError> {
    file_limit(name, bytes.len() as u64)?;
    let (header, data) = split(bytes, name)?;
    let header: Header = serde_json::from_slice(header).map_err(|e| TraceError::Header {
        file: name.into(),
        reason: format!("its header cannot be read: {}", one_line(e)),
    })?;
    check_ranges(&header, data.len(), name)?;
    let mut tensors = BTreeMap::new();
    for (tensor, info) in header.tensors {
        let (start, end) = info.data_offsets;
        let numbers = numbers(info.dtype, &data[start..end]).ok_or_else(|| {
            let reason = format!("its numbers are {:?}, needs F32, F64 or I64", info.dtype);
            tensor_error(name, &tensor, reason)
        })?;
        let shape = info.shape;
        let data = numbers;
        tensors.insert(tensor, TraceTensor { shape, data });
    }
    Ok(TraceFile {
        name: name.into(),
        tensors,
        metadata: header.metadata,
    })
}

/// Writes a file: to a temporary name beside it first, so that a reader sees all of it or nothing.
///
/// The same content gives the same bytes; `file.name` is not part of it.
///
/// # Errors
/// If it cannot be written, or a tensor's shape does not fit its numbers.
pub fn write(path: &Path, file: &TraceFile) -> Result<(), TraceError> {
    let name = one_line(path.display());
    let bytes = to_bytes(file, &name)?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let save = || -> std::io::Result<()> {
        let mut out = File::create(&partial)?;
        out.write_all(&bytes)?;
        out.sync_all()?;
        std::fs::rename(&partial, path)
    };
    save().map_err(|source| {
        // What remains of a failed attempt is of no use; that it failed is said below.
        let _ = std::fs::remove_file(&partial);
        TraceError::Write { file: name, source }
    })
}

/// The bytes of a file that messages call `name`.
///
/// # Errors
/// If a tensor's shape does not fit its numbers, or a limit of reading is exceeded.
pub fn to_bytes(file: &TraceFile, name: &str) -> Result<Vec<u8>, TraceError> {
    // Wider numbers first keeps all of them aligned.
    let mut order: Vec<(&String, &TraceTensor)> = file.tensors.iter().collect();
    order.sort_by_key(|(tensor, t)| (std::cmp::Reverse(t.data.dtype()), *tensor));
    let mut entries = Vec::with_capacity(order.len());
    let mut end = 0;
    for (tensor, t) in &order {
        let elements = elements(&t.shape);
        if elements != Some(t.data.len()) || t.shape.len() > MAX_RANK || *tensor == METADATA {
            let reason = format!("{} numbers cannot have shape {:?}", t.data.len(), t.shape);
            return Err(tensor_error(name, tensor, reason));
        }
        let start = end;
        end += t.data.len() * t.data.dtype().bitsize() / 8;
        let info = TensorInfo {
            dtype: t.data.dtype(),
            shape: t.shape.clone(),
            data_offsets: (start, end),
        };
        entries.push((tensor.as_str(), info));
    }
    let header = HeaderOut {
        metadata: &file.metadata,
        tensors: &entries,
    };
    let mut text = serde_json::to_vec(&header).map_err(|e| TraceError::Header {
        file: name.into(),
        reason: one_line(e),
    })?;
    text.resize(text.len().next_multiple_of(LENGTH_BYTES), b' ');
    header_limit(name, text.len() as u64)?;
    let total = LENGTH_BYTES + text.len() + end;
    file_limit(name, total as u64)?;
    let mut bytes = Vec::with_capacity(total);
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text);
    for (_, t) in order {
        match &t.data {
            TensorData::F32(values) => bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            TensorData::I64(values) => bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        }
    }
    Ok(bytes)
}

/// The number of elements of a shape, if it is a number.
fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d))
}

fn file_limit(name: &str, bytes: u64) -> Result<(), TraceError> {
    limit(name, "the size of the file", bytes, MAX_FILE_BYTES)
}

fn header_limit(name: &str, bytes: u64) -> Result<(), TraceError> {
    limit(
        name,
        "the size of its header",
        bytes,
        MAX_HEADER_BYTES as u64,
    )
}

fn limit(name: &str, what: &'static str, got: u64, limit: u64) -> Result<(), TraceError> {
    if got <= limit {
        return Ok(());
    }
    Err(TraceError::TooLarge {
        file: name.into(),
        what,
        got,
        limit,
    })
}

fn tensor_error(file: &str, tensor: &str, reason: String) -> TraceError {
    TraceError::Tensor {
        file: file.into(),
        tensor: shown(tensor),
        reason,
    }
}

/// Header and data.
fn split<'a>(bytes: &'a [u8], name: &str) -> Result<(&'a [u8], &'a [u8]), TraceError> {
    let short = |reason: String| TraceError::Header {
        file: name.into(),
        reason,
    };
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(short(format!("it has only {} bytes", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    header_limit(name, length)?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    rest.split_at_checked(length).ok_or_else(|| {
        let have = rest.len();
        short(format!(
            "its header should have {length} bytes, {have} are left: it is cut off"
        ))
    })
}

/// Tensors one after the other, without gaps, to the end of the file; shapes that fit them.
fn check_ranges(header: &Header, data_bytes: usize, name: &str) -> Result<(), TraceError> {
    let mut order: Vec<&(String, TensorInfo)> = header.tensors.iter().collect();
    order.sort_by_key(|(_, info)| info.data_offsets);
    let mut expected = 0;
    for (tensor, info) in order {
        let (start, end) = info.data_offsets;
        let fail = |reason: String| Err(tensor_error(name, tensor, reason));
        if info.shape.len() > MAX_RANK {
            let rank = info.shape.len();
            return fail(format!(
                "it has {rank} dimensions, more than the limit of {MAX_RANK}"
            ));
        }
        if start > end || end > data_bytes {
            return fail(format!(
                "it lies at bytes {start} to {end} of {data_bytes}: the file is cut off or altered"
            ));
        }
        if start != expected {
            return fail(format!(
                "it begins at byte {start}, the one before ends at {expected}: they overlap or \
                 leave a gap"
            ));
        }
        let bits = elements(&info.shape).and_then(|n| n.checked_mul(info.dtype.bitsize()));
        if bits != (end - start).checked_mul(8) {
            let bytes = end - start;
            return fail(format!(
                "shape {:?} does not fit its {bytes} bytes",
                info.shape
            ));
        }
        expected = end;
    }
    if expected == data_bytes {
        return Ok(());
    }
    Err(TraceError::Header {
        file: name.into(),
        reason: format!("{} bytes follow the last tensor", data_bytes - expected),
    })
}

fn numbers(dtype: Dtype, bytes: &[u8]) -> Option<TensorData> {
    let (fours, eights) = (bytes.as_chunks::<4>().0, bytes.as_chunks::<8>().0);
    if dtype == Dtype::F32 {
        let values = fours.iter().map(|b| f32::from_le_bytes(*b));
        Some(TensorData::F32(values.collect()))
    } else if dtype == Dtype::F64 {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the engine has 32-bit floats"
        )]
        let values = eights.iter().map(|b| f64::from_le_bytes(*b) as f32);
        Some(TensorData::F32(values.collect()))
    } else if dtype == Dtype::I64 {
        let values = eights.iter().map(|b| i64::from_le_bytes(*b));
        Some(TensorData::I64(values.collect()))
    } else {
        None
    }
}

/// A header as read: in the order of the file, every name once.
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, TensorInfo)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut metadata = None;
                let mut seen = std::collections::BTreeSet::new();
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    let wrong = |e: A::Error| A::Error::custom(format!("{}: {e}", shown(&name)));
                    if name == METADATA && metadata.is_none() {
                        metadata = Some(map.next_value::<Unique<String>>().map_err(wrong)?.0);
                    } else if name == METADATA || !seen.insert(name.clone()) {
                        return Err(wrong(A::Error::custom("the name occurs twice")));
                    } else {
                        let info = map.next_value::<TensorInfo>().map_err(wrong)?;
                        tensors.push((name, info));
                    }
                }
                let metadata = metadata.unwrap_or_default();
                Ok(Header { metadata, tensors })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A header as written.
struct HeaderOut<'a> {
    metadata: &'a BTreeMap<String, String>,
    tensors: &'a [(&'a str, TensorInfo)],
}

impl Serialize for HeaderOut<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA, self.metadata)?;
        }
        for (name, info) in self.tensors {
            map.serialize_entry(name, info)?;
        }
        map.end()
    }
}

//! The files of `torch.save`, read without executing them: tensors by name.
//!
//! Since PyTorch 1.6 such a file is an archive: a pickle that describes the tensors, and an entry
//! for each storage. Older ones are five pickles in a row, the storages behind them.

use std::collections::BTreeMap;

use super::archive::{self, Archive};
use super::storage::{Kind, Layout};
use crate::pickle::{Dialect, Id, ORDERED_DICT, Pickle, Value};
use crate::trace::file::{TensorData, TraceTensor};

const TENSOR: &str = "torch._utils\n_rebuild_tensor_v2\n";
const PARAMETER: &str = "torch._utils\n_rebuild_parameter\n";

/// What a file of weights and of a training's state beside them names.
const DIALECT: Dialect = Dialect {
    writer: "a file with weights (the state_dict of a module, not the module itself)",
    globals: &[
        TENSOR,
        PARAMETER,
        ORDERED_DICT,
        "collections\nCounter\n",
        "argparse\nNamespace\n",
        "torch\nSize\n",
        "torch\ndevice\n",
        Kind::GLOBALS[0],
        Kind::GLOBALS[1],
        Kind::GLOBALS[2],
        Kind::GLOBALS[3],
        Kind::GLOBALS[4],
        Kind::GLOBALS[5],
        Kind::GLOBALS[6],
        Kind::GLOBALS[7],
        Kind::GLOBALS[8],
        Kind::GLOBALS[9],
    ],
};

/// The first pickle of an older file: a number that says so.
const OLD_MAGIC: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
const OLD_PROTOCOL: i64 = 1001;
/// A larger description is not of a network.
const MAX_PICKLE_BYTES: usize = 1 << 24;

/// Under what training programs put the weights beside other things, the likeliest first.
const WRAPPERS: [&str; 5] = ["model", "state_dict", "net", "model_state_dict", "ema"];

/// Whether bytes are those of `torch.save`.
pub(super) fn is_torch(bytes: &[u8]) -> bool {
    bytes.starts_with(archive::MAGIC) || bytes.starts_with(OLD_MAGIC)
}

/// The tensors of a file by their names.
///
/// It allocates no more than a small multiple of `bytes`, whatever they say.
pub(super) fn read(bytes: &[u8]) -> Result<BTreeMap<String, TraceTensor>, String> {
    let file = if bytes.starts_with(OLD_MAGIC) {
        File::old(bytes)?
    } else {
        File::new(bytes)?
    };
    let mut tensors = BTreeMap::new();
    // Tensors may share a storage; all of them together are not larger than the file.
    let mut left = bytes.len();
    for (name, id) in file.state()? {
        let named = |reason: String| format!("tensor {name:?}: {reason}");
        let tensor = file.tensor(id, &mut left).map_err(named)?;
        if let Some(tensor) = tensor
            && tensors.insert(name.to_owned(), tensor).is_some()
        {
            return Err(named("it is there twice".into()));
        }
    }
    Ok(tensors)
}

struct File<'a> {
    pickle: Pickle<'a>,
    storages: Storages<'a>,
}

enum Storages<'a> {
    Entries(Archive<'a>, &'a str),
    Behind(BTreeMap<&'a str, &'a [u8]>),
}

impl<'a> File<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, String> {
        let archive = Archive::read(bytes)?;
        let folder = archive.names().find_map(|n| n.strip_suffix("/data.pkl"));
        let folder = folder.ok_or("it is an archive without data.pkl, none of torch.save")?;
        let order = archive.get(&format!("{folder}/byteorder"))?;
        if order.is_some_and(|order| order != b"little") {
            return Err(
                "its numbers have their bytes in another order: save it again on a \
                        little-endian machine"
                    .into(),
            );
        }
        let described = archive.get(&format!("{folder}/data.pkl"))?;
        let described = described.expect("its name was found above");
        if described.len() > MAX_PICKLE_BYTES {
            return Err(format!("data.pkl has more than {MAX_PICKLE_BYTES} bytes"));
        }
        Ok(Self {
            pickle: Pickle::read(described, DIALECT)?,
            storages: Storages::Entries(archive, folder),
        })
    }

    fn old(bytes: &'a [u8]) -> Result<Self, String> {
        let mut at = OLD_MAGIC.len();
        let mut next = || {
            // No pickle is as long as the storages behind it may be.
            let rest = &bytes[at..bytes.len().min(at + MAX_PICKLE_BYTES)];
            let pickle = Pickle::read(rest, DIALECT)?;
            at += pickle.end;
            Ok::<_, String>(pickle)
        };
        let (version, system) = (next()?, next()?);
        if version.number(version.top) != Some(OLD_PROTOCOL) {
            return Err("it is of an unknown version of torch.save: save it again".into());
        }
        let mut facts = system.dict(system.top).into_iter().flatten();
        let is_little = |(key, value)| {
            system.text(key) == Some("little_endian")
                && matches!(system.value(value), Value::Bool(true))
        };
        if !facts.any(is_little) {
            return Err("it is not of a little-endian machine: save it again on one".into());
        }
        let (pickle, keys) = (next()?, next()?);
        let mut kinds = BTreeMap::new();
        for id in 0..pickle.len() {
            if let Some((kind, key)) = storage(&pickle, id) {
                kinds.insert(key, kind);
            }
        }
        let mut storages = BTreeMap::new();
        let Value::List(keys_in_order) = keys.value(keys.top) else {
            return Err("its list of storages is none".into());
        };
        for &key in keys_in_order {
            let key = keys.text(key).ok_or("a storage without a name")?;
            let kind = kinds.get(key).ok_or("a storage that no tensor has")?;
            let cut_off = || format!("storage {key:?} lies beyond the file: it is cut off");
            let count = bytes.get(at..).and_then(|rest| rest.first_chunk());
            let count = u64::from_le_bytes(*count.ok_or_else(cut_off)?);
            let len = usize::try_from(count).ok();
            let len = len.and_then(|count| count.checked_mul(kind.bytes()));
            let start = at + 8;
            let end = len.and_then(|len| start.checked_add(len));
            let data = end.and_then(|end| bytes.get(start..end));
            let data = data.ok_or_else(cut_off)?;
            storages.insert(key, data);
            at = start + data.len();
        }
        let storages = Storages::Behind(storages);
        Ok(Self { pickle, storages })
    }

    /// The entries of the weights: all there is, or what lies under a usual name.
    fn state(&self) -> Result<Vec<(&'a str, Id)>, String> {
        let pickle = &self.pickle;
        let mut top = pickle.top;
        // A state in a state in a state is no usual name any more.
        for _ in 0..WRAPPERS.len() {
            let Some(items) = pickle.dict(top) else {
                return Err("it holds no dictionary of tensors: save the state_dict".into());
            };
            let items: Vec<_> = items
                .filter_map(|(key, value)| Some((pickle.text(key)?, value)))
                .collect();
            let inside = WRAPPERS.iter().find_map(|wrapper| {
                let is_named = |&&(key, value): &&(&str, Id)| {
                    key == *wrapper && matches!(pickle.value(value), Value::Dict(_))
                };
                items.iter().find(is_named)
            });
            match inside {
                Some(&(_, value)) => top = value,
                None => return Ok(items),
            }
        }
        Err("it holds dictionaries in dictionaries: save the state_dict".into())
    }

    /// A tensor; nothing for a value of another kind.
    fn tensor(&self, id: Id, left: &mut usize) -> Result<Option<TraceTensor>, String> {
        let pickle = &self.pickle;
        let mut call = pickle.call(id);
        if let Some((PARAMETER, [data, ..])) = call {
            call = pickle.call(*data);
        }
        let Some((TENSOR, [stored, offset, shape, strides, ..])) = call else {
            return Ok(None);
        };
        let wrong = || "it is not described as torch.save does".to_owned();
        let (kind, key) = storage(pickle, *stored).ok_or_else(wrong)?;
        let sizes = |id: Id| {
            let sizes = pickle.tuple(id)?.iter().map(|&id| pickle.size(id));
            sizes.collect::<Option<Vec<usize>>>()
        };
        let layout = Layout {
            offset: pickle.size(*offset).ok_or_else(wrong)?,
            shape: sizes(*shape).ok_or_else(wrong)?,
            strides: sizes(*strides).ok_or_else(wrong)?,
        };
        let data = match &self.storages {
            Storages::Entries(archive, folder) => archive.get(&format!("{folder}/data/{key}"))?,
            Storages::Behind(storages) => storages.get(key).copied(),
        };
        let data = data.ok_or_else(|| format!("its storage {key:?} is not there"))?;
        let numbers = layout.check(data.len() / kind.bytes())?;
        *left = left
            .checked_sub(numbers)
            .ok_or("the tensors have more numbers than the file has bytes")?;
        let data: TensorData = kind.read(data, &layout)?;
        let shape = layout.shape;
        Ok(Some(TraceTensor { shape, data }))
    }
}

/// The kind and the name of a storage: ("storage", kind, name, device, length, ...).
fn storage<'a>(pickle: &Pickle<'a>, id: Id) -> Option<(Kind, &'a str)> {
    let Value::Persistent(named) = *pickle.value(id) else {
        return None;
    };
    let [word, kind, key, ..] = pickle.tuple(named)? else {
        return None;
    };
    let Value::Global(kind) = pickle.value(*kind) else {
        return None;
    };
    let is_storage = pickle.text(*word) == Some("storage");
    is_storage.then_some((Kind::of(kind)?, pickle.text(*key)?))
}

#[cfg(test)]
mod tests {
    use super::archive::tests::archive;
    use super::*;

    /// A dictionary of `w`, the first two of four numbers.
    const PICKLE: &[u8] =
        b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage\
        ctorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQK\0K\x02\x85K\x01\x85\x89}tRs.";
    const DATA: &[u8] = b"\0\0\x80?\0\0\0@\0\0@@\0\0\x80@";

    fn saved(pickle: &[u8]) -> Vec<u8> {
        archive(&[
            ("a/data.pkl", pickle),
            ("a/data/0", DATA),
            ("a/version", b"3\n"),
        ])
    }

    fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        [&bytes[..at], to, &bytes[at + from.len()..]].concat()
    }

    fn refused(from: &[u8], to: &[u8]) -> String {
        read(&saved(&replaced(PICKLE, from, to))).unwrap_err()
    }

    fn w(bytes: &[u8]) -> Vec<f32> {
        let mut tensors = read(bytes).unwrap();
        match tensors.remove("w").unwrap().data {
            TensorData::F32(values) => values,
            TensorData::I64(_) => panic!("whole numbers"),
        }
    }

    #[test]
    fn a_dictionary_of_tensors_is_read() {
        assert_eq!(w(&saved(PICKLE)), [1.0, 2.0]);
        let sliced = replaced(PICKLE, b"K\0K\x02\x85K\x01", b"K\x01K\x02\x85K\x02");
        assert_eq!(w(&saved(&sliced)), [2.0, 4.0]);
        // Beside other things; `_rebuild_parameter` around it.
        let inner = &PICKLE[2..PICKLE.len() - 1];
        let parts: [&[u8]; 3] = [
            b"\x80\x02}(X\x05\0\0\0epochK\x07X\x05\0\0\0model",
            inner,
            b"u.",
        ];
        let wrapped = parts.concat();
        assert_eq!(w(&saved(&wrapped)), [1.0, 2.0]);
        let parameter = replaced(
            PICKLE,
            b"ctorch._utils",
            b"ctorch._utils\n_rebuild_parameter\nctorch._utils",
        );
        let parameter = replaced(&parameter, b"tRs.", b"tR\x88}\x87Rs.");
        assert_eq!(w(&saved(&parameter)), [1.0, 2.0]);
    }

    #[test]
    fn what_would_run_a_program_is_refused_by_name() {
        let error = read(&saved(b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.")).unwrap_err();
        assert!(error.contains("it would call \"os.system\""), "{error}");
        let inside = refused(b"ctorch._utils\n_rebuild_tensor_v2\n", b"cbuiltins\neval\n");
        assert!(inside.contains("\"builtins.eval\""), "{inside}");
        // A whole module instead of its weights.
        let error = read(&saved(b"\x80\x02cmodels\nResNet\n)\x81.")).unwrap_err();
        assert!(
            error.contains("\"models.ResNet\"") && error.contains("state_dict"),
            "{error}"
        );
    }

    #[test]
    fn a_tensor_that_is_not_what_it_says_is_refused() {
        for (from, to, expected) in [
            (
                &b"K\x02\x85K\x01"[..],
                &b"K\x05\x85K\x01"[..],
                "not within its storage of 4",
            ),
            (
                b"K\x02\x85K\x01",
                b"K\x02\x85K\x04",
                "not within its storage of 4",
            ),
            (
                b"K\0K\x02\x85",
                b"K\x03K\x02\x85",
                "not within its storage of 4",
            ),
            (
                b"K\x02\x85K\x01",
                b"K\x02\x85J\xff\xff\xff\xff",
                "not described as torch.save does",
            ),
            (
                b"K\x02\x85K\x01",
                b"K\x02\x85}",
                "not described as torch.save does",
            ),
            (b"FloatStorage", b"IntStorage", "its numbers are int32"),
            (b"FloatStorage", b"QUInt8Storage", "torch.QUInt8Storage"),
            (
                b"\x000X\x03",
                b"\x001X\x03",
                "its storage \"1\" is not there",
            ),
            (b"storage", b"storeys", "not described as torch.save does"),
        ] {
            let error = refused(from, to);
            assert!(error.contains(expected), "no {expected} in {error}");
            assert!(
                error.contains("\"w\"") || error.contains("it would call"),
                "{error}"
            );
        }
        for nothing in [
            &b"\x80\x02]."[..],
            b"\x80\x02K\x01.",
            b"\x80\x02}X\x05\0\0\0model]s.",
        ] {
            match read(&saved(nothing)) {
                Ok(tensors) => assert!(tensors.is_empty()),
                Err(error) => assert!(error.contains("save the state_dict"), "{error}"),
            }
        }
    }

    #[test]
    fn tensors_that_share_a_storage_have_no_more_numbers_than_the_file_has_bytes() {
        let tensor = &PICKLE[3..PICKLE.len() - 2];
        let named = |name: u8| replaced(tensor, b"w", &[name]);
        let many: Vec<u8> = (0..200)
            .flat_map(|n| [named(n % 26 + b'a'), vec![b's']].concat())
            .collect();
        // Twice the same name.
        let twice = [b"\x80\x02}", &many[..], b"."].concat();
        assert!(
            read(&saved(&twice))
                .unwrap_err()
                .contains("it is there twice")
        );
        // One tensor, described once and kept, under many names: 4000 bytes, 40,000 numbers.
        let wide: Vec<u8> = vec![0; 1 << 12];
        let mut pickle = b"\x80\x02}".to_vec();
        pickle.extend(replaced(
            &replaced(tensor, b"K\x02\x85", b"M\0\x04\x85"),
            b"w",
            b"x",
        ));
        pickle.extend(b"q\x01s");
        for name in b'a'..=b'w' {
            pickle.extend([b"X\x01\0\0\0", &[name][..], b"h\x01s"].concat());
        }
        pickle.push(b'.');
        let bytes = archive(&[("a/data.pkl", &pickle), ("a/data/0", &wide)]);
        let error = read(&bytes).unwrap_err();
        assert!(
            error.contains("more numbers than the file has bytes"),
            "{error}"
        );
    }

    #[test]
    fn other_archives_and_byte_orders_are_refused() {
        let error = read(&archive(&[("a.txt", b"hello")])).unwrap_err();
        assert!(error.contains("without data.pkl"), "{error}");
        let big = [
            ("a/data.pkl", PICKLE),
            ("a/data/0", DATA),
            ("a/byteorder", b"big"),
        ];
        assert!(read(&archive(&big)).unwrap_err().contains("another order"));
    }

    /// The same as [`saved`], as PyTorch wrote it before 1.6.
    fn old(version: u8, is_little: bool, keys: &[u8], count: u8) -> Vec<u8> {
        let is_little = if is_little { b"\x88" } else { b"\x89" };
        [
            OLD_MAGIC,
            &[0x80, 2, b'M', version, 3, b'.'],
            b"\x80\x02}X\x0d\0\0\0little_endian",
            is_little,
            b"s.",
            PICKLE,
            keys,
            &[count, 0, 0, 0, 0, 0, 0, 0],
            DATA,
        ]
        .concat()
    }

    #[test]
    fn a_file_from_before_pytorch_1_6_is_read() {
        let keys = b"\x80\x02]X\x01\0\0\x000a.";
        assert_eq!(w(&old(0xe9, true, keys, 4)), [1.0, 2.0]);
        for (bytes, expected) in [
            (old(0xe8, true, keys, 4), "unknown version"),
            (old(0xe9, false, keys, 4), "little-endian"),
            (old(0xe9, true, keys, 5), "lies beyond the file"),
            (old(0xe9, true, keys, 1), "not within its storage of 1"),
            (
                old(0xe9, true, b"\x80\x02]X\x01\0\0\x001a.", 4),
                "no tensor has",
            ),
            (old(0xe9, true, b"\x80\x02].", 4), "is not there"),
            (old(0xe9, true, b"\x80\x02K\x01.", 4), "list of storages"),
        ] {
            let error = read(&bytes).unwrap_err();
            assert!(error.contains(expected), "no {expected} in {error}");
        }
    }
}

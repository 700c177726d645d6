//! The Python files of CIFAR: pickles that name only what makes a NumPy array. Nothing is called.

use crate::pickle::{Dialect, Id, Pickle, Value};

/// A batch of CIFAR: each row of `data` is a picture.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch<'a> {
    /// The lists of numbers by their names: `labels`, or `fine_labels` and `coarse_labels`.
    pub(super) lists: Vec<(&'a [u8], Vec<i64>)>,
    /// The number of rows.
    pub(super) num_rows: usize,
    /// The bytes of a row.
    pub(super) row_bytes: usize,
    /// All rows.
    pub(super) data: &'a [u8],
}

impl Batch<'_> {
    /// The list of a name.
    pub(super) fn list(&self, name: &str) -> Option<&[i64]> {
        let found = self.lists.iter().find(|(key, _)| *key == name.as_bytes());
        found.map(|(_, list)| list.as_slice())
    }
}

/// What may be named: how NumPy 1 and 2 make arrays and their types.
const DIALECT: Dialect = Dialect {
    writer: "a file of CIFAR",
    globals: &[
        "numpy.core.multiarray\n_reconstruct\n",
        "numpy._core.multiarray\n_reconstruct\n",
        "numpy\nndarray\n",
        "numpy\ndtype\n",
    ],
};

/// The batch that a file holds.
pub(super) fn read(bytes: &[u8]) -> Result<Batch<'_>, String> {
    let pickle = Pickle::read(bytes, DIALECT)?;
    let items = pickle.dict(pickle.top).ok_or("it holds no dictionary")?;
    let mut lists = Vec::new();
    let mut array = None;
    for (key, value) in items {
        match (pickle.value(key), pickle.value(value)) {
            (Value::Bytes(b"data"), _) => array = Some(array_of_bytes(&pickle, value)?),
            (Value::Bytes(key), Value::List(list)) if key.ends_with(b"labels") => {
                let number = |&id: &Id| {
                    let number = pickle.number(id);
                    number.ok_or_else(|| "a label that is no number".to_owned())
                };
                lists.push((*key, list.iter().map(number).collect::<Result<_, _>>()?));
            }
            _ => {}
        }
    }
    let (num_rows, row_bytes, data) = array.ok_or("it holds no \"data\"")?;
    Ok(Batch {
        lists,
        num_rows,
        row_bytes,
        data,
    })
}

/// Rows, bytes of a row and the bytes of an array of `uint8` in C order.
fn array_of_bytes<'a>(pickle: &Pickle<'a>, id: Id) -> Result<(usize, usize, &'a [u8]), String> {
    let wrong = || "\"data\" is no array of bytes in rows".to_owned();
    let Value::Object(function, _, Some(state)) = *pickle.value(id) else {
        return Err(wrong());
    };
    let is_array = matches!(pickle.value(function), Value::Global(name)
        if name.ends_with("_reconstruct\n"));
    let Some(&[_, shape, dtype, is_fortran, bytes]) = pickle.tuple(state) else {
        return Err(wrong());
    };
    let is_c = matches!(pickle.value(is_fortran), Value::Bool(false) | Value::Int(0));
    let shape = pickle.tuple(shape).ok_or_else(wrong)?;
    let shape: Vec<usize> = shape.iter().filter_map(|&id| pickle.size(id)).collect();
    let (&[rows, row_bytes], Value::Bytes(bytes)) = (shape.as_slice(), pickle.value(bytes)) else {
        return Err(wrong());
    };
    let fits = rows.checked_mul(row_bytes) == Some(bytes.len());
    if !is_array || !is_type_of_bytes(pickle, dtype) || !is_c || !fits {
        return Err(wrong());
    }
    Ok((rows, row_bytes, *bytes))
}

fn is_type_of_bytes(pickle: &Pickle<'_>, id: Id) -> bool {
    let Some(("numpy\ndtype\n", [first, ..])) = pickle.call(id) else {
        return false;
    };
    matches!(pickle.value(*first), Value::Bytes(b"u1"))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A batch as Python 2 pickled it, `lists` being names and labels of up to 255.
    pub(in super::super) fn pickled(lists: &[(&str, &[u8])], rows: &[&[u8]]) -> Vec<u8> {
        let text =
            |text: &str| [&[b'U', u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        let mut bytes = b"\x80\x02}q\x01(".to_vec();
        bytes.extend(text("batch_label"));
        bytes.extend(b"q\x02");
        bytes.extend(text("training batch 1 of 5"));
        for (name, labels) in lists {
            bytes.extend(text(name));
            bytes.extend(b"]q\x05(");
            bytes.extend(labels.iter().flat_map(|&label| [b'K', label]));
            bytes.push(b'e');
        }
        bytes.extend(text("data"));
        bytes.extend(b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08");
        bytes.extend(b"K\x00\x85U\x01b\x87Rq\x09(K\x01M");
        bytes.extend(u16::try_from(rows.len()).unwrap().to_le_bytes());
        bytes.push(b'M');
        let row_bytes = rows.first().map_or(0, |row| row.len());
        bytes.extend(u16::try_from(row_bytes).unwrap().to_le_bytes());
        bytes.extend(b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN");
        bytes.extend(b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T");
        let data = rows.concat();
        bytes.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        bytes.extend(data);
        bytes.extend(b"tbu.");
        bytes
    }

    #[test]
    fn a_batch_is_its_lists_and_rows() {
        let bytes = pickled(&[("labels", &[3, 200])], &[b"abcd", b"efgh"]);
        let batch = read(&bytes).unwrap();
        assert_eq!(batch.list("labels"), Some(&[3, 200][..]));
        assert_eq!(batch.list("fine_labels"), None);
        assert_eq!((batch.num_rows, batch.row_bytes), (2, 4));
        assert_eq!(batch.data, b"abcdefgh");
    }

    #[test]
    fn nothing_else_is_read() {
        let refused = |bytes: &[u8]| read(bytes).unwrap_err();
        let error = refused(b"\x80\x02cos\nsystem\nU\x02ls\x85R.");
        assert!(error.contains("it would call \"os.system"), "{error}");
        assert!(refused(b"\x80\x02I1\n.").contains("instruction 0x49 at byte 2"));
        assert!(refused(b"\x80\x01.").contains("protocol 1"));
        assert!(refused(b"\x80\x02K").contains("ends at byte 3"));
        assert!(refused(b"\x80\x02K\x01.").contains("no dictionary"));
        assert!(refused(b"\x80\x02}.").contains("no \"data\""));
        assert!(refused(b"\x80\x02K\x01r\xff\xff\xff\x7f.").contains("slot 2147483647"));
        let wrong = pickled(&[], &[b"ab"]);
        let at = wrong.iter().rposition(|&b| b == 0x89).unwrap();
        let fortran = [&wrong[..at], &[0x88], &wrong[at + 1..]].concat();
        assert!(refused(&fortran).contains("no array of bytes"));
    }

    #[test]
    fn values_that_hold_themselves_end() {
        // A list in itself, as the labels.
        let error = read(b"\x80\x02}(U\x06labels]q\x00h\x00au.").unwrap_err();
        assert!(error.contains("no number"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            tail in prop::collection::vec(any::<u8>(), 0..200),
            codes in prop::collection::vec(
                prop::sample::select(b"q\x00h\x00KNRbtaesu}]()\x85\x86\x87.c\x94".to_vec()), 0..60),
            at in 0usize..400,
            byte in any::<u8>(),
        ) {
            let _ = read(&tail);
            let _ = read(&codes);
            let mut whole = pickled(&[("labels", &[3, 2])], &[b"abcd", b"efgh"]);
            let at = at % whole.len();
            whole[at] = byte;
            let _ = read(&whole);
            let _ = read(&whole[..at]);
            let _ = read(&[&whole[..at], &codes[..], &tail[..]].concat());
        }
    }
}

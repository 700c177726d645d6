//! The Python files of CIFAR, read without executing anything.
//!
//! A pickle is a program for a stack machine. This reader knows the instructions that these files
//! consist of, and of the functions that they name only those that make a NumPy array; nothing is
//! called. Whatever else there is, is an error. Values are numbered, never copied, so what is
//! built is no larger than the file.
//!
//! # Source
//!
//! The instructions are described in the module `pickletools` of Python's standard library.

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
const GLOBALS: [&str; 4] = [
    "numpy.core.multiarray\n_reconstruct\n",
    "numpy._core.multiarray\n_reconstruct\n",
    "numpy\nndarray\n",
    "numpy\ndtype\n",
];

type Id = usize;

#[derive(Debug, Clone)]
enum Value<'a> {
    Mark,
    None,
    Bool(bool),
    Int(i64),
    Bytes(&'a [u8]),
    Global(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<Id>),
    /// A function's name, its arguments, and the state given later.
    Object(Id, Id, Option<Id>),
}

/// The batch that a file holds.
pub(super) fn read(bytes: &[u8]) -> Result<Batch<'_>, String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        values: Vec::new(),
        stack: Vec::new(),
        memo: Vec::new(),
    };
    let top = machine.run()?;
    machine.batch(top)
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    memo: Vec<Option<Id>>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id, String> {
        loop {
            let at = self.at;
            let [code] = self.array()?;
            match code {
                b'.' => return self.pop(),
                0x80 => {
                    let [version] = self.array()?;
                    if !(2..=5).contains(&version) {
                        return Err(format!("a pickle of protocol {version}, not 2 to 5"));
                    }
                }
                b'q' | b'r' | b'h' | b'j' | 0x94 => self.remember(code)?,
                b'N' | 0x88 | 0x89 | b'K' | b'M' | b'J' | b'U' | b'T' | b'X' | b'C' | b'B'
                | 0x8c | b'c' | b'(' | b']' | b'}' | b')' => self.constant(code)?,
                0x85..=0x87 => {
                    let first = self.stack.len().checked_sub(usize::from(code - 0x84));
                    let items = self.stack.split_off(first.ok_or("too few values")?);
                    self.push(Value::Tuple(items));
                }
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::Tuple(items));
                }
                b'a' | b'e' | b's' | b'u' => self.fill(code)?,
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    self.push(Value::Object(function, arguments, None));
                }
                b'b' => {
                    let new = self.pop()?;
                    let Value::Object(_, _, state) = self.top()? else {
                        return Err(format!("state for no object at byte {at}"));
                    };
                    *state = Some(new);
                }
                _ => {
                    return Err(format!(
                        "instruction 0x{code:02x} at byte {at} is none of those that CIFAR uses"
                    ));
                }
            }
        }
    }

    fn constant(&mut self, code: u8) -> Result<(), String> {
        let value = match code {
            b'N' => Value::None,
            0x88 | 0x89 => Value::Bool(code == 0x88),
            b'K' => Value::Int(self.array::<1>()?[0].into()),
            b'M' => Value::Int(u16::from_le_bytes(self.array()?).into()),
            b'J' => Value::Int(i32::from_le_bytes(self.array()?).into()),
            b'U' | b'C' | 0x8c => {
                let [len] = self.array()?;
                Value::Bytes(self.take(len.into())?)
            }
            b'T' | b'X' | b'B' => {
                let len = u32::from_le_bytes(self.array()?);
                Value::Bytes(self.take(len as usize)?)
            }
            b'c' => Value::Global(self.global()?),
            b']' => Value::List(Vec::new()),
            b'}' => Value::Dict(Vec::new()),
            b')' => Value::Tuple(Vec::new()),
            _ => Value::Mark,
        };
        self.push(value);
        Ok(())
    }

    fn global(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let known = GLOBALS.iter().find(|g| rest.starts_with(g.as_bytes()));
        let Some(known) = known else {
            let shown = rest.get(..40).unwrap_or(rest);
            let shown = String::from_utf8_lossy(shown).into_owned();
            return Err(format!(
                "it would call {shown:?}, which no file of CIFAR does"
            ));
        };
        self.at += known.len();
        Ok(*known)
    }

    fn remember(&mut self, code: u8) -> Result<(), String> {
        let slot = match code {
            0x94 => self.memo.len(),
            b'q' | b'h' => self.array::<1>()?[0].into(),
            _ => u32::from_le_bytes(self.array()?) as usize,
        };
        if matches!(code, b'h' | b'j') {
            let id = self.memo.get(slot).copied().flatten();
            self.stack.push(id.ok_or("a value that was never kept")?);
            return Ok(());
        }
        let id = *self.stack.last().ok_or("nothing to keep")?;
        // Slots are given in turn, so none lies beyond the bytes read so far.
        if slot > self.at {
            return Err(format!("slot {slot} at byte {}", self.at));
        }
        if slot >= self.memo.len() {
            self.memo.resize(slot + 1, None);
        }
        self.memo[slot] = Some(id);
        Ok(())
    }

    /// Values into the list or the dictionary below them.
    fn fill(&mut self, code: u8) -> Result<(), String> {
        let items = match code {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_to_mark()?,
        };
        match (code, self.top()?) {
            (b'a' | b'e', Value::List(list)) => list.extend(items),
            (b's' | b'u', Value::Dict(dict)) => dict.extend(items),
            _ => return Err("items for neither list nor dictionary".into()),
        }
        Ok(())
    }

    fn batch(&self, top: Id) -> Result<Batch<'a>, String> {
        let Value::Dict(items) = &self.values[top] else {
            return Err("it holds no dictionary".into());
        };
        let mut lists = Vec::new();
        let mut array = None;
        for pair in items.chunks_exact(2) {
            match (&self.values[pair[0]], &self.values[pair[1]]) {
                (Value::Bytes(b"data"), _) => array = Some(self.array_of_bytes(pair[1])?),
                (Value::Bytes(key), Value::List(list)) if key.ends_with(b"labels") => {
                    let number = |&id: &Id| {
                        let number = self.number(id);
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
    fn array_of_bytes(&self, id: Id) -> Result<(usize, usize, &'a [u8]), String> {
        let wrong = || "\"data\" is no array of bytes in rows".to_owned();
        let Value::Object(function, _, Some(state)) = self.values[id] else {
            return Err(wrong());
        };
        let is_array = matches!(self.values[function], Value::Global(name)
            if name.ends_with("_reconstruct\n"));
        let Value::Tuple(state) = &self.values[state] else {
            return Err(wrong());
        };
        let &[_, shape, dtype, is_fortran, bytes] = state.as_slice() else {
            return Err(wrong());
        };
        let is_of_bytes = self.is_type_of_bytes(dtype);
        let is_c = matches!(self.values[is_fortran], Value::Bool(false) | Value::Int(0));
        let Value::Tuple(shape) = &self.values[shape] else {
            return Err(wrong());
        };
        let shape: Vec<usize> = shape.iter().filter_map(|&id| self.size(id)).collect();
        let (&[rows, row_bytes], Value::Bytes(bytes)) = (shape.as_slice(), &self.values[bytes])
        else {
            return Err(wrong());
        };
        if !is_array || !is_of_bytes || !is_c || rows.checked_mul(row_bytes) != Some(bytes.len()) {
            return Err(wrong());
        }
        Ok((rows, row_bytes, *bytes))
    }

    fn is_type_of_bytes(&self, id: Id) -> bool {
        let Value::Object(function, arguments, _) = self.values[id] else {
            return false;
        };
        let Value::Tuple(arguments) = &self.values[arguments] else {
            return false;
        };
        let is_u1 = |&id: &Id| matches!(self.values[id], Value::Bytes(b"u1"));
        matches!(self.values[function], Value::Global("numpy\ndtype\n"))
            && arguments.first().is_some_and(is_u1)
    }

    fn number(&self, id: Id) -> Option<i64> {
        let Value::Int(number) = self.values[id] else {
            return None;
        };
        Some(number)
    }

    fn size(&self, id: Id) -> Option<usize> {
        usize::try_from(self.number(id)?).ok()
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(len);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| format!("it ends at byte {}", self.bytes.len()))?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("as many bytes as taken"))
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Id, String> {
        self.stack.pop().ok_or_else(|| "too few values".into())
    }

    fn top(&mut self) -> Result<&mut Value<'a>, String> {
        let id = *self.stack.last().ok_or("too few values")?;
        Ok(&mut self.values[id])
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let is_mark = |&id: &Id| matches!(self.values[id], Value::Mark);
        let mark = self.stack.iter().rposition(is_mark).ok_or("no mark")?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }
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
        assert!(error.contains("it would call \"os\\nsystem"), "{error}");
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

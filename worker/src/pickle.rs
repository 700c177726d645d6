//! Python's pickles, read without executing anything.
//!
//! A pickle is a program for a stack machine. This one knows the instructions that plain data
//! consist of, and of what a file names only what its reader lists; nothing is ever called: a call
//! becomes a value that says what would be called with what. Whatever else there is, is an error.
//! Values are numbered, never copied, and the instructions are counted, so what is built is bounded.
//!
//! # Source
//!
//! The instructions are described in the module `pickletools` of Python's standard library.

/// More instructions than any file of the sets and weights that are read has.
const MAX_INSTRUCTIONS: usize = 1 << 22;
/// The longest name of a module or of what is in it that a message repeats, in bytes.
const MAX_NAME_BYTES: usize = 80;
/// How an ordered dictionary is made; it is read as a dictionary.
pub(crate) const ORDERED_DICT: &str = "collections\nOrderedDict\n";

/// The number of a value.
pub(crate) type Id = usize;

/// What an instruction left behind.
#[derive(Debug, Clone)]
pub(crate) enum Value<'a> {
    /// The beginning of a list of items.
    Mark,
    /// `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number of at most 64 bits.
    Int(i64),
    /// A number that no reader asks for: a float, or a whole one of more than 64 bits.
    Number,
    /// A text or bytes.
    Bytes(&'a [u8]),
    /// What is named, as in the reader's list.
    Global(&'static str),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A list.
    List(Vec<Id>),
    /// A dictionary, keys and values in turn.
    Dict(Vec<Id>),
    /// What would be called, its arguments, and the state given later.
    Object(Id, Id, Option<Id>),
    /// Something beside the pickle, by what names it.
    Persistent(Id),
}

/// Who writes the files, and what they name: `module\nname\n`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dialect {
    pub(crate) writer: &'static str,
    pub(crate) globals: &'static [&'static str],
}

/// What a pickle holds.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    /// What it is a pickle of.
    pub(crate) top: Id,
    /// The position behind its last byte.
    pub(crate) end: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle at the start of `bytes`; others may follow.
    ///
    /// # Errors
    /// With what is wrong, for a file that the caller names.
    pub(crate) fn read(bytes: &'a [u8], dialect: Dialect) -> Result<Self, String> {
        let mut machine = Machine {
            bytes,
            dialect,
            at: 0,
            instructions: 0,
            values: Vec::new(),
            stack: Vec::new(),
            memo: Vec::new(),
        };
        let top = machine.run()?;
        Ok(Self {
            values: machine.values,
            top,
            end: machine.at,
        })
    }

    /// A value. Values may hold each other in circles: who follows them must stop somewhere.
    pub(crate) fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id]
    }

    /// The number of values.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// The items of a tuple; nothing for anything else.
    pub(crate) fn tuple(&self, id: Id) -> Option<&[Id]> {
        let Value::Tuple(items) = self.value(id) else {
            return None;
        };
        Some(items)
    }

    /// Keys and values of a dictionary; nothing for anything else.
    pub(crate) fn dict(&self, id: Id) -> Option<impl Iterator<Item = (Id, Id)>> {
        let Value::Dict(items) = self.value(id) else {
            return None;
        };
        Some(items.chunks_exact(2).map(|pair| (pair[0], pair[1])))
    }

    /// A text; nothing for anything else.
    pub(crate) fn text(&self, id: Id) -> Option<&'a str> {
        let Value::Bytes(bytes) = self.value(id) else {
            return None;
        };
        std::str::from_utf8(bytes).ok()
    }

    /// A whole number; nothing for anything else.
    pub(crate) fn number(&self, id: Id) -> Option<i64> {
        let Value::Int(number) = self.value(id) else {
            return None;
        };
        Some(*number)
    }

    /// A size or position; nothing for anything else.
    pub(crate) fn size(&self, id: Id) -> Option<usize> {
        usize::try_from(self.number(id)?).ok()
    }

    /// What would be called, with its arguments; nothing for anything else.
    pub(crate) fn call(&self, id: Id) -> Option<(&'static str, &[Id])> {
        let Value::Object(function, arguments, _) = self.value(id) else {
            return None;
        };
        let Value::Global(name) = self.value(*function) else {
            return None;
        };
        Some((name, self.tuple(*arguments)?))
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    dialect: Dialect,
    at: usize,
    instructions: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    memo: Vec<Option<Id>>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id, String> {
        loop {
            let at = self.at;
            let [code] = self.array()?;
            self.instructions += 1;
            if self.instructions > MAX_INSTRUCTIONS {
                return Err(format!("more than {MAX_INSTRUCTIONS} instructions"));
            }
            match code {
                b'.' => return self.pop(),
                0x80 => {
                    let [version] = self.array()?;
                    if !(2..=5).contains(&version) {
                        return Err(format!("a pickle of protocol {version}, not 2 to 5"));
                    }
                }
                b'q' | b'r' | b'h' | b'j' | 0x94 => self.remember(code)?,
                b'N' | 0x88 | 0x89 | b'K' | b'M' | b'J' | 0x8a | b'G' | b'U' | b'T' | b'X'
                | b'C' | b'B' | 0x8c | b'c' | b'(' | b']' | b'}' | b')' => self.constant(code)?,
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
                b'R' | 0x81 => self.call()?,
                b'Q' => {
                    let name = self.pop()?;
                    self.push(Value::Persistent(name));
                }
                b'b' => {
                    let new = self.pop()?;
                    let top = self.top()?;
                    if let Value::Object(_, _, state) = top {
                        *state = Some(new);
                    } else if !matches!(top, Value::Dict(_)) {
                        // A dictionary's are attributes, such as the versions of modules.
                        return Err(format!("state for no object at byte {at}"));
                    }
                }
                _ => {
                    let writer = self.dialect.writer;
                    return Err(format!(
                        "instruction 0x{code:02x} at byte {at} is none of those that {writer} uses"
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
            0x8a => self.long()?,
            b'G' => self.array::<8>().map(|_| Value::Number)?,
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

    /// A whole number in two's complement, least byte first.
    fn long(&mut self) -> Result<Value<'a>, String> {
        let [len] = self.array()?;
        let bytes = self.take(len.into())?;
        if bytes.len() > 8 {
            return Ok(Value::Number);
        }
        let sign = bytes.last().map_or(0, |&last| last >> 7) * u8::MAX;
        let mut whole = [sign; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(whole)))
    }

    fn global(&mut self) -> Result<&'static str, String> {
        let rest = &self.bytes[self.at..];
        let Dialect { writer, globals } = self.dialect;
        let Some(known) = globals.iter().find(|g| rest.starts_with(g.as_bytes())) else {
            let mut lines = rest.split(|&byte| byte == b'\n').map(|line| {
                let line = &line[..line.len().min(MAX_NAME_BYTES)];
                String::from_utf8_lossy(line).into_owned()
            });
            let (module, name) = (lines.next(), lines.next());
            let shown = format!(
                "{}.{}",
                module.unwrap_or_default(),
                name.unwrap_or_default()
            );
            return Err(format!(
                "it would call {shown:?}, which {writer} never does"
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
        // Slots are given in turn, one to a value, so none lies beyond the instructions so far.
        if slot > self.instructions {
            return Err(format!("slot {slot} at byte {}", self.at));
        }
        if slot >= self.memo.len() {
            self.memo.resize(slot + 1, None);
        }
        self.memo[slot] = Some(id);
        Ok(())
    }

    fn call(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let is_empty = matches!(&self.values[arguments], Value::Tuple(items) if items.is_empty());
        let is_dict = matches!(self.values[function], Value::Global(ORDERED_DICT));
        self.push(if is_dict && is_empty {
            Value::Dict(Vec::new())
        } else {
            Value::Object(function, arguments, None)
        });
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
mod tests {
    use super::*;

    const DIALECT: Dialect = Dialect {
        writer: "a test",
        globals: &["a\nb\n", ORDERED_DICT],
    };

    fn refused(bytes: &[u8]) -> String {
        Pickle::read(bytes, DIALECT).unwrap_err()
    }

    fn number(bytes: &[u8]) -> Option<i64> {
        let pickle = Pickle::read(bytes, DIALECT).unwrap();
        pickle.number(pickle.top)
    }

    #[test]
    fn whole_numbers_have_their_sign() {
        assert_eq!(number(b"\x80\x02K\xff."), Some(255));
        assert_eq!(number(b"J\xff\xff\xff\xff."), Some(-1));
        assert_eq!(number(b"\x8a\x00."), Some(0));
        assert_eq!(number(b"\x8a\x01\xfe."), Some(-2));
        assert_eq!(number(b"\x8a\x02\xfe\x00."), Some(254));
        assert_eq!(number(b"\x8a\x09123456789."), None);
    }

    #[test]
    fn a_call_says_what_would_be_called() {
        let pickle = Pickle::read(b"ca\nb\nK\x07\x85R.tail", DIALECT).unwrap();
        let (name, arguments) = pickle.call(pickle.top).unwrap();
        assert_eq!((name, pickle.number(arguments[0])), ("a\nb\n", Some(7)));
        assert_eq!(pickle.end, 10);
    }

    #[test]
    fn an_ordered_dictionary_with_attributes_is_a_dictionary() {
        let bytes = b"ccollections\nOrderedDict\n)RU\x01kK\x05s}b.";
        let pickle = Pickle::read(bytes, DIALECT).unwrap();
        let pairs: Vec<_> = pickle.dict(pickle.top).unwrap().collect();
        let [(key, value)] = pairs[..] else { panic!() };
        assert_eq!(
            (pickle.text(key), pickle.number(value)),
            (Some("k"), Some(5))
        );
    }

    #[test]
    fn what_is_unknown_is_refused_by_name() {
        let error = refused(b"\x80\x02cos\nsystem\nU\x02ls\x85R.");
        assert!(
            error.contains("it would call \"os.system\", which a test never"),
            "{error}"
        );
        // A name that only begins like a known one.
        assert!(refused(b"ca\nbc\n.").contains("\"a.bc\""));
        assert!(refused(&[b"c".as_slice(), &[b'x'; 1000]].concat()).len() < 200);
        assert!(refused(b"\x80\x02I1\n.").contains("instruction 0x49 at byte 2"));
        assert!(refused(b"\x80\x01.").contains("protocol 1"));
        assert!(refused(b"\x80\x02K").contains("ends at byte 3"));
        assert!(refused(b"K\x01K\x02b.").contains("state for no object"));
    }

    #[test]
    fn what_is_built_is_bounded() {
        assert!(refused(b"K\x01r\xff\xff\xff\x7f.").contains("slot 2147483647"));
        let endless = vec![b'N'; MAX_INSTRUCTIONS + 1];
        assert!(refused(&endless).contains("more than 4194304 instructions"));
    }
}

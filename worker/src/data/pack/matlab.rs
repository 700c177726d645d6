//! The table `synsets` in `meta.mat` of ImageNet's devkit: a structure in a MATLAB file of level 5.
//!
//! Only what that table consists of is read: matrices of numbers and of characters as the fields of
//! one array of structures, packed by zlib or not. Everything else is stepped over.
//!
//! # Source
//!
//! "MAT-File Format", The `MathWorks`, chapter 1: level 5 MAT-files.

use std::io::Read as _;

use flate2::read::ZlibDecoder;

/// The most bytes that a packed part may unpack to; the official one has below 10 million.
const LIMIT_BYTES: u64 = 64 << 20;
const HEADER_BYTES: usize = 128;
/// The official table has 1,860 rows.
const MAX_ROWS: usize = 1 << 20;
const MAX_FIELDS: usize = 64;

// Kinds of elements.
const INT32: u32 = 5;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;
// Kinds of matrices.
const STRUCTURE: u8 = 2;

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Synset {
    /// `ILSVRC2012_ID`.
    pub(super) id: u32,
    /// `WNID`.
    pub(super) wnid: String,
    /// `words`.
    pub(super) words: String,
    /// `num_children`.
    pub(super) num_children: u32,
}

/// The rows of the table, in the file's order.
///
/// # Errors
/// With what is wrong, for a file that the caller names.
pub(super) fn synsets(file: &[u8]) -> Result<Vec<Synset>, String> {
    let header = file.get(..HEADER_BYTES).ok_or("it is no MATLAB file")?;
    if header[124..] != [0, 1, b'I', b'M'] {
        return Err("it is no little-endian MATLAB file of level 5".into());
    }
    let mut elements = Elements(&file[HEADER_BYTES..]);
    while let Some(element) = elements.next_if_any()? {
        let mut unpacked = Vec::new();
        let element = if element.kind == COMPRESSED {
            let mut packed = ZlibDecoder::new(element.data).take(LIMIT_BYTES + 1);
            let read = packed.read_to_end(&mut unpacked);
            read.map_err(|error| format!("damaged zlib: {error}"))?;
            if unpacked.len() as u64 > LIMIT_BYTES {
                return Err(format!("it unpacks to more than {LIMIT_BYTES} bytes"));
            }
            Elements(&unpacked).next()?
        } else {
            element
        };
        if element.kind == MATRIX {
            let matrix = Matrix::of(element.data)?;
            if matrix.name == b"synsets" && matrix.class == STRUCTURE {
                return rows(matrix);
            }
        }
    }
    Err("it has no table \"synsets\"".into())
}

/// Length of the names, names, then for each row a matrix for each field.
fn rows(matrix: Matrix<'_>) -> Result<Vec<Synset>, String> {
    let count = matrix.len.filter(|&count| count <= MAX_ROWS);
    let count = count.ok_or("\"synsets\" has too many rows")?;
    let mut rest = matrix.rest;
    let length = rest.next()?;
    let length = length.number().filter(|_| length.kind == INT32);
    let length = length.and_then(|n| usize::try_from(n).ok());
    let length = length.filter(|n| (1..=MAX_FIELDS).contains(n));
    let names = rest
        .next()?
        .data
        .chunks(length.ok_or("fields without names")?);
    let names: Vec<&[u8]> = names.take(MAX_FIELDS).map(until_nul).collect();
    let place = |field: &str| {
        let place = names.iter().position(|name| *name == field.as_bytes());
        place.ok_or_else(|| format!("\"synsets\" has no field {field:?}"))
    };
    let [id, wnid, words, num_children] = [
        place("ILSVRC2012_ID")?,
        place("WNID")?,
        place("words")?,
        place("num_children")?,
    ];
    let mut rows = Vec::new();
    for row in 0..count {
        let wrong = |what: String| format!("row {} of \"synsets\": {what}", row + 1);
        let fields = (0..names.len()).map(|_| rest.next());
        let fields = fields.collect::<Result<Vec<_>, _>>().map_err(wrong)?;
        let number = |place: usize| {
            let number = fields[place].value()?.number();
            let number = number.ok_or_else(|| "a field is no whole number".to_owned());
            number.map_err(wrong)
        };
        let text = |place: usize| fields[place].value()?.text().map_err(wrong);
        rows.push(Synset {
            id: number(id)?,
            wnid: text(wnid)?,
            words: text(words)?,
            num_children: number(num_children)?,
        });
    }
    Ok(rows)
}

fn until_nul(name: &[u8]) -> &[u8] {
    name.split(|&byte| byte == 0).next().unwrap_or(name)
}

/// Elements one behind the other.
struct Elements<'a>(&'a [u8]);

/// A tag's kind, and the bytes behind it.
#[derive(Debug, Clone, Copy)]
struct Element<'a> {
    kind: u32,
    data: &'a [u8],
}

impl<'a> Elements<'a> {
    fn next(&mut self) -> Result<Element<'a>, String> {
        self.next_if_any()?.ok_or_else(|| "it is cut off".into())
    }

    fn next_if_any(&mut self) -> Result<Option<Element<'a>>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (tag, behind) = self.0.split_first_chunk::<8>().ok_or("it is cut off")?;
        let word = |at: usize| u32::from_le_bytes([tag[at], tag[at + 1], tag[at + 2], tag[at + 3]]);
        let (kind, size) = (word(0), word(4) as usize);
        // A small element: its size beside its kind, its data in the place of the size.
        if kind >> 16 != 0 {
            let data = self.0[4..8].get(..(kind >> 16) as usize);
            let data = data.ok_or("a small element of more than 4 bytes")?;
            self.0 = behind;
            let kind = kind & 0xffff;
            return Ok(Some(Element { kind, data }));
        }
        let data = behind.get(..size).ok_or("it is cut off")?;
        // All but packed elements end at a multiple of 8; the last one may lack what fills it up.
        let end = if kind == COMPRESSED {
            size
        } else {
            size.next_multiple_of(8)
        };
        self.0 = behind.get(end..).unwrap_or_default();
        Ok(Some(Element { kind, data }))
    }
}

impl Element<'_> {
    /// The numbers or characters of a matrix.
    fn value(&self) -> Result<Self, String> {
        let is_matrix = self.kind == MATRIX;
        let mut matrix = Matrix::of(is_matrix.then_some(self.data).ok_or("no matrix")?)?;
        // Nothing at all stands for an empty text.
        let nothing = Element { kind: 1, data: &[] };
        Ok(matrix.rest.next_if_any()?.unwrap_or(nothing))
    }

    /// The only number, if it is whole and not negative.
    fn number(&self) -> Option<u32> {
        let data = self.data;
        let whole = match self.kind {
            1 => i8::from_le_bytes(data.try_into().ok()?).into(),
            2 => u8::from_le_bytes(data.try_into().ok()?).into(),
            3 => i16::from_le_bytes(data.try_into().ok()?).into(),
            4 => u16::from_le_bytes(data.try_into().ok()?).into(),
            INT32 => i32::from_le_bytes(data.try_into().ok()?).into(),
            6 => u32::from_le_bytes(data.try_into().ok()?).into(),
            7 => f32::from_le_bytes(data.try_into().ok()?).into(),
            9 => f64::from_le_bytes(data.try_into().ok()?),
            _ => return None,
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "that nothing is lost is what is checked"
        )]
        let number = whole as u32;
        (f64::from(number).to_bits() == whole.to_bits()).then_some(number)
    }

    /// Characters of 8 or 16 bits.
    fn text(&self) -> Result<String, String> {
        match self.kind {
            1 | 2 | 16 => Ok(String::from_utf8_lossy(self.data).into_owned()),
            4 | 17 => {
                let units = self.data.as_chunks::<2>().0.iter();
                let units: Vec<u16> = units.map(|two| u16::from_le_bytes(*two)).collect();
                Ok(String::from_utf16_lossy(&units))
            }
            kind => Err(format!("a text of elements of kind {kind}")),
        }
    }
}

/// A matrix: flags, dimensions, name, and what follows them.
struct Matrix<'a> {
    class: u8,
    /// Rows times columns, if that is a number.
    len: Option<usize>,
    name: &'a [u8],
    rest: Elements<'a>,
}

impl<'a> Matrix<'a> {
    fn of(data: &'a [u8]) -> Result<Self, String> {
        let mut rest = Elements(data);
        let (flags, dimensions, name) = (rest.next()?, rest.next()?, rest.next()?);
        let len = dimensions.data.as_chunks::<4>().0.iter();
        let mut len = len.map(|four| u32::from_le_bytes(*four) as usize);
        Ok(Self {
            class: *flags.data.first().ok_or("a matrix without flags")?,
            len: len.try_fold(1_usize, usize::checked_mul),
            name: name.data,
            rest,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Made by `make.py` beside them.
    const META: &[u8] = include_bytes!("../../../../tests/golden/devkit/meta.mat");
    const PLAIN: &[u8] = include_bytes!("../../../../tests/golden/devkit/plain.mat");

    fn synset(id: u32, wnid: &str, words: &str, num_children: u32) -> Synset {
        Synset {
            id,
            wnid: wnid.into(),
            words: words.into(),
            num_children,
        }
    }

    #[test]
    fn the_table_is_read_packed_or_not() {
        let rows = synsets(META).unwrap();
        assert_eq!(rows.len(), 15);
        assert_eq!(rows[0], synset(13, "n00000100", "animal", 3));
        assert_eq!(rows[2], synset(5, "n19995000", "tench, Tinca tinca", 0));
        assert_eq!(rows[7], synset(4, "n19996000", "caf\u{e9}", 0));
        let ids: Vec<u32> = rows.iter().map(|row| row.id).collect();
        assert_eq!(ids, [13, 15, 5, 1, 12, 2, 3, 4, 11, 10, 9, 8, 7, 6, 14]);
        assert_eq!(synsets(PLAIN).unwrap(), rows[..3]);
    }

    #[test]
    fn other_files_are_refused() {
        let refused = |bytes: &[u8]| synsets(bytes).unwrap_err();
        assert!(refused(b"MATLAB").contains("no MATLAB file"));
        assert!(refused(&[0; 200]).contains("level 5"));
        assert!(refused(&PLAIN[..HEADER_BYTES]).contains("no table"));
        assert!(refused(&PLAIN[..PLAIN.len() - 500]).contains("cut off"));
        assert!(refused(&META[..META.len() - 10]).contains("cut off"));
        let replaced = |from: &[u8], to: &[u8]| {
            let at = PLAIN.windows(from.len()).position(|w| w == from).unwrap();
            [&PLAIN[..at], to, &PLAIN[at + from.len()..]].concat()
        };
        assert!(refused(&replaced(b"synsets", b"sinsets")).contains("no table"));
        assert!(refused(&replaced(b"WNID", b"XNID")).contains("no field \"WNID\""));
    }

    #[test]
    fn numbers_are_whole_and_not_negative() {
        let number = |kind, data: &[u8]| Element { kind, data }.number();
        assert_eq!(number(9, &13.0_f64.to_le_bytes()), Some(13));
        assert_eq!(number(9, &13.5_f64.to_le_bytes()), None);
        assert_eq!(number(9, &(-1.0_f64).to_le_bytes()), None);
        assert_eq!(number(9, &f64::NAN.to_le_bytes()), None);
        assert_eq!(number(9, &5e9_f64.to_le_bytes()), None);
        assert_eq!(number(3, &[1, 2]), Some(513));
        assert_eq!(number(1, &[0xff]), None);
        assert_eq!(number(2, &[0xff]), Some(255));
        assert_eq!(number(4, &[1, 2, 3]), None);
        assert_eq!(number(12, &[0; 8]), None);
    }

    #[test]
    fn a_packed_bomb_ends() {
        let zeros = vec![0; 70 << 20];
        let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, &zeros).unwrap();
        let packed = packed.finish().unwrap();
        let mut file = META[..HEADER_BYTES].to_vec();
        file.extend(COMPRESSED.to_le_bytes());
        file.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
        file.extend(packed);
        let error = synsets(&file).unwrap_err();
        assert!(error.contains("more than 67108864 bytes"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_bytes_make_the_reader_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
            tail in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            for file in [PLAIN, META] {
                let mut bytes = file.to_vec();
                for (at, byte) in &changes {
                    let at = HEADER_BYTES - 4 + at.index(bytes.len() - HEADER_BYTES + 4);
                    bytes[at] = *byte;
                }
                let _ = synsets(&bytes);
                let cut = cut.index(bytes.len());
                let _ = synsets(&[&bytes[..cut], &tail].concat());
                let _ = synsets(&[&file[..HEADER_BYTES], &tail].concat());
            }
        }
    }
}

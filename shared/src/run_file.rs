//! A run as written in TOML and on the command line: which known key holds what, and where.
//!
//! The text is walked by hand: `serde` stops at the first unknown key, and here all are reported.

use std::collections::{BTreeMap, BTreeSet};

use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use crate::faults::{Fault, Place, nearest, shortened};
use crate::keys::{self, KEYS, Key, Kind};

/// A longer file was not written by hand.
const MAX_BYTES: usize = 1 << 20;
/// Faults beyond these are not worth their time.
const MAX_FAULTS: usize = 1000;
/// Tables inside tables that are followed to name their keys; a valid file has one.
const MAX_DEPTH: usize = 3;

/// What a key holds, not yet checked.
#[derive(Debug)]
pub(crate) struct Written<'a> {
    pub(crate) value: DeValue<'a>,
    pub(crate) place: Place,
}

/// A configuration as written.
#[derive(Debug)]
pub(crate) struct RunFile<'a> {
    /// The known keys that were written.
    pub(crate) written: BTreeMap<&'static str, Written<'a>>,
    /// Unknown keys, and text that is not TOML.
    pub(crate) faults: Vec<Fault>,
    /// Keys that were probably meant by an unknown one: not to be reported as missing as well.
    pub(crate) meant: BTreeSet<&'static str>,
    /// Where each table opens.
    pub(crate) table_places: BTreeMap<String, Place>,
    /// The file, where no line can be named.
    pub(crate) file_place: Place,
    /// Whether all of the text was TOML; if not, what seems to be missing may be there.
    pub(crate) is_whole: bool,
}

/// Reads what was written; faults are collected, never returned early.
pub(crate) fn read<'a>(text: &'a str, file_name: &str, overrides: &'a [String]) -> RunFile<'a> {
    let lines = Lines::new(text, file_name);
    let mut file = RunFile {
        written: BTreeMap::new(),
        faults: Vec::new(),
        meant: BTreeSet::new(),
        table_places: BTreeMap::new(),
        file_place: lines.place(None),
        is_whole: true,
    };
    if text.len() > MAX_BYTES {
        let message = format!("the file has {} bytes, more than {MAX_BYTES}", text.len());
        file.fault(lines.place(None), "", message);
        file.is_whole = false;
        return file;
    }
    file.take_text(text, &lines);
    for text in overrides {
        file.take_override(text);
    }
    file
}

impl<'a> RunFile<'a> {
    /// Adds a fault, up to the limit; then says once that there are more.
    pub(crate) fn fault(&mut self, place: Place, key: &str, message: String) {
        let key = key.to_owned();
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(Fault {
                place,
                key,
                message,
            });
        } else if !self.is_full() {
            let message = format!("more than {MAX_FAULTS} faults: the rest is not shown");
            let place = self.file_place.clone();
            self.faults.push(Fault {
                place,
                key,
                message,
            });
        }
    }

    fn is_full(&self) -> bool {
        self.faults.len() > MAX_FAULTS
    }

    fn take_text(&mut self, text: &'a str, lines: &Lines) {
        let (root, errors) = DeTable::parse_recoverable(text);
        self.is_whole = errors.is_empty();
        for error in errors {
            let place = lines.place(error.span().map(|span| span.start));
            self.fault(place, "", format!("not TOML: {}", error.message()));
        }
        // What the parser made up to get past an error is no second fault.
        let broken: BTreeSet<Place> = self
            .faults
            .iter()
            .map(|fault| fault.place.clone())
            .collect();
        self.take_root(root.into_inner(), lines);
        self.faults
            .retain(|fault| fault.key.is_empty() || !broken.contains(&fault.place));
        self.written
            .retain(|_, written| !broken.contains(&written.place));
    }

    fn take_root(&mut self, root: DeTable<'a>, lines: &Lines) {
        for (name, value) in root {
            let place = lines.place(Some(name.span().start));
            let table = name.get_ref().as_ref();
            if !keys::tables().contains(&table) {
                self.unknown(&part(table), place, value.get_ref(), lines, 1);
                continue;
            }
            let table_place = lines.place(Some(value.span().start));
            let inside = value.into_inner();
            let what = described(&inside);
            if let DeValue::Table(entries) = inside {
                self.table_places.insert(table.to_owned(), table_place);
                self.take_table(table, entries, lines);
            } else {
                let message =
                    format!("{table:?} must be a table, opened by a line [{table}], but is {what}");
                self.fault(place, table, message);
                let keys = KEYS.iter().filter(|key| key.table() == table);
                self.meant.extend(keys.map(|key| key.name));
            }
        }
    }

    fn take_table(&mut self, table: &str, entries: DeTable<'a>, lines: &Lines) {
        for (leaf, value) in entries {
            let place = lines.place(Some(leaf.span().start));
            let name = format!("{table}.{}", part(leaf.get_ref()));
            match keys::find(&name) {
                Some(key) => {
                    let written = Written {
                        value: value.into_inner(),
                        place,
                    };
                    self.written.insert(key.name, written);
                }
                None => self.unknown(&name, place, value.get_ref(), lines, 2),
            }
        }
    }

    /// An override replaces what the file says, so a wrong value in the file is then no fault.
    fn take_override(&mut self, text: &'a str) {
        let place = Place::Override(text.to_owned());
        let Some((name, value)) = text.split_once('=') else {
            let message = "expected key=value, as in --set optimiser.lr=0.1".to_owned();
            return self.fault(place, "", message);
        };
        let (name, value) = (name.trim(), value.trim());
        let Some(key) = keys::find(name) else {
            return self.unknown_key(&shortened(name), place);
        };
        if value.len() > MAX_BYTES {
            let message = format!("the value has more than {MAX_BYTES} bytes");
            return self.fault(place, key.name, message);
        }
        if value.is_empty() {
            self.written.remove(key.name);
            return;
        }
        let as_text = || DeValue::String(value.into());
        let value = match DeValue::parse(value).map(Spanned::into_inner) {
            Ok(parsed) => match key.kind {
                // A folder may be called 2024, or true.
                Kind::Text | Kind::Device | Kind::Choice { .. } if !parsed.is_str() => as_text(),
                Kind::Bool
                | Kind::Integer(..)
                | Kind::Real(..)
                | Kind::Text
                | Kind::Device
                | Kind::Choice { .. } => parsed,
            },
            Err(_) => as_text(),
        };
        self.written.insert(key.name, Written { value, place });
    }

    /// Reports an unknown key, or each key in an unknown table.
    fn unknown(
        &mut self,
        name: &str,
        place: Place,
        value: &DeValue<'_>,
        lines: &Lines,
        depth: usize,
    ) {
        match value.as_table() {
            Some(inside) if inside.is_empty() && depth == 1 => {
                let message = format!("unknown table [{name}]: {}", table_advice(name));
                self.fault(place, name, message);
            }
            Some(inside) if !inside.is_empty() && depth < MAX_DEPTH => {
                for (leaf, value) in inside {
                    let place = lines.place(Some(leaf.span().start));
                    let name = format!("{name}.{}", part(leaf.get_ref()));
                    self.unknown(&name, place, value.get_ref(), lines, depth + 1);
                }
            }
            _ => self.unknown_key(name, place),
        }
    }

    fn unknown_key(&mut self, name: &str, place: Place) {
        if self.is_full() {
            return;
        }
        let advice = match probably_meant(name) {
            Some(key) => {
                self.meant.insert(key.name);
                format!("did you mean {:?}?", key.name)
            }
            None => match name.split_once('.') {
                Some((table, _)) if keys::tables().contains(&table) => {
                    format!("the keys of [{table}] are {}", leaves(table).join(", "))
                }
                Some((table, _)) => table_advice(table),
                None => table_advice(name),
            },
        };
        self.fault(place, name, format!("unknown key {name:?}: {advice}"));
    }
}

/// The key that an unknown name stands for: near it in its own table, or alike in another.
fn probably_meant(name: &str) -> Option<&'static Key> {
    let (table, leaf) = name.rsplit_once('.').unwrap_or(("", name));
    let same_table = nearest(table, keys::tables()).and_then(|table| {
        let leaf = nearest(leaf, leaves(table))?;
        keys::find(&format!("{table}.{leaf}"))
    });
    same_table.or_else(|| {
        let leaf = nearest(leaf, KEYS.iter().map(Key::leaf))?;
        let mut alike = KEYS.iter().filter(|key| key.leaf() == leaf);
        // "name" is in three tables, and any of them would be a guess.
        alike.next().filter(|_| alike.next().is_none())
    })
}

fn table_advice(table: &str) -> String {
    match nearest(table, keys::tables()) {
        Some(meant) => format!("did you mean the table [{meant}]?"),
        None => format!("the tables are {}", keys::tables().join(", ")),
    }
}

fn leaves(table: &str) -> Vec<&'static str> {
    KEYS.iter()
        .filter(|key| key.table() == table)
        .map(Key::leaf)
        .collect()
}

/// One part of a dotted key as a file would write it, so that a quoted "a.b" does not pass for a.b.
fn part(key: &str) -> String {
    let is_bare = |letter: char| letter.is_ascii_alphanumeric() || "_-".contains(letter);
    if !key.is_empty() && key.chars().all(is_bare) {
        shortened(key)
    } else {
        format!("'{}'", shortened(key))
    }
}

/// The value, in words for a message.
pub(crate) fn described(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {:?}", shortened(text)),
        DeValue::Integer(number) => shortened(&number.to_string()),
        DeValue::Float(number) => shortened(number.as_str()),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(date) => format!("the date {date}"),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// Finds the line of a byte.
struct Lines {
    file_name: String,
    /// Positions of the line feeds.
    ends: Vec<usize>,
}

impl Lines {
    fn new(text: &str, file_name: &str) -> Self {
        let ends = text.match_indices('\n').map(|(end, _)| end).collect();
        Self {
            file_name: file_name.to_owned(),
            ends,
        }
    }

    fn place(&self, byte: Option<usize>) -> Place {
        let line = byte.map(|byte| self.ends.partition_point(|&end| end < byte) + 1);
        Place::File {
            name: self.file_name.clone(),
            line,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Run;
    use crate::run::{Algorithm, QUICKSTART, Source};

    fn fault_lines(text: &str, overrides: &[&str]) -> Vec<String> {
        let overrides: Vec<_> = overrides.iter().map(ToString::to_string).collect();
        let file = read(text, "a.toml", &overrides);
        file.faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn unknown_keys_are_answered_with_the_nearest_one() {
        for (text, fault) in [
            (
                "[optimizer]\nlr = 1",
                "2: unknown key \"optimizer.lr\": did you mean \"optimiser.lr\"?",
            ),
            (
                "[run]\n\nsede = 1",
                "3: unknown key \"run.sede\": did you mean \"run.seed\"?",
            ),
            (
                "run.Seed = 1",
                "1: unknown key \"run.Seed\": did you mean \"run.seed\"?",
            ),
            (
                "tau_m = 1",
                "1: unknown key \"tau_m\": did you mean \"neuron.tau_m\"?",
            ),
            (
                "[train]\nepochs = 1",
                "2: unknown key \"train.epochs\": did you mean \"run.epochs\"?",
            ),
            (
                "'optimiser.lr' = 1",
                "1: unknown key \"'optimiser.lr'\": did you mean \"optimiser.lr\"?",
            ),
            (
                "[data]\nshards = 1",
                "2: unknown key \"data.shards\": the keys of [data] are source, path, batch, \
                 augment, flip, side, shuffle, on_bad_sample, workers, cache, cache_gib",
            ),
            (
                "[run.deep.er]\na = 1",
                "1: unknown key \"run.deep.er\": the keys of [run] are seed, epochs, max_batches, \
                 threads, engine, device, precision, tf32, convolutions, evaluate_every, \
                 folder",
            ),
            (
                "[modle]",
                "1: unknown table [modle]: did you mean the table [model]?",
            ),
            (
                "[mpi]\nname = 1",
                "2: unknown key \"mpi.name\": the tables are run, data, model, init, neuron, \
                 batch_norm, algorithm, loss, optimiser, schedule, checkpoint, ranks",
            ),
        ] {
            assert_eq!(fault_lines(text, &[]), [format!("a.toml:{fault}")]);
        }
    }

    #[test]
    fn a_value_where_a_table_belongs_is_one_fault() {
        let text = "optimiser = 3\n[[model]]\nname = 'small'";
        assert_eq!(
            fault_lines(text, &[]),
            [
                "a.toml:2: \"model\" must be a table, opened by a line [model], but is a list",
                "a.toml:1: \"optimiser\" must be a table, opened by a line [optimiser], but is 3",
            ]
        );
        let file = read(text, "a.toml", &[]);
        assert!(file.meant.contains("optimiser.lr") && file.meant.contains("model.name"));
    }

    #[test]
    fn text_that_is_not_toml_is_a_fault_on_its_line_beside_the_others() {
        let text = "[run]\nseed = \nepochs = 1 2\nepochs = 3\nfoo = 1\nbar = \n";
        let errors = Run::from_toml(text, "a.toml", &[]).unwrap_err();
        let places: Vec<_> = errors
            .faults()
            .iter()
            .map(|f| f.place.to_string())
            .collect();
        assert_eq!(
            places,
            ["a.toml:2", "a.toml:3", "a.toml:4", "a.toml:5", "a.toml:6"]
        );
        assert!(errors.faults()[0].message.starts_with("not TOML: "));
    }

    #[test]
    fn lines_are_counted_in_files_from_windows() {
        assert_eq!(
            fault_lines("[run]\r\nfoo = 1\r\n", &[])[0]
                .split(':')
                .nth(1),
            Some("2")
        );
    }

    #[test]
    fn overrides_replace_what_the_file_says() {
        let set = |overrides: &[&str]| {
            let overrides: Vec<_> = overrides.iter().map(ToString::to_string).collect();
            Run::from_toml(QUICKSTART, "quickstart.toml", &overrides).unwrap()
        };
        assert_eq!(set(&["run.seed=0xff"]).seed, 255);
        assert_eq!(set(&["run.seed=1", "run.seed = 2"]).seed, 2);
        assert_eq!(set(&["model.name=vgg11"]).model.network.name(), "vgg11");
        assert_eq!(set(&["model.name='vgg11'"]).model.network.name(), "vgg11");
        let bptt = set(&["algorithm.name=bptt", "algorithm.window="]);
        assert_eq!(bptt.algorithm, Algorithm::Bptt);
        // The default window gives way to the time steps; the quickstart's own has to be taken out.
        let short = set(&["algorithm.time_steps=1", "algorithm.window="]);
        assert_eq!(short.algorithm, Algorithm::Stol { window: 1 });
        for path in ["2024", "true", "a=b/c", "/data set/x"] {
            let source = set(&["data.source=cifar10", &format!("data.path={path}")])
                .data
                .source;
            assert_eq!(source, Source::Cifar10 { path: path.into() });
        }
        let wrong_in_file = QUICKSTART.replace("seed = 1", "seed = -1");
        assert!(Run::from_toml(&wrong_in_file, "a.toml", &["run.seed=3".to_owned()]).is_ok());
    }

    #[test]
    fn overrides_that_name_no_key_are_faults() {
        assert_eq!(
            fault_lines("", &["x", "=1", "optimizer.lr=1", "run=3"]),
            [
                "--set x: expected key=value, as in --set optimiser.lr=0.1",
                "--set =1: unknown key \"\": the tables are run, data, model, init, neuron, \
                 batch_norm, algorithm, loss, optimiser, schedule, checkpoint, ranks",
                "--set optimizer.lr=1: unknown key \"optimizer.lr\": did you mean \
                 \"optimiser.lr\"?",
                "--set run=3: unknown key \"run\": did you mean the table [run]?",
            ]
        );
    }

    #[test]
    fn large_inputs_are_refused_or_cut_short() {
        let long = " ".repeat(MAX_BYTES + 1);
        assert_eq!(
            Run::from_toml(&long, "a.toml", &[])
                .unwrap_err()
                .to_string(),
            "a.toml: the file has 1048577 bytes, more than 1048576"
        );
        let long_value = format!("data.path={}", "x".repeat(MAX_BYTES + 1));
        assert_eq!(read("", "a.toml", &[long_value]).faults[0].key, "data.path");
        let many = (0..2000)
            .map(|index| format!("k{index} = 1"))
            .collect::<Vec<_>>()
            .join("\n");
        let faults = read(&many, "a.toml", &[]).faults;
        assert_eq!(faults.len(), MAX_FAULTS + 1);
        assert!(
            faults[MAX_FAULTS]
                .message
                .starts_with("more than 1000 faults")
        );
        for deep in ["a.".repeat(500_000), "[".repeat(1_000_000)] {
            assert!(Run::from_toml(&deep, "a.toml", &[]).is_err());
        }
    }
}

//! What is wrong with a configuration: where, which key, and what would be right.

use std::fmt;

use crate::storage::without_credentials;

/// Where a value was written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// In a file; the line counts from 1 and is absent where no single line is at fault.
    File {
        /// The file's name, as it was given.
        name: String,
        /// The line, from 1.
        line: Option<usize>,
    },
    /// On the command line: `--set` with this text.
    Override(String),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { name, line: None } => formatter.write_str(name),
            Self::File {
                name,
                line: Some(line),
            } => write!(formatter, "{name}:{line}"),
            Self::Override(text) => write!(formatter, "--set {}", shortened(text)),
        }
    }
}

/// One thing that is wrong with a configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Where it was written, or where it would belong.
    pub place: Place,
    /// The dotted key, e.g. `optimiser.lr`; empty where the text is not TOML at all.
    pub key: String,
    /// What is wrong and, where known, what to write instead.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.place, self.message)
    }
}

/// Every fault of a configuration: those of the text by line, then those of overrides; never empty.
///
/// It prints one fault per line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunErrors {
    faults: Vec<Fault>,
}

impl RunErrors {
    /// # Panics
    ///
    /// If there is no fault.
    pub(crate) fn new(mut faults: Vec<Fault>) -> Self {
        assert!(!faults.is_empty(), "errors without a fault");
        // Stable: faults of one line, and those of overrides, stay as they were found.
        faults.sort_by_key(|fault| match &fault.place {
            Place::File { line, .. } => (false, *line),
            Place::Override(_) => (true, None),
        });
        Self { faults }
    }

    /// The faults, in the order in which they print.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }
}

impl fmt::Display for RunErrors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                formatter.write_str("\n")?;
            }
            fault.fmt(formatter)?;
        }
        Ok(())
    }
}

impl std::error::Error for RunErrors {}

/// The candidate that `word` was probably meant to be: at most a third of its letters differ.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // No name is longer; the distance takes time in proportion to both lengths.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_lowercase();
    let limit = word.chars().count() / 3;
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, candidate), candidate))
        .filter(|&(distance, _)| distance <= limit)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Names in quotes, as a list to choose from: `"a", "b" or "c"`.
pub(crate) fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

/// The text without credentials of a URL in it, cut to what fits a message.
pub(crate) fn shortened(text: &str) -> String {
    const LIMIT: usize = 60;
    let text = &*without_credentials(text);
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_forgives_a_third_of_the_letters() {
        let names = ["sgd", "adamw"];
        assert_eq!(nearest("Adam", names), Some("adamw"));
        assert_eq!(nearest("sdg", names), Some("sgd"));
        assert_eq!(nearest("lion", names), None);
        assert_eq!(nearest("", ["a"]), None);
        assert_eq!(nearest("er", ["lr"]), None);
        assert_eq!(nearest("LR", ["lr"]), Some("lr"));
        assert_eq!(nearest(&"sgd".repeat(100), names), None);
    }

    #[test]
    fn lists_read_as_a_choice() {
        assert_eq!(listed(&[]), "");
        assert_eq!(listed(&["a"]), r#""a""#);
        assert_eq!(listed(&["a", "b", "c"]), r#""a", "b" or "c""#);
    }

    #[test]
    fn long_texts_are_cut_between_letters() {
        assert_eq!(shortened("é"), "é");
        assert_eq!(shortened(&"é".repeat(61)), format!("{}…", "é".repeat(60)));
    }
}

//! Why a trace is refused: always one line, whatever the file contains.

use std::fmt::Write as _;

use crate::graph::GraphError;

/// Why a trace is refused.
///
/// Every message is one line and names the file; names that come from the file are escaped and cut.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file cannot be opened or read.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: String,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The path is no regular file.
    #[error("{file} is not a regular file: give the path of a .safetensors file")]
    NotAFile {
        /// The path.
        file: String,
    },
    /// The file cannot be written.
    #[error("cannot write {file}")]
    Write {
        /// The file.
        file: String,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// Something is larger than any trace needs.
    #[error("{file}: {what} is {got}, more than the limit of {limit}")]
    TooLarge {
        /// The file.
        file: String,
        /// What is too large.
        what: &'static str,
        /// How large it is.
        got: u64,
        /// The limit.
        limit: u64,
    },
    /// The header is no safetensors header.
    #[error("{file} is not a safetensors file: {reason}")]
    Header {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor's entry in the header is wrong.
    #[error("{file}: tensor {tensor}: {reason}")]
    Tensor {
        /// The file.
        file: String,
        /// The tensor, quoted.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor that has to be there is not.
    #[error("{file}: tensor {tensor} is missing")]
    MissingTensor {
        /// The file.
        file: String,
        /// The tensor, quoted.
        tensor: String,
    },
    /// A tensor that nothing asks for.
    #[error("{file}: tensor {tensor} belongs to nothing: remove or rename it")]
    UnexpectedTensor {
        /// The file.
        file: String,
        /// The tensor, quoted.
        tensor: String,
    },
    /// A tensor has the wrong shape.
    #[error("{file}: tensor {tensor} has shape {got:?}, needs {want}")]
    Shape {
        /// The file.
        file: String,
        /// The tensor, quoted.
        tensor: String,
        /// Its shape.
        got: Vec<usize>,
        /// The shape that it must have.
        want: String,
    },
    /// A number is infinite, not a number, or out of its range.
    #[error("{file}: tensor {tensor} has {value} at position {index}, needs {want}")]
    Value {
        /// The file.
        file: String,
        /// The tensor, quoted.
        tensor: String,
        /// The position in the tensor, row-major.
        index: usize,
        /// The number.
        value: f64,
        /// What it must be.
        want: &'static str,
    },
    /// A label is no class of the network.
    #[error(
        "{file}: the label of sample {sample} in batch {batch} is {label}: \
         the output has {classes} classes, 0 to {last}",
        last = classes - 1
    )]
    Label {
        /// The file.
        file: String,
        /// The batch.
        batch: usize,
        /// The sample in it.
        sample: usize,
        /// Its label.
        label: i64,
        /// Classes of the network.
        classes: usize,
    },
    /// Metadata that have to be there are not.
    #[error("{file}: the metadata have no {key:?}")]
    MissingKey {
        /// The file.
        file: String,
        /// The key.
        key: &'static str,
    },
    /// Metadata that cannot be understood.
    #[error("{file}: metadata {key:?}: {reason}")]
    Key {
        /// The file.
        file: String,
        /// The key.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The file is of a version that this program does not know.
    #[error("{file} is a trace of version {got}: this program reads version {want}")]
    Version {
        /// The file.
        file: String,
        /// Its version, quoted.
        got: String,
        /// The version that this program reads.
        want: &'static str,
    },
    /// A node of the graph cannot be understood.
    #[error("{file}: node {node}: {reason}")]
    Node {
        /// The file.
        file: String,
        /// The node, quoted.
        node: String,
        /// What is wrong.
        reason: String,
    },
    /// The nodes make no graph.
    #[error("{file}: {reason}")]
    Graph {
        /// The file.
        file: String,
        /// Why not.
        reason: GraphError,
    },
}

/// The longest piece of a file that a message repeats, in characters.
const MAX_SHOWN: usize = 120;

/// A name from a file, fit for a message: quoted, escaped, cut.
pub(super) fn shown(name: &str) -> String {
    if name.chars().count() <= MAX_SHOWN {
        return format!("{name:?}");
    }
    let start: String = name.chars().take(MAX_SHOWN).collect();
    format!("{start:?} (cut)")
}

/// Text that may repeat pieces of a file, fit for a message: one line, cut.
pub(super) fn one_line(text: impl std::fmt::Display) -> String {
    let text = text.to_string();
    let mut line = String::new();
    for c in text.chars().take(3 * MAX_SHOWN) {
        if c.is_control() || c == '\u{2028}' || c == '\u{2029}' {
            let _ = write!(line, "{}", c.escape_default());
        } else {
            line.push(c);
        }
    }
    if text.chars().count() > 3 * MAX_SHOWN {
        line.push_str(" (cut)");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_files_are_escaped_and_cut() {
        assert_eq!(shown("a\nb"), "\"a\\nb\"");
        assert!(shown(&"x".repeat(10_000)).len() < 200);
        assert_eq!(one_line("a\r\nb"), "a\\r\\nb");
        assert!(one_line("é".repeat(10_000)).chars().count() < 400);
    }
}

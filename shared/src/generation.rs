//! A generation: the ranks that train together, and the checkpoint they start from.
//!
//! Each is an object `generations/<n>-<nonce>.json` in the run folder. A number is allocated without
//! conditional writes: put, then list; who then sees a rival withdraws and tries a higher one.
//! [`Lineage`] says which checkpoints count: nothing that a generation writes after its successor
//! started from an earlier point does, so a process that wakes too late does no harm.

mod lineage;
mod store;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use lineage::{Lineage, Link, Survey};
pub use store::{Generations, StoreError, newest_number};

use crate::checkpoint::Digest;
use crate::protocol::{Identity, Member, Start, check_members};

/// The form of generations that this version writes and reads.
pub const VERSION: u32 = 1;
/// What `format` says in every generation.
pub const FORMAT: &str = "synfire generation";
/// The folder of generations in a run folder.
pub const FOLDER: &str = "generations";
/// A longer object is refused.
pub const MAX_BYTES: u64 = 8 << 20;

const END: &str = ".json";
const NUMBER_DIGITS: usize = 6;
const NONCE_DIGITS: usize = 16;

/// What an object is called: `000003-0123456789abcdef.json`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GenerationName {
    /// The number, from 1.
    pub number: u64,
    /// Keeps those apart that two coordinators put at once.
    pub nonce: u64,
}

impl GenerationName {
    /// The name that `name` is, absent where it is none.
    pub fn parse(name: &str) -> Option<Self> {
        let (number, nonce) = name.strip_suffix(END)?.split_once('-')?;
        let found = Self {
            number: number.parse().ok().filter(|&number| number > 0)?,
            nonce: u64::from_str_radix(nonce, 16).ok()?,
        };
        // Each has one name.
        (found.to_string() == name).then_some(found)
    }

    /// Where the object lies in a run folder.
    pub fn key(self) -> String {
        format!("{FOLDER}/{self}")
    }
}

impl fmt::Display for GenerationName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, nonce } = self;
        write!(
            formatter,
            "{number:0NUMBER_DIGITS$}-{nonce:0NONCE_DIGITS$x}{END}"
        )
    }
}

/// The ranks that train together, and the checkpoint they start from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// Its number, from 1.
    pub generation: u64,
    /// The nonce of its name.
    pub nonce: u64,
    /// Its ranks.
    pub members: Vec<Member>,
    /// What they train.
    pub identity: Identity,
    /// The checkpoint it starts from; absent at the beginning of a run.
    pub start: Option<Start>,
    /// The digest of all of the above, set by [`Generation::sealed`].
    pub seal: Digest,
}

/// Why a generation is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerationError {
    /// It is of another version.
    #[error(
        "it is of form {got}, this version reads {VERSION}: go on with the version that wrote it, \
         or start again in another run.folder"
    )]
    Version {
        /// Its version.
        got: u64,
    },
    /// It is no generation, or a damaged one.
    #[error("it is no generation of ranks, or a damaged one: {reason}")]
    Damaged {
        /// What is wrong, in one line.
        reason: String,
    },
}

/// What every version has.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u64,
}

impl Generation {
    /// A generation of these ranks, sealed.
    pub fn new(
        name: GenerationName,
        members: Vec<Member>,
        identity: Identity,
        start: Option<Start>,
    ) -> Self {
        let generation = Self {
            format: FORMAT.into(),
            version: VERSION,
            generation: name.number,
            nonce: name.nonce,
            members,
            identity,
            start,
            seal: Digest::default(),
        };
        generation.sealed()
    }

    /// The generation with its own digest, without which it is refused.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.seal = Digest::default();
        self.seal = Digest::of(&self.to_bytes());
        self
    }

    /// Its bytes; the same content has the same.
    ///
    /// # Panics
    ///
    /// Never: maps with text keys and whole numbers can always be written.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("text keys and numbers are JSON");
        bytes.push(b'\n');
        bytes
    }

    /// What it is called.
    pub fn name(&self) -> GenerationName {
        GenerationName {
            number: self.generation,
            nonce: self.nonce,
        }
    }

    /// What the lineage has to know of it.
    pub fn link(&self) -> Link {
        Link {
            name: self.name(),
            start: self.start.as_ref().map(|start| start.batches_done),
        }
    }

    /// Reads what an object of this name has.
    ///
    /// # Errors
    ///
    /// As [`Generation::parse`], or if it is a copy of another one.
    pub fn parse_named(name: GenerationName, bytes: &[u8]) -> Result<Self, GenerationError> {
        let read = Self::parse(bytes)?;
        if read.name() != name {
            let reason = format!("its name is {}", read.name());
            return Err(GenerationError::Damaged { reason });
        }
        Ok(read)
    }

    /// Reads bytes that may come from anywhere.
    ///
    /// # Errors
    ///
    /// If they are no whole generation of this version, or one that this version would never write.
    pub fn parse(bytes: &[u8]) -> Result<Self, GenerationError> {
        let damaged = |reason: String| {
            let shown = reason.chars().take(200).flat_map(char::escape_debug);
            let reason = shown.collect();
            GenerationError::Damaged { reason }
        };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(damaged(format!(
                "{} bytes, more than {MAX_BYTES}",
                bytes.len()
            )));
        }
        let head: Head = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        if head.format != FORMAT {
            return Err(damaged(format!("its format is not {FORMAT:?}")));
        }
        if head.version != u64::from(VERSION) {
            return Err(GenerationError::Version { got: head.version });
        }
        let read: Self = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        match read.fault() {
            None => Ok(read),
            Some(fault) => Err(damaged(fault)),
        }
    }

    /// What contradicts itself.
    fn fault(&self) -> Option<String> {
        if self.clone().sealed().seal != self.seal {
            return Some("it does not have the digest that it names".into());
        }
        if self.generation == 0 {
            return Some("generations count from 1".into());
        }
        let start = self.start.as_ref().map_or(Ok(()), Start::check);
        let all = check_members(&self.members)
            .and(self.identity.check())
            .and(start);
        all.err().map(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests;

//! What can be wrong with an index.

use super::{FORMAT, LIMIT_BYTES, VERSION};

/// What is wrong with an index.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// More bytes than any index has.
    #[error("{name} has {len_bytes} bytes, more than {LIMIT_BYTES}, the limit: is it an index?")]
    TooLarge {
        /// The index.
        name: String,
        /// Its length.
        len_bytes: u64,
    },
    /// Not JSON, or not of an index's form.
    #[error("{name} is no index of a data set: pack the set again with `synfire pack`")]
    Json {
        /// The index.
        name: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// Of another format, or of a version that this program does not know.
    #[error(
        "{name} is of format {format:?}, version {version}, not {FORMAT:?}, version {VERSION}: use \
         the synfire that packed it, or pack the set again"
    )]
    Version {
        /// The index.
        name: String,
        /// The format it claims.
        format: String,
        /// The version it claims.
        version: u32,
    },
    /// A value that is not about a shard does not hold.
    #[error("{name}: {key}: {reason}: pack the set again")]
    Value {
        /// The index.
        name: String,
        /// The key.
        key: &'static str,
        /// What does not hold.
        reason: String,
    },
    /// A shard's description does not hold.
    #[error("{name}: {split} shard {shard:?}: {reason}: pack the set again")]
    Shard {
        /// The index.
        name: String,
        /// The split.
        split: &'static str,
        /// The shard's path.
        shard: String,
        /// What does not hold.
        reason: String,
    },
    /// A sample's description does not hold.
    #[error("{name}: {split} shard {shard:?}, sample {sample}: {reason}: pack the set again")]
    Sample {
        /// The index.
        name: String,
        /// The split.
        split: &'static str,
        /// The shard's path.
        shard: String,
        /// The sample's position in the shard.
        sample: usize,
        /// What does not hold.
        reason: String,
    },
}

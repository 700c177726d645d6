//! Whether the parts of an index fit each other.

use std::collections::BTreeSet;

use super::{Index, IndexError, Normalise, Shard};

impl Index {
    /// Whether the parts fit each other, as for an index that was read; `name` is for the error.
    ///
    /// # Errors
    ///
    /// An [`IndexError`] that names the shard and the sample.
    pub fn check(&self, name: &str) -> Result<(), IndexError> {
        self.check_values(name)?;
        let mut paths = BTreeSet::new();
        for (split_name, split) in [("train", &self.train), ("test", &self.test)] {
            for shard in split.shards() {
                let fault = |reason: String| IndexError::Shard {
                    name: name.into(),
                    split: split_name,
                    shard: shard.path.clone(),
                    reason,
                };
                check_shard(shard).map_err(fault)?;
                if !paths.insert(&shard.path) {
                    return Err(fault("its path is given twice".into()));
                }
                check_samples(shard, self.classes.len()).map_err(|(sample, reason)| {
                    IndexError::Sample {
                        name: name.into(),
                        split: split_name,
                        shard: shard.path.clone(),
                        sample,
                        reason,
                    }
                })?;
            }
        }
        Ok(())
    }

    fn check_values(&self, name: &str) -> Result<(), IndexError> {
        let channels = self.channels as usize;
        let keys: BTreeSet<&str> = self.classes.iter().map(|c| c.key.as_str()).collect();
        let Normalise { mean, std } = &self.normalise;
        let is_of_channels = mean.len() == channels && std.len() == channels;
        let is_positive = std.iter().all(|&s| s.is_finite() && s > 0.0);
        let is_normal = is_positive && mean.iter().all(|m| m.is_finite());
        let faults = [
            (
                self.classes.is_empty(),
                "classes",
                "there must be at least one".to_owned(),
            ),
            (
                keys.len() < self.classes.len(),
                "classes",
                "two have the same key".to_owned(),
            ),
            (
                !matches!(channels, 1 | 3),
                "channels",
                format!("{channels} is neither 1 nor 3"),
            ),
            (
                self.shape.is_some_and(|shape| shape.contains(&0)),
                "shape",
                "no side may be 0".to_owned(),
            ),
            (
                !is_of_channels,
                "normalise",
                format!("mean and std need {channels} numbers each"),
            ),
            (
                !is_normal,
                "normalise",
                "mean must be finite and std above 0".to_owned(),
            ),
        ];
        match faults.into_iter().find(|(is_wrong, ..)| *is_wrong) {
            None => Ok(()),
            Some((_, key, reason)) => Err(IndexError::Value {
                name: name.into(),
                key,
                reason,
            }),
        }
    }
}

fn check_shard(shard: &Shard) -> Result<(), String> {
    let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    let is_part = |part: &str| !matches!(part, "" | "." | "..");
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let counts = [shard.offsets.len(), shard.lengths.len(), shard.len()];
    if !shard.path.chars().all(is_plain) || !shard.path.split('/').all(is_part) {
        let reason = "its path must be relative, of letters, digits and -_./, without .. in it";
        Err(reason.into())
    } else if shard.sha256.len() != 64 || !shard.sha256.chars().all(is_digit) {
        Err("its sha256 is not of 64 lower-case hexadecimal digits".into())
    } else if counts[0] != counts[2] || counts[1] != counts[2] {
        let [offsets, lengths, labels] = counts;
        Err(format!(
            "it has {offsets} offsets, {lengths} lengths and {labels} labels"
        ))
    } else {
        Ok(())
    }
}

/// The first sample that does not lie behind its predecessor and inside the shard, with a class.
fn check_samples(shard: &Shard, num_classes: usize) -> Result<(), (usize, String)> {
    let mut free = 0;
    let ranges = shard.offsets.iter().zip(&shard.lengths);
    for (sample, ((&offset, &length), &label)) in ranges.zip(&shard.labels).enumerate() {
        let end = offset.checked_add(length).filter(|&e| e <= shard.bytes);
        let Some(end) = end else {
            let bytes = shard.bytes;
            let reason = format!("{length} bytes from {offset} pass the shard's end, {bytes}");
            return Err((sample, reason));
        };
        if length == 0 {
            return Err((sample, "it has no bytes".into()));
        }
        if offset < free {
            let reason = format!("it begins at {offset}, but the sample before ends at {free}");
            return Err((sample, reason));
        }
        if label as usize >= num_classes {
            let reason = format!(
                "label {label}, but the classes are 0 to {}",
                num_classes - 1
            );
            return Err((sample, reason));
        }
        free = end;
    }
    Ok(())
}

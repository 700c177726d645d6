//! What a run hands over to be written.

use super::commit::Target;
use super::state::Snapshot;
use super::writer::{Attempt, Inbox, Writer, Written};
use super::{CheckpointError, Identity};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;
use synfire_shared::run;

/// A run folder that a run writes to.
#[derive(Debug)]
pub struct Recording {
    writer: Writer,
    shown: String,
    metrics: Vec<u8>,
    bad_samples: BTreeSet<String>,
    tuning: Option<Vec<u8>>,
}

/// What a run folder has from earlier starts.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    pub(super) metrics: Vec<u8>,
    pub(super) bad_samples: BTreeSet<String>,
    pub(super) tuning: Option<Vec<u8>>,
}

impl Recording {
    pub(super) fn start(
        target: Target,
        identity: Identity,
        keep: run::Checkpoint,
        earlier: Earlier,
    ) -> Self {
        let shown = target.shown.clone();
        Self {
            writer: Writer::start(target, identity, keep),
            shown,
            metrics: earlier.metrics,
            bad_samples: earlier.bad_samples,
            tuning: earlier.tuning,
        }
    }

    /// The lines of the metrics so far.
    pub fn lines(&self) -> &[u8] {
        &self.metrics
    }

    /// What an earlier start has found out about the run's ranks.
    pub fn tuning(&self) -> Option<&[u8]> {
        self.tuning.as_deref()
    }

    /// Keeps what was found out about the run's ranks. Nothing waits for it to be written.
    pub fn keep_tuning(&self, text: &str) {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        self.writer.inbox().put_tuning(bytes);
    }

    /// Where the report goes.
    pub fn page(&self) -> Page {
        Page(self.writer.inbox())
    }

    /// Whether a checkpoint would be taken without waiting for older ones.
    pub fn has_room(&self) -> bool {
        self.writer.has_room()
    }

    /// Hands over a checkpoint; it is written while training goes on.
    pub fn save(&mut self, snapshot: Snapshot) {
        self.writer.save(snapshot);
    }

    /// Hands over a line of the metrics, without its end. Nothing waits for it to be written.
    pub fn add_line(&mut self, line: &str) {
        self.metrics.extend(line.as_bytes());
        self.metrics.push(b'\n');
        let lines = Bytes::copy_from_slice(&self.metrics);
        self.writer.inbox().put_lines(lines);
    }

    /// Hands over lines about samples that could not be used; each is kept once, however often it is
    /// met. Nothing waits for them to be written.
    pub fn add_bad_samples(&mut self, lines: impl IntoIterator<Item = String>) {
        let before = self.bad_samples.len();
        self.bad_samples.extend(lines);
        if self.bad_samples.len() > before {
            let mut text = String::new();
            for line in &self.bad_samples {
                text.push_str(line);
                text.push('\n');
            }
            self.writer.inbox().put_bad_samples(text.into());
        }
    }

    /// What has become of checkpoints since the last question.
    pub fn take_attempts(&self) -> Vec<Attempt> {
        self.writer.take_attempts()
    }

    /// What has gone wrong since the last question.
    pub fn take_warnings(&self) -> Vec<String> {
        self.writer.take_warnings()
    }

    /// Whether the folder is still this run's own, as far as the writer has found out.
    ///
    /// # Errors
    /// [`CheckpointError::TakenOver`] if another process writes to it now,
    /// [`CheckpointError::Superseded`] if that is of a later generation.
    pub fn check(&self) -> Result<(), CheckpointError> {
        let taken_over = self.writer.taken_over(&self.shown);
        taken_over.map_or(Ok(()), Err)
    }

    /// The folder's name in messages.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Waits until all is written.
    pub fn finish(self) -> Written {
        self.writer.finish()
    }
}

/// Where a run's report goes: a newer one takes the place of one that is not yet written.
#[derive(Clone, Debug)]
pub struct Page(Arc<Inbox>);

impl Page {
    /// Hands over the page; it is written while training goes on.
    pub fn put(&self, html: String) {
        self.0.put_page(html.into());
    }
}

/// The whole lines of epochs before this one, up to the first line that is no such.
pub(super) fn lines_before(metrics: &[u8], epoch: u32) -> Vec<u8> {
    #[derive(serde::Deserialize)]
    struct Line {
        epoch: u32,
    }
    let is_before = |line: &&[u8]| {
        let read = serde_json::from_slice::<Line>(line);
        line.ends_with(b"\n") && read.is_ok_and(|line| line.epoch < epoch)
    };
    let lines = metrics.split_inclusive(|&byte| byte == b'\n');
    lines.take_while(is_before).collect::<Vec<_>>().concat()
}

/// The whole lines of a file.
pub(super) fn lines(bytes: &[u8]) -> BTreeSet<String> {
    let lines = bytes.split_inclusive(|&byte| byte == b'\n');
    let whole = lines.filter_map(|line| line.strip_suffix(b"\n"));
    whole
        .filter_map(|line| String::from_utf8(line.to_vec()).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_keep_whole_lines_of_earlier_epochs() {
        let text = b"{\"epoch\":0,\"a\":1}\n{\"epoch\":1}\n{\"epoch\":2}\n{\"epoch\":3";
        assert_eq!(lines_before(text, 2), &text[..30]);
        assert_eq!(lines_before(text, 3), &text[..42]);
        assert_eq!(lines_before(text, 9), &text[..42]);
        assert!(lines_before(text, 0).is_empty() && lines_before(b"\xff\n", 5).is_empty());
    }
}

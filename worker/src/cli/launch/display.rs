//! What a launcher shows of its ranks.

use super::super::say;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, PoisonError};
use synfire_coordinator::{Level, View};
use synfire_shared::protocol::Phase;

/// One display for all ranks: rank 0's lines, the others' with their rank, and a bar on a terminal.
#[derive(Clone)]
pub(super) struct Display {
    bar: Option<ProgressBar>,
    /// The newest error of a rank: others that have the same do not repeat it.
    error: Arc<Mutex<String>>,
}

impl Display {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:24} {percent:>3} %  ETA {eta}  {msg}");
            ProgressBar::new(0).with_style(style.expect("the template is a constant"))
        });
        Self {
            bar,
            error: Arc::default(),
        }
    }

    fn suspended(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    pub(super) fn line(&self, rank: u32, line: &str, is_error: bool) {
        // Their own bars have no place here, and their lines one each.
        let line = line.trim_end_matches('\r');
        if line.starts_with("error: ") {
            let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
            if *error == line {
                return;
            }
            line.clone_into(&mut error);
        }
        let line = format!(
            "[{rank}] {}",
            line.strip_prefix(&format!("rank {rank}: ")).unwrap_or(line)
        );
        self.suspended(|| {
            if is_error {
                eprintln!("{line}");
            } else {
                say!("{line}");
            }
        });
    }

    pub(super) fn warn(&self, warning: &str) {
        self.suspended(|| eprintln!("warning: {warning}"));
    }

    pub(super) fn observer(&self) -> impl FnMut(Level, &str) + Send + 'static {
        let display = self.clone();
        move |level, line| match level {
            Level::Info => tracing::info!("{line}"),
            Level::Warn => display.warn(line),
        }
    }

    pub(super) fn show(&self, view: &View) {
        let (Some(bar), Some(first)) = (&self.bar, view.members.first()) else {
            return;
        };
        let Some(status) = first
            .status
            .filter(|status| status.phase != Phase::Starting)
        else {
            return;
        };
        bar.set_length(status.batches_in_all);
        bar.set_position(status.batches_done);
        bar.set_message(format!(
            "{} ranks  epoch {}  {:.0} images/s  loss {:.4}",
            view.members.len(),
            status.epoch + 1,
            status.images_per_second,
            status.loss
        ));
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

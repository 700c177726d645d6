//! A run as one page of HTML: no script, nothing from elsewhere, plots as SVG.
//!
//! # Layout
//!
//! - this file: what the page needs to know, gathered from the events of training; writing it.
//! - `page`: the page. `plot`: a line plot. `style.css`: how it looks, in light and dark.

mod page;
mod plot;

use crate::train::{EpochLine, Event};
use std::io::Write as _;
use std::path::Path;
use std::{fs, io};
use synfire_shared::Run;

/// What a run has told so far.
#[derive(Debug)]
pub struct Report {
    /// Epochs that the run is to have.
    num_epochs: u32,
    /// The checked configuration.
    configuration: String,
    model: String,
    began: Option<Began>,
    /// How many ranks, and how they average, where there are several.
    group: Option<String>,
    /// Those of earlier processes too, where the run has a folder.
    epochs: Vec<EpochLine>,
    /// Batches done, and to be done.
    batches: (u64, u64),
}

#[derive(Debug)]
struct Began {
    engine: String,
    algorithm: String,
    parameters: usize,
    /// To train on, to test on.
    images: (usize, usize),
    layers: Vec<String>,
    window_bytes: u64,
}

impl Report {
    /// The report of a run that has not begun.
    pub fn new(run: &Run) -> Self {
        Self {
            num_epochs: run.epochs,
            configuration: run.to_toml(),
            model: run.model.network.name().into(),
            began: None,
            group: None,
            epochs: Vec::new(),
            batches: (0, 0),
        }
    }

    /// Takes over what an event says.
    pub fn see(&mut self, event: &Event) {
        match event {
            Event::Began {
                engine,
                algorithm,
                parameters,
                images,
                layers,
                window_bytes,
                device_bytes: _,
            } => {
                self.began = Some(Began {
                    engine: engine.clone(),
                    algorithm: algorithm.clone(),
                    parameters: *parameters,
                    images: *images,
                    layers: layers.clone(),
                    window_bytes: *window_bytes,
                });
            }
            Event::Progress(progress) => {
                self.batches = (progress.batches_done, progress.batches_in_all);
            }
            Event::Epoch(record) => {
                let layers = self.began.as_ref().map_or(&[][..], |began| &began.layers);
                let names = layers.iter().enumerate().map(|(index, name)| (name, index));
                self.epochs.push(EpochLine::new(record, names));
            }
            Event::Grouped {
                world, collective, ..
            } => self.group = Some(format!("{} over {collective}", world.0)),
            Event::Recording { earlier, .. } => self.take_over(earlier),
            Event::Resumed { position, .. } => self.batches.0 = position.batches_done,
            Event::Initialised { .. }
            | Event::CheckpointCopied { .. }
            | Event::CheckpointEnded { .. }
            | Event::Warning(_)
            | Event::BadSamples(_) => {}
        }
    }

    /// Takes over the epochs of earlier processes.
    fn take_over(&mut self, earlier: &[EpochLine]) {
        self.epochs = earlier.to_vec();
    }

    /// The page.
    pub fn html(&self) -> String {
        page::html(self)
    }

    /// Writes the page: whoever opens the file finds a whole page, the one before or this one.
    ///
    /// # Errors
    /// If the folder cannot be written, or is full; the page before is then still there.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let mut unfinished = std::ffi::OsString::from(".");
        unfinished.push(name);
        unfinished.push(format!(".{}.tmp", std::process::id()));
        let unfinished = path.with_file_name(unfinished);
        let written = fs::File::create(&unfinished).and_then(|mut file| {
            file.write_all(self.html().as_bytes())?;
            file.sync_all()?;
            fs::rename(&unfinished, path)
        });
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written
    }
}

/// Text as HTML shows it, in elements and in quoted attributes.
fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html += "&amp;",
            '<' => html += "&lt;",
            '>' => html += "&gt;",
            '"' => html += "&quot;",
            '\'' => html += "&#39;",
            c => html.push(c),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{EpochRecord, Tally};
    use synfire_shared::run::QUICKSTART;

    fn tally(correct: u64) -> Tally {
        Tally {
            loss: vec![2.0, 1.0],
            correct: vec![correct / 2, correct],
            samples: vec![1000, 1000],
            batches: vec![1, 1],
            spikes: vec![100, 50],
            neurons: vec![1000, 1000],
            silent: vec![25, 0],
            observed: vec![100, 100],
        }
    }

    fn epoch(epoch: u32, test: Option<u64>) -> Event {
        Event::Epoch(Box::new(EpochRecord {
            epoch,
            lr: 0.1,
            train: tally(700),
            test: test.map(tally),
            train_seconds: 2.0,
            images_per_second: 500.0,
            data_wait_seconds: 0.25,
            exchange_wait_seconds: 0.0,
            updates: 1,
        }))
    }

    fn report(set: &[String], tests: &[Option<u64>]) -> Report {
        let run = Run::from_toml(QUICKSTART, "built-in", set).unwrap();
        let mut report = Report::new(&run);
        report.see(&Event::Began {
            engine: "cpu <&>".into(),
            algorithm: "stol".into(),
            parameters: 10,
            images: (1000, 1000),
            layers: vec!["a\"><script>alert(1)</script>".into(), "b".into()],
            window_bytes: 1 << 20,
            device_bytes: 1 << 21,
        });
        for (index, &test) in tests.iter().enumerate() {
            report.see(&epoch(u32::try_from(index).unwrap(), test));
        }
        report
    }

    #[test]
    fn the_last_epoch_comes_first_and_the_best_is_named_so() {
        let html = report(&[], &[Some(800), Some(850), Some(840)]).html();
        let last = html.find("Test accuracy after the last epoch").unwrap();
        let best = html.find("Best epoch").unwrap();
        assert!(last < html.find("84.00 %").unwrap() && last < best);
        assert!(html.contains("Dead neurons by layer"));
        assert!(html.contains("<td>0.1000</td><td>25.00 %</td>"));
        assert!(html[best..].contains("85.00 %"));
        assert!(html[best..].contains("epoch 2, chosen on the test set"));
    }

    #[test]
    fn an_epoch_without_evaluation_is_not_given_the_accuracy_of_another() {
        let html = report(&[], &[Some(800), None]).html();
        assert!(!html.contains("Test accuracy after the last epoch"));
        assert!(html.contains("Test accuracy after epoch 1"));
        let html = report(&[], &[None]).html();
        assert!(html.contains("not yet measured"), "{html}");
    }

    #[test]
    fn a_resumed_run_s_report_has_the_epochs_before() {
        let whole = report(&[], &[Some(800), Some(850), Some(840)]);
        let mut resumed = report(&[], &[]);
        let lines = whole.epochs[..2].iter().map(|line| line.text() + "\n");
        let earlier = EpochLine::of_file(lines.collect::<String>().as_bytes());
        assert_eq!(earlier.len(), 2);
        resumed.take_over(&earlier);
        resumed.see(&epoch(2, Some(840)));
        let without_memory = |report: &mut Report| {
            for line in &mut report.epochs {
                (line.resident_mib, line.peak_resident_mib) = (None, None);
            }
            report.html()
        };
        let mut whole = whole;
        assert_eq!(without_memory(&mut resumed), without_memory(&mut whole));
    }

    #[test]
    fn nothing_of_the_run_is_read_as_html() {
        let path = "data.path=/x/</pre><script>alert(1)</script>&\"'";
        let set = ["data.source=cifar10".to_owned(), path.to_owned()];
        let html = report(&set, &[Some(800), Some(810)]).html();
        assert!(!html.contains("<script"), "{html}");
        assert!(html.contains("&lt;/pre&gt;&lt;script&gt;"), "{html}");
        assert!(html.contains("cpu &lt;&amp;&gt;"));
        for outside in ["http:", "https:", "url(", "@import", "src=", "href="] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn a_report_is_replaced_as_a_whole_and_leaves_nothing_beside_it() {
        let folder = std::env::temp_dir().join(format!("synfire-report-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("report.html");
        report(&[], &[]).write(&path).unwrap();
        let before = fs::read_to_string(&path).unwrap();
        report(&[], &[Some(800)]).write(&path).unwrap();
        let after = fs::read_to_string(&path).unwrap();
        assert!(before != after && after.ends_with("</html>\n"));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        // A folder in its place: an error, and no unfinished file.
        let taken = folder.join("taken");
        fs::create_dir_all(taken.join("inside")).unwrap();
        report(&[], &[]).write(&taken).unwrap_err();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        fs::remove_dir_all(&folder).unwrap();
    }
}

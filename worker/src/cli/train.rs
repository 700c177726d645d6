//! `synfire train`.

use super::table::{Table, duration, mib, percent, thousands};
use crate::engine::plan::Role;
use crate::memory::peak_resident_mib;
use crate::train::{self, EpochRecord, Event, Kept, Options, Progress, Resume, Trained};
use crate::weights;
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use synfire_shared::{Run, run::QUICKSTART};

/// Seconds between two lines where the output is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  synfire train                                      two minutes on built-in pictures
  synfire train --print-config > mine.toml           a configuration to start from
  synfire train mine.toml --set optimiser.lr=0.05    the same with another learning rate
  synfire train --set algorithm.name=bptt --set algorithm.window=    compare with BPTT
  synfire train mine.toml --set run.folder=runs/1    keep results; the same again goes on

With run.folder, SIGINT (Ctrl-C) or SIGTERM ends the run after the batch at hand, saves a checkpoint
and exits with 130 or 143; a second one ends it at once.")]
pub(super) struct Arguments {
    /// The run as a TOML file; without it, the built-in one
    config: Option<PathBuf>,
    /// Change a key of the configuration; may be repeated. An empty value takes the key out
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the whole configuration, every default filled in, and stop
    #[arg(long)]
    print_config: bool,
    /// Where to start: "auto" is the newest good checkpoint in run.folder, or anew without one;
    /// "never" is anew, in a folder without checkpoints; or a run folder, or the manifest of a
    /// checkpoint
    #[arg(long, value_name = "auto|never|PATH", default_value = "auto")]
    resume: String,
    /// Write the trained weights to this safetensors file
    #[arg(long, value_name = "FILE")]
    save_weights: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let run = read(arguments.config.as_ref(), &arguments.set)?;
    if arguments.print_config {
        print!("{}", run.to_toml());
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(path) = &arguments.save_weights {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        let missing = folder.filter(|folder| !folder.is_dir());
        if let Some(folder) = missing {
            anyhow::bail!(
                "--save-weights: {} is no folder: make it first",
                folder.display()
            );
        }
    }
    let mut display = Display::new(&run);
    let options = options(&run, &arguments.resume)?;
    let mut trained = train::train(&run, &options, &mut |event| display.show(&event))?;
    if let Some(kept) = &trained.kept {
        show_kept(kept);
    }
    if let Some(signal) = trained.stopped {
        println!(
            "stopped by {}; the same command goes on",
            signal_name(signal)
        );
        // As a shell counts a process that a signal ended: the run is not over.
        return Ok(ExitCode::from(
            u8::try_from(128 + signal).unwrap_or(u8::MAX),
        ));
    }
    summarise(&run, &mut trained, arguments.config.is_none());
    if let Some(path) = &arguments.save_weights {
        let node = &mut trained.node;
        weights::save(path, &node.learner.network, &mut *node.kernels)?;
        println!("weights written to {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Where to start, and a flag that the first signal sets where there is a folder to save to.
fn options(run: &Run, resume: &str) -> anyhow::Result<Options> {
    let options = Options {
        resume: match resume {
            "auto" => Resume::Auto,
            "never" => Resume::Never,
            location => Resume::From(location.to_owned()),
        },
        ..Options::default()
    };
    if run.folder.is_some() {
        let again = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order the first signal, of either kind, sets the flag that the second finds.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&again))?;
            flag::register(signal, Arc::clone(&again))?;
            let number = usize::try_from(signal).expect("signals count from 1");
            flag::register_usize(signal, Arc::clone(&options.stop), number)?;
        }
    }
    Ok(options)
}

fn signal_name(signal: usize) -> &'static str {
    let is_interrupt = i32::try_from(signal) == Ok(SIGINT);
    if is_interrupt { "SIGINT" } else { "SIGTERM" }
}

/// What the run's folder has, and what that cost.
fn show_kept(kept: &Kept) {
    let mut stalls = kept.stalls.clone();
    stalls.sort_by(f64::total_cmp);
    print!(
        "results in {}: {} checkpoints written",
        kept.folder, kept.checkpoints
    );
    if let (Some(median), Some(most)) = (stalls.get(stalls.len() / 2), stalls.last()) {
        let (median, most) = (median * 1e3, most * 1e3);
        print!(
            " of {}, stall {median:.1} ms, at most {most:.1} ms",
            mib(kept.bytes)
        );
    }
    println!("; {} failed", kept.failures);
}

/// The run of a file, or the built-in one, with overrides.
pub(super) fn read(config: Option<&PathBuf>, set: &[String]) -> anyhow::Result<Run> {
    let (text, name) = match config {
        None => (QUICKSTART.to_owned(), "built-in configuration".to_owned()),
        Some(path) => {
            let shown = path.display().to_string();
            let text = std::fs::read_to_string(path);
            (text.with_context(|| format!("cannot read {shown}"))?, shown)
        }
    };
    Ok(Run::from_toml(&text, &name, set)?)
}

/// Shows a run while it goes: a bar on a terminal, a line now and then elsewhere.
struct Display {
    bar: Option<ProgressBar>,
    epochs: u32,
    begin: Instant,
    /// Batches that an earlier process did.
    batches_before: u64,
    last_line: Instant,
}

impl Display {
    fn new(run: &Run) -> Self {
        let now = Instant::now();
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:24} {percent:>3} %  ETA {eta}  {msg}");
            ProgressBar::new(0).with_style(style.expect("the template is a constant"))
        });
        Self {
            bar,
            epochs: run.epochs,
            begin: now,
            batches_before: 0,
            last_line: now,
        }
    }

    fn show(&mut self, event: &Event) {
        match event {
            Event::Began {
                engine,
                algorithm,
                parameters,
                images,
            } => println!(
                "training {} parameters with {algorithm} on {engine}: {} images, {} to test",
                thousands(*parameters as u64),
                thousands(images.0 as u64),
                thousands(images.1 as u64),
            ),
            Event::Resumed { from, position } => {
                self.batches_before = position.batches_done;
                println!(
                    "resumed from {from}: epoch {}, after {} of its batches",
                    position.epoch + 1,
                    position.batch
                );
            }
            Event::Warning(warning) => match &self.bar {
                Some(bar) => bar.suspend(|| eprintln!("warning: {warning}")),
                None => eprintln!("warning: {warning}"),
            },
            Event::Progress(progress) => self.progress(progress),
            Event::Epoch(record) => self.epoch(record),
        }
    }

    fn progress(&mut self, p: &Progress) {
        let now = format!(
            "epoch {}/{}  {:.0} images/s  loss {:.4}  accuracy {}  firing rate {:.3}",
            p.epoch + 1,
            self.epochs,
            p.images_per_second,
            p.tally.mean_loss(),
            percent(p.tally.accuracy()),
            p.tally.firing_rate(),
        );
        if let Some(bar) = &self.bar {
            bar.set_length(p.batches_in_all);
            bar.set_position(p.batches_done);
            bar.set_message(now);
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let here = (p.batches_done - self.batches_before) as f64;
            let left = (p.batches_in_all - p.batches_done) as f64 / here;
            let eta = duration(left * self.begin.elapsed().as_secs_f64());
            println!(
                "batch {}/{}  ETA {eta}  {now}",
                p.batches_done, p.batches_in_all
            );
        }
    }

    fn epoch(&mut self, record: &EpochRecord) {
        let mut line = format!(
            "epoch {:>3}/{}  {:.1} s  {:.0} images/s  lr {:.4}  loss {:.4}  train {}",
            record.epoch + 1,
            self.epochs,
            record.train_seconds,
            record.images_per_second,
            record.lr,
            record.train.mean_loss(),
            percent(record.train.accuracy()),
        );
        if let Some(test) = record
            .test
            .as_ref()
            .filter(|t| t.samples.iter().any(|&n| n > 0))
        {
            let _ = write!(line, "  test {}", percent(test.accuracy()));
        }
        let _ = write!(line, "  firing rate {:.3}", record.train.firing_rate());
        match &self.bar {
            Some(bar) => bar.suspend(|| println!("{line}")),
            None => println!("{line}"),
        }
        self.last_line = Instant::now();
    }
}

/// What a finished run has to say.
fn summarise(run: &Run, trained: &mut Trained, built_in: bool) {
    let Some(last) = trained.epochs.last() else {
        println!("the run is over: nothing was left to train");
        return;
    };
    let test = last
        .test
        .as_ref()
        .filter(|t| t.samples.iter().any(|&n| n > 0));
    println!();
    if let Some(test) = test {
        println!(
            "test accuracy after the last epoch  {}",
            percent(test.accuracy())
        );
        let steps = test.accuracies().into_iter().enumerate();
        let steps: Vec<String> = steps
            .map(|(t, accuracy)| format!("t={t} {}", percent(accuracy)))
            .collect();
        println!("  by the logits up to time step     {}", steps.join("   "));
    }
    println!();
    let rates = last.train.firing_rates();
    let mut table = Table::new(&["neurons", "spikes per neuron and time step"]);
    for (name, counter) in &trained.node.learner.network.plan().neurons {
        table.push(vec![name.clone(), format!("{:.4}", rates[*counter])]);
    }
    println!("{}", table.text());
    let network = &trained.node.learner.network;
    let kernels = &*trained.node.kernels;
    let kept = network.bytes(kernels, Role::Kept);
    let window = network.plan().settings.window;
    print!(
        "memory: {} kept over the window of {window} time steps",
        mib(kept)
    );
    match peak_resident_mib() {
        Some(peak) => println!(", {peak:.0} MiB resident at the peak"),
        None => println!(),
    }
    println!("time: {}", duration(trained.seconds));
    if built_in {
        next_steps(run);
    }
}

fn next_steps(run: &Run) {
    let seed = run.seed + 1;
    println!(
        "
what to try next
  synfire train --set run.seed={seed}                   is it luck?
  synfire train --set algorithm.window=1           without the older time step
  synfire train --set algorithm.name=bptt --set algorithm.window=    one update per batch
  synfire train --print-config > mine.toml         then: synfire train mine.toml
  synfire inspect model small --input 1x28x28 --width 0.5
  synfire bench --model ms_resnet18 --batch 16 --time-steps 6"
    );
}

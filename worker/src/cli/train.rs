//! `synfire train`.

use super::engine;
use super::ranks::{self, Company, Means};
use super::say;
use super::table::{Table, duration, mib, percent, thousands};
use super::watch::{self, Served, Watch};
use crate::collective::Collective;
use crate::data::BadSample;
use crate::engine::plan::Role;
use crate::memory::peak_resident_mib;
use crate::train::{self, EpochRecord, Event, Kept, Options, Progress, Resume, Trained};
use crate::weights;
use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use synfire_shared::Run;
use synfire_shared::run::{Device, QUICKSTART};

/// The largest configuration that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Seconds between two lines where the output is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Bad samples that are printed.
const BAD_SAMPLES_SHOWN: usize = 10;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  synfire train                                      about a minute on built-in pictures
  synfire train --print-config > mine.toml           a configuration to start from
  synfire train mine.toml --set optimiser.lr=0.05    the same with another learning rate
  synfire train --set algorithm.name=bptt --set algorithm.window=    compare with BPTT
  synfire train mine.toml --set run.folder=runs/1    keep results; the same again goes on
  synfire train mine.toml --set run.folder=s3://bucket/runs/1    the same in an object store
  synfire train mine.toml --set init.from=old.pth    start from weights of synfire or PyTorch
  synfire train mine.toml --device cuda              on a GPU; synfire doctor says what it needs

With run.folder, SIGINT (Ctrl-C) or SIGTERM ends the run after the batch at hand, saves a checkpoint
and exits with 130 or 143; a second one ends it at once.

Exit status: 0 finished; 130 or 143 stopped by a signal; 64 wrong usage; 75 an error that another
try may mend (a store or a coordinator out of reach, a run folder's full disk, ranks that are lost);
1 any other error.")]
pub(super) struct Arguments {
    /// The run as a TOML file; without it, the built-in one
    config: Option<PathBuf>,
    /// Change a key of the configuration; may be repeated. An empty value takes the key out
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// On what to train, instead of run.device
    #[arg(long, value_name = "cpu|cuda[:N]", value_parser = engine::device)]
    device: Option<Device>,
    /// Print the whole configuration, every default filled in, and stop
    #[arg(long)]
    print_config: bool,
    /// Where to start: "auto" is the newest good checkpoint in run.folder, or anew without one;
    /// "never" is anew, in a folder without checkpoints; or the path or URL of a run folder, or of
    /// the manifest of a checkpoint
    #[arg(long, value_name = "auto|never|URL", default_value = "auto")]
    resume: String,
    /// Write the trained weights to this safetensors file
    #[arg(long, value_name = "FILE")]
    save_weights: Option<PathBuf>,
    #[command(flatten)]
    watch: watch::Arguments,
    #[command(flatten)]
    ranks: ranks::Arguments,
}

impl Arguments {
    /// The run as configured.
    pub(super) fn run(&self) -> anyhow::Result<Run> {
        read(self.config.as_ref(), &with_device(&self.set, self.device))
    }

    /// Whether arguments say with whom to train.
    pub(super) fn name_company(&self) -> bool {
        self.ranks.name_company()
    }

    /// Whether nothing says with whom to train.
    pub(super) fn is_without_company(&self) -> anyhow::Result<bool> {
        Ok(matches!(self.ranks.company()?, Company::Alone))
    }

    /// Whether metrics are asked for.
    pub(super) fn has_metrics(&self) -> bool {
        self.watch.is_serving()
    }
}

/// How a run ended that did not fail.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    Finished,
    Stopped(usize),
}

impl Outcome {
    /// The exit status.
    pub(super) fn code(self) -> ExitCode {
        match self {
            Self::Finished => ExitCode::SUCCESS,
            Self::Stopped(signal) => stopped_by(signal),
        }
    }
}

/// As a shell counts a process that a signal ended: the run is not over.
pub(super) fn stopped_by(signal: usize) -> ExitCode {
    ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX))
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if arguments.print_config {
        say!("{}", arguments.run()?.to_toml().trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    let company = arguments.ranks.company()?;
    let job = match Job::new(arguments, &company) {
        Ok(job) => job,
        Err(error) => {
            company.give_up(&error);
            return Err(error);
        }
    };
    match company {
        Company::Alone => {
            let options = options(&job.run, &arguments.resume)?;
            let outcome = job.train(&options, None, None, &mut |_| ())?;
            Ok(outcome.code())
        }
        Company::Mpi(launch) => ranks::run_under_mpi(launch, &job),
        Company::Coordinator(seat) => ranks::run_member(&seat, &mut Means::Tcp, &job),
    }
}

/// What one process is to train, whatever its company.
pub(super) struct Job<'a> {
    pub(super) run: Run,
    arguments: &'a Arguments,
    served: Option<Served>,
    /// The rank, as far as it is known.
    place: AtomicU32,
}

impl<'a> Job<'a> {
    /// All that can be known to be wrong before other ranks are met.
    fn new(arguments: &'a Arguments, company: &Company) -> anyhow::Result<Self> {
        let run = arguments.run()?;
        if !matches!(company, Company::Alone) {
            ensure!(
                arguments.resume == "auto",
                "--resume {}: several ranks start from the newest checkpoint in run.folder, or anew \
                 without one; to start from another run's weights set init.from",
                arguments.resume
            );
        }
        let rank = company.rank();
        if let Some(path) = arguments.save_weights.as_ref().filter(|_| rank == 0) {
            can_be_written(path).context("--save-weights")?;
        }
        Ok(Self {
            served: Served::start(&arguments.watch, rank)?,
            run,
            arguments,
            place: AtomicU32::new(rank),
        })
    }

    /// Where this process serves its metrics.
    pub(super) fn metrics_address(&self) -> Option<SocketAddr> {
        self.served.as_ref().map(Served::address)
    }

    /// A flag that the first signal sets; the second one ends the process.
    pub(super) fn stop_flag() -> anyhow::Result<Arc<AtomicUsize>> {
        let stop = Arc::default();
        register(&stop)?;
        Ok(stop)
    }

    /// Something that other ranks say as well: rank 0 is enough.
    pub(super) fn tell_note(&self, note: &str) {
        if self.place.load(Ordering::Relaxed) == 0 {
            say!("{note}");
        }
    }

    pub(super) fn tell_warning(&self, warning: &str) {
        self.warner()(warning);
    }

    /// Tells warnings of this rank from any thread.
    pub(super) fn warner(&self) -> impl Fn(&str) + Send + 'static {
        let place = self.place.load(Ordering::Relaxed);
        move |warning| eprintln!("{}warning: {warning}", prefix(place))
    }

    /// Trains, alone or as one of the ranks of a generation: `group` has rank, world and number.
    pub(super) fn train(
        &self,
        options: &Options,
        mut collective: Option<Box<dyn Collective>>,
        group: Option<(u32, u32, u64)>,
        see: &mut dyn FnMut(&Event),
    ) -> anyhow::Result<Outcome> {
        let rank = group.map_or(0, |(rank, ..)| rank);
        self.place.store(rank, Ordering::Relaxed);
        if let Some((_, world, generation)) = group {
            self.tell_note(&format!("generation {generation} of {world} ranks"));
        }
        let mut display = Display::new(&self.run, rank);
        let (arguments, served) = (&self.arguments.watch, self.served.as_ref());
        let watch = Watch::start(arguments, &self.run, served, rank == 0);
        if let (Err(error), Some(collective)) = (&watch, &mut collective) {
            // The others wait for this rank already.
            collective.abort(&format!("{error:#}"));
        }
        let mut watch = watch?;
        let mut tell = |event: Event| {
            display.show(&event);
            watch.see(&event);
            see(&event);
        };
        let trained = match collective {
            None => train::train(&self.run, options, &mut tell),
            Some(collective) => train::train_in(&self.run, options, collective, &mut tell),
        };
        display.finish();
        let mut trained = trained?;
        if let Some(kept) = &trained.kept {
            show_kept(kept);
        }
        if let Some(signal) = trained.stopped {
            if rank == 0 {
                say!(
                    "stopped by {}; the same command goes on",
                    signal_name(signal)
                );
            }
            watch.finish()?;
            return Ok(Outcome::Stopped(signal));
        }
        if rank == 0 {
            self.conclude(&mut trained)?;
        }
        watch.finish()?;
        Ok(Outcome::Finished)
    }

    fn conclude(&self, trained: &mut Trained) -> anyhow::Result<()> {
        summarise(&self.run, trained, self.arguments.config.is_none());
        if let Some(path) = &self.arguments.save_weights {
            let node = &mut trained.node;
            weights::save(path, &node.learner.network, &mut *node.kernels)?;
            say!("weights written to {}", path.display());
        }
        Ok(())
    }
}

/// Which rank says something; rank 0 is the run.
fn prefix(rank: u32) -> String {
    match rank {
        0 => String::new(),
        rank => format!("rank {rank}: "),
    }
}

/// Whether a file can be written in the end, found out before the work is done.
fn can_be_written(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    anyhow::ensure!(!path.is_dir(), "{shown} is a folder: name a file in it");
    let mut trial = path.as_os_str().to_owned();
    trial.push(".trial");
    std::fs::File::create(&trial)
        .and_then(|_| std::fs::remove_file(&trial))
        .with_context(|| format!("{shown} cannot be written"))
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
        register(&options.stop)?;
    }
    Ok(options)
}

/// Has the first signal set a flag; the second one ends the process.
fn register(stop: &Arc<AtomicUsize>) -> anyhow::Result<()> {
    let again = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order the first signal, of either kind, sets the flag that the second finds.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&again))?;
        flag::register(signal, Arc::clone(&again))?;
        let number = usize::try_from(signal).expect("signals count from 1");
        flag::register_usize(signal, Arc::clone(stop), number)?;
    }
    Ok(())
}

fn signal_name(signal: usize) -> &'static str {
    let is_interrupt = i32::try_from(signal) == Ok(SIGINT);
    if is_interrupt { "SIGINT" } else { "SIGTERM" }
}

/// What the run's folder has, and what that cost.
fn show_kept(kept: &Kept) {
    let mut stalls = kept.stalls.clone();
    stalls.sort_by(f64::total_cmp);
    let mut stall = String::new();
    if let (Some(median), Some(most)) = (stalls.get(stalls.len() / 2), stalls.last()) {
        let (median, most) = (median * 1e3, most * 1e3);
        stall = format!(
            " of {}, stall {median:.1} ms, at most {most:.1} ms",
            mib(kept.bytes)
        );
    }
    say!(
        "results in {}: {} checkpoints written{stall}; {} failed",
        kept.folder,
        kept.checkpoints,
        kept.failures
    );
}

/// Overrides with that of the device behind them, so that it holds.
pub(super) fn with_device(set: &[String], device: Option<Device>) -> Vec<String> {
    let device = device.map(|device| format!("run.device={device}"));
    set.iter().cloned().chain(device).collect()
}

/// The run of a file, or the built-in one, with overrides.
pub(super) fn read(config: Option<&PathBuf>, set: &[String]) -> anyhow::Result<Run> {
    let (text, name) = match config {
        None => (QUICKSTART.to_owned(), "built-in configuration".to_owned()),
        Some(path) => {
            let shown = path.display().to_string();
            let meta = std::fs::metadata(path).with_context(|| format!("cannot read {shown}"))?;
            anyhow::ensure!(meta.is_file(), "{shown} is no file");
            anyhow::ensure!(
                meta.len() <= MAX_CONFIG_BYTES,
                "{shown} has {} bytes: a configuration has at most {MAX_CONFIG_BYTES}",
                meta.len()
            );
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
    bad_samples: usize,
    /// Whether the configuration names weights to start from.
    has_init: bool,
    /// Of several ranks, 0 shows the run, the others what is amiss with them.
    rank: u32,
}

impl Display {
    fn new(run: &Run, rank: u32) -> Self {
        let now = Instant::now();
        let bar = (rank == 0 && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{bar:24} {percent:>3} %  ETA {eta}  {msg}");
            ProgressBar::new(0).with_style(style.expect("the template is a constant"))
        });
        Self {
            bar,
            epochs: run.epochs,
            begin: now,
            batches_before: 0,
            last_line: now,
            bad_samples: 0,
            has_init: run.init.from.is_some(),
            rank,
        }
    }

    /// Takes the bar away, so that nothing is drawn over what is printed next.
    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn show(&mut self, event: &Event) {
        if self.rank != 0 && !matches!(event, Event::Warning(_) | Event::BadSamples(_)) {
            return;
        }
        match event {
            Event::Began {
                engine,
                algorithm,
                parameters,
                images,
                ..
            } => say!(
                "training {} parameters with {algorithm} on {engine}: {} images, {} to test",
                thousands(*parameters as u64),
                thousands(images.0 as u64),
                thousands(images.1 as u64),
            ),
            Event::Initialised { from, taken } => say!(
                "starting from {} tensors with {} numbers of {from}{}",
                taken.tensors,
                thousands(taken.numbers as u64),
                if taken.kept_readout {
                    "; the readout is drawn"
                } else {
                    ""
                }
            ),
            Event::Resumed { from, position } => {
                self.batches_before = position.batches_done;
                say!(
                    "resumed from {from}: epoch {}, after {} of its batches{}",
                    position.epoch + 1,
                    position.batch,
                    if self.has_init {
                        "; its weights, not those of init.from"
                    } else {
                        ""
                    }
                );
            }
            Event::Warning(warning) => self.warn(warning),
            Event::BadSamples(bad) => self.bad_samples(bad),
            Event::Progress(progress) => self.progress(progress),
            Event::Epoch(record) => self.epoch(record),
            Event::Grouped {
                world,
                collective,
                buckets: (numbers, count),
                ..
            } => say!(
                "{} ranks average over {collective} in {count} bucket{} of up to {}",
                world.0,
                if *count == 1 { "" } else { "s" },
                mib(4 * *numbers as u64)
            ),
            Event::Recording { .. }
            | Event::CheckpointCopied { .. }
            | Event::CheckpointEnded { .. } => {}
        }
    }

    fn warn(&self, warning: &str) {
        let line = format!("{}warning: {warning}", prefix(self.rank));
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// The first few; all are in the run's folder and counted by the metrics.
    fn bad_samples(&mut self, bad: &[BadSample]) {
        for sample in bad {
            if self.bad_samples < BAD_SAMPLES_SHOWN {
                let done = match sample.replaced_by {
                    Some(other) => format!("sample {other} took its place"),
                    None => "left out of the test".to_owned(),
                };
                self.warn(&format!("{}: {}; {done}", sample.name, sample.reason));
            } else if self.bad_samples == BAD_SAMPLES_SHOWN {
                self.warn(
                    "more bad samples are not shown; bad_samples.jsonl in run.folder has all",
                );
            }
            self.bad_samples += 1;
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
            say!(
                "batch {}/{}  ETA {eta}  {now}",
                p.batches_done,
                p.batches_in_all
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
        if let Some(test) = record.tested() {
            let _ = write!(line, "  test {}", percent(test.accuracy()));
        }
        let _ = write!(line, "  firing rate {:.3}", record.train.firing_rate());
        match &self.bar {
            Some(bar) => bar.suspend(|| say!("{line}")),
            None => say!("{line}"),
        }
        self.last_line = Instant::now();
    }
}

/// What a finished run has to say.
fn summarise(run: &Run, trained: &mut Trained, built_in: bool) {
    let Some(last) = trained.epochs.last() else {
        say!("the run is over: nothing was left to train");
        return;
    };
    say!("");
    if let Some(test) = last.tested() {
        say!(
            "test accuracy after the last epoch  {}",
            percent(test.accuracy())
        );
        let steps = test.accuracies().into_iter().enumerate();
        let steps: Vec<String> = steps
            .map(|(t, accuracy)| format!("t={t} {}", percent(accuracy)))
            .collect();
        say!("  by the logits up to time step     {}", steps.join("   "));
    }
    say!("");
    let rates = last.train.firing_rates();
    let dead = last.train.dead_shares();
    let mut table = Table::new(&["neurons", "spikes per neuron and time step", "dead"]);
    for (name, counter) in &trained.node.learner.network.plan().neurons {
        let (rate, dead) = (rates[*counter], percent(dead[*counter]));
        table.push(vec![name.clone(), format!("{rate:.4}"), dead]);
    }
    say!("{}", table.text());
    let network = &trained.node.learner.network;
    let kernels = &*trained.node.kernels;
    let kept = network.bytes(kernels, Role::Kept);
    let window = network.plan().settings.window;
    let resident = peak_resident_mib().map_or(String::new(), |peak| {
        format!(", {peak:.0} MiB resident at the peak")
    });
    say!(
        "memory: {} kept over the window of {window} time steps{resident}",
        mib(kept)
    );
    say!("time: {}", duration(trained.seconds));
    if built_in {
        next_steps(run);
    }
}

fn next_steps(run: &Run) {
    let seed = run.seed + 1;
    say!(
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

//! `synfire pack`.

use super::say;
use super::table::{Table, duration, mib, thousands};
use crate::data::pack::{self, Cifar, Options, PackError, Progress, Set};
use anyhow::Context;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use synfire_shared::dataset::{Index, Split};
use synfire_shared::storage::Store;

/// Seconds between two lines where the output is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Left-out samples that are printed; the index lists all.
const SHOWN: usize = 20;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Source and target are paths or file://, s3://, gs:// or az:// URLs; \
a source may also be http:// or https://.
Credentials come from the environment (AWS_ACCESS_KEY_ID, ...; AWS_ENDPOINT and AWS_ALLOW_HTTP
for a server of your own).

A run that was killed goes on where it stopped: give the same command again.

Examples:
  synfire pack cifar10 --source cifar-10-binary.tar.gz --out data/cifar10
  synfire pack cifar100 --source cifar-100-python/ --out s3://bucket/cifar100
  synfire pack fashion-mnist --source idx/ --out data/fashion
  synfire pack imagenet --source /data/ilsvrc2012 --out s3://bucket/imagenet
  synfire pack folder --source pictures/ --out data/pictures --classes classes.txt"
)]
pub(super) struct Arguments {
    /// What the source holds
    kind: Kind,
    /// The folder or archive of the data set
    #[arg(long, value_name = "DIR|ARCHIVE|URL")]
    source: String,
    /// Where shards and index go
    #[arg(long, value_name = "URL")]
    out: String,
    /// The size of a shard, about
    #[arg(long, value_name = "MIB", default_value_t = 64,
          value_parser = clap::value_parser!(u64).range(1..=4096))]
    shard_mib: u64,
    /// A file with a line `key name` for each class, in the order of labels (for `folder` and
    /// `imagenet`; without it, the folders' names, sorted)
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Take archives of ImageNet whose MD5 is not that of the official ones, and do not compute it
    #[arg(long)]
    unofficial: bool,
    /// Replace another data set in the target
    #[arg(long)]
    overwrite: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// CIFAR-10, binary or python version, packed or unpacked
    Cifar10,
    /// CIFAR-100 with its 100 fine labels
    Cifar100,
    /// CIFAR-100 with its 20 coarse labels
    Cifar100Coarse,
    /// Fashion-MNIST, its four idx files, packed or unpacked
    FashionMnist,
    /// ImageNet: a folder of its official archives with the devkit or Kaggle's csv, or a tree of wnids
    Imagenet,
    /// A folder of folders of JPEG or PNG pictures, each named for its class, below train/ and
    /// val/ or test/ or not
    Folder,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let begin = Instant::now();
    let set = find(arguments)?;
    let out = Store::create(&arguments.out).map_err(PackError::from)?;
    say!(
        "{}: {} samples to train on, {} to test, {} classes",
        set.name,
        thousands(set.splits[0].len() as u64),
        thousands(set.splits[1].len() as u64),
        thousands(set.classes.len() as u64),
    );
    let options = Options {
        shard_bytes: arguments.shard_mib << 20,
        overwrite: arguments.overwrite,
    };
    let display = Display::new();
    let report = pack::pack(&set, &out, options, &|progress| display.show(progress))?;
    display.end();
    if report.shards_resumed > 0 {
        say!("{} shards were there already", report.shards_resumed);
    }
    for archive in &report.official {
        say!("{archive} has the MD5 of the official one");
    }
    summarise(&set, &report.index, out.url());
    say!("time: {}", duration(begin.elapsed().as_secs_f64()));
    Ok(ExitCode::SUCCESS)
}

fn find(arguments: &Arguments) -> anyhow::Result<Set> {
    let source = &arguments.source;
    let may_list = matches!(arguments.kind, Kind::Folder | Kind::Imagenet);
    if arguments.classes.is_some() && !may_list {
        anyhow::bail!("--classes is for `folder` and `imagenet`: other sets have their own");
    }
    if arguments.unofficial && arguments.kind != Kind::Imagenet {
        anyhow::bail!("--unofficial is for `imagenet`: unpack or rename other archives");
    }
    Ok(match arguments.kind {
        Kind::Cifar10 => pack::cifar::find(Cifar::Ten, source)?,
        Kind::Cifar100 => pack::cifar::find(Cifar::Hundred, source)?,
        Kind::Cifar100Coarse => pack::cifar::find(Cifar::HundredCoarse, source)?,
        Kind::FashionMnist => pack::idx::find_fashion(source)?,
        Kind::Imagenet => pack::imagenet::find(source, classes(arguments)?, arguments.unofficial)?,
        Kind::Folder => pack::tree::find(source, "folder", classes(arguments)?)?,
    })
}

fn classes(arguments: &Arguments) -> anyhow::Result<Option<Vec<synfire_shared::dataset::Class>>> {
    let Some(path) = &arguments.classes else {
        return Ok(None);
    };
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("cannot read the classes in {shown}"))?;
    Ok(Some(pack::tree::read_classes(&text, &shown)?))
}

/// Shows how far packing has come: a bar on a terminal, a line now and then elsewhere.
struct Display {
    bar: Option<ProgressBar>,
    begin: Instant,
    last_line: Mutex<Instant>,
}

impl Display {
    fn new() -> Self {
        let now = Instant::now();
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = "{bar:24} {percent:>3} %  ETA {eta}  {pos}/{len} samples, {per_sec}";
            let style = ProgressStyle::with_template(style);
            ProgressBar::new(0).with_style(style.expect("the template is a constant"))
        });
        Self {
            bar,
            begin: now,
            last_line: Mutex::new(now),
        }
    }

    fn show(&self, p: Progress) {
        if let Some(bar) = &self.bar {
            bar.set_length(p.samples_in_all);
            bar.set_position(p.samples_done);
            return;
        }
        // Who does not get the lock leaves the line to another thread.
        let Ok(mut last_line) = self.last_line.try_lock() else {
            return;
        };
        if last_line.elapsed() < LINE_EVERY {
            return;
        }
        *last_line = Instant::now();
        let done_now = (p.samples_done - p.samples_resumed) as f64;
        let left = (p.samples_in_all - p.samples_done) as f64;
        let seconds = self.begin.elapsed().as_secs_f64();
        say!(
            "{} of {} samples  {:.0} samples/s  ETA {}",
            thousands(p.samples_done),
            thousands(p.samples_in_all),
            done_now / seconds,
            duration(left / done_now * seconds)
        );
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn summarise(set: &Set, index: &Index, url: &str) {
    let mut table = Table::new(&["split", "samples", "shards", "size"]);
    for (name, split) in [("train", &index.train), ("test", &index.test)] {
        table.push(vec![
            name.into(),
            thousands(split.len()),
            thousands(split.shards().len() as u64),
            mib(bytes(split)),
        ]);
    }
    say!("{}", table.text());
    let packed = index.train.len() + index.test.len();
    say!(
        "{} found = {} packed + {} left out",
        thousands(set.num_found()),
        thousands(packed),
        thousands(index.left_out.len() as u64)
    );
    for sample in index.left_out.iter().take(SHOWN) {
        say!(
            "  {:?} ({}): {}",
            sample.sample,
            sample.split,
            sample.reason
        );
    }
    if index.left_out.len() > SHOWN {
        let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
        for sample in &index.left_out {
            *reasons.entry(&sample.reason).or_default() += 1;
        }
        say!("  ... all of them are in index.json; by reason:");
        for (reason, num) in reasons {
            say!("  {:>9}  {reason}", thousands(num));
        }
    }
    say!("written to {url}, fingerprint {}", index.fingerprint_hex());
}

fn bytes(split: &Split) -> u64 {
    split.shards().iter().map(|shard| shard.bytes).sum()
}

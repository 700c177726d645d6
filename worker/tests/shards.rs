//! Training from shards, as a user calls it: killed and resumed, with pictures that do not decode.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use synfire::train::{self, Event, Options, TrainError};
use synfire_shared::Run;
use synfire_shared::checkpoint::{Digest, manifest_number};
use synfire_shared::dataset::Index;
use synfire_shared::ids::Epoch;
use synfire_shared::random::mix;
use synfire_shared::run::QUICKSTART;
use synfire_shared::shard_plan::{ShardPlan, Shuffle};

/// Why the test's files can be read and its processes be started.
const OWN: &str = "they are the test's own";
const KILLS: u64 = 5;
const BATCH: u32 = 4;
const SEED: u64 = 1;
const DEADLINE: Duration = Duration::from_mins(2);

/// A folder that goes when the test passes.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let folder = format!("synfire-shards-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect(OWN);
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Packs 60 + 12 pictures of three classes and many sizes.
    fn pack(&self) -> String {
        for (split, num) in [("train", 60_u8), ("test", 12)] {
            for i in 0..num {
                let folder = self.0.join(format!("tree/{split}/class{}", i % 3));
                fs::create_dir_all(&folder).expect(OWN);
                let picture = png(40 + u32::from(i), 70 - u32::from(i), i);
                fs::write(folder.join(format!("{i:03}.png")), picture).expect(OWN);
            }
        }
        let out = self.path("packed");
        let mut pack = Command::new(env!("CARGO_BIN_EXE_synfire"));
        pack.args(["pack", "folder", "--source", &self.path("tree")]);
        finished(pack.args(["--out", &out]));
        out
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Stripes of a colour and a width that differ from picture to picture.
fn png(width: u32, height: u32, number: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let stripe = 3 + u32::from(number % 5);
    let pixels: Vec<u8> = (0..width * height)
        .flat_map(|at| {
            let lit = (at % width / stripe).is_multiple_of(2);
            let value = if lit { 3 * number } else { 250 - number };
            [value, value / 2, 255 - value]
        })
        .collect();
    let mut writer = encoder.write_header().expect(OWN);
    writer.write_image_data(&pixels).expect(OWN);
    writer.finish().expect(OWN);
    bytes
}

fn train(data: &str, folder: &str, every_batches: Option<u64>, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_synfire"));
    command.arg("train");
    let (data, folder) = (format!("data.path={data}"), format!("run.folder={folder}"));
    let (batch, seed) = (format!("data.batch={BATCH}"), format!("run.seed={SEED}"));
    let every = every_batches.map(|every| format!("checkpoint.every_batches={every}"));
    for set in [
        "data.source=packed",
        &data,
        "data.side=16",
        &batch,
        &seed,
        "data.augment=standard",
        "model.width=0.25",
        "algorithm.time_steps=2",
        "run.epochs=3",
        "run.threads=1",
        &folder,
    ] {
        command.args(["--set", set]);
    }
    if let Some(every) = every {
        command.args(["--set", &every]);
    }
    command.args(more).stdin(Stdio::null());
    command
}

fn finished(command: &mut Command) -> Output {
    let output = command.output().expect(OWN);
    assert!(output.status.success(), "{}", text(&output));
    output
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// Batches before each checkpoint.
fn checkpoints(folder: &str) -> Vec<u64> {
    let entries = fs::read_dir(Path::new(folder).join("checkpoints"));
    let names = entries.map_or_else(|_| Vec::new(), Iterator::collect);
    let names = names.into_iter().map(|entry| entry.expect(OWN).file_name());
    let names = names.map(|name| name.into_string().expect(OWN));
    names.filter_map(|name| manifest_number(&name)).collect()
}

/// The batches that the first epoch has before the one with this sample.
fn batches_before(index: &Index, sample: u32) -> u64 {
    let lens = index.train.shards().iter().map(|shard| shard.len() as u64);
    let plan = ShardPlan::new(SEED, index.fingerprint(), Shuffle::Full, lens, BATCH);
    let plan = plan.expect(OWN);
    let order = plan.order(Epoch(0));
    let mut batches = 0..plan.num_batches();
    let found = batches.find(|&batch| order.batch(batch).any(|at| at == sample));
    found.expect(OWN).into()
}

#[test]
fn killed_and_resumed_a_run_from_shards_ends_with_the_same_bytes() {
    let scratch = Scratch::new("kill");
    let data = scratch.pack();
    let (whole, killed) = (scratch.path("whole"), scratch.path("killed"));
    let (expected, got) = (scratch.path("expected"), scratch.path("got"));
    finished(&mut train(
        &data,
        &whole,
        Some(1),
        &["--save-weights", &expected],
    ));
    let newest = || {
        let entries = fs::read_dir(Path::new(&killed).join("checkpoints")).ok()?;
        let names = entries.map(|entry| entry.expect(OWN).file_name().into_string().expect(OWN));
        let numbers = names.filter_map(|name| name.strip_suffix(".json")?.parse::<u64>().ok());
        numbers.max()
    };
    for kill in 1..=KILLS {
        let mut command = train(&data, &killed, Some(1), &[]);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect(OWN);
        let begin = Instant::now();
        // 45 batches in all: each life does some of them.
        while newest().unwrap_or(0) < 7 * kill {
            assert!(begin.elapsed() < DEADLINE, "no checkpoint in time");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(mix(kill) % 3000));
        child.kill().expect(OWN);
        let _ = child.wait();
    }
    // With other threads and another place for the same shards.
    let copy = scratch.path("copy");
    fs::rename(&data, &copy).expect(OWN);
    let rest = [
        "--save-weights",
        &got,
        "--set",
        "data.workers=1",
        "--set",
        "run.threads=2",
    ];
    let output = finished(&mut train(&copy, &killed, Some(1), &rest));
    assert!(text(&output).contains("resumed from"), "{}", text(&output));
    assert!(fs::read(&expected).expect(OWN) == fs::read(&got).expect(OWN));
}

/// A set in which a picture's end is overwritten, in the middle of the first epoch.
struct Spoilt {
    sample: u32,
    /// Batches that are whole before it.
    batches: u64,
    shard: Vec<u8>,
    index: String,
}

impl Spoilt {
    /// Which picture that is depends on the digest of the shard, and so on the picture.
    fn of(data: &Path) -> Self {
        let text = fs::read_to_string(data.join("index.json")).expect(OWN);
        let index = Index::parse(text.as_bytes(), "index.json").expect(OWN);
        let [shard] = index.train.shards() else {
            panic!("a set this small has one shard");
        };
        let whole = fs::read(data.join(&shard.path)).expect(OWN);
        let spoilt = (0..60).map(|sample| {
            let place = index.train.sample(sample.into()).expect(OWN);
            let end = usize::try_from(place.offset + place.len_bytes).expect(OWN);
            let mut bytes = whole.clone();
            bytes[end - 20..end].fill(0);
            let text = text.replace(&shard.sha256, &Digest::of(&bytes).to_string());
            let index = Index::parse(text.as_bytes(), "index.json").expect(OWN);
            Self {
                sample,
                batches: batches_before(&index, sample),
                shard: bytes,
                index: text,
            }
        });
        let mut late = spoilt.filter(|spoilt| (5..10).contains(&spoilt.batches));
        late.next().expect(OWN)
    }

    fn write_shard(&self, data: &Path) {
        fs::write(data.join("train-000000.tar"), &self.shard).expect(OWN);
    }

    fn write(&self, data: &Path) {
        self.write_shard(data);
        fs::write(data.join("index.json"), &self.index).expect(OWN);
    }
}

#[test]
fn a_bad_picture_stops_with_a_checkpoint_or_is_replaced() {
    let scratch = Scratch::new("bad");
    let data = scratch.pack();
    let spoilt = Spoilt::of(Path::new(&data));
    let folder = scratch.path("run");

    // A set this small is read whole, and its shard is not the one that was packed.
    spoilt.write_shard(Path::new(&data));
    let output = train(&data, &folder, None, &[]).output().expect(OWN);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output);
    assert!(
        error.contains("train-000000.tar: it does not have the SHA-256"),
        "{error}"
    );
    assert!(checkpoints(&folder).is_empty());

    // A picture that was bad when it was packed.
    spoilt.write(Path::new(&data));
    let output = train(&data, &folder, None, &[]).output().expect(OWN);
    assert_eq!(output.status.code(), Some(1));
    let (error, sample) = (text(&output), spoilt.sample);
    for part in [
        &*format!("train-000000.tar: sample {sample}, at byte"),
        "data.on_bad_sample = \"replace\"",
        "the PNG",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    // Nothing else than the stop saves so early.
    assert_eq!(checkpoints(&folder), [spoilt.batches]);

    let replace = ["--set", "data.on_bad_sample=replace"];
    let (expected, got) = (scratch.path("expected"), scratch.path("got"));
    let more = [&replace[..], &["--save-weights", &got]].concat();
    let output = text(&finished(&mut train(&data, &folder, Some(1), &more)));
    let replaced = format!("sample {} took its place", (sample + 1) % 60);
    assert!(output.contains(&replaced), "{output}");
    assert!(output.contains("resumed from"), "{output}");
    // What was learnt before the stop counts: the bits are those of one run.
    let more = [&replace[..], &["--save-weights", &expected]].concat();
    let other = scratch.path("other");
    finished(&mut train(&data, &other, Some(1), &more));
    assert!(fs::read(&expected).expect(OWN) == fs::read(&got).expect(OWN));
    let listed = fs::read_to_string(Path::new(&other).join("bad_samples.jsonl")).expect(OWN);
    assert_eq!(listed.lines().count(), 1, "{listed}");
    assert!(listed.contains(&format!("sample {sample}")), "{listed}");
}

#[test]
fn a_run_that_an_error_ends_tells_that_its_last_checkpoint_failed() {
    let scratch = Scratch::new("unsaved");
    let data = scratch.pack();
    Spoilt::of(Path::new(&data)).write(Path::new(&data));
    let folder = scratch.path("run");
    let sets = [
        "data.source=packed".to_owned(),
        format!("data.path={data}"),
        "data.side=16".into(),
        format!("data.batch={BATCH}"),
        "model.width=0.25".into(),
        "algorithm.time_steps=2".into(),
        format!("run.folder={folder}"),
    ];
    let run = Run::from_toml(QUICKSTART, "quickstart.toml", &sets).expect(OWN);
    let (mut ends, mut warnings) = (Vec::new(), Vec::new());
    let checkpoints = Path::new(&folder).join("checkpoints");
    let result = train::train(&run, &Options::default(), &mut |event| {
        if matches!(event, Event::Recording { .. }) {
            // From now on nothing can be written there.
            let _ = fs::remove_dir_all(&checkpoints);
            fs::write(&checkpoints, "in the way").expect(OWN);
        } else if let Event::CheckpointEnded { bytes, .. } = event {
            ends.push(bytes);
        } else if let Event::Warning(warning) = event {
            warnings.push(warning);
        }
    });
    // The first error is the run's.
    let error = result.expect_err(OWN);
    assert!(matches!(error, TrainError::Data(_)), "{error}");
    assert_eq!(ends, [None]);
    let told = warnings.join("\n");
    assert!(told.contains("cannot write"), "{told}");
    assert!(
        told.contains("the last checkpoint is not written"),
        "{told}"
    );
}

/// Alters the bytes of a test picture, and the index with them.
fn damage_test(data: &str) {
    let path = Path::new(data).join("index.json");
    let text = fs::read_to_string(&path).expect(OWN);
    let index = Index::parse(text.as_bytes(), "index.json").expect(OWN);
    let place = index.test.sample(2).expect(OWN);
    let named = &index.test.shards()[0];
    let shard = Path::new(data).join(&named.path);
    let mut bytes = fs::read(&shard).expect(OWN);
    let begin = usize::try_from(place.offset).expect(OWN);
    bytes[begin..begin + 8].fill(0);
    fs::write(&shard, &bytes).expect(OWN);
    let digest = synfire_shared::checkpoint::Digest::of(&bytes).to_string();
    fs::write(&path, text.replace(&named.sha256, &digest)).expect(OWN);
}

#[test]
fn a_test_picture_that_is_bad_loses_no_epoch() {
    let scratch = Scratch::new("bad-test");
    let data = scratch.pack();
    damage_test(&data);
    let (folder, other) = (scratch.path("run"), scratch.path("other"));
    for times in 1..=2 {
        // Again and again: the test comes, the epoch is not learnt from again.
        let output = train(&data, &folder, None, &[]).output().expect(OWN);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let error = text(&output);
        assert!(error.contains("test-000000.tar: sample 2"), "{error}");
        assert_eq!(
            error.contains("epoch 1, after 15 of its batches"),
            times == 2
        );
        assert!(
            Path::new(&folder)
                .join("checkpoints/000000000015.json")
                .exists()
        );
    }
    let (expected, got) = (scratch.path("expected"), scratch.path("got"));
    let replace = ["--set", "data.on_bad_sample=replace", "--save-weights"];
    let output = finished(&mut train(
        &data,
        &folder,
        None,
        &[&replace[..], &[&got]].concat(),
    ));
    assert!(
        text(&output).contains("left out of the test"),
        "{}",
        text(&output)
    );
    finished(&mut train(
        &data,
        &other,
        None,
        &[&replace[..], &[&expected]].concat(),
    ));
    assert!(fs::read(&expected).expect(OWN) == fs::read(&got).expect(OWN));
    for folder in [&folder, &other] {
        let lines = fs::read_to_string(Path::new(folder).join("metrics.jsonl")).expect(OWN);
        assert_eq!(lines.lines().count(), 3, "{lines}");
    }
}

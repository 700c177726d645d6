//! Training from shards, as a user calls it: killed and resumed, with pictures that do not decode.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use synfire_shared::dataset::Index;
use synfire_shared::random::mix;

/// Why the test's files can be read and its processes be started.
const OWN: &str = "they are the test's own";
const KILLS: u64 = 5;
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

fn train(data: &str, folder: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_synfire"));
    command.arg("train");
    let (data, folder) = (format!("data.path={data}"), format!("run.folder={folder}"));
    for set in [
        "data.source=packed",
        &data,
        "data.side=16",
        "data.batch=4",
        "data.augment=standard",
        "model.width=0.25",
        "algorithm.time_steps=2",
        "run.epochs=3",
        "run.threads=1",
        "checkpoint.every_batches=1",
        &folder,
    ] {
        command.args(["--set", set]);
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

fn num_checkpoints(folder: &str) -> usize {
    let entries = fs::read_dir(Path::new(folder).join("checkpoints"));
    entries.map_or(0, |entries| {
        let names = entries.map(|entry| entry.expect(OWN).file_name());
        names
            .filter(|name| name.to_string_lossy().ends_with(".json"))
            .count()
    })
}

#[test]
fn killed_and_resumed_a_run_from_shards_ends_with_the_same_bytes() {
    let scratch = Scratch::new("kill");
    let data = scratch.pack();
    let (whole, killed) = (scratch.path("whole"), scratch.path("killed"));
    let (expected, got) = (scratch.path("expected"), scratch.path("got"));
    finished(&mut train(&data, &whole, &["--save-weights", &expected]));
    let newest = || {
        let entries = fs::read_dir(Path::new(&killed).join("checkpoints")).ok()?;
        let names = entries.map(|entry| entry.expect(OWN).file_name().into_string().expect(OWN));
        let numbers = names.filter_map(|name| name.strip_suffix(".json")?.parse::<u64>().ok());
        numbers.max()
    };
    for kill in 1..=KILLS {
        let mut command = train(&data, &killed, &[]);
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
    let output = finished(&mut train(&copy, &killed, &rest));
    assert!(text(&output).contains("resumed from"), "{}", text(&output));
    assert!(fs::read(&expected).expect(OWN) == fs::read(&got).expect(OWN));
}

#[test]
fn a_bad_picture_stops_with_a_checkpoint_or_is_replaced() {
    let scratch = Scratch::new("bad");
    let data = scratch.pack();
    // The last training picture of the shard.
    let index = fs::read(Path::new(&data).join("index.json")).expect(OWN);
    let index = Index::parse(&index, "index.json").expect(OWN);
    let place = index.train.sample(59).expect(OWN);
    let shard = Path::new(&data).join(&index.train.shards()[0].path);
    let mut bytes = fs::read(&shard).expect(OWN);
    let begin = usize::try_from(place.offset).expect(OWN);
    let end = begin + usize::try_from(place.len_bytes).expect(OWN);
    bytes[end - 20..end].fill(0);
    fs::write(&shard, &bytes).expect(OWN);
    let folder = scratch.path("run");

    // A set this small is read whole, and its shard is not the one that was packed.
    let output = train(&data, &folder, &[]).output().expect(OWN);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output);
    assert!(
        error.contains("train-000000.tar: it does not have the SHA-256"),
        "{error}"
    );

    // A picture that was bad when it was packed.
    let sha256 = index.train.shards()[0].sha256.clone();
    let mut whole = fs::read_to_string(Path::new(&data).join("index.json")).expect(OWN);
    let digest = synfire_shared::checkpoint::Digest::of(&bytes).to_string();
    whole = whole.replace(&sha256, &digest);
    fs::write(Path::new(&data).join("index.json"), whole).expect(OWN);
    let output = train(&data, &folder, &[]).output().expect(OWN);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output);
    for part in [
        "train-000000.tar: sample 59, at byte",
        "data.on_bad_sample = \"replace\"",
        "the PNG",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let before = num_checkpoints(&folder);

    let replace = ["--set", "data.on_bad_sample=replace"];
    let (expected, got) = (scratch.path("expected"), scratch.path("got"));
    let more = [&replace[..], &["--save-weights", &got]].concat();
    let output = text(&finished(&mut train(&data, &folder, &more)));
    assert!(
        output.contains("sample 0 took its place"),
        "{before} checkpoints: {output}"
    );
    if before > 0 {
        assert!(output.contains("resumed from"), "{output}");
    }
    // What was learnt before the stop counts: the bits are those of one run.
    let more = [&replace[..], &["--save-weights", &expected]].concat();
    let other = scratch.path("other");
    finished(&mut train(&data, &other, &more));
    assert!(fs::read(&expected).expect(OWN) == fs::read(&got).expect(OWN));
    let listed = fs::read_to_string(Path::new(&other).join("bad_samples.jsonl")).expect(OWN);
    assert_eq!(listed.lines().count(), 1, "{listed}");
    assert!(listed.contains("sample 59"), "{listed}");
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
    let seldom = ["--set", "checkpoint.every_batches=1000"];
    for times in 1..=2 {
        // Again and again: the test comes, the epoch is not learnt from again.
        let output = train(&data, &folder, &seldom).output().expect(OWN);
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
        &[&replace[..], &[&expected]].concat(),
    ));
    assert!(fs::read(&expected).expect(OWN) == fs::read(&got).expect(OWN));
    for folder in [&folder, &other] {
        let lines = fs::read_to_string(Path::new(folder).join("metrics.jsonl")).expect(OWN);
        assert_eq!(lines.lines().count(), 3, "{lines}");
    }
}

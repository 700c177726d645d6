//! A run that is killed at any moment and resumed ends with the bits of one that never was; what
//! is damaged or foreign is refused.
//!
//! Here and not in the crate of claims, because Cargo tells the path of a binary to the tests of
//! its own package alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use synfire_shared::checkpoint::manifest_number;
use synfire_shared::random::mix;

/// Kills in the test that runs everywhere; `SYNFIRE_KILLS` asks for more (CONTRIBUTING.md).
const KILLS: u64 = 30;
/// Batches of a run that is ended before, on any machine.
const FOREVER: u64 = 200_000;
/// A life that makes no progress for so long has hung.
const DEADLINE: Duration = Duration::from_mins(2);

/// Why the test's files can be read and its processes be started.
const OWN: &str = "they are the test's own";

/// A folder that goes when the test passes.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let folder = format!("synfire-resume-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect(OWN);
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// A tiny run of so many batches.
fn train(folder: &Path, batches: u64, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_synfire"));
    command.arg("train");
    let folder = format!("run.folder={}", folder.display());
    let batches = format!("run.max_batches={batches}");
    for set in [
        "model.width=0.25",
        "algorithm.time_steps=2",
        "data.batch=16",
        "run.threads=1",
        "checkpoint.every_batches=1",
        &folder,
        &batches,
    ] {
        command.args(["--set", set]);
    }
    command.args(more).stdin(Stdio::null());
    command
}

/// A process that ends with the test.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Self {
        Self(command.spawn().expect(OWN))
    }

    /// Waits for its end; the exit status.
    fn code(&mut self) -> Option<i32> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect(OWN) {
                return status.code();
            }
            assert!(begin.elapsed() < DEADLINE, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn finished(mut command: Command) -> Output {
    let output = command.output().expect(OWN);
    assert!(output.status.success(), "{}", text(&output));
    output
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

fn manifests(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder.join("checkpoints")) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.expect(OWN).file_name().into_string().expect(OWN));
    let mut names: Vec<String> = names.collect();
    names.retain(|name| manifest_number(name).is_some());
    names.sort();
    names
}

/// The file of a checkpoint's weights.
fn part_of(folder: &Path, manifest: &str) -> String {
    let parts = fs::read_dir(folder.join("checkpoints")).expect(OWN);
    let mut names = parts.map(|part| part.expect(OWN).file_name().into_string().expect(OWN));
    let start = format!("{}-", &manifest[..12]);
    let is_it = |name: &String| name.starts_with(&start) && name.contains("weights");
    names.find(is_it).expect(OWN)
}

fn newest(folder: &Path) -> u64 {
    let names = manifests(folder);
    let number = names.last().and_then(|name| manifest_number(name));
    number.unwrap_or(0)
}

/// Waits until a checkpoint of at least so many batches is there, or the process has ended.
fn wait_for(child: &mut Child, folder: &Path, batches: u64) {
    let begin = Instant::now();
    while newest(folder) < batches && child.try_wait().expect(OWN).is_none() {
        assert!(
            begin.elapsed() < DEADLINE,
            "no checkpoint after {batches} batches"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The lines of an epoch without what a clock or the system has measured.
fn numbers(folder: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).expect(OWN);
    let line = |line: &str| {
        let mut line: serde_json::Value = serde_json::from_str(line).expect(OWN);
        let fields = line.as_object_mut().expect(OWN);
        for measured in [
            "images_per_second",
            "train_seconds",
            "data_wait_seconds",
            "exchange_wait_seconds",
            "resident_mib",
            "peak_resident_mib",
        ] {
            assert!(fields.remove(measured).is_some(), "{measured}");
        }
        // Sums are joined at checkpoints, and where those fall is a matter of time.
        let loss = fields["loss"].as_f64().expect(OWN);
        fields["loss"] = format!("{loss:.10}").into();
        line
    };
    text.lines().map(line).collect()
}

#[test]
fn killed_at_any_moment_and_resumed_a_run_ends_with_the_same_bytes() {
    let kills =
        std::env::var("SYNFIRE_KILLS").map_or(KILLS, |n| n.parse().expect("a number of kills"));
    let batches = 10 * kills;
    let scratch = Scratch::new("kill");
    let (whole, killed) = (scratch.path("whole"), scratch.path("killed"));
    let weights = |name: &str| scratch.path(name).display().to_string();
    let (expected, got) = (weights("expected.safetensors"), weights("got.safetensors"));
    finished(train(&whole, batches, &["--save-weights", &expected]));

    let (mut landed, mut lives) = (0, 0);
    while landed < kills {
        // Keyed: the same moments as far as a clock can give them.
        let draw = mix(0x5eed ^ mix(lives));
        lives += 1;
        let mut command = train(&killed, batches, &[]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let before = newest(&killed);
        let mut child = command.spawn().expect(OWN);
        // Some die while they start, before they have done anything; the others soon after they
        // have, in a batch, in a write, between two.
        let soon = Duration::from_micros(draw / 16 % 4000);
        if draw.is_multiple_of(8) {
            std::thread::sleep(soon * 10);
        } else if before + 1 < batches {
            // The last third is for a machine so busy that this thread comes too late.
            let room = (batches - batches / 3).saturating_sub(before) / (kills - landed);
            wait_for(
                &mut child,
                &killed,
                before + 1 + draw / 65536 % (room / 2).max(1),
            );
            std::thread::sleep(soon);
        }
        child.kill().expect(OWN);
        let status = child.wait().expect(OWN);
        landed += u64::from(!status.success());
        assert!(
            newest(&killed) < batches,
            "{landed} kills: the run was over too soon"
        );
    }
    println!(
        "{landed} kills in {lives} lives, the last at batch {} of {batches}",
        newest(&killed)
    );
    let rest = finished(train(&killed, batches, &["--save-weights", &got]));
    assert!(text(&rest).contains("resumed from"), "{}", text(&rest));
    assert!(fs::read(&expected).expect(OWN) == fs::read(&got).expect(OWN));
    assert_eq!(numbers(&whole), numbers(&killed));
    // Nothing is left over: three newest and the best, three parts each.
    let left = fs::read_dir(killed.join("checkpoints")).expect(OWN).count();
    assert!(left <= 16, "{left} files");
}

#[test]
fn a_run_over_the_end_of_an_epoch_resumes_to_the_same_bytes() {
    let scratch = Scratch::new("epoch");
    let sets = ["--set", "data.batch=2000", "--set", "run.epochs=2"];
    let weights = scratch.path("w.safetensors").display().to_string();
    let mut lines = Vec::new();
    let mut bytes = Vec::new();
    for (name, stops) in [("whole", &[10][..]), ("pieces", &[3, 5, 7, 10])] {
        let folder = scratch.path(name);
        for &stop in stops {
            finished(train(
                &folder,
                stop,
                &[&sets[..], &["--save-weights", &weights]].concat(),
            ));
        }
        lines.push(numbers(&folder));
        bytes.push(fs::read(&weights).expect(OWN));
    }
    assert_eq!((lines[0].len(), &lines[0]), (2, &lines[1]));
    assert!(bytes[0] == bytes[1]);
}

#[cfg(unix)]
#[test]
fn a_signal_saves_and_the_status_says_which() {
    for (signal, status) in [("TERM", 143), ("INT", 130)] {
        let scratch = Scratch::new(signal);
        let folder = scratch.path("run");
        let mut command = train(&folder, FOREVER, &["--set", "run.epochs=99999"]);
        command.args(["--set", "checkpoint.every_batches=2"]);
        command.stdout(Stdio::null());
        let mut child = Running::start(command);
        wait_for(&mut child.0, &folder, 2);
        let sent = Command::new("kill")
            .args(["-s", signal, &child.0.id().to_string()])
            .status();
        assert!(sent.expect(OWN).success());
        assert_eq!(child.code(), Some(status), "{signal}");
        let saved = newest(&folder);
        assert!((2..FOREVER).contains(&saved));
        let epochs = ["--set", "run.epochs=99999"];
        let again = text(&finished(train(&folder, saved + 1, &epochs)));
        assert!(again.contains(&format!("{saved:012}.json")), "{again}");
    }
}

/// The manifests of a run of six batches: only the last of each process, as a busy writer leaves out others.
fn three_checkpoints(folder: &Path) -> Vec<String> {
    for batches in [2, 4, 6] {
        finished(train(
            folder,
            batches,
            &["--set", "checkpoint.every_batches=9"],
        ));
    }
    let all = manifests(folder);
    assert_eq!(all.len(), 3, "{all:?}");
    all
}

#[test]
fn damaged_checkpoints_give_way_and_foreign_ones_are_refused() {
    let scratch = Scratch::new("damage");
    let folder = scratch.path("run");
    let all = three_checkpoints(&folder);
    let refused = |more: &[&str], reason: &str| {
        let output = train(&folder, 8, more).output().expect(OWN);
        assert!(
            !output.status.success() && text(&output).contains(reason),
            "{}",
            text(&output)
        );
    };
    refused(
        &["--set", "optimiser.lr=0.3"],
        "optimiser.lr is 0.1 there, 0.3 here",
    );
    refused(&["--resume", "never"], "has the checkpoints of a run");
    refused(
        &["--resume", "ftp://host/run"],
        "use a path, file://, s3://",
    );
    let nowhere = scratch.path("nowhere").display().to_string();
    refused(&["--resume", &nowhere], "there is no checkpoint in");
    assert_eq!(manifests(&folder), all, "a refusal changes nothing");

    // What cannot be read now may be whole: nothing older is used, and nothing is put aside.
    #[cfg(unix)]
    for name in [&all[2], &part_of(&folder, &all[2])] {
        let (path, whole) = (folder.join("checkpoints").join(name), scratch.path("whole"));
        fs::rename(&path, &whole).expect(OWN);
        std::os::unix::fs::symlink(&path, &path).expect(OWN);
        refused(&[], "cannot be read now");
        fs::remove_file(&path).expect(OWN);
        fs::rename(&whole, &path).expect(OWN);
        assert_eq!(manifests(&folder), all);
    }

    // The newest manifest is cut off, a part of the one before is altered.
    let newest = folder.join("checkpoints").join(&all[2]);
    let manifest = fs::read(&newest).expect(OWN);
    fs::write(&newest, &manifest[..manifest.len() / 2]).expect(OWN);
    let part = folder.join("checkpoints").join(part_of(&folder, &all[1]));
    let mut bytes = fs::read(&part).expect(OWN);
    *bytes.last_mut().expect(OWN) ^= 1;
    fs::write(&part, bytes).expect(OWN);
    refused(&["--resume", &newest.display().to_string()], "damaged");
    let output = text(&finished(train(&folder, 8, &[])));
    assert!(output.contains("warning: checkpoint"), "{output}");
    assert!(
        output.contains("it is altered; the next older one is tried"),
        "{output}"
    );
    assert!(output.contains(&format!("{}: epoch 1", all[0])), "{output}");

    // All are damaged: a new start would hide that.
    let all = manifests(&folder);
    for name in &all {
        fs::write(folder.join("checkpoints").join(name), "{}").expect(OWN);
    }
    refused(&[], &format!("none of the {} checkpoints", all.len()));
}

#[test]
fn an_older_checkpoint_is_resumed_in_another_folder_alone() {
    let scratch = Scratch::new("older");
    let (folder, other) = (scratch.path("run"), scratch.path("other"));
    let all = three_checkpoints(&folder);
    let at = |name: &String| {
        let manifest = folder.join("checkpoints").join(name);
        manifest.display().to_string()
    };
    let metrics = || fs::read_to_string(folder.join("metrics.jsonl")).expect(OWN);
    let before = metrics();
    let refused = train(&folder, 8, &["--resume", &at(&all[1])]).output();
    let refused = refused.expect(OWN);
    let error = text(&refused);
    assert_eq!(refused.status.code(), Some(1), "{error}");
    for part in [
        &*all[1],
        "is older than",
        &all[2],
        "give another run.folder",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!((manifests(&folder), metrics()), (all.clone(), before));
    let newest = text(&finished(train(&folder, 7, &["--resume", &at(&all[2])])));
    assert!(newest.contains(&all[2]), "{newest}");
    let older = text(&finished(train(&other, 8, &["--resume", &at(&all[1])])));
    assert!(older.contains(&all[1]), "{older}");

    // Where all of the own folder is damaged, a checkpoint elsewhere is a way out.
    let damaged = manifests(&folder);
    for name in &damaged {
        fs::write(folder.join("checkpoints").join(name), "{}").expect(OWN);
    }
    let from = other.display().to_string();
    let output = text(&finished(train(&folder, 9, &["--resume", &from])));
    assert!(output.contains(&format!("resumed from {from}")), "{output}");
    assert_eq!(newest_and_aside(&folder), (9, damaged.len()));
}

/// The newest checkpoint, and how many damaged ones were put aside.
fn newest_and_aside(folder: &Path) -> (u64, usize) {
    let entries = fs::read_dir(folder.join("checkpoints")).expect(OWN);
    let names = entries.map(|entry| entry.expect(OWN).file_name().into_string().expect(OWN));
    let aside = names.filter(|name| name.ends_with(".json.damaged")).count();
    (newest(folder), aside)
}

#[test]
fn a_folder_that_a_process_writes_to_is_refused_until_that_is_killed() {
    let scratch = Scratch::new("lock");
    let folder = scratch.path("run");
    let epochs = ["--set", "run.epochs=99999"];
    let mut first = Running::start(train(&folder, FOREVER, &epochs));
    wait_for(&mut first.0, &folder, 2);
    let second = train(&folder, 3, &epochs).output().expect(OWN);
    let told = text(&second);
    assert!(!second.status.success(), "{told}");
    let error = format!("another process is writing to {}", folder.display());
    assert!(told.contains(&error), "{told}");
    drop(first);
    let at = newest(&folder);
    let again = text(&finished(train(&folder, at + 1, &epochs)));
    assert!(again.contains("resumed from"), "{again}");
}

#[test]
fn the_report_of_a_resumed_run_has_all_epochs() {
    let scratch = Scratch::new("report");
    let folder = scratch.path("run");
    let sets = ["--set", "data.batch=2500", "--set", "run.epochs=3"];
    let rows = || {
        let html = fs::read_to_string(folder.join("report.html")).expect(OWN);
        let rows = html.split("<summary>Epochs").nth(1).expect(OWN);
        let table = rows.split("</table>").next().expect(OWN);
        table.matches("<tr><td>").count()
    };
    // Four batches an epoch: the second process begins in the second and ends in the third.
    for (batches, epochs) in [(6, 2), (10, 3), (12, 3)] {
        finished(train(&folder, batches, &sets));
        assert_eq!(rows(), epochs);
    }
    // One that was killed before it wrote its last is mended by the next start.
    fs::remove_file(folder.join("report.html")).expect(OWN);
    finished(train(&folder, 12, &sets));
    assert_eq!(rows(), 3);
    // That it cannot be written is no end of a run.
    fs::remove_file(folder.join("report.html")).expect(OWN);
    fs::create_dir_all(folder.join("report.html/taken")).expect(OWN);
    let told = text(&finished(train(&folder, 12, &sets)));
    assert!(told.contains("warning: cannot write"), "{told}");
    assert!(told.contains("report.html"), "{told}");
}

#[test]
fn evaluate_gives_what_training_gave() {
    let scratch = Scratch::new("evaluate");
    let folder = scratch.path("run");
    let output = text(&finished(train(&folder, 3, &[])));
    let line = output
        .lines()
        .find(|line| line.starts_with("test accuracy after"))
        .expect(OWN);
    let accuracy = line.rsplit_once("  ").expect(OWN).1;
    let mut evaluate = Command::new(env!("CARGO_BIN_EXE_synfire"));
    evaluate.args(["evaluate", "--checkpoint", &folder.display().to_string()]);
    let evaluated = text(&finished(evaluate));
    assert!(
        evaluated.contains(&format!("test accuracy  {accuracy}")),
        "{evaluated} {line}"
    );
    assert!(
        evaluated.contains("000000000003.json: 2000 test images"),
        "{evaluated}"
    );
}

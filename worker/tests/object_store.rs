//! Runs whose folder lies in an object store: killed, cut off, damaged, fought over; and that no
//! secret is told. The store is a server on loopback, `s3/`, which can fail on purpose.
#![allow(
    clippy::unwrap_used,
    reason = "a helper that fails fails the test that called it"
)]

#[expect(dead_code, reason = "another test needs the rest")]
mod s3;

use s3::{BUCKET, Fault, SECRET, Server, TOKEN};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use synfire_shared::checkpoint::{Digest, Manifest, manifest_number};
use synfire_shared::random::mix;

/// Kills in the test that runs everywhere; `SYNFIRE_KILLS` asks for more (CONTRIBUTING.md).
const KILLS: u64 = 6;
/// What is waited for is there by then, or never.
const DEADLINE: Duration = Duration::from_mins(2);
/// Every so many requests one fails, in the runs that must not mind.
const FAILS_ONE_IN: u64 = 16;

/// A folder of this machine that goes when the test passes.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let folder = format!("synfire-object-store-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

fn url(name: &str) -> String {
    format!("s3://{BUCKET}/{name}")
}

/// Where the data of all runs here come from: the one place that says so.
const DATA: [&str; 1] = ["data.source=fashion-mnist-subset"];

/// A command that finds the server, waits little and looks for a killed owner for a second alone.
fn synfire(server: &Server, verb: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_synfire"));
    server.environment(&mut command);
    command
        .arg(verb)
        .env("SYNFIRE_STORE_DEADLINE_SECONDS", "10")
        .env("SYNFIRE_STORE_LEASE_SECONDS", "1")
        .stdin(Stdio::null());
    command
}

/// A tiny run of so many batches in the folder of that name.
fn train(server: &Server, folder: &str, batches: u64, more: &[&str]) -> Command {
    let mut command = synfire(server, "train");
    let folder = format!("run.folder={}", url(folder));
    let batches = format!("run.max_batches={batches}");
    let own = [
        "model.width=0.25",
        "algorithm.time_steps=2",
        "data.batch=16",
        "run.threads=1",
        "checkpoint.every_batches=1",
        &folder,
        &batches,
    ];
    for set in own.into_iter().chain(DATA) {
        command.args(["--set", set]);
    }
    command.args(more);
    command
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

fn finished(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// The one error of a command that must fail.
fn refused(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{}", text(&output));
    let text = String::from_utf8(output.stderr).unwrap();
    let errors: Vec<&str> = text.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{text}");
    assert!(!text.contains("panicked"), "{text}");
    errors[0].to_owned()
}

/// The numbers of the checkpoints that are there, after a check that each is whole.
fn checkpoints(server: &Server, folder: &str) -> Vec<u64> {
    let objects = server.contents(&format!("{folder}/checkpoints/"));
    let manifests = objects.iter().filter_map(|(name, bytes)| {
        let number = manifest_number(name)?;
        let manifest = Manifest::parse(bytes).unwrap();
        for part in manifest.parts.values() {
            let bytes = objects.get(&part.name);
            assert!(
                bytes.is_some_and(|b| Digest::of(b) == part.sha256),
                "{name}"
            );
        }
        Some(number)
    });
    manifests.collect()
}

fn newest(server: &Server, folder: &str) -> u64 {
    let objects = server.contents(&format!("{folder}/checkpoints/"));
    let numbers = objects.keys().filter_map(|name| manifest_number(name));
    numbers.max().unwrap_or(0)
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < DEADLINE, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a checkpoint of at least so many batches is there, or the process has ended.
fn wait_for_batches(server: &Server, folder: &str, child: &mut Child, batches: u64) {
    wait_for(&format!("no checkpoint after {batches} batches"), || {
        newest(server, folder) >= batches || child.try_wait().unwrap().is_some()
    });
}

/// What a process says that ends by itself, or else is ended.
fn ended(mut child: Child) -> Output {
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() && begin.elapsed() < DEADLINE {
        thread::sleep(Duration::from_millis(10));
    }
    // It is no error that it has ended.
    let _ = child.kill();
    child.wait_with_output().unwrap()
}

/// The lines of the epochs, without what a clock or the system has measured.
fn numbers(server: &Server, folder: &str) -> Vec<serde_json::Value> {
    let lines = server.contents(folder)["/metrics.jsonl"].clone();
    let line = |line: &str| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        let fields = line.as_object_mut().unwrap();
        fields.retain(|name, _| {
            !name.ends_with("_mib") && !name.contains("seconds") && name != "images_per_second"
        });
        // Sums are joined at checkpoints, and where those fall is a matter of time.
        let loss = fields["loss"].as_f64().unwrap();
        fields["loss"] = format!("{loss:.10}").into();
        line
    };
    String::from_utf8(lines)
        .unwrap()
        .lines()
        .map(line)
        .collect()
}

/// Some requests fail in every way that a store has, at keyed draws.
fn fail_now_and_then(server: &Server) {
    server.fail(|method, _, number| {
        let draw = mix(0xfa11 ^ mix(number));
        let fault = match draw / FAILS_ONE_IN % 4 {
            0 => Fault::Status(500),
            1 => Fault::Status(503),
            2 => Fault::LostAnswer,
            _ if method == "GET" => Fault::TornBody,
            _ => Fault::Status(500),
        };
        draw.is_multiple_of(FAILS_ONE_IN).then_some(fault)
    });
}

#[test]
fn killed_at_any_moment_on_a_failing_store_a_run_ends_with_the_same_bytes() {
    let kills = std::env::var("SYNFIRE_KILLS").map_or(KILLS, |n| n.parse().unwrap());
    let batches = 10 * kills;
    let scratch = Scratch::new("kill");
    let server = Server::start();
    let (expected, got) = (scratch.path("expected"), scratch.path("got"));
    pack(&server, &scratch, 96 * u32::try_from(kills).unwrap());
    let path = format!("data.path={}", url("data"));
    let cache = format!("data.cache={}", scratch.path("cache"));
    let epochs = [
        "--set",
        "data.batch=64",
        "--set",
        "run.epochs=9",
        "--set",
        "data.source=packed",
        "--set",
        &path,
    ];
    let cached = [&epochs[..], &["--set", &cache]].concat();
    let uncached = [&epochs[..], &["--set", "data.cache_gib=0"]].concat();
    let with = |weights| [&cached[..], &["--save-weights", weights]].concat();
    finished(train(&server, "whole", batches, &with(&expected)));
    assert!(!server.contents("whole").contains_key("/owner.json"));

    fail_now_and_then(&server);
    let (mut landed, mut lives) = (0, 0);
    while landed < kills {
        // Keyed: the same moments as far as a clock can give them.
        let draw = mix(0x5eed ^ mix(lives));
        lives += 1;
        let before = newest(&server, "killed");
        let data = if lives % 2 == 0 { &uncached } else { &cached };
        let mut command = train(&server, "killed", batches, data);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let soon = Duration::from_micros(draw / 16 % 20_000);
        if draw.is_multiple_of(8) {
            thread::sleep(soon * 100);
        } else if before + 1 < batches {
            // The last third is for a machine so busy that this thread comes too late.
            let room = (batches - batches / 3).saturating_sub(before) / (kills - landed);
            let more = 1 + draw / 65536 % (room / 2).max(1);
            wait_for_batches(&server, "killed", &mut child, before + more);
            thread::sleep(soon);
        }
        child.kill().unwrap();
        landed += u64::from(!child.wait().unwrap().success());
        checkpoints(&server, "killed");
        assert!(
            newest(&server, "killed") < batches,
            "{landed} kills: over too soon"
        );
    }
    let at = newest(&server, "killed");
    println!("{landed} kills in {lives} lives, the last at batch {at} of {batches}");
    let rest = finished(train(&server, "killed", batches, &with(&got)));
    assert!(server.faults() > kills, "{} faults", server.faults());
    assert!(rest.contains("resumed from s3://bucket/killed/"), "{rest}");
    assert!(fs::read(&expected).unwrap() == fs::read(&got).unwrap());
    assert_eq!(numbers(&server, "whole"), numbers(&server, "killed"));
    assert_eq!(checkpoints(&server, "killed").last(), Some(&batches));
}

#[test]
fn a_run_folder_in_a_store_has_all_that_one_on_a_disk_has() {
    let server = Server::start();
    // Four batches an epoch.
    let epochs = ["--set", "data.batch=2500", "--set", "run.epochs=3"];
    for batches in [3, 7, 12] {
        finished(train(&server, "runs/1", batches, &epochs));
    }
    let folder = server.contents("runs/1/");
    let names: Vec<&str> = folder.keys().map(String::as_str).collect();
    for name in ["config.toml", "metrics.jsonl", "report.html", "version.txt"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(!names.contains(&"owner.json"), "{names:?}");
    assert!(checkpoints(&server, "runs/1").contains(&12));
    assert!(names.len() <= 4 + 4 * 4, "{names:?}");
    // The report of three processes has the epochs of all.
    let html = String::from_utf8(folder["report.html"].clone()).unwrap();
    assert!(
        html.contains("3 of 3 epochs, 12 of 12 batches: finished"),
        "{html}"
    );
    let rows = html.split("<summary>Epochs").nth(1).unwrap();
    let rows = rows
        .split("</table>")
        .next()
        .unwrap()
        .matches("<tr><td>")
        .count();
    assert_eq!((rows, numbers(&server, "runs/1").len()), (3, 3));
    // One more start finds nothing to do, and what it leaves is whole.
    let again = finished(train(&server, "runs/1", 12, &epochs));
    assert!(again.contains("nothing was left to train"), "{again}");
    let accuracy = numbers(&server, "runs/1")[2]["test_accuracy"]
        .as_f64()
        .unwrap();
    for checkpoint in ["", "/", "/checkpoints/000000000012.json"] {
        let mut evaluate = synfire(&server, "evaluate");
        evaluate.args(["--checkpoint", &format!("{}{checkpoint}", url("runs/1"))]);
        let output = finished(evaluate);
        let told = format!("test accuracy  {:.2} %", 100.0 * accuracy);
        assert!(output.contains(&told), "{output} {told}");
        let name = "s3://bucket/runs/1/checkpoints/000000000012.json: 2000 test images";
        assert!(output.contains(name), "{output}");
    }
    // From a manifest there into a folder on a disk.
    let scratch = Scratch::new("across");
    let mut across = train(&server, "other", 12, &epochs);
    across.args(["--set", &format!("run.folder={}", scratch.path("run"))]);
    let manifest = url("runs/1/checkpoints/000000000012.json");
    across.args(["--resume", &manifest]);
    let output = finished(across);
    assert!(
        output.contains(&format!("resumed from {manifest}")),
        "{output}"
    );
}

#[cfg(unix)]
#[test]
fn a_signal_saves_to_the_store() {
    let server = Server::start();
    let epochs = ["--set", "run.epochs=99999"];
    let more = [&["--set", "checkpoint.every_batches=2"], &epochs[..]].concat();
    let mut command = train(&server, "run", 200_000, &more);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    wait_for_batches(&server, "run", &mut child, 2);
    signal(&child, "TERM");
    assert_eq!(ended(child).status.code(), Some(143));
    let saved = newest(&server, "run");
    assert!(saved >= 2);
    let again = finished(train(&server, "run", saved + 1, &epochs));
    assert!(again.contains(&format!("{saved:012}.json")), "{again}");
}

#[cfg(unix)]
fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    let sent = Command::new("kill").args(["-s", name, &id]).status();
    assert!(sent.unwrap().success());
}

#[test]
fn a_store_that_is_gone_for_a_while_costs_checkpoints_and_no_run() {
    let mut server = Server::start();
    let more = ["--set", "run.epochs=100"];
    let mut command = train(&server, "run", 100_000, &more);
    command.env("SYNFIRE_STORE_DEADLINE_SECONDS", "1");
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    wait_for_batches(&server, "run", &mut child, 3);
    server.go_down();
    // Nothing that is written now arrives, and what was there stays as it was.
    let before = checkpoints(&server, "run");
    thread::sleep(Duration::from_secs(4));
    assert!(child.try_wait().unwrap().is_none(), "training goes on");
    assert_eq!(checkpoints(&server, "run"), before);
    server.come_back();
    let then = newest(&server, "run");
    wait_for_batches(&server, "run", &mut child, then + 3);
    #[cfg(unix)]
    signal(&child, "INT");
    let output = ended(child);
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    let told = text(&output);
    assert!(told.contains("warning: cannot "), "{told}");
    assert!(told.contains("s3://bucket/run/"), "{told}");
    assert!(told.contains("training goes on"), "{told}");
    assert!(!checkpoints(&server, "run").is_empty());
}

#[test]
fn a_store_that_stays_away_ends_a_run_with_one_error_and_the_committed_stays() {
    let mut server = Server::start();
    let mut command = train(&server, "run", 100_000, &["--set", "run.epochs=100"]);
    command.env("SYNFIRE_STORE_DEADLINE_SECONDS", "1");
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    wait_for_batches(&server, "run", &mut child, 3);
    server.go_down();
    let before = server.contents("run/checkpoints/");
    #[cfg(unix)]
    signal(&child, "INT");
    let output = ended(child);
    // Another try may mend it.
    assert_eq!(output.status.code(), Some(75), "{}", text(&output));
    let told = text(&output);
    let error = "error: the last checkpoint is not written, the one before is intact: cannot ";
    assert_eq!(told.matches("error: the last").count(), 1, "{told}");
    assert!(told.contains(error), "{told}");
    assert!(told.contains("check that the store is reachable"), "{told}");
    // A start without the store ends with one error, too.
    let mut command = train(&server, "run", 9, &[]);
    command.env("SYNFIRE_STORE_DEADLINE_SECONDS", "1");
    let error = refused(command);
    assert!(error.contains("s3://bucket/run/"), "{error}");
    assert!(
        error.contains("check that the store is reachable"),
        "{error}"
    );
    assert_eq!(server.contents("run/checkpoints/"), before);
    server.come_back();
    let then = *checkpoints(&server, "run").last().unwrap();
    let more = ["--set", "run.epochs=100"];
    let output = finished(train(&server, "run", then + 1, &more));
    assert!(output.contains(&format!("{then:012}.json")), "{output}");
}

#[test]
fn a_checkpoint_that_cannot_be_read_now_is_not_taken_for_damaged() {
    let server = Server::start();
    finished(train(&server, "run", 4, &[]));
    let before = server.contents("run/checkpoints/");
    for fault in [
        Fault::Status(500),
        Fault::Hang,
        Fault::LostAnswer,
        Fault::TornBody,
    ] {
        server.fail(move |method, key, _| {
            let is_newest = key.contains("000000000004-") && key.contains("weights");
            (method == "GET" && is_newest).then_some(fault)
        });
        let mut command = train(&server, "run", 6, &[]);
        command.env("SYNFIRE_STORE_DEADLINE_SECONDS", "1");
        let error = refused(command);
        assert!(
            error.contains("cannot read s3://bucket/run/checkpoints/"),
            "{error}"
        );
        assert_eq!(server.contents("run/checkpoints/"), before, "{fault:?}");
    }
    // Torn once, it is read on from where it tore.
    let mut torn = 0;
    server.fail(move |method, key, _| {
        let is_part = method == "GET" && key.contains("000000000004-");
        torn += u64::from(is_part);
        (is_part && torn % 2 == 1).then_some(Fault::TornBody)
    });
    let output = finished(train(&server, "run", 6, &[]));
    assert!(output.contains("000000000004.json"), "{output}");
}

/// Waits until nothing but the sign of life of who writes has changed for a while.
#[cfg(unix)]
fn wait_for_a_pause(server: &Server) {
    let contents = || {
        let mut objects = server.contents("run/");
        objects.remove("owner.json");
        objects
    };
    let begin = Instant::now();
    let (mut seen, mut since) = (contents(), Instant::now());
    while since.elapsed() < Duration::from_millis(300) {
        assert!(begin.elapsed() < DEADLINE, "it writes without a pause");
        thread::sleep(Duration::from_millis(10));
        let now = contents();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
}

#[cfg(unix)]
#[test]
fn of_two_processes_one_writes() {
    let server = Server::start();
    // With pauses between its checkpoints, so that it is stopped in one: what may happen to one that
    // is stopped between its look at the owner and its write is in ARCHITECTURE.md.
    let sets = [
        "checkpoint.every_batches=2000",
        "run.evaluate_every=100",
        "run.epochs=100",
    ];
    let more: Vec<&str> = sets.into_iter().flat_map(|set| ["--set", set]).collect();
    let mut command = train(&server, "run", 100_000, &more);
    let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut first = command.spawn().unwrap();
    wait_for_batches(&server, "run", &mut first, 1);
    // One that lives is left alone.
    let error = refused(train(&server, "run", 8, &[]));
    let wanted = "error: another process is writing to s3://bucket/run:";
    assert!(error.starts_with(wanted), "{error}");
    // One that stands still is taken over, finds that out, and writes no more.
    let then = newest(&server, "run");
    wait_for_batches(&server, "run", &mut first, then + 1);
    wait_for_a_pause(&server);
    signal(&first, "STOP");
    let at = newest(&server, "run");
    let more = ["--set", "run.evaluate_every=100", "--set", "run.epochs=100"];
    let output = finished(train(&server, "run", at + 5, &more));
    assert!(
        output.contains("warning: s3://bucket/run has the owner.json"),
        "{output}"
    );
    assert!(output.contains("resumed from"), "{output}");
    let before = server.contents("run/");
    signal(&first, "CONT");
    let output = ended(first);
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("error: another process has taken over s3://bucket/run"),
        "{told}"
    );
    let named = |objects: &BTreeMap<String, Vec<u8>>| {
        let mut objects = objects.clone();
        // Parts that no manifest names: what it was writing when it was stopped.
        objects.retain(|name, _| !name.contains('-'));
        objects
    };
    let after = named(&server.contents("run/"));
    assert!(after.keys().eq(named(&before).keys()), "{:?}", after.keys());
    assert!(after == named(&before));
    assert_eq!(checkpoints(&server, "run").last(), Some(&(at + 5)));
}

#[test]
fn damaged_checkpoints_give_way_and_foreign_ones_are_refused() {
    let server = Server::start();
    // Only the last of each process, as a busy writer leaves out others.
    for batches in [2, 4, 6] {
        let seldom = ["--set", "checkpoint.every_batches=9"];
        finished(train(&server, "run", batches, &seldom));
    }
    let all = checkpoints(&server, "run");
    assert_eq!(all.len(), 3, "{all:?}");
    let manifest = |number: u64| format!("run/checkpoints/{number:012}.json");
    let before = server.contents("run/checkpoints/");
    for (more, reason) in [
        (
            ["--set", "optimiser.lr=0.3"],
            "optimiser.lr is 0.1 there, 0.3 here",
        ),
        (["--resume", "never"], "has the checkpoints of a run"),
        (
            ["--resume", "s3://bucket/nowhere"],
            "there is no checkpoint in",
        ),
        (
            ["--resume", "http://127.0.0.1:1/x"],
            "http servers list no folders",
        ),
        (
            ["--set", "run.folder=http://127.0.0.1:1/x"],
            "http servers are only read",
        ),
    ] {
        let error = refused(train(&server, "run", 8, &more));
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!(
        server.contents("run/checkpoints/"),
        before,
        "a refusal changes nothing"
    );

    // The newest manifest is cut off, a part of the one before is altered or gone.
    let newest = &before[&format!("{:012}.json", all[2])];
    server.alter(&manifest(all[2]), &newest[..newest.len() / 2]);
    let start = format!("{:012}-", all[1]);
    let is_weights = |name: &&String| name.starts_with(&start) && name.contains("weights");
    let part = before.keys().find(is_weights).unwrap();
    let mut bytes = before[part].clone();
    *bytes.last_mut().unwrap() ^= 1;
    server.alter(&format!("run/checkpoints/{part}"), &bytes);
    let at = format!("s3://bucket/{}", manifest(all[2]));
    let error = refused(train(&server, "run", 8, &["--resume", &at]));
    assert!(error.contains("damaged"), "{error}");
    bytes.push(0);
    for (bytes, reason) in [(&bytes[..7], "it is cut off"), (&bytes[..], "more than")] {
        server.alter(&format!("run/checkpoints/{part}"), bytes);
        let at = format!("s3://bucket/{}", manifest(all[1]));
        let error = refused(train(&server, "run", 8, &["--resume", &at]));
        assert!(error.contains(reason), "{error}");
    }
    let output = finished(train(&server, "run", 8, &[]));
    assert!(output.contains("the next older one is tried"), "{output}");
    assert!(
        output.contains(&format!("{:012}.json: epoch 1", all[0])),
        "{output}"
    );
    for number in checkpoints(&server, "run") {
        server.alter(&manifest(number), b"{}");
    }
    let error = refused(train(&server, "run", 9, &[]));
    assert!(error.contains("none of the "), "{error}");
}

#[test]
fn large_parts_go_up_in_pieces() {
    let server = Server::start();
    fail_now_and_then(&server);
    let wide = [
        "model.width=4.0",
        "data.batch=100",
        "algorithm.time_steps=1",
        "algorithm.window=1",
        "optimiser.name=adamw",
        "optimiser.lr=0.001",
        "optimiser.momentum=",
    ];
    let wide: Vec<&str> = wide.into_iter().flat_map(|set| ["--set", set]).collect();
    finished(train(&server, "run", 1, &wide));
    assert!(server.uploads() > 0, "no part was large enough");
    assert_eq!(checkpoints(&server, "run"), [1]);
}

/// Packs so many grey pictures to learn from into the store, and half as many to test.
fn pack(server: &Server, scratch: &Scratch, num: u32) {
    let idx = |name: &str, dimensions: &[u32], values: &[u8]| {
        let mut bytes = vec![0, 0, 8, u8::try_from(dimensions.len()).unwrap()];
        bytes.extend(dimensions.iter().flat_map(|d| d.to_be_bytes()));
        bytes.extend(values);
        fs::write(scratch.path(name), bytes).unwrap();
    };
    for (split, num) in [("train", num), ("t10k", num / 2)] {
        // A bright bar that stands where the class says, on noise.
        let value = |at: u64| {
            let (picture, place) = (at / 784, at % 784);
            let noise = mix(at).to_le_bytes()[0] / 2;
            let is_bar = place % 28 / 2 == 2 + picture % 10;
            if is_bar { 255 - noise / 2 } else { noise }
        };
        let pictures: Vec<u8> = (0..u64::from(num) * 784).map(value).collect();
        let labels: Vec<u8> = (0..10).cycle().take(num as usize).collect();
        let name = |kind: &str| format!("{split}-{kind}-ubyte");
        idx(&name("images-idx3"), &[num, 28, 28], &pictures);
        idx(&name("labels-idx1"), &[num], &labels);
    }
    let mut pack = synfire(server, "pack");
    let source = scratch.path("");
    pack.args(["fashion-mnist", "--source", &source]);
    finished({
        pack.args(["--out", &url("data"), "--shard-mib", "1"]);
        pack
    });
    let objects = server.contents("data/");
    assert!(objects.contains_key("index.json"), "{:?}", objects.keys());
}

#[test]
fn a_set_is_packed_into_a_store_that_fails_and_a_run_learns_from_it() {
    let server = Server::start();
    let scratch = Scratch::new("pack");
    fail_now_and_then(&server);
    pack(&server, &scratch, 400);
    let data = [
        "--set",
        "data.source=packed",
        "--set",
        &format!("data.path={}", url("data")),
        "--set",
        &format!("data.cache={}", scratch.path("cache")),
    ];
    let output = finished(train(&server, "run", 20, &data));
    assert!(output.contains("400 images, 200 to test"), "{output}");
    let mut evaluate = synfire(&server, "evaluate");
    evaluate.args(["--checkpoint", &url("run"), "--data", &url("data")]);
    let output = finished(evaluate);
    assert!(
        output.contains("200 test images of fashion-mnist"),
        "{output}"
    );

    // A shard that is gone from the store is named, and nothing is trained.
    let shard = "data/train-000000.tar";
    assert!(server.remove(shard));
    let output = train(&server, "other", 1, &data).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output);
    assert!(
        error.contains("train-000000.tar: the index names it"),
        "{error}"
    );
}

/// A server that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs moto"]
fn needs_moto_a_server_of_others_gives_the_same_bytes() {
    // More than any of them does before it is killed.
    const BATCHES: u64 = 2500;
    let program = std::env::var("SYNFIRE_MOTO_SERVER").unwrap_or("moto_server".into());
    // It does not say which port it took, so a free one is looked for.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut moto = Command::new(program);
    moto.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
    moto.stdout(Stdio::null()).stderr(Stdio::null());
    let _moto = Running(moto.spawn().expect("moto is installed"));
    let make_bucket = || {
        let mut connection = TcpStream::connect(address).ok()?;
        let head = format!("PUT /{BUCKET} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        connection.write_all(head.as_bytes()).ok()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).ok()?;
        answer.split(' ').nth(1).map(|status| status == "200")
    };
    wait_for("moto makes no bucket", || make_bucket() == Some(true));

    let scratch = Scratch::new("moto");
    let ours = Server::start();
    let (expected, got) = (scratch.path("expected"), scratch.path("got"));
    let more = |weights| ["--save-weights", weights];
    finished(train(&ours, "run", BATCHES, &more(&expected)));
    let there = |batches, more: &[&str]| {
        let mut command = train(&ours, "run", batches, more);
        command.env("AWS_ENDPOINT", format!("http://{address}"));
        command
    };
    finished(there(5, &[]));
    for milliseconds in [1500, 2200, 1800] {
        let mut command = there(BATCHES, &[]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let output = finished(there(BATCHES, &more(&got)));
    assert!(output.contains("resumed from s3://bucket/run/"), "{output}");
    assert!(fs::read(&expected).unwrap() == fs::read(&got).unwrap());
}

#[test]
fn secrets_are_told_nowhere() {
    let server = Server::start();
    let scratch = Scratch::new("secrets");
    let told = |mut command: Command| {
        command.env("SYNFIRE_LOG", "trace");
        text(&command.output().unwrap())
    };
    let mut outputs = vec![told(train(&server, "run", 3, &[]))];
    assert!(
        outputs[0].contains("hyper"),
        "the log tells of requests: {}",
        outputs[0]
    );
    // A store that does not know the keys repeats what was signed.
    for (name, value) in [
        ("AWS_SECRET_ACCESS_KEY", "sesame-of-another-store"),
        ("AWS_SESSION_TOKEN", "sesame-token-of-another-store"),
        ("AWS_ACCESS_KEY_ID", "AKIDUNKNOWN"),
    ] {
        let mut command = train(&server, "run", 5, &[]);
        command.env(name, value);
        outputs.push(told(command));
    }
    assert!(
        outputs[1].contains("SignatureDoesNotMatch"),
        "{}",
        outputs[1]
    );
    assert!(outputs[2].contains("InvalidToken"), "{}", outputs[2]);
    assert!(outputs[3].contains("InvalidAccessKeyId"), "{}", outputs[3]);
    // Nor where they are given in the wrong place.
    let wrong = format!("run.folder=s3://key:{}@bucket/run", "sesame");
    let mut command = train(&server, "run", 5, &["--set", &wrong]);
    command.args(["--report", &scratch.path("report.html")]);
    outputs.push(told(command));
    assert!(
        outputs[4].contains("do not belong in a URL"),
        "{}",
        outputs[4]
    );
    server.fail(|_, _, number| (number % 2 == 0).then_some(Fault::Status(503)));
    outputs.push(told(train(&server, "run", 7, &[])));
    for output in &outputs {
        for line in output.lines() {
            assert!(!line.contains("sesame"), "{line}");
        }
    }
    let secrets = [SECRET.as_bytes(), TOKEN.as_bytes()];
    for (name, bytes) in server.contents("") {
        for secret in secrets {
            let is_there = bytes.windows(secret.len()).any(|window| window == secret);
            assert!(!is_there, "{name}");
        }
    }
}

//! Runs of several ranks in real processes: started by `synfire launch` or brought together by
//! `synfire-coordinator`; killed, stopped and woken at any moment; and what those are told who do
//! not belong to them.
//!
//! `ranks/` has: `folder`, what a run folder has; `processes`, a coordinator and its workers;
//! `faults`, what happens to them at random; and `late`, what a rank 0 writes that is stopped at a
//! chosen moment and woken. The store is the server of `s3/`.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a helper that fails fails the test that called it, and prints for it"
)]

#[path = "ranks/faults.rs"]
mod faults;
#[path = "ranks/folder.rs"]
mod folder;
#[path = "ranks/late.rs"]
mod late;
#[path = "ranks/processes.rs"]
mod processes;
#[expect(dead_code, reason = "another test needs the rest")]
mod s3;

use faults::{Faults, Happened};
use folder::{Folder, Scratch};
use processes::{Group, Process, TOKEN, synfire, train, wait_for};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use synfire_shared::random::mix;

/// Faults in the test that runs everywhere; `SYNFIRE_KILLS` asks for more (CONTRIBUTING.md).
const FAULTS: u64 = 20;
/// The same on a store that fails.
const FAULTS_ON_STORE: u64 = 6;
/// Every so many requests one fails.
const FAILS_ONE_IN: u64 = 16;
/// A rank that is gone is noticed after 5 s at the most; what is seen here comes later on a machine
/// that is busy, and still before a rank that waits for another gives up by itself.
const NOTICED: Duration = Duration::from_secs(40);

/// `synfire launch` of so many ranks that do this.
fn launch(folder: &Folder<'_>, ranks: usize, arguments: &[String], more: &[&str]) -> Command {
    let mut command = synfire(folder);
    command.args(["launch", "-n", &ranks.to_string(), "--"]);
    command.args(arguments).args(more);
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

/// The exit status of a command that fails, and what it says, where its own error is one.
fn refused(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    let errors = said.lines().filter(|line| line.starts_with("error: "));
    assert_eq!(errors.count(), 1, "{said}");
    assert!(!said.contains("panicked"), "{said}");
    (output.status.code(), said)
}

fn number_of_faults(usual: u64) -> u64 {
    std::env::var("SYNFIRE_KILLS").map_or(usual, |n| n.parse().expect("a number of faults"))
}

#[test]
fn launched_twice_a_run_is_whole_and_has_the_same_bits() {
    let scratch = Scratch::new("launch");
    let mut bits = Vec::new();
    for name in ["first", "second"] {
        let folder = scratch.folder(name);
        let weights = scratch.path(&format!("{name}.safetensors"));
        let weights = weights.display().to_string();
        let command = launch(
            &folder,
            2,
            &train(&folder, 60),
            &["--save-weights", &weights],
        );
        let said = finished(command);
        assert!(said.contains("[0] 2 ranks average over tcp"), "{said}");
        // The launcher's own lines say where the coordinator is.
        let of_nobody = |line: &&str| {
            let is_of_rank = line.starts_with("[0]") || line.starts_with("[1]");
            !is_of_rank && !line.starts_with("coordinator at http://127.0.0.1:")
        };
        let stray: Vec<&str> = said.lines().filter(of_nobody).collect();
        assert!(stray.is_empty(), "{stray:?}");
        assert_eq!(folder.numbers().len(), 1);
        let report = folder.text("report.html");
        assert!(report.contains("60 of 60 batches: finished"), "{report}");
        bits.push((folder.bits(), folder.numbers(), fs::read(&weights).unwrap()));
    }
    assert_eq!(bits[0].0.0, 60);
    assert!(bits[0] == bits[1], "{:?} {:?}", bits[0].0, bits[1].0);
}

#[test]
fn a_stopped_run_goes_on_with_fewer_ranks_and_alone() {
    let scratch = Scratch::new("fewer");
    let folder = scratch.folder("run");
    let mut at = 0;
    for (ranks, signal, status) in [(3, "TERM", 143), (2, "INT", 130)] {
        let command = launch(
            &folder,
            ranks,
            &train(&folder, 9000),
            &["--set", "run.epochs=99"],
        );
        let mut process = Process::start(command, &scratch.path(&format!("{ranks}.log")));
        wait_for("no checkpoint", || folder.newest() > at + 5);
        process.signal(signal);
        assert_eq!(process.code(), Some(status), "{}", process.log());
        let log = process.log();
        assert!(log.contains(&format!("[0] {ranks} ranks average")), "{log}");
        assert_eq!(log.contains("[0] resumed from"), at > 0, "{log}");
        assert!(log.contains(&format!("stopped by SIG{signal}")), "{log}");
        let saved = folder.last_checkpoint().position.batches_done;
        assert!(saved > at, "{log}");
        at = saved;
    }
    let mut alone = synfire(&folder);
    alone
        .args(train(&folder, at + 5))
        .args(["--set", "run.epochs=99"]);
    let said = finished(alone);
    assert!(said.contains(&format!("{at:012}-g000002.json")), "{said}");
    assert_eq!(folder.bits().0, at + 5);
}

#[test]
fn what_a_launch_cannot_do_is_one_error() {
    let scratch = Scratch::new("usage");
    let folder = scratch.folder("run");
    let run = train(&folder, 3);
    let with = |more: &[&str]| {
        [
            &run[..],
            &more.iter().map(|m| (*m).to_owned()).collect::<Vec<_>>(),
        ]
        .concat()
    };
    let missing = format!("data.path={}", scratch.path("nothing").display());
    for (ranks, arguments, status, words) in [
        (0, run.clone(), 64, "1 to 64"),
        (65, run.clone(), 64, "1 to 64"),
        (
            2,
            with(&["--coordinator", "http://127.0.0.1:1"]),
            64,
            "leave out --coordinator",
        ),
        (2, with(&["--rank", "1"]), 64, "--rank"),
        (2, with(&["--nonsense"]), 64, "--nonsense"),
        (2, vec!["evaluate".to_owned()], 64, "evaluate"),
        (2, with(&["--set", "model.width=-1"]), 1, "model.width"),
        // These the ranks find out.
        (
            2,
            with(&["--set", "data.source=packed", "--set", &missing]),
            1,
            "nothing",
        ),
        (3, with(&["--set", "data.batch=2"]), 1, "3 ranks"),
    ] {
        let (code, said) = refused(launch(&folder, ranks, &arguments, &[]));
        assert_eq!(code, Some(status), "{said}");
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(folder.manifests().is_empty());
}

#[test]
fn ranks_do_not_outlive_their_launcher() {
    let scratch = Scratch::new("orphans");
    let folder = scratch.folder("run");
    let command = launch(
        &folder,
        2,
        &train(&folder, 9000),
        &["--set", "run.epochs=99"],
    );
    let mut process = Process::start(command, &scratch.path("log"));
    wait_for("no checkpoint", || folder.newest() > 5);
    let generations = folder.generations();
    let members = &generations.values().next_back().unwrap().members;
    let ranks: Vec<u32> = members.iter().map(|member| member.pid).collect();
    assert_eq!(ranks.len(), 2);
    process.kill();
    let is_there = |rank: &u32| Path::new("/proc").join(rank.to_string()).exists();
    wait_for("ranks are left behind", || !ranks.iter().any(is_there));
    // What they had is kept, and the same command goes on.
    let at = folder.last_checkpoint().position.batches_done;
    let again = launch(
        &folder,
        2,
        &train(&folder, at + 3),
        &["--set", "run.epochs=99"],
    );
    let said = finished(again);
    assert!(said.contains("[0] resumed from"), "{said}");
}

#[test]
fn a_launched_rank_that_is_killed_is_started_again() {
    let scratch = Scratch::new("restart");
    let folder = scratch.folder("run");
    let command = launch(
        &folder,
        2,
        &train(&folder, 9000),
        &["--set", "run.epochs=99"],
    );
    let process = Process::start(command, &scratch.path("log"));
    for (number, signal) in [(1, "KILL"), (2, "STOP")] {
        let at = folder.newest();
        wait_for("no checkpoint", || {
            folder.generations().len() == number && folder.newest() > at + 5
        });
        let generations = folder.generations();
        let members = &generations.values().next_back().unwrap().members;
        let mut kill = Command::new("kill");
        kill.args(["-s", signal, &members[1].pid.to_string()]);
        assert!(kill.status().unwrap().success());
        process.wait_until_it_says(&format!("({number} of 3 restarts)"));
    }
    wait_for("no third generation", || folder.generations().len() == 3);
    let at = folder.newest();
    wait_for("no checkpoint", || folder.newest() > at + 5);
    process.signal("INT");
    let mut process = process;
    assert_eq!(process.code(), Some(130), "{}", process.log());
}

/// A run with faults and one without, of as many batches, and what happened to the first.
fn whole_and_struck(
    scratch: &Scratch,
    folders: [Folder<'_>; 2],
    faults: u64,
    more: &[&str],
    before_faults: impl FnOnce(),
) -> Happened {
    let [whole, struck] = folders;
    let arguments = |folder: &Folder<'_>, batches| {
        let more = more.iter().map(|more| (*more).to_owned());
        train(folder, batches).into_iter().chain(more).collect()
    };
    before_faults();
    let begin = Instant::now();
    let logs = scratch.path("logs");
    let endless = arguments(&struck, u64::MAX / 4);
    let mut group = Group::start(struck.clone(), 2, endless, logs);
    let happened = Faults::new(&mut group).play(faults, 0x5eed);
    drop(group);
    let stopped = struck.last_checkpoint().position.batches_done;
    println!(
        "{} kills and {} pauses of workers and {} kills of the coordinator in {} s: {} generations, \
         {stopped} batches",
        happened.kills,
        happened.pauses,
        happened.coordinators,
        begin.elapsed().as_secs(),
        struck.generations().len(),
    );
    assert!(happened.kills > 0 && happened.pauses > 0 && happened.coordinators > 0);
    struck.assert_one_line(&happened.seen);
    // Both end by themselves, at the same batch.
    let batches = stopped + 20;
    let logs = scratch.path("last-logs");
    let mut group = Group::start(struck.clone(), 2, arguments(&struck, batches), logs);
    group.finish();
    let logs = scratch.path("whole-logs");
    let mut group = Group::start(whole.clone(), 2, arguments(&whole, batches), logs);
    group.finish();
    assert_eq!(whole.bits(), struck.bits());
    assert_eq!(struck.bits().0, batches);
    assert_eq!(whole.numbers(), struck.numbers());
    happened
}

#[test]
fn killed_stopped_and_woken_at_any_moment_a_run_ends_with_the_same_bits() {
    let faults = number_of_faults(FAULTS);
    let scratch = Scratch::new("faults");
    let folders = [scratch.folder("whole"), scratch.folder("struck")];
    // All that counted is still there in the end.
    let more = ["--set", "run.epochs=99", "--set", "checkpoint.keep_last=40"];
    whole_and_struck(&scratch, folders, faults, &more, || ());
}

#[test]
fn a_rank_that_stands_still_is_named_and_one_left_over_does_not_wait_to_save() {
    let scratch = Scratch::new("named");
    let folder = scratch.folder("run");
    let mut arguments = train(&folder, 9000);
    arguments.extend(["--set", "run.epochs=99"].map(str::to_owned));
    let mut group = Group::start(folder, 2, arguments, scratch.path("logs"));
    group.wait_for_batches(5);
    let begin = Instant::now();
    group.workers[1].signal("STOP");
    group.workers[0].wait_until_it_says("over: rank 1 on ");
    assert!(begin.elapsed() < NOTICED, "{:?}", begin.elapsed());
    let log = group.workers[0].log();
    let named = log
        .lines()
        .find(|line| line.contains("over: rank 1 on "))
        .unwrap();
    for words in ["pid ", " was last heard of ", " after update "] {
        assert!(named.contains(words), "{words}: {log}");
    }
    // While it waits for its peer it has nothing to save.
    group.workers[0].signal("INT");
    let limit = NOTICED;
    let code = group.workers[0].code_within(limit);
    assert_eq!(code, Some(130), "{}", group.workers[0].log());
    group.workers[1].kill();

    for signal in ["STOP", "KILL"] {
        for rank in 0..2 {
            group.start_worker(rank);
        }
        let at = group.folder.newest();
        group.wait_for_batches(at + 5);
        // A signal before anybody has noticed that the peer is gone.
        group.workers[1].signal(signal);
        let begin = Instant::now();
        group.workers[0].signal("TERM");
        let code = group.workers[0].code_within(limit);
        let log = group.workers[0].log();
        assert_eq!(code, Some(143), "{signal} {:?}: {log}", begin.elapsed());
        group.workers[1].kill();
    }
}

#[test]
fn who_does_not_belong_to_a_run_is_refused() {
    let scratch = Scratch::new("strangers");
    let folder = scratch.folder("run");
    // Longer than all of them take to be refused, on any machine.
    let mut arguments = train(&folder, 200_000);
    arguments.extend(["--set", "run.epochs=99999"].map(str::to_owned));
    let group = Group::start(folder, 2, arguments, scratch.path("logs"));
    group.wait_for_batches(3);
    let (code, said) = refused(group.command(1));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("a second process cannot be rank 1"), "{said}");
    let mut stranger = group.command(1);
    stranger.env("SYNFIRE_TOKEN", TOKEN.replace('f', "e"));
    let (code, said) = refused(stranger);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("token"), "{said}");
    let mut without = group.command(1);
    without.env_remove("SYNFIRE_TOKEN");
    assert!(refused(without).1.contains("wants a token"));
    for (set, words) in [
        ("optimiser.lr=0.3", "optimiser.lr"),
        ("run.seed=9", "run.seed"),
        ("run.folder=elsewhere", "run.folder"),
    ] {
        let mut other = group.command(1);
        other.args(["--set", set]);
        let (code, said) = refused(other);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(words), "{words}: {said}");
    }
    // Nobody was disturbed.
    assert_eq!(group.folder.generations().len(), 1);
    let at = group.folder.newest();
    group.wait_for_batches(at + 3);
}

/// Packs so many grey pictures to learn from into the store.
fn pack(server: &s3::Server, scratch: &Scratch, num: u32) {
    let folder = Folder::Store(server, "data".to_owned());
    let source = scratch.path("source");
    fs::create_dir_all(&source).unwrap();
    let idx = |name: &str, dimensions: &[u32], values: &[u8]| {
        let mut bytes = vec![0, 0, 8, u8::try_from(dimensions.len()).unwrap()];
        bytes.extend(dimensions.iter().flat_map(|d| d.to_be_bytes()));
        bytes.extend(values);
        fs::write(source.join(name), bytes).unwrap();
    };
    for (split, num) in [("train", num), ("t10k", num / 8)] {
        let value = |at: u64| mix(at).to_le_bytes()[0];
        let pictures: Vec<u8> = (0..u64::from(num) * 784).map(value).collect();
        let labels: Vec<u8> = (0..10).cycle().take(num as usize).collect();
        idx(
            &format!("{split}-images-idx3-ubyte"),
            &[num, 28, 28],
            &pictures,
        );
        idx(&format!("{split}-labels-idx1-ubyte"), &[num], &labels);
    }
    let mut pack = synfire(&folder);
    let source = source.display().to_string();
    pack.args(["pack", "fashion-mnist", "--source", &source]);
    pack.args(["--out", &folder.location(), "--shard-mib", "1"]);
    finished(pack);
}

/// Some requests fail in every way that a store has, at keyed draws.
fn fail_now_and_then(server: &s3::Server) {
    server.fail(|method, _, number| {
        let draw = mix(0xfa11 ^ mix(number));
        let fault = match draw / FAILS_ONE_IN % 4 {
            0 => s3::Fault::Status(500),
            1 => s3::Fault::Status(503),
            2 => s3::Fault::LostAnswer,
            _ if method == "GET" => s3::Fault::TornBody,
            _ => s3::Fault::Status(500),
        };
        draw.is_multiple_of(FAILS_ONE_IN).then_some(fault)
    });
}

#[test]
fn killed_at_any_moment_on_a_failing_store_a_run_ends_with_the_same_bits() {
    let faults = number_of_faults(FAULTS_ON_STORE);
    let scratch = Scratch::new("store");
    let server = s3::Server::start();
    pack(&server, &scratch, 960);
    let path = "data.path=s3://bucket/data";
    let cache = format!("data.cache={}", scratch.path("cache").display());
    let sets = [
        // Of 60 batches each.
        "run.epochs=9999",
        "data.source=packed",
        path,
        &cache,
        "checkpoint.keep_last=9",
    ];
    let more: Vec<&str> = sets.into_iter().flat_map(|set| ["--set", set]).collect();
    let folder = |name: &str| Folder::Store(&server, name.to_owned());
    let folders = [folder("whole"), folder("struck")];
    let fail = || fail_now_and_then(&server);
    whole_and_struck(&scratch, folders, faults, &more, fail);
    assert!(server.faults() > faults, "{} faults", server.faults());
}

#[test]
fn a_rank_that_is_stopped_by_a_signal_of_its_own_stops_all_of_them_saved() {
    let scratch = Scratch::new("one-signal");
    let folder = scratch.folder("run");
    let arguments = train(&folder, 9000);
    let mut command = launch(&folder, 2, &arguments, &["--set", "run.epochs=99"]);
    // The launcher tells its ranks without the help of another program.
    command.env("PATH", "");
    let mut process = Process::start(command, &scratch.path("log"));
    wait_for("no checkpoint", || folder.newest() > 5);
    let generations = folder.generations();
    let members = &generations.values().next_back().unwrap().members;
    let mut kill = Command::new("kill");
    kill.args(["-s", "TERM", &members[1].pid.to_string()]);
    assert!(kill.status().unwrap().success());
    assert_eq!(process.code(), Some(143), "{}", process.log());
    let log = process.log();
    assert!(log.contains("stopped by SIGTERM"), "{log}");
    assert!(
        !log.contains("started again") && !log.contains("error"),
        "{log}"
    );
    assert_eq!(folder.generations().len(), 1, "{log}");
    let ranks = members.iter().map(|member| member.pid.to_string());
    let is_there = |rank: &String| Path::new("/proc").join(rank).exists();
    assert!(!ranks.into_iter().any(|rank| is_there(&rank)), "{log}");
    let at = folder.last_checkpoint().position.batches_done;
    let again = train(&folder, at + 3);
    let said = finished(launch(&folder, 2, &again, &["--set", "run.epochs=99"]));
    assert!(said.contains("[0] resumed from"), "{said}");
}

#[test]
fn a_rank_whose_store_is_out_of_reach_is_started_again() {
    let scratch = Scratch::new("passing");
    let server = s3::Server::start();
    pack(&server, &scratch, 160);
    let sets = [
        "run.epochs=99",
        "data.source=packed",
        "data.path=s3://bucket/data",
        "data.cache_gib=0",
    ];
    let sets = sets.into_iter().flat_map(|set| ["--set", set]);
    let away = |server: &s3::Server| {
        server.fail(|_, key, _| key.contains("data/").then_some(s3::Fault::Status(503)));
    };
    let launch = |name: &str, more: &[&str]| {
        let folder = scratch.folder(name);
        let mut command = synfire(&folder);
        command.args(["launch", "-n", "2"]).args(more).arg("--");
        command.args(train(&folder, 20)).args(sets.clone());
        // It has the pictures, and is not asked for long.
        server.environment(&mut command);
        command.env("SYNFIRE_STORE_DEADLINE_SECONDS", "1");
        command
    };
    // No longer than it may.
    away(&server);
    let (code, said) = refused(launch("never", &["--max-restarts", "0"]));
    assert_eq!(code, Some(75), "{said}");
    for words in ["cannot read s3://bucket/data", "ended with status 75"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // It comes back.
    let command = launch("again", &["--max-restarts", "9"]);
    let mut process = Process::start(command, &scratch.path("log"));
    process.wait_until_it_says("ended with status 75: started again (1 of 9 restarts)");
    server.fail(|_, _, _| None);
    assert_eq!(process.code(), Some(0), "{}", process.log());
    assert_eq!(scratch.folder("again").bits().0, 20);
}

#[test]
fn a_damaged_checkpoint_is_put_aside_for_an_older_one_but_never_the_last() {
    let scratch = Scratch::new("damaged");
    let (whole, folder) = (scratch.folder("whole"), scratch.folder("run"));
    finished(launch(&whole, 2, &train(&whole, 30), &[]));
    let keep = |most| ["--set".to_owned(), format!("checkpoint.keep_last={most}")];
    let damage = || {
        let weights = folder.last_checkpoint().parts.into_iter();
        let weights = weights.filter(|(kind, _)| kind.starts_with("weights"));
        for (_, part) in weights {
            let path = scratch.path("run").join("checkpoints").join(part.name);
            let mut bytes = fs::read(&path).unwrap();
            let last = bytes.last_mut().unwrap();
            *last ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    };
    let two = [&train(&folder, 20)[..], &keep(2)].concat();
    finished(launch(&folder, 2, &two, &[]));
    damage();
    let said = finished(launch(&folder, 2, &train(&folder, 30), &[]));
    assert!(said.contains("000000000020-g000001.json"), "{said}");
    assert!(said.contains("the next start takes an older one"), "{said}");
    let aside = scratch.path("run/checkpoints/000000000020-g000001.json.damaged");
    assert!(aside.exists(), "{said}");
    assert!(folder.bits() == whole.bits());

    // The only one that is left stays where it is, and nothing begins anew.
    let one = [&train(&folder, 40)[..], &keep(1)].concat();
    finished(launch(&folder, 2, &one, &[]));
    damage();
    let before = folder.manifests();
    let (code, said) = refused(launch(&folder, 2, &train(&folder, 50), &[]));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("all checkpoints are damaged"), "{said}");
    assert_eq!((folder.manifests(), before.len()), (before, 1));
}

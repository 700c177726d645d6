//! A worker's side of the coordinator, against a real one on loopback.
#![allow(
    clippy::unwrap_used,
    reason = "what is only called by tests is a test, too"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use synfire::control::{
    Control, ControlError, Coordinator, Joined, Membership, Notice, Waiting, Waits, process_id,
};
use synfire_coordinator::serve::Tls;
use synfire_coordinator::{Options, Policy, Server};
use synfire_shared::checkpoint::{Digest, manifest_name_of};
use synfire_shared::protocol::{
    Assignment, Identity, JoinRequest, Order, PROTOCOL, Phase, Reason, Refusal,
};
use synfire_shared::storage::Store;
use synfire_shared::token::Token;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// For anything that is waited for.
const DEADLINE: Duration = Duration::from_mins(1);

fn options(ranks: u32) -> Options {
    Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        token: Token::new(TOKEN, "test").unwrap(),
        tls: None,
        policy: Policy::new(ranks, VERSION).unwrap(),
        observer: None,
    }
}

fn server(ranks: u32) -> Server {
    Server::start(options(ranks), Store::in_memory(), "checkpoints").unwrap()
}

fn coordinator(url: String) -> Coordinator {
    Coordinator {
        url,
        token: Token::new(TOKEN, "test").unwrap(),
        ca: None,
    }
}

fn control(server: &Server) -> Control {
    Control::new(&coordinator(server.url())).unwrap()
}

fn request(rank: u32) -> JoinRequest {
    let settings = BTreeMap::from([("run.seed".to_owned(), "1".to_owned())]);
    JoinRequest {
        protocol: PROTOCOL,
        version: VERSION.into(),
        process: process_id().unwrap(),
        host: format!("node-{rank}"),
        pid: std::process::id(),
        rank: Some(rank),
        world: None,
        identity: Identity {
            configuration: Digest::of_settings(&settings),
            settings,
            data: Digest::of(b"data"),
            plan: Digest::of(b"plan"),
            lanes: 4,
            batch: 8,
            folder: None,
        },
        collective: None,
        metrics: None,
        left: 0,
    }
}

fn patient(_: &Waiting) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn joined(control: &mut Control, request: &JoinRequest) -> Assignment {
    match control
        .join(request, Waits::default(), &mut patient)
        .unwrap()
    {
        Joined::Start(assignment) => assignment,
        Joined::Over { reason, .. } => panic!("over: {reason}"),
    }
}

/// The heartbeats of a generation, and what they are told.
fn member(control: &Control, process: &str, generation: u64) -> (Membership, Receiver<Notice>) {
    let (told, notices) = sync_channel(100);
    let notify = Box::new(move |notice| told.try_send(notice).unwrap());
    (
        control.member(process, generation, notify).unwrap(),
        notices,
    )
}

/// The next notice of a kind.
fn next(notices: &Receiver<Notice>, is_wanted: impl Fn(&Notice) -> bool) -> Notice {
    loop {
        let notice = notices.recv_timeout(DEADLINE).unwrap();
        if is_wanted(&notice) {
            return notice;
        }
    }
}

fn wait_for(what: &str, look: impl Fn() -> bool) {
    let begin = Instant::now();
    while !look() {
        assert!(begin.elapsed() < DEADLINE, "waited too long for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn two_workers_wait_for_each_other_and_are_told_for_whom() {
    let server = server(2);
    let second = {
        let (mut control, request) = (control(&server), request(1));
        let (waits, told) = sync_channel(100);
        let joining = thread::spawn(move || {
            let mut see = |waiting: &Waiting| {
                let _ = waits.try_send(waiting.clone());
                ControlFlow::Continue(())
            };
            control.join(&request, Waits::default(), &mut see).unwrap()
        });
        let told = loop {
            match told.recv_timeout(DEADLINE).unwrap() {
                Waiting::Ranks { missing, .. } if missing.iter().any(|m| m.contains("rank 0")) => {
                    break missing;
                }
                Waiting::Ranks { .. } | Waiting::Coordinator { .. } => {}
            }
        };
        assert!(!told.iter().any(|line| line.contains("rank 1")), "{told:?}");
        joining
    };
    let first = joined(&mut control(&server), &request(0));
    let Joined::Start(second) = second.join().unwrap() else {
        panic!("over");
    };
    assert_eq!((first.rank, second.rank, first.world), (0, 1, 2));
    assert_eq!(first.members, second.members);
    assert_eq!(first.secret, second.secret);
}

#[test]
fn heartbeats_carry_the_status_and_bring_directives() {
    let server = server(1);
    let (mut control, request) = (control(&server), request(0));
    let generation = joined(&mut control, &request).generation;
    let (member, notices) = member(&control, &request.process, generation);
    let report = member.report();
    report.set(|status| {
        status.phase = Phase::Training;
        (status.update, status.loss) = (17, f64::NAN);
    });
    let rank = || server.view().members.first().and_then(|rank| rank.status);
    wait_for("the status", || {
        rank().is_some_and(|status| status.update == 17)
    });
    assert_eq!(rank().unwrap().phase, Phase::Training);
    // Without a word of the training thread the time counts since the last.
    wait_for("idle time", || rank().unwrap().busy_seconds > 1.0);
    server.order(Order::Save).unwrap();
    next(&notices, |notice| *notice == Notice::Save);
    report.checkpoint(manifest_name_of(40, Some(generation)), 40, 2);
    let checkpoint = || server.view().checkpoint.as_ref().map(|c| c.batches_done);
    wait_for("the checkpoint", || checkpoint() == Some(40));
    server.order(Order::Stop { signal: 15 }).unwrap();
    next(&notices, |notice| *notice == Notice::Stop { signal: 15 });
    // What is written last comes before the farewell.
    report.checkpoint(manifest_name_of(41, Some(generation)), 41, 2);
    member.leave(Reason::Stopped { signal: 15 }).unwrap();
    assert_eq!(checkpoint(), Some(41));
    wait_for("the end", || server.view().reason.is_some());
    let over = control
        .join(&request, Waits::default(), &mut patient)
        .unwrap();
    assert!(matches!(over, Joined::Over { .. }), "{over:?}");
}

#[test]
fn who_is_left_alone_is_told_at_once_and_joins_again() {
    let server = server(2);
    let requests = [request(0), request(1)];
    let (mut first, mut second) = (control(&server), control(&server));
    let joining = {
        let request = requests[1].clone();
        thread::spawn(move || (joined(&mut second, &request), second))
    };
    let generation = joined(&mut first, &requests[0]).generation;
    let (assignment, mut second) = joining.join().unwrap();
    assert_eq!(assignment.generation, generation);
    let (kept, notices) = member(&first, &requests[0].process, generation);
    let (lost, _) = member(&second, &requests[1].process, generation);
    let both = || {
        server
            .view()
            .members
            .iter()
            .all(|rank| rank.status.is_some())
    };
    wait_for("both", both);
    drop(lost);
    let told = next(&notices, |notice| matches!(notice, Notice::Abandon { .. }));
    let Notice::Abandon { reason } = told else {
        panic!("{told:?}");
    };
    assert!(
        reason.contains("rank 1") && reason.contains("node-1"),
        "{reason}"
    );
    // Nothing is told after the end, and a farewell is no error then.
    kept.leave(Reason::Failed {
        message: "interrupted".into(),
        lost: Some(1),
    })
    .unwrap();
    assert!(notices.try_recv().is_err());
    let request = requests[1].clone();
    let joining = thread::spawn(move || joined(&mut second, &request));
    let again = joined(&mut first, &requests[0]);
    assert!(again.generation > generation);
    assert_eq!(joining.join().unwrap().generation, again.generation);
}

#[test]
fn training_goes_on_without_a_coordinator_and_with_the_next() {
    let folder = Folder::new("again");
    let store = Store::create(folder.0.to_str().unwrap()).unwrap();
    let server = Server::start(options(1), store.clone(), "checkpoints").unwrap();
    let address = server.address();
    let (mut control, request) = (control(&server), request(0));
    let generation = joined(&mut control, &request).generation;
    let (member, notices) = member(&control, &request.process, generation);
    wait_for("a heartbeat", || server.view().members[0].status.is_some());
    server.stop();
    let told = next(&notices, |_| true);
    assert!(
        matches!(told, Notice::Unreachable { seconds, .. } if seconds >= 3),
        "{told:?}"
    );
    // What is said meanwhile waits.
    member
        .report()
        .checkpoint(manifest_name_of(5, Some(generation)), 5, 0);
    let mut again = options(1);
    again.listen = address;
    let server = Server::start(again, store, "checkpoints").unwrap();
    assert_eq!(next(&notices, |_| true), Notice::Reachable);
    let checkpoint = || server.view().checkpoint.as_ref().map(|c| c.batches_done);
    wait_for("the checkpoint", || checkpoint() == Some(5));
    wait_for("the generation", || {
        server.view().generation == Some(generation)
    });
    assert!(notices.try_recv().is_err());
}

#[test]
fn waits_have_an_end_and_errors_a_remedy() {
    let short = Waits {
        coordinator: Duration::from_millis(600),
        ranks: Duration::from_millis(600),
    };
    // A port where nobody listens.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = nobody.local_addr().unwrap();
    drop(nobody);
    let url = format!("http://{address}");
    let mut control = Control::new(&coordinator(url.clone())).unwrap();
    let error = control.join(&request(0), short, &mut patient).unwrap_err();
    assert!(matches!(error, ControlError::Unreachable { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(&url) && text.contains("start synfire-coordinator"),
        "{text}"
    );

    let server = server(2);
    let mut control = self::control(&server);
    let error = control.join(&request(0), short, &mut patient).unwrap_err();
    assert!(error.to_string().contains("rank 1"), "{error}");
    let mut impatient = |_: &Waiting| ControlFlow::Break(());
    let error = control.join(&request(0), Waits::default(), &mut impatient);
    assert!(matches!(error, Err(ControlError::Interrupted)), "{error:?}");
}

#[test]
fn who_is_refused_is_told_why_at_once() {
    let server = server(2);
    let mut wrong = coordinator(server.url());
    wrong.token = Token::new("another token, 16 bytes".replace(' ', "-").as_str(), "").unwrap();
    let mut control = Control::new(&wrong).unwrap();
    let error = control.join(&request(0), Waits::default(), &mut patient);
    let error = error.unwrap_err();
    assert!(matches!(error, ControlError::Token { .. }), "{error}");
    assert!(!error.to_string().contains("another"), "{error}");

    let mut control = self::control(&server);
    let mut too_many = request(0);
    too_many.world = Some(3);
    let error = control.join(&too_many, Waits::default(), &mut patient);
    let Err(ControlError::Refused { code, reason, .. }) = error else {
        panic!("{error:?}");
    };
    assert_eq!(code, Refusal::World);
    assert!(reason.contains("one of 3 ranks"), "{reason}");
}

#[test]
fn https_needs_a_certificate_that_is_trusted() {
    let folder = Folder::new("tls");
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (folder.0.join("cert.pem"), folder.0.join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let mut secure = options(1);
    secure.tls = Some(Tls::read(&certificate, &key).unwrap());
    let server = Server::start(secure, Store::in_memory(), "checkpoints").unwrap();
    let mut coordinator = coordinator(server.url());
    coordinator.ca = Some(certificate);
    let mut control = Control::new(&coordinator).unwrap();
    assert_eq!(joined(&mut control, &request(0)).rank, 0);

    let short = Waits {
        coordinator: Duration::from_millis(100),
        ..Waits::default()
    };
    // Another certificate, and HTTP where HTTPS is spoken.
    let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let other_file = folder.0.join("other.pem");
    std::fs::write(&other_file, other.cert.pem()).unwrap();
    coordinator.ca = Some(other_file);
    let mut control = Control::new(&coordinator).unwrap();
    let error = control.join(&request(0), short, &mut patient).unwrap_err();
    assert!(
        error.to_string().to_lowercase().contains("certificate"),
        "{error}"
    );
    coordinator.url = coordinator.url.replace("https", "http");
    let mut control = Control::new(&coordinator).unwrap();
    let error = control.join(&request(0), short, &mut patient).unwrap_err();
    assert!(matches!(error, ControlError::Unreachable { .. }), "{error}");
    // A file without a certificate.
    coordinator.ca = Some(key);
    let error = Control::new(&coordinator).unwrap_err().to_string();
    assert!(error.contains("key.pem"), "{error}");
}

/// A folder that is gone when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("synfire-control-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn who_waits_for_the_next_generation_waits_for_as_long_as_this_one_trains() {
    let server = server(1);
    let mut first = control(&server);
    let request_of_first = request(0);
    let generation = joined(&mut first, &request_of_first).generation;
    let (member, _notices) = member(&first, &request_of_first.process, generation);
    // It would hardly wait for ranks that are missing.
    let waits = Waits {
        ranks: Duration::from_nanos(1),
        ..Waits::default()
    };
    let mut second = request(0);
    second.rank = None;
    let (told, asked) = sync_channel(100);
    let waiting = thread::spawn({
        let mut control = control(&server);
        move || {
            let mut see = |waiting: &Waiting| {
                let _ = told.try_send(waiting.clone());
                ControlFlow::Continue(())
            };
            control.join(&second, waits, &mut see)
        }
    });
    for _ in 0..3 {
        match asked.recv_timeout(DEADLINE).unwrap() {
            Waiting::Ranks { missing, .. } => {
                let trains = format!("generation {generation} trains; the next one");
                assert_eq!(missing, [trains]);
            }
            Waiting::Coordinator { reason } => panic!("{reason}"),
        }
    }
    assert_eq!(server.view().members.len(), 1);
    // The generation ends: now it does not wait for others, and gets the place or gives up.
    let (message, lost) = ("no space left".to_owned(), None);
    member.leave(Reason::Failed { message, lost }).unwrap();
    match waiting.join().unwrap() {
        Ok(Joined::Start(next)) => assert!(next.generation > generation),
        Ok(Joined::Over { reason, .. }) => panic!("over: {reason}"),
        Err(error) => assert!(matches!(error, ControlError::Missing { .. }), "{error}"),
    }
}

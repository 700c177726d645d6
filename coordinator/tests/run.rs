//! What the state machine answers, one conversation at a time.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test, all of it"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use synfire_coordinator::{Action, Counter, Event, Loss, Policy, Reply, Run, Stored};
use synfire_shared::checkpoint::{Digest, ManifestName, manifest_name_of};
use synfire_shared::generation::{Generation, Survey};
use synfire_shared::protocol::{
    Assignment, Checkpoint, Directive, Done, Heartbeat, Identity, JoinRequest, JoinResponse, Leave,
    Order, PROTOCOL, Phase, Reason, Refusal, Status,
};

/// A run with a store that answers at once.
struct Talk {
    run: Run,
    ms: u64,
    ticks: u64,
    generations: Vec<Generation>,
    manifests: Vec<ManifestName>,
    counted: Vec<Counter>,
    logged: Vec<String>,
}

impl Talk {
    fn new(ranks: u32) -> Self {
        Self::with(Policy::new(ranks, "0.1.0").unwrap())
    }

    fn with(policy: Policy) -> Self {
        Self {
            run: Run::new(policy.checked().unwrap()),
            ms: 1000,
            ticks: 0,
            generations: Vec::new(),
            manifests: Vec::new(),
            counted: Vec::new(),
            logged: Vec::new(),
        }
    }

    /// The same run folder, read by a coordinator that starts.
    fn restart(&mut self) {
        self.restart_with(self.run.view().ranks);
    }

    fn restart_with(&mut self, ranks: u32) {
        self.run = Run::new(Policy::new(ranks, "0.1.0").unwrap());
    }

    fn event(&mut self, event: Event) -> Option<Reply> {
        let time = Duration::from_millis(self.ms);
        let (mut reply, mut events) = (None, vec![event]);
        while let Some(event) = events.pop() {
            for action in self.run.handle(time, event) {
                match action {
                    Action::Reply(_, got) => assert!(reply.replace(got).is_none(), "two replies"),
                    Action::Survey => events.push(Event::Stored(self.surveyed())),
                    Action::PutGeneration(generation) => {
                        self.generations.push(*generation);
                        events.push(Event::Stored(Stored::Put));
                    }
                    Action::WithdrawGeneration(name) => {
                        self.generations.retain(|g| g.name() != name);
                        events.push(Event::Stored(Stored::Withdrawn));
                    }
                    Action::Log(_, text) => self.logged.push(text),
                    Action::Count(counter) => self.counted.push(counter),
                }
            }
        }
        reply
    }

    fn surveyed(&self) -> Stored {
        let mut survey = Survey {
            links: self.generations.iter().map(Generation::link).collect(),
            newest: Vec::new(),
            manifests: self.manifests.clone(),
        };
        let number = survey.number();
        let newest = self.generations.iter().filter(|g| g.generation == number);
        survey.newest = newest.cloned().collect();
        Stored::Surveyed {
            survey: Box::new(survey),
            nonce: self.ms,
            secret: "secret".into(),
        }
    }

    fn join(&mut self, request: &JoinRequest) -> JoinResponse {
        match self.event(Event::Join(1, Box::new(request.clone()))) {
            Some(Reply::Join(response)) => {
                response.check().unwrap();
                response
            }
            other => panic!("{other:?}"),
        }
    }

    fn refused(&mut self, request: &JoinRequest) -> (Refusal, String) {
        match self.event(Event::Join(1, Box::new(request.clone()))) {
            Some(Reply::Refused(refused)) => (refused.code, refused.reason),
            other => panic!("{other:?}"),
        }
    }

    fn start(&mut self, request: &JoinRequest) -> Assignment {
        match self.join(request) {
            JoinResponse::Start(assignment) => assignment,
            other => panic!("{other:?}"),
        }
    }

    fn missing(&mut self, request: &JoinRequest) -> (Vec<String>, Option<f64>) {
        match self.join(request) {
            JoinResponse::Wait {
                missing,
                seconds_left,
                ..
            } => (missing, seconds_left),
            other => panic!("{other:?}"),
        }
    }

    fn beat_with(&mut self, process: u32, generation: u64, status: Status) -> Directive {
        let heartbeat = Heartbeat {
            process: name(process),
            generation,
            status,
        };
        match self.event(Event::Heartbeat(1, heartbeat)) {
            Some(Reply::Directive(directive)) => directive,
            other => panic!("{other:?}"),
        }
    }

    fn beat(&mut self, process: u32, generation: u64) -> Directive {
        self.beat_with(process, generation, training(120))
    }

    fn leave(&mut self, process: u32, generation: u64, reason: Reason) {
        let leave = Leave {
            process: name(process),
            generation,
            reason,
        };
        assert_eq!(
            self.event(Event::Leave(1, leave)),
            Some(Reply::Done(Done {}))
        );
    }

    fn fails(&mut self, process: u32, lost: Option<u32>, message: &str) {
        let message = message.into();
        self.leave(process, 1, Reason::Failed { message, lost });
    }

    /// Time passes, tick by tick, with heartbeats of these processes every second.
    fn pass(&mut self, ms: u64, generation: u64, beating: &[u32]) {
        let end = self.ms + ms;
        while self.ms < end {
            self.ms += 250;
            self.ticks += 1;
            self.event(Event::Tick);
            if self.ticks.is_multiple_of(4) {
                for &process in beating {
                    self.beat(process, generation);
                }
            }
        }
    }

    fn abandoned(&mut self, process: u32, generation: u64) -> String {
        match self.beat(process, generation) {
            Directive::Abandon { reason } => reason,
            other => panic!("{other:?}"),
        }
    }

    fn losses(&self) -> Vec<Loss> {
        let loss = |counter: &Counter| match counter {
            Counter::Lost(loss) => Some(*loss),
            _ => None,
        };
        self.counted.iter().filter_map(loss).collect()
    }
}

fn name(process: u32) -> String {
    format!("{process:032x}")
}

fn training(update: u64) -> Status {
    Status {
        phase: Phase::Training,
        update,
        ..Status::default()
    }
}

fn checkpoint(process: u32, generation: u64, batches_done: u64) -> Checkpoint {
    Checkpoint {
        process: name(process),
        generation,
        manifest: manifest_name_of(batches_done, Some(generation)),
        batches_done,
        epoch: 0,
    }
}

fn settings(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split(' ').map(|pair| pair.split_once('=').unwrap());
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn request(process: u32) -> JoinRequest {
    let settings = settings("run.seed=1 data.batch=8 model.width=0.5 loss.kind=\"ce\"");
    JoinRequest {
        protocol: PROTOCOL,
        version: "0.1.0".into(),
        process: name(process),
        host: format!("node-{process}"),
        pid: 70 + process,
        rank: None,
        world: None,
        identity: Identity {
            configuration: Digest::of_settings(&settings),
            settings,
            data: Digest::of(b"data"),
            plan: Digest::of(b"plan"),
            lanes: 8,
            batch: 8,
            folder: Some("s3://b/run".into()),
        },
        collective: None,
        metrics: None,
        left: 0,
    }
}

/// So many processes train as generation 1; process n is rank n.
fn training_run(ranks: u32) -> Talk {
    let mut talk = Talk::new(ranks);
    for process in 0..ranks {
        talk.join(&request(process));
        talk.ms += 1;
    }
    for process in 0..ranks {
        let assignment = talk.start(&request(process));
        assert_eq!((assignment.rank, assignment.generation), (process, 1));
        assert_eq!(talk.beat(process, 1), Directive::Continue);
    }
    talk
}

type Change = fn(&mut JoinRequest);

const DIFFERENCES: [(Refusal, &str, Change); 11] = [
    (Refusal::Protocol, "version 9 of the protocol", |r| {
        r.protocol = 9;
    }),
    (
        Refusal::Version,
        "the worker is version 0.2.0, the coordinator 0.1.0",
        |r| {
            r.version = "0.2.0".into();
        },
    ),
    (Refusal::Malformed, "process is not 32", |r| {
        r.process.clear();
    }),
    (Refusal::Data, "training set has the digest", |r| {
        r.identity.data = Digest::of(b"x");
    }),
    (Refusal::Plan, "order of samples has the digest", |r| {
        r.identity.plan = Digest::of(b"x");
    }),
    (Refusal::Folder, "run.folder is \"other\"", |r| {
        r.identity.folder = Some("other".into());
    }),
    (
        Refusal::World,
        "one of 3 ranks, the coordinator waits for 2",
        |r| r.world = Some(3),
    ),
    (
        Refusal::World,
        "as rank 2, the coordinator waits for 2 ranks",
        |r| r.rank = Some(2),
    ),
    (
        Refusal::WorldTooLarge,
        "2 ranks cannot share 1 lanes of a global batch of 67",
        |r| {
            (r.identity.lanes, r.identity.batch) = (1, 67);
        },
    ),
    (
        Refusal::WorldTooLarge,
        "at most 1 ranks, or a data.batch of 66 or 68",
        |r| {
            (r.identity.lanes, r.identity.batch) = (1, 67);
        },
    ),
    (
        Refusal::Configuration,
        "loss.kind is not set here, \"ce\" on the other ranks; model.width is 1 here, 0.5 on \
             the other ranks; run.seed is 2 here, 1 on the other ranks; 1 more",
        |r| {
            r.identity.settings = settings("run.seed=2 data.batch=8 model.width=1 x.y=z");
            r.identity.configuration = Digest::of_settings(&r.identity.settings);
        },
    ),
];

#[test]
fn who_differs_is_refused_and_told_why() {
    let mut talk = Talk::new(2);
    talk.join(&request(0));
    for (code, reason, change) in DIFFERENCES {
        let mut other = request(1);
        change(&mut other);
        let (got, told) = talk.refused(&other);
        assert_eq!(got, code, "{told}");
        assert!(told.contains(reason), "{reason}: {told}");
        assert_eq!(talk.counted.pop(), Some(Counter::Refused(code)));
    }
    // Once nobody is there, others may train something else.
    talk.pass(5000, 0, &[]);
    let mut other = request(1);
    other.identity.data = Digest::of(b"x");
    talk.join(&other);
}

#[test]
fn the_policy_names_the_run_folder() {
    let mut policy = Policy::new(2, "0.1.0").unwrap();
    policy.folder = Some("s3://b/run/".into());
    let mut talk = Talk::with(policy);
    talk.join(&request(0));
    let mut other = request(1);
    other.identity.folder = None;
    let (code, reason) = talk.refused(&other);
    assert_eq!(code, Refusal::Folder);
    assert!(
        reason.contains("run.folder is none, the coordinator's \"s3://b/run/\""),
        "{reason}"
    );
}

#[test]
fn policies_that_contradict_themselves_are_refused() {
    for ranks in [0, 65] {
        let error = Policy::new(ranks, "").unwrap_err().to_string();
        assert!(error.contains("a run has 1 to 64"), "{error}");
    }
    let mut policy = Policy::new(2, "").unwrap();
    policy.min_ranks = 3;
    let error = policy.checked().unwrap_err().to_string();
    assert!(error.contains("at least 3 of 2 ranks"), "{error}");
}

#[test]
fn who_is_missing_is_named() {
    let mut policy = Policy::new(3, "0.1.0").unwrap();
    (policy.min_ranks, policy.wait) = (2, Duration::from_secs(20));
    let mut talk = Talk::with(policy);
    assert_eq!(
        talk.missing(&request(0)).0,
        ["the coordinator reads the run folder"]
    );
    assert_eq!(
        talk.missing(&request(0)),
        (vec!["2 of 3 processes".into()], None)
    );
    talk.join(&request(1));
    talk.ms += 500;
    let (missing, left) = talk.missing(&request(1));
    assert_eq!(missing, ["1 of 3 processes"]);
    assert!((left.unwrap() - 19.5).abs() < 0.1, "{left:?}");

    let mut talk = Talk::new(3);
    let with_rank = |rank| {
        let mut request = request(rank);
        request.rank = Some(rank);
        request
    };
    talk.join(&with_rank(1));
    assert_eq!(talk.missing(&with_rank(1)).0, ["rank 0", "rank 2"]);
    for rank in [0, 2] {
        talk.join(&with_rank(rank));
    }
    for rank in [2, 0, 1] {
        assert_eq!(talk.start(&with_rank(rank)).rank, rank);
        talk.beat(rank, 1);
    }
    // After a loss it is told where a rank was.
    talk.fails(0, Some(2), "the connection was closed");
    for rank in [0, 1] {
        let mut again = with_rank(rank);
        again.left = 1;
        let missing = talk.missing(&again).0;
        assert!(
            missing.contains(&"rank 2, which was on node-2 (pid 72)".into()),
            "{missing:?}"
        );
    }
}

#[test]
fn a_silent_rank_is_noticed_within_5_seconds_and_named() {
    let mut talk = training_run(3);
    talk.pass(2000, 1, &[0, 1, 2]);
    let heard = talk.ms;
    while talk.losses().is_empty() {
        talk.pass(250, 1, &[0, 1]);
        assert!(talk.ms <= heard + 5000, "not noticed");
    }
    assert!(talk.ms > heard + 4000, "noticed too early");
    assert_eq!(talk.losses(), [Loss::Silent]);
    let reason = talk.abandoned(0, 1);
    let start = "generation 1 is over: rank 2 on node-2 (pid 72) was last heard of 4.";
    assert!(
        reason.starts_with(start) && reason.ends_with("after update 120"),
        "{reason}"
    );
    // Who wakes is told the same, and what it wrote is no checkpoint of the run.
    assert_eq!(talk.abandoned(2, 1), reason);
    match talk.event(Event::Checkpoint(1, checkpoint(2, 1, 60))) {
        Some(Reply::Refused(refused)) => assert_eq!(refused.code, Refusal::Generation),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nobody_is_lost_while_nobody_is_heard() {
    let mut talk = training_run(2);
    talk.pass(30_000, 1, &[]);
    assert!(talk.losses().is_empty());
    assert_eq!(talk.beat(0, 1), Directive::Continue);
    talk.pass(3000, 1, &[0]);
    assert_eq!(talk.beat(1, 1), Directive::Continue);
    // One that stays away is, from then on.
    talk.pass(30_000, 1, &[]);
    talk.pass(6000, 1, &[0]);
    assert_eq!(talk.losses(), [Loss::Silent]);
    // And all of them after a minute.
    let mut talk = training_run(2);
    talk.pass(61_000, 1, &[]);
    assert_eq!(talk.losses(), [Loss::Silent]);
}

#[test]
fn the_culprit_is_the_one_that_was_lost_first() {
    // Rank 1 loses rank 2 and goes; rank 0 loses rank 1 and says so first.
    let mut talk = training_run(3);
    talk.fails(0, Some(1), "the connection was closed");
    talk.fails(1, Some(2), "the connection was closed");
    talk.fails(2, None, "no space left");
    let reason = talk.abandoned(0, 1);
    assert!(
        reason.contains("rank 2 on node-2 (pid 72), after update 120, gave up: no space"),
        "{reason}"
    );
    // In the other order.
    let mut talk = training_run(3);
    talk.fails(1, Some(2), "the connection was closed");
    talk.fails(0, Some(1), "the connection was closed");
    let reason = talk.abandoned(0, 1);
    assert!(
        reason.contains("rank 2 on node-2 (pid 72), after update 120, was lost, says rank 1"),
        "{reason}"
    );
    assert_eq!(talk.losses(), [Loss::Failed]);
}

#[test]
fn the_rank_whose_progress_is_oldest_is_the_one_that_hangs() {
    let mut talk = training_run(3);
    let busy = |busy_seconds, slowest_step_seconds| Status {
        busy_seconds,
        slowest_step_seconds,
        ..training(130)
    };
    // Ten of the slowest steps are longer than a minute.
    for (process, seconds) in [(0, 69.0), (1, 69.5), (2, 69.0)] {
        assert_eq!(
            talk.beat_with(process, 1, busy(seconds, 7.0)),
            Directive::Continue
        );
    }
    talk.ms += 250;
    for (process, seconds) in [(0, 69.9), (1, 70.2)] {
        talk.beat_with(process, 1, busy(seconds, 7.0));
    }
    assert_eq!(talk.losses(), [Loss::Hung]);
    let reason = talk.abandoned(2, 1);
    assert!(
        reason.contains("rank 1 on node-1 (pid 71) made no progress for 70 s, after update 130"),
        "{reason}"
    );
    // Who waits for others is not at fault, even if it stands still for longer; nor is it where the one
    // that is was not heard of yet.
    let mut talk = training_run(2);
    let waits = Status {
        waits: true,
        ..busy(75.0, 0.0)
    };
    talk.beat_with(0, 1, waits);
    talk.beat_with(1, 1, busy(58.0, 0.0));
    assert!(talk.losses().is_empty());
    talk.beat_with(
        0,
        1,
        Status {
            busy_seconds: 78.0,
            ..waits
        },
    );
    talk.beat_with(1, 1, busy(61.0, 0.0));
    let reason = talk.abandoned(0, 1);
    assert!(reason.contains("rank 1 on node-1"), "{reason}");
    let mut talk = training_run(2);
    talk.restart();
    for _ in 0..3 {
        talk.beat_with(0, 1, waits);
        talk.ms += 250;
    }
    assert!(talk.losses().is_empty());
    // At the start and at the end ten times as long is allowed; nonsense is not believed.
    let mut talk = training_run(1);
    let ending = Status {
        phase: Phase::Ending,
        ..busy(500.0, f64::NAN)
    };
    talk.beat_with(0, 1, ending);
    talk.beat_with(0, 1, busy(f64::INFINITY, -1.0));
    talk.beat_with(0, 1, busy(-5.0, f64::NAN));
    assert!(talk.losses().is_empty());
}

#[test]
fn a_late_comer_waits_and_takes_the_place_of_who_is_lost() {
    let mut talk = training_run(2);
    talk.manifests.push(ManifestName {
        batches_done: 60,
        generation: 1,
    });
    let missing = talk.missing(&request(5)).0;
    assert_eq!(missing, ["generation 1 trains; the next one"]);
    let trained = Status {
        batches_done: 61,
        ..training(244)
    };
    talk.beat_with(0, 1, trained);
    talk.fails(1, None, "no space left");
    talk.abandoned(0, 1);
    let mut again = request(0);
    again.left = 1;
    talk.join(&again);
    talk.join(&request(5));
    talk.ms += 300;
    let assignment = talk.start(&again);
    assert_eq!(
        (assignment.generation, assignment.rank, assignment.world),
        (2, 0, 2)
    );
    assert_eq!(assignment.members[1].process, name(5));
    assert_eq!(
        assignment.start.unwrap().manifest,
        "000000000060-g000001.json"
    );
    // The answer was lost: it is repeated. A message of the first generation that comes late ends nothing.
    assert_eq!(talk.start(&again).generation, 2);
    talk.beat(0, 2);
    talk.join(&request(0));
    talk.fails(0, Some(1), "late");
    assert_eq!(talk.beat(0, 2), Directive::Continue);
    assert_eq!(talk.run.generations(), 2);
}

#[test]
fn a_second_process_does_not_get_the_rank_of_a_live_one() {
    let mut talk = Talk::new(2);
    let with_rank = |process, rank| {
        let mut request = request(process);
        request.rank = Some(rank);
        request
    };
    for _ in 0..2 {
        talk.join(&with_rank(0, 0));
        talk.join(&with_rank(1, 1));
    }
    talk.beat(0, 1);
    talk.beat(1, 1);
    let missing = talk.missing(&with_rank(5, 1)).0;
    assert!(
        missing[0].starts_with("rank 1 on node-1 (pid 71), last heard of"),
        "{missing:?}"
    );
    talk.pass(2500, 1, &[0, 1]);
    let (code, reason) = talk.refused(&with_rank(5, 1));
    assert_eq!(
        (code, reason.contains("second process cannot be rank 1")),
        (Refusal::RankTaken, true)
    );
    // One whose holder is gone waits until that is sure, and gets it.
    for _ in 0..10 {
        talk.pass(500, 1, &[0]);
        talk.join(&with_rank(6, 1));
    }
    let mut again = with_rank(0, 0);
    again.left = 1;
    talk.join(&again);
    talk.ms += 300;
    talk.join(&again);
    assert_eq!(talk.start(&with_rank(6, 1)).rank, 1);
    // Of two that wait for one rank the first has it.
    let mut talk = Talk::new(2);
    for _ in 0..4 {
        talk.join(&with_rank(0, 0));
        talk.pass(500, 0, &[]);
    }
    talk.join(&with_rank(5, 0));
    talk.pass(1500, 0, &[]);
    talk.join(&with_rank(0, 0));
    assert_eq!(talk.refused(&with_rank(5, 0)).0, Refusal::RankTaken);
}

#[test]
fn a_restarted_coordinator_takes_the_ranks_back() {
    let mut talk = training_run(2);
    talk.restart();
    // Before it has read the run folder and after: nobody is stopped.
    assert_eq!(talk.beat(0, 1), Directive::Continue);
    assert_eq!(talk.beat(0, 1), Directive::Continue);
    talk.pass(9000, 1, &[0]);
    assert_eq!(talk.beat(1, 1), Directive::Continue);
    talk.pass(3000, 1, &[0, 1]);
    assert!(talk.losses().is_empty());
    assert_eq!(talk.run.view().members.len(), 2);
    // A stranger with other data is refused, though nobody has joined here.
    let mut other = request(5);
    other.identity.data = Digest::of(b"x");
    assert_eq!(talk.refused(&other).0, Refusal::Data);
    // One that does not come back is lost after the time of grace.
    talk.restart();
    talk.pass(9000, 1, &[0]);
    assert!(talk.losses().is_empty());
    talk.pass(6000, 1, &[0]);
    assert_eq!(talk.losses(), [Loss::Silent]);
    let reason = talk.abandoned(0, 1);
    assert!(
        reason.contains("rank 1 on node-1 (pid 71) was never heard of"),
        "{reason}"
    );
}

#[test]
fn a_generation_that_another_coordinator_began_is_not_disturbed() {
    let mut talk = training_run(2);
    let first = talk.generations[0].clone();
    let mut later = first.clone();
    (later.generation, later.nonce) = (2, 9);
    talk.generations.push(later.sealed());
    assert_eq!(talk.beat(0, 2), Directive::Continue);
    talk.pass(1000, 2, &[0, 1]);
    assert_eq!(talk.losses(), [Loss::TakenOver]);
    assert_eq!(talk.beat(1, 2), Directive::Continue);
    assert_eq!(talk.run.view().generation, Some(2));
    assert!(
        talk.abandoned(0, 1)
            .contains("another coordinator began a later one")
    );
}

#[test]
fn ranks_that_stop_or_end_together_are_not_disturbed() {
    // A signal: all stop after the same batch, while rank 0 still writes.
    let mut talk = training_run(2);
    talk.leave(1, 1, Reason::Stopped { signal: 15 });
    talk.pass(8000, 1, &[0]);
    assert_eq!(talk.beat(0, 1), Directive::Continue);
    assert_eq!(talk.run.view().stage, "ending");
    talk.join(&request(5));
    talk.leave(0, 1, Reason::Stopped { signal: 15 });
    assert_eq!(talk.losses(), [Loss::Stopped]);
    assert!(
        talk.logged
            .last()
            .unwrap()
            .contains("was stopped by signal 15"),
        "{:?}",
        talk.logged
    );
    // The end of the run.
    let mut talk = training_run(2);
    talk.leave(1, 1, Reason::Finished);
    assert_eq!(talk.run.over(), Some("the run is finished"));
    assert_eq!(talk.beat(0, 1), Directive::Continue);
    let over = JoinResponse::Over {
        reason: "the run is finished".into(),
        status: 0,
    };
    assert_eq!(talk.join(&request(5)), over);
    talk.leave(0, 1, Reason::Finished);
}

#[test]
fn an_operator_saves_and_stops() {
    let mut talk = training_run(2);
    let order = |order| Event::Order(1, order);
    assert_eq!(talk.event(order(Order::Save)), Some(Reply::Done(Done {})));
    assert_eq!(talk.beat(1, 1), Directive::Continue);
    for _ in 0..2 {
        assert_eq!(talk.beat(0, 1), Directive::Save);
    }
    talk.event(Event::Checkpoint(1, checkpoint(0, 1, 60)));
    assert_eq!(talk.beat(0, 1), Directive::Continue);
    assert_eq!(talk.run.view().checkpoint.unwrap().batches_done, 60);

    talk.event(order(Order::Stop { signal: 2 }));
    for process in 0..2 {
        assert_eq!(talk.beat(process, 1), Directive::Stop { signal: 2 });
    }
    for process in 0..2 {
        talk.leave(process, 1, Reason::Stopped { signal: 2 });
    }
    assert!(talk.run.over().unwrap().contains("stopped by an operator"));
    match talk.event(order(Order::Stop { signal: 9 })) {
        Some(Reply::Refused(refused)) => assert_eq!(refused.code, Refusal::Malformed),
        other => panic!("{other:?}"),
    }
    // Before anybody trains it is over at once.
    let mut talk = Talk::new(2);
    talk.join(&request(0));
    talk.event(order(Order::Stop { signal: 15 }));
    assert!(matches!(talk.join(&request(0)), JoinResponse::Over { .. }));
}

#[test]
fn where_all_checkpoints_are_damaged_nothing_begins_anew() {
    let mut talk = Talk::new(1);
    for generation in [0, 1] {
        talk.manifests.push(ManifestName {
            batches_done: 30 * (generation + 1),
            generation,
        });
    }
    talk.join(&request(0));
    let mut again = request(0);
    for (generation, manifest) in [(1, "000000000060-g000001.json"), (2, "000000000030.json")] {
        let mut answer = talk.join(&again);
        while matches!(answer, JoinResponse::Wait { .. }) {
            talk.pass(250, 0, &[]);
            answer = talk.join(&again);
        }
        let JoinResponse::Start(assignment) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(assignment.start.unwrap().manifest, manifest);
        let reason = Reason::DamagedStart {
            manifest: manifest.into(),
            message: "it is cut off".into(),
        };
        talk.leave(0, generation, reason);
        again.left = generation;
    }
    for _ in 0..4 {
        talk.pass(250, 0, &[]);
        talk.join(&again);
    }
    assert!(
        talk.run
            .over()
            .unwrap()
            .contains("all checkpoints are damaged")
    );
    assert_eq!(talk.losses(), [Loss::DamagedStart; 2]);
}

#[test]
fn the_state_can_be_shown() {
    let mut talk = training_run(2);
    talk.join(&request(5));
    let view = serde_json::to_value(talk.run.view()).unwrap();
    assert_eq!(view["stage"], "training");
    assert_eq!(view["members"][1]["member"]["host"], "node-1");
    assert_eq!(view["members"][1]["status"]["update"], 120);
    assert_eq!(view["waiting"][0]["pid"], 75);
    assert!(!view.to_string().contains("secret"), "{view}");
}

/// Whether a process that waits is told that a generation trains.
fn trains(talk: &mut Talk, request: &JoinRequest) -> bool {
    match talk.join(request) {
        JoinResponse::Wait { trains, .. } => trains,
        other => panic!("{other:?}"),
    }
}

/// A process that gave up its place in this generation asks for one in the next.
fn again(process: u32, left: u64) -> JoinRequest {
    JoinRequest {
        left,
        ..request(process)
    }
}

#[test]
fn who_waits_is_told_whether_a_generation_trains() {
    let mut talk = training_run(2);
    assert!(trains(&mut talk, &request(5)));
    let mut with_rank = request(6);
    with_rank.rank = Some(1);
    assert!(trains(&mut talk, &with_rank));
    talk.fails(1, None, "no space left");
    assert!(!trains(&mut talk, &request(5)));
    // Nobody is interrupted for it, however long it takes.
    let mut policy = Policy::new(3, "0.1.0").unwrap();
    (policy.min_ranks, policy.wait) = (2, Duration::from_secs(1));
    let mut talk = Talk::with(policy);
    talk.join(&request(0));
    for _ in 0..4 {
        for process in [0, 1] {
            talk.join(&request(process));
        }
        talk.pass(500, 0, &[]);
    }
    for process in [0, 1] {
        assert_eq!(talk.start(&request(process)).world, 2);
    }
    for _ in 0..2000 {
        talk.pass(1000, 1, &[0, 1]);
        assert!(trains(&mut talk, &request(5)));
    }
    assert!(talk.losses().is_empty());
    // It has a place in the next one.
    talk.fails(1, None, "no space left");
    for _ in 0..3 {
        talk.pass(500, 0, &[]);
        for request in [again(0, 1), again(1, 1), request(5)] {
            talk.join(&request);
        }
    }
    assert_eq!(talk.start(&request(5)).world, 3);
}

/// One rank begins generation after generation; each does as `fails` says. Returns the seconds between
/// their beginnings, until the run is over or there were 15.
fn begins_again(talk: &mut Talk, fails: impl Fn(&mut Talk, u64)) -> Vec<u64> {
    let (mut began, mut pauses) = (talk.ms, Vec::new());
    let mut generation = 0;
    while pauses.len() < 15 && talk.run.over().is_none() {
        match talk.join(&again(0, generation)) {
            JoinResponse::Start(assignment) => {
                pauses.push((talk.ms - began) / 1000);
                began = talk.ms;
                generation = assignment.generation;
                talk.beat(0, generation);
                fails(talk, generation);
            }
            JoinResponse::Wait { .. } => talk.pass(250, 0, &[]),
            JoinResponse::Over { .. } => {}
        }
    }
    pauses
}

fn gives_up(talk: &mut Talk, generation: u64) {
    let (message, lost) = ("the store is full".into(), None);
    talk.leave(0, generation, Reason::Failed { message, lost });
}

#[test]
fn generations_that_fail_before_they_train_pause_and_then_end_the_run() {
    let mut talk = Talk::new(1);
    let pauses = begins_again(&mut talk, gives_up);
    assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 30, 30, 30, 30]);
    match talk.join(&again(0, 10)) {
        JoinResponse::Over { reason, status } => {
            assert_eq!(status, 1);
            let wanted = "10 generations in a row failed before a batch was trained; the last error: \
                          generation 10: rank 0 on node-0 (pid 70), after update 120, gave up: the \
                          store is full";
            assert_eq!(reason, wanted);
        }
        other => panic!("{other:?}"),
    }
    // Who waits is told why.
    let mut talk = Talk::new(1);
    talk.join(&request(0));
    talk.start(&request(0));
    gives_up(&mut talk, 1);
    talk.join(&again(0, 1));
    let missing = talk.missing(&again(0, 1)).0;
    assert_eq!(missing, ["1 s after a generation that failed"]);
    // A rank that joins again without a word gave up as well.
    let mut talk = Talk::new(1);
    begins_again(&mut talk, |_, _| ());
    assert!(talk.run.over().unwrap().contains("left it and joins again"));
}

#[test]
fn a_batch_or_a_checkpoint_ends_a_row_of_failures() {
    let mut talk = Talk::new(1);
    let pauses = begins_again(&mut talk, |talk, generation| {
        if generation % 5 == 0 {
            let status = Status {
                batches_done: 1,
                ..training(4)
            };
            talk.beat_with(0, generation, status);
        }
        if generation % 5 == 3 {
            talk.event(Event::Checkpoint(1, checkpoint(0, generation, 60)));
        }
        gives_up(talk, generation);
    });
    assert_eq!(pauses, [0, 1, 2, 0, 1, 0, 1, 2, 0, 1, 0, 1, 2, 0, 1]);
    // Batches that were done before are no progress.
    let mut talk = Talk::new(1);
    talk.manifests.push(ManifestName {
        batches_done: 60,
        generation: 0,
    });
    let pauses = begins_again(&mut talk, |talk, generation| {
        let status = Status {
            batches_done: 60,
            ..training(240)
        };
        talk.beat_with(0, generation, status);
        gives_up(talk, generation);
    });
    assert_eq!(pauses.len(), 10);
}

#[test]
fn ranks_that_are_killed_are_no_failures_of_the_run_and_ranks_that_cannot_connect_are() {
    // Rank 1 is killed again and again before the first batch; a new process takes its place.
    let mut talk = Talk::new(2);
    let lost = |talk: &mut Talk, generation| {
        let (message, lost) = ("the connection was closed".into(), Some(1));
        talk.leave(0, generation, Reason::Failed { message, lost });
    };
    let ask = |talk: &mut Talk, generation: u64, process: u32| {
        talk.join(&again(0, generation));
        talk.join(&request(process));
    };
    let mut generation = 0;
    for round in 0..20 {
        let process = 10 + round;
        ask(&mut talk, generation, process);
        talk.pass(250, 0, &[]);
        ask(&mut talk, generation, process);
        generation = talk.start(&again(0, generation)).generation;
        assert_eq!(generation, u64::from(round) + 1);
        talk.beat(0, generation);
        lost(&mut talk, generation);
    }
    assert_eq!(talk.run.over(), None);
    // The same, but rank 1 lives.
    let mut talk = Talk::new(2);
    let mut generation = 0;
    while talk.run.over().is_none() && generation < 20 {
        talk.join(&again(1, generation));
        match talk.join(&again(0, generation)) {
            JoinResponse::Start(assignment) => {
                generation = assignment.generation;
                talk.beat(0, generation);
                talk.beat(1, generation);
                lost(&mut talk, generation);
            }
            JoinResponse::Wait { .. } | JoinResponse::Over { .. } => talk.pass(250, 0, &[]),
        }
    }
    let over = talk.run.over().unwrap();
    assert!(over.contains("10 generations in a row"), "{over}");
    assert!(over.contains("was lost, says rank 0"), "{over}");
}

#[test]
fn a_generation_of_more_ranks_than_are_wanted_goes_on_and_the_next_one_is_smaller() {
    let mut talk = training_run(3);
    talk.restart_with(2);
    for _ in 0..2 {
        for process in 0..3 {
            assert_eq!(talk.beat(process, 1), Directive::Continue);
        }
    }
    talk.pass(20_000, 1, &[0, 1, 2]);
    assert!(talk.losses().is_empty());
    assert_eq!(talk.run.view().members.len(), 3);
    let told = |line: &String| line.contains("it has 3 ranks, and 2 to 2 are wanted here");
    assert!(talk.logged.iter().any(told), "{:?}", talk.logged);
    talk.fails(2, None, "no space left");
    for _ in 0..8 {
        talk.pass(250, 0, &[]);
        for process in 0..2 {
            talk.join(&again(process, 1));
        }
    }
    assert_eq!(talk.start(&again(1, 1)).world, 2);
}

#[test]
fn who_was_admitted_before_a_generation_was_found_has_no_place_beside_its_ranks() {
    let mut talk = training_run(2);
    talk.restart();
    // The run folder is not read when it asks.
    let mut other = request(5);
    other.identity.data = Digest::of(b"x");
    assert!(matches!(talk.join(&other), JoinResponse::Wait { .. }));
    talk.fails(1, None, "no space left");
    talk.join(&again(0, 1));
    talk.pass(1500, 0, &[]);
    talk.join(&again(0, 1));
    assert_eq!(talk.run.view().stage, "gathering");
    assert_eq!(talk.refused(&other).0, Refusal::Data);
    // Nobody of it is there: others may train something else.
    talk.pass(5000, 0, &[]);
    talk.join(&other);
}

#[test]
fn of_rivals_that_train_something_else_the_one_that_is_heard_is_believed() {
    let mut talk = training_run(2);
    let first = &talk.generations[0];
    let mut rival = first.clone();
    rival.nonce = first.nonce.wrapping_add(1);
    rival.identity.data = Digest::of(b"x");
    for member in &mut rival.members {
        member.process = name(member.rank + 7);
    }
    talk.generations.push(rival.sealed());
    talk.restart();
    for _ in 0..2 {
        assert_eq!(talk.beat(7, 1), Directive::Continue);
    }
    assert_eq!(talk.refused(&request(5)).0, Refusal::Data);
    let mut same = request(6);
    same.identity.data = Digest::of(b"x");
    assert!(matches!(talk.join(&same), JoinResponse::Wait { .. }));
}

#[test]
fn a_generation_of_which_nobody_was_told_does_not_keep_the_next_one() {
    // The coordinator is killed between the put and the first answer.
    let mut talk = Talk::new(2);
    talk.join(&request(0));
    talk.join(&request(1));
    assert_eq!(talk.generations.len(), 1);
    talk.restart();
    let restarted = talk.ms;
    while talk.generations.len() == 1 {
        for process in 0..2 {
            talk.join(&request(process));
        }
        talk.pass(250, 0, &[]);
        assert!(talk.ms < restarted + 4000, "{:?}", talk.logged);
    }
    assert_eq!(talk.start(&request(0)).generation, 2);
    // One whose question was under way when it was told is a rank: its heartbeats say so.
    let mut talk = training_run(2);
    talk.restart();
    talk.beat(0, 1);
    talk.beat(1, 1);
    talk.join(&request(1));
    talk.pass(2500, 1, &[0, 1]);
    talk.join(&request(1));
    talk.pass(1000, 1, &[0, 1]);
    assert!(talk.losses().is_empty());
}

#[test]
fn a_rank_that_was_never_heard_of_is_noticed_as_soon_as_one_that_was() {
    let mut talk = Talk::new(2);
    talk.join(&request(0));
    talk.join(&request(1));
    let begun = talk.ms;
    talk.start(&request(0));
    while talk.losses().is_empty() {
        talk.pass(250, 1, &[0]);
        assert!(talk.ms <= begun + 5000, "not noticed");
    }
    let reason = talk.abandoned(0, 1);
    assert!(reason.contains("rank 1 on node-1 (pid 71) was never heard of"));
    // Alone it has a minute: it may be the coordinator that is cut off.
    let mut talk = Talk::new(1);
    talk.join(&request(0));
    talk.start(&request(0));
    talk.pass(59_000, 1, &[]);
    assert!(talk.losses().is_empty());
    talk.pass(3000, 1, &[]);
    assert_eq!(talk.losses(), [Loss::Silent]);
}

//! The run as a state machine: event in, actions out.
//!
//! # Layout
//!
//! - this file: what is known, and what each event does to it.
//! - `join`: who asks to be a rank; `leave`: who goes, and why.
//! - `failures`: generations that fail one after the other.
//! - `losses`: ranks that are lost, and the end of a generation.
//! - `form`: how a generation is allocated in the run folder, and met by other coordinators.

mod failures;
mod form;
mod join;
mod leave;
mod losses;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use synfire_shared::protocol::{
    Checkpoint, Directive, Done, Heartbeat, Identity, Order, Refusal, Refused, Status, shortened,
};

use crate::clock::Clock;
use crate::ended::Ended;
use crate::event::{Action, Counter, Event, Level, Reply, ReplyId};
use crate::live::Live;
use crate::policy::Policy;
use crate::pool::Pool;
use failures::Failures;
use form::Errand;

/// Who is missing is told so often.
const TELL: Duration = Duration::from_secs(30);

/// What the run does.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    /// The run folder is not read yet.
    Reading,
    /// Processes are waited for; since when any is there.
    Gathering { since: Option<Duration> },
    /// A generation is allocated.
    Forming,
    /// A generation trains.
    Live(Live),
    /// There is nothing more to do; the last generation may still write.
    Over {
        reason: String,
        /// The exit status of those who ask for more to do.
        status: u8,
        live: Option<Live>,
    },
}

/// The state of a run: who trains, from where, who waits.
///
/// It knows no clock, no socket and no chance: these come with the events.
#[derive(Clone, Debug)]
pub struct Run {
    pub(crate) policy: Policy,
    clock: Clock,
    pub(crate) stage: Stage,
    pub(crate) pool: Pool,
    /// What is trained, as those say who are there.
    identity: Option<Identity>,
    /// Manifests that turned out to be damaged.
    damaged: BTreeSet<String>,
    /// The highest number of a generation that is known.
    newest: u64,
    errand: Errand,
    failures: Failures,
    /// The signal of an order to stop.
    stop: Option<i32>,
    is_save_wanted: bool,
    pub(crate) ended: VecDeque<Ended>,
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) begun: u64,
    told: Duration,
    last_message: Duration,
    actions: Vec<Action>,
}

impl Run {
    /// A run of which nothing is known yet: the first event makes it read the run folder.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            clock: Clock::default(),
            stage: Stage::Reading,
            pool: Pool::default(),
            identity: None,
            damaged: BTreeSet::new(),
            newest: 0,
            errand: Errand::default(),
            failures: Failures::default(),
            stop: None,
            is_save_wanted: false,
            ended: VecDeque::new(),
            checkpoint: None,
            begun: 0,
            told: Duration::ZERO,
            last_message: Duration::ZERO,
            actions: Vec::new(),
        }
    }

    /// Something happened while the caller's clock, which may jump, shows `time`: what is to be
    /// done now. Every message is answered at once.
    pub fn handle(&mut self, time: Duration, event: Event) -> Vec<Action> {
        self.clock.show(time);
        if !matches!(event, Event::Tick | Event::Stored(_)) {
            self.message();
        }
        match event {
            Event::Tick => {}
            Event::Join(id, request) => self.join(id, &request),
            Event::Heartbeat(id, heartbeat) => self.heartbeat(id, &heartbeat),
            Event::Checkpoint(id, checkpoint) => self.checkpoint(id, checkpoint),
            Event::Leave(id, leave) => self.leave(id, &leave),
            Event::Order(id, order) => self.order(id, order),
            Event::Stored(stored) => self.stored(stored),
        }
        self.step();
        std::mem::take(&mut self.actions)
    }

    /// The number of generations that began under this coordinator: one more than the restarts.
    pub fn generations(&self) -> u64 {
        self.begun
    }

    /// Why there is nothing more to do, if so.
    pub fn over(&self) -> Option<&str> {
        match &self.stage {
            Stage::Over { reason, .. } => Some(reason),
            Stage::Reading | Stage::Gathering { .. } | Stage::Forming | Stage::Live(_) => None,
        }
    }

    /// The exit status that says how the run ended.
    pub(crate) fn status(&self) -> u8 {
        match &self.stage {
            Stage::Over { status, .. } => *status,
            Stage::Reading | Stage::Gathering { .. } | Stage::Forming | Stage::Live(_) => 0,
        }
    }

    pub(crate) fn now(&self) -> Duration {
        self.clock.now()
    }

    /// The generation that trains, or writes after the end.
    pub(crate) fn live(&self) -> Option<&Live> {
        match &self.stage {
            Stage::Live(live) => Some(live),
            Stage::Over { live, .. } => live.as_ref(),
            Stage::Reading | Stage::Gathering { .. } | Stage::Forming => None,
        }
    }

    fn live_mut(&mut self) -> Option<&mut Live> {
        match &mut self.stage {
            Stage::Live(live) => Some(live),
            Stage::Over { live, .. } => live.as_mut(),
            Stage::Reading | Stage::Gathering { .. } | Stage::Forming => None,
        }
    }

    /// Something arrives from outside.
    fn message(&mut self) {
        let (now, last) = (self.now(), self.last_message);
        self.last_message = now;
        if let Stage::Live(live) = &mut self.stage {
            live.excuse(now, last);
        }
    }

    fn heartbeat(&mut self, id: ReplyId, heartbeat: &Heartbeat) {
        if let Err(malformed) = heartbeat.check() {
            self.refuse(id, Refusal::Malformed, &malformed.to_string());
            return;
        }
        let directive = self.directive(heartbeat);
        self.reply(id, Reply::Directive(directive));
    }

    fn directive(&mut self, heartbeat: &Heartbeat) -> Directive {
        let Heartbeat {
            process,
            generation,
            status,
        } = heartbeat;
        if *generation > self.newest || self.errand.puts(*generation) {
            // Another coordinator began it, or this one has yet to read of it: stop nobody.
            self.errand.learn();
            return Directive::Continue;
        }
        if matches!(self.stage, Stage::Reading) {
            return Directive::Continue;
        }
        if !self.beat(process, *generation, *status) {
            self.count(Counter::Stale);
            return Directive::Abandon {
                reason: self.why_over(*generation, process),
            };
        }
        self.count(Counter::Heartbeat);
        self.told_member(process)
    }

    fn beat(&mut self, process: &str, generation: u64, status: Status) -> bool {
        let now = self.now();
        let live = self.live_mut().filter(|live| live.number() == generation);
        let is_member = live.is_some_and(|live| live.beat(process, status, now));
        // Of rivals it may have shown which one trains.
        self.believe_live();
        self.forgive();
        is_member
    }

    /// What a member is told.
    fn told_member(&self, process: &str) -> Directive {
        if let Some(signal) = self.stop {
            return Directive::Stop { signal };
        }
        let rank = self.live().and_then(|live| live.seat_of(process));
        if self.is_save_wanted && rank == Some(0) {
            return Directive::Save;
        }
        Directive::Continue
    }

    /// Why a process that believes to be a member is none.
    fn why_over(&self, generation: u64, process: &str) -> String {
        let known = self.ended.iter().find(|e| e.generation == generation);
        let reason = match known {
            Some(ended) if ended.rank_of(process).is_some() => ended.reason.clone(),
            _ if self.live().is_some_and(|live| live.number() == generation) => {
                "this process is not one of its ranks".into()
            }
            _ => self
                .over()
                .unwrap_or("a later one took its place")
                .to_owned(),
        };
        shortened(&format!("generation {generation} is over: {reason}"))
    }

    fn checkpoint(&mut self, id: ReplyId, checkpoint: Checkpoint) {
        let process = &checkpoint.process;
        let is_member = self.live().is_some_and(|live| {
            live.number() == checkpoint.generation && live.seat_of(process).is_some()
        });
        if let Err(malformed) = checkpoint.check() {
            self.refuse(id, Refusal::Malformed, &malformed.to_string());
        } else if is_member {
            self.count(Counter::Checkpoint);
            self.is_save_wanted = false;
            self.checkpoint = Some(checkpoint);
            if let Some(live) = self.live_mut() {
                live.has_progressed = true;
            }
            self.forgive();
            self.reply(id, Reply::Done(Done {}));
        } else if checkpoint.generation > self.newest || matches!(self.stage, Stage::Reading) {
            self.errand.learn();
            // It is told once: what is read next will show whether its generation trains.
            self.checkpoint = Some(checkpoint);
            self.reply(id, Reply::Done(Done {}));
        } else {
            self.count(Counter::Stale);
            let reason = self.why_over(checkpoint.generation, process);
            self.refuse(id, Refusal::Generation, &reason);
        }
    }

    fn order(&mut self, id: ReplyId, order: Order) {
        if let Err(malformed) = order.check() {
            self.refuse(id, Refusal::Malformed, &malformed.to_string());
            return;
        }
        self.reply(id, Reply::Done(Done {}));
        match order {
            Order::Save => self.is_save_wanted = matches!(self.stage, Stage::Live(_)),
            Order::Stop { signal } => {
                self.stop.get_or_insert(signal);
                // Until the run folder is read, ranks may train that are to be told.
                if matches!(self.stage, Stage::Gathering { .. } | Stage::Forming) {
                    self.finish_stopped();
                }
            }
        }
    }

    fn stopped(&self) -> String {
        let signal = self.stop.unwrap_or_default();
        format!("the run was stopped by an operator, as by signal {signal}")
    }

    /// There is nothing more to do, because an operator says so.
    fn finish_stopped(&mut self) {
        let signal = self.stop.unwrap_or_default();
        let status = u8::try_from(signal.saturating_add(128)).unwrap_or(1);
        self.finish(&self.stopped(), status);
    }

    /// There is nothing more to do.
    fn finish(&mut self, reason: &str, status: u8) {
        self.log(Level::Info, reason.into());
        let stage = std::mem::replace(&mut self.stage, Stage::Reading);
        let live = match stage {
            Stage::Live(live) => Some(live),
            Stage::Over { live, .. } => live,
            Stage::Reading | Stage::Gathering { .. } | Stage::Forming => None,
        };
        self.stage = Stage::Over {
            reason: reason.to_owned(),
            status,
            live,
        };
    }

    /// What follows from the time and from what is known.
    fn step(&mut self) {
        let now = self.now();
        self.pool.forget(now);
        self.look_for_losses();
        self.gather();
        self.run_errands();
    }

    pub(crate) fn reply(&mut self, id: ReplyId, reply: Reply) {
        self.actions.push(Action::Reply(id, reply));
    }

    fn refuse(&mut self, id: ReplyId, code: Refusal, reason: &str) {
        self.count(Counter::Refused(code));
        let reason = shortened(reason);
        self.reply(id, Reply::Refused(Refused { code, reason }));
    }

    fn count(&mut self, counter: Counter) {
        self.actions.push(Action::Count(counter));
    }

    fn log(&mut self, level: Level, text: String) {
        self.actions.push(Action::Log(level, text));
    }
}

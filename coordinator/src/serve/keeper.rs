//! The one task that owns the state machine, and the thread that reads and writes the run folder.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use synfire_shared::generation::{Generation, GenerationName, Generations, StoreError, Survey};
use synfire_shared::metrics::CoordinatorMetrics;
use synfire_shared::storage::Store;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::{Message, Observer};
use crate::event::{Action, Counter, Event, Level, Reply, ReplyId, Stored};
use crate::policy::Policy;
use crate::run::Run;
use crate::view::View;

/// Between two looks at the time.
const TICK: Duration = Duration::from_millis(250);

/// What is to be done in the run folder.
enum Task {
    Survey,
    Put(Box<Generation>),
    Withdraw(GenerationName),
}

/// The run folder, behind a thread that may wait for it.
pub(super) struct Folder {
    tasks: SyncSender<Task>,
    done: mpsc::Receiver<Stored>,
}

impl Folder {
    /// # Errors
    /// If the operating system gives no thread.
    pub(super) fn open(store: Store, checkpoints: &str) -> io::Result<Self> {
        // The state machine has one task under way at a time.
        let (tasks, todo) = sync_channel(1);
        let (told, done) = mpsc::channel(1);
        let generations = Generations::new(store, checkpoints);
        let work = move || work(generations, &todo, &told);
        // It ends with the sender of its tasks; while a store does not answer, nobody waits for it.
        thread::Builder::new()
            .name("run folder".into())
            .spawn(work)?;
        Ok(Self { tasks, done })
    }
}

fn work(mut generations: Generations, todo: &Receiver<Task>, told: &mpsc::Sender<Stored>) {
    while let Ok(task) = todo.recv() {
        let stored = match task {
            Task::Survey => generations.survey().map_or_else(|e| failed(&e), surveyed),
            Task::Put(generation) => {
                let put = generations.put(&generation);
                put.map_or_else(|e| failed(&e), |()| Stored::Put)
            }
            Task::Withdraw(name) => {
                let withdrawn = generations.withdraw(name);
                withdrawn.map_or_else(|e| failed(&e), |()| Stored::Withdrawn)
            }
        };
        if told.blocking_send(stored).is_err() {
            return;
        }
    }
}

/// What the run folder holds, with the random draws that may follow from it.
fn surveyed(survey: Survey) -> Stored {
    let (mut nonce, mut secret) = ([0; 8], [0; 16]);
    let drawn = getrandom::fill(&mut nonce).and_then(|()| getrandom::fill(&mut secret));
    if let Err(error) = drawn {
        let reason = format!("the operating system gives no random numbers: {error}");
        return Stored::Failed { reason };
    }
    Stored::Surveyed {
        survey: Box::new(survey),
        nonce: u64::from_be_bytes(nonce),
        secret: format!("{:032x}", u128::from_be_bytes(secret)),
    }
}

/// An error with its causes, in one line.
fn failed(error: &StoreError) -> Stored {
    let mut reason = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !reason.contains(&inner_text) {
            reason = format!("{reason}: {inner_text}");
        }
        cause = inner.source();
    }
    Stored::Failed { reason }
}

/// The task that owns the state machine.
pub(super) struct Keeper {
    run: Run,
    began: Instant,
    folder: Folder,
    metrics: Arc<CoordinatorMetrics>,
    observer: Option<Observer>,
    view: watch::Sender<Arc<View>>,
    next_reply: u64,
}

impl Keeper {
    pub(super) fn new(
        policy: Policy,
        folder: Folder,
        metrics: Arc<CoordinatorMetrics>,
        observer: Option<Observer>,
    ) -> (Self, watch::Receiver<Arc<View>>) {
        let run = Run::new(policy);
        let (view, seen) = watch::channel(Arc::new(run.view()));
        let keeper = Self {
            run,
            began: Instant::now(),
            folder,
            metrics,
            observer,
            view,
            next_reply: 0,
        };
        (keeper, seen)
    }

    /// Feeds the state machine, for ever: with messages, with what became of its errands, and with
    /// the time.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.handle(Event::Tick, None),
                Some(stored) = self.folder.done.recv() => {
                    if matches!(stored, Stored::Failed { .. }) {
                        self.metrics.store_failures.inc();
                    }
                    self.handle(Event::Stored(stored), None);
                }
                Some(message) = inbox.recv() => {
                    self.next_reply += 1;
                    let event = (message.event)(self.next_reply);
                    self.handle(event, Some((self.next_reply, message.reply)));
                }
            }
        }
    }

    /// One event and what follows from it. Every message is answered at once.
    fn handle(&mut self, event: Event, mut asker: Option<(ReplyId, oneshot::Sender<Reply>)>) {
        for action in self.run.handle(self.began.elapsed(), event) {
            match action {
                Action::Reply(id, reply) => {
                    if let Some((_, asker)) = asker.take_if(|(asker, _)| *asker == id) {
                        // Who asked may have gone.
                        let _ = asker.send(reply);
                    }
                }
                Action::Survey => self.errand(Task::Survey),
                Action::PutGeneration(generation) => self.errand(Task::Put(generation)),
                Action::WithdrawGeneration(name) => self.errand(Task::Withdraw(name)),
                Action::Log(level, text) => self.log(level, &text),
                Action::Count(counter) => self.count(counter),
            }
        }
        self.view.send_replace(Arc::new(self.run.view()));
    }

    fn errand(&mut self, task: Task) {
        let sent = self.folder.tasks.try_send(task);
        assert!(
            sent.is_ok(),
            "one task is under way at a time, and its thread does not end"
        );
    }

    fn log(&mut self, level: Level, text: &str) {
        match (&mut self.observer, level) {
            (Some(observer), level) => observer(level, text),
            (None, Level::Info) => tracing::info!("{text}"),
            (None, Level::Warn) => tracing::warn!("{text}"),
        }
    }

    fn count(&self, counter: Counter) {
        match counter {
            Counter::Join => self.metrics.joins.inc(),
            Counter::Refused(refusal) => self.metrics.refused(refusal.name()),
            Counter::Generation => self.metrics.generations.inc(),
            Counter::Lost(loss) => self.metrics.lost(loss.name()),
            Counter::Heartbeat => self.metrics.heartbeats.inc(),
            Counter::Stale => self.metrics.stale.inc(),
            Counter::Checkpoint => self.metrics.checkpoints.inc(),
            Counter::Conflict => self.metrics.conflicts.inc(),
        }
    }
}

//! The heartbeats of a rank, on a thread of their own.
//!
//! The training thread leaves its status in a mutex that nobody holds for longer than a copy, and
//! what it has to say in a place for each; the thread sends both and tries again while the
//! coordinator does not answer.

use super::ControlError;
use super::client::{CallError, Client};
use std::fmt;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use synfire_shared::protocol::{
    self, Checkpoint, Directive, Done, Heartbeat, Leave, Reason, Status,
};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, oneshot};

/// Between two heartbeats.
const BEAT: Duration = Duration::from_secs(1);
/// For the answer to one: two may be lost before the coordinator counts a rank as dead, after 4 s.
const BEAT_TIMEOUT: Duration = Duration::from_millis(1500);
/// Before something that was not taken is sent again.
const AGAIN: Duration = Duration::from_millis(500);
/// For the answer to a checkpoint or a farewell.
const TELL_TIMEOUT: Duration = Duration::from_secs(3);
/// For how long a farewell is tried.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);
/// After so much silence the coordinator counts as unreachable, and again after each of the second.
const SILENCE: Duration = Duration::from_secs(3);
const REMINDER: Duration = Duration::from_secs(30);

/// What a member is told. Called on the thread of the heartbeats, which must not be held up.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// Write a checkpoint after this batch. Told once for each order, which the coordinator repeats until
    /// a checkpoint is reported; again after 30 s without one, as it may have failed.
    Save,
    /// Stop after this batch, with a checkpoint. Told every second.
    Stop {
        /// As if this signal had come.
        signal: i32,
    },
    /// The generation is over: stop at once, write nothing, join again. Told once, the last.
    Abandon {
        /// Why, with the culprit named.
        reason: String,
    },
    /// The coordinator does not answer; training goes on. Told after 3 s, then every 30 s.
    Unreachable {
        /// For how long it has been silent.
        seconds: u64,
        /// What the last attempt gave.
        reason: String,
    },
    /// It answers again.
    Reachable,
}

/// Where the training thread leaves its status. Setting it never waits for the network.
#[derive(Clone)]
pub struct Report(Arc<Shared>);

impl fmt::Debug for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Report(..)")
    }
}

impl Report {
    /// Changes the status, which is also a sign of progress. `busy_seconds` is not the caller's: it
    /// counts from the last call.
    pub fn set(&self, change: impl FnOnce(&mut Status)) {
        let mut said = self.0.said();
        change(&mut said.status);
        said.progress = Instant::now();
    }

    /// Tells of a checkpoint that is written. It is sent until the coordinator has taken it or a
    /// newer one takes its place.
    pub fn checkpoint(&self, manifest: String, batches_done: u64, epoch: u32) {
        let checkpoint = Checkpoint {
            process: self.0.process.clone(),
            generation: self.0.generation,
            manifest,
            batches_done,
            epoch,
        };
        self.0.said().checkpoint = Some(checkpoint);
        self.0.news.notify_one();
    }
}

/// What the training thread says.
struct Said {
    status: Status,
    progress: Instant,
    checkpoint: Option<Checkpoint>,
    /// Checkpoints that the coordinator has taken.
    taken: u64,
    leave: Option<(Leave, SyncSender<Result<(), CallError>>)>,
    /// After a farewell, and after the generation is over, nothing is told any more.
    is_over: bool,
}

struct Shared {
    process: String,
    generation: u64,
    said: Mutex<Said>,
    /// There is a checkpoint or a farewell to send.
    news: Notify,
    notify: Mutex<Box<dyn FnMut(Notice) + Send>>,
}

impl Shared {
    fn said(&self) -> MutexGuard<'_, Said> {
        // What another thread left half-done are whole numbers all the same.
        self.said
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn tell(&self, notice: Notice) {
        {
            let mut said = self.said();
            if said.is_over {
                return;
            }
            said.is_over = matches!(notice, Notice::Abandon { .. });
        }
        let mut notify = self.notify.lock();
        if let Ok(notify) = &mut notify {
            notify(notice);
        }
    }
}

/// A rank of a generation, as the coordinator sees it. Dropping it ends the heartbeats without a
/// word; see [`Membership::leave`].
pub struct Membership {
    shared: Arc<Shared>,
    url: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Membership {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Membership");
        shown.field("generation", &self.shared.generation);
        shown.finish_non_exhaustive()
    }
}

impl Membership {
    pub(super) fn begin(
        client: Client,
        process: &str,
        generation: u64,
        notify: Box<dyn FnMut(Notice) + Send>,
    ) -> Result<Self, ControlError> {
        let said = Said {
            status: Status::default(),
            progress: Instant::now(),
            checkpoint: None,
            taken: 0,
            leave: None,
            is_over: false,
        };
        let shared = Arc::new(Shared {
            process: process.to_owned(),
            generation,
            said: Mutex::new(said),
            news: Notify::new(),
            notify: Mutex::new(notify),
        });
        let url = client.url();
        let client = Arc::new(client);
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = runtime()?;
        let work = {
            let shared = Arc::clone(&shared);
            move || {
                runtime.spawn(deliver(Arc::clone(&client), Arc::clone(&shared)));
                runtime.spawn(beat(client, shared));
                let _ = runtime.block_on(stopped);
                // What is under way ends with the runtime.
                runtime.shutdown_background();
            }
        };
        let thread = thread::Builder::new().name("heartbeat".into()).spawn(work);
        Ok(Self {
            shared,
            url,
            stop: Some(stop),
            thread: Some(thread.map_err(|error| setup(&error))?),
        })
    }

    /// Where to leave the status and what is written.
    pub fn report(&self) -> Report {
        Report(Arc::clone(&self.shared))
    }

    /// Says farewell, after the newest checkpoint, and ends the heartbeats. Waits at most 10 s.
    /// That the generation is over already is no error.
    ///
    /// # Errors
    /// [`ControlError::Unreachable`] if nobody takes it, which stops nothing: the coordinator will
    /// notice the silence.
    pub fn leave(self, reason: Reason) -> Result<(), ControlError> {
        let (told, done) = sync_channel(1);
        let leave = Leave {
            process: self.shared.process.clone(),
            generation: self.shared.generation,
            reason: fitted(reason),
        };
        {
            let mut said = self.shared.said();
            said.leave = Some((leave, told));
            said.is_over = true;
        }
        self.shared.news.notify_one();
        let reason = match done.recv_timeout(LEAVE_TIMEOUT) {
            Ok(Ok(()) | Err(CallError::Refused(_))) => return Ok(()),
            Ok(Err(error)) => error.reason(),
            Err(_) => "no answer in time".into(),
        };
        Err(ControlError::Unreachable {
            url: self.url.clone(),
            seconds: LEAVE_TIMEOUT.as_secs(),
            reason,
        })
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        // Dropping the sender stops the thread, which waits for nothing.
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A runtime for one thread.
pub(super) fn runtime() -> Result<Runtime, ControlError> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_io().enable_time().build();
    runtime.map_err(|error| setup(&error))
}

fn setup(error: &std::io::Error) -> ControlError {
    let reason = error.to_string();
    ControlError::Setup { reason }
}

/// A reason whose texts the coordinator takes.
fn fitted(reason: Reason) -> Reason {
    match reason {
        Reason::Finished | Reason::Stopped { .. } => reason,
        Reason::Failed { message, lost } => Reason::Failed {
            message: protocol::shortened(&message),
            lost,
        },
        Reason::DamagedStart { manifest, message } => Reason::DamagedStart {
            manifest,
            message: protocol::shortened(&message),
        },
    }
}

/// Sends a heartbeat every second and tells what comes back.
async fn beat(client: Arc<Client>, shared: Arc<Shared>) {
    let (mut heard, mut reminded) = (Instant::now(), None::<Instant>);
    let (mut order, mut known) = (Repeated::default(), 0);
    let mut beats = tokio::time::interval(BEAT);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        let (status, taken) = {
            let said = shared.said();
            let busy_seconds = said.progress.elapsed().as_secs_f64();
            let status = Status {
                busy_seconds,
                ..said.status
            };
            (status, said.taken)
        };
        let heartbeat = Heartbeat {
            process: shared.process.clone(),
            generation: shared.generation,
            status,
        };
        let path = protocol::path::HEARTBEAT;
        let answer: Result<Directive, _> = client.call(path, &heartbeat, BEAT_TIMEOUT).await;
        let error = match answer {
            Ok(directive) if directive.check().is_ok() => {
                heard = Instant::now();
                if reminded.take().is_some() {
                    shared.tell(Notice::Reachable);
                }
                // What is ordered after a checkpoint was taken is another one.
                if std::mem::replace(&mut known, taken) != taken {
                    order = Repeated::default();
                }
                if order.is_repeated(&directive, heard) {
                    continue;
                }
                let notice = match directive {
                    Directive::Continue => continue,
                    Directive::Save => Notice::Save,
                    Directive::Stop { signal } => Notice::Stop { signal },
                    Directive::Abandon { reason } => Notice::Abandon { reason },
                };
                let is_over = matches!(notice, Notice::Abandon { .. });
                shared.tell(notice);
                if is_over {
                    return;
                }
                continue;
            }
            Ok(_) => CallError::Answer("it gives a directive that is none".into()),
            Err(error) => error,
        };
        let is_due = reminded.map_or(heard.elapsed() >= SILENCE, |at| at.elapsed() >= REMINDER);
        if is_due {
            reminded = Some(Instant::now());
            let seconds = heard.elapsed().as_secs();
            let reason = error.reason();
            shared.tell(Notice::Unreachable { seconds, reason });
        }
    }
}

/// When an order to save was told that is still repeated: it means the checkpoint that is on its way.
#[derive(Default)]
struct Repeated(Option<Instant>);

impl Repeated {
    fn is_repeated(&mut self, directive: &Directive, now: Instant) -> bool {
        if *directive != Directive::Save {
            self.0 = None;
            return false;
        }
        let told = self.0.get_or_insert(now);
        if *told == now {
            return false;
        }
        let is_recent = now.saturating_duration_since(*told) < REMINDER;
        if !is_recent {
            *told = now;
        }
        is_recent
    }
}

/// Sends checkpoints and the farewell until they are taken or refused.
async fn deliver(client: Arc<Client>, shared: Arc<Shared>) {
    loop {
        let checkpoint = shared.said().checkpoint.clone();
        if let Some(checkpoint) = checkpoint {
            let path = protocol::path::CHECKPOINT;
            match client.call::<Done>(path, &checkpoint, TELL_TIMEOUT).await {
                Ok(Done {}) => shared.said().taken += 1,
                Err(CallError::Refused(refused)) => {
                    let reason = refused.reason;
                    shared.tell(Notice::Abandon { reason });
                }
                Err(error) if is_leaving(&shared) && !may_pass(&error) => {}
                Err(_) => {
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            }
            let mut said = shared.said();
            // A newer one may have taken its place.
            said.checkpoint.take_if(|newest| *newest == checkpoint);
            continue;
        }
        let leave = shared.said().leave.as_ref().map(|(leave, _)| leave.clone());
        let Some(leave) = leave else {
            shared.news.notified().await;
            continue;
        };
        let path = protocol::path::LEAVE;
        let answer = client.call::<Done>(path, &leave, TELL_TIMEOUT).await;
        if answer.as_ref().is_err_and(may_pass) {
            tokio::time::sleep(AGAIN).await;
            continue;
        }
        if let Some((_, told)) = shared.said().leave.take() {
            let _ = told.try_send(answer.map(|_| ()));
        }
        return;
    }
}

fn is_leaving(shared: &Shared) -> bool {
    shared.said().leave.is_some()
}

/// Whether the same message may be taken later.
fn may_pass(error: &CallError) -> bool {
    matches!(error, CallError::Unreachable(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_order_to_save_is_told_once_while_its_checkpoint_is_written() {
        use Directive::{Continue, Save, Stop};
        let begin = Instant::now();
        let mut order = Repeated::default();
        let mut told = |seconds, directive| {
            let now = begin + Duration::from_secs(seconds);
            !order.is_repeated(&directive, now)
        };
        assert!(told(0, Save));
        assert!((1..30).all(|second| !told(second, Save)));
        // None is reported: it failed.
        assert!(told(30, Save));
        assert!(!told(31, Save));
        // The next order.
        assert!(told(32, Continue) && told(33, Save) && !told(34, Save));
        // A stop is told every second: the first may come before the training thread looks.
        let stop = Stop { signal: 15 };
        assert!(told(35, stop.clone()) && told(36, stop));
    }
}

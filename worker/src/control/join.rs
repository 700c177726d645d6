//! A process waits for its place in a generation.

use super::client::{CallError, Client};
use super::{ControlError, Coordinator, Membership, Notice};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use synfire_shared::protocol::{self, Assignment, JoinRequest, JoinResponse, Refusal};
use tokio::runtime::Runtime;

/// Between two questions; they are the signs of life of who waits.
const PAUSE: Duration = Duration::from_millis(500);
/// For one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// For how long a rank may be another process's: one that was just killed is noticed within 5 s.
const TAKEN_FOR: Duration = Duration::from_secs(12);

/// For how long is waited.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// For a coordinator that does not answer.
    pub coordinator: Duration,
    /// For the other ranks while no generation trains; while one does, for as long as it takes.
    pub ranks: Duration,
}

impl Default for Waits {
    /// A minute and ten.
    fn default() -> Self {
        Self {
            coordinator: Duration::from_mins(1),
            ranks: Duration::from_mins(10),
        }
    }
}

/// What is waited for, told after every question.
#[derive(Clone, Debug, PartialEq)]
pub enum Waiting {
    /// The coordinator does not answer.
    Coordinator {
        /// What the last attempt gave.
        reason: String,
    },
    /// The coordinator waits.
    Ranks {
        /// For whom or what, one line each.
        missing: Vec<String>,
        /// After so many seconds it begins with who is there.
        seconds_left: Option<f64>,
    },
}

/// How the wait ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Joined {
    /// The process is a rank.
    Start(Assignment),
    /// There is nothing more to do.
    Over {
        /// Why.
        reason: String,
        /// The exit status that says so.
        status: u8,
    },
}

/// A process's connection to its coordinator, for as many generations as it is in.
#[derive(Debug)]
pub struct Control {
    coordinator: Coordinator,
    client: Client,
    runtime: Runtime,
    /// The newest generation that this process was given a place in.
    newest: u64,
}

impl Control {
    /// Prepares the connection; asks for nothing yet.
    ///
    /// # Errors
    /// [`ControlError::Url`], [`ControlError::Certificates`] or [`ControlError::Setup`].
    pub fn new(coordinator: &Coordinator) -> Result<Self, ControlError> {
        let client = Client::new(coordinator)?;
        let runtime = super::membership::runtime()?;
        Ok(Self {
            coordinator: coordinator.clone(),
            client,
            runtime,
            newest: 0,
        })
    }

    /// Waits for a place. Who was given one before has left it when this is called: `left` of the
    /// request is set to say so. `see` is told after every question, twice a second, what is waited for,
    /// and ends the wait with `Break`.
    ///
    /// # Errors
    /// [`ControlError::Unreachable`] or [`ControlError::Missing`] when the time is over, in which what
    /// passes while a generation trains does not count;
    /// [`ControlError::Token`], [`ControlError::Refused`] or [`ControlError::Answer`] at once;
    /// [`ControlError::Interrupted`] after `Break`.
    pub fn join(
        &mut self,
        request: &JoinRequest,
        waits: Waits,
        see: &mut dyn FnMut(&Waiting) -> ControlFlow<()>,
    ) -> Result<Joined, ControlError> {
        let began = Instant::now();
        let mut request = request.clone();
        request.left = request.left.max(self.newest);
        let (mut answered, mut taken) = (began, None);
        let mut patience = Patience::default();
        loop {
            let question = self
                .client
                .call(protocol::path::JOIN, &request, ANSWER_TIMEOUT);
            let answer = self.runtime.block_on(question);
            let waiting = match answer.and_then(checked) {
                Ok(JoinResponse::Start(assignment)) => {
                    self.newest = assignment.generation;
                    return Ok(Joined::Start(assignment));
                }
                Ok(JoinResponse::Over { reason, status }) => {
                    return Ok(Joined::Over { reason, status });
                }
                Ok(JoinResponse::Wait {
                    missing,
                    seconds_left,
                    trains,
                }) => {
                    answered = Instant::now();
                    let waited = patience.waited(answered, trains);
                    if waited >= waits.ranks {
                        let seconds = waited.as_secs();
                        return Err(ControlError::Missing { seconds, missing });
                    }
                    Waiting::Ranks {
                        missing,
                        seconds_left,
                    }
                }
                Err(CallError::Refused(refused))
                    if refused.code == Refusal::RankTaken
                        && taken.get_or_insert_with(Instant::now).elapsed() < TAKEN_FOR =>
                {
                    answered = Instant::now();
                    Waiting::Ranks {
                        missing: vec![refused.reason],
                        seconds_left: None,
                    }
                }
                Err(CallError::Unreachable(reason)) if answered.elapsed() < waits.coordinator => {
                    Waiting::Coordinator { reason }
                }
                Err(error) => return Err(self.failed(error, answered.elapsed())),
            };
            if see(&waiting).is_break() {
                return Err(ControlError::Interrupted);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Begins the heartbeats of a generation. `notify` is told of directives and of the connection,
    /// on the thread of the heartbeats: it must not wait.
    ///
    /// # Errors
    /// [`ControlError::Setup`] if the operating system gives no thread.
    pub fn member(
        &self,
        process: &str,
        generation: u64,
        notify: Box<dyn FnMut(Notice) + Send>,
    ) -> Result<Membership, ControlError> {
        // A connection belongs to the runtime that made it, and this one stands still now.
        let client = Client::new(&self.coordinator)?;
        Membership::begin(client, process, generation, notify)
    }

    fn failed(&self, error: CallError, silent: Duration) -> ControlError {
        let url = self.client.url();
        match error {
            CallError::Unreachable(reason) => ControlError::Unreachable {
                url,
                seconds: silent.as_secs(),
                reason,
            },
            CallError::Token => ControlError::Token { url },
            CallError::Refused(refused) => ControlError::Refused {
                url,
                code: refused.code,
                reason: refused.reason,
            },
            CallError::Answer(reason) => ControlError::Answer { url, reason },
        }
    }
}

/// Since when others have been missing.
#[derive(Default)]
struct Patience(Option<Instant>);

impl Patience {
    /// For how long others have been missing at this time, where an answer says whether a generation
    /// trains. While one does nobody is missing.
    fn waited(&mut self, now: Instant, trains: bool) -> Duration {
        if trains {
            self.0 = None;
            return Duration::ZERO;
        }
        now.saturating_duration_since(*self.0.get_or_insert(now))
    }
}

fn checked(answer: JoinResponse) -> Result<JoinResponse, CallError> {
    match answer.check() {
        Ok(()) => Ok(answer),
        Err(error) => Err(CallError::Answer(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_a_generation_trains_does_not_count() {
        let begin = Instant::now();
        let mut patience = Patience::default();
        let mut at = |seconds, trains| {
            let now = begin + Duration::from_secs(seconds);
            patience.waited(now, trains).as_secs()
        };
        assert_eq!([at(0, false), at(300, false)], [0, 300]);
        assert_eq!([at(301, true), at(5000, true)], [0, 0]);
        assert_eq!([at(5001, false), at(5101, false)], [0, 100]);
    }
}

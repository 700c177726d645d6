//! Ranks of an MPI job, on one machine or many.
//!
//! All calls of MPI are made by one thread, which initialises it and finalises it. MPI has no
//! threads of its own that move numbers: they move while somebody asks whether they have arrived,
//! so that thread asks until they have, and sleeps a little between its questions as long as not all
//! ranks have come, because a core that asks does not compute.
//!
//! - A mean in f32 is MPI's all-reduce, which picks its own order: bits differ from those of other
//!   implementations, but not between ranks.
//! - A mean in bf16 is an all-to-all of bf16, a sum in f32 and in rank order, and an all-gather of
//!   bf16: MPI's own sum of such numbers would be rounded at each addition, and this moves half the
//!   bytes of f32 at any number of ranks.
//! - What MPI does with unequal lengths is undefined. So each call begins with an all-reduce of one
//!   size, in which every rank writes its call and length into a place of its own and the first
//!   numbers ride along: a small mean needs no other round, and of a large one nothing moves before
//!   all agree. That is also when all are known to have come.
//! - Who is missing at a deadline is asked of the others' threads.
//!
//! # Layout
//!
//! - `progress`: the thread.
//! - `desk`: questions between the threads.

mod desk;
mod progress;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use synfire_shared::ids::{Rank, World};

use super::environment::short_version;
use super::pending::{Board, Call, Driver, Ticket, check_bytes, check_root, check_values};
use super::{Collective, CollectiveError, Interrupt, Pending, Wire, rank_of};
use progress::Progress;

/// How long `MPI_Abort` may take before this process ends itself, which ends the job as well.
const ABORT: Duration = Duration::from_secs(5);

/// For `mpirun` to pass on what was said last: MPICH's drops what it has not read when a job is aborted.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How long the other ranks may take to finalise after this one; then nobody waits for it.
const FINALISE: Duration = Duration::from_mins(1);

/// One rank of an MPI job. Dropping it finalises MPI, once all ranks do.
pub struct Mpi {
    rank: usize,
    world: usize,
    library: String,
    board: Arc<Board>,
    link: Arc<Link>,
}

/// What the caller and the thread share.
struct Link {
    calls: Mutex<Calls>,
    changed: Condvar,
    /// How many calls this rank has begun.
    begun: AtomicU64,
    /// Something is in `calls` that does not wait for its turn.
    urgent: AtomicBool,
}

#[derive(Default)]
struct Calls {
    queue: VecDeque<Call>,
    /// No more come.
    closed: bool,
    /// The thread has ended.
    ended: bool,
    abort: Option<String>,
    /// A wait for this call took longer than the deadline.
    expired: Option<(u64, Duration)>,
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn urge(&self, change: impl FnOnce(&mut Calls)) {
        change(&mut self.lock());
        self.urgent.store(true, Ordering::Release);
        self.changed.notify_all();
    }
}

impl Driver for Link {
    fn expired(&self, sequence: u64, deadline: Duration) {
        self.urge(|calls| calls.expired = Some((sequence, deadline)));
    }

    fn interrupted(&self) {}
}

impl Mpi {
    /// Initialises MPI in a process that `mpirun` has started; once in a process. A process that
    /// was started otherwise is a group of one.
    ///
    /// # Errors
    ///
    /// `Group` if MPI was initialised before in this process, or its thread cannot be started. What
    /// MPI itself cannot do ends the process, with its message.
    pub fn start() -> Result<Self, CollectiveError> {
        let board = Board::new();
        let link = Arc::new(Link {
            calls: Mutex::default(),
            changed: Condvar::new(),
            begun: AtomicU64::new(0),
            urgent: AtomicBool::new(false),
        });
        let (send, receive) = sync_channel(1);
        let (its_board, its_link) = (Arc::clone(&board), Arc::clone(&link));
        let thread = move || {
            let Some(progress) = Progress::new(its_board, Arc::clone(&its_link)) else {
                return;
            };
            // Nobody can have stopped waiting for it.
            let _ = send.send((progress.place(), library()));
            progress.run();
            its_link.urge(|calls| calls.ended = true);
        };
        let spawned = thread::Builder::new().name("mpi".into()).spawn(thread);
        spawned.map_err(|error| CollectiveError::io("the thread of MPI", error))?;
        let started = receive.recv().map_err(|_| CollectiveError::Group {
            reason: "MPI was initialised before in this process".into(),
        });
        let ((rank, world), library) = started?;
        Ok(Self {
            rank,
            world,
            library,
            board,
            link,
        })
    }

    fn call(&self, call: Call) -> Result<Ticket, CollectiveError> {
        let sequence = self.board.open()?;
        self.link.begun.store(sequence + 1, Ordering::Release);
        self.link.lock().queue.push_back(call);
        self.link.changed.notify_all();
        Ok(Ticket::new(&self.board, self.driver(), sequence))
    }

    fn driver(&self) -> Arc<dyn Driver> {
        Arc::<Link>::clone(&self.link)
    }

    /// Waits for the thread to end.
    fn wait_for_the_end(&self, limit: Duration) {
        let calls = self.link.lock();
        let waited = self
            .link
            .changed
            .wait_timeout_while(calls, limit, |calls| !calls.ended);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Collective for Mpi {
    fn name(&self) -> String {
        format!("mpi ({})", self.library)
    }

    fn rank(&self) -> Rank {
        rank_of(self.rank)
    }

    fn world(&self) -> World {
        World(rank_of(self.world).0)
    }

    fn start_mean(&mut self, values: Vec<f32>, wire: Wire) -> Result<Pending, CollectiveError> {
        check_values(&values)?;
        Ok(Pending::new(self.call(Call::Mean { values, wire })?))
    }

    fn broadcast(&mut self, from: Rank, values: &mut [f32]) -> Result<(), CollectiveError> {
        check_root(from, self.world)?;
        check_values(values)?;
        let call = Call::Broadcast {
            values: values.to_vec(),
            from,
        };
        values.copy_from_slice(&self.call(call)?.values()?);
        Ok(())
    }

    fn gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        check_bytes(bytes)?;
        let bytes = bytes.to_vec();
        self.call(Call::Gather { bytes })?.gathered()
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.board.set_deadline(deadline);
    }

    /// Prints the reason and ends the job: all its processes. It does not return.
    fn abort(&mut self, reason: &str) {
        tell(&format!("synfire: {} gave up: {reason}", self.rank()));
        thread::sleep(LAST_WORDS);
        self.link.urge(|calls| calls.abort = Some(reason.into()));
        // `MPI_Abort` ends this process. If its thread is caught in a call of MPI, this does.
        self.wait_for_the_end(ABORT);
        std::process::exit(1);
    }

    fn interrupt(&self) -> Interrupt {
        Interrupt::new(&self.board, self.driver())
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        self.link.urge(|calls| calls.closed = true);
        // After a failure the thread may be caught in a call that never ends, and after a panic the
        // others do not finalise; the process then ends without finalising, by which `mpirun` sees
        // that the job has failed.
        if self.board.failure().is_none() && !thread::panicking() {
            self.wait_for_the_end(FINALISE);
        }
    }
}

impl fmt::Debug for Mpi {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Mpi({} of {})", self.rank, self.world)
    }
}

fn library() -> String {
    short_version(&::mpi::environment::library_version().unwrap_or_default())
}

#[expect(
    clippy::print_stderr,
    reason = "the process ends before a log would be written"
)]
fn tell(text: &str) {
    eprintln!("{text}");
}

/// How long to wait before one looks again, by how long one has looked in vain.
struct Backoff {
    began: Instant,
    looks: u32,
}

impl Backoff {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            looks: 0,
        }
    }

    /// While other ranks are still to come: they may take long, and need this core meanwhile.
    fn until_all_have_come(&mut self) {
        self.looks += 1;
        if self.looks <= 20 {
            return thread::yield_now();
        }
        let waited = self.began.elapsed();
        let pause = match waited.as_millis() {
            0..2 => 20,
            2..100 => 200,
            _ => 1000,
        };
        thread::sleep(Duration::from_micros(pause));
    }

    /// While numbers move, which they do only when looked after. But where threads outnumber cores
    /// the other rank may need this one, and who yields comes after all who compute, for as long as
    /// their turns last; who has slept comes before them.
    fn while_moving(&mut self) {
        self.looks += 1;
        if self.looks.is_multiple_of(32) {
            return thread::sleep(Duration::from_micros(1));
        }
        thread::yield_now();
    }
}

//! The thread that makes all calls of MPI.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ::mpi::Threading;
use ::mpi::collective::SystemOperation;
use ::mpi::environment::Universe;
use ::mpi::request::{LocalScope, Request, scope};
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{Communicator, CommunicatorCollectives, Root};

use super::super::opening::{self, RIDERS};
use super::super::pending::{Board, Call, Outcome};
use super::super::{CollectiveError, Wire, bf16, mean, rank_of};
use super::desk::Desk;
use super::{Backoff, Link};

/// How long the thread sleeps when there is nothing to do, between looks for questions.
const IDLE: Duration = Duration::from_millis(50);

/// The numbers of one all-reduce at most; counts of bytes in MPI libraries have 31 bits.
const MOST: usize = 64 << 20;

/// All that the thread has. MPI is finalised with the last field.
pub(super) struct Progress {
    rank: usize,
    size: usize,
    work: SimpleCommunicator,
    clerk: Clerk,
    buffers: Buffers,
    _universe: Universe,
}

/// What is looked after while a call of MPI is under way.
struct Clerk {
    desk: Desk,
    board: Arc<Board>,
    link: Arc<Link>,
    /// The call under way, counted from 0.
    sequence: u64,
    /// The call that took longer than the deadline, while the others are asked.
    expired: Option<(u64, Duration)>,
    world: SimpleCommunicator,
}

#[derive(Default)]
struct Buffers {
    opening: Vec<f32>,
    answer: Vec<f32>,
    sum: Vec<f32>,
    part: Vec<f32>,
    sent: Vec<u16>,
    received: Vec<u16>,
    gathered: Vec<u16>,
}

/// How the ranks are waited for.
#[derive(Clone, Copy)]
enum Wait {
    /// Not all may have come.
    Arrival,
    /// All have come, and numbers move.
    Transfer,
}

impl Progress {
    /// Initialises MPI, unless that has been done.
    pub(super) fn new(board: Arc<Board>, link: Arc<Link>) -> Option<Self> {
        // Funneled: this thread alone calls MPI.
        let (universe, _) = ::mpi::initialize_with_threading(Threading::Funneled)?;
        let world = universe.world();
        let place = |number| usize::try_from(number).expect("ranks are counted from 0");
        Some(Self {
            rank: place(world.rank()),
            size: place(world.size()),
            work: world.duplicate(),
            clerk: Clerk {
                desk: Desk::new(world.duplicate()),
                board,
                link,
                sequence: 0,
                expired: None,
                world,
            },
            buffers: Buffers::default(),
            _universe: universe,
        })
    }

    pub(super) fn place(&self) -> (usize, usize) {
        (self.rank, self.size)
    }

    /// Until the caller's side is gone.
    pub(super) fn run(mut self) {
        while let Some(call) = self.next() {
            let outcome = self.perform(call);
            match outcome {
                Ok(outcome) => self.clerk.board.finish(self.clerk.sequence, outcome),
                Err(error) => self.clerk.board.fail(error),
            }
            self.clerk.sequence += 1;
        }
    }

    /// The next call; none if no more come. After a failure of this rank nothing is begun.
    fn next(&mut self) -> Option<Call> {
        let link = Arc::clone(&self.clerk.link);
        loop {
            let over = self.clerk.board.failure().is_some();
            let mut calls = link.lock();
            if over {
                calls.queue.clear();
            }
            if let Some(call) = calls.queue.pop_front() {
                return Some(call);
            }
            if calls.closed {
                return None;
            }
            let waited = link.changed.wait_timeout(calls, IDLE);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            self.clerk.attend();
        }
    }

    fn perform(&mut self, mut call: Call) -> Result<Outcome, CollectiveError> {
        if self.size == 1 {
            return Ok(match call {
                Call::Mean { values, .. } | Call::Broadcast { values, .. } => {
                    Outcome::Values(values)
                }
                Call::Gather { bytes } => Outcome::Gathered(vec![bytes]),
            });
        }
        let lengths = self.open(&mut call)?;
        Ok(match call {
            Call::Mean { mut values, wire } => {
                let rest = &mut values[lengths[self.rank].min(RIDERS)..];
                match wire {
                    Wire::F32 => self.all_reduce(rest),
                    Wire::Bf16 => self.exchange(rest),
                }
                Outcome::Values(values)
            }
            Call::Broadcast { mut values, from } => {
                self.broadcast(from.0 as usize, &mut values);
                Outcome::Values(values)
            }
            Call::Gather { bytes } => {
                let mut all: Vec<_> = lengths.iter().map(|&length| vec![0; length]).collect();
                all[self.rank] = bytes;
                for (rank, bytes) in all.iter_mut().enumerate() {
                    self.broadcast(rank, bytes);
                }
                Outcome::Gathered(all)
            }
        })
    }

    /// The round that every call begins with. The first numbers of a mean are final after it.
    fn open(&mut self, call: &mut Call) -> Result<Vec<usize>, CollectiveError> {
        let (rank, size) = (self.rank, self.size);
        let Buffers {
            opening, answer, ..
        } = &mut self.buffers;
        opening.resize(opening::length(size), 0.0);
        answer.resize(opening::length(size), 0.0);
        opening::write(call, rank, size, opening);
        if let Call::Mean { values, wire } = call {
            let values = &values[..values.len().min(RIDERS)];
            let riders = &mut opening::riders(size, opening)[..values.len()];
            riders.copy_from_slice(values);
            mean::travel(riders, *wire);
        }
        let (work, clerk) = (&self.work, &mut self.clerk);
        scope(|scope| {
            let sum = SystemOperation::sum();
            let request = work.immediate_all_reduce_into(scope, &opening[..], &mut answer[..], sum);
            clerk.wait(request, Wait::Arrival);
        });
        let lengths = opening::agree(call, rank, size, answer)?;
        if let Call::Mean { values, wire } = call {
            let count = values.len().min(RIDERS);
            let riders = &mut opening::riders(size, answer)[..count];
            mean::finish(riders, size, *wire);
            values[..count].copy_from_slice(riders);
        }
        Ok(lengths)
    }

    fn all_reduce(&mut self, values: &mut [f32]) {
        let (work, clerk, sum) = (&self.work, &mut self.clerk, &mut self.buffers.sum);
        for values in values.chunks_mut(MOST) {
            sum.resize(sum.len().max(values.len()), 0.0);
            let sum = &mut sum[..values.len()];
            scope(|scope| {
                let add = SystemOperation::sum();
                let request = work.immediate_all_reduce_into(scope, &*values, &mut *sum, add);
                clerk.wait(request, Wait::Transfer);
            });
            mean::finish_into(sum, self.size, values);
        }
    }

    /// The mean in bf16: each rank sums its share, in rank order.
    fn exchange(&mut self, values: &mut [f32]) {
        let size = self.size;
        let (work, clerk) = (&self.work, &mut self.clerk);
        let Buffers {
            sum,
            part,
            sent,
            received,
            gathered,
            ..
        } = &mut self.buffers;
        for values in values.chunks_mut(MOST) {
            // All shares have one length; the last is filled up.
            let share = values.len().div_ceil(size);
            sent.clear();
            sent.extend(values.iter().map(|&value| bf16::to_bf16(value)));
            sent.resize(share * size, 0);
            received.resize(share * size, 0);
            scope(|scope| {
                let request = work.immediate_all_to_all_into(scope, &sent[..], &mut received[..]);
                clerk.wait(request, Wait::Transfer);
            });
            sum.resize(sum.len().max(share), 0.0);
            part.resize(share, 0.0);
            let sum = &mut sum[..share];
            for (rank, received) in received.chunks_exact(share).enumerate() {
                let into = if rank == 0 { &mut *sum } else { &mut part[..] };
                for (into, &bits) in into.iter_mut().zip(received) {
                    *into = bf16::from_bf16(bits);
                }
                if rank > 0 {
                    mean::add(sum, part);
                }
            }
            mean::finish(sum, size, Wire::Bf16);
            sent.clear();
            sent.extend(sum.iter().map(|&value| bf16::to_bf16(value)));
            gathered.resize(share * size, 0);
            scope(|scope| {
                let request = work.immediate_all_gather_into(scope, &sent[..], &mut gathered[..]);
                clerk.wait(request, Wait::Transfer);
            });
            for (value, &bits) in values.iter_mut().zip(&*gathered) {
                *value = bf16::from_bf16(bits);
            }
        }
    }

    fn broadcast<T: ::mpi::traits::Equivalence>(&mut self, from: usize, values: &mut [T]) {
        let from = ::mpi::Rank::try_from(from).expect("a rank of this group");
        let (root, clerk) = (self.work.process_at_rank(from), &mut self.clerk);
        for values in values.chunks_mut(MOST) {
            scope(|scope| {
                let request = root.immediate_broadcast_into(scope, &mut *values);
                clerk.wait(request, Wait::Transfer);
            });
        }
    }
}

impl Clerk {
    /// Until the call of MPI has ended. If it never does, because a rank is gone or hangs, this does
    /// not return either: the caller's wait has ended by its deadline, and what is left to do is to
    /// answer questions, and to abort. The buffers stay MPI's.
    fn wait<'a, D: ?Sized>(&mut self, mut request: Request<'a, D, &LocalScope<'a>>, wait: Wait) {
        let mut backoff = Backoff::new();
        loop {
            match request.test() {
                Ok(_) => return,
                Err(pending) => request = pending,
            }
            match wait {
                Wait::Arrival => {
                    self.attend();
                    backoff.until_all_have_come();
                }
                Wait::Transfer => {
                    // A look for questions costs as much as one for numbers.
                    if backoff.looks.is_multiple_of(64) {
                        self.attend();
                    }
                    backoff.while_moving();
                }
            }
        }
    }

    /// What does not wait for its turn.
    fn attend(&mut self) {
        if self.link.urgent.swap(false, Ordering::Acquire) {
            let mut calls = self.link.lock();
            let (abort, expired) = (calls.abort.take(), calls.expired.take());
            drop(calls);
            if abort.is_some() {
                self.world.abort(1);
            }
            self.expired = expired.or(self.expired);
            if expired.is_some() {
                self.desk.inquire();
            }
        }
        let begun = self.link.begun.load(Ordering::Acquire);
        let Some(missing) = self.desk.attend(begun, self.sequence) else {
            return;
        };
        // Calls end in order; the one that took too long may have ended just now.
        if let Some((sequence, deadline)) = self.expired.take()
            && self.sequence <= sequence
        {
            self.board.fail(CollectiveError::Deadline {
                seconds: deadline.as_secs_f64(),
                missing: missing.into_iter().map(rank_of).collect(),
            });
        }
    }
}

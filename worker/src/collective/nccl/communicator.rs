//! One communicator of NCCL: made without waiting, used by one thread, ended by any.

#![allow(unsafe_code, reason = "calls of NCCL's functions")]

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::super::Wire;
use super::super::device::Piece;
use super::library::{
    AVERAGE, BFLOAT16, Config, FLOAT32, Functions, HOST_IMMEDIATE, Handle, ID_BYTES, IN_PROGRESS,
    INTERNAL_ERROR, REMOTE_ERROR, SUCCESS, SUM, SYSTEM_ERROR, Stream, UniqueId,
};

/// Between two looks at what NCCL has not finished yet.
const LOOK: Duration = Duration::from_micros(200);

/// For so long it is looked at all the time first: most calls are done by then.
const SPIN: Duration = Duration::from_micros(50);

/// How long other ranks may take to end; then this one ends without them.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why a call of NCCL has no result.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Trouble {
    /// Another rank, or the way to it, is gone; NCCL does not say which.
    Remote(String),
    /// Something between this rank and another, as when one on the same machine is killed, or of this
    /// rank alone; NCCL does not say which.
    Unclear(String),
    /// Something else, of this rank.
    Own(String),
    /// It took too long.
    Late,
    /// Somebody has ended the communicator.
    Aborted,
}

pub(super) struct Communicator {
    functions: Functions,
    world: usize,
    state: Mutex<State>,
}

struct State {
    /// Nothing once it has ended.
    handle: Option<Raw>,
    /// Operators that were made, by their factor's bits.
    operators: Vec<(u32, c_int)>,
}

#[derive(Clone, Copy)]
struct Raw(Handle);

// SAFETY: NCCL takes a communicator from any thread, one at a time: it lies in a mutex.
unsafe impl Send for Raw {}

impl Communicator {
    /// Begins to connect this rank with the others that have the same id; [`Self::settle`] waits for
    /// that. The current context's GPU is what it works on.
    pub(super) fn begin(
        functions: Functions,
        (rank, world): (usize, usize),
        id: [u8; ID_BYTES],
    ) -> Result<Self, Trouble> {
        let number =
            |number| c_int::try_from(number).map_err(|_| Trouble::Own("no such rank".into()));
        let mut config = Config::without_waiting();
        let mut handle = ptr::null_mut();
        // SAFETY: NCCL writes one communicator, and reads the configuration before it returns.
        let result = unsafe {
            let (rank, world) = (number(rank)?, number(world)?);
            (functions.init_rank)(&raw mut handle, world, UniqueId(id), rank, &raw mut config)
        };
        let state = State {
            handle: (!handle.is_null()).then_some(Raw(handle)),
            operators: Vec::new(),
        };
        let communicator = Self {
            functions,
            world,
            state: Mutex::new(state),
        };
        match communicator.judge("ncclCommInitRankConfig", result, handle) {
            Ok(_) => Ok(communicator),
            Err(trouble) => {
                communicator.abort();
                Err(trouble)
            }
        }
    }

    /// "2.28.9".
    pub(super) fn version(&self) -> String {
        self.functions.version()
    }

    /// Waits until NCCL has done what it was last asked for, or `gives_up` says why not to.
    pub(super) fn settle(
        &self,
        limit: Duration,
        gives_up: &dyn Fn() -> bool,
    ) -> Result<(), Trouble> {
        let begin = Instant::now();
        while !self.look()? {
            if gives_up() {
                return Err(Trouble::Aborted);
            }
            if begin.elapsed() > limit {
                return Err(Trouble::Late);
            }
            if begin.elapsed() < SPIN {
                std::hint::spin_loop();
            } else {
                thread::sleep(LOOK);
            }
        }
        Ok(())
    }

    /// Whether NCCL has done what it was last asked for, and nothing has failed since.
    pub(super) fn look(&self) -> Result<bool, Trouble> {
        let state = self.lock();
        let Raw(handle) = state.handle.ok_or(Trouble::Aborted)?;
        let mut found = SUCCESS;
        // SAFETY: the communicator is alive while it lies under the lock; one number is written.
        let result = unsafe { (self.functions.async_error)(handle, &raw mut found) };
        self.judge("ncclCommGetAsyncError", result, handle)?;
        self.judge("NCCL", found, handle)
    }

    /// Puts sums over all ranks in the place of numbers, on this stream. They travel together. If they
    /// are not on the stream yet when this returns, it says false: [`Self::settle`] waits for that.
    pub(super) fn reduce(&self, pieces: &[Piece], stream: Stream) -> Result<bool, Trouble> {
        let mut state = self.lock();
        let Raw(handle) = state.handle.ok_or(Trouble::Aborted)?;
        // Made before the group begins: it is for collectives alone.
        let operators: Vec<c_int> = pieces
            .iter()
            .map(|piece| self.operator(&mut state, handle, piece))
            .collect::<Result<_, _>>()?;
        // SAFETY: the group ends below, whatever happens between.
        let mut result = unsafe { (self.functions.group_start)() };
        for (piece, operator) in pieces.iter().zip(operators) {
            if result == SUCCESS || result == IN_PROGRESS {
                result = self.reduce_one(piece, operator, handle, stream);
            }
        }
        // SAFETY: it ends the group that was begun above on this thread.
        let ended = unsafe { (self.functions.group_end)() };
        self.judge("ncclAllReduce", result, handle)?;
        self.judge("ncclGroupEnd", ended, handle)
    }

    fn reduce_one(&self, piece: &Piece, operator: c_int, handle: Handle, stream: Stream) -> c_int {
        let address = usize::try_from(piece.address).unwrap_or(0);
        let numbers: *mut c_void = ptr::with_exposed_provenance_mut(address);
        let kind = match piece.wire {
            Wire::F32 => FLOAT32,
            Wire::Bf16 => BFLOAT16,
        };
        // SAFETY: the back end says where its numbers lie, which is memory of the GPU that the
        // communicator works on; it stays until the stream has come past this, as the back end waits for
        // it (`OnDevice::join`). The stream is of the same GPU and alive. The host touches neither.
        unsafe {
            (self.functions.all_reduce)(
                numbers,
                numbers,
                piece.length,
                kind,
                operator,
                handle,
                stream,
            )
        }
    }

    /// The operator that multiplies by a piece's factor and adds.
    fn operator(&self, state: &mut State, handle: Handle, piece: &Piece) -> Result<c_int, Trouble> {
        let bits = piece.factor.to_bits();
        if bits == 1.0_f32.to_bits() {
            return Ok(SUM);
        }
        assert!(
            piece.wire == Wire::F32,
            "a factor of bf16 would be rounded itself"
        );
        if bits == (1.0 / self.world as f32).to_bits() {
            return Ok(AVERAGE);
        }
        if let Some((_, operator)) = state.operators.iter().find(|(factor, _)| *factor == bits) {
            return Ok(*operator);
        }
        let (mut operator, mut factor) = (SUM, piece.factor);
        // SAFETY: one number is written; the factor is an f32, as is said, and is read before the call
        // returns.
        let result = unsafe {
            let factor = (&raw mut factor).cast();
            (self.functions.create_factor)(
                &raw mut operator,
                factor,
                FLOAT32,
                HOST_IMMEDIATE,
                handle,
            )
        };
        self.judge("ncclRedOpCreatePreMulSum", result, handle)?;
        state.operators.push((bits, operator));
        Ok(operator)
    }

    /// Ends it at once, and all that is under way on streams.
    pub(super) fn abort(&self) {
        let handle = self.lock().handle.take();
        if let Some(Raw(handle)) = handle {
            // SAFETY: nobody else has it any more.
            let _ = unsafe { (self.functions.abort)(handle) };
        }
    }

    /// Ends it together with the other ranks; without them after some seconds.
    pub(super) fn close(&self) {
        let finalized = {
            let mut state = self.lock();
            let Some(Raw(handle)) = state.handle else {
                return;
            };
            for (_, operator) in state.operators.drain(..) {
                // SAFETY: it was made for this communicator, and what uses it has been called.
                let _ = unsafe { (self.functions.destroy_operator)(operator, handle) };
            }
            // SAFETY: it is alive under the lock.
            let result = unsafe { (self.functions.finalize)(handle) };
            self.judge("ncclCommFinalize", result, handle)
        };
        let quiet = match finalized {
            Ok(true) => Ok(()),
            Ok(false) => self.settle(FAREWELL, &|| false),
            Err(trouble) => Err(trouble),
        };
        if quiet.is_err() {
            return self.abort();
        }
        let handle = self.lock().handle.take();
        if let Some(Raw(handle)) = handle {
            // SAFETY: nobody else has it any more, and nothing is under way.
            let _ = unsafe { (self.functions.destroy)(handle) };
        }
    }

    /// Whether a call is done, or is being done.
    fn judge(&self, what: &str, result: c_int, handle: Handle) -> Result<bool, Trouble> {
        match result {
            SUCCESS => Ok(true),
            IN_PROGRESS => Ok(false),
            REMOTE_ERROR => Err(Trouble::Remote(self.functions.told(what, result, handle))),
            SYSTEM_ERROR | INTERNAL_ERROR => {
                Err(Trouble::Unclear(self.functions.told(what, result, handle)))
            }
            other => Err(Trouble::Own(self.functions.told(what, other, handle))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.abort();
    }
}

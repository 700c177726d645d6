//! Bytes between the host and the device.
//!
//! What goes up is copied into a ring of pinned memory and from there on the copy stream, while the host
//! and the compute stream go on. What comes down is copied on the compute stream into pinned memory.

use super::context::{Context, lock};
use super::driver::Pinned;
use super::memory::size;
use super::stream::Event;
use super::{CudaError, Device, Pointer};
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes of the ring.
const RING_BYTES: usize = 16 << 20;
/// The most that one copy takes of it, so that filling one piece overlaps with copying another.
const PIECE_BYTES: usize = RING_BYTES / 4;
/// The most that one copy to the host takes.
const READ_BYTES: usize = 4 << 20;

/// The ring, and what of it is still being copied.
#[derive(Debug)]
pub(super) struct Uploads {
    // None only while it is dropped.
    ring: Option<Pinned>,
    /// Where the next piece begins.
    head: usize,
    under_way: VecDeque<Piece>,
    spare: Vec<Event>,
    before: Event,
    after: Event,
}

#[derive(Debug)]
struct Piece {
    start: usize,
    end: usize,
    done: Event,
}

impl Uploads {
    pub(super) fn new(context: &Context) -> Result<Self, CudaError> {
        Ok(Self {
            ring: Some(context.primary.pin(RING_BYTES)?),
            head: 0,
            under_way: VecDeque::new(),
            spare: Vec::new(),
            before: Event::new(false)?,
            after: Event::new(false)?,
        })
    }

    /// Gives the ring back. Nothing may be written after this.
    pub(super) fn close(&mut self, context: &Context) {
        let _ = context.copy.synchronize();
        if let Some(ring) = self.ring.take() {
            context.return_pinned(ring);
        }
    }

    /// Copies bytes through the ring; the copy stream must already wait for what it has to.
    fn upload(&mut self, context: &Context, to: Pointer, bytes: &[u8]) -> Result<(), CudaError> {
        let mut to = to;
        for piece in bytes.chunks(PIECE_BYTES) {
            let start = self.reserve(piece.len())?;
            let Some(ring) = &mut self.ring else { break };
            ring.write(start, piece);
            context.copy.upload(to.0, ring, start, piece.len())?;
            let done = self.spare.pop().map_or_else(|| Event::new(false), Ok)?;
            done.record(&context.copy)?;
            self.under_way.push_back(Piece {
                start,
                end: start + piece.len(),
                done,
            });
            to = to.offset(piece.len() as u64);
        }
        Ok(())
    }

    /// Room in the ring: waits until what was copied from there is done.
    fn reserve(&mut self, bytes: usize) -> Result<usize, CudaError> {
        if self.head + bytes > RING_BYTES {
            self.head = 0;
        }
        let (start, end) = (self.head, self.head + bytes);
        // Pieces end in the order in which they began.
        while self
            .under_way
            .iter()
            .any(|piece| piece.start < end && start < piece.end)
        {
            let Some(oldest) = self.under_way.pop_front() else {
                break;
            };
            oldest.done.wait()?;
            self.spare.push(oldest.done);
        }
        // Those that have ended by themselves are taken off, so that their number has a limit.
        while let Some(oldest) = self.under_way.front() {
            if !oldest.done.is_done()? {
                break;
            }
            self.spare
                .extend(self.under_way.pop_front().map(|piece| piece.done));
        }
        // Aligned, so that copies of whole words stay so.
        self.head = end.next_multiple_of(256);
        Ok(start)
    }
}

/// A point in the work of the compute stream, for [`Device::write_after`] and for times.
#[derive(Debug)]
pub struct Mark {
    event: Event,
    // The event lives in it.
    _context: Arc<Context>,
}

impl Mark {
    /// Milliseconds of the device from here to another mark; `None` where one of them has not been
    /// passed yet, or never set.
    pub fn milliseconds_to(&self, end: &Self) -> Option<f32> {
        self.event.milliseconds_to(&end.event).ok()
    }
}

impl Device {
    /// Copies bytes to the device and returns as soon as they are in the ring; they may then be dropped.
    ///
    /// What the compute stream was given before is done first, and what it is given after sees the new
    /// bytes. Writes are made before a graph is replayed; one that is captured is refused for it.
    pub fn write(&self, to: Pointer, bytes: &[u8]) {
        self.write_ordered(None, to, bytes);
    }

    /// As [`Device::write`], but waits only for what the compute stream was given before the mark was
    /// set, so that it overlaps with what came after. That must not use the memory.
    pub fn write_after(&self, mark: &Mark, to: Pointer, bytes: &[u8]) {
        self.write_ordered(Some(mark), to, bytes);
    }

    fn write_ordered(&self, mark: Option<&Mark>, to: Pointer, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.context.run(|context| {
            context.not_capturing("write")?;
            let mut uploads = lock(&self.uploads);
            if let Some(mark) = mark {
                context.copy.wait_for(&mark.event)?;
            } else {
                uploads.before.record(&context.compute)?;
                context.copy.wait_for(&uploads.before)?;
            }
            uploads.upload(context, to, bytes)?;
            uploads.after.record(&context.copy)?;
            context.compute.wait_for(&uploads.after)
        });
    }

    /// A mark that is not set yet: who waits for it does not wait.
    ///
    /// # Errors
    ///
    /// The fault, if there is one.
    pub fn new_mark(&self) -> Result<Mark, CudaError> {
        let event = self.context.attempt(|_| Event::new(true))?;
        Ok(Mark {
            event,
            _context: Arc::clone(&self.context),
        })
    }

    /// Sets a mark, anew if it was, behind what the compute stream has been given so far.
    pub fn set_mark(&self, mark: &Mark) {
        self.context.run(|context| {
            context.not_capturing("set_mark")?;
            mark.event.record(&context.compute)
        });
    }

    /// Copies bytes to the host and waits for them. After a fault they are 0.
    pub fn read(&self, from: Pointer, bytes: &mut [u8]) {
        let mut from = from;
        for piece in bytes.chunks_mut(READ_BYTES) {
            self.read_later(from, piece.len() as u64).wait_into(piece);
            from = from.offset(piece.len() as u64);
        }
    }

    /// Begins to copy bytes to the host, on the compute stream.
    pub fn read_later(&self, from: Pointer, bytes: u64) -> Later {
        let mut later = Later {
            context: Arc::clone(&self.context),
            bytes: usize::try_from(bytes).unwrap_or(0),
            copy: None,
        };
        self.context.run(|context| {
            context.not_capturing("read")?;
            let bytes = size("read", bytes)?;
            if bytes == 0 {
                return Ok(());
            }
            let event = Event::new(false)?;
            let pinned = context.borrow_pinned(bytes)?;
            // From here on the buffer is given back only when the copy has ended.
            let (pinned, event) = &*later.copy.insert((pinned, event));
            context.compute.download(from.0, pinned, bytes)?;
            event.record(&context.compute)
        });
        later
    }

    /// [`Device::write`] of numbers.
    pub fn write_values<T: Plain>(&self, to: Pointer, values: &[T]) {
        self.write(to, bytes_of(values));
    }

    /// [`Device::read`] of numbers.
    pub fn read_values<T: Plain>(&self, from: Pointer, values: &mut [T]) {
        self.read(from, bytes_of_mut(values));
    }
}

/// Bytes on their way to the host.
#[derive(Debug)]
#[must_use]
pub struct Later {
    context: Arc<Context>,
    bytes: usize,
    copy: Option<(Pinned, Event)>,
}

impl Later {
    /// Whether [`Later::wait`] would return at once.
    pub fn is_ready(&self) -> bool {
        let Some((_, event)) = &self.copy else {
            return true;
        };
        let mut ready = true;
        self.context.run(|context| {
            context.not_capturing("is_ready")?;
            ready = event.is_done()?;
            Ok(())
        });
        ready
    }

    /// Waits for the bytes. After a fault they are 0.
    pub fn wait(self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes];
        self.wait_into(&mut bytes);
        bytes
    }

    /// Waits for the bytes and copies them; as many as were asked for.
    pub fn wait_into(self, to: &mut [u8]) {
        let Some((pinned, event)) = &self.copy else {
            to.fill(0);
            return;
        };
        if self.context.run(|_| event.wait()) {
            pinned.read(to);
        } else {
            to.fill(0);
        }
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        let Some((pinned, event)) = self.copy.take() else {
            return;
        };
        // After a fault the device does nothing more, or one cannot know: then the buffer is kept from use.
        if self.context.run(|_| event.wait()) {
            self.context.return_pinned(pinned);
        }
    }
}

/// A number without padding, of which all bits are values.
pub trait Plain: Copy + plain::Sealed {}
impl<T: Copy + plain::Sealed> Plain for T {}

use plain::{bytes_of, bytes_of_mut};

mod plain {
    #![allow(unsafe_code, reason = "numbers are looked at as bytes")]

    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
    impl Sealed for i32 {}
    impl Sealed for f32 {}

    pub(super) fn bytes_of<T: Copy + Sealed>(values: &[T]) -> &[u8] {
        // SAFETY: the types that are `Sealed` have no padding; the bytes live as long as the numbers.
        unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
    }

    pub(super) fn bytes_of_mut<T: Copy + Sealed>(values: &mut [T]) -> &mut [u8] {
        // SAFETY: as above, and any bits are a value of them.
        unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
    }
}

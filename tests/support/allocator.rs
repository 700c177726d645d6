//! An allocator that counts. A test binary makes it the global one:
//! `#[global_allocator] static ALLOCATOR: Counting = Counting;`

#![expect(
    unsafe_code,
    reason = "an allocator is an unsafe trait; it hands every call on"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Hands every call to the system's allocator, and counts.
#[derive(Clone, Copy, Debug)]
pub struct Counting;

/// Whether allocations of all threads are counted.
static COUNTING: AtomicBool = AtomicBool::new(false);
/// How many there were.
static COUNT: AtomicU64 = AtomicU64::new(0);
/// Where the first came from.
static FIRST: Mutex<Option<String>> = Mutex::new(None);

thread_local! {
    /// Bytes that this thread holds: what it allocated less what it freed.
    static HELD: Cell<i64> = const { Cell::new(0) };
}

fn held(change: i64) {
    // A thread that is ending has nothing to count any more.
    let _ = HELD.try_with(|held| held.set(held.get() + change));
}

fn note() {
    if !COUNTING.load(Ordering::Relaxed) {
        return;
    }
    if COUNT.fetch_add(1, Ordering::Relaxed) == 0 {
        // The backtrace itself allocates: it comes after the first, and is not counted.
        COUNTING.store(false, Ordering::Relaxed);
        let backtrace = Backtrace::force_capture().to_string();
        *FIRST.lock().expect("nobody panics with the lock") = Some(backtrace);
        COUNTING.store(true, Ordering::Relaxed);
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).expect("no allocation is that large")
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        held(signed(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        held(-signed(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        held(signed(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        held(signed(size) - signed(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Allocations of all threads while `body` runs, and where the first came from.
///
/// Nothing else may run meanwhile: a test binary that calls this has one test.
///
/// # Panics
/// If `body` does.
pub fn count(body: impl FnOnce()) -> (u64, String) {
    COUNT.store(0, Ordering::SeqCst);
    COUNTING.store(true, Ordering::SeqCst);
    body();
    COUNTING.store(false, Ordering::SeqCst);
    let first = FIRST.lock().expect("nobody panics with the lock").take();
    (COUNT.load(Ordering::SeqCst), first.unwrap_or_default())
}

/// Bytes that this thread has come to hold by `body`, whose result is alive.
pub fn bytes_held_by<R>(body: impl FnOnce() -> R) -> (i64, R) {
    let before = HELD.get();
    let result = body();
    (HELD.get() - before, result)
}

//! Whatever comes in, in either version of the protocol: it is read without a panic and without
//! memory beyond its own size, what is answered is a frame, and the session goes on.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends where something is not as it should be"
)]

mod generate;
mod many;
mod shrinking;
mod sockets;
#[path = "../front/support.rs"]
#[allow(dead_code, reason = "another test's, which uses all of it")]
mod support;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counts what is allocated, in the whole process.
#[global_allocator]
static MEMORY: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

/// One test at a time, so that what is counted is its own.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

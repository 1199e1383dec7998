//! Mirrors of lookup tables: as of every place in the log they hold what a `select` would have seen.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it left out"
)]

mod harness;

mod checkpoint;

mod publication;

mod random;

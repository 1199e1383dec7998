//! Rows first, then changes: what a client has been given adds up to what a `select` under its role
//! and claims shows.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    dead_code,
    reason = "a test fails by panicking; the harness is shared"
)]

#[path = "../relay/harness.rs"]
mod harness;

mod client;

mod reading;

mod hanging;

mod place;

mod random;

mod rules;

mod timeline;

mod waiting;

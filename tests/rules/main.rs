//! The operator's rules, and policies of which only a part is compiled.
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

#[path = "../snapshot/client.rs"]
mod client;

mod analysed;

mod narrowed;

mod parts;

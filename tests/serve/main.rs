//! The real daemon as its operators, its clients and its enemies meet it: `rowcast serve` as a
//! process of its own, a real cluster, real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::print_stdout,
    reason = "a test fails by panicking, and shows what the daemon said"
)]

mod harness;

mod client;

mod start;

mod operate;

mod durable;

mod resume;

mod outages;

mod heal;

mod disk;

mod promotion;

mod synchronous;

mod enemies;

mod tokens;

mod tail;

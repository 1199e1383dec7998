//! `rowcast doctor`: a set-up that is well is broken in many ways, one at a time. Each time it finds
//! just that, its SQL mends it, and the row arrives through the relay.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod between;

mod claims;

mod connecting;

mod filters;

mod harness;

mod live;

mod mends;

mod refused;

mod server;

mod ways;

//! The front as its clients see it: real sockets on a port of its own, with the test in the
//! router's place.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends where something is not as it should be"
)]

mod auth;
mod bounds;
mod channels;
mod lines;
mod origins;
mod places;
mod resume;
mod shutdown;
mod spread;
mod stalls;
mod support;
mod tokens;
mod upgrades;

//! The source against a real PostgreSQL: what the stream carries, what the slot keeps, whom a
//! connection trusts, and what every refusal says.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod changes;
mod fixture;
mod refusals;
mod slot;
mod tls;

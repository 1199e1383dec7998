//! Everything that can break is broken while rows are written and read: the relay and PostgreSQL
//! are killed, the network is cut, the disk fills, the slot and the publication go, a standby that
//! lags takes over, the log is damaged or older than it should be, the clock jumps.
//!
//! After each fault the writers pause, and what each client has been told adds up to what its user
//! may `select`. Nothing is lost in between (versions of a row have no gaps), nothing comes twice
//! behind a cursor, nothing is shown that its user may not see.
//!
//! `ROWCAST_CHAOS_FAULTS` says how many faults (by default one of each kind),
//! `ROWCAST_CHAOS_SEED` repeats a run as far as timing lets it, `ROWCAST_CHAOS_KINDS` names the
//! kinds, joined by commas, `ROWCAST_CHAOS_OVERLAP` says how many of a hundred faults come before
//! the one before them has healed, and `ROWCAST_CHAOS_TRACES` names a folder in which, after a miss,
//! stands what the clients concerned said and heard.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::print_stdout,
    dead_code,
    reason = "a test fails by panicking, and shows what happened; the harness is shared"
)]

#[path = "../serve/harness.rs"]
mod harness;

mod proxy;

mod place;

mod database;

mod relay;

mod schema;

mod writer;

mod leak;

mod model;

mod client;

mod fault;

mod run;

mod report;

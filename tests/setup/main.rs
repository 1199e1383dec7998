//! `rowcast setup` as a DBA meets it: on a real server, under a login that is no superuser, run,
//! printed, run by hand and undone.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod harness;

mod identity;

mod publication;

mod relay;

mod settings;

mod trace;

mod words;

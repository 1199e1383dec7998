//! The relay from PostgreSQL to the session, against a real cluster: what a subscriber sees is what
//! a `select` under its role and claims shows.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking"
)]

mod harness;

mod crowds;

mod unseen_rules;

mod away;

mod leaves;

mod visibility;

mod asked;

mod catalog;

mod majors;

mod memberships;

mod memberships_random;

mod memberships_unseen;

mod differential;

mod alter;

mod fingerprint;

mod generated;

mod partitions;

mod random_alters;

mod old_row_mirrors;

mod old_rows;

mod rows;

mod redteam;

mod resume;

mod resume_random;

mod rewrites;

mod refresh;

mod together;

mod holders;
mod reasons;
mod told;
mod told_random;
mod truncated;

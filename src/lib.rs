//! Rowcast carries committed row changes from PostgreSQL to the browsers that are allowed to see
//! them.
//!
//! A change passes the modules in the order below. [`source`] reads it from the replication slot;
//! [`log`] gives it an offset and keeps it for a while; [`router`] finds who asked for it
//! ([`subscription`]) and who may see it ([`policy`]), has it turned into bytes once ([`encode`])
//! and hands it to the sessions; a [`session`] is one client's state machine, [`supabase`] puts its
//! words into frames, [`transport`] moves the frames. [`app`] wires all of it and stops all of it.
//!
//! A module uses only modules listed above it; `tests/tidy.rs` checks that.

// Words used everywhere.
pub mod retry;

pub mod metrics;

pub mod mutant;

pub mod pg;

// A row change and where it comes from.
pub mod change;

pub mod datum;

pub mod source;

pub mod log;

// Who asks, for what, and who may see it.
pub mod auth;

pub mod lookup;

pub mod subscription;

pub mod policy;

// From one change to the clients that receive it.
pub mod encode;

pub mod snapshot;

pub mod router;

pub mod session;

pub mod supabase;

pub mod transport;

// The daemon as a whole.
pub mod admin;

pub mod config;

pub mod doctor;

pub mod app;

pub mod cli;

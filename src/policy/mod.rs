//! (being written)

pub mod compile;

pub mod expr;

pub mod mutant;

pub mod node_tree;

pub mod predicate;

pub use compile::{Compiled, Refusal, Scope, compile};
pub use predicate::{Audience, Bound, Facts, Predicate, Probe, Projection, Verdict};

//! Who may see what: PostgreSQL's own row-level-security policies, judged on each row change.
//!
//! The rule in one sentence: a role sees through Rowcast what a `select` under that role and those
//! claims would show it, no more and no less.
//!
//! [`reader`] keeps a [`catalog`] of tables, rights and policies that is as new as the stream;
//! [`access`] works out what one role may see of one table. The policies come as the trees that
//! PostgreSQL resolved them to ([`node_tree`]), are compiled where that is exact ([`compile`]) to a
//! [`predicate`] over row and claims, and are asked of PostgreSQL where it is not ([`ask`]). Every
//! error on the way hides the row.

pub mod body;

pub mod clock;

pub mod catalog;

mod plpgsql;
pub mod rule;

pub(crate) mod closure;

pub mod fingerprint;

pub mod reader;

pub mod watch;

pub mod node_tree;

pub mod expr;

mod consults;

mod reach;

pub mod compile;

pub mod predicate;

mod scope;

pub mod ask;

mod login;

pub mod access;

pub mod check;

pub mod explain;

pub mod generated;

pub use compile::{Compiled, Refusal, Scope, compile};
pub use predicate::{
    Affected, Audience, Bound, Facts, Members, Predicate, Probe, Projection, Verdict,
};
pub(crate) use scope::security_applies;

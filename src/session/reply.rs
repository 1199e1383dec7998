//! What clients are told, free of any framing.

use std::sync::Arc;

use smallvec::SmallVec;

use super::request::Wire;
use crate::encode::Body;
use crate::log::{HeldCursor, Holder};
use crate::snapshot::Page;

/// One message to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Yes.
    Ok {
        /// The request's join.
        join_ref: Option<Wire>,
        /// The request.
        reference: Option<Wire>,
        /// The topic.
        topic: Arc<str>,
    },
    /// The topic is joined.
    Joined {
        /// The join.
        join_ref: Option<Wire>,
        /// The request.
        reference: Option<Wire>,
        /// The topic.
        topic: Arc<str>,
        /// The bindings, in the order in which they were asked for.
        bindings: Vec<Wire>,
    },
    /// No.
    Error {
        /// The request's join.
        join_ref: Option<Wire>,
        /// The request.
        reference: Option<Wire>,
        /// The topic.
        topic: Arc<str>,
        /// Why.
        reason: String,
    },
    /// News of the channel itself.
    System(Box<System>),
    /// The channel ended for good.
    Closed {
        /// The join that ended.
        join_ref: Option<Wire>,
        /// The topic.
        topic: Arc<str>,
    },
    /// The channel broke; the client joins again by itself.
    Failed {
        /// The join that broke.
        join_ref: Option<Wire>,
        /// The topic.
        topic: Arc<str>,
    },
    /// Rows that are there already.
    Snapshot {
        /// The join that asked for them.
        join_ref: Option<Wire>,
        /// The topic.
        topic: Arc<str>,
        /// The rows.
        page: Arc<Page>,
        /// Whom the cursor in them is given to.
        holder: Option<Holder>,
    },
    /// A row changed.
    Change {
        /// The topic.
        topic: Arc<str>,
        /// The bindings that asked for it.
        bindings: SmallVec<[u32; 4]>,
        /// When it committed, in microseconds since 1970-01-01 00:00 UTC.
        committed_at: i64,
        /// The change as a JSON object, whose last member is its cursor.
        data: Body,
        /// Whom that cursor is given to.
        holder: Option<Holder>,
    },
}

/// Of what kind a system message is. Clients take the first [`Status::Ok`] for the word that their
/// subscription is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// As asked for.
    Ok,
    /// In force, but worth knowing.
    Warning,
    /// The client must read again.
    Resync,
    /// How far the client has got.
    Cursor,
    /// Not in force.
    Error,
}

impl Status {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Resync => "resync",
            Self::Cursor => "cursor",
            Self::Error => "error",
        }
    }
}

/// A system message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// The join.
    pub join_ref: Option<Wire>,
    /// The topic.
    pub topic: Arc<str>,
    /// Which part of the server speaks.
    pub extension: &'static str,
    /// Of what kind it is.
    pub status: Status,
    /// The sentence.
    pub message: String,
    /// The word for it, where there is one.
    pub reason: Option<&'static str>,
    /// The binding that it is about.
    pub binding: Option<Wire>,
    /// The place in the log up to which nothing is missing, or will be once the client has read.
    pub cursor: Option<HeldCursor>,
    /// Whether to name the channel; Supabase does not in its farewell.
    pub names_channel: bool,
}

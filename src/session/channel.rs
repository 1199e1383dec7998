//! One joining of a topic.

use std::sync::Arc;
use std::time::Duration;

use super::quota::{Place, User};
use super::reply::{Reply, Status, System};
use super::request::Wire;
use super::resume::Progress;
use crate::auth::Principal;
use crate::log::{Cursor, HeldCursor, Holder};
use crate::router::{ChannelId, Refusal};
use crate::subscription::{Condition, Events, Operator, Wanted};

/// What the server's own messages are marked with.
pub(super) const ROWCAST: &str = "rowcast";
pub(super) const POSTGRES_CHANGES: &str = "postgres_changes";
pub(super) const SYSTEM: &str = "system";

/// Old joins of the topic whose end is still to be said. A client that joins faster than the
/// router answers loses the oldest farewells, which it ignores anyway.
const MAX_SUPERSEDED: usize = 8;

pub(super) struct Channel {
    pub(super) id: ChannelId,
    pub(super) topic: Arc<str>,
    pub(super) join_ref: Option<Wire>,
    pub(super) principal: Arc<Principal>,
    /// The principal's place among its user's sockets, shared with the socket's other channels of
    /// the same user.
    pub(super) place: Option<Arc<Place<User>>>,
    pub(super) wanted: Vec<Wanted>,
    /// The length of the bindings, as the limit counts them.
    pub(super) bytes: usize,
    /// Counts the tokens; an answer for an older one is stale.
    pub(super) attempt: u32,
    pub(super) progress: Progress,
    /// Whom its cursors are given to.
    pub(super) holder: Option<Holder>,
    /// Set once its client was told to read again: when it is told that the channel broke, so that
    /// it joins anew. Until then nothing comes on it.
    pub(super) breaks_at: Option<Duration>,
    /// `None` once the join has been answered.
    pub(super) joining: Option<Box<Joining>>,
}

/// What is remembered of a join until it is answered.
pub(super) struct Joining {
    pub(super) reference: Option<Wire>,
    pub(super) echoes: Vec<Wire>,
    /// What was wrong before the router was asked, and with which bindings; with none where it is
    /// the payload.
    pub(super) refusals: Vec<(String, Option<Wire>)>,
    /// The joins of this topic that this one replaces.
    pub(super) superseded: Vec<Option<Wire>>,
    /// Whether the token is still with the authenticator.
    pub(super) unverified: bool,
    pub(super) private: bool,
    /// Whether a refused binding refuses the join.
    pub(super) wait: bool,
}

impl Joining {
    pub(super) fn supersede(&mut self, join_ref: Option<Wire>) {
        if self.superseded.len() >= MAX_SUPERSEDED {
            self.superseded.remove(0);
        }
        self.superseded.push(join_ref);
    }
}

impl Channel {
    /// Whether it has not become its own token's holder yet.
    pub(super) fn is_unverified(&self) -> bool {
        self.joining
            .as_ref()
            .is_some_and(|joining| joining.unverified)
    }

    /// Whether its client keeps a cursor, as far as it says.
    pub(super) fn keeps_cursor(&self) -> bool {
        let mut wanted = self.wanted.iter();
        self.progress.reported || wanted.any(|wish| wish.start.is_earlier())
    }

    /// A cursor for its client.
    pub(super) const fn held(&self, cursor: Cursor) -> HeldCursor {
        HeldCursor {
            cursor,
            holder: self.holder,
        }
    }

    pub(super) fn system(&self, extension: &'static str, status: Status, text: String) -> System {
        System {
            join_ref: self.join_ref.clone(),
            topic: Arc::clone(&self.topic),
            extension,
            status,
            message: text,
            reason: None,
            binding: None,
            cursor: None,
            names_channel: true,
        }
    }

    /// Says that a binding is not in force.
    pub(super) fn refused_binding(&self, text: String, echo: Option<Wire>) -> System {
        let mut system = self.system(POSTGRES_CHANGES, Status::Error, text);
        system.binding = echo;
        system
    }

    pub(super) fn broken(self) -> Reply {
        Reply::Failed {
            join_ref: self.join_ref,
            topic: self.topic,
        }
    }

    pub(super) fn closed(&self) -> Reply {
        Reply::Closed {
            join_ref: self.join_ref.clone(),
            topic: Arc::clone(&self.topic),
        }
    }

    /// The router's refusal of a binding in Supabase's words.
    pub(super) fn refused(&self, refusal: &Refusal) -> String {
        let parameters = self
            .wanted
            .iter()
            .find(|wanted| wanted.id == refusal.binding)
            .map(inspected)
            .unwrap_or_default();
        // Supabase words a table that is not published differently from all else.
        if refusal
            .reason
            .starts_with("Please check Realtime is enabled")
        {
            format!(
                "Unable to subscribe to changes with given parameters. {}: {parameters}",
                refusal.reason
            )
        } else {
            format!(
                "Unable to subscribe to changes with given parameters. An exception happened so please check your connect parameters: {parameters}. Exception: {}",
                refusal.reason
            )
        }
    }
}

/// A binding as Supabase's messages show it.
fn inspected(wanted: &Wanted) -> String {
    let event = match wanted.events {
        Events::All | Events::AllAndTruncate => "*",
        Events::Insert => "INSERT",
        Events::Update => "UPDATE",
        Events::Delete => "DELETE",
    };
    let filters: Vec<String> = wanted.filter.iter().map(inspected_condition).collect();
    let select = wanted.select.as_ref().map_or_else(
        || "nil".to_owned(),
        |names| {
            let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
            format!("[{}]", names.join(", "))
        },
    );
    format!(
        "[event: {event}, schema: {}, table: {}, filters: [{}], select: {select}]",
        wanted.schema.as_deref().unwrap_or("*"),
        wanted.table.as_deref().unwrap_or("*"),
        filters.join(", ")
    )
}

fn inspected_condition(condition: &Condition) -> String {
    let null = if condition.operator == Operator::In {
        "NULL"
    } else {
        "null"
    };
    let values: Vec<&str> = condition
        .values
        .iter()
        .map(|value| value.as_deref().unwrap_or(null))
        .collect();
    let value = if condition.operator == Operator::In {
        format!("{{{}}}", values.join(","))
    } else {
        values.concat()
    };
    format!(
        "{{{}, \"{}\", {}, {}}}",
        quoted(&condition.column),
        condition.operator.as_str(),
        quoted(&value),
        condition.negated
    )
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

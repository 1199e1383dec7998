//! What clients say, free of any framing.

use std::fmt;
use std::sync::Arc;

use crate::subscription::Wanted;

/// A JSON text (a string, a number, an object) as the client wrote it, to be given back unread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire(pub Arc<str>);

/// One message of a client.
#[derive(Debug)]
pub struct Request {
    /// The join that it belongs to, as far as the client says.
    pub join_ref: Option<Wire>,
    /// What its answer is to carry.
    pub reference: Option<Wire>,
    /// The channel's topic.
    pub topic: Arc<str>,
    /// What is asked.
    pub body: Body,
}

/// What is asked.
pub enum Body {
    /// Is anybody there?
    Heartbeat,
    /// Join the topic.
    Join(Box<JoinRequest>),
    /// Leave the topic.
    Leave,
    /// Go on as the holder of this token.
    AccessToken(Option<String>),
    /// Send to everybody on the topic.
    Broadcast,
    /// Show or hide oneself on the topic.
    Presence,
    /// Something else.
    Unknown,
}

/// Tokens and bindings are left out.
impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Heartbeat => "Heartbeat",
            Self::Join(_) => "Join",
            Self::Leave => "Leave",
            Self::AccessToken(_) => "AccessToken",
            Self::Broadcast => "Broadcast",
            Self::Presence => "Presence",
            Self::Unknown => "Unknown",
        })
    }
}

/// What a join carries.
#[derive(Default)]
pub struct JoinRequest {
    /// The token, if it has its own.
    pub token: Option<String>,
    /// Whether the channel is to be a private one.
    pub private: bool,
    /// Whether the join is to be refused where a binding is.
    pub wait: bool,
    /// Whether the client wants to be told its cursor.
    pub cursor: bool,
    /// What is wrong with the payload so that the channel cannot be joined.
    pub refusal: Option<String>,
    /// What is wrong with the payload although the channel stands.
    pub mistake: Option<String>,
    /// What is wanted of the tables, in the client's order.
    pub bindings: Vec<Binding>,
    /// Bindings asked for, including those beyond what was kept.
    pub binding_count: usize,
}

/// One binding of a join.
pub struct Binding {
    /// The client's own object with our id in it: what it is answered with.
    pub echo: Wire,
    /// What it means, or what is wrong with it.
    pub wanted: Result<Wanted, String>,
}

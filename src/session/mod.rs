//! One client's state machine, with no I/O and no clock: requests, events and time go in; replies,
//! orders to the router and a possible close come out.

mod channel;
mod close;
mod join;
mod machine;
mod quota;
mod reply;
mod request;
mod resume;
mod spread;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use close::Close;
pub use machine::Session;
pub use quota::{Full, Place, Quota, User};
pub use reply::{Reply, Status, System};
pub use request::{Binding, Body, JoinRequest, Request, Wire};
pub use spread::Spread;

use crate::auth::Principal;
use crate::router::ChannelId;
use crate::subscription::Wanted;

/// The time at which something happens, given by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Since an instant of the caller's choice, the same for all sockets; never goes back.
    pub monotonic: Duration,
    /// Seconds since 1970-01-01 00:00 UTC.
    pub unix: i64,
}

/// What one client may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Channels at once.
    pub channels: usize,
    /// Joins within a second.
    pub joins_per_second: u32,
    /// Bindings of one channel.
    pub bindings: usize,
    /// The length of one topic, in bytes.
    pub topic_bytes: usize,
    /// The length of all bindings of all channels, in bytes.
    pub bindings_bytes: usize,
    /// Unreadable frames in a row before the socket is closed.
    pub malformed_frames: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            channels: 100,
            joins_per_second: 100,
            bindings: 100,
            topic_bytes: 1024,
            bindings_bytes: 1024 * 1024,
            malformed_frames: 100,
        }
    }
}

/// What the caller is to do, in order.
#[derive(Debug)]
pub enum Action {
    /// Send this to the client.
    Reply(Reply),
    /// Ask the router to put a channel's bindings in force.
    Join {
        /// The channel.
        channel: ChannelId,
        /// Who it acts as.
        principal: Arc<Principal>,
        /// What it wants.
        wanted: Vec<Wanted>,
        /// Whether the client keeps a cursor.
        keeps_cursor: bool,
    },
    /// Tell the router that a channel has ended.
    Leave(ChannelId),
    /// Verify a token and give the result to [`Session::verified`].
    Verify(Verify),
    /// Close the socket; nothing follows.
    Close(Close),
}

/// A token whose holder is to be found out.
pub struct Verify {
    /// For whom.
    pub channel: ChannelId,
    /// Which of the channel's tokens; only the newest counts.
    pub attempt: u32,
    /// The token.
    pub token: String,
}

/// A token must not reach a log.
impl fmt::Debug for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verify")
            .field("channel", &self.channel)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

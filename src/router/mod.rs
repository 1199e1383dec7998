//! From one change to the clients that receive it. The only place that knows all live
//! subscriptions.

mod few;

mod group;

mod filter_index;

pub mod outbox;

mod layout;

mod resolve;

pub mod picture;

mod allowance;

pub mod fanout;

mod history;

mod holder;

mod changed;

pub mod dry_run;

mod memberships;

mod old_rows;

mod position;

mod due;

mod unseen;

mod replay;

mod live;

use std::sync::Arc;

use smallvec::SmallVec;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

pub use fanout::{Foundation, Settings};
pub use live::{Live, router};
pub use old_rows::{Columns, InvalidTables, Keeps, Mirrored, OldRowTables};
pub use outbox::{Carrier, Outbox, Overflow, Ruling, Verdict, Voice};
pub use resolve::undelivered_delete;

use crate::auth::Principal;
use crate::encode::Body;
use crate::log::{Cursor, Holder, Offset};
use crate::pg::Lsn;
use crate::snapshot::{Failure, Page};
use crate::subscription::Wanted;
use position::Position;

/// Names a session for as long as the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Names one joining of a channel within its session. The session draws a fresh one for every
/// join, so what is under way for an earlier join of the same topic can be told from the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub u32);

/// A change as it goes out, shared by all who are told the same: what waits of it for each of many
/// is to be small.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The bindings that asked for it ([`Wanted::id`]), in ascending order.
    pub bindings: SmallVec<[u32; 4]>,
    /// Its place in the log.
    pub offset: Offset,
    /// When it committed, in microseconds since 1970-01-01 00:00 UTC.
    pub committed_at: i64,
    /// The change as the JSON object that Supabase's wire calls `data`.
    pub data: Body,
}

/// What a session hears from the router, in order, through its [`Outbox`].
#[derive(Debug, Clone)]
pub enum Event {
    /// The answer to [`Router::join`]: the channel's subscriptions are in force. Every change that
    /// commits from now on follows behind this event.
    Joined {
        /// The channel.
        channel: ChannelId,
        /// The bindings that are not in force although the channel stands, each with the text for
        /// the client. All others are.
        refusals: Vec<Refusal>,
        /// What the client should know of what it subscribed to, in sentences.
        notices: Vec<String>,
        /// Whom the channel's cursors are given to; `None` where nobody knows.
        holder: Option<Holder>,
    },
    /// The channel's cursors are given to somebody else from here on: its tables' rules have changed.
    Introduced {
        /// The channel.
        channel: ChannelId,
        /// Whom they are given to.
        holder: Holder,
    },
    /// [`Router::join`] could not be decided because the database cannot be reached: nothing is in
    /// force for the channel, and its client is to try again.
    Unavailable {
        /// The channel.
        channel: ChannelId,
    },
    /// A change for a channel.
    Change {
        /// The channel.
        channel: ChannelId,
        /// What it is told, shared by everybody who is told the same.
        change: Arc<Outgoing>,
    },
    /// Rows that a binding wants before its changes, which follow behind its last page.
    Snapshot {
        /// The channel.
        channel: ChannelId,
        /// The rows.
        page: Arc<Page>,
        /// Held until the page is taken; then the next is put into the outbox.
        place: Arc<OwnedSemaphorePermit>,
    },
    /// The rows that a binding wants before its changes could not be read. Nothing is in force for
    /// the channel, and its client is to try again.
    SnapshotFailed {
        /// The channel.
        channel: ChannelId,
        /// Why.
        failure: Failure,
    },
    /// The channel may have missed something and its client must read the tables again.
    Resync {
        /// The channel.
        channel: ChannelId,
        /// Why.
        reason: Resync,
        /// The place from which it misses nothing once it has read; `None` for the newest.
        cursor: Option<Cursor>,
        /// It reads under the rules that hold at this place of the write-ahead log, or later ones.
        read_at: Lsn,
    },
    /// What the channel had missed has been handed out, as far as [`Router::position`] goes: its
    /// subscriptions are in force.
    CaughtUp {
        /// The channel.
        channel: ChannelId,
    },
}

/// Why one of a channel's bindings could not be subscribed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which binding ([`Wanted::id`]).
    pub binding: u32,
    /// What is wrong with it, in the words that Supabase's clients know where there are such.
    pub reason: String,
}

/// Why a client must read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resync {
    /// It could not be decided whether a change may be seen, so it was hidden.
    Undecided,
    /// A change could not be decoded.
    Undecodable,
    /// A transaction was larger than the log.
    TooLarge,
    /// The table was emptied.
    Truncated,
    /// The table's columns changed so that the subscription no longer fits, or it left the
    /// publication.
    SchemaChanged,
    /// The position in the database's log is lost, and what lay behind it.
    SlotLost,
    /// The log does not reach back to where it is asked to begin.
    Trimmed,
    /// The cursor is of another history of the log.
    Epoch,
    /// Who may see what changed after the cursor.
    AccessChanged,
}

impl Event {
    /// It cannot be told whether something was meant for a channel.
    pub(crate) const fn undecided(channel: ChannelId) -> Self {
        Self::Resync {
            channel,
            reason: Resync::Undecided,
            cursor: None,
            read_at: Lsn(0),
        }
    }
}

impl Resync {
    /// The word that clients and metrics know it by.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Undecided => "undecided",
            Self::Undecodable => "undecodable",
            Self::TooLarge => "too_large",
            Self::Truncated => "truncated",
            Self::SchemaChanged => "schema_changed",
            Self::SlotLost => "slot_lost",
            Self::Trimmed => "trimmed",
            Self::Epoch => "epoch",
            Self::AccessChanged => "access_changed",
        }
    }
}

/// What becomes of a DELETE whose old row does not carry what policies and filters read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteWithoutIdentity {
    /// Nobody hears of it; the join says so.
    Suppress,
    /// Whoever may read the key columns gets the key, as with Supabase.
    Key,
}

/// Who is told, by a DELETE with the key, when an update takes a row out of their view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaves {
    /// Bindings that ask for it.
    Asked,
    /// All that take deletes.
    All,
}

/// A request to put a channel's bindings in force.
#[derive(Debug, Clone)]
pub struct Join {
    /// Where the answer and the changes go.
    pub outbox: Arc<Outbox>,
    /// The channel.
    pub channel: ChannelId,
    /// Who it acts as.
    pub principal: Arc<Principal>,
    /// What it wants; may be empty.
    pub wanted: Vec<Wanted>,
    /// Whether its client keeps a cursor: then it is told to read again where a new token shows
    /// something else, as what lies before the cursor is of the old one.
    pub keeps_cursor: bool,
}

/// The router has ended; so will the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the relay is shutting down")]
pub struct Stopped;

/// A handle to the router, cheap to clone.
#[derive(Debug, Clone)]
pub struct Router {
    commands: mpsc::Sender<Command>,
    position: Arc<Position>,
}

/// What the router's task is asked to do.
#[doc(hidden)]
#[derive(Debug)]
pub enum Command {
    /// [`Router::join`].
    Join(Join),
    /// [`Router::leave`].
    Leave {
        /// Whose channel.
        session: SessionId,
        /// The channel.
        channel: ChannelId,
    },
    /// [`Router::disconnect`].
    Disconnect {
        /// Who went.
        session: SessionId,
    },
    /// [`Router::picture`].
    Picture(oneshot::Sender<picture::Picture>),
    /// [`Router::filtered`].
    Filtered(oneshot::Sender<Vec<picture::Filtered>>),
}

impl Router {
    /// A handle and the other end, which the router's task (or a test in its place) reads. Up to
    /// `bound` commands may wait.
    #[doc(hidden)]
    #[must_use]
    pub fn channel(bound: usize) -> (Self, mpsc::Receiver<Command>) {
        let (commands, received) = mpsc::channel(bound);
        let position = Arc::new(Position::default());
        (Self { commands, position }, received)
    }

    /// Puts a channel's bindings in force. A second join of the same channel (after its token was
    /// refreshed) replaces the first without a gap. The answer comes as [`Event::Joined`] through
    /// the outbox; it may take a question to PostgreSQL, so callers keep serving their socket
    /// meanwhile. Cancel safe: a cancelled join has either been taken or not happened.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn join(&self, join: Join) -> Result<(), Stopped> {
        self.commands
            .send(Command::Join(join))
            .await
            .map_err(|_| Stopped)
    }

    /// How far the changes have been handed out: what lies before is in the outboxes.
    #[must_use]
    pub fn position(&self) -> Cursor {
        self.position.get()
    }

    /// Takes a channel's bindings out of force. What the outbox already holds for it may still
    /// come and is to be ignored.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn leave(&self, session: SessionId, channel: ChannelId) -> Result<(), Stopped> {
        self.commands
            .send(Command::Leave { session, channel })
            .await
            .map_err(|_| Stopped)
    }

    /// What is in force now: tables, subscriptions, audiences. Cancel safe.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn picture(&self) -> Result<picture::Picture, Stopped> {
        let (answer, answered) = oneshot::channel();
        let sent = self.commands.send(Command::Picture(answer)).await;
        sent.map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }

    /// The columns that subscribers who take deletes filter by now. Cancel safe.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn filtered(&self) -> Result<Vec<picture::Filtered>, Stopped> {
        let (answer, answered) = oneshot::channel();
        let sent = self.commands.send(Command::Filtered(answer)).await;
        sent.map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }

    /// Forgets a session and all its channels.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn disconnect(&self, session: SessionId) -> Result<(), Stopped> {
        self.commands
            .send(Command::Disconnect { session })
            .await
            .map_err(|_| Stopped)
    }
}

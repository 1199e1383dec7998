//! Committed changes from PostgreSQL's logical replication, in commit order.
//!
//! The stream is `pgoutput`'s version 1: only what is committed arrives, one transaction after
//! the other. [`decode`](mod@decode) reads a message, [`assemble`] makes batches of them, and a
//! task per session (`pump`) moves bytes in both directions, so that the server is answered on
//! time however slow the reader of the changes is.
//!
//! The transport is our own because tokio-postgres has no mode for copying in both directions,
//! and because a second client beside it would bring a second TLS library and a second idea of
//! whom to trust. This way a `DATABASE_URL` means the same to both kinds of sessions, SCRAM is
//! bound to the TLS connection in both, and every refusal comes with its SQLSTATE, which decides
//! whether trying again makes sense.

pub mod assemble;

pub mod decode;

mod error;

pub mod lookups;

mod pace;

mod pump;

mod reader;

mod replication;

mod slot;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::Client;

use self::assemble::Assembler;
pub use self::assemble::SourceEvent;
pub use self::error::SourceError;
use self::pump::Pump;
pub use self::reader::Malformed;
use self::replication::{SessionError, Walsender};
pub use self::slot::{Switch, SystemInfo, choose_publication};
use crate::pg::connect::Database;
use crate::pg::refusal::Refusal;
use crate::pg::{Lsn, quote_identifier};

/// How many reads of the socket may wait decoded for whoever calls [`Source::next`].
const READ_AHEAD: usize = 2;

/// How long the end of a session may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// An open replication slot. Dropping it ends the session; [`Source::close`] also waits for that.
#[derive(Debug)]
pub struct Source {
    events: mpsc::Receiver<Result<Vec<SourceEvent>, SourceError>>,
    ready: VecDeque<SourceEvent>,
    acknowledged: watch::Sender<Lsn>,
    asked: Arc<Notify>,
    task: JoinHandle<()>,
    /// Up to where the caller has everything stored, as far as it said.
    stored: Lsn,
    /// Up to where events have been given out in this session.
    delivered: Lsn,
}

/// What [`Source::open`] found.
#[derive(Debug)]
pub struct Opened {
    /// The stream.
    pub source: Source,
    /// Whether the slot had to be made: what was committed before is not in the stream.
    pub created: bool,
    /// Up to where the slot was acknowledged when it was opened: the stream begins here.
    pub confirmed: Lsn,
    /// The server.
    pub system: SystemInfo,
    /// Whether the stream carries the second publication as well.
    pub beside: bool,
}

impl Source {
    /// Checks that server, role, publication and slot are in order, makes the slot where it is
    /// missing (which waits for the transactions open at that time), and starts the stream from
    /// where it was last acknowledged.
    ///
    /// Cancel safe in that nothing is left behind but, perhaps, the slot.
    ///
    /// # Errors
    /// [`SourceError::retry`] tells what can heal by itself (a server that is starting, a slot
    /// that is still in use) from what somebody has to mend.
    pub async fn open(
        database: &Database,
        slot: &str,
        publication: &str,
    ) -> Result<Opened, SourceError> {
        Self::open_with(database, slot, publication, None).await
    }

    /// Like [`Source::open`], and names a second publication where it exists. Where that is younger
    /// than the slot's position, the stream ends at its next change with
    /// [`SourceError::PublicationYounger`].
    ///
    /// # Errors
    /// As [`Source::open`].
    pub async fn open_with(
        database: &Database,
        slot: &str,
        publication: &str,
        beside: Option<&str>,
    ) -> Result<Opened, SourceError> {
        let (client, endpoint) = database.connect_somewhere("rowcast setup").await?;
        let prepared = slot::prepare(&client, slot, publication).await?;
        let beside = slot::second(&client, publication, beside).await?;
        drop(client);
        let mut session =
            Walsender::open(database, &endpoint, "rowcast", prepared.encoding).await?;
        let (system_identifier, timeline) = identify(&mut session).await?;
        let switches = history(&mut session, timeline).await?;
        if prepared.needs_failover {
            keep_on_standbys(&mut session, slot).await?;
        }
        let server_timeout = server_timeout(&mut session).await?;
        let mut names = quote_identifier(publication);
        if let Some(beside) = beside {
            names = format!("{names},{}", quote_identifier(beside));
        }
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names '{}', \
             messages 'true')",
            quote_identifier(slot),
            // This grammar knows no other escape than doubled quotes.
            names.replace('\'', "''"),
        );
        session
            .start_replication(&command)
            .await
            .map_err(|error| starting(error, slot))?;
        let (sender, events) = mpsc::channel(READ_AHEAD);
        let (acknowledged, to_acknowledge) = watch::channel(prepared.confirmed);
        let asked = Arc::new(Notify::new());
        let pump = Pump::new(
            session,
            Assembler::new(prepared.xid, slot),
            sender,
            (to_acknowledge, Arc::clone(&asked)),
            server_timeout,
        );
        let (slot, publication) = (slot.to_owned(), publication.to_owned());
        let task = tokio::spawn(pump.run(move |error| streaming(error, &slot, &publication)));
        Ok(Opened {
            source: Self {
                events,
                ready: VecDeque::new(),
                acknowledged,
                asked,
                task,
                stored: Lsn(0),
                delivered: prepared.confirmed,
            },
            created: prepared.created,
            confirmed: prepared.confirmed,
            system: SystemInfo {
                system_identifier,
                timeline,
                server_version_num: prepared.server_version_num,
                xid: prepared.xid,
                insert_lsn: prepared.insert_lsn,
                switches,
            },
            beside: beside.is_some(),
        })
    }

    /// The next event. Cancel safe: an event that was not returned is returned next time.
    ///
    /// While nobody calls this the server is answered but not read: it waits.
    ///
    /// # Errors
    /// What ended the stream; everything before it has been returned. What was not acknowledged
    /// comes again after the next [`Source::open`].
    pub async fn next(&mut self) -> Result<SourceEvent, SourceError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                let end = match &event {
                    SourceEvent::Batch(batch) => batch.end_lsn,
                    SourceEvent::Progress(lsn) => *lsn,
                };
                self.delivered = self.delivered.max(end);
                self.pass_on();
                return Ok(event);
            }
            match self.events.recv().await {
                Some(Ok(events)) => self.ready = events.into(),
                Some(Err(error)) => return Err(error),
                None => return Err(SourceError::disconnected("it was ended before")),
            }
        }
    }

    /// Notes that everything up to `end_lsn` (a [`Batch`](crate::change::Batch)'s, or a
    /// [`SourceEvent::Progress`]) is stored and need not be sent again. PostgreSQL hears of it
    /// with the next status update, about a second later at most.
    ///
    /// A position past what this session has given out counts only as far as that: the slot
    /// never skips what nobody has seen.
    pub fn acknowledge(&mut self, end_lsn: Lsn) {
        self.stored = self.stored.max(end_lsn);
        self.pass_on();
    }

    /// Has PostgreSQL say up to where it has read its log, as a [`SourceEvent::Progress`]: where nothing
    /// that is published changes it says so only now and then.
    pub fn ask(&self) {
        self.asked.notify_one();
    }

    fn pass_on(&self) {
        let safe = self.stored.min(self.delivered);
        self.acknowledged.send_if_modified(|acknowledged| {
            let moved = safe > *acknowledged;
            if moved {
                *acknowledged = safe;
            }
            moved
        });
    }

    /// Tells PostgreSQL what is acknowledged and ends the session, so that the slot is free for
    /// the next one. Takes 5 seconds at most.
    pub async fn close(mut self) {
        // This is what the pump takes as the wish to end.
        self.events.close();
        if timeout(CLOSE_TIMEOUT, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

async fn identify(session: &mut Walsender) -> Result<(u64, u32), SourceError> {
    let fields = session
        .query("IDENTIFY_SYSTEM")
        .await
        .map_err(SourceError::from)?;
    let mut fields = fields.into_iter().flatten();
    let mut number = || {
        fields
            .next()
            .and_then(|field| field.parse::<u64>().ok())
            .ok_or_else(|| SourceError::disconnected(Malformed))
    };
    let system_identifier = number()?;
    let timeline = u32::try_from(number()?).map_err(SourceError::disconnected)?;
    Ok((system_identifier, timeline))
}

/// Where the timelines before this one ended.
async fn history(session: &mut Walsender, timeline: u32) -> Result<Vec<Switch>, SourceError> {
    if timeline <= 1 {
        return Ok(Vec::new());
    }
    match session.query(&format!("TIMELINE_HISTORY {timeline}")).await {
        Ok(fields) => {
            // The file's name, and what is in it.
            let text = fields.into_iter().flatten().nth(1);
            Ok(slot::switches(&text.unwrap_or_default()))
        }
        // The file is gone: nobody knows where the timeline began.
        Err(SessionError::Refused(refusal)) => {
            tracing::warn!(%refusal, timeline, "the server has no history of its timeline");
            Ok(Vec::new())
        }
        Err(error) => Err(error.into()),
    }
}

/// Has standbys that synchronise slots keep this one as well. Where that is refused it stays one of
/// the primary alone, and a promotion costs a new history.
async fn keep_on_standbys(session: &mut Walsender, slot: &str) -> Result<(), SourceError> {
    let command = format!(
        "ALTER_REPLICATION_SLOT {} (FAILOVER true)",
        quote_identifier(slot)
    );
    match session.query(&command).await {
        Ok(_) => Ok(()),
        Err(SessionError::Refused(refusal)) => {
            tracing::warn!(slot, %refusal, "the slot cannot be made one that survives a failover");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Drops the slot on purpose, where there is one: the next [`Source::open`] makes it anew.
///
/// # Errors
/// Where the database is not to be reached, or somebody else holds the slot.
pub async fn give_up(database: &Database, slot: &str) -> Result<(), SourceError> {
    let client = database.connect("rowcast setup").await?;
    slot::drop_slot(&client, slot).await
}

/// Moves the slot past everything that has been written so far, without decoding it; returns where
/// it stands then.
///
/// # Errors
/// Where the server does not do that.
pub async fn pass_over(database: &Database, slot: &str) -> Result<Lsn, SourceError> {
    let client = database.connect("rowcast setup").await?;
    // The server may still be ending the session that has read it.
    if let Ok(free) = timeout(CLOSE_TIMEOUT, slot::until_free(&client, slot)).await {
        free?;
    }
    slot::advance(&client, slot).await
}

/// What keeps this login from streaming this slot, and somebody has to mend: the same that
/// [`Source::open`] refuses with. Nothing is changed.
///
/// # Errors
/// Where the database cannot be asked.
pub async fn faults(client: &Client, slot: &str) -> Result<Vec<SourceError>, SourceError> {
    slot::faults(client, slot).await
}

/// Why the server has given the slot up, so that the next [`Source::open`] makes it anew; `None`
/// where it has not.
///
/// # Errors
/// Where the database cannot be asked.
pub async fn lost(client: &Client, slot: &str) -> Result<Option<String>, SourceError> {
    slot::lost(client, slot).await
}

/// Opens a replication session and ends it again: whether the server, and whatever stands before it,
/// lets this login have one. Says after how long the server gives a silent receiver up; `None` where
/// it never does.
///
/// # Errors
/// Where it does not.
pub async fn try_session(database: &Database) -> Result<Option<Duration>, SourceError> {
    let (client, endpoint) = database.connect_somewhere("rowcast doctor").await?;
    drop(client);
    let mut session = Walsender::open(database, &endpoint, "rowcast doctor", "UTF8").await?;
    identify(&mut session).await?;
    server_timeout(&mut session).await
}

/// What is said where the server bounds no slot's WAL.
pub const UNBOUNDED: &str = "max_slot_wal_keep_size is -1: while Rowcast does not run, its slot keeps \
     WAL without bound; alter system set max_slot_wal_keep_size = '10GB'";

/// Bytes of WAL that the slot keeps from being recycled; `None` where there is no such slot.
///
/// # Errors
/// Where the database is not to be reached.
pub async fn retained(client: &Client, slot: &str) -> Result<Option<u64>, SourceError> {
    slot::retained(client, slot).await
}

/// Returns once no session holds the slot. Over one ordinary session, so that it may be waited for
/// with short steps.
///
/// # Errors
/// Where the database is not to be reached.
pub async fn until_free(database: &Database, slot: &str) -> Result<(), SourceError> {
    let client = database.connect("rowcast setup").await?;
    slot::until_free(&client, slot).await
}

/// After how long the server gives a silent receiver up; `None` where it never does.
async fn server_timeout(session: &mut Walsender) -> Result<Option<Duration>, SourceError> {
    let fields = session
        .query("select setting from pg_catalog.pg_settings where name = 'wal_sender_timeout'")
        .await
        .map_err(SourceError::from)?;
    let milliseconds = fields
        .into_iter()
        .flatten()
        .next()
        .and_then(|setting| setting.parse().ok())
        .unwrap_or(0);
    Ok((milliseconds > 0).then(|| Duration::from_millis(milliseconds)))
}

impl From<SessionError> for SourceError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Refused(refusal) | SessionError::ChangesLeftOut(refusal) => {
                Self::Refused(refusal)
            }
            other => Self::disconnected(other),
        }
    }
}

/// What a refusal to start the stream means, after everything looked well.
fn starting(error: SessionError, slot: &str) -> SourceError {
    match error {
        SessionError::Refused(Refusal { sqlstate, message }) if sqlstate == "55000" => {
            SourceError::SlotLost {
                slot: slot.to_owned(),
                reason: message,
            }
        }
        // Somebody has dropped the slot since we looked: the next attempt makes it anew.
        SessionError::Refused(refusal) if refusal.sqlstate == "42704" => {
            SourceError::disconnected(refusal)
        }
        other => other.into(),
    }
}

/// What an error amid the stream means.
fn streaming(error: SessionError, slot: &str, publication: &str) -> SourceError {
    let undecodable = |reason: String| SourceError::Undecodable {
        slot: slot.to_owned(),
        reason,
    };
    match error {
        // The plugin looks publications up when it needs them, as they were at that time.
        SessionError::ChangesLeftOut(_) => SourceError::PublicationYounger {
            publication: publication.to_owned(),
        },
        SessionError::Refused(refusal) if refusal.sqlstate == "42704" => {
            SourceError::PublicationYounger {
                publication: publication.to_owned(),
            }
        }
        // What ends any session: connections (class 08), what the server is short of (53),
        // somebody's wish (57).
        SessionError::Refused(refusal)
            if ["08", "53", "57"]
                .iter()
                .any(|class| refusal.sqlstate.starts_with(class)) =>
        {
            SourceError::Refused(refusal)
        }
        // A data exception (class 22) is about a row's values, and may quote them.
        SessionError::Refused(refusal) if refusal.sqlstate.starts_with("22") => undecodable(
            format!("a value in it is refused with {}", refusal.sqlstate),
        ),
        SessionError::Refused(refusal) => undecodable(refusal.to_string()),
        SessionError::Malformed(error) => undecodable(error.to_string()),
        other => other.into(),
    }
}

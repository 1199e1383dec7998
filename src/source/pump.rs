//! The task that owns a replication session. It decodes what arrives and answers the server,
//! whether or not anybody takes the events.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::assemble::{Assembler, SourceEvent};
use super::error::SourceError;
use super::pace::Pace;
use super::replication::{Frame, SessionError, Walsender};
use crate::pg::Lsn;

/// Status updates that nobody has asked for are not sent more often than this.
const STATUS_GAP: Duration = Duration::from_secs(1);

/// How often the server hears of us where it would never give us up.
const STATUS_PERIOD: Duration = Duration::from_secs(10);

/// After how much silence a session counts as broken. A server that decodes a long transaction
/// of which nothing is published may be silent for minutes; a host that is gone is noticed by
/// TCP long before.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long the server may take to end its side of a session that ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// Moves bytes and keeps time.
#[derive(Debug)]
pub(super) struct Pump {
    session: Walsender,
    assembler: Assembler,
    events: mpsc::Sender<Result<Vec<SourceEvent>, SourceError>>,
    /// Up to where the owner of the source has everything stored.
    acknowledged: watch::Receiver<Lsn>,
    /// Somebody wants to hear how far the server is.
    asked: Arc<Notify>,
    /// Decoded and not yet taken; while there is any, the socket is not read.
    pending: Vec<SourceEvent>,
    pace: Pace,
    /// Until then the socket is not read either: what comes is let collect.
    rest: Option<Instant>,
    period: Duration,
    last_status: Instant,
    next_status: Instant,
    last_heard: Instant,
}

impl Pump {
    pub(super) fn new(
        session: Walsender,
        assembler: Assembler,
        events: mpsc::Sender<Result<Vec<SourceEvent>, SourceError>>,
        (acknowledged, asked): (watch::Receiver<Lsn>, Arc<Notify>),
        server_timeout: Option<Duration>,
    ) -> Self {
        let period = server_timeout.map_or(STATUS_PERIOD, |timeout| timeout / 3);
        let now = Instant::now();
        Self {
            session,
            assembler,
            events,
            acknowledged,
            asked,
            pending: Vec::new(),
            pace: Pace::new(now),
            rest: None,
            period,
            last_status: now,
            next_status: now,
            last_heard: now,
        }
    }

    /// Runs until the session ends. What ended it follows the last events, in the words of
    /// `explain`.
    pub(super) async fn run(mut self, explain: impl FnOnce(SessionError) -> SourceError) {
        match self.pump().await {
            Ok(()) => {
                let acknowledged = *self.acknowledged.borrow_and_update();
                if self.session.send_status(acknowledged, false).await.is_ok()
                    && self.session.finish().await.is_ok()
                {
                    self.session.drain(DRAIN_TIMEOUT).await;
                }
            }
            Err(error) => {
                let error = explain(error);
                // Where the receiver is gone nobody wants to know.
                if !self.pending.is_empty() {
                    let _sent = self
                        .events
                        .send(Ok(std::mem::take(&mut self.pending)))
                        .await;
                }
                let _sent = self.events.send(Err(error)).await;
            }
        }
    }

    /// Returns once nobody takes events any more: the owner wants the session to end.
    async fn pump(&mut self) -> Result<(), SessionError> {
        // The start-up may have read the first frames already.
        self.decode().await?;
        loop {
            let blocked = !self.pending.is_empty();
            let soon = self.last_status + STATUS_GAP;
            let events = self.events.clone();
            tokio::select! {
                // Answers come first: they are rare and the server waits for them.
                biased;
                () = events.closed() => return Ok(()),
                // Once a status update is due there is nothing more to be heard here: it takes
                // the position of its moment.
                changed = self.acknowledged.changed(), if self.next_status > soon => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.next_status = soon;
                }
                () = self.asked.notified(), if !blocked => self.status(true).await?,
                () = sleep_until(self.next_status) => {
                    // A healthy server has nothing to say for as long as it hears of us.
                    let ask = !blocked && self.last_heard.elapsed() >= self.period / 2;
                    self.status(ask).await?;
                }
                permit = events.reserve(), if blocked => {
                    let Ok(permit) = permit else { return Ok(()) };
                    permit.send(Ok(std::mem::take(&mut self.pending)));
                    // The silence before was ours.
                    self.last_heard = Instant::now();
                }
                () = sleep_until(self.rest.unwrap_or(soon)), if !blocked && self.rest.is_some() => {
                    self.rest = None;
                }
                read = self.session.read(), if !blocked && self.rest.is_none() => {
                    let bytes = read?;
                    self.last_heard = Instant::now();
                    let frames = self.decode().await?;
                    self.rest = self.pace.read(frames, bytes, self.last_heard);
                    if self.rest.is_some() {
                        self.session.doze()?;
                    }
                }
                () = sleep_until(self.last_heard + PATIENCE), if !blocked => {
                    return Err(SessionError::Io(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the server is silent",
                    )));
                }
            }
        }
    }

    /// Takes every message that has been read as a whole; returns how many there were.
    async fn decode(&mut self) -> Result<usize, SessionError> {
        let (mut frames, mut reply_wanted) = (0, false);
        while let Some(frame) = self.session.frame()? {
            frames += 1;
            let event = match frame {
                Frame::Data(message) => self.assembler.take(message)?,
                Frame::Keepalive { end, reply } => {
                    reply_wanted |= reply;
                    self.assembler.quiet(end)
                }
                Frame::Done => {
                    return Err(SessionError::Io(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the server ended the stream, as it does when it shuts down",
                    )));
                }
            };
            match (event, self.pending.last_mut()) {
                // Only the latest position matters.
                (Some(SourceEvent::Progress(lsn)), Some(SourceEvent::Progress(earlier))) => {
                    *earlier = lsn.max(*earlier);
                }
                (Some(event), _) => self.pending.push(event),
                (None, _) => {}
            }
        }
        if reply_wanted {
            self.status(false).await?;
        }
        Ok(frames)
    }

    async fn status(&mut self, ask: bool) -> Result<(), SessionError> {
        let acknowledged = *self.acknowledged.borrow_and_update();
        self.session.send_status(acknowledged, ask).await?;
        self.last_status = Instant::now();
        self.next_status = self.last_status + self.period;
        Ok(())
    }
}

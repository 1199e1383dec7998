//! One socket: its client's frames go to the session, what the session says goes out.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rand::Rng;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};

use super::Front;
use super::line::{Left, Line};
use super::reading::Reading;
use super::stream::ClientStream;
use super::verifying::{Verified, Verifying};
use crate::router::{Join, Outbox, SessionId};
use crate::session::{Action, Close, Session, Verify};
use crate::supabase::Serializer;

/// How long the client may take to answer a close.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long a write may make no progress to a client that is to be closed as too slow anyway: until
/// then its full outbox is kept for it.
const FORGONE: Duration = Duration::from_secs(5);
/// The wall clock may jump, so the expiry of tokens is looked at again this often.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Seconds since 1970-01-01 00:00 UTC.
pub(super) fn unix_now() -> i64 {
    i64::try_from(since_epoch().as_secs()).unwrap_or(i64::MAX)
}

pub(super) fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

pub(super) struct Connection {
    line: Arc<Line>,
    reading: Reading,
    serializer: Serializer,
    id: SessionId,
    role: Arc<str>,
    /// Boxed, since a socket seldom has any.
    verifying: Option<Box<Verifying>>,
    heard: Instant,
    pinged: Instant,
    /// When to take leave, once the server stops.
    leaving: Option<Instant>,
    /// Set once a frame came that cannot be read: the library must not be asked for another.
    unreadable: bool,
}

impl Connection {
    pub(super) fn new(
        front: Front,
        stream: ClientStream,
        reading: Reading,
        serializer: Serializer,
        session: Session,
    ) -> Self {
        let id = front.next_session();
        let settings = &front.0.settings;
        let (events, bytes) = (settings.outbox_max_events, settings.outbox_max_bytes);
        let outbox = Outbox::new(id, events, bytes);
        let now = Instant::now();
        Self {
            role: session.role(),
            line: Line::new(front, stream, outbox, serializer, session),
            reading,
            serializer,
            id,
            verifying: None,
            heard: now,
            pinged: now,
            leaving: None,
            unreadable: false,
        }
    }

    /// Serves the client until one of the two has enough. Must be polled to its end, or the router
    /// keeps the session.
    ///
    /// Boxed, since a future has room for what it is given and for what it makes of that.
    pub(super) async fn run(mut self: Box<Self>) {
        let line = Arc::clone(&self.line);
        let front = &line.front.0;
        let metrics = &front.metrics;
        let ending = front.ending.clone();
        metrics.connections.inc();
        tracing::info!(session = self.id.0, role = &*self.role, "client connected");
        let close = tokio::select! {
            close = Box::pin(self.served()) => close,
            () = ending.cancelled() => Close::Shutdown,
        };
        line.outbox.close();
        // Where the router is gone there is nothing to be forgotten.
        let _stopped = front.router.disconnect(self.id).await;
        metrics.connections.dec();
        metrics.closed(close.as_str());
        tracing::info!(
            session = self.id.0,
            role = &*self.role,
            reason = close.as_str(),
            "client gone"
        );
    }

    /// Serves the client and takes leave of it.
    async fn served(&mut self) -> Close {
        let Err(close) = self.serve().await;
        self.line.lock().close();
        self.line.outbox.close();
        self.farewell(close).await;
        close
    }

    async fn serve(&mut self) -> Result<std::convert::Infallible, Close> {
        let line = Arc::clone(&self.line);
        let stopping = line.front.0.stopping.clone();
        let mut stopping = pin!(stopping.cancelled());
        let mut timer = pin!(tokio::time::sleep_until(self.due()));
        let mut more = false;
        loop {
            // Not left to the timer, which a client that never pauses could hold off.
            let expiry = line.lock().session.next_expiry();
            if expiry.is_some_and(|at| at <= unix_now()) {
                self.tick().await?;
            }
            let due = self.due();
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
            tokio::select! {
                message = self.reading.receive(&line) => self.received(message).await?,
                () = line.outbox.readable(), if !more => more = self.deliver().await?,
                () = std::future::ready(()), if more => {
                    // A client that takes everything at once must not occupy the thread.
                    tokio::task::yield_now().await;
                    more = self.deliver().await?;
                }
                (waiting, result) = next(&mut self.verifying), if self.verifying.is_some() => {
                    let mut actions = Vec::new();
                    for (channel, attempt) in waiting {
                        let (result, now) = (result.clone(), line.now());
                        let session = &mut line.lock().session;
                        session.verified(channel, attempt, result, now, &mut actions);
                    }
                    self.perform(actions).await?;
                }
                () = &mut timer => self.tick().await?,
                () = &mut stopping, if self.leaving.is_none() => {
                    line.lock().session.stand_by();
                    self.leaving = Some(self.leave_at());
                }
            }
        }
    }

    /// When there is something to do without anybody asking.
    fn due(&self) -> Instant {
        let front = &self.line.front.0;
        let settings = &front.settings;
        let (expiry, report) = {
            let half = self.line.lock();
            (half.session.next_expiry(), half.session.next_report())
        };
        let mut due = (self.pinged + settings.ping_every).min(self.heard + settings.idle_after);
        if let Some(expiry) = expiry {
            let at = Duration::from_secs(u64::try_from(expiry).unwrap_or(0));
            let wait = at.saturating_sub(since_epoch());
            if wait < LOOK_AGAIN {
                // Whole milliseconds, so that the timer is not moved with every look at the clock.
                let wait = Duration::from_millis(u64::try_from(wait.as_millis()).unwrap_or(0) + 1);
                due = due.min(Instant::now() + wait);
            }
        }
        if let Some(report) = report {
            due = due.min(front.started + report);
        }
        self.leaving.map_or(due, |leaving| due.min(leaving))
    }

    /// Sockets take leave one after the other, so that their clients do not all come back at the
    /// same instant.
    fn leave_at(&self) -> Instant {
        let front = &self.line.front.0;
        let sockets = u64::try_from(front.sockets.len()).unwrap_or(u64::MAX);
        let spread = Duration::from_millis(sockets).min(front.settings.drain / 2);
        Instant::now() + spread.mul_f64(rand::rng().random_range(0.0..1.0))
    }

    async fn tick(&mut self) -> Result<(), Close> {
        let line = Arc::clone(&self.line);
        let settings = &line.front.0.settings;
        let now = Instant::now();
        let mut actions = Vec::new();
        if self.leaving.is_some_and(|leaving| leaving <= now) {
            line.lock().session.shut_down(&mut actions);
        } else if self.heard + settings.idle_after <= now {
            return Err(Close::Idle);
        } else {
            if self.pinged + settings.ping_every <= now {
                self.pinged = now;
                let ping = Message::Ping(Bytes::new());
                let said = self
                    .reading
                    .say(&line, |library, ends| library.write(ends, ping));
                said.map_err(|error| reason_of(&error))?;
                flush(&self.line).await?;
            }
            let now = line.now();
            let position = line.front.0.router.position();
            let session = &mut line.lock().session;
            session.tick(now, &mut actions);
            session.reach(position, line.outbox.is_empty());
            session.report(now, &mut actions);
        }
        self.perform(actions).await
    }

    async fn received(
        &mut self,
        message: Result<Message, tungstenite::Error>,
    ) -> Result<(), Close> {
        let message = message.map_err(|error| {
            self.unreadable = true;
            reason_of(&error)
        })?;
        self.heard = Instant::now();
        let request = match message {
            Message::Text(text) => self.serializer.text(&text),
            Message::Binary(bytes) => self.serializer.binary(&bytes),
            Message::Ping(_) => {
                // The library has the answer ready.
                let said = self
                    .reading
                    .say(&self.line, |library, ends| library.flush(ends));
                said.map_err(|error| reason_of(&error))?;
                return flush(&self.line).await;
            }
            Message::Pong(_) | Message::Frame(_) => return Ok(()),
            Message::Close(_) => return Err(Close::Client),
        };
        let mut actions = Vec::new();
        {
            let now = self.line.now();
            let session = &mut self.line.lock().session;
            match request {
                Ok(request) => session.request(request, now, &mut actions),
                Err(_) => session.malformed(&mut actions),
            }
        }
        self.perform(actions).await
    }

    /// Writes what waits in the outbox, up to a run; returns whether there may be more.
    async fn deliver(&mut self) -> Result<bool, Close> {
        // Whoever hands out changes may have left some of them to be written.
        flush(&self.line).await?;
        let mut left = Left::default();
        let taken = {
            let line = &self.line;
            let mut half = line.lock();
            line.take(&mut half, &mut left)?
        };
        self.finish(left).await?;
        // Even with nothing taken the outbox may have overflowed; the next look tells.
        Ok(taken > 0)
    }

    /// Does what the session wants done: its words are put behind those that wait, and written
    /// once.
    async fn perform(&mut self, actions: Vec<Action>) -> Result<(), Close> {
        if actions.is_empty() {
            return Ok(());
        }
        let mut left = Left::default();
        self.line.put(&mut self.line.lock(), actions, &mut left);
        self.finish(left).await
    }

    /// Does what a session wants done beside its words, and writes those.
    async fn finish(&mut self, mut left: Left) -> Result<(), Close> {
        while let Some(action) = left.actions.pop_front() {
            let router = &self.line.front.0.router;
            match action {
                Action::Join {
                    channel,
                    principal,
                    wanted,
                    keeps_cursor,
                } => {
                    let join = Join {
                        outbox: Arc::clone(&self.line.outbox),
                        channel,
                        principal,
                        wanted,
                        keeps_cursor,
                    };
                    // Boxed, since joins are large and seldom.
                    let sent = Box::pin(router.join(join)).await;
                    sent.map_err(|_| Close::Shutdown)?;
                }
                Action::Leave(channel) => {
                    let sent = Box::pin(router.leave(self.id, channel)).await;
                    sent.map_err(|_| Close::Shutdown)?;
                }
                Action::Verify(verify) => self.verify(verify, &mut left),
                // They are taken out where the others are left.
                Action::Reply(_) | Action::Close(_) => {}
            }
        }
        flush(&self.line).await?;
        left.close.map_or(Ok(()), Err)
    }

    /// Verifies at once where the key is at hand, and otherwise beside everything else.
    fn verify(&mut self, verify: Verify, left: &mut Left) {
        let Verify {
            channel,
            attempt,
            token,
        } = verify;
        let known = match self.line.front.0.auth.try_verify(&token, unix_now()) {
            None => {
                let verifying = self.verifying.get_or_insert_default();
                verifying.add(&self.line.front.0.auth, (channel, attempt), token)
            }
            known => known,
        };
        if let Some(result) = known {
            let mut then = Vec::new();
            let now = self.line.now();
            let mut half = self.line.lock();
            half.session
                .verified(channel, attempt, result, now, &mut then);
            self.line.put(&mut half, then, left);
        }
    }

    /// Says why, and gives the client a moment to hear it.
    async fn farewell(&mut self, close: Close) {
        if close == Close::Lost {
            return;
        }
        let line = Arc::clone(&self.line);
        line.stream.linger();
        // Whoever does not take it in time gets the end of the stream only.
        let _taken = tokio::time::timeout(FAREWELL, async {
            if close == Close::Slow {
                let mut actions = Vec::new();
                let mut half = line.lock();
                half.session.last_report(&mut actions);
                line.put(&mut half, actions, &mut Left::default());
            }
            if close != Close::Client {
                let frame = CloseFrame {
                    code: close.code().into(),
                    reason: close.text().into(),
                };
                let said = self
                    .reading
                    .say(&line, |library, ends| library.close(ends, Some(frame)));
                said.map_err(|error| reason_of(&error))?;
            }
            line.flush().await.map_err(|_| Close::Lost)?;
            while !self.unreadable {
                let read = self.reading.receive(&line).await;
                self.unreadable = read.is_err();
            }
            // What the library answered the client's own close.
            line.flush().await.map_err(|_| Close::Lost)
        })
        .await;
    }
}

/// Writes all that waits, unless the client takes nothing for too long.
async fn flush(line: &Line) -> Result<(), Close> {
    if line.try_flush(&mut line.lock()).map_err(|_| Close::Lost)? {
        return Ok(());
    }
    let limit = line.front.0.settings.write_stall;
    // Boxed, since few sockets ever come here.
    Box::pin(async {
        tokio::select! {
            biased;
            flushed = line.flush() => flushed.map_err(|_| Close::Lost),
            () = stall(line, limit) => Err(Close::Slow),
        }
    })
    .await
}

/// Resolves once nothing was written for `limit`, or for [`FORGONE`] where the outbox has
/// overflowed. Never polled while writes get on.
async fn stall(line: &Line, limit: Duration) {
    let (mut before, mut since) = (line.stream.written(), Instant::now());
    loop {
        tokio::time::sleep(limit.min(FORGONE)).await;
        let now = line.stream.written();
        if now != before {
            (before, since) = (now, Instant::now());
        } else if since.elapsed() >= limit || line.outbox.has_overflowed() {
            return;
        }
    }
}

async fn next(verifying: &mut Option<Box<Verifying>>) -> Verified {
    let Some(waiting) = verifying else {
        return std::future::pending().await;
    };
    let verified = waiting.next().await;
    if waiting.is_empty() {
        *verifying = None;
    }
    verified
}

fn reason_of(error: &tungstenite::Error) -> Close {
    use tungstenite::Error;
    use tungstenite::error::ProtocolError;
    match error {
        Error::Capacity(_) => Close::TooLarge,
        Error::ConnectionClosed | Error::AlreadyClosed => Close::Client,
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Close::Lost,
        Error::Protocol(_) | Error::Utf8(_) => Close::Protocol,
        _ => Close::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_socket_costs_little_memory() {
        let (run, served) = (
            size(Connection::run),
            size(|connection: &'static mut Connection| connection.served()),
        );
        println!("{run} + {served} bytes");
        assert!(run + served <= 1536, "{run} + {served} bytes");
    }
}

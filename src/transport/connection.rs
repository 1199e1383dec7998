//! One socket: its client's frames go to the session, what the session says goes out.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use futures_util::SinkExt;
use rand::Rng;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite;

use super::Front;
use super::stream::Progress;
use super::verifying::{Verified, Verifying};
use crate::router::{Join, Outbox, SessionId};
use crate::session::{Action, Close, Now, Reply, Session, Verify};
use crate::supabase::{Serializer, encode};

/// Events written before the socket is flushed and read again.
const RUN: usize = 64;
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

fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

pub(super) struct Connection {
    front: Front,
    socket: WebSocket,
    serializer: Serializer,
    session: Session,
    id: SessionId,
    role: Arc<str>,
    outbox: Arc<Outbox>,
    progress: Option<Arc<Progress>>,
    /// Boxed, since a socket seldom has any.
    verifying: Option<Box<Verifying>>,
    heard: Instant,
    pinged: Instant,
    /// When to take leave, once the server stops.
    leaving: Option<Instant>,
}

impl Connection {
    pub(super) fn new(
        front: Front,
        socket: WebSocket,
        serializer: Serializer,
        session: Session,
        progress: Option<Arc<Progress>>,
    ) -> Self {
        let id = front.next_session();
        let settings = &front.0.settings;
        let (events, bytes) = (settings.outbox_max_events, settings.outbox_max_bytes);
        let now = Instant::now();
        Self {
            outbox: Outbox::new(id, events, bytes),
            role: session.role(),
            session,
            front,
            socket,
            serializer,
            id,
            progress,
            verifying: None,
            heard: now,
            pinged: now,
            leaving: None,
        }
    }

    /// Serves the client until one of the two has enough. Must be polled to its end, or the router
    /// keeps the session.
    pub(super) async fn run(mut self) {
        let metrics = Arc::clone(&self.front.0.metrics);
        let ending = self.front.0.ending.clone();
        metrics.connections.inc();
        tracing::info!(session = self.id.0, role = &*self.role, "client connected");
        let close = tokio::select! {
            close = Box::pin(self.served()) => close,
            () = ending.cancelled() => Close::Shutdown,
        };
        self.outbox.close();
        // Where the router is gone there is nothing to be forgotten.
        let _stopped = self.front.0.router.disconnect(self.id).await;
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
        self.outbox.close();
        self.farewell(close).await;
        close
    }

    async fn serve(&mut self) -> Result<std::convert::Infallible, Close> {
        let stopping = self.front.0.stopping.clone();
        let mut stopping = pin!(stopping.cancelled());
        let mut timer = pin!(tokio::time::sleep_until(self.due()));
        let mut more = false;
        loop {
            // Not left to the timer, which a client that never pauses could hold off.
            let expiry = self.session.next_expiry();
            if expiry.is_some_and(|at| at <= unix_now()) {
                self.tick().await?;
            }
            let due = self.due();
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
            tokio::select! {
                message = self.socket.recv() => self.received(message).await?,
                () = self.outbox.readable(), if !more => more = self.deliver().await?,
                () = std::future::ready(()), if more => {
                    // A client that takes everything at once must not occupy the thread.
                    tokio::task::yield_now().await;
                    more = self.deliver().await?;
                }
                (waiting, result) = next(&mut self.verifying), if self.verifying.is_some() => {
                    let mut actions = Vec::new();
                    for (channel, attempt) in waiting {
                        let result = result.clone();
                        self.session.verified(channel, attempt, result, self.now(), &mut actions);
                    }
                    self.perform(actions).await?;
                }
                () = &mut timer => self.tick().await?,
                () = &mut stopping, if self.leaving.is_none() => {
                    self.session.stand_by();
                    self.leaving = Some(self.leave_at());
                }
            }
        }
    }

    fn now(&self) -> Now {
        Now {
            monotonic: self.front.0.started.elapsed(),
            unix: unix_now(),
        }
    }

    /// When there is something to do without anybody asking.
    fn due(&self) -> Instant {
        let settings = &self.front.0.settings;
        let mut due = (self.pinged + settings.ping_every).min(self.heard + settings.idle_after);
        if let Some(expiry) = self.session.next_expiry() {
            let at = Duration::from_secs(u64::try_from(expiry).unwrap_or(0));
            let wait = at.saturating_sub(since_epoch());
            if wait < LOOK_AGAIN {
                // Whole milliseconds, so that the timer is not moved with every look at the clock.
                let wait = Duration::from_millis(u64::try_from(wait.as_millis()).unwrap_or(0) + 1);
                due = due.min(Instant::now() + wait);
            }
        }
        if let Some(report) = self.session.next_report() {
            due = due.min(self.front.0.started + report);
        }
        self.leaving.map_or(due, |leaving| due.min(leaving))
    }

    /// Sockets take leave one after the other, so that their clients do not all come back at the
    /// same instant.
    fn leave_at(&self) -> Instant {
        let sockets = u64::try_from(self.front.0.sockets.len()).unwrap_or(u64::MAX);
        let spread = Duration::from_millis(sockets).min(self.front.0.settings.drain / 2);
        Instant::now() + spread.mul_f64(rand::rng().random_range(0.0..1.0))
    }

    async fn tick(&mut self) -> Result<(), Close> {
        let settings = &self.front.0.settings;
        let now = Instant::now();
        let mut actions = Vec::new();
        if self.leaving.is_some_and(|leaving| leaving <= now) {
            self.session.shut_down(&mut actions);
        } else if self.heard + settings.idle_after <= now {
            return Err(Close::Idle);
        } else {
            if self.pinged + settings.ping_every <= now {
                self.pinged = now;
                self.feed(Message::Ping(bytes::Bytes::new())).await?;
                self.flush().await?;
            }
            self.session.tick(self.now(), &mut actions);
            let position = self.front.0.router.position();
            self.session.reach(position, self.outbox.is_empty());
            self.session.report(self.now(), &mut actions);
        }
        self.perform(actions).await
    }

    async fn received(
        &mut self,
        message: Option<Result<Message, axum::Error>>,
    ) -> Result<(), Close> {
        let message = match message {
            None => return Err(Close::Lost),
            Some(Err(error)) => return Err(reason_of(error)),
            Some(Ok(message)) => message,
        };
        self.heard = Instant::now();
        let request = match message {
            Message::Text(text) => self.serializer.text(&text),
            Message::Binary(bytes) => self.serializer.binary(&bytes),
            Message::Ping(_) | Message::Pong(_) => return Ok(()),
            Message::Close(_) => return Err(Close::Client),
        };
        let mut actions = Vec::new();
        match request {
            Ok(request) => self.session.request(request, self.now(), &mut actions),
            Err(_) => self.session.malformed(&mut actions),
        }
        self.perform(actions).await
    }

    /// Writes what waits in the outbox, up to a run; returns whether there may be more.
    async fn deliver(&mut self) -> Result<bool, Close> {
        let mut events = Vec::new();
        // Before the outbox is: what comes into it meanwhile lies behind.
        let position = self.front.0.router.position();
        let taken = self
            .outbox
            .take(&mut events, RUN)
            .map_err(|_| Close::Slow)?;
        if taken > 0 {
            let mut actions = Vec::with_capacity(taken);
            self.session.reach(position, false);
            let now = self.now();
            for event in events {
                self.session.event(event, now, &mut actions);
            }
            self.session.reach(position, self.outbox.is_empty());
            self.session.report(self.now(), &mut actions);
            self.perform(actions).await?;
        }
        // Even with nothing taken the outbox may have overflowed; the next look tells.
        Ok(taken > 0)
    }

    /// Does what the session wants done, in order, and flushes once.
    async fn perform(&mut self, actions: Vec<Action>) -> Result<(), Close> {
        if actions.is_empty() {
            return Ok(());
        }
        let mut actions = VecDeque::from(actions);
        let mut committed = Vec::new();
        let mut fed = false;
        let mut close = None;
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Reply(reply) => {
                    if let Reply::Change { committed_at, .. } = &reply {
                        committed.push(*committed_at);
                    }
                    let Some(frame) = encode(self.serializer, &reply) else {
                        tracing::error!("an encoded change is no UTF-8; it was not sent");
                        continue;
                    };
                    self.feed(Message::Text(frame.into())).await?;
                    fed = true;
                }
                Action::Join {
                    channel,
                    principal,
                    wanted,
                    keeps_cursor,
                } => {
                    let join = Join {
                        outbox: Arc::clone(&self.outbox),
                        channel,
                        principal,
                        wanted,
                        keeps_cursor,
                    };
                    let sent = self.front.0.router.join(join).await;
                    sent.map_err(|_| Close::Shutdown)?;
                }
                Action::Leave(channel) => {
                    let sent = self.front.0.router.leave(self.id, channel).await;
                    sent.map_err(|_| Close::Shutdown)?;
                }
                Action::Verify(verify) => self.verify(verify, &mut actions),
                Action::Close(reason) => {
                    close = Some(reason);
                    break;
                }
            }
        }
        if fed {
            self.flush().await?;
            self.observe(&committed);
        }
        close.map_or(Ok(()), Err)
    }

    /// Verifies at once where the key is at hand, and otherwise beside everything else.
    fn verify(&mut self, verify: Verify, actions: &mut VecDeque<Action>) {
        let Verify {
            channel,
            attempt,
            token,
        } = verify;
        let known = match self.front.0.auth.try_verify(&token, unix_now()) {
            None => {
                let verifying = self.verifying.get_or_insert_default();
                verifying.add(&self.front.0.auth, (channel, attempt), token)
            }
            known => known,
        };
        if let Some(result) = known {
            let mut then = Vec::new();
            let now = self.now();
            self.session
                .verified(channel, attempt, result, now, &mut then);
            actions.extend(then);
        }
    }

    fn observe(&self, committed: &[i64]) {
        if committed.is_empty() {
            return;
        }
        let metrics = &self.front.0.metrics;
        let now = i64::try_from(since_epoch().as_micros()).unwrap_or(i64::MAX);
        for at in committed {
            // The database's clock may be ahead of ours.
            let took = u64::try_from(now.saturating_sub(*at)).unwrap_or(0);
            metrics
                .commit_to_socket
                .observe(Duration::from_micros(took).as_secs_f64());
        }
        metrics
            .changes_delivered
            .inc_by(u64::try_from(committed.len()).unwrap_or(u64::MAX));
    }

    async fn feed(&mut self, message: Message) -> Result<(), Close> {
        let limit = self.front.0.settings.write_stall;
        tokio::select! {
            biased;
            fed = self.socket.feed(message) => fed.map_err(reason_of),
            () = stall(self.progress.as_deref(), &self.outbox, limit) => Err(Close::Slow),
        }
    }

    async fn flush(&mut self) -> Result<(), Close> {
        let limit = self.front.0.settings.write_stall;
        tokio::select! {
            biased;
            flushed = self.socket.flush() => flushed.map_err(reason_of),
            () = stall(self.progress.as_deref(), &self.outbox, limit) => Err(Close::Slow),
        }
    }

    /// Says why, and gives the client a moment to hear it.
    async fn farewell(&mut self, close: Close) {
        if close == Close::Lost {
            return;
        }
        if let Some(progress) = &self.progress {
            progress.linger();
        }
        // Whoever does not take it in time gets the end of the stream only.
        let _taken = tokio::time::timeout(FAREWELL, async {
            if close == Close::Slow {
                let mut actions = Vec::new();
                self.session.last_report(&mut actions);
                for action in actions {
                    if let Action::Reply(reply) = action
                        && let Some(frame) = encode(self.serializer, &reply)
                    {
                        self.socket.feed(Message::Text(frame.into())).await?;
                    }
                }
            }
            if close != Close::Client {
                let frame = CloseFrame {
                    code: close.code(),
                    reason: close.text().into(),
                };
                self.socket.send(Message::Close(Some(frame))).await?;
            }
            while let Some(message) = self.socket.recv().await {
                message?;
            }
            Ok::<(), axum::Error>(())
        })
        .await;
    }
}

/// Resolves once nothing was written for `limit`, or for [`FORGONE`] where the outbox has
/// overflowed. Never polled while writes get on.
async fn stall(progress: Option<&Progress>, outbox: &Outbox, limit: Duration) {
    let written = || progress.map_or(0, Progress::written);
    let (mut before, mut since) = (written(), Instant::now());
    loop {
        tokio::time::sleep(limit.min(FORGONE)).await;
        let now = written();
        if now != before {
            (before, since) = (now, Instant::now());
        } else if since.elapsed() >= limit || outbox.has_overflowed() {
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

fn reason_of(error: axum::Error) -> Close {
    use tungstenite::Error;
    use tungstenite::error::ProtocolError;
    match error.into_inner().downcast_ref::<Error>() {
        Some(Error::Capacity(_)) => Close::TooLarge,
        Some(Error::ConnectionClosed | Error::AlreadyClosed) => Close::Client,
        Some(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => Close::Lost,
        Some(Error::Protocol(_) | Error::Utf8(_)) => Close::Protocol,
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
        assert!(run + served <= 4096, "{run} + {served} bytes");
    }
}

//! The write half of a client's socket, and its session: shared by the socket's own task and by
//! whoever hands out changes, which writes at once where nothing stands in the way.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use bytes::{Buf, Bytes};
use smallvec::SmallVec;

use super::connection::{since_epoch, unix_now};
use super::stream::ClientStream;
use super::{Front, wire};
use crate::encode::Envelope;
use crate::log::Holder;
use crate::router::{Carrier, ChannelId, Event, Outbox, Outgoing};
use crate::session::{Action, Close, Now, Session};
use crate::supabase::{Serializer, can_be_held, room, write, write_change, write_holder};

/// Events and bytes of changes that are taken before the socket has what came before: so much waits
/// here at most, and one change.
const RUN: (usize, usize) = (64, 64 * 1024);

/// Runs that whoever hands out changes writes before the task has to go on.
const RUNS: usize = 4;

/// Frames of one write, each perhaps in two pieces.
const SLICES: usize = 2 * RUN.0;

const NO_TEXT: &str = "what was encoded is no UTF-8; it was not sent";

/// What is kept of the room for frames that wait.
const ROOM: usize = 4;

/// What the task of a socket and the router share.
pub(super) struct Line {
    pub(super) front: Front,
    pub(super) stream: ClientStream,
    pub(super) outbox: Arc<Outbox>,
    serializer: Serializer,
    half: Mutex<Half>,
}

/// What only one of them may have at a time.
pub(super) struct Half {
    pub(super) session: Session,
    /// Frames that the kernel has not taken, in pieces; of the first a part may be gone.
    waiting: VecDeque<Bytes>,
    /// What changes' frames end with whose cursor is given to somebody: a socket's channels mostly
    /// have one holder.
    ending: Option<(Holder, Bytes)>,
    /// Changes among what waits.
    changes: u32,
    /// When they committed, in microseconds since 1970-01-01 00:00 UTC: once for those of one
    /// transaction.
    committed: SmallVec<[i64; 2]>,
    /// Set once the client is taken leave of: nothing more is handed out.
    closed: bool,
}

/// What is left to do of what a session wants done.
#[derive(Default)]
pub(super) struct Left {
    /// In order; no replies.
    pub(super) actions: VecDeque<Action>,
    pub(super) close: Option<Close>,
}

impl Line {
    pub(super) fn new(
        front: Front,
        stream: ClientStream,
        outbox: Arc<Outbox>,
        serializer: Serializer,
        session: Session,
    ) -> Arc<Self> {
        let line = Arc::new(Self {
            front,
            stream,
            serializer,
            half: Mutex::new(Half {
                session,
                waiting: VecDeque::new(),
                ending: None,
                changes: 0,
                committed: SmallVec::new(),
                closed: false,
            }),
            outbox,
        });
        let carrier: Arc<dyn Carrier> = Arc::clone(&line) as _;
        line.outbox.carried_by(Arc::downgrade(&carrier));
        line
    }

    /// The session and what waits. Never held across an await.
    pub(super) fn lock(&self) -> MutexGuard<'_, Half> {
        // No code under this lock panics half-way through a change.
        self.half.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Now {
        Now {
            monotonic: self.front.0.started.elapsed(),
            unix: unix_now(),
        }
    }

    /// Hands out a run of events: writes what the kernel takes at once; what they mean beside that
    /// is `left`. Returns how many there were.
    pub(super) fn take(&self, half: &mut Half, left: &mut Left) -> Result<usize, Close> {
        // Before the outbox is: what comes into it meanwhile lies behind.
        let position = self.front.0.router.position();
        let mut changes = Vec::new();
        if half.waiting.is_empty() {
            // Where it has overflowed something else may come before its end.
            let _overflow = self.outbox.take_changes(&mut changes, RUN);
        }
        let mut events = Vec::new();
        if changes.is_empty() {
            let taken = self.outbox.take_up_to(&mut events, RUN);
            taken.map_err(|_| Close::Slow)?;
        }
        let taken = changes.len() + events.len();
        if taken == 0 {
            return Ok(0);
        }
        half.session.reach(position, false);
        self.write_changes(half, &changes)
            .map_err(|_| Close::Lost)?;
        let now = self.now();
        let mut actions = Vec::new();
        for event in events {
            match event {
                Event::Change { channel, change } => {
                    if let Some((frame, own)) = self.frame(half, channel, &change) {
                        half.waiting.push_back(frame.into_owned());
                        half.waiting.extend(own);
                    }
                }
                event => half.session.event(event, now, &mut actions),
            }
            self.put(half, actions.drain(..), left);
        }
        half.session.reach(position, self.outbox.is_empty());
        half.session.report(now, &mut actions);
        self.put(half, actions, left);
        self.try_flush(half).map_err(|_| Close::Lost)?;
        Ok(taken)
    }

    /// Moves what the session says to the frames that wait.
    pub(super) fn put(
        &self,
        half: &mut Half,
        actions: impl IntoIterator<Item = Action>,
        left: &mut Left,
    ) {
        for action in actions {
            match action {
                // Nothing follows.
                _ if left.close.is_some() => return,
                Action::Close(reason) => left.close = Some(reason),
                Action::Reply(reply) => {
                    let frame = wire::text(room(&reply), 0, |bytes| {
                        write(self.serializer, &reply, bytes);
                    });
                    half.wait(frame);
                }
                other => left.actions.push_back(other),
            }
        }
    }

    /// A change's frame: what is shared, and behind it what is the channel's own; `None` where there
    /// is nothing to be sent, as the channel has ended.
    fn frame<'a>(
        &self,
        half: &mut Half,
        channel: ChannelId,
        change: &'a Arc<Outgoing>,
    ) -> Option<(Cow<'a, Bytes>, Option<Bytes>)> {
        let Outgoing { bindings, data, .. } = &**change;
        let (topic, holder) = half.session.change(channel, change.offset)?;
        let holder = holder.filter(|_| can_be_held(data));
        let own = holder.map(|holder| match &half.ending {
            Some((known, ending)) if *known == holder => ending.clone(),
            _ => {
                let mut bytes = Vec::new();
                write_holder(self.serializer, holder, &mut bytes);
                half.ending.insert((holder, bytes.into())).1.clone()
            }
        });
        let envelope = Envelope {
            form: self.serializer as u8,
            topic,
            bindings,
            rest: own.as_ref().map_or(0, Bytes::len),
            shared: Arc::strong_count(change) > 1,
        };
        let frame = data.framed(&envelope, |data| {
            wire::text(data.len() + topic.len() + 128, envelope.rest, |bytes| {
                write_change(
                    self.serializer,
                    topic,
                    bindings,
                    (data, own.is_some()),
                    bytes,
                );
            })
        });
        half.changes += 1;
        if half.committed.last() != Some(&change.committed_at) {
            half.committed.push(change.committed_at);
        }
        if frame.is_none() {
            tracing::error!("{NO_TEXT}");
        }
        Some((frame?, own))
    }

    /// Writes changes where nothing waits before them. What is shared is only held on to where the
    /// kernel does not take it at once.
    fn write_changes(
        &self,
        half: &mut Half,
        changes: &[(ChannelId, Arc<Outgoing>)],
    ) -> io::Result<()> {
        let mut pieces: SmallVec<[Cow<'_, Bytes>; 4]> = SmallVec::new();
        for (channel, change) in changes {
            if let Some((frame, own)) = self.frame(half, *channel, change) {
                pieces.push(frame);
                pieces.extend(own.map(Cow::Owned));
            }
        }
        let tried = self.try_write(pieces.iter().map(|piece| &**piece));
        let mut written = *tried.as_ref().unwrap_or(&0);
        for piece in pieces {
            if written >= piece.len() {
                written -= piece.len();
                continue;
            }
            let mut piece = piece.into_owned();
            piece.advance(std::mem::take(&mut written));
            half.waiting.push_back(piece);
        }
        tried.map(|_| ())
    }

    /// How many bytes of the first pieces the kernel took; 0 where it has no room.
    fn try_write<'a>(&self, pieces: impl Iterator<Item = &'a Bytes>) -> io::Result<usize> {
        let first = pieces.take(SLICES).map(|piece| IoSlice::new(piece));
        let slices: SmallVec<[IoSlice<'_>; SLICES]> = first.collect();
        if slices.is_empty() {
            return Ok(0);
        }
        match self.stream.try_write(&slices) {
            Ok(0) => Err(ErrorKind::WriteZero.into()),
            Ok(written) => Ok(written),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Writes what the kernel takes at once; says whether that is everything.
    pub(super) fn try_flush(&self, half: &mut Half) -> io::Result<bool> {
        while !half.waiting.is_empty() {
            let written = self.try_write(half.waiting.iter())?;
            if written == 0 {
                return Ok(false);
            }
            half.written(written);
        }
        self.observe(half);
        if half.waiting.capacity() > ROOM {
            // A burst must not cost memory for the rest of an idle connection's life.
            half.waiting = VecDeque::new();
        }
        Ok(true)
    }

    /// Writes all that waits, however long that takes. Cancel safe.
    pub(super) async fn flush(&self) -> io::Result<()> {
        while !self.try_flush(&mut self.lock())? {
            self.stream.writable().await?;
        }
        Ok(())
    }

    fn observe(&self, half: &mut Half) {
        if half.committed.is_empty() {
            return;
        }
        let metrics = &self.front.0.metrics;
        let now = i64::try_from(since_epoch().as_micros()).unwrap_or(i64::MAX);
        for at in &half.committed {
            // The database's clock may be ahead of ours.
            let took = u64::try_from(now.saturating_sub(*at)).unwrap_or(0);
            metrics
                .commit_to_socket
                .observe(Duration::from_micros(took).as_secs_f64());
        }
        metrics.changes_delivered.inc_by(half.changes.into());
        half.changes = 0;
        half.committed = SmallVec::new();
    }

    /// Hands out changes, and only those: anything else is for the task.
    fn carry_changes(&self, half: &mut Half) -> Option<bool> {
        if half.closed || !half.waiting.is_empty() {
            return None;
        }
        let due = half.session.next_report();
        let expiry = half.session.next_expiry();
        if expiry.is_some_and(|at| at <= unix_now()) {
            return None;
        }
        let mut emptied = false;
        for _ in 0..RUNS {
            let position = self.front.0.router.position();
            let mut changes: SmallVec<[(ChannelId, Arc<Outgoing>); 4]> = SmallVec::new();
            emptied = self.outbox.take_changes(&mut changes, RUN).ok()?;
            if changes.is_empty() {
                break;
            }
            half.session.reach(position, false);
            // Where a write fails the task finds out why.
            self.write_changes(half, &changes).ok()?;
            half.session.reach(position, emptied);
            if !self.try_flush(half).ok()? || emptied {
                break;
            }
        }
        // The task's timer was set by what was due then.
        let written = half.waiting.is_empty();
        Some(written && emptied && half.session.next_report() == due)
    }
}

impl Carrier for Line {
    fn carry(&self) -> bool {
        match self.half.try_lock() {
            Ok(mut half) => self.carry_changes(&mut half).unwrap_or(false),
            Err(TryLockError::Poisoned(half)) => {
                self.carry_changes(&mut half.into_inner()).unwrap_or(false)
            }
            // Whoever has it may have looked into the outbox already.
            Err(TryLockError::WouldBlock) => false,
        }
    }
}

impl Half {
    /// Ends the handing out of changes.
    pub(super) const fn close(&mut self) {
        self.closed = true;
    }

    /// Has a frame written behind the others; there is none where what was to be sent is no text.
    pub(super) fn wait(&mut self, frame: Option<Bytes>) {
        match frame {
            Some(frame) => self.waiting.push_back(frame),
            None => tracing::error!("{NO_TEXT}"),
        }
    }

    /// So many bytes are gone.
    fn written(&mut self, mut bytes: usize) {
        while bytes > 0
            && let Some(first) = self.waiting.front_mut()
        {
            if first.len() > bytes {
                first.advance(bytes);
                return;
            }
            bytes -= first.len();
            self.waiting.pop_front();
        }
    }
}

//! What waits for one session: bounded, in order, with places held for answers that are still out.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use tokio::sync::Notify;

use super::{ChannelId, Event, Outgoing, SessionId};

/// As many events as a session takes at once are worth a look at any time.
const MANY: usize = 64;

/// Room for so many events is kept while there is none.
const KEPT: usize = 4;

/// The outbox was full: the session is to be closed with a code that means "come back".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client does not keep up")]
pub struct Overflow;

/// What one of those who are asked about a held event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    /// It may go out.
    Yes,
    /// It may not, whatever the others say.
    No,
    /// There was no answer in time.
    TimedOut,
    /// There is no answer.
    Failed,
}

/// What a voice made of a [`Verdict`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// Nothing yet, or nothing new.
    Open,
    /// All said yes.
    Shown,
    /// Somebody said no.
    Hidden,
    /// Nobody said no and not all said yes: it is in doubt, because of a voice that did not come in
    /// time or (`false`) failed.
    InDoubt {
        /// Whether it did not come in time.
        timed_out: bool,
    },
}

/// Whether a held event may go out: once everybody who is asked has said yes. Whether it is in doubt
/// shows only once all have spoken: a no says that there is nothing to be told. Behind a change that is in
/// doubt its channel hears nothing more but that it is to read again.
#[derive(Debug)]
pub struct Verdict(AtomicU8);

impl Default for Verdict {
    /// One is asked.
    fn default() -> Self {
        Self::of(1)
    }
}

impl Verdict {
    const SHOW: u8 = 0;
    const HIDE: u8 = u8::MAX;
    /// All have spoken, it is in doubt, and whoever waits for it is told.
    const DOUBT: u8 = u8::MAX - 1;
    /// Flags beside the number of those who have not spoken yet.
    const TIMED_OUT: u8 = 0x80;
    const FAILED: u8 = 0x40;
    const DOUBTS: u8 = Self::TIMED_OUT | Self::FAILED;

    /// A verdict for which `voices` are asked, at least one and fewer than 32.
    #[must_use]
    pub const fn of(voices: u8) -> Self {
        Self(AtomicU8::new(voices))
    }

    /// Lets go what is in doubt, once a [`Event::Resync`] for whoever waits for it is in its outbox.
    pub fn give_up(&self) {
        self.0.store(Self::DOUBT, Ordering::Release);
    }

    fn is(&self, state: u8) -> bool {
        self.0.load(Ordering::Acquire) == state
    }

    /// One of those who are asked speaks.
    pub fn say(&self, voice: Voice) -> Ruling {
        let next = |state: u8| {
            if state & !Self::DOUBTS == 0 || state >= Self::DOUBT {
                return None;
            }
            let doubt = match voice {
                Voice::Yes => 0,
                Voice::No => return Some(Self::HIDE),
                Voice::TimedOut => Self::TIMED_OUT,
                Voice::Failed => Self::FAILED,
            };
            Some((state - 1) | doubt)
        };
        let spoken = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
        // The same once more says what it came to.
        match spoken.ok().and_then(next) {
            None => Ruling::Open,
            Some(Self::SHOW) => Ruling::Shown,
            Some(Self::HIDE) => Ruling::Hidden,
            Some(state) if state & !Self::DOUBTS == 0 => Ruling::InDoubt {
                timed_out: state & Self::TIMED_OUT != 0,
            },
            Some(_) => Ruling::Open,
        }
    }
}

/// Small where there are many: a change for thousands is put into thousands of outboxes.
enum Slot {
    Change(ChannelId, Arc<Outgoing>),
    Other(Box<Event>),
    Held(Box<(Event, Arc<Verdict>)>),
}

struct Inner {
    slots: VecDeque<Slot>,
    bytes: usize,
    closed: bool,
    overflowed: bool,
    /// Whether somebody waits until there is less.
    filled: bool,
    /// Channels whose next word is that they are to read again: one of their changes was in doubt.
    silenced: Vec<ChannelId>,
}

/// Takes what is in an outbox and brings it to the client, without waiting for anything.
pub trait Carrier: Send + Sync {
    /// Brings what can go out now; says whether the session's own task has nothing to look after.
    fn carry(&self) -> bool;
}

/// One session's queue. The router pushes and never waits; the session takes. An event whose
/// visibility is still being asked of PostgreSQL holds back what is behind it, so a client always
/// sees commit order; nobody else waits.
pub struct Outbox {
    session: SessionId,
    max_events: usize,
    max_bytes: usize,
    inner: Mutex<Inner>,
    readable: Notify,
    drained: Notify,
    carrier: OnceLock<Weak<dyn Carrier>>,
}

impl Outbox {
    /// An empty outbox that holds up to `max_events` events with `max_bytes` bytes of data.
    #[must_use]
    pub fn new(session: SessionId, max_events: usize, max_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            session,
            max_events,
            max_bytes,
            inner: Mutex::new(Inner {
                slots: VecDeque::new(),
                bytes: 0,
                closed: false,
                overflowed: false,
                filled: false,
                silenced: Vec::new(),
            }),
            readable: Notify::new(),
            drained: Notify::new(),
            carrier: OnceLock::new(),
        })
    }

    /// Names who carries for [`Outbox::deliver`]; the first one stays.
    pub fn carried_by(&self, carrier: Weak<dyn Carrier>) {
        // A socket has one outbox, and names itself once.
        let _first = self.carrier.set(carrier);
    }

    /// Has what waits brought to the client by whoever calls this, and the session's task look only
    /// where that does not do it.
    pub fn deliver(&self) {
        let carrier = self.carrier.get().and_then(Weak::upgrade);
        if !carrier.is_some_and(|carrier| carrier.carry()) {
            self.wake();
        }
    }

    /// Whose it is.
    #[must_use]
    pub const fn session(&self) -> SessionId {
        self.session
    }

    /// Moves up to `limit` events that may go out to the end of `events`, oldest first, and
    /// returns how many.
    ///
    /// # Errors
    /// [`Overflow`] once everything that still fitted has been taken: the session missed something
    /// and has to be closed.
    pub fn take(&self, events: &mut Vec<Event>, limit: usize) -> Result<usize, Overflow> {
        self.take_up_to(events, (limit, usize::MAX))
    }

    /// As [`Outbox::take`], and no more once the changes among them have `bytes` bytes.
    ///
    /// # Errors
    /// As [`Outbox::take`].
    pub fn take_up_to(
        &self,
        events: &mut Vec<Event>,
        most: (usize, usize),
    ) -> Result<usize, Overflow> {
        let take = |slot: Slot| events.push(slot.into_event());
        self.take_while(most, |_| true, take)
            .map(|(taken, _)| taken)
    }

    /// As [`Outbox::take_up_to`], as long as the next one is a change. Says whether nothing is left.
    ///
    /// # Errors
    /// As [`Outbox::take`].
    pub fn take_changes(
        &self,
        changes: &mut impl Extend<(ChannelId, Arc<Outgoing>)>,
        most: (usize, usize),
    ) -> Result<bool, Overflow> {
        let take = |slot: Slot| changes.extend(slot.into_change());
        let (_, emptied) = self.take_while(most, Slot::is_change, take)?;
        Ok(emptied)
    }

    fn take_while(
        &self,
        (limit, bytes): (usize, usize),
        wanted: impl Fn(&Slot) -> bool,
        mut take: impl FnMut(Slot),
    ) -> Result<(usize, bool), Overflow> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let (mut taken, mut taken_bytes) = (0, 0);
        loop {
            // Those that may go out are taken at once.
            let (mut open, mut open_bytes) = (0, 0);
            for slot in &inner.slots {
                let goes = taken + open < limit
                    && taken_bytes + open_bytes < bytes
                    && slot.is(Verdict::SHOW)
                    && !slot.is_of(&inner.silenced)
                    && wanted(slot);
                if !goes {
                    break;
                }
                open += 1;
                open_bytes += slot.bytes();
            }
            inner.bytes -= open_bytes;
            let silent = inner.silenced.len();
            for slot in inner.slots.drain(..open) {
                if silent > 0 {
                    slot.unsilences(&mut inner.silenced);
                }
                take(slot);
            }
            taken += open;
            taken_bytes += open_bytes;
            let room = taken < limit && taken_bytes < bytes;
            let dropped = inner.slots.pop_front_if(|slot| {
                let gone = slot.is(Verdict::HIDE) || slot.is(Verdict::DOUBT);
                room && (gone || slot.is_of(&inner.silenced))
            });
            if let Some(dropped) = dropped {
                inner.bytes -= dropped.bytes();
                inner.silenced.extend(dropped.doubted());
            } else if inner.silenced.len() == silent {
                break;
            }
        }
        if inner.slots.is_empty() && inner.slots.capacity() > KEPT {
            // A burst must not cost memory for the rest of an idle connection's life.
            inner.slots = VecDeque::new();
        }
        if inner.filled
            && inner.slots.len() <= self.max_events / 4
            && inner.bytes <= self.max_bytes / 4
        {
            inner.filled = false;
            self.drained.notify_waiters();
        }
        if taken == 0 && inner.overflowed {
            Err(Overflow)
        } else {
            Ok((taken, inner.slots.is_empty()))
        }
    }

    /// Waits until [`Outbox::take`] is worth a try. May return early; cancel safe.
    pub async fn readable(&self) {
        self.readable.notified().await;
    }

    /// Says that nobody takes any more: later events are dropped at once.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.slots = VecDeque::new();
        inner.bytes = 0;
        drop(inner);
        self.drained.notify_waiters();
    }

    /// Whether [`Outbox::close`] was called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Whether something did not fit: [`Outbox::take`] will end in [`Overflow`].
    #[must_use]
    pub fn has_overflowed(&self) -> bool {
        self.lock().overflowed
    }

    /// Whether nothing waits in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().slots.is_empty()
    }

    /// Whether half of what it may hold waits in it, by number or by size.
    #[must_use]
    pub fn is_half_full(&self) -> bool {
        let inner = self.lock();
        inner.slots.len() >= self.max_events.div_ceil(2)
            || inner.bytes >= self.max_bytes.div_ceil(2)
    }

    /// Returns once less than a quarter of what it may hold waits in it, or nobody takes any more.
    /// Each of a session's channels may wait. Cancel safe.
    pub async fn drained(&self) {
        loop {
            let mut drained = std::pin::pin!(self.drained.notified());
            drained.as_mut().enable();
            {
                let mut inner = self.lock();
                let low =
                    inner.slots.len() <= self.max_events / 4 && inner.bytes <= self.max_bytes / 4;
                if low || inner.closed || inner.overflowed {
                    return;
                }
                inner.filled = true;
            }
            drained.await;
        }
    }

    /// Puts an event at the end.
    pub fn push(&self, event: Event) {
        self.put(Slot::of(event), 0);
    }

    /// Puts an event at the end without having the session look, unless many wait by then. Says
    /// whether it is the only one: then whoever calls this is to call [`Outbox::wake`] soon.
    #[must_use]
    pub fn push_quietly(&self, event: Event) -> bool {
        self.put(Slot::of(event), MANY)
    }

    /// Puts an event at the end that goes out only if `verdict` says so, and holds back what comes
    /// behind it until then. Whoever decides calls [`Outbox::wake`].
    pub fn hold(&self, event: Event, verdict: Arc<Verdict>) {
        self.put(Slot::Held(Box::new((event, verdict))), 0);
    }

    /// Lets the session look again, after a verdict was given.
    pub fn wake(&self) {
        self.readable.notify_one();
    }

    /// Has the session look each time that there are `many` more.
    fn put(&self, slot: Slot, many: usize) -> bool {
        let (waiting, loud) = {
            let mut inner = self.lock();
            if inner.closed || inner.overflowed {
                return false;
            }
            let bytes = slot.bytes();
            let full = inner.slots.len() >= self.max_events
                // One event larger than the whole outbox must be able to pass an empty one.
                || (!inner.slots.is_empty() && inner.bytes + bytes > self.max_bytes);
            if full {
                inner.overflowed = true;
                self.drained.notify_waiters();
            } else {
                inner.bytes += bytes;
                inner.slots.push_back(slot);
            }
            let waiting = inner.slots.len();
            (waiting, full || many == 0 || waiting.is_multiple_of(many))
        };
        if loud {
            self.readable.notify_one();
        }
        waiting == 1
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // No code under this lock panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn of(event: Event) -> Self {
        match event {
            Event::Change { channel, change } => Self::Change(channel, change),
            other => Self::Other(Box::new(other)),
        }
    }

    fn into_change(self) -> Option<(ChannelId, Arc<Outgoing>)> {
        match self.into_event() {
            Event::Change { channel, change } => Some((channel, change)),
            _ => None,
        }
    }

    fn into_event(self) -> Event {
        match self {
            Self::Change(channel, change) => Event::Change { channel, change },
            Self::Other(event) => *event,
            Self::Held(held) => held.0,
        }
    }

    fn is_change(&self) -> bool {
        match self {
            Self::Change(..) => true,
            Self::Other(_) => false,
            Self::Held(held) => matches!(held.0, Event::Change { .. }),
        }
    }

    /// Whether that was said of it; of one that is not held, that it may go out.
    fn is(&self, said: u8) -> bool {
        match self {
            Self::Change(..) | Self::Other(_) => said == Verdict::SHOW,
            Self::Held(held) => held.1.is(said),
        }
    }

    /// Whether it is a change for one of these channels.
    fn is_of(&self, channels: &[ChannelId]) -> bool {
        if channels.is_empty() {
            return false;
        }
        match self {
            Self::Change(channel, _) => channels.contains(channel),
            Self::Other(_) => false,
            Self::Held(held) => {
                matches!(&held.0, Event::Change { channel, .. } if channels.contains(channel))
            }
        }
    }

    /// The channel that is to hear nothing more: of that it is in doubt what was meant for it.
    fn doubted(&self) -> Option<ChannelId> {
        match self {
            Self::Held(held) if held.1.is(Verdict::DOUBT) => match &held.0 {
                Event::Change { channel, .. } | Event::Resync { channel, .. } => Some(*channel),
                _ => None,
            },
            _ => None,
        }
    }

    /// Takes the channel out of those that are to hear nothing but this.
    fn unsilences(&self, silenced: &mut Vec<ChannelId>) {
        let event = match self {
            Self::Change(..) => return,
            Self::Other(event) => event,
            Self::Held(held) => &held.0,
        };
        if let Event::Resync { channel, .. } = event {
            silenced.retain(|one| one != channel);
        }
    }

    fn bytes(&self) -> usize {
        let event = match self {
            Self::Change(_, change) => return change.data.len(),
            Self::Other(event) => event,
            Self::Held(held) => &held.0,
        };
        match event {
            Event::Change { change, .. } => change.data.len(),
            Event::Snapshot { page, .. } => page.size(),
            _ => 0,
        }
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        f.debug_struct("Outbox")
            .field("session", &self.session)
            .field("events", &inner.slots.len())
            .field("bytes", &inner.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use smallvec::smallvec;

    use super::*;
    use crate::log::Offset;

    fn change(data: &'static str) -> Event {
        let change = Outgoing {
            bindings: smallvec![1],
            offset: Offset(1),
            committed_at: 0,
            data: data.into(),
        };
        Event::Change {
            channel: ChannelId(1),
            change: Arc::new(change),
        }
    }

    fn taken(outbox: &Outbox) -> Result<Vec<String>, Overflow> {
        let mut events = Vec::new();
        outbox.take(&mut events, 100)?;
        Ok(events
            .into_iter()
            .map(|event| match event {
                Event::Change { change, .. } => String::from_utf8(change.data.to_vec()).unwrap(),
                other => format!("{other:?}"),
            })
            .collect())
    }

    #[test]
    fn an_open_question_holds_back_what_is_behind_it_and_nothing_before_it() {
        let outbox = Outbox::new(SessionId(1), 10, 1000);
        let (first, second) = (Arc::new(Verdict::default()), Arc::new(Verdict::default()));
        outbox.push(change("a"));
        outbox.hold(change("b"), Arc::clone(&first));
        outbox.push(change("c"));
        outbox.hold(change("d"), Arc::clone(&second));
        assert_eq!(taken(&outbox), Ok(vec!["a".into()]));
        second.say(Voice::Yes);
        assert_eq!(
            taken(&outbox),
            Ok(vec![]),
            "an answer out of turn changes nothing"
        );
        first.say(Voice::No);
        first.say(Voice::Yes);
        assert_eq!(
            taken(&outbox),
            Ok(vec!["c".into(), "d".into()]),
            "hidden stays hidden"
        );
    }

    #[test]
    fn a_verdict_of_several_is_in_doubt_only_where_nobody_says_no() {
        let doubt = |timed_out| Ruling::InDoubt { timed_out };
        for (said, ruled) in [
            ([Voice::Yes, Voice::Yes], [Ruling::Open, Ruling::Shown]),
            ([Voice::Yes, Voice::No], [Ruling::Open, Ruling::Hidden]),
            ([Voice::No, Voice::Yes], [Ruling::Hidden, Ruling::Open]),
            ([Voice::TimedOut, Voice::No], [Ruling::Open, Ruling::Hidden]),
            ([Voice::Failed, Voice::No], [Ruling::Open, Ruling::Hidden]),
            ([Voice::No, Voice::TimedOut], [Ruling::Hidden, Ruling::Open]),
            ([Voice::TimedOut, Voice::Yes], [Ruling::Open, doubt(true)]),
            ([Voice::Yes, Voice::Failed], [Ruling::Open, doubt(false)]),
            (
                [Voice::Failed, Voice::TimedOut],
                [Ruling::Open, doubt(true)],
            ),
        ] {
            let outbox = Outbox::new(SessionId(1), 10, 1000);
            let verdict = Arc::new(Verdict::of(2));
            outbox.hold(change("a"), Arc::clone(&verdict));
            outbox.push(change("b"));
            assert_eq!(said.map(|voice| verdict.say(voice)), ruled, "{said:?}");
            assert_eq!(verdict.say(Voice::Yes), Ruling::Open, "it is decided");
            let doubtful = matches!(ruled[1], Ruling::InDoubt { .. });
            if doubtful {
                assert!(taken(&outbox).unwrap().is_empty(), "{said:?}: not told yet");
                outbox.push(Event::undecided(ChannelId(1)));
                verdict.give_up();
            }
            outbox.push(change("c"));
            let told = format!("{:?}", Event::undecided(ChannelId(1)));
            let wanted = match ruled {
                [_, Ruling::Shown] => vec!["a", "b", "c"],
                // The channel is another one by then, if there is one.
                [_, Ruling::InDoubt { .. }] => vec![&*told, "c"],
                _ => vec!["b", "c"],
            };
            let heard = taken(&outbox).unwrap();
            assert_eq!(heard, wanted, "{said:?}");
        }
    }

    #[tokio::test]
    async fn what_is_put_in_quietly_waits_for_a_word_or_for_company() {
        let outbox = Outbox::new(SessionId(1), 1_000, 1_000);
        let looks = || outbox.readable().now_or_never().is_some();
        assert!(outbox.push_quietly(change("a")));
        assert!(!outbox.push_quietly(change("b")), "somebody knows of it");
        assert!(!looks());
        outbox.wake();
        assert!(looks());
        assert_eq!(taken(&outbox).unwrap(), ["a", "b"]);
        assert!(outbox.push_quietly(change("c")), "nobody knows of it");
        outbox.push(change("d"));
        assert!(looks(), "what is not quiet is heard at once");
        taken(&outbox).unwrap();
        for _ in 1..MANY {
            let _first = outbox.push_quietly(change("e"));
        }
        assert!(!looks());
        assert!(!outbox.push_quietly(change("e")));
        assert!(looks(), "many are heard at once");
    }

    #[tokio::test]
    async fn everybody_who_waits_for_room_hears_of_it() {
        let outbox = Outbox::new(SessionId(1), 8, 1000);
        for _ in 0..8 {
            outbox.push(change("a"));
        }
        let (mut one, mut other) = (Box::pin(outbox.drained()), Box::pin(outbox.drained()));
        assert!((&mut one).now_or_never().is_none());
        assert!((&mut other).now_or_never().is_none());
        taken(&outbox).unwrap();
        assert!(one.now_or_never().is_some());
        assert!(
            other.now_or_never().is_some(),
            "one was told, the other not"
        );
    }

    #[test]
    fn a_full_outbox_ends_in_overflow_after_what_fitted_and_never_skips() {
        let outbox = Outbox::new(SessionId(1), 2, 1000);
        for data in ["a", "b", "c", "d"] {
            outbox.push(change(data));
        }
        assert_eq!(taken(&outbox), Ok(vec!["a".into(), "b".into()]));
        outbox.push(change("e"));
        assert_eq!(taken(&outbox), Err(Overflow));
    }

    #[test]
    fn bytes_are_bounded_but_one_large_event_passes_an_empty_outbox() {
        let outbox = Outbox::new(SessionId(1), 10, 3);
        outbox.push(change("large"));
        assert_eq!(taken(&outbox), Ok(vec!["large".into()]));
        outbox.push(change("ab"));
        outbox.push(change("cd"));
        assert_eq!(taken(&outbox), Ok(vec!["ab".into()]));
        assert_eq!(taken(&outbox), Err(Overflow));
    }
}

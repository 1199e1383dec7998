//! What returning clients missed: gathered into cohorts, each of which makes one pass over the log
//! for all of its members.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tracing::debug;

use super::fanout::{Channel, Fanout};
use super::group::Begin;
use super::history::untold;
use super::resolve::{Readings, Resolved};
use super::{ChannelId, Event, Outbox, Resync, SessionId};
use crate::auth::Principal;
use crate::change::Relation;
use crate::log::{Entry, LogError, Offset};
use crate::pg::{Lsn, Xid};
use crate::subscription::Wanted;

/// Entries read from the log at once, as far as the log gives them: a file is read in pieces, and
/// what of a piece is not taken is read again.
const ENTRIES: usize = 1024;

/// How long a cohort hands out before everything else gets its turn. Each of those who were handed
/// something wants one then, and who is subscribed waits among them.
const TURN: Duration = Duration::from_micros(250);

/// How long a cohort waits for the catalog. A commit that is not visible by then may not be for
/// long: those who wait for it leave the pass.
const PATIENCE: Duration = Duration::from_millis(250);

/// A cohort that is no more changes than this behind the router is handed to it.
pub(super) const NEAR: u64 = 256;

/// How long changes gather for a session before it is woken.
const GATHER: Duration = Duration::from_millis(250);

/// Sessions that are woken in one turn: whoever is subscribed waits behind all of them.
const WOKEN: usize = 16;

/// Part of the work of many that everything else must not wait for.
struct Turn(Instant);

impl Turn {
    fn begin() -> Self {
        Self(Instant::now())
    }

    /// Gives everything else its turn when this one is over; says whether it was.
    async fn pause(&mut self) -> bool {
        let over = self.0.elapsed() >= TURN;
        if over {
            tokio::task::yield_now().await;
            self.0 = Instant::now();
        }
        over
    }
}

/// What a [`Fanout`] notes while it hands out what was missed.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// Whose outbox is half full.
    pub(super) filled: Vec<(SessionId, ChannelId)>,
    /// Who was told to read again.
    pub(super) ended: Vec<(SessionId, ChannelId)>,
    /// Who goes on in a later cohort.
    pub(super) aside: Vec<Returning>,
    pub(super) unannounced: Arc<Unannounced>,
}

/// Those who were handed something and have not been woken for it, the first of them first. What
/// was missed is in no hurry, and several changes together cost a session little more than one: so
/// they gather for a while.
#[derive(Debug, Default)]
pub(super) struct Unannounced(Mutex<VecDeque<(Instant, Arc<Outbox>)>>);

impl Unannounced {
    pub(super) fn hand(&self, outbox: &Arc<Outbox>, event: Event) {
        if outbox.push_quietly(event) {
            self.lock().push_back((Instant::now(), Arc::clone(outbox)));
        }
    }

    /// Wakes those who were handed something no less than `since` ago, `most` of them; says whether
    /// those were all.
    fn announce(&self, since: Duration, most: usize) -> bool {
        let mut waiting = self.lock();
        for _ in 0..most {
            let due = waiting.pop_front_if(|(first, _)| first.elapsed() >= since);
            let Some((_, outbox)) = due else {
                return true;
            };
            outbox.wake();
        }
        false
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Instant, Arc<Outbox>)>> {
        // No code under this lock panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The catalog after a commit whose stream describes a table so.
pub(super) type Awaited = (Xid, Arc<Relation>);

/// A channel that has missed something.
pub(super) struct Returning {
    pub(super) session: SessionId,
    pub(super) channel: ChannelId,
    /// Which of the channel's joins it is.
    pub(super) joining: u64,
    pub(super) principal: Arc<Principal>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) wanted: Arc<[Wanted]>,
    pub(super) readings: Readings,
    /// The first change that it has not been given.
    pub(super) from: Offset,
    /// What it has to wait for before it can be given that.
    pub(super) awaits: Option<Awaited>,
}

impl std::fmt::Debug for Returning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Returning")
            .field("session", &self.session)
            .field("channel", &self.channel)
            .field("from", &self.from)
            .finish_non_exhaustive()
    }
}

/// What a cohort says of a member before its own end.
#[derive(Debug)]
pub(super) enum Back {
    /// It goes on in a later cohort, or as the router knows better.
    Aside(Returning),
    /// It was told to read again.
    Ended(SessionId, ChannelId),
}

/// Whom the router wants back from wherever they are.
#[derive(Debug, Default)]
pub(super) struct Recalled {
    /// Counts the calls, so that looking costs nothing while there are none.
    calls: AtomicU64,
    members: Mutex<HashSet<(SessionId, ChannelId)>>,
    called: Notify,
}

impl Recalled {
    pub(super) fn call(&self, session: SessionId, channel: ChannelId) {
        self.lock().insert((session, channel));
        self.calls.fetch_add(1, Ordering::Release);
        self.called.notify_waiters();
    }

    /// Waits until a member is called. Cancel safe.
    pub(super) async fn called(&self, session: SessionId, channel: ChannelId) {
        loop {
            let mut called = std::pin::pin!(self.called.notified());
            called.as_mut().enable();
            if self.lock().contains(&(session, channel)) {
                return;
            }
            called.await;
        }
    }

    /// Notes that it is back.
    pub(super) fn forget(&self, session: SessionId, channel: ChannelId) {
        self.lock().remove(&(session, channel));
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<(SessionId, ChannelId)>> {
        // No code under this lock panics half-way through a change.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Clients that came back at about the same time, on one pass over the log.
pub(super) struct Cohort {
    pub(super) fanout: Fanout,
    /// The place of the pass.
    pub(super) next: Offset,
    /// Those that the pass has not reached, the nearest last.
    waiting: Vec<Returning>,
    /// Where those begin that it has.
    members: HashMap<(SessionId, ChannelId), Offset>,
    recalled: Arc<Recalled>,
    calls: u64,
    unannounced: Arc<Unannounced>,
}

impl Fanout {
    /// Takes those whose outbox is half full out of the pass, which has come to `next`.
    pub(super) fn set_aside(&mut self, next: Offset) {
        let Some(replay) = &mut self.replay else {
            return;
        };
        for (session, channel) in std::mem::take(&mut replay.filled) {
            self.put_aside(session, channel, next, None);
        }
    }

    fn put_aside(
        &mut self,
        session: SessionId,
        channel: ChannelId,
        from: Offset,
        awaits: Option<Awaited>,
    ) {
        let known = self
            .sessions
            .get(&session)
            .and_then(|all| all.get(&channel));
        let Some(state) = known else {
            return;
        };
        let returning = Returning {
            session,
            channel,
            joining: state.joining,
            principal: Arc::clone(&state.principal),
            outbox: Arc::clone(&state.outbox),
            wanted: Arc::clone(&state.wanted),
            readings: state.readings.clone(),
            from,
            awaits,
        };
        returning.outbox.wake();
        self.leave(session, channel);
        if let Some(replay) = &mut self.replay {
            replay.aside.push(returning);
        }
    }
}

/// Under which rules all of these have been read, where all have.
pub(super) fn read_at(wanted: &[Wanted]) -> Option<Lsn> {
    let places = wanted.iter().map(|wish| wish.start.read_at);
    // Nothing is less than all else.
    places.min().flatten()
}

/// Runs something, and something else as soon as it has to wait.
async fn before_waiting(step: impl Future<Output = ()>, mut act: impl FnMut()) {
    let mut step = pin!(step);
    poll_fn(|context| {
        let done = step.as_mut().poll(context);
        if done.is_pending() {
            act();
        }
        done
    })
    .await;
}

/// No binding begins before the place up to which its channel has been given everything.
fn begin_at(resolved: &mut Resolved, from: Offset) {
    for binding in resolved
        .tables
        .iter_mut()
        .flat_map(|(_, bindings)| bindings)
    {
        let earlier = |begin: &&Arc<Begin>| begin.from.is_some_and(|known| known < from);
        if let Some(begin) = binding.begin.as_ref().filter(earlier) {
            binding.begin = Some(Arc::new(Begin {
                from: Some(from),
                unseen_by: begin.unseen_by.clone(),
            }));
        }
    }
}

impl Cohort {
    pub(super) fn new(
        fanout: Fanout,
        mut members: Vec<Returning>,
        recalled: Arc<Recalled>,
    ) -> Self {
        members.sort_unstable_by_key(|member| std::cmp::Reverse(member.from));
        debug!(members = members.len(), "a cohort of returning clients");
        let replay = fanout.replay.as_ref();
        let unannounced =
            replay.map_or_else(Arc::default, |replay| Arc::clone(&replay.unannounced));
        Self {
            next: members.last().map_or(Offset(0), |member| member.from),
            fanout,
            waiting: members,
            members: HashMap::new(),
            recalled,
            calls: 0,
            unannounced,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.members.is_empty()
    }

    /// Passes over the log until little is left, and returns with those that are still there.
    pub(super) async fn run(mut self, back: mpsc::Sender<Back>) -> Self {
        if self.look(&back).await.is_ok() {
            self.pass(&back).await;
        }
        while !self.unannounced.announce(Duration::ZERO, WOKEN) {
            tokio::task::yield_now().await;
        }
        self
    }

    /// Looks whether rules have changed of which nothing tells, and of which nobody who was here had to know.
    async fn look(&mut self, back: &mpsc::Sender<Back>) -> Result<(), ()> {
        if self.fanout.catalog.marked {
            return Ok(());
        }
        let watch = self.fanout.watch.clone();
        let mut read = pin!(async {
            while let Err(Some(_unread)) = watch.now().await {
                tokio::time::sleep(PATIENCE).await;
            }
        });
        while !self.is_empty() && self.fanout.log.epoch() == self.fanout.epoch {
            if tokio::time::timeout(PATIENCE, &mut read).await.is_ok() {
                self.fanout.adopt(None);
                break;
            }
            self.look_for_recalled();
            self.report(back).await?;
        }
        Ok(())
    }

    async fn pass(&mut self, back: &mpsc::Sender<Back>) {
        let unannounced = Arc::clone(&self.unannounced);
        loop {
            self.look_for_recalled();
            if self.report(back).await.is_err() || self.is_empty() {
                return;
            }
            if self.members.is_empty()
                && let Some(nearest) = self.waiting.last()
            {
                self.next = self.next.max(nearest.from);
            }
            self.fanout.catch_up_with_lookups();
            // What lies behind is judged by lookups of behind.
            let handed_out = self.fanout.position.get().offset;
            let end = handed_out.min(self.fanout.judged_at);
            if self.next.0 + NEAR >= end.0 {
                return;
            }
            // What the rules of then and now are, everybody learns from the same place.
            self.fanout.adopt(None);
            match self.fanout.log.read(self.next, ENTRIES).await {
                Ok(entries) => {
                    let before = self.next;
                    let mut turn = Turn::begin();
                    for entry in entries.iter().filter(|entry| entry.end() <= end) {
                        // Nobody waits for what a change further on waits for.
                        let handed_out = async {
                            self.reach(entry).await;
                            self.await_catalog(entry).await;
                            self.step(entry).await;
                        };
                        before_waiting(handed_out, || {
                            unannounced.announce(Duration::ZERO, usize::MAX);
                        })
                        .await;
                        self.look_for_recalled();
                        if self.report(back).await.is_err() {
                            return;
                        }
                        if turn.pause().await {
                            unannounced.announce(GATHER, WOKEN);
                        }
                    }
                    if self.next == before {
                        return;
                    }
                }
                Err(error) => self.fail(&error),
            }
            tokio::task::yield_now().await;
        }
    }

    /// Wakes everybody who was handed something.
    pub(super) fn announce(&self) {
        self.unannounced.announce(Duration::ZERO, usize::MAX);
    }

    /// Takes those in that the pass has come to with the entry that begins where it is.
    pub(super) async fn reach(&mut self, entry: &Entry) {
        let mut turn = Turn::begin();
        while let Some(member) = self.waiting.pop_if(|member| member.from < entry.end()) {
            self.enter(member, entry.batch.commit_lsn);
            turn.pause().await;
        }
    }

    /// Whether the entry cannot be handed out yet.
    pub(super) fn awaits(&self, entry: &Entry) -> Option<Awaited> {
        let told = entry.batch.commit_lsn > self.fanout.history.began();
        told.then(|| self.fanout.awaits(entry)).flatten()
    }

    /// Waits a moment until the entry can be handed out. Those for whom that takes longer leave the
    /// pass, so that nobody else waits with them.
    async fn await_catalog(&mut self, entry: &Entry) {
        self.fanout.look_ahead(entry).await;
        while let Some((xid, relation)) = self.awaits(entry) {
            let read = self.fanout.watch.after(xid, &relation);
            match tokio::time::timeout(PATIENCE, read).await {
                Ok(Ok(())) => {}
                Ok(Err(_ended)) => return,
                Err(_elapsed) => {
                    debug!(%xid, "returning clients wait for a commit to become visible");
                    for (session, channel) in self.fanout.watching(relation.oid, None, false) {
                        self.put_aside(session, channel, Some((xid, Arc::clone(&relation))));
                    }
                }
            }
        }
    }

    /// Makes a cohort ready for the entry on which it came to a halt, and gives it back.
    pub(super) async fn wait(mut self, entry: Arc<Entry>) -> Self {
        self.await_catalog(&entry).await;
        self
    }

    /// Takes somebody out of the pass, who goes on from there later.
    fn put_aside(&mut self, session: SessionId, channel: ChannelId, awaits: Option<Awaited>) {
        let Some(begin) = self.members.get(&(session, channel)) else {
            return;
        };
        let from = self.next.max(*begin);
        self.fanout.put_aside(session, channel, from, awaits);
    }

    /// Hands out one entry: the one that begins where the pass is, and has been reached.
    pub(super) async fn step(&mut self, entry: &Entry) {
        let commit = entry.batch.commit_lsn;
        self.fanout.has_passed(commit);
        if commit > self.fanout.history.began() && !self.fanout.is_before(entry) {
            self.fanout.entry(entry, false).await;
        }
        self.next = entry.end();
    }

    /// The pass has reached a member.
    fn enter(&mut self, member: Returning, commit: Lsn) {
        let Returning {
            session, channel, ..
        } = member;
        let resolved = self.fanout.resolve(
            (session, channel),
            &member.principal,
            &member.wanted,
            &member.readings,
        );
        let mut state = Channel::new(&member.principal, &member.outbox);
        state.joining = member.joining;
        state.wanted = member.wanted;
        state.readings = member.readings;
        let channels = self.fanout.sessions.entry(session).or_default();
        channels.insert(channel, state.into());
        self.members.insert((session, channel), member.from);
        let reason = match resolved {
            Ok(mut resolved) if resolved.refusals.is_empty() => {
                begin_at(&mut resolved, member.from);
                let history = &self.fanout.history;
                let role = &member.principal.role;
                let mut tables = resolved.tables.iter();
                // Also of whoever has read under today's rules: what lies between fell under those of
                // then, and a version of a row that they hid stays hidden.
                let changed =
                    tables.find_map(|(oid, _)| history.changed_after(*oid, role, commit, None));
                let all = resolved.tables.iter().map(|(oid, _)| *oid);
                let whom = self.fanout.holder(all, &member.principal);
                let untold = self
                    .fanout
                    .channel(session, channel)
                    .is_some_and(|state| untold(&state.wanted, whom));
                let tables = resolved.tables.iter();
                let fanout = &mut self.fanout;
                let mut readers = tables.map(|(oid, bindings)| {
                    fanout.has_missed_a_change(*oid, &member.principal, bindings)
                });
                let changed = changed.or_else(|| {
                    let missed = untold || readers.any(|missed| missed);
                    missed.then_some(Resync::AccessChanged)
                });
                match changed {
                    Some(reason) => reason,
                    None => {
                        self.fanout.put_in_force(session, channel, resolved);
                        return;
                    }
                }
            }
            Ok(_) | Err(_) => Resync::SchemaChanged,
        };
        self.fanout.expel(session, channel, reason);
    }

    fn fail(&mut self, error: &LogError) {
        match error {
            LogError::Trimmed { oldest } => {
                let oldest = *oldest;
                while let Some(member) = self.waiting.pop_if(|member| member.from < oldest) {
                    self.refuse(member, Resync::Trimmed);
                }
                self.fanout.expel_everybody(Resync::Trimmed);
                self.next = self.next.max(oldest);
            }
            LogError::Lost { .. } | LogError::Ahead { .. } | LogError::Stopped => {
                self.expel_everybody(Resync::SlotLost);
            }
        }
    }

    fn refuse(&mut self, member: Returning, reason: Resync) {
        self.fanout
            .tell_to_read(&member.outbox, member.channel, reason);
        if let Some(replay) = &mut self.fanout.replay {
            replay.ended.push((member.session, member.channel));
        }
    }

    pub(super) fn expel_everybody(&mut self, reason: Resync) {
        for member in std::mem::take(&mut self.waiting) {
            self.refuse(member, reason);
        }
        self.fanout.expel_everybody(reason);
    }

    /// Lets go of those whom the router wants back.
    pub(super) fn look_for_recalled(&mut self) {
        let calls = self.recalled.calls.load(Ordering::Acquire);
        if calls == self.calls {
            return;
        }
        self.calls = calls;
        let called: Vec<_> = self.recalled.lock().iter().copied().collect();
        for (session, channel) in called {
            self.put_aside(session, channel, None);
            let here = |member: &Returning| (member.session, member.channel) == (session, channel);
            if let Some(at) = self.waiting.iter().position(here) {
                let member = self.waiting.remove(at);
                if let Some(replay) = &mut self.fanout.replay {
                    replay.aside.push(member);
                }
            }
        }
    }

    /// Who left the pass since the last call.
    pub(super) fn left(&mut self) -> Vec<Back> {
        let Some(replay) = &mut self.fanout.replay else {
            return Vec::new();
        };
        if replay.aside.is_empty() && replay.ended.is_empty() {
            return Vec::new();
        }
        let aside = std::mem::take(&mut replay.aside);
        let ended = std::mem::take(&mut replay.ended);
        for member in &aside {
            self.members.remove(&(member.session, member.channel));
        }
        for member in &ended {
            self.members.remove(member);
        }
        let ended = ended
            .into_iter()
            .map(|(session, channel)| Back::Ended(session, channel));
        aside.into_iter().map(Back::Aside).chain(ended).collect()
    }

    async fn report(&mut self, back: &mpsc::Sender<Back>) -> Result<(), ()> {
        for one in self.left() {
            // The router has ended.
            back.send(one).await.map_err(|_| ())?;
        }
        Ok(())
    }

    /// Takes one member out, which has been given all that lies before the pass.
    pub(super) fn release(&mut self) -> Option<Returning> {
        let known = self.members.keys().next().copied();
        let Some((session, channel)) = known else {
            return self.waiting.pop();
        };
        self.put_aside(session, channel, None);
        self.members.remove(&(session, channel));
        self.fanout.replay.as_mut()?.aside.pop()
    }
}

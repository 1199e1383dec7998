//! Clients that come back: gathered, sent after what they missed, and taken in again.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Live;
use crate::log::{Entry, LogError, Offset};
use crate::pg::Lsn;
use crate::router::history::untold;
use crate::router::replay::{Back, Cohort, NEAR, Recalled, Replay, Returning, read_at};
use crate::router::{ChannelId, Event, Resync, SessionId};

/// How long returning clients are gathered for one pass over the log.
const GATHER: Duration = Duration::from_millis(50);

/// Passes over the log at once; whoever comes back meanwhile waits for the next.
const COHORTS: usize = 4;

/// Channels of a cohort that are taken in before everything else gets its turn.
const AT_ONCE: usize = 64;

/// What cohorts say of their members; past this they wait.
const BACK: usize = 1024;

/// Everybody who is not in force because of what they missed. A channel is in one place of these
/// at a time.
pub(super) struct Returns {
    gathering: Vec<Returning>,
    /// When those who are gathered set out.
    until: Option<Instant>,
    cohorts: JoinSet<Cohort>,
    reports: (mpsc::Sender<Back>, mpsc::Receiver<Back>),
    /// Those whose client has to take something first.
    draining: FuturesUnordered<BoxFuture<'static, Returning>>,
    /// Cancelled where it makes no sense any more to wait for a commit: with the history of the log.
    history: CancellationToken,
    /// Cohorts that have come near: they go on with the router.
    arriving: Vec<Cohort>,
    pub(super) recalled: Arc<Recalled>,
}

/// What happens to those who come back.
pub(super) enum Happened {
    Gathered,
    Near(Box<Cohort>),
    Back(Back),
    Drained(Returning),
}

impl Returns {
    pub(super) fn new() -> Self {
        Self {
            gathering: Vec::new(),
            until: None,
            cohorts: JoinSet::new(),
            reports: mpsc::channel(BACK),
            draining: FuturesUnordered::new(),
            history: CancellationToken::new(),
            arriving: Vec::new(),
            recalled: Arc::default(),
        }
    }

    /// Whether there is somebody to be taken in.
    pub(super) fn is_arriving(&self) -> bool {
        !self.arriving.is_empty()
    }

    pub(super) fn gather(&mut self, member: Returning) {
        self.gathering.push(member);
        self.until.get_or_insert_with(|| Instant::now() + GATHER);
    }

    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Happened {
        let may_set_out = self.cohorts.len() < COHORTS;
        let until = self.until.filter(|_| may_set_out);
        tokio::select! {
            biased;
            Some(back) = self.reports.1.recv() => Happened::Back(back),
            Some(near) = self.cohorts.join_next() => match near {
                Ok(cohort) => Happened::Near(Box::new(cohort)),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_aborted) => pending().await,
            },
            Some(member) = self.draining.next() => Happened::Drained(member),
            () = at(until) => Happened::Gathered,
        }
    }

    /// Has those who wait for a commit go on.
    pub(super) fn look_again(&mut self) {
        std::mem::take(&mut self.history).cancel();
    }

    pub(super) fn expel_arriving(&mut self, reason: Resync) {
        for cohort in &mut self.arriving {
            cohort.expel_everybody(reason);
        }
    }
}

async fn at(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => pending().await,
    }
}

impl Live {
    pub(super) fn returned(&mut self, happened: Happened) {
        match happened {
            Happened::Gathered => {
                self.returns.until = None;
                let members = std::mem::take(&mut self.returns.gathering);
                let members = self.wait_for_mirrors(members);
                if members.is_empty() {
                    return;
                }
                let fanout = self.fanout.replaying(Replay::default());
                let cohort = Cohort::new(fanout, members, Arc::clone(&self.returns.recalled));
                let back = self.returns.reports.0.clone();
                self.returns.cohorts.spawn(cohort.run(back));
            }
            Happened::Near(cohort) => {
                if !cohort.is_empty() {
                    self.returns.arriving.push(*cohort);
                }
            }
            Happened::Back(Back::Aside(member)) => {
                if self.current(&member) {
                    self.drain(member);
                } else {
                    self.superseded(&member);
                }
            }
            Happened::Back(Back::Ended(session, channel)) => self.ended(session, channel),
            Happened::Drained(member) => self.wait_again(member),
        }
    }

    /// Has a member go with the next cohort instead of this one.
    pub(super) fn wait_again(&mut self, member: Returning) {
        if self.current(&member) {
            self.returns.gather(member);
        } else {
            self.superseded(&member);
        }
    }

    /// Has a member wait for its client, and for a commit to become visible.
    fn drain(&mut self, mut member: Returning) {
        let watch = self.fanout.watch.clone();
        let (recalled, history) = (
            Arc::clone(&self.returns.recalled),
            self.returns.history.clone(),
        );
        self.returns.draining.push(Box::pin(async move {
            if let Some((xid, relation)) = member.awaits.take() {
                tokio::select! {
                    _read_or_ended = watch.after(xid, &relation) => {}
                    () = recalled.called(member.session, member.channel) => {}
                    () = history.cancelled() => {}
                }
            }
            member.outbox.drained().await;
            member
        }));
    }

    /// Whether a channel is still what its member of a cohort stands for.
    fn current(&self, member: &Returning) -> bool {
        let channels = self.fanout.sessions.get(&member.session);
        let state = channels.and_then(|channels| channels.get(&member.channel));
        state.is_some_and(|state| state.away && state.successor.is_none())
            && !member.outbox.is_closed()
    }

    /// A member has come back that is not what it was: its channel was left, or joined anew.
    fn superseded(&mut self, member: &Returning) {
        let (session, channel) = (member.session, member.channel);
        self.returns.recalled.forget(session, channel);
        let Some(state) = self.fanout.channel(session, channel) else {
            debug!("a channel was left while it was catching up");
            return;
        };
        state.away = false;
        if let Some(successor) = state.successor.take() {
            let (join, told) = *successor;
            self.take_over(join, &told, member);
        }
    }

    /// A member was told to read again.
    fn ended(&mut self, session: SessionId, channel: ChannelId) {
        self.returns.recalled.forget(session, channel);
        if let Some(state) = self.fanout.channel(session, channel) {
            state.away = false;
            // Whoever joined anew meanwhile has been told as well.
            state.successor = None;
        }
    }

    /// Goes on with cohorts that have come near, and takes in whoever has been given everything.
    pub(super) async fn arrive(&mut self) {
        let mut left = AT_ONCE;
        for mut cohort in std::mem::take(&mut self.returns.arriving) {
            cohort.look_for_recalled();
            if self.next.0.saturating_sub(cohort.next.0) > 2 * NEAR {
                // The router has run ahead meanwhile.
                let back = self.returns.reports.0.clone();
                self.returns.cohorts.spawn(cohort.run(back));
                continue;
            }
            cohort.fanout.catch_up_with_lookups();
            if let Some(entry) = self.accompany(&mut cohort).await {
                self.returns.cohorts.spawn(cohort.wait(entry));
                continue;
            }
            cohort.announce();
            if self.adopt() {
                cohort.fanout.adopt(None);
            }
            for back in cohort.left() {
                self.returned(Happened::Back(back));
            }
            while cohort.next == self.next && left > 0 {
                let Some(member) = cohort.release() else {
                    break;
                };
                left -= 1;
                self.take_in(member);
            }
            if !cohort.is_empty() {
                self.returns.arriving.push(cohort);
            }
        }
    }

    /// Lets a cohort pass over what lies between it and the router, or up to an entry for which it
    /// has to wait.
    async fn accompany(&mut self, cohort: &mut Cohort) -> Option<Arc<Entry>> {
        while cohort.next < self.next && !cohort.is_empty() {
            match self.fanout.log.read(cohort.next, 64).await {
                Ok(entries) => {
                    let before = cohort.next;
                    for entry in entries.iter().filter(|entry| entry.end() <= self.next) {
                        cohort.reach(entry).await;
                        cohort.fanout.look_ahead(entry).await;
                        if cohort.awaits(entry).is_some() {
                            return Some(Arc::clone(entry));
                        }
                        if entry.first >= cohort.fanout.judged_at {
                            // Of the transaction that the router is amid.
                            cohort.fanout.states = self.fanout.states.clone();
                        }
                        cohort.step(entry).await;
                    }
                    if cohort.next == before {
                        return None;
                    }
                }
                Err(LogError::Stopped) => return None,
                Err(LogError::Trimmed { .. }) => {
                    cohort.expel_everybody(Resync::Trimmed);
                    return None;
                }
                Err(_) => {
                    cohort.expel_everybody(Resync::SlotLost);
                    return None;
                }
            }
        }
        None
    }

    /// A member has been given all that lies before the router: it goes on with it.
    fn take_in(&mut self, member: Returning) {
        if !self.current(&member) {
            return self.superseded(&member);
        }
        let (session, channel) = (member.session, member.channel);
        self.returns.recalled.forget(session, channel);
        if let Some(state) = self.fanout.channel(session, channel) {
            state.away = false;
        }
        self.bring_in_force(session, channel, member.from);
    }

    /// Puts a channel in force that has missed nothing before `from`, where the router is.
    pub(super) fn bring_in_force(&mut self, session: SessionId, channel: ChannelId, from: Offset) {
        let appended = self.fanout.log.appended();
        let Some(state) = self
            .fanout
            .sessions
            .get(&session)
            .and_then(|all| all.get(&channel))
        else {
            return;
        };
        let (principal, wanted) = (Arc::clone(&state.principal), Arc::clone(&state.wanted));
        let (readings, outbox) = (state.readings.clone(), Arc::clone(&state.outbox));
        if self.whole && self.is_ahead(&wanted) {
            return self.fanout.expel(session, channel, Resync::Epoch);
        }
        debug_assert!(from <= self.next, "nobody is ahead of the router");
        let refused = state.refused.clone();
        let whose = (session, channel);
        let resolved = self.fanout.resolve(whose, &principal, &wanted, &readings);
        self.fanout.withdraw(session, channel);
        // What the client was told when it joined must still be so.
        let Some(resolved) = resolved.ok().filter(|now| now.refusals == refused) else {
            return self.fanout.expel(session, channel, Resync::SchemaChanged);
        };
        let role = &principal.role;
        let history = &self.fanout.history;
        // What is still to come commits behind what is in the log.
        let coming = Lsn(appended.0 + 1);
        let read_at = read_at(&wanted);
        let mut tables = resolved.tables.iter();
        let changed =
            tables.find_map(|(oid, _)| history.changed_after(*oid, role, coming, read_at));
        let tables = resolved.tables.iter().map(|(oid, _)| *oid);
        let untold = untold(&wanted, self.fanout.holder(tables, &principal));
        if let Some(reason) = changed.or(untold.then_some(Resync::AccessChanged)) {
            return self.fanout.expel(session, channel, reason);
        }
        self.fanout.put_in_force(session, channel, resolved);
        outbox.push(Event::CaughtUp { channel });
    }
}

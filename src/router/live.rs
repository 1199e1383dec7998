//! The task that follows the log for all who miss nothing, and takes in those who come back.

mod joins;

mod returns;

pub(super) mod snapshots;

use std::future::pending;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub(super) use self::joins::Unparked;
use self::returns::Returns;
use self::snapshots::Takings;
use super::changed::Changed;
use super::fanout::{Fanout, Foundation, Settings};
use super::history::AccessHistory;
use super::{Command, Resync, Router};
use crate::log::{Cursor, LogError, Offset};
use crate::pg::Lsn;
use crate::policy::reader::Mark;
use crate::subscription::Wanted;

/// Commands that wait for the router; past this sessions wait.
const COMMANDS: usize = 1024;

/// Entries read from the log before commands get their turn.
const ENTRIES: usize = 64;

/// How often an idle router looks whether the stream has passed a place that it waits for.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Commands taken before the log gets its turn.
const COMMANDS_AT_ONCE: usize = 256;

/// The router's task.
pub struct Live {
    fanout: Fanout,
    commands: mpsc::Receiver<Command>,
    /// Commits before this happened when nobody could have subscribed without a cursor.
    started_at: Lsn,
    /// Whether the log has all that the process before this one can have given out: some of that
    /// it may not have stored before it was killed. Until then a cursor may lie ahead.
    whole: bool,
    next: Offset,
    parked: FuturesUnordered<BoxFuture<'static, Unparked>>,
    returns: Returns,
    takings: Takings,
    /// Set while the next change waits for the catalog: everything else goes on.
    held: Option<BoxFuture<'static, ()>>,
    /// A look at what can be read by now, for those who wait for it.
    looking: Option<BoxFuture<'static, Option<Arc<Mark>>>>,
}

/// Makes a router and the task behind it.
#[must_use]
pub fn router(foundation: Foundation, settings: Settings) -> (Router, Live) {
    let (router, incoming) = Router::channel(COMMANDS);
    let Foundation {
        log,
        catalog: mut watch,
        asker,
        computer,
        metrics,
        history,
        snapshots,
    } = foundation;
    let catalog = watch.take();
    let (epoch, next) = (log.epoch(), log.range().end);
    let started_at = catalog.read_at;
    let history = Arc::new(AccessHistory::open(
        history,
        epoch,
        next == Offset(0),
        &catalog,
    ));
    snapshots.nothing_before(history.began());
    let fanout = Fanout::new(
        (log, watch, asker, computer, metrics),
        settings,
        *snapshots.settings(),
        (history, Arc::new(Changed::since(next))),
        Arc::clone(&router.position),
        (epoch, catalog),
    );
    let live = Live {
        fanout,
        commands: incoming,
        started_at,
        whole: false,
        next,
        parked: FuturesUnordered::new(),
        returns: Returns::new(),
        takings: Takings::new(snapshots),
        held: None,
        looking: None,
    };
    live.publish();
    (router, live)
}

impl Live {
    /// Follows the log until `stop`, then hands out what the log still holds and ends.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tail = self.fanout.log.tail();
        let mut stored = self.fanout.log.stored();
        loop {
            self.look_whether_whole();
            if self.looking.is_none() {
                self.look_again(false);
            }
            if self.held.is_some() && self.is_lost() {
                self.held = None;
            }
            let behind = *tail.borrow_and_update() > self.next && self.held.is_none();
            if behind || self.returns.is_arriving() {
                for _ in 0..COMMANDS_AT_ONCE {
                    let Ok(command) = self.commands.try_recv() else {
                        break;
                    };
                    self.command(command);
                }
                if behind && self.follow().await.is_break() {
                    break;
                }
                // None of these may wait for a stream that never pauses.
                while let Some(Some(unparked)) = self.parked.next().now_or_never() {
                    self.unpark(unparked);
                }
                if self.fanout.watch.changed().now_or_never().is_some() {
                    self.fanout.adopt(None);
                }
                while let Some(happened) = self.returns.next().now_or_never() {
                    self.returned(happened);
                }
                while let Some(done) = self.takings.next().now_or_never() {
                    self.snapshot_done(done);
                }
                if over(&mut self.held).now_or_never().is_some() {
                    self.held = None;
                }
                if let Some(mark) = looked(&mut self.looking).now_or_never() {
                    self.seen(mark);
                }
                self.arrive().await;
                // Everything else on this thread gets its turn between two runs.
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                // Commands last: each of the others is soon done, while those may never end.
                Some(unparked) = self.parked.next(), if !self.parked.is_empty() => {
                    self.unpark(unparked);
                }
                changed = self.fanout.watch.changed() => match changed {
                    Ok(()) => self.fanout.adopt(None),
                    Err(_ended) => break,
                },
                happened = self.returns.next() => self.returned(happened),
                done = self.takings.next() => self.snapshot_done(done),
                () = over(&mut self.held) => self.held = None,
                mark = looked(&mut self.looking) => self.seen(mark),
                () = self.fanout.unseen.asked(), if self.looking.is_none() => {}
                changed = tail.changed() => if changed.is_err() { break },
                Ok(()) = stored.changed(), if !self.whole => {}
                () = tokio::time::sleep(LOOK_AGAIN), if self.fanout.has_lost_leaves() => {
                    // Before it is looked whether there is more: what comes meanwhile lies behind.
                    let passed = self.fanout.log.appended();
                    if self.fanout.log.range().end <= self.next {
                        self.fanout.settle_lost_leaves(passed);
                    }
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
            }
        }
    }

    async fn follow(&mut self) -> ControlFlow<()> {
        match self.fanout.log.read(self.next, ENTRIES).await {
            Ok(entries) => {
                for entry in entries {
                    let commit = entry.batch.commit_lsn;
                    if self.fanout.has_lost_leaves() {
                        self.fanout.settle_lost_leaves(commit);
                    }
                    // What nobody at all can have subscribed to is passed over.
                    let told = commit > self.started_at || commit > self.fanout.history.began();
                    if told && let Some((xid, relation)) = self.fanout.awaits(&entry) {
                        let watch = self.fanout.watch.clone();
                        self.held = Some(Box::pin(async move {
                            // Where the catalog's task has ended, so has this one soon.
                            let _ended = watch.after(xid, &relation).await;
                        }));
                        break;
                    }
                    self.fanout.changed.note(&entry);
                    self.fanout.unseen.note(&entry);
                    if told {
                        self.fanout.entry(&entry, commit <= self.started_at).await;
                    }
                    self.next = entry.end();
                    self.publish();
                }
                let mark = self.fanout.watch.last_mark();
                self.look_for_seen(&mark);
            }
            Err(LogError::Trimmed { oldest }) => {
                warn!(%oldest, "the router fell behind the log, everybody is told to read again");
                self.jump(oldest, Resync::Trimmed);
            }
            Err(LogError::Lost { next } | LogError::Ahead { next }) => {
                self.fanout.epoch = self.fanout.log.epoch();
                // Places in the write-ahead log of another history mean nothing in this one.
                let from = self.fanout.log.appended();
                self.started_at = Lsn(0);
                self.whole = true;
                self.fanout.forget_lost_leaves();
                self.fanout.unseen.forget();
                let (epoch, catalog) = (self.fanout.epoch, Arc::clone(&self.fanout.catalog));
                self.fanout.history.begin(epoch, from, &catalog);
                self.takings.nothing_before(from);
                self.jump(next, Resync::SlotLost);
            }
            Err(LogError::Stopped) => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    /// Looks what can be read, where somebody waits for it.
    fn look_again(&mut self, away: bool) {
        if let Some(pause) = self.fanout.unseen.look_in(away) {
            let watch = self.fanout.watch.clone();
            self.looking = Some(Box::pin(async move {
                tokio::time::sleep(pause).await;
                watch.mark().await
            }));
        }
    }

    fn seen(&mut self, mark: Option<Arc<Mark>>) {
        self.looking = None;
        match &mark {
            Some(mark) => self.look_for_seen(mark),
            None => self.fanout.unseen.go_on(),
        }
        self.look_again(mark.is_none());
    }

    /// Lets those go who waited until something can be read, and has those read again who did that
    /// too early.
    fn look_for_seen(&mut self, mark: &Arc<Mark>) {
        for (session, channel, joining) in self.fanout.unseen.look(mark) {
            let known = self.fanout.channel(session, channel);
            if known.is_some_and(|known| known.joining == joining && !known.away) {
                self.fanout.expel(session, channel, Resync::Undecided);
            }
        }
    }

    /// Tells those whose cursor still lies ahead once nothing that was given out is to come again:
    /// theirs are of another history.
    fn look_whether_whole(&mut self) {
        if self.whole {
            return;
        }
        let log = &self.fanout.log;
        self.whole = log.appended() >= self.started_at && self.next >= log.range().end;
        if !self.whole {
            return;
        }
        let sessions = self.fanout.sessions.iter();
        let ahead: Vec<_> = sessions
            .flat_map(|(session, channels)| {
                channels
                    .iter()
                    .map(move |(channel, state)| (*session, *channel, state))
            })
            .filter(|(_, _, state)| !state.away && self.is_ahead(&state.wanted))
            .map(|(session, channel, _)| (session, channel))
            .collect();
        for (session, channel) in ahead {
            self.fanout.expel(session, channel, Resync::Epoch);
        }
    }

    /// Whether one of the wishes begins where the router has not come yet.
    fn is_ahead(&self, wanted: &[Wanted]) -> bool {
        let mut cursors = wanted.iter().filter_map(|wish| wish.start.since);
        cursors.any(|cursor| cursor.offset > self.next)
    }

    /// Whether there is no going on from here.
    fn is_lost(&self) -> bool {
        self.fanout.log.epoch() != self.fanout.epoch || self.fanout.log.range().start > self.next
    }

    /// Goes on somewhere else; whoever is subscribed has missed something.
    fn jump(&mut self, next: Offset, reason: Resync) {
        self.next = next;
        self.publish();
        self.fanout.expel_everybody(reason);
        self.returns.expel_arriving(reason);
        self.returns.look_again();
    }

    /// Everything before is in the outboxes.
    fn publish(&self) {
        self.fanout.position.set(Cursor {
            epoch: self.fanout.epoch,
            offset: self.next,
        });
    }
}

async fn looked(looking: &mut Option<BoxFuture<'static, Option<Arc<Mark>>>>) -> Option<Arc<Mark>> {
    match looking {
        Some(looking) => looking.await,
        None => pending().await,
    }
}

async fn over(held: &mut Option<BoxFuture<'static, ()>>) {
    match held {
        Some(held) => held.await,
        None => pending().await,
    }
}

//! The task that follows the log for all who miss nothing, and takes in those who come back.

mod joins;

mod lookups;

mod old_rows;

mod returns;

mod seen;

pub(super) mod snapshots;

use std::future::pending;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub(super) use self::joins::{Arriving, Unmirrored, Unparked};
use self::lookups::{Looking, Verifying};
use self::old_rows::Remembering;
use self::returns::Returns;
use self::seen::{first_mark, looked};
use self::snapshots::Takings;
use super::changed::Changed;
use super::fanout::{Fanout, Foundation, Settings};
use super::history::AccessHistory;
use super::memberships::Memberships;
use super::old_rows::OldRows;
use super::{Command, Resync, Router};
use crate::log::{Cursor, LogError, Offset};
use crate::pg::{Lsn, Xid};
use crate::policy::reader::Mark;
use crate::policy::watch::Ended;

/// Commands that wait for the router; past this sessions wait.
const COMMANDS: usize = 1024;

/// Entries read from the log before commands get their turn.
const ENTRIES: usize = 64;

/// How often an idle router looks whether the stream has passed a place that it waits for.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How long a join waits for the stream to come to a newer catalog. Past this that comes into force
/// at once, and rows of before are hidden.
const STREAM_PATIENCE: Duration = Duration::from_secs(2);

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
    /// Set while the next entry waits for the catalog: everything else goes on.
    held: Option<Held>,
    /// Entries before this lay in the log when the catalog began to be read, also those whose commit hangs.
    looked_to: Offset,
    /// Joins that need a catalog which the stream has yet to come to.
    waiting: Vec<(Instant, Arriving)>,
    /// Joins that need mirrors which are about to be made.
    unmirrored: Vec<Unmirrored>,
    looking_up: Looking,
    verifying: Option<Verifying>,
    /// Old rows that the relay keeps itself, where it does.
    old_rows: Option<Remembering>,
    /// A look at what can be read by now, for those who wait for it.
    looking: Option<BoxFuture<'static, Option<Arc<Mark>>>>,
}

/// The next entry, which the catalog in hand may be too old for.
struct Held {
    xid: Xid,
    /// What it waits for; `None` once that is there.
    wait: Option<BoxFuture<'static, Waited>>,
}

/// The end of the log when the wait began that is over.
struct Waited(Offset);

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
        keeping,
        memberships,
        old_rows,
    } = foundation;
    let memberships = Arc::new(Memberships::open(memberships));
    let reading = watch.take();
    let catalog = Arc::clone(&reading.catalog);
    let (epoch, next) = (log.epoch(), log.range().end);
    let started_at = catalog.read_at;
    let history = Arc::new(AccessHistory::open(
        history,
        epoch,
        next == Offset(0),
        &catalog,
    ));
    snapshots.nothing_before(history.began());
    let mut fanout = Fanout::new(
        (log, watch, asker, computer, metrics),
        settings,
        *snapshots.settings(),
        (history, Arc::new(Changed::since(next)), memberships),
        Arc::clone(&router.position),
        (epoch, &reading),
    );
    fanout.begins_unsure();
    fanout.old_rows = old_rows.is_some().then(|| Arc::new(OldRows::default()));
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
        looked_to: Offset(0),
        waiting: Vec::new(),
        unmirrored: Vec::new(),
        looking_up: Looking::new(keeping),
        verifying: None,
        old_rows: old_rows.map(|(tables, keeping)| Remembering::new(keeping, tables)),
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
        self.restore_lookups().await;
        loop {
            self.look_whether_whole();
            self.look_into();
            self.look_for_old_rows();
            self.store_lookups(false);
            if self.looking.is_none() {
                self.look_again(false);
            }
            if (self.held.is_some() || self.verifying.is_some()) && self.is_lost() {
                // What is waited for may never come.
                self.give_up();
                self.verifying = None;
            }
            self.look_for_waiting();
            self.look_for_mirrored();
            let waits = self.held.as_ref().is_some_and(|held| held.wait.is_some())
                || self.verifying.as_ref().is_some_and(Verifying::waits);
            let behind = *tail.borrow_and_update() > self.next && !waits;
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
                if let Some(waited) = over(&mut self.held).now_or_never() {
                    self.end_wait(waited);
                }
                let _verified = lookups::looked(&mut self.verifying).now_or_never();
                while let Some(Some(unparked)) = self.parked.next().now_or_never() {
                    self.unpark(unparked);
                }
                if self.fanout.watch.changed().now_or_never().is_some() {
                    self.adopt();
                }
                while let Some(happened) = self.returns.next().now_or_never() {
                    self.returned(happened);
                }
                while let Some(done) = self.takings.next().now_or_never() {
                    self.snapshot_done(done);
                }
                if !self.looking_up.is_amid()
                    && self.looking_up.keeping.next().now_or_never().is_some()
                {
                    self.lookups_changed();
                }
                if old_rows::next(&mut self.old_rows).now_or_never().is_some() {
                    self.old_rows_changed();
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
                waited = over(&mut self.held) => self.end_wait(waited),
                () = lookups::looked(&mut self.verifying) => {}
                // Commands last: each of the others is soon done, while those may never end.
                Some(unparked) = self.parked.next(), if !self.parked.is_empty() => {
                    self.unpark(unparked);
                }
                changed = self.fanout.watch.changed() => match changed {
                    Ok(()) => {
                        self.adopt();
                    }
                    Err(_ended) => break,
                },
                happened = self.returns.next() => self.returned(happened),
                done = self.takings.next() => self.snapshot_done(done),
                _event = self.looking_up.keeping.next(), if !self.looking_up.is_amid() => {
                    self.lookups_changed();
                }
                _event = old_rows::next(&mut self.old_rows) => self.old_rows_changed(),
                mark = looked(&mut self.looking) => self.seen(mark),
                () = self.fanout.unseen.asked(), if self.looking.is_none() => {}
                changed = tail.changed() => if changed.is_err() { break },
                Ok(()) = stored.changed(), if !self.whole => {}
                () = tokio::time::sleep(LOOK_AGAIN), if self.waits_for_the_stream() => {
                    // Before it is looked whether there is more: what comes meanwhile lies behind.
                    let passed = self.fanout.log.appended();
                    if self.fanout.log.range().end <= self.next {
                        self.fanout.settle_lost_leaves(passed);
                        self.fanout.has_passed(passed);
                    }
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
            }
        }
        self.store_lookups(true);
        self.looking_up.keeping.stop().await;
        self.stop_old_rows().await;
    }

    async fn follow(&mut self) -> ControlFlow<()> {
        match self.fanout.log.read(self.next, ENTRIES).await {
            Ok(entries) => {
                for (at, entry) in entries.iter().enumerate() {
                    let commit = entry.batch.commit_lsn;
                    if self.fanout.has_lost_leaves() {
                        self.fanout.settle_lost_leaves(commit);
                    }
                    self.fanout.has_passed(commit);
                    self.fanout.look_ahead(entry).await;
                    // What nobody at all can have subscribed to is passed over.
                    let told = (commit > self.started_at || commit > self.fanout.history.began())
                        && !self.fanout.is_before(entry);
                    if told && let Some((xid, relation)) = self.fanout.awaits(entry) {
                        let watch = self.fanout.watch.clone();
                        let read = async move { watch.after(xid, &relation).await };
                        self.hold(xid, read);
                        break;
                    }
                    if told
                        && entry.first >= self.looked_to
                        && self.fanout.may_have_changed_unseen(entry)
                    {
                        let (watch, xid) = (self.fanout.watch.clone(), entry.batch.xid);
                        self.hold(xid, async move { watch.behind(xid).await });
                        break;
                    }
                    if told && !self.are_lookups_verified(entry) {
                        break;
                    }
                    let next = entries.get(at + 1..).unwrap_or_default();
                    if self.look_ahead(entry, next).await.is_err() {
                        // What is to be read next says the same.
                        break;
                    }
                    self.note_old_rows(entry);
                    self.fanout.changed.note(entry);
                    self.fanout.unseen.note(entry);
                    if told {
                        self.fanout.entry(entry, commit <= self.started_at).await;
                    }
                    if told {
                        self.tell_of_lookups(entry);
                    }
                    self.next = entry.end();
                    self.publish();
                    self.pass_lookups(entry);
                    self.release();
                    if self.fanout.due.is_pressing() {
                        self.fanout.due.deliver();
                    }
                }
                self.fanout.due.deliver();
                let mark = self.fanout.watch.last_mark();
                self.look_for_seen(&mark);
            }
            Err(LogError::Trimmed { oldest }) => {
                warn!(%oldest, "the router fell behind the log, everybody is told to read again");
                self.jump(oldest, Resync::Trimmed);
            }
            Err(LogError::Lost { next } | LogError::Ahead { next }) => {
                // A slot that a standby had a copy of stands minutes back: what is read from now on has
                // all of that, and it fell under rules of then.
                let before = first_mark(self.fanout.watch.clone()).await;
                self.fanout.epoch = self.fanout.log.epoch();
                // Places in the write-ahead log of another history mean nothing in this one.
                let mut from = self.fanout.log.appended();
                if before.is_none() {
                    // Rather less than what nobody may see any more.
                    from = from.max(self.fanout.catalog.read_at);
                }
                self.fanout.before = before;
                self.started_at = Lsn(0);
                self.whole = true;
                self.fanout.forget_lost_leaves();
                self.fanout.unseen.forget();
                let (epoch, catalog) = (self.fanout.epoch, Arc::clone(&self.fanout.catalog));
                self.fanout.history.begin(epoch, from, &catalog);
                self.takings.nothing_before(from);
                self.end_readings();
                self.jump(next, Resync::SlotLost);
            }
            Err(LogError::Stopped) => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    /// Holds the next entry, which is of `xid`, until the catalog was read.
    fn hold(&mut self, xid: Xid, read: impl Future<Output = Result<(), Ended>> + Send + 'static) {
        let end = self.fanout.log.range().end;
        let wait = async move {
            // Where the catalog's task has ended, so has this one soon.
            let _ended = read.await;
            Waited(end)
        };
        self.held = Some(Held {
            xid,
            wait: Some(wait.boxed()),
        });
    }

    /// The catalog that the next entry was held for is there.
    fn end_wait(&mut self, Waited(end): Waited) {
        self.give_up();
        let held = self.held.as_ref();
        if held.is_some_and(|held| !self.fanout.watch.shows(held.xid)) {
            // What came before may hang as well.
            self.looked_to = end;
        }
    }

    fn give_up(&mut self) {
        if let Some(held) = &mut self.held {
            held.wait = None;
        }
    }

    /// The entry that was held lies behind.
    fn release(&mut self) {
        if self.held.take().is_some() {
            // Where nobody watched any more what it waited for.
            self.fanout.adopt(None);
        }
    }

    /// Goes over to the newest catalog, unless the next entry waits for just that: it may hold what
    /// the entry's own transaction has changed between two rows, and is taken between them then.
    fn adopt(&mut self) -> bool {
        let held = self.held.as_ref();
        !held.is_some_and(|held| self.fanout.watch.shows(held.xid)) && self.fanout.adopt(None)
    }

    /// Whether something is to happen once the stream has come to a place, whatever comes there.
    fn waits_for_the_stream(&self) -> bool {
        self.fanout.has_lost_leaves()
            || self.fanout.is_behind()
            || !self.waiting.is_empty()
            || !self.unmirrored.is_empty()
    }

    /// Takes those joins up for which the catalog is there by now, or for which the stream takes too
    /// long to come to it.
    fn look_for_waiting(&mut self) {
        let since = self.waiting.first().map(|(since, _)| *since);
        let Some(since) = since else {
            return;
        };
        if !self.adopt() {
            if self.held.is_some() || since.elapsed() < STREAM_PATIENCE {
                return;
            }
            self.fanout.adopt_anyway();
        }
        for (_, join) in std::mem::take(&mut self.waiting) {
            self.go_on(join);
        }
    }

    /// Whether there is no going on from here.
    fn is_lost(&self) -> bool {
        self.fanout.log.epoch() != self.fanout.epoch || self.fanout.log.range().start > self.next
    }

    /// Goes on somewhere else; whoever is subscribed has missed something.
    fn jump(&mut self, next: Offset, reason: Resync) {
        self.next = next;
        self.looked_to = next;
        self.publish();
        self.lose_lookups(next);
        self.lose_all_old_rows(next);
        self.fanout.expel_everybody(reason);
        self.returns.expel_arriving(reason);
        self.returns.look_again();
        self.release();
        // What was to be told lies in what is skipped.
        self.fanout.adopt_anyway();
    }

    /// Everything before is in the outboxes.
    fn publish(&self) {
        self.fanout.position.set(Cursor {
            epoch: self.fanout.epoch,
            offset: self.next,
        });
    }
}

async fn over(held: &mut Option<Held>) -> Waited {
    match held.as_mut().and_then(|held| held.wait.as_mut()) {
        Some(wait) => wait.await,
        None => pending().await,
    }
}

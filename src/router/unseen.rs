//! Commits that were handed out, and of which it is not known whether they can be read yet.
//!
//! PostgreSQL writes a commit before it shows it: between the two lie microseconds, or as long as a
//! synchronous standby takes to answer. Whoever is told to read now and is told of changes from
//! here on must find in what it reads all that lies before: so it is told a moment later, once a
//! snapshot shows that.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{ChannelId, Event, Outbox, Resync, SessionId, Verdict, Voice};
use crate::log::{Cursor, Entry, Offset};
use crate::pg::{Lsn, Oid, Xid};
use crate::policy::reader::Mark;

/// Commits that are remembered; older ones are taken for visible.
const MAX_COMMITS: usize = 1 << 17;

/// Channels that are remembered; more are not told later what they may have missed.
const MAX_WAITING: usize = 1 << 16;

/// After this long whoever waits is told, and what that means once it is known.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two looks: first at once, since mostly it is a matter of microseconds.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Between two looks while PostgreSQL cannot be asked.
const AWAY: Duration = Duration::from_secs(1);

type Tables = SmallVec<[Oid; 2]>;

/// What comes of it where a commit takes long to become visible.
pub(super) enum Late {
    /// The event goes out, and the channel is to be told that it may have missed something once the
    /// commit can be read, if this is still the join that it was.
    Expel(SessionId, ChannelId, u64),
    /// Another event goes out in its place.
    Instead(Event),
}

/// Shared by all who hand out.
#[derive(Default)]
pub(super) struct Unseen {
    inner: Mutex<Inner>,
    asked: Notify,
}

#[derive(Default)]
struct Inner {
    /// In the order of the log.
    commits: VecDeque<Commit>,
    /// Counts them.
    next: u64,
    waiting: Vec<Waiting>,
    /// Those that were told before it was known.
    overdue: Vec<Overdue>,
    /// What was taken note of last.
    newest: Option<Arc<Mark>>,
}

struct Commit {
    number: u64,
    first: Offset,
    xid: Xid,
    tables: Tables,
}

/// For what somebody waits: commits before `end` that touch the tables, or any where there are none.
#[derive(Clone)]
struct Fence {
    end: u64,
    tables: Tables,
}

struct Waiting {
    fence: Fence,
    since: Instant,
    outbox: Arc<Outbox>,
    verdict: Arc<Verdict>,
    late: After,
}

enum After {
    Expel(SessionId, ChannelId, u64),
    Instead(Arc<Verdict>),
}

struct Overdue {
    fence: Fence,
    channel: (SessionId, ChannelId, u64),
}

impl Unseen {
    /// Notes what is handed out; before it is said how far that has come.
    pub(super) fn note(&self, entry: &Entry) {
        let mut inner = self.lock();
        let number = inner.next;
        let of_last = inner.commits.back_mut();
        if let Some(commit) = of_last.filter(|commit| commit.xid == entry.batch.xid) {
            commit.touch(entry);
            return;
        }
        let mut commit = Commit {
            number,
            first: entry.first,
            xid: entry.batch.xid,
            tables: Tables::new(),
        };
        commit.touch(entry);
        if inner.commits.len() >= MAX_COMMITS {
            inner.commits.pop_front();
        }
        inner.next += 1;
        inner.commits.push_back(commit);
    }

    /// Puts an event into an outbox, which goes out once all that was handed out of `tables` (of all
    /// where none are named) can be read.
    pub(super) fn tell(&self, tables: &[Oid], outbox: &Arc<Outbox>, event: Event, late: Late) {
        let mut inner = self.lock();
        let fence = Fence {
            end: inner.next,
            tables: tables.into(),
        };
        if !inner.is_open(&fence) || inner.waiting.len() >= MAX_WAITING {
            drop(inner);
            outbox.push(event);
            return;
        }
        let verdict = Arc::new(Verdict::default());
        outbox.hold(event, Arc::clone(&verdict));
        let late = match late {
            Late::Expel(session, channel, joining) => After::Expel(session, channel, joining),
            Late::Instead(event) => {
                let instead = Arc::new(Verdict::default());
                outbox.hold(event, Arc::clone(&instead));
                After::Instead(instead)
            }
        };
        inner.waiting.push(Waiting {
            fence,
            since: Instant::now(),
            outbox: Arc::clone(outbox),
            verdict,
            late,
        });
        drop(inner);
        self.asked.notify_one();
    }

    /// Tells a channel to read again, once all that lies before the cursor that it is given can be
    /// read; or, where that takes long, with a cursor that lies before what cannot. What it reads is
    /// by the rules that hold at that place of the write-ahead log, or later ones.
    pub(super) fn tell_to_read(
        &self,
        outbox: &Arc<Outbox>,
        (channel, reason, read_at): (ChannelId, Resync, Lsn),
        cursor: Cursor,
    ) {
        let resync = |cursor| Event::Resync {
            channel,
            reason,
            cursor: Some(cursor),
            read_at,
        };
        let first = self.first();
        let earlier = Cursor {
            offset: first.map_or(cursor.offset, |first| first.min(cursor.offset)),
            ..cursor
        };
        self.tell(&[], outbox, resync(cursor), Late::Instead(resync(earlier)));
    }

    /// The place of the oldest change that may not be readable yet.
    pub(super) fn first(&self) -> Option<Offset> {
        self.lock().commits.front().map(|commit| commit.first)
    }

    /// Returns when somebody has begun to wait. Cancel safe.
    pub(super) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// How long to wait before the next look, where one is needed; `away` where PostgreSQL did not
    /// answer the last one.
    pub(super) fn look_in(&self, away: bool) -> Option<Duration> {
        let inner = self.lock();
        if inner.waiting.is_empty() && inner.overdue.is_empty() {
            return None;
        }
        if away {
            return Some(AWAY);
        }
        let last = inner.waiting.iter().map(|waiting| waiting.since).max();
        Some(last.map_or(LOOK_AGAIN, |last| (last.elapsed() / 2).min(LOOK_AGAIN)))
    }

    /// Takes note of what can be read, as far as it was not; and lets those go who have waited for
    /// that, or for too long. Those that may have missed something are returned.
    pub(super) fn look(&self, mark: &Arc<Mark>) -> Vec<(SessionId, ChannelId, u64)> {
        let mut inner = self.lock();
        if !inner
            .newest
            .as_ref()
            .is_some_and(|known| Arc::ptr_eq(known, mark))
        {
            inner.newest = Some(Arc::clone(mark));
            inner.commits.retain(|commit| !mark.shows(commit.xid));
        }
        let inner = &mut *inner;
        let (commits, overdue) = (&inner.commits, &mut inner.overdue);
        let mut woken = Vec::new();
        inner.waiting.retain(|waiting| {
            let open = is_open(commits, &waiting.fence);
            if open && waiting.since.elapsed() < PATIENCE {
                return true;
            }
            waiting.end(!open);
            if let (true, After::Expel(session, channel, joining)) = (open, &waiting.late)
                && overdue.len() < MAX_WAITING
            {
                overdue.push(Overdue {
                    fence: waiting.fence.clone(),
                    channel: (*session, *channel, *joining),
                });
            }
            woken.push(Arc::clone(&waiting.outbox));
            false
        });
        let missed = overdue.extract_if(.., |overdue| !is_open(commits, &overdue.fence));
        let missed = missed.map(|overdue| overdue.channel).collect();
        for outbox in woken {
            outbox.wake();
        }
        missed
    }

    /// Has a channel be returned by the next look as well.
    pub(super) fn keep(&self, channel: (SessionId, ChannelId, u64)) {
        let fence = Fence {
            end: 0,
            tables: Tables::new(),
        };
        let mut inner = self.lock();
        if inner.overdue.len() < MAX_WAITING {
            inner.overdue.push(Overdue { fence, channel });
        }
    }

    /// PostgreSQL cannot be asked: nobody waits for it.
    pub(super) fn go_on(&self) {
        let mut inner = self.lock();
        for waiting in std::mem::take(&mut inner.waiting) {
            waiting.end(false);
            if let After::Expel(session, channel, joining) = waiting.late
                && inner.overdue.len() < MAX_WAITING
            {
                inner.overdue.push(Overdue {
                    fence: waiting.fence,
                    channel: (session, channel, joining),
                });
            }
            waiting.outbox.wake();
        }
    }

    /// Nothing that was handed out is of this history: it may never be seen.
    pub(super) fn forget(&self) {
        let mut inner = self.lock();
        inner.commits.clear();
        inner.overdue.clear();
        for waiting in std::mem::take(&mut inner.waiting) {
            waiting.end(true);
            waiting.outbox.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code under this lock panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn is_open(&self, fence: &Fence) -> bool {
        is_open(&self.commits, fence)
    }
}

/// Whether something of it may not be readable.
fn is_open(commits: &VecDeque<Commit>, fence: &Fence) -> bool {
    let before = commits
        .iter()
        .take_while(|commit| commit.number < fence.end);
    let touches = |commit: &Commit| {
        fence.tables.is_empty()
            || commit
                .tables
                .iter()
                .any(|table| fence.tables.contains(table))
    };
    before.into_iter().any(touches)
}

impl Commit {
    fn touch(&mut self, entry: &Entry) {
        for change in &entry.batch.changes {
            let table = change.relation.oid;
            if self.tables.last() != Some(&table) && !self.tables.contains(&table) {
                self.tables.push(table);
            }
        }
    }
}

impl Waiting {
    /// The event goes out, or what goes out in its place.
    fn end(&self, readable: bool) {
        if let After::Instead(instead) = &self.late {
            let (one, other) = if readable {
                (Voice::Yes, Voice::No)
            } else {
                (Voice::No, Voice::Yes)
            };
            self.verdict.say(one);
            instead.say(other);
        } else {
            self.verdict.say(Voice::Yes);
        }
    }
}

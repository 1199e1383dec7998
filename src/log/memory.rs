//! A log in memory, bounded by changes and bytes. It lasts as long as the process: after a restart
//! there is a new epoch, and the source sends again what was not acknowledged.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use tokio::sync::watch;

use super::{Entry, Epoch, Log, LogError, Offset, Origin};
use crate::change::{Batch, Change};
use crate::pg::Lsn;

/// How much a [`MemoryLog`] keeps.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Changes.
    pub changes: usize,
    /// Bytes, as [`Batch::size`] counts them.
    pub bytes: usize,
}

/// The log in memory.
pub struct MemoryLog {
    bounds: Bounds,
    inner: Mutex<Inner>,
    tail: watch::Sender<Offset>,
    /// The same as what was appended: nothing outlives the process anyway.
    stored: watch::Sender<Lsn>,
    /// Memory has none.
    trouble: watch::Sender<Option<String>>,
}

struct Inner {
    epoch: Epoch,
    origin: Option<Origin>,
    entries: VecDeque<Arc<Entry>>,
    oldest: Offset,
    next: Offset,
    changes: usize,
    bytes: usize,
    appended: Lsn,
    /// Where the last transaction ends, or the history begins.
    committed: Lsn,
    open: Open,
    /// Where the log went on after changes were lost.
    lost: Option<Offset>,
}

/// The transaction whose last batch is still to come.
#[derive(Default)]
struct Open {
    batches: Vec<Batch>,
    changes: usize,
    bytes: usize,
    /// Set once the transaction alone exceeds the bounds: what remains of each table it touched.
    too_large: bool,
}

impl MemoryLog {
    /// An empty log with a new epoch.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            inner: Mutex::new(Inner {
                epoch: Epoch::random(),
                origin: None,
                entries: VecDeque::new(),
                oldest: Offset(0),
                next: Offset(0),
                changes: 0,
                bytes: 0,
                appended: Lsn(0),
                committed: Lsn(0),
                open: Open::default(),
                lost: None,
            }),
            tail: watch::Sender::new(Offset(0)),
            stored: watch::Sender::new(Lsn(0)),
            trouble: watch::Sender::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code under this lock panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, batch: Batch) {
        let (next, end_lsn) = {
            let mut inner = self.lock();
            if batch.commit_lsn < inner.appended {
                // Sent again after a reconnect. By where the commit begins: the next one may begin
                // where this one ends.
                return;
            }
            let (end_lsn, last) = (batch.end_lsn, batch.last);
            inner.open.take(batch, self.bounds);
            if !last {
                return;
            }
            let open = std::mem::take(&mut inner.open);
            for batch in open.batches {
                inner.publish(batch);
            }
            inner.appended = end_lsn;
            inner.committed = end_lsn;
            inner.trim(self.bounds);
            (inner.next, end_lsn)
        };
        self.tail.send_replace(next);
        self.stored.send_replace(end_lsn);
    }
}

impl Open {
    fn take(&mut self, mut batch: Batch, bounds: Bounds) {
        self.changes += batch.changes.len();
        self.bytes += batch.size();
        if self.too_large || self.changes > bounds.changes || self.bytes > bounds.bytes {
            // Readers see whole transactions or none: what is left is which tables it touched.
            self.too_large = true;
            let held = self.batches.drain(..).flat_map(|batch| batch.changes);
            let mut touched: Vec<Change> = Vec::new();
            for change in held.chain(std::mem::take(&mut batch.changes)) {
                if !touched
                    .iter()
                    .any(|known| known.relation.oid == change.relation.oid)
                {
                    touched.push(Change::too_large(change.relation));
                }
            }
            batch.changes = touched;
        }
        self.batches.push(batch);
    }
}

impl Inner {
    fn publish(&mut self, batch: Batch) {
        if batch.changes.is_empty() {
            return;
        }
        let entry = Entry {
            first: self.next,
            batch,
        };
        self.next = entry.end();
        self.changes += entry.batch.changes.len();
        self.bytes += entry.batch.size();
        self.entries.push_back(Arc::new(entry));
    }

    /// Unlinks the oldest transactions until the bounds hold again; whole ones, so that no reader
    /// begins inside one.
    fn trim(&mut self, bounds: Bounds) {
        while self.changes > bounds.changes || self.bytes > bounds.bytes {
            let Some(commit) = self.entries.front().map(|entry| entry.batch.commit_lsn) else {
                break;
            };
            while let Some(entry) = self
                .entries
                .pop_front_if(|entry| entry.batch.commit_lsn == commit)
            {
                self.changes -= entry.batch.changes.len();
                self.bytes -= entry.batch.size();
                self.oldest = entry.end();
            }
        }
    }

    fn read(&self, from: Offset, limit: usize) -> Result<Vec<Arc<Entry>>, LogError> {
        if let Some(next) = self.lost.filter(|next| from < *next) {
            return Err(LogError::Lost { next });
        }
        if from < self.oldest {
            return Err(LogError::Trimmed {
                oldest: self.oldest,
            });
        }
        if from > self.next {
            return Err(LogError::Ahead { next: self.next });
        }
        let at = self.entries.partition_point(|entry| entry.end() <= from);
        Ok(self
            .entries
            .range(at..)
            .take(limit)
            .map(Arc::clone)
            .collect())
    }
}

impl Log for MemoryLog {
    fn epoch(&self) -> Epoch {
        self.lock().epoch
    }

    fn append(&self, batch: Batch) -> BoxFuture<'_, Result<(), LogError>> {
        self.take(batch);
        ready(Ok(())).boxed()
    }

    fn abandon(&self) {
        self.lock().open = Open::default();
    }

    fn pass(&self, lsn: Lsn, _at_once: bool) {
        {
            let mut inner = self.lock();
            if lsn <= inner.appended {
                return;
            }
            inner.appended = lsn;
        }
        self.stored.send_replace(lsn);
    }

    fn appended(&self) -> Lsn {
        self.lock().appended
    }

    fn committed(&self) -> Lsn {
        self.lock().committed
    }

    fn stored(&self) -> watch::Receiver<Lsn> {
        self.stored.subscribe()
    }

    fn origin(&self) -> Option<Origin> {
        self.lock().origin.clone()
    }

    fn was_closed(&self) -> bool {
        // Nobody has cursors of it.
        true
    }

    fn begin(&self, origin: Origin, from: Lsn) -> BoxFuture<'_, ()> {
        let next = {
            let mut inner = self.lock();
            let begun = inner.origin.replace(origin).is_some() || inner.next > Offset(0);
            inner.entries.clear();
            (inner.changes, inner.bytes, inner.open) = (0, 0, Open::default());
            if begun {
                // One offset that was never given: whoever stands before it has a gap.
                inner.next = Offset(inner.next.0 + 1);
                inner.oldest = inner.next;
                inner.lost = Some(inner.next);
                inner.epoch = Epoch::random();
            }
            (inner.appended, inner.committed) = (from, from);
            inner.next
        };
        self.stored.send_replace(from);
        self.tail.send_replace(next);
        ready(()).boxed()
    }

    fn follow(&self, origin: Origin, from: Lsn) -> BoxFuture<'_, ()> {
        {
            let mut inner = self.lock();
            inner.origin = Some(origin);
            inner.appended = inner.appended.min(from);
            inner.open = Open::default();
            self.stored.send_replace(inner.appended);
        }
        ready(()).boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }

    fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    fn range(&self) -> Range<Offset> {
        let inner = self.lock();
        inner.oldest..inner.next
    }

    fn read(&self, from: Offset, limit: usize) -> BoxFuture<'_, Result<Vec<Arc<Entry>>, LogError>> {
        let entries = self.lock().read(from, limit);
        ready(entries).boxed()
    }

    fn tail(&self) -> watch::Receiver<Offset> {
        self.tail.subscribe()
    }
}

impl fmt::Debug for MemoryLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryLog")
            .field("epoch", &self.epoch())
            .field("range", &self.range())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Kind, Lost, Relation, ReplicaIdentity, Row, Value};
    use crate::pg::{Oid, Xid};

    fn batch(commit: u64, rows: usize, last: bool) -> Batch {
        let relation = Arc::new(Relation {
            oid: Oid(1),
            schema: "public".into(),
            name: "t".into(),
            replica_identity: ReplicaIdentity::Default,
            columns: Vec::new(),
            types: Arc::default(),
            version: 1,
        });
        let insert = || Change {
            relation: Arc::clone(&relation),
            kind: Kind::Insert {
                new: Row::from_iter([Value::Text("0123456789")]),
            },
        };
        Batch {
            xid: Xid(commit),
            commit_lsn: Lsn(commit * 10),
            end_lsn: Lsn(commit * 10 + 5),
            committed_at: 0,
            changes: std::iter::repeat_with(insert).take(rows).collect(),
            last,
        }
    }

    fn log(changes: usize) -> MemoryLog {
        MemoryLog::new(Bounds {
            changes,
            bytes: 1 << 20,
        })
    }

    fn origin() -> Origin {
        Origin {
            system_identifier: 1,
            timeline: 1,
            slot: "rowcast".to_owned(),
            publication: "rowcast".to_owned(),
        }
    }

    async fn offsets(log: &MemoryLog, from: u64) -> Vec<(u64, usize)> {
        let entries = log.read(Offset(from), 100).await.unwrap();
        entries
            .iter()
            .map(|entry| (entry.first.0, entry.batch.changes.len()))
            .collect()
    }

    #[tokio::test]
    async fn a_transaction_is_seen_whole_or_not_at_all() {
        let log = log(100);
        log.append(batch(1, 2, false)).await.unwrap();
        assert_eq!(offsets(&log, 0).await, []);
        assert_eq!(
            *log.stored().borrow(),
            Lsn(0),
            "half a transaction must not be acknowledged"
        );
        log.append(batch(1, 3, true)).await.unwrap();
        assert_eq!(offsets(&log, 0).await, [(0, 2), (2, 3)]);
        assert_eq!(offsets(&log, 3).await, [(2, 3)]);
        assert_eq!(*log.stored().borrow(), Lsn(15));
        assert_eq!(*log.tail().borrow(), Offset(5));
    }

    #[tokio::test]
    async fn what_is_sent_again_is_skipped() {
        let log = log(100);
        for commit in [1, 2, 1, 2, 3] {
            log.append(batch(commit, 1, true)).await.unwrap();
        }
        assert_eq!(offsets(&log, 0).await, [(0, 1), (1, 1), (2, 1)]);
    }

    #[tokio::test]
    async fn a_transaction_that_begins_to_commit_where_another_ended_is_not_taken_for_it() {
        let log = log(100);
        let mut second = batch(2, 1, false);
        log.append(batch(1, 1, true)).await.unwrap();
        (second.commit_lsn, second.end_lsn) = (Lsn(15), Lsn(15));
        log.append(second.clone()).await.unwrap();
        (second.end_lsn, second.last) = (Lsn(20), true);
        log.append(second).await.unwrap();
        assert_eq!(offsets(&log, 0).await, [(0, 1), (1, 1), (2, 1)]);
    }

    #[tokio::test]
    async fn a_transaction_cut_off_by_a_reconnect_is_not_doubled() {
        let log = log(100);
        log.append(batch(1, 2, false)).await.unwrap();
        log.abandon();
        log.append(batch(1, 2, false)).await.unwrap();
        log.append(batch(1, 1, true)).await.unwrap();
        assert_eq!(offsets(&log, 0).await, [(0, 2), (2, 1)]);
    }

    #[tokio::test]
    async fn an_older_offset_than_the_oldest_is_refused_not_skipped() {
        let log = log(4);
        log.append(batch(1, 1, false)).await.unwrap();
        log.append(batch(1, 2, true)).await.unwrap();
        log.append(batch(2, 2, true)).await.unwrap();
        assert_eq!(
            log.range(),
            Offset(3)..Offset(5),
            "the first transaction left as a whole"
        );
        assert!(matches!(
            log.read(Offset(2), 1).await,
            Err(LogError::Trimmed { oldest: Offset(3) })
        ));
        assert!(matches!(
            log.read(Offset(6), 1).await,
            Err(LogError::Ahead { next: Offset(5) })
        ));
        assert_eq!(offsets(&log, 5).await, []);
    }

    #[tokio::test]
    async fn lost_changes_are_a_gap_for_every_reader_even_one_at_the_end() {
        let log = log(100);
        log.append(batch(1, 1, true)).await.unwrap();
        log.begin(origin(), Lsn(0)).await;
        assert!(matches!(
            log.read(Offset(1), 1).await,
            Err(LogError::Lost { next: Offset(2) })
        ));
        log.append(batch(1, 1, true)).await.unwrap();
        assert_eq!(offsets(&log, 2).await, [(2, 1)]);
    }

    #[tokio::test]
    async fn a_transaction_larger_than_the_log_is_announced_not_dropped() {
        let log = log(4);
        log.append(batch(1, 3, false)).await.unwrap();
        log.append(batch(1, 3, false)).await.unwrap();
        log.append(batch(1, 3, true)).await.unwrap();
        let entries = log.read(Offset(0), 10).await.unwrap();
        let kinds: Vec<_> = entries
            .iter()
            .flat_map(|entry| &entry.batch.changes)
            .collect();
        assert!(!kinds.is_empty() && kinds.len() <= 4);
        assert!(
            kinds
                .iter()
                .all(|change| matches!(change.kind, Kind::Lost(Lost::TooLarge)))
        );
        assert_eq!(
            *log.stored().borrow(),
            Lsn(15),
            "it is acknowledged: sending it again would not help"
        );
    }
}

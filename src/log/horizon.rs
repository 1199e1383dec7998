//! Where the changes begin that a snapshot does not show.
//!
//! A commit can be in the log before any snapshot shows it: shortly under every load, for as long as
//! it takes under synchronous replication. So the first change that a snapshot lacks may lie well
//! before the end of the log. What one snapshot shows, every later one shows: the log is searched
//! from where an earlier one left nothing open.

use std::time::{Duration, Instant};

use super::{Log, LogError, Offset};
use crate::pg::snapshot::Snapshot;
use crate::pg::{Lsn, Xid};

/// Entries read at once.
const ENTRIES: usize = 64;

/// After this long a transaction that still runs has not written its commit yet, on a server
/// without synchronous standbys: between the two lie microseconds.
const SETTLED: Duration = Duration::from_secs(1);

/// Up to where all that the log holds is known to be visible.
#[derive(Debug)]
pub(crate) struct Horizon {
    /// Every snapshot from now on shows what lies before.
    visible: Offset,
    gap: Gap,
}

/// What is known of commits that the log has let go, or never had, before anybody looked whether
/// they are visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gap {
    /// They all are.
    Closed,
    /// Nothing.
    Unknown,
    /// None of them is younger than `before`; since when the server was seen to wait for no standby.
    Before { before: Xid, since: Option<Instant> },
}

/// Why there is no place to go on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// A commit that the snapshot does not show may lie before what the log holds. A newer one may
    /// show it.
    Trimmed,
    /// The log has ended.
    Stopped,
}

impl Horizon {
    /// Nothing is known yet of what lies before `oldest`, or behind it.
    pub(crate) const fn new(oldest: Offset) -> Self {
        Self {
            visible: oldest,
            gap: Gap::Unknown,
        }
    }

    /// Whether [`Horizon::bound`] is to be told.
    pub(crate) fn wants_bound(&self) -> bool {
        self.gap == Gap::Unknown
    }

    /// Notes that all transactions so far are older than `xid`.
    pub(crate) fn bound(&mut self, xid: Xid) {
        if self.gap == Gap::Unknown {
            self.gap = Gap::Before {
                before: xid,
                since: None,
            };
        }
    }

    /// The oldest change that `snapshot` does not show, or the end of the log. `snapshot` must not
    /// be older than that of an earlier call. What commits up to
    /// `floor` is no place to begin at. `synchronous` says whether the server waits for standbys
    /// before it shows a commit.
    pub(crate) async fn first_unseen(
        &mut self,
        log: &dyn Log,
        snapshot: &Snapshot,
        floor: Lsn,
        synchronous: bool,
    ) -> Result<Offset, NoPlace> {
        if let Gap::Before { before, since } = self.gap {
            // Those who were held up by a standby go on only some time after nobody waits for it.
            let since = (!synchronous).then(|| since.unwrap_or_else(Instant::now));
            let settled = since.is_some_and(|since| since.elapsed() >= SETTLED);
            self.gap = if snapshot.xmin() >= before || settled {
                Gap::Closed
            } else {
                Gap::Before { before, since }
            };
        }
        loop {
            match log.read(self.visible, ENTRIES).await {
                Ok(_) if self.gap != Gap::Closed => return Err(NoPlace::Trimmed),
                Ok(entries) if entries.is_empty() => return Ok(self.visible),
                Ok(entries) => {
                    for entry in entries {
                        if !snapshot.shows(entry.batch.xid) {
                            if entry.batch.commit_lsn <= floor {
                                return Err(NoPlace::Trimmed);
                            }
                            return Ok(entry.first);
                        }
                        self.visible = entry.end();
                    }
                }
                Err(
                    LogError::Trimmed { oldest: next }
                    | LogError::Lost { next }
                    | LogError::Ahead { next },
                ) => {
                    self.visible = next;
                    self.gap = Gap::Unknown;
                    return Err(NoPlace::Trimmed);
                }
                Err(LogError::Stopped) => return Err(NoPlace::Stopped),
            }
            // A long log must not occupy the thread.
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::change::{Batch, Change, Kind, Relation, ReplicaIdentity};
    use crate::log::memory::{Bounds, MemoryLog};
    use crate::pg::Oid;

    async fn append(log: &MemoryLog, xid: u64, changes: usize) {
        let relation = Arc::new(Relation {
            oid: Oid(1),
            schema: "s".into(),
            name: "t".into(),
            replica_identity: ReplicaIdentity::Default,
            columns: Vec::new(),
            version: 1,
            types: Arc::default(),
        });
        let change = Change {
            relation,
            kind: Kind::Truncate,
        };
        let lsn = Lsn(log.appended().0 + 10);
        let batch = Batch {
            xid: Xid(xid),
            commit_lsn: lsn,
            end_lsn: Lsn(lsn.0 + 1),
            committed_at: 0,
            changes: vec![change; changes],
            last: true,
        };
        log.append(batch).await.unwrap();
    }

    fn log(changes: usize) -> MemoryLog {
        MemoryLog::new(Bounds {
            changes,
            bytes: 1 << 20,
        })
    }

    fn snapshot(text: &str) -> Snapshot {
        text.parse().unwrap()
    }

    fn closed() -> Horizon {
        Horizon {
            visible: Offset(0),
            gap: Gap::Closed,
        }
    }

    #[tokio::test]
    async fn the_changes_begin_at_the_oldest_that_is_not_shown_wherever_it_lies() {
        let log = log(100);
        let mut horizon = closed();
        for (xid, changes) in [(10, 1), (12, 2), (11, 1), (13, 3)] {
            append(&log, xid, changes).await;
        }
        // 12 hangs, though 11 and 13, which are behind it in the log, are shown.
        let first = horizon
            .first_unseen(&log, &snapshot("12:14:12"), Lsn(0), true)
            .await;
        assert_eq!(first, Ok(Offset(1)));
        let first = horizon
            .first_unseen(&log, &snapshot("12:12:"), Lsn(0), true)
            .await;
        assert_eq!(first, Ok(Offset(1)), "its number is past the snapshot's");
        let first = horizon
            .first_unseen(&log, &snapshot("14:14:"), Lsn(0), true)
            .await;
        assert_eq!(first, Ok(Offset(7)), "all are shown");
        append(&log, 9, 1).await;
        let first = horizon
            .first_unseen(&log, &snapshot("9:20:9"), Lsn(0), true)
            .await;
        assert_eq!(
            first,
            Ok(Offset(7)),
            "one that began early and committed late"
        );
    }

    #[tokio::test]
    async fn a_commit_that_the_log_let_go_unseen_waits_for_a_snapshot_that_shows_it() {
        let log = log(2);
        let mut horizon = closed();
        for xid in 10..16 {
            append(&log, xid, 1).await;
        }
        let old = snapshot("12:16:12");
        let first = horizon.first_unseen(&log, &old, Lsn(0), true).await;
        assert_eq!(first, Err(NoPlace::Trimmed), "12 lies before the log");
        assert!(horizon.wants_bound());
        horizon.bound(Xid(16));
        let first = horizon.first_unseen(&log, &old, Lsn(0), true).await;
        assert_eq!(first, Err(NoPlace::Trimmed), "12 is still not shown");
        let first = horizon
            .first_unseen(&log, &snapshot("16:16:"), Lsn(0), true)
            .await;
        assert_eq!(first, Ok(Offset(6)));
        assert!(!horizon.wants_bound());
        assert_eq!(
            horizon.first_unseen(&log, &old, Lsn(0), true).await,
            Ok(Offset(6)),
            "what was closed stays closed"
        );
    }

    #[tokio::test]
    async fn without_synchronous_standbys_a_long_transaction_holds_nobody_up_for_long() {
        let log = log(100);
        let mut horizon = Horizon::new(Offset(0));
        let long = snapshot("5:16:5");
        horizon.bound(Xid(16));
        let early = horizon.first_unseen(&log, &long, Lsn(0), false).await;
        assert_eq!(early, Err(NoPlace::Trimmed));
        later(&mut horizon);
        let synchronous = horizon.first_unseen(&log, &long, Lsn(0), true).await;
        assert_eq!(synchronous, Err(NoPlace::Trimmed), "it may hang");
        let released = horizon.first_unseen(&log, &long, Lsn(0), false).await;
        assert_eq!(released, Err(NoPlace::Trimmed), "it may not have woken yet");
        later(&mut horizon);
        let late = horizon.first_unseen(&log, &long, Lsn(0), false).await;
        assert_eq!(late, Ok(Offset(0)));
    }

    /// As if [`SETTLED`] had gone by.
    fn later(horizon: &mut Horizon) {
        let Gap::Before { since, .. } = &mut horizon.gap else {
            panic!("the bound is known");
        };
        *since = since.map(|since| since.checked_sub(SETTLED).unwrap());
    }
}

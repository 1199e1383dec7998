//! A table was emptied: a change to those who asked for such, and to all others the word to read
//! again. No filter and no policy says anything of it: whoever could see a row of the table has
//! lost it.

use std::sync::Arc;

use super::Fanout;
use crate::change::Relation;
use crate::encode;
use crate::log::{Cursor, Entry, Offset};
use crate::pg::Lsn;
use crate::policy::catalog::Catalog;
use crate::router::{Event, Outgoing, Resync};

/// Partitions whose rows a published root has lost, as the catalog shows it.
pub(super) struct LostLeaves {
    /// For each the transaction (32 bits) that wrote its new file; `None` where it is gone.
    writers: Vec<Option<u32>>,
    /// Those transactions committed before this place.
    until: Lsn,
}

impl Fanout {
    pub(super) fn truncated(&mut self, entry: &Entry, offset: Offset, relation: &Relation) {
        let Some(watched) = self.tables.get(&relation.oid) else {
            return;
        };
        let committed_at = entry.batch.committed_at;
        let mut made: Option<Arc<Outgoing>> = None;
        let mut others = Vec::new();
        let groups = watched.groups.values();
        for member in groups
            .filter(|group| !group.access.hides_all)
            .flat_map(|group| group.members())
        {
            let (session, channel) = (member.outbox.session(), member.channel);
            let (bindings, other) = member.hears_of_truncate(self.moment);
            if !bindings.is_empty() {
                let change = made.get_or_insert_with(|| {
                    let cursor = Cursor {
                        epoch: self.epoch,
                        offset: Offset(offset.0 + 1),
                    };
                    Arc::new(Outgoing {
                        bindings: bindings.clone(),
                        offset,
                        committed_at,
                        data: encode::truncate(relation, (cursor, committed_at)).into(),
                    })
                });
                if change.bindings != bindings {
                    *change = Arc::new(Outgoing {
                        bindings,
                        ..(**change).clone()
                    });
                }
                member.outbox.push(Event::Change {
                    channel,
                    change: Arc::clone(change),
                });
                if let Some(replay) = &mut self.replay
                    && member.outbox.is_half_full()
                {
                    replay.filled.push((session, channel));
                }
            }
            if other {
                others.push((session, channel));
            }
        }
        for (session, channel) in others {
            self.expel(session, channel, Resync::Truncated);
        }
    }

    /// Notes which published roots have lost partitions between the catalog in hand and `now`. Of
    /// a root that was truncated as a whole the stream tells itself, and of a single partition it
    /// tells nothing: which it was shows once the stream has passed the catalog's place.
    pub(super) fn note_lost_leaves(&mut self, now: &Arc<Catalog>) {
        for (oid, before) in &self.catalog.tables {
            let Some(after) = now.tables.get(oid) else {
                continue;
            };
            let writers = before.lost_leaves(after);
            if !writers.is_empty() {
                let lost = self.lost_leaves.entry(*oid).or_insert(LostLeaves {
                    writers: Vec::new(),
                    until: now.read_at,
                });
                lost.writers.extend(writers);
                lost.until = now.read_at;
            }
        }
    }

    /// Whether [`Fanout::settle_lost_leaves`] is worth a call.
    pub(in crate::router) fn has_lost_leaves(&self) -> bool {
        !self.lost_leaves.is_empty()
    }

    /// Everybody has been told to read again, and places of before mean nothing any more.
    pub(in crate::router) fn forget_lost_leaves(&mut self) {
        self.lost_leaves.clear();
    }

    /// Tells of lost partitions of which the stream has not told. Everything that committed before
    /// `passed` has been handed out.
    pub(in crate::router) fn settle_lost_leaves(&mut self, passed: Lsn) {
        let settled: Vec<_> = self
            .lost_leaves
            .extract_if(|_, lost| lost.until <= passed)
            .collect();
        for (oid, lost) in settled {
            let told = self.changed.emptied(oid);
            let all_told = told.is_some_and(|(xid, commit)| {
                let by = |writer: &Option<u32>| writer.is_some_and(|low| xid.widen(low) == xid);
                commit >= lost.until || lost.writers.iter().all(by)
            });
            if !all_told {
                self.expel_watchers(oid, None, Resync::Truncated);
            }
        }
    }
}

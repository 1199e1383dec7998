//! A mirror in force.

use std::sync::Arc;

use super::follow::{Effect, Followed};
use super::reason::Refusal;
use super::{Before, DELTAS, Delta};
use crate::log::Entry;
use crate::pg::Oid;

/// A mirror in force.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) followed: Followed,
    /// The stretch of the stream that it lives on; `None` where the subscribers' publication has it.
    pub(super) stretch: Option<u64>,
    /// What the catalog said of the table when it was copied.
    pub(super) identity: Arc<str>,
    pub(super) order: u64,
    /// Its partitions, as of then, where it has some: a TRUNCATE of one is not in the stream.
    pub(super) members: Option<Arc<str>>,
}

impl Kept {
    /// Applies what an entry does to the table; whether it did anything.
    pub(super) fn take(
        &mut self,
        entry: &Entry,
        oid: Oid,
        deltas: &mut Vec<Delta>,
    ) -> Result<bool, Refusal> {
        let mut did = false;
        let mut counted = 0_usize;
        for change in &entry.batch.changes {
            if change.relation.oid != oid {
                continue;
            }
            let delta = match self.followed.apply(change)? {
                None | Some(Effect::Same(_)) => continue,
                Some(Effect::Emptied(None)) => Delta::All { table: oid },
                Some(Effect::Emptied(Some(rows))) => {
                    did = true;
                    counted += rows.len();
                    deltas.extend(rows.into_iter().map(|row| Delta::Row {
                        table: oid,
                        before: Some(row),
                        after: None,
                    }));
                    continue;
                }
                Some(Effect::Row { before, after }) => Delta::Row {
                    table: oid,
                    before,
                    after,
                },
            };
            did = true;
            counted += 1;
            deltas.push(delta);
        }
        if counted > 0 && deltas.len() > DELTAS {
            deltas.retain(|delta| delta.table() != oid);
            deltas.push(Delta::All { table: oid });
        }
        Ok(did)
    }

    /// Applies what an entry does to the table, one change after the other, and adds to `found` what
    /// each found there.
    pub(super) fn pass(
        &mut self,
        entry: &Entry,
        oid: Oid,
        found: &mut Vec<Before>,
    ) -> Result<(), Refusal> {
        for (offset, change) in entry.changes() {
            if change.relation.oid == oid {
                self.pass_one(offset, change, found)?;
            }
        }
        Ok(())
    }

    /// The same with one change.
    pub(super) fn pass_one(
        &mut self,
        offset: crate::log::Offset,
        change: &crate::change::Change,
        found: &mut Vec<Before>,
    ) -> Result<(), Refusal> {
        let effect = self.followed.apply(change)?;
        if let Some(
            Effect::Same(row)
            | Effect::Row {
                before: Some(row), ..
            },
        ) = effect
        {
            found.push(Before {
                offset,
                columns: self.followed.mirror.shared_columns(),
                row,
            });
        }
        Ok(())
    }
}

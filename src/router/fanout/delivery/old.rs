//! What the relay itself knows of the row before a change.

use std::borrow::Cow;

use crate::change::{Change, Kind, Row};
use crate::log::Offset;
use crate::lookup::keep::Before;
use crate::router::fanout::Fanout;
use crate::router::{ChannelId, Resync, SessionId, old_rows};

/// The row that decides and the one before, as [`super::subject_rows`] gives them, with what is known
/// besides.
pub(super) fn completed<'a>(
    change: &'a Change,
    (row, old): (Cow<'a, Row>, Option<Cow<'a, Row>>),
    known: Option<&Before>,
) -> (Cow<'a, Row>, Option<Cow<'a, Row>>) {
    let Some(known) = known else {
        return (row, old);
    };
    match &change.kind {
        Kind::Delete { .. } => {
            let row = old_rows::row_before(change, Some(&row), known);
            (Cow::Owned(row), old)
        }
        Kind::Update { .. } => {
            let before = old_rows::row_before(change, old.as_deref(), known);
            let row = match old_rows::filled(&change.relation, &row, known) {
                Some(filled) => Cow::Owned(filled),
                None => row,
            };
            (row, Some(Cow::Owned(before)))
        }
        Kind::Insert { .. } | Kind::Truncate | Kind::Rules | Kind::Lost(_) => (row, old),
    }
}

impl Fanout {
    /// What a change found of its row, where that is mirrored.
    pub(super) fn found_before(&self, offset: Offset, change: &Change) -> Option<Before> {
        let rows = self.old_rows.as_ref()?;
        matches!(change.kind, Kind::Update { .. } | Kind::Delete { .. })
            .then(|| rows.before(offset))
            .flatten()
    }

    /// Has those read again who came back to a table whose old rows are mirrored, where it is not
    /// known any more what this change found.
    pub(super) fn expel_where_forgotten(&mut self, change: &Change) {
        let table = change.relation.oid;
        let Some(rows) = self.old_rows.as_ref().filter(|_| self.replay.is_some()) else {
            return;
        };
        if !matches!(change.kind, Kind::Update { .. } | Kind::Delete { .. })
            || !rows.is_promised(table)
        {
            return;
        }
        let Some(watched) = self.tables.get(&table) else {
            return;
        };
        let at = Some((&change.kind, self.moment));
        let groups = watched.groups.values();
        let relying = groups.flat_map(|group| group.relying(&watched.table, at));
        let relying: Vec<(SessionId, ChannelId)> = relying
            .map(|member| (member.outbox.session(), member.channel))
            .collect();
        for (session, channel) in relying {
            self.expel(session, channel, Resync::Undecided);
        }
    }

    /// Has those read again who rely on old rows of a table that are not known from here on. That
    /// says nothing of any row.
    pub(in crate::router) fn lose_old_rows(&mut self, table: crate::pg::Oid) {
        let Some(watched) = self.tables.get(&table) else {
            return;
        };
        let groups = watched.groups.values();
        let relying = groups.flat_map(|group| group.relying(&watched.table, None));
        let mut relying: Vec<(SessionId, ChannelId)> = relying
            .map(|member| (member.outbox.session(), member.channel))
            .collect();
        relying.sort_unstable();
        relying.dedup();
        for (session, channel) in relying {
            self.expel(session, channel, Resync::Undecided);
        }
    }
}

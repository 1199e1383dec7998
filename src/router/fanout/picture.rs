//! What is in force, as operators are told, and what was hidden, while they look.

use std::collections::BTreeMap;

use super::Fanout;
use crate::change::{Change, Kind};
use crate::lookup::keep::{State, Status};
use crate::metrics::HiddenReason;
use crate::metrics::recent::Subject;
use crate::policy::access::Rules;
use crate::router::picture::{Filtered, Group, Lookup, Picture, Table};

/// So many tables are shown.
const TABLES: usize = 200;

impl Fanout {
    pub(in crate::router) fn picture(&self, lookups: &[Status], old_rows: &[Status]) -> Picture {
        let mut tables: Vec<Table> = self
            .tables
            .values()
            .map(|watched| {
                let mut groups: Vec<Group> = watched
                    .groups
                    .iter()
                    .filter(|(_, group)| !group.is_empty())
                    .map(|(role, group)| Group {
                        role: role.to_string(),
                        subscribers: group.len(),
                        audience: group.audience(),
                        decided: match &group.access.rules {
                            Rules::Nothing(_) => "nothing",
                            Rules::Everything => "everything",
                            Rules::Judged { asked: true, .. } => "asked",
                            Rules::Judged { .. } => "compiled",
                        },
                    })
                    .collect();
                groups.sort_by(|a, b| a.role.cmp(&b.role));
                Table {
                    schema: watched.table.schema.clone(),
                    name: watched.table.name.clone(),
                    row_security: watched.table.row_security,
                    changes: watched.changes,
                    groups,
                }
            })
            .filter(|table| !table.groups.is_empty())
            .collect();
        tables.sort_by(|a, b| {
            let place = |table: &Table| std::cmp::Reverse(table.changes);
            (place(a), &a.schema, &a.name).cmp(&(place(b), &b.schema, &b.name))
        });
        let watched = tables.len();
        let published = self.catalog.tables.values().filter(|table| table.published);
        let unwatched = published.count().saturating_sub(watched);
        tables.truncate(TABLES);
        let channels = self
            .sessions
            .values()
            .map(std::collections::HashMap::len)
            .sum();
        let end = self.log.range().end;
        Picture {
            sessions: self.sessions.len(),
            channels,
            tables,
            watched,
            unwatched,
            behind: end.0.saturating_sub(self.position.get().offset.0),
            lookups: lookups.iter().map(lookup).collect(),
            old_rows: old_rows.iter().map(lookup).collect(),
        }
    }

    /// The columns that subscribers who take deletes filter by, in no order.
    pub(in crate::router) fn filtered(&self) -> Vec<Filtered> {
        let mut all = Vec::new();
        for (table, watched) in &self.tables {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for group in watched.groups.values() {
                group.filtered(&mut counts);
            }
            all.extend(counts.into_iter().map(|(column, subscribers)| Filtered {
                table: *table,
                column: column.to_owned(),
                subscribers,
            }));
        }
        all
    }

    /// What a change is of.
    pub(super) fn subject(&self, change: &Change, role: &str) -> Subject {
        let relation = &change.relation;
        // A renamed table is known to people by what the catalog calls it.
        let known = self.tables.get(&relation.oid).map(|watched| &watched.table);
        Subject {
            place: self.moment.offset.0,
            schema: known.map_or_else(String::new, |table| table.schema.clone()),
            table: known.map_or_else(String::new, |table| table.name.clone()),
            role: role.to_owned(),
            event: match &change.kind {
                Kind::Insert { .. } => "INSERT",
                Kind::Update { .. } => "UPDATE",
                Kind::Delete { .. } => "DELETE",
                Kind::Truncate => "TRUNCATE",
                Kind::Rules | Kind::Lost(_) => "",
            },
        }
    }

    /// Notes a hidden change for somebody who looks.
    pub(super) fn note_hidden(
        &self,
        change: &Change,
        role: &str,
        reason: HiddenReason,
        clients: u64,
    ) {
        let recent = &self.metrics.recent;
        recent.note(|| self.subject(change, role), reason, clients);
    }
}

fn lookup(status: &Status) -> Lookup {
    let refused = match &status.state {
        State::Refused(refusal) => Some(refusal.to_string()),
        _ => None,
    };
    Lookup {
        name: status.name.as_deref().map(str::to_owned),
        state: status.state.as_str(),
        refused,
        rows: status.rows,
        bytes: status.bytes,
    }
}

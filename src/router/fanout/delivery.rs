//! One change on its way to those who asked for it and may see it.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::Fanout;
use crate::change::{Change, ColumnSet, Kind, OldRow, Row, Value};
use crate::encode::{OldRecord, Shape};
use crate::log::{Entry, Offset};
use crate::metrics::HiddenReason;
use crate::policy::access::Rules;
use crate::policy::ask::{Answer, Question, Reply, image};
use crate::policy::catalog::Table;
use crate::router::group::{Match, MemberKey, Sight, Subject};
use crate::router::{ChannelId, DeleteWithoutIdentity, Event, Outbox, Resync, SessionId, Verdict};

impl Fanout {
    pub(super) async fn change(&mut self, entry: &Entry, offset: Offset, change: &Change) {
        let oid = change.relation.oid;
        let Some(watched) = self.tables.get_mut(&oid) else {
            return;
        };
        let in_doubt = watched.doubt.is_some_and(|doubt| {
            entry.batch.commit_lsn <= doubt.until && change.relation.version <= doubt.version
        });
        if in_doubt || !watched.fits {
            let clients = watched
                .groups
                .values()
                .map(|group| group.watching(&change.kind).len());
            self.metrics
                .hidden(HiddenReason::CatalogChanged, clients.sum::<usize>() as u64);
            self.expel_table(oid, Resync::Undecided);
            return;
        }
        let (row, old) = subject_rows(change);
        let subject = Subject {
            relation: &change.relation,
            change,
            row: &row,
            old: old.as_deref(),
        };
        let mut place = Place {
            entry,
            offset,
            change,
            row: &row,
            columns: None,
            bodies: Vec::new(),
            image: None,
        };
        let roles: Vec<Arc<str>> = watched.groups.keys().cloned().collect();
        let mut undecided = Vec::new();
        for role in roles {
            let Some(group) = self
                .tables
                .get_mut(&oid)
                .and_then(|w| w.groups.get_mut(&role))
            else {
                continue;
            };
            for found in group.route(&subject) {
                self.settle(&mut place, &role, found, &mut undecided).await;
            }
        }
        for (session, channel) in undecided {
            self.expel(session, channel, Resync::Undecided);
        }
    }

    /// Acts on what the compiled policies say of one row for one kin.
    async fn settle(
        &mut self,
        place: &mut Place<'_>,
        role: &Arc<str>,
        found: Match,
        undecided: &mut Vec<(SessionId, ChannelId)>,
    ) {
        let clients = found.members.len() as u64;
        let delete = matches!(place.change.kind, Kind::Delete { .. });
        match found.sight {
            Sight::Visible => {
                let old = self.old_record(place, found.sees_old);
                self.hand_out(place, role, &found.members, old, None);
            }
            Sight::Hidden => self.metrics.hidden(HiddenReason::Policy, clients),
            // A SELECT would raise as well and show nothing: there is nothing to read again.
            Sight::Raised => self.metrics.hidden(HiddenReason::PolicyError, clients),
            Sight::Asked | Sight::Undecided => match self.question(place, role, &found) {
                Some(question) => self.ask(place, role, found, question).await,
                None => self.unjudged(place, role, &found, delete, undecided),
            },
            Sight::Unmatched => self.unjudged(place, role, &found, false, undecided),
        }
    }

    pub(super) const fn unjudged_keys(&self) -> bool {
        matches!(
            self.settings.delete_without_identity,
            DeleteWithoutIdentity::Key
        )
    }

    fn old_record(&self, place: &Place<'_>, sees_old: bool) -> OldRecord {
        let watched = self.tables.get(&place.change.relation.oid);
        watched.map_or(OldRecord::Hidden, |watched| {
            old_record(place.change, &watched.table, sees_old, self.unjudged_keys())
        })
    }

    /// The stream does not carry what decides.
    fn unjudged(
        &mut self,
        place: &mut Place<'_>,
        role: &Arc<str>,
        found: &Match,
        delete: bool,
        undecided: &mut Vec<(SessionId, ChannelId)>,
    ) {
        let clients = found.members.len() as u64;
        if !delete {
            self.metrics.hidden(HiddenReason::UnchangedToast, clients);
            let group = self
                .tables
                .get(&place.change.relation.oid)
                .and_then(|w| w.groups.get(role));
            undecided.extend(found.members.iter().filter_map(|(key, _)| {
                let member = group?.member(*key)?;
                Some((member.outbox.session(), member.channel))
            }));
        } else if self.unjudged_keys() {
            self.hand_out(place, role, &found.members, OldRecord::Key, None);
        } else {
            // The join said so.
            self.metrics
                .hidden(HiddenReason::DeleteWithoutIdentity, clients);
        }
    }

    fn question(&self, place: &mut Place<'_>, role: &Arc<str>, found: &Match) -> Option<Question> {
        let relation = &place.change.relation;
        let watched = self.tables.get(&relation.oid)?;
        let group = watched.groups.get(role)?;
        let Rules::Judged {
            query: Some(query), ..
        } = &group.access.rules
        else {
            return None;
        };
        let carried = |position: usize| {
            place
                .row
                .get(position)
                .is_some_and(|value| value != Value::Unchanged)
        };
        // A column that is not in the stream (a column list leaves it out) is not carried either.
        let decidable = group
            .access
            .reads
            .iter()
            .all(|name| relation.position(name).is_some_and(carried));
        if !decidable {
            return None;
        }
        let image = place
            .image
            .get_or_insert_with(|| image::of(relation, place.row).into());
        Some(Question {
            xid: place.entry.batch.xid,
            query: Arc::clone(query),
            role: Arc::clone(role),
            claims: found.principal.claims.clone(),
            image: Arc::clone(image),
            deadline: Instant::now() + self.settings.ask_timeout,
            answer: Reply::new(|_| {}),
        })
    }

    /// Puts a question and holds the place of the change in each outbox until the answer is there.
    async fn ask(
        &mut self,
        place: &mut Place<'_>,
        role: &Arc<str>,
        found: Match,
        mut question: Question,
    ) {
        let verdict = Arc::new(Verdict::default());
        let old = self.old_record(place, false);
        let waiting = self.hand_out(place, role, &found.members, old, Some(&verdict));
        let metrics = Arc::clone(&self.metrics);
        question.answer = Reply::new(move |answer| {
            let hidden = match answer {
                Answer::Visible => None,
                Answer::Hidden => Some(HiddenReason::Policy),
                Answer::Raised => Some(HiddenReason::PolicyError),
                Answer::TimedOut => Some(HiddenReason::AskTimeout),
                Answer::Failed => Some(HiddenReason::AskFailed),
            };
            verdict.decide(hidden.is_none());
            if let Some(reason) = hidden {
                metrics.hidden(reason, waiting.len() as u64);
            }
            for (outbox, channel) in waiting {
                if matches!(answer, Answer::TimedOut | Answer::Failed) {
                    outbox.push(Event::Resync {
                        channel,
                        reason: Resync::Undecided,
                    });
                }
                outbox.wake();
            }
        });
        self.asker.ask(question).await;
    }

    /// Puts a change into the outboxes of `members`; returns where it went.
    fn hand_out(
        &mut self,
        place: &mut Place<'_>,
        role: &Arc<str>,
        members: &[(MemberKey, SmallVec<[u32; 4]>)],
        old: OldRecord,
        verdict: Option<&Arc<Verdict>>,
    ) -> Vec<(Arc<Outbox>, ChannelId)> {
        let Some(data) = self.data(place, role, old) else {
            return Vec::new();
        };
        let Some(group) = self
            .tables
            .get(&place.change.relation.oid)
            .and_then(|w| w.groups.get(role))
        else {
            return Vec::new();
        };
        let mut reached = Vec::new();
        for (key, bindings) in members {
            let Some(member) = group.member(*key) else {
                continue;
            };
            let event = Event::Change {
                channel: member.channel,
                bindings: bindings.clone(),
                offset: place.offset,
                committed_at: place.entry.batch.committed_at,
                data: data.clone(),
            };
            match verdict {
                Some(verdict) => {
                    member.outbox.hold(event, Arc::clone(verdict));
                    reached.push((Arc::clone(&member.outbox), member.channel));
                }
                None => member.outbox.push(event),
            }
        }
        reached
    }

    /// The change as bytes, for everybody under this role: written once for each set of columns,
    /// however many there are to receive it.
    fn data(&mut self, place: &mut Place<'_>, role: &Arc<str>, old: OldRecord) -> Option<Bytes> {
        let relation = &place.change.relation;
        let watched = self.tables.get_mut(&relation.oid)?;
        let columns = match &place.columns {
            Some((known, columns)) if known == role => columns.clone(),
            _ => {
                let columns = watched.groups.get(role)?.access.columns(relation);
                place.columns = Some((Arc::clone(role), columns.clone()));
                columns
            }
        };
        let written = |(of, before, _): &&Body| *before == old && *of == columns;
        if let Some((_, _, data)) = place.bodies.iter().find(written) {
            return Some(data.clone());
        }
        let key = (relation.version, columns.clone());
        let shape = watched.shapes.entry(key).or_insert_with(|| {
            Arc::new(Shape::new(
                relation,
                &watched.table,
                &self.catalog,
                &columns,
            ))
        });
        let data = shape.encode(
            place.change,
            place.entry.batch.committed_at,
            old,
            self.settings.max_record_bytes,
        )?;
        place.bodies.push((columns, old, data.clone()));
        Some(data)
    }
}

/// A change as bytes, for these columns and this much of the row before.
type Body = (ColumnSet, OldRecord, Bytes);

/// Where in the stream a change is, the row that decides about it, and what has been made of it so
/// far: recipients share it.
struct Place<'a> {
    entry: &'a Entry,
    offset: Offset,
    change: &'a Change,
    row: &'a Row,
    /// The columns of the role in hand.
    columns: Option<(Arc<str>, ColumnSet)>,
    bodies: Vec<Body>,
    /// The row as questions carry it.
    image: Option<Arc<str>>,
}

/// The row that decides and, for an update, what is carried of the one before. Values that an
/// update did not touch are taken from the old row where it has them.
fn subject_rows(change: &Change) -> (Cow<'_, Row>, Option<Cow<'_, Row>>) {
    match &change.kind {
        Kind::Insert { new } => (Cow::Borrowed(new), None),
        Kind::Delete { old } => (carried(change, old), None),
        Kind::Update { old, new } => {
            let old = old.as_ref().map(|old| carried(change, old));
            let touched = new.values().all(|value| value != Value::Unchanged);
            let row = match &old {
                Some(before) if !touched => Cow::Owned(
                    new.values()
                        .enumerate()
                        .map(|(position, value)| match value {
                            Value::Unchanged => before.get(position).unwrap_or(Value::Unchanged),
                            value => value,
                        })
                        .collect(),
                ),
                _ => Cow::Borrowed(new),
            };
            (row, old)
        }
        Kind::Truncate | Kind::Lost(_) => (Cow::Owned(Row::default()), None),
    }
}

/// An old row in which what a key-only one does not carry is marked so: the stream says NULL there.
fn carried<'row>(change: &Change, old: &'row OldRow) -> Cow<'row, Row> {
    match old {
        OldRow::Full(row) => Cow::Borrowed(row),
        OldRow::Key(row) => Cow::Owned(
            row.values()
                .zip(&change.relation.columns)
                .map(|(value, column)| {
                    if column.identity {
                        value
                    } else {
                        Value::Unchanged
                    }
                })
                .collect(),
        ),
    }
}

/// How much of the row before goes out to somebody who may see the change.
fn old_record(change: &Change, table: &Table, sees_old: bool, unjudged_keys: bool) -> OldRecord {
    match &change.kind {
        Kind::Update { old: None, .. } => OldRecord::Key,
        Kind::Update { old: Some(_), .. } if sees_old => OldRecord::Carried,
        // The key changed, and whether the old one could be seen is not known.
        Kind::Update {
            old: Some(OldRow::Key(_)),
            ..
        } => {
            if unjudged_keys {
                OldRecord::Carried
            } else {
                OldRecord::Hidden
            }
        }
        // The row before was hidden: its key may go out only if it is the one they see anyway.
        Kind::Update {
            old: Some(OldRow::Full(old)),
            new,
        } => {
            let kept = change
                .relation
                .columns
                .iter()
                .enumerate()
                .all(|(position, column)| {
                    let key = table
                        .column(&column.name)
                        .is_some_and(|column| table.is_key(column));
                    !key || old.get(position) == new.get(position)
                });
            if kept {
                OldRecord::Key
            } else {
                OldRecord::Hidden
            }
        }
        Kind::Delete { .. } => OldRecord::Carried,
        Kind::Insert { .. } | Kind::Truncate | Kind::Lost(_) => OldRecord::Hidden,
    }
}

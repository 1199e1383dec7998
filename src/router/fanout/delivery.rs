//! One change on its way to those who asked for it and may see it.

mod awaited;

mod place;

mod leave;

mod old;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::Fanout;
use crate::auth::{Claims, Principal};
use crate::change::{Change, Kind, OldRow, Row, Value};
use crate::encode::OldRecord;
use crate::log::{Entry, Offset};
use crate::metrics::{HiddenReason, recent};
use crate::pg::Oid;
use crate::policy::access::Rules;
use crate::policy::ask::{self, Answer, Question, Reply};
use crate::policy::catalog::Table;
use crate::router::due::Due;
use crate::router::filter_index::FilterKey;
use crate::router::group::{Match, Member, Sight, Subject, Told};
use crate::router::memberships::States;
use crate::router::replay::Replay;
use crate::router::{ChannelId, DeleteWithoutIdentity, Event, Outgoing, Resync, SessionId, Voice};
use awaited::{Awaited, Judge};
use place::{Place, Version, Writing};

impl Fanout {
    pub(super) async fn change(&mut self, entry: &Entry, offset: Offset, change: &Change) {
        let oid = change.relation.oid;
        let Some(watched) = self.tables.get_mut(&oid) else {
            return;
        };
        watched.changes += 1;
        let commit = entry.batch.commit_lsn;
        watched.doubt = watched.doubt.filter(|doubt| commit <= doubt.until);
        let doubt = watched.doubt;
        let in_doubt = doubt.is_some_and(|doubt| change.relation.version <= doubt.version);
        if in_doubt || !watched.fits {
            let clients = watched
                .groups
                .values()
                .map(|group| group.watching(&change.kind));
            let clients = clients.sum::<usize>() as u64;
            self.metrics.hidden(HiddenReason::CatalogChanged, clients);
            self.note_hidden(change, "", HiddenReason::CatalogChanged, clients);
            let reason = if self.replay.is_some() {
                Resync::SchemaChanged
            } else {
                Resync::Undecided
            };
            self.expel_table(oid, reason);
            return;
        }
        self.hide_unsure(commit, change);
        let Some(watched) = self.tables.get(&oid) else {
            return;
        };
        let tells_leaves = watched.groups.values().any(|g| g.told_of_leaves() > 0);
        let roles: SmallVec<[Arc<str>; 4]> = watched.groups.keys().cloned().collect();
        let own_table = self.states.changing.then(|| Arc::clone(&watched.table));
        let known = self.found_before(offset, change);
        if known.is_none() {
            self.expel_where_forgotten(change);
        }
        let (row, old) = old::completed(change, subject_rows(change), known.as_ref());
        let subject = Subject {
            relation: &change.relation,
            change,
            moment: self.moment,
            row: &row,
            old: old.as_deref(),
        };
        let own =
            own_table.is_some_and(|table| self.made.holds_old(entry.batch.xid, &subject, &table));
        let before = tells_leaves.then(|| leave::before(&subject)).flatten();
        let mut place = Place {
            entry,
            offset,
            change,
            row: &row,
            before: before.as_deref(),
            written: Vec::new(),
            bodies: HashMap::new(),
            unseen: None,
            images: Default::default(),
            filters: HashMap::new(),
            open: HashMap::new(),
        };
        let own = own.then(|| States::of(&self.states.after));
        let states = own.map(|own| std::mem::replace(&mut self.states, own));
        let mut undecided = Vec::new();
        for role in roles {
            place.written.clear();
            self.tell_leaves(&mut place, &role, &subject, &mut undecided)
                .await;
            let Some(group) = self
                .tables
                .get_mut(&oid)
                .and_then(|w| w.groups.get_mut(&role))
            else {
                continue;
            };
            for found in group.route(&subject, &self.states) {
                self.settle(&mut place, &role, found, &mut undecided).await;
            }
            self.ask_the_open(&mut place, &role).await;
            for (filter, awaited) in std::mem::take(&mut place.filters) {
                self.ask_filter(&mut place, &role, filter, awaited).await;
            }
        }
        if let Some(states) = states {
            self.states = states;
        }
        for (session, channel, reason) in undecided {
            self.expel(session, channel, reason);
        }
    }

    /// Acts on what the compiled policies say of one row for one kin.
    async fn settle(
        &mut self,
        place: &mut Place<'_>,
        role: &Arc<str>,
        mut found: Match,
        undecided: &mut Vec<(SessionId, ChannelId, Resync)>,
    ) {
        if found.sight == Sight::Undecided && self.looks_at_another_time(place, role) {
            let missed = self.take_missed(place, role, &mut found);
            self.read_again(place, role, &missed, Resync::AccessChanged, undecided);
            if found.told.is_empty() {
                return;
            }
        }
        let clients = found.told.len() as u64;
        let delete = matches!(place.change.kind, Kind::Delete { .. });
        match found.sight {
            Sight::Visible if found.unclear => {
                self.unjudged(place, role, &found, false, undecided);
            }
            Sight::Visible => {
                let old = self.old_record(place, found.sees_old);
                self.hand_out(place, role, &found.told, old, None);
            }
            Sight::Hidden => self.hide(place, role, HiddenReason::Policy, clients),
            // A SELECT would raise as well and show nothing: there is nothing to read again.
            Sight::Raised => self.hide(place, role, HiddenReason::PolicyError, clients),
            Sight::Undecided => {
                let watched = self.tables.get(&place.change.relation.oid);
                let group = watched.and_then(|watched| watched.groups.get(role));
                let principal = group.and_then(|group| group.principal(found.kin).cloned());
                let question =
                    principal.and_then(|who| self.question(place, role, (&who, Version::New)));
                match question {
                    Some(_) if delete && self.changes_what_decided(place, role) => {
                        self.hide(place, role, HiddenReason::AskFailed, clients);
                        self.read_again(place, role, &found, Resync::Undecided, undecided);
                    }
                    Some(question) => self.ask(place, role, found, question).await,
                    None => self.unjudged(place, role, &found, delete, undecided),
                }
            }
        }
    }

    /// Counts a change that does not go to clients who asked for it, and notes it for who looks.
    fn hide(&self, place: &Place<'_>, role: &str, reason: HiddenReason, clients: u64) {
        self.metrics.hidden(reason, clients);
        self.note_hidden(place.change, role, reason, clients);
    }

    pub(super) const fn unjudged_keys(&self) -> bool {
        matches!(
            self.settings.delete_without_identity,
            DeleteWithoutIdentity::Key
        )
    }

    fn old_record(&self, place: &mut Place<'_>, sees_old: bool) -> OldRecord {
        if let Some(known) = place.unseen.filter(|_| !sees_old) {
            return known;
        }
        let watched = self.tables.get(&place.change.relation.oid);
        let old = watched.map_or(OldRecord::Hidden, |watched| {
            old_record(place.change, &watched.table, sees_old, self.unjudged_keys())
        });
        if !sees_old {
            place.unseen = Some(old);
        }
        old
    }

    /// The stream does not carry what decides.
    fn unjudged(
        &mut self,
        place: &mut Place<'_>,
        role: &Arc<str>,
        found: &Match,
        delete: bool,
        undecided: &mut Vec<(SessionId, ChannelId, Resync)>,
    ) {
        let clients = found.told.len() as u64;
        if !delete || (found.unclear && self.unjudged_keys()) {
            self.hide(place, role, HiddenReason::UnchangedToast, clients);
            self.read_again(place, role, found, Resync::Undecided, undecided);
        } else if self.unjudged_keys() {
            self.hand_out(place, role, &found.told, OldRecord::Key, None);
        } else {
            // The join said so.
            self.hide(place, role, HiddenReason::DeleteWithoutIdentity, clients);
        }
    }

    /// Whether what the policies look into besides the row has changed since the row did, or may
    /// have: it was missed, and the answer would be as of now.
    fn looks_at_another_time(&self, place: &Place<'_>, role: &Arc<str>) -> bool {
        if self.replay.is_none() {
            return false;
        }
        let watched = self.tables.get(&place.change.relation.oid);
        let group = watched.and_then(|watched| watched.groups.get(role));
        let consulted = group.and_then(|group| group.access.consults.as_ref());
        !consulted.is_some_and(|tables| self.changed.unchanged_from(place.offset, tables))
    }

    /// Whether the transaction of a change writes what the policies look into besides the row, or may:
    /// PostgreSQL would say of the row before what is so behind it.
    fn changes_what_decided(&self, place: &Place<'_>, role: &Arc<str>) -> bool {
        let own = place.change.relation.oid;
        let watched = self.tables.get(&own);
        let group = watched.and_then(|watched| watched.groups.get(role));
        let looked_at = group.and_then(|group| group.access.looks_at.as_ref());
        let decides =
            |oid: &Oid| *oid != own && looked_at.is_none_or(|tables| tables.contains(oid));
        let batch = &place.entry.batch;
        match &self.writes {
            Some((xid, tables)) if *xid == batch.xid => tables.iter().any(decides),
            // A cohort looks at what it has of the transaction.
            _ => {
                let mut written = batch.changes.iter().map(|change| &change.relation.oid);
                !batch.last || written.any(decides)
            }
        }
    }

    /// Takes those out of a match who came back with a cursor. An answer that is as of now is good
    /// enough for who was given the rows a moment ago, as it is for who is subscribed.
    fn take_missed(&self, place: &Place<'_>, role: &Arc<str>, found: &mut Match) -> Match {
        let watched = self.tables.get(&place.change.relation.oid);
        let group = watched.and_then(|watched| watched.groups.get(role));
        let recent = |told: &Told| {
            let member = group.and_then(|group| group.member(told.member));
            member.is_some_and(Member::follows_a_snapshot)
        };
        let (recent, missed) = std::mem::take(&mut found.told)
            .into_iter()
            .partition(recent);
        found.told = recent;
        Match {
            told: missed,
            ..*found
        }
    }

    /// Notes who is to read again.
    fn read_again(
        &self,
        place: &Place<'_>,
        role: &Arc<str>,
        found: &Match,
        reason: Resync,
        undecided: &mut Vec<(SessionId, ChannelId, Resync)>,
    ) {
        let watched = self.tables.get(&place.change.relation.oid);
        let group = watched.and_then(|watched| watched.groups.get(role));
        undecided.extend(found.told.iter().filter_map(|told| {
            let member = group?.member(told.member)?;
            Some((member.outbox.session(), member.channel, reason))
        }));
    }

    fn question(
        &self,
        place: &mut Place<'_>,
        role: &Arc<str>,
        (principal, version): (&Principal, Version),
    ) -> Option<Question> {
        let relation = &place.change.relation;
        let watched = self.tables.get(&relation.oid)?;
        let group = watched.groups.get(role)?;
        let Rules::Judged {
            query: Some(query),
            parts,
            ..
        } = &group.access.rules
        else {
            return None;
        };
        let row = place.row_of(version)?;
        let deleted = matches!(place.change.kind, Kind::Delete { .. });
        let state = match version {
            Version::New if !deleted => &self.states.after,
            Version::New | Version::Old => &self.states.before,
        };
        let partial = parts
            .as_ref()
            .and_then(|parts| parts.of((relation, row), principal, state));
        let (query, reads) = match &partial {
            Some(partial) => (&partial.query, &*partial.reads),
            None => (query, &*group.access.reads),
        };
        let carried = |position: usize| {
            row.get(position)
                .is_some_and(|value| value != Value::Unchanged)
        };
        // A column that is not in the stream (a column list leaves it out) is not carried either.
        let decidable = reads
            .iter()
            .all(|name| relation.position(name).is_some_and(carried));
        if !decidable {
            return None;
        }
        let image = place.image_of(version, reads)?;
        Some(Question {
            subject: ask::Subject::Policies,
            xid: place.entry.batch.xid,
            query: Arc::clone(query),
            role: Arc::clone(role),
            claims: principal.claims.clone(),
            image,
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
        let mut awaited = if found.unclear {
            vec![self.doubt(place, role, &found.told)]
        } else {
            let mut awaited = Vec::new();
            let old = self.old_record(place, false);
            self.hand_out(place, role, &found.told, old, Some(&mut awaited));
            awaited
        };
        awaited.extend(place.take_open(found.kin));
        let recent = &self.metrics.recent;
        let subject = recent
            .is_watched()
            .then(|| self.subject(place.change, role));
        question.answer = self.answer_about_policies(awaited, true, subject);
        self.asker.ask(question).await;
    }

    /// Whoever acts on what PostgreSQL says.
    fn judge(&self) -> Judge {
        Judge {
            metrics: Arc::clone(&self.metrics),
            unseen: Arc::clone(&self.unseen),
            position: Arc::clone(&self.position),
            read_at: self.catalog.read_at,
        }
    }

    /// What acts on an answer about a row; `counts` where a no keeps a change from somebody.
    fn answer_about_policies(
        &self,
        awaited: Vec<Awaited>,
        counts: bool,
        subject: Option<recent::Subject>,
    ) -> Reply {
        let judge = self.judge();
        Reply::new(move |answer| {
            let hidden = match answer {
                Answer::Visible => None,
                Answer::Hidden => Some(HiddenReason::Policy),
                Answer::Raised => Some(HiddenReason::PolicyError),
                Answer::TimedOut => Some(HiddenReason::AskTimeout),
                Answer::Failed => Some(HiddenReason::AskFailed),
            };
            if let (Some(subject), Some(reason)) = (subject, hidden) {
                let waiting = awaited.iter().map(|one| one.waiting.len() as u64);
                let recent = &judge.metrics.recent;
                recent.note(|| subject, reason, waiting.sum());
            }
            let (voice, no) = match answer {
                Answer::Visible => (Voice::Yes, None),
                Answer::Hidden => (Voice::No, Some(HiddenReason::Policy)),
                // A SELECT would raise too: there is nothing to read again.
                Answer::Raised => (Voice::No, Some(HiddenReason::PolicyError)),
                Answer::TimedOut => (Voice::TimedOut, None),
                Answer::Failed => (Voice::Failed, None),
            };
            judge.conclude(awaited, voice, no.filter(|_| counts));
        })
    }

    /// Those of whom it cannot be told whether they ask for the row: they are to read again if they
    /// may see it, and hear nothing of it otherwise.
    fn doubt(&self, place: &Place<'_>, role: &Arc<str>, told: &[Told]) -> Awaited {
        let watched = self.tables.get(&place.change.relation.oid);
        let group = watched.and_then(|watched| watched.groups.get(role));
        let mut one = Awaited::new(2);
        one.verdict.say(Voice::Failed);
        one.waiting.extend(told.iter().filter_map(|told| {
            let member = group?.member(told.member)?;
            let undecided = Event::undecided(member.channel);
            member.outbox.hold(undecided, Arc::clone(&one.verdict));
            Some((Arc::clone(&member.outbox), member.channel))
        }));
        one
    }

    /// Puts the question whether a filter asks for the row, once for all who have that filter.
    async fn ask_filter(
        &mut self,
        place: &mut Place<'_>,
        role: &Arc<str>,
        (filter, version): (FilterKey, Version),
        awaited: Vec<Awaited>,
    ) {
        let watched = self.tables.get(&place.change.relation.oid);
        let group = watched.and_then(|watched| watched.groups.get(role));
        let filter = group.and_then(|group| group.filter(filter));
        let judge = self.judge();
        let answer = Reply::new(move |answer| {
            let voice = match answer {
                Answer::Visible => Voice::Yes,
                // Who does not ask for a row is not kept from it.
                Answer::Hidden => Voice::No,
                Answer::TimedOut => Voice::TimedOut,
                Answer::Raised | Answer::Failed => Voice::Failed,
            };
            judge.conclude(awaited, voice, None);
        });
        // Without a question the answer is dropped, which hides the row.
        let Some(asked) = filter.and_then(|filter| filter.question()) else {
            return;
        };
        let Some(image) = place.image_of(version, &asked.needs) else {
            return;
        };
        let question = Question {
            subject: ask::Subject::Filter,
            xid: place.entry.batch.xid,
            query: Arc::clone(&asked.query),
            role: Arc::clone(&asked.role),
            claims: Claims::verified("{}".to_owned()),
            image,
            deadline: Instant::now() + self.settings.ask_timeout,
            answer,
        };
        self.asker.ask(question).await;
    }

    /// Puts a change into the outboxes of those who are told; with `judged` only held there, for
    /// whoever decides about the row. Where PostgreSQL has to say whether a filter asks for it, it
    /// is held for that as well.
    fn hand_out(
        &mut self,
        place: &mut Place<'_>,
        role: &Arc<str>,
        told: &[Told],
        old: OldRecord,
        mut judged: Option<&mut Vec<Awaited>>,
    ) {
        let Some(watched) = self.tables.get_mut(&place.change.relation.oid) else {
            return;
        };
        let Some(group) = watched.groups.get(role) else {
            return;
        };
        let mut writing = Writing {
            table: &watched.table,
            catalog: &self.catalog,
            group,
            shapes: &mut watched.shapes,
            epoch: self.epoch,
            max_bytes: self.settings.max_record_bytes,
        };
        // Those who wait for the same wait together.
        let mut awaited: HashMap<Option<FilterKey>, Awaited> = HashMap::new();
        for told in told {
            let form = (told.selection, old);
            let Some(change) = place.outgoing(&mut writing, form, &told.bindings) else {
                continue;
            };
            let Some(member) = group.member(told.member) else {
                continue;
            };
            let voices = u8::from(judged.is_some()) + u8::from(told.asked.is_some());
            let one = (voices > 0).then(|| {
                awaited
                    .entry(told.asked)
                    .or_insert_with(|| Awaited::new(voices))
            });
            put((self.replay.as_mut(), &mut self.due), member, change, one);
        }
        for (asked, one) in awaited {
            if let Some(filter) = asked {
                place.wait_for((filter, Version::New), &one);
            }
            if let Some(judged) = &mut judged {
                judged.push(one);
            }
        }
    }
}

/// Puts a change into a member's outbox, or with `held` only its place, for whoever decides.
fn put(
    (replay, due): (Option<&mut Replay>, &mut Due),
    member: &Member,
    change: Arc<Outgoing>,
    held: Option<&mut Awaited>,
) {
    let outbox = &member.outbox;
    let replay = replay.map(|replay| {
        if outbox.is_half_full() {
            replay.filled.push((outbox.session(), member.channel));
        }
        &replay.unannounced
    });
    let channel = member.channel;
    let event = Event::Change { channel, change };
    match (held, replay) {
        (Some(one), _) => {
            outbox.hold(event, Arc::clone(&one.verdict));
            one.waiting.push((Arc::clone(outbox), channel));
        }
        (None, Some(unannounced)) => unannounced.hand(outbox, event),
        (None, None) => due.hand(outbox, event),
    }
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
        Kind::Truncate | Kind::Rules | Kind::Lost(_) => (Cow::Owned(Row::default()), None),
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
        Kind::Insert { .. } | Kind::Truncate | Kind::Rules | Kind::Lost(_) => OldRecord::Hidden,
    }
}

//! An update that takes a row out of somebody's view reaches them as a DELETE with the key.
//!
//! Told is who saw the row before and does not see it now. Both have to be known: where PostgreSQL
//! has to say something of it, the place of the leave is held in the outbox until it has, beside
//! that of the update, of which only one can open. Nobody else hears of the old row.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use super::{Awaited, Fanout, Place, Version, Voice, Writing, put};
use crate::change::{Kind, Row, Value};
use crate::encode::OldRecord;
use crate::metrics::HiddenReason;
use crate::mutant::LeaveMutant;
use crate::router::group::leave::{Asks, Leaving, Left, Open};
use crate::router::group::{Member, Sight, Subject};
use crate::router::{ChannelId, Resync, SessionId};

/// The row before an update, as far as it is known. Where the stream carries none, the replica
/// identity is what it was.
pub(super) fn before<'a>(subject: &Subject<'a>) -> Option<Cow<'a, Row>> {
    if let (Kind::Update { .. }, Some(old)) = (&subject.change.kind, subject.old) {
        return Some(Cow::Borrowed(old));
    }
    let Kind::Update { old: None, new } = &subject.change.kind else {
        return None;
    };
    let columns = &subject.relation.columns;
    let same = new.values().zip(columns).map(|(value, column)| {
        if column.identity {
            value
        } else {
            Value::Unchanged
        }
    });
    Some(Cow::Owned(same.collect()))
}

impl Place<'_> {
    /// What of a kin waits for what the policies say of the new row.
    pub(super) fn take_open(&mut self, kin: usize) -> Vec<Awaited> {
        self.open
            .remove(&kin)
            .map(|(_, open)| open)
            .unwrap_or_default()
    }
}

impl Fanout {
    /// Tells those of a role whom an update takes the row away from.
    pub(super) async fn tell_leaves(
        &mut self,
        place: &mut Place<'_>,
        role: &Arc<str>,
        subject: &Subject<'_>,
        undecided: &mut Vec<(SessionId, ChannelId, Resync)>,
    ) {
        let Some(before) = place.before else {
            return;
        };
        let Some(watched) = self.tables.get_mut(&place.change.relation.oid) else {
            return;
        };
        let Some(group) = watched.groups.get_mut(role) else {
            return;
        };
        let clients = group.told_of_leaves();
        if clients == 0 || !group.may_leave(subject, before) {
            return;
        }
        let key = watched.table.columns.iter();
        let mut key = key.filter(|column| watched.table.is_key(column));
        // What goes out of the row before is what the stream carries.
        let is_known = key.all(|column| {
            let position = subject.relation.position(&column.name);
            position.is_some_and(|position| {
                let described = subject.relation.columns.get(position);
                let value = before.get(position);
                described.is_some_and(|column| column.identity)
                    && value.is_some_and(|value| value != Value::Unchanged)
            })
        });
        if !is_known || !group.can_judge(subject, before) {
            // The join said so.
            self.metrics
                .hidden(HiddenReason::LeaveWithoutIdentity, clients as u64);
            return;
        }
        let whole = watched.table.key.is_empty() || LeaveMutant::LeaveShowsTheRow.active();
        let old = if whole {
            OldRecord::LeftWhole
        } else {
            OldRecord::Left
        };
        for leaving in group.leaving(subject, before, &self.states) {
            self.tell_left(place, role, (leaving, old), undecided).await;
        }
    }

    async fn tell_left(
        &mut self,
        place: &mut Place<'_>,
        role: &Arc<str>,
        (mut leaving, old): (Leaving, OldRecord),
        undecided: &mut Vec<(SessionId, ChannelId, Resync)>,
    ) {
        let asked_before = leaving.before != Sight::Visible;
        let asks = |left: &Left| left.after.is_some_and(|open| open.policies);
        if (asked_before || leaving.left.iter().any(asks))
            && self.looks_at_another_time(place, role)
        {
            self.pass_over_missed(place, role, &mut leaving, undecided);
        }
        if asked_before && self.changes_what_decided(place, role) {
            let watched = self.tables.get(&place.change.relation.oid);
            let group = watched.and_then(|watched| watched.groups.get(role));
            undecided.extend(leaving.left.iter().filter_map(|left| {
                let member = group?.member(left.member)?;
                Some((member.outbox.session(), member.channel, Resync::Undecided))
            }));
            return;
        }
        let told = self.hold_leaves(place, role, &leaving, old);
        let mut policies = Vec::new();
        for ((before, after), one) in told {
            if asked_before {
                policies.push(one.clone());
            }
            match before {
                Asks::Yes => {}
                Asks::Asked(filter) => place.wait_for((filter, Version::Old), &one),
                Asks::Unclear => self
                    .judge()
                    .conclude(vec![one.clone()], Voice::Failed, None),
            }
            let Some(open) = after else {
                continue;
            };
            // A verdict about the new row, which holds nothing itself.
            let mut shown = Awaited::new(open.voices());
            shown.unless.push(one);
            if open.policies {
                let waiting = place.open.entry(leaving.kin);
                let (_, waiting) =
                    waiting.or_insert_with(|| (Arc::clone(&leaving.principal), Vec::new()));
                waiting.push(shown.clone());
            }
            match open.filter {
                Asks::Yes => {}
                Asks::Asked(filter) => place.wait_for((filter, Version::New), &shown),
                Asks::Unclear => self.judge().conclude(vec![shown], Voice::Failed, None),
            }
        }
        if !policies.is_empty() {
            let about = (&*leaving.principal, Version::Old);
            match self.question(place, role, about) {
                Some(mut question) => {
                    // Nothing is kept from who could not see the row before.
                    question.answer = self.answer_about_policies(policies, false, None);
                    self.asker.ask(question).await;
                }
                None => self.judge().conclude(policies, Voice::Failed, None),
            }
        }
    }

    /// Asks about the new row for those kin of whom nobody is told of the update itself.
    pub(super) async fn ask_the_open(&mut self, place: &mut Place<'_>, role: &Arc<str>) {
        for (_, (principal, awaited)) in std::mem::take(&mut place.open) {
            match self.question(place, role, (&principal, Version::New)) {
                Some(mut question) => {
                    question.answer = self.answer_about_policies(awaited, false, None);
                    self.asker.ask(question).await;
                }
                None => self.judge().conclude(awaited, Voice::Failed, None),
            }
        }
    }

    /// Puts the leaves into the outboxes, and returns those that are held there, by what they wait
    /// for besides what the policies say of the old row.
    fn hold_leaves(
        &mut self,
        place: &mut Place<'_>,
        role: &Arc<str>,
        leaving: &Leaving,
        old: OldRecord,
    ) -> HashMap<(Asks, Option<Open>), Awaited> {
        let mut held: HashMap<(Asks, Option<Open>), Awaited> = HashMap::new();
        let Some(watched) = self.tables.get_mut(&place.change.relation.oid) else {
            return held;
        };
        let Some(group) = watched.groups.get(role) else {
            return held;
        };
        let mut writing = Writing {
            table: &watched.table,
            catalog: &self.catalog,
            group,
            shapes: &mut watched.shapes,
            epoch: self.epoch,
            max_bytes: self.settings.max_record_bytes,
        };
        for left in &leaving.left {
            let form = (left.selection, old);
            let Some(change) = place.outgoing(&mut writing, form, &left.bindings) else {
                continue;
            };
            let Some(member) = group.member(left.member) else {
                continue;
            };
            let voices = u8::from(leaving.before != Sight::Visible)
                + u8::from(left.before != Asks::Yes)
                + u8::from(left.after.is_some());
            let one = (voices > 0).then(|| {
                held.entry((left.before, left.after))
                    .or_insert_with(|| Awaited::new(voices))
            });
            put((self.replay.as_mut(), &mut self.due), member, change, one);
        }
        held
    }

    /// Takes those out who came back with a cursor, where what would be asked has changed since: an
    /// answer would be as of now. They are to read again.
    fn pass_over_missed(
        &self,
        place: &Place<'_>,
        role: &Arc<str>,
        leaving: &mut Leaving,
        undecided: &mut Vec<(SessionId, ChannelId, Resync)>,
    ) {
        let watched = self.tables.get(&place.change.relation.oid);
        let group = watched.and_then(|watched| watched.groups.get(role));
        leaving.left.retain(|left| {
            let Some(member) = group.and_then(|group| group.member(left.member)) else {
                return false;
            };
            let recent = Member::follows_a_snapshot(member);
            if !recent {
                let channel = (member.outbox.session(), member.channel);
                undecided.push((channel.0, channel.1, Resync::AccessChanged));
            }
            recent
        });
    }
}

impl Open {
    /// How many have to say yes before the new row is shown.
    fn voices(self) -> u8 {
        u8::from(self.policies) + u8::from(self.filter != Asks::Yes)
    }
}

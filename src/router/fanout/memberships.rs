//! Whom it concerns that a table changed which policies look into. Whoever did not change itself is
//! not told row by row what it sees now, or sees no more: it reads again.

use std::sync::Arc;

use super::Fanout;
use crate::auth::Principal;
use crate::lookup::Wanted;
use crate::pg::Oid;
use crate::policy::access::Access;
use crate::router::group::{Binding, Moment};
use crate::router::memberships::{Missed, Note, States};
use crate::router::{ChannelId, Resync, SessionId};

impl Fanout {
    /// What the rules in hand read of other tables, of each once; `None` where those rules are the
    /// same as at the call before.
    pub(in crate::router) fn looks_into(&mut self) -> Option<Vec<Wanted>> {
        if !std::mem::take(&mut self.rules_changed) {
            return None;
        }
        let mut wanted: Vec<Wanted> = Vec::new();
        for one in self.access.values().flat_map(|access| &access.lookups) {
            match wanted.iter_mut().find(|known| known.table == one.table) {
                Some(known) => known.merge(one),
                None => wanted.push(one.clone()),
            }
        }
        for one in &mut wanted {
            one.columns.sort_by(|a, b| a.name.cmp(&b.name));
        }
        wanted.sort_by_key(|one| one.table);
        Some(wanted)
    }

    /// Whether the rules for one of these tables read one of those.
    pub(in crate::router) fn reads_one_of(
        &self,
        tables: impl IntoIterator<Item = Oid>,
        role: &Arc<str>,
        lookups: &[Oid],
    ) -> bool {
        let mut tables = tables.into_iter();
        tables.any(|table| {
            let access = self.access.get(&(table, Arc::clone(role)));
            access.is_some_and(|access| reads(access, lookups))
        })
    }

    /// Whether the rules for somebody who is in force read a table.
    pub(in crate::router) fn is_read(&self, lookup: Oid) -> bool {
        let mut groups = self.tables.values().flat_map(|one| one.groups.values());
        groups.any(|group| reads(&group.access, &[lookup]))
    }

    /// Tells those whose audience depended on what changed, as far as they want what happened then.
    pub(in crate::router) fn tell_concerned(&mut self, notes: &[Note], moment: Moment) {
        if notes.is_empty() {
            return;
        }
        let lookups = &self.states.after;
        let groups = self.tables.values().flat_map(|one| one.groups.values());
        let mut concerned: Vec<(SessionId, ChannelId)> = groups
            .filter(|group| !group.access.lookups.is_empty() && !group.access.hides_all)
            .flat_map(|group| group.concerned(notes, lookups))
            .filter(|member| member.wants(moment))
            .map(|member| (member.outbox.session(), member.channel))
            .collect();
        self.expel_all(&mut concerned);
    }

    /// Tells all whose audience depends on one of these tables, of which it is not known what
    /// changed.
    pub(in crate::router) fn tell_readers(&mut self, lookups: &[Oid], moment: Moment) {
        if lookups.is_empty() {
            return;
        }
        let groups = self.tables.values().flat_map(|one| one.groups.values());
        let mut concerned: Vec<(SessionId, ChannelId)> = groups
            .filter(|group| reads(&group.access, lookups) && !group.access.hides_all)
            .flat_map(|group| group.members())
            .filter(|member| member.wants(moment))
            .map(|member| (member.outbox.session(), member.channel))
            .collect();
        self.expel_all(&mut concerned);
    }

    fn expel_all(&mut self, channels: &mut Vec<(SessionId, ChannelId)>) {
        channels.sort_unstable();
        channels.dedup();
        for (session, channel) in channels.drain(..) {
            self.expel(session, channel, Resync::AccessChanged);
        }
    }

    /// Goes over to how lookups are where the router is. Those whose audience has changed on the way
    /// there read again: what they missed cannot be judged any more.
    pub(in crate::router) fn catch_up_with_lookups(&mut self) {
        let (lookups, place) = self.memberships.now();
        let before = std::mem::replace(&mut self.judged_at, place);
        self.states = States::of(&lookups);
        if before == place {
            return;
        }
        let memberships = Arc::clone(&self.memberships);
        let notes = memberships.notes(before, place);
        let mut concerned = Vec::new();
        for group in self.tables.values().flat_map(|one| one.groups.values()) {
            if group.access.lookups.is_empty() {
                continue;
            }
            if memberships.is_unknown(&group.access, before) {
                concerned.extend(
                    group
                        .members()
                        .map(|one| (one.outbox.session(), one.channel)),
                );
                continue;
            }
            // One by one: a snapshot shows some of them.
            for note in &notes {
                let moment = note.moment();
                let members = group.concerned(std::slice::from_ref(note), &lookups);
                let wants = members.into_iter().filter(|member| member.wants(moment));
                concerned.extend(wants.map(|one| (one.outbox.session(), one.channel)));
            }
        }
        self.expel_all(&mut concerned);
    }

    /// Whether somebody's audience has changed since its bindings begin, or may have.
    pub(in crate::router) fn has_missed_a_change(
        &mut self,
        table: Oid,
        principal: &Principal,
        bindings: &[Binding],
    ) -> bool {
        let key = (table, Arc::clone(&principal.role));
        let Some(access) = self.access.get(&key) else {
            return true;
        };
        let begins = bindings.iter().filter_map(|one| one.begin.as_deref()?.from);
        let Some(from) = begins.min().filter(|_| !access.lookups.is_empty()) else {
            return false;
        };
        if self.memberships.is_unknown(access, from) {
            // An answer that is as of now is good enough for who was given the rows a moment ago; and
            // once more is known they are told.
            let mut lookups = access.lookups.iter();
            let asked = lookups.any(|wanted| self.states.after.get(wanted.table).is_none());
            let mut begins = bindings.iter().filter_map(|one| one.begin.as_deref());
            return !(asked && begins.all(|begin| begin.unseen_by.is_some()));
        }
        let missed = self.missed.remove(&key);
        let mut missed = missed
            .filter(|missed| missed.reaches(access, from))
            .unwrap_or_else(|| Missed::new(access, from));
        missed.extend(&self.memberships, &self.states.after, self.judged_at);
        let concerned = missed.concerns(principal, bindings);
        self.missed.insert(key, missed);
        concerned
    }
}

fn reads(access: &Access, lookups: &[Oid]) -> bool {
    let mut read = access.lookups.iter();
    read.any(|wanted| lookups.contains(&wanted.table))
}

//! Lookups before rows: what a transaction does to the tables that policies look into is applied
//! before its first row is judged, and once its last row is handed out those are told whose audience
//! it changed.

use std::collections::{BTreeSet, HashMap};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, select_all};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::old_rows::Remembering;
use super::{Held, Live};
use crate::log::{Entry, LogError, Offset};
use crate::lookup::keep::{Cause, Delta, Keeping, State, Status};
use crate::lookup::{Column, Lookups, Mirror, Wanted};
use crate::pg::{Oid, Xid};
use crate::router::group::Moment;
use crate::router::memberships::{Change, Note, States};
use crate::router::replay::Returning;

/// What nobody reads any more is kept for this long: whoever comes back does not wait for a copy.
const LINGER: Duration = Duration::from_secs(300);

/// How long those who come back wait for a mirror: without one what they missed may not be judged.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long a transaction waits until it is known whether mirrors are still true. Past this they count
/// as none.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);

/// Rows of a mirror that is held against the one before, and rows in which these may differ: past that
/// it counts as another one as a whole, as the router waits for it.
const COMPARED: usize = 1 << 17;
const DIFFERENT: usize = 1 << 14;

/// What a table was is kept for this long while there is no mirror of it.
const FORMER: Duration = Duration::from_secs(120);

/// Entries read ahead at once.
const AHEAD: usize = 64;

/// How often it is noted for the next process where the tables changed last.
const STORE_EVERY: Duration = Duration::from_secs(60);

/// What the router's task knows of lookups.
pub(in crate::router) struct Looking {
    pub(super) keeping: Keeping,
    /// What is asked of the keeper.
    wanted: Vec<Wanted>,
    /// What the rules in hand read of it.
    needed: Vec<Wanted>,
    /// Since when that is less.
    excess: Option<Instant>,
    /// Since when there is a table without a mirror that is to have one.
    awaited_since: Option<Instant>,
    in_hand: Option<InHand>,
    /// Tables that changed while no mirror of them was kept, or may have.
    unnoted: HashMap<Oid, Unnoted>,
    stored: Instant,
}

/// What a table without a mirror became in the meantime.
struct Unnoted {
    /// When it changed last.
    last: Moment,
    /// What it was when it lost its mirror, and when that was, where no row of it has changed since
    /// that the stream tells of.
    former: Option<(Mirror, Instant)>,
}

/// The transaction that is handed out.
struct InHand {
    xid: Xid,
    notes: Vec<Note>,
    unnoted: Vec<Oid>,
}

/// The next transaction waits until it is known whether mirrors are still true.
pub(super) struct Verifying {
    since: Instant,
    /// `None` once there is something to be looked at.
    wait: Option<BoxFuture<'static, ()>>,
}

impl Verifying {
    pub(super) const fn waits(&self) -> bool {
        self.wait.is_some()
    }
}

/// Returns once it may be known. Cancel safe.
pub(super) async fn looked(verifying: &mut Option<Verifying>) {
    let wait = verifying.as_mut().and_then(|one| one.wait.as_mut());
    match wait {
        Some(wait) => wait.await,
        None => pending().await,
    }
    if let Some(verifying) = verifying {
        verifying.wait = None;
    }
}

impl Unnoted {
    /// In which rows the table differs from what it was, where that is known and they are not many.
    fn differences(&self, table: Oid, now: &Mirror) -> Option<Vec<Note>> {
        let (former, _) = self.former.as_ref()?;
        if now.len().max(former.len()) > COMPARED {
            return None;
        }
        let found = now.differences(former, DIFFERENT)?.into_iter();
        let note = |(before, after)| {
            let delta = Delta::Row {
                table,
                before,
                after,
            };
            Note::new(self.last.offset, self.last.xid, delta)
        };
        Some(found.map(note).collect())
    }
}

impl Looking {
    pub(super) fn new(keeping: Keeping) -> Self {
        Self {
            keeping,
            wanted: Vec::new(),
            needed: Vec::new(),
            excess: None,
            awaited_since: None,
            in_hand: None,
            unnoted: HashMap::new(),
            stored: Instant::now(),
        }
    }

    /// The tables of which there is to be a mirror and is none yet; none where that takes long.
    pub(super) fn awaited(&mut self) -> Vec<Oid> {
        let lookups = self.keeping.lookups();
        let statuses = self.keeping.status().into_iter();
        let awaited: Vec<Oid> = statuses
            .filter(|status| !matches!(status.state, State::Refused(_)))
            .map(|status| status.table)
            .filter(|table| lookups.get(*table).is_none())
            .collect();
        if awaited.is_empty() {
            self.awaited_since = None;
            return awaited;
        }
        let since = self.awaited_since.get_or_insert_with(Instant::now);
        if since.elapsed() < PATIENCE {
            awaited
        } else {
            Vec::new()
        }
    }

    /// Whether a transaction is handed out half.
    pub(super) const fn is_amid(&self) -> bool {
        self.in_hand.is_some()
    }

    /// Takes note of what is read now; says whether the keeper is to be asked for something else.
    fn need(&mut self, needed: Vec<Wanted>) -> bool {
        self.needed = needed;
        let mut all = self.wanted.clone();
        for one in &self.needed {
            match all.iter_mut().find(|known| known.table == one.table) {
                Some(known) => {
                    // A column that has another type now is another one.
                    let anew = |column: &&Column| {
                        let mut named = one.columns.iter();
                        named.any(|other| other.name == column.name && other != *column)
                    };
                    if known.columns.iter().any(|column| anew(&column)) {
                        known.clone_from(one);
                    } else {
                        known.merge(one);
                    }
                }
                None => all.push(one.clone()),
            }
        }
        all.sort_by_key(|one| one.table);
        self.excess = if all == self.needed {
            None
        } else {
            self.excess.or_else(|| Some(Instant::now()))
        };
        let more = all != self.wanted;
        self.wanted = all;
        more
    }

    /// Whether what nobody reads any more has been kept for long enough, or keeps from being mirrored
    /// what somebody reads: a column that was renamed is there under its old name no longer.
    fn lets_go(&mut self) -> bool {
        let Some(since) = self.excess else {
            return false;
        };
        let gone = |status: Status| matches!(status.state, State::Refused(refusal) if refusal.cause == Cause::Shape);
        if since.elapsed() < LINGER && !self.keeping.status().into_iter().any(gone) {
            return false;
        }
        self.excess = None;
        self.wanted.clone_from(&self.needed);
        true
    }
}

impl Live {
    /// Has the keeper mirror what the rules in hand read.
    pub(super) fn look_into(&mut self) {
        let old = |former: &mut (Mirror, Instant)| former.1.elapsed() >= FORMER;
        for unnoted in self.looking_up.unnoted.values_mut() {
            unnoted.former.take_if(old);
        }
        if self.looking_up.is_amid() {
            return;
        }
        let needed = self.fanout.looks_into();
        let more = needed.is_some_and(|needed| self.looking_up.need(needed));
        if !more && !self.looking_up.lets_go() {
            return;
        }
        for one in &self.looking_up.wanted {
            let since = self.fanout.changed.unchanged_since(one.table, self.next);
            self.fanout.memberships.follow(one.table, since);
        }
        self.looking_up.keeping.want(&self.looking_up.wanted);
        self.lookups_changed();
    }

    /// Goes over to the mirrors that the keeper has now, where those are others.
    pub(super) fn lookups_changed(&mut self) {
        let now = self.looking_up.keeping.lookups().clone();
        self.go_over_to(&now);
    }

    /// Goes over to other mirrors as of the same place. Nothing is said to anybody, unless a table
    /// changed while there was none of it.
    fn go_over_to(&mut self, now: &Lookups) {
        // Those that are the same value have the same columns.
        let before = &self.fanout.states.after;
        let kept = |of: &Lookups, one: Oid| Some(of.get(one)?.columns().as_ptr());
        let all = now.tables().chain(before.tables());
        let mut others: Vec<Oid> = all.map(|(table, _)| table).collect();
        others.retain(|table| kept(now, *table) != kept(before, *table));
        others.sort_unstable();
        others.dedup();
        if others.is_empty() {
            return;
        }
        debug!(tables = ?others, "lookups are mirrored, or no longer");
        let moment = Moment {
            offset: Offset(self.next.0.saturating_sub(1)),
            xid: Xid(0),
            early: false,
        };
        let gone: Vec<Oid> = others
            .iter()
            .copied()
            .filter(|table| now.get(*table).is_none())
            .collect();
        let new: Vec<Oid> = others
            .iter()
            .copied()
            .filter(|table| before.get(*table).is_none())
            .collect();
        let mut left: HashMap<Oid, Mirror> = HashMap::new();
        left.extend(
            gone.iter()
                .filter_map(|one| Some((*one, before.get(*one)?.clone()))),
        );
        self.fanout.states = States::of(now);
        self.fanout.memberships.replace(now, &others);
        for table in others {
            if gone.contains(&table) {
                // What becomes of it until there is another may not even be in the log.
                if self.fanout.is_read(table) {
                    let former = left.remove(&table).map(|former| (former, Instant::now()));
                    let last = moment;
                    self.looking_up
                        .unnoted
                        .insert(table, Unnoted { last, former });
                }
            } else {
                let unnoted = self.looking_up.unnoted.remove(&table);
                let goes_on = self.looking_up.keeping.goes_on(table);
                let known = unnoted.as_ref().filter(|_| goes_on);
                let notes = known.and_then(|known| known.differences(table, now.get(table)?));
                let mut moment = unnoted.map(|unnoted| unnoted.last);
                if let Some(since) = self.looking_up.keeping.complete_from(table) {
                    self.fanout.memberships.known_from(table, since);
                    // Nor is it known whether it changed before: who did not wait for it is told.
                    let unseen = Moment {
                        offset: Offset(since.0.saturating_sub(1)),
                        xid: Xid(u64::MAX),
                        early: false,
                    };
                    moment = moment.or_else(|| new.contains(&table).then_some(unseen));
                }
                match (moment, notes) {
                    (Some(moment), Some(notes)) => self.fanout.tell_concerned(&notes, moment),
                    (Some(moment), None) => self.fanout.tell_readers(&[table], moment),
                    (None, _) => {}
                }
            }
        }
    }

    /// Has those wait a little longer who come back to tables whose rules read what is not mirrored
    /// yet; returns the others.
    pub(super) fn wait_for_mirrors(&mut self, members: Vec<Returning>) -> Vec<Returning> {
        let awaited = self.looking_up.awaited();
        if awaited.is_empty() && !self.awaits_old_rows() {
            return members;
        }
        let mut others = Vec::with_capacity(members.len());
        for member in members {
            let whose = (member.session, member.channel);
            let (principal, wanted) = (&member.principal, &member.wanted);
            let resolved = self
                .fanout
                .resolve(whose, principal, wanted, &member.readings);
            let tables = resolved.map(|resolved| resolved.tables).unwrap_or_default();
            let mut tables = tables.iter().map(|(table, _)| *table);
            if !self.awaited_old_rows(tables.clone()).is_empty()
                || self
                    .fanout
                    .reads_one_of(&mut tables, &principal.role, &awaited)
            {
                self.wait_again(member);
            } else {
                others.push(member);
            }
        }
        others
    }

    /// Whether mirrors are known to be true where an entry's transaction is judged. What may have
    /// blinded them without a word in the stream is found in the catalog: where that has not been looked
    /// at since, the entry waits for it.
    pub(super) fn are_lookups_verified(&mut self, entry: &Entry) -> bool {
        let xid = entry.batch.xid;
        let amid = self.looking_up.in_hand.as_ref();
        if amid.is_some_and(|amid| amid.xid == xid) {
            return true;
        }
        let ddl = self.fanout.changes_rules(xid);
        let mut looking = Vec::new();
        let lookups = &mut self.looking_up.keeping;
        if !lookups.is_verified(xid, ddl) {
            looking.push(lookups.looked().boxed());
        }
        // What is kept of a row may be of a column that another took the name of. Of rows that a
        // TRUNCATE took no change tells what they were.
        let anew = ddl || self.fanout.describes_anew(entry);
        let old_rows = self.old_rows.as_mut().filter(|_| anew);
        if let Some(old_rows) = old_rows.map(Remembering::keeping)
            && !old_rows.is_verified(xid, anew)
        {
            looking.push(old_rows.looked().boxed());
        }
        if !looking.is_empty() {
            let since = self
                .verifying
                .as_ref()
                .map_or_else(Instant::now, |one| one.since);
            let left = LOOK_PATIENCE.saturating_sub(since.elapsed());
            if !left.is_zero() {
                let wait = async move {
                    // Where it takes too long, that is found above.
                    let _late = timeout(left, select_all(looking)).await;
                };
                if anew && !ddl {
                    // The catalog behind the description is taken over with it, as where it waits for it.
                    self.held.get_or_insert(Held { xid, wait: None });
                }
                self.verifying = Some(Verifying {
                    since,
                    wait: Some(wait.boxed()),
                });
                return false;
            }
            self.looking_up.keeping.distrust(xid, ddl);
            self.lookups_changed();
            if let Some(old_rows) = self.old_rows.as_mut().filter(|_| anew) {
                old_rows.keeping().distrust(xid, anew);
                self.old_rows_changed();
            }
        }
        self.verifying = None;
        true
    }

    /// Applies to the lookups what a transaction does to them, of which `entry` is the first to be
    /// handed out and `next` are those behind it, as far as they have been read.
    pub(super) async fn look_ahead(
        &mut self,
        entry: &Arc<Entry>,
        next: &[Arc<Entry>],
    ) -> Result<(), LogError> {
        let xid = entry.batch.xid;
        let amid = self.looking_up.in_hand.as_ref();
        if amid.is_some_and(|amid| amid.xid == xid) {
            return Ok(());
        }
        let memberships = Arc::clone(&self.fanout.memberships);
        let mut touched = Vec::new();
        let mut last = Arc::clone(entry);
        let mut ahead = next.iter();
        let mut read = Vec::new().into_iter();
        let mut writes = BTreeSet::new();
        let applied = loop {
            let mut run = None;
            for change in &last.batch.changes {
                // A transaction's rows come in runs.
                let oid = change.relation.oid;
                if run.replace(oid) != Some(oid) {
                    writes.insert(oid);
                }
            }
            memberships.touches(&last, &mut touched);
            if let Some(applied) = self.looking_up.keeping.entry(&last) {
                break applied;
            }
            last = match ahead.next().cloned().or_else(|| read.next()) {
                Some(entry) => entry,
                None => {
                    read = self.fanout.log.read(last.end(), AHEAD).await?.into_iter();
                    // The log gives whole transactions.
                    read.next().ok_or(LogError::Stopped)?
                }
            };
        };
        self.fanout.writes = Some((xid, writes));
        // A copy may have been taken over where the transaction begins.
        self.go_over_to(&applied.before);
        let place = Offset(last.end().0.saturating_sub(1));
        let notes: Vec<Note> = applied
            .deltas
            .into_iter()
            .map(|delta| Note::new(place, xid, delta))
            .collect();
        let after = self.looking_up.keeping.lookups();
        touched.retain(|table| {
            let all = |note: &Note| note.table == *table && matches!(note.row, Change::All);
            after.get(*table).is_none() && !notes.iter().any(all)
        });
        if !notes.is_empty() {
            self.fanout.states.after = after.clone();
            self.fanout.states.changing = true;
        }
        self.looking_up.in_hand = Some(InHand {
            xid,
            notes,
            unnoted: touched,
        });
        Ok(())
    }

    /// Tells those whose audience the transaction has changed of which `entry` is the last that was
    /// handed out, if it is the last.
    pub(super) fn tell_of_lookups(&mut self, entry: &Entry) {
        let Some(in_hand) = self.looking_up.in_hand.as_ref() else {
            return;
        };
        if !entry.batch.last {
            return;
        }
        let moment = Moment {
            offset: Offset(entry.end().0.saturating_sub(1)),
            xid: entry.batch.xid,
            early: entry.batch.commit_lsn <= self.started_at,
        };
        self.fanout.tell_concerned(&in_hand.notes, moment);
        for table in &in_hand.unnoted {
            if self.fanout.is_read(*table) {
                let former = None;
                let last = moment;
                self.looking_up
                    .unnoted
                    .insert(*table, Unnoted { last, former });
            }
        }
    }

    /// An entry lies behind the router: with the last of a transaction others may judge by what that
    /// has left.
    pub(super) fn pass_lookups(&mut self, entry: &Entry) {
        if !entry.batch.last {
            return;
        }
        let place = entry.end();
        match self.looking_up.in_hand.take() {
            Some(InHand { notes, unnoted, .. }) if !notes.is_empty() || !unnoted.is_empty() => {
                let after = self.fanout.states.after.clone();
                let memberships = &self.fanout.memberships;
                memberships.advance(place, &after, notes, &unnoted);
                self.fanout.states = States::of(&after);
            }
            _ => self.fanout.memberships.pass(place),
        }
    }

    /// What was kept is of another history, or has a gap before this place.
    pub(super) fn lose_lookups(&mut self, place: Offset) {
        self.verifying = None;
        self.looking_up.in_hand = None;
        self.looking_up.unnoted.clear();
        self.looking_up.keeping.lost(place);
        self.fanout.memberships.begin(place);
        self.fanout.states = States::default();
    }

    /// Notes for the next process what this one knows, where that has become old.
    pub(super) fn store_lookups(&mut self, at_once: bool) {
        if at_once || self.looking_up.stored.elapsed() >= STORE_EVERY {
            self.looking_up.stored = Instant::now();
            self.fanout.memberships.store(self.fanout.epoch);
        }
    }

    /// Takes up what the process before knew: what has come into the log since is looked through.
    pub(super) async fn restore_lookups(&mut self) {
        let memberships = Arc::clone(&self.fanout.memberships);
        let Some(mut from) = memberships.restore(self.fanout.epoch, self.next) else {
            return;
        };
        while from < self.next {
            let entries = match self.fanout.log.read(from, AHEAD).await {
                Ok(entries) if !entries.is_empty() => entries,
                Ok(_) | Err(_) => return memberships.begin(self.next),
            };
            for entry in &entries {
                let mut touched = Vec::new();
                if entry.end() <= self.next && memberships.touches(entry, &mut touched) {
                    memberships.changed(&touched, entry.end());
                }
                from = entry.end();
            }
        }
    }
}

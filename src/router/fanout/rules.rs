//! Which catalog is in force where in the stream.
//!
//! The catalog is read at *now*, the stream is in the past. Where the stream tells that a transaction
//! changes the catalog ([`Kind::Rules`](crate::change::Kind::Rules)), the one that was read after it
//! comes into force with that transaction; what was read earlier by the clock waits for that. What
//! the stream does not tell of comes into force when it is read, and rows of before that are hidden.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Doubt, Fanout, Watched};
use crate::change::Change;
use crate::log::Entry;
use crate::lookup::Wanted;
use crate::metrics::HiddenReason;
use crate::pg::{Lsn, Oid, Xid};
use crate::policy::access::{Access, Rules};
use crate::policy::catalog::{Catalog, Table};
use crate::policy::closure::functions;
use crate::policy::reader::{Mark, Reading};
use crate::router::group::{Group, Moment};
use crate::router::layout::Layout;
use crate::router::{ChannelId, Resync, SessionId};

/// Catalogs that wait for their places; of more the oldest are left out.
const MAX_COMING: usize = 64;

/// Entries that are read ahead at once.
const ENTRIES: usize = 64;

/// How often they are, to find whether rules change once more; and how long it is waited for the
/// stream to come to where the catalog was read. That may be in WAL that no commit has flushed, which
/// the WAL writer does within three of its delays (600 ms, as PostgreSQL is set by default).
const MOST_AHEAD: usize = 64;
const AHEAD_PATIENCE: Duration = Duration::from_secs(1);
const AHEAD_LOOK: Duration = Duration::from_millis(2);

/// The commit record alone of a transaction that changes a catalog is longer, in bytes: it lists what
/// others are to read anew. That of who is running, which PostgreSQL writes by itself, is not.
const SMALLER_THAN_A_CHANGE: u64 = 64;

/// What is known of the catalog in hand, and of those that are to follow it.
#[derive(Debug, Clone)]
pub(super) struct InForce {
    /// What it is not older than.
    mark: Arc<Mark>,
    /// It is that of its time for all that commits from here on, until the stream tells of another.
    exact_from: Lsn,
    /// What was read since, and is still to be told by the stream.
    coming: VecDeque<Reading>,
    /// The transaction in hand.
    transaction: Option<Xid>,
    /// Whether that changes rules, until they are in force.
    changes_rules: bool,
    /// Where it commits.
    reached: Lsn,
}

/// Where in the stream a catalog begins to hold.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// Somewhere before it was read; for one table where it is described, unless it was changed again since.
    Unknown(Option<Described>),
    /// With this transaction, which commits there; `exact` where the catalog holds nothing
    /// that another has done which commits later.
    Told { xid: Xid, commit: Lsn, exact: bool },
    /// Before what comes now.
    Passed,
}

/// A table that the stream describes anew, for a row of an entry.
#[derive(Debug, Clone, Copy)]
pub(in crate::router) struct Described {
    table: Oid,
    /// Where the entry's transaction ends, as far as that is known.
    end: Lsn,
}

impl Described {
    pub(super) const fn new(table: Oid, entry: &Entry) -> Self {
        let end = entry.batch.end_lsn;
        Self { table, end }
    }

    /// Whether no other transaction can have changed rules between the row and where a catalog was read.
    const fn is_last_before(self, read_at: Lsn) -> bool {
        read_at.0.saturating_sub(self.end.0) <= SMALLER_THAN_A_CHANGE
    }
}

/// A table whose rules have changed, nobody knows how often, or while nobody looked. That it is described
/// anew says that something has; the numbers of transactions, which are given when they begin, do not tell
/// in which order they committed. Rows that commit up to there are hidden from those whom it may concern.
#[derive(Debug)]
pub(super) struct Unsure {
    until: Lsn,
    /// The roles that it does not.
    not: BTreeSet<Arc<str>>,
}

impl InForce {
    pub(super) fn new(reading: &Reading) -> Self {
        Self {
            mark: Arc::clone(&reading.mark),
            exact_from: reading.catalog.read_at,
            coming: VecDeque::new(),
            transaction: None,
            changes_rules: false,
            reached: Lsn(0),
        }
    }
}

/// Whether the catalog says of a table what was written later than by `xid`, which commits.
fn is_later(catalog: &Catalog, table: &Table, xid: Xid, truncated: Option<Xid>) -> bool {
    let mut functions = functions(catalog, table).into_iter();
    let replaced = functions.any(|function| {
        let writer = function.version.parse();
        writer.is_ok_and(|writer| xid.widen(writer) > xid)
    });
    replaced || table.written_after(xid, truncated)
}

impl Fanout {
    /// Looks whether the transaction that an entry is of changes rules: its rows fall under what it
    /// leaves behind, also those that it wrote before.
    pub(in crate::router) async fn look_ahead(&mut self, entry: &Entry) {
        let xid = entry.batch.xid;
        if self.in_force.transaction == Some(xid) {
            return;
        }
        let mut found = entry.batch.changes_rules();
        let mut last = found || entry.batch.last || !self.catalog.marked;
        let mut next = entry.end();
        while !last {
            // Whoever follows the log learns what is wrong with it.
            let Ok(entries) = self.log.read(next, ENTRIES).await else {
                break;
            };
            last = entries.is_empty();
            for entry in entries {
                if last || entry.batch.xid != xid {
                    last = true;
                    break;
                }
                found |= entry.batch.changes_rules();
                last = found || entry.batch.last;
                next = entry.end();
            }
        }
        self.in_force.transaction = Some(xid);
        self.in_force.changes_rules = found;
        self.in_force.reached = entry.batch.commit_lsn;
    }

    /// Whether a transaction that was looked through changes rules, until they are in force.
    pub(in crate::router) fn changes_rules(&self, xid: Xid) -> bool {
        self.in_force.changes_rules && self.in_force.transaction == Some(xid)
    }

    /// Whether the transaction in hand has changed rules that cannot be known yet.
    pub(super) fn awaits_rules(&self, xid: Xid) -> bool {
        self.changes_rules(xid) && !self.in_force.mark.shows(xid) && !self.watch.shows(xid)
    }

    /// Whether a newer catalog is known than the one in force.
    pub(in crate::router) fn is_behind(&self) -> bool {
        !self.in_force.coming.is_empty()
    }

    /// Goes over to the newest catalog, unless the stream is to tell where that begins to hold; says
    /// whether it is in force. `described` is the table whose description in the stream made us
    /// look: for its rows the change lies exactly here. For others its place is not known, and rows
    /// that may lie on either side are hidden.
    pub(in crate::router) fn adopt(&mut self, described: Option<Described>) -> bool {
        let newest = self.watch.take();
        if Arc::ptr_eq(&newest.catalog, &self.catalog) {
            self.in_force.mark = newest.mark;
            self.in_force.coming.clear();
            return true;
        }
        if self.catalog.marked && newest.catalog.era == self.catalog.era {
            let coming = &mut self.in_force.coming;
            let known = coming.back();
            if !known.is_some_and(|known| Arc::ptr_eq(&known.catalog, &newest.catalog)) {
                if coming.len() >= MAX_COMING {
                    coming.pop_front();
                }
                coming.push_back(newest);
            }
            return false;
        }
        self.go_over(newest, Place::Unknown(described));
        true
    }

    /// As [`Fanout::adopt`], where the stream has told of nothing by which a catalog that waits for that
    /// can differ: what its event trigger is not told of.
    pub(super) async fn adopt_untold(&mut self, entry: &Entry, described: Described) {
        let Some(newest) = self.in_force.coming.back().cloned() else {
            return;
        };
        if !self.is_told_of_more(entry, newest.catalog.read_at).await {
            self.go_over(newest, Place::Unknown(Some(described)));
        }
    }

    /// As [`Fanout::adopt`], where the stream takes too long.
    pub(in crate::router) fn adopt_anyway(&mut self) {
        let newest = self.watch.take();
        if !Arc::ptr_eq(&newest.catalog, &self.catalog) {
            self.go_over(newest, Place::Unknown(None));
        }
    }

    /// Everything that committed before `passed` has been handed out: also what something changed
    /// of which the stream should have told and did not.
    pub(in crate::router) fn has_passed(&mut self, passed: Lsn) {
        let is_passed = |first: &mut Reading| first.catalog.read_at <= passed;
        while let Some(reading) = self.in_force.coming.pop_front_if(is_passed) {
            let rest = std::mem::take(&mut self.in_force.coming);
            self.go_over(reading, Place::Passed);
            self.in_force.coming = rest;
        }
    }

    /// Puts in force what the transaction of an entry has changed, before its first row.
    pub(super) async fn begin(&mut self, entry: &Entry, early: bool) {
        if !std::mem::take(&mut self.in_force.changes_rules) {
            return;
        }
        let (xid, commit) = (entry.batch.xid, entry.batch.commit_lsn);
        self.moment = Moment {
            offset: entry.first,
            xid,
            early,
        };
        self.behind = self.behind.max(entry.first);
        self.adopt(None);
        if self.in_force.mark.shows(xid) {
            return self.end_doubts(entry).await;
        }
        let mut found = None;
        while let Some(reading) = self.in_force.coming.pop_front() {
            if reading.mark.shows(xid) {
                found = Some(reading);
                break;
            }
        }
        let rest = std::mem::take(&mut self.in_force.coming);
        let reading = found.unwrap_or_else(|| self.watch.reading());
        if Arc::ptr_eq(&reading.catalog, &self.catalog) {
            self.in_force.mark = reading.mark;
        } else {
            let read_at = reading.catalog.read_at;
            let exact = reading.catalog.settled && !self.is_told_of_more(entry, read_at).await;
            let place = Place::Told { xid, commit, exact };
            self.go_over(reading, place);
        }
        self.in_force.coming = rest;
    }

    /// Where the catalog in hand came into force too early, it may be that of its time by now.
    async fn end_doubts(&mut self, entry: &Entry) {
        let told = |watched: &Watched| watched.doubt.is_some_and(|doubt| doubt.told);
        let until = self.catalog.read_at;
        if self.tables.values().any(told) && !self.is_told_of_more(entry, until).await {
            self.in_force.exact_from = entry.batch.commit_lsn;
            for watched in self.tables.values_mut().filter(|watched| told(watched)) {
                watched.doubt = None;
            }
        }
    }

    /// Whether yet another transaction changes rules behind that of an entry, and commits up to there;
    /// also where that is not known in time.
    async fn is_told_of_more(&self, entry: &Entry, until: Lsn) -> bool {
        if self.replay.is_some() {
            return true;
        }
        let (mut next, mut left) = (entry.end(), MOST_AHEAD);
        let deadline = Instant::now() + AHEAD_PATIENCE;
        loop {
            let appended = self.log.appended();
            let Ok(entries) = self.log.read(next, ENTRIES).await else {
                return true;
            };
            let at_end = entries.is_empty();
            for other in entries {
                if other.batch.commit_lsn > until {
                    return false;
                }
                if other.batch.xid != entry.batch.xid && other.batch.changes_rules() {
                    return true;
                }
                next = other.end();
            }
            if at_end && appended >= until {
                return false;
            }
            left -= usize::from(!at_end);
            if left == 0 || Instant::now() >= deadline {
                return true;
            }
            if at_end {
                tokio::time::sleep(AHEAD_LOOK).await;
            }
        }
    }

    fn go_over(&mut self, reading: Reading, place: Place) {
        let Reading { catalog, mark, .. } = reading;
        let exact_from = match place {
            Place::Told {
                commit,
                exact: true,
                ..
            } => commit,
            Place::Told { .. } | Place::Unknown(_) | Place::Passed => catalog.read_at,
        };
        self.in_force = InForce {
            mark,
            exact_from,
            coming: VecDeque::new(),
            ..self.in_force
        };
        let since = match place {
            // Its own rows as well.
            Place::Told {
                commit,
                exact: true,
                ..
            } => Lsn(commit.0.saturating_sub(1)),
            _ => catalog.read_at,
        };
        self.history.observe(&catalog, since);
        let told = matches!(place, Place::Told { .. });
        let elsewhere = self.catalog.elsewhere.is_anew_in(&catalog.elsewhere);
        let anew = match place {
            Place::Told { exact: false, .. } => self.written_anew(&catalog),
            // Where the stream tells of each change, none of these is one that nobody saw.
            Place::Unknown(_) if !catalog.marked => self.written_anew(&catalog),
            _ => BTreeSet::new(),
        };
        let written = (elsewhere, &anew);
        if self.replay.is_none() {
            self.note_gaps(&catalog, place, written);
            self.note_lost_leaves(&catalog);
        }
        let mut unsure = self.unsure_by(&catalog, place, written);
        self.access.clear();
        self.rules_changed = true;
        // Types and operators may be others now.
        self.readings.clear();
        let mut changed = Vec::new();
        let mut showing_else = Vec::new();
        let moment = told.then_some(self.moment);
        let mut told = BTreeSet::new();
        for (oid, watched) in &mut self.tables {
            let Some(table) = catalog.tables.get(oid).filter(|table| table.published) else {
                changed.push(*oid);
                continue;
            };
            let mut same = true;
            let rewritten = watched.table.rewritten_columns(table);
            for (role, group) in &watched.groups {
                let access = Access::new(&catalog, table, role);
                same &= access.fingerprint == group.access.fingerprint;
                // What keeps a table that was mirrored from being followed may show other rows of it, as
                // a table that inherits from it, and nobody will hold the one against the other.
                let unfollowed = |one: &Wanted| {
                    let table = catalog.tables.get(&one.table);
                    table.is_some_and(|table| table.unfollowed.is_some())
                };
                let lost = group.access.lookups.iter().any(unfollowed);
                let mut reads = access.reads.iter();
                let reads_else = reads.any(|column| rewritten.contains(&column.as_str()));
                if lost || reads_else || !access.shows_as(&group.access) {
                    showing_else.push((*oid, Arc::clone(role)));
                } else if let Some(unsure) = unsure.get_mut(oid) {
                    let before = self.catalog.tables.get(oid);
                    let judges = matches!(access.rules, Rules::Judged { .. });
                    let was_else = elsewhere && judges
                        || before.is_none_or(|before| {
                            let before = (&*self.catalog, &**before);
                            access.was_else_between(before, (&catalog, table), role)
                        });
                    if !was_else {
                        unsure.not.insert(Arc::clone(role));
                    }
                }
                self.access
                    .insert((*oid, Arc::clone(role)), Arc::new(access));
            }
            let members = watched.groups.values().flat_map(Group::members);
            let unheard = unheard(&watched.table, table);
            let concerned = members.filter(|member| member.asks_for_one_of(unheard));
            let concerned = concerned.filter(|one| moment.is_none_or(|at| one.wants(at)));
            told.extend(concerned.map(|one| (one.outbox.session(), one.channel)));
            if carries_less(&watched.table, table) {
                // Rows that are gone were promised to them; when they join again they are told what is
                // now.
                let groups = watched.groups.values();
                let relying = groups.flat_map(|group| group.relying(table, None));
                let relying = relying.filter(|one| moment.is_none_or(|at| one.wants(at)));
                told.extend(relying.map(|one| (one.outbox.session(), one.channel)));
            }
            watched.table = Arc::clone(table);
            watched.shapes.clear();
            let described = watched.described.as_ref();
            watched.layout =
                described.and_then(|relation| Layout::of(relation, table).map(Arc::new));
            if !same {
                changed.push(*oid);
            }
        }
        self.catalog = Arc::clone(&catalog);
        let reached = self.in_force.reached;
        self.unsure.retain(|_, unsure| unsure.until >= reached);
        for (oid, mut unsure) in unsure {
            if let Some(before) = self.unsure.get(&oid) {
                unsure.not.retain(|role| before.not.contains(role));
            }
            self.unsure.insert(oid, unsure);
        }
        if self.replay.is_some() {
            // It changed behind all that is replayed, or at least not before it.
            for oid in changed {
                self.expel_watchers(oid, None, Resync::AccessChanged);
            }
            for (session, channel) in self.members(&showing_else, None) {
                self.expel(session, channel, Resync::AccessChanged);
            }
            return;
        }
        self.resubscribe(&changed);
        told.extend(self.members(&showing_else, moment));
        for (session, channel) in told {
            self.expel(session, channel, Resync::AccessChanged);
        }
        for (oid, watched) in &mut self.tables {
            let changed = changed.contains(oid);
            let (in_doubt, version) = match place {
                // Some of it may be of a time before the others, and of none.
                _ if !catalog.settled => (true, u64::MAX),
                Place::Unknown(described) => {
                    let described = described.is_some_and(|described| described.table == *oid);
                    (changed && !described, watched.verified)
                }
                // Rows between it and yet another change fell under rules that nobody knows any more.
                Place::Told { xid, exact, .. } => {
                    let truncated = self.changed.emptied(*oid).map(|(by, _)| by);
                    let later = is_later(&catalog, &watched.table, xid, truncated);
                    let later = later || elsewhere || anew.contains(oid);
                    (!exact && (changed || later), u64::MAX)
                }
                Place::Passed => (false, 0),
            };
            if in_doubt {
                let doubt = Doubt {
                    until: catalog.read_at,
                    version,
                    told: matches!(place, Place::Told { .. }),
                };
                let before = watched.doubt.filter(|doubt| doubt.until >= reached);
                watched.doubt = Some(doubt.beside(before));
            } else if let (Place::Told { exact: true, .. } | Place::Passed, Some(known)) =
                (place, watched.doubt)
                && known.told
            {
                watched.doubt = None;
            }
        }
    }

    /// What committed before this process began to look, which the slot still has, fell under rules that
    /// it has not seen where they changed since, or may have.
    pub(in crate::router) fn begins_unsure(&mut self) {
        let since = self.history.since().into_iter();
        let unsure = since.map(|(oid, until)| {
            let not = BTreeSet::new();
            (oid, Unsure { until, not })
        });
        self.unsure = unsure.collect();
    }

    /// The published tables whose rules have changed, nobody knows how often, before a catalog was read.
    /// What was written is as of [`Fanout::note_gaps`].
    fn unsure_by(
        &self,
        catalog: &Catalog,
        place: Place,
        (elsewhere, anew): (bool, &BTreeSet<Oid>),
    ) -> HashMap<Oid, Unsure> {
        let Place::Unknown(described) = place else {
            return HashMap::new();
        };
        let is_last = described.is_some_and(|described| described.is_last_before(catalog.read_at));
        if is_last || self.replay.is_some() {
            return HashMap::new();
        }
        let known = self.catalog.fingerprints();
        let unsure = catalog.fingerprints().iter().filter_map(|(oid, now)| {
            let (before, table) = (self.catalog.tables.get(oid)?, catalog.tables.get(oid)?);
            let known = known.get(oid).map(|known| &known.roles);
            let same = before.version == table.version && known == Some(&now.roles);
            let same = same && !anew.contains(oid) && !elsewhere;
            let unsure = Unsure {
                until: catalog.read_at,
                not: BTreeSet::new(),
            };
            (!same).then_some((*oid, unsure))
        });
        unsure.collect()
    }

    /// The published tables of which what decides was written and says the same, though for a while it may have
    /// said something else.
    fn written_anew(&self, catalog: &Catalog) -> BTreeSet<Oid> {
        let known = self.catalog.fingerprints();
        let anew = catalog.fingerprints().iter().filter(|(oid, now)| {
            let known = known.get(oid);
            known.is_some_and(|known| now.was_else_since(known, **oid))
        });
        anew.map(|(oid, _)| *oid).collect()
    }

    /// Hides a row that commits there from those of whom it is not known whether they may see it.
    pub(super) fn hide_unsure(&mut self, commit: Lsn, change: &Change) {
        let oid = change.relation.oid;
        let Some(unsure) = self.unsure.get(&oid) else {
            return;
        };
        if commit > unsure.until || self.is_of_its_time(commit) {
            self.unsure.remove(&oid);
            return;
        }
        let groups = self.tables.get(&oid).into_iter();
        let roles = groups.flat_map(|watched| watched.groups.keys());
        let roles = roles.filter(|role| !unsure.not.contains(*role));
        let roles: Vec<(Oid, Arc<str>)> = roles.map(|role| (oid, Arc::clone(role))).collect();
        let members = self.members(&roles, Some(self.moment));
        let clients = members.len() as u64;
        if clients > 0 {
            self.metrics.hidden(HiddenReason::CatalogChanged, clients);
            self.note_hidden(change, "", HiddenReason::CatalogChanged, clients);
        }
        for (session, channel) in members {
            self.expel(session, channel, Resync::Undecided);
        }
    }

    /// Notes whose rules were others for a while than this catalog says, and than the last one said: who
    /// comes back is not to be judged by them.
    /// `elsewhere` is whether something that counts for many tables was written, `anew` of which tables what
    /// decides was.
    fn note_gaps(
        &self,
        catalog: &Catalog,
        place: Place,
        (elsewhere, anew): (bool, &BTreeSet<Oid>),
    ) {
        let told = match place {
            Place::Told { exact: true, .. } => return,
            Place::Told { xid, .. } => Some(xid),
            Place::Unknown(_) | Place::Passed if catalog.settled && !elsewhere => return,
            Place::Unknown(_) | Place::Passed => None,
        };
        let unknown = catalog.tables.values().filter(|table| {
            let truncated = self.changed.emptied(table.oid).map(|(by, _)| by);
            let later = told.is_some_and(|xid| is_later(catalog, table, xid, truncated));
            let later = later || elsewhere || anew.contains(&table.oid);
            table.published && (!catalog.settled || later)
        });
        let unknown: Vec<Oid> = unknown.map(|table| table.oid).collect();
        self.history.observe_gap(catalog, &unknown);
    }

    /// Whether the catalog in hand is that of the time of what commits there, as the stream tells of
    /// every other.
    pub(super) fn is_of_its_time(&self, commit: Lsn) -> bool {
        self.catalog.marked && commit >= self.in_force.exact_from
    }

    /// The channels of these groups that want what happened at a moment.
    fn members(
        &self,
        groups: &[(Oid, Arc<str>)],
        at: Option<Moment>,
    ) -> BTreeSet<(SessionId, ChannelId)> {
        let groups = groups.iter().filter_map(|(oid, role)| {
            let watched = self.tables.get(oid)?;
            watched.groups.get(role)
        });
        groups
            .flat_map(|group| group.members())
            .filter(|member| at.is_none_or(|moment| member.wants(moment)))
            .map(|member| (member.outbox.session(), member.channel))
            .collect()
    }
}

/// Whether old rows of a table carry less than they did.
fn carries_less(before: &Table, now: &Table) -> bool {
    match (&before.identity, &now.identity) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(before), Some(now)) => before.iter().any(|column| !now.contains(column)),
    }
}

/// Of which operations on a table some may have gone unheard, as it is published otherwise than it was:
/// INSERT, UPDATE, DELETE. Of TRUNCATE nothing can be said: where it is not published, doctor warns of it.
fn unheard(before: &Table, now: &Table) -> [bool; 3] {
    match (&before.publishing, &now.publishing) {
        (Some(before), Some(now)) if before.entries == now.entries => {
            // The same as it was may have been another in between.
            let between = before.said == now.said && before.version != now.version;
            let [insert, update, delete] = before.operations;
            let [now_insert, now_update, now_delete] = now.operations;
            [
                between || insert != now_insert,
                between || update != now_update,
                between || delete != now_delete,
            ]
        }
        // Another publication is another history of the log, which everybody is told of.
        (Some(before), Some(now)) if before.publication != now.publication => [false; 3],
        (None, None) => [false; 3],
        _ => [true; 3],
    }
}

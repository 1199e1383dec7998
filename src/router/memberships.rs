//! The tables that policies look into: what they were around the transaction in hand, and what of
//! them changed where, so that those whose audience depended on it can be told.
//!
//! What was missed is judged by the newest state, which is right only for those whose audience
//! nothing has changed since: for others what happened in between cannot be told any more.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::group::{Begin, Binding, Moment};
use crate::auth::Principal;
use crate::log::sealed::{self, Content};
use crate::log::{Entry, Epoch, Offset};
use crate::lookup::keep::Delta;
use crate::lookup::{Looked, Lookups};
use crate::pg::{Oid, Xid};
use crate::policy::access::{Access, Rules};
use crate::policy::predicate::{Affected, Predicate, Probe};

/// Rows that changed and are remembered; of what lies before the oldest it is not known whom it
/// concerned.
const MAX_NOTES: usize = 1 << 16;

/// The lookups on both sides of the transaction in hand. Rows that it made are judged by what it
/// left, rows that it took away by what it found.
#[derive(Debug, Default, Clone)]
pub(super) struct States {
    pub(super) before: Lookups,
    pub(super) after: Lookups,
    /// Whether the transaction in hand makes the one of the other.
    pub(super) changing: bool,
}

impl States {
    pub(super) fn of(lookups: &Lookups) -> Self {
        Self {
            before: lookups.clone(),
            after: lookups.clone(),
            changing: false,
        }
    }
}

/// A row of a lookup that changed.
#[derive(Clone)]
pub(super) struct Note {
    /// The last change of its transaction: whoever begins behind it has been told.
    pub(super) place: Offset,
    pub(super) xid: Xid,
    pub(super) table: Oid,
    pub(super) row: Change,
}

impl Note {
    pub(super) fn new(place: Offset, xid: Xid, delta: Delta) -> Self {
        let table = delta.table();
        let row = match delta {
            Delta::Row { before, after, .. } => Change::Row(before, after),
            Delta::All { .. } => Change::All,
        };
        Self {
            place,
            xid,
            table,
            row,
        }
    }

    pub(super) const fn moment(&self) -> Moment {
        Moment {
            offset: self.place,
            xid: self.xid,
            early: false,
        }
    }
}

/// What became of it.
#[derive(Clone)]
pub(super) enum Change {
    /// Before and after, in the order of the mirror's columns.
    Row(Option<Looked>, Option<Looked>),
    /// Any row may have changed.
    All,
}

/// Shared by all who judge. The router moves it on, transaction by transaction.
#[derive(Debug)]
pub(super) struct Memberships {
    inner: Mutex<Inner>,
    file: Option<PathBuf>,
}

#[derive(Default)]
struct Inner {
    /// As of `place`.
    lookups: Lookups,
    /// Everything before has been handed out, whole transactions.
    place: Offset,
    /// From where on the notes have every change of a table, or it did not change.
    known: HashMap<Oid, Offset>,
    /// In the order of the log.
    notes: VecDeque<Note>,
}

/// What stands in the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    epoch: u64,
    place: u64,
    /// Behind the last change of each table up to there.
    tables: HashMap<u32, u64>,
}

impl Memberships {
    /// Nothing is known yet. `file` is where it is kept beside a log that outlives the process.
    pub(super) fn open(file: Option<PathBuf>) -> Self {
        Self {
            inner: Mutex::default(),
            file,
        }
    }

    /// Takes up what the process before noted of the log's history `epoch`, which goes on at
    /// `place`. Where it noted less the rest has to be read, from the place that is returned on.
    pub(super) fn restore(&self, epoch: Epoch, place: Offset) -> Option<Offset> {
        let stored = self.file.as_deref().and_then(read);
        let mut inner = self.lock();
        inner.place = place;
        let stored = stored.filter(|stored| stored.epoch == epoch.0 && stored.place <= place.0)?;
        let tables = stored.tables.iter();
        inner.known = tables
            .map(|(table, from)| (Oid(*table), Offset(*from)))
            .collect();
        (stored.place < place.0 && !inner.known.is_empty()).then_some(Offset(stored.place))
    }

    /// Notes where the tables changed last, for the next process. Blocks on the disk.
    pub(super) fn store(&self, epoch: Epoch) {
        let Some(file) = &self.file else {
            return;
        };
        let stored = {
            let inner = self.lock();
            if inner.known.is_empty() {
                return;
            }
            let mut tables: HashMap<u32, u64> = inner
                .known
                .iter()
                .map(|(table, from)| (table.0, from.0))
                .collect();
            for note in &inner.notes {
                tables.insert(note.table.0, note.place.0 + 1);
            }
            Stored {
                epoch: epoch.0,
                place: inner.place.0,
                tables,
            }
        };
        // Where an older one stays the next process reads more of the log.
        let replaced = serde_json::to_string(&stored)
            .map_err(std::io::Error::from)
            .and_then(|text| sealed::replace(file, &text));
        if let Err(error) = replaced {
            warn!(file = %file.display(), %error, "cannot note where lookups changed last");
        }
    }

    /// Follows a table from now on, which has not changed `since` then, unless it is followed already.
    pub(super) fn follow(&self, table: Oid, since: Offset) {
        self.lock().known.entry(table).or_insert(since);
    }

    /// Whether an entry changes tables that are followed; those are added to the others.
    pub(super) fn touches(&self, entry: &Entry, found: &mut Vec<Oid>) -> bool {
        let inner = self.lock();
        if inner.known.is_empty() {
            return false;
        }
        let (mut last, mut any) = (None, false);
        for change in &entry.batch.changes {
            let table = change.relation.oid;
            // Rows come in runs.
            if last != Some(table) {
                last = Some(table);
                if inner.known.contains_key(&table) {
                    any = true;
                    if !found.contains(&table) {
                        found.push(table);
                    }
                }
            }
        }
        any
    }

    /// Tables changed before this place, in what nobody handed out.
    pub(super) fn changed(&self, tables: &[Oid], before: Offset) {
        let mut inner = self.lock();
        for table in tables {
            inner.known.insert(*table, before);
        }
    }

    /// How the lookups stand, and the place of which that is.
    pub(super) fn now(&self) -> (Lookups, Offset) {
        let inner = self.lock();
        (inner.lookups.clone(), inner.place)
    }

    /// A transaction that changes no lookup has been handed out up to its end.
    pub(super) fn pass(&self, place: Offset) {
        self.lock().place = place;
    }

    /// A transaction has been handed out up to its end; of the `unnoted` tables it is not known
    /// which rows it changed.
    pub(super) fn advance(
        &self,
        place: Offset,
        lookups: &Lookups,
        notes: Vec<Note>,
        unnoted: &[Oid],
    ) {
        let mut inner = self.lock();
        inner.place = place;
        inner.lookups = lookups.clone();
        inner.notes.extend(notes);
        for table in unnoted {
            inner.known.insert(*table, place);
        }
        while inner.notes.len() > MAX_NOTES
            && let Some(oldest) = inner.notes.pop_front()
        {
            inner.forget(&oldest);
        }
    }

    /// Mirrors were put in the place of others, or have gone: what was noted of these tables is in
    /// another order of columns.
    pub(super) fn replace(&self, lookups: &Lookups, tables: &[Oid]) {
        let mut inner = self.lock();
        inner.lookups = lookups.clone();
        for note in std::mem::take(&mut inner.notes) {
            if tables.contains(&note.table) {
                inner.forget(&note);
            } else {
                inner.notes.push_back(note);
            }
        }
    }

    /// The log has no changes of a table from before this place.
    pub(super) fn known_from(&self, table: Oid, place: Offset) {
        let mut inner = self.lock();
        let known = inner.known.entry(table).or_insert(place);
        *known = place.max(*known);
    }

    /// Nothing is known of what lies before this place.
    pub(super) fn begin(&self, place: Offset) {
        let mut inner = self.lock();
        inner.place = place;
        inner.lookups = Lookups::default();
        inner.notes.clear();
        for from in inner.known.values_mut() {
            *from = place;
        }
    }

    /// Whether nothing is known of what became of what a predicate reads from `from` on.
    pub(super) fn is_unknown(&self, access: &Access, from: Offset) -> bool {
        let inner = self.lock();
        let known = |table: &Oid| inner.known.get(table).is_some_and(|known| *known <= from);
        let mut tables = access.lookups.iter().map(|wanted| &wanted.table);
        !tables.all(known)
    }

    /// What changed from one place on and before another.
    pub(super) fn notes(&self, from: Offset, to: Offset) -> Vec<Note> {
        let inner = self.lock();
        let first = inner.notes.partition_point(|note| note.place < from);
        let noted = inner.notes.range(first..);
        noted.take_while(|note| note.place < to).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code under this lock panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn forget(&mut self, note: &Note) {
        let behind = Offset(note.place.0 + 1);
        let known = self.known.entry(note.table).or_insert(behind);
        *known = behind.max(*known);
    }
}

fn read(file: &Path) -> Option<Stored> {
    match sealed::read(file) {
        Ok(Some(Content::Whole(text))) => serde_json::from_str(&text).ok(),
        Ok(_) => None,
        Err(error) => {
            warn!(file = %file.display(), %error, "where lookups changed last is not known");
            None
        }
    }
}

/// Values of rows must not reach a log.
impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("place", &self.place)
            .field("notes", &self.notes.len())
            .finish_non_exhaustive()
    }
}

/// Whom a change of a lookup concerns, by one predicate.
pub(super) fn affected(note: &Note, predicate: &Predicate, lookups: &Lookups) -> Affected {
    let mut reads = predicate.lookups().iter();
    if !reads.any(|wanted| wanted.table == note.table) {
        return Affected::Nobody;
    }
    match &note.row {
        Change::Row(before, after) => {
            predicate.affected(note.table, before.as_deref(), after.as_deref(), lookups)
        }
        Change::All => Affected::Everybody,
    }
}

/// Whose audience of one table and role changed, for those who come back. Filled as far as somebody
/// asks.
pub(super) struct Missed {
    access: Arc<Access>,
    /// It has what changed from the first of these on, and before the second.
    from: Offset,
    to: Offset,
    everybody: Vec<(Offset, Xid)>,
    /// Somebody's: those that no slot finds count as them.
    anybody: Vec<(Offset, Xid)>,
    /// By the place of the predicate.
    found: HashMap<(usize, Probe), Vec<(Offset, Xid)>>,
    /// What they are found by.
    slots: BTreeSet<(usize, usize)>,
}

impl Missed {
    pub(super) fn new(access: &Arc<Access>, from: Offset) -> Self {
        Self {
            access: Arc::clone(access),
            from,
            to: from,
            everybody: Vec::new(),
            anybody: Vec::new(),
            found: HashMap::new(),
            slots: BTreeSet::new(),
        }
    }

    /// Whether it can be brought up to something that begins at `from` under these rules.
    pub(super) fn reaches(&self, access: &Arc<Access>, from: Offset) -> bool {
        Arc::ptr_eq(&self.access, access) && self.from <= from
    }

    pub(super) fn extend(&mut self, memberships: &Memberships, lookups: &Lookups, to: Offset) {
        if self.to >= to {
            return;
        }
        let Rules::Judged { predicates, .. } = &self.access.rules else {
            return;
        };
        for note in memberships.notes(self.to, to) {
            let at = (note.place, note.xid);
            for (which, predicate) in predicates.iter().enumerate() {
                match affected(&note, predicate, lookups) {
                    Affected::Nobody => {}
                    Affected::Everybody => self.everybody.push(at),
                    Affected::Probes(probes) => {
                        self.anybody.push(at);
                        for probe in probes {
                            self.slots.insert((which, probe.slot));
                            self.found.entry((which, probe)).or_default().push(at);
                        }
                    }
                }
            }
        }
        self.to = to;
    }

    /// Whether one of the bindings of a principal begins before something that concerns it.
    pub(super) fn concerns(&self, principal: &Principal, bindings: &[Binding]) -> bool {
        let Rules::Judged { predicates, .. } = &self.access.rules else {
            return false;
        };
        let wanted = |changes: &[(Offset, Xid)]| {
            changes.iter().any(|(place, xid)| {
                bindings
                    .iter()
                    .filter_map(|binding| binding.begin.as_deref())
                    .any(|begin| is_missed(begin, *place, *xid))
            })
        };
        if wanted(&self.everybody) {
            return true;
        }
        if self.anybody.is_empty() {
            return false;
        }
        predicates.iter().enumerate().any(|(which, predicate)| {
            let projection = predicate.project(principal);
            if projection.fails() {
                return wanted(&self.anybody);
            }
            let mut slots = self.slots.range((which, 0)..=(which, usize::MAX));
            slots.any(|(_, slot)| {
                projection.keys(*slot).any(|datum| {
                    let probe = Probe {
                        slot: *slot,
                        datum: datum.clone(),
                    };
                    let found = self.found.get(&(which, probe));
                    found.is_some_and(|changes| wanted(changes))
                })
            })
        })
    }
}

fn is_missed(begin: &Begin, place: Offset, xid: Xid) -> bool {
    let shown = begin.unseen_by.as_ref();
    begin.from.is_some_and(|from| from <= place)
        && !shown.is_some_and(|snapshot| snapshot.shows(xid))
}

//! What a predicate reads of other tables, and whom a change there concerns.

use std::collections::BTreeSet;
use std::sync::Arc;

use smallvec::SmallVec;

use super::routes::{Known, Path, Route};
use super::{Affected, Predicate, Probe};
use crate::datum::Datum;
use crate::lookup::{Column, Lookups, Mirror, Wanted};
use crate::mutant::SelectMutant;
use crate::pg::Oid;
use crate::policy::expr::select::Opened;
use crate::policy::expr::{ColumnRef, Constant, Expr};

/// A table that sub-selects look into.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) oid: Oid,
    pub(super) columns: Vec<Arc<ColumnRef>>,
    /// Sets of columns that rows are found by.
    pub(super) indexes: BTreeSet<BTreeSet<usize>>,
}

impl Table {
    /// Finds the columns in the mirror; `None` where that is not there, or not with these columns.
    pub(super) fn open<'l>(&self, lookups: &'l Lookups) -> Option<Opened<'l>> {
        let mirror = lookups.get(self.oid)?;
        Some(Opened {
            mirror,
            positions: self.positions(mirror)?,
        })
    }

    fn positions(&self, mirror: &Mirror) -> Option<SmallVec<[usize; 8]>> {
        let position = |column: &Arc<ColumnRef>| {
            let position = mirror.position(&column.name)?;
            let known = mirror.columns().get(position)?;
            (known.type_oid == column.type_oid && known.of == column.of).then_some(position)
        };
        self.columns.iter().map(position).collect()
    }

    /// Notes that rows are to be found by these columns.
    pub(super) fn index(&mut self, columns: impl IntoIterator<Item = usize>) {
        let columns: BTreeSet<usize> = columns.into_iter().collect();
        if !columns.is_empty() {
            self.indexes.insert(columns);
        }
    }

    pub(super) fn wanted(&self) -> Wanted {
        let mut columns: Vec<Column> = self
            .columns
            .iter()
            .map(|column| Column {
                name: Arc::clone(&column.name),
                type_oid: column.type_oid,
                of: column.of.clone(),
            })
            .collect();
        columns.sort_by(|a, b| a.name.cmp(&b.name));
        let named = |set: &BTreeSet<usize>| {
            let columns = set.iter().filter_map(|at| self.columns.get(*at));
            let mut names: Vec<Arc<str>> = columns.map(|column| Arc::clone(&column.name)).collect();
            names.sort();
            names
        };
        Wanted {
            table: self.oid,
            columns,
            indexes: self.indexes.iter().map(named).collect(),
        }
    }
}

impl Predicate {
    /// Whose audience may depend on a row of another table that changed, by the
    /// [probed](Self::probed_slots) slots that it was, or is, found by. An inserted row has no
    /// `before`, a deleted one no `after`; both are in the order of the mirror's columns. The
    /// lookups may be those before or behind the change, or any after it: of the tables between
    /// the row and a slot that changed besides the one nearest to the slot is enough, and it is
    /// asked about too.
    ///
    /// Principals whose projection is [undecided](super::Projection::is_undecided) or
    /// [fails](super::Projection::fails) are affected besides, unless the answer is
    /// [`Affected::Nobody`].
    #[must_use]
    pub fn affected(
        &self,
        table: Oid,
        before: Option<&[Option<Datum>]>,
        after: Option<&[Option<Datum>]>,
        lookups: &Lookups,
    ) -> Affected {
        let Some(at) = self.tables.iter().position(|one| one.oid == table) else {
            return Affected::Nobody;
        };
        let positions = lookups.get(table).and_then(|mirror| {
            let table = self.tables.get(at)?;
            table.positions(mirror)
        });
        let Some(positions) = positions else {
            return Affected::Everybody;
        };
        if let (Some(before), Some(after)) = (before, after)
            && positions
                .iter()
                .all(|position| identical(before.get(*position), after.get(*position)))
        {
            return Affected::Nobody;
        }
        let opened: Vec<_> = self
            .tables
            .iter()
            .map(|table| table.open(lookups))
            .collect();
        let mut probes: SmallVec<[Probe; 2]> = SmallVec::new();
        for route in self.routes.iter().filter(|route| route.at == at) {
            let before = before.filter(|_| !SelectMutant::AffectedIsAfterOnly.active());
            if let (Some(before), Some(after)) = (before, after)
                && route.is_alike(before, after, &positions)
            {
                continue;
            }
            let rows = [before, after].into_iter().flatten();
            let left_out = |row: &[Option<Datum>]| route.step.alone(row, &positions) == Some(false);
            for row in rows.filter(|row| !left_out(row)) {
                let found = route.path.as_ref().and_then(|path| {
                    let mut walk = Followed {
                        path,
                        opened: &opened,
                        probes: &mut probes,
                        far: FAR,
                    };
                    walk.follow(&mut vec![(row, &positions)])
                });
                if found.is_none() {
                    return Affected::Everybody;
                }
            }
        }
        if probes.is_empty() {
            return Affected::Nobody;
        }
        Affected::Probes(probes)
    }
}

impl Route {
    /// Whether it makes no difference which of two rows there is: each is one of those that count, and
    /// what else is read of them is the same.
    fn is_alike(
        &self,
        before: &[Option<Datum>],
        after: &[Option<Datum>],
        positions: &[usize],
    ) -> bool {
        let mut beyond = self.beyond.iter();
        let same = beyond.all(|column| {
            let position = positions.get(*column);
            position.is_some_and(|at| identical(before.get(*at), after.get(*at)))
                || SelectMutant::AffectedIsAlone.active()
        });
        let counts = |row| self.step.alone(row, positions) == Some(true);
        same && counts(before) && counts(after)
    }
}

/// More principals than this are not told apart from everybody.
const MANY: usize = 1_000;

/// More rows than this are not gone through for one change.
const FAR: usize = 10_000;

/// Finds whom a changed row concerns.
struct Followed<'f, 'l> {
    path: &'f Path,
    opened: &'f [Option<Opened<'l>>],
    probes: &'f mut SmallVec<[Probe; 2]>,
    /// How many rows may still be gone through.
    far: usize,
}

type Reached<'r> = (&'r [Option<Datum>], &'r SmallVec<[usize; 8]>);

impl<'f> Followed<'f, '_> {
    /// Goes on from the rows reached; `None` where that cannot be told, or there are very many.
    fn follow(&mut self, reached: &mut Vec<Reached<'f>>) -> Option<()> {
        let value = |reached: &[Reached<'f>], hop: usize, column: usize| {
            let (row, positions) = reached.get(hop)?;
            row.get(*positions.get(column)?)
        };
        let Some(hop) = self.path.hops.get(reached.len()) else {
            let last = reached.len().checked_sub(1)?;
            // Nothing equals NULL.
            if let Some(datum) = value(reached, last, self.path.column)? {
                let probe = Probe {
                    slot: self.path.slot,
                    datum: datum.clone(),
                };
                if !self.probes.contains(&probe) {
                    self.probes.push(probe);
                }
            }
            return (self.probes.len() <= MANY).then_some(());
        };
        if SelectMutant::HopsAreForgotten.active() {
            return Some(());
        }
        let opened = self.opened.get(hop.at)?.as_ref()?;
        let mut keys: SmallVec<[(usize, &Datum); 4]> = SmallVec::new();
        for (column, known) in &hop.on {
            let datum = match known {
                Known::Expr(Expr::Const(Constant(datum))) => datum,
                Known::Expr(_) => return None,
                Known::Of(hop, column) => value(reached, *hop, *column)?,
            };
            let Some(datum) = datum else {
                return Some(());
            };
            keys.push((*opened.positions.get(*column)?, datum));
        }
        keys.sort_unstable_by_key(|(position, _)| *position);
        let (places, values): (Vec<usize>, Vec<Datum>) = keys
            .into_iter()
            .map(|(place, datum)| (place, datum.clone()))
            .unzip();
        for row in opened.mirror.find(&places, &values).ok()? {
            self.far = self.far.checked_sub(1)?;
            reached.push((row, &opened.positions));
            let on = self.follow(reached);
            reached.pop();
            on?;
        }
        Some(())
    }
}

fn identical(a: Option<&Option<Datum>>, b: Option<&Option<Datum>>) -> bool {
    match (a, b) {
        (Some(Some(a)), Some(Some(b))) => a.identical(b),
        (Some(None), Some(None)) => true,
        _ => false,
    }
}

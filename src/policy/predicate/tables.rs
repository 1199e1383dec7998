//! What a predicate reads of other tables, and whom a change there concerns.

use std::collections::BTreeSet;
use std::sync::Arc;

use smallvec::SmallVec;

use super::{Affected, Predicate, Probe, plain};
use crate::datum::Datum;
use crate::lookup::{Column, Lookups, Mirror, Wanted};
use crate::mutant::SelectMutant;
use crate::pg::Oid;
use crate::policy::expr::select::{Asked, Opened, Select};
use crate::policy::expr::{ColumnRef, Comparison, Expr};

/// A table that sub-selects look into.
#[derive(Debug)]
pub(super) struct Table {
    oid: Oid,
    columns: Vec<Arc<ColumnRef>>,
    /// Sets of columns that rows are found by.
    indexes: BTreeSet<BTreeSet<usize>>,
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

/// Gives sub-selects their tables and columns, and the keys that their rows are found by.
#[derive(Default)]
pub(super) struct Looking {
    pub(super) tables: Vec<Table>,
    /// The tables of the sub-selects around, by depth.
    frames: Vec<usize>,
}

impl Looking {
    pub(super) fn look(&mut self, expr: &Expr) -> Expr {
        match expr {
            Expr::Inner(depth, column) => {
                let frame = usize::try_from(*depth).ok();
                let at = frame.and_then(|depth| self.frames.get(depth)).copied();
                let table = at.and_then(|at| self.tables.get_mut(at));
                table.map_or(Expr::NULL, |table| {
                    Expr::Field(
                        *depth,
                        super::index_of(&mut table.columns, Arc::clone(column)),
                    )
                })
            }
            Expr::Select(select) => Expr::Select(Box::new(self.select(select))),
            other => other.map(&mut |inner| self.look(inner)),
        }
    }

    fn select(&mut self, select: &Select) -> Select {
        let known = self.tables.iter().position(|one| one.oid == select.table);
        let at = known.unwrap_or_else(|| {
            self.tables.push(Table {
                oid: select.table,
                columns: Vec::new(),
                indexes: BTreeSet::new(),
            });
            self.tables.len() - 1
        });
        let around = self.frames.clone();
        // Depths are counted from the outermost sub-select, so these are the ones around.
        self.frames
            .truncate(usize::try_from(select.depth).unwrap_or(usize::MAX));
        self.frames.push(at);
        let mut conditions: Vec<Expr> = Vec::new();
        for one in &select.condition {
            let all = match plain(&positive(&plain(one))) {
                Expr::And(all) => all,
                other => vec![other],
            };
            for one in all.iter().map(|one| self.look(one)) {
                if !conditions.contains(&one) {
                    conditions.push(one);
                }
            }
        }
        let mut looked = Select {
            condition: Vec::new(),
            ..select.clone()
        }
        .map(&mut |inner| self.look(inner));
        looked.at = at;
        self.frames = around;
        for one in conditions {
            match looked.equality(&one) {
                Some((column, key)) if !looked.keys.iter().any(|(known, _)| *known == column) => {
                    let key = (column, key.clone());
                    looked.keys.push(key);
                }
                _ => looked.condition.push(one),
            }
        }
        if let Some(table) = self.tables.get_mut(at) {
            table.index(looked.keys.iter().map(|(column, _)| *column));
        }
        looked
    }
}

/// Where only being true counts, `x in (select …)` is the existence of a row that equals `x`,
/// which an index finds.
pub(super) fn positive(expr: &Expr) -> Expr {
    match expr {
        Expr::And(_) | Expr::Or(_) | Expr::IsBool(_, Some(true), false) => expr.map(&mut positive),
        Expr::Body(args, _, _) if args.is_empty() => expr.map(&mut positive),
        Expr::Select(select) => match &select.result {
            Asked::Any(Comparison::Eq, false, two) => {
                let (left, value) = (**two).clone();
                let equal = Expr::Compare(Comparison::Eq, Box::new((value, left)));
                let mut exists = (**select).clone();
                exists.condition.push(equal);
                exists.result = Asked::Exists;
                Expr::Select(Box::new(exists))
            }
            _ => expr.clone(),
        },
        other => other.clone(),
    }
}

/// Every sub-select inside.
pub(super) fn selects<'e>(expr: &'e Expr, found: &mut Vec<&'e Select>) {
    if let Expr::Select(select) = expr {
        found.push(select);
    }
    for inner in expr.children() {
        selects(inner, found);
    }
}

impl Predicate {
    /// Whose audience may depend on a row of another table that changed, by the
    /// [probed](Self::probed_slots) slots that it was, or is, found by. An inserted row has no
    /// `before`, a deleted one no `after`; both are in the order of the mirror's columns.
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
        mirror: &Mirror,
    ) -> Affected {
        let Some(at) = self.tables.iter().position(|one| one.oid == table) else {
            return Affected::Nobody;
        };
        let Some(positions) = self.tables.get(at).and_then(|one| one.positions(mirror)) else {
            return Affected::Everybody;
        };
        if let (Some(before), Some(after)) = (before, after)
            && positions
                .iter()
                .all(|position| identical(before.get(*position), after.get(*position)))
        {
            return Affected::Nobody;
        }
        let mut probes: SmallVec<[Probe; 2]> = SmallVec::new();
        let mut all = Vec::new();
        for expr in self.parts.iter().chain([&self.whole]) {
            selects(expr, &mut all);
        }
        for select in all.into_iter().filter(|select| select.at == at) {
            let before = before.filter(|_| !SelectMutant::AffectedIsAfterOnly.active());
            let rows = [before, after].into_iter().flatten();
            for row in rows.filter(|row| !select.leaves_out(row, &positions)) {
                let Some((column, slot)) = slot_of(select) else {
                    return Affected::Everybody;
                };
                let value = positions
                    .get(column)
                    .and_then(|position| row.get(*position));
                // Nothing equals NULL.
                if let Some(Some(datum)) = value {
                    let datum = datum.clone();
                    let probe = Probe { slot, datum };
                    if !probes.contains(&probe) {
                        probes.push(probe);
                    }
                }
            }
        }
        if probes.is_empty() {
            return Affected::Nobody;
        }
        Affected::Probes(probes)
    }
}

/// The column of a sub-select's rows that must equal a slot, and the slot.
pub(super) fn slot_of(select: &Select) -> Option<(usize, usize)> {
    select.equalities().find_map(|(column, key)| match key {
        Expr::Slot(slot) => Some((column, *slot)),
        _ => None,
    })
}

fn identical(a: Option<&Option<Datum>>, b: Option<&Option<Datum>>) -> bool {
    match (a, b) {
        (Some(Some(a)), Some(Some(b))) => a.identical(b),
        (Some(None), Some(None)) => true,
        _ => false,
    }
}

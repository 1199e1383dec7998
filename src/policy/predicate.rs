//! All policies of a table for one role as one predicate, and who may see a row by it.
//!
//! A predicate is evaluated in three steps, each as seldom as it can be. What only the claims
//! decide is evaluated once for each principal ([`Predicate::project`]); principals with equal
//! projections share every answer. What only the row decides is evaluated once for each row
//! ([`Bound::read`]). What is left is evaluated for each of the principals that
//! [`Facts::audience`] names, and for nobody else.

mod audience;

pub(super) mod claims;

mod looking;

mod never;

mod routes;

mod tables;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use smallvec::SmallVec;

use audience::Plan;
pub use audience::{Audience, Members, Probe};
use looking::{Looking, positive};
use routes::{Graph, Route};
use tables::Table;

use super::clock::ServerClock;
use super::explain::Found;
use super::expr::select::Opened;
use super::expr::{Cells, ColumnRef, Constant, Expr, Inputs, Outcome};
use crate::auth::Principal;
use crate::change::{Relation, Row};
use crate::datum::{Datum, Trouble};
use crate::lookup::{Lookups, State, Wanted};
use crate::mutant::PolicyMutant;

/// What a predicate says of a row and a principal. Only [`Verdict::True`] shows the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The principal may see the row.
    True,
    /// It may not.
    False,
    /// It may not, because something is NULL.
    Null,
    /// It may not: PostgreSQL would raise an error.
    Error,
    /// Not known natively; PostgreSQL has to be asked, and until then it may not.
    Undecided,
}

impl From<Result<Option<bool>, Trouble>> for Verdict {
    fn from(truth: Result<Option<bool>, Trouble>) -> Self {
        match truth {
            Ok(Some(true)) => Self::True,
            Ok(Some(false)) => Self::False,
            Ok(None) => Self::Null,
            Err(Trouble::Error) => Self::Error,
            Err(Trouble::Undecided) => Self::Undecided,
        }
    }
}

/// Whose audience may depend on a row of another table that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Affected {
    /// Nobody's: nothing that is read of it differs.
    Nobody,
    /// That of the principals that one of these finds.
    Probes(SmallVec<[Probe; 2]>),
    /// Anybody's.
    Everybody,
}

/// The policies of a table for one role.
#[derive(Debug)]
pub struct Predicate {
    columns: Vec<Arc<ColumnRef>>,
    /// What only the claims decide.
    slots: Vec<Expr>,
    /// What only the row decides.
    parts: Vec<Expr>,
    /// All of it, in terms of slots and parts.
    whole: Expr,
    plan: Plan,
    /// What sub-selects look into.
    tables: Vec<Table>,
    /// Whom a change of one of them concerns.
    routes: Vec<Route>,
    lookups: Vec<Wanted>,
    /// What says what time it is, where that is asked.
    clock: Option<Arc<ServerClock>>,
}

impl Predicate {
    /// Combines policies: one of the permissive and all of the restrictive must hold. Without a
    /// permissive one nobody sees anything.
    #[must_use]
    pub fn new(permissive: Vec<Expr>, restrictive: Vec<Expr>) -> Self {
        let whole = if permissive.is_empty() {
            Expr::constant(Datum::Bool(false))
        } else if PolicyMutant::RestrictiveIsPermissive.active() {
            Expr::Or(permissive.into_iter().chain(restrictive).collect())
        } else {
            Expr::And(
                std::iter::once(Expr::Or(permissive))
                    .chain(restrictive)
                    .collect(),
            )
        };
        let mut lowered = Self {
            columns: Vec::new(),
            slots: Vec::new(),
            parts: Vec::new(),
            whole: Expr::NULL,
            plan: Plan::Scan,
            tables: Vec::new(),
            routes: Vec::new(),
            lookups: Vec::new(),
            clock: clock_of(&whole),
        };
        let mut looking = Looking::default();
        let whole = looking.look(&plain(&positive(&plain(&whole))));
        lowered.whole = lowered.lower(&whole);
        let mut tables = looking.tables;
        lowered.plan = Plan::of(&lowered.whole, &mut tables);
        for expr in lowered.parts.iter().chain([&lowered.whole]) {
            Graph::of_changes().routes(expr, &mut lowered.routes);
        }
        for path in lowered.routes.iter().filter_map(|one| one.path.as_ref()) {
            path.index(&mut tables, false);
        }
        lowered.lookups = tables.iter().map(Table::wanted).collect();
        lowered.tables = tables;
        lowered
    }

    /// Replaces the largest sub-expressions that need only the row, or only the claims.
    fn lower(&mut self, expr: &Expr) -> Expr {
        let reads = reads(expr);
        if reads.frames != 0 {
            return expr.map(&mut |inner| self.lower(inner));
        }
        match (reads.row || reads.lookups, reads.claims) {
            (false, false) => match expr.outcome(Inputs::default()) {
                Ok(datum) => Expr::Const(Constant(datum)),
                Err(trouble) => Expr::Fail(trouble),
            },
            (false, true) => Expr::Slot(index_of(&mut self.slots, expr.clone())),
            // What only claims and other tables decide changes with those tables, so it belongs to
            // no principal: it is evaluated with the row.
            (true, false) => {
                let part = self.celled(expr);
                Expr::Part(index_of(&mut self.parts, part))
            }
            (true, true) => expr.map(&mut |inner| self.lower(inner)),
        }
    }

    fn celled(&mut self, expr: &Expr) -> Expr {
        match expr {
            Expr::Column(column) => Expr::Cell(index_of(&mut self.columns, Arc::clone(column))),
            other => other.map(&mut |inner| self.celled(inner)),
        }
    }

    /// The columns that are read.
    pub fn columns(&self) -> impl Iterator<Item = &ColumnRef> {
        self.columns.iter().map(|column| &**column)
    }

    /// What the predicate says of every row to everybody, where that is one thing.
    #[must_use]
    pub fn is_constant(&self) -> Option<Verdict> {
        match &self.whole {
            constant @ (Expr::Const(_) | Expr::Fail(_)) => {
                Some(constant.truth(Inputs::default()).into())
            }
            _ => None,
        }
    }

    /// The slots that an audience or [`Predicate::affected`] may name. An index from a slot's value to the
    /// principals that have it is worth keeping for these.
    #[must_use]
    pub fn probed_slots(&self) -> Vec<usize> {
        let mut slots = Vec::new();
        self.plan.slots(&mut slots);
        let paths = self.routes.iter().filter_map(|one| one.path.as_ref());
        slots.extend(paths.map(|path| path.slot));
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    /// How those are found who may see a row.
    #[must_use]
    pub fn found(&self) -> Found {
        match self.plan.scans() {
            _ if self.plan.is_of_row() => Found::Row,
            true => Found::Scan,
            false => Found::Index,
        }
    }

    /// Whether what it says of a row may be another thing later.
    #[must_use]
    pub const fn asks_the_time(&self) -> bool {
        self.clock.is_some()
    }

    /// What is read of other tables.
    #[must_use]
    pub fn lookups(&self) -> &[Wanted] {
        &self.lookups
    }

    /// What the predicate reads of a principal's role and claims.
    #[must_use]
    pub fn project(&self, principal: &Principal) -> Projection {
        let inputs = Inputs {
            principal: Some(principal),
            ..Inputs::default()
        };
        Projection(self.slots.iter().map(|slot| slot.outcome(inputs)).collect())
    }

    /// Finds the columns in a version of the table; `None` where one is missing or has another
    /// type than the policies were compiled for.
    #[must_use]
    pub fn bind(self: &Arc<Self>, relation: &Relation) -> Option<Bound> {
        let mut positions = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            let position = relation.position(&column.name)?;
            if relation.columns.get(position)?.type_oid != column.type_oid {
                return None;
            }
            positions.push(position);
        }
        Some(Bound {
            predicate: Arc::clone(self),
            positions: positions.into(),
        })
    }
}

/// What an expression reads.
#[derive(Default)]
struct Reads {
    row: bool,
    /// Role or claims.
    claims: bool,
    lookups: bool,
    /// The sub-selects around whose rows it reads, a bit for each depth.
    frames: u64,
}

fn reads(expr: &Expr) -> Reads {
    let mut reads = Reads::default();
    for inner in expr.children().into_iter().map(self::reads) {
        reads.row |= inner.row;
        reads.claims |= inner.claims;
        reads.lookups |= inner.lookups;
        reads.frames |= inner.frames;
    }
    let bit = |depth: u32| 1_u64.checked_shl(depth).unwrap_or(0);
    match expr {
        // With the row it is read anew.
        Expr::Column(_) | Expr::Cell(_) | Expr::Part(_) | Expr::Now(_) => reads.row = true,
        Expr::Claims | Expr::Role | Expr::Slot(_) => reads.claims = true,
        Expr::Inner(depth, _) | Expr::Field(depth, _) => reads.frames |= bit(*depth),
        Expr::Select(select) => {
            // The elements of arrays are no other table's.
            let mut places = select.places().into_iter();
            reads.lookups |= places.any(|place| place.elements.is_none());
            let own = select.depths().into_iter().map(bit);
            reads.frames &= !own.fold(0, |all, one| all | one);
        }
        Expr::Recursive(recursion) => reads.frames &= !bit(recursion.depth),
        _ => {}
    }
    reads
}

/// Unwraps ANDs and ORs of one operand, and joins those directly inside their own kind: a larger
/// sub-expression may then need only the row.
fn plain(expr: &Expr) -> Expr {
    let mut flat = Vec::new();
    match expr.map(&mut plain) {
        Expr::And(all) => {
            for one in all {
                match one {
                    Expr::And(inner) => flat.extend(inner),
                    other => flat.push(other),
                }
            }
            only(flat, Expr::And)
        }
        Expr::Or(all) => {
            for one in all {
                match one {
                    Expr::Or(inner) => flat.extend(inner),
                    other => flat.push(other),
                }
            }
            only(flat, Expr::Or)
        }
        other => other,
    }
}

fn only(mut all: Vec<Expr>, join: fn(Vec<Expr>) -> Expr) -> Expr {
    match (all.pop(), all.is_empty()) {
        (Some(one), true) => one,
        (Some(last), false) => {
            all.push(last);
            join(all)
        }
        (None, _) => join(all),
    }
}

fn index_of<T: PartialEq>(known: &mut Vec<T>, one: T) -> usize {
    known
        .iter()
        .position(|other| *other == one)
        .unwrap_or_else(|| {
            known.push(one);
            known.len() - 1
        })
}

/// What a predicate reads of a principal. Principals with equal projections see the same rows.
#[derive(Clone)]
pub struct Projection(SmallVec<[Outcome; 1]>);

impl Projection {
    /// A slot's value, where it has one.
    #[must_use]
    pub fn slot(&self, slot: usize) -> Option<&Datum> {
        self.0.get(slot)?.as_ref().ok()?.as_ref()
    }

    /// Whether a slot has this value, or is an array with it among its elements.
    #[must_use]
    pub fn has(&self, slot: usize, datum: &Datum) -> bool {
        self.keys(slot).any(|key| key == datum)
    }

    /// What principals are found by: a slot's value, and where that is an array each of its
    /// elements.
    pub fn keys(&self, slot: usize) -> impl Iterator<Item = &Datum> {
        let value = self.slot(slot);
        let elements = match value {
            Some(Datum::Array(array)) if !PolicyMutant::ProbeForgetsElements.active() => {
                array.elements()
            }
            _ => &[],
        };
        value.into_iter().chain(elements.iter().flatten())
    }

    /// Whether nothing of a principal is read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a slot raises an error: no index finds its principal by that slot either. What looks
    /// into an empty table does not get to raise it.
    #[must_use]
    pub fn fails(&self) -> bool {
        self.0.iter().any(Result::is_err)
    }

    /// Whether a slot is undecided: no index finds its principal by that slot, so it has to be
    /// judged for every row.
    #[must_use]
    pub fn is_undecided(&self) -> bool {
        self.0
            .iter()
            .any(|slot| matches!(slot, Err(Trouble::Undecided)))
    }
}

/// Equal means that nothing tells them apart, not even the text of equal numbers.
impl PartialEq for Projection {
    fn eq(&self, other: &Self) -> bool {
        identical(&self.0, &other.0)
    }
}

impl Eq for Projection {}

impl Hash for Projection {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

/// Whether nothing tells the values apart.
fn identical(some: &[Outcome], others: &[Outcome]) -> bool {
    some.len() == others.len()
        && some.iter().zip(others).all(|two| match two {
            (Ok(Some(a)), Ok(Some(b))) => a.identical(b),
            (a, b) => a == b,
        })
}

/// Claims are personal data and must not reach a log.
impl fmt::Debug for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Projection({} slots)", self.0.len())
    }
}

/// A predicate with its columns found in one version of the table.
#[derive(Debug, Clone)]
pub struct Bound {
    predicate: Arc<Predicate>,
    positions: Box<[usize]>,
}

impl Bound {
    /// The predicate.
    #[must_use]
    pub const fn predicate(&self) -> &Arc<Predicate> {
        &self.predicate
    }

    /// Where in the row the columns that are read stand. Of an old row that carries only the key,
    /// all must belong to the key: the others look like NULL there and are not.
    #[must_use]
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// Evaluates what only the row decides, and what it finds in other tables as they are in
    /// `lookups`.
    #[must_use]
    pub fn read<'p>(&'p self, row: &Row, lookups: &'p Lookups) -> Facts<'p> {
        let tables = self.predicate.tables.iter();
        let tables: Tables<'p> = tables.map(|table| table.open(lookups)).collect();
        let now = self.predicate.clock.as_ref().and_then(|clock| clock.now());
        let inputs = Inputs {
            now,
            tables: &tables,
            cells: Some(Cells {
                row,
                positions: &self.positions,
                columns: &self.predicate.columns,
            }),
            ..Inputs::default()
        };
        let parts = self.predicate.parts.iter();
        let parts = parts.map(|part| part.outcome(inputs)).collect();
        Facts {
            predicate: &self.predicate,
            tables,
            parts,
            now,
        }
    }
}

fn clock_of(expr: &Expr) -> Option<Arc<ServerClock>> {
    if let Expr::Now(clock) = expr {
        return Some(Arc::clone(clock));
    }
    expr.children().into_iter().find_map(clock_of)
}

type Tables<'l> = SmallVec<[Option<Opened<'l>>; 1]>;

/// What a predicate reads of a row, kept to know another row again that says the same.
#[derive(Clone)]
pub struct Said(Box<[Outcome]>);

impl Said {
    /// Whether that row says the same: whoever sees the one sees the other, while the tables that
    /// the predicate looks into are in the same [states](Facts::states), unless the predicate asks
    /// [what time it is](Predicate::asks_the_time).
    #[must_use]
    pub fn is(&self, facts: &Facts<'_>) -> bool {
        identical(&self.0, &facts.parts)
    }
}

/// Row values must not reach a log.
impl fmt::Debug for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Said({} parts)", self.0.len())
    }
}

/// Texts up to this are kept of rows, in bytes.
const BRIEF: usize = 128;

/// Whether a value takes so little that it may be kept.
fn is_brief(part: &Outcome) -> bool {
    match part {
        Ok(Some(Datum::Text(text))) => text.len() <= BRIEF,
        Ok(Some(
            Datum::Numeric(_)
            | Datum::Json(_)
            | Datum::Jsonb(_)
            | Datum::Bytes(_)
            | Datum::Array(_),
        )) => false,
        Ok(_) | Err(_) => true,
    }
}

/// What is known of one row.
pub struct Facts<'p> {
    predicate: &'p Predicate,
    tables: Tables<'p>,
    parts: SmallVec<[Outcome; 4]>,
    /// As of when.
    now: Option<i64>,
}

impl Facts<'_> {
    /// What the row says, for others that say the same; `None` where it is too much to be kept.
    #[must_use]
    pub fn said(&self) -> Option<Said> {
        let brief = self.parts.iter().all(is_brief);
        brief.then(|| Said(self.parts.as_slice().into()))
    }

    /// A hash of what the row says.
    pub fn hash_said(&self, state: &mut impl Hasher) {
        self.parts.hash(state);
    }

    /// In which states the tables are that the predicate looks into; `None` for one that is not
    /// there.
    pub fn states(&self) -> impl Iterator<Item = Option<&State>> {
        let tables = self.tables.iter();
        tables.map(|opened| opened.as_ref().map(|opened| opened.mirror.state()))
    }

    /// Whether another row says the same of the same predicate, which finds the same in the same
    /// tables: whoever sees the one sees the other.
    #[must_use]
    pub fn are_those_of(&self, other: &Self) -> bool {
        std::ptr::eq(self.predicate, other.predicate)
            && self.now == other.now
            && identical(&self.parts, &other.parts)
            && self.states().eq(other.states())
    }

    /// Whether the principals of a projection may see the row.
    #[must_use]
    pub fn judge(&self, projection: &Projection) -> Verdict {
        let inputs = Inputs {
            parts: &self.parts,
            tables: &self.tables,
            slots: &projection.0,
            now: self.now,
            ..Inputs::default()
        };
        self.predicate.whole.truth(inputs).into()
    }

    /// Who may be among those that see the row; whoever is not named does not see it.
    ///
    /// Principals whose projection is [undecided](Projection::is_undecided) are to be judged
    /// besides, unless the audience is [`Audience::Nobody`] or [`Audience::Everyone`].
    #[must_use]
    pub fn audience(&self) -> Audience {
        if PolicyMutant::AudienceIsNobody.active() {
            return Audience::Nobody;
        }
        let inputs = Inputs {
            parts: &self.parts,
            tables: &self.tables,
            now: self.now,
            ..Inputs::default()
        };
        self.predicate.plan.audience(inputs)
    }
}

impl fmt::Debug for Facts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Facts({} parts)", self.parts.len())
    }
}

#[cfg(test)]
mod tests;

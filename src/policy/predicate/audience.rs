//! From a row to the principals that may see it, without asking each of them.

use smallvec::SmallVec;

use super::tables::Table;
use crate::datum::{Datum, Trouble};
use crate::lookup::Mirror;
use crate::mutant::{PolicyMutant, SelectMutant};
use crate::policy::expr::select::{Asked, Select};
use crate::policy::expr::{Comparison, Expr, Inputs};

/// Who may be among those that see a row: at least them, perhaps others, so each is still judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// Nobody sees the row.
    Nobody,
    /// The principals that one of these finds.
    Probes(SmallVec<[Probe; 2]>),
    /// Those, and the members of these.
    Members(SmallVec<[Probe; 2]>, Vec<Members>),
    /// No index helps: every principal has to be judged.
    Scan,
    /// Everybody sees the row.
    Everyone,
}

/// The principals whose projection has this value in this slot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Probe {
    /// The slot.
    pub slot: usize,
    /// Its value.
    pub datum: Datum,
}

/// The principals whose value in a slot is among those of a column, in some rows of another table.
///
/// There may be very many: whoever needs them walks whichever are fewer, these or the principals.
#[derive(Clone)]
pub struct Members {
    slot: usize,
    mirror: Mirror,
    /// Where the column stands in a row of the mirror.
    column: usize,
    /// What the rows have in common: places, ascending, and values.
    places: Vec<usize>,
    values: Vec<Datum>,
}

impl Members {
    /// The slot.
    #[must_use]
    pub const fn slot(&self) -> usize {
        self.slot
    }

    /// How many values [`Members::values`] gives at most.
    #[must_use]
    pub fn len(&self) -> usize {
        if self.places.is_empty() {
            return self.mirror.len();
        }
        self.mirror.count(&self.places, &self.values).unwrap_or(0)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values; one may come several times.
    pub fn values(&self) -> impl Iterator<Item = &Datum> {
        let found = self.mirror.find(&self.places, &self.values);
        let all = self.places.is_empty().then(|| self.mirror.rows());
        let rows = all.into_iter().flatten().chain(found.into_iter().flatten());
        rows.filter_map(|row| row.get(self.column)?.as_ref())
    }

    /// Whether a value is among them.
    #[must_use]
    pub fn contains(&self, datum: &Datum) -> bool {
        let mut places = self.places.clone();
        let mut values = self.values.clone();
        let at = places.partition_point(|place| *place < self.column);
        places.insert(at, self.column);
        values.insert(at, datum.clone());
        // Without an index they all may be.
        let count = self.mirror.count(&places, &values);
        count.map_or(true, |count| count > 0)
    }
}

impl PartialEq for Members {
    fn eq(&self, other: &Self) -> bool {
        (self.slot, self.column) == (other.slot, other.column)
            && (&self.places, &self.values) == (&other.places, &other.values)
            && self.mirror.is(&other.mirror)
    }
}

impl Eq for Members {}

/// Values must not reach a log.
impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Members({} by slot {})", self.len(), self.slot)
    }
}

/// How a predicate's audience is found. Of an expression only its being true counts here.
#[derive(Debug, Clone)]
pub(super) enum Plan {
    /// The row alone decides.
    Row(Expr),
    /// Equality of a slot with something that the row decides.
    Probe(usize, Expr),
    /// A slot that is itself the condition.
    Claim(usize),
    /// Equality of a slot with a column of another table, in the rows that the row finds.
    Members {
        at: usize,
        slot: usize,
        column: usize,
        keys: Vec<(usize, Expr)>,
    },
    /// One of these.
    Or(Vec<Self>),
    /// All of these.
    And(Vec<Self>),
    /// Anything else.
    Scan,
}

impl Plan {
    pub(super) fn of(expr: &Expr, tables: &mut [Table]) -> Self {
        let mut each = |all: &[Expr]| all.iter().map(|one| Self::of(one, tables)).collect();
        match expr {
            Expr::Const(_) | Expr::Fail(_) | Expr::Part(_) => Self::Row(expr.clone()),
            Expr::Slot(slot) => Self::Claim(*slot),
            Expr::And(all) => Self::And(each(all)),
            Expr::Or(all) => Self::Or(each(all)),
            Expr::Select(select) => match &select.result {
                Asked::Exists => Self::members(select, None, tables),
                Asked::Scalar(_, value) => {
                    let truth = Expr::constant(Datum::Bool(true));
                    Self::members(select, Some((value, &truth)), tables)
                }
                Asked::Any(..) => Self::Scan,
            },
            Expr::Compare(Comparison::Eq, two) => match (&two.0, &two.1) {
                (Expr::Select(select), other) | (other, Expr::Select(select)) => {
                    match &select.result {
                        Asked::Scalar(_, value) => {
                            Self::members(select, Some((value, other)), tables)
                        }
                        _ => Self::Scan,
                    }
                }
                (a, b) => Self::equal(a, b),
            },
            Expr::Any(Comparison::Eq, false, left, items) => {
                Self::Or(items.iter().map(|item| Self::equal(left, item)).collect())
            }
            Expr::IsBool(one, Some(true), false) => Self::of(one, tables),
            Expr::Body(_, _, body) => Self::of(body, tables),
            _ => Self::Scan,
        }
    }

    /// Of a sub-select that must find a row, in which a value equals something besides.
    fn members(select: &Select, besides: Option<(&Expr, &Expr)>, tables: &mut [Table]) -> Self {
        let besides = besides.map(|(value, other)| {
            Expr::Compare(Comparison::Eq, Box::new((value.clone(), other.clone())))
        });
        let besides = besides.iter().filter_map(|one| select.equality(one));
        let (mut keys, mut slots): (Vec<(usize, Expr)>, Vec<_>) = (Vec::new(), Vec::new());
        for (column, key) in select.equalities().chain(besides) {
            match key {
                Expr::Slot(slot) => slots.push((column, *slot)),
                Expr::Part(_) | Expr::Const(_) if keys.iter().all(|(of, _)| *of != column) => {
                    keys.push((column, key.clone()));
                }
                _ => {}
            }
        }
        let of_row = |column: usize| keys.iter().any(|(of, _)| *of == column);
        let Some((column, slot)) = slots.into_iter().find(|(column, _)| !of_row(*column)) else {
            return Self::Scan;
        };
        if let Some(table) = tables.get_mut(select.at) {
            table.index(keys.iter().map(|(of, _)| *of));
            table.index(keys.iter().map(|(of, _)| *of).chain([column]));
        }
        Self::Members {
            at: select.at,
            slot,
            column,
            keys,
        }
    }

    fn equal(a: &Expr, b: &Expr) -> Self {
        match (a, b) {
            (Expr::Slot(slot), row @ (Expr::Part(_) | Expr::Const(_)))
            | (row @ (Expr::Part(_) | Expr::Const(_)), Expr::Slot(slot)) => {
                let wrong = usize::from(PolicyMutant::ProbeTakesWrongSlot.active());
                Self::Probe(slot + wrong, row.clone())
            }
            (Expr::Part(_) | Expr::Const(_), Expr::Part(_) | Expr::Const(_)) => Self::Row(
                Expr::Compare(Comparison::Eq, Box::new((a.clone(), b.clone()))),
            ),
            _ => Self::Scan,
        }
    }

    pub(super) fn slots(&self, found: &mut Vec<usize>) {
        match self {
            Self::Probe(slot, _) | Self::Claim(slot) | Self::Members { slot, .. } => {
                found.push(*slot);
            }
            Self::Or(all) | Self::And(all) => all.iter().for_each(|one| one.slots(found)),
            Self::Row(_) | Self::Scan => {}
        }
    }

    pub(super) fn audience(&self, inputs: Inputs<'_>) -> Audience {
        match self {
            Self::Row(expr) => match expr.truth(inputs) {
                Ok(Some(true)) => Audience::Everyone,
                Ok(_) | Err(Trouble::Error) => Audience::Nobody,
                Err(Trouble::Undecided) => Audience::Scan,
            },
            Self::Probe(slot, expr) => match expr.outcome(inputs) {
                Ok(Some(datum)) => Audience::of(*slot, datum),
                Ok(None) | Err(Trouble::Error) => Audience::Nobody,
                Err(Trouble::Undecided) => Audience::Scan,
            },
            Self::Members {
                at,
                slot,
                column,
                keys,
            } => Audience::members(*at, *slot, *column, keys, inputs),
            Self::Claim(slot) => Audience::of(*slot, Datum::Bool(true)),
            Self::Or(all) => {
                let each = all.iter().map(|one| one.audience(inputs));
                each.reduce(Audience::or).unwrap_or(Audience::Nobody)
            }
            Self::And(all) => {
                let each = all.iter().map(|one| one.audience(inputs));
                each.reduce(Audience::and).unwrap_or(Audience::Everyone)
            }
            Self::Scan => Audience::Scan,
        }
    }
}

/// Probes, and members.
type Found = (SmallVec<[Probe; 2]>, Vec<Members>);

impl Audience {
    fn of(slot: usize, datum: Datum) -> Self {
        Self::Probes(SmallVec::from_iter([Probe { slot, datum }]))
    }

    fn members(
        at: usize,
        slot: usize,
        column: usize,
        keys: &[(usize, Expr)],
        inputs: Inputs<'_>,
    ) -> Self {
        let Some(opened) = inputs.tables.get(at).and_then(Option::as_ref) else {
            return Self::Scan;
        };
        let Some(column) = opened.positions.get(column).copied() else {
            return Self::Scan;
        };
        let mut found: SmallVec<[(usize, Datum); 4]> = SmallVec::new();
        for (of, key) in keys {
            match (opened.positions.get(*of), key.outcome(inputs)) {
                (Some(position), Ok(Some(datum))) => found.push((*position, datum)),
                (Some(_), Ok(None) | Err(Trouble::Error)) => return Self::Nobody,
                (None, _) | (_, Err(Trouble::Undecided)) => return Self::Scan,
            }
        }
        found.sort_unstable_by_key(|(position, _)| *position);
        let (places, mut values): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        if SelectMutant::MembersForgetAKey.active() {
            values.iter_mut().for_each(|value| *value = Datum::Int(-1));
        }
        if !places.is_empty() && opened.mirror.count(&places, &values).is_err() {
            return Self::Scan;
        }
        let members = Members {
            slot,
            mirror: opened.mirror.clone(),
            column,
            places,
            values,
        };
        if members.is_empty() {
            return Self::Nobody;
        }
        Self::Members(SmallVec::new(), vec![members])
    }

    /// By probes and members; `None` for everything else.
    fn found(self) -> Option<Found> {
        match self {
            Self::Probes(probes) => Some((probes, Vec::new())),
            Self::Members(probes, members) => Some((probes, members)),
            Self::Nobody | Self::Scan | Self::Everyone => None,
        }
    }

    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Everyone, _) | (_, Self::Everyone) => Self::Everyone,
            (Self::Scan, _) | (_, Self::Scan) => Self::Scan,
            (Self::Nobody, one) | (one, Self::Nobody) => one,
            (one, other) => match (one.found(), other.found()) {
                (Some((mut probes, mut members)), Some((others, more))) => {
                    for probe in others {
                        if !probes.contains(&probe) {
                            probes.push(probe);
                        }
                    }
                    for one in more {
                        if !members.contains(&one) {
                            members.push(one);
                        }
                    }
                    if members.is_empty() {
                        Self::Probes(probes)
                    } else {
                        Self::Members(probes, members)
                    }
                }
                _ => Self::Scan,
            },
        }
    }

    /// What it takes to walk these: many may meet a condition on claims alone.
    fn cost(&self) -> (bool, usize) {
        let (probes, members): (&[Probe], &[Members]) = match self {
            Self::Probes(probes) => (probes, &[]),
            Self::Members(probes, members) => (probes, members),
            _ => (&[], &[]),
        };
        let broad = |probe: &Probe| matches!(probe.datum, Datum::Bool(_));
        let members = members.iter().map(Members::len);
        (
            probes.iter().any(broad),
            probes.len() + members.sum::<usize>(),
        )
    }

    /// The narrower one; of two by probes the one with fewer, and of as many the one that does not
    /// only ask a condition on claims, which many may meet.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nobody, _) | (_, Self::Nobody) => Self::Nobody,
            (Self::Everyone, one) | (one, Self::Everyone) => one,
            (Self::Scan, one) | (one, Self::Scan) => one,
            (a, b) if b.cost() < a.cost() => b,
            (a, _) => a,
        }
    }
}

//! From a row to the principals that may see it, without asking each of them.

use std::collections::HashSet;

use smallvec::SmallVec;

use super::routes::{Graph, Known, Path};
use super::tables::Table;
use crate::datum::{Array, Datum, Trouble};
use crate::lookup::{Looked, Mirror};
use crate::mutant::{PolicyMutant, SelectMutant};
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

/// The principals whose value in a slot is among those of a column, in some rows of another table,
/// which the rows of other tables may lead to.
///
/// There may be very many: whoever needs them walks whichever are fewer, these or the principals.
#[derive(Clone)]
pub struct Members {
    slot: usize,
    /// Where the column stands in a row of the last mirror.
    column: usize,
    reached: Vec<Reached>,
}

/// Rows of one table, by what they have in common with what is known and the rows before.
#[derive(Clone)]
struct Reached {
    mirror: Mirror,
    /// Ascending places, and values.
    on: Vec<(usize, Value)>,
}

#[derive(Clone, PartialEq, Eq)]
enum Value {
    Known(Datum),
    /// At a place in the row of an earlier table.
    Of(usize, usize),
}

/// Takes a mirror, the places that its rows are found by, and the values there.
type Visit<'m, 'v> = dyn FnMut(&'m Mirror, &[usize], &[Datum]) -> Option<()> + 'v;

/// Rows that are gone through to say how many members there are.
const GLANCE: usize = 256;

impl Members {
    /// The slot.
    #[must_use]
    pub const fn slot(&self) -> usize {
        self.slot
    }

    /// How many values [`Members::values`] gives at most; the largest number where there are too many
    /// ways to them.
    #[must_use]
    pub fn len(&self) -> usize {
        let (mut len, mut left) = (0_usize, GLANCE);
        let glanced = self.walk(&mut Vec::new(), None, &mut |mirror, places, values| {
            left = left.checked_sub(1)?;
            len += if places.is_empty() {
                mirror.len()
            } else {
                mirror.count(places, values).unwrap_or(0)
            };
            Some(())
        });
        glanced.map_or(usize::MAX, |()| len)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values; one may come several times.
    pub fn values(&self) -> impl Iterator<Item = &Datum> {
        let mut found: Vec<&Datum> = Vec::new();
        let _ = self.walk(&mut Vec::new(), None, &mut |mirror, places, values| {
            let all = places.is_empty().then(|| mirror.rows());
            let keyed = mirror.find(places, values).into_iter().flatten();
            let rows = all.into_iter().flatten().chain(keyed);
            found.extend(rows.filter_map(|row| row.get(self.column)?.as_ref()));
            Some(())
        });
        found.into_iter()
    }

    /// Whether a value is among them.
    #[must_use]
    pub fn contains(&self, datum: &Datum) -> bool {
        // Where it is found there is no need to go on; without an index it may be.
        let walked = self.walk(
            &mut Vec::new(),
            Some(datum),
            &mut |mirror, places, values| {
                let count = mirror.count(places, values);
                (count == Ok(0)).then_some(())
            },
        );
        walked.is_none()
    }

    /// Visits the rows of the last table, by what they are found by, for each way to it; with that
    /// value in the column where one is given. `None` where a visit ends it.
    fn walk<'m>(
        &'m self,
        rows: &mut Vec<&'m Looked>,
        datum: Option<&Datum>,
        visit: &mut Visit<'m, '_>,
    ) -> Option<()> {
        let Some(reached) = self.reached.get(rows.len()) else {
            return Some(());
        };
        let last = rows.len() + 1 == self.reached.len();
        let mut on: Vec<(usize, &Datum)> = Vec::with_capacity(reached.on.len() + 1);
        for (place, value) in &reached.on {
            let value = match value {
                Value::Known(datum) => Some(datum),
                Value::Of(row, place) => {
                    let row: Option<&&'m Looked> = rows.get(*row);
                    row.and_then(|row| row.get(*place)?.as_ref())
                }
            };
            // Nothing equals NULL.
            let Some(value) = value else {
                return Some(());
            };
            on.push((*place, value));
        }
        if let Some(datum) = datum.filter(|_| last) {
            let at = on.partition_point(|(place, _)| *place < self.column);
            on.insert(at, (self.column, datum));
        }
        let (places, values): (Vec<usize>, Vec<Datum>) = on
            .into_iter()
            .map(|(place, value)| (place, value.clone()))
            .unzip();
        if last {
            return visit(&reached.mirror, &places, &values);
        }
        for row in reached.mirror.find(&places, &values).into_iter().flatten() {
            rows.push(row);
            let on = self.walk(rows, datum, visit);
            rows.pop();
            on?;
        }
        Some(())
    }
}

impl PartialEq for Members {
    fn eq(&self, other: &Self) -> bool {
        let alike =
            |(a, b): (&Reached, &Reached)| a.on == b.on && a.mirror.state() == b.mirror.state();
        (self.slot, self.column) == (other.slot, other.column)
            && self.reached.len() == other.reached.len()
            && self.reached.iter().zip(&other.reached).all(alike)
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
    /// Equality of a slot with an element of an array that the row decides.
    Among(usize, Expr),
    /// A slot that is itself the condition.
    Claim(usize),
    /// Equality of a slot with a column of another table, in the rows that the row leads to.
    Members(Path),
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
            Expr::Compare(Comparison::Eq, two) => match Self::equal(&two.0, &two.1) {
                Self::Scan => Self::members(expr, tables),
                found => found,
            },
            Expr::Select(_) | Expr::Compare(..) => Self::members(expr, tables),
            // One of them is true.
            Expr::Coalesce(all) => Self::Or(each(all)),
            Expr::Case(whens, otherwise) => {
                let mut either = vec![Self::of(otherwise, tables)];
                for (when, then) in whens {
                    let both = vec![Self::of(when, tables), Self::of(then, tables)];
                    either.push(Self::And(both));
                }
                Self::Or(either)
            }
            Expr::Any(Comparison::Eq, false, left, items) => {
                Self::Or(items.iter().map(|item| Self::equal(left, item)).collect())
            }
            Expr::AnyOf(Comparison::Eq, false, two) => match &**two {
                (Expr::Slot(slot), array @ (Expr::Part(_) | Expr::Const(_))) => {
                    Self::Among(*slot, array.clone())
                }
                // Of an array each element finds its principal.
                (row @ (Expr::Part(_) | Expr::Const(_)), Expr::Slot(slot)) => {
                    Self::Probe(*slot, row.clone())
                }
                _ => Self::Scan,
            },
            Expr::IsBool(one, Some(true), false) => Self::of(one, tables),
            Expr::Body(_, _, body) => Self::of(body, tables),
            // One of them is true.
            Expr::Caught(two) => Self::Or(each(&[two.0.clone(), two.1.clone()])),
            _ => Self::Scan,
        }
    }

    /// Of what is true only where sub-selects find rows.
    fn members(expr: &Expr, tables: &mut [Table]) -> Self {
        let mut graph = Graph::default();
        graph.demand(expr);
        let Some(path) = graph.members() else {
            return Self::Scan;
        };
        path.index(tables, true);
        Self::Members(path)
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

    /// Whether everybody has to be judged, for some row at least.
    pub(super) fn scans(&self) -> bool {
        match self {
            Self::Row(expr) => matches!(expr, Expr::Fail(Trouble::Undecided)),
            Self::Probe(..) | Self::Among(..) | Self::Claim(_) | Self::Members(_) => false,
            Self::Or(all) => all.iter().any(Self::scans),
            Self::And(all) => all.iter().all(Self::scans),
            Self::Scan => true,
        }
    }

    /// Whether the row alone decides.
    pub(super) fn is_of_row(&self) -> bool {
        match self {
            Self::Row(_) => !self.scans(),
            Self::Or(all) | Self::And(all) => all.iter().all(Self::is_of_row),
            Self::Probe(..) | Self::Among(..) | Self::Claim(_) | Self::Members(_) | Self::Scan => {
                false
            }
        }
    }

    pub(super) fn slots(&self, found: &mut Vec<usize>) {
        match self {
            Self::Probe(slot, _) | Self::Among(slot, _) | Self::Claim(slot) => found.push(*slot),
            Self::Members(path) => found.push(path.slot),
            Self::Or(all) | Self::And(all) => all.iter().for_each(|one| one.slots(found)),
            Self::Row(_) | Self::Scan => {}
        }
    }

    /// Its deliberate fault, of which a new one has one as well: nobody is found.
    fn is_faulty(&self) -> bool {
        match self {
            Self::Row(_) => PolicyMutant::RowPlanIsNobody.active(),
            Self::Probe(..) => PolicyMutant::ProbePlanIsNobody.active(),
            Self::Among(..) => PolicyMutant::AmongPlanIsNobody.active(),
            Self::Claim(_) => PolicyMutant::ClaimPlanIsNobody.active(),
            Self::Members(_) => SelectMutant::MembersPlanIsNobody.active(),
            Self::Or(_) => PolicyMutant::OrPlanIsNobody.active(),
            Self::And(_) => PolicyMutant::AndPlanIsNobody.active(),
            Self::Scan => PolicyMutant::ScanPlanIsNobody.active(),
        }
    }

    pub(super) fn audience(&self, inputs: Inputs<'_>) -> Audience {
        match self {
            _ if self.is_faulty() => Audience::Nobody,
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
            Self::Among(slot, array) => match array.outcome(inputs) {
                Ok(Some(Datum::Array(array))) => Audience::among(*slot, &array),
                Ok(None) | Err(Trouble::Error) => Audience::Nobody,
                Ok(Some(_)) | Err(Trouble::Undecided) => Audience::Scan,
            },
            Self::Members(path) => Audience::members(path, inputs),
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

    fn among(slot: usize, array: &Array) -> Self {
        let elements: HashSet<&Datum> = array.elements().iter().flatten().collect();
        if elements.is_empty() {
            return Self::Nobody;
        }
        let probe = |datum: &Datum| Probe {
            slot,
            datum: datum.clone(),
        };
        Self::Probes(elements.into_iter().map(probe).collect())
    }

    fn members(path: &Path, inputs: Inputs<'_>) -> Self {
        let mut reached = Vec::with_capacity(path.hops.len());
        let position = |hop: usize, column: usize| {
            let hop = path.hops.get(hop)?;
            let opened = inputs.tables.get(hop.at)?.as_ref()?;
            opened.positions.get(column).copied()
        };
        for (place, hop) in path.hops.iter().enumerate() {
            let Some(opened) = inputs.tables.get(hop.at).and_then(Option::as_ref) else {
                return Self::Scan;
            };
            let mut on = Vec::with_capacity(hop.on.len());
            for (column, known) in &hop.on {
                let value = match known {
                    Known::Of(hop, column) => position(*hop, *column).map(|at| Value::Of(*hop, at)),
                    Known::Expr(_) if SelectMutant::MembersForgetAKey.active() => {
                        Some(Value::Known(Datum::Int(-1)))
                    }
                    Known::Expr(expr) => match expr.outcome(inputs) {
                        Ok(Some(datum)) => Some(Value::Known(datum)),
                        Ok(None) | Err(Trouble::Error) => return Self::Nobody,
                        Err(Trouble::Undecided) => None,
                    },
                };
                let (Some(at), Some(value)) = (position(place, *column), value) else {
                    return Self::Scan;
                };
                on.push((at, value));
            }
            on.sort_unstable_by_key(|(at, _)| *at);
            let places: Vec<usize> = on.iter().map(|(at, _)| *at).collect();
            // Where the index is not there nobody can be told.
            if !places.is_empty() && opened.mirror.count(&places, &[]).is_err() {
                return Self::Scan;
            }
            reached.push(Reached {
                mirror: opened.mirror.clone(),
                on,
            });
        }
        let last = path.hops.len().checked_sub(1);
        let Some(column) = last.and_then(|last| position(last, path.column)) else {
            return Self::Scan;
        };
        let members = Members {
            slot: path.slot,
            column,
            reached,
        };
        match members.len() {
            0 => return Self::Nobody,
            // Whoever is asked for would have to be looked for on every way there.
            usize::MAX => return Self::Scan,
            _ => {}
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
        let members = members.fold(0, usize::saturating_add);
        (
            probes.iter().any(broad),
            probes.len().saturating_add(members),
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

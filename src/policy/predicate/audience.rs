//! From a row to the principals that may see it, without asking each of them.

use smallvec::SmallVec;

use crate::datum::{Datum, Trouble};
use crate::mutant::PolicyMutant;
use crate::policy::expr::{Comparison, Expr, Inputs};

/// Who may be among those that see a row: at least them, perhaps others, so each is still judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// Nobody sees the row.
    Nobody,
    /// The principals that one of these finds.
    Probes(SmallVec<[Probe; 2]>),
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

/// How a predicate's audience is found. Of an expression only its being true counts here.
#[derive(Debug, Clone)]
pub(super) enum Plan {
    /// The row alone decides.
    Row(Expr),
    /// Equality of a slot with something that the row decides.
    Probe(usize, Expr),
    /// A slot that is itself the condition.
    Claim(usize),
    /// One of these.
    Or(Vec<Self>),
    /// All of these.
    And(Vec<Self>),
    /// Anything else.
    Scan,
}

impl Plan {
    pub(super) fn of(expr: &Expr) -> Self {
        match expr {
            Expr::Const(_) | Expr::Fail(_) | Expr::Part(_) => Self::Row(expr.clone()),
            Expr::Slot(slot) => Self::Claim(*slot),
            Expr::And(all) => Self::And(all.iter().map(Self::of).collect()),
            Expr::Or(all) => Self::Or(all.iter().map(Self::of).collect()),
            Expr::Compare(Comparison::Eq, two) => Self::equal(&two.0, &two.1),
            Expr::Any(Comparison::Eq, false, left, items) => {
                Self::Or(items.iter().map(|item| Self::equal(left, item)).collect())
            }
            Expr::IsBool(one, Some(true), false) => Self::of(one),
            Expr::Body(_, _, body) => Self::of(body),
            _ => Self::Scan,
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
            Self::Probe(slot, _) | Self::Claim(slot) => found.push(*slot),
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

impl Audience {
    fn of(slot: usize, datum: Datum) -> Self {
        Self::Probes(SmallVec::from_iter([Probe { slot, datum }]))
    }

    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Everyone, _) | (_, Self::Everyone) => Self::Everyone,
            (Self::Scan, _) | (_, Self::Scan) => Self::Scan,
            (Self::Nobody, one) | (one, Self::Nobody) => one,
            (Self::Probes(mut probes), Self::Probes(others)) => {
                for probe in others {
                    if !probes.contains(&probe) {
                        probes.push(probe);
                    }
                }
                Self::Probes(probes)
            }
        }
    }

    /// The narrower one; of two by probes the one with fewer, and of as many the one that does not
    /// only ask a condition on claims, which many may meet.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nobody, _) | (_, Self::Nobody) => Self::Nobody,
            (Self::Everyone, one) | (one, Self::Everyone) => one,
            (Self::Scan, one) | (one, Self::Scan) => one,
            (Self::Probes(a), Self::Probes(b)) => {
                let cost = |probes: &[Probe]| {
                    let broad = probes
                        .iter()
                        .any(|probe| matches!(probe.datum, Datum::Bool(_)));
                    (broad, probes.len())
                };
                Self::Probes(if cost(&b) < cost(&a) { b } else { a })
            }
        }
    }
}

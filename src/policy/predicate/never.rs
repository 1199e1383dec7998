//! What can be told to be true for no row at all: policies that nobody, or one principal, sees anything
//! by. What is not recognised only costs work and words: it is decided row by row.

use super::{Predicate, Projection, Verdict, reads};
use crate::policy::expr::select::{Asked, Source};
use crate::policy::expr::{Constant, Expr, Inputs};

impl Predicate {
    /// Whether it lets nobody see any row.
    #[must_use]
    pub fn is_never(&self) -> bool {
        is_never(&self.whole, &self.parts)
    }

    /// Whether it lets no principal of this projection see any row.
    #[must_use]
    pub fn is_never_for(&self, projection: &Projection) -> bool {
        is_never(&filled(&self.whole, projection), &self.parts)
    }
}

/// With what a principal has in place of the slots.
fn filled(expr: &Expr, projection: &Projection) -> Expr {
    match expr {
        Expr::Slot(slot) => match projection.0.get(*slot) {
            Some(Ok(datum)) => Expr::Const(Constant(datum.clone())),
            Some(Err(trouble)) => Expr::Fail(*trouble),
            None => expr.clone(),
        },
        other => other.map(&mut |inner| filled(inner, projection)),
    }
}

/// Whether an expression is true for no row; `parts` are what only the row decides. An error hides rows
/// as well.
fn is_never(expr: &Expr, parts: &[Expr]) -> bool {
    let never = |expr: &Expr| is_never(expr, parts);
    match expr {
        Expr::And(all) => all.iter().any(never),
        Expr::Or(all) => all.iter().all(never),
        Expr::Part(part) => parts.get(*part).is_some_and(never),
        Expr::IsBool(inner, Some(true), false) | Expr::Body(_, _, inner) => never(inner),
        Expr::Caught(both) => never(&both.0) && never(&both.1),
        Expr::Case(arms, other) => never(other) && arms.iter().all(|(_, result)| never(result)),
        Expr::Compare(_, sides) => is_null(&sides.0) || is_null(&sides.1),
        Expr::Any(_, false, left, _) => is_null(left),
        Expr::AnyOf(_, false, sides) => is_null(&sides.0) || is_null(&sides.1),
        Expr::Select(select) => {
            let inner = select.from.iter();
            // The conditions behind a LEFT JOIN hold for its rows of NULLs as well.
            let mut inner = inner.filter(|step| matches!(step.source, Source::Table(_)));
            let mut empty = || inner.any(|step| step.condition.iter().any(never));
            match &select.result {
                Asked::Exists => empty(),
                Asked::Any(false, one) => never(one) || empty(),
                _ => false,
            }
        }
        constant => {
            let verdict = known(constant);
            matches!(
                verdict,
                Some(Verdict::False | Verdict::Null | Verdict::Error)
            )
        }
    }
}

/// Whether an operand is NULL whatever the row.
fn is_null(expr: &Expr) -> bool {
    matches!(expr, Expr::Const(Constant(None)))
}

/// What something says that depends on nothing.
fn known(expr: &Expr) -> Option<Verdict> {
    let read = reads(expr);
    let depends = read.row || read.claims || read.lookups || read.frames != 0;
    (!depends).then(|| expr.truth(Inputs::default()).into())
}

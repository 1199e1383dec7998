//! Blocks with EXCEPTION, for which it counts whether an error is raised.
//!
//! Elsewhere an error beside what decides an AND, an OR or a sub-select need not be raised, and
//! PostgreSQL's statement fails where it is. In a block that catches errors PostgreSQL goes on by
//! the handler then. So where there is such an error the block is undecided.

use super::{Compiler, Refusal};
use crate::datum::{Datum, Trouble, Type};
use crate::mutant::FunctionMutant;
use crate::policy::expr::select::{Asked, Several};
use crate::policy::expr::{Expr, Function};

impl Compiler<'_> {
    /// What a block comes to: what is tried, or where that raises an error what is done then.
    pub(super) fn caught(&mut self, tried: Expr, otherwise: Expr) -> Result<Expr, Refusal> {
        let mut beside = Vec::new();
        passed_over(&tried, &mut beside)?;
        self.spend(beside.iter().map(size).sum())?;
        let caught = Expr::Caught(Box::new((tried, otherwise)));
        if beside.is_empty() || FunctionMutant::ErrorsArePassedOver.active() {
            return Ok(caught);
        }
        let truth = |value| Expr::constant(Datum::Bool(value));
        let beside = Expr::Body(beside, false, Box::new(truth(true)));
        let none = Expr::Caught(Box::new((beside, truth(false))));
        let undecided = Expr::Fail(Trouble::Undecided);
        Ok(Expr::Case(vec![(none, caught)], Box::new(undecided)))
    }
}

/// Notes what may raise an error that the expression's own evaluation passes over.
fn passed_over(expr: &Expr, beside: &mut Vec<Expr>) -> Result<(), Refusal> {
    for inner in expr.children() {
        match expr {
            Expr::And(_) | Expr::Or(_) if may_raise(inner) => {
                beside.push(inner.clone());
                passed_over(inner, beside)?;
            }
            Expr::Select(_) => of_rows(inner, beside)?,
            _ => passed_over(inner, beside)?,
        }
    }
    Ok(())
}

/// The same of what is evaluated for rows, of which nobody knows for how many.
fn of_rows(expr: &Expr, beside: &mut Vec<Expr>) -> Result<(), Refusal> {
    if !may_raise(expr) {
        return Ok(());
    }
    if !reads_inner(expr) {
        beside.push(expr.clone());
        return passed_over(expr, beside);
    }
    if raises(expr) {
        return Err(Refusal::new(
            "an error of another table's row in a block with EXCEPTION",
        ));
    }
    let mut inner = expr.children().into_iter();
    inner.try_for_each(|one| of_rows(one, beside))
}

fn reads_inner(expr: &Expr) -> bool {
    matches!(expr, Expr::Inner(..) | Expr::Field(..))
        || expr.children().into_iter().any(reads_inner)
}

fn may_raise(expr: &Expr) -> bool {
    raises(expr) || expr.children().into_iter().any(may_raise)
}

fn size(expr: &Expr) -> usize {
    1 + expr.children().into_iter().map(size).sum::<usize>()
}

/// Whether an expression itself may raise an error.
fn raises(expr: &Expr) -> bool {
    match expr {
        Expr::Fail(trouble) => *trouble == Trouble::Error,
        Expr::Select(select) => matches!(
            select.result,
            Asked::Scalar(Several::Raise | Several::Distinct, _)
        ),
        Expr::Call(function, _) => match function {
            Function::Get
            | Function::GetText
            | Function::Path(_)
            | Function::PathText(_)
            | Function::Has
            | Function::JsonbTypeof
            | Function::Concat
            | Function::Lower(_)
            | Function::Upper(_)
            | Function::ToNumeric
            | Function::ToText
            | Function::Output
            | Function::Extreme(_) => false,
            Function::Input(of) => !matches!(of, Type::Text(_)),
            Function::Like
            | Function::NotLike
            | Function::Narrow(..)
            | Function::ToFloat
            | Function::Scalar(..)
            | Function::Array(_)
            | Function::Jsonb(_)
            | Function::Text(_)
            | Function::Time(_)
            | Function::Arithmetic(..) => true,
        },
        _ => false,
    }
}

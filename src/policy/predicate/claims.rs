//! Which claims a predicate reads.

use std::collections::BTreeSet;

use super::Predicate;
use crate::datum::Datum;
use crate::policy::expr::{Constant, Expr, Function};

impl Predicate {
    /// The claims that are read, each as the names that lead to it, joined by dots.
    #[must_use]
    pub fn claims(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for expr in self.expressions() {
            gather(expr, &mut found);
        }
        found
    }

    /// The expressions that it is made of.
    pub(in crate::policy) fn expressions(&self) -> impl Iterator<Item = &Expr> {
        let parts = self.slots.iter().chain(&self.parts);
        parts.chain(std::iter::once(&self.whole))
    }
}

fn gather(expr: &Expr, found: &mut BTreeSet<String>) {
    match path(expr) {
        Some(names) if !names.is_empty() => {
            found.insert(names.join("."));
        }
        _ => {
            for child in expr.children() {
                gather(child, found);
            }
        }
    }
}

/// The names that lead from the claims to what an expression reads of them; `None` where it is not
/// a place in them.
pub(in crate::policy) fn path(expr: &Expr) -> Option<Vec<String>> {
    match expr {
        Expr::Claims => Some(Vec::new()),
        Expr::NullIf(both) => path(&both.0),
        // As auth.jwt() is made: the others are settings that nobody has.
        Expr::Coalesce(all) => {
            let mut paths = all.iter().filter_map(path);
            let one = paths.next()?;
            paths.next().is_none().then_some(one)
        }
        Expr::Call(Function::Input(_), of) => path(of.first()?),
        Expr::Call(Function::Path(names) | Function::PathText(names), of) => {
            let mut all = path(of.first()?)?;
            all.extend(names.iter().map(ToString::to_string));
            Some(all)
        }
        Expr::Call(Function::Get | Function::GetText, of) => {
            let [inner, Expr::Const(Constant(Some(Datum::Text(name))))] = of.as_slice() else {
                return None;
            };
            let mut all = path(inner)?;
            all.push(name.to_string());
            Some(all)
        }
        _ => None,
    }
}

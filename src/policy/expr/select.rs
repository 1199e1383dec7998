//! A sub-select over one table, evaluated on its mirror.
//!
//! Rows are found by the columns that must equal something that is known before the table is looked
//! into, and the rest of the condition is evaluated on those. A row belongs to the result where all
//! of the condition is true: a part that is false or NULL leaves it out whatever else raises an
//! error, since PostgreSQL stops at the first that is not true and promises no order.

use std::ops::ControlFlow;

use smallvec::SmallVec;

use super::{Comparison, Expr, Inputs, Outcome, both};
use crate::datum::{Datum, Trouble};
use crate::lookup::{Looked, Mirror};
use crate::mutant::SelectMutant;
use crate::pg::Oid;

/// A sub-select over one table.
#[derive(Debug, Clone, PartialEq)]
pub struct Select {
    /// The table.
    pub table: Oid,
    /// How many sub-selects are around it: [`Expr::Inner`] of this depth is a column of its row.
    pub depth: u32,
    /// What must be true of a row, the policies of the table included.
    pub condition: Vec<Expr>,
    /// What is asked of the rows.
    pub result: Asked,
    /// Which of the predicate's tables this is.
    pub at: usize,
    /// Columns of the table and what they must equal, which does not depend on its row.
    pub keys: Vec<(usize, Expr)>,
}

/// What a sub-select says.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    /// `EXISTS`
    Exists,
    /// `left op ANY (select value …)`, or `ALL` where the flag is set.
    Any(Comparison, bool, Box<(Expr, Expr)>),
    /// The value of the only row.
    Scalar(Several, Box<Expr>),
}

/// What several rows mean to a sub-select that gives one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Several {
    /// An error.
    Raise,
    /// `distinct`: an error where their values differ.
    Distinct,
    /// `limit 1`: one of them, nobody knows which.
    First,
}

/// A table's mirror, and where in its rows the predicate's columns stand.
#[derive(Debug, Clone)]
pub(in crate::policy) struct Opened<'a> {
    pub(in crate::policy) mirror: &'a Mirror,
    pub(in crate::policy) positions: SmallVec<[usize; 8]>,
}

/// The row in hand of a sub-select, inside those around.
#[derive(Clone, Copy)]
pub(in crate::policy) struct Frame<'a> {
    pub(in crate::policy) depth: u32,
    pub(in crate::policy) row: &'a [Option<Datum>],
    pub(in crate::policy) positions: &'a [usize],
    pub(in crate::policy) around: Option<&'a Frame<'a>>,
}

/// The value of a column of a sub-select's row in hand.
pub(super) fn field<'a>(
    depth: u32,
    column: usize,
    inputs: Inputs<'a>,
) -> Result<Option<&'a Datum>, Trouble> {
    let mut frame = inputs.frame;
    while let Some(found) = frame {
        if found.depth == depth {
            let position = found.positions.get(column).ok_or(Trouble::Undecided)?;
            let value = found.row.get(*position).ok_or(Trouble::Undecided)?;
            return Ok(value.as_ref());
        }
        frame = found.around;
    }
    Err(Trouble::Undecided)
}

impl Select {
    /// The expressions inside.
    pub(super) fn children(&self) -> Vec<&Expr> {
        let mut all: Vec<&Expr> = self.condition.iter().collect();
        all.extend(self.keys.iter().map(|(_, key)| key));
        match &self.result {
            Asked::Exists => {}
            Asked::Any(_, _, two) => all.extend([&two.0, &two.1]),
            Asked::Scalar(_, value) => all.push(value),
        }
        all
    }

    pub(in crate::policy) fn map(&self, inner: &mut impl FnMut(&Expr) -> Expr) -> Self {
        Self {
            condition: self.condition.iter().map(&mut *inner).collect(),
            keys: self
                .keys
                .iter()
                .map(|(column, key)| (*column, inner(key)))
                .collect(),
            result: match &self.result {
                Asked::Exists => Asked::Exists,
                Asked::Any(op, all, two) => {
                    Asked::Any(*op, *all, Box::new((inner(&two.0), inner(&two.1))))
                }
                Asked::Scalar(several, value) => Asked::Scalar(*several, Box::new(inner(value))),
            },
            ..*self
        }
    }

    /// The columns of the table and what they must equal, keys and others.
    pub(in crate::policy) fn equalities(&self) -> impl Iterator<Item = (usize, &Expr)> {
        let keys = self.keys.iter().map(|(column, key)| (*column, key));
        let others = self.condition.iter().filter_map(|one| self.equality(one));
        keys.chain(others)
    }

    /// The column of the table and what it must equal, where that is what a condition says.
    pub(in crate::policy) fn equality<'e>(&self, condition: &'e Expr) -> Option<(usize, &'e Expr)> {
        let Expr::Compare(Comparison::Eq, two) = condition else {
            return None;
        };
        let own = |expr: &Expr| match expr {
            Expr::Field(depth, column) if *depth == self.depth => Some(*column),
            _ => None,
        };
        match (own(&two.0), own(&two.1)) {
            (Some(column), _) if !two.1.reads_field(self.depth) => Some((column, &two.1)),
            (_, Some(column)) if !two.0.reads_field(self.depth) => Some((column, &two.0)),
            _ => None,
        }
    }

    /// `EXISTS` and `ANY`.
    pub(super) fn truth(&self, inputs: Inputs<'_>) -> Result<Option<bool>, Trouble> {
        match &self.result {
            Asked::Exists => {
                let mut found = false;
                let looked = self.rows(inputs, &mut |_, _| {
                    found = true;
                    ControlFlow::Break(())
                });
                if found {
                    return Ok(Some(!SelectMutant::ExistsFlipped.active()));
                }
                looked?;
                Ok(Some(SelectMutant::ExistsFlipped.active()))
            }
            Asked::Any(op, all, two) => self.any(*op, *all, two, inputs),
            Asked::Scalar(..) => Err(Trouble::Undecided),
        }
    }

    fn any(
        &self,
        op: Comparison,
        all: bool,
        two: &(Expr, Expr),
        inputs: Inputs<'_>,
    ) -> Result<Option<bool>, Trouble> {
        let left = two.0.outcome(inputs);
        let (mut decided, mut null, mut trouble) = (false, false, None);
        let looked = self.rows(inputs, &mut |inputs, _| {
            let held = match both(left.as_ref().map_err(|met| *met), two.1.evaluate(inputs)) {
                Ok((Some(left), Some(value))) => op.holds(left, &value).map(Some),
                Ok(_) => Ok(None),
                Err(met) => Err(met),
            };
            match held {
                Ok(Some(truth)) if truth != all => {
                    decided = true;
                    return ControlFlow::Break(());
                }
                Ok(Some(_)) => {}
                Ok(None) => null |= !SelectMutant::AnyForgetsNull.active(),
                Err(met) => trouble = trouble.max(Some(met)),
            }
            ControlFlow::Continue(())
        });
        if decided {
            return Ok(Some(!all));
        }
        match trouble.max(looked.err()) {
            Some(met) => Err(met),
            None => Ok((!null).then_some(all)),
        }
    }

    /// The value of a sub-select that gives one.
    pub(super) fn value(&self, inputs: Inputs<'_>) -> Outcome {
        let Asked::Scalar(several, value) = &self.result else {
            return Ok(self.truth(inputs)?.map(Datum::Bool));
        };
        let mut first: Option<Outcome> = None;
        let (mut differ, mut more) = (None, false);
        let looked = self.rows(inputs, &mut |inputs, times| {
            let one = value.outcome(inputs);
            more |= times > 1;
            match &first {
                None => first = Some(one),
                Some(known) => {
                    more = true;
                    differ = differ.max(Some(difference(known, &one)));
                }
            }
            ControlFlow::Continue(())
        });
        let first = match (first, looked) {
            (None, looked) => return looked.map(|()| None),
            // The row that raises an error may lie behind the first.
            (Some(_), Err(_)) if *several == Several::First => return Err(Trouble::Undecided),
            (Some(_), Err(met)) => return Err(met),
            (Some(first), Ok(())) => first,
        };
        let raised = !SelectMutant::ScalarTakesFirst.active();
        match (several, differ) {
            (Several::Raise, _) if more && raised => Err(Trouble::Error),
            (Several::Raise, _) | (_, None | Some(Difference::None)) => first,
            (Several::Distinct, Some(Difference::Value)) if raised => Err(Trouble::Error),
            (Several::Distinct | Several::First, _) => Err(Trouble::Undecided),
        }
    }

    /// Visits the rows of the result, and how often each is there.
    ///
    /// # Errors
    /// Where it cannot be told whether some row belongs to it, after all others were visited.
    fn rows(
        &self,
        inputs: Inputs<'_>,
        visit: &mut dyn FnMut(Inputs<'_>, u32) -> ControlFlow<()>,
    ) -> Result<(), Trouble> {
        let opened = inputs.tables.get(self.at).and_then(Option::as_ref);
        let opened = opened.ok_or(Trouble::Undecided)?;
        let mut keys: SmallVec<[(usize, Datum); 4]> = SmallVec::new();
        let mut trouble = None;
        for (column, key) in &self.keys {
            let position = opened.positions.get(*column).ok_or(Trouble::Undecided)?;
            match key.evaluate(inputs) {
                Ok(Some(datum)) => keys.push((*position, datum.into_owned())),
                // Nothing equals NULL.
                Ok(None) => return Ok(()),
                Err(met) => trouble = trouble.max(Some(met)),
            }
        }
        keys.sort_unstable_by_key(|(position, _)| *position);
        let mut met = None;
        let mut one = |row: &Looked, times: u32| {
            let frame = Frame {
                depth: self.depth,
                row,
                positions: &opened.positions,
                around: inputs.frame,
            };
            let inputs = Inputs {
                frame: Some(&frame),
                ..inputs
            };
            match self.takes(inputs).and_then(|taken| match trouble {
                Some(trouble) if taken => Err(trouble),
                _ => Ok(taken),
            }) {
                Ok(true) => return visit(inputs, times),
                Ok(false) => {}
                Err(trouble) => met = met.max(Some(trouble)),
            }
            ControlFlow::Continue(())
        };
        if trouble.is_some() || keys.is_empty() {
            for row in opened.mirror.rows() {
                let equal = |(at, datum): &(usize, Datum)| {
                    row.get(*at).is_some_and(|own| own.as_ref() == Some(datum))
                };
                if keys.iter().all(equal) && one(row, 1).is_break() {
                    return Ok(());
                }
            }
        } else {
            let places: SmallVec<[usize; 4]> = keys.iter().map(|(at, _)| *at).collect();
            let values: SmallVec<[Datum; 4]> = keys.into_iter().map(|(_, datum)| datum).collect();
            let found = opened.mirror.find(&places, &values);
            for row in found.map_err(|_| Trouble::Undecided)? {
                let times = match &self.result {
                    Asked::Scalar(..) => opened.mirror.times(row),
                    _ => 1,
                };
                if one(row, times).is_break() {
                    return Ok(());
                }
            }
        }
        met.map_or(Ok(()), Err)
    }

    /// Whether the row in hand belongs to the result.
    fn takes(&self, inputs: Inputs<'_>) -> Result<bool, Trouble> {
        let mut trouble = None;
        for one in &self.condition {
            match one.truth(inputs) {
                Ok(Some(true)) => {}
                Ok(_) if SelectMutant::ConditionIsForgotten.active() => {}
                Ok(_) => return Ok(false),
                Err(met) => trouble = trouble.max(Some(met)),
            }
        }
        trouble.map_or(Ok(true), Err)
    }

    /// Whether a row can be left out whatever is around: a condition on it alone is not true.
    pub(in crate::policy) fn leaves_out(&self, row: &[Option<Datum>], positions: &[usize]) -> bool {
        let frame = Frame {
            depth: self.depth,
            row,
            positions,
            around: None,
        };
        let inputs = Inputs {
            frame: Some(&frame),
            ..Inputs::default()
        };
        let constant = |key: &Expr| matches!(key, Expr::Const(_));
        let keyed = self.keys.iter().filter(|(_, key)| constant(key));
        let unequal = |(column, key): &(usize, Expr)| {
            let own = field(self.depth, *column, inputs);
            let equal = both(own, key.evaluate(inputs)).map(|two| match two {
                (Some(own), Some(key)) => *own == *key,
                _ => false,
            });
            equal == Ok(false)
        };
        keyed.into_iter().any(unequal)
            || self
                .condition
                .iter()
                .filter(|one| one.needs_only(self.depth))
                .any(|one| matches!(one.truth(inputs), Ok(Some(false) | None)))
    }
}

/// How two values differ, the worse the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    None,
    /// Equal, but not the same: `1.0` and `1.00`.
    Form,
    Value,
    Trouble,
}

fn difference(a: &Outcome, b: &Outcome) -> Difference {
    match (a, b) {
        (Ok(Some(a)), Ok(Some(b))) if a.identical(b) => Difference::None,
        (Ok(Some(a)), Ok(Some(b))) if a == b => Difference::Form,
        (Ok(None), Ok(None)) => Difference::None,
        (Ok(_), Ok(_)) => Difference::Value,
        _ => Difference::Trouble,
    }
}

impl Expr {
    /// Whether the row in hand of the sub-select of that depth is read.
    pub(in crate::policy) fn reads_field(&self, depth: u32) -> bool {
        // A sub-select of that depth inside has a row of its own.
        if matches!(self, Self::Select(select) if select.depth == depth) {
            return false;
        }
        matches!(self, Self::Field(own, _) | Self::Inner(own, _) if *own == depth)
            || self
                .children()
                .into_iter()
                .any(|inner| inner.reads_field(depth))
    }

    /// Whether nothing but the row in hand of the sub-select of that depth is read.
    fn needs_only(&self, depth: u32) -> bool {
        let own = match self {
            Self::Field(own, _) => *own == depth,
            Self::Column(_)
            | Self::Cell(_)
            | Self::Part(_)
            | Self::Slot(_)
            | Self::Claims
            | Self::Role
            | Self::Inner(..)
            | Self::Select(_) => false,
            _ => true,
        };
        own && self
            .children()
            .into_iter()
            .all(|inner| inner.needs_only(depth))
    }
}

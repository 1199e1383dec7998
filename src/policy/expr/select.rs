//! A sub-select over tables, evaluated on their mirrors.
//!
//! The tables stand in a chain. The rows of each are found by the columns that must equal something
//! that is known before the table is looked into, be it from outside or from the tables before, and
//! the rest of the conditions is evaluated as soon as what they read is in hand. A combination of
//! rows belongs to the result where all conditions are true: one that is false or NULL leaves it out
//! whatever else raises an error, since PostgreSQL stops at the first that is not true and promises
//! no order.

mod chain;

mod fold;

mod recursion;

use std::ops::ControlFlow;

pub(super) use chain::field;
pub(in crate::policy) use chain::{Frame, Opened};
pub use chain::{Place, Source, Step};
pub use fold::{Aggregate, Kind, Sort};
pub use recursion::{MAX_WIDTH, Recursion};

use super::{Expr, Inputs, Outcome};
use crate::datum::{Datum, Trouble};
use crate::mutant::SelectMutant;

/// A sub-select over tables.
#[derive(Debug, Clone, PartialEq)]
pub struct Select {
    /// The tables, each with what must be true once its row is in hand, the table's own policies
    /// included.
    pub from: Vec<Step>,
    /// What is asked of the combinations of rows.
    pub result: Asked,
}

/// What a sub-select says.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    /// `EXISTS`
    Exists,
    /// A condition on the row and what is around, as `left = value` of `left in (select value …)`:
    /// whether it holds for any row, or for all where the flag is set.
    Any(bool, Box<Expr>),
    /// The value of the only row.
    Scalar(Several, Box<Expr>),
    /// `order by … limit 1`: the value of the first row.
    First(Vec<Sort>, Box<Expr>),
    /// Aggregates of all rows, and a value made of them, to which they are a row of that depth.
    Folded(u32, Vec<Aggregate>, Box<Expr>),
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

impl Select {
    /// The expressions inside.
    pub(in crate::policy) fn children(&self) -> Vec<&Expr> {
        let mut all = Vec::new();
        self.from.iter().for_each(|step| step.children(&mut all));
        all.extend(self.asks());
        all
    }

    /// The expressions that are asked of its rows.
    pub(in crate::policy) fn asks(&self) -> Vec<&Expr> {
        let mut all: Vec<&Expr> = Vec::new();
        match &self.result {
            Asked::Exists => {}
            Asked::Any(_, one) | Asked::Scalar(_, one) => all.push(one),
            Asked::First(order, value) => {
                all.extend(order.iter().map(|one| &one.by));
                all.push(value);
            }
            Asked::Folded(_, aggregates, value) => {
                all.extend(aggregates.iter().flat_map(Aggregate::children));
                all.push(value);
            }
        }
        all
    }

    pub(in crate::policy) fn map(&self, inner: &mut impl FnMut(&Expr) -> Expr) -> Self {
        Self {
            from: self.from.iter().map(|step| step.map(inner)).collect(),
            result: match &self.result {
                Asked::Exists => Asked::Exists,
                Asked::Any(all, test) => Asked::Any(*all, Box::new(inner(test))),
                Asked::Scalar(several, value) => Asked::Scalar(*several, Box::new(inner(value))),
                Asked::First(order, value) => {
                    let sorts = order.iter().map(|one| Sort {
                        by: inner(&one.by),
                        ..*one
                    });
                    let sorts = sorts.collect();
                    Asked::First(sorts, Box::new(inner(value)))
                }
                Asked::Folded(depth, aggregates, value) => {
                    let mut mapped = Vec::with_capacity(aggregates.len());
                    for one in aggregates {
                        mapped.push(one.map(&mut *inner));
                    }
                    Asked::Folded(*depth, mapped, Box::new(inner(value)))
                }
            },
        }
    }

    /// The tables, those of outer joins included.
    pub(in crate::policy) fn places(&self) -> Vec<&Place> {
        let mut all = Vec::new();
        self.from.iter().for_each(|step| step.places(&mut all));
        all
    }

    /// The depths of its tables, and of the row of its aggregates.
    pub(in crate::policy) fn depths(&self) -> Vec<u32> {
        let mut depths: Vec<u32> = self.places().iter().map(|place| place.depth).collect();
        if let Asked::Folded(depth, ..) = self.result {
            depths.push(depth);
        }
        depths
    }

    /// `EXISTS` and `ANY`.
    pub(super) fn truth(&self, inputs: Inputs<'_>) -> Result<Option<bool>, Trouble> {
        match &self.result {
            Asked::Exists => {
                let mut found = false;
                let ordered = self.has_elements();
                let looked = self.rows(inputs, &mut |_, _| {
                    found = true;
                    if ordered {
                        return ControlFlow::Continue(());
                    }
                    ControlFlow::Break(())
                });
                // Whether PostgreSQL comes to the error before it has found one is its own affair.
                if found && ordered && looked.is_err() {
                    return Err(Trouble::Undecided);
                }
                if found {
                    return Ok(Some(!SelectMutant::ExistsFlipped.active()));
                }
                looked?;
                Ok(Some(SelectMutant::ExistsFlipped.active()))
            }
            Asked::Any(all, test) => self.any(*all, test, inputs),
            Asked::Scalar(..) | Asked::First(..) | Asked::Folded(..) => Err(Trouble::Undecided),
        }
    }

    fn any(&self, all: bool, test: &Expr, inputs: Inputs<'_>) -> Result<Option<bool>, Trouble> {
        let all = all != SelectMutant::AllIsAny.active();
        let (mut decided, mut null, mut trouble) = (false, false, None);
        let ordered = self.has_elements();
        let looked = self.rows(inputs, &mut |inputs, _| {
            match test.truth(inputs) {
                Ok(Some(truth)) if truth != all => {
                    decided = true;
                    if !ordered {
                        return ControlFlow::Break(());
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => null |= !SelectMutant::AnyForgetsNull.active(),
                Err(met) => trouble = trouble.max(Some(met)),
            }
            ControlFlow::Continue(())
        });
        let trouble = trouble.max(looked.err());
        if decided && ordered && trouble.is_some() {
            return Err(Trouble::Undecided);
        }
        if decided {
            return Ok(Some(!all));
        }
        match trouble {
            Some(met) => Err(met),
            None => Ok((!null).then_some(all)),
        }
    }

    /// Whether it goes through the elements of an array.
    fn has_elements(&self) -> bool {
        let mut places = self.places().into_iter();
        places.any(|place| place.elements.is_some())
    }

    /// The value of a sub-select that gives one.
    pub(super) fn value(&self, inputs: Inputs<'_>) -> Outcome {
        let (several, value) = match &self.result {
            Asked::Exists | Asked::Any(..) => return Ok(self.truth(inputs)?.map(Datum::Bool)),
            Asked::Scalar(several, value) => (several, value),
            Asked::First(order, value) => return self.sorted(order, value, inputs),
            Asked::Folded(depth, all, value) => return self.folded(*depth, all, value, inputs),
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

    /// Visits the combinations of rows of the result, and how often each is there.
    ///
    /// # Errors
    /// Where it cannot be told whether some combination belongs to it, after all others were
    /// visited.
    fn rows(
        &self,
        inputs: Inputs<'_>,
        visit: &mut dyn FnMut(Inputs<'_>, u32) -> ControlFlow<()>,
    ) -> Result<(), Trouble> {
        let mut met = None;
        let count = matches!(self.result, Asked::Scalar(..) | Asked::Folded(..));
        let count = count && !SelectMutant::TimesAreForgotten.active();
        let walk = chain::Walk { count };
        let _ = walk.chain(
            &self.from,
            inputs,
            (1, None),
            &mut |inputs, times, trouble| {
                if trouble.is_none() {
                    return visit(inputs, times);
                }
                met = met.max(trouble);
                ControlFlow::Continue(())
            },
        );
        met.map_or(Ok(()), Err)
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
    /// Whether the row in hand of a table of one of these depths is read.
    pub(in crate::policy) fn reads_field(&self, of: &impl Fn(u32) -> bool) -> bool {
        match self {
            Self::Field(depth, _) | Self::Inner(depth, _) => of(*depth),
            Self::Select(select) => {
                // A sub-select of that depth inside has a row of its own.
                let own = select.depths();
                // A plain reference: the type of a closure in a closure would have no end.
                let outer: &dyn Fn(u32) -> bool = &|depth| of(depth) && !own.contains(&depth);
                let mut children = select.children().into_iter();
                children.any(|inner| inner.reads_field(&outer))
            }
            Self::Recursive(recursion) => {
                let outer: &dyn Fn(u32) -> bool = &|depth| depth != recursion.depth && of(depth);
                let mut children = self.children().into_iter();
                children.any(|inner| inner.reads_field(&outer))
            }
            _ => self
                .children()
                .into_iter()
                .any(|inner| inner.reads_field(of)),
        }
    }

    /// Whether an array in it may have the elements of a table's rows, in whatever order.
    pub(in crate::policy) fn is_unordered(&self) -> bool {
        let own = match self {
            Self::Select(select) => match &select.result {
                Asked::Folded(_, all, _) => {
                    // The elements of one array come in their order.
                    let places = select.places();
                    let plain = matches!(places.as_slice(), [place] if place.elements.is_some());
                    let mut arrays = all.iter().filter(|one| one.kind == Kind::Array);
                    arrays.any(|one| !plain || one.distinct)
                }
                _ => false,
            },
            _ => false,
        };
        own || self.children().into_iter().any(Self::is_unordered)
    }

    /// Whether nothing but the row in hand of the table of that depth is read.
    pub(in crate::policy) fn needs_only(&self, depth: u32) -> bool {
        let own = match self {
            Self::Field(own, _) => *own == depth,
            Self::Column(_)
            | Self::Cell(_)
            | Self::Part(_)
            | Self::Slot(_)
            | Self::Claims
            | Self::Role
            | Self::Inner(..)
            | Self::Select(_)
            | Self::Recursive(_) => false,
            _ => true,
        };
        own && self
            .children()
            .into_iter()
            .all(|inner| inner.needs_only(depth))
    }
}

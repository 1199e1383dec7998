//! What becomes of all rows together: aggregates, and the first in an order.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::super::{Expr, Inputs, Outcome};
use super::chain::Frame;
use super::{Difference, Select, difference};
use crate::datum::{Array, Datum, Trouble};
use crate::mutant::SelectMutant;

/// An aggregate function over all rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Aggregate {
    /// Which.
    pub kind: Kind,
    /// Of what; nothing for `count(*)`.
    pub of: Option<Expr>,
    /// Whether equal values count once.
    pub distinct: bool,
    /// `filter (where …)`
    pub filter: Option<Expr>,
}

/// The aggregate functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `count`
    Count,
    /// `bool_and`, `every`
    Every,
    /// `bool_or`
    Some,
    /// `max`
    Max,
    /// `min`
    Min,
    /// `array_agg`, in whatever order
    Array,
}

/// A part of `order by`.
#[derive(Debug, Clone, PartialEq)]
pub struct Sort {
    /// What is compared.
    pub by: Expr,
    /// `desc`
    pub descending: bool,
    /// `nulls first`
    pub nulls_first: bool,
}

impl Aggregate {
    pub(super) fn children(&self) -> impl Iterator<Item = &Expr> {
        self.of.iter().chain(&self.filter)
    }

    pub(super) fn map(&self, inner: &mut impl FnMut(&Expr) -> Expr) -> Self {
        Self {
            of: self.of.as_ref().map(&mut *inner),
            filter: self.filter.as_ref().map(inner),
            ..*self
        }
    }
}

/// What an aggregate has so far.
#[derive(Default)]
struct Sum {
    count: i64,
    value: Option<Datum>,
    seen: HashSet<Option<Datum>>,
    all: Vec<Option<Datum>>,
    /// Equal values that are not the same: nobody knows which one it is.
    unsure: bool,
}

impl Sum {
    fn add(&mut self, of: &Aggregate, datum: Option<Datum>, times: u32) -> Result<(), Trouble> {
        if of.kind == Kind::Array {
            let again = of.distinct && !self.seen.insert(datum.clone());
            let times = if of.distinct { 1 } else { times };
            if !again {
                self.all.extend((0..times).map(|_| datum.clone()));
            }
            return Ok(());
        }
        let Some(datum) = datum else {
            return Ok(());
        };
        if of.distinct && !SelectMutant::DistinctIsForgotten.active() {
            if !self.seen.insert(Some(datum.clone())) {
                return Ok(());
            }
            self.count += 1;
        } else {
            self.count += i64::from(times);
        }
        let Some(known) = &self.value else {
            self.value = Some(datum);
            return Ok(());
        };
        let order = datum.order(known).ok_or(Trouble::Undecided);
        let better = match of.kind {
            Kind::Count | Kind::Array => return Ok(()),
            Kind::Every | Kind::Min => order? == Ordering::Less,
            Kind::Some | Kind::Max => order? == Ordering::Greater,
        };
        if better != of.kind.is_faulty() {
            self.value = Some(datum);
            self.unsure = false;
        } else if datum == *known {
            self.unsure |= !datum.identical(known);
        }
        Ok(())
    }

    fn outcome(self, of: &Aggregate) -> Outcome {
        match of.kind {
            Kind::Count => Ok(Some(Datum::Int(
                self.count + i64::from(of.kind.is_faulty()),
            ))),
            Kind::Array if self.all.is_empty() || of.kind.is_faulty() => Ok(None),
            Kind::Array => Ok(Some(Datum::Array(Arc::new(Array::new(self.all))))),
            _ if self.unsure => Err(Trouble::Undecided),
            _ => Ok(self.value),
        }
    }
}

impl Select {
    pub(super) fn folded(
        &self,
        depth: u32,
        aggregates: &[Aggregate],
        value: &Expr,
        inputs: Inputs<'_>,
    ) -> Outcome {
        let mut sums: Vec<Sum> = aggregates.iter().map(|_| Sum::default()).collect();
        let mut trouble = None;
        let looked = self.rows(inputs, &mut |inputs, times| {
            for (sum, of) in sums.iter_mut().zip(aggregates) {
                let taken = of
                    .filter
                    .as_ref()
                    .map_or(Ok(Some(true)), |one| one.truth(inputs));
                let added = taken.and_then(|taken| {
                    if taken != Some(true) && !SelectMutant::FilterIsForgotten.active() {
                        return Ok(());
                    }
                    let one = Some(Datum::Bool(true));
                    let datum = of.of.as_ref().map_or(Ok(one), |of| of.outcome(inputs))?;
                    sum.add(of, datum, times)
                });
                trouble = trouble.max(added.err());
            }
            ControlFlow::Continue(())
        });
        if let Some(met) = trouble.max(looked.err()) {
            return Err(met);
        }
        let sums = sums.into_iter().zip(aggregates);
        let row: Vec<Option<Datum>> = sums
            .map(|(sum, of)| sum.outcome(of))
            .collect::<Result<_, _>>()?;
        let positions: Vec<usize> = (0..row.len()).collect();
        let frame = Frame {
            depth,
            row: Some(&row),
            positions: &positions,
            around: inputs.frame,
        };
        value.outcome(Inputs {
            frame: Some(&frame),
            ..inputs
        })
    }

    /// The value of the first row in an order.
    pub(super) fn sorted(&self, order: &[Sort], value: &Expr, inputs: Inputs<'_>) -> Outcome {
        let mut first: Option<(Vec<Option<Datum>>, Outcome)> = None;
        let (mut trouble, mut unsure) = (None, false);
        let mut failing = 0_u32;
        let looked = self.rows(inputs, &mut |inputs, _| {
            let keys = order.iter().map(|one| one.by.outcome(inputs));
            let keys: Vec<Option<Datum>> = match keys.collect() {
                Ok(keys) => keys,
                Err(met) => {
                    trouble = trouble.max(Some(met));
                    return ControlFlow::Continue(());
                }
            };
            let one = value.outcome(inputs);
            failing += u32::from(one.is_err());
            let before = match &first {
                None => Ok(Ordering::Less),
                Some((known, _)) => compared(order, &keys, known),
            };
            match (before, &first) {
                (Err(met), _) => trouble = trouble.max(Some(met)),
                (Ok(Ordering::Equal), Some((_, known))) => {
                    unsure |= difference(known, &one) != Difference::None;
                }
                (Ok(Ordering::Less), _) => {
                    first = Some((keys, one));
                    unsure = false;
                }
                _ => {}
            }
            ControlFlow::Continue(())
        });
        match (trouble.max(looked.err()), first) {
            (Some(met), _) => Err(met),
            (None, None) => Ok(None),
            // The value of a row behind the first may be computed too.
            (None, Some((_, Ok(_)))) if unsure || failing > 0 => Err(Trouble::Undecided),
            (None, Some((_, Err(_)))) if unsure => Err(Trouble::Undecided),
            (None, Some((_, value))) => value,
        }
    }
}

fn compared(order: &[Sort], a: &[Option<Datum>], b: &[Option<Datum>]) -> Result<Ordering, Trouble> {
    for (by, (a, b)) in order.iter().zip(a.iter().zip(b)) {
        let nulls = if by.nulls_first != SelectMutant::NullsChangeEnds.active() {
            Ordering::Less
        } else {
            Ordering::Greater
        };
        let ordered = match (a, b) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => nulls,
            (Some(_), None) => nulls.reverse(),
            (Some(a), Some(b)) => {
                let ordered = a.order(b).ok_or(Trouble::Undecided)?;
                if by.descending != SelectMutant::OrderIsReversed.active() {
                    ordered.reverse()
                } else {
                    ordered
                }
            }
        };
        if ordered.is_ne() {
            return Ok(ordered);
        }
    }
    Ok(Ordering::Equal)
}

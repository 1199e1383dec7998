//! The chain of tables of a sub-select, walked row by row.

use std::ops::ControlFlow;

use smallvec::SmallVec;

use super::super::{Comparison, Expr, Inputs, both};
use crate::datum::{Datum, Trouble};
use crate::lookup::{Looked, Mirror};
use crate::mutant::{PolicyMutant, SelectMutant};
use crate::pg::Oid;

/// One more table, or an outer join with several.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Where the rows come from.
    pub source: Source,
    /// What must be true once the row is in hand.
    pub condition: Vec<Expr>,
}

/// Where the rows of a step come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A table.
    Table(Place),
    /// `left join`: the combinations of these, and one row of NULLs where there are none.
    Optional(Vec<Step>),
}

/// A table in FROM.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// The table.
    pub table: Oid,
    /// How many tables are before it, in the sub-selects around too: [`Expr::Inner`] of this depth
    /// is a column of its row.
    pub depth: u32,
    /// Which of the predicate's tables this is.
    pub at: usize,
    /// Columns of the table and what they must equal, which does not depend on its row.
    pub keys: Vec<(usize, Expr)>,
    /// Where the rows are those of no table but the elements of an array, that array; they are in
    /// the first column.
    pub elements: Option<Box<Expr>>,
    /// Whether these elements are rows: arrays of the columns' values.
    pub rows: bool,
}

/// A table's mirror, and where in its rows the predicate's columns stand.
#[derive(Debug, Clone)]
pub(in crate::policy) struct Opened<'a> {
    pub(in crate::policy) mirror: &'a Mirror,
    pub(in crate::policy) positions: SmallVec<[usize; 8]>,
}

/// The row in hand of a table, inside those around; `None` where an outer join found none.
#[derive(Clone, Copy)]
pub(in crate::policy) struct Frame<'a> {
    pub(in crate::policy) depth: u32,
    pub(in crate::policy) row: Option<&'a [Option<Datum>]>,
    pub(in crate::policy) positions: &'a [usize],
    pub(in crate::policy) around: Option<&'a Frame<'a>>,
}

/// Where the columns of a row that is no table's stand.
pub(super) const IN_ORDER: &[usize] = &[
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
];

/// The value of a column of a sub-select's row in hand.
pub(in crate::policy::expr) fn field<'a>(
    depth: u32,
    column: usize,
    inputs: Inputs<'a>,
) -> Result<Option<&'a Datum>, Trouble> {
    let mut frame = inputs.frame;
    while let Some(found) = frame {
        if found.depth == depth {
            let Some(row) = found.row else {
                return Ok(None);
            };
            let position = found.positions.get(column).ok_or(Trouble::Undecided)?;
            let value = row.get(*position).ok_or(Trouble::Undecided)?;
            return Ok(value.as_ref());
        }
        frame = found.around;
    }
    Err(Trouble::Undecided)
}

impl Step {
    /// A table and nothing more.
    #[must_use]
    pub const fn table(table: Oid, depth: u32) -> Self {
        Self {
            source: Source::Table(Place {
                table,
                depth,
                at: 0,
                keys: Vec::new(),
                elements: None,
                rows: false,
            }),
            condition: Vec::new(),
        }
    }

    /// The elements of an array.
    #[must_use]
    pub fn elements(of: Expr, depth: u32) -> Self {
        Self {
            source: Source::Table(Place {
                table: Oid(0),
                depth,
                at: usize::MAX,
                keys: Vec::new(),
                elements: Some(Box::new(of)),
                rows: false,
            }),
            condition: Vec::new(),
        }
    }

    /// The rows of an array of rows.
    #[must_use]
    pub fn rows(of: Expr, depth: u32) -> Self {
        let mut step = Self::elements(of, depth);
        if let Source::Table(place) = &mut step.source {
            place.rows = true;
        }
        step
    }

    /// One row that is in hand already.
    #[must_use]
    pub const fn in_hand() -> Self {
        Self {
            source: Source::Optional(Vec::new()),
            condition: Vec::new(),
        }
    }

    pub(super) fn children<'e>(&'e self, all: &mut Vec<&'e Expr>) {
        match &self.source {
            Source::Table(place) => {
                all.extend(place.keys.iter().map(|(_, key)| key));
                all.extend(place.elements.as_deref());
            }
            Source::Optional(steps) => steps.iter().for_each(|step| step.children(all)),
        }
        all.extend(&self.condition);
    }

    pub(in crate::policy) fn map(&self, inner: &mut impl FnMut(&Expr) -> Expr) -> Self {
        let source = match &self.source {
            Source::Table(place) => Source::Table(Place {
                keys: place
                    .keys
                    .iter()
                    .map(|(column, key)| (*column, inner(key)))
                    .collect(),
                elements: place.elements.as_ref().map(|of| Box::new(inner(of))),
                ..*place
            }),
            Source::Optional(steps) => {
                let mut mapped = Vec::with_capacity(steps.len());
                for step in steps {
                    mapped.push(step.map(&mut *inner));
                }
                Source::Optional(mapped)
            }
        };
        Self {
            source,
            condition: self.condition.iter().map(inner).collect(),
        }
    }

    pub(in crate::policy) fn places<'e>(&'e self, all: &mut Vec<&'e Place>) {
        match &self.source {
            Source::Table(place) => all.push(place),
            Source::Optional(steps) => steps.iter().for_each(|step| step.places(all)),
        }
    }

    /// What the conditions on a row of the step's table alone come to, whatever is around: where one is
    /// not true, the row can be left out. `None` where that is not known.
    pub(in crate::policy) fn alone(
        &self,
        row: &[Option<Datum>],
        positions: &[usize],
    ) -> Option<bool> {
        let Source::Table(place) = &self.source else {
            return None;
        };
        let frame = Frame {
            depth: place.depth,
            row: Some(row),
            positions,
            around: None,
        };
        let inputs = Inputs {
            frame: Some(&frame),
            ..Inputs::default()
        };
        let constant = |key: &Expr| matches!(key, Expr::Const(_));
        let keyed = place.keys.iter().filter(|(_, key)| constant(key));
        let equal = |(column, key): &(usize, Expr)| {
            let own = field(place.depth, *column, inputs);
            both(own, key.evaluate(inputs)).map(|two| match two {
                (Some(own), Some(key)) => *own == *key,
                _ => false,
            })
        };
        let conditions = self.condition.iter();
        let conditions = conditions
            .filter(|one| one.needs_only(place.depth))
            .map(|one| Ok(one.truth(inputs)? == Some(true)));
        let mut known = Some(true);
        for holds in keyed.map(equal).chain(conditions) {
            match holds {
                Ok(true) => {}
                Ok(false) => return Some(false),
                Err(_) => known = None,
            }
        }
        known
    }
}

impl Place {
    /// The column of the table and what it must equal, where that is what a condition says.
    pub(in crate::policy) fn equality<'e>(&self, condition: &'e Expr) -> Option<(usize, &'e Expr)> {
        let Expr::Compare(Comparison::Eq, two) = condition else {
            return None;
        };
        let own = |expr: &Expr| match expr {
            Expr::Field(depth, column) if *depth == self.depth => Some(*column),
            _ => None,
        };
        let itself = |depth: u32| depth == self.depth;
        match (own(&two.0), own(&two.1)) {
            (Some(column), _) if !two.1.reads_field(&itself) => Some((column, &two.1)),
            (_, Some(column)) if !two.0.reads_field(&itself) => Some((column, &two.0)),
            _ => None,
        }
    }
}

/// What a walk has so far: how often the combination is there, and why it is not known whether it
/// belongs to the result.
type State = (u32, Option<Trouble>);

type Visit<'v> = dyn FnMut(Inputs<'_>, u32, Option<Trouble>) -> ControlFlow<()> + 'v;

/// A walk through the combinations of rows.
#[derive(Clone, Copy)]
pub(super) struct Walk {
    /// Whether it matters how often a row is there.
    pub(super) count: bool,
}

impl Walk {
    /// Visits every combination that is not left out.
    pub(super) fn chain(
        self,
        steps: &[Step],
        inputs: Inputs<'_>,
        (times, trouble): State,
        visit: &mut Visit<'_>,
    ) -> ControlFlow<()> {
        let Some((step, rest)) = steps.split_first() else {
            return visit(inputs, times, trouble);
        };
        let mut on = |inputs: Inputs<'_>, more: u32, met: Option<Trouble>| {
            let times = times.saturating_mul(more);
            match taken(&step.condition, inputs, trouble.max(met)) {
                Some(trouble) => self.chain(rest, inputs, (times, trouble), visit),
                None => ControlFlow::Continue(()),
            }
        };
        match &step.source {
            Source::Table(Place {
                elements: Some(of),
                depth,
                rows,
                ..
            }) => {
                let array = match of.evaluate(inputs) {
                    Ok(array) => array,
                    // Whatever is asked of the rows, there are none.
                    Err(met) => return visit(inputs, times, trouble.max(Some(met))),
                };
                let elements = match array.as_deref() {
                    Some(Datum::Array(array)) => array.elements(),
                    None => &[],
                    Some(_) => return visit(inputs, times, Some(Trouble::Undecided)),
                };
                for one in elements {
                    if one.is_none() && PolicyMutant::ElementsForgetNull.active() {
                        continue;
                    }
                    let frame = Frame {
                        depth: *depth,
                        row: Some(match one {
                            Some(Datum::Array(row)) if *rows => row.elements(),
                            _ => std::slice::from_ref(one),
                        }),
                        positions: IN_ORDER,
                        around: inputs.frame,
                    };
                    let inputs = Inputs {
                        frame: Some(&frame),
                        ..inputs
                    };
                    on(inputs, 1, None)?;
                }
                ControlFlow::Continue(())
            }
            Source::Table(place) => self.table(place, inputs, &mut on),
            Source::Optional(steps) => {
                let (mut found, mut unsure) = (false, None);
                self.chain(steps, inputs, (1, None), &mut |inputs, times, met| {
                    found |= met.is_none();
                    unsure = unsure.max(met);
                    on(inputs, times, met)
                })?;
                if found || SelectMutant::OuterJoinIsInner.active() {
                    return ControlFlow::Continue(());
                }
                let mut places = Vec::new();
                steps.iter().for_each(|step| step.places(&mut places));
                without(&places, inputs, &mut |inputs| on(inputs, 1, unsure))
            }
        }
    }

    /// Visits the rows of one table that equal its keys.
    fn table(self, place: &Place, inputs: Inputs<'_>, on: &mut Visit<'_>) -> ControlFlow<()> {
        let opened = inputs.tables.get(place.at).and_then(Option::as_ref);
        let Some(opened) = opened else {
            return unknown(place, inputs, on);
        };
        let mut keys: SmallVec<[(usize, Datum); 4]> = SmallVec::new();
        let mut trouble = None;
        for (column, key) in &place.keys {
            let Some(position) = opened.positions.get(*column) else {
                return unknown(place, inputs, on);
            };
            match key.evaluate(inputs) {
                Ok(Some(datum)) => keys.push((*position, datum.into_owned())),
                // Nothing equals NULL.
                Ok(None) => return ControlFlow::Continue(()),
                Err(met) => trouble = trouble.max(Some(met)),
            }
        }
        keys.sort_unstable_by_key(|(position, _)| *position);
        let mut one = |row: &Looked, times: u32| {
            let frame = Frame {
                depth: place.depth,
                row: Some(row),
                positions: &opened.positions,
                around: inputs.frame,
            };
            let inputs = Inputs {
                frame: Some(&frame),
                ..inputs
            };
            on(inputs, times, trouble)
        };
        if trouble.is_some() || keys.is_empty() || SelectMutant::KeysAreForgotten.active() {
            for row in opened.mirror.rows() {
                let equal = |(at, datum): &(usize, Datum)| {
                    row.get(*at).is_some_and(|own| own.as_ref() == Some(datum))
                };
                if keys.iter().all(equal) || SelectMutant::KeysAreForgotten.active() {
                    one(row, 1)?;
                }
            }
            return ControlFlow::Continue(());
        }
        let places: SmallVec<[usize; 4]> = keys.iter().map(|(at, _)| *at).collect();
        let values: SmallVec<[Datum; 4]> = keys.into_iter().map(|(_, datum)| datum).collect();
        let Ok(found) = opened.mirror.find(&places, &values) else {
            return unknown(place, inputs, on);
        };
        for row in found {
            let times = if self.count {
                opened.mirror.times(row)
            } else {
                1
            };
            one(row, times)?;
        }
        ControlFlow::Continue(())
    }
}

/// Goes on with a table that cannot be looked into: nothing is known of its rows.
fn unknown(place: &Place, inputs: Inputs<'_>, on: &mut Visit<'_>) -> ControlFlow<()> {
    let frame = Frame {
        depth: place.depth,
        // No position: whatever is read of it is undecided.
        row: Some(&[]),
        positions: &[],
        around: inputs.frame,
    };
    let inputs = Inputs {
        frame: Some(&frame),
        ..inputs
    };
    on(inputs, 1, Some(Trouble::Undecided))
}

/// Goes on with NULL for every column of some tables.
fn without(
    places: &[&Place],
    inputs: Inputs<'_>,
    on: &mut dyn FnMut(Inputs<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let Some((place, rest)) = places.split_first() else {
        return on(inputs);
    };
    let frame = Frame {
        depth: place.depth,
        row: None,
        positions: &[],
        around: inputs.frame,
    };
    let inputs = Inputs {
        frame: Some(&frame),
        ..inputs
    };
    without(rest, inputs, on)
}

/// Whether a combination is not left out, and what is then not known of it.
fn taken(
    conditions: &[Expr],
    inputs: Inputs<'_>,
    mut trouble: Option<Trouble>,
) -> Option<Option<Trouble>> {
    for one in conditions {
        match one.truth(inputs) {
            Ok(Some(true)) => {}
            Ok(_) if SelectMutant::ConditionIsForgotten.active() => {}
            Ok(_) => return None,
            Err(met) => trouble = trouble.max(Some(met)),
        }
    }
    Some(trouble)
}

//! `WITH RECURSIVE`: rows that are found from rows that were found before.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::super::{Expr, Inputs, Outcome};
use super::chain::{Frame, IN_ORDER};
use crate::datum::{Array, Datum, Trouble};
use crate::mutant::SelectMutant;

/// More rows than this are not gone through. Where each row finds itself again, PostgreSQL does not
/// come to an end.
const MAX_ROWS: usize = 10_000;

/// The same where no index finds what follows a row, so that for each a whole table is gone through.
const MAX_SCANS: usize = 100;

/// The most columns that rows have.
pub const MAX_WIDTH: usize = IN_ORDER.len();

/// A query that `WITH RECURSIVE` names. Its value is the array of its rows, each of them an array.
#[derive(Debug, Clone, PartialEq)]
pub struct Recursion {
    /// The depth of the row that others are found from.
    pub depth: u32,
    /// Whether equal rows count once: UNION, not UNION ALL.
    pub distinct: bool,
    /// Arrays of the rows that are found first.
    pub first: Vec<Expr>,
    /// Arrays of the rows that are found from one.
    pub next: Vec<Expr>,
}

impl Recursion {
    pub(in crate::policy) fn map(&self, mut inner: impl FnMut(&Expr) -> Expr) -> Self {
        Self {
            first: self.first.iter().map(&mut inner).collect(),
            next: self.next.iter().map(inner).collect(),
            ..*self
        }
    }

    fn most(&self) -> usize {
        let scans = |expr: &Expr| match expr {
            Expr::Select(select) => {
                let mut places = select.places().into_iter();
                places.any(|place| place.elements.is_none() && place.keys.is_empty())
            }
            _ => false,
        };
        if self.next.iter().any(scans) {
            MAX_SCANS
        } else {
            MAX_ROWS
        }
    }

    /// All rows, in whatever order.
    pub(in crate::policy::expr) fn value(&self, inputs: Inputs<'_>) -> Outcome {
        let mut found = Found {
            most: self.most(),
            ..Found::default()
        };
        for one in &self.first {
            found.add(one.outcome(inputs)?, self.distinct)?;
        }
        while let Some(row) = found.new.pop_front() {
            let columns = match &row {
                Some(Datum::Array(columns)) => columns.elements(),
                _ => return Err(Trouble::Undecided),
            };
            let frame = Frame {
                depth: self.depth,
                row: Some(columns),
                positions: IN_ORDER,
                around: inputs.frame,
            };
            let inputs = Inputs {
                frame: Some(&frame),
                ..inputs
            };
            for one in &self.next {
                if SelectMutant::RecursionEndsAtOnce.active() {
                    break;
                }
                found.add(one.outcome(inputs)?, self.distinct)?;
            }
            found.all.push(row);
        }
        Ok(Some(Datum::Array(Arc::new(Array::new(found.all)))))
    }
}

#[derive(Default)]
struct Found {
    most: usize,
    seen: HashSet<Option<Datum>>,
    /// Those from which no others were found yet.
    new: VecDeque<Option<Datum>>,
    all: Vec<Option<Datum>>,
}

impl Found {
    fn add(&mut self, rows: Option<Datum>, distinct: bool) -> Result<(), Trouble> {
        let rows = match &rows {
            None => return Ok(()),
            Some(Datum::Array(rows)) => rows.elements(),
            Some(_) => return Err(Trouble::Undecided),
        };
        for row in rows {
            if distinct && !self.seen.insert(row.clone()) {
                continue;
            }
            if self.all.len() + self.new.len() >= self.most {
                return Err(Trouble::Undecided);
            }
            self.new.push_back(row.clone());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::Oid;
    use crate::policy::expr::select::{Asked, Select, Step};

    /// An array of one row with these columns.
    fn row(columns: &[i64]) -> Expr {
        let array = |elements: Vec<Option<Datum>>| Datum::Array(Arc::new(Array::new(elements)));
        let columns = columns.iter().map(|column| Some(Datum::Int(*column)));
        Expr::constant(array(vec![Some(array(columns.collect()))]))
    }

    fn found(recursion: &Recursion) -> Result<usize, Trouble> {
        let rows = recursion.value(Inputs::default())?;
        match rows {
            Some(Datum::Array(rows)) => Ok(rows.elements().len()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rows_that_find_themselves_end_a_union_and_are_undecided_in_a_union_all() {
        let mut round = Recursion {
            depth: 0,
            distinct: true,
            first: vec![row(&[1])],
            next: vec![row(&[2]), row(&[1])],
        };
        assert_eq!(found(&round), Ok(2));
        round.distinct = false;
        assert_eq!(found(&round), Err(Trouble::Undecided));
        round.next.clear();
        assert_eq!(found(&round), Ok(1));
    }

    #[test]
    fn where_each_row_is_looked_for_in_a_whole_table_fewer_are_gone_through() {
        let mut step = Step::table(Oid(1), 1);
        let looks = |step: &Step| Recursion {
            depth: 0,
            distinct: true,
            first: vec![row(&[1])],
            next: vec![Expr::Select(Box::new(Select {
                from: vec![step.clone()],
                result: Asked::Exists,
            }))],
        };
        assert_eq!(looks(&step).most(), MAX_SCANS);
        if let super::super::Source::Table(place) = &mut step.source {
            place.keys.push((0, Expr::Field(0, 0)));
        }
        assert_eq!(looks(&step).most(), MAX_ROWS);
    }
}

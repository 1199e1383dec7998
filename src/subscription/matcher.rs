//! A filter held against a table: typed, and ready to be held against rows.
//!
//! Comparisons are PostgreSQL's own. What is not known natively to be exact (the order of text
//! outside `C`, types without native values) is refused by name, never approximated.

use std::cmp::Ordering;

use super::{Condition, Operator};
use crate::change::{Relation, Row, Value};
use crate::datum::{Datum, Type};

/// One condition with its values typed.
#[derive(Debug, Clone)]
pub struct Test {
    /// The column by name; its place differs between versions of a relation.
    pub column: String,
    of: Type,
    operator: Operator,
    values: Vec<Option<Datum>>,
}

/// Why a condition is not possible on a column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The comparison is not decided natively for this type.
    #[error("operator {operator} is not supported on column {column} of type {type_name}")]
    Operator {
        /// The operator's name on the wire.
        operator: &'static str,
        /// The column.
        column: String,
        /// The type's name.
        type_name: String,
    },
    /// A value is not in the type's canonical form: PostgreSQL is to be asked what it means.
    #[error("the value of column {column} has to be read by PostgreSQL")]
    Value {
        /// The column.
        column: String,
    },
}

impl Test {
    /// Types a condition. Each value is given in the type's own text output (as
    /// [`Test::canonical`] tells, or PostgreSQL).
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn new(
        condition: &Condition,
        of: Type,
        type_name: &str,
        values: &[Option<String>],
    ) -> Result<Self, Unfit> {
        let possible = match condition.operator {
            Operator::Eq | Operator::Neq | Operator::In => of.has_equality(),
            Operator::Lt | Operator::Lte | Operator::Gt | Operator::Gte => of.has_order(),
        };
        if !possible {
            return Err(Unfit::Operator {
                operator: condition.operator.as_str(),
                column: condition.column.clone(),
                type_name: type_name.to_owned(),
            });
        }
        let typed = values
            .iter()
            .map(|value| {
                value
                    .as_deref()
                    .map(|text| Datum::from_output(&of, text))
                    .transpose()
            })
            .collect::<Result<_, _>>()
            .map_err(|_| Unfit::Value {
                column: condition.column.clone(),
            })?;
        Ok(Self {
            column: condition.column.clone(),
            of,
            operator: condition.operator,
            values: typed,
        })
    }

    /// Whether a text needs no PostgreSQL to be read as a value of `of`: it is the type's own
    /// output already.
    #[must_use]
    pub fn canonical(of: &Type, text: &str) -> bool {
        matches!(of, Type::Text(_))
            || Datum::from_output(of, text)
                .is_ok_and(|datum| datum.output().is_some_and(|output| &*output == text))
    }

    /// The values that a row must have one of, where the condition is an equality.
    #[must_use]
    pub fn equalities(&self) -> Option<impl Iterator<Item = &Datum>> {
        matches!(self.operator, Operator::Eq | Operator::In).then(|| self.values.iter().flatten())
    }

    /// The row's value of the tested column; `None` where the row does not carry it or it is NULL.
    #[must_use]
    pub fn value(&self, relation: &Relation, row: &Row) -> Option<Datum> {
        match row.get(relation.position(&self.column)?)? {
            Value::Text(text) => Datum::from_output(&self.of, text).ok(),
            Value::Null | Value::Unchanged => None,
        }
    }

    /// Whether the row has a value that cannot be held against the condition: the stream does not
    /// carry it, or it is none of the type as it was when the condition was typed (a new label).
    /// What a deleted row does not carry is not among this: the join has said that it does not
    /// match.
    #[must_use]
    pub fn unreadable(&self, relation: &Relation, row: &Row, deleted: bool) -> bool {
        let position = relation.position(&self.column);
        match position.and_then(|position| row.get(position)) {
            Some(Value::Text(text)) => Datum::from_output(&self.of, text).is_err(),
            Some(Value::Unchanged) => !deleted,
            Some(Value::Null) | None => false,
        }
    }

    /// Whether the condition is true of a value. NULL (and what is not carried) makes every
    /// comparison other than true, so there is no match.
    #[must_use]
    pub fn holds(&self, value: &Datum) -> bool {
        let first = || self.values.first().and_then(Option::as_ref);
        let ordered = |wanted: fn(Ordering) -> bool| {
            first()
                .and_then(|bound| self.of.compare(value, bound))
                .is_some_and(wanted)
        };
        match self.operator {
            Operator::Eq => first() == Some(value),
            Operator::Neq => first().is_some_and(|other| other != value),
            Operator::In => self.values.iter().any(|item| item.as_ref() == Some(value)),
            Operator::Lt => ordered(Ordering::is_lt),
            Operator::Lte => ordered(Ordering::is_le),
            Operator::Gt => ordered(Ordering::is_gt),
            Operator::Gte => ordered(Ordering::is_ge),
        }
    }

    /// Whether the condition is true of a row.
    #[must_use]
    pub fn matches(&self, relation: &Relation, row: &Row) -> bool {
        self.value(relation, row)
            .is_some_and(|value| self.holds(&value))
    }
}

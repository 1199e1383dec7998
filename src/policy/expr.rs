//! A policy's expression, compiled, and its evaluation.
//!
//! A value is a datum, NULL, or a [`Trouble`]. Logic is Kleene's with trouble as one more unknown:
//! `true OR error` is true and `false AND error` is false, since PostgreSQL promises no order of
//! evaluation; any other mix with an error is an error. What is undecided outweighs an error,
//! because PostgreSQL may still find a value there.

pub mod function;

mod raising;

mod fault;

pub mod select;

use std::borrow::Cow;
use std::sync::Arc;

pub use function::{
    Arithmetic, ArrayFunction, Function, JsonbFunction, TextFunction, TimeFunction,
};
pub use select::{Recursion, Select};

use super::clock::ServerClock;
use crate::auth::Principal;
use crate::change::{Row, Value};
use crate::datum::{Datum, Trouble, Type};
use crate::mutant::{FunctionMutant, PolicyMutant};
use crate::pg::Oid;

/// A datum, NULL, or why there is neither.
pub type Outcome = Result<Option<Datum>, Trouble>;

type Evaluated<'a> = Result<Option<Cow<'a, Datum>>, Trouble>;

/// A column that a policy reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnRef {
    /// Its name, which the stream knows.
    pub name: Arc<str>,
    /// Its type as declared; a relation in the stream with another one is not bound.
    pub type_oid: Oid,
    /// How its values are read.
    pub of: Type,
}

/// A constant. Two are the same only when no function can tell them apart.
#[derive(Debug, Clone)]
pub struct Constant(pub Option<Datum>);

impl PartialEq for Constant {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => a.identical(b),
            (a, b) => a.is_none() && b.is_none(),
        }
    }
}

/// An expression. Operands of comparisons and calls have the types that these expect.
#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    /// A constant.
    Const(Constant),
    /// No value, whoever asks.
    Fail(Trouble),
    /// A column of the row.
    Column(Arc<ColumnRef>),
    /// `current_setting('request.jwt.claims')`
    Claims,
    /// `current_setting('role')` and `current_user`
    Role,
    /// `now()`, by the server's clock
    Now(Arc<ServerClock>),
    /// A condition that is decided where it is the same that many microseconds earlier and later.
    Timed(i64, Box<Self>),
    /// The row's value at this place of the predicate's columns.
    Cell(usize),
    /// The predicate's sub-expression that only the row decides.
    Part(usize),
    /// The predicate's sub-expression that only the claims decide.
    Slot(usize),
    /// `AND`
    And(Vec<Self>),
    /// `OR`
    Or(Vec<Self>),
    /// `NOT`
    Not(Box<Self>),
    /// `IS NULL`, or `IS NOT NULL`
    IsNull(Box<Self>, bool),
    /// `IS TRUE` and the like: the truth value asked for, and whether the answer is negated.
    IsBool(Box<Self>, Option<bool>, bool),
    /// A comparison.
    Compare(Comparison, Box<(Self, Self)>),
    /// `IS DISTINCT FROM`
    Distinct(Box<(Self, Self)>),
    /// `NULLIF`
    NullIf(Box<(Self, Self)>),
    /// `= ANY (…)`, or `ALL` where the flag is set.
    Any(Comparison, bool, Box<Self>, Vec<Self>),
    /// The same over the elements of an array: the left side, and the array.
    AnyOf(Comparison, bool, Box<(Self, Self)>),
    /// `COALESCE`
    Coalesce(Vec<Self>),
    /// `CASE WHEN … THEN … ELSE … END`
    Case(Vec<(Self, Self)>, Box<Self>),
    /// The body of a function whose arguments are evaluated first; where the flag is set (STRICT),
    /// NULL where one of them is.
    Body(Vec<Self>, bool, Box<Self>),
    /// The first, or where that raises an error the second.
    Caught(Box<(Self, Self)>),
    /// A built-in function.
    Call(Function, Vec<Self>),
    /// A column of the row of a sub-select, by its depth.
    Inner(u32, Arc<ColumnRef>),
    /// The same, by its place among the columns that the predicate reads of that table.
    Field(u32, usize),
    /// A sub-select over a table.
    Select(Box<Select>),
    /// The rows of `WITH RECURSIVE`.
    Recursive(Box<Recursion>),
}

/// The comparison operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Comparison {
    /// `=`
    Eq,
    /// `<>`
    Ne,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
}

impl Comparison {
    fn holds(self, a: &Datum, b: &Datum) -> Result<bool, Trouble> {
        if let Self::Eq | Self::Ne = self {
            let equal = (a == b) != PolicyMutant::EqualFlipped.active();
            return Ok((equal == (self == Self::Eq)) != self.is_faulty());
        }
        let mut order = a.order(b).ok_or(Trouble::Undecided)?;
        if PolicyMutant::OrderFlipped.active() {
            order = order.reverse();
        }
        if PolicyMutant::OrderStrictness.active() && order.is_eq() {
            return Ok(matches!(self, Self::Lt | Self::Gt));
        }
        let holds = match self {
            // From one end to the other.
            Self::Lt | Self::Le if PolicyMutant::ComparisonForgetsEnds.active() => order.is_ge(),
            Self::Lt => order.is_lt(),
            Self::Le => order.is_le(),
            Self::Gt => order.is_gt(),
            _ => order.is_ge(),
        };
        Ok(holds != self.is_faulty())
    }
}

/// What an evaluation reads.
#[derive(Clone, Copy, Default)]
pub(super) struct Inputs<'a> {
    pub(super) cells: Option<Cells<'a>>,
    pub(super) principal: Option<&'a Principal>,
    /// Microseconds since 2000-01-01.
    pub(super) now: Option<i64>,
    pub(super) parts: &'a [Outcome],
    pub(super) slots: &'a [Outcome],
    pub(super) tables: &'a [Option<select::Opened<'a>>],
    pub(super) frame: Option<&'a select::Frame<'a>>,
}

/// A row, and where in it the columns stand.
#[derive(Clone, Copy)]
pub(super) struct Cells<'a> {
    pub(super) row: &'a Row,
    pub(super) positions: &'a [usize],
    pub(super) columns: &'a [Arc<ColumnRef>],
}

impl Expr {
    /// NULL.
    pub const NULL: Self = Self::Const(Constant(None));

    /// A constant that is not NULL.
    #[must_use]
    pub const fn constant(datum: Datum) -> Self {
        Self::Const(Constant(Some(datum)))
    }

    /// What is directly inside.
    pub fn children(&self) -> Vec<&Self> {
        match self {
            Self::Const(_)
            | Self::Fail(_)
            | Self::Column(_)
            | Self::Claims
            | Self::Role
            | Self::Now(_)
            | Self::Cell(_)
            | Self::Part(_)
            | Self::Slot(_)
            | Self::Inner(..)
            | Self::Field(..) => Vec::new(),
            Self::Select(select) => select.children(),
            Self::Recursive(recursion) => recursion.first.iter().chain(&recursion.next).collect(),
            Self::And(all) | Self::Or(all) | Self::Coalesce(all) | Self::Call(_, all) => {
                all.iter().collect()
            }
            Self::Not(one) | Self::IsNull(one, _) | Self::IsBool(one, ..) | Self::Timed(_, one) => {
                vec![one]
            }
            Self::Compare(_, two)
            | Self::Distinct(two)
            | Self::NullIf(two)
            | Self::Caught(two)
            | Self::AnyOf(_, _, two) => vec![&two.0, &two.1],
            Self::Any(_, _, left, items) => std::iter::once(&**left).chain(items).collect(),
            Self::Case(whens, otherwise) => whens
                .iter()
                .flat_map(|(when, then)| [when, then])
                .chain([&**otherwise])
                .collect(),
            Self::Body(args, _, body) => args.iter().chain([&**body]).collect(),
        }
    }

    /// Whether a column is read, of the row or of another table's, or the time.
    #[must_use]
    pub fn reads_row(&self) -> bool {
        matches!(
            self,
            Self::Column(_)
                | Self::Now(_)
                | Self::Cell(_)
                | Self::Part(_)
                | Self::Inner(..)
                | Self::Field(..)
                | Self::Select(_)
        ) || self.children().into_iter().any(Self::reads_row)
    }

    /// The same expression with something else directly inside.
    #[must_use]
    pub(super) fn map(&self, inner: &mut impl FnMut(&Self) -> Self) -> Self {
        if let Self::Select(select) = self {
            return Self::Select(Box::new(select.map(inner)));
        }
        if let Self::Recursive(recursion) = self {
            return Self::Recursive(Box::new(recursion.map(inner)));
        }
        let mut each = |all: &[Self]| all.iter().map(&mut *inner).collect::<Vec<_>>();
        match self {
            Self::And(all) => Self::And(each(all)),
            Self::Or(all) => Self::Or(each(all)),
            Self::Coalesce(all) => Self::Coalesce(each(all)),
            Self::Call(function, all) => Self::Call(function.clone(), each(all)),
            Self::Not(one) => Self::Not(Box::new(inner(one))),
            Self::Timed(off, one) => Self::Timed(*off, Box::new(inner(one))),
            Self::IsNull(one, negated) => Self::IsNull(Box::new(inner(one)), *negated),
            Self::IsBool(one, value, negated) => {
                Self::IsBool(Box::new(inner(one)), *value, *negated)
            }
            Self::Compare(op, two) => Self::Compare(*op, Box::new((inner(&two.0), inner(&two.1)))),
            Self::Distinct(two) => Self::Distinct(Box::new((inner(&two.0), inner(&two.1)))),
            Self::NullIf(two) => Self::NullIf(Box::new((inner(&two.0), inner(&two.1)))),
            Self::AnyOf(op, all, two) => {
                Self::AnyOf(*op, *all, Box::new((inner(&two.0), inner(&two.1))))
            }
            Self::Caught(two) => Self::Caught(Box::new((inner(&two.0), inner(&two.1)))),
            Self::Any(op, all, left, items) => {
                let items = each(items);
                Self::Any(*op, *all, Box::new(inner(left)), items)
            }
            Self::Case(whens, otherwise) => {
                let whens = whens.iter().map(|(when, then)| (inner(when), inner(then)));
                let whens = whens.collect();
                Self::Case(whens, Box::new(inner(otherwise)))
            }
            Self::Body(args, strict, body) => {
                let args = each(args);
                Self::Body(args, *strict, Box::new(inner(body)))
            }
            leaf => leaf.clone(),
        }
    }

    /// The value, owned.
    pub(super) fn outcome(&self, inputs: Inputs<'_>) -> Outcome {
        Ok(self.evaluate(inputs)?.map(Cow::into_owned))
    }

    /// The value as a truth value; `None` is NULL.
    pub(super) fn truth(&self, inputs: Inputs<'_>) -> Result<Option<bool>, Trouble> {
        match self {
            Self::And(all) if PolicyMutant::AndIsOr.active() => logic(all, true, inputs),
            Self::Or(all) if PolicyMutant::OrIsAnd.active() => logic(all, false, inputs),
            Self::And(all) => logic(all, false, inputs),
            Self::Or(all) => logic(all, true, inputs),
            Self::Not(one) => {
                let truth = one.truth(inputs)?;
                Ok(truth.map(|truth| truth == PolicyMutant::NotIsNothing.active()))
            }
            Self::IsNull(one, negated) => {
                let null = one.evaluate(inputs)?.is_none() != PolicyMutant::IsNullFlipped.active();
                Ok(Some(null != *negated))
            }
            Self::IsBool(one, value, negated) => {
                let is = (one.truth(inputs)? == *value) != PolicyMutant::IsBoolFlipped.active();
                Ok(Some(is != *negated))
            }
            Self::Timed(off, one) => {
                let now = inputs.now.ok_or(Trouble::Undecided)?;
                let at = |now: i64| {
                    one.truth(Inputs {
                        now: Some(now),
                        ..inputs
                    })
                };
                let (before, after) = (at(now.saturating_sub(*off)), at(now.saturating_add(*off)));
                if before == after {
                    before
                } else {
                    Err(Trouble::Undecided)
                }
            }
            Self::Compare(op, two) => {
                // Both sides first: an error in either is one even beside a NULL.
                let (a, b) = (two.0.evaluate(inputs), two.1.evaluate(inputs));
                match both(a, b)? {
                    (Some(a), Some(b)) => op.holds(&a, &b).map(Some),
                    _ if PolicyMutant::NullIsFalse.active() => Ok(Some(false)),
                    _ => Ok(None),
                }
            }
            Self::Distinct(two) => {
                let (a, b) = (two.0.evaluate(inputs), two.1.evaluate(inputs));
                match both(a, b)? {
                    (Some(a), Some(b)) => Comparison::Ne.holds(&a, &b).map(Some),
                    _ if PolicyMutant::DistinctForgetsNull.active() => Ok(None),
                    (a, b) => Ok(Some(a.is_some() || b.is_some())),
                }
            }
            Self::Any(op, all, left, items) => any(*op, *all, left, items, inputs),
            Self::AnyOf(op, all, two) => {
                let (left, array) = (two.0.evaluate(inputs), two.1.evaluate(inputs));
                let (left, array) = both(left, array)?;
                any_of(*op, *all, left.as_deref(), array.as_deref())
            }
            Self::Select(select)
                if matches!(
                    select.result,
                    select::Asked::Exists | select::Asked::Any(..)
                ) =>
            {
                select.truth(inputs)
            }
            other => match other.evaluate(inputs)?.as_deref() {
                None => Ok(None),
                Some(Datum::Bool(truth)) => Ok(Some(*truth)),
                Some(_) => Err(Trouble::Undecided),
            },
        }
    }

    fn evaluate<'a>(&'a self, inputs: Inputs<'a>) -> Evaluated<'a> {
        match self {
            Self::Const(_) if PolicyMutant::ConstantIsNull.active() => Ok(None),
            Self::Const(Constant(datum)) => Ok(datum.as_ref().map(Cow::Borrowed)),
            Self::Fail(trouble) => Err(*trouble),
            // A column is reached through its cell; without one nothing is known of it.
            Self::Column(_) | Self::Inner(..) => Err(Trouble::Undecided),
            Self::Field(depth, column) => {
                let value = select::field(*depth, *column, inputs)?;
                Ok(value.map(Cow::Borrowed))
            }
            Self::Select(select) => Ok(select.value(inputs)?.map(Cow::Owned)),
            Self::Recursive(recursion) => Ok(recursion.value(inputs)?.map(Cow::Owned)),
            Self::Now(_) if PolicyMutant::NowIsLongAgo.active() => {
                Ok(Some(Cow::Owned(Datum::Timestamp(0))))
            }
            Self::Now(_) => {
                let now = inputs.now.ok_or(Trouble::Undecided)?;
                Ok(Some(Cow::Owned(Datum::Timestamp(now))))
            }
            Self::Cell(index) => cell(*index, inputs),
            Self::Part(index) => stored(inputs.parts, *index),
            Self::Slot(index) => stored(inputs.slots, *index),
            Self::Claims => {
                let principal = inputs.principal.ok_or(Trouble::Undecided)?;
                let empty = PolicyMutant::ClaimsAreEmpty.active();
                let claims = if empty {
                    "{}"
                } else {
                    principal.claims.as_json()
                };
                Ok(Some(Cow::Owned(Datum::text(claims))))
            }
            Self::Role => {
                let principal = inputs.principal.ok_or(Trouble::Undecided)?;
                if PolicyMutant::RoleIsNull.active() {
                    return Ok(None);
                }
                Ok(Some(Cow::Owned(Datum::Text(Arc::clone(&principal.role)))))
            }
            Self::NullIf(two) => {
                let (a, b) = (two.0.evaluate(inputs), two.1.evaluate(inputs));
                match both(a, b)? {
                    (Some(a), Some(b)) => {
                        let null = a == b && !PolicyMutant::NullIfNever.active();
                        Ok((!null).then_some(a))
                    }
                    (a, _) => Ok(a),
                }
            }
            Self::Coalesce(all) if PolicyMutant::CoalesceTakesLast.active() => {
                all.last().map_or(Ok(None), |last| last.evaluate(inputs))
            }
            Self::Coalesce(all) => {
                for one in all {
                    let value = one.evaluate(inputs)?;
                    if value.is_some() {
                        return Ok(value);
                    }
                }
                Ok(None)
            }
            Self::Case(whens, otherwise) => {
                for (when, then) in whens {
                    if when.truth(inputs)? == Some(true) && !PolicyMutant::CaseTakesDefault.active()
                    {
                        return then.evaluate(inputs);
                    }
                }
                otherwise.evaluate(inputs)
            }
            Self::Body(args, strict, body) => {
                let (mut null, mut trouble) = (false, None);
                for arg in args {
                    match arg.evaluate(inputs) {
                        Ok(value) => null |= value.is_none(),
                        Err(met) => trouble = trouble.max(Some(met)),
                    }
                }
                match trouble {
                    Some(trouble) => Err(trouble),
                    None if null && *strict && !PolicyMutant::StrictCallsAnyway.active() => {
                        Ok(None)
                    }
                    None => body.evaluate(inputs),
                }
            }
            Self::Caught(two) => match two.0.evaluate(inputs) {
                Err(Trouble::Error) if !FunctionMutant::NothingIsCaught.active() => {
                    two.1.evaluate(inputs)
                }
                other => other,
            },
            Self::Call(function, args) => {
                let mut values = smallvec::SmallVec::<[Option<Cow<'a, Datum>>; 2]>::new();
                let mut trouble = None;
                for (at, arg) in args.iter().enumerate() {
                    match arg.evaluate(inputs) {
                        // Of no array the subscripts are not looked at.
                        Ok(None) if at == 0 && function.is_subscript() => return Ok(None),
                        Ok(value) => values.push(value),
                        Err(met) => trouble = trouble.max(Some(met)),
                    }
                }
                if let Some(trouble) = trouble {
                    return Err(trouble);
                }
                let values: smallvec::SmallVec<[Option<&Datum>; 2]> =
                    values.iter().map(Option::as_deref).collect();
                function.of(&values).map(|datum| datum.map(Cow::Owned))
            }
            truth => Ok(truth
                .truth(inputs)?
                .map(|truth| Cow::Owned(Datum::Bool(truth)))),
        }
    }
}

/// The values of two operands, or the weightier trouble of either.
fn both<A, B>(a: Result<A, Trouble>, b: Result<B, Trouble>) -> Result<(A, B), Trouble> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(a), Err(b)) => Err(a.max(b)),
        (Err(trouble), _) | (_, Err(trouble)) => Err(trouble),
    }
}

/// AND (`decisive` false) or OR (`decisive` true).
fn logic(all: &[Expr], decisive: bool, inputs: Inputs<'_>) -> Result<Option<bool>, Trouble> {
    let mut null = false;
    let mut trouble = None;
    for one in all {
        match one.truth(inputs) {
            Ok(Some(truth)) if truth == decisive => return Ok(Some(decisive)),
            Ok(Some(_)) => {}
            Ok(None) => null = true,
            Err(Trouble::Error) if PolicyMutant::OrForgetsErrors.active() => null = true,
            Err(met) => trouble = trouble.max(Some(met)),
        }
    }
    match trouble {
        Some(trouble) => Err(trouble),
        None => Ok((!null).then_some(!decisive)),
    }
}

/// `left op ANY (items)`, or ALL. The array is made before anything is compared.
fn any(
    op: Comparison,
    all: bool,
    left: &Expr,
    items: &[Expr],
    inputs: Inputs<'_>,
) -> Result<Option<bool>, Trouble> {
    let all = all != PolicyMutant::AnyIsAll.active();
    let mut result = Ok(Some(all));
    let left = left.evaluate(inputs);
    let mut trouble = left.as_ref().err().copied();
    for item in items {
        let item = match (item.evaluate(inputs), &left) {
            (Ok(item), Ok(left)) => match (left, item) {
                (Some(left), Some(item)) => op.holds(left, &item).map(Some),
                _ => Ok(None),
            },
            (Err(met), _) => Err(met),
            (Ok(_), Err(met)) => Err(*met),
        };
        match item {
            Err(met) => trouble = trouble.max(Some(met)),
            Ok(Some(truth)) if truth != all => result = Ok(Some(truth)),
            Ok(None) if result == Ok(Some(all)) && !PolicyMutant::AnyForgetsNull.active() => {
                result = Ok(None);
            }
            Ok(_) => {}
        }
    }
    trouble.map_or(result, Err)
}

/// `left op ANY (array)`, or ALL. Of no elements even NULL is not equal to any.
fn any_of(
    op: Comparison,
    all: bool,
    left: Option<&Datum>,
    array: Option<&Datum>,
) -> Result<Option<bool>, Trouble> {
    let elements = match array {
        None => return Ok(None),
        Some(Datum::Array(array)) => array.elements(),
        Some(_) => return Err(Trouble::Undecided),
    };
    let all = all != PolicyMutant::AnyOfIsAll.active();
    let mut null = false;
    for one in elements {
        match (left, one) {
            (Some(left), Some(one)) if op.holds(left, one)? != all => return Ok(Some(!all)),
            (Some(_), Some(_)) => {}
            _ => null = !PolicyMutant::AnyOfForgetsNull.active(),
        }
    }
    Ok((!null).then_some(all))
}

fn stored(outcomes: &[Outcome], index: usize) -> Evaluated<'_> {
    match outcomes.get(index) {
        Some(Ok(value)) => Ok(value.as_ref().map(Cow::Borrowed)),
        Some(Err(trouble)) => Err(*trouble),
        None => Err(Trouble::Undecided),
    }
}

fn cell(index: usize, inputs: Inputs<'_>) -> Evaluated<'_> {
    let cells = inputs.cells.ok_or(Trouble::Undecided)?;
    let (Some(position), Some(column)) = (cells.positions.get(index), cells.columns.get(index))
    else {
        return Err(Trouble::Undecided);
    };
    match cells.row.get(*position) {
        Some(Value::Null) => Ok(None),
        Some(Value::Text(_)) if PolicyMutant::ColumnIsNull.active() => Ok(None),
        Some(Value::Text(text)) => Ok(Some(Cow::Owned(Datum::from_output(&column.of, text)?))),
        Some(Value::Unchanged) | None => Err(Trouble::Undecided),
    }
}

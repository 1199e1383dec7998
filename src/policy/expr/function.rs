//! The built-in functions that are computed natively. Most are strict.

mod arrays;

mod documents;

mod texts;

mod times;

use std::sync::Arc;

pub use arrays::ArrayFunction;
pub use documents::JsonbFunction;
pub use texts::TextFunction;
pub use times::TimeFunction;

use crate::datum::json::{self, Step};
use crate::datum::{self, Datum, Jsonb, Numeric, Trouble, Type};
use crate::mutant::PolicyMutant;
use crate::policy::expr::Outcome;

/// A built-in function, as fixed by the operand types at compile time.
#[derive(Debug, Clone, PartialEq)]
pub enum Function {
    /// `-> text`, `-> integer`, of `json` and `jsonb`
    Get,
    /// `->> text`, `->> integer`, of `json` and `jsonb`
    GetText,
    /// `#>` with a constant path
    Path(Vec<Box<str>>),
    /// `#>>` with a constant path
    PathText(Vec<Box<str>>),
    /// `jsonb ? text`
    Has,
    /// `jsonb_typeof`
    JsonbTypeof,
    /// `text || text`
    Concat,
    /// `lower`; where the flag is set text beyond ASCII stays as it is
    Lower(bool),
    /// `upper`; likewise
    Upper(bool),
    /// `LIKE`
    Like,
    /// `NOT LIKE`
    NotLike,
    /// A cast between integers, with the range of the target
    Narrow(i64, i64),
    /// A cast of an integer to `numeric`
    ToNumeric,
    /// A cast of another number to `double precision`
    ToFloat,
    /// A cast of a `jsonb` scalar; where the flag is set, as from PostgreSQL 18 on, that of JSON's
    /// null is NULL and else an error
    Scalar(Type, bool),
    /// A cast to `text`
    ToText,
    /// The output function, as the cast to text by way of it uses it
    Output,
    /// The input function of a type
    Input(Type),
    /// A function of arrays
    Array(ArrayFunction),
    /// A function of `jsonb`
    Jsonb(JsonbFunction),
    /// A function of text
    Text(TextFunction),
    /// A function of dates and times
    Time(TimeFunction),
    /// A sum and the like of integers, with the range of the result
    Arithmetic(Arithmetic, i64, i64),
    /// `GREATEST`, or `LEAST` where the flag is not set
    Extreme(bool),
}

/// What is computed of two integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`, cut towards zero
    Divide,
    /// `%`, with the sign of the first
    Remainder,
}

impl Arithmetic {
    fn of(self, a: i64, b: i64) -> Result<i64, Trouble> {
        let of = match self {
            _ if self.is_faulty() => Some(a),
            Self::Subtract if PolicyMutant::MinusIsPlus.active() => a.checked_add(b),
            Self::Add => a.checked_add(b),
            Self::Subtract => a.checked_sub(b),
            Self::Multiply => a.checked_mul(b),
            Self::Divide => a.checked_div(b),
            Self::Remainder if b == -1 => Some(0),
            Self::Remainder => a.checked_rem(b),
        };
        of.ok_or(Trouble::Error)
    }
}

impl Function {
    /// Whether the first operand is an array and the others are its subscripts.
    pub(super) const fn is_subscript(&self) -> bool {
        matches!(
            self,
            Self::Array(ArrayFunction::Element | ArrayFunction::Slice(..))
        )
    }

    /// Whether NULL operands do not make the result NULL.
    #[must_use]
    pub const fn takes_null(&self) -> bool {
        match self {
            Self::Array(function) => function.takes_null(),
            Self::Jsonb(function) => function.takes_null(),
            Self::Text(function) => function.takes_null(),
            Self::Extreme(_) => true,
            _ => false,
        }
    }

    /// The result of any number of operands.
    pub(super) fn of(&self, values: &[Option<&Datum>]) -> Outcome {
        if !self.takes_null() && values.iter().any(Option::is_none) {
            return Ok(None);
        }
        match (self, values) {
            _ if self.is_faulty() => Ok(None),
            (Self::Array(function), _) => function.of(values),
            (Self::Jsonb(function), _) => function.of(values),
            (Self::Text(function), _) => function.of(values),
            (Self::Time(function), _) => function.of(values),
            (Self::Extreme(greatest), _) => extreme(*greatest, values),
            (Self::Arithmetic(op, least, most), [Some(Datum::Int(a)), Some(Datum::Int(b))]) => {
                let of = op.of(*a, *b)?;
                if (least..=most).contains(&&of) {
                    Ok(Some(Datum::Int(of)))
                } else {
                    Err(Trouble::Error)
                }
            }
            (_, [Some(a)]) => self.of_one(a),
            (_, [Some(a), Some(b)]) => self.of_two(a, b),
            _ => Err(Trouble::Undecided),
        }
    }

    pub(super) fn of_one(&self, a: &Datum) -> Result<Option<Datum>, Trouble> {
        Ok(Some(match (self, a) {
            (Self::Lower(_), _) if PolicyMutant::LowerIsUpper.active() => {
                return Self::Upper(true).of_one(a);
            }
            (Self::Upper(_), _) if PolicyMutant::UpperIsLower.active() => {
                return Self::Lower(true).of_one(a);
            }
            (Self::Lower(plain) | Self::Upper(plain), Datum::Text(text)) => {
                if !plain && !text.is_ascii() {
                    return Err(Trouble::Undecided);
                }
                let lower = matches!(self, Self::Lower(_));
                Datum::Text(Arc::from(if lower {
                    text.to_ascii_lowercase()
                } else {
                    text.to_ascii_uppercase()
                }))
            }
            (Self::Narrow(least, most), Datum::Int(value)) => {
                if !(least..=most).contains(&value) && !PolicyMutant::NarrowTakesAll.active() {
                    return Err(Trouble::Error);
                }
                a.clone()
            }
            (Self::ToNumeric, Datum::Int(value)) => {
                let negative = PolicyMutant::NumericIsNegative.active();
                let value = if negative {
                    value.wrapping_neg()
                } else {
                    *value
                };
                Datum::Numeric(Arc::new(Numeric::from_i64(value)))
            }
            #[allow(clippy::cast_precision_loss, reason = "the server rounds likewise")]
            (Self::ToFloat, Datum::Int(value)) => {
                let negative = PolicyMutant::FloatIsNegative.active();
                Datum::Float(if negative {
                    -(*value as f64)
                } else {
                    *value as f64
                })
            }
            (Self::ToFloat, Datum::Float(_)) => a.clone(),
            (Self::ToFloat, Datum::Numeric(value)) => {
                let value = value
                    .to_string()
                    .parse::<f64>()
                    .map_err(|_| Trouble::Undecided)?;
                // At the ends of the range PostgreSQL raises errors of its own.
                if !(value == 0.0 || value.is_normal()) {
                    return Err(Trouble::Undecided);
                }
                Datum::Float(value)
            }
            (Self::Path(path), Datum::Jsonb(value)) => {
                let part = value.path(shortened(path))?;
                return Ok(part.map(|part| Datum::Jsonb(Arc::new(part.clone()))));
            }
            (Self::PathText(path), Datum::Jsonb(value)) => {
                let part = value.path(shortened(path))?.and_then(Jsonb::as_text);
                return Ok(part.map(|text| Datum::text(&text)));
            }
            (Self::JsonbTypeof, _) if PolicyMutant::TypeofIsObject.active() => {
                Datum::text("object")
            }
            (Self::JsonbTypeof, Datum::Jsonb(value)) => Datum::text(match &**value {
                Jsonb::Null => "null",
                Jsonb::Bool(_) => "boolean",
                Jsonb::Number(_) => "number",
                Jsonb::String(_) => "string",
                Jsonb::Array(_) => "array",
                Jsonb::Object(_) => "object",
            }),
            (Self::Scalar(_, true), Datum::Jsonb(value)) if **value == Jsonb::Null => {
                return Ok(None);
            }
            (Self::Scalar(to, _), Datum::Jsonb(value)) => scalar(value, to)?,
            (Self::ToText | Self::Output, _) if PolicyMutant::OutputIsEmpty.active() => {
                Datum::text("")
            }
            (Self::ToText, _) => datum::cast_to_text(a)?,
            (Self::Output, _) => Datum::Text(a.output().ok_or(Trouble::Undecided)?),
            (Self::Input(to), Datum::Text(text)) => match datum::cast(text, to) {
                Err(Trouble::Error) if PolicyMutant::InputFailsToNull.active() => return Ok(None),
                other => other?,
            },
            _ => return Err(Trouble::Undecided),
        }))
    }

    pub(super) fn of_two(&self, a: &Datum, b: &Datum) -> Result<Option<Datum>, Trouble> {
        Ok(match (self, a, b) {
            (Self::Get, Datum::Jsonb(value), _) => {
                get(value, b)?.map(|part| Datum::Jsonb(Arc::new(part.clone())))
            }
            (Self::GetText, Datum::Jsonb(value), _) => match get(value, b)? {
                Some(part) if PolicyMutant::MemberTextKeepsQuotes.active() => {
                    Some(Datum::text(&part.to_string()))
                }
                part => part.and_then(Jsonb::as_text).map(|text| Datum::text(&text)),
            },
            (Self::Get | Self::GetText, Datum::Json(_), _)
                if PolicyMutant::JsonMemberIgnored.active() =>
            {
                None
            }
            (Self::Get, Datum::Json(text), _) => {
                json::part(text, step(b)?)?.map(|part| Datum::Json(Arc::from(part)))
            }
            (Self::GetText, Datum::Json(text), _) => {
                json::part_text(text, step(b)?)?.map(|text| Datum::text(&text))
            }
            (Self::Has, Datum::Jsonb(value), Datum::Text(key)) => Some(Datum::Bool(
                value.has(key) != PolicyMutant::HasFlipped.active(),
            )),
            (Self::Concat, Datum::Text(a), Datum::Text(b)) => {
                let swapped = PolicyMutant::ConcatSwapped.active();
                let (a, b) = if swapped { (b, a) } else { (a, b) };
                Some(Datum::Text(Arc::from([&**a, &**b].concat())))
            }
            (Self::Like | Self::NotLike, Datum::Text(text), Datum::Text(pattern)) => {
                let like = if PolicyMutant::LikeIsEqual.active() {
                    text == pattern
                } else {
                    datum::like(text, pattern)?
                };
                Some(Datum::Bool(like == (*self == Self::Like)))
            }
            _ => return Err(Trouble::Undecided),
        })
    }
}

/// The greatest or least of the values that are not NULL; of equal ones the first.
fn extreme(greatest: bool, values: &[Option<&Datum>]) -> Outcome {
    let greatest = greatest != PolicyMutant::GreatestIsLeast.active();
    let mut found: Option<&Datum> = None;
    for one in values.iter().flatten() {
        let better = match found {
            None => true,
            Some(known) if greatest => one.order(known).ok_or(Trouble::Undecided)?.is_gt(),
            Some(known) => one.order(known).ok_or(Trouble::Undecided)?.is_lt(),
        };
        if better {
            found = Some(one);
        }
    }
    Ok(found.cloned())
}

fn shortened(path: &[Box<str>]) -> impl Iterator<Item = &str> {
    let skip = usize::from(PolicyMutant::PathStopsEarly.active());
    path.iter()
        .take(path.len().saturating_sub(skip))
        .map(|step| &**step)
}

fn step(of: &Datum) -> Result<Step<'_>, Trouble> {
    match of {
        Datum::Text(key) => Ok(Step::Member(key)),
        Datum::Int(index) => Ok(Step::Element(*index)),
        _ => Err(Trouble::Undecided),
    }
}

fn get<'v>(value: &'v Jsonb, of: &Datum) -> Result<Option<&'v Jsonb>, Trouble> {
    Ok(match step(of)? {
        Step::Member(_) if PolicyMutant::MemberIgnored.active() => None,
        Step::Member(key) => value.member(key),
        Step::Element(index) if PolicyMutant::ElementFromStart.active() => {
            value.element(index.abs())
        }
        Step::Element(index) => value.element(index),
    })
}

/// The cast of a `jsonb` scalar: an error for every other kind.
fn scalar(value: &Jsonb, to: &Type) -> Result<Datum, Trouble> {
    let range = match to {
        Type::Bool => {
            return match value {
                Jsonb::Bool(value) => Ok(Datum::Bool(*value)),
                _ => Err(Trouble::Error),
            };
        }
        Type::Numeric => None,
        Type::Int2 => Some((i64::from(i16::MIN), i64::from(i16::MAX))),
        Type::Int4 => Some((i64::from(i32::MIN), i64::from(i32::MAX))),
        Type::Int8 => Some((i64::MIN, i64::MAX)),
        _ => return Err(Trouble::Undecided),
    };
    let Jsonb::Number(number) = value else {
        return Err(Trouble::Error);
    };
    let Some((least, most)) = range else {
        return Ok(Datum::Numeric(Arc::new(number.clone())));
    };
    // A fraction is rounded, and what is out of range raises: PostgreSQL is asked which.
    match number.to_i64() {
        Some(value) if (least..=most).contains(&value) => Ok(Datum::Int(value)),
        Some(_) => Err(Trouble::Error),
        None => Err(Trouble::Undecided),
    }
}

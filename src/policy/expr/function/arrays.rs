//! Functions of arrays, and those that make them.

use std::collections::HashSet;
use std::sync::Arc;

use super::Function;
use crate::datum::{Array, Datum, Trouble};
use crate::mutant::{PolicyMutant, SelectMutant};
use crate::policy::expr::Outcome;

/// A function of arrays.
#[derive(Debug, Clone, PartialEq)]
pub enum ArrayFunction {
    /// `array[…]`
    Make,
    /// `@>`
    Contains,
    /// `<@`
    Contained,
    /// `&&`
    Overlaps,
    /// `array_length`
    Length,
    /// `array_lower`
    Lower,
    /// `array_upper`
    Upper,
    /// `cardinality`
    Cardinality,
    /// `array_ndims`
    Dimensions,
    /// `array[index]`
    Element,
    /// `array[lower:upper]`, and which of the bounds there are
    Slice(bool, bool),
    /// `array_append`, `array || element`
    Append,
    /// `array_prepend`, `element || array`
    Prepend,
    /// `array_cat`, `array || array`
    Concat,
    /// `array_remove`
    Remove,
    /// `array_position`
    Position,
    /// `array_to_string` with two operands
    Join,
    /// `string_to_array` with two operands
    Split,
    /// `array(select … union select …)`: the elements of all, of equal ones one where the flag is set
    Union(bool),
    /// A cast, element by element
    Each(Box<Function>),
}

fn union(values: &[Option<&Datum>], distinct: bool) -> Outcome {
    let mut seen = HashSet::new();
    let mut all = Vec::new();
    for one in values {
        let elements = match one {
            None => &[],
            Some(Datum::Array(array)) => array.elements(),
            Some(_) => return Err(Trouble::Undecided),
        };
        let mut elements = elements.iter().cloned();
        if distinct {
            all.extend(elements.filter(|one| seen.insert(one.clone())));
        } else {
            all.extend(&mut elements);
        }
    }
    Ok(Some(Datum::Array(Arc::new(Array::new(all)))))
}

impl ArrayFunction {
    /// Whether NULL operands do not make the result NULL.
    pub(super) const fn takes_null(&self) -> bool {
        matches!(
            self,
            Self::Make
                | Self::Union(_)
                | Self::Append
                | Self::Prepend
                | Self::Concat
                | Self::Remove
                | Self::Position
                | Self::Split
        )
    }

    /// Whether the order of the elements matters.
    #[must_use]
    pub const fn takes_order(&self) -> bool {
        matches!(
            self,
            Self::Element | Self::Slice(..) | Self::Position | Self::Join
        )
    }

    pub(super) fn of(&self, values: &[Option<&Datum>]) -> Outcome {
        if let Self::Make = self {
            let elements = values.iter().map(|one| one.cloned()).collect();
            return Ok(Some(Datum::Array(Arc::new(Array::new(elements)))));
        }
        if let Self::Split = self {
            return split(values);
        }
        if let Self::Union(distinct) = self {
            return union(values, *distinct && !SelectMutant::UnionKeepsAll.active());
        }
        let array = |at: usize| match values.get(at) {
            Some(Some(Datum::Array(array))) => Ok(Some(array)),
            Some(None) => Ok(None),
            _ => Err(Trouble::Undecided),
        };
        let made = |array: Array| Ok(Some(Datum::Array(Arc::new(array))));
        let other = values.get(1).copied().flatten();
        match self {
            Self::Append | Self::Prepend => {
                let (array, one) = match self {
                    Self::Append => (array(0)?, other),
                    _ => (array(1)?, values.first().copied().flatten()),
                };
                let empty = Arc::new(Array::new(Vec::new()));
                let array = array.unwrap_or(&empty);
                let append = matches!(self, Self::Append) != PolicyMutant::AppendPrepends.active();
                return made(if append {
                    array.append(one.cloned())?
                } else {
                    array.prepend(one.cloned())?
                });
            }
            Self::Concat => {
                return match (array(0)?, array(1)?) {
                    (Some(a), Some(b)) => made(a.concat(b)?),
                    (a, b) => Ok(a.or(b).map(|one| Datum::Array(Arc::clone(one)))),
                };
            }
            _ => {}
        }
        let Some(array) = (if let Self::Contained = self {
            array(1)?
        } else {
            array(0)?
        }) else {
            return Ok(None);
        };
        let bound = || match other {
            Some(Datum::Int(dimension)) => Ok(array.bounds(*dimension)),
            _ => Err(Trouble::Undecided),
        };
        let number = |index: usize| match values.get(index) {
            Some(Some(Datum::Int(number))) => Ok(*number),
            _ => Err(Trouble::Undecided),
        };
        Ok(match (self, other) {
            (Self::Contains, Some(Datum::Array(other))) => {
                Some(Datum::Bool(if PolicyMutant::ContainsIsOverlaps.active() {
                    array.overlaps(other)
                } else {
                    array.contains(other)
                }))
            }
            (Self::Contained, _) => match values.first() {
                Some(Some(Datum::Array(other))) => Some(Datum::Bool(array.contains(other))),
                _ => return Err(Trouble::Undecided),
            },
            (Self::Overlaps, Some(Datum::Array(other))) => {
                Some(Datum::Bool(if PolicyMutant::OverlapsIsContains.active() {
                    array.contains(other)
                } else {
                    array.overlaps(other)
                }))
            }
            (Self::Length, _) => bound()?.map(|(lower, upper)| {
                let more = i64::from(!PolicyMutant::LengthIsLess.active());
                Datum::Int(upper - lower + more)
            }),
            (Self::Lower, _) => bound()?.map(|(lower, _)| Datum::Int(lower)),
            (Self::Upper, _) => bound()?.map(|(_, upper)| Datum::Int(upper)),
            (Self::Cardinality, _) => Some(int(array.elements().len())?),
            (Self::Dimensions, _) => match array.dimensions() {
                0 => None,
                dimensions => Some(int(dimensions)?),
            },
            (Self::Element, _) => {
                let shift = i64::from(PolicyMutant::SubscriptFromZero.active());
                array.element(number(1)? + shift).cloned()
            }
            (Self::Slice(lower, upper), _) => {
                let first = lower.then(|| number(1)).transpose()?;
                let last = upper
                    .then(|| number(1 + usize::from(*lower)))
                    .transpose()?
                    .filter(|_| !PolicyMutant::SliceHasNoEnd.active());
                Some(Datum::Array(Arc::new(array.slice(first, last)?)))
            }
            (Self::Remove, one) => return made(array.without(one)?),
            (Self::Position, one) => array.position(one)?.map(Datum::Int),
            (Self::Join, Some(Datum::Text(between))) => {
                let mut parts = Vec::new();
                for one in array.elements().iter().flatten() {
                    parts.push(one.output().ok_or(Trouble::Undecided)?);
                }
                Some(Datum::text(&parts.join(&**between)))
            }
            (Self::Each(function), _) => {
                return made(array.map(|one| function.of(&[Some(one)]))?);
            }
            _ => return Err(Trouble::Undecided),
        })
    }
}

fn int(number: usize) -> Result<Datum, Trouble> {
    let number = i64::try_from(number).map_err(|_| Trouble::Undecided)?;
    Ok(Datum::Int(number))
}

fn split(values: &[Option<&Datum>]) -> Outcome {
    let (text, between) = match values {
        [None, _] => return Ok(None),
        [Some(Datum::Text(text)), None] => (text, None),
        [Some(Datum::Text(text)), Some(Datum::Text(between))] => (text, Some(between)),
        _ => return Err(Trouble::Undecided),
    };
    let part = |part: &str| Some(Datum::text(part));
    let parts = match between {
        _ if text.is_empty() => Vec::new(),
        None => text
            .chars()
            .map(|one| part(one.encode_utf8(&mut [0; 4])))
            .collect(),
        Some(between) if between.is_empty() => vec![part(text)],
        Some(_) if PolicyMutant::SplitKeepsWhole.active() => vec![part(text)],
        Some(between) => text.split(&**between).map(part).collect(),
    };
    Ok(Some(Datum::Array(Arc::new(Array::new(parts)))))
}

//! Functions of `jsonb`, and those that make it.

use std::sync::Arc;

use crate::datum::{Array, Datum, Jsonb, Numeric, Trouble};
use crate::mutant::PolicyMutant;
use crate::policy::expr::Outcome;

/// A function of `jsonb`.
#[derive(Debug, Clone, PartialEq)]
pub enum JsonbFunction {
    /// `@>`
    Contains,
    /// `<@`
    Contained,
    /// `?|`
    HasAny,
    /// `?&`
    HasAll,
    /// `jsonb_array_length`
    Length,
    /// The rows of `jsonb_array_elements`, as an array
    Elements,
    /// Those of `jsonb_array_elements_text`
    Texts,
    /// Those of `jsonb_object_keys`
    Keys,
    /// Every text of which `?` is true
    Names,
    /// `to_jsonb`
    Make,
    /// `jsonb_build_array`
    Array,
    /// `jsonb_build_object`
    Object,
}

impl JsonbFunction {
    /// Whether NULL operands do not make the result NULL.
    pub(super) const fn takes_null(&self) -> bool {
        matches!(self, Self::Array | Self::Object)
    }

    pub(super) fn of(&self, values: &[Option<&Datum>]) -> Outcome {
        match self {
            Self::Make => {
                let value = made(values.first().copied().flatten())?;
                return Ok(Some(Datum::Jsonb(Arc::new(value))));
            }
            Self::Array => {
                let elements = values
                    .iter()
                    .map(|one| made(*one))
                    .collect::<Result<_, _>>()?;
                return Ok(Some(Datum::Jsonb(Arc::new(Jsonb::Array(elements)))));
            }
            Self::Object => return object(values),
            _ => {}
        }
        let document = |at: usize| match values.get(at) {
            Some(Some(Datum::Jsonb(value))) => Ok(&**value),
            _ => Err(Trouble::Undecided),
        };
        let value = document(0)?;
        let keys = || match values.get(1) {
            Some(Some(Datum::Array(keys))) => Ok(keys.elements().iter().flatten()),
            _ => Err(Trouble::Undecided),
        };
        let has = |key: &Datum| matches!(key, Datum::Text(key) if value.has(key));
        let array = |texts: Vec<Option<Datum>>| Datum::Array(Arc::new(Array::new(texts)));
        let text = |text: &str| Some(Datum::text(text));
        Ok(Some(match self {
            Self::Contains => Datum::Bool(if PolicyMutant::JsonbContainsIsEqual.active() {
                value == document(1)?
            } else {
                value.contains(document(1)?)
            }),
            Self::Contained => Datum::Bool(document(1)?.contains(value)),
            Self::HasAny if !PolicyMutant::AnyKeyIsAll.active() => Datum::Bool(keys()?.any(has)),
            Self::HasAny | Self::HasAll => Datum::Bool(keys()?.all(has)),
            Self::Length => match value {
                Jsonb::Array(elements) => {
                    Datum::Int(i64::try_from(elements.len()).map_err(|_| Trouble::Undecided)?)
                }
                _ => return Err(Trouble::Error),
            },
            Self::Elements => match value {
                Jsonb::Array(elements) => {
                    let each = elements.iter().cloned().map(Arc::new);
                    array(each.map(Datum::Jsonb).map(Some).collect())
                }
                _ => return Err(Trouble::Error),
            },
            Self::Texts => match value {
                Jsonb::Array(elements) => {
                    let each = elements.iter().map(Jsonb::as_text);
                    array(each.map(|one| text(&one?)).collect())
                }
                _ => return Err(Trouble::Error),
            },
            Self::Keys => match value {
                Jsonb::Object(members) => array(members.iter().map(|(key, _)| text(key)).collect()),
                _ => return Err(Trouble::Error),
            },
            Self::Names => array(match value {
                Jsonb::Object(members) => members.iter().map(|(key, _)| text(key)).collect(),
                Jsonb::Array(elements) => {
                    let strings = elements.iter().filter_map(|one| match one {
                        Jsonb::String(one) => Some(text(one)),
                        _ => None,
                    });
                    strings.collect()
                }
                Jsonb::String(one) => vec![text(one)],
                _ => Vec::new(),
            }),
            Self::Make | Self::Array | Self::Object => return Err(Trouble::Undecided),
        }))
    }
}

/// A value as `to_jsonb` has it.
fn made(value: Option<&Datum>) -> Result<Jsonb, Trouble> {
    Ok(match value {
        None => Jsonb::Null,
        Some(Datum::Bool(value)) => Jsonb::Bool(*value),
        Some(Datum::Int(value)) => Jsonb::Number(Numeric::from_i64(*value)),
        Some(Datum::Numeric(value)) if value.is_finite() => Jsonb::Number((**value).clone()),
        Some(Datum::Jsonb(value)) => (**value).clone(),
        Some(Datum::Array(array)) if array.dimensions() < 2 => {
            let elements = array.elements().iter().map(|one| made(one.as_ref()));
            Jsonb::Array(elements.collect::<Result<_, _>>()?)
        }
        Some(other @ (Datum::Text(_) | Datum::Uuid(_) | Datum::Enum(_) | Datum::Numeric(_))) => {
            Jsonb::String(Box::from(&*other.output().ok_or(Trouble::Undecided)?))
        }
        Some(_) => return Err(Trouble::Undecided),
    })
}

fn object(values: &[Option<&Datum>]) -> Outcome {
    let mut members = Vec::with_capacity(values.len() / 2);
    for pair in values.chunks(2) {
        let [key, value] = pair else {
            return Err(Trouble::Error);
        };
        let Some(key) = key else {
            return Err(Trouble::Error);
        };
        let Datum::Text(key) = key else {
            return Err(Trouble::Undecided);
        };
        members.push((Box::from(&**key), made(*value)?));
    }
    Ok(Some(Datum::Jsonb(Arc::new(Jsonb::object(members)))))
}

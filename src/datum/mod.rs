//! PostgreSQL values, typed: read from their text output and compared exactly as PostgreSQL's own
//! operators compare them. What is not exact is not here.

mod array;

mod collation;

mod input;

pub mod json;

mod like;

mod numeric;

mod time;

mod types;

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

pub use array::Array;
pub use collation::Collation;
pub use input::{cast, cast_to_text};
pub use json::Jsonb;
pub use like::like;
pub use numeric::Numeric;
pub use types::{Encoding, Label, Labels, Type, Types, UserType};

/// Why there is no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Trouble {
    /// PostgreSQL raises an error here.
    #[error("PostgreSQL would raise an error")]
    Error,
    /// What PostgreSQL does here is not known natively: it has to be asked.
    #[error("not decidable natively")]
    Undecided,
}

/// A value that is not NULL. `==` and hashing are PostgreSQL's `=` of the type, so that a value
/// may be a key of a hash index: `1.0` equals `1.00`, NaN equals NaN, blanks at the end of a
/// `character(n)` do not count. Integers of every width are [`Datum::Int`], both widths of
/// floating point [`Datum::Float`]: PostgreSQL compares them across widths by value too.
#[derive(Clone)]
pub enum Datum {
    /// `boolean`
    Bool(bool),
    /// `smallint`, `integer`, `bigint`, `oid`
    Int(i64),
    /// `real` (widened) and `double precision`
    Float(f64),
    /// `numeric`
    Numeric(Arc<Numeric>),
    /// `text`, `varchar`, `name`; `character(n)` without its blanks at the end
    Text(Arc<str>),
    /// `uuid`
    Uuid([u8; 16]),
    /// `date`: days since 2000-01-01; the extremes are the infinities
    Date(i32),
    /// `timestamp` and `timestamptz`: microseconds since 2000-01-01; the extremes are the
    /// infinities
    Timestamp(i64),
    /// A label of an enum
    Enum(Label),
    /// `json`: the text as it is
    Json(Arc<str>),
    /// `jsonb`
    Jsonb(Arc<Jsonb>),
    /// `bytea`
    Bytes(Arc<[u8]>),
    /// An array
    Array(Arc<Array>),
}

impl Datum {
    /// A text value.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::Text(Arc::from(text))
    }

    /// Reads a value's text output, as it is under `DateStyle` ISO, `TimeZone` UTC,
    /// `bytea_output` hex and `extra_float_digits` of at least 1.
    ///
    /// # Errors
    /// [`Trouble::Undecided`] when the text is not a form that the type's output has.
    pub fn from_output(of: &Type, text: &str) -> Result<Self, Trouble> {
        const ODD: Trouble = Trouble::Undecided;
        Ok(match of {
            Type::Bool => Self::Bool(match text {
                "t" => true,
                "f" => false,
                _ => return Err(ODD),
            }),
            Type::Int2 => Self::Int(text.parse::<i16>().map_err(|_| ODD)?.into()),
            Type::Int4 => Self::Int(text.parse::<i32>().map_err(|_| ODD)?.into()),
            Type::Int8 => Self::Int(text.parse::<i64>().map_err(|_| ODD)?),
            Type::Oid => Self::Int(text.parse::<u32>().map_err(|_| ODD)?.into()),
            Type::Float4 => Self::Float(text.parse::<f32>().map_err(|_| ODD)?.into()),
            Type::Float8 => Self::Float(text.parse::<f64>().map_err(|_| ODD)?),
            Type::Numeric => Self::Numeric(Arc::new(text.parse().map_err(|_| ODD)?)),
            Type::Text(_) | Type::Citext | Type::Name => Self::text(text),
            Type::Bpchar(_) => Self::text(text.trim_end_matches(' ')),
            Type::Uuid => Self::Uuid(input::uuid(text).map_err(|_| ODD)?),
            Type::Date => Self::Date(time::date(text).ok_or(ODD)?),
            Type::Timestamp => Self::Timestamp(time::timestamp(text, false).ok_or(ODD)?),
            Type::Timestamptz => Self::Timestamp(time::timestamp(text, true).ok_or(ODD)?),
            Type::Enum(labels) => Self::Enum(labels.by_name(text).ok_or(ODD)?.clone()),
            Type::Json => Self::Json(Arc::from(text)),
            Type::Jsonb => Self::Jsonb(Arc::new(Jsonb::parse(text).map_err(|_| ODD)?)),
            Type::Bytea => Self::Bytes(hex(text).ok_or(ODD)?.into()),
            Type::Array(of) => {
                let mut element = |text: &str| Self::from_output(of, text);
                Self::Array(Arc::new(Array::parse(text, &mut element)?))
            }
        })
    }

    /// The text output, where it is the same under every setting; `None` for floating point,
    /// dates, times and bytes, whose output depends on settings.
    #[must_use]
    pub fn output(&self) -> Option<Arc<str>> {
        Some(match self {
            Self::Bool(value) => Arc::from(if *value { "t" } else { "f" }),
            Self::Int(value) => Arc::from(itoa::Buffer::new().format(*value)),
            Self::Numeric(value) => Arc::from(value.to_string()),
            Self::Text(text) | Self::Json(text) => Arc::clone(text),
            Self::Uuid(bytes) => Arc::from(hyphenated(bytes)),
            Self::Enum(label) => Arc::clone(&label.name),
            Self::Jsonb(value) => Arc::from(value.to_string()),
            Self::Array(array) => Arc::from(array.output()?),
            Self::Float(_) | Self::Date(_) | Self::Timestamp(_) | Self::Bytes(_) => return None,
        })
    }

    /// How two values of one type order under its btree operators; text by its bytes, which is
    /// what the collations `C` and `POSIX` do ([`Type::compare`] knows the collation). `None` for
    /// types without an order here.
    #[must_use]
    pub fn order(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::Float(a), Self::Float(b)) => Some(float_order(*a, *b)),
            (Self::Numeric(a), Self::Numeric(b)) => Some(a.cmp(b)),
            (Self::Text(a), Self::Text(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
            (Self::Uuid(a), Self::Uuid(b)) => Some(a.cmp(b)),
            (Self::Date(a), Self::Date(b)) => Some(a.cmp(b)),
            (Self::Timestamp(a), Self::Timestamp(b)) => Some(a.cmp(b)),
            (Self::Enum(a), Self::Enum(b)) => Some(a.position.cmp(&b.position)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }

    /// Whether two values cannot be told apart by any function, which is more than being equal:
    /// `1.0` and `1.00` are equal, their texts are not.
    #[must_use]
    pub fn identical(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Numeric(a), Self::Numeric(b)) => a == b && a.scale() == b.scale(),
            (Self::Jsonb(a), Self::Jsonb(b)) => a == b && a.to_string() == b.to_string(),
            (Self::Float(a), Self::Float(b)) => a.to_bits() == b.to_bits(),
            (Self::Array(a), Self::Array(b)) => a.identical(b),
            _ => self == other,
        }
    }
}

impl PartialEq for Datum {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Uuid(a), Self::Uuid(b)) => a == b,
            (Self::Text(a), Self::Text(b)) | (Self::Json(a), Self::Json(b)) => a == b,
            (Self::Jsonb(a), Self::Jsonb(b)) => a == b,
            (Self::Array(a), Self::Array(b)) => a == b,
            _ => self.order(other) == Some(Ordering::Equal),
        }
    }
}

impl Eq for Datum {}

impl Hash for Datum {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Bool(value) => value.hash(state),
            Self::Int(value) | Self::Timestamp(value) => value.hash(state),
            // Equal values must hash alike: there is one zero and one NaN.
            Self::Float(value) if value.is_nan() => f64::NAN.to_bits().hash(state),
            Self::Float(value) if *value == 0.0 => 0_u64.hash(state),
            Self::Float(value) => value.to_bits().hash(state),
            Self::Numeric(value) => value.hash(state),
            Self::Text(text) | Self::Json(text) => text.hash(state),
            Self::Uuid(bytes) => bytes.hash(state),
            Self::Date(days) => days.hash(state),
            Self::Enum(label) => label.position.hash(state),
            Self::Jsonb(value) => value.hash(state),
            Self::Bytes(bytes) => bytes.hash(state),
            Self::Array(array) => array.hash(state),
        }
    }
}

/// Values are user data and must not reach a log: only the kind is shown.
impl fmt::Debug for Datum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool(_) => "Bool(…)",
            Self::Int(_) => "Int(…)",
            Self::Float(_) => "Float(…)",
            Self::Numeric(_) => "Numeric(…)",
            Self::Text(_) => "Text(…)",
            Self::Uuid(_) => "Uuid(…)",
            Self::Date(_) => "Date(…)",
            Self::Timestamp(_) => "Timestamp(…)",
            Self::Enum(_) => "Enum(…)",
            Self::Json(_) => "Json(…)",
            Self::Jsonb(_) => "Jsonb(…)",
            Self::Bytes(_) => "Bytes(…)",
            Self::Array(_) => "Array(…)",
        })
    }
}

/// PostgreSQL orders NaN above everything and equal to itself, and knows one zero.
fn float_order(a: f64, b: f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks_exact(2)
        .map(|pair| match pair {
            [high, low] => Some(input::hex_digit(*high)? << 4 | input::hex_digit(*low)?),
            _ => None,
        })
        .collect()
}

fn hyphenated(bytes: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from_digit(nibble.into(), 16).unwrap_or('0'));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(of: &Type, text: &str) -> Datum {
        Datum::from_output(of, text).expect("an output of the type")
    }

    #[test]
    fn equality_is_postgresqls() {
        for (of, a, b, equal) in [
            (Type::Numeric, "1.0", "1.00", true),
            (Type::Numeric, "NaN", "NaN", true),
            (Type::Numeric, "1.0", "1.01", false),
            (Type::Float8, "-0", "0", true),
            (Type::Float8, "NaN", "NaN", true),
            (Type::Bpchar(Collation::C), "a  ", "a", true),
            (Type::Text(Collation::C), "a  ", "a", false),
            (Type::Jsonb, r#"{"a": 1.0}"#, r#"{"a": 1.00}"#, true),
            (Type::Jsonb, r#"{"a": "1"}"#, r#"{"a": 1}"#, false),
        ] {
            let (a, b) = (read(&of, a), read(&of, b));
            assert_eq!(a == b, equal, "{of:?}");
            let hash = |datum: &Datum| {
                let mut hasher = std::hash::DefaultHasher::new();
                datum.hash(&mut hasher);
                hasher.finish()
            };
            assert!(!equal || hash(&a) == hash(&b), "{of:?}");
        }
    }

    #[test]
    fn equal_values_may_differ_in_their_text() {
        let (a, b) = (read(&Type::Numeric, "1.0"), read(&Type::Numeric, "1.00"));
        assert!(a == b && !a.identical(&b));
        let (a, b) = (read(&Type::Jsonb, "[1.0]"), read(&Type::Jsonb, "[1.00]"));
        assert!(a == b && !a.identical(&b));
    }

    #[test]
    fn a_value_in_a_log_line_shows_nothing() {
        assert_eq!(format!("{:?}", Datum::text("secret")), "Text(…)");
    }

    #[test]
    fn text_is_ordered_only_where_order_is_bytes() {
        let (a, b) = (Datum::text("a"), Datum::text("b"));
        assert_eq!(
            Type::Text(Collation::C).compare(&a, &b),
            Some(Ordering::Less)
        );
        assert_eq!(Type::Text(Collation::DEFAULT).compare(&a, &b), None);
    }
}

//! Casts from text and to text: the types' input and output functions, as far as policies use
//! them.

use std::sync::Arc;

use super::{Array, Datum, Jsonb, Trouble, Type, json};

/// C's `isspace` in the C locale, which the input functions skip.
const SPACE: [char; 6] = [' ', '\t', '\n', '\u{b}', '\u{c}', '\r'];

pub(super) fn trim(text: &str) -> &str {
    text.trim_matches(SPACE)
}

/// The input function of a type (`text::uuid` and the like).
///
/// # Errors
/// [`Trouble::Error`] where PostgreSQL raises an error, [`Trouble::Undecided`] where the input
/// function is not known natively.
pub fn cast(text: &str, to: &Type) -> Result<Datum, Trouble> {
    Ok(match to {
        Type::Bool => Datum::Bool(boolean(text)?),
        Type::Int2 => Datum::Int(integer(text, i16::MIN.into(), i16::MAX.into())?),
        Type::Int4 => Datum::Int(integer(text, i32::MIN.into(), i32::MAX.into())?),
        Type::Int8 => Datum::Int(integer(text, i64::MIN, i64::MAX)?),
        Type::Numeric => Datum::Numeric(Arc::new(text.parse()?)),
        Type::Text(_) => Datum::text(text),
        Type::Uuid => Datum::Uuid(uuid(text)?),
        Type::Enum(labels) => Datum::Enum(labels.by_name(text).ok_or(Trouble::Error)?.clone()),
        Type::Json => {
            json::check(text)?;
            Datum::Json(Arc::from(text))
        }
        Type::Jsonb => Datum::Jsonb(Arc::new(Jsonb::parse(text)?)),
        Type::Array(of) => {
            let mut element = |text: &str| cast(text, of);
            Datum::Array(Arc::new(Array::parse(text, &mut element)?))
        }
        Type::Oid
        | Type::Float4
        | Type::Float8
        | Type::Bpchar(_)
        | Type::Name
        | Type::Citext
        | Type::Date
        | Type::Timestamp
        | Type::Timestamptz
        | Type::Bytea => return Err(Trouble::Undecided),
    })
}

/// The cast to `text`: the output function for every type but `boolean`, which has a cast function
/// of its own.
///
/// # Errors
/// [`Trouble::Undecided`] where the output depends on settings.
pub fn cast_to_text(datum: &Datum) -> Result<Datum, Trouble> {
    match datum {
        Datum::Bool(value) => Ok(Datum::text(if *value { "true" } else { "false" })),
        Datum::Text(_) => Ok(datum.clone()),
        _ => Ok(Datum::Text(datum.output().ok_or(Trouble::Undecided)?)),
    }
}

pub(super) const fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// `uuid`'s input: 32 hexadecimal digits, a hyphen allowed after every fourth, the whole in braces
/// or not.
pub(super) fn uuid(text: &str) -> Result<[u8; 16], Trouble> {
    let text = text.as_bytes();
    let mut rest = match text {
        [b'{', rest @ .., b'}'] => rest,
        rest => rest,
    };
    let mut bytes = [0; 16];
    for (index, byte) in bytes.iter_mut().enumerate() {
        let [high, low, after @ ..] = rest else {
            return Err(Trouble::Error);
        };
        let high = hex_digit(*high).ok_or(Trouble::Error)?;
        let low = hex_digit(*low).ok_or(Trouble::Error)?;
        *byte = high << 4 | low;
        rest = match after {
            [b'-', after @ ..] if index % 2 == 1 && index < 15 => after,
            after => after,
        };
    }
    if rest.is_empty() {
        Ok(bytes)
    } else {
        Err(Trouble::Error)
    }
}

/// `boolean`'s input: unique prefixes of true, false, yes, no, on, off; 1 and 0.
fn boolean(text: &str) -> Result<bool, Trouble> {
    let text = trim(text).to_ascii_lowercase();
    let begins = |word: &str, at_least: usize| text.len() >= at_least && word.starts_with(&*text);
    if begins("true", 1) || begins("yes", 1) || begins("on", 2) || text == "1" {
        Ok(true)
    } else if begins("false", 1) || begins("no", 1) || begins("off", 2) || text == "0" {
        Ok(false)
    } else {
        Err(Trouble::Error)
    }
}

fn integer(text: &str, least: i64, most: i64) -> Result<i64, Trouble> {
    let text = trim(text);
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(if newer_integer_form(text) {
            Trouble::Undecided
        } else {
            Trouble::Error
        });
    }
    let value = text.parse::<i64>().map_err(|_| Trouble::Error)?;
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(Trouble::Error)
    }
}

/// Hexadecimal, octal and binary numbers and underscores, which PostgreSQL reads from 16 on.
pub(super) fn newer_integer_form(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let prefixed = matches!(
        digits.as_bytes(),
        [b'0', b'x' | b'X' | b'o' | b'O' | b'b' | b'B', ..]
    );
    let begins = digits.starts_with(|first: char| first.is_ascii_digit() || first == '.');
    begins && (prefixed || digits.contains('_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_is_read_in_all_its_forms() {
        let wanted = uuid("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11").unwrap();
        for form in [
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
            "{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}",
        ] {
            assert_eq!(uuid(form), Ok(wanted), "{form}");
        }
        for bad in [
            "",
            " a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1",
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
            "a0-eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11-",
            "g0eebc999c0b4ef8bb6d6bb9bd380a11",
        ] {
            assert_eq!(uuid(bad), Err(Trouble::Error), "{bad}");
        }
    }

    #[test]
    fn integers_are_trimmed_and_checked() {
        let int2 = |text| cast(text, &Type::Int2);
        assert_eq!(int2(" \t+7\n"), Ok(Datum::Int(7)));
        assert_eq!(int2("-32768"), Ok(Datum::Int(-32_768)));
        for bad in ["32768", "", " ", "1.0", "1 2", "+", "- 1", "a"] {
            assert_eq!(int2(bad), Err(Trouble::Error), "{bad}");
        }
        for newer in ["0x10", "1_000", "0b1"] {
            assert_eq!(int2(newer), Err(Trouble::Undecided), "{newer}");
        }
    }

    #[test]
    fn booleans_are_prefixes() {
        for (text, value) in [
            ("t", true),
            (" TRUE ", true),
            ("y", true),
            ("on", true),
            ("1", true),
            ("f", false),
            ("fal", false),
            ("n", false),
            ("of", false),
            ("off", false),
            ("0", false),
        ] {
            assert_eq!(boolean(text), Ok(value), "{text}");
        }
        for bad in ["", "o", "truex", "2", "01", "nope"] {
            assert_eq!(boolean(bad), Err(Trouble::Error), "{bad}");
        }
    }
}

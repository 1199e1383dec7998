//! Constants: the bytes of a datum as the server keeps it in memory (little-endian).

use std::sync::Arc;

use crate::datum::{Array, Datum, Encoding, Numeric, Type};
use crate::pg::Oid;

/// A value from its bytes; `None` where the type's bytes are not understood.
pub(super) fn datum(bytes: &[u8], of: &Type, encoding: Encoding) -> Option<Datum> {
    Some(match of {
        Type::Bool => Datum::Bool(match bytes {
            [0] => false,
            [1] => true,
            _ => return None,
        }),
        Type::Int2 => Datum::Int(i16::from_le_bytes(bytes.try_into().ok()?).into()),
        Type::Int4 => Datum::Int(i32::from_le_bytes(bytes.try_into().ok()?).into()),
        Type::Int8 => Datum::Int(i64::from_le_bytes(bytes.try_into().ok()?)),
        Type::Oid => Datum::Int(u32::from_le_bytes(bytes.try_into().ok()?).into()),
        Type::Float4 => Datum::Float(f32::from_le_bytes(bytes.try_into().ok()?).into()),
        Type::Float8 => Datum::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
        Type::Date => Datum::Date(i32::from_le_bytes(bytes.try_into().ok()?)),
        Type::Timestamp | Type::Timestamptz => {
            Datum::Timestamp(i64::from_le_bytes(bytes.try_into().ok()?))
        }
        Type::Uuid => Datum::Uuid(bytes.try_into().ok()?),
        Type::Enum(labels) => {
            let oid = Oid(u32::from_le_bytes(bytes.try_into().ok()?));
            Datum::Enum(labels.by_oid(oid)?.clone())
        }
        Type::Text(_) | Type::Citext => Datum::text(encoding.text(payload(bytes)?)?),
        Type::Bpchar(_) => Datum::text(encoding.text(payload(bytes)?)?.trim_end_matches(' ')),
        Type::Name => {
            let end = bytes.iter().position(|byte| *byte == 0)?;
            Datum::text(encoding.text(bytes.get(..end)?)?)
        }
        Type::Numeric => Datum::Numeric(Arc::new(numeric(payload(bytes)?)?)),
        Type::Json => Datum::Json(Arc::from(encoding.text(payload(bytes)?)?)),
        Type::Bytea => Datum::Bytes(Arc::from(payload(bytes)?)),
        Type::Array(of) => {
            let (_, array) = array(bytes, encoding, |_| Some((**of).clone()))?;
            Datum::Array(Arc::new(array))
        }
        Type::Jsonb => {
            let mut text = String::new();
            let scalar = container(payload(bytes)?, encoding, &mut text, 0)?;
            // A value that is no array or object is kept as an array of one.
            let text = match scalar {
                true => text.strip_prefix('[')?.strip_suffix(']')?,
                false => &text,
            };
            Datum::from_output(of, text).ok()?
        }
    })
}

/// Arrays and objects of `jsonb` inside each other.
const MAX_JSON: usize = 64;

/// Writes an array or object of `jsonb` as JSON text; whether it stands for its only element.
fn container(bytes: &[u8], encoding: Encoding, text: &mut String, depth: usize) -> Option<bool> {
    let word = |at: usize| -> Option<u32> {
        let bytes = bytes.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    if depth > MAX_JSON {
        return None;
    }
    let header = word(0)?;
    let count = usize::try_from(header & 0x0FFF_FFFF).ok()?;
    let (scalar, object) = match header >> 28 {
        4 => (false, false),
        5 => (true, false),
        2 => (false, true),
        _ => return None,
    };
    // Of an object first come all keys, then all values.
    let entries = if object { count.checked_mul(2)? } else { count };
    let values = bytes.get(entries.checked_mul(4)?.checked_add(4)?..)?;
    let (mut parts, mut start) = (Vec::new(), 0_usize);
    for at in 0..entries {
        let entry = word(4 + 4 * at)?;
        let number = usize::try_from(entry & 0x0FFF_FFFF).ok()?;
        let end = if entry & 0x8000_0000 == 0 {
            start.checked_add(number)?
        } else {
            number
        };
        let value = |start: usize| values.get(start..end);
        let aligned = start.checked_next_multiple_of(4)?;
        let mut part = String::new();
        match entry >> 28 & 7 {
            0 => part = serde_json::to_string(encoding.text(value(start)?)?).ok()?,
            1 => part
                .push_str(&Datum::Numeric(Arc::new(numeric(payload(value(aligned)?)?)?)).output()?),
            2 => part.push_str("false"),
            3 => part.push_str("true"),
            4 => part.push_str("null"),
            5 if container(value(aligned)?, encoding, &mut part, depth + 1)? => return None,
            5 => {}
            _ => return None,
        }
        parts.push(part);
        start = end;
    }
    if object {
        let values = parts.split_off(count);
        let members = parts
            .iter()
            .zip(&values)
            .map(|(key, value)| format!("{key}:{value}"));
        text.push_str(&format!("{{{}}}", members.collect::<Vec<_>>().join(",")));
    } else {
        text.push_str(&format!("[{}]", parts.join(",")));
    }
    Some(scalar)
}

/// What follows the four bytes of length of a value of variable length.
fn payload(bytes: &[u8]) -> Option<&[u8]> {
    let (header, payload) = bytes.split_first_chunk::<4>()?;
    let header = u32::from_le_bytes(*header);
    let whole = usize::try_from(header >> 2).ok()?;
    (header & 3 == 0 && whole == bytes.len()).then_some(payload)
}

fn numeric(bytes: &[u8]) -> Option<Numeric> {
    let (header, rest) = bytes.split_first_chunk::<2>()?;
    let header = u16::from_le_bytes(*header);
    let (negative, weight, scale, rest) = match header & 0xC000 {
        0xC000 => {
            return match header & 0xF000 {
                0xC000 => Some(Numeric::NAN),
                0xD000 => Some(Numeric::INFINITY),
                0xF000 => Some(Numeric::NEGATIVE_INFINITY),
                _ => None,
            };
        }
        0x8000 => {
            let low = i16::try_from(header & 0x3F).ok()?;
            let weight = if header & 0x40 == 0 { low } else { low - 0x40 };
            (header & 0x2000 != 0, weight, (header & 0x1F80) >> 7, rest)
        }
        sign => {
            let (weight, rest) = rest.split_first_chunk::<2>()?;
            (
                sign == 0x4000,
                i16::from_le_bytes(*weight),
                header & 0x3FFF,
                rest,
            )
        }
    };
    if !rest.len().is_multiple_of(2) {
        return None;
    }
    let groups = rest.chunks_exact(2).map(|group| match group {
        [low, high] => i16::from_le_bytes([*low, *high]),
        _ => -1,
    });
    Numeric::from_groups(negative, weight, &groups.collect::<Vec<_>>(), scale)
}

/// An array, and the type of its elements.
pub(super) fn array(
    bytes: &[u8],
    encoding: Encoding,
    element_type: impl Fn(Oid) -> Option<Type>,
) -> Option<(Oid, Array)> {
    let word = |at: usize| -> Option<i32> {
        let bytes = bytes.get(at..at.checked_add(4)?)?;
        Some(i32::from_le_bytes(bytes.try_into().ok()?))
    };
    payload(bytes)?;
    let number = usize::try_from(word(4)?).ok().filter(|of| *of <= 6)?;
    let offset = usize::try_from(word(8)?).ok()?;
    let element = Oid(word(12)?.cast_unsigned());
    let of = element_type(element)?;
    // First come all lengths, then all lower bounds.
    let mut dimensions = Vec::with_capacity(number);
    let mut count = usize::from(number > 0);
    for at in 0..number {
        let length = usize::try_from(word(16 + 4 * at)?).ok()?;
        dimensions.push((word(16 + 4 * (number + at))?, length));
        count = count.checked_mul(length)?;
    }
    let head = 16 + 8 * number;
    let nulls = (offset != 0).then_some(head);
    let mut at = if offset == 0 { head } else { offset };
    let mut elements = Vec::new();
    for index in 0..count {
        if let Some(nulls) = nulls
            && bytes.get(nulls + index / 8)? & 1 << (index % 8) == 0
        {
            elements.push(None);
            continue;
        }
        let (align, fixed) = layout(&of)?;
        at = at.checked_next_multiple_of(align)?;
        let length = match fixed {
            Some(length) => length,
            None => usize::try_from(word(at)?.cast_unsigned() >> 2).ok()?,
        };
        let end = at.checked_add(length)?;
        elements.push(Some(datum(bytes.get(at..end)?, &of, encoding)?));
        at = end;
    }
    Some((element, Array::with(dimensions, elements)?))
}

/// Alignment and, where it is fixed, length of a type's values in an array.
const fn layout(of: &Type) -> Option<(usize, Option<usize>)> {
    Some(match of {
        Type::Bool => (1, Some(1)),
        Type::Int2 => (2, Some(2)),
        Type::Int4 | Type::Oid | Type::Float4 | Type::Date | Type::Enum(_) => (4, Some(4)),
        Type::Int8 | Type::Float8 | Type::Timestamp | Type::Timestamptz => (8, Some(8)),
        Type::Uuid => (1, Some(16)),
        Type::Name => (1, Some(64)),
        Type::Text(_) | Type::Bpchar(_) | Type::Numeric | Type::Bytea => (4, None),
        Type::Json | Type::Jsonb | Type::Citext | Type::Array(_) => return None,
    })
}

//! One value: PostgreSQL's text output to the JSON that its own `to_jsonb` gives under
//! `TimeZone = UTC`, save where Supabase's clients expect something else (bytea).

mod nested;

use std::collections::HashMap;
use std::sync::Arc;

use super::write_string;
use crate::mutant::EncoderMutant;
use crate::pg::Oid;
use crate::policy::catalog::Catalog;

/// Types nested deeper than this are written as text. Each level doubles the backslashes and
/// quotes of its text, so no value comes near.
const MAX_DEPTH: usize = 64;

/// How the values of a type are written.
#[derive(Debug)]
pub(super) enum Codec {
    Bool,
    /// The text is a JSON number unless it is NaN or infinite.
    Number,
    /// The text is JSON.
    Json,
    /// The text in quotes.
    Text,
    Timestamp,
    Timestamptz,
    /// Hexadecimal without the leading `\x`.
    Bytea,
    /// `int2vector` and `oidvector`: what is in an array there, between spaces here.
    Vector(Arc<Self>),
    Array {
        element: Arc<Self>,
        delimiter: u8,
    },
    Composite(Box<[Attribute]>),
    Hstore,
}

/// An attribute's label as JSON, with the colon, and how it is written.
type Attribute = (Box<[u8]>, Arc<Codec>);

/// The numbers of PostgreSQL's own types, the same in every database.
mod oid {
    pub(super) const BOOL: u32 = 16;
    pub(super) const BYTEA: u32 = 17;
    pub(super) const INT8: u32 = 20;
    pub(super) const INT2: u32 = 21;
    pub(super) const INT2VECTOR: u32 = 22;
    pub(super) const INT4: u32 = 23;
    pub(super) const OIDVECTOR: u32 = 30;
    pub(super) const JSON: u32 = 114;
    pub(super) const FLOAT4: u32 = 700;
    pub(super) const FLOAT8: u32 = 701;
    pub(super) const TIMESTAMP: u32 = 1114;
    pub(super) const TIMESTAMPTZ: u32 = 1184;
    pub(super) const NUMERIC: u32 = 1700;
    pub(super) const JSONB: u32 = 3802;
}

/// Codecs of one catalog. A type that occurs many times in another is looked at once.
struct Codecs<'catalog> {
    catalog: &'catalog Catalog,
    known: HashMap<Oid, Arc<Codec>>,
}

impl Codecs<'_> {
    fn of(&mut self, ty: Oid, depth: usize) -> Arc<Codec> {
        if depth > 0 && EncoderMutant::NestedIsText.active() {
            return Arc::new(Codec::Text);
        }
        if let Some(known) = self.known.get(&ty) {
            return Arc::clone(known);
        }
        // Types do not contain themselves, but an end must not depend on the catalog being sound.
        self.known.insert(ty, Arc::new(Codec::Text));
        let codec = match ty.0 {
            oid::BOOL => Arc::new(Codec::Bool),
            oid::INT2 | oid::INT4 | oid::INT8 | oid::FLOAT4 | oid::FLOAT8 | oid::NUMERIC => {
                Arc::new(Codec::Number)
            }
            oid::JSON | oid::JSONB => Arc::new(Codec::Json),
            oid::TIMESTAMP => Arc::new(Codec::Timestamp),
            oid::TIMESTAMPTZ => Arc::new(Codec::Timestamptz),
            oid::INT2VECTOR => Arc::new(Codec::Vector(Arc::new(Codec::Number))),
            oid::OIDVECTOR => Arc::new(Codec::Vector(Arc::new(Codec::Text))),
            _ => self.made_of_others(ty, depth),
        };
        self.known.insert(ty, Arc::clone(&codec));
        codec
    }

    fn made_of_others(&mut self, ty: Oid, depth: usize) -> Arc<Codec> {
        let catalog = self.catalog;
        let Some(ty) = catalog.types.get(&ty).filter(|_| depth < MAX_DEPTH) else {
            return Arc::new(Codec::Text);
        };
        if ty.kind == 'd' && !EncoderMutant::DomainIsText.active() {
            return self.of(ty.base, depth);
        }
        if ty.hstore && !EncoderMutant::HstoreIsText.active() {
            return Arc::new(Codec::Hstore);
        }
        if ty.element.0 != 0 {
            let delimiter = catalog
                .types
                .get(&ty.element)
                .map_or(',', |element| element.delimiter);
            return Arc::new(Codec::Array {
                element: self.of(ty.element, depth + 1),
                delimiter: if EncoderMutant::DelimiterIsComma.active() {
                    b','
                } else {
                    u8::try_from(delimiter).unwrap_or(b',')
                },
            });
        }
        if ty.kind != 'c' {
            return Arc::new(Codec::Text);
        }
        let mut attributes: Box<[Attribute]> = ty
            .attributes
            .iter()
            .flatten()
            .map(|(name, attribute)| {
                let mut label = Vec::new();
                write_string(&mut label, name);
                label.push(b':');
                (label.into_boxed_slice(), self.of(*attribute, depth + 1))
            })
            .collect();
        if EncoderMutant::AttributesInOtherOrder.active() {
            attributes.reverse();
        }
        Arc::new(Codec::Composite(attributes))
    }
}

impl Codec {
    /// How values of a column of this type are written.
    pub(super) fn of(ty: Oid, catalog: &Catalog) -> Arc<Self> {
        // Inside arrays and composites, and under a domain, Supabase's bytea has the prefix.
        if ty.0 == oid::BYTEA && !EncoderMutant::ByteaKeepsPrefix.active() {
            return Arc::new(Self::Bytea);
        }
        let known = HashMap::new();
        Codecs { catalog, known }.of(ty, 0)
    }

    /// Writes one value that is not NULL. A text that is not what its type prints is written as a
    /// string.
    pub(super) fn write(&self, out: &mut Vec<u8>, text: &str) {
        match self {
            Self::Bool if !EncoderMutant::BoolIsLetter.active() => match text {
                "t" => out.extend_from_slice(b"true"),
                "f" => out.extend_from_slice(b"false"),
                _ => write_string(out, text),
            },
            Self::Number if is_json_number(text) => write_number(out, text),
            Self::Number if EncoderMutant::NanIsNull.active() => out.extend_from_slice(b"null"),
            Self::Json => out.extend_from_slice(text.as_bytes()),
            Self::Text if EncoderMutant::PaddingIsCut.active() => {
                write_string(out, text.trim_end_matches(' '));
            }
            Self::Text if EncoderMutant::BitIsFirst.active() && is_bits(text) => {
                write_string(out, text.get(..1).unwrap_or_default());
            }
            Self::Bool | Self::Number | Self::Text => write_string(out, text),
            Self::Timestamp => write_timestamp(out, text, ""),
            Self::Timestamptz if EncoderMutant::ZoneIsShort.active() => {
                write_timestamp(out, text, "");
            }
            Self::Timestamptz => write_timestamp(out, text, "+00"),
            Self::Bytea => write_string(out, text.strip_prefix("\\x").unwrap_or(text)),
            Self::Vector(element) => {
                or_text(out, text, |out| nested::write_vector(out, text, element));
            }
            Self::Array { element, delimiter } => or_text(out, text, |out| {
                nested::write_array(out, text, element, *delimiter)
            }),
            Self::Composite(attributes) => or_text(out, text, |out| {
                nested::write_composite(out, text, attributes)
            }),
            Self::Hstore => or_text(out, text, |out| nested::write_hstore(out, text)),
        }
    }
}

/// Writes the text itself where `write` finds that it has another form.
fn or_text(out: &mut Vec<u8>, text: &str, write: impl FnOnce(&mut Vec<u8>) -> Option<()>) {
    let mark = out.len();
    if write(out).is_none() {
        out.truncate(mark);
        write_string(out, text);
    }
}

/// PostgreSQL prints numbers as JSON does, but for NaN and the infinities.
fn is_json_number(text: &str) -> bool {
    let digits = |text: &mut &[u8]| {
        let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        *text = text.get(count..).unwrap_or_default();
        count > 0
    };
    let mut rest = text.as_bytes();
    let skip = |rest: &mut &[u8], wanted: &[u8]| match rest.split_first() {
        Some((first, after)) if wanted.contains(first) => {
            *rest = after;
            true
        }
        _ => false,
    };
    skip(&mut rest, b"-");
    // Nothing follows a leading zero but a point or an exponent.
    if !skip(&mut rest, b"0") && !digits(&mut rest) {
        return false;
    }
    if skip(&mut rest, b".") && !digits(&mut rest) {
        return false;
    }
    if skip(&mut rest, b"eE") {
        skip(&mut rest, b"+-");
        if !digits(&mut rest) {
            return false;
        }
    }
    rest.is_empty()
}

/// What only an [`EncoderMutant`] asks.
fn is_bits(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0' | b'1'))
}

fn write_number(out: &mut Vec<u8>, text: &str) {
    if EncoderMutant::NumberIsDouble.active()
        && let Ok(number) = text.parse::<f64>()
    {
        return out.extend_from_slice(number.to_string().as_bytes());
    }
    if EncoderMutant::ScaleIsCut.active() && text.contains('.') && !text.contains('e') {
        let cut = text.trim_end_matches('0').trim_end_matches('.');
        return out.extend_from_slice(cut.as_bytes());
    }
    out.extend_from_slice(text.as_bytes());
}

/// `2024-02-29 10:34:56.1+00` to `2024-02-29T10:34:56.1+00:00`, where `zone` is what the time of day
/// ends with; a year BC keeps its mark, and infinity is itself.
fn write_timestamp(out: &mut Vec<u8>, text: &str, zone: &str) {
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b':' | b'.');
    let Some((date, time)) = text.split_once(' ') else {
        return write_string(out, text);
    };
    let (time, era) = match time.strip_suffix(" BC") {
        Some(time) => (time, " BC"),
        None => (time, ""),
    };
    if !date.bytes().chain(time.bytes()).all(plain) {
        return write_string(out, text);
    }
    let between = if EncoderMutant::TimestampKeepsSpace.active() {
        b' '
    } else {
        b'T'
    };
    out.push(b'"');
    out.extend_from_slice(date.as_bytes());
    out.push(between);
    out.extend_from_slice(time.as_bytes());
    if !zone.is_empty() && time.ends_with(zone) {
        out.extend_from_slice(b":00");
    }
    if !EncoderMutant::EraIsLost.active() {
        out.extend_from_slice(era.as_bytes());
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests;

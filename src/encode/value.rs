//! One value: PostgreSQL's text output to the JSON that its own `to_jsonb` gives under
//! `TimeZone = UTC`, save where Supabase's clients expect something else (bytea).

use std::sync::Arc;

use super::write_string;
use crate::pg::Oid;
use crate::policy::catalog::Catalog;

/// Types nested deeper than this are written as text.
const MAX_DEPTH: usize = 16;

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
    Array {
        element: Arc<Codec>,
        delimiter: u8,
    },
    Composite(Box<[Attribute]>),
}

/// An attribute's label as JSON, with the colon, and how it is written.
type Attribute = (Box<[u8]>, Arc<Codec>);

/// The numbers of PostgreSQL's own types, the same in every database.
mod oid {
    pub(super) const BOOL: u32 = 16;
    pub(super) const BYTEA: u32 = 17;
    pub(super) const INT8: u32 = 20;
    pub(super) const INT2: u32 = 21;
    pub(super) const INT4: u32 = 23;
    pub(super) const JSON: u32 = 114;
    pub(super) const FLOAT4: u32 = 700;
    pub(super) const FLOAT8: u32 = 701;
    pub(super) const TIMESTAMP: u32 = 1114;
    pub(super) const TIMESTAMPTZ: u32 = 1184;
    pub(super) const NUMERIC: u32 = 1700;
    pub(super) const JSONB: u32 = 3802;
}

impl Codec {
    /// How values of this type are written.
    pub(super) fn of(ty: Oid, catalog: &Catalog) -> Arc<Self> {
        Arc::new(Self::nested(ty, catalog, 0))
    }

    fn nested(ty: Oid, catalog: &Catalog, depth: usize) -> Self {
        match ty.0 {
            oid::BOOL => return Self::Bool,
            oid::INT2 | oid::INT4 | oid::INT8 | oid::FLOAT4 | oid::FLOAT8 | oid::NUMERIC => {
                return Self::Number;
            }
            oid::JSON | oid::JSONB => return Self::Json,
            oid::TIMESTAMP => return Self::Timestamp,
            oid::TIMESTAMPTZ => return Self::Timestamptz,
            oid::BYTEA if depth == 0 => return Self::Bytea,
            _ => {}
        }
        let Some(ty) = catalog.types.get(&ty).filter(|_| depth < MAX_DEPTH) else {
            return Self::Text;
        };
        if ty.kind == 'd' {
            return Self::nested(ty.base, catalog, depth + 1);
        }
        if ty.element.0 != 0 {
            let element = Self::nested(ty.element, catalog, depth + 1);
            let delimiter = catalog
                .types
                .get(&ty.element)
                .map_or(',', |element| element.delimiter);
            return Self::Array {
                element: Arc::new(element),
                delimiter: u8::try_from(delimiter).unwrap_or(b','),
            };
        }
        if let Some(attributes) = ty.attributes.as_ref().filter(|_| ty.kind == 'c') {
            return Self::Composite(
                attributes
                    .iter()
                    .map(|(name, attribute)| {
                        let mut label = Vec::new();
                        write_string(&mut label, name);
                        label.push(b':');
                        let codec = Self::nested(*attribute, catalog, depth + 1);
                        (label.into_boxed_slice(), Arc::new(codec))
                    })
                    .collect(),
            );
        }
        Self::Text
    }

    /// Writes one value that is not NULL. A text that is not what its type prints is written as a
    /// string.
    pub(super) fn write(&self, out: &mut Vec<u8>, text: &str) {
        match self {
            Self::Bool => match text {
                "t" | "true" => out.extend_from_slice(b"true"),
                "f" | "false" => out.extend_from_slice(b"false"),
                _ => write_string(out, text),
            },
            Self::Number => {
                if is_json_number(text) {
                    out.extend_from_slice(text.as_bytes());
                } else {
                    write_string(out, text);
                }
            }
            Self::Json => out.extend_from_slice(text.as_bytes()),
            Self::Text => write_string(out, text),
            Self::Timestamp => write_string(out, &text.replacen(' ', "T", 1)),
            Self::Timestamptz => write_timestamptz(out, text),
            Self::Bytea => write_string(out, text.strip_prefix("\\x").unwrap_or(text)),
            Self::Array { element, delimiter } => {
                let mark = out.len();
                if write_array(out, text, element, *delimiter).is_none() {
                    out.truncate(mark);
                    write_string(out, text);
                }
            }
            Self::Composite(attributes) => {
                let mark = out.len();
                if write_composite(out, text, attributes).is_none() {
                    out.truncate(mark);
                    write_string(out, text);
                }
            }
        }
    }
}

/// PostgreSQL prints numbers as JSON does, but for NaN and the infinities.
fn is_json_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits.starts_with(|first: char| first.is_ascii_digit())
        && digits
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'+' | b'-'))
}

/// `2024-02-29 10:34:56.1+00` to `2024-02-29T10:34:56.1+00:00`; a year BC keeps its mark.
fn write_timestamptz(out: &mut Vec<u8>, text: &str) {
    let (moment, era) = match text.strip_suffix(" BC") {
        Some(moment) => (moment, " BC"),
        None => (text, ""),
    };
    let moment = moment.replacen(' ', "T", 1);
    let minutes = if moment.ends_with("+00") { ":00" } else { "" };
    write_string(out, &format!("{moment}{minutes}{era}"));
}

/// Writes PostgreSQL's array text (chapter "Array Input and Output Syntax") as nested JSON arrays.
/// `None` where the text is not an array's.
fn write_array(out: &mut Vec<u8>, text: &str, element: &Codec, delimiter: u8) -> Option<()> {
    // Bounds other than 1 are printed in front and do not show in JSON.
    let body = if text.starts_with('[') {
        text.split_once('=')?.1
    } else {
        text
    };
    let bytes = body.as_bytes();
    let mut at = 0;
    let mut depth = 0_usize;
    let mut item = String::new();
    loop {
        match *bytes.get(at)? {
            b'{' => {
                depth += 1;
                out.push(b'[');
                at += 1;
                if bytes.get(at) == Some(&b'}') {
                    continue;
                }
            }
            b'}' => {
                depth = depth.checked_sub(1)?;
                out.push(b']');
                at += 1;
                if depth == 0 {
                    return (at == bytes.len()).then_some(());
                }
            }
            byte if byte == delimiter => {
                out.push(b',');
                at += 1;
            }
            b'"' => {
                item.clear();
                at = quoted(body, at, &mut item)?;
                element.write(out, &item);
            }
            _ => {
                item.clear();
                let begin = at;
                while !matches!(*bytes.get(at)?, b'}' | b'{') && *bytes.get(at)? != delimiter {
                    at += if *bytes.get(at)? == b'\\' { 2 } else { 1 };
                }
                let raw = body.get(begin..at)?;
                if raw.eq_ignore_ascii_case("null") {
                    out.extend_from_slice(b"null");
                } else {
                    unescape(raw, &mut item);
                    element.write(out, &item);
                }
            }
        }
    }
}

/// Reads a value in double quotes that begins at `at`; returns where it ends. Inside, a backslash
/// or a doubled quote stands for the character behind it.
fn quoted(text: &str, at: usize, item: &mut String) -> Option<usize> {
    let mut rest = text.get(at + 1..)?.char_indices().peekable();
    while let Some((place, character)) = rest.next() {
        match character {
            '\\' => item.push(rest.next()?.1),
            '"' => match rest.peek() {
                Some((_, '"')) => {
                    item.push('"');
                    rest.next();
                }
                _ => return Some(at + 1 + place + 1),
            },
            _ => item.push(character),
        }
    }
    None
}

fn unescape(raw: &str, item: &mut String) {
    let mut characters = raw.chars();
    while let Some(character) = characters.next() {
        item.push(if character == '\\' {
            characters.next().unwrap_or('\\')
        } else {
            character
        });
    }
}

/// Writes PostgreSQL's row text (chapter "Composite Type Input and Output Syntax") as an object.
fn write_composite(out: &mut Vec<u8>, text: &str, attributes: &[Attribute]) -> Option<()> {
    let body = text.strip_prefix('(')?.strip_suffix(')')?;
    let bytes = body.as_bytes();
    let mut at = 0;
    let mut item = String::new();
    out.push(b'{');
    for (number, (label, codec)) in attributes.iter().enumerate() {
        if number > 0 {
            if bytes.get(at) != Some(&b',') {
                return None;
            }
            at += 1;
            out.push(b',');
        }
        out.extend_from_slice(label);
        item.clear();
        // Nothing at all between two commas is NULL; a pair of quotes is the empty text.
        if matches!(bytes.get(at), None | Some(b',')) {
            out.extend_from_slice(b"null");
            continue;
        }
        while !matches!(bytes.get(at), None | Some(b',')) {
            if bytes.get(at) == Some(&b'"') {
                at = quoted(body, at, &mut item)?;
            } else {
                let rest = body.get(at..)?;
                let end = rest.find([',', '"']).unwrap_or(rest.len());
                unescape(rest.get(..end)?, &mut item);
                at += end;
            }
        }
        codec.write(out, &item);
    }
    out.push(b'}');
    (at == bytes.len()).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(codec: &Codec, text: &str) -> String {
        let mut out = Vec::new();
        codec.write(&mut out, text);
        let json = String::from_utf8(out).unwrap();
        assert!(
            serde_json::from_str::<&serde_json::value::RawValue>(&json).is_ok(),
            "{json}"
        );
        json
    }

    #[test]
    fn values_are_written_as_to_jsonb_writes_them() {
        for (codec, text, json) in [
            (Codec::Bool, "t", "true"),
            (Codec::Number, "9223372036854775807", "9223372036854775807"),
            (Codec::Number, "-1.50", "-1.50"),
            (Codec::Number, "1e-07", "1e-07"),
            (Codec::Number, "NaN", "\"NaN\""),
            (Codec::Number, "-Infinity", "\"-Infinity\""),
            (Codec::Text, "a\"b\\c\n", r#""a\"b\\c\n""#),
            (Codec::Json, r#"{"a": [1, null]}"#, r#"{"a": [1, null]}"#),
            (
                Codec::Timestamp,
                "2024-02-29 12:34:56.5",
                "\"2024-02-29T12:34:56.5\"",
            ),
            (Codec::Timestamp, "infinity", "\"infinity\""),
            (
                Codec::Timestamptz,
                "2024-02-29 10:34:56+00",
                "\"2024-02-29T10:34:56+00:00\"",
            ),
            (
                Codec::Timestamptz,
                "0044-03-15 00:00:00+00 BC",
                "\"0044-03-15T00:00:00+00:00 BC\"",
            ),
            (Codec::Timestamptz, "-infinity", "\"-infinity\""),
            (Codec::Bytea, "\\xdeadbeef", "\"deadbeef\""),
        ] {
            assert_eq!(written(&codec, text), json);
        }
    }

    #[test]
    fn arrays_and_composites_nest() {
        let numbers = Codec::Array {
            element: Arc::new(Codec::Number),
            delimiter: b',',
        };
        assert_eq!(written(&numbers, "{}"), "[]");
        assert_eq!(written(&numbers, "{1,NULL,3}"), "[1,null,3]");
        assert_eq!(written(&numbers, "{{1,2},{3,NaN}}"), "[[1,2],[3,\"NaN\"]]");
        assert_eq!(written(&numbers, "[0:1]={1,2}"), "[1,2]");
        let texts = Codec::Array {
            element: Arc::new(Codec::Text),
            delimiter: b',',
        };
        assert_eq!(
            written(&texts, r#"{a,"b,c","NULL","d\"e\\","",größer}"#),
            r#"["a","b,c","NULL","d\"e\\","","größer"]"#
        );
        let pair = Codec::Composite(
            [
                (
                    b"\"a\":".to_vec().into_boxed_slice(),
                    Arc::new(Codec::Number),
                ),
                (b"\"b\":".to_vec().into_boxed_slice(), Arc::new(texts)),
                (b"\"c\":".to_vec().into_boxed_slice(), Arc::new(Codec::Text)),
            ]
            .into(),
        );
        assert_eq!(
            written(&pair, r#"(1,"{x,""y z""}",)"#),
            r#"{"a":1,"b":["x","y z"],"c":null}"#
        );
    }

    #[test]
    fn a_text_that_is_not_its_types_becomes_a_string_never_broken_json() {
        let numbers = Codec::Array {
            element: Arc::new(Codec::Number),
            delimiter: b',',
        };
        for text in ["", "{", "}", "{1", "{1}}", "{\"", "[1", "x", "{a\\"] {
            assert!(written(&numbers, text).starts_with('"'), "{text}");
        }
    }
}

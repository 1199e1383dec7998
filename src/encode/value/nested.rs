//! Values that hold other values: the text forms of arrays, rows and `hstore`, read strictly.
//! `None` means that the text does not have its form; what was written by then is void.

use super::{Attribute, Codec, write_string};
use crate::mutant::EncoderMutant;

/// PostgreSQL's arrays have at most this many dimensions (`MAXDIM`).
const MAX_DIMENSIONS: usize = 6;

/// A text that is read from its beginning.
struct Cursor<'text> {
    text: &'text str,
    at: usize,
}

impl<'text> Cursor<'text> {
    const fn new(text: &'text str) -> Self {
        Self { text, at: 0 }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn expect(&mut self, what: &str) -> Option<()> {
        self.text.get(self.at..)?.strip_prefix(what)?;
        self.at += what.len();
        Some(())
    }

    const fn end(&self) -> Option<()> {
        if self.at == self.text.len() {
            Some(())
        } else {
            None
        }
    }

    /// What stands before the first of the bytes that `stop` knows, or before the end. Those are
    /// ASCII.
    fn before(&mut self, stop: impl Fn(u8) -> bool) -> Option<&'text str> {
        let rest = self.text.get(self.at..)?;
        let length = rest.bytes().position(stop).unwrap_or(rest.len());
        self.at += length;
        rest.get(..length)
    }

    /// Reads a value in double quotes. Inside, a backslash stands for the character behind it and
    /// a doubled quote for one. `scratch` is used only where there is such a thing.
    fn quoted<'out>(&mut self, scratch: &'out mut String) -> Option<&'out str>
    where
        'text: 'out,
    {
        self.expect("\"")?;
        scratch.clear();
        let bytes = self.text.as_bytes();
        let begin = self.at;
        // What is not in the scratch yet.
        let mut rest = begin;
        loop {
            match *bytes.get(self.at)? {
                b'\\' => {
                    scratch.push_str(self.text.get(rest..self.at)?);
                    rest = self.at + 1;
                    self.at += if EncoderMutant::BackslashEndsNothing.active() {
                        1
                    } else {
                        2
                    };
                }
                b'"' if bytes.get(self.at + 1) == Some(&b'"') => {
                    scratch.push_str(self.text.get(rest..self.at)?);
                    rest = self.at + usize::from(!EncoderMutant::DoubledQuoteStays.active());
                    self.at += 2;
                }
                b'"' => {
                    let last = self.text.get(rest..self.at)?;
                    self.at += 1;
                    if rest == begin {
                        return Some(last);
                    }
                    scratch.push_str(last);
                    return Some(scratch);
                }
                _ => self.at += 1,
            }
        }
    }
}

/// Writes PostgreSQL's array text (chapter "Array Input and Output Syntax") as nested JSON arrays.
pub(super) fn write_array(
    out: &mut Vec<u8>,
    text: &str,
    element: &Codec,
    delimiter: u8,
) -> Option<()> {
    let mut from = Cursor::new(text);
    if from.peek() == Some(b'[') && !EncoderMutant::BoundsAreStrange.active() {
        // Bounds other than 1 are printed in front and do not show in JSON.
        from.before(|byte| byte == b'=')?;
        from.expect("=")?;
    }
    let mut scratch = String::new();
    dimension(out, &mut from, element, delimiter, 1, &mut scratch)?;
    from.end()
}

fn dimension(
    out: &mut Vec<u8>,
    from: &mut Cursor<'_>,
    element: &Codec,
    delimiter: u8,
    depth: usize,
    scratch: &mut String,
) -> Option<()> {
    let flat = EncoderMutant::DimensionsAreOne.active() && depth > 1;
    from.expect("{")?;
    if !flat {
        out.push(b'[');
    }
    if from.peek() == Some(b'}') {
        from.at += 1;
        out.push(b']');
        return Some(());
    }
    loop {
        match from.peek()? {
            b'{' if depth < MAX_DIMENSIONS => {
                dimension(out, from, element, delimiter, depth + 1, scratch)?;
            }
            b'"' => {
                let value = from.quoted(scratch)?;
                if EncoderMutant::QuotedNullIsNull.active() && value.eq_ignore_ascii_case("null") {
                    out.extend_from_slice(b"null");
                } else {
                    element.write(out, value);
                }
            }
            _ => {
                let special = |byte| matches!(byte, b'{' | b'}' | b'"' | b'\\');
                let raw = from.before(|byte| byte == delimiter || special(byte))?;
                if raw.eq_ignore_ascii_case("null") {
                    if EncoderMutant::NullElementIsEmpty.active() {
                        out.extend_from_slice(b"[]");
                    } else {
                        out.extend_from_slice(b"null");
                    }
                } else if raw.is_empty() {
                    return None;
                } else {
                    element.write(out, raw);
                }
            }
        }
        match from.peek()? {
            byte if byte == delimiter => out.push(b','),
            b'}' => break,
            _ => return None,
        }
        from.at += 1;
    }
    from.at += 1;
    if !flat {
        out.push(b']');
    }
    Some(())
}

/// Writes `1 2 3` as an array.
pub(super) fn write_vector(out: &mut Vec<u8>, text: &str, element: &Codec) -> Option<()> {
    if EncoderMutant::VectorIsText.active() {
        return None;
    }
    out.push(b'[');
    for (number, value) in text
        .split(' ')
        .filter(|value| !value.is_empty())
        .enumerate()
    {
        if number > 0 {
            out.push(b',');
        }
        element.write(out, value);
    }
    out.push(b']');
    Some(())
}

/// Writes PostgreSQL's row text (chapter "Composite Type Input and Output Syntax") as an object.
pub(super) fn write_composite(
    out: &mut Vec<u8>,
    text: &str,
    attributes: &[Attribute],
) -> Option<()> {
    let mut from = Cursor::new(text);
    let mut scratch = String::new();
    from.expect("(")?;
    out.push(b'{');
    for (number, (label, codec)) in attributes.iter().enumerate() {
        if number > 0 {
            from.expect(",")?;
            out.push(b',');
        }
        out.extend_from_slice(label);
        match from.peek()? {
            // Nothing at all is NULL; a pair of quotes is the empty text.
            b',' | b')' if EncoderMutant::NullAttributeIsEmpty.active() => {
                out.extend_from_slice(b"\"\"");
            }
            b',' | b')' => out.extend_from_slice(b"null"),
            b'"' => codec.write(out, from.quoted(&mut scratch)?),
            _ => {
                let raw = from.before(|byte| matches!(byte, b',' | b'(' | b')' | b'"' | b'\\'))?;
                codec.write(out, raw);
            }
        }
    }
    out.push(b'}');
    from.expect(")")?;
    from.end()
}

/// Writes the text of the extension `hstore` as its own cast to `json` does.
pub(super) fn write_hstore(out: &mut Vec<u8>, text: &str) -> Option<()> {
    let mut from = Cursor::new(text);
    let mut scratch = String::new();
    out.push(b'{');
    while from.end().is_none() {
        if from.at > 0 {
            from.expect(", ")?;
            out.push(b',');
        }
        write_string(out, from.quoted(&mut scratch)?);
        from.expect("=>")?;
        out.push(b':');
        if from.expect("NULL").is_some() {
            out.extend_from_slice(b"null");
        } else {
            write_string(out, from.quoted(&mut scratch)?);
        }
    }
    out.push(b'}');
    Some(())
}

//! `json` and `jsonb`: parsed as PostgreSQL parses them, walked as its operators walk them.

mod parser;

use std::fmt;

use parser::Parser;

use super::{Numeric, Trouble};

/// Deeper nesting is left to PostgreSQL, whose own limit is the size of its stack.
const MAX_DEPTH: usize = 256;

/// A `jsonb` value. `==` is `jsonb`'s `=`: numbers compare by value, objects as sets of members.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Jsonb {
    /// `null`
    Null,
    /// A boolean
    Bool(bool),
    /// A number, which keeps its scale
    Number(Numeric),
    /// A string
    String(Box<str>),
    /// An array
    Array(Vec<Self>),
    /// An object: one member a key, in `jsonb`'s order of keys (by length, then by bytes)
    Object(Vec<(Box<str>, Self)>),
}

impl Jsonb {
    /// `jsonb`'s input function.
    ///
    /// # Errors
    /// [`Trouble::Error`] for what is not JSON, or has a `\u0000` or half a surrogate pair;
    /// [`Trouble::Undecided`] for nesting or numbers beyond what is read natively.
    pub fn parse(text: &str) -> Result<Self, Trouble> {
        let mut parser = Parser { text, at: 0 };
        let value = parser.value(0)?;
        parser.end()?;
        Ok(value)
    }

    /// `-> text`
    #[must_use]
    pub fn member(&self, key: &str) -> Option<&Self> {
        let Self::Object(members) = self else {
            return None;
        };
        let found = members.iter().find(|(name, _)| &**name == key)?;
        Some(&found.1)
    }

    /// `-> integer`, which counts from the end below zero. A scalar is here an array of itself.
    #[must_use]
    pub fn element(&self, index: i64) -> Option<&Self> {
        match self {
            Self::Array(elements) => elements.get(place(index, elements.len())?),
            Self::Object(_) => None,
            scalar => matches!(index, 0 | -1).then_some(scalar),
        }
    }

    /// `#> text[]`
    ///
    /// # Errors
    /// [`Trouble::Undecided`] for an array index in an unusual form.
    pub fn path<'a>(&self, path: impl Iterator<Item = &'a str>) -> Result<Option<&Self>, Trouble> {
        let mut here = self;
        for step in path {
            let next = match here {
                Self::Object(_) => here.member(step),
                Self::Array(_) => match index(step)? {
                    Some(index) => here.element(index),
                    None => None,
                },
                _ => None,
            };
            let Some(next) = next else {
                return Ok(None);
            };
            here = next;
        }
        Ok(Some(here))
    }

    /// `?`: whether the text is a key of the object, a string of the array, or the string itself.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        match self {
            Self::Object(_) => self.member(key).is_some(),
            Self::Array(elements) => elements
                .iter()
                .any(|element| matches!(element, Self::String(text) if &**text == key)),
            Self::String(text) => &**text == key,
            _ => false,
        }
    }

    /// `@>`
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Object(_), Self::Object(members)) => {
                let mut members = members.iter();
                members.all(|(key, wanted)| self.member(key).is_some_and(|own| own.holds(wanted)))
            }
            (Self::Array(_), Self::Array(elements)) => {
                elements.iter().all(|wanted| self.has_element(wanted))
            }
            (Self::Object(_), _) | (_, Self::Object(_)) => false,
            // An array contains a scalar that is one of its elements.
            (Self::Array(_), scalar) => self.has_element(scalar),
            (own, wanted) => own == wanted,
        }
    }

    /// As `@>`, of parts of documents: there a scalar is no array of itself.
    fn holds(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            (Self::Object(_), Self::Object(_)) | (Self::Array(_), Self::Array(_)) => {
                self.contains(wanted)
            }
            (Self::Object(_) | Self::Array(_), _) | (_, Self::Object(_) | Self::Array(_)) => false,
            (own, wanted) => own == wanted,
        }
    }

    fn has_element(&self, wanted: &Self) -> bool {
        matches!(self, Self::Array(elements) if elements.iter().any(|own| own.holds(wanted)))
    }

    /// An object of members of which the last of a key counts.
    #[must_use]
    pub fn object(mut members: Vec<(Box<str>, Self)>) -> Self {
        // A stable sort keeps the last behind the others.
        members.sort_by(|(a, _), (b, _)| (a.len(), a.as_bytes()).cmp(&(b.len(), b.as_bytes())));
        members.reverse();
        members.dedup_by(|later, kept| later.0 == kept.0);
        members.reverse();
        Self::Object(members)
    }

    /// What `->>` makes of a value: no text of `null`, a string's own text.
    #[must_use]
    pub fn as_text(&self) -> Option<String> {
        match self {
            Self::Null => None,
            Self::String(text) => Some(text.to_string()),
            other => Some(other.to_string()),
        }
    }
}

/// `jsonb`'s text output.
impl fmt::Display for Jsonb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::String(text) => write_string(f, text),
            Self::Array(elements) => {
                f.write_str("[")?;
                for (index, element) in elements.iter().enumerate() {
                    if index > 0 {
                        f.write_str(", ")?;
                    }
                    write!(f, "{element}")?;
                }
                f.write_str("]")
            }
            Self::Object(members) => {
                f.write_str("{")?;
                for (index, (key, value)) in members.iter().enumerate() {
                    if index > 0 {
                        f.write_str(", ")?;
                    }
                    write_string(f, key)?;
                    write!(f, ": {value}")?;
                }
                f.write_str("}")
            }
        }
    }
}

/// Values are user data and must not reach a log.
impl fmt::Debug for Jsonb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Jsonb(…)")
    }
}

fn write_string(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for character in text.chars() {
        match character {
            '\u{8}' => f.write_str("\\b")?,
            '\u{c}' => f.write_str("\\f")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            control if control < ' ' => write!(f, "\\u{:04x}", u32::from(control))?,
            other => fmt::Write::write_char(f, other)?,
        }
    }
    f.write_str("\"")
}

/// Where `index` is in an array of `len`.
fn place(index: i64, len: usize) -> Option<usize> {
    if index >= 0 {
        return usize::try_from(index).ok();
    }
    let from_end = usize::try_from(index.unsigned_abs()).ok()?;
    len.checked_sub(from_end)
}

/// A path step as an array index; `None` where it is none.
fn index(step: &str) -> Result<Option<i64>, Trouble> {
    let digits = step.strip_prefix('-').unwrap_or(step);
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(step.parse::<i32>().ok().map(i64::from));
    }
    // C's strtol also takes a plus sign and leading blanks.
    if step
        .starts_with(|first: char| first == '+' || first.is_ascii_whitespace() || first == '\u{b}')
    {
        return Err(Trouble::Undecided);
    }
    Ok(None)
}

/// `json`'s input function: the text stays as it is, it is only checked.
pub(super) fn check(text: &str) -> Result<(), Trouble> {
    match Jsonb::parse(text) {
        Ok(_) => Ok(()),
        // Escapes that jsonb refuses pass here, and are refused only when they are used.
        Err(_) if text.contains("\\u") => Err(Trouble::Undecided),
        Err(trouble) => Err(trouble),
    }
}

/// A step from a `json` value into it.
#[derive(Debug, Clone, Copy)]
pub enum Step<'a> {
    /// By key.
    Member(&'a str),
    /// By index.
    Element(i64),
}

/// `json -> step`: the text of the part as it stands in the whole.
///
/// # Errors
/// As [`Jsonb::parse`]: PostgreSQL reads the whole text for this, escapes included.
pub fn part<'t>(text: &'t str, step: Step<'_>) -> Result<Option<&'t str>, Trouble> {
    let mut parser = Parser { text, at: 0 };
    parser.space();
    let mut found = None;
    match (parser.peek(), step) {
        (Some(b'{'), Step::Member(wanted)) => parser.object(0, |key, span, _| {
            if key == wanted {
                found = Some(span);
            }
        })?,
        (Some(b'['), Step::Element(index)) => {
            let mut spans = Vec::new();
            parser.array(0, |span, _| spans.push(span))?;
            found = place(index, spans.len()).and_then(|place| spans.get(place).cloned());
        }
        _ => {
            parser.value(0)?;
        }
    }
    parser.end()?;
    Ok(found.and_then(|span| text.get(span)))
}

/// `json ->> step`.
///
/// # Errors
/// As [`part`].
pub fn part_text(text: &str, step: Step<'_>) -> Result<Option<String>, Trouble> {
    let Some(part) = part(text, step)? else {
        return Ok(None);
    };
    Ok(match part.as_bytes() {
        [b'"', ..] => Jsonb::parse(part)?.as_text(),
        b"null" => None,
        _ => Some(part.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jsonb_text_is_postgresqls() {
        for (input, output) in [
            (
                r#"{"bb":1,"a":2,"c":[1,2.50,{}],"a":3}"#,
                r#"{"a": 3, "c": [1, 2.50, {}], "bb": 1}"#,
            ),
            (" [ ] ", "[]"),
            (r#""\u00e9\ud83d\ude00\n\u0001""#, "\"é😀\\n\\u0001\""),
            ("-0", "0"),
            ("1e2", "100"),
        ] {
            assert_eq!(Jsonb::parse(input).unwrap().to_string(), output, "{input}");
        }
        for bad in [
            "",
            "{",
            "01",
            "1.",
            "nul",
            "nulls",
            "1a",
            "[1,]",
            r#"{"a"}"#,
            "\"\n\"",
            r#""\u0000""#,
            r#""\ud800""#,
            r#""\udc00""#,
            "1 2",
            "'a'",
            "NaN",
        ] {
            assert_eq!(Jsonb::parse(bad), Err(Trouble::Error), "{bad}");
        }
        assert_eq!(Jsonb::parse(&"[".repeat(9_000)), Err(Trouble::Undecided));
    }

    #[test]
    fn json_parts_keep_their_text() {
        let text = r#" {"a": { "b" :1 } , "n":null,"a": [ 1.0 ,"x"]} "#;
        assert_eq!(part(text, Step::Member("a")), Ok(Some(r#"[ 1.0 ,"x"]"#)));
        assert_eq!(part_text(text, Step::Member("n")), Ok(None));
        assert_eq!(part(text, Step::Member("n")), Ok(Some("null")));
        assert_eq!(
            part_text("[1.0,\"\\u0041\"]", Step::Element(-1)),
            Ok(Some("A".to_owned()))
        );
        assert_eq!(part(text, Step::Element(0)), Ok(None));
    }
}

//! Filters: the text of a binding, read once into conditions.
//!
//! The grammar is Supabase's: `column=op.value` or `column=not.op.value`, several joined by commas
//! (AND), a value in double quotes where it contains a comma or a parenthesis.

use crate::mutant::FilterMutant;

/// What a condition compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `=`
    Eq,
    /// `<>`
    Neq,
    /// `<`
    Lt,
    /// `<=`
    Lte,
    /// `>`
    Gt,
    /// `>=`
    Gte,
    /// `in (…)`
    In,
    /// `like`
    Like,
    /// `ilike`
    Ilike,
    /// `is null`, `is true`, `is false`, `is unknown`
    Is,
    /// `~`: a regular expression
    Match,
    /// `~*`: a regular expression, letters in any case
    Imatch,
    /// `is distinct from`
    IsDistinct,
}

impl Operator {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Eq,
        Self::Neq,
        Self::Lt,
        Self::Lte,
        Self::Gt,
        Self::Gte,
        Self::In,
        Self::Like,
        Self::Ilike,
        Self::Is,
        Self::Match,
        Self::Imatch,
        Self::IsDistinct,
    ];

    /// The operator's name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Eq => "eq",
            Self::Neq => "neq",
            Self::Lt => "lt",
            Self::Lte => "lte",
            Self::Gt => "gt",
            Self::Gte => "gte",
            Self::In => "in",
            Self::Like => "like",
            Self::Ilike => "ilike",
            Self::Is => "is",
            Self::Match => "match",
            Self::Imatch => "imatch",
            Self::IsDistinct => "isdistinct",
        }
    }

    /// The name of PostgreSQL's operator; `None` for what is a part of its grammar instead.
    #[must_use]
    pub const fn symbol(self) -> Option<&'static str> {
        Some(match self {
            Self::Eq | Self::In | Self::IsDistinct => "=",
            Self::Neq => "<>",
            Self::Lt => "<",
            Self::Lte => "<=",
            Self::Gt => ">",
            Self::Gte => ">=",
            Self::Like => "~~",
            Self::Ilike => "~~*",
            Self::Match => "~",
            Self::Imatch => "~*",
            Self::Is => return None,
        })
    }

    /// Whether the value is a pattern.
    #[must_use]
    pub const fn takes_pattern(self) -> bool {
        matches!(self, Self::Like | Self::Ilike | Self::Match | Self::Imatch)
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|operator| operator.as_str() == name)
    }
}

/// One condition, as worded by the client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Condition {
    /// The column, taken literally.
    pub column: String,
    /// The comparison.
    pub operator: Operator,
    /// Whether it is to be false: `not.` stood before the operator.
    pub negated: bool,
    /// The values: one, or a list for [`Operator::In`], in which `None` is NULL. A list with more
    /// than [`MAX_IN_ITEMS`] items is cut behind the first too many.
    pub values: Vec<Option<String>>,
}

/// More items than this in one `in` list are refused, as Supabase does.
pub const MAX_IN_ITEMS: usize = 100;

/// A filter longer than this is refused, in bytes.
pub const MAX_FILTER_BYTES: usize = 64 * 1024;

/// More conditions than this in one filter are refused: every row is held against each.
pub const MAX_CONDITIONS: usize = 100;

/// Why the text of a filter was refused; the `Display` text is what the client is told, in the
/// words of Supabase where it has some.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The text is none of this grammar; the parts that could not be made sense of.
    #[error("Error parsing `filter` params: [{}]", .0.join(", "))]
    Unreadable(Vec<String>),
    /// Two commas in a row, or one at an end.
    #[error(
        "Error parsing `filter` params: filter must not contain empty segments (check for extra commas)"
    )]
    EmptySegment,
    /// The value of `in` is no list.
    #[error("Error parsing `filter` params: `in` filter value must be wrapped by parentheses")]
    NoParentheses,
    /// The list of `in` cannot be read.
    #[error("Error parsing `filter` params: malformed list of values for `in` filter")]
    MalformedList,
    /// Longer than [`MAX_FILTER_BYTES`].
    #[error("Error parsing `filter` params: longer than {MAX_FILTER_BYTES} bytes")]
    TooLong,
    /// More than [`MAX_CONDITIONS`].
    #[error("Error parsing `filter` params: more than {MAX_CONDITIONS} conditions")]
    TooMany,
}

/// Reads the text of a filter; all conditions must hold. No text is no condition.
///
/// # Errors
/// [`FilterError`]; never for a column or value that the table has not, which only the catalog
/// knows.
pub fn parse(filter: &str) -> Result<Vec<Condition>, FilterError> {
    if filter.len() > MAX_FILTER_BYTES {
        return Err(FilterError::TooLong);
    }
    let filter = filter.trim();
    if filter.is_empty() {
        return Ok(Vec::new());
    }
    let segments = segments(filter);
    if segments.len() > MAX_CONDITIONS {
        return Err(FilterError::TooMany);
    }
    segments.into_iter().map(condition).collect()
}

/// Splits at the commas that are neither in parentheses nor in a quoted value. A quote opens a
/// value only where a value can start; elsewhere it is a character like any other.
fn segments(filter: &str) -> Vec<&str> {
    let mut segments = Vec::new();
    let (mut start, mut depth) = (0, 0_usize);
    let (mut quoted, mut escaped) = (false, false);
    let mut before = ' ';
    for (at, character) in filter.char_indices() {
        if quoted {
            if escaped {
                escaped = false;
            } else if character == '\\' {
                escaped = true;
            } else if character == '"' {
                quoted = false;
            }
        } else {
            match character {
                '"' if matches!(before, '.' | '(' | ',') => {
                    quoted = !FilterMutant::QuotesDoNotHoldCommas.active();
                }
                '(' if !FilterMutant::ParenthesesDoNotNest.active() => depth += 1,
                '(' => depth = 1,
                ')' => depth = depth.saturating_sub(1),
                ',' if depth == 0 => {
                    segments.push(filter.get(start..at).unwrap_or_default());
                    start = at + 1;
                }
                _ => {}
            }
        }
        before = character;
    }
    segments.push(filter.get(start..).unwrap_or_default());
    segments
}

fn condition(segment: &str) -> Result<Condition, FilterError> {
    let segment = segment.trim();
    if segment.is_empty() {
        return Err(FilterError::EmptySegment);
    }
    let Some((column, comparison)) = segment.split_once('=') else {
        return Err(FilterError::Unreadable(vec![inspected(segment)]));
    };
    let (negated, plain) = match comparison.strip_prefix("not.") {
        Some(plain) => (!FilterMutant::NotIsForgotten.active(), plain),
        None => (false, comparison),
    };
    let Some((name, value)) = plain.split_once('.') else {
        return Err(FilterError::Unreadable(vec![inspected(comparison)]));
    };
    let Some(operator) = Operator::from_name(name) else {
        return Err(FilterError::Unreadable(vec![
            inspected(name),
            inspected(value),
        ]));
    };
    let values = if operator == Operator::In {
        let list = value
            .strip_prefix('(')
            .and_then(|value| value.strip_suffix(')'))
            .ok_or(FilterError::NoParentheses)?;
        items(list)?
    } else if operator == Operator::IsDistinct && value == "null" {
        // What clients' builders write for null. As a text it would be no value of most types.
        vec![None]
    } else {
        vec![Some(unquoted(value).unwrap_or_else(|| value.to_owned()))]
    };
    Ok(Condition {
        column: column.to_owned(),
        operator,
        negated,
        values,
    })
}

/// The text between the quotes, if the closing quote is the last character.
fn unquoted(value: &str) -> Option<String> {
    if FilterMutant::QuotesAreKept.active() {
        return None;
    }
    let inner = value.strip_prefix('"')?;
    let mut text = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' if FilterMutant::EscapesAreKept.active() => text.push(character),
            '\\' => text.push(characters.next()?),
            '"' => return characters.as_str().is_empty().then_some(text),
            other => text.push(other),
        }
    }
    None
}

/// The items of a list, quoted as in PostgreSQL's array literals.
fn items(list: &str) -> Result<Vec<Option<String>>, FilterError> {
    let mut items = Vec::new();
    if list.trim().is_empty() {
        return Ok(items);
    }
    let mut characters = list.chars();
    loop {
        let (item, more) = item(&mut characters)?;
        items.push(item);
        if !more || items.len() > MAX_IN_ITEMS {
            return Ok(items);
        }
    }
}

/// The next item, and whether a comma ended it.
fn item(characters: &mut std::str::Chars<'_>) -> Result<(Option<String>, bool), FilterError> {
    let rest = characters.as_str().trim_start();
    *characters = rest.chars();
    let mut text = String::new();
    if rest.starts_with('"') {
        characters.next();
        loop {
            match characters.next().ok_or(FilterError::MalformedList)? {
                '\\' => text.push(characters.next().ok_or(FilterError::MalformedList)?),
                '"' => break,
                other => text.push(other),
            }
        }
        let rest = characters.as_str().trim_start();
        *characters = rest.chars();
        return match characters.next() {
            None => Ok((Some(text), false)),
            Some(',') => Ok((Some(text), true)),
            Some(_) => Err(FilterError::MalformedList),
        };
    }
    // Blanks at the end are dropped unless they were escaped.
    let (mut kept, mut escaped, mut more) = (0, false, false);
    while let Some(character) = characters.next() {
        match character {
            ',' => {
                more = true;
                break;
            }
            '\\' => {
                text.push(characters.next().ok_or(FilterError::MalformedList)?);
                (kept, escaped) = (text.len(), true);
            }
            '"' | '{' | '}' => return Err(FilterError::MalformedList),
            other => {
                text.push(other);
                if !other.is_whitespace() {
                    kept = text.len();
                }
            }
        }
    }
    text.truncate(kept);
    if text.is_empty() {
        return Err(FilterError::MalformedList);
    }
    let null = !escaped && text.eq_ignore_ascii_case("null");
    Ok(((!null).then_some(text), more))
}

fn inspected(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(filter: &str) -> (String, Operator, Vec<Option<String>>) {
        let mut conditions = parse(filter).unwrap();
        assert_eq!(conditions.len(), 1, "{filter}");
        let condition = conditions.remove(0);
        (condition.column, condition.operator, condition.values)
    }

    fn values(filter: &str) -> Vec<Option<String>> {
        one(filter).2
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn a_filter_splits_at_its_first_equals_sign_and_then_its_first_dot() {
        assert_eq!(
            one("a b=gte.x=1.5"),
            ("a b".into(), Operator::Gte, vec![some("x=1.5")])
        );
        assert_eq!(parse("  "), Ok(vec![]));
        assert_eq!(values("a=eq."), [some("")]);
    }

    #[test]
    fn a_comma_is_and_except_in_quotes_and_parentheses() {
        let conditions = parse("a=gt.1, b=eq.\"x,\\\"y\" ,c=in.(1,\"2),\",(3))").map(|found| {
            found
                .into_iter()
                .map(|c| (c.column, c.values.len()))
                .collect::<Vec<_>>()
        });
        assert_eq!(
            conditions,
            Ok(vec![("a".into(), 1), ("b".into(), 1), ("c".into(), 3)])
        );
        assert_eq!(values("b=eq.\"x,\\\"y\""), [some("x,\"y")]);
        assert_eq!(values("b=eq.\"x\"y"), [some("\"x\"y")], "kept literally");
    }

    #[test]
    fn in_lists_are_read_as_array_literals() {
        assert_eq!(
            values("a=in.( x y ,\"c,d\",NULL,\"NULL\",N\\ULL)"),
            [some("x y"), some("c,d"), None, some("NULL"), some("NULL")]
        );
        assert_eq!(values("a=in.()"), Vec::<Option<String>>::new());
        assert_eq!(parse("a=in.(1,,2)"), Err(FilterError::MalformedList));
        assert_eq!(parse("a=in.(\"x\"y)"), Err(FilterError::MalformedList));
        let many = |n: usize| format!("a=in.({})", vec!["1"; n].join(","));
        assert_eq!(values(&many(100)).len(), 100);
        assert_eq!(values(&many(5000)).len(), 101, "enough to refuse it");
    }

    #[test]
    fn every_operator_may_be_negated_once() {
        for operator in Operator::ALL {
            let value = if operator == Operator::In { "(x)" } else { "x" };
            for negated in [false, true] {
                let not = if negated { "not." } else { "" };
                let conditions = parse(&format!("a={not}{}.{value}", operator.as_str()));
                let read = conditions.map(|mut all| all.remove(0)).unwrap();
                assert_eq!((read.operator, read.negated), (operator, negated));
                assert_eq!(read.values, [some("x")]);
            }
        }
        assert_eq!(values("a=isdistinct.null"), [None]);
        assert_eq!(values("a=isdistinct.\"null\""), [some("null")]);
        assert_eq!(values("a=eq.null"), [some("null")], "a text");
    }

    #[test]
    fn refusals_use_the_words_that_clients_know() {
        for (filter, text) in [
            ("a=foo.hey", "[\"foo\", \"hey\"]"),
            ("undefined", "[\"undefined\"]"),
            ("a=abc", "[\"abc\"]"),
            ("a=in.1", "`in` filter value must be wrapped by parentheses"),
            (
                "a=eq.1,",
                "filter must not contain empty segments (check for extra commas)",
            ),
            ("a=not.eq", "[\"not.eq\"]"),
            ("a=not.foo.hey", "[\"foo\", \"hey\"]"),
            ("a=not.not.eq.1", "[\"not\", \"eq.1\"]"),
            ("a=EQ.1", "[\"EQ\", \"1\"]"),
        ] {
            assert_eq!(
                parse(filter).unwrap_err().to_string(),
                format!("Error parsing `filter` params: {text}")
            );
        }
        let long = format!("a=eq.{}", "x".repeat(MAX_FILTER_BYTES));
        assert_eq!(parse(&long), Err(FilterError::TooLong));
        let many = |n: usize| parse(&vec!["a=neq.1"; n].join(",")).map(|all| all.len());
        assert_eq!(many(MAX_CONDITIONS), Ok(MAX_CONDITIONS));
        assert_eq!(many(MAX_CONDITIONS + 1), Err(FilterError::TooMany));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(filter in "[a-c=.,()\"\\\\ {}é]{0,40}|.{0,40}") {
            if let Ok(conditions) = parse(&filter) {
                for condition in conditions {
                    prop_assert!(condition.values.len() <= MAX_IN_ITEMS + 1);
                    prop_assert!(condition.operator == Operator::In || condition.values.len() == 1);
                }
            }
        }
    }
}

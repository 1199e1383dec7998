//! What a client wants to have read before the changes: how many rows, and in which order.

/// A longer list of columns is refused.
const MAX_TERMS: usize = 32;

/// The rows that a binding wants before its changes, as worded by the client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// How many at most; `None` for as many as the server gives unasked.
    pub limit: Option<u64>,
    /// By what they are ordered; none for the primary key.
    pub order: Vec<Term>,
}

/// One column that rows are ordered by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// The column, taken literally.
    pub column: String,
    /// From large to small.
    pub descending: bool,
    /// Where NULLs stand; `None` for where PostgreSQL puts them.
    pub nulls: Option<Nulls>,
}

/// Where NULLs stand in an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nulls {
    /// Before all else.
    First,
    /// Behind all else.
    Last,
}

/// Why an order was refused; the `Display` text is what the client is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// There is a comma too many.
    #[error("`order` must not contain empty segments (check for extra commas)")]
    EmptySegment,
    /// A quoted name does not end, or is followed by something else.
    #[error("`order` has a name in double quotes that does not end before .asc, .desc or a comma")]
    Unquoted,
    /// More than [`MAX_TERMS`].
    #[error("`order` names more than {MAX_TERMS} columns")]
    TooMany,
}

/// Reads an order: `column`, `column.desc`, `column.asc.nullsfirst`, several joined by commas. A
/// name that contains a comma, or ends like one of these words, stands in double quotes.
///
/// # Errors
/// [`OrderError`]; never for a column that the table has not, which only the catalog knows.
pub fn parse(text: &str) -> Result<Vec<Term>, OrderError> {
    let mut terms = Vec::new();
    let mut rest = text.trim();
    if rest.is_empty() {
        return Ok(terms);
    }
    loop {
        if terms.len() >= MAX_TERMS {
            return Err(OrderError::TooMany);
        }
        let (name, words, left) = segment(rest)?;
        terms.push(term(name, words)?);
        match left {
            Some(left) => rest = left,
            None => return Ok(terms),
        }
    }
}

/// The first segment: its name where that is quoted, its other words, and what comes behind the
/// comma.
fn segment(text: &str) -> Result<(Option<String>, &str, Option<&str>), OrderError> {
    let text = text.trim_start();
    let (name, text) = match text.strip_prefix('"') {
        Some(quoted) => {
            let (name, behind) = quoted_name(quoted)?;
            if !(behind.is_empty() || behind.starts_with(['.', ',', ' '])) {
                return Err(OrderError::Unquoted);
            }
            (Some(name), behind)
        }
        None => (None, text),
    };
    let (words, left) = match text.split_once(',') {
        Some((words, left)) => (words, Some(left)),
        None => (text, None),
    };
    Ok((name, words.trim_end(), left))
}

/// A name up to its closing quote, in which two quotes stand for one, and what comes behind it.
fn quoted_name(text: &str) -> Result<(String, &str), OrderError> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let (before, behind) = rest.split_once('"').ok_or(OrderError::Unquoted)?;
        name.push_str(before);
        match behind.strip_prefix('"') {
            Some(behind) => {
                name.push('"');
                rest = behind;
            }
            None => return Ok((name, behind)),
        }
    }
}

fn term(name: Option<String>, words: &str) -> Result<Term, OrderError> {
    let (words, nulls) = if let Some(words) = words.strip_suffix(".nullsfirst") {
        (words, Some(Nulls::First))
    } else if let Some(words) = words.strip_suffix(".nullslast") {
        (words, Some(Nulls::Last))
    } else {
        (words, None)
    };
    let (words, descending) = if let Some(words) = words.strip_suffix(".desc") {
        (words, true)
    } else {
        (words.strip_suffix(".asc").unwrap_or(words), false)
    };
    let column = match name {
        Some(name) if words.is_empty() => name,
        Some(_) => return Err(OrderError::Unquoted),
        None => words.to_owned(),
    };
    if column.is_empty() {
        return Err(OrderError::EmptySegment);
    }
    Ok(Term {
        column,
        descending,
        nulls,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, bool, Option<Nulls>)>, OrderError> {
        let terms = parse(text)?.into_iter();
        Ok(terms
            .map(|term| (term.column, term.descending, term.nulls))
            .collect())
    }

    #[test]
    fn an_order_is_read_as_its_words_say() {
        let plain = |name: &str| (name.to_owned(), false, None);
        assert_eq!(read(""), Ok(vec![]));
        assert_eq!(
            read("a, b.asc,c.d"),
            Ok(vec![plain("a"), plain("b"), plain("c.d")])
        );
        assert_eq!(
            read("a.desc.nullslast,b.nullsfirst"),
            Ok(vec![
                ("a".to_owned(), true, Some(Nulls::Last)),
                ("b".to_owned(), false, Some(Nulls::First)),
            ])
        );
        assert_eq!(
            read("\"a,b\".desc , \"x.desc\",\"say \"\"hi\"\"\""),
            Ok(vec![
                ("a,b".to_owned(), true, None),
                plain("x.desc"),
                plain("say \"hi\""),
            ])
        );
    }

    #[test]
    fn an_order_that_cannot_be_meant_is_refused() {
        for (text, error) in [
            (",", OrderError::EmptySegment),
            ("a,,b", OrderError::EmptySegment),
            ("a,", OrderError::EmptySegment),
            (".desc", OrderError::EmptySegment),
            ("\"\"", OrderError::EmptySegment),
            ("\"a", OrderError::Unquoted),
            ("\"a\"b", OrderError::Unquoted),
            ("\"a\".up", OrderError::Unquoted),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
        assert_eq!(parse(&"a,".repeat(40)), Err(OrderError::TooMany));
    }
}

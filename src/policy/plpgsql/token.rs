//! The words and signs of SQL text.

use std::ops::Range;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::policy) enum Kind {
    /// A name or keyword, folded; whether it was quoted.
    Word(String, bool),
    /// A literal or a number.
    Value,
    /// Anything else, one character each but for `:=`, `<<` and `..`.
    Sign(&'static str),
    Other(char),
}

#[derive(Debug, Clone)]
pub(in crate::policy) struct Token {
    pub(in crate::policy) kind: Kind,
    pub(super) at: Range<usize>,
}

impl Token {
    pub(super) fn is(&self, word: &str) -> bool {
        matches!(&self.kind, Kind::Word(own, false) if own == word)
    }

    pub(super) fn is_sign(&self, sign: char) -> bool {
        self.kind == Kind::Other(sign)
    }
}

/// The tokens of SQL text; an error where a literal or comment does not end.
pub(in crate::policy) fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let unended = || "has a literal or comment that does not end".to_owned();
    while let Some(first) = rest.chars().next() {
        let start = text.len() - rest.len();
        let (length, kind) = if first.is_whitespace() {
            (first.len_utf8(), None)
        } else if rest.starts_with("--") {
            (rest.find(['\n', '\r']).unwrap_or(rest.len()), None)
        } else if rest.starts_with("/*") {
            (comment(rest).ok_or_else(unended)?, None)
        } else if first == '\'' {
            let length = quoted(rest, '\'', false).ok_or_else(unended)?;
            // Whether that escapes anything is a setting.
            if rest.get(..length).is_some_and(|text| text.contains('\\')) {
                return Err("has a backslash in a literal".to_owned());
            }
            (length, Some(Kind::Value))
        } else if first == '"' {
            let length = quoted(rest, '"', false).ok_or_else(unended)?;
            let inner = rest.get(1..length - 1).unwrap_or_default();
            let name = inner.replace("\"\"", "\"");
            (length, Some(Kind::Word(name, true)))
        } else if let Some(length) = prefixed(rest) {
            (length.ok_or_else(unended)?, Some(Kind::Value))
        } else if first == '$' {
            match dollar(rest) {
                Some(length) => (length.ok_or_else(unended)?, Some(Kind::Value)),
                None => (1, Some(Kind::Other('$'))),
            }
        } else if is_start(first) {
            let end = rest.find(|c: char| !is_start(c) && !c.is_ascii_digit() && c != '$');
            let length = end.unwrap_or(rest.len());
            // PostgreSQL folds beyond ASCII by the server's locale, which is not known here.
            let word = rest.get(..length).unwrap_or_default();
            if !word.is_ascii() {
                return Err("has an unquoted name beyond ASCII".to_owned());
            }
            (length, Some(Kind::Word(word.to_ascii_lowercase(), false)))
        } else if first.is_ascii_digit() {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            (end.unwrap_or(rest.len()), Some(Kind::Value))
        } else {
            let sign = [":=", "<<", "..", "::"]
                .into_iter()
                .find(|sign| rest.starts_with(sign));
            match sign {
                Some(sign) => (sign.len(), Some(Kind::Sign(sign))),
                None => (first.len_utf8(), Some(Kind::Other(first))),
            }
        };
        if let Some(kind) = kind {
            tokens.push(Token {
                kind,
                at: start..start + length,
            });
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(tokens)
}

fn is_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

/// Comments nest.
fn comment(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        let rest = text.get(at..)?;
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += rest.chars().next()?.len_utf8();
        }
    }
}

/// The length of what is quoted at the beginning of a text.
fn quoted(text: &str, quote: char, escapes: bool) -> Option<usize> {
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        if escapes && character == '\\' {
            characters.next()?;
        } else if character == quote {
            if characters.peek().is_some_and(|(_, next)| *next == quote) {
                characters.next();
            } else {
                return Some(at + quote.len_utf8());
            }
        }
    }
    None
}

/// `E'…'`, `B'…'`, `X'…'`, `N'…'`; whether it ends. `U&` is taken for its parts, of which the
/// quoted one ends in the same place.
fn prefixed(text: &str) -> Option<Option<usize>> {
    let mut characters = text.chars();
    let prefix = characters.next()?.to_ascii_lowercase();
    if !"ebxn".contains(prefix) || characters.next()? != '\'' {
        return None;
    }
    Some(quoted(text.get(1..)?, '\'', prefix == 'e').map(|length| length + 1))
}

/// `$tag$…$tag$`; whether it ends. `None` for a parameter.
fn dollar(text: &str) -> Option<Option<usize>> {
    let end = text.get(1..)?.find('$')? + 2;
    let tag = text.get(..end)?;
    let inner = tag.trim_matches('$');
    let named = inner.chars().all(|c| is_start(c) || c.is_ascii_digit());
    if !named || inner.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let close = text.get(end..)?.find(tag);
    Some(close.map(|close| end + close + tag.len()))
}

/// The names that an expression or query uses by themselves: neither behind a dot nor before one.
pub(in crate::policy) fn names(text: &str) -> Result<Vec<String>, String> {
    let tokens = tokens(text)?;
    let dot = |at: Option<usize>| {
        at.and_then(|at| tokens.get(at))
            .is_some_and(|token| token.is_sign('.'))
    };
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if let Kind::Word(name, _) = &token.kind
            && !dot(at.checked_sub(1))
            && !dot(Some(at + 1))
        {
            found.push(name.clone());
        }
    }
    Ok(found)
}

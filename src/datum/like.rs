//! `LIKE` under a deterministic collation and UTF-8.

use super::Trouble;

/// A pattern with more wildcards than this is left to PostgreSQL: the match recurses at each.
const MAX_WILDCARDS: usize = 200;

/// What one attempt to match says.
#[derive(PartialEq)]
enum Match {
    Yes,
    No,
    /// No, and no later start of the text would match either.
    Never,
}

/// `text LIKE pattern` with the backslash as escape.
///
/// # Errors
/// [`Trouble::Error`] when the match meets an escape with nothing after it.
pub fn like(text: &str, pattern: &str) -> Result<bool, Trouble> {
    if pattern.bytes().filter(|byte| *byte == b'%').count() > MAX_WILDCARDS {
        return Err(Trouble::Undecided);
    }
    Ok(attempt(text.as_bytes(), pattern.as_bytes())? == Match::Yes)
}

/// Where PostgreSQL raises an error depends on how far it reads, so this reads as far as it does.
fn attempt(mut text: &[u8], mut pattern: &[u8]) -> Result<Match, Trouble> {
    if pattern == b"%" {
        return Ok(Match::Yes);
    }
    while let ([first, text_rest @ ..], [wanted, pattern_rest @ ..]) = (text, pattern) {
        match wanted {
            b'\\' => {
                let [escaped, after @ ..] = pattern_rest else {
                    return Err(Trouble::Error);
                };
                if escaped != first {
                    return Ok(Match::No);
                }
                (text, pattern) = (text_rest, after);
            }
            b'%' => return wildcard(text, pattern_rest),
            b'_' => (text, pattern) = (next_character(text), pattern_rest),
            _ if wanted != first => return Ok(Match::No),
            _ => (text, pattern) = (text_rest, pattern_rest),
        }
    }
    if !text.is_empty() {
        return Ok(Match::No);
    }
    while let [b'%', rest @ ..] = pattern {
        pattern = rest;
    }
    Ok(if pattern.is_empty() {
        Match::Yes
    } else {
        Match::Never
    })
}

/// The rest of a match after a `%`.
fn wildcard(mut text: &[u8], mut pattern: &[u8]) -> Result<Match, Trouble> {
    loop {
        match pattern {
            [b'%', rest @ ..] => pattern = rest,
            [b'_', rest @ ..] => {
                if text.is_empty() {
                    return Ok(Match::Never);
                }
                (text, pattern) = (next_character(text), rest);
            }
            _ => break,
        }
    }
    let wanted = match pattern {
        [] => return Ok(Match::Yes),
        [b'\\'] => return Err(Trouble::Error),
        [b'\\', wanted, ..] | [wanted, ..] => *wanted,
    };
    while let [first, ..] = text {
        if *first == wanted {
            let matched = attempt(text, pattern)?;
            if matched != Match::No {
                return Ok(matched);
            }
        }
        text = next_character(text);
    }
    Ok(Match::Never)
}

fn next_character(text: &[u8]) -> &[u8] {
    let [_, rest @ ..] = text else {
        return text;
    };
    let more = rest.iter().take_while(|byte| **byte & 0xC0 == 0x80).count();
    rest.get(more..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_characters() {
        for (text, pattern, matches) in [
            ("abc", "a%", true),
            ("abc", "a_c", true),
            ("aüc", "a_c", true),
            ("abc", "%b%", true),
            ("abc", "b", false),
            ("a%c", "a\\%c", true),
            ("abc", "a\\%c", false),
            ("", "%", true),
            ("", "_", false),
            ("aab", "%ab", true),
            ("abcabd", "%ab_", true),
        ] {
            assert_eq!(like(text, pattern), Ok(matches), "{text} {pattern}");
        }
        assert_eq!(like("a", "a\\"), Ok(false));
        assert_eq!(like("ab", "a\\"), Err(Trouble::Error));
    }
}

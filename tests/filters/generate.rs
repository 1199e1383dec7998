//! Random filters, worded for the relay and, apart from that, as SQL.

use rand::Rng;
use rand::rngs::StdRng;

use crate::samples::word;

/// A filter in both languages.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) filter: String,
    pub(crate) sql: String,
    /// The conditions that it consists of.
    pub(crate) parts: Vec<String>,
    /// It has a pattern that PostgreSQL refuses only for rows that get it that far.
    pub(crate) ends_in_escape: bool,
}

const COMPARISONS: [(&str, &str); 6] = [
    ("eq", "="),
    ("neq", "<>"),
    ("lt", "<"),
    ("lte", "<="),
    ("gt", ">"),
    ("gte", ">="),
];
const PATTERNS: [(&str, &str); 4] = [
    ("like", "like"),
    ("ilike", "ilike"),
    ("match", "~"),
    ("imatch", "~*"),
];

/// A filter of one to three conditions on column `c` (the later ones may be on the key). `value` makes texts for it,
/// `textual` says that patterns make sense.
pub(crate) fn case(
    rng: &mut StdRng,
    c: &str,
    textual: bool,
    value: &mut dyn FnMut(&mut StdRng) -> String,
) -> Case {
    let mut parts = vec![condition(rng, c, textual, value)];
    while parts.len() < 3 && rng.random_bool(0.2) {
        let part = if rng.random_bool(0.5) {
            let bound = rng.random_range(0..12);
            let (name, symbol) = COMPARISONS[rng.random_range(0..6)];
            Case {
                filter: format!("id={name}.{bound}"),
                sql: format!("id {symbol} {bound}"),
                parts: Vec::new(),
                ends_in_escape: false,
            }
        } else {
            condition(rng, c, textual, value)
        };
        parts.push(part);
    }
    let separator = if rng.random_bool(0.2) { " , " } else { "," };
    let filters: Vec<&str> = parts.iter().map(|part| part.filter.as_str()).collect();
    let sql: Vec<&str> = parts.iter().map(|part| part.sql.as_str()).collect();
    Case {
        filter: filters.join(separator),
        sql: sql.join(" and "),
        parts: sql.iter().map(|part| (*part).to_owned()).collect(),
        ends_in_escape: parts.iter().any(|part| part.ends_in_escape),
    }
}

fn condition(
    rng: &mut StdRng,
    c: &str,
    textual: bool,
    value: &mut dyn FnMut(&mut StdRng) -> String,
) -> Case {
    let negated = rng.random_bool(0.3);
    let mut ends_in_escape = false;
    let of_type = |rng: &mut StdRng, value: &mut dyn FnMut(&mut StdRng) -> String| {
        if rng.random_bool(0.04) {
            word(rng)
        } else {
            value(rng)
        }
    };
    let choice = rng.random_range(0..if textual { 26 } else { 15 });
    let (op, operand, sql) = match choice {
        0..7 => {
            let (name, symbol) = COMPARISONS[rng.random_range(0..6)];
            let text = of_type(rng, value);
            (
                name,
                scalar(&text, rng),
                format!("{c} {symbol} {}", literal(&text)),
            )
        }
        7..10 => {
            let (list, sql) = list(rng, c, value);
            ("in", list, sql)
        }
        10 | 11 => {
            let keyword = ["null", "null", "true", "false", "unknown"][rng.random_range(0..5)];
            ("is", keyword.to_owned(), format!("{c} is {keyword}"))
        }
        12..14 => {
            if rng.random_bool(0.2) {
                (
                    "isdistinct",
                    "null".to_owned(),
                    format!("{c} is distinct from null"),
                )
            } else {
                let text = of_type(rng, value);
                let worded = if text == "null" {
                    "\"null\"".to_owned()
                } else {
                    scalar(&text, rng)
                };
                (
                    "isdistinct",
                    worded,
                    format!("{c} is distinct from {}", literal(&text)),
                )
            }
        }
        _ => {
            let (name, symbol) = PATTERNS[rng.random_range(0..4)];
            let text = if name.ends_with("like") {
                let text = like(rng, value);
                let escapes = text.bytes().rev().take_while(|byte| *byte == b'\\').count();
                ends_in_escape = escapes % 2 == 1;
                text
            } else {
                regex(rng, value)
            };
            (
                name,
                scalar(&text, rng),
                format!("{c} {symbol} {}", literal(&text)),
            )
        }
    };
    let not = if negated { "not." } else { "" };
    Case {
        filter: format!("{c}={not}{op}.{operand}"),
        sql: if negated {
            format!("(not ({sql}))")
        } else {
            format!("({sql})")
        },
        parts: Vec::new(),
        ends_in_escape,
    }
}

fn like(rng: &mut StdRng, value: &mut dyn FnMut(&mut StdRng) -> String) -> String {
    let text = if rng.random_bool(0.7) {
        value(rng)
    } else {
        word(rng)
    };
    match rng.random_range(0..7) {
        0 => format!("%{text}%"),
        1 => format!("{text}%"),
        2 => format!("%{text}"),
        3 => "_".repeat(rng.random_range(0..4)),
        4 => text
            .chars()
            .enumerate()
            .map(|(at, c)| if at % 2 == 1 { '_' } else { c })
            .collect(),
        5 => text.to_uppercase(),
        _ => text,
    }
}

fn regex(rng: &mut StdRng, value: &mut dyn FnMut(&mut StdRng) -> String) -> String {
    const SHAPES: [&str; 16] = [
        "^a",
        "b$",
        "A",
        "b",
        "[A-C]",
        "[a-c]",
        "[[:alpha:]]+",
        "^[a-z]*$",
        "(a|b)",
        ".",
        "^$",
        "é",
        "\\w",
        "(",
        "^.{2}$",
        "Z",
    ];
    if rng.random_bool(0.4) {
        value(rng)
    } else {
        SHAPES[rng.random_range(0..SHAPES.len())].to_owned()
    }
}

fn list(
    rng: &mut StdRng,
    c: &str,
    value: &mut dyn FnMut(&mut StdRng) -> String,
) -> (String, String) {
    let length = rng.random_range(0..5);
    if length == 0 {
        // False of everything, and as impossible as any other comparison where there is none.
        return ("()".to_owned(), format!("({c} = null) is true"));
    }
    let (mut words, mut literals) = (Vec::new(), Vec::new());
    for _ in 0..length {
        if rng.random_bool(0.1) {
            words.push("NULL".to_owned());
            literals.push("null".to_owned());
            continue;
        }
        let text = value(rng);
        literals.push(literal(&text));
        // Parentheses need no quotes where each that opens is closed.
        let depth = text.chars().try_fold(0_u32, |depth, c| match c {
            '(' => Some(depth + 1),
            ')' => depth.checked_sub(1),
            _ => Some(depth),
        });
        let odd = text.is_empty()
            || depth != Some(0)
            || text.eq_ignore_ascii_case("null")
            || text.contains(|c: char| c.is_whitespace() || "{}\"\\,".contains(c));
        words.push(if odd || rng.random_bool(0.2) {
            quoted(&text)
        } else {
            text
        });
    }
    let equal: Vec<String> = literals
        .iter()
        .map(|text| format!("{c} = {text}"))
        .collect();
    (format!("({})", words.join(",")), equal.join(" or "))
}

/// A value as a client words it: in quotes where it has to be, and sometimes elsewhere.
fn scalar(text: &str, rng: &mut StdRng) -> String {
    let must = text.contains([',', '(', ')', '"', '\\']) || text.trim() != text;
    if must || rng.random_bool(0.2) {
        quoted(text)
    } else {
        text.to_owned()
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

pub(crate) fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

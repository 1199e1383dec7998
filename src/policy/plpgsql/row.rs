//! Rows in variables: what stands for their fields in an expression or query.

use std::collections::{BTreeMap, BTreeSet};

use super::token::{Kind, Token, tokens};

/// A field of a row: its name, and the variable that stands for it where it is used.
pub(in crate::policy) type Field = (String, Option<String>);

/// The variables that hold rows by their names, with their fields; `None` as long as these are not
/// known.
pub(in crate::policy) type Rows = BTreeMap<String, Option<Vec<Field>>>;

/// What a body uses of a row.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::policy) struct Used {
    fields: BTreeSet<String>,
    /// Whether it is held against NULL.
    whole: bool,
}

impl Used {
    pub(in crate::policy) fn has(&self, field: &str) -> bool {
        self.whole || self.fields.contains(field)
    }
}

/// What a body uses of the row in a variable, or more.
pub(in crate::policy) fn used(source: &str, row: &str) -> Result<Used, String> {
    let tokens = tokens(source)?;
    let mut used = Used::default();
    for (at, token) in tokens.iter().enumerate() {
        let rest = tokens.get(at + 1..).unwrap_or_default();
        match (&token.kind, rest) {
            (Kind::Word(name, _), [dot, field, ..]) if name == row && dot.is_sign('.') => {
                if let Kind::Word(field, _) = &field.kind {
                    used.fields.insert(field.clone());
                }
            }
            (Kind::Word(name, _), [is, ..]) if name == row && is.is("is") => used.whole = true,
            _ => {}
        }
    }
    Ok(used)
}

/// An expression or query in which variables stand for the fields of rows.
///
/// # Errors
/// Where a row is used otherwise than by its fields or held against NULL, as reason.
pub(in crate::policy) fn with_fields(text: &str, rows: &Rows) -> Result<String, String> {
    let tokens = tokens(text)?;
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token.is(word));
    let sign = |at: usize, sign: char| tokens.get(at).is_some_and(|token| token.is_sign(sign));
    let (mut made, mut copied, mut at) = (String::new(), 0, 0);
    // Whether a query stands between the parentheses.
    let mut open = vec![is(0, "select") || is(0, "with")];
    while let Some(token) = tokens.get(at) {
        if token.is_sign('(') {
            open.push(is(at + 1, "select") || is(at + 1, "with"));
        } else if token.is_sign(')') {
            open.pop();
        }
        let row = match &token.kind {
            Kind::Word(name, _) => rows.get_key_value(name),
            _ => None,
        };
        let Some((name, fields)) = row else {
            at += 1;
            continue;
        };
        let before = at.checked_sub(1).and_then(|at| tokens.get(at));
        let listed = |token: &Token| {
            let list = open.last().copied().unwrap_or(true);
            token.is("select") || token.is("distinct") || list && token.is_sign(',')
        };
        if before.is_some_and(|token| token.is_sign('.') || listed(token)) {
            // There it may be another's, or the name of a column of its own.
            return Err(format!("has the row {name} where it is not read"));
        }
        let fields = fields.as_ref();
        let fields = fields.ok_or_else(|| format!("uses the row {name} before it is set"))?;
        let (replaced, taken) = if sign(at + 1, '.') {
            let Some(Kind::Word(field, _)) = tokens.get(at + 2).map(|token| &token.kind) else {
                return Err(format!("uses the row {name} as a whole"));
            };
            if sign(at + 3, '.') || sign(at + 3, '(') {
                return Err(format!("has the row {name} where it is not read"));
            }
            let mut known = fields.iter();
            let found = known.find(|(known, _)| known == field);
            let found = found.and_then(|(_, variable)| variable.clone());
            let found = found.ok_or_else(|| format!("uses {name}.{field}, which is not there"))?;
            (found, 3)
        } else {
            (null_test(name, fields, before, &tokens, at)?, {
                if is(at + 2, "not") { 4 } else { 3 }
            })
        };
        made.push_str(text.get(copied..token.at.start).unwrap_or_default());
        made.push_str(&replaced);
        let last = tokens.get(at + taken - 1);
        copied = last.map_or(text.len(), |last| last.at.end);
        at += taken;
    }
    made.push_str(text.get(copied..).unwrap_or_default());
    Ok(made)
}

/// `row IS [NOT] NULL`: all of its fields are.
fn null_test(
    name: &str,
    fields: &[Field],
    before: Option<&Token>,
    tokens: &[Token],
    at: usize,
) -> Result<String, String> {
    let whole = || format!("uses the row {name} as a whole");
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token.is(word));
    let not = is(at + 2, "not");
    let begins = before.is_none_or(|token| {
        let words = ["not", "and", "or", "when"];
        token.is_sign('(') || words.into_iter().any(|word| token.is(word))
    });
    if !begins || !is(at + 1, "is") || !is(at + if not { 3 } else { 2 }, "null") {
        return Err(whole());
    }
    let all = fields.iter().map(|(_, variable)| {
        let variable = variable.as_deref()?;
        Some(format!(
            "{variable} is {}null",
            if not { "not " } else { "" }
        ))
    });
    let all: Vec<String> = all.collect::<Option<_>>().ok_or_else(whole)?;
    if all.is_empty() {
        return Err(whole());
    }
    Ok(format!("({})", all.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Rows {
        let fields = ["id", "Role"].map(|name| (name.to_owned(), Some(format!("v_{name}"))));
        Rows::from([
            ("r".to_owned(), Some(fields.to_vec())),
            ("s".to_owned(), None),
        ])
    }

    #[test]
    fn fields_become_variables_and_rows_are_held_against_null() {
        for (text, made) in [
            ("r.id", "v_id"),
            (
                "not r . \"Role\" = f(r.id, 'r.id')",
                "not v_Role = f(v_id, 'r.id')",
            ),
            ("r is null or x", "(v_id is null and v_Role is null) or x"),
            (
                "(r is not null)",
                "((v_id is not null and v_Role is not null))",
            ),
            (
                "exists (select 1 from m where a in (r.id, r.id))",
                "exists (select 1 from m where a in (v_id, v_id))",
            ),
        ] {
            assert_eq!(with_fields(text, &rows()).as_deref(), Ok(made), "{text}");
        }
    }

    #[test]
    fn a_row_is_used_in_no_other_way() {
        for text in [
            "r",
            "r.*",
            "r.nope",
            "r.id.x",
            "r.id(1)",
            "public.r.id",
            "r is distinct from x",
            "r = r",
            "a = r is null",
            "select r.id from m",
            "select a, r.id from m",
            "select 1 from m r",
            "s.id",
            "f(r)",
        ] {
            assert!(with_fields(text, &rows()).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_used_is_found() {
        let found = used(
            "begin if r.a then return s.b; end if; return x is null; end",
            "r",
        )
        .unwrap();
        assert!(found.has("a") && !found.has("b"));
        assert!(used("if r is null", "r").unwrap().has("b"));
    }
}

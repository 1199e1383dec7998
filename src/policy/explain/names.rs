//! The names of what reasons tell of by number.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use crate::pg::Oid;

/// What has a number behind its word in a reason.
const KINDS: [&str; 6] = [
    "operator",
    "function",
    "aggregate",
    "type",
    "collation",
    "table",
];

const NAMES: &str = "select u.kind, u.number, case u.kind \
     when 'operator' then u.number::regoperator::text \
     when 'function' then u.number::regprocedure::text \
     when 'aggregate' then u.number::regprocedure::text \
     when 'type' then u.number::regtype::text \
     when 'collation' then u.number::regcollation::text \
     else u.number::regclass::text end \
     from unnest($1::text[], $2::oid[]) u (kind, number)";

/// Puts names in place of the numbers in reasons: `operator 1327` is `operator +(timestamp with time
/// zone,interval)`.
///
/// # Errors
/// Where the database does not say.
pub async fn by_name(
    client: &Client,
    reasons: Vec<&mut String>,
) -> Result<(), tokio_postgres::Error> {
    let wanted: BTreeSet<(&'static str, Oid)> =
        reasons.iter().flat_map(|reason| numbered(reason)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let kinds: Vec<&str> = wanted.iter().map(|(kind, _)| *kind).collect();
    let numbers: Vec<u32> = wanted.iter().map(|(_, number)| number.0).collect();
    let mut names = BTreeMap::new();
    for row in client.query(NAMES, &[&kinds, &numbers]).await? {
        let (kind, number, name): (String, u32, String) = (row.get(0), row.get(1), row.get(2));
        names.insert((kind, number), name);
    }
    for reason in reasons {
        *reason = renamed(reason, &names);
    }
    Ok(())
}

/// The numbers behind the words.
fn numbered(reason: &str) -> Vec<(&'static str, Oid)> {
    let mut found = Vec::new();
    let mut words = reason.split(' ').peekable();
    while let Some(word) = words.next() {
        let kind = KINDS.iter().find(|kind| **kind == word.trim_matches('('));
        let next = words.peek().and_then(|next| number(next));
        if let (Some(kind), Some((number, _))) = (kind, next) {
            found.push((*kind, Oid(number)));
        }
    }
    found
}

/// A word that is a number, and what stands behind that.
fn number(word: &str) -> Option<(u32, &str)> {
    let end = word
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(word.len());
    let (digits, rest) = word.split_at_checked(end)?;
    let plain = matches!(rest, "" | "," | ";" | ":" | ")");
    digits.parse().ok().filter(|_| plain).map(|one| (one, rest))
}

fn renamed(reason: &str, names: &BTreeMap<(String, u32), String>) -> String {
    let mut before = "";
    let words = reason.split(' ').map(|word| {
        let kind = before.trim_matches('(').to_owned();
        before = word;
        let named = number(word).and_then(|(number, rest)| {
            let name = names.get(&(kind, number))?;
            Some(format!("{name}{rest}"))
        });
        named.unwrap_or_else(|| word.to_owned())
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_one_only_behind_what_it_numbers() {
        let reason = "function f: operator 1327 is not compiled (type 25) in 10 of 20; type 3x";
        let found = [("operator", Oid(1327)), ("type", Oid(25))];
        assert_eq!(numbered(reason), found);
        let names = [
            (("operator".to_owned(), 1327), "+(a,b)".to_owned()),
            (("type".to_owned(), 25), "text".to_owned()),
        ];
        assert_eq!(
            renamed(reason, &names.into()),
            "function f: operator +(a,b) is not compiled (type text) in 10 of 20; type 3x"
        );
    }
}

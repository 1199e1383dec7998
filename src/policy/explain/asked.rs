//! Which claims a policy reads of which not all is compiled, as far as its text says.

use std::collections::BTreeSet;

use crate::pg::Oid;
use crate::policy::catalog::{Catalog, Policy};

/// What reads claims, and which; `*` stands for all of them.
const READERS: [(&str, &str); 5] = [
    ("auth.uid(", "sub"),
    ("auth.email(", "email"),
    ("auth.role(", "role"),
    ("auth.jwt(", "*"),
    ("request.jwt.claims", "*"),
];

/// A setting for each claim, of earlier PostgREST.
const SINGLE: &str = "request.jwt.claim.";

/// The claims that the text of a policy names, or that of a function which is called from there.
pub(super) fn claims(catalog: &Catalog, policy: &Policy) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut texts: Vec<String> = policy.condition.iter().map(|text| lower(text)).collect();
    let depends = policy.depends.iter();
    let mut open: Vec<Oid> = depends
        .filter(|(class, ..)| *class == Oid::PG_PROC)
        .map(|(_, oid, _)| *oid)
        .collect();
    let mut seen = BTreeSet::new();
    while let Some(oid) = open.pop() {
        let function = catalog.functions.get(&oid);
        let Some(function) = function.filter(|_| seen.insert(oid)) else {
            continue;
        };
        let bodies: Vec<_> = function.known().collect();
        open.extend(bodies.iter().flat_map(|body| body.functions()));
        let called = format!("{}.{}(", function.schema, function.name);
        if READERS.iter().any(|(reader, _)| *reader == called) {
            // It is named where it is called.
            continue;
        }
        texts.push(lower(&function.source));
    }
    for text in &texts {
        let readers = READERS.iter().filter(|(reader, _)| text.contains(reader));
        found.extend(readers.map(|(_, claim)| (*claim).to_owned()));
        for (at, _) in text.match_indices(SINGLE) {
            let rest = text.get(at + SINGLE.len()..).unwrap_or_default();
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
            found.insert(
                rest.get(..end.unwrap_or(rest.len()))
                    .unwrap_or_default()
                    .to_owned(),
            );
        }
    }
    found
}

/// In lower case, without what PostgreSQL allows between a name and its parenthesis.
fn lower(text: &str) -> String {
    text.to_lowercase().replace(" (", "(")
}

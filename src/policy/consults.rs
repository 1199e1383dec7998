//! What a policy that is asked of PostgreSQL looks at besides the row: an answer is as of the
//! question, and says something about an older row only where that has not changed since.

use std::collections::BTreeSet;

use super::catalog::{Catalog, Policy, Table};
use crate::pg::Oid;

const PG_PROC: u32 = 1255;

/// Objects below are PostgreSQL's own.
const FIRST_NORMAL_OBJECT: u32 = 16384;

/// PostgreSQL's functions that answer differently from one moment to the next: the clock's, chance,
/// and the age of a timestamp.
const FLEETING: [u32; 8] = [1299, 2647, 2648, 2649, 274, 1598, 1386, 2059];

/// The tables that the policies look into; `None` where that cannot be told.
pub(super) fn consults(catalog: &Catalog, table: &Table, policies: &[&Policy]) -> Option<Vec<Oid>> {
    let mut seen = BTreeSet::from([table.oid]);
    let mut found = BTreeSet::new();
    let mut open: Vec<&Policy> = policies.to_vec();
    while let Some(policy) = open.pop() {
        if policy.tree.as_deref().is_some_and(is_fleeting) {
            return None;
        }
        let tree = policy.tree.as_deref().unwrap_or_default();
        for relation in numbers(tree, ":relid ") {
            let other = catalog.tables.get(&Oid(relation))?;
            if !other.published {
                return None;
            }
            // Other rows of the table itself count as another table.
            found.insert(other.oid);
            if seen.insert(other.oid) {
                open.extend(other.policies.iter());
            }
        }
        let functions = policy
            .depends
            .iter()
            .filter(|(class, object, _)| class.0 == PG_PROC && object.0 >= FIRST_NORMAL_OBJECT);
        for (_, function, _) in functions {
            let function = catalog.functions.get(function)?;
            let body = function.body.as_deref().filter(|body| reads_nothing(body));
            body.filter(|_| function.language == "sql")?;
        }
    }
    Some(found.into_iter().collect())
}

/// Whether a function's body reads no table and calls only what is PostgreSQL's own and lasting.
fn reads_nothing(body: &str) -> bool {
    numbers(body, ":relid ").next().is_none()
        && !is_fleeting(body)
        && numbers(body, "funcid ").all(|oid| oid < FIRST_NORMAL_OBJECT)
}

fn is_fleeting(tree: &str) -> bool {
    tree.contains("{SQLVALUEFUNCTION")
        || numbers(tree, "funcid ").any(|oid| FLEETING.contains(&oid))
}

/// The numbers behind a label of a tree.
fn numbers<'tree>(tree: &'tree str, label: &'tree str) -> impl Iterator<Item = u32> + 'tree {
    let labelled = tree.split(label).skip(1);
    // What cannot be read is an object of which nothing is known.
    labelled.map(|rest| {
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
        digits
            .and_then(|digits| digits.parse().ok())
            .unwrap_or(u32::MAX)
    })
}

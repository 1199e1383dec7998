//! What a policy that is asked of PostgreSQL looks at besides the row: an answer is as of the
//! question, and says something about an older row only where that has not changed since.

use std::collections::BTreeSet;

use super::body::{FIRST_NORMAL_OBJECT, numbers};
use super::catalog::{Catalog, Policy, Table};
use crate::pg::Oid;

/// PostgreSQL's functions that answer differently from one moment to the next: the clock's, chance,
/// and the age of a timestamp.
const FLEETING: [u32; 8] = [1299, 2647, 2648, 2649, 274, 1598, 1386, 2059];

/// The tables that the policies look into; `None` where that cannot be told, or they look at something
/// else, of which the stream says nothing.
pub(super) fn consults(catalog: &Catalog, table: &Table, policies: &[&Policy]) -> Option<Vec<Oid>> {
    looked_at(catalog, table, policies, true)
}

/// The tables that the policies look into, whatever else they look at; `None` where that cannot be told.
pub(super) fn tables(catalog: &Catalog, table: &Table, policies: &[&Policy]) -> Option<Vec<Oid>> {
    looked_at(catalog, table, policies, false)
}

fn looked_at(
    catalog: &Catalog,
    table: &Table,
    policies: &[&Policy],
    all: bool,
) -> Option<Vec<Oid>> {
    let is_fleeting = |tree: &str| all && is_fleeting(tree);
    let untold = |other: &Table| all && !other.published;
    let mut seen = BTreeSet::from([table.oid]);
    let mut found = BTreeSet::new();
    let mut asked = BTreeSet::new();
    let mut open: Vec<&Policy> = policies.to_vec();
    while let Some(policy) = open.pop() {
        if policy.tree.as_deref().is_some_and(&is_fleeting) {
            return None;
        }
        let tree = policy.tree.as_deref().unwrap_or_default();
        for relation in numbers(tree, ":relid ") {
            let other = catalog.tables.get(&Oid(relation))?;
            if untold(other) {
                return None;
            }
            // Other rows of the table itself count as another table.
            found.insert(other.oid);
            if seen.insert(other.oid) {
                open.extend(other.policies.iter());
            }
        }
        let called = policy
            .depends
            .iter()
            .filter(|(class, object, _)| *class == Oid::PG_PROC && object.0 >= FIRST_NORMAL_OBJECT);
        let own = |function: &Oid| function.0 >= FIRST_NORMAL_OBJECT;
        let mut called: Vec<Oid> = called.map(|(_, function, _)| *function).collect();
        while let Some(function) = called.pop() {
            if !asked.insert(function) {
                continue;
            }
            let function = catalog.functions.get(&function)?;
            let defaults = function.defaults.as_deref().unwrap_or_default();
            if is_fleeting(defaults) {
                return None;
            }
            called.extend(numbers(defaults, ":funcid ").map(Oid).filter(own));
            for body in function.all_known()? {
                if body.trees().into_iter().any(&is_fleeting) {
                    return None;
                }
                called.extend(body.functions());
                for relation in body.relations() {
                    let other = catalog.tables.get(&relation)?;
                    if untold(other) {
                        return None;
                    }
                    found.insert(other.oid);
                    if seen.insert(other.oid) {
                        open.extend(other.policies.iter());
                    }
                }
            }
        }
    }
    Some(found.into_iter().collect())
}

fn is_fleeting(tree: &str) -> bool {
    tree.contains("{SQLVALUEFUNCTION")
        || numbers(tree, "funcid ").any(|oid| FLEETING.contains(&oid))
}

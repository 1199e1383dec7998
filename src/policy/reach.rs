//! What the policies of a table look into, table by table, for one role: whether PostgreSQL would
//! refuse that outright, whatever the rows.
//!
//! It applies the policies of each table that a sub-select reads, for the same role, and so on. A
//! table that comes up again inside its own policies is an error of every query; so is a table or a
//! column that the role may not read.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::catalog::{Catalog, Policy, Rights, Table};
use super::node_tree::{self, Node, Tree};
use super::scope::{applicable, security_applies, unexecutable};
use crate::pg::Oid;

/// What `selectedCols` adds to a column's number.
pub(super) const OFFSET: i64 = 7;

/// ACL_SELECT
const SELECT: u32 = 2;

/// The tables that sub-selects of policies read, directly or by each other's policies, with those of
/// a role's.
///
/// # Errors
/// With what PostgreSQL would raise for every query of the role.
pub(super) fn reach<'c>(
    catalog: &'c Catalog,
    table: &'c Table,
    role: &str,
) -> Result<Vec<&'c Table>, String> {
    let mut walk = Walk {
        catalog,
        role,
        active: Vec::new(),
        viewing: Vec::new(),
        done: BTreeSet::new(),
        found: Vec::new(),
        denied: None,
    };
    walk.enter(table, role)?;
    // Rules are asked beside the policies, so what they look into is no part of those.
    let rules: Vec<&Policy> = table.rules_for(role).collect();
    let refused = unexecutable(catalog, &rules, role);
    walk.denied = walk.denied.take().or(refused);
    walk.read(rules.iter().filter_map(|rule| rule.tree.as_deref()), role)?;
    walk.denied.map_or(Ok(walk.found), Err)
}

/// What PostgreSQL would raise for every query with one policy, whether or not it applies to the
/// role.
pub(super) fn alone(
    catalog: &Catalog,
    table: &Table,
    policy: &Policy,
    role: &str,
) -> Option<String> {
    let mut walk = Walk {
        catalog,
        role,
        active: vec![table.oid],
        viewing: Vec::new(),
        done: BTreeSet::new(),
        found: Vec::new(),
        denied: unexecutable(catalog, &[policy], role),
    };
    let raised = walk.read(policy.tree.as_deref().into_iter(), role).err();
    raised.or(walk.denied)
}

struct Walk<'c, 'r> {
    catalog: &'c Catalog,
    role: &'r str,
    /// The tables whose policies are being applied.
    active: Vec<Oid>,
    /// The views around.
    viewing: Vec<Oid>,
    /// The tables whose policies have been, by whose rights count.
    done: BTreeSet<(String, Oid)>,
    found: Vec<&'c Table>,
    /// A right that is missing: PostgreSQL looks at those last.
    denied: Option<String>,
}

impl<'c> Walk<'c, '_> {
    /// Applies the policies of a table for a role.
    fn enter(&mut self, table: &'c Table, role: &str) -> Result<(), String> {
        let Some(rights) = table.rights.iter().find(|rights| rights.role == role) else {
            return Ok(());
        };
        if !security_applies(self.catalog, table, rights) {
            return Ok(());
        }
        let policies: Vec<&Policy> = applicable(table, rights).collect();
        // Without a permissive one the others are not looked at.
        if !policies
            .iter()
            .any(|policy| policy.permissive && policy.condition.is_some())
        {
            return Ok(());
        }
        let trees: Vec<&str> = policies
            .iter()
            .filter_map(|policy| policy.tree.as_deref())
            .collect();
        if trees.iter().any(|tree| tree.contains("{SUBLINK")) && self.active.contains(&table.oid) {
            return Err(format!(
                "infinite recursion detected in policy for relation {}",
                table.name
            ));
        }
        let done = (role.to_owned(), table.oid);
        if self.done.contains(&done) {
            return Ok(());
        }
        let refused = unexecutable(self.catalog, &policies, self.role);
        self.denied = self.denied.take().or(refused);
        self.active.push(table.oid);
        self.read(trees.into_iter(), role)?;
        self.active.pop();
        self.done.insert(done);
        Ok(())
    }

    /// Looks at the tables that conditions read with the rights of a role.
    fn read<'t>(&mut self, trees: impl Iterator<Item = &'t str>, role: &str) -> Result<(), String> {
        for tree in trees {
            // What cannot be read is refused by the compiler.
            let Ok(tree) = node_tree::read(tree) else {
                continue;
            };
            let mut read = Vec::new();
            tables_in(&tree, &mut read);
            for (oid, columns) in read {
                let Some(other) = self.catalog.tables.get(&oid).map(Arc::as_ref) else {
                    continue;
                };
                // Until PostgreSQL 15 a view names itself.
                if self.viewing.contains(&oid) {
                    continue;
                }
                if let Some(rights) = other.rights.iter().find(|one| one.role == role) {
                    let refused = permitted(other, rights, &columns).err();
                    self.denied = self.denied.take().or(refused);
                }
                if !self.found.iter().any(|known| known.oid == oid) {
                    self.found.push(other);
                }
                if let Some(view) = &other.view {
                    let owner = view.reads_as();
                    let owner = owner.and_then(|owner| self.catalog.role(owner));
                    let reads = owner.map_or(self.role, |owner| &owner.name);
                    self.viewing.push(oid);
                    let read = self.read(std::iter::once(&*view.tree), reads);
                    self.viewing.pop();
                    read?;
                }
                self.enter(other, role)?;
            }
        }
        Ok(())
    }
}

/// Whether the role may read the columns, by their numbers with the offset.
fn permitted(table: &Table, rights: &Rights, columns: &[i64]) -> Result<(), String> {
    let readable = |column: i64| i16::try_from(column).is_ok_and(|n| rights.columns.contains(&n));
    let all = || {
        let mut columns = table.columns.iter();
        columns.all(|column| rights.columns.contains(&column.number))
    };
    let may = |column: &i64| match column - OFFSET {
        number @ 1.. => readable(number),
        // The row as a whole, and what every row has.
        _ => all(),
    };
    // Who reads no column at all must be able to read some.
    let permitted = if columns.is_empty() {
        !rights.columns.is_empty()
    } else {
        columns.iter().all(may)
    };
    if permitted {
        Ok(())
    } else {
        Err(format!("permission denied for table {}", table.name))
    }
}

/// The tables that a tree reads, and which columns, as it notes for the check of rights.
pub(super) fn tables_in(tree: &Tree, found: &mut Vec<(Oid, Vec<i64>)>) {
    match tree {
        Tree::List(items) => items.iter().for_each(|item| tables_in(item, found)),
        Tree::Node(node) => {
            let read = match node.name.as_str() {
                // Until PostgreSQL 15 these have the rights.
                "RTE" | "RANGETBLENTRY" if node.field("requiredPerms").is_ok() => rights_of(node),
                "RTEPERMISSIONINFO" => rights_of(node),
                _ => None,
            };
            found.extend(read);
            for (_, value) in &node.fields {
                tables_in(value, found);
            }
        }
        Tree::Null | Tree::Numbers(_) | Tree::Bytes(_) | Tree::Atom(_) => {}
    }
}

fn rights_of(node: &Node) -> Option<(Oid, Vec<i64>)> {
    let oid = node.oid("relid").ok()?;
    let required = node.number::<u32>("requiredPerms").ok()?;
    let columns = match node.field("selectedCols").ok()? {
        Tree::Numbers(columns) => columns.clone(),
        _ => Vec::new(),
    };
    (oid.0 != 0 && required & SELECT != 0).then_some((oid, columns))
}

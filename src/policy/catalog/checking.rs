//! What of a policy is about writing.

use std::collections::BTreeSet;

use super::Policy;
use crate::pg::Oid;
use crate::policy::node_tree::{self, Tree};

impl Policy {
    /// Leaves out of what a policy depends on what only its WITH CHECK names: PostgreSQL notes both
    /// together, and who reads needs nothing of the latter.
    pub(super) fn forget_check(&mut self, own: Oid) {
        if !self.checks {
            return;
        }
        let text = self.tree.as_deref().unwrap_or_default();
        let numbers = text.split(|c: char| !c.is_ascii_digit());
        let named: BTreeSet<u32> = numbers.filter_map(|one| one.parse().ok()).collect();
        let mut columns = BTreeSet::new();
        if let Ok(tree) = node_tree::read(text) {
            read(&tree, &mut vec![vec![Some(own)]], &mut columns);
        }
        self.depends.retain(|(_, object, column)| {
            let object_named = *object == own || named.contains(&object.0);
            object_named && (*column == 0 || columns.contains(&(*object, *column)))
        });
    }
}

/// The columns that a tree reads, by table and `attnum`. `around` has the tables in FROM of each query
/// around, the innermost last.
fn read(tree: &Tree, around: &mut Vec<Vec<Option<Oid>>>, found: &mut BTreeSet<(Oid, i32)>) {
    let node = match tree {
        Tree::List(items) => {
            for item in items {
                read(item, around, found);
            }
            return;
        }
        Tree::Node(node) => node,
        _ => return,
    };
    let number = |name| node.number::<i32>(name).ok();
    if node.name == "VAR" {
        let level = number("varlevelsup").and_then(|level| usize::try_from(level).ok());
        let entry = number("varno").and_then(|entry| usize::try_from(entry).ok());
        let column = number("varattno");
        let tables = level.and_then(|level| around.iter().rev().nth(level));
        let table = entry.and_then(|entry| *tables?.get(entry.checked_sub(1)?)?);
        if let (Some(table), Some(column)) = (table, column) {
            found.insert((table, column));
        }
        return;
    }
    let query = node.name == "QUERY";
    if query {
        let entries = node.field("rtable").and_then(Tree::items).unwrap_or(&[]);
        let table = |entry: &Tree| match entry {
            Tree::Node(entry) => entry.oid("relid").ok(),
            _ => None,
        };
        around.push(entries.iter().map(table).collect());
    }
    for (_, field) in &node.fields {
        read(field, around, found);
    }
    if query {
        around.pop();
    }
}

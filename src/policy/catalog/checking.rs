//! What of a policy is about writing.

use std::collections::BTreeSet;

use super::Policy;
use crate::pg::Oid;
use crate::policy::body::numbers;

impl Policy {
    /// Leaves out of what a policy depends on what only its WITH CHECK names: PostgreSQL notes both
    /// together, and who reads needs nothing of the latter.
    pub(super) fn forget_check(&mut self, own: Oid) {
        if !self.checks {
            return;
        }
        let tree = self.tree.as_deref().unwrap_or_default();
        let numbers_in = tree.split(|c: char| !c.is_ascii_digit());
        let named: BTreeSet<u32> = numbers_in.filter_map(|one| one.parse().ok()).collect();
        let columns: BTreeSet<u32> = numbers(tree, ":varattno ").collect();
        self.depends.retain(|(_, object, column)| {
            let object = *object == own || named.contains(&object.0);
            // What every row has, such as its place, has a number below 0.
            let column = u32::try_from(*column).ok().filter(|column| *column > 0);
            object && column.is_none_or(|column| columns.contains(&column))
        });
    }
}

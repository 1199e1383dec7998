//! Who asked for a row, found by the value that their filters demand.

use std::collections::{HashMap, HashSet};

use super::group::{Binding, MemberKey};
use crate::change::{Relation, Row};
use crate::datum::Datum;
use crate::subscription::matcher::Test;

/// Members by the value that their filters demand of a column; those without such a demand apart.
#[derive(Debug, Default)]
pub(super) struct FilterIndex {
    anything: HashSet<MemberKey>,
    by_column: HashMap<String, Column>,
}

#[derive(Debug)]
struct Column {
    /// Reads the column of a row; every test of one column and table reads alike.
    reader: Test,
    members: HashMap<Datum, HashSet<MemberKey>>,
}

impl FilterIndex {
    pub(super) fn add(&mut self, key: MemberKey, bindings: &[Binding]) {
        for binding in bindings {
            let Some((test, values)) = demand(binding) else {
                self.anything.insert(key);
                continue;
            };
            let column = self
                .by_column
                .entry(test.column.clone())
                .or_insert_with(|| Column {
                    reader: test.clone(),
                    members: HashMap::new(),
                });
            for value in values {
                column.members.entry(value.clone()).or_default().insert(key);
            }
        }
    }

    pub(super) fn remove(&mut self, key: MemberKey, bindings: &[Binding]) {
        self.anything.remove(&key);
        for (test, values) in bindings.iter().filter_map(demand) {
            let Some(column) = self.by_column.get_mut(&test.column) else {
                continue;
            };
            for value in values {
                if let Some(members) = column.members.get_mut(value) {
                    members.remove(&key);
                    if members.is_empty() {
                        column.members.remove(value);
                    }
                }
            }
            if column.members.is_empty() {
                self.by_column.remove(&test.column);
            }
        }
    }

    pub(super) fn candidates(&self, relation: &Relation, row: &Row) -> Vec<MemberKey> {
        let mut found: Vec<MemberKey> = self.anything.iter().copied().collect();
        let unfiltered = found.len();
        for column in self.by_column.values() {
            if let Some(value) = column.reader.value(relation, row)
                && let Some(members) = column.members.get(&value)
            {
                found.extend(members);
            }
        }
        if found.len() > unfiltered {
            found.sort_unstable_by_key(|key| key.0);
            found.dedup();
        }
        found
    }
}

/// The equality that a binding's filter begins with, if there is one: a row that fails it cannot
/// match.
fn demand(binding: &Binding) -> Option<(&Test, Vec<&Datum>)> {
    binding
        .filter
        .iter()
        .find_map(|test| Some((test, test.equalities()?.collect())))
}

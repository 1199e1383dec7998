//! Who asked for a row, found by the value that their filters demand. Equal filters are one: each
//! is held against a row once, however many asked for the same.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use slab::Slab;

use super::few::Few;
use super::group::MemberKey;
use crate::change::{Relation, Row};
use crate::datum::Datum;
use crate::subscription::matcher::{Filter, Outcome, Test, Values};

/// Where a filter is in its [`FilterIndex`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FilterKey(usize);

/// The filters of one table and role by the value that they demand of a column; those without such
/// a demand apart.
#[derive(Debug, Default)]
pub(super) struct FilterIndex {
    filters: Slab<Entry>,
    by_text: HashMap<Arc<str>, FilterKey>,
    anything: HashSet<FilterKey>,
    by_column: HashMap<String, Column>,
}

#[derive(Debug)]
struct Entry {
    filter: Arc<Filter>,
    text: Arc<str>,
    /// Who asked for it, with how many bindings; in the order in which they lie in memory, as all of
    /// them may have to be told.
    members: BTreeMap<MemberKey, usize>,
}

#[derive(Debug)]
struct Column {
    /// Reads the column of a row; every test of one column and table reads alike.
    reader: Test,
    filters: HashMap<Datum, Few<FilterKey>>,
}

impl FilterIndex {
    pub(super) fn add(&mut self, member: MemberKey, filter: &Arc<Filter>) -> FilterKey {
        let key = match self.by_text.get(filter.text()) {
            Some(known) => *known,
            None => self.insert(filter),
        };
        if let Some(entry) = self.filters.get_mut(key.0) {
            *entry.members.entry(member).or_default() += 1;
        }
        key
    }

    fn insert(&mut self, filter: &Arc<Filter>) -> FilterKey {
        let text: Arc<str> = filter.text().into();
        let key = FilterKey(self.filters.insert(Entry {
            filter: Arc::clone(filter),
            text: Arc::clone(&text),
            members: BTreeMap::new(),
        }));
        self.by_text.insert(text, key);
        match demand(filter) {
            None => {
                self.anything.insert(key);
            }
            Some((test, values)) => {
                let column = self
                    .by_column
                    .entry(test.column.clone())
                    .or_insert_with(|| Column {
                        reader: test.clone(),
                        filters: HashMap::new(),
                    });
                for value in values {
                    column.filters.entry(value.clone()).or_default().insert(key);
                }
            }
        }
        key
    }

    pub(super) fn remove(&mut self, member: MemberKey, key: FilterKey) {
        let Some(entry) = self.filters.get_mut(key.0) else {
            return;
        };
        if let Some(bindings) = entry.members.get_mut(&member) {
            *bindings -= 1;
            if *bindings == 0 {
                entry.members.remove(&member);
            }
        }
        if !entry.members.is_empty() {
            return;
        }
        let entry = self.filters.remove(key.0);
        self.by_text.remove(&entry.text);
        self.anything.remove(&key);
        let Some((test, values)) = demand(&entry.filter) else {
            return;
        };
        let Some(column) = self.by_column.get_mut(&test.column) else {
            return;
        };
        for value in values {
            if let Some(filters) = column.filters.get_mut(value) {
                filters.remove(&key);
                if filters.is_empty() {
                    column.filters.remove(value);
                }
            }
        }
        if column.filters.is_empty() {
            self.by_column.remove(&test.column);
        }
    }

    pub(super) fn filter(&self, key: FilterKey) -> Option<&Arc<Filter>> {
        self.filters.get(key.0).map(|entry| &entry.filter)
    }

    /// The members with a filter that may ask for the row. What the filters say of it is noted in
    /// `outcomes`.
    pub(super) fn candidates(
        &self,
        (relation, row, deleted): (&Relation, &Row, bool),
        outcomes: &mut Outcomes,
    ) -> Vec<MemberKey> {
        let mut filters: Vec<FilterKey> = self.anything.iter().copied().collect();
        for column in self.by_column.values() {
            match column.reader.value(relation, row, deleted) {
                Ok(value) => filters.extend(column.filters.get(&value).into_iter().flatten()),
                Err(Outcome::No) => {}
                // Whether somebody's demand is met cannot be told.
                Err(_) => {
                    filters.extend(column.filters.values().flatten());
                    filters.sort_unstable();
                    filters.dedup();
                }
            }
        }
        let mut found: Vec<MemberKey> = Vec::new();
        let mut asking = 0;
        for key in filters {
            if self.outcome(key, (relation, row, deleted), outcomes) == Outcome::No {
                continue;
            }
            asking += 1;
            if let Some(entry) = self.filters.get(key.0) {
                found.extend(entry.members.keys().copied());
            }
        }
        if asking > 1 {
            found.sort_unstable();
            found.dedup();
        }
        found
    }

    /// What a filter says of the row.
    pub(super) fn outcome(
        &self,
        key: FilterKey,
        (relation, row, deleted): (&Relation, &Row, bool),
        outcomes: &mut Outcomes,
    ) -> Outcome {
        match self.filter(key) {
            Some(filter) if filter.tests().is_empty() => Outcome::Yes,
            Some(filter) => {
                let values = &mut outcomes.values;
                let outcome = || filter.outcome(relation, row, deleted, values);
                *outcomes.by_filter.entry(key).or_insert_with(outcome)
            }
            None => Outcome::No,
        }
    }
}

/// What filters say of the row in hand.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    by_filter: HashMap<FilterKey, Outcome>,
    values: Values,
}

/// The equality that a filter begins with, if there is one: a row that fails it cannot match.
fn demand(filter: &Filter) -> Option<(&Test, Vec<&Datum>)> {
    let mut tests = filter.tests().iter();
    tests.find_map(|test| Some((test, test.equalities()?)))
}

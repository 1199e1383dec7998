//! One table's mirror.

use std::collections::BTreeSet;
use std::sync::Arc;

use rpds::{HashTrieMapSync, HashTrieSetSync};

use super::{Column, Wanted};
use crate::datum::Datum;

/// The values of a row in the order of the mirror's columns; `None` is NULL.
pub type Looked = Arc<[Option<Datum>]>;

/// A row that is no more, or one that is new.
pub type Difference = (Option<Looked>, Option<Looked>);

/// An index that was not asked for when the mirror was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the mirror has no such index")]
pub struct Lacking;

/// Which state of which mirror: equal only where nothing has changed in between.
#[derive(Debug, Clone, Default)]
pub struct State(Arc<()>);

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for State {}

/// The rows of one table, as of one place in the log. A clone is the same state for ever.
#[derive(Clone)]
pub struct Mirror {
    state: State,
    columns: Arc<[Column]>,
    /// Where in the columns those stand that tell rows apart.
    key: Arc<[usize]>,
    /// By the key; how often each row is there, which is once where the key is unique.
    rows: HashTrieMapSync<Looked, HashTrieMapSync<Looked, u32>>,
    /// By the places of their columns, which are few.
    indexes: Vec<(Arc<[usize]>, Index)>,
    len: usize,
}

/// From the values of some columns to the rows that have them. Rows with a NULL among them are in
/// none: nothing is equal to it.
type Index = HashTrieMapSync<Vec<Datum>, HashTrieSetSync<Looked>>;

impl Mirror {
    /// Without rows. `key` names the columns that tell rows apart: those of the replica identity.
    #[must_use]
    pub fn new(wanted: &Wanted, key: &[Column]) -> Self {
        let mut columns = wanted.columns.clone();
        columns.extend(
            key.iter()
                .filter(|one| !wanted.columns.contains(one))
                .cloned(),
        );
        let place = |name: &str| columns.iter().position(|column| *column.name == *name);
        let key: Arc<[usize]> = key
            .iter()
            .filter_map(|column| place(&column.name))
            .collect();
        let sets: BTreeSet<Vec<usize>> = wanted
            .indexes
            .iter()
            .filter_map(|names| {
                let mut places: Vec<usize> = names
                    .iter()
                    .map(|name| place(name))
                    .collect::<Option<_>>()?;
                places.sort_unstable();
                Some(places)
            })
            .collect();
        let mut indexes = Vec::with_capacity(sets.len());
        for set in sets {
            indexes.push((set.into(), HashTrieMapSync::new_sync()));
        }
        Self {
            state: State::default(),
            columns: columns.into(),
            key,
            rows: HashTrieMapSync::new_sync(),
            indexes,
            len: 0,
        }
    }

    /// The columns, in the order of the values of a row.
    #[must_use]
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The same, to be held beside rows.
    #[must_use]
    pub fn shared_columns(&self) -> Arc<[Column]> {
        Arc::clone(&self.columns)
    }

    /// Where a column's values stand in a row.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| *column.name == *name)
    }

    /// How many rows there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All rows, each as often as it is there.
    pub fn rows(&self) -> impl Iterator<Item = &Looked> {
        self.rows.values().flat_map(|alike| {
            alike
                .iter()
                .flat_map(|(row, times)| std::iter::repeat_n(row, *times as usize))
        })
    }

    /// The rows with this key.
    pub fn by_key(&self, key: &[Option<Datum>]) -> impl Iterator<Item = &Looked> {
        let alike = self.rows.get(key);
        alike.into_iter().flat_map(HashTrieMapSync::keys)
    }

    /// The key of a row.
    #[must_use]
    pub fn key_of(&self, row: &[Option<Datum>]) -> Looked {
        self.key
            .iter()
            .map(|place| row.get(*place).cloned().flatten())
            .collect()
    }

    /// The different rows whose values at `places` (ascending) are these; each once, however often
    /// it is there.
    ///
    /// # Errors
    /// [`Lacking`].
    pub fn find(
        &self,
        places: &[usize],
        values: &[Datum],
    ) -> Result<impl Iterator<Item = &Looked>, Lacking> {
        let index = self.index(places)?;
        let found = index.get(values);
        Ok(found.into_iter().flat_map(HashTrieSetSync::iter))
    }

    /// How many different rows [`Mirror::find`] would find.
    ///
    /// # Errors
    /// [`Lacking`].
    pub fn count(&self, places: &[usize], values: &[Datum]) -> Result<usize, Lacking> {
        let index = self.index(places)?;
        Ok(index.get(values).map_or(0, HashTrieSetSync::size))
    }

    /// Which state this is: that of a clone until either changes.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    fn change(&mut self) {
        // Where nobody else has it nobody can take it for what it was.
        if Arc::get_mut(&mut self.state.0).is_none() {
            self.state = State::default();
        }
    }

    /// How often a row is there.
    #[must_use]
    pub fn times(&self, row: &Looked) -> u32 {
        let alike = self.rows.get(&self.key_of(row));
        alike.and_then(|alike| alike.get(row)).copied().unwrap_or(0)
    }

    /// The rows that are there more or less often than in another mirror of the same columns: with
    /// what is there no more first, and then what is there anew. `None` for more than `most`, or
    /// where the columns are others.
    #[must_use]
    pub fn differences(&self, former: &Self, most: usize) -> Option<Vec<Difference>> {
        if self.columns != former.columns {
            return None;
        }
        let less = former.less_in(self).map(|row| (Some(row), None));
        let more = self.less_in(former).map(|row| (None, Some(row)));
        let found: Vec<Difference> = less.chain(more).take(most.saturating_add(1)).collect();
        (found.len() <= most).then_some(found)
    }

    /// The different rows that are there less often in another one.
    fn less_in<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = Looked> + 'a {
        let all = self.rows.values().flat_map(HashTrieMapSync::iter);
        let less = all.filter(|(row, times)| other.times(row) < **times);
        less.map(|(row, _)| Arc::clone(row))
    }

    /// Adds a row.
    pub fn insert(&mut self, row: Looked) {
        self.change();
        let key = self.key_of(&row);
        let mut alike = self.rows.get(&key).cloned().unwrap_or_default();
        let times = alike.get(&row).copied().unwrap_or(0);
        alike.insert_mut(Arc::clone(&row), times + 1);
        self.rows.insert_mut(key, alike);
        self.len += 1;
        if times == 0 {
            self.reindex(&row, true);
        }
    }

    /// Takes a row out, once; whether it was there.
    pub fn remove(&mut self, row: &Looked) -> bool {
        let key = self.key_of(row);
        let Some(mut alike) = self.rows.get(&key).cloned() else {
            return false;
        };
        let Some(times) = alike.get(row).copied() else {
            return false;
        };
        self.change();
        if times > 1 {
            alike.insert_mut(Arc::clone(row), times - 1);
        } else {
            alike.remove_mut(row);
            self.reindex(row, false);
        }
        if alike.is_empty() {
            self.rows.remove_mut(&key);
        } else {
            self.rows.insert_mut(key, alike);
        }
        self.len -= 1;
        true
    }

    /// Takes all rows out.
    pub fn clear(&mut self) {
        self.change();
        self.rows = HashTrieMapSync::new_sync();
        self.len = 0;
        for (_, index) in &mut self.indexes {
            *index = HashTrieMapSync::new_sync();
        }
    }

    fn index(&self, places: &[usize]) -> Result<&Index, Lacking> {
        let mut indexes = self.indexes.iter();
        let found = indexes.find(|(known, _)| **known == *places);
        found.map(|(_, index)| index).ok_or(Lacking)
    }

    fn reindex(&mut self, row: &Looked, there: bool) {
        for (places, index) in &mut self.indexes {
            let values = places
                .iter()
                .map(|place| row.get(*place).cloned().flatten());
            let Some(values) = values.collect::<Option<Vec<Datum>>>() else {
                continue;
            };
            let mut found = index.get(&values).cloned().unwrap_or_default();
            if there {
                found.insert_mut(Arc::clone(row));
            } else {
                found.remove_mut(row);
            }
            if found.is_empty() {
                index.remove_mut(&values);
            } else {
                index.insert_mut(values, found);
            }
        }
    }
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mirror({} rows)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::datum::Type;
    use crate::pg::Oid;

    #[test]
    fn what_two_mirrors_differ_in_is_found_however_often_rows_are_there() {
        let mut random = StdRng::seed_from_u64(11);
        let wanted = |names: &[&str]| Wanted {
            table: Oid(1),
            columns: names
                .iter()
                .map(|name| Column {
                    name: (*name).into(),
                    type_oid: Oid(20),
                    of: Type::Int8,
                })
                .collect(),
            indexes: BTreeSet::new(),
        };
        let (other, wanted) = (wanted(&["a"]), wanted(&["a", "b"]));
        for _ in 0..200 {
            let mut drawn = || {
                let mut mirror = Mirror::new(&wanted, &wanted.columns[..1]);
                let mut counts = BTreeMap::new();
                for _ in 0..random.random_range(0..12) {
                    let row = [random.random_range(0..3_i64), random.random_range(0..2)];
                    *counts.entry(row).or_insert(0_u32) += 1;
                    mirror.insert(row.map(|value| Some(Datum::Int(value))).into());
                }
                (mirror, counts)
            };
            let ((former, had), (now, has)) = (drawn(), drawn());
            let number = |row: Option<Looked>| {
                let row = row?;
                Some([0, 1].map(|place| match row[place] {
                    Some(Datum::Int(value)) => value,
                    _ => -1,
                }))
            };
            let found = now.differences(&former, usize::MAX).unwrap();
            let mut found: Vec<_> = found
                .into_iter()
                .map(|(a, b)| (number(a), number(b)))
                .collect();
            found.sort_unstable();
            let times = |of: &BTreeMap<[i64; 2], u32>, row: &[i64; 2]| of.get(row).copied();
            let all = [0, 1, 2].into_iter().flat_map(|a| [[a, 0], [a, 1]]);
            let mut expected: Vec<_> = all
                .filter_map(|row| match times(&had, &row).cmp(&times(&has, &row)) {
                    std::cmp::Ordering::Greater => Some((Some(row), None)),
                    std::cmp::Ordering::Less => Some((None, Some(row))),
                    std::cmp::Ordering::Equal => None,
                })
                .collect();
            expected.sort_unstable();
            assert_eq!(found, expected);
            let fewer = expected.len().checked_sub(1);
            assert!(fewer.is_none_or(|most| now.differences(&former, most).is_none()));
        }
        let other = Mirror::new(&other, &[]);
        assert!(other.differences(&Mirror::new(&wanted, &[]), 9).is_none());
    }
}

//! By which rows of other tables a verdict comes about.

use crate::lookup::{Looked, Lookups, Mirror};
use crate::pg::Oid;
use crate::policy::predicate::Verdict;

/// A row that a verdict depends on: the table, its columns' names and their values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deciding {
    /// The table.
    pub table: Oid,
    /// The columns that policies read of it, with their values; `None` for NULL. Values whose text
    /// depends on settings are left out.
    pub values: Vec<(String, Option<String>)>,
}

/// Few rows with which the verdict is what it is with all of them: without any of these it would be
/// another.
pub fn deciding(lookups: &Lookups, judge: impl Fn(&Lookups) -> Verdict) -> Vec<Deciding> {
    let verdict = judge(lookups);
    let mut left = lookups.clone();
    let tables: Vec<Oid> = lookups.tables().map(|(table, _)| table).collect();
    let mut kept: Vec<(Oid, Vec<Looked>)> = Vec::new();
    for table in tables {
        let mut rows: Vec<Looked> = left
            .get(table)
            .map(|mirror| mirror.rows().cloned().collect())
            .unwrap_or_default();
        // As many at once as can go.
        let mut size = rows.len();
        while size > 0 {
            let mut at = 0;
            while at < rows.len() {
                let end = (at + size).min(rows.len());
                let without = rows.get(at..end).unwrap_or_default();
                let Some(fewer) = without_rows(&left, table, without) else {
                    break;
                };
                if judge(&fewer) == verdict {
                    left = fewer;
                    rows.drain(at..end);
                } else {
                    at = end;
                }
            }
            size = if size == 1 { 0 } else { size.div_ceil(2) };
        }
        kept.push((table, rows));
    }
    let named = |mirror: &Mirror, row: &Looked| {
        let columns = mirror.columns().iter().zip(row.iter());
        let values = columns.filter_map(|(column, value)| {
            let text = match value {
                Some(datum) => Some(datum.output()?.to_string()),
                None => None,
            };
            Some((column.name.to_string(), text))
        });
        values.collect()
    };
    kept.iter()
        .flat_map(|(table, rows)| {
            let mirror = lookups.get(*table);
            rows.iter().filter_map(move |row| {
                Some(Deciding {
                    table: *table,
                    values: named(mirror?, row),
                })
            })
        })
        .collect()
}

fn without_rows(lookups: &Lookups, table: Oid, rows: &[Looked]) -> Option<Lookups> {
    let mut mirror = lookups.get(table)?.clone();
    for row in rows {
        mirror.remove(row);
    }
    let mut fewer = lookups.clone();
    fewer.put(table, mirror);
    Some(fewer)
}

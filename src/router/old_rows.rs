//! Rows as they were before changes, of tables of which the relay keeps that itself: what old rows
//! lack that their replica identity does not carry.
//!
//! The router notes what each change found, in the order of the log. Who comes back a moment later is
//! judged by the same; of what lies further back it is not known any more.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::change::{Change, Kind, Relation, Row, Value};
use crate::datum::{Collation, Datum, Type};
use crate::log::Offset;
use crate::lookup::keep::Before;
use crate::lookup::{Column, Looked, Wanted};
use crate::pg::{Oid, quote_identifier};
use crate::policy::access::Access;
use crate::policy::catalog::Catalog;
use crate::policy::rule::identifier;

/// Rows before changes that are remembered, for who comes back.
const MAX_RECENT: usize = 1 << 16;

/// About how much memory they may hold, in bytes.
const MAX_RECENT_BYTES: usize = 32 << 20;

/// A published table whose old rows the relay keeps itself: the key, and what policies read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrored {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// What is kept besides.
    pub columns: Columns,
}

/// Columns that clients filter by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Columns {
    /// These.
    Named(BTreeSet<String>),
    /// All of the table.
    All,
}

/// The tables whose old rows the relay keeps itself: `public.jobs`, and for columns that clients
/// filter by `public.jobs.status`, or `public.jobs.*` for all, separated by commas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OldRowTables(pub Vec<Mirrored>);

/// A text that does not name tables so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a list of tables with their schema, such as public.jobs,public.tickets.status \
     (public.tickets.status: clients filter public.tickets by its column status, and \
     public.tickets.* by any)"
)]
pub struct InvalidTables;

impl FromStr for OldRowTables {
    type Err = InvalidTables;

    fn from_str(text: &str) -> Result<Self, InvalidTables> {
        let mut tables = Self::default();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (schema, behind) = identifier(rest).ok_or(InvalidTables)?;
            let behind = behind.strip_prefix('.').ok_or(InvalidTables)?;
            let (table, behind) = identifier(behind).ok_or(InvalidTables)?;
            let (column, behind) = match behind.strip_prefix('.') {
                None => (None, behind),
                Some(behind) => match behind.strip_prefix('*') {
                    Some(behind) => (Some(None), behind),
                    None => {
                        let (column, behind) = identifier(behind).ok_or(InvalidTables)?;
                        (Some(Some(column)), behind)
                    }
                },
            };
            tables.add(schema, table, column);
            let behind = behind.trim_start();
            rest = match behind.strip_prefix(',') {
                // A list may end with a comma.
                Some(behind) => behind.trim_start(),
                None if behind.is_empty() => behind,
                None => return Err(InvalidTables),
            };
        }
        Ok(tables)
    }
}

impl fmt::Display for OldRowTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        let mut put = |f: &mut fmt::Formatter<'_>, text: String| {
            let comma = if std::mem::take(&mut first) { "" } else { "," };
            write!(f, "{comma}{text}")
        };
        for one in &self.0 {
            let name = one.name();
            match &one.columns {
                Columns::All => put(f, format!("{name}.*"))?,
                Columns::Named(columns) if columns.is_empty() => put(f, name)?,
                Columns::Named(columns) => {
                    for column in columns {
                        put(f, format!("{name}.{}", written(column)))?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl OldRowTables {
    fn add(&mut self, schema: String, table: String, column: Option<Option<String>>) {
        let known = self
            .0
            .iter()
            .position(|one| (&one.schema, &one.table) == (&schema, &table));
        let at = known.unwrap_or_else(|| {
            self.0.push(Mirrored {
                schema,
                table,
                columns: Columns::Named(BTreeSet::new()),
            });
            self.0.len() - 1
        });
        let Some(one) = self.0.get_mut(at) else {
            return;
        };
        match (&mut one.columns, column) {
            (_, None) | (Columns::All, _) => {}
            (columns, Some(None)) => *columns = Columns::All,
            (Columns::Named(columns), Some(Some(column))) => {
                columns.insert(column);
            }
        }
    }
}

/// What is to be kept of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keeps {
    /// This.
    Columns(Wanted),
    /// Nothing: its replica identity carries all that is needed.
    Nothing,
    /// It is not there, or not published, or a column is not there; a sentence without its full stop.
    Unknown(String),
}

impl Mirrored {
    /// The name as the settings have it: quoted where it has to be.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}.{}", written(&self.schema), written(&self.table))
    }

    /// What is to be kept by this catalog: the key, what policies and rules read for any role, and
    /// the columns that are named. Generated ones cannot be: their values are not in the stream.
    #[must_use]
    pub fn keeps(&self, catalog: &Catalog) -> Keeps {
        let name = self.name();
        let mut tables = catalog.tables.values();
        let found = tables.find(|one| one.schema == self.schema && one.name == self.table);
        let Some(table) = found.filter(|table| table.published) else {
            return Keeps::Unknown(format!(
                "{name}, which old_rows names, does not exist or is not published: nobody is told \
                 of its rows"
            ));
        };
        if let Columns::Named(columns) = &self.columns
            && let Some(unknown) = columns.iter().find(|one| table.column(one).is_none())
        {
            return Keeps::Unknown(format!(
                "{name} has no column {}, which old_rows names",
                written(unknown)
            ));
        }
        let roles = table.rights.iter().map(|rights| &rights.role);
        let reads: BTreeSet<String> = roles
            .flat_map(|role| Access::new(catalog, table, role).reads)
            .collect();
        let decides = |name: &String| match &self.columns {
            Columns::All => true,
            Columns::Named(columns) => columns.contains(name) || reads.contains(name),
        };
        let needed: Vec<_> = table
            .columns
            .iter()
            .filter(|column| {
                column.generated.is_none()
                    && table.publishes(&column.name)
                    && (decides(&column.name) || table.is_key(column))
            })
            .collect();
        if needed.iter().all(|column| table.identity_carries(column)) {
            return Keeps::Nothing;
        }
        // An identity index tells rows apart where the key does not.
        let identifies = |column: &&crate::policy::catalog::Column| {
            table.identity.is_some() && table.identity_carries(column)
        };
        let mut columns = needed;
        columns.extend(table.columns.iter().filter(identifies));
        columns.sort_by_key(|column| column.number);
        columns.dedup_by_key(|column| column.number);
        let mut columns: Vec<Column> = columns.into_iter().map(kept).collect();
        columns.sort_by(|a, b| a.name.cmp(&b.name));
        Keeps::Columns(Wanted {
            table: table.oid,
            columns,
            indexes: BTreeSet::new(),
        })
    }
}

/// A name as somebody writes it who quotes only where that is needed.
fn written(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if name.bytes().all(plain) {
        name.to_owned()
    } else {
        quote_identifier(name)
    }
}

/// Values stay the text that they are in the stream: an old row is judged like any other.
fn kept(column: &crate::policy::catalog::Column) -> Column {
    Column {
        name: column.name.as_str().into(),
        type_oid: column.type_oid,
        of: Type::Text(Collation::C),
    }
}

/// Shared by all who judge.
#[derive(Default)]
pub(super) struct OldRows(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// What is mirrored now.
    now: HashMap<Oid, Arc<[Column]>>,
    /// Tables of which all that is wanted has been mirrored since the process began: somebody relies
    /// on it.
    promised: HashSet<Oid>,
    /// In the order of the log.
    recent: VecDeque<Before>,
    bytes: usize,
}

impl OldRows {
    /// Whether a column is mirrored now.
    pub(super) fn carries(&self, table: Oid, column: &str) -> bool {
        let inner = self.lock();
        let columns = inner.now.get(&table);
        columns.is_some_and(|columns| columns.iter().any(|one| *one.name == *column))
    }

    /// Whether it was ever said that old rows of the table are known.
    pub(super) fn is_promised(&self, table: Oid) -> bool {
        self.lock().promised.contains(&table)
    }

    pub(super) fn mirrors(&self, now: HashMap<Oid, Arc<[Column]>>, complete: &HashSet<Oid>) {
        let mut inner = self.lock();
        inner.now = now;
        inner.promised.extend(complete);
    }

    /// Notes what changes found, in whatever order.
    pub(super) fn note(&self, found: Vec<Before>) {
        if found.is_empty() {
            return;
        }
        let mut inner = self.lock();
        let last = inner.recent.back().map(|before| before.offset);
        let first = found.first().map(|before| before.offset);
        let in_order = found.is_sorted_by_key(|before| before.offset) && last < first;
        inner.bytes += found
            .iter()
            .map(|before| weight(&before.row))
            .sum::<usize>();
        inner.recent.extend(found);
        if !in_order {
            let recent = inner.recent.make_contiguous();
            recent.sort_by_key(|before| before.offset);
        }
        while inner.recent.len() > MAX_RECENT || inner.bytes > MAX_RECENT_BYTES {
            let Some(oldest) = inner.recent.pop_front() else {
                break;
            };
            inner.bytes = inner.bytes.saturating_sub(weight(&oldest.row));
        }
    }

    /// What a change found.
    pub(super) fn before(&self, offset: Offset) -> Option<Before> {
        let inner = self.lock();
        let at = inner
            .recent
            .binary_search_by_key(&offset, |before| before.offset);
        inner.recent.get(at.ok()?).cloned()
    }

    /// Another history of the log began.
    pub(super) fn forget(&self) {
        let mut inner = self.lock();
        inner.recent.clear();
        inner.bytes = 0;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code under this lock panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Values of rows must not reach a log.
impl fmt::Debug for OldRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        f.debug_struct("OldRows")
            .field("tables", &inner.now.len())
            .field("recent", &inner.recent.len())
            .finish_non_exhaustive()
    }
}

/// About how much memory a row holds.
fn weight(row: &Looked) -> usize {
    let text = |value: &Option<Datum>| match value {
        Some(Datum::Text(text)) => text.len() + 16,
        _ => 0,
    };
    let values: usize = row.iter().map(text).sum();
    values + size_of_val(&**row) + size_of::<Before>()
}

/// The row before a change as far as it is known: what the stream carries of it, and what is mirrored.
pub(super) fn row_before(change: &Change, carried: Option<&Row>, known: &Before) -> Row {
    let columns = change.relation.columns.iter().enumerate();
    let values = columns.map(|(position, column)| {
        let value = match (carried, &change.kind) {
            (Some(row), _) => row.get(position),
            // Without an old row the replica identity is what it was.
            (None, Kind::Update { new, .. }) if column.identity => new.get(position),
            (None, _) => None,
        };
        match value {
            None | Some(Value::Unchanged) => mirrored(known, &column.name),
            Some(value) => value,
        }
    });
    values.collect()
}

/// A row in which what an update did not touch is as it was before.
pub(super) fn filled(relation: &Relation, row: &Row, known: &Before) -> Option<Row> {
    let mut values = row.values();
    if values.all(|value| value != Value::Unchanged) {
        return None;
    }
    let values = row.values().zip(&relation.columns);
    let filled = values.map(|(value, column)| match value {
        Value::Unchanged => mirrored(known, &column.name),
        value => value,
    });
    Some(filled.collect())
}

fn mirrored<'a>(known: &'a Before, name: &str) -> Value<'a> {
    let place = known.columns.iter().position(|one| *one.name == *name);
    match place.and_then(|place| known.row.get(place)) {
        Some(None) => Value::Null,
        Some(Some(Datum::Text(text))) => Value::Text(text),
        // Another type is none that was asked for.
        Some(Some(_)) | None => Value::Unchanged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_columns_are_named_as_in_sql_and_read_back() {
        let text = "public.Jobs, public.tickets.status,public.tickets.\"Team, A\" ,app.\"X.y\".*,";
        let tables: OldRowTables = text.parse().unwrap();
        let names: Vec<String> = tables.0.iter().map(Mirrored::name).collect();
        assert_eq!(names, ["public.jobs", "public.tickets", "app.\"X.y\""]);
        assert_eq!(tables.0[0].columns, Columns::Named(BTreeSet::new()));
        let named = ["Team, A", "status"].map(str::to_owned);
        assert_eq!(tables.0[1].columns, Columns::Named(named.into()));
        assert_eq!(tables.0[2].columns, Columns::All);
        assert_eq!(tables.to_string().parse(), Ok(tables));
        assert_eq!("".parse(), Ok(OldRowTables::default()));
        for bad in [
            "jobs",
            "public.",
            "public.jobs.",
            "a.b.c.d",
            "a.b c.d",
            ".a",
            "a.b,,c.d",
        ] {
            assert_eq!(bad.parse::<OldRowTables>(), Err(InvalidTables), "{bad}");
        }
    }

    fn before(offset: u64, text: &str) -> Before {
        Before {
            offset: Offset(offset),
            columns: Arc::new([]),
            row: [Some(Datum::text(text))].into(),
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_by_number_and_by_size_and_found_whatever_came_late() {
        let rows = OldRows::default();
        for at in 0..MAX_RECENT as u64 + 10 {
            rows.note(vec![before(2 * at + 1, "a")]);
        }
        assert!(rows.before(Offset(19)).is_none());
        assert!(rows.before(Offset(21)).is_some());
        rows.note(vec![before(50_001, "late")]);
        rows.note(vec![before(50_000, "later"), before(40_000, "b")]);
        assert!(rows.before(Offset(50_000)).is_some());
        assert!(rows.before(Offset(40_000)).is_some());
        assert!(rows.before(Offset(50_002)).is_none());
        rows.note(vec![before(
            1_000_000,
            &"x".repeat(MAX_RECENT_BYTES - 1000),
        )]);
        assert!(rows.before(Offset(1_000_000)).is_some());
        assert!(rows.before(Offset(100_001)).is_none());
        rows.forget();
        assert!(rows.before(Offset(1_000_000)).is_none());
    }
}

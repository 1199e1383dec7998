//! One mirror that follows the log.

use std::sync::Arc;

use super::DELTAS;
use super::reason::{Cause, Refusal};
use crate::change::{Change, Kind, OldRow, Relation, ReplicaIdentity, Row, Value};
use crate::datum::Datum;
use crate::lookup::{Column, Looked, Mirror, Wanted};

/// About what a row costs besides its values: in the map by key, in the map of its likes, and the
/// row itself.
const ROW_BYTES: usize = 320;

/// About what a row costs in an index.
const INDEX_BYTES: usize = 200;

/// What a change did to a mirror.
#[derive(Debug)]
pub(super) enum Effect {
    Row {
        before: Option<Looked>,
        after: Option<Looked>,
    },
    /// It changed nothing of what is mirrored of this row.
    Same(Looked),
    /// All rows are gone: these, or more than are told one by one.
    Emptied(Option<Vec<Looked>>),
}

/// The columns that tell a table's rows apart, and what the catalog says of all that are mirrored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    /// Empty where rows are told apart by all they hold.
    pub(super) key: Arc<[Column]>,
    /// The modifiers of the mirror's columns' types, in their order.
    pub(super) modifiers: Arc<[i32]>,
}

/// A mirror, and what it takes to read the table's changes for it.
#[derive(Debug, Clone)]
pub(super) struct Followed {
    pub(super) wanted: Arc<Wanted>,
    pub(super) mirror: Mirror,
    pub(super) shape: Shape,
    /// About how much memory it holds.
    pub(super) bytes: usize,
    /// Where the columns stand in the rows of the newest version of the table.
    fit: Option<Fit>,
}

#[derive(Debug, Clone)]
struct Fit {
    version: u64,
    places: Arc<[usize]>,
}

impl Followed {
    /// Without rows.
    pub(super) fn new(wanted: Arc<Wanted>, shape: Shape) -> Self {
        Self {
            mirror: Mirror::new(&wanted, &shape.key),
            wanted,
            shape,
            bytes: 0,
            fit: None,
        }
    }

    /// The mirror's columns, as [`Mirror::new`] puts them.
    pub(super) fn columns_of(wanted: &Wanted, key: &[Column]) -> Vec<Column> {
        Mirror::new(wanted, key).columns().to_vec()
    }

    /// Adds a row of the copy, or of a checkpoint.
    pub(super) fn add(&mut self, row: Looked) -> Result<(), Refusal> {
        if !self.shape.key.is_empty() {
            let key = self.mirror.key_of(&row);
            if self.mirror.by_key(&key).next().is_some() {
                return Err(Cause::MissingRow.because("a row is there twice"));
            }
        }
        self.bytes += self.weight(&row);
        self.mirror.insert(row);
        Ok(())
    }

    /// A row of texts in the order of the mirror's columns.
    pub(super) fn read<'a>(
        &self,
        mut text: impl FnMut(usize) -> Result<Option<&'a str>, Refusal>,
    ) -> Result<Looked, Refusal> {
        let columns = self.mirror.columns();
        let values = columns.iter().enumerate().map(|(place, column)| {
            text(place)?
                .map(|text| Datum::from_output(&column.of, text).map_err(|_| unread(column)))
                .transpose()
        });
        values.collect()
    }

    /// Applies a change of the table; what it did, where it is one of a row. After
    /// an error the mirror is of no use.
    pub(super) fn apply(&mut self, change: &Change) -> Result<Option<Effect>, Refusal> {
        let (old, new) = match &change.kind {
            Kind::Truncate => {
                let few = self.mirror.len() <= DELTAS;
                let rows = few.then(|| self.mirror.rows().cloned().collect::<Vec<_>>());
                self.mirror.clear();
                self.bytes = 0;
                let none = rows.as_ref().is_some_and(Vec::is_empty);
                return Ok((!none).then_some(Effect::Emptied(rows)));
            }
            Kind::Lost(_) => {
                return Err(Cause::Lost.because("rows changed that the log does not hold"));
            }
            // Of what it says the catalog tells.
            Kind::Rules => return Ok(None),
            Kind::Insert { new } => (None, Some(new)),
            Kind::Update { old, new } => (Some(old.as_ref()), Some(new)),
            Kind::Delete { old } => (Some(Some(old)), None),
        };
        let places = self.fit(&change.relation)?;
        let before = match old {
            None => None,
            Some(old) => Some(self.find(old, new, &places)?),
        };
        let after = match new {
            None => None,
            Some(new) => Some(self.row(new, before.as_ref(), &places)?),
        };
        if let (Some(before), Some(after)) = (&before, &after)
            && identical(before, after)
        {
            return Ok(Some(Effect::Same(Arc::clone(before))));
        }
        if let Some(before) = &before {
            if !self.mirror.remove(before) {
                return Err(missing());
            }
            self.bytes = self.bytes.saturating_sub(self.weight(before));
        }
        if let Some(after) = &after {
            self.add(Arc::clone(after))?;
        }
        Ok(Some(Effect::Row { before, after }))
    }

    /// The row that is mirrored of the one before.
    fn find(
        &self,
        old: Option<&OldRow>,
        new: Option<&Row>,
        places: &[usize],
    ) -> Result<Looked, Refusal> {
        // Without an old row the replica identity is what it was.
        let carried = old.map(OldRow::row).or(new).ok_or_else(missing)?;
        if self.shape.key.is_empty() {
            return match old {
                Some(OldRow::Full(row)) => self.row(row, None, places),
                _ => Err(Cause::Identity.because("an old row came without all of its columns")),
            };
        }
        let mut key = Vec::with_capacity(self.shape.key.len());
        for column in self.shape.key.iter() {
            let place = self.mirror.position(&column.name).ok_or_else(missing)?;
            let place = places.get(place).copied().unwrap_or(usize::MAX);
            match carried.get(place) {
                Some(Value::Text(text)) => {
                    let datum = Datum::from_output(&column.of, text);
                    key.push(Some(datum.map_err(|_| unread(column))?));
                }
                _ => return Err(Cause::Identity.because("an old row came without its key")),
            }
        }
        let found = self.mirror.by_key(&key).next();
        found.cloned().ok_or_else(missing)
    }

    /// What is mirrored of a row; what an update did not touch is as `before` has it.
    fn row(&self, row: &Row, before: Option<&Looked>, places: &[usize]) -> Result<Looked, Refusal> {
        let columns = self.mirror.columns().iter().enumerate();
        let values = columns.map(|(at, column)| {
            let place = places.get(at).copied().unwrap_or(usize::MAX);
            match row.get(place) {
                Some(Value::Null) => Ok(None),
                Some(Value::Text(text)) => {
                    let datum = Datum::from_output(&column.of, text);
                    datum.map(Some).map_err(|_| unread(column))
                }
                Some(Value::Unchanged) => {
                    let kept = before.and_then(|before| before.get(at));
                    kept.cloned().ok_or_else(|| unread(column))
                }
                None => Err(unread(column)),
            }
        });
        values.collect()
    }

    /// Where the columns stand in this version's rows, where it is one that can be followed.
    fn fit(&mut self, relation: &Relation) -> Result<Arc<[usize]>, Refusal> {
        if let Some(fit) = &self.fit
            && fit.version == relation.version
        {
            return Ok(Arc::clone(&fit.places));
        }
        let keyed = !self.shape.key.is_empty();
        match relation.replica_identity {
            ReplicaIdentity::Nothing => {
                return Err(Cause::Identity.because("the table has no replica identity any more"));
            }
            ReplicaIdentity::Default | ReplicaIdentity::Index if !keyed => {
                return Err(Cause::Identity.because("the replica identity is not FULL any more"));
            }
            _ => {}
        }
        let columns = self.mirror.columns().iter().zip(&*self.shape.modifiers);
        let places = columns.map(|(column, modifier)| {
            let place = relation.position(&column.name)?;
            let found = relation.columns.get(place)?;
            let alike = found.type_oid == column.type_oid && found.type_modifier == *modifier;
            let key = self.shape.key.iter().any(|one| one.name == column.name);
            (alike && (!key || found.identity)).then_some(place)
        });
        let places = places.collect::<Option<Arc<[usize]>>>();
        let places = places.ok_or_else(|| {
            Cause::Shape.because("a column that is mirrored was dropped, renamed or retyped")
        })?;
        self.fit = Some(Fit {
            version: relation.version,
            places: Arc::clone(&places),
        });
        Ok(places)
    }

    fn weight(&self, row: &Looked) -> usize {
        let values: usize = row.iter().map(|value| weight(value.as_ref())).sum();
        // The key is held once more.
        values + ROW_BYTES + INDEX_BYTES * self.wanted.indexes.len()
    }
}

/// What a row of a table is reckoned at, in bytes, without what is in its longer values.
pub(crate) fn least_weight(wanted: &Wanted) -> usize {
    ROW_BYTES
        + INDEX_BYTES * wanted.indexes.len()
        + size_of::<Option<Datum>>() * wanted.columns.len()
}

fn identical(a: &Looked, b: &Looked) -> bool {
    a.iter().zip(&**b).all(|pair| match pair {
        (None, None) => true,
        (Some(a), Some(b)) => a.identical(b),
        _ => false,
    })
}

/// About how much memory a value holds.
fn weight(value: Option<&Datum>) -> usize {
    let beyond = match value {
        Some(Datum::Text(text) | Datum::Json(text)) => text.len() + 16,
        Some(Datum::Bytes(bytes)) => bytes.len() + 16,
        Some(Datum::Enum(label)) => label.name.len(),
        Some(Datum::Numeric(_)) => 64,
        // The tree takes a few times its text.
        Some(Datum::Jsonb(value)) => 4 * value.to_string().len() + 64,
        _ => 0,
    };
    size_of::<Option<Datum>>() + beyond
}

fn missing() -> Refusal {
    Cause::MissingRow.because("a row changed that the mirror does not have")
}

fn unread(column: &Column) -> Refusal {
    Cause::Value.because(format!(
        "a value of column {} is not one that is read here",
        crate::pg::quote_identifier(&column.name)
    ))
}

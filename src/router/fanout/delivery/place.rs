//! What has been made of a change so far: whoever receives the same shares it.

use std::collections::HashMap;
use std::sync::Arc;

use super::Awaited;
use crate::auth::Principal;
use crate::change::{Change, ColumnSet, Relation, Row};
use crate::encode::{Body, OldRecord, Shape};
use crate::log::{Cursor, Entry, Epoch, Offset};
use crate::policy::ask::image;
use crate::policy::catalog::{Catalog, Table};
use crate::router::Outgoing;
use crate::router::filter_index::FilterKey;
use crate::router::group::{Group, SelectionKey};

/// Shapes kept for a table, one for each set of columns that somebody asks for; past this all are
/// made anew.
const MAX_SHAPES: usize = 1000;

/// What a change is written with for the members of a group.
pub(super) struct Writing<'a> {
    pub(super) table: &'a Table,
    pub(super) catalog: &'a Catalog,
    pub(super) group: &'a Group,
    pub(super) shapes: &'a mut HashMap<(u64, ColumnSet), Arc<Shape>>,
    pub(super) epoch: Epoch,
    pub(super) max_bytes: usize,
}

/// Where in the stream a change is, the row that decides about it, and what has been made of it so
/// far: recipients share it.
pub(super) struct Place<'a> {
    pub(super) entry: &'a Entry,
    pub(super) offset: Offset,
    pub(super) change: &'a Change,
    pub(super) row: &'a Row,
    /// The row before an update, as far as it is known, where somebody is told of leaves.
    pub(super) before: Option<&'a Row>,
    /// The change as bytes for the role in hand: for those without a selection, and for each
    /// selection, with what goes out of the row before.
    pub(super) written: Vec<[Option<Written>; OldRecord::KINDS]>,
    /// The same by what is in it, for all roles.
    pub(super) bodies: HashMap<(ColumnSet, OldRecord), Body>,
    /// What goes out of the row before to those who could not see it.
    pub(super) unseen: Option<OldRecord>,
    /// What of the rows questions carry, by the columns that they need.
    pub(super) images: [HashMap<Vec<String>, Arc<str>>; 2],
    /// The filters of the role in hand that have to be asked about, and who waits for that.
    pub(super) filters: HashMap<(FilterKey, Version), Vec<Awaited>>,
    /// Of whom, by kin, the leaves wait for what the policies say of the new row.
    pub(super) open: HashMap<usize, (Arc<Principal>, Vec<Awaited>)>,
}

/// A change as bytes, and as it went out last.
pub(super) struct Written {
    pub(super) body: Body,
    pub(super) last: Option<Arc<Outgoing>>,
}

/// Which row of a change: the one that decides about it, or the one before an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Version {
    New,
    Old,
}

impl Writing<'_> {
    pub(super) fn shape(&mut self, relation: &Relation, columns: &ColumnSet) -> &Shape {
        if self.shapes.len() >= MAX_SHAPES {
            self.shapes.clear();
        }
        let key = (relation.version, columns.clone());
        let shape = || Arc::new(Shape::new(relation, self.table, self.catalog, columns));
        self.shapes.entry(key).or_insert_with(shape)
    }
}

impl Place<'_> {
    /// The change as it goes out to those for whom these bindings asked: mostly they are the same
    /// for one after the other.
    pub(super) fn outgoing(
        &mut self,
        writing: &mut Writing<'_>,
        form: (Option<SelectionKey>, OldRecord),
        bindings: &[u32],
    ) -> Option<Arc<Outgoing>> {
        let (offset, committed_at) = (self.offset, self.entry.batch.committed_at);
        let written = self.written(writing, form)?;
        if let Some(last) = &written.last
            && *last.bindings == *bindings
        {
            return Some(Arc::clone(last));
        }
        let outgoing = Arc::new(Outgoing {
            bindings: bindings.into(),
            offset,
            committed_at,
            data: written.body.clone(),
        });
        written.last = Some(Arc::clone(&outgoing));
        Some(outgoing)
    }

    /// The change as bytes: written once for each set of columns, however many there are to receive
    /// it.
    pub(super) fn written(
        &mut self,
        writing: &mut Writing<'_>,
        (selection, old): (Option<SelectionKey>, OldRecord),
    ) -> Option<&mut Written> {
        let at = selection.map_or(0, |key| key.0 + 1);
        if at >= self.written.len() {
            self.written.resize_with(at + 1, Default::default);
        }
        let place = self.written.get_mut(at)?.get_mut(old.number())?;
        if place.is_none() {
            let relation = &self.change.relation;
            let names = match selection {
                Some(key) => Some(writing.group.selection(key)?),
                None => None,
            };
            let columns = ColumnSet::of(relation, |column| {
                writing.group.access.may_read(&column.name)
                    && names.is_none_or(|names| names.contains(&column.name))
            });
            let key = (columns, old);
            let known = self.bodies.get(&key).cloned();
            let data = match known {
                Some(data) => data,
                None => {
                    let cursor = Cursor {
                        epoch: writing.epoch,
                        offset: Offset(self.offset.0 + 1),
                    };
                    let when = (cursor, self.entry.batch.committed_at);
                    let max_bytes = writing.max_bytes;
                    let shape = writing.shape(relation, &key.0);
                    let data: Body = shape.encode(self.change, when, old, max_bytes)?.into();
                    self.bodies.insert(key, data.clone());
                    data
                }
            };
            *place = Some(Written {
                body: data,
                last: None,
            });
        }
        place.as_mut()
    }

    pub(super) const fn row_of(&self, version: Version) -> Option<&Row> {
        match version {
            Version::New => Some(self.row),
            Version::Old => self.before,
        }
    }

    /// Notes who waits for what a filter says.
    pub(super) fn wait_for(&mut self, asked: (FilterKey, Version), one: &Awaited) {
        self.filters.entry(asked).or_default().push(one.clone());
    }

    /// The row with these columns only, made once for all who need the same.
    pub(super) fn image_of(&mut self, version: Version, columns: &[String]) -> Option<Arc<str>> {
        let known = |images: &HashMap<_, _>| images.get(columns).map(Arc::clone);
        if let Some(known) = self.images.get(version as usize).and_then(known) {
            return Some(known);
        }
        let relation = &self.change.relation;
        let wanted = |position: usize| {
            let column = relation.columns.get(position);
            column.is_some_and(|column| columns.iter().any(|name| **name == *column.name))
        };
        let image: Arc<str> = image::of(relation, self.row_of(version)?, wanted).into();
        let images = self.images.get_mut(version as usize)?;
        images.insert(columns.to_vec(), Arc::clone(&image));
        Some(image)
    }
}

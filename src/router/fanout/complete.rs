//! A change is completed before anything looks at it, where the stream does not carry all of it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use super::{Fanout, Watched};
use crate::change::Change;
use crate::log::{Entry, Offset};
use crate::pg::Oid;
use crate::policy::catalog::Catalog;
use crate::router::layout::{Layout, Supplement};

/// What was computed ahead for the changes of one entry of the log.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    by_offset: HashMap<Offset, Supplement>,
    /// The versions of relations of which it has all changes up to the entry's end.
    versions: HashMap<u64, Arc<Layout>>,
}

impl Fanout {
    /// The change with generated columns and the true identity of old rows. What is computed is
    /// computed for all changes at once that follow in `entry` under the same description.
    pub(super) async fn complete<'change>(
        &mut self,
        entry: &Entry,
        offset: Offset,
        change: &'change Change,
        ahead: &mut Ahead,
    ) -> Cow<'change, Change> {
        let Some(watched) = self.tables.get(&change.relation.oid) else {
            return Cow::Borrowed(change);
        };
        // What does not fit is hidden whatever is in it.
        let Some(layout) = watched.layout.as_ref().filter(|_| watched.fits) else {
            return Cow::Borrowed(change);
        };
        let layout = Arc::clone(layout);
        let known = ahead.versions.get(&change.relation.version);
        if let Some(query) = layout.query()
            && !known.is_some_and(|known| Arc::ptr_eq(known, &layout))
        {
            let roles = computing_roles(&self.catalog, watched);
            let max_bytes = self.settings.max_record_bytes;
            let (mut texts, mut images) = (Vec::new(), Vec::new());
            for (other, sibling) in entry.changes() {
                if other < offset || sibling.relation.version != change.relation.version {
                    continue;
                }
                let [new, old] = layout.images(sibling, max_bytes);
                for (image, is_new) in [(new, true), (old, false)] {
                    if let Some(mut image) = image {
                        texts.push(std::mem::take(&mut image.json));
                        images.push((image, other, is_new));
                    }
                }
            }
            let values = self.computer.compute(query, &roles, &texts).await;
            for ((image, owner, is_new), values) in images.into_iter().zip(values) {
                let cells = values.map(|values| image.known(values)).unwrap_or_default();
                let supplement = ahead.by_offset.entry(owner).or_default();
                if is_new {
                    supplement.new = cells;
                } else {
                    supplement.old = cells;
                }
            }
            ahead
                .versions
                .insert(change.relation.version, Arc::clone(&layout));
        }
        let supplement = ahead.by_offset.remove(&offset).unwrap_or_default();
        Cow::Owned(layout.complete(change, supplement))
    }
}

/// Under which roles something may be computed for the watchers of a table: first their own.
fn computing_roles(catalog: &Catalog, watched: &Watched) -> Vec<String> {
    let mut roles: Vec<(bool, Oid, &String)> = catalog
        .roles
        .values()
        .filter(|role| role.settable && !role.bypass)
        .map(|role| {
            let watching = watched.groups.contains_key(role.name.as_str());
            (!watching, role.oid, &role.name)
        })
        .collect();
    roles.sort_unstable();
    roles.into_iter().map(|(_, _, name)| name.clone()).collect()
}

//! Old rows that the relay keeps itself: what is kept, and what each change found of it before it is
//! handed out.

use std::collections::{HashMap, HashSet};
use std::future::pending;
use std::sync::Arc;

use tokio::time::Instant;
use tracing::warn;

use super::Live;
use super::lookups::PATIENCE;
use crate::log::{Entry, Offset};
use crate::lookup::Wanted;
use crate::lookup::keep::{Event, Keeping, Status};
use crate::pg::Oid;
use crate::policy::catalog::Catalog;
use crate::router::old_rows::{Keeps, Mirrored, OldRowTables};

/// What the router's task knows of old rows.
pub(super) struct Remembering {
    keeping: Keeping,
    named: Vec<Mirrored>,
    /// By which catalog that was looked at.
    by: Option<Arc<Catalog>>,
    wanted: Vec<Wanted>,
    /// What stands against it, as it was said.
    said: Vec<String>,
    /// Since when there is one that is about to be mirrored.
    awaited_since: Option<Instant>,
    /// Of which tables all that is wanted is mirrored.
    complete: HashSet<Oid>,
}

impl Remembering {
    pub(super) fn new(keeping: Keeping, tables: OldRowTables) -> Self {
        Self {
            keeping,
            named: tables.0,
            by: None,
            wanted: Vec::new(),
            said: Vec::new(),
            awaited_since: None,
            complete: HashSet::new(),
        }
    }

    pub(super) const fn keeping(&mut self) -> &mut Keeping {
        &mut self.keeping
    }
}

/// Waits for the keeper, where there is one. Cancel safe.
pub(super) async fn next(old_rows: &mut Option<Remembering>) -> Event {
    match old_rows {
        Some(old_rows) => old_rows.keeping.next().await,
        None => pending().await,
    }
}

impl Live {
    /// Has the keeper mirror what the catalog in hand makes of the settings.
    pub(super) fn look_for_old_rows(&mut self) {
        let catalog = &self.fanout.catalog;
        let Some(old_rows) = &mut self.old_rows else {
            return;
        };
        let known = old_rows.by.as_ref();
        if known.is_some_and(|known| Arc::ptr_eq(known, catalog)) {
            return;
        }
        old_rows.by = Some(Arc::clone(catalog));
        let mut wanted = Vec::new();
        let mut said = Vec::new();
        for one in &old_rows.named {
            match one.keeps(catalog) {
                Keeps::Columns(columns) => wanted.push(columns),
                Keeps::Nothing => {}
                Keeps::Unknown(why) => {
                    if !old_rows.said.contains(&why) {
                        warn!(reason = why, "a table's old rows are not kept");
                    }
                    said.push(why);
                }
            }
        }
        old_rows.said = said;
        if old_rows.wanted != wanted {
            old_rows.keeping.want(&wanted);
            old_rows.wanted = wanted;
        }
        self.old_rows_changed();
    }

    /// Notes what the changes of the next entry found, before the first of them is handed out.
    pub(super) fn note_old_rows(&mut self, entry: &Entry) {
        let Some(old_rows) = &mut self.old_rows else {
            return;
        };
        let found = old_rows.keeping.pass(entry);
        if let Some(rows) = &self.fanout.old_rows {
            rows.note(found);
        }
        self.old_rows_changed();
    }

    /// Goes over to the mirrors that the keeper has now.
    pub(super) fn old_rows_changed(&mut self) {
        let (Some(old_rows), Some(rows)) = (&mut self.old_rows, &self.fanout.old_rows) else {
            return;
        };
        rows.note(old_rows.keeping.take_found());
        let mut wanted = old_rows.wanted.iter();
        old_rows.awaited_since = if wanted.any(|one| old_rows.keeping.is_coming(one.table)) {
            old_rows.awaited_since.or_else(|| Some(Instant::now()))
        } else {
            None
        };
        let now: HashMap<Oid, _> = old_rows.keeping.mirrored().collect();
        let has_all = |wanted: &&Wanted| {
            let columns = now.get(&wanted.table);
            columns.is_some_and(|columns| wanted.columns.iter().all(|one| columns.contains(one)))
        };
        let complete: HashSet<Oid> = old_rows
            .wanted
            .iter()
            .filter(has_all)
            .map(|wanted| wanted.table)
            .collect();
        rows.mirrors(now, &complete);
        if complete == old_rows.complete {
            return;
        }
        let before = std::mem::replace(&mut old_rows.complete, complete);
        let lost: Vec<Oid> = before.difference(&old_rows.complete).copied().collect();
        for table in lost {
            self.fanout.lose_old_rows(table);
        }
    }

    /// Whether there are mirrors that are about to be made, and may be waited for.
    pub(super) fn awaits_old_rows(&self) -> bool {
        let since = self.old_rows.as_ref().and_then(|one| one.awaited_since);
        since.is_some_and(|since| since.elapsed() < PATIENCE)
    }

    /// Of these tables those whose mirrors are about to be made.
    pub(super) fn awaited_old_rows(&self, tables: impl Iterator<Item = Oid>) -> Vec<Oid> {
        let Some(old_rows) = self.old_rows.as_ref().filter(|_| self.awaits_old_rows()) else {
            return Vec::new();
        };
        tables
            .filter(|table| old_rows.keeping.is_coming(*table))
            .collect()
    }

    /// What is known of each table whose old rows are kept.
    pub(super) fn old_row_status(&self) -> Vec<Status> {
        let old_rows = self.old_rows.as_ref();
        old_rows.map_or_else(Vec::new, |old_rows| old_rows.keeping.status())
    }

    /// What was kept is of another history, or has a gap before this place.
    pub(super) fn lose_all_old_rows(&mut self, place: Offset) {
        if let Some(old_rows) = &mut self.old_rows {
            old_rows.keeping.lost(place);
        }
        if let Some(rows) = &self.fanout.old_rows {
            rows.forget();
        }
        self.old_rows_changed();
    }

    pub(super) async fn stop_old_rows(&mut self) {
        if let Some(old_rows) = &mut self.old_rows {
            old_rows.keeping.stop().await;
        }
    }
}

//! Since when the rules are what they are: what was missed is judged by today's rules, which is
//! right only where they were the same then.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::Resync;
use crate::log::sealed::{self, Content};
use crate::log::{Epoch, Holder};
use crate::pg::{Lsn, Oid};
use crate::policy::catalog::{Catalog, Elsewhere};
use crate::policy::fingerprint::Written;
use crate::subscription::Wanted;

/// For each table and role, since where in the write-ahead log its rules hold. Shared by all who
/// judge, and kept in a file beside a log that outlives the process.
#[derive(Debug)]
pub(super) struct AccessHistory {
    known: Mutex<Known>,
    file: Option<PathBuf>,
}

/// What stands in the file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    /// The history of the log whose places these are.
    epoch: u64,
    /// Nobody could have subscribed to what committed up to here.
    began: u64,
    /// Where the newest catalog was read.
    read_at: u64,
    tables: HashMap<u32, HashMap<String, Rules>>,
    /// Who wrote them, and what they look into.
    #[serde(default)]
    written: HashMap<u32, Written>,
    /// Who wrote what counts for all of them.
    #[serde(default)]
    elsewhere: Elsewhere,
}

/// The rules of one table for one role.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    fingerprint: u64,
    /// Whatever committed behind this place fell under them.
    since: u64,
    /// Where the catalog was read that they first stood in.
    #[serde(default)]
    changed_in: u64,
}

impl AccessHistory {
    /// What `file` says of the log's history `epoch`, brought up to `catalog`. Without a file, or
    /// where it tells of another history or was damaged, the rules hold since the catalog was read;
    /// so does the history, if it `is_new`: otherwise there are cursors of before.
    pub(super) fn open(
        file: Option<PathBuf>,
        epoch: Epoch,
        is_new: bool,
        catalog: &Catalog,
    ) -> Self {
        let known = file.as_deref().and_then(|file| read(file, epoch));
        let history = Self {
            known: Mutex::new(known.unwrap_or_else(|| Known {
                epoch: epoch.0,
                began: if is_new { catalog.read_at.0 } else { 0 },
                ..Known::default()
            })),
            file,
        };
        // What it said in between nobody knows.
        let anew = history.lock().elsewhere.is_anew_in(&catalog.elsewhere);
        history.note(catalog, catalog.read_at, false);
        if anew {
            let tables: Vec<Oid> = catalog.fingerprints().keys().copied().collect();
            history.observe_gap(catalog, &tables);
        }
        history
    }

    /// Since where all roles have the rules of a table that they have, by table.
    pub(super) fn since(&self) -> HashMap<Oid, Lsn> {
        let known = self.lock();
        let since = known.tables.iter().filter_map(|(table, rules)| {
            let since = rules.values().map(|rules| rules.since).max()?;
            Some((Oid(*table), Lsn(since)))
        });
        since.collect()
    }

    /// Takes note of a catalog that somebody is about to judge by what commits behind `since`.
    pub(super) fn observe(&self, catalog: &Catalog, since: Lsn) {
        self.note(catalog, since, catalog.marked);
    }

    /// The same; `seen` is whether every change since the one before was.
    fn note(&self, catalog: &Catalog, since: Lsn, seen: bool) {
        let mut known = self.lock();
        // Another has seen a newer one meanwhile.
        if catalog.read_at.0 < known.read_at {
            return;
        }
        known.read_at = catalog.read_at.0;
        let mut changed = false;
        let mut written = HashMap::new();
        for (table, fingerprints) in catalog.fingerprints() {
            let mut anew = false;
            for (oid, now) in &fingerprints.written {
                let before = known.written.get(&oid.0);
                anew |= before.is_some_and(|before| before.is_anew_in(now, oid == table));
                written.entry(oid.0).or_insert_with(|| Written::clone(now));
            }
            anew &= !seen;
            let pairs = known.tables.entry(table.0).or_default();
            for (role, fingerprint) in &fingerprints.roles {
                let fingerprint = *fingerprint;
                let same = |rules: &Rules| rules.fingerprint == fingerprint && !anew;
                if !pairs.get(role).is_some_and(same) {
                    let rules = Rules {
                        fingerprint,
                        since: since.0,
                        changed_in: catalog.read_at.0,
                    };
                    pairs.insert(role.clone(), rules);
                    changed = true;
                }
            }
        }
        let published = |oid: &u32| {
            let table = catalog.tables.get(&Oid(*oid));
            table.is_some_and(|table| table.published)
        };
        // What is published again later was not in the log meanwhile.
        let before = known.tables.len();
        known.tables.retain(|oid, _| published(oid));
        changed |= known.written != written || known.elsewhere != catalog.elsewhere;
        known.written = written;
        known.elsewhere.clone_from(&catalog.elsewhere);
        if changed || known.tables.len() != before {
            self.write(&known);
        }
    }

    /// Takes note that the rules of these tables were others for a while, or may have been, and that nobody
    /// knows which: what committed up to where this catalog was read is not judged by those of now.
    pub(super) fn observe_gap(&self, catalog: &Catalog, tables: &[Oid]) {
        if tables.is_empty() {
            return;
        }
        let mut known = self.lock();
        for table in tables {
            let rules = known.tables.get_mut(&table.0).into_iter();
            for rules in rules.flat_map(HashMap::values_mut) {
                rules.since = rules.since.max(catalog.read_at.0);
            }
        }
        self.write(&known);
    }

    /// Notes that the log begins a new history, of changes that commit behind `from`.
    pub(super) fn begin(&self, epoch: Epoch, from: Lsn, catalog: &Catalog) {
        {
            let mut known = self.lock();
            *known = Known {
                epoch: epoch.0,
                began: from.0,
                ..Known::default()
            };
        }
        self.observe(catalog, catalog.read_at);
    }

    /// Nobody could have subscribed to what committed up to here.
    pub(super) fn began(&self) -> Lsn {
        Lsn(self.lock().began)
    }

    /// Where the newest catalog was read in which one of these tables first had the rules that it has
    /// for a role. Whoever was told something under an older one has not been told of that.
    pub(super) fn changed_in(&self, tables: &[Oid], role: &str) -> Lsn {
        let known = self.lock();
        let rules = tables.iter().filter_map(|table| {
            let rules = known.tables.get(&table.0)?.get(role)?;
            Some(rules.changed_in)
        });
        Lsn(rules.max().unwrap_or(0))
    }

    /// Why what commits at or behind `from` must not be judged by today's rules, if it must not: as
    /// somebody has it who has it from before, or has read the tables under the rules at `read_at`.
    pub(super) fn changed_after(
        &self,
        table: Oid,
        role: &str,
        from: Lsn,
        read_at: Option<Lsn>,
    ) -> Option<Resync> {
        let known = self.lock();
        let rules = known.tables.get(&table.0).and_then(|pairs| pairs.get(role));
        let since = rules.map(|rules| rules.since);
        let read_at = read_at.map_or(known.began, |read_at| read_at.0.max(known.began));
        let good = since.is_some_and(|since| since < from.0 || since <= read_at);
        (!good).then_some(Resync::AccessChanged)
    }

    fn write(&self, known: &Known) {
        let Some(file) = &self.file else {
            return;
        };
        let replaced = serde_json::to_string(known)
            .map_err(std::io::Error::from)
            .and_then(|text| sealed::replace(file, &text));
        if let Err(error) = replaced {
            warn!(file = %file.display(), %error, "cannot note since when the rules hold");
            // An older one would let rules that are what they were once pass for never changed. Without
            // one the next process takes all for changed; that needs no room on the disk.
            match std::fs::remove_file(file) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => warn!(file = %file.display(), %error, "cannot take it away either"),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // No code under this lock panics half-way through a change.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether one of these has a cursor that was given under older rules than those that `holder` falls
/// under, as far as it says, and has not read since: nobody has told it then what they show of rows
/// that did not change.
pub(super) fn untold(wanted: &[Wanted], holder: Holder) -> bool {
    let mut starts = wanted.iter().map(|wish| &wish.start);
    starts.any(|start| {
        let known = start.since.and_then(|_| start.knows_rules());
        known.is_some_and(|known| Some(known) < holder.rules)
    })
}

fn read(file: &Path, epoch: Epoch) -> Option<Known> {
    let content = sealed::read(file).map_err(|error| error.to_string());
    let known = content.and_then(|content| match content {
        None => Ok(None),
        Some(Content::Whole(text)) => match serde_json::from_str::<Known>(&text) {
            Ok(known) => Ok(Some(known)),
            Err(error) => Err(error.to_string()),
        },
        Some(Content::Damaged | Content::Unsealed(_)) => Err("it is damaged".to_owned()),
    });
    match known {
        Ok(known) => known.filter(|known| known.epoch == epoch.0),
        Err(reason) => {
            warn!(file = %file.display(), reason, "since when the rules hold is not known");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_noted_leaves_no_older_note_behind() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("access.json");
        let history = AccessHistory {
            known: Mutex::default(),
            file: Some(file.clone()),
        };
        history.write(&Known::default());
        assert!(read(&file, Epoch(0)).is_some());
        // It is written beside and takes the other's place.
        std::fs::create_dir(folder.path().join("access.json.new")).unwrap();
        history.write(&Known::default());
        assert!(!file.exists());
        std::fs::remove_dir(folder.path().join("access.json.new")).unwrap();
        history.write(&Known::default());
        assert!(read(&file, Epoch(0)).is_some());
    }
}

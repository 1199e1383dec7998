//! What is set for the database, its server and the relay's login, and so for the relay's sessions.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::{Database, Document};
use crate::pg::Oid;

/// The settings that no session of any role has, and that no function makes: they are absent
/// whoever asks.
pub(super) fn unset(document: &Document) -> Vec<String> {
    if document
        .functions
        .iter()
        .any(|function| function.source.contains("set_config"))
    {
        return Vec::new();
    }
    let rows = document.database.settings.iter();
    let set = rows.flat_map(|(_, _, settings)| settings.iter().flatten());
    let own = document
        .functions
        .iter()
        .flat_map(|function| function.config.iter().flatten());
    let name = |setting: &String| setting.split('=').next().unwrap_or_default().to_lowercase();
    let set: BTreeSet<String> = set.chain(own).map(name).collect();
    let unset = document.database.unset.iter();
    unset.filter(|name| !set.contains(*name)).cloned().collect()
}

/// Hashes of what is set for the relay's sessions, and of what of it has a name of its own.
pub(super) fn hashes(document: &Document) -> (u64, u64) {
    let Database { oid, login, .. } = document.database;
    let rows = document.database.settings.iter();
    let rows =
        rows.filter(|(of, role, _)| [Oid(0), oid].contains(of) && [Oid(0), login].contains(role));
    let (mut all, mut own) = (DefaultHasher::new(), DefaultHasher::new());
    let mut any = false;
    for (of, role, settings) in rows {
        (of.0, role.0, settings).hash(&mut all);
        let settings = settings.iter().flatten();
        let name = |setting: &String| setting.split('=').next().unwrap_or_default().contains('.');
        let custom: Vec<&String> = settings.filter(|setting| name(setting)).collect();
        if !custom.is_empty() {
            any = true;
            (of.0, role.0, custom).hash(&mut own);
        }
    }
    (all.finish(), if any { own.finish() } else { 0 })
}

/// The search path of the relay's sessions, from what is set for its login here, for it everywhere,
/// for the database, and for the server. Becoming a role changes nothing of it: what is set for that
/// role counts where it logs in itself.
pub(super) fn path(document: &Document) -> Option<Arc<str>> {
    let (here, everywhere) = (document.database.oid, Oid(0));
    let login = document.database.login;
    let set = |database: Oid, role: Oid| {
        let rows = document.database.settings.iter();
        let rows = rows.filter(move |row| (row.0, row.1) == (database, role));
        let mut all = rows.flat_map(|row| row.2.iter().flatten());
        all.find_map(|setting| setting.strip_prefix("search_path="))
    };
    let path = set(here, login)
        .or_else(|| set(everywhere, login))
        .or_else(|| set(here, everywhere))
        .or_else(|| set(everywhere, everywhere))
        .or(document.database.search_path.as_deref());
    path.map(Arc::from)
}

//! Whether two catalogs decide alike about a table, as a number for each role; and who wrote what decides.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::catalog::{Catalog, Elsewhere, Table};
use super::closure::{functions, judged, partitioned};
use crate::pg::Oid;

/// What decides about one published table.
#[derive(Debug)]
pub struct Fingerprints {
    /// For each role of the catalog all that decides which rows it sees, and what the table's columns are:
    /// one that was written anew may have other values.
    pub roles: Vec<(String, u64)>,
    /// Who wrote the table, those that it is a partition of and those that policies of theirs look into.
    pub written: Vec<(Oid, Arc<Written>)>,
}

impl Catalog {
    /// Of all published tables. They are worked out when they are first needed, which takes a while with
    /// thousands of tables, and kept.
    #[must_use]
    pub fn fingerprints(&self) -> &HashMap<Oid, Fingerprints> {
        self.fingerprints.get_or_init(|| {
            let published = self.tables.values().filter(|table| table.published);
            let mut written = HashMap::new();
            let of = |table: &Arc<Table>| (table.oid, Fingerprints::of(self, table, &mut written));
            published.map(of).collect()
        })
    }
}

impl Fingerprints {
    /// Whether one of the tables that decide about `table` was written since another catalog, and says the same
    /// as there.
    #[must_use]
    pub fn was_else_since(&self, before: &Self, table: Oid) -> bool {
        self.written.iter().any(|(oid, now)| {
            let mut known = before.written.iter().filter(|(known, _)| known == oid);
            known.any(|(_, before)| before.is_anew_in(now, *oid == table))
        })
    }

    fn of(catalog: &Catalog, table: &Table, known: &mut HashMap<Oid, Arc<Written>>) -> Self {
        let mut deciding = Deciding::of(catalog, table);
        let is_judged = |table: &Table| table.row_security || !table.rules.is_empty();
        if partitioned(catalog, table).any(is_judged) {
            table.column_versions.hash(&mut deciding.alike);
        }
        let roles = table.rights.iter().map(|rights| {
            let number = deciding.by(catalog, &rights.role);
            (rights.role.clone(), number)
        });
        let written = deciding.tables.iter().map(|table| {
            let written = known.entry(table.oid);
            let written = written.or_insert_with(|| Arc::new(Written::of(table)));
            (table.oid, Arc::clone(written))
        });
        Self {
            roles: roles.collect(),
            written: written.collect(),
        }
    }
}

/// Everything that decides for this role and table, and the table's columns, as one number.
pub(super) fn fingerprint(catalog: &Catalog, table: &Table, role: &str) -> u64 {
    Deciding::of(catalog, table).by(catalog, role)
}

/// What decides about a table.
struct Deciding<'c> {
    /// The tables that do.
    tables: Vec<&'c Table>,
    /// Whose rights count, whoever asks.
    owners: BTreeSet<&'c str>,
    /// What is the same for all roles.
    alike: DefaultHasher,
}

impl<'c> Deciding<'c> {
    fn of(catalog: &'c Catalog, table: &'c Table) -> Self {
        let tables: Vec<&Table> = judged(catalog, table).collect();
        let functions = functions(catalog, table);
        let mut alike = DefaultHasher::new();
        for table in &tables {
            hash(catalog, table, &mut alike);
        }
        for function in &functions {
            format!("{function:?}").hash(&mut alike);
        }
        // Inside SECURITY DEFINER functions and views it is their owners' rights that count.
        let definers = functions.iter().filter(|function| function.definer);
        let definers = definers.map(|function| function.owner);
        let views = tables.iter().filter_map(|table| table.view.as_ref());
        let owners = definers.chain(views.map(|view| view.owner));
        let owners = owners.filter_map(|owner| catalog.role(owner));
        Self {
            owners: owners.map(|owner| owner.name.as_str()).collect(),
            alike,
            tables,
        }
    }

    /// With what decides for one role.
    fn by(&self, catalog: &Catalog, role: &str) -> u64 {
        let mut hasher = self.alike.clone();
        let mut acting = self.owners.clone();
        acting.insert(role);
        for table in &self.tables {
            let rights = table.rights.iter();
            for rights in rights.filter(|rights| acting.contains(rights.role.as_str())) {
                format!("{rights:?}").hash(&mut hasher);
            }
        }
        for name in acting {
            let known = catalog.roles.get(name);
            format!("{:?}", (known, &catalog.path)).hash(&mut hasher);
        }
        (role, catalog.request_settings, catalog.own_settings).hash(&mut hasher);
        hasher.finish()
    }
}

/// What a table and the types of its columns are.
fn hash(catalog: &Catalog, table: &Table, hasher: &mut DefaultHasher) {
    format!(
        "{:?}",
        (
            &table.schema,
            &table.name,
            (table.published, &table.unfollowed, &table.view),
            (
                table.row_security,
                table.force_row_security,
                &table.ancestors
            ),
            (
                &table.columns,
                &table.key,
                &table.identity,
                (&table.published_columns, &table.publishing)
            ),
            (&table.policies, &table.rules),
        )
    )
    .hash(hasher);
    let columns = table.columns.iter().map(|column| column.type_oid);
    for oid in columns {
        // Of a domain also what it is over: an enum's labels are there.
        let base = catalog.base_type(oid);
        let own = |of: Oid| of == oid || base.is_some_and(|base| base.oid == of);
        let cast = catalog.casts.iter().any(|of| own(*of));
        let operators = catalog.operators.iter().filter(|(of, ..)| own(*of));
        let operators: Vec<_> = operators.collect();
        format!("{:?}", (catalog.types.get(&oid), base, cast, operators)).hash(hasher);
    }
}

/// Whether any that was there before was written since.
fn anew<K: Ord>(was: &BTreeMap<K, Option<String>>, is: &BTreeMap<K, Option<String>>) -> bool {
    let mut both = is.iter().filter_map(|(key, by)| Some((was.get(key)?, by)));
    both.any(|(was, by)| was != by)
}

impl Elsewhere {
    /// Whether any of what both know was written in between, whatever it says now: for a while it may have said
    /// something else again.
    #[must_use]
    pub fn is_anew_in(&self, now: &Self) -> bool {
        anew(&self.memberships, &now.memberships)
            || anew(&self.labels, &now.labels)
            || anew(&self.schemas, &now.schemas)
            || anew(&self.views, &now.views)
            || anew(&self.settings, &now.settings)
    }
}

/// The transactions that wrote last what the catalog says of a table, and what that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// Of the table itself and its columns.
    table: Said,
    /// Who may read what of it.
    rights: u64,
    policies: Said,
}

/// What something says, and who wrote that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    by: String,
    says: u64,
}

impl Written {
    pub(super) fn of(table: &Table) -> Self {
        let secured = (table.row_security, table.force_row_security);
        let held = (&table.columns, &table.key, &table.identity);
        let published = (&table.published_columns, &table.publishing);
        let stored = (table.file, &table.leaves, &table.ancestors);
        let columns = table.column_versions.iter();
        let columns = columns.map(|(_, version)| version.as_str());
        // Not as PostgreSQL resolved them: older ones say where in a statement each word stood.
        let policies = table.policies.iter();
        let policies = policies.map(|one| (&one.name, one.permissive, &one.condition, one.checks));
        let policies: Vec<_> = policies.collect();
        let by = table.policy_versions.iter();
        let mut rights = DefaultHasher::new();
        format!("{:?}", table.rights).hash(&mut rights);
        Self {
            rights: rights.finish(),
            table: Said::new(
                columns.chain([table.version.as_str()]),
                &format!("{:?}", (secured, held, published, stored)),
            ),
            policies: Said::new(
                by.map(|(_, version)| version.as_str()),
                &format!("{policies:?}"),
            ),
        }
    }

    /// Whether somebody has written it since, though nothing of it is different. Of a table that is looked into
    /// (not `own`) rights explain nothing: where somebody was given some, another's may have been taken for a
    /// moment. Rows of the table itself are described anew where its rights change.
    #[must_use]
    pub fn is_anew_in(&self, now: &Self, own: bool) -> bool {
        self.is_table_anew_in(now, own) || self.policies.is_anew_in(&now.policies)
    }

    /// The same, without its policies.
    pub(super) fn is_table_anew_in(&self, now: &Self, own: bool) -> bool {
        self.table.is_anew_in(&now.table) && (!own || self.rights == now.rights)
    }
}

impl Said {
    fn new<'a>(by: impl Iterator<Item = &'a str>, says: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        says.hash(&mut hasher);
        let by: BTreeSet<&str> = by.collect();
        Self {
            by: by.into_iter().collect::<Vec<_>>().join(" "),
            says: hasher.finish(),
        }
    }

    fn is_anew_in(&self, now: &Self) -> bool {
        self.by != now.by && self.says == now.says
    }
}

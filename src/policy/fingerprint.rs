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
    /// Whether something that counts for many tables was written since another catalog, and says the same as
    /// there: for a while it may have said something else.
    #[must_use]
    pub fn was_else_since(&self, before: &Self) -> bool {
        let (was, is) = (&before.elsewhere, &self.elsewhere);
        anew(&was.memberships, &is.memberships).next().is_some() && self.roles_say_as(before)
            || anew(&was.labels, &is.labels).any(|oid| {
                let of = |catalog: &Self| catalog.types.get(&Oid(*oid)).map(Arc::clone);
                let says = |catalog| of(catalog).map(|of| of.labels.clone());
                says(self) == says(before)
            })
            || anew(&was.schemas, &is.schemas).any(|name| {
                let says = |catalog: &Self| format!("{:?}", catalog.schemas.get(name));
                says(self) == says(before)
            })
            || anew(&was.views, &is.views).any(|oid| {
                let table = |catalog: &Self| catalog.tables.get(&Oid(*oid)).map(Arc::clone);
                let says = |catalog| table(catalog).map(|table| format!("{:?}", table.view));
                says(self) == says(before)
            })
            || anew(&was.settings, &is.settings).next().is_some()
                && self.settings == before.settings
    }

    /// Whether the roles of both are members of the same, and have the same policies.
    fn roles_say_as(&self, before: &Self) -> bool {
        let known = |name: &str| self.roles.contains_key(name) && before.roles.contains_key(name);
        let says = |catalog: &Self| {
            let roles: BTreeMap<_, _> = catalog.roles.iter().collect();
            let roles = roles.into_iter().filter(|(name, _)| known(name));
            let roles = format!("{:?}", roles.collect::<Vec<_>>());
            let rights = catalog.tables.iter().flat_map(|(oid, table)| {
                let rights = table.rights.iter();
                let rights = rights.filter(|rights| known(&rights.role));
                rights.map(|rights| (*oid, format!("{rights:?}")))
            });
            (roles, rights.collect::<BTreeSet<_>>())
        };
        says(self) == says(before)
    }

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
    /// Whether one of the tables that decide was written since another catalog, and says the same as there.
    #[must_use]
    pub fn was_else_since(&self, before: &Self) -> bool {
        self.written.iter().any(|(oid, now)| {
            let mut known = before.written.iter().filter(|(known, _)| known == oid);
            known.any(|(_, before)| before.is_anew_in(now))
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

/// Which of these were written since, though they were there before.
fn anew<'a, K: Ord>(
    was: &'a BTreeMap<K, Option<String>>,
    is: &'a BTreeMap<K, Option<String>>,
) -> impl Iterator<Item = &'a K> {
    let changed = |(key, by): &(&K, &Option<String>)| was.get(key).is_some_and(|was| was != *by);
    is.iter().filter(changed).map(|(key, _)| key)
}

impl Elsewhere {
    /// Whether any of what both know was written in between.
    #[must_use]
    pub fn is_anew_in(&self, now: &Self) -> bool {
        anew(&self.memberships, &now.memberships).next().is_some()
            || anew(&self.labels, &now.labels).next().is_some()
            || anew(&self.schemas, &now.schemas).next().is_some()
            || anew(&self.views, &now.views).next().is_some()
            || anew(&self.settings, &now.settings).next().is_some()
    }
}

/// The transactions that wrote last what the catalog says of a table, and what that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// Of the table itself and its columns.
    pub(super) table: Said,
    policies: Said,
}

/// What something says, and who wrote that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Said {
    by: String,
    says: u64,
}

impl Written {
    pub(super) fn of(table: &Table) -> Self {
        let secured = (table.row_security, table.force_row_security, &table.rights);
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
        Self {
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

    /// Whether somebody has written it since, though nothing of it is different.
    #[must_use]
    pub fn is_anew_in(&self, now: &Self) -> bool {
        self.table.is_anew_in(&now.table) || self.policies.is_anew_in(&now.policies)
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

    pub(super) fn is_anew_in(&self, now: &Self) -> bool {
        self.by != now.by && self.says == now.says
    }
}

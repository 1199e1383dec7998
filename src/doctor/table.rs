//! The tables: who may see something of each, and what stands in the way.

mod helpers;

mod settings;

mod sight;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio_postgres::Client;

use super::identity::Lacking;
use super::names::Names;
use super::old_rows::Kept;
use super::publication::Listed;
use super::server::Facts;
use super::token::{self, Holder};
use super::{Finding, Severity};
use crate::config::{Config, DeleteWithoutIdentity};
use crate::lookup::Wanted;
use crate::pg::{Oid, quote_identifier};
use crate::policy::access::{Access, Rules};
use crate::policy::catalog::{Catalog, Function, Table};

/// A function as SQL names it.
#[derive(Debug)]
pub(super) struct Named {
    /// With its schema and its arguments' types.
    signature: String,
    schema: String,
}

/// The functions that policies call, by number.
pub(super) async fn functions(
    client: &Client,
    catalog: &Catalog,
) -> Result<BTreeMap<Oid, Named>, tokio_postgres::Error> {
    let oids: Vec<u32> = catalog.functions.keys().map(|oid| oid.0).collect();
    let rows = client
        .query(
            "select p.oid, p.oid::pg_catalog.regprocedure::pg_catalog.text, n.nspname::pg_catalog.text \
               from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace \
              where p.oid = any ($1)",
            &[&oids],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let named = Named {
                signature: row.try_get(1)?,
                schema: row.try_get(2)?,
            };
            Ok((Oid(row.try_get(0)?), named))
        })
        .collect()
}

/// A table, and what each role may see of it.
pub(super) struct Seen<'c> {
    pub(super) table: &'c Table,
    /// Whether it was named.
    named: bool,
    /// By role, without those that row-level security does not hold for.
    pub(super) accesses: Vec<(&'c str, Access)>,
}

/// All tables that are examined.
pub(super) struct Tables<'c> {
    catalog: &'c Catalog,
    config: &'c Config,
    holder: Option<&'c Holder>,
    facts: &'c Facts,
    pub(super) names: &'c Names,
    /// What the relay itself keeps of old rows.
    kept: &'c Kept,
    pub(super) seen: Vec<Seen<'c>>,
}

impl<'c> Tables<'c> {
    pub(super) fn new(
        catalog: &'c Catalog,
        config: &'c Config,
        holder: Option<&'c Holder>,
        (facts, names): (&'c Facts, &'c Names),
        kept: &'c Kept,
    ) -> Self {
        Self {
            catalog,
            config,
            holder,
            facts,
            names,
            kept,
            seen: Vec::new(),
        }
    }

    pub(super) fn examine(&mut self, table: &'c Arc<Table>, named: bool) {
        let roles = self.catalog.roles.values().filter(|role| !role.bypass);
        let mut accesses: Vec<_> = roles
            .map(|role| {
                (
                    role.name.as_str(),
                    Access::new(self.catalog, table, &role.name),
                )
            })
            .collect();
        accesses.sort_by_key(|(role, _)| *role);
        self.seen.push(Seen {
            table,
            named,
            accesses,
        });
    }

    /// The role whose clients matter first: the token's, else that of tokens without a role.
    pub(super) fn focus(&self) -> &str {
        self.holder
            .map_or(self.config.default_role.as_str(), |holder| &holder.role)
    }

    /// The role of the token.
    pub(super) fn holds(&self) -> Option<&str> {
        self.holder.map(|holder| holder.role.as_str())
    }

    /// What compiled policies read of other tables.
    pub(super) fn wanted(&self) -> Vec<Wanted> {
        let mut all: BTreeMap<Oid, Wanted> = BTreeMap::new();
        let accesses = self.seen.iter().flat_map(|seen| &seen.accesses);
        // What is refused as a whole looks into nothing yet.
        let accesses = accesses.filter(|(_, access)| !access.hides_all);
        for wanted in accesses.flat_map(|(_, access)| &access.lookups) {
            all.entry(wanted.table)
                .and_modify(|known| known.merge(wanted))
                .or_insert_with(|| wanted.clone());
        }
        all.into_values().collect()
    }

    pub(super) fn findings(
        &self,
        functions: &BTreeMap<Oid, Named>,
        listed: &Listed,
        lacking: &mut Lacking<'c>,
    ) -> Vec<Finding> {
        let mut found = Vec::new();
        for seen in &self.seen {
            self.security(seen, &mut found);
            self.unset(seen, &mut found);
            // Who subscribes to the partitioned table needs no right on its partitions, which would
            // show rows past its policies.
            if seen.named || seen.table.ancestors.is_empty() {
                self.sight(seen, (functions, listed), &mut found);
            }
            self.old_rows(seen, (listed, lacking), &mut found);
            self.token(seen, &mut found);
            self.raising(seen, functions, &mut found);
        }
        self.helpers(functions, &mut found);
        found
    }

    /// Row-level security that is off.
    fn security(&self, seen: &Seen<'c>, found: &mut Vec<Finding>) {
        let table = seen.table;
        let mut ancestors = table
            .ancestors
            .iter()
            .filter_map(|oid| self.catalog.tables.get(oid));
        let secured = table.row_security || ancestors.any(|one| one.row_security);
        let name = self.names.of(table);
        if secured {
            let owners = seen.accesses.iter().filter(|_| table.row_security);
            let owners = owners.filter(|(_, access)| matches!(access.rules, Rules::Everything));
            found.extend(owners.map(|(role, _)| {
                Finding::warning(
                    "rls_owner",
                    format!(
                        "policies of {name} do not hold for {role}, which owns it or has its owner's \
                         rights: its clients see every row"
                    ),
                )
                .table(name.as_str())
                .role(*role)
                .sql(format!("alter table {name} force row level security"))
                .advice("Leave it where they are to see all.")
            }));
            return;
        }
        let enable = format!("alter table {name} enable row level security");
        if !table.policies.is_empty() {
            let names: Vec<&str> = table.policies.iter().map(|one| one.name.as_str()).collect();
            found.push(
                Finding::error(
                    "rls_off_policies",
                    format!(
                        "{name} has policies ({}) and row-level security is off: they do nothing, and \
                         every role that may SELECT from it sees every row",
                        names.join(", ")
                    ),
                )
                .table(name)
                .sql(enable),
            );
            return;
        }
        let lacking = |role: &str| self.config.require.lacks(table, role);
        let (kept, all): (Vec<_>, Vec<_>) = seen
            .accesses
            .iter()
            .partition(|(role, _)| lacking(role).is_some());
        let readers: Vec<&str> = all
            .iter()
            .filter(|(_, access)| matches!(access.rules, Rules::Everything))
            .map(|(role, _)| *role)
            .collect();
        // One that row-level security does not hold for is not among them.
        let nobody = lacking(self.focus()).filter(|_| all.is_empty());
        if let Some((first, _)) = kept.first().filter(|_| nobody.is_none()) {
            let roles: Vec<&str> = kept.iter().map(|(role, _)| *role).collect();
            found.push(
                Finding::warning(
                    "rls_off",
                    format!(
                        "{}: clients of {} cannot subscribe to it",
                        lacking(first).unwrap_or_default(),
                        roles.join(", ")
                    ),
                )
                .table(name.as_str())
                .advice("Write a rule for them, where they are to see some of it."),
            );
        }
        if let Some(why) = nobody {
            found.push(
                Finding::error("rls_off", format!("{why}: nobody can subscribe to it"))
                    .table(name)
                    .sql(enable)
                    .sql(policy_sql(table, self.names, self.focus()))
                    .advice("Or set require = \"none\"."),
            );
        } else if !readers.is_empty() {
            found.push(
                Finding::warning(
                    "rls_off",
                    format!(
                        "{name} has no row-level security: every client of {} sees every row",
                        readers.join(", ")
                    ),
                )
                .table(name)
                .sql(enable)
                .sql(policy_sql(table, self.names, self.focus()))
                .advice("Leave it where everybody is to see all; require hides such tables."),
            );
        }
    }

    /// The table itself and those whose partition it is.
    fn judged<'t>(&'t self, table: &'t Table) -> impl Iterator<Item = &'t Table> {
        let ancestors = table
            .ancestors
            .iter()
            .filter_map(|oid| self.catalog.tables.get(oid));
        std::iter::once(table).chain(ancestors.map(Arc::as_ref))
    }

    /// The functions that policies of a table call, and of the tables that these look into.
    fn called(&self, table: &Table) -> impl Iterator<Item = &'c Function> {
        let mut tables: Vec<&Table> = self.judged(table).collect();
        tables.extend(self.looked_into(table));
        let policies = tables.into_iter().flat_map(|one| &one.policies);
        let depends = policies.flat_map(|policy| &policy.depends);
        let oids: BTreeSet<Oid> = depends
            .filter(|(class, ..)| *class == Oid::PG_PROC)
            .map(|(_, oid, _)| *oid)
            .collect();
        let catalog = self.catalog;
        oids.into_iter()
            .filter_map(|oid| catalog.functions.get(&oid))
    }

    /// The tables that policies of a table look into, and those of these.
    fn looked_into<'t>(&'t self, table: &'t Table) -> Vec<&'t Table> {
        let (mut found, mut open): (Vec<&Table>, Vec<&Table>) =
            (Vec::new(), self.judged(table).collect());
        while let Some(one) = open.pop() {
            let depends = one.policies.iter().flat_map(|policy| &policy.depends);
            for (_, oid, _) in depends.filter(|(class, ..)| *class == Oid::PG_CLASS) {
                let Some(other) = self.catalog.tables.get(oid) else {
                    continue;
                };
                let known = found.iter().any(|known| known.oid == *oid);
                if *oid != table.oid && !known {
                    found.push(other);
                    open.push(other);
                }
            }
        }
        found.sort_by_key(|one| one.oid);
        found
    }

    /// Whether DELETEs carry what decides about them.
    fn old_rows(
        &self,
        seen: &Seen<'c>,
        (listed, lacking): (&Listed, &mut Lacking<'c>),
        found: &mut Vec<Finding>,
    ) {
        let table = seen.table;
        let keys = self.config.delete_without_identity == DeleteWithoutIdentity::Key;
        if !self.catalog.deletes || keys || listed.is_unidentified(table.oid) {
            return;
        }
        let reads: BTreeSet<&str> = seen
            .accesses
            .iter()
            .filter(|(_, access)| !access.hides_all)
            .flat_map(|(_, access)| access.reads.iter().map(String::as_str))
            .filter(|name| {
                let mut kept = self.kept.get(&table.oid).into_iter();
                !kept.any(|kept| kept.columns.iter().any(|column| *column.name == **name))
            })
            .collect();
        let Some(text) = crate::router::undelivered_delete(table, reads.iter().copied()) else {
            return;
        };
        let text = text
            .split(". To have it")
            .next()
            .unwrap_or(&text)
            .to_owned();
        let name = self.names.of(table);
        lacking.add((table, &name), reads.into_iter());
        let mut finding = Finding::warning("identity_too_little", text).table(name.as_str());
        for leaf in listed.leaves(table.oid.0) {
            finding = finding.sql(format!("alter table {leaf} replica identity full"));
        }
        found.push(
            finding
                .sql(format!("alter table {name} replica identity full"))
                .advice(
                    "`rowcast setup --only identity` does it, and its --remove takes it back. \
                     Without a change to the database: name the table in old_rows, and the relay \
                     keeps in memory what policies read of its rows.",
                ),
        );
    }

    /// What the policies make of the token.
    fn token(&self, seen: &Seen<'c>, found: &mut Vec<Finding>) {
        let Some(holder) = self.holder else { return };
        let of_role = seen.accesses.iter().find(|(role, _)| *role == holder.role);
        let Some((_, access)) = of_role.filter(|(_, access)| !access.hides_all) else {
            return;
        };
        let Rules::Judged { predicates, .. } = &access.rules else {
            return;
        };
        let name = self.names.of(seen.table);
        let fails = |projection: &crate::policy::predicate::Projection| {
            projection.fails() && !projection.is_undecided()
        };
        let mut projections = predicates.iter().map(|one| one.project(&holder.principal));
        let mut claims: BTreeSet<String> = predicates.iter().flat_map(|one| one.claims()).collect();
        if projections.any(|one| fails(&one)) {
            found.push(token::raising(&name, holder.has_odd_subject()));
            return;
        }
        if access.asked_because.is_empty() {
            claims.retain(|claim| !claim.is_empty());
        }
        let missing = holder.lacks(&claims);
        let mut projected = predicates.iter();
        let never = projected.any(|one| one.is_never_for(&one.project(&holder.principal)));
        if !missing.is_empty() {
            found.push(token::lacking(&name, &missing));
        } else if never {
            // Not every token is to see something of every table.
            let severity = match seen.named {
                true => Severity::Error,
                false => Severity::Note,
            };
            found.push(token::blind(&name, &claims).of_severity(severity));
        }
    }
}

/// Columns that hold whose a row is, by what they are usually called.
const OWNERS: [&str; 9] = [
    "user_id",
    "owner",
    "owner_id",
    "person",
    "person_id",
    "created_by",
    "author_id",
    "profile_id",
    "account_id",
];

/// `uuid`
const UUID: Oid = Oid(2950);

/// A policy that shows people their own rows, where a column says whose they are; else a line that
/// has to be filled in.
fn policy_sql(table: &Table, names: &Names, role: &str) -> String {
    let name = names.of(table);
    let owner = OWNERS
        .iter()
        .find_map(|name| table.column(name).filter(|column| column.type_oid == UUID));
    let role = quote_identifier(role);
    let numbered = (2..).map(|number| format!("own rows {number}"));
    let mut free = std::iter::once("own rows".to_owned()).chain(numbered);
    let own = free.find(|own| !names.has_policy(table, own));
    let own = own.unwrap_or_default();
    match owner {
        Some(column) => format!(
            "create policy {} on {name} for select to {role} using ({} = (select auth.uid()))",
            quote_identifier(&own),
            quote_identifier(&column.name)
        ),
        None => {
            format!("-- create policy \"who sees what\" on {name} for select to {role} using (…)")
        }
    }
}

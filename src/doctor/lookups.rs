//! The tables that policies read: whether the relay can keep them in memory.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Client;

use super::Finding;
use super::names::Names;
use crate::config::Config;
use crate::lookup::Wanted;
use crate::lookup::keep::{self, Cause};
use crate::pg::{Oid, quote_identifier};
use crate::policy::catalog::{Catalog, Table};

pub(super) async fn findings(
    client: &Client,
    catalog: &Catalog,
    wanted: &[Wanted],
    (publication, config, login): (&str, &Config, &str),
    names: &Names,
) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let mut found: Vec<Finding> = catalog
        .tables
        .values()
        .filter(|table| table.lookup)
        .filter_map(|table| {
            let why = table.unfollowed.as_deref()?;
            let name = names.of(table);
            let finding = Finding::warning(
                "lookup_kind",
                format!(
                    "policies read {name}, which {why}: they are asked of PostgreSQL, row by row"
                ),
            )
            .table(name.as_str());
            Some(if why == "is unlogged" {
                finding.sql(format!("alter table {name} set logged"))
            } else {
                finding.advice("Let policies read a table that is in the log.")
            })
        })
        .collect();
    let lookups = quote_identifier(&config.lookup_publication());
    let mut exists = client
        .query_one(
            "select exists (select from pg_catalog.pg_publication where pubname = $1)",
            &[&config.lookup_publication()],
        )
        .await?
        .try_get::<_, bool>(0)?;
    let login = quote_identifier(login);
    let mut refused = unmirrored(client, wanted, (publication, config)).await?;
    // Findings are told by their tables' names: what makes the publication comes first.
    refused.sort_by(|(_, a, _), (_, b, _)| a.cmp(b));
    for (oid, name, refusal) in refused {
        let text = format!(
            "policies that read {name} are asked of PostgreSQL, row by row: {}",
            refusal.text
        );
        let (code, sql) = match refusal.cause {
            Cause::Privilege => (
                "lookup_privilege",
                rights(catalog, Some(oid), (&name, &login)),
            ),
            Cause::RowSecurity => (
                "lookup_row_security",
                shown(catalog.tables.get(&oid).map(Arc::as_ref), (&name, &login)),
            ),
            Cause::Publication if exists => (
                "lookup_unpublished",
                vec![format!("alter publication {lookups} add table {name}")],
            ),
            Cause::Publication => {
                // Those behind it are added to it.
                exists = true;
                let create = format!(
                    "create publication {lookups} for table {name} with (publish_via_partition_root = true)"
                );
                ("lookup_unpublished", vec![create])
            }
            Cause::Identity => ("lookup_identity", refusal.mend.to_vec()),
            Cause::Narrowed => ("lookup_narrowed", refusal.mend.to_vec()),
            Cause::Kind => ("lookup_kind", Vec::new()),
            _ => ("lookup_refused", Vec::new()),
        };
        let mut finding = Finding::warning(code, text).table(&*name);
        finding.sql = sql;
        found.push(finding.advice(
            "Where policies name the table themselves, `rowcast setup --lookups` under a \
                     login that owns it does all of it; where only functions read it, these \
                     statements do.",
        ));
    }
    Ok(found)
}

/// Why tables that policies look into cannot be mirrored, each with its name as in SQL.
pub(crate) async fn unmirrored(
    client: &Client,
    wanted: &[Wanted],
    (publication, config): (&str, &Config),
) -> Result<Vec<(Oid, Arc<str>, keep::Refusal)>, tokio_postgres::Error> {
    let settings = keep::Settings {
        purpose: keep::Purpose::Lookups,
        publication: publication.to_owned(),
        lookup_publication: config.lookup_publication(),
        max_bytes: config.max_lookup_bytes,
        look_every: Duration::MAX,
        checkpoint: None,
        checkpoint_every: Duration::MAX,
    };
    keep::examine(client, wanted, &settings).await
}

/// What lets a login read all of a table.
pub(super) fn rights(
    catalog: &Catalog,
    table: Option<Oid>,
    (name, login): (&str, &str),
) -> Vec<String> {
    let known = table.and_then(|oid| catalog.tables.get(&oid));
    let schema = known.map(|table| quote_identifier(&table.schema));
    let usage = schema.map(|schema| format!("grant usage on schema {schema} to {login}"));
    let past = known.filter(|table| table.row_security);
    usage
        .into_iter()
        .chain([format!("grant select on table {name} to {login}")])
        .chain(
            past.into_iter()
                .flat_map(|table| shown(Some(table), (name, login))),
        )
        .collect()
}

/// The policy by which the relay's login reads past row-level security on one table; one of that name
/// that is there already lets somebody else through.
pub(super) fn shown(table: Option<&Table>, (name, login): (&str, &str)) -> Vec<String> {
    let known = table.is_some_and(|table| {
        let mut policies = table.policies.iter();
        policies.any(|policy| policy.name == READS)
    });
    let policy = quote_identifier(READS);
    let make = format!("create policy {policy} on {name} for select to {login} using (true)");
    let add = format!("drop policy {policy} on {name}");
    known.then_some(add).into_iter().chain([make]).collect()
}

/// What that policy is called.
const READS: &str = "rowcast reads lookups";

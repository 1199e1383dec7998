//! The tables that policies read: whether the relay can keep them in memory.

use std::collections::HashMap;
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
    let mut kept: Vec<&Wanted> = wanted.iter().collect();
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
        kept.retain(|one| one.table != oid);
        found.push(finding.advice(
            "Where policies name the table themselves, `rowcast setup --lookups` under a \
                     login that owns it does all of it; where only functions read it, these \
                     statements do.",
        ));
    }
    found.extend(too_large(client, &kept, config, (catalog, names)).await?);
    Ok(found)
}

/// Tables of which the server knows that there is no room for.
async fn too_large(
    client: &Client,
    kept: &[&Wanted],
    config: &Config,
    (catalog, names): (&Catalog, &Names),
) -> Result<Option<Finding>, tokio_postgres::Error> {
    let oids: Vec<u32> = kept.iter().map(|one| one.table.0).collect();
    let mut rows: HashMap<u32, u64> = HashMap::new();
    for row in client.query(ROWS, &[&oids]).await? {
        let count: i64 = row.try_get(1)?;
        rows.insert(row.try_get(0)?, u64::try_from(count).unwrap_or(0));
    }
    let mut sizes: Vec<(u64, &Wanted)> = kept
        .iter()
        .map(|one| {
            let count = rows.get(&one.table.0).copied().unwrap_or(0);
            let each = u64::try_from(keep::least_weight(one)).unwrap_or(u64::MAX);
            (count.saturating_mul(each), *one)
        })
        .collect();
    sizes.sort_by_key(|(size, one)| (std::cmp::Reverse(*size), one.table));
    let all = sizes
        .iter()
        .fold(0_u64, |all, (size, _)| all.saturating_add(*size));
    let most = u64::try_from(config.max_lookup_bytes).unwrap_or(u64::MAX);
    let (Some((_, largest)), true) = (sizes.first(), all > most) else {
        return Ok(None);
    };
    let table = catalog
        .tables
        .get(&largest.table)
        .map(|table| names.of(table));
    let table = table.unwrap_or_default();
    let finding = Finding::warning(
        "lookup_too_large",
        format!(
            "the tables that policies read take {} MB of memory or more, by what the server knows of their \
             rows, and max_lookup_bytes is {} MB: {table} is the largest, and policies that read what there \
             is no room for are asked of PostgreSQL, row by row",
            all >> 20,
            most >> 20
        ),
    );
    // Twice the least leaves room for values and for what comes.
    let enough = (all >> 20).saturating_add(1).saturating_mul(2);
    Ok(Some(finding.table(table).advice(format!(
        "Set ROWCAST_MAX_LOOKUP_BYTES={enough}MiB, if this machine has that much memory."
    ))))
}

/// How many rows tables have, as far as the server has counted them.
const ROWS: &str = "with recursive tree(root, oid) as ( \
       select t.oid, t.oid from pg_catalog.unnest($1::pg_catalog.oid[]) t(oid) \
       union all \
       select tree.root, i.inhrelid from tree \
       join pg_catalog.pg_inherits i on i.inhparent = tree.oid and not i.inhdetachpending) \
     select t.root, sum(greatest(c.reltuples, 0))::pg_catalog.int8 \
       from tree t join pg_catalog.pg_class c on c.oid = t.oid and c.relkind = 'r' group by t.root";

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

//! The tables whose old rows the relay is to keep itself: whether it can.

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::Client;

use super::Finding;
use super::lookups::{rights, shown};
use super::names::Names;
use crate::config::Config;
use crate::lookup::Wanted;
use crate::lookup::keep::{self, Cause, Purpose};
use crate::pg::{Oid, quote_identifier};
use crate::policy::catalog::Catalog;
use crate::router::Keeps;

/// What of old rows will be kept, by table.
pub(super) type Kept = HashMap<Oid, Wanted>;

pub(super) async fn findings(
    client: &Client,
    catalog: &Catalog,
    (publication, config, login): (&str, &Config, &str),
    names: &Names,
) -> Result<(Kept, Vec<Finding>), tokio_postgres::Error> {
    let mut found = Vec::new();
    let mut wanted = Vec::new();
    for one in &config.old_rows.0 {
        let name = one.name();
        match one.keeps(catalog) {
            Keeps::Columns(columns) => {
                let table = catalog.tables.get(&columns.table);
                wanted.push((table.map_or(name, |table| names.of(table)), columns));
            }
            Keeps::Nothing => found.push(
                Finding::note(
                    "old_rows_needless",
                    format!(
                        "old_rows names {name}, whose replica identity carries all that is needed: \
                         nothing is kept"
                    ),
                )
                .table(name)
                .advice("Take it out of old_rows, or set the replica identity back to default."),
            ),
            Keeps::Unknown(why) => found.push(
                Finding::error("old_rows_unknown", why)
                    .table(name)
                    .advice("Correct old_rows, or publish the table."),
            ),
        }
    }
    let settings = keep::Settings {
        purpose: Purpose::OldRows,
        publication: publication.to_owned(),
        lookup_publication: config.lookup_publication(),
        max_bytes: config.max_old_row_bytes,
        look_every: Duration::MAX,
        checkpoint: None,
        checkpoint_every: Duration::MAX,
    };
    let mut kept = Kept::new();
    let login = quote_identifier(login);
    for (name, columns) in wanted {
        // One by one: of each is to be known what stands against it.
        let refused = keep::examine(client, std::slice::from_ref(&columns), &settings).await?;
        let Some((_, _, refusal)) = refused.into_iter().next() else {
            kept.insert(columns.table, columns);
            continue;
        };
        let sql = match refusal.cause {
            Cause::Privilege => rights(catalog, Some(columns.table), (&name, &login)),
            Cause::RowSecurity => {
                let table = catalog.tables.get(&columns.table);
                shown(table.map(std::sync::Arc::as_ref), (&name, &login))
            }
            Cause::Narrowed => refusal.mend.to_vec(),
            _ => Vec::new(),
        };
        let mut finding = Finding::warning(
            "old_rows_refused",
            format!("the relay cannot keep old rows of {name}: {}", refusal.text),
        )
        .table(name);
        finding.sql = sql;
        found.push(
            finding
                .advice("Until then of its old rows is known what the replica identity carries."),
        );
    }
    Ok((kept, found))
}

//! Tables as people write them: quoted where SQL needs it, by PostgreSQL itself.

use std::collections::HashMap;

use tokio_postgres::Client;

use crate::pg::Oid;
use crate::policy::catalog::{Catalog, Table};

/// The names of a catalog's tables, with their schemas, and those of all policies of each.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<Oid, (String, Vec<String>)>);

impl Names {
    pub(super) async fn read(
        client: &Client,
        catalog: &Catalog,
    ) -> Result<Self, tokio_postgres::Error> {
        let oids: Vec<u32> = catalog.tables.keys().map(|oid| oid.0).collect();
        let rows = client
            .query(
                "select c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname), \
                        array(select p.polname::text from pg_catalog.pg_policy p where p.polrelid = c.oid) \
                   from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
                  where c.oid = any ($1)",
                &[&oids],
            )
            .await?;
        let names: Result<_, tokio_postgres::Error> = rows
            .iter()
            .map(|row| Ok((Oid(row.try_get(0)?), (row.try_get(1)?, row.try_get(2)?))))
            .collect();
        names.map(Self)
    }

    /// A table's name.
    pub(super) fn of(&self, table: &Table) -> String {
        let known = self.0.get(&table.oid);
        known.map_or_else(|| table.sql_name(), |(name, _)| name.clone())
    }

    /// Whether a table has a policy of that name, for whatever command.
    pub(super) fn has_policy(&self, table: &Table, name: &str) -> bool {
        let known = self.0.get(&table.oid);
        known.is_some_and(|(_, policies)| policies.iter().any(|policy| policy == name))
    }
}

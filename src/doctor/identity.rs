//! What has old rows carry more: the statements that `rowcast setup --only identity` would run, for
//! the tables that lack something.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::Finding;
use crate::pg::quote_identifier;
use crate::policy::catalog::{Catalog, Table};

const SCRIPT: &str = include_str!("../../sql/identity.sql");

/// How the script's query ends.
const END: &str = "select statement from statements order by place, detail, step";

/// The same, with the table that each statement is of. What only notes what was before is left out:
/// the notes of setup are setup's.
const TOLD: &str = "select detail::pg_catalog.text, statement from statements where place in (1, 3, 4) \
                    order by place, detail, step";

/// Columns that decide and that old rows do not carry, by table.
#[derive(Debug, Default)]
pub(super) struct Lacking<'c>(BTreeMap<String, (&'c Table, BTreeSet<String>)>);

/// What is to be done about a table.
#[derive(Debug, Default, PartialEq, Eq)]
struct Steps {
    sql: Vec<String>,
    /// Why nothing is.
    refused: Option<String>,
}

impl<'c> Lacking<'c> {
    /// Notes columns of a table; `name` is the table as in SQL.
    pub(super) fn add<'n>(
        &mut self,
        (table, name): (&'c Table, &str),
        columns: impl Iterator<Item = &'n str>,
    ) {
        let entry = self.0.entry(name.to_owned());
        let (_, known) = entry.or_insert_with(|| (table, BTreeSet::new()));
        known.extend(columns.map(str::to_owned));
    }

    /// Puts into findings what setup would do, where they say what mends them by FULL: an index costs
    /// less, and where FULL would have UPDATEs fail it is not offered.
    pub(super) async fn mend(
        self,
        client: &Client,
        (catalog, publication): (&Catalog, &str),
        findings: &mut [Finding],
    ) {
        // Partitions are mended one by one; setup does no other.
        let plain = self
            .0
            .iter()
            .filter(|(_, (table, _))| table.leaves.is_none());
        let names: BTreeMap<String, &str> = plain
            .clone()
            .map(|(name, (table, _))| (format!("{}.{}", table.schema, table.name), name.as_str()))
            .collect();
        let columns: Vec<String> = plain
            .flat_map(|(name, (_, columns))| {
                columns
                    .iter()
                    .map(move |column| format!("{name}.{}", quote_identifier(column)))
            })
            .collect();
        if columns.is_empty() {
            return;
        }
        let settings = settings(catalog, publication, &columns);
        let steps = match steps(client, &settings).await {
            Ok(steps) => steps,
            Err(error) => {
                tracing::debug!(%error, "what setup would do about identities is not known");
                return;
            }
        };
        for (written, steps) in steps {
            let Some(name) = names.get(&written) else {
                continue;
            };
            let meant = findings.iter_mut().filter(|one| {
                matches!(one.code, "identity_too_little" | "filter_identity")
                    && one.table.as_deref() == Some(*name)
            });
            for (number, finding) in meant.enumerate() {
                // An index is not made a second time.
                let makes = steps.sql.iter().any(|one| one.starts_with("create "));
                if number > 0 && makes {
                    finding.sql = Vec::new();
                    finding.advice = Some(format!(
                        "The statements of the other finding about old rows of {name} mend this as well."
                    ));
                } else if let Some(refused) = &steps.refused {
                    finding.sql = Vec::new();
                    finding.advice = Some(format!(
                        "{refused} Without a change to the database: old_rows."
                    ));
                } else if !steps.sql.is_empty() {
                    finding.sql.clone_from(&steps.sql);
                }
            }
        }
    }
}

/// What the script reads.
fn settings(
    catalog: &Catalog,
    publication: &str,
    columns: &[String],
) -> Vec<(&'static str, String)> {
    let clients = catalog.roles.values().filter(|role| !role.bypass);
    let clients: Vec<String> = clients.map(|role| quote_identifier(&role.name)).collect();
    vec![
        ("rowcast.publication", publication.to_owned()),
        ("rowcast.client_roles", clients.join(", ")),
        ("rowcast.tables", String::new()),
        ("rowcast.schemas", String::new()),
        ("rowcast.without_rls", "on".to_owned()),
        ("rowcast.parts", "identity".to_owned()),
        ("rowcast.filter_columns", columns.join(", ")),
    ]
}

/// What the script writes, by table with its schema, unquoted.
async fn steps(
    client: &Client,
    settings: &[(&str, String)],
) -> Result<BTreeMap<String, Steps>, tokio_postgres::Error> {
    for (name, value) in settings {
        let set = "select pg_catalog.set_config($1, $2, false)";
        client.query(set, &[name, value]).await?;
    }
    let mut all: BTreeMap<String, Steps> = BTreeMap::new();
    for row in client.query(&query(), &[]).await? {
        let (table, text): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        all.entry(table).or_default().add(&text);
    }
    Ok(all)
}

/// The script's query without what is psql's.
fn query() -> String {
    let lines = SCRIPT.lines().filter(|line| !line.starts_with('\\'));
    let query: Vec<&str> = lines.collect();
    query.join("\n").replace(END, TOLD)
}

impl Steps {
    /// Takes comment lines and a statement.
    fn add(&mut self, text: &str) {
        if let Some(refused) = text.strip_prefix("-- refused: ") {
            self.refused = Some(refused.to_owned());
            return;
        }
        let lines = text.lines().skip_while(|line| line.starts_with("-- "));
        let statement = lines.collect::<Vec<_>>().join("\n");
        let statement = statement.trim_end_matches(';');
        // That is about who else waits while setup runs.
        if !statement.is_empty() && !statement.starts_with("set lock_timeout") {
            self.sql.push(statement.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_query_is_told_by_table() {
        assert_eq!(SCRIPT.matches(END).count(), 1);
        let query = query();
        assert!(query.contains(TOLD) && !query.contains("\n\\"), "{query}");
    }

    #[test]
    fn a_statement_goes_without_its_reasons_and_a_refusal_is_none() {
        let mut steps = Steps::default();
        steps.add("-- administrator: only X may.\n-- Why.\ncreate index a on b (c);");
        steps.add("-- Why.\nset lock_timeout = 0;");
        let created = vec!["create index a on b (c)".to_owned()];
        assert_eq!((&steps.sql, &steps.refused), (&created, &None));
        steps.add("-- refused: it would fail (so).");
        assert_eq!(steps.refused.as_deref(), Some("it would fail (so)."));
    }
}

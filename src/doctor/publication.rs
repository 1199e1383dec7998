//! The publication: what can be subscribed to at all, and what it leaves out for everybody.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use tokio_postgres::Client;

use super::names::Names;
use super::{Finding, Patient, Severity, clients};
use crate::config::Config;
use crate::pg::{Oid, quote_identifier};
use crate::policy::catalog::{Catalog, Table};
use crate::source::SourceError;

const LOOK: &str = include_str!("../../sql/doctor_publication.sql");
const CANDIDATES: &str = include_str!("../../sql/doctor_candidates.sql");

/// What the catalog says of a publication.
#[derive(Debug, Deserialize)]
pub(super) struct Listed {
    #[serde(skip)]
    name: String,
    insert: bool,
    update: bool,
    delete: bool,
    truncate: bool,
    via_root: bool,
    pub(super) everything: bool,
    items: Vec<Item>,
    unidentified: Vec<(u32, String)>,
    leaves: Vec<(u32, String)>,
    elsewhere: Vec<String>,
    silent: Vec<(u32, String, String)>,
    meant: Vec<Meant>,
}

#[derive(Debug, Deserialize)]
struct Item {
    oid: u32,
    name: String,
    partitioned: bool,
    filter: bool,
    columns: bool,
}

/// A table that was named.
#[derive(Debug, Deserialize)]
struct Meant {
    text: String,
    oid: Option<u32>,
    name: String,
    kind: Option<String>,
    persistence: Option<String>,
    partition: Option<bool>,
    system: Option<bool>,
    row_security: Option<bool>,
    /// The tables that its rows are in and that have no replica identity.
    unidentified: Vec<String>,
    folded: bool,
}

/// The names as the catalog's queries compare them.
fn names(patient: &Patient) -> Vec<String> {
    let tables = patient.tables.iter();
    let with_schema = |text: &String| match text.contains('.') {
        true => text.clone(),
        false => format!("public.{text}"),
    };
    tables.map(with_schema).collect()
}

/// Tables that could be published.
pub(super) async fn candidates(
    client: &Client,
    patient: &Patient,
) -> Result<Vec<String>, tokio_postgres::Error> {
    let roles: Vec<String> = clients::named(&patient.config, None).into_iter().collect();
    let rows = client.query(CANDIDATES, &[&names(patient), &roles]).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// What names tables for `create publication` or `alter publication … add`.
fn only(tables: &[String]) -> String {
    format!("table only {}", tables.join(", only "))
}

const NAME_THEM: &str =
    "Name the tables: `rowcast setup --table schema.table`, under a login that owns them.";
const LEAVE_OUT: &str = "These are the tables with row-level security that clients' roles may read: leave out what \
     nobody is to subscribe to. `rowcast setup --table …` does it, and more.";

/// There is nothing in the publication.
pub(super) fn empty(publication: &str, candidates: &[String]) -> Finding {
    let finding = Finding::error(
        "publication_empty",
        format!("publication {publication} has no tables: nothing can be subscribed to"),
    );
    if candidates.is_empty() {
        return finding.advice(NAME_THEM);
    }
    finding
        .sql(format!(
            "alter publication {} add {}",
            quote_identifier(publication),
            only(candidates)
        ))
        .advice(LEAVE_OUT)
}

/// There is no publication to follow.
pub(super) fn missing(fault: &SourceError, candidates: &[String], config: &Config) -> Finding {
    let name = config.publication.as_deref().unwrap_or("rowcast");
    let finding = Finding::error("publication_missing", fault.to_string());
    if candidates.is_empty() {
        return finding.advice(NAME_THEM);
    }
    finding
        .sql(format!(
            "create publication {} for {} with (publish_via_partition_root = true)",
            quote_identifier(name),
            only(candidates)
        ))
        .advice(LEAVE_OUT)
}

impl Listed {
    pub(super) async fn read(
        client: &Client,
        publication: &str,
        patient: &Patient,
    ) -> Result<Self, tokio_postgres::Error> {
        let row = client
            .query_one(LOOK, &[&publication, &names(patient)])
            .await?;
        let said: Value = row.try_get(0)?;
        let listed: Result<Self, _> = serde_json::from_value(said);
        let mut listed = listed.unwrap_or_else(|error| {
            tracing::error!(%error, "the catalog's answer on the publication is not read");
            Self::empty()
        });
        publication.clone_into(&mut listed.name);
        Ok(listed)
    }

    const fn empty() -> Self {
        Self {
            name: String::new(),
            insert: true,
            update: true,
            delete: true,
            truncate: true,
            via_root: true,
            everything: false,
            items: Vec::new(),
            unidentified: Vec::new(),
            leaves: Vec::new(),
            elsewhere: Vec::new(),
            silent: Vec::new(),
            meant: Vec::new(),
        }
    }

    /// The published tables that are to be looked at, and whether they were named.
    pub(super) fn meant<'c>(&self, catalog: &'c Catalog) -> Vec<(&'c Arc<Table>, bool)> {
        let named = |oid: Oid| self.meant.iter().any(|one| one.oid == Some(oid.0));
        let tables = catalog.tables.values();
        let mut meant: Vec<_> = tables
            .filter(|table| table.published && (self.meant.is_empty() || named(table.oid)))
            .map(|table| (table, named(table.oid)))
            .collect();
        meant.sort_by(|(a, _), (b, _)| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
        meant
    }

    /// Whether UPDATEs of a table fail for want of an identity.
    pub(super) fn is_unidentified(&self, table: Oid) -> bool {
        self.unidentified.iter().any(|(root, _)| *root == table.0)
    }

    /// The partitions of a partitioned table that rows are in.
    pub(super) fn leaves(&self, table: u32) -> impl Iterator<Item = &str> {
        let of = self.leaves.iter().filter(move |(root, _)| *root == table);
        of.map(|(_, leaf)| leaf.as_str())
    }

    pub(super) fn findings(
        &self,
        catalog: &Catalog,
        names: &Names,
        patient: &Patient,
    ) -> Vec<Finding> {
        let mut found = Vec::new();
        let shown = &self.name;
        let name = quote_identifier(shown);
        let left_out: Vec<&str> = [
            ("insert", self.insert),
            ("update", self.update),
            ("delete", self.delete),
            ("truncate", self.truncate),
        ]
        .into_iter()
        .filter(|(_, there)| !there)
        .map(|(what, _)| what)
        .collect();
        if !left_out.is_empty() {
            found.push(
                Finding::warning(
                    "publication_operations",
                    format!(
                        "publication {shown} leaves out {}: clients do not hear of those",
                        left_out.join(", ")
                    ),
                )
                .of_severity(if self.insert && self.update {
                    Severity::Warning
                } else {
                    Severity::Error
                })
                .sql(format!(
                    "alter publication {name} set (publish = 'insert, update, delete, truncate')"
                )),
            );
        }
        if !self.via_root && self.items.iter().any(|item| item.partitioned) {
            let roots: Vec<&str> = self
                .items
                .iter()
                .filter(|item| item.partitioned)
                .map(|item| item.name.as_str())
                .collect();
            found.push(
                Finding::error(
                    "publication_partitions",
                    format!(
                        "publication {shown} publishes the partitions of {} as themselves: who \
                         subscribes to the partitioned table receives nothing",
                        roots.join(", ")
                    ),
                )
                .sql(format!(
                    "alter publication {name} set (publish_via_partition_root = true)"
                )),
            );
        }
        if self.everything {
            found.push(
                Finding::note(
                    "publication_all_tables",
                    format!(
                        "publication {shown} is FOR ALL TABLES: every table, also the next one, can be \
                         subscribed to, and what has no replica identity refuses UPDATE and DELETE"
                    ),
                )
                .advice("A list of tables is safer: `rowcast setup --publication … --table …`."),
            );
        }
        for item in &self.items {
            found.extend(self.narrowed(item, catalog));
        }
        for (root, leaf) in &self.unidentified {
            let root = catalog.tables.get(&Oid(*root));
            let table = root.map_or_else(|| leaf.clone(), |root| names.of(root));
            found.push(
                Finding::error(
                    "identity_missing",
                    format!(
                        "{leaf} has no replica identity: PostgreSQL refuses UPDATE and DELETE of a \
                         table that is published so"
                    ),
                )
                .table(table)
                .sql(format!("alter table {leaf} replica identity full"))
                .advice("A primary key that is not deferrable does as well, and costs less."),
            );
        }
        let silent = self.silent.iter();
        found.extend(silent.filter_map(|one| self.unstreamed(one, catalog, names)));
        if patient.config.publication.is_none()
            && !self.elsewhere.is_empty()
            && patient.tables.is_empty()
        {
            let finding = Finding::warning(
                "publication_other",
                format!(
                    "{} in publication supabase_realtime, but the relay follows {shown}: nobody can \
                     subscribe to what is only there",
                    match self.elsewhere.as_slice() {
                        [one] => format!("{one} is"),
                        several => format!("{} are", several.join(", ")),
                    }
                ),
            );
            let finding = self.elsewhere.iter().fold(finding, |finding, table| {
                finding.sql(format!("alter publication {name} add table only {table}"))
            });
            found.push(
                finding.advice("Or follow the other one: ROWCAST_PUBLICATION=supabase_realtime."),
            );
        }
        for meant in &self.meant {
            found.extend(self.unpublished(meant, catalog));
        }
        found
    }

    /// A part of a table whose rows are in no stream.
    fn unstreamed(
        &self,
        (root, part, kind): &(u32, String, String),
        catalog: &Catalog,
        names: &Names,
    ) -> Option<Finding> {
        let root = names.of(catalog.tables.get(&Oid(*root))?);
        let finding = |severity, why: &str| {
            Finding::warning(
                "table_part_silent",
                format!(
                    "rows of {root} that are in {part} reach nobody who subscribes to it: {why}"
                ),
            )
            .of_severity(severity)
            .table(root.as_str())
        };
        Some(match kind.as_str() {
            "foreign" => finding(
                Severity::Warning,
                "it is a foreign table, whose changes are in another server's log",
            )
            .advice("Keep rows that people are to hear of in a table of this server."),
            "unlogged" => finding(Severity::Warning, "it is unlogged, and leaves no changes in the log")
                .sql(format!("alter table {part} set logged")),
            _ => finding(
                Severity::Note,
                "it inherits from it, and is published and subscribed to only as itself",
            )
            .sql(format!(
                "-- alter publication {} add table only {part}",
                quote_identifier(&self.name)
            ))
            .advice("Give it policies first: those of the table that it inherits from do not hold for it."),
        })
    }

    /// What has a table published with all its rows and columns.
    pub(super) fn whole(&self, table: &str) -> [String; 2] {
        let name = quote_identifier(&self.name);
        [
            format!("alter publication {name} drop table only {table}"),
            format!("alter publication {name} add table only {table}"),
        ]
    }

    /// A list of columns or a row filter.
    fn narrowed(&self, item: &Item, catalog: &Catalog) -> Vec<Finding> {
        let again = |finding: Finding| {
            let mut finding = finding.table(item.name.as_str());
            finding.sql.extend(self.whole(&item.name));
            finding.advice("Leave it where just that is meant: it holds for all clients.")
        };
        let mut found = Vec::new();
        if item.filter {
            found.push(again(Finding::warning(
                "publication_row_filter",
                format!(
                    "publication {} shows only some rows of {}: nobody hears of the others, whatever \
                     policies say",
                    self.name, item.name
                ),
            )));
        }
        let table = catalog.tables.get(&Oid(item.oid));
        let all = table.is_some_and(|table| {
            let mut columns = table.columns.iter();
            columns.all(|column| table.publishes(&column.name))
        });
        if item.columns && !all {
            found.push(again(Finding::warning(
                "publication_columns",
                format!(
                    "publication {} shows only some columns of {}: nobody receives the others, and \
                     policies that read them refuse every subscription",
                    self.name, item.name
                ),
            )));
        }
        found
    }

    /// Has a table published, and before that whatever keeps PostgreSQL from refusing its UPDATEs and
    /// DELETEs then.
    fn add(&self, meant: &Meant, finding: Finding) -> Finding {
        let finding = meant.unidentified.iter().fold(finding, |finding, leaf| {
            finding.sql(format!("alter table {leaf} replica identity full"))
        });
        let name = quote_identifier(&self.name);
        finding.sql(format!(
            "alter publication {name} add table only {}",
            meant.name
        ))
    }

    /// Why a table that was named cannot be subscribed to.
    fn unpublished(&self, meant: &Meant, catalog: &Catalog) -> Option<Finding> {
        let text = &meant.text;
        let Some(oid) = meant.oid else {
            let hint = if meant.folded {
                "; there is one that is written with other capitals: put the name in double quotes"
            } else {
                ""
            };
            return Some(
                Finding::error("table_missing", format!("there is no table {text}{hint}"))
                    .table(text.as_str())
                    .advice("Names are SQL's, with their schema, such as public.todos."),
            );
        };
        let name = &meant.name;
        let kind = meant.kind.as_deref().unwrap_or_default();
        let what = match (kind, meant.persistence.as_deref()) {
            _ if meant.system == Some(true) => Some("is one of PostgreSQL's own"),
            ("v" | "m", _) => {
                Some("is a view, which has no changes of its own: publish the tables that it reads")
            }
            ("f", _) => Some("is a foreign table, whose changes are in another server's log"),
            ("r" | "p", Some("u")) => Some("is unlogged: it leaves no changes in the log"),
            ("r" | "p", Some("t")) => Some("is temporary"),
            ("r" | "p", _) => None,
            _ => Some("is no table"),
        };
        if let Some(what) = what {
            let finding =
                Finding::error("table_kind", format!("{name} {what}")).table(name.as_str());
            return Some(match meant.persistence.as_deref() {
                Some("u") => self.add(meant, finding.sql(format!("alter table {name} set logged"))),
                _ => finding,
            });
        }
        if catalog
            .tables
            .get(&Oid(oid))
            .is_some_and(|table| table.published)
        {
            return None;
        }
        let by_root = self.leaves.iter().any(|(_, leaf)| leaf == name);
        if meant.partition == Some(true) && by_root {
            return Some(
                Finding::error(
                    "table_partition",
                    format!("{name} is published as its root: subscribe to that"),
                )
                .table(name.as_str())
                .advice("Its root's policies decide then."),
            );
        }
        if !self.via_root && self.items.iter().any(|item| item.oid == oid) {
            // It was said of the publication.
            return None;
        }
        let finding = Finding::error(
            "table_unpublished",
            format!(
                "{name} is not in publication {}: nobody can subscribe to it",
                self.name
            ),
        )
        .table(name.as_str());
        let finding = self.add(meant, finding);
        Some(if meant.row_security == Some(false) {
            finding.advice(
                "It has no row-level security: whoever may SELECT from it would see every row.",
            )
        } else {
            finding
        })
    }
}

//! Locks that keep the catalog from being read.

use std::time::Duration;

use tokio_postgres::{Client, Row};

use super::Finding;
use crate::pg::connect::Database;
use crate::pg::quote_literal;

const LOOK: &str = include_str!("../../sql/doctor_locks.sql");

/// How long looking may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Somebody's ACCESS EXCLUSIVE lock on a table.
struct Held {
    /// The table as in SQL.
    table: String,
    /// By whom.
    holder: String,
    /// What ends it; comments where there is a choice.
    sql: Vec<String>,
}

impl Held {
    fn read(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let (pid, application): (Option<i32>, Option<String>) = (row.try_get(1)?, row.try_get(2)?);
        let (gid, seconds): (Option<String>, Option<i64>) = (row.try_get(3)?, row.try_get(4)?);
        let application = application.filter(|name| !name.is_empty());
        let known = application.into_iter();
        let known = known.chain(seconds.map(|seconds| format!("for {seconds} s")));
        let known = known.collect::<Vec<_>>().join(", ");
        let known = match known.as_str() {
            "" => String::new(),
            known => format!(" ({known})"),
        };
        let (holder, sql) = match (gid, pid) {
            (Some(gid), _) => (
                format!("prepared transaction {gid}"),
                ["commit", "rollback"]
                    .map(|how| format!("-- {how} prepared {}", quote_literal(&gid)))
                    .to_vec(),
            ),
            (None, Some(pid)) => (
                format!("process {pid}{known}"),
                vec![format!("select pg_terminate_backend({pid})")],
            ),
            (None, None) => ("a prepared transaction".to_owned(), Vec::new()),
        };
        Ok(Self {
            table: row.try_get(0)?,
            holder,
            sql,
        })
    }
}

async fn held(database: &Database) -> Vec<Held> {
    let look = async {
        let client: Client = database.connect("rowcast doctor").await.ok()?;
        let rows = client.query(LOOK, &[]).await.ok()?;
        Some(rows.iter().filter_map(|row| Held::read(row).ok()).collect())
    };
    // Who could not connect before waits no second time.
    let looked = tokio::time::timeout(PATIENCE, look).await;
    looked.ok().flatten().unwrap_or_default()
}

/// Who keeps the catalog from being read; `fault` is what became of the attempt.
pub(crate) async fn locked(database: &Database, fault: &str) -> Option<Finding> {
    let all = held(database).await;
    let named: Vec<String> = all
        .iter()
        .map(|one| format!("{} by {}", one.table, one.holder))
        .collect();
    if named.is_empty() {
        return None;
    }
    let finding = Finding::error(
        "catalog_locked",
        format!(
            "the catalog cannot be read ({fault}), as tables are locked (ACCESS EXCLUSIVE): {}. The \
             relay waits for that as well where something else alters a table meanwhile",
            named.join("; ")
        ),
    );
    let mut sql: Vec<String> = all.into_iter().flat_map(|one| one.sql).collect();
    sql.dedup();
    let finding = sql.into_iter().fold(finding, Finding::sql);
    Some(finding.advice(
        "Have whoever holds it end the transaction (an ALTER TABLE, TRUNCATE or VACUUM FULL), and run it \
         again: nothing else was looked at.",
    ))
}

//! What PostgreSQL itself shows.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Error, SimpleQueryMessage};

use crate::values::{Table, literal};

#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub(crate) role: String,
    /// The JSON text of the token's claims.
    pub(crate) claims: String,
    /// No policy holds it back.
    pub(crate) bypasses: bool,
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.role, self.claims)
    }
}

/// The keys of the rows that one principal sees of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) visible: BTreeSet<String>,
    /// For which a `select` ends with an error.
    pub(crate) raising: BTreeSet<String>,
    /// Every `select` does, whatever the rows.
    pub(crate) always_raises: Option<String>,
}

/// The rows of a table by key, with what differs between versions of a row.
pub(crate) type Contents = BTreeMap<String, String>;

pub(crate) async fn contents(sql: &Client, tables: &[Table]) -> Vec<Contents> {
    let mut all = Vec::new();
    for table in tables {
        let query = format!(
            "select {}, xmin::text || ctid::text from {}",
            table.key_sql(),
            table.sql
        );
        let rows = sql.query(&query, &[]).await.expect("the rows");
        all.push(rows.iter().map(|row| (row.get(0), row.get(1))).collect());
    }
    all
}

fn under(who: &Who) -> String {
    format!(
        "select set_config('role', {}, true), set_config('request.jwt.claims', {}, true)",
        literal(&who.role),
        literal(&who.claims)
    )
}

/// The texts of the first column, a list for each statement after the first two.
async fn lists(sql: &Client, query: &str) -> Result<Vec<BTreeSet<String>>, Error> {
    let (mut lists, mut rows) = (Vec::new(), BTreeSet::new());
    let messages = sql.simple_query(query).await?;
    for message in messages {
        match message {
            SimpleQueryMessage::Row(row) => {
                rows.insert(row.get(0).unwrap_or_default().to_owned());
            }
            SimpleQueryMessage::CommandComplete(_) => lists.push(std::mem::take(&mut rows)),
            _ => {}
        }
    }
    Ok(lists.split_off(2))
}

/// Runs queries in a transaction of their own, as somebody.
async fn asked(
    sql: &Client,
    who: &Who,
    queries: &[String],
) -> Result<Vec<BTreeSet<String>>, Error> {
    let text = format!("begin; {}; {}; rollback", under(who), queries.join("; "));
    let answer = lists(sql, &text).await;
    if answer.is_err() {
        sql.batch_execute("rollback").await.expect("a rollback");
    }
    answer
}

fn said(error: &Error) -> String {
    error
        .as_db_error()
        .map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

/// What each principal sees of each table.
pub(crate) async fn sights(
    sql: &Client,
    everybody: &[Who],
    tables: &[Table],
    contents: &[Contents],
) -> Vec<Vec<Sight>> {
    let select = |table: &Table| format!("select {} from {}", table.key_sql(), table.read);
    let queries: Vec<String> = tables.iter().map(select).collect();
    let mut all = Vec::new();
    for who in everybody {
        if let Ok(lists) = asked(sql, who, &queries).await {
            let sight = |visible| Sight {
                visible,
                ..Sight::default()
            };
            all.push(lists.into_iter().take(tables.len()).map(sight).collect());
            continue;
        }
        let mut sights = Vec::new();
        for (table, rows) in tables.iter().zip(contents) {
            sights.push(one(sql, who, table, rows).await);
        }
        all.push(sights);
    }
    all
}

async fn one(sql: &Client, who: &Who, table: &Table, rows: &Contents) -> Sight {
    let select = format!("select {} from {}", table.key_sql(), table.read);
    let mut sight = Sight::default();
    if let Ok(mut lists) = asked(sql, who, std::slice::from_ref(&select)).await {
        sight.visible = lists.swap_remove(0);
        return sight;
    }
    // Of no row at all: that fails where rights are missing, or policies go round in circles.
    if let Err(error) = asked(sql, who, &[format!("{select} limit 0")]).await {
        sight.always_raises = Some(said(&error));
        sight.raising.extend(rows.keys().cloned());
        return sight;
    }
    for key in rows.keys() {
        // As in a session that has planned nothing yet.
        let query = [format!("{select} where {}", table.is(key))];
        match asked(sql, who, &query).await {
            Ok(lists) => sight
                .visible
                .extend(lists.into_iter().next().unwrap_or_default()),
            Err(_) => {
                sight.raising.insert(key.clone());
            }
        }
    }
    sight
}

/// The columns of a table that each role may read.
pub(crate) async fn readable(sql: &Client, table: &Table, role: &str) -> BTreeSet<String> {
    let query = "select a.attname::text from pg_attribute a join pg_class c on c.oid = a.attrelid \
         where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped \
         and has_schema_privilege($2, c.relnamespace, 'usage') \
         and has_column_privilege($2, a.attrelid, a.attnum, 'select')";
    let rows = sql
        .query(query, &[&table.oid, &role])
        .await
        .expect("rights");
    rows.iter().map(|row| row.get(0)).collect()
}

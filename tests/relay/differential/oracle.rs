//! What PostgreSQL itself shows.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use serde_json::{Map, Value};
use tokio_postgres::{Client, Error, SimpleQueryMessage};

use super::grammar::{Who, quoted};

/// What a select shows of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// The row, and whether it passes the filter.
    Visible(bool),
    Hidden,
    /// It ends with an error.
    Raises,
}

type Rows = Vec<Vec<Option<String>>>;

pub(super) async fn rows(sql: &Client, query: &str) -> Result<Rows, Error> {
    let messages = sql.simple_query(query).await?;
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(
            (0..row.len())
                .map(|at| row.get(at).map(str::to_owned))
                .collect(),
        ),
        _ => None,
    });
    Ok(rows.collect())
}

/// Runs each query in a savepoint of the open transaction, without waiting in between.
async fn each(sql: &Client, queries: &[String]) -> Vec<Result<Rows, Error>> {
    const UNDO: &str = "rollback to savepoint oracle; release savepoint oracle";
    let mut results = Vec::new();
    // Futures of one chunk are first polled, and so sent, in their order.
    for chunk in queries.chunks(10) {
        let sent = chunk
            .iter()
            .flat_map(|query| [rows(sql, query), rows(sql, UNDO)]);
        let answers = join_all(sent).await;
        results.extend(answers.into_iter().step_by(2));
    }
    results
}

/// The select of a session that has done nothing yet: what a function's query raises while it is
/// planned, as `auth.uid()` does of a `sub` that is no uuid, it does not raise where somebody before
/// had it planned.
fn select(who: &Who, ids: &[i32]) -> String {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    format!(
        "savepoint oracle; discard plans; select set_config('role', '{}', true), \
         set_config('request.jwt.claims', {}, true); \
         select id, coalesce(({}), false), 'row' from t where id in ({})",
        who.role,
        quoted(&who.claims.to_string()),
        who.filter.map_or("true", |(_, sql)| sql),
        ids.join(", ")
    )
}

fn shown(rows: &Rows) -> BTreeMap<i32, bool> {
    rows.iter()
        .filter(|row| row.len() == 3)
        .map(|row| {
            let id = row[0].as_deref().unwrap().parse().unwrap();
            (id, row[1].as_deref() == Some("t"))
        })
        .collect()
}

/// Whether `auth.uid()` can read the claims.
fn is_uuid(claims: &Value) -> bool {
    claims["sub"].as_str().is_none_or(|sub| sub.len() == 36)
}

/// What a select under each of `everybody` shows of the rows, in the open transaction.
pub(super) async fn sights(
    sql: &Client,
    everybody: &[&Who],
    ids: &[i32],
) -> Vec<BTreeMap<i32, Sight>> {
    if ids.is_empty() {
        return vec![BTreeMap::new(); everybody.len()];
    }
    let queries: Vec<String> = everybody.iter().map(|who| select(who, ids)).collect();
    let answers = each(sql, &queries).await;
    let mut sights = Vec::new();
    for (who, answer) in everybody.iter().zip(answers) {
        let sight = |shown: &BTreeMap<i32, bool>, id: i32| {
            shown.get(&id).map_or(Sight::Hidden, |f| Sight::Visible(*f))
        };
        sights.push(match answer {
            Ok(rows) => {
                let shown = shown(&rows);
                ids.iter().map(|id| (*id, sight(&shown, *id))).collect()
            }
            Err(_) => {
                let queries: Vec<String> = ids.iter().map(|id| select(who, &[*id])).collect();
                let answers = each(sql, &queries).await;
                ids.iter()
                    .zip(answers)
                    .map(
                        |(id, answer)| match answer.map(|rows| sight(&shown(&rows), *id)) {
                            // In a PL/pgSQL function what was raised while it was planned is not raised
                            // again: the same select shows the row the second time.
                            Ok(Sight::Visible(_)) if !is_uuid(&who.claims) => (*id, Sight::Raises),
                            Ok(sight) => (*id, sight),
                            Err(_) => (*id, Sight::Raises),
                        },
                    )
                    .collect()
            }
        });
    }
    sights
}

/// The rows as JSON, by key.
pub(super) async fn contents(sql: &Client, ids: &[i32]) -> BTreeMap<i32, Map<String, Value>> {
    if ids.is_empty() {
        return BTreeMap::new();
    }
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let query = format!(
        "select id, to_jsonb(t) from t where id in ({})",
        ids.join(", ")
    );
    let found = rows(sql, &query).await.expect("the rows");
    found
        .iter()
        .map(|row| {
            let id = row[0].as_deref().unwrap().parse().unwrap();
            (
                id,
                serde_json::from_str(row[1].as_deref().unwrap()).unwrap(),
            )
        })
        .collect()
}

/// The columns that a role may read.
pub(super) async fn readable(sql: &Client, role: &str) -> BTreeSet<String> {
    let query = format!(
        "select attname from pg_attribute where attrelid = 't'::regclass and attnum > 0 \
         and not attisdropped and has_column_privilege('{role}', attrelid, attnum, 'select')"
    );
    let found = rows(sql, &query).await.expect("the columns");
    found
        .into_iter()
        .filter_map(|mut row| row.remove(0))
        .collect()
}

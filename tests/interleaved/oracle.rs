//! What PostgreSQL itself shows, as it stands within the transaction that writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::subscribers::{FILTERS, Who};

/// What a select shows of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    Visible,
    Hidden,
    /// It ends with an error.
    Raises,
}

/// A row as it was at one commit: what is in it, which filters ask for it, and who sees it.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) row: Map<String, Value>,
    pub(crate) filters: Vec<bool>,
    pub(crate) sights: Vec<Sight>,
}

/// Rows by the table as which they are published, and their key.
pub(crate) type Images = BTreeMap<(String, i32), Arc<Image>>;

/// The columns that a role may read of a table.
pub(crate) type Readable = BTreeMap<(String, String), Arc<BTreeSet<String>>>;

/// All that PostgreSQL says of one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Moment {
    pub(crate) images: Images,
    pub(crate) readable: Readable,
}

/// A table as which rows are published, and what a select of it has to go through besides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Published {
    pub(crate) name: &'static str,
    pub(crate) through: &'static str,
}

async fn one(sql: &Client, query: &str) -> Value {
    let messages = sql.simple_query(query).await;
    let messages = messages.unwrap_or_else(|error| panic!("{query}: {error:?}"));
    let mut rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    serde_json::from_str(&rows.next().expect("an answer")).expect("JSON")
}

fn keys(value: &Value) -> BTreeSet<i32> {
    let keys = value.as_array().unwrap().iter();
    keys.map(|key| i32::try_from(key.as_i64().unwrap()).unwrap())
        .collect()
}

/// What is there, and who sees it; of one key only where that is given.
pub(crate) async fn look(
    sql: &Client,
    (whos, tables): (&[Who], &[Published]),
    only: Option<i32>,
) -> Images {
    let asked: Vec<Value> = whos
        .iter()
        .map(|who| json!({"role": who.role, "claims": who.claims.to_string()}))
        .collect();
    let tables: Vec<Value> = tables
        .iter()
        .map(|table| json!({"name": table.name, "through": table.through}))
        .collect();
    let filters = FILTERS.map(|filter| format!("coalesce({}, false)", filter.sql));
    let query = format!(
        "select oracle.look({}, {}, {}, {})",
        literal(&Value::from(asked).to_string()),
        literal(&Value::from(tables.clone()).to_string()),
        literal(&format!("jsonb_build_array({})", filters.join(", "))),
        only.map_or("null".to_owned(), |id| id.to_string()),
    );
    let answer = one(sql, &query).await;
    let mut images = Images::new();
    for (table, found) in answer.as_object().unwrap() {
        let sights: Vec<[BTreeSet<i32>; 2]> = found["sights"]
            .as_array()
            .unwrap()
            .iter()
            .map(|of| [keys(&of[0]), keys(&of[1])])
            .collect();
        for (id, of) in found["contents"].as_object().unwrap() {
            let id: i32 = id.parse().unwrap();
            let sight = |[seen, raising]: &[BTreeSet<i32>; 2]| {
                if seen.contains(&id) {
                    Sight::Visible
                } else if raising.contains(&id) {
                    Sight::Raises
                } else {
                    Sight::Hidden
                }
            };
            let image = Image {
                row: of[0].as_object().unwrap().clone(),
                filters: of[1]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|is| *is == true)
                    .collect(),
                sights: sights.iter().map(sight).collect(),
            };
            images.insert((table.clone(), id), Arc::new(image));
        }
    }
    images
}

pub(crate) async fn readable(sql: &Client, roles: &[&str], tables: &[Published]) -> Readable {
    let quoted =
        |all: &mut dyn Iterator<Item = &str>| all.map(literal).collect::<Vec<_>>().join(", ");
    let query = format!(
        "select oracle.readable(array[{}], array[{}])",
        quoted(&mut roles.iter().copied()),
        quoted(&mut tables.iter().map(|table| table.name)),
    );
    let answer = one(sql, &query).await;
    let all = answer.as_object().unwrap().iter().map(|(of, names)| {
        let (role, table) = of.split_once(' ').unwrap();
        let names = names.as_array().unwrap().iter();
        let names = names
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
        ((role.to_owned(), table.to_owned()), Arc::new(names))
    });
    all.collect()
}

pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

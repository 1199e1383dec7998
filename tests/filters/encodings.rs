//! Text in databases whose encoding is not the one that the stream and clients speak.

use rowcast::subscription::Events;
use serde_json::json;

use crate::harness::{Relay, brief, cluster, connect};

/// Words in each encoding whose bytes order otherwise there than in UTF-8, or mean something else.
const ENCODINGS: [(&str, &[&str]); 4] = [
    // The bytes of the last are those of `é` in UTF-8.
    ("WIN1252", &["€", "é", "ÿ", "a", "Ã©"]),
    ("KOI8R", &["а", "ю", "б", "Я", "a", "ц"]),
    ("EUC_JP", &["ｱ", "漢", "あ", "é", "a"]),
    ("SQL_ASCII", &["é", "€", "a", "漢", "ÿ"]),
];

/// A database of that encoding, with the locale that goes with all of them.
async fn database(encoding: &str, what: &str) -> String {
    let cluster = cluster().await;
    let name = format!("{what}_{}", encoding.to_lowercase());
    let make = format!(
        "create database {name} template template0 encoding '{encoding}' \
         lc_collate 'C' lc_ctype 'C'"
    );
    let client = connect(&cluster.url("postgres")).await;
    client.batch_execute(&make).await.expect(encoding);
    cluster.url(&name)
}

fn rows(words: &[&str]) -> String {
    let row = |(id, word): (usize, &&str)| format!("({id}, '{word}', '{word}')");
    let rows: Vec<String> = words.iter().enumerate().map(row).collect();
    rows.join(", ")
}

/// What is to be delivered for the rows of a query.
async fn inserts(relay: &Relay, select: &str) -> Vec<String> {
    let rows = relay.sql.query(select, &[]).await.expect(select);
    let insert = |row: &tokio_postgres::Row| format!("INSERT {}", row.get::<_, i32>(0));
    rows.iter().map(insert).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_of_text_are_what_a_where_is_in_every_encoding() {
    for (encoding, words) in ENCODINGS {
        let url = database(encoding, "filters").await;
        let schema = "create table t (id int primary key, body text, label name);
                      grant select on t to authenticated";
        let mut relay = Relay::in_database(&url, schema, "t", |_| {}).await;
        let mut watchers = Vec::new();
        for column in ["body", "label"] {
            for word in words {
                for (operator, sql) in [
                    ("eq", "="),
                    ("lt", "<"),
                    ("gte", ">="),
                    ("neq", "<>"),
                    ("like", "like"),
                ] {
                    let filter = format!("{column}={operator}.{word}");
                    let watcher = relay
                        .watch_filtered("authenticated", &json!({}), "t", Events::All, &filter)
                        .await;
                    let watcher = watcher.unwrap_or_else(|e| panic!("{filter}: {e}"));
                    watchers.push((format!("{column} {sql} '{word}'"), watcher));
                }
            }
            let one = relay
                .watch_filtered(
                    "authenticated",
                    &json!({}),
                    "t",
                    Events::All,
                    &format!("{column}=like._"),
                )
                .await;
            watchers.push((format!("{column} like '_'"), one.expect("a pattern")));
        }
        relay
            .run(&format!("insert into t values {}", rows(words)))
            .await;
        let mut shown = 0;
        for (condition, watcher) in &watchers {
            let select = format!("select id from t where {condition} order by id");
            let expected = inserts(&relay, &select).await;
            shown += expected.len();
            let seen = brief(&relay.seen(watcher).await);
            assert_eq!(seen, expected, "{encoding}: {condition}");
        }
        assert!(shown > watchers.len(), "{encoding}: most show something");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_over_text_show_what_a_select_shows_in_every_encoding() {
    for (encoding, words) in ENCODINGS {
        let url = database(encoding, "policies").await;
        let mut schema = String::new();
        let mut tables = Vec::new();
        for (at, word) in words.iter().enumerate() {
            for (name, policy) in [
                (format!("less_{at}"), format!("body < '{word}'")),
                (format!("same_{at}"), format!("body = '{word}'")),
                (format!("other_{at}"), format!("label <> '{word}'")),
                (format!("one_{at}"), format!("body in ('{word}', 'b')")),
                (
                    format!("mine_{at}"),
                    "auth.jwt() ->> 'word' >= body".to_owned(),
                ),
            ] {
                schema += &format!(
                    "create table {name} (id int primary key, body text, label name);
                     alter table {name} enable row level security;
                     create policy p on {name} using ({policy});
                     grant select on {name} to authenticated;"
                );
                tables.push(name);
            }
        }
        let mut relay = Relay::in_database(&url, &schema, &tables.join(", "), |_| {}).await;
        let claims = json!({ "word": words[1] });
        let mut watchers = Vec::new();
        for table in &tables {
            watchers.push((table, relay.watch("authenticated", &claims, table).await));
        }
        for table in &tables {
            relay
                .run(&format!("insert into {table} values {}", rows(words)))
                .await;
        }
        let mut shown = 0;
        for (table, watcher) in &watchers {
            relay
                .run(&format!(
                    "begin; set local role authenticated; \
                     select set_config('request.jwt.claims', '{claims}', true); \
                     create temporary table seen on commit drop as select id from {table}; \
                     reset role"
                ))
                .await;
            let expected = inserts(&relay, "select id from seen order by id").await;
            relay.run("commit").await;
            shown += expected.len();
            let seen = brief(&relay.seen(watcher).await);
            assert_eq!(seen, expected, "{encoding}: {table}");
        }
        assert!(shown > tables.len(), "{encoding}: most show something");
    }
}

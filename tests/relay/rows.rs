//! What arrives of a row.

use serde_json::json;

use crate::harness::{Relay, brief};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_payload_has_the_keys_that_clients_of_supabase_read() {
    let mut relay = Relay::start(
        "create table t (id int primary key, tags text[], doc jsonb, price numeric(8,2), at timestamptz);
         grant select on t to anon",
        "t",
    )
    .await;
    let watcher = relay.watch("anon", &json!({}), "t").await;
    relay
        .run(
            "insert into t values (1, '{a,\"b c\",null}', '{\"k\": [1, 2.50]}', 1.50, '2024-02-29 12:00:00+02');
             update t set price = 'NaN' where id = 1;
             delete from t",
        )
        .await;
    let seen = relay.seen(&watcher).await;
    assert_eq!(brief(&seen), ["INSERT 1", "UPDATE 1", "DELETE 1"]);
    let insert = seen[0].change();
    assert_eq!(insert["schema"], "public");
    assert_eq!(insert["table"], "t");
    assert_eq!(insert["errors"], json!(null));
    assert_eq!(
        insert["record"],
        json!({"id": 1, "tags": ["a", "b c", null], "doc": {"k": [1, 2.50]}, "price": 1.50,
               "at": "2024-02-29T10:00:00+00:00"})
    );
    assert!(insert.get("old_record").is_none());
    assert_eq!(
        insert["columns"],
        json!([{"name": "id", "type": "int4"}, {"name": "tags", "type": "_text"},
               {"name": "doc", "type": "jsonb"}, {"name": "price", "type": "numeric"},
               {"name": "at", "type": "timestamptz"}])
    );
    let update = seen[1].change();
    assert_eq!(update["record"]["price"], "NaN");
    assert_eq!(update["old_record"], json!({"id": 1}));
    let delete = seen[2].change();
    assert_eq!(delete["old_record"], json!({"id": 1}));
    assert!(delete.get("record").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_untouched_large_value_is_absent_never_null_and_there_under_full_identity() {
    let mut relay = Relay::start(
        "create table t (id int primary key, n int, large text);
         alter table t alter large set storage external;
         grant select on t to anon",
        "t",
    )
    .await;
    let watcher = relay.watch("anon", &json!({}), "t").await;
    relay
        .run("insert into t values (1, 1, repeat('x', 10000)); update t set n = 2")
        .await;
    let seen = relay.seen(&watcher).await;
    assert_eq!(seen[1].change()["record"], json!({"id": 1, "n": 2}));
    relay
        .run("alter table t replica identity full; update t set n = 3")
        .await;
    let seen = relay.seen(&watcher).await;
    assert_eq!(
        seen[0].change()["record"]["large"].as_str().map(str::len),
        Some(10000)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncate_is_told_as_resync() {
    let mut relay = Relay::start(
        "create table t (id int primary key); grant select on t to anon",
        "t",
    )
    .await;
    let mut watcher = relay.watch("anon", &json!({}), "t").await;
    relay.run("insert into t values (1); truncate t").await;
    assert_eq!(
        brief(&relay.seen(&watcher).await),
        ["INSERT 1", "resync truncated"]
    );
    watcher.join(&relay.core).await.unwrap();
    relay.run("insert into t values (2)").await;
    assert_eq!(brief(&relay.seen(&watcher).await), ["INSERT 2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_many_rows_arrives_whole_and_in_order() {
    let mut relay = Relay::start(
        "create table t (id int primary key); grant select on t to anon",
        "t",
    )
    .await;
    let watcher = relay.watch("anon", &json!({}), "t").await;
    relay
        .run("insert into t select generate_series(1, 5000)")
        .await;
    let seen = relay.seen(&watcher).await;
    let expected: Vec<String> = (1..=5000).map(|n| format!("INSERT {n}")).collect();
    assert_eq!(brief(&seen), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_replication_connection_is_cut() {
    let mut relay = Relay::start(
        "create table t (id int primary key); grant select on t to anon",
        "t",
    )
    .await;
    let watcher = relay.watch("anon", &json!({}), "t").await;
    for round in 0..5 {
        relay
            .run(&format!("insert into t values ({})", round * 2))
            .await;
        relay
            .run("select pg_terminate_backend(active_pid) from pg_replication_slots where active_pid is not null and database = current_database()")
            .await;
        relay
            .run(&format!("insert into t values ({})", round * 2 + 1))
            .await;
    }
    let expected: Vec<String> = (0..10).map(|n| format!("INSERT {n}")).collect();
    assert_eq!(brief(&relay.seen(&watcher).await), expected);
    assert!(relay.core.metrics.source_retries.get() > 0);
}

//! What arrives of a row.

use rowcast::subscription::Events;
use serde_json::json;

use crate::harness::{Relay, brief};

/// What stands before the names of what is not carried.
const PARTIAL: &str = "Error 206: Partial Content, not carried by the stream: ";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_payload_has_the_keys_that_clients_of_supabase_read() {
    let (mut relay, watcher) = Relay::watched("create table t (id int primary key, tags text[], doc jsonb, price numeric(8,2), at timestamptz)").await;
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
    let (mut relay, watcher) = Relay::watched(
        "create table t (id int primary key, n int, large text);
         alter table t alter large set storage external",
    )
    .await;
    relay
        .run("insert into t values (1, 1, repeat('x', 10000)); update t set n = 2")
        .await;
    let seen = relay.seen(&watcher).await;
    assert_eq!(seen[1].change()["record"], json!({"id": 1, "n": 2}));
    assert_eq!(
        seen[1].change()["errors"],
        json!([format!("{PARTIAL}large")])
    );
    assert_eq!(seen[1].change()["columns"].as_array().unwrap().len(), 3);
    relay
        .run("alter table t replica identity full; update t set n = 3")
        .await;
    let seen = relay.seen(&watcher).await;
    assert_eq!(
        seen[0].change()["record"]["large"].as_str().map(str::len),
        Some(10000)
    );
    assert_eq!(seen[0].change()["errors"], json!(null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_carried_is_named_only_to_those_who_may_read_it() {
    let mut relay = Relay::start(
        "create table t (id int primary key, n int, \"my, notes\" text, body text);
         alter table t alter body set storage external, alter \"my, notes\" set storage external;
         grant select (id, n, body) on t to anon; grant select on t to authenticated",
        "t",
    )
    .await;
    let some = relay.watch("anon", &json!({}), "t").await;
    let all = relay.watch("authenticated", &json!({}), "t").await;
    relay
        .run(
            "insert into t values (1, 1, repeat('n', 5000), repeat('b', 5000)); update t set n = 2",
        )
        .await;
    let fence = relay.fence().await;
    let some = some.until(fence).await;
    assert_eq!(some[0].change()["errors"], json!(null));
    assert_eq!(
        some[1].change()["errors"],
        json!([format!("{PARTIAL}body")])
    );
    let all = all.until(fence).await;
    assert_eq!(
        all[1].change()["errors"],
        json!([format!("{PARTIAL}my, notes, body")])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_too_large_keeps_its_small_values_and_is_judged_on_all() {
    let long = "k".repeat(70);
    let (fits, does_not) = ("f".repeat(62), "d".repeat(63));
    let mut relay = Relay::start(
        "create table t (id text primary key, fits text, does_not text, body text, none text);
         alter table t enable row level security;
         create policy p on t using (length(body) > 1000);
         grant select on t to anon; grant select (id, fits, does_not) on t to authenticated",
        "t",
    )
    .await;
    let filter = format!("does_not=eq.{does_not}");
    let watcher = relay
        .watch_filtered("anon", &json!({}), "t", Events::All, &filter)
        .await
        .unwrap();
    let narrow = relay.watch("authenticated", &json!({}), "t").await;
    relay
        .run(&format!(
            "insert into t values ('{long}', '{fits}', '{does_not}', repeat('b', 1100000), null);
             insert into t values ('other', '{fits}', 'other', repeat('b', 1100000), null);
             insert into t values ('escaped', '{fits}', '{does_not}', repeat(e'\\x01', 600000), null)"
        ))
        .await;
    let fence = relay.fence().await;
    let seen = watcher.until(fence).await;
    assert_eq!(
        seen.len(),
        2,
        "the filter holds on what is left out: {seen:?}"
    );
    let data = seen[0].change();
    assert_eq!(
        data["record"],
        json!({"id": long, "fits": fits, "none": null})
    );
    assert_eq!(data["errors"], json!(["Error 413: Payload Too Large"]));
    assert_eq!(data["columns"].as_array().unwrap().len(), 5);
    // 600,000 characters of which each is six in JSON.
    assert_eq!(
        seen[1].change()["errors"],
        json!(["Error 413: Payload Too Large"])
    );
    assert_eq!(
        seen[1].change()["record"],
        json!({"id": "escaped", "fits": fits, "none": null})
    );
    // Who may not read what is large gets everything.
    let seen = narrow.until(fence).await;
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[0].change()["errors"], json!(null));
    assert_eq!(
        seen[0].change()["record"],
        json!({"id": long, "fits": fits, "does_not": does_not})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_of_many_middling_values_is_cut_too_and_so_is_an_update_of_two_halves() {
    let mut relay = Relay::start(
        "do $$ begin execute (select 'create table wide (id int primary key, '
            || string_agg(format('c%s text', n), ', ') || ')' from generate_series(1, 400) n); end $$;
         do $$ begin execute (select 'alter table wide '
            || string_agg(format('alter c%s set storage external', n), ', ') from generate_series(1, 400) n); end $$;
         create table t (id int primary key, body text);
         alter table t replica identity full;
         grant select on t, wide to anon",
        "t, wide",
    )
    .await;
    let wide = relay.watch("anon", &json!({}), "wide").await;
    let halves = relay.watch("anon", &json!({}), "t").await;
    relay
        .run(
            "do $$ begin execute (select 'insert into wide select 1, '
                || string_agg('repeat(''x'', 13000)', ', ') from generate_series(1, 400)); end $$;
             insert into t values (1, repeat('a', 600000));
             update t set body = repeat('b', 600000)",
        )
        .await;
    let fence = relay.fence().await;
    let seen = wide.until(fence).await;
    assert_eq!(seen[0].change()["record"], json!({"id": 1}));
    assert!(seen[0].change().to_string().len() < 1 << 20);
    let seen = halves.until(fence).await;
    assert_eq!(seen[0].change()["errors"], json!(null));
    assert_eq!(
        seen[1].change()["errors"],
        json!(["Error 413: Payload Too Large"])
    );
    assert_eq!(seen[1].change()["record"], json!({"id": 1}));
    assert_eq!(seen[1].change()["old_record"], json!({"id": 1}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_without_a_key_is_delivered_in_full() {
    let (mut relay, watcher) = Relay::watched("create table t (id int, body text)").await;
    relay.run("insert into t values (1, 'a'), (1, 'a')").await;
    // Without an identity PostgreSQL itself refuses the rest.
    relay
        .sql
        .batch_execute("update t set body = 'b'")
        .await
        .unwrap_err();
    let seen = relay.seen(&watcher).await;
    assert_eq!(brief(&seen), ["INSERT 1", "INSERT 1"]);
    assert_eq!(seen[0].change()["record"], json!({"id": 1, "body": "a"}));
    assert_eq!(seen[0].change()["errors"], json!(null));
    relay
        .run("alter table t replica identity full; update t set body = 'b'; delete from t")
        .await;
    let seen = relay.seen(&watcher).await;
    assert_eq!(
        brief(&seen),
        ["UPDATE 1", "UPDATE 1", "DELETE 1", "DELETE 1"]
    );
    assert_eq!(seen[0].change()["record"], json!({"id": 1, "body": "b"}));
    assert_eq!(
        seen[0].change()["old_record"],
        json!({"id": 1, "body": "a"})
    );
    assert_eq!(
        seen[3].change()["old_record"],
        json!({"id": 1, "body": "b"})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_several_columns_comes_whole_and_a_deferrable_one_is_a_key_too() {
    let mut relay = Relay::start(
        "create table t (b int, x text, id int, primary key (id, b));
         create table d (id int primary key deferrable, x text);
         grant select on t, d to anon",
        "t, d",
    )
    .await;
    let watcher = relay.watch("anon", &json!({}), "t").await;
    let deferred = relay.watch("anon", &json!({}), "d").await;
    relay
        .run(
            "insert into t values (2, 'x', 1); update t set x = 'y'; update t set b = 3; delete from t;
             insert into d values (1, 'x')",
        )
        .await;
    let fence = relay.fence().await;
    let seen = watcher.until(fence).await;
    assert_eq!(
        brief(&seen),
        ["INSERT 1", "UPDATE 1", "UPDATE 1", "DELETE 1"]
    );
    let old: Vec<_> = seen[1..]
        .iter()
        .map(|seen| &seen.change()["old_record"])
        .collect();
    assert_eq!(
        old,
        [
            &json!({"b": 2, "id": 1}),
            &json!({"b": 2, "id": 1}),
            &json!({"b": 3, "id": 1})
        ]
    );
    assert_eq!(brief(&deferred.until(fence).await), ["INSERT 1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_key_that_an_index_identity_does_not_carry_is_not_made_up() {
    let (mut relay, watcher) = Relay::watched(
        "create table t (id int primary key, tenant int not null, code text not null, x int);
         create unique index identity on t (tenant, code);
         alter table t replica identity using index identity",
    )
    .await;
    relay
        .run(
            "insert into t values (1, 7, 'a', 0);
             update t set id = 2; update t set code = 'b'; delete from t",
        )
        .await;
    let seen = relay.seen(&watcher).await;
    assert_eq!(seen[1].change()["record"]["id"], 2);
    assert_eq!(seen[1].change()["old_record"], json!({}), "not the new key");
    assert_eq!(
        seen[2].change()["old_record"],
        json!({"tenant": 7, "code": "a"})
    );
    assert_eq!(
        seen[3].change()["old_record"],
        json!({"tenant": 7, "code": "b"})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_gets_the_columns_that_it_may_read_and_no_key_beside_them() {
    let mut relay = Relay::start(
        "create table t (id int primary key, body text, secret text);
         alter table t replica identity full;
         grant select (body) on t to anon; revoke all on t from authenticated",
        "t",
    )
    .await;
    let watcher = relay.watch("anon", &json!({}), "t").await;
    relay
        .run("insert into t values (1, 'a', 's'); update t set id = 2, secret = 'u'; delete from t")
        .await;
    let seen = relay.seen(&watcher).await;
    assert_eq!(seen.len(), 3);
    for seen in &seen {
        let data = seen.change();
        assert_eq!(data["columns"], json!([{"name": "body", "type": "text"}]));
        assert_eq!(data["errors"], json!(null));
        for row in ["record", "old_record"] {
            if let Some(row) = data.get(row) {
                assert_eq!(row, &json!({"body": "a"}));
            }
        }
    }
    let refused = relay.refused("authenticated", "t", "").await;
    assert!(
        refused.contains("permission denied for table t"),
        "{refused}"
    );
    let refused = relay.refused("anon", "t", "id=eq.1").await;
    assert!(
        refused.contains("invalid column for filter id"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_any_kind_arrive_as_they_are() {
    let table = "Größe \"x\".y, 'z' \\ 表";
    let quoted = table.replace('"', "\"\"");
    let mut relay = Relay::start(
        &format!(
            "create type \"Weird Mood\" as enum ('sad', 'so \"so\"');
             create table \"{quoted}\" (id int primary key, \"a,b\" int, \"select\" int, \"ÜNÏ\" text,
               \"qu\"\"ote\" \"Weird Mood\", \"back\\slash\" int, dropped int);
             alter table \"{quoted}\" drop column dropped;
             alter table \"{quoted}\" replica identity full;
             alter table \"{quoted}\" enable row level security;
             create policy p on \"{quoted}\" using (\"a,b\" = 1 and (select true));
             create policy q on \"{quoted}\" as restrictive using (\"qu\"\"ote\" <> 'sad');
             grant select on \"{quoted}\" to anon"
        ),
        &format!("\"{quoted}\""),
    )
    .await;
    let watcher = relay
        .watch_filtered("anon", &json!({}), table, Events::All, "ÜNÏ=eq.ü")
        .await
        .unwrap();
    relay
        .run(&format!(
            "insert into \"{quoted}\" values (1, 1, 2, 'ü', 'so \"so\"', 3), (2, 0, 2, 'ü', 'so \"so\"', 3);
             delete from \"{quoted}\""
        ))
        .await;
    let seen = relay.seen(&watcher).await;
    assert_eq!(brief(&seen), ["INSERT 1", "DELETE 1"]);
    let data = seen[0].change();
    assert_eq!(data["table"], table);
    let row = json!({"id": 1, "a,b": 1, "select": 2, "ÜNÏ": "ü", "qu\"ote": "so \"so\"", "back\\slash": 3});
    assert_eq!(data["record"], row);
    assert_eq!(seen[1].change()["old_record"], row);
    let types: Vec<_> = data["columns"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["type"])
        .collect();
    assert_eq!(
        types,
        ["int4", "int4", "int4", "text", "Weird Mood", "int4"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncate_is_told_as_resync() {
    let (mut relay, mut watcher) = Relay::watched("create table t (id int primary key)").await;
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
    let (mut relay, watcher) = Relay::watched("create table t (id int primary key)").await;
    relay
        .run("insert into t select generate_series(1, 5000)")
        .await;
    let seen = relay.seen(&watcher).await;
    let expected: Vec<String> = (1..=5000).map(|n| format!("INSERT {n}")).collect();
    assert_eq!(brief(&seen), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_replication_connection_is_cut() {
    let (mut relay, watcher) = Relay::watched("create table t (id int primary key)").await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_the_log_cannot_hold_is_said_and_costs_nothing_after_it() {
    let mut relay = Relay::with(
        "create table t (id int primary key, body text); grant select on t to anon",
        "t",
        |config| config.log_max_bytes = 8 << 20,
    )
    .await;
    let mut watcher = relay.watch("anon", &json!({}), "t").await;
    relay
        .run("insert into t values (1, repeat('x', 20000000))")
        .await;
    assert_eq!(brief(&relay.seen(&watcher).await), ["resync too_large"]);
    watcher.join(&relay.core).await.unwrap();
    relay.run("update t set id = 2").await;
    relay.run("insert into t values (3, 'x')").await;
    assert_eq!(brief(&relay.seen(&watcher).await), ["UPDATE 2", "INSERT 3"]);
}

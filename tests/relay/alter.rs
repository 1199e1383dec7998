//! `ALTER` in mid-stream: each row under the names and types of its own place.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Relay, Seen, brief};

/// A relay that looks at the catalog only where the stream makes it look.
async fn relay(schema: &str, tables: &str) -> Relay {
    Relay::with(schema, tables, |config| {
        config.catalog_interval = Duration::from_secs(3600);
    })
    .await
}

fn types(seen: &Seen) -> Vec<(&str, &str)> {
    let columns = seen.change()["columns"].as_array().expect("columns");
    columns
        .iter()
        .map(|column| {
            (
                column["name"].as_str().expect("a name"),
                column["type"].as_str().expect("a type"),
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_on_both_sides_of_an_alter_have_each_its_own_columns() {
    let mut relay = relay(
        "create table t (id int primary key, a int); grant select on t to anon",
        "t",
    )
    .await;
    let watcher = relay.watch("anon", &json!({}), "t").await;
    relay.run("insert into t values (0, 0)").await;
    assert_eq!(brief(&relay.seen(&watcher).await), ["INSERT 0"]);
    for (before, alter, after, records, columns) in [
        (
            "insert into t values (1, 1)",
            "alter table t add column b text default 'x'",
            "insert into t values (2, 2)",
            [json!({"id": 1, "a": 1}), json!({"id": 2, "a": 2, "b": "x"})],
            vec![("id", "int4"), ("a", "int4"), ("b", "text")],
        ),
        (
            "update t set a = 7 where id = 1",
            "alter table t rename column a to \"A b\"",
            "update t set \"A b\" = 8 where id = 1",
            [
                json!({"id": 1, "a": 7, "b": "x"}),
                json!({"id": 1, "A b": 8, "b": "x"}),
            ],
            vec![("id", "int4"), ("A b", "int4"), ("b", "text")],
        ),
        (
            "insert into t values (3, 3, 'y')",
            "alter table t alter \"A b\" type text using \"A b\" || '!'",
            "insert into t values (4, '4', 'y')",
            [
                json!({"id": 3, "A b": 3, "b": "y"}),
                json!({"id": 4, "A b": "4", "b": "y"}),
            ],
            vec![("id", "int4"), ("A b", "text"), ("b", "text")],
        ),
        (
            "insert into t values (5, '5', 'y')",
            "alter table t alter \"A b\" type int[] using null",
            "insert into t values (6, '{6,null}', 'y')",
            [
                json!({"id": 5, "A b": "5", "b": "y"}),
                json!({"id": 6, "A b": [6, null], "b": "y"}),
            ],
            vec![("id", "int4"), ("A b", "_int4"), ("b", "text")],
        ),
        (
            "insert into t values (7, null, 'y')",
            "alter table t drop column \"A b\"",
            "insert into t values (8, 'y')",
            [
                json!({"id": 7, "A b": null, "b": "y"}),
                json!({"id": 8, "b": "y"}),
            ],
            vec![("id", "int4"), ("b", "text")],
        ),
        (
            "insert into t values (9, 'y')",
            "create type pair as (a int, b bool); alter table t add column a pair",
            "insert into t values (10, 'y', row(1, true))",
            [
                json!({"id": 9, "b": "y"}),
                json!({"id": 10, "b": "y", "a": {"a": 1, "b": true}}),
            ],
            vec![("id", "int4"), ("b", "text"), ("a", "pair")],
        ),
    ] {
        relay.run(before).await;
        let mut seen = relay.seen(&watcher).await;
        relay.run(&format!("{alter}; {after}")).await;
        seen.extend(relay.seen(&watcher).await);
        assert_eq!(seen.len(), 2, "{alter}: {seen:?}");
        for (seen, record) in seen.iter().zip(records) {
            assert_eq!(seen.change()["record"], record, "{alter}");
            assert_eq!(seen.change()["errors"], json!(null));
        }
        assert_eq!(types(&seen[1]), columns, "{alter}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_identities_change_in_mid_stream() {
    let mut relay = relay(
        "create table t (id int primary key, code int not null, x int); grant select on t to anon",
        "t",
    )
    .await;
    let watcher = relay.watch("anon", &json!({}), "t").await;
    relay.run("insert into t values (1, 10, 100)").await;
    assert_eq!(brief(&relay.seen(&watcher).await), ["INSERT 1"]);
    for (alter, old) in [
        (
            "alter table t replica identity full",
            json!({"id": 1, "code": 10, "x": 100}),
        ),
        (
            "alter table t drop constraint t_pkey",
            json!({"id": 1, "code": 10, "x": 101}),
        ),
        (
            "alter table t add primary key (code, id); alter table t replica identity default",
            json!({"id": 1, "code": 10}),
        ),
        (
            "create unique index by_code on t (code); alter table t replica identity using index by_code",
            json!({"code": 10}),
        ),
    ] {
        relay.run(&format!("{alter}; update t set x = x + 1")).await;
        let seen = relay.seen(&watcher).await;
        assert_eq!(brief(&seen), ["UPDATE 1"], "{alter}");
        assert_eq!(seen[0].change()["old_record"], old, "{alter}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_takes_another_name_or_schema_is_another_one_to_its_clients() {
    for (alter, table) in [
        ("alter table t rename to renamed", "renamed"),
        ("alter table t set schema elsewhere", "elsewhere.t"),
    ] {
        let mut relay = relay(
            "create schema elsewhere; create table t (id int primary key); grant select on t to anon",
            "t",
        )
        .await;
        let mut watcher = relay.watch("anon", &json!({}), "t").await;
        relay.run("insert into t values (1)").await;
        assert_eq!(brief(&relay.seen(&watcher).await), ["INSERT 1"]);
        relay
            .run(&format!("{alter}; insert into {table} values (2)"))
            .await;
        let seen = relay.seen(&watcher).await;
        assert_eq!(brief(&seen), ["resync schema_changed"], "{alter}");
        assert!(watcher.join(&relay.core).await.is_err(), "{alter}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_before_an_alter_in_its_transaction_is_exact_or_said_to_be_missed() {
    for (alter, after, may_be_missed) in [
        // What it has is still there under the same names: nothing is ever missed.
        (
            "alter table t add column b int",
            "insert into t values (3, 3, 3)",
            false,
        ),
        // PostgreSQL may describe the table anew before the row already. What the row has nobody
        // can then hold against rules that know another name or type.
        (
            "alter table t rename column a to b",
            "insert into t values (3, 3)",
            true,
        ),
        (
            "alter table t alter a type text",
            "insert into t values (3, '3')",
            true,
        ),
        (
            "alter table t drop column a",
            "insert into t values (3)",
            true,
        ),
    ] {
        for known_before in [false, true] {
            let mut relay = relay(
                "create table t (id int primary key, a int); grant select on t to anon",
                "t",
            )
            .await;
            let mut watcher = relay.watch("anon", &json!({}), "t").await;
            if known_before {
                relay.run("insert into t values (1, 1)").await;
                assert_eq!(brief(&relay.seen(&watcher).await), ["INSERT 1"]);
            }
            relay
                .run(&format!("insert into t values (2, 2); {alter}; {after}"))
                .await;
            let seen = relay.seen(&watcher).await;
            if may_be_missed && brief(&seen) == ["resync undecided"] {
                watcher.join(&relay.core).await.unwrap();
                relay.run("update t set id = 4 where id = 3").await;
                assert_eq!(brief(&relay.seen(&watcher).await), ["UPDATE 4"], "{alter}");
                continue;
            }
            assert_eq!(brief(&seen), ["INSERT 2", "INSERT 3"], "{alter}");
            assert_eq!(seen[0].change()["record"], json!({"id": 2, "a": 2}));
            assert_eq!(types(&seen[0]), [("id", "int4"), ("a", "int4")]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_and_its_types_made_a_moment_ago_reach_whoever_watches_everything() {
    let mut relay = relay("", "fence").await;
    let watcher = relay.watch("anon", &json!({}), "*").await;
    relay.run("create type mood as enum ('sad', 'ok')").await;
    relay.run("create type pair as (a int, b mood)").await;
    relay
        .run("create table fresh (id int primary key, m mood, p pair, ps pair[]); grant select on fresh to anon")
        .await;
    relay.run("alter publication rowcast add table fresh").await;
    relay
        .run("insert into fresh values (1, 'ok', row(1, 'sad'), array[row(2, 'ok')::pair])")
        .await;
    relay.run("alter type mood add value 'new'").await;
    relay
        .run("insert into fresh values (2, 'new', null, null)")
        .await;
    let seen = relay.seen(&watcher).await;
    assert_eq!(brief(&seen), ["INSERT 1", "INSERT 2"]);
    assert_eq!(
        seen[0].change()["record"],
        json!({"id": 1, "m": "ok", "p": {"a": 1, "b": "sad"}, "ps": [{"a": 2, "b": "ok"}]})
    );
    assert_eq!(
        types(&seen[0]),
        [
            ("id", "int4"),
            ("m", "mood"),
            ("p", "pair"),
            ("ps", "_pair")
        ]
    );
    assert_eq!(seen[1].change()["record"]["m"], "new");
    // Whoever joins by name a moment after is not told that there is no such table either.
    relay
        .run("create table later (id int primary key); grant select on later to anon; alter publication rowcast add table later")
        .await;
    let later = relay.watch("anon", &json!({}), "later").await;
    relay.run("insert into later values (1)").await;
    let fence = relay.fence().await;
    assert_eq!(brief(&later.until(fence).await), ["INSERT 1"]);
    assert_eq!(brief(&watcher.until(fence).await), ["INSERT 1"]);
}

//! Rules that meet: filters, selections, generated columns, partitions, rows that are too large and
//! tables that are altered, two and three at a time.

use std::time::Duration;

use rowcast::subscription::Events;
use serde_json::{Value, json};

use crate::generated::PUBLISH_GENERATED;
use crate::harness::{ANN, BEN, Relay, Seen, Watcher, brief};

/// Leaves whose columns stand in another order, each with all of its old rows.
const LEAVES: &str = "create table t (id int not null, region text not null, n int,
       doubled int generated always as (n * 2) stored, owner uuid, body text,
       primary key (id, region)) partition by list (region);
     create table t_de (body text, gone int, owner uuid, n int,
       doubled int generated always as (n * 2) stored, region text not null, id int not null);
     alter table t_de drop column gone;
     alter table t attach partition t_de for values in ('de');
     create table t_us partition of t for values in ('us');
     alter table t_de replica identity full; alter table t_us replica identity full;
     alter table t enable row level security; alter table t_de enable row level security;
     create policy own on t using (owner = auth.uid());
     create policy shown on t_de using (body <> 'hidden');
     grant select on t, t_de, t_us to authenticated";

/// Rows that come into a filter, leave it, and move between partitions inside and outside of it.
async fn move_about(relay: &Relay) {
    relay
        .run(&format!(
            "insert into t values (1, 'de', 5, default, '{ANN}', 'a'), (2, 'de', 4, default, '{ANN}', 'a'),
               (3, 'us', 6, default, '{BEN}', 'a'), (4, 'de', 7, default, '{ANN}', 'hidden');
             update t set n = 6 where id = 2;
             update t set n = 1 where id = 1;
             update t set region = 'us' where id = 2;
             update t set region = 'de', n = 0 where id = 2;
             update t set region = 'us', n = 8 where id = 2;
             delete from t where id = 4;
             delete from t"
        ))
        .await;
}

/// Rows as `kind id region doubled`, old ones behind `<`; every row has just the columns of the
/// selection and the key.
fn lines(seen: &[Seen]) -> Vec<String> {
    let row = |row: &Value| {
        let names: Vec<_> = row
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(names, ["doubled", "id", "region"], "{row}");
        format!(
            " {} {} {}",
            row["id"],
            row["region"].as_str().unwrap(),
            row["doubled"]
        )
    };
    let line = |seen: &Seen| {
        let data = seen.change();
        assert_eq!(data["errors"], json!(null), "{data}");
        let mut line = data["type"].as_str().unwrap().to_owned();
        line.extend(data.get("record").map(row));
        if let Some(old) = data.get("old_record") {
            line.push_str(" <");
            line.push_str(&row(old));
        }
        line
    };
    seen.iter().map(line).collect()
}

async fn watch_doubled(relay: &Relay, user: &str, table: &str) -> Watcher {
    let claims = json!({"sub": user});
    let select = ["doubled", "region"];
    relay
        .watch_columns("authenticated", &claims, table, "doubled=gte.10", &select)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generated_column_is_filtered_on_and_selected_under_the_root_of_its_partitions() {
    let mut relay = Relay::start(LEAVES, "t with (publish_via_partition_root = true)").await;
    relay.run(PUBLISH_GENERATED).await;
    let ann = watch_doubled(&relay, ANN, "t").await;
    let ben = watch_doubled(&relay, BEN, "t").await;
    move_about(&relay).await;
    let fence = relay.fence().await;
    assert_eq!(
        lines(&ann.until(fence).await),
        [
            "INSERT 1 de 10",
            // Only the root's policies count where the rows are the root's.
            "INSERT 4 de 14",
            "UPDATE 2 de 12 < 2 de 8",
            "DELETE < 2 de 12",
            "INSERT 2 us 12",
            "DELETE < 2 us 12",
            "INSERT 2 us 16",
            "DELETE < 4 de 14",
            "DELETE < 2 us 16",
        ]
    );
    assert_eq!(
        lines(&ben.until(fence).await),
        ["INSERT 3 us 12", "DELETE < 3 us 12"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generated_column_is_filtered_on_and_selected_in_leaves_under_both_their_policies() {
    let mut relay = Relay::start(LEAVES, "t_de, t_us").await;
    relay.run(PUBLISH_GENERATED).await;
    let de = watch_doubled(&relay, ANN, "t_de").await;
    let us = watch_doubled(&relay, ANN, "t_us").await;
    let ben = watch_doubled(&relay, BEN, "t_us").await;
    move_about(&relay).await;
    let fence = relay.fence().await;
    assert_eq!(
        lines(&de.until(fence).await),
        [
            "INSERT 1 de 10",
            "UPDATE 2 de 12 < 2 de 8",
            "DELETE < 2 de 12"
        ]
    );
    assert_eq!(
        lines(&us.until(fence).await),
        [
            "INSERT 2 us 12",
            "DELETE < 2 us 12",
            "INSERT 2 us 16",
            "DELETE < 2 us 16"
        ]
    );
    assert_eq!(
        lines(&ben.until(fence).await),
        ["INSERT 3 us 12", "DELETE < 3 us 12"]
    );
}

const TOO_LARGE: &str = "Error 413: Payload Too Large";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cut_of_a_large_row_is_filtered_on_whole_and_no_selection_pays_for_what_it_leaves_out()
 {
    let mut relay = Relay::with(
        "create table t (id int primary key, n int, kind text, body text);
         alter table t replica identity full;
         grant select on t to anon",
        "t",
        |config| config.max_record_bytes = 10_000,
    )
    .await;
    let claims = json!({});
    let all =
        |filter: &'static str| relay.watch_filtered("anon", &claims, "t", Events::All, filter);
    let some = |filter: &'static str, select: &'static [&str]| {
        relay.watch_columns("anon", &claims, "t", filter, select)
    };
    // On what is cut: decided here, asked, negated; on what is not; both.
    let matching = [
        all("body=like.b%").await.unwrap(),
        all("body=match.^b+(x|c)$").await.unwrap(),
        all("body=neq.b").await.unwrap(),
        all("n=lt.10").await.unwrap(),
        all("kind=in.(a,z),body=not.like.%z").await.unwrap(),
    ];
    let small = some("body=like.b%", &["n"]).await.unwrap();
    let large = some("n=lt.10", &["body"]).await.unwrap();
    let others = [
        all("body=like.c%").await.unwrap(),
        all("body=match.^b$").await.unwrap(),
        all("n=gt.10").await.unwrap(),
        some("body=eq.b", &["n"]).await.unwrap(),
    ];
    relay
        .run(
            "insert into t values (1, 1, 'a', repeat('b', 6000) || 'x');
             update t set n = 2;
             update t set body = repeat('b', 20000) || 'x';
             update t set n = 3, body = repeat('b', 6000) || 'c';
             delete from t",
        )
        .await;
    let fence = relay.fence().await;
    let whole = |n: i32, end: &str| json!({"id": 1, "n": n, "kind": "a", "body": format!("{}{end}", "b".repeat(6000))});
    let cut = |n: i32| json!({"id": 1, "n": n, "kind": "a"});
    for watcher in &matching {
        let seen = watcher.until(fence).await;
        let seen: Vec<_> = seen.iter().map(Seen::change).collect();
        assert_eq!(seen.len(), 5, "{seen:?}");
        assert_eq!(seen[0]["record"], whole(1, "x"));
        assert_eq!(seen[0]["errors"], json!(null));
        // Either half would fit.
        for (at, before, after) in [(1, 1, 2), (2, 2, 2), (3, 2, 3)] {
            assert_eq!(seen[at]["record"], cut(after), "{at}");
            assert_eq!(seen[at]["old_record"], cut(before), "{at}");
            assert_eq!(seen[at]["errors"], json!([TOO_LARGE]), "{at}");
            assert_eq!(seen[at]["columns"].as_array().unwrap().len(), 4);
        }
        assert_eq!(seen[4]["old_record"], whole(3, "c"));
        assert_eq!(seen[4]["errors"], json!(null));
    }
    let seen = small.until(fence).await;
    assert_eq!(seen.len(), 5);
    let at = |at: usize, row: &str| seen[at].change()[row].clone();
    for seen in &seen {
        assert_eq!(
            seen.change()["errors"],
            json!(null),
            "nothing large goes out"
        );
    }
    assert_eq!(at(3, "record"), json!({"id": 1, "n": 3}));
    assert_eq!(at(3, "old_record"), json!({"id": 1, "n": 2}));
    let seen = large.until(fence).await;
    assert_eq!(seen.len(), 5);
    for seen in &seen[1..4] {
        assert_eq!(seen.change()["record"], json!({"id": 1}));
        assert_eq!(seen.change()["old_record"], json!({"id": 1}));
        assert_eq!(seen.change()["errors"], json!([TOO_LARGE]));
    }
    for watcher in &others {
        assert_eq!(brief(&watcher.until(fence).await), [""; 0]);
    }
}

/// What comes of one row that is written after `alter`, and of another once a client that was told
/// to read again has joined again. The catalog is looked at only where the stream says so.
struct Altered {
    alter: &'static str,
    filter: &'static str,
    select: &'static [&'static str],
    row: &'static str,
    /// `INSERT 2 {…}`, or the reason of a resync and of the refusal that follows.
    expected: &'static str,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alter_of_what_is_filtered_on_or_selected_is_exact_or_said() {
    const BOTH: &[&str] = &["n", "body"];
    for Altered {
        alter,
        filter,
        select,
        row,
        expected,
    } in [
        Altered {
            alter: "alter table t rename n to m",
            filter: "n=eq.5",
            select: &["body"],
            row: "(2, 5, 'ab', 0)",
            expected: "invalid column for filter n",
        },
        Altered {
            alter: "alter table t rename body to text",
            filter: "n=eq.5",
            select: BOTH,
            row: "(2, 5, 'ab', 0)",
            expected: "invalid column for select body",
        },
        Altered {
            alter: "alter table t rename extra to other",
            filter: "n=eq.5",
            select: BOTH,
            row: "(2, 5, 'ab', 0)",
            expected: r#"INSERT {"body":"ab","id":2,"n":5}"#,
        },
        Altered {
            alter: "alter table t drop column n",
            filter: "n=eq.5",
            select: &["body"],
            row: "(2, 'ab', 0)",
            expected: "invalid column for filter n",
        },
        Altered {
            alter: "alter table t drop column body",
            filter: "n=eq.5",
            select: BOTH,
            row: "(2, 5, 0)",
            expected: "invalid column for select body",
        },
        Altered {
            alter: "alter table t drop column extra",
            filter: "n=eq.5,body=like.a%",
            select: BOTH,
            row: "(2, 5, 'ab')",
            expected: r#"INSERT {"body":"ab","id":2,"n":5}"#,
        },
        Altered {
            alter: "alter table t alter n type bigint",
            filter: "n=gt.4",
            select: &["n"],
            row: "(2, 5000000000, 'ab', 0)",
            expected: r#"INSERT {"id":2,"n":5000000000}"#,
        },
        Altered {
            alter: "alter table t alter n type smallint",
            filter: "n=lt.100000",
            select: &["n"],
            row: "(2, 5, 'ab', 0)",
            expected: "is out of range for type smallint",
        },
        Altered {
            alter: "alter table t alter body type varchar(3)",
            filter: "body=neq.abcd",
            select: &["body"],
            row: "(2, 5, 'abc', 0)",
            expected: r#"INSERT {"body":"abc","id":2}"#,
        },
        Altered {
            alter: "alter table t alter body type char(4)",
            filter: "body=eq.ab",
            select: &["body"],
            row: "(2, 5, 'ab', 0)",
            expected: r#"INSERT {"body":"ab  ","id":2}"#,
        },
        Altered {
            alter: "alter table t alter body type int using 7",
            filter: "body=like.a%",
            select: &["n"],
            row: "(2, 5, 7, 0)",
            expected: "operator like requires a text-compatible column type, got integer",
        },
        Altered {
            alter: "alter table t add column later int default 7",
            filter: "n=eq.5",
            select: BOTH,
            row: "(2, 5, 'ab', 0)",
            expected: r#"INSERT {"body":"ab","id":2,"n":5}"#,
        },
        // Another column of the same name and type: what is filtered on is what has the name.
        Altered {
            alter: "alter table t rename n to x; alter table t rename extra to n; alter table t rename x to extra",
            filter: "n=eq.0",
            select: &["n"],
            row: "(2, 5, 'ab', 0)",
            expected: r#"INSERT {"id":2,"n":0}"#,
        },
    ] {
        let mut relay = Relay::with(
            "create table t (id int primary key, n int, body text, extra int);
             grant select on t to anon",
            "t",
            |config| config.catalog_interval = Duration::from_secs(3600),
        )
        .await;
        let mut watcher = relay
            .watch_columns("anon", &json!({}), "t", filter, select)
            .await
            .unwrap_or_else(|refused| panic!("{filter}: {refused}"));
        relay
            .run("insert into t values (1, 5, 'ab', 5), (11, 0, 'ab', 0)")
            .await;
        let before = brief(&relay.seen(&watcher).await);
        assert!(!before.is_empty(), "{alter}: {filter} asks for one of them");
        relay.run(alter).await;
        relay.run(&format!("insert into t values {row}")).await;
        let mut seen = relay.seen(&watcher).await;
        if brief(&seen) == ["resync schema_changed"] {
            match watcher.join(&relay.core).await {
                Ok(()) => {
                    relay
                        .run(&format!(
                            "delete from t where id = 2; insert into t values {row}"
                        ))
                        .await;
                    seen = relay.seen(&watcher).await;
                    seen.retain(|seen| seen.brief() != "DELETE 2");
                }
                Err(refused) => {
                    assert!(refused.contains(expected), "{alter}: {refused}");
                    continue;
                }
            }
        }
        let [seen @ Seen::Change(_)] = &seen[..] else {
            panic!("{alter}: {seen:?}");
        };
        let data = seen.change();
        let line = format!("{} {}", data["type"].as_str().unwrap(), data["record"]);
        assert_eq!(line, expected, "{alter}");
        assert_eq!(data["errors"], json!(null));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_added_with_a_default_is_in_the_rows_that_were_there_and_can_be_filtered_on() {
    let mut relay = Relay::start(
        "create table t (id int primary key, n int);
         alter table t replica identity full; grant select on t to anon",
        "t",
    )
    .await;
    let claims = json!({});
    let all = relay.watch("anon", &claims, "t").await;
    let some = relay
        .watch_columns("anon", &claims, "t", "n=gt.0", &["n"])
        .await
        .unwrap();
    let refused = relay.refused("anon", "t", "extra=eq.7").await;
    assert!(
        refused.contains("invalid column for filter extra"),
        "{refused}"
    );
    relay.run("insert into t values (1, 1), (2, 2)").await;
    let fence = relay.fence().await;
    assert_eq!(all.until(fence).await.len(), 2);
    assert_eq!(some.until(fence).await.len(), 2);
    // The rows that are there are not written for this.
    relay
        .run("alter table t add column extra int default 7; update t set n = 3 where id = 1")
        .await;
    let fence = relay.fence().await;
    let seen = all.until(fence).await;
    assert_eq!(brief(&seen), ["UPDATE 1"]);
    assert_eq!(
        seen[0].change()["record"],
        json!({"id": 1, "n": 3, "extra": 7})
    );
    assert_eq!(
        seen[0].change()["old_record"],
        json!({"id": 1, "n": 1, "extra": 7})
    );
    let seen = some.until(fence).await;
    assert_eq!(seen[0].change()["record"], json!({"id": 1, "n": 3}));
    let filtered = relay
        .watch_filtered("anon", &claims, "t", Events::All, "extra=eq.7")
        .await
        .unwrap();
    relay
        .run(
            "update t set n = 4 where id = 2; insert into t values (3, 3, 8), (4, 4, default);
             delete from t where id = 1",
        )
        .await;
    assert_eq!(
        brief(&relay.seen(&filtered).await),
        ["UPDATE 2", "INSERT 4", "DELETE 1"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_take_each_others_names_are_never_judged_by_the_other() {
    // PostgreSQL's policies mean columns, clients' filters mean names.
    for together in [false, true] {
        let mut relay = Relay::with(
            "create table t (id int primary key, a bool, b bool);
             alter table t enable row level security;
             create policy p on t using (a);
             grant select on t to anon",
            "t",
            |config| config.catalog_interval = Duration::from_secs(3600),
        )
        .await;
        let claims = json!({});
        let mut all = relay.watch("anon", &claims, "t").await;
        let mut watcher = relay
            .watch_filtered("anon", &claims, "t", Events::All, "a=eq.true")
            .await
            .unwrap();
        relay
            .run("insert into t values (1, true, false), (2, false, true)")
            .await;
        let fence = relay.fence().await;
        for watcher in [&watcher, &all] {
            assert_eq!(brief(&watcher.until(fence).await), ["INSERT 1"]);
        }
        let swap =
            "alter table t rename a to x; alter table t rename b to a; alter table t rename x to b";
        let statements = [
            "insert into t values (3, true, false), (4, false, true)",
            swap,
            // Now the policy reads b, which is where a was.
            "insert into t values (5, true, true), (6, true, false), (7, false, true)",
        ];
        if together {
            relay.run(&statements.join("; ")).await;
        } else {
            for statement in statements {
                relay.run(statement).await;
            }
        }
        let fence = relay.fence().await;
        for (watcher, before, after) in [
            (&mut all, &["INSERT 3"][..], &["INSERT 5", "INSERT 6"][..]),
            (&mut watcher, &["INSERT 3"], &["INSERT 5"]),
        ] {
            let mut seen = brief(&watcher.until(fence).await);
            if seen.last().is_some_and(|last| last.starts_with("resync")) {
                seen.pop();
                assert!(seen.is_empty() || seen == before, "{together}: {seen:?}");
                watcher.join(&relay.core).await.unwrap();
            } else {
                assert_eq!(seen, [before, after].concat(), "{together}");
            }
        }
        relay
            .run("insert into t values (8, true, true), (9, true, false), (10, false, true)")
            .await;
        let fence = relay.fence().await;
        assert_eq!(brief(&watcher.until(fence).await), ["INSERT 8"]);
        assert_eq!(brief(&all.until(fence).await), ["INSERT 8", "INSERT 9"]);
    }
}

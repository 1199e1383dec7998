//! Tables that are emptied: who had rows of them is told, and nobody else.

use serde_json::json;

use crate::harness::{Relay, brief};

/// Partitions on two levels, and a table that has nothing to do with them.
const TREE: &str =
    "create table t (id int not null, region text not null, primary key (id, region))
       partition by list (region);
     create table t_eu partition of t for values in ('de', 'fr') partition by list (region);
     create table t_de partition of t_eu for values in ('de');
     create table t_fr partition of t_eu for values in ('fr');
     create table t_us partition of t for values in ('us');
     create table other (id int primary key); create table bystander (id int primary key);
     grant select on t, t_eu, t_de, t_fr, t_us, other, bystander to anon";

/// Runs each statement, sees that the watchers of exactly these tables are told, once, and that
/// everybody goes on. Each watcher has so many rows of what is inserted then.
async fn told(relay: &mut Relay, watched: &[(&str, usize)], statements: &[(&str, &[&str])]) {
    let mut watchers = Vec::new();
    for (table, rows) in watched {
        let watcher = relay.watch("anon", &json!({}), table).await;
        watchers.push((*table, *rows, watcher));
    }
    let bystander = relay.watch("anon", &json!({}), "bystander").await;
    for (id, (statement, emptied)) in (1..).zip(statements) {
        relay.run(statement).await;
        assert_eq!(brief(&relay.seen(&bystander).await), [""; 0], "{statement}");
        // The stream does not tell of partitions that are not published themselves.
        relay.reads_the_catalog().await;
        for (table, _, watcher) in &mut watchers {
            if emptied.contains(table) {
                let seen = brief(&watcher.until(u64::MAX).await);
                assert_eq!(seen, ["resync truncated"], "{statement}: {table}");
                watcher.join(&relay.core).await.unwrap();
            }
        }
        relay
            .run(&format!(
                "insert into t values ({id}, 'de'), ({id}, 'fr'), ({id}, 'us');
                 insert into other values ({id})"
            ))
            .await;
        let fence = relay.fence().await;
        for (table, rows, watcher) in &watchers {
            let seen = brief(&watcher.until(fence).await);
            let rows = vec![format!("INSERT {id}"); *rows];
            assert_eq!(seen, rows, "{statement}: {table}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_partitions_published_one_by_one_the_emptied_ones_are_told_and_no_others() {
    let mut relay = Relay::start(TREE, "t, other, bystander").await;
    told(
        &mut relay,
        &[("t_de", 1), ("t_fr", 1), ("t_us", 1), ("other", 1)],
        &[
            ("truncate t_us", &["t_us"]),
            ("truncate t_eu", &["t_de", "t_fr"]),
            ("truncate t", &["t_de", "t_fr", "t_us"]),
            ("truncate t_de, other", &["t_de", "other"]),
            ("begin; truncate t; rollback", &[]),
            ("delete from t_us where false", &[]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_partition_is_emptied_its_published_root_is_told_and_no_other_table() {
    let publication = "t, other, bystander with (publish_via_partition_root = true)";
    let mut relay = Relay::start(TREE, publication).await;
    told(
        &mut relay,
        &[("t", 3), ("other", 1)],
        &[
            ("truncate t_us", &["t"]),
            ("truncate t_eu", &["t"]),
            ("truncate t", &["t"]),
            ("truncate other", &["other"]),
            ("truncate t_fr, t_us", &["t"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncate_has_its_place_among_the_rows_and_reaches_what_it_cascades_to() {
    let mut relay = Relay::start(
        "create table t (id int primary key); create table child (id int primary key references t);
         create table hidden (id int primary key, user_id uuid);
         alter table hidden enable row level security;
         create policy p on hidden using (user_id = auth.uid());
         grant select on t, child, hidden to anon",
        "t, child, hidden",
    )
    .await;
    let mut t = relay.watch("anon", &json!({}), "t").await;
    let mut child = relay.watch("anon", &json!({}), "child").await;
    let hidden = relay.watch("anon", &json!({}), "hidden").await;
    relay
        .run(
            "begin; insert into t values (1); insert into child values (1); truncate t cascade;
             insert into t values (2); commit",
        )
        .await;
    let fence = relay.fence().await;
    for watcher in [&mut t, &mut child] {
        let seen = brief(&watcher.until(fence).await);
        assert_eq!(seen, ["INSERT 1", "resync truncated"]);
        watcher.join(&relay.core).await.unwrap();
    }
    relay.run("insert into child values (2)").await;
    let fence = relay.fence().await;
    assert_eq!(brief(&t.until(fence).await), [""; 0]);
    assert_eq!(brief(&child.until(fence).await), ["INSERT 2"]);
    assert_eq!(brief(&hidden.until(fence).await), [""; 0]);
    // Whoever sees no row of it learns that it was emptied all the same: what it held is not known.
    relay.run("truncate hidden").await;
    assert_eq!(brief(&relay.seen(&hidden).await), ["resync truncated"]);
}

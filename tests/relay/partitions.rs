//! Partitioned tables, under their root's name and one by one.

use serde_json::json;

use crate::generated::PUBLISH_GENERATED;
use crate::harness::{ANN, BEN, Relay, brief};

/// What follows the last table in `create publication … for table`.
const VIA_ROOT: &str = "t with (publish_via_partition_root = true)";

/// Three levels, with the columns in another order and holes in the leaves.
const TREE: &str = "create table t (id int not null, region text not null, owner uuid, body text,
       primary key (id, region)) partition by list (region);
     create table t_eu partition of t for values in ('de', 'fr') partition by list (region);
     create table t_de (gone int, body text, region text not null, owner uuid, id int not null);
     alter table t_de drop column gone;
     alter table t_eu attach partition t_de for values in ('de');
     create table t_fr partition of t_eu for values in ('fr');
     create table t_us partition of t for values in ('us');
     grant select on t, t_eu, t_de, t_fr, t_us to authenticated";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_all_leaves_come_under_the_root_whatever_their_own_columns_are() {
    let mut relay = Relay::start(TREE, VIA_ROOT).await;
    let watcher = relay.watch("authenticated", &json!({}), "t").await;
    // A leaf is not published beside its root.
    relay.refused("authenticated", "t_us", "").await;
    relay
        .run(
            "insert into t values (1, 'de', null, 'a'), (2, 'fr', null, 'b'), (3, 'us', null, 'c');
             update t set body = 'd' where id = 1;
             update t set region = 'us' where id = 1;
             delete from t where id = 2",
        )
        .await;
    let seen = relay.seen(&watcher).await;
    // A row that moves leaves one partition and enters another.
    assert_eq!(
        brief(&seen),
        [
            "INSERT 1", "INSERT 2", "INSERT 3", "UPDATE 1", "DELETE 1", "INSERT 1", "DELETE 2"
        ]
    );
    for seen in &seen {
        assert_eq!(seen.change()["table"], "t");
        assert_eq!(seen.change()["errors"], json!(null));
    }
    let row = json!({"id": 1, "region": "de", "owner": null, "body": "a"});
    assert_eq!(seen[0].change()["record"], row);
    assert_eq!(
        seen[3].change()["old_record"],
        json!({"id": 1, "region": "de"})
    );
    assert_eq!(
        seen[5].change()["record"],
        json!({"id": 1, "region": "us", "owner": null, "body": "d"})
    );
    assert_eq!(
        seen[6].change()["old_record"],
        json!({"id": 2, "region": "fr"})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_row_of_a_leaf_is_never_taken_for_more_than_its_own_identity_carries() {
    // The root's identity is not its leaves': what theirs does not carry comes as NULL.
    let schema = format!(
        "{TREE};
         alter table t enable row level security;
         create policy p on t using (owner is null or owner = auth.uid());
         alter table t replica identity full;
         alter table t_de alter body set storage external"
    );
    let mut relay = Relay::start(&schema, VIA_ROOT).await;
    let ben = relay.watch_as(BEN, "t").await;
    assert!(
        ben.notices
            .iter()
            .any(|notice| notice.contains("each of its partitions")),
        "{:?}",
        ben.notices
    );
    let ann = relay.watch_as(ANN, "t").await;
    relay
        .run(&format!(
            "insert into t values (1, 'de', '{ANN}', repeat('b', 5000));
             update t set owner = '{ANN}', id = 2;
             delete from t"
        ))
        .await;
    let fence = relay.fence().await;
    assert_eq!(brief(&ben.until(fence).await), [""; 0], "a NULL that lies");
    let seen = ann.until(fence).await;
    assert_eq!(brief(&seen), ["INSERT 1", "UPDATE 2"]);
    let update = seen[1].change();
    assert!(update["record"].get("body").is_none(), "{update}");
    assert_ne!(update["errors"], json!(null));
    // Once every leaf has it, the root's own does not matter.
    relay
        .run(
            "alter table t replica identity default; alter table t_de replica identity full;
             alter table t_fr replica identity full; alter table t_us replica identity full",
        )
        .await;
    let ann = relay.watch_as(ANN, "t").await;
    assert_eq!(ann.notices, [""; 0]);
    relay
        .run(&format!(
            "insert into t values (3, 'de', '{ANN}', 'x'), (4, 'us', '{ANN}', 'y'); delete from t"
        ))
        .await;
    let fence = relay.fence().await;
    let seen = ann.until(fence).await;
    assert_eq!(
        brief(&seen),
        ["INSERT 3", "INSERT 4", "DELETE 3", "DELETE 4"]
    );
    assert_eq!(
        seen[2].change()["old_record"],
        json!({"id": 3, "region": "de", "owner": ANN, "body": "x"})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaf_on_its_own_is_judged_by_every_level_above_it() {
    let schema = format!(
        "{TREE};
         alter table t enable row level security; alter table t_eu enable row level security;
         create policy p on t for select using (owner = auth.uid());
         create policy p on t_eu for select using (body <> 'hidden');
         create policy q on t_de for select using (body <> 'also hidden')"
    );
    // Without publish_via_partition_root a root stands for its leaves.
    let mut relay = Relay::start(&schema, "t").await;
    let claims = json!({"sub": ANN});
    // The root has no changes of its own.
    relay.refused("authenticated", "t", "").await;
    let mut de = relay.watch("authenticated", &claims, "t_de").await;
    let us = relay.watch("authenticated", &claims, "t_us").await;
    relay
        .run(&format!(
            "insert into t values (1, 'de', '{ANN}', 'x'), (2, 'de', '{BEN}', 'x'), (3, 'de', '{ANN}', 'hidden');
             insert into t values (4, 'de', '{ANN}', 'also hidden');
             insert into t values (5, 'us', '{ANN}', 'hidden'), (6, 'us', '{BEN}', 'x')"
        ))
        .await;
    let fence = relay.fence().await;
    // Row security of the leaf is not on: its policy is none.
    assert_eq!(brief(&de.until(fence).await), ["INSERT 1", "INSERT 4"]);
    assert_eq!(brief(&us.until(fence).await), ["INSERT 5"]);
    relay
        .run(
            "alter table t_de enable row level security; insert into t values (9, 'de', null, 'x')",
        )
        .await;
    let fence = relay.fence().await;
    assert_eq!(brief(&de.until(fence).await), ["resync access_changed"]);
    de.join(&relay.core).await.unwrap();
    relay
        .run(&format!(
            "insert into t values (7, 'de', '{ANN}', 'also hidden'), (8, 'de', '{ANN}', 'x')"
        ))
        .await;
    let fence = relay.fence().await;
    assert_eq!(brief(&de.until(fence).await), ["INSERT 8"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaves_come_and_go_in_mid_stream() {
    let mut relay = Relay::start(TREE, VIA_ROOT).await;
    let mut watcher = relay.watch("authenticated", &json!({}), "t").await;
    relay
        .run(
            "insert into t values (1, 'us', null, 'a');
             create table t_jp partition of t for values in ('jp');
             insert into t values (2, 'jp', null, 'b')",
        )
        .await;
    let seen = relay.seen(&watcher).await;
    assert_eq!(brief(&seen), ["INSERT 1", "INSERT 2"]);
    // What is detached is no longer the root's; its rows are gone without a DELETE.
    relay.run("alter table t detach partition t_jp").await;
    assert_eq!(watcher.resync().await, "truncated");
    watcher.join(&relay.core).await.unwrap();
    // PostgreSQL 14 goes on giving out its rows as the root's.
    relay
        .run(
            "do $$ begin if current_setting('server_version_num')::int >= 150000 then
               insert into t_jp values (3, 'jp', null, 'c');
             end if; end $$;
             insert into t values (4, 'us', null, 'd')",
        )
        .await;
    assert_eq!(brief(&relay.seen(&watcher).await), ["INSERT 4"]);
    relay
        .run("truncate t_jp; alter table t attach partition t_jp for values in ('jp')")
        .await;
    relay.run("insert into t values (5, 'jp', null, 'e')").await;
    assert_eq!(brief(&relay.seen(&watcher).await), ["INSERT 5"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaf_that_is_emptied_is_told_although_the_stream_does_not() {
    let mut relay = Relay::start(TREE, VIA_ROOT).await;
    let mut watcher = relay.watch("authenticated", &json!({}), "t").await;
    relay
        .run("insert into t values (1, 'us', null, 'a'), (2, 'de', null, 'b')")
        .await;
    assert_eq!(relay.seen(&watcher).await.len(), 2);
    relay.run("truncate t_us").await;
    assert_eq!(watcher.resync().await, "truncated");
    watcher.join(&relay.core).await.unwrap();
    relay.run("truncate t").await;
    assert_eq!(watcher.resync().await, "truncated");
    watcher.join(&relay.core).await.unwrap();
    relay.run("drop table t_de").await;
    assert_eq!(watcher.resync().await, "truncated");
    watcher.join(&relay.core).await.unwrap();
    relay.run("insert into t values (3, 'us', null, 'c')").await;
    assert_eq!(brief(&relay.seen(&watcher).await), ["INSERT 3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inheriting_table_is_a_table_of_its_own() {
    let mut relay = Relay::start(
        "create table parent (id int primary key, body text);
         create table child (extra int, primary key (id)) inherits (parent);
         alter table parent enable row level security;
         grant select on parent, child to anon",
        "parent",
    )
    .await;
    let parent = relay.watch("anon", &json!({}), "parent").await;
    let child = relay.watch("anon", &json!({}), "child").await;
    relay
        .run("insert into parent values (1, 'a'); insert into child values (2, 'b', 3)")
        .await;
    let fence = relay.fence().await;
    assert_eq!(brief(&parent.until(fence).await), [""; 0]);
    let seen = child.until(fence).await;
    assert_eq!(
        seen[0].change()["record"],
        json!({"id": 2, "body": "b", "extra": 3})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_columns_of_partitions_are_computed_for_the_root() {
    let mut relay = Relay::start(
        "create table t (id int primary key, twice int generated always as (id * 2) stored)
           partition by range (id);
         create table low partition of t for values from (0) to (10);
         create table high partition of t for values from (10) to (20);
         alter table low replica identity full; alter table high replica identity full;
         grant select on t to anon",
        VIA_ROOT,
    )
    .await;
    relay.run(PUBLISH_GENERATED).await;
    let watcher = relay.watch("anon", &json!({}), "t").await;
    relay
        .run("insert into t values (1), (11); delete from t")
        .await;
    let seen = relay.seen(&watcher).await;
    assert_eq!(
        brief(&seen),
        ["INSERT 1", "INSERT 11", "DELETE 1", "DELETE 11"]
    );
    assert_eq!(seen[1].change()["record"], json!({"id": 11, "twice": 22}));
    assert_eq!(
        seen[3].change()["old_record"],
        json!({"id": 11, "twice": 22})
    );
}

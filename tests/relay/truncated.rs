//! Tables that are emptied: who had rows of them is told, and nobody else.

use std::sync::Arc;

use rowcast::auth::Principal;
use rowcast::subscription::{Events, Wanted};
use serde_json::{Value, json};

use crate::harness::{ANN, BEN, Relay, brief, connect};
use crate::resume::{Client, Heard, person, settled, since, user, wish};

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

/// A binding that takes a TRUNCATE as a change.
fn asking(id: u32, table: &str, filtered: &str) -> Wanted {
    Wanted {
        events: Events::AllAndTruncate,
        ..wish(id, table, filtered)
    }
}

fn anon() -> Arc<Principal> {
    person("anon", &json!({}))
}

/// What a client hears up to the fence `last`, which it watches as its binding 9:
/// `t TRUNCATE [1]` and the like.
async fn heard(client: &Client, last: u64) -> Vec<String> {
    let mut heard = Vec::new();
    loop {
        match client.next().await {
            Heard::Change(_, data) if data["table"] == "fence" => {
                if data["record"]["id"] == last {
                    return heard;
                }
            }
            Heard::Change(bindings, data) => {
                let (table, kind) = (&data["table"], &data["type"]);
                let (table, kind) = (table.as_str().unwrap(), kind.as_str().unwrap());
                if kind == "TRUNCATE" {
                    assert_eq!(data["record"], Value::Null, "no row: {data}");
                    assert_eq!(
                        (&data["columns"], &data["errors"]),
                        (&json!([]), &Value::Null)
                    );
                    assert_eq!(data["schema"], "public");
                    assert!(data["commit_timestamp"].is_string(), "{data}");
                }
                heard.push(format!("{table} {kind} {bindings:?}"));
            }
            Heard::Resync(reason, _) => {
                heard.push(format!("resync {reason}"));
                return heard;
            }
            Heard::Joined | Heard::CaughtUp => {}
            other @ Heard::Full => panic!("{other:?}"),
        }
    }
}

async fn join(relay: &Relay, who: &Arc<Principal>, mut wanted: Vec<Wanted>) -> Client {
    wanted.push(wish(9, "fence", ""));
    Client::join(&relay.core, who, wanted).await
}

const LINKED: &str = "
    create table t (id int generated always as identity primary key, n int);
    create table child (id int primary key, t int references t);
    create table other (id int primary key);
    grant select on t, child, other to anon, authenticated";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_is_given_a_truncate_in_its_place_and_goes_on_and_others_are_told_to_read_again() {
    let mut relay = Relay::start(LINKED, "t, child, other").await;
    let all = join(
        &relay,
        &anon(),
        vec![asking(1, "t", ""), asking(2, "child", "")],
    )
    .await;
    // The rows that a filter passes are gone as well.
    let filtered = join(
        &relay,
        &anon(),
        vec![asking(1, "t", "n=eq.5"), asking(2, "t", "")],
    )
    .await;
    let open = Wanted {
        table: None,
        ..asking(1, "t", "")
    };
    let open = join(&relay, &anon(), vec![open]).await;
    let silent = join(&relay, &anon(), vec![wish(1, "t", "")]).await;
    let mixed = join(&relay, &anon(), vec![wish(1, "t", ""), asking(2, "t", "")]).await;
    let bystander = join(&relay, &anon(), vec![asking(1, "other", "")]).await;
    relay
        .run(
            "begin; insert into t (n) values (1); insert into child values (1, 1);
             truncate t restart identity cascade;
             insert into t (n) values (2); commit",
        )
        .await;
    let fence = relay.fence().await;
    assert_eq!(
        heard(&all, fence).await,
        [
            "t INSERT [1]",
            "child INSERT [2]",
            "t TRUNCATE [1]",
            "child TRUNCATE [2]",
            "t INSERT [1]"
        ]
    );
    assert_eq!(
        heard(&filtered, fence).await,
        ["t INSERT [2]", "t TRUNCATE [1, 2]", "t INSERT [2]"]
    );
    assert_eq!(
        heard(&open, fence).await,
        [
            "t INSERT [1]",
            "child INSERT [1]",
            "t TRUNCATE [1]",
            "child TRUNCATE [1]",
            "t INSERT [1]"
        ]
    );
    assert_eq!(
        heard(&silent, fence).await,
        ["t INSERT [1]", "resync truncated"]
    );
    assert_eq!(
        heard(&mixed, fence).await,
        ["t INSERT [1, 2]", "t TRUNCATE [2]", "resync truncated"],
        "a binding that did not ask is told as well"
    );
    assert_eq!(heard(&bystander, fence).await, [""; 0]);
    // Several tables at once, and a TRUNCATE that is taken back.
    relay.run("truncate other, child").await;
    relay.run("begin; truncate t cascade; rollback").await;
    let fence = relay.fence().await;
    assert_eq!(heard(&all, fence).await, ["child TRUNCATE [2]"]);
    assert_eq!(heard(&bystander, fence).await, ["other TRUNCATE [1]"]);
    assert_eq!(heard(&filtered, fence).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_say_nothing_of_a_truncate_but_who_can_see_no_row_at_all_learns_nothing() {
    let mut relay = Relay::start(
        "create table own (id int primary key, owner uuid);
         alter table own enable row level security;
         create policy mine on own to authenticated using (owner = auth.uid());
         create policy none on own to service_role using (false);
         create role teller; grant usage on schema public to teller;
         create policy asked on own to teller
           using (exists (select from fence f where f.id = -own.id));
         grant select on own, fence to anon, authenticated, teller",
        "own",
    )
    .await;
    let wanted = || vec![asking(1, "own", "")];
    let ann = join(&relay, &user(ANN), wanted()).await;
    let teller = join(&relay, &person("teller", &json!({})), wanted()).await;
    // No policy lets anon see a row.
    let denied = join(&relay, &anon(), wanted()).await;
    let denied_silent = join(&relay, &anon(), vec![wish(1, "own", "")]).await;
    relay
        .run(&format!(
            "insert into own values (1, '{BEN}'); truncate own"
        ))
        .await;
    let fence = relay.fence().await;
    assert_eq!(heard(&ann, fence).await, ["own TRUNCATE [1]"]);
    assert_eq!(heard(&teller, fence).await, ["own TRUNCATE [1]"]);
    assert_eq!(heard(&denied, fence).await, [""; 0]);
    assert_eq!(heard(&denied_silent, fence).await, [""; 0]);
    // A right that ends in the same transaction ends before the table is emptied.
    relay
        .run("begin; revoke select on own from authenticated; truncate own; commit")
        .await;
    let fence = relay.fence().await;
    assert_eq!(heard(&ann, fence).await, ["resync schema_changed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncate_that_was_missed_has_its_place_among_what_was_missed() {
    let mut relay = Relay::start(LINKED, "t, child, other").await;
    let start = settled(&mut relay).await;
    relay.run("insert into t (n) values (1)").await;
    let middle = settled(&mut relay).await;
    relay.run("truncate t cascade").await;
    let after = settled(&mut relay).await;
    relay.run("insert into t (n) values (2)").await;
    settled(&mut relay).await;
    let asks = |cursor| vec![since(asking(1, "t", "n=eq.2"), cursor)];
    let fence = relay.fence().await;
    for (cursor, expected) in [
        (start, &["t TRUNCATE [1]", "t INSERT [1]"][..]),
        (middle, &["t TRUNCATE [1]", "t INSERT [1]"]),
        (after, &["t INSERT [1]"]),
    ] {
        let mut wanted = asks(cursor);
        wanted.push(since(wish(9, "fence", ""), cursor));
        let client = Client::join(&relay.core, &anon(), wanted).await;
        assert_eq!(heard(&client, fence).await, expected);
    }
    let silent = |cursor| {
        vec![
            since(wish(1, "t", ""), cursor),
            since(wish(9, "fence", ""), cursor),
        ]
    };
    let client = Client::join(&relay.core, &anon(), silent(start)).await;
    let told = heard(&client, fence).await;
    assert_eq!(told, ["t INSERT [1]", "resync truncated"]);
    let client = Client::join(&relay.core, &anon(), silent(after)).await;
    assert_eq!(heard(&client, fence).await, ["t INSERT [1]"]);
    // The event's own cursor lies behind it: nothing comes twice.
    let client = Client::join(&relay.core, &anon(), asks(start)).await;
    let Heard::Change(_, data) = client.next().await else {
        panic!("the truncate was expected");
    };
    let behind = data["cursor"].as_str().unwrap().parse().unwrap();
    let client = Client::join(&relay.core, &anon(), asks(behind)).await;
    assert!(matches!(client.next().await, Heard::Change(_, data) if data["type"] == "INSERT"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_partitions_each_truncate_is_told_once_to_who_asks_and_to_who_does_not() {
    for via_root in [true, false] {
        let publication = format!("t, other with (publish_via_partition_root = {via_root})");
        let mut relay = Relay::start(TREE, &publication).await;
        let tables: &[&str] = if via_root {
            &["t"]
        } else {
            &["t_de", "t_fr", "t_us"]
        };
        let wanted = |wish: &dyn Fn(u32, &str, &str) -> Wanted| {
            let wanted = (1..).zip(tables);
            wanted.map(|(id, table)| wish(id, table, "")).collect()
        };
        let asks = join(&relay, &anon(), wanted(&asking)).await;
        relay
            .run("insert into t values (1, 'de'), (1, 'fr'), (1, 'us')")
            .await;
        let fence = relay.fence().await;
        assert_eq!(heard(&asks, fence).await.len(), 3);
        for _ in 0..3 {
            let silent = join(&relay, &anon(), wanted(&wish)).await;
            relay.run("truncate t").await;
            let fence = relay.fence().await;
            assert_eq!(heard(&silent, fence).await, ["resync truncated"]);
            let again = join(&relay, &anon(), wanted(&wish)).await;
            let mut told = heard(&asks, fence).await;
            told.sort();
            let expected: Vec<String> = (1..)
                .zip(tables)
                .map(|(id, table)| format!("{table} TRUNCATE [{id}]"))
                .collect();
            assert_eq!(told, expected);
            // What the catalog shows of it later is nothing new.
            relay.reads_the_catalog().await;
            for _ in 0..3 {
                let fence = relay.fence().await;
                assert_eq!(heard(&asks, fence).await, [""; 0]);
                assert_eq!(heard(&again, fence).await, [""; 0]);
            }
            again.go(&relay.core).await;
        }
        // One partition's end is not the root's: its other rows are there.
        relay.run("truncate t_us").await;
        if via_root {
            assert_eq!(asks.resync().await.0, "truncated");
        } else {
            let fence = relay.fence().await;
            assert_eq!(heard(&asks, fence).await, ["t_us TRUNCATE [3]"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncate_that_the_catalog_shows_before_the_stream_does_is_told_once_all_the_same() {
    let publication = "t, other with (publish_via_partition_root = true)";
    let mut relay = Relay::start(TREE, publication).await;
    let asks = join(&relay, &anon(), vec![asking(1, "t", "")]).await;
    for round in 0..5 {
        let silent = join(&relay, &anon(), vec![wish(1, "t", "")]).await;
        // Before the stream is back the catalog is read a few times.
        relay
            .run(
                "select pg_terminate_backend(active_pid) from pg_replication_slots
                 where database = current_database() and active;
                 truncate t",
            )
            .await;
        relay.reads_the_catalog().await;
        let fence = relay.fence().await;
        let told = heard(&asks, fence).await;
        assert_eq!(told, ["t TRUNCATE [1]"], "round {round}");
        assert_eq!(heard(&silent, fence).await, ["resync truncated"]);
        let again = join(&relay, &anon(), vec![wish(1, "t", "")]).await;
        for _ in 0..3 {
            relay.reads_the_catalog().await;
            let fence = relay.fence().await;
            assert_eq!(heard(&asks, fence).await, [""; 0], "round {round}");
            assert_eq!(heard(&again, fence).await, [""; 0], "round {round}");
        }
        silent.go(&relay.core).await;
        again.go(&relay.core).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_waited_for_the_truncate_is_not_in_doubt_because_of_it() {
    let mut relay = Relay::start(LINKED, "t, child, other").await;
    let asks = join(&relay, &anon(), vec![asking(1, "t", "")]).await;
    for round in 0..3 {
        // The older transaction, but the later one to commit.
        let (older, younger) = (connect(&relay.url).await, connect(&relay.url).await);
        older
            .batch_execute(&format!("begin; insert into other values ({round})"))
            .await
            .unwrap();
        younger
            .batch_execute("begin; truncate t cascade")
            .await
            .unwrap();
        let waits = older.batch_execute("insert into t (n) values (1); commit");
        let (waited, committed) = tokio::join!(waits, younger.batch_execute("commit"));
        waited.unwrap();
        committed.unwrap();
        let fence = relay.fence().await;
        let told = heard(&asks, fence).await;
        assert_eq!(told, ["t TRUNCATE [1]", "t INSERT [1]"]);
    }
}

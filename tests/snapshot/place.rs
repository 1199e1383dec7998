//! Where the changes begin that follow a snapshot.

use serde_json::json;

use crate::client::{Asked, Client, Heard, principal};
use crate::harness::{ANN, BEN, Relay};

const OPEN: &str = "
    create table t (id bigint primary key, version int default 0);
    alter table t replica identity full;
    grant select on t to authenticated;";

fn ann(relay: &Relay, asked: Asked) -> Client {
    let who = principal("authenticated", &json!({ "sub": ANN }));
    Client::new(&relay.core.router, who, asked)
}

#[tokio::test]
async fn a_good_cursor_takes_the_place_of_a_snapshot_and_a_bad_one_does_not() {
    let mut relay = Relay::start(OPEN, "t").await;
    relay.run("insert into t values (1)").await;
    let mut first = ann(&relay, Asked::of("t"));
    let pages = first.snapshot().await;
    relay.run("insert into t values (2)").await;
    let fence = relay.fence().await;
    for page in pages.clone() {
        for row in page.rows {
            first.rows.insert(1, row);
        }
    }
    first.follow(fence).await;
    assert_eq!(first.rows.keys().collect::<Vec<_>>(), [&1, &2]);
    let cursor = pages[0].cursor;
    let with = |since| Asked {
        since: Some(since),
        ..Asked::of("t")
    };
    let mut back = ann(&relay, with(cursor));
    back.join().await;
    assert_eq!(back.heard().await, Heard::Joined(vec![]));
    let Heard::Change(missed) = back.heard().await else {
        panic!("what was missed was expected");
    };
    assert_eq!(missed["record"]["id"], 2);
    let mut stranger = cursor;
    stranger.epoch.0 ^= 1;
    let mut ahead = cursor;
    ahead.offset.0 += 1_000_000;
    for bad in [stranger, ahead] {
        let mut lost = ann(&relay, with(bad));
        let pages = lost.snapshot().await;
        assert_eq!(pages[0].rows.len(), 2, "a snapshot instead of a resync");
        relay.run("update t set version = version + 1").await;
        let fence = relay.fence().await;
        for row in &pages[0].rows {
            lost.rows.insert(row["id"].as_i64().unwrap(), row.clone());
        }
        lost.follow(fence).await;
        assert_eq!((lost.again.len(), lost.wrong), (0, vec![]));
    }
}

#[tokio::test]
async fn a_new_token_of_the_same_user_does_not_have_the_rows_read_again() {
    let policy = "alter table t add owner uuid; alter table t enable row level security;
         create policy own on t using (owner is null or owner = auth.uid());";
    let mut relay = Relay::start(&format!("{OPEN}{policy}"), "t").await;
    relay.run("insert into t values (1)").await;
    let mut client = ann(&relay, Asked::of("t"));
    let pages = client.snapshot().await;
    client.rows.insert(1, pages[0].rows[0].clone());
    let fence = relay.fence().await;
    client.follow(fence).await;
    client.principal = principal("authenticated", &json!({ "sub": ANN, "iat": 1 }));
    client.join_same().await;
    relay.run("update t set version = 1").await;
    let fence = relay.fence().await;
    let mut heard = Vec::new();
    loop {
        match client.heard().await {
            Heard::Fence(written) if written == fence => break,
            other => heard.push(other),
        }
    }
    assert!(
        !heard.iter().any(|one| matches!(one, Heard::Page(_))),
        "{heard:?}"
    );
    let changes = heard.iter().filter(|one| matches!(one, Heard::Change(_)));
    assert_eq!(changes.count(), 1);
    // Another user's rows are others.
    client.principal = principal("authenticated", &json!({ "sub": BEN }));
    client.join_same().await;
    loop {
        match client.heard().await {
            Heard::Page(page) if page.last => break,
            Heard::Page(_) | Heard::Joined(_) | Heard::CaughtUp => {}
            other => panic!("pages were expected, not {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_truncated_table_is_read_again() {
    let mut relay = Relay::start(OPEN, "t").await;
    relay.run("insert into t values (1), (2)").await;
    let mut client = ann(&relay, Asked::of("t"));
    let fence = relay.fence().await;
    client.snapshot().await;
    relay.run("insert into t values (3)").await;
    relay.run("truncate t").await;
    relay.run("insert into t values (4)").await;
    client.begins_anew().await;
    let last = relay.fence().await;
    assert!(last > fence);
    client.follow(last).await;
    assert_eq!(client.rows.keys().collect::<Vec<_>>(), [&4]);
    assert_eq!(client.wrong, Vec::<String>::new());
}

#[tokio::test]
async fn a_truncate_that_the_rows_contain_is_not_told_and_a_later_one_is_a_change() {
    let mut relay = Relay::start(OPEN, "t").await;
    for filter in ["", "id=gt.0"] {
        relay.run("insert into t values (1), (2)").await;
        relay.run("truncate t").await;
        relay.run("insert into t values (3)").await;
        let asked = Asked {
            truncate: true,
            filter: filter.to_owned(),
            ..Asked::of("t")
        };
        let mut client = ann(&relay, asked);
        client.join().await;
        let fence = relay.fence().await;
        client.follow(fence).await;
        assert_eq!(client.rows.keys().collect::<Vec<_>>(), [&3]);
        assert_eq!(client.truncates, 0, "the rows are those behind it");
        relay.run("insert into t values (4); truncate t").await;
        relay.run("insert into t values (5)").await;
        let fence = relay.fence().await;
        client.follow(fence).await;
        assert_eq!(client.rows.keys().collect::<Vec<_>>(), [&5]);
        assert_eq!(client.truncates, 1);
        assert_eq!((client.again, client.wrong), (Vec::new(), Vec::new()));
        relay.run("truncate t").await;
    }
}

#[tokio::test]
async fn a_truncate_while_the_rows_are_read_leaves_what_the_table_holds() {
    let mut relay = Relay::start(OPEN, "t").await;
    let sql = crate::harness::connect(&relay.url).await;
    for round in 0..20 {
        let id = round * 10;
        let rows = format!("insert into t select {id} + i from generate_series(1, 3) i");
        relay.run(&rows).await;
        let asked = Asked {
            truncate: true,
            ..Asked::of("t")
        };
        let mut client = ann(&relay, asked);
        let emptied = format!("truncate t; insert into t values ({id} + 5)");
        let (written, ()) = tokio::join!(sql.batch_execute(&emptied), client.join());
        written.unwrap();
        let fence = relay.fence().await;
        client.follow(fence).await;
        assert_eq!(client.rows.keys().collect::<Vec<_>>(), [&(id + 5)]);
        assert_eq!(client.wrong, Vec::<String>::new());
    }
}

//! Clients that come back by cursor: what they missed, in order, once, and what they may not have.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rowcast::app::Core;
use rowcast::auth::{Claims, Principal};
use rowcast::log::{Cursor, Epoch, Offset};
use rowcast::pg::snapshot::Snapshot;
use rowcast::router::{ChannelId, Event, Join, Outbox, SessionId};
use rowcast::subscription::{Events, Start, Wanted, filter};
use serde_json::{Value, json};

use crate::harness::{ANN, BEN, DEADLINE, Relay, connect};

static LAST: AtomicU64 = AtomicU64::new(1_000_000);

pub(crate) fn wish(id: u32, table: &str, filtered: &str) -> Wanted {
    Wanted {
        id,
        events: Events::All,
        schema: Some("public".to_owned()),
        table: Some(table.to_owned()),
        filter: filter::parse(filtered).unwrap(),
        select: None,
        leave: false,
        start: Start::default(),
    }
}

pub(crate) fn person(role: &str, claims: &Value) -> Arc<Principal> {
    Arc::new(Principal {
        role: role.into(),
        claims: Claims::verified(claims.to_string()),
        expires_at: None,
    })
}

pub(crate) fn user(sub: &str) -> Arc<Principal> {
    person(
        "authenticated",
        &json!({ "sub": sub, "role": "authenticated" }),
    )
}

/// One connection with one channel.
pub(crate) struct Client {
    pub(crate) outbox: Arc<Outbox>,
    channel: ChannelId,
}

/// What a client hears.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Heard {
    Joined,
    Change(Vec<u32>, Value),
    CaughtUp,
    /// It did not keep up: its socket is closed.
    Full,
    Resync(&'static str, Option<Cursor>),
}

impl Client {
    pub(crate) async fn join(core: &Core, who: &Arc<Principal>, wanted: Vec<Wanted>) -> Self {
        Self::sized(core, who, wanted, 100_000).await
    }

    pub(crate) async fn sized(
        core: &Core,
        who: &Arc<Principal>,
        wanted: Vec<Wanted>,
        events: usize,
    ) -> Self {
        let session = SessionId(LAST.fetch_add(1, Ordering::Relaxed));
        let client = Self {
            outbox: Outbox::new(session, events, 1 << 30),
            channel: ChannelId(1),
        };
        client.ask(core, who, wanted).await;
        assert_eq!(client.next().await, Heard::Joined);
        client
    }

    async fn ask(&self, core: &Core, who: &Arc<Principal>, wanted: Vec<Wanted>) {
        let join = Join {
            outbox: Arc::clone(&self.outbox),
            channel: self.channel,
            principal: Arc::clone(who),
            wanted,
            keeps_cursor: true,
        };
        core.router.join(join).await.unwrap();
    }

    pub(crate) async fn next(&self) -> Heard {
        let next = async {
            let mut events = Vec::new();
            loop {
                match self.outbox.take(&mut events, 1) {
                    Ok(0) => self.outbox.readable().await,
                    // Nothing that a client hears.
                    Ok(_) if matches!(events.last(), Some(Event::Introduced { .. })) => {
                        events.clear();
                    }
                    Ok(_) => return events.pop(),
                    Err(_full) => return None,
                }
            }
        };
        let event = tokio::time::timeout(DEADLINE, next).await;
        let Some(event) = event.expect("an event in time") else {
            return Heard::Full;
        };
        match event {
            Event::Joined { refusals, .. } => {
                assert_eq!(refusals, []);
                Heard::Joined
            }
            Event::Change { change, .. } => Heard::Change(
                change.bindings.to_vec(),
                serde_json::from_slice(&change.data).unwrap(),
            ),
            Event::CaughtUp { .. } => Heard::CaughtUp,
            Event::Introduced { .. } => unreachable!("passed over above"),
            Event::Resync { reason, cursor, .. } => Heard::Resync(reason.as_str(), cursor),
            Event::Unavailable { .. } => panic!("the database is there"),
            other @ (Event::Snapshot { .. } | Event::SnapshotFailed { .. }) => {
                panic!("nobody asked for a snapshot: {other:?}")
            }
        }
    }

    /// `INSERT 1` and so on up to the row `last`, and what else is heard.
    pub(crate) async fn until(&self, last: i64) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            match self.next().await {
                Heard::Change(_, data) => {
                    let row = if data["type"] == "DELETE" {
                        &data["old_record"]
                    } else {
                        &data["record"]
                    };
                    heard.push(format!("{} {}", data["type"].as_str().unwrap(), row["id"]));
                    if row["id"] == last {
                        return heard;
                    }
                }
                Heard::CaughtUp => {}
                other => panic!("{other:?} after {heard:?}"),
            }
        }
    }

    pub(crate) async fn resync(&self) -> (&'static str, Cursor) {
        match self.next().await {
            Heard::Resync(reason, Some(cursor)) => (reason, cursor),
            other => panic!("a resync was expected, not {other:?}"),
        }
    }

    pub(crate) async fn go(self, core: &Core) {
        self.outbox.close();
        core.router.disconnect(self.outbox.session()).await.unwrap();
    }
}

pub(crate) fn since(mut wanted: Wanted, cursor: Cursor) -> Wanted {
    wanted.start.since = Some(cursor);
    wanted
}

/// What whoever reads now sees.
pub(crate) async fn snapshot(relay: &Relay) -> Arc<Snapshot> {
    let snapshot = "select pg_current_snapshot()::text";
    let row = relay.sql.query_one(snapshot, &[]).await.unwrap();
    Arc::new(row.get::<_, &str>(0).parse().unwrap())
}

/// Waits until the router has handed out what is committed, and returns how far that is.
pub(crate) async fn settled(relay: &mut Relay) -> Cursor {
    loop {
        let watcher = Client::join(&relay.core, &user(ANN), vec![wish(1, "fence", "")]).await;
        let fence = relay.fence().await;
        let cursor = loop {
            match watcher.next().await {
                Heard::Change(_, data) if data["record"]["id"] == fence => {
                    break data["cursor"].as_str().unwrap().parse().ok();
                }
                // The smallest logs may be too small for a slow router.
                Heard::Resync("trimmed", _) => break None,
                _ => {}
            }
        };
        watcher.go(&relay.core).await;
        if let Some(cursor) = cursor {
            return cursor;
        }
    }
}

const OWN: &str = "
    create table own (id int primary key, owner uuid, n int);
    alter table own enable row level security;
    alter table own replica identity full;
    create policy mine on own using (owner = auth.uid());
    grant select on own to authenticated, anon;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_missed_comes_first_in_order_and_then_what_is_new() {
    let mut relay = Relay::start(OWN, "own").await;
    let start = settled(&mut relay).await;
    relay
        .run(&format!(
            "insert into own select i, case when i % 2 = 0 then '{ANN}' else '{BEN}' end::uuid, i
             from generate_series(1, 2000) i"
        ))
        .await;
    let half = settled(&mut relay).await;
    relay
        .run(&format!("insert into own values (2002, '{ANN}', 1)"))
        .await;
    settled(&mut relay).await;
    let wanted = vec![
        since(wish(1, "own", ""), start),
        since(wish(2, "own", "id=gt.1990"), half),
        wish(3, "own", ""),
    ];
    let ann = Client::join(&relay.core, &user(ANN), wanted).await;
    relay
        .run(&format!("insert into own values (2004, '{ANN}', 1)"))
        .await;
    let (mut ids, mut caught_up) = (Vec::new(), false);
    let mut last = start.to_string();
    while ids.last() != Some(&2004) {
        match ann.next().await {
            Heard::Change(bindings, data) => {
                let id = data["record"]["id"].as_i64().unwrap();
                assert_eq!(data["record"]["owner"], ANN);
                let expected: &[u32] = match id {
                    ..=2000 => &[1],
                    2002 => &[1, 2],
                    _ => &[1, 2, 3],
                };
                assert_eq!(bindings, expected, "row {id}");
                let cursor = data["cursor"].as_str().unwrap().to_owned();
                assert!(last < cursor, "cursors ascend");
                last = cursor;
                ids.push(id);
            }
            Heard::CaughtUp => caught_up = true,
            other => panic!("{other:?}"),
        }
    }
    let expected: Vec<i64> = (1..=1000).map(|i| i * 2).chain([2002, 2004]).collect();
    assert_eq!(ids, expected);
    assert!(caught_up || matches!(ann.next().await, Heard::CaughtUp));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_slowly_gets_all_of_a_long_absence_and_delays_nobody() {
    let mut relay = Relay::start(OWN, "own").await;
    let start = settled(&mut relay).await;
    relay
        .run(&format!(
            "insert into own select i, '{ANN}', i from generate_series(1, 3000) i"
        ))
        .await;
    settled(&mut relay).await;
    let back = || vec![since(wish(1, "own", ""), start)];
    // Room for a fortieth of it.
    let slow = Client::sized(&relay.core, &user(ANN), back(), 80).await;
    let stuck = Client::sized(&relay.core, &user(ANN), back(), 80).await;
    let quick = Client::join(&relay.core, &user(ANN), back()).await;
    let live = Client::join(&relay.core, &user(ANN), vec![wish(1, "own", "")]).await;
    assert_eq!(quick.until(3000).await.len(), 3000);
    relay
        .run(&format!("insert into own values (3001, '{ANN}', 1)"))
        .await;
    assert_eq!(live.until(3001).await, ["INSERT 3001"]);
    assert_eq!(quick.until(3001).await, ["INSERT 3001"]);
    let heard = slow.until(3001).await;
    assert_eq!(heard.len(), 3001);
    assert!(
        !stuck.outbox.has_overflowed(),
        "whoever takes nothing is waited for"
    );
    assert_eq!(stuck.until(3001).await, heard);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursors_that_the_log_cannot_serve_are_told_why() {
    let mut relay = Relay::with(OWN, "own", |config| config.log_max_changes = 50).await;
    let start = settled(&mut relay).await;
    relay
        .run(&format!(
            "insert into own select i, '{ANN}', i from generate_series(1, 40) i"
        ))
        .await;
    for _ in 0..40 {
        relay.fence().await;
    }
    let now = settled(&mut relay).await;
    let elsewhere = Cursor {
        epoch: Epoch(start.epoch.0 ^ 1),
        ..now
    };
    let ahead = Cursor {
        offset: Offset(now.offset.0 + 1_000_000),
        ..now
    };
    for (cursor, reason) in [(start, "trimmed"), (elsewhere, "epoch"), (ahead, "epoch")] {
        let wanted = vec![since(wish(1, "own", ""), cursor), wish(2, "fence", "")];
        let client = Client::join(&relay.core, &user(ANN), wanted).await;
        let (heard, current) = client.resync().await;
        assert_eq!(heard, reason);
        assert_eq!(current.epoch, now.epoch);
        assert!(current.offset >= now.offset);
        // What it is given is good.
        let wanted = vec![since(wish(1, "own", ""), current)];
        let again = Client::join(&relay.core, &user(ANN), wanted).await;
        assert_eq!(again.next().await, Heard::CaughtUp);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_missed_a_change_of_the_policies_is_told_whether_or_not_anybody_watched() {
    for watched in [false, true] {
        let mut relay = Relay::start(
            &format!(
                "{OWN} create table other (id int primary key); grant select on other to public;"
            ),
            "own, other",
        )
        .await;
        let watcher = Client::join(&relay.core, &user(BEN), vec![wish(1, "own", "")]).await;
        if !watched {
            watcher.go(&relay.core).await;
        }
        let start = settled(&mut relay).await;
        relay
            .run(&format!(
                "insert into own values (1, '{BEN}', 1);
                 insert into other values (1);
                 drop policy mine on own;
                 create policy mine on own using (true);"
            ))
            .await;
        relay
            .run(&format!("insert into own values (2, '{ANN}', 1)"))
            .await;
        settled(&mut relay).await;
        let wanted = vec![since(wish(1, "own", ""), start)];
        let ann = Client::join(&relay.core, &user(ANN), wanted).await;
        let (reason, current) = ann.resync().await;
        assert_eq!(reason, "access_changed", "watched: {watched}");
        // Another table is not concerned.
        let wanted = vec![since(wish(1, "other", ""), start)];
        let other = Client::join(&relay.core, &user(ANN), wanted).await;
        assert_eq!(other.until(1).await, ["INSERT 1"]);
        // Behind the change all is good again.
        settled(&mut relay).await;
        relay
            .run(&format!("insert into own values (3, '{BEN}', 1)"))
            .await;
        let wanted = vec![since(wish(1, "own", ""), current)];
        let ann = Client::join(&relay.core, &user(ANN), wanted).await;
        assert_eq!(ann.until(3).await, ["INSERT 3"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_looks_into_another_table_is_replayed_only_where_that_is_as_it_was() {
    let mut relay = Relay::start(
        "create table member (team int, person uuid);
         create table hidden (team int, person uuid);
         grant select on member, hidden to authenticated;
         create table plan (id int primary key, team int);
         create table secret (id int primary key, team int);
         alter table plan enable row level security;
         alter table secret enable row level security;
         create policy ours on plan using
           (exists (select from member m where m.team = plan.team and m.person = auth.uid()));
         create policy ours on secret using
           (exists (select from hidden h where h.team = secret.team and h.person = auth.uid()));
         grant select on plan, secret to authenticated;",
        "plan, secret, member",
    )
    .await;
    relay
        .run(&format!(
            "insert into member values (1, '{ANN}'); insert into hidden values (1, '{ANN}')"
        ))
        .await;
    let start = settled(&mut relay).await;
    relay
        .run("insert into plan values (1, 1), (2, 2); insert into secret values (1, 1)")
        .await;
    let later = settled(&mut relay).await;
    let back = |table: &str, cursor| vec![since(wish(1, table, ""), cursor)];
    let ann = Client::join(&relay.core, &user(ANN), back("plan", start)).await;
    assert_eq!(ann.until(1).await, ["INSERT 1"]);
    assert_eq!(
        ann.next().await,
        Heard::CaughtUp,
        "the other team's stays hidden"
    );
    let unknown = Client::join(&relay.core, &user(ANN), back("secret", start)).await;
    assert_eq!(
        unknown.resync().await.0,
        "access_changed",
        "nobody knows what hidden was"
    );
    // She is in the second team now, and was not when its row came.
    relay
        .run(&format!("insert into member values (2, '{ANN}')"))
        .await;
    let behind = settled(&mut relay).await;
    for before in [start, later] {
        let ann = Client::join(&relay.core, &user(ANN), back("plan", before)).await;
        assert_eq!(ann.resync().await.0, "access_changed");
    }
    // What lies behind that is judged as it would have been.
    relay.run("insert into plan values (3, 2)").await;
    let ann = Client::join(&relay.core, &user(ANN), back("plan", behind)).await;
    assert_eq!(ann.until(3).await, ["INSERT 3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_whose_columns_are_gone_are_not_replayed_as_something_else() {
    let mut relay = Relay::start(OWN, "own").await;
    let start = settled(&mut relay).await;
    relay
        .run(&format!("insert into own values (1, '{ANN}', 1)"))
        .await;
    settled(&mut relay).await;
    relay.run("alter table own drop column n").await;
    relay
        .run(&format!("insert into own values (2, '{ANN}')"))
        .await;
    settled(&mut relay).await;
    let wanted = vec![since(wish(1, "own", ""), start)];
    let ann = Client::join(&relay.core, &user(ANN), wanted).await;
    let (reason, _) = ann.resync().await;
    assert!(
        ["schema_changed", "access_changed"].contains(&reason),
        "{reason}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_somebody_else_ends_a_replay_and_one_of_the_same_does_not() {
    let mut relay = Relay::start(OWN, "own").await;
    let start = settled(&mut relay).await;
    relay
        .run(&format!(
            "insert into own select i, '{ANN}', i from generate_series(1, 1000) i"
        ))
        .await;
    settled(&mut relay).await;
    let back = || vec![since(wish(1, "own", ""), start)];
    // So small that it is caught half-way.
    let client = Client::sized(&relay.core, &user(ANN), back(), 100).await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        if let Heard::Change(_, data) = client.next().await {
            ids.push(data["record"]["id"].as_i64().unwrap());
        }
    }
    let mut later = Principal::clone(&user(ANN));
    later.expires_at = Some(i64::MAX);
    client.ask(&relay.core, &Arc::new(later), back()).await;
    let mut joined = 0;
    while ids.last() != Some(&1000) {
        match client.next().await {
            Heard::Change(_, data) => ids.push(data["record"]["id"].as_i64().unwrap()),
            Heard::Joined => joined += 1,
            Heard::CaughtUp => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(joined, 1, "it was answered while it was catching up");
    assert_eq!(
        ids,
        (1..=1000).collect::<Vec<i64>>(),
        "no gap, nothing twice"
    );

    let client = Client::sized(&relay.core, &user(ANN), back(), 100).await;
    client.next().await;
    client.ask(&relay.core, &user(BEN), back()).await;
    loop {
        match client.next().await {
            Heard::Joined => break,
            Heard::Change(..) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        client.resync().await.0,
        "access_changed",
        "nothing of Ann's comes to Ben"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_token_only_ends_a_channel_with_a_cursor_where_it_shows_something_else() {
    let mut relay = Relay::start(OWN, "own").await;
    let claims = |sub: &str, extra: &str| json!({ "sub": sub, "role": "authenticated", "exp": 5, "x": extra });
    let wanted = || vec![wish(1, "own", "")];
    let first = person("authenticated", &claims(ANN, "a"));
    let client = Client::join(&relay.core, &first, wanted()).await;
    // No policy reads what is new in it.
    let other = person("authenticated", &claims(ANN, "b"));
    client.ask(&relay.core, &other, wanted()).await;
    assert_eq!(client.next().await, Heard::Joined);
    relay
        .run(&format!(
            "insert into own values (1, '{ANN}', 1), (2, '{BEN}', 1)"
        ))
        .await;
    assert_eq!(client.until(1).await, ["INSERT 1"]);
    let now = settled(&mut relay).await;
    client
        .ask(
            &relay.core,
            &person("authenticated", &claims(BEN, "b")),
            wanted(),
        )
        .await;
    assert_eq!(client.next().await, Heard::Joined);
    let (reason, cursor) = client.resync().await;
    assert_eq!(reason, "access_changed");
    assert!(cursor.offset >= now.offset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_snapshot_shows_is_not_sent_again_and_what_it_does_not_show_is() {
    let mut relay = Relay::start(OWN, "own").await;
    let url = relay.url.clone();
    let before = connect(&url).await;
    before
        .batch_execute(&format!("begin; insert into own values (1, '{ANN}', 1)"))
        .await
        .unwrap();
    let start = settled(&mut relay).await;
    relay
        .run(&format!("insert into own values (2, '{ANN}', 1)"))
        .await;
    let snapshot = snapshot(&relay).await;
    relay
        .run(&format!("insert into own values (3, '{ANN}', 1)"))
        .await;
    settled(&mut relay).await;
    let mut wanted = since(wish(1, "own", ""), start);
    wanted.start.unseen_by = Some(snapshot);
    let client = Client::join(&relay.core, &user(ANN), vec![wanted]).await;
    assert_eq!(client.until(3).await, ["INSERT 3"]);
    // Long in force, the oldest of them commits.
    assert_eq!(client.next().await, Heard::CaughtUp);
    before.batch_execute("commit").await.unwrap();
    assert_eq!(client.until(1).await, ["INSERT 1"]);
}

/// Rules that are what they were may have been others in between: no event trigger tells here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_is_not_judged_by_rules_that_were_changed_and_changed_back() {
    let folder = tempfile::tempdir().unwrap();
    let schema =
        format!("{OWN} create table other (id int primary key); grant select on other to public;");
    let mut config = None;
    let mut relay = Relay::with(&schema, "own, other", |adjusted| {
        adjusted.data = Some(folder.path().join("log"));
        config = Some(adjusted.clone());
    })
    .await;
    let config = config.unwrap();
    for (id, (first, last)) in (1..).zip([
        (
            "alter policy mine on own using (false)",
            "alter policy mine on own using (owner = auth.uid())",
        ),
        (
            "revoke select on own from authenticated",
            "grant select on own to authenticated",
        ),
        (
            "revoke select on own from authenticated; grant select (id) on own to authenticated",
            "revoke select (id) on own from authenticated; grant select on own to authenticated",
        ),
    ]) {
        for away in [false, true] {
            // Whatever the one before has done is behind this.
            relay.reads_the_catalog().await;
            let start = settled(&mut relay).await;
            let id = id * 10 + i32::from(away);
            let written = [
                first.to_owned(),
                format!("insert into own values ({id}, '{ANN}', 1)"),
                format!("insert into other values ({id})"),
                last.to_owned(),
            ];
            if away {
                let between = written
                    .map(|one| format!("begin; {one}; commit"))
                    .join("; ");
                relay = relay.restart(&config, &between).await;
            } else {
                for one in written {
                    relay.run(&one).await;
                }
            }
            settled(&mut relay).await;
            relay.reads_the_catalog().await;
            let wanted = vec![since(wish(1, "own", ""), start)];
            let back = Client::join(&relay.core, &user(ANN), wanted).await;
            let (reason, _) = back.resync().await;
            assert_eq!(reason, "access_changed", "{last}, away: {away}");
            // Another table is not concerned.
            let wanted = vec![since(wish(1, "other", ""), start)];
            let other = Client::join(&relay.core, &user(ANN), wanted).await;
            assert_eq!(
                other.until(i64::from(id)).await,
                ["INSERT ".to_owned() + &id.to_string()]
            );
        }
    }
}

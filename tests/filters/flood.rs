//! One client with many filters that PostgreSQL is asked about, and what others notice of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rowcast::auth::{Claims, Principal};
use rowcast::router::{ChannelId, Event, Join, Outbox, SessionId};
use rowcast::subscription::{Events, Wanted, filter};
use serde_json::{Value, json};

use crate::harness::{DEADLINE, Relay, Seen, Watcher, brief};

/// Back references make PostgreSQL try every way to split a text of many x.
fn slow(n: usize) -> String {
    format!(r#"body=match."^(x+)(x+)(x+)(x+)(x+)(x+)\\1y?\\2\\3\\4\\5z{{0,{n}}}$""#)
}

async fn watch(relay: &Relay, claims: &Value, filter: &str) -> Result<Watcher, String> {
    relay
        .watch_filtered("authenticated", claims, "t", Events::All, filter)
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binding_beyond_the_asked_filters_of_a_socket_is_refused_alone() {
    let mut relay = Relay::with(
        "create table t (id int primary key, body text); grant select on t to authenticated",
        "t",
        |config| config.max_asked_filters = 2,
    )
    .await;
    let outbox = Outbox::new(SessionId(u64::MAX), 100, 1 << 20);
    let principal = Arc::new(Principal {
        role: "authenticated".into(),
        claims: Claims::verified("{}".to_owned()),
        expires_at: None,
    });
    let wanted = |id, table: &str, filtered: &str| Wanted {
        id,
        events: Events::All,
        schema: Some("public".to_owned()),
        table: Some(table.to_owned()),
        filter: filter::parse(filtered).unwrap(),
        select: None,
        leave: false,
        start: rowcast::subscription::Start::default(),
    };
    let join = |channel, wanted| {
        let (outbox, principal) = (Arc::clone(&outbox), Arc::clone(&principal));
        let router = relay.core.router.clone();
        async move {
            let join = Join {
                outbox: Arc::clone(&outbox),
                channel: ChannelId(channel),
                principal,
                wanted,
                keeps_cursor: false,
            };
            router.join(join).await.unwrap();
            let mut events = Vec::new();
            while outbox.take(&mut events, 1).unwrap() == 0 {
                outbox.readable().await;
            }
            match events.remove(0) {
                Event::Joined { refusals, .. } => refusals
                    .into_iter()
                    .map(|refusal| (refusal.binding, refusal.reason))
                    .collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            }
        }
    };
    let first = vec![
        wanted(1, "t", "body=match.^a"),
        wanted(2, "t", "body=match.^b"),
        wanted(3, "t", "body=match.^c"),
        wanted(4, "t", "body=match.^a"),
        wanted(5, "t", "id=gt.0"),
    ];
    let refused = join(1, first.clone()).await;
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].0, 3);
    assert!(
        refused[0]
            .1
            .contains("may have 2 different ones (max_asked_filters)"),
        "{refused:?}"
    );
    // All of the socket's channels count, one that joins anew not twice.
    let second = vec![
        wanted(1, "t", "body=match.^d"),
        wanted(2, "t", "body=match.^b"),
    ];
    assert_eq!(join(2, second.clone()).await.len(), 1);
    assert_eq!(join(1, first).await.len(), 1);
    // What was given back can be had.
    assert_eq!(join(1, vec![wanted(1, "t", "body=match.^b")]).await, []);
    assert_eq!(join(2, second).await, []);
    relay.run("insert into t values (1, 'b')").await;
    relay.fence().await;
    let mut events = Vec::new();
    while events.len() < 2 {
        if outbox.take(&mut events, 2).unwrap() == 0 {
            tokio::time::timeout(DEADLINE, outbox.readable())
                .await
                .expect("both channels' change");
        }
    }
    for event in events {
        assert!(matches!(event, Event::Change { .. }), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_has_so_many_asked_filters_on_all_sockets() {
    let relay = Relay::with(
        "create table t (id int primary key, body text); grant select on t to authenticated",
        "t",
        |config| config.max_asked_filters = 2,
    )
    .await;
    let (ann, ben) = (json!({"sub": "ann"}), json!({"sub": "ben"}));
    let first = watch(&relay, &ann, "body=match.^a").await.unwrap();
    let _second = watch(&relay, &ann, "body=match.^b").await.unwrap();
    let refused = watch(&relay, &ann, "body=match.^c").await.err().unwrap();
    assert!(refused.contains("max_asked_filters"), "{refused}");
    let same = watch(&relay, &ann, "body=match.^a").await.unwrap();
    let _native = watch(&relay, &ann, "body=eq.a").await.unwrap();
    let _others = watch(&relay, &ben, "body=match.^c").await.unwrap();
    let router = &relay.core.router;
    router.disconnect(first.outbox.session()).await.unwrap();
    assert!(
        watch(&relay, &ann, "body=match.^c").await.is_err(),
        "another socket has it still"
    );
    router.disconnect(same.outbox.session()).await.unwrap();
    let _room = watch(&relay, &ann, "body=match.^c").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_slow_filters_leaves_others_their_rows() {
    let mut relay = Relay::with(
        "create table t (id int primary key, body text);
         grant select on t to authenticated",
        "t",
        |config| config.ask_timeout = Duration::from_secs(10),
    )
    .await;
    let (mallory, ann) = (json!({"sub": "mallory"}), json!({"sub": "ann"}));
    let mut flood = Vec::new();
    for n in 1..=30 {
        flood.push(watch(&relay, &mallory, &slow(n)).await.unwrap());
    }
    let mut others = Vec::new();
    for filter in [
        "body=match.^x",
        "body=imatch.X$",
        "body=match.x{3}",
        "body=gt.a",
    ] {
        others.push(watch(&relay, &ann, filter).await.unwrap());
    }
    let row = |id: i32| format!("insert into t values ({id}, repeat('x', 200))");
    relay.run(&row(1)).await;
    for other in &others {
        assert_eq!(brief(&relay.seen(other).await), ["INSERT 1"]);
    }
    let undecided = |seen: Vec<Seen>| assert_eq!(brief(&seen), ["resync undecided"]);
    for one in &flood {
        undecided(one.until(u64::MAX).await);
    }
    // What did not end in time rests: nobody waits for it again. Fifteen in a lane, half a second
    // each, would take longer.
    let began = Instant::now();
    relay.run(&row(2)).await;
    for one in &flood {
        undecided(one.until(u64::MAX).await);
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    for other in &others {
        assert_eq!(brief(&relay.seen(other).await), ["INSERT 2"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_in_a_named_zone_is_read_anew_for_every_join() {
    let relay = Relay::start(
        "create table t (id int primary key, at timetz, sent timestamptz);
         grant select on t to authenticated",
        "t",
    )
    .await;
    let claims = json!({});
    let reads = async || -> Vec<Option<String>> {
        let started = "select query_start::text from pg_stat_activity \
                       where application_name = 'rowcast filter' and datname = current_database()";
        let rows = relay.sql.query(started, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    for (filter, lasts) in [
        ("at=eq.10:00 MSK", false),
        ("at=in.(10:00+02,10:00 ALMT)", false),
        ("at=eq.2024-01-01 10:00 Europe/Berlin", false),
        ("at=eq.10:00+02", true),
        ("sent=eq.2024-01-01T10:00:00Z", true),
    ] {
        let _first = watch(&relay, &claims, filter).await.unwrap();
        let before = reads().await;
        assert!(!before.is_empty(), "PostgreSQL has read it");
        let _second = watch(&relay, &claims, filter).await.unwrap();
        assert_eq!(before == reads().await, lasts, "{filter}");
    }
}

//! Very many who come and go.

use std::sync::Arc;

use rowcast::router::{ChannelId, Join, Outbox, SessionId};

use crate::harness::{ANN, Relay, brief};
use crate::resume::{user, wish};

const CROWD: u64 = 10_000;

/// Far from the sessions of other subscribers here.
const FIRST: u64 = 1 << 50;

async fn come(relay: &Relay) -> Vec<Arc<Outbox>> {
    let mut outboxes = Vec::new();
    for number in 0..CROWD {
        let outbox = Outbox::new(SessionId(FIRST + number), 100, 1 << 20);
        let person = format!("00000000-0000-4000-9000-{number:012}");
        let join = Join {
            outbox: Arc::clone(&outbox),
            channel: ChannelId(1),
            principal: user(&person),
            wanted: vec![wish(1, "t", "")],
            keeps_cursor: false,
        };
        relay.core.router.join(join).await.unwrap();
        outboxes.push(outbox);
    }
    outboxes
}

async fn go(relay: &Relay) {
    for number in 0..CROWD {
        let session = SessionId(FIRST + number);
        relay.core.router.disconnect(session).await.unwrap();
    }
}

fn subscriptions(relay: &Relay) -> u64 {
    let text = relay.core.metrics.encode();
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix("rowcast_subscriptions "));
    value.unwrap().parse().unwrap()
}

/// Joins and leaves are taken some hundreds at a time where rows wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rows_come_while_ten_thousand_join_and_while_they_leave() {
    let mut relay = Relay::start(
        "create table t (id int primary key, user_id uuid);
         alter table t replica identity full;
         alter table t enable row level security;
         create policy own on t using (user_id = auth.uid());
         grant select on t to authenticated",
        "t",
    )
    .await;
    let ann = relay.watch_as(ANN, "t").await;
    let alone = subscriptions(&relay);
    let everybody = alone + CROWD;
    let (mut id, mut fence) = (0, relay.next_fence());
    let mut rows = async |what: &str, last: u64| {
        let mut meanwhile = 0;
        loop {
            (id, fence) = (id + 1, fence + 1);
            let row = format!("insert into t values ({id}, '{ANN}')");
            relay.run(&row).await;
            let row = format!("insert into fence values ({fence})");
            relay.run(&row).await;
            assert_eq!(
                brief(&ann.until(fence).await),
                [format!("INSERT {id}")],
                "{what}"
            );
            let now = subscriptions(&relay);
            if now == last {
                return meanwhile;
            }
            meanwhile += usize::from((alone + 1..everybody).contains(&now));
        }
    };
    let (crowd, meanwhile) = tokio::join!(come(&relay), rows("they join", everybody));
    assert!(meanwhile > 0, "{meanwhile} rows came while they joined");
    let ((), meanwhile) = tokio::join!(go(&relay), rows("they leave", alone));
    assert!(meanwhile > 0, "{meanwhile} rows came while they left");
    drop(crowd);
}

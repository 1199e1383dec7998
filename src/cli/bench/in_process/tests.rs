//! Subscribers without sockets, with a test in the router's place.

use std::sync::atomic::Ordering;
use std::time::Instant;

use smallvec::smallvec;

use super::*;
use crate::cli::bench::plan::{Filter, Plan, Policy, Written};
use crate::cli::bench::writer::row_id;
use crate::log::Offset;
use crate::router::{Command, Event, Join, Outgoing, Resync, Router};

const PLAN: Plan = Plan {
    subscribers: 3,
    policy: Policy::Open,
    filter: Filter::Eq,
    transaction_size: 1,
    writers: 1,
    limit: 24,
};

/// Three subscribers, what they asked for by their numbers, and the router's end.
async fn joined() -> (Sessions, Audience, Vec<Join>, mpsc::Receiver<Command>) {
    let (router, mut commands) = Router::channel(10);
    let mut sessions = Sessions::new(router, 1_000, 1 << 20);
    let books = Books::new(7, Clock::start()).unwrap();
    let answering = async {
        let mut joins = Vec::new();
        while joins.len() < 3 {
            let Some(Command::Join(join)) = commands.recv().await else {
                panic!("a join was expected");
            };
            join.outbox.push(Event::Joined {
                channel: join.channel,
                refusals: Vec::new(),
                notices: Vec::new(),
                holder: None,
            });
            joins.push(join);
        }
        joins.sort_by_key(|join| join.outbox.session());
        joins
    };
    let (audience, joins) = tokio::join!(sessions.join(PLAN, books, |_| Ok(())), answering);
    (sessions, audience.unwrap(), joins, commands)
}

fn row(join: &Join, row: u64) -> Event {
    let (id, sent) = (row_id(7, row), 0);
    let change = Outgoing {
        bindings: smallvec![1],
        offset: Offset(row),
        committed_at: 0,
        data: format!("{{\"record\":{{\"id\":{id},\"sent\":\"{sent}\"}}}}").into(),
    };
    Event::Change {
        channel: join.channel,
        change: Arc::new(change),
    }
}

fn written() -> Written {
    Written {
        transactions: vec![24],
    }
}

#[tokio::test]
async fn what_arrives_in_outboxes_is_counted_and_everybody_leaves() {
    let (sessions, audience, joins, mut commands) = joined().await;
    for (number, join) in (0..).zip(&joins) {
        assert_eq!(join.wanted[0].filter.len(), 1);
        assert!(
            join.principal
                .claims
                .as_json()
                .contains(&format!("{number:012}"))
        );
        for seen in (0..24).filter(|row| PLAN.sees(number, *row)) {
            join.outbox.push(row(join, seen));
        }
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while audience.books().delivered.load(Ordering::Relaxed) < 18 {
        assert!(Instant::now() < deadline, "{audience:?}");
        // A counter rings for nobody.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (tally, books) = sessions.finish(audience, written()).await.unwrap();
    assert!(tally.is_clean(), "{tally:?}");
    assert_eq!(tally.delivered, 18);
    assert_eq!(books.why_broken(), None);
    let mut left = 0;
    while let Ok(Command::Disconnect { session }) = commands.try_recv() {
        assert!(joins.iter().any(|join| join.outbox.session() == session));
        left += 1;
    }
    assert_eq!(left, 3);
}

#[tokio::test]
async fn what_is_lost_and_why_is_told() {
    let (sessions, audience, joins, _commands) = joined().await;
    joins[0].outbox.push(row(&joins[0], 0));
    joins[0].outbox.push(row(&joins[0], 0));
    joins[1].outbox.push(row(&joins[1], 0));
    joins[2].outbox.push(Event::Resync {
        channel: joins[2].channel,
        reason: Resync::Trimmed,
        cursor: None,
        read_at: crate::pg::Lsn(0),
    });
    let (tally, books) = sessions.finish(audience, written()).await.unwrap();
    assert_eq!((tally.delivered, tally.duplicated, tally.leaked), (1, 1, 1));
    assert_eq!(tally.missing, 17);
    assert_eq!(books.why_broken().as_deref(), Some("resync trimmed"));
}

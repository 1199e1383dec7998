//! A subscriber that takes a snapshot, and keeps what it was given up to date.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rowcast::auth::{Claims, Principal};
use rowcast::log::Cursor;
use rowcast::pg::Lsn;
use rowcast::router::{ChannelId, Event, Join, Outbox, Router, SessionId};
use rowcast::subscription::order::{self, Wish};
use rowcast::subscription::{Events, Start, Wanted, filter};
use serde_json::Value;

use crate::harness::DEADLINE;

static LAST: AtomicU64 = AtomicU64::new(1 << 32);

/// The binding that is tested, and that of the fence.
pub(crate) const ROWS: u32 = 1;
pub(crate) const FENCE: u32 = 2;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) table: String,
    pub(crate) filter: String,
    pub(crate) select: Option<Vec<String>>,
    pub(crate) limit: Option<u64>,
    pub(crate) order: String,
    pub(crate) since: Option<Cursor>,
    /// Under the rules of which place it has read.
    pub(crate) read_at: Option<Lsn>,
    /// Without a snapshot: whoever it is reads the table by themselves.
    pub(crate) plain: bool,
    /// Whether a TRUNCATE is a change.
    pub(crate) truncate: bool,
}

impl Asked {
    pub(crate) fn of(table: &str) -> Self {
        Self {
            table: table.to_owned(),
            ..Self::default()
        }
    }

    fn wanted(&self) -> Vec<Wanted> {
        let rows = Wanted {
            id: ROWS,
            events: if self.truncate {
                Events::AllAndTruncate
            } else {
                Events::All
            },
            schema: Some("public".to_owned()),
            table: (self.table != "*").then(|| self.table.clone()),
            filter: filter::parse(&self.filter).expect("a filter"),
            select: self.select.clone(),
            leave: false,
            start: Start {
                since: self.since,
                holder: None,
                read_at: self.read_at,
                unseen_by: None,
                snapshot: (!self.plain).then(|| Wish {
                    limit: self.limit,
                    order: order::parse(&self.order).expect("an order"),
                }),
            },
        };
        let fence = Wanted {
            id: FENCE,
            events: Events::Insert,
            table: Some("fence".to_owned()),
            filter: Vec::new(),
            select: None,
            leave: false,
            start: Start::default(),
            ..rows.clone()
        };
        vec![rows, fence]
    }
}

/// What was heard, as far as it is not rows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Heard {
    Joined(Vec<String>),
    /// A page: its number, its rows, whether it is the last and whether there are more.
    Page(Page),
    Change(Value),
    Fence(u64),
    CaughtUp,
    Again(String),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Page {
    pub(crate) number: u32,
    pub(crate) rows: Vec<Value>,
    pub(crate) errors: Value,
    pub(crate) last: bool,
    pub(crate) more: bool,
    pub(crate) cursor: Cursor,
}

pub(crate) struct Client {
    router: Router,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) principal: Arc<Principal>,
    pub(crate) asked: Asked,
    channel: u32,
    /// The rows by their ids, as far as they were given.
    pub(crate) rows: BTreeMap<i64, Value>,
    /// Times that it had to begin anew.
    pub(crate) again: Vec<String>,
    /// Times that its table was emptied.
    pub(crate) truncates: u32,
    /// What cannot be.
    pub(crate) wrong: Vec<String>,
}

pub(crate) fn principal(role: &str, claims: &Value) -> Arc<Principal> {
    Arc::new(Principal {
        role: role.into(),
        claims: Claims::verified(claims.to_string()),
        expires_at: None,
    })
}

impl Client {
    pub(crate) fn new(router: &Router, principal: Arc<Principal>, asked: Asked) -> Self {
        let session = SessionId(LAST.fetch_add(1, Ordering::Relaxed));
        Self {
            router: router.clone(),
            outbox: Outbox::new(session, 10_000, 16 << 20),
            principal,
            asked,
            channel: 0,
            rows: BTreeMap::new(),
            again: Vec::new(),
            truncates: 0,
            wrong: Vec::new(),
        }
    }

    /// Joins (again) under a fresh channel, as a session does.
    pub(crate) async fn join(&mut self) {
        self.channel += 1;
        self.join_same().await;
    }

    /// Joins the same channel again, as after a token was refreshed.
    pub(crate) async fn join_same(&self) {
        let join = Join {
            outbox: Arc::clone(&self.outbox),
            channel: ChannelId(self.channel),
            principal: Arc::clone(&self.principal),
            wanted: self.asked.wanted(),
            keeps_cursor: false,
        };
        self.router.join(join).await.expect("a router");
    }

    pub(crate) async fn leave(&self) {
        let (session, channel) = (self.outbox.session(), ChannelId(self.channel));
        self.router.leave(session, channel).await.expect("a router");
    }

    pub(crate) async fn disconnect(&self) {
        self.outbox.close();
        let gone = self.router.disconnect(self.outbox.session()).await;
        gone.expect("a router");
    }

    pub(crate) async fn event(&self) -> Event {
        let next = async {
            let mut events = Vec::new();
            loop {
                if self.outbox.take(&mut events, 1).expect("room") > 0 {
                    return events.pop().expect("one event");
                }
                self.outbox.readable().await;
            }
        };
        tokio::time::timeout(DEADLINE, next)
            .await
            .expect("an event in time")
    }

    /// The next event of the channel as it is now.
    pub(crate) async fn heard(&self) -> Heard {
        loop {
            let event = self.event().await;
            let of = match &event {
                Event::Introduced { .. } => continue,
                Event::Joined { channel, .. }
                | Event::Unavailable { channel }
                | Event::Change { channel, .. }
                | Event::Snapshot { channel, .. }
                | Event::SnapshotFailed { channel, .. }
                | Event::Resync { channel, .. }
                | Event::CaughtUp { channel } => *channel,
            };
            if of == ChannelId(self.channel) {
                return told(event);
            }
        }
    }

    /// All pages up to the last, after the join's answer; what comes instead is a failure.
    pub(crate) async fn snapshot(&mut self) -> Vec<Page> {
        self.join().await;
        match self.heard().await {
            Heard::Joined(refusals) => assert_eq!(refusals, Vec::<String>::new()),
            other => panic!("the answer was expected, not {other:?}"),
        }
        self.pages().await
    }

    pub(crate) async fn pages(&self) -> Vec<Page> {
        let mut pages = Vec::new();
        loop {
            match self.heard().await {
                Heard::Page(page) => {
                    assert_eq!(page.number as usize, pages.len(), "pages in order");
                    let last = page.last;
                    pages.push(page);
                    if last {
                        return pages;
                    }
                }
                other => panic!("a page was expected, not {other:?}"),
            }
        }
    }

    /// Why a join is not in force.
    pub(crate) async fn refusal(&mut self) -> String {
        self.join().await;
        match self.heard().await {
            Heard::Joined(refusals) => refusals.into_iter().next().expect("a refusal"),
            other => panic!("a refusal was expected, not {other:?}"),
        }
    }

    /// Goes on until the fence's row, and begins anew whenever it is told to. A fence that is written before it
    /// is told to may lie before where it begins anew.
    pub(crate) async fn follow(&mut self, fence: u64) {
        while self.goes_on().await.is_none_or(|written| written < fence) {}
    }

    /// Goes on until it is told to begin anew, and does.
    pub(crate) async fn begins_anew(&mut self) {
        let before = self.again.len();
        while self.again.len() == before {
            self.goes_on().await;
        }
    }

    /// Takes what it hears next; says which fence that is.
    async fn goes_on(&mut self) -> Option<u64> {
        let limited = self.asked.limit.is_some();
        match self.heard().await {
            Heard::Joined(refusals) => {
                self.wrong.extend(refusals);
            }
            Heard::Page(page) => {
                if page.number == 0 {
                    self.rows.clear();
                }
                for row in page.rows {
                    self.rows.insert(id(&row), row);
                }
            }
            Heard::Change(data) => self.fold(&data, limited),
            Heard::Fence(written) => return Some(written),
            Heard::CaughtUp => {}
            Heard::Again(reason) => {
                self.again.push(reason);
                assert!(self.again.len() < 50, "no end of it: {:?}", self.again);
                self.join().await;
            }
        }
        None
    }

    /// A row's every change counts its version up, so one that is missed, comes twice or out of
    /// turn is seen.
    fn fold(&mut self, data: &Value, limited: bool) {
        let kind = data["type"].as_str().expect("a type");
        if kind == "TRUNCATE" {
            self.rows.clear();
            self.truncates += 1;
            return;
        }
        let row = &data[if kind == "DELETE" {
            "old_record"
        } else {
            "record"
        }];
        let (id, version) = (id(row), row["version"].as_i64());
        let known = self.rows.get(&id).map(|row| row["version"].as_i64());
        let wrong = match (kind, known) {
            ("INSERT", None) | ("DELETE", Some(_)) => false,
            ("UPDATE", Some(known)) => version != known.map(|known| known + 1),
            ("UPDATE" | "DELETE", None) => !limited,
            _ => true,
        };
        if wrong {
            let found = format!("{kind} of {id} to version {version:?} over {known:?}");
            self.wrong.push(found);
        }
        if kind == "DELETE" {
            self.rows.remove(&id);
        } else {
            self.rows.insert(id, row.clone());
        }
    }
}

pub(crate) fn id(row: &Value) -> i64 {
    row["id"].as_i64().expect("an id")
}

fn told(event: Event) -> Heard {
    match event {
        Event::Joined { refusals, .. } => {
            Heard::Joined(refusals.into_iter().map(|refused| refused.reason).collect())
        }
        Event::Unavailable { .. } => Heard::Again("unavailable".to_owned()),
        Event::Change { change, .. } => {
            let bindings = &change.bindings;
            let data: Value = serde_json::from_slice(&change.data).expect("JSON");
            if bindings[..] == [FENCE] {
                Heard::Fence(data["record"]["id"].as_u64().expect("a number"))
            } else {
                assert_eq!(bindings[..], [ROWS]);
                Heard::Change(data)
            }
        }
        Event::Snapshot { page, .. } => {
            assert_eq!(page.binding, ROWS);
            Heard::Page(Page {
                number: page.number,
                rows: serde_json::from_slice(&page.rows).expect("JSON"),
                errors: if page.errors.is_empty() {
                    Value::Null
                } else {
                    serde_json::from_slice(&page.errors).expect("JSON")
                },
                last: page.last,
                more: page.more,
                cursor: page.cursor,
            })
        }
        Event::SnapshotFailed { failure, .. } => Heard::Again(failure.to_string()),
        Event::Resync { reason, .. } => Heard::Again(reason.as_str().to_owned()),
        Event::CaughtUp { .. } => Heard::CaughtUp,
        Event::Introduced { .. } => unreachable!("no event of a client's"),
    }
}

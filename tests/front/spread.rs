//! Channels that are told to read again: all at once, and to join again by turns. Without sockets
//! and without a clock, but for the last.

use std::sync::Arc;
use std::time::Duration;

use rowcast::auth::{Claims, Principal};
use rowcast::log::{Cursor, Epoch, Offset};
use rowcast::router::{ChannelId, Event, Outgoing, Resync};
use rowcast::session::{Action, Close, Limits, Now, Session, Spread};
use rowcast::supabase::{Serializer, encode};
use rowcast::transport::Settings;
use serde_json::{Value, json};
use smallvec::smallvec;

use crate::support::{Server, soon};

const TOPIC: &str = "realtime:a";
const MILLISECOND: Duration = Duration::from_millis(1);

fn at(milliseconds: u32) -> Now {
    Now {
        monotonic: Duration::from_secs(100) + MILLISECOND * milliseconds,
        unix: 1_000,
    }
}

fn cursor(offset: u64) -> Cursor {
    Cursor {
        epoch: Epoch(7),
        offset: Offset(offset),
    }
}

/// A session whose router is the test.
struct Served {
    session: Session,
    channel: ChannelId,
}

impl Served {
    /// Joined as somebody whose token ends at 2,000.
    fn joined(spread: &Arc<Spread>) -> Self {
        let principal = Principal {
            role: "anon".into(),
            claims: Claims::verified("{}"),
            expires_at: Some(2_000),
        };
        let limits = Limits::default();
        let session = Session::counted(Arc::new(principal), limits, None, Arc::clone(spread));
        let mut served = Self {
            session: session.expect("nobody is counted"),
            channel: ChannelId(0),
        };
        served.join("1", json!({ "cursor": true }), at(0));
        served
    }

    fn join(&mut self, reference: &str, rowcast: Value, now: Now) -> Vec<String> {
        let config = json!({ "postgres_changes": [{ "event": "*", "table": "t" }] });
        let payload = json!({ "config": config, "rowcast": rowcast });
        let asked = self.ask((reference, reference, "phx_join"), payload, now);
        let said = self.said(vec![]);
        let mut all = said;
        for action in asked {
            match action {
                Action::Join { channel, .. } => {
                    self.channel = channel;
                    let joined = Event::Joined {
                        channel,
                        refusals: Vec::new(),
                        notices: Vec::new(),
                        holder: None,
                    };
                    all.extend(self.hear(joined, now));
                }
                other => all.extend(self.said(vec![other])),
            }
        }
        all
    }

    fn ask(
        &mut self,
        (join, own, event): (&str, &str, &str),
        payload: Value,
        now: Now,
    ) -> Vec<Action> {
        let frame = json!([join, own, TOPIC, event, payload]).to_string();
        let request = Serializer::V2.text(&frame).unwrap();
        let mut actions = Vec::new();
        self.session.request(request, now, &mut actions);
        actions
    }

    fn hear(&mut self, event: Event, now: Now) -> Vec<String> {
        let mut actions = Vec::new();
        self.session.event(event, now, &mut actions);
        self.said(actions)
    }

    fn resync(&mut self, now: Now) -> Vec<String> {
        let resync = Event::Resync {
            channel: self.channel,
            reason: Resync::Truncated,
            cursor: Some(cursor(5)),
            read_at: rowcast::pg::Lsn(0),
        };
        self.hear(resync, now)
    }

    fn change(&self) -> Event {
        let change = Outgoing {
            bindings: smallvec![1],
            offset: Offset(9),
            committed_at: 0,
            data: "{}".into(),
        };
        Event::Change {
            channel: self.channel,
            change: Arc::new(change),
        }
    }

    /// What is due, after the router has handed out more.
    fn report(&mut self, now: Now) -> Vec<String> {
        self.session.reach(cursor(20), true);
        let mut actions = Vec::new();
        self.session.report(now, &mut actions);
        self.said(actions)
    }

    /// The event of each frame with its join, and what else is to be done.
    fn said(&self, actions: Vec<Action>) -> Vec<String> {
        let said = actions.into_iter().map(|action| match action {
            Action::Reply(reply) => {
                let frame = encode(Serializer::V2, &reply).unwrap();
                let frame: Value = serde_json::from_str(&frame).unwrap();
                let (join, event) = (frame[0].as_str().unwrap_or("-"), frame[3].as_str().unwrap());
                match frame[4]["status"].as_str() {
                    Some(status) => format!("{join} {event} {status}"),
                    None => format!("{join} {event}"),
                }
            }
            Action::Leave(_) => "leave".to_owned(),
            Action::Close(Close::Shutdown) => "close".to_owned(),
            other => panic!("{other:?}"),
        });
        said.collect()
    }
}

/// A session that waits for its turn, and how long: another one had the first.
fn waiting(most: Duration) -> (Served, u32) {
    let spread = Arc::new(Spread::new(most));
    let (mut first, mut second) = (Served::joined(&spread), Served::joined(&spread));
    assert_eq!(
        first.resync(at(0)),
        ["leave", "1 system resync", "1 phx_error"]
    );
    assert_eq!(second.resync(at(0)), ["leave", "1 system resync"]);
    let due = second.session.next_report().unwrap() - at(0).monotonic;
    (second, u32::try_from(due.as_millis()).unwrap())
}

const MOST: Duration = Duration::from_secs(5);

#[test]
fn all_are_told_at_once_and_break_by_turns_and_hear_nothing_in_between() {
    let spread = Arc::new(Spread::new(MOST));
    let mut sessions: Vec<Served> = (0..2_000).map(|_| Served::joined(&spread)).collect();
    let mut turns = Vec::new();
    for session in &mut sessions {
        let said = session.resync(at(0));
        assert_eq!(said[..2], ["leave", "1 system resync"]);
        assert_eq!(session.hear(session.change(), at(0)), [""; 0]);
        assert_eq!(session.resync(at(0)), [""; 0], "told once");
        let turn = match session.session.next_report() {
            Some(due) => due - at(0).monotonic,
            None => Duration::ZERO,
        };
        assert_eq!(said.len() == 3, turn.is_zero(), "{said:?}");
        turns.push(turn);
    }
    let expected: Vec<Duration> = (0..2_000).map(|turn| MILLISECOND * turn).collect();
    assert_eq!(turns, expected);
    for (turn, session) in (0..).zip(&mut sessions).skip(1) {
        assert_eq!(session.report(at(turn - 1)), [""; 0], "before its turn");
        assert_eq!(session.report(at(turn)), ["1 phx_error"]);
        assert_eq!(session.report(at(turn + 60_000)), [""; 0], "once");
        assert_eq!(session.session.next_report(), None);
        // It is the client's turn: what it asks for now it gets.
        let joined = session.join("7", json!({ "cursor": true }), at(turn));
        assert_eq!(joined, ["7 phx_reply ok", "7 system ok"]);
        assert_eq!(
            session.hear(session.change(), at(turn)),
            ["- postgres_changes"]
        );
    }
}

#[test]
fn a_channel_that_is_left_before_its_turn_does_not_break() {
    let (mut session, turn) = waiting(MOST);
    let left = session.ask(("1", "2", "phx_leave"), json!({}), at(0));
    assert_eq!(
        session.said(left),
        ["1 phx_reply ok", "leave", "1 phx_close"]
    );
    assert_eq!(session.report(at(turn)), [""; 0]);
}

#[test]
fn a_channel_that_joins_anew_before_its_turn_goes_on_with_that() {
    let (mut session, turn) = waiting(MOST);
    let since = json!({ "cursor": true, "since": cursor(5).to_string() });
    let joined = session.join("2", since, at(0));
    assert_eq!(
        joined,
        ["leave", "2 phx_reply ok", "1 phx_close", "2 system ok"]
    );
    assert_eq!(
        session.hear(session.change(), at(0)),
        ["- postgres_changes"]
    );
    let caught_up = Event::CaughtUp {
        channel: session.channel,
    };
    session.hear(caught_up, at(0));
    assert_eq!(session.report(at(turn)), ["2 system cursor"]);
    assert_eq!(session.report(at(turn + 10_000)), [""; 0]);
}

#[test]
fn a_token_that_ends_before_its_channels_turn_ends_it_for_good() {
    let (mut session, turn) = waiting(MOST);
    let mut actions = Vec::new();
    let now = Now {
        unix: 2_000,
        ..at(0)
    };
    session.session.tick(now, &mut actions);
    let said = session.said(actions);
    assert_eq!(said, ["leave", "1 system error", "1 phx_close"]);
    assert_eq!(session.report(at(turn)), [""; 0]);
}

#[test]
fn a_new_token_before_its_channels_turn_is_left_to_the_next_join() {
    let (mut session, turn) = waiting(MOST);
    let token = json!({ "access_token": "of somebody else" });
    let asked = session.ask(("1", "2", "access_token"), token, at(0));
    assert_eq!(session.said(asked), [""; 0]);
    assert_eq!(session.report(at(turn)), ["1 phx_error"]);
}

#[test]
fn a_server_that_stops_before_a_channels_turn_takes_leave_of_it_as_of_all() {
    let (mut session, _) = waiting(MOST);
    let mut actions = Vec::new();
    session.session.shut_down(&mut actions);
    assert_eq!(session.said(actions), ["1 system ok", "close"]);
}

#[test]
fn without_a_spread_all_break_at_once() {
    let spread = Arc::new(Spread::new(Duration::ZERO));
    for _ in 0..10 {
        let mut session = Served::joined(&spread);
        let said = session.resync(at(0));
        assert_eq!(said, ["leave", "1 system resync", "1 phx_error"]);
    }
}

#[tokio::test]
async fn the_channels_of_real_sockets_break_by_turns() {
    const SOCKETS: u32 = 20;
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let (mut clients, mut granted) = (Vec::new(), Vec::new());
    for _ in 0..SOCKETS {
        let mut client = server.client().await;
        for channel in 1..=10 {
            client.join(&format!("realtime:{channel}"), channel).await;
            granted.push(soon(joins.recv()).await.unwrap());
        }
        clients.push(client);
    }
    for join in &granted {
        join.outbox.push(Event::Resync {
            channel: join.channel,
            reason: Resync::Truncated,
            cursor: None,
            read_at: rowcast::pg::Lsn(0),
        });
    }
    for client in &mut clients {
        let (mut told, mut broken) = (0, Vec::new());
        while broken.len() < 10 {
            let frame = client.next().await;
            if frame[3] == "phx_error" {
                broken.push(frame[0].as_str().unwrap().to_owned());
            } else {
                assert_eq!(frame[4]["status"], "resync", "{frame}");
                told += 1;
            }
        }
        assert_eq!(told, 10);
        broken.sort();
        broken.dedup();
        assert_eq!(broken.len(), 10);
        client.heartbeat().await;
    }
}

//! Cursors: what a client may say, what it is told, and that no cursor makes it come back for ever.

use rowcast::log::{Cursor, Epoch, Holder, Offset};
use rowcast::pg::Lsn;
use rowcast::router::{Event, Join, Resync};
use rowcast::snapshot::Failure;
use rowcast::subscription::Events;
use rowcast::transport::Settings;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::support::{Client, Server, change, change_at, soon};

fn cursor(offset: u64) -> Cursor {
    Cursor {
        epoch: Epoch(7),
        offset: Offset(offset),
    }
}

/// Joins with these bindings and this `rowcast`; returns the answer.
async fn join(client: &mut Client, reference: u32, bindings: Value, rowcast: Value) -> Value {
    let reference = reference.to_string();
    let mut payload = json!({ "config": { "postgres_changes": bindings } });
    if !rowcast.is_null() {
        payload["rowcast"] = rowcast;
    }
    let frame = json!([reference, reference, "realtime:a", "phx_join", payload]);
    client.send(frame.to_string()).await;
    loop {
        let reply = client.next().await;
        if reply[3] == "phx_reply" {
            return reply[4].clone();
        }
    }
}

fn begins(join: &Join) -> Vec<Option<u64>> {
    let starts = join.wanted.iter().map(|wish| wish.start.since);
    starts
        .map(|since| since.map(|cursor| cursor.offset.0))
        .collect()
}

#[tokio::test]
async fn a_bindings_own_cursor_goes_before_its_channels() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    let bindings = json!([
        { "table": "t", "rowcast": { "since": cursor(5).to_string() } },
        { "table": "u", "rowcast": { "since": null } },
        { "table": "v", "rowcast": null },
        { "table": "w" },
    ]);
    let rowcast = json!({ "since": cursor(9).to_string(), "cursor": false });
    let reply = join(&mut client, 1, bindings, rowcast).await;
    assert_eq!(reply["status"], "ok");
    let first = soon(joins.recv()).await.unwrap();
    assert_eq!(begins(&first), [Some(5), Some(9), Some(9), Some(9)]);
}

#[tokio::test]
async fn what_is_not_understood_is_refused_by_name_and_the_other_bindings_stand() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    for (rowcast, text) in [
        (
            json!({ "since": "yesterday" }),
            "`rowcast.since` is not a cursor",
        ),
        (json!({ "since": 5 }), "`rowcast.since` must be a string"),
        (json!({ "sinse": "x" }), "`rowcast.sinse` is not known"),
        (json!("x"), "`rowcast` must be an object"),
    ] {
        let mut client = server.client().await;
        let bindings = json!([{ "table": "t", "rowcast": rowcast }, { "table": "u" }]);
        assert_eq!(
            join(&mut client, 1, bindings, Value::Null).await["status"],
            "ok"
        );
        assert_eq!(soon(joins.recv()).await.unwrap().wanted.len(), 1);
        let error = client.next().await;
        assert_eq!(error[4]["status"], "error");
        let said = error[4]["message"].as_str().unwrap();
        assert!(said.contains(text), "{said}");
        assert_eq!(error[4]["binding"]["table"], "t");
        assert_eq!(client.next().await[4]["status"], "ok");
    }
    for rowcast in [
        json!({ "since": "yesterday" }),
        json!({ "cursor": "perhaps" }),
        json!({ "snapshot": {} }),
        json!([]),
    ] {
        let mut client = server.client().await;
        let reply = join(&mut client, 1, json!([{ "table": "t" }]), rowcast).await;
        assert_eq!(reply["status"], "error");
        let reason = reply["response"]["reason"].as_str().unwrap();
        assert!(
            reason.starts_with("InvalidJoinPayload: `rowcast"),
            "{reason}"
        );
    }
}

#[tokio::test]
async fn a_truncate_can_be_asked_for_where_clients_hand_it_on_and_nowhere_else() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let asked = |event: Value, truncate: Value| {
        json!([
            { "event": event, "table": "t", "rowcast": { "truncate": truncate } },
            { "event": "*", "table": "u" },
        ])
    };
    for (event, truncate, events) in [
        (json!("*"), json!(true), Events::AllAndTruncate),
        (Value::Null, json!("true"), Events::AllAndTruncate),
        (json!("TRUNCATE"), json!(true), Events::AllAndTruncate),
        (json!("*"), json!(false), Events::All),
        (json!("insert"), Value::Null, Events::Insert),
    ] {
        let mut client = server.client().await;
        join(&mut client, 1, asked(event, truncate), Value::Null).await;
        let wanted = soon(joins.recv()).await.unwrap().wanted;
        assert_eq!([wanted[0].events, wanted[1].events], [events, Events::All]);
    }
    for (event, truncate, text) in [
        ("INSERT", json!(true), "for bindings with the event `*`"),
        ("delete", json!(true), "for bindings with the event `*`"),
        ("*", json!(1), "`rowcast.truncate` must be true or false"),
        ("*", json!({}), "`rowcast.truncate` must be true or false"),
    ] {
        let mut client = server.client().await;
        join(&mut client, 1, asked(json!(event), truncate), Value::Null).await;
        let wanted = soon(joins.recv()).await.unwrap().wanted;
        assert_eq!(wanted.len(), 1, "the other binding stands");
        let error = client.next().await;
        assert_eq!(error[4]["binding"]["table"], "t");
        let said = error[4]["message"].as_str().unwrap();
        assert!(said.contains(text), "{said}");
    }
}

async fn resynced(client: &mut Client, joins: &mut mpsc::Receiver<Join>) -> Join {
    let granted = soon(joins.recv()).await.unwrap();
    granted.outbox.push(Event::Resync {
        channel: granted.channel,
        reason: Resync::Trimmed,
        cursor: Some(cursor(50)),
        read_at: Lsn(0),
    });
    loop {
        let system = client.next().await;
        if system[4]["status"] == "resync" {
            assert_eq!(system[4]["cursor"], cursor(50).to_string());
            assert_eq!(system[4]["reason"], "trimmed");
            break;
        }
    }
    assert_eq!(client.next().await[3], "phx_error");
    granted
}

#[tokio::test]
async fn a_refused_cursor_that_comes_again_is_none_so_that_no_client_joins_for_ever() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    let bindings = json!([{ "table": "t", "rowcast": { "since": cursor(5).to_string() } }]);
    join(&mut client, 1, bindings.clone(), Value::Null).await;
    assert_eq!(begins(&resynced(&mut client, &mut joins).await), [Some(5)]);
    // An application that takes no notice comes back as it was.
    join(&mut client, 2, bindings.clone(), Value::Null).await;
    assert_eq!(begins(&soon(joins.recv()).await.unwrap()), [None]);
    // One that does gets what it asks for.
    let fresh = json!([{ "table": "t", "rowcast": { "since": cursor(50).to_string() } }]);
    join(&mut client, 3, fresh, Value::Null).await;
    assert_eq!(begins(&soon(joins.recv()).await.unwrap()), [Some(50)]);
    // Another socket has been told nothing yet.
    let mut other = server.client().await;
    join(&mut other, 1, bindings, Value::Null).await;
    assert_eq!(begins(&soon(joins.recv()).await.unwrap()), [Some(5)]);
}

#[tokio::test]
async fn the_cursor_that_comes_with_the_word_to_read_is_good_also_where_it_was_refused_before() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    let bindings = json!([{ "table": "t", "rowcast": { "since": cursor(50).to_string() } }]);
    // Nothing has happened since it was where it is: the place is the same, what it has read is not.
    for reference in 1..=3 {
        join(&mut client, reference, bindings.clone(), Value::Null).await;
        let granted = soon(joins.recv()).await.unwrap();
        assert_eq!(begins(&granted), [Some(50)]);
        let read_at = granted.wanted[0].start.read_at;
        assert_eq!(
            read_at,
            (reference > 1).then_some(Lsn(699 + u64::from(reference)))
        );
        granted.outbox.push(Event::Resync {
            channel: granted.channel,
            reason: Resync::AccessChanged,
            cursor: Some(cursor(50)),
            read_at: Lsn(700 + u64::from(reference)),
        });
        while client.next().await[3] != "phx_error" {}
    }
}

async fn next_cursor(client: &mut Client) -> String {
    loop {
        let frame = client.next().await;
        if frame[3] == "system" && frame[4]["status"] == "cursor" {
            assert_eq!(frame[4]["extension"], "rowcast");
            assert_eq!(frame[4]["channel"], "a");
            return frame[4]["cursor"].as_str().unwrap().to_owned();
        }
    }
}

#[tokio::test]
async fn a_channel_that_asks_is_told_its_cursor_at_first_after_changes_and_at_the_end() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    let bindings = json!([{ "table": "t" }]);
    join(&mut client, 1, bindings, json!({ "cursor": true })).await;
    let granted = soon(joins.recv()).await.unwrap();
    let first = next_cursor(&mut client).await;
    granted.outbox.push(change(&granted, "{}"));
    granted.outbox.push(change(&granted, "{}"));
    assert_eq!(client.next().await[3], "postgres_changes");
    let second: Cursor = next_cursor(&mut client).await.parse().unwrap();
    assert!(first < second.to_string());
    assert_eq!(second.offset, Offset(2), "the place behind the change");
    // It goes with what was sent and not told yet.
    granted.outbox.push(change_at(Offset(8), &granted, "{}"));
    assert_eq!(client.next().await[3], "postgres_changes");
    server.shutdown.cancel();
    let last: Cursor = next_cursor(&mut client).await.parse().unwrap();
    assert_eq!(last.offset, Offset(9));
    assert_eq!(u16::from(client.closed().await.unwrap().code), 1012);
}

#[tokio::test]
async fn a_channel_that_does_not_ask_is_told_no_cursor() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    client.join("realtime:a", 1).await;
    let granted = soon(joins.recv()).await.unwrap();
    granted.outbox.push(change(&granted, "{}"));
    assert_eq!(client.next().await[3], "postgres_changes");
    server.shutdown.cancel();
    assert_eq!(
        client.next().await[4]["message"],
        "Server requested disconnect"
    );
}

#[tokio::test]
async fn a_client_that_does_not_keep_up_is_told_its_last_cursor_and_to_come_back() {
    let settings = Settings {
        outbox_max_events: 2,
        ..Settings::default()
    };
    let (server, mut joins) = Server::granting(settings).await;
    let mut client = server.client().await;
    join(
        &mut client,
        1,
        json!([{ "table": "t" }]),
        json!({ "cursor": true }),
    )
    .await;
    let granted = soon(joins.recv()).await.unwrap();
    next_cursor(&mut client).await;
    let mut offset = 0;
    while !granted.outbox.has_overflowed() {
        granted
            .outbox
            .push(change_at(Offset(offset), &granted, "{}"));
        offset += 1;
    }
    let (mut changes, mut last) = (0, None);
    let code = loop {
        match soon(futures_util::StreamExt::next(&mut client.socket)).await {
            Some(Ok(tokio_tungstenite::tungstenite::Message::Text(text))) => {
                let frame: Value = serde_json::from_str(&text).unwrap();
                if frame[3] == "postgres_changes" {
                    changes += 1;
                } else if frame[4]["status"] == "cursor" {
                    last = Some(
                        frame[4]["cursor"]
                            .as_str()
                            .unwrap()
                            .parse::<Cursor>()
                            .unwrap(),
                    );
                }
            }
            Some(Ok(tokio_tungstenite::tungstenite::Message::Close(frame))) => {
                break u16::from(frame.unwrap().code);
            }
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(code, 1013);
    assert!(changes < offset, "something did not fit");
    assert_eq!(
        last.unwrap().offset,
        Offset(changes),
        "all that came and nothing else"
    );
}

#[tokio::test]
async fn every_cursor_that_a_client_is_given_says_whose_it_is_and_is_read_back_so() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let holder = Holder {
        claims: 0x0102_0304,
        read: 5,
        rules: Some(Lsn(0x1a2b)),
    };
    let said = |offset: u64| format!("{}-0102030400000005-0000000000001a2b", cursor(offset));
    let mut client = server.client().await;
    let bindings = json!([{ "table": "t" }]);
    join(&mut client, 1, bindings, json!({ "cursor": true })).await;
    let granted = soon(joins.recv()).await.unwrap();
    next_cursor(&mut client).await;
    let channel = granted.channel;
    granted.outbox.push(Event::Introduced { channel, holder });
    let data = format!(
        "{{\"record\":{{\"a\":\"\\\"}}\"}},\"cursor\":\"{}\"}}",
        cursor(2)
    );
    granted.outbox.push(change(&granted, data));
    let frame = client.next().await;
    assert_eq!(frame[4]["data"]["record"]["a"], "\"}");
    assert_eq!(frame[4]["data"]["cursor"], said(2));
    let told = next_cursor(&mut client).await;
    assert!(
        told.ends_with("-0102030400000005-0000000000001a2b"),
        "{told}"
    );
    granted.outbox.push(Event::Resync {
        channel,
        reason: Resync::Truncated,
        cursor: Some(cursor(50)),
        read_at: Lsn(0),
    });
    assert_eq!(client.next().await[4]["cursor"], said(50));
    assert_eq!(client.next().await[3], "phx_error");
    // Of a join and of a binding, and a text of before.
    let bindings = json!([
        { "table": "t" },
        { "table": "u", "rowcast": { "since": cursor(6).to_string() } },
    ]);
    join(&mut client, 2, bindings, json!({ "since": said(51) })).await;
    let next = soon(joins.recv()).await.unwrap();
    assert_eq!(begins(&next), [Some(51), Some(6)]);
    let holders: Vec<_> = next.wanted.iter().map(|wish| wish.start.holder).collect();
    assert_eq!(holders, [Some(holder), None]);
}

#[tokio::test]
async fn every_reason_to_read_again_is_said_and_stands_in_the_documents() {
    let readme = include_str!("../../README.md");
    let protocol = include_str!("../../docs/protocol.md");
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let words = [
        (Some(Resync::Undecided), "undecided"),
        (Some(Resync::Undecodable), "undecodable"),
        (Some(Resync::TooLarge), "too_large"),
        (Some(Resync::Truncated), "truncated"),
        (Some(Resync::SchemaChanged), "schema_changed"),
        (Some(Resync::SlotLost), "slot_lost"),
        (Some(Resync::Trimmed), "trimmed"),
        (Some(Resync::Epoch), "epoch"),
        (Some(Resync::AccessChanged), "access_changed"),
        (None, "snapshot_failed"),
    ];
    let mut client = server.client().await;
    for (reference, (reason, word)) in (1..).zip(words) {
        join(
            &mut client,
            reference,
            json!([{ "table": "t" }]),
            Value::Null,
        )
        .await;
        assert_eq!(
            client.next().await[4]["message"],
            "Subscribed to PostgreSQL"
        );
        let granted = soon(joins.recv()).await.unwrap();
        let channel = granted.channel;
        granted.outbox.push(match reason {
            Some(reason) => Event::Resync {
                channel,
                reason,
                cursor: Some(cursor(3)),
                read_at: Lsn(0),
            },
            None => Event::SnapshotFailed {
                channel,
                failure: Failure::Changing,
            },
        });
        let said = client.next().await;
        assert_eq!(said[4]["status"], "resync");
        assert_eq!(said[4]["reason"], word);
        let message = match reason {
            Some(_) => "Changes may have been missed; read the tables again",
            None => "the table is being changed; try again",
        };
        assert_eq!(said[4]["message"], message);
        assert_eq!(said[4]["cursor"].is_string(), reason.is_some());
        assert_eq!(client.next().await[3], "phx_error");
        for document in [readme, protocol] {
            assert!(document.contains(&format!("`{word}`")), "{word}");
        }
        // Nothing is sent that is not in the list above.
        match reason {
            None
            | Some(
                Resync::Undecided
                | Resync::Undecodable
                | Resync::TooLarge
                | Resync::Truncated
                | Resync::SchemaChanged
                | Resync::SlotLost
                | Resync::Trimmed
                | Resync::Epoch
                | Resync::AccessChanged,
            ) => {}
        }
    }
}

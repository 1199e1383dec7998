//! Joining and leaving, in every order that clients do it.

use rowcast::router::{Event, Refusal, Resync};
use rowcast::subscription::Events;
use rowcast::transport::Settings;
use serde_json::json;

use crate::support::{Client, Server, change, grant, join_frame, next_join, soon, token};

#[tokio::test]
async fn a_join_is_answered_with_the_clients_own_objects_byte_for_byte_and_truthy_ids() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    client
        .send(concat!(
            r#"["1","1","realtime:room","phx_join",{"config":{"postgres_changes":["#,
            r#"{"event":"insert",  "schema":"public","table":"todos","filter":"id=in.( 1, 2 )","x":1.50},"#,
            r#"null,{"table":"t","id":0,"filter":null}]}}]"#
        ))
        .await;
    assert_eq!(
        client.text().await,
        concat!(
            r#"["1","1","realtime:room","phx_reply",{"status":"ok","response":{"postgres_changes":["#,
            r#"{"id":1,"event":"insert",  "schema":"public","table":"todos","filter":"id=in.( 1, 2 )","x":1.50},"#,
            r#"{"id":2,"table":"t","filter":null}]}}]"#
        )
    );
    assert_eq!(
        client.next().await,
        json!(["1", null, "realtime:room", "system", {
            "extension": "postgres_changes", "status": "ok",
            "message": "Subscribed to PostgreSQL", "channel": "room"}])
    );
    let join = soon(joins.recv()).await.unwrap();
    assert_eq!(join.wanted[0].events, Events::Insert);
    assert_eq!(join.wanted[0].filter[0].values.len(), 2);
    assert_eq!(join.wanted[1].schema.as_deref(), Some("public"));

    join.outbox.push(change(&join, r#"{"type":"INSERT"}"#));
    assert_eq!(
        client.text().await,
        r#"[null,null,"realtime:room","postgres_changes",{"ids":[1],"data":{"type":"INSERT"}}]"#
    );
    server
        .metric_reaches("rowcast_changes_delivered_total 1")
        .await;
}

#[tokio::test]
async fn joins_without_config_and_with_junk_succeed() {
    let (server, _joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    for (reference, payload) in [
        "{}",
        "[]",
        r#"{"config":5}"#,
        r#"{"config":{"broadcast":{"ack":5,"self":"true"},"presence":{"enabled":true},"private":"false","postgres_changes":null},"access_token":7}"#,
    ]
    .iter()
    .enumerate()
    {
        client
            .send(format!(r#"[null,"{reference}","realtime:r{reference}","phx_join",{payload}]"#))
            .await;
        assert_eq!(
            client.text().await,
            format!(
                r#"["{reference}","{reference}","realtime:r{reference}","phx_reply",{{"status":"ok","response":{{"postgres_changes":[]}}}}]"#
            )
        );
    }
}

#[tokio::test]
async fn what_cannot_be_joined_is_refused_with_the_known_text() {
    let (server, _joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    for (topic, payload, join_ref, reason) in [
        (
            "realtime:",
            "{}",
            "\"1\"",
            "TopicNameRequired: You must provide a topic name",
        ),
        ("foo:bar", "{}", "null", "unmatched topic"),
        (
            "realtime:p",
            r#"{"config":{"private":"True"}}"#,
            "\"1\"",
            "PrivateChannelsNotSupported: private channels are not supported yet by this server",
        ),
        (
            "realtime:t",
            r#"{"access_token":"x"}"#,
            "\"1\"",
            "MalformedJWT: The token provided is not a valid JWT",
        ),
    ] {
        client
            .send(format!(r#"["1","1","{topic}","phx_join",{payload}]"#))
            .await;
        assert_eq!(
            client.text().await,
            format!(
                r#"[{join_ref},"1","{topic}","phx_reply",{{"status":"error","response":{{"reason":"{reason}"}}}}]"#
            )
        );
    }
    client
        .send(r#"["1","2","realtime:never","presence",{}]"#)
        .await;
    assert_eq!(
        client.next().await[4]["response"]["reason"],
        "unmatched topic"
    );
}

#[tokio::test]
async fn one_bad_binding_errs_alone_and_is_named() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    for (binding, message) in [
        (
            r#"{"event":"*","table":"t","filter":"a=foo.hey"}"#,
            "Error parsing `filter` params: [\"foo\", \"hey\"]",
        ),
        (
            r#"{"event":"*"}"#,
            "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: %{\"event\" => \"*\"}",
        ),
        (
            r#"{"event":"*","table":"t","select":"a"}"#,
            "Error parsing `select` params: expected a list of column name strings, e.g. select: [\"col1\", \"col2\"]",
        ),
        (
            r#"{"event":"*","schema":"s","select":["a"]}"#,
            "Column selection is not supported for wildcard subscriptions. Provide an explicit schema and table name.",
        ),
    ] {
        client
            .send(format!(
                r#"["1","1","realtime:r","phx_join",{{"config":{{"postgres_changes":[{{"table":"good"}},{binding}]}}}}]"#
            ))
            .await;
        let reply = client.next().await;
        assert_eq!(reply[4]["status"], "ok", "the channel stands");
        let mut system = client.next().await;
        if system[3] == "phx_close" {
            system = client.next().await;
        }
        assert_eq!(system[4]["status"], "error");
        assert_eq!(system[4]["message"], message);
        assert_eq!(system[4]["binding"]["id"], 2);
        let wanted = soon(joins.recv()).await.unwrap().wanted;
        assert_eq!(wanted.iter().map(|w| w.id).collect::<Vec<_>>(), [1]);
        let ok = client.next().await;
        assert_eq!(
            ok[4]["message"], "Subscribed to PostgreSQL",
            "the other is in force"
        );
    }
}

#[tokio::test]
async fn the_routers_refusal_and_its_notices_reach_the_client() {
    let (server, mut commands) = Server::start(Settings::default()).await;
    let mut client = server.client().await;
    client
        .send(r#"["1","1","realtime:r","phx_join",{"config":{"postgres_changes":[{"schema":"public","table":"t","filter":"nope=not.eq.1","select":["a",5,"b\\""]}]}}]"#)
        .await;
    let join = next_join(&mut commands).await;
    let selected = join.wanted[0].select.as_deref();
    assert_eq!(selected, Some(&["a".to_owned(), "b\"".to_owned()][..]));
    join.outbox.push(Event::Joined {
        channel: join.channel,
        refusals: vec![Refusal {
            binding: 1,
            reason: "invalid column for filter nope".to_owned(),
        }],
        notices: vec!["mind the gap".to_owned()],
    });
    assert_eq!(client.next().await[4]["status"], "ok");
    let system = client.next().await;
    assert_eq!(
        system[4]["message"],
        "Unable to subscribe to changes with given parameters. An exception happened so please check your connect parameters: [event: *, schema: public, table: t, filters: [{\"nope\", \"eq\", \"1\", true}], select: [\"a\", \"b\\\"\"]]. Exception: invalid column for filter nope"
    );
    assert_eq!(system[4]["binding"]["filter"], "nope=not.eq.1");
    let notice = client.next().await;
    assert_eq!(
        (&notice[4]["extension"], &notice[4]["status"]),
        (&json!("rowcast"), &json!("warning"))
    );
}

#[tokio::test]
async fn a_leave_is_answered_before_the_close_and_an_unknown_topic_can_be_left() {
    let (server, _joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    client.join("realtime:a", 1).await;
    client
        .send(r#"["1","9","realtime:a","phx_leave",{}]"#)
        .await;
    assert_eq!(
        client.text().await,
        r#"["1","9","realtime:a","phx_reply",{"status":"ok","response":{}}]"#
    );
    assert_eq!(
        client.text().await,
        r#"["1","1","realtime:a","phx_close",{}]"#
    );
    client
        .send(r#"["1","10","realtime:a","phx_leave",{}]"#)
        .await;
    assert_eq!(client.next().await[4]["status"], "ok");
    client.heartbeat().await;
}

#[tokio::test]
async fn a_second_join_is_answered_before_the_first_is_closed_and_a_late_leave_spares_it() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    client.join("realtime:a", 1).await;
    let old = soon(joins.recv()).await.unwrap();
    client.send(join_frame("realtime:a", 2)).await;
    let reply = client.next().await;
    assert_eq!((&reply[1], &reply[3]), (&json!("2"), &json!("phx_reply")));
    assert_eq!(
        client.text().await,
        r#"["1","1","realtime:a","phx_close",{}]"#
    );
    assert_eq!(client.next().await[4]["status"], "ok");

    client
        .send(r#"["1","9","realtime:a","phx_leave",{}]"#)
        .await;
    assert_eq!(client.next().await[4]["status"], "ok");
    let new = soon(joins.recv()).await.unwrap();
    new.outbox.push(change(&old, "\"stale\""));
    new.outbox.push(change(&new, "\"fresh\""));
    assert_eq!(client.next().await[4]["data"], "fresh");
}

#[tokio::test]
async fn join_leave_join_in_one_breath_leaves_the_last_join_alone_standing() {
    let (server, mut commands) = Server::start(Settings::default()).await;
    let mut client = server.client().await;
    client.send(join_frame("realtime:a", 1)).await;
    client
        .send(r#"["1","2","realtime:a","phx_leave",{}]"#)
        .await;
    client.send(join_frame("realtime:a", 3)).await;
    let first = next_join(&mut commands).await;
    let second = next_join(&mut commands).await;
    assert_ne!(first.channel, second.channel);
    grant(&first);
    first.outbox.push(change(&first, "\"stale\""));
    grant(&second);
    second.outbox.push(change(&second, "\"fresh\""));
    assert_eq!(client.next().await[1], "2", "the leave");
    assert_eq!(
        client.text().await,
        r#"["1","1","realtime:a","phx_close",{}]"#
    );
    assert_eq!(client.next().await[1], "3", "the second join");
    assert_eq!(client.next().await[4]["status"], "ok");
    assert_eq!(client.next().await[4]["data"], "fresh");
}

#[tokio::test]
async fn a_resync_makes_the_client_join_again() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    client.join("realtime:a", 1).await;
    let join = soon(joins.recv()).await.unwrap();
    join.outbox.push(Event::Resync {
        channel: join.channel,
        reason: Resync::Undecided,
    });
    let system = client.next().await;
    assert_eq!(system[4]["extension"], "rowcast");
    assert_eq!(system[4]["status"], "resync");
    assert_eq!(system[4]["reason"], "undecided");
    assert_eq!(
        client.text().await,
        r#"["1","1","realtime:a","phx_error",{}]"#
    );
    client.join("realtime:a", 2).await;
}

#[tokio::test]
async fn a_join_that_waits_for_its_answer_holds_up_no_other_channel() {
    let (server, mut commands) = Server::start(Settings::default()).await;
    let mut client = server.client().await;
    client.send(join_frame("realtime:slow", 1)).await;
    client.send(join_frame("realtime:fast", 2)).await;
    let _slow = next_join(&mut commands).await;
    grant(&next_join(&mut commands).await);
    assert_eq!(client.next().await[1], "2");
    assert_eq!(client.next().await[2], "realtime:fast");
    client.heartbeat().await;
}

#[tokio::test]
async fn broadcast_and_presence_are_refused_with_a_reason() {
    let (server, _joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    client.join("realtime:room1", 1).await;
    client
        .send(r#"["1","2","realtime:room1","presence",{"event":"track"}]"#)
        .await;
    let reply = client.next().await;
    assert_eq!(reply[4]["status"], "error");
    let kind_3 = b"\x03\x01\x01\x0e\x06\x00\x0112realtime:room1cursor{\"x\":1}";
    let frame = tokio_tungstenite::tungstenite::Message::binary(kind_3.to_vec());
    futures_util::SinkExt::send(&mut client.socket, frame)
        .await
        .unwrap();
    let reply = client.next().await;
    assert_eq!((&reply[0], &reply[1]), (&json!("1"), &json!("2")));
    let reason = reply[4]["response"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("broadcast is not supported yet"));
}

#[tokio::test]
async fn version_1_carries_the_same_in_objects_and_marks_an_end_with_the_joins_reference() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let query = format!("apikey={}", token("anon", 100));
    let mut client = Client::connect(&server.url("/socket/websocket", &query)).await;
    client
        .send(r#"{"topic":"realtime:комната","event":"phx_join","payload":{"config":{"postgres_changes":[{"table":"t"}]}},"ref":"7","join_ref":"7"}"#)
        .await;
    assert_eq!(
        client.text().await,
        r#"{"topic":"realtime:комната","event":"phx_reply","payload":{"status":"ok","response":{"postgres_changes":[{"id":1,"table":"t"}]}},"ref":"7"}"#
    );
    let system = client.next().await;
    assert_eq!(system["payload"]["channel"], "комната");
    assert_eq!(system["ref"], json!(null));
    let join = soon(joins.recv()).await.unwrap();
    join.outbox.push(change(&join, r#"{"record":{"n":1.50}}"#));
    assert_eq!(
        client.text().await,
        r#"{"topic":"realtime:комната","event":"postgres_changes","payload":{"ids":[1],"data":{"record":{"n":1.50}}},"ref":null}"#
    );
    // Clients of version 1 may send no join reference at all.
    client
        .send(r#"{"topic":"realtime:комната","event":"phx_leave","payload":{},"ref":"9"}"#)
        .await;
    assert_eq!(client.next().await["ref"], "9");
    assert_eq!(
        client.text().await,
        r#"{"topic":"realtime:комната","event":"phx_close","payload":{},"ref":"7"}"#
    );
}

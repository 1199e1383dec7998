//! Joining and leaving, in every order that clients do it.

use rowcast::router::{Command, Event, Refusal, Resync};
use rowcast::session::Limits;
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
async fn fields_that_are_junk_do_not_stand_against_a_join() {
    let (server, _joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    for (reference, payload) in [
        r#"{"config":{}}"#,
        r#"{"config":{"broadcast":{"ack":5,"self":"true"},"presence":{"key":7,"enabled":"TRUE"},"private":"False","postgres_changes":null},"access_token":7}"#,
        r#"{"config":{"postgres_changes":[null,null],"postgres_changes_options":5,"private":null},"user_token":null}"#,
        r#"{"config":{"postgres_changes":[],"postgres_changes_options":{"wait":"true","timeout":"x"}}}"#,
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
    client.heartbeat().await;
}

#[tokio::test]
async fn a_join_that_subscribes_to_nothing_by_mistake_stands_and_says_so() {
    let (server, _joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    for (payload, message) in [
        (
            "{}",
            "A join without `config` subscribes to nothing. Please name the tables in `config.postgres_changes`",
        ),
        (
            r#"{"config":{"postgres_changes":{"table":"t"}}}"#,
            "Error parsing `postgres_changes` params: expected a list",
        ),
    ] {
        client
            .send(format!(
                r#"["1","1","realtime:{}","phx_join",{payload}]"#,
                message.len()
            ))
            .await;
        assert_eq!(
            client.next().await[4],
            json!({"status": "ok", "response": {"postgres_changes": []}})
        );
        assert_eq!(
            client.next().await[4],
            json!({"extension": "postgres_changes", "status": "error", "message": message,
                   "channel": message.len().to_string()})
        );
        client.heartbeat().await;
    }
}

#[tokio::test]
async fn the_older_name_of_the_token_comes_before_the_newer() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    let payload = json!({
        "config": {}, "access_token": token("newer", 100), "user_token": token("older", 100)
    });
    client
        .send(json!(["1", "1", "realtime:a", "phx_join", payload]).to_string())
        .await;
    assert_eq!(client.next().await[4]["status"], "ok");
    assert_eq!(&*soon(joins.recv()).await.unwrap().principal.role, "older");
}

#[tokio::test]
async fn who_waits_for_all_bindings_is_refused_where_one_is_and_nothing_stays_in_force() {
    let (server, mut commands) = Server::start(Settings::default()).await;
    let mut client = server.client().await;
    let join = |reference: &str, bad: &str| {
        format!(
            r#"["{reference}","{reference}","realtime:r","phx_join",{{"config":{{"postgres_changes":[{{"table":"good"}},{bad}],"postgres_changes_options":{{"wait":true,"timeout":15000}}}}}}]"#
        )
    };
    // Known without a look at the catalog: the router hears nothing of it.
    client
        .send(join("1", r#"{"table":"t","filter":"a=foo.hey"}"#))
        .await;
    assert_eq!(
        client.next().await[4],
        json!({"status": "error", "response": {"reason":
            "RealtimeDisabledForConfiguration: Error parsing `filter` params: [\"foo\", \"hey\"]"}})
    );
    client
        .send(join("2", r#"{"schema":"s","table":"none"}"#))
        .await;
    let asked = next_join(&mut commands).await;
    asked.outbox.push(Event::Joined {
        channel: asked.channel,
        refusals: vec![Refusal {
            binding: 2,
            reason: "Please check Realtime is enabled for the given connect parameters".to_owned(),
        }],
        notices: vec![],
        holder: None,
    });
    assert_eq!(
        client.next().await,
        json!(["2", "2", "realtime:r", "phx_reply", {"status": "error", "response": {"reason":
            "RealtimeDisabledForConfiguration: Unable to subscribe to changes with given parameters. Please check Realtime is enabled for the given connect parameters: [event: *, schema: s, table: none, filters: [], select: nil]"}}])
    );
    let left = soon(async {
        loop {
            if let Command::Leave { channel, .. } = commands.recv().await.unwrap()
                && channel == asked.channel
            {
                return;
            }
        }
    });
    left.await;
    asked.outbox.push(change(&asked, "1"));
    client.heartbeat().await;
    // All in force: the reply alone says so, and the system message as ever.
    client.send(join("3", r#"{"table":"fine"}"#)).await;
    grant(&next_join(&mut commands).await);
    assert_eq!(client.next().await[4]["status"], "ok");
    assert_eq!(
        client.next().await[4]["message"],
        "Subscribed to PostgreSQL"
    );
}

#[tokio::test]
async fn a_database_out_of_reach_refuses_the_join_and_later_breaks_the_channel() {
    let (server, mut commands) = Server::start(Settings::default()).await;
    let mut client = server.client().await;
    client.send(join_frame("realtime:a", 1)).await;
    let join = next_join(&mut commands).await;
    join.outbox.push(Event::Unavailable {
        channel: join.channel,
    });
    assert_eq!(
        client.next().await[4]["response"]["reason"],
        "UnableToConnectToProject: Realtime was unable to connect to the project database"
    );
    client.send(join_frame("realtime:a", 2)).await;
    let join = next_join(&mut commands).await;
    grant(&join);
    client.next().await;
    client.next().await;
    join.outbox.push(Event::Unavailable {
        channel: join.channel,
    });
    assert_eq!(
        client.text().await,
        r#"["2","2","realtime:a","phx_error",{}]"#,
        "an error and no end: clients join again by themselves"
    );
}

#[tokio::test]
async fn of_several_things_that_stand_against_a_join_the_one_that_supabase_names_first_is_named() {
    let (server, _joins) = Server::granting(Settings {
        limits: Limits {
            channels: 1,
            joins_per_second: 3,
            ..Limits::default()
        },
        ..Settings::default()
    })
    .await;
    let mut client = server.client().await;
    // All within one second, or the rate begins anew: then it is tried again.
    let everything = r#"{"config":{"private":true},"access_token":"x"}"#;
    let bad_token = "MalformedJWT: The token provided is not a valid JWT";
    for (topic, payload, reason) in [
        (
            "realtime:",
            everything,
            "TopicNameRequired: You must provide a topic name",
        ),
        ("realtime:a", r#"{"config":5}"#, "Unknown Error on Channel"),
        ("realtime:a", everything, bad_token),
        (
            "realtime:a",
            r#"{"config":{"private":true}}"#,
            "PrivateChannelsNotSupported: private channels are not supported yet by this server",
        ),
    ] {
        // The rate counts what gets past the name; a fresh socket for each has its own.
        let mut client = server.client().await;
        client
            .send(format!(r#"["1","1","{topic}","phx_join",{payload}]"#))
            .await;
        assert_eq!(client.next().await[4]["response"]["reason"], reason);
    }
    client.join("realtime:a", 1).await;
    client
        .send(format!(r#"["2","2","realtime:b","phx_join",{everything}]"#))
        .await;
    assert_eq!(
        client.next().await[4]["response"]["reason"],
        "ChannelRateLimitReached: Too many channels"
    );
    soon(async {
        let too_fast = "ClientJoinRateLimitReached: Too many joins per second";
        loop {
            client
                .send(format!(r#"["3","3","realtime:b","phx_join",{everything}]"#))
                .await;
            if client.next().await[4]["response"]["reason"] == too_fast {
                break;
            }
        }
    })
    .await;
    // The socket stays: closing it would end its other channels for the sake of one.
    client.heartbeat().await;
}

#[tokio::test]
async fn fifty_channels_of_which_one_is_denied_one_is_slow_and_one_has_an_unknown_key() {
    // An issuer that takes connections and never answers.
    let issuer = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let keys = rowcast::auth::Settings {
        jwks_url: Some(format!("http://{}/keys", issuer.local_addr().unwrap())),
        ..crate::support::keys()
    };
    let (server, mut commands) = Server::trusting(keys, Settings::default()).await;
    let mut client = server.client().await;
    let unknown = "eyJhbGciOiJFUzI1NiIsImtpZCI6IngifQ.e30.AAAA";
    for channel in 0..50 {
        let token = match channel {
            7 => "denied".to_owned(),
            // As a client does whose keys were changed: every channel comes with the same token.
            10..30 => unknown.to_owned(),
            _ => token("anon", 100),
        };
        let payload = json!({
            "config": { "postgres_changes": [{ "table": "t" }] }, "access_token": token
        });
        let reference = channel.to_string();
        let topic = format!("realtime:{channel}");
        client
            .send(json!([reference, reference, topic, "phx_join", payload]).to_string())
            .await;
    }
    // The heartbeat comes after all of them and waits for none.
    client.send(r#"[null,"hb","phoenix","heartbeat",{}]"#).await;
    let mut joins = Vec::new();
    for channel in (0..50).filter(|c| *c != 7 && !(10..30).contains(c)) {
        let join = next_join(&mut commands).await;
        // The router does not answer channel 3: PostgreSQL is slow to.
        if channel != 3 {
            grant(&join);
        }
        joins.push(join);
    }
    let (mut answered, mut denied, mut alive) = (0, 0, false);
    while answered < 28 || denied < 1 || !alive {
        let frame = client.next().await;
        match (
            frame[3].as_str().unwrap(),
            frame[4]["status"].as_str().unwrap(),
        ) {
            ("phx_reply", "error") => {
                assert_eq!(frame[2], "realtime:7");
                denied += 1;
            }
            ("phx_reply", "ok") if frame[2] == "phoenix" => alive = true,
            ("phx_reply", "ok") => answered += 1,
            _ => {}
        }
    }
    // Changes flow on the others while those still wait.
    let last = joins.last().unwrap();
    last.outbox.push(change(last, "1"));
    let frame = soon(async {
        loop {
            let frame = client.next().await;
            if frame[3] == "postgres_changes" {
                return frame;
            }
        }
    })
    .await;
    assert_eq!(frame[2], "realtime:49");
    client.heartbeat().await;
    // The slow one is answered when its time has come.
    grant(&joins[3]);
    assert_eq!(client.next().await[2], "realtime:3");
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
        .send(r#"["1","1","realtime:r","phx_join",{"config":{"postgres_changes":[{"schema":"public","table":"t","filter":"nope=not.eq.1","select":["a",5,"b\""]}]}}]"#)
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
        holder: None,
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
        cursor: None,
        read_at: rowcast::pg::Lsn(0),
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

//! Tokens of channels: their own, refreshed, expired.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rowcast::auth;
use rowcast::router::Event;
use rowcast::transport::Settings;
use serde_json::json;

use crate::support::{Client, Server, grant, join_frame, keys, next_join, soon, token, unix_now};

fn join_as(topic: &str, reference: u32, token: &str) -> String {
    let reference = reference.to_string();
    let payload = json!({
        "config": { "postgres_changes": [{ "table": "t" }] }, "access_token": token
    });
    json!([reference, reference, topic, "phx_join", payload]).to_string()
}

fn refresh(topic: &str, token: &serde_json::Value) -> String {
    json!(["1", "50", topic, "access_token", { "access_token": token }]).to_string()
}

#[tokio::test]
async fn channels_of_one_socket_act_as_different_users() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    for (reference, role) in [(1, "alice"), (2, "bob")] {
        let topic = format!("realtime:{role}");
        client
            .send(join_as(&topic, reference, &token(role, 100)))
            .await;
        assert_eq!(&*soon(joins.recv()).await.unwrap().principal.role, role);
    }
    client
        .send(join_as("realtime:own", 3, "sb_publishable_whatever"))
        .await;
    let own = soon(joins.recv()).await.unwrap();
    assert_eq!(&*own.principal.role, "anon", "a placeholder is no token");
}

#[tokio::test]
async fn a_socket_with_an_opaque_key_acts_as_the_keys_role_and_never_expires() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let url = server.url("/socket/websocket", "apikey=sb_publishable_x&vsn=2.0.0");
    let mut client = Client::connect(&url).await;
    client.join("realtime:a", 1).await;
    let join = soon(joins.recv()).await.unwrap();
    assert_eq!(join.principal.claims.as_json(), r#"{"role":"anon"}"#);
    assert_eq!(join.principal.expires_at, None);
}

#[tokio::test]
async fn a_new_token_puts_the_same_channel_in_force_again_and_the_same_token_does_nothing() {
    let (server, mut commands) = Server::start(Settings::default()).await;
    let mut client = server.client().await;
    let first = token("alice", 100);
    client.send(join_as("realtime:a", 1, &first)).await;
    let joined = next_join(&mut commands).await;
    grant(&joined);
    client.next().await;
    client.next().await;

    client.send(refresh("realtime:a", &json!(first))).await;
    client
        .send(refresh("realtime:a", &json!("sb_publishable_x")))
        .await;
    client.send(refresh("realtime:a", &json!(null))).await;
    client.heartbeat().await;
    client
        .send(refresh("realtime:a", &json!(token("alice", 500))))
        .await;
    let again = next_join(&mut commands).await;
    assert_eq!(again.channel, joined.channel);
    assert!(again.principal.expires_at > Some(unix_now() + 400));
    grant(&again);
    let system = client.next().await;
    assert_eq!(system[3], "system", "no second reply to the join");
    assert_eq!(system[4]["message"], "Subscribed to PostgreSQL");
}

#[tokio::test]
async fn a_bad_new_token_closes_its_channel_only() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    client.join("realtime:a", 1).await;
    client.join("realtime:b", 2).await;
    let (_a, b) = (soon(joins.recv()).await, soon(joins.recv()).await.unwrap());
    client.send(refresh("realtime:a", &json!("x"))).await;
    assert_eq!(
        client.next().await,
        json!(["1", null, "realtime:a", "system", {
            "extension": "system", "status": "error", "channel": "a",
            "message": "The token provided is not a valid JWT"}])
    );
    assert_eq!(
        client.text().await,
        r#"["1","1","realtime:a","phx_close",{}]"#
    );
    b.outbox.push(crate::support::change(&b, "1"));
    assert_eq!(client.next().await[2], "realtime:b");
}

#[tokio::test]
async fn a_channel_ends_when_its_token_does() {
    let (server, _joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    client
        .send(join_as("realtime:a", 1, &token("alice", 4)))
        .await;
    assert_eq!(client.next().await[4]["status"], "ok");
    assert_eq!(client.next().await[4]["status"], "ok");
    let system = client.next().await;
    let message = system[4]["message"].as_str().unwrap();
    let seconds = message
        .strip_prefix("Token has expired ")
        .and_then(|rest| rest.strip_suffix(" seconds ago"));
    let seconds: u32 = seconds.expect(message).parse().unwrap();
    assert!(seconds < 10, "{message}");
    assert_eq!(
        client.text().await,
        r#"["1","1","realtime:a","phx_close",{}]"#
    );
    client.heartbeat().await;
}

#[tokio::test]
async fn a_join_with_the_sockets_expired_token_is_refused() {
    let (server, _joins) = Server::granting(Settings::default()).await;
    let query = format!("apikey={}&vsn=2.0.0", token("anon", 1));
    let mut client = Client::connect(&server.url("/socket/websocket", &query)).await;
    soon(async {
        let mut reference = 1;
        loop {
            client
                .send(join_frame(&format!("realtime:{reference}"), reference))
                .await;
            let reply = loop {
                let frame = client.next().await;
                if frame[3] == "phx_reply" {
                    break frame;
                }
            };
            if reply[4]["status"] == "error" {
                let reason = reply[4]["response"]["reason"].as_str().unwrap();
                assert!(
                    reason.starts_with("InvalidJWTToken: Token has expired ")
                        || reason.starts_with("C"),
                    "{reason}"
                );
                if reason.starts_with("InvalidJWTToken") {
                    return;
                }
            }
            reference += 1;
        }
    })
    .await;
}

#[tokio::test]
async fn events_of_the_old_token_do_not_bring_a_closed_channel_back() {
    let (server, mut commands) = Server::start(Settings::default()).await;
    let mut client = server.client().await;
    client.send(join_frame("realtime:a", 1)).await;
    let join = next_join(&mut commands).await;
    client.send(refresh("realtime:a", &json!("x"))).await;
    let reply = client.next().await;
    assert_eq!(
        reply[4]["response"]["reason"],
        "MalformedJWT: The token provided is not a valid JWT"
    );
    join.outbox.push(Event::Joined {
        channel: join.channel,
        refusals: Vec::new(),
        notices: vec![],
        holder: None,
    });
    client.heartbeat().await;
}

#[tokio::test]
async fn a_token_whose_key_is_on_its_way_holds_up_no_other_channel_and_a_newer_one_overtakes_it() {
    // An issuer that takes connections and never answers.
    let issuer = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let keys = auth::Settings {
        jwks_url: Some(format!("http://{}/keys", issuer.local_addr().unwrap())),
        ..keys()
    };
    let (server, mut commands) = Server::trusting(keys, Settings::default()).await;
    let mut client = server.client().await;
    let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","kid":"unknown"}"#);
    let unknown = format!("{head}.{}.AAAA", URL_SAFE_NO_PAD.encode("{}"));
    client.send(join_as("realtime:a", 1, &unknown)).await;
    client.send(join_frame("realtime:b", 2)).await;
    let b = next_join(&mut commands).await;
    assert_eq!(&*b.principal.role, "anon");
    grant(&b);
    assert_eq!(client.next().await[2], "realtime:b");
    assert_eq!(client.next().await[2], "realtime:b");
    client.heartbeat().await;

    client
        .send(refresh("realtime:a", &json!(token("alice", 100))))
        .await;
    let a = next_join(&mut commands).await;
    assert_eq!(&*a.principal.role, "alice");
    grant(&a);
    let reply = client.next().await;
    assert_eq!(
        (&reply[1], &reply[4]["status"]),
        (&json!("1"), &json!("ok"))
    );
    assert_eq!(
        client.next().await[4]["message"],
        "Subscribed to PostgreSQL"
    );

    // A channel whose only token cannot be verified is refused once that is known.
    client.send(join_as("realtime:c", 3, &unknown)).await;
    let refused = client.next().await;
    assert_eq!(
        refused[4]["response"]["reason"],
        "JwtSignerError: Failed to generate JWT signer for key ID (kid) \"unknown\", check your JWT secret or JWKS configuration"
    );
    assert_eq!(
        refused[2], "realtime:c",
        "the overtaken answer changed nothing"
    );
}

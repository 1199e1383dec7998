//! Who gets a socket, and what the others are told.

use rowcast::transport::Settings;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::{Client, Server, soon, token};

#[tokio::test]
async fn both_paths_lead_to_a_socket_in_either_version() {
    let (server, _joins) = Server::granting(Settings::default()).await;
    let token = token("anon", 100);
    for path in ["/realtime/v1/websocket", "/socket/websocket"] {
        let query = format!("eventsPerSecond=10&apikey={token}&vsn=2.0.0&log_level=warn");
        let mut client = Client::connect(&server.url(path, &query)).await;
        client.heartbeat().await;
        for version in ["", "&vsn=1.0.0"] {
            let mut old =
                Client::connect(&server.url(path, &format!("apikey={token}{version}"))).await;
            old.send(r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"5"}"#)
                .await;
            assert_eq!(
                old.next().await,
                json!({"topic": "phoenix", "event": "phx_reply", "ref": "5",
                       "payload": {"status": "ok", "response": {}}})
            );
        }
    }
}

#[tokio::test]
async fn refused_upgrades_say_why_in_the_words_that_clients_know() {
    let (server, _joins) = Server::granting(Settings::default()).await;
    let unending = rowcast::auth::mint(crate::support::SECRET, &json!({"role": "anon"})).unwrap();
    let foreign = rowcast::auth::mint("another", &json!({"role": "anon", "exp": 9e9})).unwrap();
    for (query, text) in [
        (String::new(), "API key is missing"),
        (format!("apikey={}", token("anon", -5)), "Token has expired"),
        (
            format!("apikey={unending}"),
            "Fields `role` and `exp` are required in JWT",
        ),
        (
            "apikey=x".to_owned(),
            "The token provided is not a valid JWT",
        ),
        (
            format!("apikey={foreign}"),
            "Failed to validate JWT signature",
        ),
        (
            "apikey=eyJhbGciOiJub25lIn0.e30.".to_owned(),
            "Failed to generate JWT signer, check your JWT secret or JWKS configuration",
        ),
    ] {
        let refused = Client::refused(server.url("/realtime/v1/websocket", &query)).await;
        let body: Value = serde_json::from_str(&refused.1).unwrap();
        assert_eq!(
            (refused.0, body),
            (401, json!({ "error": text })),
            "{query}"
        );
    }
    for version in ["3.0.0", "2", "x"] {
        let query = format!("apikey={}&vsn={version}", token("anon", 5));
        let refused = Client::refused(server.url("/socket/websocket", &query)).await;
        assert_eq!(refused, (403, String::new()), "{version}");
    }
}

#[tokio::test]
async fn the_header_beats_the_parameter() {
    let (server, _joins) = Server::granting(Settings::default()).await;
    let url = server.url("/realtime/v1/websocket", "apikey=nonsense&vsn=2.0.0");
    let mut request = url.into_client_request().unwrap();
    let value = token("anon", 100).parse().unwrap();
    request.headers_mut().insert("x-api-key", value);
    let (socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
    Client { socket }.heartbeat().await;
}

#[tokio::test]
async fn more_sockets_than_allowed_are_refused_and_a_freed_place_is_given_again() {
    let (server, _joins) = Server::granting(Settings {
        max_connections: 1,
        ..Settings::default()
    })
    .await;
    let mut first = server.client().await;
    first.heartbeat().await;
    let url = server.url("/socket/websocket", &format!("apikey={}", token("a", 9)));
    let refused = Client::refused(url.as_str()).await;
    assert_eq!(
        refused,
        (429, r#"{"error":"Too many connected users"}"#.to_owned())
    );
    first.socket.close(None).await.unwrap();
    first.closed().await;
    server
        .metric_reaches("rowcast_closes_total{reason=\"client\"} 1")
        .await;
    server.metric_reaches("rowcast_connections 0").await;
    // The place is free a moment after the count says so.
    soon(async { while tokio_tungstenite::connect_async(&url).await.is_err() {} }).await;
}

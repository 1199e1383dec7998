//! What clients should not send, and clients that do not read.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::{SinkExt, StreamExt};
use rowcast::auth::mint;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::client::{Client, join_frame};
use crate::harness::{ANN, Database, soon, token, token_until, unix_now, until};

/// Tokens that must not be taken, with the beginning of what is said of each.
fn bad_tokens() -> [(String, &'static str); 5] {
    let claims = json!({ "role": "authenticated", "sub": ANN, "exp": unix_now() + 3600 });
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let none = format!("{}.{}.", part(&json!({ "alg": "none" })), part(&claims));
    let good = token(ANN);
    let unsigned = format!("{}.", good.rsplit_once('.').unwrap().0);
    let wrong = mint("another secret of at least thirty-two bytes", &claims).unwrap();
    [
        (token_until(ANN, unix_now() - 9), "InvalidJWTToken"),
        (none, "JwtSignerError"),
        (unsigned, "JwtSignatureError"),
        (wrong, "JwtSignatureError"),
        ("nonsense".to_owned(), "MalformedJWT"),
    ]
}

#[tokio::test]
async fn a_bad_token_is_refused_wherever_it_is_shown() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    let mut client = Client::connect(&daemon, &token(ANN)).await;
    let bindings = json!([{ "event": "*", "schema": "public", "table": "open" }]);
    for (bad, code) in bad_tokens() {
        let (status, body) = Client::refused(&daemon, &bad).await;
        assert_eq!(status, 401, "{code}: {body}");
        client
            .send(join_frame("realtime:bad", &bindings, Some(&bad)))
            .await;
        let reply = client.next().await;
        assert_eq!(reply[4]["status"], "error", "{reply}");
        let reason = reply[4]["response"]["reason"].as_str().unwrap();
        assert!(reason.starts_with(code), "{reason}");
        client.follow("open").await;
        client.refresh("realtime:open", &bad).await;
        let (system, closed) = (client.next().await, client.next().await);
        assert_eq!(system[4]["status"], "error", "{system}");
        assert_eq!(closed[3], "phx_close", "{closed}");
    }
    database.insert_open(1).await;
    // The insert is behind the ends of all channels.
    let mut other = Client::following(&daemon, &token(ANN), "open").await;
    database.insert_open(2).await;
    while other.change().await != "INSERT 2" {}
    client.heartbeat().await;
    daemon.terminate().await;
}

#[tokio::test]
async fn what_cannot_be_read_or_granted_is_answered_and_harms_nobody_else() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    let mut bystander = Client::following(&daemon, &token(ANN), "open").await;
    let mut client = Client::connect(&daemon, &token(ANN)).await;
    for (table, filter) in [
        ("nowhere", ""),
        ("member", ""),
        ("open\"; drop table open; --", ""),
        ("open", "nothing=eq.1"),
        ("open", "id=is.1"),
        ("open", "id=eq.one"),
        ("open", "id"),
    ] {
        let bindings =
            json!([{ "event": "*", "schema": "public", "table": table, "filter": filter }]);
        let system = client.join("realtime:x", &bindings).await;
        assert_eq!(system["status"], "error", "{table} {filter}: {system}");
    }
    for frame in [
        "",
        "{",
        "null",
        "[]",
        "[1,2,3,4,5]",
        "{\"topic\":1}",
        "[null,null,\"realtime:x\",1,{}]",
        &"[".repeat(100_000),
    ] {
        client.send(frame).await;
    }
    client
        .socket
        .send(Message::binary(vec![255; 100]))
        .await
        .unwrap();
    client.heartbeat().await;
    for _ in 0..101 {
        client.send("{").await;
    }
    assert_eq!(client.close_code().await, Some(1002));

    let mut large = Client::connect(&daemon, &token(ANN)).await;
    // It may be cut off on the way.
    let _cut = large.socket.send(Message::text("x".repeat(10 << 20))).await;
    let code = large.close_code().await;
    assert!(code.is_none_or(|code| code == 1009), "{code:?}");
    daemon
        .metric_reaches("rowcast_closes_total{reason=\"too_large\"}", 1.0)
        .await;

    database.insert_open(1).await;
    assert_eq!(bystander.change().await, "INSERT 1");
    daemon.terminate().await;
}

#[tokio::test]
async fn ten_thousand_joins_on_one_socket_are_each_answered_and_bounded() {
    const JOINS: usize = 10_000;
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    let client = Client::connect(&daemon, &token(ANN)).await;
    let (mut write, mut read) = client.socket.split();
    let sending = tokio::spawn(async move {
        let bindings = json!([{ "event": "*", "schema": "public", "table": "open" }]);
        for n in 0..JOINS {
            let frame = join_frame(&format!("realtime:{n}"), &bindings, None);
            write.feed(Message::text(frame)).await.unwrap();
        }
        write.flush().await.unwrap();
        write
    });
    let (mut granted, mut refused) = (0, 0);
    while granted + refused < JOINS {
        let message = soon("an answer", read.next()).await.unwrap().unwrap();
        let frame: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
        if frame[3] == "phx_reply" {
            if frame[4]["status"] == "ok" {
                granted += 1;
            } else {
                let reason = frame[4]["response"]["reason"].as_str().unwrap();
                assert!(reason.contains("RateLimitReached"), "{reason}");
                refused += 1;
            }
        }
    }
    assert_eq!(granted, 100);
    assert_eq!(daemon.metric("rowcast_subscriptions").await, Some(100.0));
    drop((sending.await.unwrap(), read));
    let mut other = Client::following(&daemon, &token(ANN), "open").await;
    database.insert_open(1).await;
    assert_eq!(other.change().await, "INSERT 1");
    daemon.terminate().await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_closed_and_costs_nobody_memory_or_changes() {
    const ROWS: i64 = 50_000;
    const BATCH: i64 = 500;
    // How far the writer is ahead of a client that reads, so that this one is not too slow for it.
    const AHEAD: i64 = 2_000;
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    let _deaf = Client::following(&daemon, &token(ANN), "open").await;
    let mut reader = Client::following(&daemon, &token(ANN), "open").await;
    let read = AtomicI64::new(0);
    let writing = async {
        for first in (1..=ROWS).step_by(usize::try_from(BATCH).unwrap()) {
            until("rows read", async || {
                first - read.load(Ordering::Relaxed) <= AHEAD
            })
            .await;
            database
                .run(&format!(
                    "insert into open select n, repeat('x', 1000) \
                     from generate_series({first}, {}) n",
                    first + BATCH - 1
                ))
                .await;
        }
    };
    let reading = async {
        for n in 1..=ROWS {
            assert_eq!(reader.change().await, format!("INSERT {n}"));
            read.store(n, Ordering::Relaxed);
        }
    };
    tokio::time::timeout(Duration::from_secs(120), async {
        tokio::join!(writing, reading)
    })
    .await
    .expect("all rows in time");
    daemon
        .metric_reaches("rowcast_closes_total{reason=\"slow\"}", 1.0)
        .await;
    let peak = daemon.peak_memory();
    assert!(peak < 200 << 20, "{} MiB", peak >> 20);
    daemon.terminate().await;
}

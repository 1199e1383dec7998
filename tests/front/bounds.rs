//! What one client can take, and that the others do not notice.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rowcast::session::Limits;
use rowcast::transport::Settings;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Server, change, join_frame, soon};

#[tokio::test]
async fn a_frame_beyond_the_limit_closes_with_1009_and_the_client_hears_it() {
    let (server, _joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    let frame = Message::text("x".repeat(10 * 1024 * 1024));
    // The server may close before all of it is written.
    let _written = soon(client.socket.send(frame)).await;
    let close = client.closed().await.expect("a close frame");
    assert_eq!(u16::from(close.code), 1009);
    server
        .metric_reaches("rowcast_closes_total{reason=\"too_large\"} 1")
        .await;
}

#[tokio::test]
async fn unreadable_frames_are_dropped_until_there_are_too_many_in_a_row() {
    let (server, _joins) = Server::granting(Settings {
        limits: Limits {
            malformed_frames: 10,
            ..Limits::default()
        },
        ..Settings::default()
    })
    .await;
    let mut client = server.client().await;
    for _ in 0..3 {
        for frame in ["{", "[]", "", "[1,2,3,4]", "nonsense"] {
            client.send(frame).await;
        }
        client.heartbeat().await;
    }
    for _ in 0..11 {
        client.send("[]").await;
    }
    assert_eq!(u16::from(client.closed().await.unwrap().code), 1002);
}

#[tokio::test]
async fn ten_thousand_joins_are_bounded_clearly_refused_and_disturb_nobody() {
    let (server, joins) = Server::granting(Settings::default()).await;
    drop(joins);
    let mut other = server.client().await;
    let client = server.client().await;
    let (mut send, mut receive) = client.socket.split();
    let sent = tokio::spawn(async move {
        for reference in 0..10_000 {
            let frame = join_frame(&format!("realtime:{reference}"), reference);
            send.feed(Message::text(frame)).await.unwrap();
        }
        send.flush().await.unwrap();
        send
    });
    let (mut granted, mut refused) = (0, 0);
    soon(async {
        while granted + refused < 10_000 {
            let Message::Text(text) = receive.next().await.unwrap().unwrap() else {
                continue;
            };
            if text.contains("\"phx_reply\",{\"status\":\"ok\"") {
                granted += 1;
            } else if text.contains("ClientJoinRateLimitReached: Too many joins per second")
                || text.contains("ChannelRateLimitReached: Too many channels")
            {
                refused += 1;
            }
        }
    })
    .await;
    assert_eq!((granted, refused), (100, 9900));
    let _send = sent.await.unwrap();
    other.join("realtime:other", 1).await;
}

#[tokio::test]
async fn bindings_and_topics_are_bounded() {
    let (server, _joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    let bindings = vec![r#"{"table":"t"}"#; 101].join(",");
    client
        .send(format!(
            r#"["1","1","realtime:r","phx_join",{{"config":{{"postgres_changes":[{bindings}]}}}}]"#
        ))
        .await;
    assert_eq!(
        client.next().await[4]["response"]["reason"],
        "TooManyBindings: A channel may have 100 postgres_changes bindings"
    );
    client
        .send(join_frame(&format!("realtime:{}", "x".repeat(1100)), 2))
        .await;
    assert_eq!(
        client.next().await[4]["response"]["reason"],
        "TopicTooLong: A topic may have 1024 bytes"
    );
}

#[tokio::test]
async fn a_client_that_never_reads_is_closed_and_the_others_are_served_meanwhile() {
    let (server, mut joins) = Server::granting(Settings {
        outbox_max_events: 100,
        write_stall: Duration::from_millis(300),
        ..Settings::default()
    })
    .await;
    let mut slow = server.client().await;
    slow.join("realtime:a", 1).await;
    let slow_join = soon(joins.recv()).await.unwrap();
    let mut other = server.client().await;
    other.join("realtime:b", 1).await;
    let other_join = soon(joins.recv()).await.unwrap();

    let large = format!("\"{}\"", "x".repeat(100_000));
    soon(async {
        while !slow_join.outbox.is_closed() {
            slow_join.outbox.push(change(&slow_join, large.clone()));
            other_join.outbox.push(change(&other_join, "1"));
            assert_eq!(other.next().await[4]["data"], 1);
        }
    })
    .await;
    server
        .metric_reaches("rowcast_closes_total{reason=\"slow\"} 1")
        .await;
    other.heartbeat().await;
}

#[tokio::test]
async fn an_outbox_that_overflows_closes_with_come_back_later() {
    let (server, mut joins) = Server::granting(Settings {
        outbox_max_events: 10,
        ..Settings::default()
    })
    .await;
    let mut client = server.client().await;
    client.join("realtime:a", 1).await;
    let join = soon(joins.recv()).await.unwrap();
    // All at once: the session has no turn in between.
    for _ in 0..11 {
        join.outbox.push(change(&join, "1"));
    }
    assert_eq!(u16::from(client.closed().await.unwrap().code), 1013);
}

#[tokio::test]
async fn the_server_pings_and_closes_who_says_nothing() {
    let (server, _joins) = Server::granting(Settings {
        ping_every: Duration::from_millis(50),
        idle_after: Duration::from_millis(400),
        ..Settings::default()
    })
    .await;
    let mut client = server.client().await;
    let started = tokio::time::Instant::now();
    let mut pings = 0;
    // Reading answers the pings, which is sign of life enough.
    while pings < 12 {
        if let Message::Ping(_) = soon(client.socket.next()).await.unwrap().unwrap() {
            pings += 1;
        }
    }
    assert!(started.elapsed() > Duration::from_millis(400));

    // A raw stream that completes the handshake and answers no ping.
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut silent = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    let head = format!(
        "GET /socket/websocket?apikey={} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        crate::support::token("anon", 100)
    );
    silent.write_all(head.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    soon(silent.read_to_end(&mut all)).await.unwrap();
    let close = 4000_u16.to_be_bytes();
    assert!(all.windows(2).any(|bytes| bytes == close), "closed as idle");
}

//! The end.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rowcast::transport::Settings;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Server, join_frame, soon};

#[tokio::test]
async fn who_joins_while_the_server_takes_its_leave_is_told_to_stand_by() {
    // Sockets leave within as many milliseconds as there are sockets, so that most of these have
    // some time left; a machine may be too slow for one round of it, hardly for all.
    for _ in 0..20 {
        let (server, _joins) = Server::granting(Settings::default()).await;
        let mut clients = Vec::new();
        for _ in 0..100 {
            clients.push(server.client().await);
        }
        server.shutdown.cancel();
        for (reference, client) in (1..).zip(&mut clients) {
            let join = Message::text(join_frame("realtime:late", reference));
            // Some are closed already.
            let _sent = client.socket.send(join).await;
        }
        for client in &mut clients {
            while let Some(Ok(message)) = soon(client.socket.next()).await {
                if let Message::Text(text) = message
                    && text.contains("RealtimeRestarting: Realtime is restarting, please standby")
                {
                    return;
                }
            }
        }
    }
    panic!("nobody was told");
}

#[tokio::test]
async fn every_channel_is_told_and_every_socket_closed_with_1012() {
    let (mut server, _joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    client.join("realtime:a", 1).await;
    client.join("realtime:b", 2).await;
    server.shutdown.cancel();
    for (reference, topic) in [("1", "realtime:a"), ("2", "realtime:b")] {
        assert_eq!(
            client.next().await,
            json!([reference, null, topic, "system", {
                "extension": "system", "status": "ok", "message": "Server requested disconnect"}])
        );
    }
    assert_eq!(u16::from(client.closed().await.unwrap().code), 1012);
    soon(&mut server.served).await.unwrap().unwrap();
    assert!(server.metrics.encode().contains("rowcast_connections 0"));
}

#[tokio::test]
async fn a_client_that_does_not_answer_holds_the_end_up_no_longer_than_the_drain() {
    let (mut server, _joins) = Server::granting(Settings {
        drain: Duration::from_millis(200),
        ..Settings::default()
    })
    .await;
    let mut client = server.client().await;
    client.join("realtime:a", 1).await;
    let started = tokio::time::Instant::now();
    server.shutdown.cancel();
    soon(&mut server.served).await.unwrap().unwrap();
    // Far less than the socket's own patience, however busy the machine.
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(server.metrics.encode().contains("rowcast_connections 0"));
}

//! A share of them over real sockets.

use futures_util::{SinkExt, StreamExt};
use rand::Rng;
use rowcast::supabase::Serializer;
use rowcast::transport::Settings;
use tokio_tungstenite::tungstenite::Message;

use crate::alone;
use crate::generate::{Generator, Input};
use crate::support::{Client, Server, join_frame, soon, token};

const FRAMES: usize = 200;

fn seed() -> u64 {
    let given = std::env::var("ROWCAST_SEED");
    let given = given.ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| rand::rng().random())
}

#[test]
fn after_any_frames_a_socket_answers_and_a_good_join_works_or_it_was_closed_with_a_reason() {
    let _alone = alone();
    let seed = seed();
    println!("ROWCAST_SEED={seed}");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (server, joins) = Server::granting(Settings::default()).await;
        drop(joins);
        let mut alive = 0;
        for session in 0..60_u64 {
            let serializer = [Serializer::V1, Serializer::V2][usize::from(session % 2 == 0)];
            let mut generator = Generator::new(seed.wrapping_add(session), serializer);
            alive += usize::from(survives(&server, serializer, &mut generator).await);
        }
        assert!(alive > 30, "most of them are served to the end: {alive}");
        // It stays, so that its place is the only one that is taken in the end.
        let mut good = server.client().await;
        good.join("realtime:good", 1).await;
        server.metric_reaches("rowcast_connections 1").await;
        drop(good);
    });
}

async fn survives(server: &Server, serializer: Serializer, generator: &mut Generator) -> bool {
    let version = match serializer {
        Serializer::V1 => "1.0.0",
        Serializer::V2 => "2.0.0",
    };
    let query = format!("apikey={}&vsn={version}", token("anon", 1000));
    let mut client = Client::connect(&server.url("/socket/websocket", &query)).await;
    for number in 0..FRAMES {
        let message = match generator.frame() {
            Input::Text(text) => Message::text(text),
            Input::Binary(bytes) => Message::binary(bytes),
        };
        if soon(client.socket.send(message)).await.is_err() {
            break;
        }
        // Now and then everything is read, or both sides would wait for the other to.
        if number % 20 == 19 && !answers(&mut client, serializer, &number.to_string()).await {
            break;
        }
    }
    if !answers(&mut client, serializer, "last").await {
        return false;
    }
    if serializer == Serializer::V2 {
        // The generator may have taken what a second allows, and all channels: in that case the
        // refusal is an answer too.
        client.send(join_frame("realtime:good", 777)).await;
        // Not read as a value: what clients say and hear back may hold half a character, which
        // JSON may and a value may not.
        while !client
            .text()
            .await
            .starts_with(r#"["777","777","realtime:good","phx_reply",{"status":"#)
        {}
    }
    true
}

/// Whether a heartbeat is answered, or otherwise the socket closed with one of our reasons.
async fn answers(client: &mut Client, serializer: Serializer, reference: &str) -> bool {
    let (frame, answer) = match serializer {
        Serializer::V1 => (
            format!(
                r#"{{"topic":"phoenix","event":"heartbeat","payload":{{}},"ref":"hb{reference}"}}"#
            ),
            format!("\"ref\":\"hb{reference}\""),
        ),
        Serializer::V2 => (
            format!(r#"[null,"hb{reference}","phoenix","heartbeat",{{}}]"#),
            format!("[null,\"hb{reference}\""),
        ),
    };
    let _closed_meanwhile = soon(client.socket.send(Message::text(frame))).await;
    soon(async {
        loop {
            match client.socket.next().await {
                Some(Ok(Message::Text(text))) if text.contains(&answer) => return true,
                Some(Ok(Message::Close(frame))) => {
                    let code = frame.map(|frame| u16::from(frame.code));
                    assert_eq!(code, Some(1002), "closed without reason");
                    return false;
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return false,
            }
        }
    })
    .await
}

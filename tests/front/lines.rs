//! Changes that are written by whoever hands them out, beside the socket's own task.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rowcast::encode::Body;
use rowcast::log::{Holder, Offset};
use rowcast::pg::Lsn;
use rowcast::router::{Event, Join};
use rowcast::transport::Settings;
use tokio::net::TcpSocket;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Client, Server, change, change_at, join_frame, next_join, soon, token};

fn numbered(join: &Join, number: u64, filling: usize) -> Event {
    let filling = "x".repeat(filling);
    let data = format!("{{\"number\":{number},\"x\":\"{filling}\"}}");
    change_at(Offset(number), join, data)
}

fn roomy() -> Settings {
    Settings {
        outbox_max_events: 1_000_000,
        outbox_max_bytes: 1 << 30,
        ..Settings::default()
    }
}

/// Reads so many changes, which must come once each and in order.
async fn take_in_order(client: &mut Client, count: u64) {
    for number in 0..count {
        let frame = client.next().await;
        assert_eq!(frame[3], "postgres_changes", "{frame}");
        assert_eq!(frame[4]["data"]["number"], number);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_pushed_and_delivered_from_many_sides_comes_once_and_in_order() {
    const COUNT: u64 = 2_000;
    let (server, mut joins) = Server::granting(roomy()).await;
    let mut client = server.client().await;
    client.join("realtime:room", 1).await;
    let join = joins.recv().await.unwrap();
    let pushing = tokio::task::spawn_blocking({
        let join = join.clone();
        move || {
            for number in 0..COUNT {
                let event = numbered(&join, number, 0);
                match number % 3 {
                    // As the asker does, and whoever answers a join.
                    0 => join.outbox.push(event),
                    _ if join.outbox.push_quietly(event) => join.outbox.deliver(),
                    _ => {}
                }
            }
        }
    });
    let delivering: Vec<_> = (0..2)
        .map(|_| {
            let outbox = Arc::clone(&join.outbox);
            tokio::task::spawn_blocking(move || {
                for _ in 0..COUNT {
                    outbox.deliver();
                    std::thread::yield_now();
                }
            })
        })
        .collect();
    // The client talks meanwhile, so the task writes as well; its answers come in between.
    for _ in 0..50 {
        client
            .send(r#"["1","hb","realtime:room","access_token",{}]"#)
            .await;
        client
            .socket
            .send(Message::Ping(vec![1].into()))
            .await
            .unwrap();
    }
    let mut next = 0;
    let mut pongs = 0;
    soon(async {
        while next < COUNT || pongs == 0 {
            match client.socket.next().await.unwrap().unwrap() {
                Message::Text(text) => {
                    let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(frame[4]["data"]["number"], next);
                    next += 1;
                }
                Message::Pong(_) => pongs += 1,
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
    soon(pushing).await.unwrap();
    for one in delivering {
        soon(one).await.unwrap();
    }
    client.heartbeat().await;
}

#[tokio::test]
async fn a_change_is_with_the_kernel_before_any_task_runs() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let address = server.address;
    let head = format!(
        "GET /socket/websocket?apikey={}&vsn=2.0.0 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        token("anon", 100)
    );
    let joining = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        until(&mut stream, "\r\n\r\n");
        let join = join_frame("realtime:room", 1);
        let length = u16::try_from(join.len()).unwrap().to_be_bytes();
        // A masked text frame, the mask being all zero.
        let frame = [&[0x81, 0xfe][..], &length, &[0; 4], join.as_bytes()].concat();
        stream.write_all(&frame).unwrap();
        until(&mut stream, "Subscribed to PostgreSQL");
        stream
    });
    let mut stream = soon(joining).await.unwrap();
    let join = joins.recv().await.unwrap();
    // From here on the only thread of this runtime does nothing else: no task can run.
    assert!(join.outbox.push_quietly(numbered(&join, 7, 0)));
    join.outbox.deliver();
    assert!(join.outbox.is_empty());
    until(&mut stream, "\"number\":7");
}

fn until(stream: &mut TcpStream, text: &str) {
    let (mut all, mut buffer) = (String::new(), [0; 1024]);
    while !all.contains(text) {
        let read = stream.read(&mut buffer).unwrap();
        assert_ne!(read, 0, "closed after {all}");
        all.push_str(&String::from_utf8_lossy(buffer.get(..read).unwrap()));
    }
}

#[tokio::test]
async fn a_client_that_takes_little_at_a_time_gets_everything_whole_and_in_order() {
    const COUNT: u64 = 400;
    let (server, mut joins) = Server::granting(roomy()).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = soon(socket.connect(server.address)).await.unwrap();
    let query = format!("apikey={}&vsn=2.0.0", token("anon", 1000));
    let url = server.url("/realtime/v1/websocket", &query);
    let stream = tokio_tungstenite::MaybeTlsStream::Plain(stream);
    let (socket, _) = soon(tokio_tungstenite::client_async(url, stream))
        .await
        .unwrap();
    let mut client = Client { socket };
    client.join("realtime:room", 1).await;
    let join = joins.recv().await.unwrap();
    for number in 0..COUNT {
        // 8 MB: far more than the kernel takes at once.
        if join.outbox.push_quietly(numbered(&join, number, 20_000)) {
            join.outbox.deliver();
        }
    }
    assert!(!join.outbox.is_empty(), "the socket has not taken it all");
    take_in_order(&mut client, COUNT).await;
    // And again what is written at once.
    assert!(join.outbox.push_quietly(numbered(&join, 0, 0)));
    join.outbox.deliver();
    take_in_order(&mut client, 1).await;
    client.heartbeat().await;
}

#[tokio::test]
async fn sockets_that_share_changes_are_each_told_whose_cursors_these_are() {
    const COUNT: u64 = 200;
    let (server, mut commands) = Server::start(roomy()).await;
    let holder = |claims, rules| Holder {
        claims,
        read: 7,
        rules,
    };
    let mut sockets = Vec::new();
    for holder in [
        Some(holder(1, None)),
        Some(holder(2, Some(Lsn(3)))),
        None,
        Some(holder(4, None)),
        Some(holder(5, Some(Lsn(6)))),
    ] {
        let mut client = server.client().await;
        let granted = async {
            let join = next_join(&mut commands).await;
            join.outbox.push(Event::Joined {
                channel: join.channel,
                refusals: Vec::new(),
                notices: Vec::new(),
                holder,
            });
            join
        };
        let (join, ()) = tokio::join!(granted, client.join("realtime:room", 1));
        sockets.push((client, join, holder));
    }
    let cursor = |number: u64| format!("0000000000000001-{number:016x}");
    for number in 0..COUNT {
        let data = format!("{{\"number\":{number},\"cursor\":\"{}\"}}", cursor(number));
        let data = Body::from(data);
        for (_, join, _) in &sockets {
            let _first = join.outbox.push_quietly(change(join, data.clone()));
        }
    }
    for (_, join, _) in &sockets {
        join.outbox.deliver();
    }
    for (client, _, holder) in &mut sockets {
        for number in 0..COUNT {
            let frame = client.next().await;
            let data = &frame[4]["data"];
            let own = holder.map_or(String::new(), |holder| format!("-{holder}"));
            assert_eq!(data["number"], number);
            assert_eq!(data["cursor"], format!("{}{own}", cursor(number)));
        }
        client.heartbeat().await;
    }
}

#[tokio::test]
async fn a_change_for_a_channel_that_was_left_is_not_written_and_the_other_channels_is() {
    let (server, mut joins) = Server::granting(Settings::default()).await;
    let mut client = server.client().await;
    client.join("realtime:left", 1).await;
    let left = joins.recv().await.unwrap();
    client.join("realtime:stays", 2).await;
    let stays = joins.recv().await.unwrap();
    client
        .send(r#"["1","3","realtime:left","phx_leave",{}]"#)
        .await;
    assert_eq!(client.next().await[3], "phx_reply");
    assert_eq!(client.next().await[3], "phx_close");
    for join in [&left, &stays, &left] {
        if join.outbox.push_quietly(numbered(join, 0, 0)) {
            join.outbox.deliver();
        }
    }
    let frame = client.next().await;
    assert_eq!(
        (&frame[2], &frame[3]),
        (&"realtime:stays".into(), &"postgres_changes".into())
    );
    client.heartbeat().await;
}

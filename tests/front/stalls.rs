//! Clients that begin something and do not go on with it.

use std::time::Duration;

use rowcast::transport::Settings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::task::JoinHandle;

use crate::support::{Server, soon, token};

async fn impatient() -> Server {
    let (server, joins) = Server::granting(Settings {
        head: Duration::from_millis(300),
        ping_every: Duration::from_millis(50),
        idle_after: Duration::from_millis(400),
        ..Settings::default()
    })
    .await;
    drop(joins);
    server
}

/// What the server says until it closes the connection.
async fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _end = soon(stream.read_to_end(&mut answer)).await;
    answer
}

/// Sends one byte now and then for as long as somebody takes them.
fn drip(stream: TcpStream) -> (OwnedReadHalf, JoinHandle<()>) {
    let (reading, mut writing) = stream.into_split();
    let dripping = tokio::spawn(async move {
        while writing.write_all(b"x").await.is_ok() {
            // The pace of the writer.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    (reading, dripping)
}

/// A connection on which a WebSocket was asked for; the answer is not read yet.
async fn asked_for_a_socket(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "GET /socket/websocket?apikey={} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        token("anon", 100)
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn a_connection_on_which_nothing_is_asked_is_closed() {
    let server = impatient().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    until_closed(&mut stream).await;
}

#[tokio::test]
async fn a_head_that_does_not_end_is_not_waited_for() {
    let server = impatient().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = "GET /socket/websocket?apikey=x HTTP/1.1\r\nHost: x\r\nX-Slow: ";
    stream.write_all(head.as_bytes()).await.unwrap();
    // One byte now and then: it is the whole head that has its time, not each byte.
    let (mut reading, dripping) = drip(stream);
    let mut answer = Vec::new();
    let _end = soon(reading.read_to_end(&mut answer)).await;
    soon(dripping).await.unwrap();
}

#[tokio::test]
async fn a_body_that_is_not_read_is_not_waited_for() {
    let server = impatient().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head =
        "POST /socket/websocket HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nabc";
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = until_closed(&mut stream).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn a_frame_that_does_not_end_is_not_waited_for() {
    let server = impatient().await;
    let mut stream = asked_for_a_socket(&server).await;
    // A masked text frame that promises 100,000 bytes; a few come, one at a time.
    let frame = [0x81, 0xff, 0, 0, 0, 0, 0, 1, 0x86, 0xa0, 1, 2, 3, 4];
    stream.write_all(&frame).await.unwrap();
    let (mut reading, dripping) = drip(stream);
    let mut all = Vec::new();
    let _end = soon(reading.read_to_end(&mut all)).await;
    let idle = 4000_u16.to_be_bytes();
    assert!(all.windows(2).any(|bytes| bytes == idle), "closed as idle");
    dripping.abort();
}

#[tokio::test]
async fn a_frame_that_announces_more_than_it_may_is_closed_with_1009_before_it_comes() {
    let server = impatient().await;
    let mut stream = asked_for_a_socket(&server).await;
    // 2^62 bytes.
    let frame = [0x82, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
    stream.write_all(&frame).await.unwrap();
    let all = until_closed(&mut stream).await;
    let too_large = 1009_u16.to_be_bytes();
    assert!(all.windows(2).any(|bytes| bytes == too_large));
}

//! Which web pages get a socket.

use rowcast::transport::Settings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::Request;

use crate::support::{Client, Server, soon, token};

async fn guarded() -> Server {
    let (server, joins) = Server::granting(Settings {
        allowed_origins: "https://app.example.com,https://*.preview.example.com"
            .parse()
            .unwrap(),
        ..Settings::default()
    })
    .await;
    drop(joins);
    server
}

fn from(server: &Server, origin: &str) -> Request<()> {
    let query = format!("apikey={}&vsn=2.0.0", token("anon", 100));
    let url = server.url("/realtime/v1/websocket", &query);
    let mut request = url.into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("origin", origin.parse().unwrap());
    request
}

async fn is_let_in(request: Request<()>) {
    let (socket, _) = soon(tokio_tungstenite::connect_async(request))
        .await
        .unwrap();
    Client { socket }.heartbeat().await;
}

#[tokio::test]
async fn pages_that_are_listed_get_a_socket_and_others_an_answer_that_says_why_not() {
    let server = guarded().await;
    is_let_in(from(&server, "https://app.example.com")).await;
    is_let_in(from(&server, "https://pr-7.preview.example.com")).await;
    for origin in ["https://evil.example", "http://app.example.com", "null"] {
        assert_eq!(
            Client::refused(from(&server, origin)).await,
            (403, r#"{"error":"Origin not allowed"}"#.to_owned())
        );
    }
    server
        .metric_reaches("rowcast_refusals_total{reason=\"origin\"} 3")
        .await;
    // Whoever is no browser names no page.
    server.client().await.heartbeat().await;
}

#[tokio::test]
async fn by_default_every_page_gets_one() {
    let (server, _joins) = Server::granting(Settings::default()).await;
    is_let_in(from(&server, "https://anybody.example")).await;
}

#[tokio::test]
async fn a_second_origin_does_not_carry_the_first_in() {
    let server = guarded().await;
    let mut request = from(&server, "https://app.example.com");
    let headers = request.headers_mut();
    headers.append("origin", "https://evil.example".parse().unwrap());
    assert_eq!(Client::refused(request).await.0, 403);
}

async fn http(server: &Server, method: &str, origin: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    let head = format!(
        "{method} /realtime/v1/api/ping HTTP/1.1\r\nHost: x\r\n{origin}Access-Control-Request-Headers: apikey,x-a\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn browsers_may_read_the_answers_of_listed_pages_only() {
    let server = guarded().await;
    let app = "Origin: https://app.example.com\r\n";
    let answer = http(&server, "GET", app).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("access-control-allow-origin: https://app.example.com\r\n"));
    assert!(
        answer.contains("vary: origin\r\n"),
        "caches must not mix pages"
    );
    let preflight = http(&server, "OPTIONS", app).await;
    assert!(preflight.starts_with("HTTP/1.1 204"), "{preflight}");
    assert!(preflight.contains("access-control-allow-headers: apikey,x-a\r\n"));
    let evil = "Origin: https://evil.example\r\n";
    for method in ["GET", "OPTIONS"] {
        let answer = http(&server, method, evil).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert!(!answer.contains("access-control-allow"), "{answer}");
    }
    let answer = http(&server, "GET", "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let (open, _joins) = Server::granting(Settings::default()).await;
    let answer = http(&open, "GET", evil).await;
    assert!(
        answer.contains("access-control-allow-origin: *\r\n"),
        "{answer}"
    );
}

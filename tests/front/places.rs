//! How many sockets a user or an address may have.

use rowcast::transport::Settings;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::Request;

use crate::support::{
    Client, SECRET, Server, grant, join_frame, next_join, soon, token, unix_now, user_token,
};

fn as_user(server: &Server, role: &str, user: &str) -> String {
    let query = format!("apikey={}&vsn=2.0.0", user_token(role, user));
    server.url("/socket/websocket", &query)
}

fn join_as(topic: &str, reference: u32, token: &str) -> String {
    let reference = reference.to_string();
    let payload = json!({
        "config": { "postgres_changes": [{ "table": "t" }] }, "access_token": token
    });
    json!([reference, reference, topic, "phx_join", payload]).to_string()
}

async fn two_per_user() -> (Server, mpsc::Receiver<rowcast::router::Join>) {
    Server::granting(Settings {
        max_connections_per_user: 2,
        ..Settings::default()
    })
    .await
}

async fn refused(request: impl IntoClientRequest + Unpin) {
    let body = r#"{"error":"Too many connected users"}"#.to_owned();
    assert_eq!(Client::refused(request).await, (429, body));
}

/// A place is free a moment after its socket is gone.
async fn let_in(url: &str) -> Client {
    soon(async {
        loop {
            if let Ok((socket, _)) = tokio_tungstenite::connect_async(url).await {
                return Client { socket };
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_user_has_so_many_sockets_and_others_have_theirs() {
    let (server, _joins) = two_per_user().await;
    let ann = as_user(&server, "authenticated", "ann");
    let first = Client::connect(&ann).await;
    let mut second = Client::connect(&ann).await;
    refused(ann.as_str()).await;
    server
        .metric_reaches("rowcast_refusals_total{reason=\"user\"} 1")
        .await;
    // Another subject, and the same in another role, are other users.
    Client::connect(&as_user(&server, "authenticated", "ben")).await;
    Client::connect(&as_user(&server, "admin", "ann")).await;

    // A client that breaks off gives its place back as one does that says goodbye.
    drop(first);
    let third = let_in(&ann).await;
    refused(ann.as_str()).await;
    second.socket.close(None).await.unwrap();
    second.closed().await;
    let fourth = let_in(&ann).await;
    refused(ann.as_str()).await;
    drop((third, fourth));
}

#[tokio::test]
async fn tokens_that_name_nobody_are_not_counted() {
    let (server, _joins) = two_per_user().await;
    let empty = json!({"role": "anon", "sub": "", "exp": unix_now() + 100});
    let number = json!({"role": "anon", "sub": 7, "exp": unix_now() + 100});
    let mut clients = Vec::new();
    for token in [
        token("anon", 100),
        rowcast::auth::mint(SECRET, &empty).unwrap(),
        rowcast::auth::mint(SECRET, &number).unwrap(),
        "sb_publishable_x".to_owned(),
    ] {
        for _ in 0..4 {
            let url = server.url("/socket/websocket", &format!("apikey={token}&vsn=2.0.0"));
            clients.push(Client::connect(&url).await);
        }
    }
    for client in &mut clients {
        client.heartbeat().await;
    }
}

#[tokio::test]
async fn a_user_who_comes_with_the_join_only_is_counted_there_once_for_each_socket() {
    let (server, _joins) = two_per_user().await;
    let ann = user_token("authenticated", "ann");
    let (mut first, mut second, mut third) = (
        server.client().await,
        server.client().await,
        server.client().await,
    );
    for client in [&mut first, &mut second] {
        for reference in 1..=5 {
            client
                .send(join_as(&format!("realtime:{reference}"), reference, &ann))
                .await;
            assert_eq!(client.next().await[4]["status"], "ok");
            assert_eq!(client.next().await[4]["status"], "ok");
        }
    }
    third.send(join_as("realtime:1", 1, &ann)).await;
    assert_eq!(
        third.next().await,
        json!(["1", "1", "realtime:1", "phx_reply", {"status": "error", "response": {
            "reason": "ConnectionRateLimitReached: Too many connected users"}}])
    );
    // The socket itself, and whoever else it speaks for, are not concerned.
    third.join("realtime:2", 2).await;
    refused(as_user(&server, "authenticated", "ann").as_str()).await;

    // Only the last of a socket's channels gives the place back.
    for reference in 1..=5 {
        third
            .send(join_as("realtime:1", 10 + reference, &ann))
            .await;
        assert_eq!(third.next().await[4]["status"], "error", "{reference}");
        first
            .send(format!(
                r#"["{reference}","9","realtime:{reference}","phx_leave",{{}}]"#
            ))
            .await;
        assert_eq!(first.next().await[3], "phx_reply");
        assert_eq!(first.next().await[3], "phx_close");
    }
    third.send(join_as("realtime:1", 20, &ann)).await;
    assert_eq!(third.next().await[4]["status"], "ok");
}

#[tokio::test]
async fn a_new_token_moves_the_socket_from_one_user_to_another() {
    let (server, mut commands) = Server::start(Settings {
        max_connections_per_user: 1,
        ..Settings::default()
    })
    .await;
    let (ann, ben) = (user_token("a", "ann"), user_token("a", "ben"));
    let mut client = server.client().await;
    client.send(join_as("realtime:x", 1, &ann)).await;
    grant(&next_join(&mut commands).await);
    client.next().await;
    client.next().await;
    let refresh =
        |token: &str| json!(["1", "2", "realtime:x", "access_token", {"access_token": token}]);
    client.send(refresh(&ben).to_string()).await;
    grant(&next_join(&mut commands).await);
    assert_eq!(
        client.next().await[4]["message"],
        "Subscribed to PostgreSQL"
    );
    refused(as_user(&server, "a", "ben").as_str()).await;
    let _ann = Client::connect(&as_user(&server, "a", "ann")).await;

    // Ann's only socket is another now.
    client.send(refresh(&ann).to_string()).await;
    assert_eq!(
        client.next().await[4],
        json!({"extension": "system", "status": "error", "channel": "x",
               "message": "Too many connected users"})
    );
    assert_eq!(client.next().await[3], "phx_close");
    let_in(&as_user(&server, "a", "ben"))
        .await
        .heartbeat()
        .await;
}

#[tokio::test]
async fn places_come_back_however_a_socket_ends() {
    let (server, _joins) = Server::granting(Settings {
        max_connections_per_user: 1,
        max_connections_per_address: 1,
        max_frame_bytes: 1000,
        ..Settings::default()
    })
    .await;
    let url = as_user(&server, "authenticated", "ann");
    for round in 0..4 {
        let mut client = let_in(&url).await;
        match round {
            0 => drop(client),
            1 => client.send("x".repeat(2000)).await,
            2 => {
                for _ in 0..101 {
                    client.send("[]").await;
                }
            }
            _ => client.socket.close(None).await.unwrap(),
        }
    }
    let_in(&url).await.heartbeat().await;
}

fn forwarded(server: &Server, value: &str) -> Request<()> {
    let query = format!("apikey={}&vsn=2.0.0", token("anon", 100));
    let url = server.url("/socket/websocket", &query);
    let mut request = url.into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("x-forwarded-for", value.parse().unwrap());
    request
}

#[tokio::test]
async fn an_address_has_so_many_sockets_and_a_header_changes_nothing_unless_its_sender_is_trusted()
{
    let (server, _joins) = Server::granting(Settings {
        max_connections_per_address: 1,
        ..Settings::default()
    })
    .await;
    let _first = server.client().await;
    refused(forwarded(&server, "192.0.2.1")).await;
    server
        .metric_reaches("rowcast_refusals_total{reason=\"address\"} 1")
        .await;

    let (server, _joins) = Server::granting(Settings {
        max_connections_per_address: 1,
        trusted_proxies: "127.0.0.0/8,10.0.0.0/8".parse().unwrap(),
        ..Settings::default()
    })
    .await;
    let mut clients = Vec::new();
    for address in ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1"] {
        let request = forwarded(&server, address);
        clients.push(
            soon(tokio_tungstenite::connect_async(request))
                .await
                .unwrap(),
        );
    }
    for taken in [
        "192.0.2.1",
        // What the client itself has put in front is not believed.
        "198.51.100.1, 192.0.2.1",
        "198.51.100.1, 192.0.2.2, 10.1.1.1",
        // The same network of 2^64.
        "2001:db8::ffff",
    ] {
        refused(forwarded(&server, taken)).await;
    }
}

#[tokio::test]
async fn a_handshake_that_fails_takes_no_place() {
    let (server, _joins) = Server::granting(Settings {
        max_connections: 1,
        max_connections_per_user: 1,
        max_connections_per_address: 1,
        ..Settings::default()
    })
    .await;
    // No upgrade at all: an ordinary request to the path.
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for _ in 0..3 {
        let mut stream = tokio::net::TcpStream::connect(server.address)
            .await
            .unwrap();
        let head = format!(
            "GET /socket/websocket?apikey={} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            user_token("a", "ann")
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    let mut client = Client::connect(&as_user(&server, "a", "ann")).await;
    client.send(join_frame("realtime:a", 1)).await;
    let reply: Value = client.next().await;
    assert_eq!(reply[4]["status"], "ok");
}

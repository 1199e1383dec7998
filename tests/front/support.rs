//! A front on a port of its own, a client's end and the router's end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt, StreamExt};
use rowcast::auth::{self, Authenticator};
use rowcast::encode::Body;
use rowcast::log::Offset;
use rowcast::metrics::Metrics;
use rowcast::router::{Command, Event, Join, Outgoing, Router};
use rowcast::transport::{self, Front, Settings};
use serde_json::{Value, json};
use smallvec::SmallVec;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;

pub(crate) const SECRET: &str = "a secret of the tests, long enough for anybody";
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn unix_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs().try_into().unwrap()
}

/// Waits for something that must happen.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what)
        .await
        .expect("it should have happened by now")
}

pub(crate) fn token(role: &str, lives: i64) -> String {
    auth::mint(SECRET, &json!({ "role": role, "exp": unix_now() + lives })).unwrap()
}

/// A token that names its user.
pub(crate) fn user_token(role: &str, user: &str) -> String {
    let claims = json!({ "role": role, "sub": user, "exp": unix_now() + 1000 });
    auth::mint(SECRET, &claims).unwrap()
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) served: JoinHandle<std::io::Result<()>>,
}

pub(crate) fn keys() -> auth::Settings {
    auth::Settings {
        jwt_secret: Some(SECRET.to_owned()),
        api_keys: [("sb_publishable_x".to_owned(), "anon".to_owned())].into(),
        ..auth::Settings::default()
    }
}

impl Server {
    /// A front whose router is the test.
    pub(crate) async fn start(settings: Settings) -> (Self, mpsc::Receiver<Command>) {
        Self::trusting(keys(), settings).await
    }

    /// The same with other keys.
    pub(crate) async fn trusting(
        keys: auth::Settings,
        settings: Settings,
    ) -> (Self, mpsc::Receiver<Command>) {
        let (router, commands) = Router::channel(1024);
        let auth = Arc::new(Authenticator::new(keys).unwrap());
        let metrics = Arc::new(Metrics::new());
        let front = Front::new(router, auth, Arc::clone(&metrics), settings);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(transport::serve(
            listener,
            transport::routes(&front),
            front,
            shutdown.clone(),
        ));
        let server = Self {
            address,
            metrics,
            shutdown,
            served,
        };
        (server, commands)
    }

    /// A front whose router grants every join; the joins are handed on.
    pub(crate) async fn granting(settings: Settings) -> (Self, mpsc::Receiver<Join>) {
        let (server, mut commands) = Self::start(settings).await;
        let (joins, granted) = mpsc::channel(64 * 1024);
        tokio::spawn(async move {
            while let Some(command) = commands.recv().await {
                if let Command::Join(join) = command {
                    grant(&join);
                    // A test that is not interested has dropped its end.
                    let _uninterested = joins.send(join).await;
                }
            }
        });
        (server, granted)
    }

    pub(crate) fn url(&self, path: &str, query: &str) -> String {
        format!("ws://{}{path}?{query}", self.address)
    }

    pub(crate) async fn client(&self) -> Client {
        let query = format!("apikey={}&vsn=2.0.0", token("anon", 1000));
        Client::connect(&self.url("/realtime/v1/websocket", &query)).await
    }

    pub(crate) async fn metric_reaches(&self, line: &str) {
        soon(async {
            while !self.metrics.encode().lines().any(|found| found == line) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub(crate) fn grant(join: &Join) {
    join.outbox.push(Event::Joined {
        channel: join.channel,
        refusals: Vec::new(),
        notices: Vec::new(),
        holder: None,
    });
}

pub(crate) fn change(join: &Join, data: impl Into<Body>) -> Event {
    change_at(Offset(1), join, data)
}

pub(crate) fn change_at(offset: Offset, join: &Join, data: impl Into<Body>) -> Event {
    let change = Outgoing {
        bindings: SmallVec::from_slice(&[1]),
        offset,
        committed_at: unix_now() * 1_000_000,
        data: data.into(),
    };
    Event::Change {
        channel: join.channel,
        change: Arc::new(change),
    }
}

/// The next join; everything before it is passed over.
pub(crate) async fn next_join(commands: &mut mpsc::Receiver<Command>) -> Join {
    soon(async {
        loop {
            if let Command::Join(join) = commands.recv().await.unwrap() {
                return join;
            }
        }
    })
    .await
}

pub(crate) struct Client {
    pub(crate) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Client {
    pub(crate) async fn connect(url: &str) -> Self {
        let (socket, _) = soon(tokio_tungstenite::connect_async(url)).await.unwrap();
        Self { socket }
    }

    /// The status and the body of a refused upgrade.
    pub(crate) async fn refused(
        request: impl tokio_tungstenite::tungstenite::client::IntoClientRequest + Unpin,
    ) -> (u16, String) {
        match soon(tokio_tungstenite::connect_async(request)).await {
            Err(Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                (response.status().as_u16(), String::from_utf8(body).unwrap())
            }
            other => panic!("not refused: {other:?}"),
        }
    }

    pub(crate) async fn send(&mut self, frame: impl Into<String>) {
        let frame = Message::text(frame.into());
        soon(self.socket.send(frame)).await.unwrap();
    }

    /// The next text frame as it came.
    pub(crate) async fn text(&mut self) -> String {
        soon(async {
            loop {
                match self.socket.next().await.unwrap().unwrap() {
                    Message::Text(text) => return text.as_str().to_owned(),
                    Message::Ping(_) | Message::Pong(_) => {}
                    other => panic!("no text: {other:?}"),
                }
            }
        })
        .await
    }

    pub(crate) async fn next(&mut self) -> Value {
        serde_json::from_str(&self.text().await).unwrap()
    }

    /// How the server closed, whatever came before.
    pub(crate) async fn closed(&mut self) -> Option<CloseFrame> {
        soon(async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Close(frame))) => return frame,
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return None,
                }
            }
        })
        .await
    }

    /// Joins with one binding and takes the answers.
    pub(crate) async fn join(&mut self, topic: &str, reference: u32) {
        self.send(join_frame(topic, reference)).await;
        let reply = self.next().await;
        assert_eq!(reply[3], "phx_reply");
        assert_eq!(reply[4]["status"], "ok", "{reply}");
        assert_eq!(self.next().await[4]["message"], "Subscribed to PostgreSQL");
    }

    /// Whether the socket still answers.
    pub(crate) async fn heartbeat(&mut self) {
        self.send(r#"[null,"hb","phoenix","heartbeat",{}]"#).await;
        assert_eq!(
            self.text().await,
            r#"[null,"hb","phoenix","phx_reply",{"status":"ok","response":{}}]"#
        );
    }
}

pub(crate) fn join_frame(topic: &str, reference: u32) -> String {
    let config = json!({ "postgres_changes": [{ "event": "*", "table": "t" }] });
    let reference = reference.to_string();
    json!([reference, reference, topic, "phx_join", { "config": config }]).to_string()
}

//! One connection to the relay: a socket, a channel on it, and what comes.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Response, Uri};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{History, Output, Plan, note};
use crate::cli::{EXIT_FAILURE, EXIT_USAGE};

const TOPIC: &str = "realtime:rowcast-tail";

/// For the connection with its handshakes, and again for the answer to the join.
const PATIENCE: Duration = Duration::from_secs(15);

/// Between two heartbeats, as Supabase's client does it. One that is not answered by the next
/// means that nobody is there.
const HEARTBEAT: Duration = Duration::from_secs(25);

/// The largest message taken. A row of PostgreSQL can be larger than the library's default.
const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// Why a connection is over.
pub(super) enum End {
    /// No more changes are wanted.
    Enough,
    /// Connecting again would not help.
    Refused {
        /// The exit code.
        code: u8,
        /// Why.
        text: String,
    },
    /// Connecting again may help.
    Lost(String),
}

impl End {
    fn wrong(text: impl Into<String>) -> Self {
        Self::Refused {
            code: EXIT_USAGE,
            text: text.into(),
        }
    }
}

/// Connects, joins, and prints until something ends it.
pub(super) async fn follow(plan: &Plan, out: &mut Output, history: &mut History) -> End {
    let ended = async {
        let token = plan.holder.token().map_err(End::wrong)?;
        let socket = connect(plan, &token, history).await?;
        let channel = Channel {
            plan,
            token: &token,
            socket,
            history,
            beating: false,
            subscribed: false,
            ended: None,
        };
        channel.run(out).await
    };
    let (Ok(end) | Err(end)) = ended.await;
    end
}

/// TCP, or TLS over it.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type Socket = WebSocketStream<Box<dyn Stream>>;

async fn connect(plan: &Plan, token: &str, history: &History) -> Result<Socket, End> {
    let none = |_| End::wrong("The relay's URL cannot be connected to.");
    let mut request = plan.url.as_str().into_client_request().map_err(none)?;
    // Not in the address, which proxies like to log.
    let mut key = HeaderValue::from_str(token)
        .map_err(|_| End::wrong("The token is none: it holds odd characters."))?;
    key.set_sensitive(true);
    request.headers_mut().insert("x-api-key", key);
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    let connecting = async {
        let stream = dial(plan, request.uri()).await?;
        tokio_tungstenite::client_async_with_config(request, stream, Some(config))
            .await
            .map_err(|error| refused(plan, history, &error))
    };
    match timeout(PATIENCE, connecting).await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(end)) => Err(end),
        Err(_) => Err(End::Lost(format!("{} does not answer", place(plan)))),
    }
}

/// A connection to the relay's host, encrypted where the address says so.
async fn dial(plan: &Plan, uri: &Uri) -> Result<Box<dyn Stream>, End> {
    let place = place(plan);
    let unreachable = |error: std::io::Error| {
        // What rustls says of a certificate that it does not trust, now or later.
        let distrust = error.get_ref().is_some_and(|inner| {
            matches!(
                inner.downcast_ref(),
                Some(rustls::Error::InvalidCertificate(_))
            )
        });
        if distrust {
            End::Refused {
                code: EXIT_FAILURE,
                text: format!("{place} cannot be trusted: {error}"),
            }
        } else {
            End::Lost(format!("{place} cannot be reached: {error}"))
        }
    };
    let is_encrypted = uri.scheme_str() == Some("wss");
    let port = uri
        .port_u16()
        .unwrap_or(if is_encrypted { 443 } else { 80 });
    // An IPv6 address stands in brackets in an address, and nowhere else.
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(unreachable)?;
    // A frame that waits for more to come would come late.
    stream.set_nodelay(true).map_err(unreachable)?;
    if !is_encrypted {
        return Ok(Box::new(stream));
    }
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| End::wrong("The relay's URL cannot be connected to."))?;
    let mut roots = RootCertStore::empty();
    let (added, _unusable) =
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 {
        return Err(End::Refused {
            code: EXIT_FAILURE,
            text: "There are no certificates of public authorities on this machine; SSL_CERT_FILE \
                   names a file with some."
                .to_owned(),
        });
    }
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await.map_err(unreachable)?;
    Ok(Box::new(stream))
}

/// The relay's address without its path.
fn place(plan: &Plan) -> &str {
    let url = plan.url.as_str();
    let path = url.find("/realtime/").or_else(|| url.find('?'));
    path.and_then(|end| url.get(..end)).unwrap_or(url)
}

/// What a failed handshake means.
fn refused(plan: &Plan, history: &History, error: &Error) -> End {
    let place = place(plan);
    let response = match error {
        Error::Http(response) => response,
        Error::Io(error) => return End::Lost(format!("{place} cannot be reached: {error}")),
        Error::Url(_) => return End::wrong("The relay's URL cannot be connected to."),
        // The error's own text may quote the request, and with it the token.
        _ => return End::Lost(format!("{place} breaks off the handshake")),
    };
    let status = response.status();
    let said = reason(response);
    match status.as_u16() {
        401 if history.subscribed > 0 && is_missing_key(&said) => {
            End::Lost(format!("{place} cannot verify tokens: {said}"))
        }
        401 => End::wrong(format!("{place} refuses the token: {said}")),
        403 => End::wrong(format!("{place} refuses the connection: {said}")),
        429 | 500..=599 => End::Lost(format!("{place} is not ready: {status} {said}")),
        // Behind a proxy this is also what a relay looks like that is just being replaced.
        _ if history.subscribed > 0 => End::Lost(format!("{place} answers with {status}")),
        _ => End::wrong(format!(
            "{place} is no relay: it answers with {status} where a WebSocket should be"
        )),
    }
}

/// The text of a refusal.
fn reason(response: &Response<Option<Vec<u8>>>) -> String {
    #[derive(Deserialize)]
    struct Body {
        error: String,
    }
    let body = response.body().as_deref().unwrap_or_default();
    serde_json::from_slice(body).map_or_else(
        |_| String::from_utf8_lossy(body).trim().to_owned(),
        |body: Body| body.error,
    )
}

/// Whether a token is refused because its issuer's keys are not at hand, which may pass.
fn is_missing_key(reason: &str) -> bool {
    reason.contains("Failed to generate JWT signer")
}

/// A version 2 frame.
#[derive(Deserialize)]
struct Frame<'a>(
    IgnoredAny,
    IgnoredAny,
    #[serde(borrow)] Cow<'a, str>,
    #[serde(borrow)] Cow<'a, str>,
    #[serde(borrow)] &'a RawValue,
);

#[derive(Deserialize)]
struct Reply {
    status: String,
    #[serde(default)]
    response: Answer,
}

#[derive(Deserialize, Default)]
struct Answer {
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
struct System {
    #[serde(default)]
    extension: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
struct Changed<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
}

struct Channel<'a> {
    plan: &'a Plan,
    /// The one that it was opened with.
    token: &'a str,
    socket: Socket,
    history: &'a mut History,
    /// Whether a heartbeat is out and not answered.
    beating: bool,
    subscribed: bool,
    /// Why the channel is about to be closed.
    ended: Option<String>,
}

impl Channel<'_> {
    async fn run(mut self, out: &mut Output) -> Result<End, End> {
        self.send(&json!(["1", "1", TOPIC, "phx_join", {
            "config": { "postgres_changes": self.plan.bindings, "private": false },
            "access_token": self.token
        }]))
        .await?;
        let patience = Instant::now() + PATIENCE;
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.reset();
        let mut renewal = self
            .plan
            .holder
            .renew_after()
            .map(|time| Instant::now() + time);
        loop {
            tokio::select! {
                message = self.socket.next() => match message {
                    Some(Ok(Message::Text(text))) => {
                        if let Some(end) = self.take(&text, out).await? {
                            return Ok(end);
                        }
                    }
                    Some(Ok(Message::Close(frame))) => {
                        let why = frame.map(|frame| frame.reason.to_string());
                        return Err(lost(why.filter(|why| !why.is_empty())));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(lost(Some(error.to_string()))),
                    None => return Err(lost(None)),
                },
                () = sleep_until(patience), if !self.subscribed => {
                    return Err(End::Lost("the relay does not answer the join".to_owned()));
                }
                _ = heartbeat.tick() => {
                    if std::mem::replace(&mut self.beating, true) {
                        return Err(End::Lost("the relay does not answer any more".to_owned()));
                    }
                    self.send(&json!([null, "2", "phoenix", "heartbeat", {}])).await?;
                }
                () = sleep_until(renewal.unwrap_or(patience)), if renewal.is_some() => {
                    let token = self.plan.holder.token().map_err(End::wrong)?;
                    self.send(&json!(["1", "3", TOPIC, "access_token", { "access_token": token }]))
                        .await?;
                    renewal = self.plan.holder.renew_after().map(|time| Instant::now() + time);
                }
            }
        }
    }

    async fn send(&mut self, frame: &serde_json::Value) -> Result<(), End> {
        let sending = self.socket.send(Message::text(frame.to_string()));
        match timeout(PATIENCE, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(lost(Some(error.to_string()))),
            Err(_) => Err(lost(Some("it takes nothing".to_owned()))),
        }
    }

    /// Takes a frame; returns why it was the last one.
    async fn take(&mut self, text: &str, out: &mut Output) -> Result<Option<End>, End> {
        let unreadable = |_| End::Lost("the relay sends what cannot be read".to_owned());
        let Frame(_, _, topic, event, payload) = serde_json::from_str(text).map_err(unreadable)?;
        let payload = payload.get();
        match event.as_ref() {
            "postgres_changes" => {
                let changed: Changed<'_> = serde_json::from_str(payload).map_err(unreadable)?;
                let more = out.take(changed.data.get()).await.map_err(unreadable)?;
                return Ok((!more).then_some(End::Enough));
            }
            "phx_reply" if topic == "phoenix" => self.beating = false,
            "phx_reply" => {
                let reply: Reply = serde_json::from_str(payload).map_err(unreadable)?;
                if reply.status == "error" && !self.subscribed {
                    return Err(self.join_refused(&reply.response.reason));
                }
            }
            "system" => {
                let system = serde_json::from_str(payload).map_err(unreadable)?;
                self.system(system)?;
            }
            "phx_error" => {
                return Err(lost(Some("it ended the channel".to_owned())));
            }
            "phx_close" => return Err(self.closed()),
            _ => {}
        }
        Ok(None)
    }

    fn join_refused(&self, reason: &str) -> End {
        // Everything else (too many joins, the database away) may pass.
        const FINAL: [&str; 9] = [
            "InvalidJWTToken",
            "MalformedJWT",
            "JwtSignatureError",
            "JwtSignerError",
            "Unauthorized",
            "TopicNameRequired",
            "TooManyBindings",
            "BindingsTooLong",
            "PrivateChannelsNotSupported",
        ];
        let passes = self.history.subscribed > 0 && is_missing_key(reason);
        if FINAL.iter().any(|code| reason.starts_with(code)) && !passes {
            End::wrong(format!("The relay refuses the join: {reason}"))
        } else {
            End::Lost(format!("the relay refuses the join: {reason}"))
        }
    }

    fn system(&mut self, system: System) -> Result<(), End> {
        let System {
            extension,
            status,
            message,
            reason,
        } = system;
        match (extension.as_str(), status.as_str()) {
            ("postgres_changes", "ok") if !self.subscribed => {
                self.subscribed = true;
                self.history.subscribed += 1;
                let table = &self.plan.table;
                note(&if self.history.subscribed == 1 {
                    format!("following {table} at {}", place(self.plan))
                } else {
                    format!("following {table} again; changes in between may have been missed")
                });
            }
            // Said again after each new token.
            ("postgres_changes", "ok") => {}
            ("postgres_changes", "error") => {
                // What the wire calls Realtime is the publication.
                let hint = if message.contains("check Realtime is enabled") {
                    ". No table of that name is published: names are taken as they are, upper and \
                     lower case, and `rowcast setup --table` publishes one."
                } else {
                    ""
                };
                return Err(End::wrong(format!("The relay refuses: {message}{hint}")));
            }
            ("system", "error") => self.ended = Some(message),
            _ if reason.is_empty() => note(&format!("{status}: {message}")),
            _ => note(&format!("{status} ({reason}): {message}")),
        }
        Ok(())
    }

    /// What it means that the channel was closed for good.
    fn closed(&mut self) -> End {
        let why = self.ended.take();
        match why {
            Some(why) if !self.plan.holder.has_another(self.token) => End::Refused {
                code: EXIT_FAILURE,
                text: format!(
                    "The relay ended it: {why}. With --sub or --role and JWT_SECRET, tokens are \
                     renewed in time."
                ),
            },
            why => lost(why),
        }
    }
}

fn lost(why: Option<String>) -> End {
    End::Lost(match why {
        Some(why) => format!("the connection to the relay is lost: {why}"),
        None => "the connection to the relay is lost".to_owned(),
    })
}

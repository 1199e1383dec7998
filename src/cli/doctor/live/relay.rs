//! Through the running relay, as a subscriber.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;

use super::{Live, Stage};
use crate::cli::health::reachable;
use crate::cli::token;
use crate::doctor::{Finding, Patient};
use crate::pg::refusal::with_causes;

/// How long the relay may take to come to know the table.
const KNOWN: Duration = Duration::from_secs(20);

/// How long a row may take.
const ARRIVAL: Duration = Duration::from_secs(15);

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A row that takes longer is worth a word: people notice.
const LATE: Duration = Duration::from_secs(1);

const TOPIC: &str = "realtime:rowcast-doctor";

type Socket = WebSocketStream<TcpStream>;

/// The role that the subscriber acts as.
pub(super) fn role(patient: &Patient) -> String {
    patient.config.default_role.clone()
}

/// A token whose holder alone sees the row.
fn token(stage: &Stage, patient: &Patient) -> Result<String, Box<Finding>> {
    let Some(secret) = &patient.config.jwt_secret else {
        let finding = Finding::note(
            "live_token",
            "without JWT_SECRET no token can be made to subscribe with: the row is not watched \
             through the relay",
        )
        .advice("Set JWT_SECRET for this command; tail shows what a user's own token receives.");
        return Err(Box::new(finding));
    };
    let claims = token::claims(Some(&stage.mark), &stage.role, &[]);
    claims
        .and_then(|claims| token::sign(claims, Duration::from_secs(300), secret))
        .map_err(|error| Box::new(Finding::error("live_token", error)))
}

pub(super) async fn watch(stage: &Stage, patient: &Patient, live: &mut Live) -> Vec<Finding> {
    live.way = "relay";
    match subscribe_and_write(stage, patient, live).await {
        Ok(late) => late.into_iter().collect(),
        Err(finding) => vec![finding],
    }
}

async fn subscribe_and_write(
    stage: &Stage,
    patient: &Patient,
    live: &mut Live,
) -> Result<Option<Finding>, Finding> {
    let token = token(stage, patient).map_err(|finding| *finding)?;
    let address = reachable(patient.config.listen);
    let mut socket = timeout(CONNECT, connect(&address.to_string(), &token))
        .await
        .unwrap_or_else(|_| Err("it does not answer".to_owned()))
        .map_err(|reason| {
            Finding::error(
                "live_connect",
                format!("the relay cannot be connected to at {address}: {reason}"),
            )
            .advice("Run this where the relay runs, with its settings (ROWCAST_LISTEN).")
        })?;
    live.done(format!("connected to the relay at {address}"));
    let joined = timeout(KNOWN, join(&mut socket, stage, &token)).await;
    match joined {
        Ok(Ok(())) => live.done("subscribed, and was told so"),
        Ok(Err(reason)) => {
            return Err(Finding::error(
                "live_join",
                format!("the relay refuses the subscription: {reason}"),
            )
            .advice("Mend what stands above first; the relay's log says more."));
        }
        Err(_) => {
            return Err(Finding::error(
                "live_join",
                format!(
                    "the relay did not come to know the new table within {} s",
                    KNOWN.as_secs()
                ),
            )
            .advice("Its catalog may not be readable: /readyz of the relay, and its log."));
        }
    }
    stage.write(1).await.map_err(|error| {
        Finding::error(
            "live_write",
            format!("the row cannot be written: {}", with_causes(&error)),
        )
    })?;
    live.done("wrote a row, which is committed");
    let arrived = timeout(ARRIVAL, arrival(&mut socket, stage)).await;
    let arrived = arrived.map_err(|_| {
        Finding::error(
            "live_silent",
            format!(
                "the row was committed and did not reach its subscriber within {} s",
                ARRIVAL.as_secs()
            ),
        )
        .advice("The relay's log and /readyz say what it waits for.")
    })?;
    arrived.map_err(|reason| Finding::error("live_silent", reason))?;
    live.arrived = true;
    live.done("the row arrived");
    let took = live.steps.last().map_or(0, |step| step.milliseconds);
    // Closing is a courtesy.
    let _closed = socket.close(None).await;
    Ok((u128::from(took) > LATE.as_millis()).then(|| {
        Finding::warning(
            "live_late",
            format!("the row took {took} ms to its subscriber"),
        )
        .advice("Look at what the relay waits for: /readyz and /inspect.")
    }))
}

async fn connect(address: &str, token: &str) -> Result<Socket, String> {
    let url = format!("ws://{address}/realtime/v1/websocket?vsn=2.0.0");
    let mut request = url
        .into_client_request()
        .map_err(|error| error.to_string())?;
    let mut key = HeaderValue::from_str(token).map_err(|error| error.to_string())?;
    key.set_sensitive(true);
    request.headers_mut().insert("x-api-key", key);
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| error.to_string())?;
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        // Its text may quote the request.
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
            let said = response.body().as_deref().unwrap_or_default();
            let said: String = String::from_utf8_lossy(said).chars().take(300).collect();
            Err(format!("it answers {} {said}", response.status()))
        }
        Err(_) => Err("it breaks off the handshake".to_owned()),
    }
}

/// Joins again and again until the relay knows the table.
async fn join(socket: &mut Socket, stage: &Stage, token: &str) -> Result<(), String> {
    let mut number = 0_u32;
    loop {
        number += 1;
        let reference = number.to_string();
        let binding = json!({ "event": "*", "schema": "rowcast", "table": stage.table });
        let config = json!({ "postgres_changes": [binding], "private": false });
        let payload = json!({ "config": config, "access_token": token });
        send(
            socket,
            &json!([reference, reference, TOPIC, "phx_join", payload]),
        )
        .await?;
        let refused = loop {
            let (event, payload) = next(socket).await?;
            let said = |field: &str| {
                payload
                    .get(field)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            };
            match (event.as_str(), said("status")) {
                ("phx_reply", "error") => {
                    let reason = payload.pointer("/response/reason").and_then(Value::as_str);
                    return Err(reason.unwrap_or("it gives no reason").to_owned());
                }
                ("system", "ok") if said("extension") == "postgres_changes" => return Ok(()),
                ("system", "error") if said("extension") == "postgres_changes" => {
                    break said("message").to_owned();
                }
                ("phx_error" | "phx_close", _) => return Err("it ends the channel".to_owned()),
                _ => {}
            }
        };
        if !refused.contains("check Realtime is enabled") {
            return Err(refused);
        }
        sleep(Duration::from_millis(250)).await;
    }
}

async fn arrival(socket: &mut Socket, stage: &Stage) -> Result<(), String> {
    loop {
        let (event, payload) = next(socket).await?;
        let mark = payload.pointer("/data/record/mark").and_then(Value::as_str);
        if event == "postgres_changes" && mark == Some(&stage.mark) {
            return Ok(());
        }
        if matches!(event.as_str(), "phx_error" | "phx_close") {
            return Err("the relay ended the channel before the row came".to_owned());
        }
    }
}

async fn send(socket: &mut Socket, frame: &Value) -> Result<(), String> {
    let sending = socket.send(Message::text(frame.to_string()));
    sending.await.map_err(|error| error.to_string())
}

/// The next message's event and payload.
async fn next(socket: &mut Socket) -> Result<(String, Value), String> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => {
                let frame: (Value, Value, Value, String, Value) =
                    serde_json::from_str(&text).map_err(|error| error.to_string())?;
                return Ok((frame.3, frame.4));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err("the relay closed the connection".to_owned()),
        }
    }
}

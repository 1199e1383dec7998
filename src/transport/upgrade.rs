//! From an HTTP request to a WebSocket, or to the reason why not.

use std::sync::Arc;

use axum::Json;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Query, State};
use axum::http::{Extensions, HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};

use super::Front;
use super::connection::Connection;
use super::stream::Progress;
use crate::supabase::Serializer;

/// Idle sockets are many and their messages small. The library's own buffers take 135 KiB a socket.
const READ_BUFFER: usize = 1024;
const WRITE_BUFFER: usize = 4096;

pub(super) async fn websocket(
    State(front): State<Front>,
    method: Method,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
    mut extensions: Extensions,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    if front.0.stopping.is_cancelled() {
        return refused(StatusCode::SERVICE_UNAVAILABLE, "Server is shutting down");
    }
    if method != Method::GET {
        return StatusCode::BAD_REQUEST.into_response();
    }
    let parameter = |name: &str| {
        let found = query.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    };
    let Some(serializer) = Serializer::from_version(parameter("vsn")) else {
        return StatusCode::FORBIDDEN.into_response();
    };
    let header = headers.get("x-api-key").and_then(|key| key.to_str().ok());
    let Some(token) = header.or_else(|| parameter("apikey")) else {
        return refused(StatusCode::UNAUTHORIZED, "API key is missing");
    };
    let principal = match front
        .0
        .auth
        .verify(token, super::connection::unix_now())
        .await
    {
        Ok(principal) => Arc::new(principal),
        Err(error) => return refused(StatusCode::UNAUTHORIZED, &error.upgrade_text()),
    };
    let Ok(permit) = Arc::clone(&front.0.free).try_acquire_owned() else {
        return refused(StatusCode::TOO_MANY_REQUESTS, "Too many connected users");
    };
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => return (StatusCode::BAD_REQUEST, rejection.body_text()).into_response(),
    };
    let progress = extensions.remove::<Arc<Progress>>();
    let settings = &front.0.settings;
    let upgrade = upgrade
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_frame_size(settings.max_frame_bytes)
        .max_message_size(settings.max_frame_bytes);
    let sockets = front.0.sockets.clone();
    let tracked = sockets.token();
    upgrade.on_upgrade(move |socket| async move {
        let connection = Connection::new(front, socket, serializer, principal, progress);
        connection.run().await;
        drop((permit, tracked));
    })
}

fn refused(status: StatusCode, text: &str) -> Response {
    (status, Json(serde_json::json!({ "error": text }))).into_response()
}

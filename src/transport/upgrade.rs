//! From an HTTP request to a WebSocket, or to the reason why not.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Query, State};
use axum::http::{Extensions, HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::sync::OwnedSemaphorePermit;

use super::Front;
use super::address::{Peer, neighbourhood};
use super::connection::Connection;
use super::stream::Progress;
use crate::auth::Principal;
use crate::metrics::Refused;
use crate::session::{Full, Place, Session};
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
    let refused = |reason, status, text: &str| {
        front.0.metrics.refused(reason);
        (status, Json(serde_json::json!({ "error": text }))).into_response()
    };
    if front.0.stopping.is_cancelled() {
        let text = "Server is shutting down";
        return refused(Refused::Stopping, StatusCode::SERVICE_UNAVAILABLE, text);
    }
    if method != Method::GET {
        return StatusCode::BAD_REQUEST.into_response();
    }
    let parameter = |name: &str| {
        let found = query.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    };
    let Some(serializer) = Serializer::from_version(parameter("vsn")) else {
        front.0.metrics.refused(Refused::Version);
        return StatusCode::FORBIDDEN.into_response();
    };
    let header = headers.get("x-api-key").and_then(|key| key.to_str().ok());
    let Some(token) = header.or_else(|| parameter("apikey")) else {
        let text = "API key is missing";
        return refused(Refused::Token, StatusCode::UNAUTHORIZED, text);
    };
    let principal = match front
        .0
        .auth
        .verify(token, super::connection::unix_now())
        .await
    {
        Ok(principal) => Arc::new(principal),
        Err(error) => {
            let text = error.upgrade_text();
            return refused(Refused::Token, StatusCode::UNAUTHORIZED, &text);
        }
    };
    let places = match places(&front, principal, &headers, &extensions) {
        Ok(places) => places,
        Err(full) => {
            let body = Json(serde_json::json!({ "error": full.to_string() }));
            return (StatusCode::TOO_MANY_REQUESTS, body).into_response();
        }
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
        let Places {
            session,
            all,
            address,
        } = places;
        let connection = Connection::new(front, socket, serializer, session, progress);
        connection.run().await;
        drop((all, address, tracked));
    })
}

/// A session, with the places that it takes for as long as it lives.
struct Places {
    session: Session,
    all: OwnedSemaphorePermit,
    address: Option<Place<IpAddr>>,
}

fn places(
    front: &Front,
    principal: Arc<Principal>,
    headers: &HeaderMap,
    extensions: &Extensions,
) -> Result<Places, Full> {
    let shared = &front.0;
    let all = Arc::clone(&shared.free).try_acquire_owned().map_err(|_| {
        shared.metrics.refused(Refused::Connections);
        Full
    })?;
    let address = match (&shared.addresses, extensions.get::<Peer>()) {
        (Some(addresses), Some(Peer(peer))) => {
            let client = shared.settings.trusted_proxies.client(*peer, headers);
            Some(addresses.take(neighbourhood(client))?)
        }
        _ => None,
    };
    let (users, spread) = (shared.users.clone(), Arc::clone(&shared.spread));
    let session = Session::counted(principal, shared.settings.limits, users, spread)?;
    Ok(Places {
        session,
        all,
        address,
    })
}

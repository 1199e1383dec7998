//! From an HTTP request to a WebSocket, or to the reason why not.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Query, State};
use axum::http::{Extensions, HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::OwnedSemaphorePermit;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::Front;
use super::address::{Peer, neighbourhood};
use super::connection::Connection;
use super::reading::Reading;
use super::stream::ClientStream;
use crate::auth::Principal;
use crate::metrics::Refused;
use crate::session::{Full, Place, Session};
use crate::supabase::Serializer;

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
    // Looked at by the library, and then answered here: the socket is wanted, and not its own.
    if let Err(rejection) = upgrade {
        return (StatusCode::BAD_REQUEST, rejection.body_text()).into_response();
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY);
    let (Some(key), Some(upgrade)) = (key, extensions.remove::<OnUpgrade>()) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let accept = derive_accept_key(key.as_bytes());
    let tracked = front.0.sockets.token();
    tokio::spawn(async move {
        let Places {
            session,
            all,
            address,
        } = places;
        let Some((stream, reading)) = taken_over(upgrade, &front).await else {
            return;
        };
        let connection = Connection::new(front, stream, reading, serializer, session);
        let connection = Box::new(connection);
        // A task of its own, since the room for what this one has waited with is kept to its end.
        tokio::spawn(async move {
            connection.run().await;
            drop((all, address, tracked));
        });
    });
    (
        StatusCode::SWITCHING_PROTOCOLS,
        [
            (header::CONNECTION, "upgrade"),
            (header::UPGRADE, "websocket"),
            (header::SEC_WEBSOCKET_ACCEPT, &accept),
        ],
    )
        .into_response()
}

/// The stream once HTTP has let it go, and what reads its frames; `None` where the client has gone.
async fn taken_over(upgrade: OnUpgrade, front: &Front) -> Option<(ClientStream, Reading)> {
    let parts = upgrade.await.ok()?.downcast::<TokioIo<ClientStream>>();
    let parts = parts.ok()?;
    let reading = Reading::new(front.0.settings.max_frame_bytes, &parts.read_buf);
    Some((parts.io.into_inner(), reading))
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

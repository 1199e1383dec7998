//! Answers clients while there is nothing to serve them yet: PostgreSQL may be away for long.

use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::transport;

/// How long a client may take to say what it wants.
const HEAD: Duration = Duration::from_secs(10);

/// How long requests under way may take to end when the relay takes over.
const LIMIT: Duration = Duration::from_secs(1);

/// Serves `/healthz`, and tells everybody else to come back.
pub(super) struct Lobby {
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Lobby {
    /// Serves on `listener` until [`Lobby::close`].
    pub(super) fn open(listener: TcpListener) -> Self {
        let stop = CancellationToken::new();
        let routes = axum::Router::new()
            .route("/healthz", get(async || "ok"))
            .fallback(async || {
                let error = "Realtime is starting and cannot reach its database yet";
                (
                    StatusCode::SERVICE_UNAVAILABLE,
                    Json(serde_json::json!({ "error": error })),
                )
            });
        let stopped = stop.clone();
        let serving = tokio::spawn(async move {
            let open = transport::answer(listener, routes, HEAD, &stopped).await;
            open.wait().await;
        });
        Self { stop, serving }
    }

    /// Ends what is under way and lets go of the listener.
    pub(super) async fn close(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(LIMIT, &mut self.serving)
            .await
            .is_err()
        {
            // What has not said what it wants by then has until [`HEAD`].
            self.serving.abort();
        }
    }
}

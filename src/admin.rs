//! What operators ask: is it ready, how does it fare, and what is it doing.

mod inspect;

use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::sync::watch;

pub use self::inspect::{Findings, Inspector};
use crate::metrics::Metrics;
use crate::policy::watch::Delay;

/// Where the source stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceState {
    /// It has not reached PostgreSQL yet, or lost it: why.
    Waiting(String),
    /// Changes flow.
    Streaming,
    /// The process is shutting down.
    Draining,
}

/// What readiness is decided by; shared between the source's task and the admin listener.
#[derive(Clone)]
pub struct Readiness {
    source: Arc<RwLock<SourceState>>,
    delay: Arc<OnceLock<watch::Receiver<Option<Delay>>>>,
}

impl Default for Readiness {
    fn default() -> Self {
        let source = SourceState::Waiting("connecting to PostgreSQL".to_owned());
        Self {
            source: Arc::new(RwLock::new(source)),
            delay: Arc::default(),
        }
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Readiness").field(&self.get()).finish()
    }
}

impl Readiness {
    /// Where the source stands now.
    #[must_use]
    pub fn get(&self) -> SourceState {
        self.source
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Notes where the source stands. Draining is final.
    pub fn set(&self, state: SourceState) {
        let mut current = self.source.write().unwrap_or_else(PoisonError::into_inner);
        if *current != SourceState::Draining {
            *current = state;
        }
    }

    /// Has what changes wait for be told as well.
    pub fn tell_of(&self, delay: watch::Receiver<Option<Delay>>) {
        // There is one catalog in a process.
        let _told_already = self.delay.set(delay);
    }

    /// What changes have been waiting for for long.
    #[must_use]
    pub fn delay(&self) -> Option<Delay> {
        *self.delay.get()?.borrow()
    }
}

#[derive(Clone)]
struct Desk {
    readiness: Readiness,
    metrics: Arc<Metrics>,
}

/// `/readyz` (200 or 503, and why), `/metrics` (OpenMetrics text, as Prometheus reads it),
/// `/healthz`, and `/inspect`, a page for people.
pub fn routes(readiness: Readiness, metrics: Arc<Metrics>, inspector: Inspector) -> axum::Router {
    let page = inspect::routes(inspector, readiness.clone(), Arc::clone(&metrics));
    axum::Router::new()
        .route("/readyz", get(readyz))
        .route("/metrics", get(encoded))
        .route("/healthz", get(async || "ok"))
        .with_state(Desk { readiness, metrics })
        .merge(page)
}

async fn readyz(State(desk): State<Desk>) -> Response {
    let state = desk.readiness.get();
    let (status, source) = match &state {
        SourceState::Streaming => (StatusCode::OK, "streaming"),
        SourceState::Waiting(_) => (StatusCode::SERVICE_UNAVAILABLE, "waiting"),
        SourceState::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    let reason = match state {
        SourceState::Waiting(reason) => Some(reason),
        // Some changes wait and others do not: no reason to send clients elsewhere.
        SourceState::Streaming => {
            let delay = desk.readiness.delay().map(|delay| delay.reason());
            delay.or_else(|| unruled(&desk.metrics))
        }
        SourceState::Draining => None,
    };
    let body = json!({
        "ready": status == StatusCode::OK,
        "source": source,
        "reason": reason,
        "slot_lag_bytes": desk.metrics.slot_lag_bytes.get(),
        "connections": desk.metrics.connections.get(),
    });
    (status, Json(body)).into_response()
}

/// That rules are not in force; which and why is in the log, which tells names of tables.
fn unruled(metrics: &Metrics) -> Option<String> {
    let rules = metrics.rules_refused.get();
    (rules > 0).then(|| {
        format!("{rules} of the rules in the settings cannot be applied, the log says why")
    })
}

async fn encoded(State(desk): State<Desk>) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    (
        [(header::CONTENT_TYPE, content_type)],
        desk.metrics.encode(),
    )
        .into_response()
}

//! `/inspect`: what the relay is doing, for people to look at. Read only, and nothing of it is
//! gathered while nobody looks.
//!
//! Names of tables and roles are shown, and sizes; never a row, a claim, a filter or a setting that
//! is secret.

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::future::BoxFuture;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, MissedTickBehavior};

use super::{Readiness, SourceState};
use crate::metrics::Metrics;
use crate::router;

const HTML: &str = include_str!("inspect/page.html");
const CSS: &str = include_str!("inspect/page.css");
const ICON: &str = include_str!("inspect/icon.svg");
const JS: &str = include_str!("inspect/page.js");

/// How often a page is told what is new.
const TICK: Duration = Duration::from_secs(1);

/// Pages that may be open at once.
const PAGES: usize = 8;

/// Findings are as good as new for this long, however many ask.
const FRESH: Duration = Duration::from_secs(10);

/// How long the router may take to say what is in force.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long looking for findings may take.
const EXAMINATION: Duration = Duration::from_secs(60);

/// Looks for what keeps rows from subscribers, and from those of a router once there is one; what it
/// returns is put out as it is.
pub type Findings = Arc<dyn Fn(Option<router::Router>) -> BoxFuture<'static, Value> + Send + Sync>;

/// What the page is made from. Cheap to clone.
#[derive(Clone)]
pub struct Inspector {
    router: Arc<OnceLock<router::Router>>,
    findings: Findings,
    last: Arc<Mutex<Option<(Instant, Value)>>>,
    places: Arc<Semaphore>,
}

impl fmt::Debug for Inspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inspector").finish_non_exhaustive()
    }
}

impl Inspector {
    /// Without a router yet.
    #[must_use]
    pub fn new(findings: Findings) -> Self {
        Self {
            router: Arc::default(),
            findings,
            last: Arc::default(),
            places: Arc::new(Semaphore::new(PAGES)),
        }
    }

    /// Has it look at a router.
    pub fn follow(&self, router: router::Router) {
        // There is one in a process.
        let _followed_already = self.router.set(router);
    }
}

#[derive(Clone)]
struct Desk {
    inspector: Inspector,
    readiness: Readiness,
    metrics: Arc<Metrics>,
}

pub(super) fn routes(inspector: Inspector, readiness: Readiness, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/inspect", get(|| asset("text/html; charset=utf-8", HTML)))
        .route(
            "/inspect/page.css",
            get(|| asset("text/css; charset=utf-8", CSS)),
        )
        .route(
            "/inspect/page.js",
            get(|| asset("text/javascript; charset=utf-8", JS)),
        )
        .route("/inspect/icon.svg", get(|| asset("image/svg+xml", ICON)))
        .route("/inspect/now.json", get(now))
        .route("/inspect/events", get(events))
        .route("/inspect/findings.json", get(found))
        .with_state(Desk {
            inspector,
            readiness,
            metrics,
        })
}

/// Nothing but what comes from here is loaded, nothing is run that stands in a page, and no other
/// page may show this one.
const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
             img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ),
    (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    ),
    (
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    ),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

async fn asset(content_type: &'static str, body: &'static str) -> impl IntoResponse {
    (HEADERS, [(header::CONTENT_TYPE, content_type)], body)
}

/// What there is to be seen at this moment.
async fn picture(desk: &Desk) -> Value {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let at = since.unwrap_or_default().as_millis();
    let (source, reason) = match desk.readiness.get() {
        SourceState::Streaming => (
            "streaming",
            desk.readiness.delay().map(|delay| delay.reason()),
        ),
        SourceState::Waiting(reason) => ("waiting", Some(reason)),
        SourceState::Draining => ("draining", None),
    };
    let router = match desk.inspector.router.get() {
        Some(router) => match tokio::time::timeout(PATIENCE, router.picture()).await {
            Ok(Ok(picture)) => serde_json::to_value(picture).unwrap_or_default(),
            Ok(Err(_)) | Err(_) => Value::Null,
        },
        None => Value::Null,
    };
    let metrics = &desk.metrics;
    let hidden: serde_json::Map<String, Value> = metrics
        .hidden_so_far()
        .into_iter()
        .map(|(reason, count)| (reason.to_owned(), count.into()))
        .collect();
    json!({
        "at": u64::try_from(at).unwrap_or(u64::MAX),
        "source": source,
        "reason": reason,
        "connections": metrics.connections.get(),
        "subscriptions": metrics.subscriptions.get(),
        "changes_read": metrics.changes_read.get(),
        "changes_delivered": metrics.changes_delivered.get(),
        "changes_hidden": hidden,
        "questions": metrics.questions.get(),
        "slot_lag_bytes": metrics.slot_lag_bytes.get(),
        "catalog_wait_seconds": metrics.catalog_wait.get(),
        "lookup_rows": metrics.lookups.rows.get(),
        "lookup_bytes": metrics.lookups.bytes.get(),
        "old_row_mirror_rows": metrics.old_rows.rows.get(),
        "old_row_mirror_bytes": metrics.old_rows.bytes.get(),
        "router": router,
        "hidden": metrics.recent.list(),
    })
}

async fn now(State(desk): State<Desk>) -> Response {
    (HEADERS, Json(picture(&desk).await)).into_response()
}

/// The same again and again, for as long as the page is open.
async fn events(State(desk): State<Desk>) -> Response {
    let places = Arc::clone(&desk.inspector.places);
    let Ok(place) = places.try_acquire_owned() else {
        let said = format!("{PAGES} pages are open already; close one.");
        return (StatusCode::SERVICE_UNAVAILABLE, HEADERS, said).into_response();
    };
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watching = desk.metrics.recent.watch();
    let pictures = stream::unfold(
        (desk, ticks, (place, watching)),
        |(desk, mut ticks, held)| async move {
            ticks.tick().await;
            let event = Event::default().data(picture(&desk).await.to_string());
            Some((Ok::<_, Infallible>(event), (desk, ticks, held)))
        },
    );
    (HEADERS, Sse::new(pictures).keep_alive(KeepAlive::default())).into_response()
}

/// What the doctor finds, looked for again where the last look is too old. Whoever asks meanwhile
/// waits for the same.
async fn found(State(desk): State<Desk>) -> Response {
    let inspector = &desk.inspector;
    let mut last = inspector.last.lock().await;
    if let Some((at, known)) = &*last
        && at.elapsed() < FRESH
    {
        return (HEADERS, Json(known.clone())).into_response();
    }
    let router = inspector.router.get().cloned();
    match tokio::time::timeout(EXAMINATION, (inspector.findings)(router)).await {
        Ok(report) => {
            *last = Some((Instant::now(), report.clone()));
            (HEADERS, Json(report)).into_response()
        }
        Err(_elapsed) => (
            StatusCode::GATEWAY_TIMEOUT,
            HEADERS,
            Json(json!({ "error": "looking took too long; rowcast doctor says more" })),
        )
            .into_response(),
    }
}

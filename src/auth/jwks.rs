//! An issuer's keys, fetched when they are needed and kept when they cannot be.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Uri;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::keys::KeySet;
use crate::pg::refusal::with_causes;
use crate::retry::Backoff;

/// More than any issuer's keys take; what is larger is none.
const MAX_BYTES: usize = 1024 * 1024;
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a key that its issuer withdrew may still be taken.
const FRESH_FOR: Duration = Duration::from_mins(10);

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("{0}")]
    Request(#[from] hyper_util::client::legacy::Error),
    #[error("the server answered {0}")]
    Status(hyper::StatusCode),
    #[error("the answer broke off or is larger than {MAX_BYTES} bytes: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("the answer is no key set: {0}")]
    Json(#[from] serde_json::Error),
}

/// The keys of one issuer.
pub(super) struct Jwks {
    uri: Uri,
    floor: Duration,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    keys: ArcSwap<KeySet>,
    /// When the last fetch for an unknown key began. Held while one runs.
    fetched: Mutex<Option<Instant>>,
}

impl Jwks {
    pub(super) fn new(uri: Uri, floor: Duration) -> std::io::Result<Self> {
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::aws_lc_rs::default_provider())?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            uri,
            floor,
            client: Client::builder(TokioExecutor::new()).build(connector),
            keys: ArcSwap::default(),
            fetched: Mutex::new(None),
        })
    }

    pub(super) fn keys(&self) -> arc_swap::Guard<Arc<KeySet>> {
        self.keys.load()
    }

    /// Whether it is worth waiting for [`Jwks::refetch`]: a fetch runs, or one may be started.
    pub(super) fn may_learn(&self) -> bool {
        self.fetched
            .try_lock()
            .map_or(true, |fetched| self.is_due(*fetched))
    }

    /// Fetches the keys because one is unknown, unless that was done less than the floor ago:
    /// tokens with invented key names must not become requests to the issuer. Callers that come
    /// while a fetch runs wait for that one. Cancel safe.
    pub(super) async fn refetch(&self) {
        let mut fetched = self.fetched.lock().await;
        if !self.is_due(*fetched) {
            return;
        }
        *fetched = Some(Instant::now());
        let _reported = self.fetch().await;
    }

    fn is_due(&self, fetched: Option<Instant>) -> bool {
        fetched.is_none_or(|at| at.elapsed() >= self.floor)
    }

    /// Fetches at once, again and again until it works, and from then on now and again so that a
    /// key withdrawn by its issuer ends. Never returns; cancel safe.
    pub(super) async fn keep(&self) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            let wait = if self.fetch().await.is_ok() {
                backoff.reset();
                FRESH_FOR
            } else {
                backoff.after_failure()
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// One fetch; on failure the keys stay what they were.
    async fn fetch(&self) -> Result<(), ()> {
        match self.request().await {
            Ok(keys) => {
                tracing::debug!(keys = keys.len(), "fetched the token issuer's keys");
                self.keys.store(Arc::new(keys));
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "could not fetch the token issuer's keys; keeping the ones at hand");
                Err(())
            }
        }
    }

    /// How many keys the issuer has, fetched now.
    pub(super) async fn count(&self) -> Result<usize, String> {
        let keys = self.request().await;
        keys.map(|keys| keys.len())
            .map_err(|error| with_causes(&error))
    }

    async fn request(&self) -> Result<KeySet, FetchError> {
        tokio::time::timeout(TIMEOUT, async {
            let response = self.client.get(self.uri.clone()).await?;
            if !response.status().is_success() {
                return Err(FetchError::Status(response.status()));
            }
            let body = Limited::new(response.into_body(), MAX_BYTES);
            let body = body.collect().await.map_err(FetchError::Body)?.to_bytes();
            Ok(KeySet::from_json(&body)?)
        })
        .await
        .unwrap_or(Err(FetchError::Timeout))
    }
}

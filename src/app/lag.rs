//! How much WAL the slot keeps from being recycled.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tracing::warn;

use super::Fault;
use crate::metrics::Metrics;
use crate::pg::connect::Database;
use crate::source;

/// How often it is measured.
const INTERVAL: Duration = Duration::from_secs(10);

/// What is watched.
pub(super) struct Lag {
    pub(super) database: Database,
    pub(super) slot: String,
    pub(super) metrics: Arc<Metrics>,
    /// The most that the slot may keep, in bytes; 0 for any amount.
    pub(super) max_retained: u64,
    /// Rung at each measurement that is above.
    pub(super) over: Arc<Notify>,
}

impl Lag {
    /// Measures for ever.
    pub(super) async fn watch(self) -> Result<&'static str, Fault> {
        let mut client = None;
        let mut ticks = tokio::time::interval(INTERVAL);
        let mut warned = false;
        loop {
            ticks.tick().await;
            if client
                .as_ref()
                .is_none_or(tokio_postgres::Client::is_closed)
            {
                // The source says what is wrong with the database.
                client = self.database.connect("rowcast lag").await.ok();
            }
            let Some(connected) = &client else { continue };
            let Ok(kept) = source::retained(connected, &self.slot).await else {
                continue;
            };
            let kept = kept.unwrap_or(0);
            let lag = i64::try_from(kept).unwrap_or(i64::MAX);
            self.metrics.slot_lag_bytes.set(lag);
            if self.max_retained > 0 && kept > self.max_retained {
                self.over.notify_one();
            }
            if !warned {
                let limit = connected
                    .query_one(
                        "select coalesce(current_setting('max_slot_wal_keep_size', true), '')",
                        &[],
                    )
                    .await;
                let Ok(limit) = limit.and_then(|row| row.try_get::<_, String>(0)) else {
                    continue;
                };
                warned = true;
                if limit == "-1" {
                    warn!("{}", source::UNBOUNDED);
                }
            }
        }
    }
}

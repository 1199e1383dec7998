//! From the source into the log, over reconnects.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Fault, chain};
use crate::admin::{Readiness, SourceState};
use crate::log::memory::MemoryLog;
use crate::log::{Log, LogError};
use crate::metrics::Metrics;
use crate::pg::connect::Database;
use crate::pg::refusal::Retry;
use crate::retry::Backoff;
use crate::source::{Opened, Source, SourceError, SourceEvent, choose_publication};

/// How often the slot's lag is measured.
const LAG_INTERVAL: Duration = Duration::from_secs(10);

/// Carries changes from the source into the log.
pub(super) struct Feed {
    pub(super) database: Database,
    pub(super) slot: String,
    pub(super) log: Arc<MemoryLog>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) readiness: Readiness,
}

impl Feed {
    /// Opens the source for the first time. What waiting can heal is waited for; the rest ends the
    /// process with its sentence.
    pub(super) async fn open_first(
        &self,
        configured: Option<&str>,
    ) -> Result<(Opened, String), Fault> {
        let mut backoff = backoff();
        loop {
            let attempt = async {
                let client = self.database.connect("rowcast").await?;
                let publication = choose_publication(&client, configured).await?;
                let opened = Source::open(&self.database, &self.slot, &publication).await?;
                Ok::<_, SourceError>((opened, publication))
            };
            match attempt.await {
                Ok(opened) => return Ok(opened),
                Err(error) if error.retry() == Retry::Never => {
                    return Err(Fault::Database(chain(&error)));
                }
                Err(error) => self.wait(&mut backoff, &error).await,
            }
        }
    }

    /// Fills the log until `stop`, over reconnects.
    pub(super) async fn fill(
        &self,
        first: Source,
        publication: &str,
        stop: CancellationToken,
    ) -> Result<(), Fault> {
        let mut source = first;
        let mut backoff = backoff();
        self.flowing();
        loop {
            let ended = tokio::select! {
                ended = self.pour(&mut source, &mut backoff) => ended,
                () = stop.cancelled() => {
                    source.acknowledge(self.log.stored());
                    source.close().await;
                    return Ok(());
                }
            };
            self.log.abandon();
            let error = match ended {
                Ended::Source(error) => error,
                Ended::Log(error) => {
                    warn!(%error, "the log does not take changes");
                    return Err(Fault::Ended("log"));
                }
            };
            tokio::select! {
                () = self.wait(&mut backoff, &error) => {}
                () = stop.cancelled() => return Ok(()),
            }
            source = loop {
                let opening = Source::open(&self.database, &self.slot, publication);
                let opened = tokio::select! {
                    opened = opening => opened,
                    () = stop.cancelled() => return Ok(()),
                };
                match opened {
                    Ok(opened) => {
                        if opened.created {
                            self.announce_gap();
                        }
                        self.flowing();
                        info!("streaming changes again");
                        break opened.source;
                    }
                    // Even what does not heal by itself may be mended by somebody while we wait.
                    Err(error) => tokio::select! {
                        () = self.wait(&mut backoff, &error) => {}
                        () = stop.cancelled() => return Ok(()),
                    },
                }
            };
        }
    }

    async fn pour(&self, source: &mut Source, backoff: &mut Backoff) -> Ended {
        loop {
            let event = match source.next().await {
                Ok(event) => event,
                Err(error) => return Ended::Source(error),
            };
            backoff.reset();
            match event {
                SourceEvent::Batch(batch) => {
                    self.metrics.changes_read.inc_by(batch.changes.len() as u64);
                    let last = batch.last;
                    if let Err(error) = self.log.append(batch).await {
                        return Ended::Log(error);
                    }
                    if last {
                        source.acknowledge(self.log.stored());
                    }
                }
                // Nothing for us was committed up to here, and all before it is in the log.
                SourceEvent::Progress(position) => source.acknowledge(position),
            }
        }
    }

    /// The slot was gone and is made anew: what lay between is lost to whoever is connected.
    fn announce_gap(&self) {
        warn!(
            slot = self.slot,
            "the slot was lost and made anew: clients have to read again"
        );
        self.log.lose();
    }

    fn flowing(&self) {
        self.metrics.source_up.set(1);
        self.readiness.set(SourceState::Streaming);
    }

    async fn wait(&self, backoff: &mut Backoff, error: &SourceError) {
        let reason = chain(error);
        self.metrics.source_up.set(0);
        self.metrics.source_retries.inc();
        let wait = backoff.after_failure();
        warn!(
            reason,
            retry_in_ms = wait.as_millis(),
            "changes do not flow"
        );
        self.readiness.set(SourceState::Waiting(reason));
        tokio::time::sleep(wait).await;
    }
}

enum Ended {
    Source(SourceError),
    Log(LogError),
}

const fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
}

/// Measures how much WAL the slot keeps from being recycled.
pub(super) async fn watch_lag(
    database: Database,
    slot: String,
    metrics: Arc<Metrics>,
) -> Result<&'static str, Fault> {
    let mut client = None;
    let mut ticks = tokio::time::interval(LAG_INTERVAL);
    let mut first = true;
    loop {
        ticks.tick().await;
        if client
            .as_ref()
            .is_none_or(tokio_postgres::Client::is_closed)
        {
            // The source says what is wrong with the database.
            client = database.connect("rowcast lag").await.ok();
        }
        let Some(connected) = &client else { continue };
        let row = connected
            .query_one(
                "select coalesce((select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn) \
                 from pg_replication_slots where slot_name = $1::text), 0)::int8, \
                 coalesce(current_setting('max_slot_wal_keep_size', true), '')",
                &[&slot],
            )
            .await;
        let Ok(row) = row else { continue };
        if let Ok(lag) = row.try_get::<_, i64>(0) {
            metrics.slot_lag_bytes.set(lag);
        }
        if first && row.try_get::<_, String>(1).is_ok_and(|limit| limit == "-1") {
            warn!(
                "max_slot_wal_keep_size is -1: while Rowcast does not run, its slot keeps WAL \
                 without bound; alter system set max_slot_wal_keep_size = '10GB'"
            );
        }
        first = false;
    }
}

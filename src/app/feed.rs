//! From the source into the log, over reconnects.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Fault, chain};
use crate::admin::{Readiness, SourceState};
use crate::log::{Log, LogError, Origin};
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
    pub(super) log: Arc<dyn Log>,
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
        first: Opened,
        publication: &str,
        stop: CancellationToken,
    ) -> Result<(), Fault> {
        let mut backoff = backoff();
        self.resume(&first, publication).await;
        let mut source = first.source;
        self.flowing();
        loop {
            let ended = tokio::select! {
                ended = self.pour(&mut source, &mut backoff) => ended,
                () = stop.cancelled() => {
                    source.acknowledge(*self.log.stored().borrow());
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
                        self.resume(&opened, publication).await;
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
        let (mut stored, mut trouble) = (self.log.stored(), self.log.trouble());
        loop {
            source.acknowledge(*stored.borrow_and_update());
            let event = tokio::select! {
                event = source.next() => match event {
                    Ok(event) => event,
                    Err(error) => return Ended::Source(error),
                },
                Ok(()) = stored.changed() => continue,
                Ok(()) = trouble.changed() => {
                    let reason = trouble.borrow_and_update().clone();
                    match reason {
                        Some(reason) => self.readiness.set(SourceState::Waiting(reason)),
                        None => self.flowing(),
                    }
                    continue;
                }
            };
            backoff.reset();
            match event {
                SourceEvent::Batch(batch) => {
                    self.metrics.changes_read.inc_by(batch.changes.len() as u64);
                    if let Err(error) = self.log.append(batch).await {
                        return Ended::Log(error);
                    }
                }
                SourceEvent::Progress(position) => self.log.pass(position),
            }
        }
    }

    /// Holds what was opened against what the log holds: unless the one goes on where the other
    /// ends, what lay between is lost to whoever is connected, and a new history begins.
    async fn resume(&self, opened: &Opened, publication: &str) {
        let origin = Origin {
            system_identifier: opened.system.system_identifier,
            timeline: opened.system.timeline,
            slot: self.slot.clone(),
            publication: publication.to_owned(),
        };
        let appended = self.log.appended();
        let gap = match self.log.origin() {
            None => {
                self.log.begin(origin, opened.confirmed).await;
                return;
            }
            Some(known) if known != origin => "the changes come from another source now",
            Some(_) if opened.created => "the slot was lost and made anew",
            // PostgreSQL would pass over what lies between without a word.
            Some(_) if opened.confirmed > appended => "the slot is ahead of the log",
            Some(_) if appended > opened.system.insert_lsn => {
                "the log is ahead of the database, which was restored or lost something"
            }
            Some(_) => return,
        };
        warn!(
            gap,
            slot = self.slot,
            log = %appended,
            confirmed = %opened.confirmed,
            server = %opened.system.insert_lsn,
            "a new history begins: clients have to read again"
        );
        self.log.begin(origin, opened.confirmed).await;
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

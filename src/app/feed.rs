//! From the source into the log, over reconnects.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{Fault, chain};
use crate::admin::{Readiness, SourceState};
use crate::log::{Log, LogError, Origin};
use crate::metrics::Metrics;
use crate::pg::Lsn;
use crate::pg::connect::Database;
use crate::pg::refusal::Retry;
use crate::retry::Backoff;
use crate::source::lookups::Reading;
use crate::source::{self, Opened, Source, SourceError, SourceEvent, choose_publication};

/// How long the log may take at the end to store what it has taken: a second relay waits.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often PostgreSQL is asked how far the stream is, while somebody waits for a place in it.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// Carries changes from the source into the log.
pub(super) struct Feed {
    pub(super) database: Database,
    pub(super) slot: String,
    /// The publication of the lookups, which is followed as well where it exists.
    pub(super) lookup_publication: String,
    pub(super) log: Arc<dyn Log>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) readiness: Readiness,
    /// The most WAL that the slot may keep, in bytes; 0 for any amount.
    pub(super) max_retained: u64,
    /// Rung when the slot was seen to keep more.
    pub(super) over: Arc<Notify>,
    /// Once the log has everything up to here, it has all that was ever given out: a process that
    /// ended without order may have given out what it had not stored.
    pub(super) certain_from: AtomicU64,
}

impl Feed {
    /// The second publication, of the lookups.
    fn beside(&self, lookups: &Reading) -> Option<&str> {
        lookups.names().then_some(&*self.lookup_publication)
    }

    /// Opens the source for the first time. What waiting can heal is waited for; the rest ends the
    /// process with its sentence.
    pub(super) async fn open_first(
        &self,
        configured: Option<&str>,
        lookups: &Reading,
    ) -> Result<(Opened, String), Fault> {
        let mut backoff = backoff();
        loop {
            let attempt = async {
                let client = self.database.connect("rowcast").await?;
                let publication = choose_publication(&client, configured).await?;
                let opened = Source::open_with(
                    &self.database,
                    &self.slot,
                    &publication,
                    self.beside(lookups),
                )
                .await?;
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
        mut lookups: Reading,
        stop: CancellationToken,
    ) -> Result<(), Fault> {
        let mut pace = Pace {
            backoff: backoff(),
            stuck: Stuck::default(),
        };
        let mut next = Some(first);
        loop {
            let mut opened = match next.take() {
                Some(opened) => opened,
                None => tokio::select! {
                    opened = self.open_again(publication, &lookups, &mut pace.backoff) => opened,
                    () = stop.cancelled() => {
                        self.end(None).await;
                        return Ok(());
                    }
                    () = self.over_the_limit() => {
                        self.give_up(&mut pace.backoff, &stop).await;
                        continue;
                    }
                },
            };
            let ended = tokio::select! {
                ended = self.pour(&mut opened, publication, &mut lookups, &mut pace) => ended,
                ended = self.watch_trouble() => ended,
                () = stop.cancelled() => {
                    self.log.abandon();
                    self.end(Some(opened.source)).await;
                    return Ok(());
                }
                () = self.over_the_limit() => Ended::OverTheLimit,
            };
            let beside = opened.beside;
            if matches!(ended, Ended::Wished) {
                debug!("the stream begins anew, with the lookups' publication");
                // So that the slot is free, and stands where all is stored.
                opened.source.acknowledge(*self.log.stored().borrow());
                opened.source.close().await;
                debug!("the slot is free");
            } else {
                drop(opened);
            }
            self.log.abandon();
            match ended {
                Ended::Wished => {}
                Ended::Source(error) if beside && error.stuck().is_some() => {
                    let reason = chain(&error);
                    warn!(
                        reason,
                        publication = self.lookup_publication,
                        "the stream cannot go on with the lookups' publication: it goes on without"
                    );
                    lookups.leave_out();
                }
                Ended::Source(error) => {
                    if self.cure(&mut pace.stuck, &error).await {
                        pace.backoff.reset();
                    }
                    tokio::select! {
                        () = self.wait(&mut pace.backoff, &error) => {}
                        () = stop.cancelled() => {
                            self.end(None).await;
                            return Ok(());
                        }
                    }
                }
                Ended::Log(error) => {
                    warn!(%error, "the log does not take changes");
                    return Err(Fault::Ended("log"));
                }
                Ended::OverTheLimit => self.give_up(&mut pace.backoff, &stop).await,
            }
        }
    }

    /// Opens the source after it has been lost. Even what does not heal by itself may be mended by
    /// somebody while we wait.
    async fn open_again(
        &self,
        publication: &str,
        lookups: &Reading,
        backoff: &mut Backoff,
    ) -> Opened {
        loop {
            let beside = self.beside(lookups);
            match Source::open_with(&self.database, &self.slot, publication, beside).await {
                Ok(opened) => {
                    info!("streaming changes again");
                    return opened;
                }
                Err(error) => self.wait(backoff, &error).await,
            }
        }
    }

    /// Lets go of the log and of the slot, in this order, so that all that was taken is
    /// acknowledged and whoever waits for the slot finds the log's directory free as well.
    async fn end(&self, source: Option<Source>) {
        let closing = tokio::time::timeout(CLOSE_TIMEOUT, self.log.close());
        if closing.await.is_err() {
            warn!("the disk is slow: what it has not taken is sent again at the next start");
        }
        if let Some(mut source) = source {
            source.acknowledge(*self.log.stored().borrow());
            source.close().await;
        }
    }

    async fn pour(
        &self,
        opened: &mut Opened,
        publication: &str,
        lookups: &mut Reading,
        pace: &mut Pace,
    ) -> Ended {
        lookups.opened(opened.beside);
        self.resume(opened, publication).await;
        self.flowing();
        let source = &mut opened.source;
        let mut stored = self.log.stored();
        let mut asked: Option<Instant> = None;
        loop {
            let safe = *stored.borrow_and_update();
            source.acknowledge(safe);
            if lookups.is_due(safe) {
                return Ended::Wished;
            }
            let awaited = lookups.is_awaited();
            if awaited && asked.is_none_or(|at| at.elapsed() >= ASK_EVERY) {
                source.ask();
                asked = Some(Instant::now());
            }
            let event = tokio::select! {
                event = source.next() => match event {
                    Ok(event) => event,
                    Err(error) => return Ended::Source(error),
                },
                Ok(()) = stored.changed() => continue,
                () = lookups.wished() => continue,
                () = tokio::time::sleep(ASK_EVERY), if awaited => continue,
            };
            match event {
                SourceEvent::Batch(batch) => {
                    self.metrics.changes_read.inc_by(batch.changes.len() as u64);
                    let last = batch.last;
                    if let Err(error) = self.log.append(batch).await {
                        return Ended::Log(error);
                    }
                    if last && self.log.committed() > pace.stuck.at {
                        pace.backoff.reset();
                        pace.stuck = Stuck::default();
                    }
                }
                SourceEvent::Progress(position) => {
                    self.log.pass(position, lookups.is_awaited());
                    // Even a stream that is stuck says up to where.
                    if pace.stuck.attempts == 0 {
                        pace.backoff.reset();
                    }
                }
            }
        }
    }

    /// Says what the log suffers from while changes are poured into it; it may be what they wait
    /// for.
    async fn watch_trouble(&self) -> Ended {
        let mut trouble = self.log.trouble();
        loop {
            self.flowing();
            if trouble.changed().await.is_err() {
                return Ended::Log(LogError::Stopped);
            }
        }
    }

    /// Where the stream ends again and again at one position, nothing heals by itself: the slot is
    /// moved past everything that is written by now, or, where even that does not help, made anew.
    /// All before that position has been taken, and what lies behind it is lost to everybody, who
    /// are told: a slot that is ahead of the log begins a new history, as does a new slot. Returns
    /// whether something was done.
    async fn cure(&self, stuck: &mut Stuck, error: &SourceError) -> bool {
        let Some(attempts) = error.stuck() else {
            return false;
        };
        // Only a transaction is proof that it goes on; one that was taken has reset this.
        let at = self.log.committed();
        stuck.at = at;
        stuck.attempts += 1;
        // What does not help is not repeated at once, as everybody has to read again each time.
        if stuck.attempts < attempts << stuck.rounds.min(8) {
            return false;
        }
        let attempts = std::mem::take(&mut stuck.attempts);
        stuck.rounds += 1;
        let reason = chain(error);
        error!(
            slot = self.slot,
            behind = %at,
            attempts,
            reason,
            "the stream ends again and again at one position: what comes next is given up, and \
             clients have to read again"
        );
        self.metrics.slots_given_up.inc();
        if stuck.rounds % 2 == 1 {
            match source::pass_over(&self.database, &self.slot).await {
                Ok(end) if end > self.log.appended() => {
                    warn!(slot = self.slot, to = %end, "the slot was moved on");
                    return true;
                }
                Ok(_) => {}
                Err(error) => warn!(
                    slot = self.slot,
                    reason = chain(&error),
                    "the slot cannot be moved on"
                ),
            }
        }
        self.drop_slot().await.is_ok()
    }

    /// Returns once the slot keeps more WAL than it may.
    async fn over_the_limit(&self) {
        loop {
            self.over.notified().await;
            // The bell may be from before the slot was made anew.
            let kept = async {
                let client = self.database.connect("rowcast lag").await?;
                source::retained(&client, &self.slot).await
            };
            if let Ok(Some(bytes)) = kept.await
                && bytes > self.max_retained
            {
                error!(
                    slot = self.slot,
                    kept_bytes = bytes,
                    max_retained_wal = self.max_retained,
                    "the slot keeps more WAL than max_retained_wal: it is given up on purpose, \
                     so that the database does not run out of space, and clients have to read \
                     again"
                );
                return;
            }
        }
    }

    /// Drops the slot on purpose, whatever it takes; it is made anew when it is opened next.
    async fn give_up(&self, backoff: &mut Backoff, stop: &CancellationToken) {
        self.metrics.slots_given_up.inc();
        self.metrics.source_up.set(0);
        self.readiness.set(SourceState::Waiting(
            "the slot kept more WAL than max_retained_wal and is made anew".to_owned(),
        ));
        while let Err(error) = self.drop_slot().await {
            if error.slot_is_taken() {
                // Another relay has it by now, and watches it.
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.after_failure()) => {}
                () = stop.cancelled() => return,
            }
        }
        backoff.reset();
    }

    async fn drop_slot(&self) -> Result<(), SourceError> {
        let dropped = source::give_up(&self.database, &self.slot).await;
        match &dropped {
            Ok(()) => warn!(slot = self.slot, "the slot was dropped"),
            Err(error) => {
                let reason = chain(error);
                warn!(slot = self.slot, reason, "the slot cannot be dropped");
            }
        }
        dropped
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
        let Some(known) = self.log.origin() else {
            self.certain_from.store(0, Ordering::Relaxed);
            self.log.begin(origin, opened.confirmed).await;
            return;
        };
        let appended = self.log.appended();
        let same = Origin {
            timeline: origin.timeline,
            ..known.clone()
        };
        // Where the server's history left the timeline that the log knows.
        let left = opened
            .system
            .switches
            .iter()
            .find(|switch| switch.timeline == known.timeline);
        let gap = if same != origin {
            "the changes come from another source now"
        } else if opened.created {
            "the slot was lost and made anew"
        } else if known.timeline != origin.timeline {
            match left {
                // What the log took is part of the server's history, and nothing of it lies
                // behind; positions behind mean something else now.
                Some(_) if appended.0 < self.certain_from.load(Ordering::Relaxed) => {
                    "a standby was promoted after this relay had ended without order: whether it \
                     has all that was given out is not known"
                }
                Some(left) if self.log.committed() <= left.lsn => {
                    let from = appended.min(left.lsn);
                    if opened.confirmed <= from {
                        info!(
                            from = known.timeline,
                            to = origin.timeline,
                            at = %left.lsn,
                            "a standby was promoted that has everything: the log goes on"
                        );
                        self.log.follow(origin, from).await;
                        return;
                    }
                    "the slot is ahead of the log"
                }
                Some(_) => "a standby was promoted that has not had all changes",
                None => "the server's timeline does not come from the log's",
            }
        } else if opened.confirmed > appended {
            // PostgreSQL would pass over what lies between without a word.
            "the slot is ahead of the log"
        } else if appended > opened.system.insert_lsn {
            "the log is ahead of the database, which was restored or lost something"
        } else {
            // What was given out and not stored is on its way again.
            let written = opened.system.insert_lsn;
            self.certain_from.fetch_min(written.0, Ordering::Relaxed);
            return;
        };
        warn!(
            gap,
            slot = self.slot,
            log = %appended,
            confirmed = %opened.confirmed,
            server = %opened.system.insert_lsn,
            "a new history begins: clients have to read again"
        );
        self.metrics.histories.inc();
        self.certain_from.store(0, Ordering::Relaxed);
        self.log.begin(origin, opened.confirmed).await;
    }

    fn flowing(&self) {
        self.metrics.source_up.set(1);
        let trouble = self.log.trouble().borrow().clone();
        self.metrics.log_up.set(i64::from(trouble.is_none()));
        self.readiness.set(match trouble {
            None => SourceState::Streaming,
            Some(reason) => SourceState::Waiting(format!("the log cannot be written: {reason}")),
        });
    }

    /// Waits after a failure. A slot that another relay holds is waited for by looking often:
    /// clients wait for whoever takes over.
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
        if error.slot_is_taken() && source::until_free(&self.database, &self.slot).await.is_ok() {
            backoff.reset();
            return;
        }
        tokio::time::sleep(wait).await;
    }
}

enum Ended {
    Source(SourceError),
    Log(LogError),
    OverTheLimit,
    /// It is to begin anew with the lookups' publication.
    Wished,
}

/// How fast to try again.
struct Pace {
    backoff: Backoff,
    stuck: Stuck,
}

/// Where the stream does not get on.
#[derive(Default)]
struct Stuck {
    /// The last transaction that came before.
    at: Lsn,
    /// Since the last cure.
    attempts: u32,
    /// Cures that did not help.
    rounds: u32,
}

const fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
}

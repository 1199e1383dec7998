//! The relay without its sockets: from the source to the router.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::feed::Feed;
use super::lag::Lag;
use super::{Fault, chain};
use crate::admin::{Readiness, SourceState};
use crate::config::Config;
use crate::log::Log;
use crate::log::disk::{self, DiskLog, OpenError};
use crate::log::memory::{Bounds, MemoryLog};
use crate::lookup::keep::{self, Purpose, keep};
use crate::metrics::Metrics;
use crate::pg::connect::Database;
use crate::pg::refusal::Retry;
use crate::policy::ask::asker;
use crate::policy::check::checker::checker;
use crate::policy::generated::Computer;
use crate::policy::reader::CatalogReader;
use crate::policy::watch::{CatalogWatch, watch};
use crate::retry::Backoff;
use crate::router::{Foundation, Router, router};
use crate::snapshot::Snapshots;
use crate::source::lookups;

/// What a task that ended says: its name, or what it died of.
pub(super) type Ended = Result<&'static str, Fault>;

const SOURCE: &str = "source";
const ROUTER: &str = "router";

/// The file beside the log that says since when the rules hold.
const ACCESS: &str = "access.json";

/// The file beside the log that holds the mirrors of lookups.
const LOOKUPS: &str = "lookups.checkpoint";

/// The file beside the log that holds what is kept of old rows.
const OLD_ROWS: &str = "old_rows.checkpoint";

/// The file beside the log that says where lookups changed last.
const MEMBERSHIPS: &str = "memberships.json";

/// How often the mirrors of lookups are written, where they have changed.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);

/// Everything between PostgreSQL and the sessions, running.
#[derive(Debug)]
pub struct Core {
    /// Where sessions subscribe.
    pub router: Router,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Whether changes flow.
    pub readiness: Readiness,
    pub(super) tasks: JoinSet<Ended>,
    stop_source: CancellationToken,
    stop_router: CancellationToken,
}

impl Core {
    /// Connects to PostgreSQL, waiting for what waiting can heal, and starts. `readiness` and
    /// `metrics` may be looked at before this returns.
    ///
    /// # Errors
    /// [`Fault::Config`] and [`Fault::Database`].
    pub async fn start(
        config: &Config,
        metrics: Arc<Metrics>,
        readiness: Readiness,
    ) -> Result<Self, Fault> {
        let mut tasks = JoinSet::new();
        let (stop_source, stop_router) = (CancellationToken::new(), CancellationToken::new());
        let database = Database::parse(config.database_url.expose())
            .map_err(|error| Fault::Config(error.to_string()))?;
        let log = open_log(config, &readiness).await?;
        let checkpoint = config.data.as_ref().map(|data| data.join(LOOKUPS));
        let (reading, stream) = lookups::coverage(checkpoint.clone());
        let feed = Feed {
            database: database.clone(),
            slot: config.slot.clone(),
            lookup_publication: config.lookup_publication(),
            certain_from: AtomicU64::new(if log.was_closed() { 0 } else { u64::MAX }),
            log,
            metrics: Arc::clone(&metrics),
            readiness: readiness.clone(),
            max_retained: config.max_retained_wal,
            over: Arc::default(),
        };
        let (opened, publication) = feed
            .open_first(config.publication.as_deref(), &reading)
            .await?;
        info!(
            slot = config.slot,
            publication,
            server_version = opened.system.server_version_num,
            "streaming changes"
        );

        let first = catalog(config, &database, &publication, &metrics, &mut tasks);
        let catalog = Box::pin(first).await?;
        readiness.tell_of(catalog.delay());
        let (asker, answering) = asker(database.clone(), Arc::clone(&metrics), config.ask_timeout);
        tasks.spawn(async move {
            answering.await;
            Ok("asker")
        });
        let mirrors = || keep::Foundation {
            database: database.clone(),
            log: Arc::clone(&feed.log),
            stream: stream.clone(),
            metrics: Arc::clone(&metrics),
        };
        let (keeping, clerk) = keep(
            mirrors(),
            keep::Settings {
                purpose: Purpose::Lookups,
                publication: publication.clone(),
                lookup_publication: config.lookup_publication(),
                max_bytes: config.max_lookup_bytes,
                look_every: config.catalog_interval,
                checkpoint,
                checkpoint_every: CHECKPOINT_EVERY,
            },
            feed.log.range().end,
        );
        tasks.spawn(async move {
            clerk.await;
            Ok("lookups")
        });
        let old_rows = (!config.old_rows.0.is_empty()).then(|| {
            let (keeping, clerk) = keep(
                mirrors(),
                keep::Settings {
                    purpose: Purpose::OldRows,
                    publication: publication.clone(),
                    lookup_publication: config.lookup_publication(),
                    max_bytes: config.max_old_row_bytes,
                    look_every: config.catalog_interval,
                    checkpoint: config.data.as_ref().map(|data| data.join(OLD_ROWS)),
                    checkpoint_every: CHECKPOINT_EVERY,
                },
                feed.log.range().end,
            );
            tasks.spawn(async move {
                clerk.await;
                Ok("old rows")
            });
            (config.old_rows.clone(), keeping)
        });
        let (router, fanout) = router(
            Foundation {
                log: Arc::clone(&feed.log),
                catalog,
                asker,
                computer: Computer::new(database.clone(), config.ask_timeout),
                metrics: Arc::clone(&metrics),
                snapshots: Snapshots::new(
                    database.clone(),
                    Arc::clone(&feed.log),
                    Arc::clone(&metrics),
                    crate::snapshot::Settings {
                        max_record_bytes: config.max_record_bytes,
                        // Several fit into an outbox, among changes.
                        page_bytes: (config.outbox_max_bytes / 8).min(128 << 10),
                        ..config.snapshot
                    },
                ),
                history: config.data.as_ref().map(|data| data.join(ACCESS)),
                keeping,
                memberships: config.data.as_ref().map(|data| data.join(MEMBERSHIPS)),
                old_rows,
            },
            crate::router::Settings {
                require: config.require,
                delete_without_identity: config.delete_without_identity,
                leave: config.leave,
                ask_timeout: config.ask_timeout,
                max_record_bytes: config.max_record_bytes,
                max_asked_filters: config.max_asked_filters,
            },
        );
        let routing = stop_router.clone();
        tasks.spawn(async move {
            fanout.run(routing).await;
            Ok(ROUTER)
        });
        let lag = Lag {
            database,
            slot: config.slot.clone(),
            metrics: Arc::clone(&metrics),
            max_retained: config.max_retained_wal,
            over: Arc::clone(&feed.over),
        };
        tasks.spawn(lag.watch());
        let feeding = stop_source.clone();
        tasks.spawn(async move {
            feed.fill(opened, &publication, reading, feeding).await?;
            Ok(SOURCE)
        });
        Ok(Self {
            router,
            metrics,
            readiness,
            tasks,
            stop_source,
            stop_router,
        })
    }

    /// Waits until a part ends that must not end, and says which, or of what. Cancel safe.
    pub async fn broken(&mut self) -> Fault {
        match self.tasks.join_next().await {
            Some(Ok(Ok(task))) => Fault::Ended(task),
            Some(Ok(Err(fault))) => fault,
            Some(Err(_panicked)) => Fault::Ended("panicked"),
            None => Fault::Ended("everything"),
        }
    }

    /// Stops reading from PostgreSQL: what is in the log is acknowledged and the slot is released.
    pub async fn stop_source(&mut self) {
        self.readiness.set(SourceState::Draining);
        self.stop_source.cancel();
        self.wait_for(SOURCE).await;
    }

    /// Ends everything else.
    pub async fn stop(mut self) {
        self.stop_source.cancel();
        self.stop_router.cancel();
        self.wait_for(ROUTER).await;
        self.tasks.shutdown().await;
    }

    async fn wait_for(&mut self, name: &'static str) {
        const LIMIT: Duration = Duration::from_secs(2);
        let ended = async {
            while let Some(ended) = self.tasks.join_next().await {
                if matches!(ended, Ok(Ok(task)) if task == name) {
                    break;
                }
            }
        };
        if tokio::time::timeout(LIMIT, ended).await.is_err() {
            warn!(task = name, "did not end in time");
        }
    }
}

/// The log that the settings ask for. A directory that another relay uses is waited for: it is about
/// to end, or this one stands by.
async fn open_log(config: &Config, readiness: &Readiness) -> Result<Arc<dyn Log>, Fault> {
    const LOOK_EVERY: Duration = Duration::from_millis(100);
    let Some(directory) = &config.data else {
        return Ok(Arc::new(MemoryLog::new(Bounds {
            changes: config.log_max_changes,
            bytes: config.log_max_bytes,
        })));
    };
    let options = disk::Options {
        directory: directory.clone(),
        keep_for: config.log_retention,
        keep_bytes: config.log_retention_bytes,
        segment_bytes: (config.log_retention_bytes / 16).clamp(1 << 20, 64 << 20),
        recent_bytes: config.log_max_bytes,
    };
    let mut waiting = false;
    loop {
        let options = options.clone();
        let opened = tokio::task::spawn_blocking(move || DiskLog::open(options)).await;
        match opened {
            Ok(Ok(log)) => {
                let range = log.range();
                info!(
                    directory = %std::path::absolute(directory).unwrap_or(directory.clone()).display(),
                    from = %range.start,
                    to = %range.end,
                    "the log is open"
                );
                return Ok(Arc::new(log));
            }
            Ok(Err(error @ OpenError::Locked(_))) => {
                if !waiting {
                    let reason = error.to_string();
                    warn!(reason, "waiting for the log's directory");
                    readiness.set(SourceState::Waiting(reason));
                    waiting = true;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Ok(Err(error @ OpenError::File { .. })) => {
                return Err(Fault::Config(format!(
                    "the log of changes cannot be kept in {}: {}. Set ROWCAST_DATA to a directory \
                     that this user may write to, or to memory: then clients cannot be sent what \
                     they miss while the relay does not run",
                    directory.display(),
                    chain(&error)
                )));
            }
            Ok(Err(error)) => return Err(Fault::Config(chain(&error))),
            Err(_panicked) => return Err(Fault::Ended("log")),
        }
    }
}

async fn catalog(
    config: &Config,
    database: &Database,
    publication: &str,
    metrics: &Arc<Metrics>,
    tasks: &mut JoinSet<Ended>,
) -> Result<CatalogWatch, Fault> {
    // The roles that every Supabase project has; others come with the tokens that name them.
    let mut roles = vec![
        "anon".to_owned(),
        "authenticated".to_owned(),
        "service_role".to_owned(),
    ];
    roles.push(config.default_role.clone());
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let (catalog, reading) = loop {
        let followed = (publication.to_owned(), config.slot.clone());
        let reader = CatalogReader::new(database.clone(), followed, roles.clone())
            .with_rules(config.rules.clone());
        let checks = config.policy_check.then(|| {
            let (checks, checking) = checker(database.clone(), Arc::clone(metrics));
            tokio::spawn(checking);
            checks
        });
        let (metrics, interval) = (Arc::clone(metrics), config.catalog_interval);
        match watch(reader, metrics, interval, checks).await {
            Ok(watching) => break watching,
            Err(error) if error.retry() == Retry::Soon => {
                let reason = chain(&error);
                warn!(reason, "cannot read the catalog yet");
                tokio::time::sleep(backoff.after_failure()).await;
            }
            Err(error) => return Err(Fault::Database(chain(&error))),
        }
    };
    tasks.spawn(async move {
        reading.await;
        Ok("catalog")
    });
    Ok(catalog)
}

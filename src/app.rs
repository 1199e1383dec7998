//! The only wiring: what the daemon is made of, what runs, and in which order it stops.
//!
//! Shutdown follows the path of a change: the source first, then the router, then the sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admin::{self, Readiness, SourceState};
use crate::auth::Authenticator;
use crate::config::Config;
use crate::log::memory::{Bounds, MemoryLog};
use crate::log::{Log, LogError};
use crate::metrics::Metrics;
use crate::pg::connect::Database;
use crate::pg::refusal::Retry;
use crate::policy::ask::asker;
use crate::policy::reader::CatalogReader;
use crate::policy::watch::{CatalogWatch, watch};
use crate::retry::Backoff;
use crate::router::{Foundation, router};
use crate::source::{Opened, Source, SourceError, SourceEvent, choose_publication};
use crate::{auth, session, transport};

/// How often the slot's lag is measured.
const LAG_INTERVAL: Duration = Duration::from_secs(10);

/// Why the daemon ended although nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A setting cannot work.
    #[error("{0}")]
    Config(String),
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({key}): {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The setting that holds it.
        key: &'static str,
        /// Why.
        error: std::io::Error,
    },
    /// PostgreSQL is not as it has to be, and waiting does not help.
    #[error("{0}")]
    Database(String),
    /// A task that runs for as long as the process does has ended.
    #[error("the {0} task ended by itself")]
    Ended(&'static str),
}

/// Where a running daemon is reached.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Clients.
    pub public: SocketAddr,
    /// Operators.
    pub admin: SocketAddr,
}

/// Runs the relay until `shutdown` completes or something that cannot heal happens. `extra` is
/// served beside the clients' own paths; `ready` is called once changes flow.
///
/// # Errors
/// [`Fault`].
pub async fn run(
    config: Config,
    extra: axum::Router,
    ready: impl FnOnce(Addresses) + Send,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Fault> {
    let stop = Stop::default();
    let mut tasks = JoinSet::new();
    tokio::pin!(shutdown);
    let started = tokio::select! {
        started = start(&config, extra, &stop, &mut tasks) => started?,
        () = &mut shutdown => return Ok(()),
    };
    ready(started.addresses);
    let outcome = tokio::select! {
        () = &mut shutdown => Ok(()),
        Some(ended) = tasks.join_next() => Err(match ended {
            Ok(Ok(task)) => Fault::Ended(task),
            Ok(Err(fault)) => fault,
            Err(_panicked) => Fault::Ended("panicked"),
        }),
    };
    if let Err(fault) = &outcome {
        tracing::error!(%fault, "shutting down");
    }
    started.readiness.set(SourceState::Draining);
    stop.in_order(&mut tasks, config.drain).await;
    outcome
}

/// The order in which things stop.
#[derive(Default)]
struct Stop {
    source: CancellationToken,
    router: CancellationToken,
    sockets: CancellationToken,
    rest: CancellationToken,
}

impl Stop {
    /// Stops the source (it acknowledges and leaves the slot), lets the router hand out what the
    /// log still holds, then the sockets take leave. Each step has a share of the time.
    async fn in_order(&self, tasks: &mut JoinSet<Result<&'static str, Fault>>, drain: Duration) {
        info!("shutting down");
        self.source.cancel();
        wait_for(tasks, SOURCE, Duration::from_secs(2)).await;
        self.sockets.cancel();
        wait_for(tasks, SOCKETS, drain + Duration::from_secs(2)).await;
        self.router.cancel();
        self.rest.cancel();
        wait_for(tasks, ROUTER, Duration::from_secs(2)).await;
        tasks.shutdown().await;
        info!("stopped");
    }
}

const SOURCE: &str = "source";
const ROUTER: &str = "router";
const SOCKETS: &str = "listener";

async fn wait_for(
    tasks: &mut JoinSet<Result<&'static str, Fault>>,
    name: &'static str,
    limit: Duration,
) {
    let ended = async {
        while let Some(ended) = tasks.join_next().await {
            if matches!(ended, Ok(Ok(task)) if task == name) {
                break;
            }
        }
    };
    if tokio::time::timeout(limit, ended).await.is_err() {
        warn!(task = name, "did not end in time");
    }
}

struct Started {
    addresses: Addresses,
    readiness: Readiness,
}

/// Binds first, then connects, then runs: a port that is taken is known before anything else.
async fn start(
    config: &Config,
    extra: axum::Router,
    stop: &Stop,
    tasks: &mut JoinSet<Result<&'static str, Fault>>,
) -> Result<Started, Fault> {
    let metrics = Arc::new(Metrics::new());
    let readiness = Readiness::default();
    let public = bind(config.listen, "ROWCAST_LISTEN").await?;
    let operators = bind(config.admin_listen, "ROWCAST_ADMIN_LISTEN").await?;
    let address = |listener: &TcpListener, fallback| listener.local_addr().unwrap_or(fallback);
    let addresses = Addresses {
        public: address(&public, config.listen),
        admin: address(&operators, config.admin_listen),
    };
    let desk = admin::routes(readiness.clone(), Arc::clone(&metrics));
    let rest = stop.rest.clone();
    tasks.spawn(async move {
        let served = axum::serve(operators, desk).with_graceful_shutdown(rest.cancelled_owned());
        served
            .await
            .map(|()| "admin")
            .map_err(|_| Fault::Ended("admin"))
    });

    let authenticator = Arc::new(authenticator(config)?);
    let keys = Arc::clone(&authenticator);
    let rest = stop.rest.clone();
    tasks.spawn(async move {
        keys.keep_keys().await;
        // Without an issuer there is nothing to keep.
        rest.cancelled().await;
        Ok("keys")
    });

    let database = Database::parse(config.database_url.expose())
        .map_err(|error| Fault::Config(error.to_string()))?;
    let feed = Feed {
        database: database.clone(),
        slot: config.slot.clone(),
        log: Arc::new(MemoryLog::new(Bounds {
            changes: config.log_max_changes,
            bytes: config.log_max_bytes,
        })),
        metrics: Arc::clone(&metrics),
        readiness: readiness.clone(),
    };
    let (opened, publication) = feed.open_first(config.publication.as_deref()).await?;
    info!(
        slot = config.slot,
        publication,
        server_version = opened.system.server_version_num,
        "streaming changes"
    );

    let catalog = catalog(config, &database, &publication, &metrics, tasks).await?;
    let (asker, answering) = asker(database.clone(), Arc::clone(&metrics), config.ask_timeout);
    tasks.spawn(async move {
        answering.await;
        Ok("asker")
    });
    let (router, fanout) = router(
        Foundation {
            log: Arc::clone(&feed.log) as Arc<dyn Log>,
            catalog,
            asker,
            metrics: Arc::clone(&metrics),
        },
        crate::router::Settings {
            require_rls: config.require_rls,
            delete_without_identity: config.delete_without_identity,
            ask_timeout: config.ask_timeout,
        },
    );
    let routing = stop.router.clone();
    tasks.spawn(async move {
        fanout.run(routing).await;
        Ok(ROUTER)
    });

    tasks.spawn(watch_lag(
        database,
        config.slot.clone(),
        Arc::clone(&metrics),
    ));
    let feeding = stop.source.clone();
    tasks.spawn(async move {
        feed.fill(opened.source, &publication, feeding).await?;
        Ok(SOURCE)
    });

    let front = transport::Front::new(router, authenticator, metrics, front_settings(config));
    let routes = transport::routes(&front).merge(extra);
    let sockets = stop.sockets.clone();
    tasks.spawn(async move {
        let served = transport::serve(public, routes, front, sockets).await;
        served.map(|()| SOCKETS).map_err(|_| Fault::Ended(SOCKETS))
    });
    Ok(Started {
        addresses,
        readiness,
    })
}

async fn bind(address: SocketAddr, key: &'static str) -> Result<TcpListener, Fault> {
    TcpListener::bind(address)
        .await
        .map_err(|error| Fault::Listen {
            address,
            key,
            error,
        })
}

fn authenticator(config: &Config) -> Result<Authenticator, Fault> {
    Authenticator::new(auth::Settings {
        jwt_secret: config
            .jwt_secret
            .as_ref()
            .map(|secret| secret.expose().to_owned()),
        jwks_url: config.jwks_url.clone(),
        default_role: config.default_role.clone(),
        role_claim: config.role_claim.clone(),
        api_keys: config.api_keys.clone(),
        ..auth::Settings::default()
    })
    .map_err(|error| Fault::Config(error.to_string()))
}

fn front_settings(config: &Config) -> transport::Settings {
    transport::Settings {
        limits: session::Limits {
            channels: config.max_channels,
            joins_per_second: config.max_joins_per_second,
            ..session::Limits::default()
        },
        max_connections: config.max_connections,
        max_frame_bytes: config.max_frame_bytes,
        outbox_max_events: config.outbox_max_events,
        outbox_max_bytes: config.outbox_max_bytes,
        drain: config.drain,
        ..transport::Settings::default()
    }
}

async fn catalog(
    config: &Config,
    database: &Database,
    publication: &str,
    metrics: &Arc<Metrics>,
    tasks: &mut JoinSet<Result<&'static str, Fault>>,
) -> Result<CatalogWatch, Fault> {
    // The roles that every Supabase project has; others come with the tokens that name them.
    let mut roles = vec![
        "anon".to_owned(),
        "authenticated".to_owned(),
        "service_role".to_owned(),
    ];
    roles.push(config.default_role.clone());
    let reader = CatalogReader::new(database.clone(), publication.to_owned(), roles);
    let (catalog, reading) = watch(reader, Arc::clone(metrics), config.catalog_interval)
        .await
        .map_err(|error| Fault::Database(chain(&error)))?;
    tasks.spawn(async move {
        reading.await;
        Ok("catalog")
    });
    Ok(catalog)
}

/// Carries changes from the source into the log.
struct Feed {
    database: Database,
    slot: String,
    log: Arc<MemoryLog>,
    metrics: Arc<Metrics>,
    readiness: Readiness,
}

impl Feed {
    /// Opens the source for the first time. What waiting can heal is waited for; the rest ends the
    /// process with its sentence.
    async fn open_first(&self, configured: Option<&str>) -> Result<(Opened, String), Fault> {
        let mut backoff = backoff();
        loop {
            let attempt = async {
                let client = self.database.connect("rowcast").await?;
                let publication = choose_publication(&client, configured).await?;
                let opened = Source::open(&self.database, &self.slot, &publication).await?;
                Ok::<_, SourceError>((opened, publication))
            };
            match attempt.await {
                Ok(opened) => {
                    self.flowing();
                    return Ok(opened);
                }
                Err(error) if error.retry() == Retry::Never => {
                    return Err(Fault::Database(chain(&error)));
                }
                Err(error) => self.wait(&mut backoff, &error).await,
            }
        }
    }

    /// Fills the log until `stop`, over reconnects.
    async fn fill(
        &self,
        first: Source,
        publication: &str,
        stop: CancellationToken,
    ) -> Result<(), Fault> {
        let mut source = first;
        let mut backoff = backoff();
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
            self.wait(&mut backoff, &error).await;
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
async fn watch_lag(
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

/// An error with what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

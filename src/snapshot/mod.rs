//! The rows that a client may see, read for it under its own role and claims before its changes
//! begin.
//!
//! All that a channel wants is read in one read-only transaction that sees one snapshot, page by
//! page as the client takes it. What the snapshot does not show is in the log: [`Taken`] says from
//! where on, and which of the transactions there are to be passed over because their rows were
//! among those that were read. PostgreSQL itself applies the policies; nothing is decided here.

mod query;

mod reader;

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use crate::auth::Principal;
use crate::log::horizon::Horizon;
use crate::log::{Cursor, Log};
use crate::metrics::Metrics;
use crate::pg::Lsn;
use crate::pg::connect::Database;
use crate::pg::snapshot::Snapshot;
use crate::retry::Backoff;

pub use query::Query;
use reader::{Session, Trouble};

/// Channels that may wait for a session; past this they are told to try again.
const WAITING: usize = 4096;

/// What snapshots may cost.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Sessions with PostgreSQL.
    pub sessions: usize,
    /// Rows of a binding that does not say how many.
    pub default_rows: u64,
    /// The most rows of a binding.
    pub max_rows: u64,
    /// The most JSON of a channel, in bytes.
    pub max_bytes: usize,
    /// How long a channel may take once it has a session, and half of how long it may wait for one.
    pub timeout: Duration,
    /// A row that is larger goes out without its large values, in bytes.
    pub max_record_bytes: usize,
    /// A page that has this much JSON is sent, in bytes.
    pub page_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sessions: 4,
            default_rows: 1_000,
            max_rows: 10_000,
            max_bytes: 16 << 20,
            timeout: Duration::from_secs(30),
            max_record_bytes: 1 << 20,
            page_bytes: 128 << 10,
        }
    }
}

/// What is to be read for a channel.
#[derive(Debug)]
pub struct Request {
    /// Who reads.
    pub principal: Arc<Principal>,
    /// The bindings by their ids, and what each wants to have read.
    pub queries: Vec<(u32, Arc<Query>)>,
}

/// Some of the rows of a binding.
#[derive(Clone, PartialEq, Eq)]
pub struct Page {
    /// The binding.
    pub binding: u32,
    /// The table's schema.
    pub schema: Arc<str>,
    /// The table's name.
    pub table: Arc<str>,
    /// Counts its pages from 0. With 0 whatever came before is of no use any more.
    pub number: u32,
    /// A JSON array of rows, each as changes have it in `record`.
    pub rows: Bytes,
    /// A JSON array of what is wrong with rows, by their places in `rows`; empty for nothing.
    pub errors: Bytes,
    /// Whether it is the binding's last.
    pub last: bool,
    /// Whether there are rows that the limit left out. Known on the last page.
    pub more: bool,
    /// Everything that lies before this place is in the snapshot.
    pub cursor: Cursor,
}

impl Page {
    /// How much JSON it holds, in bytes.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.rows.len() + self.errors.len()
    }
}

/// Row values are user data and must not reach a log.
impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page")
            .field("binding", &self.binding)
            .field("number", &self.number)
            .field("bytes", &self.size())
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

/// A snapshot that was read to its end.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The oldest change that it may not show, or the end of the log.
    pub from: Cursor,
    /// What it shows.
    pub snapshot: Arc<Snapshot>,
}

/// Why a snapshot was not read to its end. The `Display` text is for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Whoever asked is gone.
    #[error("nobody waits for the snapshot any more")]
    Abandoned,
    /// Too many want one, or PostgreSQL cannot be reached.
    #[error("no snapshot could be taken in time; try again")]
    Busy,
    /// The client did not take its pages, or PostgreSQL did not give the rows.
    #[error("the snapshot was not read within {} s (snapshot_timeout); ask for fewer rows", .0.as_secs())]
    Slow(Duration),
    /// There is more of it than may be.
    #[error("the snapshot is larger than {0} bytes (snapshot_max_bytes); ask for fewer rows")]
    TooLarge(usize),
    /// PostgreSQL does not give it.
    #[error("PostgreSQL refused the snapshot: {0}")]
    Refused(String),
    /// The table changed again and again while it was to be read.
    #[error("the table is being changed; try again")]
    Changing,
    /// The log does not reach back to what the snapshot does not show.
    #[error("the changes behind the snapshot are trimmed")]
    Trimmed,
}

/// Reads snapshots; cheap to clone.
#[derive(Clone)]
pub struct Snapshots(Arc<Inner>);

struct Inner {
    database: Database,
    log: Arc<dyn Log>,
    metrics: Arc<Metrics>,
    settings: Settings,
    permits: Semaphore,
    waiting: AtomicUsize,
    idle: Mutex<Vec<Session>>,
    horizon: tokio::sync::Mutex<Horizon>,
    /// What commits up to here is handed out to nobody.
    floor: AtomicU64,
}

impl fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshots")
            .field("settings", &self.0.settings)
            .finish_non_exhaustive()
    }
}

/// How often a table may turn out to be another one than the catalog in hand says.
const ATTEMPTS: u32 = 5;

impl Snapshots {
    /// Reads from `database` what the changes of `log` go on from. Connects when it is needed.
    #[must_use]
    pub fn new(
        database: Database,
        log: Arc<dyn Log>,
        metrics: Arc<Metrics>,
        settings: Settings,
    ) -> Self {
        Self(Arc::new(Inner {
            horizon: tokio::sync::Mutex::new(Horizon::new(log.range().start)),
            database,
            log,
            metrics,
            permits: Semaphore::new(settings.sessions),
            waiting: AtomicUsize::new(0),
            idle: Mutex::new(Vec::new()),
            floor: AtomicU64::new(0),
            settings,
        }))
    }

    /// What snapshots may cost.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// What commits up to `commit` is handed out to nobody: no snapshot may lack it.
    pub fn nothing_before(&self, commit: Lsn) {
        self.0.floor.store(commit.0, Ordering::Release);
    }

    /// Reads, and sends page by page. Not cancel safe in one respect: the session of a reading that
    /// is dropped is closed, and PostgreSQL may go on with its statement for a while. Whoever no
    /// longer wants the pages drops their receiver instead.
    ///
    /// # Errors
    /// [`Failure`]. Pages may have been sent by then.
    pub async fn take(
        &self,
        request: &Request,
        pages: &mpsc::Sender<Page>,
    ) -> Result<Taken, Failure> {
        let inner = &*self.0;
        inner.metrics.snapshots.inc();
        let taken = inner.take(request, pages).await;
        match &taken {
            Ok(_) | Err(Failure::Abandoned) => {}
            Err(failure) => {
                inner.metrics.snapshots_failed.inc();
                warn!(role = &*request.principal.role, %failure, "a snapshot was not taken");
            }
        }
        taken
    }
}

impl Inner {
    async fn take(&self, request: &Request, pages: &mpsc::Sender<Page>) -> Result<Taken, Failure> {
        let timeout = self.settings.timeout;
        let _permit = {
            let _waiting = Waiting::count(&self.waiting).ok_or(Failure::Busy)?;
            tokio::select! {
                permit = timeout_at(Instant::now() + 2 * timeout, self.permits.acquire()) => {
                    permit.ok().and_then(Result::ok).ok_or(Failure::Busy)?
                }
                () = pages.closed() => return Err(Failure::Abandoned),
            }
        };
        let deadline = Instant::now() + timeout;
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(500));
        let mut changed = 0;
        loop {
            let failure = match self.attempt(request, pages, deadline).await {
                Ok(taken) => return Ok(taken),
                Err(Trouble::Final(failure)) => return Err(failure),
                Err(Trouble::Trimmed) => Failure::Trimmed,
                Err(Trouble::Unlike) => {
                    changed += 1;
                    if changed >= ATTEMPTS {
                        return Err(Failure::Changing);
                    }
                    Failure::Changing
                }
                Err(Trouble::Broken(error)) => {
                    debug!(error, "a snapshot could not be read, trying again");
                    Failure::Busy
                }
            };
            let wait = backoff.after_failure();
            if Instant::now() + wait >= deadline {
                return Err(failure);
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = pages.closed() => return Err(Failure::Abandoned),
            }
        }
    }

    async fn attempt(
        &self,
        request: &Request,
        pages: &mpsc::Sender<Page>,
        deadline: Instant,
    ) -> Result<Taken, Trouble> {
        let idle = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            std::iter::from_fn(|| idle.pop()).find(|session| session.is_usable(&self.database))
        };
        let session = match idle {
            Some(session) => session,
            None => Session::connect(&self.database, deadline).await?,
        };
        let taken = session.read(self, request, pages, deadline).await;
        // Whatever became of it, the session serves the next one only where its transaction ended.
        if session.roll_back(self).await {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push(session);
        }
        taken
    }
}

/// One of those that wait.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn count(waiting: &'a AtomicUsize) -> Option<Self> {
        let place = Self(waiting);
        (waiting.fetch_add(1, Ordering::AcqRel) < WAITING).then_some(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

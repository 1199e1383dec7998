//! Brings a table's mirror near the place where the state is: from the checkpoint, or by copying.
//!
//! The order of things is what makes it exact. First the stream carries the table for good: every
//! transaction that wrote it before that was so has ended. Then a bound is taken: an own transaction
//! number, later than those of all that committed until now. Then a snapshot that shows all before the bound, and
//! the place in the log where what it does not show begins ([`Horizon`]). What the log has from
//! there on is applied, but for what the snapshot shows.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, SimpleQueryMessage};
use tracing::{debug, info};

use super::arriving::{Arriving, unreadable};
use super::catalog::{Verdict, Way, look};
use super::checkpoint;
use super::clerk::words;
use super::follow::Followed;
use super::kept::Kept;
use super::reason::{Cause, Refusal};
use super::{Purpose, Settings};
use crate::log::horizon::{Horizon, NoPlace};
use crate::log::{Epoch, Log, Offset};
use crate::lookup::Wanted;
use crate::metrics::Metrics;
use crate::pg::connect::Database;
use crate::pg::snapshot::Snapshot;
use crate::pg::{Lsn, Oid, Xid, quote_identifier};
use crate::source::lookups::{Coverage, Wishing};

/// Rows of the first fetch; then as many as come to [`FETCH_BYTES`].
const FIRST_ROWS: usize = 50;

/// Bytes of a fetch, about.
const FETCH_BYTES: usize = 1 << 20;

/// The most rows of a fetch.
const FETCH_ROWS: usize = 5_000;

/// Entries of the log read at once.
const ENTRIES: usize = 64;

/// Changes between a copy and the router's place at which the copy is handed over.
const NEAR: u64 = 256;

/// How long the stream may take to begin anew, and transactions to end, before the copy makes room
/// for others.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a table's lock may be waited for: whoever comes behind it waits as long, and it is less than
/// it takes PostgreSQL to end somebody else's transaction for a deadlock.
const LOCK_TIMEOUT: &str = "300ms";

/// How long a fetch may take.
const FETCH_TIMEOUT: &str = "60s";

/// How often it is looked whether a transaction has ended. Nothing rings then.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What the transaction sees, how far the server is, whether commits there wait for standbys, and a
/// file's name that begins with the timeline.
const SNAPSHOT: &str = "select pg_catalog.pg_current_snapshot()::pg_catalog.text, \
     case when pg_catalog.pg_is_in_recovery() then null \
          else pg_catalog.pg_current_wal_insert_lsn()::pg_catalog.text end, \
     pg_catalog.current_setting('synchronous_standby_names') <> '', \
     case when not pg_catalog.pg_is_in_recovery() then \
     pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()) end";

/// The transactions that have written a table, or one of its partitions, and have not ended.
const WRITERS: &str = "with recursive tree(oid) as (select $1::pg_catalog.oid union all \
         select i.inhrelid from tree \
         join pg_catalog.pg_inherits i on i.inhparent = tree.oid and not i.inhdetachpending) \
     select coalesce(pg_catalog.array_agg(distinct l.virtualtransaction), '{}') \
     from pg_catalog.pg_locks l \
     where l.locktype = 'relation' and l.granted and l.pid is distinct from pg_catalog.pg_backend_pid() \
       and l.database = (select d.oid from pg_catalog.pg_database d \
                         where d.datname = pg_catalog.current_database()) \
       and l.mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') \
       and l.relation in (select tree.oid from tree)";

/// What is to be brought.
pub(super) struct Copying {
    pub(super) table: Oid,
    pub(super) order: u64,
    /// As in SQL.
    pub(super) name: Arc<str>,
    pub(super) wanted: Arc<Wanted>,
    pub(super) way: Way,
    /// The most memory, in bytes.
    pub(super) most: usize,
    /// Where it may be instead of in the table.
    pub(super) checkpoint: Option<PathBuf>,
}

/// Why it is not brought.
pub(super) enum Failure {
    Refused(Arc<str>, Refusal),
    TooLarge(Arc<str>),
    /// Another attempt may do; why.
    Again(Arc<str>, String),
}

/// The same, before it is said of which table.
enum Trouble {
    Refused(Refusal),
    TooLarge,
    Again(String),
}

impl From<tokio_postgres::Error> for Trouble {
    fn from(error: tokio_postgres::Error) -> Self {
        let code = error.code().map(tokio_postgres::error::SqlState::code);
        match code {
            Some("42501") => Self::Refused(Cause::Privilege.because(words(&error))),
            _ => Self::Again(words(&error)),
        }
    }
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Where mirrors come from.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) database: Database,
    pub(super) log: Arc<dyn Log>,
    pub(super) stream: Wishing,
    pub(super) metrics: Arc<Metrics>,
    /// Where the state is.
    pub(super) place: Arc<AtomicU64>,
    pub(super) settings: Settings,
}

impl Source {
    /// Brings a mirror near the state's place.
    pub(super) async fn bring(self, copying: Copying) -> Result<Arriving, Failure> {
        let brought = self.try_to(&copying).await;
        brought.map_err(|trouble| {
            let name = Arc::clone(&copying.name);
            match trouble {
                Trouble::Refused(refusal) => Failure::Refused(name, refusal),
                Trouble::TooLarge => Failure::TooLarge(name),
                Trouble::Again(problem) => Failure::Again(name, problem),
            }
        })
    }

    async fn try_to(&self, copying: &Copying) -> Result<Arriving, Trouble> {
        let epoch = self.log.epoch();
        if let Some(arriving) = self.stored(copying, epoch).await {
            return self.catch_up(copying, arriving).await;
        }
        let client = self.database.connect("rowcast lookup copy").await;
        let client = client.map_err(|error| Trouble::Again(error.to_string()))?;
        self.fence(&client, copying).await?;
        let stretch = self.stretch(copying);
        if copying.way.beside && stretch.is_none() {
            return Err(Trouble::Again(NOT_STREAMED.to_owned()));
        }
        let began = Instant::now();
        let purpose = self.settings.purpose.as_str();
        info!(table = &*copying.name, purpose, "copying a table");
        let mut horizon = Horizon::new(self.log.range().end);
        horizon.bound(youngest(&client).await?);
        let deadline = Instant::now() + PATIENCE;
        let (snapshot, exact_from, next) = loop {
            match self.begin(&client, copying, &mut horizon).await? {
                Some(begun) => break begun,
                None if Instant::now() >= deadline => {
                    let problem = "a transaction that began before has not ended";
                    return Err(Trouble::Again(problem.to_owned()));
                }
                None => {
                    client.batch_execute("rollback").await?;
                    sleep(LOOK_AGAIN).await;
                }
            }
        };
        let followed = self.rows(&client, copying).await?;
        client.batch_execute("commit").await?;
        // The stream has to pass this moment, also where nobody writes.
        let nudge = "select pg_catalog.pg_logical_emit_message(true, 'rowcast', 'lookup')";
        if let Err(error) = client.batch_execute(nudge).await {
            debug!(problem = words(&error), "the stream is not nudged");
        }
        self.settings.purpose.counts(&self.metrics).copies.inc();
        info!(
            table = &*copying.name,
            rows = followed.mirror.len(),
            bytes = followed.bytes,
            took_ms = began.elapsed().as_millis(),
            purpose,
            "a table is copied"
        );
        let kept = Kept {
            followed,
            stretch,
            identity: Arc::clone(&copying.way.identity),
            order: copying.order,
            members: copying.way.members.clone(),
        };
        let arriving = Arriving::new(kept, next, Some(Arc::new(snapshot)), exact_from);
        let arriving = self.noting(arriving);
        let arriving = self.catch_up(copying, arriving).await?;
        if self.stretch(copying) != stretch || self.log.epoch() != epoch {
            return Err(Trouble::Again("the stream began anew meanwhile".to_owned()));
        }
        Ok(arriving)
    }

    /// The stretch of the stream that the mirror will live on.
    fn stretch(&self, copying: &Copying) -> Option<u64> {
        let now = self.stream.now().stretch;
        now.filter(|_| copying.way.beside)
    }

    fn noting(&self, arriving: Arriving) -> Arriving {
        match self.settings.purpose {
            Purpose::Lookups => arriving,
            Purpose::OldRows => arriving.noting(),
        }
    }

    async fn stored(&self, copying: &Copying, epoch: Epoch) -> Option<Arriving> {
        let path = copying.checkpoint.clone()?;
        // What the stream carries is said when it begins.
        let mut stream = self.stream.clone();
        let said = timeout(PATIENCE, stream.said()).await;
        let stretch = self.stretch(copying);
        if said.is_err() || copying.way.beside && stretch.is_none() {
            return None;
        }
        let empty = Followed::new(Arc::clone(&copying.wanted), copying.way.shape.clone());
        let (table, identity) = (copying.table, Arc::clone(&copying.way.identity));
        let loaded = tokio::task::spawn_blocking(move || {
            checkpoint::load(&path, epoch, (table, &identity), empty)
        });
        let (followed, offset) = loaded.await.ok()??;
        let range = self.log.range();
        if offset < range.start || offset > range.end || followed.bytes > copying.most {
            return None;
        }
        info!(
            table = &*copying.name,
            rows = followed.mirror.len(),
            at = %offset,
            purpose = self.settings.purpose.as_str(),
            "a mirror is taken from the checkpoint"
        );
        let kept = Kept {
            followed,
            stretch,
            identity: Arc::clone(&copying.way.identity),
            order: copying.order,
            members: copying.way.members.clone(),
        };
        Some(self.noting(Arriving::new(kept, offset, None, Lsn(0))))
    }

    /// Returns once all that happens to the table from now on is in the stream.
    async fn fence(&self, client: &Client, copying: &Copying) -> Result<(), Trouble> {
        let deadline = Instant::now() + PATIENCE;
        // Whoever wrote the table before it was published may go on, and is not in the stream.
        let mut before: Option<Vec<String>> = None;
        loop {
            let row = client.query_one(WRITERS, &[&copying.table.0]).await?;
            let now: Vec<String> = row.try_get(0)?;
            let left = match &before {
                None => now,
                Some(before) => now.into_iter().filter(|one| before.contains(one)).collect(),
            };
            if left.is_empty() {
                break;
            }
            before = Some(left);
            if Instant::now() >= deadline {
                return Err(Trouble::Again(
                    "a transaction that wrote the table before it was published has not ended"
                        .to_owned(),
                ));
            }
            sleep(LOOK_AGAIN).await;
        }
        let row = client
            .query_one("select current_setting('server_version_num')::int4", &[])
            .await?;
        let anew = forgets(row.try_get(0)?);
        let mut stream = self.stream.clone();
        if timeout(PATIENCE, stream.said()).await.is_err() {
            return Err(Trouble::Again("nobody reads the stream".to_owned()));
        }
        if !anew && (!copying.way.beside || stream.now().stretch.is_some()) {
            return Ok(());
        }
        // The server looks the publication up as it was when a transaction changed something: none
        // may be left that began before it was made.
        let bound = youngest(client).await?;
        loop {
            let row = client.query_one(SNAPSHOT, &[]).await?;
            let snapshot = parsed(row.try_get(0)?)?;
            if snapshot.xmin() >= bound {
                break;
            }
            if Instant::now() >= deadline {
                return Err(Trouble::Again(
                    "a transaction that began before the lookups were published has not ended"
                        .to_owned(),
                ));
            }
            sleep(LOOK_AGAIN).await;
        }
        let row = client.query_one(SNAPSHOT, &[]).await?;
        let from = place(row.try_get(1)?)?;
        let number = stream.wish(from);
        let nudge = "select pg_catalog.pg_logical_emit_message(true, 'rowcast', 'lookup')";
        if let Err(error) = client.batch_execute(nudge).await {
            debug!(problem = words(&error), "the stream is not nudged");
        }
        let followed = async {
            loop {
                let Coverage {
                    answered, stretch, ..
                } = stream.now();
                if answered >= number {
                    return !copying.way.beside || stretch.is_some();
                }
                if !stream.changed().await {
                    return false;
                }
            }
        };
        match timeout(PATIENCE, followed).await {
            Ok(true) => Ok(()),
            _ => Err(Trouble::Again(NOT_STREAMED.to_owned())),
        }
    }

    /// Begins the transaction that reads: what its snapshot shows, how far the server is, and where
    /// the changes begin that it does not show. `None` where that cannot be said of this snapshot.
    async fn begin(
        &self,
        client: &Client,
        copying: &Copying,
        horizon: &mut Horizon,
    ) -> Result<Option<(Snapshot, Lsn, Offset)>, Trouble> {
        // Without row-level security an error says that rows would be kept from us. The lock comes
        // before the snapshot: nothing is rewritten or emptied between the two.
        let begin = format!(
            "begin isolation level repeatable read read only; \
             set local lock_timeout = '{LOCK_TIMEOUT}'; \
             set local statement_timeout = '{FETCH_TIMEOUT}'; \
             set local idle_in_transaction_session_timeout = '{FETCH_TIMEOUT}'; \
             set local row_security = {}; \
             lock table {} in access share mode",
            if copying.way.under_policy {
                "on"
            } else {
                "off"
            },
            copying.name
        );
        client.batch_execute(&begin).await?;
        let row = client.query_one(SNAPSHOT, &[]).await?;
        let snapshot = parsed(row.try_get(0)?)?;
        let exact_from = place(row.try_get(1)?)?;
        let synchronous: bool = row.try_get(2)?;
        // A standby that was promoted may lack what the log has, until the source has noticed.
        let file: Option<&str> = row.try_get(3)?;
        let timeline = file.and_then(|name| u32::from_str_radix(name.get(..8)?, 16).ok());
        let origin = self.log.origin();
        if origin.is_none_or(|origin| Some(origin.timeline) != timeline) {
            let problem = "the server is not on the timeline that the changes come from";
            return Err(Trouble::Again(problem.to_owned()));
        }
        let found = look(client, &[copying.table], &self.settings).await?;
        let found = found.get(&copying.table);
        let same = found.is_some_and(|found| {
            let judged = found.judge(&copying.wanted, &self.settings);
            *found.name == *copying.name
                && matches!(judged, Verdict::Fits(way) if way == copying.way)
        });
        if !same {
            return Err(Trouble::Again("the table has changed meanwhile".to_owned()));
        }
        match horizon
            .first_unseen(&*self.log, &snapshot, Lsn(0), synchronous)
            .await
        {
            Ok(next) => Ok(Some((snapshot, exact_from, next))),
            Err(NoPlace::Trimmed) => {
                if horizon.wants_bound() {
                    return Err(Trouble::Again("the log went on without us".to_owned()));
                }
                Ok(None)
            }
            Err(NoPlace::Stopped) => Err(Trouble::Again("the log has ended".to_owned())),
        }
    }

    async fn rows(&self, client: &Client, copying: &Copying) -> Result<Followed, Trouble> {
        let mut followed = Followed::new(Arc::clone(&copying.wanted), copying.way.shape.clone());
        let columns: Vec<String> = followed
            .mirror
            .columns()
            .iter()
            .map(|column| quote_identifier(&column.name))
            .collect();
        let declare = format!(
            "declare rowcast_lookup no scroll cursor for select {} from {}",
            columns.join(", "),
            copying.name
        );
        client.batch_execute(&declare).await?;
        let mut want = FIRST_ROWS;
        loop {
            let fetch = format!("fetch forward {want} from rowcast_lookup");
            let (mut fetched, mut bytes) = (0_usize, 0_usize);
            let mut rows = Box::pin(client.simple_query_raw(&fetch).await?);
            while let Some(message) = rows.next().await {
                let SimpleQueryMessage::Row(row) = message? else {
                    continue;
                };
                fetched += 1;
                let read = followed.read(|place| {
                    let text = row.try_get(place).ok().flatten();
                    bytes += text.map_or(0, str::len);
                    Ok(text)
                })?;
                followed.add(read)?;
                if followed.bytes > copying.most {
                    return Err(Trouble::TooLarge);
                }
            }
            if fetched < want {
                break;
            }
            want = (FETCH_BYTES / (bytes / fetched).max(1)).clamp(1, FETCH_ROWS);
        }
        Ok(followed)
    }

    /// Applies what the log has, until the state's place is near; never past it.
    async fn catch_up(
        &self,
        copying: &Copying,
        mut arriving: Arriving,
    ) -> Result<Arriving, Trouble> {
        loop {
            let place = Offset(self.place.load(Ordering::Acquire));
            if arriving.next.0 + NEAR >= place.0 {
                return Ok(arriving);
            }
            let read = self.log.read(arriving.next, ENTRIES).await;
            let entries = read.map_err(|error| Trouble::Refused(unreadable(&error)))?;
            let before = arriving.next;
            arriving.take_all(&entries, copying.table, place)?;
            if arriving.next == before {
                return Ok(arriving);
            }
            // A long log must not occupy the thread.
            tokio::task::yield_now().await;
        }
    }
}

const NOT_STREAMED: &str = "the stream does not carry the lookups' publication yet";

/// Whether a running stream may forget that a table was added to a publication while others wrote
/// it: repaired in the minor versions of May 2025.
const fn forgets(server_version_num: i32) -> bool {
    let (major, minor) = (server_version_num / 10_000, server_version_num % 10_000);
    match major {
        ..=14 => minor < 18,
        15 => minor < 13,
        16 => minor < 9,
        17 => minor < 5,
        _ => false,
    }
}

/// A transaction number that is later than those of all that have committed until now.
async fn youngest(client: &Client) -> Result<Xid, Trouble> {
    let row = client
        .query_one(
            "select pg_catalog.pg_current_xact_id()::pg_catalog.text",
            &[],
        )
        .await;
    let row =
        row.map_err(
            |error| match error.code().map(tokio_postgres::error::SqlState::code) {
                Some("25006") => Trouble::Refused(
                    Cause::Unreachable
                        .because("a standby does not tell which transactions its snapshots show"),
                ),
                _ => error.into(),
            },
        )?;
    let text: String = row.try_get(0)?;
    let number = text
        .parse()
        .map_err(|_| Trouble::Again("not a transaction number".to_owned()))?;
    Ok(Xid(number))
}

fn parsed(text: String) -> Result<Snapshot, Trouble> {
    text.parse()
        .map_err(|error| Trouble::Again(format!("{error}")))
}

fn place(text: Option<String>) -> Result<Lsn, Trouble> {
    let text = text.ok_or_else(|| {
        Cause::Unreachable.because("a standby does not tell which transactions its snapshots show")
    })?;
    text.parse()
        .map_err(|_| Trouble::Again("not a place in the log".to_owned()))
}

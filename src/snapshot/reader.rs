//! One transaction that reads a snapshot.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow, Statement};

use super::{Failure, Inner, Page, Query, Request, Taken};
use crate::change::{Row, RowBuilder, Value};
use crate::log::Cursor;
use crate::log::horizon::NoPlace;
use crate::pg::connect::{Database, Settings};
use crate::pg::snapshot::Snapshot;
use crate::pg::{Lsn, Xid};
use crate::policy::ask::BECOME_CLIENT;

/// Rows fetched at once, and of a page.
const PAGE_ROWS: usize = 500;

/// How long a table's lock may be waited for at once: whoever comes behind it waits as long, and it is
/// less than it takes PostgreSQL to end somebody else's transaction for a deadlock.
const LOCK_TIMEOUT: Duration = Duration::from_millis(300);

/// How much longer than its statements the end of a transaction may take before its session is
/// given up. Before that no other session takes its place.
const END: Duration = Duration::from_secs(5);

/// What the transaction sees, whether it is on a primary, whether commits there wait for standbys,
/// and a file's name that begins with the timeline. Asked under the relay's own login.
const SNAPSHOT: &str = "select pg_catalog.pg_current_snapshot()::pg_catalog.text, \
     pg_catalog.pg_is_in_recovery(), \
     pg_catalog.current_setting('synchronous_standby_names') <> '', \
     case when not pg_catalog.pg_is_in_recovery() then \
     pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()) end";

/// The files of a table and its partitions that are others now than the snapshot knows: what was
/// in them before is gone for it, and what a rewriting put into the new ones is in no change.
const REWRITTEN: &str = "select exists (select from pg_catalog.pg_class as c \
     where (c.oid = $1 or c.oid in (select relid from pg_catalog.pg_partition_tree($1))) \
     and c.relfilenode <> 0 \
     and c.relfilenode is distinct from pg_catalog.pg_relation_filenode(c.oid))";

/// Why an attempt came to nothing.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Another attempt would end alike, or pages have gone out.
    Final(Failure),
    /// What the snapshot does not show may have left the log. A newer one may show it.
    Trimmed,
    /// A table is not what the catalog in hand says, or was rewritten at that moment.
    Unlike,
    /// The connection, or the server.
    Broken(String),
}

/// A session with PostgreSQL that reads one snapshot after the other.
pub(super) struct Session {
    client: Client,
    /// What it began with.
    settings: Settings,
    become_client: Statement,
    snapshot: Statement,
    rewritten: Statement,
}

impl Session {
    pub(super) async fn connect(database: &Database, deadline: Instant) -> Result<Self, Trouble> {
        let settings = database.settings();
        let connecting = async {
            let client = database.connect("rowcast snapshot").await;
            let client = client.map_err(|error| Trouble::Broken(error.to_string()))?;
            Ok(Self {
                become_client: client.prepare(BECOME_CLIENT).await.map_err(broken)?,
                snapshot: client.prepare(SNAPSHOT).await.map_err(broken)?,
                rewritten: client.prepare(REWRITTEN).await.map_err(broken)?,
                client,
                settings,
            })
        };
        let connected = timeout_at(deadline, connecting).await;
        connected.unwrap_or(Err(Trouble::Final(Failure::Busy)))
    }

    pub(super) fn is_usable(&self, database: &Database) -> bool {
        !self.client.is_closed() && database.is_set_as(self.settings)
    }

    /// Ends the transaction; whether that worked.
    pub(super) async fn roll_back(&self, inner: &Inner) -> bool {
        let ending = self.client.batch_execute("rollback");
        matches!(
            timeout(inner.settings.timeout + END, ending).await,
            Ok(Ok(()))
        )
    }

    pub(super) async fn read(
        &self,
        inner: &Inner,
        request: &Request,
        pages: &mpsc::Sender<Page>,
        deadline: Instant,
    ) -> Result<Taken, Trouble> {
        self.bound(inner).await?;
        let left = deadline
            .saturating_duration_since(Instant::now())
            .as_millis()
            .max(1);
        let begin = format!(
            "begin isolation level repeatable read read only; \
             set local statement_timeout = {left}; \
             set local lock_timeout = {lock}; \
             set local idle_in_transaction_session_timeout = {idle}",
            lock = LOCK_TIMEOUT.as_millis(),
            // Time for the page that is under way when ours has run out.
            idle = left.saturating_mul(2),
        );
        self.client.batch_execute(&begin).await.map_err(broken)?;
        let (snapshot, from) = self.take(inner).await?;
        let who: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [
            &&*request.principal.role,
            &request.principal.claims.as_json(),
        ];
        let switched = self.client.query(&self.become_client, &who).await;
        switched.map_err(|error| refusal(inner, &error))?;
        // First all of them are locked, so that none changes while others are read.
        for (_, query) in &request.queries {
            self.lock(inner, query).await?;
        }
        let mut reading = Reading {
            inner,
            pages,
            deadline,
            cursor: from,
            bytes: 0,
        };
        for (binding, query) in &request.queries {
            self.rows(*binding, query, &mut reading).await?;
        }
        Ok(Taken {
            from,
            snapshot: Arc::new(snapshot),
        })
    }

    /// Takes the transaction's snapshot, and finds the place in the log where the changes begin that
    /// it does not show.
    async fn take(&self, inner: &Inner) -> Result<(Snapshot, Cursor), Trouble> {
        // One after the other: the horizon goes by what earlier snapshots showed.
        let mut horizon = inner.horizon.lock().await;
        let row = self.client.query_one(&self.snapshot, &[]).await;
        let row = row.map_err(broken)?;
        let snapshot: Snapshot = row
            .try_get::<_, String>(0)
            .map_err(broken)?
            .parse()
            .map_err(|error| Trouble::Broken(format!("{error}")))?;
        if row.try_get(1).map_err(broken)? {
            let text = "a standby does not tell which transactions its snapshots show";
            return Err(Trouble::Final(Failure::Refused(text.to_owned())));
        }
        let synchronous: bool = row.try_get(2).map_err(broken)?;
        // A standby that was promoted may lack what the log has, until the source has noticed.
        let file: Option<&str> = row.try_get(3).map_err(broken)?;
        let timeline = file.and_then(|name| u32::from_str_radix(name.get(..8)?, 16).ok());
        let origin = inner.log.origin();
        if origin.is_none_or(|origin| Some(origin.timeline) != timeline) {
            let text = "the server is not on the timeline that the changes come from";
            return Err(Trouble::Broken(text.to_owned()));
        }
        let epoch = inner.log.epoch();
        let floor = Lsn(inner.floor.load(Ordering::Acquire));
        let first = horizon.first_unseen(&*inner.log, &snapshot, floor, synchronous);
        match first.await {
            Ok(offset) => Ok((snapshot, Cursor { epoch, offset })),
            Err(NoPlace::Trimmed) => Err(Trouble::Trimmed),
            Err(NoPlace::Stopped) => Err(Trouble::Final(Failure::Abandoned)),
        }
    }

    /// Tells the horizon how young a transaction can be that it knows nothing of.
    async fn bound(&self, inner: &Inner) -> Result<(), Trouble> {
        if !inner.horizon.lock().await.wants_bound() {
            return Ok(());
        }
        self.client.batch_execute("begin").await.map_err(broken)?;
        let asked = "select pg_catalog.pg_current_xact_id()::pg_catalog.text";
        let number = self.client.query_one(asked, &[]).await;
        self.client
            .batch_execute("rollback")
            .await
            .map_err(broken)?;
        let number = match number {
            Ok(row) => row.try_get::<_, String>(0).map_err(broken)?,
            // A standby: the transaction that follows says so.
            Err(error) if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => {
                return Ok(());
            }
            Err(error) => return Err(broken(error)),
        };
        let number = number
            .parse()
            .map_err(|_| Trouble::Broken("not a transaction number".to_owned()))?;
        inner.horizon.lock().await.bound(Xid(number));
        Ok(())
    }

    /// Locks a table until the transaction ends, and sees that it is what the catalog says.
    async fn lock(&self, inner: &Inner, query: &Query) -> Result<(), Trouble> {
        // PostgreSQL locks what it analyses.
        let described = self.client.prepare(&query.sql).await;
        let described = described.map_err(|error| refusal(inner, &error))?;
        let mut types = described
            .columns()
            .iter()
            .map(|column| column.type_().oid());
        let alike = described.columns().len() == query.types.len()
            && query
                .types
                .iter()
                .all(|known| types.next() == Some(known.0));
        let rewritten = self
            .client
            .query_one(&self.rewritten, &[&query.oid.0])
            .await;
        let rewritten = rewritten.map_err(|error| refusal(inner, &error))?;
        if alike && !rewritten.try_get(0).map_err(broken)? {
            Ok(())
        } else {
            Err(Trouble::Unlike)
        }
    }

    async fn rows(
        &self,
        binding: u32,
        query: &Arc<Query>,
        reading: &mut Reading<'_>,
    ) -> Result<(), Trouble> {
        let declare = format!(
            "declare rowcast_snapshot no scroll cursor for {}",
            query.sql
        );
        let refused = |error: tokio_postgres::Error| refusal(reading.inner, &error);
        self.client.batch_execute(&declare).await.map_err(refused)?;
        let fetch = format!("fetch forward {PAGE_ROWS} from rowcast_snapshot");
        let mut leaf = Leaf::default();
        let (mut number, mut given) = (0, 0);
        let mut more = false;
        loop {
            let mut fetched = 0;
            let rows = self.client.simple_query_raw(&fetch).await;
            let mut rows = Box::pin(rows.map_err(|error| begun(reading.inner, &error))?);
            while let Some(message) = rows.next().await {
                let message = message.map_err(|error| begun(reading.inner, &error))?;
                let SimpleQueryMessage::Row(row) = message else {
                    continue;
                };
                fetched += 1;
                if given == query.limit {
                    more = true;
                    continue;
                }
                given += 1;
                let row = values(&row).map_err(|error| begun(reading.inner, &error))?;
                leaf.write(query, &row);
                if leaf.is_full(reading.inner.settings.page_bytes) {
                    let page = leaf.turn(reading.page(binding, query, number));
                    reading.send(page).await?;
                    number += 1;
                }
            }
            reading.look()?;
            if fetched < PAGE_ROWS {
                break;
            }
        }
        let close = self.client.batch_execute("close rowcast_snapshot").await;
        close.map_err(|error| begun(reading.inner, &error))?;
        let mut page = leaf.turn(reading.page(binding, query, number));
        (page.last, page.more) = (true, more);
        reading.inner.metrics.snapshot_rows.inc_by(given);
        reading.send(page).await
    }
}

/// What has been read for a channel, and where it goes.
struct Reading<'a> {
    inner: &'a Inner,
    pages: &'a mpsc::Sender<Page>,
    deadline: Instant,
    cursor: Cursor,
    bytes: usize,
}

impl Reading<'_> {
    fn page(&self, binding: u32, query: &Query, number: u32) -> Page {
        Page {
            binding,
            schema: Arc::clone(&query.schema),
            table: Arc::clone(&query.name),
            number,
            rows: Bytes::new(),
            errors: Bytes::new(),
            last: false,
            more: false,
            cursor: self.cursor,
        }
    }

    async fn send(&mut self, page: Page) -> Result<(), Trouble> {
        self.bytes = self.bytes.saturating_add(page.size());
        let most = self.inner.settings.max_bytes;
        if self.bytes > most {
            return Err(Trouble::Final(Failure::TooLarge(most)));
        }
        match timeout_at(self.deadline, self.pages.send(page)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_gone)) => Err(Trouble::Final(Failure::Abandoned)),
            Err(_elapsed) => Err(Trouble::Final(self.slow())),
        }
    }

    /// Whether somebody still waits and there is time left.
    fn look(&self) -> Result<(), Trouble> {
        if self.pages.is_closed() {
            Err(Trouble::Final(Failure::Abandoned))
        } else if Instant::now() >= self.deadline {
            Err(Trouble::Final(self.slow()))
        } else {
            Ok(())
        }
    }

    const fn slow(&self) -> Failure {
        Failure::Slow(self.inner.settings.timeout)
    }
}

/// A page while it is written.
#[derive(Default)]
struct Leaf {
    rows: Vec<u8>,
    errors: Vec<u8>,
    count: usize,
}

impl Leaf {
    fn write(&mut self, query: &Query, row: &Row) {
        self.rows.push(if self.count == 0 { b'[' } else { b',' });
        if let Some(error) = query.write(&mut self.rows, row) {
            let open = if self.errors.is_empty() { '[' } else { ',' };
            let text = format!(
                "{open}{{\"row\":{},\"errors\":[{}]}}",
                self.count,
                serde_json::Value::from(error)
            );
            self.errors.extend_from_slice(text.as_bytes());
        }
        self.count += 1;
    }

    const fn is_full(&self, bytes: usize) -> bool {
        self.count >= PAGE_ROWS || self.rows.len() >= bytes
    }

    /// Puts what was written into `page`, and begins anew.
    fn turn(&mut self, mut page: Page) -> Page {
        let Self { rows, errors, .. } = std::mem::take(self);
        page.rows = finished(rows);
        if !errors.is_empty() {
            page.errors = finished(errors);
        }
        page
    }
}

fn finished(mut array: Vec<u8>) -> Bytes {
    if array.is_empty() {
        array.push(b'[');
    }
    array.push(b']');
    array.into()
}

fn values(row: &SimpleQueryRow) -> Result<Row, tokio_postgres::Error> {
    let mut values = RowBuilder::default();
    for place in 0..row.len() {
        values.push(match row.try_get(place)? {
            Some(text) => Value::Text(text),
            None => Value::Null,
        });
    }
    Ok(values.finish())
}

fn broken(error: tokio_postgres::Error) -> Trouble {
    Trouble::Broken(code(&error))
}

/// What PostgreSQL says before anything was sent.
fn refusal(inner: &Inner, error: &tokio_postgres::Error) -> Trouble {
    let code = error.code().map(SqlState::code).unwrap_or_default();
    match code {
        "57014" => Trouble::Final(Failure::Slow(inner.settings.timeout)),
        "55P03" => Trouble::Broken("a lock was not to be had in time".to_owned()),
        // A column or table that is no more, or not yet as the catalog in hand says.
        "42703" | "42P01" => Trouble::Unlike,
        _ if code.is_empty() || ["08", "40", "53", "57", "58", "XX"].contains(&class(code)) => {
            Trouble::Broken(format!("SQLSTATE {code}"))
        }
        _ => Trouble::Final(Failure::Refused(words(error))),
    }
}

/// The same once a cursor is open: pages may have gone out, so there is no other attempt.
fn begun(inner: &Inner, error: &tokio_postgres::Error) -> Trouble {
    match refusal(inner, error) {
        Trouble::Final(failure) => Trouble::Final(failure),
        Trouble::Trimmed | Trouble::Unlike | Trouble::Broken(_) => {
            Trouble::Final(Failure::Refused(words(error)))
        }
    }
}

fn class(code: &str) -> &str {
    code.get(..2).unwrap_or_default()
}

fn code(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(
        || error.to_string(),
        |refused| format!("SQLSTATE {}", refused.code().code()),
    )
}

/// What the client may know of an error: the words only where they are about names and rights; the
/// others may show values of rows that it may not see.
fn words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(refused) if class(refused.code().code()) == "42" => {
            format!("{} (SQLSTATE {})", refused.message(), refused.code().code())
        }
        Some(refused) => format!("SQLSTATE {}", refused.code().code()),
        None => "the connection was lost".to_owned(),
    }
}

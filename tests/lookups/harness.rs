//! A database, its stream in a log, and a keeper of mirrors that follows the log.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rowcast::datum::{Collation, Datum, Type};
use rowcast::log::memory::{Bounds, MemoryLog};
use rowcast::log::{Entry, Log, Offset, Origin};
use rowcast::lookup::keep::{
    Applied, Event, Foundation, Keeping, Purpose, Settings, State, Status, keep,
};
use rowcast::lookup::{Column, Looked, Wanted};
use rowcast::metrics::Metrics;
use rowcast::pg::connect::Database;
use rowcast::pg::refusal::Retry;
use rowcast::pg::throwaway::{Options, Throwaway};
use rowcast::pg::{Lsn, Oid};
use rowcast::source::lookups::{Reading, Wishing, coverage};
use rowcast::source::{Source, SourceEvent};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const PUBLICATION: &str = "rowcast";
pub(crate) const LOOKUPS: &str = "rowcast_lookups";

static SHARED: Mutex<Option<Throwaway>> = Mutex::const_new(None);

async fn shared() -> MutexGuard<'static, Option<Throwaway>> {
    let mut shared = SHARED.lock().await;
    if shared.is_none() {
        let options = Options {
            settings: vec!["max_slot_wal_keep_size = -1".to_owned()],
            ..Options::default()
        };
        *shared = Some(Throwaway::start(options).await.unwrap());
    }
    shared
}

/// Ends its task when it goes.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) struct World {
    pub(crate) url: String,
    pub(crate) database: Database,
    pub(crate) client: Client,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) stream: Wishing,
    pub(crate) metrics: Arc<Metrics>,
    _feed: Task,
}

/// Whether publications can have lists of columns and row filters, as they can from 15 on; says so
/// where not.
pub(crate) async fn publications_can_narrow() -> bool {
    let url = shared().await.as_ref().unwrap().url("postgres");
    let client = Database::parse(&url).unwrap().connect("test").await;
    let version: i32 = one(
        &client.unwrap(),
        "select current_setting('server_version_num')::int4",
    )
    .await;
    if version < 150_000 {
        println!("not tested: publications of PostgreSQL 14 carry whole tables");
    }
    version >= 150_000
}

impl World {
    /// A database of its own with a stream that is being read. `login` is whom the relay connects
    /// as, where that is not the owner of everything.
    pub(crate) async fn new(schema: &str, login: Option<&str>) -> Self {
        let url = shared()
            .await
            .as_ref()
            .unwrap()
            .fresh_database()
            .await
            .unwrap();
        let owner = Database::parse(&url).unwrap();
        let client = owner.connect("test").await.unwrap();
        client.batch_execute(schema).await.unwrap();
        let url = match login {
            Some(login) => url.replacen("postgres@", &format!("{login}@"), 1),
            None => url,
        };
        let database = Database::parse(&url).unwrap();
        let log: Arc<dyn Log> = Arc::new(MemoryLog::new(Bounds {
            changes: 1_000_000,
            bytes: 256 << 20,
        }));
        let (reading, stream) = coverage(None);
        let name: String = one(&client, "select 'slot_' || current_database()").await;
        let feed = feed(database.clone(), name, Arc::clone(&log), reading);
        Self {
            url,
            database,
            client,
            stream,
            metrics: Arc::new(Metrics::new()),
            _feed: Task(tokio::spawn(feed).abort_handle()),
            log,
        }
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    pub(crate) fn settings(checkpoint: Option<PathBuf>) -> Settings {
        Settings {
            purpose: Purpose::Lookups,
            publication: PUBLICATION.to_owned(),
            lookup_publication: LOOKUPS.to_owned(),
            max_bytes: 64 << 20,
            look_every: Duration::from_millis(100),
            checkpoint,
            checkpoint_every: Duration::from_millis(200),
        }
    }

    pub(crate) fn follow(&self, settings: Settings) -> Follower {
        self.follow_from(settings, self.log.range().end)
    }

    pub(crate) fn follow_from(&self, settings: Settings, place: Offset) -> Follower {
        let foundation = Foundation {
            database: self.database.clone(),
            log: Arc::clone(&self.log),
            stream: self.stream.clone(),
            metrics: Arc::clone(&self.metrics),
        };
        let (keeping, clerk) = keep(foundation, settings, place);
        Follower {
            keeping,
            log: Arc::clone(&self.log),
            next: place,
            _clerk: Task(tokio::spawn(clerk).abort_handle()),
        }
    }

    /// What policies would read of a table: `name:type` for each column.
    pub(crate) async fn wanted(&self, table: &str, columns: &[&str]) -> Wanted {
        let oid: u32 = one(&self.client, &format!("select '{table}'::regclass::oid")).await;
        let mut all = Vec::new();
        for name in columns {
            let type_oid: u32 = one(
                &self.client,
                &format!(
                    "select atttypid from pg_attribute \
                     where attrelid = '{table}'::regclass and attname = '{name}'"
                ),
            )
            .await;
            all.push(Column {
                name: (*name).into(),
                type_oid: Oid(type_oid),
                of: match type_oid {
                    16 => Type::Bool,
                    20 => Type::Int8,
                    23 => Type::Int4,
                    25 => Type::Text(Collation::DEFAULT),
                    1114 => Type::Timestamp,
                    1700 => Type::Numeric,
                    2950 => Type::Uuid,
                    701 => Type::Float8,
                    17 => Type::Bytea,
                    3802 => Type::Jsonb,
                    other => panic!("{other}"),
                },
            });
        }
        Wanted {
            table: Oid(oid),
            indexes: all
                .iter()
                .map(|column| vec![Arc::clone(&column.name)])
                .collect(),
            columns: all,
        }
    }

    /// All rows of a table, in the order of the mirror's columns.
    pub(crate) async fn rows(&self, table: &str, columns: &[Column]) -> Vec<Looked> {
        let names: Vec<String> = columns
            .iter()
            .map(|one| format!("{:?}", &*one.name))
            .collect();
        let sql = format!("select {} from {table}", names.join(", "));
        let said = self.client.simple_query(&sql).await.unwrap();
        let mut rows = Vec::new();
        for message in said {
            if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
                let value = |(at, column): (usize, &Column)| {
                    let text = row.get(at)?;
                    Some(Datum::from_output(&column.of, text).unwrap())
                };
                rows.push(columns.iter().enumerate().map(value).collect());
            }
        }
        rows
    }

    /// Where the server stands now; something is written behind it, so that the stream passes it.
    pub(crate) async fn now(&self) -> Lsn {
        let lsn: String = one(&self.client, "select pg_current_wal_insert_lsn()::text").await;
        self.run("select pg_logical_emit_message(true, 'test', '')")
            .await;
        lsn.parse().unwrap()
    }
}

pub(crate) async fn one<T>(client: &Client, sql: &str) -> T
where
    T: for<'a> tokio_postgres::types::FromSql<'a>,
{
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Whatever is committed goes into the log, as the relay has it.
async fn feed(database: Database, slot: String, log: Arc<dyn Log>, mut reading: Reading) {
    loop {
        let beside = reading.names().then_some(LOOKUPS);
        let mut opened = match Source::open_with(&database, &slot, PUBLICATION, beside).await {
            Ok(opened) => opened,
            Err(error) if error.retry() == Retry::Soon => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        reading.opened(opened.beside);
        if log.origin().is_none() {
            let origin = Origin {
                system_identifier: 1,
                timeline: 1,
                slot: slot.clone(),
                publication: PUBLICATION.to_owned(),
            };
            log.begin(origin, opened.confirmed).await;
        }
        let mut stored = log.stored();
        let failed = loop {
            let safe = *stored.borrow_and_update();
            opened.source.acknowledge(safe);
            if reading.is_due(safe) {
                break None;
            }
            let event = tokio::select! {
                event = opened.source.next() => event,
                Ok(()) = stored.changed() => continue,
                () = reading.wished() => continue,
            };
            match event {
                Ok(SourceEvent::Batch(batch)) => log.append(batch).await.unwrap(),
                Ok(SourceEvent::Progress(lsn)) => log.pass(lsn, false),
                Err(error) => break Some(error),
            }
        };
        log.abandon();
        if opened.beside && failed.as_ref().is_some_and(|error| error.stuck().is_some()) {
            reading.leave_out();
        }
        opened.source.acknowledge(*log.stored().borrow());
        opened.source.close().await;
    }
}

pub(crate) struct Follower {
    pub(crate) keeping: Keeping,
    log: Arc<dyn Log>,
    pub(crate) next: Offset,
    _clerk: Task,
}

impl Follower {
    /// Takes the next transaction, where there is one.
    pub(crate) async fn step(&mut self) -> Option<Applied> {
        let mut transaction: Vec<Arc<Entry>> = Vec::new();
        let mut from = self.next;
        loop {
            let entries = self.log.read(from, 1).await.unwrap();
            let Some(entry) = entries.into_iter().next() else {
                assert!(
                    transaction.is_empty(),
                    "a reader of the log sees whole transactions"
                );
                return None;
            };
            from = entry.end();
            let last = entry.batch.last;
            transaction.push(entry);
            if last {
                break;
            }
        }
        self.next = from;
        let applied = self.keeping.transaction(&transaction);
        // Nor does a stream that never pauses keep copies from being taken over.
        while self.keeping.next().now_or_never().is_some() {}
        Some(applied)
    }

    /// Follows the log, and takes over what is ready, until `until` says so.
    pub(crate) async fn until(&mut self, what: &str, until: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !until(self) {
            assert!(
                Instant::now() < deadline,
                "never: {what}; {:?}",
                self.keeping.status()
            );
            if self.step().await.is_none() {
                let _event: Result<Event, _> =
                    timeout(Duration::from_millis(10), self.keeping.next()).await;
            }
        }
    }

    /// Follows the log until everything before `lsn` has been taken.
    pub(crate) async fn passes(&mut self, lsn: Lsn) {
        self.until("the stream passes", |this| {
            this.log.appended() >= lsn && this.log.range().end <= this.next
        })
        .await;
    }

    pub(crate) async fn all_ready(&mut self) {
        self.until("every lookup is mirrored", |this| {
            let status = this.keeping.status();
            !status.is_empty() && status.iter().all(|one| one.state == State::Ready)
        })
        .await;
    }

    pub(crate) fn status(&self, table: Oid) -> Status {
        let all = self.keeping.status();
        all.into_iter().find(|one| one.table == table).unwrap()
    }

    /// Follows until the lookup is refused; the reason.
    pub(crate) async fn refused(&mut self, table: Oid) -> (String, String) {
        self.until("it is refused", |this| {
            matches!(this.status(table).state, State::Refused(_))
        })
        .await;
        match self.status(table).state {
            State::Refused(refusal) => {
                (refusal.cause.as_str().to_owned(), refusal.text.to_string())
            }
            other => panic!("{other:?}"),
        }
    }

    /// Whether the mirror holds exactly the table's rows.
    pub(crate) async fn check(&self, world: &World, table: &str, oid: Oid) {
        let mirror = self
            .keeping
            .lookups()
            .get(oid)
            .unwrap_or_else(|| panic!("{table} is gone"));
        let there = counted(world.rows(table, mirror.columns()).await);
        let mirrored = counted(mirror.rows().cloned().collect());
        let odd = |a: &HashMap<Looked, usize>, b: &HashMap<Looked, usize>| {
            a.iter()
                .filter(|(row, times)| b.get(*row) != Some(times))
                .count()
        };
        assert!(
            there == mirrored,
            "{table}: {} rows, {} mirrored; {} are missing or fewer, {} are too many",
            there.len(),
            mirrored.len(),
            odd(&there, &mirrored),
            odd(&mirrored, &there),
        );
        // What an index finds is what a scan finds.
        for (place, column) in mirror.columns().iter().enumerate() {
            let mut by_value: HashMap<Datum, usize> = HashMap::new();
            for row in mirrored.keys() {
                if let Some(value) = &row[place] {
                    *by_value.entry(value.clone()).or_default() += 1;
                }
            }
            for (value, times) in by_value {
                if let Ok(found) = mirror.count(&[place], std::slice::from_ref(&value)) {
                    assert_eq!(found, times, "{table}.{}", column.name);
                }
            }
        }
    }
}

fn counted(rows: Vec<Looked>) -> HashMap<Looked, usize> {
    let mut counted = HashMap::new();
    for row in rows {
        *counted.entry(row).or_default() += 1;
    }
    counted
}

pub(crate) async fn joined<T>(handle: JoinHandle<T>) -> T {
    timeout(DEADLINE, handle).await.unwrap().unwrap()
}

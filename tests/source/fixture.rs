//! A database of its own for each test, on one server for all of them.

use std::time::Duration;

use rowcast::change::{Batch, Change, Kind, OldRow, Row, Value};
use rowcast::pg::connect::Database;
use rowcast::pg::refusal::Retry;
use rowcast::pg::throwaway::{Options, Throwaway};
use rowcast::source::{Opened, Source, SourceError, SourceEvent};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// One server for the tests that leave it as it is. Its keeper ends it with this process.
pub(crate) static SHARED: Mutex<Option<Throwaway>> = Mutex::const_new(None);

pub(crate) async fn shared() -> MutexGuard<'static, Option<Throwaway>> {
    let mut shared = SHARED.lock().await;
    if shared.is_none() {
        *shared = Some(
            Throwaway::start(Options {
                settings: vec!["max_slot_wal_keep_size = -1".to_owned()],
                ..Options::default()
            })
            .await
            .unwrap(),
        );
    }
    shared
}

/// A database of its own on the shared server, with a publication of all its tables.
pub(crate) struct Fixture {
    pub(crate) database: Database,
    pub(crate) client: Client,
    pub(crate) slot: String,
}

impl Fixture {
    pub(crate) async fn new(schema: &str) -> Self {
        let url = shared()
            .await
            .as_ref()
            .unwrap()
            .fresh_database()
            .await
            .unwrap();
        let database = Database::parse(&url).unwrap();
        let client = database.connect("test").await.unwrap();
        client.batch_execute(schema).await.unwrap();
        client
            .batch_execute("create publication rowcast for all tables")
            .await
            .unwrap();
        let name: String = client
            .query_one("select current_database()::text", &[])
            .await
            .unwrap()
            .get(0);
        Self {
            database,
            client,
            slot: format!("slot_{name}"),
        }
    }

    pub(crate) async fn try_open(&self) -> Result<Opened, SourceError> {
        Source::open(&self.database, &self.slot, "rowcast").await
    }

    /// Opens the slot; one that is still held by a session that is ending is waited for.
    pub(crate) async fn open(&self) -> Opened {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.try_open().await {
                Ok(opened) => return opened,
                Err(error) if error.retry() == Retry::Soon && Instant::now() < deadline => {
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    pub(crate) async fn slot_is(&self, condition: &str) {
        let query = format!(
            "select {condition} from pg_replication_slots where slot_name = '{}'",
            self.slot
        );
        let deadline = Instant::now() + DEADLINE;
        while !self
            .client
            .query_one(&query, &[])
            .await
            .unwrap()
            .get::<_, bool>(0)
        {
            assert!(Instant::now() < deadline, "never came true: {condition}");
        }
    }
}

pub(crate) async fn event(source: &mut Source) -> SourceEvent {
    timeout(DEADLINE, source.next()).await.unwrap().unwrap()
}

pub(crate) async fn batch(source: &mut Source) -> Batch {
    loop {
        if let SourceEvent::Batch(batch) = event(source).await {
            return batch;
        }
    }
}

/// The next transaction's changes, whatever number of batches they come in.
pub(crate) async fn transaction(source: &mut Source) -> Vec<Change> {
    let mut changes = Vec::new();
    loop {
        let batch = batch(source).await;
        changes.extend(batch.changes);
        if batch.last {
            return changes;
        }
    }
}

pub(crate) async fn failure(source: &mut Source) -> SourceError {
    loop {
        match timeout(DEADLINE, source.next()).await.unwrap() {
            Ok(SourceEvent::Progress(lsn)) => source.acknowledge(lsn),
            Ok(SourceEvent::Batch(batch)) => source.acknowledge(batch.end_lsn),
            Err(error) => return error,
        }
    }
}

pub(crate) fn texts(row: &Row) -> Vec<String> {
    row.values()
        .map(|value| match value {
            Value::Null => "∅".to_owned(),
            Value::Unchanged => "=".to_owned(),
            Value::Text(text) => text.to_owned(),
        })
        .collect()
}

pub(crate) fn shown(change: &Change) -> String {
    let table = &change.relation.name;
    match &change.kind {
        Kind::Insert { new } => format!("{table} +{:?}", texts(new)),
        Kind::Update { old: None, new } => format!("{table} {:?}", texts(new)),
        Kind::Update {
            old: Some(OldRow::Key(old)),
            new,
        } => format!("{table} key{:?} {:?}", texts(old), texts(new)),
        Kind::Update {
            old: Some(OldRow::Full(old)),
            new,
        } => format!("{table} full{:?} {:?}", texts(old), texts(new)),
        Kind::Delete {
            old: OldRow::Key(old),
        } => format!("{table} -key{:?}", texts(old)),
        Kind::Delete {
            old: OldRow::Full(old),
        } => format!("{table} -full{:?}", texts(old)),
        Kind::Truncate => format!("{table} truncate"),
        Kind::Rules => "rules".to_owned(),
        Kind::Lost(lost) => format!("{table} lost {lost:?}"),
    }
}

pub(crate) async fn seen(source: &mut Source) -> Vec<String> {
    transaction(source).await.iter().map(shown).collect()
}

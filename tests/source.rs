//! The source against a real PostgreSQL: what the stream carries, what the slot keeps, and what
//! every refusal says.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::sync::Arc;
use std::time::Duration;

use rowcast::change::{Batch, Change, Kind, OldRow, Row, Value};
use rowcast::pg::Lsn;
use rowcast::pg::connect::Database;
use rowcast::pg::refusal::Retry;
use rowcast::pg::throwaway::{Options, Throwaway};
use rowcast::source::{Opened, Source, SourceError, SourceEvent, choose_publication};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;

const DEADLINE: Duration = Duration::from_secs(60);

/// One server for the tests that leave it as it is. Its keeper ends it with this process.
static SHARED: Mutex<Option<Throwaway>> = Mutex::const_new(None);

async fn shared() -> MutexGuard<'static, Option<Throwaway>> {
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
struct Fixture {
    database: Database,
    client: Client,
    slot: String,
}

impl Fixture {
    async fn new(schema: &str) -> Self {
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

    async fn try_open(&self) -> Result<Opened, SourceError> {
        Source::open(&self.database, &self.slot, "rowcast").await
    }

    /// Opens the slot; one that is still held by a session that is ending is waited for.
    async fn open(&self) -> Opened {
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

    async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    async fn slot_is(&self, condition: &str) {
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

async fn event(source: &mut Source) -> SourceEvent {
    timeout(DEADLINE, source.next()).await.unwrap().unwrap()
}

async fn batch(source: &mut Source) -> Batch {
    loop {
        if let SourceEvent::Batch(batch) = event(source).await {
            return batch;
        }
    }
}

/// The next transaction's changes, whatever number of batches they come in.
async fn transaction(source: &mut Source) -> Vec<Change> {
    let mut changes = Vec::new();
    loop {
        let batch = batch(source).await;
        changes.extend(batch.changes);
        if batch.last {
            return changes;
        }
    }
}

async fn failure(source: &mut Source) -> SourceError {
    loop {
        match timeout(DEADLINE, source.next()).await.unwrap() {
            Ok(SourceEvent::Progress(lsn)) => source.acknowledge(lsn),
            Ok(SourceEvent::Batch(batch)) => source.acknowledge(batch.end_lsn),
            Err(error) => return error,
        }
    }
}

fn texts(row: &Row) -> Vec<String> {
    row.values()
        .map(|value| match value {
            Value::Null => "∅".to_owned(),
            Value::Unchanged => "=".to_owned(),
            Value::Text(text) => text.to_owned(),
        })
        .collect()
}

fn shown(change: &Change) -> String {
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
        Kind::Lost(lost) => format!("{table} lost {lost:?}"),
    }
}

async fn seen(source: &mut Source) -> Vec<String> {
    transaction(source).await.iter().map(shown).collect()
}

#[tokio::test]
async fn every_kind_of_change_arrives_as_it_was_committed() {
    let fixture = Fixture::new(
        "create table a (id int primary key, name text, big text);
         alter table a alter big set storage external;
         create table b (id int, note text);
         alter table b replica identity full",
    )
    .await;
    let mut opened = fixture.open().await;
    assert!(opened.created, "the slot was made");
    let source = &mut opened.source;
    let run = async |sql: &str| fixture.run(sql).await;

    run("insert into a values (1, 'ö', repeat('x', 5000)), (2, null, '')").await;
    let changes = transaction(source).await;
    let Kind::Insert { new } = &changes[0].kind else {
        panic!("{}", shown(&changes[0]))
    };
    assert_eq!(new.get(1), Some(Value::Text("ö")));
    assert_eq!(new.get(2), Some(Value::Text(&"x".repeat(5000))));
    assert_eq!(shown(&changes[1]), r#"a +["2", "∅", ""]"#);
    assert_eq!(&*changes[0].relation.schema, "public");
    assert!(changes[0].relation.columns[0].identity && !changes[0].relation.columns[1].identity);

    run("update a set name = 'n' where id = 1").await;
    assert_eq!(
        seen(source).await,
        [r#"a ["1", "n", "="]"#],
        "TOAST untouched"
    );
    run("update a set id = 3 where id = 2").await;
    assert_eq!(
        seen(source).await,
        [r#"a key["2", "∅", "∅"] ["3", "∅", ""]"#],
        "a changed key"
    );
    run("delete from a where id = 3").await;
    assert_eq!(seen(source).await, [r#"a -key["3", "∅", "∅"]"#]);
    run("insert into b values (1, 'x'); update b set note = 'y'; delete from b").await;
    assert_eq!(
        seen(source).await,
        [
            r#"b +["1", "x"]"#,
            r#"b full["1", "x"] ["1", "y"]"#,
            r#"b -full["1", "y"]"#
        ]
    );
    run("truncate a, b").await;
    let mut truncated = seen(source).await;
    truncated.sort();
    assert_eq!(truncated, ["a truncate", "b truncate"]);
    opened.source.close().await;
}

#[tokio::test]
async fn values_are_in_one_form_whatever_the_database_is_set_to() {
    let fixture = Fixture::new(
        "create table v (t timestamptz, i interval, f float8, b bytea);
         do $$ begin
           execute format('alter database %I set timezone = ''Asia/Tokyo''', current_database());
           execute format('alter database %I set datestyle = ''SQL''', current_database());
           execute format('alter database %I set intervalstyle = ''iso_8601''', current_database());
           execute format('alter database %I set extra_float_digits = -5', current_database());
           execute format('alter database %I set bytea_output = ''escape''', current_database());
         end $$",
    )
    .await;
    let mut opened = fixture.open().await;
    fixture
        .run("insert into v values ('2026-01-02 03:04:05+00', '1 day 2 hours', 0.1::float8 + 0.2, '\\x01')")
        .await;
    assert_eq!(
        seen(&mut opened.source).await,
        [r#"v +["2026-01-02 03:04:05+00", "1 day 02:00:00", "0.30000000000000004", "\\x01"]"#]
    );
}

#[tokio::test]
async fn a_large_transaction_comes_in_batches_of_a_thousand_in_its_own_order() {
    let fixture = Fixture::new("create table a (id int primary key)").await;
    let mut opened = fixture.open().await;
    fixture
        .run("insert into a select generate_series(1, 5000)")
        .await;
    let mut next = 1;
    let mut sizes = Vec::new();
    let mut commits = Vec::new();
    loop {
        let batch = batch(&mut opened.source).await;
        for change in &batch.changes {
            assert_eq!(shown(change), format!("a +[\"{next}\"]"));
            next += 1;
        }
        sizes.push(batch.changes.len());
        commits.push((batch.xid, batch.commit_lsn));
        if batch.last {
            assert!(batch.end_lsn > batch.commit_lsn);
            break;
        }
    }
    assert_eq!(sizes, [1000; 5]);
    commits.dedup();
    assert_eq!(commits.len(), 1, "they are of one transaction");
    let known: i64 = fixture
        .client
        .query_one(
            "select count(*) from a where xmin = $1::text::xid",
            &[&(commits[0].0.0 & 0xFFFF_FFFF).to_string()],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(known, 5000, "the transaction's number is PostgreSQL's");
}

#[tokio::test]
async fn a_table_altered_midstream_has_a_new_version_and_old_rows_keep_theirs() {
    let fixture = Fixture::new("create table a (id int primary key)").await;
    let mut opened = fixture.open().await;
    fixture
        .run(
            "begin; insert into a values (1); alter table a add extra text default 'd'; \
              insert into a values (2); commit",
        )
        .await;
    let changes = transaction(&mut opened.source).await;
    let (first, second) = (&changes[0], &changes[1]);
    assert_eq!(shown(first), r#"a +["1"]"#);
    assert_eq!(shown(second), r#"a +["2", "d"]"#);
    assert!(first.relation.version < second.relation.version);
    assert!(!Arc::ptr_eq(&first.relation, &second.relation));
    assert_eq!(first.relation.oid, second.relation.oid);
}

#[tokio::test]
async fn an_idle_publication_moves_the_slot_on() {
    let fixture = Fixture::new("create table a (id int primary key)").await;
    fixture
        .run(
            "drop publication rowcast; create publication rowcast for table a; \
              create table quiet (id int)",
        )
        .await;
    let mut opened = fixture.open().await;
    fixture
        .run("insert into quiet select generate_series(1, 1000)")
        .await;
    let wanted: String = fixture
        .client
        .query_one("select pg_current_wal_insert_lsn()::text", &[])
        .await
        .unwrap()
        .get(0);
    let wanted: Lsn = wanted.parse().unwrap();
    loop {
        match event(&mut opened.source).await {
            SourceEvent::Progress(lsn) => {
                opened.source.acknowledge(lsn);
                if lsn >= wanted {
                    break;
                }
            }
            SourceEvent::Batch(batch) => panic!("{batch:?}"),
        }
    }
    fixture
        .slot_is(&format!("confirmed_flush_lsn >= '{wanted}'"))
        .await;
}

#[tokio::test]
async fn a_message_outside_transactions_moves_the_position_and_is_no_change() {
    let fixture = Fixture::new("create table a (id int primary key)").await;
    let mut opened = fixture.open().await;
    let lsn: String = fixture
        .client
        .query_one(
            "select pg_logical_emit_message(false, 'p', 'content')::text",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    fixture
        .run("select pg_logical_emit_message(true, 'p', 'content'); insert into a values (1)")
        .await;
    let lsn: Lsn = lsn.parse().unwrap();
    let mut furthest = Lsn(0);
    let changes = loop {
        match event(&mut opened.source).await {
            SourceEvent::Progress(lsn) => furthest = furthest.max(lsn),
            SourceEvent::Batch(batch) => break batch.changes,
        }
    };
    assert_eq!(changes.len(), 1);
    assert_eq!(shown(&changes[0]), r#"a +["1"]"#);
    assert!(furthest.0 + 100 > lsn.0, "{furthest} is before {lsn}");
}

#[tokio::test]
async fn a_broken_connection_is_retried_and_loses_nothing_that_was_not_acknowledged() {
    let fixture = Fixture::new("create table a (id int primary key)").await;
    let mut opened = fixture.open().await;
    fixture.run("insert into a values (1)").await;
    let first = batch(&mut opened.source).await;
    opened.source.acknowledge(first.end_lsn);
    fixture
        .slot_is(&format!("confirmed_flush_lsn >= '{}'", first.end_lsn))
        .await;
    fixture.run("insert into a values (2)").await;
    assert_eq!(seen(&mut opened.source).await, [r#"a +["2"]"#]);
    fixture
        .run(&format!(
            "select pg_terminate_backend(active_pid) from pg_replication_slots \
             where slot_name = '{}'",
            fixture.slot
        ))
        .await;
    let error = failure(&mut opened.source).await;
    assert_eq!(error.retry(), Retry::Soon, "{error}");
    fixture.run("insert into a values (3)").await;
    let mut opened = fixture.open().await;
    assert!(!opened.created);
    assert_eq!(opened.confirmed, first.end_lsn);
    assert_eq!(
        seen(&mut opened.source).await,
        [r#"a +["2"]"#],
        "given out before, not acknowledged"
    );
    assert_eq!(seen(&mut opened.source).await, [r#"a +["3"]"#]);
}

#[tokio::test]
async fn an_acknowledgement_past_what_was_given_out_skips_nothing() {
    let fixture = Fixture::new("create table a (id int primary key)").await;
    let mut opened = fixture.open().await;
    opened.source.acknowledge(Lsn(u64::MAX));
    opened.source.close().await;
    fixture.run("insert into a values (1)").await;
    let mut opened = fixture.open().await;
    assert_eq!(seen(&mut opened.source).await, [r#"a +["1"]"#]);
}

#[tokio::test]
async fn closing_tells_the_last_position_and_frees_the_slot() {
    let fixture = Fixture::new("create table a (id int primary key)").await;
    let mut opened = fixture.open().await;
    fixture.run("insert into a values (1)").await;
    let batch = batch(&mut opened.source).await;
    opened.source.acknowledge(batch.end_lsn);
    opened.source.close().await;
    fixture.slot_is("not active").await;
    fixture
        .slot_is(&format!("confirmed_flush_lsn >= '{}'", batch.end_lsn))
        .await;
}

#[tokio::test]
async fn a_reader_that_stalls_longer_than_the_servers_timeout_keeps_its_connection() {
    let fixture = Fixture::new("create table a (id int primary key, filler text)").await;
    let name: String = fixture
        .client
        .query_one("select quote_ident(current_database())", &[])
        .await
        .unwrap()
        .get(0);
    let url = format!(
        "{}&options=-c%20wal_sender_timeout%3D1s",
        shared().await.as_ref().unwrap().url(&name)
    );
    let database = Database::parse(&url).unwrap();
    let mut opened = Source::open(&database, &fixture.slot, "rowcast")
        .await
        .unwrap();
    fixture
        .run("insert into a select n, repeat('x', 1000) from generate_series(1, 60000) n")
        .await;
    let first = batch(&mut opened.source).await;
    // The server has more to say than fits anywhere; nobody listens for longer than it waits.
    let stalled = Instant::now();
    while stalled.elapsed() < Duration::from_secs(4) {
        fixture.slot_is("active").await;
        fixture.run("select pg_sleep(0.2)").await;
    }
    let mut count = first.changes.len();
    while count < 60_000 {
        count += batch(&mut opened.source).await.changes.len();
    }
}

#[tokio::test]
async fn a_slot_in_use_is_worth_another_attempt() {
    let fixture = Fixture::new("create table a (id int primary key)").await;
    let opened = fixture.open().await;
    let error = fixture.try_open().await.map(drop).unwrap_err();
    assert_eq!(error.retry(), Retry::Soon, "{error}");
    assert!(error.to_string().contains("55006"), "{error}");
    opened.source.close().await;
}

#[tokio::test]
async fn what_cannot_heal_is_one_sentence_with_the_sql_that_mends_it() {
    let fixture = Fixture::new("create table a (id int primary key)").await;
    let refused = async |database: &Database, slot: &str, publication: &str| {
        let error = Source::open(database, slot, publication)
            .await
            .map(drop)
            .unwrap_err();
        assert_eq!(error.retry(), Retry::Never, "{error}");
        error.to_string()
    };
    let text = refused(&fixture.database, "s", "of\"no").await;
    assert!(
        text.contains("create publication \"of\"\"no\" for table"),
        "{text}"
    );
    fixture
        .run("create role reader login; grant all on schema public to reader")
        .await;
    let url = shared().await.as_ref().unwrap().url("postgres");
    let name: String = fixture
        .client
        .query_one("select current_database()::text", &[])
        .await
        .unwrap()
        .get(0);
    let as_reader = url
        .replace("postgres@", "reader@")
        .replace("/postgres?", &format!("/{name}?"));
    let text = refused(&Database::parse(&as_reader).unwrap(), "s", "rowcast").await;
    assert!(text.contains("alter role \"reader\" replication"), "{text}");
    let nowhere = Database::parse(&url.replace("/postgres?", "/nowhere?")).unwrap();
    let text = refused(&nowhere, "s", "rowcast").await;
    assert!(text.contains("3D000"), "{text}");
    fixture
        .run(&format!(
            "select pg_create_physical_replication_slot('physical_{}')",
            fixture.slot
        ))
        .await;
    let physical = format!("physical_{}", fixture.slot);
    let text = refused(&fixture.database, &physical, "rowcast").await;
    assert!(text.contains("pg_drop_replication_slot"), "{text}");
    let other = Fixture::new("create table a (id int primary key)").await;
    other.open().await.source.close().await;
    let text = refused(&fixture.database, &other.slot, "rowcast").await;
    assert!(text.contains("belongs to database"), "{text}");
}

#[tokio::test]
async fn a_publication_made_after_the_slot_is_not_retried_for_ever() {
    let fixture = Fixture::new("create table a (id int primary key)").await;
    fixture.open().await.source.close().await;
    fixture.run("drop publication rowcast").await;
    fixture.run("insert into a values (1)").await;
    fixture
        .run("create publication rowcast for all tables")
        .await;
    let mut opened = fixture.open().await;
    let error = failure(&mut opened.source).await;
    assert_eq!(error.retry(), Retry::Never, "{error}");
    let text = error.to_string();
    assert!(text.contains("select pg_drop_replication_slot("), "{text}");
}

#[tokio::test]
async fn the_publication_is_the_configured_one_or_a_known_one() {
    let fixture = Fixture::new("drop publication if exists rowcast").await;
    let client = &fixture.client;
    fixture.run("create publication supabase_realtime").await;
    assert_eq!(choose_publication(client, None).await.unwrap(), "rowcast");
    fixture.run("drop publication rowcast").await;
    assert_eq!(
        choose_publication(client, None).await.unwrap(),
        "supabase_realtime"
    );
    let error = choose_publication(client, Some("mine")).await.unwrap_err();
    assert!(error.to_string().contains("create publication \"mine\""));
    fixture.run("drop publication supabase_realtime").await;
    let error = choose_publication(client, None).await.unwrap_err();
    assert!(error.to_string().contains("create publication rowcast"));
}

#[tokio::test]
async fn a_server_without_logical_wal_and_a_slot_given_up_are_told_apart() {
    let mut server = Throwaway::start(Options {
        settings: vec!["max_slot_wal_keep_size = 1MB".to_owned()],
        ..Options::default()
    })
    .await
    .unwrap();
    let database = Database::parse(&server.url("postgres")).unwrap();
    let client = database.connect("test").await.unwrap();
    client
        .batch_execute("create table a (id int); create publication rowcast for table a")
        .await
        .unwrap();
    let opened = Source::open(&database, "s", "rowcast").await.unwrap();
    assert_eq!(opened.system.timeline, 1);
    assert!(opened.system.system_identifier > 0 && opened.system.server_version_num >= 140_000);
    opened.source.close().await;
    let deadline = Instant::now() + DEADLINE;
    loop {
        client
            .batch_execute(
                "insert into a select generate_series(1, 1000); select pg_switch_wal(); checkpoint",
            )
            .await
            .unwrap();
        match Source::open(&database, "s", "rowcast").await {
            Err(SourceError::SlotLost { .. }) => break,
            Ok(opened) => opened.source.close().await,
            Err(error) => assert_eq!(error.retry(), Retry::Soon, "{error}"),
        }
        assert!(Instant::now() < deadline);
    }
    client
        .batch_execute("select pg_drop_replication_slot('s')")
        .await
        .unwrap();
    let mut opened = Source::open(&database, "s", "rowcast").await.unwrap();
    assert!(opened.created, "the gap can be announced");
    let stopping = Instant::now();
    let ((), error) = tokio::join!(server.stop_server(), failure(&mut opened.source));
    assert!(
        stopping.elapsed() < Duration::from_secs(9),
        "PostgreSQL waits for its receivers when it shuts down"
    );
    assert_eq!(error.retry(), Retry::Soon, "{error}");
    let error = Source::open(&database, "s", "rowcast")
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(error.retry(), Retry::Soon, "nobody listens: {error}");
    server.start_server().await.unwrap();
    let client = database.connect("test").await.unwrap();
    client
        .batch_execute("select pg_drop_replication_slot('s')")
        .await
        .unwrap();
    server.configure(&["wal_level = replica"]).unwrap();
    server.restart().await.unwrap();
    let error = Source::open(&database, "s", "rowcast")
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "wal_level is \"replica\": run \"alter system set wal_level = logical\" and restart \
         PostgreSQL"
    );
    server.stop().await;
}

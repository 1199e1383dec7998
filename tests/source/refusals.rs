//! What PostgreSQL can say no to, and what we say then.

use std::time::Duration;

use rowcast::pg::connect::Database;
use rowcast::pg::refusal::Retry;
use rowcast::pg::throwaway::{Options, Throwaway};
use rowcast::source::{Source, SourceError, choose_publication};
use tokio::time::Instant;

use crate::fixture::{DEADLINE, Fixture, failure, shared};

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
async fn a_publication_made_after_the_slot_is_said_to_be_younger() {
    let fixture = Fixture::new("create table a (id int primary key)").await;
    fixture.open().await.source.close().await;
    fixture.run("drop publication rowcast").await;
    fixture.run("insert into a values (1)").await;
    fixture
        .run("create publication rowcast for all tables")
        .await;
    let mut opened = fixture.open().await;
    let error = failure(&mut opened.source).await;
    assert!(
        matches!(error, SourceError::PublicationYounger { .. }),
        "{error}"
    );
    assert!(error.stuck().is_some(), "trying for ever does not help");
    let text = error.to_string();
    assert!(text.contains("create publication \"rowcast\""), "{text}");
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
async fn a_server_without_logical_wal_is_told_and_a_slot_given_up_is_made_anew() {
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
    // Given up by the server, it is made anew.
    let mut opened = loop {
        client
            .batch_execute(
                "insert into a select generate_series(1, 1000); select pg_switch_wal(); checkpoint",
            )
            .await
            .unwrap();
        match Source::open(&database, "s", "rowcast").await {
            Ok(opened) if opened.created => break opened,
            Ok(opened) => opened.source.close().await,
            Err(error) => assert_eq!(error.retry(), Retry::Soon, "{error}"),
        }
        assert!(Instant::now() < deadline);
    };
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

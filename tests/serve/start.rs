//! What it needs to start, and what it says where it cannot.

use crate::client::Client;
use crate::harness::{ANN, Daemon, Database, SECRET, cluster, token};

#[tokio::test]
async fn a_database_and_a_secret_are_enough() {
    for publication in ["rowcast", "supabase_realtime"] {
        let database = Database::new(publication).await;
        let environment = [
            ("DATABASE_URL", database.url.as_str()),
            ("JWT_SECRET", SECRET),
        ];
        let daemon = Daemon::spawn(&environment);
        let mut client = Client::following(&daemon, &token(ANN), "open").await;
        database.insert_open(1).await;
        assert_eq!(client.change().await, "INSERT 1");
        let streaming = daemon.logged("streaming changes").await;
        assert_eq!(streaming["publication"], publication);
        let slot = "select plugin || ' ' || temporary from pg_replication_slots \
                    where slot_name = 'rowcast'";
        assert_eq!(database.text(slot).await, "pgoutput false");
        daemon.terminate().await;
        // The next database has the same slot.
        database
            .run("select pg_drop_replication_slot('rowcast')")
            .await;
    }
}

/// Exit code and the only sentence, the last line of the log.
async fn last_word(environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut daemon = Daemon::spawn(environment);
    let (code, log) = daemon.ended().await;
    let last = log.lines().last().unwrap().to_owned();
    let errors = log.lines().filter(|line| line.contains("ERROR")).count();
    assert!(errors <= 1, "one sentence, not {errors}:\n{log}");
    (code, last)
}

#[tokio::test]
async fn what_cannot_heal_ends_it_with_the_sql_that_mends_it() {
    let database = Database::new("rowcast").await;
    let other = Database::new("rowcast").await;
    other
        .run("select pg_create_logical_replication_slot('elsewhere', 'pgoutput')")
        .await;
    database
        .run(
            "select pg_create_physical_replication_slot('physical'); \
             create role reader login; create role locked login password 'right'",
        )
        .await;
    let as_reader = database.url.replace("postgres@", "reader@");
    let nowhere = database.url.replace("/fresh_", "/nowhere_");
    for (url, name, value, words) in [
        (
            &database.url,
            "ROWCAST_PUBLICATION",
            "mine",
            "create publication \\\"mine\\\" for table",
        ),
        (
            &as_reader,
            "ROWCAST_SLOT",
            "reader",
            "alter role \\\"reader\\\" replication",
        ),
        (
            &database.url,
            "ROWCAST_SLOT",
            "physical",
            "select pg_drop_replication_slot('physical')",
        ),
        (
            &database.url,
            "ROWCAST_SLOT",
            "elsewhere",
            "select pg_drop_replication_slot('elsewhere')",
        ),
        (&nowhere, "ROWCAST_SLOT", "x", "3D000"),
    ] {
        let environment = [
            ("DATABASE_URL", url.as_str()),
            ("JWT_SECRET", SECRET),
            (name, value),
        ];
        let (code, last) = last_word(&environment).await;
        assert_eq!(code, Some(69), "{last}");
        assert!(last.contains(words), "{words} is missing in {last}");
    }
    database.run("drop publication rowcast").await;
    let environment = [
        ("DATABASE_URL", database.url.as_str()),
        ("JWT_SECRET", SECRET),
    ];
    let (code, last) = last_word(&environment).await;
    assert_eq!(code, Some(69), "{last}");
    assert!(
        last.contains("create publication rowcast for table"),
        "{last}"
    );
    database
        .run("select pg_drop_replication_slot('physical')")
        .await;
    other
        .run("select pg_drop_replication_slot('elsewhere')")
        .await;
}

#[tokio::test]
async fn a_taken_port_and_settings_that_cannot_be_read_are_mistakes_of_usage() {
    let url = cluster().await.url("postgres");
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (name, value, words) in [
        ("ROWCAST_LISTEN", address.as_str(), "(ROWCAST_LISTEN)"),
        (
            "ROWCAST_ADMIN_LISTEN",
            address.as_str(),
            "(ROWCAST_ADMIN_LISTEN)",
        ),
        ("ROWCAST_LISTEN", "here", "ROWCAST_LISTEN"),
        ("ROWCAST_SLOTS", "x", "ROWCAST_SLOTS"),
        ("JWKS_URL", "ftp://x", "JWKS_URL"),
    ] {
        let environment = [
            ("DATABASE_URL", url.as_str()),
            ("JWT_SECRET", SECRET),
            (name, value),
        ];
        let (code, last) = last_word(&environment).await;
        assert_eq!(code, Some(64), "{last}");
        assert!(last.contains(words), "{words} is missing in {last}");
    }
}

#[tokio::test]
async fn a_secret_that_everybody_knows_is_warned_of_and_never_printed() {
    let database = Database::new("rowcast").await;
    let known = "your-super-secret-jwt-token-with-at-least-32-characters-long";
    let environment = [
        ("DATABASE_URL", database.url.as_str()),
        ("ROWCAST_SLOT", database.slot.as_str()),
        ("JWT_SECRET", known),
    ];
    let daemon = Daemon::spawn(&environment);
    daemon.ready().await;
    let log = daemon.log();
    let warned = log
        .lines()
        .filter(|line| line.contains("WARN") && line.contains("an example that everybody knows"));
    assert_eq!(warned.count(), 1, "{log}");
    assert!(!log.contains(known), "{log}");
    daemon.terminate().await;
}

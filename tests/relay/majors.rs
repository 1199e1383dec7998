//! What differs between PostgreSQL's major versions.

#![allow(clippy::print_stdout, reason = "what is not tested is printed")]

use rowcast::config::Secret;
use rowcast::pg::Oid;
use rowcast::pg::connect::Database;
use rowcast::policy::reader::CatalogReader;

use crate::harness::{Relay, cluster, connect};

/// Whether the server is at least of that major version; where not, that is printed.
pub(crate) async fn at_least(major: u32, for_what: &str) -> bool {
    let client = connect(&cluster().await.url("postgres")).await;
    let row = client
        .query_one("select current_setting('server_version_num')::int", &[])
        .await
        .unwrap();
    let version = u32::try_from(row.get::<_, i32>(0)).unwrap() / 10_000;
    if version < major {
        println!("not tested: PostgreSQL {version} has no {for_what}, {major} has");
    }
    version >= major
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_the_login_may_not_set_is_not_asked_under() {
    if !at_least(16, "memberships without SET").await {
        return;
    }
    let name = format!("relay_without_set_{:08x}", rand::random::<u32>());
    let relay = Relay::with(
        &format!(
            "create role {name} login replication;
             grant authenticated to {name} with inherit true, set false;
             create table t (id int primary key, title text);
             alter table t enable row level security;
             create policy p on t using (title ~ '^a+');
             grant select on t to authenticated"
        ),
        "t",
        |config| {
            let url = config
                .database_url
                .expose()
                .replace("postgres@", &format!("{name}@"));
            config.database_url = Secret::new(url);
        },
    )
    .await;
    let refused = relay.refused("authenticated", "t", "").await;
    assert!(
        refused.contains("grant authenticated to it with set true"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_is_compiled_by_the_locale_that_decides_it() {
    if !at_least(15, "databases with ICU's collation").await {
        return;
    }
    let name = format!("icu_{:08x}", rand::random::<u32>());
    let cluster = cluster().await;
    let client = connect(&cluster.url("postgres")).await;
    for (locale, plain_case) in [("tr-TR", false), ("en-US", true)] {
        // What the C library would go by says nothing here.
        let make = format!(
            "create database {name} template template0 lc_collate 'C' lc_ctype 'C' \
             locale_provider icu icu_locale '{locale}'"
        );
        client.batch_execute(&make).await.unwrap();
        let database = Database::parse(&cluster.url(&name)).unwrap();
        let mut reader =
            CatalogReader::new(database, ("rowcast".to_owned(), "rowcast".to_owned()), []);
        let catalog = reader.look().await.unwrap();
        let default = catalog.native.collation(Oid(100)).unwrap();
        assert_eq!(default.plain_case, plain_case, "{locale}");
        assert!(!default.bytewise, "{locale}");
        drop(reader);
        let drop = format!("drop database {name} with (force)");
        client.batch_execute(&drop).await.unwrap();
    }
}

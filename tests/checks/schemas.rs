//! The schemas of `tests/policies`: nothing in them is refused.

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt as _;
use rowcast::pg::connect::Database;
use rowcast::policy::check::{Found, Limits, check};
use rowcast::policy::reader::CatalogReader;

use crate::harness::{cluster, connect};

/// Schemas that are looked at together.
const AT_ONCE: usize = 4;

/// Tables with policies, as in SQL; without partitions, which are published with their roots.
const TABLES: &str = "select coalesce(string_agg(distinct c.oid::regclass::text, ', '), '') from pg_class c \
    where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence = 'p' \
      and exists (select from pg_policy p where p.polrelid = c.oid)";

/// What was found: how many agree, how many were not checked, and what differs.
async fn found(name: &str, sql: &str) -> (usize, usize, Vec<String>) {
    let url = cluster().await.fresh_database().await.unwrap();
    let client = connect(&url).await;
    for text in [
        include_str!("../../sql/auth.sql"),
        include_str!("../policies/supabase.sql"),
        sql,
    ] {
        let done = client.batch_execute(text).await;
        done.unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
    let tables: String = client.query_one(TABLES, &[]).await.unwrap().get(0);
    if tables.is_empty() {
        return (0, 0, Vec::new());
    }
    let publication = format!(
        "create publication rowcast for table {tables} \
         with (publish_via_partition_root = true)"
    );
    client.batch_execute(&publication).await.unwrap();
    let roles = ["anon", "authenticated", "service_role"].map(str::to_owned);
    let followed = ("rowcast".to_owned(), "rowcast".to_owned());
    let mut reader = CatalogReader::new(Database::parse(&url).unwrap(), followed, roles);
    let catalog = reader.look().await.unwrap();
    let limits = Limits {
        statement: Duration::from_secs(20),
        whole: Duration::from_secs(60),
        ..Limits::default()
    };
    let (mut agreed, mut left, mut differs) = (0, 0, Vec::new());
    let client = Database::parse(&url).unwrap();
    let client = client.connect("test").await.unwrap();
    for table in catalog.tables.values().filter(|table| table.published) {
        for role in catalog.roles.values().filter(|role| !role.bypass) {
            let place = (&**table, role.name.as_str());
            let found = Box::pin(check(&client, &catalog, place, limits)).await;
            for one in found.unwrap_or_else(|error| panic!("{name}: {error}")) {
                match one.found {
                    Found::Agrees(_) => agreed += 1,
                    Found::NotChecked(reason) => {
                        eprintln!("{name}: {} {}: {reason}", one.table, one.policy);
                        left += 1;
                    }
                    Found::Differs(_) => {
                        differs.push(format!("{name}: {:?} {}", one.key, one.table));
                    }
                }
            }
        }
    }
    (agreed, left, differs)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_policy_of_schemas_as_people_have_them_is_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policies/schemas");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "sql"))
        .collect();
    files.sort();
    assert!(files.len() >= 60, "{} schemas", files.len());
    let runs = files.into_iter().map(|path| {
        tokio::spawn(async move {
            let sql = std::fs::read_to_string(&path).unwrap();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            found(&name, &sql).await
        })
    });
    let all: Vec<_> = futures_util::stream::iter(runs)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let (mut agreed, mut left, mut differs) = (0, 0, Vec::new());
    for one in all {
        let (these, others, wrong) = one.expect("a schema");
        agreed += these;
        left += others;
        differs.extend(wrong);
    }
    eprintln!("{agreed} agree, {left} were not checked");
    assert!(differs.is_empty(), "{}", differs.join("\n"));
    assert!(agreed >= 9 * left && agreed > 200, "{agreed} of {left}");
}

//! Which tables are published, and what becomes of those that are not.

use crate::harness::{Place, SCHEMA};

const ODD: &str = r#"
create table app.nokey (a int, b int);
alter table app.nokey enable row level security;
create table app.nothing (a int primary key, b int);
alter table app.nothing enable row level security, replica identity nothing;
create table app.deferred (a int primary key deferrable, b int);
alter table app.deferred enable row level security;
create unlogged table app.unlogged (a int primary key, b int);
alter table app.unlogged enable row level security;
create table app.open (a int primary key, b int);
create view app.shown as select * from app.open;
create table app.split (a int, b int) partition by range (a);
create table app.split_1 partition of app.split (primary key (a)) for values from (0) to (10);
create table app.split_2 partition of app.split for values from (10) to (20);
alter table app.split enable row level security;
create table app.parent (a int primary key, b int);
create table app.child () inherits (app.parent);
alter table app.parent enable row level security;
create table app."Odd ""Name"", with a comma" (a int primary key, b int);
alter table app."Odd ""Name"", with a comma" enable row level security;
"#;

/// Why a table is not published, in words of the sentence that says so.
const REFUSED: [(&str, &str); 10] = [
    ("app.nokey", "no replica identity"),
    ("app.nothing", "no replica identity"),
    ("app.deferred", "primary key that is not deferrable"),
    (
        "app.split",
        "partitions have no replica identity (app.split_2)",
    ),
    ("app.unlogged", "unlogged"),
    ("app.open", "--without-rls"),
    ("app.shown", "view"),
    ("app.missing", "no such table"),
    ("app.Todos_", "no such table"),
    ("todos", "write the schema with it"),
];

async fn published(place: &Place) -> String {
    place
        .text("select string_agg(prrelid::regclass::text, ' ' order by prrelid::regclass::text) from pg_publication_rel")
        .await
}

#[tokio::test]
async fn a_table_whose_updates_would_fail_is_named_and_goes_on_working() {
    let place = Place::new("createrole").await;
    place.run(SCHEMA).await;
    place.run(ODD).await;
    let mut arguments = vec![
        "--table",
        "app.todos",
        "--table",
        r#"app."Odd ""Name"", with a comma""#,
        "--table",
        "app.parent",
    ];
    for (table, _) in REFUSED {
        arguments.extend(["--table", table]);
    }
    // Twice: what the first run changed must not have the second publish more.
    for _ in 0..2 {
        let said = place.setup("postgres", &arguments).await;
        assert_eq!(said.code, 1, "{}\n{}", said.out, said.error);
        for (table, why) in REFUSED {
            let line = format!("NOT DONE: {table} is not published: ");
            let found = said.out.lines().find(|text| text.contains(&line));
            assert!(
                found.is_some_and(|found| found.contains(why)),
                "{table}: {why}\n{}",
                said.out
            );
        }
        assert_eq!(
            published(&place).await,
            r#"app."Odd ""Name"", with a comma" app.parent app.todos"#
        );
    }
    for table in [
        "nokey", "nothing", "deferred", "unlogged", "open", "split_1", "split_2", "child", "parent",
    ] {
        let key = if table == "split_2" { 11 } else { 1 };
        place
            .run(&format!(
                "insert into app.{table} values ({key}, 1); update app.{table} set b = 2; delete from app.{table}"
            ))
            .await;
    }
    // The SQL that the sentence names mends it.
    place
        .run("alter table app.split_2 replica identity full")
        .await;
    place
        .setup(
            "postgres",
            &[
                "--table",
                "app.split",
                "--without-rls",
                "--table",
                "app.open",
            ],
        )
        .await
        .ok();
    assert_eq!(
        published(&place).await,
        r#"app."Odd ""Name"", with a comma" app.open app.parent app.split app.todos"#
    );
    place.run("insert into app.split values (1, 1), (11, 1); update app.split set b = 2; delete from app.split").await;
}

#[tokio::test]
async fn nothing_is_published_that_was_not_named() {
    let place = Place::new("createrole").await;
    place.run(SCHEMA).await;
    place.run(ODD).await;
    let out = place.setup("postgres", &[]).await.ok();
    let hint = out
        .lines()
        .find(|line| line.contains("no table is named"))
        .unwrap();
    assert!(
        hint.contains("--table 'app.todos'") && hint.contains("--table 'app.parts'"),
        "{hint}"
    );
    assert!(
        !hint.contains("nokey") && !hint.contains("app.open'"),
        "{hint}"
    );
    assert_eq!(published(&place).await, "");

    let said = place.setup("postgres", &["--schema", "app"]).await.ok();
    assert!(said.contains("Note: app.nokey is not published"), "{said}");
    assert_eq!(
        published(&place).await,
        r#"app."Odd ""Name"", with a comma" app.members app.notes app.parent app.parts app.plans app.todos"#
    );
    place.run("create table app.later (id int primary key); alter table app.later enable row level security").await;
    assert!(!published(&place).await.contains("later"));
}

#[tokio::test]
async fn the_tables_may_come_from_the_environment() {
    let place = Place::new("createrole").await;
    place.run(SCHEMA).await;
    let url = place.url("postgres");
    let environment = [
        ("DATABASE_URL", url.as_str()),
        ("ROWCAST_SETUP_TABLES", "app.todos,app.notes"),
    ];
    crate::harness::setup(&environment, &[]).await.ok();
    assert_eq!(published(&place).await, "app.notes app.todos");
}

#[tokio::test]
async fn a_publication_that_was_there_is_not_changed() {
    let place = Place::new("createrole").await;
    let version = place.text("show server_version_num").await;
    if version.as_str() < "150000" {
        println!("not tested: column lists and row filters need PostgreSQL 15");
        return;
    }
    place.run(SCHEMA).await;
    place
        .admin("create publication rowcast for table app.notes (id, owner) where (id > 0)")
        .await;
    let said = place.setup("postgres", &["--table", "app.todos"]).await;
    // Any wider identity would be beyond the column list.
    place
        .run("insert into app.notes values (1, 'a', 'a'); update app.notes set body = 'b'")
        .await;
    assert!(
        said.out.contains("app.notes keeps its replica identity"),
        "{}",
        said.out
    );
    assert_eq!(said.code, 1, "{}", said.out);
    assert!(
        said.out
            .contains("shows only some rows and columns of app.notes"),
        "{}",
        said.out
    );
    assert!(
        said.out
            .contains("there before setup, which does not change it"),
        "{}",
        said.out
    );
    assert!(
        said.out
            .contains("alter publication rowcast add table only app.todos;"),
        "{}",
        said.out
    );
    assert_eq!(published(&place).await, "app.notes");
    place.setup("postgres", &["--remove"]).await.ok();
    assert_eq!(published(&place).await, "app.notes");

    place
        .admin("drop publication rowcast; create publication rowcast for all tables")
        .await;
    let said = place.setup("postgres", &["--table", "app.todos"]).await;
    assert!(said.out.contains("FOR ALL TABLES"), "{}", said.out);
    // What is published by it and cannot be updated is named as well.
    place.run(ODD).await;
    let said = place.setup("postgres", &[]).await;
    assert_eq!(said.code, 69, "{}", said.out);
    assert!(
        said.out
            .contains("The published table app.nokey has no replica identity"),
        "{}",
        said.out
    );
}

#[tokio::test]
async fn a_name_cannot_become_a_statement() {
    let place = Place::new("createrole").await;
    place
        .run(
            "create schema app; \
             create table app.victim (id int primary key); \
             create table app.\"x\ndrop table app.victim;\n--\" (id int primary key, \"y\ndrop table app.victim;\n--\" text, \"z\"\"\" int not null); \
             alter table app.\"x\ndrop table app.victim;\n--\" enable row level security; \
             create policy p on app.\"x\ndrop table app.victim;\n--\" for select using (\"y\ndrop table app.victim;\n--\" is null and \"z\"\"\" = 1); \
             create table app.\"k\ndrop table app.victim;\n--\" (id int); \
             alter table app.\"k\ndrop table app.victim;\n--\" enable row level security",
        )
        .await;
    for _ in 0..2 {
        let printed = place
            .setup("postgres", &["--print", "--schema", "app"])
            .await
            .ok();
        let begins = printed
            .lines()
            .filter(|line| line.trim_start().starts_with("drop table"))
            .count();
        let quoted = printed.matches("\"x\ndrop table").count();
        assert_eq!(begins, quoted, "only inside a quoted name:\n{printed}");
        place
            .setup("postgres", &["--schema", "app", "--role", "re\"lay x"])
            .await
            .ok();
        place.text("select 'app.victim'::regclass::text").await;
    }
    assert_eq!(
        place
            .text("select count(*)::text from pg_roles where rolname = 're\"lay x'")
            .await,
        "1"
    );
    place
        .setup("postgres", &["--remove", "--role", "re\"lay x"])
        .await
        .ok();
    place.text("select 'app.victim'::regclass::text").await;
    assert_eq!(
        place
            .text("select count(*)::text from pg_roles where rolname = 're\"lay x'")
            .await,
        "0"
    );
}

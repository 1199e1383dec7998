//! Old rows carry what policies and filters read, by the daemon's own account of it.

use rowcast::pg::connect::Database;
use rowcast::policy::access::Access;
use rowcast::policy::reader::CatalogReader;

use crate::harness::{Place, SCHEMA};

/// Tables, and the replica identity that setup should choose.
const TABLES: [(&str, &str, &str); 14] = [
    ("by_uuid", "id bigint primary key, u uuid not null", "i"),
    (
        "two_columns",
        "id bigint primary key, u uuid not null, v int not null",
        "i",
    ),
    (
        "as_a_whole",
        "id bigint primary key, u uuid not null, v int not null",
        "i",
    ),
    (
        "two_keys",
        "u uuid, id int, v int, primary key (id, v)",
        "f",
    ),
    ("nullable", "id bigint primary key, u uuid", "f"),
    ("long_text", "id bigint primary key, u text not null", "f"),
    (
        "short_text",
        "id bigint primary key, u varchar(40) not null",
        "i",
    ),
    ("an_enum", "id bigint primary key, u app.mood not null", "i"),
    (
        "a_domain",
        "id bigint primary key, u app.tiny not null",
        "i",
    ),
    ("a_point", "id bigint primary key, u point not null", "f"),
    (
        "computed",
        "id bigint primary key, a int not null, u int generated always as (a + 1) stored",
        "i",
    ),
    ("key_only", "u bigint primary key, v int", "d"),
    ("full_already", "id bigint primary key, u uuid", "f"),
    ("split", "id bigint, u uuid not null, primary key (id)", "f"),
];

fn condition(table: &str) -> &'static str {
    match table {
        "two_columns" => "u is not null and v > 0",
        "as_a_whole" => "to_jsonb(as_a_whole) ->> 'v' = '1'",
        "a_point" => "u ~= point '(1,2)'",
        _ => "u is not null",
    }
}

async fn make(place: &Place) -> Vec<String> {
    place
        .run(
            "create schema app; create type app.mood as enum ('good', 'bad'); \
             create domain app.tiny as smallint check (value > 0)",
        )
        .await;
    let mut arguments = Vec::new();
    for (table, columns, _) in TABLES {
        let partitioned = if table == "split" {
            " partition by range (id)"
        } else {
            ""
        };
        place
            .run(&format!(
                "create table app.{table} ({columns}){partitioned}; \
                 alter table app.{table} enable row level security; \
                 create policy p on app.{table} for select using ({})",
                condition(table)
            ))
            .await;
        arguments.extend(["--table".to_owned(), format!("app.{table}")]);
    }
    place
        .run(
            "create table app.split_1 partition of app.split for values from (0) to (10); \
             alter table app.full_already replica identity full; \
             create policy for_writing on app.key_only for update using (v = 1); \
             create policy for_nobody_here on app.key_only for select to owner using (v = 1)",
        )
        .await;
    arguments
}

/// What a role may see of each table is decided by columns that its old rows carry.
async fn carried(place: &Place) {
    let database = Database::parse(&place.url("postgres")).unwrap();
    let roles = ["anon", "authenticated"].map(str::to_owned);
    let mut reader = CatalogReader::new(
        database,
        ("rowcast".to_owned(), "rowcast".to_owned()),
        roles.clone(),
    );
    let catalog = reader.look().await.unwrap();
    for (name, _, _) in TABLES {
        let table = catalog.published("app", name).expect(name);
        for role in &roles {
            let access = Access::new(&catalog, table, role);
            assert!(!access.reads.is_empty(), "{name}: its policy reads columns");
            for column in &access.reads {
                let column = table.column(column).unwrap();
                assert!(
                    table.identity_carries(column),
                    "{name}.{} for {role}",
                    column.name
                );
            }
        }
    }
}

async fn identities(place: &Place) -> Vec<(String, String)> {
    let rows = place
        .admin
        .query(
            "select relname::text, relreplident::text from pg_class where relnamespace = 'app'::regnamespace \
             and relkind in ('r', 'p') order by oid",
            &[],
        )
        .await
        .unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test]
async fn old_rows_carry_what_policies_read() {
    let place = Place::new("createrole").await;
    let arguments = make(&place).await;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let before = identities(&place).await;
    // The owner may not see its own tables' rights by these roles otherwise.
    place.setup("postgres", &["--only", "auth"]).await.ok();
    place
        .run("grant usage on schema app to anon, authenticated; grant select on all tables in schema app to anon, authenticated")
        .await;
    place.setup("postgres", &arguments).await.ok();
    carried(&place).await;
    let after = identities(&place).await;
    for (table, _, wanted) in TABLES {
        let found = after.iter().find(|(name, _)| name == table).unwrap();
        assert_eq!(found.1, wanted, "{table}");
    }
    // A long text in a deciding column must not make writes fail.
    place
        .run(
            "insert into app.long_text select 1, string_agg(md5(i::text), '') from generate_series(1, 2000) i; \
             update app.long_text set id = 2; delete from app.long_text",
        )
        .await;

    // A policy that reads more has its index replaced, and what was before is still known.
    place
        .run(
            "alter table app.by_uuid add column more int not null default 1; \
              create policy q on app.by_uuid for select using (more = 1)",
        )
        .await;
    place.setup("postgres", &arguments).await.ok();
    let of_by_uuid = "select string_agg(indexrelid::regclass::text, ' ') from pg_index where indrelid = 'app.by_uuid'::regclass and not indisprimary";
    assert_eq!(place.text(of_by_uuid).await.split(' ').count(), 1);
    carried(&place).await;

    place
        .setup("postgres", &["--remove", "--only", "identity,publication"])
        .await
        .ok();
    assert_eq!(identities(&place).await, before);
    assert_eq!(place.text(of_by_uuid).await, "");
}

#[tokio::test]
async fn an_index_whose_build_was_broken_off_is_built_again() {
    let place = Place::new("createrole").await;
    place
        .run("create schema app; create table app.t (id int primary key, u uuid not null); \
              alter table app.t enable row level security; create policy p on app.t for select using (u is not null)")
        .await;
    place.setup("postgres", &["--table", "app.t"]).await.ok();
    let index = place
        .text("select indexrelid::regclass::text from pg_index where indrelid = 'app.t'::regclass and indisreplident")
        .await;
    place
        .admin(&format!(
            "alter table app.t replica identity default; comment on index {index} is null; \
             update pg_index set indisvalid = false where indexrelid = '{index}'::regclass"
        ))
        .await;
    let out = place.setup("postgres", &["--table", "app.t"]).await.ok();
    assert!(
        out.contains(&format!("drop index concurrently {index};")),
        "{out}"
    );
    let valid = format!(
        "select indisvalid and indisreplident from pg_index where indexrelid = '{index}'::regclass"
    );
    let row = place.admin.query_one(&valid, &[]).await.unwrap();
    assert!(row.get::<_, bool>(0));
}

#[tokio::test]
async fn a_locked_table_is_not_waited_for_and_blocks_nobody() {
    let place = Place::new("createrole").await;
    place
        .run("create schema app; create table app.t (id int primary key, u uuid); \
              alter table app.t enable row level security; create policy p on app.t for select using (u is not null)")
        .await;
    place.run("begin; insert into app.t values (1)").await;
    let said = place.setup("postgres", &["--table", "app.t"]).await;
    assert_eq!(said.code, 69, "{}\n{}", said.out, said.error);
    assert!(said.error.contains("holds a lock"), "{}", said.error);
    place.run("commit").await;
    place.setup("postgres", &["--table", "app.t"]).await.ok();
}

#[tokio::test]
async fn an_identity_that_other_publications_do_not_bear_is_refused_and_updates_go_on() {
    let place = Place::new("createrole").await;
    place.run(SCHEMA).await;
    let version: i32 = place.text("show server_version_num").await.parse().unwrap();
    let list = if version >= 150_000 {
        "(id, title)"
    } else {
        ""
    };
    place
        .run(&format!(
            "create publication warehouse for table app.todos {list};
             create table app.doubled (id int primary key, a int, b int generated always as (a * 2) stored);
             alter table app.doubled enable row level security;
             create policy few on app.doubled for select using (a > 1);
             insert into app.todos values (1, gen_random_uuid(), 1, 'a'); insert into app.doubled (id, a) values (1, 1)"
        ))
        .await;
    let said = place
        .setup("owner", &["--table", "app.todos", "--table", "app.doubled"])
        .await;
    if version >= 150_000 {
        assert_eq!(said.code, 1, "{}{}", said.out, said.error);
        assert!(
            said.out
                .contains("publication warehouse lists only some of its columns"),
            "{}",
            said.out
        );
    }
    place
        .run("update app.todos set title = 'b'; update app.doubled set a = 2; delete from app.doubled; delete from app.todos")
        .await;
}

//! The catalog's fingerprint, by which the relay decides whether to read all of it.

use rowcast::pg::throwaway::{Options, Throwaway};
use tokio_postgres::{Client, Statement};

use crate::harness::connect;

const SCHEMA: &str = "
    create role anon; create role authenticated; create role staff; create role other;
    create schema app; create schema hidden;
    create type app.mood as enum ('good', 'bad');
    create type app.pair as (a int, b int);
    create domain app.short as varchar(10);
    create function app.mine(owner uuid) returns bool language sql stable as 'select true';
    create table app.notes (
        id int primary key, owner uuid, body app.short, mood app.mood, pair app.pair,
        twice int generated always as (id * 2) stored, other int not null);
    create unique index by_other on app.notes (other);
    create table app.members (id int primary key, who uuid);
    create policy own on app.notes for select to authenticated, staff
        using (app.mine(owner) and exists (select from app.members where who = owner));
    create table app.parted (id int not null, k int not null) partition by list (k);
    create table app.part partition of app.parted for values in (1);
    create table app.spare (id int not null, k int not null);
    create table app.unpublished (id int primary key);
    create publication rowcast for table app.notes, app.parted
        with (publish_via_partition_root = true);";

/// Each changes what decides who sees what.
const CHANGES: &[&str] = &[
    "alter table app.notes enable row level security",
    "alter table app.notes force row level security",
    "alter table app.members rename to people",
    "alter policy own on app.notes using (app.mine(owner))",
    "alter policy own on app.notes to staff",
    "alter policy own on app.notes rename to theirs",
    "create policy more on app.notes as restrictive for select using (id > 0)",
    "drop policy more on app.notes",
    "create or replace function app.mine(owner uuid) returns bool language sql stable as 'select false'",
    "alter function app.mine(uuid) security definer",
    "alter function app.mine(uuid) set search_path = app",
    "alter function app.mine(uuid) strict",
    "revoke execute on function app.mine(uuid) from public",
    "grant execute on function app.mine(uuid) to authenticated",
    "alter function app.mine(uuid) rename to own",
    "alter function app.own(uuid) set schema hidden",
    "grant usage on schema app to authenticated",
    "revoke usage on schema app from authenticated",
    "grant select on app.notes to authenticated",
    "revoke select on app.notes from authenticated",
    "grant select (id, body) on app.notes to anon",
    "revoke select (body) on app.notes from anon",
    "grant select on app.notes to staff",
    "grant staff to anon",
    "alter role anon noinherit",
    "alter role anon inherit",
    "revoke staff from anon",
    "alter table app.notes owner to other",
    "grant other to staff; grant staff to authenticated",
    "alter role authenticated bypassrls",
    "alter role authenticated nobypassrls",
    "alter role authenticated superuser",
    "alter role authenticated nosuperuser",
    "alter role anon rename to anonymous",
    "alter role anonymous rename to anon",
    "grant pg_read_all_data to anon",
    "revoke pg_read_all_data from anon",
    "do $$ begin execute format('alter database %I set search_path = app', current_database()); end $$",
    "alter role authenticated set search_path = app",
    "alter role authenticated reset all",
    "do $$ begin execute format('alter database %I set request.jwt.claims = %L', current_database(), '{}'); end $$",
    "do $$ begin execute format('alter database %I reset all', current_database()); end $$",
    "alter table app.notes add column extra text default 'x'",
    "alter table app.notes rename column extra to further",
    "alter table app.notes alter column further type varchar(5)",
    "alter table app.notes alter column further type varchar(5) collate \"C\"",
    "alter table app.notes drop column further",
    "alter table app.notes alter column twice drop expression",
    "alter table app.notes replica identity full",
    "alter table app.notes replica identity using index by_other",
    "alter table app.notes replica identity default",
    "alter table app.notes drop constraint notes_pkey",
    "alter table app.notes add primary key (other)",
    "alter table app.notes rename to papers",
    "alter table app.papers set schema hidden",
    "alter table hidden.papers set schema app",
    "alter schema app rename to application",
    "alter schema application rename to app",
    "alter type app.mood add value 'middling'",
    "alter type app.mood rename value 'bad' to 'sad'",
    "alter type app.mood rename to temper",
    "alter type app.pair add attribute c int",
    "alter type app.pair rename attribute c to d",
    "alter domain app.short rename to brief",
    "create function app.alike(app.pair, app.pair) returns bool language sql as 'select true'; \
     create operator app.~~ (leftarg = app.pair, rightarg = app.pair, function = app.alike)",
    "drop operator app.~~ (app.pair, app.pair)",
    "create function app.read(text) returns app.temper language sql immutable as $$ select 'good'::app.temper $$; \
     create cast (text as app.temper) with function app.read(text)",
    "create cast (app.pair as text) with inout; drop cast (app.pair as text); \
     drop cast (text as app.temper)",
    "alter table app.parted attach partition app.spare for values in (2)",
    "truncate app.part",
    "alter table app.parted detach partition app.spare",
    "alter publication rowcast add table app.unpublished",
    "alter publication rowcast drop table app.unpublished; \
     alter publication rowcast add table app.unpublished",
    "alter publication rowcast drop table app.unpublished",
    "alter publication rowcast set (publish = 'insert, update')",
    "alter publication rowcast set (publish_via_partition_root = false)",
    "drop publication rowcast",
    "create publication rowcast for all tables",
    "create table app.fresh (id int primary key)",
    "drop table app.fresh",
];

/// None of these does, and they may happen all the time.
const REST: &[&str] = &[
    "insert into app.unpublished select generate_series(1, 1000)",
    "update app.unpublished set id = -id",
    "delete from app.unpublished",
    "analyze app.unpublished",
    "vacuum app.unpublished",
    "create temporary table passing (id int primary key default 7, body text, m app.mood)",
    "create temporary table more as select * from app.notes",
    "drop table passing, more",
    "comment on table app.notes is 'notes'",
];

struct World {
    sql: Client,
    document: Statement,
    fingerprint: Statement,
}

impl World {
    async fn seen(&self) -> (String, String) {
        let roles: &[&str] = &["anon", "authenticated"];
        let none: &[u32] = &[];
        let document = self
            .sql
            .query_one(&self.document, &[&"rowcast", &roles, &none, &none])
            .await;
        let fingerprint = self.sql.query_one(&self.fingerprint, &[&"rowcast"]).await;
        (document.unwrap().get(0), fingerprint.unwrap().get(0))
    }
}

#[tokio::test]
async fn whatever_changes_the_catalog_changes_its_fingerprint_and_passing_tables_do_not() {
    let cluster = Throwaway::start(Options::default()).await.unwrap();
    let url = cluster.fresh_database().await.unwrap();
    let writer = connect(&url).await;
    writer.batch_execute(SCHEMA).await.unwrap();
    let sql = connect(&url).await;
    // As the relay's own session: compiling the query takes longer than running it.
    let session = "set search_path = ''; set jit = off; set plan_cache_mode = force_generic_plan";
    sql.batch_execute(session).await.unwrap();
    let world = World {
        document: sql
            .prepare(include_str!("../../sql/catalog.sql"))
            .await
            .unwrap(),
        fingerprint: sql
            .prepare(include_str!("../../sql/fingerprint.sql"))
            .await
            .unwrap(),
        sql,
    };
    let mut before = world.seen().await;
    for statement in REST {
        writer.batch_execute(statement).await.expect(statement);
        let after = world.seen().await;
        assert_eq!(before, after, "{statement}");
    }
    let version: i32 = writer
        .query_one("select current_setting('server_version_num')::int", &[])
        .await
        .unwrap()
        .get(0);
    // Absent in 14: column lists, row filters, whole schemas.
    let newer: &[&str] = &[
        "create publication lists for table app.people (id)",
        "drop publication rowcast; alter publication lists rename to rowcast",
        "alter publication rowcast set table app.people (id, who)",
        "alter publication rowcast set tables in schema app",
        "alter publication rowcast drop tables in schema app",
    ];
    let newer = if version >= 150_000 { newer } else { &[] };
    for statement in CHANGES.iter().chain(newer) {
        // From 16 on a membership inherits or not by itself, and the role says only what new ones do.
        let statement = match *statement {
            "alter role anon noinherit" if version >= 160_000 => {
                "grant staff to anon with inherit false"
            }
            "alter role anon inherit" if version >= 160_000 => {
                "grant staff to anon with inherit true"
            }
            other => other,
        };
        writer.batch_execute(statement).await.expect(statement);
        let after = world.seen().await;
        let silent = statement.starts_with("create publication lists");
        assert_eq!(before.0 == after.0, silent, "{statement}: the document");
        if !silent {
            assert_ne!(before.1, after.1, "{statement}: the fingerprint");
        }
        before = after;
    }
    cluster.stop().await;
}

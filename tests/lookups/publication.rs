//! What is published for a mirror, what is not, and what the reason says.

use rowcast::lookup::keep::State;

use crate::harness::{LOOKUPS, World, one};

const LOGIN: &str = "do $$ begin create role relay login replication; \
     exception when duplicate_object then null; end $$;";

async fn refused(world: &World, table: &str, columns: &[&str]) -> (String, String) {
    let wanted = world.wanted(table, columns).await;
    let mut follower = world.follow(World::settings(None));
    follower.keeping.want(std::slice::from_ref(&wanted));
    follower.refused(wanted.table).await
}

async fn published(world: &World, table: &str) -> bool {
    let sql = format!(
        "select exists (select from pg_publication_tables \
          where pubname = '{LOOKUPS}' and tablename = '{table}')"
    );
    one(&world.client, &sql).await
}

#[tokio::test]
async fn a_lookup_is_not_offered_to_subscribers() {
    let world = World::new(
        "create table docs (id int primary key);
         create table members (id int primary key, usr text);
         create publication rowcast for table docs;
         insert into members values (1, 'a');",
        None,
    )
    .await;
    let wanted = world.wanted("members", &["usr"]).await;
    let mut follower = world.follow(World::settings(None));
    follower.keeping.want(std::slice::from_ref(&wanted));
    follower.all_ready().await;
    let offered: bool = one(
        &world.client,
        "select exists (select from pg_publication_tables \
          where pubname = 'rowcast' and tablename = 'members')",
    )
    .await;
    assert!(!offered);
    assert!(published(&world, "members").await);
    world
        .run("insert into members values (2, 'b'); update members set id = 3 where id = 1")
        .await;
    follower.passes(world.now().await).await;
    follower.check(&world, "members", wanted.table).await;
    assert_eq!(follower.status(wanted.table).state, State::Ready);
}

#[tokio::test]
async fn a_table_that_the_relay_may_not_publish_is_refused_with_the_statement() {
    let world = World::new(
        &format!(
            "{LOGIN} create table members (id int primary key, usr text);
             grant select on members to relay;
             create publication rowcast; create publication rowcast_lookups \
             with (publish_via_partition_root = true);"
        ),
        Some("relay"),
    )
    .await;
    let (cause, text) = refused(&world, "members", &["usr"]).await;
    assert_eq!(cause, "publication", "{text}");
    let statement = "alter publication \"rowcast_lookups\" add table public.members";
    assert!(text.contains(statement), "{text}");
    // What it says is what mends it.
    let wanted = world.wanted("members", &["usr"]).await;
    let mut follower = world.follow(World::settings(None));
    follower.keeping.want(std::slice::from_ref(&wanted));
    world.run(statement).await;
    follower.all_ready().await;
}

#[tokio::test]
async fn a_table_that_the_relay_may_not_read_is_refused_and_so_is_one_whose_rows_are_kept_from_it()
{
    let world = World::new(
        &format!(
            "{LOGIN} create table members (id int primary key, usr text);
             create table kept (id int primary key, usr text);
             insert into kept values (1, 'a'), (2, 'b');
             alter table kept enable row level security;
             create policy narrow on kept for select to public using (usr = 'a');
             grant select on kept to relay;
             create publication rowcast; create publication rowcast_lookups \
             for table members, kept with (publish_via_partition_root = true);"
        ),
        Some("relay"),
    )
    .await;
    let (cause, text) = refused(&world, "members", &["usr"]).await;
    assert_eq!(cause, "privilege", "{text}");
    assert!(
        text.contains("grant select on table public.members to \"relay\""),
        "{text}"
    );
    let (cause, text) = refused(&world, "kept", &["usr"]).await;
    assert_eq!(cause, "row_security", "{text}");
    // As rowcast setup --lookups does it.
    let wanted = world.wanted("kept", &["usr"]).await;
    let mut follower = world.follow(World::settings(None));
    follower.keeping.want(std::slice::from_ref(&wanted));
    world
        .run("create policy \"rowcast reads lookups\" on kept for select to relay using (true)")
        .await;
    follower.all_ready().await;
    follower.check(&world, "kept", wanted.table).await;
    assert_eq!(follower.status(wanted.table).rows, 2);
}

#[tokio::test]
async fn a_table_without_replica_identity_is_not_published_so_the_application_can_still_write() {
    let world = World::new(
        "create table members (id int, usr text); create publication rowcast;",
        None,
    )
    .await;
    let (cause, text) = refused(&world, "members", &["usr"]).await;
    assert_eq!(cause, "identity", "{text}");
    assert!(!published(&world, "members").await);
    world
        .run("insert into members values (1, 'a'); update members set usr = 'b'")
        .await;
}

#[tokio::test]
async fn a_table_with_a_partition_whose_rows_are_not_in_the_stream_is_not_mirrored() {
    let world = World::new(
        "create table members (id int primary key, usr text) partition by range (id);
         create table members_0 partition of members for values from (0) to (10);
         create unlogged table members_1 partition of members for values from (10) to (20);
         create publication rowcast;",
        None,
    )
    .await;
    let (cause, text) = refused(&world, "members", &["usr"]).await;
    assert_eq!(cause, "kind", "{text}");
    assert!(text.contains("not logged"), "{text}");
}

#[tokio::test]
async fn a_table_that_loses_its_identity_is_taken_out_so_that_it_can_be_written() {
    let world = World::new(
        "create table members (id int primary key, usr text); create publication rowcast;",
        None,
    )
    .await;
    let wanted = world.wanted("members", &["usr"]).await;
    let mut follower = world.follow(World::settings(None));
    follower.keeping.want(std::slice::from_ref(&wanted));
    follower.all_ready().await;
    world
        .run(
            "insert into members values (1, 'a'); alter table members drop constraint members_pkey",
        )
        .await;
    let (cause, _) = follower.refused(wanted.table).await;
    assert_eq!(cause, "identity");
    assert!(follower.keeping.lookups().get(wanted.table).is_none());
    assert!(!published(&world, "members").await);
    world.run("update members set usr = 'b'").await;
}

#[tokio::test]
async fn what_narrows_the_subscribers_publication_refuses_a_mirror_and_the_stream_goes_on() {
    if !crate::harness::publications_can_narrow().await {
        return;
    }
    let world = World::new(
        "create table some_columns (id int primary key, usr text, secret text);
         create table some_rows (id int primary key, usr text);
         create table no_deletes (id int primary key, usr text);
         create table docs (id int primary key);
         create publication rowcast for table docs, some_columns (id, usr), some_rows where (id > 5);",
        None,
    )
    .await;
    for (table, word) in [("some_columns", "columns"), ("some_rows", "rows")] {
        let (cause, text) = refused(&world, table, &["usr"]).await;
        assert_eq!(cause, "narrowed", "{text}");
        assert!(text.contains(word), "{text}");
        assert!(
            !published(&world, table).await,
            "subscribers would see more"
        );
    }
}

#[tokio::test]
async fn lists_of_columns_that_differ_end_a_mirror_and_not_the_stream() {
    if !crate::harness::publications_can_narrow().await {
        return;
    }
    let world = World::new(
        "create table members (id int primary key, usr text);
         create table docs (id int primary key);
         create publication rowcast for table docs;",
        None,
    )
    .await;
    let wanted = world.wanted("members", &["usr"]).await;
    let mut follower = world.follow(World::settings(None));
    follower.keeping.want(std::slice::from_ref(&wanted));
    follower.all_ready().await;
    // The server now refuses to decode a change of it, in one stream with both publications.
    world
        .run(
            "begin; alter publication rowcast add table members (id); commit;
              insert into members values (1, 'a'); insert into docs values (1)",
        )
        .await;
    let (cause, text) = follower.refused(wanted.table).await;
    assert_eq!(cause, "narrowed", "{text}");
    assert!(follower.keeping.lookups().get(wanted.table).is_none());
    follower.passes(world.now().await).await;
    // And what mends it does.
    world
        .run("alter publication rowcast drop table members")
        .await;
    world.run("insert into members values (2, 'b')").await;
    follower.all_ready().await;
    follower.check(&world, "members", wanted.table).await;
}

#[tokio::test]
async fn what_the_stream_does_not_tell_is_noticed_and_copied_anew() {
    let world = World::new(
        "create table members (id int primary key, n int);
         create table parts (id int primary key, n int) partition by range (id);
         create table parts_0 partition of parts for values from (0) to (10);
         create table parts_1 partition of parts for values from (10) to (20);
         insert into members select g, g from generate_series(1, 9) g;
         insert into parts select g, g from generate_series(1, 19) g;
         create table docs (id int primary key);
         create publication rowcast for table docs;",
        None,
    )
    .await;
    let wanted = [
        world.wanted("members", &["n"]).await,
        world.wanted("parts", &["n"]).await,
    ];
    let mut follower = world.follow(World::settings(None));
    follower.keeping.want(&wanted);
    follower.all_ready().await;
    for (table, at, sql) in [
        (
            "members",
            0,
            "alter table members alter column n type int using n + 1",
        ),
        (
            "members",
            0,
            "alter publication rowcast_lookups drop table members; \
            insert into members values (100, 1); alter publication rowcast_lookups add table members",
        ),
        ("parts", 1, "alter table parts detach partition parts_0"),
        (
            "parts",
            1,
            "alter table parts attach partition parts_0 for values from (0) to (10)",
        ),
        ("parts", 1, "truncate parts_1"),
    ] {
        let copies = world.metrics.lookups.copies.get();
        world.run(sql).await;
        follower
            .until(sql, |_| world.metrics.lookups.copies.get() > copies)
            .await;
        follower.all_ready().await;
        follower.passes(world.now().await).await;
        follower.check(&world, table, wanted[at].table).await;
    }
}

#[tokio::test]
async fn a_mirror_that_would_be_too_large_is_refused_and_one_that_grows_too_large_is_given_up() {
    let world = World::new(
        "create table members (id int primary key, usr text); create publication rowcast;
         insert into members select g, 'x' from generate_series(1, 1000) g;",
        None,
    )
    .await;
    let wanted = world.wanted("members", &["usr"]).await;
    let settings = |max_bytes| rowcast::lookup::keep::Settings {
        max_bytes,
        ..World::settings(None)
    };
    let mut small = world.follow(settings(100_000));
    small.keeping.want(std::slice::from_ref(&wanted));
    let (cause, text) = small.refused(wanted.table).await;
    assert_eq!(cause, "too_large", "{text}");
    assert!(text.contains("max_lookup_bytes"), "{text}");
    drop(small);
    let mut follower = world.follow(settings(2_000_000));
    follower.keeping.want(std::slice::from_ref(&wanted));
    follower.all_ready().await;
    world
        .run("insert into members select g, 'x' from generate_series(1001, 9000) g")
        .await;
    follower
        .until("it is given up", |this| {
            this.keeping.lookups().get(wanted.table).is_none()
        })
        .await;
    let (cause, _) = follower.refused(wanted.table).await;
    assert_eq!(cause, "too_large");
}

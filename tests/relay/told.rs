//! An event trigger tells in the stream where rules change: they hold from there on, nothing around
//! it is hidden, and whoever sees other rows now reads again.

use std::time::Duration;

use serde_json::json;

use crate::harness::{ANN, BEN, DEADLINE, Relay, Seen, Watcher, brief, connect, has_it_told};
use crate::memberships_unseen::settle;
use crate::resume::{Client, Heard, person, settled, since, wish};

const NOTES: &str = "
    create function mine(owner uuid) returns bool language sql stable
      as $$ select owner::text = nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub' $$;
    create table notes (id int primary key, user_id uuid, body text, extra int);
    alter table notes enable row level security;
    create policy own on notes for select to authenticated using (mine(user_id));
    create policy odd on notes as restrictive for select using (id % 2 = 1);
    create policy open on notes for select to anon using (true);
    grant select on notes to authenticated, service_role";

async fn started() -> Relay {
    started_with(NOTES).await
}

/// The clock never helps.
async fn started_with(schema: &str) -> Relay {
    Relay::told(schema, "notes", |config| {
        config.catalog_interval = Duration::from_secs(3600);
    })
    .await
}

fn insert(id: i32, user: &str) -> String {
    format!("insert into notes values ({id}, '{user}', 'x')")
}

/// What was hidden because it was not known under which rules it falls.
fn hidden_in_doubt(relay: &Relay) -> u64 {
    let text = relay.core.metrics.encode();
    let line = text.lines().find(|line| {
        line.starts_with("rowcast_changes_hidden") && line.contains("catalog_changed")
    });
    line.map_or(0, |line| {
        let (_, value) = line.rsplit_once(' ').unwrap();
        value.parse().unwrap()
    })
}

/// Runs it between rows that commit right before and behind it, and returns what was seen.
async fn around(relay: &mut Relay, first: i32, ddl: &str, watchers: &[&Watcher]) -> Vec<Vec<Seen>> {
    // One round trip, each statement a transaction.
    let other = connect(&relay.url).await;
    for sql in [insert(first, ANN), ddl.to_owned(), insert(first + 2, ANN)] {
        other.batch_execute(&sql).await.unwrap();
    }
    let fence = relay.fence().await;
    let mut seen = Vec::new();
    for watcher in watchers {
        seen.push(watcher.until(fence).await);
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_of_rules_holds_from_its_own_place_on_and_hides_nothing_around_it() {
    let mut relay = started().await;
    let mut ann = relay.watch_as(ANN, "notes").await;
    // Sees all the time the same.
    let bypassing = relay.watch("service_role", &json!({}), "notes").await;
    let mut id = 1;
    // Whether Ann sees a row of hers with an odd number afterwards.
    for (ddl, sees) in [
        ("alter policy own on notes using (false)", false),
        (
            "alter policy own on notes using (user_id = auth.uid())",
            true,
        ),
        (
            "create policy never on notes as restrictive using (false)",
            false,
        ),
        ("drop policy never on notes", true),
        ("drop policy own on notes", false),
        ("alter table notes disable row level security", true),
        ("alter table notes enable row level security", false),
        (
            "create policy own on notes for select to authenticated using (mine(user_id))",
            true,
        ),
        (
            "create or replace function mine(owner uuid) returns bool language sql stable as 'select false'",
            false,
        ),
        (
            "create or replace function mine(owner uuid) returns bool language sql stable as 'select true'",
            true,
        ),
        ("alter policy own on notes to anon", false),
        ("alter policy own on notes to public", true),
        (
            "alter table notes force row level security; alter policy own on notes using (id < 0)",
            false,
        ),
        (
            "begin; savepoint a; alter policy own on notes using (true); release a; commit",
            true,
        ),
    ] {
        let before = relay.seen(&ann).await;
        assert!(before.is_empty(), "{before:?}");
        // A change that comes while the catalog is still read for the one before leaves a doubt.
        relay.reads_the_catalog().await;
        let seen = around(&mut relay, id, ddl, &[&ann, &bypassing]).await;
        let (first, second) = (format!("INSERT {id}"), format!("INSERT {}", id + 2));
        assert_eq!(
            brief(&seen[1]),
            [first.clone(), second],
            "{ddl}: same rules"
        );
        let mut expected = vec!["resync access_changed".to_owned()];
        if !sees {
            expected.insert(0, first);
        }
        assert_eq!(brief(&seen[0]), expected, "{ddl}");
        ann.join(&relay.core).await.unwrap();
        relay.run(&insert(id + 4, ANN)).await;
        assert_eq!(relay.seen(&ann).await.len(), usize::from(sees), "{ddl}");
        relay.seen(&bypassing).await;
        id += 6;
    }
    assert_eq!(hidden_in_doubt(&relay), 0);
}

/// Whether all that is looked into is mirrored.
fn has_mirrors(relay: &Relay) -> bool {
    let text = relay.core.metrics.encode();
    let mut states = text
        .lines()
        .filter(|line| line.starts_with("rowcast_lookups{"));
    states.all(|line| line.ends_with(" 0") || line.contains("\"ready\""))
}

/// Whom a helper runs as, whose the table is that it reads, and what its names mean.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_rights_and_settings_of_a_helper_hold_from_their_own_place_on() {
    let schema = format!(
        "do $$ begin
           create role told_owner;
         exception when duplicate_object or unique_violation then null; end $$;
         create schema apart; grant usage on schema apart, auth to told_owner, authenticated;
         create table member (who uuid primary key);
         create table apart.member (who uuid primary key);
         insert into member values ('{ANN}');
         alter table member enable row level security;
         grant select on member, apart.member to authenticated, told_owner;
         create function listed(owner uuid) returns bool language sql stable security definer
           set search_path = public as
           'select exists (select from member m where m.who = auth.uid())';
         {NOTES};
         alter policy own on notes using (listed(user_id))"
    );
    let mut relay = started_with(&schema).await;
    let mut ann = relay.watch_as(ANN, "notes").await;
    let mut bypassing = relay.watch("service_role", &json!({}), "notes").await;
    crate::memberships::keeps(&relay).await;
    let (mut id, mut saw) = (1, true);
    // Whether Ann sees a row with an odd number afterwards.
    for (ddl, sees) in [
        ("alter function listed(uuid) security invoker", false),
        ("alter function listed(uuid) security definer", true),
        ("alter function listed(uuid) owner to told_owner", false),
        ("alter table member owner to told_owner", true),
        ("alter table member force row level security", false),
        ("alter table member no force row level security", true),
        ("alter function listed(uuid) set search_path = apart", false),
        ("alter function listed(uuid) set search_path = public", true),
        (
            "create policy none on member as restrictive using (false)",
            true,
        ),
        ("drop policy none on member", true),
        ("alter function listed(uuid) rename to was_listed", true),
        ("alter table member disable row level security", true),
        (
            "revoke select on member from told_owner; alter table member owner to current_user",
            false,
        ),
        ("grant select on member to told_owner", true),
    ] {
        relay.reads_the_catalog().await;
        let since = tokio::time::Instant::now();
        while !has_mirrors(&relay) {
            assert!(
                since.elapsed() < DEADLINE,
                "{ddl}: {}",
                relay.core.metrics.encode()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let seen = around(&mut relay, id, ddl, &[&ann, &bypassing]).await;
        let (first, second) = (format!("INSERT {id}"), format!("INSERT {}", id + 2));
        let (own, others) = (brief(&seen[0]), brief(&seen[1]));
        // REASSIGN OWNED looks the same and is told of to no event trigger: what is given to another owner
        // is in doubt until the catalog is read.
        let given = ddl.contains("owner to");
        if given {
            assert!(saw || !own.contains(&first), "{ddl}: {own:?}");
            assert!(sees || !own.contains(&second), "{ddl}: {own:?}");
        } else {
            assert_eq!(others, [first.clone(), second.clone()], "{ddl}: same rules");
            let before = if saw { vec![first.clone()] } else { Vec::new() };
            let told = [before, vec!["resync access_changed".to_owned()]].concat();
            let same = sees == saw && own == [first, second];
            assert!(same || own == told, "{ddl}: {own:?}");
        }
        for (watcher, seen) in [(&mut ann, own), (&mut bypassing, others)] {
            if seen.last().is_some_and(|last| last.starts_with("resync")) {
                watcher.join(&relay.core).await.unwrap();
            }
        }
        // What is looked into is copied, which a busy machine may have told of only now.
        let since = tokio::time::Instant::now();
        let mut last = id + 4;
        loop {
            relay.run(&insert(last, ANN)).await;
            let (own, others) = (relay.seen(&ann).await, relay.seen(&bypassing).await);
            let told = |seen: &[Seen]| seen.iter().any(|one| matches!(one, Seen::Resync(_)));
            if !told(&own) && !told(&others) {
                assert_eq!(own.len(), usize::from(sees), "{ddl}: {own:?}");
                assert_eq!(others.len(), 1, "{ddl}: {others:?}");
                break;
            }
            let shown = own.iter().any(|one| matches!(one, Seen::Change(_)));
            assert!(sees || !shown, "{ddl}: {own:?}");
            assert!(since.elapsed() < DEADLINE, "{ddl}: {own:?} {others:?}");
            ann.join(&relay.core).await.unwrap();
            bypassing.join(&relay.core).await.unwrap();
            last += 2;
        }
        (id, saw) = (last + 2, sees);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_no_row_that_is_shown_is_not_told() {
    let mut relay = started().await;
    let ann = relay.watch_as(ANN, "notes").await;
    let mut expected = Vec::new();
    let mut id = 1;
    for ddl in [
        "comment on table notes is 'words'",
        "create index on notes (body)",
        "alter table notes add column more int default 7",
        "alter table notes alter column extra set default 3",
        "alter table notes drop column extra",
        "alter table notes rename column body to content",
        "alter policy own on notes rename to mine",
        "alter policy mine on notes using (  mine( user_id )  )",
        "create or replace function mine(owner uuid) returns bool language sql stable
      as $$ select owner::text = nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub' $$",
        "create policy other on notes for select to anon using (false)",
        "create policy writes on notes for insert to authenticated with check (false)",
        "create table unrelated (id int)",
        "grant insert on notes to anon",
        "analyze notes",
        "create role nobody_of_note_told; drop role nobody_of_note_told",
    ] {
        let seen = around(&mut relay, id, ddl, &[&ann]).await;
        expected.clear();
        expected.extend([format!("INSERT {id}"), format!("INSERT {}", id + 2)]);
        assert_eq!(brief(&seen[0]), expected, "{ddl}");
        id += 4;
    }
    assert_eq!(hidden_in_doubt(&relay), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_falls_under_what_its_own_transaction_does_to_the_rules_behind_it() {
    let mut relay = started().await;
    for round in 0..20 {
        let id = 10 * round + 1;
        let ann = relay.watch_as(ANN, "notes").await;
        // What nobody could ever see: it committed with the rule that hides it.
        relay
            .run(&format!(
                "begin; {}; alter policy own on notes using (false); commit; {}",
                insert(id, ANN),
                insert(id + 2, ANN)
            ))
            .await;
        assert_eq!(
            brief(&relay.seen(&ann).await),
            ["resync access_changed"],
            "round {round}"
        );
        relay
            .run("alter policy own on notes using (user_id = auth.uid())")
            .await;
        relay.reads_the_catalog().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_many_batches_falls_under_the_rules_at_its_end() {
    let mut relay = started().await;
    let ann = relay.watch_as(ANN, "notes").await;
    relay
        .run(&format!(
            "begin; insert into notes select 2 * n + 1, '{ANN}' from generate_series(1, 5000) n;
             alter policy own on notes using (false); commit"
        ))
        .await;
    assert_eq!(brief(&relay.seen(&ann).await), ["resync access_changed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_and_columns_are_granted_revoked_published_and_left_out_where_that_stands() {
    let mut relay = Relay::told(
        "create table a (id int primary key, x int); create table b (id int primary key);
         grant select on a, b to authenticated",
        "a",
        |config| config.catalog_interval = Duration::from_secs(3600),
    )
    .await;
    let mut ann = relay.watch_as(ANN, "a").await;
    relay.run("insert into a values (1, 1)").await;
    relay
        .run("revoke select on a from authenticated; grant select (id) on a to authenticated")
        .await;
    relay.run("insert into a values (2, 2)").await;
    let seen = relay.seen(&ann).await;
    assert_eq!(brief(&seen), ["INSERT 1", "resync access_changed"]);
    assert_eq!(seen[0].change()["record"], json!({"id": 1, "x": 1}));
    ann.join(&relay.core).await.unwrap();
    relay.run("insert into a values (3, 3)").await;
    let seen = relay.seen(&ann).await;
    assert_eq!(seen[0].change()["record"], json!({"id": 3}));
    // A schema.
    relay
        .run("begin; revoke usage on schema public from public; insert into a values (4); commit")
        .await;
    assert_eq!(brief(&relay.seen(&ann).await), ["resync schema_changed"]);
    relay.run("grant usage on schema public to public").await;
    relay.run("alter publication rowcast add table b").await;
    let mut ben = relay.watch_as(BEN, "b").await;
    relay.run("insert into b values (1)").await;
    relay.run("alter publication rowcast drop table b").await;
    let seen = brief(&relay.seen(&ben).await);
    assert_eq!(seen, ["INSERT 1", "resync schema_changed"]);
    ben.join(&relay.core).await.unwrap_err();
    assert_eq!(hidden_in_doubt(&relay), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_and_memberships_are_noticed_by_the_clock_beside_the_trigger() {
    let mut relay = Relay::told(
        "create role told_club; create role told_guild; create role told_member;
         create table notes (id int primary key, user_id uuid, body text);
         alter table notes enable row level security;
         create policy club on notes to told_club using (true);
         create policy guild on notes using (pg_has_role('told_guild', 'usage'));
         grant select on notes, fence to told_member; grant usage on schema public to told_member",
        "notes",
        |config| config.catalog_interval = Duration::from_millis(50),
    )
    .await;
    let mut member = relay.watch("told_member", &json!({}), "notes").await;
    relay.run(&insert(1, ANN)).await;
    assert!(relay.seen(&member).await.is_empty());
    for (id, sql, sees) in [
        (2, "grant told_club to told_member", true),
        (3, "revoke told_club from told_member", false),
        (4, "alter role told_member bypassrls", true),
        (5, "alter role told_member nobypassrls", false),
        (6, "grant told_guild to told_member", true),
        (7, "revoke told_guild from told_member", false),
    ] {
        relay.run(sql).await;
        assert_eq!(member.resync().await, "access_changed", "{sql}");
        member.join(&relay.core).await.unwrap();
        relay.run(&insert(id, ANN)).await;
        let seen = relay.seen(&member).await;
        assert_eq!(seen.len(), usize::from(sees), "{sql}: {seen:?}");
    }
    // What no row depends on.
    relay
        .run("alter role told_member set statement_timeout = 0; alter role told_member createrole")
        .await;
    relay.reads_the_catalog().await;
    assert!(relay.seen(&member).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_trigger_is_kept_from_telling_holds_once_the_stream_has_passed_it() {
    let mut relay = Relay::told(NOTES, "notes", |config| {
        config.catalog_interval = Duration::from_millis(50);
    })
    .await;
    let mut ann = relay.watch_as(ANN, "notes").await;
    // Off, changed, on again: between two looks nothing of that can be seen but that it was altered.
    relay
        .run(
            "do $$ declare name text; begin
               select evtname into name from pg_event_trigger;
               execute format('alter event trigger %I disable', name);
               alter policy own on notes using (false);
               execute format('alter event trigger %I enable always', name);
             end $$",
        )
        .await;
    assert_eq!(ann.resync().await, "access_changed");
    ann.join(&relay.core).await.unwrap();
    relay.run(&insert(1, ANN)).await;
    assert!(relay.seen(&ann).await.is_empty());
}

/// `DROP SERVER` is none of the commands that change rules, but for what it takes with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_described_anew_is_not_judged_by_what_was_though_nothing_told_of_a_change()
{
    let schema = format!(
        "{NOTES};
         create foreign data wrapper told_nothing;
         create server told_server foreign data wrapper told_nothing;
         create foreign table elsewhere (id int) server told_server;
         grant select on elsewhere to authenticated;
         drop policy own on notes;
         drop policy open on notes;
         create policy apart on notes using (true or exists (select from elsewhere))"
    );
    for interval in [Duration::from_millis(50), Duration::from_secs(3600)] {
        let mut relay = Relay::told(&schema, "notes", |config| {
            config.catalog_interval = interval;
        })
        .await;
        let ann = relay.watch_as(ANN, "notes").await;
        relay.run(&insert(1, ANN)).await;
        assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 1"]);
        relay.run("drop server told_server cascade").await;
        relay.run(&insert(3, ANN)).await;
        let seen = brief(&relay.seen(&ann).await);
        assert!(!seen.contains(&"INSERT 3".to_owned()), "{seen:?}");
        assert_eq!(seen.len(), 1, "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_that_comes_later_is_found_and_those_of_other_relays_say_nothing() {
    let url = {
        let relay = started().await;
        relay.url.clone()
    };
    let sql = connect(&url).await;
    has_it_told(&sql, "somebody_else").await;
    let name = "n".repeat(60);
    has_it_told(&sql, &name).await;
    has_it_told(&sql, &format!("{name}m")).await;
    let count = sql
        .query_one("select count(*) from pg_event_trigger", &[])
        .await
        .unwrap();
    assert_eq!(count.get::<_, i64>(0), 4, "one for each slot");
    sql.batch_execute("alter policy own on notes using (true)")
        .await
        .unwrap();
    let told: i64 = sql
        .query_one(
            "select count(*) from pg_event_trigger where evtenabled = 'A'",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(told, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_table_is_another_under_the_same_name_reads_again() {
    let again = "create table notes (id int primary key, user_id uuid, body text, extra int); \
         grant select on notes to authenticated; insert into notes values (100, null)";
    for ddl in [
        "drop table notes;",
        "alter table notes rename to notes_before; alter publication rowcast drop table notes_before;",
        "alter table notes rename to notes_before;",
        "alter table notes set schema aside;",
    ] {
        let mut relay = started().await;
        relay.run("create schema aside").await;
        let mut ann = relay.watch_as(ANN, "notes").await;
        let all = relay.watch_as(ANN, "*").await;
        relay.run(&insert(1, ANN)).await;
        assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 1"]);
        assert_eq!(brief(&relay.seen(&all).await), ["INSERT 1"]);
        relay
            .run(&format!(
                "begin; {ddl} {again}; alter publication rowcast add table notes; commit"
            ))
            .await;
        let seen = brief(&relay.seen(&ann).await);
        assert_eq!(seen, ["resync schema_changed"], "{ddl}");
        // Whoever asked for all hears of both where both are there.
        let both = !ddl.contains("drop");
        let seen = brief(&relay.seen(&all).await);
        assert_eq!(seen == ["resync schema_changed"], !both, "{ddl}: {seen:?}");
        ann.join(&relay.core).await.unwrap();
        relay.run(&insert(101, ANN)).await;
        assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 101"], "{ddl}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_only_a_helper_needs_is_told_where_it_is_given_and_taken() {
    let schema = format!(
        "create table club (person uuid primary key, since date); insert into club values ('{ANN}');
         create function in_club() returns bool language sql stable
             as 'select exists (select from club where person = auth.uid())';
         create table notes (id int primary key);
         alter table notes enable row level security;
         create policy club on notes for select to authenticated using (in_club());
         grant select on notes, club to authenticated"
    );
    let mut relay = started_with(&schema).await;
    let mut ann = relay.watch_as(ANN, "notes").await;
    settle(&mut relay, &mut ann).await;
    let mut id = 0;
    for (ddl, told, sees) in [
        ("revoke select on club from authenticated", true, false),
        ("grant insert on club to authenticated", false, false),
        ("grant select (person) on club to authenticated", true, true),
        ("alter table club add extra int", false, true),
        (
            "revoke select (person) on club from authenticated",
            true,
            false,
        ),
        ("grant select on club to authenticated", true, true),
        ("alter table club add another int", false, true),
    ] {
        id += 2;
        relay
            .run(&format!(
                "begin; {ddl}; insert into notes values ({id}); commit"
            ))
            .await;
        let seen = brief(&relay.seen(&ann).await);
        if told {
            assert_eq!(seen, ["resync access_changed"], "{ddl}");
            ann.join(&relay.core).await.unwrap();
            relay
                .run(&format!("insert into notes values ({id} + 1)"))
                .await;
            let seen = brief(&relay.seen(&ann).await);
            assert_eq!(seen.len(), usize::from(sees), "{ddl}: {seen:?}");
            // Who did not wait for a mirror is told once it is there.
            if sees {
                settle(&mut relay, &mut ann).await;
            }
        } else {
            assert_eq!(seen.len(), usize::from(sees), "{ddl}: {seen:?}");
            assert!(
                seen.iter().all(|one| one.starts_with("INSERT")),
                "{ddl}: {seen:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_policies_read_holds_from_where_it_is_another_and_whoever_it_concerns_is_told()
{
    let schema = format!(
        "create table member (org int, person uuid, primary key (org, person));
         insert into member values (1, '{ANN}'), (2, '{ANN}');
         create view shown as select org, person from member where org = 1;
         create table notes (id int primary key, org int);
         alter table notes enable row level security;
         create policy ours on notes for select to authenticated
             using (org in (select s.org from shown s where s.person = auth.uid()));
         grant select on notes, shown to authenticated"
    );
    let mut relay = started_with(&schema).await;
    let mut ann = relay.watch_as(ANN, "notes").await;
    settle(&mut relay, &mut ann).await;
    let mut id = 0;
    for (ddl, sees) in [
        (
            "create or replace view shown as select org, person from member where org = 2",
            2,
        ),
        (
            "create or replace rule \"_RETURN\" as on select to shown do instead \
             select org, person from member where org = 1",
            1,
        ),
        (
            "create or replace view shown as select org, person from member where false",
            0,
        ),
    ] {
        id += 4;
        relay
            .run(&format!(
                "begin; insert into notes values ({id}, 1), ({id} + 1, 2); {ddl}; commit; \
                 insert into notes values ({id} + 2, 1), ({id} + 3, 2)"
            ))
            .await;
        let seen = brief(&relay.seen(&ann).await);
        assert_eq!(seen, ["resync access_changed"], "{ddl}");
        ann.join(&relay.core).await.unwrap();
        settle(&mut relay, &mut ann).await;
        relay
            .run(&format!(
                "insert into notes values (-{id}, 1), (-{id} - 1, 2)"
            ))
            .await;
        let seen = brief(&relay.seen(&ann).await);
        let expected: Vec<String> = match sees {
            0 => Vec::new(),
            org => vec![format!("INSERT -{}", id + org - 1)],
        };
        assert_eq!(seen, expected, "{ddl}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_of_an_earlier_build_that_is_told_of_less_is_made_anew() {
    let url = crate::harness::cluster()
        .await
        .fresh_database()
        .await
        .unwrap();
    let sql = connect(&url).await;
    has_it_told(&sql, "earlier").await;
    sql.batch_execute(
        "drop event trigger rowcast_ddl_earlier;
         create event trigger rowcast_ddl_earlier on ddl_command_end
           when tag in ('CREATE POLICY', 'CREATE VIEW') execute function rowcast.rowcast_ddl_earlier();
         comment on event trigger rowcast_ddl_earlier is 'Made by rowcast setup.'",
    )
    .await
    .unwrap();
    has_it_told(&sql, "earlier").await;
    let whole = "select evtenabled = 'A' and evttags @> '{CREATE POLICY,CREATE RULE}' from pg_event_trigger";
    let whole: bool = sql.query_one(whole, &[]).await.unwrap().get(0);
    assert!(whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_published_otherwise_for_a_while_is_told_as_it_may_have_changed_unheard() {
    let mut relay = started().await;
    let mut ann = relay.watch_as(ANN, "notes").await;
    relay.run(&insert(1, ANN)).await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 1"]);
    let unheard = format!(
        "begin; alter publication rowcast drop table notes; {}; \
         alter publication rowcast add table notes; commit",
        insert(3, ANN)
    );
    let version = "select current_setting('server_version_num')::int";
    let sql = connect(&relay.url).await;
    let version: i32 = sql.query_one(version, &[]).await.unwrap().get(0);
    let all = "alter publication rowcast set (publish = 'insert, update, delete, truncate')";
    let soon = format!("begin; alter publication rowcast set (publish = 'delete'); {all}; commit");
    let mut cases = vec![
        &*unheard,
        &*soon,
        "alter publication rowcast set (publish = 'insert')",
        "alter publication rowcast set (publish = 'insert, update, delete, truncate')",
    ];
    if version >= 150_000 {
        cases.push("alter publication rowcast set table fence, notes where (id > 5)");
        cases.push("alter publication rowcast set table fence, notes");
    }
    for sql in cases {
        relay.run(sql).await;
        assert_eq!(ann.resync().await, "access_changed", "{sql}");
        ann.join(&relay.core).await.unwrap();
    }
    relay.run(&insert(7, ANN)).await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 7"]);
    // What concerns another table tells nobody here.
    relay.run("create table other (id int primary key)").await;
    relay.run("alter publication rowcast add table other").await;
    relay.run(&insert(9, ANN)).await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 9"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_takes_the_name_that_a_function_reads_holds_from_there_on() {
    let schema = format!(
        "create schema early; grant usage on schema early to public;
         create table member (org int, person uuid, primary key (org, person));
         insert into member values (1, '{ANN}');
         create table notes (id int primary key, org int);
         create function ours(o int) returns bool language sql stable security definer
           set search_path = early, public
           as $$ select exists (select from member where org = o and person = auth.uid()) $$;
         alter table notes enable row level security;
         create policy ours on notes for select to authenticated using (ours(org));
         grant select on notes to authenticated"
    );
    let mut relay = started_with(&schema).await;
    let mut ann = relay.watch_as(ANN, "notes").await;
    settle(&mut relay, &mut ann).await;
    let nobody = "as select org, person from public.member where false";
    for (id, (ddl, undo)) in [
        (
            format!("create materialized view early.member {nobody}"),
            "drop materialized view early.member",
        ),
        (
            format!(
                "create materialized view early.other {nobody}; \
                 alter materialized view early.other rename to member"
            ),
            "drop materialized view early.member",
        ),
        (
            "create sequence early.member".to_owned(),
            "drop sequence early.member",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let row = |id: usize| format!("insert into notes values ({id}, 1)");
        relay
            .run(&format!("begin; {ddl}; {}; commit", row(100 + id)))
            .await;
        relay.run(&row(200 + id)).await;
        assert_eq!(ann.resync().await, "access_changed", "{ddl}");
        ann.join(&relay.core).await.unwrap();
        relay.run(undo).await;
        assert_eq!(ann.resync().await, "access_changed", "{undo}");
        ann.join(&relay.core).await.unwrap();
        settle(&mut relay, &mut ann).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_keeps_the_catalog_from_being_read_is_named_and_what_waits_for_it_comes_then() {
    let schema = format!(
        "{NOTES}; create table second (id int primary key, user_id uuid);
         alter table second enable row level security;
         create policy own on second for select to authenticated using (mine(user_id))"
    );
    let mut relay = Relay::told(&schema, "notes, second", |config| {
        config.catalog_interval = Duration::from_secs(3600);
    })
    .await;
    let ann = relay.watch_as(ANN, "notes").await;
    relay.run(&insert(1, ANN)).await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 1"]);
    let other = connect(&relay.url).await;
    let lock = "begin; lock table second in access exclusive mode";
    other.batch_execute(lock).await.unwrap();
    relay.run("create table unrelated (id int)").await;
    relay.run(&insert(3, ANN)).await;
    let deadline = std::time::Instant::now() + DEADLINE;
    let reason = loop {
        if let Some(delay) = relay.core.readiness.delay() {
            break delay.reason();
        }
        assert!(std::time::Instant::now() < deadline, "nothing is said");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(reason.contains("ACCESS EXCLUSIVE"), "{reason}");
    other.batch_execute("rollback").await.unwrap();
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 3"]);
    assert!(relay.core.readiness.delay().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_promised_deletes_that_old_rows_do_not_carry_any_more_reads_again_and_is_told_why()
{
    let split = format!(
        "create table whole (id int primary key, user_id uuid); alter table whole replica identity full;
         create table split (id int primary key, user_id uuid) partition by range (id);
         create table low partition of split for values from (0) to (10);
         alter table low replica identity full; alter table split replica identity full;
         {NOTES};
         alter table whole enable row level security; alter table split enable row level security;
         create policy own on whole for select to authenticated using (mine(user_id));
         create policy own on split for select to authenticated using (mine(user_id));
         grant select on whole, split to authenticated"
    );
    let relay = Relay::told(&split, "notes, whole, split", |config| {
        config.catalog_interval = Duration::from_secs(3600);
    })
    .await;
    relay
        .run("alter publication rowcast set (publish_via_partition_root = true)")
        .await;
    for (table, ddl) in [
        ("whole", "alter table whole replica identity default"),
        (
            "split",
            "create table high partition of split for values from (10) to (20)",
        ),
    ] {
        let mut ann = relay.watch_as(ANN, table).await;
        assert_eq!(ann.notices, [""; 0], "{table}");
        relay.run(ddl).await;
        assert_eq!(ann.resync().await, "access_changed", "{ddl}");
        ann.join(&relay.core).await.unwrap();
        let said = ann.notices.join(" ");
        assert!(said.contains("not delivered"), "{ddl}: {said}");
        relay
            .run(&format!("alter table {table} replica identity full"))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_of_another_name_is_told_where_policies_read_it_and_a_new_one_is_not() {
    let schema = "
        create type state as enum ('open', 'shut');
        create type colour as enum ('red');
        create table levels (id int primary key, of state); insert into levels values (1, 'open');
        create table notes (id int primary key, state state, states state[], colour colour);
        create table leveled (id int primary key, level int);
        alter table notes enable row level security;
        alter table leveled enable row level security;
        create policy text on notes for select to authenticated using (state::text = 'open' or states[1]::text = 'open');
        create policy level on leveled for select to authenticated
          using (level in (select l.id from levels l where l.of::text = 'open'));
        grant select on notes, leveled, levels to authenticated";
    let mut relay = Relay::told(schema, "notes, leveled", |config| {
        config.catalog_interval = Duration::from_secs(3600);
    })
    .await;
    let mut notes = relay.watch_as(ANN, "notes").await;
    let mut leveled = relay.watch_as(ANN, "leveled").await;
    settle(&mut relay, &mut leveled).await;
    relay.seen(&notes).await;
    let mut id = 0;
    for (ddl, told, sees) in [
        (
            "alter type state add value 'ajar' before 'shut'",
            false,
            true,
        ),
        (
            "alter type colour rename value 'red' to 'green'",
            false,
            true,
        ),
        (
            "alter type state rename value 'open' to 'opened'",
            true,
            false,
        ),
        (
            "alter type state rename value 'opened' to 'open'",
            true,
            true,
        ),
    ] {
        relay.run(ddl).await;
        let seen = brief(&relay.seen(&notes).await);
        let wanted: &[&str] = if told {
            &["resync access_changed"]
        } else {
            &[]
        };
        assert_eq!(seen, wanted, "{ddl}");
        if told {
            notes.join(&relay.core).await.unwrap();
            assert_eq!(leveled.resync().await, "access_changed", "{ddl}");
            leveled.join(&relay.core).await.unwrap();
        }
        // The mirror is made anew for a type that is another, and then that may be told as well.
        settle(&mut relay, &mut leveled).await;
        relay.seen(&notes).await;
        id += 1;
        let open = if sees { "open" } else { "opened" };
        relay
            .run(&format!(
                "insert into notes values ({id}, '{open}'); insert into leveled values ({id}, 1)"
            ))
            .await;
        let wanted = format!("INSERT {id}");
        for watcher in [&notes, &leveled] {
            let seen = brief(&relay.seen(watcher).await);
            let shown = seen.iter().filter(|one| **one == wanted).count();
            assert_eq!(shown, usize::from(sees), "{ddl}: {seen:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_while_a_right_was_taken_is_shown_to_nobody_however_short_that_was() {
    let mut relay = started().await;
    // Row-level security does not hold for it: the right alone decides.
    let other = connect(&relay.url).await;
    let mut shown = 0;
    for round in 0..100_i32 {
        let watcher = relay.watch("service_role", &json!({}), "notes").await;
        let id = round * 10;
        for sql in [
            insert(id + 1, ANN),
            format!(
                "begin; revoke select on notes from service_role; {}; commit",
                insert(id + 2, ANN)
            ),
            format!(
                "begin; {}; grant select on notes to service_role; commit",
                insert(id + 3, ANN)
            ),
        ] {
            other.batch_execute(&sql).await.unwrap();
            // So that it is given back while the catalog is being read.
            tokio::time::sleep(Duration::from_micros(
                200 * u64::from(round.unsigned_abs() % 50),
            ))
            .await;
        }
        let fence = relay.fence().await;
        let seen = brief(&watcher.until(fence).await);
        let taken = format!("INSERT {}", id + 2);
        assert!(!seen.contains(&taken), "{round}: {seen:?}");
        shown += usize::from(seen.contains(&format!("INSERT {}", id + 1)));
    }
    assert!(shown > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_is_not_shown_what_was_committed_while_its_right_was_taken() {
    let mut relay = started().await;
    let who = person("service_role", &json!({ "role": "service_role" }));
    let other = connect(&relay.url).await;
    let mut told = 0;
    for round in 0..30 {
        let start = settled(&mut relay).await;
        let id = round * 10;
        // In one go: the catalog is read when all of it is over.
        for sql in [
            format!(
                "begin; revoke select on notes from service_role; {}; commit",
                insert(id + 2, ANN)
            ),
            format!(
                "begin; {}; grant select on notes to service_role; commit",
                insert(id + 3, ANN)
            ),
        ] {
            other.batch_execute(&sql).await.unwrap();
        }
        settled(&mut relay).await;
        let client =
            Client::join(&relay.core, &who, vec![since(wish(1, "notes", ""), start)]).await;
        loop {
            match client.next().await {
                Heard::Change(_, data) => assert_ne!(data["record"]["id"], id + 2, "{data}"),
                Heard::Resync(reason, _) => {
                    assert_eq!(reason, "access_changed");
                    told += 1;
                    break;
                }
                Heard::CaughtUp => break,
                Heard::Joined => {}
                Heard::Full => panic!("it does not keep up"),
            }
        }
        client.go(&relay.core).await;
    }
    assert!(told > 0);
}

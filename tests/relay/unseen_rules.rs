//! Without the event trigger: what a policy looks at beyond its own table changes without a word in the
//! stream, and no row behind it is judged by what was.

use std::time::Duration;

use crate::harness::{
    ANN, DEADLINE, Relay, Seen, Watcher, brief, cluster, config, connect, has_it_told,
};
use crate::resume::{Client, Heard, since, user, wish};

/// A relay that the clock never helps.
async fn started() -> Relay {
    with_schema(false).await
}

async fn with_schema(told: bool) -> Relay {
    let schema = format!(
        "do $$ begin
           create role unseen_rules_staff;
         exception when duplicate_object or unique_violation then null;
         end $$;
         create table m (org int, who uuid, role text, primary key (org, who));
         alter table m enable row level security;
         grant select on m to authenticated;
         create policy open on m for select to authenticated using (true);
         create policy relay on m for select to current_user using (true);
         create table n (org int, who uuid, primary key (org, who));
         create view v as select org, who from m;
         grant select on n, v to authenticated;
         create function member(o int) returns bool language sql stable as
           'select exists (select from public.m where m.org = o and m.who = auth.uid())';
         create type state as enum ('open', 'shut');
         create table d (id int primary key, org int);
         create table e (id int primary key, org int);
         create table f (id int primary key, org int);
         alter table f replica identity full;
         create table g (id int primary key, org state);
         create table h (id int primary key, org int);
         alter table h enable row level security;
         grant select on h to authenticated;
         create policy p on h using (pg_has_role('unseen_rules_staff', 'member'));
         alter table d enable row level security;
         alter table e enable row level security;
         alter table f enable row level security;
         alter table g enable row level security;
         grant select on d, e, f, g to authenticated;
         create policy p on d using (exists (select from m where m.org = d.org and m.who = auth.uid()));
         create policy p on e using (exists (select from v where v.org = e.org and v.who = auth.uid()));
         create policy p on f using (member(org));
         create policy p on g using (org = 'open');
         insert into m values (1, '{ANN}', 'admin')"
    );
    let url = cluster().await.fresh_database().await.unwrap();
    let mut used = config(&url);
    used.catalog_interval = Duration::from_secs(3600);
    used.policy_check = false;
    if told {
        has_it_told(&connect(&url).await, &used.slot).await;
    }
    Relay::in_database(&url, &schema, "d, e, f, g, h", |config| *config = used).await
}

/// Until the row before a change is seen as it is to be, mirrors may be on their way.
async fn sees(
    relay: &mut Relay,
    ann: &mut Watcher,
    (table, value): (&str, &str),
    sees: bool,
    id: &mut i32,
) {
    let began = tokio::time::Instant::now();
    loop {
        relay.reads_the_catalog().await;
        ann.join(&relay.core).await.unwrap();
        *id += 1;
        relay
            .run(&format!("insert into {table} values ({id}, {value})"))
            .await;
        let seen = brief(&relay.seen(ann).await);
        let expected = if sees {
            vec![format!("INSERT {id}")]
        } else {
            Vec::new()
        };
        if seen == expected {
            return;
        }
        assert!(began.elapsed() < DEADLINE, "{table}: {seen:?}");
    }
}

/// What changes, of which table a row is written next, and what that has.
const CHANGES: &[(&str, &str, &str, bool)] = &[
    ("alter policy open on m using (false)", "d", "1", false),
    ("alter policy open on m using (true)", "d", "1", true),
    (
        "alter policy open on m using (role <> 'admin')",
        "f",
        "1",
        false,
    ),
    ("alter policy open on m using (true)", "f", "1", true),
    (
        "create or replace view v as select org, who from n",
        "e",
        "1",
        false,
    ),
    (
        "create or replace view v as select org, who from m",
        "e",
        "1",
        true,
    ),
    (
        "create or replace function member(o int) returns bool language sql stable as 'select false'",
        "f",
        "1",
        false,
    ),
    (
        "create or replace function member(o int) returns bool language sql stable as \
         'select exists (select from public.m where m.org = o and m.who = auth.uid())'",
        "f",
        "1",
        true,
    ),
    (
        "begin; alter type state rename value 'open' to 'x'; alter type state rename value 'shut' to 'open'; \
         alter type state rename value 'x' to 'shut'; commit",
        "g",
        "'open'",
        false,
    ),
    ("alter policy open on m using (false)", "f", "1", false),
    ("alter table m disable row level security", "f", "1", true),
    ("alter table m enable row level security", "f", "1", false),
    ("grant unseen_rules_staff to authenticated", "h", "1", true),
    (
        "revoke unseen_rules_staff from authenticated",
        "h",
        "1",
        false,
    ),
    ("alter table m disable row level security", "d", "1", true),
    ("revoke select on m from authenticated", "d", "1", false),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_beyond_a_policys_own_table_holds_for_the_next_row() {
    let mut relay = started().await;
    let mut id = 0;
    for (change, table, value, shown) in CHANGES {
        let mut ann = relay.watch_as(ANN, table).await;
        sees(&mut relay, &mut ann, (table, value), !shown, &mut id).await;
        id += 1;
        relay.run(change).await;
        let row = format!("insert into {table} values ({id}, {value})");
        relay.run(&row).await;
        let seen = relay.seen(&ann).await;
        let came = seen.iter().any(|one| matches!(one, Seen::Change(_)));
        assert!(*shown || !came, "{change}: {:?}", brief(&seen));
        let told = seen.iter().any(|one| matches!(one, Seen::Resync(_)));
        assert!(told || came == *shown, "{change}: {:?}", brief(&seen));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_rows_own_transaction_changes_elsewhere_holds_for_it_also_before_a_table_that_is_described()
 {
    let mut relay = started().await;
    let mut ann = relay.watch_as(ANN, "*").await;
    let mut id = 0;
    for (table, first) in [
        ("f", ""),
        ("d", ""),
        ("f", "alter policy p on d using (true);"),
    ] {
        relay.run("alter policy open on m using (true)").await;
        sees(&mut relay, &mut ann, (table, "1"), true, &mut id).await;
        id += 1;
        let rows = format!(
            "begin; alter policy open on m using (false); {first} insert into {table} values ({id}, 1);
             insert into d values ({}, 1); commit",
            id + 1
        );
        relay.run(&rows).await;
        let seen = brief(&relay.seen(&ann).await);
        assert!(!seen.contains(&format!("INSERT {id}")), "{seen:?}");
        assert!(seen.iter().any(|one| one.starts_with("resync")), "{seen:?}");
        id += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_is_not_shown_what_was_written_behind_a_change_that_nobody_had_to_notice() {
    let mut relay = started().await;
    let mut ann = relay.watch_as(ANN, "*").await;
    sees(&mut relay, &mut ann, ("f", "1"), true, &mut 0).await;
    relay
        .core
        .router
        .disconnect(ann.outbox.session())
        .await
        .unwrap();
    let start = relay.core.router.position();
    // For this row the catalog need not be read again, and nobody follows the table of those behind it.
    relay.run("insert into f values (999, 1)").await;
    relay.reads_the_catalog().await;
    relay
        .run("alter policy open on m using (false); insert into f values (1000, 1)")
        .await;
    let began = tokio::time::Instant::now();
    while relay.core.router.position().offset.0 < start.offset.0 + 2 {
        assert!(began.elapsed() < DEADLINE, "the rows are passed over");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let back = vec![since(wish(1, "f", ""), start)];
    let ann = Client::join(&relay.core, &user(ANN), back).await;
    let heard = ann.next().await;
    assert!(
        matches!(heard, Heard::Resync("access_changed", _)),
        "{heard:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebodys_lock_on_one_table_does_not_hold_up_the_rows_of_another() {
    let mut relay = started().await;
    let mut ann = relay.watch_as(ANN, "*").await;
    let mut id = 0;
    sees(&mut relay, &mut ann, ("f", "1"), true, &mut id).await;
    let other = connect(&relay.url).await;
    let lock = "begin; lock table d in access exclusive mode";
    other.batch_execute(lock).await.unwrap();
    relay
        .run(&format!("insert into f values ({}, 1)", id + 1))
        .await;
    let seen = brief(&relay.seen(&ann).await);
    assert_eq!(seen, [format!("INSERT {}", id + 1)]);
    other.batch_execute("commit").await.unwrap();
}

/// What hides a row for a while, what undoes that, and of which table a row is written in between.
const UNDONE: &[(&str, &str, &str, &str)] = &[
    (
        "revoke select on m from authenticated",
        "grant select on m to authenticated",
        "d",
        "1",
    ),
    (
        "revoke select on v from authenticated",
        "grant select on v to authenticated",
        "e",
        "1",
    ),
    (
        "create or replace view v as select org, who from m where false",
        "create or replace view v as select org, who from m",
        "e",
        "1",
    ),
    (
        "alter type state rename value 'open' to 'x'; alter type state rename value 'shut' to 'open'",
        "alter type state rename value 'open' to 'shut'; alter type state rename value 'x' to 'open'",
        "g",
        "'open'",
    ),
    (
        "revoke unseen_rules_member from authenticated",
        "grant unseen_rules_member to authenticated",
        "i",
        "1",
    ),
    (
        "revoke usage on schema side from authenticated",
        "grant usage on schema side to authenticated",
        "j",
        "1",
    ),
    (
        "create or replace function member(o int) returns bool language sql stable as 'select false'",
        "create or replace function member(o int) returns bool language sql stable as \
         'select exists (select from public.m where m.org = o and m.who = auth.uid())'",
        "f",
        "1",
    ),
    (
        "alter policy open on m using (false)",
        "alter policy open on m using (true)",
        "d",
        "1",
    ),
    // What else the same statement does explains nothing.
    (
        "revoke select on m from authenticated",
        "grant select on m to authenticated, unseen_rules_staff",
        "d",
        "1",
    ),
    (
        "revoke usage on schema side from authenticated",
        "grant usage on schema side to authenticated, unseen_rules_staff",
        "j",
        "1",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_hidden_for_a_moment_is_not_shown_as_that_is_undone_before_anybody_looks() {
    of_a_moment(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_hidden_for_a_moment_is_not_shown_where_the_stream_tells_of_it_either() {
    of_a_moment(true).await;
}

async fn of_a_moment(told: bool) {
    let mut relay = with_schema(told).await;
    relay
        .run(
            "do $$ begin
               create role unseen_rules_member;
             exception when duplicate_object or unique_violation then null;
             end $$;
             create table i (id int primary key, org int);
             alter table i enable row level security;
             grant select on i to authenticated;
             create policy p on i using (pg_has_role('unseen_rules_member', 'member'));
             create schema side;
             grant usage on schema side to authenticated;
             create function side.shows(org int) returns bool language sql stable as 'select org = 1';
             create table j (id int primary key, org int);
             alter table j enable row level security;
             grant select on j to authenticated;
             create policy p on j using (side.shows(org));
             alter publication rowcast add table i, j;
             grant unseen_rules_member to authenticated",
        )
        .await;
    relay.reads_the_catalog().await;
    let mut id = 0;
    // Of roles nothing tells.
    let undone = UNDONE
        .iter()
        .filter(|(.., table, _)| !told || *table != "i");
    for (change, undo, table, value) in undone {
        let mut ann = relay.watch_as(ANN, table).await;
        let values = if *table == "g" { "'shut'" } else { value };
        let (before, shown) = (values, *table != "g");
        // The second time the row is the first behind a description of its table, which another may be the cause of.
        for is_first in [false, true] {
            sees(&mut relay, &mut ann, (table, before), shown, &mut id).await;
            if is_first {
                relay.run(&format!("analyze {table}")).await;
            }
            id += 1;
            let all = [
                *change,
                &format!("insert into {table} values ({id}, {value})"),
                undo,
            ]
            .map(|one| format!("begin; {one}; commit"));
            relay.run(&all.join(";")).await;
            let seen = brief(&relay.seen(&ann).await);
            let hidden = seen.iter().all(|one| one.starts_with("resync"));
            assert!(
                hidden && !seen.is_empty(),
                "{change}, told: {told}, first: {is_first}: {seen:?}"
            );
        }
    }
}

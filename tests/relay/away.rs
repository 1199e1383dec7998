//! What happened while no relay ran, which the slot still has: rows fall under the rules of then, though the
//! catalog shows only those of now.

use rowcast::config::Config;
use rowcast::pg::Lsn;
use rowcast::subscription::Wanted;

use crate::harness::{ANN, Relay, cluster, config, connect, has_it_told};
use crate::resume::{Client, Heard, settled, since, user, wish};

const OWN: &str = "
    create table own (id int primary key, owner uuid);
    create table filler (id int);
    alter table own enable row level security;
    alter table own replica identity full;
    create policy mine on own using (owner = auth.uid());
    grant select on own to authenticated;
    create function shown(id int) returns bool language sql stable as 'select id < 1';
    create table helped (id int primary key);
    alter table helped enable row level security;
    alter table helped replica identity full;
    create policy helped on helped using (shown(id));
    grant select on helped to authenticated;";

const RULE: &str = "alter policy mine on own using (owner = auth.uid())";

/// What takes a while to be decoded: who comes meanwhile is here before the rows behind it.
const FILLER: &str = "insert into filler select i from generate_series(1, 400000) i;";

/// A relay whose log outlives it, and its settings.
async fn started(url: &str, told: bool, folder: &tempfile::TempDir) -> (Relay, Config) {
    let mut used = config(url);
    used.data = Some(folder.path().join("log"));
    used.policy_check = false;
    if told {
        has_it_told(&connect(url).await, &used.slot).await;
    }
    let relay = Relay::in_database(url, OWN, "own, helped", |config| *config = used.clone()).await;
    (relay, used)
}

/// Rules that were stricter for a while, and are what they were.
async fn of_stricter_rules(told: bool, live: bool) {
    let folder = tempfile::tempdir().unwrap();
    let url = cluster().await.fresh_database().await.unwrap();
    let (mut relay, config) = started(&url, told, &folder).await;
    // By the same statement: some PostgreSQLs keep where in it each word stood.
    relay.run(RULE).await;
    relay.reads_the_catalog().await;
    let start = settled(&mut relay).await;
    let away = relay.ended().await;
    for one in [
        if live { FILLER } else { "" },
        "alter policy mine on own using (false)",
        &format!("insert into own values (1, '{ANN}')"),
        RULE,
        &format!("insert into own values (2, '{ANN}')"),
    ] {
        away.sql.batch_execute(one).await.unwrap();
    }
    let mut relay = away.begun(&config).await;
    if !live {
        settled(&mut relay).await;
        relay.reads_the_catalog().await;
    }
    reads_again(&relay, since(wish(1, "own", ""), start), live).await;
}

/// Who comes with what it had hears of the rules at once. With the cursor that it is given then it is there
/// before the rows, where these are yet to come.
async fn reads_again(relay: &Relay, wanted: Wanted, live: bool) {
    let mut wanted = wanted;
    for _ in 0..=usize::from(live) {
        let back = Client::join(&relay.core, &user(ANN), vec![wanted.clone()]).await;
        let cursor = loop {
            match back.next().await {
                Heard::CaughtUp => {}
                Heard::Resync(_, cursor) => break cursor.unwrap(),
                other => panic!("{other:?}"),
            }
        };
        wanted = since(wanted, cursor);
        // It has read under the rules of now.
        wanted.start.read_at = Some(Lsn(u64::MAX));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_is_not_shown_what_was_hidden_for_a_while() {
    for told in [false, true] {
        of_stricter_rules(told, false).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_there_before_the_rows_is_not_shown_what_was_hidden_for_a_while() {
    for told in [false, true] {
        of_stricter_rules(told, true).await;
    }
}

/// The numbers of transactions do not tell in which order they committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_not_judged_by_rules_that_began_before_it_and_came_behind_it() {
    for (told, live) in [(false, false), (false, true), (true, false), (true, true)] {
        let folder = tempfile::tempdir().unwrap();
        let url = cluster().await.fresh_database().await.unwrap();
        let (mut relay, config) = started(&url, told, &folder).await;
        relay.reads_the_catalog().await;
        let start = settled(&mut relay).await;
        let away = relay.ended().await;
        // No slot of this cluster can be made until this has ended.
        let other = connect(&url).await;
        let shown =
            "begin; create or replace function shown(id int) returns bool language sql stable as
                     'select id > 0'";
        other.batch_execute(shown).await.unwrap();
        let filler = if live { FILLER } else { "" };
        let row = format!("{filler} begin; insert into helped values (1); commit");
        away.sql.batch_execute(&row).await.unwrap();
        other.batch_execute("commit").await.unwrap();
        let mut relay = away.begun(&config).await;
        if !live {
            settled(&mut relay).await;
            relay.reads_the_catalog().await;
        }
        reads_again(&relay, since(wish(1, "helped", ""), start), live).await;
    }
}

/// What hides a row of a table, and what shows it again.
const UNDONE: &[(&str, &str, &str)] = &[
    (
        "revoke rowcast_away from authenticated",
        "grant rowcast_away to authenticated",
        "of_role",
    ),
    (
        "revoke usage on schema side from authenticated",
        "grant usage on schema side to authenticated",
        "of_schema",
    ),
    (
        "create or replace view v as select 1 as id where false",
        "create or replace view v as select 1 as id",
        "of_view",
    ),
    (
        "alter type state rename value 'open' to 'x'; alter type state rename value 'shut' to 'open'",
        "alter type state rename value 'open' to 'shut'; alter type state rename value 'x' to 'open'",
        "of_label",
    ),
    (
        "do $$ begin execute format('alter database %I set app.open = %L', current_database(), 'no'); end $$",
        "do $$ begin execute format('alter database %I set app.open = %L', current_database(), 'yes'); end $$",
        "of_setting",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_is_not_shown_what_something_beyond_the_table_hid_for_a_while() {
    for told in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let url = cluster().await.fresh_database().await.unwrap();
        let (mut relay, config) = started(&url, told, &folder).await;
        let schema = "
            do $$ begin
              create role rowcast_away;
            exception when duplicate_object or unique_violation then null;
            end $$;
            grant rowcast_away to authenticated;
            create schema side;
            grant usage on schema side to authenticated;
            create function side.shows(id int) returns bool language sql stable as 'select id > 0';
            create view v as select 1 as id;
            grant select on v to authenticated;
            create type state as enum ('open', 'shut');
            create table of_role (id int primary key, state state default 'open');
            create table of_schema (like of_role including all);
            create table of_view (like of_role including all);
            create table of_label (like of_role including all);
            create table of_setting (like of_role including all);
            alter table of_role enable row level security;
            alter table of_schema enable row level security;
            alter table of_view enable row level security;
            alter table of_label enable row level security;
            alter table of_setting enable row level security;
            create policy p on of_role using (pg_has_role('rowcast_away', 'member'));
            create policy p on of_schema using (side.shows(id));
            create policy p on of_view using (exists (select from v));
            create policy p on of_label using (state = 'open');
            create policy p on of_setting using (current_setting('app.open', true) = 'yes');
            grant select on of_role, of_schema, of_view, of_label, of_setting to authenticated;
            alter publication rowcast add table of_role, of_schema, of_view, of_label, of_setting";
        relay.run(schema).await;
        for (_, show, _) in UNDONE.iter().filter(|(.., table)| *table == "of_setting") {
            relay.run(show).await;
        }
        for (hide, show, table) in UNDONE {
            relay.reads_the_catalog().await;
            // Nothing happens the first time: what is noticed the second is not the restart.
            for happens in [false, true] {
                let start = settled(&mut relay).await;
                let away = relay.ended().await;
                let row = format!("insert into {table} values (1)");
                let all: &[&str] = if happens { &[hide, &row, show] } else { &[] };
                for one in all {
                    away.sql.batch_execute(one).await.unwrap();
                }
                relay = away.begun(&config).await;
                settled(&mut relay).await;
                let wanted = since(wish(1, table, ""), start);
                let back = Client::join(&relay.core, &user(ANN), vec![wanted]).await;
                match back.next().await {
                    Heard::CaughtUp => assert!(!happens, "{hide}, told: {told}"),
                    Heard::Resync(..) => assert!(happens, "{table}, told: {told}"),
                    other => panic!("{hide}: {other:?}"),
                }
            }
        }
    }
}

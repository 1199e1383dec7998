//! Without the event trigger: what a policy looks at beyond its own table changes without a word in the
//! stream, and no row behind it is judged by what was.

use std::time::Duration;

use crate::harness::{ANN, DEADLINE, Relay, Seen, Watcher, brief};

/// The clock never helps.
async fn started() -> (Relay, Watcher) {
    let schema = format!(
        "create table m (org int, who uuid, role text, primary key (org, who));
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
         create table g (id int primary key, org state);
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
    let relay = Relay::with(&schema, "d, e, f, g", |config| {
        config.catalog_interval = Duration::from_secs(3600);
        config.policy_check = false;
    })
    .await;
    let watcher = relay.watch_as(ANN, "*").await;
    (relay, watcher)
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
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_beyond_a_policys_own_table_holds_for_the_next_row() {
    let (mut relay, mut ann) = started().await;
    let mut id = 0;
    for (change, table, value, sees) in CHANGES {
        // Until the row before the change is seen as it is to be, mirrors may be on their way.
        let since = tokio::time::Instant::now();
        loop {
            relay.reads_the_catalog().await;
            ann.join(&relay.core).await.unwrap();
            id += 1;
            let row = format!("insert into {table} values ({id}, {value})");
            relay.run(&row).await;
            let seen = relay.seen(&ann).await;
            let before = format!("INSERT {id}");
            let expected = if *sees { Vec::new() } else { vec![before] };
            if brief(&seen) == expected {
                break;
            }
            assert!(since.elapsed() < DEADLINE, "{change}: {:?}", brief(&seen));
        }
        id += 1;
        relay.run(change).await;
        let row = format!("insert into {table} values ({id}, {value})");
        relay.run(&row).await;
        let seen = relay.seen(&ann).await;
        let shown = seen.iter().any(|one| matches!(one, Seen::Change(_)));
        assert!(*sees || !shown, "{change}: {:?}", brief(&seen));
        let told = seen.iter().any(|one| matches!(one, Seen::Resync(_)));
        assert!(told || shown == *sees, "{change}: {:?}", brief(&seen));
    }
}

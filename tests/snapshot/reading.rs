//! What a snapshot holds, and what is refused.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Asked, Client, Heard, Page, id, principal};
use crate::harness::{ANN, BEN, Relay};

fn ids(pages: &[Page]) -> Vec<i64> {
    pages.iter().flat_map(|page| &page.rows).map(id).collect()
}

fn client(relay: &Relay, role: &str, sub: &str, asked: Asked) -> Client {
    let who = principal(role, &json!({ "role": role, "sub": sub }));
    Client::new(&relay.core.router, who, asked)
}

const TASKS: &str = "
    create table task (id bigint primary key, owner uuid, kind int, body text, version int default 0);
    alter table task enable row level security;
    create policy own on task using (owner = auth.uid());
    grant select on task to authenticated;
    grant all on task to service_role;
    alter table task replica identity full;";

fn ann_and_ben() -> String {
    format!(
        "insert into task select n, case when n % 2 = 0 then '{ANN}'::uuid else '{BEN}'::uuid end,
         n % 3, 'b' || n from generate_series(1, 30) n"
    )
}

#[tokio::test]
async fn a_snapshot_holds_what_the_role_may_select_and_the_filter_passes_and_no_more() {
    let relay = Relay::start(TASKS, "task").await;
    relay.run(&ann_and_ben()).await;
    let all = |n: i64, m: i64| (1..=30).filter(move |id| id % n == m).collect::<Vec<_>>();
    let mut ann = client(&relay, "authenticated", ANN, Asked::of("task"));
    assert_eq!(ids(&ann.snapshot().await), all(2, 0));
    let mut ben = client(&relay, "authenticated", BEN, Asked::of("task"));
    assert_eq!(ids(&ben.snapshot().await), all(2, 1));
    let mut service = client(&relay, "service_role", BEN, Asked::of("task"));
    assert_eq!(ids(&service.snapshot().await).len(), 30, "it bypasses them");
    let filtered = Asked {
        filter: "kind=in.(0,1),body=like.b1%,id=not.eq.16".to_owned(),
        ..Asked::of("task")
    };
    let mut ann = client(&relay, "authenticated", ANN, filtered);
    assert_eq!(ids(&ann.snapshot().await), [10, 12, 18]);
    let injected = Asked {
        filter: "body=eq.x' or true or 'a'='".to_owned(),
        ..Asked::of("task")
    };
    let mut ann = client(&relay, "authenticated", ANN, injected);
    let pages = ann.snapshot().await;
    assert_eq!(ids(&pages), Vec::<i64>::new(), "a value is a value");
    assert!(pages[0].last, "also an empty snapshot ends");
}

#[tokio::test]
async fn rows_come_in_the_order_that_was_asked_for_and_the_limit_says_if_there_are_more() {
    let relay = Relay::start(TASKS, "task").await;
    relay.run(&ann_and_ben()).await;
    relay
        .run("update task set kind = null where id in (2, 4)")
        .await;
    for (order, limit, expected, more) in [
        ("id.desc", 3, vec![30, 28, 26], true),
        ("kind.nullsfirst", 4, vec![2, 4, 6, 12], true),
        ("kind.desc.nullslast,id.desc", 2, vec![26, 20], true),
        ("", 15, (1..=15).map(|n| n * 2).collect(), false),
        ("", 0, vec![], true),
    ] {
        let asked = Asked {
            order: order.to_owned(),
            limit: Some(limit),
            ..Asked::of("task")
        };
        let mut ann = client(&relay, "authenticated", ANN, asked);
        let pages = ann.snapshot().await;
        assert_eq!(ids(&pages), expected, "{order}");
        assert_eq!(pages.last().unwrap().more, more, "{order} {limit}");
    }
}

#[tokio::test]
async fn what_cannot_be_given_is_refused_by_name() {
    let relay = Relay::with(
        "create table t (id int primary key, hidden int);
         grant select (id) on t to authenticated;
         create table no (id int primary key);
         create role stranger;
         grant select on t to stranger;",
        "t, no",
        |config| config.snapshot.max_rows = 50,
    )
    .await;
    let limited = |limit| Asked {
        limit: Some(limit),
        ..Asked::of("t")
    };
    let ordered = |order: &str| Asked {
        order: order.to_owned(),
        ..Asked::of("t")
    };
    for (role, asked, expected) in [
        (
            "authenticated",
            limited(51),
            "`limit` may be 50 at most (snapshot_max_rows), not 51",
        ),
        (
            "authenticated",
            ordered("hidden"),
            "invalid column for order hidden",
        ),
        (
            "authenticated",
            ordered("nothing.desc"),
            "invalid column for order nothing",
        ),
        (
            "authenticated",
            Asked::of("no"),
            "permission denied for table no",
        ),
        (
            "authenticated",
            Asked::of("*"),
            "a snapshot needs a schema and a table by name",
        ),
    ] {
        let mut client = client(&relay, role, ANN, asked);
        let refusal = client.refusal().await;
        assert!(refusal.contains(expected), "{refusal}");
    }
    let mut most = client(&relay, "authenticated", ANN, limited(50));
    assert_eq!(ids(&most.snapshot().await), Vec::<i64>::new());
}

#[tokio::test]
async fn a_row_looks_as_it_does_in_a_change() {
    let relay = Relay::with(
        "create type mood as enum ('sad', 'ok');
         create domain positive as int check (value > 0);
         create type pair as (a int, b text);
         create table t (id bigint primary key, n numeric, b boolean, j jsonb, ts timestamptz,
            tp timestamp, d date, i interval, by bytea, a int[], m mood, p positive, c pair, x text,
            f double precision, twice int generated always as (p * 2) stored, hidden text,
            u uuid, ma mood[], version int default 0);
         grant select (id, n, b, j, ts, tp, d, i, by, a, m, p, c, x, f, twice, u, ma, version)
            on t to authenticated;
         alter table t replica identity full;",
        "t",
        |config| config.max_record_bytes = 4096,
    )
    .await;
    let mut watcher = relay
        .watch("authenticated", &json!({ "sub": ANN }), "t")
        .await;
    relay
        .run(
            "insert into t values
             (1, 1.50, true, '{\"a\": [1, null]}', '2024-02-29 12:00+02', '2024-01-01', '2024-01-02',
              '1 day 2 hours', '\\xdead', '{1,null}', 'ok', 3, '(1,\"x,y\")', 'größer \"q\"', 0.1,
              default, 'h', '00000000-0000-4000-8000-00000000000a', '{sad,ok}'),
             (2, 'NaN', null, null, 'infinity', null, null, null, null, null, null, null, null, null,
              'Infinity', default, null, null, null),
             (3, null, null, null, null, null, null, null, null, null, null, 7, null,
              repeat('x', 5000), null, default, null, null, null)",
        )
        .await;
    let fence = relay.sql.execute("insert into fence values (99)", &[]);
    fence.await.unwrap();
    let seen = watcher.until(99).await;
    let records: Vec<&Value> = seen.iter().map(|seen| &seen.change()["record"]).collect();
    assert_eq!(records.len(), 3);
    let mut client = client(&relay, "authenticated", ANN, Asked::of("t"));
    let pages = client.snapshot().await;
    let rows: Vec<&Value> = pages.iter().flat_map(|page| &page.rows).collect();
    assert_eq!(rows, records);
    assert_eq!(
        pages[0].errors,
        json!([{ "row": 2, "errors": seen[2].change()["errors"] }]),
        "a row that is too large is cut, and says so"
    );
    let select = Asked {
        select: Some(vec!["m".to_owned(), "twice".to_owned()]),
        ..Asked::of("t")
    };
    client.asked = select;
    let pages = client.snapshot().await;
    assert_eq!(
        pages[0].rows[0],
        json!({ "id": 1, "m": "ok", "twice": 6 }),
        "what was selected, and the key"
    );
    watcher.notices.clear();
}

#[tokio::test]
async fn partitions_children_and_tables_without_a_key_give_their_own_rows() {
    let relay = Relay::start(
        "create table parts (id bigint, kind int, version int default 0, primary key (id, kind))
            partition by list (kind);
         create table parts_1 partition of parts for values in (1);
         create table parts_2 partition of parts for values in (2);
         alter table parts enable row level security;
         create policy even on parts using (id % 2 = 0);
         create table parent (id bigint, version int default 0);
         create table child (more int) inherits (parent);
         grant select on parts, parent, child to authenticated;
         insert into parts select n, n % 2 + 1 from generate_series(1, 10) n;
         insert into parts select n, 2 from generate_series(12, 14) n;
         insert into parent select n from generate_series(1, 3) n;
         insert into child select n from generate_series(4, 5) n;",
        "parts, parent with (publish_via_partition_root = true)",
    )
    .await;
    let mut whole = client(&relay, "authenticated", ANN, Asked::of("parts"));
    assert_eq!(ids(&whole.snapshot().await), [2, 4, 6, 8, 10, 12, 14]);
    let mut parent = client(&relay, "authenticated", ANN, Asked::of("parent"));
    let mut rows = ids(&parent.snapshot().await);
    rows.sort_unstable();
    assert_eq!(rows, [1, 2, 3], "the children's changes are the children's");
}

#[tokio::test]
async fn a_partition_of_a_protected_table_is_not_read_past_its_policies() {
    let relay = Relay::start(
        "create table parts (id bigint primary key, version int default 0) partition by range (id);
         create table low partition of parts for values from (0) to (100);
         alter table parts enable row level security;
         create policy even on parts using (id % 2 = 0);
         grant select on parts, low to authenticated;
         insert into parts select n from generate_series(1, 10) n;",
        "low",
    )
    .await;
    let mut low = client(&relay, "authenticated", ANN, Asked::of("low"));
    let refusal = low.refusal().await;
    assert!(refusal.contains("partition public.low"), "{refusal}");
}

#[tokio::test]
async fn a_large_snapshot_comes_in_pages_and_changes_follow_behind_the_last() {
    let mut relay = Relay::start(TASKS, "task").await;
    relay
        .run(&format!(
            "insert into task select n, '{ANN}', 1, repeat('x', 400) from generate_series(1, 3000) n"
        ))
        .await;
    let asked = Asked {
        limit: Some(5000),
        ..Asked::of("task")
    };
    let mut ann = client(&relay, "authenticated", ANN, asked);
    ann.join().await;
    assert_eq!(ann.heard().await, Heard::Joined(vec![]));
    let Heard::Page(first) = ann.heard().await else {
        panic!("a page was expected");
    };
    assert!(!first.last);
    // Committed while the snapshot is under way: behind its pages.
    relay
        .run("update task set version = version + 1 where id in (1, 2999)")
        .await;
    relay.run("delete from task where id = 2998").await;
    let fence = relay.fence().await;
    let mut rows: Vec<i64> = first.rows.iter().map(id).collect();
    let mut pages = 1;
    let mut changes = Vec::new();
    loop {
        match ann.heard().await {
            Heard::Page(page) => {
                assert!(changes.is_empty(), "pages come before changes");
                assert_eq!(page.number, pages);
                assert!(page.rows.iter().all(|row| row["version"] == 0));
                rows.extend(page.rows.iter().map(id));
                pages += 1;
            }
            Heard::Change(data) => changes.push(data["type"].clone()),
            Heard::Fence(written) if written == fence => break,
            Heard::CaughtUp => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(rows, (1..=3000).collect::<Vec<_>>());
    assert!(pages >= 6, "{pages} pages");
    assert_eq!(changes, ["UPDATE", "UPDATE", "DELETE"]);
}

#[tokio::test]
async fn a_client_that_does_not_take_its_pages_keeps_no_transaction_open_for_long() {
    let relay = Relay::with(TASKS, "task", |config| {
        config.snapshot.timeout = Duration::from_secs(2);
        config.snapshot.sessions = 1;
    })
    .await;
    relay
        .run(&format!(
            "insert into task select n, '{ANN}', 1, repeat('x', 1000) from generate_series(1, 5000) n"
        ))
        .await;
    let asked = Asked {
        limit: Some(5000),
        ..Asked::of("task")
    };
    let mut lazy = client(&relay, "authenticated", ANN, asked.clone());
    lazy.join().await;
    // Whoever comes next gets the session once the lazy one has had its time.
    let small = Asked {
        limit: Some(1),
        ..asked
    };
    let mut other = client(&relay, "authenticated", ANN, small);
    assert_eq!(ids(&other.snapshot().await), [1]);
    let mut pages = 0;
    let failure = loop {
        match lazy.heard().await {
            Heard::Page(page) => {
                assert!(!page.last);
                pages += 1;
            }
            Heard::Again(failure) => break failure,
            _ => {}
        }
    };
    assert!(failure.contains("snapshot_timeout"), "{failure}");
    assert!(pages <= 8, "{pages} pages were held for it");
}

#[tokio::test]
async fn whoever_leaves_or_joins_anew_ends_its_snapshot() {
    let mut relay = Relay::with(TASKS, "task", |config| config.snapshot.sessions = 1).await;
    relay
        .run(&format!(
            "insert into task select n, '{ANN}', 1, repeat('x', 1000) from generate_series(1, 5000) n"
        ))
        .await;
    let asked = Asked {
        limit: Some(5000),
        ..Asked::of("task")
    };
    let mut gone = client(&relay, "authenticated", ANN, asked.clone());
    gone.join().await;
    assert_eq!(gone.heard().await, Heard::Joined(vec![]));
    assert!(matches!(gone.heard().await, Heard::Page(_)));
    gone.disconnect().await;
    let mut left = client(&relay, "authenticated", ANN, asked.clone());
    left.join().await;
    assert_eq!(left.heard().await, Heard::Joined(vec![]));
    assert!(matches!(left.heard().await, Heard::Page(_)));
    left.leave().await;
    // The next needs the only session: neither of the two keeps it.
    let mut other = client(&relay, "authenticated", ANN, asked);
    other.join().await;
    assert_eq!(other.heard().await, Heard::Joined(vec![]));
    assert!(matches!(other.heard().await, Heard::Page(_)));
    // The same channel again: it begins anew, with its first page.
    other.join_same().await;
    loop {
        match other.heard().await {
            Heard::Joined(refusals) => {
                assert_eq!(refusals, Vec::<String>::new());
                break;
            }
            Heard::Page(_) => {}
            heard => panic!("{heard:?}"),
        }
    }
    let pages = other.pages().await;
    assert_eq!(ids(&pages).len(), 5000);
    relay.run("insert into task values (6000, null)").await;
    let fence = relay.fence().await;
    loop {
        match other.heard().await {
            Heard::Fence(written) if written == fence => break,
            Heard::CaughtUp => {}
            heard => panic!("{heard:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_larger_than_may_be_is_given_up_and_said() {
    let relay = Relay::with(TASKS, "task", |config| config.snapshot.max_bytes = 200_000).await;
    relay
        .run(&format!(
            "insert into task select n, '{ANN}', 1, repeat('x', 1000) from generate_series(1, 1000) n"
        ))
        .await;
    let mut ann = client(&relay, "authenticated", ANN, Asked::of("task"));
    ann.join().await;
    let failure = loop {
        match ann.heard().await {
            Heard::Again(failure) => break failure,
            Heard::Page(page) => assert!(!page.last),
            _ => {}
        }
    };
    assert!(failure.contains("snapshot_max_bytes"), "{failure}");
}

#[tokio::test]
async fn a_policy_that_raises_says_no_value_of_a_row_that_nobody_may_see() {
    let relay = Relay::start(
        "create table t (id bigint primary key, secret text, version int default 0);
         alter table t enable row level security;
         create policy p on t using (secret::int > 0);
         grant select on t to authenticated;
         insert into t values (1, 'swordfish');",
        "t",
    )
    .await;
    let mut ann = client(&relay, "authenticated", ANN, Asked::of("t"));
    ann.join().await;
    assert_eq!(ann.heard().await, Heard::Joined(vec![]));
    let Heard::Again(failure) = ann.heard().await else {
        panic!("a failure was expected");
    };
    assert_eq!(failure, "PostgreSQL refused the snapshot: SQLSTATE 22P02");
}

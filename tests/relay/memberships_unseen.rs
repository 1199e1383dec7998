//! Memberships that change without a word of it in the stream: whoever is none any more sees nothing
//! of what commits with it or behind it.

use std::time::{Duration, Instant};

use crate::harness::{ANN, BEN, DEADLINE, Relay, Watcher, brief, connect};
use crate::memberships::keeps;

/// Rows of an organisation are for its members, each organisation's in a partition of their own.
const ORGANISED: &str = "
    create table member (org int, person uuid, primary key (org, person)) partition by list (org);
    create table member_1 partition of member for values in (1);
    create table member_2 partition of member for values in (2) partition by hash (person);
    create table member_2_all partition of member_2 for values with (modulus 1, remainder 0);
    create table doc (id int primary key, org int not null);
    alter table doc enable row level security;
    create policy ours on doc for select to authenticated using
        (org in (select m.org from member m where m.person = auth.uid()));
    grant select on doc, member to authenticated;";

fn everybody() -> String {
    let members = |org: i32| format!("({org}, '{ANN}'), ({org}, '{BEN}')");
    format!("insert into member values {}, {}", members(1), members(2))
}

/// The clock never helps.
async fn started(told: bool) -> Relay {
    let schema = format!("{ORGANISED}; {}", everybody());
    let adjust = |config: &mut rowcast::config::Config| {
        config.catalog_interval = Duration::from_secs(3600);
    };
    if told {
        Relay::told(&schema, "doc", adjust).await
    } else {
        Relay::with(&schema, "doc", adjust).await
    }
}

/// Runs each of the statements, transactions that take Ann's second membership, right between rows of
/// both organisations. `{id}` stands for the number of a row of the second one, `{lookups}` for the
/// lookups' publication.
async fn check(mut relay: Relay, cases: &[(&[&str], &str)]) {
    let mut next = 1;
    for (case, (statements, back)) in cases.iter().enumerate() {
        let mut ann = relay.watch_as(ANN, "doc").await;
        keeps(&relay).await;
        let mut both = || {
            next += 2;
            let sql = format!(
                "insert into doc values ({}, 1), ({}, 2)",
                next - 2,
                next - 1
            );
            let seen = [next - 2, next - 1].map(|id| format!("INSERT {id}"));
            (sql, seen)
        };
        let (before, seen_before) = both();
        let (behind, [seen_behind, _]) = both();
        // Another row of the second organisation, of a number of its own.
        let other = connect(&relay.url).await;
        let lookups = "select pubname from pg_publication where pubname like '%lookups'";
        let lookups: String = other.query_one(lookups, &[]).await.unwrap().get(0);
        let id = format!("-{}", 1 + case);
        let amid = statements
            .iter()
            .map(|sql| sql.replace("{id}", &id).replace("{lookups}", &lookups));
        relay.run(&before).await;
        assert_eq!(
            brief(&relay.seen(&ann).await),
            seen_before,
            "{statements:?}"
        );
        for sql in amid.chain([behind]) {
            other.batch_execute(&sql).await.unwrap();
        }
        let shown = brief(&relay.seen(&ann).await);
        // The one that it still sees comes before or behind the word that it has lost something.
        let told = "resync access_changed".to_owned();
        let shown: Vec<String> = shown
            .into_iter()
            .filter(|one| *one != seen_behind)
            .collect();
        match &*shown {
            [] => assert_eq!(ann.resync().await, "access_changed", "{statements:?}"),
            shown => assert_eq!(shown, [told], "{statements:?}"),
        }
        ann.join(&relay.core).await.unwrap();
        let (sql, [seen, _]) = both();
        relay.run(&sql).await;
        assert_eq!(brief(&relay.seen(&ann).await), [seen], "{statements:?}");
        relay.run(back).await;
        relay.seen(&ann).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_of_memberships_that_is_emptied_shows_nothing_more_from_there_on() {
    let relay = started(false).await;
    let back = format!("insert into member values (2, '{ANN}'), (2, '{BEN}')");
    check(
        relay,
        &[
            (
                &["begin; insert into doc values ({id}, 2); truncate member_2; commit"],
                &back,
            ),
            (&["truncate member_2_all"], &back),
            (
                &[
                    "begin; truncate member_2_all; truncate member_1; rollback",
                    "begin; savepoint a; truncate member_2; release a; commit",
                ],
                &back,
            ),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_to_a_table_of_memberships_and_its_publication_holds_from_its_own_place_on() {
    let relay = started(true).await;
    let back = format!("insert into member values (2, '{ANN}'), (2, '{BEN}')");
    check(
        relay,
        &[
            (
                &["begin; insert into doc values ({id}, 2); \
                   alter table member detach partition member_2; commit"],
                "alter table member attach partition member_2 for values in (2)",
            ),
            (
                &["drop table member_2_all"],
                &format!(
                    "create table member_2_all partition of member_2 \
                     for values with (modulus 1, remainder 0); {back}"
                ),
            ),
            (
                &[
                    "alter publication {lookups} drop table member",
                    "delete from member where org = 2",
                    "alter publication {lookups} add table member",
                ],
                &back,
            ),
            (
                &[
                    "alter publication {lookups} set (publish = 'insert')",
                    "delete from member where org = 2",
                    "alter publication {lookups} \
                     set (publish = 'insert, update, delete, truncate')",
                ],
                &back,
            ),
            (
                &["begin; alter publication {lookups} drop table member; \
                     delete from member where org = 2; \
                     alter publication {lookups} add table member; commit"],
                &back,
            ),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_to_a_partition_counts_while_it_is_one_and_no_longer() {
    let mut relay = started(true).await;
    let mut ann = relay.watch_as(ANN, "doc").await;
    keeps(&relay).await;
    relay
        .run("alter table member detach partition member_2")
        .await;
    relay.run("delete from member_2").await;
    settle(&mut relay, &mut ann).await;
    relay
        .run(&format!("insert into member_2 values (2, '{ANN}')"))
        .await;
    relay.run("insert into doc values (1, 2), (2, 1)").await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 2"]);
    relay
        .run(
            "begin; alter table member attach partition member_2 for values in (2); \
             insert into doc values (3, 2); commit",
        )
        .await;
    relay.run("insert into doc values (4, 2)").await;
    let seen = brief(&relay.seen(&ann).await);
    assert_eq!(seen[..1], ["INSERT 3"], "{seen:?}");
}

/// Until the mirror is there, and nobody is told of it any more.
pub(crate) async fn settle(relay: &mut Relay, ann: &mut Watcher) {
    loop {
        // What was done to it lies behind then.
        let mut seen = relay.seen(ann).await;
        if seen.is_empty() {
            keeps(relay).await;
            seen = relay.seen(ann).await;
        }
        if seen.is_empty() {
            return;
        }
        ann.join(&relay.core).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_column_of_memberships_is_renamed_they_are_followed_under_its_new_name() {
    for told in [true, false] {
        let schema = format!("{ORGANISED}; {}", everybody());
        let adjust = |_: &mut rowcast::config::Config| {};
        let mut relay = if told {
            Relay::told(&schema, "doc", adjust).await
        } else {
            Relay::with(&schema, "doc", adjust).await
        };
        let mut ann = relay.watch_as(ANN, "doc").await;
        keeps(&relay).await;
        relay
            .run("alter table member rename column org to organisation")
            .await;
        settle(&mut relay, &mut ann).await;
        relay.run("delete from member where organisation = 2").await;
        assert_eq!(
            brief(&relay.seen(&ann).await),
            ["resync access_changed"],
            "told: {told}"
        );
        ann.join(&relay.core).await.unwrap();
        relay.run("insert into doc values (1, 1), (2, 2)").await;
        assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 1"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_partitions_of_memberships_that_come_and_go_those_are_told_whom_it_concerns() {
    let mut relay = started(true).await;
    // Ben is in the first one only.
    let leaves = format!("delete from member where org = 2 and person = '{BEN}'");
    relay.run(&leaves).await;
    let (mut next, mut copies) = (0, 1);
    // What it takes of memberships, and from whom.
    let cases: &[(&str, bool)] = &[
        (
            "create table member_3 partition of member for values in (3)",
            false,
        ),
        ("vacuum full member_1", false),
        ("truncate member_2_all", true),
        ("alter table member detach partition member_2", true),
        (
            "alter table member attach partition member_2 for values in (2)",
            true,
        ),
        ("drop table member_2", true),
    ];
    for (sql, concerned) in cases {
        let ann = relay.watch_as(ANN, "doc").await;
        let ben = relay.watch_as(BEN, "doc").await;
        keeps(&relay).await;
        relay.run(sql).await;
        // Some transaction, behind which it is noticed.
        relay.run("insert into doc values (0, 9)").await;
        relay.run("delete from doc where id = 0").await;
        copies += 1;
        let line = format!("rowcast_lookup_copies_total {copies}\n");
        let deadline = Instant::now() + DEADLINE;
        while !relay.core.metrics.encode().contains(&line) {
            assert!(Instant::now() < deadline, "{sql}: it is not copied anew");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        keeps(&relay).await;
        next += 1;
        relay
            .run(&format!("insert into doc values ({next}, 1)"))
            .await;
        let row = format!("INSERT {next}");
        let shown = brief(&relay.seen(&ben).await);
        assert_eq!(shown, std::slice::from_ref(&row), "{sql}");
        if *concerned {
            assert_eq!(ann.resync().await, "access_changed", "{sql}");
        } else {
            assert_eq!(brief(&relay.seen(&ann).await), [row], "{sql}");
        }
        if sql.starts_with("truncate") {
            let back = format!("insert into member values (2, '{ANN}')");
            relay.run(&back).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_memberships_come_from_where_they_cannot_be_followed_reads_again() {
    let schema = format!(
        "create table member (org int, person uuid, primary key (org, person));
         create table more (org int not null, person uuid not null);
         insert into more values (2, '{ANN}'); insert into member values (1, '{ANN}');
         create table doc (id int primary key, org int not null);
         alter table doc enable row level security;
         create policy ours on doc for select to authenticated using
             (org in (select m.org from member m where m.person = auth.uid()));
         grant select on doc, member to authenticated"
    );
    let mut relay = Relay::told(&schema, "doc", |config| {
        config.catalog_interval = Duration::from_secs(3600);
    })
    .await;
    let mut ann = relay.watch_as(ANN, "doc").await;
    keeps(&relay).await;
    relay.run("insert into doc values (1, 1), (2, 2)").await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 1"]);
    relay.run("alter table more inherit member").await;
    assert_eq!(ann.resync().await, "access_changed");
    ann.join(&relay.core).await.unwrap();
    relay.run("insert into doc values (3, 2)").await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 3"]);
}

//! Who is a member changes: what comes is judged by that at once, and whoever it concerns, and
//! nobody else, is told to read again.

use std::time::{Duration, Instant};

use rowcast::log::Cursor;

use crate::harness::{ANN, BEN, DEADLINE, Relay, Watcher, brief, connect};
use crate::resume::{Client, Heard, settled, since, snapshot, user, wish};

const CAT: &str = "00000000-0000-4000-8000-00000000000c";

/// Rows of an organisation are for its members. `note` is read by no policy.
pub(crate) const ORGANISED: &str = "
    create table member (org int, person uuid, note text, primary key (org, person));
    create table doc (id int primary key, org int not null, version int not null default 0);
    create table open (id int primary key);
    alter table doc replica identity full;
    alter table doc enable row level security;
    create policy ours on doc for select to authenticated using
        (org in (select m.org from member m where m.person = auth.uid()));
    grant select on doc, member, open to authenticated;";

/// Waits until the relay keeps a mirror of its lookup.
pub(crate) async fn keeps(relay: &Relay) {
    keeps_within(relay, DEADLINE).await;
}

async fn keeps_within(relay: &Relay, deadline: Duration) {
    let until = Instant::now() + deadline;
    while !is_kept(relay, 1) {
        assert!(Instant::now() < until, "no mirror");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn is_kept(relay: &Relay, tables: usize) -> bool {
    let line = format!("rowcast_lookups{{state=\"ready\"}} {tables}\n");
    relay.core.metrics.encode().contains(&line)
}

async fn organised(members: &str) -> Relay {
    let schema = format!("{ORGANISED}; insert into member values {members}");
    Relay::start(&schema, "doc, open").await
}

/// What a client that never leaves hears up to a fence.
async fn heard(relay: &mut Relay, watcher: &Watcher) -> Vec<String> {
    brief(&relay.seen(watcher).await)
}

async fn again(relay: &Relay, watcher: &mut Watcher) {
    watcher.join(&relay.core).await.expect("a subscription");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_first_is_answered_with_the_mirror_there_so_that_no_change_of_it_is_missed() {
    let mut relay = organised(&format!("(1, '{ANN}'), (1, '{BEN}')")).await;
    let mut ann = relay.watch_as(ANN, "doc").await;
    assert!(is_kept(&relay, 1));
    relay
        .run(&format!("delete from member where person = '{ANN}'"))
        .await;
    assert_eq!(heard(&mut relay, &ann).await, ["resync access_changed"]);
    again(&relay, &mut ann).await;
    relay.run("insert into doc values (1, 1)").await;
    assert_eq!(
        heard(&mut relay, &ann).await,
        [""; 0],
        "she reads once, and not again for the mirror's sake"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_could_not_wait_for_the_mirror_is_told_once_it_is_there() {
    let mut relay = organised(&format!("(1, '{ANN}'), (1, '{BEN}')")).await;
    let other = connect(&relay.url).await;
    other
        .batch_execute(&format!(
            "begin; lock table member in access exclusive mode;
             delete from member where person = '{ANN}'"
        ))
        .await
        .unwrap();
    let ann = relay.watch_as(ANN, "doc").await;
    let open = relay.watch_as(ANN, "open").await;
    assert!(!is_kept(&relay, 1), "nobody can copy it");
    other.batch_execute("commit").await.unwrap();
    keeps(&relay).await;
    assert_eq!(heard(&mut relay, &ann).await, ["resync access_changed"]);
    assert_eq!(heard(&mut relay, &open).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_and_a_row_of_one_transaction_meet_whichever_comes_first() {
    let mut relay = organised(&format!("(1, '{BEN}')")).await;
    let mut ann = relay.watch_as(ANN, "doc").await;
    let ben = relay.watch_as(BEN, "doc").await;
    keeps(&relay).await;
    relay
        .run(&format!(
            "begin; insert into doc values (1, 2); insert into member values (2, '{ANN}'); commit"
        ))
        .await;
    assert_eq!(
        heard(&mut relay, &ann).await,
        ["INSERT 1", "resync access_changed"]
    );
    again(&relay, &mut ann).await;
    relay
        .run(&format!(
            "begin; insert into member values (3, '{ANN}'); insert into doc values (2, 3); commit"
        ))
        .await;
    assert_eq!(
        heard(&mut relay, &ann).await,
        ["INSERT 2", "resync access_changed"]
    );
    again(&relay, &mut ann).await;
    // Over several batches of the stream.
    relay
        .run(&format!(
            "begin; insert into doc select i, 4 from generate_series(10, 2509) i;
             insert into member values (4, '{ANN}'); commit"
        ))
        .await;
    let seen = heard(&mut relay, &ann).await;
    assert_eq!(seen.len(), 2501);
    assert_eq!(
        (&*seen[0], &*seen[2500]),
        ("INSERT 10", "resync access_changed")
    );
    assert_eq!(
        heard(&mut relay, &ben).await,
        [""; 0],
        "it is no business of others"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ceases_to_be_a_member_sees_nothing_more_and_is_told_alone() {
    let mut relay = organised(&format!("(1, '{ANN}'), (1, '{BEN}'), (2, '{ANN}')")).await;
    let mut ann = relay.watch_as(ANN, "doc").await;
    let ben = relay.watch_as(BEN, "doc").await;
    let open = relay.watch_as(ANN, "open").await;
    keeps(&relay).await;
    relay.run("insert into doc values (1, 1), (2, 1)").await;
    relay
        .run(&format!(
            "begin; insert into doc values (3, 1); update doc set version = 1 where id = 1;
             delete from doc where id = 2;
             delete from member where org = 1 and person = '{ANN}'; commit"
        ))
        .await;
    relay.run("insert into doc values (4, 1)").await;
    let seen = heard(&mut relay, &ann).await;
    // The row that was deleted she could see until then.
    let expected = ["INSERT 1", "INSERT 2", "DELETE 2", "resync access_changed"];
    assert_eq!(seen, expected);
    again(&relay, &mut ann).await;
    relay.run("insert into doc values (5, 1), (6, 2)").await;
    assert_eq!(heard(&mut relay, &ann).await, ["INSERT 6"]);
    let of_ben = [
        "INSERT 1", "INSERT 2", "INSERT 3", "UPDATE 1", "DELETE 2", "INSERT 4", "INSERT 5",
    ];
    assert_eq!(heard(&mut relay, &ben).await, of_ben);
    assert_eq!(
        heard(&mut relay, &open).await,
        [""; 0],
        "her other tables are as they were"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_membership_that_changes_its_key_concerns_both_and_one_that_changes_otherwise_nobody() {
    let mut relay = organised(&format!("(1, '{ANN}'), (2, '{CAT}')")).await;
    let mut ann = relay.watch_as(ANN, "doc").await;
    let mut ben = relay.watch_as(BEN, "doc").await;
    let cat = relay.watch_as(CAT, "doc").await;
    keeps(&relay).await;
    relay.run("update member set note = 'seen by nobody'").await;
    relay.run("insert into doc values (1, 1)").await;
    assert_eq!(heard(&mut relay, &ann).await, ["INSERT 1"]);
    relay
        .run(&format!("update member set person = '{BEN}' where org = 1"))
        .await;
    relay.run("insert into doc values (2, 1)").await;
    assert_eq!(heard(&mut relay, &ann).await, ["resync access_changed"]);
    assert_eq!(heard(&mut relay, &ben).await, ["resync access_changed"]);
    // Who joins before the router has come to the row is told of it.
    assert_eq!(heard(&mut relay, &cat).await, [""; 0]);
    again(&relay, &mut ann).await;
    again(&relay, &mut ben).await;
    relay.run("insert into doc values (3, 1)").await;
    assert_eq!(heard(&mut relay, &ann).await, [""; 0]);
    assert_eq!(heard(&mut relay, &ben).await, ["INSERT 3"]);
    relay.run("update member set org = 5 where org = 1").await;
    assert_eq!(heard(&mut relay, &ben).await, ["resync access_changed"]);
    assert_eq!(heard(&mut relay, &ann).await, [""; 0]);
    assert_eq!(heard(&mut relay, &cat).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_in_an_organisation_that_decides_as_the_one_before_concerns_nobody() {
    let schema = format!(
        "{ORGANISED}
         alter table member add role text not null default 'viewer';
         alter policy ours on doc using (exists (select from member m
           where m.org = doc.org and m.person = auth.uid() and m.role in ('admin', 'editor')
             and coalesce(m.note, '') <> 'blocked'));
         insert into member values (1, '{ANN}', null, 'admin')"
    );
    let mut relay = Relay::start(&schema, "doc, open").await;
    let mut ann = relay.watch_as(ANN, "doc").await;
    keeps(&relay).await;
    for (set, concerns, sees) in [
        ("role = 'editor'", false, true),
        ("note = 'of account'", false, true),
        ("role = 'admin', note = 'blocked'", true, false),
        ("role = 'editor'", false, false),
        ("role = 'viewer', note = null", false, false),
        ("role = 'editor'", true, true),
        ("role = 'admin', note = 'x'", false, true),
        ("role = 'admin', org = 2", true, false),
    ] {
        relay.run(&format!("update member set {set}")).await;
        let told: &[&str] = if concerns {
            &["resync access_changed"]
        } else {
            &[]
        };
        assert_eq!(heard(&mut relay, &ann).await, told, "{set}");
        if concerns {
            again(&relay, &mut ann).await;
        }
        relay
            .run("insert into doc select count(*) + 1, 1 from doc")
            .await;
        let seen = heard(&mut relay, &ann).await;
        assert_eq!(seen.len(), usize::from(sees), "{set}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lookup_that_is_emptied_concerns_everybody_who_was_in_it_and_nobody_else() {
    let mut relay = organised(&format!("(1, '{ANN}')")).await;
    let mut ann = relay.watch_as(ANN, "doc").await;
    let ben = relay.watch_as(BEN, "doc").await;
    let open = relay.watch_as(ANN, "open").await;
    keeps(&relay).await;
    relay
        .run("begin; insert into doc values (1, 1); truncate member; commit")
        .await;
    relay.run("insert into doc values (2, 1)").await;
    assert_eq!(heard(&mut relay, &ann).await, ["resync access_changed"]);
    assert_eq!(heard(&mut relay, &ben).await, [""; 0]);
    assert_eq!(heard(&mut relay, &open).await, [""; 0]);
    again(&relay, &mut ann).await;
    relay
        .run(&format!("insert into member values (1, '{ANN}')"))
        .await;
    assert_eq!(heard(&mut relay, &ann).await, ["resync access_changed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_membership_that_its_own_policy_hides_is_none() {
    let schema = format!(
        "{ORGANISED}
         alter table member add hidden bool not null default false;
         alter table member enable row level security;
         create policy own on member for select to authenticated
             using (person = auth.uid() and not hidden);
         insert into member values (1, '{ANN}', '', false), (1, '{BEN}', '', true)"
    );
    let mut relay = Relay::start(&schema, "doc, open").await;
    let ann = relay.watch_as(ANN, "doc").await;
    let mut ben = relay.watch_as(BEN, "doc").await;
    keeps(&relay).await;
    relay.run("insert into doc values (1, 1)").await;
    assert_eq!(heard(&mut relay, &ann).await, ["INSERT 1"]);
    assert_eq!(heard(&mut relay, &ben).await, [""; 0]);
    relay
        .run(&format!(
            "update member set hidden = false where person = '{BEN}'"
        ))
        .await;
    assert_eq!(heard(&mut relay, &ben).await, ["resync access_changed"]);
    again(&relay, &mut ben).await;
    relay.run("insert into doc values (2, 1)").await;
    assert_eq!(heard(&mut relay, &ben).await, ["INSERT 2"]);
    assert_eq!(heard(&mut relay, &ann).await, ["INSERT 2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_change_among_a_hundred_thousand_members_costs_no_more_than_among_few() {
    let mut relay = organised(&format!("(1, '{BEN}')")).await;
    relay
        .run("insert into member select 1, gen_random_uuid() from generate_series(1, 100000)")
        .await;
    // The copy takes this build longer than a join waits.
    let _first = relay.watch_as(CAT, "doc").await;
    keeps_within(&relay, 6 * DEADLINE).await;
    let mut ann = relay.watch_as(ANN, "doc").await;
    let ben = relay.watch_as(BEN, "doc").await;
    assert_eq!(heard(&mut relay, &ben).await, [""; 0]);
    let begun = Instant::now();
    for round in 0..20 {
        relay
            .run(&format!(
                "insert into member values (1, '{ANN}'); insert into doc values ({round}, 1);
                 delete from member where person = '{ANN}'"
            ))
            .await;
        let seen = heard(&mut relay, &ann).await;
        assert_eq!(
            seen.last().map(|last| &**last),
            Some("resync access_changed")
        );
        again(&relay, &mut ann).await;
    }
    // To copy the set takes this build seconds, and there would be forty times.
    let took = begun.elapsed();
    assert!(took < DEADLINE, "{took:?}");
    assert_eq!(heard(&mut relay, &ben).await.len(), 20);
}

/// Comes back and says what it hears up to the row `last`.
async fn comes_back(relay: &Relay, who: &str, cursor: Cursor) -> Client {
    let back = vec![since(wish(1, "doc", ""), cursor)];
    Client::join(&relay.core, &user(who), back).await
}

async fn is_told(client: &Client) -> Cursor {
    let (reason, cursor) = client.resync().await;
    assert_eq!(reason, "access_changed");
    cursor
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_over_a_change_of_its_own_membership_reads_again_and_others_go_on() {
    let mut relay = organised(&format!("(1, '{ANN}'), (1, '{BEN}')")).await;
    let first = relay.watch_as(ANN, "doc").await;
    keeps(&relay).await;
    let start = settled(&mut relay).await;
    relay.run("insert into doc values (1, 1)").await;
    relay
        .run(&format!("delete from member where person = '{ANN}'"))
        .await;
    relay.run("insert into doc values (2, 1)").await;
    let behind = settled(&mut relay).await;
    assert_eq!(
        heard(&mut relay, &first).await,
        ["INSERT 1", "resync access_changed"]
    );
    let ann = comes_back(&relay, ANN, start).await;
    let cursor = is_told(&ann).await;
    assert!(
        cursor.offset >= behind.offset,
        "and does not come there again"
    );
    let ben = comes_back(&relay, BEN, start).await;
    assert_eq!(ben.until(2).await, ["INSERT 1", "INSERT 2"]);
    assert_eq!(ben.next().await, Heard::CaughtUp);
    // From there on she has everything, and of what comes she sees nothing.
    let ann = comes_back(&relay, ANN, cursor).await;
    assert_eq!(ann.next().await, Heard::CaughtUp);
    relay.run("insert into doc values (3, 1)").await;
    relay
        .run(&format!(
            "begin; insert into member values (1, '{ANN}'); insert into doc values (4, 1); commit"
        ))
        .await;
    assert_eq!(ann.until(4).await, ["INSERT 4"]);
    is_told(&ann).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_where_no_membership_changed_and_says_so_where_one_did() {
    let folder = tempfile::tempdir().unwrap();
    let schema = format!("{ORGANISED}; insert into member values (1, '{ANN}'), (1, '{BEN}')");
    let mut config = None;
    let mut relay = Relay::with(&schema, "doc, open", |adjusted| {
        adjusted.data = Some(folder.path().join("log"));
        config = Some(adjusted.clone());
    })
    .await;
    let config = config.unwrap();
    let _first = relay.watch_as(ANN, "doc").await;
    keeps(&relay).await;
    let start = settled(&mut relay).await;
    relay.run("insert into doc values (1, 1)").await;
    settled(&mut relay).await;
    let mut relay = relay
        .restart(&config, "insert into doc values (2, 1)")
        .await;
    let ann = comes_back(&relay, ANN, start).await;
    assert_eq!(ann.until(2).await, ["INSERT 1", "INSERT 2"]);
    ann.go(&relay.core).await;
    settled(&mut relay).await;
    let between =
        format!("delete from member where person = '{ANN}'; insert into doc values (3, 1)");
    let mut relay = relay.restart(&config, &between).await;
    settled(&mut relay).await;
    let ann = comes_back(&relay, ANN, start).await;
    let cursor = is_told(&ann).await;
    relay.run("insert into doc values (4, 1)").await;
    let ann = comes_back(&relay, ANN, cursor).await;
    assert_eq!(ann.next().await, Heard::CaughtUp);
    relay
        .run(&format!(
            "begin; insert into doc values (5, 1); insert into member values (1, '{ANN}'); commit"
        ))
        .await;
    assert_eq!(ann.until(5).await, ["INSERT 5"]);
    is_told(&ann).await;
}

/// Whoever has read the rows knows what the audience was in what was read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_a_membership_that_a_snapshot_shows_is_not_told_and_one_that_it_does_not_show_is()
 {
    let mut relay = organised(&format!("(1, '{ANN}'), (2, '{ANN}'), (3, '{ANN}')")).await;
    let first = relay.watch_as(ANN, "doc").await;
    keeps(&relay).await;
    drop(first);
    let before = connect(&relay.url).await;
    let gone = |org: u32| format!("delete from member where org = {org}");
    before
        .batch_execute(&format!("begin; {}", gone(3)))
        .await
        .unwrap();
    let start = settled(&mut relay).await;
    relay.run(&gone(1)).await;
    let snapshot = snapshot(&relay).await;
    relay.run("insert into doc values (1, 1), (2, 2)").await;
    settled(&mut relay).await;
    let mut wanted = since(wish(1, "doc", ""), start);
    wanted.start.unseen_by = Some(snapshot);
    let client = Client::join(&relay.core, &user(ANN), vec![wanted.clone()]).await;
    // The one of before the snapshot says nothing, and decides.
    assert_eq!(client.until(2).await, ["INSERT 2"]);
    assert_eq!(client.next().await, Heard::CaughtUp);
    // What the snapshot does not show, though it began before.
    before.batch_execute("commit").await.unwrap();
    is_told(&client).await;
    // And where it is replayed.
    let client = Client::join(&relay.core, &user(ANN), vec![wanted]).await;
    let mut heard = Vec::new();
    loop {
        match client.next().await {
            Heard::Joined => {}
            Heard::Resync(reason, _) => break heard.push(reason.to_owned()),
            Heard::Change(_, data) => heard.push(data["record"]["id"].to_string()),
            other => panic!("{other:?} after {heard:?}"),
        }
    }
    assert!(heard.ends_with(&["access_changed".to_owned()]), "{heard:?}");
}

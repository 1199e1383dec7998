//! An update that takes a row out of somebody's view.

use std::time::Duration;

use rowcast::router::Leaves;
use rowcast::subscription::{Events, Wanted};
use serde_json::{Value, json};

use crate::harness::{ANN, BEN, Relay, Watcher, brief};
use crate::resume::{Client, Heard, settled, since, user, wish};

const CAT: &str = "00000000-0000-4000-8000-00000000000c";

/// Cards that their owner sees; what the replica identity is follows.
const CARDS: &str =
    "create table cards (id int primary key, owner uuid not null, status text, note text);
     alter table cards enable row level security;
     create policy own on cards using (owner = auth.uid());
     grant select on cards to authenticated;";

const FULL: &str = "alter table cards replica identity full;";

/// A wish of binding 1 that asks for leaves.
fn leaving(table: &str, filtered: &str) -> Wanted {
    Wanted {
        leave: true,
        ..wish(1, table, filtered)
    }
}

async fn watch(relay: &Relay, user: &str, wanted: Wanted) -> Watcher {
    relay
        .watch_wanted("authenticated", &json!({ "sub": user }), wanted)
        .await
        .expect("a subscription")
}

fn said(watcher: &Watcher) -> String {
    watcher.notices.join("\n")
}

/// Asserts that an event is a leave, and returns what it shows of the old row.
fn left(data: &Value) -> &Value {
    assert_eq!(data["type"], "DELETE");
    assert_eq!(data["rowcast"], json!({"leave": true}));
    let marked = "Rowcast: the row left this view, it was not deleted";
    assert_eq!(data["errors"], json!([marked]));
    assert!(data.get("record").is_none());
    &data["old_record"]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_given_away_leaves_whoever_saw_it_and_asks_and_nobody_else_hears_of_it() {
    let mut relay = Relay::start(&format!("{CARDS}{FULL}"), "cards").await;
    let asks = watch(&relay, ANN, leaving("cards", "")).await;
    let deletes = Wanted {
        events: Events::Delete,
        select: Some(vec!["status".to_owned()]),
        ..leaving("cards", "")
    };
    let deletes = watch(&relay, ANN, deletes).await;
    let silent = watch(&relay, ANN, wish(1, "cards", "")).await;
    let ben = watch(&relay, BEN, leaving("cards", "")).await;
    let cat = watch(&relay, CAT, leaving("cards", "")).await;
    assert_eq!(asks.notices, [""; 0]);
    relay
        .run(&format!(
            "insert into cards values (1, '{ANN}', 'open', 'secret');
             update cards set owner = '{BEN}', id = 2;
             delete from cards"
        ))
        .await;
    let fence = relay.fence().await;
    let seen = asks.until(fence).await;
    assert_eq!(brief(&seen), ["INSERT 1", "DELETE 1"]);
    assert_eq!(left(seen[1].change()), &json!({"id": 1}), "the old key");
    let seen = deletes.until(fence).await;
    assert_eq!(brief(&seen), ["DELETE 1"]);
    assert_eq!(left(seen[0].change()), &json!({"id": 1}));
    let columns = json!([{"name": "id", "type": "int4"}, {"name": "status", "type": "text"}]);
    assert_eq!(seen[0].change()["columns"], columns);
    assert_eq!(brief(&silent.until(fence).await), ["INSERT 1"]);
    // An enter is an update, and of the row before it shows nothing, not even its key.
    let seen = ben.until(fence).await;
    assert_eq!(brief(&seen), ["UPDATE 2", "DELETE 2"]);
    assert_eq!(seen[0].change()["old_record"], json!({}));
    assert_eq!(seen[1].change()["errors"], json!(null), "a real delete");
    assert_eq!(brief(&cat.until(fence).await), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_a_filter_no_longer_asks_for_leaves_that_binding_alone() {
    let mut relay = Relay::start(&format!("{CARDS}{FULL}"), "cards").await;
    let open = watch(&relay, ANN, leaving("cards", "status=eq.open")).await;
    let asked = watch(&relay, ANN, leaving("cards", "status=match.^open")).await;
    let all = watch(&relay, ANN, leaving("cards", "")).await;
    let ben = watch(&relay, BEN, leaving("cards", "status=eq.open")).await;
    relay
        .run(&format!(
            "insert into cards values (1, '{ANN}', 'open', null), (2, '{ANN}', 'done', null);
             update cards set note = 'x';
             update cards set status = 'done';
             update cards set status = 'open' where id = 2"
        ))
        .await;
    let fence = relay.fence().await;
    for watcher in [open, asked] {
        let seen = watcher.until(fence).await;
        assert_eq!(
            brief(&seen),
            ["INSERT 1", "UPDATE 1", "DELETE 1", "UPDATE 2"]
        );
        assert_eq!(left(seen[2].change()), &json!({"id": 1}));
    }
    let seen = all.until(fence).await;
    assert!(seen.iter().all(|seen| seen.change()["type"] != "DELETE"));
    assert_eq!(seen.len(), 7);
    assert_eq!(brief(&ben.until(fence).await), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_without_an_old_row_proves_what_an_identity_index_covers() {
    let schema = format!(
        "{CARDS} create unique index i on cards (id, owner);
         alter table cards replica identity using index i"
    );
    let mut relay = Relay::start(&schema, "cards").await;
    let owner = watch(&relay, ANN, leaving("cards", "")).await;
    let by_owner = watch(&relay, ANN, leaving("cards", &format!("owner=eq.{ANN}"))).await;
    let by_status = watch(&relay, ANN, leaving("cards", "status=eq.open")).await;
    let ben = watch(&relay, BEN, leaving("cards", "status=eq.open")).await;
    assert_eq!(
        (said(&owner), said(&by_owner)),
        (String::new(), String::new())
    );
    let notice = said(&by_status);
    assert!(
        notice.contains("Rows of public.cards that leave your view are not told")
            && notice.contains("does not carry status"),
        "{notice}"
    );
    relay
        .run(&format!(
            "insert into cards values (1, '{ANN}', 'open', null);
             update cards set note = 'x';
             update cards set status = 'done';
             update cards set status = 'open';
             update cards set owner = '{BEN}'"
        ))
        .await;
    let fence = relay.fence().await;
    for watcher in [owner, by_owner] {
        let seen = watcher.until(fence).await;
        let all = ["INSERT 1", "UPDATE 1", "UPDATE 1", "UPDATE 1", "DELETE 1"];
        assert_eq!(brief(&seen), all);
        assert_eq!(left(seen[4].change()), &json!({"id": 1}));
    }
    // What left by its status could not be told, what leaves with its owner can be told no better.
    let seen = by_status.until(fence).await;
    assert_eq!(brief(&seen), ["INSERT 1", "UPDATE 1", "UPDATE 1"]);
    assert_eq!(brief(&ben.until(fence).await), ["UPDATE 1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_old_rows_do_not_carry_is_said_at_the_join_and_never_guessed() {
    let mut relay = Relay::start(CARDS, "cards").await;
    let ann = watch(&relay, ANN, leaving("cards", "")).await;
    let ben = watch(&relay, BEN, leaving("cards", "")).await;
    let notice = said(&ann);
    assert!(
        notice.contains("that leave your view are not told")
            && notice.contains("does not carry owner")
            && notice.contains("replica identity full"),
        "{notice}"
    );
    relay
        .run(&format!(
            "insert into cards values (1, '{ANN}', 'open', null);
             update cards set owner = '{BEN}';
             update cards set owner = '{CAT}', id = 2"
        ))
        .await;
    let fence = relay.fence().await;
    assert_eq!(brief(&ann.until(fence).await), ["INSERT 1"]);
    assert_eq!(brief(&ben.until(fence).await), ["UPDATE 1"]);
    let counted = "rowcast_changes_hidden_total{reason=\"leave_without_identity\"} 4";
    let metrics = relay.core.metrics.encode();
    assert!(
        metrics.contains(counted),
        "two updates, two clients: {metrics}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_who_takes_deletes_is_told_where_that_is_configured() {
    let mut relay = Relay::with(&format!("{CARDS}{FULL}"), "cards", |config| {
        config.leave = Leaves::All;
    })
    .await;
    let ann = watch(&relay, ANN, wish(1, "cards", "")).await;
    let updates = Wanted {
        events: Events::Update,
        ..wish(1, "cards", "")
    };
    let updates = watch(&relay, ANN, updates).await;
    relay
        .run(&format!(
            "insert into cards values (1, '{ANN}', 'open', null); update cards set owner = '{BEN}'"
        ))
        .await;
    let fence = relay.fence().await;
    let seen = ann.until(fence).await;
    assert_eq!(brief(&seen), ["INSERT 1", "DELETE 1"]);
    assert_eq!(left(seen[1].change()), &json!({"id": 1}));
    assert_eq!(brief(&updates.until(fence).await), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_is_asked_about_both_rows_and_a_doubt_is_no_leave() {
    // Of the member nothing is known natively, and some questions end in an error or never.
    let schema = "create table t (id int primary key, grp int, owner uuid);
         create table members (grp int, uid uuid);
         create function sees(asked int) returns bool language plpgsql stable security definer as $$
         begin
           if asked = 8 then perform pg_sleep(30); end if;
           return 10 / (asked - 9) <> 0 and exists (
             select from public.members m where m.grp = asked and m.uid = auth.uid());
         end $$;
         alter table t enable row level security;
         alter table t replica identity full;
         create policy p on t using (sees(grp));
         grant select on t to authenticated";
    let mut relay = Relay::with(schema, "t", |config| {
        config.ask_timeout = Duration::from_secs(2);
    })
    .await;
    relay
        .run(&format!(
            "insert into members values (1, '{ANN}'), (2, '{ANN}'), (2, '{BEN}'), (3, '{BEN}')"
        ))
        .await;
    let deletes = Wanted {
        events: Events::Delete,
        ..leaving("t", "")
    };
    let deletes = watch(&relay, ANN, deletes).await;
    let ann = watch(&relay, ANN, leaving("t", "")).await;
    let ben = watch(&relay, BEN, leaving("t", "grp=gt.1")).await;
    let cat = watch(&relay, CAT, leaving("t", "")).await;
    relay
        .run("insert into t values (1, 1); update t set grp = 2; update t set grp = 3")
        .await;
    // The policy raises an error on this one: no select shows it.
    relay
        .run("update t set grp = 9; update t set grp = 1")
        .await;
    let fence = relay.fence().await;
    let seen = ann.until(fence).await;
    assert_eq!(
        brief(&seen),
        ["INSERT 1", "UPDATE 1", "DELETE 1", "UPDATE 1"]
    );
    assert_eq!(left(seen[2].change()), &json!({"id": 1}));
    assert_eq!(brief(&deletes.until(fence).await), ["DELETE 1"]);
    let seen = ben.until(fence).await;
    assert_eq!(brief(&seen), ["UPDATE 1", "UPDATE 1", "DELETE 1"]);
    assert_eq!(brief(&cat.until(fence).await), [""; 0]);
    // It is not known in time whether the new row may be seen.
    relay.run("update t set grp = 8").await;
    let fence = relay.fence().await;
    for watcher in [&ann, &deletes] {
        let seen = brief(&watcher.until(fence).await);
        // It may come behind the fence, which was held until then.
        if seen.is_empty() {
            assert_eq!(watcher.resync().await, "undecided");
        } else {
            assert_eq!(seen, ["resync undecided"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_hears_of_the_rows_that_left_meanwhile() {
    let schema = format!(
        "{CARDS}{FULL}
         create table asked (id int primary key, grp int);
         create table members (grp int, uid uuid);
         alter table asked enable row level security;
         alter table asked replica identity full;
         create policy p on asked using (
           exists (select from members m where m.grp = asked.grp and m.uid = auth.uid()));
         grant select on asked, members to authenticated;
         insert into members values (1, '{ANN}')"
    );
    let mut relay = Relay::start(&schema, "cards, asked").await;
    let start = settled(&mut relay).await;
    let wanted = leaving("cards", "");
    let away = Client::join(&relay.core, &user(ANN), vec![since(wanted.clone(), start)]).await;
    away.go(&relay.core).await;
    relay
        .run(&format!(
            "insert into cards values (1, '{ANN}', 'open', null), (2, '{BEN}', 'open', null);
             update cards set owner = case owner when '{ANN}' then '{BEN}' else '{CAT}' end::uuid;
             insert into cards values (3, '{ANN}', 'open', null)"
        ))
        .await;
    relay.fence().await;
    let back = Client::join(&relay.core, &user(ANN), vec![since(wanted, start)]).await;
    assert_eq!(back.until(3).await, ["INSERT 1", "DELETE 1", "INSERT 3"]);
    // Who was a member then cannot be asked any more.
    relay
        .run(&format!(
            "insert into asked values (1, 1); update asked set grp = 2;
             insert into members values (2, '{ANN}')"
        ))
        .await;
    relay.fence().await;
    let asked = Wanted {
        events: Events::Delete,
        ..leaving("asked", "")
    };
    let asked = Client::join(&relay.core, &user(ANN), vec![since(asked, start)]).await;
    match asked.next().await {
        Heard::Resync(reason, _) => assert_eq!(reason, "access_changed"),
        other => panic!("a resync was expected, not {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_does_not_leave_who_may_see_it_since_the_transaction_that_takes_it_away() {
    let schema = format!(
        "create table t (id int primary key, grp int);
         create table members (grp int, uid uuid);
         create function sees(asked int) returns bool language plpgsql stable as $$
           declare found bool;
           begin
             execute 'select exists (select from members where grp = $1 and uid = auth.uid())'
               into found using asked;
             return found;
           end $$;
         alter table t enable row level security; alter table t replica identity full;
         create policy p on t using (sees(grp));
         grant select on t, members to authenticated;
         insert into members values (1, '{ANN}'); insert into t values (1, 1), (2, 1)"
    );
    let mut relay = Relay::start(&schema, "t, members").await;
    let mut ann = watch(&relay, ANN, leaving("t", "")).await;
    let mut ben = watch(&relay, BEN, leaving("t", "")).await;
    relay
        .run(&format!(
            "begin; insert into members values (1, '{BEN}'); update t set grp = 2 where id = 1; commit"
        ))
        .await;
    for watcher in [&mut ann, &mut ben] {
        assert_eq!(brief(&relay.seen(watcher).await), ["resync undecided"]);
        watcher.join(&relay.core).await.unwrap();
    }
    relay.run("update t set grp = 2 where id = 2").await;
    for watcher in [&ann, &ben] {
        assert_eq!(brief(&relay.seen(watcher).await), ["DELETE 2"]);
    }
}

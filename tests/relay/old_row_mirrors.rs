//! Old rows that the relay keeps itself, of tables whose replica identity stays as it is.

#![allow(clippy::print_stderr, reason = "the seed is printed")]

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rowcast::config::Config;
use rowcast::router::Resync;
use rowcast::subscription::{Events, Wanted};
use serde_json::{Value, json};
use tokio_postgres::Client as Sql;

use crate::harness::{ANN, BEN, Relay, Seen, Watcher, brief, connect};
use crate::resume::{Client, Heard, settled, since, user, wish};

const CARDS: &str =
    "create table cards (id int primary key, owner uuid not null, status text, note text);
     alter table cards alter note set storage external;
     alter table cards enable row level security;
     create policy own on cards using (owner = auth.uid());
     grant select on cards to authenticated;";

async fn relay(tables: &str) -> Relay {
    let relay = Relay::with(CARDS, "cards", |config| {
        config.old_rows = tables.parse().expect("tables");
    })
    .await;
    relay.keeps_old_rows(1).await;
    relay
}

fn leaving(filtered: &str) -> Wanted {
    Wanted {
        leave: true,
        ..wish(1, "cards", filtered)
    }
}

async fn watch(relay: &Relay, user: &str, wanted: Wanted) -> Watcher {
    relay
        .watch_wanted("authenticated", &json!({ "sub": user }), wanted)
        .await
        .expect("a subscription")
}

/// The key of a leave, which shows nothing else.
fn left(seen: &Seen) -> &Value {
    let data = seen.change();
    assert_eq!(data["rowcast"], json!({"leave": true}), "{data}");
    &data["old_record"]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletes_and_leaves_under_the_default_identity_reach_whoever_saw_the_row_by_its_key_alone()
{
    let mut relay = relay("public.cards").await;
    let ann = watch(&relay, ANN, leaving("")).await;
    let ben = watch(&relay, BEN, leaving("")).await;
    assert_eq!(ann.notices, [""; 0]);
    relay
        .run(&format!(
            "insert into cards values (1, '{ANN}', 'open', 'secret'), (2, '{ANN}', 'open', null);
             update cards set owner = '{BEN}' where id = 1;
             update cards set owner = '{BEN}', id = 3 where id = 2;
             delete from cards"
        ))
        .await;
    let fence = relay.fence().await;
    let seen = ann.until(fence).await;
    assert_eq!(
        brief(&seen),
        ["INSERT 1", "INSERT 2", "DELETE 1", "DELETE 2"]
    );
    assert_eq!(left(&seen[2]), &json!({"id": 1}));
    assert_eq!(left(&seen[3]), &json!({"id": 2}), "the old key");
    let seen = ben.until(fence).await;
    assert_eq!(
        brief(&seen),
        ["UPDATE 1", "UPDATE 3", "DELETE 1", "DELETE 3"]
    );
    assert_eq!(seen[0].change()["old_record"], json!({"id": 1}));
    assert_eq!(seen[1].change()["old_record"], json!({}), "not its old key");
    assert_eq!(seen[2].change()["old_record"], json!({"id": 1}));
    assert_eq!(seen[3].change()["old_record"], json!({"id": 3}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_is_judged_by_columns_that_are_named_and_by_others_as_without_the_setting() {
    let mut relay = relay("public.cards.status").await;
    let by_status = watch(&relay, ANN, leaving("status=eq.open")).await;
    let by_note = watch(&relay, ANN, leaving("note=eq.x")).await;
    assert_eq!(by_status.notices, [""; 0]);
    let said = by_note.notices.join("\n");
    for lack in ["is not delivered", "that leave your view are not told"] {
        assert!(said.contains(lack), "{said}");
    }
    assert!(said.contains("does not carry note, which"), "{said}");
    relay
        .run(&format!(
            "insert into cards values (1, '{ANN}', 'open', 'x'), (2, '{ANN}', 'open', 'x');
             update cards set status = 'done', note = 'y' where id = 1;
             delete from cards"
        ))
        .await;
    let fence = relay.fence().await;
    let seen = by_status.until(fence).await;
    assert_eq!(
        brief(&seen),
        ["INSERT 1", "INSERT 2", "DELETE 1", "DELETE 2"]
    );
    assert_eq!(left(&seen[2]), &json!({"id": 1}));
    assert_eq!(
        brief(&by_note.until(fence).await),
        ["INSERT 1", "INSERT 2"],
        "as if nothing were kept"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_value_that_an_update_did_not_touch_is_the_one_that_was_there() {
    let mut relay = relay("public.cards.*").await;
    let ann = watch(&relay, ANN, leaving("note=like.a%")).await;
    relay
        .run(&format!(
            "insert into cards select 1, '{ANN}', 'open', repeat('a', 9000);
             update cards set status = 'done';
             update cards set note = repeat('b', 9000);
             update cards set note = repeat('a', 9000), status = 'open';
             truncate cards;"
        ))
        .await;
    let fence = relay.fence().await;
    let seen = ann.until(fence).await;
    assert_eq!(
        brief(&seen),
        [
            "INSERT 1",
            "UPDATE 1",
            "DELETE 1",
            "UPDATE 1",
            "resync truncated"
        ]
    );
    // What was emptied may come again under the same key.
    let ann = watch(&relay, ANN, leaving("")).await;
    relay
        .run(&format!(
            "insert into cards values (1, '{ANN}', 'open', null); delete from cards"
        ))
        .await;
    let fence = relay.fence().await;
    assert_eq!(brief(&ann.until(fence).await), ["INSERT 1", "DELETE 1"]);
}

/// What a `select` of a user shows amid a transaction: the keys of the rows that pass the filter.
async fn sight(sql: &Sql, user: &str, filter: &str) -> BTreeSet<i32> {
    let turn = format!(
        "set local role authenticated;
         select set_config('request.jwt.claims', '{{\"sub\": \"{user}\"}}', true)"
    );
    sql.batch_execute(&turn).await.expect("a user");
    let query = format!("select id from cards where coalesce({filter}, false)");
    let rows = sql.query(&query, &[]).await.expect("a sight");
    sql.batch_execute("reset role").await.expect("oneself");
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_row_before_each_change_of_a_transaction_is_what_that_change_found() {
    let seed = std::env::var("ROWCAST_SEED").map_or_else(
        |_| rand::rng().random(),
        |seed| seed.parse().expect("a seed"),
    );
    eprintln!("ROWCAST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut relay = relay("public.cards.status").await;
    let filters = [("", "true"), ("status=eq.open", "status = 'open'")];
    let mut watchers = Vec::new();
    for user in [ANN, BEN] {
        for (filter, sql) in filters {
            let watcher = watch(&relay, user, leaving(filter)).await;
            watchers.push((user, sql, watcher, Vec::<String>::new()));
        }
    }
    let writer = connect(&relay.url).await;
    let mut ids: Vec<i32> = Vec::new();
    let (mut leaves, mut deletes) = (0, 0);
    for _ in 0..20 {
        writer.batch_execute("begin").await.expect("a transaction");
        for _ in 0..random.random_range(1..14) {
            let owner = *[ANN, BEN].choose(&mut random).unwrap();
            let status = *["'open'", "'done'", "null"].choose(&mut random).unwrap();
            let note = random.random_range(0..9) * 1000;
            let fresh = (0..9).filter(|id| !ids.contains(id)).collect::<Vec<i32>>();
            let (old, new, statement) = match (ids.choose(&mut random), fresh.choose(&mut random)) {
                (Some(&id), _) if random.random_bool(0.25) => {
                    (Some(id), None, format!("delete from cards where id = {id}"))
                }
                (Some(&id), Some(&other)) if random.random_bool(0.2) => (
                    Some(id),
                    Some(other),
                    format!("update cards set id = {other}, owner = '{owner}' where id = {id}"),
                ),
                (Some(&id), _) if random.random_bool(0.6) => {
                    let set = match random.random_range(0..4) {
                        0 => format!("owner = '{owner}'"),
                        1 => format!("status = {status}"),
                        2 => format!("status = {status}, owner = '{owner}'"),
                        _ => format!("note = repeat('n', {note})"),
                    };
                    let statement = format!("update cards set {set} where id = {id}");
                    (Some(id), Some(id), statement)
                }
                (_, Some(&id)) => (
                    None,
                    Some(id),
                    format!(
                        "insert into cards values ({id}, '{owner}', {status}, repeat('n', {note}))"
                    ),
                ),
                (_, None) => continue,
            };
            let mut before = Vec::new();
            for (user, filter, ..) in &watchers {
                before.push(sight(&writer, user, filter).await);
            }
            writer.batch_execute(&statement).await.expect("a change");
            ids.retain(|id| Some(*id) != old);
            ids.extend(new);
            for ((user, filter, _, expected), before) in watchers.iter_mut().zip(before) {
                let after = sight(&writer, user, filter).await;
                let was = old.filter(|id| before.contains(id));
                let is = new.filter(|id| after.contains(id));
                match (was, is) {
                    (_, Some(id)) if old.is_none() => expected.push(format!("INSERT {id}")),
                    (_, Some(id)) => expected.push(format!("UPDATE {id}")),
                    (Some(id), None) => {
                        expected.push(format!("DELETE {id}"));
                        leaves += u32::from(new.is_some());
                        deletes += u32::from(new.is_none());
                    }
                    (None, None) => {}
                }
            }
        }
        writer.batch_execute("commit").await.expect("a commit");
    }
    let fence = relay.fence().await;
    for (user, filter, watcher, expected) in watchers {
        assert_eq!(
            brief(&watcher.until(fence).await),
            expected,
            "{user} {filter}"
        );
    }
    assert!(leaves > 10 && deletes > 10, "{leaves} {deletes}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_is_blinded_has_those_read_again_who_relied_on_it_and_the_join_says_so() {
    let mut relay = relay("public.cards").await;
    let ann = watch(&relay, ANN, leaving("")).await;
    let inserts = Wanted {
        events: Events::Insert,
        ..wish(1, "cards", "")
    };
    let inserts = watch(&relay, ANN, inserts).await;
    relay
        .run(&format!(
            "insert into cards values (1, '{ANN}', 'open', null)"
        ))
        .await;
    let fence = relay.fence().await;
    assert_eq!(brief(&ann.until(fence).await), ["INSERT 1"]);
    relay
        .run("alter publication rowcast set (publish = 'insert, update, delete')")
        .await;
    assert_eq!(ann.resync().await, "undecided");
    let ann = watch(&relay, ANN, leaving("")).await;
    let said = ann.notices.join("\n");
    assert!(
        said.contains("DELETE of public.cards is not delivered"),
        "{said}"
    );
    relay.run("delete from cards").await;
    let fence = relay.fence().await;
    assert_eq!(brief(&ann.until(fence).await), [""; 0]);
    assert_eq!(brief(&inserts.until(fence).await), ["INSERT 1"]);
    relay
        .run("alter publication rowcast set (publish = 'insert, update, delete, truncate')")
        .await;
    relay.keeps_old_rows(1).await;
    let ann = watch(&relay, ANN, leaving("")).await;
    assert_eq!(ann.notices, [""; 0]);
    relay
        .run(&format!(
            "insert into cards values (2, '{ANN}', 'open', null); delete from cards"
        ))
        .await;
    let fence = relay.fence().await;
    assert_eq!(brief(&ann.until(fence).await), ["INSERT 2", "DELETE 2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_kept_is_as_without_the_setting_and_is_counted_with_its_reason() {
    let schema = format!(
        "{CARDS} insert into cards select i, '{ANN}', 'open', repeat('x', 100)
                   from generate_series(1, 100) i;
         create table keyless (id int, owner uuid); alter table keyless enable row level security;
         create policy own on keyless using (owner = auth.uid());
         grant select on keyless to authenticated"
    );
    let mut relay = Relay::with(&schema, "cards, keyless", |config| {
        config.old_rows = "public.nowhere,public.keyless,public.cards"
            .parse()
            .expect("tables");
        config.max_old_row_bytes = 10_000;
    })
    .await;
    let refused =
        |reason: &str| format!("rowcast_old_row_mirror_refusals_total{{reason=\"{reason}\"}} ");
    let began = std::time::Instant::now();
    for reason in ["identity", "too_large"] {
        while !relay.core.metrics.encode().contains(&refused(reason)) {
            assert!(began.elapsed() < crate::harness::DEADLINE, "{reason}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    let ann = watch(&relay, ANN, leaving("")).await;
    assert_eq!(ann.notices.len(), 2, "{:?}", ann.notices);
    relay.run("delete from cards").await;
    let fence = relay.fence().await;
    assert_eq!(brief(&ann.until(fence).await), [""; 0]);
}

async fn comes_back(relay: &Relay, cursor: rowcast::log::Cursor) -> Client {
    let wanted = vec![since(leaving(""), cursor)];
    Client::join(&relay.core, &user(ANN), wanted).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_hears_of_the_rows_that_went_meanwhile_also_while_the_relay_was_down() {
    let folder = tempfile::tempdir().unwrap();
    let mut config: Option<Config> = None;
    let mut relay = Relay::with(CARDS, "cards", |adjusted| {
        adjusted.data = Some(folder.path().join("log"));
        adjusted.old_rows = "public.cards".parse().expect("tables");
        config = Some(adjusted.clone());
    })
    .await;
    relay.keeps_old_rows(1).await;
    let config = config.unwrap();
    relay
        .run(&format!(
            "insert into cards select i, case when i % 2 = 0 then '{ANN}' else '{BEN}' end::uuid
               from generate_series(1, 10) i"
        ))
        .await;
    let start = settled(&mut relay).await;
    relay
        .run(&format!(
            "delete from cards where id <= 3; update cards set owner = '{BEN}' where id = 4;
             insert into cards values (20, '{ANN}')"
        ))
        .await;
    let ann = comes_back(&relay, start).await;
    assert_eq!(ann.until(20).await, ["DELETE 2", "DELETE 4", "INSERT 20"]);
    ann.go(&relay.core).await;
    let stopped = settled(&mut relay).await;
    let mut relay = relay
        .restart(
            &config,
            &format!(
                "update cards set owner = '{BEN}' where id = 6;
                 delete from cards; insert into cards values (21, '{ANN}')"
            ),
        )
        .await;
    let ann = comes_back(&relay, stopped).await;
    let heard = ann.until(21).await;
    assert_eq!(
        heard,
        [
            "DELETE 6",
            "DELETE 8",
            "DELETE 10",
            "DELETE 20",
            "INSERT 21"
        ]
    );
    ann.go(&relay.core).await;
    // What happened before the relay ended is not known any more: that is said, not passed over.
    settled(&mut relay).await;
    let ann = comes_back(&relay, start).await;
    let mut heard = Vec::new();
    let reason = loop {
        match ann.next().await {
            Heard::Resync(reason, _) => break reason,
            other => heard.push(other),
        }
    };
    assert_eq!(reason, Resync::Undecided.as_str(), "{heard:?}");
    assert_eq!(heard, []);
}

/// An event trigger tells of the transaction that makes the column anew, or the table is described anew:
/// what is kept is of the other column.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_goes_to_nobody_who_owned_the_row_by_a_column_that_was_made_anew() {
    for told in [true, false] {
        let keep = |config: &mut Config| {
            config.old_rows = "public.cards.*".parse().expect("tables");
            config.catalog_interval = std::time::Duration::from_secs(3600);
        };
        made_anew(if told {
            Relay::told(CARDS, "cards", keep).await
        } else {
            Relay::with(CARDS, "cards", keep).await
        })
        .await;
    }
}

async fn made_anew(mut relay: Relay) {
    relay.keeps_old_rows(1).await;
    let other = connect(&relay.url).await;
    for round in 0..5 {
        let first = round * 10;
        let mut ann = watch(&relay, ANN, leaving("")).await;
        loop {
            relay.keeps_old_rows(1).await;
            if relay.seen(&ann).await.is_empty() {
                break;
            }
            ann.join(&relay.core).await.expect("a subscription");
        }
        relay
            .run(&format!(
                "insert into cards (id, owner, status, note) select n, '{ANN}', 'open', null from generate_series({first}, {first} + 4) n"
            ))
            .await;
        assert_eq!(relay.seen(&ann).await.len(), 5);
        let anew = format!(
            "drop policy own on cards; alter table cards drop column owner;
             alter table cards add column owner uuid default '{BEN}';
             create policy own on cards using (owner = auth.uid());
             delete from cards where id = {first}"
        );
        other.batch_execute(&anew).await.unwrap();
        ann.resync().await;
        ann.join(&relay.core).await.expect("a subscription");
        let behind = format!("delete from cards where id in ({first} + 2, {first} + 3)");
        other.batch_execute(&behind).await.unwrap();
        loop {
            let seen = relay.seen(&ann).await;
            let told: Vec<String> = brief(&seen);
            assert!(
                told.iter().all(|one| one.starts_with("resync")),
                "round {round}: {told:?}"
            );
            if told.is_empty() {
                break;
            }
            ann.join(&relay.core).await.expect("a subscription");
        }
        let back = format!(
            "alter table cards alter column owner drop default; delete from cards where id >= {first}"
        );
        relay.run(&back).await;
    }
}

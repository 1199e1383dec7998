//! Cursors say whom they were given to: whoever comes with another's is told that what lies before
//! it is not its own, and whoever comes with a new token for the same is not.

use std::sync::Arc;

use rowcast::auth::Principal;
use rowcast::log::{Cursor, Holder};
use rowcast::router::{ChannelId, Event, Join, Outbox, SessionId};
use rowcast::subscription::Wanted;
use serde_json::{Value, json};

use crate::harness::{ANN, BEN, Relay};
use crate::resume::{Client, Heard, person, settled, since, wish};

const TABLES: &str = "
    create table own (id int primary key, owner uuid);
    create table team (id int primary key, owner uuid, org int, team int);
    create table open (id int primary key);
    create table asked (id int primary key, owner uuid);
    alter table own enable row level security;
    alter table team enable row level security;
    alter table asked enable row level security;
    create policy mine on own using (owner = auth.uid());
    create policy ours on team using
      (org = (auth.jwt() ->> 'org')::int and team = (auth.jwt() ->> 'team')::int);
    create function may(of uuid) returns boolean language plpgsql stable as
      $$ begin for i in 1..1 loop perform 1; end loop; return of = auth.uid(); end $$;
    create policy mine on asked using (may(owner));
    grant select on own, team, open, asked to anon, authenticated;";

const PUBLISHED: &str = "own, team, open, asked";

fn token(sub: &str, more: &Value) -> Arc<Principal> {
    let mut claims = json!({ "sub": sub, "role": "authenticated", "exp": 5, "session_id": "one" });
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    person("authenticated", &claims)
}

/// Whom a channel's cursors are given to, once it has joined with these bindings.
pub(crate) async fn holder(relay: &Relay, who: &Arc<Principal>, tables: &[&str]) -> Holder {
    static LAST: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(5_000_000);
    let session = LAST.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let outbox = Outbox::new(SessionId(session), 1_000, 1 << 20);
    let join = Join {
        outbox: Arc::clone(&outbox),
        channel: ChannelId(1),
        principal: Arc::clone(who),
        wanted: (1..)
            .zip(tables)
            .map(|(id, table)| wish(id, table, ""))
            .collect(),
        keeps_cursor: true,
    };
    relay.core.router.join(join).await.unwrap();
    let mut events = Vec::new();
    while outbox.take(&mut events, 1).unwrap() == 0 {
        outbox.readable().await;
    }
    let Some(Event::Joined { holder, .. }) = events.pop() else {
        panic!("the answer was expected");
    };
    holder.expect("somebody")
}

fn held(mut wanted: Wanted, cursor: Cursor, holder: Holder) -> Wanted {
    wanted.start.holder = Some(holder);
    since(wanted, cursor)
}

/// Comes back with a cursor of `of` on `before`; what is heard first behind the join.
pub(crate) async fn back(
    relay: &Relay,
    who: &Arc<Principal>,
    tables: &[&str],
    (cursor, of): (Cursor, Holder),
) -> Heard {
    let wanted = (1..).zip(tables);
    let wanted = wanted.map(|(id, table)| held(wish(id, table, ""), cursor, of));
    let client = Client::join(&relay.core, who, wanted.collect()).await;
    let heard = client.next().await;
    client.go(&relay.core).await;
    heard
}

pub(crate) fn is_of_another(heard: &Heard) -> bool {
    matches!(heard, Heard::Resync("access_changed", Some(_)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_with_anothers_cursor_is_told_to_read_again_for_every_binding() {
    let mut relay = Relay::start(TABLES, PUBLISHED).await;
    let (ann, ben) = (token(ANN, &json!({})), token(BEN, &json!({})));
    let start = settled(&mut relay).await;
    let of_ann = holder(&relay, &ann, &["own"]).await;
    relay
        .run(&format!(
            "insert into own values (1, '{ANN}'), (2, '{BEN}')"
        ))
        .await;
    settled(&mut relay).await;
    let cursor = (start, of_ann);
    let heard = back(&relay, &ben, &["own"], cursor).await;
    assert!(is_of_another(&heard), "{heard:?}");
    // The anonymous key is somebody else, too.
    let anon = person("anon", &json!({ "role": "anon" }));
    assert!(is_of_another(&back(&relay, &anon, &["own"], cursor).await));
    let heard = back(&relay, &ann, &["own"], cursor).await;
    assert!(matches!(&heard, Heard::Change(_, data) if data["record"]["id"] == 1));
    // One binding's foreign cursor is enough: the channel reads again as a whole.
    let own = holder(&relay, &ben, &["own"]).await;
    let wanted = vec![
        held(wish(1, "open", ""), start, own),
        held(wish(2, "own", ""), start, of_ann),
    ];
    let client = Client::join(&relay.core, &ben, wanted).await;
    let (reason, current) = client.resync().await;
    assert_eq!(reason, "access_changed");
    // What it is told then is its own.
    relay
        .run(&format!(
            "insert into own values (3, '{ANN}'), (4, '{BEN}')"
        ))
        .await;
    settled(&mut relay).await;
    let heard = back(&relay, &ben, &["own"], (current, own)).await;
    assert!(matches!(&heard, Heard::Change(_, data) if data["record"]["id"] == 4));
    // A cursor of before they said so is taken as it is.
    let old = Client::join(&relay.core, &ben, vec![since(wish(1, "own", ""), start)]).await;
    assert!(matches!(old.next().await, Heard::Change(_, data) if data["record"]["id"] == 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_policy_reads_makes_no_difference_and_what_one_reads_does() {
    let mut relay = Relay::start(TABLES, PUBLISHED).await;
    let start = settled(&mut relay).await;
    let first = token(ANN, &json!({ "org": 1, "team": 2 }));
    let renewed = token(
        ANN,
        &json!({ "org": 1, "team": 2, "exp": 9, "iat": 8, "jti": "x" }),
    );
    let elsewhere = token(
        ANN,
        &json!({ "org": 1, "team": 2, "session_id": "two", "aal": "x" }),
    );
    let swapped = token(ANN, &json!({ "org": 2, "team": 1 }));
    for (tables, new, same) in [
        (&["own"][..], &renewed, true),
        (&["own"], &elsewhere, true),
        (&["own"], &swapped, true),
        (&["open"], &swapped, true),
        (&["team"], &elsewhere, true),
        (&["team"], &swapped, false),
        (&["own", "team"], &swapped, false),
        // A policy that is asked may read anything that stays.
        (&["asked"], &renewed, true),
        (&["asked"], &elsewhere, false),
    ] {
        let of = holder(&relay, &first, tables).await;
        let heard = back(&relay, new, tables, (start, of)).await;
        assert_eq!(
            is_of_another(&heard),
            !same,
            "{tables:?} {new:?}: {heard:?}"
        );
    }
    // The same user may go on with other tables, also with a token that was renewed.
    let of = holder(&relay, &first, &["own"]).await;
    for who in [&first, &renewed] {
        let heard = back(&relay, who, &["team", "asked", "own"], (start, of)).await;
        assert!(!is_of_another(&heard), "{heard:?}");
    }
    let heard = back(&relay, &swapped, &["team"], (start, of)).await;
    assert!(is_of_another(&heard), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_whose_policies_change_is_told_whose_its_cursors_are_now() {
    let mut relay = Relay::start(TABLES, PUBLISHED).await;
    let ann = token(ANN, &json!({ "org": 1 }));
    let client = Client::join(&relay.core, &ann, vec![wish(1, "own", "")]).await;
    let before = holder(&relay, &ann, &["own"]).await;
    relay
        .run("create policy org on own as restrictive using ((auth.jwt() ->> 'org') = '1')")
        .await;
    relay
        .run(&format!("insert into own values (1, '{ANN}')"))
        .await;
    let heard = client.next().await;
    assert!(
        matches!(heard, Heard::Resync("access_changed", _)),
        "{heard:?}"
    );
    let after = holder(&relay, &ann, &["own"]).await;
    assert_eq!(before.claims, after.claims);
    assert_ne!(before.read, after.read);
    let start = settled(&mut relay).await;
    let other = token(ANN, &json!({ "org": 1, "session_id": "two" }));
    let heard = back(&relay, &other, &["own"], (start, after)).await;
    assert_eq!(heard, Heard::CaughtUp);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_while_rules_changed_is_told_also_where_nothing_else_happened() {
    for told in [true, false] {
        let mut relay = if told {
            Relay::told(TABLES, PUBLISHED, |_| {}).await
        } else {
            Relay::start(TABLES, PUBLISHED).await
        };
        let ann = token(ANN, &json!({ "org": 1 }));
        relay
            .run(&format!("insert into own values (1, '{BEN}')"))
            .await;
        let of = holder(&relay, &ann, &["own", "open"]).await;
        let place = settled(&mut relay).await;
        relay.run("alter policy mine on own using (true)").await;
        relay.reads_the_catalog().await;
        // Nothing at all lies behind the cursor, or nothing but that.
        let of_open = holder(&relay, &ann, &["open"]).await;
        for tables in [&["own"][..], &["open", "own"]] {
            let heard = back(&relay, &ann, tables, (place, of)).await;
            assert!(is_of_another(&heard), "{told} {tables:?}: {heard:?}");
        }
        let heard = back(&relay, &ann, &["open"], (place, of_open)).await;
        assert_eq!(heard, Heard::CaughtUp, "{told}: of another table");
        // With rows behind it.
        relay
            .run(&format!("insert into own values (2, '{BEN}')"))
            .await;
        let later = settled(&mut relay).await;
        let heard = back(&relay, &ann, &["own"], (place, of)).await;
        assert!(is_of_another(&heard), "{told}: {heard:?}");
        // Who has been told goes on.
        let now = holder(&relay, &ann, &["own"]).await;
        let heard = back(&relay, &ann, &["own"], (later, now)).await;
        assert_eq!(heard, Heard::CaughtUp, "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_told_that_rules_changed_goes_on_with_the_cursor_that_comes_with_it() {
    let mut relay = Relay::told(TABLES, PUBLISHED, |_| {}).await;
    let ann = token(ANN, &json!({ "org": 1 }));
    let outbox = Outbox::new(SessionId(5_900_000), 1_000, 1 << 20);
    let join = Join {
        outbox: Arc::clone(&outbox),
        channel: ChannelId(1),
        principal: Arc::clone(&ann),
        wanted: vec![wish(1, "own", "")],
        keeps_cursor: true,
    };
    relay.core.router.join(join).await.unwrap();
    settled(&mut relay).await;
    relay.run("alter policy mine on own using (true)").await;
    let (mut events, mut whose, mut given) = (Vec::new(), None, None);
    while given.is_none() {
        while outbox.take(&mut events, 1).unwrap() == 0 {
            outbox.readable().await;
        }
        match events.pop() {
            Some(Event::Introduced { holder, .. }) => whose = Some(holder),
            Some(Event::Resync { cursor, .. }) => given = cursor,
            _ => {}
        }
    }
    let (given, whose) = (given.unwrap(), whose.unwrap());
    let heard = back(&relay, &ann, &["own"], (given, whose)).await;
    assert_eq!(heard, Heard::CaughtUp);
}

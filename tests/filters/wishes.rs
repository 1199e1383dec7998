//! What else a binding may wish: some columns, tables without a name, what PostgreSQL is slow at.

use std::sync::Arc;
use std::time::Duration;

use rowcast::auth::{Claims, Principal};
use rowcast::router::{ChannelId, Event, Join, Outbox, Refusal, SessionId};
use rowcast::subscription::{Events, Start, Wanted, filter};
use serde_json::{Value, json};

use crate::harness::{DEADLINE, Relay, Seen, brief};

fn wish(id: u32, table: &str, filtered: &str) -> Wanted {
    Wanted {
        id,
        events: Events::All,
        schema: Some("public".to_owned()),
        table: (table != "*").then(|| table.to_owned()),
        filter: filter::parse(filtered).expect("a filter"),
        select: None,
        leave: false,
        start: Start::default(),
    }
}

fn selecting(id: u32, table: &str, columns: &[&str]) -> Wanted {
    let select = columns.iter().map(|name| (*name).to_owned()).collect();
    Wanted {
        select: Some(select),
        leave: false,
        start: Start::default(),
        ..wish(id, table, "")
    }
}

/// A channel with bindings of any kind.
struct Channel(Arc<Outbox>);

impl Channel {
    async fn join(
        relay: &Relay,
        role: &str,
        wanted: Vec<Wanted>,
    ) -> (Self, Vec<Refusal>, Vec<String>) {
        let channel = Self(Outbox::new(SessionId(rand::random()), 100_000, 1 << 30));
        let join = Join {
            outbox: Arc::clone(&channel.0),
            channel: ChannelId(1),
            principal: Arc::new(Principal {
                role: role.into(),
                claims: Claims::verified("{}".to_owned()),
                expires_at: None,
            }),
            wanted,
            keeps_cursor: false,
        };
        relay.core.router.join(join).await.expect("a router");
        match channel.next().await {
            Event::Joined {
                refusals, notices, ..
            } => (channel, refusals, notices),
            other => panic!("joining: {other:?}"),
        }
    }

    async fn next(&self) -> Event {
        let next = async {
            let mut events = Vec::new();
            loop {
                if self.0.take(&mut events, 1).expect("room") > 0 {
                    return events.pop().expect("one event");
                }
                self.0.readable().await;
            }
        };
        tokio::time::timeout(DEADLINE, next)
            .await
            .expect("an event in time")
    }

    /// The next change: who is told, and what.
    async fn change(&self) -> (Vec<u32>, Value) {
        match self.next().await {
            Event::Change { change, .. } => {
                let data = serde_json::from_slice(&change.data).expect("JSON");
                (change.bindings.to_vec(), data)
            }
            other => panic!("a change was expected, not {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_selection_has_its_columns_and_the_key_and_a_message_of_its_own() {
    let relay = Relay::start(
        "create table t (id int primary key, a int, b text, secret text);
         alter table t replica identity full;
         grant select (id, a, b) on t to authenticated",
        "t",
    )
    .await;
    let (channel, refusals, _) = Channel::join(
        &relay,
        "authenticated",
        vec![
            wish(1, "t", "b=eq.x"),
            selecting(2, "t", &["b"]),
            selecting(3, "t", &["b", "id"]),
            selecting(4, "t", &["secret"]),
            selecting(5, "t", &["a", "nope"]),
        ],
    )
    .await;
    let refused: Vec<(u32, &str)> = refusals
        .iter()
        .map(|refusal| (refusal.binding, refusal.reason.as_str()))
        .collect();
    assert_eq!(
        refused,
        [
            (
                4,
                "ERROR P0001 (raise_exception) invalid column for select secret"
            ),
            (
                5,
                "ERROR P0001 (raise_exception) invalid column for select nope"
            ),
        ]
    );
    relay.run("insert into t values (1, 2, 'x', 's')").await;
    relay.run("update t set a = 3").await;
    for (kind, a, old) in [
        ("INSERT", 2, json!(null)),
        ("UPDATE", 3, json!({"id": 1, "b": "x"})),
    ] {
        let (ids, whole) = channel.change().await;
        assert_eq!(ids, [1]);
        assert_eq!(whole["record"], json!({"id": 1, "a": a, "b": "x"}));
        let (ids, selected) = channel.change().await;
        assert_eq!(ids, [2, 3], "they select the same");
        assert_eq!(selected["type"], kind);
        assert_eq!(selected["record"], json!({"id": 1, "b": "x"}));
        assert_eq!(selected["old_record"], old);
        assert_eq!(
            selected["columns"],
            json!([{"name": "id", "type": "int4"}, {"name": "b", "type": "text"}])
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_exact_and_no_name_means_what_the_role_may_read() {
    let relay = Relay::start(
        "create table user_roles (id int primary key, tenant int);
         create table userxroles (id int primary key);
         create table hidden (id int primary key, tenant int);
         grant select on user_roles, userxroles to authenticated",
        "user_roles, userxroles, hidden",
    )
    .await;
    let (exact, refusals, _) =
        Channel::join(&relay, "authenticated", vec![wish(1, "user_roles", "")]).await;
    assert_eq!(refusals, []);
    let (_, refusals, _) = Channel::join(&relay, "authenticated", vec![wish(1, "user%", "")]).await;
    assert_eq!(refusals.len(), 1, "there is no table of that name");
    let (all, refusals, notices) =
        Channel::join(&relay, "authenticated", vec![wish(1, "*", "")]).await;
    assert_eq!(
        (refusals, notices),
        (vec![], vec![]),
        "what it may not read is no news"
    );
    let (tenant, refusals, notices) =
        Channel::join(&relay, "authenticated", vec![wish(1, "*", "tenant=eq.7")]).await;
    assert_eq!(refusals, []);
    assert!(
        notices
            .iter()
            .any(|notice| notice.contains("public.userxroles")),
        "{notices:?}"
    );
    assert!(
        !notices.iter().any(|notice| notice.contains("hidden")),
        "{notices:?}"
    );
    let (_, refusals, _) =
        Channel::join(&relay, "authenticated", vec![wish(1, "*", "nope=eq.7")]).await;
    assert!(
        refusals[0]
            .reason
            .ends_with("invalid column for filter nope")
    );
    relay
        .run(
            "insert into hidden values (1, 7); insert into userxroles values (1);
              insert into user_roles values (2, 8), (3, 7)",
        )
        .await;
    assert_eq!(exact.change().await.1["record"]["id"], 2);
    assert_eq!(all.change().await.1["table"], "userxroles");
    assert_eq!(all.change().await.1["record"]["id"], 2);
    assert_eq!(
        tenant.change().await.1["record"],
        json!({"id": 3, "tenant": 7})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_named_no_table_hears_of_new_ones_and_is_told_so() {
    let relay = Relay::start(
        "create table t (id int primary key); grant select on t to authenticated",
        "t",
    )
    .await;
    let (named, ..) = Channel::join(&relay, "authenticated", vec![wish(1, "t", "")]).await;
    let (all, ..) = Channel::join(&relay, "authenticated", vec![wish(1, "*", "")]).await;
    relay
        .run(
            "create table late (id int primary key); grant select on late to authenticated;
              alter publication rowcast add table late",
        )
        .await;
    match all.next().await {
        Event::Joined { refusals, .. } => assert_eq!(refusals, []),
        other => panic!("the news was expected, not {other:?}"),
    }
    relay
        .run("insert into late values (1); insert into t values (2)")
        .await;
    assert_eq!(all.change().await.1["table"], "late");
    assert_eq!(
        named.change().await.1["record"]["id"],
        2,
        "and nothing before it"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_is_asked_only_of_rows_that_the_policies_show() {
    let mut relay = Relay::start(
        "create table t (id int primary key, owner text, body text);
         create table members (name text);
         alter table t enable row level security;
         create policy p on t using (owner = auth.jwt() ->> 'name');
         create policy q on t as restrictive using (exists (select from members where name = owner));
         grant select on t, members to authenticated;
         insert into members values ('ann')",
        "t",
    )
    .await;
    let watch = |name: &str, filter: &str| {
        let (claims, filter) = (json!({"name": name}), filter.to_owned());
        (claims, filter)
    };
    let mut watchers = Vec::new();
    for (claims, filter, expected) in [
        // Policy and filter are asked: both have to say yes.
        (watch("ann", "body=match.^x"), vec!["INSERT 1"]),
        (watch("ann", "body=not.match.^x"), vec!["INSERT 2"]),
        (watch("ben", "body=match.^x"), vec![]),
        (watch("ann", "body=match.^x,id=gt.1"), vec![]),
    ]
    .map(|((claims, filter), expected)| (claims, filter, expected))
    {
        let watcher = relay
            .watch_filtered("authenticated", &claims, "t", Events::All, &filter)
            .await
            .expect("a subscription");
        watchers.push((filter, watcher, expected));
    }
    relay
        .run("insert into t values (1, 'ann', 'xy'), (2, 'ann', 'yx'), (3, 'ben', 'xx')")
        .await;
    for (filter, watcher, expected) in &watchers {
        assert_eq!(brief(&relay.seen(watcher).await), *expected, "{filter}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_pattern_costs_its_own_client_a_resync_and_nobody_elses_rows() {
    let mut relay = Relay::with(
        "create table t (id int primary key, body text);
         create table u (id int primary key, body text);
         create table members (name text);
         alter table u enable row level security;
         create policy q on u using (exists (select from members));
         grant select on t, u, members to authenticated;
         insert into members values ('ann')",
        "t, u",
        |config| config.ask_timeout = Duration::from_secs(4),
    )
    .await;
    let claims = json!({});
    // Back references make PostgreSQL try every way to split the text.
    let slow = r#"body=match."^(x+)(x+)(x+)(x+)(x+)(x+)\\1y?\\2\\3\\4\\5z?$""#;
    let slow = relay
        .watch_filtered("authenticated", &claims, "t", Events::All, slow)
        .await
        .expect("a subscription");
    let quick = relay
        .watch_filtered("authenticated", &claims, "t", Events::All, "body=match.^x")
        .await
        .expect("a subscription");
    let judged = relay.watch("authenticated", &claims, "u").await;
    relay
        .run("insert into t values (1, repeat('x', 200)); insert into u values (1, 'x')")
        .await;
    assert_eq!(brief(&relay.seen(&judged).await), ["INSERT 1"]);
    assert_eq!(brief(&relay.seen(&quick).await), ["INSERT 1"]);
    // The resync comes behind what was held.
    let seen = slow.until(u64::MAX).await;
    assert_eq!(
        seen.iter().map(Seen::brief).collect::<Vec<_>>(),
        ["resync undecided"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_on_a_column_that_is_taken_away_never_matches_again() {
    let mut relay = Relay::start(
        "create table t (id int primary key, a text);
         alter table t replica identity full;
         grant select on t to authenticated",
        "t",
    )
    .await;
    let claims = json!({});
    let mut watchers = Vec::new();
    for filter in ["a=match.x", "a=is.null", "a=not.eq.y"] {
        watchers.push(
            relay
                .watch_filtered("authenticated", &claims, "t", Events::All, filter)
                .await
                .expect("a subscription"),
        );
    }
    relay
        .run("revoke select on t from authenticated; grant select (id) on t to authenticated")
        .await;
    relay
        .run("insert into t values (1, 'x'), (2, null), (3, 'z')")
        .await;
    for watcher in &mut watchers {
        assert_eq!(brief(&relay.seen(watcher).await), ["resync schema_changed"]);
        let refused = watcher.join(&relay.core).await;
        let reason = refused.expect_err("it may not be read");
        assert!(reason.ends_with("invalid column for filter a"), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_old_row_does_not_carry_matches_nothing() {
    let mut relay = Relay::start(
        "create table t (id int primary key, a text); grant select on t to authenticated",
        "t",
    )
    .await;
    let claims = json!({});
    let mut watchers = Vec::new();
    for filter in [
        "a=is.null",
        "a=isdistinct.x",
        "a=not.match.x",
        "a=not.in.()",
    ] {
        let watcher = relay
            .watch_filtered("authenticated", &claims, "t", Events::Delete, filter)
            .await
            .expect("a subscription");
        assert!(
            watcher.notices[0].contains("does not carry a"),
            "{:?}",
            watcher.notices
        );
        watchers.push((filter, watcher));
    }
    relay.run("insert into t values (1, null), (2, 'y')").await;
    relay.run("delete from t").await;
    for (filter, watcher) in &watchers {
        assert_eq!(relay.seen(watcher).await, [], "{filter}");
    }
}

//! The catalog changes under a watching subscriber.

use std::time::Duration;

use serde_json::{Value, json};

use rowcast::subscription::Events;

use crate::harness::{ANN, BEN, DEADLINE, Relay, Seen, Watcher, brief, connect};

const NOTES: &str = "
    create table notes (id int primary key, user_id uuid, body text);
    alter table notes enable row level security;
    create policy own on notes for select to authenticated using (user_id = auth.uid());
    grant select on notes to authenticated;";

async fn started() -> (Relay, Watcher, Watcher) {
    let mut relay = Relay::start(NOTES, "notes").await;
    let ann = relay.watch_as(ANN, "notes").await;
    let ben = relay.watch_as(BEN, "notes").await;
    relay
        .run(&format!("insert into notes values (1, '{ANN}', 'a')"))
        .await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 1"]);
    assert!(relay.seen(&ben).await.is_empty());
    (relay, ann, ben)
}

/// Has a watcher told to read again, since it is shown other rows now, and comes back with it.
async fn told_to_read(relay: &mut Relay, watcher: &mut Watcher) {
    let seen = relay.seen(watcher).await;
    assert_eq!(brief(&seen), ["resync access_changed"]);
    watcher.join(&relay.core).await.unwrap();
}

fn insert(id: i32, user: &str) -> String {
    format!("insert into notes values ({id}, '{user}', 'x')")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alter_policy_holds_from_its_commit_on() {
    let (mut relay, mut ann, mut ben) = started().await;
    relay
        .run("alter policy own on notes using (body = 'x')")
        .await;
    relay.run(&insert(2, ANN)).await;
    told_to_read(&mut relay, &mut ann).await;
    told_to_read(&mut relay, &mut ben).await;
    relay.run(&insert(3, ANN)).await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 3"]);
    assert_eq!(brief(&relay.seen(&ben).await), ["INSERT 3"], "widened");
    relay
        .run("alter policy own on notes using (user_id = auth.uid() and id > 100)")
        .await;
    relay.run(&insert(4, ANN)).await;
    told_to_read(&mut relay, &mut ann).await;
    told_to_read(&mut relay, &mut ben).await;
    relay.run(&insert(5, ANN)).await;
    relay.run(&insert(101, BEN)).await;
    assert!(relay.seen(&ann).await.is_empty(), "narrowed");
    assert_eq!(brief(&relay.seen(&ben).await), ["INSERT 101"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alter_policy_in_the_same_transaction_as_the_row_holds_for_it() {
    let (mut relay, mut ann, mut ben) = started().await;
    relay
        .run(&format!(
            "begin; alter policy own on notes using (false); {}; commit",
            insert(2, ANN)
        ))
        .await;
    told_to_read(&mut relay, &mut ann).await;
    told_to_read(&mut relay, &mut ben).await;
    relay.run(&insert(3, ANN)).await;
    assert!(relay.seen(&ann).await.is_empty());
    // The row is in what they read.
    relay
        .run(&format!(
            "begin; alter policy own on notes using (true); {}; commit",
            insert(4, ANN)
        ))
        .await;
    told_to_read(&mut relay, &mut ann).await;
    told_to_read(&mut relay, &mut ben).await;
    relay.run(&insert(5, ANN)).await;
    assert_eq!(brief(&relay.seen(&ben).await), ["INSERT 5"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_between_two_changes_of_a_policy_is_not_judged_by_the_later_one() {
    let (mut relay, _ann, mut ben) = started().await;
    for id in 2..12 {
        relay
            .run(&format!(
                "begin; alter policy own on notes using (false); commit;
                 begin; {}; commit;
                 begin; alter policy own on notes using (true); commit",
                insert(id, ANN)
            ))
            .await;
        let seen = brief(&relay.seen(&ben).await);
        assert!(!seen.contains(&format!("INSERT {id}")), "{seen:?}");
        if !seen.is_empty() {
            ben.join(&relay.core).await.unwrap();
        }
    }
    relay.run(&insert(100, ANN)).await;
    assert_eq!(brief(&relay.seen(&ben).await), ["INSERT 100"]);
}

/// Numbers of transactions do not tell in which order they commit: the later change has the smaller one. The
/// relay is behind meanwhile, and sees neither without the other.
async fn a_row_is_kept_between(interval: Duration, first: &str, last: &str) {
    let schema = format!("{NOTES} create table heap (id int); create table era (id int)");
    let mut relay = Relay::with(&schema, "notes, heap", |config| {
        config.catalog_interval = interval;
    })
    .await;
    relay.run(&format!("{first}; {last}")).await;
    relay.run(&insert(1, ANN)).await;
    relay.reads_the_catalog().await;
    let mut ben = relay.watch_as(BEN, "notes").await;
    let other = connect(&relay.url).await;
    for id in 2..5 {
        relay.run(&insert(100 + id, BEN)).await;
        let shown = format!("INSERT {}", 100 + id);
        assert_eq!(brief(&relay.seen(&ben).await), [shown], "{last}");
        relay
            .run("insert into heap select generate_series(1, 100000)")
            .await;
        relay.run(first).await;
        other
            .batch_execute("begin; insert into era values (1)")
            .await
            .unwrap();
        relay.run(&insert(id, BEN)).await;
        other
            .batch_execute(&format!("{last}; commit"))
            .await
            .unwrap();
        let seen = brief(&relay.seen(&ben).await);
        assert!(!seen.contains(&format!("INSERT {id}")), "{last}: {seen:?}");
        assert_eq!(seen.len(), 1, "{last}: {seen:?}");
        ben.join(&relay.core).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_between_two_changes_is_not_judged_by_the_one_that_began_before_it() {
    for (first, last) in [
        (
            "alter policy own on notes using (false)",
            "alter policy own on notes using (true)",
        ),
        (
            "revoke select on notes from authenticated",
            "grant select on notes to authenticated",
        ),
    ] {
        for interval in [Duration::from_millis(100), Duration::from_secs(3600)] {
            a_row_is_kept_between(interval, first, last).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drop_policy_shows_nothing_any_more() {
    let (mut relay, mut ann, _ben) = started().await;
    relay.run("drop policy own on notes").await;
    relay.run(&insert(2, ANN)).await;
    told_to_read(&mut relay, &mut ann).await;
    relay.run(&insert(3, ANN)).await;
    assert!(relay.seen(&ann).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn create_policy_widens_and_a_restrictive_one_narrows() {
    let (mut relay, mut ann, mut ben) = started().await;
    relay
        .run("create policy everybody on notes for select using (true)")
        .await;
    relay.run(&insert(2, ANN)).await;
    told_to_read(&mut relay, &mut ann).await;
    told_to_read(&mut relay, &mut ben).await;
    relay.run(&insert(3, ANN)).await;
    assert_eq!(brief(&relay.seen(&ben).await), ["INSERT 3"]);
    relay
        .run("create policy no on notes as restrictive for select using (body <> 'x')")
        .await;
    relay.run(&insert(4, ANN)).await;
    let seen = relay.seen(&ann).await;
    assert_eq!(brief(&seen), ["INSERT 3", "resync access_changed"]);
    told_to_read(&mut relay, &mut ben).await;
    relay.run(&insert(5, ANN)).await;
    assert!(relay.seen(&ben).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoke_ends_the_subscription_with_a_reason() {
    let (mut relay, mut ann, _ben) = started().await;
    relay.run("revoke select on notes from authenticated").await;
    relay.run(&insert(2, ANN)).await;
    assert_eq!(brief(&relay.seen(&ann).await), ["resync schema_changed"]);
    let refused = ann.join(&relay.core).await.unwrap_err();
    assert!(
        refused.contains("permission denied for table notes"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoking_a_column_hides_it_from_the_next_row_on() {
    let (mut relay, mut ann, _ben) = started().await;
    relay
        .run("revoke select on notes from authenticated; grant select (id) on notes to authenticated")
        .await;
    relay.run(&insert(2, ANN)).await;
    told_to_read(&mut relay, &mut ann).await;
    relay.run(&insert(3, ANN)).await;
    let seen = relay.seen(&ann).await;
    assert_eq!(seen[0].change()["record"], json!({"id": 3}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disabling_row_level_security_shows_all_and_enabling_it_hides_again() {
    let (mut relay, _ann, mut ben) = started().await;
    relay
        .run("alter table notes disable row level security")
        .await;
    relay.run(&insert(2, ANN)).await;
    told_to_read(&mut relay, &mut ben).await;
    relay.run(&insert(3, ANN)).await;
    assert_eq!(brief(&relay.seen(&ben).await), ["INSERT 3"]);
    relay
        .run("alter table notes enable row level security")
        .await;
    relay.run(&insert(4, ANN)).await;
    told_to_read(&mut relay, &mut ben).await;
    relay.run(&insert(5, ANN)).await;
    assert!(relay.seen(&ben).await.is_empty());
}

/// Inserts until a row's visibility is as `wanted`, and fails if it never is.
async fn settles(relay: &mut Relay, watcher: &mut Watcher, first: i32, wanted: bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    for id in first.. {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the change of the catalog never held"
        );
        relay.run(&insert(id, ANN)).await;
        let seen = relay.seen(watcher).await;
        if seen.iter().any(|seen| matches!(seen, Seen::Resync(_))) {
            watcher.join(&relay.core).await.unwrap();
        } else if seen.is_empty() != wanted {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replacing_a_compiled_function_holds_within_the_catalog_interval() {
    let mut relay = Relay::start(
        "create function me() returns uuid language sql stable as 'select auth.uid()';
         create function mine(owner uuid) returns bool language sql stable
           as $$ select owner::text = nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub' $$;
         create table notes (id int primary key, user_id uuid, body text);
         alter table notes enable row level security;
         create policy own on notes for select using (mine(user_id));
         grant select on notes to authenticated",
        "notes",
    )
    .await;
    let mut ann = relay.watch_as(ANN, "notes").await;
    relay.run(&insert(1, ANN)).await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 1"]);
    assert_eq!(
        relay.core.metrics.questions.get(),
        0,
        "the function is compiled"
    );
    relay
        .run("create or replace function mine(owner uuid) returns bool language sql stable as 'select false'")
        .await;
    settles(&mut relay, &mut ann, 2, false).await;
    relay
        .run("create or replace function mine(owner uuid) returns bool language sql stable as 'select true'")
        .await;
    settles(&mut relay, &mut ann, 10_000, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replacing_a_function_that_is_asked_holds_at_once() {
    let mut relay = Relay::start(
        "create function mine(owner uuid) returns bool language plpgsql stable
           as 'begin for i in 1..1 loop perform 1; end loop; return owner = auth.uid(); end';
         create table notes (id int primary key, user_id uuid, body text);
         alter table notes enable row level security;
         create policy own on notes for select using (mine(user_id));
         grant select on notes to authenticated",
        "notes",
    )
    .await;
    let ann = relay.watch_as(ANN, "notes").await;
    relay.run(&insert(1, ANN)).await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 1"]);
    relay
        .run("create or replace function mine(owner uuid) returns bool language plpgsql stable as 'begin for i in 1..1 loop perform 1; end loop; return false; end'")
        .await;
    relay.run(&insert(2, ANN)).await;
    let seen = relay.seen(&ann).await;
    assert!(!brief(&seen).contains(&"INSERT 2".to_owned()), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_added_in_mid_stream_arrives_and_a_dropped_one_goes() {
    let (mut relay, ann, _ben) = started().await;
    relay
        .run("alter table notes add column extra int default 7")
        .await;
    relay.run(&insert(2, ANN)).await;
    assert_eq!(relay.seen(&ann).await[0].change()["record"]["extra"], 7);
    relay.run("alter table notes drop column body").await;
    relay
        .run(&format!("insert into notes values (3, '{ANN}', 8)"))
        .await;
    let seen = relay.seen(&ann).await;
    assert_eq!(
        seen[0].change()["record"],
        json!({"id": 3, "user_id": ANN, "extra": 8})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_a_column_does_not_hide_rows_that_are_asked_about() {
    let mut relay = Relay::start(
        "create table notes (id int primary key, user_id uuid, body text, extra int);
         alter table notes enable row level security;
         create policy own on notes for select using (length(body) = 1);
         grant select on notes to authenticated",
        "notes",
    )
    .await;
    let ann = relay.watch("authenticated", &json!({}), "notes").await;
    // The plan of a statement is kept from its sixth run on.
    for id in 1..=10 {
        relay.run(&insert(id, ANN)).await;
        assert_eq!(
            brief(&relay.seen(&ann).await),
            [format!("INSERT {id}")],
            "before"
        );
    }
    relay.run("alter table notes drop column extra").await;
    relay.run(&insert(11, ANN)).await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 11"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_joins_the_publication_reaches_those_who_asked_for_all() {
    let mut relay = Relay::start(NOTES, "notes").await;
    let all = relay.watch_as(ANN, "*").await;
    relay
        .run("create table later (id int primary key); grant select on later to authenticated")
        .await;
    relay.run("alter publication rowcast add table later").await;
    let mut id = 0;
    let core = &relay.core.readiness.get();
    assert_eq!(*core, rowcast::admin::SourceState::Streaming);
    loop {
        id += 1;
        assert!(id < 10_000, "the new table never arrived");
        relay.run(&format!("insert into later values ({id})")).await;
        let seen = relay.seen_of_all(&all).await;
        if seen.iter().any(|data| data["table"] == "later") {
            break;
        }
    }
}

impl Relay {
    /// As [`Relay::seen`], for a subscriber whose first binding takes the fence in as well.
    async fn seen_of_all(&mut self, watcher: &Watcher) -> Vec<Value> {
        use rowcast::router::Event;
        let fence = self.fence().await;
        let mut seen = Vec::new();
        loop {
            if let Event::Change { change, .. } = watcher.event().await {
                let data: Value = serde_json::from_slice(&change.data).unwrap();
                if data["table"] == "fence" && data["record"]["id"] == fence {
                    return seen;
                }
                seen.push(data);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn require_rls_refuses_a_table_without_it_also_once_it_is_switched_off() {
    let mut relay = Relay::with(NOTES, "notes", |config| {
        config.require = rowcast::config::Require::Rls;
    })
    .await;
    // The fence has no row-level security: it has to get some, with a policy that shows all.
    relay
        .run("alter table fence enable row level security; create policy p on fence using (true)")
        .await;
    let claims = json!({"sub": ANN});
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let mut ann = loop {
        let joined = relay
            .watch_filtered("authenticated", &claims, "notes", Events::All, "")
            .await;
        match joined {
            Ok(watcher) => break watcher,
            Err(refused) => assert!(tokio::time::Instant::now() < deadline, "{refused}"),
        }
    };
    relay
        .run("alter table notes disable row level security")
        .await;
    relay.run(&insert(2, BEN)).await;
    assert_eq!(brief(&relay.seen(&ann).await), ["resync schema_changed"]);
    let refused = ann.join(&relay.core).await.unwrap_err();
    assert!(refused.contains("has no row-level security"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cast_made_later_refuses_the_policy_that_it_would_be_asked_through() {
    let relay = Relay::start(
        "create type pair as (a int, b int);
         create table t (id int primary key, p pair);
         alter table t enable row level security;
         create policy p on t using ((p).a = 1);
         grant select on t to authenticated",
        "t",
    )
    .await;
    let watcher = relay.watch("authenticated", &json!({}), "t").await;
    relay
        .run(
            "create function pair_of(text) returns pair language sql immutable
               as 'select row(1, 1)::pair';
             create cast (text as pair) with function pair_of(text)",
        )
        .await;
    assert_eq!(watcher.resync().await, "schema_changed");
}

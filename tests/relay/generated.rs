//! Generated columns, which the stream does not carry before PostgreSQL 18.

use std::time::Duration;

use rowcast::subscription::Events;
use serde_json::{Value, json};

use crate::harness::{Relay, brief};

/// From PostgreSQL 18 on an old row is complete only with generated columns in the publication.
pub(crate) const PUBLISH_GENERATED: &str = "do $$ begin
     if current_setting('server_version_num')::int >= 180000 then
       execute 'alter publication rowcast set (publish_generated_columns = stored)';
     end if; end $$";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_columns_arrive_as_postgresql_stores_them_and_in_their_place() {
    let mut relay = Relay::start(
        "create type pair as (a int, b text);
         create function public.paired(int, text) returns pair language sql immutable
           begin atomic select row($1, $2)::pair; end;
         create table t (id int primary key, price numeric,
           rounded numeric(8,1) generated always as (price * 1.005) stored,
           body text, large bool generated always as (length(body) > 3) stored,
           short char(6) generated always as (left(body, 2)) stored,
           \"W, \"\"örds\" tsvector generated always as (to_tsvector('english', coalesce(body, ''))) stored,
           pair pair generated always as (paired(id, body)) stored, last int);
         alter table t replica identity full;
         grant select on t to anon; grant usage on schema public to anon",
        "t",
    )
    .await;
    relay.run(PUBLISH_GENERATED).await;
    let watcher = relay.watch("anon", &json!({}), "t").await;
    let filtered = relay
        .watch_filtered("anon", &json!({}), "t", Events::All, "large=eq.true")
        .await
        .unwrap();
    relay
        .run(
            "insert into t (id, price, body, last) values (1, 10.05, 'jumping foxes', 9), (2, null, null, 8);
             update t set body = 'it''s \"q\"', price = 7 where id = 1",
        )
        .await;
    let stored: Vec<Value> = relay
        .sql
        .query("select to_jsonb(t)::text from t order by id", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| serde_json::from_str(row.get(0)).unwrap())
        .collect();
    relay.run("delete from t where id = 1; delete from t").await;
    let fence = relay.fence().await;
    let seen = watcher.until(fence).await;
    assert_eq!(
        brief(&seen),
        ["INSERT 1", "INSERT 2", "UPDATE 1", "DELETE 1", "DELETE 2"]
    );
    let names: Vec<_> = seen[0].change()["columns"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| column["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "id",
            "price",
            "rounded",
            "body",
            "large",
            "short",
            "W, \"örds",
            "pair",
            "last"
        ]
    );
    assert_eq!(seen[0].change()["record"]["rounded"], json!(10.1));
    assert_eq!(seen[1].change()["record"], stored[1]);
    assert_eq!(seen[2].change()["record"], stored[0]);
    assert_eq!(seen[2].change()["old_record"], seen[0].change()["record"]);
    for seen in &seen {
        assert_eq!(seen.change()["errors"], json!(null));
    }
    assert_eq!(seen[3].change()["old_record"], stored[0]);
    assert_eq!(seen[4].change()["old_record"], stored[1]);
    // The filter holds on the computed value, of the old row for a DELETE.
    assert_eq!(
        brief(&filtered.until(fence).await),
        ["INSERT 1", "UPDATE 1", "DELETE 1"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_see_generated_columns_whether_compiled_or_asked() {
    let mut relay = Relay::start(
        "do $$ begin execute format(
           'create table t (id int primary key, n int, twice int generated always as (n * 2) %s)',
           case when current_setting('server_version_num')::int >= 180000 then 'virtual' else 'stored' end);
         end $$;
         create table members (twice int); grant select on members to public;
         create table u (like t including all);
         alter table t enable row level security; alter table u enable row level security;
         create policy p on t using (twice = 4);
         create policy p on u using (twice in (select m.twice from members m));
         insert into members values (4);
         grant select on t, u to anon",
        "t, u",
    )
    .await;
    let compiled = relay.watch("anon", &json!({}), "t").await;
    let asked = relay.watch("anon", &json!({}), "u").await;
    relay
        .run("insert into t values (1, 1), (2, 2); insert into u values (1, 1), (2, 2)")
        .await;
    let fence = relay.fence().await;
    for watcher in [compiled, asked] {
        let seen = watcher.until(fence).await;
        assert_eq!(brief(&seen), ["INSERT 2"]);
        assert_eq!(
            seen[0].change()["record"],
            json!({"id": 2, "n": 2, "twice": 4})
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_computed_from_an_untouched_large_value_is_absent_and_named_and_the_rest_is_there()
{
    let (mut relay, mut watcher) = Relay::watched(
        "create table t (id int primary key, n int, body text,
           size int generated always as (length(body)) stored,
           twice int generated always as (n * 2) stored);
         alter table t alter body set storage external",
    )
    .await;
    let mut filtered = relay
        .watch_filtered("anon", &json!({}), "t", Events::All, "size=eq.5000")
        .await
        .unwrap();
    relay
        .run("insert into t values (1, 1, repeat('b', 5000)); update t set n = 2")
        .await;
    let fence = relay.fence().await;
    let seen = watcher.until(fence).await;
    assert_eq!(seen[0].change()["record"]["size"], 5000);
    assert_eq!(
        seen[1].change()["record"],
        json!({"id": 1, "n": 2, "twice": 4})
    );
    assert_eq!(
        seen[1].change()["errors"],
        json!(["Error 206: Partial Content, not carried by the stream: body, size"])
    );
    // Whether the filter asks for it cannot be told: its client reads the table again.
    assert_eq!(
        brief(&filtered.until(fence).await),
        ["INSERT 1", "resync undecided"]
    );
    relay.run(PUBLISH_GENERATED).await;
    relay.run("alter table t replica identity full").await;
    for watcher in [&mut watcher, &mut filtered] {
        watcher.join(&relay.core).await.unwrap();
    }
    relay.run("update t set n = 3").await;
    let fence = relay.fence().await;
    for watcher in [watcher, filtered] {
        let seen = watcher.until(fence).await;
        assert_eq!(brief(&seen), ["UPDATE 1"]);
        assert_eq!(seen[0].change()["record"]["size"], 5000);
        assert_eq!(seen[0].change()["old_record"]["twice"], 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expression_runs_as_a_client_never_as_the_relay() {
    let mut relay = Relay::start(
        "create function whoami(int) returns text language sql immutable
           as $$ select current_user::text $$;
         create function guarded(int) returns int language sql immutable as $$ select $1 $$;
         revoke execute on function guarded from public;
         create table t (id int primary key, who text generated always as (whoami(id)) stored);
         create table g (id int primary key, n int generated always as (guarded(id)) stored);
         grant select on t, g to anon",
        "t, g",
    )
    .await;
    let watcher = relay.watch("anon", &json!({}), "t").await;
    let guarded = relay.watch("anon", &json!({}), "g").await;
    relay
        .run("insert into t values (1); insert into g values (1)")
        .await;
    let fence = relay.fence().await;
    let seen = watcher.until(fence).await;
    assert_eq!(seen[0].change()["record"], json!({"id": 1, "who": "anon"}));
    // Nobody whom the relay may become may execute it: it is named, not run as the relay.
    let seen = guarded.until(fence).await;
    assert_eq!(seen[0].change()["record"], json!({"id": 1}));
    assert_eq!(
        seen[0].change()["errors"],
        json!(["Error 206: Partial Content, not carried by the stream: n"])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_computation_that_does_not_end_leaves_the_key_out_and_order_as_it_was() {
    let mut relay = Relay::with(
        "create function slow(int) returns int language plpgsql immutable as $$ begin
           if current_user = 'anon' then perform pg_sleep(60); end if; return $1; end $$;
         create table t (id int primary key, n int generated always as (slow(id)) stored);
         create table plain (id int primary key);
         grant select on t, plain to anon",
        "t, plain",
        |config| config.ask_timeout = Duration::from_millis(300),
    )
    .await;
    let watcher = relay.watch("anon", &json!({}), "*").await;
    relay
        .run("insert into plain values (1); insert into t values (2), (3); insert into plain values (4)")
        .await;
    relay
        .run("insert into t values (5); insert into plain values (6)")
        .await;
    let seen = relay.seen(&watcher).await;
    assert_eq!(
        brief(&seen),
        [
            "INSERT 1", "INSERT 2", "INSERT 3", "INSERT 4", "INSERT 5", "INSERT 6"
        ]
    );
    for at in [1, 2, 4] {
        assert!(seen[at].change()["record"].get("n").is_none());
        assert_ne!(seen[at].change()["errors"], json!(null));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_row_that_raises_costs_no_other_its_value() {
    // Stored when the divisor was another: what raises now did not when it was written.
    let (mut relay, watcher) = Relay::watched("create table divisor (by int); insert into divisor values (1); grant select on divisor to public;
         create function divided(int) returns int language sql immutable
           as $$ select 100 / ($1 - (select by from public.divisor)) $$;
         create table t (id int primary key, n int generated always as (divided(id)) stored)").await;
    relay
        .run("insert into t values (2), (3), (5); update divisor set by = 3")
        .await;
    let seen = relay.seen(&watcher).await;
    assert_eq!(brief(&seen), ["INSERT 2", "INSERT 3", "INSERT 5"]);
    assert!(seen[1].change()["record"].get("n").is_none());
    assert_ne!(seen[1].change()["errors"], json!(null));
    assert_eq!(seen[2].change()["record"], json!({"id": 5, "n": 50}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generated_column_that_is_added_in_mid_stream_comes_from_there_on() {
    let mut relay = Relay::with(
        "create table t (id int primary key); grant select on t to anon",
        "t",
        |config| config.catalog_interval = Duration::from_secs(3600),
    )
    .await;
    let watcher = relay.watch("anon", &json!({}), "t").await;
    relay.run("insert into t values (1)").await;
    assert_eq!(brief(&relay.seen(&watcher).await), ["INSERT 1"]);
    relay
        .run("alter table t add column twice int generated always as (id * 2) stored")
        .await;
    relay
        .run("insert into t select generate_series(2, 1501)")
        .await;
    let seen = relay.seen(&watcher).await;
    assert_eq!(seen.len(), 1500);
    for (seen, id) in seen.iter().zip(2..) {
        assert_eq!(seen.change()["record"], json!({"id": id, "twice": id * 2}));
    }
    relay.run("alter table t alter twice drop expression").await;
    relay.run("insert into t values (2000, 7)").await;
    let seen = relay.seen(&watcher).await;
    assert_eq!(seen[0].change()["record"], json!({"id": 2000, "twice": 7}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_beside_a_generated_column_that_their_transaction_adds_are_exact_or_said_to_be_missed()
{
    let (mut relay, mut watcher) = Relay::watched("create table t (id int primary key)").await;
    relay.run("insert into t values (1)").await;
    assert_eq!(brief(&relay.seen(&watcher).await), ["INSERT 1"]);
    relay
        .run(
            "insert into t values (2);
             alter table t add column twice int generated always as (id * 2) stored;
             insert into t values (3)",
        )
        .await;
    let seen = relay.seen(&watcher).await;
    let (last, before) = seen.split_last().unwrap();
    assert_eq!(last.brief(), "resync undecided");
    if let [before] = before {
        assert_eq!(before.change()["record"], json!({"id": 2}));
    }
    watcher.join(&relay.core).await.unwrap();
    relay.run("insert into t values (4)").await;
    let seen = relay.seen(&watcher).await;
    assert_eq!(seen[0].change()["record"], json!({"id": 4, "twice": 8}));
}

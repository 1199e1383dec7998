//! Policies that PostgreSQL has to be asked about: each of these once showed too much or too little.

use rowcast::subscription::Events;
use serde_json::json;

use crate::harness::{ANN, BEN, Relay, brief};
use crate::majors::at_least;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_users_whose_claims_are_not_decided_natively_are_two_questions() {
    let mut relay = Relay::start(
        "create table t (id int primary key, email text);
         alter table t enable row level security;
         create policy p on t using (lower(email) = lower(auth.jwt() ->> 'email'));
         grant select on t to authenticated",
        "t",
    )
    .await;
    let a = relay
        .watch("authenticated", &json!({"email": "Ä@x.de"}), "t")
        .await;
    let o = relay
        .watch("authenticated", &json!({"email": "Ö@x.de"}), "t")
        .await;
    let plain = relay
        .watch("authenticated", &json!({"email": "A@x.de"}), "t")
        .await;
    relay
        .run("insert into t values (1, 'ä@x.de'), (2, 'ö@x.de'), (3, 'a@X.de')")
        .await;
    assert_eq!(brief(&relay.seen(&a).await), ["INSERT 1"]);
    assert_eq!(brief(&relay.seen(&o).await), ["INSERT 2"]);
    assert_eq!(brief(&relay.seen(&plain).await), ["INSERT 3"]);
}

/// Questions of several clients are put in one transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_policys_function_sets_for_one_client_is_not_there_for_the_next() {
    let mut relay = Relay::start(
        "create function me() returns text language plpgsql volatile as $$ begin
           if coalesce(current_setting('app.me', true), '') = '' then
             perform set_config('app.me', auth.jwt() ->> 'email', true); end if;
           return current_setting('app.me', true); end $$;
         create table t (id int primary key, email text);
         alter table t enable row level security;
         create policy p on t using (email = me());
         grant select on t to authenticated",
        "t",
    )
    .await;
    let mut clients = Vec::new();
    for name in ["a", "b", "c"] {
        let claims = json!({"email": name});
        clients.push((name, relay.watch("authenticated", &claims, "t").await));
    }
    for id in (1..=12).step_by(3) {
        let rows = format!("insert into t values ({id}, 'a'), ({id} + 1, 'b'), ({id} + 2, 'c')");
        relay.run(&rows).await;
    }
    for (at, (name, client)) in clients.iter().enumerate() {
        let own: Vec<String> = (1..=12)
            .skip(at)
            .step_by(3)
            .map(|id| format!("INSERT {id}"))
            .collect();
        assert_eq!(brief(&relay.seen(client).await), own, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_level_security_that_is_off_for_the_relays_login_does_not_hide_what_it_shows() {
    let mut relay = Relay::start(
        "create table m (org int, id int primary key);
         insert into m values (1, 1), (1, 2), (2, 3);
         create table t (id int primary key);
         alter table t enable row level security; alter table m enable row level security;
         create policy p on m using (true);
         create policy p on t using (id in (select org from m group by org having count(*) > 1));
         grant select on t, m to authenticated;
         do $$ begin execute format('alter database %I set row_security = off', current_database()); end $$",
        "t",
    )
    .await;
    let client = relay.watch("authenticated", &json!({}), "t").await;
    relay.run("insert into t values (1), (2)").await;
    assert_eq!(brief(&relay.seen(&client).await), ["INSERT 1"]);
}

/// The relay becomes that role as PostgREST does, and `set role` applies none of its settings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_set_for_a_clients_role_is_not_there_where_the_relay_becomes_it() {
    let members = "members (org int, name text, primary key (org, name))";
    let mut relay = Relay::start(
        &format!(
            "create schema alt; grant usage on schema alt to public;
             create table {members}; create table alt.{members};
             grant select on members, alt.members to authenticated;
             insert into members values (1, 'a'); insert into alt.members values (2, 'a');
             create function may(o int) returns boolean language sql stable as
               $$ select exists (select from members where org = o and name = auth.jwt() ->> 'name') $$;
             create table t (id int primary key); create table u (id int primary key);
             alter table t enable row level security; alter table u enable row level security;
             create policy p on t using (may(id));
             create policy p on u using (may(id) and id <> length(to_hex(id)) + 100);
             grant select on t, u to authenticated;
             do $$ begin execute format('alter role authenticated in database %I
               set search_path = alt, public', current_database()); end $$"
        ),
        "t, u",
    )
    .await;
    let claims = json!({"name": "a"});
    for table in ["t", "u"] {
        let client = relay.watch("authenticated", &claims, table).await;
        relay
            .run(&format!("insert into {table} values (1), (2)"))
            .await;
        assert_eq!(brief(&relay.seen(&client).await), ["INSERT 1"], "{table}");
    }
}

/// Behind an API's login such functions tell its clients from administrators; a relay has another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relays_own_login_makes_nobody_an_administrator() {
    let relay = Relay::start(
        "create function is_admin() returns boolean language plpgsql stable as $$ begin
           if session_user = 'authenticator' then
             return coalesce((auth.jwt() -> 'app_metadata' ->> 'admin')::boolean, false);
           else return true; end if; end $$;
         create function login() returns text language sql stable begin atomic select session_user::text; end;
         create table t (id int primary key); create table u (id int primary key);
         create table v (id int primary key); create table w (id int primary key);
         create view who as select session_user::text as name;
         do $$ declare name text; begin foreach name in array array['t', 'u', 'v', 'w'] loop
           execute format('alter table %I enable row level security', name); end loop; end $$;
         create policy p on t using (is_admin());
         create policy p on u using (id < 5 and session_user <> 'authenticator');
         create policy p on v using (login() <> 'authenticator');
         create policy p on w using (exists (select from who where name <> 'authenticator'));
         grant select on t, u, v, w, who to authenticated",
        "t, u, v, w",
    )
    .await;
    for table in ["t", "u", "v", "w"] {
        let claims = json!({});
        let asked = relay.watch_filtered("authenticated", &claims, table, Events::All, "");
        let refused = asked.await.err().unwrap_or_default();
        assert!(refused.contains("reads session_user"), "{table}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_the_publication_leaves_out_is_not_taken_for_null() {
    if !at_least(15, "column lists").await {
        return;
    }
    let relay = Relay::start(
        "create table t (id int primary key, title text, secret bool);
         alter table t enable row level security;
         create policy p on t using (secret is not true and title ~ '.+');
         create table u (id int primary key, secret bool);
         grant select on t, u to authenticated",
        "t (id, title), u (id)",
    )
    .await;
    let refused = |table, filter| {
        let claims = json!({});
        let relay = &relay;
        async move {
            let asked = relay.watch_filtered("authenticated", &claims, table, Events::All, filter);
            asked.await.err().unwrap()
        }
    };
    assert!(
        refused("t", "")
            .await
            .contains("which the publication leaves out")
    );
    assert!(
        refused("u", "secret=eq.true")
            .await
            .contains("invalid column for filter secret")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_columns_are_computed_for_the_table_and_for_its_root() {
    let mut relay = Relay::start(
        "create table root (id int, state text, archived bool generated always as (state = 'old') stored)
           partition by range (id);
         create table leaf partition of root for values from (0) to (1000);
         alter table root enable row level security;
         create policy p on root using (archived is not true and length(state) > 0);
         create table own (id int primary key, n int, twice int generated always as (n * 2) stored);
         alter table own enable row level security;
         create policy p on own using (twice > 5 and length(n::text) > 0);
         grant select on root, leaf, own to authenticated",
        "leaf, own",
    )
    .await;
    let leaf = relay.watch("authenticated", &json!({}), "leaf").await;
    let own = relay.watch("authenticated", &json!({}), "own").await;
    relay
        .run(
            "insert into root values (1, 'new'), (2, 'old'); insert into own values (1, 1), (2, 3)",
        )
        .await;
    assert_eq!(brief(&relay.seen(&leaf).await), ["INSERT 1"]);
    assert_eq!(brief(&relay.seen(&own).await), ["INSERT 2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_json_null_is_not_sql_null() {
    let mut relay = Relay::start(
        "create table t (id int primary key, hold jsonb);
         alter table t enable row level security;
         create policy p on t using (hold is null and length('x') = 1);
         grant select on t to authenticated",
        "t",
    )
    .await;
    let all = relay.watch("authenticated", &json!({}), "t").await;
    relay
        .run("insert into t values (1, 'null'), (2, null), (3, '{}')")
        .await;
    assert_eq!(brief(&relay.seen(&all).await), ["INSERT 2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_inside_a_function_is_never_stale_and_needs_its_own_right() {
    let mut relay = Relay::told(
        "create function my_id() returns uuid language sql stable
           begin atomic select auth.uid(); end;
         create function is_me(u uuid) returns bool language sql stable
           begin atomic select u = my_id(); end;
         create table t (id int primary key, user_id uuid);
         alter table t enable row level security;
         create policy p on t using (is_me(user_id));
         create table other (id int primary key, user_id uuid);
         alter table other enable row level security;
         create policy p on other using (user_id = my_id());
         grant select on t, other to authenticated, anon",
        "t, other",
        |_| {},
    )
    .await;
    let ann = relay
        .watch("authenticated", &json!({"sub": ANN}), "t")
        .await;
    let anon = relay.watch("anon", &json!({"sub": ANN}), "t").await;
    let other = relay
        .watch("authenticated", &json!({"sub": ANN}), "other")
        .await;
    relay
        .run(&format!("insert into t values (1, '{ANN}')"))
        .await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 1"]);
    assert_eq!(brief(&relay.seen(&anon).await), ["INSERT 1"]);
    relay.run("revoke execute on function my_id() from public; grant execute on function my_id() to authenticated").await;
    relay
        .run(&format!("insert into t values (2, '{ANN}')"))
        .await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 2"]);
    assert_eq!(
        brief(&relay.seen(&anon).await),
        ["resync schema_changed"],
        "permission denied for the inner function, whatever the row"
    );
    relay
        .run("create or replace function my_id() returns uuid language sql stable begin atomic select null::uuid; end")
        .await;
    relay
        .run(&format!("insert into t values (3, '{ANN}')"))
        .await;
    assert_eq!(brief(&relay.seen(&ann).await), ["resync access_changed"]);
    drop(other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_policy_reads_need_not_be_carried() {
    let mut relay = Relay::start(
        "create domain filled as text check (value is not null);
         create table t (id int primary key, n int, large filled, owner text);
         alter table t alter large set storage external;
         alter table t enable row level security;
         create policy p on t using (length(owner) = 3);
         grant select on t to authenticated",
        "t",
    )
    .await;
    let all = relay.watch("authenticated", &json!({}), "t").await;
    relay
        .run("insert into t values (1, 1, repeat('x', 10000), 'ann'); update t set n = 2")
        .await;
    assert_eq!(brief(&relay.seen(&all).await), ["INSERT 1", "UPDATE 1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_in_a_schema_that_the_role_may_not_use_still_decides() {
    let mut relay = Relay::start(
        "create schema hidden;
         create table hidden.members (org int, user_id uuid);
         create function hidden.is_member(o int) returns bool language plpgsql stable security definer
           as 'begin for i in 1..1 loop perform 1; end loop; return exists (select from hidden.members m where m.org = o and m.user_id = auth.uid()); end';
         create table t (id int primary key, org int);
         alter table t enable row level security;
         create policy p on t using (hidden.is_member(org));
         grant select on t to authenticated",
        "t",
    )
    .await;
    let ann = relay
        .watch("authenticated", &json!({"sub": ANN}), "t")
        .await;
    relay
        .run(&format!("insert into hidden.members values (7, '{ANN}')"))
        .await;
    relay.run("insert into t values (1, 7), (2, 8)").await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 1"]);
    // PostgreSQL plans the question anew now, under the client's role.
    relay
        .run("alter table t add column extra int; analyze t; analyze hidden.members")
        .await;
    relay.run("insert into t values (3, 7), (4, 8)").await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_reach_the_question_as_they_are() {
    let mut relay = Relay::start(
        "create type pair as (a int, b text);
         create table t (id int primary key, c char(5), n numeric(8,2), b bytea, p pair, l text[], at timestamptz, j json);
         alter table t enable row level security;
         create policy p on t using (
           length(c) = 2 and n::text = '1.50' and encode(b, 'hex') = 'de00ad' and (p).b = 'x,\"y' and
           l[2] is null and l[1] = 'a\"b' and extract(hour from at at time zone 'utc') = 10 and
           j::text = '{\"a\":1,  \"a\":2}');
         grant select on t to authenticated",
        "t",
    )
    .await;
    let all = relay.watch("authenticated", &json!({}), "t").await;
    relay
        .run(
            "insert into t values (1, 'ab', 1.5, '\\xde00ad', row(1, 'x,\"y'), array['a\"b', null],
               '2024-01-01 12:00:00+02', '{\"a\":1,  \"a\":2}')",
        )
        .await;
    assert_eq!(brief(&relay.seen(&all).await), ["INSERT 1"]);
}

/// That a row changed which one may not see is not to be learnt by a filter that cannot be answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_in_doubt_says_nothing_of_a_row_that_the_policies_hide() {
    let mut relay = Relay::start(
        "create function decide(owner text) returns bool language plpgsql stable as
           'begin perform pg_sleep(3.5); return owner = auth.jwt() ->> ''sub''; end';
         create table t (id int primary key, owner text, body text);
         alter table t enable row level security;
         create policy p on t using (decide(owner));
         create table u (id int primary key, n int, owner text, body text);
         alter table u alter body set storage external;
         alter table u enable row level security;
         create policy p on u using (length(owner) = 3 and owner = auth.jwt() ->> 'sub');
         grant select on t, u to authenticated",
        "t, u",
    )
    .await;
    // Back references make PostgreSQL try every way to split the text: no answer in time.
    let slow = r#"body=match."^(x+)(x+)(x+)(x+)(x+)(x+)\\1y?\\2\\3\\4\\5z?$""#;
    let unclear = "body=eq.x";
    for (table, filter, rows) in [
        (
            "t",
            slow,
            "insert into t values (1, 'ann', repeat('x', 200))",
        ),
        // An untouched value is not in the stream.
        (
            "u",
            unclear,
            "insert into u values (1, 1, 'ann', repeat('x', 10000)); update u set n = 2",
        ),
    ] {
        let ann = relay
            .watch_filtered(
                "authenticated",
                &json!({"sub": "ann"}),
                table,
                Events::All,
                filter,
            )
            .await
            .unwrap();
        let ben = relay
            .watch_filtered(
                "authenticated",
                &json!({"sub": "ben"}),
                table,
                Events::All,
                filter,
            )
            .await
            .unwrap();
        relay.run(rows).await;
        assert_eq!(relay.seen(&ben).await, [], "{table}: hidden is hidden");
        let resync = ["resync undecided"];
        assert_eq!(brief(&ann.until(u64::MAX).await), resync, "{table}");
    }
}

/// PostgreSQL looks at restrictive policies only where a permissive one lets something through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_nobody_may_execute_refuses_nobody_where_no_policy_permits() {
    let mut relay = Relay::start(
        "create function allowed() returns boolean language plpgsql stable as 'begin return true; end';
         revoke execute on function allowed() from public;
         create table t (id int primary key);
         alter table t enable row level security;
         create policy p on t as restrictive using (allowed());
         grant select on t to authenticated",
        "t",
    )
    .await;
    let ann = relay.watch_as(ANN, "t").await;
    relay.run("insert into t values (1)").await;
    assert!(relay.seen(&ann).await.is_empty());
    // As soon as one does, every statement fails.
    relay.run("create policy q on t using (true)").await;
    relay.reads_the_catalog().await;
    let claims = json!({});
    let asked = relay.watch_filtered("authenticated", &claims, "t", Events::All, "");
    let refused = asked.await.err().unwrap_or_default();
    assert!(
        refused.contains("permission denied for function"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_not_told_to_be_gone_to_who_may_see_it_since_the_transaction_that_deletes_it() {
    let schema = format!(
        "create table member (org int, person uuid, primary key (org, person));
         create table doc (id int primary key, org int);
         alter table doc replica identity full;
         alter table doc enable row level security;
         create function may(o int) returns bool language plpgsql stable as $$
           declare found bool;
           begin
             execute 'select exists (select from member where org = $1 and person = auth.uid())'
               into found using o;
             return found;
           end $$;
         create policy ours on doc for select to authenticated using (may(org));
         grant select on doc, member to authenticated;
         insert into member values (1, '{ANN}'); insert into doc select g, 1 from generate_series(1, 4) g"
    );
    let mut relay = Relay::start(&schema, "doc, member").await;
    let mut ann = relay.watch_as(ANN, "doc").await;
    let mut ben = relay.watch_as(BEN, "doc").await;
    for sql in [
        format!("insert into member values (1, '{BEN}'); delete from doc where id = 1"),
        format!("delete from member where person = '{BEN}'; delete from doc where id = 2"),
    ] {
        relay.run(&format!("begin; {sql}; commit")).await;
        // Who could see it is told to read again, and so is who could not.
        for watcher in [&mut ann, &mut ben] {
            let seen = brief(&relay.seen(watcher).await);
            assert_eq!(seen, ["resync undecided"], "{sql}");
            watcher.join(&relay.core).await.unwrap();
        }
    }
    relay
        .run(&format!("insert into member values (1, '{BEN}')"))
        .await;
    relay
        .run("begin; delete from doc where id = 3; delete from doc where id = 4; commit")
        .await;
    for watcher in [&ann, &ben] {
        let seen = brief(&relay.seen(watcher).await);
        assert_eq!(seen, ["DELETE 3", "DELETE 4"]);
    }
    // Where the old row does not carry what decides nothing is asked, as the join said.
    relay.run("insert into doc values (5, 1)").await;
    for watcher in [&ann, &ben] {
        assert_eq!(brief(&relay.seen(watcher).await), ["INSERT 5"]);
    }
    relay.run("alter table doc replica identity default").await;
    relay.run("insert into doc values (6, 1)").await;
    for watcher in [&mut ann, &mut ben] {
        // They were promised what old rows do not carry any more.
        let seen = brief(&relay.seen(watcher).await);
        assert_eq!(seen.last().unwrap(), "resync access_changed");
        watcher.join(&relay.core).await.unwrap();
    }
    relay
        .run("begin; insert into member values (2, gen_random_uuid()); delete from doc where id = 5; commit")
        .await;
    for watcher in [&ann, &ben] {
        let seen = brief(&relay.seen(watcher).await);
        assert_eq!(seen, [""; 0]);
    }
}

/// Sessions go on with what was set when they began: those that ask begin anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_set_for_the_database_or_the_login_decides_as_it_is_set_now() {
    for (whose, names) in [
        ("database %I", "current_database()"),
        ("role %I in database %I", "session_user, current_database()"),
    ] {
        let set = |value: &str| {
            format!(
                "do $$ begin
                   execute format('alter {whose} set app.open = %L', {names}, '{value}');
                 end $$"
            )
        };
        let mut relay = Relay::start(
            &format!(
                "{};
                 create table gated (id int primary key);
                 alter table gated enable row level security;
                 create policy open on gated using (current_setting('app.open', true) = 'on');
                 grant select on gated to authenticated",
                set("on")
            ),
            "gated",
        )
        .await;
        let mut ann = relay.watch_as(ANN, "gated").await;
        relay.run("insert into gated values (1)").await;
        assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 1"], "{whose}");
        for (id, value, sees) in [(2, "off", false), (3, "on", true)] {
            relay.run(&set(value)).await;
            relay.reads_the_catalog().await;
            assert_eq!(ann.resync().await, "access_changed", "{whose} {value}");
            ann.join(&relay.core).await.unwrap();
            relay.run(&format!("insert into gated values ({id})")).await;
            let seen = relay.seen(&ann).await;
            assert_eq!(seen.len(), usize::from(sees), "{whose} {value}: {seen:?}");
        }
    }
}

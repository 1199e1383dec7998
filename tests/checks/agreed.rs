//! Policies that are compiled as they should be are not refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rowcast::metrics::Metrics;
use rowcast::mutant::PolicyMutant;
use rowcast::pg::connect::Database;
use rowcast::policy::check::checker::checker;
use rowcast::policy::check::{Found, Limits, check};
use rowcast::policy::reader::CatalogReader;
use serde_json::json;
use tokio_postgres::Client;

use crate::harness::{ANN, BEN, Relay, brief, cluster, connect};
use crate::{checked, metric};

/// A policy for each way in which values come to one.
const MANY: &str = "
    create schema hidden;
    create type mood as enum ('sad', 'ok', 'fine');
    create domain short as text check (length(value) < 4);
    create domain always as int not null check (value > 0);
    create table members (org bigint, user_id uuid, role text, primary key (org, user_id));
    alter table members enable row level security;
    create policy own on members using (user_id = auth.uid());
    create function hidden.mine(of bigint) returns boolean language sql stable security definer
      set search_path = '' as $$ select exists (select from public.members m where m.org = of and m.user_id = auth.uid()) $$;
    create function loud(of bigint) returns boolean language plpgsql stable as $$
      begin for i in 1..2 loop if i = of then return true; end if; end loop; return false; end $$;
    create table t (id bigint primary key, owner uuid, org bigint, title text, code varchar(3), price numeric(6,2),
      day date, at timestamptz, mood mood, short short, always always, open boolean, data jsonb, tags text[],
      twice bigint generated always as (org * 2) stored, letter char(3), score float8);
    alter table t enable row level security;
    grant select on t, members to anon, authenticated;
    insert into members values (1, '00000000-0000-4000-8000-00000000000a', 'owner'), (2, '00000000-0000-4000-8000-00000000000b', 'guest');
    insert into t (id, owner, org, title, always, data)
      select n, case n % 3 when 0 then '00000000-0000-4000-8000-00000000000a'::uuid end, n % 4, 'row ' || n, 1, '{\"a\": \"x\"}'
      from generate_series(1, 100) n;
    create policy p01 on t using (owner = auth.uid());
    create policy p02 on t using (exists (select from members m where m.org = t.org and m.user_id = auth.uid()));
    create policy p03 on t using (hidden.mine(org));
    create policy p04 on t using (title = 'x' and loud(org));
    create policy p05 on t using (day > '2024-02-03' and at < '2024-02-03 10:00+00');
    create policy p06 on t using (mood = 'ok' or mood >= 'fine');
    create policy p07 on t using (short = 'ab' or always = 7);
    create policy p08 on t using (open is not true and price <= 9.99);
    create policy p09 on t using (data ->> 'a' = 'x');
    create policy p10 on t using ((auth.jwt() -> 'app_metadata' ->> 'org')::bigint = org);
    create policy p11 on t using (auth.jwt() ->> 'role' = 'authenticated' and code in ('abc', 'x'));
    create policy p12 on t using (org = twice);
    create policy p13 on t using (letter = 'a' or score > 1.5);
    create policy p14 on t using (coalesce(title, 'none') <> 'none' or (data ->> 'n')::int > 3);
    create policy p15 on t using (owner in (select user_id from members where role = 'owner'));
    create policy p16 on t as restrictive using (auth.uid() is null or org is distinct from 3);
    create policy p17 on t using (not (owner = auth.uid()) and lower(title) like 'row%');
    create policy p18 on t as restrictive using (case when open then price > 0 else true end);
    create policy p19 on t using (tags && array['a', 'b']);
    create policy p20 on t using (tags @> array['a', 'b'] or 'c' = any (tags));
    create policy p21 on t using (at > now() - interval '1 day');
    create policy p22 on t using (day + 7 >= current_date);
    create policy p23 on t using (at + interval '1 month' < now());
    create policy p24 on t using ((auth.jwt() -> 'orgs') ? org::text);
    create policy p25 on t using (org::text in (select jsonb_array_elements_text(auth.jwt() -> 'teams')));
    create policy p26 on t using (at >= current_date - interval '30 days');
    create policy p27 on t using (day > now() - interval '1 day');
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_policy_that_is_compiled_right_is_refused_and_each_is_held_against_postgresql() {
    let url = cluster().await.fresh_database().await.unwrap();
    let sql = connect(&url).await;
    let auth = include_str!("../../sql/auth.sql");
    for one in [
        auth,
        MANY,
        "create publication rowcast for table t, members",
    ] {
        sql.batch_execute(one).await.unwrap();
    }
    let catalog = catalog(&url).await;
    let table = catalog
        .tables
        .values()
        .find(|table| table.name == "t")
        .unwrap();
    for role in ["anon", "authenticated"] {
        let limits = Limits {
            whole: Duration::from_secs(60),
            statement: Duration::from_secs(20),
            ..Limits::default()
        };
        let found = check(&sql, &catalog, (table, role), limits).await.unwrap();
        let names: Vec<&str> = found.iter().map(|one| one.policy.as_str()).collect();
        assert_eq!(names.len(), 27, "{names:?}");
        for one in &found {
            match (&*one.policy, &one.found) {
                ("p12", Found::NotChecked(reason)) => {
                    assert!(reason.contains("computed"), "{reason}");
                }
                (_, Found::Agrees(tally)) => {
                    assert!(
                        tally.rows >= 20 && tally.verdicts >= 4 * tally.rows,
                        "{role}: {one:?}"
                    );
                }
                _ => panic!("{role}: {one:?}"),
            }
        }
        // Nothing of it stays.
        let open = "select count(*) from pg_proc where pronamespace = pg_my_temp_schema()";
        assert_eq!(number(&sql, open).await, 0);
        assert_eq!(number(&sql, "select count(*) from t").await, 100);
    }

    // A table that is too large to copy is said, and nothing else is lost.
    let limits = Limits {
        rows: 1,
        ..Limits::default()
    };
    let place = (&**table, "authenticated");
    let found = check(&sql, &catalog, place, limits).await.unwrap();
    for one in &found {
        let looks = ["p02", "p03", "p15"].contains(&&*one.policy);
        let too_large =
            matches!(&one.found, Found::NotChecked(reason) if reason.contains("more than 1 rows"));
        assert_eq!(looks, too_large, "{one:?}");
    }
}

async fn catalog(url: &str) -> Arc<rowcast::policy::catalog::Catalog> {
    let roles = ["anon", "authenticated"].map(str::to_owned);
    let followed = ("rowcast".to_owned(), "rowcast".to_owned());
    let mut reader = CatalogReader::new(Database::parse(url).unwrap(), followed, roles);
    reader.look().await.unwrap()
}

async fn number(sql: &Client, query: &str) -> i64 {
    sql.query_one(query, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_checks_each_policy_once_for_each_role_and_again_when_it_changes() {
    assert!(!PolicyMutant::EqualFlipped.active());
    let schema = "
        create table t (id bigint primary key, owner uuid);
        alter table t enable row level security, replica identity full;
        create policy own on t using (owner = auth.uid());
        grant select on t to anon, authenticated;";
    let mut relay = Relay::start(schema, "t").await;
    checked(&relay, 2).await;
    let watcher = relay.watch_as(ANN, "t").await;
    relay
        .run(&format!(
            "insert into t values (1, '{ANN}'), (2, '{BEN}'), (3, null)"
        ))
        .await;
    assert_eq!(brief(&relay.seen(&watcher).await), ["INSERT 1"]);
    assert_eq!(relay.core.metrics.questions.get(), 0, "it is compiled");
    relay
        .run("drop policy own on t; create policy other on t using (owner <> auth.uid())")
        .await;
    relay.reads_the_catalog().await;
    checked(&relay, 4).await;
    let outcome = |name: &str| {
        let name = format!("rowcast_policy_checks_total{{outcome=\"{name}\"}}");
        metric(&relay, &name)
    };
    assert_eq!(outcome("differs"), 0);
    assert_eq!(outcome("not_checked"), 0);
    assert_eq!(relay.core.metrics.policies_refused.get(), 0);
    let ben = relay.watch("anon", &json!({ "sub": BEN }), "t").await;
    relay
        .run(&format!("insert into t values (4, '{ANN}')"))
        .await;
    assert_eq!(brief(&relay.seen(&ben).await), ["INSERT 4"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_differs_by_a_catalog_whose_successor_comes_is_refused_meanwhile_and_no_alarm() {
    let url = cluster().await.fresh_database().await.unwrap();
    let sql = connect(&url).await;
    let auth = include_str!("../../sql/auth.sql");
    let mine = |operator: &str| {
        format!(
            "create or replace function mine(uuid) returns boolean language sql stable as
             $$ select $1 {operator} auth.uid() $$;"
        )
    };
    let table = "create table t (id bigint primary key, owner uuid);
        alter table t enable row level security;
        create policy own on t using (mine(owner));
        grant select on t to anon, authenticated;
        create publication rowcast for table t;";
    sql.batch_execute(&format!("{auth}{}{table}", mine("=")))
        .await
        .unwrap();
    let before = catalog(&url).await;
    sql.batch_execute(&mine("is distinct from")).await.unwrap();
    let after = catalog(&url).await;
    let metrics = Arc::new(Metrics::default());
    let database = Database::parse(&url).unwrap();
    let (checker, task) = checker(database, Arc::clone(&metrics));
    tokio::spawn(task);
    let until = async |done: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !done() {
            assert!(Instant::now() < deadline, "{}", metrics.encode());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    checker.check(&before).await;
    until(&|| !checker.known().refuted.is_empty()).await;
    checker.check(&after).await;
    until(&|| {
        metrics
            .encode()
            .contains("checks_total{outcome=\"agrees\"} 2")
    })
    .await;
    assert!(checker.known().refuted.is_empty());
    assert!(
        !metrics.encode().contains("outcome=\"differs\""),
        "{}",
        metrics.encode()
    );
}

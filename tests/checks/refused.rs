//! A policy that is answered otherwise than by PostgreSQL is not decided natively.

use std::time::Duration;

use rowcast::mutant::{FunctionMutant, PolicyMutant, SelectMutant};
use rowcast::pg::connect::Database;
use rowcast::policy::check::{Checked, Found, Limits, check};
use rowcast::policy::reader::CatalogReader;
use tokio::sync::Mutex;

use crate::harness::{ANN, BEN, Relay, brief, cluster, connect};
use crate::{checked, metric};

/// A fault is one of the whole process.
static ONE: Mutex<()> = Mutex::const_new(());

const SCHEMA: &str = "
    create table members (org bigint, user_id uuid, level int, primary key (org, user_id));
    grant select on members to authenticated;
    insert into members values (1, '00000000-0000-4000-8000-00000000000a', 1), (2, '00000000-0000-4000-8000-00000000000b', 1),
      (2, '00000000-0000-4000-8000-00000000000a', 0);
    create function is_member(of bigint) returns boolean language sql stable security definer strict as
      $$ select exists (select from public.members m where m.org = of and m.user_id = auth.uid() and m.level > 0) $$;
    create table t (id bigint primary key, org bigint, owner uuid);
    alter table t enable row level security, replica identity full;
    grant select on t to authenticated;
    create policy own on t using (owner = auth.uid());
    create policy known on t as restrictive using (org > 0);
    create table d (id bigint primary key, org bigint);
    alter table d enable row level security, replica identity full;
    grant select on d to authenticated;
    create policy member on d using (exists (select from members m where m.org = d.org and m.user_id = auth.uid() and m.level > 0));
    create table f (id bigint primary key, org bigint);
    alter table f enable row level security, replica identity full;
    grant select on f to authenticated;
    create policy member on f using (is_member(org));";

/// What Ann and Ben see of rows of theirs while a fault is on, and how many policies are refused.
async fn through(fault: impl FnOnce()) -> i64 {
    let _alone = ONE.lock().await;
    fault();
    let mut relay = Relay::with(SCHEMA, "t, d, f, members", |config| {
        config.policy_check = true;
    })
    .await;
    checked(&relay, 4).await;
    relay.reads_the_catalog().await;
    let refused = relay.core.metrics.policies_refused.get();
    let (asked, ann, ben) = (
        relay.core.metrics.questions.get(),
        [
            relay.watch_as(ANN, "t").await,
            relay.watch_as(ANN, "d").await,
            relay.watch_as(ANN, "f").await,
        ],
        [
            relay.watch_as(BEN, "t").await,
            relay.watch_as(BEN, "d").await,
            relay.watch_as(BEN, "f").await,
        ],
    );
    relay
        .run(&format!(
            "insert into t values (1, 1, '{ANN}'), (2, 2, '{BEN}'), (3, 0, '{ANN}'), (4, 1, null);
             insert into d values (1, 1), (2, 2), (3, null);
             insert into f values (1, 1), (2, 2), (3, null)"
        ))
        .await;
    for (who, watchers) in [("INSERT 1", &ann), ("INSERT 2", &ben)] {
        for watcher in watchers {
            assert_eq!(brief(&relay.seen(watcher).await), [who]);
        }
    }
    let differs = metric(&relay, "rowcast_policy_checks_total{outcome=\"differs\"}");
    assert_eq!(i64::try_from(differs).unwrap(), refused);
    let asks = relay.core.metrics.questions.get() > asked;
    assert_eq!(asks, refused > 0, "what is refused is asked");
    PolicyMutant::switch_off();
    SelectMutant::switch_off();
    FunctionMutant::switch_off();
    refused
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_fault_has_decided_wrong_is_refused_and_asked_and_nobody_sees_more() {
    for fault in [
        PolicyMutant::EqualFlipped,
        PolicyMutant::OrderFlipped,
        PolicyMutant::OrderStrictness,
        PolicyMutant::RestrictiveIsPermissive,
    ] {
        eprintln!("{fault:?}");
        let refused = through(|| fault.switch_on()).await;
        assert!(refused > 0, "{fault:?}");
    }
}

/// Policies over arrays, the time and lists of claims; each fault is one that only rows show that are
/// made up for it.
const VALUES: &str = "
    create table v (id bigint primary key, tags text[], at timestamptz, day date, org bigint);
    alter table v enable row level security;
    grant select on v to authenticated;
    create policy shares on v using (tags && array['a', 'b']);
    create policy has_all on v using (tags @> array['a', 'b']);
    create policy among on v using ('a' = any (tags));
    create policy fresh on v using (at > now() - interval '1 day');
    create policy ended on v using (at + interval '1 month' < now());
    create policy daily on v using (day >= current_date - 7);
    create policy listed on v using ((current_setting('request.jwt.claims', true)::jsonb -> 'orgs') ? org::text);
    create policy told on v using (org::text in (select jsonb_array_elements_text(current_setting('request.jwt.claims', true)::jsonb -> 'teams')));";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_with_arrays_times_and_lists_of_claims_show_in_an_empty_table() {
    let _alone = ONE.lock().await;
    let url = cluster().await.fresh_database().await.unwrap();
    let sql = connect(&url).await;
    for one in [
        include_str!("../../sql/auth.sql"),
        VALUES,
        "create publication rowcast for table v",
    ] {
        sql.batch_execute(one).await.unwrap();
    }
    let limits = Limits {
        whole: Duration::from_secs(60),
        statement: Duration::from_secs(20),
        ..Limits::default()
    };
    let followed = ("rowcast".to_owned(), "rowcast".to_owned());
    let roles = ["authenticated".to_owned()];
    let database = Database::parse(&url).unwrap();
    let mut reader = CatalogReader::new(database, followed, roles);
    for (fault, differing) in [
        (None, &[][..]),
        (Some(PolicyMutant::OverlapsIsContains), &["shares"]),
        (Some(PolicyMutant::ContainsIsOverlaps), &["has_all"]),
        (Some(PolicyMutant::AnyOfIsAll), &["among", "listed", "told"]),
        (
            Some(PolicyMutant::NowIsLongAgo),
            &["daily", "ended", "fresh"],
        ),
        (Some(PolicyMutant::ProbeForgetsElements), &["told"]),
    ] {
        if let Some(fault) = fault {
            fault.switch_on();
        }
        let catalog = reader.look().await.unwrap();
        let mut tables = catalog.tables.values();
        let table = tables.find(|table| table.name == "v").unwrap();
        let place = (&**table, "authenticated");
        let found = check(&sql, &catalog, place, limits).await;
        PolicyMutant::switch_off();
        let found = found.unwrap();
        assert_eq!(found.len(), 8, "{found:?}");
        let differs = |one: &&Checked| matches!(one.found, Found::Differs(_));
        let mut names: Vec<&str> = found
            .iter()
            .filter(differs)
            .map(|one| &*one.policy)
            .collect();
        names.sort_unstable();
        assert_eq!(names, differing, "{fault:?} {found:?}");
        for one in found
            .iter()
            .filter(|one| !differing.contains(&&*one.policy))
        {
            assert!(matches!(one.found, Found::Agrees(_)), "{fault:?} {one:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_it_is_where_tables_are_looked_into() {
    for fault in [
        SelectMutant::ExistsFlipped,
        SelectMutant::ConditionIsForgotten,
    ] {
        let refused = through(|| fault.switch_on()).await;
        assert!(refused > 0, "{fault:?}");
    }
    assert_eq!(through(|| {}).await, 0, "without a fault nothing is");
}

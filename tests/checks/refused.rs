//! A policy that is answered otherwise than by PostgreSQL is not decided natively.

use rowcast::mutant::{FunctionMutant, PolicyMutant, SelectMutant};
use tokio::sync::Mutex;

use crate::harness::{ANN, BEN, Relay, brief};
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

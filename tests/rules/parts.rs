//! Of a policy set that is compiled in part only what the rest leaves open is asked.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rowcast::subscription::Events;
use serde_json::json;

use crate::harness::{Relay, brief};

/// A function that is not compiled, and its answer.
const OPAQUE: &str = "
    create function opaque(flag text) returns boolean language plpgsql stable as $$
    begin
      begin
        if flag = 'raise' then raise exception 'no'; end if;
      exception when division_by_zero then null;
      end;
      return case flag when 'yes' then true when 'no' then false end;
    end $$;
    create table t (id bigint primary key, owner text, flag text, other text);
    alter table t enable row level security, replica identity full;
    grant select on t to authenticated;";

async fn asked_for(policies: &str, insert: &str, expected: &[&str]) -> u64 {
    let mut relay = Relay::start(&format!("{OPAQUE} {policies}"), "t").await;
    let claims = json!({"sub": "ann"});
    let ann = relay.watch("authenticated", &claims, "t").await;
    relay.run(insert).await;
    assert_eq!(brief(&relay.seen(&ann).await), expected, "{policies}");
    relay.core.metrics.questions.get()
}

const OWN: &str = "owner = auth.jwt() ->> 'sub'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_asked_where_a_compiled_policy_lets_the_row_through() {
    let policies = format!(
        "create policy own on t using ({OWN}); create policy other on t using (opaque(flag));"
    );
    let insert = "insert into t values (1, 'ann', 'no'), (2, 'ann', 'raise')";
    assert_eq!(
        asked_for(&policies, insert, &["INSERT 1", "INSERT 2"]).await,
        0
    );
    let insert = "insert into t values (1, 'ben', 'no'), (2, 'ben', 'yes'), (3, 'ann', 'no')";
    assert_eq!(
        asked_for(&policies, insert, &["INSERT 2", "INSERT 3"]).await,
        2
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_asked_where_a_compiled_restrictive_policy_hides_the_row() {
    let policies = format!(
        "create policy own on t as restrictive using ({OWN});
         create policy other on t using (opaque(flag));"
    );
    let insert = "insert into t values (1, 'ben', 'yes'), (2, null, 'yes')";
    assert_eq!(asked_for(&policies, insert, &[]).await, 0);
    let insert = "insert into t values (1, 'ann', 'yes'), (2, 'ann', 'no')";
    assert_eq!(asked_for(&policies, insert, &["INSERT 1"]).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restrictive_policy_that_is_null_hides_what_is_asked_and_asks_nothing() {
    let policies = "create policy null_hides on t as restrictive using (other = 'x');
         create policy asked on t as restrictive using (opaque(owner) or owner = 'ben');
         create policy other on t using (opaque(flag));";
    let insert = "insert into t values (1, 'ben', 'yes', null), (2, 'yes', 'yes', null)";
    assert_eq!(asked_for(policies, insert, &[]).await, 0);
    let insert = "insert into t values (1, 'ben', 'yes', 'x'), (2, 'yes', 'yes', 'x'), (3, null, 'yes', 'x')";
    assert_eq!(
        asked_for(policies, insert, &["INSERT 1", "INSERT 2"]).await,
        3
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_asked_where_the_compiled_operands_of_one_policy_decide() {
    let policy = format!("create policy p on t using (({OWN} or opaque(flag)) and other = 'x');");
    let insert = "insert into t values (1, 'ann', 'raise', 'x'), (2, 'ben', 'yes', 'y'), (3, 'ben', 'yes', null)";
    assert_eq!(asked_for(&policy, insert, &["INSERT 1"]).await, 0);
    let insert = "insert into t values (1, 'ben', 'yes', 'x'), (2, 'ben', 'no', 'x')";
    assert_eq!(asked_for(&policy, insert, &["INSERT 1"]).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_every_statement_fail_hides_also_what_another_policy_shows() {
    let policies = format!(
        "create policy own on t using ({OWN});
         create policy never on t using (opaque(flag) and 1 / (flag <> flag and 1 = 0)::int = 1 and '1'::text::int / 0 = 1);"
    );
    asked_for(&policies, "insert into t values (1, 'ann', 'no')", &[]).await;
}

/// A view's owner may lack rights on what it reads: then every statement fails, whatever else
/// decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_view_may_not_read_hides_also_what_another_policy_shows() {
    let policies = format!(
        "create table secret (id bigint);
         do $$ begin create role view_owner; exception when duplicate_object or unique_violation then null; end $$;
         grant create on schema public to view_owner;
         create view through as select id from secret; alter view through owner to view_owner;
         grant select on through to authenticated;
         create policy own on t using ({OWN});
         create policy other on t using (exists (select from through where through.id = t.id));"
    );
    let relay = Relay::start(&format!("{OPAQUE} {policies}"), "t").await;
    let claims = json!({"sub": "ann"});
    let watched = relay.watch_filtered("authenticated", &claims, "t", Events::All, "");
    let refused = watched.await.err().unwrap_or_default();
    assert!(
        refused.contains("permission denied for table secret"),
        "{refused}"
    );
    // Nor through a second view, with the rights of the first one's owner.
    relay
        .run("create view further as select id from through; grant select on further to authenticated;
              alter policy other on t using (exists (select from further where further.id = t.id));
              grant select on secret to authenticated")
        .await;
    relay.reads_the_catalog().await;
    let watched = relay.watch_filtered("authenticated", &claims, "t", Events::All, "");
    let refused = watched.await.err().unwrap_or_default();
    assert!(
        refused.contains("permission denied for table secret"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_mixes_of_compiled_and_asked_operands_show_what_postgresql_shows() {
    let seed = std::env::var("ROWCAST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("ROWCAST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut shown, mut hidden, mut unasked) = (0, 0, 0);
    for round in 0..6 {
        let mut policies = String::new();
        for number in 0..rng.random_range(1..5) {
            let kind = if rng.random_bool(0.3) {
                "restrictive"
            } else {
                "permissive"
            };
            let text = condition(&mut rng, 2);
            policies.push_str(&format!(
                "create policy p{number} on t as {kind} using ({text});"
            ));
        }
        let mut relay = Relay::start(&format!("{OPAQUE} {policies}"), "t").await;
        let ann = relay
            .watch("authenticated", &json!({"sub": "ann"}), "t")
            .await;
        let mut values = Vec::new();
        for id in 1..=24 {
            let mut one = |all: &[&str]| all.choose(&mut rng).copied().unwrap().to_owned();
            let (owner, flag) = (
                one(&["'ann'", "'ben'", "null"]),
                one(&["'yes'", "'no'", "null"]),
            );
            values.push(format!(
                "({id}, {owner}, {flag}, {})",
                one(&["'x'", "'y'", "null"])
            ));
        }
        relay
            .run(&format!("insert into t values {}", values.join(",")))
            .await;
        let seen = brief(&relay.seen(&ann).await);
        let rows = relay
            .sql
            .query(
                "select set_config('request.jwt.claims', '{\"sub\": \"ann\"}', false)",
                &[],
            )
            .await
            .and(Ok(()));
        rows.unwrap();
        relay.run("set role authenticated").await;
        let rows = relay
            .sql
            .query("select id from t order by id", &[])
            .await
            .unwrap();
        relay.run("reset role").await;
        let expected: Vec<String> = rows
            .iter()
            .map(|row| format!("INSERT {}", row.get::<_, i64>(0)))
            .collect();
        assert_eq!(seen, expected, "round {round} of seed {seed}: {policies}");
        shown += seen.len();
        hidden += 24 - seen.len();
        let questions = usize::try_from(relay.core.metrics.questions.get()).unwrap();
        assert!(questions <= 24);
        unasked += 24 - questions;
    }
    assert!(
        shown > 0 && hidden > 0 && unasked > 0,
        "{shown} {hidden} {unasked}"
    );
}

fn condition(rng: &mut StdRng, depth: u32) -> String {
    let leaf = depth == 0 || rng.random_bool(0.3);
    if leaf {
        let leaves = [
            OWN,
            "opaque(flag)",
            "other = 'x'",
            "other is null",
            "opaque(other)",
            "owner <> 'ben'",
        ];
        return leaves.choose(rng).copied().unwrap().to_owned();
    }
    let join = if rng.random_bool(0.5) {
        " and "
    } else {
        " or "
    };
    let count = rng.random_range(2..4);
    let all: Vec<String> = (0..count).map(|_| condition(rng, depth - 1)).collect();
    let joined = format!("({})", all.join(join));
    if rng.random_bool(0.1) {
        format!("(not {joined})")
    } else {
        joined
    }
}

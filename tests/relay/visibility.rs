//! Who sees which rows.

use rowcast::config::DeleteWithoutIdentity;
use rowcast::subscription::Events;
use serde_json::json;

use crate::harness::{ANN, BEN, Relay, brief};

const NOTES: &str = "
    create table notes (id int primary key, user_id uuid, body text);
    alter table notes enable row level security;
    create policy own on notes for select to authenticated using (user_id = (select auth.uid()));
    grant select on notes to authenticated;";

const DOCS: &str = "
    create table members (org int, user_id uuid);
    alter table members enable row level security;
    create policy own on members for select using (user_id = auth.uid());
    create table docs (id int primary key, org int, body text);
    alter table docs enable row level security;
    create policy member on docs for select
      using (org in (select m.org from members m where m.user_id = auth.uid()));
    grant select on members, docs to authenticated;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_user_sees_only_the_rows_of_its_policy() {
    let mut relay = Relay::start(NOTES, "notes").await;
    relay.run("grant select on notes to service_role").await;
    let ann = relay.watch_as(ANN, "notes").await;
    let ben = relay.watch_as(BEN, "notes").await;
    let nobody = relay.watch("authenticated", &json!({}), "notes").await;
    let service = relay.watch("service_role", &json!({}), "notes").await;
    relay
        .run(&format!(
            "insert into notes values (1, '{ANN}', 'a'), (2, '{BEN}', 'b'), (3, null, 'c');
             update notes set body = 'x' where id in (1, 2);
             update notes set user_id = '{ANN}' where id = 3"
        ))
        .await;
    assert_eq!(
        brief(&relay.seen(&ann).await),
        ["INSERT 1", "UPDATE 1", "UPDATE 3"]
    );
    assert_eq!(brief(&relay.seen(&ben).await), ["INSERT 2", "UPDATE 2"]);
    assert!(relay.seen(&nobody).await.is_empty());
    assert_eq!(relay.seen(&service).await.len(), 6, "BYPASSRLS sees all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_without_the_right_to_select_is_refused_in_words() {
    let relay = Relay::start(NOTES, "notes").await;
    let text = relay.refused("anon", "notes", "").await;
    assert!(text.contains("permission denied for table notes"), "{text}");
    let text = relay.refused("nobody_at_all", "notes", "").await;
    assert!(
        text.contains("role \"nobody_at_all\" does not exist"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_is_answered_as_a_select_would_and_in_order() {
    let mut relay = Relay::start(DOCS, "docs").await;
    let ann = relay.watch_as(ANN, "docs").await;
    let ben = relay.watch_as(BEN, "docs").await;
    // The member comes after the row, in one transaction.
    relay
        .run(&format!(
            "begin; insert into docs values (1, 7, 'a'); insert into members values (7, '{ANN}'); commit"
        ))
        .await;
    relay
        .run(&format!("insert into members values (8, '{BEN}')"))
        .await;
    relay
        .run("insert into docs select n, 7 + n % 2, 'x' from generate_series(2, 60) n")
        .await;
    let even: Vec<String> = (1..=60)
        .filter(|n| *n == 1 || n % 2 == 0)
        .map(|n| format!("INSERT {n}"))
        .collect();
    assert_eq!(brief(&relay.seen(&ann).await), even);
    let odd: Vec<String> = (3..=59).step_by(2).map(|n| format!("INSERT {n}")).collect();
    assert_eq!(brief(&relay.seen(&ben).await), odd);
    assert!(
        relay.core.metrics.questions.get() > 0,
        "membership is asked"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restrictive_policies_narrow_and_a_table_without_permissive_ones_shows_nothing() {
    let mut relay = Relay::start(
        "create table a (id int primary key, user_id uuid, secret bool);
         create table b (id int primary key, secret bool);
         alter table a enable row level security; alter table b enable row level security;
         create policy own on a using (user_id = auth.uid());
         create policy mine on a as restrictive using (not secret);
         create policy narrow on b as restrictive using (true);
         grant select on a, b to authenticated",
        "a, b",
    )
    .await;
    let on_a = relay.watch_as(ANN, "a").await;
    let on_b = relay.watch_as(ANN, "b").await;
    relay
        .run(&format!(
            "insert into a values (1, '{ANN}', true), (2, '{ANN}', false), (3, '{ANN}', null);
             insert into b values (1, false)"
        ))
        .await;
    assert_eq!(brief(&relay.seen(&on_a).await), ["INSERT 2"]);
    assert!(relay.seen(&on_b).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_and_bypassrls_see_all_unless_security_is_forced_on_the_owner() {
    let role = format!("owner_{}", std::process::id());
    let mut relay = Relay::start(
        &format!(
            "create role {role};
             create table a (id int primary key); alter table a owner to {role};
             create table b (id int primary key); alter table b owner to {role};
             alter table a enable row level security;
             alter table b enable row level security; alter table b force row level security;
             grant select on a, b to service_role; grant usage on schema public to {role}"
        ),
        "a, b",
    )
    .await;
    let owner_a = relay.watch(&role, &json!({}), "a").await;
    let owner_b = relay.watch(&role, &json!({}), "b").await;
    let service = relay.watch("service_role", &json!({}), "b").await;
    relay
        .run("insert into a values (1); insert into b values (1)")
        .await;
    assert_eq!(brief(&relay.seen(&owner_a).await), ["INSERT 1"]);
    assert!(relay.seen(&owner_b).await.is_empty());
    assert_eq!(brief(&relay.seen(&service).await), ["INSERT 1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_raises_hides_the_row_from_those_it_raises_for() {
    let mut relay = Relay::start(
        "create table notes (id int primary key, owner text);
         alter table notes enable row level security;
         create policy own on notes using (owner::uuid = auth.uid());
         create table asked (id int primary key, n int);
         alter table asked enable row level security;
         create function inverse(n int) returns int language plpgsql as 'begin return 10 / n; end';
         create policy p on asked using (inverse(n) > 0);
         grant select on notes, asked to authenticated",
        "notes, asked",
    )
    .await;
    let ann = relay.watch_as(ANN, "notes").await;
    let odd = relay
        .watch("authenticated", &json!({"sub": "not a uuid"}), "notes")
        .await;
    let asked = relay.watch("authenticated", &json!({}), "asked").await;
    relay
        .run(&format!("insert into notes values (1, 'x'), (2, '{ANN}')"))
        .await;
    relay
        .run("insert into asked values (1, 0), (2, 5), (3, -1)")
        .await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 2"]);
    assert!(relay.seen(&odd).await.is_empty());
    assert_eq!(brief(&relay.seen(&asked).await), ["INSERT 2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_the_role_may_not_read_are_absent_and_cannot_be_filtered_on() {
    let mut relay = Relay::start(
        "create table people (id int primary key, name text, salary int);
         grant select (id, name) on people to authenticated",
        "people",
    )
    .await;
    let all = relay.watch("authenticated", &json!({}), "people").await;
    let refused = relay
        .refused("authenticated", "people", "salary=gt.100")
        .await;
    assert!(
        refused.contains("invalid column for filter salary"),
        "{refused}"
    );
    relay
        .run("insert into people values (1, 'Ann', 1000); update people set salary = 2000")
        .await;
    let seen = relay.seen(&all).await;
    assert_eq!(seen[0].change()["record"], json!({"id": 1, "name": "Ann"}));
    assert_eq!(
        seen[0].change()["columns"],
        json!([{"name": "id", "type": "int4"}, {"name": "name", "type": "text"}])
    );
    assert_eq!(seen[1].change()["old_record"], json!({"id": 1}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_is_judged_on_the_old_row_or_kept_back_and_said() {
    let mut relay = Relay::start(NOTES, "notes").await;
    let kept = relay.watch_as(ANN, "notes").await;
    assert!(
        kept.notices[0].contains("replica identity does not carry user_id"),
        "{:?}",
        kept.notices
    );
    relay
        .run(&format!(
            "insert into notes values (1, '{ANN}', 'a'); delete from notes"
        ))
        .await;
    assert_eq!(brief(&relay.seen(&kept).await), ["INSERT 1"]);

    relay.run("alter table notes replica identity full").await;
    let ann = relay.watch_as(ANN, "notes").await;
    let ben = relay.watch_as(BEN, "notes").await;
    assert!(ann.notices.is_empty(), "{:?}", ann.notices);
    relay
        .run(&format!(
            "insert into notes values (2, '{ANN}', 'a'); delete from notes"
        ))
        .await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 2", "DELETE 2"]);
    assert!(relay.seen(&ben).await.is_empty(), "not even the key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_that_cannot_be_judged_goes_out_with_the_key_where_that_is_configured() {
    let mut relay = Relay::with(NOTES, "notes", |config| {
        config.delete_without_identity = DeleteWithoutIdentity::Key;
    })
    .await;
    let ben = relay.watch_as(BEN, "notes").await;
    relay
        .run(&format!(
            "insert into notes values (1, '{ANN}', 'a'); delete from notes"
        ))
        .await;
    let seen = relay.seen(&ben).await;
    assert_eq!(brief(&seen), ["DELETE 1"]);
    assert_eq!(seen[0].change()["old_record"], json!({"id": 1}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_row_before_an_update_is_shown_only_to_those_who_could_see_it() {
    let schema = format!("{NOTES} alter table notes replica identity full;");
    let mut relay = Relay::start(&schema, "notes").await;
    let ann = relay.watch_as(ANN, "notes").await;
    relay
        .run(&format!("insert into notes values (1, '{BEN}', 'secret')"))
        .await;
    relay
        .run(&format!(
            "update notes set user_id = '{ANN}', body = 'given'"
        ))
        .await;
    relay.run("update notes set body = 'mine'").await;
    let seen = relay.seen(&ann).await;
    assert_eq!(
        seen[0].change()["old_record"],
        json!({"id": 1}),
        "not the secret"
    );
    assert_eq!(seen[1].change()["old_record"]["body"], "given");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_published_on_its_own_obeys_the_policies_of_its_root() {
    let mut relay = Relay::start(
        "create table root (id int primary key, user_id uuid) partition by range (id);
         create table leaf partition of root for values from (0) to (1000);
         alter table root enable row level security;
         create policy own on root using (user_id = auth.uid());
         grant select on root, leaf to authenticated",
        "leaf",
    )
    .await;
    let ann = relay.watch_as(ANN, "leaf").await;
    relay
        .run(&format!(
            "insert into root values (1, '{ANN}'), (2, '{BEN}')"
        ))
        .await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_hold_on_what_they_compare_and_never_on_null() {
    let mut relay = Relay::start(
        "create table t (id int primary key, n int, s text, u uuid, at timestamptz, yes bool);
         grant select on t to authenticated",
        "t",
    )
    .await;
    let claims = json!({});
    let mut watchers = Vec::new();
    for (filter, expected) in [
        ("n=eq.5", vec![1]),
        ("n=eq. 5", vec![1]),
        ("n=neq.5", vec![2, 3]),
        ("n=gt.5", vec![2]),
        ("n=gte.5,n=lt.10", vec![1]),
        ("n=in.(5,10)", vec![1, 2]),
        ("s=eq.a,n=eq.5", vec![1]),
        ("yes=eq.true", vec![1]),
        ("yes=neq.t", vec![2]),
        ("s=in.(\"x,y\",b)", vec![2, 3]),
        ("u=eq.{00000000-0000-4000-8000-00000000000A}", vec![1]),
        ("at=lte.2024-03-01 00:00:00+01", vec![1]),
        ("n=not.eq.5", vec![2, 3]),
        ("s=gt.a", vec![2, 3]),
        ("s=like.%\\_%", vec![]),
        ("s=not.ilike.X%", vec![1, 3]),
        ("s=match.^[ab]$", vec![1, 3]),
        ("s=not.imatch.^B", vec![1, 2]),
        ("s=is.null", vec![4]),
        ("yes=is.unknown", vec![3, 4]),
        ("yes=not.is.true", vec![2, 3, 4]),
        ("n=isdistinct.5", vec![2, 3, 4]),
        ("n=not.isdistinct.null", vec![4]),
        ("n=isdistinct.null,s=match.a", vec![1]),
    ] {
        let watcher = relay
            .watch_filtered("authenticated", &claims, "t", Events::Insert, filter)
            .await;
        watchers.push((filter, expected, watcher.unwrap()));
    }
    relay
        .run(&format!(
            "insert into t values (1, 5, 'a', '{ANN}', '2024-02-29 22:00:00Z', true),
             (2, 10, 'x,y', null, '2024-03-01 00:00:00Z', false), (3, -1, 'b', null, null, null),
             (4, null, null, null, null, null)"
        ))
        .await;
    for (filter, expected, watcher) in watchers {
        let expected: Vec<String> = expected.iter().map(|id| format!("INSERT {id}")).collect();
        assert_eq!(brief(&relay.seen(&watcher).await), expected, "{filter}");
    }
    for (filter, reason) in [
        ("nope=eq.1", "invalid column for filter nope"),
        ("n=eq.x", "invalid input syntax for type integer: \"x\""),
        ("n=eq.99999999999", "is out of range for type integer"),
        (
            "n=like.5",
            "operator like requires a text-compatible column type, got integer",
        ),
        (
            "s=is.true",
            "is true filter requires a boolean column, got text",
        ),
        (
            "s=is.nothing",
            "invalid value for is filter: must be null, true, false, or unknown",
        ),
        ("s=match.(", "invalid regular expression for match filter: "),
        (
            "s=like.a\\",
            "LIKE pattern must not end with escape character",
        ),
        (
            "s=in.(1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,\
             1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,\
             1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1)",
            "too many values for `in` filter. Maximum 100",
        ),
    ] {
        let text = relay.refused("authenticated", "t", filter).await;
        assert!(text.contains(reason), "{filter}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_raises_does_not_hide_what_one_that_postgresql_asks_first_shows() {
    let mut relay = Relay::start(
        "create table t (id int primary key, b text);
         alter table t enable row level security;
         create policy a on t using (b::uuid = auth.uid());
         create policy b on t using (length(b) = 1);
         grant select on t to authenticated",
        "t",
    )
    .await;
    let ann = relay.watch_as(ANN, "t").await;
    relay
        .run(&format!(
            "insert into t values (1, 'x'), (2, 'xy'), (3, '{ANN}')"
        ))
        .await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 1", "INSERT 3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_null_of_json_is_not_taken_for_the_null_of_sql_when_asked() {
    let (mut relay, watcher) = Relay::watched(
        "create table t (id int primary key, doc jsonb, b text);
         alter table t enable row level security;
         create policy p on t using (doc is null and length(b) = 1)",
    )
    .await;
    relay
        .run("insert into t values (1, null, 'x'), (2, 'null', 'x'), (3, '{\"a\": null}', 'x')")
        .await;
    assert_eq!(brief(&relay.seen(&watcher).await), ["INSERT 1"]);
}

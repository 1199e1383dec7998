//! Statements that doctor gives, run as they are where they could do harm or fail.

use rowcast::pg::throwaway::Throwaway;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::harness::{ANN, DEADLINE, Place, options, token};

#[tokio::test]
async fn a_publication_without_tables_is_filled_with_what_clients_may_read() {
    let place = Place::good().await;
    place
        .run("alter publication rowcast drop table app.note, app.judged, app.plan, app.part")
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["publication_empty"]);
    place.mend(&found).await;
    place.doctor(&[]).await.is_well();
    place.delivers("part").await;
}

#[tokio::test]
async fn commits_that_wait_for_a_standby_that_is_not_there_are_found_and_go_on() {
    let cluster = Throwaway::start(options()).await.expect("a cluster");
    let url = cluster.fresh_database().await.unwrap();
    let place = Place::prepared(Place::at(url).await).await;
    place
        .run("alter system set synchronous_standby_names = 'elsewhere'")
        .await;
    place.run("select pg_reload_conf()").await;
    // The server reads its settings anew when it comes to it.
    let until = async |codes: &[&str]| {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let found = place.doctor(&[]).await;
            if found.codes() == codes {
                return found;
            }
            assert!(Instant::now() < deadline, "{:?}", found.codes());
            sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let found = until(&["slot_missing", "synchronous_standby"]).await;
    assert!(found.text("synchronous_standby").contains("elsewhere"));
    place.mend(&found).await;
    until(&["slot_missing"]).await;
    place.run("create table app.unrelated (id int)").await;
    // To those whose commits do not wait it is nothing.
    place
        .run("alter system set synchronous_commit = local")
        .await;
    place
        .run("alter system set synchronous_standby_names = 'elsewhere'")
        .await;
    place.run("select pg_reload_conf()").await;
    until(&["slot_missing"]).await;
}

#[tokio::test]
async fn a_login_that_may_have_no_session_is_given_some() {
    let mut place = Place::prepared(Place::empty().await).await;
    for (what, code) in [
        ("connection limit 0", "connections_exhausted"),
        ("nologin", "database_login"),
    ] {
        place
            .run(&format!("alter role {} {what}", place.relay))
            .await;
        let found = place.doctor(&[]).await;
        found.is(&[code]);
        assert_eq!(found.sql().len(), 1, "{:#}", found.report);
        place.mend(&found).await;
        place.doctor(&[]).await.is(&["slot_missing"]);
    }
    place
        .run("do $$ begin execute format('alter database %I connection limit 0', current_database()); end $$")
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["connections_exhausted"]);
    place.mend(&found).await;
    place.start().await;
    place.doctor(&[]).await.is_well();
}

#[tokio::test]
async fn several_lookups_are_published_by_statements_in_an_order_that_works() {
    let place = Place::good().await;
    place
        .run(&format!(
            "create table app.zone (id bigint primary key); grant select on app.zone to authenticated;
             create table app.area (id bigint primary key); grant select on app.area to authenticated;
             grant select on app.zone, app.area to {relay};
             insert into app.zone values (1); insert into app.area values (1);
             alter policy ours on app.plan using (
               exists (select from app.member m where m.team = plan.team and m.person = auth.uid())
               and exists (select from app.zone z where z.id = plan.team)
               and exists (select from app.area a where a.id = plan.team));
             drop publication {relay}_lookups",
            relay = place.relay
        ))
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["lookup_unpublished"]);
    assert_eq!(found.sql().len(), 3, "{:#}", found.report);
    place.mend(&found).await;
    place.doctor(&[]).await.is_well();
    place.delivers("plan").await;
}

#[tokio::test]
async fn a_policy_of_the_same_name_for_somebody_else_does_not_keep_a_lookup_from_being_read() {
    let place = Place::good().await;
    place
        .run(
            "alter table app.member enable row level security;
             create policy own on app.member for select to authenticated using (person = auth.uid());
             drop policy if exists \"rowcast reads lookups\" on app.member;
             create policy \"rowcast reads lookups\" on app.member for select to anon using (false)",
        )
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["lookup_row_security", "policy_unchecked"]);
    place.mend(&found).await;
    place.doctor(&[]).await.is_well();
    place.delivers("plan").await;
}

#[tokio::test]
async fn what_only_all_tables_publishes_is_not_opened_to_clients() {
    let place = Place::good().await;
    place
        .run(
            "create table app.hidden (id bigint primary key, person uuid);
             alter table app.hidden enable row level security;
             alter table app.member enable row level security;
             drop publication rowcast;
             create publication rowcast for all tables with (publish_via_partition_root = true)",
        )
        .await;
    let statements = place.doctor(&[]).await.sql();
    let opening = |sql: &&String| sql.contains("app.hidden");
    let opened: Vec<&String> = statements.iter().filter(opening).collect();
    assert_eq!(opened, Vec::<&String>::new());
    // Whoever names it means it.
    let statements = place.doctor(&["--table", "app.hidden"]).await.sql();
    assert!(statements.iter().any(|sql| opening(&sql)), "{statements:?}");
}

#[tokio::test]
async fn a_policy_that_only_checks_what_is_written_does_not_count_as_one_that_takes_away() {
    let place = Place::good().await;
    place
        .run(
            "drop policy mine on app.note;
             create policy written on app.note for all to authenticated with check (person = auth.uid())",
        )
        .await;
    place.doctor(&[]).await.is(&["policy_missing"]);
    place
        .run("create policy less on app.note as restrictive for select to authenticated using (id > 0)")
        .await;
    place.doctor(&[]).await.is(&["policy_restrictive_only"]);
}

#[tokio::test]
async fn a_token_without_a_role_in_it_gets_no_statement_that_makes_one_without_a_name() {
    let place = Place::good().await;
    let nobody = json!({ "role": "", "sub": ANN, "exp": 4_000_000_000_u64 });
    let found = place
        .doctor_with(&[], &[("ROWCAST_TOKEN", &token(&nobody))])
        .await;
    found.is(&["token_role_claim"]);
    assert_eq!(found.sql(), Vec::<String>::new());
}

#[tokio::test]
async fn a_rule_for_a_role_that_row_level_security_does_not_hold_for_leaves_out_nobody_else_in_words()
 {
    let place = Place::good().await;
    place
        .run("drop policy mine on app.note; alter table app.note disable row level security")
        .await;
    let mut file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    let rule = "[[rule]]\ntable = \"app.note\"\nusing = \"id > 0\"\nroles = [\"service_role\"]\n";
    std::io::Write::write_all(&mut file, rule.as_bytes()).unwrap();
    let arguments = ["--config", file.path().to_str().unwrap()];
    let settings = [
        ("ROWCAST_REQUIRE", "rls or rule"),
        ("ROWCAST_DEFAULT_ROLE", "service_role"),
    ];
    let found = place.doctor_with(&arguments, &settings).await;
    found.is(&["rls_off"]);
    let said = found.text("rls_off");
    assert!(
        !said.starts_with(':') && said.contains("authenticated"),
        "{said}"
    );
}

#[tokio::test]
async fn an_owner_of_a_view_that_may_not_read_what_is_in_it_is_given_the_right() {
    let place = Place::good().await;
    let owner = format!("{}_viewer", place.relay);
    place
        .run(&format!(
            "create role {owner}; grant usage, create on schema app to {owner};
             grant select on app.member to {owner};
             set role {owner}; create view app.seats as select team, person from app.member; reset role;
             grant select on app.seats to authenticated;
             alter policy ours on app.plan using (
               exists (select from app.seats s where s.team = plan.team and s.person = auth.uid()));
             revoke select on app.member from {owner}"
        ))
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["lookup_grant"]);
    place.mend(&found).await;
    place.doctor(&[]).await.is_well();
    place.delivers("plan").await;
}

#[tokio::test]
async fn clients_that_row_level_security_does_not_hold_for_are_found_and_held() {
    let place = Place::good().await;
    // Roles are the whole cluster's: one of its own.
    let role = format!("{}_clients", place.relay);
    place
        .run(&format!(
            "create role {role} bypassrls; grant usage on schema app, auth to {role};
             grant select on app.note to {role}; grant {role} to {}",
            place.relay
        ))
        .await;
    let settings = [("ROWCAST_DEFAULT_ROLE", role.as_str())];
    let arguments = ["--table", "app.note"];
    let found = place.doctor_with(&arguments, &settings).await;
    found.is(&["role_bypass"]);
    place.mend(&found).await;
    let owned = format!("grant all on schema app to {role}; alter table app.note owner to {role}");
    place.run(&owned).await;
    let found = place.doctor_with(&arguments, &settings).await;
    found.is(&["rls_owner"]);
    place.mend(&found).await;
    let found = place.doctor_with(&arguments, &settings).await;
    assert!(!found.codes().contains(&"rls_owner"), "{:#}", found.report);
}

#[tokio::test]
async fn a_database_that_has_row_level_security_raise_errors_changes_nothing() {
    let place = Place::prepared(Place::empty().await).await;
    place
        .run(
            "alter policy mine on app.note using (exists (
               select m.team from app.member m where m.person = auth.uid() group by m.team having count(*) > 0));
             do $$ begin execute format('alter database %I set row_security = off', current_database()); end $$",
        )
        .await;
    let mut place = place;
    place.start().await;
    place.doctor(&[]).await.is_well();
    place.delivers("note").await;
}

#[tokio::test]
async fn a_login_whose_sessions_begin_as_another_role_is_found_and_mended() {
    let mut place = Place::prepared(Place::empty().await).await;
    place
        .run(&format!(
            "alter role {} set role = authenticated",
            place.relay
        ))
        .await;
    let found = place.doctor(&[]).await;
    assert!(found.codes().contains(&"login_role"), "{:#}", found.report);
    for statement in found.sql().iter().filter(|one| one.contains("set role")) {
        place.run(statement).await;
    }
    place.start().await;
    place.doctor(&[]).await.is_well();
    place.delivers("judged").await;
}

#[tokio::test]
async fn what_a_policy_raises_for_every_row_is_said_in_postgresqls_words() {
    let place = Place::prepared(Place::empty().await).await;
    place
        .run(
            "create materialized view rules.shown as select id from app.plan with no data;
             grant select on rules.shown to authenticated;
             alter policy mine on app.note using (id in (select id from rules.shown));
             create function rules.fails(bigint) returns boolean language plpgsql stable
               as $$ begin
                 if $1 is null then raise 'not for a row without a number'; end if;
                 execute 'select 1';
                 return true;
               end $$;
             alter policy mine on app.judged using (rules.fails(id))",
        )
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["lookup_kind", "policy_broken", "slot_missing"]);
    assert!(
        found
            .text("policy_broken")
            .contains("has not been populated")
    );
    let all = found.report.to_string();
    assert!(
        all.contains("not for a row without a number"),
        "{:#}",
        found.report
    );
    place.run("refresh materialized view rules.shown").await;
    let found = place.doctor(&[]).await;
    found.is(&["lookup_kind", "slot_missing"]);
}

//! Ways to break what is in the database.

use crate::harness::{Place, TABLES, rowcast};

/// A way to break it.
struct Way {
    /// What somebody did, as a superuser; `RELAY` stands for the relay's login and slot.
    sql: &'static str,
    /// With what the doctor is called.
    arguments: &'static [&'static str],
    /// What it finds.
    codes: &'static [&'static str],
    /// A table of which rows were missed.
    table: &'static str,
}

async fn heals(way: Way) {
    let place = Place::good().await;
    place.run(&way.sql.replace("RELAY", &place.relay)).await;
    let found = place.doctor(way.arguments).await;
    found.is(way.codes);
    place.mend(&found).await;
    place.doctor(way.arguments).await.is_well();
    place.delivers(way.table).await;
}

macro_rules! ways {
    ($($name:ident: $sql:expr, $arguments:expr, $codes:expr, $table:expr;)*) => {
        $(#[tokio::test]
        async fn $name() {
            heals(Way { sql: $sql, arguments: $arguments, codes: $codes, table: $table }).await;
        })*
    };
}

ways! {
    a_publication_that_is_gone_is_found_and_mended:
        "drop publication rowcast", &[], &["publication_missing"], "note";
    a_table_that_is_not_published_is_found_and_mended:
        "alter publication rowcast drop table app.note",
        &["--table", "app.note"], &["table_unpublished"], "note";
    operations_that_are_not_published_are_found_and_mended:
        "alter publication rowcast set (publish = 'truncate')",
        &[], &["publication_operations"], "note";
    partitions_that_are_published_as_themselves_are_found_and_mended:
        "alter publication rowcast set (publish_via_partition_root = false)",
        &["--table", "app.part"], &["publication_partitions"], "part";
    a_table_that_may_not_be_read_is_found_and_mended:
        "revoke select on app.note from authenticated", &[], &["table_grant"], "note";
    a_schema_that_may_not_be_used_is_found_and_mended:
        "revoke usage on schema app from authenticated", &[], &["schema_usage"], "judged";
    policies_that_do_nothing_are_found_and_mended:
        "alter table app.note disable row level security", &[], &["rls_off_policies"], "note";
    a_table_without_policies_is_found_and_mended:
        "drop policy mine on app.note", &[], &["policy_missing"], "note";
    policies_for_inserts_only_that_have_every_name_are_found_and_mended:
        "drop policy mine on app.note;
         create policy \"own rows\" on app.note for insert to authenticated with check (true)",
        &[], &["policy_missing"], "note";
    policies_for_other_roles_only_are_found_and_mended:
        "alter policy mine on app.note to service_role", &[], &["policy_missing"], "note";
    restrictive_policies_only_are_found_and_mended:
        "drop policy mine on app.note;
         create policy narrow on app.note as restrictive for select using (true)",
        &[], &["policy_restrictive_only"], "note";
    an_open_table_is_found_and_mended:
        "drop policy mine on app.note; alter table app.note disable row level security",
        &[], &["rls_off"], "note";
    a_role_that_the_relay_may_not_become_is_found_and_mended:
        "revoke authenticated from RELAY", &[], &["role_membership"], "plan";
    an_identity_that_carries_too_little_is_found_and_mended:
        "alter table app.note replica identity default", &[], &["identity_too_little"], "note";
    a_partitions_identity_that_carries_too_little_is_found_and_mended:
        "alter table app.part_north replica identity default", &[], &["identity_too_little"], "part";
    a_table_without_an_identity_is_found_and_mended:
        "alter table app.note replica identity nothing", &[], &["identity_missing"], "note";
    a_function_that_may_not_be_called_is_found_and_mended:
        "revoke execute on function rules.mine(uuid) from public",
        &[], &["function_execute"], "judged";
    a_lookup_that_the_client_may_not_read_is_found_and_mended:
        "revoke select on app.member from authenticated", &[], &["lookup_grant"], "plan";
    a_lookup_that_is_not_published_is_found_and_mended:
        "alter publication RELAY_lookups drop table app.member", &[], &["lookup_unpublished"], "plan";
    a_publication_of_several_lookups_that_is_gone_is_found_and_mended:
        "create table app.other (id bigint primary key, person uuid); grant select on app.other to authenticated, RELAY; \
         create policy more on app.plan for select to authenticated \
           using (exists (select from app.other o where o.id = plan.id and o.person = auth.uid())); \
         drop publication RELAY_lookups",
        &[], &["lookup_unpublished"], "plan";
    a_lookup_whose_policies_keep_the_relay_out_is_found_and_mended:
        "alter table app.member enable row level security;
         create policy own on app.member for select to authenticated using (person = auth.uid())",
        &[], &["lookup_row_security", "policy_unchecked"], "plan";
    a_lookup_that_the_relay_may_not_read_is_found_and_mended:
        "alter role RELAY noinherit; revoke select on app.member from RELAY;
         revoke authenticated from RELAY; grant authenticated to RELAY;
         grant usage on schema auth, app, rules to RELAY; grant select on app.note to RELAY",
        &[], &["lookup_privilege", "policy_unchecked"], "plan";
    a_schema_that_the_login_may_not_use_is_found_and_mended:
        "alter role RELAY noinherit; revoke authenticated from RELAY; grant authenticated to RELAY",
        &[], &["login_schema_usage", "lookup_privilege", "policy_unchecked"], "judged";
    a_lookup_without_an_identity_is_found_and_mended:
        "alter table app.member replica identity nothing", &[], &["lookup_identity"], "plan";
    a_lookup_that_has_a_key_and_no_identity_in_one_of_its_partitions_is_found_and_mended:
        "create table app.crew (team bigint, person uuid, primary key (team, person)) partition by list (team);
         create table app.crew_1 partition of app.crew for values in (1);
         create table app.\"crew's\" partition of app.crew default;
         alter table app.\"crew's\" replica identity nothing;
         insert into app.crew select team, person from app.member;
         grant select on app.crew to authenticated, RELAY;
         alter policy ours on app.plan
           using (exists (select from app.crew m where m.team = plan.team and m.person = auth.uid()));
         alter publication RELAY_lookups add table app.crew",
        &[], &["lookup_identity"], "plan";
    a_partitioned_lookup_without_a_key_is_found_and_mended:
        "create table app.crew (team bigint, person uuid) partition by list (team);
         create table app.crew_1 partition of app.crew for values in (1) partition by list (person);
         create table app.crew_all partition of app.crew_1 default;
         insert into app.crew select team, person from app.member;
         grant select on app.crew to authenticated, RELAY;
         alter policy ours on app.plan
           using (exists (select from app.crew m where m.team = plan.team and m.person = auth.uid()));
         alter publication RELAY_lookups add table app.crew",
        &[], &["lookup_identity"], "plan";
    a_definer_function_without_a_path_of_its_own_is_found_and_mended:
        "alter function rules.mine(uuid) security definer", &[], &["function_search_path"], "judged";
    a_login_that_may_not_replicate_is_found_and_mended:
        "alter role RELAY noreplication", &[], &["login_replication"], "note";
    a_login_without_temporary_objects_is_found_and_mended:
        "do $$ begin execute format('revoke temporary on database %I from public', current_database()); end $$",
        &[], &["login_temporary"], "judged";
    a_login_with_too_few_sessions_is_found_and_mended:
        "alter role RELAY connection limit 6", &[], &["login_connection_limit"], "note";
    a_login_whose_statements_are_broken_off_in_this_database_is_found_and_mended:
        "do $$ begin execute format('alter role RELAY in database %I set statement_timeout = 900', current_database()); end $$",
        &[], &["login_timeout"], "note";
    a_login_whose_statements_are_broken_off_is_found_and_mended:
        "alter role RELAY set statement_timeout = '900ms'", &[], &["login_timeout"], "note";
}

#[tokio::test]
async fn old_rows_that_the_relay_keeps_need_no_identity_and_what_it_cannot_keep_is_said() {
    let place = Place::good().await;
    place
        .run("alter table app.note replica identity default")
        .await;
    let found = place.doctor(&["--old-rows", "app.note"]).await;
    found.is(&["identity_too_little", "old_rows_refused"]);
    let findings = found.report["findings"].as_array().unwrap();
    let refused = |one: &&serde_json::Value| one["code"] == "old_rows_refused";
    let refused = findings.iter().find(refused).unwrap();
    for statement in refused["sql"].as_array().unwrap() {
        place.run(statement.as_str().unwrap()).await;
    }
    place.doctor(&[]).await.is(&["identity_too_little"]);
    place.doctor(&["--old-rows", "app.note"]).await.is_well();
    let found = place
        .doctor(&["--old-rows", "app.note,app.nowhere,app.note.no,app.member"])
        .await;
    // The last table is a lookup, and nobody subscribes to it.
    found.is(&["identity_too_little", "old_rows_unknown"]);
    let found = place.doctor(&["--old-rows", "app.note,app.judged"]).await;
    found.is(&["old_rows_needless"]);
}

#[tokio::test]
async fn a_set_up_that_is_well_has_no_finding_and_delivers() {
    let place = Place::good().await;
    let found = place.doctor(&[]).await;
    found.is_well();
    assert_eq!(found.report["tables"], 4);
    assert_eq!(found.report["publication"], "rowcast");
    for table in TABLES {
        place.delivers(table).await;
    }
}

/// A right on a partition shows rows past the policies of the table that it is of.
#[tokio::test]
async fn no_finding_of_a_partitioned_table_opens_its_partitions() {
    let place = Place::good().await;
    place
        .run("alter publication rowcast set (publish_via_partition_root = false)")
        .await;
    let found = place.doctor(&[]).await;
    assert!(
        found.codes().contains(&"publication_partitions"),
        "{:#}",
        found.report
    );
    place.mend(&found).await;
    let read = "select has_table_privilege('authenticated', 'app.part_north', 'select')::text";
    assert_eq!(place.text(read).await, "false");
    place.doctor(&[]).await.is_well();
    place.delivers("part").await;
}

/// The right alone would show every row to everybody.
#[tokio::test]
async fn what_lets_a_role_read_a_table_without_policies_shows_it_nothing_yet() {
    let place = Place::good().await;
    place
        .run(
            "create table app.bare (id bigint primary key, body text); insert into app.bare values (1, 'x');
             alter publication rowcast add table app.bare",
        )
        .await;
    let found = place.doctor(&["--table", "app.bare"]).await;
    found.is(&["table_grant"]);
    place.mend(&found).await;
    let seen = "begin; set local role authenticated; select count(*)::text as seen from app.bare";
    let rows = place.admin.simple_query(seen).await.unwrap();
    let count = rows.iter().find_map(|row| match row {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    place.run("rollback").await;
    assert_eq!(count.as_deref(), Some("0"));
    place
        .doctor(&["--table", "app.bare"])
        .await
        .is(&["policy_missing"]);
}

/// What PostgreSQL has from 15 on.
#[tokio::test]
async fn rows_and_columns_that_a_publication_leaves_out_are_found_and_mended() {
    let place = Place::good().await;
    let version: i32 = place
        .text("select current_setting('server_version_num')")
        .await
        .parse()
        .unwrap();
    if version < 150_000 {
        println!("not tested: publications of PostgreSQL 14 carry whole tables");
        return;
    }
    for (how, code) in [
        ("where (id > 1000)", "publication_row_filter"),
        ("(id, person)", "publication_columns"),
    ] {
        place
            .run(&format!(
                "alter publication rowcast drop table app.note; \
                 alter publication rowcast add table app.note {how}"
            ))
            .await;
        let found = place.doctor(&[]).await;
        found.is(&[code]);
        place.mend(&found).await;
        place.doctor(&[]).await.is_well();
    }
    place.delivers("note").await;
}

/// What PostgreSQL has from 15 on.
#[tokio::test]
async fn a_lookup_of_which_only_some_rows_are_published_is_found_and_mended() {
    let place = Place::good().await;
    let version = place
        .text("select current_setting('server_version_num')")
        .await;
    if version.parse::<u32>().unwrap() < 150_000 {
        return;
    }
    let lookups = format!("{}_lookups", place.relay);
    place
        .run(&format!(
            "alter publication {lookups} drop table app.member; \
             alter publication {lookups} add table app.member where (person is not null)"
        ))
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["lookup_narrowed"]);
    place.mend(&found).await;
    place.doctor(&[]).await.is_well();
    place.delivers("plan").await;
}

/// What PostgreSQL has from 15 on.
#[tokio::test]
async fn a_policy_that_reads_what_the_publication_leaves_out_is_found_and_mended() {
    let place = Place::good().await;
    let version = place
        .text("select current_setting('server_version_num')")
        .await;
    if version.parse::<u32>().unwrap() < 150_000 {
        return;
    }
    place
        .run(
            "alter table app.note replica identity default;
             alter publication rowcast drop table app.note;
             alter publication rowcast add table app.note (id, body)",
        )
        .await;
    let found = place.doctor(&["--table", "app.note"]).await;
    found.is(&["policy_column_unpublished", "publication_columns"]);
    place.mend(&found).await;
    // It could not be seen before.
    let found = place.doctor(&["--table", "app.note"]).await;
    found.is(&["identity_too_little"]);
    place.mend(&found).await;
    place.doctor(&[]).await.is_well();
    place.delivers("note").await;
}

#[tokio::test]
async fn policies_that_let_nobody_see_anything_or_cannot_be_asked_are_found() {
    let place = Place::good().await;
    place
        .run(
            "create function rules.fails(bigint) returns boolean language plpgsql stable
               as $$ begin raise 'never'; end $$",
        )
        .await;
    let was = "alter policy mine on app.note using (person = auth.uid())";
    for (condition, code) in [
        ("false", "policy_false"),
        ("person = null", "policy_false"),
        ("rules.fails(id)", "policy_false"),
        ("person = auth.uid() and (1 = 0 or false)", "policy_false"),
        (
            "person = auth.uid() and xmin::text <> '0'",
            "policy_unaskable",
        ),
    ] {
        place
            .run(&format!(
                "alter policy mine on app.note using ({condition})"
            ))
            .await;
        let found = place.doctor(&[]).await;
        found.is(&[code]);
        assert_eq!(found.code, 2);
        place.run(was).await;
        place.doctor(&[]).await.is_well();
    }
}

#[tokio::test]
async fn a_restrictive_policy_that_is_never_true_is_named_also_where_a_lookup_has_it() {
    let place = Place::good().await;
    place
        .run("create policy shut on app.note as restrictive for select to authenticated using (1 = 0)")
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["policy_false"]);
    assert!(found.text("policy_false").contains("shut"));
    assert!(
        found.report["findings"][0]["sql"][0]
            .as_str()
            .unwrap()
            .contains("\"shut\"")
    );
    place.run("drop policy shut on app.note").await;
    place.doctor(&[]).await.is_well();
    place
        .run(
            "alter role authenticated nobypassrls;
             alter table app.member enable row level security;
             create policy all_of_it on app.member for select using (true);
             create policy shut on app.member as restrictive for select to authenticated using (false)",
        )
        .await;
    let found = place.doctor(&["--table", "app.plan"]).await;
    assert!(
        found.codes().contains(&"policy_false"),
        "{:#}",
        found.report
    );
    place
        .run("drop policy shut on app.member; alter table app.member disable row level security")
        .await;
    place.doctor(&[]).await.is_well();
}

#[tokio::test]
async fn an_unlogged_lookup_is_found_and_mended_and_then_that_it_is_not_published() {
    let place = Place::good().await;
    place
        .run(&format!(
            "alter publication {}_lookups drop table app.member; alter table app.member set unlogged",
            place.relay
        ))
        .await;
    for code in ["lookup_kind", "lookup_unpublished"] {
        let found = place.doctor(&[]).await;
        found.is(&[code]);
        place.mend(&found).await;
    }
    place.doctor(&[]).await.is_well();
    place.delivers("plan").await;
}

#[tokio::test]
async fn a_publication_without_tables_or_with_all_of_them_is_said_to_be_so() {
    let place = Place::good().await;
    place
        .run("alter publication rowcast drop table app.note, app.judged, app.plan, app.part")
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["publication_empty"]);
    assert_eq!(found.code, 2);
    place
        .run(
            "drop publication rowcast;
             create publication rowcast for all tables with (publish_via_partition_root = true)",
        )
        .await;
    let found = place.doctor(&[]).await;
    // What nobody meant to be read is there as well.
    found.is(&["publication_all_tables", "rls_off"]);
    let open = found.report["findings"].to_string();
    assert!(
        open.contains("app.member has no row-level security"),
        "{open}"
    );
}

#[tokio::test]
async fn a_set_up_without_the_event_trigger_is_noted_and_setup_makes_it() {
    let place = Place::good().await;
    place
        .run(
            "do $$ declare name text; begin
               for name in select evtname from pg_event_trigger loop
                 execute format('drop event trigger %I', name);
               end loop; end $$",
        )
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["ddl_untold"]);
    assert_eq!(found.code, 0);
    let advice = found.report["findings"][0]["advice"].as_str().unwrap();
    let command = advice.split('`').nth(1).expect(advice);
    let mut arguments: Vec<&str> = command.split(' ').skip(1).collect();
    arguments.extend(["--role", &place.relay]);
    let output = rowcast(&arguments, &[("DATABASE_URL", &place.url)]).await;
    assert_eq!(output.status.code(), Some(0), "{command} {output:?}");
    place.doctor(&[]).await.is_well();
}

#[tokio::test]
async fn a_compiled_policy_that_cannot_be_held_against_postgresql_is_noted_as_explain_says() {
    let place = Place::good().await;
    place
        .run(
            "alter table app.note add twice bigint generated always as (id * 2) stored;
             create policy twice on app.note for select to authenticated using (twice = 4)",
        )
        .await;
    let found = place.doctor(&["--table", "app.note"]).await;
    found.is(&["policy_unchecked"]);
    assert_eq!(found.code, 0);
    let text = found.report["findings"][0]["text"].as_str().unwrap();
    let environment = place.environment();
    let environment: Vec<(&str, &str)> = environment
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let explained = rowcast(&["explain", "app.note", "--json"], &environment).await;
    let explained: serde_json::Value = serde_json::from_slice(&explained.stdout).unwrap();
    let policies = explained["tables"][0]["policies"].as_array().unwrap();
    let unchecked: Vec<String> = policies
        .iter()
        .filter(|one| one["status"] == "native")
        .filter_map(|one| Some((one["name"].as_str()?, one["not_checked"].as_str()?)))
        .map(|(name, reason)| format!("{name} ({reason})"))
        .collect();
    assert_eq!(unchecked.len(), 1, "{explained:#}");
    assert!(text.ends_with(&unchecked[0]), "{text} {unchecked:?}");
}

#[tokio::test]
async fn a_cycle_of_policies_is_found() {
    let place = Place::good().await;
    place
        .run(
            "create policy more on app.plan for select to authenticated \
             using (exists (select from app.plan p where p.team = 1))",
        )
        .await;
    place.doctor(&[]).await.is(&["policy_recursion"]);
    place.run("drop policy more on app.plan").await;
    place.doctor(&[]).await.is_well();
}

#[tokio::test]
async fn a_helper_that_reads_the_table_whose_policy_calls_it_is_found_and_mended() {
    let place = Place::good().await;
    place
        .run(
            "create function app.of_team(t bigint) returns boolean language sql stable
               set search_path = app as
               $$ select exists (select from plan p where p.team = t and p.id > 0) $$;
             create policy more on app.plan for select to authenticated using (app.of_team(team))",
        )
        .await;
    let found = place.doctor(&[]).await;
    // Nobody had to keep this table in memory before.
    found.is(&[
        "lookup_row_security",
        "policy_recursion",
        "policy_unchecked",
    ]);
    place.mend(&found).await;
    place.doctor(&[]).await.is_well();
}

#[tokio::test]
async fn a_helper_that_reads_what_its_caller_may_not_is_found() {
    let place = Place::good().await;
    place
        .run(
            "create table app.secret (id bigint primary key);
             create function app.known(i bigint) returns boolean language plpgsql stable
               set search_path = app as
               $$ begin return exists (select from secret s where s.id = i); end $$;
             create policy more on app.plan for select to authenticated using (app.known(id))",
        )
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["lookup_grant"]);
    place.mend(&found).await;
    // What is no longer refused is kept in memory.
    let found = place.doctor(&[]).await;
    found.is(&["lookup_unpublished"]);
    place.mend(&found).await;
    place.doctor(&[]).await.is_well();
}

#[tokio::test]
async fn a_table_that_is_none_is_named() {
    let place = Place::good().await;
    place.run("create view app.seen as select id from app.note; create table app.\"Big\" (id int primary key)").await;
    for (table, code) in [
        ("app.nothing", "table_missing"),
        ("app.big", "table_missing"),
        ("app.seen", "table_kind"),
        ("app.\"Big\"", "table_unpublished"),
        ("app.part_north", "table_partition"),
    ] {
        place.doctor(&["--table", table]).await.is(&[code]);
    }
}

#[tokio::test]
async fn tables_that_only_the_other_publication_has_are_found_and_mended() {
    let place = Place::good().await;
    place
        .run(
            "create table app.late (id bigint primary key, person uuid not null); \
             alter table app.late replica identity full; \
             alter table app.late enable row level security; \
             grant select on app.late to authenticated; \
             create policy mine on app.late for select to authenticated using (person = auth.uid()); \
             create publication supabase_realtime for table app.late, app.note",
        )
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["publication_other"]);
    place.mend(&found).await;
    place.doctor(&[]).await.is_well();
}

#[tokio::test]
async fn columns_that_a_role_may_not_read_are_noted_and_no_fault() {
    let place = Place::good().await;
    place
        .run("revoke select on app.note from authenticated; grant select (id, person) on app.note to authenticated")
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["column_grants"]);
    assert_eq!(found.code, 0);
    place.mend(&found).await;
    place.doctor(&[]).await.is_well();
}

#[tokio::test]
async fn what_is_asked_is_said_with_what_it_costs() {
    let place = Place::good().await;
    place
        .run(
            "create policy later on app.note for select to authenticated \
             using (body ~ 'b+')",
        )
        .await;
    let found = place.doctor(&["--table", "app.note"]).await;
    let asked = found.report["findings"].as_array().unwrap();
    let asked = asked
        .iter()
        .find(|one| one["code"] == "policy_asked")
        .expect("it is asked");
    let text = asked["text"].as_str().unwrap();
    assert!(
        text.contains("later (") && text.contains(" ms here"),
        "{text}"
    );
    assert_eq!(
        found.code, 1,
        "body is not in the identity: {:#}",
        found.report
    );
}

#[tokio::test]
async fn a_helper_whose_body_names_what_is_not_there_any_more_is_an_error() {
    let place = Place::good().await;
    place
        .run(
            "create table app.crew (org int primary key, user_id uuid);
             create function app.orgs() returns setof int language sql stable security definer
               set search_path = '' as 'select m.org from app.crew m where m.user_id = auth.uid()';
             create policy ours on app.note for select to authenticated
               using (id in (select app.orgs()));
             alter table app.crew rename column user_id to member_id",
        )
        .await;
    let found = place.doctor(&["--table", "app.note"]).await;
    let all = found.report["findings"].as_array().unwrap();
    let broken = all.iter().find(|one| one["code"] == "policy_broken");
    let text = broken.expect("it is found")["text"].as_str().unwrap();
    assert!(text.contains("m.user_id does not exist"), "{text}");
    assert_eq!(found.code, 2, "{:#}", found.report);
    place
        .run("alter table app.crew rename column member_id to user_id")
        .await;
    let found = place.doctor(&["--table", "app.note"]).await;
    assert!(!found.codes().contains(&"policy_broken"));
}

#[tokio::test]
async fn a_broken_helper_is_an_error_also_beside_a_condition_that_decides_before_it() {
    let place = Place::good().await;
    place
        .run(
            "create table app.crew (org int primary key, user_id uuid);
             create function app.fits(note app.note) returns bool language sql stable security definer
               set search_path = '' as 'select exists (select from app.crew m where m.user_id = auth.uid())';
             create policy ours on app.note for select to authenticated
               using (id is not null and app.fits(note));
             drop table app.crew",
        )
        .await;
    let found = place.doctor(&["--table", "app.note"]).await;
    let all = found.report["findings"].as_array().unwrap();
    let broken = all.iter().find(|one| one["code"] == "policy_broken");
    let text = broken.expect("it is found")["text"].as_str().unwrap();
    assert!(text.contains("app.crew"), "{text}");
    assert_eq!(found.code, 2, "{:#}", found.report);
}

#[tokio::test]
async fn a_login_that_may_not_connect_to_the_database_is_no_pooler() {
    let place = Place::good().await;
    place
        .run(
            "do $$ begin
               execute format('revoke connect on database %I from public', current_database());
             end $$",
        )
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["database_login"]);
    assert_eq!(found.code, 2, "{:#}", found.report);
}

#[tokio::test]
async fn a_setting_that_only_an_application_sets_is_named_with_who_reads_it() {
    let place = Place::good().await;
    place
        .run(
            "create function rules.org() returns bigint language sql stable
               as $$ select nullif(current_setting('App.Org', true), '')::bigint $$;
             alter policy mine on app.note using (id = rules.org());
             alter policy ours on app.plan using (team = current_setting('app.team', true)::bigint)",
        )
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["setting_unset"]);
    let findings = found.report["findings"].as_array().unwrap();
    let texts: Vec<(&str, &str)> = findings
        .iter()
        .map(|one| {
            (
                one["table"].as_str().unwrap(),
                one["text"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts.iter().any(|(table, text)| *table == "app.note"
        && text.contains("function org")
        && text.contains("the setting app.org,")));
    assert!(texts.iter().any(|(table, text)| *table == "app.plan"
        && text.contains("policy ours")
        && text.contains("the setting app.team,")));
    // What a version of PostgREST sets is nothing that the relay has, unless all claims are read too.
    place
        .run(
            "create function rules.old_uid() returns uuid language sql stable
               as $$ select nullif(current_setting('request.jwt.claim.sub', true), '')::uuid $$;
             alter policy mine on app.judged using (person = rules.old_uid())",
        )
        .await;
    let old = place.doctor(&["--table", "app.judged"]).await;
    old.is(&["setting_unset"]);
    assert!(old.text("setting_unset").contains("request.jwt.claim.sub"));
    place
        .run("alter policy mine on app.judged using (person = auth.uid())")
        .await;
    // As it advises, and where the setting is there for everybody.
    let claim = "nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'team'";
    place
        .run(&format!(
            "alter policy ours on app.plan using (team = ({claim})::bigint)"
        ))
        .await;
    place
        .run(
            "do $$ begin execute format('alter database %I set app.org = 7', current_database()); end $$",
        )
        .await;
    place.doctor(&[]).await.is_well();
}

/// With what every comparison turns out wrong.
#[cfg(feature = "mutants")]
#[tokio::test]
async fn a_policy_that_is_answered_otherwise_is_an_alarm() {
    let place = Place::good().await;
    let fault = &[("ROWCAST_MUTANT", "EqualFlipped")];
    let found = place.doctor_with(&["--table", "app.note"], fault).await;
    assert!(
        found.codes().contains(&"policy_check_failed"),
        "{:#}",
        found.report
    );
    place.doctor(&["--table", "app.note"]).await.is_well();
}

#[tokio::test]
async fn a_limit_that_leaves_no_room_for_what_policies_read_is_found() {
    let place = Place::good().await;
    place
        .run(
            "insert into app.member select n, gen_random_uuid() from generate_series(1, 5000) n;
             analyze app.member",
        )
        .await;
    let found = place
        .doctor_with(&[], &[("ROWCAST_MAX_LOOKUP_BYTES", "1MiB")])
        .await;
    found.is(&["lookup_too_large"]);
    let advice = found.report["findings"][0]["advice"].as_str().unwrap();
    let (_, enough) = advice.split_once('=').unwrap();
    let enough = enough.split(',').next().unwrap();
    place
        .doctor_with(&[], &[("ROWCAST_MAX_LOOKUP_BYTES", enough)])
        .await
        .is_well();
}

#[tokio::test]
async fn parts_of_a_table_whose_rows_are_in_no_stream_are_named() {
    let place = Place::good().await;
    place
        .run(
            "create unlogged table app.part_south partition of app.part for values in ('south');
             create table app.note_old () inherits (app.note)",
        )
        .await;
    let found = place.doctor(&[]).await;
    assert!(
        found.codes().contains(&"table_part_silent"),
        "{:#}",
        found.report
    );
    let texts = found.report.to_string();
    assert!(
        texts.contains("app.part_south") && texts.contains("app.note_old"),
        "{texts}"
    );
    place.mend(&found).await;
    let rest = place.doctor(&[]).await;
    place.mend(&rest).await;
    // What inherits may be meant so.
    let rest = place.doctor(&[]).await;
    rest.is(&["table_part_silent"]);
    assert_eq!(rest.code, 0, "{:#}", rest.report);
    place.delivers("part").await;
}

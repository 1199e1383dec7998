//! Rows of which PostgreSQL cannot be asked as a client would, or says something of others as well.

use std::io::Write as _;

use serde_json::Value;
use tempfile::NamedTempFile;

use super::{database, json, run};

fn row(url: &str, arguments: &[&str]) -> (Value, Option<i32>) {
    let output = run(url, &[arguments, &["--json"]].concat());
    (json(&output)["row"].clone(), output.status.code())
}

const AUTHENTICATED: &str = r#"{"role": "authenticated"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_a_table_that_inherits_is_not_taken_for_one_of_its_parents() {
    let (url, _sql) = database(
        "create table parent (id bigint primary key, open boolean);
         create table child () inherits (parent);
         create table split (id bigint primary key, open boolean) partition by range (id);
         create table part partition of split for values from (0) to (100);
         alter table parent enable row level security; alter table split enable row level security;
         grant select on parent, split to authenticated;
         create policy own on parent to authenticated using (open);
         create policy own on split to authenticated using (open);
         insert into parent values (1, false); insert into child values (1, true);
         insert into split values (1, true)",
    )
    .await;
    for (table, seen) in [("parent", false), ("split", true)] {
        let (row, code) = row(&url, &[table, "--claims", AUTHENTICATED, "--row", "1"]);
        assert_eq!(row["visible"], seen, "{row:#}");
        assert_eq!(row["differs"], false, "{row:#}");
        assert_eq!(code, Some(0), "{row:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_may_not_select_the_key_is_not_said_to_be_kept_out_by_a_policy() {
    let (url, _sql) = database(
        "create table t (id bigint primary key, open boolean); alter table t enable row level security;
         grant select (open) on t to authenticated;
         create policy own on t to authenticated using (open); insert into t values (1, true)",
    )
    .await;
    let (row, code) = row(&url, &["t", "--claims", AUTHENTICATED, "--row", "1"]);
    assert_eq!(row["postgresql"], "unknown", "{row:#}");
    assert_eq!(row["visible"], Value::Null, "{row:#}");
    let because = row["because"].as_str().unwrap();
    assert!(because.contains("may not SELECT id"), "{because}");
    assert_eq!(row["policies"][0]["relay"], "true", "{row:#}");
    assert_eq!(code, Some(0), "{row:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_longer_than_the_relay_waits_is_told_as_that_and_not_as_an_error() {
    let (url, _sql) = database(
        "create table t (id bigint primary key); alter table t enable row level security;
         grant select on t to authenticated; insert into t values (1);
         create policy slow on t to authenticated using (pg_sleep(5) is not null)",
    )
    .await;
    let arguments = [
        "--claims",
        AUTHENTICATED,
        "--row",
        "1",
        "--ask-timeout",
        "200ms",
    ];
    let arguments = [&["t"][..], &arguments].concat();
    let (row, code) = row(&url, &arguments);
    assert_eq!(row["postgresql"], "unknown", "{row:#}");
    let because = row["because"].as_str().unwrap();
    assert!(because.contains("200 ms"), "{because}");
    assert_eq!(code, Some(0), "{row:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_raises_an_error_is_named() {
    let (url, _sql) = database(
        "create table t (id bigint primary key); grant select on t to authenticated; insert into t values (1)",
    )
    .await;
    let mut file = NamedTempFile::with_suffix(".toml").unwrap();
    let rule = "[[rule]]\ntable = \"public.t\"\nusing = \"10 / (id - 1) > 0\"\n";
    file.write_all(rule.as_bytes()).unwrap();
    let config = file.path().to_str().unwrap();
    let arguments = [
        "t",
        "--config",
        config,
        "--claims",
        AUTHENTICATED,
        "--row",
        "1",
    ];
    let (row, code) = row(&url, &arguments);
    assert_eq!(row["visible"], false, "{row:#}");
    assert_eq!(row["decided_by"].as_array().unwrap().len(), 1, "{row:#}");
    let because = row["because"].as_str().unwrap();
    assert!(because.contains("raise an error"), "{because}");
    assert_eq!(code, Some(0), "{row:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_not_there_is_a_wrong_argument() {
    let (url, _sql) = database("create table t (id bigint primary key)").await;
    let output = run(&url, &["t", "--role", "authentikated"]);
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("There is no role authentikated"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn which_policy_lets_a_row_through_is_told_to_a_login_that_does_not_read_it_without_its_values()
 {
    let (url, _sql) = database(
        "create table t (id bigint primary key, owner uuid, open boolean, note text);
         alter table t enable row level security; grant select on t to authenticated;
         create policy mine on t to authenticated using (owner = auth.uid());
         create policy \"open ones\" on t to authenticated using (open);
         create policy few on t as restrictive to authenticated using (id < 10);
         insert into t values (1, '00000000-0000-4000-8000-000000000001', false, 'HIDDEN'), (2, null, true, 'HIDDEN');
         do $$ begin create role explain_blind login; exception when duplicate_object or unique_violation then null; end $$;
         grant authenticated to explain_blind",
    )
    .await;
    let blind = url.replacen("postgres@", "explain_blind@", 1);
    let claims = r#"{"role": "authenticated", "sub": "00000000-0000-4000-8000-000000000001"}"#;
    for (id, by) in [("1", "mine"), ("2", "open ones")] {
        let (row, code) = row(&blind, &["t", "--claims", claims, "--row", id]);
        assert_eq!(row["visible"], true, "{row:#}");
        assert_eq!(row["decided_by"], serde_json::json!([by]), "{row:#}");
        assert!(!row.to_string().contains("HIDDEN"), "{row:#}");
        assert_eq!(code, Some(0), "{row:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_role_that_the_login_may_not_become_what_is_compiled_is_told_and_no_error() {
    let (url, sql) = database(
        "create table t (id bigint primary key, open boolean, kind text);
         alter table t enable row level security; grant select on t to authenticated;
         create policy own on t to authenticated using (open);
         create policy narrow on t as restrictive to authenticated using (kind <> 'hidden');
         insert into t values (1, true, 'a'), (2, false, 'a'), (3, true, 'hidden')",
    )
    .await;
    // All tests here have one cluster.
    sql.batch_execute(
        "create role explain_outsider login bypassrls; grant pg_read_all_data to explain_outsider",
    )
    .await
    .unwrap();
    let as_login = url.replace("postgres@", "explain_outsider@");
    for (key, visible, decided_by) in [
        ("1", Value::Bool(true), &["own"][..]),
        ("2", Value::Bool(false), &[]),
        ("3", Value::Bool(false), &["narrow"]),
    ] {
        let arguments = ["t", "--claims", AUTHENTICATED, "--row", key];
        let (row, code) = row(&as_login, &arguments);
        assert_eq!(row["visible"], visible, "{row:#}");
        assert_eq!(row["postgresql"], "unknown", "{row:#}");
        let said = row["postgresql_says"].as_str().unwrap();
        assert!(said.contains("may not become authenticated"), "{row:#}");
        assert_eq!(row["decided_by"], serde_json::json!(decided_by), "{row:#}");
        let policies = row["policies"].as_array().unwrap();
        assert!(
            policies.iter().all(|one| one["postgresql"] == "unknown"),
            "{row:#}"
        );
        assert_eq!(code, Some(0), "{row:#}");
    }
}

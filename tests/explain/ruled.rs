//! Rows of tables that rules hold for, tables without what is required, and errors that quote values.

use std::io::Write as _;

use serde_json::Value;
use tempfile::NamedTempFile;

use super::{database, json, run};

fn settings(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::with_suffix(".toml").unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn row(url: &str, arguments: &[&str]) -> (Value, Option<i32>) {
    let mut all = arguments.to_vec();
    all.push("--json");
    let output = run(url, &all);
    (json(&output)["row"].clone(), output.status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_a_table_without_row_level_security_decide_and_are_no_alarm() {
    let (url, _sql) = database(
        "create table jobs (id bigint primary key, business_id bigint);
         grant select on jobs to authenticated; insert into jobs values (1, 1), (2, 2)",
    )
    .await;
    let file = settings(
        "[[rule]]\ntable = \"public.jobs\"\nusing = \"business_id = (auth.jwt() ->> 'businessId')::bigint\"\n\
         roles = [\"authenticated\"]\n[[rule]]\ntable = \"public.jobs\"\nusing = \"id < 10\"\n",
    );
    let config = file.path().to_str().unwrap();
    for (id, seen) in [("1", true), ("2", false)] {
        let claims = r#"{"role": "authenticated", "businessId": "1"}"#;
        let arguments = ["jobs", "--config", config, "--claims", claims, "--row", id];
        let (row, code) = row(&url, &arguments);
        assert_eq!(row["visible"], seen, "{row:#}");
        assert_eq!(row["differs"], false, "{row:#}");
        assert_eq!(code, Some(0), "{row:#}");
        let decided = row["decided_by"].as_array().unwrap().len();
        assert_eq!(decided, if seen { 2 } else { 1 }, "{row:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_what_is_required_shows_nothing() {
    let (url, _sql) = database(
        "create table jobs (id bigint primary key); grant select on jobs to authenticated;
         insert into jobs values (1)",
    )
    .await;
    for required in ["rls", "rls or rule"] {
        let file = settings(&format!("require = \"{required}\"\n"));
        let config = file.path().to_str().unwrap();
        let arguments = ["jobs", "--config", config, "--role", "authenticated"];
        let mut report = arguments.to_vec();
        report.push("--json");
        let role = &json(&run(&url, &report))["tables"][0]["roles"][0];
        assert_eq!(role["sees"], "nothing", "{role:#}");
        assert!(
            role["reason"].as_str().unwrap().contains("requires"),
            "{role:#}"
        );
        let mut of_row = arguments.to_vec();
        of_row.extend(["--row", "1"]);
        let (row, code) = row(&url, &of_row);
        assert_eq!((&row["visible"], code), (&false.into(), Some(0)), "{row:#}");
        assert!(
            row["because"].as_str().unwrap().contains("requires"),
            "{row:#}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_quotes_a_value_is_not_shown_to_a_login_that_may_not_read_it() {
    let (url, _sql) = database(
        "create table leak (id bigint primary key, secret text); create table looked (id bigint, v text);
         alter table leak enable row level security; grant select on leak, looked to authenticated;
         create policy own on leak using (secret::int = 1 or exists
           (select from looked l where l.id = leak.id and l.v::int = 1));
         insert into leak values (1, 'TOPSECRET'), (2, '7'); insert into looked values (2, 'LOOKUPSECRET');
         do $$ begin create role explain_viewer login noinherit; exception when duplicate_object or unique_violation then null; end $$;
         grant authenticated to explain_viewer; grant usage on schema auth to explain_viewer; grant select (id) on leak to explain_viewer",
    )
    .await;
    let viewer = url.replacen("postgres@", "explain_viewer@", 1);
    for (id, secret) in [("1", "TOPSECRET"), ("2", "LOOKUPSECRET")] {
        let arguments = [
            "leak",
            "--claims",
            r#"{"role": "authenticated"}"#,
            "--row",
            id,
        ];
        let (shown, _) = row(&viewer, &arguments);
        assert_eq!(shown["postgresql"], "error", "{shown:#}");
        assert_eq!(shown["postgresql_says"], "SQLSTATE 22P02", "{shown:#}");
        assert!(!shown.to_string().contains(secret), "{shown:#}");
        // Who may read everything is told.
        let (shown, _) = row(&url, &arguments);
        let said = shown["postgresql_says"].as_str().unwrap();
        assert!(said.contains(secret), "{shown:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_raises_an_error_for_the_login_itself_keeps_nothing_from_being_explained() {
    let (url, _sql) = database(
        "create table own (id bigint primary key, owner uuid, t text); create table seen (id bigint, owner uuid);
         alter table own enable row level security; alter table seen enable row level security;
         grant select on own, seen to authenticated;
         create policy number on own to anon using (t::int = 5);
         create policy mine on own to authenticated using
           (owner = (current_setting('request.jwt.claims')::json ->> 'sub')::uuid
            and exists (select from seen s where s.id = own.id));
         create policy mine on seen to authenticated using
           (owner = (current_setting('request.jwt.claims')::json ->> 'sub')::uuid);
         insert into own values (1, '00000000-0000-4000-8000-000000000001', 'HIDDEN');
         insert into seen values (1, '00000000-0000-4000-8000-000000000001');
         do $$ begin create role explain_heir login; exception when duplicate_object or unique_violation then null; end $$;
         grant authenticated, anon to explain_heir; grant usage on schema auth to explain_heir",
    )
    .await;
    let heir = url.replacen("postgres@", "explain_heir@", 1);
    let claims = r#"{"role": "authenticated", "sub": "00000000-0000-4000-8000-000000000001"}"#;
    for (claims, said) in [(claims, "visible"), (r#"{"role": "anon"}"#, "error")] {
        let (row, code) = row(&heir, &["own", "--claims", claims, "--row", "1"]);
        assert_eq!(row["postgresql"], said, "{row:#}");
        assert_eq!(row["readable"], false, "{row:#}");
        assert!(!row.to_string().contains("HIDDEN"), "{row:#}");
        assert_eq!(code, Some(0), "{row:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_only_checks_what_is_written_shows_no_row_and_is_no_alarm() {
    let (url, _sql) = database(
        "create table checked (id bigint primary key, u uuid); alter table checked enable row level security;
         grant select on checked to authenticated;
         create policy manage on checked for all to authenticated with check (u = auth.uid());
         insert into checked values (1, '00000000-0000-4000-8000-000000000001')",
    )
    .await;
    let claims = r#"{"role": "authenticated", "sub": "00000000-0000-4000-8000-000000000001"}"#;
    let (row, code) = row(&url, &["checked", "--claims", claims, "--row", "1"]);
    assert_eq!(row["visible"], false, "{row:#}");
    assert_eq!(row["policies"][0]["postgresql"], "not true", "{row:#}");
    assert_eq!(code, Some(0), "{row:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_relay_shows_beside_an_error_is_not_said_to_be_hidden() {
    let (url, _sql) = database(
        "create table t (id bigint primary key); alter table t enable row level security;
         grant select on t to authenticated; insert into t values (1);
         create policy own on t using (id = (auth.jwt() ->> 'own')::bigint or (auth.jwt() ->> 'staff') = 'yes')",
    )
    .await;
    for (staff, seen) in [("yes", true), ("no", false)] {
        let claims = format!(r#"{{"role": "authenticated", "own": "none", "staff": "{staff}"}}"#);
        let (row, code) = row(&url, &["t", "--claims", &claims, "--row", "1"]);
        assert_eq!(row["postgresql"], "error", "{row:#}");
        assert_eq!(row["visible"], seen, "{row:#}");
        assert_eq!(
            row["decided_by"].as_array().unwrap().len(),
            usize::from(seen)
        );
        let because = row["because"].as_str().unwrap();
        assert!(because.contains("PostgreSQL raises"), "{because}");
        assert_eq!(code, Some(0), "{row:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_undecided_of_a_row_is_named_and_not_numbered() {
    let (url, _sql) = database(
        "create table t (id bigint primary key); create table m (v bigint); alter table t enable row level security;
         grant select on t, m to authenticated; insert into t values (1); insert into m values (2);
         create policy own on t using ((select sum(v) from m) > id)",
    )
    .await;
    let claims = r#"{"role": "authenticated"}"#;
    let (row, _) = row(&url, &["t", "--claims", claims, "--row", "1"]);
    let own = &row["policies"][0];
    assert_eq!(own["relay"], "undecided", "{row:#}");
    let because = own["undecided_because"].as_str().unwrap();
    assert!(because.contains("sum"), "{because}");
    assert!(!because.contains("aggregate 2"), "{because}");
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_only_an_asked_part_reads_are_named() {
    let (url, _sql) = database(
        "create table t (id bigint primary key, owner uuid); alter table t enable row level security;
         grant select on t to authenticated;
         create function looping(id bigint) returns boolean language plpgsql stable as $$
           begin for i in 1..2 loop if i = id then return auth.uid() is not null; end if; end loop;
           return current_setting('request.jwt.claim.team', true) = 'x'; end $$;
         create policy part on t using (looping(id) and id < 5);
         create policy whole on t using ((auth.jwt() #>> array['a', id::text]) is not null);
         create policy none on t using (id = any (array(select generate_series(1, 3))))",
    )
    .await;
    let report = json(&run(&url, &["t", "--json"]));
    for (name, status, claims) in [
        ("part", "hybrid", &["sub", "team"][..]),
        ("whole", "asked", &["*"]),
        ("none", "asked", &[]),
    ] {
        let policy = super::policy(&report, name);
        assert_eq!(policy["status"], status, "{policy:#}");
        let named = policy["claims"].as_array().unwrap().iter();
        let named: Vec<&str> = named.map(|claim| claim.as_str().unwrap()).collect();
        assert_eq!(named, claims, "{policy:#}");
        assert_eq!(policy["audience"], "scan", "{policy:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_to_raise_an_error_is_named() {
    let (url, _sql) = database(
        "create table members (org bigint, person uuid, primary key (org, person));
         create function is_member(o bigint) returns boolean language sql stable as
           $$ select exists (select from members m where m.org = o and m.person = auth.uid()) $$;
         create policy own on members for select to authenticated using (is_member(org));
         alter table members enable row level security;
         create table papers (id bigint primary key, org bigint);
         create policy ours on papers for select to authenticated
           using (org = current_setting('papers.org')::bigint);
         create policy theirs on papers for select to authenticated using (id = 1);
         alter table papers enable row level security;
         grant select on members, papers to authenticated",
    )
    .await;
    for (table, policy, reason) in [
        ("members", "own", "function is_member calls itself"),
        ("papers", "ours", "setting papers.org is not set"),
        ("papers", "theirs", ""),
    ] {
        let report = json(&run(&url, &[table, "--role", "authenticated", "--json"]));
        let policies = report["tables"][0]["policies"].as_array().unwrap();
        let one = policies.iter().find(|one| one["name"] == policy).unwrap();
        let raises = one["raises"].as_array().unwrap();
        let told = raises.iter().filter_map(Value::as_str);
        let named = |text: &str| !reason.is_empty() && text.starts_with(reason);
        assert!(told.clone().all(named), "{policy}: {raises:?}");
        assert_eq!(told.count(), usize::from(!reason.is_empty()), "{policy}");
        assert_eq!(one["status"], "native", "{one:#}");
    }
    let output = run(&url, &["members", "--role", "authenticated"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("raises an error in PostgreSQL"), "{text}");
}

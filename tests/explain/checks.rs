//! What is compiled is held against PostgreSQL, and a row against tables that policies look into.

use serde_json::{Value, json};

use crate::{ODD, database, json, policy, run, run_with};

const ANN: &str = "00000000-0000-4000-8000-00000000000a";

fn odd(more: &str) -> String {
    format!("create table secret_lookup (id bigint); {ODD} {more}")
}

fn filled() -> String {
    odd(&format!(
        "drop policy mfa on docs;
         insert into members values (7, '{ANN}', 'owner'), (8, '{ANN}', 'guest');
         insert into docs values (1, 1, '{ANN}', 'own'), (2, 7, null, 'by membership'), (3, 3, null, 'x')"
    ))
}

fn claims() -> String {
    json!({ "sub": ANN, "role": "authenticated" }).to_string()
}

fn of<'r>(row: &'r Value, name: &str) -> &'r Value {
    let policies = row["policies"].as_array().unwrap();
    let found = policies.iter().find(|one| one["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {row}"))
}

#[cfg(not(feature = "mutants"))]
#[tokio::test(flavor = "multi_thread")]
async fn every_policy_of_which_something_is_compiled_is_checked_and_by_how_much_is_said() {
    let (url, sql) = database(&odd("")).await;
    let output = run(&url, &["--all", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = json(&output);
    for (name, whether) in [
        ("own", true),
        ("member", true),
        ("mixed", true),
        ("mfa", true),
        ("it's \"odd\"", true),
        ("loud", false),
        ("looped", false),
    ] {
        let policy = policy(&report, name);
        assert_eq!(policy["checked"]["agrees"] == true, whether, "{policy}");
        if whether {
            let rows = policy["checked"]["rows"].as_u64().unwrap();
            let verdicts = policy["checked"]["verdicts"].as_u64().unwrap();
            assert!(rows >= 3 && verdicts >= 2 * rows, "{policy}");
        }
    }
    let text = run(&url, &["docs"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("checked against PostgreSQL: "), "{text}");
    let off = [("ROWCAST_POLICY_CHECK", "off")];
    let report = json(&run_with(&url, &["--all", "--json"], &off));
    assert_eq!(policy(&report, "own")["checked"], Value::Null);

    // A lookup that is too large to copy is said.
    sql.batch_execute(
        "insert into members select n, gen_random_uuid() from generate_series(1, 10001) n",
    )
    .await
    .unwrap();
    let report = json(&run(&url, &["docs", "--json"]));
    let member = policy(&report, "member");
    assert_eq!(member["status"], "native", "{member}");
    let reason = member["not_checked"].as_str().unwrap();
    assert!(
        reason.contains("members\" has more than 10000 rows"),
        "{reason}"
    );
    assert_eq!(policy(&report, "own")["checked"]["agrees"], true);
}

#[cfg(not(feature = "mutants"))]
#[tokio::test(flavor = "multi_thread")]
async fn a_row_is_judged_by_the_tables_that_policies_look_into_and_their_rows_are_named() {
    let (url, sql) = database(&filled()).await;
    let explain = |url: &str, row: &str| {
        let claims = claims();
        let arguments = ["public.docs", "--claims", &claims, "--row", row, "--json"];
        let output = run(url, &arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        json(&output)["row"].clone()
    };
    let row = explain(&url, r#"{"id": 2, "org": 7}"#);
    assert_eq!(
        (&row["visible"], &row["differs"]),
        (&json!(true), &json!(false))
    );
    let member = of(&row, "member");
    assert_eq!(
        (&member["relay"], &member["postgresql"]),
        (&json!("true"), &json!("true"))
    );
    assert_eq!(
        member["lookups"],
        json!([{ "table": "\"public\".\"members\"", "values": { "org": "7", "user_id": ANN } }]),
        "the row that decides, and no other"
    );
    let row = explain(&url, r#"{"id": 3, "org": 3}"#);
    let member = of(&row, "member");
    assert_eq!(member["relay"], "false", "{row}");
    assert_eq!(member["lookups"], json!([]), "no row decides that");
    let text = run(
        &url,
        &[
            "docs",
            "--claims",
            &claims(),
            "--row",
            r#"{"id": 2, "org": 7}"#,
        ],
    );
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.contains("by a row of \"public\".\"members\": org = \"7\""),
        "{text}"
    );

    // Who may not read the lookup sees nothing of it.
    sql.batch_execute(
        "do $$ begin create role explain_narrow login noinherit; exception when duplicate_object or unique_violation then null; end $$;
         grant authenticated to explain_narrow; grant select on docs to explain_narrow; grant usage on schema auth to explain_narrow;
         create policy narrow on docs for select to explain_narrow using (true)",
    )
    .await
    .unwrap();
    let narrow = url.replacen("postgres@", "explain_narrow@", 1);
    let row = explain(&narrow, r#"{"id": 2, "org": 7}"#);
    assert_eq!(row["readable"], true, "{row}");
    let member = of(&row, "member");
    assert_eq!(
        (&member["relay"], &member["postgresql"]),
        (&json!("undecided"), &json!("true"))
    );
    let because = member["undecided_because"].as_str().unwrap();
    assert!(
        because.contains("may not read all of \"public\".\"members\""),
        "{because}"
    );
    assert_eq!(member["lookups"], json!([]));
}

/// With what every comparison turns out wrong.
#[cfg(feature = "mutants")]
#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_that_is_not_postgresqls_is_an_alarm() {
    let (url, _sql) = database(&filled()).await;
    let claims = claims();
    let arguments = [
        "docs",
        "--claims",
        &claims,
        "--row",
        r#"{"id": 1, "org": 1}"#,
    ];
    let fault = ("ROWCAST_MUTANT", "EqualFlipped");
    let mut as_json = arguments.to_vec();
    as_json.push("--json");

    // Unchecked, the row shows it.
    let off = ("ROWCAST_POLICY_CHECK", "off");
    let output = run_with(&url, &as_json, &[fault, off]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = json(&output);
    assert_eq!(report["row"]["differs"], true, "{report}");
    let own = of(&report["row"], "own");
    assert_eq!(
        (&own["relay"], &own["postgresql"]),
        (&json!("false"), &json!("true"))
    );
    let text = run_with(&url, &arguments, &[fault, off]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.contains("ALARM: the relay decides a policy otherwise"),
        "{text}"
    );

    // Checked, the policy is refused before any row is judged by it.
    let output = run_with(&url, &as_json, &[fault]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = json(&output);
    let own = policy(&report, "own");
    assert_eq!(own["status"], "asked", "{own}");
    assert_eq!(own["checked"]["agrees"], false, "{own}");
    assert!(
        own["reasons"][0].as_str().unwrap().contains("check failed"),
        "{own}"
    );
    assert_eq!(of(&report["row"], "own")["relay"], "undecided");
    assert_eq!(report["row"]["visible"], true, "{report}");
    let text = run_with(&url, &["docs"], &[fault]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.contains("ALARM: what is compiled answers otherwise"),
        "{text}"
    );

    let output = run(&url, &as_json);
    assert_eq!(output.status.code(), Some(0), "without a fault: {output:?}");
}

#[cfg(not(feature = "mutants"))]
mod standby {
    use std::fs;
    use std::process::Command;
    use std::time::Duration;

    use rowcast::pg::throwaway::{Options, Throwaway};
    use tokio::time::{Instant, sleep};
    use tokio_postgres::NoTls;

    use super::*;

    async fn connect(url: &str) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        tokio::spawn(async move {
            // The test fails where the connection is used.
            let _ended = connection.await;
        });
        client
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn policies_are_explained_checked_and_asked_on_a_standby() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        let hba = vec!["host replication postgres 127.0.0.1/32 trust".to_owned()];
        let mut primary = Throwaway::start(Options {
            directory: Some(first.clone()),
            hba: hba.clone(),
            ..Options::default()
        })
        .await
        .unwrap();
        let url = primary.fresh_database().await.unwrap();
        let sql = connect(&url).await;
        for one in [include_str!("../../sql/auth.sql"), &filled()] {
            sql.batch_execute(one).await.unwrap();
        }
        let name: String = sql
            .query_one("select current_database()::text", &[])
            .await
            .unwrap()
            .get(0);
        primary.stop_server().await;
        let copied = Command::new("cp")
            .arg("-a")
            .args([&first, &second])
            .status();
        assert!(copied.unwrap().success());
        fs::write(second.join("data").join("standby.signal"), "").unwrap();
        primary.start_server().await.unwrap();
        let standby = Throwaway::start(Options {
            directory: Some(second),
            settings: vec![format!(
                "primary_conninfo = 'host=127.0.0.1 port={} user=postgres dbname={name}'",
                primary.port()
            )],
            hba,
            ..Options::default()
        })
        .await
        .unwrap();
        let sql = connect(&primary.url(&name)).await;
        sql.batch_execute("insert into docs values (9, 8, null, 'late')")
            .await
            .unwrap();
        let reader = connect(&standby.url(&name)).await;
        let deadline = Instant::now() + Duration::from_secs(60);
        while reader
            .query("select from docs where id = 9", &[])
            .await
            .unwrap()
            .is_empty()
        {
            assert!(Instant::now() < deadline, "the standby does not follow");
            sleep(Duration::from_millis(50)).await;
        }
        let claims = claims();
        let row = r#"{"id": 9, "org": 8}"#;
        let arguments = ["docs", "--claims", &claims, "--row", row, "--json"];
        let output = run(&standby.url(&name), &arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let report = json(&output);
        assert_eq!(report["server"]["standby"], true);
        // What calls auth.uid() is asked there, the others are not.
        let mixed = policy(&report, "mixed");
        assert_eq!(mixed["status"], "hybrid", "{mixed}");
        assert_eq!(mixed["checked"]["agrees"], true, "{mixed}");
        assert_eq!(report["row"]["visible"], true, "{report}");
        assert_eq!(report["row"]["decided_by"], json!(["member"]));
        assert_eq!(of(&report["row"], "mixed")["relay"], "false");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_do_not_steer_the_terminal_of_who_has_them_explained() {
    let (url, _sql) = database(
        "create table \"a\nfake\" (id bigint primary key, \"c\u{1b}[2J\" int);
         alter table \"a\nfake\" enable row level security;
         grant select on \"a\nfake\" to authenticated;
         create policy \"p\u{1b}[31m\" on \"a\nfake\" for select to authenticated using (\"c\u{1b}[2J\" > 1)",
    )
    .await;
    let text = run(&url, &["--all"]);
    assert_eq!(text.status.code(), Some(0), "{text:?}");
    let text = String::from_utf8(text.stdout).unwrap();
    let steers = |c: char| c.is_control() && c != '\n';
    assert!(!text.contains(steers), "{text:?}");
    assert!(!text.lines().any(|line| line.starts_with("fake")), "{text}");
    assert!(text.contains("\\u001b[31m"), "{text}");
    let text = run(&url, &["\u{1b}[2Jnone"]);
    let text = String::from_utf8(text.stderr).unwrap();
    assert!(!text.contains(steers), "{text:?}");
}

//! `rowcast explain`, run as a command against schemas as people have them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod checks;

mod rows;

mod ruled;

use std::process::{Command, Output};

use rowcast::pg::throwaway::{Options, Throwaway};
use serde_json::Value;
use tokio::sync::OnceCell;
use tokio_postgres::NoTls;

static CLUSTER: OnceCell<Throwaway> = OnceCell::const_new();

async fn database(schema: &str) -> (String, tokio_postgres::Client) {
    let cluster = CLUSTER
        .get_or_init(|| async {
            Throwaway::start(Options::default())
                .await
                .expect("a cluster")
        })
        .await;
    let url = cluster.fresh_database().await.expect("a database");
    let (client, connection) = tokio_postgres::connect(&url, NoTls)
        .await
        .expect("a connection");
    tokio::spawn(async move {
        // The test fails where the connection is used.
        let _ended = connection.await;
    });
    client
        .batch_execute(include_str!("../../sql/auth.sql"))
        .await
        .expect("auth.sql");
    client.batch_execute(schema).await.expect("the schema");
    (url, client)
}

fn run(url: &str, arguments: &[&str]) -> Output {
    run_with(url, arguments, &[])
}

fn run_with(url: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_rowcast"))
        .arg("explain")
        .args(arguments)
        .current_dir(directory.path())
        .env_clear()
        .env("DATABASE_URL", url)
        .envs(environment.iter().copied())
        .output()
        .expect("the command")
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr)))
}

fn policy<'r>(report: &'r Value, name: &str) -> &'r Value {
    let tables = report["tables"].as_array().unwrap();
    let mut policies = tables
        .iter()
        .flat_map(|table| table["policies"].as_array().unwrap());
    policies
        .find(|policy| policy["name"] == name)
        .unwrap_or_else(|| panic!("no {name}"))
}

const ODD: &str = r#"
    create schema "Odd ""schema"; create type "Mood" as enum ('ok', 'it''s');
    create table "Odd ""schema"."a.b" ("Id ""x" bigint primary key, "Mood" "Mood", gone int, tags text[], owner uuid);
    alter table "Odd ""schema"."a.b" drop column gone;
    alter table "Odd ""schema"."a.b" enable row level security;
    create policy "it's ""odd""" on "Odd ""schema"."a.b" using ("Mood" = 'it''s');
    create policy "array" on "Odd ""schema"."a.b" using (tags @> array[auth.uid()::text]);
    create policy "write only" on "Odd ""schema"."a.b" for insert with check (true);
    grant usage on schema "Odd ""schema" to authenticated; grant select on "Odd ""schema"."a.b" to authenticated;

    create table members (org bigint, user_id uuid, role text, primary key (org, user_id));
    create table orgs (id bigint primary key, plan text);
    grant select on members, orgs to authenticated;
    create view open_orgs as select id from orgs where plan = 'open';
    grant select on open_orgs to authenticated;
    create function is_loud(org bigint) returns boolean language plpgsql stable as $$
      begin for i in 1..2 loop if i = org then return true; end if; end loop; return false; end $$;

    create table docs (id bigint, org bigint, owner uuid, title text, primary key (id, org)) partition by range (id);
    create table docs_low partition of docs for values from (0) to (1000);
    alter table docs enable row level security;
    create policy own on docs using (owner = auth.uid());
    create policy member on docs using (exists (select from members m where m.org = docs.org and m.user_id = auth.uid()));
    create policy loud on docs using (is_loud(org));
    create policy mixed on docs using (title = 'x' and is_loud(org));
    create policy viewed on docs using (exists (select from open_orgs o where o.id = docs.org));
    create policy mfa on docs as restrictive using (auth.jwt() ->> 'aal' = 'aal2');
    grant select on docs to authenticated;

    create table looped (id bigint primary key);
    alter table looped enable row level security;
    create policy looped on looped using (exists (select from looped l where l.id = looped.id));
    grant select on looped to authenticated;
    create table inert (id bigint primary key);
    create policy inert on inert using (id > 0);
    create table hidden (id bigint primary key);
    alter table hidden enable row level security;
    create policy lookup on hidden using (exists (select from secret_lookup s where s.id = hidden.id));
"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_policy_of_an_odd_schema_without_a_publication_is_explained() {
    let schema = format!("create table secret_lookup (id bigint); {ODD}");
    let (url, _sql) = database(&schema).await;
    let output = run(&url, &["--all", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = json(&output);
    assert_eq!(report["version"], 1);
    assert_eq!(report["server"]["publication"], Value::Null);
    assert!(
        report["notes"][0]
            .as_str()
            .unwrap()
            .contains("no publication")
    );
    let totals = &report["totals"];
    let count = |name: &str| totals[name].as_u64().unwrap();
    assert_eq!(count("policies"), 11);
    let parts: u64 = ["native", "hybrid", "asked", "deny"]
        .map(count)
        .iter()
        .sum();
    assert_eq!(parts, 11, "each is one of them");
    let levels = totals["levels"].as_object().unwrap().values();
    assert_eq!(levels.map(|count| count.as_u64().unwrap()).sum::<u64>(), 11);
    for (name, status, level) in [
        ("it's \"odd\"", "native", Some("A")),
        ("own", "native", Some("A")),
        ("member", "native", Some("B")),
        ("loud", "asked", None),
        ("mixed", "hybrid", None),
        ("viewed", "native", Some("B")),
        ("mfa", "native", Some("A")),
        ("looped", "deny", Some("B")),
        ("inert", "native", Some("A")),
        ("lookup", "deny", Some("B")),
    ] {
        let policy = policy(&report, name);
        assert_eq!(policy["status"], status, "{policy}");
        assert_eq!(policy["level"].as_str(), level, "{policy}");
        let reasons = policy["reasons"].as_array().unwrap();
        assert_eq!(reasons.is_empty(), status == "native", "{policy}");
    }
    assert!(
        policy(&report, "looped")["reasons"][0]
            .as_str()
            .unwrap()
            .contains("infinite recursion")
    );
    assert!(
        policy(&report, "lookup")["reasons"][0]
            .as_str()
            .unwrap()
            .contains("permission denied")
    );
    let own = policy(&report, "own");
    assert_eq!(own["claims"], serde_json::json!(["sub"]));
    assert_eq!(own["columns"], serde_json::json!(["owner"]));
    assert_eq!(own["audience"], "index");
    assert_eq!(policy(&report, "it's \"odd\"")["audience"], "row");
    assert_eq!(policy(&report, "loud")["audience"], "scan");
    let member = policy(&report, "member");
    assert_eq!(member["lookups"][0]["table"], "\"public\".\"members\"");
    assert_eq!(
        member["lookups"][0]["columns"],
        serde_json::json!(["org", "user_id"])
    );
    assert_eq!(policy(&report, "mfa")["permissive"], false);
    let inert = report["tables"]
        .as_array()
        .unwrap()
        .iter()
        .find(|table| table["table"] == "inert");
    assert_eq!(inert.unwrap()["row_security"], false);
    let text = run(&url, &["--all"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for expected in [
        "its policies are without effect",
        "restrictive policy mfa",
        "mirrors",
        "11 policies",
    ] {
        assert!(text.contains(expected), "{expected} is missing in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_is_seen_or_not_by_which_policy_and_by_which_values() {
    let ann = "00000000-0000-4000-8000-00000000000a";
    let schema = format!(
        "create table secret_lookup (id bigint); {ODD}
         drop policy mfa on docs;
         insert into members values (7, '{ann}', 'owner');
         insert into docs values (1, 1, '{ann}', 'own'), (2, 7, null, 'by membership'), (3, 3, null, 'x'), (4, 2, null, 'x')"
    );
    let (url, sql) = database(&schema).await;
    let claims = format!("{{\"sub\": \"{ann}\", \"role\": \"authenticated\"}}");
    let explain = |row: &str| {
        let output = run(&url, &["docs", "--claims", &claims, "--row", row, "--json"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        json(&output)["row"].clone()
    };
    for (key, visible, decided) in [
        ("{\"id\": 1, \"org\": 1}", true, vec!["loud", "own"]),
        ("{\"id\": 2, \"org\": 7}", true, vec!["member"]),
        ("{\"id\": 3, \"org\": 3}", false, vec![]),
        ("{\"id\": 4, \"org\": 2}", true, vec!["loud", "mixed"]),
    ] {
        let row = explain(key);
        assert_eq!(row["visible"], visible, "{row}");
        assert_eq!(
            row["postgresql"],
            if visible { "visible" } else { "hidden" }
        );
        assert_eq!(row["decided_by"], serde_json::json!(decided), "{row}");
        assert_eq!(row["differs"], false);
    }
    let row = explain("{\"id\": 1, \"org\": 1}");
    let own = row["policies"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["name"] == "own")
        .unwrap();
    assert_eq!(
        (&own["postgresql"], &own["relay"]),
        (&"true".into(), &"true".into())
    );
    assert_eq!(own["values"]["owner"], ann);

    // A login that may become the role and not read the table gets a verdict, and no values. From
    // PostgreSQL 16 on it is the grant that keeps whether rights are inherited.
    sql.batch_execute(
        "do $$ begin create role explain_weak login; exception when duplicate_object or unique_violation then null; end $$;
         alter role explain_weak noinherit; grant authenticated to explain_weak; revoke select on docs from public",
    )
    .await
    .unwrap();
    let weak = url.replacen("postgres://", "postgres://explain_weak@", 1);
    let weak = if weak.matches('@').count() > 1 {
        let (_, rest) = url.split_once("://").unwrap();
        let (_, host) = rest.split_once('@').unwrap();
        format!("postgres://explain_weak@{host}")
    } else {
        weak
    };
    let output = run(
        &weak,
        &[
            "public.docs",
            "--claims",
            &claims,
            "--row",
            "{\"id\": 1, \"org\": 1}",
            "--json",
        ],
    );
    let row = json(&output)["row"].clone();
    assert_eq!(row["readable"], false, "{row}");
    assert_eq!(row["visible"], true, "{row}");
    assert!(!row.to_string().contains(ann), "{row}");
}

/// A token for a user, as `rowcast token` makes one.
fn token(sub: &str, secret: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_rowcast"))
        .args(["token", "--sub", sub])
        .env_clear()
        .env("JWT_SECRET", secret)
        .output()
        .expect("the command");
    let token = String::from_utf8(output.stdout).expect("text");
    token.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_explained_as_its_claims_are_and_one_that_the_relay_would_refuse_is_not() {
    let (ann, ben) = (
        "00000000-0000-4000-8000-00000000000a",
        "00000000-0000-4000-8000-00000000000b",
    );
    let (url, _sql) = database(&format!(
        "create table notes (id int primary key, owner uuid);
         alter table notes enable row level security;
         create policy own on notes using (owner = auth.uid());
         grant select on notes to authenticated;
         insert into notes values (1, '{ann}')"
    ))
    .await;
    let secret = "a secret of at least thirty-two bytes, for tests";
    let known = [("JWT_SECRET", secret)];
    let row = ["notes", "--row", "1", "--json"];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    for (sub, visible) in [(ann, true), (ben, false)] {
        let token = token(sub, secret);
        std::fs::write(&file, format!("{token}\n")).unwrap();
        let argument = [&row[..], &["--token", &token]].concat();
        let by_file = [&row[..], &["--token-file", file.to_str().unwrap()]].concat();
        let variable = [("JWT_SECRET", secret), ("ROWCAST_TOKEN", token.as_str())];
        for output in [
            run_with(&url, &argument, &known),
            run_with(&url, &by_file, &known),
            run_with(&url, &row, &variable),
        ] {
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            let report = json(&output);
            assert_eq!(report["row"]["visible"], visible, "{report}");
            // What nobody asked to be told of a token.
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let text = text + &String::from_utf8_lossy(&output.stderr);
            assert!(!text.contains(&token), "{text}");
        }
    }
    // Where the relay's secret is not known the claims are believed, and that is said.
    let good = token(ann, secret);
    let argument = [&row[..], &["--token", &good]].concat();
    let output = run(&url, &argument);
    assert_eq!(json(&output)["row"]["visible"], true);
    let all = String::from_utf8_lossy(&output.stderr).into_owned();
    let all = all + &String::from_utf8_lossy(&output.stdout);
    assert!(all.contains("unverified"), "{all}");
    let other = token(ann, "another secret of at least thirty-two bytes");
    for refused in [other.as_str(), "x.y.z", "no token"] {
        let output = run_with(&url, &["notes", "--token", refused], &known);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{refused}: {said}");
        assert!(said.contains("would refuse the token"), "{said}");
    }
    let both = ["notes", "--token", &good, "--claims", "{}"];
    assert_eq!(run_with(&url, &both, &known).status.code(), Some(64));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_arguments_and_an_unreachable_server_have_their_exit_codes_and_sentences() {
    let (url, _sql) =
        database("create table t (id int primary key); create view v as select 1").await;
    for (arguments, expected) in [
        (&["nowhere"][..], "no table nowhere"),
        (&["v"], "no table"),
        (&["t", "--claims", "[]"], "must be a JSON object"),
        (&["t", "--claims", "{"], "not JSON"),
        (&["t", "--row", "x"], "--row"),
        (
            &["t", "--row", r#"{"id": 1, "more": 2}"#],
            "primary key's columns: id",
        ),
        (
            &["t", "--claims", r#"{"role": 5}"#],
            "not the name of a role",
        ),
    ] {
        let output = run(&url, arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    let output = run("postgres://nobody@127.0.0.1:1/x", &["--all"]);
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    let output = run(&url, &[]);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_policies_take_seconds() {
    let mut schema =
        String::from("create table m (id bigint, u uuid); grant select on m to authenticated;");
    for number in 0..500 {
        schema.push_str(&format!(
            "create table t{number} (id bigint primary key, owner uuid, m bigint);
             alter table t{number} enable row level security;
             grant select on t{number} to authenticated;
             create policy a on t{number} using (owner = auth.uid());
             create policy b on t{number} using (m in (select m.id from m where m.u = auth.uid()));"
        ));
    }
    let (url, _sql) = database(&schema).await;
    let began = std::time::Instant::now();
    let output = run(&url, &["--all", "--json"]);
    let took = began.elapsed();
    let report = json(&output);
    assert_eq!(report["totals"]["native"], 1000, "{}", report["totals"]);
    // The machine of a test may be busy with others.
    assert!(
        took.as_secs() < 180,
        "{took:?} for a thousand policies, unoptimised"
    );
    println!("{took:?}");
}

#[cfg(not(feature = "mutants"))]
#[tokio::test(flavor = "multi_thread")]
async fn where_old_rows_come_from_and_what_they_lack_is_said() {
    let schema = "
        create table cards (id bigint primary key, owner uuid not null, title text);
        alter table cards enable row level security;
        create policy own on cards using (owner = auth.uid());
        grant select on cards to authenticated;
        create unique index by_owner on cards (id, owner);
        create publication rowcast for table cards";
    let (url, sql) = database(schema).await;
    let whole = ["id", "owner", "title"];
    let relay = [("ROWCAST_OLD_ROWS", "public.cards")];
    for (identity, environment, from, columns, lacks, said) in [
        (
            "default",
            &[][..],
            "key",
            &["id"][..],
            &["owner"][..],
            "by the primary key); policies read owner",
        ),
        (
            "default",
            &relay,
            "relay",
            &["id", "owner"],
            &[],
            "with id, owner (old_rows: the relay keeps them)\n",
        ),
        (
            "using index by_owner",
            &[],
            "index",
            &["id", "owner"],
            &[],
            "with id, owner (replica identity by an index)\n",
        ),
        (
            "full",
            &relay,
            "full",
            &whole,
            &[],
            "in full (replica identity full)\n",
        ),
        (
            "nothing",
            &[],
            "nothing",
            &[],
            &["owner"],
            "nothing is known (there is no replica identity); policies read owner",
        ),
    ] {
        sql.batch_execute(&format!("alter table cards replica identity {identity}"))
            .await
            .unwrap();
        let report = json(&run_with(&url, &["cards", "--json"], environment));
        let known = &report["tables"][0]["old_rows"];
        let expected = serde_json::json!({ "from": from, "columns": columns, "lacks": lacks });
        assert_eq!(*known, expected, "{identity}");
        let text = run_with(&url, &["cards"], environment);
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        assert!(text.contains(said), "{identity}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_a_policy_looks_into_and_that_cannot_be_mirrored_is_named_with_why() {
    let schema = "
        create table crews (ship int, sailor uuid);
        create table ships (id int primary key, name text);
        alter table ships enable row level security;
        create policy crew on ships using (
            exists (select from crews where ship = id and sailor = auth.uid()));
        grant select on ships, crews to authenticated;
        create publication rowcast for table ships";
    let (url, sql) = database(schema).await;
    let report = json(&run(&url, &["ships", "--json"]));
    let lookup = policy(&report, "crew")["lookups"][0].clone();
    let why = lookup["not_mirrored"].as_str().unwrap();
    assert!(why.contains("has no replica identity"), "{lookup}");
    let text = run(&url, &["ships"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("would mirror \"public\".\"crews\""), "{text}");
    sql.batch_execute("alter table crews add primary key (ship, sailor)")
        .await
        .unwrap();
    let report = json(&run(&url, &["ships", "--json"]));
    let lookup = &policy(&report, "crew")["lookups"][0];
    assert_eq!(lookup.get("not_mirrored"), None, "{lookup}");
}

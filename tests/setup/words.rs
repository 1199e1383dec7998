//! What is said where something is wrong, or somebody else's to do.

use std::io::Write as _;

use crate::harness::{Place, SCHEMA, connect, run, setup};

#[tokio::test]
async fn what_an_administrator_must_do_is_printed_apart_and_enough() {
    // May make nothing but tables.
    let place = Place::new("").await;
    place.run(SCHEMA).await;
    place
        .admin("revoke temporary on database app from public")
        .await;
    let arguments = ["--table", "app.todos", "--lookups", "--table", "app.plans"];
    let mut rounds = 0;
    loop {
        let said = place.setup("owner", &arguments).await;
        if said.code == 0 {
            break;
        }
        assert_eq!(said.code, 69, "{}\n{}", said.out, said.error);
        let (_, apart) = said
            .out
            .split_once("An administrator must run once")
            .unwrap();
        let apart = apart.split("An administrator may want").next().unwrap();
        assert!(apart.contains("without"), "it says what is lost: {apart}");
        for line in apart.lines().skip(1) {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with("--") {
                // What was granted already may be granted again; a role may be there by now.
                run(&place.admin, line).await;
            }
        }
        rounds += 1;
        assert!(
            rounds < 3,
            "the administrator is asked for the same again:\n{}",
            said.out
        );
    }
    let relay = place.text("select row(rolcanlogin, rolreplication, rolsuper, rolbypassrls, rolcreaterole)::text from pg_roles where rolname = 'rowcast'").await;
    assert_eq!(relay, "(t,t,f,f,f)");
    let rights = place
        .text("select row(has_database_privilege('rowcast', 'app', 'temporary'), pg_has_role('rowcast', 'anon', 'member'), \
               has_table_privilege('rowcast', 'app.members', 'select'), has_table_privilege('rowcast', 'app.todos', 'select'))::text")
        .await;
    assert_eq!(rights, "(t,t,t,f)");
}

#[tokio::test]
async fn a_login_that_was_there_is_not_changed() {
    let place = Place::new("createrole").await;
    place
        .admin("create role rowcast login password 'theirs'")
        .await;
    let before = place.catalog().await;
    let url = place.url("postgres");
    let environment = [
        ("DATABASE_URL", url.as_str()),
        ("ROWCAST_RELAY_PASSWORD", "mine"),
    ];
    let said = setup(&environment, &["--only", "role", "--client-role", "owner"]).await;
    assert_eq!(said.code, 69, "{}", said.out);
    assert!(
        said.out.contains("alter role rowcast replication;"),
        "{}",
        said.out
    );
    assert!(said.out.contains("grant owner to rowcast"), "{}", said.out);
    assert!(
        said.out.contains("leaves its password as it is"),
        "{}",
        said.out
    );
    crate::harness::same(&before, &place.catalog().await);
    place.setup("postgres", &["--remove"]).await.ok();
    crate::harness::same(&before, &place.catalog().await);
}

#[tokio::test]
async fn where_the_provider_has_a_role_for_replication_that_is_granted_instead_of_the_attribute() {
    let place = Place::new("createrole").await;
    place.run(SCHEMA).await;
    place.admin("create role rds_replication").await;
    let arguments = ["--table", "app.todos", "--table", "app.notes"];
    let said = place.setup("owner", &arguments).await;
    assert_eq!(said.code, 69, "{}\n{}", said.out, said.error);
    assert!(
        said.out.contains("Only rds_superuser may grant it")
            && said.out.contains("grant rds_replication to rowcast;"),
        "{}",
        said.out
    );
    place
        .admin("grant rds_replication to owner with admin option")
        .await;
    let said = place.setup("owner", &arguments).await.ok();
    assert!(!said.contains("alter role rowcast replication"), "{said}");
    let relay = "select row(rolcanlogin, rolreplication, pg_has_role(oid, 'rds_replication', 'member'))::text \
         from pg_roles where rolname = 'rowcast'";
    assert_eq!(place.text(relay).await, "(t,f,t)");
}

#[tokio::test]
async fn a_password_is_neither_printed_nor_sent_and_works() {
    const PASSWORD: &str = "geheim'\\ß";
    let place = Place::with(
        "createrole",
        rowcast::pg::throwaway::Options {
            hba: vec!["host all rowcast 127.0.0.1/32 scram-sha-256".to_owned()],
            settings: vec!["log_statement = all".to_owned()],
            ..Default::default()
        },
    )
    .await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{PASSWORD}").unwrap();
    let path = file.path().to_str().unwrap();
    let printed = place
        .setup("owner", &["--print", "--password-file", path])
        .await
        .ok();
    assert!(
        printed.contains("alter role \"rowcast\" password 'SCRAM-SHA-256$"),
        "{printed}"
    );
    let said = place
        .setup("postgres", &["--password-file", path])
        .await
        .ok();
    assert!(
        said.contains("alter role \"rowcast\" password '…';"),
        "{said}"
    );
    for text in [&printed, &said] {
        assert!(!text.contains("geheim"), "{text}");
    }
    let password = "geheim%27%5C%C3%9F";
    let url = place
        .url("rowcast")
        .replacen("rowcast@", &format!("rowcast:{password}@"), 1);
    connect(&url).await;
    assert!(
        tokio_postgres::connect(&place.url("rowcast"), tokio_postgres::NoTls)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn without_a_password_the_login_says_so_and_lets_nobody_in() {
    let place = Place::with(
        "createrole",
        rowcast::pg::throwaway::Options {
            hba: vec!["host all rowcast 127.0.0.1/32 scram-sha-256".to_owned()],
            ..Default::default()
        },
    )
    .await;
    let said = place.setup("postgres", &[]).await.ok();
    assert!(said.contains("has no password yet"), "{said}");
    let url = place.url("rowcast").replacen("rowcast@", "rowcast:@", 1);
    assert!(
        tokio_postgres::connect(&url, tokio_postgres::NoTls)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn bad_arguments_end_it_with_64_and_a_sentence() {
    for (arguments, words) in [
        (&["--role", ""][..], "cannot be a name"),
        (&["--client-role", "rowcast"], "cannot be both"),
        (&[], "DATABASE_URL"),
        (&["--only", "everything"], "possible values"),
        (&["--password-file", "/nowhere/at/all"], "cannot be read"),
        (&["--database-url", "nonsense"], "must be a URL"),
    ] {
        let said = setup(&[], arguments).await;
        assert_eq!(said.code, 64, "{arguments:?}: {}", said.error);
        assert!(said.error.contains(words), "{arguments:?}: {}", said.error);
    }
    let both = [
        ("ROWCAST_RELAY_PASSWORD", "a"),
        ("ROWCAST_RELAY_PASSWORD_FILE", "b"),
    ];
    assert_eq!(setup(&both, &[]).await.code, 64);
    let nowhere = [("DATABASE_URL", "postgres://me@127.0.0.1:1/app")];
    let said = setup(&nowhere, &["--table", "a.b"]).await;
    assert_eq!(said.code, 69, "{}", said.error);
}

#[tokio::test]
async fn without_a_database_the_files_are_printed_for_psql() {
    let out = setup(&[], &["--print"]).await.ok();
    for file in ["auth", "role", "publication", "identity", "administrator"] {
        let path = format!("sql/{file}.sql");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(out.contains(&text), "{path}");
    }
    let out = setup(&[], &["--print", "--remove"]).await.ok();
    assert!(out.contains(&std::fs::read_to_string("sql/remove.sql").unwrap()));
}

#[tokio::test]
async fn server_settings_are_named_and_never_changed() {
    let place = Place::with(
        "createrole",
        rowcast::pg::throwaway::Options {
            settings: vec!["wal_level = replica".to_owned()],
            ..Default::default()
        },
    )
    .await;
    let said = place.setup("postgres", &[]).await;
    assert_eq!(said.code, 69, "{}", said.out);
    for line in [
        "alter system set wal_level = logical;",
        "alter system set max_slot_wal_keep_size = '10GB';",
    ] {
        assert!(said.out.contains(line), "{line}\n{}", said.out);
    }
    assert_eq!(
        place
            .text("select count(*)::text from pg_file_settings where sourcefile like '%auto.conf'")
            .await,
        "0"
    );
}

#[tokio::test]
async fn what_auth_leaves_out_is_said_and_an_administrator_mends_it() {
    // May make schemas, but no roles.
    let place = Place::new("").await;
    let said = place.setup("owner", &["--only", "auth"]).await;
    assert_eq!(said.code, 69, "{}", said.out);
    for words in ["role anon is left out", "role authenticated is left out"] {
        assert!(said.out.contains(words), "{words}\n{}", said.out);
    }
    assert!(!said.out.contains("all of it is there"), "{}", said.out);

    // Somebody else's schema, with a function that is not Supabase's.
    place.setup("postgres", &["--only", "auth"]).await.ok();
    place
        .admin(
            "drop schema auth cascade; create role other login; create schema auth authorization other; \
             create function auth.uid() returns text language sql as 'select 1::text'; \
             create function auth.role(text default '') returns text language sql as 'select $1'; \
             alter database app set \"request.jwt.claims\" = '{\"sub\": \"everybody\"}'",
        )
        .await;
    let said = place.setup("owner", &["--only", "auth"]).await;
    assert_eq!(said.code, 69, "{}\n{}", said.out, said.error);
    for words in [
        "auth.jwt() is left out: schema auth belongs to other",
        "auth.uid() was there, stays as it is, and returns text",
        "role anon has no USAGE on schema auth",
        "request.jwt.claims is set as a default of this database",
        "grant usage, create on schema auth to owner;",
        "grant usage on schema auth to anon, authenticated, service_role;",
    ] {
        assert!(said.out.contains(words), "{words}\n{}", said.out);
    }
    place
        .admin(
            "grant usage, create on schema auth to owner; \
             grant usage on schema auth to anon, authenticated, service_role; \
             alter database app reset \"request.jwt.claims\"; \
             alter function auth.uid() rename to id",
        )
        .await;
    let out = place.setup("owner", &["--only", "auth"]).await.ok();
    assert!(out.contains("all of it is there"), "{out}");
    let types = place
        .text("select row(pg_typeof(auth.uid()), pg_typeof(auth.role()), pg_typeof(auth.jwt()))::text")
        .await;
    assert_eq!(types, "(uuid,text,jsonb)", "no call is ambiguous");
}

#[tokio::test]
async fn what_an_administrator_was_asked_to_make_is_undone_too() {
    let place = Place::new("").await;
    place.run(SCHEMA).await;
    let before = place.catalog().await;
    let url = place.url("owner");
    let environment = [
        ("DATABASE_URL", url.as_str()),
        ("ROWCAST_RELAY_PASSWORD", "geheim"),
    ];
    let arguments = ["--table", "app.todos", "--table", "app.notes"];
    let said = setup(&environment, &arguments).await;
    let (_, apart) = said.out.split_once("An administrator must run").unwrap();
    assert!(
        apart.contains("alter role \"rowcast\" password 'SCRAM"),
        "{apart}"
    );
    // As psql does: statement by statement.
    let mut statement = String::new();
    for line in apart.lines().skip(1).filter(|line| line.starts_with("  ")) {
        statement.push_str(line);
        statement.push('\n');
        let in_body = statement.matches("$ddl$").count() % 2 == 1;
        if line.ends_with(';') && !in_body {
            run(&place.admin, &std::mem::take(&mut statement)).await;
        }
    }
    // The password cannot be set again by who may not, and that is no reason to ask again.
    let again = setup(&environment, &arguments).await.ok();
    assert!(
        again.contains("is not set, since this login may not"),
        "{again}"
    );
    assert_eq!(
        place
            .text(
                "select (rolpassword like 'SCRAM%')::text from pg_authid where rolname = 'rowcast'"
            )
            .await,
        "true"
    );
    place.setup("postgres", &["--remove"]).await.ok();
    crate::harness::same(&before, &place.catalog().await);
}

#[tokio::test]
async fn a_projects_own_publication_is_not_left_behind_unnoticed() {
    let place = Place::new("createrole").await;
    place.run(SCHEMA).await;
    place
        .admin("create publication supabase_realtime for table app.notes")
        .await;
    let out = place
        .setup("postgres", &["--table", "app.todos"])
        .await
        .ok();
    assert!(
        out.contains("follows supabase_realtime only as long as there is no publication rowcast"),
        "{out}"
    );
    let out = place
        .setup("postgres", &["--table", "app.todos"])
        .await
        .ok();
    assert!(
        !out.contains("supabase_realtime"),
        "only when it changes: {out}"
    );
}

#[tokio::test]
async fn what_was_renamed_or_dropped_by_hand_is_no_obstacle_to_removing() {
    let place = Place::new("createrole").await;
    place.run(SCHEMA).await;
    let arguments = [
        "--table",
        "app.todos",
        "--table",
        "app.notes",
        "--table",
        "app.parts",
    ];
    place.setup("postgres", &arguments).await.ok();
    place
        .admin(
            "drop table app.notes; alter role rowcast rename to relay; drop table app.parts_north",
        )
        .await;
    let out = place.setup("postgres", &["--remove"]).await.ok();
    assert!(out.contains("setup made login relay as well"), "{out}");
    place
        .setup("postgres", &["--remove", "--role", "relay"])
        .await
        .ok();
    let left = place
        .text("select ((select count(*) from pg_roles where rolname in ('rowcast', 'relay', 'anon')) + (select count(*) from pg_publication) + (select count(*) from pg_class where relname ~ '_identity_'))::text")
        .await;
    assert_eq!(left, "0");
}

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

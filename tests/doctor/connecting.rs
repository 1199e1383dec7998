//! Wrong addresses, few rights, and databases that nobody has set up.

use std::time::Instant;

use crate::harness::{Place, SECRET, doctor, rowcast};

#[tokio::test]
async fn wrong_connection_data_is_one_finding() {
    let place = Place::empty().await;
    place
        .run(&format!("create role {} login", place.relay))
        .await;
    let nowhere = "postgres://rowcast:very-secret@127.0.0.1:9/app";
    let missing = place.relay_url().replacen("?", "_not_there?", 1);
    let missing = if missing == place.relay_url() {
        format!("{missing}_not_there")
    } else {
        missing
    };
    let stranger = place
        .url
        .replacen("postgres@", &format!("no_{}@", place.relay), 1);
    let mark = if place.url.contains('?') { '&' } else { '?' };
    let standby = format!("{}{mark}target_session_attrs=read-only", place.relay_url());
    for (url, code) in [
        ("", "database_url"),
        (stranger.as_str(), "database_login"),
        (standby.as_str(), "database_server"),
        (nowhere, "database_unreachable"),
        (missing.as_str(), "database_missing"),
    ] {
        let found = doctor(&[], &[("DATABASE_URL", url), ("JWT_SECRET", SECRET)]).await;
        found.is(&[code]);
        assert_eq!(found.report["findings"].as_array().unwrap().len(), 1);
        assert!(
            !found.report.to_string().contains("very-secret"),
            "{:#}",
            found.report
        );
    }
}

#[tokio::test]
async fn a_database_that_takes_no_sessions_is_one_finding() {
    let place = Place::prepared(Place::empty().await).await;
    let other = Place::empty().await;
    let name = place.text("select current_database()").await;
    let allow = |whether| format!("alter database \"{name}\" allow_connections {whether}");
    other.run(&allow("false")).await;
    place.doctor(&[]).await.is(&["database_refused"]);
    other.run(&allow("true")).await;
    place.doctor(&[]).await.is(&["slot_missing"]);
}

#[tokio::test]
async fn a_time_limit_of_replication_sessions_that_is_off_or_too_short_is_found() {
    let place = Place::good().await;
    let mark = if place.url.contains('?') { '&' } else { '?' };
    for limit in ["0", "900"] {
        let option = format!("options=-c%20wal_sender_timeout%3D{limit}");
        let url = format!("{}{mark}{option}", place.relay_url());
        let found = place.doctor_with(&[], &[("DATABASE_URL", &url)]).await;
        found.is(&["wal_sender_timeout"]);
    }
    place.doctor(&[]).await.is_well();
}

#[tokio::test]
async fn a_database_that_nobody_has_set_up_is_said_to_be_so() {
    let place = Place::empty().await;
    place
        .run(&format!("create role {} login replication", place.relay))
        .await;
    let found = place.doctor(&[]).await;
    assert_eq!(found.code, 2);
    let codes = found.codes();
    assert!(
        codes.contains(&"publication_missing") && codes.contains(&"slot_missing"),
        "{codes:?}"
    );
}

#[tokio::test]
async fn a_login_with_few_rights_sees_what_it_can() {
    let place = Place::good().await;
    place
        .run(&format!("create role \"few {}\" login", place.relay))
        .await;
    let url = place
        .url
        .replacen("postgres@", &format!("few%20{}@", place.relay), 1);
    let found = place.doctor_with(&[], &[("DATABASE_URL", &url)]).await;
    let codes = found.codes();
    for code in ["login_replication", "role_membership"] {
        assert!(codes.contains(&code), "{codes:?}");
    }
    assert!(!codes.contains(&"unexamined"), "{codes:?}");
    assert_eq!(found.report["tables"], 4, "{:#}", found.report);
}

#[tokio::test]
async fn hundreds_of_tables_take_seconds() {
    let place = Place::good().await;
    place
        .run(
            "do $$ begin for i in 1..300 loop
               execute format('create table app.many_%s (id bigint primary key, person uuid not null)', i);
               execute format('alter table app.many_%s enable row level security', i);
               execute format('grant select on app.many_%s to authenticated', i);
               execute format('create policy mine on app.many_%s for select to authenticated using (person = auth.uid())', i);
               execute format('alter publication rowcast add table app.many_%s', i);
             end loop; end $$",
        )
        .await;
    let began = Instant::now();
    let found = place.doctor(&[]).await;
    // The machine of a test may be busy with others.
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
    found.is(&["identity_too_little"]);
    assert_eq!(found.report["warnings"], 300);
    let environment = place.environment();
    let environment: Vec<(&str, &str)> = environment
        .iter()
        .map(|(a, b)| (a.as_str(), b.as_str()))
        .collect();
    let said = rowcast(&["doctor"], &environment).await;
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.lines().count() < 80, "{said}");
    assert!(
        said.contains("and 292 more of identity_too_little"),
        "{said}"
    );
}

#[tokio::test]
async fn wrong_arguments_are_said_before_anything_is_asked() {
    for arguments in [
        &["doctor", "--table", "app.a; drop table b"][..],
        &["doctor", "--lag", "3"],
        &["doctor", "--slot", "Not A Slot"],
        &["doctor", "--database-url", "mysql://db/app"],
        &["doctor", "--token", "a", "--token-file", "b"],
    ] {
        let output = rowcast(arguments, &[("DATABASE_URL", "postgres://127.0.0.1:9/app")]).await;
        assert_eq!(output.status.code(), Some(64), "{arguments:?} {output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

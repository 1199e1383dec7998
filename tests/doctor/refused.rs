//! What is published and what old rows carry have to go together: where they do not, PostgreSQL
//! refuses the application's UPDATEs and DELETEs. Doctor's statements lead to no such place.

use crate::harness::Place;

/// Breaks a place, mends it as doctor says, and sees whether rows can be changed and arrive.
async fn heals(sql: &str, arguments: &[&str], codes: &[&str], table: &str) {
    let place = Place::good().await;
    place.run(sql).await;
    let found = place.doctor(arguments).await;
    found.is(codes);
    place.mend(&found).await;
    place.doctor(arguments).await.is_well();
    place.delivers(table).await;
}

async fn major(place: &Place) -> u32 {
    let number = "select current_setting('server_version_num')";
    place.text(number).await.parse::<u32>().unwrap() / 10_000
}

#[tokio::test]
async fn a_table_is_not_published_before_its_updates_can_be() {
    heals(
        "alter publication rowcast drop table app.note;
         alter table app.note replica identity nothing",
        &["--table", "app.note"],
        &["table_unpublished"],
        "note",
    )
    .await;
    heals(
        "alter publication rowcast drop table app.part;
         alter table app.part_north replica identity nothing",
        &["--table", "app.part"],
        &["table_unpublished"],
        "part",
    )
    .await;
}

#[tokio::test]
async fn an_unlogged_table_is_not_published_before_its_updates_can_be() {
    heals(
        "alter publication rowcast drop table app.note;
         alter table app.note replica identity nothing;
         alter table app.note set unlogged",
        &["--table", "app.note"],
        &["table_kind"],
        "note",
    )
    .await;
}

#[tokio::test]
async fn a_list_of_columns_that_has_updates_refused_is_found_and_mended() {
    let place = Place::good().await;
    if major(&place).await < 15 {
        return;
    }
    // setup had old rows carry all.
    for (sql, codes) in [
        (
            "alter publication rowcast drop table app.note;
             alter publication rowcast add table app.note (id, body)",
            [
                "identity_unpublished",
                "policy_column_unpublished",
                "publication_columns",
            ]
            .as_slice(),
        ),
        // Also where it is the publication of somebody else.
        (
            "create publication elsewhere for table app.note (id)",
            &["identity_unpublished"],
        ),
        (
            "alter publication elsewhere drop table app.note;
             alter publication elsewhere add table app.note (body) where (body <> 'x');
             alter table app.note replica identity default",
            &["identity_too_little", "identity_unpublished"],
        ),
    ] {
        place.run(sql).await;
        place
            .run("insert into app.note values (7, gen_random_uuid(), 'b')")
            .await;
        let refused = place.admin.batch_execute("delete from app.note");
        assert!(refused.await.is_err(), "{sql}");
        let found = place.doctor(&[]).await;
        found.is(codes);
        place.mend(&found).await;
        let rest = place.doctor(&[]).await;
        // Another publication's list is not widened for what only the relay reads.
        let left = codes.iter().filter(|code| **code == "identity_too_little");
        assert_eq!(rest.codes(), left.copied().collect::<Vec<_>>());
        place.run("delete from app.note").await;
    }
    place.run("drop publication elsewhere").await;
    place.mend(&place.doctor(&[]).await).await;
    place.doctor(&[]).await.is_well();
    place.delivers("note").await;
}

#[tokio::test]
async fn a_row_filter_that_has_updates_refused_is_found_and_mended() {
    let place = Place::good().await;
    if major(&place).await < 15 {
        return;
    }
    place
        .run(
            "create table app.kept (id bigint primary key, person uuid, shelf int);
             grant select on app.kept to authenticated;
             alter table app.kept enable row level security;
             create policy own on app.kept for select to authenticated using (id > 0);
             alter publication rowcast add table app.kept;
             insert into app.kept values (1, null, 1)",
        )
        .await;
    place.doctor(&[]).await.is_well();
    place
        .run("create publication elsewhere for table app.kept where (shelf > 0)")
        .await;
    let refused = place.admin.batch_execute("delete from app.kept");
    assert!(refused.await.is_err());
    let found = place.doctor(&[]).await;
    found.is(&["identity_unpublished"]);
    place.mend(&found).await;
    place.doctor(&[]).await.is_well();
    // Where another publication lists columns, FULL would be refused as well.
    place
        .run(
            "alter table app.kept replica identity default;
             create publication third for table app.kept (id)",
        )
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["identity_unpublished"]);
    place.mend(&found).await;
    place.doctor(&[]).await.is_well();
    place
        .run("update app.kept set shelf = 2; delete from app.kept")
        .await;
}

#[tokio::test]
async fn generated_columns_that_have_updates_refused_are_found_and_mended() {
    let place = Place::good().await;
    if major(&place).await < 18 {
        return;
    }
    for kind in ["stored", "virtual"] {
        place
            .run(&format!(
                "alter publication rowcast set (publish_generated_columns = none);
                 alter table app.note add column twice bigint generated always as (id * 2) {kind};
                 alter table app.note replica identity full;
                 insert into app.note values (7, gen_random_uuid(), 'b')"
            ))
            .await;
        let refused = place.admin.batch_execute("delete from app.note");
        assert!(refused.await.is_err(), "{kind}");
        let found = place.doctor(&[]).await;
        found.is(&["identity_unpublished"]);
        place.mend(&found).await;
        place.run("delete from app.note").await;
        let rest = place.doctor(&[]).await;
        assert!(
            !rest.codes().contains(&"identity_unpublished"),
            "{:#}",
            rest.report
        );
        place.run("alter table app.note drop column twice").await;
    }
}

#[tokio::test]
async fn a_name_with_a_line_break_ends_no_comment_of_what_doctor_says_to_run() {
    let place = Place::good().await;
    place
        .run(
            "create table app.\"x\ndrop table app.note; --\" (id bigint primary key);
             grant select on app.\"x\ndrop table app.note; --\" to authenticated;
             alter table app.\"x\ndrop table app.note; --\" enable row level security;
             alter publication rowcast add table app.\"x\ndrop table app.note; --\"",
        )
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["policy_missing"]);
    let sql: Vec<&str> = found.report["findings"][0]["sql"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one.as_str().unwrap())
        .collect();
    assert!(
        sql.iter().any(|one| one.starts_with("-- create policy")),
        "{sql:?}"
    );
    for statement in sql.iter().filter(|one| one.starts_with("--")) {
        assert!(!statement.contains(['\n', '\r']), "{statement:?}");
    }
}

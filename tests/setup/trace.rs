//! What is made, made twice, made by hand, and undone.

use crate::harness::{Place, SCHEMA, TABLES, same, statements};

/// What a Supabase project has before anybody runs setup.
const SUPABASE: &str = "
create role anon nologin noinherit;
create role authenticated nologin noinherit;
create role service_role nologin noinherit bypassrls;
create role supabase_auth_admin nologin noinherit createrole;
create schema auth authorization supabase_auth_admin;
grant usage on schema auth to anon, authenticated, service_role;
create function auth.uid() returns uuid language sql stable as 'select null::uuid';
create function auth.role() returns text language sql stable as 'select null::text';
create function auth.jwt() returns jsonb language sql stable as 'select null::jsonb';
comment on function auth.uid() is 'somebody else''s';
create publication supabase_realtime;
";

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    TABLES.into_iter().chain(more.iter().copied()).collect()
}

/// Sets up twice and removes twice, and nothing may be left.
async fn there_and_back(place: &Place, login: &str, code: i32) {
    let before = place.catalog().await;
    let arguments = with(&["--lookups", "--filter-column", "app.todos.list_id"]);
    let first = place.setup(login, &arguments).await;
    assert_eq!(first.code, code, "{}\n{}", first.out, first.error);
    let made = place.catalog().await;
    assert_ne!(before, made);
    for publicly in ["todos", "notes", "plans", "parts"] {
        assert!(
            made.contains(&format!("published rowcast (app.{publicly},,)")),
            "{made}"
        );
    }
    let again = place.setup(login, &arguments).await;
    assert_eq!(again.code, code, "{}\n{}", again.out, again.error);
    same(&made, &place.catalog().await);

    place.setup(login, &["--remove"]).await.ok();
    same(&before, &place.catalog().await);
    let out = place.setup(login, &["--remove"]).await.ok();
    assert!(out.contains("nothing to do"), "{out}");
    same(&before, &place.catalog().await);
}

#[tokio::test]
async fn an_owner_who_is_no_superuser_leaves_no_trace() {
    let place = Place::new("createrole").await;
    place.run(SCHEMA).await;
    // REPLICATION is a superuser's to give before PostgreSQL 16.
    there_and_back(&place, "owner", 69).await;
}

#[tokio::test]
async fn a_superuser_leaves_no_trace() {
    let place = Place::new("").await;
    place.run(SCHEMA).await;
    there_and_back(&place, "postgres", 0).await;
}

#[tokio::test]
async fn what_supabase_has_stays_supabases() {
    let place = Place::new("createrole").await;
    place.admin(SUPABASE).await;
    place.run(SCHEMA).await;
    there_and_back(&place, "postgres", 0).await;
    there_and_back(&place, "owner", 69).await;
}

#[tokio::test]
async fn the_printed_sql_run_by_hand_does_what_running_it_does() {
    let place = Place::new("createrole").await;
    place.run(SCHEMA).await;
    let before = place.catalog().await;
    let arguments = with(&["--lookups", "--filter-column", "app.todos.list_id"]);
    let ran = place.setup("owner", &arguments).await;
    assert_eq!(ran.code, 69, "{}", ran.error);
    let made = place.catalog().await;
    place.setup("owner", &["--remove"]).await.ok();

    let printed = place
        .setup(
            "owner",
            &with(&[
                "--print",
                "--lookups",
                "--filter-column",
                "app.todos.list_id",
            ]),
        )
        .await
        .ok();
    same(&before, &place.catalog().await);
    for _ in 0..2 {
        for statement in statements(&printed) {
            let again = statement.contains("create ") || statement.contains("alter publication");
            // The second time PostgreSQL says that it is there; what the print offers then is less.
            match place.owner.batch_execute(&statement).await {
                Ok(()) => {}
                Err(error) => {
                    let said = error.as_db_error().map(|said| said.message().to_owned());
                    let said = said.unwrap_or_default();
                    assert!(again && said.contains("already"), "{statement}: {said}");
                }
            }
        }
        same(&made, &place.catalog().await);
    }
    let printed = place
        .setup("owner", &with(&["--print", "--lookups"]))
        .await
        .ok();
    let left: Vec<String> = statements(&printed)
        .into_iter()
        .filter(|text| text.contains("create role") || text.contains("alter table"))
        .filter(|text| {
            !text.contains("do $$")
                && text
                    .lines()
                    .any(|line| !line.starts_with("--") && !line.is_empty())
        })
        .collect();
    assert!(
        left.is_empty(),
        "what is there is not printed again: {left:?}"
    );

    let printed = place.setup("owner", &["--remove", "--print"]).await.ok();
    same(&made, &place.catalog().await);
    for statement in statements(&printed) {
        place.run(&statement).await;
    }
    same(&before, &place.catalog().await);
}

#[tokio::test]
async fn what_is_in_use_is_kept_and_named() {
    let place = Place::new("createrole").await;
    place.run(SCHEMA).await;
    place.setup("owner", &with(&[])).await;
    place
        .run("create policy mine on app.members for select to authenticated using (person = auth.uid())")
        .await;
    let removed = place.setup("owner", &["--remove"]).await;
    assert_eq!(removed.code, 1, "{}", removed.out);
    for kept in [
        "drop function auth.uid()",
        "drop schema auth",
        "drop role authenticated",
    ] {
        let line = format!("KEPT, as it is in use: {kept}");
        assert!(removed.out.contains(&line), "{line}\n{}", removed.out);
    }
    assert!(
        removed.out.contains("policy mine on table app.members"),
        "{}",
        removed.out
    );
    place.run("drop policy mine on app.members").await;
    place.setup("owner", &["--remove"]).await.ok();
    let left = place.text("select string_agg(rolname, ',') from pg_roles where rolname in ('anon', 'authenticated', 'rowcast')").await;
    assert_eq!(left, "");
}

#[tokio::test]
async fn an_identity_that_somebody_changed_since_is_theirs() {
    let place = Place::new("createrole").await;
    place.run(SCHEMA).await;
    place.setup("owner", &with(&[])).await;
    place
        .run("alter table app.todos replica identity full; alter table app.notes replica identity default")
        .await;
    place.setup("owner", &["--remove"]).await.ok();
    let identities = "select string_agg(relreplident, '' order by relname) from pg_class
                      where oid in ('app.todos'::regclass, 'app.notes'::regclass)";
    assert_eq!(place.text(identities).await, "df");
}

#[tokio::test]
async fn a_slot_that_nobody_reads_goes_as_well() {
    let place = Place::new("createrole").await;
    place.run(SCHEMA).await;
    place.setup("postgres", &with(&[])).await.ok();
    place
        .admin("select pg_create_logical_replication_slot('rowcast', 'pgoutput')")
        .await;
    place.setup("postgres", &["--remove"]).await.ok();
    assert_eq!(
        place
            .text("select count(*)::text from pg_replication_slots")
            .await,
        "0"
    );
}

#[tokio::test]
async fn the_example_goes_with_its_rows_only_when_named_and_never_takes_others_tables() {
    let place = Place::new("createrole").await;
    let before = place.catalog().await;
    place
        .setup("postgres", &["--example", "agent_tasks"])
        .await
        .ok();
    let made = place.catalog().await;
    place
        .setup("postgres", &["--example", "agent_tasks"])
        .await
        .ok();
    same(&made, &place.catalog().await);
    let printed = place
        .setup(
            "postgres",
            &[
                "--example",
                "agent_tasks",
                "--print",
                "--publication",
                "other",
            ],
        )
        .await
        .ok();
    assert!(
        printed.contains("set rowcast.publication = 'other';"),
        "{printed}"
    );

    let kept = place.setup("postgres", &["--remove"]).await;
    assert!(
        kept.out.contains("Note: the example's tables stay"),
        "{}",
        kept.out
    );
    assert!(place.catalog().await.contains("class agent_tasks"));
    place
        .setup("postgres", &["--remove", "--example", "agent_tasks"])
        .await
        .ok();
    same(&before, &place.catalog().await);

    place.admin("create table public.contacts (id int)").await;
    let taken = place.setup("postgres", &["--example", "agent_tasks"]).await;
    assert_eq!(taken.code, 1, "{}", taken.out);
    assert!(
        taken.error.contains("table public.contacts"),
        "{}",
        taken.error
    );
    let rights = place
        .text("select relrowsecurity::text from pg_class where oid = 'public.contacts'::regclass")
        .await;
    assert_eq!(rights, "false");
}

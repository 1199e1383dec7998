//! What PostgreSQL makes of a rule's text.

use std::collections::BTreeSet;

use rowcast::config::Rule;
use rowcast::pg::connect::Database;
use rowcast::policy::access::{Access, Rules};
use rowcast::policy::catalog::Catalog;
use rowcast::policy::reader::CatalogReader;
use rowcast::policy::rule::table_name;

use crate::harness::{cluster, connect};

pub(crate) fn rule(table: &str, using: &str, roles: &[&str]) -> Rule {
    let (schema, table) = table_name(table).expect("a name");
    Rule {
        schema,
        table,
        using: using.to_owned(),
        roles: roles.iter().map(|&role| role.to_owned()).collect(),
    }
}

/// A database with two tables, without anything of Supabase's.
async fn bare() -> (String, tokio_postgres::Client) {
    let url = cluster().await.fresh_database().await.expect("a database");
    let sql = connect(&url).await;
    sql.batch_execute(
        r#"do $$ begin create role rule_reader; exception when duplicate_object or unique_violation then null; end $$;
           create table jobs (gone int, id bigint primary key, gone_too text, business_id bigint);
           alter table jobs drop column gone, drop column gone_too;
           create table "Odd ""name" ("A ""b" text collate "C", tags text[]);
           create view seen as select 1 as id;
           create table precious (id int); insert into precious values (1);
           create publication rowcast for table jobs, "Odd ""name""#,
    )
    .await
    .expect("the schema");
    (url, sql)
}

async fn catalog(url: &str, rules: Vec<Rule>) -> Catalog {
    let database = Database::parse(url).expect("an address");
    let followed = ("rowcast".to_owned(), "rowcast".to_owned());
    let roles = ["rule_reader".to_owned()];
    let mut reader = CatalogReader::new(database, followed, roles).with_rules(rules);
    let catalog = reader.look().await.expect("a catalog");
    drop(reader);
    std::sync::Arc::into_inner(catalog).expect("nobody else's")
}

#[tokio::test]
async fn a_text_that_is_not_one_condition_over_the_table_is_refused_and_changes_nothing() {
    let (url, sql) = bare().await;
    let cases = [
        ("true); drop table precious; --", "syntax"),
        ("true; delete from precious", "syntax"),
        ("true) with check (false", "more than one"),
        ("true) /*", "comment"),
        ("", "syntax"),
        ("1", "boolean"),
        ("$1 = id", "parameter"),
        ("nothing = 1", "does not exist"),
        ("count(*) > 1", "aggregate"),
        ("exists (select from jobs)", "with its schema"),
        ("exists (select from precious)", "schema"),
        ("(jobs).id = 1 and jobs is not null", "as a whole"),
        ("ctid is null", "system column"),
        (
            "business_id = (auth.jwt() ->> 'businessId')::bigint",
            "rowcast setup --only auth",
        ),
        ("exists (delete from public.precious returning 1)", "syntax"),
        (
            "exists (with gone as (delete from public.precious returning 1) select from gone)",
            "WITH clause containing a data-modifying",
        ),
    ];
    let rules = cases.map(|(text, _)| rule("public.jobs", text, &[]));
    let catalog = catalog(&url, rules.to_vec()).await;
    assert_eq!(catalog.unruled.len(), cases.len(), "{:#?}", catalog.unruled);
    for ((text, expected), said) in cases.iter().zip(&catalog.unruled) {
        assert!(said.contains(expected), "{text}: {said}");
    }
    let left: i64 = sql
        .query_one(
            "select count(*) + (select count(*) from pg_class where relpersistence = 't') from precious",
            &[],
        )
        .await
        .expect("the table is there")
        .get(0);
    assert_eq!(left, 1, "nothing was deleted, and nothing is left behind");
}

#[tokio::test]
async fn columns_keep_their_numbers_types_and_collations_whatever_they_are_called() {
    let (url, _sql) = bare().await;
    let rules = vec![
        rule("public.jobs", "business_id = 7 -- as it is", &[]),
        rule(
            r#"public."Odd ""name""#,
            r#""A ""b" > 'x' and tags @> '{a}'"#,
            &["rule_reader"],
        ),
    ];
    let catalog = catalog(&url, rules).await;
    assert_eq!(catalog.unruled, Vec::<String>::new());
    let jobs = catalog.published("public", "jobs").expect("jobs");
    let named: BTreeSet<i32> = jobs
        .rules_for("rule_reader")
        .flat_map(|policy| &policy.depends)
        .filter(|(_, object, column)| *object == jobs.oid && *column > 0)
        .map(|(_, _, column)| *column)
        .collect();
    assert_eq!(
        named,
        BTreeSet::from([4]),
        "the number behind two dropped ones"
    );
    let odd = catalog.published("public", "Odd \"name").expect("odd");
    let said: Vec<&str> = odd
        .rules_for("rule_reader")
        .filter_map(|policy| policy.condition.as_deref())
        .collect();
    assert_eq!(
        said,
        [r#"(("A ""b" > 'x'::text) AND (tags @> '{a}'::text[]))"#]
    );
    assert_eq!(odd.rules_for("somebody").count(), 0);
}

#[tokio::test]
async fn a_rule_for_what_is_not_there_is_said_and_for_a_role_that_is_not_hides_from_all() {
    let (url, _sql) = bare().await;
    let rules = vec![
        rule("public.nowhere", "true", &[]),
        rule("public.seen", "true", &[]),
        rule("public.precious", "true", &[]),
        rule("public.jobs", "true", &["rule_reader", "no_such_role"]),
    ];
    let catalog = catalog(&url, rules).await;
    let said = catalog.unruled.join("\n");
    for expected in [
        "rule 1 (for \"public\".\"nowhere\") is not in force: there is no such table",
        "rule 2 (for \"public\".\"seen\") is not in force: that is not a table",
        "rule 3 (for \"public\".\"precious\") is of no effect: its table is not published",
        "rule 4 (for \"public\".\"jobs\") is not in force: there is no role \"no_such_role\"",
    ] {
        assert!(said.contains(expected), "{expected} is missing in\n{said}");
    }
    let jobs = catalog.published("public", "jobs").expect("jobs");
    assert!(
        jobs.rules
            .iter()
            .any(|rule| rule.applies_to("anybody") && rule.policy.is_err())
    );
}

#[tokio::test]
async fn a_rule_for_a_partition_whose_changes_come_as_its_roots_hides_the_root() {
    let (url, sql) = bare().await;
    sql.batch_execute(
        "create table parted (id bigint) partition by range (id);
         create table low partition of parted for values from (0) to (100);
         create publication through_root for table parted
           with (publish_via_partition_root = true);
         alter publication rowcast rename to another;
         alter publication through_root rename to rowcast",
    )
    .await
    .expect("partitions");
    let catalog = catalog(&url, vec![rule("public.low", "id = 1", &["rule_reader"])]).await;
    assert!(
        catalog.unruled[0].contains("write the rule for that"),
        "{:?}",
        catalog.unruled
    );
    let root = catalog.published("public", "parted").expect("the root");
    let access = Access::new(&catalog, root, "rule_reader");
    assert!(
        matches!(access.rules, Rules::Nothing(_)),
        "{:?}",
        access.rules
    );
}

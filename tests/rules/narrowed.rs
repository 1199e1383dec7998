//! What a rule hides, wherever it is decided who sees a row.

use rowcast::config::Require;
use rowcast::subscription::{Events, Start, Wanted, filter};
use serde_json::{Value, json};

use crate::analysed::rule;
use crate::client::{Asked, Client, Heard, principal};
use crate::harness::{Relay, Watcher, brief, config};

const JOBS: &str = "
    create table jobs (gone int, id bigint primary key, business_id bigint, title text);
    alter table jobs drop column gone, replica identity full;
    grant select on jobs to anon, authenticated, service_role;";

const OWN: &str = "business_id = (auth.jwt() ->> 'businessId')::bigint";

fn of(business: u64) -> Value {
    json!({"businessId": business.to_string()})
}

async fn leaving(relay: &Relay, claims: &Value) -> Watcher {
    let wanted = Wanted {
        id: 1,
        events: Events::All,
        schema: Some("public".to_owned()),
        table: Some("jobs".to_owned()),
        filter: filter::parse("").unwrap(),
        select: None,
        leave: true,
        start: Start::default(),
    };
    let joined = relay.watch_wanted("authenticated", claims, wanted).await;
    joined.expect("a subscription")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_business_sees_its_own_rows_old_rows_and_leaves_without_row_level_security() {
    let mut relay = Relay::with(JOBS, "jobs", |config| {
        config.rules = vec![rule("public.jobs", OWN, &[])];
    })
    .await;
    let one = leaving(&relay, &of(1)).await;
    let two = relay.watch("authenticated", &of(2), "jobs").await;
    let server = relay.watch("service_role", &json!({}), "jobs").await;
    relay
        .run(
            "insert into jobs values (1, 1, 'a'), (2, 2, 'b'), (3, null, 'c');
             update jobs set business_id = 2 where id = 1;
             update jobs set title = 'd' where id = 2;
             delete from jobs where id = 2;
             delete from jobs where id = 3",
        )
        .await;
    let seen = relay.seen(&one).await;
    assert_eq!(brief(&seen), ["INSERT 1", "DELETE 1"]);
    let seen = relay.seen(&two).await;
    assert_eq!(
        brief(&seen),
        ["INSERT 2", "UPDATE 1", "UPDATE 2", "DELETE 2"]
    );
    assert!(
        seen[1].change()["old_record"].get("title").is_none(),
        "the row before was another business's: {:?}",
        seen[1]
    );
    assert_eq!(seen[2].change()["old_record"]["title"], "b");
    assert_eq!(
        brief(&relay.seen(&server).await),
        Vec::<String>::new(),
        "a rule is for all"
    );
    assert_eq!(relay.core.metrics.questions.get(), 0, "it is compiled");
    assert_eq!(relay.core.metrics.rules_refused.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_cannot_show_what_policies_and_rights_hide_and_is_for_its_roles_and_their_heirs() {
    let schema = format!(
        "{JOBS}
         alter table jobs enable row level security;
         create policy p on jobs using (title <> 'hidden');
         do $$ begin create role rule_heir; exception when duplicate_object or unique_violation then null; end $$;
         grant authenticated to rule_heir; grant select on jobs to rule_heir;
         create table closed (id int primary key);"
    );
    let mut relay = Relay::with(&schema, "jobs, closed", |config| {
        config.rules = vec![
            rule("public.jobs", OWN, &["authenticated"]),
            rule("public.closed", "true", &[]),
        ];
    })
    .await;
    let own = relay.watch("authenticated", &of(1), "jobs").await;
    let heir = relay.watch("rule_heir", &of(1), "jobs").await;
    let anon = relay.watch("anon", &json!({}), "jobs").await;
    relay
        .run("insert into jobs values (1, 1, 'a'), (2, 1, 'hidden'), (3, 2, 'b')")
        .await;
    assert_eq!(brief(&relay.seen(&own).await), ["INSERT 1"]);
    assert_eq!(brief(&relay.seen(&heir).await), ["INSERT 1"]);
    assert_eq!(brief(&relay.seen(&anon).await), ["INSERT 1", "INSERT 3"]);
    let refused = relay.refused("anon", "closed", "").await;
    assert!(refused.contains("permission denied"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_cannot_be_resolved_hides_its_table_from_its_roles_until_it_can() {
    let mut relay = Relay::with(JOBS, "jobs", |config| {
        config.rules = vec![rule("public.jobs", "public.may_see(jobs.id)", &["anon"])];
    })
    .await;
    let refused = relay.refused("anon", "jobs", "").await;
    assert!(
        refused.contains("function public.may_see(bigint) does not exist"),
        "{refused}"
    );
    assert_eq!(relay.core.metrics.rules_refused.get(), 1);
    relay.watch("authenticated", &json!({}), "jobs").await;
    relay
        .run(
            "create function may_see(bigint) returns boolean language plpgsql stable
             as $$ begin return $1 % 2 = 1; end $$",
        )
        .await;
    relay.reads_the_catalog().await;
    let anon = relay.watch("anon", &json!({}), "jobs").await;
    relay.run("insert into jobs values (1), (2), (3)").await;
    assert_eq!(brief(&relay.seen(&anon).await), ["INSERT 1", "INSERT 3"]);
    assert_eq!(relay.core.metrics.rules_refused.get(), 0);
    relay.run("drop function may_see").await;
    relay.reads_the_catalog().await;
    assert_eq!(
        brief(&relay.seen(&anon).await).last().map(String::as_str),
        Some("resync schema_changed")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_looks_into_memberships_and_a_change_of_them_is_told() {
    let schema = format!(
        "{JOBS}
         create table member (business_id bigint, user_id text, primary key (business_id, user_id));
         grant select on member to authenticated;
         insert into member values (1, 'ann');"
    );
    let mut relay = Relay::with(&schema, "jobs, member", |config| {
        let text = "exists (select from public.member m where m.business_id = jobs.business_id \
                    and m.user_id = auth.jwt() ->> 'sub')";
        config.rules = vec![rule("public.jobs", text, &[])];
    })
    .await;
    let ann = relay
        .watch("authenticated", &json!({"sub": "ann"}), "jobs")
        .await;
    let ben = relay
        .watch("authenticated", &json!({"sub": "ben"}), "jobs")
        .await;
    let ready = "rowcast_lookups{state=\"ready\"} 1\n";
    let deadline = tokio::time::Instant::now() + crate::harness::DEADLINE;
    while !relay.core.metrics.encode().contains(ready) {
        assert!(tokio::time::Instant::now() < deadline, "no mirror in time");
        relay.fence().await;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    relay
        .run("insert into jobs values (1, 1, 'a'), (2, 2, 'b')")
        .await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 1"]);
    assert_eq!(brief(&relay.seen(&ben).await), Vec::<String>::new());
    relay.run("insert into member values (2, 'ben')").await;
    assert_eq!(brief(&relay.seen(&ben).await), ["resync access_changed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_of_a_root_holds_for_partitions_that_are_published_themselves() {
    let schema = "
        create table parted (id bigint, owner text) partition by range (id);
        create table low partition of parted for values from (0) to (100);
        create table high partition of parted for values from (100) to (200);
        grant select on parted, low, high to anon;";
    let mut relay = Relay::with(schema, "low, high", |config| {
        let text = "owner = auth.jwt() ->> 'sub'";
        config.rules = vec![rule("public.parted", text, &[])];
    })
    .await;
    let ann = relay.watch("anon", &json!({"sub": "ann"}), "low").await;
    relay
        .run("insert into parted values (1, 'ann'), (2, 'ben'), (101, 'ann')")
        .await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_read_first_have_passed_the_rule_before_any_filter() {
    let schema = format!(
        "{JOBS}
         alter table jobs add column version bigint default 1;
         insert into jobs values (1, 1, 'a'), (2, 2, 'b'), (3, 1, 'c');"
    );
    let relay = Relay::with(&schema, "jobs", |config| {
        config.rules = vec![rule("public.jobs", OWN, &[])];
    })
    .await;
    for (filter, expected) in [
        ("", vec![1, 3]),
        ("title=neq.a", vec![3]),
        ("id=in.(1,2)", vec![1]),
    ] {
        let mut asked = Asked::of("jobs");
        asked.filter = filter.to_owned();
        let who = principal("authenticated", &of(1));
        let mut client = Client::new(&relay.core.router, who, asked);
        let pages = client.snapshot().await;
        let mut ids: Vec<i64> = pages[0].rows.iter().map(crate::client::id).collect();
        ids.sort_unstable();
        assert_eq!(ids, expected, "{filter}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncate_of_a_table_of_which_a_rule_hides_all_is_not_told() {
    let mut relay = Relay::with(JOBS, "jobs", |config| {
        config.rules = vec![
            rule("public.jobs", "false", &["anon"]),
            rule("public.jobs", "id > 0", &["authenticated"]),
        ];
    })
    .await;
    let anon = relay.watch("anon", &json!({}), "jobs").await;
    let user = relay.watch("authenticated", &json!({}), "jobs").await;
    relay
        .run("insert into jobs values (1); truncate jobs")
        .await;
    assert_eq!(brief(&relay.seen(&anon).await), Vec::<String>::new());
    let seen = relay.seen(&user).await;
    assert!(
        matches!(&brief(&seen)[..], [one, two] if one == "INSERT 1" && two.starts_with("resync"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_required_and_missing_hides_a_table() {
    let schema =
        format!("{JOBS} create table bare (id int primary key); grant select on bare to anon;");
    for (require, jobs, bare) in [
        (Require::None, true, true),
        (Require::RlsOrRule, true, false),
        (Require::Rls, false, false),
    ] {
        let relay = Relay::with(
            &format!("{schema} alter table fence enable row level security; create policy p on fence using (true);"),
            "jobs, bare",
            |config| {
                config.rules = vec![rule("public.jobs", "true", &["anon"])];
                config.require = require;
            },
        )
        .await;
        for (table, shown) in [("jobs", jobs), ("bare", bare)] {
            let joined = relay
                .watch_filtered("anon", &json!({}), table, Events::All, "")
                .await;
            assert_eq!(joined.is_ok(), shown, "{require:?} {table}");
            if let Err(refused) = joined {
                assert!(refused.contains("no row-level security"), "{refused}");
            }
        }
        if require == Require::RlsOrRule {
            let refused = relay.refused("authenticated", "jobs", "").await;
            assert!(
                refused.contains("and no rule"),
                "the rule is not for it: {refused}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_over_a_restart_with_another_rule_is_to_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let url = crate::harness::cluster()
        .await
        .fresh_database()
        .await
        .unwrap();
    let mut settings = config(&url);
    settings.data = Some(directory.path().to_path_buf());
    settings.rules = vec![rule("public.jobs", "business_id = 1", &[])];
    let before = settings.clone();
    let mut relay = Relay::in_database(&url, JOBS, "jobs", |config| *config = before).await;
    let ann = relay.watch("anon", &json!({}), "jobs").await;
    relay
        .run("insert into jobs values (1, 1, 'a'), (2, 2, 'b')")
        .await;
    assert_eq!(brief(&relay.seen(&ann).await), ["INSERT 1"]);
    let since = relay.core.router.position();
    // Something lies behind the cursor, and before the rule's change.
    relay.seen(&ann).await;
    let mut relay = relay.restart(&settings, "").await;
    for (text, expected) in [
        ("business_id = 1", None),
        ("business_id = 2", Some("access_changed")),
    ] {
        settings.rules = vec![rule("public.jobs", text, &[])];
        relay = relay.restart(&settings, "").await;
        let mut asked = Asked::of("jobs");
        (asked.since, asked.plain) = (Some(since), true);
        let mut client = Client::new(&relay.core.router, principal("anon", &json!({})), asked);
        client.join().await;
        assert_eq!(client.heard().await, Heard::Joined(vec![]));
        match (client.heard().await, expected) {
            (Heard::CaughtUp, None) => {}
            (Heard::Again(reason), Some(expected)) => assert_eq!(reason, expected),
            (other, _) => panic!("under {text} not {other:?}"),
        }
        client.disconnect().await;
    }
}

/// PostgreSQL asks a child's own policies where the child is named, and so are rules held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_for_a_table_is_none_for_those_that_inherit_from_it_and_these_lack_what_is_required()
{
    let schema = "
        create table parent (id bigint primary key, business_id bigint);
        create table child (primary key (id)) inherits (parent);
        create table ruled (primary key (id)) inherits (parent);
        alter table parent replica identity full;
        alter table child replica identity full;
        alter table ruled replica identity full;
        grant select on parent, child, ruled to authenticated;
        alter table fence enable row level security; create policy p on fence using (true);";
    let mut relay = Relay::with(schema, "parent, child, ruled", |config| {
        config.require = Require::RlsOrRule;
        config.rules = vec![
            rule("public.parent", OWN, &[]),
            rule("public.ruled", OWN, &[]),
        ];
    })
    .await;
    let refused = relay.refused("authenticated", "child", "").await;
    assert!(
        refused.contains("public.child has no row-level security and no rule"),
        "{refused}"
    );
    let parent = relay.watch("authenticated", &of(1), "parent").await;
    let ruled = relay.watch("authenticated", &of(1), "ruled").await;
    relay
        .run(
            "insert into parent values (1, 1), (2, 2);
             insert into child values (3, 1), (4, 2);
             insert into ruled values (5, 1), (6, 2)",
        )
        .await;
    assert_eq!(
        brief(&relay.seen(&parent).await),
        ["INSERT 1"],
        "a child's rows are the child's"
    );
    assert_eq!(brief(&relay.seen(&ruled).await), ["INSERT 5"]);
}

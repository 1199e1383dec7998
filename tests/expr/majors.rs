//! The trees of the server at hand: every kind of node that is read compiles, and with anything
//! more or less in it nothing does.

use rowcast::policy::body::Body;
use rowcast::policy::compile::{self, Compiled, Refusal, Scope};
use rowcast::policy::node_tree::MAJORS;

use crate::cluster::Cluster;
use crate::{grammar, rows_of, scope_of};

/// Each kind of node at least once. That they compile does not depend on the major version.
const COMPILED: [&str; 52] = [
    "b",
    "true",
    "not b and (i = 1 or i > 2)",
    "u = auth.uid()",
    "u = (select auth.uid())",
    "owns(u, t)",
    "same(t, v)",
    "current_setting('role', true) = t",
    "current_user = t",
    "t is null",
    "t is not null",
    "b is not true",
    "b is unknown",
    "coalesce(t, 'a') = 'b'",
    "nullif(t, 'a') = 'b'",
    "t is distinct from 'a'",
    "case when b then true else false end",
    "case t when 'a' then b end",
    "i::text = '1'",
    "t::int = i",
    "t collate \"C\" < 'a'",
    "t in ('a', 'b')",
    "t in ('a', v)",
    "v in ('a', 'b')",
    "v = any (array['a', t]::varchar[])",
    "i = any ('{1,2,null}')",
    "i <> all (array[1, id])",
    "m = 'ok' and m > 'sad'",
    "n = 1.5",
    "lower(v || s) like 'a%'",
    "(auth.jwt() -> 'n')::int = i",
    "j #>> array['a', 'b'] = j ->> 'a'",
    "auth.uid() = any (y)",
    "z < now() - '1 mon'::interval",
    "z + '1 day'::interval > current_timestamp",
    "d <= current_date - 30",
    "z > current_date - '7 days'::interval",
    "w < current_date",
    "t <> all (array_append(a, v::text))",
    "a @> array[t, 'a'] or g && '{1}'",
    "a[1] = t",
    "a[2:] = a[:1]",
    "g[1:i + 1] = g",
    "u = any (a::uuid[])",
    "m = any (x)",
    "greatest(i, 1) = least(2, i)",
    "j @> '{\"a\": 1}' and j ?| array['a', 'b']",
    "t in (select jsonb_array_elements_text(j))",
    "u in (select unnest(a)::uuid)",
    "exists (select 1 from unnest(a) e where e = t)",
    "array(select unnest(a)) = a",
    "jsonb_extract_path_text(j, 'a', 'b') = j ->> (select count(*)::int from unnest(a) e where e = 'a')",
];

/// The scope of the grammar's table, and the trees of [`COMPILED`].
async fn trees() -> (Scope, Vec<(&'static str, String)>) {
    let cluster = Cluster::start().await;
    let client = cluster.connect().await;
    client.batch_execute(grammar::SCHEMA).await.unwrap();
    let mut trees = Vec::new();
    for sql in COMPILED {
        let make = format!("create policy p on t for select using ({sql})");
        client.batch_execute(&make).await.unwrap();
        let read = "select polqual::text from pg_policy";
        let tree = rows_of(&client, read).await.remove(0).remove(0).unwrap();
        client.batch_execute("drop policy p on t").await.unwrap();
        trees.push((sql, tree));
    }
    (scope_of(&client).await, trees)
}

fn refused(outcome: Result<Compiled, Refusal>, what: &str) {
    assert!(outcome.is_err(), "compiled all the same: {what}");
}

/// The text with every occurrence of a part replaced, one at a time.
fn each<'t>(text: &'t str, part: &'t str, by: &'t str) -> impl Iterator<Item = String> {
    text.match_indices(part).map(move |(at, _)| {
        let (before, after) = text.split_at(at);
        format!("{before}{by}{}", &after[part.len()..])
    })
}

/// A tree with one unknown, renamed or missing field, for each place where that can be.
fn spoilt(tree: &str) -> Vec<String> {
    let mut all: Vec<String> = each(tree, "}", " :rowcast 0}").collect();
    all.extend(each(tree, " :", " :x"));
    all.extend(without_location(tree));
    all
}

/// The tree without one of its `:location …`.
fn without_location(tree: &str) -> Vec<String> {
    let label = " :location ";
    let without = tree.match_indices(label).map(|(at, _)| {
        let rest = &tree[at + label.len()..];
        let value = rest.find(['}', ' ']).unwrap();
        format!("{}{}", &tree[..at], &rest[value..])
    });
    without.collect()
}

#[tokio::test]
async fn every_kind_of_node_compiles_and_no_other_field_is_passed_over() {
    let (scope, trees) = trees().await;
    assert!(
        MAJORS.contains(&scope.major),
        "PostgreSQL {} is not read: determine its fields",
        scope.major
    );
    let mut places = 0;
    for (sql, tree) in &trees {
        let outcome = compile::compile(tree, &scope);
        assert!(outcome.is_ok(), "{sql}: {}", outcome.unwrap_err());
        for spoilt in spoilt(tree) {
            refused(compile::compile(&spoilt, &scope), &spoilt);
            places += 1;
        }
    }
    assert!(places > 1_000, "{places} places");
}

#[tokio::test]
async fn a_function_body_is_read_as_strictly_and_only_as_its_own_major_writes_it() {
    let (scope, trees) = trees().await;
    let (_, call) = trees.iter().find(|(sql, _)| *sql == "owns(u, t)").unwrap();
    let (oid, body) = scope
        .functions
        .iter()
        .find(|(_, function)| function.strict)
        .map(|(oid, function)| {
            let body = function.bodies.values().next().unwrap().clone();
            let Ok(Body::Query(tree)) = body else {
                panic!("a query");
            };
            (*oid, tree.to_string())
        })
        .unwrap();
    let with = |body: &str| {
        let mut changed = scope.clone();
        let function = changed.functions.get_mut(&oid).unwrap();
        for known in function.bodies.values_mut() {
            *known = Ok(Body::Query(body.into()));
        }
        compile::compile(call, &changed)
    };
    assert!(with(&body).is_ok());
    for spoilt in spoilt(&body) {
        refused(with(&spoilt), &spoilt);
    }
    // Every major version writes another Query.
    for other in MAJORS.iter().filter(|other| **other != scope.major) {
        let as_other = Scope {
            major: *other,
            ..scope.clone()
        };
        refused(compile::compile(call, &as_other), &format!("as {other}"));
    }
    for (nothing, something) in [
        (":hasGroupRTE false", ":hasGroupRTE true"),
        (":hasAggs false", ":hasAggs true"),
        (":rteperminfos <>", ":rteperminfos ({NULLTEST})"),
        (":mergeTargetRelation 0", ":mergeTargetRelation 1"),
        (":limitCount <>", ":limitCount {CONST}"),
        (":commandType 1", ":commandType 2"),
    ] {
        for changed in each(&body, nothing, something) {
            refused(with(&changed), something);
        }
    }
}

#[tokio::test]
async fn a_column_that_a_join_or_a_returning_changes_is_no_plain_column() {
    let (scope, trees) = trees().await;
    let (_, tree) = trees.iter().find(|(sql, _)| *sql == "t is null").unwrap();
    let mut changed = Vec::new();
    changed.extend(each(tree, ":varnullingrels (b)", ":varnullingrels (b 2)"));
    changed.extend(each(tree, ":varreturningtype 0", ":varreturningtype 1"));
    let expected = match scope.major {
        ..=15 => 0,
        16..=17 => 1,
        _ => 2,
    };
    assert_eq!(changed.len(), expected, "{tree}");
    for changed in changed {
        refused(compile::compile(&changed, &scope), &changed);
    }
}

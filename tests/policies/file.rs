//! A schema's file and what its header says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// What a file's header says, line by line: `-- word: rest`.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) sql: String,
    /// `shapes: exists, join`, of [`SHAPES`].
    pub(crate) shapes: BTreeSet<String>,
    /// `traps: 1 17`, of the last section of the notes on policies.
    pub(crate) traps: BTreeSet<u32>,
    /// `expect: native B public.t its name`, maybe with ` because part of the reason`.
    pub(crate) expect: Vec<String>,
    /// `values: schema.table.column = 'a' | 'b'`: SQL expressions to draw from.
    pub(crate) values: BTreeMap<String, Vec<String>>,
    /// `claims: role {…}`: more principals.
    pub(crate) claims: Vec<(String, String)>,
    /// `identity: default`: old rows carry the key only; else everything.
    pub(crate) keeps_keys_only: bool,
    /// `publish: with (…)`, behind the publication's tables.
    pub(crate) publish: String,
    /// `alter: statement`: rules that change in mid-run, one in every second transaction, in turns.
    pub(crate) alters: Vec<String>,
    /// `told: why`: an event trigger tells the relay of changed rules.
    pub(crate) told: bool,
    /// `flips: schema.table query`: the moments at which rows come and go without being written.
    pub(crate) flips: BTreeMap<String, String>,
    /// `watch: schema.table`: the published tables; else all with policies.
    pub(crate) watch: Vec<String>,
    /// `refused: schema.table role`: who is refused though PostgreSQL would raise no error.
    pub(crate) refused: BTreeSet<String>,
    /// `raises: schema.table`: rows for which PostgreSQL may raise an error beside a true policy.
    pub(crate) raises: BTreeSet<String>,
    /// `hidden only: why`: nobody but who bypasses policies can see any row.
    pub(crate) hidden_only: bool,
    /// `unsure: schema.table why`: where the relay says that it does not know (a resync) instead.
    pub(crate) unsure: BTreeSet<String>,
    /// `judged as: schema.leaf schema.root`: a partition that shows what its root's policies show.
    pub(crate) judged_as: BTreeMap<String, String>,
    /// Words in quotes, which columns of texts draw from.
    pub(crate) words: Vec<String>,
}

/// What policies are made of, by the shape counts of the public schemas that were looked at.
pub(crate) const SHAPES: &[&str] = &[
    "own",
    "true",
    "false",
    "boolean",
    "exists",
    "scalar",
    "in",
    "init-plan",
    "join",
    "nested",
    "sql-definer",
    "sql-invoker",
    "plpgsql-definer",
    "plpgsql-invoker",
    "one-return",
    "straight-line",
    "jsonb",
    "app-metadata",
    "current-setting",
    "auth-role",
    "in-list",
    "any-array",
    "io-cast",
    "is-null",
    "coalesce",
    "case",
    "ordering",
    "containment",
    "aggregate",
    "order-limit",
    "time",
    "foldername",
    "like",
    "restrictive",
    "force",
    "inert",
    "to-public",
    "to-authenticated",
    "to-service",
    "to-anon",
    "set-operation",
    "cte",
    "view",
    "recursion",
    "missing-right",
    "column-grant",
    "regex",
    "current-user",
    "loop",
    "exception",
    "generated",
    "partition",
    "dropped-column",
    "enum",
    "quoted-names",
    "array",
    "composite-key",
    "domain",
    "array-of-union",
    "citext",
    "coalesced-times",
    "lateral",
    "recursive-with",
    "timezone-utc",
    "unnest-column",
    "whole-row",
    "with-check",
];

/// Whether the schemas are somebody else's: what they hold is not known beforehand.
pub(crate) fn foreign() -> bool {
    std::env::var_os("ROWCAST_POLICIES_DIR").is_some()
}

pub(crate) fn all() -> Vec<File> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policies/schemas");
    let directory = std::env::var_os("ROWCAST_POLICIES_DIR").map_or(own, PathBuf::from);
    let only = std::env::var("ROWCAST_SCHEMA").ok();
    let mut files: Vec<File> = std::fs::read_dir(directory)
        .expect("the schemas")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            parse(name, std::fs::read_to_string(&path).expect("a schema"))
        })
        .filter(|file| {
            only.as_ref()
                .is_none_or(|only| file.name.contains(only.as_str()))
        })
        .collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files
}

fn parse(name: String, sql: String) -> File {
    let mut file = File {
        words: words(&sql),
        name,
        ..File::default()
    };
    for line in sql.lines().map_while(|line| line.strip_prefix("-- ")) {
        let Some((word, rest)) = line.split_once(": ") else {
            continue;
        };
        let rest = rest.trim();
        match word {
            "shapes" => file.shapes.extend(rest.split(", ").map(str::to_owned)),
            "traps" => file.traps.extend(
                rest.split(' ')
                    .map(|trap| trap.parse::<u32>().expect("a trap")),
            ),
            "expect" => file.expect.push(rest.to_owned()),
            "values" => {
                let (column, values) = rest.split_once(" = ").expect("column = values");
                let values = values.split(" | ").map(|value| value.trim().to_owned());
                file.values.insert(column.to_owned(), values.collect());
            }
            "claims" => {
                let (role, claims) = rest.split_once(' ').expect("a role and claims");
                assert!(serde_json::from_str::<Value>(claims).is_ok(), "{line}");
                file.claims.push((role.to_owned(), claims.to_owned()));
            }
            "identity" => file.keeps_keys_only = rest == "default",
            "publish" => file.publish = rest.to_owned(),
            "alter" => file.alters.push(rest.to_owned()),
            "told" => file.told = true,
            "flips" => {
                let (table, query) = rest.split_once(' ').expect("a query");
                file.flips.insert(table.to_owned(), query.to_owned());
            }
            "watch" => file.watch.extend(rest.split(", ").map(str::to_owned)),
            "refused" => {
                let mut parts = rest.split(' ');
                let (table, role) = (parts.next().unwrap(), parts.next().expect("a role"));
                file.refused.insert(format!("{table} {role}"));
            }
            "raises" => file.raises.extend(rest.split(", ").map(str::to_owned)),
            "unsure" => {
                let (table, _why) = rest.split_once(' ').expect("why");
                file.unsure.insert(table.to_owned());
            }
            "judged as" => {
                let (leaf, root) = rest.split_once(' ').expect("a leaf and a root");
                file.judged_as.insert(leaf.to_owned(), root.to_owned());
            }
            "hidden only" => file.hidden_only = true,
            // The first line says what it is about, and may have a colon.
            _ => {}
        }
    }
    file.sql = sql;
    file
}

/// The short texts in single quotes.
fn words(sql: &str) -> Vec<String> {
    let lines = sql.lines().filter(|line| !line.starts_with("--"));
    let quoted = lines.flat_map(|line| line.split('\'').skip(1).step_by(2));
    let plain = |text: &&str| {
        let mut letters = text.chars();
        text.len() < 24 && letters.all(|c| c.is_alphanumeric() || "_-:/.@ ".contains(c))
    };
    let set: BTreeSet<String> = quoted.filter(plain).map(str::to_owned).collect();
    set.into_iter().collect()
}

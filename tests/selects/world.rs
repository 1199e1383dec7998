//! Cases as PostgreSQL has them, and their comparison with native verdicts.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rowcast::auth::{Claims, Principal};
use rowcast::change::{Column, Relation, ReplicaIdentity, Row, RowBuilder, Value};
use rowcast::datum::Datum;
use rowcast::lookup::{Looked, Lookups, Mirror};
use rowcast::pg::{Lsn, Oid};
use rowcast::policy::access::{Access, Rules};
use rowcast::policy::catalog::Catalog;
use rowcast::policy::{Affected, Audience, Facts, Predicate, Projection, Verdict};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::grammar::{self, Around, Wish};

const ROWS: usize = 14;

type Texts = Vec<Option<String>>;

/// A set of policies with the rows that they look into, before and behind a change of one of them.
struct Case {
    sql: Vec<String>,
    errors: bool,
    catalog: Catalog,
    /// The rows of each table that is looked into, and what PostgreSQL says, before and behind.
    states: [State; 2],
    change: String,
}

struct State {
    rows: BTreeMap<&'static str, Vec<Texts>>,
    /// For each of the claims a letter a row.
    truth: Vec<String>,
}

pub struct World {
    client: Client,
    relation: Relation,
    rows: Vec<Row>,
    cases: Vec<Case>,
    seed: u64,
}

#[derive(Debug, Default)]
pub struct Counts {
    pub compiled: usize,
    pub both: usize,
    /// Audiences by index, and by the members of a table among them.
    pub found: usize,
    pub members: usize,
    pub flips: usize,
    /// Principals that a change affects, and those that it does not.
    pub affected: usize,
    pub spared: usize,
    pub recursions: usize,
    pub denials: usize,
    pub refused: BTreeMap<String, usize>,
    pub verdicts: BTreeMap<String, usize>,
}

async fn rows_of(client: &Client, sql: &str) -> Vec<Texts> {
    let messages = client.simple_query(sql).await;
    let messages = messages.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(
            (0..row.len())
                .map(|at| row.get(at).map(str::to_owned))
                .collect(),
        ),
        _ => None,
    });
    rows.collect()
}

fn principals() -> Vec<Principal> {
    let principal = |claims: &&str| Principal {
        role: Arc::from("authenticated"),
        claims: Claims::verified(*claims),
        expires_at: None,
    };
    grammar::CLAIMS.iter().map(principal).collect()
}

/// A change of rows as SQL.
fn change(random: &mut StdRng) -> String {
    let (table, columns) = grammar::LOOKUPS.choose(random).unwrap();
    let row = if *table == "g" {
        format!("id = {}", random.random_range(1..=4))
    } else {
        let salt = random.random_range(0..1_000);
        format!("ctid = (select ctid from m order by md5(m::text || '{salt}') limit 1)")
    };
    match random.random_range(0..4) {
        0 => format!("delete from {table} where {row}"),
        1 if *table == "m" => insert(random, table, columns),
        _ => {
            // What decides whose row it is, more often.
            let own: Vec<&&str> = columns
                .iter()
                .chain(&["org", "u", "u"])
                .filter(|column| **column != "id")
                .collect();
            let column = own.choose(random).unwrap();
            let value = grammar::value(random, column);
            format!("update {table} set {column} = {value} where {row}")
        }
    }
}

fn insert(random: &mut StdRng, table: &str, columns: &[&str]) -> String {
    let values = columns.iter().map(|column| grammar::value(random, column));
    let values: Vec<String> = values.collect();
    format!(
        "insert into {table} ({}) values ({})",
        columns.join(", "),
        values.join(", ")
    )
}

impl World {
    pub async fn new(client: Client, seed: u64) -> Self {
        let mut world = Self {
            relation: Relation {
                oid: Oid(0),
                schema: Arc::from("public"),
                name: Arc::from("t"),
                replica_identity: ReplicaIdentity::Full,
                columns: Vec::new(),
                types: Arc::default(),
                version: 1,
            },
            client,
            rows: Vec::new(),
            cases: Vec::new(),
            seed,
        };
        let mut random = <StdRng as rand::SeedableRng>::seed_from_u64(seed);
        for id in 1..=ROWS {
            let values = ["org", "u", "s", "ok"].map(|column| grammar::value(&mut random, column));
            let sql = format!("insert into t values ({id}, {})", values.join(", "));
            world.client.batch_execute(&sql).await.unwrap();
        }
        for row in rows_of(&world.client, "select * from t order by id").await {
            let mut builder = RowBuilder::default();
            for value in &row {
                builder.push(value.as_deref().map_or(Value::Null, Value::Text));
            }
            world.rows.push(builder.finish());
        }
        let columns = "select attname, atttypid, atttypmod, attrelid from pg_attribute
            where attrelid = 't'::regclass and attnum > 0 order by attnum";
        for row in rows_of(&world.client, columns).await {
            let number = |at: usize| row[at].as_deref().unwrap();
            world.relation.oid = Oid(number(3).parse().unwrap());
            world.relation.columns.push(Column {
                name: Arc::from(number(0)),
                type_oid: Oid(number(1).parse().unwrap()),
                type_modifier: number(2).parse().unwrap(),
                identity: true,
            });
        }
        world
    }

    #[cfg(not(feature = "mutants"))]
    pub fn cases(&self) -> usize {
        self.cases.len()
    }

    async fn catalog(&self) -> Catalog {
        self.client
            .batch_execute("set jit = off; set search_path = ''")
            .await
            .unwrap();
        let sql = include_str!("../../sql/catalog.sql");
        let roles = vec!["authenticated"];
        let none = Vec::<u32>::new();
        let row = self
            .client
            .query_one(sql, &[&"p", &roles, &none, &none])
            .await
            .unwrap();
        self.client
            .batch_execute("reset search_path")
            .await
            .unwrap();
        Catalog::parse(row.get(0), String::new(), Lsn(0)).unwrap()
    }

    async fn state(&self) -> State {
        let mut rows = BTreeMap::new();
        for (table, columns) in grammar::LOOKUPS {
            let sql = format!("select {} from {table}", columns.join(", "));
            rows.insert(table, rows_of(&self.client, &sql).await);
        }
        let mut truth = Vec::new();
        for claims in grammar::CLAIMS {
            let claims = rowcast::pg::quote_literal(claims);
            let ask = format!(
                "begin; set local role authenticated;
                select set_config('request.jwt.claims', {claims}, true);
                select public.verdicts({ROWS}); commit"
            );
            let answer = rows_of(&self.client, &ask).await.pop().unwrap()[0].take();
            truth.push(answer.unwrap());
        }
        State { rows, truth }
    }

    /// Makes random policies and notes what they mean.
    pub async fn case(&mut self, random: &mut StdRng) {
        let errors = random.random_bool(0.3);
        let usual = random.random_bool(0.4);
        let mut sql: Vec<String> = Vec::new();
        let mut undo: Vec<String> = Vec::new();
        self.fill(random).await;
        // Which of them look into which: a cycle now and then.
        let tables: [(&'static str, f64, &'static [&'static str]); 3] = [
            (
                "t",
                1.0,
                *[
                    &["m", "g"][..],
                    &["m", "g"],
                    &["m", "g", "v", "w", "h", "i"],
                ]
                .choose(random)
                .unwrap(),
            ),
            (
                "m",
                0.4,
                *[&["g"][..], &["m"], &[], &["m", "g"], &["v"], &["h"]]
                    .choose(random)
                    .unwrap(),
            ),
            (
                "g",
                0.4,
                *[&[][..], &[], &[], &["m"], &["h"], &["i"]]
                    .choose(random)
                    .unwrap(),
            ),
        ];
        for (table, secured, into) in tables {
            if !random.random_bool(secured) {
                continue;
            }
            if table != "t" {
                let enable = format!("alter table {table} enable row level security");
                self.client.batch_execute(&enable).await.unwrap();
                undo.push(format!("alter table {table} disable row level security"));
                sql.push(enable);
            }
            let before = sql.len();
            for permissive in [true, true, false] {
                while random.random_bool(if permissive { 0.3 } else { 0.15 })
                    || (table == "t" && sql.len() == before)
                {
                    let kind = if permissive {
                        "permissive"
                    } else {
                        "restrictive"
                    };
                    let wish = Wish { errors, into };
                    let mut around = vec![Around {
                        table,
                        alias: table,
                    }];
                    let depth = random.random_range(if table == "t" { 1..=3 } else { 0..=2 });
                    let text = if usual && table == "t" && permissive {
                        grammar::membership(random, wish, &mut around)
                    } else {
                        grammar::boolean(random, wish, &mut around, depth)
                    };
                    if table == "t" && sql.len() == before && !text.contains("select") {
                        continue;
                    }
                    let who = *[
                        "authenticated",
                        "authenticated",
                        "authenticated",
                        "other",
                        "public",
                    ]
                    .choose(random)
                    .unwrap();
                    let name = format!("p{}", sql.len());
                    let policy = format!(
                        "create policy {name} on {table} as {kind} for select to {who} using ({text})"
                    );
                    // A constant that its type does not take is refused right here.
                    if self.client.batch_execute(&policy).await.is_ok() {
                        sql.push(policy);
                        undo.push(format!("drop policy {name} on {table}"));
                    }
                }
            }
        }
        if random.random_bool(0.15) {
            let table = *["m", "g", "v"].choose(random).unwrap();
            let columns = *["", "(org, u)", "(u, s, ok)"].choose(random).unwrap();
            let mut revoke = format!("revoke select on {table} from authenticated");
            undo.push(format!("revoke select on {table} from authenticated"));
            if !columns.is_empty() {
                revoke = format!("{revoke}; grant select {columns} on {table} to authenticated");
            }
            self.client.batch_execute(&revoke).await.unwrap();
            undo.push(format!("grant select on {table} to authenticated"));
            sql.push(revoke);
        }
        self.noted(random, errors, (sql, undo)).await;
    }

    /// One policy by itself, of whose errors each has to be one.
    pub async fn single(&mut self, random: &mut StdRng, text: &str) {
        self.fill(random).await;
        let policy = format!("create policy p0 on t for select to authenticated using ({text})");
        self.client.batch_execute(&policy).await.unwrap();
        let undo = vec!["drop policy p0 on t".to_owned()];
        self.noted(random, false, (vec![policy], undo)).await;
    }

    /// Other rows in the tables that are looked into.
    async fn fill(&self, random: &mut StdRng) {
        for (table, columns) in grammar::LOOKUPS {
            self.client
                .batch_execute(&format!("delete from {table}"))
                .await
                .unwrap();
            let count = random.random_range(0..6);
            for id in 1..=count {
                let mut insert = insert(random, table, columns);
                if *table == *"g" {
                    let at = insert.find("values (").unwrap() + "values (".len();
                    let rest = insert[at..].find(',').unwrap() + at;
                    insert.replace_range(at..rest, &id.to_string());
                }
                self.client.batch_execute(&insert).await.unwrap();
            }
        }
        if random.random_bool(0.4) {
            let twice = "insert into m select * from m limit 2";
            self.client.batch_execute(twice).await.unwrap();
        }
    }

    /// Keeps what PostgreSQL says of the policies that there are, before and after a change, and takes
    /// them back.
    async fn noted(
        &mut self,
        random: &mut StdRng,
        errors: bool,
        (sql, undo): (Vec<String>, Vec<String>),
    ) {
        let catalog = self.catalog().await;
        let mut before = self.state().await;
        let mut turns = 0;
        // Most changes change nothing of what is seen: those that do are looked for.
        let (change, after) = loop {
            let change = change(random);
            self.client.batch_execute(&change).await.unwrap();
            let after = self.state().await;
            turns += 1;
            if turns == 4 || after.truth != before.truth {
                break (change, after);
            }
            before = after;
        };
        for one in undo {
            self.client.batch_execute(&one).await.unwrap();
        }
        self.cases.push(Case {
            sql,
            errors,
            catalog,
            states: [before, after],
            change,
        });
    }

    /// What native and PostgreSQL disagree about, and counts.
    pub fn compare(&self, counts: &mut Counts) -> Vec<String> {
        let mut wrong = Vec::new();
        for case in &self.cases {
            self.one(case, counts, &mut wrong);
        }
        wrong.sort_by_key(String::len);
        wrong
    }

    fn one(&self, case: &Case, counts: &mut Counts, wrong: &mut Vec<String>) {
        let table = case.catalog.published("public", "t").unwrap();
        let access = Access::new(&case.catalog, table, "authenticated");
        let complain = |what: &str| {
            format!(
                "{what}, seed {}: {:#?}, then {}",
                self.seed, case.sql, case.change
            )
        };
        // What raises an error as it stands may do so before rights are looked at.
        let letters = |letter: char| {
            let all = case.states[0].truth.iter().flat_map(|row| row.chars());
            all.clone().all(|one| one == letter || one == 'E')
                && all.clone().any(|one| one == letter)
        };
        let predicate = match &access.rules {
            Rules::Nothing(reason) => {
                // Behind the names of the views and policies that it is come upon by.
                let (expected, count) = if reason.contains("infinite recursion") {
                    ('R', &mut counts.recursions)
                } else {
                    ('P', &mut counts.denials)
                };
                *count += 1;
                // Without any policy that lets it see something a role comes upon no cycle.
                if !letters(expected) && !letters('F') {
                    wrong.push(complain(&format!("nothing because of {reason}")));
                }
                return;
            }
            Rules::Everything => panic!("row-level security is on"),
            Rules::Judged { asked: true, .. } => {
                for (_, reason) in &access.asked_because {
                    *counts.refused.entry(reason.clone()).or_default() += 1;
                }
                return;
            }
            Rules::Judged { predicates, .. } => Arc::clone(&predicates[0]),
        };
        counts.compiled += 1;
        let [before, after] = [0, 1].map(|at| lookups(&case.catalog, &access, &case.states[at]));
        let bound = predicate.bind(&self.relation).unwrap();
        let projections: Vec<Projection> = principals()
            .iter()
            .map(|one| predicate.project(one))
            .collect();
        let mut seen = [false; 2];
        let mut visible: [Vec<bool>; 2] = Default::default();
        for (state, lookups) in [&before, &after].into_iter().enumerate() {
            for (at, row) in self.rows.iter().enumerate() {
                let facts = bound.read(row, lookups);
                let audience = facts.audience();
                counts.found += usize::from(!matches!(audience, Audience::Scan));
                counts.members += usize::from(matches!(audience, Audience::Members(..)));
                for (who, projection) in projections.iter().enumerate() {
                    let truth = case.states[state].truth[who].as_bytes()[at];
                    let native = facts.judge(projection);
                    let key = format!("{native:?}/{}", char::from(truth));
                    *counts.verdicts.entry(key).or_default() += 1;
                    seen[usize::from(truth == b'T')] = true;
                    visible[state].push(native == Verdict::True);
                    let raises = case.errors || grammar::raises(grammar::CLAIMS[who]);
                    let problem = match (native, truth) {
                        // Beside what decides PostgreSQL may come upon an error.
                        (Verdict::True, b'E') if raises => continue,
                        (Verdict::True, b'T') if !in_audience(&facts, projection) => {
                            "missing in the audience"
                        }
                        (Verdict::True, b'T') => continue,
                        (Verdict::True, _) => "LEAK",
                        (Verdict::Undecided, b'R' | b'P') => "not denied",
                        (Verdict::False | Verdict::Null | Verdict::Error, b'T') => "hidden",
                        _ => continue,
                    };
                    wrong.push(complain(&format!(
                        "{problem}: native {native:?}, PostgreSQL {}, row {:?}, claims {}, state {:?}",
                        char::from(truth),
                        row.values().collect::<Vec<_>>(),
                        grammar::CLAIMS[who],
                        case.states[state].rows,
                    )));
                }
            }
        }
        counts.both += usize::from(seen == [true, true]);
        self.affected(
            case,
            &predicate,
            [&before, &after],
            &projections,
            &visible,
            counts,
            wrong,
        );
    }

    #[allow(clippy::too_many_arguments, reason = "a test")]
    fn affected(
        &self,
        case: &Case,
        predicate: &Predicate,
        [before, after]: [&Lookups; 2],
        projections: &[Projection],
        visible: &[Vec<bool>; 2],
        counts: &mut Counts,
        wrong: &mut Vec<String>,
    ) {
        let mut affected = vec![false; projections.len()];
        for wanted in predicate.lookups() {
            let (old, new) = (before.get(wanted.table), after.get(wanted.table));
            let (old, new) = (old.unwrap(), new.unwrap());
            let (gone, come) = (difference(old, new), difference(new, old));
            assert!(gone.len() <= 1 && come.len() <= 1, "one row changes");
            let (gone, come) = (gone.first(), come.first());
            if gone.is_none() && come.is_none() {
                continue;
            }
            // The state before and the one behind tell as much.
            let lookups = if self.seed.is_multiple_of(2) {
                before
            } else {
                after
            };
            let answer = predicate.affected(
                wanted.table,
                gone.map(|row| &**row),
                come.map(|row| &**row),
                lookups,
            );
            for (who, projection) in projections.iter().enumerate() {
                let besides = projection.is_undecided() || projection.fails();
                affected[who] |= match &answer {
                    Affected::Nobody => false,
                    Affected::Everybody => true,
                    Affected::Probes(probes) => {
                        let mut probes = probes.iter();
                        assert!(
                            probes
                                .clone()
                                .all(|one| predicate.probed_slots().contains(&one.slot))
                        );
                        besides || probes.any(|one| projection.slot(one.slot) == Some(&one.datum))
                    }
                };
            }
        }
        counts.affected += affected.iter().filter(|one| **one).count();
        counts.spared += affected.iter().filter(|one| !**one).count();
        for (at, (was, is)) in visible[0].iter().zip(&visible[1]).enumerate() {
            let who = at % projections.len();
            counts.flips += usize::from(was != is);
            if was != is && !affected[who] {
                wrong.push(format!(
                    "not affected: claims {}, row {}, seed {}: {:#?}, then {}, of {:?}",
                    grammar::CLAIMS[who],
                    at / projections.len() + 1,
                    self.seed,
                    case.sql,
                    case.change,
                    case.states[0].rows,
                ));
            }
        }
    }
}

fn in_audience(facts: &Facts<'_>, projection: &Projection) -> bool {
    let probed = |slot: usize, datum: &Datum| projection.slot(slot) == Some(datum);
    match facts.audience() {
        Audience::Nobody => false,
        Audience::Scan | Audience::Everyone => true,
        Audience::Probes(probes) => probes.iter().any(|one| probed(one.slot, &one.datum)),
        Audience::Members(probes, members) => {
            let mut found = probes.iter().any(|one| probed(one.slot, &one.datum));
            for members in &members {
                let walked = members.values().any(|datum| probed(members.slot(), datum));
                let value = projection.slot(members.slot());
                let contained = value.is_some_and(|datum| members.contains(datum));
                assert_eq!(walked, contained, "both walks find the same");
                found |= walked;
            }
            found
        }
    }
}

/// The rows of one that are not in the other, as often as they are there.
fn difference(one: &Mirror, other: &Mirror) -> Vec<Looked> {
    let mut rest = other.clone();
    let rows = one.rows().filter(|row| !rest.remove(row));
    rows.cloned().collect()
}

/// The mirrors that an access wants, with those rows.
fn lookups(catalog: &Catalog, access: &Access, state: &State) -> Lookups {
    let mut lookups = Lookups::default();
    for wanted in &access.lookups {
        let table = &catalog.tables[&wanted.table];
        let key: Vec<_> = wanted
            .columns
            .iter()
            .filter(|column| table.name == "g" && &*column.name == "id")
            .cloned()
            .collect();
        let mut mirror = Mirror::new(wanted, &key);
        let (_, columns) = grammar::LOOKUPS
            .iter()
            .find(|(name, _)| *name == table.name)
            .unwrap();
        for row in &state.rows[table.name.as_str()] {
            let values = mirror.columns().iter().map(|column| {
                let at = columns.iter().position(|name| *name == &*column.name);
                let text = row[at.unwrap()].as_deref()?;
                Some(Datum::from_output(&column.of, text).unwrap())
            });
            let values: Looked = values.collect();
            mirror.insert(values);
        }
        lookups.put(wanted.table, mirror);
    }
    lookups
}

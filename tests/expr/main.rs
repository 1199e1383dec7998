//! Native verdicts against those of a real PostgreSQL, on random policies, rows and claims.
//!
//! `ROWCAST_SEED` repeats a run, `ROWCAST_CASES` sets its size.

#![allow(missing_docs, unreachable_pub, reason = "a test")]
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test"
)]
#![allow(clippy::indexing_slicing, reason = "a test")]

mod cluster;
mod grammar;
#[cfg(not(feature = "mutants"))]
mod majors;
#[cfg(not(feature = "mutants"))]
mod values;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use cluster::Cluster;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rowcast::auth::{Claims, Principal};
use rowcast::change::{Column, Relation, ReplicaIdentity, Row, RowBuilder, Value};
use rowcast::datum::{Collation, Labels, UserType};
use rowcast::lookup::Lookups;
use rowcast::pg::Oid;
use rowcast::policy::body::{Body, Context};
use rowcast::policy::clock::ServerClock;
use rowcast::policy::compile::{self, Scope};
use rowcast::policy::expr::Expr;
use rowcast::policy::{Audience, Predicate, Projection, Verdict};
use tokio_postgres::{Client, SimpleQueryMessage};

const ROWS: usize = 24;

/// A set of policies, as compiled, and what PostgreSQL says: for each of the claims a letter a row.
struct Case {
    sql: Vec<String>,
    trees: Vec<(bool, String)>,
    truth: Vec<String>,
}

struct World {
    scope: Scope,
    relation: Relation,
    rows: Vec<Row>,
    cases: Vec<Case>,
    seed: u64,
}

async fn rows_of(client: &Client, sql: &str) -> Vec<Vec<Option<String>>> {
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

async fn scope_of(client: &Client) -> Scope {
    let version = rows_of(client, "show server_version_num").await;
    let version: u32 = version[0][0].as_deref().unwrap().parse().unwrap();
    let mut scope = Scope {
        major: u16::try_from(version / 10_000).unwrap(),
        // The server runs beside.
        clock: Arc::new(ServerClock::local()),
        ..Scope::default()
    };
    let oid = |text: &Option<String>| Oid(text.as_deref().unwrap().parse().unwrap());
    for row in rows_of(
        client,
        "select attnum, attname, atttypid, atttypmod, attcollation
        from pg_attribute where attrelid = 't'::regclass and attnum > 0",
    )
    .await
    {
        let column = compile::Column {
            name: Arc::from(row[1].as_deref().unwrap()),
            type_oid: oid(&row[2]),
            type_modifier: row[3].as_deref().unwrap().parse().unwrap(),
            collation: oid(&row[4]),
        };
        scope
            .columns
            .insert(row[0].as_deref().unwrap().parse().unwrap(), column);
    }
    let labels = rows_of(
        client,
        "select oid, enumlabel, enumtypid from pg_enum order by enumsortorder",
    )
    .await;
    let named = labels
        .iter()
        .map(|row| (oid(&row[0]), row[1].as_deref().unwrap()));
    let labels_of = Labels::in_order(named);
    scope
        .types
        .user
        .insert(oid(&labels[0][2]), UserType::Enum(Arc::new(labels_of)));
    for row in rows_of(
        client,
        "select oid, typbasetype from pg_type where typname = 'slug'",
    )
    .await
    {
        scope
            .types
            .user
            .insert(oid(&row[0]), UserType::Domain { base: oid(&row[1]) });
    }
    for row in rows_of(
        client,
        "select typarray, oid from pg_type where typtype = 'e'",
    )
    .await
    {
        let element = oid(&row[1]);
        scope
            .types
            .user
            .insert(oid(&row[0]), UserType::Array { element });
    }
    for row in rows_of(
        client,
        "select 'citext'::regtype::oid, '=(citext,citext)'::regoperator::oid,
        '<>(citext,citext)'::regoperator::oid",
    )
    .await
    {
        let (equal, unequal) = (oid(&row[1]), oid(&row[2]));
        scope
            .types
            .user
            .insert(oid(&row[0]), UserType::Citext { equal, unequal });
    }
    scope.types.collations.insert(
        Oid(100),
        Collation {
            plain_case: true,
            ..Collation::DEFAULT
        },
    );
    for row in rows_of(
        client,
        "select oid, proargtypes::text, prorettype, proisstrict, prosecdef,
        proconfig is not null, prosqlbody::text from pg_proc where prosqlbody is not null
        and oid >= 16384 and not exists (
            select from pg_depend d where d.objid = pg_proc.oid and d.deptype = 'e')",
    )
    .await
    {
        let arguments = row[1].as_deref().unwrap().split_whitespace();
        let definer = row[4].as_deref() == Some("t");
        let context = Context {
            role: Oid(if definer { 10 } else { 0 }),
            path: None,
        };
        let function = compile::Function {
            name: row[0].clone().unwrap(),
            arguments: arguments.map(|oid| Oid(oid.parse().unwrap())).collect(),
            result: oid(&row[2]),
            set: false,
            strict: row[3].as_deref() == Some("t"),
            definer: definer.then(|| (Oid(10), Arc::from("postgres"))),
            defaults: None,
            configured: row[5].as_deref() == Some("t"),
            path: None,
            row: None,
            row_security: None,
            barred: BTreeSet::new(),
            bodies: HashMap::from([(
                context,
                Ok(Body::Query(Arc::from(row[6].as_deref().unwrap()))),
            )]),
        };
        scope.functions.insert(oid(&row[0]), function);
    }
    scope
}

/// Whether a policy could be made: a constant that its type does not take is refused right there.
async fn made(client: &Client, number: usize, text: &str) -> bool {
    let policy = format!("create policy p{number} on t {text}");
    client.batch_execute(&policy).await.is_ok()
}

impl World {
    async fn make(client: &Client) -> Self {
        let number = |name| {
            std::env::var(name)
                .ok()
                .and_then(|text| text.parse::<u64>().ok())
        };
        let seed = number("ROWCAST_SEED").unwrap_or(20_261_121);
        let wanted = number("ROWCAST_CASES").unwrap_or(if cfg!(feature = "mutants") {
            60_000
        } else {
            15_000
        });
        eprintln!("ROWCAST_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        client.batch_execute(grammar::SCHEMA).await.unwrap();
        for id in 1..=ROWS {
            let values = grammar::COLUMNS.map(|(_, pool)| grammar::value(&mut random, pool));
            let names = grammar::COLUMNS.map(|(name, _)| name).join(", ");
            let sql = format!(
                "insert into t (id, {names}) values ({id}, {})",
                values.join(", ")
            );
            client.batch_execute(&sql).await.unwrap();
        }
        let rows = rows_of(client, "select * from t order by id").await;
        let rows = rows.iter().map(|row| {
            let mut builder = RowBuilder::default();
            for value in row {
                builder.push(value.as_deref().map_or(Value::Null, Value::Text));
            }
            builder.finish()
        });
        let rows = rows.collect();
        let scope = scope_of(client).await;
        let mut attributes: Vec<_> = scope.columns.iter().collect();
        attributes.sort_by_key(|(number, _)| **number);
        let columns = attributes.into_iter().map(|(_, column)| Column {
            name: Arc::clone(&column.name),
            type_oid: column.type_oid,
            type_modifier: column.type_modifier,
            identity: true,
        });
        let relation = Relation {
            oid: Oid(1),
            schema: Arc::from("public"),
            name: Arc::from("t"),
            replica_identity: ReplicaIdentity::Full,
            columns: columns.collect(),
            types: Arc::default(),
            version: 1,
        };
        let mut world = Self {
            scope,
            relation,
            rows,
            cases: Vec::new(),
            seed,
        };
        for text in grammar::singles(&mut random) {
            let text = format!("for select to authenticated using ({text})");
            if made(client, 0, &text).await {
                world.noted(client, vec![text]).await;
            }
        }
        let mut drawn = 0;
        while drawn < wanted {
            world.case(client, &mut random).await;
            drawn += (ROWS * grammar::CLAIMS.len()) as u64;
        }
        world
    }

    async fn case(&mut self, client: &Client, random: &mut StdRng) {
        let mut sql = Vec::new();
        for permissive in [true, true, false] {
            while sql.is_empty() || random.random_bool(0.3) {
                let depth = random.random_range(2..=5);
                let kind = if permissive {
                    "permissive"
                } else {
                    "restrictive"
                };
                let text = grammar::boolean(random, depth);
                let text = format!("as {kind} for select to authenticated using ({text})");
                if made(client, sql.len(), &text).await {
                    sql.push(text);
                }
            }
        }
        self.noted(client, sql).await;
    }

    /// Keeps what PostgreSQL says of the policies that there are, and drops them.
    async fn noted(&mut self, client: &Client, sql: Vec<String>) {
        let trees = rows_of(client, "select polpermissive, polqual::text from pg_policy").await;
        let trees = trees
            .into_iter()
            .map(|mut row| (row[0].as_deref() == Some("t"), row[1].take().unwrap()));
        let trees = trees.collect();
        let mut truth = Vec::new();
        for claims in grammar::CLAIMS {
            let claims = rowcast::pg::quote_literal(claims);
            let ask = format!(
                "begin; set local role authenticated;
                select set_config('request.jwt.claims', {claims}, true);
                select verdicts({ROWS}); commit"
            );
            truth.push(
                rows_of(client, &ask).await.pop().unwrap()[0]
                    .take()
                    .unwrap(),
            );
        }
        for number in 0..sql.len() {
            client
                .batch_execute(&format!("drop policy p{number} on t"))
                .await
                .unwrap();
        }
        self.cases.push(Case { sql, trees, truth });
    }

    fn principals() -> Vec<Principal> {
        let principal = |claims: &&str| Principal {
            role: Arc::from("authenticated"),
            claims: Claims::verified(*claims),
            expires_at: None,
        };
        grammar::CLAIMS.iter().map(principal).collect()
    }

    fn judge(&self, policies: (Vec<Expr>, Vec<Expr>), row: &Row, principal: &Principal) -> Verdict {
        let predicate = Arc::new(Predicate::new(policies.0, policies.1));
        let bound = predicate.bind(&self.relation).unwrap();
        bound
            .read(row, &Lookups::default())
            .judge(&predicate.project(principal))
    }

    /// Whether PostgreSQL may raise an error where the native verdict is true: only where a
    /// decided AND or OR has an error beside what decides it, or where an expression without
    /// columns raises it: the planner may evaluate that ahead, for its estimates, on any branch.
    fn beside_error(&self, expr: &Expr, row: &Row, principal: &Principal) -> bool {
        let verdict = |expr: &Expr| self.judge((vec![expr.clone()], vec![]), row, principal);
        let (all, decided) = match expr {
            Expr::And(all) => (all, Verdict::False),
            Expr::Or(all) => (all, Verdict::True),
            _ => (&Vec::new(), Verdict::Null),
        };
        let error = |one: &Expr| matches!(verdict(one), Verdict::Error | Verdict::Undecided);
        let ahead = !expr.reads_row() && error(&Expr::IsNull(Box::new(expr.clone()), false));
        ahead
            || (verdict(expr) == decided && all.iter().any(error))
            || expr
                .children()
                .into_iter()
                .any(|inner| self.beside_error(inner, row, principal))
    }

    /// What native and PostgreSQL disagree about, and counts.
    fn compare(&self, counts: &mut Counts) -> Vec<String> {
        let mut wrong = Vec::new();
        let principals = Self::principals();
        for case in &self.cases {
            let (mut permissive, mut restrictive) = (Vec::new(), Vec::new());
            let mut refused = None;
            for (is_permissive, tree) in &case.trees {
                match compile::compile(tree, &self.scope) {
                    Ok(compiled) if *is_permissive => permissive.push(compiled.expr),
                    Ok(compiled) => restrictive.push(compiled.expr),
                    Err(refusal) => refused = Some(refusal),
                }
            }
            if let Some(refusal) = refused {
                counts.refused.push(refusal.reason);
                continue;
            }
            counts.compiled += 1;
            let predicate = Arc::new(Predicate::new(permissive.clone(), restrictive.clone()));
            let bound = predicate.bind(&self.relation).unwrap();
            let projections: Vec<Projection> = principals
                .iter()
                .map(|one| predicate.project(one))
                .collect();
            let mut seen = [false; 2];
            for (at, row) in self.rows.iter().enumerate() {
                let lookups = Lookups::default();
                let facts = bound.read(row, &lookups);
                let audience = facts.audience();
                for (who, projection) in projections.iter().enumerate() {
                    let native = facts.judge(projection);
                    let truth = case.truth[who].as_bytes()[at];
                    counts.add(native, truth);
                    seen[usize::from(truth == b'T')] = true;
                    let found = match &audience {
                        Audience::Nobody => false,
                        Audience::Scan | Audience::Everyone => true,
                        Audience::Probes(probes) => probes
                            .iter()
                            .any(|probe| projection.has(probe.slot, &probe.datum)),
                        Audience::Members(..) => panic!("no policy here looks elsewhere"),
                    };
                    let problem = match (native, truth) {
                        (Verdict::True, b'F') => "LEAK",
                        (Verdict::True, b'E') => {
                            let all = Expr::And(
                                [vec![Expr::Or(permissive.clone())], restrictive.clone()].concat(),
                            );
                            if self.beside_error(&all, row, &principals[who]) {
                                continue;
                            }
                            "LEAK of an error"
                        }
                        (Verdict::False | Verdict::Null | Verdict::Error, b'T') => "hidden",
                        (Verdict::True, _) if !found => "missing in the audience",
                        _ => continue,
                    };
                    wrong.push(format!(
                        "{problem}: native {native:?}, PostgreSQL {}, row {:?}, claims {}, seed {}: {:?}",
                        char::from(truth), row.values().collect::<Vec<_>>(), grammar::CLAIMS[who], self.seed, case.sql
                    ));
                }
            }
            counts.both += usize::from(seen == [true, true]);
        }
        wrong.sort_by_key(String::len);
        wrong
    }
}

#[derive(Debug, Default)]
struct Counts {
    compiled: usize,
    both: usize,
    refused: Vec<String>,
    verdicts: std::collections::BTreeMap<String, usize>,
}

impl Counts {
    fn add(&mut self, native: Verdict, truth: u8) {
        let key = format!("{native:?}/{}", char::from(truth));
        *self.verdicts.entry(key).or_default() += 1;
    }

    #[cfg(not(feature = "mutants"))]
    fn of(&self, key: &str) -> usize {
        self.verdicts
            .iter()
            .filter(|(known, _)| known.starts_with(key))
            .map(|(_, count)| count)
            .sum()
    }
}

#[cfg(not(feature = "mutants"))]
#[tokio::test]
async fn native_verdicts_are_postgresqls() {
    let cluster = Cluster::start().await;
    let client = cluster.connect().await;
    let world = World::make(&client).await;
    let mut counts = Counts::default();
    let wrong = world.compare(&mut counts);
    eprintln!("PostgreSQL {}: {counts:?}", world.scope.major);
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.iter().take(5).cloned().collect::<Vec<_>>().join("\n")
    );
    eprintln!("expressions: {} cases, 0 shown too much", counts.of(""));
    assert!(
        counts.compiled > 8 * counts.refused.len(),
        "most of the grammar compiles"
    );
    assert!(4 * counts.both > counts.compiled, "both outcomes occur");
    assert!(
        20 * counts.of("Undecided") < counts.of(""),
        "little is undecided"
    );
}

#[cfg(feature = "mutants")]
#[tokio::test]
async fn every_mutant_is_noticed() {
    use rowcast::mutant::{OperatorMutant, PolicyMutant};

    let cluster = Cluster::start().await;
    let client = cluster.connect().await;
    let world = World::make(&client).await;
    let wrong = world.compare(&mut Counts::default());
    assert!(
        wrong.is_empty(),
        "right without a mutant: {:?}",
        wrong.first()
    );
    let only = std::env::var("ROWCAST_MUTANT").ok();
    let mut survivors = Vec::new();
    let mut tried = |name: String, switch_on: &dyn Fn()| {
        if only.as_ref().is_some_and(|only| *only != name) {
            return;
        }
        switch_on();
        let noticed = world.compare(&mut Counts::default()).len();
        eprintln!("{name}: noticed {noticed} times");
        if noticed == 0 {
            survivors.push(name);
        }
    };
    for mutant in PolicyMutant::ALL {
        tried(format!("{mutant:?}"), &|| mutant.switch_on());
    }
    PolicyMutant::switch_off();
    for mutant in OperatorMutant::ALL {
        tried(format!("{mutant:?}"), &|| mutant.switch_on());
    }
    assert!(survivors.is_empty(), "not noticed: {survivors:?}");
}

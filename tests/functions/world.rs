//! Cases as PostgreSQL has them, and their comparison with native verdicts.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::StdRng;
use rowcast::auth::{Claims, Principal};
use rowcast::change::{Column, Relation, ReplicaIdentity, Row, RowBuilder, Value};
use rowcast::datum::Datum;
use rowcast::lookup::{Looked, Lookups, Mirror};
use rowcast::pg::Oid;
use rowcast::pg::connect::Database;
use rowcast::policy::access::{Access, Rules};
use rowcast::policy::catalog::Catalog;
use rowcast::policy::reader::CatalogReader;
use rowcast::policy::{Audience, Facts, Projection, Verdict};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::grammar;
use crate::traps::Trap;

type Texts = Vec<Option<String>>;

/// The roles that ask, and the path that they do it with where no other is set.
const ROLES: [&str; 2] = ["authenticated", "anon"];
const PATH: &str = "\"$user\", public";

const RESET: &str = r#"
reset search_path;
do $$ declare r record; begin
  for r in select polname, polrelid::regclass as of from pg_policy loop
    execute format('drop policy %I on %s', r.polname, r.of);
  end loop;
  for r in select oid from pg_proc where proname like 'f\_%' loop
    -- One whose default calls another goes with that.
    if exists (select from pg_proc where oid = r.oid) then
      execute format('drop function %s cascade', r.oid::regprocedure);
    end if;
  end loop;
  for r in select relname from pg_class where relnamespace = 'decoy'::regnamespace and relkind = 'v' loop
    execute format('drop view if exists decoy.%I cascade', r.relname);
  end loop;
  for r in select relname from pg_class where relnamespace = 'decoy'::regnamespace and relkind = 'r' loop
    execute format('drop table decoy.%I', r.relname);
  end loop;
  execute format('alter role %I reset search_path', current_user);
end $$;
alter table m disable row level security; alter table m no force row level security;
alter table g disable row level security; alter table g no force row level security;
revoke all on m, g, profiles from authenticated, anon, plain;
revoke select on t from plain;
grant select on m, g, profiles to authenticated, plain; grant select on m, g, profiles to keeper;
grant usage on schema decoy to public;
"#;

pub struct Case {
    name: String,
    sql: Vec<String>,
    errors: bool,
    catalog: Arc<Catalog>,
    /// The rows of each table, with the names of its columns.
    rows: BTreeMap<String, (Vec<String>, Vec<Texts>)>,
    /// By role and claims: a letter for each row.
    truth: BTreeMap<(&'static str, usize), String>,
}

pub struct World {
    client: Client,
    reader: CatalogReader,
    relation: Relation,
    rows: Vec<Row>,
}

#[derive(Debug, Default)]
pub struct Counts {
    /// Cases and roles.
    pub native: usize,
    pub asked: usize,
    pub denied: usize,
    pub both: usize,
    pub judged: usize,
    pub undecided: usize,
    /// Audiences by index.
    pub found: usize,
    pub refused: BTreeMap<String, usize>,
    pub verdicts: BTreeMap<String, usize>,
}

impl Counts {
    /// What became of a single case.
    pub fn outcome(&self) -> String {
        let reasons: Vec<&str> = self.refused.keys().map(String::as_str).collect();
        format!(
            "native {}, asked {}, denied {}, {}",
            self.native,
            self.asked,
            self.denied,
            reasons.join("; ")
        )
    }
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

fn principal(role: &str, claims: &str) -> Principal {
    Principal {
        role: Arc::from(role),
        claims: Claims::verified(claims),
        expires_at: None,
    }
}

impl World {
    pub async fn new(url: &str) -> Self {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
            .batch_execute("set jit = off; set client_min_messages = warning")
            .await
            .unwrap();
        client.batch_execute(grammar::SCHEMA).await.unwrap();
        let roles = ROLES.map(str::to_owned);
        let followed = ("p".to_owned(), "slot".to_owned());
        let reader = CatalogReader::new(Database::parse(url).unwrap(), followed, roles);
        let mut relation = Relation {
            oid: Oid(0),
            schema: Arc::from("public"),
            name: Arc::from("t"),
            replica_identity: ReplicaIdentity::Full,
            columns: Vec::new(),
            types: Arc::default(),
            version: 1,
        };
        let mut rows = Vec::new();
        for row in rows_of(&client, "select * from t order by id").await {
            let mut builder = RowBuilder::default();
            for value in &row {
                builder.push(value.as_deref().map_or(Value::Null, Value::Text));
            }
            rows.push(builder.finish());
        }
        let columns = "select attname, atttypid, atttypmod, attrelid from pg_attribute
            where attrelid = 't'::regclass and attnum > 0 order by attnum";
        for row in rows_of(&client, columns).await {
            let number = |at: usize| row[at].as_deref().unwrap();
            relation.oid = Oid(number(3).parse().unwrap());
            relation.columns.push(Column {
                name: Arc::from(number(0)),
                type_oid: Oid(number(1).parse().unwrap()),
                type_modifier: number(2).parse().unwrap(),
                identity: true,
            });
        }
        Self {
            client,
            reader,
            relation,
            rows,
        }
    }

    pub async fn trap(&mut self, trap: &Trap) -> Case {
        self.client.batch_execute(grammar::ROWS).await.unwrap();
        self.case(trap.name, &[trap.sql.to_owned()], trap.path, trap.errors)
            .await
    }

    /// A case that PostgreSQL takes.
    pub async fn random_case(
        &mut self,
        random: &mut StdRng,
        sql: &[String],
        path: Option<&'static str>,
    ) -> Option<Case> {
        self.client.batch_execute(RESET).await.unwrap();
        self.client
            .batch_execute("truncate m, g, profiles")
            .await
            .unwrap();
        for table in ["m", "g", "profiles"] {
            for id in 0..random.random_range(0..6) {
                let insert = grammar::row(random, table, id);
                self.client.batch_execute(&insert).await.unwrap();
            }
        }
        let granted = random.random_bool(0.8);
        if granted {
            self.client
                .batch_execute("grant select on m, g to anon")
                .await
                .unwrap();
        }
        for one in sql {
            self.client.batch_execute(one).await.ok()?;
        }
        // Beside what decides PostgreSQL may come upon what these raise.
        let raising = [
            "strict v",
            "raise",
            "true; end if; end",
            "select x.s into",
            "begin",
        ];
        let errors = sql
            .iter()
            .any(|one| raising.iter().any(|part| one.contains(part)));
        let several = sql
            .iter()
            .filter(|one| one.starts_with("create policy p"))
            .count()
            > 1;
        let joined = sql.iter().any(|one| one.contains("s = 'admin' or f_"));
        Some(
            self.noted(
                "random",
                sql,
                path,
                (errors || !granted) && (several || joined),
            )
            .await,
        )
    }

    pub async fn case(
        &mut self,
        name: &str,
        sql: &[String],
        path: Option<&'static str>,
        errors: bool,
    ) -> Case {
        self.client.batch_execute(RESET).await.unwrap();
        for one in sql {
            let done = self.client.batch_execute(one).await;
            done.unwrap_or_else(|error| panic!("{name}: {one}: {error:?}"));
        }
        self.noted(name, sql, path, errors).await
    }

    async fn noted(
        &mut self,
        name: &str,
        sql: &[String],
        path: Option<&'static str>,
        errors: bool,
    ) -> Case {
        if let Some(path) = path {
            let set = format!("alter role current_user set search_path = {path}");
            self.client.batch_execute(&set).await.unwrap();
        }
        let catalog = self.reader.look().await.unwrap();
        let mut rows = BTreeMap::new();
        for table in catalog.tables.values().filter(|table| table.view.is_none()) {
            let names: Vec<String> = table.columns.iter().map(|one| one.name.clone()).collect();
            let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
            let sql = format!("select {} from {}", quoted.join(", "), table.sql_name());
            rows.insert(table.sql_name(), (names, rows_of(&self.client, &sql).await));
        }
        let mut truth = BTreeMap::new();
        for role in ROLES {
            for (who, claims) in grammar::CLAIMS.iter().enumerate() {
                let claims = rowcast::pg::quote_literal(claims);
                let path = path.unwrap_or(PATH);
                let ask = format!(
                    "begin; set local role {role}; set local search_path = {path};
                    select set_config('request.jwt.claims', {claims}, true);
                    select public.verdicts({}); commit",
                    self.rows.len()
                );
                let answer = rows_of(&self.client, &ask).await.pop().unwrap()[0].take();
                truth.insert((role, who), answer.unwrap());
            }
        }
        Case {
            name: name.to_owned(),
            sql: sql.to_vec(),
            errors,
            catalog,
            rows,
            truth,
        }
    }

    pub fn access(&self, case: &Case, role: &str) -> Access {
        let table = case.catalog.published("public", "t").unwrap();
        Access::new(&case.catalog, table, role)
    }

    /// What native and PostgreSQL disagree about, and counts.
    pub fn compare(&self, case: &Case, counts: &mut Counts, wrong: &mut Vec<String>) {
        for role in ROLES {
            self.one(case, role, counts, wrong);
        }
    }

    fn one(&self, case: &Case, role: &'static str, counts: &mut Counts, wrong: &mut Vec<String>) {
        let access = self.access(case, role);
        let complain = |what: &str| format!("{}, {role}: {what}: {:#?}", case.name, case.sql);
        let predicate = match &access.rules {
            Rules::Nothing(reason) => {
                counts.denied += 1;
                *counts.refused.entry(reason.clone()).or_default() += 1;
                let truths = case.truth.iter().filter(|((asking, _), _)| *asking == role);
                if truths.clone().any(|(_, letters)| letters.contains('T')) {
                    wrong.push(complain(&format!("nothing, because of {reason}")));
                }
                return;
            }
            Rules::Everything => panic!("row-level security is on"),
            Rules::Judged { asked: true, .. } => {
                counts.asked += 1;
                for (_, reason) in &access.asked_because {
                    *counts.refused.entry(reason.clone()).or_default() += 1;
                }
                return;
            }
            Rules::Judged { predicates, .. } => Arc::clone(&predicates[0]),
        };
        counts.native += 1;
        let lookups = lookups(case, &access);
        let bound = predicate.bind(&self.relation).unwrap();
        let mut seen = [false; 2];
        for (at, row) in self.rows.iter().enumerate() {
            let facts = bound.read(row, &lookups);
            counts.found += usize::from(!matches!(facts.audience(), Audience::Scan));
            for (who, claims) in grammar::CLAIMS.iter().enumerate() {
                let projection = predicate.project(&principal(role, claims));
                let letters = case.truth[&(role, who)].as_bytes();
                let truth = letters[at];
                let native = facts.judge(&projection);
                counts.judged += 1;
                counts.undecided += usize::from(native == Verdict::Undecided);
                let key = format!("{native:?}/{}", char::from(truth));
                *counts.verdicts.entry(key).or_default() += 1;
                seen[usize::from(truth == b'T')] = true;
                let raises = case.errors || grammar::raises(claims);
                let problem = match (native, truth) {
                    // Beside what decides PostgreSQL may come upon an error.
                    (Verdict::True, b'E' | b'P' | b'R') if raises => continue,
                    (Verdict::True, b'T') if !in_audience(&facts, &projection) => {
                        "missing in the audience"
                    }
                    (Verdict::True, b'T') => continue,
                    (Verdict::True, _) => "LEAK",
                    // Behind an error PostgreSQL plans the expressions of a PL/pgSQL function with
                    // the values in hand until the transaction ends: beside a NULL it then does not
                    // come upon what raises. A `select` has ended with the first error.
                    (Verdict::Error, b'T') if letters[..at].contains(&b'E') => continue,
                    (Verdict::False | Verdict::Null | Verdict::Error, b'T') => "hidden",
                    _ => continue,
                };
                wrong.push(complain(&format!(
                    "{problem}: native {native:?}, PostgreSQL {}, row {:?}, claims {claims}, {:?}",
                    char::from(truth),
                    row.values().collect::<Vec<_>>(),
                    case.rows,
                )));
            }
        }
        counts.both += usize::from(seen == [true, true]);
    }
}

fn in_audience(facts: &Facts<'_>, projection: &Projection) -> bool {
    let probed = |slot: usize, datum: &Datum| projection.slot(slot) == Some(datum);
    match facts.audience() {
        Audience::Nobody => false,
        Audience::Scan | Audience::Everyone => true,
        Audience::Probes(probes) => probes.iter().any(|one| probed(one.slot, &one.datum)),
        Audience::Members(probes, members) => {
            probes.iter().any(|one| probed(one.slot, &one.datum))
                || members.iter().any(|members| {
                    let value = projection.slot(members.slot());
                    value.is_some_and(|datum| members.contains(datum))
                })
        }
    }
}

/// The mirrors that an access wants.
fn lookups(case: &Case, access: &Access) -> Lookups {
    let mut lookups = Lookups::default();
    for wanted in &access.lookups {
        let table = &case.catalog.tables[&wanted.table];
        let mut mirror = Mirror::new(wanted, &[]);
        let (names, rows) = &case.rows[&table.sql_name()];
        for row in rows {
            let values = mirror.columns().iter().map(|column| {
                let at = names.iter().position(|name| *name == *column.name);
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

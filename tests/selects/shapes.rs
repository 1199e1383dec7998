//! The shapes in which memberships are written, functions included: whoever may see a row is found
//! from the row, without asking every principal, and so is whom a change of a membership concerns.

use std::sync::Arc;

use rowcast::auth::{Claims, Principal};
use rowcast::change::{Column, Relation, ReplicaIdentity, Row, Value};
use rowcast::datum::Datum;
use rowcast::lookup::{Looked, Lookups, Mirror};
use rowcast::pg::Oid;
use rowcast::pg::connect::Database;
use rowcast::pg::throwaway::{Options, Throwaway};
use rowcast::policy::access::{Access, Rules};
use rowcast::policy::catalog::Catalog;
use rowcast::policy::reader::CatalogReader;
use rowcast::policy::{Affected, Audience, Bound, Projection, Verdict};
use tokio_postgres::{Client, NoTls};

use crate::grammar;

const USERS: usize = 1_000;
const ORGS: usize = 50;

/// The functions that the shapes call.
const FUNCTIONS: &str = "
create function f_member(o int) returns boolean language sql stable security definer
  set search_path = '' as $$
  select exists (select 1 from public.m where m.org = o and m.u = auth.uid()) $$;
create function f_invoker(o int) returns boolean language sql stable as $$
  select exists (select 1 from public.m where m.org = $1 and m.u = (select auth.uid())) $$;
create function f_strict(o int) returns boolean language sql stable strict security definer
  set search_path = '' as $$
  select coalesce((select m.ok from public.m where m.org = o and m.u = auth.uid() limit 1), false) $$;
create function f_org() returns int language sql stable security definer set search_path = '' as $$
  select m.org from public.m where m.u = auth.uid() limit 1 $$;
create function f_orgs() returns int[] language sql stable security definer
  set search_path = '' as $$
  select coalesce(array_agg(m.org), '{}') from public.m where m.u = auth.uid() $$;
create function f_plain(o int) returns boolean language plpgsql stable security definer
  set search_path = '' as $$
  begin return exists (select 1 from public.m where m.org = o and m.u = auth.uid()); end $$;
create function f_joined(o int) returns boolean language sql stable security definer
  set search_path = '' as $$
  select exists (select 1 from public.m join public.g on g.id = m.org
    where g.org = o and m.u = auth.uid()) $$;
";

/// Policies of `t` by which a row of organisation 7 is seen by the members of that organisation.
const SHAPES: &[&str] = &[
    "org in (select m.org from m where m.u = auth.uid())",
    "f_member(org)",
    "org = any (f_orgs())",
    "org = any ((select f_orgs())::int[])",
    "org = any (array(select m.org from m where m.u = auth.uid()))",
    "exists (select 1 from m where m.org = t.org and m.u = auth.uid())",
    "f_invoker(org)",
    "f_strict(org)",
    "f_plain(org)",
    "f_joined(org)",
    "(select f_member(org))",
    "coalesce(f_member(org), false)",
    "case when f_member(org) then true else false end",
    "f_member(org) is true",
    "(f_member(org) and ok) or u = auth.uid()",
    "org = f_org()",
    "org = (select f_org())",
    "org = (select m.org from m where m.u = auth.uid())",
    "org = (select m.org from m where m.u = auth.uid() order by m.org limit 1)",
    "(select count(*) from m where m.org = t.org and m.u = auth.uid()) > 0",
    "(select bool_or(m.ok) from m where m.org = t.org and m.u = auth.uid())",
    "exists (select 1 from m join g on g.id = m.org where g.org = t.org and m.u = auth.uid())",
    "exists (select 1 from m join g using (org) where org = t.org and m.u = auth.uid())",
    "exists (select 1 from g left join m on m.org = g.id where g.org = t.org and m.u = auth.uid())",
    "exists (select 1 from g where g.org = t.org and f_member(g.id))",
    "org in (select g.org from g where g.id in (select m.org from m where m.u = auth.uid()))",
    "exists (with w as (select m.org from m where m.u = auth.uid()) select 1 from w where w.org = t.org)",
    "exists (select 1 from (select m.org, m.u from m where m.ok) w where w.org = t.org and w.u = auth.uid())",
];

fn user(number: usize) -> String {
    format!("00000000-0000-0000-0000-{number:012}")
}

struct Fixture {
    _server: Throwaway,
    client: Client,
    reader: CatalogReader,
}

impl Fixture {
    async fn new() -> Self {
        let server = Throwaway::start(Options::default()).await.unwrap();
        let url = server.url("postgres");
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(grammar::SCHEMA).await.unwrap();
        client.batch_execute(FUNCTIONS).await.unwrap();
        let followed = ("p".to_owned(), "slot".to_owned());
        let roles = ["authenticated".to_owned()];
        let reader = CatalogReader::new(Database::parse(&url).unwrap(), followed, roles);
        Self {
            _server: server,
            client,
            reader,
        }
    }

    /// The policy, and the lookups that it wants.
    async fn policy(&mut self, text: &str) -> (Bound, Lookups, Arc<Catalog>) {
        let sql = format!("drop policy if exists p on t; create policy p on t using ({text})");
        self.client.batch_execute(&sql).await.unwrap();
        let catalog = self.reader.look().await.unwrap();
        let table = catalog.published("public", "t").unwrap();
        let access = Access::new(&catalog, table, "authenticated");
        let Rules::Judged {
            predicates,
            asked: false,
            ..
        } = &access.rules
        else {
            panic!("{text}: {:?}, {:?}", access.rules, access.asked_because);
        };
        let columns = table.columns.iter().map(|column| Column {
            name: Arc::from(column.name.as_str()),
            type_oid: column.type_oid,
            type_modifier: column.modifier,
            identity: true,
        });
        let relation = Relation {
            oid: table.oid,
            schema: Arc::from("public"),
            name: Arc::from("t"),
            replica_identity: ReplicaIdentity::Full,
            columns: columns.collect(),
            types: Arc::default(),
            version: 1,
        };
        let mut lookups = Lookups::default();
        for wanted in &access.lookups {
            let mut mirror = Mirror::new(wanted, &[]);
            let many = if catalog.tables[&wanted.table].name == "m" {
                USERS
            } else {
                ORGS
            };
            for number in 0..many {
                let row = row_of(&mirror, number, number % ORGS);
                mirror.insert(row);
            }
            lookups.put(wanted.table, mirror);
        }
        (predicates[0].bind(&relation).unwrap(), lookups, catalog)
    }
}

fn row_of(mirror: &Mirror, number: usize, org: usize) -> Looked {
    let value = |name: &str| match name {
        "org" => org.to_string(),
        "id" => number.to_string(),
        "u" => user(number),
        "s" => format!("s{org}"),
        _ => "t".to_owned(),
    };
    let columns = mirror.columns().iter();
    let values = columns.map(|column| Datum::from_output(&column.of, &value(&column.name)).ok());
    values.collect()
}

fn principals() -> Vec<Principal> {
    let claims = |number| format!(r#"{{"sub": "{}"}}"#, user(number));
    let all = (0..USERS).map(|number| Principal {
        role: Arc::from("authenticated"),
        claims: Claims::verified(claims(number)),
        expires_at: None,
    });
    all.collect()
}

/// A row of organisation 7 that belongs to nobody.
fn row() -> Row {
    let values = ["1", "7", "ffffffff-0000-0000-0000-000000000000", "s7", "t"];
    values.into_iter().map(Value::Text).collect()
}

/// Who the audience finds; `None` where it finds everybody.
fn found(audience: &Audience, projections: &[Projection]) -> Option<Vec<usize>> {
    let (probes, members) = match audience {
        Audience::Nobody => return Some(Vec::new()),
        Audience::Scan | Audience::Everyone => return None,
        Audience::Probes(probes) => (probes, &[][..]),
        Audience::Members(probes, members) => (probes, members.as_slice()),
    };
    let is = |projection: &Projection| {
        let of = |slot| projection.slot(slot);
        probes.iter().any(|one| of(one.slot) == Some(&one.datum))
            || members
                .iter()
                .any(|one| of(one.slot()).is_some_and(|datum| one.contains(datum)))
    };
    let who = projections.iter().enumerate();
    Some(who.filter(|(_, one)| is(one)).map(|(who, _)| who).collect())
}

#[tokio::test]
async fn every_shape_of_a_membership_finds_its_audience_from_the_row_and_from_a_change() {
    let mut fixture = Fixture::new().await;
    let principals = principals();
    for text in SHAPES {
        let (bound, lookups, catalog) = fixture.policy(text).await;
        let predicate = bound.predicate();
        let all = principals.iter().map(|one| predicate.project(one));
        let projections: Vec<Projection> = all.collect();
        let facts = bound.read(&row(), &lookups);
        let audience = facts.audience();
        let found = found(&audience, &projections);
        let found = found.unwrap_or_else(|| panic!("{text}: {audience:?}"));
        let judged = projections.iter().enumerate();
        let seeing: Vec<usize> = judged
            .filter(|(_, one)| facts.judge(one) == Verdict::True)
            .map(|(who, _)| who)
            .collect();
        let members: Vec<usize> = (0..USERS).filter(|who| who % ORGS == 7).collect();
        assert_eq!(seeing, members, "{text}");
        assert_eq!(found, members, "{text}");
        let m = lookups.tables().map(|(oid, _)| oid);
        let m = m.into_iter().find(|oid| catalog.tables[oid].name == "m");
        let m: Oid = m.unwrap();
        // Somebody else joins.
        let come = row_of(lookups.get(m).unwrap(), 3, 7);
        let affected = predicate.affected(m, None, Some(&come), &lookups);
        let Affected::Probes(probes) = affected else {
            panic!("{text}: {affected:?}");
        };
        let concerned = projections.iter().enumerate().filter(|(_, one)| {
            let mut probes = probes.iter();
            probes.any(|probe| one.slot(probe.slot) == Some(&probe.datum))
        });
        let concerned: Vec<usize> = concerned.map(|(who, _)| who).collect();
        assert_eq!(concerned, [3], "{text}");
    }
}

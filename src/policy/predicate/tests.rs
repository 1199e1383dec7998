use super::*;
use crate::auth::Claims;
use crate::change::{Column, ReplicaIdentity, Value};
use crate::datum::{Collation, Type};
use crate::lookup::Mirror;
use crate::pg::Oid;
use crate::policy::expr::select::{Asked, Select, Step};
use crate::policy::expr::{Comparison, Function};

const SUB: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";

fn column(name: &str, type_oid: u32, of: Type) -> Expr {
    Expr::Column(Arc::new(ColumnRef {
        name: Arc::from(name),
        type_oid: Oid(type_oid),
        of,
    }))
}

fn claim(name: &str) -> Expr {
    let claims = Expr::Call(Function::Input(Type::Jsonb), vec![Expr::Claims]);
    Expr::Call(
        Function::GetText,
        vec![claims, Expr::constant(Datum::text(name))],
    )
}

fn equal(a: Expr, b: Expr) -> Expr {
    Expr::Compare(Comparison::Eq, Box::new((a, b)))
}

/// `user_id = (claims ->> 'sub')::uuid`
fn owner() -> Expr {
    let sub = Expr::Call(Function::Input(Type::Uuid), vec![claim("sub")]);
    equal(column("user_id", 2950, Type::Uuid), sub)
}

fn public() -> Expr {
    column("is_public", 16, Type::Bool)
}

fn relation(types: [u32; 2]) -> Relation {
    let columns = ["user_id", "is_public"].into_iter().zip(types);
    let columns = columns.map(|(name, oid)| Column {
        name: Arc::from(name),
        type_oid: Oid(oid),
        type_modifier: -1,
        identity: true,
    });
    Relation {
        oid: Oid(1),
        schema: Arc::from("public"),
        name: Arc::from("t"),
        replica_identity: ReplicaIdentity::Full,
        columns: columns.collect(),
        types: Arc::default(),
        version: 1,
    }
}

fn principal(claims: &str) -> Principal {
    Principal {
        role: Arc::from("authenticated"),
        claims: Claims::verified(claims),
        expires_at: None,
    }
}

fn bound(permissive: Vec<Expr>, restrictive: Vec<Expr>) -> Bound {
    let predicate = Arc::new(Predicate::new(permissive, restrictive));
    predicate.bind(&relation([2950, 16])).unwrap()
}

#[test]
fn an_owner_is_found_by_one_probe() {
    let bound = bound(vec![owner()], vec![]);
    let row: Row = [Value::Text(SUB), Value::Null].into_iter().collect();
    let lookups = Lookups::default();
    let facts = bound.read(&row, &lookups);
    let Audience::Probes(probes) = facts.audience() else {
        panic!("probes");
    };
    assert_eq!(bound.predicate().probed_slots(), [probes[0].slot]);
    for (claims, verdict) in [
        (
            format!(r#"{{"sub": "{}"}}"#, SUB.to_uppercase()),
            Verdict::True,
        ),
        (
            r#"{"sub": "00000000-0000-0000-0000-000000000000"}"#.to_owned(),
            Verdict::False,
        ),
        (r#"{"sub": null}"#.to_owned(), Verdict::Null),
        (r#"{"sub": "nobody"}"#.to_owned(), Verdict::Error),
    ] {
        let projection = bound.predicate().project(&principal(&claims));
        assert_eq!(facts.judge(&projection), verdict, "{claims}");
        let found = projection.slot(probes[0].slot) == Some(&probes[0].datum);
        assert_eq!(found, verdict == Verdict::True, "{claims}");
    }
}

#[test]
fn what_the_row_decides_needs_no_probe() {
    let either = bound(vec![owner(), public()], vec![]);
    let shown: Row = [Value::Null, Value::Text("t")].into_iter().collect();
    let hidden: Row = [Value::Null, Value::Text("f")].into_iter().collect();
    assert_eq!(
        either.read(&shown, &Lookups::default()).audience(),
        Audience::Everyone
    );
    assert_eq!(
        either.read(&hidden, &Lookups::default()).audience(),
        Audience::Nobody
    );
    let both = bound(vec![owner()], vec![public()]);
    let owned: Row = [Value::Text(SUB), Value::Text("t")].into_iter().collect();
    assert!(matches!(
        both.read(&owned, &Lookups::default()).audience(),
        Audience::Probes(_)
    ));
    assert_eq!(
        both.read(&hidden, &Lookups::default()).audience(),
        Audience::Nobody
    );
}

#[test]
fn a_value_that_the_stream_does_not_carry_is_undecided() {
    let bound = bound(vec![owner()], vec![]);
    let row: Row = [Value::Unchanged, Value::Null].into_iter().collect();
    let lookups = Lookups::default();
    let facts = bound.read(&row, &lookups);
    let projection = bound.predicate().project(&principal("{}"));
    assert_eq!(facts.judge(&projection), Verdict::Undecided);
    assert_eq!(facts.audience(), Audience::Scan);
}

#[test]
fn a_column_that_changed_its_type_is_not_bound() {
    let predicate = Arc::new(Predicate::new(vec![owner()], vec![]));
    assert!(predicate.bind(&relation([25, 16])).is_none());
    let elsewhere = column("gone", 25, Type::Text(Collation::DEFAULT));
    let predicate = Arc::new(Predicate::new(
        vec![Expr::IsNull(Box::new(elsewhere), true)],
        vec![],
    ));
    assert!(predicate.bind(&relation([2950, 16])).is_none());
}

#[test]
fn without_a_permissive_policy_nobody_sees_anything() {
    let predicate = Predicate::new(vec![], vec![Expr::constant(Datum::Bool(true))]);
    assert_eq!(predicate.is_constant(), Some(Verdict::False));
}

#[test]
fn projections_differ_where_only_the_text_of_a_number_does() {
    let predicate = Predicate::new(vec![equal(claim("n"), column("t", 25, Type::Name))], vec![]);
    let project = |claims: &str| predicate.project(&principal(claims));
    assert!(project(r#"{"n": 1.0}"#) == project(r#"{"n": 1.0, "iat": 7}"#));
    assert!(project(r#"{"n": 1.0}"#) != project(r#"{"n": 1.00}"#));
}

const MEMBERS: Oid = Oid(7);

fn member(name: &str, type_oid: u32, of: Type) -> Expr {
    let column = ColumnRef {
        name: Arc::from(name),
        type_oid: Oid(type_oid),
        of,
    };
    Expr::Inner(0, Arc::new(column))
}

/// `exists (select from members where owner = user_id and role = 'a' and who = (claims ->> 'sub')::uuid)`
fn shared() -> Bound {
    let sub = Expr::Call(Function::Input(Type::Uuid), vec![claim("sub")]);
    let text = Type::Text(Collation::DEFAULT);
    let exists = Expr::Select(Box::new(Select {
        from: vec![Step {
            condition: vec![
                equal(
                    member("owner", 2950, Type::Uuid),
                    column("user_id", 2950, Type::Uuid),
                ),
                equal(member("role", 25, text), Expr::constant(Datum::text("a"))),
                equal(sub, member("who", 2950, Type::Uuid)),
            ],
            ..Step::table(MEMBERS, 0)
        }],
        result: Asked::Exists,
    }));
    bound(vec![exists], vec![])
}

fn uuid(last: u8) -> Datum {
    let mut bytes = [0; 16];
    bytes[15] = last;
    Datum::Uuid(bytes)
}

/// The members `owner`, `role`, `who`, in the order of the mirror's columns.
fn mirror(bound: &Bound, rows: &[(u8, &str, u8)]) -> Mirror {
    let mut mirror = Mirror::new(&bound.predicate().lookups()[0], &[]);
    for (owner, role, who) in rows {
        mirror.insert(
            [
                Some(uuid(*owner)),
                Some(Datum::text(role)),
                Some(uuid(*who)),
            ]
            .into(),
        );
    }
    mirror
}

#[test]
fn members_are_found_by_the_row_and_not_listed() {
    let bound = shared();
    let mut lookups = Lookups::default();
    let row: Row = [
        Value::Text("00000000-0000-0000-0000-000000000001"),
        Value::Null,
    ]
    .into_iter()
    .collect();
    let none = Lookups::default();
    let absent = bound.read(&row, &none);
    let ann = principal(r#"{"sub": "00000000-0000-0000-0000-000000000009"}"#);
    let projection = bound.predicate().project(&ann);
    assert_eq!(absent.audience(), Audience::Scan, "no mirror");
    assert_eq!(absent.judge(&projection), Verdict::Undecided, "no mirror");
    let rows = [(1, "a", 9), (1, "b", 8), (1, "a", 7), (2, "a", 6)];
    lookups.put(MEMBERS, mirror(&bound, &rows));
    let facts = bound.read(&row, &lookups);
    assert_eq!(facts.judge(&projection), Verdict::True);
    let Audience::Members(probes, members) = facts.audience() else {
        panic!("members");
    };
    assert!(probes.is_empty());
    assert_eq!(members[0].len(), 2);
    assert_eq!(bound.predicate().probed_slots(), [members[0].slot()]);
    for (who, among) in [(9, true), (7, true), (8, false), (6, false)] {
        assert_eq!(members[0].contains(&uuid(who)), among, "{who}");
        let mut values = members[0].values();
        assert_eq!(values.any(|value| *value == uuid(who)), among, "{who}");
    }
}

#[test]
fn a_change_affects_those_that_its_row_names_before_and_behind() {
    let bound = shared();
    let mirror = mirror(&bound, &[]);
    let mut lookups = Lookups::default();
    lookups.put(MEMBERS, mirror.clone());
    let names: Vec<&str> = mirror
        .columns()
        .iter()
        .map(|column| &*column.name)
        .collect();
    assert_eq!(names, ["owner", "role", "who"]);
    let row = |owner, role, who| [Some(uuid(owner)), Some(Datum::text(role)), Some(uuid(who))];
    let of = |before: Option<[_; 3]>, after: Option<[_; 3]>| {
        let (before, after) = (before.as_ref(), after.as_ref());
        let before = before.map(|row| &row[..]);
        bound
            .predicate()
            .affected(MEMBERS, before, after.map(|row| &row[..]), &lookups)
    };
    let probed = |all: &[u8]| {
        let probe = |who: &u8| Probe {
            slot: 0,
            datum: uuid(*who),
        };
        Affected::Probes(all.iter().map(probe).collect())
    };
    assert_eq!(of(None, Some(row(1, "a", 9))), probed(&[9]));
    assert_eq!(of(Some(row(1, "a", 9)), None), probed(&[9]));
    assert_eq!(
        of(Some(row(1, "a", 9)), Some(row(1, "a", 8))),
        probed(&[9, 8])
    );
    assert_eq!(of(Some(row(1, "b", 9)), Some(row(1, "a", 8))), probed(&[8]));
    assert_eq!(of(None, Some(row(1, "b", 9))), Affected::Nobody);
    let same = of(Some(row(1, "a", 9)), Some(row(1, "a", 9)));
    assert_eq!(same, Affected::Nobody);
    let other = bound.predicate().affected(Oid(8), None, None, &lookups);
    assert_eq!(other, Affected::Nobody, "another table");
}

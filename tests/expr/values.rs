//! Native comparisons against those of a real PostgreSQL.

use std::sync::Arc;

use rowcast::datum::{Datum, Labels, Type, Types, UserType};
use rowcast::pg::Oid;

use crate::cluster::Cluster;
use crate::rows_of;

/// Values of each type, compared by the type's own operators.
#[tokio::test]
async fn values_compare_as_postgresqls() {
    let cluster = Cluster::start().await;
    let client = cluster.connect().await;
    client
        .batch_execute("create type mood as enum ('z', 'a', 'M')")
        .await
        .unwrap();
    let labels = rows_of(
        &client,
        "select oid, enumlabel, enumtypid from pg_enum order by enumsortorder",
    )
    .await;
    let parsed = |text: &Option<String>| Oid(text.as_deref().unwrap().parse().unwrap());
    let named = labels
        .iter()
        .map(|row| (parsed(&row[0]), row[1].as_deref().unwrap()));
    let mut types = Types::default();
    types.user.insert(
        parsed(&labels[0][2]),
        UserType::Enum(Arc::new(Labels::in_order(named))),
    );
    let mut compared = 0;
    for (name, collation, values) in [
        ("bool", 0, "{t,f}"),
        ("int2", 0, "{-32768,0,32767,7}"),
        ("int4", 0, "{-2147483648,0,2147483647}"),
        ("int8", 0, "{-9223372036854775808,0,9223372036854775807}"),
        ("oid", 0, "{0,1,4294967295}"),
        (
            "float4",
            0,
            "{0,-0,1.1,NaN,Infinity,-Infinity,1e-30,3.4e38}",
        ),
        (
            "float8",
            0,
            "{0,-0,1.1,NaN,Infinity,-Infinity,1e-300,1e308,0.1}",
        ),
        (
            "numeric",
            0,
            "{0,-0,0.00,1.0,1.00,-1.5,10,9.99,1e20,1e-20,NaN,Infinity,-Infinity,100000,99999.9999}",
        ),
        ("text", 950, "{\"\",a,A,\"a \",é,z,aa,\"a\\tb\",ü}"),
        ("varchar", 950, "{\"\",a,A,\"a \",é}"),
        ("char(4)", 950, "{\"\",a,A,\"a \",é,ab}"),
        ("name", 950, "{\"\",a,A,é}"),
        (
            "uuid",
            0,
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11,A0EEBC999C0B4EF8BB6D6BB9BD380A11,00000000-0000-0000-0000-000000000000,ffffffff-ffff-ffff-ffff-ffffffffffff}",
        ),
        (
            "date",
            0,
            "{2000-01-01,1999-12-31,2024-02-29,infinity,-infinity,0044-03-15 BC,4713-01-01 BC,5874897-12-31,0001-01-01,1900-03-01}",
        ),
        (
            "timestamp",
            0,
            "{2000-01-01,1999-12-31 23:59:59.999999,infinity,-infinity,0044-03-15 12:00 BC,294276-12-31 23:59:59}",
        ),
        (
            "timestamptz",
            0,
            "{2000-01-01+00,1999-12-31 23:00:00-01,infinity,-infinity,0044-03-15 12:00+00 BC,2026-11-21 00:00:00.5+03}",
        ),
        ("mood", 0, "{z,a,M}"),
        (
            "jsonb",
            0,
            r#"{1,1.0,1.00,"\"a\"","null","[]","{}","{\"a\": 1, \"b\": [1.0, true]}","{\"b\": [1, true], \"a\": 1.0}","{\"aa\": 1, \"b\": 1}","\"\\u0001\\t\\\\é\"",1e3,-0.0}"#,
        ),
        (
            "bytea",
            0,
            "{\"\\\\x\",\"\\\\x00\",\"\\\\xff00\",\"\\\\xff\"}",
        ),
    ] {
        let values = rowcast::pg::quote_literal(values);
        let collate = if collation == 950 {
            "collate \"C\""
        } else {
            ""
        };
        let rows = rows_of(
            &client,
            &format!(
                "select '{name}'::regtype::oid, x.v, y.v, x.v {collate} = y.v, x.v {collate} < y.v
            from unnest({values}::{name}[]) x(v), unnest({values}::{name}[]) y(v)"
            ),
        )
        .await;
        for row in rows {
            let of = Type::of(parsed(&row[0]), Oid(collation), &types);
            let of = of.unwrap_or_else(|| panic!("{name}"));
            let text = |at: usize| row[at].as_deref().unwrap_or_else(|| panic!("{name}"));
            let [a, b] = [1, 2].map(|at| {
                Datum::from_output(&of, text(at)).unwrap_or_else(|_| panic!("{name} {}", text(at)))
            });
            assert_eq!(a == b, text(3) == "t", "{name}: {} = {}", text(1), text(2));
            if of.has_order() {
                let less = of.compare(&a, &b).unwrap().is_lt();
                assert_eq!(less, text(4) == "t", "{name}: {} < {}", text(1), text(2));
            }
            if let Some(output) = a.output() {
                assert_eq!(
                    &*output,
                    text(1).trim_end_matches(if name == "char(4)" { ' ' } else { '\0' }),
                    "{name}"
                );
            }
            compared += 1;
        }
    }
    eprintln!("{compared} pairs");
}

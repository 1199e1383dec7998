//! The columns that filters are held against: every built-in type of the running server, and what
//! a user can make of them.

use rand::Rng;
use rand::rngs::StdRng;
use tokio_postgres::Client;

use crate::samples::sample;

/// How values of a column are made.
#[derive(Debug, Clone)]
pub(crate) enum Values {
    Plain(String),
    Array {
        element: Box<Values>,
        delimiter: char,
    },
    Range {
        subtype: String,
    },
    Multirange {
        subtype: String,
    },
}

impl Values {
    pub(crate) fn draw(&self, rng: &mut StdRng) -> String {
        match self {
            Self::Plain(name) => {
                sample(name, rng).unwrap_or_else(|| panic!("no values of type {name}"))
            }
            Self::Array { element, delimiter } => {
                let length = rng.random_range(0..3);
                let mut items = Vec::new();
                for _ in 0..length {
                    items.push(if rng.random_bool(0.15) {
                        "NULL".to_owned()
                    } else {
                        let text = element.draw(rng);
                        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
                    });
                }
                let bounds = if length > 0 && rng.random_bool(0.1) {
                    format!("[0:{}]=", length - 1)
                } else {
                    String::new()
                };
                format!("{bounds}{{{}}}", items.join(&delimiter.to_string()))
            }
            Self::Range { subtype } => range(subtype, rng),
            Self::Multirange { subtype } => {
                let count = rng.random_range(0..3);
                let ranges: Vec<String> = (0..count).map(|_| range(subtype, rng)).collect();
                format!("{{{}}}", ranges.join(","))
            }
        }
    }
}

fn range(subtype: &str, rng: &mut StdRng) -> String {
    if rng.random_bool(0.1) {
        return "empty".to_owned();
    }
    let mut bound = |least: i32| match subtype {
        "date" => format!("2024-01-{:02}", least + rng.random_range(1..9)),
        "timestamp" | "timestamptz" => {
            format!("\"2024-01-{:02} 12:00\"", least + rng.random_range(1..9))
        }
        "numeric" => format!(
            "{}.{}",
            least + rng.random_range(0..5),
            rng.random_range(0..100)
        ),
        _ => (least + rng.random_range(0..5)).to_string(),
    };
    let (low, high) = (bound(1), bound(10));
    let low = if rng.random_bool(0.1) {
        String::new()
    } else {
        low
    };
    let high = if rng.random_bool(0.1) {
        String::new()
    } else {
        high
    };
    let open = ['[', '('][rng.random_range(0..2)];
    let close = [']', ')'][rng.random_range(0..2)];
    format!("{open}{low},{high}{close}")
}

/// A column to test.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    /// Its type, and collation, as SQL.
    pub(crate) declared: String,
    pub(crate) type_sql: String,
    /// The type as which PostgreSQL is asked about it.
    pub(crate) oracle: Option<String>,
    pub(crate) values: Values,
    /// Whether patterns make sense.
    pub(crate) textual: bool,
    /// Every filter that it takes is to be decided without a question.
    pub(crate) native: bool,
}

impl Column {
    fn plain(name: &str, type_sql: &str, native: bool) -> Self {
        let textual = [
            "text", "varchar", "bpchar", "name", "citext", "slug", "bytea",
        ];
        Self {
            declared: type_sql.to_owned(),
            type_sql: type_sql.to_owned(),
            oracle: None,
            values: Values::Plain(name.to_owned()),
            textual: textual.contains(&name),
            native,
        }
    }

    fn collated(name: &str, type_sql: &str, collation: &str) -> Self {
        Self {
            declared: format!("{type_sql} collate {collation}"),
            ..Self::plain(name, type_sql, false)
        }
    }
}

/// Types that hold no value that anybody could write.
const INTERNAL: [&str; 8] = [
    "pg_node_tree",
    "pg_ndistinct",
    "pg_dependencies",
    "pg_mcv_list",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
    "pg_ddl_command",
    "gtsvector",
];

const NATIVE: [&str; 14] = [
    "bool",
    "int2",
    "int4",
    "int8",
    "oid",
    "float4",
    "float8",
    "numeric",
    "uuid",
    "date",
    "timestamp",
    "timestamptz",
    "mood",
    "small",
];

/// What the test makes besides.
pub(crate) const MADE: &str = "
    create extension if not exists citext;
    create type mood as enum ('sad', 'ok', 'happy', 'very, \"odd\"');
    create type pair as (a int, b text);
    create domain small as int check (value < 1000);
    create domain slug as varchar(20);
    create domain feeling as mood;
    create function takes(type text, value text) returns boolean language plpgsql as $$
    begin
        execute format('select %L::%s', value, type);
        return true;
    exception when others then return false;
    end $$;
    create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
";

/// Every column, and how many built-in types are among them.
pub(crate) async fn all(sql: &Client) -> (Vec<Column>, usize) {
    let rows = sql
        .query(
            "select t.typname::text, t.typtype::text, e.typname::text, t.typdelim::text,
                    sub.typname::text, format_type(t.oid, null), e.typdelim::text
             from pg_type t
             left join pg_type e on e.oid = t.typelem and t.typcategory = 'A'
             left join pg_range r on r.rngtypid = t.oid or r.rngmultitypid = t.oid
             left join pg_type sub on sub.oid = r.rngsubtype
             where t.typnamespace = 'pg_catalog'::regnamespace and t.oid < 16384
               and t.typtype in ('b', 'r', 'm') and t.typisdefined
               and (e.oid is null or e.typtype in ('b', 'r', 'm'))
             order by t.oid",
            &[],
        )
        .await
        .expect("the types");
    let mut columns = Vec::new();
    let mut ranges = std::collections::HashMap::new();
    for row in &rows {
        let (name, kind, subtype): (String, String, Option<String>) =
            (row.get(0), row.get(1), row.get(4));
        if let Some(subtype) = subtype {
            ranges.insert(name, (kind, subtype));
        }
    }
    let of = |name: &str| match ranges.get(name) {
        Some((kind, subtype)) if kind == "r" => Values::Range {
            subtype: subtype.clone(),
        },
        Some((_, subtype)) => Values::Multirange {
            subtype: subtype.clone(),
        },
        None => Values::Plain(name.to_owned()),
    };
    for row in &rows {
        let name: String = row.get(0);
        let element: Option<String> = row.get(2);
        let base = element.clone().unwrap_or_else(|| name.clone());
        if INTERNAL.contains(&base.as_str()) {
            continue;
        }
        // `character` and `bit` without a length would hold one.
        let type_sql = match name.as_str() {
            "bpchar" => "char(5)".to_owned(),
            "bit" => "bit(3)".to_owned(),
            _ => row.get::<_, String>(5),
        };
        let mut column = Column::plain(&name, &type_sql, NATIVE.contains(&name.as_str()));
        // int2vector and oidvector are base types that have elements.
        column.values = match element {
            Some(element) if name.starts_with('_') => Values::Array {
                element: Box::new(of(&element)),
                delimiter: row.get::<_, String>(3).chars().next().expect("a delimiter"),
            },
            _ => of(&name),
        };
        columns.push(column);
    }
    let built_in = columns.len();
    columns.extend(made());
    (columns, built_in)
}

fn made() -> Vec<Column> {
    let array = |name: &str, type_sql: &str| Column {
        values: Values::Array {
            element: Box::new(Values::Plain(name.to_owned())),
            delimiter: ',',
        },
        ..Column::plain("", type_sql, false)
    };
    vec![
        Column::plain("mood", "mood", true),
        Column::plain("pair", "pair", false),
        Column::plain("small", "small", true),
        Column::plain("slug", "slug", false),
        Column {
            // PostgreSQL has no operators for a domain over an enum; the relay uses the enum's.
            oracle: Some("mood".to_owned()),
            ..Column::plain("feeling", "feeling", true)
        },
        Column::plain("citext", "citext", false),
        Column::plain("varchar", "varchar(4)", false),
        Column::plain("numeric", "numeric(8,2)", false),
        Column::plain("interval", "interval day to second(1)", false),
        Column::plain("timestamptz", "timestamptz(0)", false),
        array("mood", "mood[]"),
        array("small", "small[]"),
        array("pair", "pair[]"),
        array("citext", "citext[]"),
    ]
    .into_iter()
    .chain(texts())
    .collect()
}

/// Text under every kind of collation.
pub(crate) fn texts() -> Vec<Column> {
    vec![
        Column::plain("text", "text", false),
        Column::plain("varchar", "varchar", false),
        Column::plain("citext", "citext", false),
        Column::plain("name", "name", false),
        Column::plain("bpchar", "char(3)", false),
        Column::collated("text", "text", "\"C\""),
        Column::collated("text", "text", "\"POSIX\""),
        Column::collated("text", "text", "ci"),
        Column::collated("text", "text", "\"de-x-icu\""),
        Column::collated("text", "text", "\"tr-x-icu\""),
        Column::collated("varchar", "varchar(9)", "ci"),
        Column::collated("bpchar", "char(4)", "\"C\""),
        Column::collated("bpchar", "char(4)", "ci"),
        Column::collated("citext", "citext", "\"C\""),
        Column::collated("slug", "slug", "\"C\""),
    ]
}

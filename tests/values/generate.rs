//! Values of the types that are built in, as their input functions take them.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

/// Every built-in type that has values which can be written down: what this module calls it, and
/// how a column of it is declared.
pub(crate) const BASE: &[(&str, &str)] = &[
    ("bool", "bool"),
    ("bytea", "bytea"),
    ("char", "\"char\""),
    ("name", "name"),
    ("int8", "int8"),
    ("int2", "int2"),
    ("int2vector", "int2vector"),
    ("int4", "int4"),
    ("regproc", "regproc"),
    ("text", "text"),
    ("oid", "oid"),
    ("tid", "tid"),
    ("xid", "xid"),
    ("cid", "cid"),
    ("oidvector", "oidvector"),
    ("json", "json"),
    ("xml", "xml"),
    ("point", "point"),
    ("lseg", "lseg"),
    ("path", "path"),
    ("box", "box"),
    ("polygon", "polygon"),
    ("line", "line"),
    ("cidr", "cidr"),
    ("float4", "float4"),
    ("float8", "float8"),
    ("circle", "circle"),
    ("macaddr8", "macaddr8"),
    ("money", "money"),
    ("macaddr", "macaddr"),
    ("inet", "inet"),
    ("aclitem", "aclitem"),
    ("text", "bpchar"),
    ("character", "char(7)"),
    ("text", "varchar"),
    ("character", "varchar(9)"),
    ("date", "date"),
    ("time", "time"),
    ("time", "time(2)"),
    ("timestamp", "timestamp"),
    ("timestamp", "timestamp(0)"),
    ("timestamptz", "timestamptz"),
    ("timestamptz", "timestamptz(3)"),
    ("interval", "interval"),
    ("timetz", "timetz"),
    ("bit1", "bit"),
    ("bit5", "bit(5)"),
    ("varbit", "varbit"),
    ("numeric", "numeric"),
    ("price", "numeric(12,2)"),
    ("text", "refcursor"),
    ("regprocedure", "regprocedure"),
    ("regoper", "regoper"),
    ("regoperator", "regoperator"),
    ("regclass", "regclass"),
    ("regtype", "regtype"),
    ("uuid", "uuid"),
    ("snapshot", "txid_snapshot"),
    ("pg_lsn", "pg_lsn"),
    ("tsvector", "tsvector"),
    ("tsquery", "tsquery"),
    ("regconfig", "regconfig"),
    ("regdictionary", "regdictionary"),
    ("json", "jsonb"),
    ("jsonpath", "jsonpath"),
    ("regnamespace", "regnamespace"),
    ("regrole", "regrole"),
    ("regcollation", "regcollation"),
    ("snapshot", "pg_snapshot"),
    ("xid8", "xid8"),
    ("cardinal", "information_schema.cardinal_number"),
    ("text", "information_schema.character_data"),
    ("name", "information_schema.sql_identifier"),
    ("timestamptz", "information_schema.time_stamp"),
    ("yes_or_no", "information_schema.yes_or_no"),
];

/// The ranges that are built in, what they are over, and their multiranges.
pub(crate) const RANGES: &[(&str, &str, &str)] = &[
    ("int4range", "int4", "int4multirange"),
    ("int8range", "int8", "int8multirange"),
    ("numrange", "numeric", "nummultirange"),
    ("daterange", "date", "datemultirange"),
    ("tsrange", "timestamp", "tsmultirange"),
    ("tstzrange", "timestamptz", "tstzmultirange"),
];

/// Pieces that texts are made of: what JSON, arrays, rows and framing could trip over.
const PIECES: &[&str] = &[
    "a",
    "Z9",
    "word",
    " ",
    "  ",
    "\t",
    "\n",
    "\r",
    "\u{1}",
    "\u{8}",
    "\u{c}",
    "\u{1f}",
    "\u{7f}",
    "\u{85}",
    "\u{a0}",
    "\u{2028}",
    "\u{2029}",
    "\u{feff}",
    "\u{fffd}",
    "\u{ffff}",
    "\u{10ffff}",
    "😀",
    "e\u{301}",
    "ß",
    "größer",
    "\"",
    "\"\"",
    "'",
    "\\",
    "\\\\",
    "/",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    ",",
    ";",
    ":",
    "=>",
    "NULL",
    "null",
    "\\x",
    "\\u0041",
    "</script>",
    "%",
    "$1",
    "t",
    "1e5",
    "NaN",
    "(1,)",
    "{1}",
    "é́",
];

pub(crate) fn text(rng: &mut StdRng) -> String {
    let pieces = rng.random_range(0..7);
    (0..pieces).map(|_| *PIECES.choose(rng).unwrap()).collect()
}

/// Values at the edges of a type: every run has them.
pub(crate) fn extremes(kind: &str) -> &'static [&'static str] {
    match kind {
        "bool" => &["t", "f"],
        "bytea" => &["\\x", "\\x00", "\\xff00ff", "\\x5c78"],
        "char" => &["", "a", " ", "\"", "\\", "\n", "\u{1}", "{"],
        "name" | "text" => &[
            "",
            " ",
            "NULL",
            "null",
            "a  ",
            "\\",
            "\"",
            "t",
            "{}",
            "()",
            "\u{1}\u{1f}\u{7f}",
            "0",
            "101",
        ],
        "character" => &["", "a", "ab   ", "\"", "é", "NULL", " "],
        "int8" => &[
            "-9223372036854775808",
            "9223372036854775807",
            "0",
            "9007199254740993",
        ],
        "int4" => &["-2147483648", "2147483647", "0", "-1"],
        "int2" => &["-32768", "32767", "0"],
        "int2vector" => &["", "1", "1 -2 32767", "-32768 0"],
        "oidvector" => &["", "0", "1 4294967295"],
        "oid" | "xid" | "cid" => &["0", "1", "4294967295"],
        "xid8" => &["0", "18446744073709551615"],
        "tid" => &["(0,0)", "(4294967295,65535)"],
        "regproc" => &["-", "0", "4294967295", "boolin", "pg_catalog.now"],
        "regprocedure" => &["-", "0", "4294967295", "now()", "concat(\"any\")"],
        "regoper" => &["0", "4294967295", "||/"],
        "regoperator" => &["0", "4294967295", "+(integer,integer)", "-(none,integer)"],
        "regclass" => &[
            "-",
            "0",
            "4294967295",
            "pg_class",
            "fence",
            "information_schema.tables",
        ],
        "regtype" => &["-", "0", "4294967295", "int4[]", "\"char\"", "timestamptz"],
        "regconfig" => &["-", "english", "simple", "4294967295"],
        "regdictionary" => &["-", "simple", "4294967295"],
        "regnamespace" => &["-", "public", "pg_catalog", "4294967295"],
        "regrole" => &["-", "postgres", "anon", "4294967295"],
        "regcollation" => &["-", "\"C\"", "\"default\"", "4294967295"],
        "json" => &[
            "null",
            "true",
            "\"\"",
            "\"123\"",
            "0",
            "-0",
            "-0.0",
            "1.50",
            "1e5",
            "1E-3",
            "1e400",
            "[]",
            "{}",
            " { \"a\" :\n\t[ 1 , 2 ] } ",
            "{\"a\":1,\"a\":2,\"a\":{\"b\":[]}}",
            "{\"\":{\"\":\"\"}}",
            "12345678901234567890123456789.1234567890",
            "\"\\u00e9\\ud83d\\ude00\\/\\b\\f\"",
        ],
        "xml" => &["<a/>", "text", "<a b=\"c\">\n&lt;é</a>", ""],
        "point" => &["(0,0)", "(Infinity,NaN)", "(-1e300,1e-300)", "(-0,0.1)"],
        "lseg" => &["[(0,0),(0,0)]", "[(1.5,-2),(Infinity,3)]"],
        "path" => &["[(0,0)]", "((1,2),(3,4))", "[(1,2),(3,4),(5,6)]"],
        "box" => &["(0,0),(0,0)", "(1,2),(-3.5,4e100)"],
        "polygon" => &["((0,0))", "((1,2),(3,4),(5,6.5))"],
        "line" => &["{1,2,3}", "{0,-1,1e-10}"],
        "circle" => &["<(0,0),0>", "<(1.5,-2),1e10>", "<(0,0),Infinity>"],
        "cidr" => &[
            "0.0.0.0/0",
            "10.0.0.0/8",
            "192.168.1.1/32",
            "::/0",
            "2001:db8::/32",
            "::1/128",
        ],
        "inet" => &[
            "0.0.0.0",
            "10.1.2.3/8",
            "255.255.255.255/32",
            "::",
            "fe80::1/10",
            "::ffff:1.2.3.4",
        ],
        "macaddr" => &["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"],
        "macaddr8" => &["00:00:00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff:ff:ff"],
        "float8" => &[
            "0",
            "-0",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e308",
            "-1.7976931348623157e308",
            "5e-324",
            "0.1",
            "1e15",
            "1e16",
            "123456789012345680",
            "0.0001",
            "0.00001",
            "9007199254740993",
        ],
        "float4" => &[
            "0",
            "-0",
            "NaN",
            "Infinity",
            "-Infinity",
            "3.4028235e38",
            "1.1754944e-38",
            "1e-45",
            "0.1",
            "1e6",
            "16777217",
            "0.00001",
        ],
        "numeric" => &[
            "0",
            "0.00",
            "NaN",
            "Infinity",
            "-Infinity",
            "1.50",
            "-0.0",
            "100000000000000000000000000000000",
            "123456789012345678901234567890.1234567890",
            "1e1000",
            "1e-1000",
            "0.1000",
            "-9.99e-5",
        ],
        "price" => &["0", "1.5", "-9999999999.99", "NaN", "9999999999.99", "0.1"],
        "money" => &[
            "-92233720368547758.08",
            "92233720368547758.07",
            "0",
            "1234.5",
        ],
        "date" => &[
            "4713-01-01 BC",
            "5874897-12-31",
            "infinity",
            "-infinity",
            "0001-01-01",
            "0001-12-31 BC",
            "2024-02-29",
            "10000-01-01",
            "1582-10-10",
        ],
        "time" => &["00:00:00", "24:00:00", "23:59:59.999999", "12:00:00.5"],
        "timetz" => &[
            "00:00:00+00",
            "24:00:00-15:59",
            "23:59:59.999999+15:59:59",
            "12:00+05:30",
        ],
        "timestamp" | "timestamptz" => &[
            "infinity",
            "-infinity",
            "4713-01-01 00:00:00 BC",
            "294276-12-31 23:59:58.999999",
            "0044-03-15 12:00:00.5 BC",
            "10000-01-01",
            "2000-01-01",
            "1999-12-31 23:59:59.999999",
            "1883-11-18 12:03:57",
            "0001-01-01 00:00:00",
            "2024-02-29 12:34:56.100",
        ],
        "interval" => &[
            "0",
            "178000000 years",
            "-178000000 years",
            "1 year -2 mons 3 days -04:05:06.700",
            "-1 days +02:03:04",
            "00:00:00.000001",
            "-00:00:00.1",
            "1 mon",
        ],
        "bit1" => &["0", "1"],
        "bit5" => &["00000", "10101", "11111"],
        "varbit" => &[
            "",
            "1",
            "0101",
            "1111111111111111111111111111111111111111111111111111111111111111111",
        ],
        "uuid" => &[
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ],
        "snapshot" => &["1:1:", "10:20:10,14,15", "1:9223372036854775807:2"],
        "pg_lsn" => &["0/0", "FFFFFFFF/FFFFFFFF", "1/ABCDEF"],
        "tsvector" => &["", "a:1A b:2,3 'it''s'", "'\\\\':16383 ' ':1"],
        "tsquery" => &["", "a & !b | (c <2> d:*AB)", "'it''s' | '\\\\'"],
        "jsonpath" => &[
            "$",
            "strict $.a[*] ? (@.b > 1.50)",
            "$.\"a \\\" b\".type()",
            "$[last - 1 to 3]",
            "lax $.** ? (@ like_regex \"^a\\\\d\" flag \"i\")",
            "$ ? (exists (@.x) && !(@.y == null))",
        ],
        "aclitem" => &[
            "=r/postgres",
            "postgres=arw*/postgres",
            "\"anon\"=U/postgres",
        ],
        "cardinal" => &["0", "2147483647"],
        "yes_or_no" => &["YES", "NO"],
        "hstore" => &[
            "",
            "a=>1,b=>NULL",
            "\"\"=>\"\",\"NULL\"=>\"NULL\"",
            "\"a\\\"\\\\\"=>\"x\\\\y\\\"=>\"",
        ],
        _ => panic!("no values of {kind}"),
    }
}

fn digits(rng: &mut StdRng, most: usize) -> String {
    let count = rng.random_range(1..=most);
    (0..count)
        .map(|_| char::from(b'0' + rng.random_range(0..10_u8)))
        .collect()
}

fn float(rng: &mut StdRng) -> String {
    match rng.random_range(0..3) {
        0 => f64::from(rng.random_range(-1000..1000)).to_string(),
        1 => format!("{}", rng.random_range(-1e6..1e6_f64)),
        // Every number that a double can hold, and the NaNs.
        _ => {
            let number = f64::from_bits(rng.random());
            if number.is_finite() {
                format!("{number:e}")
            } else {
                "NaN".to_owned()
            }
        }
    }
}

fn moment(rng: &mut StdRng, years: std::ops::Range<i32>) -> (String, &'static str) {
    let year = rng.random_range(years);
    let (year, era) = if year > 0 {
        (year, "")
    } else {
        (1 - year, " BC")
    };
    let (month, day) = (rng.random_range(1..=12), rng.random_range(1..=28));
    (format!("{year:04}-{month:02}-{day:02}"), era)
}

fn clock(rng: &mut StdRng) -> String {
    let [h, m, s] = [24, 60, 60].map(|most| rng.random_range(0..most));
    match rng.random_range(0..3) {
        0 => format!("{h:02}:{m:02}:{s:02}"),
        1 => format!("{h:02}:{m:02}:{s:02}.{:03}", rng.random_range(0..1000)),
        _ => format!("{h:02}:{m:02}:{s:02}.{:06}", rng.random_range(0..1_000_000)),
    }
}

fn points(rng: &mut StdRng, count: usize) -> String {
    let all: Vec<String> = (0..count)
        .map(|_| format!("({},{})", float(rng), float(rng)))
        .collect();
    all.join(",")
}

fn word(rng: &mut StdRng) -> String {
    let word = text(rng) + "w";
    format!("'{}'", word.replace('\\', "\\\\").replace('\'', "''"))
}

fn json(rng: &mut StdRng, depth: usize) -> String {
    let space = |rng: &mut StdRng| *["", "", " ", "\n", "\t\r\n"].choose(rng).unwrap();
    let kinds = if depth == 0 { 5 } else { 7 };
    let value = match rng.random_range(0..kinds) {
        0 => "null".to_owned(),
        1 => rng.random::<bool>().to_string(),
        2 => rng.random::<i64>().to_string(),
        3 => format!(
            "{}.{}e{}",
            rng.random_range(-9..9),
            digits(rng, 20),
            rng.random_range(-50..50)
        ),
        4 => serde_json::to_string(&text(rng)).unwrap(),
        5 => {
            let items: Vec<String> = (0..rng.random_range(0..4))
                .map(|_| json(rng, depth - 1))
                .collect();
            format!("[{}]", items.join(","))
        }
        _ => {
            let items: Vec<String> = (0..rng.random_range(0..4))
                .map(|_| {
                    let key = serde_json::to_string(&text(rng)).unwrap();
                    format!("{}{key}{}:{}", space(rng), space(rng), json(rng, depth - 1))
                })
                .collect();
            format!("{{{}}}", items.join(","))
        }
    };
    format!("{}{value}{}", space(rng), space(rng))
}

fn bits(rng: &mut StdRng, count: usize) -> String {
    (0..count)
        .map(|_| if rng.random() { '1' } else { '0' })
        .collect()
}

fn hex(rng: &mut StdRng, bytes: usize, between: &str) -> String {
    let all: Vec<String> = (0..bytes)
        .map(|_| format!("{:02x}", rng.random::<u8>()))
        .collect();
    all.join(between)
}

/// A value of the type.
pub(crate) fn random(kind: &str, rng: &mut StdRng) -> String {
    match kind {
        "bytea" => format!("\\x{}", {
            let n = rng.random_range(0..20);
            hex(rng, n, "")
        }),
        "char" => char::from(rng.random_range(1..127_u8)).to_string(),
        "name" | "text" => text(rng),
        "character" => text(rng).chars().take(7).collect(),
        "int8" => (rng.random::<i64>() >> rng.random_range(0..64)).to_string(),
        "int4" => (rng.random::<i32>() >> rng.random_range(0..32)).to_string(),
        "int2" => rng.random::<i16>().to_string(),
        "int2vector" => {
            let all: Vec<String> = (0..rng.random_range(0..5))
                .map(|_| rng.random::<i16>().to_string())
                .collect();
            all.join(" ")
        }
        "oidvector" => {
            let all: Vec<String> = (0..rng.random_range(0..5))
                .map(|_| rng.random::<u32>().to_string())
                .collect();
            all.join(" ")
        }
        "oid" | "xid" | "cid" => rng.random::<u32>().to_string(),
        "xid8" => rng.random::<u64>().to_string(),
        "tid" => format!("({},{})", rng.random::<u32>(), rng.random::<u16>()),
        // Numbers of things that are there print as names.
        _ if kind.starts_with("reg") => rng.random_range(1..5000).to_string(),
        "json" => json(rng, 3),
        "xml" => format!("<a b=\"{}\">&amp;\n{}</a>", digits(rng, 5), digits(rng, 5)),
        "point" => points(rng, 1),
        "lseg" => format!("[{}]", points(rng, 2)),
        "box" => points(rng, 2),
        "path" => {
            let n = rng.random_range(1..4);
            format!("[{}]", points(rng, n))
        }
        "polygon" => {
            let n = rng.random_range(1..4);
            format!("({})", points(rng, n))
        }
        "line" => format!(
            "{{1,{},{}}}",
            rng.random_range(-9.0..9.0),
            rng.random_range(-9.0..9.0)
        ),
        "circle" => format!(
            "<({},{}),{}>",
            float(rng),
            float(rng),
            rng.random_range(0.0..1e6)
        ),
        "cidr" => format!("{}.{}.0.0/16", rng.random::<u8>(), rng.random::<u8>()),
        "inet" => {
            if rng.random() {
                format!(
                    "{}/{}",
                    std::net::Ipv4Addr::from(rng.random::<u32>()),
                    rng.random_range(0..=32)
                )
            } else {
                format!(
                    "{}/{}",
                    std::net::Ipv6Addr::from(rng.random::<u128>()),
                    rng.random_range(0..=128)
                )
            }
        }
        "macaddr" => hex(rng, 6, ":"),
        "macaddr8" => hex(rng, 8, ":"),
        "float8" => float(rng),
        "float4" => {
            let number = f32::from_bits(rng.random());
            if number.is_finite() {
                format!("{number:e}")
            } else {
                "Infinity".to_owned()
            }
        }
        "numeric" => format!(
            "{}{}.{}",
            ["", "-"].choose(rng).unwrap(),
            digits(rng, 60),
            digits(rng, 40)
        ),
        "price" => format!("{}.{}", digits(rng, 9), digits(rng, 4)),
        "money" => format!(
            "{}.{:02}",
            rng.random_range(-9_999_999_999..9_999_999_999_i64),
            rng.random_range(0..100)
        ),
        "date" => {
            let (day, era) = moment(rng, -4711..5_874_890);
            day + era
        }
        "time" => clock(rng),
        "timetz" => format!(
            "{}{:+03}:{:02}",
            clock(rng),
            rng.random_range(-14..=14),
            rng.random_range(0..60)
        ),
        "timestamp" | "timestamptz" => {
            let years = if rng.random() {
                1900..2100
            } else {
                -4711..294_270
            };
            let (day, era) = moment(rng, years);
            format!("{day} {}{era}", clock(rng))
        }
        "interval" => format!(
            "{} years {} mons {} days {}{}",
            rng.random_range(-99..99),
            rng.random_range(-30..30),
            rng.random_range(-99..99),
            ["", "-"].choose(rng).unwrap(),
            clock(rng)
        ),
        "bit5" => bits(rng, 5),
        "varbit" => {
            let n = rng.random_range(0..40);
            bits(rng, n)
        }
        "uuid" => hex(rng, 16, ""),
        "snapshot" => {
            let first = rng.random_range(1..1_000_000_u64);
            format!(
                "{first}:{}:{first},{}",
                first + 10,
                first + rng.random_range(1..9)
            )
        }
        "pg_lsn" => format!("{:X}/{:X}", rng.random::<u32>(), rng.random::<u32>()),
        "tsvector" => {
            let all: Vec<String> = (0..rng.random_range(0..4))
                .map(|_| {
                    format!(
                        "{}:{}{}",
                        word(rng),
                        rng.random_range(1..100),
                        ["", "A", "D"].choose(rng).unwrap()
                    )
                })
                .collect();
            all.join(" ")
        }
        "tsquery" => format!(
            "{} {} !{}",
            word(rng),
            ["&", "|", "<->", "<3>"].choose(rng).unwrap(),
            word(rng)
        ),
        "jsonpath" => {
            let key: String = text(rng).chars().filter(|c| !c.is_control()).collect();
            let key = key.replace('\\', "\\\\").replace('"', "\\\"");
            format!("$.\"{key}k\" ? (@ > {}.5)", rng.random_range(0..999))
        }
        "cardinal" => rng.random_range(0..i32::MAX).to_string(),
        "hstore" => {
            let quoted = |rng: &mut StdRng| {
                format!(
                    "\"{}\"",
                    text(rng).replace('\\', "\\\\").replace('"', "\\\"")
                )
            };
            let all: Vec<String> = (0..rng.random_range(0..4))
                .map(|_| {
                    let value = if rng.random_bool(0.2) {
                        "NULL".to_owned()
                    } else {
                        quoted(rng)
                    };
                    format!("{}=>{value}", quoted(rng))
                })
                .collect();
            all.join(",")
        }
        _ => (*extremes(kind).choose(rng).unwrap()).to_owned(),
    }
}

/// Two values of which the first is smaller; `None` for types that this is not known of.
pub(crate) fn ordered(kind: &str, rng: &mut StdRng) -> Option<(String, String)> {
    let days = |rng: &mut StdRng| moment(rng, 1..9999).0;
    let (mut low, mut high) = match kind {
        "int2" | "int4" | "int8" => {
            let low = rng.random_range(-30_000..30_000);
            return Some((
                low.to_string(),
                (low + rng.random_range(1..2000)).to_string(),
            ));
        }
        "numeric" => {
            let low = rng.random_range(-30_000..30_000);
            return Some((
                format!("{low}.50"),
                format!("{}.0", low + rng.random_range(1..2000)),
            ));
        }
        "date" => (days(rng), days(rng)),
        "timestamp" | "timestamptz" => (
            format!("{} {}", days(rng), clock(rng)),
            format!("{} {}", days(rng), clock(rng)),
        ),
        _ => return None,
    };
    if low > high {
        std::mem::swap(&mut low, &mut high);
    }
    (low != high).then_some((low, high))
}

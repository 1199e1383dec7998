//! Random policies, rows and claims over what is compiled. Values come from small pools, so that
//! they meet.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

pub const SCHEMA: &str = r#"
create role authenticated;
create schema auth;
grant usage on schema auth to authenticated;
create function auth.uid() returns uuid language sql stable begin atomic
  select coalesce(nullif(current_setting('request.jwt.claim.sub', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'))::uuid; end;
create function auth.role() returns text language sql stable begin atomic
  select coalesce(nullif(current_setting('request.jwt.claim.role', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role'))::text; end;
create function auth.jwt() returns jsonb language sql stable begin atomic
  select coalesce(nullif(current_setting('request.jwt.claim', true), ''),
    nullif(current_setting('request.jwt.claims', true), ''))::jsonb; end;
create function owns(who uuid, note text) returns boolean language sql stable strict
  return who = auth.uid() or note = 'a';
create function same(a text, b text) returns boolean language sql stable security definer
  set search_path = '' return coalesce(a, '') = coalesce(b, '');
create type mood as enum ('sad', 'ok');
alter type mood add value 'meh' before 'ok';
create domain slug as text;
create extension citext;
grant usage on schema public to authenticated;
create table t (id int primary key, u uuid, t text, v varchar(10), c char(3), s slug, b boolean,
  i int, l bigint, k smallint, m mood, j jsonb, o json, n numeric, f float8, z timestamptz,
  w timestamp, d date, a text[], g int[], y uuid[], x mood[], e citext);
alter table t enable row level security;
grant select on t to authenticated;
create function verdicts(rows int) returns text language plpgsql as $$
declare answer text := ''; found boolean;
begin
  for i in 1..rows loop
    begin
      execute format('select exists (select 1 from public.t where id = %s)', i) into found;
      answer := answer || case when found then 'T' else 'F' end;
    exception when others then answer := answer || 'E';
    end;
  end loop;
  return answer;
end $$;
"#;

pub const COLUMNS: [(&str, &[&str]); 22] = [
    ("u", &UUIDS),
    ("t", &TEXTS),
    ("v", &TEXTS),
    ("c", &["a", "a ", "b", ""]),
    ("s", &TEXTS),
    ("b", &["true", "false"]),
    ("i", &["0", "1", "2", "-1", "2147483647"]),
    ("l", &["0", "1", "2", "9223372036854775807"]),
    ("k", &["0", "1", "2", "-32768"]),
    ("m", &["sad", "meh", "ok"]),
    ("j", &JSONS),
    ("o", &JSONS),
    ("n", &["0", "1", "1.0", "1.50", "-2", "NaN", "Infinity"]),
    ("f", &["0", "-0", "1", "1.5", "NaN", "-Infinity"]),
    ("z", &TIMES),
    ("w", &TIMES),
    ("d", &["2020-01-01", "2020-01-02", "infinity"]),
    ("a", &LISTS),
    (
        "g",
        &[
            "{}",
            "{1,2}",
            "{1,NULL}",
            "{0}",
            "[0:1]={1,2}",
            "{{1,2},{2,0}}",
        ],
    ),
    ("y", &UUID_LISTS),
    ("x", &["{}", "{ok}", "{sad,meh,NULL}"]),
    ("e", &TEXTS),
];

const UUIDS: [&str; 3] = [
    "00000000-0000-0000-0000-00000000000a",
    "11111111-1111-1111-1111-111111111111",
    "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
];
const TEXTS: [&str; 10] = ["", "a", "A", "a ", "b", "é", "1", "true", "sad", "a%"];
const LISTS: [&str; 9] = [
    "{}",
    "{a}",
    "{a,b}",
    "{NULL,a}",
    r#"{"",A,"a ","a,b"}"#,
    "{{a,b},{b,NULL}}",
    "[0:2]={a,b,é}",
    "{1,2,1}",
    "{00000000-0000-0000-0000-00000000000a,NULL}",
];
const UUID_LISTS: [&str; 4] = [
    "{}",
    "{00000000-0000-0000-0000-00000000000a}",
    "{NULL,11111111-1111-1111-1111-111111111111}",
    "{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11,00000000-0000-0000-0000-00000000000a}",
];
const TIMES: [&str; 4] = [
    "2020-01-01 00:00:00+00",
    "2020-01-02 03:04:05.6+00",
    "infinity",
    "0044-03-15 00:00:00+00 BC",
];
const JSONS: [&str; 12] = [
    r#"{"a": "a", "b": 1, "n": null}"#,
    r#"{"a": {"b": "b", "a": true}, "n": 1.0}"#,
    r#"{"a": 1, "a": [1, 2], "n": 2}"#,
    r#"{"n": 1, "a": true, "b": "00000000-0000-0000-0000-00000000000a"}"#,
    r#"["a", "b", 1, null]"#,
    r#"[{"a": "b"}, [1.00]]"#,
    r#""a""#,
    "1",
    "1.0",
    "null",
    "{}",
    r#"{"a":"é\n\u0041"}"#,
];

pub const CLAIMS: [&str; 10] = [
    r#"{"sub": "00000000-0000-0000-0000-00000000000a", "role": "a", "b": true, "roles": ["a", "b"]}"#,
    r#"{"role": "b", "roles": ["00000000-0000-0000-0000-00000000000a", null, 1], "a": "{a,b}"}"#,
    r#"{"sub": "11111111-1111-1111-1111-111111111111", "role": "b", "n": 1,
        "app_metadata": {"a": "a", "b": [1, "b"]}}"#,
    r#"{"sub": "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "n": 1.0, "a": "true"}"#,
    r#"{"sub": "nobody", "role": "authenticated", "a": {"b": "b"}}"#,
    r#"{"sub": null, "role": null, "n": "1"}"#,
    r#"{"sub": 1, "a": "sad", "n": 2.5}"#,
    r#"{}"#,
    r#"{"sub": "x", "sub": "{0000000000000000000000000000000a}", "app_metadata": {"a": {"b": 1}}}"#,
    r#"{"role": "a", "a": "a ", "b": "", "app_metadata": null}"#,
];

fn one<'a>(random: &mut StdRng, of: &[&'a str]) -> &'a str {
    of.choose(random).unwrap()
}

pub fn value(random: &mut StdRng, pool: &[&str]) -> String {
    if random.random_bool(0.2) {
        return "null".to_owned();
    }
    format!("'{}'", one(random, pool))
}

/// Fills in a template: `$x` becomes a random expression of the type that the letter stands for, `$$` a
/// dollar sign.
fn fill(random: &mut StdRng, template: &str, depth: u32) -> String {
    let mut sql = String::new();
    let mut letters = template.chars();
    while let Some(letter) = letters.next() {
        if letter == '$' {
            match letters.next().unwrap() {
                '$' => sql.push('$'),
                kind => sql.push_str(&of(random, kind, depth - 1)),
            }
        } else {
            sql.push(letter);
        }
    }
    sql
}

pub fn boolean(random: &mut StdRng, depth: u32) -> String {
    of(random, 'b', depth)
}

/// Every expression of the grammar once, by itself: what stands beside others may decide nothing.
pub fn singles(random: &mut StdRng) -> Vec<String> {
    let mut all = Vec::new();
    for kind in "btiulmnjAIUzf".chars() {
        let (leaves, templates) = expressions(kind);
        for template in leaves.iter().chain(templates) {
            let sql = fill(random, template, 1);
            match kind {
                'b' => all.push(sql),
                't' => all.push(format!("({sql} in ('a', 'b', '', '1', 'd'))")),
                'A' => {
                    all.push(format!("(({sql})[1] = 'a')"));
                    all.push(format!("(array_length({sql}, 1) = 1)"));
                }
                'I' => all.push(format!("(({sql})[1] = 1)")),
                'U' => all.push(format!("(({sql})[1] = u)")),
                other => all.push(format!("({sql} = {})", of(random, other, 0))),
            }
        }
    }
    all
}

fn of(random: &mut StdRng, kind: char, depth: u32) -> String {
    let (leaves, templates) = expressions(kind);
    if depth == 0 || random.random_bool(0.25) && !(kind == 'b' && depth >= 4) {
        return one(random, leaves).to_owned();
    }
    let template = one(random, templates);
    fill(random, template, depth)
}

/// What there is of the type that a letter stands for: plain, and with others inside.
fn expressions(kind: char) -> (&'static [&'static str], &'static [&'static str]) {
    match kind {
        'b' => (
            &[
                "b",
                "b",
                "true",
                "false",
                "null::boolean",
                "(u = auth.uid())",
                "owns(u, t)",
                "(j ? 'a')",
                "(i = 1)",
            ],
            &[
                "($b and $b)",
                "($b or $b)",
                "($b or $b or $b)",
                "(not $b)",
                "($b is true)",
                "($b is not true)",
                "($b is false)",
                "($b is unknown)",
                "($b is not unknown)",
                "($u = $u)",
                "($u = $u)",
                "($u <> $u)",
                "($t = $t)",
                "($t <> $t)",
                "($i = $i)",
                "($i < $i)",
                "($i >= $l)",
                "($l <> k)",
                "($m = $m)",
                "($m < $m)",
                "($n = $n)",
                "($n <= $n)",
                "($j = $j)",
                "($t < $t collate \"C\")",
                "($t >= $t collate \"C\")",
                "($u is null)",
                "($t is not null)",
                "($j is null)",
                "($u is distinct from $u)",
                "($t is not distinct from $t)",
                "($n is distinct from $n)",
                "($t in ('a', 'b', $t))",
                "($u = any (array[$u, $u]))",
                "(i = any ('{1,2,null}'))",
                "(i <> all ('{0,-1}'))",
                "($t not in ('a', $t))",
                "(t || 'a' = 'ba')",
                "(t like 'a_')",
                "(t like '%a%')",
                "(v not like '_')",
                "(t like $t || '%')",
                "(lower(t) = 'a')",
                "(upper(t) = 'A')",
                "(t = any ('{}'))",
                "(v in ('a', 'b'))",
                "(m in ('sad', 'ok'))",
                "($t like $t)",
                "($t not like 'a%')",
                "($t like '_')",
                "($j ? $t)",
                "coalesce($b, $b)",
                "nullif($b, $b)",
                "(case when $b then $b end)",
                "(case when $b then $b when $b then $b else $b end)",
                "(case $t when 'a' then $b when $t then $b end)",
                "($t)::boolean",
                "(auth.jwt() -> 'b')::boolean",
                "owns($u, $t)",
                "same($t, $t)",
                "(z = $z)",
                "(z > $z)",
                "(w <= '2020-01-01')",
                "(d = '2020-01-01')",
                "(f = $f)",
                "(f < $f)",
                "(c = 'a')",
                "(c < 'b' collate \"C\")",
                "($b = $b)",
                "($b < $b)",
                "(select $b)",
                "(auth.role() = $t)",
                "($t = any ($A))",
                "(t = any (a))",
                "($t <> all ($A))",
                "($u = any ($U))",
                "(auth.uid() = any (y))",
                "($i = any ($I))",
                "($i < all ($I))",
                "($A @> $A)",
                "($A <@ $A)",
                "($A && $A)",
                "($I && $I)",
                "($U @> $U)",
                "($A = $A)",
                "($I <> $I)",
                "($A is null)",
                "($A is distinct from $A)",
                "($m = any (x))",
                "(x @> array[$m])",
                "($j @> $j)",
                "($j <@ $j)",
                "($j ?| $A)",
                "($j ?& $A)",
                "($j @> to_jsonb($t))",
                "(to_jsonb($A) @> $j)",
                "($j @> jsonb_build_array($t))",
                "($j @> jsonb_build_object('a', $t))",
                "($j = jsonb_build_object($t, $i, 'b', $b))",
                "($t in (select jsonb_array_elements_text($j)))",
                "($t not in (select jsonb_array_elements_text($j)))",
                "(t in (select jsonb_array_elements_text(auth.jwt() -> 'roles')))",
                "($u in (select jsonb_array_elements_text(auth.jwt() -> 'roles')::uuid))",
                "($t in (select jsonb_object_keys($j)))",
                "($t <> all (select unnest($A)))",
                "($i in (select unnest($I) + 1))",
                "exists (select 1 from unnest($A) e where e = $t)",
                "exists (select from unnest(a) e where e is null or e > 'a' collate \"C\")",
                "exists (select 1 from jsonb_array_elements($j) e where e ->> 'a' = $t)",
                "((select count(*) from unnest($A) e where e <> $t) = $i)",
                "((auth.jwt() -> 'roles') ? $t)",
                "($t ilike $t)",
                "($t ~ 'a')",
                "($t ~ '^a|1')",
                "($t !~ 'b$$')",
                "($t ~* '^(A|ab)$$')",
                "($t !~* '^.+B')",
                "($t ~ '^a.*b$$|^.$$')",
                "(v !~ '[.]|\\_')",
                "(t not ilike 'A%')",
                "starts_with($t, $t)",
                "($t ^@ left(t, 1))",
                "(greatest($i, $i, 1) = $i)",
                "(z < now())",
                "(current_timestamp >= $z)",
                "($z > now() - '1 year 2 days'::interval)",
                "($z + '3 hours'::interval <= now())",
                "($z - '40 years'::interval > now())",
                "(w < now())",
                "(z > timezone('utc'::text, now()))",
                "(w < now() at time zone 'UTC' - '1 day'::interval)",
                "(w + '2 days'::interval > timezone('utc', now()))",
                "(now() <= coalesce($z, $z + '3 days'::interval))",
                "(coalesce(z - '1 mon'::interval, z) < now())",
                "(coalesce(z, now()) > now() - '1 day'::interval)",
                "(now() > w)",
                "(d <= current_date)",
                "(current_date - 30 < d)",
                "($z > current_date - '7 days'::interval)",
                "(w >= current_date)",
                "(current_date > $z)",
                "(d + '1 day'::interval >= now())",
                "(d - '2 days 3 hours'::interval < w)",
                "((d + '1 mon'::interval) <= current_date::timestamp)",
                "(d + '1 hour'::interval > w)",
                "(d::timestamp <= now() at time zone 'utc')",
                "($z + '1 second'::interval > $z)",
                "(least($n, $n) = $n)",
                "(current_user::text = 'authenticated')",
                "(jsonb_typeof($j) = 'object')",
                "(jsonb_typeof($j) <> 'string')",
                "(jsonb_typeof(j) = 'array')",
                "starts_with(t, 'a')",
                "(split_part(t, 'a', -1) = '')",
                "(i - 1 = 0)",
                "(array_append(a, t))[1] = 'a'",
                "(strpos(t, 'a') = 1)",
                "(not ('b' = any (a)))",
                "(j @> '{\"b\": 1}')",
                "(j ?| array['a', 'c'])",
                "(l::int > 0)",
                "((t::int > 0 or b) is null)",
                "((null::text[])[1 / i] is null)",
                "(nullif(a, a)[:t::int] is null)",
                "(nullif(t, 'a') is null)",
                "(btrim(t) = 'a')",
                "(length(t) = 1)",
                "(a && array['b', 'c'])",
                "(j @> (j -> 0))",
                "((string_to_array(t || ',b', ','))[2] = 'b')",
                "(t::uuid <> all (array(select unnest(a[5:6])::uuid)))",
                "(not (t::int = any (array(select unnest(g[5:6])))))",
                "(e = 'A')",
                "(e = $t::citext)",
                "(e <> ($t)::citext)",
                "(e = $t)",
                "(e is distinct from $t::citext)",
                "((e::text || 'x')::citext = 'AX')",
                "(lower(e) = $t)",
                "(e in ('A', 'É', '1'))",
                "(length(e) = 1)",
                "($t::citext = any (array[e, 'B']))",
                "(i % 2 = 0)",
                "(array_lower(a, 1) = 1)",
                "(array_ndims(a) = 1)",
                "(right(t, 1) = 'a')",
                "(jsonb_build_array(t) = '[\"a\"]')",
                "(jsonb_build_object('a', t) = '{\"a\": \"a\"}')",
                "('a' in (select jsonb_object_keys(j)))",
                "exists (select 1 from jsonb_array_elements(j) e where jsonb_typeof(e) <> 'null')",
                "exists (select 1 from jsonb_array_elements(auth.jwt() -> 'roles') e where e <> 'null')",
                "(i::numeric = 1)",
                "(i::numeric > $n)",
            ],
        ),
        'u' => (
            &[
                "u",
                "u",
                "auth.uid()",
                "(select auth.uid())",
                "null::uuid",
                "'00000000-0000-0000-0000-00000000000a'::uuid",
            ],
            &[
                "($t)::uuid",
                "coalesce($u, $u)",
                "nullif($u, $u)",
                "(case when $b then $u end)",
            ],
        ),
        't' => (
            &[
                "t",
                "v",
                "s",
                "'a'",
                "'b'",
                "''",
                "'1'",
                "null::text",
                "auth.role()",
                "(j ->> 'a')",
                "(j ->> 0)",
                "(j ->> -1)",
                "(o ->> 'a')",
                "(o ->> 1)",
                "(o ->> 0)",
                "(o -> 'a' ->> 'b')",
                "(m::text)",
                "(c::text)",
                "(auth.jwt() ->> 'a')",
                "(auth.jwt() ->> 'sub')",
                "current_setting('role')",
                "(j #>> '{a,b}')",
                "(j #>> '{1,0}')",
                "(auth.jwt() #>> '{app_metadata,a}')",
                "current_setting('request.headers', true)",
                "(current_user::text)",
                "(o::text)",
            ],
            &[
                "($t || $t)",
                "lower($t)",
                "upper($t)",
                "coalesce($t, $t)",
                "nullif($t, $t)",
                "(case when $b then $t else $t end)",
                "($u::text)",
                "($i::text)",
                "($b::text)",
                "($n::text)",
                "($j::text)",
                "($j ->> $t)",
                "jsonb_typeof($j)",
                "(select $t)",
                "($A)[1]",
                "($A)[$i]",
                "array_to_string($A, ',')",
                "split_part($t, 'a', $i)",
                "split_part($t, $t, -1)",
                "left($t, $i)",
                "right($t, $i)",
                "substr($t, $i)",
                "substring($t, $i, $i)",
                "btrim($t)",
                "rtrim($t, 'a')",
                "ltrim($t, $t)",
                "replace($t, 'a', $t)",
                "reverse($t)",
                "concat($t, $i, $u)",
                "($A::text)",
                "($I::text)",
                "jsonb_extract_path_text($j, 'a', 'b')",
                "(case $i when 1 then $t else 'b' end)",
            ],
        ),
        'i' => (
            &["i", "k", "1", "0", "2", "null::int"],
            &[
                "($t)::int",
                "(auth.jwt() -> 'n')::int",
                "(j -> 'n')::int",
                "coalesce($i, $i)",
                "nullif($i, 1)",
                "($l)::int",
                "cardinality($A)",
                "array_ndims($A)",
                "array_length($A, 1)",
                "array_length($I, $i)",
                "array_upper($A, 1)",
                "array_lower($A, 1)",
                "array_position($A, $t)",
                "jsonb_array_length($j)",
                "length($t)",
                "strpos($t, $t)",
                "position('a' in $t)",
                "($i + $i)",
                "($i - $i)",
                "($i * $i)",
                "($i / $i)",
                "($i % $i)",
                "($I)[2]",
                "greatest($i, $i)",
            ],
        ),
        'l' => (
            &["l", "1::bigint", "i::bigint"],
            &[
                "coalesce($l, $l)",
                "($t)::bigint",
                "($l + $i)",
                "($l * $l)",
                "($i - $l)",
            ],
        ),
        'm' => (
            &["m", "m", "'ok'::mood", "'meh'::mood"],
            &["coalesce($m, $m)", "($t)::mood"],
        ),
        'n' => (
            &[
                "n",
                "1.0",
                "1.5",
                "0.0",
                "(i::numeric)",
                "null::numeric",
                "(-12345.6789)",
            ],
            &["($t)::numeric", "coalesce($n, $n)", "(j -> 'n')::numeric"],
        ),
        'j' => (
            &[
                "j",
                "j",
                "auth.jwt()",
                "(j -> 'a')",
                "(j -> 0)",
                "(auth.jwt() -> 'app_metadata')",
                "(j #> '{a}')",
                "null::jsonb",
            ],
            &[
                "($j -> $t)",
                "($j -> 'a')",
                "($j -> -1)",
                "($j)['a']",
                "($j)['a'][1]",
                "($j)[-1]",
                "coalesce($j, $j)",
                "nullif($j, $j)",
            ],
        ),
        'A' => (
            &[
                "a",
                "a",
                "array['a', 'b']",
                "'{}'::text[]",
                "null::text[]",
                "'{{a},{b}}'::text[]",
                "array(select jsonb_array_elements_text(auth.jwt() -> 'roles'))",
            ],
            &[
                "array[$t, $t]",
                "string_to_array($t, 'a')",
                "string_to_array($t, $t)",
                "array_append($A, $t)",
                "array_prepend($t, $A)",
                "($A || $t)",
                "($A || $A)",
                "array_remove($A, $t)",
                "($A)[$i:$i]",
                "($A)[:1]",
                "($A)[1:array_length($A, 1) - 1]",
                "coalesce($A, $A)",
                "nullif($A, $A)",
                "($t)::text[]",
                "($U)::text[]",
                "($I)::text[]",
                "array(select unnest($A))",
                "(select array_agg(e) from unnest($A) e where e <> $t)",
                "(case when $b then $A end)",
            ],
        ),
        'I' => (
            &["g", "g", "'{1,2,null}'::int[]", "'{}'::int[]"],
            &[
                "array[$i, $i]",
                "($A)::int[]",
                "array_prepend($i, $I)",
                "coalesce($I, $I)",
            ],
        ),
        'U' => (
            &["y", "y", "null::uuid[]"],
            &["array[$u, $u]", "($A)::uuid[]", "coalesce($U, $U)"],
        ),
        'z' => (
            &[
                "z",
                "'2020-01-01 00:00+00'::timestamptz",
                "'infinity'::timestamptz",
            ],
            &["coalesce($z, $z)"],
        ),
        _ => (
            &[
                "f",
                "1.5::float8",
                "0::float8",
                "'NaN'::float8",
                "(i::float8)",
            ],
            &["coalesce($f, $f)"],
        ),
    }
}

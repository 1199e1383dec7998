//! A cluster of its own for each test, since roles belong to the whole cluster, and `rowcast setup`
//! as its user runs it.

use std::process::Stdio;

use rowcast::pg::throwaway::{Options, Throwaway};
use tokio::process::Command;
use tokio_postgres::{Client, NoTls};

/// A database `app` that belongs to the login `owner`, with a schema of its own.
pub(crate) struct Place {
    pub(crate) cluster: Throwaway,
    /// A superuser's session.
    pub(crate) admin: Client,
    /// The owner's session.
    pub(crate) owner: Client,
}

/// What a run of the command said.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) error: String,
}

impl Said {
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}\n{}", self.out, self.error);
        self.out
    }
}

/// Tables of all kinds in a schema of their own, and policies that need nothing of setup.
pub(crate) const SCHEMA: &str = r#"
create schema app;
comment on schema app is 'the application''s';
create table app.todos (id bigint primary key, user_id uuid not null, list_id bigint not null, title text);
alter table app.todos enable row level security;
create policy own on app.todos for select
  using (user_id::text = current_setting('request.jwt.claims', true)::jsonb ->> 'sub');
create table app.notes (id bigint primary key, owner text, body text);
comment on table app.notes is 'with a comment';
alter table app.notes enable row level security;
create policy own on app.notes for select using (owner = current_setting('request.jwt.claims', true)::jsonb ->> 'sub');
create table app.members (team bigint not null, person uuid not null, primary key (team, person));
alter table app.members enable row level security;
create table app.plans (id bigint primary key, team bigint not null);
create unique index plans_by_team on app.plans (team, id);
alter table app.plans replica identity using index plans_by_team;
alter table app.plans enable row level security;
create policy ours on app.plans for select
  using (team in (select m.team from app.members m where m.person::text = current_setting('request.jwt.claims', true)::jsonb ->> 'sub'));
create table app.parts (id bigint, place text, owner uuid, primary key (id, place)) partition by list (place);
create table app.parts_north partition of app.parts for values in ('north');
create table app.parts_south partition of app.parts for values in ('south');
alter table app.parts enable row level security;
create policy own on app.parts for select using (owner::text = current_setting('request.jwt.claims', true)::jsonb ->> 'sub');
"#;

/// The tables above that can be published.
pub(crate) const TABLES: [&str; 8] = [
    "--table",
    "app.todos",
    "--table",
    "app.notes",
    "--table",
    "app.plans",
    "--table",
    "app.parts",
];

/// Everything in the catalog that setup could change, in lines. Rights that were never granted mean
/// the default ones; once something was granted and revoked PostgreSQL writes those out.
const CATALOG: &str = r#"
with lines(line) as (
  select format('role %s %s', r.rolname, row(r.rolsuper, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin,
    r.rolreplication, r.rolbypassrls, r.rolconnlimit, r.rolvaliduntil, shobj_description(r.oid, 'pg_authid'))) from pg_roles r
  union all select format('member %s of %s %s by %s', m.member::regrole, m.roleid::regrole, m.admin_option, m.grantor::regrole) from pg_auth_members m
  union all select format('setting %s', row(s.*)) from pg_db_role_setting s
  union all select format('database %s %s', d.datname, (select array_agg(format('%s %s by %s', a.privilege_type, a.grantee::regrole, a.grantor::regrole) order by a.privilege_type, a.grantee::regrole::text) from aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a)) from pg_database d where d.datname = current_database()
  union all select format('default rights %s', row(d.defaclrole::regrole, d.defaclnamespace::regnamespace, d.defaclobjtype, d.defaclacl)) from pg_default_acl d
  union all select format('schema %s %s %s %s', n.nspname, n.nspowner::regrole, obj_description(n.oid, 'pg_namespace'),
      (select array_agg(format('%s %s by %s', a.privilege_type, a.grantee::regrole, a.grantor::regrole) order by a.privilege_type, a.grantee::regrole::text) from aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a))
    from pg_namespace n where n.nspname !~ '^pg_(toast|temp)'
  union all select format('class %s %s %s', c.oid::regclass, row(c.relkind, c.relowner::regrole, c.relreplident, c.relrowsecurity,
      c.relforcerowsecurity, c.relpersistence, c.reloptions, obj_description(c.oid, 'pg_class')),
      (select array_agg(format('%s %s by %s', a.privilege_type, a.grantee::regrole, a.grantor::regrole) order by a.privilege_type, a.grantee::regrole::text) from aclexplode(coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))) a))
    from pg_class c where c.relnamespace not in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'pg_toast'::regnamespace)
  union all select format('column %s %s %s %s', a.attrelid::regclass, a.attname, a.attnotnull, col_description(a.attrelid, a.attnum))
    from pg_attribute a join pg_class c on c.oid = a.attrelid where c.oid >= 16384 and a.attnum > 0 and c.relkind <> 't'
  union all select format('index %s %s', pg_get_indexdef(i.indexrelid), row(i.indisreplident, i.indisvalid)) from pg_index i where i.indexrelid >= 16384 and not i.indrelid::regclass::text like 'pg_toast%'
  union all select format('constraint %s %s', c.conrelid::regclass, pg_get_constraintdef(c.oid)) from pg_constraint c where c.oid >= 16384
  union all select format('policy %s', row(p.polname, p.polrelid::regclass, p.polcmd, p.polpermissive, p.polroles::regrole[],
      pg_get_expr(p.polqual, p.polrelid), obj_description(p.oid, 'pg_policy'))) from pg_policy p
  union all select format('function %s %s %s %s', f.oid::regprocedure, f.proowner::regrole, pg_get_functiondef(f.oid), obj_description(f.oid, 'pg_proc')) || coalesce(f.proacl::text, '')
    from pg_proc f where f.oid >= 16384 and f.prokind = 'f'
  union all select format('publication %s %s', p.pubname, row(p.pubowner::regrole, p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete,
      p.pubtruncate, p.pubviaroot, obj_description(p.oid, 'pg_publication'))) from pg_publication p
  union all select format('published %s %s', p.pubname, row(r.prrelid::regclass, to_jsonb(r) ->> 'prqual', to_jsonb(r) ->> 'prattrs')) from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
  union all select format('trigger %s', pg_get_triggerdef(t.oid)) from pg_trigger t
  union all select format('comment %s', row(d.classoid::regclass, d.objsubid, d.description)) from pg_description d where d.objoid >= 16384
  union all select format('slot %s', s.slot_name) from pg_replication_slots s
)
select string_agg(line, E'\n' order by line) from lines
"#;

impl Place {
    /// With what the owner of its database may do beyond owning it, such as `createrole`.
    pub(crate) async fn new(owner: &str) -> Self {
        Self::with(owner, Options::default()).await
    }

    pub(crate) async fn with(owner: &str, options: Options) -> Self {
        let cluster = Throwaway::start(options).await.expect("a cluster");
        let first = connect(&cluster.url("postgres")).await;
        first
            .batch_execute(&format!("create role owner login {owner}"))
            .await
            .unwrap();
        first
            .batch_execute("create database app owner owner")
            .await
            .unwrap();
        let admin = connect(&cluster.url("app")).await;
        let owner = connect(&url_of(&cluster, "owner")).await;
        Self {
            cluster,
            admin,
            owner,
        }
    }

    /// The database's address for a login.
    pub(crate) fn url(&self, login: &str) -> String {
        url_of(&self.cluster, login)
    }

    /// Runs SQL as the owner.
    pub(crate) async fn run(&self, sql: &str) {
        run(&self.owner, sql).await;
    }

    /// Runs SQL as a superuser.
    pub(crate) async fn admin(&self, sql: &str) {
        run(&self.admin, sql).await;
    }

    /// The only value of a query, as text.
    pub(crate) async fn text(&self, sql: &str) -> String {
        let row = self.admin.query_one(sql, &[]).await.expect(sql);
        row.get::<_, Option<String>>(0).unwrap_or_default()
    }

    /// The catalog as it is.
    pub(crate) async fn catalog(&self) -> String {
        self.text(CATALOG).await
    }

    /// `rowcast setup` under a login.
    pub(crate) async fn setup(&self, login: &str, arguments: &[&str]) -> Said {
        setup(&[("DATABASE_URL", &self.url(login))], arguments).await
    }
}

fn url_of(cluster: &Throwaway, login: &str) -> String {
    cluster
        .url("app")
        .replacen("postgres@", &format!("{login}@"), 1)
}

/// `rowcast setup` with this environment and nothing else.
pub(crate) async fn setup(environment: &[(&str, &str)], arguments: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_rowcast"))
        .arg("setup")
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(60), output)
        .await
        .expect("setup ends")
        .unwrap();
    Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        error: String::from_utf8(output.stderr).unwrap(),
    }
}

pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("a connection");
    tokio::spawn(async move {
        // The test fails where the connection is used.
        let _ended = connection.await;
    });
    client
}

#[track_caller]
pub(crate) fn run<'a>(client: &'a Client, sql: &'a str) -> impl Future<Output = ()> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        client.batch_execute(sql).await.unwrap_or_else(|error| {
            let said = error
                .as_db_error()
                .map(tokio_postgres::error::DbError::message);
            panic!("{caller}: {sql}: {}", said.unwrap_or("disconnected"))
        });
    }
}

/// The lines in which two catalogs differ.
#[track_caller]
pub(crate) fn same(before: &str, after: &str) {
    let only = |one: &str, other: &str| -> Vec<String> {
        let known: Vec<&str> = other.lines().collect();
        one.lines()
            .filter(|line| !known.contains(line))
            .map(str::to_owned)
            .collect()
    };
    let (lost, left) = (only(before, after), only(after, before));
    assert!(
        lost.is_empty() && left.is_empty(),
        "gone: {lost:#?}\nleft behind: {left:#?}"
    );
}

/// Splits a text for psql into statements, as somebody would who pastes one after the other.
pub(crate) fn statements(text: &str) -> Vec<String> {
    let mut statements = vec![String::new()];
    let mut quoted = false;
    for line in text.lines() {
        if !line.starts_with("--") {
            quoted ^= line.matches("$$").count() % 2 == 1;
        }
        let statement = statements.last_mut().unwrap();
        statement.push_str(line);
        statement.push('\n');
        if !quoted && !line.starts_with("--") && line.ends_with(';') {
            statements.push(String::new());
        }
    }
    statements
}

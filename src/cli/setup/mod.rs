//! `rowcast setup`: what the database needs, as SQL that can be read before it runs.

#![expect(
    clippy::print_stdout,
    reason = "what was done, or the SQL, is what is asked for"
)]

mod carry_out;

mod print;

mod script;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use tokio_postgres::Client;

use super::{EXIT_FAILURE, EXIT_UNAVAILABLE, EXIT_USAGE, fail, secret};
use crate::config::{self, Config, Given, Secret};
use crate::pg::connect::{Database, is_direct};
use crate::pg::quote_identifier;
use crate::pg::refusal::with_causes;
use carry_out::Outcome;
use print::Sheet;
use script::{Script, Step};

/// How long a statement waits for a lock. Whoever comes behind it waits as long, so it is short;
/// `sql/identity.sql` sets it again after building an index.
const LOCK_TIMEOUT: &str = "set lock_timeout = '2s';";

/// What the statements rely on, and a login or a database may have otherwise: nobody else's
/// functions are called in the place of PostgreSQL's, a backslash in a literal is one, and building
/// an index takes as long as it takes.
const SESSION: [&str; 6] = [
    "client_encoding = 'UTF8'",
    "search_path = ''",
    "standard_conforming_strings = on",
    "default_transaction_read_only = off",
    "statement_timeout = 0",
    "idle_in_transaction_session_timeout = 0",
];

/// The longest name that PostgreSQL keeps, in bytes.
const MAX_NAME: usize = 63;

/// Arguments of `rowcast setup`.
#[derive(Args)]
#[command(after_help = "\
It makes what is missing and changes nothing that is there, except the replica identity of tables
that are published; --remove puts that back and drops what setup made, known by its comment. It may
be run again at any time, also with more tables.

The parts, each a file of sql/ (psql -f runs it too):
  auth         roles anon, authenticated and service_role, functions auth.uid(), auth.jwt() and
               auth.role(), where they are missing
  role         the relay's own login: REPLICATION, membership in the clients' roles, no rights on
               rows; its password from --password-file or ROWCAST_RELAY_PASSWORD
  publication  the tables, one by one, that can be subscribed to: those that are named and have
               row-level security and a replica identity; the others are named with what is missing
  identity     what a DELETE carries into the log: the columns that policies and filters read, by a
               unique index where that can be, else FULL
  ddl          an event trigger by which the log says where policies, rights, functions and columns
               change: needs a superuser, and everything works without it

A superuser is not needed. What the login of DATABASE_URL may not do is printed apart, for an
administrator, with what is lost without it.

Examples:
  rowcast setup --print --table app.todos --table 'app.\"Messages\"' | less
  ROWCAST_RELAY_PASSWORD=… rowcast setup --table app.todos
  rowcast setup --example agent_tasks
  rowcast setup --remove --print

Exit codes: 0 everything is there now (or was printed), 1 something that was asked for is not done,
64 wrong arguments or settings, 69 PostgreSQL cannot be reached, or an administrator has to do
something first.")]
pub(super) struct Arguments {
    /// Where PostgreSQL is, under a login that owns the tables [env: DATABASE_URL, or the file that
    /// DATABASE_URL_FILE names]
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// A table to publish, as in SQL with its schema; again for more [env: ROWCAST_SETUP_TABLES,
    /// separated by commas]
    #[arg(long = "table", value_name = "SCHEMA.TABLE")]
    tables: Vec<String>,
    /// Publish the tables of this schema that fit, as of now
    #[arg(long = "schema", value_name = "NAME")]
    schemas: Vec<String>,
    /// Publish also tables without row-level security: every role that may SELECT from them sees
    /// every row
    #[arg(long)]
    without_rls: bool,
    /// A column that clients filter by, so that DELETEs carry it; again for more
    #[arg(long = "filter-column", value_name = "SCHEMA.TABLE.COLUMN")]
    filter_columns: Vec<String>,
    /// The relay's login
    #[arg(long, value_name = "NAME", default_value = "rowcast")]
    role: String,
    /// A file that holds the password of the relay's login [env: ROWCAST_RELAY_PASSWORD, or the file
    /// that ROWCAST_RELAY_PASSWORD_FILE names]. Without one the login has no password yet
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// A role that tokens name, which the relay has to act as; again for more
    #[arg(long = "client-role", value_name = "NAME", default_values = ["anon", "authenticated"])]
    client_roles: Vec<String>,
    /// Let the tables that policies read be kept in memory: the relay's login may read them, past
    /// row-level security on them, and they get a publication of their own, which nobody can
    /// subscribe to [env: ROWCAST_LOOKUP_PUBLICATION for its name]
    #[arg(long)]
    lookups: bool,
    /// The publication [default: rowcast] [env: ROWCAST_PUBLICATION]
    #[arg(long, value_name = "NAME")]
    publication: Option<String>,
    /// The relay's replication slot, which the event trigger names and --remove drops [default: rowcast] [env: ROWCAST_SLOT]
    #[arg(long, value_name = "NAME")]
    slot: Option<String>,
    /// Make the example's tables as well; with --remove, drop them with their rows
    #[arg(long, value_name = "NAME")]
    example: Option<Example>,
    /// Only these parts
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// Print the SQL instead of running it; without DATABASE_URL, the files themselves
    #[arg(long)]
    print: bool,
    /// Undo what setup made, and nothing else
    #[arg(long)]
    remove: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Example {
    #[value(name = "agent_tasks")]
    AgentTasks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Auth,
    Role,
    Publication,
    Identity,
    Ddl,
}

const PARTS: [Part; 5] = [
    Part::Auth,
    Part::Role,
    Part::Publication,
    Part::Identity,
    Part::Ddl,
];

impl Part {
    const fn name(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Role => "role",
            Self::Publication => "publication",
            Self::Identity => "identity",
            Self::Ddl => "ddl",
        }
    }
}

/// Why setup ends early.
struct Fault {
    code: u8,
    sentence: String,
}

impl Fault {
    fn usage(sentence: impl Into<String>) -> Self {
        Self {
            code: EXIT_USAGE,
            sentence: sentence.into(),
        }
    }

    fn unavailable(sentence: impl Into<String>) -> Self {
        Self {
            code: EXIT_UNAVAILABLE,
            sentence: sentence.into(),
        }
    }
}

/// PostgreSQL's own words: the names in them are those of tables and roles.
impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        let sentence = match error.as_db_error() {
            Some(said) => format!("PostgreSQL says: {}", said.message()),
            None => with_causes(&error),
        };
        Self {
            code: EXIT_FAILURE,
            sentence,
        }
    }
}

/// What is to be set up.
struct Plan {
    parts: Vec<Part>,
    example: Option<Example>,
    role: String,
    password: Option<Secret>,
    /// What the files of `sql/` read with `current_setting`.
    settings: Vec<(&'static str, String)>,
}

/// Runs it, prints it or undoes it.
pub(super) async fn run(arguments: Arguments) -> ExitCode {
    match set_up(arguments).await {
        Ok(code) => code,
        Err(fault) => fail(fault.code, format_args!("{}", fault.sentence)),
    }
}

async fn set_up(arguments: Arguments) -> Result<ExitCode, Fault> {
    let config = configuration(&arguments)?;
    let (print, remove) = (arguments.print, arguments.remove);
    let plan = Plan::new(arguments, &config)?;
    if config.database_url.expose().is_empty() {
        if print {
            print!("{}", plan.files(remove));
            return Ok(ExitCode::SUCCESS);
        }
        return Err(Fault::usage(
            "DATABASE_URL is missing: set it, or give --database-url; the login in it should own \
             the tables.",
        ));
    }
    let database = Database::parse(config.database_url.expose())
        .map_err(|error| Fault::usage(error.to_string()))?;
    let client = database
        .connect("rowcast setup")
        .await
        .map_err(|error| Fault::unavailable(error.to_string()))?;
    let session = Session::open(client, &plan).await?;
    match (print, remove) {
        (true, true) => session.print_removal().await?,
        (true, false) => session.print(&plan).await?,
        (false, true) => return session.remove().await,
        (false, false) => return session.set_up(&plan).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// The settings that setup shares with the relay.
fn configuration(arguments: &Arguments) -> Result<Config, Fault> {
    let given = [
        ("database_url", &arguments.database_url),
        ("publication", &arguments.publication),
        ("slot", &arguments.slot),
    ];
    let flags = given
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)))
        .collect();
    Given::read(flags, None)
        .and_then(|given| config::load(&given, false))
        .map(|loaded| loaded.config)
        .map_err(|error| Fault::usage(error.to_string()))
}

/// Whether a text is one name or several with commas between them, each of so many parts, as SQL
/// writes them.
pub(super) fn are_sql_names(text: &str, parts: &RangeInclusive<usize>) -> bool {
    let mut rest = text.trim_start();
    let mut count = 1;
    loop {
        let part = if let Some(quoted) = rest.strip_prefix('"') {
            // A doubled quote stands for one.
            let inside = quoted.replace("\"\"", "__");
            inside.find('"').map(|end| end + 2).filter(|end| *end > 2)
        } else {
            let letter = |c: char| c.is_alphabetic() || c == '_' || !c.is_ascii();
            let other = |c: char| !(letter(c) || c.is_ascii_digit() || c == '$');
            let end = rest.find(other).unwrap_or(rest.len());
            rest.starts_with(letter).then_some(end)
        };
        let Some(behind) = part.and_then(|end| rest.get(end..)) else {
            return false;
        };
        let behind = behind.trim_start();
        if let Some(next) = behind.strip_prefix('.') {
            count += 1;
            rest = next.trim_start();
            continue;
        }
        if !parts.contains(&count) {
            return false;
        }
        match behind.strip_prefix(',') {
            Some(next) => (count, rest) = (1, next.trim_start()),
            None => return behind.is_empty(),
        }
    }
}

impl Plan {
    fn new(arguments: Arguments, config: &Config) -> Result<Self, Fault> {
        let mut tables = arguments.tables;
        if tables.is_empty() {
            tables.extend(secret::variable("ROWCAST_SETUP_TABLES"));
        }
        for (flag, parts, names) in [
            ("--table", 1..=2, &tables),
            ("--filter-column", 2..=3, &arguments.filter_columns),
        ] {
            for names in names {
                if !are_sql_names(names, &parts) {
                    return Err(Fault::usage(format!(
                        "{flag} {names:?} is not a name as it stands in SQL: write schema.table, and \
                         each part that is not made of letters, digits and underscores in double \
                         quotes, such as 'app.\"My Table\"'."
                    )));
                }
            }
        }
        let names = arguments.client_roles.iter().chain(&arguments.schemas);
        let publication = config.publication.clone();
        let publication = publication.unwrap_or_else(|| "rowcast".to_owned());
        for name in names.chain([&arguments.role, &publication]) {
            if name.is_empty() || name.len() > MAX_NAME || name.contains('\0') {
                return Err(Fault::usage(format!(
                    "{name:?} cannot be a name in PostgreSQL: it must have 1 to {MAX_NAME} bytes."
                )));
            }
        }
        if arguments.client_roles.contains(&arguments.role) {
            return Err(Fault::usage(format!(
                "{:?} cannot be both the relay's login and a role of its clients.",
                arguments.role
            )));
        }
        let password = secret::given(
            "password",
            arguments.password_file.as_deref(),
            "ROWCAST_RELAY_PASSWORD",
        )
        .map_err(Fault::usage)?;
        let parts: Vec<Part> = PARTS
            .into_iter()
            .filter(|part| arguments.only.is_empty() || arguments.only.contains(part))
            .collect();
        let quoted = |names: &[String]| {
            let quoted: Vec<String> = names.iter().map(|name| quote_identifier(name)).collect();
            quoted.join(", ")
        };
        let on = |flag: bool| if flag { "on" } else { "" }.to_owned();
        let part_names: Vec<&str> = parts.iter().map(|part| part.name()).collect();
        let example = arguments.example;
        let settings = vec![
            ("rowcast.role", arguments.role.clone()),
            ("rowcast.client_roles", quoted(&arguments.client_roles)),
            ("rowcast.publication", publication),
            ("rowcast.lookup_publication", config.lookup_publication()),
            ("rowcast.slot", config.slot.clone()),
            ("rowcast.tables", tables.join(", ")),
            ("rowcast.schemas", quoted(&arguments.schemas)),
            ("rowcast.without_rls", on(arguments.without_rls)),
            (
                "rowcast.filter_columns",
                arguments.filter_columns.join(", "),
            ),
            ("rowcast.lookups", on(arguments.lookups)),
            ("rowcast.parts", part_names.join(", ")),
            (
                "rowcast.example",
                example.map_or(String::new(), |_| "agent_tasks".to_owned()),
            ),
        ];
        Ok(Self {
            parts,
            example,
            role: arguments.role,
            password,
            settings,
        })
    }

    /// The scripts in their order, each with its title.
    fn scripts(&self) -> Vec<(&'static str, Script)> {
        let mut scripts = Vec::new();
        for part in &self.parts {
            if *part != Part::Auth && scripts.iter().all(|(title, _)| *title != "example") {
                self.add_example(&mut scripts);
            }
            scripts.push(match part {
                Part::Auth => ("auth", script::AUTH),
                Part::Role => ("role", script::ROLE),
                Part::Publication => ("publication", script::PUBLICATION),
                Part::Identity => ("identity", script::IDENTITY),
                Part::Ddl => ("ddl", script::DDL),
            });
        }
        if scripts.iter().all(|(title, _)| *title != "example") {
            self.add_example(&mut scripts);
        }
        scripts
    }

    fn add_example(&self, scripts: &mut Vec<(&'static str, Script)>) {
        if self.example.is_some() {
            scripts.push(("example", script::EXAMPLE));
        }
    }

    /// The files as they are, for psql.
    fn files(&self, remove: bool) -> String {
        let mut text = "-- The files of rowcast setup for psql -f, as they are: without \
                        DATABASE_URL it is not known what\n-- is missing. The settings that each \
                        reads stand in it.\n"
            .to_owned();
        let scripts = if remove {
            vec![("remove", script::REMOVE)]
        } else {
            let mut scripts = self.scripts();
            scripts.push(("administrator", script::ADMINISTRATOR));
            scripts
        };
        for (_, script) in scripts {
            text.push_str(&format!("\n-- {}\n\n{}", script.path, script.text));
        }
        text
    }
}

/// A session with the database, in which the files find their settings.
struct Session {
    client: Client,
    database: String,
    login: String,
    creates_roles: bool,
}

impl Session {
    async fn open(client: Client, plan: &Plan) -> Result<Self, Fault> {
        if !is_direct(&client).await? {
            return Err(Fault::unavailable(
                "a connection pooler answers: setup needs a session of its own, so DATABASE_URL \
                 must lead to PostgreSQL itself",
            ));
        }
        // The queries are large and run in a few milliseconds; compiling them takes seconds.
        client
            .batch_execute(&format!(
                "set jit = off; set {}; {LOCK_TIMEOUT} \
                 select set_config(name, '0', false) from pg_settings where name = 'transaction_timeout'",
                SESSION.join("; set ")
            ))
            .await?;
        for (name, value) in &plan.settings {
            client
                .query("select set_config($1, $2, false)", &[name, value])
                .await?;
        }
        let row = client
            .query_one(
                "select current_database()::text, current_user::text, pg_is_in_recovery(), \
                 current_setting('server_version_num')::int4, current_setting('server_version'), \
                 (select rolsuper or rolcreaterole from pg_roles where rolname = current_user)",
                &[],
            )
            .await?;
        if row.try_get(2)? {
            return Err(Fault::unavailable(
                "this server is a standby, on which nothing can be made: connect to its primary",
            ));
        }
        if row.try_get::<_, i32>(3)? < 140_000 {
            let version: String = row.try_get(4)?;
            return Err(Fault::unavailable(format!(
                "PostgreSQL {version} is too old: upgrade it to 14 or later"
            )));
        }
        Ok(Self {
            database: row.try_get(0)?,
            login: row.try_get(1)?,
            creates_roles: row.try_get(5)?,
            client,
        })
    }

    async fn print(&self, plan: &Plan) -> Result<(), Fault> {
        let mut sheet = Sheet::new(&self.database, &self.login, false);
        for (title, script) in plan.scripts() {
            sheet.part(title, script.path);
            match script {
                script::AUTH => sheet.whole(script, &[]),
                script::EXAMPLE => sheet.whole(
                    script,
                    plan.settings
                        .iter()
                        .filter(|(name, _)| *name == "rowcast.publication")
                        .cloned()
                        .collect::<Vec<_>>()
                        .as_slice(),
                ),
                _ => sheet.steps(self.steps(script, plan).await?),
            }
        }
        sheet.steps_apart(script::ADMINISTRATOR.steps(&self.client).await?);
        print!("{}", sheet.finish());
        Ok(())
    }

    async fn print_removal(&self) -> Result<(), Fault> {
        let mut sheet = Sheet::new(&self.database, &self.login, true);
        sheet.part("remove", script::REMOVE.path);
        sheet.steps(script::REMOVE.steps(&self.client).await?);
        print!("{}", sheet.finish());
        Ok(())
    }

    /// What a file comes to, with the password of the login that it makes.
    async fn steps(&self, script: Script, plan: &Plan) -> Result<Vec<Step>, Fault> {
        let mut steps = script.steps(&self.client).await?;
        if script == script::ROLE
            && let Some(step) = self.password_step(plan).await?
        {
            steps.push(step);
        }
        Ok(steps)
    }

    /// What becomes of the login's password. What is sent is what PostgreSQL itself would keep of
    /// it, so that neither its log nor `--print` shows the password.
    async fn password_step(&self, plan: &Plan) -> Result<Option<Step>, Fault> {
        let role = quote_identifier(&plan.role);
        let found = self
            .client
            .query_opt(
                "select coalesce(shobj_description(r.oid, 'pg_authid') like 'Made by rowcast setup%', \
                 false), m.rolsuper or m.rolcreaterole and case \
                 when current_setting('server_version_num')::int4 < 160000 then not r.rolreplication \
                 else pg_has_role(m.oid, r.oid, 'member with admin option') end \
                 from pg_roles r, pg_roles m where r.rolname = $1::text and m.rolname = current_user",
                &[&plan.role],
            )
            .await?;
        let (made, may) = match &found {
            Some(row) => (row.try_get(0)?, row.try_get(1)?),
            None => (true, self.creates_roles),
        };
        let Some(password) = &plan.password else {
            return Ok(found.is_none().then(|| {
                Step::note(format!(
                    "login {role} has no password yet: \\password {role} in psql asks for one, \
                     and --password-file and ROWCAST_RELAY_PASSWORD set one."
                ))
            }));
        };
        if !made {
            return Ok(Some(Step::note(format!(
                "login {role} was there before setup, which leaves its password as it is."
            ))));
        }
        if found.is_some() && !may {
            return Ok(Some(Step::note(format!(
                "the password of {role} is not set, since this login may not change it: where it \
                 has none yet, or not this one, \\password {role} in psql under an administrator \
                 sets it."
            ))));
        }
        let verifier = postgres_protocol::password::scram_sha_256(password.expose().as_bytes());
        let mut step = Step::run(
            "What PostgreSQL keeps of the password; the password itself is neither shown nor sent.",
            format!(
                "alter role {role} password {};",
                crate::pg::quote_literal(&verifier)
            ),
        );
        if !may {
            step.kind = script::Kind::Administrator;
            "without it the relay cannot log in.".clone_into(&mut step.word);
        }
        Ok(Some(step))
    }

    async fn set_up(&self, plan: &Plan) -> Result<ExitCode, Fault> {
        let mut outcome = Outcome::default();
        for (title, script) in plan.scripts() {
            println!("{title} ({})", script.path);
            match script {
                script::AUTH | script::EXAMPLE => {
                    let step = Step::run("", script.text.to_owned());
                    outcome.whole(&self.client, script.path, &step).await?;
                }
                // Each by itself: it builds indexes, and must not hold one table's lock while it
                // waits for another's.
                script::IDENTITY => {
                    let steps = self.steps(script, plan).await?;
                    outcome.one_by_one(&self.client, steps).await?;
                }
                _ => {
                    let steps = self.steps(script, plan).await?;
                    outcome.together(&self.client, steps).await?;
                }
            }
        }
        outcome.apart(script::ADMINISTRATOR.steps(&self.client).await?);
        Ok(outcome.finish())
    }

    async fn remove(&self) -> Result<ExitCode, Fault> {
        let steps = script::REMOVE.steps(&self.client).await?;
        let mut outcome = Outcome::default();
        println!("remove ({})", script::REMOVE.path);
        let refused = steps.iter().find(|step| step.kind == script::Kind::Refused);
        if let Some(refused) = refused {
            return Err(Fault::unavailable(format!(
                "nothing was undone: {}",
                refused.word
            )));
        }
        outcome.one_by_one(&self.client, steps).await?;
        Ok(outcome.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_named_as_in_sql() {
        for good in [
            "todos",
            "app.todos",
            " app . todos , public.\"My Table\"",
            "\"a\"\"b\".\"We.ird, T\"",
            "größe.t$1",
        ] {
            assert!(are_sql_names(good, &(1..=2)), "{good}");
        }
        for bad in [
            "",
            "Od d.We.ird, T",
            "app.",
            ".todos",
            "a.b.c",
            "\"open",
            "\"\"",
            "1a",
            "a,",
            "a b",
            "a;drop table t",
        ] {
            assert!(!are_sql_names(bad, &(1..=2)), "{bad}");
        }
        assert!(are_sql_names("app.todos.list_id", &(2..=3)));
    }
}

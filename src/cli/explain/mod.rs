//! `rowcast explain`: what becomes of policies, and why a row is seen or not.

#![expect(clippy::print_stdout, reason = "the explanation is what is asked for")]

mod checks;

mod old_rows;

mod print;

mod report;

mod row;

mod survey;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use super::serve::Settings;
use super::{EXIT_FAILURE, EXIT_SOFTWARE, EXIT_UNAVAILABLE, EXIT_USAGE, fail, secret};
use crate::auth::{self, Authenticator, Claims, Principal};
use crate::config::{self, Config, Given, Secret};
use crate::doctor;
use crate::pg::connect::Database;

/// Arguments of `rowcast explain`.
#[derive(Args)]
#[command(after_help = "\
It takes the settings of `rowcast serve` from the same flags, variables and file, needs no running \
relay and nothing of what `rowcast setup` makes, writes nothing, and works on a standby. What its \
login may not see or do is said under \"notes\".

Each policy and rule has a level (A row and claims, B one table looked into, C several, D SQL \
functions, E plpgsql of one RETURN, F straight-line plpgsql) and is native, hybrid (PostgreSQL is \
asked where the compiled part does not decide), asked, or deny (PostgreSQL refuses every statement).

With --row the row is read by the login of DATABASE_URL under its own rights, and values are shown \
of what it may read only. Whether the client sees it is asked of PostgreSQL under the client's role \
and claims and held against what the relay would decide; both are the present moment's.

Examples:
  DATABASE_URL=… rowcast explain public.todos
  DATABASE_URL=… rowcast explain public.todos --claims '{\"sub\": \"3fa8…\"}' --row 42
  DATABASE_URL=… JWT_SECRET=… ROWCAST_TOKEN=… rowcast explain todos --row '{\"org\": 1, \"id\": 7}'
  DATABASE_URL=… rowcast explain --all --json | jq .totals

What is compiled is held against PostgreSQL, on rows that are made up and on some of the table's own \
(ROWCAST_POLICY_CHECK=off leaves that out).

Exit codes: 0 explained, 1 the relay and PostgreSQL disagree, 64 wrong arguments or settings, 69 PostgreSQL unreachable or unfit.")]
pub(super) struct Arguments {
    /// The table, as in SQL, with its schema where the login's search path does not have it
    #[arg(
        value_name = "TABLE",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    table: Option<String>,
    /// Explain all published tables, and all others that have policies for SELECT
    #[arg(long)]
    all: bool,
    /// The role to explain it for [default: the usual ones, and those that the policies name; with
    /// claims, what these name]
    #[arg(long, value_name = "NAME")]
    role: Option<String>,
    /// The claims of a client, as a JSON object
    #[arg(long, value_name = "JSON", conflicts_with_all = ["token", "token_file", "all"])]
    claims: Option<String>,
    /// A client's token, verified as the relay would; better in ROWCAST_TOKEN, or in a file:
    /// everybody on this machine can see a process's arguments
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["token_file", "all"])]
    token: Option<String>,
    /// The same, from a file [env: ROWCAST_TOKEN_FILE]
    #[arg(long, value_name = "FILE", conflicts_with = "all")]
    token_file: Option<PathBuf>,
    /// A row, by its primary key: the value, or a JSON object of the key's columns
    #[arg(
        long,
        value_name = "KEY",
        conflicts_with = "all",
        allow_hyphen_values = true
    )]
    row: Option<String>,
    /// Print one JSON object: docs/explain.md has its shape
    #[arg(long)]
    json: bool,
    /// The configuration file [default: rowcast.toml, where there is one] [env: ROWCAST_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// Why there is no explanation.
#[derive(Debug)]
enum Trouble {
    /// What was asked for makes no sense.
    Usage(String),
    /// PostgreSQL could not be asked.
    Database(String),
}

impl From<tokio_postgres::Error> for Trouble {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(match error.as_db_error() {
            Some(refused) => format!("{} (SQLSTATE {})", refused.message(), refused.code().code()),
            None => error.to_string(),
        })
    }
}

/// What is to be explained.
struct Wish {
    table: Option<String>,
    role: Option<String>,
    principal: Option<Principal>,
    row: Option<String>,
}

/// Explains, and prints it.
pub(super) async fn run(arguments: Arguments) -> ExitCode {
    #[cfg(feature = "mutants")]
    crate::mutant::PolicyMutant::switch_named_on();
    let json = arguments.json;
    match explained(arguments).await {
        Ok(report) => {
            let differs = report.differs();
            if json {
                match serde_json::to_string_pretty(&report) {
                    Ok(text) => println!("{text}"),
                    Err(error) => return fail(EXIT_SOFTWARE, format_args!("{error}")),
                }
            } else {
                print!("{}", print::text(&report));
            }
            ExitCode::from(if differs { EXIT_FAILURE } else { 0 })
        }
        Err(Trouble::Usage(sentence)) => fail(EXIT_USAGE, format_args!("{sentence}")),
        Err(Trouble::Database(sentence)) => fail(EXIT_UNAVAILABLE, format_args!("{sentence}")),
    }
}

async fn explained(arguments: Arguments) -> Result<report::Report, Trouble> {
    let usage = |error: &dyn std::fmt::Display| Trouble::Usage(error.to_string());
    let loaded = Given::read(arguments.settings.0, arguments.config.as_deref())
        .and_then(|given| config::load(&given, false))
        .map_err(|error| usage(&error))?;
    let config = loaded.config;
    if config.database_url.expose().is_empty() {
        return Err(usage(
            &"DATABASE_URL is not set; it must say where PostgreSQL is, such as \
              postgres://user:password@host:5432/database.",
        ));
    }
    let mut wish = Wish {
        table: arguments.table,
        role: arguments.role,
        principal: None,
        row: arguments.row,
    };
    let mut notes = Vec::new();
    let token = match arguments.token {
        Some(token) => Some(Secret::new(token)),
        None if arguments.claims.is_some() || arguments.all => None,
        None => secret::given("token", arguments.token_file.as_deref(), "ROWCAST_TOKEN")
            .map_err(|error| usage(&error))?,
    };
    wish.principal = match (&arguments.claims, token) {
        (Some(claims), _) => Some(by_claims(claims, &config, wish.role.as_deref())?),
        (None, Some(token)) => Some(by_token(token.expose(), &config, &mut notes).await?),
        (None, None) if wish.row.is_some() => Some(by_claims("{}", &config, wish.role.as_deref())?),
        (None, None) => None,
    };
    if let (Some(role), Some(principal)) = (&wish.role, &mut wish.principal) {
        principal.role = role.as_str().into();
    }
    let report = survey::report(&config, &wish, notes).await;
    let Err(Trouble::Database(fault)) = report else {
        return report;
    };
    let locked = match Database::parse(config.database_url.expose()) {
        Ok(database) => doctor::locked(&database, &fault).await,
        Err(_) => None,
    };
    Err(Trouble::Database(locked.map_or(fault, |one| one.text)))
}

fn by_claims(text: &str, config: &Config, role: Option<&str>) -> Result<Principal, Trouble> {
    let claims: serde_json::Value = serde_json::from_str(text)
        .map_err(|error| Trouble::Usage(format!("--claims is not JSON: {error}.")))?;
    let Some(object) = claims.as_object() else {
        let sentence = "--claims must be a JSON object, such as '{\"sub\": \"…\"}'.";
        return Err(Trouble::Usage(sentence.to_owned()));
    };
    let named = auth::role(object, &config.role_claim).map_err(|error| {
        Trouble::Usage(format!("The relay would refuse these claims: {error}."))
    })?;
    let role = role.or(named.as_deref()).unwrap_or(&config.default_role);
    Ok(Principal {
        role: role.into(),
        claims: Claims::verified(text.to_owned()),
        expires_at: None,
    })
}

async fn by_token(
    token: &str,
    config: &Config,
    notes: &mut Vec<String>,
) -> Result<Principal, Trouble> {
    if config.jwt_secret.is_none() && config.jwks_url.is_none() {
        notes.push(
            "neither JWT_SECRET nor JWKS_URL is set: the token is taken for good unverified"
                .to_owned(),
        );
        let payload = token.split('.').nth(1).unwrap_or_default();
        let bytes = base64::Engine::decode(
            &base64::engine::general_purpose::URL_SAFE_NO_PAD,
            payload.trim_end_matches('='),
        );
        let claims = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let claims = claims.ok_or_else(|| Trouble::Usage("The token is no JWT.".to_owned()))?;
        return by_claims(&claims, config, None);
    }
    let settings = auth::Settings {
        jwt_secret: config
            .jwt_secret
            .as_ref()
            .map(|one| one.expose().to_owned()),
        jwks_url: config.jwks_url.clone(),
        default_role: config.default_role.clone(),
        role_claim: config.role_claim.clone(),
        api_keys: config.api_keys.clone(),
        ..auth::Settings::default()
    };
    let verifier =
        Authenticator::new(settings).map_err(|error| Trouble::Usage(format!("{error}.")))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
    let verified = verifier.verify(token, now).await;
    verified.map_err(|error| Trouble::Usage(format!("The relay would refuse the token: {error}.")))
}

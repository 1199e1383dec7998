//! `rowcast doctor`: why subscribers receive nothing, too little or too late.

#![expect(clippy::print_stdout, reason = "what was found is what is asked for")]

mod live;

mod print;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::serve::Settings;
use super::setup::are_sql_names;
use super::{EXIT_USAGE, fail, secret};
use crate::config::{self, Given, Secret};
use crate::doctor::{Patient, Report, Severity, examine};
use crate::subscription::Events;
use live::Live;

/// There are warnings, and nothing worse.
const EXIT_WARNINGS: u8 = 1;
/// There are errors.
const EXIT_ERRORS: u8 = 2;

/// Arguments of `rowcast doctor`.
#[derive(Args)]
#[command(after_help = "\
It takes the settings of `rowcast serve`, from the same flags, variables and file, and needs no \
running relay. Nothing is written, but for --live.

Each finding has a word that stays (docs/doctor.md lists them), the SQL or setting that mends it, and \
a severity: error, somebody receives nothing or what they must not, or the relay cannot start; \
warning, too little or too late, now or soon; note, as it may be meant.

Examples:
  DATABASE_URL=… JWT_SECRET=… rowcast doctor
  rowcast doctor --table public.todos --token-file token
  rowcast doctor --table public.todos --filter 'team_id=eq.7' --filter 'status=in.(open,new)'
  rowcast doctor --json | jq -r '.findings[].sql[]'
  ROWCAST_LIVE_DATABASE_URL=postgres://owner@… rowcast doctor --live

Exit codes: 0 nothing is wrong (there may be notes), 1 warnings, 2 errors, 64 wrong arguments or \
settings.")]
pub(super) struct Arguments {
    /// The configuration file [default: rowcast.toml, where there is one] [env: ROWCAST_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object: docs/doctor.md has its shape
    #[arg(long)]
    json: bool,
    /// The token of somebody who receives nothing; better in ROWCAST_TOKEN, or in a file: everybody
    /// on this machine can see a process's arguments
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
    token: Option<String>,
    /// The same, from a file [env: ROWCAST_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A table of which something is missed, as in SQL with its schema; again for more [default: all
    /// that are published]
    #[arg(long = "table", value_name = "SCHEMA.TABLE")]
    tables: Vec<String>,
    /// A filter that subscribers of the one --table have, in Supabase's grammar (docs/protocol.md):
    /// whether the relay takes it, and whether old rows carry what it reads; again for more
    #[arg(long = "filter", value_name = "COLUMN=OP.VALUE")]
    filters: Vec<String>,
    /// What subscribers with these filters ask for: INSERT, UPDATE, DELETE or * for all [default: *]
    #[arg(long, value_name = "EVENT", requires = "filters", ignore_case = true,
          value_parser = ["*", "INSERT", "UPDATE", "DELETE"])]
    event: Option<String>,
    /// Write a row into a table of its own, which is made and dropped again, and watch it arrive:
    /// through the running relay as a subscriber does, else through a slot that is gone afterwards
    #[arg(long)]
    live: bool,
    /// The login that makes this table, where that of DATABASE_URL may not: it owns the publication
    /// and may create in the database [env: ROWCAST_LIVE_DATABASE_URL, or the file that
    /// ROWCAST_LIVE_DATABASE_URL_FILE names]
    #[arg(long, value_name = "URL", requires = "live")]
    live_database_url: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Printed<'a> {
    /// Whether there is neither an error nor a warning.
    ok: bool,
    errors: usize,
    warnings: usize,
    notes: usize,
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<&'a Live>,
}

/// Looks, and says what it found.
pub(super) async fn run(arguments: Arguments) -> ExitCode {
    #[cfg(feature = "mutants")]
    crate::mutant::PolicyMutant::switch_named_on();
    let (json, wants_live) = (arguments.json, arguments.live);
    let (patient, writer) = match prepare(arguments) {
        Ok(prepared) => prepared,
        Err(sentence) => return fail(EXIT_USAGE, format_args!("{sentence}")),
    };
    let mut report = examine(&patient).await;
    if !patient.filters.is_empty() && patient.tables.is_empty() && report.tables > 1 {
        let many = report.tables;
        return fail(
            EXIT_USAGE,
            format_args!("{many} tables are published: --table says which one --filter is of."),
        );
    }
    let mut watched = None;
    if wants_live {
        let (live, findings) = live::watch(&patient, writer, &report).await;
        report.add(findings);
        watched = Some(live);
    }
    if json {
        let printed = Printed {
            ok: report.worst().is_none_or(|worst| worst == Severity::Note),
            errors: report.count(Severity::Error),
            warnings: report.count(Severity::Warning),
            notes: report.count(Severity::Note),
            report: &report,
            live: watched.as_ref(),
        };
        match serde_json::to_string_pretty(&printed) {
            Ok(text) => println!("{text}"),
            Err(error) => return fail(super::EXIT_SOFTWARE, format_args!("{error}")),
        }
    } else {
        print!("{}", print::report(&report, watched.as_ref()));
    }
    match report.worst() {
        Some(Severity::Error) => ExitCode::from(EXIT_ERRORS),
        Some(Severity::Warning) => ExitCode::from(EXIT_WARNINGS),
        Some(Severity::Note) | None => ExitCode::SUCCESS,
    }
}

/// What is to be examined, and the address of the login that `--live` writes with.
fn prepare(arguments: Arguments) -> Result<(Patient, Option<Secret>), String> {
    for table in &arguments.tables {
        if !are_sql_names(table, &(1..=2)) || table.contains(',') {
            return Err(format!(
                "--table {table:?} is not a name as it stands in SQL: write schema.table, and each \
                 part that is not made of letters, digits and underscores in double quotes, such as \
                 'app.\"My Table\"'."
            ));
        }
    }
    if !arguments.filters.is_empty() && arguments.tables.len() > 1 {
        return Err("--filter is of one table: give --table once.".to_owned());
    }
    let loaded = Given::read(arguments.settings.0, arguments.config.as_deref())
        .and_then(|given| config::load(&given, false))
        .map_err(|error| error.to_string())?;
    let token = match arguments.token {
        Some(token) => Some(Secret::new(token)),
        None => secret::given("token", arguments.token_file.as_deref(), "ROWCAST_TOKEN")?,
    };
    let writer = match arguments.live_database_url {
        Some(url) => Some(Secret::new(url)),
        None => secret::given("address", None, "ROWCAST_LIVE_DATABASE_URL")?,
    };
    let patient = Patient {
        config: loaded.config,
        warnings: loaded.warnings,
        token,
        tables: arguments.tables,
        filters: arguments.filters,
        events: Events::from_name(arguments.event.as_deref().unwrap_or("*")),
        filtered: Vec::new(),
    };
    Ok((patient, writer))
}

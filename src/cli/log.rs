//! `rowcast log`: what a log on disk holds, and whether it is what was written.

#![expect(clippy::print_stdout, reason = "the report is what is asked for")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::json;

use super::{EXIT_FAILURE, EXIT_USAGE, fail};
use crate::change::Relation;
use crate::config::{self, Given};
use crate::log::disk::{Inspection, inspect};
use crate::pg::Oid;

/// Arguments of `rowcast log`.
#[derive(Args)]
#[command(after_help = "\
The relay that uses the directory may be running: nothing is changed, and what it is just writing
is left out.

Examples:
  rowcast log                                          # where the relay was started
  rowcast log --data /var/lib/rowcast --json | jq .range
  docker compose exec rowcast /usr/local/bin/rowcast log

Exit codes: 1 a checksum is wrong, 64 the directory holds no log.")]
pub(super) struct Arguments {
    /// The directory [default: that of the relay with this environment and rowcast.toml]
    /// [env: ROWCAST_DATA]
    #[arg(long, value_name = "DIRECTORY")]
    data: Option<PathBuf>,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// Reads the log and prints what it holds.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let directory = match arguments.data.clone().map_or_else(configured, Ok) {
        Ok(directory) => directory,
        Err(error) => return fail(EXIT_USAGE, format_args!("{error}")),
    };
    let found = match inspect(&directory) {
        Ok(found) => found,
        Err(error) => return fail(EXIT_USAGE, format_args!("{error}")),
    };
    if arguments.json {
        println!("{}", as_json(&found));
    } else {
        print(&found);
    }
    let damaged = found
        .segments
        .iter()
        .find_map(|segment| segment.verified.as_ref().err());
    match damaged {
        None => ExitCode::SUCCESS,
        Some(error) => fail(EXIT_FAILURE, format_args!("{error}")),
    }
}

/// Where the relay keeps its log.
fn configured() -> Result<PathBuf, String> {
    let loaded = Given::read(Vec::new(), None)
        .and_then(|given| config::load(&given, false))
        .map_err(|error| error.to_string())?;
    loaded
        .config
        .data
        .ok_or_else(|| "the log is only in memory: there is nothing to read".to_owned())
}

fn ends(found: &Inspection) -> (u64, u64) {
    let from = found
        .segments
        .first()
        .map_or(0, |segment| segment.range.start.0);
    let to = found
        .segments
        .last()
        .map_or(0, |segment| segment.range.end.0);
    (from, to)
}

fn as_json(found: &Inspection) -> serde_json::Value {
    let (from, to) = ends(found);
    json!({
        "epoch": format!("{:016x}", found.epoch.0),
        "origin": found.origin,
        "range": { "from": from, "to": to },
        "bytes": found.segments.iter().map(|segment| segment.bytes).sum::<u64>(),
        "segments": found.segments.iter().map(|segment| json!({
            "file": segment.path,
            "from": segment.range.start.0,
            "to": segment.range.end.0,
            "bytes": segment.bytes,
            "age_seconds": age(segment.committed_at).map(|age| age.as_secs()),
            "changes": segment.verified.as_ref().ok(),
            "error": segment.verified.as_ref().err(),
            "tables": segment.tables.iter().map(|table| json!({
                "schema": &*table.schema,
                "name": &*table.name,
                "columns": table.columns.iter().map(|column| json!({
                    "name": &*column.name,
                    "type": type_name(table, column.type_oid),
                })).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

fn print(found: &Inspection) {
    let (from, to) = ends(found);
    let bytes: u64 = found.segments.iter().map(|segment| segment.bytes).sum();
    println!("epoch     {:016x}", found.epoch.0);
    if let Some(origin) = &found.origin {
        println!(
            "source    slot {}, publication {}, system {}, timeline {}",
            origin.slot, origin.publication, origin.system_identifier, origin.timeline
        );
    }
    println!("offsets   {from} up to {to}");
    println!(
        "size      {bytes} bytes in {} segments",
        found.segments.len()
    );
    for segment in &found.segments {
        let age = match age(segment.committed_at) {
            Some(age) if segment.committed_at > 0 => format!("{} s old", age.as_secs()),
            _ => "empty".to_owned(),
        };
        let verified = match &segment.verified {
            Ok(changes) => format!("{changes} changes, checksums are right"),
            Err(error) => format!("DAMAGED: {error}"),
        };
        println!(
            "  {}  {} bytes, {age}, {verified}",
            segment.path.display(),
            segment.bytes
        );
        for table in &segment.tables {
            let columns: Vec<String> = table
                .columns
                .iter()
                .map(|column| format!("{} {}", column.name, type_name(table, column.type_oid)))
                .collect();
            println!(
                "    {}.{} ({})",
                table.schema,
                table.name,
                columns.join(", ")
            );
        }
    }
}

/// What a type was called when the stream described the table.
fn type_name(table: &Relation, oid: Oid) -> String {
    if let Some(known) = table.types.iter().find(|known| known.oid == oid) {
        return format!("{}.{}", known.schema, known.name);
    }
    match tokio_postgres::types::Type::from_oid(oid.0) {
        Some(built_in) => built_in.name().to_owned(),
        None => format!("type {oid}"),
    }
}

/// How long ago a moment was that is counted in microseconds since 1970-01-01 00:00 UTC.
fn age(micros: i64) -> Option<Duration> {
    let then = SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).ok()?);
    SystemTime::now().duration_since(then).ok()
}

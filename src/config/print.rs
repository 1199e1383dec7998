//! The settings as text to be read: a commented `rowcast.toml`, and a table for the README.

use std::fmt::Write;

use super::settings::{Form, SETTINGS, Setting};
use super::{Config, DeleteWithoutIdentity, Leaves, LogFormat, rules};

/// A `rowcast.toml` with every setting and its default, commented out; those whose names are in
/// `given` stand with their value instead. Secrets are never in it.
#[must_use]
pub fn toml_file(config: &Config, given: &[&str]) -> String {
    let mut text = String::from(
        "# rowcast.toml: every setting with its default. A flag (--slot) comes before the\n\
         # environment (ROWCAST_SLOT), the environment before this file.\n",
    );
    // A table's header takes in whatever follows it, so tables come last.
    let (tables, plain): (Vec<_>, Vec<_>) = SETTINGS
        .iter()
        .partition(|setting| setting.form == Form::Table);
    for setting in plain.into_iter().chain(tables) {
        text.push('\n');
        for line in wrapped(setting.help, 96) {
            put(&mut text, &format!("# {line}"));
        }
        if setting.secret {
            put(
                &mut text,
                &format!(
                    "# Better not in a file that is shared: {} or {}_FILE.",
                    setting.variable(),
                    setting.variable()
                ),
            );
            put(
                &mut text,
                &format!("#{}_file = \"/run/secrets/{}\"", setting.name, setting.name),
            );
        } else if setting.form == Form::Table {
            put(&mut text, &format!("#[{}]", setting.name));
            put(&mut text, "#sb_publishable_… = \"anon\"");
        } else {
            let is_given = given.contains(&setting.name);
            let value = if is_given {
                current(config, setting.name)
            } else {
                setting.default.map(str::to_owned)
            };
            let mark = if is_given { "" } else { "#" };
            put(
                &mut text,
                &format!("{mark}{} = {}", setting.name, literal(setting, value)),
            );
        }
    }
    text.push_str(
        "\n# Conditions that rows have to pass besides what PostgreSQL's policies say, one [[rule]] for\n\
         # each. Names outside pg_catalog are written with their schema; without roles it is for all.\n",
    );
    if config.rules.is_empty() {
        text.push_str(rules::EXAMPLE);
    } else {
        text.push_str(rules::printed(&config.rules).trim_start());
    }
    text
}

fn literal(setting: &Setting, value: Option<String>) -> String {
    let value = value.unwrap_or_default();
    if setting.form == Form::Bare {
        value
    } else {
        toml::Value::String(value).to_string()
    }
}

/// A setting's value in the text form in which it is read.
fn current(config: &Config, name: &str) -> Option<String> {
    let millis = |time: std::time::Duration| format!("{}ms", time.as_millis());
    Some(match name {
        "jwks_url" => config.jwks_url.clone()?,
        "listen" => config.listen.to_string(),
        "admin_listen" => config.admin_listen.to_string(),
        "slot" => config.slot.clone(),
        "publication" => config.publication.clone()?,
        "lookup_publication" => config.lookup_publication(),
        "max_lookup_bytes" => format!("{}B", config.max_lookup_bytes),
        "old_rows" => config.old_rows.to_string(),
        "max_old_row_bytes" => format!("{}B", config.max_old_row_bytes),
        "default_role" => config.default_role.clone(),
        "role_claim" => config.role_claim.clone(),
        "require" => config.require.as_str().to_owned(),
        "delete_without_identity" => match config.delete_without_identity {
            DeleteWithoutIdentity::Suppress => "suppress".to_owned(),
            DeleteWithoutIdentity::Key => "key".to_owned(),
        },
        "leave" => match config.leave {
            Leaves::Asked => "asked".to_owned(),
            Leaves::All => "all".to_owned(),
        },
        "data" => match &config.data {
            Some(directory) => directory.to_str()?.to_owned(),
            None => "memory".to_owned(),
        },
        "log_retention" => millis(config.log_retention),
        "log_retention_bytes" => format!("{}B", config.log_retention_bytes),
        "max_retained_wal" => match config.max_retained_wal {
            0 => "none".to_owned(),
            bytes => format!("{bytes}B"),
        },
        "log_max_changes" => config.log_max_changes.to_string(),
        "log_max_bytes" => format!("{}B", config.log_max_bytes),
        "max_record_bytes" => format!("{}B", config.max_record_bytes),
        "max_connections" => config.max_connections.to_string(),
        "max_connections_per_user" => config.max_connections_per_user.to_string(),
        "max_connections_per_address" => config.max_connections_per_address.to_string(),
        "trusted_proxies" => config.trusted_proxies.to_string(),
        "allowed_origins" => config.allowed_origins.to_string(),
        "max_channels" => config.max_channels.to_string(),
        "max_joins_per_second" => config.max_joins_per_second.to_string(),
        "max_asked_filters" => config.max_asked_filters.to_string(),
        "max_frame_bytes" => format!("{}B", config.max_frame_bytes),
        "outbox_max_events" => config.outbox_max_events.to_string(),
        "outbox_max_bytes" => format!("{}B", config.outbox_max_bytes),
        "ask_timeout" => millis(config.ask_timeout),
        "policy_check" => if config.policy_check { "on" } else { "off" }.to_owned(),
        "snapshot_sessions" => config.snapshot.sessions.to_string(),
        "snapshot_default_rows" => config.snapshot.default_rows.to_string(),
        "snapshot_max_rows" => config.snapshot.max_rows.to_string(),
        "snapshot_max_bytes" => format!("{}B", config.snapshot.max_bytes),
        "snapshot_timeout" => millis(config.snapshot.timeout),
        "catalog_interval" => millis(config.catalog_interval),
        "resync_spread" => millis(config.resync_spread),
        "drain" => millis(config.drain),
        "log" => config.log.clone(),
        "log_format" => match config.log_format {
            LogFormat::Auto => "auto".to_owned(),
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        },
        _ => return None,
    })
}

/// The settings as a Markdown table.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from("| variable | default | |\n|---|---|---|\n");
    for setting in SETTINGS {
        let default = match setting.default {
            None | Some("") => String::new(),
            Some(default) => format!("`{default}`"),
        };
        // A bar would end the cell.
        let help = setting.help.replace('|', "\\|");
        put(
            &mut text,
            &format!("| `{}` | {default} | {help} |", setting.variable()),
        );
    }
    text
}

fn put(text: &mut String, line: &str) {
    // Writing to a String does not fail.
    let _written = writeln!(text, "{line}");
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

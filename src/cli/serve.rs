//! `rowcast serve`.

#![expect(clippy::print_stdout, reason = "--print-config prints")]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, ValueEnum};

use super::{EXIT_SOFTWARE, EXIT_UNAVAILABLE, EXIT_USAGE, Threads, block_on, fail, logging};
use crate::app::{self, Fault};
use crate::config::settings::SETTINGS;
use crate::config::{self, Config, Given};

/// Arguments of `rowcast serve`.
#[derive(Args)]
#[command(after_help = "\
Every flag is also a variable (--slot: ROWCAST_SLOT; DATABASE_URL, JWT_SECRET and JWKS_URL need no \
prefix) and a key of rowcast.toml (slot). A flag comes before the environment, the environment \
before the file. Secrets are better given as variables or files: a process's arguments can be seen \
by everybody on its machine.")]
pub(super) struct Arguments {
    /// The configuration file [default: rowcast.toml, where there is one] [env: ROWCAST_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print a commented rowcast.toml (or the README's table) with the settings as they are given,
    /// and end. Secrets are not printed
    #[arg(long, value_name = "FORM", num_args = 0..=1, default_missing_value = "toml")]
    print_config: Option<Form>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Clone, Copy, ValueEnum)]
enum Form {
    Toml,
    Markdown,
}

/// One flag for every setting, and one more for the file of every secret.
pub(super) struct Settings(pub(super) Vec<(String, String)>);

impl Args for Settings {
    fn augment_args(mut command: Command) -> Command {
        for setting in SETTINGS {
            let variable = setting.variable();
            let default = match setting.default {
                None | Some("") => String::new(),
                Some(default) => format!(" [default: {default}]"),
            };
            command = command.arg(
                Arg::new(setting.name)
                    .long(setting.flag())
                    .value_name(setting.placeholder)
                    .allow_hyphen_values(true)
                    .help_heading("Settings")
                    .help(format!("{}{default} [env: {variable}]", setting.help)),
            );
            if setting.secret {
                command = command.arg(
                    Arg::new(format!("{}_file", setting.name))
                        .long(format!("{}-file", setting.flag()))
                        .value_name("FILE")
                        .help_heading("Settings")
                        .help(format!(
                            "A file that holds the {} [env: {variable}_FILE]",
                            setting.flag()
                        )),
                );
            }
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let names = SETTINGS.iter().flat_map(|setting| {
            let file = setting.secret.then(|| format!("{}_file", setting.name));
            std::iter::once(setting.name.to_owned()).chain(file)
        });
        let mut given = Vec::new();
        for name in names {
            if let Some(text) = matches.get_one::<String>(&name) {
                given.push((name, text.clone()));
            }
        }
        Ok(Self(given))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Runs the relay until it is asked to end.
pub(super) fn run(arguments: Arguments) -> ExitCode {
    let complete = arguments.print_config.is_none();
    let loaded = Given::read(arguments.settings.0, arguments.config.as_deref())
        .and_then(|given| config::load(&given, complete));
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => return fail(EXIT_USAGE, format_args!("{error}")),
    };
    match arguments.print_config {
        Some(Form::Toml) => {
            print!("{}", config::toml_file(&loaded.config, &loaded.given));
            return ExitCode::SUCCESS;
        }
        Some(Form::Markdown) => {
            print!("{}", config::markdown());
            return ExitCode::SUCCESS;
        }
        None => {}
    }
    let json = logging::start(&loaded.config.log, loaded.config.log_format);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    block_on(Threads::All, relay(loaded.config, json))
}

/// The daemon itself. Where its log is `json`, so is its last word: whatever reads the log expects
/// every line to be an object.
async fn relay(config: Config, json: bool) -> ExitCode {
    tracing::debug!(?config, "settings");
    let ready = |addresses: app::Addresses| {
        tracing::info!(public = %addresses.public, admin = %addresses.admin, "ready");
    };
    let running = app::run(config, axum::Router::new(), ready, super::stop_signal());
    match Box::pin(running).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) if json && tracing::enabled!(tracing::Level::ERROR) => {
            tracing::error!("{fault}");
            ExitCode::from(exit_code(&fault))
        }
        Err(fault) => fail(exit_code(&fault), format_args!("{fault}")),
    }
}

pub(super) const fn exit_code(fault: &Fault) -> u8 {
    match fault {
        Fault::Config(_) | Fault::Listen { .. } => EXIT_USAGE,
        Fault::Database(_) => EXIT_UNAVAILABLE,
        Fault::Ended(_) => EXIT_SOFTWARE,
    }
}

//! `rowcast tail`: changes in the terminal as they come.

mod channel;

mod holder;

pub(super) mod print;

mod target;

use std::fs::File;
use std::io::Write as _;
use std::num::NonZeroU64;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ColorChoice, ValueEnum};
use tokio::io::Interest;
use tokio::net::unix::pipe;

use super::health::reachable;
use super::{EXIT_USAGE, fail};
use crate::config::{self, Given};
use crate::retry::Backoff;
use channel::End;
use holder::Holder;
use print::Printer;
use target::Table;

/// Arguments of `rowcast tail`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  JWT_SECRET=… rowcast tail todos --role service_role
  JWT_SECRET=… rowcast tail todos --sub 3fa85f64-5717-4562-b3fc-2c963f66afa6 --filter list_id=eq.7
  ROWCAST_URL=https://api.example.com ROWCAST_TOKEN_FILE=token rowcast tail 'sales.*' --event insert,delete
  rowcast tail todos --role service_role --json | jq .record.title

Changes go to stdout, everything else (errors, warnings, reconnects) to stderr. Only what happens \
while it is connected is shown: what was missed in between is not caught up, and is said. It shows \
what the token may see and nothing else. An old row comes only \
under `replica identity full` and policies that are compiled; elsewhere an update is held against \
the row as it was shown last.

Exit codes: 0 after Ctrl-C, --limit, or when nobody reads any more; 64 wrong arguments, a refused \
token, table or filter; 1 anything else that waiting does not heal, such as a token that has ended.")]
pub(super) struct Arguments {
    /// What to follow: `table` (in the schema public), `schema.table`, `schema.*` or `*`. Names are
    /// taken as they are, in double quotes where they hold a dot
    #[arg(value_name = "TABLE")]
    table: Table,
    /// Only rows like these, such as status=eq.open; given more than once, all must hold
    #[arg(long = "filter", value_name = "COLUMN=OPERATOR.VALUE")]
    filters: Vec<String>,
    /// Only these changes [default: all, and TRUNCATE]
    #[arg(
        long = "event",
        value_name = "EVENT",
        ignore_case = true,
        value_delimiter = ','
    )]
    events: Vec<Event>,
    /// See what the holder of this token sees; better in ROWCAST_TOKEN, or in a file: everybody on
    /// this machine can see a process's arguments
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["token_file", "sub", "role", "claims"])]
    token: Option<String>,
    /// The same, from a file, which is read again when the token ends [env: ROWCAST_TOKEN_FILE]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sub", "role", "claims"])]
    token_file: Option<PathBuf>,
    /// See what this user sees: a token is made with JWT_SECRET, and renewed
    #[arg(long, value_name = "USER")]
    sub: Option<String>,
    /// The role of the token that is made [default: authenticated]
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// One more claim of the token that is made, as for `rowcast token`
    #[arg(long = "claim", value_name = "NAME=VALUE")]
    claims: Vec<String>,
    /// How long a token that is made is good for
    #[arg(long, value_name = "TIME", default_value = "1h")]
    ttl: String,
    /// A file that holds the secret [default: JWT_SECRET, or the file that JWT_SECRET_FILE names]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// The relay, such as https://api.example.com [env: ROWCAST_URL] [default: ROWCAST_LISTEN on
    /// this machine]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The configuration file, for the relay's address
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print each change as one line of JSON: what clients get as `data`
    #[arg(long)]
    json: bool,
    /// End after so many changes
    #[arg(long, short = 'n', visible_alias = "count", value_name = "COUNT")]
    limit: Option<NonZeroU64>,
    /// Colours; `auto` means on a terminal, unless NO_COLOR is set
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
}

/// A kind of change.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Event {
    Insert,
    Update,
    Delete,
    #[value(name = "*", alias = "all")]
    All,
}

impl Event {
    const fn name(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::All => "*",
        }
    }
}

/// What to follow, where, and as whom.
struct Plan {
    /// The address of the WebSocket.
    url: String,
    holder: Holder,
    /// As people write it, for messages.
    table: String,
    /// The objects of `postgres_changes`.
    bindings: Vec<serde_json::Value>,
}

impl Plan {
    fn of(arguments: &Arguments) -> Result<Self, String> {
        let url = match &arguments.url {
            Some(url) => target::websocket(url)?,
            None => match std::env::var("ROWCAST_URL") {
                Ok(url) if !url.is_empty() => target::websocket(&url)?,
                _ => target::websocket(&configured(arguments)?)?,
            },
        };
        let table = &arguments.table;
        let mut events = arguments.events.clone();
        if events.is_empty() || events.contains(&Event::All) {
            events = vec![Event::All];
        }
        let filter = arguments.filters.join(",");
        let bindings = events
            .iter()
            .map(|event| table.binding(event.name(), &filter))
            .collect();
        Ok(Self {
            url,
            holder: Holder::of(arguments)?,
            table: table.to_string(),
            bindings,
        })
    }
}

/// Where the relay that is configured here can be reached.
fn configured(arguments: &Arguments) -> Result<String, String> {
    let loaded = Given::read(Vec::new(), arguments.config.as_deref())
        .and_then(|given| config::load(&given, false))
        .map_err(|error| error.to_string())?;
    Ok(format!("ws://{}", reachable(loaded.config.listen)))
}

/// Shows changes until Ctrl-C.
pub(super) async fn run(arguments: Arguments) -> ExitCode {
    let plan = match Plan::of(&arguments) {
        Ok(plan) => plan,
        Err(message) => return fail(EXIT_USAGE, format_args!("{message}")),
    };
    let mut out = Output {
        printer: Printer::new(arguments.json, arguments.color),
        left: arguments.limit.map(NonZeroU64::get),
    };
    tokio::select! {
        () = super::stop_signal() => ExitCode::SUCCESS,
        () = unread() => ExitCode::SUCCESS,
        code = follow(&plan, &mut out) => code,
    }
}

/// Waits until nobody reads stdout any more: behind `| head -1` the next change may be a day away.
/// Where stdout is no pipe, it waits for ever.
async fn unread() {
    let watched = || {
        let stdout = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
        if !stdout.metadata()?.file_type().is_fifo() {
            return Err(std::io::ErrorKind::Unsupported.into());
        }
        // Only watched, never written to: so it may stay as it is, a pipe whose writes wait.
        pipe::Sender::from_file_unchecked(stdout)
    };
    if let Ok(stdout) = watched()
        && stdout.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// Connects again and again, until what ends it is not healed by that.
async fn follow(plan: &Plan, out: &mut Output) -> ExitCode {
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
    let mut history = History::default();
    let mut said = String::new();
    loop {
        let before = history.subscribed;
        match channel::follow(plan, out, &mut history).await {
            End::Enough => return ExitCode::SUCCESS,
            End::Refused { code, text } => return fail(code, format_args!("{text}")),
            End::Lost(why) => {
                out.printer.forget();
                if history.subscribed > before {
                    backoff.reset();
                    said.clear();
                }
                // An hour without the relay is one line and not four hundred.
                if said != why {
                    note(&format!("{why}; trying to connect again"));
                    said = why;
                }
                tokio::time::sleep(backoff.after_failure()).await;
            }
        }
    }
}

/// What happened so far.
#[derive(Default)]
struct History {
    /// How often it was subscribed.
    subscribed: u64,
}

/// Where changes go.
struct Output {
    printer: Printer,
    /// How many are still wanted.
    left: Option<u64>,
}

impl Output {
    /// Prints a change, and says whether another one is wanted. Where nobody reads any more none
    /// is.
    async fn take(&mut self, data: &str) -> Result<bool, serde_json::Error> {
        let text = self.printer.change(data)?;
        // Beside the runtime: Ctrl-C must work also where a pager does not read.
        let written = tokio::task::spawn_blocking(move || {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(text.as_bytes())?;
            stdout.flush()
        });
        let written = written.await.unwrap_or_else(|error| Err(error.into()));
        if let Err(error) = written {
            if error.kind() != std::io::ErrorKind::BrokenPipe {
                note(&format!("stdout cannot be written to: {error}"));
            }
            return Ok(false);
        }
        self.left = self.left.map(|left| left.saturating_sub(1));
        Ok(self.left != Some(0))
    }
}

/// Says something that is no change. Where stderr is closed nobody wants to know.
fn note(text: &str) {
    let _written = writeln!(
        std::io::stderr().lock(),
        "rowcast: {}",
        print::harmless(text)
    );
}

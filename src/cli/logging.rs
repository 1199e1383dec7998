//! Where log lines go and how they look. Always stderr: stdout belongs to what a command prints.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Starts logging, and returns whether each line is a JSON object. `filter` has been checked; one
/// that is wrong all the same means `info`.
pub(super) fn start(filter: &str, format: LogFormat) -> bool {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let json = match format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // The failure means that logging was started before, which is as good.
    let _started = if json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder
            .with_ansi(std::io::stderr().is_terminal())
            .try_init()
    };
    json
}

/// Starts logging for a command that people run by hand: warnings, unless `ROWCAST_LOG` asks for
/// more.
pub(super) fn for_a_tool() {
    let filter = std::env::var("ROWCAST_LOG").unwrap_or_default();
    let filter = if filter.is_empty() { "warn" } else { &filter };
    start(filter, LogFormat::Text);
}

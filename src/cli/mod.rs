//! The command line.

pub mod bench;

pub mod demo;

mod doctor;

mod explain;

mod health;

mod log;

mod logging;

mod secret;

mod serve;

mod setup;

mod tail;

mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// `EX_USAGE`: the arguments or the settings are wrong; starting again will not help.
pub const EXIT_USAGE: u8 = 64;
/// `EX_UNAVAILABLE`: PostgreSQL cannot be reached or is not fit for this; starting again may help.
pub const EXIT_UNAVAILABLE: u8 = 69;
/// Anything that has no code of its own.
pub const EXIT_FAILURE: u8 = 1;
/// `EX_SOFTWARE`: a part of the daemon ended that must not end.
pub const EXIT_SOFTWARE: u8 = 70;

#[derive(Parser)]
#[command(
    name = "rowcast",
    version,
    about = "Carries row changes from PostgreSQL to the browsers that may see them",
    after_help = "Examples:\n  \
        rowcast demo\n  \
        DATABASE_URL=postgres://localhost/app rowcast setup --print --table public.todos\n  \
        DATABASE_URL=postgres://localhost/app JWT_SECRET=… rowcast serve\n  \
        JWT_SECRET=… rowcast token --sub 3fa85f64-5717-4562-b3fc-2c963f66afa6\n  \
        DATABASE_URL=… JWT_SECRET=… rowcast doctor --table public.todos\n  \
        JWT_SECRET=… rowcast tail todos --role service_role\n  \
        rowcast bench --subscribers 1000 --rate 1000 --duration 10s\n\n\
        Exit codes: 64 wrong arguments or settings, 69 PostgreSQL unreachable or unfit, 70 a part \
        of the daemon ended, 1 anything else; `doctor` ends with 1 where there are warnings only and 2 \
        where there are errors."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the relay
    Serve(serve::Arguments),
    /// Make in a database what the relay needs, or print the SQL, or undo it
    Setup(setup::Arguments),
    /// Find out why subscribers receive nothing, too little or too late, and say what mends it
    Doctor(doctor::Arguments),
    /// Show what it does: a database of its own, a page with two users, tokens to paste
    Demo(demo::Options),
    /// Print a token for trying things out
    Token(token::Arguments),
    /// Show changes in the terminal as they come
    Tail(tail::Arguments),
    /// Measure the relay, and check that everybody gets what is theirs and nothing else
    Bench(bench::Arguments),
    /// Say what becomes of each policy, and why somebody sees a row or not
    Explain(explain::Arguments),
    /// Ask a running relay whether it is ready; exit code 0 or 1
    Health(health::Arguments),
    /// Show what a log on disk holds, and verify its checksums
    Log(log::Arguments),
    /// The bare relay that `bench --baseline` compares with
    #[command(hide = true)]
    BenchBaseline(bench::baseline::Arguments),
    /// The relay of `bench --in-process`
    #[command(hide = true)]
    BenchInProcess(bench::in_process::Arguments),
}

/// Runs the command that the arguments name.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Asking for the help is no mistake.
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            // Where even that cannot be written, the exit code is all that is left.
            let _written = error.print();
            return ExitCode::from(code);
        }
    };
    // rustls is told which of its implementations to use; the failure means that it was told
    // before.
    let _told = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match arguments.command {
        Command::Token(arguments) => token::run(&arguments),
        Command::Serve(arguments) => serve::run(arguments),
        Command::Demo(options) => {
            logging::for_a_tool();
            block_on(Threads::All, async {
                match demo::run(options).await {
                    Ok(()) => ExitCode::SUCCESS,
                    Err(error) => fail(EXIT_FAILURE, format_args!("{error:#}")),
                }
            })
        }
        Command::Log(arguments) => log::run(&arguments),
        Command::Doctor(arguments) => {
            logging::for_a_tool();
            block_on(Threads::One, doctor::run(arguments))
        }
        Command::Setup(arguments) => {
            logging::for_a_tool();
            block_on(Threads::One, setup::run(arguments))
        }
        Command::Tail(arguments) => {
            logging::for_a_tool();
            block_on(Threads::One, tail::run(arguments))
        }
        Command::Explain(arguments) => {
            logging::for_a_tool();
            block_on(Threads::One, explain::run(arguments))
        }
        Command::Health(arguments) => block_on(Threads::One, health::run(arguments)),
        Command::Bench(arguments) => {
            logging::for_a_tool();
            block_on(Threads::All, bench::run(arguments))
        }
        Command::BenchBaseline(arguments) => {
            logging::for_a_tool();
            block_on(Threads::One, bench::baseline::run(arguments))
        }
        Command::BenchInProcess(arguments) => {
            logging::for_a_tool();
            block_on(Threads::All, bench::in_process::run(arguments))
        }
    }
}

#[derive(Clone, Copy)]
enum Threads {
    One,
    All,
}

fn block_on(threads: Threads, command: impl Future<Output = ExitCode>) -> ExitCode {
    let mut builder = match threads {
        Threads::One => tokio::runtime::Builder::new_current_thread(),
        Threads::All => tokio::runtime::Builder::new_multi_thread(),
    };
    match builder.enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(command);
            // What still runs then (a name being resolved) need not be waited for.
            runtime.shutdown_background();
            code
        }
        Err(error) => fail(
            EXIT_SOFTWARE,
            format_args!("the runtime does not start: {error}"),
        ),
    }
}

/// Says on stderr what is wrong, and ends with this code.
#[expect(
    clippy::print_stderr,
    reason = "the answer to whoever typed the command"
)]
fn fail(code: u8, message: std::fmt::Arguments<'_>) -> ExitCode {
    // It may quote names of the database, and what a server said.
    for (number, line) in message.to_string().lines().enumerate() {
        let begin = if number == 0 { "rowcast: " } else { "" };
        eprintln!("{begin}{}", tail::print::harmless(line));
    }
    ExitCode::from(code)
}

/// Ends when the process is asked to end: SIGTERM, or Ctrl-C.
async fn stop_signal() {
    let interrupt = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::warn!(%error, "Ctrl-C cannot be waited for");
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => {
                tokio::select! {
                    () = interrupt => {}
                    _ = terminate.recv() => {}
                }
            }
            Err(error) => {
                tracing::warn!(%error, "SIGTERM cannot be waited for");
                interrupt.await;
            }
        }
    }
    #[cfg(not(unix))]
    interrupt.await;
}

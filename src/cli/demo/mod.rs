//! `rowcast demo`: a database, a worker that writes to it, the relay, and a page on which two users
//! of two organisations watch their rows side by side.

mod database;
mod guard;
mod page;
mod relay;
mod start_text;
mod statements;
mod tokens;
mod worker;

use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::config::Secret;

/// One of the two people of the demo. Their ids stand in `sql/examples/agent_tasks_seed.sql`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Person {
    /// What the page and its endpoints call them.
    key: &'static str,
    name: &'static str,
    organization: &'static str,
    user_id: &'static str,
    organization_id: &'static str,
    /// The organisation's agents.
    agents: [&'static str; 2],
    contacts: [&'static str; 3],
    /// What a task may be called.
    titles: [&'static str; 8],
}

const PEOPLE: [Person; 2] = [
    Person {
        key: "ann",
        name: "Ann",
        organization: "Green Lawn Care",
        user_id: "aaaaaaaa-0000-4000-8000-000000000001",
        organization_id: "0a000000-0000-4000-8000-000000000001",
        agents: [
            "0a000000-0000-4000-8000-0000000000a1",
            "0a000000-0000-4000-8000-0000000000a2",
        ],
        contacts: [
            "0a000000-0000-4000-8000-0000000000c1",
            "0a000000-0000-4000-8000-0000000000c2",
            "0a000000-0000-4000-8000-0000000000c3",
        ],
        titles: [
            "Measure the back garden",
            "Quote for a new hedge",
            "Move Tuesday's visit",
            "Order grass seed",
            "Remind about the gate code",
            "Check the weather for Friday",
            "Write up the soil test",
            "Invoice the spring cut",
        ],
    },
    Person {
        key: "ben",
        name: "Ben",
        organization: "Harbour Homes",
        user_id: "bbbbbbbb-0000-4000-8000-000000000001",
        organization_id: "0b000000-0000-4000-8000-000000000001",
        agents: [
            "0b000000-0000-4000-8000-0000000000a1",
            "0b000000-0000-4000-8000-0000000000a2",
        ],
        contacts: [
            "0b000000-0000-4000-8000-0000000000c1",
            "0b000000-0000-4000-8000-0000000000c2",
            "0b000000-0000-4000-8000-0000000000c3",
        ],
        titles: [
            "Draft the listing text",
            "Find three comparable sales",
            "Book the photographer",
            "Confirm the notary's date",
            "Summarise the inspection",
            "Answer about parking",
            "Schedule a second viewing",
            "Check the service charge",
        ],
    },
];

/// The arguments of `rowcast demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Where the page and the relay listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4000")]
    pub listen: SocketAddr,

    /// Use this database instead of a private throw-away one; the example tables are created in it
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,

    /// Keep the private database in this directory; a later start goes on with it
    #[arg(long, value_name = "DIR", conflicts_with = "database_url")]
    pub keep: Option<PathBuf>,

    /// Changes a second that the worker makes; 0 leaves the tables still
    #[arg(long, value_name = "RATE", default_value_t = 1.5, value_parser = pace)]
    pub pace: f64,
}

/// A rate that a person can still follow, and that cannot flood a database by a slip of the hand.
fn pace(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.0..=1000.0).contains(&rate) => Ok(rate),
        _ => Err("expected a number from 0 to 1000".to_owned()),
    }
}

/// Runs the demo until Ctrl-C or SIGTERM and leaves nothing running.
///
/// # Errors
/// When there is no PostgreSQL to run or to reach, when the example tables cannot be created, when
/// the address is taken, or when the relay gives up.
pub async fn run(options: Options) -> anyhow::Result<()> {
    // Listened for from the first moment: Ctrl-C while the database starts must stop it as well.
    let interrupted = interruption()?;
    let stop = CancellationToken::new();
    let ended = tokio::spawn({
        let stop = stop.clone();
        async move {
            tokio::select! {
                () = interrupted => stop.cancel(),
                () = stop.cancelled() => {}
            }
        }
    });
    let result = run_until(&options, &stop).await;
    stop.cancel();
    ended.await.context("the task that waits for Ctrl-C")?;
    result
}

async fn run_until(options: &Options, stop: &CancellationToken) -> anyhow::Result<()> {
    say("starting …")?;
    let database = database::Database::open(options).await?;
    let served = serve(options, &database, stop).await;
    // Whatever happened, the server that was started here ends here.
    database.close().await;
    served
}

/// Everything between a database that answers and one that is no longer needed.
async fn serve(
    options: &Options,
    database: &database::Database,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        loaded = database.load_example() => loaded?,
        () = stop.cancelled() => return Ok(()),
    }
    let secret = tokens::random_secret();
    let tokens = tokens::Tokens::mint(&secret)?;
    let journal = statements::Journal::new();
    let page = page::Page::new(
        database.url(),
        tokens.clone(),
        journal.clone(),
        stop.clone(),
    );

    let (ready, listening) = oneshot::channel();
    let relay = relay::serve(
        relay::Settings {
            database_url: Secret::new(database.url()),
            jwt_secret: Secret::new(secret),
            listen: options.listen,
        },
        page::routes(page, options.listen.ip()),
        ready,
        stop.clone(),
    );
    tokio::pin!(relay);
    let address = tokio::select! {
        ended = &mut relay => return ended,
        address = listening => address.context("the relay ended before it listened")?,
    };
    say(&start_text::render(
        address,
        database.private_url(),
        &tokens,
    ))?;

    let worker = (options.pace > 0.0).then(|| {
        tokio::spawn(worker::run(
            database.url().to_owned(),
            options.pace,
            journal,
            stop.clone(),
        ))
    });
    let ended = relay.await;
    stop.cancel();
    if let Some(worker) = worker {
        worker.await.context("the demo's worker")?;
    }
    ended
}

/// Prints a line. A reader that went away ends the demo in order, where `println!` would panic.
fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").context("cannot write to standard output")
}

/// Completes when the process is asked to end.
#[cfg(unix)]
fn interruption() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Completes when the process is asked to end.
#[cfg(not(unix))]
fn interruption() -> anyhow::Result<impl Future<Output = ()>> {
    Ok(async {
        // Without a way to hear of Ctrl-C the process ends the way the system ends it.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

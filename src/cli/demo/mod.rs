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
use std::pin::Pin;

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
    /// [env: ROWCAST_DEMO_DATABASE_URL]
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,

    /// Use this relay, as browsers reach it, instead of one of the demo's own. It follows the same
    /// database, in which `rowcast setup --example agent_tasks` has made the tables, and shares
    /// JWT_SECRET (or JWT_SECRET_FILE) with the demo
    #[arg(long, value_name = "URL", conflicts_with = "keep")]
    pub relay_url: Option<String>,

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
pub async fn run(mut options: Options) -> anyhow::Result<()> {
    if options.database_url.is_none() && options.keep.is_none() {
        // Of its own name: the demo writes, and DATABASE_URL may be meant for something else.
        let variable = std::env::var("ROWCAST_DEMO_DATABASE_URL").ok();
        options.database_url = variable.filter(|url| !url.is_empty());
    }
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
    let elsewhere = Elsewhere::of(options)?;
    say("starting …")?;
    let database = database::Database::open(options).await?;
    let served = serve(options, &database, elsewhere.as_ref(), stop).await;
    // Whatever happened, the server that was started here ends here.
    database.close(elsewhere.is_none()).await;
    served
}

/// A relay that runs already.
struct Elsewhere {
    /// As browsers reach it, without a path.
    url: String,
    secret: Secret,
}

impl Elsewhere {
    fn of(options: &Options) -> anyhow::Result<Option<Self>> {
        let Some(url) = &options.relay_url else {
            return Ok(None);
        };
        anyhow::ensure!(
            url.starts_with("http://") || url.starts_with("https://"),
            "--relay-url is `{url}`; it must be an address such as http://localhost:4000"
        );
        anyhow::ensure!(
            options.database_url.is_some(),
            "--relay-url needs the relay's database: --database-url or ROWCAST_DEMO_DATABASE_URL"
        );
        Ok(Some(Self {
            url: url.trim_end_matches('/').to_owned(),
            secret: super::token::secret(None).map_err(anyhow::Error::msg)?,
        }))
    }
}

/// Everything between a database that answers and one that is no longer needed.
async fn serve(
    options: &Options,
    database: &database::Database,
    elsewhere: Option<&Elsewhere>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let loading = async {
        match elsewhere {
            None => database.load_example().await,
            Some(_) => database.load_rows().await,
        }
    };
    tokio::select! {
        loaded = loading => loaded?,
        () = stop.cancelled() => return Ok(()),
    }
    let secret = elsewhere.map_or_else(tokens::random_secret, |relay| relay.secret.clone());
    let journal = statements::Journal::new();
    let page = page::Page::new(
        database.url(),
        elsewhere.map_or("", |relay| &relay.url),
        secret.clone(),
        journal.clone(),
        stop.clone(),
    );
    let routes = page::routes(page, options.listen.ip());

    let (ready, listening) = oneshot::channel();
    let serving: Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>> = match elsewhere {
        Some(_) => Box::pin(relay::serve_page(
            options.listen,
            routes,
            ready,
            stop.clone(),
        )),
        None => Box::pin(relay::serve(
            relay::Settings {
                database_url: Secret::new(database.url()),
                jwt_secret: secret.clone(),
                listen: options.listen,
            },
            routes,
            ready,
            stop.clone(),
        )),
    };
    tokio::pin!(serving);
    let address = tokio::select! {
        ended = &mut serving => return ended,
        address = listening => address.context("the demo ended before it listened")?,
    };
    say(&start_text::render(
        address,
        elsewhere.map(|relay| relay.url.as_str()),
        database.private_url(),
        &tokens::Tokens::mint(&secret)?,
    ))?;

    let worker = (options.pace > 0.0).then(|| {
        tokio::spawn(worker::run(
            database.url().to_owned(),
            options.pace,
            journal,
            stop.clone(),
        ))
    });
    let ended = serving.await;
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

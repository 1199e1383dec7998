//! The database that the demo runs on: a private one that it starts and ends, or one that it is
//! given and leaves standing.

use std::path::PathBuf;

use anyhow::Context as _;

use super::Options;
use crate::pg::connect;
use crate::pg::throwaway::{self, Throwaway, ThrowawayError};

/// The demo's replication slot: not the one of a relay that serves the same database in earnest.
pub(super) const SLOT: &str = "rowcast_demo";

/// Loaded in this order.
const EXAMPLE: [(&str, &str); 3] = [
    ("sql/auth.sql", include_str!("../../../sql/auth.sql")),
    (
        "sql/examples/agent_tasks.sql",
        include_str!("../../../sql/examples/agent_tasks.sql"),
    ),
    (
        "sql/examples/agent_tasks_seed.sql",
        include_str!("../../../sql/examples/agent_tasks_seed.sql"),
    ),
];

/// The demo's relay logs in as whoever loads the example, and has to act as the clients' roles to ask
/// what they may see. A superuser needs no grant, and whoever may not grant has been granted the
/// roles by somebody else.
const BECOME_CLIENTS: &str = "
do $$
begin
  if not (select rolsuper from pg_roles where rolname = current_user) then
    execute format('grant anon, authenticated to %I', current_user);
  end if;
exception when insufficient_privilege then
  raise notice 'could not grant anon and authenticated to %', current_user;
end
$$";

/// The demo's database, ready for connections.
#[derive(Debug)]
pub(super) struct Database {
    url: String,
    private: Option<Throwaway>,
}

impl Database {
    /// Starts a private server, or takes the one that the options name.
    pub(super) async fn open(options: &Options) -> anyhow::Result<Self> {
        if let Some(url) = &options.database_url {
            return Ok(Self {
                url: url.clone(),
                private: None,
            });
        }
        let private = start_private(options.keep.clone()).await?;
        Ok(Self {
            url: private.url("postgres"),
            private: Some(private),
        })
    }

    /// Where it is, as a URL.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The same if the server is the demo's own. The address of another one may hold a password,
    /// and whoever gave it knows it.
    pub(super) fn private_url(&self) -> Option<&str> {
        self.private.is_some().then_some(self.url.as_str())
    }

    /// Creates the example's roles, tables, policies and rows where they are missing.
    pub(super) async fn load_example(&self) -> anyhow::Result<()> {
        let client = connect(&self.url).await?;
        for (name, sql) in EXAMPLE {
            client
                .batch_execute(sql)
                .await
                .with_context(|| format!("cannot load {name}"))?;
        }
        client
            .batch_execute(BECOME_CLIENTS)
            .await
            .context("cannot grant the clients' roles")
    }

    /// Adds the example's rows where they are missing; its tables are there.
    pub(super) async fn load_rows(&self) -> anyhow::Result<()> {
        let client = connect(&self.url).await?;
        let there: bool = client
            .query_one("select to_regclass('public.agent_tasks') is not null", &[])
            .await?
            .try_get(0)?;
        anyhow::ensure!(
            there,
            "the example's tables are not in this database; `rowcast setup --example agent_tasks` \
             makes them"
        );
        let [.., (name, rows)] = EXAMPLE;
        client
            .batch_execute(rows)
            .await
            .with_context(|| format!("cannot load {name}"))
    }

    /// Ends the private server; takes the slot out of another one, which would otherwise keep its
    /// write-ahead log for a demo that may never come back. `own_relay` is whether there was one.
    pub(super) async fn close(self, own_relay: bool) {
        match self.private {
            Some(private) => private.stop().await,
            None if !own_relay => {}
            None => {
                if let Err(error) = drop_slot(&self.url).await {
                    tracing::warn!(
                        "the replication slot {SLOT} could not be dropped; to do so: \
                         select pg_drop_replication_slot('{SLOT}') ({error:#})"
                    );
                }
            }
        }
    }
}

async fn drop_slot(url: &str) -> anyhow::Result<()> {
    connect(url)
        .await?
        .execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots
             where slot_name = $1 and not active",
            &[&SLOT],
        )
        .await?;
    Ok(())
}

/// Starts a server for as long as the demo runs.
async fn start_private(keep: Option<PathBuf>) -> anyhow::Result<Throwaway> {
    let options = throwaway::Options {
        // What is kept should survive a power cut, what is thrown away need not.
        fsync: keep.is_some(),
        directory: keep,
        ..throwaway::Options::default()
    };
    Throwaway::start(options).await.map_err(|error| {
        let elsewhere = matches!(error, ThrowawayError::Binaries { .. });
        let error = anyhow::Error::new(error);
        if elsewhere {
            error.context(
                "there is no PostgreSQL to start; install it as said below, or name a database \
                 that is there with --database-url",
            )
        } else {
            error.context("cannot start a PostgreSQL for the demo")
        }
    })
}

/// A connection of the demo's own: as the tables' owner, for loading and writing.
pub(super) async fn connect(url: &str) -> anyhow::Result<tokio_postgres::Client> {
    let client = connect::Database::parse(url)?
        .connect("rowcast demo")
        .await
        .context("cannot connect to the demo's database")?;
    Ok(client)
}

//! The database that the demo runs on: a private one that it starts and ends, or one that it is
//! given and leaves standing.

use std::path::Path;

use anyhow::Context as _;

use super::Options;

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

/// What to do where there is nothing to start.
const NO_POSTGRESQL: &str = "no PostgreSQL server programs were found (looked in PATH and in \
/usr/lib/postgresql)\n\
\n\
  Debian, Ubuntu   apt-get install postgresql\n\
  Fedora, RHEL     dnf install postgresql-server\n\
  Alpine           apk add postgresql\n\
  macOS            brew install postgresql@17\n\
\n\
or give a database that is there, with wal_level = logical:\n\
\n\
  rowcast demo --database-url postgres://user:password@host/database";

/// The demo's database, ready for connections.
#[derive(Debug)]
pub(super) struct Database {
    url: String,
    private: Option<Private>,
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
        let private = Private::start(options.keep.as_deref()).await?;
        Ok(Self {
            url: private.url(),
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
        Ok(())
    }

    /// Ends the private server, if it is one.
    pub(super) async fn close(self) -> anyhow::Result<()> {
        match self.private {
            Some(private) => private.stop().await,
            None => Ok(()),
        }
    }
}

/// A server that lives as long as the demo.
#[derive(Debug)]
struct Private {
    url: String,
}

impl Private {
    async fn start(_keep: Option<&Path>) -> anyhow::Result<Self> {
        anyhow::bail!(NO_POSTGRESQL)
    }

    fn url(&self) -> String {
        self.url.clone()
    }

    async fn stop(self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// A connection of the demo's own: as the tables' owner, for loading and writing.
pub(super) async fn connect(url: &str) -> anyhow::Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
        .await
        .context("cannot connect to the demo's database")?;
    tokio::spawn(async move {
        // Its end shows in the next statement, which fails and is answered with a new connection.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection of the demo ended");
        }
    });
    Ok(client)
}

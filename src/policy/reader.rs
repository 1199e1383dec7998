//! Reads the catalog, notices when it changed, and has PostgreSQL resolve function bodies.
//!
//! The catalog is read at *now*, the stream is in the past. [`CatalogReader::after`] closes the
//! gap for a table whose description PostgreSQL has just sent anew: it waits until the transaction
//! in hand is visible (a commit can be decoded before it is), then for whoever holds the table's
//! exclusive lock, and reads then.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Statement, Transaction};
use tracing::{debug, warn};

use super::catalog::{Catalog, Function};
use crate::pg::connect::{ConnectError, Database};
use crate::pg::refusal::Retry;
use crate::pg::{Lsn, Oid, Xid, quote_identifier};
use crate::retry::Backoff;

/// How long to wait for the lock of somebody who is changing the table right now. A migration that
/// holds it longer must not stop the stream; what it changes is sent anew when it commits.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the catalog could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// PostgreSQL refused or the connection broke.
    #[error("the catalog could not be read")]
    Postgres(#[from] tokio_postgres::Error),
    /// The answer is not what the query returns.
    #[error("the catalog is not as expected")]
    Malformed(#[from] serde_json::Error),
}

impl CatalogError {
    /// Whether waiting may help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Connect(error) => error.retry(),
            // Refused for what it asks: it will ask the same again.
            Self::Postgres(error) => match error.code().map(SqlState::code) {
                Some(code) if code.starts_with("42") => Retry::Never,
                _ => Retry::Soon,
            },
            Self::Malformed(_) => Retry::Never,
        }
    }
}

/// Owns the connection that the catalog is read through.
#[derive(Debug)]
pub struct CatalogReader {
    database: Database,
    publication: String,
    roles: BTreeSet<String>,
    connection: Option<Connection>,
    current: Option<Arc<Catalog>>,
    /// When the last look that succeeded began.
    looked_at: Option<Instant>,
    /// Resolved bodies by function and version, so that each is analysed once.
    bodies: HashMap<(Oid, String), Option<String>>,
}

#[derive(Debug)]
struct Connection {
    client: Client,
    hash: Statement,
    text: Statement,
}

impl CatalogReader {
    /// A reader that has not connected yet. `roles` are those that clients are expected to act as;
    /// others are added by [`CatalogReader::role`].
    #[must_use]
    pub fn new(
        database: Database,
        publication: String,
        roles: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            database,
            publication,
            roles: roles.into_iter().collect(),
            connection: None,
            current: None,
            looked_at: None,
            bodies: HashMap::new(),
        }
    }

    /// The catalog as it is now: the same value as before where nothing changed.
    ///
    /// # Errors
    /// [`CatalogError`]; the next call connects anew.
    pub async fn look(&mut self) -> Result<Arc<Catalog>, CatalogError> {
        let began = Instant::now();
        let result = self.look_once().await;
        match &result {
            Ok(_) => self.looked_at = Some(began),
            Err(_) => self.connection = None,
        }
        result
    }

    /// The catalog as it was at `since` or later, with `role` in it if there is such a role.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub async fn role(&mut self, role: &str, since: Instant) -> Result<Arc<Catalog>, CatalogError> {
        if let Some(current) = &self.current
            && self.roles.contains(role)
            && self.looked_at.is_some_and(|looked_at| looked_at >= since)
        {
            // Many ask at once: one look answers all.
            return Ok(Arc::clone(current));
        }
        let added = self.roles.insert(role.to_owned());
        let catalog = self.look().await;
        let known = catalog
            .as_ref()
            .is_ok_and(|catalog| catalog.roles.contains_key(role));
        if added && !known {
            // Names that do not exist must not pile up.
            self.roles.remove(role);
        }
        catalog
    }

    /// The catalog at or after the commit of `xid`, whose stream has just described `relation`
    /// anew. Waits as long as that takes: going on without would mean judging by rules that may no
    /// longer hold.
    pub async fn after(&mut self, xid: Xid, relation: Oid) -> Arc<Catalog> {
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(250));
        loop {
            match self.look_after(xid, relation).await {
                Ok(Some(catalog)) => return catalog,
                Ok(None) => debug!(%xid, "a commit was decoded before it is visible"),
                Err(error) => {
                    self.connection = None;
                    warn!(error = %Chain(&error), "cannot read the catalog, changes wait for it");
                }
            }
            tokio::time::sleep(backoff.after_failure()).await;
        }
    }

    async fn look_after(
        &mut self,
        xid: Xid,
        relation: Oid,
    ) -> Result<Option<Arc<Catalog>>, CatalogError> {
        let connection = self.connected().await?;
        let visible: bool = connection
            .client
            .query_one(
                "select pg_visible_in_snapshot($1::text::xid8, pg_current_snapshot())",
                &[&xid.to_string()],
            )
            .await?
            .try_get(0)?;
        if !visible {
            return Ok(None);
        }
        // Opens the table with an ACCESS SHARE lock and needs no right on it. Whoever altered it
        // holds the exclusive lock until the change is visible.
        let transaction = connection.client.transaction().await?;
        transaction
            .batch_execute(&format!(
                "set local lock_timeout = {}",
                LOCK_TIMEOUT.as_millis()
            ))
            .await?;
        match transaction
            .query("select pg_relation_size($1::oid)", &[&relation.0])
            .await
        {
            Ok(_) => {}
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                debug!(table = %relation, "the table is being altered right now");
            }
            Err(error) => return Err(error.into()),
        }
        transaction.rollback().await?;
        self.look_once().await.map(Some)
    }

    async fn look_once(&mut self) -> Result<Arc<Catalog>, CatalogError> {
        let roles: Vec<String> = self.roles.iter().cloned().collect();
        let publication = self.publication.clone();
        let connection = self.connected().await?;
        let hash: String = connection
            .client
            .query_one(&connection.hash, &[&publication, &roles])
            .await?
            .try_get(0)?;
        if let Some(current) = self.current.as_ref().filter(|current| current.hash == hash) {
            return Ok(Arc::clone(current));
        }
        let connection = self.connected().await?;
        let row = connection
            .client
            .query_one(&connection.text, &[&publication, &roles])
            .await?;
        let text: String = row.try_get(0)?;
        let hash: String = row.try_get(1)?;
        let read_at: String = connection
            .client
            .query_one("select pg_current_wal_insert_lsn()::text", &[])
            .await?
            .try_get(0)?;
        let read_at: Lsn = read_at.parse().unwrap_or_default();
        let mut catalog = Catalog::parse(&text, hash, read_at)?;
        self.resolve_bodies(&mut catalog).await?;
        let catalog = Arc::new(catalog);
        self.current = Some(Arc::clone(&catalog));
        Ok(catalog)
    }

    /// Has PostgreSQL resolve the bodies of SQL functions that are kept as text: the function is
    /// made once more with a resolved body, in a transaction that is rolled back.
    async fn resolve_bodies(&mut self, catalog: &mut Catalog) -> Result<(), CatalogError> {
        let mut bodies = std::mem::take(&mut self.bodies);
        bodies.retain(|(oid, version), _| {
            catalog
                .functions
                .get(oid)
                .is_some_and(|function| function.version == *version)
        });
        let unusual = catalog.unusual_search_path;
        for function in catalog.functions.values_mut() {
            if function.body.is_some() || function.language != "sql" || function.kind != 'f' {
                continue;
            }
            let key = (function.oid, function.version.clone());
            let body = match bodies.get(&key) {
                Some(body) => body.clone(),
                None => {
                    let Some(search_path) = resolving_path(function, unusual) else {
                        continue;
                    };
                    let connection = self.connected().await?;
                    let transaction = connection.client.transaction().await?;
                    let body = resolve_body(&transaction, function, &search_path).await;
                    transaction.rollback().await?;
                    let body = match body {
                        Ok(body) => Some(body),
                        Err(error) if error.as_db_error().is_some() => {
                            debug!(function = %function.oid, "the body was not resolved");
                            None
                        }
                        Err(error) => return Err(error.into()),
                    };
                    bodies.insert(key, body.clone());
                    body
                }
            };
            function.body = body;
        }
        self.bodies = bodies;
        Ok(())
    }

    async fn connected(&mut self) -> Result<&mut Connection, CatalogError> {
        if self
            .connection
            .as_ref()
            .is_none_or(|connection| connection.client.is_closed())
        {
            let client = self.database.connect("rowcast catalog").await?;
            // The query is large and runs in a few milliseconds: compiling it takes seconds, and
            // planning it each time longer than running it.
            client
                .batch_execute(
                    "set jit = off; set search_path = ''; set plan_cache_mode = force_generic_plan; \
                     set statement_timeout = '30s'; set default_transaction_read_only = off",
                )
                .await?;
            let sql = include_str!("../../sql/catalog.sql");
            let hash = client
                .prepare(&format!(
                    "select md5(document) from ({sql}) as catalog(document)"
                ))
                .await?;
            let text = client
                .prepare(&format!(
                    "select document, md5(document) from ({sql}) as catalog(document)"
                ))
                .await?;
            self.connection = Some(Connection { client, hash, text });
        }
        Ok(self.connection.as_mut().expect("it was made above"))
    }
}

/// The search path under which the body's names mean what they mean when it runs; `None` where
/// that cannot be known.
fn resolving_path(function: &Function, unusual: bool) -> Option<String> {
    let mut pinned = None;
    for setting in function.config.iter().flatten() {
        match setting.split_once('=') {
            Some(("search_path", path)) => pinned = Some(path.to_owned()),
            // Any other setting could change what the body does.
            _ => return None,
        }
    }
    // Unpinned: only bodies that use nothing outside pg_catalog resolve under an empty path, and
    // pg_catalog comes first for everybody unless somebody arranged otherwise.
    pinned.or_else(|| (!unusual).then(String::new))
}

async fn resolve_body(
    transaction: &Transaction<'_>,
    function: &Function,
    search_path: &str,
) -> Result<String, tokio_postgres::Error> {
    transaction
        .query(
            "select set_config('search_path', $1, true)",
            &[&search_path],
        )
        .await?;
    // The same name: a body may qualify its arguments with it. As a prepared statement it cannot
    // be more than this one command, whatever the source says.
    let create = format!(
        "create function pg_temp.{}({}) returns {} language sql begin atomic {}\n; end",
        quote_identifier(&function.name),
        function.signature,
        function.result,
        function.source.trim_end().trim_end_matches(';'),
    );
    transaction.execute(&create, &[]).await?;
    let row = transaction
        .query_one(
            "select prosqlbody::text from pg_catalog.pg_proc \
             where pronamespace = pg_catalog.pg_my_temp_schema() and proname = $1",
            &[&function.name],
        )
        .await?;
    row.try_get(0)
}

/// An error with what caused it, for one log line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

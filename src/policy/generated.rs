//! Generated columns, which the stream does not carry before PostgreSQL 18: PostgreSQL computes
//! them once more from the row.
//!
//! The expression is code of the table's owner. It is put under a client's role in a transaction
//! that is rolled back. That is no prison: code that resets the role has the rights of the relay's
//! login, which therefore is to have none on tables.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Statement};
use tracing::{debug, warn};

use crate::pg::connect::{Database, Settings};
use crate::pg::prepared::Prepared;
use crate::pg::quote_identifier;
use crate::retry::Backoff;

/// The values of a row's generated columns as text output; `None` for NULL.
pub type Values = Vec<Option<String>>;

/// After a computation that did not end in time nothing is computed for this many times as long:
/// others wait for it.
const REST: u32 = 5;

/// How often a right that is missing is said, at most.
const WARN_GAP: Duration = Duration::from_secs(60);

/// Has PostgreSQL compute generated columns, over a connection that is made when it is needed.
pub struct Computer {
    database: Database,
    /// How long one computation may take.
    timeout: Duration,
    connection: Option<Connection>,
    resting_until: Option<Instant>,
    /// When it was last said that nobody may compute.
    warned: Option<Instant>,
}

impl fmt::Debug for Computer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Computer").finish_non_exhaustive()
    }
}

struct Connection {
    client: Client,
    /// What it began with.
    settings: Settings,
    prepared: Prepared,
}

/// Why there are no values.
enum Trouble {
    /// The role may not do it.
    Forbidden,
    /// The expression raises an error on one of the rows, or cannot be put.
    Raised,
    /// The connection, or something that no row is to blame for.
    Broken(String),
}

impl Computer {
    /// A computer that has not connected yet.
    #[must_use]
    pub const fn new(database: Database, timeout: Duration) -> Self {
        Self {
            database,
            timeout,
            connection: None,
            resting_until: None,
            warned: None,
        }
    }

    /// Another one, with a connection of its own.
    #[must_use]
    pub fn another(&self) -> Self {
        Self::new(self.database.clone(), self.timeout)
    }

    /// The values for each of `images` (made by [`of`](super::ask::image::of))
    /// that `query` ([`computation`](super::ask::image::computation)) computes under the first of
    /// `roles` that may; `None` for a row for which they cannot be known. Takes as long as the
    /// timeout says, at most.
    pub async fn compute(
        &mut self,
        query: &Arc<str>,
        roles: &[String],
        images: &[String],
    ) -> Vec<Option<Values>> {
        let mut values = vec![None; images.len()];
        let now = Instant::now();
        if images.is_empty() || self.resting_until.is_some_and(|until| now < until) {
            return values;
        }
        let deadline = now + self.timeout;
        let computing = self.settle(query, roles, images, &mut values);
        if timeout_at(deadline, computing).await.is_err() {
            // What is under way on this connection is of no use any more.
            self.connection = None;
            self.resting_until = Some(Instant::now() + self.timeout * REST);
            warn!(
                rows = images.len(),
                "PostgreSQL did not compute generated columns in time, they are left out"
            );
        }
        values
    }

    async fn settle(
        &mut self,
        query: &Arc<str>,
        roles: &[String],
        images: &[String],
        values: &mut [Option<Values>],
    ) {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(500));
        let mut candidates = roles.iter();
        let mut candidate = candidates.next();
        while let Some(role) = candidate {
            match self.attempt(query, role, images, values).await {
                Ok(()) => return,
                Err(Trouble::Forbidden) => candidate = candidates.next(),
                Err(Trouble::Raised) => {
                    self.row_by_row(query, role, images, values).await;
                    return;
                }
                Err(Trouble::Broken(error)) => {
                    self.connection = None;
                    debug!(
                        error,
                        "generated columns could not be computed, trying again"
                    );
                    tokio::time::sleep(backoff.after_failure()).await;
                }
            }
        }
        if self.warned.is_none_or(|at| at.elapsed() >= WARN_GAP) {
            self.warned = Some(Instant::now());
            warn!(
                "no role of a client may compute the generated columns of a table, they are left out: \
             grant one of them to the relay's login, and EXECUTE on the functions to it"
            );
        }
    }

    /// One row's error is no other's.
    async fn row_by_row(
        &mut self,
        query: &Arc<str>,
        role: &str,
        images: &[String],
        values: &mut [Option<Values>],
    ) {
        // What was prepared may be what no longer fits.
        if let Some(connection) = &mut self.connection {
            connection.prepared.remove(query);
        }
        for (image, value) in images.iter().zip(values) {
            let (image, value) = (std::slice::from_ref(image), std::slice::from_mut(value));
            match self.attempt(query, role, image, value).await {
                Ok(()) | Err(Trouble::Forbidden | Trouble::Raised) => {}
                Err(Trouble::Broken(error)) => {
                    self.connection = None;
                    debug!(error, "a generated column could not be computed");
                }
            }
        }
    }

    async fn attempt(
        &mut self,
        query: &Arc<str>,
        role: &str,
        images: &[String],
        values: &mut [Option<Values>],
    ) -> Result<(), Trouble> {
        let begin = format!(
            "begin; set local statement_timeout = {}; set local role {}",
            self.timeout.as_millis().max(1),
            quote_identifier(role)
        );
        let connection = self.connected().await?;
        let statement = connection.statement(query).await?;
        let client = &connection.client;
        // Sent in this order without waiting between: one round trip.
        let (begun, rows, ended) = futures_util::future::join3(
            client.batch_execute(&begin),
            client.query(&statement, &[&images]),
            client.batch_execute("rollback"),
        )
        .await;
        ended.map_err(|error| trouble(&error))?;
        begun.map_err(|error| trouble(&error))?;
        for row in rows.map_err(|error| trouble(&error))? {
            let (Ok(place), Ok(computed)) = (
                row.try_get::<_, i64>(0),
                row.try_get::<_, Vec<Option<String>>>(1),
            ) else {
                return Err(Trouble::Raised);
            };
            let place = usize::try_from(place).unwrap_or(0).wrapping_sub(1);
            if let Some(value) = values.get_mut(place) {
                *value = Some(computed);
            }
        }
        Ok(())
    }

    async fn connected(&mut self) -> Result<&mut Connection, Trouble> {
        let usable = |connection: &Connection| {
            !connection.client.is_closed() && self.database.is_set_as(connection.settings)
        };
        if !self.connection.as_ref().is_some_and(usable) {
            let settings = self.database.settings();
            let client = self
                .database
                .connect("rowcast ask")
                .await
                .map_err(|error| Trouble::Broken(error.to_string()))?;
            self.connection = Some(Connection {
                client,
                settings,
                prepared: Prepared::default(),
            });
        }
        self.connection
            .as_mut()
            .ok_or_else(|| Trouble::Broken("there is no connection".to_owned()))
    }
}

impl Connection {
    /// Prepared under the relay's own login, which resolves the names.
    async fn statement(&mut self, query: &Arc<str>) -> Result<Statement, Trouble> {
        if let Some(known) = self.prepared.get(query) {
            return Ok(known.clone());
        }
        self.prepared.make_room();
        let statement = self
            .client
            .prepare(query)
            .await
            .map_err(|error| trouble(&error))?;
        self.prepared.insert(query, statement.clone());
        Ok(statement)
    }
}

fn trouble(error: &tokio_postgres::Error) -> Trouble {
    let code = error.code().map(SqlState::code).unwrap_or_default();
    if code == SqlState::INSUFFICIENT_PRIVILEGE.code() {
        return Trouble::Forbidden;
    }
    // Cancelled, or the server is going away or out of something; no code: no answer.
    let broken = ["08", "53", "57", "58", "XX"];
    if code.is_empty() || broken.iter().any(|class| code.starts_with(class)) {
        Trouble::Broken(format!("SQLSTATE {code}"))
    } else {
        Trouble::Raised
    }
}

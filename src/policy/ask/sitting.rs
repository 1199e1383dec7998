//! Questions inside a transaction that somebody else has begun: all answers, and whatever else is
//! read in it, are of one snapshot.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join4;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Statement};

use super::desk::{Trouble, learn, reason, transient, trouble};
use super::{Answer, BECOME_CLIENT};

const MARK: &str = "savepoint rowcast_sitting";

/// Savepoints of one name pile up where they are not released.
const UNDO: &str = "rollback to savepoint rowcast_sitting; release savepoint rowcast_sitting";

/// A client whose transaction is open. What is asked is undone; the transaction stays usable.
pub struct Sitting<'c> {
    client: &'c Client,
    become_client: Statement,
    statements: HashMap<Arc<str>, Put>,
    deadline: Option<Instant>,
}

/// How a question is put.
#[derive(Clone)]
enum Put {
    /// As a statement. PostgreSQL may analyse it anew under the client's role, and refuse its names.
    Plain(Statement),
    /// As a function whose names are resolved for good.
    Learned(Statement),
    /// As a statement, since no function could be made; a missing right says nothing then.
    Only(Statement),
}

/// Why there are no answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// A statement ran into the transaction's `statement_timeout`, or there was no time left.
    #[error("PostgreSQL did not answer in time")]
    Slow,
    /// PostgreSQL does not take the question.
    #[error("PostgreSQL does not take the question: {0}")]
    Refused(String),
    /// The connection, or the server.
    #[error("{0}")]
    Broken(String),
}

impl From<tokio_postgres::Error> for Unanswered {
    fn from(error: tokio_postgres::Error) -> Self {
        match trouble(&error) {
            Trouble::Slow => Self::Slow,
            Trouble::Raised => Self::Refused(reason(&error)),
            Trouble::Broken(problem) => Self::Broken(problem),
        }
    }
}

impl<'c> Sitting<'c> {
    /// Takes a client in an open transaction.
    ///
    /// # Errors
    /// PostgreSQL's.
    pub async fn new(client: &'c Client) -> Result<Self, Unanswered> {
        Ok(Self {
            client,
            become_client: client.prepare(BECOME_CLIENT).await?,
            statements: HashMap::new(),
            deadline: None,
        })
    }

    /// Has no statement begin after that.
    #[must_use]
    pub const fn until(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// What a question ([`super::image::query`]) says of rows under a role and claims, in the rows'
    /// order.
    ///
    /// # Errors
    /// [`Unanswered`]; after the last kind the transaction is of no use.
    pub async fn ask(
        &mut self,
        query: &Arc<str>,
        who: (&str, &str),
        images: &[&str],
    ) -> Result<Vec<Answer>, Unanswered> {
        let mut put = self.put(query).await?;
        let mut answers = vec![Answer::Failed; images.len()];
        // What raises an error is halved until the rows are found that do.
        let mut open = vec![(0, images)];
        while let Some((from, some)) = open.pop() {
            if some.is_empty() {
                continue;
            }
            if self.deadline.is_some_and(|end| Instant::now() >= end) {
                return Err(Unanswered::Slow);
            }
            let error = match self.attempt(&put, who, some).await {
                Ok(seen) => {
                    let places = answers.iter_mut().skip(from).zip(seen);
                    places.for_each(|(answer, seen)| {
                        *answer = if seen {
                            Answer::Visible
                        } else {
                            Answer::Hidden
                        };
                    });
                    continue;
                }
                Err(error) => error,
            };
            // What is not about the rows is about all of them.
            if transient(&error) || !matches!(trouble(&error), Trouble::Raised) {
                return Err(error.into());
            }
            if let Put::Plain(statement) = put {
                put = self.learned(query, statement).await?;
                open.push((from, some));
                continue;
            }
            if let [_] = some {
                let unsaid = matches!(put, Put::Only(_))
                    && error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
                if let (Some(answer), false) = (answers.get_mut(from), unsaid) {
                    *answer = Answer::Raised;
                }
                continue;
            }
            let (first, rest) = some.split_at(some.len() / 2);
            open.push((from + first.len(), rest));
            open.push((from, first));
        }
        Ok(answers)
    }

    async fn put(&mut self, query: &Arc<str>) -> Result<Put, Unanswered> {
        if let Some(known) = self.statements.get(query) {
            return Ok(known.clone());
        }
        self.client.batch_execute(MARK).await?;
        let prepared = self.client.prepare(query).await;
        self.client.batch_execute(UNDO).await?;
        let put = Put::Plain(prepared?);
        self.statements.insert(Arc::clone(query), put.clone());
        Ok(put)
    }

    /// The same question under names that are resolved for good.
    async fn learned(&mut self, query: &Arc<str>, plain: Statement) -> Result<Put, Unanswered> {
        let name = format!("rowcast_sitting_{}", self.statements.len());
        let put = match learn(self.client, &name, query).await {
            Ok(statement) => Put::Learned(statement),
            Err(error) if error.as_db_error().is_some() => Put::Only(plain),
            Err(error) => return Err(error.into()),
        };
        self.statements.insert(Arc::clone(query), put.clone());
        Ok(put)
    }

    /// Which of the rows are seen. One round trip, and nothing stays of it.
    async fn attempt(
        &self,
        put: &Put,
        (role, claims): (&str, &str),
        images: &[&str],
    ) -> Result<Vec<bool>, tokio_postgres::Error> {
        let (Put::Plain(statement) | Put::Learned(statement) | Put::Only(statement)) = put;
        let (client, images) = (self.client, images.to_vec());
        let become_client = &[&role as &(dyn tokio_postgres::types::ToSql + Sync), &claims];
        let rows = &[&images as &(dyn tokio_postgres::types::ToSql + Sync)];
        // Sent in this order, without waiting for each other's answers.
        let (began, become_client, answer, ended) = join4(
            client.batch_execute(MARK),
            client.query(&self.become_client, become_client),
            client.query(statement, rows),
            client.batch_execute(UNDO),
        )
        .await;
        began?;
        ended?;
        become_client?;
        let mut seen = vec![false; images.len()];
        for row in answer? {
            let place = usize::try_from(row.try_get::<_, i64>(0)?).unwrap_or(0);
            if let Some(seen) = seen.get_mut(place.wrapping_sub(1)) {
                *seen = true;
            }
        }
        Ok(seen)
    }
}

impl std::fmt::Debug for Sitting<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sitting({} questions)", self.statements.len())
    }
}

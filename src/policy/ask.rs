//! What is not compiled is asked: PostgreSQL itself evaluates the policies on the row as the
//! stream carries it, under the client's role and claims.
//!
//! Questions are gathered into batches. A batch is one transaction on one connection, sent as a
//! pipeline (one round trip), and always rolled back, so that a policy function with side effects
//! leaves none. A transaction can be decoded before it is visible: no question is asked before the
//! snapshot shows the transaction that its row comes from.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{MaybeDone, maybe_done};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row as Answered, Statement};
use tracing::{debug, warn};

use crate::auth::Claims;
use crate::change::{Relation, Row, Value};
use crate::metrics::Metrics;
use crate::pg::Xid;
use crate::pg::connect::Database;
use crate::policy::catalog::Catalog;
use crate::retry::Backoff;

/// Questions that wait; past this the router waits too, and PostgreSQL keeps the WAL meanwhile.
const QUEUE: usize = 1024;

/// Questions of one transaction.
const BATCH: usize = 512;

/// Prepared statements kept on the connection.
const MAX_STATEMENTS: usize = 500;

/// PostgreSQL's answer to a [`Question`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The policies let the row through.
    Visible,
    /// They do not.
    Hidden,
    /// A policy raised an error on this row.
    Raised,
    /// There was no answer in time. Whoever asked must say so to its client.
    TimedOut,
    /// The question could not be put.
    Failed,
}

/// One row under one role and one set of claims.
pub struct Question {
    /// The transaction that the row comes from.
    pub xid: Xid,
    /// The policies, as made by [`image_query`]. Compared by its text.
    pub query: Arc<str>,
    /// The role.
    pub role: Arc<str>,
    /// The claims.
    pub claims: Claims,
    /// The row as a JSON object of text outputs, by column name.
    pub image: Arc<str>,
    /// When the answer is of no use any more.
    pub deadline: Instant,
    /// Takes the answer. Called exactly once, also when the asker ends.
    pub answer: Reply,
}

/// Where an answer goes; dropped without one it counts as [`Answer::Failed`].
pub struct Reply(Option<Box<dyn FnOnce(Answer) + Send + Sync>>);

impl Reply {
    /// Calls `take` with the answer.
    pub fn new(take: impl FnOnce(Answer) + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(take)))
    }

    fn give(mut self, answer: Answer) {
        if let Some(take) = self.0.take() {
            take(answer);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(take) = self.0.take() {
            take(Answer::Failed);
        }
    }
}

/// Where questions are put; cheap to clone.
#[derive(Clone)]
pub struct Asker {
    questions: mpsc::Sender<Question>,
}

impl Asker {
    /// Puts a question. Waits while too many are open.
    pub async fn ask(&self, question: Question) {
        // Without an asker the reply is dropped and hides the row.
        if self.questions.send(question).await.is_err() {
            debug!("a question came after the asker ended");
        }
    }
}

/// A query that says which rows of `$1` (a text array of JSON objects) pass `condition`, by their
/// places counted from 1. The rows go through the table's own row type, so every value is read by
/// its type's input function, and what a row lacks is taken from `base`, a row of that type; the
/// second of each column is the expression of one that the stream does not carry.
#[must_use]
pub fn image_query(
    table_name: &str,
    columns: &[(String, Option<String>)],
    base: &str,
    condition: &str,
) -> String {
    use crate::pg::quote_identifier as quoted;
    let alias = quoted(table_name);
    let populated = format!(
        "pg_catalog.json_populate_record({base}, \"rowcast image\".\"rowcast row\"::pg_catalog.json)"
    );
    let source = if columns.iter().any(|(_, generated)| generated.is_some()) {
        let list: Vec<String> = columns
            .iter()
            .map(|(name, generated)| match generated {
                Some(expression) => format!("({expression}) as {}", quoted(name)),
                None => format!("{alias}.{}", quoted(name)),
            })
            .collect();
        format!(
            "(select {} from {populated} as {alias}) as {alias}",
            list.join(", ")
        )
    } else {
        format!("{populated} as {alias}")
    };
    format!(
        "select \"rowcast image\".\"rowcast place\" \
         from pg_catalog.unnest($1::pg_catalog.text[]) with ordinality \
         as \"rowcast image\"(\"rowcast row\", \"rowcast place\") \
         cross join lateral {source} where {condition}"
    )
}

/// The types `json` and `jsonb`.
pub(super) const JSON: [u32; 2] = [114, 3802];

/// A row as the JSON object that [`image_query`] reads: every value as its text output, JSON as it
/// is. What the stream does not carry is left out; whoever asks has seen to it that no policy reads
/// it. The `null` of JSON is left out too, and comes from [`image_query`]'s base: written here it
/// would be read as SQL's NULL.
#[must_use]
pub fn image(relation: &Relation, row: &Row, catalog: &Catalog) -> String {
    let mut out = Vec::with_capacity(row.size() * 2);
    out.push(b'{');
    for (column, value) in relation.columns.iter().zip(row.values()) {
        if value == Value::Unchanged {
            continue;
        }
        let base = || catalog.base_type(column.type_oid).map(|base| base.oid.0);
        let json = base().is_some_and(|base| JSON.contains(&base));
        if json && matches!(value, Value::Text(text) if text.trim() == "null") {
            continue;
        }
        if out.len() > 1 {
            out.push(b',');
        }
        // Writing to a Vec does not fail.
        let _name = serde_json::to_writer(&mut out, &*column.name);
        out.push(b':');
        match value {
            Value::Text(text) if json => out.extend_from_slice(text.as_bytes()),
            Value::Text(text) => {
                let _text = serde_json::to_writer(&mut out, text);
            }
            Value::Null | Value::Unchanged => out.extend_from_slice(b"null"),
        }
    }
    out.push(b'}');
    // Everything written is UTF-8.
    String::from_utf8(out).unwrap_or_default()
}

/// Makes an asker and the task that answers; the task ends when every [`Asker`] is gone.
pub fn asker(
    database: Database,
    metrics: Arc<Metrics>,
    timeout: Duration,
) -> (Asker, impl Future<Output = ()> + Send) {
    let (questions, mut incoming) = mpsc::channel(QUEUE);
    let task = async move {
        let mut desk = Desk {
            database,
            metrics,
            timeout,
            connection: None,
        };
        let mut batch = Vec::new();
        while incoming.recv_many(&mut batch, BATCH).await > 0 {
            desk.settle(std::mem::take(&mut batch)).await;
        }
    };
    (Asker { questions }, task)
}

struct Desk {
    database: Database,
    metrics: Arc<Metrics>,
    timeout: Duration,
    connection: Option<Connection>,
}

struct Connection {
    client: Client,
    visible: Statement,
    become_client: Statement,
    statements: HashMap<Arc<str>, Statement>,
}

type Parameter<'a> = &'a (dyn ToSql + Sync);

/// All questions of a batch that one statement answers.
struct Group {
    role: Arc<str>,
    claims: Claims,
    query: Arc<str>,
    images: Vec<Arc<str>>,
    /// For each image the places in the batch of the questions about it.
    asked_by: Vec<Vec<usize>>,
}

/// Why a batch could not be settled.
enum Trouble {
    /// The stream is ahead of what a snapshot shows.
    NotVisible,
    /// A statement raised an error: which of the groups and rows it was is found one by one.
    Raised,
    /// The connection, or something that no row is to blame for.
    Broken(String),
}

impl Desk {
    async fn settle(&mut self, batch: Vec<Question>) {
        self.metrics.questions.inc_by(batch.len() as u64);
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(200));
        let groups = grouped(&batch);
        let mut answers = vec![Answer::Failed; batch.len()];
        // One deadline for the batch: the latest, since its questions came together.
        let deadline = batch
            .iter()
            .map(|question| question.deadline)
            .max()
            .unwrap_or_else(Instant::now);
        let mut one_by_one = false;
        loop {
            let attempt = self.attempt(&batch, &groups, one_by_one, &mut answers);
            match tokio::time::timeout_at(deadline, attempt).await {
                Ok(Ok(())) => break,
                Ok(Err(Trouble::Raised)) => {
                    one_by_one = true;
                    self.forget(&groups);
                    continue;
                }
                Ok(Err(Trouble::NotVisible)) => debug!("a commit was decoded before it is visible"),
                Ok(Err(Trouble::Broken(error))) => {
                    self.connection = None;
                    warn!(error, "questions to PostgreSQL failed");
                }
                Err(_elapsed) => {
                    // What is under way on this connection is of no use any more.
                    self.connection = None;
                    answers.fill(Answer::TimedOut);
                    warn!(
                        questions = batch.len(),
                        "PostgreSQL did not answer in time, the rows in question are hidden"
                    );
                    break;
                }
            }
            tokio::time::sleep(backoff.after_failure()).await;
        }
        for (question, answer) in batch.into_iter().zip(answers) {
            question.answer.give(answer);
        }
    }

    async fn attempt(
        &mut self,
        batch: &[Question],
        groups: &[Group],
        one_by_one: bool,
        answers: &mut [Answer],
    ) -> Result<(), Trouble> {
        let timeout = self.timeout;
        let connection = self.connected().await?;
        connection
            .client
            .batch_execute(&format!(
                "begin; set local statement_timeout = {}",
                timeout.as_millis().max(1)
            ))
            .await
            .map_err(broken)?;
        let outcome = connection.answer(batch, groups, one_by_one, answers).await;
        connection
            .client
            .batch_execute("rollback")
            .await
            .map_err(broken)?;
        outcome
    }

    /// Has the statements of `groups` prepared anew: a plan made before a column was dropped raises
    /// an error on every row, and PostgreSQL does not notice that it is stale, since the table is
    /// only the type of what is read.
    fn forget(&mut self, groups: &[Group]) {
        if let Some(connection) = &mut self.connection {
            for group in groups {
                connection.statements.remove(&group.query);
            }
        }
    }

    async fn connected(&mut self) -> Result<&mut Connection, Trouble> {
        if self
            .connection
            .as_ref()
            .is_none_or(|connection| connection.client.is_closed())
        {
            let client = self
                .database
                .connect("rowcast ask")
                .await
                .map_err(|error| Trouble::Broken(error.to_string()))?;
            let visible = client
                .prepare(
                    "select coalesce(bool_and(pg_visible_in_snapshot(x::xid8, pg_current_snapshot())), true) \
                     from unnest($1::text[]) x",
                )
                .await
                .map_err(broken)?;
            let become_client = client
                .prepare(
                    "select pg_catalog.set_config('role', $1, true), \
                     pg_catalog.set_config('request.jwt.claims', $2, true)",
                )
                .await
                .map_err(broken)?;
            self.connection = Some(Connection {
                client,
                visible,
                become_client,
                statements: HashMap::new(),
            });
        }
        self.connection
            .as_mut()
            .ok_or_else(|| Trouble::Broken("there is no connection".to_owned()))
    }
}

impl Connection {
    async fn answer(
        &mut self,
        batch: &[Question],
        groups: &[Group],
        one_by_one: bool,
        answers: &mut [Answer],
    ) -> Result<(), Trouble> {
        let mut xids: Vec<String> = batch
            .iter()
            .map(|question| question.xid.to_string())
            .collect();
        xids.sort_unstable();
        xids.dedup();
        let visible: bool = self
            .client
            .query_one(&self.visible, &[&xids])
            .await
            .and_then(|row| row.try_get(0))
            .map_err(broken)?;
        if !visible {
            return Err(Trouble::NotVisible);
        }
        self.prepare(groups).await?;
        if one_by_one {
            for group in groups {
                self.answer_row_by_row(group, answers).await?;
            }
            return Ok(());
        }
        self.answer_pipelined(groups, answers).await
    }

    /// Prepares what is missing. A condition that does not even parse any more (a function it
    /// calls is gone) leaves its group without a statement, and so unanswered.
    async fn prepare(&mut self, groups: &[Group]) -> Result<(), Trouble> {
        if self.statements.len() + groups.len() > MAX_STATEMENTS {
            self.statements.clear();
        }
        for group in groups {
            if self.statements.contains_key(&group.query) {
                continue;
            }
            self.client
                .batch_execute("savepoint rowcast_prepare")
                .await
                .map_err(broken)?;
            match self.client.prepare(&group.query).await {
                Ok(statement) => {
                    self.statements.insert(Arc::clone(&group.query), statement);
                }
                Err(error) if error.as_db_error().is_some() => {
                    warn!(error = %reason(&error), "a policy cannot be asked");
                    self.client
                        .batch_execute("rollback to savepoint rowcast_prepare")
                        .await
                        .map_err(broken)?;
                }
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(())
    }

    async fn answer_pipelined(
        &self,
        groups: &[Group],
        answers: &mut [Answer],
    ) -> Result<(), Trouble> {
        type Query<'a> =
            Pin<Box<dyn Future<Output = Result<Vec<Answered>, tokio_postgres::Error>> + Send + 'a>>;
        // Parameters have to outlive the pipeline.
        let parameters: Vec<(&str, &str, Vec<&str>)> = groups
            .iter()
            .map(|group| {
                let images = group.images.iter().map(|image| &**image).collect();
                (&*group.role, group.claims.as_json(), images)
            })
            .collect();
        let bound: Vec<([Parameter<'_>; 2], [Parameter<'_>; 1])> = parameters
            .iter()
            .map(|(role, claims, images)| {
                (
                    [role as &(dyn ToSql + Sync), claims],
                    [images as &(dyn ToSql + Sync)],
                )
            })
            .collect();
        // What is ready when it is first polled must not be polled again: its answer is kept.
        let mut under_way: Vec<MaybeDone<Query<'_>>> = Vec::new();
        for (group, (who, images)) in groups.iter().zip(&bound) {
            let switch: Query<'_> = Box::pin(self.client.query(&self.become_client, who));
            let statement = self.statements.get(&group.query);
            let query =
                statement.map(|statement| Box::pin(self.client.query(statement, images)) as _);
            for query in std::iter::once(switch).chain(query) {
                let mut query = maybe_done(query);
                // A query is sent when it is first polled: in this order, without waiting.
                let _ready = futures_util::poll!(&mut query);
                under_way.push(query);
            }
        }
        let mut answered = Vec::new();
        for mut query in under_way {
            (&mut query).await;
            answered.extend(Pin::new(&mut query).take_output());
        }
        let mut answered = answered.into_iter();
        let mut outcome = Ok(());
        for group in groups {
            if let Some(Err(error)) = answered.next() {
                outcome = outcome.and(Err(trouble(&error)));
            }
            if !self.statements.contains_key(&group.query) {
                continue;
            }
            match answered.next() {
                Some(Ok(rows)) => group.settle(&rows, answers),
                Some(Err(error)) => outcome = outcome.and(Err(trouble(&error))),
                None => outcome = outcome.and(Err(Trouble::Broken("no answer".to_owned()))),
            }
        }
        outcome
    }

    async fn answer_row_by_row(
        &self,
        group: &Group,
        answers: &mut [Answer],
    ) -> Result<(), Trouble> {
        let Some(statement) = self.statements.get(&group.query) else {
            return Ok(());
        };
        for (image, asked_by) in group.images.iter().zip(&group.asked_by) {
            self.client
                .batch_execute("savepoint rowcast_row")
                .await
                .map_err(broken)?;
            let images = [&**image].to_vec();
            let claims = group.claims.as_json();
            let switched = self
                .client
                .query(&self.become_client, &[&&*group.role, &claims])
                .await;
            let answered = match switched {
                Ok(_) => self.client.query(statement, &[&images]).await,
                Err(error) => Err(error),
            };
            let answer = match answered {
                Ok(rows) if rows.is_empty() => Answer::Hidden,
                Ok(_) => Answer::Visible,
                Err(error) => match trouble(&error) {
                    Trouble::Raised => Answer::Raised,
                    other => return Err(other),
                },
            };
            self.client
                .batch_execute("rollback to savepoint rowcast_row")
                .await
                .map_err(broken)?;
            for place in asked_by {
                if let Some(slot) = answers.get_mut(*place) {
                    *slot = answer;
                }
            }
        }
        Ok(())
    }
}

impl Group {
    fn settle(&self, rows: &[Answered], answers: &mut [Answer]) {
        let mut visible = vec![false; self.images.len()];
        for row in rows {
            let place = row
                .try_get::<_, i64>(0)
                .ok()
                .and_then(|place| usize::try_from(place).ok());
            if let Some(flag) = place.and_then(|place| visible.get_mut(place.wrapping_sub(1))) {
                *flag = true;
            }
        }
        for (visible, asked_by) in visible.into_iter().zip(&self.asked_by) {
            for place in asked_by {
                if let Some(slot) = answers.get_mut(*place) {
                    *slot = if visible {
                        Answer::Visible
                    } else {
                        Answer::Hidden
                    };
                }
            }
        }
    }
}

/// Questions with equal role, claims and policies go into one statement, equal rows once.
fn grouped(batch: &[Question]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut by_key: HashMap<(&str, &str, &str), usize> = HashMap::new();
    let mut by_image: HashMap<(usize, &str), usize> = HashMap::new();
    for (place, question) in batch.iter().enumerate() {
        let key = (&*question.role, question.claims.as_json(), &*question.query);
        let at = *by_key.entry(key).or_insert_with(|| {
            groups.push(Group {
                role: Arc::clone(&question.role),
                claims: question.claims.clone(),
                query: Arc::clone(&question.query),
                images: Vec::new(),
                asked_by: Vec::new(),
            });
            groups.len() - 1
        });
        let Some(group) = groups.get_mut(at) else {
            continue;
        };
        let image = *by_image.entry((at, &question.image)).or_insert_with(|| {
            group.images.push(Arc::clone(&question.image));
            group.asked_by.push(Vec::new());
            group.images.len() - 1
        });
        if let Some(asked_by) = group.asked_by.get_mut(image) {
            asked_by.push(place);
        }
    }
    groups
}

/// Whether an error is the policy's (or the row's), or the connection's.
fn trouble(error: &tokio_postgres::Error) -> Trouble {
    match error.code().map(tokio_postgres::error::SqlState::code) {
        // In a failed transaction, cancelled, or the server is going away or out of something.
        Some(code)
            if code.starts_with("57") || code.starts_with("53") || code.starts_with("08") =>
        {
            Trouble::Broken(reason(error))
        }
        Some(_) => Trouble::Raised,
        None => Trouble::Broken(reason(error)),
    }
}

fn broken(error: tokio_postgres::Error) -> Trouble {
    Trouble::Broken(reason(&error))
}

/// PostgreSQL's error without its detail, which may hold row values.
fn reason(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(
        || error.to_string(),
        |refused| format!("SQLSTATE {}", refused.code().code()),
    )
}

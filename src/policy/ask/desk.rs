//! One connection that answers batches of questions.

mod turns;

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{MaybeDone, maybe_done};
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row, Statement};
use tracing::warn;

use super::{Answer, BECOME_CLIENT, Question};
use crate::auth::Claims;
use crate::metrics::Metrics;
use crate::pg::connect::{Database, Settings};
use crate::pg::prepared::Prepared;
use crate::pg::snapshot::{InvalidSnapshot, Snapshot};
use crate::retry::Backoff;

/// What a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The policies of a table, which its owner made.
    Policies,
    /// A filter, which a client made: a slow one must not take the others of its batch with it.
    Filter,
}

pub(super) struct Desk {
    database: Database,
    metrics: Arc<Metrics>,
    timeout: Duration,
    connection: Option<Connection>,
}

struct Connection {
    client: Client,
    /// What it began with.
    settings: Settings,
    snapshot: Statement,
    become_client: Statement,
    /// Questions as plain statements. PostgreSQL may analyse one anew under the client's role,
    /// which may not use every schema that it names: then it is put the long way.
    prepared: Prepared,
}

/// A batch's questions by their text; `None` for what PostgreSQL does not take as a question.
type Statements = HashMap<Arc<str>, Option<Statement>>;

type Query<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

type Sent<'a, T> = Pin<Box<MaybeDone<Query<'a, T>>>>;

/// Sends a query, which happens when it is first polled, without waiting for its answer.
async fn sent<'a, T: 'a>(query: impl Future<Output = Result<T, Error>> + Send + 'a) -> Sent<'a, T> {
    let query: Query<'a, T> = Box::pin(query);
    let mut query = Box::pin(maybe_done(query));
    let _pending = futures_util::poll!(&mut query);
    query
}

async fn finished<T>(mut query: Sent<'_, T>) -> Result<T, Error> {
    query.as_mut().await;
    query
        .as_mut()
        .take_output()
        .expect("it has just ended, and its output is taken once")
}

type Parameter<'a> = &'a (dyn ToSql + Sync);

/// A batch in hand.
struct Open {
    /// Those whose transactions are visible, their answers, and how they are put.
    shown: Vec<Question>,
    answers: Vec<Answer>,
    groups: Vec<Group>,
    unseen: Vec<Question>,
}

impl Open {
    const fn new(batch: Vec<Question>) -> Self {
        Self {
            shown: Vec::new(),
            answers: Vec::new(),
            groups: Vec::new(),
            unseen: batch,
        }
    }

    /// Puts those among the rest that `snapshot` shows.
    fn sift(&mut self, snapshot: &Snapshot) {
        let shown = |question: &mut Question| snapshot.shows(question.xid);
        let before = self.shown.len();
        self.shown.extend(self.unseen.extract_if(.., shown));
        if self.shown.len() > before {
            self.answers = vec![Answer::Failed; self.shown.len()];
            self.groups = grouped(&self.shown);
        }
    }
}

/// All questions of a batch that one statement answers.
struct Group {
    role: Arc<str>,
    claims: Claims,
    query: Arc<str>,
    images: Vec<Arc<str>>,
    /// How large they are.
    bytes: usize,
    /// For each image the places in the batch of the questions about it.
    asked_by: Vec<Vec<usize>>,
}

/// Why a batch could not be settled.
pub(super) enum Trouble {
    /// A statement raised an error: which of the groups and rows it was is found one by one.
    Raised,
    /// A statement took too long.
    Slow,
    /// The connection, or something that no row is to blame for.
    Broken(String),
}

impl Desk {
    pub(super) const fn new(database: Database, metrics: Arc<Metrics>, timeout: Duration) -> Self {
        Self {
            database,
            metrics,
            timeout,
            connection: None,
        }
    }

    /// Answers questions about policies. Gives back those whose transactions are not visible.
    pub(super) async fn settle(&mut self, batch: Vec<Question>) -> Vec<Question> {
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(200));
        // One deadline for the batch: the latest, since its questions came together.
        let deadline = batch
            .iter()
            .map(|question| question.deadline)
            .max()
            .unwrap_or_else(Instant::now);
        let mut open = Open::new(batch);
        let mut one_by_one = false;
        loop {
            let attempt = self.attempt(&mut open, one_by_one);
            match tokio::time::timeout_at(deadline, attempt).await {
                Ok(Ok(())) => break,
                Ok(Err(Trouble::Raised)) => {
                    one_by_one = true;
                    continue;
                }
                Ok(Err(Trouble::Slow)) => {
                    self.connection = None;
                    warn!("a question to PostgreSQL took too long");
                }
                Ok(Err(Trouble::Broken(error))) => {
                    self.connection = None;
                    warn!(error, "questions to PostgreSQL failed");
                }
                Err(_elapsed) => {
                    // What is under way on this connection is of no use any more.
                    self.connection = None;
                    open.answers.fill(Answer::TimedOut);
                    warn!(
                        questions = open.shown.len() + open.unseen.len(),
                        "PostgreSQL did not answer in time, the rows in question are hidden"
                    );
                    break;
                }
            }
            tokio::time::sleep(backoff.after_failure()).await;
        }
        self.metrics.questions.inc_by(open.shown.len() as u64);
        for (question, answer) in open.shown.into_iter().zip(open.answers) {
            question.answer.give(answer);
        }
        open.unseen
    }

    async fn attempt(&mut self, open: &mut Open, one_by_one: bool) -> Result<(), Trouble> {
        let timeout = self.timeout;
        let connection = self.connected().await?;
        open.sift(&connection.snapshot().await?);
        let Open {
            groups, answers, ..
        } = open;
        if groups.is_empty() {
            return Ok(());
        }
        if !one_by_one {
            let queries = groups.iter().map(|group| &group.query);
            connection.prepare(queries).await?;
        }
        connection
            .client
            .batch_execute(&format!(
                "begin; set local statement_timeout = {}; savepoint rowcast_group",
                timeout.as_millis().max(1)
            ))
            .await
            .map_err(broken)?;
        let outcome = connection.answer(groups, one_by_one, answers).await;
        connection
            .client
            .batch_execute("rollback")
            .await
            .map_err(broken)?;
        outcome
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
            // A question is about a single row: to compile it would take longer than to run it.
            let set = client.batch_execute("set jit = off").await;
            set.map_err(broken)?;
            let snapshot = client.prepare("select pg_current_snapshot()::text").await;
            let snapshot = snapshot.map_err(broken)?;
            let become_client = client.prepare(BECOME_CLIENT).await.map_err(broken)?;
            self.connection = Some(Connection {
                client,
                settings,
                snapshot,
                become_client,
                prepared: Prepared::default(),
            });
        }
        self.connection
            .as_mut()
            .ok_or_else(|| Trouble::Broken("there is no connection".to_owned()))
    }
}

/// Undoes what a group's questions did.
const FORGET: &str = "rollback to savepoint rowcast_group";

/// Rows that are sent without waiting for answers, in bytes; past this answers are taken first.
const MAX_UNDER_WAY: usize = 4 << 20;

/// Rows of one statement, in bytes; further ones go into the next.
const MAX_GROUP: usize = 1 << 20;

impl Connection {
    async fn answer(
        &self,
        groups: &[Group],
        one_by_one: bool,
        answers: &mut [Answer],
    ) -> Result<(), Trouble> {
        if one_by_one {
            let statements = self.learn(groups.iter().map(|group| &group.query)).await?;
            for group in groups {
                self.answer_row_by_row(group, &statements, answers).await?;
            }
            return Ok(());
        }
        self.answer_pipelined(groups, answers).await
    }

    /// What is visible. Every later statement sees that too.
    async fn snapshot(&self) -> Result<Snapshot, Trouble> {
        let row = self.client.query_one(&self.snapshot, &[]).await;
        let text: String = row.and_then(|row| row.try_get(0)).map_err(broken)?;
        text.parse()
            .map_err(|error: InvalidSnapshot| Trouble::Broken(error.to_string()))
    }

    /// Prepares the questions that are not prepared yet, under the relay's own login. What
    /// PostgreSQL does not take is left out.
    async fn prepare(&mut self, queries: impl Iterator<Item = &Arc<str>>) -> Result<(), Trouble> {
        self.prepared.make_room();
        for query in queries {
            if self.prepared.get(query).is_some() {
                continue;
            }
            match self.client.prepare(query).await {
                Ok(statement) => {
                    self.prepared.insert(query, statement);
                }
                Err(error) if error.as_db_error().is_some() => {}
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(())
    }

    /// Makes questions that a client's role can put whatever PostgreSQL thinks of their names.
    async fn learn(&self, queries: impl Iterator<Item = &Arc<str>>) -> Result<Statements, Trouble> {
        let mut statements = Statements::new();
        for query in queries {
            if statements.contains_key(query) {
                continue;
            }
            let name = format!("rowcast_ask_{}", statements.len());
            let statement = match learn(&self.client, &name, query).await {
                Ok(statement) => Some(statement),
                Err(error) if error.as_db_error().is_some() => {
                    let hint = if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
                        "the relay's login needs TEMPORARY on the database and USAGE on the schemas \
                         that policies name"
                    } else {
                        "its rows are hidden"
                    };
                    warn!(error = %reason(&error), hint, "a policy cannot be asked");
                    // Without the right to make it, most questions can still be put plainly.
                    let refused = error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
                    self.prepared.get(query).filter(|_| refused).cloned()
                }
                Err(error) => return Err(broken(error)),
            };
            statements.insert(Arc::clone(query), statement);
        }
        Ok(statements)
    }

    async fn answer_pipelined(
        &self,
        groups: &[Group],
        answers: &mut [Answer],
    ) -> Result<(), Trouble> {
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
        let mut under_way = VecDeque::new();
        let mut bytes = 0;
        let mut outcome = Ok(());
        let mut sending = groups.iter().zip(&bound);
        loop {
            // Each that was sent holds a copy of its rows.
            if bytes <= MAX_UNDER_WAY
                && let Some((group, (who, images))) = sending.next()
            {
                let Some(statement) = self.prepared.get(&group.query) else {
                    outcome = Err(Trouble::Raised);
                    continue;
                };
                // In this order, without waiting. What a policy's function sets for one client is
                // not there for the next.
                let query = async move {
                    let switch = self.client.query(&self.become_client, who);
                    let asked = self.client.query(statement, images);
                    let back = self.client.batch_execute(FORGET);
                    let (switch, asked, back) =
                        futures_util::future::join3(switch, asked, back).await;
                    back?;
                    Ok(switch.and(asked))
                };
                bytes += group.bytes;
                under_way.push_back((group, sent(query).await));
                continue;
            }
            let Some((group, query)) = under_way.pop_front() else {
                return outcome;
            };
            bytes -= group.bytes;
            match finished(query).await.map_err(broken)? {
                Ok(rows) => group.settle(&rows, answers),
                Err(error) => outcome = outcome.and(Err(trouble(&error))),
            }
        }
    }

    async fn answer_row_by_row(
        &self,
        group: &Group,
        statements: &Statements,
        answers: &mut [Answer],
    ) -> Result<(), Trouble> {
        let Some(statement) = statements.get(&group.query).and_then(Option::as_ref) else {
            group.settle_all(Answer::Failed, answers);
            return Ok(());
        };
        let who = (&*group.role, group.claims.as_json());
        for (image, asked_by) in group.images.iter().zip(&group.asked_by) {
            let answer = self.answer_row(statement, who, image).await?;
            if answer == Answer::TimedOut {
                return Err(Trouble::Slow);
            }
            for place in asked_by {
                if let Some(slot) = answers.get_mut(*place) {
                    *slot = answer;
                }
            }
        }
        Ok(())
    }

    /// Puts one question under a savepoint, so that its error costs nothing else.
    async fn answer_row(
        &self,
        statement: &Statement,
        (role, claims): (&str, &str),
        image: &str,
    ) -> Result<Answer, Trouble> {
        self.client
            .batch_execute("savepoint rowcast_row")
            .await
            .map_err(broken)?;
        let images = [image].to_vec();
        let switched = self
            .client
            .query(&self.become_client, &[&role, &claims])
            .await;
        let answered = match switched {
            Ok(_) => self.client.query(statement, &[&images]).await,
            Err(error) => Err(error),
        };
        let answer = match answered {
            Ok(rows) if rows.is_empty() => Answer::Hidden,
            Ok(_) => Answer::Visible,
            Err(error) if transient(&error) => Answer::Failed,
            Err(error) => match trouble(&error) {
                Trouble::Raised => Answer::Raised,
                Trouble::Slow => Answer::TimedOut,
                other => return Err(other),
            },
        };
        self.client
            .batch_execute("rollback to savepoint rowcast_row")
            .await
            .map_err(broken)?;
        Ok(answer)
    }
}

impl Group {
    fn settle_all(&self, answer: Answer, answers: &mut [Answer]) {
        for place in self.asked_by.iter().flatten() {
            if let Some(slot) = answers.get_mut(*place) {
                *slot = answer;
            }
        }
    }

    fn settle(&self, rows: &[Row], answers: &mut [Answer]) {
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

/// Makes a question that a client's role can put whatever PostgreSQL thinks of its names.
///
/// A policy may call a function of a schema that the client's role may not use: PostgreSQL
/// resolved that name when the policy was made. So a question must not be parsed under the
/// client's role either, also not when PostgreSQL plans it anew: it becomes the resolved body
/// of a temporary function, made under the relay's own login.
///
/// The function lives no longer than the transaction: one that is committed depends on every table,
/// column, type and function that the policy names, and nobody could drop or alter those. Where it
/// cannot be made the transaction is as before.
pub(super) async fn learn(client: &Client, name: &str, query: &str) -> Result<Statement, Error> {
    client.batch_execute("savepoint rowcast_ask").await?;
    let create = format!(
        "create function pg_temp.{name}(text[]) returns setof bigint language sql \
         volatile begin atomic {query}; end"
    );
    if let Err(error) = client.execute(&create, &[]).await {
        if error.as_db_error().is_some() {
            client
                .batch_execute("rollback to savepoint rowcast_ask")
                .await?;
        }
        return Err(error);
    }
    let ask = format!("select place from pg_temp.{name}($1) as answer(place)");
    client.prepare(&ask).await
}

/// Questions with equal role, claims and policies go into one statement, equal rows once.
fn grouped(batch: &[Question]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut by_key: HashMap<(&str, &str, &str), usize> = HashMap::new();
    let mut by_image: HashMap<(usize, &str), usize> = HashMap::new();
    for (place, question) in batch.iter().enumerate() {
        let key = (&*question.role, question.claims.as_json(), &*question.query);
        let full = |at: &mut usize| {
            let group = groups.get(*at);
            group.is_some_and(|group| group.bytes >= MAX_GROUP)
        };
        if by_key.get_mut(&key).is_some_and(full) {
            by_key.remove(&key);
        }
        let at = *by_key.entry(key).or_insert_with(|| {
            groups.push(Group {
                role: Arc::clone(&question.role),
                claims: question.claims.clone(),
                query: Arc::clone(&question.query),
                images: Vec::new(),
                bytes: 0,
                asked_by: Vec::new(),
            });
            groups.len() - 1
        });
        let Some(group) = groups.get_mut(at) else {
            continue;
        };
        let image = *by_image.entry((at, &question.image)).or_insert_with(|| {
            group.images.push(Arc::clone(&question.image));
            group.bytes += question.image.len();
            group.asked_by.push(Vec::new());
            group.images.len() - 1
        });
        if let Some(asked_by) = group.asked_by.get_mut(image) {
            asked_by.push(place);
        }
    }
    groups
}

/// Whether an error says nothing about the policy: a deadlock, a lock that was not to be had, a
/// file that cannot be read, a fault of the server.
pub(super) fn transient(error: &Error) -> bool {
    let code = error.code().map(SqlState::code).unwrap_or_default();
    ["40", "55", "58", "XX"]
        .iter()
        .any(|class| code.starts_with(class))
}

/// Whether an error is the policy's (or the row's), or the connection's.
pub(super) fn trouble(error: &Error) -> Trouble {
    match error.code().map(SqlState::code) {
        Some("57014") => Trouble::Slow,
        // In a failed transaction, or the server is going away or out of something.
        Some(code)
            if code.starts_with("57") || code.starts_with("53") || code.starts_with("08") =>
        {
            Trouble::Broken(reason(error))
        }
        Some(_) => Trouble::Raised,
        None => Trouble::Broken(reason(error)),
    }
}

fn broken(error: Error) -> Trouble {
    Trouble::Broken(reason(&error))
}

/// PostgreSQL's error without its detail, which may hold row values.
pub(super) fn reason(error: &Error) -> String {
    error.as_db_error().map_or_else(
        || error.to_string(),
        |refused| format!("SQLSTATE {}", refused.code().code()),
    )
}

#[cfg(test)]
mod tests {
    use super::super::{Reply, Xid};
    use super::*;

    fn question(query: &str, image: &str) -> Question {
        Question {
            subject: Subject::Filter,
            xid: Xid(1),
            query: query.into(),
            role: "r".into(),
            claims: Claims::verified("{}".to_owned()),
            image: image.into(),
            deadline: Instant::now(),
            answer: Reply::new(|_| {}),
        }
    }

    #[test]
    fn large_rows_go_into_several_statements_and_every_question_has_its_place() {
        let large = |n: usize| format!("{n}{}", "x".repeat(MAX_GROUP * 2 / 3));
        let batch: Vec<Question> = (0..5)
            .map(|n| question("a", &large(n)))
            .chain([question("b", "y"), question("b", "y"), question("b", "z")])
            .collect();
        let groups = grouped(&batch);
        let sizes: Vec<usize> = groups.iter().map(|group| group.images.len()).collect();
        assert_eq!(sizes, [2, 2, 1, 2], "equal rows once");
        let mut places: Vec<usize> = groups
            .iter()
            .flat_map(|group| group.asked_by.iter().flatten().copied())
            .collect();
        places.sort_unstable();
        assert_eq!(places, (0..8).collect::<Vec<_>>());
    }
}

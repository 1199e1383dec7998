//! Filters' questions: each filter's under a savepoint and a time limit of its own, answered as
//! soon as it is known, so that one that is slow or fails costs the others little.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;
use tracing::warn;

use super::{Connection, Desk, MAX_UNDER_WAY, Trouble, broken, finished, sent, trouble};
use crate::policy::ask::Answer;
use crate::policy::ask::queue::{Pace, Queue, Turn};
use crate::retry::Backoff;

/// Which part of the time for an answer one turn of a filter may take.
const TURN_SHARE: u32 = 20;

/// Which part of it a quick one takes at most.
const QUICK_SHARE: u32 = 200;

/// A filter whose turn did not end in time rests for this many times as long as an answer may take.
const REST: u32 = 5;

/// How long turns may take.
#[derive(Clone, Copy)]
struct Times {
    turn: Duration,
    quick: Duration,
    rest: Duration,
}

impl Times {
    fn pace(self, took: Duration) -> Pace {
        if took <= self.quick {
            Pace::Quick
        } else {
            Pace::Slow
        }
    }

    fn rest(self) -> Pace {
        Pace::Resting(Instant::now() + self.rest)
    }
}

impl Turn {
    /// Answers every question that is left.
    fn give(&mut self, mut answer: impl FnMut(usize) -> Answer) {
        for (place, question) in self.questions.drain(..).enumerate() {
            question.answer.give(answer(place));
        }
    }

    fn served(&self, queue: &Queue, pace: Option<Pace>) {
        if let Some(key) = &self.key {
            queue.served(key, pace);
        }
    }

    fn query(&self) -> Option<&Arc<str>> {
        self.key.as_ref().map(|key| &key.query)
    }
}

impl Desk {
    /// Answers a batch of filters' turns.
    pub(in crate::policy::ask) async fn serve(&mut self, mut turns: Vec<Turn>, queue: &Queue) {
        let questions = turns.iter().flat_map(|turn| &turn.questions);
        let count = questions.clone().count();
        self.metrics.questions.inc_by(count as u64);
        let latest = questions.map(|question| question.deadline).max();
        let deadline = latest.unwrap_or_else(Instant::now);
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(200));
        loop {
            match timeout_at(deadline, self.round(&mut turns, queue)).await {
                Ok(Ok(())) => return,
                Ok(Err(Trouble::Broken(error))) => {
                    self.connection = None;
                    warn!(error, "questions to PostgreSQL failed");
                }
                Ok(Err(Trouble::Raised | Trouble::Slow)) => {
                    self.connection = None;
                    warn!("questions to PostgreSQL failed");
                }
                Err(_elapsed) => {
                    // What is under way on this connection is of no use any more.
                    self.connection = None;
                    turns.retain(|turn| !turn.questions.is_empty());
                    warn!(
                        filters = turns.len(),
                        "PostgreSQL did not answer in time, the rows in question are hidden"
                    );
                    for turn in &mut turns {
                        turn.give(|_| Answer::TimedOut);
                        turn.served(queue, None);
                    }
                    return;
                }
            }
            tokio::time::sleep(backoff.after_failure()).await;
        }
    }

    /// Answers what can be answered in one transaction. What is left in `turns` was not.
    async fn round(&mut self, turns: &mut Vec<Turn>, queue: &Queue) -> Result<(), Trouble> {
        let times = Times {
            turn: self.timeout / TURN_SHARE,
            quick: self.timeout / QUICK_SHARE,
            rest: self.timeout * REST,
        };
        let connection = self.connected().await?;
        let queries = turns.iter().filter_map(Turn::query);
        connection.prepare(queries).await?;
        connection
            .client
            .batch_execute(&format!(
                "begin; set local statement_timeout = {}; savepoint rowcast_turn",
                times.turn.as_millis().max(1)
            ))
            .await
            .map_err(broken)?;
        let outcome = connection.take_turns(turns, times, queue).await;
        turns.retain(|turn| !turn.questions.is_empty());
        let ended = connection.client.batch_execute("rollback").await;
        outcome.and(ended.map_err(broken))
    }
}

impl Connection {
    async fn take_turns(
        &self,
        turns: &mut [Turn],
        times: Times,
        queue: &Queue,
    ) -> Result<(), Trouble> {
        let raised = self.pipeline(turns, times, queue).await?;
        if raised.is_empty() {
            return Ok(());
        }
        let queries = raised.iter().filter_map(|place| turns.get(*place)?.query());
        let statements = self.learn(queries).await?;
        for place in raised {
            let Some(turn) = turns.get_mut(place) else {
                continue;
            };
            let statement = turn.query().and_then(|query| statements.get(query));
            let pace = match statement.and_then(Option::as_ref) {
                Some(statement) => self.one_by_one(turn, statement, times).await?,
                None => {
                    turn.give(|_| Answer::Failed);
                    Pace::Slow
                }
            };
            turn.served(queue, Some(pace));
        }
        Ok(())
    }

    /// Puts every turn as one statement and returns those that raised an error.
    async fn pipeline(
        &self,
        turns: &mut [Turn],
        times: Times,
        queue: &Queue,
    ) -> Result<Vec<usize>, Trouble> {
        // Parameters have to outlive the pipeline, which answers the questions.
        let asked: Vec<_> = turns
            .iter()
            .map(|turn| {
                let first = turn.questions.front();
                let who = first.map(|first| (Arc::clone(&first.role), first.claims.clone()));
                let images = turn.questions.iter().map(|asked| Arc::clone(&asked.image));
                let images: Vec<Arc<str>> = images.collect();
                let query = turn.query().map(Arc::clone);
                (query, who, images)
            })
            .collect();
        let parameters: Vec<_> = asked
            .iter()
            .map(|(query, who, images)| {
                let images: Vec<&str> = images.iter().map(|image| &**image).collect();
                let known = who.as_ref();
                let who = known.map(|(role, claims)| (&**role, claims.as_json()));
                (query, who.unwrap_or(("none", "{}")), images)
            })
            .collect();
        let mut sending = parameters.iter().enumerate().map(|(place, asked)| {
            let (query, (role, claims), images) = asked;
            let bytes: usize = images.iter().map(|image| image.len()).sum();
            let statement = query.as_ref().and_then(|query| self.prepared.get(query));
            let who: [&(dyn ToSql + Sync); 2] = [role, claims];
            let images: [&(dyn ToSql + Sync); 1] = [images];
            (place, bytes, statement, who, images)
        });
        let mut under_way = VecDeque::new();
        let (mut raised, mut bytes) = (Vec::new(), 0);
        let mut since = Instant::now();
        loop {
            // Each that was sent holds a copy of its rows.
            if bytes <= MAX_UNDER_WAY
                && let Some((place, size, statement, who, images)) = sending.next()
            {
                let Some(statement) = statement else {
                    raised.push(place);
                    continue;
                };
                // In this order, without waiting.
                let query = async move {
                    let switch = self.client.query(&self.become_client, &who);
                    let asked = self.client.query(statement, &images);
                    let back = self
                        .client
                        .batch_execute("rollback to savepoint rowcast_turn");
                    let (switch, asked, back) =
                        futures_util::future::join3(switch, asked, back).await;
                    back?;
                    Ok(switch.and(asked))
                };
                bytes += size;
                under_way.push_back((place, size, sent(query).await));
                continue;
            }
            let Some((place, size, query)) = under_way.pop_front() else {
                return Ok(raised);
            };
            bytes -= size;
            let rows = finished(query).await.map_err(broken)?;
            let took = since.elapsed();
            since = Instant::now();
            let Some(turn) = turns.get_mut(place) else {
                continue;
            };
            let pace = match rows.map_err(|error| trouble(&error)) {
                Ok(rows) => {
                    let mut answers = vec![Answer::Hidden; turn.questions.len()];
                    for row in rows {
                        let place = row.try_get::<_, i64>(0).ok();
                        let place = place.and_then(|place| usize::try_from(place).ok());
                        let place = place.and_then(|place| place.checked_sub(1));
                        if let Some(answer) = place.and_then(|place| answers.get_mut(place)) {
                            *answer = Answer::Visible;
                        }
                    }
                    turn.give(|place| answers.get(place).copied().unwrap_or(Answer::Failed));
                    times.pace(took)
                }
                Err(Trouble::Slow) => {
                    turn.give(|_| Answer::TimedOut);
                    times.rest()
                }
                Err(Trouble::Raised) => {
                    raised.push(place);
                    continue;
                }
                Err(other) => return Err(other),
            };
            turn.served(queue, Some(pace));
        }
    }

    /// One row's error is no other's.
    async fn one_by_one(
        &self,
        turn: &mut Turn,
        statement: &Statement,
        times: Times,
    ) -> Result<Pace, Trouble> {
        let began = Instant::now();
        while let Some(question) = turn.questions.front() {
            let who = (&*question.role, question.claims.as_json());
            let answer = if began.elapsed() < times.turn {
                self.answer_row(statement, who, &question.image).await?
            } else {
                Answer::TimedOut
            };
            if answer == Answer::TimedOut {
                turn.give(|_| answer);
                return Ok(times.rest());
            }
            if let Some(question) = turn.questions.pop_front() {
                question.answer.give(answer);
            }
        }
        Ok(times.pace(began.elapsed()))
    }
}

//! What is not compiled is asked: PostgreSQL itself evaluates the policies on the row as the
//! stream carries it, under the client's role and claims. So are filters that are not decided
//! natively, over connections of their own: clients choose those, and a slow one must not hold up
//! policies.
//!
//! Questions are gathered into batches. A batch is one transaction on one connection, sent as a
//! pipeline (one round trip), and always rolled back, so that a policy function with side effects
//! leaves none. A transaction can be decoded before it is visible: no question about policies, which
//! may look into tables, is asked before the snapshot shows the transaction that its row comes from.
//! It waits aside, until its deadline at most, and holds up no other.

mod desk;

pub mod image;

pub mod parts;

mod queue;

pub mod probe;

pub mod sitting;

use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::auth::Claims;
use crate::metrics::Metrics;
use crate::pg::Xid;
use crate::pg::connect::Database;
use desk::Desk;
pub use desk::Subject;
use probe::{Inquiry, Probe, Prober, Reading};
use queue::Queue;

/// Has the rest of a transaction run under a client's role (`$1`) and claims (`$2`), with row-level
/// security, which the relay's login may have off.
pub(crate) const BECOME_CLIENT: &str = "select pg_catalog.set_config('role', $1, true), \
                                        pg_catalog.set_config('request.jwt.claims', $2, true), \
                                        pg_catalog.set_config('row_security', 'on', true)";

/// Connections that questions are put over. A policy always goes over the same one, so that a slow
/// one delays at most a share of the others.
const LANES: usize = 4;

/// The same for filters.
const FILTER_LANES: usize = 2;

/// Filters that wait to be read; past this joins wait.
const PROBES: usize = 256;

/// How long a full lane may hold the router up; PostgreSQL keeps the WAL meanwhile. Where nothing
/// moves even then, the row is hidden and its clients are told.
const PATIENCE: Duration = Duration::from_secs(1);

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
    /// What the query is made of.
    pub subject: Subject,
    /// The transaction that the row comes from.
    pub xid: Xid,
    /// The policies, as made by [`image::query`]. Compared by its text.
    pub query: Arc<str>,
    /// The role.
    pub role: Arc<str>,
    /// The claims.
    pub claims: Claims,
    /// The row, as made by [`image::of`].
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
    policies: Arc<[Lane]>,
    filters: Arc<[Lane]>,
    values: mpsc::Sender<Inquiry>,
    /// Apart, because PostgreSQL can be slow to read one.
    patterns: mpsc::Sender<Inquiry>,
}

/// The askers' end of a lane. Without it the lane ends.
struct Lane {
    queue: Arc<Queue>,
    /// Until when nobody waits for this lane any more: it was full and nothing moved.
    stuck_until: Mutex<Option<Instant>>,
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// The answering end. Without it every question is answered with [`Answer::Failed`].
struct Outlet(Arc<Queue>);

impl Drop for Outlet {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl Asker {
    /// Has PostgreSQL read a filter; `None` where it could not be put.
    pub async fn read(&self, probe: Probe) -> Option<Reading> {
        let (done, reading) = oneshot::channel();
        let probes = if probe.condition.operator.takes_pattern() {
            &self.patterns
        } else {
            &self.values
        };
        probes.send((probe, done)).await.ok()?;
        reading.await.ok()?
    }

    /// Puts a question. Waits a moment where too many are open; where that does not help, the
    /// answer is [`Answer::TimedOut`]. So it is at once for a filter that rests or fills its lane:
    /// nobody waits for one client's filters.
    pub async fn ask(&self, question: Question) {
        let mut hasher = DefaultHasher::new();
        question.query.hash(&mut hasher);
        let lanes = match question.subject {
            Subject::Policies => &self.policies,
            Subject::Filter => &self.filters,
        };
        let place = usize::try_from(hasher.finish() % lanes.len() as u64).unwrap_or(0);
        let Some(lane) = lanes.get(place) else {
            return;
        };
        let now = Instant::now();
        let Some(mut question) = lane.queue.put(question, now) else {
            return;
        };
        if lane.stuck_until().is_some_and(|until| now < until) {
            question.answer.give(Answer::TimedOut);
            return;
        }
        let patience = now + PATIENCE;
        while tokio::time::timeout_at(patience, lane.queue.room())
            .await
            .is_ok()
        {
            match lane.queue.put(question, Instant::now()) {
                None => return,
                Some(back) => question = back,
            }
        }
        *lane
            .stuck_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(question.deadline.max(patience));
        question.answer.give(Answer::TimedOut);
    }
}

impl Lane {
    fn stuck_until(&self) -> Option<Instant> {
        *self
            .stuck_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes an asker and the task that answers; the task ends when every [`Asker`] is gone.
pub fn asker(
    database: Database,
    metrics: Arc<Metrics>,
    timeout: Duration,
) -> (Asker, impl Future<Output = ()> + Send) {
    let mut desks = Vec::with_capacity(LANES + FILTER_LANES);
    let mut lanes = |subject, count| -> Arc<[Lane]> {
        let lane = |_| {
            let queue = Arc::new(Queue::new(subject));
            let mut desk = Desk::new(database.clone(), Arc::clone(&metrics), timeout);
            let outlet = Outlet(Arc::clone(&queue));
            desks.push(async move {
                while let Some(turns) = outlet.0.next().await {
                    match subject {
                        Subject::Policies => {
                            let questions = turns.into_iter().flat_map(|turn| turn.questions);
                            let unseen = desk.settle(questions.collect()).await;
                            outlet.0.put_aside(unseen);
                        }
                        Subject::Filter => desk.serve(turns, &outlet.0).await,
                    }
                }
            });
            Lane {
                queue,
                stuck_until: Mutex::new(None),
            }
        };
        (0..count).map(lane).collect()
    };
    let policies = lanes(Subject::Policies, LANES);
    let filters = lanes(Subject::Filter, FILTER_LANES);
    let prober = || {
        let (probes, mut inquiries) = mpsc::channel(PROBES);
        let mut prober = Prober::new(database.clone());
        let reading = async move {
            while let Some(inquiry) = inquiries.recv().await {
                prober.serve(inquiry).await;
            }
        };
        (probes, reading)
    };
    let ((values, reading_values), (patterns, reading_patterns)) = (prober(), prober());
    let task = async move {
        let answering = futures_util::future::join_all(desks);
        futures_util::future::join3(answering, reading_values, reading_patterns).await;
    };
    let asker = Asker {
        policies,
        filters,
        values,
        patterns,
    };
    (asker, task)
}

//! One task owns the catalog reader: it looks once a second (less often where that would keep the
//! database busy), and answers the router in between.
//!
//! Whoever waits for a commit to become visible waits alone: the task takes a mark now and then,
//! reads once for all whom that helps, and looks on its own clock meanwhile.

use std::collections::BTreeSet;
use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::catalog::Catalog;
use super::check::checker::Checker;
use super::reader::{CatalogError, CatalogReader, Mark, Reading};
use super::rule;
use crate::change::Relation;
use crate::metrics::Metrics;
use crate::pg::Xid;

/// Requests that wait to be taken; past this whoever asks waits.
const QUEUE: usize = 256;

/// How often it is looked whether a commit is visible: first soon, since mostly it is a matter of
/// microseconds, then after half as long again as was waited for the one that came last.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(250));

/// A commit that is not visible for so long is named.
const LONG: Duration = Duration::from_secs(5);

/// How often it is said that the catalog still cannot be read.
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// After a reading on its own clock the task pauses for this many times as long as that took, however
/// short the interval is.
const SPARED: u32 = 9;

/// … before it reads for the sake of rows that nothing but a reading helps to judge, of which more may
/// come at any time: a fifth of the time at most. One reading serves all that has committed by then.
const SPARED_FOR_ROWS: u32 = 4;

/// A commit that is not visible after so long may not be for long: a synchronous standby does not answer.
/// Rows that need not wait for it do not.
const HANGING: Duration = Duration::from_millis(250);

/// The catalog as it is known, and a way to have it looked at.
#[derive(Debug, Clone)]
pub struct CatalogWatch {
    requests: mpsc::Sender<Request>,
    current: watch::Receiver<Reading>,
    delay: watch::Receiver<Option<Delay>>,
}

/// A commit that is in the stream and that what is behind it has waited for for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay {
    /// The transaction.
    pub xid: Xid,
    /// Since when it is waited for.
    pub since: Instant,
    /// Whether it is that the catalog cannot be read for somebody's lock; else it is not visible.
    pub locked: bool,
}

impl Delay {
    /// What is known of it, for operators.
    #[must_use]
    pub fn reason(&self) -> String {
        if self.locked {
            return format!(
                "the catalog could not be read for {} s: somebody holds an ACCESS EXCLUSIVE lock on a \
                 table that is published or that policies look into (an open or prepared transaction, \
                 VACUUM FULL; see pg_locks)",
                self.since.elapsed().as_secs()
            );
        }
        format!(
            "transaction {} is in the stream for {} s and not visible: probably a synchronous \
             standby does not answer (synchronous_standby_names)",
            self.xid,
            self.since.elapsed().as_secs()
        )
    }
}

#[derive(Debug)]
enum Request {
    After(After),
    Now(Now),
    Mark(oneshot::Sender<Arc<Mark>>),
}

#[derive(Debug)]
struct After {
    xid: Xid,
    relation: Arc<Relation>,
    since: Instant,
    /// Whether the database is to be spared, and it is enough that the catalog was read since, where the
    /// commit hangs.
    patient: bool,
    done: oneshot::Sender<()>,
}

impl After {
    /// Whether a catalog that is read now, after `mark` was taken, is what is waited for.
    fn is_helped(&self, mark: &Mark) -> bool {
        mark.is_after(self.xid, &self.relation) || self.patient && self.since.elapsed() >= HANGING
    }
}

#[derive(Debug)]
struct Now {
    /// Known is to be as well whether it exists.
    role: Option<String>,
    done: oneshot::Sender<Result<(), Arc<CatalogError>>>,
}

/// The catalog's task has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the catalog is not being read any more")]
pub struct Ended;

impl CatalogWatch {
    /// The newest catalog.
    #[must_use]
    pub fn current(&self) -> Arc<Catalog> {
        Arc::clone(&self.current.borrow().catalog)
    }

    /// The newest reading.
    #[must_use]
    pub fn reading(&self) -> Reading {
        self.current.borrow().clone()
    }

    /// The newest reading; marks its catalog as seen.
    pub fn take(&mut self) -> Reading {
        self.current.borrow_and_update().clone()
    }

    /// Waits for a catalog that was not seen yet. Cancel safe.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn changed(&mut self) -> Result<(), Ended> {
        self.current.changed().await.map_err(|_| Ended)
    }

    /// Whether [`CatalogWatch::current`] is at or after the commit of `xid`, whose stream describes
    /// a table as `relation`.
    #[must_use]
    pub fn is_after(&self, xid: Xid, relation: &Relation) -> bool {
        self.current.borrow().mark.is_after(xid, relation)
    }

    /// Whether [`CatalogWatch::current`] may hold what `xid` has done.
    #[must_use]
    pub fn shows(&self, xid: Xid) -> bool {
        self.current.borrow().mark.shows(xid)
    }

    /// Returns once [`CatalogWatch::is_after`] says so. That can take as long as a synchronous
    /// standby does not answer. Cancel safe.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn after(&self, xid: Xid, relation: &Arc<Relation>) -> Result<(), Ended> {
        if self.is_after(xid, relation) {
            return Ok(());
        }
        self.wait(xid, Arc::clone(relation), false).await
    }

    /// Returns once [`CatalogWatch::current`] shows `xid`, or is not older than this call where the
    /// commit of that hangs. Waits a little where the catalog was read just now. Cancel safe.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn behind(&self, xid: Xid) -> Result<(), Ended> {
        if self.shows(xid) {
            return Ok(());
        }
        self.wait(xid, Relation::none(), true).await
    }

    async fn wait(&self, xid: Xid, relation: Arc<Relation>, patient: bool) -> Result<(), Ended> {
        let (done, answer) = oneshot::channel();
        let request = After {
            xid,
            relation,
            since: Instant::now(),
            patient,
            done,
        };
        let sent = self.requests.send(Request::After(request)).await;
        sent.map_err(|_| Ended)?;
        answer.await.map_err(|_| Ended)
    }

    /// Returns once [`CatalogWatch::current`] is not older than this call and knows whether `role`
    /// exists.
    ///
    /// # Errors
    /// [`CatalogError`], or `None` where the task has ended.
    pub async fn role(&self, role: String) -> Result<(), Option<Arc<CatalogError>>> {
        self.read_now(Some(role)).await
    }

    /// Returns once [`CatalogWatch::current`] is not older than this call. Cancel safe.
    ///
    /// # Errors
    /// As of [`CatalogWatch::role`].
    pub async fn now(&self) -> Result<(), Option<Arc<CatalogError>>> {
        self.read_now(None).await
    }

    async fn read_now(&self, role: Option<String>) -> Result<(), Option<Arc<CatalogError>>> {
        let (done, answer) = oneshot::channel();
        let request = Request::Now(Now { role, done });
        self.requests.send(request).await.map_err(|_| None)?;
        answer.await.map_err(|_| None)?.map_err(Some)
    }

    /// What every snapshot shows from now on; `None` where PostgreSQL cannot be asked, or the task has
    /// ended.
    pub async fn mark(&self) -> Option<Arc<Mark>> {
        let (done, answer) = oneshot::channel();
        self.requests.send(Request::Mark(done)).await.ok()?;
        answer.await.ok()
    }

    /// What every snapshot shows since the last look.
    #[must_use]
    pub fn last_mark(&self) -> Arc<Mark> {
        Arc::clone(&self.current.borrow().mark)
    }

    /// Follows what is waited for for long.
    #[must_use]
    pub fn delay(&self) -> watch::Receiver<Option<Delay>> {
        self.delay.clone()
    }
}

/// Reads the catalog for the first time, and makes the task that keeps reading it. The task ends
/// when every [`CatalogWatch`] is gone. With `checks` policies are held against PostgreSQL, and those
/// that are found wrong are not decided natively.
///
/// # Errors
/// Where the first reading fails.
pub async fn watch(
    mut reader: CatalogReader,
    metrics: Arc<Metrics>,
    interval: Duration,
    checks: Option<Checker>,
) -> Result<(CatalogWatch, impl Future<Output = ()> + Send), CatalogError> {
    let mark = reader.mark().await?;
    let mut first = reader.read(mark).await?;
    let mut checks = Checks {
        base: Arc::clone(&first.catalog),
        shown: Arc::clone(&first.catalog),
        generation: 0,
        checker: checks,
    };
    checks.begin().await;
    first = checks.apply(first).await;
    name_open_tables(None, &first.catalog);
    rule::tell_of(None, &first.catalog);
    metrics.rules_refused.set(refused(&first.catalog));
    tell_of_marks(&first.catalog);
    let (publish, current) = watch::channel(first);
    let (tell, delay) = watch::channel(None);
    let (requests, incoming) = mpsc::channel(QUEUE);
    let desk = Desk {
        reader,
        metrics,
        interval,
        next_look: Instant::now() + interval,
        rested: Instant::now(),
        publish,
        tell,
        waiting: Vec::new(),
        asking: Vec::new(),
        marks: Vec::new(),
        failing: false,
        said: None,
        locked: false,
        checks,
    };
    let watch = CatalogWatch {
        requests,
        current,
        delay,
    };
    Ok((watch, desk.run(incoming)))
}

struct Desk {
    reader: CatalogReader,
    metrics: Arc<Metrics>,
    interval: Duration,
    next_look: Instant,
    /// When it may be read again for the sake of rows.
    rested: Instant,
    publish: watch::Sender<Reading>,
    tell: watch::Sender<Option<Delay>>,
    /// Those whose commit was not visible when it was last looked.
    waiting: Vec<After>,
    asking: Vec<Now>,
    marks: Vec<oneshot::Sender<Arc<Mark>>>,
    /// Whether the last attempt failed.
    failing: bool,
    /// When that was said last.
    said: Option<Instant>,
    /// … for somebody's lock.
    locked: bool,
    checks: Checks,
}

/// What is known of the catalog's policies from holding them against PostgreSQL.
struct Checks {
    checker: Option<Checker>,
    /// The catalog as it was read last.
    base: Arc<Catalog>,
    /// The same, without what is refused.
    shown: Arc<Catalog>,
    /// What was refused when that was made.
    generation: u64,
}

impl Checks {
    async fn begin(&self) {
        if let Some(checker) = &self.checker {
            checker.check(&self.base).await;
        }
    }

    /// Has a new catalog checked, and takes out of it what is refused.
    async fn apply(&mut self, reading: Reading) -> Reading {
        if !Arc::ptr_eq(&reading.catalog, &self.base) {
            self.base = Arc::clone(&reading.catalog);
            self.shown = Arc::clone(&reading.catalog);
            self.generation = 0;
            self.begin().await;
        }
        if let Some(known) = self.checker.as_ref().map(Checker::known)
            && known.generation != self.generation
        {
            let refuting = self.base.refuting(&known.refuted);
            self.generation = known.generation;
            self.shown = if Arc::ptr_eq(&refuting, &self.base) {
                refuting
            } else {
                // The stream does not tell of it.
                let era = refuting.era + (known.generation << 32);
                Arc::new(Catalog {
                    era,
                    ..Catalog::clone(&refuting)
                })
            };
        }
        Reading {
            catalog: Arc::clone(&self.shown),
            ..reading
        }
    }

    async fn changed(&mut self) {
        match &mut self.checker {
            Some(checker) => checker.changed().await,
            None => pending().await,
        }
    }
}

impl Desk {
    async fn run(mut self, mut incoming: mpsc::Receiver<Request>) {
        loop {
            let again = self.again();
            tokio::select! {
                request = incoming.recv() => match request {
                    Some(request) => self.take(request),
                    None => return,
                },
                () = sleep_until(self.next_look) => {}
                () = self.checks.changed() => {
                    let current = self.publish.borrow().clone();
                    let base = Arc::clone(&self.checks.base);
                    let reading = Reading { catalog: base, ..current };
                    let reading = self.checks.apply(reading).await;
                    self.publish(reading);
                    continue;
                }
                () = at(again) => {}
            }
            while let Ok(request) = incoming.try_recv() {
                self.take(request);
            }
            if !self.is_time() {
                continue;
            }
            let looked = self.look().await;
            let failed = looked.is_err();
            self.locked = looked.as_ref().is_err_and(CatalogError::is_locked);
            // Whoever is not answered is told by that.
            self.marks.clear();
            if let Err(error) = looked {
                let said = self.said.filter(|_| self.failing);
                if said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
                    self.said = Some(Instant::now());
                    warn!(error = %Chain(&error), "cannot read the catalog, what needs it waits");
                }
                if Instant::now() >= self.next_look {
                    self.next_look = Instant::now() + self.interval;
                }
                let error = Arc::new(error);
                for now in self.asking.drain(..) {
                    // Whoever asked may be gone: then nobody needs the answer.
                    let _gone = now.done.send(Err(Arc::clone(&error)));
                }
            }
            self.failing = failed;
            self.waiting.retain(|after| !after.done.is_closed());
            self.tell_of_delay();
        }
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::After(after) => self.waiting.push(after),
            Request::Now(now) => self.asking.push(now),
            Request::Mark(done) => self.marks.push(done),
        }
    }

    /// When to look again for those who wait.
    fn again(&self) -> Option<Instant> {
        let last = self.waiting.iter().map(|after| after.since).max()?;
        let (soonest, latest) = LOOK_AGAIN;
        let soonest = if self.failing { latest } else { soonest };
        let again = Instant::now() + (last.elapsed() / 2).clamp(soonest, latest);
        let patient = self.waiting.iter().all(|after| after.patient);
        Some(if patient {
            again.max(self.rested)
        } else {
            again
        })
    }

    /// Whether there is more to look for than what can wait until the database has rested.
    fn is_time(&self) -> bool {
        let now = Instant::now();
        now >= self.next_look.min(self.rested)
            || !self.asking.is_empty()
            || !self.marks.is_empty()
            || self.waiting.iter().any(|after| !after.patient)
    }

    /// Reads the catalog where it is time, or where that helps somebody, and answers.
    async fn look(&mut self) -> Result<(), CatalogError> {
        let mark = self.reader.mark().await?;
        if !self.marks.is_empty() {
            let mark = Arc::new(mark.clone());
            for done in self.marks.drain(..) {
                let _gone = done.send(Arc::clone(&mark));
            }
        }
        let now = Instant::now();
        let rested = now >= self.rested;
        let helped = |after: &After| (rested || !after.patient) && after.is_helped(&mark);
        let due = now >= self.next_look;
        if !due && self.asking.is_empty() && !self.waiting.iter().any(helped) {
            self.metrics.catalog_wait.set(self.longest(&mark));
            return Ok(());
        }
        let mut added: Vec<&str> = Vec::new();
        for role in self.asking.iter().filter_map(|now| now.role.as_ref()) {
            if self.reader.add(role) {
                added.push(role);
            }
        }
        let read = self.reader.read(mark).await;
        for role in added {
            let known = |reading: &Reading| reading.catalog.roles.contains_key(role);
            if !read.as_ref().is_ok_and(known) {
                self.reader.remove(role);
            }
        }
        let reading = self.checks.apply(read?).await;
        let mark = Arc::clone(&reading.mark);
        if due {
            let interval = self.interval.max(reading.took * SPARED);
            self.next_look = Instant::now() + interval;
            self.metrics.catalog_interval.set(interval.as_secs_f64());
        }
        self.rested = Instant::now() + reading.took * SPARED_FOR_ROWS;
        self.metrics.catalog_look.set(reading.took.as_secs_f64());
        self.metrics.catalog_wait.set(self.longest(&mark));
        self.publish(reading);
        for now in self.asking.drain(..) {
            let _gone = now.done.send(Ok(()));
        }
        let helped = |after: &mut After| after.is_helped(&mark);
        for after in self.waiting.extract_if(.., helped) {
            let _gone = after.done.send(());
        }
        Ok(())
    }

    /// For how many seconds somebody waits for a commit that `mark` does not show.
    fn longest(&self, mark: &Mark) -> f64 {
        let hidden = self.waiting.iter().filter(|after| !mark.shows(after.xid));
        let first = hidden.map(|after| after.since).min();
        first.map_or(0.0, |since| since.elapsed().as_secs_f64())
    }

    fn publish(&self, reading: Reading) {
        self.publish.send_if_modified(|current| {
            let new = !Arc::ptr_eq(&current.catalog, &reading.catalog);
            if new {
                info!(tables = reading.catalog.tables.len(), "the catalog changed");
                name_open_tables(Some(&current.catalog), &reading.catalog);
                rule::tell_of(Some(&current.catalog), &reading.catalog);
                self.metrics.rules_refused.set(refused(&reading.catalog));
                if reading.catalog.marked != current.catalog.marked {
                    tell_of_marks(&reading.catalog);
                }
                self.metrics.catalog_reloads.inc();
            }
            *current = reading;
            new
        });
    }

    /// Says once of a commit that it is waited for for long, and that it is not any more.
    fn tell_of_delay(&self) {
        let known = *self.tell.borrow();
        let first = self.waiting.iter().min_by_key(|after| after.since);
        // What else keeps the catalog from being read is said already.
        let sayable = !self.failing || self.locked;
        let delay = first.filter(|after| sayable && after.since.elapsed() >= LONG);
        let delay = delay.map(|after| Delay {
            xid: after.xid,
            since: after.since,
            locked: self.locked,
        });
        if delay == known {
            return;
        }
        if let Some(over) = known {
            info!(
                xid = %over.xid,
                seconds = over.since.elapsed().as_secs(),
                "nothing waits for the transaction any more"
            );
        }
        if let Some(delay) = &delay {
            warn!(xid = %delay.xid, reason = delay.reason(), "changes wait for a commit");
        }
        self.tell.send_replace(delay);
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => pending().await,
    }
}

/// How many rules are not in force.
fn refused(catalog: &Catalog) -> i64 {
    i64::try_from(catalog.unruled.len()).unwrap_or(i64::MAX)
}

/// Says whether the stream tells of changed rules, and what is lost where it does not.
fn tell_of_marks(catalog: &Catalog) {
    if catalog.marked {
        info!("an event trigger tells where policies, rights, functions and columns change");
    } else {
        info!(
            "no event trigger tells where policies, rights, functions and columns change: they are \
             looked for before rows are judged, and rows that commit around a change may be hidden, \
             with a resync (rowcast setup --only ddl makes the trigger)"
        );
    }
}

/// Says which published tables have no row-level security: whoever may SELECT them sees every row
/// of them. That may be meant, so it is said once, not refused.
fn name_open_tables(before: Option<&Catalog>, catalog: &Catalog) {
    let open = |catalog: &Catalog| -> BTreeSet<String> {
        let tables = catalog.tables.values();
        tables
            .filter(|table| table.published && !table.row_security)
            .filter(|table| !table.rules.iter().any(|rule| rule.roles.is_none()))
            .map(|table| table.sql_name())
            .collect()
    };
    let known = before.map(open).unwrap_or_default();
    for table in open(catalog).difference(&known) {
        warn!(
            table,
            "this table is published without row-level security: whoever may select from it sees \
             every change of it that neither a rule nor require keeps from them"
        );
    }
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

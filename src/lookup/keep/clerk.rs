//! The task beside the mirrors: looks at the catalog, has tables published, and copies them.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::arriving::Arriving;
use super::catalog::{Found, Verdict, Way, but_partitions, look, partitions};
use super::copy::{Copying, Failure, Source};
use super::kept::Kept;
use super::reason::{Cause, Refusal};
use super::verified::{Asked, Verified};
use super::{Settings, State};
use crate::log::Log;
use crate::lookup::Wanted;
use crate::metrics::Metrics;
use crate::pg::connect::Database;
use crate::pg::refusal::{Refusal as Refused, with_causes};
use crate::pg::snapshot::Snapshot;
use crate::pg::{Oid, Xid, quote_identifier};
use crate::retry::Backoff;
use crate::source::lookups::Wishing;

/// After this long without a fault what went wrong before does not count any more.
const SETTLED: Duration = Duration::from_secs(60);

/// How long adding a table may wait for its lock: whoever comes behind it waits as long, and it is less
/// than it takes PostgreSQL to end somebody else's transaction for a deadlock.
const LOCK_TIMEOUT: &str = "set lock_timeout = '300ms'";

/// That a table is to be mirrored. A mirror that was given up is ordered again, by another number.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) number: u64,
    pub(super) wanted: Arc<Wanted>,
}

/// How long a look waits for a commit to become visible that is in the stream, and how often it is
/// looked whether it is. Past this whoever waits asks again.
const VISIBLE: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What was copied of a table, in force or about to be.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// The order that it was copied for.
    pub(super) order: u64,
    pub(super) wanted: Arc<Wanted>,
    /// What the catalog said of the table.
    pub(super) identity: Arc<str>,
    /// Its partitions, where it has some.
    pub(super) members: Option<Arc<str>>,
    /// How much memory it holds.
    pub(super) bytes: usize,
}

impl From<&Kept> for Held {
    fn from(kept: &Kept) -> Self {
        Self {
            order: kept.order,
            wanted: Arc::clone(&kept.followed.wanted),
            identity: Arc::clone(&kept.identity),
            members: kept.members.clone(),
            bytes: kept.followed.bytes,
        }
    }
}

/// All orders, and what is in force.
#[derive(Debug, Default, Clone)]
pub(super) struct Orders(pub(super) HashMap<Oid, (Arc<Order>, Option<Held>)>);

/// What becomes of an order.
#[derive(Debug)]
pub(super) enum Report {
    /// How far it is.
    State {
        table: Oid,
        order: u64,
        name: Arc<str>,
        state: State,
    },
    /// It is copied.
    Copied {
        table: Oid,
        order: u64,
        arriving: Box<Arriving>,
    },
    /// What was copied is not true any more.
    Blind {
        table: Oid,
        order: u64,
        refusal: Refusal,
        /// Where nothing but its partitions is otherwise: what the catalog says of the table now.
        found: Option<Arc<str>>,
    },
}

/// What is known of an order.
struct Task {
    order: Arc<Order>,
    /// What was copied for it, once that was handed over.
    delivered: Option<Held>,
    /// The state that was reported last.
    reported: Option<State>,
    backoff: Backoff,
    not_before: Option<Instant>,
    since: Instant,
    /// Whether a checkpoint may still serve: only before the first copy.
    fresh: bool,
}

/// A copy that ended.
struct Done {
    table: Oid,
    order: u64,
    copied: Result<Arriving, Failure>,
}

pub(super) struct Clerk {
    database: Database,
    source: Source,
    settings: Settings,
    orders: watch::Receiver<Orders>,
    reports: mpsc::Sender<Report>,
    asked: watch::Receiver<Asked>,
    verified: watch::Sender<Verified>,
    tasks: HashMap<Oid, Task>,
    client: Option<Client>,
    /// The table that is being copied, in a task of its own: a look at the catalog may wait for a
    /// lock that waits for the copy.
    copying: Option<(Oid, AbortOnDropHandle<Done>)>,
}

impl Clerk {
    pub(super) fn new(
        (database, log, stream, metrics): (Database, Arc<dyn Log>, Wishing, Arc<Metrics>),
        settings: Settings,
        (orders, reports): (watch::Receiver<Orders>, mpsc::Sender<Report>),
        (asked, verified): (watch::Receiver<Asked>, watch::Sender<Verified>),
        place: Arc<AtomicU64>,
    ) -> Self {
        Self {
            source: Source {
                database: database.clone(),
                log,
                stream,
                metrics,
                place,
                settings: settings.clone(),
            },
            database,
            settings,
            orders,
            reports,
            asked,
            verified,
            tasks: HashMap::new(),
            client: None,
            copying: None,
        }
    }

    /// Runs until the mirrors' keeper is dropped.
    pub(super) async fn run(mut self) {
        let mut next = Instant::now();
        loop {
            if Instant::now() >= next {
                let again = self.pass().await;
                let pause = if again { Duration::ZERO } else { self.pause() };
                next = Instant::now() + pause;
            }
            tokio::select! {
                changed = self.orders.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    next = Instant::now();
                }
                asked = self.asked.changed() => {
                    if asked.is_err() {
                        return;
                    }
                    if !self.look_at_partitions().await {
                        next = Instant::now();
                    }
                }
                done = ended(&mut self.copying) => {
                    let copied = self.copying.take();
                    // One that panicked is tried again.
                    let done = done.or_else(|| {
                        let (table, _) = copied?;
                        let order = self.tasks.get(&table)?.order.number;
                        let name = format!("oid {table}").into();
                        let copied = Err(Failure::Again(name, "the copy broke off".to_owned()));
                        Some(Done { table, order, copied })
                    });
                    if let Some(done) = done
                        && self.done(done).await.is_err()
                    {
                        return;
                    }
                    next = Instant::now();
                }
                () = tokio::time::sleep_until(next.into()), if !self.tasks.is_empty() => {}
            }
        }
    }

    /// How long nothing is to be done, where nothing happens.
    fn pause(&self) -> Duration {
        let waiting = self.tasks.values().filter(|task| task.delivered.is_none());
        let soonest = waiting.filter_map(|task| task.not_before).min();
        let until = soonest.map(|at| at.saturating_duration_since(Instant::now()));
        // What was due before waits for another copy, which rings.
        let until = until.filter(|until| !until.is_zero());
        until.map_or(self.settings.look_every, |until| {
            until.min(self.settings.look_every)
        })
    }

    /// Looks at everything once; whether there is something to be done at once.
    async fn pass(&mut self) -> bool {
        self.take_orders();
        if self.tasks.is_empty() {
            self.client = None;
            return false;
        }
        match self.look().await {
            Ok(again) => again,
            Err(problem) => {
                self.client = None;
                debug!(problem, "the catalog cannot be asked about lookups");
                let refusal = Cause::Unreachable.because(problem);
                let waiting: Vec<Oid> = self.undelivered();
                for oid in waiting {
                    let name = format!("oid {oid}").into();
                    self.report(oid, name, State::Refused(refusal.clone()))
                        .await;
                }
                false
            }
        }
    }

    fn undelivered(&self) -> Vec<Oid> {
        let tasks = self.tasks.iter();
        let waiting = tasks.filter(|(_, task)| task.delivered.is_none());
        waiting.map(|(oid, _)| *oid).collect()
    }

    fn take_orders(&mut self) {
        let orders = self.orders.borrow_and_update().clone();
        self.tasks.retain(|oid, _| orders.0.contains_key(oid));
        for (oid, (order, _)) in orders.0 {
            match self.tasks.get_mut(&oid) {
                Some(task) if task.order.number == order.number => {}
                Some(task) => {
                    if task.since.elapsed() >= SETTLED {
                        task.backoff.reset();
                    }
                    // Given up, not asked for otherwise.
                    if *task.order.wanted == *order.wanted && task.delivered.is_some() {
                        task.not_before = Some(Instant::now() + task.backoff.after_failure());
                    }
                    task.order = order;
                    task.delivered = None;
                    task.reported = None;
                    task.since = Instant::now();
                    if self
                        .copying
                        .as_ref()
                        .is_some_and(|(copied, _)| *copied == oid)
                    {
                        self.copying = None;
                    }
                }
                None => {
                    let task = Task {
                        order,
                        delivered: None,
                        reported: None,
                        backoff: Backoff::new(Duration::from_millis(200), SETTLED),
                        not_before: None,
                        since: Instant::now(),
                        fresh: true,
                    };
                    self.tasks.insert(oid, task);
                }
            }
        }
        let copied = self.copying.as_ref().map(|(oid, _)| *oid);
        if copied.is_some_and(|oid| !self.tasks.contains_key(&oid)) {
            self.copying = None;
        }
    }

    async fn look(&mut self) -> Result<bool, String> {
        let tables: Vec<Oid> = self.tasks.keys().copied().collect();
        let asked = self.asked.borrow_and_update().xid;
        let client = session(&mut self.client, &self.database).await?;
        // Before it is looked: that shows no less.
        let snapshot = seen(client, asked).await?;
        let found = look(client, &tables, &self.settings).await;
        let found = found.map_err(|error| words(&error))?;
        self.verify(snapshot, &found).await;
        let mut unpublished = Vec::new();
        for oid in tables {
            let Some(table) = found.get(&oid) else {
                let refusal = Cause::Kind.because("the table does not exist");
                self.refuse(oid, format!("oid {oid}").into(), refusal).await;
                continue;
            };
            let Some(task) = self.tasks.get(&oid) else {
                continue;
            };
            match table.judge(&task.order.wanted, &self.settings) {
                Verdict::Fits(way) => self.fits(oid, table, way).await,
                Verdict::Unpublished if task.delivered.is_some() => {}
                Verdict::Unpublished => unpublished.push(oid),
                Verdict::Refused(refusal) => {
                    if table.harms(&refusal, &self.settings) {
                        self.withdraw(table).await;
                    }
                    self.refuse(oid, table.name(), refusal).await;
                }
            }
        }
        let mut published = false;
        for oid in unpublished {
            if let Some(table) = found.get(&oid) {
                published |= self.publish(oid, table).await?;
            }
        }
        Ok(published)
    }

    /// All that was copied: mirrors in force, and copies that were handed over and are about to be.
    fn copied(&self) -> Vec<(Oid, Held)> {
        let orders = self.orders.borrow();
        let held = orders.0.iter();
        let held = held.filter_map(|(oid, (_, held))| Some((*oid, held.clone()?)));
        let mut copied: Vec<(Oid, Held)> = held.collect();
        for (oid, task) in &self.tasks {
            if let Some(delivered) = &task.delivered
                && copied.iter().all(|(_, held)| held.order != delivered.order)
            {
                copied.push((*oid, delivered.clone()));
            }
        }
        copied
    }

    /// Holds all that was copied against what the catalog says now.
    async fn verify(&mut self, snapshot: Snapshot, found: &HashMap<Oid, Found>) {
        let mut orders = Vec::new();
        for (table, held) in self.copied() {
            let order = held.order;
            match still(found.get(&table), &held, &self.settings) {
                Ok(()) => orders.push(order),
                Err((refusal, found)) => {
                    let report = Report::Blind {
                        table,
                        order,
                        refusal,
                        found,
                    };
                    let _gone = self.reports.send(report).await;
                }
            }
        }
        let verified = Verified::new(snapshot, orders, true);
        self.verified.send_replace(verified);
    }

    /// Looks whether a partition was emptied of what was copied, where no more is asked for; whether
    /// that was all that was to be found.
    async fn look_at_partitions(&mut self) -> bool {
        let Asked { xid, ddl } = *self.asked.borrow_and_update();
        let mut copied = self.copied();
        copied.retain(|(_, held)| held.members.is_some());
        if ddl || copied.is_empty() {
            return false;
        }
        let tables: Vec<Oid> = copied.iter().map(|(oid, _)| *oid).collect();
        let looked = async {
            let client = session(&mut self.client, &self.database).await?;
            let snapshot = seen(client, xid).await?;
            let found = partitions(client, &tables).await;
            Ok::<_, String>((snapshot, found.map_err(|error| words(&error))?))
        };
        let Ok((snapshot, found)) = looked.await else {
            // Whatever stands against it is found by looking at everything.
            return false;
        };
        let same = |(oid, held): &(Oid, Held)| found.get(oid) == held.members.as_ref();
        if !copied.iter().all(same) {
            return false;
        }
        let orders = copied.iter().map(|(_, held)| held.order).collect();
        let verified = Verified::new(snapshot, orders, false);
        self.verified.send_replace(verified);
        true
    }

    /// The table can be mirrored: it is copied, unless it was.
    async fn fits(&mut self, oid: Oid, table: &Found, way: Way) {
        let Some(task) = self.tasks.get_mut(&oid) else {
            return;
        };
        let number = task.order.number;
        if task.delivered.is_some() {
            return;
        }
        let early = task
            .not_before
            .is_some_and(|not_before| Instant::now() < not_before);
        if early || self.copying.is_some() {
            return;
        }
        let others = |(other, (_, held)): (&Oid, &(Arc<Order>, Option<Held>))| {
            held.as_ref()
                .filter(|_| *other != oid)
                .map(|held| held.bytes)
        };
        let used: usize = self.orders.borrow().0.iter().filter_map(others).sum();
        let copying = Copying {
            table: oid,
            order: number,
            name: table.name(),
            wanted: Arc::clone(&task.order.wanted),
            way,
            most: self.settings.max_bytes.saturating_sub(used),
            checkpoint: if std::mem::take(&mut task.fresh) {
                self.settings.checkpoint.clone()
            } else {
                None
            },
        };
        let source = self.source.clone();
        let order = number;
        let work = async move {
            let copied = source.bring(copying).await;
            Done {
                table: oid,
                order,
                copied,
            }
        };
        self.copying = Some((oid, AbortOnDropHandle::new(tokio::spawn(work))));
        self.report(oid, table.name(), State::Copying).await;
    }

    async fn done(&mut self, done: Done) -> Result<(), mpsc::error::SendError<Report>> {
        let Done {
            table,
            order,
            copied,
        } = done;
        let Some(task) = self.tasks.get_mut(&table) else {
            return Ok(());
        };
        if task.order.number != order {
            return Ok(());
        }
        match copied {
            Ok(arriving) => {
                task.delivered = Some(Held::from(&arriving.kept));
                task.since = Instant::now();
                let arriving = Box::new(arriving);
                self.reports
                    .send(Report::Copied {
                        table,
                        order,
                        arriving,
                    })
                    .await
            }
            Err(failure) => {
                let wait = task.backoff.after_failure();
                task.not_before = Some(Instant::now() + wait);
                let (name, refusal) = match failure {
                    Failure::Refused(name, refusal) => (name, refusal),
                    Failure::TooLarge(name) => {
                        let most = self.settings.max_bytes;
                        (name, self.settings.purpose.too_large(most))
                    }
                    Failure::Again(name, problem) => {
                        debug!(table = &*name, problem, "a lookup could not be copied yet");
                        (name, Cause::Unreachable.because(problem))
                    }
                };
                self.report(table, name, State::Refused(refusal)).await;
                Ok(())
            }
        }
    }

    /// The table cannot be mirrored; where it is, that ends.
    async fn refuse(&mut self, oid: Oid, name: Arc<str>, refusal: Refusal) {
        let Some(task) = self.tasks.get_mut(&oid) else {
            return;
        };
        if self
            .copying
            .as_ref()
            .is_some_and(|(copied, _)| *copied == oid)
        {
            self.copying = None;
        }
        // What was handed over was reported to be blind, and is ordered anew.
        if task.delivered.is_some() {
            return;
        }
        self.report(oid, name, State::Refused(refusal)).await;
    }

    async fn report(&mut self, table: Oid, name: Arc<str>, state: State) {
        let Some(task) = self.tasks.get_mut(&table) else {
            return;
        };
        if task.reported.as_ref() == Some(&state) {
            return;
        }
        task.reported = Some(state.clone());
        let order = task.order.number;
        let report = Report::State {
            table,
            order,
            name,
            state,
        };
        // Where nobody takes it, this ends soon.
        let _gone = self.reports.send(report).await;
    }

    /// Puts a table into the lookups' publication, which is made where it is missing; whether that
    /// was done.
    async fn publish(&mut self, oid: Oid, table: &Found) -> Result<bool, String> {
        let publication = quote_identifier(&self.settings.lookup_publication);
        let mut statements = Vec::new();
        if !table.second_exists(&self.settings) {
            statements.push(format!(
                "create publication {publication} with (publish_via_partition_root = true)"
            ));
            statements.push(format!(
                "comment on publication {publication} is 'Made by rowcast: the tables that \
                 policies look into.'"
            ));
        }
        statements.push(table.addition(&self.settings));
        let client = session(&mut self.client, &self.database).await?;
        for statement in &statements {
            let Err(error) = client.batch_execute(statement).await else {
                continue;
            };
            let code = error.code().map(tokio_postgres::error::SqlState::code);
            match code {
                // There by now: another relay's doing, or this one's for another table.
                Some("42710") => {}
                Some("42501") => {
                    let refusal = table.unpublished(&self.settings);
                    self.refuse(oid, table.name(), refusal).await;
                    return Ok(false);
                }
                Some(_) if !table.is_owned() => {
                    let refusal = table.unpublished(&self.settings);
                    self.refuse(oid, table.name(), refusal).await;
                    return Ok(false);
                }
                Some(_) => {
                    let refusal = Cause::Publication.because(words(&error));
                    self.refuse(oid, table.name(), refusal).await;
                    return Ok(false);
                }
                None => return Err(words(&error)),
            }
        }
        info!(
            table = &*table.name,
            publication = self.settings.lookup_publication,
            "a lookup was published for the relay"
        );
        Ok(true)
    }

    /// Takes a table out of the lookups' publication, where it does harm.
    async fn withdraw(&mut self, table: &Found) {
        let statement = format!(
            "alter publication {} drop table {}",
            quote_identifier(&self.settings.lookup_publication),
            table.name
        );
        let Ok(client) = session(&mut self.client, &self.database).await else {
            return;
        };
        match client.batch_execute(&statement).await {
            Ok(()) => warn!(
                table = &*table.name,
                "a lookup was taken out of the publication"
            ),
            Err(error) => debug!(problem = words(&error), "a lookup cannot be withdrawn"),
        }
    }
}

/// Why what was copied of a table is not true any more, where it is not; and where that is its
/// partitions only, what the catalog says of it.
fn still(
    table: Option<&Found>,
    held: &Held,
    settings: &Settings,
) -> Result<(), (Refusal, Option<Arc<str>>)> {
    let Some(table) = table else {
        return Err((Cause::Kind.because("the table does not exist"), None));
    };
    match table.judge(&held.wanted, settings) {
        Verdict::Fits(way) if way.identity == held.identity => Ok(()),
        Verdict::Fits(way) => {
            let refusal = Cause::Changed.because(format!(
                "{} or how it is published was changed in a way that the stream does not tell",
                table.name
            ));
            let was = but_partitions(&held.identity, held.members.as_ref());
            let is = but_partitions(&way.identity, way.members.as_ref());
            Err((
                refusal,
                (was.is_some() && was == is).then_some(way.identity),
            ))
        }
        Verdict::Unpublished => {
            let why = format!("{} was taken out of its publication", table.name);
            Err((Cause::Publication.because(why), None))
        }
        Verdict::Refused(refusal) => Err((refusal, None)),
    }
}

/// What can be seen, once that shows a transaction or it takes too long.
async fn seen(client: &Client, xid: Xid) -> Result<Snapshot, String> {
    let deadline = Instant::now() + VISIBLE;
    loop {
        let row = client
            .query_one(
                "select pg_catalog.pg_current_snapshot()::pg_catalog.text",
                &[],
            )
            .await;
        let text: Result<String, _> = row.and_then(|row| row.try_get(0));
        let text = text.map_err(|error| words(&error))?;
        let snapshot: Snapshot = text.parse().map_err(|_| "not a snapshot".to_owned())?;
        if snapshot.shows(xid) || Instant::now() >= deadline {
            return Ok(snapshot);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The session that looks; opened where there is none.
async fn session<'a>(
    client: &'a mut Option<Client>,
    database: &Database,
) -> Result<&'a Client, String> {
    let usable = client.take().filter(|client| !client.is_closed());
    let usable = match usable {
        Some(usable) => usable,
        None => {
            let opened = database.connect("rowcast lookups").await;
            let opened = opened.map_err(|error| error.to_string())?;
            let set = opened.batch_execute(LOCK_TIMEOUT).await;
            set.map_err(|error| words(&error))?;
            opened
        }
    };
    Ok(client.insert(usable))
}

async fn ended(copying: &mut Option<(Oid, AbortOnDropHandle<Done>)>) -> Option<Done> {
    match copying {
        Some((_, copying)) => copying.await.ok(),
        None => pending().await,
    }
}

/// What PostgreSQL says, without what may quote rows.
pub(super) fn words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        // A data exception (class 22) may quote a row's values.
        Some(said) if said.code().code().starts_with("22") => {
            format!(
                "PostgreSQL refuses a value (SQLSTATE {})",
                said.code().code()
            )
        }
        Some(said) => Refused::from(said).to_string(),
        None => with_causes(error),
    }
}

//! Keeps the mirrors of lookup tables true: copies them, and applies what the log brings, one whole
//! transaction after the other.
//!
//! Two halves. [`Keeping`] belongs to whoever follows the log in order: it applies each transaction
//! and holds the state as of the place behind it. The task that [`keep`] returns with it asks the
//! catalog, has tables published and copied ([`clerk`](self)), and hands the copies over.
//!
//! Whatever would blind a mirror takes it out of [`Lookups`]: what depends on it is asked of
//! PostgreSQL, as if there had never been one, until it has been copied anew.

mod arriving;

mod before;

mod catalog;

mod checkpoint;

mod clerk;

mod copy;

mod follow;

mod kept;

mod purpose;

mod reason;

mod status;

mod verified;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use self::arriving::Arriving;
pub use self::before::Before;
pub use self::catalog::examine;
use self::checkpoint::{Checkpoint, Writing};
use self::clerk::{Clerk, Held, Order, Orders, Report};
pub(crate) use self::follow::least_weight;
use self::kept::Kept;
pub use self::purpose::Purpose;
pub use self::reason::{Cause, Refusal};
pub use self::status::{State, Status};
use self::verified::{Asked, Verified};
use super::{Looked, Lookups, Wanted};
use crate::log::{Entry, Log, Offset};
use crate::metrics::Metrics;
use crate::metrics::mirrors::Mirrors;
use crate::pg::Oid;
use crate::pg::connect::Database;
use crate::source::lookups::Wishing;

/// Rows of one table that a transaction may change before it counts as having changed all of it.
const DELTAS: usize = 16_384;

/// Copies that may wait to be taken over.
const REPORTS: usize = 16;

/// What a transaction did to a lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// A row was inserted (nothing before), deleted (nothing after) or changed in what is mirrored.
    Row {
        /// The table.
        table: Oid,
        /// The row before, in the order of the mirror's columns.
        before: Option<Looked>,
        /// The row after.
        after: Option<Looked>,
    },
    /// Any of its rows may have changed: very many, or a mirror that could not take the transaction and
    /// is gone.
    All {
        /// The table.
        table: Oid,
    },
}

impl Delta {
    /// The table.
    #[must_use]
    pub const fn table(&self) -> Oid {
        match self {
            Self::Row { table, .. } | Self::All { table } => *table,
        }
    }
}

/// What one whole transaction did to the lookups.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The state before it. The state behind it is [`Keeping::lookups`].
    pub before: Lookups,
    /// In the transaction's order; of a table that is [`Delta::All`] there may be rows besides.
    pub deltas: Vec<Delta>,
}

/// What [`Keeping::next`] brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The table is mirrored from here on: rows are judged by it, nobody has to be told.
    Ready(Oid),
    /// The mirror is gone; what read it is asked of PostgreSQL from here on.
    Gone(Oid),
    /// The table cannot be mirrored as it is wanted.
    Refused(Oid),
}

/// What mirrors may cost, and where they come from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What they are kept for.
    pub purpose: Purpose,
    /// The publication whose tables can be subscribed to.
    pub publication: String,
    /// The lookups' own publication.
    pub lookup_publication: String,
    /// The most memory of all mirrors together, in bytes.
    pub max_bytes: usize,
    /// How often the catalog is looked at.
    pub look_every: Duration,
    /// Where the checkpoint is kept; `None` keeps none.
    pub checkpoint: Option<PathBuf>,
    /// How often it is written.
    pub checkpoint_every: Duration,
}

/// What mirrors are made of.
#[derive(Debug)]
pub struct Foundation {
    /// Where the tables are.
    pub database: Database,
    /// What happens to them.
    pub log: Arc<dyn Log>,
    /// Whether the log has what happens to lookups.
    pub stream: Wishing,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// All mirrors as of one place in the log, and what becomes of them. Belongs to one task, which
/// follows the log.
pub struct Keeping {
    log: Arc<dyn Log>,
    stream: Wishing,
    metrics: Arc<Metrics>,
    settings: Settings,
    lookups: Lookups,
    tables: HashMap<Oid, Table>,
    /// Where the state is true: behind everything before.
    place: Offset,
    /// The same for the task that copies.
    published: Arc<AtomicU64>,
    orders: watch::Sender<Orders>,
    reports: mpsc::Receiver<Report>,
    /// The transaction that the task is to look behind.
    asked: watch::Sender<Asked>,
    verified: watch::Receiver<Verified>,
    /// The transaction that has not been taken as a whole.
    open: Option<Applied>,
    /// What the stream was seen to carry last.
    covered: Option<u64>,
    /// [`Keeping::take_found`].
    found: Vec<Before>,
    writing: Writing,
    number: u64,
}

/// A lookup.
#[derive(Debug)]
struct Table {
    order: Arc<Order>,
    name: Option<Arc<str>>,
    state: State,
    last_fault: Option<Refusal>,
    mirror: Option<Kept>,
    /// [`Keeping::complete_from`].
    complete_from: Option<Offset>,
    /// What the catalog said of it when its mirror was given up, where only its partitions were
    /// others.
    regrouped: Option<Arc<str>>,
    /// [`Keeping::goes_on`].
    goes_on: bool,
    arriving: Option<Arriving>,
}

/// Makes the mirrors' keeper, which begins at `place`, and the task that looks and copies for it,
/// which ends when the keeper is dropped.
pub fn keep(
    foundation: Foundation,
    settings: Settings,
    place: Offset,
) -> (Keeping, impl Future<Output = ()> + Send + use<>) {
    let Foundation {
        database,
        log,
        stream,
        metrics,
    } = foundation;
    let (orders, ordered) = watch::channel(Orders::default());
    let (report, reports) = mpsc::channel(REPORTS);
    let (asked, asking) = watch::channel(Asked::default());
    let (verify, verified) = watch::channel(Verified::default());
    let published = Arc::new(AtomicU64::new(place.0));
    let clerk = Clerk::new(
        (
            database,
            Arc::clone(&log),
            stream.clone(),
            Arc::clone(&metrics),
        ),
        settings.clone(),
        (ordered, report),
        (asking, verify),
        Arc::clone(&published),
    );
    let keeping = Keeping {
        log,
        metrics,
        writing: Writing::new(
            settings.checkpoint.clone(),
            settings.checkpoint_every,
            stream.clone(),
        ),
        stream,
        covered: None,
        found: Vec::new(),
        settings,
        lookups: Lookups::default(),
        tables: HashMap::new(),
        place,
        published,
        orders,
        reports,
        asked,
        verified,
        open: None,
        number: 0,
    };
    (keeping, clerk.run())
}

impl Keeping {
    /// The state behind the last transaction that was taken.
    #[must_use]
    pub const fn lookups(&self) -> &Lookups {
        &self.lookups
    }

    /// What has to be mirrored from now on: all that the policies in force read. Tables that are not
    /// named any more are forgotten.
    pub fn want(&mut self, wanted: &[Wanted]) {
        let mut union: HashMap<Oid, Wanted> = HashMap::new();
        for one in wanted {
            union
                .entry(one.table)
                .and_modify(|all| all.merge(one))
                .or_insert_with(|| one.clone());
        }
        let gone: Vec<Oid> = self
            .tables
            .keys()
            .filter(|table| !union.contains_key(table))
            .copied()
            .collect();
        let mut changed = !gone.is_empty();
        for table in gone {
            self.tables.remove(&table);
            self.lookups.remove(table);
        }
        for (oid, wanted) in union {
            let known = self.tables.get(&oid);
            if known.is_some_and(|known| *known.order.wanted == wanted) {
                continue;
            }
            changed = true;
            self.number += 1;
            let order = Arc::new(Order {
                number: self.number,
                wanted: Arc::new(wanted),
            });
            match self.tables.get_mut(&oid) {
                Some(table) => {
                    // What it has goes on serving those who know its columns, unless they mean
                    // something else now.
                    let mirror = table.mirror.as_ref();
                    let stale = mirror.is_some_and(|kept| {
                        kept.followed.wanted.columns.iter().any(|column| {
                            let now = &order.wanted.columns;
                            now.iter()
                                .any(|one| one.name == column.name && one != column)
                        })
                    });
                    if stale {
                        table.mirror = None;
                        self.lookups.remove(oid);
                    }
                    table.order = order;
                    table.arriving = None;
                    table.state = State::Waiting;
                }
                None => {
                    let table = Table {
                        order,
                        name: None,
                        state: State::Waiting,
                        last_fault: None,
                        mirror: None,
                        complete_from: None,
                        regrouped: None,
                        goes_on: false,
                        arriving: None,
                    };
                    self.tables.insert(oid, table);
                }
            }
        }
        if changed {
            self.send_orders();
            self.measure();
        }
    }

    /// Takes one whole transaction, the next in the log. To be called for every transaction, in the
    /// log's order, before any of its rows is judged.
    pub fn transaction(&mut self, entries: &[Arc<Entry>]) -> Applied {
        let mut applied = None;
        for entry in entries {
            applied = self.entry(entry).or(applied);
        }
        // Entries that do not end a transaction are part of one that goes on.
        applied.unwrap_or_else(|| Applied {
            before: self.lookups.clone(),
            deltas: Vec::new(),
        })
    }

    /// Takes the next entry of the log; what its transaction did, when that ends with it. For
    /// transactions that are too large to be held as a whole. [`Keeping::lookups`] means nothing
    /// before that.
    pub fn entry(&mut self, entry: &Entry) -> Option<Applied> {
        self.promote(|exact| entry.batch.commit_lsn >= exact);
        let mut open = self.open.take().unwrap_or_else(|| Applied {
            before: self.lookups.clone(),
            deltas: Vec::new(),
        });
        for oid in self.broken_off() {
            self.give_up(oid, broken_off(), Some(&mut open.deltas));
        }
        for oid in self.touched(entry) {
            let Some(table) = self.tables.get_mut(&oid) else {
                continue;
            };
            let Some(kept) = &mut table.mirror else {
                continue;
            };
            match kept.take(entry, oid, &mut open.deltas) {
                Ok(false) => {}
                Ok(true) => self.lookups.put(oid, kept.followed.mirror.clone()),
                Err(refusal) => self.give_up(oid, refusal, Some(&mut open.deltas)),
            }
        }
        self.take_arriving(entry);
        self.place = entry.end();
        if !entry.batch.last {
            self.open = Some(open);
            return None;
        }
        self.published.store(self.place.0, Ordering::Release);
        if !open.deltas.is_empty() {
            self.counts().changes.inc_by(open.deltas.len() as u64);
            self.bound(&mut open.deltas);
            self.measure();
        }
        Some(open)
    }

    /// The log has no way on from where the state is: another history began, or there is a gap. All
    /// mirrors are dropped, and copied anew; the next transaction is the one at `next`.
    pub fn lost(&mut self, next: Offset) {
        self.place = next;
        self.published.store(next.0, Ordering::Release);
        self.open = None;
        let tables: Vec<Oid> = self.tables.keys().copied().collect();
        for table in tables {
            let refusal = Cause::Lost.because("changes were lost, also of this table perhaps");
            self.give_up(table, refusal, None);
        }
    }

    /// Waits until a mirror can be taken over, or has to go, and does so. To be called whenever the
    /// task that owns this has nothing else to do, and now and then while it has. Cancel safe.
    pub async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.settle() {
                return event;
            }
            self.checkpoint_if_due();
            let waits = self.tables.values().any(|table| table.arriving.is_some());
            let pause = if waits {
                arriving::LOOK_AGAIN
            } else {
                self.settings.look_every
            };
            let place = self.place;
            let reading = arriving::read_on(&self.log, &mut self.tables, place);
            tokio::select! {
                biased;
                report = self.reports.recv() => match report {
                    Some(report) => {
                        if let Some(event) = self.reported(report) {
                            return event;
                        }
                    }
                    // The task that copies has ended, and so has the process soon.
                    None => std::future::pending().await,
                },
                read = reading => if let Some((oid, refusal)) = read {
                    self.give_up_arriving(oid, refusal);
                },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// From where on the log has every change of a table that the lookups' publication has; `None`
    /// where its mirror was taken over from the process before, which had followed it.
    #[must_use]
    pub fn complete_from(&self, table: Oid) -> Option<Offset> {
        self.tables.get(&table)?.complete_from
    }

    /// Whether between a table's mirror and the one before nothing happened to the table without a word
    /// in the stream, but what the one before was given up for: then what the two differ in, and what
    /// the stream says in between, is all that became of it.
    #[must_use]
    pub fn goes_on(&self, table: Oid) -> bool {
        self.tables.get(&table).is_some_and(|table| table.goes_on)
    }

    /// What is known of each lookup, by table.
    #[must_use]
    pub fn status(&self) -> Vec<Status> {
        let mut all: Vec<Status> = self
            .tables
            .iter()
            .map(|(oid, table)| Status {
                table: *oid,
                name: table.name.clone(),
                state: table.state.clone(),
                last_fault: table.last_fault.clone(),
                rows: table
                    .mirror
                    .as_ref()
                    .map_or(0, |kept| kept.followed.mirror.len()),
                bytes: table.mirror.as_ref().map_or(0, |kept| kept.followed.bytes),
            })
            .collect();
        all.sort_by_key(|status| status.table);
        all
    }

    /// Writes the checkpoint a last time, where there is to be one. For an orderly end, after the
    /// last transaction.
    pub async fn stop(&mut self) {
        let checkpoint = self.checkpoint();
        self.writing.finish(checkpoint).await;
    }

    fn checkpoint(&self) -> Checkpoint {
        let kept = self.tables.iter().filter_map(|(oid, table)| {
            let kept = table.mirror.as_ref()?;
            Some((*oid, kept.clone()))
        });
        Checkpoint {
            epoch: self.log.epoch(),
            offset: self.place,
            tables: kept.collect(),
        }
    }

    fn checkpoint_if_due(&mut self) {
        if self.open.is_none() && self.writing.is_due(self.place) {
            let checkpoint = self.checkpoint();
            self.writing.start(checkpoint);
        }
    }

    /// What has become true or untrue without another entry.
    fn settle(&mut self) -> Option<Event> {
        if let Some(oid) = self.broken_off().first().copied() {
            self.give_up(oid, broken_off(), None);
            return Some(Event::Gone(oid));
        }
        // Before it is looked whether there is more: what comes meanwhile lies behind.
        let passed = self.log.appended();
        if self.log.range().end <= self.place {
            return self.promote(|exact| passed >= exact).map(Event::Ready);
        }
        None
    }

    /// Puts copies in force that are as of this place; one of them.
    fn promote(&mut self, passed: impl Fn(crate::pg::Lsn) -> bool) -> Option<Oid> {
        if self.open.is_some() {
            return None;
        }
        let covered = self.stream.now().stretch;
        let place = self.place;
        let ready = |table: &Table| {
            let arriving = table.arriving.as_ref();
            arriving.is_some_and(|one| one.is_at(place) && passed(one.exact_from))
        };
        let oids: Vec<Oid> = self
            .tables
            .iter()
            .filter(|(_, table)| ready(table))
            .map(|(oid, _)| *oid)
            .collect();
        let mut promoted = None;
        for oid in oids {
            let Some(table) = self.tables.get_mut(&oid) else {
                continue;
            };
            let Some(arriving) = table.arriving.take() else {
                continue;
            };
            let complete_from = arriving.complete_from();
            let (kept, found) = (arriving.kept, arriving.found);
            // The subscribers' publication has had it all the time.
            table.complete_from = complete_from.filter(|_| kept.stretch.is_some());
            let regrouped = table.regrouped.take();
            table.goes_on = regrouped.is_some_and(|found| found == kept.identity);
            if kept.stretch.is_some() && kept.stretch != covered {
                self.give_up_arriving(oid, broken_off());
                continue;
            }
            self.found.extend(found);
            self.lookups.put(oid, kept.followed.mirror.clone());
            info!(
                table = table.name.as_deref().unwrap_or_default(),
                rows = kept.followed.mirror.len(),
                bytes = kept.followed.bytes,
                "{}",
                self.settings.purpose.ready()
            );
            table.mirror = Some(kept);
            table.state = State::Ready;
            promoted = Some(oid);
        }
        if promoted.is_some() {
            self.writing.touch();
            self.send_orders();
            self.measure();
        }
        promoted
    }

    fn reported(&mut self, report: Report) -> Option<Event> {
        match report {
            Report::State {
                table,
                order,
                name,
                state,
            } => {
                let without = self.settings.purpose.without();
                let known = self.of_order(table, order)?;
                known.name = Some(name);
                if let State::Refused(refusal) = &state
                    && known.state != state
                {
                    warn!(
                        table = known.name.as_deref(),
                        reason = %refusal,
                        "{without}"
                    );
                    self.counts().refused(refusal.cause.as_str());
                }
                let refused = matches!(state, State::Refused(_));
                if let Some(known) = self.of_order(table, order) {
                    known.state = state;
                }
                self.measure();
                refused.then_some(Event::Refused(table))
            }
            Report::Copied {
                table,
                order,
                arriving,
            } => {
                if let Some(known) = self.of_order(table, order) {
                    known.state = State::CatchingUp;
                    known.arriving = Some(*arriving);
                    self.measure();
                }
                None
            }
            Report::Blind {
                table,
                order,
                refusal,
                found,
            } => {
                let kept = self.tables.get(&table)?.mirror.as_ref();
                if kept.is_some_and(|kept| kept.order == order) {
                    self.give_up(table, refusal, None);
                    if let Some(known) = self.tables.get_mut(&table) {
                        known.regrouped = found;
                    }
                    return Some(Event::Gone(table));
                }
                if self.of_order(table, order).is_some() {
                    self.give_up_arriving(table, refusal);
                }
                None
            }
        }
    }

    fn of_order(&mut self, table: Oid, order: u64) -> Option<&mut Table> {
        let known = self.tables.get_mut(&table)?;
        (known.order.number == order).then_some(known)
    }

    /// The tables that an entry touches, of those that are mirrored.
    fn touched(&self, entry: &Entry) -> SmallVec<[Oid; 4]> {
        let mut touched = SmallVec::new();
        if self.tables.is_empty() {
            return touched;
        }
        let mut last = None;
        for change in &entry.batch.changes {
            let oid = change.relation.oid;
            // A transaction's rows come in runs.
            if last != Some(oid) {
                last = Some(oid);
                if self.tables.contains_key(&oid) && !touched.contains(&oid) {
                    touched.push(oid);
                }
            }
        }
        touched
    }

    /// The mirrors that live on a stretch of the stream that has ended.
    fn broken_off(&mut self) -> Vec<Oid> {
        let covered = self.stream.now().stretch;
        if covered == self.covered {
            return Vec::new();
        }
        let broken: Vec<Oid> = self
            .tables
            .iter()
            .filter(|(_, table)| {
                let stretch = table.mirror.as_ref().and_then(|kept| kept.stretch);
                stretch.is_some() && stretch != covered
            })
            .map(|(oid, _)| *oid)
            .collect();
        if broken.is_empty() {
            self.covered = covered;
        }
        broken
    }

    fn take_arriving(&mut self, entry: &Entry) {
        let failed: Vec<(Oid, Refusal)> = self
            .tables
            .iter_mut()
            .filter_map(|(oid, table)| {
                let taken = table.arriving.as_mut()?.take(entry, *oid);
                taken.err().map(|refusal| (*oid, refusal))
            })
            .collect();
        for (oid, refusal) in failed {
            self.give_up_arriving(oid, refusal);
        }
    }

    /// A mirror is of no use any more: it is ordered anew.
    fn give_up(&mut self, oid: Oid, refusal: Refusal, deltas: Option<&mut Vec<Delta>>) {
        let Some(table) = self.tables.get_mut(&oid) else {
            return;
        };
        self.lookups.remove(oid);
        if table.mirror.take().is_some()
            && let Some(deltas) = deltas
        {
            deltas.push(Delta::All { table: oid });
        }
        self.give_up_arriving(oid, refusal);
    }

    /// A copy on its way is of no use: it is ordered anew. What is in force stays.
    fn give_up_arriving(&mut self, oid: Oid, refusal: Refusal) {
        let counts = self.settings.purpose.counts(&self.metrics);
        let Some(table) = self.tables.get_mut(&oid) else {
            return;
        };
        table.arriving = None;
        table.regrouped = None;
        counts.refused(refusal.cause.as_str());
        warn!(
            table = table.name.as_deref().unwrap_or_default(),
            reason = %refusal,
            "{}", self.settings.purpose.given_up()
        );
        table.last_fault = Some(refusal);
        table.state = State::Waiting;
        self.number += 1;
        table.order = Arc::new(Order {
            number: self.number,
            wanted: Arc::clone(&table.order.wanted),
        });
        self.writing.touch();
        self.send_orders();
        self.measure();
    }

    /// Gives up what has grown past what may be, the largest first.
    fn bound(&mut self, deltas: &mut Vec<Delta>) {
        loop {
            let bytes = |table: &Table| table.mirror.as_ref().map_or(0, |kept| kept.followed.bytes);
            let total: usize = self.tables.values().map(bytes).sum();
            if total <= self.settings.max_bytes {
                return;
            }
            let largest = self.tables.iter().max_by_key(|(_, table)| bytes(table));
            let Some(oid) = largest.map(|(oid, _)| *oid) else {
                return;
            };
            let refusal = self.settings.purpose.too_large(self.settings.max_bytes);
            self.give_up(oid, refusal, Some(deltas));
        }
    }

    fn send_orders(&self) {
        let held = |table: &Table| table.mirror.as_ref().map(Held::from);
        let orders = self
            .tables
            .iter()
            .map(|(oid, table)| (*oid, (Arc::clone(&table.order), held(table))));
        self.orders.send_replace(Orders(orders.collect()));
    }

    fn measure(&self) {
        let (mut rows, mut bytes) = (0, 0);
        let mut states = [0_i64; State::ALL.len()];
        for table in self.tables.values() {
            if let Some(kept) = &table.mirror {
                rows += kept.followed.mirror.len();
                bytes += kept.followed.bytes;
            }
            let place = State::ALL
                .iter()
                .position(|one| *one == table.state.as_str());
            if let Some(count) = place.and_then(|place| states.get_mut(place)) {
                *count += 1;
            }
        }
        let counts = self.counts();
        counts.rows.set(i64::try_from(rows).unwrap_or(i64::MAX));
        counts.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        for (state, count) in State::ALL.into_iter().zip(states) {
            counts.in_state(state, count);
        }
    }

    fn counts(&self) -> &Mirrors {
        self.settings.purpose.counts(&self.metrics)
    }
}

fn broken_off() -> Refusal {
    Cause::Stream.because("the stream went on without the lookups' publication")
}

impl std::fmt::Debug for Keeping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeping")
            .field("place", &self.place)
            .field("lookups", &self.lookups)
            .finish_non_exhaustive()
    }
}

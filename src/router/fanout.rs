//! The task that follows the log and hands each change to whom it belongs.

mod channels;

mod complete;

mod delivery;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::complete::Ahead;
use super::allowance::{Allowance, Held};
use super::group::{Group, MemberKey};
use super::layout::Layout;
use super::resolve::Readings;
use super::{
    ChannelId, Command, DeleteWithoutIdentity, Join, Outbox, Refusal, Resync, Router, SessionId,
};
use crate::auth::Principal;
use crate::change::{ColumnSet, Kind, Lost, Relation};
use crate::encode::Shape;
use crate::log::{Entry, Log, LogError, Offset};
use crate::metrics::{HiddenReason, Metrics};
use crate::pg::{Lsn, Oid};
use crate::policy::access::Access;
use crate::policy::ask::Asker;
use crate::policy::ask::probe::{Probe, Reading};
use crate::policy::catalog::{Catalog, Table};
use crate::policy::generated::Computer;
use crate::policy::watch::CatalogWatch;
use crate::subscription::Wanted;

/// Commands that wait for the router; past this sessions wait.
const COMMANDS: usize = 1024;

/// Entries read from the log before commands get their turn.
const ENTRIES: usize = 64;

/// Commands taken before the log gets its turn.
const COMMANDS_AT_ONCE: usize = 256;

/// What the router is told by configuration.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Tables without row-level security are refused.
    pub require_rls: bool,
    /// What becomes of deletes that cannot be judged.
    pub delete_without_identity: DeleteWithoutIdentity,
    /// How long a question may take.
    pub ask_timeout: Duration,
    /// A change that is larger goes out without its large values, in bytes.
    pub max_record_bytes: usize,
    /// Different filters of a socket or user that PostgreSQL is asked about; 0 for as many as there
    /// are.
    pub max_asked_filters: usize,
}

/// What the router stands on.
pub struct Foundation {
    /// What it follows.
    pub log: Arc<dyn Log>,
    /// What decides.
    pub catalog: CatalogWatch,
    /// Who is asked where nothing decides natively.
    pub asker: Asker,
    /// Who computes generated columns.
    pub computer: Computer,
    /// What it counts.
    pub metrics: Arc<Metrics>,
}

/// The router's task.
pub struct Fanout {
    log: Arc<dyn Log>,
    watch: CatalogWatch,
    asker: Asker,
    computer: Computer,
    metrics: Arc<Metrics>,
    settings: Settings,
    commands: mpsc::Receiver<Command>,
    catalog: Arc<Catalog>,
    /// Commits before this happened when nobody could have subscribed yet.
    started_at: Lsn,
    next: Offset,
    readings: Readings,
    access: HashMap<(Oid, Arc<str>), Arc<Access>>,
    tables: HashMap<Oid, Watched>,
    /// Doubts about tables that nobody watches at the moment: who comes next must not forget them.
    doubts: HashMap<Oid, Doubt>,
    /// The newest versions of tables that nobody watches: one that is new here may be of a table
    /// that is new, and meant by whoever named none.
    passed: HashMap<Oid, u64>,
    sessions: HashMap<SessionId, HashMap<ChannelId, Channel>>,
    allowance: Allowance,
    parked: FuturesUnordered<BoxFuture<'static, Unparked>>,
}

/// A table with subscribers.
struct Watched {
    table: Arc<Table>,
    groups: HashMap<Arc<str>, Group>,
    /// The newest version of the relation for which the catalog was read after it.
    verified: u64,
    /// Set where the catalog changed at an unknown place in the stream.
    doubt: Option<Doubt>,
    /// Whether the catalog's columns are those of the verified version.
    fits: bool,
    /// The verified version.
    described: Option<Arc<Relation>>,
    /// How its rows become what they are, where they are not that already.
    layout: Option<Arc<Layout>>,
    /// Whether columns were computed for the verified version by what was known of the table then,
    /// or would have been when it was watched first.
    computed: bool,
    shapes: HashMap<(u64, ColumnSet), Arc<Shape>>,
}

/// Rows up to `until`, described by a version not newer than `version`, may fall under the old
/// rules or the new ones: they are hidden.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    until: Lsn,
    version: u64,
}

struct Channel {
    principal: Arc<Principal>,
    outbox: Arc<Outbox>,
    wanted: Arc<[Wanted]>,
    /// What of it is not in force.
    refused: Vec<Refusal>,
    /// What PostgreSQL told of its filters when it joined. It stays so: `now` is then.
    readings: Readings,
    members: Vec<(Oid, MemberKey)>,
    /// The filters that PostgreSQL is asked about.
    asked: Held,
    /// Counts the joins of this channel, so that an older one that comes late is dropped.
    joining: u64,
    bindings: i64,
}

/// A join whose question to PostgreSQL was answered.
struct Unparked {
    join: Join,
    joining: u64,
    role_read: bool,
    /// What it was told before.
    told: Readings,
    readings: Vec<(Probe, Reading)>,
    /// Whether there was an answer at all.
    answered: bool,
}

/// Makes a router and the task behind it.
#[must_use]
pub fn router(foundation: Foundation, settings: Settings) -> (Router, Fanout) {
    let (router, incoming) = Router::channel(COMMANDS);
    let Foundation {
        log,
        catalog: mut watch,
        asker,
        computer,
        metrics,
    } = foundation;
    let catalog = watch.take();
    let fanout = Fanout {
        next: log.range().end,
        log,
        started_at: catalog.read_at,
        watch,
        asker,
        computer,
        metrics,
        settings,
        commands: incoming,
        catalog,
        readings: Readings::default(),
        access: HashMap::new(),
        tables: HashMap::new(),
        doubts: HashMap::new(),
        passed: HashMap::new(),
        sessions: HashMap::new(),
        allowance: Allowance::new(settings.max_asked_filters),
        parked: FuturesUnordered::new(),
    };
    (router, fanout)
}

impl Fanout {
    /// Follows the log until `stop`, then hands out what the log still holds and ends.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tail = self.log.tail();
        loop {
            let behind = *tail.borrow_and_update() > self.next;
            if behind {
                for _ in 0..COMMANDS_AT_ONCE {
                    let Ok(command) = self.commands.try_recv() else {
                        break;
                    };
                    self.command(command);
                }
                if self.follow().await.is_break() {
                    break;
                }
                // Neither of these may wait for a stream that never pauses.
                while let Some(Some(unparked)) = self.parked.next().now_or_never() {
                    self.unpark(unparked);
                }
                if self.watch.changed().now_or_never().is_some() {
                    self.adopt(None);
                }
                // Everything else on this thread gets its turn between two runs.
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = tail.changed() => if changed.is_err() { break },
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                Some(unparked) = self.parked.next(), if !self.parked.is_empty() => {
                    self.unpark(unparked);
                }
                changed = self.watch.changed() => match changed {
                    Ok(()) => self.adopt(None),
                    Err(_ended) => break,
                },
            }
        }
    }

    async fn follow(&mut self) -> ControlFlow<()> {
        match self.log.read(self.next, ENTRIES).await {
            Ok(entries) => {
                for entry in entries {
                    self.next = entry.end();
                    self.entry(&entry).await;
                }
            }
            Err(LogError::Trimmed { oldest }) => {
                warn!(%oldest, "the router fell behind the log, everybody is told to read again");
                self.next = oldest;
                self.expel_everybody(Resync::Trimmed);
            }
            Err(LogError::Lost { next } | LogError::Ahead { next }) => {
                self.next = next;
                self.expel_everybody(Resync::SlotLost);
            }
            Err(LogError::Stopped) => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    async fn entry(&mut self, entry: &Entry) {
        if entry.batch.commit_lsn <= self.started_at {
            return;
        }
        let mut ahead = Ahead::default();
        for (offset, change) in entry.changes() {
            let oid = change.relation.oid;
            if !self.tables.contains_key(&oid) && self.may_be_new(&change.relation) {
                if self.watch.after(entry.batch.xid, oid).await.is_err() {
                    return;
                }
                self.adopt(Some(oid));
            }
            let Some(watched) = self.tables.get(&oid) else {
                continue;
            };
            let lost = match &change.kind {
                Kind::Truncate => Some(Resync::Truncated),
                Kind::Lost(Lost::Undecodable) => Some(Resync::Undecodable),
                Kind::Lost(Lost::TooLarge) => Some(Resync::TooLarge),
                Kind::Insert { .. } | Kind::Update { .. } | Kind::Delete { .. } => None,
            };
            if let Some(reason) = lost {
                let hidden = match reason {
                    Resync::Undecodable => Some(HiddenReason::Undecodable),
                    Resync::TooLarge => Some(HiddenReason::TooLarge),
                    _ => None,
                };
                if let Some(hidden) = hidden {
                    let watching = watched.groups.values().map(|group| group.members().count());
                    self.metrics.hidden(hidden, watching.sum::<usize>() as u64);
                }
                self.expel_table(oid, reason);
                continue;
            }
            if change.relation.version > watched.verified {
                // PostgreSQL had reason to describe the table anew: nothing of it goes out before
                // the catalog is known as of here.
                if self.watch.after(entry.batch.xid, oid).await.is_err() {
                    return;
                }
                self.adopt(Some(oid));
                self.verify(oid, &change.relation, entry);
            }
            let change = self.complete(entry, offset, change, &mut ahead).await;
            self.change(entry, offset, &change).await;
        }
    }

    /// Whether a table that nobody watches is seen for the first time in this version, while
    /// somebody wants all tables: the catalog in hand may not know it yet.
    fn may_be_new(&mut self, relation: &Relation) -> bool {
        let passed = self.passed.entry(relation.oid).or_default();
        if *passed >= relation.version {
            return false;
        }
        *passed = relation.version;
        let mut channels = self.sessions.values().flat_map(HashMap::values);
        channels.any(|channel| channel.wanted.iter().any(Wanted::is_open))
    }

    fn verify(&mut self, oid: Oid, relation: &Arc<Relation>, entry: &Entry) {
        let Some(watched) = self.tables.get_mut(&oid) else {
            return;
        };
        let (xid, version) = (entry.batch.xid, relation.version);
        let layout = Layout::of(relation, &watched.table).map(Arc::new);
        let computed = layout
            .as_ref()
            .is_some_and(|layout| layout.query().is_some());
        if watched.table.written_after(xid) {
            // The catalog is already past this row: between the two the rules may have changed
            // once more.
            watched.doubt = Some(Doubt {
                until: self.catalog.read_at,
                version,
            });
        } else if watched.table.written_by(xid) && (computed || watched.computed) {
            // The description does not tell whether this row lies before or behind what its own
            // transaction did to the columns that are computed.
            watched.doubt = Some(Doubt {
                until: entry.batch.commit_lsn,
                version,
            });
        }
        watched.verified = version;
        watched.shapes.clear();
        watched.described = Some(Arc::clone(relation));
        watched.layout = layout;
        watched.computed = computed;
        // In the table's order: columns that took each other's names since are others.
        let mut known = watched.table.columns.iter();
        watched.fits = relation.columns.iter().all(|column| {
            known.any(|known| *known.name == *column.name && known.type_oid == column.type_oid)
        });
    }
}

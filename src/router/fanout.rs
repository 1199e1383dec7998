//! The task that follows the log and hands each change to whom it belongs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use smallvec::SmallVec;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::group::{Binding, Group, Match, MemberKey, Sight, Subject};
use super::outbox::Verdict;
use super::resolve::{Literals, Resolved, Rulebook, Unread, Unresolved, refused, resolve};
use super::{
    ChannelId, Command, DeleteWithoutIdentity, Event, Join, Outbox, Refusal, Resync, Router,
    SessionId,
};
use crate::auth::Principal;
use crate::change::{Change, ColumnSet, Kind, Lost, OldRow, Relation, Row, Value};
use crate::encode::{OldRecord, Shape};
use crate::log::{Entry, Log, LogError, Offset};
use crate::metrics::{HiddenReason, Metrics};
use crate::pg::{Lsn, Oid};
use crate::policy::access::{Access, Rules};
use crate::policy::ask::{Answer, Asker, Question, Reply, image};
use crate::policy::catalog::{Catalog, Table};
use crate::policy::reader::Literal;
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
}

/// What the router stands on.
pub struct Foundation {
    /// What it follows.
    pub log: Arc<dyn Log>,
    /// What decides.
    pub catalog: CatalogWatch,
    /// Who is asked where nothing decides natively.
    pub asker: Asker,
    /// What it counts.
    pub metrics: Arc<Metrics>,
}

/// The router's task.
pub struct Fanout {
    log: Arc<dyn Log>,
    watch: CatalogWatch,
    asker: Asker,
    metrics: Arc<Metrics>,
    settings: Settings,
    commands: mpsc::Receiver<Command>,
    catalog: Arc<Catalog>,
    /// Commits before this happened when nobody could have subscribed yet.
    started_at: Lsn,
    next: Offset,
    literals: Literals,
    access: HashMap<(Oid, Arc<str>), Arc<Access>>,
    tables: HashMap<Oid, Watched>,
    sessions: HashMap<SessionId, HashMap<ChannelId, Channel>>,
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
    members: Vec<(Oid, MemberKey)>,
    /// Counts the joins of this channel, so that an older one that comes late is dropped.
    joining: u64,
    bindings: i64,
}

/// A join whose question to PostgreSQL was answered.
struct Unparked {
    join: Join,
    joining: u64,
    role_read: bool,
    literals: Vec<(Unread, Literal)>,
    trouble: Option<String>,
}

/// Makes a router and the task behind it.
#[must_use]
pub fn router(foundation: Foundation, settings: Settings) -> (Router, Fanout) {
    let (router, incoming) = Router::channel(COMMANDS);
    let Foundation { log, catalog: mut watch, asker, metrics } = foundation;
    let catalog = watch.take();
    let fanout = Fanout {
        next: log.range().end,
        log,
        started_at: catalog.read_at,
        watch,
        asker,
        metrics,
        settings,
        commands: incoming,
        catalog,
        literals: Literals::default(),
        access: HashMap::new(),
        tables: HashMap::new(),
        sessions: HashMap::new(),
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
                    let Ok(command) = self.commands.try_recv() else { break };
                    self.command(command);
                }
                self.follow().await;
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

    async fn follow(&mut self) {
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
            Err(LogError::Ahead { next }) => {
                self.next = next;
                self.expel_everybody(Resync::SlotLost);
            }
        }
    }

    async fn entry(&mut self, entry: &Entry) {
        if entry.batch.commit_lsn <= self.started_at {
            return;
        }
        for (offset, change) in entry.changes() {
            let oid = change.relation.oid;
            let Some(watched) = self.tables.get(&oid) else { continue };
            let lost = match &change.kind {
                Kind::Truncate => Some(Resync::Truncated),
                Kind::Lost(Lost::Undecodable) => Some(Resync::Undecodable),
                Kind::Lost(Lost::TooLarge) => Some(Resync::TooLarge),
                Kind::Insert { .. } | Kind::Update { .. } | Kind::Delete { .. } => None,
            };
            if let Some(reason) = lost {
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
                self.verify(oid, &change.relation);
            }
            self.change(entry, offset, change).await;
        }
    }

    fn verify(&mut self, oid: Oid, relation: &Relation) {
        let Some(watched) = self.tables.get_mut(&oid) else { return };
        watched.verified = relation.version;
        watched.shapes.clear();
        watched.fits = relation.columns.iter().all(|column| {
            let known = watched.table.column(&column.name);
            known.is_some_and(|known| known.type_oid == column.type_oid)
        });
    }

    async fn change(&mut self, entry: &Entry, offset: Offset, change: &Change) {
        let oid = change.relation.oid;
        let Some(watched) = self.tables.get_mut(&oid) else { return };
        let in_doubt = watched.doubt.is_some_and(|doubt| {
            entry.batch.commit_lsn <= doubt.until && change.relation.version <= doubt.version
        });
        if in_doubt || !watched.fits {
            let clients = watched.groups.values().map(|group| group.watching(&change.kind).len());
            self.metrics.hidden(HiddenReason::CatalogChanged, clients.sum::<usize>() as u64);
            self.expel_table(oid, Resync::Undecided);
            return;
        }
        let (row, old) = subject_rows(change);
        let subject =
            Subject { relation: &change.relation, change, row: &row, old: old.as_deref() };
        let place = Place { entry, offset, change, row: &row };
        let roles: Vec<Arc<str>> = watched.groups.keys().cloned().collect();
        let mut undecided = Vec::new();
        for role in roles {
            let Some(group) = self.tables.get_mut(&oid).and_then(|w| w.groups.get_mut(&role)) else {
                continue;
            };
            for found in group.route(&subject) {
                self.settle(&place, &role, found, &mut undecided).await;
            }
        }
        for (session, channel) in undecided {
            self.expel(session, channel, Resync::Undecided);
        }
    }

    /// Acts on what the compiled policies say of one row for one kin.
    async fn settle(
        &mut self,
        place: &Place<'_>,
        role: &Arc<str>,
        found: Match,
        undecided: &mut Vec<(SessionId, ChannelId)>,
    ) {
        let clients = found.members.len() as u64;
        let delete = matches!(place.change.kind, Kind::Delete { .. });
        match found.sight {
            Sight::Visible => {
                let old = self.old_record(place, found.sees_old);
                self.hand_out(place, role, &found.members, old, None);
            }
            Sight::Hidden => self.metrics.hidden(HiddenReason::Policy, clients),
            // A SELECT would raise as well and show nothing: there is nothing to read again.
            Sight::Raised => self.metrics.hidden(HiddenReason::PolicyError, clients),
            Sight::Asked => match self.question(place, role, &found) {
                Some(question) => self.ask(place, role, found, question).await,
                None => self.unjudged(place, role, &found, delete, undecided),
            },
            Sight::Undecided => self.unjudged(place, role, &found, delete, undecided),
        }
    }

    const fn unjudged_keys(&self) -> bool {
        matches!(self.settings.delete_without_identity, DeleteWithoutIdentity::Key)
    }

    fn old_record(&self, place: &Place<'_>, sees_old: bool) -> OldRecord {
        let watched = self.tables.get(&place.change.relation.oid);
        watched.map_or(OldRecord::Hidden, |watched| {
            old_record(place.change, &watched.table, sees_old, self.unjudged_keys())
        })
    }

    /// The stream does not carry what decides.
    fn unjudged(
        &mut self,
        place: &Place<'_>,
        role: &Arc<str>,
        found: &Match,
        delete: bool,
        undecided: &mut Vec<(SessionId, ChannelId)>,
    ) {
        let clients = found.members.len() as u64;
        if !delete {
            self.metrics.hidden(HiddenReason::UnchangedToast, clients);
            let group = self.tables.get(&place.change.relation.oid).and_then(|w| w.groups.get(role));
            undecided.extend(found.members.iter().filter_map(|(key, _)| {
                let member = group?.member(*key)?;
                Some((member.outbox.session(), member.channel))
            }));
        } else if self.unjudged_keys() {
            self.hand_out(place, role, &found.members, OldRecord::Key, None);
        } else {
            // The join said so.
            self.metrics.hidden(HiddenReason::DeleteWithoutIdentity, clients);
        }
    }

    fn question(&self, place: &Place<'_>, role: &Arc<str>, found: &Match) -> Option<Question> {
        let relation = &place.change.relation;
        let watched = self.tables.get(&relation.oid)?;
        let group = watched.groups.get(role)?;
        let Rules::Judged { asked: Some(query), .. } = &group.access.rules else { return None };
        let carried = |position: usize| {
            place.row.get(position).is_some_and(|value| value != Value::Unchanged)
        };
        let decidable = group.access.reads.iter().all(|name| match relation.position(name) {
            Some(position) => carried(position),
            // Computed from the others.
            None => (0..relation.columns.len()).all(carried),
        });
        decidable.then(|| Question {
            xid: place.entry.batch.xid,
            query: Arc::clone(query),
            role: Arc::clone(role),
            claims: found.principal.claims.clone(),
            image: image(relation, place.row, &self.catalog).into(),
            deadline: Instant::now() + self.settings.ask_timeout,
            answer: Reply::new(|_| {}),
        })
    }

    /// Puts a question and holds the place of the change in each outbox until the answer is there.
    async fn ask(
        &mut self,
        place: &Place<'_>,
        role: &Arc<str>,
        found: Match,
        mut question: Question,
    ) {
        let verdict = Arc::new(Verdict::default());
        let old = self.old_record(place, false);
        let waiting = self.hand_out(place, role, &found.members, old, Some(&verdict));
        let metrics = Arc::clone(&self.metrics);
        question.answer = Reply::new(move |answer| {
            let hidden = match answer {
                Answer::Visible => None,
                Answer::Hidden => Some(HiddenReason::Policy),
                Answer::Raised => Some(HiddenReason::PolicyError),
                Answer::TimedOut => Some(HiddenReason::AskTimeout),
                Answer::Failed => Some(HiddenReason::AskFailed),
            };
            verdict.decide(hidden.is_none());
            if let Some(reason) = hidden {
                metrics.hidden(reason, waiting.len() as u64);
            }
            for (outbox, channel) in waiting {
                if matches!(answer, Answer::TimedOut | Answer::Failed) {
                    outbox.push(Event::Resync { channel, reason: Resync::Undecided });
                }
                outbox.wake();
            }
        });
        self.asker.ask(question).await;
    }

    /// Puts a change into the outboxes of `members`; returns where it went.
    fn hand_out(
        &mut self,
        place: &Place<'_>,
        role: &Arc<str>,
        members: &[(MemberKey, SmallVec<[u32; 4]>)],
        old: OldRecord,
        verdict: Option<&Arc<Verdict>>,
    ) -> Vec<(Arc<Outbox>, ChannelId)> {
        let Some(data) = self.data(place, role, old) else { return Vec::new() };
        let Some(group) =
            self.tables.get(&place.change.relation.oid).and_then(|w| w.groups.get(role))
        else {
            return Vec::new();
        };
        let mut reached = Vec::new();
        for (key, bindings) in members {
            let Some(member) = group.member(*key) else { continue };
            let event = Event::Change {
                channel: member.channel,
                bindings: bindings.clone(),
                offset: place.offset,
                committed_at: place.entry.batch.committed_at,
                data: data.clone(),
            };
            match verdict {
                Some(verdict) => {
                    member.outbox.hold(event, Arc::clone(verdict));
                    reached.push((Arc::clone(&member.outbox), member.channel));
                }
                None => member.outbox.push(event),
            }
        }
        reached
    }

    /// The change as bytes, for everybody under this role.
    fn data(&mut self, place: &Place<'_>, role: &Arc<str>, old: OldRecord) -> Option<Bytes> {
        let relation = &place.change.relation;
        let watched = self.tables.get_mut(&relation.oid)?;
        let access = &watched.groups.get(role)?.access;
        let columns = access.columns(relation);
        let key = (relation.version, columns);
        let shape = match watched.shapes.get(&key) {
            Some(shape) => Arc::clone(shape),
            None => {
                let shape = Shape::new(relation, &watched.table, &self.catalog, &key.1);
                let shape = Arc::new(shape);
                watched.shapes.insert(key, Arc::clone(&shape));
                shape
            }
        };
        shape.encode(place.change, place.entry.batch.committed_at, old)
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Join(join) => {
                let joining = self.begin(&join);
                self.join(join, joining, false);
            }
            Command::Leave { session, channel } => self.leave(session, channel),
            Command::Disconnect { session } => {
                let channels: Vec<ChannelId> = self
                    .sessions
                    .get(&session)
                    .map(|channels| channels.keys().copied().collect())
                    .unwrap_or_default();
                for channel in channels {
                    self.leave(session, channel);
                }
            }
        }
    }

    /// Notes that a join is under way, so that a leave in the meantime can end it.
    fn begin(&mut self, join: &Join) -> u64 {
        let channels = self.sessions.entry(join.outbox.session()).or_default();
        let channel = channels.entry(join.channel).or_insert_with(|| Channel {
            principal: Arc::clone(&join.principal),
            outbox: Arc::clone(&join.outbox),
            wanted: Arc::new([]),
            members: Vec::new(),
            joining: 0,
            bindings: 0,
        });
        channel.joining += 1;
        channel.joining
    }

    fn join(&mut self, join: Join, joining: u64, role_read: bool) {
        match self.resolve(&join.principal, &join.wanted) {
            Ok(resolved) => {
                let notices = resolved.notices.clone();
                let (session, channel) = (join.outbox.session(), join.channel);
                self.withdraw(session, channel);
                if let Some(known) =
                    self.sessions.get_mut(&session).and_then(|all| all.get_mut(&channel))
                {
                    known.principal = Arc::clone(&join.principal);
                    known.wanted = join.wanted.into();
                }
                self.put_in_force(session, channel, resolved);
                join.outbox.push(Event::Joined { channel, refusal: None, notices });
            }
            Err(Unresolved::Refused(refusal)) => self.refuse(&join, refusal),
            Err(Unresolved::Role) if role_read => {
                let Some(first) = join.wanted.first() else { return };
                let reason = format!(
                    "ERROR 22023 (invalid_parameter_value) role {:?} does not exist",
                    join.principal.role
                );
                if let Unresolved::Refused(refusal) = refused(first, &reason) {
                    self.refuse(&join, refusal);
                }
            }
            Err(Unresolved::Role) => self.park(join, joining, Vec::new()),
            Err(Unresolved::Literals(unread)) => self.park(join, joining, unread),
        }
    }

    fn refuse(&mut self, join: &Join, refusal: Refusal) {
        self.withdraw(join.outbox.session(), join.channel);
        join.outbox.push(Event::Joined {
            channel: join.channel,
            refusal: Some(refusal),
            notices: Vec::new(),
        });
    }

    /// Lets a join wait for PostgreSQL while everything else goes on.
    fn park(&mut self, join: Join, joining: u64, unread: Vec<Unread>) {
        let watch = self.watch.clone();
        self.parked.push(Box::pin(async move {
            let mut unparked = Unparked {
                joining,
                role_read: unread.is_empty(),
                literals: Vec::new(),
                trouble: None,
                join,
            };
            if unread.is_empty() {
                let role = unparked.join.principal.role.as_ref().to_owned();
                if let Err(error) = watch.role(role).await {
                    unparked.trouble = Some(trouble(error));
                }
            }
            for unread in unread {
                match watch.literal(unread.type_sql.clone(), unread.text.clone()).await {
                    Ok(literal) => unparked.literals.push((unread, literal)),
                    Err(error) => {
                        unparked.trouble = Some(trouble(error));
                        break;
                    }
                }
            }
            unparked
        }));
    }

    fn unpark(&mut self, unparked: Unparked) {
        let Unparked { join, joining, role_read, literals, trouble } = unparked;
        for (unread, literal) in literals {
            self.literals.insert(unread.of, unread.text, literal);
        }
        let current = self
            .sessions
            .get(&join.outbox.session())
            .and_then(|channels| channels.get(&join.channel))
            .is_some_and(|channel| channel.joining == joining);
        if !current {
            debug!("a channel was left while it was joining");
            return;
        }
        match (trouble, join.wanted.first()) {
            (Some(trouble), Some(first)) => {
                if let Unresolved::Refused(refusal) = refused(first, &trouble) {
                    self.refuse(&join, refusal);
                }
            }
            _ => {
                self.adopt(None);
                self.join(join, joining, role_read);
            }
        }
    }

    fn resolve(&mut self, principal: &Principal, wanted: &[Wanted]) -> Result<Resolved, Unresolved> {
        let rulebook = Rulebook {
            require_rls: self.settings.require_rls,
            unjudged_deletes: self.unjudged_keys(),
        };
        let (catalog, accesses) = (&self.catalog, &mut self.access);
        resolve(catalog, &self.literals, rulebook, principal, wanted, |table| {
            let key = (table.oid, Arc::clone(&principal.role));
            let access = accesses
                .entry(key)
                .or_insert_with(|| Arc::new(Access::new(catalog, table, &principal.role)));
            Arc::clone(access)
        })
    }

    fn put_in_force(&mut self, session: SessionId, channel: ChannelId, resolved: Resolved) {
        let Some(state) = self.sessions.get_mut(&session).and_then(|all| all.get_mut(&channel))
        else {
            return;
        };
        for (oid, bindings) in resolved.tables {
            let Some(table) = self.catalog.tables.get(&oid) else { continue };
            let role = &state.principal.role;
            let Some(access) = self.access.get(&(oid, Arc::clone(role))) else { continue };
            let watched = self.tables.entry(oid).or_insert_with(|| Watched {
                table: Arc::clone(table),
                groups: HashMap::new(),
                verified: 0,
                doubt: None,
                fits: true,
                shapes: HashMap::new(),
            });
            let group = watched
                .groups
                .entry(Arc::clone(role))
                .or_insert_with(|| Group::new(Arc::clone(access)));
            state.bindings += i64::try_from(bindings.len()).unwrap_or(0);
            let bindings: SmallVec<[Binding; 1]> = bindings.into();
            let key = group.add(&state.principal, &state.outbox, channel, bindings);
            state.members.push((oid, key));
        }
        self.metrics.subscriptions.inc_by(state.bindings);
    }

    /// Takes a channel's bindings out of force; the channel stays known.
    fn withdraw(&mut self, session: SessionId, channel: ChannelId) {
        let Some(state) = self.sessions.get_mut(&session).and_then(|all| all.get_mut(&channel))
        else {
            return;
        };
        self.metrics.subscriptions.dec_by(std::mem::take(&mut state.bindings));
        for (oid, key) in std::mem::take(&mut state.members) {
            let Some(watched) = self.tables.get_mut(&oid) else { continue };
            if let Some(group) = watched.groups.get_mut(&state.principal.role) {
                group.remove(key);
                if group.is_empty() {
                    watched.groups.remove(&state.principal.role);
                }
            }
            if watched.groups.is_empty() {
                self.tables.remove(&oid);
            }
        }
    }

    fn leave(&mut self, session: SessionId, channel: ChannelId) {
        self.withdraw(session, channel);
        let Some(channels) = self.sessions.get_mut(&session) else { return };
        channels.remove(&channel);
        if channels.is_empty() {
            self.sessions.remove(&session);
        }
    }

    /// Tells a channel to read again. It joins anew, so nothing more goes out to this joining.
    fn expel(&mut self, session: SessionId, channel: ChannelId, reason: Resync) {
        self.withdraw(session, channel);
        if let Some(state) = self.sessions.get(&session).and_then(|all| all.get(&channel)) {
            state.outbox.push(Event::Resync { channel, reason });
        }
    }

    fn expel_table(&mut self, oid: Oid, reason: Resync) {
        let Some(watched) = self.tables.get(&oid) else { return };
        let members: Vec<_> = watched
            .groups
            .values()
            .flat_map(Group::members)
            .map(|member| (member.outbox.session(), member.channel))
            .collect();
        for (session, channel) in members {
            self.expel(session, channel, reason);
        }
    }

    fn expel_everybody(&mut self, reason: Resync) {
        let everybody: Vec<_> = self
            .sessions
            .iter()
            .flat_map(|(session, channels)| channels.keys().map(|channel| (*session, *channel)))
            .collect();
        for (session, channel) in everybody {
            self.expel(session, channel, reason);
        }
    }

    /// Goes over to the newest catalog. `described` is the table whose description in the stream
    /// made us look: for its rows the change lies exactly here. For others its place is not known,
    /// and rows that may lie on either side are hidden.
    fn adopt(&mut self, described: Option<Oid>) {
        let catalog = self.watch.take();
        if Arc::ptr_eq(&catalog, &self.catalog) {
            return;
        }
        let before = std::mem::replace(&mut self.catalog, Arc::clone(&catalog));
        self.access.clear();
        let mut changed = Vec::new();
        for (oid, watched) in &mut self.tables {
            let Some(table) = catalog.tables.get(oid).filter(|table| table.published) else {
                changed.push(*oid);
                continue;
            };
            let same = watched.groups.iter().all(|(role, group)| {
                let access = Access::new(&catalog, table, role);
                let same = access.fingerprint == group.access.fingerprint;
                self.access.insert((*oid, Arc::clone(role)), Arc::new(access));
                same
            });
            watched.table = Arc::clone(table);
            watched.shapes.clear();
            if !same {
                changed.push(*oid);
            }
        }
        let published = |catalog: &Catalog| {
            let mut tables: Vec<Oid> =
                catalog.tables.values().filter(|t| t.published).map(|t| t.oid).collect();
            tables.sort_unstable();
            tables
        };
        let tables_changed = published(&before) != published(&catalog);
        self.resubscribe(&changed, tables_changed);
        for oid in changed {
            if let Some(watched) = self.tables.get_mut(&oid)
                && described != Some(oid)
            {
                watched.doubt = Some(Doubt { until: catalog.read_at, version: watched.verified });
            }
        }
    }

    /// Resolves anew every channel that watches one of `changed`, or that named no table where the
    /// set of published tables changed.
    fn resubscribe(&mut self, changed: &[Oid], tables_changed: bool) {
        let versions: HashMap<Oid, (u64, Option<Doubt>, bool)> = self
            .tables
            .iter()
            .map(|(oid, watched)| (*oid, (watched.verified, watched.doubt, watched.fits)))
            .collect();
        let affected: Vec<(SessionId, ChannelId)> = self
            .sessions
            .iter()
            .flat_map(|(session, channels)| {
                channels.iter().map(move |(channel, state)| (*session, *channel, state))
            })
            .filter(|(_, _, state)| {
                let open = |wish: &Wanted| wish.schema.is_none() || wish.table.is_none();
                state.members.iter().any(|(oid, _)| changed.contains(oid))
                    || (tables_changed && state.wanted.iter().any(open))
            })
            .map(|(session, channel, _)| (session, channel))
            .collect();
        for (session, channel) in &affected {
            self.withdraw(*session, *channel);
        }
        for (session, channel) in affected {
            let Some(state) = self.sessions.get(&session).and_then(|all| all.get(&channel)) else {
                continue;
            };
            let (principal, wanted) = (Arc::clone(&state.principal), Arc::clone(&state.wanted));
            match self.resolve(&principal, &wanted) {
                Ok(resolved) => self.put_in_force(session, channel, resolved),
                // The client joins again and learns there what no longer fits.
                Err(_) => self.expel(session, channel, Resync::SchemaChanged),
            }
        }
        // What was known about the stream's versions does not depend on who watches.
        for (oid, (verified, doubt, fits)) in versions {
            if let Some(watched) = self.tables.get_mut(&oid) {
                (watched.verified, watched.doubt, watched.fits) = (verified, doubt, fits);
            }
        }
    }
}

/// Where in the stream a change is, and the row that decides about it.
struct Place<'a> {
    entry: &'a Entry,
    offset: Offset,
    change: &'a Change,
    row: &'a Row,
}

/// The row that decides and, for an update, what is carried of the one before. Values that an
/// update did not touch are taken from the old row where it has them; what a key-only old row does
/// not carry is marked so, since the stream says NULL there.
fn subject_rows(change: &Change) -> (std::borrow::Cow<'_, Row>, Option<std::borrow::Cow<'_, Row>>) {
    use std::borrow::Cow;
    let carried = |old| match old {
        &OldRow::Full(ref row) => Cow::Borrowed(row),
        &OldRow::Key(ref row) => Cow::Owned(
            row.values()
                .zip(&change.relation.columns)
                .map(|(value, column)| if column.identity { value } else { Value::Unchanged })
                .collect(),
        ),
    };
    match &change.kind {
        Kind::Insert { new } => (Cow::Borrowed(new), None),
        Kind::Delete { old } => (carried(old), None),
        Kind::Update { old, new } => {
            let old = old.as_ref().map(carried);
            let touched = new.values().all(|value| value != Value::Unchanged);
            let row = match &old {
                Some(before) if !touched => Cow::Owned(
                    new.values()
                        .enumerate()
                        .map(|(position, value)| match value {
                            Value::Unchanged => before.get(position).unwrap_or(Value::Unchanged),
                            value => value,
                        })
                        .collect(),
                ),
                _ => Cow::Borrowed(new),
            };
            (row, old)
        }
        Kind::Truncate | Kind::Lost(_) => (Cow::Owned(Row::default()), None),
    }
}

/// How much of the row before goes out to somebody who may see the change.
fn old_record(change: &Change, table: &Table, sees_old: bool, unjudged_keys: bool) -> OldRecord {
    match &change.kind {
        Kind::Update { old: None, .. } => OldRecord::Key,
        Kind::Update { old: Some(_), .. } if sees_old => OldRecord::Carried,
        // The key changed, and whether the old one could be seen is not known.
        Kind::Update { old: Some(OldRow::Key(_)), .. } => {
            if unjudged_keys { OldRecord::Carried } else { OldRecord::Hidden }
        }
        // The row before was hidden: its key may go out only if it is the one they see anyway.
        Kind::Update { old: Some(OldRow::Full(old)), new } => {
            let kept = change.relation.columns.iter().enumerate().all(|(position, column)| {
                let key = table.column(&column.name).is_some_and(|column| table.is_key(column));
                !key || old.get(position) == new.get(position)
            });
            if kept { OldRecord::Key } else { OldRecord::Hidden }
        }
        Kind::Delete { .. } => OldRecord::Carried,
        Kind::Insert { .. } | Kind::Truncate | Kind::Lost(_) => OldRecord::Hidden,
    }
}

fn trouble(error: Option<crate::policy::reader::CatalogError>) -> String {
    if let Some(error) = error {
        warn!(%error, "a join could not be resolved");
    }
    "the database cannot be reached, please try again".to_owned()
}

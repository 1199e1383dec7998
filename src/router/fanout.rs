//! Judges changes for a set of subscriptions, and hands each to whom it belongs.

mod channels;

mod complete;

mod delivery;

mod made;

mod memberships;

mod picture;

mod rules;

mod truncate;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use self::complete::Ahead;
use self::made::Made;
use self::rules::{Described, InForce, Unsure};
use self::truncate::LostLeaves;
use super::allowance::{Allowance, Held};
use super::changed::Changed;
use super::due::Due;
use super::group::{Group, MemberKey, Moment, are_kin};
use super::history::AccessHistory;
use super::holder;
use super::layout::Layout;
use super::live::snapshots::Reader;
use super::memberships::{Memberships, Missed, States};
use super::old_rows::{OldRowTables, OldRows};
use super::position::Position;
use super::replay::{Awaited, Replay};
use super::resolve::Readings;
use super::unseen::Unseen;
use super::{ChannelId, DeleteWithoutIdentity, Join, Leaves, Outbox, Refusal, Resync, SessionId};
use crate::auth::Principal;
use crate::change::{Change, ColumnSet, Kind, Lost, Relation};
use crate::encode::Shape;
use crate::log::{Cursor, Entry, Epoch, Holder, Log, Offset};
use crate::lookup::keep::Keeping;
use crate::metrics::{HiddenReason, Metrics};
use crate::pg::{Lsn, Oid, Xid};
use crate::policy::access::{Access, Rules};
use crate::policy::ask::Asker;
use crate::policy::catalog::{Catalog, Table};
use crate::policy::generated::Computer;
use crate::policy::reader::{Mark, Reading};
use crate::policy::rule::Require;
use crate::policy::watch::{CatalogWatch, Ended};
use crate::snapshot::Snapshots;
use crate::subscription::Wanted;

/// How often whoever waits for the catalog amid an entry looks whether the entry is of a history that
/// is no more.
const LOOK_FOR_LOSS: Duration = Duration::from_millis(100);

/// What the router is told by configuration.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// What tables must have.
    pub require: Require,
    /// What becomes of deletes that cannot be judged.
    pub delete_without_identity: DeleteWithoutIdentity,
    /// Who is told of rows that leave their view.
    pub leave: Leaves,
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
    /// Where it is kept since when the rules are what they are, beside a log that outlives the
    /// process.
    pub history: Option<PathBuf>,
    /// Who reads the rows that bindings want before their changes.
    pub snapshots: Snapshots,
    /// Who mirrors the tables that policies look into.
    pub keeping: Keeping,
    /// Where it is kept where these tables changed last, beside a log that outlives the process.
    pub memberships: Option<PathBuf>,
    /// Whose old rows are kept, and who keeps them.
    pub old_rows: Option<(OldRowTables, Keeping)>,
}

/// A set of subscriptions, and all that is needed to judge a change for them.
pub(super) struct Fanout {
    pub(super) log: Arc<dyn Log>,
    pub(super) watch: CatalogWatch,
    pub(super) asker: Asker,
    pub(super) computer: Computer,
    pub(super) metrics: Arc<Metrics>,
    pub(super) settings: Settings,
    pub(super) snapshot_settings: crate::snapshot::Settings,
    pub(super) history: Arc<AccessHistory>,
    /// Which tables the router has seen change.
    pub(super) changed: Arc<Changed>,
    /// What changed of the tables that policies look into.
    pub(super) memberships: Arc<Memberships>,
    /// What these tables are around the change in hand.
    pub(super) states: States,
    /// The tables that the transaction in hand writes, all of it.
    pub(super) writes: Option<(Xid, BTreeSet<Oid>)>,
    /// What the transaction in hand has written, where it changes these tables too.
    made: Made,
    /// What changes found of rows that the relay mirrors itself; `None` where it mirrors none.
    pub(super) old_rows: Option<Arc<OldRows>>,
    /// The place up to which that is known; of a transaction in hand, where it begins.
    pub(super) judged_at: Offset,
    /// Whose audience has changed, as somebody who came back had to know it.
    missed: HashMap<(Oid, Arc<str>), Missed>,
    /// Whether what is read of other tables may be something else.
    rules_changed: bool,
    /// How far the router has handed out.
    pub(super) position: Arc<Position>,
    /// What of that may not be readable yet.
    pub(super) unseen: Arc<Unseen>,
    /// What this shows is in what everybody has read who is of this history of the log.
    pub(super) before: Option<Arc<Mark>>,
    pub(super) epoch: Epoch,
    /// The change in hand, or the last one.
    pub(super) moment: Moment,
    /// The place behind it.
    behind: Offset,
    pub(super) catalog: Arc<Catalog>,
    in_force: InForce,
    pub(super) readings: Readings,
    access: HashMap<(Oid, Arc<str>), Arc<Access>>,
    tables: HashMap<Oid, Watched>,
    /// Doubts about tables that nobody watches at the moment: who comes next must not forget them.
    doubts: HashMap<Oid, Doubt>,
    /// The tables whose rules may have changed more often than one can tell.
    unsure: HashMap<Oid, Unsure>,
    /// The newest versions of tables that nobody watches: one that is new here may be of a table
    /// that is new, and meant by whoever named none.
    pub(super) passed: HashMap<Oid, u64>,
    /// Boxed, since a map has room for several, and most clients have one.
    pub(super) sessions: HashMap<SessionId, HashMap<ChannelId, Box<Channel>>>,
    /// Set where what was missed is handed out.
    pub(super) replay: Option<Replay>,
    /// Who was handed live changes and has not been told yet.
    pub(super) due: Due,
    /// What may be asked for the filters of each.
    allowance: Allowance,
    /// The partitioned tables that have lost rows, until it is known whether the stream tells that.
    lost_leaves: HashMap<Oid, LostLeaves>,
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
    /// The changes that were judged since it is watched.
    changes: u64,
}

/// Rows up to `until`, described by a version not newer than `version`, may fall under the old
/// rules or the new ones: they are hidden.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    until: Lsn,
    version: u64,
    /// Whether the stream will tell of the change.
    told: bool,
}

impl Doubt {
    /// What hides whatever this does or one of before.
    fn beside(self, before: Option<Self>) -> Self {
        before.map_or(self, |before| Self {
            until: self.until.max(before.until),
            version: self.version.max(before.version),
            told: self.told && before.told,
        })
    }
}

pub(super) struct Channel {
    pub(super) principal: Arc<Principal>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) wanted: Arc<[Wanted]>,
    /// What of it is not in force.
    pub(super) refused: Vec<Refusal>,
    /// What PostgreSQL told of its filters when it joined. It stays so: `now` is then.
    pub(super) readings: Readings,
    members: Vec<(Oid, MemberKey)>,
    /// Whom its client has been told that its cursors are given to.
    pub(super) holder: Option<Holder>,
    /// The filters that PostgreSQL is asked about.
    asked: Held,
    /// Counts the joins of this channel, so that an older one that comes late is dropped.
    pub(super) joining: u64,
    bindings: i64,
    /// Whether it was answered before: then a join of it brings a new token only.
    pub(super) settled: bool,
    /// Set while a cohort hands out what it missed: nothing of it is in force here.
    pub(super) away: bool,
    /// Set while it is read for: it is away as well then.
    pub(super) reader: Option<Arc<Reader>>,
    /// The join of an absent one, which takes effect when it is back.
    pub(super) successor: Option<Box<(Join, Readings)>>,
}

impl Channel {
    pub(super) fn new(principal: &Arc<Principal>, outbox: &Arc<Outbox>) -> Self {
        Self {
            principal: Arc::clone(principal),
            outbox: Arc::clone(outbox),
            wanted: Arc::new([]),
            refused: Vec::new(),
            readings: Readings::default(),
            members: Vec::new(),
            holder: None,
            asked: Held::default(),
            joining: 0,
            bindings: 0,
            settled: false,
            away: false,
            reader: None,
            successor: None,
        }
    }
}

impl Fanout {
    /// Without subscriptions, by this catalog.
    pub(super) fn new(
        (log, watch, asker, computer, metrics): (
            Arc<dyn Log>,
            CatalogWatch,
            Asker,
            Computer,
            Arc<Metrics>,
        ),
        settings: Settings,
        snapshot_settings: crate::snapshot::Settings,
        (history, changed, memberships): (Arc<AccessHistory>, Arc<Changed>, Arc<Memberships>),
        position: Arc<Position>,
        (epoch, reading): (Epoch, &Reading),
    ) -> Self {
        Self {
            log,
            watch,
            asker,
            computer,
            metrics,
            settings,
            snapshot_settings,
            history,
            changed,
            memberships,
            states: States::default(),
            writes: None,
            made: Made::default(),
            old_rows: None,
            judged_at: Offset(0),
            missed: HashMap::new(),
            rules_changed: true,
            position,
            unseen: Arc::default(),
            before: None,
            epoch,
            moment: Moment {
                offset: Offset(0),
                xid: Xid(0),
                early: false,
            },
            behind: Offset(0),
            catalog: Arc::clone(&reading.catalog),
            in_force: InForce::new(reading),
            readings: Readings::default(),
            access: HashMap::new(),
            tables: HashMap::new(),
            doubts: HashMap::new(),
            unsure: HashMap::new(),
            passed: HashMap::new(),
            sessions: HashMap::new(),
            allowance: Allowance::new(settings.max_asked_filters),
            lost_leaves: HashMap::new(),
            replay: None,
            due: Due::default(),
        }
    }

    /// Without subscriptions, to judge as this one does. What it hands out was missed.
    pub(super) fn replaying(&self, replay: Replay) -> Self {
        let mut replaying = Self::new(
            (
                Arc::clone(&self.log),
                self.watch.clone(),
                self.asker.clone(),
                self.computer.another(),
                Arc::clone(&self.metrics),
            ),
            self.settings,
            self.snapshot_settings,
            (
                Arc::clone(&self.history),
                Arc::clone(&self.changed),
                Arc::clone(&self.memberships),
            ),
            Arc::clone(&self.position),
            (self.epoch, &self.watch.reading()),
        );
        replaying.catalog = Arc::clone(&self.catalog);
        replaying.in_force = self.in_force.clone();
        replaying.unseen = Arc::clone(&self.unseen);
        replaying.old_rows.clone_from(&self.old_rows);
        replaying.before.clone_from(&self.before);
        let (lookups, place) = self.memberships.now();
        (replaying.states, replaying.judged_at) = (States::of(&lookups), place);
        // The router has counted what its members have asked.
        replaying.allowance = Allowance::new(0);
        replaying.replay = Some(replay);
        replaying
    }

    pub(super) fn channel(
        &mut self,
        session: SessionId,
        channel: ChannelId,
    ) -> Option<&mut Channel> {
        let channels = self.sessions.get_mut(&session)?;
        channels.get_mut(&channel).map(|channel| &mut **channel)
    }

    /// Whether a new token shows the same of these tables as the one before.
    pub(super) fn shows_alike(
        &self,
        tables: impl IntoIterator<Item = Oid>,
        before: &Principal,
        now: &Principal,
    ) -> bool {
        let alike = |oid| {
            let access = self.access.get(&(oid, Arc::clone(&now.role)));
            access.is_some_and(|access| are_kin(access, before, now))
        };
        before.role == now.role && tables.into_iter().all(alike)
    }

    /// Whom the cursors of a channel on these tables are given to.
    pub(super) fn holder(
        &self,
        tables: impl IntoIterator<Item = Oid>,
        principal: &Principal,
    ) -> Holder {
        let tables: Vec<Oid> = tables.into_iter().collect();
        let access = |oid: &Oid| {
            let access = self.access.get(&(*oid, Arc::clone(&principal.role)));
            access.map(|access| (*oid, &**access))
        };
        let rules = self.history.changed_in(&tables, &principal.role);
        // A cohort may know of a newer one, which is not in force here.
        let rules = rules.min(self.catalog.read_at);
        holder::holder(principal, tables.iter().filter_map(access), rules)
    }

    /// The place from which somebody who reads the tables now misses nothing.
    pub(super) fn current(&self) -> Cursor {
        let handed_out = self.position.get();
        if self.replay.is_some() {
            return handed_out;
        }
        // It is noted behind an entry, and this may be amid one.
        Cursor {
            epoch: self.epoch,
            offset: self.behind.max(handed_out.offset),
        }
    }

    /// Whether an entry is older than its history: the slot stood before it, and it is judged by
    /// nobody's rules any more.
    pub(super) fn is_before(&self, entry: &Entry) -> bool {
        let before = self.before.as_ref();
        before.is_some_and(|before| before.shows(entry.batch.xid))
    }

    /// Tells a channel to read again, once all that lies before the cursor that it is given can be
    /// read; or, where that takes long, with a cursor that lies before what cannot.
    pub(super) fn tell_to_read(&self, outbox: &Arc<Outbox>, channel: ChannelId, reason: Resync) {
        let event = (channel, reason, self.catalog.read_at);
        self.unseen.tell_to_read(outbox, event, self.current());
    }

    /// Hands out the changes of an entry. An `early` one committed before whoever came without a
    /// cursor could have subscribed.
    pub(super) async fn entry(&mut self, entry: &Entry, early: bool) {
        self.begin(entry, early).await;
        let mut ahead = Ahead::default();
        // What was found when it was looked for what may have changed unseen.
        let mut found = self.changes_unseen();
        for (offset, change) in entry.changes() {
            if found && self.is_judged_unseen(&change.relation) {
                found = false;
                self.adopt(None);
            }
            self.moment = Moment {
                offset,
                xid: entry.batch.xid,
                early,
            };
            self.behind = Offset(offset.0 + 1);
            self.hand_on(entry, offset, change, &mut ahead).await;
            self.set_aside(self.behind);
            if self.due.is_full() {
                self.due.deliver();
                // Those that write get their turn before there is more.
                tokio::task::yield_now().await;
            }
        }
    }

    /// The first change of an entry that the newest catalog may be too old for.
    pub(super) fn awaits(&self, entry: &Entry) -> Option<Awaited> {
        let xid = entry.batch.xid;
        if self.awaits_rules(xid) {
            return Some((xid, Relation::none()));
        }
        let mut seen: Option<&Arc<Relation>> = None;
        for (_, change) in entry.changes() {
            let relation = &change.relation;
            if seen.is_some_and(|seen| Arc::ptr_eq(seen, relation)) {
                continue;
            }
            seen = Some(relation);
            if !relation.is_table() {
                continue;
            }
            let wanted = match self.tables.get(&relation.oid) {
                Some(watched) => self.is_unverified(watched, relation),
                None => self.is_new(relation) && self.is_all_wanted(),
            };
            if wanted && !self.watch.is_after(xid, relation) {
                return Some((xid, Arc::clone(relation)));
            }
        }
        None
    }

    /// Whether an entry has a description of a watched table that nothing else tells the reason of.
    pub(super) fn describes_anew(&self, entry: &Entry) -> bool {
        let mut relations = entry.changes().map(|(_, change)| &change.relation);
        let anew = |relation: &Arc<Relation>| {
            let watched = self.tables.get(&relation.oid);
            watched.is_some_and(|watched| self.is_unverified(watched, relation))
        };
        !self.catalog.marked && relations.any(anew)
    }

    /// Whether what judges an entry's rows may have changed without a word in the stream, and the catalog
    /// was not read since.
    pub(super) fn may_have_changed_unseen(&self, entry: &Entry) -> bool {
        let mut relations = entry.changes().map(|(_, change)| &change.relation);
        self.changes_unseen()
            && !self.watch.shows(entry.batch.xid)
            && relations.any(|relation| self.is_judged_unseen(relation))
    }

    /// Whether what a policy looks at beyond its own table changes without a word in the stream: PostgreSQL
    /// describes only a table anew that was changed itself.
    fn changes_unseen(&self) -> bool {
        self.replay.is_none() && !self.catalog.marked
    }

    /// Whether policies decide who sees rows of a table, and it is not read anew for its own sake.
    fn is_judged_unseen(&self, relation: &Relation) -> bool {
        let judged = |group: &Group| !matches!(group.access.rules, Rules::Everything);
        let watched = self.tables.get(&relation.oid);
        let known = watched.filter(|watched| !self.is_unverified(watched, relation));
        known.is_some_and(|watched| watched.groups.values().any(judged))
    }

    fn is_unverified(&self, watched: &Watched, relation: &Relation) -> bool {
        // What the log gives again from its files may have another number than it had.
        relation.version > watched.verified
            || self.replay.is_some() && relation.version != watched.verified
    }

    async fn hand_on(&mut self, entry: &Entry, offset: Offset, change: &Change, ahead: &mut Ahead) {
        let oid = change.relation.oid;
        if !change.relation.is_table() {
            return;
        }
        if !self.tables.contains_key(&oid) && self.is_new(&change.relation) {
            let wanted = self.is_all_wanted();
            self.passed.insert(oid, change.relation.version);
            if wanted {
                if self.read_after(entry, &change.relation).await.is_err() {
                    return;
                }
                self.adopt(Some(Described::new(oid, entry)));
            }
        }
        let Some(watched) = self.tables.get(&oid) else {
            return;
        };
        let lost = match &change.kind {
            Kind::Lost(Lost::Undecodable) => Some(Resync::Undecodable),
            Kind::Lost(Lost::TooLarge) => Some(Resync::TooLarge),
            Kind::Insert { .. }
            | Kind::Update { .. }
            | Kind::Delete { .. }
            | Kind::Truncate
            | Kind::Rules => None,
        };
        if let Some(reason) = lost {
            let hidden = match reason {
                Resync::Undecodable => Some(HiddenReason::Undecodable),
                Resync::TooLarge => Some(HiddenReason::TooLarge),
                _ => None,
            };
            if let Some(hidden) = hidden {
                let watching = watched.groups.values().map(|group| group.members().count());
                let watching = watching.sum::<usize>() as u64;
                self.metrics.hidden(hidden, watching);
                self.note_hidden(change, "", hidden, watching);
            }
            self.expel_table(oid, reason);
            return;
        }
        if self.is_unverified(watched, &change.relation) {
            // PostgreSQL had reason to describe the table anew: nothing of it goes out before the
            // catalog is known as of here.
            if self.read_after(entry, &change.relation).await.is_err() {
                return;
            }
            let described = Described::new(oid, entry);
            if !self.adopt(Some(described)) {
                self.adopt_untold(entry, described).await;
            }
            self.verify(oid, &change.relation, entry);
        }
        if matches!(change.kind, Kind::Truncate) {
            self.truncated(entry, offset, &change.relation);
            return;
        }
        let change = self.complete(entry, offset, change, ahead).await;
        self.change(entry, offset, &change).await;
    }

    /// Whoever hands out an entry has seen to it that this need not wait: for a table that came to be
    /// watched within the entry it reads the catalog once more. Where the catalog comes from a server
    /// by now that has lost the entry, there is nothing to wait for.
    async fn read_after(&self, entry: &Entry, relation: &Arc<Relation>) -> Result<(), Ended> {
        let mut read = pin!(self.watch.after(entry.batch.xid, relation));
        while self.log.epoch() == self.epoch {
            if let Ok(read) = tokio::time::timeout(LOOK_FOR_LOSS, &mut read).await {
                return read;
            }
        }
        Err(Ended)
    }

    /// Whether a table that nobody watches is seen for the first time in this version.
    fn is_new(&self, relation: &Relation) -> bool {
        let passed = || self.passed.get(&relation.oid);
        self.replay.is_none() && passed().is_none_or(|passed| *passed < relation.version)
    }

    /// Whether somebody wants all tables: the catalog in hand may not know a new one yet.
    fn is_all_wanted(&self) -> bool {
        let mut channels = self.sessions.values().flat_map(HashMap::values);
        channels.any(|channel| channel.wanted.iter().any(Wanted::is_open))
    }

    fn verify(&mut self, oid: Oid, relation: &Arc<Relation>, entry: &Entry) {
        let commit = entry.batch.commit_lsn;
        let of_its_time = self.is_of_its_time(commit);
        let Some(watched) = self.tables.get_mut(&oid) else {
            return;
        };
        let (xid, version) = (entry.batch.xid, relation.version);
        let layout = Layout::of(relation, &watched.table).map(Arc::new);
        let computed = layout
            .as_ref()
            .is_some_and(|layout| layout.query().is_some());
        let truncated = self.changed.emptied(oid).map(|(by, _)| by);
        let doubt = if self.replay.is_some() {
            // Whether the rules of then are those of now is in the history.
            None
        } else if !of_its_time && watched.table.written_after(xid, truncated) {
            // The catalog is already past this row: between the two the rules may have changed
            // once more.
            Some((self.catalog.read_at, version, false))
        } else if watched.table.written_by(xid) && (computed || watched.computed) {
            // The description does not tell whether this row lies before or behind what its own
            // transaction did to the columns that are computed.
            Some((commit, version, false))
        } else {
            None
        };
        if let Some((until, version, told)) = doubt {
            let doubt = Doubt {
                until,
                version,
                told,
            };
            let before = watched.doubt.filter(|doubt| commit <= doubt.until);
            watched.doubt = Some(doubt.beside(before));
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

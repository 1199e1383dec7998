//! Channels come, go, and are held against each new catalog.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, warn};

use super::{Channel, Doubt, Fanout, Unparked, Watched};
use crate::auth::Principal;
use crate::pg::Oid;
use crate::policy::access::Access;
use crate::policy::ask::Asker;
use crate::policy::ask::probe::{Probe, Reading};
use crate::policy::watch::CatalogWatch;
use crate::retry::Backoff;
use crate::router::allowance::Held;
use crate::router::group::Group;
use crate::router::layout::Layout;
use crate::router::resolve::{Readings, Resolved, Rulebook, Told, Unresolved, refused, resolve};
use crate::router::{ChannelId, Command, Event, Join, Resync, SessionId};
use crate::subscription::Wanted;

/// Joins that may wait for PostgreSQL at once; past this clients are told to try again.
const MAX_PARKED: usize = 4096;

/// How long a join waits for PostgreSQL.
const JOIN_TIMEOUT: Duration = Duration::from_secs(8);

impl Fanout {
    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Join(join) => {
                let joining = self.begin(&join);
                self.join(join, joining, false, &Readings::default());
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
            refused: Vec::new(),
            readings: Readings::default(),
            members: Vec::new(),
            asked: Held::default(),
            joining: 0,
            bindings: 0,
        });
        channel.joining += 1;
        channel.joining
    }

    fn join(&mut self, join: Join, joining: u64, role_read: bool, told: &Readings) {
        let whose = (join.outbox.session(), join.channel);
        let resolved = self.resolve(whose, &join.principal, &join.wanted, told);
        // The catalog may be a second old. Before a client is told what it cannot have, it is
        // looked at again.
        let stale = !role_read
            && match &resolved {
                Ok(resolved) => !resolved.notices.is_empty() || !resolved.refusals.is_empty(),
                Err(Unresolved::Role) => true,
                Err(Unresolved::Unread(_)) => false,
            };
        if stale {
            self.park(join, joining, Vec::new(), told);
            return;
        }
        match resolved {
            Ok(resolved) => {
                let (notices, refusals) = (resolved.notices.clone(), resolved.refusals.clone());
                let (session, channel) = (join.outbox.session(), join.channel);
                self.withdraw(session, channel);
                if let Some(known) = self
                    .sessions
                    .get_mut(&session)
                    .and_then(|all| all.get_mut(&channel))
                {
                    if join.wanted.iter().any(Wanted::is_open) {
                        // The catalog may not know a table yet whose rows it now asks for.
                        self.passed.clear();
                    }
                    known.principal = Arc::clone(&join.principal);
                    known.wanted = join.wanted.into();
                }
                self.put_in_force(session, channel, resolved);
                join.outbox.push(Event::Joined {
                    channel,
                    refusals,
                    notices,
                });
            }
            Err(Unresolved::Role) => {
                let reason = format!(
                    "ERROR 22023 (invalid_parameter_value) role {:?} does not exist",
                    join.principal.role
                );
                let (session, channel) = (join.outbox.session(), join.channel);
                self.withdraw(session, channel);
                if let Some(known) = self
                    .sessions
                    .get_mut(&session)
                    .and_then(|all| all.get_mut(&channel))
                {
                    // What it was before the refresh must not come back with the next catalog.
                    known.principal = Arc::clone(&join.principal);
                    known.wanted = Arc::new([]);
                    known.refused = Vec::new();
                }
                join.outbox.push(Event::Joined {
                    channel,
                    refusals: join
                        .wanted
                        .iter()
                        .map(|wish| refused(wish, &reason))
                        .collect(),
                    notices: Vec::new(),
                });
            }
            Err(Unresolved::Unread(unread)) => self.park(join, joining, unread, told),
        }
    }

    /// Lets a join wait for PostgreSQL while everything else goes on.
    fn park(&mut self, join: Join, joining: u64, unread: Vec<Probe>, told: &Readings) {
        if self.parked.len() >= MAX_PARKED {
            self.unavailable(&join);
            return;
        }
        let (watch, asker) = (self.watch.clone(), self.asker.clone());
        let told = told.clone();
        self.parked.push(Box::pin(async move {
            let mut unparked = Unparked {
                joining,
                role_read: unread.is_empty(),
                told,
                readings: Vec::new(),
                answered: false,
                join,
            };
            let answering = answer(&watch, &asker, &mut unparked, unread);
            // Clients give up a join after ten seconds and try again: better they hear why.
            let answered = tokio::time::timeout(JOIN_TIMEOUT, answering).await;
            unparked.answered = answered.is_ok();
            unparked
        }));
    }

    fn unavailable(&mut self, join: &Join) {
        warn!("a join could not be decided: the database does not answer");
        self.withdraw(join.outbox.session(), join.channel);
        join.outbox.push(Event::Unavailable {
            channel: join.channel,
        });
    }

    pub(super) fn unpark(&mut self, unparked: Unparked) {
        let Unparked {
            join,
            joining,
            role_read,
            mut told,
            readings,
            answered,
        } = unparked;
        for (probe, reading) in readings {
            if Reading::lasts(&probe) {
                self.readings.share(probe.clone(), reading.clone());
            }
            told.insert(probe, reading);
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
        if answered {
            self.adopt(None);
            self.join(join, joining, role_read, &told);
        } else {
            self.unavailable(&join);
        }
    }

    fn resolve(
        &mut self,
        (session, channel): (SessionId, ChannelId),
        principal: &Principal,
        wanted: &[Wanted],
        told: &Readings,
    ) -> Result<Resolved, Unresolved> {
        let rulebook = Rulebook {
            require_rls: self.settings.require_rls,
            unjudged_deletes: self.unjudged_keys(),
        };
        let (catalog, accesses) = (&self.catalog, &mut self.access);
        let mut resolved = resolve(
            catalog,
            Told {
                own: told,
                shared: &self.readings,
            },
            rulebook,
            principal,
            wanted,
            |table| {
                let key = (table.oid, Arc::clone(&principal.role));
                let access = accesses
                    .entry(key)
                    .or_insert_with(|| Arc::new(Access::new(catalog, table, &principal.role)));
                Arc::clone(access)
            },
        )?;
        let channels = self.sessions.get(&session);
        if let Some(state) = channels.and_then(|channels| channels.get(&channel)) {
            let whose = (session, principal);
            resolved.asked = self.allowance.limit(&mut resolved, whose, &state.asked);
        }
        Ok(resolved)
    }

    fn put_in_force(&mut self, session: SessionId, channel: ChannelId, resolved: Resolved) {
        let Some(state) = self
            .sessions
            .get_mut(&session)
            .and_then(|all| all.get_mut(&channel))
        else {
            return;
        };
        state.refused = resolved.refusals;
        state.readings = resolved.readings;
        self.allowance.take(&resolved.asked);
        state.asked = resolved.asked;
        for (oid, bindings) in resolved.tables {
            let Some(table) = self.catalog.tables.get(&oid) else {
                continue;
            };
            let role = &state.principal.role;
            let Some(access) = self.access.get(&(oid, Arc::clone(role))) else {
                continue;
            };
            let watched = self.tables.entry(oid).or_insert_with(|| Watched {
                table: Arc::clone(table),
                groups: HashMap::new(),
                verified: 0,
                doubt: self.doubts.remove(&oid),
                fits: true,
                described: None,
                layout: None,
                computed: table
                    .columns
                    .iter()
                    .any(|column| column.generated.is_some()),
                shapes: HashMap::new(),
            });
            let group = watched
                .groups
                .entry(Arc::clone(role))
                .or_insert_with(|| Group::new(Arc::clone(access)));
            state.bindings += i64::try_from(bindings.len()).unwrap_or(0);
            let key = group.add(&state.principal, &state.outbox, channel, bindings);
            state.members.push((oid, key));
        }
        self.metrics.subscriptions.inc_by(state.bindings);
    }

    /// Takes a channel's bindings out of force; the channel stays known.
    fn withdraw(&mut self, session: SessionId, channel: ChannelId) {
        let Some(state) = self
            .sessions
            .get_mut(&session)
            .and_then(|all| all.get_mut(&channel))
        else {
            return;
        };
        self.metrics
            .subscriptions
            .dec_by(std::mem::take(&mut state.bindings));
        self.allowance.give_back(&std::mem::take(&mut state.asked));
        for (oid, key) in std::mem::take(&mut state.members) {
            let Some(watched) = self.tables.get_mut(&oid) else {
                continue;
            };
            if let Some(group) = watched.groups.get_mut(&state.principal.role) {
                group.remove(key);
                if group.is_empty() {
                    watched.groups.remove(&state.principal.role);
                }
            }
            if watched.groups.is_empty() {
                self.doubts.extend(watched.doubt.map(|doubt| (oid, doubt)));
                self.tables.remove(&oid);
            }
        }
    }

    fn leave(&mut self, session: SessionId, channel: ChannelId) {
        self.withdraw(session, channel);
        let Some(channels) = self.sessions.get_mut(&session) else {
            return;
        };
        channels.remove(&channel);
        if channels.is_empty() {
            self.sessions.remove(&session);
        }
    }

    /// Tells a channel to read again. It joins anew, so nothing more goes out to this joining.
    pub(super) fn expel(&mut self, session: SessionId, channel: ChannelId, reason: Resync) {
        self.withdraw(session, channel);
        if let Some(state) = self
            .sessions
            .get(&session)
            .and_then(|all| all.get(&channel))
        {
            state.outbox.push(Event::Resync { channel, reason });
        }
    }

    pub(super) fn expel_table(&mut self, oid: Oid, reason: Resync) {
        let Some(watched) = self.tables.get(&oid) else {
            return;
        };
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

    pub(super) fn expel_everybody(&mut self, reason: Resync) {
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
    pub(super) fn adopt(&mut self, described: Option<Oid>) {
        let catalog = self.watch.take();
        if Arc::ptr_eq(&catalog, &self.catalog) {
            return;
        }
        self.catalog = Arc::clone(&catalog);
        self.access.clear();
        // Types and operators may be others now.
        self.readings.clear();
        let (mut changed, mut emptied) = (Vec::new(), Vec::new());
        for (oid, watched) in &mut self.tables {
            let Some(table) = catalog.tables.get(oid).filter(|table| table.published) else {
                changed.push(*oid);
                continue;
            };
            let same = watched.groups.iter().all(|(role, group)| {
                let access = Access::new(&catalog, table, role);
                let same = access.fingerprint == group.access.fingerprint;
                self.access
                    .insert((*oid, Arc::clone(role)), Arc::new(access));
                same
            });
            if watched.table.lost_leaves(table) {
                emptied.push(*oid);
            }
            watched.table = Arc::clone(table);
            watched.shapes.clear();
            let described = watched.described.as_ref();
            watched.layout =
                described.and_then(|relation| Layout::of(relation, table).map(Arc::new));
            if !same {
                changed.push(*oid);
            }
        }
        self.resubscribe(&changed);
        for oid in changed {
            if let Some(watched) = self.tables.get_mut(&oid)
                && described != Some(oid)
            {
                watched.doubt = Some(Doubt {
                    until: catalog.read_at,
                    version: watched.verified,
                });
            }
        }
        for oid in emptied {
            self.expel_table(oid, Resync::Truncated);
        }
    }

    /// Resolves anew every channel that watches one of `changed`, that named no table, or that has
    /// a binding which was refused: what it could not have before may be published, granted or
    /// named so now.
    fn resubscribe(&mut self, changed: &[Oid]) {
        let versions: HashMap<Oid, _> = self
            .tables
            .iter()
            .map(|(oid, watched)| {
                let of_stream = (
                    watched.described.clone(),
                    watched.layout.clone(),
                    watched.computed,
                );
                (
                    *oid,
                    (watched.verified, watched.doubt, watched.fits, of_stream),
                )
            })
            .collect();
        let affected: Vec<(SessionId, ChannelId)> = self
            .sessions
            .iter()
            .flat_map(|(session, channels)| {
                channels
                    .iter()
                    .map(move |(channel, state)| (*session, *channel, state))
            })
            .filter(|(_, _, state)| {
                state.members.iter().any(|(oid, _)| changed.contains(oid))
                    || !state.refused.is_empty()
                    || state.wanted.iter().any(Wanted::is_open)
            })
            .map(|(session, channel, _)| (session, channel))
            .collect();
        let watched = |state: &Channel| state.members.iter().map(|(oid, _)| *oid).collect();
        let before: HashMap<(SessionId, ChannelId), BTreeSet<Oid>> = affected
            .iter()
            .filter_map(|(session, channel)| {
                let state = self.sessions.get(session)?.get(channel)?;
                Some(((*session, *channel), watched(state)))
            })
            .collect();
        for (session, channel) in &affected {
            self.withdraw(*session, *channel);
        }
        for (session, channel) in affected {
            let Some(state) = self
                .sessions
                .get(&session)
                .and_then(|all| all.get(&channel))
            else {
                continue;
            };
            let (principal, wanted) = (Arc::clone(&state.principal), Arc::clone(&state.wanted));
            let (refused, told) = (state.refused.clone(), state.readings.clone());
            let outbox = Arc::clone(&state.outbox);
            match self.resolve((session, channel), &principal, &wanted, &told) {
                Ok(resolved) if resolved.refusals == refused => {
                    let tables = resolved.tables.iter().map(|(oid, _)| *oid).collect();
                    self.put_in_force(session, channel, resolved);
                    if before.get(&(session, channel)) != Some(&tables) {
                        // A client that named no table is told that it hears of others now.
                        outbox.push(Event::Joined {
                            channel,
                            refusals: Vec::new(),
                            notices: Vec::new(),
                        });
                    }
                }
                // The client joins again and learns there what fits now and what no longer does.
                Ok(_) | Err(_) => self.expel(session, channel, Resync::SchemaChanged),
            }
        }
        // What was known about the stream's versions does not depend on who watches.
        for (oid, (verified, doubt, fits, of_stream)) in versions {
            if let Some(watched) = self.tables.get_mut(&oid) {
                (watched.verified, watched.doubt, watched.fits) = (verified, doubt, fits);
                (watched.described, watched.layout, watched.computed) = of_stream;
            }
        }
    }
}

/// Gets what a join waits for; tries again for as long as it is polled.
async fn answer(watch: &CatalogWatch, asker: &Asker, unparked: &mut Unparked, unread: Vec<Probe>) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    if unread.is_empty() {
        let role = unparked.join.principal.role.as_ref();
        while watch.role(role.to_owned()).await.is_err() {
            tokio::time::sleep(backoff.after_failure()).await;
        }
    }
    for probe in unread {
        loop {
            if let Some(reading) = asker.read(probe.clone()).await {
                unparked.readings.push((probe, reading));
                break;
            }
            tokio::time::sleep(backoff.after_failure()).await;
        }
    }
}

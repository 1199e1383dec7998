//! Channels join and leave.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::Live;
use super::snapshots::queries;
use crate::log::{Cursor, Holder, Offset};
use crate::pg::Oid;
use crate::policy::ask::Asker;
use crate::policy::ask::probe::{Probe, Reading};
use crate::policy::watch::CatalogWatch;
use crate::retry::Backoff;
use crate::router::fanout::Channel;
use crate::router::history::untold;
use crate::router::replay::Returning;
use crate::router::resolve::{Readings, Resolved, Unresolved, refused};
use crate::router::unseen::Late;
use crate::router::{ChannelId, Command, Event, Join, Resync, SessionId};
use crate::subscription::{Start, Wanted};

/// Joins that may wait for PostgreSQL at once; past this clients are told to try again.
const MAX_PARKED: usize = 4096;

/// How long a join waits for PostgreSQL.
const JOIN_TIMEOUT: Duration = Duration::from_secs(8);

/// How long a join waits for the mirrors of what its rules read, which a stream that has much to
/// catch up with delays. Past this rows are judged by asking, and once there is a mirror the channel is
/// told that its audience may have changed meanwhile.
const MIRROR_PATIENCE: Duration = Duration::from_secs(5);

/// A join on its way, with what it has waited for so far.
pub(in crate::router) struct Arriving {
    join: Join,
    /// Which of its channel's joins it is.
    joining: u64,
    /// Whether the catalog was looked at again for its sake.
    role_read: bool,
    /// What PostgreSQL has said of its filters.
    told: Readings,
    /// Since when it waits for mirrors, or has.
    since: Option<Instant>,
}

/// A join whose question to PostgreSQL was answered.
pub(in crate::router) struct Unparked {
    arriving: Arriving,
    readings: Vec<(Probe, Reading)>,
    /// Whether there was an answer at all.
    answered: bool,
}

/// A join to tables whose rules read what is not mirrored yet.
pub(in crate::router) struct Unmirrored {
    arriving: Arriving,
    since: Instant,
    lookups: Vec<Oid>,
}

impl Live {
    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Join(join) => {
                let joining = self.begin(&join);
                // With a new token a channel's filters mean what they meant.
                let known = self.fanout.channel(join.outbox.session(), join.channel);
                let told = known.map(|channel| channel.readings.clone());
                self.join(Arriving {
                    join,
                    joining,
                    role_read: false,
                    told: told.unwrap_or_default(),
                    since: None,
                });
            }
            Command::Leave { session, channel } => self.leave(session, channel),
            Command::Picture(answer) => {
                let lookups = self.looking_up.keeping.status();
                let old_rows = self.old_row_status();
                let picture = self.fanout.picture(&lookups, &old_rows);
                // Whoever asked may be gone.
                let _gone = answer.send(picture);
            }
            Command::Filtered(answer) => {
                let _gone = answer.send(self.fanout.filtered());
            }
            Command::Disconnect { session } => {
                let channels: Vec<ChannelId> = self
                    .fanout
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
        let channels = self
            .fanout
            .sessions
            .entry(join.outbox.session())
            .or_default();
        let channel = channels
            .entry(join.channel)
            .or_insert_with(|| Channel::new(&join.principal, &join.outbox).into());
        channel.joining += 1;
        channel.joining
    }

    /// A channel is left wherever it is.
    fn leave(&mut self, session: SessionId, channel: ChannelId) {
        if let Some(state) = self.fanout.channel(session, channel) {
            if let Some(reader) = state.reader.take() {
                reader.close();
            } else if state.away {
                self.returns.recalled.call(session, channel);
            }
        }
        self.fanout.leave(session, channel);
    }

    fn join(&mut self, arriving: Arriving) {
        if self.fanout.is_behind() {
            // Who comes now falls under what holds now.
            return self.wait(arriving);
        }
        let join = &arriving.join;
        let whose = (join.outbox.session(), join.channel);
        let resolved = self
            .fanout
            .resolve(whose, &join.principal, &join.wanted, &arriving.told);
        // The catalog may be a second old. Before a client is told what it cannot have, it is
        // looked at again.
        let stale = !arriving.role_read
            && match &resolved {
                Ok(resolved) => !resolved.notices.is_empty() || !resolved.refusals.is_empty(),
                Err(Unresolved::Role) => true,
                Err(Unresolved::Unread(_)) => false,
            };
        if stale {
            return self.park(arriving, Vec::new());
        }
        match resolved {
            Ok(resolved) => {
                if let Some(arriving) = self.wait_mirrored(arriving, &resolved) {
                    self.settle(arriving, resolved);
                }
            }
            Err(Unresolved::Role) => self.refuse_role(&arriving.join),
            Err(Unresolved::Unread(unread)) => self.park(arriving, unread),
        }
    }

    /// Lets a join wait until what its rules read is mirrored; gives it back where it need not, or has.
    fn wait_mirrored(&mut self, arriving: Arriving, resolved: &Resolved) -> Option<Arriving> {
        let tables = resolved.tables.iter().map(|(oid, _)| *oid);
        let lookups = self.awaited_by(&arriving.join, tables);
        let since = arriving.since.unwrap_or_else(Instant::now);
        let full = self.unmirrored.len() >= MAX_PARKED;
        if lookups.is_empty() || full || since.elapsed() >= MIRROR_PATIENCE {
            return Some(arriving);
        }
        let arriving = Arriving {
            since: Some(since),
            ..arriving
        };
        self.unmirrored.push(Unmirrored {
            arriving,
            since,
            lookups,
        });
        None
    }

    /// Puts a join in force, or sends it after what it has missed.
    fn settle(&mut self, arriving: Arriving, resolved: Resolved) {
        let Arriving {
            mut join, joining, ..
        } = arriving;
        let (notices, refusals) = (resolved.notices.clone(), resolved.refusals.clone());
        let (session, channel) = (join.outbox.session(), join.channel);
        let Some(known) = self.fanout.channel(session, channel) else {
            return;
        };
        if let Some(reader) = known.reader.take() {
            reader.close();
            known.away = false;
        }
        if known.away {
            // It takes effect where the one before it has come to.
            known.successor = Some(Box::new((join, resolved.readings)));
            self.returns.recalled.call(session, channel);
            return;
        }
        let mut wishes = join.wanted.iter();
        let with_snapshot = wishes.any(|wish| wish.start.snapshot.is_some());
        let goes_on = known.settled;
        let (before, holder) = (Arc::clone(&known.wanted), Arc::clone(&known.principal));
        let tables = resolved.tables.iter().map(|(oid, _)| *oid);
        let whom = self.fanout.holder(tables.clone(), &join.principal);
        // The rows of another are others.
        let alike = !goes_on || self.fanout.shows_alike(tables, &holder, &join.principal);
        if goes_on {
            // With a new token it goes on where it is.
            for wish in &mut join.wanted {
                let known = before.iter().find(|known| known.id == wish.id);
                let since = known.and_then(|known| known.start.since);
                wish.start = Start {
                    // The log has yet to come to where it is.
                    since: since.filter(|since| since.offset > self.next),
                    holder: None,
                    read_at: None,
                    unseen_by: known.and_then(|known| known.start.unseen_by.clone()),
                    snapshot: wish.start.snapshot.take().filter(|_| !alike),
                };
            }
        }
        let begin = self.begin_with_snapshot(&mut join.wanted, whom);
        let queries = queries(&resolved, &begin);
        // Who has all its rows read anew misses nothing.
        let shows_else = join.keeps_cursor && !alike && begin.len() < join.wanted.len();
        self.fanout.withdraw(session, channel);
        self.note(&join, &resolved.readings);
        let holder = self.introduce(session, channel, whom);
        let returning = join.wanted.iter().any(|wish| wish.start.is_earlier());
        if shows_else {
            join.outbox.push(Event::Joined {
                channel,
                refusals,
                notices,
                holder,
            });
            self.fanout.expel(session, channel, Resync::AccessChanged);
            return;
        }
        // What it is about to read, as nobody tells it what lies before.
        let reads = |binding: u32| {
            let mut wishes = join.wanted.iter().filter(|wish| wish.id == binding);
            !goes_on && wishes.any(|wish| !wish.start.is_earlier())
        };
        let read: Vec<Oid> = resolved
            .tables
            .iter()
            .filter(|(_, bindings)| bindings.iter().any(|binding| reads(binding.id)))
            .map(|(oid, _)| *oid)
            .collect();
        if returning {
            self.fanout.reserve(session, channel, resolved);
        } else {
            self.fanout.put_in_force(session, channel, resolved);
        }
        let joined = Event::Joined {
            channel,
            refusals,
            notices,
            holder,
        };
        if read.is_empty() {
            join.outbox.push(joined);
        } else {
            let late = Late::Expel(session, channel, joining);
            self.fanout.unseen.tell(&read, &join.outbox, joined, late);
        }
        if goes_on && with_snapshot && !returning {
            join.outbox.push(Event::CaughtUp { channel });
        }
        if returning {
            match self.beginning_of(&join.wanted, whom) {
                Ok(_) if !queries.is_empty() => {
                    self.take_snapshot(session, channel, queries);
                }
                Ok(from) => self.send_after(session, channel, from),
                Err(reason) => self.fanout.tell_to_read(&join.outbox, channel, reason),
            }
        }
    }

    /// Takes a channel out of force whose role there is not.
    fn refuse_role(&mut self, join: &Join) {
        let reason = format!(
            "ERROR 22023 (invalid_parameter_value) role {:?} does not exist",
            join.principal.role
        );
        let (session, channel) = (join.outbox.session(), join.channel);
        self.fanout.withdraw(session, channel);
        if let Some(known) = self.fanout.channel(session, channel) {
            // What it was before the refresh must not come back with the next catalog.
            known.principal = Arc::clone(&join.principal);
            known.wanted = Arc::new([]);
            known.refused = Vec::new();
            known.successor = None;
            if let Some(reader) = known.reader.take() {
                reader.close();
                known.away = false;
            } else if std::mem::take(&mut known.away) {
                self.returns.recalled.call(session, channel);
            }
        }
        join.outbox.push(Event::Joined {
            channel,
            refusals: join
                .wanted
                .iter()
                .map(|wish| refused(wish, &reason))
                .collect(),
            notices: Vec::new(),
            holder: None,
        });
    }

    /// Notes who a channel is now and what it wants.
    fn note(&mut self, join: &Join, told: &Readings) {
        if join.wanted.iter().any(Wanted::is_open) {
            // The catalog may not know a table yet whose rows it now asks for.
            self.fanout.passed.clear();
        }
        let next = self.next;
        let (position, read_at) = (self.fanout.position.get(), self.fanout.catalog.read_at);
        let returning = join.wanted.iter().any(|wish| wish.start.is_earlier());
        let mut wanted = join.wanted.clone();
        if returning {
            // What does not say where it begins begins now, also where others catch up first.
            for wish in &mut wanted {
                if wish.start.since.is_none() {
                    wish.start.since = Some(Cursor {
                        offset: next,
                        ..position
                    });
                    // It is read now.
                    wish.start.read_at = Some(read_at);
                }
            }
        }
        if let Some(known) = self.fanout.channel(join.outbox.session(), join.channel) {
            known.principal = Arc::clone(&join.principal);
            known.wanted = wanted.into();
            known.readings = told.clone();
            known.settled = true;
        }
    }

    /// Notes whom a channel's cursors are given to from now on.
    fn introduce(
        &mut self,
        session: SessionId,
        channel: ChannelId,
        holder: Holder,
    ) -> Option<Holder> {
        if let Some(known) = self.fanout.channel(session, channel) {
            known.holder = Some(holder);
        }
        Some(holder)
    }

    /// [`Live::beginning`] for somebody whose cursors these should be: what lies before another's
    /// was judged for that one, and who was given one under other rules has not been told of these.
    pub(super) fn beginning_of(&self, wanted: &[Wanted], holder: Holder) -> Result<Offset, Resync> {
        let from = self.beginning(wanted)?;
        let mut starts = wanted.iter().map(|wish| &wish.start);
        let of_others = starts.any(|start| {
            let of = start.holder.filter(|_| start.since.is_some());
            of.is_some_and(|of| !of.sees_as(holder))
        });
        if of_others || untold(wanted, holder) {
            return Err(Resync::AccessChanged);
        }
        Ok(from)
    }

    /// The first change that one of the wishes asks for, where the log can give it.
    pub(super) fn beginning(&self, wanted: &[Wanted]) -> Result<Offset, Resync> {
        let range = self.fanout.log.range();
        let mut from = self.next;
        for since in wanted.iter().filter_map(|wish| wish.start.since) {
            let ahead = since.offset > self.next;
            if since.epoch != self.fanout.epoch || ahead && self.whole {
                return Err(Resync::Epoch);
            }
            if since.offset < range.start {
                return Err(Resync::Trimmed);
            }
            from = from.min(since.offset);
        }
        Ok(from)
    }

    /// Sends a channel after what it has missed.
    pub(super) fn send_after(&mut self, session: SessionId, channel: ChannelId, from: Offset) {
        if from == self.next {
            return self.bring_in_force(session, channel, from);
        }
        let Some(state) = self.fanout.channel(session, channel) else {
            return;
        };
        state.away = true;
        let member = Returning {
            session,
            channel,
            joining: state.joining,
            principal: Arc::clone(&state.principal),
            outbox: Arc::clone(&state.outbox),
            wanted: if state.refused.is_empty() {
                Arc::clone(&state.wanted)
            } else {
                let refused = |wish: &&Wanted| {
                    let mut refusals = state.refused.iter();
                    refusals.any(|refusal| refusal.binding == wish.id)
                };
                let wanted = state.wanted.iter().filter(|wish| !refused(wish));
                wanted.cloned().collect()
            },
            readings: state.readings.clone(),
            from,
            awaits: None,
        };
        self.returns.gather(member);
    }

    /// A channel that was catching up joins anew, mostly with a new token.
    pub(super) fn take_over(&mut self, mut join: Join, told: &Readings, before: &Returning) {
        let (session, channel) = (before.session, before.channel);
        for wish in &mut join.wanted {
            let known = before.wanted.iter().find(|known| known.id == wish.id);
            wish.start = known.map(|known| known.start.clone()).unwrap_or_default();
        }
        self.fanout.withdraw(session, channel);
        self.note(&join, told);
        let whose = (session, channel);
        let resolved = self
            .fanout
            .resolve(whose, &join.principal, &join.wanted, told)
            .unwrap_or_default();
        let tables = resolved.tables.iter().map(|(oid, _)| *oid);
        let whom = self.fanout.holder(tables.clone(), &join.principal);
        let alike = self
            .fanout
            .shows_alike(tables, &before.principal, &join.principal);
        join.outbox.push(Event::Joined {
            channel,
            refusals: resolved.refusals.clone(),
            notices: resolved.notices.clone(),
            holder: self.introduce(session, channel, whom),
        });
        self.fanout.reserve(session, channel, resolved);
        if alike {
            self.send_after(session, channel, before.from);
        } else {
            // What it was given before was judged for somebody else.
            self.fanout
                .tell_to_read(&join.outbox, channel, Resync::AccessChanged);
        }
    }

    /// Lets a join wait for PostgreSQL while everything else goes on.
    fn park(&mut self, arriving: Arriving, unread: Vec<Probe>) {
        if self.parked.len() >= MAX_PARKED {
            debug!("too many joins wait for the database");
            self.unavailable(&arriving.join);
            return;
        }
        let (watch, asker) = (self.fanout.watch.clone(), self.fanout.asker.clone());
        self.parked.push(Box::pin(async move {
            let mut unparked = Unparked {
                arriving: Arriving {
                    role_read: unread.is_empty(),
                    ..arriving
                },
                readings: Vec::new(),
                answered: false,
            };
            let answering = answer(&watch, &asker, &mut unparked, unread);
            // Clients give up a join after ten seconds and try again: better they hear why.
            let answered = tokio::time::timeout(JOIN_TIMEOUT, answering).await;
            unparked.answered = answered.is_ok();
            unparked
        }));
    }

    /// Lets a join wait until the stream has come to the newest catalog.
    fn wait(&mut self, arriving: Arriving) {
        if self.waiting.len() >= MAX_PARKED {
            debug!("too many joins wait for the stream");
            return self.unavailable(&arriving.join);
        }
        self.waiting.push((Instant::now(), arriving));
    }

    /// The lookups without a mirror yet that the rules read by which a new channel would be judged.
    /// One that goes on is told what changes of them once they have one.
    fn awaited_by(&mut self, join: &Join, tables: impl Iterator<Item = Oid> + Clone) -> Vec<Oid> {
        let known = self
            .fanout
            .channel(join.outbox.session(), join.channel)
            .is_some_and(|channel| channel.settled || channel.away || channel.reader.is_some());
        let returning = join.wanted.iter().any(|wish| wish.start.is_earlier());
        if known || returning {
            return Vec::new();
        }
        self.look_into();
        let mut awaited = self.looking_up.awaited();
        let role = &join.principal.role;
        awaited.retain(|lookup| {
            let mut tables = tables.clone();
            self.fanout.reads_one_of(&mut tables, role, &[*lookup])
        });
        awaited.extend(self.awaited_old_rows(tables));
        awaited
    }

    /// Takes those joins up whose lookups are mirrored by now, or will not be, or not soon.
    pub(super) fn look_for_mirrored(&mut self) {
        if self.unmirrored.is_empty() {
            return;
        }
        let mut awaited = self.looking_up.awaited();
        let lookups = self.unmirrored.iter().flat_map(|one| &one.lookups);
        awaited.extend(self.awaited_old_rows(lookups.copied()));
        let (waiting, ready) = std::mem::take(&mut self.unmirrored)
            .into_iter()
            .partition(|one| {
                one.since.elapsed() < MIRROR_PATIENCE
                    && one.lookups.iter().any(|lookup| awaited.contains(lookup))
            });
        self.unmirrored = waiting;
        let ready: Vec<Unmirrored> = ready;
        for one in ready {
            self.go_on(one.arriving);
        }
    }

    fn unavailable(&mut self, join: &Join) {
        self.fanout.withdraw(join.outbox.session(), join.channel);
        join.outbox.push(Event::Unavailable {
            channel: join.channel,
        });
    }

    /// Takes a join up that has waited for PostgreSQL.
    pub(super) fn unpark(&mut self, unparked: Unparked) {
        let Unparked {
            mut arriving,
            readings,
            answered,
        } = unparked;
        for (probe, reading) in readings {
            if Reading::lasts(&probe) {
                self.fanout.readings.share(probe.clone(), reading.clone());
            }
            arriving.told.insert(probe, reading);
        }
        if answered {
            self.go_on(arriving);
        } else if self.is_current(&arriving) {
            warn!("a join could not be decided: the database does not answer");
            self.unavailable(&arriving.join);
        }
    }

    /// Takes a join up that has waited.
    pub(super) fn go_on(&mut self, arriving: Arriving) {
        if !self.is_current(&arriving) {
            debug!("a channel was left while it was joining");
        } else if self.adopt() {
            self.join(arriving);
        } else {
            self.wait(arriving);
        }
    }

    /// Whether a join is the last word of its channel.
    fn is_current(&self, arriving: &Arriving) -> bool {
        let join = &arriving.join;
        let channels = self.fanout.sessions.get(&join.outbox.session());
        let channel = channels.and_then(|channels| channels.get(&join.channel));
        channel.is_some_and(|channel| channel.joining == arriving.joining)
    }
}

/// Gets what a join waits for; tries again for as long as it is polled.
async fn answer(watch: &CatalogWatch, asker: &Asker, unparked: &mut Unparked, unread: Vec<Probe>) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    if unread.is_empty() {
        let role = unparked.arriving.join.principal.role.as_ref();
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

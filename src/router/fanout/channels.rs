//! Channels come, go, and are held against each new catalog.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{Channel, Fanout, Watched};
use crate::auth::Principal;
use crate::pg::Oid;
use crate::policy::access::Access;
use crate::policy::catalog::Table;
use crate::router::group::{Group, Moment};
use crate::router::resolve::{Readings, Resolved, Rulebook, Told, Unresolved, resolve};
use crate::router::{ChannelId, Event, Leaves, Resync, SessionId};
use crate::subscription::Wanted;

impl Fanout {
    pub(in crate::router) fn resolve(
        &mut self,
        (session, channel): (SessionId, ChannelId),
        principal: &Principal,
        wanted: &[Wanted],
        told: &Readings,
    ) -> Result<Resolved, Unresolved> {
        let rulebook = Rulebook {
            require: self.settings.require,
            unjudged_deletes: self.unjudged_keys(),
            all_leaves: matches!(self.settings.leave, Leaves::All),
            snapshot: self.snapshot_settings,
        };
        let old_rows = self.old_rows.clone();
        let mirrored = |table: &Table, column: &str| {
            let rows = old_rows.as_ref();
            rows.is_some_and(|rows| rows.carries(table.oid, column))
        };
        let (catalog, accesses) = (&self.catalog, &mut self.access);
        let rules_changed = &mut self.rules_changed;
        let mut resolved = resolve(
            catalog,
            Told {
                own: told,
                shared: &self.readings,
            },
            (rulebook, &mirrored),
            principal,
            wanted,
            |table| {
                let key = (table.oid, Arc::clone(&principal.role));
                let access = accesses.entry(key).or_insert_with(|| {
                    *rules_changed = true;
                    Arc::new(Access::new(catalog, table, &principal.role))
                });
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

    /// Counts what an absent channel asks, so that it is not more than it may have once it is back.
    pub(in crate::router) fn reserve(
        &mut self,
        session: SessionId,
        channel: ChannelId,
        resolved: Resolved,
    ) {
        let channels = self.sessions.get_mut(&session);
        if let Some(state) = channels.and_then(|all| all.get_mut(&channel)) {
            self.allowance.take(&resolved.asked);
            state.asked = resolved.asked;
            state.refused = resolved.refusals;
        }
    }

    pub(in crate::router) fn put_in_force(
        &mut self,
        session: SessionId,
        channel: ChannelId,
        resolved: Resolved,
    ) {
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
                changes: 0,
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
    pub(in crate::router) fn withdraw(&mut self, session: SessionId, channel: ChannelId) {
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

    pub(in crate::router) fn leave(&mut self, session: SessionId, channel: ChannelId) {
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
    pub(in crate::router) fn expel(
        &mut self,
        session: SessionId,
        channel: ChannelId,
        reason: Resync,
    ) {
        self.withdraw(session, channel);
        if let Some(state) = self
            .sessions
            .get(&session)
            .and_then(|all| all.get(&channel))
        {
            self.tell_to_read(&state.outbox, channel, reason);
        }
        if let Some(replay) = &mut self.replay {
            replay.ended.push((session, channel));
            self.leave(session, channel);
        }
    }

    /// Tells those who want what happened at the moment in hand.
    pub(super) fn expel_table(&mut self, oid: Oid, reason: Resync) {
        self.expel_watchers(oid, Some(self.moment), reason);
    }

    pub(super) fn expel_watchers(&mut self, oid: Oid, at: Option<Moment>, reason: Resync) {
        // Of the rows themselves those learn nothing who can see none.
        let of_rows = matches!(
            reason,
            Resync::Truncated | Resync::TooLarge | Resync::Undecodable
        );
        for (session, channel) in self.watching(oid, at, of_rows) {
            self.expel(session, channel, reason);
        }
    }

    /// Those who watch a table, or of them only those who want what happened at a moment, or who
    /// may see rows of it.
    pub(in crate::router) fn watching(
        &self,
        oid: Oid,
        at: Option<Moment>,
        of_rows: bool,
    ) -> Vec<(SessionId, ChannelId)> {
        let groups = self.tables.get(&oid).into_iter();
        let groups = groups.flat_map(|watched| watched.groups.values());
        groups
            .filter(|group| !(of_rows && group.access.hides_all))
            .flat_map(Group::members)
            .filter(|member| at.is_none_or(|moment| member.wants(moment)))
            .map(|member| (member.outbox.session(), member.channel))
            .collect()
    }

    pub(in crate::router) fn expel_everybody(&mut self, reason: Resync) {
        let everybody: Vec<_> = self
            .sessions
            .iter()
            .flat_map(|(session, channels)| {
                let present = channels.iter().filter(|(_, state)| !state.away);
                present.map(|(channel, _)| (*session, *channel))
            })
            .collect();
        for (session, channel) in everybody {
            self.expel(session, channel, reason);
        }
    }

    /// Resolves anew every channel that watches one of `changed`, that named no table, or that has
    /// a binding which was refused: what it could not have before may be published, granted or
    /// named so now.
    pub(super) fn resubscribe(&mut self, changed: &[Oid]) {
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
            .filter(|(_, _, state)| !state.away)
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
        let named = |oid: &Oid| {
            let table = &self.tables.get(oid)?.table;
            Some((*oid, (table.schema.clone(), table.name.clone())))
        };
        let names: HashMap<Oid, _> = changed.iter().filter_map(named).collect();
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
                    let tables: BTreeSet<Oid> =
                        resolved.tables.iter().map(|(oid, _)| *oid).collect();
                    if let Some(before) = before.get(&(session, channel))
                        && self.is_another(before, &tables, &names, &wanted)
                    {
                        self.expel(session, channel, Resync::SchemaChanged);
                        continue;
                    }
                    let holder = self.holder(tables.iter().copied(), &principal);
                    let known = self.channel(session, channel);
                    let same = known.is_some_and(|known| {
                        let before = known.holder.replace(holder);
                        before == Some(holder)
                    });
                    self.put_in_force(session, channel, resolved);
                    if before.get(&(session, channel)) != Some(&tables) {
                        // A client that named no table is told that it hears of others now.
                        outbox.push(Event::Joined {
                            channel,
                            refusals: Vec::new(),
                            notices: Vec::new(),
                            holder: Some(holder),
                        });
                    } else if !same {
                        // Its cursors are to say what decides now.
                        outbox.push(Event::Introduced { channel, holder });
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

    /// Whether a channel has another table now under the name of one that it had, which is not there
    /// any more: none of its rows is what the client has read.
    fn is_another(
        &self,
        before: &BTreeSet<Oid>,
        now: &BTreeSet<Oid>,
        names: &HashMap<Oid, (String, String)>,
        wanted: &[Wanted],
    ) -> bool {
        // One that asked for it by its name has no other instead.
        let open = wanted.iter().any(Wanted::is_open);
        let mut gone = before.difference(now);
        gone.any(|gone| {
            let name = names.get(gone);
            let mut new = now
                .difference(before)
                .filter_map(|oid| self.catalog.tables.get(oid));
            !open || new.any(|table| name == Some(&(table.schema.clone(), table.name.clone())))
        })
    }
}

//! The state machine.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::channel::{Channel, ROWCAST, SYSTEM};
use super::join::{answer_refused_join, error, say_farewells};
use super::quota::{Full, Place, Quota, User};
use super::reply::{Reply, Status};
use super::request::{Body, Request, Wire};
use super::resume::Progress;
use super::spread::Spread;
use super::{Action, Close, Limits, Now, Verify};
use crate::auth::{Principal, TokenError};
use crate::log::{Cursor, Holder, Offset};
use crate::pg::Lsn;
use crate::router::{ChannelId, Event};

/// Placeholders of clients that have no token of their own.
pub(super) const PLACEHOLDER: &str = "sb_";

const UNREACHABLE: &str =
    "UnableToConnectToProject: Realtime was unable to connect to the project database";

/// One client: who it is, and the channels that it joined.
pub struct Session {
    pub(super) limits: Limits,
    pub(super) principal: Arc<Principal>,
    /// In the order of their ids.
    pub(super) channels: Vec<Channel>,
    pub(super) last_channel: u32,
    /// The current second of the join rate and the joins in it.
    pub(super) joins: (Duration, u32),
    malformed: u32,
    users: Option<Arc<Quota<User>>>,
    /// When channels break; at once where nobody says.
    spread: Option<Arc<Spread>>,
    /// The principal's own place among its user's sockets.
    place: Option<Arc<Place<User>>>,
    /// How far the router had got when it was last looked at.
    pub(super) position: Option<Cursor>,
    /// The cursors, by topic, whose holder was told to read again.
    pub(super) refused: Vec<(Arc<str>, Cursor)>,
    /// The cursors that came with the word to read again, and under which rules that is done.
    pub(super) handed_out: VecDeque<(Arc<str>, Cursor, Lsn)>,
    /// Whether the server is about to stop.
    pub(super) standby: bool,
}

impl Session {
    /// A client that came as `principal` and has joined nothing yet.
    #[must_use]
    pub const fn new(principal: Arc<Principal>, limits: Limits) -> Self {
        Self {
            limits,
            principal,
            channels: Vec::new(),
            last_channel: 0,
            joins: (Duration::ZERO, 0),
            malformed: 0,
            users: None,
            spread: None,
            place: None,
            position: None,
            refused: Vec::new(),
            handed_out: VecDeque::new(),
            standby: false,
        }
    }

    /// The same, one of the sockets that `users` counts, whose channels break by turns with those
    /// of the others. The principal's user takes its place now, those of channels with tokens of
    /// their own when they are known.
    ///
    /// # Errors
    /// [`Full`] where the principal's user has too many sockets.
    pub fn counted(
        principal: Arc<Principal>,
        limits: Limits,
        users: Option<Arc<Quota<User>>>,
        spread: Arc<Spread>,
    ) -> Result<Self, Full> {
        let mut session = Self::new(principal, limits);
        session.users = users;
        session.spread = Some(spread);
        session.place = session.place_of(&Arc::clone(&session.principal))?;
        Ok(session)
    }

    /// The role that the client came with.
    #[must_use]
    pub fn role(&self) -> Arc<str> {
        Arc::clone(&self.principal.role)
    }

    /// Channels joined or being joined.
    #[must_use]
    pub const fn channels(&self) -> usize {
        self.channels.len()
    }

    /// When [`Session::tick`] is due, in Unix seconds.
    #[must_use]
    pub fn next_expiry(&self) -> Option<i64> {
        self.channels
            .iter()
            .filter(|channel| !channel.is_unverified())
            .filter_map(|channel| channel.principal.expires_at)
            .min()
    }

    /// Takes a client's message.
    pub fn request(&mut self, request: Request, now: Now, actions: &mut Vec<Action>) {
        self.malformed = 0;
        let Request {
            join_ref,
            reference,
            topic,
            body,
        } = request;
        let at = self.channels.iter().position(|c| *c.topic == *topic);
        match body {
            Body::Heartbeat if &*topic == "phoenix" => actions.push(Action::Reply(Reply::Ok {
                join_ref: None,
                reference,
                topic,
            })),
            Body::Leave => self.leave(at, join_ref, reference, topic, actions),
            Body::Join(_) if !topic.starts_with("realtime:") => {
                actions.push(error(None, reference, topic, "unmatched topic"));
            }
            Body::Join(join) => {
                // Phoenix lets a join's own reference stand for a missing join reference.
                let join_ref = join_ref.or_else(|| reference.clone());
                self.join(at, (join_ref, reference, topic), *join, now, actions);
            }
            body => {
                let Some(channel) = at.and_then(|at| self.channels.get_mut(at)) else {
                    actions.push(error(None, reference, topic, "unmatched topic"));
                    return;
                };
                let reason = match body {
                    // It comes with the next join as well.
                    Body::AccessToken(_) if channel.breaks_at.is_some() => return,
                    Body::AccessToken(token) => {
                        if let Some(token) = token.filter(|token| !token.starts_with(PLACEHOLDER)) {
                            channel.attempt = channel.attempt.wrapping_add(1);
                            actions.push(Action::Verify(Verify {
                                channel: channel.id,
                                attempt: channel.attempt,
                                token,
                            }));
                        }
                        return;
                    }
                    Body::Broadcast => {
                        "broadcast is not supported yet by this server; only postgres_changes are"
                    }
                    Body::Presence => {
                        "presence is not supported yet by this server; only postgres_changes are"
                    }
                    _ => "unknown event",
                };
                if reference.is_some() {
                    actions.push(error(channel.join_ref.clone(), reference, topic, reason));
                }
            }
        }
    }

    /// Counts a frame that could not be read. One now and then is dropped, as Supabase does; a
    /// client that sends nothing else is closed.
    pub fn malformed(&mut self, actions: &mut Vec<Action>) {
        self.malformed += 1;
        if self.malformed > self.limits.malformed_frames {
            actions.push(Action::Close(Close::Protocol));
        }
    }

    fn leave(
        &mut self,
        at: Option<usize>,
        join_ref: Option<Wire>,
        reference: Option<Wire>,
        topic: Arc<str>,
        actions: &mut Vec<Action>,
    ) {
        let current = at.filter(|at| {
            self.channels
                .get(*at)
                .is_some_and(|channel| join_ref.is_none() || channel.join_ref == join_ref)
        });
        actions.push(Action::Reply(Reply::Ok {
            join_ref,
            reference,
            topic,
        }));
        // A leave that was meant for an earlier join of the topic says nothing about this one.
        if let Some(at) = current {
            let channel = self.channels.remove(at);
            actions.push(Action::Leave(channel.id));
            actions.push(Action::Reply(channel.closed()));
            if let Some(joining) = channel.joining {
                say_farewells(joining.superseded, &channel.topic, actions);
            }
        }
    }

    /// Takes the result of [`Action::Verify`].
    pub fn verified(
        &mut self,
        channel: ChannelId,
        attempt: u32,
        result: Result<Principal, TokenError>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let Some(at) = self.position(channel) else {
            return;
        };
        let result = match result {
            Ok(principal) => match expired(&principal, now) {
                // It may have ended while its key was being fetched.
                Some(error) => Err(error),
                None => Ok(self.shared(principal)),
            },
            Err(error) => Err(error),
        };
        let Some(channel) = self.channels.get(at) else {
            return;
        };
        if channel.attempt != attempt {
            return;
        }
        match result {
            Ok(principal) => {
                let place = match self.place_of(&principal) {
                    Ok(place) => place,
                    Err(full) => {
                        let reason = format!("ConnectionRateLimitReached: {full}");
                        return self.refuse_or_end(at, reason, full.to_string(), actions);
                    }
                };
                let joining = channel.joining.as_deref().filter(|join| join.unverified);
                if let Some(reason) = joining.and_then(Self::objection_to_verified) {
                    return self.refuse(at, reason, actions);
                }
                let Some(channel) = self.channels.get_mut(at) else {
                    return;
                };
                channel.place = place;
                let first = channel
                    .joining
                    .as_mut()
                    .is_some_and(|joining| std::mem::take(&mut joining.unverified));
                if first || channel.principal != principal {
                    channel.principal = Arc::clone(&principal);
                    let mut wanted = channel.wanted.iter();
                    if wanted.any(|wish| wish.start.snapshot.is_some()) {
                        // Somebody else has another one read before the changes go on.
                        channel.progress.current = false;
                    }
                    actions.push(Action::Join {
                        channel: channel.id,
                        principal,
                        wanted: channel.wanted.clone(),
                        keeps_cursor: channel.keeps_cursor(),
                    });
                }
            }
            Err(error) => {
                let reason = format!("{}: {error}", error.code());
                self.refuse_or_end(at, reason, error.to_string(), actions);
            }
        }
    }

    /// Refuses a join that is under way, or ends the channel that it made.
    fn refuse_or_end(
        &mut self,
        at: usize,
        reason: String,
        text: String,
        actions: &mut Vec<Action>,
    ) {
        let is_joined = |channel: &Channel| channel.joining.is_none();
        if !self.channels.get(at).is_some_and(is_joined) {
            return self.refuse(at, reason, actions);
        }
        let channel = self.channels.remove(at);
        actions.push(Action::Leave(channel.id));
        end(&channel, text, actions);
    }

    /// Refuses a join that is under way.
    pub(super) fn refuse(&mut self, at: usize, reason: String, actions: &mut Vec<Action>) {
        if at >= self.channels.len() {
            return;
        }
        let channel = self.channels.remove(at);
        actions.push(Action::Leave(channel.id));
        if let Some(joining) = channel.joining {
            answer_refused_join(channel.join_ref, *joining, channel.topic, reason, actions);
        }
    }

    /// The place of a principal's user: one for all of the socket's channels. `None` where places
    /// are not counted, or not this principal's.
    fn place_of(&self, principal: &Arc<Principal>) -> Result<Option<Arc<Place<User>>>, Full> {
        let Some(users) = &self.users else {
            return Ok(None);
        };
        if Arc::ptr_eq(principal, &self.principal) && self.place.is_some() {
            return Ok(self.place.clone());
        }
        let Some(user) = User::of(principal) else {
            return Ok(None);
        };
        let held = self.channels.iter().map(|channel| &channel.place);
        let mut held = held.chain(std::iter::once(&self.place)).flatten();
        if let Some(place) = held.find(|place| *place.key() == user) {
            return Ok(Some(Arc::clone(place)));
        }
        users.take(user).map(|place| Some(Arc::new(place)))
    }

    /// The same principal as another channel's is held once.
    fn shared(&self, principal: Principal) -> Arc<Principal> {
        std::iter::once(&self.principal)
            .chain(self.channels.iter().map(|channel| &channel.principal))
            .find(|held| ***held == principal)
            .map_or_else(|| Arc::new(principal), Arc::clone)
    }

    /// Takes an event of the router. Events of channels that have ended are ignored.
    pub fn event(&mut self, event: Event, now: Now, actions: &mut Vec<Action>) {
        match event {
            Event::Joined {
                channel,
                refusals,
                notices,
                holder,
            } => self.joined(channel, (refusals, notices), holder, actions),
            Event::Introduced { channel, holder } => self.introduced(channel, Some(holder)),
            Event::Change { channel, change } => {
                if let Some((topic, holder)) = self.change(channel, change.offset) {
                    actions.push(Action::Reply(Reply::Change {
                        topic: Arc::clone(topic),
                        bindings: change.bindings.clone(),
                        committed_at: change.committed_at,
                        data: change.data.clone(),
                        holder,
                    }));
                }
            }
            Event::Unavailable { channel } => {
                let Some(at) = self.position(channel) else {
                    return;
                };
                if self.channels.get(at).is_some_and(|c| c.joining.is_some()) {
                    return self.refuse(at, UNREACHABLE.to_owned(), actions);
                }
                // An error, unlike an end, has the client try again by itself.
                let channel = self.channels.remove(at);
                actions.push(Action::Leave(channel.id));
                actions.push(Action::Reply(channel.broken()));
            }
            Event::CaughtUp { channel } => self.caught_up(channel),
            Event::Snapshot { channel, page, .. } => {
                let at = self.position(channel);
                if let Some(channel) = at.and_then(|at| self.channels.get(at))
                    && channel.joining.is_none()
                {
                    actions.push(Action::Reply(Reply::Snapshot {
                        join_ref: channel.join_ref.clone(),
                        topic: Arc::clone(&channel.topic),
                        page,
                        holder: channel.holder,
                    }));
                }
            }
            Event::SnapshotFailed { channel, failure } => {
                let (reason, text) = ("snapshot_failed", failure.to_string());
                self.read_again(channel, (reason, text, None), now, actions);
            }
            Event::Resync {
                channel,
                reason,
                cursor,
                read_at,
            } => {
                let text = "Changes may have been missed; read the tables again".to_owned();
                let cursor = cursor.or(self.position);
                let at = self.position(channel).and_then(|at| self.channels.get(at));
                if let (Some(channel), Some(cursor)) = (at, cursor) {
                    let topic = Arc::clone(&channel.topic);
                    self.hand_out(topic, cursor, read_at);
                }
                self.read_again(channel, (reason.as_str(), text, cursor), now, actions);
            }
        }
    }

    /// Takes a change that the router has for a channel: under which topic it goes out, and whom its
    /// cursor is given to; `None` where the channel has ended. The same as [`Session::event`] for
    /// those who write it themselves.
    pub fn change(
        &mut self,
        channel: ChannelId,
        offset: Offset,
    ) -> Option<(&Arc<str>, Option<Holder>)> {
        let at = self.position(channel)?;
        let epoch = self.position.map(|position| position.epoch);
        let channel = self.channels.get_mut(at)?;
        if channel.joining.is_some() {
            return None;
        }
        if let Some(epoch) = epoch {
            let offset = Offset(offset.0 + 1);
            channel.progress.pass(Cursor { epoch, offset });
        }
        Some((&channel.topic, channel.holder))
    }

    /// Ends a channel whose client must begin anew: it is told so now, and that the channel broke
    /// when it is its turn.
    fn read_again(
        &mut self,
        channel: ChannelId,
        (reason, text, cursor): (&'static str, String, Option<Cursor>),
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let Some(at) = self.position(channel) else {
            return;
        };
        // The client joins again by itself, with a new reference.
        let mut channel = self.channels.remove(at);
        actions.push(Action::Leave(channel.id));
        let mut system = channel.system(ROWCAST, Status::Resync, text);
        system.reason = Some(reason);
        // Whoever can have a snapshot is better served with that than with a place behind what it
        // missed.
        let mut wanted = channel.wanted.iter();
        let snapshot = wanted.any(|wish| wish.start.snapshot.is_some());
        let cursor = cursor.filter(|_| !snapshot);
        system.cursor = cursor.map(|cursor| channel.held(cursor));
        self.refuse_cursors(&channel);
        actions.push(Action::Reply(Reply::System(Box::new(system))));
        let place = |spread: &Arc<Spread>| spread.place(now.monotonic);
        let breaks_at = self.spread.as_ref().map_or(now.monotonic, place);
        if breaks_at <= now.monotonic {
            actions.push(Action::Reply(channel.broken()));
            return;
        }
        channel.breaks_at = Some(breaks_at);
        // Nothing is left of it but its name.
        channel.progress = Progress::default();
        channel.wanted = Vec::new();
        channel.bytes = 0;
        channel.joining = None;
        self.channels.insert(at, channel);
    }

    /// Ends the channels whose token has ended.
    pub fn tick(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.channels.retain_mut(|channel| {
            let Some(error) = expired(&channel.principal, now) else {
                return true;
            };
            if channel.is_unverified() {
                // It has not become this principal's channel yet.
                return true;
            }
            actions.push(Action::Leave(channel.id));
            match channel.joining.take() {
                Some(joining) => {
                    let reason = format!("{}: {error}", error.code());
                    let topic = Arc::clone(&channel.topic);
                    answer_refused_join(channel.join_ref.take(), *joining, topic, reason, actions);
                }
                None => end(channel, error.to_string(), actions),
            }
            false
        });
    }

    /// Notes that the server is about to stop: what is joined goes on, nothing is joined any more.
    pub const fn stand_by(&mut self) {
        self.standby = true;
    }

    /// Takes leave of the client because the server stops.
    pub fn shut_down(&mut self, actions: &mut Vec<Action>) {
        self.last_report(actions);
        for channel in self.channels.drain(..) {
            let mut system =
                channel.system(SYSTEM, Status::Ok, "Server requested disconnect".to_owned());
            system.names_channel = false;
            actions.push(Action::Reply(Reply::System(Box::new(system))));
        }
        actions.push(Action::Close(Close::Shutdown));
    }

    /// Where a channel is that has not come to its end.
    pub(super) fn position(&self, channel: ChannelId) -> Option<usize> {
        let mut channels = self.channels.iter();
        channels.position(|held| held.id == channel && held.breaks_at.is_none())
    }
}

pub(super) fn expired(principal: &Principal, now: Now) -> Option<TokenError> {
    let at = principal.expires_at.filter(|at| *at <= now.unix)?;
    Some(TokenError::Expired {
        seconds_ago: now.unix.saturating_sub(at),
    })
}

/// Ends a channel for good, with the reason.
fn end(channel: &Channel, text: String, actions: &mut Vec<Action>) {
    let system = channel.system(SYSTEM, Status::Error, text);
    actions.push(Action::Reply(Reply::System(Box::new(system))));
    actions.push(Action::Reply(channel.closed()));
}

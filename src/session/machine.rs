//! The state machine.

use std::sync::Arc;
use std::time::Duration;

use super::channel::{Channel, Joining, POSTGRES_CHANGES, ROWCAST, SYSTEM};
use super::reply::{Reply, Status};
use super::request::{Body, JoinRequest, Request, Wire};
use super::{Action, Close, Limits, Now, Verify};
use crate::auth::{Principal, TokenError};
use crate::router::{ChannelId, Event, Refusal};

/// Placeholders of clients that have no token of their own.
const PLACEHOLDER: &str = "sb_";

/// One client: who it is, and the channels that it joined.
pub struct Session {
    limits: Limits,
    principal: Arc<Principal>,
    /// In the order of their ids.
    channels: Vec<Channel>,
    last_channel: u32,
    /// The current second of the join rate and the joins in it.
    joins: (Duration, u32),
    malformed: u32,
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
        }
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
        }
    }

    fn join(
        &mut self,
        at: Option<usize>,
        (join_ref, reference, topic): (Option<Wire>, Option<Wire>, Arc<str>),
        join: JoinRequest,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let mut joining = Joining {
            reference,
            echoes: Vec::new(),
            refusal: None,
            superseded: Vec::new(),
            unverified: true,
        };
        // The old channel ends whatever becomes of the new one.
        if let Some(at) = at {
            let old = self.channels.remove(at);
            actions.push(Action::Leave(old.id));
            if let Some(unanswered) = old.joining {
                joining.superseded = unanswered.superseded;
            }
            // With the same reference the client would take the old one's end for the new one's.
            if old.join_ref != join_ref {
                joining.supersede(old.join_ref);
            }
        }
        let bytes = join.bindings.iter().map(|b| b.echo.0.len()).sum();
        if let Some(reason) = self.objection(&topic, &join, bytes, now) {
            answer_refused_join(join_ref, joining, topic, reason, actions);
            return;
        }

        let mut wanted = Vec::with_capacity(join.bindings.len());
        joining.echoes.reserve_exact(join.bindings.len());
        for binding in join.bindings {
            match binding.wanted {
                Ok(one) => wanted.push(one),
                Err(text) => {
                    let refusal = (text, binding.echo.clone());
                    joining.refusal.get_or_insert(refusal);
                }
            }
            joining.echoes.push(binding.echo);
        }
        if joining.refusal.is_some() {
            // Half of what was asked for would look like all of it.
            wanted = Vec::new();
        }
        self.last_channel = self.last_channel.wrapping_add(1);
        let id = ChannelId(self.last_channel);
        let token = join.token.filter(|token| !token.starts_with(PLACEHOLDER));
        self.channels.push(Channel {
            id,
            topic,
            join_ref,
            principal: Arc::clone(&self.principal),
            wanted,
            bytes,
            attempt: 0,
            joining: Some(Box::new(joining)),
        });
        match token {
            Some(token) => actions.push(Action::Verify(Verify {
                channel: id,
                attempt: 0,
                token,
            })),
            None => match expired(&self.principal, now) {
                Some(error) => self.verified(id, 0, Err(error), now, actions),
                None => {
                    let own = Principal::clone(&self.principal);
                    self.verified(id, 0, Ok(own), now, actions);
                }
            },
        }
    }

    /// What stands against a join before its token is looked at.
    fn objection(
        &mut self,
        topic: &str,
        join: &JoinRequest,
        bytes: usize,
        now: Now,
    ) -> Option<String> {
        if topic == "realtime:" {
            return Some("TopicNameRequired: You must provide a topic name".to_owned());
        }
        let second = Duration::from_secs(now.monotonic.as_secs());
        if self.joins.0 != second {
            self.joins = (second, 0);
        }
        if self.joins.1 >= self.limits.joins_per_second {
            return Some("ClientJoinRateLimitReached: Too many joins per second".to_owned());
        }
        self.joins.1 += 1;
        if self.channels.len() >= self.limits.channels {
            return Some("ChannelRateLimitReached: Too many channels".to_owned());
        }
        let limit = self.limits.topic_bytes;
        if topic.len() > limit {
            return Some(format!("TopicTooLong: A topic may have {limit} bytes"));
        }
        let limit = self.limits.bindings;
        if join.binding_count > limit {
            return Some(format!(
                "TooManyBindings: A channel may have {limit} postgres_changes bindings"
            ));
        }
        let held: usize = self.channels.iter().map(|channel| channel.bytes).sum();
        let limit = self.limits.bindings_bytes;
        if held.saturating_add(bytes) > limit {
            return Some(format!(
                "BindingsTooLong: The postgres_changes bindings of a socket may have {limit} bytes"
            ));
        }
        join.private.then(|| {
            "PrivateChannelsNotSupported: private channels are not supported yet by this server"
                .to_owned()
        })
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
        let Some(channel) = self.channels.get_mut(at) else {
            return;
        };
        if channel.attempt != attempt {
            return;
        }
        match result {
            Ok(principal) => {
                let first = channel
                    .joining
                    .as_mut()
                    .is_some_and(|joining| std::mem::take(&mut joining.unverified));
                if first || channel.principal != principal {
                    channel.principal = Arc::clone(&principal);
                    actions.push(Action::Join {
                        channel: channel.id,
                        principal,
                        wanted: channel.wanted.clone(),
                    });
                }
            }
            Err(error) => {
                let channel = self.channels.remove(at);
                actions.push(Action::Leave(channel.id));
                match channel.joining {
                    Some(joining) => {
                        let reason = format!("{}: {error}", error.code());
                        let (join_ref, topic) = (channel.join_ref, channel.topic);
                        answer_refused_join(join_ref, *joining, topic, reason, actions);
                    }
                    None => end(&channel, error.to_string(), actions),
                }
            }
        }
    }

    /// The same principal as another channel's is held once.
    fn shared(&self, principal: Principal) -> Arc<Principal> {
        std::iter::once(&self.principal)
            .chain(self.channels.iter().map(|channel| &channel.principal))
            .find(|held| ***held == principal)
            .map_or_else(|| Arc::new(principal), Arc::clone)
    }

    /// Takes an event of the router. Events of channels that have ended are ignored.
    pub fn event(&mut self, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Joined {
                channel,
                refusal,
                notices,
            } => self.joined(channel, refusal, notices, actions),
            Event::Change {
                channel,
                bindings,
                committed_at,
                data,
                ..
            } => {
                let at = self.position(channel);
                if let Some(channel) = at.and_then(|at| self.channels.get(at))
                    && channel.joining.is_none()
                {
                    actions.push(Action::Reply(Reply::Change {
                        topic: Arc::clone(&channel.topic),
                        bindings,
                        committed_at,
                        data,
                    }));
                }
            }
            Event::Resync { channel, reason } => {
                let Some(at) = self.position(channel) else {
                    return;
                };
                // The client joins again by itself, with a new reference.
                let channel = self.channels.remove(at);
                actions.push(Action::Leave(channel.id));
                let mut system = channel.system(
                    ROWCAST,
                    Status::Resync,
                    "Changes may have been missed; read the tables again".to_owned(),
                );
                system.reason = Some(reason.as_str());
                actions.push(Action::Reply(Reply::System(Box::new(system))));
                actions.push(Action::Reply(Reply::Failed {
                    join_ref: channel.join_ref,
                    topic: channel.topic,
                }));
            }
        }
    }

    fn joined(
        &mut self,
        channel: ChannelId,
        refusal: Option<Refusal>,
        notices: Vec<String>,
        actions: &mut Vec<Action>,
    ) {
        let at = self.position(channel);
        let Some(channel) = at.and_then(|at| self.channels.get_mut(at)) else {
            return;
        };
        let mut refused_before = None;
        let mut echo = None;
        if let Some(joining) = channel.joining.take() {
            refused_before = joining.refusal;
            echo = refusal.as_ref().and_then(|refusal| {
                let at = usize::try_from(refusal.binding).ok()?.checked_sub(1)?;
                joining.echoes.get(at).cloned()
            });
            actions.push(Action::Reply(Reply::Joined {
                join_ref: channel.join_ref.clone(),
                reference: joining.reference,
                topic: Arc::clone(&channel.topic),
                bindings: joining.echoes,
            }));
            say_farewells(joining.superseded, &channel.topic, actions);
        }
        let system = |status, text| channel.system(POSTGRES_CHANGES, status, text);
        let verdict = if let Some((text, binding)) = refused_before {
            let mut verdict = system(Status::Error, text);
            verdict.binding = Some(binding);
            Some(verdict)
        } else if let Some(refusal) = refusal {
            let mut verdict = system(Status::Error, channel.refused(&refusal));
            verdict.binding = echo;
            Some(verdict)
        } else if channel.wanted.is_empty() {
            None
        } else {
            Some(system(Status::Ok, "Subscribed to PostgreSQL".to_owned()))
        };
        let notices = notices
            .into_iter()
            .map(|notice| channel.system(ROWCAST, Status::Warning, notice));
        for system in verdict.into_iter().chain(notices) {
            actions.push(Action::Reply(Reply::System(Box::new(system))));
        }
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

    /// Takes leave of the client because the server stops.
    pub fn shut_down(&mut self, actions: &mut Vec<Action>) {
        for channel in self.channels.drain(..) {
            let mut system =
                channel.system(SYSTEM, Status::Ok, "Server requested disconnect".to_owned());
            system.names_channel = false;
            actions.push(Action::Reply(Reply::System(Box::new(system))));
        }
        actions.push(Action::Close(Close::Shutdown));
    }

    fn position(&self, channel: ChannelId) -> Option<usize> {
        self.channels.iter().position(|held| held.id == channel)
    }
}

fn expired(principal: &Principal, now: Now) -> Option<TokenError> {
    let at = principal.expires_at.filter(|at| *at <= now.unix)?;
    Some(TokenError::Expired {
        seconds_ago: now.unix.saturating_sub(at),
    })
}

fn error(
    join_ref: Option<Wire>,
    reference: Option<Wire>,
    topic: Arc<str>,
    reason: impl Into<String>,
) -> Action {
    Action::Reply(Reply::Error {
        join_ref,
        reference,
        topic,
        reason: reason.into(),
    })
}

fn answer_refused_join(
    join_ref: Option<Wire>,
    joining: Joining,
    topic: Arc<str>,
    reason: String,
    actions: &mut Vec<Action>,
) {
    actions.push(error(
        join_ref,
        joining.reference,
        Arc::clone(&topic),
        reason,
    ));
    say_farewells(joining.superseded, &topic, actions);
}

/// The end of older joins is said after the new one was answered.
fn say_farewells(superseded: Vec<Option<Wire>>, topic: &Arc<str>, actions: &mut Vec<Action>) {
    for join_ref in superseded {
        actions.push(Action::Reply(Reply::Closed {
            join_ref,
            topic: Arc::clone(topic),
        }));
    }
}

/// Ends a channel for good, with the reason.
fn end(channel: &Channel, text: String, actions: &mut Vec<Action>) {
    let system = channel.system(SYSTEM, Status::Error, text);
    actions.push(Action::Reply(Reply::System(Box::new(system))));
    actions.push(Action::Reply(channel.closed()));
}

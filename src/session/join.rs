//! Joining a topic: what stands against it, how it is granted, how it is answered.

use std::sync::Arc;
use std::time::Duration;

use super::channel::{Channel, Joining, POSTGRES_CHANGES, ROWCAST};
use super::machine::{PLACEHOLDER, Session, expired};
use super::reply::{Reply, Status};
use super::request::{JoinRequest, Wire};
use super::resume::Progress;
use super::{Action, Now, Verify};
use crate::auth::Principal;
use crate::log::Holder;
use crate::router::{ChannelId, Refusal};

impl Session {
    pub(super) fn join(
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
            refusals: Vec::new(),
            superseded: Vec::new(),
            unverified: true,
            private: join.private,
            wait: join.wait,
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

        joining
            .refusals
            .extend(join.mistake.map(|text| (text, None)));
        let mut wanted = Vec::with_capacity(join.bindings.len());
        joining.echoes.reserve_exact(join.bindings.len());
        for binding in join.bindings {
            match binding.wanted {
                Ok(mut one) => {
                    self.begin(&topic, &mut one.start);
                    wanted.push(one);
                }
                Err(text) => joining.refusals.push((text, Some(binding.echo.clone()))),
            }
            joining.echoes.push(binding.echo);
        }
        self.last_channel = self.last_channel.wrapping_add(1);
        let id = ChannelId(self.last_channel);
        let token = join.token.filter(|token| !token.starts_with(PLACEHOLDER));
        self.channels.push(Channel {
            id,
            topic,
            join_ref,
            principal: Arc::clone(&self.principal),
            place: None,
            progress: Progress::new(join.cursor, &wanted),
            holder: None,
            wanted,
            bytes,
            attempt: 0,
            breaks_at: None,
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

    /// What stands against a join before its token is looked at; of several what Supabase says
    /// first.
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
        if self.standby {
            return Some("RealtimeRestarting: Realtime is restarting, please standby".to_owned());
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
        join.refusal.clone()
    }

    /// What stands against a join whose token is good.
    pub(super) fn objection_to_verified(joining: &Joining) -> Option<String> {
        if joining.private {
            return Some(
                "PrivateChannelsNotSupported: private channels are not supported yet by this server"
                    .to_owned(),
            );
        }
        let (text, _) = joining.refusals.first().filter(|_| joining.wait)?;
        Some(refused_by_binding(text))
    }

    /// Notes whom a channel's cursors are given to from now on.
    pub(super) fn introduced(&mut self, channel: ChannelId, holder: Option<Holder>) {
        let at = self.position(channel);
        let channel = at.and_then(|at| self.channels.get_mut(at));
        if let Some(channel) = channel.filter(|channel| channel.holder != holder) {
            channel.holder = holder;
            channel.progress.tell_anew();
        }
    }

    pub(super) fn joined(
        &mut self,
        channel: ChannelId,
        (refusals, notices): (Vec<Refusal>, Vec<String>),
        holder: Option<Holder>,
        actions: &mut Vec<Action>,
    ) {
        self.introduced(channel, holder);
        let at = self.position(channel);
        let Some(channel) = at.and_then(|at| self.channels.get_mut(at)) else {
            return;
        };
        // Whoever waits for all of its bindings gets all of them or none.
        if let Some(refusal) = refusals.first()
            && channel.joining.as_ref().is_some_and(|joining| joining.wait)
        {
            let reason = refused_by_binding(&channel.refused(refusal));
            if let Some(at) = at {
                self.refuse(at, reason, actions);
            }
            return;
        }
        // A refused binding errs alone, and says which it is: the others are in force.
        let mut errors = Vec::new();
        let in_force = channel.wanted.len().saturating_sub(refusals.len());
        if let Some(joining) = channel.joining.take() {
            for (text, echo) in joining.refusals {
                errors.push(channel.refused_binding(text, echo));
            }
            for refusal in &refusals {
                let at = usize::try_from(refusal.binding).ok();
                let echo = at
                    .and_then(|at| joining.echoes.get(at.checked_sub(1)?))
                    .cloned();
                errors.push(channel.refused_binding(channel.refused(refusal), echo));
            }
            actions.push(Action::Reply(Reply::Joined {
                join_ref: channel.join_ref.clone(),
                reference: joining.reference,
                topic: Arc::clone(&channel.topic),
                bindings: joining.echoes,
            }));
            say_farewells(joining.superseded, &channel.topic, actions);
        } else {
            let refused = |refusal| channel.refused_binding(channel.refused(refusal), None);
            errors.extend(refusals.iter().map(refused));
        }
        let ok = (in_force > 0).then(|| {
            channel.system(
                POSTGRES_CHANGES,
                Status::Ok,
                "Subscribed to PostgreSQL".to_owned(),
            )
        });
        let notices = notices
            .into_iter()
            .map(|notice| channel.system(ROWCAST, Status::Warning, notice));
        for system in errors.into_iter().chain(ok).chain(notices) {
            actions.push(Action::Reply(Reply::System(Box::new(system))));
        }
    }
}

/// The reason of a join that is refused because one of its bindings is.
fn refused_by_binding(text: &str) -> String {
    format!("RealtimeDisabledForConfiguration: {text}")
}

pub(super) fn error(
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

pub(super) fn answer_refused_join(
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
pub(super) fn say_farewells(
    superseded: Vec<Option<Wire>>,
    topic: &Arc<str>,
    actions: &mut Vec<Action>,
) {
    for join_ref in superseded {
        actions.push(Action::Reply(Reply::Closed {
            join_ref,
            topic: Arc::clone(topic),
        }));
    }
}

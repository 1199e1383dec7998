//! How many different filters PostgreSQL is asked about for one socket and for one user.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::group::Binding;
use super::resolve::Resolved;
use super::{Refusal, SessionId};
use crate::auth::Principal;
use crate::pg::Oid;

/// Whose filters are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Holder {
    Socket(SessionId),
    /// A subject of tokens, in one role.
    User(Arc<str>, Box<str>),
}

/// A channel's filters that PostgreSQL is asked about, each once, and whose they are. They count
/// from [`Allowance::take`] until [`Allowance::give_back`].
#[derive(Debug, Default)]
pub(super) struct Held {
    holders: Vec<Holder>,
    /// What is asked, which names the table and the condition.
    queries: Vec<Arc<str>>,
}

/// Counts asked filters; equal ones are asked about once and count once.
#[derive(Debug)]
pub(super) struct Allowance {
    /// 0 for as many as there are.
    most: usize,
    held: HashMap<Holder, HashMap<Arc<str>, usize>>,
}

impl Allowance {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            held: HashMap::new(),
        }
    }

    /// Takes out of `resolved` what is too much beside what the other channels have; `own` is what
    /// the channel has now. What is left is to be taken once it is in force.
    pub(super) fn limit(
        &mut self,
        resolved: &mut Resolved,
        (session, principal): (SessionId, &Principal),
        own: &Held,
    ) -> Held {
        let mut held = Held::default();
        let asks =
            |(_, bindings): &(Oid, Vec<Binding>)| bindings.iter().any(|b| asked(b).is_some());
        if self.most == 0 || !resolved.tables.iter().any(asks) {
            return held;
        }
        let user = principal
            .claims
            .subject()
            .map(|subject| Holder::User(Arc::clone(&principal.role), subject.into()));
        held.holders = [Holder::Socket(session)].into_iter().chain(user).collect();
        self.give_back(own);
        let mut granted: HashSet<Arc<str>> = HashSet::new();
        let mut too_many = Vec::new();
        let bindings = resolved.tables.iter().flat_map(|(_, bindings)| bindings);
        let mut wishes: Vec<(u32, Arc<str>)> = bindings
            .filter_map(|binding| Some((binding.id, asked(binding)?)))
            .collect();
        wishes.sort_unstable();
        // All that one wish asks for is granted, or nothing of it.
        for wish in wishes.chunk_by(|one, other| one.0 == other.0) {
            let mut wanted = granted.clone();
            wanted.extend(wish.iter().map(|(_, query)| Arc::clone(query)));
            let fits = held.holders.iter().all(|holder| {
                let others = self.held.get(holder);
                let new = |queries: &HashSet<Arc<str>>| {
                    let has =
                        |query: &&Arc<str>| others.is_some_and(|held| held.contains_key(*query));
                    queries.len() - queries.iter().filter(has).count()
                };
                let has = others.map_or(0, HashMap::len);
                new(&wanted) == new(&granted) || has + new(&wanted) <= self.most
            });
            if fits {
                granted = wanted;
            } else {
                too_many.extend(wish.first().map(|(id, _)| *id));
            }
        }
        self.take(own);
        for (_, bindings) in &mut resolved.tables {
            bindings.retain(|binding| !too_many.contains(&binding.id));
        }
        resolved.tables.retain(|(_, bindings)| !bindings.is_empty());
        resolved
            .refusals
            .extend(too_many.into_iter().map(|binding| Refusal {
                binding,
                reason: self.reason(),
            }));
        resolved.refusals.sort_by_key(|refusal| refusal.binding);
        held.queries = granted.into_iter().collect();
        held
    }

    fn reason(&self) -> String {
        format!(
            "ERROR 54000 (program_limit_exceeded) too many filters that PostgreSQL has to be asked \
             about: a socket and a user may have {} different ones (max_asked_filters)",
            self.most
        )
    }

    pub(super) fn take(&mut self, held: &Held) {
        for holder in &held.holders {
            let counts = self.held.entry(holder.clone()).or_default();
            for query in &held.queries {
                *counts.entry(Arc::clone(query)).or_default() += 1;
            }
        }
    }

    pub(super) fn give_back(&mut self, held: &Held) {
        for holder in &held.holders {
            let Some(counts) = self.held.get_mut(holder) else {
                continue;
            };
            for query in &held.queries {
                if let Some(count) = counts.get_mut(query) {
                    *count -= 1;
                    if *count == 0 {
                        counts.remove(query);
                    }
                }
            }
            if counts.is_empty() {
                self.held.remove(holder);
            }
        }
    }
}

fn asked(binding: &Binding) -> Option<Arc<str>> {
    let question = binding.filter.question()?;
    Some(Arc::clone(&question.query))
}

//! The subscribers of a round, wherever they are.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::{StreamExt, stream};
use serde_json::Map;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::books::Books;
use super::database::ROLE;
use super::latency::Clock;
use super::plan::{Plan, Written, user_id};
use super::progress::Progress;
use super::relay::{Front, Relay};
use super::subscriber::{Condition, Subscriber, System, Wish};
use super::verifier::{Tally, Verifier};
use crate::cli::token;
use crate::config::Secret;

/// Handshakes at once: enough to be quick, few enough to measure the relay and not its backlog.
const CONNECTING: usize = 32;

/// How subscribers are made.
#[derive(Debug, Clone, Copy)]
pub struct Recipe<'a> {
    /// Whom they subscribe to.
    pub system: System,
    /// The relay's secret.
    pub jwt_secret: &'a Secret,
    /// Who gets what.
    pub plan: Plan,
    /// A number that no other round of this run has.
    pub number: u32,
    /// The run's clock.
    pub clock: Clock,
}

/// Subscribers that have joined and write down what they get.
#[derive(Debug)]
pub struct Crowd {
    /// What they write down.
    pub books: Arc<Books>,
    /// The sockets; `None` where the subscribers are in the relay's process.
    sockets: Option<Sockets>,
}

#[derive(Debug)]
struct Sockets {
    receivers: JoinSet<Verifier>,
    stop: CancellationToken,
}

impl Crowd {
    /// Joins them, each as a user of its own.
    ///
    /// # Errors
    /// The first join that fails.
    pub async fn gather(
        relay: &mut Relay,
        recipe: Recipe<'_>,
        progress: &mut Progress,
    ) -> anyhow::Result<Self> {
        let Recipe {
            plan,
            number: round,
            clock,
            ..
        } = recipe;
        let address = match &mut relay.front {
            Front::Sockets(address) => *address,
            Front::Inside(inside) => {
                let joined = inside.join(plan, round, clock, progress).await;
                return Ok(Self {
                    books: relay.child.explain(joined).await?,
                    sockets: None,
                });
            }
        };
        let total = plan.subscribers;
        let mut connecting = stream::iter(0..total)
            .map(|number| async move {
                let token = token_of(number, recipe.jwt_secret)?;
                let wish = Wish {
                    filter: Condition::of(&plan, number),
                    ..Wish::default()
                };
                let subscriber = Subscriber::connect(recipe.system, address, &token, &wish)
                    .await
                    .with_context(|| format!("Subscriber {number} of {total}"))?;
                anyhow::Ok((number, subscriber))
            })
            .buffer_unordered(CONNECTING);
        let books = Arc::new(Books::new(round, clock)?);
        let stop = CancellationToken::new();
        let mut receivers = JoinSet::new();
        while let Some(subscriber) = connecting.next().await {
            let (number, subscriber) = subscriber?;
            let verifier = Verifier::new(plan, number);
            let (books, stop) = (Arc::clone(&books), stop.clone());
            receivers.spawn(async move { subscriber.receive(verifier, &books, stop).await });
            progress.update(|| format!("joined {} of {total}", receivers.len()));
        }
        let sockets = Some(Sockets { receivers, stop });
        Ok(Self { books, sockets })
    }

    /// Lets them go; what they got is held against what was written.
    ///
    /// # Errors
    /// Where they were lost.
    pub async fn finish(self, relay: &mut Relay, written: &Written) -> anyhow::Result<Tally> {
        if let Front::Inside(inside) = &mut relay.front {
            let tally = inside.finish(written.clone(), &self.books).await;
            return relay.child.explain(tally).await;
        }
        let mut tally = Tally::default();
        if let Some(mut sockets) = self.sockets {
            sockets.stop.cancel();
            while let Some(verifier) = sockets.receivers.join_next().await {
                tally.add(&verifier?.finish(written));
            }
        }
        Ok(tally)
    }
}

/// A token for a user.
///
/// # Errors
/// Where it cannot be signed.
pub fn token_of(user: u64, jwt_secret: &Secret) -> anyhow::Result<String> {
    let mut claims = Map::new();
    claims.insert("sub".into(), user_id(user).into());
    claims.insert("role".into(), ROLE.into());
    token::sign(claims, Duration::from_secs(24 * 3600), jwt_secret).map_err(anyhow::Error::msg)
}

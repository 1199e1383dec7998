//! Tokens of one client whose keys are on their way. Nothing else waits for them.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::connection::unix_now;
use crate::auth::{Authenticator, Principal, TokenError};
use crate::router::ChannelId;

/// Different tokens of one client that may wait at once. A client has one, or a few.
const MAX_TOKENS: usize = 16;
/// Questions that one token may answer. A client that joins and leaves all the time has many.
const MAX_WAITING: usize = 1024;

/// For which channels and which of their tokens, and what became of it.
pub(super) type Verified = (Vec<(ChannelId, u32)>, Result<Principal, TokenError>);

type Running = BoxFuture<'static, (Arc<str>, Result<Principal, TokenError>)>;

#[derive(Default)]
pub(super) struct Verifying {
    waiting: Vec<Waiting>,
    running: FuturesUnordered<Running>,
}

struct Waiting {
    token: Arc<str>,
    channels: Vec<(ChannelId, u32)>,
}

impl Verifying {
    pub(super) const fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Has a token verified; what `channel` says comes back from [`Verifying::next`]. Where too
    /// much waits already it is refused at once.
    pub(super) fn add(
        &mut self,
        auth: &Arc<Authenticator>,
        channel: (ChannelId, u32),
        token: String,
    ) -> Option<Result<Principal, TokenError>> {
        if let Some(same) = self.waiting.iter_mut().find(|w| *w.token == *token) {
            // Only a channel's newest token counts.
            if let Some(older) = same.channels.iter_mut().find(|(id, _)| *id == channel.0) {
                *older = channel;
            } else if same.channels.len() < MAX_WAITING {
                same.channels.push(channel);
            } else {
                return Some(Err(TokenError::Signer));
            }
            return None;
        }
        if self.waiting.len() >= MAX_TOKENS {
            return Some(Err(TokenError::Signer));
        }
        let token: Arc<str> = token.into();
        self.waiting.push(Waiting {
            token: Arc::clone(&token),
            channels: vec![channel],
        });
        let auth = Arc::clone(auth);
        self.running.push(Box::pin(async move {
            let result = auth.verify(&token, unix_now()).await;
            (token, result)
        }));
        None
    }

    /// The next token that is decided; never where none is under way. Cancel safe.
    pub(super) async fn next(&mut self) -> Verified {
        let Some((token, result)) = self.running.next().await else {
            return std::future::pending().await;
        };
        let at = self.waiting.iter().position(|w| w.token == token);
        let channels = at.map_or_else(Vec::new, |at| self.waiting.swap_remove(at).channels);
        (channels, result)
    }
}

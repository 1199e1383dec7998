//! The one place where a token becomes a [`Principal`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;

use super::jwks::Jwks;
use super::keys::{Key, algorithm, is_symmetric};
use super::token::{Parts, TokenError, cleaned, judged, parts};
use super::{Claims, Principal};

/// What tokens are verified with.
#[derive(Clone)]
pub struct Settings {
    /// The key of HS256, HS384 and HS512 tokens.
    pub jwt_secret: Option<String>,
    /// Where the public keys of RS256, ES256 and EdDSA tokens are, by http or https.
    pub jwks_url: Option<String>,
    /// The role of a token without a role claim.
    pub default_role: String,
    /// The claim that names the role; dots lead into objects.
    pub role_claim: String,
    /// Opaque keys and the role that each stands for.
    pub api_keys: BTreeMap<String, String>,
    /// The least time between two fetches of the issuer's keys because of an unknown one.
    pub refetch_floor: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            jwt_secret: None,
            jwks_url: None,
            default_role: "anon".to_owned(),
            role_claim: "role".to_owned(),
            api_keys: BTreeMap::new(),
            refetch_floor: Duration::from_secs(10),
        }
    }
}

/// The secret and the keys must not reach a log.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("default_role", &self.default_role)
            .field("role_claim", &self.role_claim)
            .field("api_keys", &self.api_keys.len())
            .finish_non_exhaustive()
    }
}

/// The settings are unusable.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// An empty secret would let everybody sign.
    #[error("the JWT secret is empty")]
    EmptySecret,
    /// The address of the keys is none.
    #[error("the JWKS URL is not an http or https URL")]
    InvalidUrl,
    /// The system's root certificates could not be read.
    #[error("cannot read the system's root certificates: {0}")]
    Roots(#[from] std::io::Error),
}

/// Verifies tokens. Shared by all connections.
pub struct Authenticator {
    secret: Option<Key>,
    jwks: Option<Jwks>,
    default_role: Arc<str>,
    role_claim: String,
    api_keys: Vec<(String, Principal)>,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").finish_non_exhaustive()
    }
}

impl Authenticator {
    /// An authenticator with the secret and the opaque keys; the issuer's keys come with
    /// [`Authenticator::keep_keys`] or with the first token that needs them.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let secret = match settings.jwt_secret {
            Some(secret) if secret.is_empty() => return Err(SettingsError::EmptySecret),
            secret => secret.map(|secret| Key::secret(secret.as_bytes())),
        };
        let jwks = match settings.jwks_url {
            None => None,
            Some(url) => {
                let uri: Uri = url.parse().map_err(|_| SettingsError::InvalidUrl)?;
                if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
                    return Err(SettingsError::InvalidUrl);
                }
                Some(Jwks::new(uri, settings.refetch_floor)?)
            }
        };
        let api_keys = settings
            .api_keys
            .into_iter()
            .map(|(key, role)| {
                let claims = serde_json::json!({ "role": role }).to_string();
                let principal = Principal {
                    role: role.into(),
                    claims: Claims::verified(claims),
                    expires_at: None,
                };
                (key, principal)
            })
            .collect();
        Ok(Self {
            secret,
            jwks,
            default_role: settings.default_role.into(),
            role_claim: settings.role_claim,
            api_keys,
        })
    }

    /// Fetches the issuer's keys and keeps them fresh, for as long as it is polled; returns at
    /// once where there is no issuer. Cancel safe.
    pub async fn keep_keys(&self) {
        if let Some(jwks) = &self.jwks {
            jwks.keep().await;
        }
    }

    /// Fetches the issuer's keys once and says how many there are, or why there are none; `None`
    /// where there is no issuer.
    pub async fn issuer_keys(&self) -> Option<Result<usize, String>> {
        Some(self.jwks.as_ref()?.count().await)
    }

    /// Verifies a token at `now` (Unix seconds), fetching the issuer's keys anew if it names one
    /// that is unknown; that takes 5 s at most. Cancel safe.
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn verify(&self, token: &str, now: i64) -> Result<Principal, TokenError> {
        if let Some(known) = self.try_verify(token, now) {
            return known;
        }
        if let Some(jwks) = &self.jwks {
            jwks.refetch().await;
        }
        self.examine(token, now)
    }

    /// Verifies a token at `now` (Unix seconds) with the keys at hand; `None` where only
    /// [`Authenticator::verify`] can tell.
    pub fn try_verify(&self, token: &str, now: i64) -> Option<Result<Principal, TokenError>> {
        match self.examine(token, now) {
            Err(TokenError::UnknownKey(_)) if self.jwks.as_ref().is_some_and(Jwks::may_learn) => {
                None
            }
            result => Some(result),
        }
    }

    fn examine(&self, token: &str, now: i64) -> Result<Principal, TokenError> {
        let token = cleaned(token)?;
        if let Some(principal) = self.api_key(&token) {
            return Ok(principal);
        }
        let parts = parts(&token)?;
        self.verify_signature(&parts)?;
        let judged = judged(parts.payload, &self.role_claim, now)?;
        Ok(Principal {
            role: judged
                .role
                .map_or_else(|| Arc::clone(&self.default_role), Arc::from),
            claims: Claims::verified(judged.text),
            expires_at: Some(judged.expires_at),
        })
    }

    fn verify_signature(&self, parts: &Parts<'_>) -> Result<(), TokenError> {
        let named = algorithm(&parts.header.alg).ok_or(TokenError::Signer)?;
        if is_symmetric(named) {
            // A key set holds public keys only, so whatever `kid` says, this is the secret's.
            return self
                .secret
                .as_ref()
                .ok_or(TokenError::Signer)?
                .verify(parts);
        }
        let jwks = self.jwks.as_ref().ok_or(TokenError::Signer)?;
        let kid = parts.header.kid.as_deref().ok_or(TokenError::Signer)?;
        match jwks.keys().get(kid) {
            Some(key) => key.verify(parts),
            // What is echoed is bounded: it was written by whoever sent the token.
            None => Err(TokenError::UnknownKey(kid.chars().take(100).collect())),
        }
    }

    /// Compares with every key to its end, so that the time taken tells nothing of them.
    fn api_key(&self, token: &str) -> Option<Principal> {
        let mut found = None;
        for (key, principal) in &self.api_keys {
            let differing = key
                .bytes()
                .zip(token.bytes())
                .fold(key.len() ^ token.len(), |differing, (a, b)| {
                    differing | usize::from(a ^ b)
                });
            if std::hint::black_box(differing) == 0 {
                found = Some(principal);
            }
        }
        found.cloned()
    }
}

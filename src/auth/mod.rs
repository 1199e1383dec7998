//! Who asks: a verified token becomes a [`Principal`].
//!
//! [`Authenticator`] is the only maker of principals: from tokens that a configured secret signs,
//! from tokens that a key of an issuer's key set signs, and from configured opaque keys.

mod authenticator;
mod jwks;
mod keys;
mod token;

use std::fmt;
use std::sync::Arc;

pub use authenticator::{Authenticator, Settings, SettingsError};
pub(crate) use token::role;
pub use token::{MAX_TOKEN_BYTES, MintError, TokenError, mint};

/// The claims of a verified token, as the JSON text that the token carried: what
/// `request.jwt.claims` is set to.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Claims(Arc<str>);

impl Claims {
    /// Takes the JSON text of an object. Whoever calls this has verified the signature.
    #[must_use]
    pub fn verified(json: impl Into<Arc<str>>) -> Self {
        Self(json.into())
    }

    /// The JSON text.
    #[must_use]
    pub fn as_json(&self) -> &str {
        &self.0
    }

    /// Whether both say the same of their holder; when they were made and end is left aside.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        self == other
            || self
                .lasting()
                .is_some_and(|own| Some(own) == other.lasting())
    }

    /// What the claims say of their holder; when they were made and end is left out. `None` where
    /// they are no object.
    #[must_use]
    pub fn lasting(&self) -> Option<serde_json::Value> {
        let read = serde_json::from_str(&self.0);
        let mut claims: serde_json::Map<String, serde_json::Value> = read.ok()?;
        for passing in ["exp", "iat", "nbf", "jti"] {
            claims.remove(passing);
        }
        Some(claims.into())
    }

    /// The claim `sub`: whom the token is about. `None` where it names nobody.
    #[must_use]
    pub fn subject(&self) -> Option<String> {
        // A map, so that of two the last counts, as everywhere else.
        let mut claims: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&self.0).ok()?;
        match claims.remove("sub")? {
            serde_json::Value::String(subject) if !subject.is_empty() => Some(subject),
            _ => None,
        }
    }
}

/// Claims are personal data and must not reach a log.
impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claims({} bytes)", self.0.len())
    }
}

/// Who a channel acts as.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal {
    /// The database role whose rights decide.
    pub role: Arc<str>,
    /// What policies read through `request.jwt.claims`.
    pub claims: Claims,
    /// When the token ends, in seconds since 1970-01-01 00:00 UTC.
    pub expires_at: Option<i64>,
}

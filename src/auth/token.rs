//! A token's text: taken apart, its claims judged, and made.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, Header};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Map, Value};

/// A token longer than this is refused unread, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Why a token was refused. The `Display` text is for its sender and is Supabase's where it has
/// one; nothing in it comes from the claims.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It ended.
    #[error("Token has expired {seconds_ago} seconds ago")]
    Expired {
        /// How long ago.
        seconds_ago: i64,
    },
    /// `nbf` lies ahead.
    #[error("Token is not valid yet")]
    NotYetValid,
    /// It never ends.
    #[error("Fields `role` and `exp` are required in JWT")]
    FieldsRequired,
    /// `exp` is no time.
    #[error("Token expiration time is invalid")]
    InvalidExpiry,
    /// The role claim cannot name a role.
    #[error("The role claim of the token is not the name of a role")]
    InvalidRole,
    /// It is no token.
    #[error("The token provided is not a valid JWT")]
    Malformed,
    /// The signature is another's.
    #[error("Failed to validate JWT signature")]
    Signature,
    /// There is no key for this kind of token.
    #[error("Failed to generate JWT signer, check your JWT secret or JWKS configuration")]
    Signer,
    /// The key that it names is unknown.
    #[error(
        "Failed to generate JWT signer for key ID (kid) \"{0}\", check your JWT secret or JWKS configuration"
    )]
    UnknownKey(String),
}

impl TokenError {
    /// Supabase's name for this kind of error: what a join's refusal starts with.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Expired { .. }
            | Self::NotYetValid
            | Self::FieldsRequired
            | Self::InvalidExpiry
            | Self::InvalidRole => "InvalidJWTToken",
            Self::Malformed => "MalformedJWT",
            Self::Signature => "JwtSignatureError",
            Self::Signer | Self::UnknownKey(_) => "JwtSignerError",
        }
    }

    /// What a refused upgrade says: as `Display`, but without the seconds.
    #[must_use]
    pub fn upgrade_text(&self) -> String {
        match self {
            Self::Expired { .. } => "Token has expired".to_owned(),
            other => other.to_string(),
        }
    }
}

/// What the header may say to find the key. Which algorithm is right is the key's to say.
#[derive(Debug, Deserialize)]
pub(super) struct TokenHeader {
    pub(super) alg: String,
    #[serde(default)]
    pub(super) kid: Option<String>,
    #[serde(default)]
    crit: Option<serde::de::IgnoredAny>,
}

/// A token taken apart, nothing verified.
pub(super) struct Parts<'a> {
    pub(super) header: TokenHeader,
    pub(super) message: &'a str,
    pub(super) payload: &'a str,
    pub(super) signature: &'a str,
}

/// The token as its issuer wrote it: clients send it URL-encoded and with blanks around it.
pub(super) fn cleaned(token: &str) -> Result<String, TokenError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::Malformed);
    }
    let decoded = percent_decode_str(token)
        .decode_utf8()
        .map_err(|_| TokenError::Malformed)?;
    Ok(decoded.trim().to_owned())
}

pub(super) fn parts(token: &str) -> Result<Parts<'_>, TokenError> {
    let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let (header, payload) = message.split_once('.').ok_or(TokenError::Malformed)?;
    if payload.contains('.') {
        return Err(TokenError::Malformed);
    }
    let header = URL_SAFE_NO_PAD
        .decode(header)
        .map_err(|_| TokenError::Malformed)?;
    let header: TokenHeader = serde_json::from_slice(&header).map_err(|_| TokenError::Malformed)?;
    if header.crit.is_some() {
        // It demands something of us that we do not know.
        return Err(TokenError::Malformed);
    }
    Ok(Parts {
        header,
        message,
        payload,
        signature,
    })
}

/// The claims of a token whose signature has been verified.
pub(super) struct Judged {
    /// The claims' text, byte for byte.
    pub(super) text: String,
    /// The role claim, if there is one.
    pub(super) role: Option<String>,
    pub(super) expires_at: i64,
}

/// Judges the claims of a verified token at `now` (Unix seconds).
pub(super) fn judged(payload: &str, role_claim: &str, now: i64) -> Result<Judged, TokenError> {
    let text = URL_SAFE_NO_PAD
        .decode(payload)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or(TokenError::Malformed)?;
    let claims: Map<String, Value> =
        serde_json::from_str(&text).map_err(|_| TokenError::Malformed)?;
    let expires_at = match claims.get("exp") {
        None | Some(Value::Null) => return Err(TokenError::FieldsRequired),
        Some(exp) => seconds(exp).ok_or(TokenError::InvalidExpiry)?,
    };
    if expires_at <= now {
        return Err(TokenError::Expired {
            seconds_ago: now.saturating_sub(expires_at),
        });
    }
    if let Some(from) = claims.get("nbf")
        && seconds(from).is_none_or(|from| from > now)
    {
        return Err(TokenError::NotYetValid);
    }
    Ok(Judged {
        text,
        role: role(&claims, role_claim)?,
        expires_at,
    })
}

/// The role that claims name; `None` where they name none.
///
/// # Errors
/// Where what they name is no role's name.
pub(crate) fn role(
    claims: &Map<String, Value>,
    role_claim: &str,
) -> Result<Option<String>, TokenError> {
    match claim(claims, role_claim) {
        None => Ok(None),
        Some(Value::String(role)) if !role.is_empty() && !role.contains('\0') => {
            Ok(Some(role.clone()))
        }
        Some(_) => Err(TokenError::InvalidRole),
    }
}

/// A claim by its name, or by its path where dots lead into objects. Names may hold dots
/// themselves (`https://example.com/role`), so the whole name is looked for first.
fn claim<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    claims.get(name).or_else(|| {
        let (first, rest) = name.split_once('.')?;
        claim(claims.get(first)?.as_object()?, rest)
    })
}

/// A JSON number of seconds, rounded down.
fn seconds(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let seconds = value.as_f64()?.floor();
        // 2^53: beyond it a double is no exact second, nor a plausible one.
        #[allow(
            clippy::cast_possible_truncation,
            reason = "whole, and within what a double holds exactly"
        )]
        (seconds.abs() < 9_007_199_254_740_992.0).then_some(seconds as i64)
    })
}

/// A token could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot sign the token: {0}")]
pub struct MintError(#[from] jsonwebtoken::errors::Error);

/// Signs `claims` (an object) with `secret` by HS256.
///
/// # Errors
/// [`MintError`] where the claims cannot be written as JSON.
pub fn mint(secret: &str, claims: &Value) -> Result<String, MintError> {
    let key = EncodingKey::from_secret(secret.as_bytes());
    Ok(jsonwebtoken::encode(&Header::default(), claims, &key)?)
}

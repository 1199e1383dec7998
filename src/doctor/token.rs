//! Keys, and a token of somebody who receives nothing.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::{Finding, Severity};
use crate::auth::{Authenticator, Claims, Principal, TokenError};
use crate::config::{Config, Secret};

/// A token that ends within this many seconds is said to.
const SOON: i64 = 60;

/// Whose token it is, as far as it can be read.
pub(super) struct Holder {
    pub(super) role: String,
    pub(super) principal: Principal,
    claims: Map<String, Value>,
}

impl Holder {
    /// Those of the claims (with dots between names) that the token does not have.
    pub(super) fn lacks(&self, claims: &BTreeSet<String>) -> Vec<String> {
        let missing = claims.iter().filter(|path| {
            let mut at = self.claims.get(path.split('.').next().unwrap_or_default());
            for name in path.split('.').skip(1) {
                at = at.and_then(|value| value.get(name));
            }
            at.is_none_or(Value::is_null)
        });
        missing.cloned().collect()
    }

    /// Whether the claim `sub` is a text that is no uuid.
    pub(super) fn has_odd_subject(&self) -> bool {
        let subject = self.claims.get("sub").and_then(Value::as_str);
        subject.is_some_and(|subject| {
            let digits: Vec<char> = subject.chars().filter(|c| *c != '-').collect();
            digits.len() != 32 || !digits.iter().all(char::is_ascii_hexdigit)
        })
    }
}

/// The settings that tokens are verified by.
pub(super) fn keys(warnings: &[String], config: &Config) -> Vec<Finding> {
    let mut found: Vec<Finding> = warnings
        .iter()
        .map(|warning| {
            Finding::warning("jwt_secret_weak", warning.trim_end_matches('.')).advice(
                "Set another JWT_SECRET, such as what `openssl rand -hex 32` prints, wherever tokens \
                 are signed as well.",
            )
        })
        .collect();
    if config.jwt_secret.is_none() && config.jwks_url.is_none() {
        found.push(
            Finding::error(
                "jwt_none",
                "Neither JWT_SECRET nor JWKS_URL is set; one of them must be, or no token can be \
                 verified",
            )
            .advice(
                "Set the secret that signs your users' tokens, or where their issuer's keys are.",
            ),
        );
    }
    found
}

/// Whether the issuer's keys can be had.
pub(super) async fn issuer(authenticator: &Authenticator, config: &Config) -> Option<Finding> {
    let url = config.jwks_url.as_deref().unwrap_or_default();
    let place = url.split(['?', '#']).next().unwrap_or_default();
    match authenticator.issuer_keys().await? {
        Ok(0) => Some(
            Finding::error(
                "jwks_empty",
                format!(
                    "{place} has no key that verifies tokens: those signed with one are refused"
                ),
            )
            .advice("Correct JWKS_URL; keys need a kid, and are of RSA, P-256, P-384 or Ed25519."),
        ),
        Ok(_) => None,
        Err(reason) => Some(
            Finding::error(
                "jwks_unreachable",
                format!("the token issuer's keys cannot be fetched from {place}: {reason}"),
            )
            .advice("Correct JWKS_URL, or let this machine reach it."),
        ),
    }
}

/// The claims of a token, whoever signed it.
fn claims(token: &str) -> Option<(String, Map<String, Value>)> {
    let payload = token.trim().split('.').nth(1)?;
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    let claims = serde_json::from_str(&text).ok()?;
    Some((text, claims))
}

fn role_of(claims: &Map<String, Value>, config: &Config) -> Option<String> {
    let named = claims.get(&config.role_claim).or_else(|| {
        let mut names = config.role_claim.split('.');
        let first = claims.get(names.next()?)?;
        names.try_fold(first, |at, name| at.get(name))
    });
    match named {
        None | Some(Value::Null) => Some(config.default_role.clone()),
        Some(Value::String(role)) if !role.is_empty() => Some(role.clone()),
        Some(_) => None,
    }
}

/// Holds a token against the keys and the clock.
pub(super) async fn examine(
    authenticator: &Authenticator,
    token: &Secret,
    config: &Config,
) -> (Option<Holder>, Vec<Finding>) {
    let token = token.expose();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let said = claims(token);
    let verified = authenticator.verify(token, now).await;
    let mut found = Vec::new();
    let principal = match verified {
        Ok(principal) => {
            if let Some(left) = principal.expires_at.map(|end| end - now)
                && left < SOON
            {
                found.push(Finding::note(
                    "token_expires",
                    format!(
                        "the token ends in {left} s: its channels end then, unless a new one comes"
                    ),
                ));
            }
            Some(principal)
        }
        Err(error) => {
            found.push(refused(
                &error,
                said.as_ref().map(|(_, claims)| claims),
                config,
            ));
            // What is wrong besides is worth knowing too.
            said.as_ref().and_then(|(text, claims)| {
                Some(Principal {
                    role: role_of(claims, config)?.into(),
                    claims: Claims::verified(text.as_str()),
                    expires_at: None,
                })
            })
        }
    };
    let holder = principal.map(|principal| Holder {
        role: principal.role.to_string(),
        claims: serde_json::from_str(principal.claims.as_json()).unwrap_or_default(),
        principal,
    });
    (holder, found)
}

fn refused(error: &TokenError, claims: Option<&Map<String, Value>>, config: &Config) -> Finding {
    let (code, advice) = match error {
        TokenError::Expired { .. } => (
            "token_expired",
            "Take a new one; supabase-js does so by itself, other clients pass it to setAuth.",
        ),
        TokenError::NotYetValid => (
            "token_not_yet_valid",
            "Look whether this machine's clock is right, and that of whoever signed it (claim nbf).",
        ),
        TokenError::FieldsRequired => ("token_no_expiry", "Sign it with a claim exp."),
        TokenError::InvalidExpiry => (
            "token_expiry",
            "Sign it with a claim exp in seconds since 1970.",
        ),
        TokenError::InvalidRole => (
            "token_role_claim",
            "Sign it with a text in the claim that ROWCAST_ROLE_CLAIM names (role).",
        ),
        TokenError::Malformed => (
            "token_malformed",
            "Pass the whole token, three parts with dots between them, without the word Bearer.",
        ),
        TokenError::Signature => (
            "token_signature",
            "It was signed with another key: JWT_SECRET has to be the one that signs tokens, letter \
             by letter, not its base64.",
        ),
        TokenError::Signer => (
            "token_key",
            "HS256, HS384 and HS512 need JWT_SECRET; RS256, ES256 and EdDSA need JWKS_URL, and a kid.",
        ),
        TokenError::UnknownKey(_) => (
            "token_key",
            "JWKS_URL has to be that of the issuer that signed it; keys that it withdrew do not count.",
        ),
    };
    let issuer = claims.and_then(|claims| claims.get("iss")).is_some();
    let elsewhere = issuer
        && config.jwks_url.is_none()
        && matches!(error, TokenError::Signature | TokenError::Signer);
    let finding = Finding::error(code, format!("the token is refused: {error}"));
    if elsewhere {
        finding.advice(format!(
            "{advice} It names an issuer (iss): its keys may be public ones, for JWKS_URL."
        ))
    } else {
        finding.advice(advice)
    }
}

/// What policies read of a token, and it does not say.
pub(super) fn lacking(table: &str, missing: &[String]) -> Finding {
    Finding::warning(
        "token_claim_missing",
        format!(
            "policies of {table} read {} of the token, which does not have {}: what depends on it is \
             hidden",
            missing.join(", "),
            if missing.len() == 1 { "it" } else { "them" }
        ),
    )
    .of_severity(Severity::Warning)
    .table(table)
    .advice("Have whoever signs tokens put it in, or let the policy do without.")
}

/// What policies read of a token has them say no to every row.
pub(super) fn blind(table: &str, claims: &BTreeSet<String>) -> Finding {
    let read: Vec<&str> = claims.iter().map(String::as_str).collect();
    let read = match read.as_slice() {
        [] => "its role".to_owned(),
        claims => claims.join(", "),
    };
    Finding::error(
        "token_sees_nothing",
        format!(
            "by what the token says ({read}) the policies of {table} let it see no row, whatever the row"
        ),
    )
    .table(table)
    .advice(format!(
        "Leave it where that is meant; `rowcast explain {table} --token …` has the policies."
    ))
}

/// What policies read of a token raises an error.
pub(super) fn raising(table: &str, odd_subject: bool) -> Finding {
    let what = if odd_subject {
        "the token's sub is no uuid, and policies take it for one (auth.uid())"
    } else {
        "policies raise an error at what the token says"
    };
    Finding::error(
        "token_claim_invalid",
        format!(
            "{what}: a query of {table} fails in PostgreSQL, and the relay hides every row of it that \
             nothing beside that lets through"
        ),
    )
    .table(table)
    .advice(if odd_subject {
        "Sign tokens with the user's uuid in sub, or let policies compare auth.jwt() ->> 'sub' as text."
    } else {
        "Compare the claims with what the policies cast them to."
    })
}

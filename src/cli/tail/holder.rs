//! As whom: a token that was given, or one that is made and renewed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::Arguments;
use crate::cli::{secret, token};
use crate::config::Secret;

/// Where tokens come from.
pub(super) enum Holder {
    /// Given once and for all.
    Token(Secret),
    /// In a file that something else may renew.
    File(PathBuf),
    /// Made here.
    Minted {
        claims: Map<String, Value>,
        secret: Secret,
        ttl: Duration,
    },
}

impl Holder {
    pub(super) fn of(arguments: &Arguments) -> Result<Self, String> {
        let minted =
            arguments.sub.is_some() || arguments.role.is_some() || !arguments.claims.is_empty();
        let holder = if minted {
            let role = arguments.role.as_deref().unwrap_or("authenticated");
            Self::Minted {
                claims: token::claims(arguments.sub.as_deref(), role, &arguments.claims)?,
                secret: token::secret(arguments.secret_file.as_deref())?,
                ttl: token::lifetime(&arguments.ttl)?,
            }
        } else if let Some(token) = &arguments.token {
            Self::Token(Secret::new(token))
        } else if let Some(file) = &arguments.token_file {
            Self::File(file.clone())
        } else if let Some(token) = secret::variable("ROWCAST_TOKEN") {
            Self::Token(Secret::new(token))
        } else if let Some(file) = secret::variable("ROWCAST_TOKEN_FILE") {
            Self::File(file.into())
        } else {
            return Err(
                "Say as whom: --sub USER or --role ROLE (with JWT_SECRET), or a token in \
                 ROWCAST_TOKEN, --token-file or --token."
                    .to_owned(),
            );
        };
        // What is wrong with it should be known before anything is connected.
        holder.token()?;
        Ok(holder)
    }

    /// The token to use now.
    pub(super) fn token(&self) -> Result<String, String> {
        let token = match self {
            Self::Token(token) => token.expose().trim().to_owned(),
            Self::File(path) => read(path)?,
            Self::Minted {
                claims,
                secret,
                ttl,
            } => token::sign(claims.clone(), *ttl, secret)?,
        };
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("The token is none: it is empty or holds odd characters.".to_owned());
        }
        Ok(token)
    }

    /// Whether there is another token than this one, which has ended.
    pub(super) fn has_another(&self, ended: &str) -> bool {
        match self {
            Self::Token(_) => false,
            Self::File(_) => self.token().is_ok_and(|token| token != ended),
            Self::Minted { .. } => true,
        }
    }

    /// When a token that is used from now on is to be replaced, so that it does not end in
    /// between.
    pub(super) fn renew_after(&self) -> Option<Duration> {
        match self {
            Self::Token(_) | Self::File(_) => None,
            Self::Minted { ttl, .. } => Some(*ttl / 2),
        }
    }
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|error| format!("The token in {} cannot be read: {error}.", path.display()))
}

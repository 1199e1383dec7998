//! The demo's secret, drawn at each start where the relay is its own, and the tokens signed with it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use rand::RngCore;
use serde_json::json;

use super::{PEOPLE, Person};
use crate::auth::mint;
use crate::config::Secret;

/// Long enough for a demo that is left running over a weekend. The demo's own secret dies with the
/// process, and with it every token; those for a relay elsewhere end by themselves.
const LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

const ISSUER: &str = "rowcast-demo";

/// A key for HS256: 256 random bits, in hexadecimal.
pub(super) fn random_secret() -> Secret {
    let mut bytes = [0_u8; 32];
    rand::rng().fill_bytes(&mut bytes);
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Secret::new(text)
}

/// What clients authenticate with. No `Debug`: nothing here belongs in a log.
#[derive(Clone)]
pub(super) struct Tokens {
    anon: String,
    people: [String; 2],
}

impl Tokens {
    /// Signs all of them.
    pub(super) fn mint(secret: &Secret) -> anyhow::Result<Self> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("the clock stands before 1970")?;
        let issued = now.as_secs();
        let expires = now.saturating_add(LIFETIME).as_secs();
        let sign = |person: &Person| {
            let claims = json!({
                "iss": ISSUER,
                "role": "authenticated",
                "sub": person.user_id,
                "email": format!("{}@example.com", person.key),
                "iat": issued,
                "exp": expires,
            });
            mint(secret.expose(), &claims)
        };
        let anon = json!({ "iss": ISSUER, "role": "anon", "iat": issued, "exp": expires });
        let [ann, ben] = &PEOPLE;
        Ok(Self {
            anon: mint(secret.expose(), &anon)?,
            people: [sign(ann)?, sign(ben)?],
        })
    }

    /// The public key that an application ships with.
    pub(super) fn anon(&self) -> &str {
        &self.anon
    }

    /// Each person with their token.
    pub(super) fn people(&self) -> impl Iterator<Item = (&'static Person, &str)> {
        PEOPLE.iter().zip(self.people.iter().map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_signed_with_the_secret_and_name_their_user() {
        let secret = random_secret();
        assert_eq!(secret.expose().len(), 64);
        assert_ne!(secret, random_secret());

        let tokens = Tokens::mint(&secret).unwrap();
        let key = jsonwebtoken::DecodingKey::from_secret(secret.expose().as_bytes());
        let checks = jsonwebtoken::Validation::default();
        for (person, token) in tokens.people() {
            let claims = jsonwebtoken::decode::<serde_json::Value>(token, &key, &checks)
                .unwrap()
                .claims;
            assert_eq!(claims["sub"], person.user_id);
            assert_eq!(claims["role"], "authenticated");
        }
        let anon = jsonwebtoken::decode::<serde_json::Value>(tokens.anon(), &key, &checks)
            .unwrap()
            .claims;
        assert_eq!(anon["role"], "anon");
        assert!(anon.get("sub").is_none());
    }
}

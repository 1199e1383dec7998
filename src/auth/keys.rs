//! Keys, each with the algorithms that it may be used with.

use hashbrown::HashMap;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::token::{Parts, TokenError};

/// A key and the algorithms that it verifies. A token's header chooses within them and never
/// beyond, so that nobody signs with a public key as if it were a secret.
pub(super) struct Key {
    key: DecodingKey,
    algorithms: Vec<Algorithm>,
}

impl Key {
    /// A shared secret.
    pub(super) fn secret(secret: &[u8]) -> Self {
        Self {
            key: DecodingKey::from_secret(secret),
            algorithms: vec![Algorithm::HS256, Algorithm::HS384, Algorithm::HS512],
        }
    }

    /// A public key of a key set; `None` for kinds and uses that verify no token.
    fn public(jwk: &Jwk) -> Option<Self> {
        if matches!(jwk.common.public_key_use, Some(ref of) if *of != PublicKeyUse::Signature) {
            return None;
        }
        let mut algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => {
                vec![Algorithm::RS256, Algorithm::RS384, Algorithm::RS512]
            }
            AlgorithmParameters::EllipticCurve(key) => match key.curve {
                EllipticCurve::P256 => vec![Algorithm::ES256],
                EllipticCurve::P384 => vec![Algorithm::ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                vec![Algorithm::EdDSA]
            }
            // A secret that everybody can fetch is none.
            _ => return None,
        };
        if let Some(named) = jwk.common.key_algorithm {
            algorithms.retain(|algorithm| key_algorithm(*algorithm) == Some(named));
        }
        let key = DecodingKey::from_jwk(jwk).ok()?;
        (!algorithms.is_empty()).then_some(Self { key, algorithms })
    }

    /// Verifies the signature of a token.
    pub(super) fn verify(&self, parts: &Parts<'_>) -> Result<(), TokenError> {
        let named = algorithm(&parts.header.alg).ok_or(TokenError::Signer)?;
        if !self.algorithms.contains(&named) {
            return Err(TokenError::Signer);
        }
        match jsonwebtoken::crypto::verify(
            parts.signature,
            parts.message.as_bytes(),
            &self.key,
            named,
        ) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(TokenError::Signature),
        }
    }
}

/// The algorithms of this server by their names; `none` is not among them.
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    Some(match name {
        "HS256" => Algorithm::HS256,
        "HS384" => Algorithm::HS384,
        "HS512" => Algorithm::HS512,
        "RS256" => Algorithm::RS256,
        "RS384" => Algorithm::RS384,
        "RS512" => Algorithm::RS512,
        "ES256" => Algorithm::ES256,
        "ES384" => Algorithm::ES384,
        "EdDSA" => Algorithm::EdDSA,
        _ => return None,
    })
}

/// Whether a shared secret verifies it.
pub(super) const fn is_symmetric(algorithm: Algorithm) -> bool {
    matches!(
        algorithm,
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512
    )
}

const fn key_algorithm(algorithm: Algorithm) -> Option<KeyAlgorithm> {
    Some(match algorithm {
        Algorithm::RS256 => KeyAlgorithm::RS256,
        Algorithm::RS384 => KeyAlgorithm::RS384,
        Algorithm::RS512 => KeyAlgorithm::RS512,
        Algorithm::ES256 => KeyAlgorithm::ES256,
        Algorithm::ES384 => KeyAlgorithm::ES384,
        Algorithm::EdDSA => KeyAlgorithm::EdDSA,
        _ => return None,
    })
}

/// An issuer's public keys by `kid`.
#[derive(Default)]
pub(super) struct KeySet(HashMap<String, Key>);

impl KeySet {
    /// Reads a JSON Web Key Set. A key of an unknown kind is left out and hides no other.
    pub(super) fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Document<'a> {
            #[serde(borrow)]
            keys: Vec<&'a RawValue>,
        }
        let document: Document<'_> = serde_json::from_slice(json)?;
        let keys = document
            .keys
            .into_iter()
            .filter_map(|key| {
                let jwk: Jwk = serde_json::from_str(key.get()).ok()?;
                Some((jwk.common.key_id.clone()?, Key::public(&jwk)?))
            })
            .collect();
        Ok(Self(keys))
    }

    pub(super) fn get(&self, kid: &str) -> Option<&Key> {
        self.0.get(kid)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

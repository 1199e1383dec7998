//! Which tokens are taken, with which keys.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rowcast::auth::{Authenticator, Settings, TokenError, mint};
use serde_json::{Value, json};

use crate::support::{SECRET, keys, soon, token, unix_now};

fn by_secret() -> Authenticator {
    Authenticator::new(keys()).unwrap()
}

fn refusal(auth: &Authenticator, token: &str) -> TokenError {
    let result = auth.try_verify(token, unix_now());
    result.expect("known at once").expect_err("refused")
}

fn signed(claims: &Value) -> String {
    mint(SECRET, claims).unwrap()
}

fn in_an_hour() -> i64 {
    unix_now() + 3600
}

#[test]
fn the_claims_are_the_tokens_own_bytes() {
    let payload = format!(
        r#"{{"sub" : "x", "n":1.50,"role":"a","big":12345678901234567890123,"role":"b","exp":{}}}"#,
        in_an_hour()
    );
    let body = URL_SAFE_NO_PAD.encode(&payload);
    let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
    let message = format!("{head}.{body}");
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    let token = format!(" {message}.{signature}%20");
    let principal = by_secret().try_verify(&token, unix_now()).unwrap().unwrap();
    assert_eq!(principal.claims.as_json(), payload);
    assert_eq!(&*principal.role, "b", "of two the last, as in jsonb");
    assert_eq!(principal.expires_at, Some(in_an_hour()));
    assert!(!format!("{principal:?}").contains("sub"));
}

#[test]
fn all_three_hmac_lengths_are_taken() {
    for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let claims = json!({ "role": "a", "exp": in_an_hour() });
        let mut header = Header::new(algorithm);
        header.kid = Some("unknown".to_owned());
        let token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
        assert!(by_secret().try_verify(&token, unix_now()).unwrap().is_ok());
    }
}

#[test]
fn every_refusal_has_its_text_and_its_code() {
    let auth = by_secret();
    let none = |head: &str, body: &str| {
        format!(
            "{}.{}.",
            URL_SAFE_NO_PAD.encode(head),
            URL_SAFE_NO_PAD.encode(body)
        )
    };
    let good = token("a", 100);
    let (message, _) = good.rsplit_once('.').unwrap();
    let signer = "Failed to generate JWT signer, check your JWT secret or JWKS configuration";
    let exp = in_an_hour();
    for (token, code, text) in [
        (
            token("a", -7),
            "InvalidJWTToken",
            "Token has expired 7 seconds ago",
        ),
        (
            token("a", 0),
            "InvalidJWTToken",
            "Token has expired 0 seconds ago",
        ),
        (
            signed(&json!({"role": "a"})),
            "InvalidJWTToken",
            "Fields `role` and `exp` are required in JWT",
        ),
        (
            signed(&json!({"role": "a", "exp": "soon"})),
            "InvalidJWTToken",
            "Token expiration time is invalid",
        ),
        (
            signed(&json!({"role": "a", "exp": exp, "nbf": exp - 60})),
            "InvalidJWTToken",
            "Token is not valid yet",
        ),
        (
            signed(&json!({"role": ["a"], "exp": exp})),
            "InvalidJWTToken",
            "The role claim of the token is not the name of a role",
        ),
        (
            signed(&json!({"role": "a\0b", "exp": exp})),
            "InvalidJWTToken",
            "The role claim of the token is not the name of a role",
        ),
        (
            "a.b".to_owned(),
            "MalformedJWT",
            "The token provided is not a valid JWT",
        ),
        (
            "x".repeat(20_000),
            "MalformedJWT",
            "The token provided is not a valid JWT",
        ),
        (
            none(r#"{"alg":"none"}"#, r#"{"role":"a","exp":9999999999}"#),
            "JwtSignerError",
            signer,
        ),
        (
            none(r#"{"alg":"RS256"}"#, r#"{"role":"a","exp":9999999999}"#),
            "JwtSignerError",
            signer,
        ),
        (
            format!("{message}."),
            "JwtSignatureError",
            "Failed to validate JWT signature",
        ),
        (
            mint("another", &json!({"role": "a", "exp": exp})).unwrap(),
            "JwtSignatureError",
            "Failed to validate JWT signature",
        ),
        (
            "sb_unknown".to_owned(),
            "MalformedJWT",
            "The token provided is not a valid JWT",
        ),
    ] {
        let error = refusal(&auth, &token);
        assert_eq!((error.code(), error.to_string().as_str()), (code, text));
    }
}

#[test]
fn the_role_comes_from_the_configured_claim_or_is_the_default() {
    let with = |role_claim: &str| {
        Authenticator::new(Settings {
            role_claim: role_claim.to_owned(),
            default_role: "nobody".to_owned(),
            ..keys()
        })
        .unwrap()
    };
    let token = signed(&json!({
        "role": "plain", "app_metadata": {"role": "deep"}, "https://x.example/role": "named",
        "exp": in_an_hour()
    }));
    for (claim, role) in [
        ("role", "plain"),
        ("app_metadata.role", "deep"),
        ("https://x.example/role", "named"),
        ("app_metadata.none", "nobody"),
        ("absent", "nobody"),
    ] {
        let principal = with(claim).try_verify(&token, unix_now()).unwrap().unwrap();
        assert_eq!(&*principal.role, role, "{claim}");
    }
}

#[test]
fn unusable_settings_are_refused_at_the_start() {
    for settings in [
        Settings {
            jwt_secret: Some(String::new()),
            ..keys()
        },
        Settings {
            jwks_url: Some("ftp://x/y".to_owned()),
            ..keys()
        },
        Settings {
            jwks_url: Some("not a url".to_owned()),
            ..keys()
        },
    ] {
        assert!(Authenticator::new(settings).is_err());
    }
}

/// An issuer: a server of a key set that can change, and that counts its visitors.
struct Issuer {
    url: String,
    document: Arc<Mutex<Option<String>>>,
    visits: Arc<AtomicUsize>,
}

impl Issuer {
    async fn start() -> Self {
        let document: Arc<Mutex<Option<String>>> = Arc::default();
        let visits: Arc<AtomicUsize> = Arc::default();
        let (served, counted) = (Arc::clone(&document), Arc::clone(&visits));
        let routes = axum::Router::new().route(
            "/keys",
            axum::routing::get(async move || {
                counted.fetch_add(1, Ordering::SeqCst);
                let document = served.lock().unwrap().clone();
                document.ok_or(axum::http::StatusCode::INTERNAL_SERVER_ERROR)
            }),
        );
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self {
            url,
            document,
            visits,
        }
    }

    fn publish(&self, keys: &[&Signer]) {
        let keys: Vec<_> = keys.iter().map(|key| key.public()).collect();
        *self.document.lock().unwrap() = Some(json!({ "keys": keys }).to_string());
    }

    fn authenticator(&self, refetch_floor: Duration) -> Authenticator {
        Authenticator::new(Settings {
            jwks_url: Some(self.url.clone()),
            refetch_floor,
            ..keys()
        })
        .unwrap()
    }
}

struct Signer {
    kid: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
    /// The bytes of an Ed25519 public key.
    point: Vec<u8>,
}

impl Signer {
    fn new(kid: &'static str, algorithm: Algorithm) -> Self {
        use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
        let mut point = Vec::new();
        let key = match algorithm {
            Algorithm::ES256 => {
                let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
                EncodingKey::from_ec_der(&pair.serialize_der())
            }
            Algorithm::ES384 => {
                let pair = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
                EncodingKey::from_ec_der(&pair.serialize_der())
            }
            Algorithm::EdDSA => {
                let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
                point = pair.public_key_raw().to_vec();
                EncodingKey::from_ed_der(&pair.serialize_der())
            }
            _ => {
                let size = rcgen::RsaKeySize::_2048;
                let pair = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size).unwrap();
                EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).unwrap()
            }
        };
        Self {
            kid,
            algorithm,
            key,
            point,
        }
    }

    fn public(&self) -> Jwk {
        if self.algorithm == Algorithm::EdDSA {
            let x = URL_SAFE_NO_PAD.encode(&self.point);
            let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "kid": self.kid, "x": x });
            return serde_json::from_value(jwk).unwrap();
        }
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.kid.to_owned());
        jwk
    }

    fn sign(&self) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.kid.to_owned());
        let claims = json!({ "role": self.kid, "exp": in_an_hour() });
        jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
    }
}

#[tokio::test]
async fn keys_of_every_kind_verify_their_own_tokens_only() {
    let issuer = Issuer::start().await;
    let signers = [
        Signer::new("es256", Algorithm::ES256),
        Signer::new("es384", Algorithm::ES384),
        Signer::new("ed", Algorithm::EdDSA),
        Signer::new("rs256", Algorithm::RS256),
    ];
    issuer.publish(&signers.each_ref());
    let auth = issuer.authenticator(Duration::ZERO);
    for signer in &signers {
        let principal = soon(auth.verify(&signer.sign(), unix_now())).await.unwrap();
        assert_eq!(&*principal.role, signer.kid);
        let impostor = Signer::new(signer.kid, signer.algorithm);
        assert_eq!(
            auth.try_verify(&impostor.sign(), unix_now()),
            Some(Err(TokenError::Signature))
        );
    }
    assert_eq!(
        issuer.visits.load(Ordering::SeqCst),
        1,
        "one fetch brings all keys"
    );

    // The public key taken for a secret: the oldest trick there is.
    let public = signers[3].public();
    let public = serde_json::to_value(&public).unwrap();
    let modulus = URL_SAFE_NO_PAD
        .decode(public["n"].as_str().unwrap())
        .unwrap();
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("rs256".to_owned());
    let claims = json!({ "role": "postgres", "exp": in_an_hour() });
    let forged =
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(&modulus)).unwrap();
    assert_eq!(refusal(&auth, &forged), TokenError::Signature);

    // A key is used with its own algorithm, whatever the header says.
    let mut mismatched = Signer::new("es256", Algorithm::RS256);
    assert_eq!(refusal(&auth, &mismatched.sign()), TokenError::Signer);
    mismatched.kid = "rs256";
    mismatched.algorithm = Algorithm::RS512;
    assert_eq!(refusal(&auth, &mismatched.sign()), TokenError::Signer);
}

#[tokio::test]
async fn an_unknown_key_is_fetched_but_not_more_often_than_the_floor_allows() {
    let issuer = Issuer::start().await;
    let (old, new) = (
        Signer::new("old", Algorithm::ES256),
        Signer::new("new", Algorithm::ES256),
    );
    issuer.publish(&[&old]);
    // Longer than a busy machine takes from the first to the second token.
    let auth = issuer.authenticator(Duration::from_secs(3));
    assert!(soon(auth.verify(&old.sign(), unix_now())).await.is_ok());
    issuer.publish(&[&old, &new]);
    let refused = soon(auth.verify(&new.sign(), unix_now()))
        .await
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Failed to generate JWT signer for key ID (kid) \"new\", check your JWT secret or JWKS configuration"
    );
    assert_eq!(issuer.visits.load(Ordering::SeqCst), 1);
    soon(async {
        while auth.verify(&new.sign(), unix_now()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(issuer.visits.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn keys_at_hand_survive_an_issuer_that_fails() {
    let issuer = Issuer::start().await;
    let (known, other) = (
        Signer::new("a", Algorithm::EdDSA),
        Signer::new("b", Algorithm::EdDSA),
    );
    issuer.publish(&[&known]);
    let auth = issuer.authenticator(Duration::ZERO);
    assert!(soon(auth.verify(&known.sign(), unix_now())).await.is_ok());
    for broken in [None, Some("no JSON".to_owned()), Some("x".repeat(2 << 20))] {
        *issuer.document.lock().unwrap() = broken;
        assert!(soon(auth.verify(&other.sign(), unix_now())).await.is_err());
        assert!(auth.try_verify(&known.sign(), unix_now()).unwrap().is_ok());
    }
}

#[tokio::test]
async fn the_first_fetch_is_tried_until_it_works() {
    let issuer = Issuer::start().await;
    let auth = Arc::new(issuer.authenticator(Duration::from_secs(3600)));
    let keeping = Arc::clone(&auth);
    let kept = tokio::spawn(async move { keeping.keep_keys().await });
    soon(async {
        while issuer.visits.load(Ordering::SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let signer = Signer::new("a", Algorithm::ES256);
    issuer.publish(&[&signer]);
    soon(async {
        while !matches!(auth.try_verify(&signer.sign(), unix_now()), Some(Ok(_))) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    kept.abort();
}

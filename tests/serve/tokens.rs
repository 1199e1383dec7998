//! Tokens of an issuer, tokens that change, tokens that end; and what becomes of deletes.

use std::sync::{Arc, Mutex};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;

use crate::client::Client;
use crate::harness::{ANN, BEN, Daemon, Database, token, token_until, unix_now};

struct Signer(&'static str, EncodingKey);

impl Signer {
    fn new(kid: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        Self(kid, EncodingKey::from_ec_der(&pair.serialize_der()))
    }

    fn key_set(&self) -> String {
        let mut jwk = Jwk::from_encoding_key(&self.1, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(self.0.to_owned());
        json!({ "keys": [jwk] }).to_string()
    }

    fn token(&self, person: &str) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.0.to_owned());
        let claims = json!({ "role": "authenticated", "sub": person, "exp": unix_now() + 3600 });
        jsonwebtoken::encode(&header, &claims, &self.1).unwrap()
    }
}

#[tokio::test]
async fn an_issuers_keys_are_taken_and_fetched_again_after_they_changed() {
    let (old, new, strange) = (Signer::new("old"), Signer::new("new"), Signer::new("old"));
    let document = Arc::new(Mutex::new(old.key_set()));
    let served = Arc::clone(&document);
    let keys = axum::routing::get(async move || served.lock().unwrap().clone());
    let routes = axum::Router::new().route("/keys", keys);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });

    let database = Database::new("rowcast").await;
    // Without a secret: the issuer is enough.
    let daemon = Daemon::spawn(&[
        ("DATABASE_URL", database.url.as_str()),
        ("JWKS_URL", url.as_str()),
        ("ROWCAST_SLOT", database.slot.as_str()),
    ]);
    let mut ann = Client::following(&daemon, &old.token(ANN), "note").await;
    assert_eq!(Client::refused(&daemon, &strange.token(ANN)).await.0, 401);
    assert_eq!(Client::refused(&daemon, &token(ANN)).await.0, 401);
    *document.lock().unwrap() = new.key_set();
    let mut ben = Client::following(&daemon, &new.token(BEN), "note").await;
    database
        .run(&format!(
            "insert into note values (1, '{ANN}', 'a'); insert into note values (2, '{BEN}', 'b')"
        ))
        .await;
    assert_eq!(ann.change().await, "INSERT 1");
    assert_eq!(ben.change().await, "INSERT 2");
    assert_eq!(
        Client::refused(&daemon, &old.token(ANN)).await.0,
        401,
        "withdrawn"
    );
    daemon.terminate().await;
}

#[tokio::test]
async fn a_new_token_changes_what_arrives_and_an_ended_one_ends_the_channel() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    let mut client = Client::following(&daemon, &token(ANN), "note").await;
    let insert = async |ann: i64, ben: i64| {
        database
            .run(&format!(
                "insert into note values ({ann}, '{ANN}', 'a'), ({ben}, '{BEN}', 'b')"
            ))
            .await;
    };
    insert(1, 2).await;
    assert_eq!(client.change().await, "INSERT 1");
    client.refresh("realtime:note", &token(BEN)).await;
    let system = client.next().await;
    assert_eq!(system[4]["message"], "Subscribed to PostgreSQL", "{system}");
    insert(3, 4).await;
    assert_eq!(
        client.change().await,
        "INSERT 4",
        "neither Ann's any more, nor nothing"
    );
    client
        .refresh("realtime:note", &token_until(ANN, unix_now() + 10))
        .await;
    let system = client.next().await;
    assert_eq!(system[4]["message"], "Subscribed to PostgreSQL", "{system}");
    client.follow("open").await;
    insert(5, 6).await;
    assert_eq!(client.change().await, "INSERT 5");
    let (system, closed) = (client.next().await, client.next().await);
    assert_eq!(system[4]["status"], "error", "{system}");
    let text = system[4]["message"].as_str().unwrap();
    assert!(text.starts_with("Token has expired "), "{text}");
    assert_eq!(
        (&closed[2], &closed[3]),
        (&json!("realtime:note"), &json!("phx_close"))
    );
    insert(7, 8).await;
    database.insert_open(9).await;
    assert_eq!(
        client.change().await,
        "INSERT 9",
        "other channels go on, the ended one does not"
    );
    daemon.terminate().await;
}

#[tokio::test]
async fn a_delete_is_judged_by_its_old_row_or_said_to_be_suppressed() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    let mut ann = Client::following(&daemon, &token(ANN), "note").await;
    let mut ben = Client::following(&daemon, &token(BEN), "note").await;
    ben.follow("open").await;
    ann.follow("plan").await;
    let warning = ann.next().await;
    assert_eq!(warning[4]["status"], "warning", "{warning}");
    let text = warning[4]["message"].as_str().unwrap();
    assert!(
        text.starts_with("DELETE of public.plan is not delivered"),
        "{text}"
    );
    assert!(text.contains("replica identity full"), "{text}");
    database
        .run(&format!(
            "insert into note values (1, '{ANN}', 'a'); insert into plan values (2, 1, 'b')"
        ))
        .await;
    assert_eq!(ann.change().await, "INSERT 1");
    assert_eq!(ann.change().await, "INSERT 2");
    database
        .run("delete from plan; delete from note; insert into open values (3, 'b')")
        .await;
    assert_eq!(ann.change().await, "DELETE 1", "the plan's is suppressed");
    assert_eq!(ben.change().await, "INSERT 3", "the note was not Ben's");
    let hidden = "rowcast_changes_hidden_total{reason=\"delete_without_identity\"}";
    let (_, text) = daemon.ask("/metrics").await;
    assert!(text.contains(hidden), "{text}");
    ann.heartbeat().await;
    daemon.terminate().await;
}

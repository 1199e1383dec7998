//! Tokens, keys and roles.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{ANN, Place, token};

/// After any test.
const LATER: u64 = 4_102_444_800;

async fn finds(place: &Place, token: &str, codes: &[&str]) -> Value {
    let found = place
        .doctor_with(&["--table", "app.note"], &[("ROWCAST_TOKEN", token)])
        .await;
    found.is(codes);
    found.report
}

#[tokio::test]
async fn a_token_that_is_refused_or_shows_nothing_is_said_why() {
    let place = Place::good().await;
    let ann = json!({ "role": "authenticated", "sub": ANN, "exp": LATER });
    let with = |name: &str, value: Value| {
        let mut claims = ann.clone();
        claims[name] = value;
        token(&claims)
    };
    finds(&place, &token(&ann), &[]).await;
    finds(&place, &with("exp", json!(1_000)), &["token_expired"]).await;
    finds(&place, &with("exp", Value::Null), &["token_no_expiry"]).await;
    finds(
        &place,
        &with("nbf", json!(LATER - 1)),
        &["token_not_yet_valid"],
    )
    .await;
    finds(&place, &with("role", json!(7)), &["token_role_claim"]).await;
    finds(&place, &with("exp", json!("soon")), &["token_expiry"]).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let in_a_moment = json!(now.unwrap().as_secs() + 40);
    let report = finds(&place, &with("exp", in_a_moment), &["token_expires"]).await;
    assert_eq!(report["notes"], 1, "{report:#}");
    // Signed with a key of an issuer's, of which nothing is known.
    let parts = token(&ann);
    let parts: Vec<&str> = parts.split('.').collect();
    let foreign = format!(
        "eyJhbGciOiJSUzI1NiIsImtpZCI6ImEifQ.{}.{}",
        parts[1], parts[2]
    );
    finds(&place, &foreign, &["token_key"]).await;
    finds(&place, "no token at all", &["token_malformed"]).await;
    let foreign = rowcast::auth::mint("another secret that is also thirty-two bytes long", &ann);
    finds(&place, &foreign.unwrap(), &["token_signature"]).await;
    finds(&place, &with("sub", json!("ann")), &["token_claim_invalid"]).await;
    finds(&place, &with("sub", Value::Null), &["token_claim_missing"]).await;
    // One that has not logged in by two factors, say.
    place
        .run(
            "create policy mfa on app.note as restrictive for select to authenticated
               using ((select auth.jwt() ->> 'aal') = 'aal2')",
        )
        .await;
    finds(&place, &with("aal", json!("aal1")), &["token_sees_nothing"]).await;
    finds(&place, &with("aal", json!("aal2")), &[]).await;
    place.run("drop policy mfa on app.note").await;
    // Of a role that exists and may read nothing of the table.
    finds(&place, &with("role", json!("anon")), &["table_grant"]).await;
    // No policy holds that one back, but rights do.
    let service = with("role", json!("service_role"));
    place
        .run("revoke all on app.note from public, service_role")
        .await;
    finds(&place, &service, &["table_grant"]).await;
    place
        .run("grant usage on schema app to service_role; grant select on app.note to service_role")
        .await;
    finds(&place, &service, &[]).await;
    // What the token says does not appear, whatever is wrong with it.
    let report = finds(
        &place,
        &with("sub", json!("a very private name")),
        &["token_claim_invalid"],
    )
    .await;
    assert!(!report.to_string().contains("private"), "{report:#}");
}

#[tokio::test]
async fn a_role_that_does_not_exist_is_found_and_made() {
    let place = Place::good().await;
    let role = format!("clients of {}", place.relay);
    let of_role = token(&json!({ "role": role, "sub": ANN, "exp": LATER }));
    let report = finds(&place, &of_role, &["token_role"]).await;
    for statement in report["findings"][0]["sql"].as_array().unwrap() {
        place.run(statement.as_str().unwrap()).await;
    }
    // No statement is given that PostgreSQL refuses.
    for name in ["public", "none", "pg_clients", "Authenticated"] {
        let of_role = token(&json!({ "role": name, "sub": ANN, "exp": LATER }));
        let report = finds(&place, &of_role, &["token_role"]).await;
        assert_eq!(report["findings"][0]["sql"], json!([]), "{name}");
    }
    // It is there now, and has no rights yet.
    let report = finds(&place, &of_role, &["table_grant"]).await;
    for statement in report["findings"][0]["sql"].as_array().unwrap() {
        place.run(statement.as_str().unwrap()).await;
    }
    let report = finds(&place, &of_role, &["policy_missing"]).await;
    for statement in report["findings"][0]["sql"].as_array().unwrap() {
        place.run(statement.as_str().unwrap()).await;
    }
    finds(&place, &of_role, &[]).await;
    place
        .doctor_with(&[], &[("ROWCAST_DEFAULT_ROLE", "nobody at all")])
        .await
        .is(&["role_missing"]);
}

#[tokio::test]
async fn keys_that_cannot_verify_anything_are_found() {
    let place = Place::good().await;
    place
        .doctor_with(&[], &[("JWT_SECRET", "short")])
        .await
        .is(&["jwt_secret_weak"]);
    place
        .doctor_with(&[], &[("JWT_SECRET", "")])
        .await
        .is(&["jwt_none"]);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let keys = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\
                    connection: close\r\n\r\n{\"keys\":[]}";
        while let Ok((mut client, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _read = client.read(&mut request).await;
            let _written = client.write_all(keys.as_bytes()).await;
        }
    });
    place
        .doctor_with(&[], &[("JWKS_URL", &format!("http://{address}/keys"))])
        .await
        .is(&["jwks_empty"]);
    // Nobody listens there.
    place
        .doctor_with(&[], &[("JWKS_URL", "http://127.0.0.1:9/keys?key=hidden")])
        .await
        .is(&["jwks_unreachable"]);
}

#[tokio::test]
async fn a_relay_that_requires_row_level_security_refuses_tables_without() {
    let place = Place::good().await;
    place
        .run("drop policy mine on app.note; alter table app.note disable row level security")
        .await;
    let required = &[("ROWCAST_REQUIRE", "rls")];
    let found = place.doctor_with(&[], required).await;
    found.is(&["rls_off"]);
    assert_eq!(found.code, 2, "nobody can subscribe to it");
    place.mend(&found).await;
    place.doctor_with(&[], required).await.is_well();
    place.delivers("note").await;
}

#[tokio::test]
async fn rules_for_some_roles_and_for_tables_that_are_not_there_are_told_as_they_work() {
    let place = Place::good().await;
    place
        .run(
            "drop policy mine on app.note; alter table app.note disable row level security; \
             grant usage on schema app to anon; grant select on app.note to anon",
        )
        .await;
    let mut file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    let rule = |table: &str, roles: &str| {
        format!("[[rule]]\ntable = \"{table}\"\nusing = \"person = auth.uid()\"\n{roles}\n")
    };
    let rules = rule("app.note", "roles = [\"authenticated\"]") + &rule("app.nothing", "");
    std::io::Write::write_all(&mut file, rules.as_bytes()).unwrap();
    let arguments = ["--config", file.path().to_str().unwrap()];
    let required = &[("ROWCAST_REQUIRE", "rls or rule")];
    let found = place.doctor_with(&arguments, required).await;
    found.is(&["rls_off", "rule_not_in_force"]);
    let said = found.text("rls_off");
    assert!(
        said.ends_with("clients of anon cannot subscribe to it"),
        "{said}"
    );
    let said = found.text("rule_not_in_force");
    assert!(said.contains("\"app\".\"nothing\""), "{said}");
}

//! `rowcast token`: tokens for trying things out.

#![expect(clippy::print_stdout, reason = "the token is what is asked for")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Map, Value};

use super::{EXIT_USAGE, fail, secret as secrets};
use crate::config::{Secret, parse_duration};

/// Arguments of `rowcast token`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  JWT_SECRET=… rowcast token --sub 3fa85f64-5717-4562-b3fc-2c963f66afa6
  rowcast token --secret-file /run/secrets/jwt --role service_role --ttl 5m
  rowcast token --sub … --claim app_metadata.org_id=7 --claim email=a@example.test")]
pub(super) struct Arguments {
    /// The user: the claim `sub`
    #[arg(long)]
    sub: Option<String>,
    /// The database role: the claim `role`
    #[arg(long, default_value = "authenticated")]
    role: String,
    /// One more claim. A value that is JSON is taken as JSON, any other as text; a dot in the name
    /// leads into an object
    #[arg(long = "claim", value_name = "NAME=VALUE")]
    claims: Vec<String>,
    /// How long it is good for
    #[arg(long, value_name = "TIME", default_value = "1h")]
    ttl: String,
    /// A file that holds the secret [default: JWT_SECRET, or the file that JWT_SECRET_FILE names]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

/// Prints a token.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let token = secret(arguments.secret_file.as_deref()).and_then(|secret| {
        let ttl = lifetime(&arguments.ttl)?;
        let claims = claims(arguments.sub.as_deref(), &arguments.role, &arguments.claims)?;
        sign(claims, ttl, &secret)
    });
    match token {
        Ok(token) => {
            println!("{token}");
            ExitCode::SUCCESS
        }
        Err(message) => fail(EXIT_USAGE, format_args!("{message}")),
    }
}

/// The relay's secret: out of this file, or from the environment.
///
/// # Errors
/// A sentence, where there is none.
pub(super) fn secret(file: Option<&Path>) -> Result<Secret, String> {
    secrets::given("secret", file, "JWT_SECRET")?.ok_or_else(|| {
        "A token needs the secret of the relay: set JWT_SECRET or JWT_SECRET_FILE, or give \
         --secret-file."
            .to_owned()
    })
}

/// How long a token is to be good for.
///
/// # Errors
/// A sentence about what would be right.
pub(super) fn lifetime(text: &str) -> Result<Duration, String> {
    let (least, most) = (Duration::from_secs(1), Duration::from_secs(87_600 * 3600));
    parse_duration(text, least, most)
        .map_err(|expected| format!("--ttl is `{text}`; it must be {expected}."))
}

/// What a token says of its holder, from flags: `more` are `name=value`.
///
/// # Errors
/// A sentence, where one of them is no claim.
pub(super) fn claims(
    sub: Option<&str>,
    role: &str,
    more: &[String],
) -> Result<Map<String, Value>, String> {
    let mut claims = Map::new();
    if let Some(sub) = sub {
        claims.insert("sub".into(), sub.into());
    }
    claims.insert("role".into(), role.into());
    for claim in more {
        let (name, value) = claim.split_once('=').ok_or_else(|| {
            format!("--claim is `{claim}`; it must be a name and a value, such as org_id=7.")
        })?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        put(&mut claims, name, value)?;
    }
    Ok(claims)
}

/// Signs claims with HS256, adding when the token was made and when it ends.
///
/// # Errors
/// A sentence, where the claims cannot be signed.
pub(super) fn sign(
    mut claims: Map<String, Value>,
    ttl: Duration,
    secret: &Secret,
) -> Result<String, String> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(|_| "This machine's clock stands before 1970.".to_owned())?;
    claims.entry("iat").or_insert_with(|| now.as_secs().into());
    claims
        .entry("exp")
        .or_insert_with(|| (now + ttl).as_secs().into());
    jsonwebtoken::encode(
        &jsonwebtoken::Header::default(),
        &Value::Object(claims),
        &jsonwebtoken::EncodingKey::from_secret(secret.expose().as_bytes()),
    )
    .map_err(|error| format!("The token cannot be signed: {error}."))
}

/// Sets a claim; dots in its name lead into objects, which are made where they are missing.
fn put(claims: &mut Map<String, Value>, name: &str, value: Value) -> Result<(), String> {
    let wrong = || format!("--claim {name}: the name leads into a value that is no object.");
    match name.split_once('.') {
        _ if name.is_empty() => Err("--claim needs a name before its equals sign.".to_owned()),
        None => {
            claims.insert(name.to_owned(), value);
            Ok(())
        }
        Some((outer, inner)) => {
            let object = claims
                .entry(outer)
                .or_insert_with(|| Value::Object(Map::new()))
                .as_object_mut()
                .ok_or_else(wrong)?;
            put(object, inner, value)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn dots_lead_into_objects_and_not_into_other_values() {
        let mut claims = Map::new();
        put(&mut claims, "app_metadata.org_id", json!(7)).unwrap();
        put(&mut claims, "app_metadata.deep.er", json!("x")).unwrap();
        put(&mut claims, "email", json!("a@example.test")).unwrap();
        assert_eq!(
            Value::Object(claims.clone()),
            json!({
                "app_metadata": {"org_id": 7, "deep": {"er": "x"}},
                "email": "a@example.test"
            })
        );
        assert!(put(&mut claims, "email.domain", json!(1)).is_err());
        assert!(put(&mut claims, "", json!(1)).is_err());
    }
}

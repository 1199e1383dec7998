//! The real binary: what it answers to wrong arguments and settings, and what it prints.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, in its helpers too"
)]

use std::process::{Command, Output};

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde_json::{Value, json};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Runs the binary in an empty folder with nothing but `environment`.
fn rowcast(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    rowcast_in(folder.path(), arguments, environment)
}

fn rowcast_in(
    folder: &std::path::Path,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rowcast"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .current_dir(folder)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// What `rowcast serve` says to wrong settings; always with the exit code for them.
fn refusal(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let mut all = vec!["serve"];
    all.extend(arguments);
    let output = rowcast(&all, environment);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert_eq!(stdout(&output), "");
    stderr(&output).trim_end().to_owned()
}

fn claims(token: &str, secret: &str) -> Value {
    decode::<Value>(
        token,
        &DecodingKey::from_secret(secret.as_bytes()),
        &Validation::new(Algorithm::HS256),
    )
    .unwrap()
    .claims
}

#[test]
fn the_help_shows_every_command_and_examples() {
    let output = rowcast(&["--help"], &[]);
    assert!(output.status.success());
    let help = stdout(&output);
    for words in [
        "serve",
        "tail",
        "token",
        "bench",
        "health",
        "Examples:",
        "Exit codes:",
    ] {
        assert!(help.contains(words), "{words} is missing in\n{help}");
    }
    assert!(!help.contains("bench-"), "{help}");
    let serve = stdout(&rowcast(&["serve", "--help"], &[]));
    for setting in rowcast::config::settings::SETTINGS {
        assert!(
            serve.contains(&format!("--{}", setting.flag())),
            "{}",
            setting.name
        );
        assert!(serve.contains(&setting.variable()), "{}", setting.name);
    }
    assert!(serve.contains("--jwt-secret-file"), "{serve}");
    let bench = stdout(&rowcast(&["bench", "--help"], &[]));
    assert!(bench.contains("Method:"), "{bench}");
}

#[test]
fn an_unknown_argument_is_a_mistake_of_usage() {
    for arguments in [&["serve", "--nonsense"][..], &["nonsense"], &[]] {
        let output = rowcast(arguments, &[]);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
    }
}

#[test]
fn wrong_settings_are_answered_with_a_sentence() {
    assert_eq!(
        refusal(&[], &[]),
        "rowcast: DATABASE_URL is not set; it must say where PostgreSQL is, such as \
         postgres://user:password@host:5432/database."
    );
    let database = ("DATABASE_URL", "postgres://localhost/app");
    assert!(refusal(&[], &[database]).starts_with("rowcast: Neither JWT_SECRET nor JWKS_URL"));
    let secret = ("JWT_SECRET", SECRET);
    assert_eq!(
        refusal(&["--slot", "My-Slot"], &[database, secret]),
        "rowcast: --slot is `My-Slot`; it must be a slot name: 1 to 63 of a-z, 0-9 and _."
    );
    assert_eq!(
        refusal(&[], &[database, secret, ("ROWCAST_DRAIN", "5")]),
        "rowcast: ROWCAST_DRAIN is `5`; it must be a time from 0ms to 1h with its unit, such as \
         500ms, 5s or 2m."
    );
    assert!(
        refusal(&[], &[database, secret, ("ROWCAST_LISTN", "0.0.0.0:1")])
            .ends_with("Did you mean ROWCAST_LISTEN?")
    );
    assert_eq!(
        refusal(&[], &[database, secret, ("JWT_SECRET_FILE", "/x")]),
        "rowcast: Both JWT_SECRET and JWT_SECRET_FILE are given; one of them must go."
    );
    assert!(
        refusal(&["--config", "/nowhere.toml"], &[database, secret])
            .starts_with("rowcast: The configuration file /nowhere.toml cannot be read")
    );
}

#[test]
fn the_file_in_the_folder_is_read_and_its_unknown_keys_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rowcast.toml");
    std::fs::write(&path, "slots = \"x\"\n").unwrap();
    let output = rowcast_in(folder.path(), &["serve"], &[]);
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(
        stderr(&output).trim_end(),
        "rowcast: `slots` in rowcast.toml is no setting of Rowcast. Did you mean slot?"
    );
    std::fs::write(&path, "slot = \"other\"\ndrain = \"2s\"\n").unwrap();
    let arguments = ["serve", "--print-config", "--drain", "3s"];
    let printed = stdout(&rowcast_in(folder.path(), &arguments, &[]));
    assert!(printed.contains("\nslot = \"other\"\n"), "{printed}");
    assert!(printed.contains("\ndrain = \"3000ms\"\n"), "{printed}");
}

#[test]
fn the_printed_settings_hold_every_name_and_no_secret() {
    let environment = [
        ("DATABASE_URL", "postgres://user:s3cr3t@localhost/app"),
        ("JWT_SECRET", SECRET),
        ("ROWCAST_API_KEYS", "sb_secret_s3cr3t=service_role"),
    ];
    let printed = stdout(&rowcast(&["serve", "--print-config"], &environment));
    for setting in rowcast::config::settings::SETTINGS {
        assert!(printed.contains(setting.name), "{}", setting.name);
    }
    assert!(
        !printed.contains("s3cr3t") && !printed.contains(SECRET),
        "{printed}"
    );
    let table = stdout(&rowcast(
        &["serve", "--print-config=markdown"],
        &environment,
    ));
    assert_eq!(table, rowcast::config::markdown());
}

#[test]
fn a_token_holds_what_was_asked_for_and_nothing_else_is_printed() {
    let arguments = [
        "token",
        "--sub",
        "u1",
        "--claim",
        "app_metadata.org_id=7",
        "--claim",
        "email=a@example.test",
        "--ttl",
        "5m",
    ];
    let output = rowcast(&arguments, &[("JWT_SECRET", SECRET)]);
    assert!(output.status.success(), "{output:?}");
    let printed = stdout(&output);
    assert_eq!(printed.lines().count(), 1);
    let mut claims = claims(printed.trim_end(), SECRET);
    let object = claims.as_object_mut().unwrap();
    let issued = object.remove("iat").unwrap().as_u64().unwrap();
    let ends = object.remove("exp").unwrap().as_u64().unwrap();
    assert_eq!(ends - issued, 300);
    assert_eq!(
        claims,
        json!({
            "sub": "u1",
            "role": "authenticated",
            "app_metadata": {"org_id": 7},
            "email": "a@example.test"
        })
    );
}

#[test]
fn a_tokens_secret_comes_from_a_file_without_its_newline() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, format!("{SECRET}\n")).unwrap();
    let path = path.to_str().unwrap();
    for (arguments, environment) in [
        (vec!["token", "--secret-file", path], vec![]),
        (vec!["token"], vec![("JWT_SECRET_FILE", path)]),
    ] {
        let output = rowcast(&arguments, &environment);
        assert!(output.status.success(), "{output:?}");
        claims(stdout(&output).trim_end(), SECRET);
    }
    let both = [("JWT_SECRET", SECRET), ("JWT_SECRET_FILE", path)];
    assert_eq!(rowcast(&["token"], &both).status.code(), Some(64));
    let none = rowcast(&["token"], &[]);
    assert_eq!(none.status.code(), Some(64));
    assert!(stderr(&none).contains("set JWT_SECRET"), "{none:?}");
    let wrong = rowcast(&["token", "--claim", "x"], &[("JWT_SECRET", SECRET)]);
    assert!(stderr(&wrong).contains("a name and a value"), "{wrong:?}");
    let wrong = rowcast(&["token", "--ttl", "1y"], &[("JWT_SECRET", SECRET)]);
    assert!(
        stderr(&wrong).contains("--ttl is `1y`; it must be a time"),
        "{wrong:?}"
    );
}

#[test]
fn a_relay_that_does_not_answer_is_not_healthy_and_one_that_does_is() {
    use std::io::{Read, Write};

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        for status in ["200 OK", "503 Service Unavailable"] {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let read = socket.read(&mut request).unwrap();
            assert!(request[..read].starts_with(b"GET /readyz "));
            write!(
                socket,
                "HTTP/1.1 {status}\r\ncontent-length: 4\r\nconnection: close\r\n\r\nlate"
            )
            .unwrap();
        }
    });
    let environment = [("ROWCAST_ADMIN_LISTEN", address.as_str())];
    let healthy = rowcast(&["health"], &environment);
    assert!(healthy.status.success(), "{healthy:?}");
    let unready = rowcast(&["health"], &environment);
    assert_eq!(unready.status.code(), Some(1));
    assert!(stderr(&unready).contains("says 503: late"), "{unready:?}");
    server.join().unwrap();
    let url = format!("http://{address}/readyz");
    let gone = rowcast(&["health", "--url", &url], &[]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(stderr(&gone).contains("does not answer"), "{gone:?}");
}

#[test]
fn a_benchmark_refuses_what_it_cannot_do() {
    for (arguments, words) in [
        (
            &["bench", "--in-process", "--baseline"][..],
            "--in-process has none",
        ),
        (&["bench", "--compare", "1,0"], "0 is not in 1..=100000"),
        (&["bench", "--duration", "5"], "such as 500ms, 5s or 2m"),
    ] {
        let output = rowcast(arguments, &[]);
        assert!(!output.status.success());
        assert!(stderr(&output).contains(words), "{output:?}");
    }
}

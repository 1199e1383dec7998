//! `rowcast tail`: the real binary at a real relay.

use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rowcast::auth::mint;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio_rustls::TlsAcceptor;

use crate::harness::{ANN, BEN, Daemon, Database, SECRET, soon, token, unix_now, until};

/// A running `rowcast tail`; killed where the test leaves it running.
struct Tail {
    child: Child,
    lines: Option<Lines<BufReader<ChildStdout>>>,
    notes: Arc<Mutex<String>>,
}

impl Tail {
    fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_rowcast"))
            .arg("tail")
            .args(arguments)
            .env_clear()
            .envs(environment.iter().copied())
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let notes = Arc::new(Mutex::new(String::new()));
        let collected = Arc::clone(&notes);
        let mut stderr = lines(child.stderr.take().unwrap());
        tokio::spawn(async move {
            while let Ok(Some(line)) = stderr.next_line().await {
                let mut notes = collected.lock().unwrap();
                notes.push_str(&line);
                notes.push('\n');
            }
        });
        Self {
            lines: Some(lines(child.stdout.take().unwrap())),
            child,
            notes,
        }
    }

    /// At this relay, as a user of the tests.
    async fn of(daemon: &Daemon, person: &str, arguments: &[&str]) -> Self {
        let url = format!("http://{}", daemon.public().await);
        let mut all = arguments.to_vec();
        all.extend(["--sub", person]);
        let tail = Self::start(&all, &[("JWT_SECRET", SECRET), ("ROWCAST_URL", &url)]);
        tail.noted("following ").await;
        tail
    }

    fn notes(&self) -> String {
        self.notes.lock().unwrap().clone()
    }

    async fn noted(&self, words: &str) {
        self.noted_times(words, 1).await;
    }

    async fn noted_times(&self, words: &str, times: usize) {
        until(&format!("{words} in stderr"), async || {
            let notes = self.notes();
            assert!(
                !notes.contains("panicked"),
                "it must not panic, also not at the end: {notes}"
            );
            notes.matches(words).count() >= times
        })
        .await;
    }

    async fn line(&mut self) -> String {
        let lines = self.lines.as_mut().unwrap();
        soon("a line", lines.next_line()).await.unwrap().unwrap()
    }

    /// A whole block: its first line and `more` others.
    async fn block(&mut self, more: usize) -> String {
        let mut block = self.line().await;
        for _ in 0..more {
            block.push('\n');
            block.push_str(&self.line().await);
        }
        block
    }

    async fn json(&mut self) -> Value {
        let line = self.line().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    async fn ended(&mut self) -> ExitStatus {
        soon("tail's end", self.child.wait()).await.unwrap()
    }

    /// Exit code and what it said, where it must not have begun to follow.
    async fn refused(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
        let mut tail = Self::start(arguments, environment);
        let code = tail.ended().await.code();
        until("its last words", async || tail.notes().ends_with('\n')).await;
        let notes = tail.notes();
        assert!(!notes.contains("following"), "{notes}");
        (code, notes)
    }

    fn interrupt(&self) {
        let id = self.child.id().expect("it runs").to_string();
        let sent = std::process::Command::new("kill")
            .args(["-s", "INT", &id])
            .status();
        assert!(sent.unwrap().success());
    }
}

fn lines<R: AsyncRead + Unpin>(reader: R) -> Lines<BufReader<R>> {
    BufReader::new(reader).lines()
}

#[tokio::test]
async fn a_user_sees_the_diff_of_their_own_rows_and_nobody_elses() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    let mut tail = Tail::of(&daemon, ANN, &["note"]).await;
    database
        .run(&format!(
            "insert into note values (1, '{BEN}', 'not for Ann'), (2, '{ANN}', 'draft'); \
             update note set body = 'final'; delete from note"
        ))
        .await;
    let insert = tail.block(3).await;
    let (stamp, insert) = insert.split_once(' ').unwrap();
    assert!(stamp.starts_with("20") && stamp.ends_with('Z'), "{stamp}");
    assert_eq!(
        insert,
        format!(
            "INSERT public.note id=2\n  + id     2\n  + owner  \"{ANN}\"\n  + body   \"draft\""
        )
    );
    let update = tail.block(3).await;
    assert!(
        update.ends_with(&format!(
            "UPDATE public.note id=2\n    id     2\n    owner  \"{ANN}\"\n  \
             ~ body   \"draft\" → \"final\""
        )),
        "{update}"
    );
    let delete = tail.block(3).await;
    assert!(
        delete.contains(" DELETE public.note id=2\n  - id     2\n"),
        "{delete}"
    );
    tail.interrupt();
    assert_eq!(tail.ended().await.code(), Some(0), "{}", tail.notes());
    daemon.terminate().await;
}

#[tokio::test]
async fn events_and_filters_choose_and_json_lines_are_the_wires_data() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    let arguments = [
        "public.open",
        "--filter",
        "id=gt.1",
        "--filter",
        "id=lt.4",
        "--event",
        "insert,DELETE",
        "--json",
        "--limit",
        "2",
    ];
    let mut tail = Tail::of(&daemon, ANN, &arguments).await;
    database
        .run(
            "insert into open values (1, 'a'), (2, E'line\\nbreak \u{1b}[2J \u{9b}2J'), (9, 'c'); \
             update open set body = body || '!' where id = 2; delete from open",
        )
        .await;
    let insert = tail.json().await;
    assert_eq!(insert["type"], "INSERT");
    assert_eq!(
        insert["record"],
        json!({"id": 2, "body": "line\nbreak \u{1b}[2J \u{9b}2J"})
    );
    assert_eq!(insert["columns"][0], json!({"name": "id", "type": "int8"}));
    let delete = tail.json().await;
    assert_eq!(
        (&delete["type"], &delete["old_record"]),
        (&json!("DELETE"), &json!({"id": 2}))
    );
    assert_eq!(tail.ended().await.code(), Some(0), "the limit ends it");
    daemon.terminate().await;
}

#[tokio::test]
async fn a_rows_values_and_names_cannot_command_the_terminal() {
    let database = Database::new("rowcast").await;
    let hostile = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{7f}\u{202e}";
    database
        .run(&format!(
            "create table \"t{hostile}\" (id int primary key, \"c{hostile}\" text, j json); \
             grant select on \"t{hostile}\" to authenticated; \
             alter publication rowcast add table \"t{hostile}\""
        ))
        .await;
    let daemon = database.daemon(&[]).await;
    let table = format!("t{hostile}");
    let mut block = Tail::of(&daemon, ANN, &[&table, "--color", "always"]).await;
    let mut json = Tail::of(&daemon, ANN, &["*", "--json"]).await;
    database
        .run(&format!(
            "insert into \"t{hostile}\" values \
             (1, '{hostile}', E'[1,\\r\\n\\t2]'::text::json)"
        ))
        .await;
    let shown = block.block(3).await;
    let painted = ["\u{1b}[1m", "\u{1b}[2m", "\u{1b}[32m", "\u{1b}[0m"];
    let bare = painted
        .iter()
        .fold(shown.clone(), |text, colour| text.replace(colour, ""));
    assert_ne!(bare, shown, "colours were asked for");
    let bad = bare
        .chars()
        .find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
    assert_eq!(bad, None, "{shown:?}");
    assert!(shown.contains(r"\u001b]0;owned\u0007"), "{shown:?}");

    let line = json.line().await;
    assert!(!line.chars().any(char::is_control), "{line:?}");
    let change: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(change["record"][format!("c{hostile}")], hostile);
    assert_eq!(change["record"]["j"], json!([1, 2]));
    let notes = block.notes() + &json.notes();
    assert!(
        !notes.replace('\n', "").chars().any(char::is_control),
        "{notes:?}"
    );
    daemon.terminate().await;
}

#[tokio::test]
async fn it_comes_back_after_the_relay_did_and_says_what_may_be_missing() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    let address = daemon.public().await.to_string();
    let mut tail = Tail::of(&daemon, ANN, &["open"]).await;
    daemon.terminate().await;
    tail.noted("trying to connect again").await;
    database.insert_open(1).await;
    let daemon = database.daemon(&[("ROWCAST_LISTEN", &address)]).await;
    tail.noted("following public.open again; changes in between may have been missed")
        .await;
    database.insert_open(2).await;
    // The slot kept the first one, and the relay may hand it out before or after the join.
    let mut block = tail.block(2).await;
    if block.contains("id=1") {
        block = tail.block(2).await;
    }
    assert!(block.contains("INSERT public.open id=2"), "{block}");
    daemon.terminate().await;
}

#[tokio::test]
async fn a_resync_is_said_and_followed_by_another_subscription() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    // A TRUNCATE is none of these, so it is no change to it.
    let arguments = ["open", "-n", "1", "--event", "insert"];
    let mut tail = Tail::of(&daemon, ANN, &arguments).await;
    database.run("truncate open").await;
    tail.noted("resync (truncated): ").await;
    tail.noted("following public.open again").await;
    database.insert_open(1).await;
    assert!(tail.block(2).await.contains("id=1"));
    assert_eq!(tail.ended().await.code(), Some(0));
    daemon.terminate().await;
}

#[tokio::test]
async fn a_truncate_is_a_change_like_others() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    let mut tail = Tail::of(&daemon, ANN, &["open", "-n", "2"]).await;
    database.run("truncate open").await;
    let line = tail.block(0).await;
    assert!(line.trim_end().ends_with(" TRUNCATE public.open"), "{line}");
    database.insert_open(1).await;
    assert!(tail.block(2).await.contains("id=1"));
    assert_eq!(tail.ended().await.code(), Some(0));
    assert!(!tail.notes().contains("resync"), "{}", tail.notes());
    daemon.terminate().await;
}

#[tokio::test]
async fn what_waiting_does_not_heal_ends_it_with_the_reason() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    let url = format!("http://{}", daemon.public().await);
    let admin = format!("http://{}", daemon.admin().await);
    let url = ("ROWCAST_URL", url.as_str());
    let secret = ("JWT_SECRET", SECRET);
    let forged = mint(
        "another secret of at least thirty-two bytes",
        &json!({"role": "authenticated", "exp": unix_now() + 60}),
    )
    .unwrap();
    for (arguments, environment, words) in [
        (
            &["nowhere", "--sub", ANN][..],
            &[url, secret][..],
            "`rowcast setup --table` publishes one",
        ),
        (
            &["open", "--sub", ANN, "--filter", "nothing=eq.1"],
            &[url, secret],
            "invalid column for filter nothing",
        ),
        (
            &["open", "--sub", ANN, "--filter", "id=eq.one"],
            &[url, secret],
            "one",
        ),
        (
            &["open"],
            &[url, ("ROWCAST_TOKEN", &forged)],
            "Failed to validate JWT signature",
        ),
        (&["open", "--token", "x"], &[url], "not a valid JWT"),
        (
            &["open", "--token-file", "/nowhere"],
            &[url],
            "/nowhere cannot be read",
        ),
        (&["open"], &[url], "Say as whom"),
        (&["open", "--sub", ANN], &[url], "set JWT_SECRET"),
        (&["a.b.c", "--sub", ANN], &[url, secret], "schema.table"),
        (
            &["open", "--event", "truncate"],
            &[url, secret],
            "[possible values:",
        ),
        (
            &["open", "--sub", ANN, "--url", &admin],
            &[secret],
            "is no relay: it answers with 404",
        ),
        (
            &["open", "--sub", ANN, "--url", "localhost"],
            &[secret],
            "must be one like http://localhost:4000",
        ),
    ] {
        let (code, notes) = Tail::refused(arguments, environment).await;
        assert_eq!(code, Some(64), "{arguments:?}: {notes}");
        assert!(notes.contains(words), "{words} is missing in {notes}");
        assert!(!notes.contains(&forged) && !notes.contains(SECRET));
    }
    daemon.terminate().await;
}

#[tokio::test]
async fn a_given_token_that_ends_ends_it_and_a_made_one_is_renewed() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    let url = format!("http://{}", daemon.public().await);
    let file = tempfile::NamedTempFile::new().unwrap();
    let claims = json!({"role": "authenticated", "sub": ANN, "exp": unix_now() + 4});
    std::fs::write(file.path(), mint(SECRET, &claims).unwrap() + "\n").unwrap();
    let environment = [
        ("ROWCAST_URL", url.as_str()),
        ("ROWCAST_TOKEN_FILE", file.path().to_str().unwrap()),
    ];
    let mut given = Tail::start(&["open"], &environment);
    // One whose file is renewed by somebody else.
    let renewed = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(file.path(), renewed.path()).unwrap();
    let renewed_path = renewed.path().to_str().unwrap();
    let arguments = ["open", "--token-file", renewed_path, "-n", "1"];
    let mut from_file = Tail::start(&arguments, &environment);
    let mut made = Tail::of(&daemon, ANN, &["note", "--ttl", "4s"]).await;
    given.noted("following").await;
    from_file.noted("following").await;
    std::fs::write(renewed.path(), token(ANN)).unwrap();
    assert_eq!(given.ended().await.code(), Some(1));
    given.noted("Token has expired").await;
    // By now the first token of the other one has ended too.
    until("more than a token's life", async || {
        unix_now() > claims["exp"].as_i64().unwrap() + 2
    })
    .await;
    database
        .run(&format!("insert into note values (1, '{ANN}', 'x')"))
        .await;
    assert!(made.block(3).await.contains("INSERT public.note id=1"));
    let notes = made.notes();
    assert_eq!(notes.matches("following").count(), 1, "{notes}");
    from_file.noted("following public.open again").await;
    database.insert_open(1).await;
    assert!(from_file.block(2).await.contains("id=1"));
    daemon.terminate().await;
}

#[tokio::test]
async fn a_reader_that_goes_ends_it_without_a_word() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    let environment = [
        ("ROWCAST_URL", format!("ws://{}", daemon.public().await)),
        ("ROWCAST_TOKEN", token(ANN)),
    ];
    let environment = environment
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let mut tail = Tail::start(&["open"], &environment);
    tail.noted("following").await;
    let before = tail.notes();
    database.insert_open(1).await;
    tail.block(2).await;
    // Without another change, which may be a day away.
    drop(tail.lines.take());
    assert_eq!(tail.ended().await.code(), Some(0));
    assert_eq!(tail.notes(), before);
    daemon.terminate().await;
}

#[tokio::test]
async fn a_relay_that_is_not_there_yet_is_waited_for() {
    let database = Database::new("rowcast").await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    // Without --url the relay is where this machine's settings say.
    let environment = [("JWT_SECRET", SECRET), ("ROWCAST_LISTEN", &*address)];
    let tail = Tail::start(&["open", "--role", "service_role"], &environment);
    tail.noted("cannot be reached").await;
    let daemon = database.daemon(&[("ROWCAST_LISTEN", &address)]).await;
    tail.noted("following public.open at ws://").await;
    daemon.terminate().await;
}

/// A proxy that ends TLS in front of a relay, with a certificate for `localhost`.
async fn tls_proxy(relay: SocketAddr, certificate: &rcgen::CertifiedKey<rcgen::KeyPair>) -> u16 {
    let chain = vec![certificate.cert.der().clone()];
    let key = PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not trust it goes away.
                let Ok(mut client) = acceptor.accept(stream).await else {
                    return;
                };
                let mut server = TcpStream::connect(relay).await.unwrap();
                let _ended = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn a_relay_behind_tls_is_followed_if_its_certificate_is_trusted() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let port = tls_proxy(daemon.public().await, &certificate).await;
    let trusted = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(trusted.path(), certificate.cert.pem()).unwrap();
    let url = format!("https://localhost:{port}");
    let arguments = ["open", "--sub", ANN, "--url", &url, "-n", "1"];
    let secret = ("JWT_SECRET", SECRET);
    let mut tail = Tail::start(
        &arguments,
        &[secret, ("SSL_CERT_FILE", trusted.path().to_str().unwrap())],
    );
    tail.noted("following public.open at wss://localhost").await;
    database.insert_open(1).await;
    assert!(tail.block(2).await.contains("INSERT public.open id=1"));
    assert_eq!(tail.ended().await.code(), Some(0));

    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(trusted.path(), other.cert.pem()).unwrap();
    let environment = [secret, ("SSL_CERT_FILE", trusted.path().to_str().unwrap())];
    let (code, notes) = Tail::refused(&arguments, &environment).await;
    assert_eq!(code, Some(1), "{notes}");
    assert!(notes.contains("cannot be trusted"), "{notes}");
    daemon.terminate().await;
}

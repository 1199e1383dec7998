//! Whom a connection trusts, and how it proves who it is, against a real PostgreSQL with TLS.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rowcast::pg::connect::{ConnectError, Database};
use rowcast::pg::refusal::Retry;
use rowcast::pg::throwaway::{Options, Throwaway};
use rowcast::source::{Source, SourceEvent};
use tokio::time::{Duration, timeout};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }
}

/// A server that knows the name `localhost`, in TLS only, with a role for each authentication.
async fn server(authority: &Authority) -> Throwaway {
    let mut server = Throwaway::start(Options {
        hba: [
            "hostssl all bound 127.0.0.1/32 scram-sha-256",
            "hostssl all hashed 127.0.0.1/32 md5",
            "hostssl all clear 127.0.0.1/32 password",
            "hostnossl all bound,hashed,clear 127.0.0.1/32 scram-sha-256",
        ]
        .map(str::to_owned)
        .to_vec(),
        ..Options::default()
    })
    .await
    .unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .signed_by(&key, &authority.issuer)
        .unwrap();
    put(&server, "server.crt", &certificate.pem());
    put(&server, "server.key", &key.serialize_pem());
    let admin = Database::parse(&server.url("postgres")).unwrap();
    let client = admin.connect("test").await.unwrap();
    client
        .batch_execute(
            "create role bound login replication password 'geheim';
             set password_encryption = md5;
             create role hashed login replication password 'geheim';
             create role clear login replication password 'geheim';
             create table a (id int);
             create publication rowcast for table a",
        )
        .await
        .unwrap();
    drop(client);
    server.configure(&["ssl = on"]).unwrap();
    server.restart().await.unwrap();
    server
}

/// Writes a file that only the server's user may read.
fn put(server: &Throwaway, name: &str, text: &str) {
    let data = server.directory().join("data");
    let path = data.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let owner = fs::metadata(&data).unwrap();
    chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
}

fn address(server: &Throwaway, user: &str, host: &str, rest: &str, ca: Option<&Path>) -> Database {
    let ca = ca.map_or(String::new(), |ca| format!("&sslrootcert={}", ca.display()));
    let url = format!(
        "postgres://{user}:geheim@{host}:{}/postgres?{rest}{ca}",
        server.port()
    );
    Database::parse(&url).unwrap()
}

async fn refused(database: &Database) -> ConnectError {
    let error = database.connect("test").await.map(drop).unwrap_err();
    assert_eq!(error.retry(), Retry::Never, "{error}");
    error
}

#[tokio::test]
async fn a_session_is_as_safe_as_sslmode_says() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    let other = directory.path().join("other.pem");
    fs::write(&ca, &ours.pem).unwrap();
    fs::write(&other, &theirs.pem).unwrap();
    let server = server(&ours).await;
    let encrypted = async |database: &Database| -> bool {
        let client = database.connect("test").await.unwrap();
        client
            .query_one(
                "select ssl from pg_stat_ssl where pid = pg_backend_pid()",
                &[],
            )
            .await
            .unwrap()
            .get(0)
    };

    // Ordinary sessions.
    for (host, rest, roots) in [
        ("localhost", "sslmode=verify-full", Some(&ca)),
        ("127.0.0.1", "sslmode=verify-ca", Some(&ca)),
        ("127.0.0.1", "sslmode=require", Some(&ca)),
        ("127.0.0.1", "sslmode=require", None),
        ("127.0.0.1", "sslmode=prefer", None),
        ("127.0.0.1", "sslmode=require&channel_binding=require", None),
    ] {
        let database = address(
            &server,
            "bound",
            host,
            rest,
            roots.map(|path| path.as_path()),
        );
        assert!(encrypted(&database).await, "{host} {rest}");
    }
    let plain = address(&server, "bound", "127.0.0.1", "sslmode=disable", None);
    assert!(!encrypted(&plain).await);
    for (host, rest, roots) in [
        ("127.0.0.1", "sslmode=verify-full", &ca),
        ("localhost", "sslmode=verify-full", &other),
        ("localhost", "sslmode=verify-ca", &other),
        ("localhost", "sslmode=require", &other),
    ] {
        let error = refused(&address(&server, "bound", host, rest, Some(roots))).await;
        assert!(
            matches!(error, ConnectError::Certificate { .. }),
            "{host} {rest}: {error}"
        );
    }
    let wrong = format!(
        "postgres://bound:falsch@localhost:{}/postgres",
        server.port()
    );
    let error = refused(&Database::parse(&wrong).unwrap()).await;
    assert!(error.to_string().contains("28P01"), "{error}");
    let unbound = address(
        &server,
        "clear",
        "127.0.0.1",
        "sslmode=require&channel_binding=require",
        None,
    );
    let error = refused(&unbound).await;
    assert!(
        matches!(error, ConnectError::NoChannelBinding { .. }),
        "{error}"
    );

    // Replication sessions, by every authentication.
    let admin = Database::parse(&server.url("postgres")).unwrap();
    let client = admin.connect("test").await.unwrap();
    for (user, rest) in [
        ("bound", "sslmode=verify-full&channel_binding=require"),
        ("bound", "sslmode=verify-full&channel_binding=disable"),
        ("bound", "sslmode=disable"),
        ("hashed", "sslmode=verify-full"),
        ("clear", "sslmode=verify-full"),
    ] {
        let roots = (!rest.contains("disable") || rest.contains("verify")).then_some(ca.as_path());
        let database = address(&server, user, "localhost", rest, roots);
        let slot = format!("{user}_slot");
        let mut opened = Source::open(&database, &slot, "rowcast")
            .await
            .unwrap_or_else(|error| panic!("{user} {rest}: {error}"));
        client
            .batch_execute("insert into a values (1)")
            .await
            .unwrap();
        let received = timeout(Duration::from_secs(60), async {
            loop {
                match opened.source.next().await.unwrap() {
                    SourceEvent::Batch(batch) => break batch,
                    SourceEvent::Progress(_) => {}
                }
            }
        });
        assert!(!received.await.unwrap().changes.is_empty());
        opened.source.close().await;
    }

    // Through the server's own socket there is no TLS to speak of.
    let socket = Database::parse(&server.socket_url("postgres")).unwrap();
    let opened = Source::open(&socket, "socket_slot", "rowcast")
        .await
        .unwrap();
    opened.source.close().await;
    // The first of two hosts does not answer.
    let several = format!(
        "postgres://postgres@127.0.0.1:1,127.0.0.1:{}/postgres?sslmode=disable",
        server.port()
    );
    let several = Database::parse(&several).unwrap();
    let opened = Source::open(&several, "several_slot", "rowcast")
        .await
        .unwrap();
    opened.source.close().await;
    server.stop().await;
}

#[tokio::test]
async fn a_server_without_tls_is_refused_where_tls_is_demanded() {
    let server = Throwaway::start(Options::default()).await.unwrap();
    let database = address(&server, "postgres", "127.0.0.1", "sslmode=require", None);
    let error = refused(&database).await;
    assert!(matches!(error, ConnectError::NoTls { .. }), "{error}");
    let database = address(&server, "postgres", "127.0.0.1", "sslmode=prefer", None);
    database.connect("test").await.unwrap();
    server.stop().await;
}

//! The stack, running: PostgreSQL as the `db` service configures it, and every other service as a
//! process with its own command and environment, inside the image's file system where this process
//! may do that. What differs from containers: all share one network, so each port that a service
//! listens on stands for a free one of this machine.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rowcast::pg::throwaway::{Options, Throwaway};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::NoTls;

use crate::file::{Condition, published};
use crate::image::Image;
use crate::stack::{SECRET, SUPERUSER, Stack, environment};

/// Nothing here takes longer, however busy the machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// What Docker sets where an image does not.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const ANN: &str = "00000000-0000-4000-8000-00000000000a";
const BEN: &str = "00000000-0000-4000-8000-00000000000b";

/// Looks again and again until there is something.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// PostgreSQL as an image would start it: with the settings of the command, and a superuser who
/// needs a password over the network.
pub(crate) struct Server {
    pub(crate) cluster: Throwaway,
    database: String,
}

impl Server {
    pub(crate) async fn start(
        settings: &[String],
        superuser: &str,
        password: &str,
        database: &str,
    ) -> Self {
        let settings = settings
            .iter()
            .map(|setting| {
                let (name, value) = setting.split_once('=').expect("name=value");
                format!("{name} = '{value}'")
            })
            .collect();
        let options = Options {
            settings,
            hba: vec!["host all all 127.0.0.1/32 scram-sha-256".to_owned()],
            ..Options::default()
        };
        let server = Self {
            cluster: Throwaway::start(options).await.expect("a server"),
            database: database.to_owned(),
        };
        let role = if superuser == "postgres" {
            "alter"
        } else {
            "create"
        };
        let role = format!("{role} role {superuser} superuser login password '{password}'");
        server.run_in("postgres", &role).await;
        if database != "postgres" {
            let create = format!("create database {database}");
            server.run_in("postgres", &create).await;
        }
        server
    }

    /// Through the socket, as `docker compose exec db psql` does it.
    async fn connect(&self, database: &str) -> tokio_postgres::Client {
        let url = self.cluster.socket_url(database);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        tokio::spawn(async move {
            // The test fails where the connection is used.
            let _ended = connection.await;
        });
        client
    }

    async fn run_in(&self, database: &str, sql: &str) {
        let client = self.connect(database).await;
        client
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.run_in(&self.database, sql).await;
    }

    pub(crate) async fn text(&self, sql: &str) -> String {
        let client = self.connect(&self.database).await;
        client.query_one(sql, &[]).await.unwrap().get(0)
    }
}

/// A started service.
pub(crate) struct Container {
    child: Child,
    log: Arc<Mutex<String>>,
    /// What it writes is read until it has closed both.
    outputs: Vec<JoinHandle<()>>,
}

impl Container {
    fn spawn(command: std::process::Command) -> Self {
        let mut child = Command::from(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let outputs = vec![
            collect(child.stdout.take().unwrap(), &log),
            collect(child.stderr.take().unwrap(), &log),
        ];
        Self {
            child,
            log,
            outputs,
        }
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    fn has_ended(&mut self) -> Option<Option<i32>> {
        self.child.try_wait().unwrap().map(|status| status.code())
    }

    pub(crate) async fn ended(&mut self) -> Option<i32> {
        let ended = tokio::time::timeout(DEADLINE, self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("does not end: {}", self.log()));
        for output in self.outputs.drain(..) {
            let read = tokio::time::timeout(DEADLINE, output).await;
            read.expect("nobody else writes there").unwrap();
        }
        status.unwrap().code()
    }

    /// `docker stop`.
    pub(crate) async fn stop(mut self, signal: &str) {
        let id = self.child.id().expect("it runs").to_string();
        let sent = std::process::Command::new("kill")
            .args(["-s", signal, &id])
            .status();
        assert!(sent.unwrap().success());
        assert_eq!(self.ended().await, Some(0), "{}", self.log());
    }
}

fn collect(
    from: impl AsyncRead + Unpin + Send + 'static,
    log: &Arc<Mutex<String>>,
) -> JoinHandle<()> {
    let log = Arc::clone(log);
    let mut lines = BufReader::new(from).lines();
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            let mut log = log.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    })
}

/// A stack that is being started.
pub(crate) struct Running {
    pub(crate) stack: Stack,
    image: Image,
    pub(crate) server: Server,
    /// The port of this machine that stands for a service's.
    ports: BTreeMap<(String, u16), u16>,
}

impl Running {
    pub(crate) fn new(stack: Stack, server: Server) -> Self {
        let mut running = Self {
            stack,
            image: Image::build(&["localhost", "db"]),
            server,
            ports: BTreeMap::new(),
        };
        let mut listening = Vec::new();
        for (name, service) in &running.stack.file.services {
            if !running.stack.is_ours(name) {
                continue;
            }
            let texts = service.variables().into_values();
            for text in texts.chain(running.stack.argv(name)) {
                let port = ["0.0.0.0:", "127.0.0.1:"]
                    .iter()
                    .find_map(|ip| text.strip_prefix(ip))
                    .and_then(|port| port.parse().ok());
                listening.extend(port.map(|port| (name.clone(), port)));
            }
            // Where a service listens if nobody says otherwise.
            if running.stack.argv(name)[1] == "serve" {
                listening.extend([(name.clone(), 4000), (name.clone(), 4001)]);
            }
        }
        // All of them are held until all are known, so that they differ.
        let held: Vec<_> = listening
            .into_iter()
            .map(|at| (at, TcpListener::bind("127.0.0.1:0").unwrap()))
            .collect();
        for (at, listener) in &held {
            let port = listener.local_addr().unwrap().port();
            running.ports.insert(at.clone(), port);
        }
        running
    }

    /// Where a port of a service is on this machine.
    pub(crate) fn address(&self, service: &str, port: u16) -> SocketAddr {
        let port = self.ports[&(service.to_owned(), port)];
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// Where a published port of this machine leads.
    fn host(&self, host: u16) -> Option<SocketAddr> {
        self.stack.file.services.iter().find_map(|(name, service)| {
            service.ports.iter().find_map(|port| {
                let (_, from, to) = published(port)?;
                (from == host).then(|| self.address(name, to))
            })
        })
    }

    /// A word of a service's command or environment, with this machine's ports.
    fn here(&self, service: &str, text: &str) -> String {
        let database = self.server.cluster.port();
        let name = if Image::is_entered() {
            "db"
        } else {
            "127.0.0.1"
        };
        let mut text = text.replace("@db:5432/", &format!("@{name}:{database}/"));
        for ((owner, port), here) in &self.ports {
            if owner == service {
                for ip in ["0.0.0.0", "127.0.0.1"] {
                    let from = format!("{ip}:{port}");
                    let is_it = text == from || text.contains(&format!("//{from}/"));
                    if is_it {
                        return text.replace(&from, &format!("127.0.0.1:{here}"));
                    }
                }
            }
        }
        let port = text
            .strip_prefix("http://localhost:")
            .and_then(|p| p.parse().ok());
        if let Some(address) = port.and_then(|port| self.host(port)) {
            text = format!("http://localhost:{}", address.port());
        }
        text
    }

    fn command(&self, service: &str, argv: &[String]) -> std::process::Command {
        let mut command = self.image.command(&argv[0]);
        command
            .args(argv.iter().skip(1).map(|word| self.here(service, word)))
            .env_clear()
            .env("PATH", PATH)
            .current_dir(std::env::temp_dir());
        for (name, value) in self.stack.dockerfile.environment() {
            // Outside of the image a path of it is another.
            let value = if Image::is_entered() {
                value
            } else {
                self.image.inside(&value).display().to_string()
            };
            command.env(name, value);
        }
        for (name, value) in self.stack.file.services[service].variables() {
            command.env(name, self.here(service, &value));
        }
        // The defaults, which are not written down.
        if argv
            .get(1)
            .is_some_and(|word| word == "serve" || word == "health")
        {
            for (name, port) in [("ROWCAST_LISTEN", 4000), ("ROWCAST_ADMIN_LISTEN", 4001)] {
                let given = self.stack.file.services[service]
                    .environment
                    .contains_key(name);
                if !given && self.ports.contains_key(&(service.to_owned(), port)) {
                    command.env(name, self.address(service, port).to_string());
                }
            }
        }
        command
    }

    /// Starts a service and does not wait.
    pub(crate) fn start(&self, service: &str) -> Container {
        Container::spawn(self.command(service, &self.stack.argv(service)))
    }

    /// Waits until those that wait for a service may start. A service that ends and is to be
    /// restarted is, and says so in the count.
    pub(crate) async fn healthy(&self, service: &str, container: &mut Container) -> u32 {
        let argv = self.stack.healthcheck(service).expect("a health check");
        let mut restarts = 0;
        until(&format!("{service} is healthy"), async || {
            if let Some(code) = container.has_ended() {
                let restart = self.stack.file.services[service].restart.as_deref();
                let log = container.log();
                assert_eq!(restart, Some("unless-stopped"), "{code:?}: {log}");
                restarts += 1;
                assert!(restarts < 100, "{log}");
                *container = self.start(service);
            }
            let mut check = Container::spawn(self.command(service, &argv));
            (check.ended().await == Some(0)).then_some(restarts)
        })
        .await
    }

    /// Runs a service that ends.
    pub(crate) async fn complete(&self, service: &str) -> String {
        let mut container = self.start(service);
        let code = container.ended().await;
        assert_eq!(code, Some(0), "{service}: {}", container.log());
        container.log()
    }

    /// The database's own health check.
    async fn database_is_healthy(&self) {
        let argv = self.stack.healthcheck("db").unwrap();
        until("the database is healthy", async || {
            let status = std::process::Command::new(&argv[0])
                .args(&argv[1..])
                .env("PGPORT", self.server.cluster.port().to_string())
                .stdout(Stdio::null())
                .status();
            let status = status.unwrap_or_else(|error| panic!("{}: {error}", argv[0]));
            status.success().then_some(())
        })
        .await;
    }

    /// The one change that a client is sent, while `write` is done.
    pub(crate) async fn change(
        &self,
        relay: SocketAddr,
        arguments: &[&str],
        environment: &[(&str, &str)],
        write: impl Future<Output = ()>,
    ) -> Value {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rowcast"));
        command
            .arg("tail")
            .args(arguments)
            .args(["--json", "--limit", "1"])
            .env_clear()
            .envs(environment.iter().copied())
            .env("ROWCAST_URL", format!("http://{relay}"))
            .current_dir(std::env::temp_dir());
        let mut tail = Container::spawn(command);
        until("the client follows", async || {
            // Looked at before the log is read: a change may come, and the client end, at once.
            let ended = tail.has_ended();
            let log = tail.log();
            let follows = log.contains("following");
            assert!(follows || ended.is_none(), "{log}");
            follows.then_some(())
        })
        .await;
        write.await;
        assert_eq!(tail.ended().await, Some(0), "{}", tail.log());
        until("the client's line", async || {
            let log = tail.log();
            log.lines().find_map(|line| serde_json::from_str(line).ok())
        })
        .await
    }
}

/// What `db` does: its settings, its database, its superuser.
async fn database(stack: &Stack) -> Server {
    let db = &stack.file.services["db"];
    assert!(db.image.as_deref().unwrap().starts_with("postgres:"));
    let (program, options) = db.command.split_first().unwrap();
    assert_eq!(program, "postgres");
    let settings: Vec<String> = options
        .chunks(2)
        .map(|pair| {
            assert_eq!(pair[0], "-c");
            pair[1].clone()
        })
        .collect();
    let variables = db.variables();
    assert_eq!(variables["POSTGRES_PASSWORD"], SUPERUSER);
    let server = Server::start(
        &settings,
        "postgres",
        &variables["POSTGRES_PASSWORD"],
        &variables["POSTGRES_DB"],
    )
    .await;
    let kept = server.text("show max_slot_wal_keep_size").await;
    assert_eq!(kept, "10GB");
    server
}

/// Two users' rows, and a policy that asks who is asking.
const TODOS: &str = "
create table public.todos (id bigint primary key, owner uuid, title text);
alter table public.todos enable row level security;
alter table public.todos replica identity full;
create policy own on public.todos for select to authenticated using (owner = auth.uid());
grant select on public.todos to authenticated;
";

#[tokio::test]
async fn the_stack_comes_up_and_a_client_gets_their_rows_and_no_others() {
    let stack = Stack::new(&environment(&[]));
    let server = database(&stack).await;
    let mut running = Running::new(stack, server);
    let order: Vec<String> = running
        .stack
        .file
        .order(&[])
        .unwrap()
        .into_iter()
        .map(str::to_owned)
        .collect();
    assert_eq!(order, ["db", "setup", "rowcast"]);

    // For the first time: there are no tables yet, and so nothing to follow.
    running.database_is_healthy().await;
    running.complete("setup").await;
    let mut relay = running.start("rowcast");
    assert_eq!(relay.ended().await, Some(69), "{}", relay.log());
    assert!(relay.log().contains("publication"), "{}", relay.log());

    // Then the application's tables, and their names in .env.
    running.server.run(TODOS).await;
    running.stack = Stack::new(&environment(&[("ROWCAST_SETUP_TABLES", "public.todos")]));
    running.complete("setup").await;
    let again = running.complete("setup").await;
    assert!(!again.contains("create "), "nothing is left to do: {again}");
    // Compose starts it again, and it finds what it needs.
    let restarts = running.healthy("rowcast", &mut relay).await;
    assert!(restarts > 0);

    let published = running.host(4000).expect("4000 is published");
    let insert =
        format!("insert into public.todos values (1, '{BEN}', 'not hers'), (2, '{ANN}', 'hers')");
    let change = running
        .change(
            published,
            &["todos", "--sub", ANN],
            &[("JWT_SECRET", SECRET)],
            running.server.run(&insert),
        )
        .await;
    assert_eq!(change["record"]["title"], "hers", "{change}");

    let login = "select string_agg(distinct format('%s %s', r.rolname, r.rolsuper), ', ')
                 from pg_stat_activity a join pg_roles r on r.rolname = a.usename
                 where a.application_name like 'rowcast%'";
    assert_eq!(running.server.text(login).await, "rowcast f");
    let log = relay.log();
    for secret in [SECRET, SUPERUSER, crate::stack::RELAY] {
        assert!(!log.contains(secret), "{log}");
    }
    let signal = running.stack.dockerfile.stop_signal().to_owned();
    relay.stop(&signal).await;
}

#[tokio::test]
async fn the_demo_writes_and_watches_through_the_stacks_own_relay() {
    let stack = Stack::new(&environment(&[]));
    let server = database(&stack).await;
    let running = Running::new(stack, server);
    let mut containers = BTreeMap::new();
    for service in running.stack.file.order(&["demo"]).unwrap() {
        let completes = running.stack.file.services.values().any(|other| {
            other
                .depends_on
                .get(service)
                .is_some_and(|dependency| dependency.condition == Condition::Completed)
        });
        if service == "db" {
            running.database_is_healthy().await;
        } else if completes {
            running.complete(service).await;
        } else {
            let mut container = running.start(service);
            let restarts = running.healthy(service, &mut container).await;
            assert_eq!(restarts, 0, "{service}: {}", container.log());
            containers.insert(service.to_owned(), container);
        }
    }
    let names: Vec<&String> = containers.keys().collect();
    assert_eq!(names, ["demo", "rowcast"]);
    let signal = running.stack.dockerfile.stop_signal().to_owned();

    for start in ["first", "second"] {
        let page = running.host(4100).expect("4100 is published");
        let config: Value = serde_json::from_str(&get(page, "/demo/config.json").await).unwrap();
        let relay = running.host(4000).unwrap();
        assert_eq!(
            config["websocket"],
            format!("http://localhost:{}/realtime/v1/websocket", relay.port())
        );
        let token = config["people"][0]["token"].as_str().unwrap();
        let organization = "0a000000-0000-4000-8000-000000000001";
        // The worker writes; Ann is told of hers.
        let change = running
            .change(
                relay,
                &["agent_tasks"],
                &[("ROWCAST_TOKEN", token)],
                std::future::ready(()),
            )
            .await;
        let row = match change["type"].as_str() {
            Some("DELETE") => &change["old_record"],
            _ => &change["record"],
        };
        assert_eq!(row["organization_id"], organization, "{change}");
        let rows: Value = serde_json::from_str(&get(page, "/demo/rows?user=ann").await).unwrap();
        assert!(!rows["agent_tasks"].as_array().unwrap().is_empty());

        let demo = containers.remove("demo").unwrap();
        let log = demo.log();
        assert!(
            log.contains("ready http://") && !log.contains(token),
            "{log}"
        );
        demo.stop(&signal).await;
        if start == "first" {
            let mut demo = running.start("demo");
            running.healthy("demo", &mut demo).await;
            containers.insert("demo".to_owned(), demo);
        }
    }
    let slots = "select string_agg(slot_name::text, ', ') from pg_replication_slots";
    assert_eq!(running.server.text(slots).await, "rowcast");
    containers.remove("rowcast").unwrap().stop(&signal).await;
}

/// The body of a page.
pub(crate) async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    body.to_owned()
}

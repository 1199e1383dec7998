//! A private cluster, a relay on a fresh database of it, and subscribers without sockets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rowcast::admin::Readiness;
use rowcast::app::Core;
use rowcast::auth::{Claims, Principal};
use rowcast::config::{
    Config, DeleteWithoutIdentity, Leaves, LogFormat, Origins, Proxies, Secret, SnapshotSettings,
};
use rowcast::metrics::Metrics;
use rowcast::pg::throwaway::{Options, Throwaway};
use rowcast::router::{ChannelId, Event, Join, Outbox, Resync, SessionId};
use rowcast::subscription::{Events, Start, Wanted, filter};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio_postgres::NoTls;

/// Nothing in these tests takes longer, however busy the machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

static CLUSTER: OnceCell<Throwaway> = OnceCell::const_new();
static LAST: AtomicU64 = AtomicU64::new(0);

/// The cluster of this test process; it ends with the process.
pub(crate) async fn cluster() -> &'static Throwaway {
    CLUSTER
        .get_or_init(|| async {
            // Every test has a slot, and all run at once.
            let settings = [
                "max_replication_slots = 600",
                "max_wal_senders = 200",
                "max_connections = 500",
            ];
            let settings = settings.map(str::to_owned).to_vec();
            Throwaway::start(Options {
                settings,
                ..Options::default()
            })
            .await
            .expect("a cluster")
        })
        .await
}

pub(crate) const ANN: &str = "00000000-0000-4000-8000-00000000000a";
pub(crate) const BEN: &str = "00000000-0000-4000-8000-00000000000b";

/// A relay on a database of its own.
pub(crate) struct Relay {
    pub(crate) core: Core,
    pub(crate) sql: tokio_postgres::Client,
    pub(crate) url: String,
    fences: u64,
}

impl Relay {
    /// Runs `schema` in a fresh database that has Supabase's roles and functions and an open table
    /// `fence`, publishes `tables` and starts a relay.
    pub(crate) async fn start(schema: &str, tables: &str) -> Self {
        Self::with(schema, tables, |_| {}).await
    }

    pub(crate) async fn with(schema: &str, tables: &str, adjust: impl FnOnce(&mut Config)) -> Self {
        let url = cluster().await.fresh_database().await.expect("a database");
        Self::in_database(&url, schema, tables, adjust).await
    }

    /// As [`Relay::with`], where an event trigger tells of changed rules.
    pub(crate) async fn told(schema: &str, tables: &str, adjust: impl FnOnce(&mut Config)) -> Self {
        let url = cluster().await.fresh_database().await.expect("a database");
        let slot = config(&url).slot;
        has_it_told(&connect(&url).await, &slot).await;
        Self::in_database(&url, schema, tables, |config| {
            config.slot = slot;
            // A changed catalog waits a moment for it, and what changes meanwhile is in doubt.
            config.policy_check = false;
            adjust(config);
        })
        .await
    }

    /// As [`Relay::with`], in a database that is there and empty.
    pub(crate) async fn in_database(
        url: &str,
        schema: &str,
        tables: &str,
        adjust: impl FnOnce(&mut Config),
    ) -> Self {
        let sql = connect(url).await;
        sql.batch_execute(include_str!("../../sql/auth.sql"))
            .await
            .expect("auth.sql");
        sql.batch_execute(
            "create table fence (id bigint primary key); grant select on fence to public",
        )
        .await
        .expect("a fence");
        sql.batch_execute(schema).await.expect("the schema");
        sql.batch_execute(&format!(
            "create publication rowcast for table fence, {tables}"
        ))
        .await
        .expect("a publication");
        let mut config = config(url);
        adjust(&mut config);
        let core = Core::start(&config, Arc::new(Metrics::new()), Readiness::default())
            .await
            .expect("a relay");
        Self {
            core,
            sql,
            url: url.to_owned(),
            fences: 0,
        }
    }

    /// Ends the relay in order, runs `between`, and starts another one.
    pub(crate) async fn restart(self, config: &Config, between: &str) -> Self {
        let away = self.ended().await;
        away.sql
            .batch_execute(between)
            .await
            .expect("what happens between");
        away.begun(config).await
    }

    /// Ends the relay in order.
    pub(crate) async fn ended(self) -> Ended {
        let Self {
            mut core,
            sql,
            url,
            fences,
        } = self;
        core.stop_source().await;
        core.stop().await;
        Ended { sql, url, fences }
    }

    /// A relay on a table `t` that `anon` may read, and a subscriber to it.
    pub(crate) async fn watched(schema: &str) -> (Self, Watcher) {
        let relay = Self::start(&format!("{schema}; grant select on t to anon"), "t").await;
        let watcher = relay.watch("anon", &json!({}), "t").await;
        (relay, watcher)
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.sql.batch_execute(sql).await.unwrap_or_else(|error| {
            panic!(
                "{sql}: {}",
                error.as_db_error().map_or("?", |e| e.message())
            )
        });
    }

    /// Subscribes to every change of a table of schema public.
    pub(crate) async fn watch(&self, role: &str, claims: &Value, table: &str) -> Watcher {
        self.watch_filtered(role, claims, table, Events::All, "")
            .await
            .expect("a subscription")
    }

    /// Subscribes a user of the role `authenticated` to every change of a table of schema public.
    pub(crate) async fn watch_as(&self, user: &str, table: &str) -> Watcher {
        self.watch("authenticated", &json!({"sub": user}), table)
            .await
    }

    /// Subscribes with a filter; the refusal's text where it is refused.
    pub(crate) async fn watch_filtered(
        &self,
        role: &str,
        claims: &Value,
        table: &str,
        events: Events,
        filtered: &str,
    ) -> Result<Watcher, String> {
        let wanted = wanted(1, table, events, filtered);
        self.watch_wanted(role, claims, wanted).await
    }

    /// Why a subscription without claims is refused.
    pub(crate) async fn refused(&self, role: &str, table: &str, filtered: &str) -> String {
        let joined = self
            .watch_filtered(role, &json!({}), table, Events::All, filtered)
            .await;
        joined.err().expect("a refusal")
    }

    /// Subscribes with a filter and a selection of columns.
    pub(crate) async fn watch_columns(
        &self,
        role: &str,
        claims: &Value,
        table: &str,
        filtered: &str,
        select: &[&str],
    ) -> Result<Watcher, String> {
        let columns = select.iter().map(|&name| name.to_owned()).collect();
        let wanted = Wanted {
            select: Some(columns),
            ..wanted(1, table, Events::All, filtered)
        };
        self.watch_wanted(role, claims, wanted).await
    }

    pub(crate) async fn watch_wanted(
        &self,
        role: &str,
        claims: &Value,
        first: Wanted,
    ) -> Result<Watcher, String> {
        // A front before the same router counts its own from 0.
        let session = SessionId((1 << 40) + LAST.fetch_add(1, Ordering::Relaxed));
        let mut watcher = Watcher {
            outbox: Outbox::new(session, 100_000, 1 << 30),
            principal: principal(role, claims),
            wanted: vec![first, wanted(2, "fence", Events::Insert, "")],
            notices: Vec::new(),
        };
        watcher.join(&self.core).await?;
        Ok(watcher)
    }

    /// Waits until the relay keeps the old rows of as many tables.
    pub(crate) async fn keeps_old_rows(&self, tables: usize) {
        if tables == 0 {
            return;
        }
        let ready = format!("rowcast_old_row_mirrors{{state=\"ready\"}} {tables}\n");
        let since = tokio::time::Instant::now();
        while !self.core.metrics.encode().contains(&ready) {
            assert!(since.elapsed() < DEADLINE, "{}", self.core.metrics.encode());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Has the catalog read as it is now: before a client is refused a table, it is looked at again.
    pub(crate) async fn reads_the_catalog(&self) {
        self.refused("anon", "nowhere", "").await;
    }

    /// Writes to the fence and returns what its row says; everything committed before is behind it
    /// in every outbox.
    pub(crate) async fn fence(&mut self) -> u64 {
        let fence = self.next_fence();
        self.run(&format!("insert into fence values ({fence})"))
            .await;
        fence
    }

    /// What the next fence's row says, for whoever writes it.
    pub(crate) const fn next_fence(&mut self) -> u64 {
        self.fences += 1;
        self.fences
    }

    /// What each of `watchers` received before a fence that is written now.
    pub(crate) async fn seen(&mut self, watcher: &Watcher) -> Vec<Seen> {
        let fence = self.fence().await;
        watcher.until(fence).await
    }
}

/// The database of a relay that has ended.
pub(crate) struct Ended {
    pub(crate) sql: tokio_postgres::Client,
    url: String,
    fences: u64,
}

impl Ended {
    /// Starts another relay.
    pub(crate) async fn begun(self, config: &Config) -> Relay {
        let core = Core::start(config, Arc::new(Metrics::new()), Readiness::default())
            .await
            .expect("another relay");
        let Self { sql, url, fences } = self;
        Relay {
            core,
            sql,
            url,
            fences,
        }
    }
}

/// Runs what `sql/ddl.sql` comes to.
pub(crate) async fn has_it_told(sql: &tokio_postgres::Client, slot: &str) {
    sql.query("select set_config('rowcast.slot', $1, false)", &[&slot])
        .await
        .expect("a setting");
    let query = include_str!("../../sql/ddl.sql").replace("\\gexec", "");
    let steps = sql.query(&query, &[]).await.expect("the steps");
    assert!(!steps.is_empty(), "the trigger is not there yet");
    for step in steps {
        sql.batch_execute(step.get(0)).await.expect("a step");
    }
}

fn wanted(id: u32, table: &str, events: Events, filtered: &str) -> Wanted {
    Wanted {
        id,
        events,
        schema: Some("public".to_owned()),
        table: (table != "*").then(|| table.to_owned()),
        filter: filter::parse(filtered).expect("a filter"),
        select: None,
        leave: false,
        start: Start::default(),
    }
}

fn principal(role: &str, claims: &Value) -> Arc<Principal> {
    Arc::new(Principal {
        role: role.into(),
        claims: Claims::verified(claims.to_string()),
        expires_at: None,
    })
}

pub(crate) async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("a connection");
    tokio::spawn(async move {
        // The test fails where the connection is used.
        let _ended = connection.await;
    });
    client
}

pub(crate) fn config(url: &str) -> Config {
    Config {
        database_url: Secret::new(url),
        jwt_secret: Some(Secret::new(
            "a secret of at least thirty-two bytes, for tests",
        )),
        jwks_url: None,
        listen: ([127, 0, 0, 1], 0).into(),
        admin_listen: ([127, 0, 0, 1], 0).into(),
        // Slots belong to the cluster, databases share it.
        slot: format!(
            "rowcast_{}_{}",
            std::process::id(),
            LAST.fetch_add(1, Ordering::Relaxed)
        ),
        publication: None,
        default_role: "authenticated".to_owned(),
        role_claim: "role".to_owned(),
        api_keys: BTreeMap::new(),
        require: rowcast::config::Require::None,
        rules: Vec::new(),
        delete_without_identity: DeleteWithoutIdentity::Suppress,
        leave: Leaves::Asked,
        data: None,
        log_retention: Duration::from_secs(3600),
        log_retention_bytes: 1 << 30,
        lookup_publication: None,
        max_lookup_bytes: 256 << 20,
        old_rows: rowcast::config::OldRowTables::default(),
        max_old_row_bytes: 256 << 20,
        max_retained_wal: 0,
        log_max_changes: 1_000_000,
        log_max_bytes: 256 << 20,
        max_record_bytes: 1 << 20,
        max_connections: 100,
        max_connections_per_user: 0,
        max_connections_per_address: 0,
        trusted_proxies: Proxies::default(),
        allowed_origins: Origins::Any,
        max_channels: 100,
        max_joins_per_second: 100,
        max_asked_filters: 30,
        max_frame_bytes: 1 << 20,
        outbox_max_events: 10_000,
        outbox_max_bytes: 16 << 20,
        // Of no row may be told less because the machine is busy.
        ask_timeout: Duration::from_secs(20),
        // A deliberate fault is to be noticed by the test, not refused before.
        policy_check: cfg!(not(feature = "mutants")),
        snapshot: SnapshotSettings::default(),
        catalog_interval: Duration::from_millis(100),
        resync_spread: Duration::from_secs(5),
        drain: Duration::from_secs(1),
        log: "info".to_owned(),
        log_format: LogFormat::Auto,
    }
}

/// A subscriber.
pub(crate) struct Watcher {
    pub(crate) outbox: Arc<Outbox>,
    principal: Arc<Principal>,
    wanted: Vec<Wanted>,
    pub(crate) notices: Vec<String>,
}

/// What a subscriber received.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Seen {
    Change(Value),
    Resync(Resync),
}

impl Seen {
    pub(crate) fn change(&self) -> &Value {
        match self {
            Self::Change(data) => data,
            Self::Resync(reason) => panic!("a change was expected, not resync {reason:?}"),
        }
    }

    /// `INSERT 1`: the kind, and the id of the row.
    pub(crate) fn brief(&self) -> String {
        match self {
            Self::Change(data) => {
                let row = if data["type"] == "DELETE" {
                    &data["old_record"]
                } else {
                    &data["record"]
                };
                format!("{} {}", data["type"].as_str().unwrap(), row["id"])
            }
            Self::Resync(reason) => format!("resync {}", reason.as_str()),
        }
    }
}

pub(crate) fn brief(seen: &[Seen]) -> Vec<String> {
    seen.iter().map(Seen::brief).collect()
}

impl Watcher {
    /// Puts the channel in force as somebody else, as a session does once a new token is verified.
    /// The answer comes among the other events.
    pub(crate) async fn refresh(&mut self, core: &Core, role: &str, claims: &Value) {
        self.principal = principal(role, claims);
        self.ask_to_join(core).await;
    }

    async fn ask_to_join(&self, core: &Core) {
        core.router
            .join(Join {
                outbox: Arc::clone(&self.outbox),
                channel: ChannelId(1),
                principal: Arc::clone(&self.principal),
                wanted: self.wanted.clone(),
                keeps_cursor: false,
            })
            .await
            .expect("a router");
    }

    /// Joins (again): as a client does after a resync.
    pub(crate) async fn join(&mut self, core: &Core) -> Result<(), String> {
        self.ask_to_join(core).await;
        loop {
            match self.event().await {
                Event::Joined {
                    refusals, notices, ..
                } => {
                    self.notices = notices;
                    return match refusals.into_iter().next() {
                        Some(refusal) => Err(refusal.reason),
                        None => Ok(()),
                    };
                }
                Event::Unavailable { .. } => return Err("unavailable".to_owned()),
                Event::Change { .. } | Event::CaughtUp { .. } | Event::Resync { .. } => {}
                other => panic!("nobody asked for it: {other:?}"),
            }
        }
    }

    pub(crate) async fn event(&self) -> Event {
        let next = async {
            let mut events = Vec::new();
            loop {
                if self.outbox.take(&mut events, 1).expect("room") == 0 {
                    self.outbox.readable().await;
                }
                match events.pop() {
                    // Nothing that a client hears.
                    Some(Event::Introduced { .. }) | None => {}
                    Some(event) => return event,
                }
            }
        };
        tokio::time::timeout(DEADLINE, next)
            .await
            .expect("an event in time")
    }

    /// Waits for a resync without anything in the stream to wait for; returns its reason.
    pub(crate) async fn resync(&self) -> &'static str {
        match self.event().await {
            Event::Resync { reason, .. } => reason.as_str(),
            other => panic!("a resync was expected, not {other:?}"),
        }
    }

    pub(crate) async fn until(&self, fence: u64) -> Vec<Seen> {
        let mut seen = Vec::new();
        loop {
            match self.event().await {
                Event::Change { change, .. } => {
                    let data: Value = serde_json::from_slice(&change.data).expect("JSON");
                    if data["table"] == "fence" {
                        if data["record"]["id"] == fence {
                            return seen;
                        }
                    } else {
                        assert_eq!(&change.bindings[..], [1], "the binding that asked");
                        seen.push(Seen::Change(data));
                    }
                }
                Event::Resync { reason, .. } => {
                    seen.push(Seen::Resync(reason));
                    // Nothing follows on this joining.
                    return seen;
                }
                Event::Unavailable { .. }
                | Event::CaughtUp { .. }
                | Event::Joined { .. }
                | Event::Introduced { .. } => {}
                other @ (Event::Snapshot { .. } | Event::SnapshotFailed { .. }) => {
                    panic!("nobody asked for a snapshot: {other:?}")
                }
            }
        }
    }
}

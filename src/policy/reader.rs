//! Reads the catalog, notices when it changed, and has PostgreSQL resolve function bodies.
//!
//! The catalog is read at *now*, the stream is in the past. A [`Mark`] that was taken before it was
//! read says which changes of the stream it is not older than.

mod bodies;

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Statement};

use self::bodies::Bodies;
pub(crate) use self::bodies::schemas_named;
use super::catalog::Catalog;
use super::clock::ServerClock;
use super::rule::{self, Analysed, Rule};
use crate::change::Relation;
use crate::pg::connect::{ConnectError, Database};
use crate::pg::refusal::Retry;
use crate::pg::snapshot::{InvalidSnapshot, Snapshot};
use crate::pg::{Lsn, Oid, Xid};

/// For how long somebody's exclusive lock on a table means that what it is described by may not be
/// visible yet. A migration that holds it longer must not stop the stream; what it changes is sent
/// anew when it commits.
const ALTERING: Duration = Duration::from_secs(1);

/// How often the whole catalog is read although its fingerprint is what it was: should the one ever
/// miss what the other holds, that does not last.
const WHOLE: Duration = Duration::from_secs(60);

/// … unless that took more than this part of the time.
const WHOLE_SHARE: u32 = 100;

/// How long an answer may have taken that says what time it is.
const PROMPT: Duration = Duration::from_secs(1);

/// For how long [`CatalogReader::look_closely`] looks again.
const CLOSELY: Duration = Duration::from_secs(15);

/// How often the catalog is read at once until it has all that functions come to.
const MAX_ROUNDS: usize = 10;

/// How often it is read where it changes meanwhile.
const MAX_READINGS: usize = 4;

/// What every snapshot of the server shows by now, and the tables that somebody holds.
const MARK: &str = "select pg_current_snapshot()::text,
    (extract(epoch from clock_timestamp() - '2000-01-01 00:00:00+00') * 1000000)::bigint, coalesce((
    select array_agg(l.relation) from pg_locks l join pg_database d on d.oid = l.database
    where l.locktype = 'relation' and l.mode = 'AccessExclusiveLock' and l.granted
      and l.pid is distinct from pg_backend_pid() and d.datname = current_database()), '{}')";

/// Why the catalog could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// PostgreSQL refused or the connection broke.
    #[error("the catalog could not be read")]
    Postgres(#[from] tokio_postgres::Error),
    /// The answer is not what the query returns.
    #[error("the catalog is not as expected")]
    Malformed(#[from] serde_json::Error),
    /// It was not read, for no reason that is known.
    #[error("the catalog was not read")]
    Unread,
    /// A snapshot in a form that is not known.
    #[error(transparent)]
    Snapshot(#[from] InvalidSnapshot),
}

impl CatalogError {
    /// Whether somebody holds a lock that reading takes: an expression's text cannot be had while its
    /// table is being altered.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        let Self::Postgres(error) = self else {
            return false;
        };
        error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
    }

    /// Whether waiting may help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Connect(error) => error.retry(),
            // Refused for what it asks: it will ask the same again.
            Self::Postgres(error) => match error.code().map(SqlState::code) {
                Some(code) if code.starts_with("42") => Retry::Never,
                _ => Retry::Soon,
            },
            Self::Unread => Retry::Soon,
            Self::Malformed(_) | Self::Snapshot(_) => Retry::Never,
        }
    }
}

/// A moment at which the catalog had not been read yet.
#[derive(Debug, Clone)]
pub struct Mark {
    snapshot: Snapshot,
    /// Tables of which somebody else has held the exclusive lock for a moment.
    altered: Vec<Oid>,
    /// Descriptions of the stream with a version below this had been read.
    versions: u64,
}

impl Mark {
    /// Whether a catalog that is read now is at or after the commit of `xid`, whose stream describes
    /// a table as `relation`: the commit is visible (it can be decoded before it is), and nobody who
    /// altered the table is about to become so.
    #[must_use]
    pub fn is_after(&self, xid: Xid, relation: &Relation) -> bool {
        relation.version < self.versions && self.shows(xid) && !self.altered.contains(&relation.oid)
    }

    /// Whether a commit is visible.
    #[must_use]
    pub fn shows(&self, xid: Xid) -> bool {
        self.snapshot.shows(xid)
    }
}

/// A catalog that was read after a mark was taken.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The same value as before where nothing changed.
    pub catalog: Arc<Catalog>,
    /// What it is not older than.
    pub mark: Arc<Mark>,
    /// How long reading took, without what is read once a minute only.
    pub took: Duration,
}

/// Which changes of the catalog the stream tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    /// The event trigger that has it tell, where there is one; another text for another one, or
    /// where it was altered.
    trigger: Option<String>,
    /// What no event trigger is told of.
    beyond: String,
}

impl Told {
    /// Whether the stream tells of all that has changed since `before`.
    fn covers(&self, before: Option<&Self>) -> bool {
        self.trigger.is_some() && before == Some(self)
    }
}

/// What the catalog was when it was read over a connection.
#[derive(Debug)]
struct Looked {
    snapshot: Snapshot,
    fingerprint: String,
    roles: BTreeSet<String>,
    /// When all of it was read, and how long that took.
    whole: (Instant, Duration),
}

impl Looked {
    /// Whether it is time to read all of it whatever the fingerprint says.
    fn is_old(&self) -> bool {
        let (at, took) = self.whole;
        at.elapsed() >= WHOLE.max(took * WHOLE_SHARE)
    }
}

/// Owns the connection that the catalog is read through.
#[derive(Debug)]
pub struct CatalogReader {
    database: Database,
    publication: String,
    slot: String,
    roles: BTreeSet<String>,
    connection: Option<Connection>,
    current: Option<Arc<Catalog>>,
    /// What told of changes when it was looked last.
    told: Option<Told>,
    /// The tables that somebody else holds, since it was noticed.
    held: HashMap<Oid, Instant>,
    /// What functions do, each analysed once.
    bodies: Bodies,
    /// What the current catalog was made of.
    seen: Option<Seen>,
    /// The operator's rules, and what they come to.
    rules: Vec<Rule>,
    analysed: Vec<Analysed>,
    /// Tables that are described though they are not published.
    described: Vec<Oid>,
    /// What time it is on the server.
    clock: Arc<ServerClock>,
}

/// What a catalog was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    /// The md5 of its text.
    document: String,
    /// What names in the bodies of functions mean (`sql/names.sql`).
    names: String,
    /// What the functions do.
    bodies: u64,
    /// What the operator's rules come to.
    rules: u64,
}

impl Seen {
    fn hash(&self, told: &Told) -> String {
        let Self {
            document,
            bodies,
            rules,
            ..
        } = self;
        format!("{document} {bodies:x} {rules:x} {:?}", told.trigger)
    }
}

#[derive(Debug)]
struct Connection {
    client: Client,
    mark: Statement,
    told: Statement,
    fingerprint: Statement,
    document: Statement,
    names: Statement,
    looked: Option<Looked>,
}

impl CatalogReader {
    /// A reader that has not connected yet, for who follows a slot with a publication. `roles` are those that clients are expected to act as;
    /// others are added by [`CatalogReader::add`].
    #[must_use]
    pub fn new(
        database: Database,
        (publication, slot): (String, String),
        roles: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            database,
            publication,
            slot,
            roles: roles.into_iter().collect(),
            connection: None,
            current: None,
            told: None,
            held: HashMap::new(),
            bodies: Bodies::default(),
            seen: None,
            rules: Vec::new(),
            analysed: Vec::new(),
            described: Vec::new(),
            clock: Arc::default(),
        }
    }

    /// Has these tables described as if they were published.
    #[must_use]
    pub fn describing(mut self, tables: Vec<Oid>) -> Self {
        self.described = tables;
        self
    }

    /// Holds the operator's rules against each catalog.
    #[must_use]
    pub fn with_rules(mut self, rules: Vec<Rule>) -> Self {
        self.rules = rules;
        self
    }

    /// Adds a role to those that are read; whether it was not among them.
    pub fn add(&mut self, role: &str) -> bool {
        self.roles.insert(role.to_owned())
    }

    /// Takes a role out that does not exist: names must not pile up. The catalog is the same without
    /// it.
    pub fn remove(&mut self, role: &str) {
        self.roles.remove(role);
        let connection = self.connection.as_mut();
        if let Some(looked) = connection.and_then(|connection| connection.looked.as_mut()) {
            looked.roles.remove(role);
        }
    }

    /// The catalog as it is now: the same value as before where nothing changed.
    ///
    /// # Errors
    /// [`CatalogError`]; the next call connects anew.
    pub async fn look(&mut self) -> Result<Arc<Catalog>, CatalogError> {
        let mark = self.mark().await?;
        Ok(self.read(mark).await?.catalog)
    }

    /// The same, once the bodies of all functions are analysed, for which a look has little time; in
    /// the end as it is then.
    ///
    /// # Errors
    /// [`CatalogError`]; the next call connects anew.
    pub async fn look_closely(&mut self) -> Result<Arc<Catalog>, CatalogError> {
        let began = Instant::now();
        loop {
            let catalog = self.look().await?;
            if !self.bodies.unfinished || began.elapsed() >= CLOSELY {
                return Ok(catalog);
            }
        }
    }

    /// Notes this moment. Waits for nobody.
    ///
    /// # Errors
    /// [`CatalogError`]; the next call connects anew.
    pub async fn mark(&mut self) -> Result<Mark, CatalogError> {
        let versions = Relation::versions();
        let marked = self.mark_once(versions).await;
        if marked.is_err() {
            self.connection = None;
        }
        marked
    }

    /// Reads the catalog, after `mark` was taken.
    ///
    /// # Errors
    /// [`CatalogError`]; the next call connects anew.
    pub async fn read(&mut self, mark: Mark) -> Result<Reading, CatalogError> {
        let read = self.read_once(&mark).await;
        if read.is_err() {
            self.connection = None;
        }
        let (catalog, took) = read?;
        Ok(Reading {
            catalog,
            mark: Arc::new(mark),
            took,
        })
    }

    async fn mark_once(&mut self, versions: u64) -> Result<Mark, CatalogError> {
        let connection = self.connected().await?;
        let asked = Instant::now();
        let row = connection.client.query_one(&connection.mark, &[]).await?;
        let snapshot: String = row.try_get(0)?;
        let (micros, locked): (i64, Vec<u32>) = (row.try_get(1)?, row.try_get(2)?);
        let now = Instant::now();
        // An answer that took long says less than one of before, and that something is wrong.
        if now.duration_since(asked) < PROMPT {
            self.clock.set(micros, now.into_std());
        }
        self.held.retain(|table, _| locked.contains(&table.0));
        let altered = locked.into_iter().map(Oid).filter(|table| {
            let since = *self.held.entry(*table).or_insert(now);
            now.duration_since(since) < ALTERING
        });
        Ok(Mark {
            altered: altered.collect(),
            snapshot: snapshot.parse()?,
            versions,
        })
    }

    async fn read_once(&mut self, mark: &Mark) -> Result<(Arc<Catalog>, Duration), CatalogError> {
        let began = Instant::now();
        let roles = self.roles.clone();
        let (slot, before) = (self.slot.clone(), self.told.clone());
        let current = self.current.clone();
        // Owners of functions too, as far as they are known.
        let owners = current
            .iter()
            .flat_map(|current| current.roles.keys().cloned());
        let acting: BTreeSet<String> = owners.chain(roles.iter().cloned()).collect();
        let unfinished = self.bodies.unfinished;
        let connection = self.connected().await?;
        let known = connection.looked.as_mut();
        let known = known.filter(|known| known.roles == roles);
        let old = unfinished || known.as_ref().is_none_or(|known| known.is_old());
        if let (Some(known), Some(current), false) = (&known, &current, old)
            && known.snapshot == mark.snapshot
        {
            // Nothing at all has committed since.
            return Ok((Arc::clone(current), began.elapsed()));
        }
        let told =
            look_what_tells((&connection.client, &connection.told), (&slot, &acting)).await?;
        let fingerprint = self.fingerprint(told.trigger.as_ref()).await?;
        let connection = self.connected().await?;
        let known = connection.looked.as_mut();
        let mut known = known.filter(|known| known.roles == roles);
        let same = known
            .as_ref()
            .is_some_and(|known| known.fingerprint == fingerprint);
        let took = began.elapsed();
        if let (Some(known), Some(current), true, false) = (&mut known, &current, same, old) {
            known.snapshot = mark.snapshot.clone();
            let current = Arc::clone(current);
            self.told = Some(told);
            return Ok((current, took));
        }
        if !same {
            self.analyse_rules().await?;
        }
        let mut whole = Box::pin(self.whole()).await?;
        let (mut fingerprint, mut settled, mut left) = (fingerprint, false, MAX_READINGS);
        loop {
            left -= 1;
            let now = self.fingerprint(told.trigger.as_ref()).await?;
            settled |= now == fingerprint;
            if settled || left == 0 {
                break;
            }
            // What functions say (has_table_privilege, pg_get_expr) is of the moment that they are
            // called in, the rows that they are called for of when the query began.
            fingerprint = now;
            self.seen = None;
            self.analyse_rules().await?;
            whole = Box::pin(self.whole()).await?;
        }
        let connection = self.connected().await?;
        // What it tells of may lie between the two.
        let behind =
            look_what_tells((&connection.client, &connection.told), (&slot, &acting)).await?;
        let covered = told.covers(before.as_ref()) && behind == told;
        let looked = Looked {
            snapshot: mark.snapshot.clone(),
            fingerprint,
            roles,
            whole: (Instant::now(), began.elapsed() - took),
        };
        let known = self.seen.as_ref().map(|seen| seen.hash(&behind));
        let same_as = current.filter(|current| Some(&current.hash) == known.as_ref());
        if same_as.is_none() && whole.is_none() {
            self.seen = None;
            whole = Box::pin(self.whole()).await?;
        }
        let catalog = match (same_as, whole) {
            (Some(current), _) => current,
            (None, None) => return Err(CatalogError::Unread),
            (None, Some(mut catalog)) => {
                let seen = self.seen.as_ref();
                catalog.hash = seen.map(|seen| seen.hash(&behind)).unwrap_or_default();
                catalog.marked = behind.trigger.is_some();
                catalog.settled = settled;
                let before = self.current.as_deref();
                let covered = covered && before.is_some_and(|before| catalog.is_owned_as(before));
                let era = before.map_or(0, |before| before.era);
                catalog.era = if covered { era } else { era + 1 };
                Arc::new(catalog)
            }
        };
        self.told = Some(behind);
        self.current = Some(Arc::clone(&catalog));
        self.connected().await?.looked = Some(looked);
        Ok((catalog, if same { took } else { began.elapsed() }))
    }

    /// What differs whenever something has changed of what is read.
    async fn fingerprint(&mut self, trigger: Option<&String>) -> Result<String, CatalogError> {
        let publication = self.publication.clone();
        let connection = self.connected().await?;
        let row = connection
            .client
            .query_one(&connection.fingerprint, &[&publication])
            .await?;
        let fingerprint: String = row.try_get(0)?;
        Ok(format!("{fingerprint} {trigger:?}"))
    }

    /// Reads the catalog as a whole, with all that functions come to; `None` where that is what was
    /// seen before.
    async fn whole(&mut self) -> Result<Option<Catalog>, CatalogError> {
        let (publication, roles) = (self.publication.clone(), self.roles.clone());
        let listed: Vec<&String> = roles.iter().collect();
        let mut bodies = std::mem::take(&mut self.bodies);
        let known = self.seen.clone().filter(|_| !bodies.unfinished);
        let mut ruled = DefaultHasher::new();
        let rules: Vec<_> = self.analysed.iter().map(|rule| &rule.rule).collect();
        format!("{rules:?}").hash(&mut ruled);
        let rules = ruled.finish();
        let mut round = 0;
        let outcome = loop {
            let connection = self.connected().await?;
            let numbers = |oids: &BTreeSet<Oid>| oids.iter().map(|oid| oid.0).collect::<Vec<u32>>();
            let beyond = (numbers(&bodies.functions), numbers(&bodies.tables));
            let row = connection
                .client
                .query_one(
                    &connection.document,
                    &[&publication, &listed, &beyond.0, &beyond.1],
                )
                .await?;
            let (text, document): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            let names = connection.client.query_one(&connection.names, &[]).await?;
            let names: String = names.try_get(0)?;
            let same = known
                .as_ref()
                .filter(|seen| seen.document == document && seen.names == names)
                .filter(|seen| seen.rules == rules);
            if round == 0 && same.is_some() {
                break None;
            }
            // Only who explains policies reads the catalog of a standby.
            let read_at = "select (case when pg_is_in_recovery() then pg_last_wal_replay_lsn() \
                           else pg_current_wal_insert_lsn() end)::text";
            let read_at: String = connection
                .client
                .query_one(read_at, &[])
                .await?
                .try_get(0)?;
            let read_at: Lsn = read_at.parse().unwrap_or_default();
            let mut catalog = Catalog::parse(&text, String::new(), read_at)?;
            catalog.clock = Arc::clone(&self.clock);
            self.database.note_settings(catalog.settings);
            rule::install(&mut catalog, &self.analysed);
            let client = &mut self.connected().await?.client;
            let complete = bodies.fill(client, &mut catalog, (&roles, &names)).await?;
            round += 1;
            // What is not complete by then is not compiled.
            if complete || round == MAX_ROUNDS {
                let mut hasher = DefaultHasher::new();
                let mut functions: Vec<_> = catalog.functions.values().collect();
                functions.sort_by_key(|function| function.oid);
                for function in functions {
                    format!("{} {:?}", function.oid, function.bodies).hash(&mut hasher);
                }
                self.seen = Some(Seen {
                    document,
                    names,
                    bodies: hasher.finish(),
                    rules,
                });
                break Some(catalog);
            }
        };
        self.bodies = bodies;
        Ok(outcome)
    }

    /// Has PostgreSQL resolve the rules.
    async fn analyse_rules(&mut self) -> Result<(), CatalogError> {
        if self.rules.is_empty() {
            return Ok(());
        }
        let (rules, roles) = (self.rules.clone(), self.roles.clone());
        let roles: Vec<&String> = roles.iter().collect();
        let client = &mut self.connected().await?.client;
        self.analysed = rule::analyse(client, &rules, &roles).await?;
        Ok(())
    }

    async fn connected(&mut self) -> Result<&mut Connection, CatalogError> {
        if self
            .connection
            .as_ref()
            .is_none_or(|connection| connection.client.is_closed())
        {
            let client = self.database.connect("rowcast catalog").await?;
            // The query is large and runs in a few milliseconds: compiling it takes seconds, and
            // planning it each time longer than running it.
            client
                .batch_execute(
                    "set jit = off; set search_path = ''; set plan_cache_mode = force_generic_plan; \
                     set statement_timeout = '30s'; set lock_timeout = '1s'; \
                     set default_transaction_read_only = off",
                )
                .await?;
            let described: Vec<String> =
                self.described.iter().map(|oid| oid.0.to_string()).collect();
            let described = format!("{{{}}}", described.join(","));
            let describe = "select set_config('rowcast.explained', $1, false)";
            client.query(describe, &[&described]).await?;
            let sql = include_str!("../../sql/catalog.sql");
            let document = client
                .prepare(&format!(
                    "select document, md5(document) from ({sql}) as catalog(document)"
                ))
                .await?;
            let fingerprint = include_str!("../../sql/fingerprint.sql");
            let told = include_str!("../../sql/told.sql");
            let names = include_str!("../../sql/names.sql");
            self.connection = Some(Connection {
                mark: client.prepare(MARK).await?,
                told: client.prepare(told).await?,
                fingerprint: client.prepare(fingerprint).await?,
                names: client.prepare(names).await?,
                client,
                document,
                looked: None,
            });
        }
        Ok(self.connection.as_mut().expect("it was made above"))
    }
}

async fn look_what_tells(
    (client, statement): (&Client, &Statement),
    (slot, roles): (&str, &BTreeSet<String>),
) -> Result<Told, tokio_postgres::Error> {
    let roles: Vec<&String> = roles.iter().collect();
    let row = client.query_one(statement, &[&slot, &roles]).await?;
    Ok(Told {
        trigger: row.try_get(0)?,
        beyond: row.try_get(1)?,
    })
}

//! The task that checks what is compiled, once for each table, role and version of what decides
//! there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_postgres::Client;
use tracing::{debug, info, warn};

use super::{Checked, Found, Limits, Refuted, check};
use crate::metrics::Metrics;
use crate::pg::Oid;
use crate::pg::connect::{Database, Settings};
use crate::policy::ask::sitting::Unanswered;
use crate::policy::catalog::Catalog;

/// How long a new catalog waits for its policies to be checked. What is not checked by then counts
/// as it is compiled until it is.
const PATIENCE: Duration = Duration::from_millis(250);

/// When a check that could not be made is made again.
const AGAIN: Duration = Duration::from_secs(30);

/// How long what differs may be that of a catalog whose successor is under way: the database may have
/// changed since it was read. Meanwhile it is asked, and nothing is said.
const SUCCESSION: Duration = Duration::from_secs(2);

/// What was refused so far of the catalog that was checked last.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The policies that are not to be decided natively.
    pub refuted: Arc<BTreeSet<Refuted>>,
    /// Another number wherever that is another set.
    pub generation: u64,
}

/// Where catalogs are given to be checked.
#[derive(Debug)]
pub struct Checker {
    newest: watch::Sender<Newest>,
    /// The number of the catalog that was gone through last.
    done: watch::Receiver<u64>,
    known: watch::Receiver<Known>,
}

/// The catalog that is to be checked, with its number; those before it need not be any more.
#[derive(Debug, Clone, Default)]
struct Newest {
    number: u64,
    catalog: Option<Arc<Catalog>>,
}

impl Checker {
    /// Has a catalog checked, and waits for that a moment.
    pub async fn check(&self, catalog: &Arc<Catalog>) {
        let mut number = 0;
        self.newest.send_modify(|newest| {
            newest.number += 1;
            newest.catalog = Some(Arc::clone(catalog));
            number = newest.number;
        });
        let mut done = self.done.clone();
        // What takes longer goes on behind.
        let _in_time = timeout(PATIENCE, done.wait_for(|done| *done >= number)).await;
    }

    /// What is known.
    #[must_use]
    pub fn known(&self) -> Known {
        self.known.borrow().clone()
    }

    /// Waits for something to be refused, or not to be any more. Cancel safe.
    pub async fn changed(&mut self) {
        if self.known.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Makes a checker and the task that checks; it ends when the [`Checker`] is gone.
pub fn checker(
    database: Database,
    metrics: Arc<Metrics>,
) -> (Checker, impl Future<Output = ()> + Send) {
    let (newest, incoming) = watch::channel(Newest::default());
    let (finish, done) = watch::channel(0);
    let (publish, known) = watch::channel(Known::default());
    let desk = Desk {
        database,
        metrics,
        publish,
        client: None,
        checked: HashMap::new(),
    };
    let checker = Checker {
        newest,
        done,
        known,
    };
    (checker, desk.run(incoming, finish))
}

/// A table and a role.
type Key = (Oid, String);

struct Desk {
    database: Database,
    metrics: Arc<Metrics>,
    publish: watch::Sender<Known>,
    client: Option<(Client, Settings)>,
    /// What was found, and of which version of what decides there.
    checked: HashMap<Key, (u64, Vec<Checked>)>,
}

/// Whether a catalog comes that has something else there.
async fn superseded(
    mut incoming: watch::Receiver<Newest>,
    (oid, role): &Key,
    fingerprint: u64,
) -> bool {
    let deadline = Instant::now() + SUCCESSION;
    while let Ok(Ok(())) = timeout_at(deadline, incoming.changed()).await {
        let catalog = incoming.borrow_and_update().catalog.clone();
        let Some(catalog) = catalog else { continue };
        let table = catalog.fingerprints().get(oid).into_iter();
        let mut all = table.flat_map(|table| &table.roles);
        if !all.any(|(other, number)| other == role && *number == fingerprint) {
            return true;
        }
    }
    false
}

impl Desk {
    async fn run(mut self, mut incoming: watch::Receiver<Newest>, done: watch::Sender<u64>) {
        let mut again: Option<Instant> = None;
        loop {
            tokio::select! {
                changed = incoming.changed() => if changed.is_err() {
                    return;
                },
                () = at(again) => {}
            }
            let Newest { number, catalog } = incoming.borrow_and_update().clone();
            let Some(catalog) = catalog else { continue };
            let mut open = self.open(&catalog).into_iter();
            let finished = loop {
                // A newer one has most of what is left as well.
                if incoming.has_changed().unwrap_or(true) {
                    break true;
                }
                let Some((key, fingerprint)) = open.next() else {
                    break true;
                };
                if !self.one(&catalog, (key, fingerprint), &incoming).await {
                    break false;
                }
            };
            self.tell();
            // It is seldom needed, and the server has only so many.
            self.client = None;
            again = (!finished).then(|| Instant::now() + AGAIN);
            done.send_replace(number);
        }
    }

    /// What is to be checked; forgets what is not so any more.
    fn open(&mut self, catalog: &Catalog) -> BTreeMap<Key, u64> {
        let mut wanted: HashMap<Key, u64> = HashMap::new();
        let settable = |role: &str| {
            let known = catalog.roles.get(role);
            known.is_some_and(|known| known.settable && !known.bypass)
        };
        for (table, fingerprints) in catalog.fingerprints() {
            let all = fingerprints.roles.iter();
            let all = all.filter(|(role, _)| settable(role));
            wanted.extend(all.map(|(role, number)| ((*table, role.clone()), *number)));
        }
        let before = self.checked.len();
        self.checked
            .retain(|key, (number, _)| wanted.get(key) == Some(number));
        if self.checked.len() != before {
            self.tell();
        }
        let known = |key: &Key| self.checked.contains_key(key);
        wanted.into_iter().filter(|(key, _)| !known(key)).collect()
    }

    /// Checks one; whether the server could be asked.
    async fn one(
        &mut self,
        catalog: &Catalog,
        (key, fingerprint): (Key, u64),
        incoming: &watch::Receiver<Newest>,
    ) -> bool {
        let Some(table) = catalog.tables.get(&key.0) else {
            return true;
        };
        let settings = self.database.settings();
        let known = self.client.take();
        let known = known.filter(|(client, began)| !client.is_closed() && *began == settings);
        let client = match known {
            Some((client, _)) => client,
            None => match self.database.connect("rowcast check").await {
                Ok(client) => client,
                Err(error) => {
                    info!(%error, "policies cannot be checked yet");
                    return false;
                }
            },
        };
        let began = Instant::now();
        let place = (&**table, key.1.as_str());
        let found = Box::pin(check(&client, catalog, place, Limits::default())).await;
        let found = match found {
            Ok(found) => found,
            Err(Unanswered::Broken(problem)) => {
                info!(problem, "policies cannot be checked yet");
                return false;
            }
            Err(problem) => {
                self.metrics.policy_checked("not_checked", 1);
                let (table, role) = (table.sql_name(), &key.1);
                info!(table, role, %problem, "policies are not checked");
                Vec::new()
            }
        };
        let took = began.elapsed();
        self.client = Some((client, settings));
        let differs = |one: &Checked| matches!(one.found, Found::Differs(_));
        let refused = found.iter().any(differs);
        self.checked
            .insert(key.clone(), (fingerprint, found.clone()));
        if refused {
            self.tell();
            if superseded(incoming.clone(), &key, fingerprint).await {
                return true;
            }
        }
        self.note(&found, took);
        true
    }

    fn note(&self, found: &[Checked], took: Duration) {
        for one in found {
            let (table, role, policy) = (&*one.table, &*one.key.1, &*one.policy);
            match &one.found {
                Found::Agrees(tally) => {
                    self.metrics.policy_checked("agrees", 1);
                    let (rows, verdicts) = (tally.rows, tally.verdicts);
                    let took_ms = took.as_millis();
                    debug!(
                        table,
                        role, policy, rows, verdicts, took_ms, "a policy is checked"
                    );
                }
                Found::Differs(_) => {
                    self.metrics.policy_checked("differs", 1);
                    warn!(
                        table,
                        role,
                        policy,
                        "a compiled policy answers otherwise than PostgreSQL, which is asked about \
                         it from now on: please report it"
                    );
                }
                Found::NotChecked(reason) => {
                    self.metrics.policy_checked("not_checked", 1);
                    debug!(table, role, policy, reason, "a policy is not checked");
                }
            }
        }
    }

    /// Says what is refused, where that is another set.
    fn tell(&self) {
        let all = self.checked.values().flat_map(|(_, found)| found);
        let refuted = all.filter(|one| matches!(one.found, Found::Differs(_)));
        let refuted: BTreeSet<Refuted> = refuted.map(|one| one.key.clone()).collect();
        self.publish.send_if_modified(|known| {
            if *known.refuted == refuted {
                return false;
            }
            let refused = i64::try_from(refuted.len()).unwrap_or(i64::MAX);
            self.metrics.policies_refused.set(refused);
            known.refuted = Arc::new(refuted);
            known.generation += 1;
            true
        });
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

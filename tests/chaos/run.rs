//! Breaks one thing after the other, and looks each time whether all is as it should be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{self, Client, KINDS};
use crate::database::Database;
use crate::fault::{FAULTS, Fault};
use crate::leak::{self, Leaks};
use crate::proxy::Proxy;
use crate::relay::{Relay, tail};
use crate::report::{Outcome, Report};
use crate::schema::{FILTERS, TABLES, TEAMS, USERS, connected, never, person, visible};
use crate::writer::{Traffic, write};

/// By when everything flows again after a fault, on a machine that does something else besides.
const HEALED: Duration = Duration::from_secs(90);

/// All that there is.
pub(crate) struct World {
    pub(crate) database: Database,
    pub(crate) relay: Relay,
    pub(crate) to_database: Arc<Proxy>,
    pub(crate) to_relay: Arc<Proxy>,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) writers: usize,
    clients: Vec<Arc<Client>>,
    fence: i64,
    /// Whether the policy of drafts is the strict one.
    strict: bool,
    tasks: JoinSet<()>,
    leaks: Arc<Leaks>,
}

impl World {
    async fn start(seed: u64, writers: usize, clients: usize, leaks: Arc<Leaks>) -> Self {
        let (to_database, to_relay) = (Proxy::start().await, Proxy::start().await);
        let (to_database, to_relay) = (Arc::new(to_database), Arc::new(to_relay));
        let database = Database::start(Arc::clone(&to_database)).await;
        let sql = database.sql().await;
        sql.batch_execute(&leak::memberships(false)).await.unwrap();
        let mut relay = Relay::new(database.through_proxy(), Arc::clone(&to_relay));
        relay.spawn();
        relay.serves().await;
        let traffic = Traffic::new(database.url.subscribe());
        let mut tasks = JoinSet::new();
        for writer in 0..writers as u64 {
            tasks.spawn(write(Arc::clone(&traffic), writer, seed));
        }
        let mut known = Vec::new();
        for number in 0..clients {
            let kind = KINDS[number % KINDS.len()];
            // Each kind with each user, and each user with each filter.
            let user = (number / KINDS.len() + number) % USERS;
            let filter = if number % 2 == 0 {
                0
            } else {
                number / 2 % FILTERS.len()
            };
            let client = Client::new(number, kind, (user, filter), &leaks);
            tasks.spawn(client::run(
                Arc::clone(&client),
                to_relay.address(),
                database.url.subscribe(),
                seed ^ (number as u64) << 20,
            ));
            known.push(client);
        }
        for user in [leak::STRANGER, leak::REVOKED] {
            let address = to_relay.address();
            tasks.spawn(leak::listen(Arc::clone(&leaks), user, address));
        }
        Self {
            database,
            relay,
            to_database,
            to_relay,
            traffic,
            writers,
            clients: known,
            fence: 0,
            strict: true,
            tasks,
            leaks,
        }
    }

    /// Takes from somebody who listens what it was a member of.
    async fn revoke(&mut self) {
        self.carry_out(&leak::memberships(true)).await;
        self.leaks.revoked_behind(self.fence + 1);
    }

    /// Changes who may see what. Of another policy applications know by other ways, and read again; of
    /// memberships that change the relay tells whom it concerns.
    async fn change_rules(&mut self, random: &mut StdRng) {
        if random.random() {
            self.strict = !self.strict;
            let (strict, using) = if self.strict {
                (true, "owner = auth.uid()")
            } else {
                (false, "owner = auth.uid() or shared")
            };
            let sql = format!(
                "begin; update era set strict = {strict}; alter policy seen on draft using ({using}); \
                 commit"
            );
            self.carry_out(&sql).await;
        } else {
            let user = random.random_range(0..USERS);
            let team = (0..TEAMS).find(|team| !never(user, *team) && random.random());
            let Some(team) = team else { return };
            let person = person(user);
            let sql = if random.random() {
                format!("insert into member values ({team}, '{person}') on conflict do nothing")
            } else {
                format!("delete from member where team = {team} and person = '{person}'")
            };
            self.carry_out(&sql).await;
        }
    }

    /// Writers may be in its way: deadlocks end one of them.
    async fn carry_out(&self, sql: &str) {
        loop {
            let connection = self.database.sql().await;
            match connection.batch_execute(sql).await {
                Ok(()) => break,
                Err(error) => {
                    let state = error.code().map(|state| state.code().to_owned());
                    assert_eq!(state.as_deref(), Some("40P01"), "{sql}: {error:?}");
                }
            }
        }
    }

    /// Waits until every client has been told everything, and holds that against PostgreSQL. How
    /// long the first fence took. Where the history `branches`, clients may have been told of what was
    /// lost.
    async fn check(&mut self, what: &str, branches: bool) -> Result<Duration, String> {
        self.relay.serves().await;
        self.traffic.pause(self.writers).await;
        let begun = Instant::now();
        let first = self.fence + 1;
        let url = self.database.url.subscribe();
        let mut sql = connected(&url).await;
        let mut next = begun;
        while !self.clients.iter().all(|client| client.has_passed(first)) {
            if begun.elapsed() > HEALED {
                let stuck = self.clients.iter().filter(|one| !one.has_passed(first));
                let stuck: Vec<&Arc<Client>> = stuck.collect();
                stuck.iter().for_each(|client| write_trace(client));
                let stuck: Vec<String> = stuck.iter().map(|client| client.state()).collect();
                let (ready, metrics) = (
                    self.relay.ask("/readyz").await.1,
                    self.relay.ask("/metrics").await.1,
                );
                let (stuck, log) = (stuck.join("\n"), self.relay.log());
                let log = tail(&log);
                return Err(format!(
                    "{what}: not in time:\n{stuck}\n{log}\n{ready}\n{metrics}"
                ));
            }
            // Whoever joined behind the last one hears the next.
            if Instant::now() >= next {
                self.fence += 1;
                let fence = format!("insert into fence values ({})", self.fence);
                sql.batch_execute(&fence)
                    .await
                    .map_err(|error| format!("{what}: {error:?}"))?;
                next = Instant::now() + Duration::from_millis(500);
            }
            self.relay.serves().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let healed = begun.elapsed();
        let mut wrong = Vec::new();
        for client in &self.clients {
            for table in 0..TABLES.len() {
                let whose = (client.user, table, client.filter);
                let rows = visible(&mut sql, whose)
                    .await
                    .map_err(|error| error.to_string())?;
                let history = client.history();
                let kept = branches.then_some(history.as_str());
                client.model.lock().unwrap().compare(table, rows, kept);
            }
            if !client.model.lock().unwrap().wrong.is_empty() {
                write_trace(client);
            }
            wrong.append(&mut client.model.lock().unwrap().wrong);
        }
        if wrong.is_empty() {
            self.traffic.go_on();
            return Ok(healed);
        }
        let count = wrong.len();
        wrong.truncate(12);
        let (wrong, log) = (wrong.join("\n"), self.relay.log());
        Err(format!(
            "{what}: {count} things are wrong:\n{wrong}\n{}",
            tail(&log)
        ))
    }

    fn resyncs(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for client in &self.clients {
            for (reason, count) in &client.model.lock().unwrap().counts.resyncs {
                *all.entry(reason.clone()).or_default() += count;
            }
        }
        all
    }

    fn committed(&self) -> u64 {
        self.traffic.committed.load(Ordering::Relaxed)
    }

    fn changes(&self) -> (u64, u64) {
        let counts = self
            .clients
            .iter()
            .map(|client| client.model.lock().unwrap().counts.clone());
        counts.fold((0, 0), |(changes, again), counts| {
            (changes + counts.changes, again + counts.again)
        })
    }
}

/// Writes down what a client said and heard, for whoever looks for the cause of a miss.
fn write_trace(client: &Client) {
    if let Ok(folder) = std::env::var("ROWCAST_CHAOS_TRACES") {
        let name = client.name.replace([' ', '/', '"'], "-");
        let trace = client.model.lock().unwrap().trace();
        std::fs::write(format!("{folder}/{name}"), trace).unwrap();
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// The kinds to try, each once.
fn kinds() -> Vec<Fault> {
    let Ok(named) = std::env::var("ROWCAST_CHAOS_KINDS") else {
        return FAULTS.to_vec();
    };
    let find = |name: &str| {
        let found = FAULTS
            .into_iter()
            .find(|fault| format!("{fault:?}") == name);
        found.unwrap_or_else(|| panic!("no fault is named {name}; there are {FAULTS:?}"))
    };
    named.split(',').map(find).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_breaks_nothing_is_lost_or_doubled_or_leaked_and_every_gap_is_told() {
    let seed = number("ROWCAST_CHAOS_SEED").unwrap_or_else(rand::random);
    println!("ROWCAST_CHAOS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let clients = usize::try_from(number("ROWCAST_CHAOS_CLIENTS").unwrap_or(20)).unwrap();
    let leaks = Leaks::new();
    let conducting = conduct(seed, &mut random, clients, Arc::clone(&leaks));
    // Whatever is being done: the first leak ends it.
    tokio::select! {
        () = conducting => {}
        leak = leaks.found() => panic!("{leak}\nROWCAST_CHAOS_SEED={seed}"),
    }
    println!("The leak watcher looked at {} frames.", leaks.frames());
    assert!(leaks.frames() > 0, "it watched nothing");
}

async fn conduct(seed: u64, random: &mut StdRng, clients: usize, leaks: Arc<Leaks>) {
    let mut world = World::start(seed, 4, clients, Arc::clone(&leaks)).await;
    let mut possible = kinds();
    possible.retain(|fault| fault.is_possible(&world));
    let asked = number("ROWCAST_CHAOS_FAULTS");
    let faults = asked.unwrap_or(possible.len() as u64);
    // A round has each fault by itself.
    let overlap = number("ROWCAST_CHAOS_OVERLAP").unwrap_or(if asked.is_some() { 15 } else { 0 });
    let overlap = overlap as f64 / 100.0;
    let mut report = Report::new(seed, clients);
    world.traffic.go_on();
    world
        .check("before the first fault", false)
        .await
        .unwrap_or_else(|wrong| panic!("{wrong}"));
    world.revoke().await;
    world
        .check("somebody is thrown out of all teams", false)
        .await
        .unwrap_or_else(|wrong| panic!("{wrong}"));
    let (mut round, mut count) = (Vec::new(), 0);
    while count < faults {
        let before = (world.resyncs(), world.relay.ended);
        tokio::time::sleep(Duration::from_millis(random.random_range(50..500))).await;
        if random.random_bool(0.4) {
            world.change_rules(random).await;
        }
        // Now and then one comes before the one before it has healed.
        let mut together = Vec::new();
        while count < faults && (together.is_empty() || random.random_bool(overlap)) {
            if round.is_empty() {
                round.clone_from(&possible);
                round.shuffle(random);
            }
            let fault: Fault = round.pop().expect("a kind of fault");
            count += 1;
            println!("{count}: {fault:?}");
            leaks.now(format!("fault {count}, {fault:?}"));
            fault.carry_out(&mut world, random).await;
            together.push(fault);
        }
        let branches = together.contains(&Fault::LaggingStandbyPromoted);
        let checked = world
            .check(&format!("fault {count}, {together:?}"), branches)
            .await;
        let mut resyncs = Report::difference(&before.0, &world.resyncs());
        let mut ended = world.relay.ended - before.1;
        println!("    {:?}, {resyncs:?}", checked.as_ref().ok());
        for fault in together {
            report.add(
                fault,
                Outcome {
                    healed: checked.as_ref().ok().copied(),
                    ended: std::mem::take(&mut ended),
                    resyncs: std::mem::take(&mut resyncs),
                },
            );
        }
        if let Err(wrong) = checked {
            println!("{}", report.table(world.changes(), world.committed()));
            panic!("{wrong}");
        }
    }
    let table = report.table(world.changes(), world.committed());
    println!("{table}");
    if let Ok(path) = std::env::var("ROWCAST_CHAOS_TABLE") {
        std::fs::write(&path, &table).unwrap();
    }
    world.tasks.abort_all();
    world.relay.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_somebody_may_never_see_ends_the_run_at_once() {
    let leaks = Leaks::new();
    let mut world = World::start(1, 2, 2, Arc::clone(&leaks)).await;
    world.traffic.go_on();
    world
        .check("before the leak", false)
        .await
        .unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(leaks.frames() > 0, "it watches");
    leaks.now("a policy for everybody".to_owned());
    let leak = "create policy leak on plan for select to authenticated using (true)";
    world.carry_out(leak).await;
    let found = tokio::time::timeout(HEALED, leaks.found()).await;
    let found = found.expect("the leak is noticed");
    assert!(found.contains("a policy for everybody"), "{found}");
    assert!(found.contains("plan") && found.contains("owner"), "{found}");
    assert!(!found.contains(&person(0)), "no values: {found}");
    world.tasks.abort_all();
    world.relay.terminate().await;
}

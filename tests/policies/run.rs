//! One schema: its database, a relay, principals, and transactions at random.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rowcast::subscription::{Events, Start, Wanted};
use serde_json::{Map, Value, json};
use tokio_postgres::Client;

use crate::expected::{Explained, explained};
use crate::file::{File, foreign};
use crate::harness::{DEADLINE, Relay, Seen, Watcher, cluster, connect, has_it_told};
use crate::oracle::{Contents, Sight, Who, contents, readable, sights};
use crate::values::{Draw, EMAILS, Table, UUIDS, tables};

/// What happened, in numbers.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) transactions: usize,
    pub(crate) changes: usize,
    /// Of changes and principals that policies may hold back.
    pub(crate) visible: usize,
    pub(crate) hidden: usize,
    pub(crate) resyncs: usize,
    /// Told to read again though nothing had changed for them.
    pub(crate) needless: usize,
    pub(crate) refused: usize,
    pub(crate) questions: u64,
    /// Rules that changed.
    pub(crate) alters: usize,
    /// Rows may have come or gone by the clock while a transaction was looked at.
    pub(crate) flips: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) explained: Explained,
    pub(crate) tally: Tally,
    pub(crate) wrong: Vec<String>,
    pub(crate) took: Duration,
}

struct Watching {
    who: usize,
    table: usize,
    watcher: Watcher,
    readable: BTreeSet<String>,
}

pub(crate) fn everybody(file: &File) -> Vec<Who> {
    let [ann, ben, cat, ..] = UUIDS;
    let org = UUIDS[3];
    let of = |role: &str, claims: Value| (role.to_owned(), claims.to_string());
    let mut all = vec![
        of("anon", json!({"role": "anon"})),
        of(
            "authenticated",
            json!({"sub": ann, "role": "authenticated", "email": EMAILS[0], "aal": "aal2",
                "app_metadata": {"org_id": org, "role": "admin", "roles": ["admin", "editor"], "tenant_id": ann}}),
        ),
        of(
            "authenticated",
            json!({"sub": ben, "role": "authenticated", "email": EMAILS[1], "aal": "aal1",
                "app_metadata": {"org_id": cat, "role": "member", "roles": []}, "user_metadata": {"plan": "pro"}}),
        ),
        of(
            "authenticated",
            json!({"sub": cat, "role": "authenticated", "email": EMAILS[2]}),
        ),
        of("authenticated", json!({"role": "authenticated"})),
        of("authenticated", json!({"sub": null, "app_metadata": null})),
        of("service_role", json!({"role": "service_role"})),
    ];
    all.extend(file.claims.iter().cloned());
    let who = |(role, claims): (String, String)| Who {
        bypasses: role == "service_role",
        role,
        claims,
    };
    all.into_iter().map(who).collect()
}

/// Everything about one schema.
pub(crate) async fn run(file: Arc<File>, seed: u64, transactions: usize) -> Outcome {
    let began = Instant::now();
    let url = cluster().await.fresh_database().await.expect("a database");
    let sql = connect(&url).await;
    for (what, text) in [
        ("sql/auth.sql", include_str!("../../sql/auth.sql")),
        ("supabase.sql", include_str!("supabase.sql")),
        (file.name.as_str(), file.sql.as_str()),
    ] {
        if let Err(error) = sql.batch_execute(text).await {
            let text = format!("{what}: {error:?}");
            return Outcome {
                wrong: vec![text],
                ..Outcome::default()
            };
        }
    }
    let named: u64 = file.name.bytes().fold(7, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    let mut draw = Draw {
        random: StdRng::seed_from_u64(seed ^ named),
        file: &file,
    };
    let mut all = tables(&sql).await;
    for table in &mut all {
        if let Some(root) = file.judged_as.get(&table.path()) {
            table.read.clone_from(root);
        }
    }
    fill(&sql, &mut draw, &mut all).await;
    let mut world = World::start(&file, &url, sql, all).await;
    let explained = explained(&url, &file).await;
    world.is_compiled_as(&explained);
    world.wrong.extend(explained.wrong.iter().cloned());
    world.join().await;
    // Some more where chance has shown one outcome only.
    for number in 0..4 * transactions {
        let both = world.tally.visible > 0 || file.hidden_only;
        let both = both && world.tally.hidden + world.tally.refused > 0;
        let both = both && (world.tally.flips > 0 || file.flips.is_empty());
        let both = both && world.tally.alters >= file.alters.len();
        if (number >= transactions && both) || world.wrong.len() > 40 {
            break;
        }
        world.transaction(&mut draw).await;
    }
    let World {
        relay,
        mut tally,
        mut wrong,
        ..
    } = world;
    tally.questions = relay.core.metrics.questions.get();
    let known = !foreign();
    if known && !file.hidden_only && tally.visible == 0 {
        wrong.push(format!("{}: nobody ever sees anything", file.name));
    }
    if known && tally.hidden + tally.refused == 0 {
        wrong.push(format!("{}: nothing is ever hidden", file.name));
    }
    if tally.flips == 0 && !file.flips.is_empty() {
        wrong.push(format!("{}: no row came or went by the clock", file.name));
    }
    if tally.alters < file.alters.len() && wrong.is_empty() {
        wrong.push(format!("{}: not all rules changed", file.name));
    }
    let mut core = relay.core;
    core.stop_source().await;
    core.stop().await;
    Outcome {
        explained,
        tally,
        wrong,
        took: began.elapsed(),
    }
}

/// The first rows. What constraints refuse stays out.
async fn fill(sql: &Client, draw: &mut Draw<'_>, tables: &mut [Table]) {
    for _ in 0..2 {
        for table in tables.iter_mut() {
            for _ in 0..7 {
                let statement = draw.insert(table);
                let _refused = sql.batch_execute(&statement).await;
            }
        }
    }
}

struct World<'f> {
    file: &'f File,
    relay: Relay,
    tables: Vec<Table>,
    /// Of the tables, those that are published.
    watched: Vec<usize>,
    native: Vec<bool>,
    looked: Vec<BTreeSet<String>>,
    everybody: Vec<Who>,
    contents: Vec<Contents>,
    sights: Vec<Vec<Sight>>,
    watching: Vec<Watching>,
    /// When what everybody sees began to be read, in microseconds of the server's clock.
    looked_at: i64,
    /// For each table the moments at which rows come and go by the clock.
    moments: Vec<BTreeSet<i64>>,
    tally: Tally,
    wrong: Vec<String>,
}

impl<'f> World<'f> {
    async fn start(file: &'f File, url: &str, sql: Client, tables: Vec<Table>) -> Self {
        let wanted = |table: &Table| {
            let path = table.path();
            if file.watch.is_empty() {
                table.ruled && table.schema != "storage"
            } else {
                file.watch.contains(&path)
            }
        };
        let watched: Vec<usize> = (0..tables.len())
            .filter(|at| wanted(&tables[*at]))
            .collect();
        let named: Vec<&str> = watched.iter().map(|at| tables[*at].sql.as_str()).collect();
        if !file.keeps_keys_only {
            for name in &named {
                let full = format!("alter table {name} replica identity full");
                sql.batch_execute(&full).await.expect("an identity");
            }
        }
        let everybody = everybody(file);
        let looked_at = server_clock(&sql).await;
        let moments = moments(&sql, file, &tables).await;
        let first = contents(&sql, &tables).await;
        let seen = sights(&sql, &everybody, &tables, &first).await;
        let published = format!("{} {}", named.join(", "), file.publish);
        let told = format!("rowcast_told_{}", file.name);
        if file.told {
            has_it_told(&connect(url).await, &told).await;
        }
        let relay = Relay::in_database(url, "", &published, |config| {
            if file.told {
                config.slot = told;
            }
        })
        .await;
        let count = tables.len();
        Self {
            file,
            relay,
            tables,
            watched,
            native: vec![false; count],
            looked: vec![BTreeSet::new(); count],
            everybody,
            contents: first,
            sights: seen,
            watching: Vec::new(),
            looked_at,
            moments,
            tally: Tally::default(),
            wrong: Vec::new(),
        }
    }

    fn is_wrong(&mut self, text: String) {
        self.wrong.push(format!("{}: {text}", self.file.name));
    }

    /// What `explain` says of each table.
    fn is_compiled_as(&mut self, explained: &Explained) {
        for (place, table) in self.tables.iter().enumerate() {
            let compiled = explained.tables.get(&table.path());
            self.native[place] = compiled.is_none_or(|compiled| compiled.all_native);
            self.looked[place] = compiled
                .map(|compiled| compiled.lookups.clone())
                .unwrap_or_default();
        }
    }

    /// Everybody subscribes to every table that they have not subscribed to.
    async fn join(&mut self) {
        for who in 0..self.everybody.len() {
            for table in self.watched.clone() {
                let there = |one: &Watching| one.who == who && one.table == table;
                if !self.watching.iter().any(there) {
                    self.subscribe(who, table).await;
                }
            }
        }
        // Copies that were not there in time are told of.
        let until = Instant::now() + DEADLINE;
        while ["copying", "waiting"].iter().any(|state| {
            let line = format!("rowcast_lookups{{state=\"{state}\"}} ");
            let text = self.relay.core.metrics.encode();
            text.lines()
                .any(|one| one.strip_prefix(&line).is_some_and(|number| number != "0"))
        }) {
            assert!(Instant::now() < until, "{}: no mirrors", self.file.name);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let fence = self.relay.fence().await;
        for place in 0..self.watching.len() {
            let seen = self.watching[place].watcher.until(fence).await;
            if seen.iter().any(|one| matches!(one, Seen::Resync(_))) {
                let _let_in = self.again(place).await;
            }
        }
    }

    async fn subscribe(&mut self, who: usize, table: usize) {
        let of = &self.tables[table];
        let wanted = Wanted {
            id: 1,
            events: Events::All,
            schema: Some(of.schema.clone()),
            table: Some(of.name.clone()),
            filter: Vec::new(),
            select: None,
            leave: false,
            start: Start::default(),
        };
        let claims: Value = serde_json::from_str(&self.everybody[who].claims).unwrap();
        let role = self.everybody[who].role.clone();
        match self.relay.watch_wanted(&role, &claims, wanted).await {
            Ok(watcher) => {
                let readable = readable(&self.relay.sql, of, &role).await;
                self.watching.push(Watching {
                    who,
                    table,
                    watcher,
                    readable,
                });
            }
            Err(reason) => self.is_refused(who, table, &reason),
        }
    }

    /// Only who cannot select from a table is refused it.
    fn is_refused(&mut self, who: usize, table: usize, reason: &str) {
        let path = format!("{} {}", self.tables[table].path(), self.everybody[who].role);
        let raises = self.sights[who][table].always_raises.is_some();
        if raises || self.file.refused.contains(&path) {
            self.tally.refused += 1;
        } else {
            self.is_wrong(format!("{path} is refused: {reason}"));
        }
    }

    /// Joins again; whether it is let in.
    async fn again(&mut self, place: usize) -> bool {
        let core = &self.relay.core;
        let joined = self.watching[place].watcher.join(core).await;
        let Watching { who, table, .. } = self.watching[place];
        if let Err(reason) = &joined {
            self.is_refused(who, table, reason);
        }
        joined.is_ok()
    }

    /// After rules have changed: what is known of the tables, and who may read which columns.
    async fn is_altered(&mut self) {
        self.tally.alters += 1;
        // What no row's table tells of is seen when the catalog is looked at.
        self.relay.reads_the_catalog().await;
        let compiled = explained(&self.relay.url, self.file).await;
        self.is_compiled_as(&compiled);
        for one in &mut self.watching {
            let role = &self.everybody[one.who].role;
            one.readable = readable(&self.relay.sql, &self.tables[one.table], role).await;
        }
    }

    /// A statement about a row that is not among those `taken`, and whether it wants to be alone.
    fn statement(
        &mut self,
        draw: &mut Draw<'_>,
        taken: &mut BTreeSet<(usize, String)>,
    ) -> (usize, Option<String>, bool) {
        let all: Vec<usize> = (0..self.tables.len())
            .filter(|at| self.tables[*at].schema != "auth" || draw.random.random_bool(0.2))
            .collect();
        let table = if draw.random.random_bool(0.65) {
            *self.watched.choose(&mut draw.random).expect("a table")
        } else {
            all.choose(&mut draw.random)
                .copied()
                .unwrap_or(self.watched[0])
        };
        let keys: Vec<&String> = self.contents[table].keys().collect();
        let key = keys.choose(&mut draw.random).map(|key| (*key).clone());
        if let Some(key) = &key
            && !taken.insert((table, key.clone()))
        {
            return (table, None, false);
        }
        match (draw.random.random_range(0..20), key) {
            (0..=9, Some(key)) => {
                let of = &self.tables[table];
                (table, draw.update(of, &key), false)
            }
            (10..=12, Some(key)) => {
                let of = &self.tables[table];
                (
                    table,
                    Some(format!("delete from {} where {}", of.sql, of.is(&key))),
                    true,
                )
            }
            _ => (table, Some(draw.insert(&mut self.tables[table])), false),
        }
    }

    async fn transaction(&mut self, draw: &mut Draw<'_>) {
        let mut script = vec!["begin".to_owned()];
        self.relay.run("begin").await;
        let (mut touched, mut taken) = (BTreeSet::new(), BTreeSet::new());
        let statements = draw.random.random_range(1..=5);
        let due = !self.file.alters.is_empty() && self.tally.transactions % 2 == 1;
        let due = due.then(|| draw.random.random_range(0..=statements));
        for number in 0..=statements {
            if due == Some(number) {
                let alter = &self.file.alters[self.tally.alters % self.file.alters.len()];
                self.relay.run(alter).await;
                script.push(alter.clone());
            }
            if number == statements {
                break;
            }
            let (table, statement, alone) = self.statement(draw, &mut taken);
            let Some(statement) = statement else { continue };
            // What a delete was before it is only simple where nothing else happens beside it.
            if alone && (!touched.is_empty() || due.is_some()) {
                continue;
            }
            self.relay.run("savepoint s").await;
            let done = self.relay.sql.batch_execute(&statement).await;
            if done.is_err() {
                self.relay.run("rollback to s").await;
                continue;
            }
            touched.insert(table);
            script.push(statement);
            if alone {
                break;
            }
        }
        self.relay.run("commit").await;
        self.tally.transactions += 1;
        if due.is_some() {
            self.is_altered().await;
        }
        let fence = self.relay.fence().await;
        let mut heard = Vec::new();
        for one in &self.watching {
            heard.push(one.watcher.until(fence).await);
        }
        let looked_at = server_clock(&self.relay.sql).await;
        let after = contents(&self.relay.sql, &self.tables).await;
        let seen = sights(&self.relay.sql, &self.everybody, &self.tables, &after).await;
        let flipped = self.flipped(looked_at).await;
        let before = std::mem::replace(&mut self.contents, after);
        let was = std::mem::replace(&mut self.sights, seen);
        let script = script.join("; ");
        let changed: BTreeSet<String> = (0..self.tables.len())
            .filter(|at| before[*at] != self.contents[*at])
            .map(|at| self.tables[at].sql.clone())
            .collect();
        let change = Change {
            before: &before,
            was: &was,
            tables: &changed,
            of_rules: due.is_some(),
        };
        let mut refused = BTreeSet::new();
        for (place, heard) in heard.into_iter().enumerate() {
            let told = self.compare(place, &heard, &change);
            let by_the_clock = flipped.contains(&self.watching[place].table);
            self.tally.flips += usize::from(by_the_clock);
            for text in told.wrong.iter().filter(|_| !by_the_clock) {
                self.is_wrong(format!("{text}\n    after {script}"));
            }
            if told.again && !self.again(place).await {
                refused.insert(place);
            }
        }
        let mut place = 0..;
        self.watching
            .retain(|_| !refused.contains(&place.next().unwrap_or_default()));
        if due.is_some() {
            self.join().await;
        }
    }

    /// The tables of which rows may have come or gone by the clock since what everybody sees was read
    /// before; `looked_at` is when it began to be read this time.
    async fn flipped(&mut self, looked_at: i64) -> BTreeSet<usize> {
        let now = server_clock(&self.relay.sql).await;
        let since = std::mem::replace(&mut self.looked_at, looked_at);
        let later = moments(&self.relay.sql, self.file, &self.tables).await;
        let former = std::mem::replace(&mut self.moments, later);
        (0..self.tables.len())
            .filter(|at| {
                let mut all = former[*at].union(&self.moments[*at]);
                all.any(|moment| (since..=now).contains(moment))
            })
            .collect()
    }

    /// Holds what one subscriber heard of a transaction against what it may see.
    fn compare(&mut self, place: usize, heard: &[Seen], change: &Change<'_>) -> Told {
        let Change {
            before,
            was,
            tables: changed,
            of_rules,
        } = *change;
        let Watching { who, table, .. } = self.watching[place];
        let one = &self.watching[place];
        let person = &self.everybody[who];
        let of = &self.tables[table];
        let (old, new) = (&before[table], &self.contents[table]);
        let (saw, sees) = (&was[who][table], &self.sights[who][table]);
        let named = |key: &str| format!("{} {key} for {person}", of.path());
        let mut told = Told::default();
        let native = self.native[table] || person.bypasses;
        // Of what is asked it is not known what it looks into.
        let looked = !person.bypasses
            && (of_rules
                || !native
                || self.looked[table].iter().any(|name| changed.contains(name)));
        let lenient = self.file.raises.contains(&of.path());
        let mut received = BTreeSet::new();
        let key_of = |data: &Value| {
            let row = match data["type"].as_str() {
                Some("DELETE") => "old_record",
                _ => "record",
            };
            let key: Vec<&Value> = of.key.iter().map(|name| &data[row][name]).collect();
            canonical(&json!(key))
        };
        // What one of a transaction's own cascades updates another may delete.
        let gone: BTreeSet<String> = heard
            .iter()
            .filter_map(|seen| match seen {
                Seen::Change(data) if data["type"] == "DELETE" => Some(key_of(data)),
                _ => None,
            })
            .collect();
        let deleted_later = |key: &String| person.bypasses && gone.contains(key);
        for seen in heard {
            let data = match seen {
                Seen::Change(data) => data,
                Seen::Resync(reason) => {
                    told.again = true;
                    self.tally.resyncs += 1;
                    match reason.as_str() {
                        "access_changed" if looked => {}
                        "access_changed" => self.tally.needless += 1,
                        // The table is closed to it, or which rules hold for a row is not known.
                        "schema_changed" | "undecided" if of_rules => {}
                        _ if self.file.unsure.contains(&of.path()) => {}
                        other => told.wrong.push(format!("{}: resync {other}", named("*"))),
                    }
                    continue;
                }
            };
            let kind = data["type"].as_str().unwrap_or_default();
            let key = key_of(data);
            let mut columns: BTreeSet<&String> = BTreeSet::new();
            for part in ["record", "old_record"] {
                columns.extend(data[part].as_object().into_iter().flat_map(Map::keys));
            }
            if let Some(column) = columns.iter().find(|name| !one.readable.contains(**name)) {
                told.wrong
                    .push(format!("LEAK {}: column {column}", named(&key)));
            }
            if kind == "DELETE" {
                if !find(&saw.visible, &key) && !looked {
                    told.wrong
                        .push(format!("LEAK {}: deleted, and never seen", named(&key)));
                }
            } else if !find(&sees.visible, &key) && !deleted_later(&key) {
                let raises = find(&sees.raising, &key);
                if !(raises && lenient) {
                    let how = if raises {
                        "a select raises an error"
                    } else {
                        "a select hides it"
                    };
                    told.wrong
                        .push(format!("LEAK {}: {kind}, and {how}", named(&key)));
                }
            }
            let full = data["old_record"].as_object();
            let more = full.is_some_and(|row| row.keys().any(|name| !of.key.contains(name)));
            if kind == "UPDATE" && more && !looked && !find(&saw.visible, &key) {
                told.wrong
                    .push(format!("LEAK {}: the old row", named(&key)));
            }
            if !received.insert((kind.to_owned(), key.clone())) {
                told.wrong.push(format!("{}: {kind} twice", named(&key)));
            }
        }
        let got =
            |kind: &str, key: &str| received.contains(&(kind.to_owned(), canonical_text(key)));
        for (key, version) in new {
            let kind = match old.get(key) {
                None => "INSERT",
                Some(former) if former != version => "UPDATE",
                Some(_) => continue,
            };
            self.tally.changes += 1;
            let visible = sees.visible.contains(key);
            if !person.bypasses {
                self.tally.visible += usize::from(visible);
                self.tally.hidden += usize::from(!visible);
            }
            if visible && !told.again && !got(kind, key) {
                told.wrong
                    .push(format!("{}: {kind} is missing", named(key)));
            }
        }
        for key in old.keys().filter(|key| !new.contains_key(*key)) {
            let known = !self.file.keeps_keys_only && changed.len() == 1 && !looked;
            if known && saw.visible.contains(key) && !told.again && !got("DELETE", key) {
                told.wrong
                    .push(format!("{}: DELETE is missing", named(key)));
            }
        }
        // Rows that nobody touched appeared or went: who saw them, or may, must read again.
        let same = |sight: &Sight| -> BTreeSet<String> {
            let untouched = |key: &&String| old.get(*key).is_some_and(|v| new.get(*key) == Some(v));
            sight.visible.iter().filter(untouched).cloned().collect()
        };
        if native && !told.again && same(saw) != same(sees) {
            told.wrong.push(format!(
                "{}: what it sees changed, and it was not told",
                named("*")
            ));
        }
        told
    }
}

/// What a transaction did.
struct Change<'a> {
    /// The rows of before, and who saw them.
    before: &'a [Contents],
    was: &'a [Vec<Sight>],
    /// In which tables it changed rows, as SQL.
    tables: &'a BTreeSet<String>,
    /// It changed who may see what, too.
    of_rules: bool,
}

async fn server_clock(sql: &Client) -> i64 {
    let query = "select (extract(epoch from clock_timestamp()) * 1000000)::int8";
    sql.query_one(query, &[]).await.expect("the time").get(0)
}

async fn moments(sql: &Client, file: &File, tables: &[Table]) -> Vec<BTreeSet<i64>> {
    let mut all = Vec::new();
    for table in tables {
        let mut moments = BTreeSet::new();
        if let Some(query) = file.flips.get(&table.path()) {
            let query = format!(
                "select (extract(epoch from moment) * 1000000)::int8 \
                 from ({query}) as moments (moment) where isfinite(moment)"
            );
            let rows = sql.query(&query, &[]).await.expect("moments");
            moments.extend(rows.iter().map(|row| row.get::<_, i64>(0)));
        }
        all.push(moments);
    }
    all
}

#[derive(Default)]
struct Told {
    wrong: Vec<String>,
    again: bool,
}

fn canonical(key: &Value) -> String {
    key.to_string()
}

fn canonical_text(key: &str) -> String {
    serde_json::from_str(key).map_or_else(|_| key.to_owned(), |value: Value| canonical(&value))
}

fn find(keys: &BTreeSet<String>, key: &str) -> bool {
    keys.iter().any(|one| canonical_text(one) == key)
}

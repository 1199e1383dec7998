//! One world: its transactions, and what becomes of each of them for everybody.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::json;
use tokio_postgres::Client;

use super::Rules;
use crate::check::{After, Standing, Told, check};
use crate::harness::{Relay, Watcher, connect};
use crate::oracle::{Image, Images, Moment, Published, Readable, look, readable};
use crate::rows::{Change, Held, Row, membership};
use crate::socket::serve;
use crate::subscribers::{FILTERS, ROLES, Subscriber, Who, everybody, subscribers};
use crate::tally::Tally;
use crate::transaction::{Leave, Plan};

/// Statements that are kept for whoever looks for the cause of a failure.
const TRACE: usize = 400;

struct World {
    relay: Relay,
    /// Two that write, in transactions that overlap.
    writers: [Client; 2],
    told_of_rules: bool,
    address: SocketAddr,
    whos: Vec<Who>,
    tables: Vec<Published>,
    rules: Rules,
    held: Held,
    next: i32,
    seq: u64,
    /// What PostgreSQL shows now.
    moment: Moment,
    /// Since the last fence.
    told: Vec<Told>,
    readable: Vec<Readable>,
    pace: Watcher,
    /// How many questions there were at the last fence.
    questions: u64,
    subscribers: Vec<Subscriber>,
    trace: Vec<String>,
    tally: Tally,
}

/// Plays one world until it has so many cases.
///
/// # Errors
/// What was shown too much, or kept without a word.
pub(crate) async fn play(random: &mut StdRng, cases: u64) -> Result<Tally, String> {
    let began = Instant::now();
    let mut world = World::start(random).await?;
    world.tally.took("making it", began);
    while world.tally.cases < cases {
        let transactions = if random.random_bool(0.4) {
            1
        } else {
            random.random_range(2..5)
        };
        for _ in 0..transactions {
            world.transaction(random).await;
        }
        world.fence().await?;
    }
    world.tally.worlds = 1;
    world.tally.questions = world.relay.core.metrics.questions.get();
    Ok(world.tally)
}

impl World {
    async fn start(random: &mut StdRng) -> Result<Self, String> {
        let rules = Rules::random(random);
        let told_of_rules = random.random_bool(0.8);
        let (mut held, mut next, mut seq) = (Held::new(), 0, 0);
        let mut schema = vec![rules.sql()];
        for _ in 0..14 {
            let whose = (None, rules.always());
            let change = Change::random(random, &mut held, (&mut next, &mut seq), whose);
            schema.push(change.sql());
        }
        for _ in 0..14 {
            schema.push(membership(random));
        }
        let schema = schema.join(";\n");
        let adjust = |config: &mut rowcast::config::Config| config.resync_spread = Duration::ZERO;
        let relay = if told_of_rules {
            Relay::told(&schema, rules.published(), adjust).await
        } else {
            Relay::with(&schema, rules.published(), adjust).await
        };
        let (address, _) = serve(&relay).await;
        let writers = [connect(&relay.url).await, connect(&relay.url).await];
        for one in &writers {
            one.batch_execute("set jit = off").await.unwrap();
        }
        let whos = everybody();
        let published = |name, through| Published { name, through };
        let tables = if rules.by_leaf {
            let through = "id in (select id from public.p)";
            vec![
                published("t", "true"),
                published("p_a", through),
                published("p_b", through),
            ]
        } else {
            vec![published("t", "true"), published("p", "true")]
        };
        let names: Vec<&str> = tables.iter().map(|table| table.name).collect();
        let all = subscribers(random, whos.len(), &names);
        let pace = relay.watch("anon", &json!({}), "fence").await;
        let mut tally = Tally::default();
        for policy in &rules.policies {
            for level in &policy.levels {
                *tally.levels.entry(*level).or_default() += 1;
            }
        }
        let mut world = Self {
            pace,
            questions: 0,
            writers,
            told_of_rules,
            address,
            whos,
            tables,
            rules,
            held,
            next,
            seq,
            moment: Moment::default(),
            told: Vec::new(),
            readable: Vec::new(),
            subscribers: all,
            trace: vec![schema],
            tally,
            relay,
        };
        world.moment = world.look(0).await;
        world.join().await?;
        Ok(world)
    }

    async fn look(&self, writer: usize) -> Moment {
        let sql = &self.writers[writer];
        Moment {
            images: look(sql, (&self.whos, &self.tables), None).await,
            readable: readable(sql, &ROLES, &self.tables).await,
        }
    }

    async fn run(&mut self, writer: usize, statements: &[String]) {
        for one in statements {
            self.trace.push(format!("/* {writer} */ {one}"));
        }
        let text = statements.join(";\n");
        if let Err(error) = self.writers[writer].batch_execute(&text).await {
            panic!("{error:?}\n{}", self.story());
        }
    }

    fn story(&self) -> String {
        let from = self.trace.len().saturating_sub(TRACE);
        let mut text = format!("{}\n…\n", self.trace[0]);
        for one in &self.trace[from.max(1)..] {
            let _ = writeln!(text, "{one};");
        }
        text
    }

    /// A transaction, or two that overlap.
    async fn transaction(&mut self, random: &mut StdRng) {
        let leave = Leave {
            members: true,
            rules: self.told_of_rules,
            unlocked: false,
            parity: None,
            always: self.rules.always(),
        };
        if !self.told_of_rules && random.random_bool(0.06) {
            return self.rules_alone(random).await;
        }
        if random.random_bool(0.01) {
            return self.truncate().await;
        }
        if random.random_bool(0.7) {
            let plan = self.plan(random, Plan::default(), leave);
            self.run(0, &[vec!["begin".to_owned()], plan.sql.clone()].concat())
                .await;
            return self.commit(0, plan).await;
        }
        *self.tally.done.entry("overlapping").or_default() += 1;
        let rows = Leave {
            members: false,
            rules: false,
            parity: Some(0),
            ..leave
        };
        let first = self.plan(random, Plan::default(), rows);
        self.run(0, &[vec!["begin".to_owned()], first.sql.clone()].concat())
            .await;
        let other = Leave {
            unlocked: true,
            parity: Some(1),
            ..leave
        };
        let between = self.plan(random, Plan::default(), other);
        self.run(1, &[vec!["begin".to_owned()], between.sql.clone()].concat())
            .await;
        self.commit(1, between).await;
        let done = first.sql.len();
        let own = Leave {
            rules: false,
            parity: Some(0),
            ..leave
        };
        let whole = self.plan(random, first, own);
        self.run(0, &whole.sql[done..]).await;
        self.commit(0, whole).await;
    }

    fn plan(&mut self, random: &mut StdRng, mut plan: Plan, leave: Leave) -> Plan {
        let state = (&mut self.rules, &mut self.held);
        plan.draw(random, state, (&mut self.next, &mut self.seq), leave);
        plan
    }

    /// Where nothing tells of them they hold from when the catalog is looked at.
    async fn rules_alone(&mut self, random: &mut StdRng) {
        let sql = self.rules.change(random, false);
        let plan = Plan {
            rules: 1,
            ..Plan::default()
        };
        self.run(0, &["begin".to_owned(), sql]).await;
        self.commit(0, plan).await;
        self.relay.reads_the_catalog().await;
    }

    async fn truncate(&mut self) {
        self.held.retain(|(table, _), _| *table != "t");
        *self.tally.done.entry("truncated").or_default() += 1;
        self.run(0, &["begin".to_owned(), "truncate t".to_owned()])
            .await;
        self.commit(0, Plan::default()).await;
    }

    /// Notes who sees what, and commits.
    async fn commit(&mut self, writer: usize, plan: Plan) {
        let began = Instant::now();
        let after = self.look(writer).await;
        self.tally.took("asking PostgreSQL", began);
        let began = Instant::now();
        let restored = self.restored(writer, &plan, &after.images).await;
        self.tally.took("asking it again", began);
        self.run(writer, &["commit".to_owned()]).await;
        let transaction = self.readable.len();
        let mut told = Vec::new();
        for change in &plan.changes {
            let before = &self.moment.images;
            told.extend(self.told(
                change,
                transaction,
                (before, &after.images, &restored),
                &plan,
            ));
        }
        for one in &told {
            if one.kind == "INSERT"
                && told.iter().any(|other| {
                    other.kind == "DELETE" && other.transaction == transaction && other.id == one.id
                })
            {
                *self
                    .tally
                    .done
                    .entry("moved to another partition, or back")
                    .or_default() += 1;
            }
        }
        let done = [
            ("changes of rows", plan.changes.len() as u64),
            ("changes of rules", plan.rules),
            ("changes of memberships", plan.members),
            ("savepoints undone", plan.undone),
            ("rows judged between statements", restored.len() as u64),
        ];
        for (what, count) in done {
            *self.tally.done.entry(what).or_default() += count;
        }
        self.tally.transactions += 1;
        self.told.extend(told);
        self.readable.push(after.readable.clone());
        self.moment = after;
    }

    fn published(&self, table: &'static str, row: &Row) -> &'static str {
        match table {
            "p" if self.rules.by_leaf => row.leaf(),
            other => other,
        }
    }

    /// Rows as they were between the statements, and where the rules changed also those from before:
    /// each is put there once more, looked at, and taken back.
    async fn restored(
        &mut self,
        writer: usize,
        plan: &Plan,
        after: &Images,
    ) -> BTreeMap<u64, Arc<Image>> {
        let mut wanted: BTreeMap<u64, (&'static str, Row)> = BTreeMap::new();
        for change in &plan.changes {
            for (row, is_old) in [(&change.old, true), (&change.new, false)] {
                let Some(row) = row else { continue };
                let of = (self.published(change.table, row).to_owned(), row.id);
                let there = |images: &Images| {
                    images
                        .get(&of)
                        .is_some_and(|image| image.row["seq"] == row.seq)
                };
                let needed = if is_old {
                    plan.rules > 0 || !there(&self.moment.images)
                } else {
                    !there(after)
                };
                if needed {
                    wanted.insert(row.seq, (change.table, row.clone()));
                }
            }
        }
        let mut restored = BTreeMap::new();
        for (seq, (table, row)) in wanted {
            let sql = &self.writers[writer];
            let put = format!(
                "savepoint image; delete from {table} where id = {}; {}",
                row.id,
                row.insert(table)
            );
            sql.batch_execute(&put).await.unwrap();
            let images = look(sql, (&self.whos, &self.tables), Some(row.id)).await;
            sql.batch_execute("rollback to savepoint image")
                .await
                .unwrap();
            let of = (self.published(table, &row).to_owned(), row.id);
            restored.insert(seq, Arc::clone(&images[&of]));
        }
        restored
    }

    /// A change as the stream has it.
    fn told(
        &self,
        change: &Change,
        transaction: usize,
        (before, after, restored): (&Images, &Images, &BTreeMap<u64, Arc<Image>>),
        plan: &Plan,
    ) -> Vec<Told> {
        let find = |images: &Images, row: &Row| {
            let of = (self.published(change.table, row).to_owned(), row.id);
            let image = images.get(&of).filter(|image| image.row["seq"] == row.seq);
            image.cloned()
        };
        let then = |row: &Row| restored.get(&row.seq).cloned();
        let old = change.old.as_ref();
        let new = change.new.as_ref();
        let whole = self.rules.is_whole(change.table) && plan.rules == 0;
        let altering = format!("alter table {} ", change.table);
        let altered = plan
            .sql
            .iter()
            .any(|sql| sql.starts_with(&altering) && sql.contains(" column x"));
        let of = |kind: &'static str, old: Option<&Row>, new: Option<&Row>| {
            let row = new.or(old).expect("a row");
            Told {
                transaction,
                table: self.published(change.table, row),
                kind,
                id: row.id,
                old_id: old.unwrap_or(row).id,
                seq: new.map(|row| row.seq),
                new: new.and_then(|row| find(after, row).or_else(|| then(row))),
                old: old.and_then(|row| find(before, row)),
                old_then: old.and_then(then),
                altered,
                whole,
            }
        };
        match (old, new) {
            (None, Some(_)) => vec![of("INSERT", None, new)],
            (Some(_), None) => vec![of("DELETE", old, None)],
            (Some(was), Some(is)) if change.table == "p" && was.leaf() != is.leaf() => {
                vec![of("DELETE", old, None), of("INSERT", None, new)]
            }
            _ => vec![of("UPDATE", old, new)],
        }
    }

    /// Holds everything since the last fence against what arrived.
    async fn fence(&mut self) -> Result<(), String> {
        let began = Instant::now();
        let fence = self.relay.fence().await;
        self.pace.until(fence).await;
        self.tally.took("until the fence", began);
        let began = Instant::now();
        // Questions may have been asked while the next transaction was written.
        let questions = self.relay.core.metrics.questions.get();
        let asked = questions > std::mem::replace(&mut self.questions, questions);
        let several = self.readable.len() > 1;
        let mut everybody = std::mem::take(&mut self.subscribers);
        for one in everybody.iter_mut().filter(|one| one.line.is_some()) {
            let who = &self.whos[one.wish.who];
            let of = (who.role.to_owned(), one.wish.table.to_owned());
            let standing = Standing {
                who,
                readable: self
                    .readable
                    .iter()
                    .map(|all| Arc::clone(&all[&of]))
                    .collect(),
                asked_later: asked && several,
            };
            let checked = check(one, (&self.told, fence), &standing, &mut self.tally).await;
            match checked {
                Ok(After::In) => {}
                Ok(After::Out) => one.line = None,
                Err(failure) => {
                    let (wish, filter) = (&one.wish, FILTERS[one.wish.filter].text);
                    return Err(format!(
                        "{}\n{failure}\nto {who:?}\nwho asks for {wish:?} ({filter}), by a socket: {}",
                        self.story(),
                        one.by_socket
                    ));
                }
            }
        }
        self.subscribers = everybody;
        self.told.clear();
        self.readable.clear();
        self.tally.took("comparing", began);
        let began = Instant::now();
        let joined = self.join().await;
        self.tally.took("joining again", began);
        joined
    }

    /// Whoever is out tries again.
    async fn join(&mut self) -> Result<(), String> {
        let (relay, address, whos, readable) =
            (&self.relay, self.address, &self.whos, &self.moment.readable);
        let outside = self.subscribers.iter_mut().filter(|one| one.line.is_none());
        let joining = outside.map(|one| async move {
            let who = &whos[one.wish.who];
            let readable = &readable[&(who.role.to_owned(), one.wish.table.to_owned())];
            let reads = FILTERS[one.wish.filter].reads;
            let permitted =
                readable.contains("id") && reads.iter().all(|name| readable.contains(*name));
            let mut refusal = None;
            for _ in 0..5 {
                refusal = one.join(relay, address, who).await.err();
                if refusal.is_none() || !permitted {
                    break;
                }
            }
            refusal.map(|refusal| (permitted, format!("{:?} is refused: {refusal}", one.wish)))
        });
        let refusals = join_all(joining).await;
        for (permitted, refusal) in refusals.into_iter().flatten() {
            if permitted {
                return Err(format!("{}\n{refusal}", self.story()));
            }
            self.tally.refused += 1;
        }
        Ok(())
    }
}

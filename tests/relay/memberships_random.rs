//! Memberships and rows that change among each other, through the whole relay, with PostgreSQL to
//! say who sees what: what a client has made of what it was told is what its `select` shows, and
//! nothing that it was told was hidden from it when that committed.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::harness::{Relay, Seen, Watcher, connect};
use crate::memberships::{ORGANISED, keeps};

const USERS: usize = 4;
const ORGS: i64 = 4;
const STEPS: usize = 60;

fn person(user: usize) -> String {
    format!("00000000-0000-4000-8000-{user:012}")
}

/// What a user sees now: the documents with their versions, and whose documents it would see.
async fn visible(
    sql: &mut tokio_postgres::Client,
    user: usize,
) -> (BTreeMap<i64, i64>, BTreeSet<i64>) {
    let claims = json!({ "sub": person(user), "role": "authenticated" }).to_string();
    let transaction = sql.transaction().await.unwrap();
    transaction
        .execute(
            "select set_config('request.jwt.claims', $1, true)",
            &[&claims],
        )
        .await
        .unwrap();
    transaction
        .batch_execute("set local role authenticated")
        .await
        .unwrap();
    let rows = transaction
        .query("select id, org, version from doc", &[])
        .await
        .unwrap();
    let cell = |row: &tokio_postgres::Row, at: usize| i64::from(row.get::<_, i32>(at));
    // Of each organisation one document is always there.
    let anchors = rows.iter().filter(|row| cell(row, 0) < ORGS);
    let orgs = anchors.map(|row| cell(row, 1)).collect();
    let docs = rows
        .iter()
        .map(|row| (cell(row, 0), cell(row, 2)))
        .collect();
    (docs, orgs)
}

struct Client {
    user: usize,
    watcher: Watcher,
    docs: BTreeMap<i64, i64>,
}

/// The statements of one transaction. Every document that it writes has its number.
struct Writer {
    random: StdRng,
    next_doc: i64,
    /// With their organisation, which never changes.
    docs: BTreeMap<i64, i64>,
    /// By which transaction a document was deleted.
    deleted: BTreeMap<i64, usize>,
}

impl Writer {
    fn statement(&mut self, number: usize) -> String {
        let org = self.random.random_range(0..ORGS);
        let who = person(self.random.random_range(0..USERS));
        let ids: Vec<i64> = self.docs.keys().copied().collect();
        let id = *ids.choose(&mut self.random).unwrap();
        match self.random.random_range(0..12) {
            0 | 1 => format!("insert into member values ({org}, '{who}') on conflict do nothing"),
            2 => format!("delete from member where org = {org} and person = '{who}'"),
            3 => {
                let other = self.random.random_range(0..ORGS);
                format!(
                    "update member set org = {other} where org = {org} and person = '{who}' and not \
                     exists (select from member m where m.org = {other} and m.person = '{who}')"
                )
            }
            4 => format!("update member set note = 'by {number}' where org = {org}"),
            5 if self.random.random_bool(0.2) => "truncate member".to_owned(),
            5..=7 => {
                let id = self.next_doc;
                self.next_doc += 1;
                self.docs.insert(id, org);
                format!("insert into doc values ({id}, {org}, {number})")
            }
            8 if id >= ORGS => {
                self.docs.remove(&id);
                self.deleted.insert(id, number);
                format!("delete from doc where id = {id}")
            }
            _ => format!("update doc set version = {number} where id = {id}"),
        }
    }
}

/// `orgs` is whose documents each user saw, by the number of the transaction behind which.
fn take(
    client: &mut Client,
    data: &Value,
    orgs: &[Vec<BTreeSet<i64>>],
    deleted: &BTreeMap<i64, usize>,
) {
    let removed = data["type"] == "DELETE";
    let row = if removed {
        &data["old_record"]
    } else {
        &data["record"]
    };
    let (id, org) = (row["id"].as_i64().unwrap(), row["org"].as_i64().unwrap());
    let version = row["version"].as_i64().unwrap();
    let by = usize::try_from(version).unwrap();
    // A deleted row was seen before, any other behind the transaction.
    let seen_at = if removed { deleted[&id] - 1 } else { by };
    assert!(
        orgs[seen_at][client.user].contains(&org),
        "user {} was shown what was hidden at {seen_at}: {data}",
        client.user
    );
    if removed {
        client.docs.remove(&id);
    } else {
        client.docs.insert(id, version);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_are_what_a_select_shows_however_memberships_and_rows_change() {
    let seed =
        std::env::var("ROWCAST_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    println!("ROWCAST_SEED={seed}");
    let schema = format!(
        "{ORGANISED}; insert into doc select i, i from generate_series(0, {}) i;
         insert into member values (0, '{}'), (1, '{}')",
        ORGS - 1,
        person(0),
        person(1)
    );
    let mut relay = Relay::start(&schema, "doc, open").await;
    let mut sql = connect(&relay.url).await;
    let mut writer = Writer {
        random: StdRng::seed_from_u64(seed),
        next_doc: ORGS,
        docs: (0..ORGS).map(|id| (id, id)).collect(),
        deleted: BTreeMap::new(),
    };
    let mut clients = Vec::new();
    for number in 0..USERS + 2 {
        let user = number % USERS;
        clients.push(Client {
            user,
            watcher: relay.watch_as(&person(user), "doc").await,
            docs: visible(&mut sql, user).await.0,
        });
    }
    keeps(&relay).await;
    let mut orgs = Vec::new();
    let mut told = 0;
    for step in 0..STEPS {
        for _ in 0..writer.random.random_range(1..6) {
            if orgs.is_empty() {
                // Transaction 0: what was there.
                let mut all = Vec::new();
                for user in 0..USERS {
                    all.push(visible(&mut sql, user).await.1);
                }
                orgs.push(all);
            }
            let number = orgs.len();
            let statements = writer.random.random_range(1..5);
            let statements: Vec<String> =
                (0..statements).map(|_| writer.statement(number)).collect();
            relay
                .run(&format!("begin; {}; commit", statements.join("; ")))
                .await;
            let mut all = Vec::new();
            for user in 0..USERS {
                all.push(visible(&mut sql, user).await.1);
            }
            orgs.push(all);
        }
        let fence = relay.fence().await;
        for client in &mut clients {
            let mut again = false;
            for seen in client.watcher.until(fence).await {
                match seen {
                    Seen::Change(data) => take(client, &data, &orgs, &writer.deleted),
                    Seen::Resync(reason) => {
                        assert_eq!(reason.as_str(), "access_changed", "step {step}");
                        again = true;
                    }
                }
            }
            let shown = visible(&mut sql, client.user).await.0;
            if again {
                told += 1;
                client
                    .watcher
                    .join(&relay.core)
                    .await
                    .expect("a subscription");
                client.docs.clone_from(&shown);
            }
            assert_eq!(client.docs, shown, "step {step}, user {}", client.user);
        }
    }
    assert!(told > 0, "nobody was ever concerned");
}

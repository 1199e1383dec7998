//! Writers, and clients that go away at random and come back by cursor: what they got in all is
//! what a client got that stayed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rowcast::app::Core;
use rowcast::auth::Principal;
use rowcast::log::Cursor;
use rowcast::subscription::Wanted;
use serde_json::Value;
use tokio::sync::watch;

use crate::harness::{ANN, BEN, Relay, connect};
use crate::resume::{Client, Heard, settled, since, user, wish};

const SCHEMA: &str = "
    create table own (id int primary key, owner uuid, n int);
    alter table own enable row level security;
    alter table own replica identity full;
    create policy mine on own using (owner = auth.uid());
    create table open (id int primary key, owner uuid, n int);
    create table asked (id int primary key, owner uuid, n int);
    alter table asked enable row level security;
    alter table asked replica identity full;
    create policy mine on asked using (owner = auth.uid() and length(n::text || owner::text) > 0);
    grant select on own, open, asked to authenticated;";

/// What came to one binding, by cursor.
type Got = BTreeMap<(u32, String), Value>;

/// The transactions of one writer.
async fn write(url: String, seed: u64, writer: i32, rounds: u32, done: watch::Sender<u32>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let sql = connect(&url).await;
    let mut last = 0;
    for _ in 0..rounds {
        let mut text = "begin;".to_owned();
        for _ in 0..rng.random_range(1..6) {
            let table = ["own", "open", "asked"][rng.random_range(0..3)];
            let owner = [ANN, BEN][rng.random_range(0..2)];
            let n = rng.random_range(0..100);
            let row = writer * 1_000_000 + rng.random_range(1..=last.max(1));
            text += &match rng.random_range(0..10) {
                0..6 => {
                    last += 1;
                    let id = writer * 1_000_000 + last;
                    format!("insert into {table} values ({id}, '{owner}', {n});")
                }
                6..9 => format!("update {table} set n = {n}, owner = '{owner}' where id = {row};"),
                _ => format!("delete from {table} where id = {row};"),
            };
        }
        let end = if rng.random_ratio(1, 8) {
            "rollback"
        } else {
            "commit"
        };
        sql.batch_execute(&(text + end)).await.unwrap();
        done.send_modify(|done| *done += 1);
    }
}

fn bindings() -> Vec<Wanted> {
    vec![
        wish(1, "own", ""),
        wish(2, "own", "n=lt.50"),
        wish(3, "open", "n=in.(1,2,3,4,5,6,7,8,9,10)"),
        wish(4, "asked", ""),
        wish(5, "open", "n=gt.70"),
    ]
}

/// One that comes and goes until `ended`, and then stays up to the place `end`.
async fn come_and_go(
    core: &Core,
    who: Arc<Principal>,
    mut rng: StdRng,
    start: Cursor,
    mut progress: watch::Receiver<u32>,
    (ended, end): (&AtomicBool, &watch::Sender<Option<Cursor>>),
) -> Got {
    let mut got = Got::new();
    let mut cursors = [start; 6];
    loop {
        let finishing = ended.load(Ordering::Acquire);
        let wanted = bindings()
            .into_iter()
            .map(|wanted| {
                let at = cursors[wanted.id as usize];
                since(wanted, at)
            })
            .collect();
        let from = cursors;
        let client = Client::sized(
            core,
            &who,
            wanted,
            [40, 300, 10_000][rng.random_range(0..3)],
        )
        .await;
        let mut left = if finishing {
            usize::MAX
        } else {
            rng.random_range(0..200)
        };
        let last = finishing.then(|| end.borrow().unwrap());
        let mut before = String::new();
        while left > 0 && (finishing || !ended.load(Ordering::Acquire)) {
            if let Some(last) = last
                && cursors.iter().any(|cursor| cursor.offset >= last.offset)
            {
                return got;
            }
            let heard = tokio::select! {
                biased;
                heard = client.next() => heard,
                _ = progress.changed(), if last.is_none() => {
                    left -= 1;
                    continue;
                }
            };
            left -= 1;
            match heard {
                Heard::Change(ids, data) => {
                    let text = data["cursor"].as_str().unwrap().to_owned();
                    assert!(before <= text, "cursors ascend");
                    before.clone_from(&text);
                    let cursor: Cursor = text.parse().unwrap();
                    for id in ids {
                        let at = id as usize;
                        assert!(
                            cursor.offset > from[at].offset,
                            "nothing that lies before the cursor"
                        );
                        cursors[at] = cursor;
                        if let Some(known) = got.insert((id, text.clone()), data.clone()) {
                            panic!("twice: {known}");
                        }
                    }
                }
                Heard::CaughtUp => {}
                // The smallest outboxes do not hold what a busy moment brings.
                Heard::Full => break,
                other => panic!("{other:?}"),
            }
        }
        client.go(core).await;
        // Away for some commits.
        for _ in 0..rng.random_range(0..8) {
            if ended.load(Ordering::Acquire) || progress.changed().await.is_err() {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_and_goes_gets_in_all_what_whoever_stays_gets() {
    let seed: u64 = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    println!("SEED={seed}");
    let mut relay = Relay::start(SCHEMA, "own, open, asked").await;
    let start = settled(&mut relay).await;
    let stays: Vec<Client> = vec![
        Client::join(&relay.core, &user(ANN), bindings()).await,
        Client::join(&relay.core, &user(BEN), bindings()).await,
    ];
    let (done, progress) = watch::channel(0);
    let (end, ended) = (watch::Sender::new(None), AtomicBool::new(false));
    let writers = (1..=2).map(|writer| {
        write(
            relay.url.clone(),
            seed.wrapping_add(writer),
            i32::try_from(writer).unwrap(),
            150,
            done.clone(),
        )
    });
    let core = &relay.core;
    let comers = (0..6_u64).map(|comer| {
        let who = user([ANN, BEN][usize::try_from(comer % 2).unwrap()]);
        let rng = StdRng::seed_from_u64(seed ^ (comer << 32));
        come_and_go(core, who, rng, start, progress.clone(), (&ended, &end))
    });
    let finish = async {
        futures_util::future::join_all(writers).await;
        // A row that both see ends it.
        let sql = connect(&relay.url).await;
        sql.batch_execute("insert into open values (0, null, 99)")
            .await
            .unwrap();
        let mut expected = Vec::new();
        for client in &stays {
            let mut got = Got::new();
            loop {
                let Heard::Change(ids, data) = client.next().await else {
                    panic!("only changes");
                };
                let cursor = data["cursor"].as_str().unwrap().to_owned();
                for id in ids {
                    got.insert((id, cursor.clone()), data.clone());
                }
                if data["record"]["id"] == 0 {
                    end.send_replace(Some(cursor.parse().unwrap()));
                    break;
                }
            }
            expected.push(got);
        }
        ended.store(true, Ordering::Release);
        done.send_modify(|done| *done += 1);
        expected
    };
    let (got, expected) = tokio::join!(futures_util::future::join_all(comers), finish);
    for (comer, got) in got.iter().enumerate() {
        let expected = &expected[comer % 2];
        assert!(expected.len() > 100, "there was something to miss");
        for key in expected.keys() {
            assert!(
                got.contains_key(key),
                "comer {comer} lacks {key:?}: {}",
                expected[key]
            );
        }
        assert_eq!(got, expected, "comer {comer}");
    }
}

//! DDL that gives the rows of a table other values: the stream says nothing of them, so whoever is shown
//! others by them reads again.

use std::time::Duration;

use crate::harness::{ANN, BEN, Relay, brief, connect};
use crate::holders::{back, holder, is_of_another};
use crate::resume::{Heard, settled, user};

/// In the first what decides is a function of the row, so its columns are free to be rewritten in place.
const TABLES: &str = "
    create table notes (id int primary key, owner uuid, body text);
    create table cards (id int primary key, owner uuid, body text);
    create table mine (id int not null, region int not null, owner uuid, primary key (id, region))
      partition by list (region);
    create table mine_1 partition of mine for values in (1);
    create table mine_2 partition of mine for values in (2);
    create table open (id int primary key, owner uuid);
    create function owns(r notes) returns boolean language sql stable as $$ select r.owner = auth.uid() $$;
    create function owns(r mine) returns boolean language sql stable as $$ select r.owner = auth.uid() $$;
    alter table notes enable row level security;
    alter table cards enable row level security;
    alter table mine enable row level security;
    create policy own on notes for select to authenticated using (owns(notes));
    create policy own on cards for select to authenticated using (owner = auth.uid());
    create policy own on mine for select to authenticated using (owns(mine));
    grant select on notes, cards, mine, open to authenticated";

const PUBLISHED: &str = "mine, open, cards, notes with (publish_via_partition_root = true)";

fn given_to(table: &str, user: &str) -> String {
    format!("alter table {table} alter column owner type uuid using '{user}'::uuid")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_shown_other_rows_as_ddl_rewrites_what_policies_read_is_told_and_nobody_else() {
    for told in [true, false] {
        let mut relay = if told {
            Relay::told(TABLES, PUBLISHED, |config| {
                config.catalog_interval = Duration::from_secs(3600);
            })
            .await
        } else {
            Relay::start(TABLES, PUBLISHED).await
        };
        relay
            .run(&format!(
                "insert into notes values (1, '{ANN}', 'x'); insert into cards values (1, '{ANN}', 'x');
                 insert into mine values (1, 1, '{ANN}'), (2, 2, '{ANN}'); insert into open values (1)"
            ))
            .await;
        let mut watchers = Vec::new();
        for table in ["notes", "cards", "mine", "open"] {
            watchers.push((table, relay.watch_as(BEN, table).await));
        }
        let anew = format!(
            "begin; drop policy own on cards; savepoint a; {}; release a;
             create policy own on cards for select to authenticated using (owner = auth.uid()); commit",
            given_to("cards", BEN)
        );
        let cases: [(&str, &[(&str, &str)]); 9] = [
            (&given_to("notes", BEN), &[("notes", "access_changed")]),
            (&anew, &[("cards", "access_changed")]),
            (&given_to("mine", BEN), &[("mine", "truncated")]),
            (&given_to("open", BEN), &[]),
            (
                "alter table cards alter column body type text using 'z'",
                &[],
            ),
            (
                "alter table notes alter column owner set statistics 10",
                &[],
            ),
            ("vacuum full notes", &[]),
            ("cluster cards using cards_pkey", &[]),
            ("truncate notes", &[("notes", "truncated")]),
        ];
        for (id, (ddl, of)) in (10..).zip(cases) {
            connect(&relay.url).await.batch_execute(ddl).await.unwrap();
            relay.reads_the_catalog().await;
            let fence = relay.fence().await;
            for (table, watcher) in &mut watchers {
                let mut seen = brief(&watcher.until(fence).await);
                if !of.is_empty() && seen.is_empty() {
                    // What is known by looking only comes when the stream has passed it.
                    let fence = relay.fence().await;
                    seen = brief(&watcher.until(fence).await);
                }
                let wanted = of.iter().filter(|(named, _)| named == table);
                let wanted: Vec<String> = wanted.map(|(_, why)| format!("resync {why}")).collect();
                assert_eq!(seen, wanted, "{told} {ddl}: {table}");
                if !seen.is_empty() {
                    watcher.join(&relay.core).await.unwrap();
                }
            }
            relay
                .run(&format!(
                    "insert into notes values ({id}, '{BEN}'); insert into cards values ({id}, '{BEN}');
                     insert into mine values ({id}, 1, '{BEN}'); insert into open values ({id})"
                ))
                .await;
            let fence = relay.fence().await;
            for (table, watcher) in &watchers {
                let mut seen = brief(&watcher.until(fence).await);
                seen.retain(|one| one.starts_with("INSERT") || one.starts_with("resync"));
                assert_eq!(seen, [format!("INSERT {id}")], "{told} {ddl}: {table}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_while_ddl_rewrote_what_policies_read_is_told_when_it_is_back() {
    for told in [true, false] {
        let mut relay = if told {
            Relay::told(TABLES, PUBLISHED, |_| {}).await
        } else {
            Relay::start(TABLES, PUBLISHED).await
        };
        relay
            .run(&format!("insert into notes values (1, '{ANN}', 'x')"))
            .await;
        let start = settled(&mut relay).await;
        let of = holder(&relay, &user(BEN), &["notes"]).await;
        relay.run(&given_to("notes", BEN)).await;
        relay.reads_the_catalog().await;
        relay
            .run(&format!("insert into notes values (2, '{BEN}', 'x')"))
            .await;
        let later = settled(&mut relay).await;
        let heard = back(&relay, &user(BEN), &["notes"], (start, of)).await;
        assert!(is_of_another(&heard), "{told}: {heard:?}");
        let now = holder(&relay, &user(BEN), &["notes"]).await;
        let heard = back(&relay, &user(BEN), &["notes"], (later, now)).await;
        assert_eq!(heard, Heard::CaughtUp, "{told}");
    }
}

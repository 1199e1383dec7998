//! A database, a relay on it, watchers, and what becomes of both when rows and rules change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rowcast::router::Resync;
use rowcast::subscription::Events;
use serde_json::json;

use super::check::{Expected, compare};
use super::grammar::{Row, Who};
use super::oracle::{Sight, contents, readable, sights};
use super::setting::{Change, Setting, insert};
use crate::harness::{Relay, Seen, Watcher};
use crate::resume::settled;

/// What happened, in numbers.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    pub(super) cases: u64,
    pub(super) visible: u64,
    pub(super) hidden: u64,
    pub(super) raising: u64,
    /// Shown though that was not demanded: the row raises an error, or a delete carries a key only.
    pub(super) allowed: usize,
    /// Cases under a policy that is not compiled.
    pub(super) asked: u64,
    pub(super) rules: u64,
    pub(super) members: u64,
    pub(super) refused: u64,
    pub(super) questions: u64,
}

/// A watcher that saw what PostgreSQL does not show it, or did not see what it shows.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) who: Who,
    pub(super) expected: Option<Expected>,
    pub(super) text: String,
}

struct Watching {
    who: Who,
    /// `None` while it is refused.
    watcher: Option<Watcher>,
    columns: Arc<BTreeSet<String>>,
    expected: Vec<Expected>,
}

impl Watching {
    /// Whether its role may read what it asks for.
    fn permitted(&self) -> bool {
        let filter = self.who.filter.map_or("", |(text, _)| text);
        let filtered = filter.split(',').filter_map(|part| part.split_once('='));
        let mut filtered = filtered.filter(|(_, test)| test.contains('.'));
        self.columns.contains("id") && filtered.all(|(column, _)| self.columns.contains(column))
    }
}

pub(super) struct Round {
    pub(super) relay: Relay,
    pub(super) setting: Arc<Setting>,
    pub(super) rows: BTreeMap<i32, Row>,
    pub(super) script: Vec<String>,
    pub(super) tally: Tally,
    /// Since the last fence.
    rules_changed: bool,
    watching: Vec<Watching>,
}

impl Round {
    pub(super) async fn start(
        setting: Setting,
        rows: BTreeMap<i32, Row>,
        everybody: Vec<Who>,
    ) -> Result<Self, Failure> {
        let mut schema = vec![setting.sql()];
        schema.extend(rows.iter().map(|(id, row)| insert(*id, row)));
        let schema = schema.join(";\n");
        let relay = Relay::start(&schema, "t").await;
        let watching = everybody.into_iter().map(|who| Watching {
            who,
            watcher: None,
            columns: Arc::default(),
            expected: Vec::new(),
        });
        let mut round = Self {
            relay,
            setting: Arc::new(setting),
            rows,
            script: vec![schema],
            tally: Tally::default(),
            rules_changed: false,
            watching: watching.collect(),
        };
        round.refresh().await;
        round.join().await?;
        Ok(round)
    }

    async fn run(&mut self, sql: String) {
        self.relay.run(&sql).await;
        self.script.push(sql);
    }

    async fn refresh(&mut self) {
        for one in &mut self.watching {
            one.columns = Arc::new(readable(&self.relay.sql, one.who.role).await);
        }
    }

    /// Those who are out try again.
    async fn join(&mut self) -> Result<(), Failure> {
        for one in &mut self.watching {
            if one.watcher.is_some() {
                continue;
            }
            let filter = one.who.filter.map_or("", |(text, _)| text);
            let (role, claims) = (one.who.role, &one.who.claims);
            let joined = self
                .relay
                .watch_filtered(role, claims, "t", Events::All, filter)
                .await;
            let permitted = one.permitted();
            match joined {
                Ok(watcher) if permitted => one.watcher = Some(watcher),
                Err(_) if !permitted => self.tally.refused += 1,
                other => {
                    return Err(Failure {
                        who: one.who.clone(),
                        expected: None,
                        text: format!(
                            "joined: {:?}, though permitted: {permitted}",
                            other.map(|_| ())
                        ),
                    });
                }
            }
        }
        Ok(())
    }

    /// Has the relay look at the catalog now.
    async fn look(&self) {
        let refused = self
            .relay
            .watch_filtered("nobody_at_all", &json!({}), "t", Events::All, "")
            .await;
        assert!(refused.is_err(), "a role that does not exist");
    }

    /// Changes the rules alone. What the stream tells the relay of may be left to the next row.
    pub(super) async fn rules(
        &mut self,
        sql: String,
        setting: Setting,
        look: bool,
    ) -> Result<(), Failure> {
        self.fence().await?;
        self.run(sql).await;
        self.setting = Arc::new(setting);
        self.tally.rules += 1;
        self.rules_changed = true;
        if look {
            self.look().await;
        }
        self.refresh().await;
        self.join().await
    }

    /// Changes who is a member alone.
    pub(super) async fn members(&mut self, sql: String, setting: Setting) -> Result<(), Failure> {
        self.fence().await?;
        self.run(sql).await;
        self.setting = Arc::new(setting);
        self.tally.members += 1;
        Ok(())
    }

    /// Changes rows, after the rules or memberships that `first` changes in the same transaction.
    pub(super) async fn rows(
        &mut self,
        first: Option<(String, Setting)>,
        changes: Vec<Change>,
    ) -> Result<(), Failure> {
        if first.is_some() {
            self.fence().await?;
        }
        self.run("begin".to_owned()).await;
        if let Some((sql, setting)) = first {
            self.run(sql).await;
            self.setting = Arc::new(setting);
            self.tally.rules += 1;
            self.rules_changed = true;
        }
        self.refresh().await;
        let everybody: Vec<Who> = self.watching.iter().map(|one| one.who.clone()).collect();
        let everybody: Vec<&Who> = everybody.iter().collect();
        let ids: Vec<i32> = changes
            .iter()
            .filter_map(|change| Some(change.before()?.0))
            .collect();
        let before = sights(&self.relay.sql, &everybody, &ids).await;
        let old = contents(&self.relay.sql, &ids).await;
        for change in &changes {
            self.run(change.sql()).await;
            if let Some((id, _)) = change.before() {
                self.rows.remove(&id);
            }
            if let Some((id, row)) = change.after() {
                self.rows.insert(id, *row);
            }
        }
        self.run("commit".to_owned()).await;
        let ids: Vec<i32> = changes
            .iter()
            .filter_map(|change| Some(change.after()?.0))
            .collect();
        self.relay.run("begin").await;
        let after = sights(&self.relay.sql, &everybody, &ids).await;
        let new = contents(&self.relay.sql, &ids).await;
        self.relay.run("rollback").await;
        let asked = self.setting.policies.iter().any(|p| p.using.is_asked());
        for (at, one) in self.watching.iter_mut().enumerate() {
            if one.watcher.is_none() {
                continue;
            }
            for change in &changes {
                let was = change.before().map(|(id, _)| (id, before[at][&id]));
                let decides = change.after().map(|(id, _)| after[at][&id]);
                let delete = decides.is_none();
                let mut sight = decides.or(was.map(|(_, sight)| sight)).unwrap();
                if !one.permitted() {
                    sight = Sight::Hidden;
                }
                let open = self.setting.is_open_to(one.who.role);
                self.tally.cases += 1;
                self.tally.asked += u64::from(asked && !open);
                match sight {
                    Sight::Visible(true) => self.tally.visible += 1,
                    Sight::Visible(false) | Sight::Hidden => self.tally.hidden += 1,
                    Sight::Raises => self.tally.raising += 1,
                }
                // Without the full row a delete is judged only where nothing has to be known.
                let judged = self.setting.full || open && one.who.filter.is_none();
                one.expected.push(Expected {
                    change: change.clone(),
                    setting: Arc::clone(&self.setting),
                    sight,
                    optional: delete && !judged,
                    old: was.and_then(|(id, _)| old.get(&id).cloned()),
                    old_seen: was.is_some_and(|(_, sight)| sight != Sight::Hidden),
                    new: change.after().and_then(|(id, _)| new.get(&id).cloned()),
                    columns: Arc::clone(&one.columns),
                });
            }
        }
        Ok(())
    }

    /// Compares everything up to here.
    pub(super) async fn fence(&mut self) -> Result<(), Failure> {
        let fence = self.relay.fence().await;
        for one in &mut self.watching {
            let Some(watcher) = &mut one.watcher else {
                continue;
            };
            let mut seen = watcher.until(fence).await;
            let heard = seen.clone();
            let mut expected = std::mem::take(&mut one.expected);
            // Who is shown other rows from now on is told to read again, and finds all in that.
            let told = seen.last() == Some(&Seen::Resync(Resync::AccessChanged));
            if told && self.rules_changed {
                seen.pop();
                for one in &mut expected {
                    one.optional = true;
                }
            }
            let expelled = seen.last() == Some(&Seen::Resync(Resync::SchemaChanged));
            if expelled {
                seen.pop();
            }
            let resync = seen.iter().find(|seen| matches!(seen, Seen::Resync(_)));
            let mut failed = resync.map(|resync| (None, format!("{resync:?}")));
            if failed.is_none() {
                failed = compare(&seen, &expected)
                    .map(|found| (found.expected.map(|at| expected[at].clone()), found.text));
            }
            let permitted = one.permitted();
            if failed.is_none() && expelled && permitted {
                failed = Some((None, "expelled, though a select works".to_owned()));
            }
            if failed.is_none() && !expelled && !told && !permitted && !expected.is_empty() {
                failed = Some((None, "still in, though a select fails".to_owned()));
            }
            if let Some((expected, text)) = failed {
                let heard: Vec<String> = heard.iter().map(Seen::brief).collect();
                return Err(Failure {
                    who: one.who.clone(),
                    expected,
                    text: format!("{text}\n(heard since the last fence: {heard:?})"),
                });
            }
            let demanded = expected.iter().filter(|one| one.must()).count();
            self.tally.allowed += seen.len().saturating_sub(demanded);
            if expelled || told {
                one.watcher = None;
            }
        }
        if self.watching.iter().any(|one| one.watcher.is_none()) {
            // Who was told before the fence's row has not waited for that: it must not come back
            // amid what was to be compared.
            settled(&mut self.relay).await;
        }
        self.rules_changed = false;
        self.tally.questions = self.relay.core.metrics.questions.get();
        self.join().await
    }
}

//! From a failure in a long round to the least that still fails.

use std::collections::BTreeMap;

use super::grammar::{COLUMNS, Row, Who};
use super::round::{Failure, Round};
use super::setting::{Change, Setting, insert};

/// Databases made on the way; each takes up to a second.
const ATTEMPTS: u32 = 80;

#[derive(Clone)]
struct Case {
    setting: Setting,
    who: Who,
    change: Change,
}

impl Case {
    /// What goes wrong on a fresh database with this watcher and this row alone.
    async fn fails(&self) -> Option<String> {
        let rows: BTreeMap<i32, Row> = self
            .change
            .before()
            .map(|(id, row)| (id, *row))
            .into_iter()
            .collect();
        let everybody = vec![self.who.clone()];
        let mut round = match Round::start(self.setting.clone(), rows, everybody).await {
            Ok(round) => round,
            Err(failure) => return Some(failure.text),
        };
        let done = match round.rows(None, vec![self.change.clone()]).await {
            Ok(()) => round.fence().await,
            failed => failed,
        };
        done.err().map(|failure| failure.text)
    }

    /// Everything that is this with a little less.
    fn smaller(&self) -> Vec<Self> {
        let mut all = Vec::new();
        let mut with = |change: &dyn Fn(&mut Self)| {
            let mut smaller = self.clone();
            change(&mut smaller);
            all.push(smaller);
        };
        for at in 0..self.setting.policies.len() {
            with(&|case| {
                case.setting.policies.remove(at);
            });
        }
        if self.who.filter.is_some() {
            with(&|case| case.who.filter = None);
        }
        for (at, policy) in self.setting.policies.iter().enumerate() {
            for using in policy.using.smaller() {
                with(&|case| case.setting.policies[at].using = using.clone());
            }
        }
        for key in self
            .who
            .claims
            .as_object()
            .into_iter()
            .flat_map(|c| c.keys())
        {
            with(&|case| {
                case.who.claims.as_object_mut().unwrap().remove(key);
            });
        }
        for at in 0..COLUMNS.len() {
            let mut change = self.change.clone();
            match &mut change {
                Change::Insert { new: row, .. } | Change::Delete { old: row, .. } => row[at] = None,
                Change::Update { old, new, .. } => (old[at], new[at]) = (None, None),
            }
            if change != self.change {
                with(&|case| case.change = change.clone());
            }
        }
        for at in 0..self.setting.members.len() {
            with(&|case| {
                case.setting.members.remove(at);
            });
        }
        if self.setting.extra {
            with(&|case| case.setting.extra = false);
        }
        all
    }

    fn text(&self) -> String {
        let before = self.change.before();
        let before = before.map_or(String::new(), |(id, row)| insert(id, row) + ";\n");
        format!(
            "{};\n{before}-- {} joins with claims {} and filter {:?}\n{};",
            self.setting.sql(),
            self.who.role,
            self.who.claims,
            self.who.filter.map(|(text, _)| text),
            self.change.sql()
        )
    }
}

/// What a person needs to see it fail again.
pub(super) async fn report(failure: Failure, script: &[String]) -> String {
    let Failure {
        who,
        expected,
        text,
    } = failure;
    let found = format!("{text}\nby {who:?}");
    if let Some(expected) = expected {
        let found = format!("{}: {found}", expected.brief());
        let mut case = Case {
            setting: Setting::clone(&expected.setting),
            who,
            change: expected.change,
        };
        if let Some(mut text) = Box::pin(case.fails()).await {
            let mut attempts = 0;
            'smaller: loop {
                for smaller in case.smaller() {
                    attempts += 1;
                    if attempts > ATTEMPTS {
                        break 'smaller;
                    }
                    if let Some(still) = Box::pin(smaller.fails()).await {
                        (case, text) = (smaller, still);
                        continue 'smaller;
                    }
                }
                break;
            }
            return format!("{found}\nThe least that fails:\n{}\n-- {text}", case.text());
        }
        return format!(
            "{found}\nIt takes what came before:\n{}",
            script.join(";\n")
        );
    }
    format!("{found}\n{}", script.join(";\n"))
}

//! What arrived held against what PostgreSQL showed.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::harness::Seen;
use crate::oracle::{Image, Sight};
use crate::subscribers::{Subscriber, Who, Wish};
use crate::tally::Tally;

/// A change as the stream has it: one that moves a row to another partition is two of them.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    /// The transaction among those since the last fence.
    pub(crate) transaction: usize,
    pub(crate) table: &'static str,
    pub(crate) kind: &'static str,
    /// The key, and that of the row before.
    pub(crate) id: i32,
    pub(crate) old_id: i32,
    pub(crate) seq: Option<u64>,
    /// As the transaction left it.
    pub(crate) new: Option<Arc<Image>>,
    /// As the transaction found it; nothing where it made that row itself.
    pub(crate) old: Option<Arc<Image>>,
    /// The row before under what the transaction left: where it changed the rules as well, or made
    /// that row itself.
    pub(crate) old_then: Option<Arc<Image>>,
    /// Whether the transaction adds or drops a column of the table.
    pub(crate) altered: bool,
    /// Whether the stream carries the whole row before.
    pub(crate) whole: bool,
}

/// What one change means to a subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Must,
    May,
    Never,
}

/// What a subscriber is in force as.
pub(crate) struct Standing<'a> {
    pub(crate) who: &'a Who,
    /// For each of the transactions the columns that its role may read.
    pub(crate) readable: Vec<Arc<BTreeSet<String>>>,
    /// Questions were put to PostgreSQL about several transactions together, so that an answer may be
    /// as of a later one.
    pub(crate) asked_later: bool,
}

fn sees(image: Option<&Arc<Image>>, who: usize, filter: usize) -> Sight {
    match image {
        Some(image) if image.filters[filter] => image.sights[who],
        _ => Sight::Hidden,
    }
}

impl Told {
    fn permitted(wish: &Wish, readable: &BTreeSet<String>) -> bool {
        let reads = crate::subscribers::FILTERS[wish.filter].reads;
        readable.contains("id") && reads.iter().all(|column| readable.contains(*column))
    }

    /// What of a change is due, and what of a leave.
    fn due(&self, wish: &Wish, standing: &Standing<'_>) -> (Due, Due) {
        let readable = &standing.readable[self.transaction];
        let new = sees(self.new.as_ref(), wish.who, wish.filter);
        let old = sees(self.old.as_ref(), wish.who, wish.filter);
        let then = sees(self.old_then.as_ref(), wish.who, wish.filter);
        // What is judged by what the transaction found, or by what it left, when it changed rules.
        let old_may = old != Sight::Hidden || then != Sight::Hidden;
        let sure = |sight: Sight| sight == Sight::Visible && !standing.who.raises;
        let old_must = sure(old) && (self.old_then.is_none() || sure(then)) && self.whole;
        if !Self::permitted(wish, readable) {
            return (Due::Never, Due::Never);
        }
        let of = |may: bool, must: bool| match (may, must) {
            (_, true) => Due::Must,
            (true, _) => Due::May,
            _ => Due::Never,
        };
        let change = match self.kind {
            "DELETE" => of(old_may, old_must),
            _ => of(new != Sight::Hidden, sure(new)),
        };
        let change = if wish.wants(self.kind) {
            change
        } else {
            Due::Never
        };
        let leaves = self.kind == "UPDATE" && wish.leave;
        let leave = of(
            leaves && old_may && new != Sight::Visible,
            leaves && old_must && new == Sight::Hidden,
        );
        (change, leave)
    }

    /// Whether a column may be read. One that the transaction drops is none of those any more; who
    /// may read all others could read it.
    fn may_read(&self, name: &str, readable: &BTreeSet<String>) -> bool {
        let image = self.new.as_ref().or(self.old.as_ref());
        let all = image.is_some_and(|image| {
            let mut names = image.row.keys().filter(|name| *name != "x");
            names.all(|name| readable.contains(name))
        });
        readable.contains(name) || self.altered && name == "x" && all
    }

    /// Whether an event shows what it may.
    fn unfit(
        &self,
        wish: &Wish,
        standing: &Standing<'_>,
        data: &Value,
        (leave, as_of_later): (bool, bool),
    ) -> Option<String> {
        let readable = &standing.readable[self.transaction];
        let none = Map::new();
        if let Some(new) = self.new.as_ref().filter(|_| !leave) {
            let expected: Map<String, Value> = new
                .row
                .iter()
                .filter(|(name, _)| readable.contains(*name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            let mut expected = expected;
            let mut shown = data["record"].as_object().cloned().unwrap_or_default();
            if self.altered {
                // Each row is as it was written.
                expected.remove("x");
                if shown
                    .remove("x")
                    .is_some_and(|x| !self.may_read("x", readable) || x != 7)
                {
                    return Some("the record has a column that may not be read".to_owned());
                }
            }
            if shown != expected {
                return Some(format!("the record is not {}", Value::Object(expected)));
            }
        } else if data["record"]
            .as_object()
            .is_some_and(|shown| !shown.is_empty())
        {
            return Some("there is a record".to_owned());
        }
        let seen = |image: &Option<Arc<Image>>| {
            let image = image.as_ref();
            image.is_some_and(|image| image.sights[wish.who] != Sight::Hidden)
        };
        let old_seen = as_of_later || seen(&self.old) || seen(&self.old_then);
        let old = self.old.as_ref().or(self.old_then.as_ref());
        for (name, value) in data["old_record"].as_object().unwrap_or(&none) {
            let own = old.and_then(|old| old.row.get(name));
            let new = self.new.as_ref().and_then(|new| new.row.get(name));
            let key = name == "id" || self.table != "t" && name == "org";
            let known = key && new == Some(value);
            let same = own == Some(value) || self.altered && name == "x" && value == 7;
            if !self.may_read(name, readable) || !(known || old_seen && same) {
                return Some(format!("old_record shows {name}, which was hidden"));
            }
            if leave && !key {
                return Some(format!("a leave shows {name}"));
            }
        }
        None
    }

    fn is(&self, data: &Value) -> Option<bool> {
        let leave = data["rowcast"]["leave"] == true;
        if data["table"] != self.table {
            return None;
        }
        let matches = match (data["type"].as_str().unwrap(), leave) {
            ("DELETE", true) => self.kind == "UPDATE" && data["old_record"]["id"] == self.old_id,
            ("DELETE", false) => self.kind == "DELETE" && data["old_record"]["id"] == self.old_id,
            (kind, _) => {
                self.kind == kind && self.seq.is_some_and(|seq| data["record"]["seq"] == seq)
            }
        };
        matches.then_some(leave)
    }

    fn brief(&self) -> String {
        format!(
            "{} {} of {} (seq {:?})",
            self.kind, self.id, self.table, self.seq
        )
    }
}

/// What became of a subscriber since the last fence.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum After {
    In,
    /// Told to read again.
    Out,
}

/// Holds what one subscriber got against what there was.
///
/// # Errors
/// What it got and might not have, or did not get and was not told of.
pub(crate) async fn check(
    one: &mut Subscriber,
    (told, fence): (&[Told], u64),
    standing: &Standing<'_>,
    tally: &mut Tally,
) -> Result<After, String> {
    let line = one.line.as_mut().expect("it is in");
    let wish = &one.wish;
    let mut seen = line.until(fence).await;
    let resync = match seen.last() {
        Some(Seen::Resync(reason)) => Some(reason.as_str().to_owned()),
        _ => None,
    };
    if resync.is_some() {
        seen.pop();
    }
    let own: Vec<&Told> = told
        .iter()
        .filter(|told| told.table == wish.table)
        .collect();
    tally.cases += own.len() as u64;
    if one.by_socket {
        tally.sockets += own.len() as u64;
    }
    let mut shown = vec![false; own.len()];
    let mut from = 0;
    for event in &seen {
        let data = event.change();
        // Of several changes of a row a leave names only the row.
        let fitting: Vec<(usize, bool)> = (from..own.len())
            .filter(|at| !shown[*at])
            .filter_map(|at| Some((at, own[at].is(data)?)))
            .collect();
        let due = |(at, leave): &&(usize, bool)| {
            let (change, left) = own[*at].due(wish, standing);
            (if *leave { left } else { change }) != Due::Never
        };
        // A transaction may move a row to another partition and delete it there: what was not told of
        // the one does not explain the other.
        let fits = |one: &&(usize, bool)| {
            let (at, leave) = **one;
            let unfit = own[at].unfit(wish, standing, data, (leave, false));
            due(one) && unfit.is_none()
        };
        let rightly = fitting.iter().find(fits);
        let rightly = rightly.or_else(|| fitting.iter().find(due));
        let Some((at, leave)) = rightly.or_else(|| fitting.first()).copied() else {
            let twice = own.iter().any(|told| told.is(data).is_some());
            let why = if twice {
                "twice, or out of turn"
            } else {
                "nothing explains it"
            };
            return Err(format!("{why}: {data}"));
        };
        from = at;
        shown[at] = true;
        let (change, left) = own[at].due(wish, standing);
        let due = if leave { left } else { change };
        match due {
            Due::Must => tally.shown += 1,
            Due::May => tally.allowed += 1,
            Due::Never if standing.asked_later => tally.as_of_later += 1,
            Due::Never => {
                let (new, old) = (&own[at].new, &own[at].old);
                let sights = [new, old, &own[at].old_then].map(|image| {
                    image
                        .as_ref()
                        .map(|image| (image.sights[wish.who], image.filters[wish.filter]))
                });
                return Err(format!(
                    "SHOWN TOO MUCH: {data}, a {}, of which a select shows (new, old, old then) {sights:?}",
                    if leave { "leave" } else { "change" }
                ));
            }
        }
        let kind = if leave { "LEAVE" } else { own[at].kind };
        *tally.kinds.entry(kind).or_default() += 1;
        // By the answer the row that left, or is gone, was seen.
        let gone = leave || own[at].kind == "DELETE";
        let as_of_later = gone && due == Due::Never;
        if let Some(unfit) = own[at].unfit(wish, standing, data, (leave, as_of_later)) {
            return Err(format!("SHOWN TOO MUCH: {unfit}: {data}"));
        }
    }
    let mut missing = Vec::new();
    for (at, told) in own.iter().enumerate() {
        if shown[at] {
            continue;
        }
        let (change, left) = told.due(wish, standing);
        if change == Due::Must || left == Due::Must {
            missing.push(at);
        } else if change == Due::May || left == Due::May {
            let why = if told.whole {
                "a select raises"
            } else {
                "delete_without_identity"
            };
            *tally.kept.entry(why.to_owned()).or_default() += 1;
        } else {
            tally.hidden += 1;
        }
    }
    let reason = match resync {
        None if !missing.is_empty() => line.resync().await,
        told => told,
    };
    let Some(reason) = reason else {
        let Some(first) = missing.first() else {
            return Ok(After::In);
        };
        if standing.asked_later {
            *tally
                .kept
                .entry("asked, as of later".to_owned())
                .or_default() += missing.len() as u64;
            return Ok(After::In);
        }
        let told = own[*first];
        return Err(format!(
            "KEPT, and no reason told: {}: {told:?}",
            told.brief()
        ));
    };
    *tally.kept.entry(reason.clone()).or_default() += missing.len() as u64;
    *tally.resyncs.entry(reason).or_default() += 1;
    Ok(After::Out)
}

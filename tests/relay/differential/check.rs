//! What arrived held against what PostgreSQL showed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::oracle::Sight;
use super::setting::{Change, Setting};
use crate::harness::Seen;

/// What one change means to one watcher.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    pub(super) change: Change,
    pub(super) setting: Arc<Setting>,
    /// What a select shows of the row that decides; the filter included.
    pub(super) sight: Sight,
    /// Whether it may be missing all the same.
    pub(super) optional: bool,
    /// The row before, and whether it could be seen.
    pub(super) old: Option<Map<String, Value>>,
    pub(super) old_seen: bool,
    pub(super) new: Option<Map<String, Value>>,
    pub(super) columns: Arc<BTreeSet<String>>,
}

impl Expected {
    pub(super) fn brief(&self) -> String {
        let (kind, id) = self.change.event();
        format!("{kind} {id}")
    }

    /// Whether it has to arrive.
    pub(super) fn must(&self) -> bool {
        self.sight == Sight::Visible(true) && !self.optional
    }

    fn never(&self) -> bool {
        matches!(self.sight, Sight::Hidden | Sight::Visible(false))
    }

    /// Whether an event shows what it may.
    fn unfit(&self, data: &Value) -> Option<String> {
        let id = Value::from(self.change.event().1);
        if let Some(new) = &self.new {
            let readable: Map<String, Value> = new
                .iter()
                .filter(|(name, _)| self.columns.contains(*name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            if data["record"] != Value::Object(readable.clone()) {
                return Some(format!("the record is not {}", Value::Object(readable)));
            }
        }
        let none = Map::new();
        let shown = data["old_record"].as_object().unwrap_or(&none);
        for (name, value) in shown {
            let own = self.old.as_ref().and_then(|old| old.get(name));
            let known = name == "id" && *value == id;
            let allowed =
                self.columns.contains(name) && (known || self.old_seen && own == Some(value));
            if !allowed {
                return Some(format!("old_record shows {name}, which was hidden"));
            }
        }
        let complete = self.setting.full && data["type"] == "DELETE";
        (complete && shown.len() != self.columns.len())
            .then(|| "old_record lacks columns".to_owned())
    }
}

/// A difference: which of the expected, if it is one of them, and in words.
#[derive(Debug, Clone)]
pub(super) struct Difference {
    pub(super) expected: Option<usize>,
    pub(super) text: String,
}

/// Finds the way to match both lists with the fewest differences, and returns the first of them.
pub(super) fn compare(seen: &[Seen], expected: &[Expected]) -> Option<Difference> {
    let mut ways: BTreeMap<usize, Vec<Difference>> = BTreeMap::from([(0, Vec::new())]);
    for (at, wanted) in expected.iter().enumerate() {
        let mut next: BTreeMap<usize, Vec<Difference>> = BTreeMap::new();
        let mut offer = |place: usize, differences: Vec<Difference>| {
            let known = next.get(&place);
            if known.is_none_or(|known| known.len() > differences.len()) {
                next.insert(place, differences);
            }
        };
        let differ = |before: &[Difference], text: String| {
            let expected = Some(at);
            [before, &[Difference { expected, text }]].concat()
        };
        for (place, before) in &ways {
            if let Some(event) = seen.get(*place)
                && event.brief() == wanted.brief()
            {
                let unfit = wanted.unfit(event.change());
                let taken = if wanted.never() {
                    differ(
                        before,
                        format!("shown, though {:?}: {event:?}", wanted.sight),
                    )
                } else if let Some(unfit) = unfit {
                    differ(before, format!("{unfit}: {event:?}"))
                } else {
                    before.clone()
                };
                offer(place + 1, taken);
            }
            offer(
                *place,
                if wanted.must() {
                    differ(before, "missing, though a select shows it".to_owned())
                } else {
                    before.clone()
                },
            );
        }
        ways = next;
    }
    let mut found = ways.into_iter().map(|(place, mut differences)| {
        differences.extend(seen[place..].iter().map(|event| Difference {
            expected: None,
            text: format!("nothing explains {event:?}"),
        }));
        differences
    });
    let first = found.next()?;
    let best = found.fold(first, |a, b| if b.len() < a.len() { b } else { a });
    best.into_iter().next()
}

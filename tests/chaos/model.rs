//! What an application has made of what it was told, and what must never happen on the way.

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use serde_json::Value;

use crate::schema::{TABLES, may_be_shown};

/// Lines of what a client said and heard that are kept.
const TRACE: usize = 4_000;

/// Where the application has a row from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// It was told of it: the next version is the one behind it.
    Told,
    /// It has read it: what it is told next may be as old as the place from which it is told on.
    Read,
}

#[derive(Debug, Clone)]
struct Held {
    row: Value,
    version: i64,
    source: Source,
}

#[derive(Debug, Default)]
struct Table {
    rows: BTreeMap<i64, Held>,
    /// Whether the rows are what was told; not so before they were read.
    settled: bool,
    /// Whether the rows were read last, rather than given behind a cursor.
    read: bool,
    /// The cursor of the newest change.
    high: Option<String>,
    /// Changes that did not follow what was read, each with the history that it is of: a standby that
    /// was promoted may lack them, and may have been read before the relay had noticed.
    odd: Vec<(String, String)>,
}

/// Of one client.
#[derive(Debug)]
pub(crate) struct Model {
    name: String,
    user: usize,
    tables: [Table; 4],
    /// What must not be.
    pub(crate) wrong: Vec<String>,
    /// What it said and heard last, for whoever looks for the cause of a miss.
    trace: VecDeque<String>,
    pub(crate) counts: Counts,
}

/// What came.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counts {
    pub(crate) changes: u64,
    /// Changes that came again from behind the last cursor that was told.
    pub(crate) again: u64,
    pub(crate) resyncs: BTreeMap<String, u64>,
    pub(crate) sockets: u64,
}

impl Model {
    pub(crate) fn new(name: String, user: usize) -> Self {
        Self {
            name,
            user,
            tables: Default::default(),
            wrong: Vec::new(),
            trace: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.tables.iter().all(|table| table.settled)
    }

    /// The rows as they were read from PostgreSQL.
    pub(crate) fn has_read(&mut self, table: usize, rows: Vec<Value>) {
        let model = &mut self.tables[table];
        model.rows = rows
            .into_iter()
            .map(|row| held(row, Source::Read))
            .collect();
        (model.settled, model.read) = (true, true);
    }

    /// A gap was told of.
    pub(crate) fn told(&mut self, reason: String) {
        *self.counts.resyncs.entry(reason).or_default() += 1;
    }

    /// The first page of rows that come before their changes.
    pub(crate) fn begins(&mut self, table: usize) {
        let model = &mut self.tables[table];
        model.rows.clear();
        (model.settled, model.read, model.high) = (false, false, None);
    }

    /// Rows that were sent before their changes may be ahead of the cursor with which the client comes
    /// back: what is in them comes again then.
    pub(crate) fn comes_back(&mut self, table: usize) {
        let model = &mut self.tables[table];
        model.read = true;
        for held in model.rows.values_mut() {
            held.source = Source::Read;
        }
    }

    /// It reads again, and goes on from a cursor that it is told. Where the log has lost its end, and is
    /// getting that once more, this one lies before what the client knew.
    pub(crate) fn goes_on(&mut self, table: usize, cursor: &str) {
        let place = &cursor[..33];
        let high = &mut self.tables[table].high;
        if high
            .as_deref()
            .is_some_and(|high| high[..16] == place[..16] && high > place)
        {
            *high = Some(place.to_owned());
        }
    }

    /// A page; whether it is the last one.
    pub(crate) fn page(&mut self, table: usize, rows: Vec<Value>, ends: bool) {
        for row in rows {
            if !may_be_shown(self.user, table, &row, false) {
                self.wrong(table, "shown in a snapshot", &row);
            }
            let model = &mut self.tables[table];
            let (id, held) = held(row, Source::Told);
            if let Some(twice) = model.rows.insert(id, held) {
                self.wrong(table, "twice in a snapshot", &twice.row);
            }
        }
        let model = &mut self.tables[table];
        model.settled |= ends;
    }

    /// A change. What lies before the newest one may come where `may_repeat`, as it may to who
    /// knows its cursor once a second.
    pub(crate) fn change(&mut self, table: usize, data: &Value, may_repeat: bool) {
        // Behind the place stands whose it is.
        let cursor = data["cursor"].as_str().unwrap()[..33].to_owned();
        let (old, new) = (&data["old_record"], &data["record"]);
        let kind = data["type"].as_str().unwrap();
        let row = if kind == "DELETE" { old } else { new };
        self.counts.changes += 1;
        if !data["errors"].is_null() {
            self.wrong(table, "incomplete", data);
        }
        let old_is_hers = old["version"].is_null() || may_be_shown(self.user, table, old, false);
        if !old_is_hers || !may_be_shown(self.user, table, row, kind != "DELETE") {
            self.wrong(table, "LEAKED", data);
        }
        if let Some(high) = &self.tables[table].high
            && high[..16] == cursor[..16]
            && cursor <= *high
        {
            self.counts.again += 1;
            if !may_repeat {
                self.wrong(table, &format!("twice, after {high}"), data);
            }
            return;
        }
        let model = &mut self.tables[table];
        model.high = Some(cursor);
        let (id, version) = (
            row["id"].as_i64().unwrap(),
            row["version"].as_i64().unwrap(),
        );
        let known = model.rows.get(&id);
        // Behind the rows that were read lies what was read already.
        let fits = !model.settled
            || match (kind, known) {
                ("INSERT", None) => version == 1,
                ("INSERT", Some(known)) => version == 1 && known.source == Source::Read,
                (
                    "UPDATE",
                    Some(Held {
                        version: before,
                        source: Source::Told,
                        ..
                    }),
                ) => version == before + 1,
                (
                    "DELETE",
                    Some(Held {
                        version: before,
                        source: Source::Told,
                        ..
                    }),
                ) => version == *before,
                (
                    _,
                    Some(Held {
                        version: before, ..
                    }),
                ) => version <= before + 1,
                (_, None) => model.read,
            };
        let found = known.map(|known| (known.version, known.source));
        if kind == "DELETE" {
            model.rows.remove(&id);
        } else {
            let (id, held) = held(row.clone(), Source::Told);
            model.rows.insert(id, held);
        }
        if !fits {
            let history = self.tables[table].high.iter();
            let history = history.map(|high| high[..16].to_owned()).collect();
            let wrong = self.words(table, &format!("does not follow {found:?}"), data);
            self.tables[table].odd.push((history, wrong));
        }
    }

    /// Holds the rows against those that PostgreSQL shows. What was told of a history other than
    /// `kept`, where that is given, is of one that was lost: it need not fit to what was read.
    pub(crate) fn compare(&mut self, table: usize, visible: Vec<Value>, kept: Option<&str>) {
        let odd = std::mem::take(&mut self.tables[table].odd);
        let odd = odd
            .into_iter()
            .filter(|(history, _)| kept.is_none_or(|kept| history == kept));
        self.wrong.extend(odd.map(|(_, wrong)| wrong));
        let expected: BTreeMap<i64, Held> = visible
            .into_iter()
            .map(|row| held(row, Source::Read))
            .collect();
        let missing: Vec<Value> = expected
            .iter()
            .filter(|(id, held)| {
                self.tables[table]
                    .rows
                    .get(id)
                    .is_none_or(|other| other.row != held.row)
            })
            .map(|(_, held)| held.row.clone())
            .collect();
        for row in missing {
            let has = row["id"]
                .as_i64()
                .and_then(|id| self.tables[table].rows.get(&id));
            let has = has.map(|held| (held.version, held.source));
            self.wrong(table, &format!("LOST, it has {has:?} of"), &row);
        }
        let superfluous: Vec<Value> = self.tables[table]
            .rows
            .iter()
            .filter(|(id, _)| !expected.contains_key(id))
            .map(|(_, held)| held.row.clone())
            .collect();
        for row in superfluous {
            self.wrong(table, "GONE, and not told", &row);
        }
    }

    fn wrong(&mut self, table: usize, what: &str, value: &Value) {
        let wrong = self.words(table, what, value);
        self.wrong.push(wrong);
    }

    fn words(&self, table: usize, what: &str, value: &Value) -> String {
        let text = value.to_string();
        let shown: String = text.chars().take(600).collect();
        format!("{}, {}: {what}: {shown}", self.name, TABLES[table])
    }

    /// Notes what it says, or what it is told.
    pub(crate) fn note(&mut self, what: &str) {
        if self.trace.len() >= TRACE {
            self.trace.pop_front();
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap().as_millis();
        let what: String = what.chars().take(300).collect();
        self.trace.push_back(format!("{now} {what}"));
    }

    /// All that it noted.
    pub(crate) fn trace(&self) -> String {
        self.trace.iter().map(|line| format!("{line}\n")).collect()
    }
}

fn held(row: Value, source: Source) -> (i64, Held) {
    let version = row["version"].as_i64().unwrap();
    (
        row["id"].as_i64().unwrap(),
        Held {
            row,
            version,
            source,
        },
    )
}

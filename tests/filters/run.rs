//! One relay on one database, many filters on many columns.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rowcast::admin::Readiness;
use rowcast::app::Core;
use rowcast::auth::{Claims, Principal};
use rowcast::metrics::Metrics;
use rowcast::router::{ChannelId, Event, Join, Outbox, SessionId};
use rowcast::subscription::{Events, Start, Wanted, filter};
use tokio_postgres::Client;

use crate::columns::{self, Column};
use crate::generate::{Case, case, literal};
use crate::harness::{DEADLINE, cluster, config, connect};

const ROWS: usize = 12;
/// Columns of one table.
const COLUMNS: usize = 25;
/// Bindings of one channel.
const BINDINGS: usize = 100;
const FENCE: u32 = 9999;

/// What a run found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) columns: usize,
    pub(crate) filters: usize,
    pub(crate) refused: usize,
    /// Filters held against rows.
    pub(crate) decisions: u64,
    pub(crate) questions: u64,
    /// Those about columns whose filters are all decided natively.
    pub(crate) native_questions: u64,
    pub(crate) wrong: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} columns, {} filters ({} refused), {} decisions, {} questions, {} wrong",
            self.columns,
            self.filters,
            self.refused,
            self.decisions,
            self.questions,
            self.wrong.len()
        )
    }
}

/// A column to be tested, and the filters on it.
struct Subject {
    table: String,
    name: String,
    column: Column,
    /// Whether deletes carry the whole old row.
    full: bool,
    cases: Vec<Case>,
    outbox: Arc<Outbox>,
    /// By case: what the relay refused, and the rows whose insert and delete it delivered.
    refused: HashMap<usize, String>,
    inserted: HashMap<usize, BTreeSet<i32>>,
    deleted: HashMap<usize, BTreeSet<i32>>,
    trouble: Vec<String>,
}

static LAST: AtomicU64 = AtomicU64::new(1 << 32);

/// The server's version, as `server_version_num` counts.
#[cfg(not(feature = "mutants"))]
pub(crate) async fn server_version() -> i32 {
    let client = connect(&cluster().await.url("postgres")).await;
    let version = client
        .query_one("select current_setting('server_version_num')::int", &[])
        .await
        .expect("a version");
    version.get(0)
}

/// Holds about `size` filters against PostgreSQL in a database made with `options`.
pub(crate) async fn differential(options: &str, seed: u64, size: usize, narrow: bool) -> Report {
    let mut rng = StdRng::seed_from_u64(seed);
    let name = format!("filters_{}", LAST.fetch_add(1, Ordering::Relaxed));
    let admin = connect(&cluster().await.url("postgres")).await;
    let create = format!("create database {name} {options}");
    admin.batch_execute(&create).await.expect("a database");
    let url = cluster().await.url(&name);
    let sql = connect(&url).await;
    run(&sql, include_str!("../../sql/auth.sql")).await;
    run(&sql, columns::MADE).await;
    run(
        &sql,
        "create table fence (id bigint primary key); grant select on fence to public;
         set timezone = 'UTC'; set datestyle = 'ISO'; set intervalstyle = 'postgres'",
    )
    .await;
    let (columns, built_in) = columns::all(&sql).await;
    assert!(built_in > 100, "the server's own types");
    let columns = if narrow {
        // The first few built-in types, for what is not text.
        let few = columns.into_iter().filter(|column| column.native);
        few.chain(columns::texts()).collect()
    } else {
        columns
    };
    let mut subjects = prepare(&sql, &mut rng, columns, size, narrow).await;
    let metrics = Arc::new(Metrics::new());
    let mut config = config(&url);
    // Thousands of filters ask at once here.
    config.ask_timeout = std::time::Duration::from_secs(120);
    config.max_asked_filters = 0;
    let core = Core::start(&config, Arc::clone(&metrics), Readiness::default())
        .await
        .expect("a relay");
    let mut timing = vec![std::time::Instant::now()];
    // Not all at once: a join does not wait long for PostgreSQL.
    for some in subjects.chunks_mut(6) {
        let joining = some.iter_mut().map(|subject| subscribe(&core, subject));
        futures_util::future::join_all(joining).await;
    }
    timing.push(std::time::Instant::now());
    let mut report = Report {
        columns: subjects.len(),
        ..Report::default()
    };
    // First those that nothing is to be asked about.
    let (mut native, mut others): (Vec<_>, Vec<_>) = subjects
        .into_iter()
        .partition(|subject| subject.column.native);
    let mut fence = 0;
    write(&sql, &mut rng, &mut native, &mut fence).await;
    timing.push(std::time::Instant::now());
    report.native_questions = metrics.questions.get();
    write(&sql, &mut rng, &mut others, &mut fence).await;
    timing.push(std::time::Instant::now());
    let subjects: Vec<Subject> = native.into_iter().chain(others).collect();
    for subject in &subjects {
        judge(&sql, subject, &mut report).await;
    }
    timing.push(std::time::Instant::now());
    eprintln!(
        "{:?}",
        timing
            .windows(2)
            .map(|two| two[1] - two[0])
            .collect::<Vec<_>>()
    );
    report.questions = metrics.questions.get();
    core.stop().await;
    drop(sql);
    report
}

async fn run(sql: &Client, text: &str) {
    let ran = sql.batch_execute(text).await;
    ran.unwrap_or_else(|error| panic!("{text}: {error:?}"));
}

async fn prepare(
    sql: &Client,
    rng: &mut StdRng,
    columns: Vec<Column>,
    size: usize,
    narrow: bool,
) -> Vec<Subject> {
    // What is asked costs PostgreSQL more than a row is worth to the test.
    let weight = |column: &Column| match (column.native, column.textual) {
        (true, _) if narrow => 10,
        (true, _) => 30,
        (_, true) if narrow => 20,
        (_, true) => 5,
        _ => 1,
    };
    let total: usize = columns.iter().map(weight).sum();
    let (native, others): (Vec<Column>, Vec<Column>) =
        columns.into_iter().partition(|column| column.native);
    let mut subjects = Vec::new();
    let mut tables = vec!["fence".to_owned()];
    for columns in native.chunks(COLUMNS).chain(others.chunks(COLUMNS)) {
        let table = format!("t_{}", tables.len());
        let full = tables.len() % 2 == 1;
        let mut declared = Vec::new();
        for (place, column) in columns.iter().enumerate() {
            let name = format!("c{place}");
            declared.push(format!("{name} {}", column.declared));
            let cases = (0..=size * weight(column) / total)
                .map(|_| {
                    let mut value = |rng: &mut StdRng| column.values.draw(rng);
                    case(rng, &name, column.textual, &mut value)
                })
                .collect();
            let session = SessionId(LAST.fetch_add(1, Ordering::Relaxed));
            subjects.push(Subject {
                table: table.clone(),
                name,
                column: column.clone(),
                full,
                cases,
                outbox: Outbox::new(session, 1 << 20, 1 << 30),
                refused: HashMap::new(),
                inserted: HashMap::new(),
                deleted: HashMap::new(),
                trouble: Vec::new(),
            });
        }
        let identity = if full { "full" } else { "default" };
        let create = format!(
            "create table {table} (id int primary key, {});
             grant select on {table} to authenticated;
             alter table {table} replica identity {identity}",
            declared.join(", ")
        );
        run(sql, &create).await;
        tables.push(table);
    }
    let publication = format!("create publication rowcast for table {}", tables.join(", "));
    run(sql, &publication).await;
    subjects
}

async fn subscribe(core: &Core, subject: &mut Subject) {
    let principal = Arc::new(Principal {
        role: "authenticated".into(),
        claims: Claims::verified("{}".to_owned()),
        expires_at: None,
    });
    let wanted = |id: usize, table: &str, filter| Wanted {
        id: u32::try_from(id).unwrap(),
        events: Events::All,
        schema: Some("public".to_owned()),
        table: Some(table.to_owned()),
        filter,
        select: None,
        leave: false,
        start: Start::default(),
    };
    for (channel, cases) in subject.cases.chunks(BINDINGS).enumerate() {
        let mut all = Vec::new();
        for (place, case) in cases.iter().enumerate() {
            match filter::parse(&case.filter) {
                Ok(filter) => all.push(wanted(place + 1, &subject.table, filter)),
                Err(error) => {
                    subject
                        .refused
                        .insert(channel * BINDINGS + place, error.to_string());
                }
            }
        }
        all.push(wanted(FENCE as usize, "fence", Vec::new()));
        let join = Join {
            outbox: Arc::clone(&subject.outbox),
            channel: ChannelId(u32::try_from(channel).unwrap()),
            principal: Arc::clone(&principal),
            wanted: all,
            keeps_cursor: false,
        };
        loop {
            core.router.join(join.clone()).await.expect("a router");
            match event(&subject.outbox).await {
                Event::Joined { refusals, .. } => {
                    for refusal in refusals {
                        let place = channel * BINDINGS + refusal.binding as usize - 1;
                        subject.refused.insert(place, refusal.reason);
                    }
                    break;
                }
                // On a busy machine, as a client would.
                Event::CaughtUp { .. } | Event::Introduced { .. } | Event::Unavailable { .. } => {}
                other => panic!("joining: {other:?}"),
            }
        }
    }
}

async fn event(outbox: &Outbox) -> Event {
    let next = async {
        let mut events = Vec::new();
        loop {
            if outbox.take(&mut events, 1).expect("room") > 0 {
                return events.pop().expect("one event");
            }
            outbox.readable().await;
        }
    };
    tokio::time::timeout(DEADLINE, next)
        .await
        .expect("an event in time")
}

/// Inserts and deletes rows of each table, and takes what is delivered of it.
async fn write(sql: &Client, rng: &mut StdRng, subjects: &mut [Subject], fence: &mut usize) {
    let tables: BTreeSet<String> = subjects.iter().map(|one| one.table.clone()).collect();
    for table in tables {
        let mut rows = vec![Vec::new(); ROWS];
        for subject in subjects.iter().filter(|subject| subject.table == table) {
            for (row, value) in rows.iter_mut().zip(values(sql, rng, &subject.column).await) {
                row.push(value);
            }
        }
        let mut of_table: Vec<&mut Subject> = subjects
            .iter_mut()
            .filter(|subject| subject.table == table)
            .collect();
        let mut statements: Vec<String> = rows
            .iter()
            .enumerate()
            .map(|(id, row)| format!("insert into {table} values ({id}, {})", row.join(", ")))
            .collect();
        statements.push(format!("create table kept_{table} as table {table}"));
        statements.push(format!("delete from {table} where id % 3 = 0"));
        for statement in statements {
            // One at a time: thousands of filters ask about each.
            *fence += 1;
            let fenced = format!("{statement}; insert into fence values ({fence})");
            run(sql, &fenced).await;
            for subject in &mut of_table {
                take(subject, *fence).await;
            }
        }
    }
}

/// A NULL and values that the type takes, as SQL.
async fn values(sql: &Client, rng: &mut StdRng, column: &Column) -> Vec<String> {
    let drawn: Vec<String> = (0..ROWS * 3).map(|_| column.values.draw(rng)).collect();
    let taken: Vec<String> = sql
        .query_one(
            "select array(select v from unnest($2::text[]) v where takes($1, v))",
            &[&column.type_sql, &drawn],
        )
        .await
        .expect("values")
        .get(0);
    assert!(taken.len() > 2, "values of {}", column.declared);
    let mut all = vec!["null".to_owned()];
    let taken = taken.iter().cycle().take(ROWS - 1);
    // Not only assigned: that would refuse what is too long.
    all.extend(taken.map(|text| format!("{}::{}", literal(text), column.type_sql)));
    all
}

async fn take(subject: &mut Subject, fence: usize) {
    let mut open = subject.cases.chunks(BINDINGS).count();
    while open > 0 {
        let (channel, change) = match event(&subject.outbox).await {
            Event::Change { channel, change } => (channel, change),
            other => {
                subject.trouble.push(format!("{other:?}"));
                return;
            }
        };
        let data: serde_json::Value = serde_json::from_slice(&change.data).expect("JSON");
        if data["table"] == "fence" {
            open -= usize::from(data["record"]["id"] == fence);
            continue;
        }
        let (seen, record) = match data["type"].as_str() {
            Some("INSERT") => (&mut subject.inserted, &data["record"]),
            _ => (&mut subject.deleted, &data["old_record"]),
        };
        let id = i32::try_from(record["id"].as_i64().expect("a key")).unwrap();
        let mut told = HashSet::new();
        for &binding in &change.bindings {
            let place = channel.0 as usize * BINDINGS + binding as usize - 1;
            let new = told.insert(place) && seen.entry(place).or_default().insert(id);
            if !new {
                subject
                    .trouble
                    .push(format!("case {place} was told of row {id} twice"));
            }
        }
    }
}

/// What PostgreSQL says, and whether the relay did the same.
async fn judge(sql: &Client, subject: &Subject, report: &mut Report) {
    let Subject {
        table,
        name,
        column,
        ..
    } = subject;
    for trouble in &subject.trouble {
        report.wrong.push(format!("{}: {trouble}", column.declared));
    }
    let from = match &column.oracle {
        Some(cast) => format!("(select id, {name}::{cast} as {name} from kept_{table}) as kept"),
        None => format!("kept_{table}"),
    };
    let select = |sql: &str| format!("array(select id from {from} where {sql})");
    for (chunk, cases) in subject.cases.chunks(30).enumerate() {
        let first = chunk * 30;
        let accepted: Vec<usize> = (0..cases.len())
            .filter(|place| !subject.refused.contains_key(&(first + place)))
            .collect();
        let together: Vec<String> = accepted
            .iter()
            .map(|place| select(&cases[*place].sql))
            .collect();
        let together = sql
            .query_one(&format!("select {}", together.join(", ")), &[])
            .await;
        for (place, case) in cases.iter().enumerate() {
            let at = first + place;
            let truth = match (&together, accepted.iter().position(|known| *known == place)) {
                (Ok(row), Some(column)) => Ok(row.get::<_, Vec<i32>>(column)),
                _ => match sql
                    .query_one(&format!("select {}", select(&case.sql)), &[])
                    .await
                {
                    Ok(row) => Ok(row.get(0)),
                    Err(error) => Err(error.as_db_error().expect("a refusal").message().to_owned()),
                },
            };
            report.filters += 1;
            let wrong = match (truth, subject.refused.get(&at)) {
                (Err(_), Some(_)) => {
                    report.refused += 1;
                    None
                }
                (_, Some(_)) if case.ends_in_escape => None,
                // Elements are compared only of arrays that are otherwise alike.
                (Ok(_), Some(reason)) if reason.contains("could not identify an") => None,
                // PostgreSQL does not come to a condition behind one that is false of every row.
                (Ok(_), Some(reason)) => match refuses_one(sql, case, select).await {
                    true => None,
                    false => Some(format!("refused: {reason}")),
                },
                (Err(reason), None) => Some(format!("PostgreSQL refuses: {reason}")),
                (Ok(truth), None) => {
                    report.decisions += ROWS as u64;
                    let truth: BTreeSet<i32> = truth.into_iter().collect();
                    let seen = subject.inserted.get(&at).cloned().unwrap_or_default();
                    let gone: BTreeSet<i32> = if subject.full {
                        truth.iter().copied().filter(|id| id % 3 == 0).collect()
                    } else {
                        // The old row does not carry what the filter reads.
                        BTreeSet::new()
                    };
                    let deleted = subject.deleted.get(&at).cloned().unwrap_or_default();
                    ((&truth, &gone) != (&seen, &deleted))
                        .then(|| format!("rows {truth:?} {gone:?}, delivered {seen:?} {deleted:?}"))
                }
            };
            if let Some(wrong) = wrong {
                let Case { filter, sql, .. } = case;
                report
                    .wrong
                    .push(format!("{}: {filter} | {sql}: {wrong}", column.declared));
            }
        }
    }
}

async fn refuses_one(sql: &Client, case: &Case, select: impl Fn(&str) -> String) -> bool {
    for part in &case.parts {
        let alone = sql
            .query_one(&format!("select {}", select(part)), &[])
            .await;
        if alone.is_err() {
            return true;
        }
    }
    false
}

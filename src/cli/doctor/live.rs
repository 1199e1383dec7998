//! `--live`: a row on its way, watched.
//!
//! The table is one of its own, in the schema `rowcast`, and only the subscriber that watches may
//! see its row. It is dropped again whatever happens, also where the command is interrupted; what a
//! killed one left behind the next one drops.

mod relay;

mod slot;

use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use serde::Serialize;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::cli::stop_signal;
use crate::config::Secret;
use crate::doctor::{Finding, Patient, Report};
use crate::pg::connect::Database;
use crate::pg::refusal::with_causes;
use crate::pg::{quote_identifier, quote_literal};

/// What marks the tables that this makes.
const COMMENT: &str = "Made by rowcast doctor --live, which drops it again.";

/// The advisory lock of whoever uses such a table.
const LOCK: i64 = 0x726f_7763_6173_7401;

/// How the tables' names begin.
const PREFIX: &str = "doctor_live_";

/// How long everything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happened, step by step.
#[derive(Debug, Serialize)]
pub(super) struct Live {
    /// Whether the row arrived.
    pub(super) arrived: bool,
    /// By which way: `relay` or `slot`.
    pub(super) way: &'static str,
    /// What was done.
    pub(super) steps: Vec<Step>,
    #[serde(skip)]
    since: Option<Instant>,
}

/// A step, and how long it took.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    /// What was done.
    pub(super) what: String,
    /// Rounded down.
    pub(super) milliseconds: u64,
}

impl Live {
    fn begin(&mut self) {
        self.since = Some(Instant::now());
    }

    fn done(&mut self, what: impl Into<String>) {
        let took = self.since.map_or(Duration::ZERO, |since| since.elapsed());
        self.steps.push(Step {
            what: what.into(),
            milliseconds: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        });
        self.begin();
    }
}

/// The table, and who writes it.
struct Stage {
    writer: Client,
    table: String,
    publication: String,
    /// What the row says, and the subscriber's claim `sub`: nobody else sees it.
    mark: String,
    /// The role that may read it.
    role: String,
    /// Whether the schema was not there before.
    made_schema: bool,
}

impl Stage {
    fn name(&self) -> String {
        format!("rowcast.{}", quote_identifier(&self.table))
    }

    /// Drops the table, and the schema where it was made for that and nothing else is in it.
    async fn drop_all(&self, with_table: bool) -> Result<(), tokio_postgres::Error> {
        if with_table {
            let drop = format!("drop table if exists {}", self.name());
            self.writer.batch_execute(&drop).await?;
        }
        if self.made_schema
            && let Err(error) = self.writer.batch_execute("drop schema rowcast").await
            && error.code() != Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST)
        {
            return Err(error);
        }
        Ok(())
    }

    async fn write(&self, id: i64) -> Result<(), tokio_postgres::Error> {
        let insert = format!("insert into {} (id, mark) values ($1, $2)", self.name());
        self.writer.execute(&insert, &[&id, &self.mark]).await?;
        Ok(())
    }
}

/// Writes a row and watches it arrive.
pub(super) async fn watch(
    patient: &Patient,
    writer: Option<Secret>,
    report: &Report,
) -> (Live, Vec<Finding>) {
    let mut live = Live {
        arrived: false,
        way: "none",
        steps: Vec::new(),
        since: Some(Instant::now()),
    };
    let (Some(publication), Some(login)) = (&report.publication, &report.login) else {
        let finding = Finding::error(
            "live_impossible",
            "no row can be watched: there is no database or no publication to do it with",
        )
        .advice("Mend what stands above first.");
        return (live, vec![finding]);
    };
    // From here on an interrupt is noted and waits until there is nothing to clean up.
    let stop = stop_signal();
    tokio::pin!(stop);
    if stop.as_mut().now_or_never().is_some() {
        return (live, vec![interrupted()]);
    }
    let url = writer.unwrap_or_else(|| patient.config.database_url.clone());
    let stage = set_up(&url, publication, login, patient, &mut live).await;
    let stage = match stage {
        Ok(stage) => stage,
        Err(reason) => {
            let finding = Finding::error(
                "live_rights",
                format!("the table to watch cannot be made: {reason}"),
            )
            .advice(
                "Give a login that owns the publication and may create in the database: \
                 ROWCAST_LIVE_DATABASE_URL.",
            );
            return (live, vec![finding]);
        }
    };
    let found = {
        let watching = async {
            match &stage {
                Staged::Ready(stage) => {
                    let running = report.findings.iter().all(|one| {
                        !matches!(
                            one.code,
                            "slot_missing" | "slot_unread" | "slot_lost" | "slot_taken"
                        )
                    });
                    if running {
                        relay::watch(stage, patient, &mut live).await
                    } else {
                        slot::watch(stage, patient, &mut live).await
                    }
                }
                Staged::Broken(_, reason) => vec![
                    Finding::error(
                        "live_rights",
                        format!("the table to watch cannot be made ready: {reason}"),
                    )
                    .advice(
                        "Give a login that owns the publication and may create in the database: \
                         ROWCAST_LIVE_DATABASE_URL.",
                    ),
                ],
            }
        };
        tokio::select! {
            found = tokio::time::timeout(PATIENCE, watching) => found.unwrap_or_else(|_| vec![
                Finding::error("live_silent", format!("the row did not arrive within {} s", PATIENCE.as_secs()))
                    .advice("The relay's log says what it waits for."),
            ]),
            () = &mut stop => vec![interrupted()],
        }
    };
    live.begin();
    let (stage, made) = match &stage {
        Staged::Ready(stage) => (stage, true),
        // All of it in one transaction, which was given up.
        Staged::Broken(stage, _) => (stage, false),
    };
    let mut found = found;
    match stage.drop_all(made).await {
        Ok(()) => live.done("dropped what was made"),
        Err(error) => found.push(
            Finding::warning(
                "live_left",
                format!(
                    "{} could not be dropped: {}",
                    stage.name(),
                    with_causes(&error)
                ),
            )
            .sql(format!("drop table if exists {}", stage.name())),
        ),
    }
    (live, found)
}

fn interrupted() -> Finding {
    Finding::warning(
        "live_interrupted",
        "it was interrupted before the row arrived",
    )
}

/// How far the table came.
enum Staged {
    Ready(Stage),
    /// It has to be dropped, and why it is of no use.
    Broken(Stage, String),
}

async fn set_up(
    url: &Secret,
    publication: &str,
    login: &str,
    patient: &Patient,
    live: &mut Live,
) -> Result<Staged, String> {
    let words = |error: tokio_postgres::Error| with_causes(&error);
    let database = Database::parse(url.expose()).map_err(|error| error.to_string())?;
    let writer = database
        .connect("rowcast doctor")
        .await
        .map_err(|error| error.to_string())?;
    writer
        .batch_execute(
            "set search_path = ''; set lock_timeout = '2s'; set statement_timeout = '15s'; \
             set default_transaction_read_only = off; set client_min_messages = warning",
        )
        .await
        .map_err(words)?;
    let role = relay::role(patient);
    let row = writer
        .query_one(
            "select pg_catalog.to_regnamespace('rowcast') is null, pg_catalog.gen_random_uuid()::text, \
                    (select puballtables from pg_catalog.pg_publication where pubname = $1), \
                    exists (select from pg_catalog.pg_roles where rolname = $2)",
            &[&publication, &role],
        )
        .await
        .map_err(words)?;
    let made_schema: bool = row.try_get(0).map_err(words)?;
    let mark: String = row.try_get(1).map_err(words)?;
    let everything = row.try_get::<_, Option<bool>>(2).map_err(words)?;
    if !row.try_get::<_, bool>(3).map_err(words)? {
        return Err(format!("role {role} does not exist"));
    }
    if made_schema {
        writer
            .batch_execute(&format!(
                "create schema rowcast; comment on schema rowcast is {}",
                quote_literal(COMMENT)
            ))
            .await
            .map_err(words)?;
    }
    let stage = Stage {
        table: format!("{PREFIX}{}", mark.replace('-', "")),
        publication: publication.to_owned(),
        mark,
        role,
        made_schema,
        writer,
    };
    sweep(&stage.writer).await.map_err(words)?;
    let (name, role) = (stage.name(), quote_identifier(&stage.role));
    let add = match everything {
        Some(true) => String::new(),
        _ => format!(
            "alter publication {} add table only {name};",
            quote_identifier(&stage.publication)
        ),
    };
    let made = stage
        .writer
        .batch_execute(&format!(
            "begin; create table {name} (id bigint primary key, mark text not null); \
             comment on table {name} is {}; \
             alter table {name} enable row level security; \
             create policy watched on {name} for select to {role} using \
               (mark = pg_catalog.current_setting('request.jwt.claims', true)::pg_catalog.jsonb ->> 'sub'); \
             grant usage on schema rowcast to {role}; grant select on {name} to {role}; {add} commit",
            quote_literal(COMMENT)
        ))
        .await;
    if let Err(error) = made {
        let _aborted = stage.writer.batch_execute("rollback").await;
        return Ok(Staged::Broken(stage, with_causes(&error)));
    }
    live.done(format!(
        "made the table {name} in publication {publication}, for the relay's login {login}"
    ));
    Ok(Staged::Ready(stage))
}

/// Drops what killed ones left behind, unless somebody else is at it just now.
async fn sweep(writer: &Client) -> Result<(), tokio_postgres::Error> {
    // Held for as long as the session is: it says that its table is still needed.
    let alone = format!("select pg_catalog.pg_try_advisory_lock({LOCK})");
    if !writer.query_one(&alone, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(());
    }
    let rows = writer
        .query(
            "select pg_catalog.format('%I.%I', n.nspname, c.relname) \
               from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
              where n.nspname = 'rowcast' and c.relname like 'doctor\\_live\\_%' and c.relkind = 'r' \
                and pg_catalog.obj_description(c.oid, 'pg_class') = $1 \
                and pg_catalog.pg_has_role(current_user, c.relowner, 'usage')",
            &[&COMMENT],
        )
        .await?;
    for row in rows {
        let name: String = row.try_get(0)?;
        let drop = format!("drop table if exists {name}");
        writer.batch_execute(&drop).await?;
    }
    Ok(())
}

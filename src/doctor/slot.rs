//! The replication slot: who reads it, and what it keeps.

use serde_json::Value;
use tokio_postgres::{Client, Row};

use super::server::Facts;
use super::{Finding, Severity};
use crate::config::Config;
use crate::pg::quote_literal;
use crate::source;

const OPEN: &str = include_str!("../../sql/doctor_open.sql");

/// The session that makes a slot.
const MAKER: &str = "rowcast setup";

/// What a slot that nobody reads may keep before it is worth a word, in bytes.
const WORTH_A_WORD: i64 = 1 << 30;

pub(super) fn drop_sql(slot: &str) -> String {
    format!("select pg_drop_replication_slot({})", quote_literal(slot))
}

fn megabytes(bytes: i64) -> String {
    format!("{} MB", bytes.max(0) >> 20)
}

/// A transaction that somebody left open.
struct Open {
    /// How people find it: a process, or the name of a prepared one.
    named: String,
    /// What ends it; a comment where there is a choice.
    sql: Vec<String>,
}

impl Open {
    fn read(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let (pid, gid): (i32, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        let database: Option<String> = row.try_get(2)?;
        let application: Option<String> = row.try_get(3)?;
        let seconds: Option<i64> = row.try_get(4)?;
        let mut known: Vec<String> = Vec::new();
        known.extend(application.filter(|name| !name.is_empty()));
        known.extend(database.map(|name| format!("in database {name}")));
        known.extend(seconds.map(|seconds| format!("for {seconds} s")));
        let known = known.join(", ");
        Ok(match gid {
            Some(gid) => Self {
                named: format!("prepared transaction {gid} ({known})"),
                sql: ["commit", "rollback"]
                    .map(|how| format!("-- {how} prepared {}", quote_literal(&gid)))
                    .to_vec(),
            },
            None => Self {
                named: format!("that of process {pid} ({known})"),
                sql: vec![format!("select pg_terminate_backend({pid})")],
            },
        })
    }
}

/// Transactions that whoever makes a slot waits for, or would.
async fn open(client: &Client, maker: Option<i64>) -> Vec<Open> {
    let maker = maker.and_then(|pid| i32::try_from(pid).ok());
    let rows = match client.query(OPEN, &[&maker]).await {
        Ok(rows) => rows,
        Err(error) => {
            tracing::debug!(%error, "which transactions are open is not known");
            return Vec::new();
        }
    };
    rows.iter().filter_map(|row| Open::read(row).ok()).collect()
}

/// Names what keeps a slot from being made.
pub(crate) async fn waits(client: &Client, slot: &str, maker: Option<i64>) -> Option<Finding> {
    let open = open(client, maker).await;
    let named: Vec<&str> = open.iter().map(|one| one.named.as_str()).collect();
    if named.is_empty() {
        return None;
    }
    let named = named.join("; ");
    let finding = match maker {
        Some(_) => Finding::error(
            "slot_waits",
            format!(
                "a relay that is making replication slot {slot} waits for transactions that are open, and \
                 nobody receives anything: {named}"
            ),
        ),
        None => Finding::warning(
            "slot_waits",
            format!(
                "a relay that makes replication slot {slot} will wait for transactions that are open: \
                 {named}"
            ),
        ),
    };
    let finding = open
        .into_iter()
        .flat_map(|one| one.sql)
        .fold(finding, Finding::sql);
    Some(finding.advice(
        "Have whoever began them end them. A prepared one is ended in its own database, and whether it is \
         to be committed is its owner's to say.",
    ))
}

pub(super) async fn findings(client: &Client, facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut found = Vec::new();
    for other in &facts.others {
        let Some(retained) = other.retained.filter(|kept| *kept > WORTH_A_WORD) else {
            continue;
        };
        found.push(
            Finding::warning(
                "other_slot_inactive",
                format!(
                    "nobody reads replication slot {}, which keeps {} of WAL on the server's disk",
                    other.name,
                    megabytes(retained)
                ),
            )
            .sql(format!(
                "-- if nobody comes back for it: {}",
                drop_sql(&other.name)
            )),
        );
    }
    let slot = &config.slot;
    let Some(known) = &facts.slot else {
        found.push(
            Finding::note(
                "slot_missing",
                format!("there is no replication slot {slot}: no relay has run here with it yet"),
            )
            .advice("Start rowcast serve, which makes it."),
        );
        found.extend(waits(client, slot, None).await);
        return found;
    };
    if let Ok(Some(reason)) = source::lost(client, slot).await {
        found.push(
            Finding::error(
                "slot_lost",
                format!(
                    "the server has given replication slot {slot} up ({reason}): nothing comes from \
                     it any more"
                ),
            )
            .sql(drop_sql(slot))
            .advice("Start rowcast serve, which makes it anew; clients have to read again then."),
        );
        return found;
    }
    let text = |field: &str| known.get(field).and_then(Value::as_str);
    let number = |field: &str| known.get(field).and_then(Value::as_i64);
    let here = text("database") == Some(&facts.database) && text("plugin") == Some("pgoutput");
    if !here {
        // That is said by what the relay would end with.
        return found;
    }
    let retained = number("retained").unwrap_or(0);
    if !facts.is_read() {
        found.push(
            Finding::warning(
                "slot_unread",
                format!(
                    "nobody reads replication slot {slot}: no relay runs, or what runs does not \
                     get so far (its log says why), so nobody receives anything, and the slot \
                     keeps {} of WAL",
                    megabytes(retained)
                ),
            )
            .advice("Start rowcast serve; or drop the slot, where no relay is to run any more."),
        );
    } else if text("reader") == Some(MAKER) {
        // Once it is made the session ends with that.
        found.extend(waits(client, slot, number("active_pid")).await);
        return found;
    } else if text("reader").is_some_and(|reader| reader != "rowcast" && !reader.is_empty()) {
        let pid = number("active_pid").unwrap_or(0);
        found.push(
            Finding::error(
                "slot_taken",
                format!(
                    "replication slot {slot} is read by another program ({}, process {pid}): what it \
                     takes no relay gets",
                    text("reader").unwrap_or_default()
                ),
            )
            .sql(format!("select pg_terminate_backend({pid})"))
            .advice("End that program first, or give the relay a slot of its own (ROWCAST_SLOT)."),
        );
    }
    let most = i64::try_from(config.max_retained_wal).unwrap_or(i64::MAX);
    let near = text("wal_status") == Some("unreserved");
    if near || most > 0 && retained > most {
        found.push(
            Finding::warning(
                "slot_lag",
                if near {
                    format!(
                        "replication slot {slot} is about to be given up by the server: it keeps {}, \
                         more than max_slot_wal_keep_size allows",
                        megabytes(retained)
                    )
                } else {
                    format!(
                        "replication slot {slot} keeps {} of WAL, more than max_retained_wal ({}): \
                         the relay gives it up, and clients have to read again",
                        megabytes(retained),
                        megabytes(most)
                    )
                },
            )
            .advice(
                "Look in the relay's log at what it waits for, and for transactions that are open \
                 for long.",
            ),
        );
    }
    let fails_over = known.get("failover").and_then(Value::as_bool);
    if facts.version_num >= 170_000 && facts.standbys > 0 && fails_over == Some(false) {
        found.push(
            Finding::note(
                "slot_failover",
                format!(
                    "replication slot {slot} is none that standbys keep: after a failover clients \
                     have to read again"
                ),
            )
            .of_severity(Severity::Note)
            .advice("The relay asks for it when it starts; its log says why it was refused."),
        );
    }
    found
}

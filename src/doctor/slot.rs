//! The replication slot: who reads it, and what it keeps.

use serde_json::Value;
use tokio_postgres::Client;

use super::server::Facts;
use super::{Finding, Severity};
use crate::config::Config;
use crate::pg::quote_literal;
use crate::source;

/// What a slot that nobody reads may keep before it is worth a word, in bytes.
const WORTH_A_WORD: i64 = 1 << 30;

pub(super) fn drop_sql(slot: &str) -> String {
    format!("select pg_drop_replication_slot({})", quote_literal(slot))
}

fn megabytes(bytes: i64) -> String {
    format!("{} MB", bytes.max(0) >> 20)
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
                    "nobody reads replication slot {slot}: no relay runs, so nobody receives \
                     anything, and the slot keeps {} of WAL",
                    megabytes(retained)
                ),
            )
            .advice("Start rowcast serve; or drop the slot, where no relay is to run any more."),
        );
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

//! What must be in order before the stream can start, seen over an ordinary session.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use super::error::SourceError;
use crate::pg::{Lsn, Xid};

/// The oldest server whose stream is understood, as `server_version_num` counts.
const OLDEST_SERVER: i32 = 140_000;

/// The oldest server that can keep a slot on its standbys as well.
const FIRST_FAILOVER: i32 = 170_000;

/// How often it is looked whether a slot has been let go. Nothing rings then, and whoever waits for
/// the slot is what clients wait for.
const POLL: Duration = Duration::from_millis(100);

/// How long a session that ends may hold the slot; the server gives a dead one up after 10 s.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(20);

/// The publications that are looked for where none is configured, in this order.
const KNOWN_PUBLICATIONS: [&str; 2] = ["rowcast", "supabase_realtime"];

/// Which server this is, and where it stood when the source was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemInfo {
    /// Identifies the cluster; a restored or new one has another.
    pub system_identifier: u64,
    /// Counts the times that a standby of the cluster was promoted.
    pub timeline: u32,
    /// The version, as `server_version_num` counts (`150004`).
    pub server_version_num: i32,
    /// A transaction number that was current.
    pub xid: Xid,
    /// The end of the write-ahead log.
    pub insert_lsn: Lsn,
    /// Where each earlier timeline ended and the next one began, oldest first; empty where there
    /// was none before, or where the server does not know any more.
    pub switches: Vec<Switch>,
}

/// The end of a timeline: a standby was promoted that had everything up to there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// The timeline that ended.
    pub timeline: u32,
    /// Where; what was written on that timeline behind this is not part of the server's history.
    pub lsn: Lsn,
}

/// Reads a timeline history file: a line for each earlier timeline with its number, where it was
/// left, and why, apart by tabs. Lines that are none are left out.
pub(super) fn switches(text: &str) -> Vec<Switch> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            Some(Switch {
                timeline: fields.next()?.parse().ok()?,
                lsn: fields.next()?.parse().ok()?,
            })
        })
        .collect()
}

/// What is known before the replication session begins.
pub(super) struct Prepared {
    pub(super) created: bool,
    pub(super) confirmed: Lsn,
    pub(super) server_version_num: i32,
    pub(super) xid: Xid,
    pub(super) insert_lsn: Lsn,
    /// In what the texts of the stream are asked for.
    pub(super) encoding: &'static str,
    /// The server knows slots that standbys keep as well, and this is none of them.
    pub(super) needs_failover: bool,
}

/// Which publication to follow: the configured one, else `rowcast`, else `supabase_realtime`
/// where only that exists.
///
/// # Errors
/// [`SourceError::NoPublication`] where the configured one does not exist,
/// [`SourceError::NoPublications`] where none is configured and there is neither of the others.
pub async fn choose_publication(
    client: &Client,
    configured: Option<&str>,
) -> Result<String, SourceError> {
    if let Some(configured) = configured {
        check_publication(client, configured).await?;
        return Ok(configured.to_owned());
    }
    for known in KNOWN_PUBLICATIONS {
        if publication_exists(client, known).await? {
            return Ok(known.to_owned());
        }
    }
    Err(SourceError::NoPublications)
}

async fn publication_exists(client: &Client, publication: &str) -> Result<bool, SourceError> {
    let row = client
        .query_one(
            "select exists (select from pg_catalog.pg_publication where pubname = $1::text)",
            &[&publication],
        )
        .await?;
    Ok(row.try_get(0)?)
}

/// The second publication, where it exists and is another one than the first.
pub(super) async fn second<'a>(
    client: &Client,
    publication: &str,
    beside: Option<&'a str>,
) -> Result<Option<&'a str>, SourceError> {
    match beside {
        Some(name) if name != publication && publication_exists(client, name).await? => {
            Ok(Some(name))
        }
        _ => Ok(None),
    }
}

async fn check_publication(client: &Client, publication: &str) -> Result<(), SourceError> {
    if publication_exists(client, publication).await? {
        Ok(())
    } else {
        Err(SourceError::NoPublication {
            publication: publication.to_owned(),
        })
    }
}

/// What the server and the role have to be for a stream.
pub(super) struct Server {
    version_num: i32,
    /// In what the texts of the stream are asked for.
    encoding: &'static str,
    /// What stands in the way.
    pub(super) faults: Vec<SourceError>,
}

/// Looks at the server and the role.
pub(super) async fn server(client: &Client) -> Result<Server, SourceError> {
    let row = client
        .query_one(
            "select current_setting('server_version_num')::int4, \
                    current_setting('server_version'), \
                    current_setting('wal_level'), \
                    session_user::text, \
                    (select r.rolsuper or r.rolreplication from pg_catalog.pg_roles r \
                      where r.rolname = session_user) \
                    or exists (select from pg_catalog.pg_roles r \
                      where r.rolname in ('rds_replication', 'rds_superuser') \
                        and pg_catalog.pg_has_role(session_user, r.oid, 'member')), \
                    current_setting('server_encoding')",
            &[],
        )
        .await?;
    let version_num: i32 = row.try_get(0)?;
    let mut faults = Vec::new();
    if version_num < OLDEST_SERVER {
        faults.push(SourceError::TooOld {
            version: row.try_get(1)?,
        });
    }
    let level: String = row.try_get(2)?;
    if level != "logical" {
        faults.push(SourceError::WalLevel { level });
    }
    if !row.try_get::<_, Option<bool>>(4)?.unwrap_or(false) {
        faults.push(SourceError::NoReplication {
            role: row.try_get(3)?,
        });
    }
    let encoding: String = row.try_get(5)?;
    // Such a database holds bytes that nobody has checked, and the server would end the stream at
    // the first that are no text.
    let encoding = if encoding == "SQL_ASCII" {
        "SQL_ASCII"
    } else {
        "UTF8"
    };
    Ok(Server {
        version_num,
        encoding,
        faults,
    })
}

/// What stands in the way of a stream of this slot, as far as can be said without making it. A slot
/// that the server has given up is made anew, and stands in nobody's way.
pub(super) async fn faults(client: &Client, slot: &str) -> Result<Vec<SourceError>, SourceError> {
    let mut faults = server(client).await?.faults;
    match find(client, slot).await {
        Ok(_) => {}
        Err(fault @ (SourceError::OtherPlugin { .. } | SourceError::OtherDatabase { .. })) => {
            faults.push(fault);
        }
        // Somebody is making it.
        Err(SourceError::Disconnected { .. }) => {}
        Err(error) => return Err(error),
    }
    Ok(faults)
}

/// Why the server has given the slot up; `None` where it has not.
pub(super) async fn lost(client: &Client, slot: &str) -> Result<Option<String>, SourceError> {
    match find(client, slot).await {
        Ok(Found::Lost(reason)) => Ok(Some(reason)),
        Ok(Found::Missing | Found::There { .. })
        | Err(
            SourceError::OtherPlugin { .. }
            | SourceError::OtherDatabase { .. }
            | SourceError::Disconnected { .. },
        ) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Checks the server, the role and the publication, and finds or makes the slot.
pub(super) async fn prepare(
    client: &Client,
    slot: &str,
    publication: &str,
) -> Result<Prepared, SourceError> {
    let Server {
        version_num: server_version_num,
        encoding,
        faults,
    } = server(client).await?;
    if let Some(fault) = faults.into_iter().next() {
        return Err(fault);
    }
    check_publication(client, publication).await?;
    let failover = server_version_num >= FIRST_FAILOVER;
    let mut needs_failover = false;
    let found = match find(client, slot).await? {
        Found::Lost(reason) => {
            tracing::error!(
                slot,
                reason,
                "the server has given the replication slot up; it is made anew, and clients have \
                 to read again"
            );
            drop_slot(client, slot).await?;
            None
        }
        Found::There {
            confirmed,
            failover: has,
        } => {
            needs_failover = failover && !has;
            Some(confirmed)
        }
        Found::Missing => None,
    };
    let (created, confirmed) = match found {
        Some(confirmed) => (false, confirmed),
        None => (true, create(client, slot, failover).await?),
    };
    let row = client
        .query_one(
            "select pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text, \
                    case when pg_catalog.pg_is_in_recovery() \
                         then pg_catalog.pg_last_wal_replay_lsn() \
                         else pg_catalog.pg_current_wal_insert_lsn() end::text",
            &[],
        )
        .await?;
    let xid: String = row.try_get(0)?;
    let xid = xid.parse().map(Xid).map_err(SourceError::disconnected)?;
    Ok(Prepared {
        created,
        confirmed,
        server_version_num,
        xid,
        insert_lsn: lsn(row.try_get(1)?)?,
        encoding,
        needs_failover,
    })
}

/// What there is of the slot.
enum Found {
    Missing,
    There {
        /// Up to where it is acknowledged.
        confirmed: Lsn,
        /// Whether standbys keep it too.
        failover: bool,
    },
    /// Changes between its position and now are gone, by the server's own word.
    Lost(String),
}

async fn find(client: &Client, slot: &str) -> Result<Found, SourceError> {
    // As JSON, because the columns that tell of a lost slot differ from version to version.
    let row = client
        .query_opt(
            "select pg_catalog.to_jsonb(s), pg_catalog.current_database()::text \
               from pg_catalog.pg_replication_slots s where s.slot_name = $1::text",
            &[&slot],
        )
        .await?;
    let Some(row) = row else {
        return Ok(Found::Missing);
    };
    let found: Value = row.try_get(0)?;
    let here: String = row.try_get(1)?;
    let text = |field: &str| found.get(field).and_then(Value::as_str);
    if text("plugin") != Some("pgoutput") {
        return Err(SourceError::OtherPlugin {
            slot: slot.to_owned(),
        });
    }
    if let Some(database) = text("database").filter(|database| *database != here) {
        return Err(SourceError::OtherDatabase {
            slot: slot.to_owned(),
            database: database.to_owned(),
        });
    }
    let conflicting = found.get("conflicting").and_then(Value::as_bool) == Some(true);
    let invalid = text("invalidation_reason");
    if text("wal_status") == Some("lost") || conflicting || invalid.is_some() {
        let reason = invalid.unwrap_or(if conflicting {
            "it conflicts with recovery"
        } else {
            "the server no longer keeps its WAL"
        });
        return Ok(Found::Lost(reason.to_owned()));
    }
    let Some(confirmed) = text("confirmed_flush_lsn") else {
        return Err(SourceError::disconnected(
            "another session is making the replication slot, and waits for open transactions",
        ));
    };
    Ok(Found::There {
        confirmed: lsn(Some(confirmed.to_owned()))?,
        failover: found.get("failover").and_then(Value::as_bool) == Some(true),
    })
}

/// Makes the slot. PostgreSQL waits with that for the transactions that are open now.
async fn create(client: &Client, slot: &str, failover: bool) -> Result<Lsn, SourceError> {
    tracing::info!(
        slot,
        "creating the replication slot; open transactions are waited for"
    );
    let more = if failover {
        ", temporary => false, twophase => false, failover => true"
    } else {
        ""
    };
    let row = client
        .query_one(
            &format!(
                "select lsn::text from \
                 pg_catalog.pg_create_logical_replication_slot($1::text, 'pgoutput'{more})"
            ),
            &[&slot],
        )
        .await
        .map_err(|error| match SourceError::from(error) {
            SourceError::Refused(refusal) if refusal.sqlstate == "53400" => {
                SourceError::SlotsExhausted
            }
            other => other,
        })?;
    lsn(row.try_get(0)?)
}

/// Drops the slot, where there is one. A session that has just ended may hold it for a moment.
pub(super) async fn drop_slot(client: &Client, slot: &str) -> Result<(), SourceError> {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        let dropped = client
            .execute(
                "select pg_catalog.pg_drop_replication_slot(slot_name) \
                   from pg_catalog.pg_replication_slots where slot_name = $1::text",
                &[&slot],
            )
            .await;
        let error = match dropped {
            Ok(_) => return Ok(()),
            Err(error) => SourceError::from(error),
        };
        match &error {
            // Somebody else was faster.
            SourceError::Refused(refusal) if refusal.sqlstate == "42704" => return Ok(()),
            _ if error.slot_is_taken() && Instant::now() < deadline => {
                // One that still makes it for somebody who does not wait any more: it waits for
                // open transactions, and keeps WAL meanwhile.
                client
                    .execute(
                        "select pg_catalog.pg_terminate_backend(a.pid) \
                           from pg_catalog.pg_replication_slots s \
                           join pg_catalog.pg_stat_activity a on a.pid = s.active_pid \
                          where s.slot_name = $1::text and a.usename = session_user \
                            and a.application_name = 'rowcast setup'",
                        &[&slot],
                    )
                    .await?;
                sleep(POLL).await;
            }
            _ => return Err(error),
        }
    }
}

/// Moves the slot to the end of the write-ahead log without decoding what lies between; returns
/// where it stands then.
pub(super) async fn advance(client: &Client, slot: &str) -> Result<Lsn, SourceError> {
    let row = client
        .query_one(
            "select end_lsn::text from pg_catalog.pg_replication_slot_advance($1::text, \
             pg_catalog.pg_current_wal_flush_lsn())",
            &[&slot],
        )
        .await?;
    lsn(row.try_get(0)?)
}

/// Bytes of the write-ahead log that the slot keeps from being recycled; `None` where there is no
/// such slot.
pub(super) async fn retained(client: &Client, slot: &str) -> Result<Option<u64>, SourceError> {
    let row = client
        .query_opt(
            "select pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), \
                    restart_lsn)::int8 \
               from pg_catalog.pg_replication_slots where slot_name = $1::text",
            &[&slot],
        )
        .await?;
    let bytes: Option<i64> = row.map(|row| row.try_get(0)).transpose()?.flatten();
    Ok(bytes.map(|bytes| u64::try_from(bytes).unwrap_or(0)))
}

/// Returns once no session holds the slot.
pub(super) async fn until_free(client: &Client, slot: &str) -> Result<(), SourceError> {
    loop {
        sleep(POLL).await;
        let row = client
            .query_one(
                "select exists (select from pg_catalog.pg_replication_slots \
                  where slot_name = $1::text and active)",
                &[&slot],
            )
            .await?;
        if !row.try_get::<_, bool>(0)? {
            return Ok(());
        }
    }
}

fn lsn(text: Option<String>) -> Result<Lsn, SourceError> {
    text.unwrap_or_default()
        .parse()
        .map_err(SourceError::disconnected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timelines_history_is_read_as_the_server_writes_it() {
        let text = "1\t0/3000148\tno recovery target specified\n\n# a remark\n\
                    2\t16/B374D848\tat restore point \"1\t0/1\"\n3\tnowhere\n";
        let switch = |timeline, lsn| Switch { timeline, lsn };
        assert_eq!(
            switches(text),
            [switch(1, Lsn(0x300_0148)), switch(2, Lsn(0x16_B374_D848))]
        );
        assert_eq!(switches(""), []);
    }
}

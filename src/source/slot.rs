//! What must be in order before the stream can start, seen over an ordinary session.

use serde_json::Value;
use tokio_postgres::Client;

use super::error::SourceError;
use crate::pg::{Lsn, Xid};

/// The oldest server whose stream is understood, as `server_version_num` counts.
const OLDEST_SERVER: i32 = 140_000;

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
}

/// What is known before the replication session begins.
pub(super) struct Prepared {
    pub(super) created: bool,
    pub(super) confirmed: Lsn,
    pub(super) server_version_num: i32,
    pub(super) xid: Xid,
    pub(super) insert_lsn: Lsn,
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

async fn check_publication(client: &Client, publication: &str) -> Result<(), SourceError> {
    if publication_exists(client, publication).await? {
        Ok(())
    } else {
        Err(SourceError::NoPublication {
            publication: publication.to_owned(),
        })
    }
}

/// Checks the server, the role and the publication, and finds or makes the slot.
pub(super) async fn prepare(
    client: &Client,
    slot: &str,
    publication: &str,
) -> Result<Prepared, SourceError> {
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
                        and pg_catalog.pg_has_role(session_user, r.oid, 'member'))",
            &[],
        )
        .await?;
    let server_version_num: i32 = row.try_get(0)?;
    if server_version_num < OLDEST_SERVER {
        return Err(SourceError::TooOld {
            version: row.try_get(1)?,
        });
    }
    let level: String = row.try_get(2)?;
    if level != "logical" {
        return Err(SourceError::WalLevel { level });
    }
    if !row.try_get::<_, Option<bool>>(4)?.unwrap_or(false) {
        return Err(SourceError::NoReplication {
            role: row.try_get(3)?,
        });
    }
    check_publication(client, publication).await?;
    let (created, confirmed) = match find(client, slot).await? {
        Some(confirmed) => (false, confirmed),
        None => (true, create(client, slot).await?),
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
    })
}

/// Looks at the slot; returns up to where it is acknowledged.
async fn find(client: &Client, slot: &str) -> Result<Option<Lsn>, SourceError> {
    // As JSON, because the columns that tell of a lost slot differ from version to version.
    let row = client
        .query_opt(
            "select pg_catalog.to_jsonb(s), pg_catalog.current_database()::text \
               from pg_catalog.pg_replication_slots s where s.slot_name = $1::text",
            &[&slot],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
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
        return Err(SourceError::SlotLost {
            slot: slot.to_owned(),
            reason: reason.to_owned(),
        });
    }
    lsn(text("confirmed_flush_lsn").map(str::to_owned)).map(Some)
}

/// Makes the slot. PostgreSQL waits with that for the transactions that are open now.
async fn create(client: &Client, slot: &str) -> Result<Lsn, SourceError> {
    tracing::info!(
        slot,
        "creating the replication slot; open transactions are waited for"
    );
    let row = client
        .query_one(
            "select lsn::text from \
             pg_catalog.pg_create_logical_replication_slot($1::text, 'pgoutput')",
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

fn lsn(text: Option<String>) -> Result<Lsn, SourceError> {
    text.unwrap_or_default()
        .parse()
        .map_err(SourceError::disconnected)
}

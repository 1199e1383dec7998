//! Rows that PostgreSQL writes by itself, and waiting until the relays have them.

use std::time::{Duration, Instant};

use anyhow::bail;
use tokio_postgres::Client;

use crate::cli::bench::database::NAME;
use crate::cli::bench::plan::{BUCKETS, MEMBERS, user_id};
use crate::cli::bench::writer::row_id;

/// Owns rows that are nobody's.
const NOBODY: u64 = (1 << 40) - 1;

/// How long the relays may take for a gigabyte that has piled up.
const PATIENCE: Duration = Duration::from_secs(300);

/// Rows that one session of PostgreSQL writes, one after the other, without waiting for the disk.
#[derive(Debug, Clone, Copy)]
pub struct Fill {
    /// The round that they belong to.
    pub round: u32,
    /// The first row's number.
    pub first: u64,
    /// The number after the last row's.
    pub end: u64,
    /// Their owners: a row belongs to the user whose number is what is left of its own divided by
    /// this.
    pub users: u64,
    /// Rows of a transaction.
    pub transaction_size: u64,
    /// Bytes of a row beside its numbers. Rows with more than none are not for subscribers.
    pub bytes: u64,
}

impl Fill {
    /// Writes them. All is on the server's disk, and with it for the relays to have, when this
    /// returns.
    ///
    /// # Errors
    /// The first that PostgreSQL gives.
    pub async fn write(&self, client: &Client) -> anyhow::Result<Barrier> {
        let Self {
            first,
            end,
            users,
            transaction_size: size,
            ..
        } = self;
        let base = row_id(self.round, 0);
        let prefix = user_id(0);
        let (prefix, digits) = prefix.split_at(prefix.len() - 12);
        let width = digits.len();
        let sent = match self.bytes {
            0 => "'0'".to_owned(),
            bytes => format!("repeat('x', {bytes})"),
        };
        client.execute("set synchronous_commit = off", &[]).await?;
        client
            .batch_execute(&format!(
                "do $$ begin
                     for lowest in {first}..{end} - 1 by {size} loop
                         insert into {NAME}.rows (id, user_id, org_id, bucket, sent)
                         select {base} + r,
                                ('{prefix}' || lpad(to_hex(r % {users}), {width}, '0'))::uuid,
                                r % {users} / {MEMBERS}, r / {users} % {BUCKETS}, {sent}
                         from generate_series(lowest::bigint, least(lowest + {size}, {end}) - 1) r;
                         commit;
                     end loop;
                 end $$"
            ))
            .await?;
        client.execute("reset synchronous_commit", &[]).await?;
        let place: String = client
            .query_one("select pg_current_wal_insert_lsn()::text", &[])
            .await?
            .get(0);
        // Its commit brings to the disk what lies before, and acknowledging it what lies behind
        // the place.
        client
            .execute(
                &format!("insert into {NAME}.rows values ($1, $2::text::uuid, 0, 0, 'nobody''s')"),
                &[
                    &i64::try_from(row_id(self.round, NOBODY - *end))?,
                    &user_id(NOBODY),
                ],
            )
            .await?;
        Ok(Barrier { place })
    }
}

/// A place in the database's log.
#[derive(Debug)]
pub struct Barrier {
    place: String,
}

impl Barrier {
    /// Waits until these slots' relays have acknowledged what lies before.
    ///
    /// # Errors
    /// Where that takes minutes.
    pub async fn passed(&self, client: &Client, slots: &[&str]) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let waiting: i64 = client
                .query_one(
                    "select count(*) from pg_replication_slots
                     where slot_name = any($1)
                       and not coalesce(confirmed_flush_lsn > $2::text::pg_lsn, false)",
                    &[&slots, &self.place],
                )
                .await?
                .get(0);
            if waiting == 0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("A relay does not get on with what was written.");
            }
            // PostgreSQL tells nobody when something is acknowledged, so it is asked again.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

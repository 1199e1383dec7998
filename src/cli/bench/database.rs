//! What the benchmark makes in the database, and takes away again.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio_postgres::Client;

use super::plan::{MEMBERS, Policy, user_id};
use crate::config::Secret;
use crate::pg::connect::Database;

/// The role of every subscriber.
pub const ROLE: &str = "rowcast_bench_reader";
/// The schema, and the name of everything that has no schema.
pub const NAME: &str = "rowcast_bench";
/// The slot of the relay whose log is in memory.
pub const MEMORY_SLOT: &str = "rowcast_bench_memory";
/// The slot of the relay whose log is on disk.
pub const DISK_SLOT: &str = "rowcast_bench_disk";
/// The slot of the bare relay.
pub const BASELINE_SLOT: &str = "rowcast_bench_baseline";

/// Opens a session.
///
/// # Errors
/// Where there is none to be had.
pub async fn connect(url: &Secret) -> anyhow::Result<Client> {
    let database = Database::parse(url.expose())?;
    Ok(database.connect("rowcast bench").await?)
}

/// Makes schema, table, policy, role and publication, after taking away what an earlier run may
/// have left.
///
/// # Errors
/// Where the database is not fit for logical replication, or something else of these names exists
/// and is in use.
pub async fn set_up(client: &Client, policy: Policy, users: u64) -> anyhow::Result<()> {
    let level: String = client.query_one("show wal_level", &[]).await?.get(0);
    ensure!(
        level == "logical",
        "The server's wal_level is {level}; it must be logical."
    );
    take_down(client).await?;
    // Supabase's function; where it does not exist, one of the same body is made.
    let there: bool = client
        .query_one("select to_regprocedure('auth.uid()') is not null", &[])
        .await?
        .get(0);
    let (uid, make_uid) = if there {
        ("auth.uid()", String::new())
    } else {
        (
            "rowcast_bench.uid()",
            format!(
                "create function {NAME}.uid() returns uuid language sql stable as $$
                    select coalesce(
                        nullif(current_setting('request.jwt.claim.sub', true), ''),
                        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
                    )::uuid
                $$;"
            ),
        )
    };
    let using = match policy {
        Policy::User => format!("user_id = {uid}"),
        Policy::Membership => {
            format!("org_id in (select org_id from {NAME}.members where user_id = {uid})")
        }
        Policy::Open => "true".to_owned(),
    };
    client
        .batch_execute(&format!(
            "create role {ROLE};
             grant {ROLE} to current_user;
             create schema {NAME};
             {make_uid}
             create table {NAME}.rows (
                 id bigint primary key,
                 user_id uuid not null,
                 org_id integer not null,
                 bucket integer not null,
                 sent text not null
             );
             create table {NAME}.members (
                 org_id integer,
                 user_id uuid,
                 primary key (user_id, org_id)
             );
             alter table {NAME}.rows enable row level security;
             create policy visible on {NAME}.rows for select to {ROLE} using ({using});
             grant usage on schema {NAME} to {ROLE};
             grant select on {NAME}.rows, {NAME}.members to {ROLE};
             create publication {NAME} for table {NAME}.rows;"
        ))
        .await
        .context("The benchmark's tables cannot be made")?;
    if policy == Policy::Membership {
        let users = users.div_ceil(MEMBERS) * MEMBERS;
        let mut organisations = Vec::new();
        let mut members = Vec::new();
        for user in 0..users {
            organisations.push(i32::try_from(user / MEMBERS)?);
            members.push(user_id(user));
        }
        client
            .execute(
                &format!(
                    "insert into {NAME}.members
                     select o, u::uuid from unnest($1::int4[], $2::text[]) as t(o, u)"
                ),
                &[&organisations, &members],
            )
            .await?;
    }
    client
        .batch_execute(&format!("analyze {NAME}.rows; analyze {NAME}.members"))
        .await?;
    Ok(())
}

/// Takes away everything that [`set_up`] and the relays made. Nothing is left to hold back WAL.
///
/// # Errors
/// Where something is still in use after ten seconds.
pub async fn take_down(client: &Client) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let slots = vec![MEMORY_SLOT, DISK_SLOT, BASELINE_SLOT];
    loop {
        client
            .execute(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots
                 where slot_name = any($1) and not active",
                &[&slots],
            )
            .await?;
        let left: i64 = client
            .query_one(
                "select count(*) from pg_replication_slots where slot_name = any($1)",
                &[&slots],
            )
            .await?
            .get(0);
        if left == 0 {
            break;
        }
        if Instant::now() > deadline {
            bail!("The replication slots of an earlier run are still in use.");
        }
        // PostgreSQL tells nobody when a slot's reader has gone, so it is asked again.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client
        .batch_execute(&format!(
            "set client_min_messages = warning;
             drop publication if exists {NAME};
             drop schema if exists {NAME} cascade;
             do $$ begin
                 if exists (select from pg_roles where rolname = '{ROLE}') then
                     drop owned by {ROLE};
                     drop role {ROLE};
                 end if;
             end $$;
             reset client_min_messages"
        ))
        .await?;
    Ok(())
}

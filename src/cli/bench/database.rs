//! What the benchmark makes in the database, and takes away again.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::plan::{MEMBERS, Policy, user_id};
use super::process;
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
    let using = using(policy, uid);
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
             create function {NAME}.is_member(org integer) returns boolean
                 language sql stable security definer set search_path = '' as $$
                     select exists (
                         select from {NAME}.members m where m.org_id = org and m.user_id = {uid}
                     )
                 $$;
             alter table {NAME}.rows enable row level security;
             create policy visible on {NAME}.rows for select to {ROLE} using ({using});
             grant usage on schema {NAME} to {ROLE};
             grant select on {NAME}.rows, {NAME}.members to {ROLE};
             create publication {NAME} for table {NAME}.rows;"
        ))
        .await
        .context("The benchmark's tables cannot be made")?;
    if matches!(policy, Policy::Membership | Policy::Helper) {
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

/// Has the log tell the relays where rules change, as the event trigger of `rowcast setup` does.
///
/// # Errors
/// Where the role may not make event triggers.
pub async fn have_ddl_told(client: &Client) -> anyhow::Result<()> {
    for slot in [MEMORY_SLOT, DISK_SLOT] {
        client
            .batch_execute(&format!(
                "create function {NAME}.{slot}_ddl() returns event_trigger language plpgsql as $$
                     begin perform pg_logical_emit_message(true, 'rowcast.ddl', '{slot}'); end
                 $$;
                 create event trigger rowcast_ddl_{slot} on ddl_command_end
                     execute function {NAME}.{slot}_ddl();
                 alter event trigger rowcast_ddl_{slot} enable always"
            ))
            .await
            .context(
                "The event trigger cannot be made; --no-event-trigger measures a relay without it",
            )?;
    }
    Ok(())
}

fn using(policy: Policy, uid: &str) -> String {
    match policy {
        Policy::User => format!("user_id = {uid}"),
        Policy::Membership => {
            format!("org_id in (select org_id from {NAME}.members where user_id = {uid})")
        }
        Policy::Helper => format!("{NAME}.is_member(org_id)"),
        Policy::Open => "true".to_owned(),
    }
}

/// Has PostgreSQL write out what is in memory, so that this does not fall into what is measured next.
/// A user who may not ask for it has to do with PostgreSQL's own times.
///
/// # Errors
/// Where there is no session to be had.
pub async fn checkpoint(url: &Secret) -> anyhow::Result<()> {
    let client = connect(url).await?;
    match client.batch_execute("checkpoint").await {
        Err(error) if error.code() != Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Has somebody else see the rows.
///
/// # Errors
/// Where [`set_up`] has not been there.
pub async fn show_to(client: &Client, policy: Policy) -> anyhow::Result<()> {
    let ours: bool = client
        .query_one(
            "select to_regprocedure('rowcast_bench.uid()') is not null",
            &[],
        )
        .await?
        .get(0);
    let uid = if ours {
        "rowcast_bench.uid()"
    } else {
        "auth.uid()"
    };
    let using = using(policy, uid);
    let alter = format!("alter policy visible on {NAME}.rows using ({using})");
    Ok(client.batch_execute(&alter).await?)
}

/// Makes a replication slot that a program of PostgreSQL's reads.
///
/// # Errors
/// Where it is there already.
pub async fn make_slot(client: &Client, slot: &str) -> anyhow::Result<()> {
    let make = "select pg_create_logical_replication_slot($1, 'pgoutput')";
    client.execute(make, &[&slot]).await?;
    Ok(())
}

/// The process of PostgreSQL's that sends what a slot has.
#[derive(Debug, Clone, Copy)]
pub struct Walsender(u32);

impl Walsender {
    /// CPU time so far, in seconds.
    ///
    /// # Errors
    /// Where it has ended, or is on another machine.
    pub fn cpu_seconds(self) -> anyhow::Result<f64> {
        process::cpu_seconds(self.0).context("The database's processes are not on this machine")
    }
}

/// Waits until somebody reads a slot.
///
/// # Errors
/// Where nobody does after ten seconds.
pub async fn walsender(client: &Client, slot: &str) -> anyhow::Result<Walsender> {
    let read = async || Ok(active(client, slot).await?.map(Walsender));
    until(read, &format!("Nobody reads the replication slot {slot}.")).await
}

/// Waits until nobody reads a slot any more.
///
/// # Errors
/// Where somebody still does after ten seconds.
pub async fn released(client: &Client, slot: &str) -> anyhow::Result<()> {
    let free = async || Ok(active(client, slot).await?.is_none().then_some(()));
    until(
        free,
        &format!("The replication slot {slot} is still in use."),
    )
    .await
}

async fn active(client: &Client, slot: &str) -> anyhow::Result<Option<u32>> {
    let pid = "select active_pid from pg_replication_slots where slot_name = $1";
    let row = client.query_opt(pid, &[&slot]).await?;
    let pid: Option<i32> = row.and_then(|row| row.get(0));
    Ok(pid.map(u32::try_from).transpose()?)
}

/// PostgreSQL tells nobody when a slot's reader comes or goes, so it is asked again.
async fn until<T>(
    there: impl AsyncFn() -> anyhow::Result<Option<T>>,
    else_why: &str,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(it) = there().await? {
            return Ok(it);
        }
        ensure!(Instant::now() < deadline, "{else_why}");
        // PostgreSQL tells nobody when somebody begins or ceases to read a slot.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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

//! Every statement that changes the example's rows, and the journal of those that ran. Values go
//! in as parameters only.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::broadcast;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

/// organisation, user, agent, contact, title
pub(super) const INSERT_TASK: &str = "insert into public.agent_tasks
  (organization_id, user_id, agent_id, contact_id, title)
values ($1::uuid, $2::uuid, $3::uuid, $4::uuid, $5)
returning id::text, status";

/// task, organisation, what happened
pub(super) const ADVANCE_TASK: &str = "update public.agent_tasks
set status = case status when 'pending' then 'in_progress'
                         when 'failed'  then 'pending'
                         else 'completed' end,
    error  = null,
    events = events || jsonb_build_object('at', now(), 'text', $3)
where id = $1::uuid and organization_id = $2::uuid and status <> 'completed'
returning id::text, status";

/// task, organisation
pub(super) const DELETE_TASK: &str = "delete from public.agent_tasks
where id = $1::uuid and organization_id = $2::uuid
returning id::text, status";

/// organisation, what happened
pub(super) const START_OLDEST_TASK: &str = "update public.agent_tasks
set status = 'in_progress',
    events = events || jsonb_build_object('at', now(), 'text', $2)
where id = (select id from public.agent_tasks
            where organization_id = $1::uuid and status = 'pending'
            order by created_at limit 1 for update skip locked)
returning id::text, agent_id::text, contact_id::text";

/// organisation, what happened
pub(super) const NOTE_ON_TASK: &str = "update public.agent_tasks
set events = events || jsonb_build_object('at', now(), 'text', $2)
where id = (select id from public.agent_tasks
            where organization_id = $1::uuid and status = 'in_progress'
              and jsonb_array_length(events) < 8
            order by random() limit 1 for update skip locked)
returning id::text, agent_id::text, contact_id::text";

/// organisation, what happened
pub(super) const COMPLETE_TASK: &str = "update public.agent_tasks
set status = 'completed',
    events = events || jsonb_build_object('at', now(), 'text', $2)
where id = (select id from public.agent_tasks
            where organization_id = $1::uuid and status = 'in_progress'
              and updated_at < now() - interval '2 seconds'
            order by updated_at limit 1 for update skip locked)
returning id::text, agent_id::text, contact_id::text";

/// organisation, why
pub(super) const FAIL_TASK: &str = "update public.agent_tasks
set status = 'failed',
    error  = $2
where id = (select id from public.agent_tasks
            where organization_id = $1::uuid and status = 'in_progress'
              and updated_at < now() - interval '2 seconds'
            order by updated_at limit 1 for update skip locked)
returning id::text, agent_id::text, contact_id::text";

/// organisation
pub(super) const MATCH_AGENTS_TO_WORK: &str = "update public.agents
set status = case status when 'idle' then 'active' else 'idle' end
where organization_id = $1::uuid
  and (status = 'active') <> exists (select from public.agent_tasks
                                     where agent_id = agents.id and status = 'in_progress')
returning id::text, status";

/// organisation; keeps the board small enough to read
pub(super) const DELETE_OLD_TASKS: &str = "delete from public.agent_tasks
where id in (select id from public.agent_tasks
             where organization_id = $1::uuid and status in ('completed', 'failed')
             order by updated_at desc offset 4 limit 1)
returning id::text, status";

/// user, contact, agent, text
pub(super) const INSERT_DRAFT: &str = "insert into public.drafts
  (user_id, contact_id, agent_id, body)
values ($1::uuid, $2::uuid, $3::uuid, $4)
returning id::text, status";

/// user, whether an open draft is approved or rejected
pub(super) const MOVE_DRAFT: &str = "update public.drafts
set status = case status when 'pending' then $2 else 'sent' end
where id = (select id from public.drafts
            where user_id = $1::uuid and status in ('pending', 'approved')
            order by updated_at limit 1 for update skip locked)
returning id::text, status";

/// user
pub(super) const DELETE_OLD_DRAFTS: &str = "delete from public.drafts
where id in (select id from public.drafts
             where user_id = $1::uuid and status in ('sent', 'rejected')
             order by updated_at desc offset 2 limit 1)
returning id::text, status";

/// user, contact, note
pub(super) const INSERT_FOLLOW_UP: &str = "insert into public.follow_ups
  (user_id, contact_id, note, due_at)
values ($1::uuid, $2::uuid, $3, now() + interval '2 days')
returning id::text, status";

/// user, executed or cancelled
pub(super) const CLOSE_FOLLOW_UP: &str = "update public.follow_ups
set status = $2
where id = (select id from public.follow_ups
            where user_id = $1::uuid and status = 'scheduled'
            order by created_at limit 1 for update skip locked)
returning id::text, status";

/// user
pub(super) const DELETE_OLD_FOLLOW_UPS: &str = "delete from public.follow_ups
where id in (select id from public.follow_ups
             where user_id = $1::uuid and status <> 'scheduled'
             order by updated_at desc offset 2 limit 1)
returning id::text, status";

/// A statement that ran, as the page shows it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Ran {
    /// `worker`, or the person whose button it was.
    pub(super) by: &'static str,
    pub(super) sql: &'static str,
    pub(super) parameters: Vec<String>,
    /// How many rows it changed.
    pub(super) rows: usize,
    /// The row that it changed first, or nothing.
    pub(super) id: Option<String>,
    /// When PostgreSQL had confirmed the commit, in milliseconds since 1970-01-01 00:00 UTC.
    pub(super) committed_at: u64,
    pub(super) took_ms: f64,
}

/// Tells whoever watches which statements ran. Nobody waits for a watcher: one that falls behind
/// misses the oldest.
#[derive(Debug, Clone)]
pub(super) struct Journal {
    entries: broadcast::Sender<Arc<Ran>>,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self {
            entries: broadcast::channel(64).0,
        }
    }

    pub(super) fn watch(&self) -> broadcast::Receiver<Arc<Ran>> {
        self.entries.subscribe()
    }

    /// Runs one statement in its own transaction and writes it down if it changed anything.
    /// Returns the changed rows; their first column is an id.
    pub(super) async fn run(
        &self,
        client: &Client,
        by: &'static str,
        sql: &'static str,
        parameters: &[&str],
    ) -> Result<(Vec<Row>, Arc<Ran>), tokio_postgres::Error> {
        // All parameters travel as text and are cast in the statement, which then reads the same
        // on the page as it would in psql.
        let typed: Vec<(&(dyn ToSql + Sync), Type)> = parameters
            .iter()
            .map(|value| (value as &(dyn ToSql + Sync), Type::TEXT))
            .collect();
        let started = Instant::now();
        let rows = client.query_typed(sql, &typed).await?;
        let took_ms = started.elapsed().as_secs_f64() * 1000.0;
        let id = match rows.first() {
            Some(row) => Some(row.try_get(0)?),
            None => None,
        };
        let ran = Arc::new(Ran {
            by,
            sql,
            parameters: parameters.iter().map(|&value| value.to_owned()).collect(),
            rows: rows.len(),
            id,
            committed_at: now_ms(),
            took_ms,
        });
        if !rows.is_empty() {
            // Fails only where nobody watches.
            self.entries.send(Arc::clone(&ran)).ok();
        }
        Ok((rows, ran))
    }
}

/// The time in milliseconds since 1970-01-01 00:00 UTC.
pub(super) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

//! The agents of the example: a writer that knows nothing of the relay and only changes rows.

use std::time::Duration;

use rand::Rng;
use rand::seq::IndexedRandom;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::statements::{self, Journal};
use super::{PEOPLE, Person, database};
use crate::retry::Backoff;

const WORKER: &str = "worker";

const STARTED: [&str; 3] = ["Picked up", "Reading the notes", "Looking at the calendar"];
const PROGRESS: [&str; 6] = [
    "Found two earlier messages",
    "Asked a colleague agent",
    "Compared three options",
    "Wrote a first version",
    "Checked the numbers",
    "Waiting for an answer",
];
const DONE: [&str; 3] = ["Done", "Done, and noted", "Finished without questions"];
const REASONS: [&str; 4] = [
    "the mail server did not answer",
    "the address is incomplete",
    "the calendar is full",
    "the document could not be read",
];
const DRAFTS: [&str; 4] = [
    "Thank you for your message, here is what we found",
    "A short summary of our visit",
    "Two dates that would work for us",
    "Your question about the quote",
];
const NOTES: [&str; 4] = [
    "Ask whether everything arrived",
    "Call about the open question",
    "Send the photos",
    "Check that the date still works",
];

/// Makes about `pace` changes a second until `stop`. A lost connection is made again.
pub(super) async fn run(url: String, pace: f64, journal: Journal, stop: CancellationToken) {
    tokio::select! {
        () = keep_working(&url, pace, &journal) => {}
        () = stop.cancelled() => {}
    }
}

async fn keep_working(url: &str, pace: f64, journal: &Journal) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        match database::connect(url).await {
            Ok(client) => {
                backoff.reset();
                let Err(error) = work(&client, pace, journal).await;
                tracing::warn!(%error, "the demo's worker lost its database and tries again");
            }
            Err(error) => tracing::warn!("the demo's worker cannot connect: {error:#}"),
        }
        tokio::time::sleep(backoff.after_failure()).await;
    }
}

async fn work(
    client: &Client,
    pace: f64,
    journal: &Journal,
) -> Result<std::convert::Infallible, tokio_postgres::Error> {
    loop {
        for person in &PEOPLE {
            let chore = Chore {
                client,
                journal,
                person,
            };
            let mut changes = chore.step().await?;
            // What follows from the step: agents whose work began or ended, and old rows.
            changes += chore.tidy().await?;
            // Sleeping per change and not per step keeps the pace whatever a step did; the jitter
            // keeps it from looking like a metronome.
            let spread = rand::rng().random_range(0.6..1.4);
            let changes = u32::try_from(changes.max(1)).unwrap_or(u32::MAX);
            tokio::time::sleep(Duration::from_secs_f64(f64::from(changes) * spread / pace)).await;
        }
    }
}

/// One organisation's turn.
struct Chore<'a> {
    client: &'a Client,
    journal: &'a Journal,
    person: &'static Person,
}

impl Chore<'_> {
    async fn ran(
        &self,
        sql: &'static str,
        parameters: &[&str],
    ) -> Result<usize, tokio_postgres::Error> {
        let (rows, _) = self
            .journal
            .run(self.client, WORKER, sql, parameters)
            .await?;
        Ok(rows.len())
    }

    /// Does one thing at random; where there is nothing of that kind to do, starts a task, and
    /// where none waits, creates one. Returns how many rows changed.
    async fn step(&self) -> Result<usize, tokio_postgres::Error> {
        let organization = self.person.organization_id;
        let user = self.person.user_id;
        let die = rand::rng().random_range(0..100_u32);
        let changed = match die {
            0..26 => {
                self.ran(statements::NOTE_ON_TASK, &[organization, pick(&PROGRESS)])
                    .await?
            }
            26..48 => {
                self.ran(statements::COMPLETE_TASK, &[organization, pick(&DONE)])
                    .await?
            }
            48..54 => {
                self.ran(statements::FAIL_TASK, &[organization, pick(&REASONS)])
                    .await?
            }
            54..70 => 0,
            70..76 => self.create_task().await?,
            76..80 => {
                let agent = pick(&self.person.agents);
                let contact = pick(&self.person.contacts);
                self.ran(
                    statements::INSERT_DRAFT,
                    &[user, contact, agent, pick(&DRAFTS)],
                )
                .await?
            }
            80..90 => {
                let verdict = pick(&["approved", "approved", "rejected"]);
                self.ran(statements::MOVE_DRAFT, &[user, verdict]).await?
            }
            90..94 => {
                let contact = pick(&self.person.contacts);
                self.ran(statements::INSERT_FOLLOW_UP, &[user, contact, pick(&NOTES)])
                    .await?
            }
            _ => {
                let end = pick(&["executed", "executed", "cancelled"]);
                self.ran(statements::CLOSE_FOLLOW_UP, &[user, end]).await?
            }
        };
        if changed > 0 {
            return Ok(changed);
        }
        let started = self
            .ran(
                statements::START_OLDEST_TASK,
                &[organization, pick(&STARTED)],
            )
            .await?;
        if started > 0 {
            return Ok(started);
        }
        self.create_task().await
    }

    async fn create_task(&self) -> Result<usize, tokio_postgres::Error> {
        self.ran(
            statements::INSERT_TASK,
            &[
                self.person.organization_id,
                self.person.user_id,
                pick(&self.person.agents),
                pick(&self.person.contacts),
                pick(&self.person.titles),
            ],
        )
        .await
    }

    async fn tidy(&self) -> Result<usize, tokio_postgres::Error> {
        let organization = self.person.organization_id;
        let user = self.person.user_id;
        let mut changed = self
            .ran(statements::MATCH_AGENTS_TO_WORK, &[organization])
            .await?;
        changed += self
            .ran(statements::DELETE_OLD_TASKS, &[organization])
            .await?;
        changed += self.ran(statements::DELETE_OLD_DRAFTS, &[user]).await?;
        changed += self.ran(statements::DELETE_OLD_FOLLOW_UPS, &[user]).await?;
        Ok(changed)
    }
}

/// One of a list that is never empty.
fn pick(choices: &[&'static str]) -> &'static str {
    choices
        .choose(&mut rand::rng())
        .copied()
        .unwrap_or_default()
}

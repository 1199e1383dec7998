//! Running the steps, and saying what was done.

use std::process::ExitCode;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::print::{apart_text, said};
use super::script::{Kind, Step};
use super::{EXIT_FAILURE, EXIT_UNAVAILABLE, Fault};

/// What came of the steps so far.
#[derive(Default)]
pub(super) struct Outcome {
    apart: Vec<Step>,
    /// Whether something that was asked for is not done.
    refused: bool,
}

/// What came of one statement.
enum Ran {
    /// Done, with what it returned: the sentences that a whole file ends with.
    Done(Vec<String>),
    /// This login may not.
    NotAllowed(String),
    /// Something still uses what would be dropped.
    Used(String),
}

impl Outcome {
    /// A file that is run as it is, in one transaction.
    pub(super) async fn whole(
        &mut self,
        client: &Client,
        path: &str,
        step: &Step,
    ) -> Result<(), Fault> {
        client.batch_execute("begin").await?;
        match attempt(client, step).await {
            Ok(Ran::Done(left_out)) => {
                client.batch_execute("commit").await?;
                if left_out.is_empty() {
                    println!("  all of it is there");
                }
                for sentence in left_out {
                    println!("  Note: {sentence}.");
                }
            }
            Ok(Ran::NotAllowed(why) | Ran::Used(why)) => {
                client.batch_execute("rollback").await?;
                println!("  left to an administrator: {why}");
                self.apart.push(Step {
                    kind: Kind::Administrator,
                    word: format!("{path} as a whole: {why}."),
                    reason: String::new(),
                    sql: format!("\\i {path}"),
                });
            }
            Err(fault) => {
                client.batch_execute("rollback").await?;
                return Err(fault);
            }
        }
        Ok(())
    }

    /// Steps in one transaction: all of those that this login may run, or none.
    pub(super) async fn together(
        &mut self,
        client: &Client,
        steps: Vec<Step>,
    ) -> Result<(), Fault> {
        client.batch_execute("begin").await?;
        for step in self.sort_out(steps) {
            client.batch_execute("savepoint step").await?;
            match attempt(client, &step).await {
                Ok(ran) => {
                    if !matches!(ran, Ran::Done(_)) {
                        client.batch_execute("rollback to savepoint step").await?;
                    }
                    self.settle(step, ran);
                }
                Err(fault) => {
                    client.batch_execute("rollback").await?;
                    return Err(Fault {
                        sentence: format!("{}; nothing of this part was done", fault.sentence),
                        ..fault
                    });
                }
            }
        }
        client.batch_execute("commit").await?;
        Ok(())
    }

    /// Steps each in its own transaction, so that no lock outlives its statement.
    pub(super) async fn one_by_one(
        &mut self,
        client: &Client,
        steps: Vec<Step>,
    ) -> Result<(), Fault> {
        for step in self.sort_out(steps) {
            let ran = attempt(client, &step).await?;
            self.settle(step, ran);
        }
        Ok(())
    }

    /// Keeps for the end what others must run, before what is kept already: the clients' roles come
    /// before the grants to them.
    pub(super) fn apart(&mut self, steps: Vec<Step>) {
        self.apart.splice(0..0, steps);
    }

    /// Says the sentences, keeps what is for others, and returns what is to be run.
    fn sort_out(&mut self, steps: Vec<Step>) -> Vec<Step> {
        if steps
            .iter()
            .all(|step| matches!(step.kind, Kind::Administrator | Kind::Advice))
        {
            println!("  nothing to do");
        }
        let mut to_run = Vec::new();
        for step in steps {
            match step.kind {
                Kind::Run => to_run.push(step),
                Kind::Administrator | Kind::Advice => self.apart.push(step),
                Kind::Note => println!("  {}", said(&step)),
                Kind::Refused => {
                    println!("  {}", said(&step));
                    self.refused = true;
                }
            }
        }
        to_run
    }

    fn settle(&mut self, step: Step, ran: Ran) {
        match ran {
            Ran::Done(_) => {
                // What PostgreSQL keeps of a password lets it be guessed at leisure.
                let shown = match step.sql.split_once(" password 'SCRAM") {
                    Some((statement, _)) => format!("{statement} password '…';"),
                    None => step.sql,
                };
                for line in shown.lines() {
                    println!("  {line}");
                }
            }
            Ran::NotAllowed(why) => self.apart.push(Step {
                kind: Kind::Administrator,
                word: format!("PostgreSQL says: {why}."),
                ..step
            }),
            Ran::Used(why) => {
                println!("  KEPT, as it is in use: {}", step.sql);
                for line in why.lines() {
                    println!("    {line}");
                }
                self.refused = true;
            }
        }
    }

    /// Says what is left to others, and how it ended.
    pub(super) fn finish(self) -> ExitCode {
        if let Some(text) = apart_text(&self.apart) {
            println!("\n{text}");
        }
        let administrator = self
            .apart
            .iter()
            .any(|step| step.kind == Kind::Administrator);
        if self.refused {
            ExitCode::from(EXIT_FAILURE)
        } else if administrator {
            ExitCode::from(EXIT_UNAVAILABLE)
        } else {
            ExitCode::SUCCESS
        }
    }
}

async fn attempt(client: &Client, step: &Step) -> Result<Ran, Fault> {
    let error = match client.simple_query(&step.sql).await {
        Ok(messages) => {
            let sentences = messages.iter().filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            });
            return Ok(Ran::Done(sentences.collect()));
        }
        Err(error) => error,
    };
    let Some(said) = error.as_db_error() else {
        return Err(error.into());
    };
    let message = said.message().to_owned();
    match *said.code() {
        SqlState::INSUFFICIENT_PRIVILEGE => Ok(Ran::NotAllowed(message)),
        SqlState::DEPENDENT_OBJECTS_STILL_EXIST => {
            // Here the detail names objects, not values.
            Ok(Ran::Used(format!(
                "{message}\n{}",
                said.detail().unwrap_or_default()
            )))
        }
        SqlState::LOCK_NOT_AVAILABLE => Err(Fault::unavailable(format!(
            "somebody holds a lock for longer than setup waits: try again later ({})",
            step.sql
        ))),
        _ => Err(Fault {
            code: EXIT_FAILURE,
            sentence: match step.reason.as_str() {
                // A whole file.
                "" => format!("PostgreSQL says: {message}"),
                _ => format!("PostgreSQL says: {message} ({})", step.sql),
            },
        }),
    }
}

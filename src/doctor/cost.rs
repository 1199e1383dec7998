//! What is asked of PostgreSQL instead of compiled, and what a question costs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::server::Facts;
use super::table::{Seen, Tables};
use super::{Finding, Severity};
use crate::config::Config;
use crate::pg::quote_identifier;
use crate::policy::access::Rules;
use crate::policy::body::ALWAYS_RAISES;
use crate::policy::explain::by_name;

/// A question that takes longer holds up those behind it.
const SLOW: Duration = Duration::from_millis(20);

/// How long one trial may take.
const LIMIT: Duration = Duration::from_secs(1);

/// How long all of them may.
const ALL: Duration = Duration::from_secs(5);

pub(super) async fn findings(
    client: &Client,
    tables: &Tables<'_>,
    facts: &Facts,
    config: &Config,
) -> Vec<Finding> {
    let began = Instant::now();
    let mut found = Vec::new();
    for seen in &tables.seen {
        let mut reasons: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, reason) in seen
            .accesses
            .iter()
            .flat_map(|(_, access)| &access.asked_because)
        {
            reasons.insert(name, reason);
        }
        if reasons.is_empty() {
            continue;
        }
        let tried = if began.elapsed() < ALL {
            trial(client, seen).await
        } else {
            Trial::None
        };
        let astray = reasons
            .values()
            .find(|reason| reason.contains(ALWAYS_RAISES));
        let tried = match (tried, astray) {
            (tried @ (Trial::Broken(_) | Trial::Unfinished), _) | (tried, None) => tried,
            // The empty row did not come to it.
            (_, Some(reason)) => Trial::Broken((*reason).to_owned()),
        };
        let mut reasons: Vec<String> = reasons
            .iter()
            .map(|(policy, reason)| format!("{policy} ({reason})"))
            .collect();
        // Where they have no names, the numbers stay.
        let _named = by_name(client, reasons.iter_mut().collect()).await;
        let name = tables.names.of(seen.table);
        found.push(asked(&name, &reasons, &tried, (facts, config)));
    }
    found
}

/// What came of a question about one empty row.
enum Trial {
    /// There is none to be asked, or it could not be.
    None,
    Took(Duration),
    /// It was broken off after [`LIMIT`].
    Unfinished,
    /// Something that the policies name is not there, or not to be had: that is so for every row.
    Broken(String),
    /// An error that may be the empty row's doing.
    Raised(String),
}

async fn trial(client: &Client, seen: &Seen<'_>) -> Trial {
    let asked = seen
        .accesses
        .iter()
        .find_map(|(role, access)| match &access.rules {
            Rules::Judged {
                asked: true,
                query: Some(query),
                ..
            } => Some((*role, query)),
            _ => None,
        });
    let Some((role, query)) = asked else {
        return Trial::None;
    };
    let Ok(statement) = client.prepare(query).await else {
        return Trial::None;
    };
    let limit = LIMIT.as_millis();
    // As the relay asks: in a transaction that is given up, under the client's role and claims.
    client
        .batch_execute(&format!(
            "begin read only; set local statement_timeout = {limit}; set local role {}",
            quote_identifier(role)
        ))
        .await
        .ok();
    let claims = serde_json::json!({
        "role": role,
        "sub": "00000000-0000-4000-8000-000000000000"
    });
    let mut best = Trial::None;
    for _ in 0..3 {
        let settled = client
            .execute(
                "select pg_catalog.set_config('request.jwt.claims', $1, true)",
                &[&claims.to_string()],
            )
            .await;
        if settled.is_err() {
            break;
        }
        let began = Instant::now();
        let answered = client.query(&statement, &[&vec!["{}"]]).await;
        let took = began.elapsed();
        match answered {
            Ok(_) => {
                best = match best {
                    Trial::Took(known) => Trial::Took(known.min(took)),
                    _ => Trial::Took(took),
                };
            }
            Err(error) => {
                best = match error.as_db_error() {
                    Some(said) if said.code().code() == "57014" => Trial::Unfinished,
                    // Of names and rights, not of values; of a setting that is not there another
                    // finding tells.
                    Some(said) if is_broken(said.code().code()) => {
                        Trial::Broken(said.message().to_owned())
                    }
                    Some(said) => Trial::Raised(said.message().to_owned()),
                    None => Trial::None,
                };
                break;
            }
        }
    }
    // The session is of no use otherwise, and the next statement says so.
    let _ended = client.batch_execute("rollback").await;
    best
}

fn is_broken(sqlstate: &str) -> bool {
    // A materialized view that has never been filled is there, and not to be read.
    sqlstate.starts_with("42") && sqlstate != "42704" || sqlstate == "55000"
}

fn asked(
    name: &str,
    reasons: &[String],
    tried: &Trial,
    (facts, config): (&Facts, &Config),
) -> Finding {
    let cost = match tried {
        Trial::Took(took) => format!(
            "a question took {:.1} ms here, {:.1} ms of it the way to the database and back",
            took.as_secs_f64() * 1e3,
            facts.round_trip.min(*took).as_secs_f64() * 1e3
        ),
        Trial::Unfinished => format!("a question was not done after {} s", LIMIT.as_secs()),
        Trial::Broken(said) => {
            return Finding::error(
                "policy_broken",
                format!(
                    "policies of {name} raise an error in PostgreSQL, which hides all rows that it \
                     comes to that for: {said}; they are: {}",
                    reasons.join("; ")
                ),
            )
            .table(name)
            .advice("Correct the policies, or the functions that they call.");
        }
        Trial::Raised(said) => format!(
            "what a question costs could not be tried, as PostgreSQL raises an error at an empty row \
             ({said}): rows at which it does are hidden"
        ),
        Trial::None => "what a question costs could not be tried".to_owned(),
    };
    let slow = match tried {
        Trial::Took(took) => *took >= SLOW.min(config.ask_timeout),
        Trial::Unfinished => true,
        Trial::None | Trial::Broken(_) | Trial::Raised(_) => false,
    };
    let (code, severity) = if slow {
        ("policy_slow", Severity::Warning)
    } else {
        ("policy_asked", Severity::Note)
    };
    Finding::note(
        code,
        format!(
            "policies of {name} are asked of PostgreSQL for each change and each user in question: {}; \
             {cost}",
            reasons.join("; ")
        ),
    )
    .of_severity(severity)
    .table(name)
    .advice(if slow {
        "Give the tables that the policies read an index over what they compare, or write the policies \
         so that they are compiled (docs/policies.md)."
    } else {
        "Policies that are compiled cost no question: docs/policies.md says which."
    })
}

//! What PostgreSQL makes of a filter, asked once when it is subscribed: whether there is such an
//! operator, whether its value is one, whether the role may use it. So nothing of that can fail at
//! each row later.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};
use tracing::debug;

use crate::pg::connect::Database;
use crate::pg::{quote_identifier, quote_literal};
use crate::subscription::{Condition, matcher};

/// How long PostgreSQL may take to understand a filter. A regular expression can be slow to
/// compile, and clients choose them.
const TIMEOUT: Duration = Duration::from_secs(1);

/// One condition on one column, to be read by PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Probe {
    /// The condition, as worded by the client.
    pub condition: Condition,
    /// The column's type without domains, as SQL, without a modifier.
    pub type_sql: String,
    /// The column's collation as SQL, where it is not the default one.
    pub collation_sql: Option<String>,
    /// Where PostgreSQL is to decide the condition on rows: how. Otherwise only its values are
    /// read.
    pub asked: Option<Asked>,
}

/// How PostgreSQL is to decide a condition on rows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Asked {
    /// The operator's schema.
    pub schema: String,
    /// The role that it is to be decided under; `None` for the relay's own login.
    pub role: Option<String>,
}

/// What PostgreSQL says to a [`Probe`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// The values in their type's own text output.
    Values(Vec<Option<String>>),
    /// It does not take it.
    Refused {
        /// SQLSTATE.
        code: String,
        /// PostgreSQL's words.
        message: String,
    },
}

impl Reading {
    /// Whether the same words mean the same at another time.
    #[must_use]
    pub fn lasts(probe: &Probe) -> bool {
        // What date and time types take for a moment.
        let moments = ["now", "today", "tomorrow", "yesterday"];
        // The offset of a zone by name, as in `10:00 MSK`, can be that of the day on which it is
        // read. Letters of ISO's own format (`T`, `Z`) name no such zone, and a pattern is no time.
        let zoned = |text: &str| {
            let mut letters = text.chars().filter(char::is_ascii_alphabetic);
            text.contains(':') && letters.any(|letter| !matches!(letter, 't' | 'z'))
        };
        let pattern = probe.condition.operator.takes_pattern();
        probe.condition.values.iter().flatten().all(|text| {
            let text = text.to_ascii_lowercase();
            let moment = moments.iter().any(|moment| text.contains(moment));
            !moment && (pattern || !zoned(&text))
        })
    }
}

pub(super) type Inquiry = (Probe, oneshot::Sender<Option<Reading>>);

/// The session that filters are read over, connected to when it is first needed.
pub(super) struct Prober {
    database: Database,
    client: Option<Client>,
}

impl Prober {
    pub(super) const fn new(database: Database) -> Self {
        Self {
            database,
            client: None,
        }
    }

    /// Answers; with `None` where there was trouble other than the filter.
    pub(super) async fn serve(&mut self, (probe, done): Inquiry) {
        if done.is_closed() {
            return;
        }
        let reading = match self.read(&probe).await {
            Ok(reading) => Some(reading),
            Err(error) => {
                debug!(error, "a filter could not be read");
                self.client = None;
                None
            }
        };
        // Whoever asked may be gone.
        let _gone = done.send(reading);
    }

    async fn read(&mut self, probe: &Probe) -> Result<Reading, String> {
        if self.client.as_ref().is_none_or(Client::is_closed) {
            let client = self.database.connect("rowcast filter").await;
            let client = client.map_err(|error| error.to_string())?;
            let timeout = format!("set statement_timeout = {}", TIMEOUT.as_millis());
            client.batch_execute(&timeout).await.map_err(words)?;
            self.client = Some(client);
        }
        let client = self.client.as_ref().ok_or("there is no connection")?;
        let values = &probe.condition.values;
        let values = match &probe.asked {
            None => outputs(client, &probe.type_sql, values).await,
            Some(asked) => {
                let values = check(client, probe, asked).await;
                client.batch_execute("rollback").await.map_err(words)?;
                values
            }
        };
        match values {
            Ok(values) => Ok(Reading::Values(values)),
            Err(error) => refusal(probe, &error).ok_or_else(|| words(error)),
        }
    }
}

fn words(error: tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(
        || error.to_string(),
        // Without the message, which may hold the client's value.
        |refused| format!("SQLSTATE {}", refused.code().code()),
    )
}

/// PostgreSQL's refusal, where it is the filter that is refused.
fn refusal(probe: &Probe, error: &tokio_postgres::Error) -> Option<Reading> {
    let refused = error.as_db_error()?;
    let code = refused.code().code();
    let slow = *refused.code() == SqlState::QUERY_CANCELED;
    if slow && !probe.condition.operator.takes_pattern() {
        // Another one may find PostgreSQL less busy.
        return None;
    }
    let ours = ["22", "42", "0A", "2B", "54"];
    (slow || ours.iter().any(|class| code.starts_with(class))).then(|| Reading::Refused {
        code: code.to_owned(),
        message: if slow {
            format!(
                "PostgreSQL did not understand it within {} s",
                TIMEOUT.as_secs()
            )
        } else {
            refused.message().to_owned()
        },
    })
}

/// Reads a condition that PostgreSQL is to decide, in a transaction that it leaves open.
async fn check(
    client: &Client,
    probe: &Probe,
    asked: &Asked,
) -> Result<Vec<Option<String>>, tokio_postgres::Error> {
    let Probe {
        condition,
        type_sql,
        collation_sql,
        ..
    } = probe;
    let collate = collation_sql
        .as_ref()
        .map_or_else(String::new, |name| format!(" collate {name}"));
    let held = |sample: &str, condition: &str| {
        format!(
            "select {condition} from (select {sample}::{type_sql}{collate} as {}) as sample",
            quote_identifier(&probe.condition.column)
        )
    };
    client.batch_execute("begin").await?;
    // Which type the operator takes on its right, the way PostgreSQL resolves an untyped literal.
    let mut taken = None;
    if let Some(symbol) = condition.operator.symbol() {
        let untyped = format!(
            "{} operator({}.{symbol}) $1",
            quote_identifier(&condition.column),
            quote_identifier(&asked.schema)
        );
        let statement = client.prepare(&held("null", &untyped)).await?;
        taken = statement.params().first().cloned();
    }
    let pattern = condition.operator.takes_pattern();
    let values = match taken.filter(|_| !pattern) {
        Some(taken) => {
            let (schema, name) = (quote_identifier(taken.schema()), taken.name());
            let taken = format!("{schema}.{}", quote_identifier(name));
            outputs(client, &taken, &condition.values).await?
        }
        None => condition.values.clone(),
    };
    // Once for real: whether the role may execute it, whether the pattern is one. Not with NULL,
    // for which nothing is executed.
    let first = values.iter().flatten().next();
    let sample = match first {
        Some(_) if pattern => "''".to_owned(),
        Some(text) => quote_literal(text),
        None => "null".to_owned(),
    };
    // Named under the relay's own login: the role need not be able to use the type's schema.
    let question = held(&sample, &matcher::sql(condition, &asked.schema, &values));
    let statement = client.prepare(&question).await?;
    if let Some(role) = &asked.role {
        let become_client = format!("set local role {}", quote_identifier(role));
        client.batch_execute(&become_client).await?;
    }
    client.query(&statement, &[]).await?;
    Ok(values)
}

/// Values as a type's own text output. Read by the type's input function, as a literal is.
async fn outputs(
    client: &Client,
    type_sql: &str,
    values: &[Option<String>],
) -> Result<Vec<Option<String>>, tokio_postgres::Error> {
    let known: Vec<String> = values
        .iter()
        .flatten()
        // Not a cast to text: that of a boolean is `true`, where the stream has `t`.
        .map(|text| {
            format!(
                "pg_catalog.format('%s', {}::{type_sql})",
                quote_literal(text)
            )
        })
        .collect();
    let messages = client
        .simple_query(&format!("select {}", known.join(", ")))
        .await?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let mut places = 0..known.len();
    let mut output = || row?.get(places.next()?).map(str::to_owned);
    let output = |value: &Option<String>| value.as_ref().and_then(|_| output());
    Ok(values.iter().map(output).collect())
}

//! Whether a client sees a row, which policies decide that, and by which values.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::{Client, SimpleQueryMessage};

use super::Trouble;
use super::report::{Judged, Looked, Row};
use crate::auth::Principal;
use crate::change::{self, Relation, RowBuilder, Value};
use crate::config::Config;
use crate::lookup::{Lookups, Wanted};
use crate::pg::{quote_identifier, quote_literal};
use crate::policy::Verdict;
use crate::policy::access::{Access, Rules};
use crate::policy::ask::parts::asks;
use crate::policy::ask::sitting::{Sitting, Unanswered};
use crate::policy::ask::{Answer, image};
use crate::policy::catalog::{Catalog, Policy, Table};
use crate::policy::check::copy::{Copied, copy};
use crate::policy::check::{disagrees, relation};
use crate::policy::explain::{Explained, deciding, explain};
use crate::policy::security_applies;

/// Why something that is compiled is undecided for a row.
const OPEN: &str = "what is compiled leaves it open for this row: which of several rows is the first, \
     the case of letters beyond ASCII, or a time too near to now";

/// PostgreSQL's codes for a statement that took too long, and for a lock that was not to be had.
const BROKEN_OFF: &str = "57014";
const LOCKED: &str = "55P03";

/// Rows of a table that is looked into; a larger one is not copied.
const COPIED: usize = 100_000;

/// Rows of such tables that are shown.
const SHOWN: usize = 5;

/// What PostgreSQL says of something under the client's role and claims.
enum Said {
    Yes,
    No,
    /// With its code, and its message where it may be shown.
    Error(String, Option<String>),
    /// It could not be asked.
    Unknown(String),
}

impl Said {
    /// The same in the words for a single policy.
    const fn of_a_policy(&self) -> &'static str {
        match self {
            Self::Yes => "true",
            Self::No => "not true",
            Self::Error(..) => "error",
            Self::Unknown(_) => "unknown",
        }
    }
}

pub(super) async fn judge(
    client: &Client,
    (catalog, table): (&Catalog, &Arc<Table>),
    principal: &Principal,
    key: &str,
    config: &Config,
) -> Result<Row, Trouble> {
    let ancestors = table.ancestors.iter();
    let mut ancestors = ancestors.filter_map(|oid| catalog.tables.get(oid));
    if let Some(root) = ancestors.find(|one| one.row_security || !one.rules.is_empty()) {
        let sentence = format!(
            "{} is a partition, and the policies of {} hold for its rows as well: ask about that.",
            table.sql_name(),
            root.sql_name()
        );
        return Err(Trouble::Usage(sentence));
    }
    let key = condition(table, key)?;
    // One snapshot for all of it: the row may be changing.
    client
        .batch_execute(&format!(
            "begin isolation level repeatable read; set local statement_timeout = {}; \
             set local lock_timeout = '1s'",
            config.ask_timeout.as_millis().max(1)
        ))
        .await?;
    let judged = judged(client, (catalog, table), principal, &key, config).await;
    client.batch_execute("rollback").await?;
    judged
}

async fn judged(
    client: &Client,
    (catalog, table): (&Catalog, &Arc<Table>),
    principal: &Principal,
    key: &str,
    config: &Config,
) -> Result<Row, Trouble> {
    let role: &str = &principal.role;
    let (relation, row) = (relation(table), read(client, table, key).await?);
    let sql = format!(
        "select 1 from {} where {key}",
        own_rows(client, table).await?
    );
    let access = Access::new(catalog, table, role);
    let rights = table.rights.iter().find(|one| one.role == role);
    let open = rights.is_some_and(|rights| !security_applies(catalog, table, rights));
    let lacks = config.require.lacks(table, role);
    let unreadable: Vec<&str> = table
        .columns
        .iter()
        .filter(|column| table.is_key(column) && !access.may_read(&column.name))
        .map(|column| column.name.as_str())
        .collect();
    let refused = matches!(access.rules, Rules::Nothing(_));
    let whole = if unreadable.is_empty() || refused {
        as_client(client, principal, &sql, config.ask_timeout).await?
    } else {
        Said::Unknown(format!(
            "clients of {role} may not SELECT {}, by which a single row is found: what each policy says \
             of it stands below",
            unreadable.join(", ")
        ))
    };
    let policies = table.policies.iter().filter(|policy| {
        !open && rights.is_some_and(|rights| rights.policies.contains(&policy.name))
    });
    let policies: Vec<&Policy> = policies.chain(table.rules_for(role)).collect();
    let explained = explain(catalog, table, &policies, role);
    let mut wanted: Vec<Wanted> = Vec::new();
    for one in explained.iter().flat_map(|one| one.predicate.lookups()) {
        match wanted.iter_mut().find(|known| known.table == one.table) {
            Some(known) => known.merge(one),
            None => wanted.push(one.clone()),
        }
    }
    let copied = copy(client, catalog, &wanted, COPIED).await?;
    // What this login does not read the client may: which policies let it through is no value.
    let mut by_client = HashMap::new();
    if row.is_none() && matches!(whole, Said::Yes) {
        for policy in &policies {
            if let Some(condition) = &policy.condition {
                let sql = format!("{sql} and ({condition})");
                let said = as_client(client, principal, &sql, config.ask_timeout).await?;
                by_client.insert(policy.name.as_str(), said.of_a_policy());
            }
        }
    }
    let known = catalog.roles.get(role);
    let may_ask = known.is_some_and(|known| known.settable);
    let mut sitting = Sitting::new(client).await?;
    let (mut judged, mut alarm) = (Vec::new(), false);
    for one in explained {
        let subject = (catalog, &**table, principal);
        let place = (&relation, row.as_ref());
        let sitting = may_ask.then_some(&mut sitting);
        let (mut one, differs) = judge_one(sitting, subject, one, place, &copied).await?;
        if let Some(said) = by_client.get(one.name.as_str()) {
            one.postgresql = said;
        }
        alarm |= differs;
        judged.push(one);
    }
    // Where PostgreSQL cannot be asked as the client, what is compiled decides all the same.
    let says = |one: &&Judged| match one.postgresql {
        "unknown" if !may_ask => one.relay_says(),
        said => said,
    };
    let ruled_out = names(&judged, |one| !one.permissive && says(one) == "not true");
    // PostgreSQL knows of policies only: a rule's error is none of the statement's.
    let raising = names(&judged, |one| !one.permissive && says(one) == "error");
    // Without row-level security the rules alone let it through.
    let let_through = names(&judged, |one| {
        (one.permissive || open) && says(one) == "true"
    });
    let relay = match &access.rules {
        _ if lacks.is_some() => Some(false),
        Rules::Nothing(_) => Some(false),
        Rules::Everything if judged.is_empty() => Some(true),
        _ => combined(&judged, open),
    };
    let rules = table.rules_for(role).count();
    let by_rules = judged.iter().rev().take(rules);
    let unknown = by_rules.clone().any(|one| one.postgresql == "unknown");
    let by_rules = by_rules.clone().all(|one| one.postgresql == "true");
    let by_rules = (by_rules || !unknown).then_some(by_rules);
    let visible = match (&access.rules, &whole) {
        _ if lacks.is_some() => Some(false),
        (Rules::Nothing(_), _) | (_, Said::No | Said::Error(..)) => Some(false),
        (_, Said::Yes) => by_rules,
        (_, Said::Unknown(_)) if !may_ask => relay,
        (_, Said::Unknown(_)) => None,
    };
    // What PostgreSQL says of an error may quote values, also of tables that this login does not read.
    let whole = match whole {
        Said::Error(code, said) if said.is_some() && !reads_everything(client).await? => {
            Said::Error(code, None)
        }
        other => other,
    };
    let (postgresql, postgresql_says) = match whole {
        Said::Yes => ("visible", None),
        Said::No => ("hidden", None),
        Said::Error(code, said) => {
            let code = format!("SQLSTATE {code}");
            let said = said.map(|said| format!("{said} ({code})"));
            ("error", Some(said.unwrap_or(code)))
        }
        Said::Unknown(said) => ("unknown", Some(said)),
    };
    // Where one part raises an error and another decides, PostgreSQL may raise it or not.
    let beside = postgresql == "error" && relay == Some(true);
    let visible = if beside { Some(true) } else { visible };
    let (decided_by, because) = match (&access.rules, visible) {
        _ if beside => {
            let true_here = names(&judged, |one| one.permissive && one.relay == "true");
            let because = "the relay shows what is true beside an error that PostgreSQL raises";
            (true_here, because.to_owned())
        }
        _ if lacks.is_some() => (Vec::new(), lacks.clone().unwrap_or_default()),
        (Rules::Nothing(reason), _) => (Vec::new(), reason.clone()),
        (_, None) => (
            Vec::new(),
            postgresql_says
                .clone()
                .unwrap_or_else(|| "PostgreSQL could not be asked".to_owned()),
        ),
        (Rules::Everything, Some(true)) => (
            Vec::new(),
            "no row-level security holds for the role".to_owned(),
        ),
        (_, Some(true)) if !may_ask => (
            let_through,
            "these are compiled and let it through".to_owned(),
        ),
        (_, Some(true)) if let_through.is_empty() => (
            Vec::new(),
            "PostgreSQL shows it, and which policy lets it through is not known here".to_owned(),
        ),
        (_, Some(true)) => (let_through, "these let it through".to_owned()),
        (_, Some(false)) if postgresql == "error" => {
            (Vec::new(), "PostgreSQL raises an error".to_owned())
        }
        (_, Some(false)) if row.is_none() && may_ask => {
            let reason = "there is no such row, or neither the client nor this login sees it";
            (Vec::new(), reason.to_owned())
        }
        (_, Some(false)) if !raising.is_empty() => {
            (raising, "these raise an error, which hides it".to_owned())
        }
        (_, Some(false)) if !ruled_out.is_empty() => (ruled_out, "these hide it".to_owned()),
        (_, Some(false)) => (Vec::new(), "no policy lets it through".to_owned()),
    };
    let disagree = relay
        .zip(visible.filter(|_| postgresql != "error"))
        .is_some_and(|(one, other)| one != other);
    Ok(Row {
        role: role.to_owned(),
        readable: row.is_some(),
        visible,
        postgresql,
        postgresql_says,
        decided_by,
        because,
        differs: row.is_some() && (disagree || alarm),
        policies: judged,
    })
}

/// What the relay makes of all of them; `None` where it would ask.
fn combined(judged: &[Judged], open: bool) -> Option<bool> {
    let relay = |one: &&Judged| one.relay;
    let (permissive, restrictive): (Vec<&Judged>, Vec<&Judged>) =
        judged.iter().partition(|one| one.permissive);
    if restrictive
        .iter()
        .map(relay)
        .any(|said| !["true", "undecided"].contains(&said))
    {
        return Some(false);
    }
    let any = open || permissive.iter().map(relay).any(|said| said == "true");
    if !any && permissive.iter().map(relay).all(|said| said != "undecided") {
        return Some(false);
    }
    let known = restrictive.iter().map(relay).all(|said| said == "true");
    (any && known).then_some(true)
}

impl Judged {
    /// What is compiled, in PostgreSQL's words.
    fn relay_says(&self) -> &'static str {
        match self.relay {
            "false" | "null" => "not true",
            "undecided" => "unknown",
            said => said,
        }
    }
}

fn names(judged: &[Judged], wanted: impl Fn(&&Judged) -> bool) -> Vec<String> {
    let found = judged.iter().filter(wanted);
    found.map(|one| one.name.clone()).collect()
}

/// One policy by itself, asked and judged natively, and whether that differs.
async fn judge_one(
    sitting: Option<&mut Sitting<'_>>,
    (catalog, table, principal): (&Catalog, &Table, &Principal),
    explained: Explained<'_>,
    (relation, row): (&Relation, Option<&change::Row>),
    copied: &Copied,
) -> Result<(Judged, bool), Trouble> {
    let policy = explained.policy;
    let mut judged = Judged {
        name: policy.name.clone(),
        permissive: policy.permissive,
        postgresql: "unknown",
        relay: "undecided",
        undecided_because: None,
        values: BTreeMap::new(),
        lookups: Vec::new(),
    };
    let Some(row) = row else {
        return Ok((judged, false));
    };
    if policy.tree.is_none() {
        // Only what is written is checked: it shows no row.
        (judged.postgresql, judged.relay) = ("not true", "false");
        return Ok((judged, false));
    }
    let asked = asks(table, policy);
    let needs: Vec<&str> = image::needs(&asked)
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    let wanted = |place: usize| {
        let column = relation.columns.get(place);
        column.is_some_and(|column| needs.contains(&&*column.name))
    };
    let image = image::of(relation, row, wanted);
    let query = image::query(std::slice::from_ref(&asked)).into();
    let who = (&*principal.role, principal.claims.as_json());
    let answer = match sitting {
        Some(sitting) => match sitting.ask(&query, who, &[&image]).await {
            Ok(answers) => answers.first().copied().unwrap_or(Answer::Failed),
            Err(Unanswered::Broken(problem)) => return Err(Trouble::Database(problem)),
            Err(Unanswered::Slow | Unanswered::Refused(_)) => Answer::Failed,
        },
        // Refused would be the role, which says nothing of the policy.
        None => Answer::Failed,
    };
    judged.postgresql = match answer {
        Answer::Visible => "true",
        Answer::Hidden => "not true",
        Answer::Raised => "error",
        Answer::TimedOut | Answer::Failed => "unknown",
    };
    let mut differs = false;
    let missing = copied.lacks(explained.predicate.lookups());
    let missing = missing.map(str::to_owned);
    let predicate = Arc::new(explained.predicate);
    if let Some(bound) = predicate.bind(relation) {
        let projection = predicate.project(principal);
        let verdict = bound.read(row, &copied.lookups).judge(&projection);
        judged.relay = match verdict {
            Verdict::True => "true",
            Verdict::False => "false",
            Verdict::Null => "null",
            Verdict::Error => "error",
            Verdict::Undecided => "undecided",
        };
        differs = disagrees(&predicate, verdict, answer);
        if verdict == Verdict::Undecided {
            let reason = missing.or_else(|| explained.reasons.first().cloned());
            judged.undecided_because = Some(reason.unwrap_or_else(|| OPEN.to_owned()));
        } else {
            let mut own = Lookups::default();
            for wanted in predicate.lookups() {
                if let Some(mirror) = copied.lookups.get(wanted.table) {
                    own.put(wanted.table, mirror.clone());
                }
            }
            let judge = |lookups: &Lookups| bound.read(row, lookups).judge(&projection);
            let rows = deciding(&own, judge).into_iter().take(SHOWN);
            let named = |oid| catalog.tables.get(&oid).map(|table| table.sql_name());
            judged.lookups = rows
                .map(|row| Looked {
                    table: named(row.table).unwrap_or_else(|| row.table.to_string()),
                    values: row.values.into_iter().collect(),
                })
                .collect();
        }
    }
    for name in &explained.columns {
        let value = relation.position(name).and_then(|place| row.get(place));
        let value = match value {
            Some(Value::Text(text)) => Some(text.to_owned()),
            _ => None,
        };
        judged.values.insert(name.clone(), value);
    }
    Ok((judged, differs))
}

impl From<Unanswered> for Trouble {
    fn from(error: Unanswered) -> Self {
        Self::Database(error.to_string())
    }
}

/// The key as a condition.
fn condition(table: &Table, key: &str) -> Result<String, Trouble> {
    let columns: Vec<&str> = table
        .key
        .iter()
        .filter_map(|number| table.columns.iter().find(|column| column.number == *number))
        .map(|column| column.name.as_str())
        .collect();
    let equals = |(name, text): (&str, &str)| {
        format!("{} = {}", quote_identifier(name), quote_literal(text))
    };
    let object: Option<serde_json::Map<String, serde_json::Value>> = key
        .trim_start()
        .starts_with('{')
        .then(|| serde_json::from_str(key).ok())
        .flatten();
    let terms: Option<Vec<String>> = match (object, columns.as_slice()) {
        (_, []) => {
            let sentence = format!("{} has no primary key to find a row by.", table.sql_name());
            return Err(Trouble::Usage(sentence));
        }
        (None, [only]) => Some(vec![equals((only, key))]),
        (None, _) => None,
        (Some(object), columns) if object.len() != columns.len() => None,
        (Some(object), columns) => columns
            .iter()
            .map(|name| {
                let text = match object.get(*name)? {
                    serde_json::Value::String(text) => text.clone(),
                    serde_json::Value::Null => return None,
                    other => other.to_string(),
                };
                Some(equals((name, &text)))
            })
            .collect(),
    };
    terms.map(|terms| terms.join(" and ")).ok_or_else(|| {
        Trouble::Usage(format!(
            "--row must be a JSON object of the primary key's columns: {}.",
            columns.join(", ")
        ))
    })
}

/// The row as the login reads it, under its own rights; `None` where it does not.
async fn read(client: &Client, table: &Table, key: &str) -> Result<Option<change::Row>, Trouble> {
    let names: Vec<String> = table
        .columns
        .iter()
        .map(|column| quote_identifier(&column.name))
        .collect();
    let sql = format!(
        "select {} from {} where {key}",
        names.join(", "),
        own_rows(client, table).await?
    );
    // What is wrong with the key shows before a row is looked at.
    client.prepare(&sql).await.map_err(|error| unfit(&error))?;
    client.batch_execute("savepoint reading").await?;
    let messages = match client.simple_query(&sql).await {
        Ok(messages) => messages,
        // A right is missing, or a policy raises an error for the login itself, which has no claims;
        // its words may quote rows. Then nothing is shown.
        Err(error) if error.as_db_error().is_some() => {
            client
                .batch_execute("rollback to savepoint reading")
                .await?;
            return Ok(None);
        }
        Err(error) => return Err(unfit(&error)),
    };
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let Some(row) = row else { return Ok(None) };
    let mut values = RowBuilder::default();
    for place in 0..row.len() {
        values.push(match row.try_get(place)? {
            Some(text) => Value::Text(text),
            None => Value::Null,
        });
    }
    Ok(Some(values.finish()))
}

fn unfit(error: &tokio_postgres::Error) -> Trouble {
    match error.as_db_error() {
        Some(refused) if refused.code().code().starts_with("22") => {
            Trouble::Usage(format!("--row: {}.", refused.message()))
        }
        Some(refused) => Trouble::Database(refused.message().to_owned()),
        None => Trouble::Database(error.to_string()),
    }
}

/// Whether there is nothing that this login may not read.
async fn reads_everything(client: &Client) -> Result<bool, tokio_postgres::Error> {
    let sql = "select rolsuper from pg_catalog.pg_roles where rolname = current_user";
    let row = client.query_opt(sql, &[]).await?;
    Ok(row.is_some_and(|row| row.try_get(0).unwrap_or(false)))
}

/// The table in a statement that is about its own rows: those of tables that inherit from it are not in
/// it for the relay, though its partitions' are.
async fn own_rows(client: &Client, table: &Table) -> Result<String, tokio_postgres::Error> {
    let sql = "select relkind = 'p' from pg_catalog.pg_class where oid = $1";
    let row = client.query_one(sql, &[&table.oid.0]).await?;
    let only = if row.try_get(0)? { "" } else { "only " };
    Ok(format!("{only}{}", table.sql_name()))
}

/// Whether a statement finds a row under the client's role and claims; what it does is rolled back.
async fn as_client(
    client: &Client,
    principal: &Principal,
    sql: &str,
    limit: Duration,
) -> Result<Said, Trouble> {
    client.batch_execute("savepoint asked").await?;
    let said = said(client, principal, sql).await;
    client.batch_execute("rollback to savepoint asked").await?;
    match said {
        Ok(said) => Ok(said),
        Err(error) => match error.as_db_error() {
            Some(refused) if refused.code().code() == BROKEN_OFF => Ok(Said::Unknown(format!(
                "PostgreSQL did not answer within {} ms, as long as the relay waits (ask_timeout): it \
                 hides such a row, and has the client read again",
                limit.as_millis()
            ))),
            Some(refused) if refused.code().code() == LOCKED => Ok(Said::Unknown(
                "somebody holds a lock on the table, or on one that its policies read".to_owned(),
            )),
            Some(refused) => Ok(Said::Error(
                refused.code().code().to_owned(),
                Some(refused.message().to_owned()),
            )),
            None => Err(error.into()),
        },
    }
}

async fn said(
    client: &Client,
    principal: &Principal,
    sql: &str,
) -> Result<Said, tokio_postgres::Error> {
    let role = quote_identifier(&principal.role);
    if let Err(error) = client
        .batch_execute(&format!("set local role {role}"))
        .await
    {
        let reason = format!("the login may not become {}", principal.role);
        return match error.as_db_error() {
            Some(_) => Ok(Said::Unknown(reason)),
            None => Err(error),
        };
    }
    let claims = "select pg_catalog.set_config('request.jwt.claims', $1, true)";
    client.query(claims, &[&principal.claims.as_json()]).await?;
    let found = client.query(sql, &[]).await?;
    Ok(if found.is_empty() {
        Said::No
    } else {
        Said::Yes
    })
}

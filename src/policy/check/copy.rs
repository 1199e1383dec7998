//! Bounded copies of tables, in the snapshot of the transaction in hand and with the login's own
//! rights.

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::change::{Relation, Row, RowBuilder, Value};
use crate::datum::Datum;
use crate::lookup::{Looked, Lookups, Mirror, Wanted};
use crate::pg::{Oid, quote_identifier};
use crate::policy::catalog::{Catalog, Table};

/// Whether a policy shows the login every row, and none keeps any.
const OPEN: &str = "select exists (
    select from pg_catalog.pg_policy p
    where p.polrelid = $1 and p.polpermissive and p.polcmd in ('r', '*')
      and pg_catalog.pg_get_expr(p.polqual, p.polrelid) = 'true'
      and exists (select from pg_catalog.unnest(p.polroles) r(oid)
                  where r.oid = 0 or pg_catalog.pg_has_role(current_user, r.oid, 'usage')))
  and not exists (
    select from pg_catalog.pg_policy p
    where p.polrelid = $1 and not p.polpermissive and p.polcmd in ('r', '*')
      and exists (select from pg_catalog.unnest(p.polroles) r(oid)
                  where r.oid = 0 or pg_catalog.pg_has_role(current_user, r.oid, 'usage')))";

/// What policies look into, as far as it could be copied.
#[derive(Debug, Default)]
pub struct Copied {
    /// The copies.
    pub lookups: Lookups,
    /// The tables that were not copied, and why.
    pub missing: Vec<(Oid, String)>,
}

impl Copied {
    /// Why one of these tables is not there, if one is not.
    #[must_use]
    pub fn lacks(&self, wanted: &[Wanted]) -> Option<&str> {
        let missing = self.missing.iter().find(|(table, _)| {
            let mut wanted = wanted.iter();
            wanted.any(|one| one.table == *table)
        });
        missing.map(|(_, reason)| reason.as_str())
    }
}

/// Copies what is wanted of each table, where that is no more than `most` rows.
///
/// # Errors
/// PostgreSQL's, where the transaction is of no use any more.
pub async fn copy(
    client: &Client,
    catalog: &Catalog,
    wanted: &[Wanted],
    most: usize,
) -> Result<Copied, tokio_postgres::Error> {
    let mut copied = Copied::default();
    for one in wanted {
        let Some(table) = catalog.tables.get(&one.table) else {
            let reason = "a table that it looks into is not known".to_owned();
            copied.missing.push((one.table, reason));
            continue;
        };
        match mirror(client, table, one, most).await? {
            Ok(mirror) => copied.lookups.put(one.table, mirror),
            Err(reason) => copied.missing.push((one.table, reason)),
        }
    }
    Ok(copied)
}

async fn mirror(
    client: &Client,
    table: &Table,
    wanted: &Wanted,
    most: usize,
) -> Result<Result<Mirror, String>, tokio_postgres::Error> {
    let mut mirror = Mirror::new(wanted, &[]);
    let columns = mirror.columns().to_vec();
    let names: Vec<&str> = columns.iter().map(|column| &*column.name).collect();
    let name = table.sql_name();
    let limit = format!("limit {}", most.saturating_add(1));
    let messages = match read(client, table, (&names, &limit)).await? {
        Ok(messages) => messages,
        Err(reason) => return Ok(Err(reason)),
    };
    for message in &messages {
        let SimpleQueryMessage::Row(row) = message else {
            continue;
        };
        if mirror.len() >= most {
            return Ok(Err(format!("{name} has more than {most} rows")));
        }
        let values = columns.iter().enumerate().map(|(place, column)| {
            let text = row.try_get(place).ok().flatten();
            text.map(|text| Datum::from_output(&column.of, text))
                .transpose()
        });
        match values.collect::<Result<Looked, _>>() {
            Ok(row) => mirror.insert(row),
            Err(_) => return Ok(Err(format!("a value of {name} is not understood"))),
        }
    }
    Ok(Ok(mirror))
}

/// Some rows of a table, with these of its columns; the others count as not carried. None where the
/// login may not read all rows: what would be left out is decided by policies, and these are not
/// run as the relay.
///
/// # Errors
/// PostgreSQL's, where the transaction is of no use any more.
pub(super) async fn sample(
    client: &Client,
    (table, relation): (&Table, &Relation),
    columns: &[&str],
    most: usize,
) -> Result<Vec<Row>, tokio_postgres::Error> {
    if columns.is_empty() {
        return Ok(Vec::new());
    }
    let estimate = "select reltuples::pg_catalog.float8 from pg_catalog.pg_class where oid = $1";
    let about = client.query_opt(estimate, &[&table.oid.0]).await?;
    let about: f64 = about.map_or(0.0, |row| row.get(0));
    // From all over a large table, about ten times as many as are taken.
    let wanted = u32::try_from(most).map_or(f64::MAX, f64::from) * 10.0;
    let limit = if about > wanted {
        let percent = wanted / about * 100.0;
        format!("tablesample system ({percent:.6}) limit {most}")
    } else {
        format!("limit {most}")
    };
    let Ok(messages) = read(client, table, (columns, &limit)).await? else {
        return Ok(Vec::new());
    };
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let taken = rows.map(|row| {
        let mut taken = RowBuilder::default();
        for column in &relation.columns {
            let place = columns.iter().position(|name| *name == &*column.name);
            taken.push(match place.map(|place| row.try_get(place)) {
                Some(Ok(Some(text))) => Value::Text(text),
                Some(Ok(None)) => Value::Null,
                Some(Err(_)) | None => Value::Unchanged,
            });
        }
        taken.finish()
    });
    Ok(taken.collect())
}

/// Reads a table whose rows nothing keeps from the login, or says why it may not.
async fn read(
    client: &Client,
    table: &Table,
    (columns, rest): (&[&str], &str),
) -> Result<Result<Vec<SimpleQueryMessage>, String>, tokio_postgres::Error> {
    let columns: Vec<String> = columns.iter().map(|name| quote_identifier(name)).collect();
    let name = table.sql_name();
    let sql = format!("select {} from {name} {rest}", columns.join(", "));
    // Where policies would leave rows out that is an error, unless a policy for the login lets all
    // of them through.
    for secured in [false, true] {
        if secured {
            let row = client.query_one(OPEN, &[&table.oid.0]).await?;
            let open: bool = row.try_get(0)?;
            if !open {
                break;
            }
        }
        let security = if secured { "on" } else { "off" };
        let begin = format!("savepoint rowcast_copy; set local row_security = {security}");
        client.batch_execute(&begin).await?;
        let read = client.simple_query(&sql).await;
        let undo = "rollback to savepoint rowcast_copy; release savepoint rowcast_copy";
        client.batch_execute(undo).await?;
        match read {
            Ok(messages) => return Ok(Ok(messages)),
            Err(error) if error.code().is_some_and(|code| code.code() == "42501") => {}
            Err(error) if error.as_db_error().is_some() => {
                let code = error.code().map_or("", |code| code.code());
                return Ok(Err(format!("{name} cannot be read (SQLSTATE {code})")));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Err(format!("the relay's login may not read all of {name}")))
}

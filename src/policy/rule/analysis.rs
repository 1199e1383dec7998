//! Has PostgreSQL resolve the text of a rule: as the condition of a policy of a temporary table with
//! the same name and columns, in a transaction that is rolled back. So nothing of the user's is
//! written, nothing is left behind, and the text is an expression as policies have it, or refused.

use tokio_postgres::error::DbError;
use tokio_postgres::{Client, Transaction};

use super::{Rule, TableRule};
use crate::pg::{Oid, quote_identifier};
use crate::policy::catalog::Policy;

/// The table and whom the rule applies to: among `$4` those that have the rights of one of `$3`.
const TABLE: &str = "
    select c.oid, c.relkind in ('r', 'p'),
      array(select w.name from unnest($3::text[]) as w(name)
            where not exists (select from pg_roles r where r.rolname = w.name)),
      array(select r.rolname::text from pg_roles r where r.rolname = any ($4::text[])
            and exists (select from pg_roles l
                        where l.rolname = any ($3::text[]) and pg_has_role(r.oid, l.oid, 'usage'))),
      array(select a.relid::oid from pg_partition_ancestors(c.oid) as a(relid)
            where a.relid <> c.oid)
    from (select) as one
    left join pg_namespace n on n.nspname = $1
    left join pg_class c on c.relnamespace = n.oid and c.relname = $2";

/// Its columns as those of another table, and the names of those to be dropped there: columns have
/// numbers, and dropped ones keep theirs.
const COLUMNS: &str = "
    select coalesce(string_agg(case when a.attisdropped
        then quote_ident('rowcast dropped ' || a.attnum) || ' boolean'
        else quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod) || coalesce((
          select ' collate ' || quote_ident(kn.nspname) || '.' || quote_ident(k.collname)
          from pg_collation k join pg_namespace kn on kn.oid = k.collnamespace
          where k.oid = a.attcollation), '') end, ', ' order by a.attnum), ''),
      coalesce(string_agg('drop column ' || quote_ident('rowcast dropped ' || a.attnum), ', ')
        filter (where a.attisdropped), '')
    from pg_attribute a where a.attrelid = $1 and a.attnum > 0";

/// The policy that was made.
const POLICY: &str = "
    select p.polrelid, pg_get_expr(p.polqual, p.polrelid), p.polqual::text,
      p.polwithcheck is null,
      coalesce((select jsonb_agg(distinct jsonb_build_array(
          d.refclassid::oid, d.refobjid, d.refobjsubid))
        from pg_depend d where d.classid = 'pg_policy'::regclass and d.objid = p.oid), '[]')
    from pg_policy p join pg_class c on c.oid = p.polrelid
    where c.relnamespace = pg_my_temp_schema() and c.relname = $1";

/// A rule held against the database.
#[derive(Debug)]
pub(crate) struct Analysed {
    /// What it is called where something is said of it.
    pub(crate) called: String,
    /// Its table; `None` where there is none of that name.
    pub(crate) table: Option<Oid>,
    /// The tables that this is a partition of.
    pub(crate) ancestors: Vec<Oid>,
    /// What it says.
    pub(crate) rule: TableRule,
}

/// Resolves rules for clients of these roles. The session's search path has to be empty.
///
/// # Errors
/// Where the connection breaks, and where the server is busy: that says nothing of the rule.
pub(crate) async fn analyse(
    client: &mut Client,
    rules: &[Rule],
    roles: &[&String],
) -> Result<Vec<Analysed>, tokio_postgres::Error> {
    let mut analysed = Vec::with_capacity(rules.len());
    for (place, rule) in rules.iter().enumerate() {
        let transaction = client.transaction().await?;
        let found = held_against(&transaction, rule, place + 1, roles).await;
        // It is rolled back in any case; a connection that broke says so here too.
        transaction.rollback().await?;
        analysed.push(found?);
    }
    Ok(analysed)
}

async fn held_against(
    transaction: &Transaction<'_>,
    rule: &Rule,
    number: usize,
    roles: &[&String],
) -> Result<Analysed, tokio_postgres::Error> {
    let row = transaction
        .query_one(TABLE, &[&rule.schema, &rule.table, &rule.roles, &roles])
        .await?;
    let table: Option<u32> = row.try_get(0)?;
    let is_table: Option<bool> = row.try_get(1)?;
    let (missing, applies): (Vec<String>, Vec<String>) = (row.try_get(2)?, row.try_get(3)?);
    let ancestors: Vec<u32> = row.try_get(4)?;
    let mut found = Analysed {
        called: format!("rule {number} (for {})", rule.sql_name()),
        table: table.map(Oid),
        ancestors: ancestors.into_iter().map(Oid).collect(),
        rule: TableRule {
            roles: (!rule.roles.is_empty()).then_some(applies),
            policy: Err("there is no such table".to_owned()),
        },
    };
    let (Some(table), Some(is_table)) = (table, is_table) else {
        return Ok(found);
    };
    if let Some(role) = missing.first() {
        // Whom it was meant for is not known.
        found.rule.roles = None;
        found.rule.policy = Err(format!("there is no role {role:?}"));
    } else if is_table {
        let policy = resolve(transaction, rule, Oid(table), number).await;
        found.rule.policy = match policy {
            Ok(policy) => policy,
            Err(error) => match error.as_db_error() {
                Some(refused) if !is_passing(refused) => Err(words(refused, &rule.using)),
                _ => return Err(error),
            },
        };
    } else {
        found.rule.policy = Err("that is not a table".to_owned());
    }
    Ok(found)
}

/// Whether it is the server's state that is refused, not the text.
fn is_passing(error: &DbError) -> bool {
    let code = error.code().code();
    ["08", "40", "53", "55", "57", "58", "XX"]
        .iter()
        .any(|class| code.starts_with(class))
}

/// What PostgreSQL says, and what helps.
fn words(error: &DbError, text: &str) -> String {
    let mut said = format!("{} (SQLSTATE {})", error.message(), error.code().code());
    let help = match error.code().code() {
        "42501" if error.message().contains("temporary") => {
            "; rules are resolved by means of a temporary table: grant temporary on this database \
             to the relay's login"
        }
        "25006" => "; rules are resolved by means of a temporary table, which takes a primary",
        "3F000" | "42883" if text.contains("auth.") && error.message().contains("auth") => {
            "; auth.jwt(), auth.uid() and auth.role() are made by `rowcast setup --only auth`"
        }
        "42P01" | "42883" | "42704" => {
            "; names outside pg_catalog have to be written with their schema, and columns of the rule's \
             own table without it"
        }
        _ => "",
    };
    said.push_str(help);
    said
}

async fn resolve(
    transaction: &Transaction<'_>,
    rule: &Rule,
    table: Oid,
    number: usize,
) -> Result<Result<Policy, String>, tokio_postgres::Error> {
    transaction
        .batch_execute("set local lock_timeout = '2s'; set local statement_timeout = '5s'")
        .await?;
    let row = transaction.query_one(COLUMNS, &[&table.0]).await?;
    let (columns, dropped): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let name = quote_identifier(&rule.table);
    // Each goes as a prepared statement, which cannot be more than one command, whatever the names
    // and the text say.
    let create = format!("create temporary table {name} ({columns})");
    transaction.execute(&create, &[]).await?;
    if !dropped.is_empty() {
        let alter = format!("alter table pg_temp.{name} {dropped}");
        transaction.execute(&alter, &[]).await?;
    }
    let policy = format!(
        "create policy rule on pg_temp.{name} using ({}\n)",
        rule.using
    );
    transaction.execute(&policy, &[]).await?;
    let row = transaction.query_one(POLICY, &[&rule.table]).await?;
    let (stand_in, tree): (u32, String) = (row.try_get(0)?, row.try_get(2)?);
    let depends: serde_json::Value = row.try_get(4)?;
    if !row.try_get::<_, bool>(3)? {
        return Ok(Err("the text is more than one expression".to_owned()));
    }
    if tree.contains(":varattno 0 ") || tree.contains(":varattno -") {
        let reason = "it reads its row as a whole, or a system column, which a change does not \
                      carry";
        return Ok(Err(reason.to_owned()));
    }
    if tree.contains(&format!(":relid {stand_in} ")) {
        let reason = format!("it has to name {} with its schema", rule.sql_name());
        return Ok(Err(reason));
    }
    let Ok(mut depends) = serde_json::from_value::<Vec<(Oid, Oid, i32)>>(depends) else {
        return Ok(Err("what it depends on cannot be read".to_owned()));
    };
    for (class, object, _) in &mut depends {
        if *class == Oid::PG_CLASS && object.0 == stand_in {
            *object = table;
        }
    }
    depends.sort_unstable_by_key(|(class, object, column)| (class.0, object.0, *column));
    depends.dedup();
    Ok(Ok(Policy {
        name: format!("rule {number}"),
        permissive: false,
        condition: Some(row.try_get(1)?),
        tree: Some(tree),
        depends,
        checks: false,
    }))
}

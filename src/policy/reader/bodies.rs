//! Has PostgreSQL analyse the bodies of functions, each once, in transactions that are rolled back.

mod rows;

mod statements;

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Transaction};
use tracing::debug;

use self::statements::Statements;
use crate::pg::{Oid, quote_identifier};
use crate::policy::body::{ALWAYS_RAISES, Body, Context};
use crate::policy::catalog::{Catalog, Function};
use crate::policy::closure::Closure;
use crate::policy::plpgsql;

/// Longer bodies are not analysed.
const MAX_SOURCE: usize = 64 * 1024;

/// How long one look at the catalog may analyse bodies; what is left is for the next.
const TURN: Duration = Duration::from_secs(1);

/// Functions that call each other, one inside the other.
const MAX_ROUNDS: usize = 20;

/// A migration must not wait for it, nor it for a migration.
const LIMITS: &str = "select pg_catalog.set_config('lock_timeout', '200ms', true), \
     pg_catalog.set_config('statement_timeout', '2s', true)";

/// In force for the analysis only: operators that somebody put there must not be the relay's.
const PATH: &str = "select pg_catalog.set_config('search_path', $1, true)";

/// What is known of bodies.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    known: HashMap<Key, Result<Body, String>>,
    /// The functions that something reachable calls, and the tables that it looks into.
    pub(super) functions: BTreeSet<Oid>,
    pub(super) tables: BTreeSet<Oid>,
    /// Whether something is left to be analysed.
    pub(super) unfinished: bool,
}

/// What an analysis depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    function: Oid,
    content: u64,
    role: Oid,
    path: String,
    names: String,
}

/// Why a body was not analysed.
enum Failure {
    /// It cannot be.
    Refused(String),
    /// … as it names what is not there.
    Astray(String),
    /// It may be the next time.
    Later(String),
    Broken(tokio_postgres::Error),
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(refused) = error.as_db_error() else {
            return Self::Broken(error);
        };
        let code = refused.code();
        let busy = [
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::QUERY_CANCELED,
            SqlState::T_R_DEADLOCK_DETECTED,
        ];
        // Messages of this class are about names; others may quote what the body holds.
        let reason = if code.code().starts_with("42") || code.code().starts_with("25") {
            format!("was not analysed: {}", refused.message())
        } else {
            format!("was not analysed: PostgreSQL refused with {}", code.code())
        };
        let astray = [
            SqlState::UNDEFINED_TABLE,
            SqlState::UNDEFINED_COLUMN,
            SqlState::UNDEFINED_FUNCTION,
            SqlState::INVALID_SCHEMA_NAME,
        ];
        if busy.contains(code) {
            Self::Later(reason)
        } else if astray.contains(code) {
            Self::Astray(reason)
        } else {
            Self::Refused(reason)
        }
    }
}

impl Bodies {
    /// Gives the functions of the catalog their bodies, as `roles` come to them through policies of
    /// what is published; `names` stands for what names mean. Whether everything that is reached is
    /// in the catalog.
    pub(super) async fn fill(
        &mut self,
        client: &mut Client,
        catalog: &mut Catalog,
        (roles, names): (&BTreeSet<String>, &str),
    ) -> Result<bool, tokio_postgres::Error> {
        let ends = Instant::now() + TURN;
        self.unfinished = false;
        let published = catalog.tables.values().filter(|table| table.published);
        let judged = published
            .flat_map(|table| std::iter::once(table.oid).chain(table.ancestors.iter().copied()));
        let judged: BTreeSet<Oid> = judged.collect();
        let contexts = roles
            .iter()
            .filter(|role| catalog.roles.contains_key(*role));
        let contexts: Vec<Context> = contexts.map(|role| catalog.context(role)).collect();
        let begin: Vec<(Oid, Context)> = judged
            .iter()
            .flat_map(|table| contexts.iter().map(|context| (*table, context.clone())))
            .collect();
        let mut closure = Closure::default();
        for _ in 0..MAX_ROUNDS {
            closure = Closure::default();
            closure.follow(catalog, begin.iter().cloned());
            let unknown = closure.functions.iter().filter(|(oid, context)| {
                let function = catalog.functions.get(oid);
                function.is_some_and(|function| function.does(context).is_none())
            });
            let missing: Vec<_> = unknown.cloned().collect();
            if missing.is_empty() {
                break;
            }
            for (oid, context) in missing {
                let body = self
                    .body(client, catalog, (oid, &context), (names, ends))
                    .await?;
                if let Some(function) = catalog.functions.get_mut(&oid) {
                    function.bodies.insert(context, body);
                }
            }
        }
        self.known
            .retain(|key, _| key.names == names && catalog.functions.contains_key(&key.function));
        let called = closure.functions.iter().map(|(oid, _)| *oid);
        let functions: BTreeSet<Oid> = called.chain(closure.unknown_functions).collect();
        let looked = closure.tables.iter().map(|(_, oid)| *oid);
        let tables: BTreeSet<Oid> = looked.chain(closure.unknown_tables).collect();
        let complete = functions == self.functions && tables == self.tables;
        self.functions = functions;
        self.tables = tables;
        Ok(complete)
    }

    async fn body(
        &mut self,
        client: &mut Client,
        catalog: &Catalog,
        (oid, context): (Oid, &Context),
        (names, ends): (&str, Instant),
    ) -> Result<Result<Body, String>, tokio_postgres::Error> {
        let Some(function) = catalog.functions.get(&oid) else {
            return Ok(Err("is not known".to_owned()));
        };
        if function.source.len() > MAX_SOURCE {
            return Ok(Err("is longer than what is analysed".to_owned()));
        }
        let path = match path(catalog, function, context) {
            Ok(path) => path,
            Err(reason) => return Ok(Err(reason)),
        };
        let key = Key {
            function: oid,
            content: content(function),
            role: context.role,
            path,
            names: names.to_owned(),
        };
        if let Some(body) = self.known.get(&key) {
            return Ok(body.clone());
        }
        if Instant::now() >= ends {
            self.unfinished = true;
            return Ok(Err("was not analysed yet".to_owned()));
        }
        let transaction = client.transaction().await?;
        let analysed = analyse(&transaction, function, (&key.path, catalog.major)).await;
        transaction.rollback().await?;
        let body = match analysed {
            Ok(body) => Ok(body),
            Err(Failure::Broken(error)) => return Err(error),
            Err(Failure::Later(reason)) => {
                self.unfinished = true;
                return Ok(Err(reason));
            }
            Err(Failure::Refused(reason)) => Err(reason),
            // PostgreSQL reads all of such a body before it runs any of it; in other languages a
            // statement may never be reached.
            Err(Failure::Astray(reason)) if function.language == "sql" => {
                Err(format!("{reason}: {ALWAYS_RAISES}"))
            }
            Err(Failure::Astray(reason)) => Err(reason),
        };
        if let Err(reason) = &body {
            debug!(function = %oid, %reason, "the body of a function is not compiled");
        }
        self.known.insert(key, body.clone());
        Ok(body)
    }
}

/// What an analysis takes from a function.
fn content(function: &Function) -> u64 {
    let mut hasher = DefaultHasher::new();
    (
        &function.name,
        &function.language,
        &function.source,
        function.set,
    )
        .hash(&mut hasher);
    (&function.signature, &function.result, &function.returns).hash(&mut hasher);
    function.row.hash(&mut hasher);
    (&function.argument_names, &function.argument_types).hash(&mut hasher);
    function.table_columns.hash(&mut hasher);
    hasher.finish()
}

/// The search path by which a body's names are resolved, as a setting. Schemas that the role may not
/// use are passed over there, so they are left out.
fn path(catalog: &Catalog, function: &Function, context: &Context) -> Result<String, String> {
    let role = catalog.role(context.role);
    let role = role.ok_or_else(|| "runs as a role that is not known".to_owned())?;
    let may = |schema: &str| {
        let known = catalog.schemas.get(schema)?;
        Some((known.usage.contains(&role.name), known.usable))
    };
    // Named outright, a schema that the role may not use is an error.
    for schema in schemas_named(&function.source)? {
        match may(&schema) {
            Some((false, _)) => {
                return Err(format!(
                    "names schema {schema}, which {} may not use",
                    role.name
                ));
            }
            Some((true, false)) => {
                return Err(format!(
                    "names schema {schema}, which the relay's login may not use"
                ));
            }
            None | Some((true, true)) => {}
        }
    }
    let setting = context.path.as_deref();
    let setting = setting
        .ok_or_else(|| "has no search path of its own, and the caller's is not known".to_owned())?;
    let listed =
        identifiers(setting).ok_or_else(|| "has a search path that is not read".to_owned())?;
    let mut path = Vec::new();
    for schema in listed {
        let schema = if schema == "$user" {
            role.name.clone()
        } else {
            schema
        };
        if !matches!(schema.as_str(), "pg_catalog" | "pg_temp") {
            match may(&schema) {
                None | Some((false, _)) => continue,
                Some((true, false)) => {
                    return Err(format!(
                        "is resolved by schema {schema}, which the relay's login may not use"
                    ));
                }
                Some((true, true)) => {}
            }
        }
        path.push(quote_identifier(&schema));
    }
    Ok(path.join(", "))
}

/// The names before dots in a function's body: schemas among them.
///
/// # Errors
/// What is not read of the body.
pub(crate) fn schemas_named(source: &str) -> Result<BTreeSet<String>, String> {
    let tokens = plpgsql::tokens(source)?;
    let pairs = tokens.iter().zip(tokens.iter().skip(1));
    let qualified = pairs.filter_map(|(name, dot)| match &name.kind {
        plpgsql::Kind::Word(name, _) if dot.kind == plpgsql::Kind::Other('.') => Some(name.clone()),
        _ => None,
    });
    Ok(qualified.collect())
}

/// The identifiers of a setting that is a list of them.
fn identifiers(setting: &str) -> Option<Vec<String>> {
    let mut found = Vec::new();
    let mut rest = setting.trim_start();
    if rest.is_empty() {
        return Some(found);
    }
    loop {
        let name;
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut text = String::new();
            let mut characters = quoted.char_indices().peekable();
            let mut end = None;
            while let Some((at, character)) = characters.next() {
                if character != '"' {
                    text.push(character);
                } else if characters.next_if(|(_, next)| *next == '"').is_some() {
                    text.push('"');
                } else {
                    end = Some(at + 1);
                    break;
                }
            }
            rest = quoted.get(end?..)?;
            name = text;
        } else {
            let end = rest.find([',', ' ', '\t', '\n']).unwrap_or(rest.len());
            let text = rest
                .get(..end)
                .filter(|text| text.is_ascii() && !text.contains('"'))?;
            name = text.to_ascii_lowercase();
            if name.is_empty() {
                return None;
            }
            rest = rest.get(end..)?;
        }
        // PostgreSQL cuts longer ones.
        if name.len() > 63 {
            return None;
        }
        found.push(name);
        rest = rest.trim_start();
        if rest.is_empty() {
            return Some(found);
        }
        rest = rest.strip_prefix(',')?.trim_start();
    }
}

async fn analyse(
    transaction: &Transaction<'_>,
    function: &Function,
    (path, major): (&str, u16),
) -> Result<Body, Failure> {
    transaction.execute(LIMITS, &[]).await?;
    if function.language == "sql" {
        let (tree, _) = made(
            transaction,
            (function, path),
            (&function.signature, &function.result, &function.source),
        )
        .await?;
        // In a body kept as text that is no statement.
        if tree.contains(":isReturn true") {
            return Err(Failure::Refused("returns by RETURN".to_owned()));
        }
        return Ok(Body::Query(tree));
    }
    Statements::of(transaction, (function, path, major)).await
}

/// Makes the function once more with a resolved body, and reads that and its argument types. The
/// same name: a body may qualify its arguments with it. As a prepared statement it cannot be more
/// than this one command, whatever the source says, and what stands in it is not run.
async fn made(
    transaction: &Transaction<'_>,
    (function, path): (&Function, &str),
    (arguments, result, body): (&str, &str, &str),
) -> Result<(Arc<str>, Vec<u32>), Failure> {
    let create = format!(
        "create or replace function pg_temp.{}({arguments}) returns {result} language sql begin atomic {}\n; end",
        quote_identifier(&function.name),
        body.trim_end().trim_end_matches(';'),
    );
    transaction.execute(PATH, &[&path]).await?;
    transaction.execute(&create, &[]).await?;
    transaction.execute(PATH, &[&""]).await?;
    let row = transaction
        .query_one(
            "select prosqlbody::text, proargtypes::oid[] from pg_catalog.pg_proc \
             where pronamespace = pg_catalog.pg_my_temp_schema() and proname = $1",
            &[&function.name],
        )
        .await?;
    let tree: Option<String> = row.try_get(0)?;
    let tree = tree.ok_or_else(|| Failure::Refused("has no resolved body".to_owned()))?;
    Ok((Arc::from(tree), row.try_get(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_path_is_read_as_postgresql_reads_it() {
        let read = |text| identifiers(text).map(|all| all.join("|"));
        assert_eq!(read(r#""$user", public"#).as_deref(), Some("$user|public"));
        assert_eq!(read("").as_deref(), Some(""));
        assert_eq!(read(r#""""#).as_deref(), Some(""));
        assert_eq!(
            read(r#"Public,"A ""b"" , c""#).as_deref(),
            Some(r#"public|A "b" , c"#)
        );
        assert_eq!(read(r#""open"#), None);
        assert_eq!(read("a b"), None);
        assert_eq!(read("a,,b"), None);
    }
}

//! Variables that hold rows: `record`, `table%ROWTYPE` and types of rows. To the analysis each field
//! that the body uses is a variable of its own.

use std::collections::{BTreeMap, BTreeSet};

use super::Failure;
use super::statements::Statements;
use crate::pg::quote_identifier;
use crate::policy::node_tree::{self, Node, Tree};
use crate::policy::plpgsql::{self, Used};

/// A field of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    name: String,
    oid: u32,
    /// `atttypmod`; -1 where there is none.
    modifier: i32,
}

/// What a variable holds.
#[derive(Debug)]
pub(super) enum Row {
    /// A row of any kind (`record`).
    Any,
    /// One with these fields.
    Of(Vec<Field>),
}

/// The variables that hold rows.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// By name; the kind, and what the body may set it to.
    known: BTreeMap<String, (Row, Vec<Field>)>,
    names: plpgsql::Rows,
}

impl Rows {
    /// Adds one whose fields are not variables yet.
    pub(super) fn add(&mut self, name: &str, row: Row) -> Result<(), String> {
        let again = self.known.insert(name.to_owned(), (row, Vec::new()));
        self.names.insert(name.to_owned(), None);
        match again {
            None => Ok(()),
            Some(_) => Err(format!("has two variables {name}")),
        }
    }

    /// Adds an argument. Its fields stay what they are; that it is named otherwise is refused, as SQL
    /// may take that for a table or column where PL/pgSQL takes the argument.
    pub(super) fn argument(&mut self, name: &str, row: Row) {
        let fields = match row {
            Row::Any => Vec::new(),
            Row::Of(fields) => fields,
        };
        let of = quote_identifier(name);
        let fields = fields.into_iter().map(|field| {
            let itself = format!("{of}.{}", quote_identifier(&field.name));
            (field.name, Some(itself))
        });
        self.names.insert(name.to_owned(), Some(fields.collect()));
    }

    /// A text with variables in place of the fields.
    pub(super) fn put_in(&self, text: &str) -> Result<String, Failure> {
        if self.names.is_empty() {
            return Ok(text.to_owned());
        }
        plpgsql::with_fields(text, &self.names).map_err(Failure::Refused)
    }
}

impl Statements<'_> {
    /// What a type is the rows of, if it is.
    pub(super) async fn row(&self, of: &str) -> Result<Option<Row>, Failure> {
        let plain = [
            "uuid",
            "text",
            "boolean",
            "bool",
            "int",
            "integer",
            "bigint",
            "smallint",
            "jsonb",
            "json",
            "numeric",
            "timestamptz",
            "varchar",
            "date",
            "uuid[]",
            "text[]",
        ];
        let folded = of.trim().to_ascii_lowercase();
        if folded == "record" {
            return Ok(Some(Row::Any));
        }
        if plain.contains(&&*folded) {
            return Ok(None);
        }
        let table = match of.rsplit_once('%') {
            Some((table, rowtype)) if rowtype.trim().eq_ignore_ascii_case("rowtype") => Some(table),
            Some(_) => return Ok(None),
            None => None,
        };
        let named = self
            .along_path(
                "select pg_catalog.to_regclass($1)::pg_catalog.oid, \
                 pg_catalog.to_regtype($2)::pg_catalog.oid",
                &[&table.map(str::trim), &table.is_none().then_some(of)],
            )
            .await?;
        let (table, type_): (Option<u32>, Option<u32>) = (named.try_get(0)?, named.try_get(1)?);
        let fields = self
            .transaction
            .query(
                "select a.attname::text, a.atttypid, a.atttypmod from pg_attribute a \
                 where a.attnum > 0 and not a.attisdropped and a.attrelid = coalesce($1, \
                 (select t.typrelid from pg_type t where t.oid = $2 and t.typrelid <> 0)) \
                 order by a.attnum",
                &[&table, &type_],
            )
            .await?;
        if fields.is_empty() {
            // What it is, if not a type, is said where it is declared.
            return Ok(None);
        }
        let mut found = Vec::with_capacity(fields.len());
        for row in fields {
            found.push(Field {
                name: row.try_get(0)?,
                oid: row.try_get(1)?,
                modifier: row.try_get(2)?,
            });
        }
        Ok(Some(Row::Of(found)))
    }

    /// Declares the fields that the body uses; which of them nobody may read before they are set.
    pub(super) async fn fields(
        &mut self,
        source: &[plpgsql::Statement],
    ) -> Result<BTreeSet<usize>, Failure> {
        let known: Vec<String> = self.rows.known.keys().cloned().collect();
        for name in known {
            if let Some((Row::Of(fields), _)) = self.rows.known.get(&name) {
                let fields = fields.clone();
                self.declare_fields(&name, fields).await?;
            }
        }
        let first = self.names.len();
        Box::pin(self.kinds(source)).await?;
        Ok((first..self.names.len()).collect())
    }

    /// Declares the fields of rows of any kind, by the queries that they are set by.
    async fn kinds(&mut self, source: &[plpgsql::Statement]) -> Result<(), Failure> {
        for one in source {
            match one {
                plpgsql::Statement::Into {
                    variables, query, ..
                } => self.kind(variables, query).await?,
                plpgsql::Statement::If(branches, otherwise) => {
                    for (_, inner) in branches {
                        Box::pin(self.kinds(inner)).await?;
                    }
                    Box::pin(self.kinds(otherwise)).await?;
                }
                plpgsql::Statement::Try(inner, handler) => {
                    Box::pin(self.kinds(inner)).await?;
                    Box::pin(self.kinds(handler.as_deref().unwrap_or_default())).await?;
                }
                plpgsql::Statement::Assign(..)
                | plpgsql::Statement::Evaluate(_)
                | plpgsql::Statement::Return(_)
                | plpgsql::Statement::Rows(_)
                | plpgsql::Statement::End
                | plpgsql::Statement::Raise => {}
            }
        }
        Ok(())
    }

    async fn kind(&mut self, variables: &[String], query: &str) -> Result<(), Failure> {
        let [name] = variables else {
            return Ok(());
        };
        let known = match self.rows.known.get(name) {
            Some((Row::Any, fields)) => fields.clone(),
            _ => return Ok(()),
        };
        let query = self.rows.put_in(query)?;
        // With other arguments it is another function, which must not stay.
        let transaction = self.transaction;
        transaction.batch_execute("savepoint rowcast_kind").await?;
        let tree = self.tree(&query).await?;
        transaction
            .batch_execute("rollback to savepoint rowcast_kind; release savepoint rowcast_kind")
            .await?;
        let mut fields = Vec::new();
        for target in targets(&tree, self.major)? {
            let expr = target.field("expr").map_err(refused)?;
            fields.push(Field {
                name: match target.field("resname").map_err(refused)? {
                    Tree::Atom(name) => name.clone(),
                    _ => String::new(),
                },
                oid: type_of(expr, self.major).unwrap_or_default(),
                modifier: -1,
            });
        }
        if known.is_empty() {
            return self.declare_fields(name, fields).await;
        }
        if known == fields {
            return Ok(());
        }
        Err(Failure::Refused(format!(
            "sets {name} to rows of several kinds"
        )))
    }

    async fn declare_fields(&mut self, row: &str, fields: Vec<Field>) -> Result<(), Failure> {
        let used: Used = plpgsql::used(&self.function.source, row).map_err(Failure::Refused)?;
        let oids: Vec<u32> = fields.iter().map(|field| field.oid).collect();
        let types = self
            .along_path(
                "select pg_catalog.array_agg(pg_catalog.format_type(t.oid, null) order by t.place) \
                 from pg_catalog.unnest($1::pg_catalog._oid) with ordinality as t(oid, place)",
                &[&oids],
            )
            .await?;
        let types: Option<Vec<String>> = types.try_get(0)?;
        let mut declared: Vec<plpgsql::Field> = Vec::with_capacity(fields.len());
        for (field, of) in fields.iter().zip(types.unwrap_or_default()) {
            // Of several of one name the first is meant.
            let first = !declared.iter().any(|(name, _)| *name == field.name);
            if !used.has(&field.name) || !first {
                declared.push((field.name.clone(), None));
                continue;
            }
            let variable = format!("rowcast_field_{}", self.names.len());
            self.declare(&variable, &of);
            declared.push((field.name.clone(), Some(variable)));
        }
        self.rows.names.insert(row.to_owned(), Some(declared));
        if let Some((_, known)) = self.rows.known.get_mut(row) {
            *known = fields;
        }
        Ok(())
    }

    /// The variables that the columns of a query INTO go to.
    pub(super) fn targets(
        &self,
        variables: &[String],
        tree: &str,
    ) -> Result<Vec<Option<usize>>, Failure> {
        let row = match variables {
            [name] => self.rows.known.get_key_value(name),
            _ => None,
        };
        let Some((name, (_, fields))) = row else {
            let all = variables.iter().map(|name| self.variable(name).map(Some));
            return all.collect();
        };
        let names = self.rows.names.get(name).and_then(Option::as_ref);
        let names = names.map_or(&[][..], Vec::as_slice);
        let given = targets(tree, self.major)?;
        let mut all = Vec::with_capacity(names.len());
        for (at, ((_, variable), field)) in names.iter().zip(fields).enumerate() {
            let Some(variable) = variable else {
                all.push(None);
                continue;
            };
            let alike = |target: &Node| {
                let expr = target.field("expr").and_then(|expr| expr.node(self.major));
                expr.is_ok_and(|expr| {
                    expr.name == "VAR"
                        && expr.oid("vartype").is_ok_and(|of| of.0 == field.oid)
                        && expr.number("vartypmod") == Ok(field.modifier)
                })
            };
            // A value of another length is made to fit, or does not.
            if field.modifier != -1 && !given.get(at).is_none_or(alike) {
                return Err(Failure::Refused(format!(
                    "sets {name}.{}, which has a length",
                    field.name
                )));
            }
            all.push(Some(self.variable(variable)?));
        }
        Ok(all)
    }
}

fn refused(refusal: crate::policy::Refusal) -> Failure {
    Failure::Refused(refusal.reason)
}

/// The columns of a body's only query.
fn targets(tree: &str, major: u16) -> Result<Vec<Node>, Failure> {
    let tree = node_tree::read(tree).map_err(refused)?;
    let mut query = &tree;
    while let Tree::List(items) = query {
        let [only] = items.as_slice() else {
            return Err(Failure::Refused("is not one statement".to_owned()));
        };
        query = only;
    }
    let query = query.node(major).map_err(refused)?;
    let mut found = Vec::new();
    let targets = query.field("targetList").and_then(Tree::items);
    for target in targets.map_err(refused)? {
        let target = target.node(major).map_err(refused)?;
        if !target.flag("resjunk").map_err(refused)? {
            found.push(target.clone());
        }
    }
    Ok(found)
}

/// The type of an expression, where that is known.
fn type_of(expr: &Tree, major: u16) -> Option<u32> {
    let node = expr.node(major).ok()?;
    let label = match node.name.as_str() {
        "VAR" => "vartype",
        "CONST" => "consttype",
        "PARAM" => "paramtype",
        "FUNCEXPR" => "funcresulttype",
        "OPEXPR" | "NULLIFEXPR" => "opresulttype",
        "COALESCEEXPR" | "COALESCE" => "coalescetype",
        "CASEEXPR" | "CASE" => "casetype",
        "RELABELTYPE" | "COERCEVIAIO" | "ARRAYCOERCEEXPR" => "resulttype",
        "AGGREF" => "aggtype",
        "SQLVALUEFUNCTION" => "type",
        "MINMAXEXPR" | "MINMAX" => "minmaxtype",
        "ARRAYEXPR" | "ARRAY" => "array_typeid",
        "SUBSCRIPTINGREF" => "refrestype",
        "BOOLEXPR" | "NULLTEST" | "BOOLEANTEST" | "SCALARARRAYOPEXPR" | "DISTINCTEXPR" => {
            return Some(16);
        }
        "SUBLINK" => {
            return match node.number::<u8>("subLinkType").ok()? {
                0..=2 => Some(16),
                4 => {
                    let query = node.field("subselect").ok()?.node(major).ok()?;
                    let first = query.field("targetList").ok()?.items().ok()?.first()?;
                    type_of(first.node(major).ok()?.field("expr").ok()?, major)
                }
                _ => None,
            };
        }
        _ => return None,
    };
    node.oid(label).ok().map(|oid| oid.0)
}

//! The statements of a PL/pgSQL function, each expression and query of them analysed with the
//! function's variables as arguments.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Transaction};

use super::rows::Rows;
use super::{Failure, PATH, made};
use crate::pg::{Oid, quote_identifier};
use crate::policy::body::{Body, Program, Statement};
use crate::policy::catalog::Function;
use crate::policy::plpgsql;

/// The statements of a function, on their way to being analysed.
pub(super) struct Statements<'t> {
    pub(super) transaction: &'t Transaction<'t>,
    pub(super) function: &'t Function,
    path: &'t str,
    pub(super) major: u16,
    /// The names of the variables, arguments first; empty where they have none.
    pub(super) names: Vec<String>,
    /// Their types as SQL.
    declared: Vec<String>,
    /// Those that hold rows.
    pub(super) rows: Rows,
    types: Vec<u32>,
}

impl<'t> Statements<'t> {
    pub(super) async fn of(
        transaction: &'t Transaction<'t>,
        (function, path, major): (&'t Function, &'t str, u16),
    ) -> Result<Body, Failure> {
        let refused = |reason: String| Failure::Refused(reason);
        if function.unusual_arguments {
            return Err(refused(
                "has arguments that are results, or any number of them".to_owned(),
            ));
        }
        let source = plpgsql::read(&function.source).map_err(refused)?;
        let mut names = function.argument_names.clone().unwrap_or_default();
        names.resize(function.argument_types.len(), String::new());
        let mut declared = function.argument_types.clone();
        // What RETURNS TABLE names are variables.
        for (name, of) in &function.table_columns {
            names.push(name.clone());
            declared.push(of.clone());
        }
        let mut statements = Self {
            transaction,
            function,
            path,
            major,
            names,
            declared,
            rows: Rows::default(),
            types: Vec::new(),
        };
        let arguments = statements.names.iter().zip(&function.argument_types);
        let arguments = arguments.filter(|(name, _)| !name.is_empty());
        let arguments: Vec<(String, &String)> =
            arguments.map(|(name, of)| (name.clone(), of)).collect();
        for (name, of) in arguments {
            if let Some(row) = statements.row(of).await? {
                statements.rows.argument(&name, row);
            }
        }
        let mut scalars = Vec::new();
        for variable in &source.variables {
            if let Some(row) = statements.row(&variable.of).await? {
                statements.rows.add(&variable.name, row).map_err(refused)?;
            } else {
                statements.declare(&variable.name, &variable.of);
                scalars.push(variable);
            }
        }
        let asks = plpgsql::tokens(&function.source).map_err(refused)?;
        let word = plpgsql::Kind::Word("found".to_owned(), false);
        let found = (asks.iter().any(|token| token.kind == word)
            && !statements.names.iter().any(|name| name == "found"))
        .then_some(statements.names.len());
        if found.is_some() {
            statements.declare("found", "boolean");
        }
        let unset = statements.fields(&source.statements).await?;
        let all = statements.all(&source.statements).await?;
        let own = function.arguments.len();
        let variables = statements.types.iter().skip(own).map(|oid| Oid(*oid));
        let variables: Vec<Oid> = variables.collect();
        let first = own + function.table_columns.len();
        for (variable, of) in scalars.iter().zip(statements.types.iter().skip(first)) {
            if statements.has_length(&variable.of, *of).await? {
                return Err(refused(format!(
                    "has the variable {} of a type with a length",
                    variable.name
                )));
            }
        }
        Ok(Body::Program(Arc::new(Program {
            variables,
            unset,
            columns: function.table_columns.len(),
            found,
            statements: all,
        })))
    }

    pub(super) fn declare(&mut self, name: &str, of: &str) {
        self.names.push(name.to_owned());
        self.declared.push(of.to_owned());
    }

    /// All variables as a list of arguments.
    fn arguments(&self) -> String {
        let all = self.names.iter().zip(&self.declared).map(|(name, of)| {
            let name = if name.is_empty() {
                String::new()
            } else {
                quote_identifier(name)
            };
            format!("{name} {of}")
        });
        all.collect::<Vec<_>>().join(", ")
    }

    /// Whether a variable's type is `column%TYPE`, and that has a length.
    async fn has_length(&self, of: &str, oid: u32) -> Result<bool, Failure> {
        // character, character varying, numeric, bit, bit varying
        if !of.contains('%') || ![1042, 1043, 1700, 1560, 1562].contains(&oid) {
            return Ok(false);
        }
        let column = of.rsplit_once('%').map_or(of, |(column, _)| column.trim());
        let Some((table, column)) = column.rsplit_once('.') else {
            return Ok(true);
        };
        let names = plpgsql::names(column).map_err(Failure::Refused)?;
        let table = self
            .along_path(
                "select pg_catalog.to_regclass($1)::pg_catalog.oid",
                &[&table],
            )
            .await?;
        let table: Option<u32> = table.try_get(0)?;
        let attribute = "select atttypmod from pg_attribute where attrelid = $1 and attname = $2";
        let row = self
            .transaction
            .query_opt(attribute, &[&table, &names.first()])
            .await?;
        let modifier = row.map(|row| row.try_get::<_, i32>(0)).transpose()?;
        Ok(modifier != Some(-1))
    }

    /// Asks what names mean as the function's do. No operator may be in it: it could be somebody's.
    pub(super) async fn along_path(
        &self,
        query: &str,
        with: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, Failure> {
        self.transaction.execute(PATH, &[&self.path]).await?;
        let row = self.transaction.query_one(query, with).await?;
        self.transaction.execute(PATH, &[&""]).await?;
        Ok(row)
    }

    async fn all(&mut self, source: &[plpgsql::Statement]) -> Result<Vec<Statement>, Failure> {
        let mut all = Vec::with_capacity(source.len());
        for one in source {
            all.push(match one {
                plpgsql::Statement::Assign(name, value) => {
                    Statement::Assign(self.variable(name)?, self.expression(value).await?)
                }
                plpgsql::Statement::Into {
                    strict,
                    variables,
                    query,
                } => {
                    let query = self.tree(&self.rows.put_in(query)?).await?;
                    let variables = self.targets(variables, &query)?;
                    Statement::Into {
                        strict: *strict,
                        variables,
                        query,
                    }
                }
                plpgsql::Statement::If(branches, otherwise) => {
                    let mut analysed = Vec::with_capacity(branches.len());
                    for (condition, inner) in branches {
                        let condition = self.expression(condition).await?;
                        analysed.push((condition, Box::pin(self.all(inner)).await?));
                    }
                    Statement::If(analysed, Box::pin(self.all(otherwise)).await?)
                }
                plpgsql::Statement::Try(inner, handler) => {
                    let inner = Box::pin(self.all(inner)).await?;
                    let handler = match handler {
                        Some(handler) => Some(Box::pin(self.all(handler)).await?),
                        None => None,
                    };
                    Statement::Try(inner, handler)
                }
                plpgsql::Statement::Evaluate(value) => {
                    Statement::Evaluate(self.expression(value).await?)
                }
                plpgsql::Statement::Return(value) => {
                    Statement::Return(self.expression(value).await?)
                }
                plpgsql::Statement::Rows(query) => {
                    Statement::Rows(self.tree(&self.rows.put_in(query)?).await?)
                }
                plpgsql::Statement::End => Statement::End,
                plpgsql::Statement::Raise => Statement::Raise,
            });
        }
        Ok(all)
    }

    pub(super) fn variable(&self, name: &str) -> Result<usize, Failure> {
        let found = self.names.iter().position(|known| known == name);
        found.ok_or_else(|| {
            Failure::Refused(format!("sets {name}, which is not a variable of its own"))
        })
    }

    async fn expression(&mut self, text: &str) -> Result<Arc<str>, Failure> {
        let text = self.rows.put_in(text)?;
        self.tree(&format!("select {text}")).await
    }

    pub(super) async fn tree(&mut self, query: &str) -> Result<Arc<str>, Failure> {
        // Whatever it gives: that is made fit when it is assigned.
        let made = made(
            self.transaction,
            (self.function, self.path),
            (&self.arguments(), "void", query),
        )
        .await?;
        let (tree, types) = made;
        self.types = types;
        if tree.contains(":isReturn true") {
            return Err(Failure::Refused("returns by RETURN".to_owned()));
        }
        // PL/pgSQL raises an error for a name that is both, SQL takes the column.
        let columns: BTreeSet<&str> = tree
            .split(['(', ')', ' '])
            .filter(|word| word.starts_with('"'))
            .collect();
        for name in plpgsql::names(query).map_err(Failure::Refused)? {
            let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let known = self.names.contains(&name);
            if known && (!plain || columns.contains(format!("\"{name}\"").as_str())) {
                return Err(Failure::Refused(format!(
                    "names {name}, which is a variable and a column: PostgreSQL raises an error"
                )));
            }
        }
        Ok(tree)
    }
}

//! PL/pgSQL functions that run straight on.

use std::collections::BTreeSet;

use super::call::only_statement;
use super::inline::strict;
use super::select::{Link, Rows};
use super::{Compiler, Raising, Refusal, Typed, operators};
use crate::datum::{Datum, Trouble, Type, UserType};
use crate::mutant::FunctionMutant;
use crate::pg::Oid;
use crate::policy::body::{Program, Statement};
use crate::policy::expr::select::{Asked, Select, Several};
use crate::policy::expr::{Constant, Expr};
use crate::policy::node_tree::{self, Tree};

const BOOL: Oid = Oid(16);

/// The casts by assignment between numbers: from, to, and the function that does it.
const ASSIGNED: [(u32, u32, u32); 9] = [
    (21, 23, 313),
    (21, 20, 754),
    (23, 20, 481),
    (23, 21, 314),
    (20, 23, 480),
    (20, 21, 714),
    (21, 1700, 1782),
    (23, 1700, 1740),
    (20, 1700, 1781),
];

/// A function of statements, on its way through them.
#[derive(Clone, Copy)]
struct Running<'p> {
    program: &'p Program,
    result: Oid,
    /// Whether a block around catches errors.
    caught: bool,
}

/// What becomes of a function that returns a set: rows, each on conditions, and what is evaluated
/// besides.
#[derive(Default)]
struct Gathered {
    rows: Vec<Rows>,
    before: Vec<Expr>,
}

impl Compiler<'_> {
    pub(super) fn program(
        &mut self,
        program: &Program,
        result: Oid,
        depth: usize,
    ) -> Result<Expr, Refusal> {
        self.declare(program)?;
        let running = Running {
            program,
            result,
            caught: false,
        };
        self.run(running, &[&program.statements], depth)
    }

    /// Its own variables: each is one of the arguments of its queries.
    fn declare(&mut self, program: &Program) -> Result<(), Refusal> {
        let first = self.calls.last().map_or(0, Vec::len);
        for (at, oid) in program.variables.iter().enumerate() {
            // Its values are not checked natively.
            if let Some(UserType::Domain { .. }) = self.scope.types.user.get(oid) {
                return Err(Refusal::new(format!(
                    "a variable of type {oid}, which is a domain"
                )));
            }
            let at = first + at;
            let expr = if program.found == Some(at) {
                Expr::constant(Datum::Bool(false))
            } else if program.unset.contains(&at) && !FunctionMutant::UnsetIsNull.active() {
                // An error, but where the row as a whole is held against NULL.
                Expr::Fail(Trouble::Undecided)
            } else {
                Expr::NULL
            };
            let variable = Typed {
                expr,
                oid: *oid,
                nodes: 1,
            };
            if let Some(variables) = self.calls.last_mut() {
                variables.push(variable);
            }
        }
        Ok(())
    }

    /// What comes of statements, and of those behind them where they do not return.
    fn run(
        &mut self,
        running: Running<'_>,
        statements: &[&[Statement]],
        depth: usize,
    ) -> Result<Expr, Refusal> {
        if depth > 400 {
            return Err(Refusal::new("the expression is nested too deeply"));
        }
        self.spend(1)?;
        let Some((now, behind)) = statements.split_last() else {
            // Control reached the end of the function without RETURN.
            if FunctionMutant::EndIsNull.active() {
                return Ok(Expr::NULL);
            }
            return Ok(Expr::Fail(Trouble::Error));
        };
        let Some((statement, rest)) = now.split_first() else {
            return self.run(running, behind, depth);
        };
        let mut then = behind.to_vec();
        then.push(rest);
        let ran = self.statement(running, statement, &then, depth + 1);
        match ran {
            // An error once it comes to that.
            Err(refusal) if refusal.denied => Ok(self.raise(Raising::Denied(refusal.reason))),
            other => other,
        }
    }

    fn statement(
        &mut self,
        running: Running<'_>,
        statement: &Statement,
        then: &[&[Statement]],
        depth: usize,
    ) -> Result<Expr, Refusal> {
        match statement {
            Statement::Raise => Ok(Expr::Fail(Trouble::Error)),
            Statement::Return(tree) => {
                let value = self.statement_value(tree, depth)?;
                let as_is = self.same_text(value.oid, running.result) || value.expr == Expr::NULL;
                if running.caught && !as_is {
                    // That is cast outside of the block.
                    return Err(Refusal::new(
                        "a block with EXCEPTION that returns another type",
                    ));
                }
                self.fit(value, running.result)
            }
            Statement::End => Err(Refusal::new("a RETURN without a value")),
            Statement::Rows(_) => Err(Refusal::new("returns rows one by one")),
            Statement::Assign(..) | Statement::Into { .. } | Statement::Evaluate(_) => {
                let guards = self.effect(running, statement, depth)?;
                let rest = self.run(running, then, depth)?;
                Ok(guarded(guards, rest))
            }
            Statement::Try(inner, handler) => {
                self.attempt(running, (inner, handler.as_deref()), then, depth)
            }
            Statement::If(branches, otherwise) => {
                let mut whens = Vec::with_capacity(branches.len());
                let variables = self.calls.last().cloned().unwrap_or_default();
                for (condition, inner) in branches {
                    let condition = self.condition(condition, depth)?;
                    let mut inner_then = then.to_vec();
                    inner_then.push(inner);
                    let ran = self.run(running, &inner_then, depth)?;
                    whens.push((condition, ran));
                    self.restore(&variables);
                }
                let mut otherwise_then = then.to_vec();
                otherwise_then.push(otherwise);
                let otherwise = self.run(running, &otherwise_then, depth)?;
                self.restore(&variables);
                if FunctionMutant::IfTakesElse.active() {
                    return Ok(otherwise);
                }
                Ok(Expr::Case(whens, Box::new(otherwise)))
            }
        }
    }

    fn condition(&mut self, tree: &str, depth: usize) -> Result<Expr, Refusal> {
        match self.statement_value(tree, depth) {
            Err(refusal) if refusal.denied => Ok(self.raise(Raising::Denied(refusal.reason))),
            Err(refusal) => Err(refusal),
            Ok(condition) => self.fit(condition, BOOL),
        }
    }

    /// What a statement that sets variables evaluates, whether they are used or not.
    fn effect(
        &mut self,
        running: Running<'_>,
        statement: &Statement,
        depth: usize,
    ) -> Result<Vec<Expr>, Refusal> {
        match statement {
            Statement::Assign(variable, tree) => {
                let value = self.statement_value(tree, depth)?;
                Ok(self.assign(*variable, value)?.into_iter().collect())
            }
            Statement::Into {
                strict,
                variables,
                query,
            } => self.into(running.program, (*strict, variables), query, depth),
            Statement::Evaluate(tree) => {
                let value = self.statement_value(tree, depth)?;
                Ok(vec![value.expr])
            }
            _ => Err(Refusal::new(
                "a statement that does more than set variables",
            )),
        }
    }

    /// A block whose errors are caught. It must either always return, or never.
    fn attempt(
        &mut self,
        running: Running<'_>,
        (inner, handler): (&[Statement], Option<&[Statement]>),
        then: &[&[Statement]],
        depth: usize,
    ) -> Result<Expr, Refusal> {
        let variables = self.calls.last().cloned().unwrap_or_default();
        let leaves = inner.iter().any(Statement::leaves);
        if !leaves && inner.iter().any(Statement::may_return) {
            return Err(Refusal::new(
                "a block with EXCEPTION that may return or not",
            ));
        }
        let tried = if leaves {
            let running = Running {
                caught: true,
                ..running
            };
            self.run(running, &[inner], depth)?
        } else {
            // Whether it comes to its end.
            let mut guards = Vec::new();
            for statement in inner {
                match self.effect(running, statement, depth) {
                    Err(refusal) if refusal.denied => {
                        guards.push(self.raise(Raising::Denied(refusal.reason)));
                    }
                    other => guards.extend(other?),
                }
            }
            let ended = guarded(guards, Expr::constant(Datum::Bool(true)));
            let failed = Expr::constant(Datum::Bool(false));
            let ended = self.caught(ended, failed)?;
            let behind = self.run(running, then, depth)?;
            self.restore(&variables);
            let caught = self.handled(running, (inner, handler), then, depth)?;
            self.restore(&variables);
            return Ok(Expr::Case(vec![(ended, behind)], Box::new(caught)));
        };
        self.restore(&variables);
        let caught = self.handled(running, (inner, handler), then, depth)?;
        self.restore(&variables);
        self.caught(tried, caught)
    }

    /// What comes of the statements for errors.
    fn handled(
        &mut self,
        running: Running<'_>,
        (inner, handler): (&[Statement], Option<&[Statement]>),
        then: &[&[Statement]],
        depth: usize,
    ) -> Result<Expr, Refusal> {
        // Which errors the others are is not known here.
        let Some(handler) = handler else {
            return Ok(Expr::Fail(Trouble::Undecided));
        };
        // Variables keep what they were set to before the error, wherever that was.
        let mut set = BTreeSet::new();
        let asking = inner.iter().filter(|one| one.sets(&mut set)).count();
        if let Some(found) = running.program.found.filter(|_| asking > 0) {
            set.insert(found);
        }
        if let Some(variables) = self.calls.last_mut() {
            for variable in set {
                if let Some(variable) = variables.get_mut(variable) {
                    variable.expr = Expr::Fail(Trouble::Undecided);
                }
            }
        }
        let mut handled = then.to_vec();
        handled.push(handler);
        self.run(running, &handled, depth)
    }

    /// The rows of a function that returns a set, and what is evaluated besides.
    pub(super) fn rows_of_program(
        &mut self,
        program: &Program,
        result: Oid,
        depth: usize,
    ) -> Result<(Vec<Rows>, Vec<Expr>), Refusal> {
        self.declare(program)?;
        self.frames = Vec::new();
        let mut gathered = Gathered::default();
        let running = Running {
            program,
            result,
            caught: false,
        };
        self.gather(running, &[&program.statements], &[], &mut gathered, depth)?;
        if gathered.rows.is_empty() {
            return Err(Refusal::new("returns no rows of a query"));
        }
        Ok((gathered.rows, gathered.before))
    }

    /// Adds the rows of statements that are come to on conditions.
    fn gather(
        &mut self,
        running: Running<'_>,
        statements: &[&[Statement]],
        when: &[Expr],
        gathered: &mut Gathered,
        depth: usize,
    ) -> Result<(), Refusal> {
        if depth > 400 {
            return Err(Refusal::new("the expression is nested too deeply"));
        }
        self.spend(1)?;
        let Some((now, behind)) = statements.split_last() else {
            return Ok(());
        };
        let Some((statement, rest)) = now.split_first() else {
            return self.gather(running, behind, when, gathered, depth);
        };
        let mut then = behind.to_vec();
        then.push(rest);
        let mut besides = |guards: Vec<Expr>| {
            gathered.before.extend(guards.into_iter().map(|guard| {
                if when.is_empty() {
                    return guard;
                }
                Expr::Case(
                    vec![(Expr::And(when.to_vec()), guard)],
                    Box::new(Expr::NULL),
                )
            }));
        };
        match statement {
            Statement::End => return Ok(()),
            Statement::Raise => {
                besides(vec![Expr::Fail(Trouble::Error)]);
                return Ok(());
            }
            Statement::Assign(..) | Statement::Into { .. } | Statement::Evaluate(_) => {
                besides(self.effect(running, statement, depth)?);
            }
            Statement::Rows(tree) => {
                let (mut rows, before) = self.rows_of_query(tree, running.result, depth)?;
                besides(before);
                // Other types are an error here, however alike.
                let result = [running.result];
                let wanted = match running.program.columns {
                    0 => Some(&result[..]),
                    columns => running.program.variables.get(..columns),
                };
                let alike = |one: &Rows| {
                    let types = one.values.iter().map(|value| &value.oid);
                    wanted.is_some_and(|wanted| types.eq(wanted))
                };
                if !rows.iter().all(alike) {
                    return Err(Refusal::new("returns rows of another type"));
                }
                let exist = rows.iter().map(|one| {
                    Expr::Select(Box::new(Select {
                        from: one.from.clone(),
                        result: Asked::Exists,
                    }))
                });
                self.says(running.program, Expr::Or(exist.collect()));
                for step in rows.iter_mut().filter_map(|rows| rows.from.last_mut()) {
                    if !FunctionMutant::RowsForgetTheirBranch.active() {
                        step.condition.splice(0..0, when.iter().cloned());
                    }
                }
                gathered.rows.extend(rows);
            }
            Statement::If(branches, otherwise) => {
                let variables = self.calls.last().cloned().unwrap_or_default();
                let mut not = when.to_vec();
                for (condition, inner) in branches {
                    let condition = self.condition(condition, depth)?;
                    // Of what is true of no row it would not be noticed.
                    let guard = Expr::Case(
                        vec![(Expr::And(not.clone()), condition.clone())],
                        Box::new(Expr::NULL),
                    );
                    gathered.before.push(guard);
                    let mut taken = not.clone();
                    taken.push(condition.clone());
                    let mut inner_then = then.clone();
                    inner_then.push(inner);
                    self.gather(running, &inner_then, &taken, gathered, depth + 1)?;
                    self.restore(&variables);
                    not.push(Expr::IsBool(Box::new(condition), Some(true), true));
                }
                let mut otherwise_then = then.clone();
                otherwise_then.push(otherwise);
                self.gather(running, &otherwise_then, &not, gathered, depth + 1)?;
                self.restore(&variables);
                return Ok(());
            }
            Statement::Return(_) | Statement::Try(..) => {
                return Err(Refusal::new("returns rows one by one"));
            }
        }
        self.gather(running, &then, when, gathered, depth + 1)
    }

    fn restore(&mut self, variables: &[Typed]) {
        if let Some(own) = self.calls.last_mut() {
            own.clear();
            own.extend_from_slice(variables);
        }
    }

    /// The value of an expression: of a query with one row at most.
    fn statement_value(&mut self, tree: &str, depth: usize) -> Result<Typed, Refusal> {
        let tree = node_tree::read(tree)?;
        let query = only_statement(&tree)?;
        self.permitted(query)?;
        self.scalar(query, Several::Raise, depth)
    }

    /// Puts a value into a variable; what has to be evaluated then, whether it is used or not.
    fn assign(&mut self, variable: usize, value: Typed) -> Result<Option<Expr>, Refusal> {
        let unknown = || Refusal::new("a variable that is not known");
        let of = self.calls.last().and_then(|all| all.get(variable));
        let of = of.map(|known| known.oid).ok_or_else(unknown)?;
        let nodes = value.nodes;
        let expr = self.fit(value, of)?;
        let guard = (!matches!(expr, Expr::Const(_) | Expr::Column(_))).then(|| expr.clone());
        let known = self.calls.last_mut().and_then(|all| all.get_mut(variable));
        *known.ok_or_else(unknown)? = Typed {
            expr,
            oid: of,
            nodes,
        };
        Ok(guard)
    }

    fn into(
        &mut self,
        program: &Program,
        (strict, variables): (bool, &[Option<usize>]),
        tree: &str,
        depth: usize,
    ) -> Result<Vec<Expr>, Refusal> {
        let tree = node_tree::read(tree)?;
        let query = only_statement(&tree)?;
        self.permitted(query)?;
        let mut distinct: BTreeSet<usize> = BTreeSet::new();
        let mut set = variables.iter().flatten();
        if !set.all(|variable| distinct.insert(*variable)) {
            return Err(Refusal::new("INTO the same variable twice"));
        }
        let plain = self.is_plain(query)?;
        let mut guards = Vec::new();
        if variables.is_empty() {
            guards.extend(self.performed(query, plain, depth)?);
        }
        let several = if strict {
            Several::Raise
        } else {
            Several::First
        };
        let targets = if variables.is_empty() {
            Vec::new()
        } else {
            self.targets(query)?
        };
        let mut values = Vec::with_capacity(variables.len());
        for (at, target) in targets.iter().enumerate() {
            let variable = variables.get(at).copied().flatten();
            if variable.is_none() && matches!(target.as_str(), "VAR" | "CONST") {
                continue;
            }
            let value = self.scalar(&self.only_target(query, at)?, several, depth)?;
            match variable {
                Some(variable) => values.push((variable, value)),
                // Nobody reads it, but it may raise an error.
                None => guards.push(value.expr),
            }
        }
        // Variables for which there is no column are set to NULL.
        let missing = variables.iter().skip(targets.len()).flatten();
        for variable in missing.filter(|_| !FunctionMutant::MissingColumnKeepsValue.active()) {
            values.push((*variable, self.null_of(*variable)?));
        }
        let found = if plain {
            Expr::constant(Datum::Bool(true))
        } else if query.node(self.scope.major)?.flag("hasAggs")? {
            self.folded_is_found(query, variables.len(), depth)?
        } else {
            let frames = std::mem::take(&mut self.frames);
            let rows = self.rows_or_call(query, Link::Exists, depth);
            self.frames = frames;
            // What is evaluated before is so for the values.
            let exist = rows?.0.into_iter().map(|rows| rows.asked(Asked::Exists));
            Expr::Or(exist.collect())
        };
        if strict && !plain {
            // No row is an error as well.
            let none = Expr::Case(
                vec![(found.clone(), Expr::constant(Datum::Bool(true)))],
                Box::new(Expr::Fail(Trouble::Error)),
            );
            guards.push(none);
        }
        for (variable, value) in values {
            guards.extend(self.assign(variable, value)?);
        }
        self.says(program, found);
        Ok(guards)
    }

    /// Sets FOUND, where that is asked.
    fn says(&mut self, program: &Program, found: Expr) {
        let noticed = !FunctionMutant::NothingIsFound.active();
        let Some(at) = program.found.filter(|_| noticed) else {
            return;
        };
        if let Some(known) = self.calls.last_mut().and_then(|all| all.get_mut(at)) {
            *known = Typed {
                expr: found,
                oid: BOOL,
                nodes: 1,
            };
        }
    }

    /// What PERFORM evaluates and throws away, where that could raise an error.
    fn performed(
        &mut self,
        query: &Tree,
        plain: bool,
        depth: usize,
    ) -> Result<Option<Expr>, Refusal> {
        let node = query.node(self.scope.major)?;
        if plain && !node.flag("hasTargetSRFs")? {
            return Ok(Some(self.scalar(query, Several::Raise, depth)?.expr));
        }
        for target in node.field("targetList")?.items()? {
            let target = target.node(self.scope.major)?.field("expr")?;
            let computed = target.node(self.scope.major)?;
            if !matches!(computed.name.as_str(), "CONST" | "VAR") {
                return Err(Refusal::new("PERFORM of what is computed from rows"));
            }
        }
        Ok(None)
    }

    /// NULL, of a variable's type.
    fn null_of(&self, variable: usize) -> Result<Typed, Refusal> {
        let known = self.calls.last().and_then(|all| all.get(variable));
        let known = known.ok_or_else(|| Refusal::new("a variable that is not known"))?;
        Ok(Typed {
            expr: Expr::NULL,
            oid: known.oid,
            nodes: 1,
        })
    }

    /// What nodes a query's columns are.
    pub(super) fn targets(&self, query: &Tree) -> Result<Vec<String>, Refusal> {
        let query = query.node(self.scope.major)?;
        let mut found = Vec::new();
        for target in query.field("targetList")?.items()? {
            let target = target.node(self.scope.major)?;
            if !target.flag("resjunk")? {
                found.push(target.field("expr")?.node(self.scope.major)?.name.clone());
            }
        }
        Ok(found)
    }

    /// Whether a query with aggregates gives its row, which its HAVING may leave out.
    fn folded_is_found(
        &mut self,
        query: &Tree,
        variables: usize,
        depth: usize,
    ) -> Result<Expr, Refusal> {
        let having = query.node(self.scope.major)?.field("havingQual")?;
        if variables > 0 && *having == Tree::Null {
            // That there is nothing else to it was seen with the values.
            return Ok(Expr::constant(Datum::Bool(true)));
        }
        let only = match variables {
            0 => query.clone(),
            _ => self.only_target(query, 0)?,
        };
        let only = only.node(self.scope.major)?;
        let frames = std::mem::take(&mut self.frames);
        let folded = self.folded(only, Link::Exists, depth);
        self.frames = frames;
        folded.map(|(found, _)| found)
    }

    /// A query with only one of its columns.
    pub(super) fn only_target(&self, query: &Tree, at: usize) -> Result<Tree, Refusal> {
        let mut node = query.node(self.scope.major)?.clone();
        let mut seen = 0;
        let mut kept = Vec::new();
        let sorted = !node.field("sortClause")?.items()?.is_empty();
        for target in node.field("targetList")?.items()? {
            let mut entry = target.node(self.scope.major)?.clone();
            let junk = entry.flag("resjunk")?;
            if junk || seen == at {
                kept.push(target.clone());
            } else if sorted && entry.number::<u32>("ressortgroupref")? != 0 {
                // What rows are sorted by counts, if only for that.
                for (label, value) in &mut entry.fields {
                    if label == "resjunk" {
                        *value = Tree::Atom("true".to_owned());
                    }
                }
                kept.push(Tree::Node(entry));
            }
            seen += usize::from(!junk);
        }
        for (label, value) in &mut node.fields {
            if label == "targetList" {
                *value = Tree::List(std::mem::take(&mut kept));
            }
        }
        Ok(Tree::Node(node))
    }

    /// A value as one of another type, as PL/pgSQL assigns it.
    fn fit(&self, value: Typed, to: Oid) -> Result<Expr, Refusal> {
        if self.same_text(value.oid, to) {
            return Ok(value.expr);
        }
        if matches!(
            self.scope.types.user.get(&to),
            Some(UserType::Domain { .. })
        ) {
            return Err(Refusal::new(format!("type {to} is a domain")));
        }
        let (from, of) = (
            self.type_of(value.oid, Oid(100))?,
            self.type_of(to, Oid(100))?,
        );
        let cast = ASSIGNED.iter();
        let mut cast = cast.filter(|(from, to_, _)| (*from, *to_) == (value.oid.0, to.0));
        if let Some((_, _, function)) = cast.next()
            && let Some(cast) = operators::function(Oid(*function), self.scope.major)
        {
            return Ok(strict(cast.function, vec![value.expr]));
        }
        let by_text = match (&from, &of) {
            // There are casts of its own from and to these.
            (Type::Bool, _) | (_, Type::Text(_)) if from != of => {
                matches!(
                    from,
                    Type::Uuid | Type::Int2 | Type::Int4 | Type::Int8 | Type::Enum(_)
                ) && matches!(to, Oid(25 | 1043))
            }
            (Type::Text(_), _) => matches!(value.oid, Oid(25 | 1043)),
            _ => false,
        };
        if !by_text {
            return Err(Refusal::new(format!(
                "a value of type {} for one of type {to}",
                value.oid
            )));
        }
        let (expr, _) = self.by_text(value, to, Oid(100))?;
        // What a constant comes to is known only when it is assigned.
        Ok(match expr {
            Expr::Const(Constant(None)) => Expr::NULL,
            other => other,
        })
    }
}

/// What raises an error does so whether or not its value is used.
pub(super) fn guarded(guards: Vec<Expr>, rest: Expr) -> Expr {
    if guards.is_empty() || FunctionMutant::UnusedRaisesNothing.active() {
        return rest;
    }
    Expr::Body(guards, false, Box::new(rest))
}

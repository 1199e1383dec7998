//! Functions whose body takes the place of the call: SQL functions of one query, and PL/pgSQL
//! functions that run straight on. Inside a SECURITY DEFINER function its owner looks into tables.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::select::{Folding, Link, Rows};
use super::{Around, Compiler, Function, Looked, MAX_CALLS, Refusal, Typed};
use crate::datum::{Datum, Trouble, Type, UserType};
use crate::mutant::FunctionMutant;
use crate::pg::Oid;
use crate::policy::body::{Body, Context, Program, Statement};
use crate::policy::expr::select::{Asked, Several};
use crate::policy::expr::{self, Constant, Expr};
use crate::policy::node_tree::{self, Node, Tree};
use crate::policy::reach::{OFFSET, tables_in};

const BOOL: Oid = Oid(16);

/// How many tables an argument may look into, where it does.
const ROOM: u32 = 6;

/// What is put aside while a function's body is compiled.
struct Caller {
    context: Context,
    user: Option<Arc<str>>,
    unfiltered: bool,
    frames: Vec<Around>,
    output: Vec<Typed>,
    folding: Option<Folding>,
    looked: u32,
    tests: Vec<Typed>,
    applied: Vec<(Oid, Oid)>,
}

impl Expr {
    /// Whether it looks into a table.
    fn looks(&self) -> bool {
        matches!(self, Self::Select(_)) || self.children().into_iter().any(Self::looks)
    }
}

impl Looked {
    /// Whether the role may read the columns, by their numbers with the offset.
    fn permits(&self, columns: &[i64]) -> bool {
        let Some(readable) = &self.readable else {
            return true;
        };
        let may = |column: &i64| match column - OFFSET {
            number @ 1.. => i16::try_from(number).is_ok_and(|number| readable.contains(&number)),
            // The row as a whole, and what every row has.
            _ => self.columns.keys().all(|column| readable.contains(column)),
        };
        // Who reads no column at all must be able to read some.
        if columns.is_empty() {
            !readable.is_empty()
        } else {
            columns.iter().all(may)
        }
    }
}

impl Compiler<'_> {
    /// Refuses what the role may not read of what a tree looks into.
    pub(super) fn permitted(&self, tree: &Tree) -> Result<(), Refusal> {
        let mut read = Vec::new();
        tables_in(tree, &mut read);
        for (oid, columns) in read {
            if let Some(table) = self.table(oid)
                && !table.permits(&columns)
            {
                return Err(Refusal::denied(format!(
                    "permission denied for table {}",
                    table.name
                )));
            }
        }
        Ok(())
    }

    /// Refuses a table of which row-level security would leave out rows where it may not.
    pub(super) fn secured(&self, table: &Looked) -> Result<(), Refusal> {
        let forgotten = FunctionMutant::RowSecurityIsForgotten.active();
        if self.unfiltered && table.policies.is_some() && !forgotten {
            return Err(Refusal::denied(format!(
                "query would be affected by row-level security policy for table {}",
                table.name
            )));
        }
        Ok(())
    }

    /// Notes that the policies of a table are applied to the query in hand: PostgreSQL does not do
    /// that once more inside, where one of them looks into a table.
    pub(super) fn applying(&mut self, oid: Oid, table: &Looked) -> Result<(), Refusal> {
        let one = (self.context.role, oid);
        let policies = table.policies.iter().flatten();
        let mut looking = policies.filter(|policy| policy.tree.contains("{SUBLINK"));
        if self.applied.contains(&one) && looking.next().is_some() {
            return Err(Refusal::denied(format!(
                "infinite recursion detected in policy for relation {}",
                table.name
            )));
        }
        self.applied.push(one);
        Ok(())
    }

    fn callee(
        &self,
        oid: Oid,
        args: &[Typed],
        (result, collation): (Oid, Oid),
    ) -> Result<Function, Refusal> {
        let function = self.scope.functions.get(&oid);
        let function =
            function.ok_or_else(|| Refusal::new(format!("function {oid} is not compiled")))?;
        let refuse = |why: &str| Err(Refusal::new(format!("function {} {why}", function.name)));
        if function.barred.contains(&self.context.role) {
            return Err(Refusal::denied(format!(
                "permission denied for function {}",
                function.name
            )));
        }
        if self.within.len() >= MAX_CALLS {
            return refuse("is nested too deeply");
        }
        // The body was analysed under the default collation.
        if !matches!(collation, Oid(0 | 100)) {
            return refuse("is called under a collation of its own");
        }
        if function.result != result || !args.iter().map(|arg| &arg.oid).eq(&function.arguments) {
            return refuse("is called with other types");
        }
        Ok(function.clone())
    }

    fn enter(&mut self, oid: Oid, function: &Function, args: Vec<Typed>) -> Caller {
        let context = Context {
            role: match &function.definer {
                Some((owner, _)) => *owner,
                None => self.context.role,
            },
            path: function.path.clone().or_else(|| self.context.path.clone()),
        };
        let user = function.definer.as_ref().map(|(_, name)| Arc::clone(name));
        let user = user.or_else(|| self.user.clone());
        let unfiltered = function.row_security.map_or(self.unfiltered, |on| !on);
        let looked = self.looked;
        // Its tables have other places than those that its arguments look into.
        if args.iter().any(|arg| arg.expr.looks()) {
            self.looked += ROOM;
        }
        self.calls.push(args);
        self.within.push(oid);
        Caller {
            context: std::mem::replace(&mut self.context, context),
            user: std::mem::replace(&mut self.user, user),
            unfiltered: std::mem::replace(&mut self.unfiltered, unfiltered),
            frames: std::mem::replace(&mut self.frames, vec![Around::Nothing]),
            output: std::mem::take(&mut self.output),
            folding: self.folding.take(),
            looked,
            tests: std::mem::take(&mut self.tests),
            applied: std::mem::take(&mut self.applied),
        }
    }

    fn leave(&mut self, caller: Caller) {
        self.calls.pop();
        self.within.pop();
        self.context = caller.context;
        self.user = caller.user;
        self.unfiltered = caller.unfiltered;
        self.frames = caller.frames;
        self.output = caller.output;
        self.folding = caller.folding;
        self.looked = caller.looked;
        self.tests = caller.tests;
        self.applied = caller.applied;
    }

    /// Whether a function is around already, by way of policies only.
    fn recursion(&self, oid: Oid, name: &str) -> Result<bool, Refusal> {
        if !self.within.contains(&oid) {
            return Ok(false);
        }
        // Where policies of a table call what looks into the table, that does not end.
        let direct = self.within.len() - self.calls.len();
        if self.within.iter().skip(direct).any(|around| *around == oid) {
            return Err(Refusal::new(format!("function {name} calls itself")));
        }
        Ok(true)
    }

    /// A call by its body.
    pub(super) fn call(
        &mut self,
        oid: Oid,
        args: Vec<Typed>,
        (result, collation): (Oid, Oid),
        depth: usize,
    ) -> Result<(Expr, Oid), Refusal> {
        let function = self.callee(oid, &args, (result, collation))?;
        if function.set {
            return Err(Refusal::new(format!(
                "function {} returns a set",
                function.name
            )));
        }
        if self.recursion(oid, &function.name)? {
            return Ok((Expr::Fail(Trouble::Error), result));
        }
        let guards: Vec<Expr> = args.iter().map(|arg| arg.expr.clone()).collect();
        let caller = self.enter(oid, &function, args);
        let body = self.body(&function, result, depth);
        self.leave(caller);
        // What PostgreSQL does not put in the call's place it calls, after it has evaluated the
        // arguments.
        let (body, eager) = match body {
            Ok((body, plain)) => (body, !plain),
            // Known only when it is called.
            Err((refusal, plain)) if refusal.denied && !plain => (Expr::Fail(Trouble::Error), true),
            Err((refusal, _)) => {
                return Err(Refusal {
                    reason: format!("function {}: {}", function.name, refusal.reason),
                    ..refusal
                });
            }
        };
        let strict = function.strict && !FunctionMutant::StrictIsForgotten.active();
        if strict && guards.contains(&Expr::NULL) {
            return Ok((Expr::NULL, result));
        }
        let fails = |guard: &Expr| !matches!(guard, Expr::Const(_));
        let guards: Vec<Expr> = match (strict, eager) {
            (true, _) => guards,
            (false, true) => guards.into_iter().filter(fails).collect(),
            (false, false) => Vec::new(),
        };
        if guards.is_empty() && !eager {
            return Ok((body, result));
        }
        Ok((Expr::Body(guards, strict, Box::new(body)), result))
    }

    /// A function's result, and whether PostgreSQL would put its body in the call's place.
    fn body(
        &mut self,
        function: &Function,
        result: Oid,
        depth: usize,
    ) -> Result<(Expr, bool), (Refusal, bool)> {
        let body = function.bodies.get(&self.context);
        let unknown = || Refusal::new("was not analysed as it runs here");
        let body = match body {
            Some(Ok(body)) => body,
            Some(Err(reason)) => return Err((Refusal::new(reason.clone()), true)),
            None => return Err((unknown(), true)),
        };
        match body {
            Body::Query(tree) => {
                // One that only computes is put in the call's place, unless it runs as somebody
                // else or with settings of its own.
                let plain = !tree.contains(":hasSubLinks true")
                    && !tree.contains(":rtindex ")
                    && function.definer.is_none()
                    && !function.configured;
                let value = self.first_row(tree, depth);
                let fit = value.and_then(|value| {
                    if self.same_text(value.oid, result) {
                        Ok((value.expr, plain))
                    } else {
                        Err(Refusal::new("has a body of another type"))
                    }
                });
                fit.map_err(|refusal| (refusal, plain))
            }
            Body::Program(program) => {
                let expr = self.program(program, result, depth);
                expr.map(|expr| (expr, false))
                    .map_err(|refusal| (refusal, false))
            }
        }
    }

    /// The value of the first row of a function's only query.
    fn first_row(&mut self, tree: &str, depth: usize) -> Result<Typed, Refusal> {
        let tree = node_tree::read(tree)?;
        let query = only_statement(&tree)?;
        self.permitted(query)?;
        self.scalar(query, Several::First, depth)
    }

    /// The value of a query in a function's body, where it may have several rows.
    fn scalar(&mut self, query: &Tree, several: Several, depth: usize) -> Result<Typed, Refusal> {
        if self.is_plain(query)? {
            return self.query(query, depth);
        }
        let frames = std::mem::take(&mut self.frames);
        let before = self.nodes;
        let value = self.one_of(query, several, depth);
        self.frames = frames;
        let (expr, oid) = value?;
        Ok(Typed {
            expr,
            oid,
            nodes: self.nodes - before,
        })
    }

    fn one_of(
        &mut self,
        query: &Tree,
        several: Several,
        depth: usize,
    ) -> Result<(Expr, Oid), Refusal> {
        let node = query.node(self.scope.major)?;
        if node.name == "QUERY" && node.flag("hasAggs")? {
            return self.folded(node, Link::Scalar, depth);
        }
        let (mut rows, before) = self.rows_or_call(query, Link::Scalar, depth)?;
        let (Some(mut rows), true) = (rows.pop(), rows.is_empty()) else {
            return Err(Refusal::new("a value by UNION"));
        };
        let value = rows.value()?;
        let several = match several {
            _ if FunctionMutant::FirstRowRaises.active() => Several::Raise,
            Several::First => Several::First,
            _ => rows.several,
        };
        Ok((guarded(before, rows.one(several, value.expr)), value.oid))
    }

    /// The rows of a call of a function that returns a set, and what has to be evaluated before.
    pub(super) fn rows_of_call(
        &mut self,
        node: &Node,
        depth: usize,
    ) -> Result<(Vec<Rows>, Vec<Expr>), Refusal> {
        let oid = node.oid("funcid")?;
        if node.flag("funcvariadic")? {
            return Err(Refusal::new(format!("function {oid} is variadic")));
        }
        let args = self.exprs(node.field("args")?, depth)?;
        let result = node.oid("funcresulttype")?;
        let collation = node.oid("inputcollid")?;
        self.refer(super::Reference::Function(oid));
        let function = self.callee(oid, &args, (result, collation))?;
        if self.recursion(oid, &function.name)? {
            return Err(Refusal::new(format!(
                "function {} calls itself",
                function.name
            )));
        }
        let guards: Vec<Expr> = args.iter().map(|arg| arg.expr.clone()).collect();
        let caller = self.enter(oid, &function, args);
        let rows = self.rows_of_body(&function, result, depth);
        self.leave(caller);
        let mut rows = rows.map_err(|refusal| Refusal {
            reason: format!("function {}: {}", function.name, refusal.reason),
            ..refusal
        })?;
        if function.strict && !FunctionMutant::StrictIsForgotten.active() {
            for step in rows.iter_mut().filter_map(|rows| rows.from.last_mut()) {
                let args = guards.iter().cloned();
                let known = args.map(|arg| Expr::IsNull(Box::new(arg), true));
                step.condition.extend(known);
            }
        }
        let fails = |guard: &Expr| !matches!(guard, Expr::Const(_));
        Ok((rows, guards.into_iter().filter(fails).collect()))
    }

    fn rows_of_body(
        &mut self,
        function: &Function,
        result: Oid,
        depth: usize,
    ) -> Result<Vec<Rows>, Refusal> {
        let tree = match function.bodies.get(&self.context) {
            Some(Ok(Body::Query(tree))) => tree,
            Some(Ok(Body::Program(_))) => return Err(Refusal::new("returns rows one by one")),
            Some(Err(reason)) => return Err(Refusal::new(reason.clone())),
            None => return Err(Refusal::new("was not analysed as it runs here")),
        };
        let tree = node_tree::read(tree)?;
        let query = only_statement(&tree)?;
        self.permitted(query)?;
        let node = query.node(self.scope.major)?;
        if node.name == "QUERY" && node.flag("hasAggs")? || self.is_plain(query)? {
            return Err(Refusal::new("a set that is not of a table's rows"));
        }
        self.frames = Vec::new();
        let (rows, before) = self.rows_or_call(query, Link::Values, depth)?;
        if !before.is_empty() {
            return Err(Refusal::new(
                "a set of another function's rows, by arguments",
            ));
        }
        for one in &rows {
            match one.values.as_slice() {
                [value] if self.same_text(value.oid, result) => {}
                _ => return Err(Refusal::new("has a body of another type")),
            }
        }
        Ok(rows)
    }

    fn program(&mut self, program: &Program, result: Oid, depth: usize) -> Result<Expr, Refusal> {
        let first = self.calls.last().map_or(0, Vec::len);
        // Each of its own is one of the arguments of its queries.
        for (at, oid) in program.variables.iter().enumerate() {
            // Its values are not checked natively.
            if let Some(UserType::Domain { .. }) = self.scope.types.user.get(oid) {
                return Err(Refusal::new(format!(
                    "a variable of type {oid}, which is a domain"
                )));
            }
            let unknown = program.found == Some(first + at);
            let expr = if unknown {
                Expr::constant(Datum::Bool(false))
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
        self.run(program, &[&program.statements], result, depth)
    }

    /// What comes of statements, and of those behind them where they do not return.
    fn run(
        &mut self,
        program: &Program,
        statements: &[&[Statement]],
        result: Oid,
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
            return self.run(program, behind, result, depth);
        };
        let mut then = behind.to_vec();
        then.push(rest);
        let ran = self.statement(program, statement, &then, result, depth + 1);
        match ran {
            // An error once it comes to that.
            Err(refusal) if refusal.denied => Ok(Expr::Fail(Trouble::Error)),
            other => other,
        }
    }

    fn statement(
        &mut self,
        program: &Program,
        statement: &Statement,
        then: &[&[Statement]],
        result: Oid,
        depth: usize,
    ) -> Result<Expr, Refusal> {
        match statement {
            Statement::Raise => Ok(Expr::Fail(Trouble::Error)),
            Statement::Return(tree) => {
                let value = self.statement_value(tree, depth)?;
                self.fit(value, result)
            }
            Statement::Assign(variable, tree) => {
                let value = self.statement_value(tree, depth)?;
                let guard = self.assign(*variable, value)?;
                let rest = self.run(program, then, result, depth)?;
                Ok(guarded(guard.into_iter().collect(), rest))
            }
            Statement::Into {
                strict,
                variables,
                query,
            } => {
                let guards = self.into(program, (*strict, variables), query, depth)?;
                let rest = self.run(program, then, result, depth)?;
                Ok(guarded(guards, rest))
            }
            Statement::If(branches, otherwise) => {
                let mut whens = Vec::with_capacity(branches.len());
                let variables = self.calls.last().cloned().unwrap_or_default();
                for (condition, inner) in branches {
                    let condition = self.statement_value(condition, depth);
                    let condition = match condition {
                        Err(refusal) if refusal.denied => Expr::Fail(Trouble::Error),
                        Err(refusal) => return Err(refusal),
                        Ok(condition) => self.fit(condition, BOOL)?,
                    };
                    let mut inner_then = then.to_vec();
                    inner_then.push(inner);
                    let ran = self.run(program, &inner_then, result, depth)?;
                    whens.push((condition, ran));
                    self.restore(&variables);
                }
                let mut otherwise_then = then.to_vec();
                otherwise_then.push(otherwise);
                let otherwise = self.run(program, &otherwise_then, result, depth)?;
                self.restore(&variables);
                if FunctionMutant::IfTakesElse.active() {
                    return Ok(otherwise);
                }
                Ok(Expr::Case(whens, Box::new(otherwise)))
            }
        }
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
        (strict, variables): (bool, &[usize]),
        tree: &str,
        depth: usize,
    ) -> Result<Vec<Expr>, Refusal> {
        let tree = node_tree::read(tree)?;
        let query = only_statement(&tree)?;
        self.permitted(query)?;
        let mut distinct: BTreeSet<usize> = BTreeSet::new();
        if !variables.iter().all(|variable| distinct.insert(*variable)) {
            return Err(Refusal::new("INTO the same variable twice"));
        }
        let plain = self.is_plain(query)?;
        let several = if strict {
            Several::Raise
        } else {
            Several::First
        };
        let mut values = Vec::with_capacity(variables.len());
        for at in 0..variables.len() {
            let only = self.only_target(query, (at, variables.len()))?;
            values.push(self.scalar(&only, several, depth)?);
        }
        let found = if plain || query.node(self.scope.major)?.flag("hasAggs")? {
            Expr::constant(Datum::Bool(true))
        } else {
            let frames = std::mem::take(&mut self.frames);
            let rows = self.rows_or_call(query, Link::Exists, depth);
            self.frames = frames;
            // What is evaluated before is so for the values.
            let exist = rows?.0.into_iter().map(|rows| rows.asked(Asked::Exists));
            Expr::Or(exist.collect())
        };
        let mut guards = Vec::new();
        if strict && !plain {
            // No row is an error as well.
            let none = Expr::Case(
                vec![(found.clone(), Expr::constant(Datum::Bool(true)))],
                Box::new(Expr::Fail(Trouble::Error)),
            );
            guards.push(none);
        }
        for (variable, value) in variables.iter().zip(values) {
            guards.extend(self.assign(*variable, value)?);
        }
        let noticed = !FunctionMutant::NothingIsFound.active();
        if let Some(at) = program.found.filter(|_| noticed) {
            let truth = Typed {
                expr: found,
                oid: BOOL,
                nodes: 1,
            };
            if let Some(known) = self.calls.last_mut().and_then(|all| all.get_mut(at)) {
                *known = truth;
            }
        }
        Ok(guards)
    }

    /// A query with only one of its columns.
    fn only_target(&self, query: &Tree, (at, of): (usize, usize)) -> Result<Tree, Refusal> {
        let mut node = query.node(self.scope.major)?.clone();
        let targets = node.field("targetList")?.items()?;
        let junk = |target: &Tree| match target.node(self.scope.major) {
            Ok(target) => target.flag("resjunk"),
            Err(refusal) => Err(refusal),
        };
        let mut seen = 0;
        let mut kept = Vec::new();
        for target in targets {
            let junk = junk(target)?;
            if junk || seen == at {
                kept.push(target.clone());
            }
            seen += usize::from(!junk);
        }
        // Fewer variables than columns, or more, are not an error to PL/pgSQL.
        if seen != of {
            return Err(Refusal::new(
                "INTO another number of variables than columns",
            ));
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
        let widened = match (&from, &of) {
            (Type::Int2, Type::Int4) | (Type::Int2 | Type::Int4, Type::Int8) => true,
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
        if !widened {
            return Err(Refusal::new(format!(
                "a value of type {} for one of type {to}",
                value.oid
            )));
        }
        if let (Type::Int2 | Type::Int4, Type::Int4 | Type::Int8) = (&from, &of) {
            let wide = expr::Function::Narrow(i64::MIN, i64::MAX);
            return Ok(super::inline::strict(wide, vec![value.expr]));
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
fn guarded(guards: Vec<Expr>, rest: Expr) -> Expr {
    if guards.is_empty() || FunctionMutant::UnusedRaisesNothing.active() {
        return rest;
    }
    Expr::Body(guards, false, Box::new(rest))
}

/// The only statement of a body: a query, or what BEGIN ATOMIC writes, a list of one list.
fn only_statement(tree: &Tree) -> Result<&Tree, Refusal> {
    let refuse = || Refusal::new("is not one statement");
    match tree {
        Tree::List(outer) => match outer.as_slice() {
            [Tree::List(statements)] => match statements.as_slice() {
                [query] => Ok(query),
                _ => Err(refuse()),
            },
            _ => Err(refuse()),
        },
        query => Ok(query),
    }
}

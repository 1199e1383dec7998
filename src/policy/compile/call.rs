//! Functions whose body takes the place of the call: SQL functions of one query, and PL/pgSQL
//! functions that run straight on. Inside a SECURITY DEFINER function its owner looks into tables.

use std::sync::Arc;

use super::select::{Folding, Link, Names, Rows};
use super::{
    Around, Compiler, Function, Looked, MAX_CALLS, Raising, Reference, Refusal, Typed, program,
};
use crate::mutant::FunctionMutant;
use crate::pg::Oid;
use crate::policy::body::{Body, Context};
use crate::policy::expr::Expr;
use crate::policy::expr::select::Several;
use crate::policy::node_tree::{self, Node, Tree};
use crate::policy::reach::{OFFSET, tables_in};

/// The type of what RETURNS TABLE of several columns returns.
const RECORD: Oid = Oid(2249);

/// How many tables an argument may look into, where it does.
const ROOM: u32 = 6;

/// What is put aside while a function's body is compiled.
struct Caller {
    context: Context,
    user: Option<Arc<str>>,
    called: bool,
    reader: Option<Oid>,
    views: Vec<Oid>,
    unfiltered: bool,
    frames: Vec<Around>,
    names: Names,
    output: Vec<Typed>,
    folding: Option<Folding>,
    looked: u32,
    tests: Vec<Typed>,
    applied: Vec<Option<Oid>>,
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
            // Until PostgreSQL 15 a view names itself.
            if self.views.last() == Some(&oid) {
                continue;
            }
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
        let mut policies = table.policies.iter().flatten();
        let looking = policies.any(|policy| policy.tree.contains("{SUBLINK"));
        let one = looking.then_some(oid);
        if looking && self.applied.contains(&one) {
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

    /// The arguments of a call by their places: those that it names too, and for those that it
    /// leaves out what the function has for them.
    pub(super) fn arguments(
        &mut self,
        oid: Oid,
        node: &Node,
        depth: usize,
    ) -> Result<Vec<Typed>, Refusal> {
        let function = self.scope.functions.get(&oid);
        let wanted = function.map_or(0, |function| function.arguments.len());
        let mut placed: Vec<Option<Typed>> = Vec::new();
        for (place, given) in node.field("args")?.items()?.iter().enumerate() {
            let named = given.node(self.scope.major)?;
            let (at, given) = if named.name == "NAMEDARGEXPR" {
                (named.number::<usize>("argnumber")?, named.field("arg")?)
            } else {
                (place, given)
            };
            if at >= placed.len() {
                if at > place && at >= wanted {
                    return Err(Refusal::new(format!("function {oid} has other arguments")));
                }
                placed.resize(at + 1, None);
            }
            // PostgreSQL's own functions look at the whole of it.
            let row = match function {
                Some(_) => self.whole_row(given)?,
                None => None,
            };
            let value = match row {
                Some(row) => row,
                None => self.expr(given, depth)?,
            };
            if let Some(free) = placed.get_mut(at) {
                *free = Some(value);
            }
        }
        if placed.len() < wanted {
            placed.resize(wanted, None);
        }
        if let Some(function) = function.filter(|_| placed.iter().any(Option::is_none)) {
            let defaults = function.defaults.as_deref().unwrap_or("<>");
            let defaults = node_tree::read(defaults)?;
            let defaults = defaults.items()?;
            let first = wanted.checked_sub(defaults.len());
            let first = first.ok_or_else(|| Refusal::new("more defaults than arguments"))?;
            // The policy does not depend on what they name.
            let references = self.references.clone();
            for (place, default) in placed.iter_mut().skip(first).zip(defaults) {
                if place.is_none() {
                    let mut value = self.expr(default, depth)?;
                    if FunctionMutant::DefaultIsNull.active() {
                        value.expr = Expr::NULL;
                    }
                    *place = Some(value);
                }
            }
            self.references = references;
        }
        let all: Option<Vec<Typed>> = placed.into_iter().collect();
        all.ok_or_else(|| Refusal::new(format!("function {oid} has other arguments")))
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
            called: std::mem::take(&mut self.called),
            reader: self.reader.take(),
            views: std::mem::take(&mut self.views),
            unfiltered: std::mem::replace(&mut self.unfiltered, unfiltered),
            frames: std::mem::replace(&mut self.frames, vec![Around::Nothing]),
            names: std::mem::take(&mut self.names),
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
        self.called = caller.called;
        self.reader = caller.reader;
        self.views = caller.views;
        self.unfiltered = caller.unfiltered;
        self.frames = caller.frames;
        self.names = caller.names;
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
        self.inlined(oid, &function, args, (result, None), depth)
    }

    /// A field of the row that a function returns: its body's column of that place.
    pub(super) fn field_of_call(
        &mut self,
        node: &Node,
        call: &Node,
        depth: usize,
    ) -> Result<(Expr, Oid), Refusal> {
        let oid = call.oid("funcid")?;
        if call.flag("funcretset")? || call.flag("funcvariadic")? {
            return Err(Refusal::new("a field of another row"));
        }
        let args = self.arguments(oid, call, depth)?;
        let types = (call.oid("funcresulttype")?, call.oid("inputcollid")?);
        let function = self.callee(oid, &args, types)?;
        let (number, result) = (node.number::<i16>("fieldnum")?, node.oid("resulttype")?);
        let place = function.row.as_ref().and_then(|row| {
            let mut columns = row.columns.iter();
            let at = columns.position(|column| *column == (number, result))?;
            let by_number = usize::try_from(number)
                .unwrap_or_default()
                .saturating_sub(1);
            let mutant = FunctionMutant::FieldByNumber.active();
            Some((row.of, if mutant { by_number } else { at }))
        });
        let Some((row, at)) = place else {
            return Err(Refusal::new(format!(
                "a field of what function {} returns",
                function.name
            )));
        };
        self.refer(Reference::Function(oid));
        self.refer(Reference::Table(row));
        self.refer(Reference::Of(row, number));
        self.refer(Reference::Type(result));
        self.refer(Reference::Collation(node.oid("resultcollid")?));
        self.inlined(oid, &function, args, (result, Some(at)), depth)
    }

    /// The body in the place of a call, or one field of the row that it returns.
    fn inlined(
        &mut self,
        oid: Oid,
        function: &Function,
        args: Vec<Typed>,
        (result, field): (Oid, Option<usize>),
        depth: usize,
    ) -> Result<(Expr, Oid), Refusal> {
        if function.set {
            return Err(Refusal::new(format!(
                "function {} returns a set",
                function.name
            )));
        }
        if self.recursion(oid, &function.name)? {
            let why = Raising::Recursion(oid, function.name.clone());
            return Ok((self.raise(why), result));
        }
        let guards: Vec<Expr> = args.iter().map(|arg| arg.expr.clone()).collect();
        let caller = self.enter(oid, function, args);
        let body = self.body(function, (result, field), depth);
        self.leave(caller);
        // What PostgreSQL does not put in the call's place it calls, after it has evaluated the
        // arguments.
        let (body, eager) = match body {
            Ok((body, plain)) => (body, !plain),
            // Known only when it is called.
            Err((refusal, plain)) if refusal.denied && !plain => {
                let reason = format!("function {}: {}", function.name, refusal.reason);
                (self.raise(Raising::Denied(reason)), true)
            }
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
        (result, field): (Oid, Option<usize>),
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
                    && !function.configured
                    && field.is_none();
                // A strict one only where nothing in it, as OR, might be true of NULL.
                self.called = !plain || function.strict;
                let value = match (field, &function.row) {
                    (Some(at), Some(row)) => self.first_of(tree, (at, row.columns.len()), depth),
                    _ => self.first_row(tree, depth),
                };
                let fit = value.and_then(|value| {
                    if self.same_text(value.oid, result) {
                        Ok((value.expr, plain))
                    } else {
                        Err(Refusal::new("has a body of another type"))
                    }
                });
                fit.map_err(|refusal| (refusal, plain))
            }
            Body::Program(_) if field.is_some() => {
                let refusal = Refusal::new("returns a row, in PL/pgSQL");
                Err((refusal, false))
            }
            Body::Program(program) => {
                self.called = true;
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

    /// One column of the first row of a function's only query, which has so many.
    fn first_of(
        &mut self,
        tree: &str,
        (at, columns): (usize, usize),
        depth: usize,
    ) -> Result<Typed, Refusal> {
        let tree = node_tree::read(tree)?;
        let query = only_statement(&tree)?;
        self.permitted(query)?;
        let node = query.node(self.scope.major)?;
        if *node.field("setOperations")? != Tree::Null
            || !node.field("distinctClause")?.items()?.is_empty()
        {
            return Err(Refusal::new("returns a row of a UNION or DISTINCT"));
        }
        let targets = self.targets(query)?;
        if targets.len() != columns {
            return Err(Refusal::new("returns a row as a whole"));
        }
        // PostgreSQL computes them all, and one of them may raise an error.
        let calm = |(place, name): (usize, &String)| {
            place == at || matches!(name.as_str(), "VAR" | "CONST")
        };
        if !targets.iter().enumerate().all(calm) {
            return Err(Refusal::new("returns a row of what is computed"));
        }
        let only = self.only_target(query, at)?;
        self.scalar(&only, Several::First, depth)
    }

    /// The value of a query in a function's body, where it may have several rows.
    pub(super) fn scalar(
        &mut self,
        query: &Tree,
        several: Several,
        depth: usize,
    ) -> Result<Typed, Refusal> {
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
        Ok((
            program::guarded(before, rows.one(several, value.expr)),
            value.oid,
        ))
    }

    /// The rows of a call of a function that returns a set, and what has to be evaluated before.
    pub(super) fn rows_of_call(
        &mut self,
        node: &Node,
        depth: usize,
    ) -> Result<(Vec<Rows>, Vec<Expr>), Refusal> {
        if let Some(rows) = self.elements(node, depth)? {
            return Ok((vec![rows], Vec::new()));
        }
        let oid = node.oid("funcid")?;
        if node.flag("funcvariadic")? {
            return Err(Refusal::new(format!("function {oid} is variadic")));
        }
        let args = self.arguments(oid, node, depth)?;
        let result = node.oid("funcresulttype")?;
        let collation = node.oid("inputcollid")?;
        self.refer(Reference::Function(oid));
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
        let (mut rows, before) = rows.map_err(|refusal| Refusal {
            reason: format!("function {}: {}", function.name, refusal.reason),
            ..refusal
        })?;
        if function.strict && !before.is_empty() {
            return Err(Refusal::new(format!(
                "function {} is strict, and evaluates more than its rows",
                function.name
            )));
        }
        if function.strict && !FunctionMutant::StrictIsForgotten.active() {
            for step in rows.iter_mut().filter_map(|rows| rows.from.last_mut()) {
                let args = guards.iter().cloned();
                let known = args.map(|arg| Expr::IsNull(Box::new(arg), true));
                step.condition.extend(known);
            }
        }
        let fails = |guard: &Expr| !matches!(guard, Expr::Const(_));
        let guards = guards.into_iter().filter(fails);
        Ok((rows, guards.chain(before).collect()))
    }

    fn rows_of_body(
        &mut self,
        function: &Function,
        result: Oid,
        depth: usize,
    ) -> Result<(Vec<Rows>, Vec<Expr>), Refusal> {
        let tree = match function.bodies.get(&self.context) {
            Some(Ok(Body::Query(tree))) => tree,
            Some(Ok(Body::Program(program))) => {
                let program = Arc::clone(program);
                self.called = true;
                return self.rows_of_program(&program, result, depth);
            }
            Some(Err(reason)) => return Err(Refusal::new(reason.clone())),
            None => return Err(Refusal::new("was not analysed as it runs here")),
        };
        // Of others the body may take the call's place.
        self.called = function.definer.is_some() || function.configured;
        self.rows_of_query(tree, result, depth)
    }

    /// The rows of a query that are those of a function, and what has to be evaluated before.
    pub(super) fn rows_of_query(
        &mut self,
        tree: &str,
        result: Oid,
        depth: usize,
    ) -> Result<(Vec<Rows>, Vec<Expr>), Refusal> {
        let tree = node_tree::read(tree)?;
        let query = only_statement(&tree)?;
        self.permitted(query)?;
        let node = query.node(self.scope.major)?;
        if node.name == "QUERY" && node.flag("hasAggs")? || self.is_plain(query)? {
            return Err(Refusal::new("a set that is not of a table's rows"));
        }
        self.frames = Vec::new();
        let (rows, before) = self.rows_or_call(query, Link::Values, depth)?;
        self.fitting(&rows, result)?;
        Ok((rows, before))
    }

    /// Refuses rows of other columns than what a function returns.
    fn fitting(&self, rows: &[Rows], result: Oid) -> Result<(), Refusal> {
        let fits = |one: &Rows| match one.values.as_slice() {
            [value] => self.same_text(value.oid, result),
            // A column that is read of another type than declared is refused where it is read.
            several => result == RECORD && several.len() > 1,
        };
        if rows.iter().all(fits) {
            Ok(())
        } else {
            Err(Refusal::new("has a body of another type"))
        }
    }
}

/// The only statement of a body: a query, or what BEGIN ATOMIC writes, a list of one list.
pub(super) fn only_statement(tree: &Tree) -> Result<&Tree, Refusal> {
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

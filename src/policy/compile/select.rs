//! Sub-selects over one table, with what the table's own policies make of it.

use std::collections::BTreeSet;

use super::{Around, Compiler, Looked, Reference, Refusal, Typed};
use crate::datum::Datum;
use crate::pg::Oid;
use crate::policy::expr::select::{Asked, Select, Several};
use crate::policy::expr::{Constant, Expr};
use crate::policy::node_tree::{Node, Tree};

const BOOL: Oid = Oid(16);

/// Sub-selects inside each other, those of policies of the tables that are looked into included.
const MAX_DEPTH: u32 = 8;

/// The fields of `select … from <table> where …`.
const FIELDS: [&str; 10] = [
    "commandType",
    "canSetTag",
    "hasSubLinks",
    "rtable",
    "rteperminfos",
    "jointree",
    "targetList",
    "distinctClause",
    "limitCount",
    "stmt_len",
];

/// The fields of a table in FROM. That the columns which are read may be read is not looked at
/// here.
const TABLE: [&str; 11] = [
    "alias",
    "eref",
    "rtekind",
    "relid",
    "relkind",
    "rellockmode",
    "perminfoindex",
    "inh",
    "inFromCl",
    "requiredPerms",
    "selectedCols",
];

/// The fields of `select f(…)`.
const CALL: [&str; 8] = [
    "commandType",
    "canSetTag",
    "hasTargetSRFs",
    "hasSubLinks",
    "jointree",
    "targetList",
    "stmt_location",
    "stmt_len",
];

/// What a sub-link asks of its sub-select.
pub(super) enum Link {
    Exists,
    /// One value from each row.
    Values,
    /// One value.
    Scalar,
}

/// A sub-select without what is asked of it.
pub(super) struct Rows {
    table: Oid,
    depth: u32,
    pub(super) condition: Vec<Expr>,
    value: Option<Typed>,
    pub(super) several: Several,
}

impl Rows {
    /// Gives them another value.
    pub(super) fn put(&mut self, value: Typed) {
        self.value = Some(value);
    }

    pub(super) fn asked(self, result: Asked) -> Expr {
        Expr::Select(Box::new(Select {
            table: self.table,
            depth: self.depth,
            condition: self.condition,
            result,
            at: 0,
            keys: Vec::new(),
        }))
    }
}

/// What is evaluated after the arguments of the function that it asks.
fn after(guards: Vec<Expr>, asked: Expr) -> Expr {
    if guards.is_empty() {
        return asked;
    }
    Expr::Body(guards, false, Box::new(asked))
}

pub(super) fn value(rows: &mut Rows) -> Result<Typed, Refusal> {
    let value = rows.value.take();
    value.ok_or_else(|| Refusal::new("a sub-select without a value"))
}

impl Compiler<'_> {
    pub(super) fn sublink(&mut self, node: &Node, depth: usize) -> Result<(Expr, Oid), Refusal> {
        let kind = node.number::<u8>("subLinkType")?;
        let query = node.field("subselect")?;
        let tested = *node.field("testexpr")? != Tree::Null;
        if kind == 4 && !tested && self.is_plain(query)? && self.called(query)?.is_none() {
            self.frames.push(Around::Nothing);
            let query = self.query(query, depth);
            self.frames.pop();
            // The planner does not look inside: a constant there is none to what is around it.
            let query = query?;
            let body = Expr::Body(Vec::new(), false, Box::new(query.expr));
            return Ok((body, query.oid));
        }
        match (kind, tested) {
            (0, false) => {
                let (rows, guards) = self.rows_or_call(query, &Link::Exists, depth)?;
                Ok((after(guards, rows.asked(Asked::Exists)), BOOL))
            }
            (1 | 2, true) => {
                let (mut rows, guards) = self.rows_or_call(query, &Link::Values, depth)?;
                let value = value(&mut rows)?;
                let test = node.field("testexpr")?.node(self.scope.major)?;
                if test.name != "OPEXPR" {
                    return Err(Refusal::new("a sub-select of several columns"));
                }
                let operator = test.oid("opno")?;
                self.refer(Reference::Operator(operator));
                let compared = self.comparison(operator, test)?;
                let [left, right] = test.field("args")?.items()? else {
                    return Err(Refusal::new(format!(
                        "operator {operator} has other operands"
                    )));
                };
                let left = self.expr(left, depth)?;
                let around = self.output.replace(value);
                let right = self.expr(right, depth);
                self.output = around;
                let right = right?;
                self.operands(&compared, left.oid, right.oid)?;
                let two = Box::new((left.expr, right.expr));
                let asked = Asked::Any(compared.comparison, kind == 1, two);
                Ok((after(guards, rows.asked(asked)), BOOL))
            }
            (4, false) => {
                let (mut rows, guards) = self.rows_or_call(query, &Link::Scalar, depth)?;
                let value = value(&mut rows)?;
                let several = rows.several;
                let asked = Asked::Scalar(several, Box::new(value.expr));
                Ok((after(guards, rows.asked(asked)), value.oid))
            }
            _ => Err(Refusal::new("SUBLINK of another kind")),
        }
    }

    /// `left op ANY (array(select …))`, or `ALL`; `None` where the array is something else.
    pub(super) fn any_of_rows(
        &mut self,
        node: &Node,
        left: &Typed,
        array: &Tree,
        depth: usize,
    ) -> Result<Option<Expr>, Refusal> {
        let link = array.node(self.scope.major)?;
        if link.name != "SUBLINK" || link.number::<u8>("subLinkType")? != 6 {
            return Ok(None);
        }
        let compared = self.comparison(node.oid("opno")?, node)?;
        let query = link.field("subselect")?;
        let (mut rows, guards) = self.rows_or_call(query, &Link::Values, depth)?;
        let value = value(&mut rows)?;
        self.operands(&compared, left.oid, value.oid)?;
        let all = !node.flag("useOr")?;
        let two = Box::new((left.expr.clone(), value.expr));
        let asked = rows.asked(Asked::Any(compared.comparison, all, two));
        Ok(Some(after(guards, asked)))
    }

    /// The call in `select f(…)` of a function that returns a set.
    fn called<'t>(&self, query: &'t Tree) -> Result<Option<&'t Node>, Refusal> {
        let query = query.node(self.scope.major)?;
        if query.name != "QUERY" || !query.has_only(&CALL) || !query.flag("hasTargetSRFs")? {
            return Ok(None);
        }
        let from = query.field("jointree")?.node(self.scope.major)?;
        let everything = from.has_only(&[]);
        let [target] = query.field("targetList")?.items()? else {
            return Ok(None);
        };
        let target = target.node(self.scope.major)?;
        if !everything || target.name != "TARGETENTRY" || target.flag("resjunk")? {
            return Ok(None);
        }
        let call = target.field("expr")?.node(self.scope.major)?;
        Ok((call.name == "FUNCEXPR" && call.flag("funcretset")?).then_some(call))
    }

    /// The rows of a sub-select, and what is evaluated before them.
    fn rows_or_call(
        &mut self,
        query: &Tree,
        link: &Link,
        depth: usize,
    ) -> Result<(Rows, Vec<Expr>), Refusal> {
        let Some(call) = self.called(query)? else {
            return Ok((self.rows(query, link, depth)?, Vec::new()));
        };
        self.frames.push(Around::Nothing);
        let rows = self.rows_of_call(call, depth);
        self.frames.pop();
        rows
    }

    /// Whether a sub-select reads no table.
    pub(super) fn is_plain(&self, query: &Tree) -> Result<bool, Refusal> {
        let query = query.node(self.scope.major)?;
        Ok(query.name == "QUERY" && query.field("rtable")?.items()?.is_empty())
    }

    pub(super) fn rows(
        &mut self,
        query: &Tree,
        link: &Link,
        depth: usize,
    ) -> Result<Rows, Refusal> {
        let query = query.node(self.scope.major)?;
        let beyond = query.name != "QUERY"
            || query.number::<u8>("commandType")? != 1
            || query.flag("isReturn")?
            || !query.has_only(&[&FIELDS[..], &["stmt_location"]].concat());
        if beyond {
            return Err(Refusal::new(
                "a sub-select with more to it than one table and conditions on its rows",
            ));
        }
        let oid = self.from(query)?;
        let table = self.table(oid);
        let table = table.ok_or_else(|| Refusal::new(format!("table {oid} is not known")))?;
        if let Some(reason) = &table.refused {
            return Err(Refusal::new(reason.clone()));
        }
        if self.looked >= MAX_DEPTH {
            return Err(Refusal::new("sub-selects inside each other too deeply"));
        }
        self.secured(oid, table)?;
        self.refer(Reference::Table(oid));
        let around = Around::Looked(self.looked, oid);
        self.looked += 1;
        self.frames.push(around);
        let rows = self.conditions(query, link, (oid, self.looked - 1), depth);
        self.frames.pop();
        let rows = rows.and_then(|mut rows| {
            rows.condition.extend(self.own(table, around, depth)?);
            Ok(rows)
        });
        self.looked -= 1;
        rows
    }

    /// The table in FROM.
    fn from(&self, query: &Node) -> Result<Oid, Refusal> {
        let refuse = || Refusal::new("a sub-select over something else than one table");
        let [entry] = query.field("rtable")?.items()? else {
            return Err(refuse());
        };
        let entry = entry.node(self.scope.major)?;
        if !matches!(entry.name.as_str(), "RTE" | "RANGETBLENTRY")
            || entry.number::<u8>("rtekind")? != 0
        {
            return Err(refuse());
        }
        let oid = entry.oid("relid")?;
        if !entry.has_only(&TABLE) {
            return Err(Refusal::new(
                "a table in FROM with more to it than its name",
            ));
        }
        // `only` leaves the partitions' rows out.
        if entry.number::<char>("relkind")? == 'p' && !entry.flag("inh")? {
            return Err(Refusal::new("a partitioned table without its partitions"));
        }
        for name in ["alias", "eref"] {
            match entry.field(name)? {
                Tree::Null => {}
                alias if alias.node(self.scope.major)?.name == "ALIAS" => {}
                _ => return Err(refuse()),
            }
        }
        if query
            .fields
            .iter()
            .any(|(label, _)| label == "rteperminfos")
        {
            let [rights] = query.field("rteperminfos")?.items()? else {
                return Err(refuse());
            };
            let rights = rights.node(self.scope.major)?;
            let plain = ["relid", "inh", "requiredPerms", "selectedCols"];
            if rights.oid("relid")? != oid || !rights.has_only(&plain) {
                return Err(refuse());
            }
        }
        let from = query.field("jointree")?.node(self.scope.major)?;
        let [reference] = from.field("fromlist")?.items()? else {
            return Err(refuse());
        };
        let reference = reference.node(self.scope.major)?;
        if reference.name != "RANGETBLREF" || reference.number::<u32>("rtindex")? != 1 {
            return Err(refuse());
        }
        Ok(oid)
    }

    fn conditions(
        &mut self,
        query: &Node,
        link: &Link,
        (table, looked): (Oid, u32),
        depth: usize,
    ) -> Result<Rows, Refusal> {
        let from = query.field("jointree")?.node(self.scope.major)?;
        let condition = match from.field("quals")? {
            Tree::Null => Vec::new(),
            quals => vec![self.boolean(quals, depth)?],
        };
        let distinct = query.field("distinctClause")?.items()?;
        for one in distinct {
            one.node(self.scope.major)?;
        }
        let limit = match query.field("limitCount")? {
            Tree::Null => None,
            limit => match self.expr(limit, depth)?.expr {
                Expr::Const(Constant(Some(Datum::Int(limit)))) if limit > 0 => Some(limit),
                _ => return Err(Refusal::new("LIMIT of something else than a number")),
            },
        };
        let several = match (link, limit, distinct.is_empty()) {
            (Link::Exists, ..) | (_, None, true) => Several::Raise,
            (_, None, false) => Several::Distinct,
            (Link::Scalar, Some(1), _) => Several::First,
            _ => return Err(Refusal::new("LIMIT where it decides which rows count")),
        };
        let targets = query.field("targetList")?.items()?;
        let mut value = None;
        for (at, target) in targets.iter().enumerate() {
            let target = target.node(self.scope.major)?;
            if target.name != "TARGETENTRY" || target.flag("resjunk")? {
                return Err(Refusal::new("a sub-select with another order or grouping"));
            }
            let expr = target.field("expr")?;
            match link {
                // Nothing but their names counts: PostgreSQL does not compute them either.
                Link::Exists => self.named(expr, depth)?,
                Link::Values | Link::Scalar if at == 0 => value = Some(self.expr(expr, depth)?),
                Link::Values | Link::Scalar => {
                    return Err(Refusal::new("a sub-select of several columns"));
                }
            }
        }
        Ok(Rows {
            table,
            depth: looked,
            condition,
            value,
            several,
        })
    }

    /// Notes what an expression names that is not computed.
    fn named(&mut self, expr: &Tree, depth: usize) -> Result<(), Refusal> {
        let node = expr.node(self.scope.major)?;
        if node.name == "VAR" {
            return self.column_of(node).map(|_| ());
        }
        self.expr(expr, depth).map(|_| ())
    }

    /// What the policies of a table that is looked into let the role see.
    fn own(&mut self, table: &Looked, around: Around, depth: usize) -> Result<Vec<Expr>, Refusal> {
        let Some(policies) = &table.policies else {
            return Ok(Vec::new());
        };
        self.applying(table, around)?;
        let calls = std::mem::take(&mut self.calls);
        let frames = std::mem::replace(&mut self.frames, vec![around]);
        let references = std::mem::take(&mut self.references);
        let tests = std::mem::take(&mut self.tests);
        let output = self.output.take();
        let (mut permissive, mut restrictive) = (Vec::new(), Vec::new());
        let mut compiled = || -> Result<(), Refusal> {
            for policy in policies {
                self.references = BTreeSet::new();
                let tree = crate::policy::node_tree::read(&policy.tree)?;
                self.permitted(&tree)?;
                let expr = self.boolean(&tree, depth + 1).map_err(|refusal| Refusal {
                    reason: format!(
                        "policy {} of {}: {}",
                        policy.name, table.name, refusal.reason
                    ),
                    ..refusal
                })?;
                if self.references != policy.depends {
                    return Err(Refusal::new(format!(
                        "what policy {} of {} names is not what PostgreSQL noted",
                        policy.name, table.name
                    )));
                }
                if policy.permissive {
                    permissive.push(expr);
                } else {
                    restrictive.push(expr);
                }
            }
            Ok(())
        };
        let outcome = compiled();
        self.calls = calls;
        self.applied.pop();
        self.frames = frames;
        self.references = references;
        self.tests = tests;
        self.output = output;
        outcome?;
        if crate::mutant::SelectMutant::OwnPoliciesAreForgotten.active() {
            return Ok(Vec::new());
        }
        if crate::mutant::SelectMutant::OwnPoliciesAreRestrictive.active() {
            permissive.extend(restrictive);
            return Ok(permissive);
        }
        if permissive.is_empty() {
            return Ok(vec![Expr::constant(Datum::Bool(false))]);
        }
        restrictive.insert(0, Expr::Or(permissive));
        Ok(restrictive)
    }
}

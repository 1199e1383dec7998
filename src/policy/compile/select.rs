//! Sub-selects over tables.

mod fold;

mod from;

mod own;

mod set;

mod with;

pub(super) use fold::Folding;
pub(super) use with::Names;

use super::{Around, Compiler, Refusal, Typed};
use crate::datum::{Datum, UserType};
use crate::pg::Oid;
use crate::policy::expr::select::{Aggregate, Asked, Kind, Select, Several, Sort, Step};
use crate::policy::expr::{Constant, Expr};
use crate::policy::node_tree::{Node, Tree};

const BOOL: Oid = Oid(16);

/// The tables of sub-selects inside each other, those of policies of the tables that are looked into
/// included.
const MAX_DEPTH: u32 = 24;

/// The fields of `select … from … where …`.
const FIELDS: [&str; 15] = [
    "commandType",
    "canSetTag",
    "hasTargetSRFs",
    "hasRecursive",
    "hasSubLinks",
    "rtable",
    "rteperminfos",
    "jointree",
    "targetList",
    "cteList",
    "distinctClause",
    "sortClause",
    "limitCount",
    "stmt_location",
    "stmt_len",
];

/// What a sub-link asks of its sub-select.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Exists,
    /// Values from each row.
    Values,
    /// One value.
    Scalar,
}

/// A sub-select without what is asked of it.
pub(super) struct Rows {
    pub(super) from: Vec<Step>,
    pub(super) values: Vec<Typed>,
    pub(super) several: Several,
    /// Which of several is the first, where that counts.
    pub(super) order: Vec<Sort>,
}

impl Rows {
    pub(super) fn asked(self, result: Asked) -> Expr {
        Expr::Select(Box::new(Select {
            from: self.from,
            result,
        }))
    }

    /// A value of one of them.
    pub(super) fn one(mut self, several: Several, value: Expr) -> Expr {
        let value = Box::new(value);
        let asked = if self.order.is_empty() {
            Asked::Scalar(several, value)
        } else {
            Asked::First(std::mem::take(&mut self.order), value)
        };
        self.asked(asked)
    }

    /// Of each of them a value, as an array; NULL of none. No depth around is as great as `free`.
    fn array(self, of: Expr, free: u32) -> Expr {
        let select = Select {
            from: self.from,
            result: Asked::Exists,
        };
        let depths = select.depths().into_iter();
        let own = depths.max().map_or(free, |most| free.max(most + 1));
        let all = Aggregate {
            kind: Kind::Array,
            of: Some(of),
            distinct: self.several == Several::Distinct,
            filter: None,
        };
        Expr::Select(Box::new(Select {
            result: Asked::Folded(own, vec![all], Box::new(Expr::Field(own, 0))),
            ..select
        }))
    }

    /// Its only value.
    pub(super) fn value(&mut self) -> Result<Typed, Refusal> {
        match (self.values.pop(), self.values.is_empty()) {
            (Some(value), true) => Ok(value),
            _ => Err(Refusal::new("a sub-select of several columns")),
        }
    }
}

/// What is evaluated after the arguments of the function that it asks.
fn after(guards: Vec<Expr>, asked: Expr) -> Expr {
    if guards.is_empty() {
        return asked;
    }
    Expr::Body(guards, false, Box::new(asked))
}

/// Several sub-selects as one; a single one stays what it is.
fn either(mut all: Vec<Expr>, join: fn(Vec<Expr>) -> Expr) -> Expr {
    match (all.pop(), all.is_empty()) {
        (Some(one), true) => one,
        (last, _) => {
            all.extend(last);
            join(all)
        }
    }
}

impl Compiler<'_> {
    pub(super) fn sublink(&mut self, node: &Node, depth: usize) -> Result<(Expr, Oid), Refusal> {
        let kind = node.number::<u8>("subLinkType")?;
        let query = node.field("subselect")?;
        let tested = *node.field("testexpr")? != Tree::Null;
        let sets = query.node(self.scope.major)?.flag("hasTargetSRFs")?;
        if kind == 4 && !tested && self.is_plain(query)? && !sets {
            self.frames.push(Around::Nothing);
            let query = self.query(query, depth);
            self.frames.pop();
            // The planner does not look inside: a constant there is none to what is around it.
            let query = query?;
            let body = Expr::Body(Vec::new(), false, Box::new(query.expr));
            return Ok((body, query.oid));
        }
        let folds = query.node(self.scope.major)?.flag("hasAggs")?;
        match (kind, tested) {
            (0, false) if folds => {
                let query = query.node(self.scope.major)?;
                self.folded(query, Link::Exists, depth)
            }
            (4, false) if folds => {
                let query = query.node(self.scope.major)?;
                self.folded(query, Link::Scalar, depth)
            }
            (0, false) => {
                let (rows, guards) = self.rows_or_call(query, Link::Exists, depth)?;
                let exist = rows.into_iter().map(|rows| rows.asked(Asked::Exists));
                Ok((after(guards, either(exist.collect(), Expr::Or)), BOOL))
            }
            (1 | 2, true) => {
                let all = kind == 1;
                let mut any = Vec::new();
                let (found, guards) = self.rows_or_call(query, Link::Values, depth)?;
                for mut rows in found {
                    let values = std::mem::take(&mut rows.values);
                    let around = std::mem::replace(&mut self.output, values);
                    let test = self.boolean(node.field("testexpr")?, depth);
                    let values = std::mem::replace(&mut self.output, around);
                    let mut test = test?;
                    if test == Expr::NULL {
                        // What the planner makes of the comparison does not spare the values.
                        let values = values.into_iter().map(|value| value.expr);
                        test = Expr::Body(values.collect(), false, Box::new(test));
                    }
                    any.push(rows.asked(Asked::Any(all, Box::new(test))));
                }
                let join = if all { Expr::And } else { Expr::Or };
                Ok((after(guards, either(any, join)), BOOL))
            }
            (4, false) => {
                let (mut rows, guards) = self.rows_or_call(query, Link::Scalar, depth)?;
                let (Some(mut rows), true) = (rows.pop(), rows.is_empty()) else {
                    return Err(Refusal::new("a value by UNION"));
                };
                let value = rows.value()?;
                let several = rows.several;
                Ok((after(guards, rows.one(several, value.expr)), value.oid))
            }
            (6, false) => self.listed(query, depth),
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
        let all = !node.flag("useOr")?;
        let mut any = Vec::new();
        let query = link.field("subselect")?;
        let (found, mut guards) = self.rows_or_call(query, Link::Values, depth)?;
        for mut rows in found {
            let value = rows.value()?;
            self.operands(&compared, left.oid, value.oid)?;
            self.spend(left.nodes)?;
            let two = Box::new((compared.of(left.expr.clone()), compared.of(value.expr)));
            let test = Box::new(Expr::Compare(compared.comparison, two));
            any.push(rows.asked(Asked::Any(all, test)));
        }
        // The array may be empty; what it is compared with is evaluated all the same.
        let left = compared.of(left.expr.clone());
        if left.may_raise() {
            guards.push(left);
        }
        let join = if all { Expr::And } else { Expr::Or };
        Ok(Some(after(guards, either(any, join))))
    }

    /// The call in `select f(…)` of a function that returns a set.
    fn called<'t>(&self, query: &'t Tree) -> Result<Option<&'t Node>, Refusal> {
        let query = query.node(self.scope.major)?;
        if let Some(call) = self.called_alone(query)? {
            return Ok(Some(call));
        }
        let Some(value) = self.set_alone(query)? else {
            return Ok(None);
        };
        let call = value.node(self.scope.major)?;
        Ok((call.name == "FUNCEXPR" && call.flag("funcretset")?).then_some(call))
    }

    /// The expression of `select <expression>` with a set in it, and nothing else.
    pub(super) fn set_alone<'t>(&self, query: &'t Node) -> Result<Option<&'t Tree>, Refusal> {
        let plain = [
            "commandType",
            "canSetTag",
            "hasTargetSRFs",
            "hasSubLinks",
            "jointree",
            "targetList",
            "stmt_location",
            "stmt_len",
        ];
        if query.name != "QUERY" || !query.has_only(&plain) || !query.flag("hasTargetSRFs")? {
            return Ok(None);
        }
        let from = query.field("jointree")?.node(self.scope.major)?;
        let [target] = query.field("targetList")?.items()? else {
            return Ok(None);
        };
        let target = target.node(self.scope.major)?;
        if !from.has_only(&[]) || target.name != "TARGETENTRY" || target.flag("resjunk")? {
            return Ok(None);
        }
        target.field("expr").map(Some)
    }

    /// A sub-select with aggregates, behind what is evaluated before it.
    pub(super) fn folded(
        &mut self,
        query: &Node,
        link: Link,
        depth: usize,
    ) -> Result<(Expr, Oid), Refusal> {
        let around = std::mem::take(&mut self.before);
        let folded = self.fold(query, link, depth);
        let before = std::mem::replace(&mut self.before, around);
        folded.map(|(expr, oid)| (after(before, expr), oid))
    }

    /// The rows of a sub-select, and what is evaluated before them.
    pub(super) fn rows_or_call(
        &mut self,
        query: &Tree,
        link: Link,
        depth: usize,
    ) -> Result<(Vec<Rows>, Vec<Expr>), Refusal> {
        if let Some(rows) = self.elements_or_none(query, depth)? {
            return Ok((vec![rows], Vec::new()));
        }
        let Some(call) = self.called(query)? else {
            let around = std::mem::take(&mut self.before);
            let rows = self.rows(query, link, depth);
            let before = std::mem::replace(&mut self.before, around);
            return Ok((rows?, before));
        };
        let looked = self.looked;
        self.frames.push(Around::Nothing);
        let rows = self.rows_of_call(call, depth);
        self.frames.pop();
        self.looked = looked;
        rows
    }

    /// The rows of `select <expression>` with the elements of an array.
    fn elements_or_none(&mut self, query: &Tree, depth: usize) -> Result<Option<Rows>, Refusal> {
        let looked = self.looked;
        self.frames.push(Around::Nothing);
        let rows = self.expanded(query, depth);
        self.frames.pop();
        self.looked = looked;
        rows
    }

    /// Whether a sub-select reads no table.
    pub(super) fn is_plain(&self, query: &Tree) -> Result<bool, Refusal> {
        let query = query.node(self.scope.major)?;
        let nothing = |field: &str| Ok::<_, Refusal>(query.field(field)?.items()?.is_empty());
        Ok(query.name == "QUERY" && nothing("rtable")? && nothing("cteList")?)
    }

    /// The sub-selects whose rows together are the result.
    pub(super) fn rows(
        &mut self,
        query: &Tree,
        link: Link,
        depth: usize,
    ) -> Result<Vec<Rows>, Refusal> {
        let looked = self.looked;
        let rows = self.united(query, link, depth);
        self.looked = looked;
        rows
    }

    /// The same, where no table has the depth of another.
    fn united(&mut self, query: &Tree, link: Link, depth: usize) -> Result<Vec<Rows>, Refusal> {
        let query = query.node(self.scope.major)?;
        if query.name == "QUERY" && *query.field("setOperations")? != Tree::Null {
            return self.set(query, link, depth);
        }
        self.select(query, link, depth).map(|rows| vec![rows])
    }

    fn select(&mut self, query: &Node, link: Link, depth: usize) -> Result<Rows, Refusal> {
        plain(query, &FIELDS)?;
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
        let sorted = !query.field("sortClause")?.items()?.is_empty();
        if sorted && !distinct.is_empty() {
            return Err(Refusal::new("ORDER BY of a DISTINCT"));
        }
        let expanded = query.flag("hasTargetSRFs")?;
        if expanded && (limit.is_some() || sorted) {
            return Err(Refusal::new("an order or LIMIT of a set in the columns"));
        }
        let (from, (values, order)) = self.within_expanded(query, depth, |compiler| {
            let (mut values, mut targets) = (Vec::new(), Vec::new());
            for target in query.field("targetList")?.items()? {
                let target = target.node(compiler.scope.major)?;
                let unseen = target.flag("resjunk")?;
                if target.name != "TARGETENTRY" || unseen && !sorted {
                    return Err(Refusal::new("a sub-select with another grouping"));
                }
                let expr = target.field("expr")?;
                let reference = target.number::<u32>("ressortgroupref")?;
                match link {
                    // Nothing but their names counts: PostgreSQL does not compute them either.
                    Link::Exists if !expanded => compiler.named(expr, depth)?,
                    _ => {
                        let value = compiler.expr(expr, depth)?;
                        let user = compiler.scope.types.user.get(&value.oid);
                        if link == Link::Scalar
                            && !distinct.is_empty()
                            && matches!(user, Some(UserType::Citext { .. }))
                        {
                            return Err(Refusal::new("DISTINCT of citext"));
                        }
                        if reference != 0 {
                            targets.push((reference, expr, value.clone()));
                        }
                        if !unseen {
                            values.push(value);
                        }
                    }
                }
            }
            let order = match (link, limit) {
                (Link::Scalar, Some(_)) => compiler.order(query, &targets)?,
                // In which order they come does not count, but that of an error might.
                _ => {
                    let calm = |expr: &Expr| matches!(expr, Expr::Inner(..));
                    if !targets.iter().all(|(_, _, typed)| calm(&typed.expr)) && sorted {
                        return Err(Refusal::new("ORDER BY of what is computed"));
                    }
                    Vec::new()
                }
            };
            Ok((values, order))
        })?;
        Ok(Rows {
            from,
            values,
            several,
            order,
        })
    }

    /// Notes what an expression names that is not computed.
    fn named(&mut self, expr: &Tree, depth: usize) -> Result<(), Refusal> {
        let node = expr.node(self.scope.major)?;
        if node.name == "VAR" {
            return self.mention(node);
        }
        self.expr(expr, depth).map(|_| ())
    }
}

/// Refuses a query that has more to it than the fields named.
fn plain(query: &Node, fields: &[&str]) -> Result<(), Refusal> {
    let select = query.name == "QUERY" && query.number::<u8>("commandType")? == 1;
    if select && !query.field("groupClause")?.items()?.is_empty() {
        return Err(Refusal::new("GROUP BY"));
    }
    if !select || query.flag("isReturn")? || !query.has_only(fields) {
        return Err(Refusal::new(
            "a sub-select with more to it than tables and conditions on their rows",
        ));
    }
    Ok(())
}

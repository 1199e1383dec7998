//! Aggregates without GROUP BY, and ORDER BY.

use std::sync::Arc;

use super::super::operators::{self, Demand};
use super::super::{Compiler, Refusal, Typed};
use super::{FIELDS, Link, after, plain};
use crate::datum::{Array, Datum, Type};
use crate::pg::Oid;
use crate::policy::expr::select::{Aggregate, Asked, Kind, Select, Sort};
use crate::policy::expr::{ArrayFunction, Comparison, Expr, Function};
use crate::policy::node_tree::{Node, Tree};

const BOOL: Oid = Oid(16);
const INT8: Oid = Oid(20);

/// The aggregates of the query in hand.
pub(in crate::policy::compile) struct Folding {
    depth: u32,
    all: Vec<Aggregate>,
}

/// `max` and `min` of a type, by their object identifiers, and its `<`.
const EXTREMES: [(u32, u32, u32); 13] = [
    (2115, 2131, 412),
    (2116, 2132, 97),
    (2117, 2133, 95),
    (2118, 2134, 609),
    (2119, 2135, 622),
    (2120, 2136, 672),
    (2122, 2138, 1095),
    (2126, 2142, 2062),
    (2127, 2143, 1322),
    (2129, 2145, 664),
    (2130, 2146, 1754),
    (2244, 2245, 1058),
    (3526, 3527, 3518),
];

impl Compiler<'_> {
    /// A sub-select with aggregates, which is one row or, by its HAVING, none.
    pub(in crate::policy::compile) fn fold(
        &mut self,
        query: &Node,
        link: Link,
        depth: usize,
    ) -> Result<(Expr, Oid), Refusal> {
        let without = |field: &&str| {
            !matches!(
                *field,
                "distinctClause" | "sortClause" | "limitCount" | "hasTargetSRFs"
            )
        };
        let mut fields: Vec<&str> = FIELDS.iter().copied().filter(without).collect();
        fields.extend(["hasAggs", "havingQual"]);
        plain(query, &fields)?;
        let (looked, folding) = (self.looked, self.folding.take());
        let folded = self.within(query, depth, |compiler| {
            let own = compiler.looked;
            compiler.looked += 1;
            compiler.folding = Some(Folding {
                depth: own,
                all: Vec::new(),
            });
            let having = match query.field("havingQual")? {
                Tree::Null => None,
                having => Some(compiler.boolean(having, depth)?),
            };
            let [target] = query.field("targetList")?.items()? else {
                return Err(Refusal::new("a sub-select of several columns"));
            };
            let target = target.node(compiler.scope.major)?;
            if target.name != "TARGETENTRY" || target.flag("resjunk")? {
                return Err(Refusal::new("a sub-select with another order or grouping"));
            }
            let value = compiler.expr(target.field("expr")?, depth)?;
            let folding = compiler.folding.take();
            let all = folding.map(|folding| folding.all).unwrap_or_default();
            Ok((own, all, having, value))
        });
        self.looked = looked;
        self.folding = folding;
        let (from, (own, all, having, value)) = folded?;
        let folded = |value: Expr| {
            Expr::Select(Box::new(Select {
                from,
                result: Asked::Folded(own, all, Box::new(value)),
            }))
        };
        match (link, having) {
            (Link::Exists, Some(having)) => {
                let held = Box::new(folded(having));
                Ok((Expr::IsBool(held, Some(true), false), BOOL))
            }
            (Link::Scalar, None) => Ok((folded(value.expr), value.oid)),
            (Link::Scalar, Some(having)) => {
                let either = Expr::Case(vec![(having, value.expr)], Box::new(Expr::NULL));
                Ok((folded(either), value.oid))
            }
            _ => Err(Refusal::new("an aggregate where rows are asked for")),
        }
    }

    pub(in crate::policy::compile) fn aggregate(
        &mut self,
        node: &Node,
        depth: usize,
    ) -> Result<(Expr, Oid), Refusal> {
        let refuse = || Refusal::new("an aggregate of another kind");
        let Some(mut folding) = self.folding.take() else {
            return Err(refuse());
        };
        let aggregate = self.aggregate_of(node, depth);
        let (aggregate, oid) = aggregate?;
        let known = folding.all.iter().position(|one| *one == aggregate);
        let at = known.unwrap_or_else(|| {
            folding.all.push(aggregate);
            folding.all.len() - 1
        });
        let field = Expr::Field(folding.depth, at);
        self.folding = Some(folding);
        Ok((field, oid))
    }

    fn aggregate_of(&mut self, node: &Node, depth: usize) -> Result<(Aggregate, Oid), Refusal> {
        let refuse = || Refusal::new("an aggregate of another kind");
        let fields = [
            "aggfnoid",
            "aggtype",
            "aggcollid",
            "inputcollid",
            "aggtranstype",
            "aggargtypes",
            "args",
            "aggdistinct",
            "aggfilter",
            "aggstar",
            "aggkind",
            "aggsplit",
            "aggno",
            "aggtransno",
            "location",
        ];
        if node.number::<u32>("agglevelsup")? != 0
            || node.number::<char>("aggkind")? != 'n'
            || !node.has_only(&fields)
        {
            return Err(refuse());
        }
        let mut args = Vec::new();
        for target in node.field("args")?.items()? {
            let target = target.node(self.scope.major)?;
            args.push(self.expr(target.field("expr")?, depth)?);
        }
        let filter = match node.field("aggfilter")? {
            Tree::Null => None,
            filter => Some(self.boolean(filter, depth)?),
        };
        let mut distinct = false;
        for one in node.field("aggdistinct")?.items()? {
            let one = one.node(self.scope.major)?;
            let equal = operators::comparison(one.oid("eqop")?);
            let equal = equal.filter(|known| known.comparison == Comparison::Eq);
            let equal = equal.ok_or_else(refuse)?;
            self.demand(equal.demand, node.oid("inputcollid")?)?;
            distinct = true;
        }
        let function = node.oid("aggfnoid")?;
        let of = args.pop();
        if !args.is_empty() {
            return Err(refuse());
        }
        let (kind, oid) = match (function.0, &of) {
            (2803, None) | (2147, Some(_)) => (Kind::Count, INT8),
            (2517 | 2519, Some(of)) if of.oid == BOOL => (Kind::Every, BOOL),
            (2518, Some(of)) if of.oid == BOOL => (Kind::Some, BOOL),
            (2335, Some(of)) => {
                let array = node.oid("aggtype")?;
                if self.scope.types.element(array) != Some(of.oid) {
                    return Err(refuse());
                }
                (Kind::Array, array)
            }
            (extreme, Some(of)) => {
                let mut known = EXTREMES.iter();
                let known = known.find(|(max, min, _)| *max == extreme || *min == extreme);
                let (max, _, less) = known
                    .ok_or_else(|| Refusal::new(format!("aggregate {extreme} is not compiled")))?;
                let less = operators::comparison(Oid(*less)).ok_or_else(refuse)?;
                self.operands(&less, of.oid, of.oid)?;
                self.demand(less.demand, node.oid("inputcollid")?)?;
                let kind = if *max == extreme {
                    Kind::Max
                } else {
                    Kind::Min
                };
                (kind, of.oid)
            }
            _ => return Err(refuse()),
        };
        if node.oid("aggtype")? != oid {
            return Err(refuse());
        }
        let aggregate = Aggregate {
            kind,
            of: of.map(|of| of.expr),
            distinct,
            filter,
        };
        Ok((aggregate, oid))
    }

    /// `array(select …)`
    pub(super) fn listed(&mut self, query: &Tree, depth: usize) -> Result<(Expr, Oid), Refusal> {
        let (rows, before) = self.rows_or_call(query, Link::Values, depth)?;
        let several = rows.len() > 1;
        let distinct = self.counts_once(query)?;
        let (mut parts, mut of) = (Vec::new(), None);
        for mut rows in rows {
            let value = rows.value()?;
            if of.is_some_and(|of| of != value.oid) {
                return Err(Refusal::new("a set operation of different types"));
            }
            of = Some(value.oid);
            parts.push(rows.array(value.expr, self.looked));
        }
        let of = of.ok_or_else(|| Refusal::new("an array of nothing"))?;
        let array = self.scope.types.array(of);
        let array = array.ok_or_else(|| Refusal::new(format!("arrays of type {of}")))?;
        let listed = match (parts.pop(), several || distinct == Some(true)) {
            (Some(folded), false) => {
                let empty = Datum::Array(Arc::new(Array::new(Vec::new())));
                Expr::Coalesce(vec![folded, Expr::constant(empty)])
            }
            (last, _) => {
                self.told_apart_by_equality(of)?;
                parts.extend(last);
                let union = ArrayFunction::Union(distinct.unwrap_or_default());
                Expr::Call(Function::Array(union), parts)
            }
        };
        Ok((after(before, listed), array))
    }

    /// Whether a set operation gives equal rows once; `None` where a query is none.
    fn counts_once(&self, query: &Tree) -> Result<Option<bool>, Refusal> {
        let query = query.node(self.scope.major)?;
        let operation = query.field("setOperations")?;
        if query.name != "QUERY" || *operation == Tree::Null {
            return Ok(None);
        }
        let node = operation.node(self.scope.major)?;
        let once = !node.flag("all")?;
        for part in ["larg", "rarg"] {
            let part = node.field(part)?.node(self.scope.major)?;
            if part.name == "SETOPERATIONSTMT" && part.flag("all")? == once {
                return Err(Refusal::new("UNION and UNION ALL in one array"));
            }
        }
        Ok(Some(once))
    }

    /// Refuses a type of which values may be equal and not the same.
    pub(super) fn told_apart_by_equality(&self, oid: Oid) -> Result<(), Refusal> {
        let mut of = Type::of(oid, Oid(0), &self.scope.types);
        while let Some(Type::Array(element)) = &of {
            of = Some((**element).clone());
        }
        let forms = matches!(
            of,
            Some(
                Type::Numeric
                    | Type::Float4
                    | Type::Float8
                    | Type::Bpchar(_)
                    | Type::Citext
                    | Type::Jsonb
            )
        );
        if forms {
            return Err(Refusal::new("which of equal values it is"));
        }
        Ok(())
    }

    /// `order by` of a query whose columns are in hand, and the expressions of its target list.
    pub(super) fn order(
        &mut self,
        query: &Node,
        targets: &[(u32, &Tree, Typed)],
    ) -> Result<Vec<Sort>, Refusal> {
        let mut order = Vec::new();
        for one in query.field("sortClause")?.items()? {
            let one = one.node(self.scope.major)?;
            let by = one.number::<u32>("tleSortGroupRef")?;
            let target = targets.iter().find(|(reference, ..)| *reference == by);
            let (_, tree, typed) = target.ok_or_else(|| Refusal::new("ORDER BY of nothing"))?;
            let operator = one.oid("sortop")?;
            let refuse = || Refusal::new(format!("an order by operator {operator}"));
            let compared = operators::comparison(operator).ok_or_else(refuse)?;
            self.operands(&compared, typed.oid, typed.oid)?;
            if compared.demand != Demand::None {
                let node = tree.node(self.scope.major)?;
                if node.name != "VAR" {
                    return Err(refuse());
                }
                self.demand(compared.demand, node.oid("varcollid")?)?;
            }
            order.push(Sort {
                by: typed.expr.clone(),
                descending: match compared.comparison {
                    Comparison::Lt => false,
                    Comparison::Gt => true,
                    _ => return Err(refuse()),
                },
                nulls_first: one.flag("nulls_first")?,
            });
        }
        Ok(order)
    }
}

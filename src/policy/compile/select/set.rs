//! UNION, INTERSECT and EXCEPT of sub-selects of which only matters which rows there are.

use super::super::{Around, Compiler, Refusal};
use super::{Link, Rows, either, plain};
use crate::mutant::SelectMutant;
use crate::policy::expr::Expr;
use crate::policy::expr::select::Asked;
use crate::policy::node_tree::{Node, Tree};

/// The fields of a query that only combines others.
pub(super) const FIELDS: [&str; 11] = [
    "commandType",
    "canSetTag",
    "hasRecursive",
    "rtable",
    "rteperminfos",
    "jointree",
    "targetList",
    "cteList",
    "setOperations",
    "stmt_location",
    "stmt_len",
];

impl Compiler<'_> {
    /// The sub-selects whose rows together are those of a set operation.
    pub(super) fn set(
        &mut self,
        query: &Node,
        link: Link,
        depth: usize,
    ) -> Result<Vec<Rows>, Refusal> {
        plain(query, &FIELDS)?;
        if link == Link::Scalar {
            return Err(Refusal::new("a value by UNION"));
        }
        self.frames.push(Around::Nothing);
        let rows = self.naming(query, |compiler| {
            compiler.operation(query, query.field("setOperations")?, depth)
        });
        self.frames.pop();
        rows
    }

    pub(super) fn operation(
        &mut self,
        query: &Node,
        operation: &Tree,
        depth: usize,
    ) -> Result<Vec<Rows>, Refusal> {
        if depth > 400 {
            return Err(Refusal::new("the expression is nested too deeply"));
        }
        let node = operation.node(self.scope.major)?;
        if node.name == "RANGETBLREF" {
            let at = node.number::<usize>("rtindex")?.checked_sub(1);
            let entries = query.field("rtable")?.items()?;
            let entry = at.and_then(|at| entries.get(at));
            let entry = entry.ok_or_else(|| Refusal::new("a set operation of something else"))?;
            let entry = entry.node(self.scope.major)?;
            return self.united(entry.field("subquery")?, Link::Values, depth + 1);
        }
        if node.name != "SETOPERATIONSTMT" {
            return Err(Refusal::new("a set operation of something else"));
        }
        let mut left = self.operation(query, node.field("larg")?, depth + 1)?;
        let right = self.operation(query, node.field("rarg")?, depth + 1)?;
        let all = node.flag("all")?;
        self.equalities(node, all)?;
        match (node.number::<u8>("op")?, all) {
            (1, _) if SelectMutant::UnionTakesFirst.active() => {}
            (1, _) => left.extend(right),
            (kind @ (2 | 3), false) => {
                for rows in &mut left {
                    let among = self.among(rows, &right)?;
                    let intersect = (kind == 2) != SelectMutant::ExceptIsIntersect.active();
                    let among = if intersect {
                        among
                    } else {
                        Expr::Not(Box::new(among))
                    };
                    if let Some(last) = rows.from.last_mut() {
                        last.condition.push(among);
                    }
                }
            }
            _ => return Err(Refusal::new("INTERSECT ALL or EXCEPT ALL")),
        }
        Ok(left)
    }

    /// Whether a row is among others, NULL being the same as NULL.
    fn among(&mut self, rows: &Rows, others: &[Rows]) -> Result<Expr, Refusal> {
        let mut any = Vec::new();
        for other in others {
            let mut other = Rows {
                from: other.from.clone(),
                values: other.values.clone(),
                several: other.several,
                order: Vec::new(),
            };
            let mut same = Vec::new();
            for (own, value) in rows.values.iter().zip(std::mem::take(&mut other.values)) {
                if own.oid != value.oid {
                    return Err(Refusal::new("a set operation of different types"));
                }
                self.spend(own.nodes + value.nodes)?;
                let two = Box::new((own.expr.clone(), value.expr));
                same.push(Expr::Not(Box::new(Expr::Distinct(two))));
            }
            if let Some(last) = other.from.last_mut() {
                last.condition.extend(same);
            }
            any.push(other.asked(Asked::Exists));
        }
        Ok(either(any, Expr::Or))
    }
}

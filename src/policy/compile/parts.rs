//! A policy of which only some of the operands of its outermost ANDs and ORs are compiled: where those
//! decide nothing has to be asked.

use std::collections::BTreeSet;

use super::{Compiler, Expr, Reference, Scope};
use crate::datum::Trouble;
use crate::policy::node_tree::{self, Tree};

/// How deep ANDs and ORs are looked into.
const DEEPEST: usize = 16;

/// What is compiled of a policy.
pub(in crate::policy) struct Parts {
    /// The policy, undecided in place of each operand that is not compiled.
    pub(in crate::policy) expr: Expr,
    /// The objects that the compiled operands name.
    pub(in crate::policy) references: BTreeSet<Reference>,
    /// Why the others are not.
    pub(in crate::policy) refused: Vec<String>,
}

/// Compiles what can be of a policy that cannot be as a whole; `None` where an operand makes, or may
/// make, every statement fail.
pub(in crate::policy) fn in_parts(tree: &str, scope: &Scope) -> Option<Parts> {
    let tree = node_tree::read(tree).ok()?;
    let mut walk = Walk {
        scope,
        parts: Parts {
            expr: Expr::NULL,
            references: BTreeSet::new(),
            refused: Vec::new(),
        },
    };
    walk.parts.expr = walk.operand(&tree, 0)?;
    Some(walk.parts)
}

struct Walk<'s> {
    scope: &'s Scope,
    parts: Parts,
}

impl Walk<'_> {
    fn operand(&mut self, tree: &Tree, depth: usize) -> Option<Expr> {
        let node = tree.node(self.scope.major).ok()?;
        if node.name == "BOOLEXPR" && depth < DEEPEST {
            let join = match node.number::<String>("boolop").ok()?.as_str() {
                "and" => Some(Expr::And as fn(Vec<Expr>) -> Expr),
                "or" => Some(Expr::Or as fn(Vec<Expr>) -> Expr),
                _ => None,
            };
            if let Some(join) = join {
                let operands = node.field("args").ok()?.items().ok()?;
                let all: Option<Vec<Expr>> = operands
                    .iter()
                    .map(|operand| self.operand(operand, depth + 1))
                    .collect();
                return Some(join(all?));
            }
        }
        let mut compiler = Compiler::new(self.scope);
        match compiler.expr(tree, 0) {
            Ok(typed) if typed.oid.0 == 16 => {
                self.parts.references.append(&mut compiler.references);
                // What is not true does not become true by ANDs and ORs: NULL is as good as false,
                // which decides where something else does not.
                Some(Expr::IsBool(Box::new(typed.expr), Some(true), false))
            }
            Ok(_) => None,
            Err(refusal) if refusal.always_fails || refusal.denied => None,
            Err(_) if self.folds(tree) => None,
            Err(refusal) => {
                self.parts.refused.push(refusal.reason);
                Some(Expr::Fail(Trouble::Undecided))
            }
        }
    }

    /// Whether PostgreSQL evaluates something of this when it plans, and it is not known that no
    /// error comes of it: that would be every statement's.
    fn folds(&self, tree: &Tree) -> bool {
        match tree {
            Tree::List(items) => items.iter().any(|item| self.folds(item)),
            Tree::Node(node) if EVALUATED.contains(&node.name.as_str()) && is_constant(tree) => {
                Compiler::new(self.scope).expr(tree, 0).is_err()
            }
            Tree::Node(node) => node.fields.iter().any(|(_, field)| self.folds(field)),
            Tree::Null | Tree::Numbers(_) | Tree::Bytes(_) | Tree::Atom(_) => false,
        }
    }
}

/// Nodes that are evaluated when their operands are constants.
const EVALUATED: [&str; 6] = [
    "OPEXPR",
    "FUNCEXPR",
    "COERCEVIAIO",
    "SCALARARRAYOPEXPR",
    "DISTINCTEXPR",
    "NULLIFEXPR",
];

/// Whether nothing in this depends on the row, the client, the moment or somebody's function.
fn is_constant(tree: &Tree) -> bool {
    match tree {
        Tree::List(items) => items.iter().all(is_constant),
        Tree::Node(node) => {
            let varies = match node.name.as_str() {
                "CONST" => return true,
                "FUNCEXPR" => {
                    let own = node.oid("funcid").is_ok_and(|oid| oid.0 < 16_384);
                    let args = node.field("args").and_then(Tree::items);
                    !own || args.map_or(true, <[Tree]>::is_empty)
                }
                name => {
                    !EVALUATED.contains(&name)
                        && !["BOOLEXPR", "RELABELTYPE", "ARRAYEXPR", "ARRAY"].contains(&name)
                }
            };
            !varies && node.fields.iter().all(|(_, field)| is_constant(field))
        }
        Tree::Null | Tree::Numbers(_) | Tree::Bytes(_) | Tree::Atom(_) => true,
    }
}

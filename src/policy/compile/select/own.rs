//! The policies of the tables that are looked into.

use std::collections::BTreeSet;

use super::super::{Around, Compiler, Looked, Reference, Refusal};
use crate::datum::Datum;
use crate::pg::Oid;
use crate::policy::expr::Expr;

impl Compiler<'_> {
    /// What the policies of a table that is looked into let the role see.
    pub(super) fn own(
        &mut self,
        (oid, table): (Oid, &Looked),
        around: Around,
        depth: usize,
    ) -> Result<Vec<Expr>, Refusal> {
        let Some(policies) = &table.policies else {
            return Ok(Vec::new());
        };
        self.applying(oid, table)?;
        let calls = std::mem::take(&mut self.calls);
        let frames = std::mem::replace(&mut self.frames, vec![around]);
        let names = std::mem::take(&mut self.names);
        let references = std::mem::take(&mut self.references);
        let tests = std::mem::take(&mut self.tests);
        let output = std::mem::take(&mut self.output);
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
                if Reference::noted(&self.references, oid) != policy.depends {
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
        self.names = names;
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

//! Who relies on old rows that the replica identity does not carry.

use super::{Group, Member, Moment};
use crate::change::Kind;
use crate::policy::catalog::Table;

impl Group {
    /// Those who, by what the replica identity carries alone, would not be told of rows that are gone,
    /// or that leave their view; with a kind and moment only those who want such a change.
    pub(in crate::router) fn relying<'a>(
        &'a self,
        table: &'a Table,
        at: Option<(&'a Kind, Moment)>,
    ) -> impl Iterator<Item = &'a Member> {
        let lacks = |name: &str| {
            let column = table.column(name);
            column.is_none_or(|column| !table.identity_carries(column))
        };
        let hidden = self.access.hides_all;
        let policies = self.access.reads.iter().any(|name| lacks(name));
        self.members().filter(move |member| {
            let mut bindings = member.bindings.iter();
            !hidden
                && bindings.any(|binding| {
                    let asks = match at {
                        Some((Kind::Update { .. }, _)) => binding.leave,
                        _ => binding.leave || binding.events.deletes(),
                    };
                    let filter = self.by_filter.filter(binding.filter);
                    let reads = |filter: &crate::subscription::matcher::Filter| {
                        let mut tests = filter.tests().iter();
                        tests.any(|test| lacks(&test.column))
                    };
                    asks && (policies || filter.is_some_and(|filter| reads(filter)))
                })
                && at.is_none_or(|(_, moment)| member.wants(moment))
        })
    }
}

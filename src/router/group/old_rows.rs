//! Who relies on old rows that the replica identity does not carry.

use std::collections::BTreeMap;

use super::{Group, Member, Moment};
use crate::change::Kind;
use crate::policy::catalog::Table;

impl Group {
    /// Counts for each column the members that take deletes and filter by it.
    pub(in crate::router) fn filtered<'a>(&'a self, counts: &mut BTreeMap<&'a str, usize>) {
        let mut columns: Vec<&str> = Vec::new();
        for member in self.members() {
            let takes = |binding: &&super::Installed| binding.events.deletes();
            let bindings = member.bindings.iter().filter(takes);
            let filters = bindings.filter_map(|binding| self.by_filter.filter(binding.filter));
            let tests = filters.flat_map(|filter| filter.tests());
            columns.clear();
            columns.extend(tests.map(|test| test.column.as_str()));
            columns.sort_unstable();
            columns.dedup();
            for column in &columns {
                *counts.entry(column).or_default() += 1;
            }
        }
    }

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

//! Where the relay knows old rows of a table from, and what they lack.

use std::collections::BTreeSet;

use super::report::OldRows;
use crate::policy::access::Access;
use crate::policy::catalog::{Catalog, Table};
use crate::router::{Keeps, OldRowTables};

/// What is known of the rows before UPDATEs and DELETEs of a table. `accesses` are those of the roles
/// that it is explained for.
pub(super) fn of(
    catalog: &Catalog,
    table: &Table,
    settings: &OldRowTables,
    accesses: &[Access],
) -> OldRows {
    let named = |carries: &dyn Fn(&str) -> bool| -> Vec<String> {
        let columns = table.columns.iter().map(|column| &column.name);
        columns.filter(|name| carries(name)).cloned().collect()
    };
    let by_identity = |name: &str| {
        let column = table.column(name);
        column.is_some_and(|column| table.identity_carries(column))
    };
    let mut settings = settings.0.iter();
    let kept = settings.find(|one| one.schema == table.schema && one.table == table.name);
    let kept = kept.map(|one| one.keeps(catalog));
    let (from, columns) = match (kept, &table.identity) {
        (Some(Keeps::Columns(kept)), _) => {
            let keeps = |name: &str| kept.columns.iter().any(|column| *column.name == *name);
            ("relay", named(&|name| keeps(name) || by_identity(name)))
        }
        (_, None) => ("full", named(&|_| true)),
        (_, Some(identity)) if identity.is_empty() => ("nothing", Vec::new()),
        (_, Some(identity)) => {
            let set = |numbers: &[i16]| numbers.iter().copied().collect::<BTreeSet<i16>>();
            let key = set(identity) == set(&table.key);
            (if key { "key" } else { "index" }, named(&by_identity))
        }
    };
    let reads: BTreeSet<&String> = accesses
        .iter()
        .filter(|access| !access.hides_all)
        .flat_map(|access| &access.reads)
        .collect();
    let lacks = reads.into_iter().filter(|name| !columns.contains(name));
    OldRows {
        from,
        lacks: lacks.cloned().collect(),
        columns,
    }
}

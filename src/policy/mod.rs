//! Who may see what: PostgreSQL's own row-level-security policies, judged on each row change.

pub mod catalog;

pub mod reader;

pub mod watch;

pub mod ask;

pub mod access;

pub mod predicate;

pub(crate) fn compile_policies(
    _catalog: &catalog::Catalog,
    _table: &catalog::Table,
    _role: &str,
    _policies: &[&catalog::Policy],
) -> Result<predicate::Predicate, Vec<(String, String)>> {
    Err(vec![])
}

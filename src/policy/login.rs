//! Who is logged in: in a client's place the relay's login, which says nothing of the client.

use super::catalog::{Catalog, Policy, Table};
use super::closure::beyond;

/// `SESSION_USER`, as `SQLValueFunctionOp` numbers it.
const SESSION_USER: &str = "{SQLVALUEFUNCTION :op 12 ";

/// Why the policies cannot be asked: what they say depends on `session_user`. Behind an API that is the
/// API's own login, and functions that take any other for an administrator's would let all of its
/// clients be one.
pub(super) fn reads_login(
    catalog: &Catalog,
    table: &Table,
    policies: &[&Policy],
) -> Option<String> {
    let tree = |tree: &str| tree.contains(SESSION_USER);
    let (tables, functions) = beyond(catalog, table);
    let function = functions.into_iter().find(|function| {
        let source = function.source.to_lowercase();
        let named = ["session_user", "session_authorization"];
        named.iter().any(|name| source.contains(name))
            || function
                .known()
                .any(|body| body.trees().into_iter().any(tree))
    });
    let views = tables
        .iter()
        .filter_map(|table| Some((&table.name, table.view.as_ref()?)));
    let view = views.into_iter().find(|(_, view)| tree(&view.tree));
    let others = tables.iter().flat_map(|table| &table.policies);
    let policy = policies
        .iter()
        .copied()
        .chain(others)
        .find(|policy| policy.tree.as_deref().is_some_and(tree));
    let who = match (policy, function, view) {
        (Some(policy), ..) => format!("policy {}", policy.name),
        (None, Some(function), _) => format!("function {}", function.name),
        (None, None, Some((name, _))) => format!("view {name}"),
        (None, None, None) => return None,
    };
    Some(format!(
        "{who} reads session_user, which is the relay's login for all of its clients"
    ))
}

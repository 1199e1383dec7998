//! A wish held against the catalog as a join's would be, for nobody: what its client would be told.

use std::collections::HashMap;
use std::sync::Arc;

use super::resolve::{Readings, Rulebook, Told, Unresolved, resolve};
use super::{DeleteWithoutIdentity, Refusal};
use crate::auth::Principal;
use crate::lookup;
use crate::pg::Oid;
use crate::policy::access::Access;
use crate::policy::ask::Asker;
use crate::policy::catalog::{Catalog, Table};
use crate::policy::rule::Require;
use crate::subscription::Wanted;

/// What PostgreSQL has to be asked of a wish is known after one round: all of it is asked at once.
const ROUNDS: usize = 3;

/// What the relay's operator decided.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// Which tables may be subscribed to.
    pub require: Require,
    /// What becomes of deletes that cannot be judged.
    pub delete_without_identity: DeleteWithoutIdentity,
    /// What the relay itself keeps of old rows, by table.
    pub old_rows: &'a HashMap<Oid, lookup::Wanted>,
}

/// What a client would be told.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The wishes that would not be in force.
    pub refusals: Vec<Refusal>,
    /// What it would be warned of.
    pub notices: Vec<String>,
    /// Whether PostgreSQL would be asked about each row that a filter is held against.
    pub asked: bool,
}

/// Holds wishes against a catalog; `None` where the role is not known, or PostgreSQL could not be
/// asked what it makes of a filter.
pub async fn dry_run(
    (catalog, terms): (&Catalog, Terms<'_>),
    asker: &Asker,
    principal: &Principal,
    wanted: &[Wanted],
) -> Option<Outcome> {
    let rulebook = Rulebook {
        require: terms.require,
        unjudged_deletes: terms.delete_without_identity == DeleteWithoutIdentity::Key,
        all_leaves: false,
        snapshot: crate::snapshot::Settings::default(),
    };
    let (mut own, shared) = (Readings::default(), Readings::default());
    for _ in 0..ROUNDS {
        let resolved = {
            let mirrored = |table: &Table, column: &str| {
                let kept = terms.old_rows.get(&table.oid);
                kept.is_some_and(|kept| kept.columns.iter().any(|one| *one.name == *column))
            };
            let told = Told {
                own: &own,
                shared: &shared,
            };
            resolve(
                catalog,
                told,
                (rulebook, &mirrored),
                principal,
                wanted,
                |table| Arc::new(Access::new(catalog, table, &principal.role)),
            )
        };
        let unread = match resolved {
            Ok(resolved) => {
                let bindings = resolved.tables.iter().flat_map(|(_, bindings)| bindings);
                return Some(Outcome {
                    asked: bindings.into_iter().any(|one| one.filter.is_asked()),
                    refusals: resolved.refusals,
                    notices: resolved.notices,
                });
            }
            Err(Unresolved::Role) => return None,
            Err(Unresolved::Unread(unread)) => unread,
        };
        for probe in unread {
            let reading = asker.read(probe.clone()).await?;
            own.insert(probe, reading);
        }
    }
    None
}

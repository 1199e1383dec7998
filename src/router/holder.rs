//! Whom a cursor is given to: what lies before it was judged for them, and for nobody else.

use std::hash::{DefaultHasher, Hash, Hasher};

use smallvec::SmallVec;

use crate::auth::Principal;
use crate::log::Holder;
use crate::pg::{Lsn, Oid};
use crate::policy::access::{Access, Rules};
use crate::policy::predicate::Projection;

/// A principal as the holder of a cursor of these tables. What no rule reads makes no difference to
/// one of its numbers; what stays with the user is all of the other, whichever tables they are.
/// `rules` is where the newest catalog was read that changed those of the tables.
pub(super) fn holder<'a>(
    principal: &Principal,
    tables: impl Iterator<Item = (Oid, &'a Access)>,
    rules: Lsn,
) -> Holder {
    let lasting = principal.claims.lasting();
    let mut claims = DefaultHasher::new();
    (&principal.role, &lasting).hash(&mut claims);
    let mut read = DefaultHasher::new();
    principal.role.hash(&mut read);
    let mut tables: Vec<(Oid, &Access)> = tables.collect();
    tables.sort_unstable_by_key(|(oid, _)| *oid);
    for (oid, access) in tables {
        let Rules::Judged {
            predicates, asked, ..
        } = &access.rules
        else {
            continue;
        };
        let projections = predicates.iter();
        let projections: SmallVec<[Projection; 1]> = projections
            .map(|predicate| predicate.project(principal))
            .collect();
        if *asked || projections.iter().any(Projection::is_undecided) {
            (oid, &lasting).hash(&mut read);
        } else if !projections.iter().all(Projection::is_empty) {
            (oid, projections).hash(&mut read);
        }
    }
    Holder {
        claims: half(&claims),
        read: half(&read),
        rules: Some(rules),
    }
}

/// Of two who differ one in four thousand millions is taken for the other, and is not told that
/// what it missed was the other's.
fn half(hasher: &DefaultHasher) -> u32 {
    u32::try_from(hasher.finish() >> 32).unwrap_or_default()
}

//! What of a database's types and collations the evaluator has to know.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Document, Type};
use crate::datum::{Collation, Encoding, Labels, Types, UserType};
use crate::pg::Oid;

/// The default collation of every database.
const DEFAULT_COLLATION: Oid = Oid(100);

pub(super) fn types(document: &Document) -> Types {
    let mut native = Types {
        encoding: Encoding::of(&document.database.encoding),
        ..Types::default()
    };
    let columns = document.tables.iter().flat_map(|table| &table.columns);
    for collation in columns
        .map(|column| column.collation)
        .filter(|collation| collation.0 != 0)
    {
        if Collation::built_in(collation).is_none() {
            let deterministic = !document.collations.contains(&collation);
            let known = Collation {
                deterministic,
                ..Collation::DEFAULT
            };
            native.collations.insert(collation, known);
        }
    }
    let (collate, ctype) = (&document.database.collate, &document.database.ctype);
    let libc = document.database.provider == 'c';
    let bytes = |locale: &str| libc && matches!(locale, "C" | "POSIX");
    let default = if bytes(collate) && bytes(ctype) {
        Collation::C
    } else {
        // The languages whose i is not everybody's, by all of their codes and names.
        let ctype = ctype.to_lowercase();
        let language = ctype.split(|c: char| !c.is_alphabetic()).next();
        let odd = language.is_some_and(|language| {
            [
                "tr",
                "tur",
                "turkish",
                "az",
                "aze",
                "azerbaijani",
                "lt",
                "lit",
                "lithuanian",
            ]
            .contains(&language)
        });
        Collation {
            plain_case: !odd,
            ..Collation::DEFAULT
        }
    };
    native.collations.insert(DEFAULT_COLLATION, default);
    let by_oid: HashMap<Oid, &Type> = document.types.iter().map(|ty| (ty.oid, ty)).collect();
    for ty in &document.types {
        if let Some(labels) = &ty.labels {
            let labels = labels.iter().map(|(oid, label, _)| (*oid, label.as_str()));
            native
                .user
                .insert(ty.oid, UserType::Enum(Arc::new(Labels::in_order(labels))));
        }
        let element = by_oid.get(&ty.element);
        if element.is_some_and(|of| of.kind == 'e') && ty.kind == 'b' {
            let element = ty.element;
            native.user.insert(ty.oid, UserType::Array { element });
        }
        if let Some([equal, unequal]) = ty.citext.as_deref() {
            let (equal, unequal) = (*equal, *unequal);
            native
                .user
                .insert(ty.oid, UserType::Citext { equal, unequal });
        }
        let mut base = ty;
        for _ in 0..32 {
            match by_oid.get(&base.base) {
                Some(next) if base.kind == 'd' => base = next,
                _ => break,
            }
        }
        if ty.kind == 'd' && base.kind != 'd' {
            native
                .user
                .insert(ty.oid, UserType::Domain { base: base.oid });
        }
    }
    native
}

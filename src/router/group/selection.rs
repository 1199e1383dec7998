//! Which columns bindings want.

use std::collections::HashMap;
use std::sync::Arc;

use slab::Slab;

/// The names of the columns that a binding wants, the primary key's among them, in order.
pub(in crate::router) type Selection = Arc<[Arc<str>]>;

/// Where a selection is among those of its [`Group`], where equal ones are one. Small numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::router) struct SelectionKey(pub(in crate::router) usize);

#[derive(Debug, Default)]
pub(super) struct Selections {
    /// With how many bindings want them.
    pub(super) known: Slab<(Selection, usize)>,
    by_names: HashMap<Selection, SelectionKey>,
}

impl Selections {
    pub(super) fn add(&mut self, selection: Selection) -> SelectionKey {
        let known = &mut self.known;
        let entry = self.by_names.entry(selection);
        let key = *entry.or_insert_with_key(|names| {
            let names = Arc::clone(names);
            SelectionKey(known.insert((names, 0)))
        });
        if let Some((_, bindings)) = known.get_mut(key.0) {
            *bindings += 1;
        }
        key
    }

    pub(super) fn remove(&mut self, key: SelectionKey) {
        let Some((names, bindings)) = self.known.get_mut(key.0) else {
            return;
        };
        *bindings -= 1;
        if *bindings == 0 {
            self.by_names.remove(names);
            self.known.remove(key.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Selection {
        names.iter().map(|&name| name.into()).collect()
    }

    #[test]
    fn equal_selections_are_one_until_the_last_binding_that_wants_it_goes() {
        let mut selections = Selections::default();
        let first = selections.add(names(&["id", "a"]));
        let other = selections.add(names(&["id", "b"]));
        assert_ne!(first, other);
        assert_eq!(selections.add(names(&["id", "a"])), first);
        selections.remove(first);
        assert_eq!(selections.add(names(&["id", "a"])), first);
        selections.remove(first);
        selections.remove(first);
        let next = selections.add(names(&["id", "c"]));
        assert_eq!(next, first, "numbers stay small");
        let known = selections.known.get(next.0).map(|(names, _)| &**names);
        assert_eq!(known, Some(&*names(&["id", "c"])));
        assert_eq!(selections.by_names.len(), 2);
    }
}

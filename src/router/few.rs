//! A set that mostly has one element: of the sockets of a user, or the users that have a value. Of
//! 100,000 users each has its own, and what lies elsewhere in memory is fetched for each of them.

use std::collections::HashSet;
use std::collections::hash_set;
use std::hash::Hash;
use std::option;

/// Takes the place of two words while there is no more than one element.
#[derive(Debug)]
pub(super) enum Few<T> {
    /// Nothing, or the only one.
    One(Option<T>),
    /// Several.
    #[expect(
        clippy::box_collection,
        reason = "a set as it is would take six words of everybody"
    )]
    Many(Box<HashSet<T>>),
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::One(None)
    }
}

impl<T: Copy + Eq + Hash> Few<T> {
    pub(super) fn insert(&mut self, element: T) {
        match self {
            Self::One(None) => *self = Self::One(Some(element)),
            Self::One(Some(one)) if *one == element => {}
            Self::One(Some(one)) => *self = Self::Many(Box::new(HashSet::from([*one, element]))),
            Self::Many(many) => {
                many.insert(element);
            }
        }
    }

    pub(super) fn remove(&mut self, element: &T) {
        match self {
            Self::One(one) => {
                one.take_if(|one| one == element);
            }
            Self::Many(many) => {
                many.remove(element);
                if many.len() <= 1 {
                    *self = Self::One(many.iter().next().copied());
                }
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::One(None))
    }

    pub(super) fn iter(&self) -> Elements<'_, T> {
        match self {
            Self::One(one) => Elements::One(one.iter()),
            Self::Many(many) => Elements::Many(many.iter()),
        }
    }
}

/// Borrows the elements, in no order.
#[derive(Debug)]
pub(super) enum Elements<'a, T> {
    One(option::Iter<'a, T>),
    Many(hash_set::Iter<'a, T>),
}

impl<'a, T> Iterator for Elements<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        match self {
            Self::One(one) => one.next(),
            Self::Many(many) => many.next(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            Self::One(one) => one.size_hint(),
            Self::Many(many) => many.size_hint(),
        }
    }
}

impl<'a, T: Copy + Eq + Hash> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = Elements<'a, T>;

    fn into_iter(self) -> Elements<'a, T> {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn it_has_what_a_set_has_however_many_come_and_go() {
        let mut random = StdRng::seed_from_u64(7);
        let (mut few, mut set) = (Few::default(), HashSet::new());
        for _ in 0..10_000 {
            let element = random.random_range(0..5_usize);
            if random.random_bool(0.4) {
                few.insert(element);
                set.insert(element);
            } else {
                few.remove(&element);
                set.remove(&element);
            }
            assert_eq!(few.is_empty(), set.is_empty());
            assert_eq!(few.iter().count(), set.len(), "each once");
            assert!(few.iter().all(|element| set.contains(element)));
            assert_eq!(matches!(few, Few::Many(_)), set.len() > 1);
        }
    }
}

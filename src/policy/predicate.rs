//! stub
use crate::auth::Principal;
use crate::change::{Relation, Row};
use crate::datum::Datum;
#[derive(Debug)]
pub struct Predicate;
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Projection;
#[derive(Debug)]
pub struct Bound;
pub enum Verdict {
    True,
    False,
    Null,
    Error,
    Undecided,
}
pub struct Probe {
    pub slot: usize,
    pub datum: Datum,
}
pub enum Audience {
    Nobody,
    Everyone,
    Probes(Vec<Probe>),
    Scan,
}
impl Predicate {
    pub fn project(&self, _p: &Principal) -> Projection {
        Projection
    }
    pub fn bind(&self, _r: &Relation) -> Option<Bound> {
        None
    }
    pub fn probe_slots(&self) -> impl Iterator<Item = usize> {
        [].into_iter()
    }
}
impl Projection {
    pub fn value(&self, _slot: usize) -> Option<&Datum> {
        None
    }
}
impl Bound {
    pub fn audience(&self, _r: &Row) -> Audience {
        Audience::Scan
    }
    pub fn judge(&self, _r: &Row, _p: &Projection) -> Verdict {
        Verdict::False
    }
}

//! Which mirrors the catalog says nothing against, and as of when.

use std::future::pending;

use super::kept::Kept;
use super::reason::Cause;
use super::{Keeping, Table};
use crate::pg::snapshot::Snapshot;
use crate::pg::{Oid, Xid};

/// What the clerk is to look behind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) xid: Xid,
    /// Whether at all that the catalog says; else at partitions only.
    pub(super) ddl: bool,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            xid: Xid(0),
            ddl: true,
        }
    }
}

/// What the clerk's newest look at the catalog has found.
#[derive(Debug, Default)]
pub(super) struct Verified {
    /// What had been committed before it looked; `None` before its first look.
    snapshot: Option<Snapshot>,
    /// The orders whose mirrors were found as they were copied.
    orders: Vec<u64>,
    /// Whether it looked at all that the catalog says; else at partitions only.
    ddl: bool,
}

impl Verified {
    pub(super) const fn new(snapshot: Snapshot, orders: Vec<u64>, ddl: bool) -> Self {
        Self {
            snapshot: Some(snapshot),
            orders,
            ddl,
        }
    }

    /// Whether it was looked after this transaction had committed.
    pub(super) fn shows(&self, xid: Xid) -> bool {
        self.snapshot.as_ref().is_some_and(|one| one.shows(xid))
    }

    /// Whether nothing stood against what was copied for an order: no DDL, where that is asked, nor a
    /// TRUNCATE of a partition.
    pub(super) fn holds(&self, order: u64, ddl: bool) -> bool {
        (self.ddl || !ddl) && self.orders.contains(&order)
    }
}

impl Keeping {
    /// Whether every mirror is known to be true as of a transaction that it may have been blinded by
    /// without a word of its own in the stream: by `ddl`, where that is what the transaction is, and
    /// in any case by a TRUNCATE of a partition. To be asked before [`Keeping::entry`] is given the
    /// first entry of the transaction. Where not, the task looks, and [`Keeping::looked`] says when
    /// it has.
    pub fn is_verified(&mut self, xid: Xid, ddl: bool) -> bool {
        if self.unverified(xid, ddl).next().is_none() {
            return true;
        }
        // What is looked at from now on is news.
        self.verified.mark_unchanged();
        if self.unverified(xid, ddl).next().is_none() {
            return true;
        }
        self.asked.send_replace(Asked { xid, ddl });
        false
    }

    /// The tables with a mirror, or with one that is about to be, of which that is not known.
    fn unverified(&self, xid: Xid, ddl: bool) -> impl Iterator<Item = Oid> {
        let known = move |kept: &Kept| {
            let verified = self.verified.borrow();
            verified.shows(xid) && verified.holds(kept.order, ddl)
        };
        let doubtful = move |kept: &Kept| (ddl || kept.members.is_some()) && !known(kept);
        let is_doubtful = move |table: &Table| {
            let arriving = table.arriving.as_ref().map(|arriving| &arriving.kept);
            table.mirror.iter().chain(arriving).any(doubtful)
        };
        let doubtful = self
            .tables
            .iter()
            .filter(move |(_, table)| is_doubtful(table));
        doubtful.map(|(oid, _)| *oid)
    }

    /// Waits until the task has looked again.
    pub fn looked(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut verified = self.verified.clone();
        async move {
            // Where the task has ended, so has the process soon.
            if verified.changed().await.is_err() {
                pending::<()>().await;
            }
        }
    }

    /// Gives up what [`Keeping::is_verified`] does not know to be true.
    pub fn distrust(&mut self, xid: Xid, ddl: bool) {
        let doubtful: Vec<Oid> = self.unverified(xid, ddl).collect();
        for oid in doubtful {
            let refusal = Cause::Unreachable
                .because("the catalog cannot be asked whether rows of it have gone unseen");
            self.give_up(oid, refusal, None);
        }
    }
}

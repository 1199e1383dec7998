//! Who is told of a table's changes, and from where on.

use std::sync::Arc;

use smallvec::SmallVec;

use super::selection::{Selection, SelectionKey};
use crate::change::Kind;
use crate::log::Offset;
use crate::pg::Xid;
use crate::pg::snapshot::Snapshot;
use crate::router::filter_index::FilterKey;
use crate::router::{ChannelId, Outbox};
use crate::snapshot::Query;
use crate::subscription::Events;
use crate::subscription::matcher::Filter;

/// A binding in force on one table.
#[derive(Debug, Clone)]
pub(in crate::router) struct Binding {
    pub(in crate::router) id: u32,
    pub(in crate::router) events: Events,
    pub(in crate::router) filter: Arc<Filter>,
    pub(in crate::router) selection: Option<Selection>,
    /// Whether it is told when a row leaves its view.
    pub(in crate::router) leave: bool,
    /// Where it begins; `None` where that is its join.
    pub(in crate::router) begin: Option<Arc<Begin>>,
    /// What it wants to have read before its changes.
    pub(in crate::router) snapshot: Option<Arc<Query>>,
}

/// Where a binding begins that does not begin with its join.
#[derive(Debug)]
pub(in crate::router) struct Begin {
    /// The first change that is wanted; `None` for those after the join.
    pub(in crate::router) from: Option<Offset>,
    /// What this snapshot shows is not wanted.
    pub(in crate::router) unseen_by: Option<Arc<Snapshot>>,
}

/// When a change happened.
#[derive(Debug, Clone, Copy)]
pub(in crate::router) struct Moment {
    pub(in crate::router) offset: Offset,
    pub(in crate::router) xid: Xid,
    /// Before whoever joined without a cursor could have subscribed.
    pub(in crate::router) early: bool,
}

/// Whether a binding that begins there wants what happened then.
pub(super) fn wants(begin: Option<&Begin>, moment: Moment) -> bool {
    let Some(begin) = begin else {
        return !moment.early;
    };
    let reached = begin
        .from
        .map_or(!moment.early, |from| from <= moment.offset);
    let shown = begin.unseen_by.as_ref();
    reached && !shown.is_some_and(|snapshot| snapshot.shows(moment.xid))
}

/// A binding with its filter in the group's index.
#[derive(Debug)]
pub(super) struct Installed {
    pub(super) id: u32,
    pub(super) events: Events,
    pub(super) filter: FilterKey,
    pub(super) selection: Option<SelectionKey>,
    pub(super) leave: bool,
    pub(super) begin: Option<Arc<Begin>>,
}

/// A channel's bindings on one table.
#[derive(Debug)]
pub(in crate::router) struct Member {
    pub(in crate::router) outbox: Arc<Outbox>,
    pub(in crate::router) channel: ChannelId,
    pub(super) bindings: SmallVec<[Installed; 1]>,
    pub(super) who: usize,
}

impl Member {
    /// Whether one of its bindings wants what happened then, whatever that was.
    pub(in crate::router) fn wants(&self, moment: Moment) -> bool {
        let mut bindings = self.bindings.iter();
        bindings.any(|binding| wants(binding.begin.as_deref(), moment))
    }

    /// Those of its bindings to whom a TRUNCATE at that moment is a change, ascending, and whether
    /// there are others that want what happened then.
    pub(in crate::router) fn hears_of_truncate(
        &self,
        moment: Moment,
    ) -> (SmallVec<[u32; 4]>, bool) {
        let (mut told, mut others) = (SmallVec::new(), false);
        let bindings = self.bindings.iter();
        for binding in bindings.filter(|one| wants(one.begin.as_deref(), moment)) {
            if binding.events.includes(&Kind::Truncate) {
                told.push(binding.id);
            } else {
                others = true;
            }
        }
        (told, others)
    }

    /// Whether one of its bindings has to do with one of these: INSERT, UPDATE, DELETE.
    pub(in crate::router) fn asks_for_one_of(&self, operations: [bool; 3]) -> bool {
        let [insert, update, delete] = operations;
        self.bindings.iter().any(|binding| match binding.events {
            Events::All | Events::AllAndTruncate => insert || update || delete,
            Events::Insert => insert,
            Events::Update => update,
            Events::Delete => delete,
        })
    }

    /// Whether it was given rows when it joined: what it missed it missed a moment ago.
    pub(in crate::router) fn follows_a_snapshot(&self) -> bool {
        let mut begin = self.bindings.iter().filter_map(|one| one.begin.as_deref());
        begin.any(|begin| begin.unseen_by.is_some())
    }
}

/// Where a member is in its [`Group`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::router) struct MemberKey(pub(in crate::router) usize);

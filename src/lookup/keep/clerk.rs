//! The task beside the mirrors: looks at the catalog, has tables published, and copies them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::sync::{mpsc, watch};

use super::arriving::Arriving;
use super::reason::Refusal;
use super::{Settings, State};
use crate::log::Log;
use crate::lookup::Wanted;
use crate::metrics::Metrics;
use crate::pg::Oid;
use crate::pg::connect::Database;
use crate::source::lookups::Wishing;

/// That a table is to be mirrored. A mirror that was given up is ordered again, by another number.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) number: u64,
    pub(super) wanted: Arc<Wanted>,
}

/// What a mirror in force was copied for: its order, what the catalog said of the table, and how
/// much memory it holds.
pub(super) type Held = (u64, Arc<str>, usize);

/// All orders, and what is in force.
#[derive(Debug, Default, Clone)]
pub(super) struct Orders(pub(super) HashMap<Oid, (Arc<Order>, Option<Held>)>);

/// What becomes of an order.
#[derive(Debug)]
pub(super) enum Report {
    /// How far it is.
    State {
        table: Oid,
        order: u64,
        name: Arc<str>,
        state: State,
    },
    /// It is copied.
    Copied {
        table: Oid,
        order: u64,
        arriving: Box<Arriving>,
    },
    /// What was copied is not true any more.
    Blind {
        table: Oid,
        order: u64,
        refusal: Refusal,
    },
}

pub(super) struct Clerk {
    orders: watch::Receiver<Orders>,
    reports: mpsc::Sender<Report>,
}

impl Clerk {
    pub(super) fn new(
        _foundation: (Database, Arc<dyn Log>, Wishing, Arc<Metrics>),
        _settings: Settings,
        (orders, reports): (watch::Receiver<Orders>, mpsc::Sender<Report>),
        _place: Arc<AtomicU64>,
    ) -> Self {
        Self { orders, reports }
    }

    /// Runs until the mirrors' keeper is dropped.
    pub(super) async fn run(mut self) {
        while self.orders.changed().await.is_ok() {}
        drop(self.reports);
    }
}

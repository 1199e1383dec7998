//! One task owns the catalog reader: it looks once a second, and answers the router in between.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

use super::catalog::Catalog;
use super::reader::{CatalogError, CatalogReader};
use crate::metrics::Metrics;
use crate::pg::{Oid, Xid};

/// Requests that wait; past this whoever asks waits.
const QUEUE: usize = 256;

/// The catalog as it is known, and a way to have it looked at.
#[derive(Debug, Clone)]
pub struct CatalogWatch {
    requests: mpsc::Sender<Request>,
    current: watch::Receiver<Arc<Catalog>>,
}

#[derive(Debug)]
enum Request {
    After {
        xid: Xid,
        relation: Oid,
        done: oneshot::Sender<()>,
    },
    Role {
        role: String,
        since: Instant,
        done: oneshot::Sender<Result<(), CatalogError>>,
    },
}

/// The catalog's task has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the catalog is not being read any more")]
pub struct Ended;

impl CatalogWatch {
    /// The newest catalog.
    #[must_use]
    pub fn current(&self) -> Arc<Catalog> {
        Arc::clone(&self.current.borrow())
    }

    /// The newest catalog; marks it as seen.
    pub fn take(&mut self) -> Arc<Catalog> {
        Arc::clone(&self.current.borrow_and_update())
    }

    /// Waits for a catalog that was not seen yet. Cancel safe.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn changed(&mut self) -> Result<(), Ended> {
        self.current.changed().await.map_err(|_| Ended)
    }

    /// Returns once [`CatalogWatch::current`] is at or after the commit of `xid`, whose stream has
    /// just described `relation` anew.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn after(&self, xid: Xid, relation: Oid) -> Result<(), Ended> {
        let (done, answer) = oneshot::channel();
        self.requests
            .send(Request::After {
                xid,
                relation,
                done,
            })
            .await
            .map_err(|_| Ended)?;
        answer.await.map_err(|_| Ended)
    }

    /// Returns once [`CatalogWatch::current`] is not older than this call and knows whether `role`
    /// exists.
    ///
    /// # Errors
    /// [`CatalogError`], or `None` where the task has ended.
    pub async fn role(&self, role: String) -> Result<(), Option<CatalogError>> {
        let (done, answer) = oneshot::channel();
        self.requests
            .send(Request::Role {
                role,
                since: Instant::now(),
                done,
            })
            .await
            .map_err(|_| None)?;
        answer.await.map_err(|_| None)?.map_err(Some)
    }
}

/// Reads the catalog for the first time, and makes the task that keeps reading it. The task ends
/// when every [`CatalogWatch`] is gone.
///
/// # Errors
/// Where the first reading fails.
pub async fn watch(
    mut reader: CatalogReader,
    metrics: Arc<Metrics>,
    interval: Duration,
) -> Result<(CatalogWatch, impl Future<Output = ()> + Send), CatalogError> {
    let first = reader.look().await?;
    name_open_tables(None, &first);
    let (publish, current) = watch::channel(first);
    let (requests, mut incoming) = mpsc::channel(QUEUE);
    let task = async move {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                request = incoming.recv() => match request {
                    Some(request) => serve(&mut reader, &publish, &metrics, request).await,
                    None => break,
                },
                _ = ticks.tick() => match reader.look().await {
                    Ok(catalog) => publish_new(&publish, &metrics, catalog),
                    Err(error) => warn!(%error, "cannot look at the catalog"),
                },
            }
        }
    };
    Ok((CatalogWatch { requests, current }, task))
}

async fn serve(
    reader: &mut CatalogReader,
    publish: &watch::Sender<Arc<Catalog>>,
    metrics: &Metrics,
    request: Request,
) {
    // Whoever asked may be gone: then nobody needs the answer.
    match request {
        Request::After {
            xid,
            relation,
            done,
        } => {
            publish_new(publish, metrics, reader.after(xid, relation).await);
            let _gone = done.send(());
        }
        Request::Role { role, since, done } => {
            let answer = reader.role(&role, since).await.map(|catalog| {
                publish_new(publish, metrics, catalog);
            });
            let _gone = done.send(answer);
        }
    }
}

fn publish_new(publish: &watch::Sender<Arc<Catalog>>, metrics: &Metrics, catalog: Arc<Catalog>) {
    publish.send_if_modified(|current| {
        let new = !Arc::ptr_eq(current, &catalog);
        if new {
            info!(tables = catalog.tables.len(), "the catalog changed");
            name_open_tables(Some(current), &catalog);
            metrics.catalog_reloads.inc();
            *current = catalog;
        }
        new
    });
}

/// Says which published tables have no row-level security: whoever may SELECT them sees every row
/// of them. That may be meant, so it is said once, not refused.
fn name_open_tables(before: Option<&Catalog>, catalog: &Catalog) {
    let open = |catalog: &Catalog| -> BTreeSet<String> {
        let tables = catalog.tables.values();
        tables
            .filter(|table| table.published && !table.row_security)
            .map(|table| table.sql_name())
            .collect()
    };
    let known = before.map(open).unwrap_or_default();
    for table in open(catalog).difference(&known) {
        warn!(
            table,
            "this table is published without row-level security: whoever may select from it sees \
             every change of it (set require_rls to refuse such tables)"
        );
    }
}

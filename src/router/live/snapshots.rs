//! Bindings that want the rows before the changes: a task reads them for each channel, and the
//! channel is then sent after what the snapshot does not show, as if it had been away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Live;
use crate::auth::Principal;
use crate::log::{Cursor, Holder};
use crate::pg::Lsn;
use crate::router::position::Position;
use crate::router::resolve::Resolved;
use crate::router::{ChannelId, Event, Outbox, Resync, SessionId};
use crate::snapshot::{Failure, Page, Query, Request, Snapshots, Taken};
use crate::subscription::Wanted;

/// Pages of a channel that its client has not taken yet; then reading waits.
const UNTAKEN: usize = 2;

/// Pages that are read ahead of those, so that a small snapshot holds no session until its client
/// has taken it.
const AHEAD: usize = 4;

/// What is being read.
pub(super) struct Takings {
    snapshots: Snapshots,
    tasks: JoinSet<Done>,
    /// A socket's channels are read one after the other: one client must not have all sessions.
    turns: HashMap<SessionId, Arc<Semaphore>>,
}

/// How a reading ended.
pub(super) struct Done {
    session: SessionId,
    channel: ChannelId,
    reader: Arc<Reader>,
    result: Result<Taken, Failure>,
}

/// A channel that is read for. Once it is closed nothing more reaches the client.
#[derive(Debug)]
pub(in crate::router) struct Reader {
    outbox: Arc<Outbox>,
    channel: ChannelId,
    position: Arc<Position>,
    /// The bindings.
    bindings: Box<[u32]>,
    open: Mutex<bool>,
    closed: CancellationToken,
}

impl Reader {
    /// Ends it: its channel was left, or joined anew.
    pub(in crate::router) fn close(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.closed.cancel();
    }

    /// Puts pages into the outbox, as the client takes them.
    async fn hand_on(&self, mut pages: mpsc::Receiver<Page>) {
        let untaken = Arc::new(Semaphore::new(UNTAKEN));
        let handing = async {
            while let Some(mut page) = pages.recv().await {
                let Ok(place) = Arc::clone(&untaken).acquire_owned().await else {
                    return;
                };
                // A place that the router has not come to yet is none to come back to.
                page.cursor.offset = page.cursor.offset.min(self.position.get().offset);
                let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
                if *open {
                    self.outbox.push(Event::Snapshot {
                        channel: self.channel,
                        page: Arc::new(page),
                        place: Arc::new(place),
                    });
                }
            }
        };
        tokio::select! {
            () = handing => {}
            () = self.closed.cancelled() => {}
        }
    }
}

impl Takings {
    pub(super) fn new(snapshots: Snapshots) -> Self {
        Self {
            snapshots,
            tasks: JoinSet::new(),
            turns: HashMap::new(),
        }
    }

    /// [`Snapshots::nothing_before`].
    pub(super) fn nothing_before(&self, commit: Lsn) {
        self.snapshots.nothing_before(commit);
    }

    /// The next that ends. Cancel safe.
    pub(super) async fn next(&mut self) -> Done {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(done)) => return done,
                Some(Err(error)) if error.is_panic() => {
                    std::panic::resume_unwind(error.into_panic())
                }
                Some(Err(_aborted)) => {}
                None => std::future::pending().await,
            }
        }
    }

    fn read(&mut self, session: SessionId, reader: &Arc<Reader>, request: Request) {
        self.turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        let turn = self
            .turns
            .entry(session)
            .or_insert_with(|| Arc::new(Semaphore::new(1)));
        let (turn, reader) = (Arc::clone(turn), Arc::clone(reader));
        let snapshots = self.snapshots.clone();
        self.tasks.spawn(async move {
            let result = take(&snapshots, &turn, &reader, &request).await;
            Done {
                session,
                channel: reader.channel,
                reader,
                result,
            }
        });
    }
}

async fn take(
    snapshots: &Snapshots,
    turn: &Semaphore,
    reader: &Reader,
    request: &Request,
) -> Result<Taken, Failure> {
    let _turn = tokio::select! {
        turn = turn.acquire() => turn.map_err(|_| Failure::Abandoned)?,
        () = reader.closed.cancelled() => return Err(Failure::Abandoned),
    };
    let (sender, pages) = mpsc::channel(AHEAD);
    let taking = async {
        let taken = snapshots.take(request, &sender).await;
        drop(sender);
        taken
    };
    let (taken, ()) = tokio::join!(taking, reader.hand_on(pages));
    taken
}

/// What is to be read for these bindings.
pub(super) fn queries(resolved: &Resolved, bindings: &[u32]) -> Vec<(u32, Arc<Query>)> {
    let all = resolved.tables.iter().flat_map(|(_, bindings)| bindings);
    all.filter(|binding| bindings.contains(&binding.id))
        .filter_map(|binding| Some((binding.id, Arc::clone(binding.snapshot.as_ref()?))))
        .collect()
}

impl Live {
    /// The bindings that begin with a snapshot: they want one, and no place in the log from which
    /// they could go on instead.
    pub(super) fn begin_with_snapshot(&self, wanted: &mut [Wanted], holder: Holder) -> Vec<u32> {
        let mut begin = Vec::new();
        for wish in wanted
            .iter_mut()
            .filter(|wish| wish.start.snapshot.is_some())
        {
            let own = std::slice::from_ref(wish);
            let good = wish.start.since.is_some() && self.beginning_of(own, holder).is_ok();
            if !good {
                // What the cursor says is of what it does not go on from.
                (wish.start.since, wish.start.holder, wish.start.read_at) = (None, None, None);
                begin.push(wish.id);
            }
        }
        begin
    }

    /// Reads for a channel, of which nothing is in force meanwhile.
    pub(super) fn take_snapshot(
        &mut self,
        session: SessionId,
        channel: ChannelId,
        queries: Vec<(u32, Arc<Query>)>,
    ) {
        let position = Arc::clone(&self.fanout.position);
        let Some(state) = self.fanout.channel(session, channel) else {
            return;
        };
        let reader = Arc::new(Reader {
            outbox: Arc::clone(&state.outbox),
            channel,
            position,
            bindings: queries.iter().map(|(binding, _)| *binding).collect(),
            open: Mutex::new(true),
            closed: CancellationToken::new(),
        });
        state.away = true;
        // A join in the meantime does not bring a new token only: it begins anew.
        state.settled = false;
        state.reader = Some(Arc::clone(&reader));
        let principal: Arc<Principal> = Arc::clone(&state.principal);
        let request = Request { principal, queries };
        self.takings.read(session, &reader, request);
    }

    /// Ends all readings: of a history of the log that is no more, or of the next one before this
    /// task had come to it. Their channels are told with all others.
    pub(super) fn end_readings(&mut self) {
        let channels = self.fanout.sessions.values_mut();
        for state in channels.flat_map(HashMap::values_mut) {
            if let Some(reader) = state.reader.take() {
                reader.close();
                state.away = false;
            }
        }
    }

    /// A reading has ended: its channel goes on behind what it was given.
    pub(super) fn snapshot_done(&mut self, done: Done) {
        let Done {
            session,
            channel,
            reader,
            result,
        } = done;
        let next = self.next;
        let Some(state) = self.fanout.channel(session, channel) else {
            return debug!("a channel was left while it was read for");
        };
        let current = |known: &Arc<Reader>| Arc::ptr_eq(known, &reader);
        if !state.reader.as_ref().is_some_and(current) {
            return debug!("a channel joined anew while it was read for");
        }
        state.reader = None;
        state.away = false;
        let failure = match result {
            Ok(taken) => {
                let mut wanted = state.wanted.to_vec();
                for wish in &mut wanted {
                    if reader.bindings.contains(&wish.id) {
                        // What the router has not come to yet it will.
                        wish.start.since = Some(Cursor {
                            offset: taken.from.offset.min(next),
                            ..taken.from
                        });
                        wish.start.unseen_by = Some(Arc::clone(&taken.snapshot));
                    }
                }
                state.wanted = wanted.into();
                state.settled = true;
                let wanted = Arc::clone(&state.wanted);
                match self.beginning(&wanted) {
                    Ok(from) => return self.send_after(session, channel, from),
                    Err(reason) => Err(reason),
                }
            }
            Err(Failure::Trimmed) => Err(Resync::Trimmed),
            Err(failure) => Ok(failure),
        };
        let Some(state) = self.fanout.channel(session, channel) else {
            return;
        };
        state.outbox.push(match failure {
            Ok(failure) => Event::SnapshotFailed { channel, failure },
            Err(reason) => Event::Resync {
                channel,
                reason,
                cursor: None,
                read_at: Lsn(0),
            },
        });
    }
}

//! The thread that writes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::{info, warn};

use super::directory::{Directory, OpenError, State, remove};
use super::segment::{Segment, SegmentWriter};
use super::{Options, Shared};
use crate::log::{Entry, Epoch, Offset};
use crate::pg::Lsn;
use crate::retry::Backoff;

/// The least time between two synchronisations: what comes meanwhile shares the next. Nobody waits
/// for it but PostgreSQL, for the acknowledgement, which it is sent once a second; and where the log
/// lies on PostgreSQL's disk, each of them is one that its commits wait behind.
const SYNC_EVERY: Duration = Duration::from_millis(100);

/// Bytes that are written before they are synchronised, but for a batch.
const SYNC_BYTES: usize = 16 << 20;

/// How often age is looked at while nothing comes.
const IDLE: Duration = Duration::from_secs(10);

/// What the thread is told.
pub(super) enum Command {
    /// The next batch, and the room that it takes up in the queue.
    Write(Arc<Entry>, OwnedSemaphorePermit),
    /// Everything that commits before has come.
    Pass(Lsn),
    /// The transaction that is open does not go on.
    Abandon,
    /// Say when everything before has been written.
    Written(oneshot::Sender<()>),
    /// Remove everything and begin a history.
    Begin {
        state: State,
        first: Offset,
        from: Lsn,
        done: oneshot::Sender<()>,
    },
    /// The history goes on after `from` under another origin.
    Follow {
        state: State,
        from: Lsn,
        done: oneshot::Sender<()>,
    },
    /// Store what there is, and end.
    Close,
}

/// Why something was not done.
enum Halt {
    /// The log is closed: what is not acknowledged comes again after the next start.
    Closing,
    /// A new history has begun.
    Superseded,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    directory: Directory,
    options: Options,
    epoch: Epoch,
    segment: SegmentWriter,
    /// Where the last transaction that was written, and is not stored yet, ends.
    written: Option<Lsn>,
    synced_at: Instant,
    /// The last thing that was tried has failed.
    failing: bool,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        directory: Directory,
        options: Options,
        newest: Arc<Segment>,
    ) -> Result<Self, OpenError> {
        Ok(Self {
            epoch: Epoch(newest.epoch),
            shared,
            directory,
            options,
            segment: SegmentWriter::new(newest)?,
            written: None,
            synced_at: Instant::now(),
            failing: false,
        })
    }

    /// Writes what comes, until it is told to end or the disk fails in a way that cannot be
    /// mended: then the queue is closed, and what is not acknowledged comes again after a restart.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        self.retain();
        loop {
            let done = match self.next(commands) {
                Ok(Command::Close) | Err(RecvTimeoutError::Disconnected) => {
                    // Whoever waits for more is gone.
                    if self.store().is_ok()
                        && let Err(error) = self.directory.close()
                    {
                        warn!(%error, "cannot note that the log was closed");
                    }
                    return;
                }
                Ok(command) => self.obey(command),
                Err(RecvTimeoutError::Timeout) => {
                    self.retain();
                    self.store()
                }
            };
            match done {
                Ok(()) => {}
                // The command that begins the new history comes.
                Err(Halt::Superseded) => self.written = None,
                Err(Halt::Closing) => return,
            }
        }
    }

    /// The next command. What comes before the next synchronisation is due waits for that in the
    /// queue, which has room for it, so that this thread wakes once for all of it.
    fn next(&self, commands: &Receiver<Command>) -> Result<Command, RecvTimeoutError> {
        if self.written.is_none() {
            return commands.recv_timeout(IDLE);
        }
        commands.try_recv().or_else(|_empty| {
            std::thread::park_timeout(SYNC_EVERY.saturating_sub(self.synced_at.elapsed()));
            commands.recv_timeout(Duration::ZERO)
        })
    }

    fn obey(&mut self, command: Command) -> Result<(), Halt> {
        match command {
            Command::Write(entry, _room) => self.write(&entry)?,
            Command::Pass(lsn) => {
                self.insist(|writer| writer.segment.pass(lsn))?;
                self.written = Some(lsn);
            }
            Command::Abandon => self.insist(|writer| writer.segment.abandon())?,
            Command::Written(done) => {
                let _nobody_waits = done.send(());
            }
            Command::Begin {
                state,
                first,
                from,
                done,
            } => {
                self.begin(&state, first, from)?;
                let _nobody_waits = done.send(());
            }
            Command::Follow { state, from, done } => {
                // First the position: under the old origin it does no harm, while under the new one
                // the old position would have transactions passed over.
                self.insist(|writer| writer.segment.pass(from))?;
                self.written = Some(from);
                self.store()?;
                self.insist(|writer| writer.directory.set_state(&state))?;
                let _nobody_waits = done.send(());
            }
            Command::Close => {}
        }
        Ok(())
    }

    fn write(&mut self, entry: &Entry) -> Result<(), Halt> {
        let batch = &entry.batch;
        self.insist(|writer| writer.segment.write(entry.first, batch))?;
        if !batch.last {
            // So that there is never much that a synchronisation that fails would have to repeat.
            if self.segment.unsynced() >= SYNC_BYTES {
                self.insist(|writer| writer.segment.sync())?;
            }
            return Ok(());
        }
        self.written = Some(batch.end_lsn);
        {
            let mut inner = self.shared.lock();
            if inner.epoch == self.epoch {
                inner.written = entry.end();
                inner.trim(self.options.recent_bytes);
            }
        }
        if self.segment.segment.length() >= self.options.segment_bytes {
            self.roll(entry.end())
        } else if self.synced_at.elapsed() >= SYNC_EVERY || self.segment.unsynced() >= SYNC_BYTES {
            self.store()
        } else {
            Ok(())
        }
    }

    /// Finishes the segment and begins the next.
    fn roll(&mut self, first: Offset) -> Result<(), Halt> {
        self.insist(|writer| writer.segment.finish())?;
        self.store()?;
        self.next_segment(first)?;
        self.retain();
        Ok(())
    }

    fn next_segment(&mut self, first: Offset) -> Result<(), Halt> {
        let epoch = self.epoch;
        self.segment = self.insist(|writer| {
            let segment = Segment::create(&writer.directory.path, epoch.0, first)?;
            writer.directory.sync()?;
            SegmentWriter::new(Arc::new(segment))
        })?;
        let mut inner = self.shared.lock();
        if inner.epoch == epoch {
            inner.segments.push_back(Arc::clone(&self.segment.segment));
        }
        Ok(())
    }

    /// Makes what was written outlive a crash, and says so.
    fn store(&mut self) -> Result<(), Halt> {
        self.synced_at = Instant::now();
        let Some(lsn) = self.written.take() else {
            return Ok(());
        };
        self.insist(|writer| writer.segment.sync())?;
        if self.shared.lock().epoch == self.epoch {
            self.shared.stored.send_replace(lsn);
        }
        Ok(())
    }

    /// Removes the oldest segments as far as age and size ask for it; the newest stays.
    fn retain(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let age = i64::try_from(self.options.keep_for.as_micros()).unwrap_or(i64::MAX);
        let keep_after = now.map_or(i64::MIN, |now| {
            i64::try_from(now.as_micros())
                .unwrap_or(i64::MAX)
                .saturating_sub(age)
        });
        let mut removed = Vec::new();
        {
            let mut inner = self.shared.lock();
            if inner.epoch != self.epoch {
                return;
            }
            let mut bytes: u64 = inner.segments.iter().map(|segment| segment.length()).sum();
            while inner.segments.len() > 1
                && let Some(oldest) = inner.segments.pop_front_if(|oldest| {
                    bytes > self.options.keep_bytes || oldest.committed_at() < keep_after
                })
            {
                bytes -= oldest.length();
                removed.push(oldest);
            }
            if let Some(first) = inner.segments.front().map(|segment| segment.first) {
                while let Some(entry) = inner.recent.pop_front_if(|entry| entry.first < first) {
                    inner.recent_bytes -= entry.batch.size();
                }
            }
        }
        for segment in removed {
            remove(&segment.path);
        }
    }

    /// Begins a history. It has an origin, which is what makes it one, only once all else of it is
    /// stored: a crash before that leaves one that has not begun.
    fn begin(&mut self, state: &State, first: Offset, from: Lsn) -> Result<(), Halt> {
        let bare = State::new(state.epoch(), from, None);
        self.epoch = state.epoch();
        self.written = None;
        if self.directory.set_state(&bare).is_err() {
            // On a disk that is full, what has to go may be what is in the way. Should it end here,
            // an old history without a segment is behind any slot, and a new one begins then.
            self.insist(|writer| writer.segment.empty())?;
            self.insist(|writer| writer.directory.clear())?;
        }
        self.insist(|writer| writer.directory.set_state(&bare))?;
        self.insist(|writer| writer.directory.clear())?;
        self.next_segment(first)?;
        self.insist(|writer| writer.segment.pass(from))?;
        self.written = Some(from);
        self.store()?;
        self.insist(|writer| writer.directory.set_state(state))
    }

    /// Does something until the disk lets it. Meanwhile nothing is acknowledged to PostgreSQL, and
    /// once the queue is full nothing is read from it either.
    fn insist<T, E: std::fmt::Display>(
        &mut self,
        mut act: impl FnMut(&mut Self) -> Result<T, E>,
    ) -> Result<T, Halt> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            match act(self) {
                Ok(done) => {
                    if std::mem::take(&mut self.failing) {
                        info!("the disk takes changes again");
                        self.shared.trouble.send_replace(None);
                    }
                    return Ok(done);
                }
                Err(error) => {
                    warn!(%error, "the disk does not take changes; nothing is acknowledged");
                    self.failing = true;
                    self.shared.trouble.send_replace(Some(error.to_string()));
                    // Whoever ends the log or begins a history wakes this thread.
                    self.going_on()?;
                    std::thread::park_timeout(backoff.after_failure());
                    self.going_on()?;
                }
            }
        }
    }

    /// Whether what is being done is still of use.
    fn going_on(&self) -> Result<(), Halt> {
        if self.shared.lock().epoch != self.epoch {
            // All of it is about to go, which may be what makes room.
            return Err(Halt::Superseded);
        }
        if self.shared.closing.load(Ordering::Relaxed) {
            return Err(Halt::Closing);
        }
        Ok(())
    }
}

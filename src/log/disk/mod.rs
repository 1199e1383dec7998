//! A log on disk: it outlives the process, and so do the cursors that clients hold.
//!
//! A transaction is readable as soon as it has been taken; it is acknowledged to the source once
//! the disk has it. A crash between the two makes the source send it again, and it gets the same
//! offsets. A thread of its own writes, so that a slow disk stops nothing but the
//! acknowledgement, until [`QUEUE_BYTES`] wait for it: then the source waits too, and PostgreSQL
//! keeps the rest.
//!
//! # Files
//! The directory holds `lock` (locked while a process uses it), `state.json` (the format, the
//! epoch, and where the changes come from) and segments, named by the offset of their first
//! change. A segment is the eight bytes `rowcast` and line feed, then records (see `record`): its
//! header, and descriptions of tables each before the first batch that needs it. A transaction
//! never spans two segments. A finished segment ends with an index.
//!
//! A segment needs nothing but itself to be read: values are PostgreSQL's text, a row's cells go by
//! position, and the description before it names its columns with their types' numbers, and names
//! the types that PostgreSQL does not come with. So rows can be read when their table or type has
//! another name by now, or is gone; only `rowcast log` looks at those names. What is sent to clients
//! is judged and named by the catalog of the day: the router hides rows whose description does not
//! fit that any more, and says so.

mod directory;

mod record;

mod segment;

mod writer;

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, oneshot, watch};
use tracing::warn;

pub use self::directory::OpenError;
use self::directory::{Directory, State};
use self::segment::Segment;
use self::writer::{Command, Writer};
use super::{Entry, Epoch, Log, LogError, Offset, Origin};
use crate::change::{Batch, Change, Relation};
use crate::pg::Lsn;

/// Bytes of changes that may wait for the disk.
const QUEUE_BYTES: usize = 64 << 20;

/// Bytes that one permit of the queue stands for.
const PERMIT_BYTES: usize = 1 << 10;

/// How often it is written what was passed while no transaction came.
const PASS_EVERY: Duration = Duration::from_secs(1);

/// Bytes that one read of a file gives at most, but for a single batch that is larger.
const READ_BYTES: usize = 4 << 20;

/// How much is kept, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory; made where it does not exist. Nothing else may be in it.
    pub directory: PathBuf,
    /// Changes older than this are removed, a segment at a time.
    pub keep_for: Duration,
    /// The oldest changes are removed when there are more bytes than this, a segment at a time.
    pub keep_bytes: u64,
    /// Bytes after which a new segment is begun.
    pub segment_bytes: u64,
    /// Bytes of the newest changes that are also kept in memory.
    pub recent_bytes: usize,
}

/// The log on disk.
pub struct DiskLog {
    shared: Arc<Shared>,
    commands: std::sync::mpsc::Sender<Command>,
    room: Arc<Semaphore>,
    keep_bytes: usize,
    recent_bytes: usize,
    /// Whether whoever had it before has closed it.
    closed: bool,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// What the writer's thread and everybody else share.
struct Shared {
    inner: Mutex<Inner>,
    tail: watch::Sender<Offset>,
    stored: watch::Sender<Lsn>,
    trouble: watch::Sender<Option<String>>,
    /// Set at the end: what the disk does not take now is sent again after the next start.
    closing: AtomicBool,
}

struct Inner {
    epoch: Epoch,
    origin: Option<Origin>,
    /// Where the history begins.
    begun: Lsn,
    /// The newest entries, without a gap up to `next`.
    recent: VecDeque<Arc<Entry>>,
    recent_bytes: usize,
    /// Everything before can be read from a segment.
    written: Offset,
    segments: VecDeque<Arc<Segment>>,
    next: Offset,
    appended: Lsn,
    /// Where the last transaction ends, or the history begins.
    committed: Lsn,
    open: Option<Open>,
    /// Where the log went on after changes were lost.
    lost: Option<Offset>,
    /// When what was passed was written last.
    passed_at: Instant,
    /// What was last passed and stored, as far as it lies behind what was committed.
    passed: Lsn,
}

/// The transaction whose last batch is still to come.
struct Open {
    /// Bytes of all its batches.
    bytes: usize,
    /// The offset after the last of them.
    end: Offset,
    /// All of them, while they are no more than memory keeps.
    entries: Option<Vec<Arc<Entry>>>,
    /// The tables that it touched.
    tables: Vec<Arc<Relation>>,
    /// It alone is larger than all that is kept: the tables are what remains of it.
    too_large: bool,
}

impl DiskLog {
    /// Opens the log in a directory, or begins one. What a crash left half-written is cut off.
    /// Blocks on the disk.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let directory = Directory::open(&options.directory)?;
        let (state, closed) = match directory::state(&directory.path)? {
            Some(mut state) => {
                let closed = std::mem::take(&mut state.closed);
                if closed {
                    directory.set_state(&state)?;
                }
                (state, closed)
            }
            None => {
                let state = State::new(Epoch::random(), Lsn(0), None);
                directory.set_state(&state)?;
                (state, true)
            }
        };
        let epoch = state.epoch();
        let mut segments: VecDeque<_> = directory.history(epoch)?.into();
        if segments.is_empty() {
            let first = Segment::create(&directory.path, epoch.0, Offset(0))?;
            directory.sync()?;
            segments.push_back(Arc::new(first));
        }
        let newest = segments
            .back()
            .map(Arc::clone)
            .ok_or_else(|| OpenError::Foreign {
                path: directory.path.clone(),
                reason: "it has no segment".to_owned(),
            })?;
        let next = newest.end();
        // The newest that knows; it need not be the greatest after a promotion.
        let appended = segments
            .iter()
            .rev()
            .map(|segment| segment.appended())
            .find(|appended| *appended > Lsn(0))
            .unwrap_or_default();
        let committed = segments
            .iter()
            .map(|segment| segment.committed())
            .fold(state.from(), Lsn::max);
        let shared = Arc::new(Shared {
            inner: Mutex::new(Inner {
                epoch,
                begun: state.from(),
                origin: state.origin,
                recent: VecDeque::new(),
                recent_bytes: 0,
                written: next,
                segments,
                next,
                appended,
                committed,
                open: None,
                lost: None,
                passed_at: Instant::now(),
                passed: Lsn(0),
            }),
            tail: watch::Sender::new(next),
            stored: watch::Sender::new(appended),
            trouble: watch::Sender::new(None),
            closing: AtomicBool::new(false),
        });
        #[expect(
            clippy::disallowed_methods,
            reason = "every batch in it has its permit; all else is a few bytes"
        )]
        let (commands, incoming) = std::sync::mpsc::channel();
        let room = Arc::new(Semaphore::new(QUEUE_BYTES / PERMIT_BYTES));
        let (keep_bytes, recent_bytes) = (options.keep_bytes, options.recent_bytes);
        let writer = Writer::new(Arc::clone(&shared), directory, options, newest)?;
        let thread = std::thread::Builder::new()
            .name("rowcast log".to_owned())
            .spawn(move || writer.run(&incoming))
            .map_err(|error| OpenError::File {
                path: PathBuf::from("rowcast log"),
                error,
            })?;
        Ok(Self {
            shared,
            commands,
            room,
            keep_bytes: usize::try_from(keep_bytes).unwrap_or(usize::MAX),
            recent_bytes,
            closed,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Tells the writer's thread to store what was taken and end; the thread, where nobody has
    /// told it before.
    fn end(&self) -> Option<std::thread::JoinHandle<()>> {
        self.shared.closing.store(true, Ordering::Relaxed);
        // Where the thread has ended there is nothing to end.
        let _ended = self.send(Command::Close);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()?;
        // It may wait for a disk that takes nothing.
        thread.thread().unpark();
        Some(thread)
    }

    /// Has the writer's thread look again at once where it waits for a disk that takes nothing.
    fn wake(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = &*thread {
            thread.thread().unpark();
        }
    }

    fn send(&self, command: Command) -> Result<(), LogError> {
        self.commands
            .send(command)
            .map_err(|_ended| LogError::Stopped)
    }

    async fn take(&self, batch: Batch) -> Result<(), LogError> {
        if batch.commit_lsn < self.appended() {
            // Sent again after a reconnect. By where the commit begins: the next one may begin
            // where this one ends.
            return Ok(());
        }
        let Some(batch) = self.admit(batch) else {
            return Ok(());
        };
        let (last, end_lsn, size) = (batch.last, batch.end_lsn, batch.size());
        let permits = size.div_ceil(PERMIT_BYTES).min(QUEUE_BYTES / PERMIT_BYTES);
        let permit = Arc::clone(&self.room)
            .acquire_many_owned(u32::try_from(permits).unwrap_or(u32::MAX))
            .await
            .map_err(|_closed| LogError::Stopped)?;
        let spilled = {
            let mut inner = self.shared.lock();
            let Some(open) = &mut inner.open else {
                return Ok(());
            };
            let first = open.end;
            let entry = Arc::new(Entry { first, batch });
            open.end = entry.end();
            match &mut open.entries {
                Some(entries) if entries.is_empty() || open.bytes <= self.recent_bytes => {
                    entries.push(Arc::clone(&entry));
                }
                // Readers will find it on the disk.
                kept => *kept = None,
            }
            self.send(Command::Write(entry, permit))?;
            open.entries.is_none()
        };
        if !last {
            return Ok(());
        }
        if spilled {
            let (done, waiting) = oneshot::channel();
            self.send(Command::Written(done))?;
            waiting.await.map_err(|_ended| LogError::Stopped)?;
        }
        let next = {
            let mut inner = self.shared.lock();
            let Some(open) = inner.open.take() else {
                return Ok(());
            };
            match open.entries {
                Some(entries) => {
                    for entry in entries {
                        inner.recent_bytes += entry.batch.size();
                        inner.recent.push_back(entry);
                    }
                }
                None => {
                    inner.recent.clear();
                    inner.recent_bytes = 0;
                }
            }
            inner.next = open.end;
            (inner.appended, inner.committed) = (end_lsn, end_lsn);
            inner.trim(self.recent_bytes);
            inner.next
        };
        self.shared.tail.send_replace(next);
        Ok(())
    }

    /// Counts a batch in and passes it on, unless its transaction is larger than all that is kept:
    /// of such a one the tables that it touched are passed on at its end.
    fn admit(&self, mut batch: Batch) -> Option<Batch> {
        let mut inner = self.shared.lock();
        let next = inner.next;
        let open = inner.open.get_or_insert_with(|| Open {
            bytes: 0,
            end: next,
            entries: Some(Vec::new()),
            tables: Vec::new(),
            too_large: false,
        });
        open.bytes += batch.size();
        for change in &batch.changes {
            let oid = change.relation.oid;
            if !open.tables.iter().any(|known| known.oid == oid) {
                open.tables.push(Arc::clone(&change.relation));
            }
        }
        if open.bytes <= self.keep_bytes {
            return Some(batch);
        }
        if !open.too_large {
            open.too_large = true;
            open.entries = Some(Vec::new());
            open.end = next;
            // The thread may have ended; the next batch says so.
            let _ended = self.send(Command::Abandon);
        }
        if !batch.last {
            return None;
        }
        batch.changes = open.tables.drain(..).map(Change::too_large).collect();
        Some(batch)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code under this lock panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Drops the oldest entries from memory, as far as the disk has them.
    fn trim(&mut self, bytes: usize) {
        while self.recent_bytes > bytes
            && let Some(entry) = self
                .recent
                .pop_front_if(|entry| entry.end() <= self.written)
        {
            self.recent_bytes -= entry.batch.size();
        }
    }

    /// Drops everything and goes on with a new epoch, unless the history has not begun yet.
    fn begin(&mut self, origin: Origin, from: Lsn) -> (Offset, State) {
        let begun = self.origin.is_some() || self.next > Offset(0);
        self.recent.clear();
        self.recent_bytes = 0;
        self.open = None;
        self.segments.clear();
        if begun {
            // One offset that was never given: whoever stands before it has a gap.
            self.next = Offset(self.next.0 + 1);
            self.lost = Some(self.next);
            self.epoch = Epoch::random();
        }
        self.written = self.next;
        (self.begun, self.appended, self.committed) = (from, from, from);
        self.passed = from;
        self.origin = Some(origin.clone());
        (self.next, State::new(self.epoch, from, Some(origin)))
    }

    fn oldest(&self) -> Offset {
        let kept = self.segments.front().map(|segment| segment.first);
        let recent = self.recent.front().map(|entry| entry.first);
        kept.or(recent).unwrap_or(self.next)
    }

    fn check(&self, from: Offset) -> Result<(), LogError> {
        if let Some(next) = self.lost.filter(|next| from < *next) {
            return Err(LogError::Lost { next });
        }
        let oldest = self.oldest();
        if from < oldest {
            return Err(LogError::Trimmed { oldest });
        }
        if from > self.next {
            return Err(LogError::Ahead { next: self.next });
        }
        Ok(())
    }

    /// What memory has from `from` on; `None` where the disk has to be asked.
    fn remembered(&self, from: Offset, limit: usize) -> Option<Vec<Arc<Entry>>> {
        let first = self.recent.front().map_or(self.next, |entry| entry.first);
        if from < first {
            return None;
        }
        let at = self.recent.partition_point(|entry| entry.end() <= from);
        Some(
            self.recent
                .range(at..)
                .take(limit)
                .map(Arc::clone)
                .collect(),
        )
    }

    fn segment_of(&self, from: Offset) -> Option<Arc<Segment>> {
        let after = self
            .segments
            .partition_point(|segment| segment.first <= from);
        self.segments.get(after.checked_sub(1)?).map(Arc::clone)
    }
}

impl Log for DiskLog {
    fn epoch(&self) -> Epoch {
        self.shared.lock().epoch
    }

    fn append(&self, batch: Batch) -> BoxFuture<'_, Result<(), LogError>> {
        self.take(batch).boxed()
    }

    fn abandon(&self) {
        if self.shared.lock().open.take().is_some() {
            let _ended = self.send(Command::Abandon);
        }
    }

    fn pass(&self, lsn: Lsn, at_once: bool) {
        let mut inner = self.shared.lock();
        let stored = inner.passed.max(inner.committed);
        if inner.open.is_some() || lsn < inner.appended || lsn <= stored {
            return;
        }
        inner.appended = lsn;
        // On an idle database this is all that comes.
        if at_once || inner.passed_at.elapsed() >= PASS_EVERY {
            inner.passed_at = Instant::now();
            inner.passed = lsn;
            let _ended = self.send(Command::Pass(lsn));
        }
    }

    fn appended(&self) -> Lsn {
        self.shared.lock().appended
    }

    fn committed(&self) -> Lsn {
        self.shared.lock().committed
    }

    fn stored(&self) -> watch::Receiver<Lsn> {
        self.shared.stored.subscribe()
    }

    fn origin(&self) -> Option<Origin> {
        self.shared.lock().origin.clone()
    }

    fn was_closed(&self) -> bool {
        self.closed
    }

    fn begin(&self, origin: Origin, from: Lsn) -> BoxFuture<'_, ()> {
        async move {
            let (done, waiting) = oneshot::channel();
            let (next, state) = self.shared.lock().begin(origin, from);
            self.shared.stored.send_replace(Lsn(0));
            // Where the thread has ended, the next batch says so.
            let _ended = self.send(Command::Begin {
                state,
                first: next,
                from,
                done,
            });
            self.wake();
            self.shared.tail.send_replace(next);
            let _ended = waiting.await;
        }
        .boxed()
    }

    fn follow(&self, origin: Origin, from: Lsn) -> BoxFuture<'_, ()> {
        async move {
            self.abandon();
            let (done, waiting) = oneshot::channel();
            {
                let mut inner = self.shared.lock();
                inner.origin = Some(origin.clone());
                inner.appended = inner.appended.min(from);
                inner.passed = inner.appended;
                let state = State::new(inner.epoch, inner.begun, Some(origin));
                let from = inner.appended;
                // Where the thread has ended, the next batch says so.
                let _ended = self.send(Command::Follow { state, from, done });
            }
            let _ended = waiting.await;
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            let Some(thread) = self.end() else { return };
            let joined = tokio::task::spawn_blocking(move || thread.join());
            if !matches!(joined.await, Ok(Ok(()))) {
                warn!("the log's thread ended of a fault");
            }
        }
        .boxed()
    }

    fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.shared.trouble.subscribe()
    }

    fn range(&self) -> Range<Offset> {
        let inner = self.shared.lock();
        inner.oldest()..inner.next
    }

    fn read(&self, from: Offset, limit: usize) -> BoxFuture<'_, Result<Vec<Arc<Entry>>, LogError>> {
        async move {
            let segment = {
                let inner = self.shared.lock();
                inner.check(from)?;
                if let Some(entries) = inner.remembered(from, limit) {
                    return Ok(entries);
                }
                inner.segment_of(from)
            };
            let Some(segment) = segment else {
                return Ok(Vec::new());
            };
            let reading = Arc::clone(&segment);
            let read = tokio::task::spawn_blocking(move || reading.read(from, limit, READ_BYTES));
            match read.await {
                Ok(Ok(entries)) => Ok(entries),
                Ok(Err(error)) => {
                    warn!(%error, "a file of the log cannot be read");
                    // Whoever stands here has a gap, up to where something can be read again.
                    Err(LogError::Trimmed {
                        oldest: segment.end(),
                    })
                }
                Err(_ended) => Err(LogError::Stopped),
            }
        }
        .boxed()
    }

    fn tail(&self) -> watch::Receiver<Offset> {
        self.shared.tail.subscribe()
    }
}

/// Waits for the disk.
impl Drop for DiskLog {
    fn drop(&mut self) {
        if let Some(thread) = self.end()
            && thread.join().is_err()
        {
            warn!("the log's thread ended of a fault");
        }
    }
}

impl fmt::Debug for DiskLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskLog")
            .field("epoch", &self.epoch())
            .field("range", &self.range())
            .finish_non_exhaustive()
    }
}

/// What a look at a directory tells of the log in it.
#[derive(Debug)]
pub struct Inspection {
    /// The history.
    pub epoch: Epoch,
    /// Where its changes come from.
    pub origin: Option<Origin>,
    /// Its segments in order.
    pub segments: Vec<SegmentReport>,
}

/// One segment.
#[derive(Debug)]
pub struct SegmentReport {
    /// The file.
    pub path: PathBuf,
    /// The offsets of its changes.
    pub range: Range<Offset>,
    /// Its size in bytes.
    pub bytes: u64,
    /// When its last transaction committed, in microseconds since 1970-01-01 00:00 UTC.
    pub committed_at: i64,
    /// Its changes, all read and their checksums compared, or what is wrong.
    pub verified: Result<u64, String>,
    /// The tables whose changes it holds, each description once, as they were then.
    pub tables: Vec<Arc<Relation>>,
}

/// Reads a log, also one that a process uses, and compares all checksums. Changes nothing. Blocks
/// on the disk.
///
/// # Errors
/// [`OpenError`].
pub fn inspect(path: &Path) -> Result<Inspection, OpenError> {
    let state = directory::state(path)?.ok_or_else(|| OpenError::Foreign {
        path: path.to_owned(),
        reason: "it has no state.json".to_owned(),
    })?;
    let mut segments = directory::segments(path)?;
    segments.retain(|segment| segment.epoch == state.epoch().0);
    Ok(Inspection {
        epoch: state.epoch(),
        origin: state.origin,
        segments: segments
            .iter()
            .map(|segment| SegmentReport {
                path: segment.path.clone(),
                range: segment.first..segment.end(),
                bytes: segment.length(),
                committed_at: segment.committed_at(),
                verified: segment.verify().map_err(|error| error.to_string()),
                tables: segment.tables(),
            })
            .collect(),
    })
}

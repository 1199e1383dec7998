//! One file of the log. It holds whole transactions and the descriptions of the tables that their
//! rows belong to, so that it can be read without any other.

mod newest;

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(super) use self::newest::SegmentWriter;
use super::record::{self, Damaged, FRAME_HEADER, Index, Record, SegmentHeader, write_segment};
use crate::change::Relation;
use crate::log::{Entry, Offset};
use crate::pg::Lsn;

/// How every segment begins.
const MAGIC: &[u8; 8] = b"rowcast\n";

/// How a finished one ends, behind the place of its index.
const FINISHED: &[u8; 8] = b"rcindex\n";

/// Bytes between two places that the index knows.
const INDEX_EVERY: u64 = 64 << 10;

/// Bytes read from a file at once, where no frame is larger.
const CHUNK: usize = 256 << 10;

/// Readers that go on where they stopped are found again, this many of a segment.
const BOOKMARKS: usize = 16;

/// A segment's name in its directory: the offset of its first change, so that names sort as the
/// log does.
pub(super) fn file_name(first: Offset) -> String {
    format!("{:016x}.segment", first.0)
}

/// The offset that a segment's name says it begins with.
pub(super) fn first_of(name: &str) -> Option<Offset> {
    let digits = name.strip_suffix(".segment")?;
    let valid = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let offset = u64::from_str_radix(digits, 16).ok().filter(|_| valid)?;
    Some(Offset(offset))
}

/// A segment that can be read.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) first: Offset,
    pub(super) epoch: u64,
    file: File,
    known: Mutex<Known>,
}

/// What is known of a segment's whole transactions.
#[derive(Debug, Default)]
struct Known {
    /// Where the last of them ends in the file.
    length: u64,
    index: Index,
    /// The descriptions in the order of their numbers; read when they are first needed.
    relations: Vec<Arc<Relation>>,
    /// The version that the first description gets.
    first_version: u64,
    bookmarks: Vec<(Offset, u64)>,
}

/// Why a segment cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum SegmentError {
    #[error("{path}: {error}", path = path.display())]
    File {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("{path} is damaged at byte {place}", path = path.display())]
    Damaged { path: PathBuf, place: u64 },
}

impl Segment {
    /// Makes an empty segment. It outlives a crash once its directory has been synchronised too.
    pub(super) fn create(
        directory: &Path,
        epoch: u64,
        first: Offset,
    ) -> Result<Self, SegmentError> {
        let path = directory.join(file_name(first));
        let mut head = MAGIC.to_vec();
        write_segment(&mut head, SegmentHeader { epoch, first });
        let create = || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all_at(&head, 0)?;
            file.sync_all()?;
            Ok(file)
        };
        match create() {
            Ok(file) => Ok(Self {
                path,
                first,
                epoch,
                file,
                known: Mutex::new(Known {
                    length: head.len() as u64,
                    index: Index {
                        end: first,
                        ..Index::default()
                    },
                    ..Known::default()
                }),
            }),
            Err(error) => Err(SegmentError::File { path, error }),
        }
    }

    /// Opens a segment: by its index where it is finished, else by reading it up to the end of its
    /// last whole transaction. `reserve` gives the first of as many versions as there are
    /// descriptions. Changes nothing.
    pub(super) fn open(path: PathBuf, reserve: impl Fn(u64) -> u64) -> Result<Self, SegmentError> {
        let open = || {
            let file = File::open(&path)?;
            let size = file.metadata()?.len();
            let Some((header, behind)) = head(&file, size)? else {
                return Ok(None);
            };
            let mut known = match finished(&file, size)? {
                Some((index, place)) => Known {
                    length: place,
                    index,
                    ..Known::default()
                },
                None => scan(&file, behind, size, header.first)?,
            };
            known.first_version = reserve(known.index.relations.len() as u64);
            Ok(Some((file, header, known)))
        };
        match open() {
            Ok(Some((file, header, known))) => Ok(Self {
                first: header.first,
                epoch: header.epoch,
                path,
                file,
                known: Mutex::new(known),
            }),
            Ok(None) => Err(SegmentError::Damaged { path, place: 0 }),
            Err(error) => Err(SegmentError::File { path, error }),
        }
    }

    /// Cuts off what stands behind the last whole transaction: half of one, or an index, as this
    /// segment is going on.
    pub(super) fn cut(&self) -> Result<(), SegmentError> {
        OpenOptions::new()
            .write(true)
            .open(&self.path)
            .and_then(|file| {
                file.set_len(self.length())?;
                file.sync_all()
            })
            .map_err(|error| self.failed(error))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // No code under this lock panics half-way through a change.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The offset after its last whole transaction.
    pub(super) fn end(&self) -> Offset {
        self.known().index.end
    }

    /// Where its last whole transaction ends in the database's log.
    pub(super) fn appended(&self) -> Lsn {
        self.known().index.appended
    }

    /// Where its last whole transaction ends; 0 where it has none.
    pub(super) fn committed(&self) -> Lsn {
        self.known().index.committed
    }

    /// When its last transaction committed, in microseconds since 1970-01-01 00:00 UTC.
    pub(super) fn committed_at(&self) -> i64 {
        self.known().index.committed_at
    }

    /// Bytes of whole transactions.
    pub(super) fn length(&self) -> u64 {
        self.known().length
    }

    fn failed(&self, error: io::Error) -> SegmentError {
        SegmentError::File {
            path: self.path.clone(),
            error,
        }
    }

    fn damaged(&self, place: u64) -> SegmentError {
        SegmentError::Damaged {
            path: self.path.clone(),
            place,
        }
    }

    /// Reads entries from the one that holds `from` on: up to `limit` of them, and no more than
    /// the first that brings their payloads over `bytes`.
    pub(super) fn read(
        &self,
        from: Offset,
        limit: usize,
        bytes: usize,
    ) -> Result<Vec<Arc<Entry>>, SegmentError> {
        let relations = self.relations()?;
        let (start, length) = {
            let known = self.known();
            let before = |places: &[(Offset, u64)]| {
                let at = places.partition_point(|(offset, _)| *offset <= from);
                places.get(at.checked_sub(1)?).copied()
            };
            let marked = known.bookmarks.iter().find(|(offset, _)| *offset == from);
            let start = marked
                .copied()
                .or_else(|| before(&known.index.places))
                .map(|(_, place)| place);
            (start, known.length)
        };
        let Some(start) = start else {
            return Ok(Vec::new());
        };
        let (mut entries, mut taken, mut damaged) = (Vec::new(), 0, None);
        let mut stopped = start;
        let end = frames(&self.file, start, length, |place, payload| {
            match record::read(payload, &relations, || 0) {
                Ok(Record::Batch(first, batch)) => {
                    let entry = Entry { first, batch };
                    if entry.end() > from {
                        taken += payload.len();
                        entries.push(Arc::new(entry));
                    }
                }
                Ok(_) => {}
                Err(Damaged) => {
                    damaged = Some(place);
                    return ControlFlow::Break(());
                }
            }
            stopped = place + (FRAME_HEADER + payload.len()) as u64;
            if entries.len() >= limit || taken >= bytes {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .map_err(|error| self.failed(error))?;
        let full = entries.len() >= limit || taken >= bytes;
        // What is whole goes out; the next read meets the damage first.
        if let Some(place) = damaged.or((!full && end < length).then_some(end))
            && entries.is_empty()
        {
            return Err(self.damaged(place));
        }
        if let Some(last) = entries.last() {
            let mut known = self.known();
            if known.bookmarks.len() >= BOOKMARKS {
                known.bookmarks.remove(0);
            }
            known.bookmarks.push((last.end(), stopped));
        }
        Ok(entries)
    }

    /// The descriptions, read from the file the first time.
    fn relations(&self) -> Result<Vec<Arc<Relation>>, SegmentError> {
        let (places, first_version) = {
            let known = self.known();
            if known.relations.len() == known.index.relations.len() {
                return Ok(known.relations.clone());
            }
            (known.index.relations.clone(), known.first_version)
        };
        let mut relations = Vec::with_capacity(places.len());
        for (version, place) in (first_version..).zip(places) {
            let mut found = None;
            frames(&self.file, place, self.length(), |_, payload| {
                if let Ok(Record::Relation(relation)) = record::read(payload, &[], || version) {
                    found = Some(Arc::new(relation));
                }
                ControlFlow::Break(())
            })
            .map_err(|error| self.failed(error))?;
            relations.push(found.ok_or_else(|| self.damaged(place))?);
        }
        self.known().relations.clone_from(&relations);
        Ok(relations)
    }

    /// The descriptions without those that only repeat one; none where they cannot be read.
    pub(super) fn tables(&self) -> Vec<Arc<Relation>> {
        let mut tables: Vec<Arc<Relation>> = Vec::new();
        for relation in self.relations().unwrap_or_default() {
            if !tables.iter().any(|known| known.describes_as(&relation)) {
                tables.push(relation);
            }
        }
        tables
    }

    /// Reads all of it and says how many changes it holds.
    pub(super) fn verify(&self) -> Result<u64, SegmentError> {
        let (mut from, mut changes) = (self.first, 0);
        let end = self.end();
        while from < end {
            let entries = self.read(from, 1024, CHUNK * 16)?;
            let Some(last) = entries.last() else {
                return Err(self.damaged(self.length()));
            };
            if entries.first().is_some_and(|entry| entry.first != from) {
                return Err(self.damaged(0));
            }
            changes += last.end().0 - from.0;
            from = last.end();
        }
        Ok(changes)
    }
}

/// What has been written of a transaction that is not whole yet.
#[derive(Debug, Default)]
struct Open {
    bytes: u64,
    places: Vec<(Offset, u64)>,
    relations: Vec<(u64, Arc<Relation>)>,
}

/// How the file begins, and where the records behind that do.
fn head(file: &File, size: u64) -> io::Result<Option<(SegmentHeader, u64)>> {
    let mut magic = [0; MAGIC.len()];
    if size < MAGIC.len() as u64 {
        return Ok(None);
    }
    file.read_exact_at(&mut magic, 0)?;
    if magic != *MAGIC {
        return Ok(None);
    }
    let mut header = None;
    frames(file, MAGIC.len() as u64, size, |place, payload| {
        if let Ok(Record::Segment(found)) = record::read(payload, &[], || 0) {
            header = Some((found, place + (FRAME_HEADER + payload.len()) as u64));
        }
        ControlFlow::Break(())
    })?;
    Ok(header)
}

/// The index of a finished segment, and where it stands.
fn finished(file: &File, size: u64) -> io::Result<Option<(Index, u64)>> {
    let Some(at) = size.checked_sub(16) else {
        return Ok(None);
    };
    let mut tail = [0; 16];
    file.read_exact_at(&mut tail, at)?;
    let (place, mark) = tail.split_at(8);
    if mark != FINISHED {
        return Ok(None);
    }
    let place = u64::from_le_bytes(place.try_into().unwrap_or_default());
    let mut index = None;
    if place < at {
        frames(file, place, at, |_, payload| {
            if let Ok(Record::Index(found)) = record::read(payload, &[], || 0) {
                index = Some((found, place));
            }
            ControlFlow::Break(())
        })?;
    }
    Ok(index)
}

/// Reads a segment from its first record up to the end of its last whole transaction.
fn scan(file: &File, start: u64, size: u64, first: Offset) -> io::Result<Known> {
    let mut known = Known {
        length: start,
        index: Index {
            end: first,
            ..Index::default()
        },
        ..Known::default()
    };
    let mut open = Open::default();
    let mut next = first;
    frames(file, start, size, |place, payload| {
        if let Some(batch) = record::outline(payload) {
            if batch.first != next {
                return ControlFlow::Break(());
            }
            next = batch.end;
            let last = open.places.last().or(known.index.places.last());
            let due = last.is_none_or(|(_, last)| place >= last + INDEX_EVERY);
            if due && batch.first < batch.end {
                open.places.push((batch.first, place));
            }
            if batch.last {
                let open = std::mem::take(&mut open);
                known.length = place + (FRAME_HEADER + payload.len()) as u64;
                known.index.places.extend(open.places);
                let places = open.relations.into_iter().map(|(place, _)| place);
                known.index.relations.extend(places);
                known.index.end = next;
                known.index.appended = batch.end_lsn;
                known.index.committed = batch.end_lsn;
                known.index.committed_at = batch.committed_at;
            }
            return ControlFlow::Continue(());
        }
        match record::read(payload, &[], || 0) {
            Ok(Record::Relation(relation)) => {
                open.relations.push((place, Arc::new(relation)));
            }
            Ok(Record::Passed(lsn)) if next == known.index.end => {
                known.length = place + (FRAME_HEADER + payload.len()) as u64;
                known.index.appended = lsn;
            }
            // A half-written index, or bytes that are none of ours.
            Ok(_) | Err(Damaged) => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    })?;
    Ok(known)
}

/// Gives the payloads of the frames between two places in a file to `each`, with their places,
/// until it breaks off or a frame is not whole. Returns where that was.
fn frames(
    file: &File,
    start: u64,
    end: u64,
    mut each: impl FnMut(u64, &[u8]) -> ControlFlow<()>,
) -> io::Result<u64> {
    let mut buffer = Vec::new();
    // Where the buffer begins in the file, and what of it has been given out.
    let (mut begin, mut done) = (start, 0_usize);
    loop {
        let rest = buffer.get(done..).unwrap_or_default();
        if let Some(payload) = record::payload(rest) {
            let place = begin + done as u64;
            done += FRAME_HEADER + payload.len();
            if each(place, payload).is_break() {
                return Ok(begin + done as u64);
            }
            continue;
        }
        let have = rest.len();
        let here = begin + done as u64;
        let wanted = record::length(rest).map_or(FRAME_HEADER, |length| FRAME_HEADER + length);
        let left = usize::try_from(end.saturating_sub(here)).unwrap_or(usize::MAX);
        if have >= wanted
            || wanted > left
            || (have >= FRAME_HEADER && record::length(rest).is_none())
        {
            // All of it is there and it is not what was written, or it cannot be all there.
            return Ok(here);
        }
        buffer.drain(..done);
        (begin, done) = (here, 0);
        let size = wanted.max(CHUNK).min(left);
        buffer.resize(size, 0);
        file.read_exact_at(
            buffer.get_mut(have..).unwrap_or_default(),
            here + have as u64,
        )?;
    }
}

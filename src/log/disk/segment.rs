//! One file of the log. It holds whole transactions and the descriptions of the tables that their
//! rows belong to, so that it can be read without any other.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::record::{
    self, Damaged, FRAME_HEADER, Index, Record, SegmentHeader, write_batch, write_index,
    write_passed, write_relation, write_segment,
};
use crate::change::{Batch, Relation};
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

/// Bytes of memory that the writer keeps for the next transactions.
const KEPT_BYTES: usize = 4 << 20;

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

/// Writes to the newest segment.
#[derive(Debug)]
pub(super) struct SegmentWriter {
    pub(super) segment: Arc<Segment>,
    file: File,
    /// Numbers of descriptions, by version.
    numbers: HashMap<u64, u32>,
    /// What has been written of the transaction that is still open.
    open: Open,
    /// What was written since the last synchronisation, and where: a system that cannot bring it
    /// to the disk may forget it, and would then say yes to a second request.
    unsynced: Vec<u8>,
    synced: u64,
    /// The last synchronisation failed.
    suspect: bool,
}

#[derive(Debug, Default)]
struct Open {
    bytes: u64,
    places: Vec<(Offset, u64)>,
    relations: Vec<(u64, Arc<Relation>)>,
}

impl SegmentWriter {
    /// Goes on at the end of a segment. Descriptions are written anew where they are needed.
    pub(super) fn new(segment: Arc<Segment>) -> Result<Self, SegmentError> {
        // From here on the descriptions that are known are kept up with those that are written.
        segment.relations()?;
        let file = OpenOptions::new()
            .write(true)
            .open(&segment.path)
            .map_err(|error| segment.failed(error))?;
        Ok(Self {
            synced: segment.length(),
            segment,
            file,
            numbers: HashMap::new(),
            open: Open::default(),
            unsynced: Vec::new(),
            suspect: false,
        })
    }

    /// Bytes that were written since the last synchronisation.
    pub(super) const fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// Writes what stands in the buffer behind `begin`; returns how much it is. Where that fails
    /// nothing has happened.
    fn put(&mut self, begin: usize) -> Result<u64, SegmentError> {
        let bytes = self.unsynced.get(begin..).unwrap_or_default();
        let written = self.file.write_all_at(bytes, self.synced + begin as u64);
        let length = bytes.len() as u64;
        written.map(|()| length).map_err(|error| {
            self.unsynced.truncate(begin);
            self.segment.failed(error)
        })
    }

    /// Goes back to where the last whole transaction ends.
    fn rewind(&mut self) {
        let length = self.segment.length();
        let keep = usize::try_from(length.saturating_sub(self.synced)).unwrap_or(usize::MAX);
        self.unsynced.truncate(keep);
        self.synced = self.synced.min(length);
    }

    /// Writes a batch behind what is there. Where that fails nothing has happened and it may be
    /// tried again. With the transaction's last batch all of it can be read.
    pub(super) fn write(&mut self, first: Offset, batch: &Batch) -> Result<(), SegmentError> {
        let segment = Arc::clone(&self.segment);
        let (start, last_place, described) = {
            let known = segment.known();
            let place = self.open.places.last().or(known.index.places.last());
            (
                known.length + self.open.bytes,
                place.map(|(_, place)| *place),
                known.index.relations.len() + self.open.relations.len(),
            )
        };
        let begin = self.unsynced.len();
        let mut fresh: Vec<(u64, Arc<Relation>)> = Vec::new();
        for change in &batch.changes {
            let version = change.relation.version;
            let known = self.numbers.contains_key(&version)
                || fresh.iter().any(|(_, known)| known.version == version);
            if !known {
                fresh.push((
                    start + (self.unsynced.len() - begin) as u64,
                    Arc::clone(&change.relation),
                ));
                write_relation(&mut self.unsynced, &change.relation);
            }
        }
        let place = start + (self.unsynced.len() - begin) as u64;
        for (number, (_, relation)) in (described..).zip(&fresh) {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            self.numbers.insert(relation.version, number);
        }
        let numbers = &self.numbers;
        write_batch(&mut self.unsynced, first, batch, |relation| {
            numbers.get(&relation.version).copied().unwrap_or(u32::MAX)
        });
        match self.put(begin) {
            Ok(bytes) => self.open.bytes += bytes,
            Err(error) => {
                for (_, relation) in &fresh {
                    self.numbers.remove(&relation.version);
                }
                return Err(error);
            }
        }
        if last_place.is_none_or(|last| place >= last + INDEX_EVERY) && !batch.changes.is_empty() {
            self.open.places.push((first, place));
        }
        self.open.relations.append(&mut fresh);
        if batch.last {
            let open = std::mem::take(&mut self.open);
            let mut known = segment.known();
            known.length += open.bytes;
            known.index.places.extend(open.places);
            for (place, relation) in open.relations {
                known.index.relations.push(place);
                known.relations.push(relation);
            }
            known.index.end = Offset(first.0 + batch.changes.len() as u64);
            known.index.appended = batch.end_lsn;
            known.index.committed = batch.end_lsn;
            known.index.committed_at = batch.committed_at;
        }
        Ok(())
    }

    /// Notes that everything that commits before `lsn` has come. Not amid a transaction.
    pub(super) fn pass(&mut self, lsn: Lsn) -> Result<(), SegmentError> {
        let begin = self.unsynced.len();
        write_passed(&mut self.unsynced, lsn);
        let bytes = self.put(begin)?;
        let mut known = self.segment.known();
        known.length += bytes;
        known.index.appended = lsn;
        Ok(())
    }

    /// Makes what was written last outlive a crash. Where that failed before, it is written again.
    pub(super) fn sync(&mut self) -> Result<(), SegmentError> {
        let written = if self.suspect {
            self.file.write_all_at(&self.unsynced, self.synced)
        } else {
            Ok(())
        };
        if let Err(error) = written.and_then(|()| self.file.sync_data()) {
            self.suspect = true;
            return Err(self.segment.failed(error));
        }
        self.suspect = false;
        self.synced += self.unsynced.len() as u64;
        self.unsynced.clear();
        // One large transaction is no reason to keep its memory.
        self.unsynced.shrink_to(KEPT_BYTES);
        Ok(())
    }

    /// Forgets the transaction that is still open.
    pub(super) fn abandon(&mut self) -> Result<(), SegmentError> {
        let open = std::mem::take(&mut self.open);
        for (_, relation) in open.relations {
            self.numbers.remove(&relation.version);
        }
        self.rewind();
        let segment = &self.segment;
        self.file
            .set_len(segment.length())
            .map_err(|error| segment.failed(error))
    }

    /// Gives up what it holds, so that there is room although the file is open.
    pub(super) fn empty(&mut self) -> Result<(), SegmentError> {
        self.unsynced.clear();
        self.synced = 0;
        self.file
            .set_len(0)
            .map_err(|error| self.segment.failed(error))
    }

    /// Writes the index: nothing comes behind it.
    pub(super) fn finish(&mut self) -> Result<(), SegmentError> {
        let (index, place) = {
            let known = self.segment.known();
            (known.index.clone(), known.length)
        };
        let begin = self.unsynced.len();
        write_index(&mut self.unsynced, &index);
        self.unsynced.extend_from_slice(&place.to_le_bytes());
        self.unsynced.extend_from_slice(FINISHED);
        self.put(begin).map(drop)
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Change, Kind, ReplicaIdentity};
    use crate::pg::{Oid, Xid};

    fn batch(commit: u64) -> Batch {
        let relation = Relation {
            oid: Oid(1),
            schema: "public".into(),
            name: "t".into(),
            replica_identity: ReplicaIdentity::Default,
            columns: Vec::new(),
            types: Arc::default(),
            version: Relation::reserve_versions(1),
        };
        Batch {
            xid: Xid(commit),
            commit_lsn: Lsn(commit),
            end_lsn: Lsn(commit),
            committed_at: 0,
            changes: vec![Change {
                relation: Arc::new(relation),
                kind: Kind::Truncate,
            }],
            last: true,
        }
    }

    #[test]
    fn what_the_system_forgot_before_it_was_on_the_disk_is_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let segment = Arc::new(Segment::create(directory.path(), 7, Offset(0)).unwrap());
        let mut writer = SegmentWriter::new(Arc::clone(&segment)).unwrap();
        writer.write(Offset(0), &batch(1)).unwrap();
        writer.sync().unwrap();
        assert_eq!(writer.unsynced(), 0);
        // It takes everything, forgets it, and cannot be synchronised.
        let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
        let disk = std::mem::replace(&mut writer.file, null);
        writer.write(Offset(1), &batch(2)).unwrap();
        writer.pass(Lsn(3)).unwrap();
        assert!(writer.sync().is_err());
        assert!(segment.verify().is_err(), "nothing of it is in the file");
        writer.write(Offset(2), &batch(4)).unwrap();
        writer.file = disk;
        writer.sync().unwrap();
        assert_eq!(segment.verify().unwrap(), 3);
        let path = segment.path.clone();
        let again = Segment::open(path, Relation::reserve_versions).unwrap();
        assert_eq!((again.end(), again.appended()), (Offset(3), Lsn(4)));
        assert_eq!(again.committed(), Lsn(4));
    }

    #[test]
    fn a_transaction_that_was_in_part_synchronised_can_be_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let segment = Arc::new(Segment::create(directory.path(), 7, Offset(0)).unwrap());
        let mut writer = SegmentWriter::new(Arc::clone(&segment)).unwrap();
        let half = Batch {
            last: false,
            ..batch(1)
        };
        writer.write(Offset(0), &half).unwrap();
        writer.sync().unwrap();
        writer.write(Offset(1), &half).unwrap();
        writer.abandon().unwrap();
        writer.write(Offset(0), &batch(2)).unwrap();
        writer.sync().unwrap();
        assert_eq!(segment.verify().unwrap(), 1);
        let again = Segment::open(segment.path.clone(), Relation::reserve_versions).unwrap();
        assert_eq!(again.end(), Offset(1));
    }
}

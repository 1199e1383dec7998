//! The newest segment, which is written to.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::{FINISHED, INDEX_EVERY, Open, Segment, SegmentError};
use crate::change::{Batch, Relation};
use crate::log::Offset;
use crate::log::disk::record::{write_batch, write_index, write_passed, write_relation};
use crate::pg::Lsn;

/// Bytes of memory that the writer keeps for the next transactions.
const KEPT_BYTES: usize = 4 << 20;

/// Writes to the newest segment.
#[derive(Debug)]
pub(in crate::log::disk) struct SegmentWriter {
    pub(in crate::log::disk) segment: Arc<Segment>,
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

impl SegmentWriter {
    /// Goes on at the end of a segment. Descriptions are written anew where they are needed.
    pub(in crate::log::disk) fn new(segment: Arc<Segment>) -> Result<Self, SegmentError> {
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
    pub(in crate::log::disk) const fn unsynced(&self) -> usize {
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
    pub(in crate::log::disk) fn write(
        &mut self,
        first: Offset,
        batch: &Batch,
    ) -> Result<(), SegmentError> {
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
    pub(in crate::log::disk) fn pass(&mut self, lsn: Lsn) -> Result<(), SegmentError> {
        let begin = self.unsynced.len();
        write_passed(&mut self.unsynced, lsn);
        let bytes = self.put(begin)?;
        let mut known = self.segment.known();
        known.length += bytes;
        known.index.appended = lsn;
        Ok(())
    }

    /// Makes what was written last outlive a crash. Where that failed before, it is written again.
    pub(in crate::log::disk) fn sync(&mut self) -> Result<(), SegmentError> {
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
    pub(in crate::log::disk) fn abandon(&mut self) -> Result<(), SegmentError> {
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
    pub(in crate::log::disk) fn empty(&mut self) -> Result<(), SegmentError> {
        self.unsynced.clear();
        self.synced = 0;
        self.file
            .set_len(0)
            .map_err(|error| self.segment.failed(error))
    }

    /// Writes the index: nothing comes behind it.
    pub(in crate::log::disk) fn finish(&mut self) -> Result<(), SegmentError> {
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

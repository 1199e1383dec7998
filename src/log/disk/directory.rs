//! The directory of a log on disk: one process, one history, its segments in order.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::record::FORMAT;
use super::segment::{Segment, SegmentError, first_of};
use crate::change::Relation;
use crate::log::sealed::{self, Content};
use crate::log::{Epoch, Origin};
use crate::pg::Lsn;

const LOCK: &str = "lock";
const STATE: &str = "state.json";

/// What stands in the state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    format: u32,
    epoch: u64,
    /// Where the history begins in the database's log.
    from: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) origin: Option<Origin>,
    /// Whether everything that was taken is stored, and nobody takes more.
    #[serde(default)]
    pub(super) closed: bool,
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

impl State {
    pub(super) const fn new(epoch: Epoch, from: Lsn, origin: Option<Origin>) -> Self {
        Self {
            format: FORMAT,
            epoch: epoch.0,
            from: from.0,
            origin,
            closed: false,
        }
    }

    pub(super) const fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    pub(super) const fn from(&self) -> Lsn {
        Lsn(self.from)
    }
}

/// Why a directory cannot hold the log.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses it.
    #[error("{path} is in use by another process", path = .0.display())]
    Locked(PathBuf),
    /// The system refused.
    #[error("{path}: {error}", path = path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It is not a log, or one of another version.
    #[error(
        "{path} is not a log of this version ({reason}); name another directory, or move this one \
         away to begin anew", path = path.display()
    )]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl From<SegmentError> for OpenError {
    fn from(error: SegmentError) -> Self {
        match error {
            SegmentError::File { path, error } => Self::File { path, error },
            SegmentError::Damaged { path, place } => Self::Foreign {
                path,
                reason: format!("damaged at byte {place}"),
            },
        }
    }
}

/// A directory that this process has to itself.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    /// Held for as long as this lives.
    _lock: File,
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| OpenError::File { path, error }
        };
        // Rows are in it: what we make is for nobody else to read.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed(path))?;
        let lock = path.join(LOCK);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock)
            .map_err(failed(&lock))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(failed(&lock)(error)),
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: file,
        })
    }

    /// Writes the state so that after a crash there is the old one or the new one.
    pub(super) fn set_state(&self, state: &State) -> Result<(), OpenError> {
        let path = self.path.join(STATE);
        let write = || sealed::replace(&path, &serde_json::to_string(state)?);
        write().map_err(|error| OpenError::File {
            path: path.clone(),
            error,
        })
    }

    /// Says that everything that was taken is stored.
    pub(super) fn close(&self) -> Result<(), OpenError> {
        match state(&self.path)? {
            Some(state) => self.set_state(&State {
                closed: true,
                ..state
            }),
            None => Ok(()),
        }
    }

    /// Makes files that came or went outlive a crash.
    pub(super) fn sync(&self) -> Result<(), SegmentError> {
        File::open(&self.path)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| SegmentError::File {
                path: self.path.clone(),
                error,
            })
    }

    /// Removes all segments.
    pub(super) fn clear(&self) -> Result<(), OpenError> {
        for segment in segments(&self.path)? {
            remove(&segment.path);
        }
        Ok(())
    }

    /// The segments of a history: the newest that follow on one another without a gap. What is
    /// older than a gap cannot be reached by any reader, and is removed like other remains; what a
    /// crash left half-written is cut off.
    pub(super) fn history(&self, epoch: Epoch) -> Result<Vec<Arc<Segment>>, OpenError> {
        let mut history: Vec<Arc<Segment>> = Vec::new();
        for segment in segments(&self.path)? {
            if segment.epoch != epoch.0 {
                remove(&segment.path);
                continue;
            }
            if let Some(before) = history.last()
                && before.end() != segment.first
            {
                warn!(
                    file = %before.path.display(),
                    end = %before.end(),
                    next = %segment.first,
                    "a file of the log is damaged: changes up to there cannot be read any more"
                );
                for segment in history.drain(..) {
                    remove(&segment.path);
                }
            }
            history.push(Arc::new(segment));
        }
        if let Some(newest) = history.last() {
            newest.cut()?;
        }
        self.sync()?;
        Ok(history)
    }
}

/// The state, where there is one. One that was damaged beside segments of a log is none: what they
/// hold is of no use without it.
pub(super) fn state(directory: &Path) -> Result<Option<State>, OpenError> {
    let path = directory.join(STATE);
    let content = sealed::read(&path).map_err(|error| OpenError::File {
        path: path.clone(),
        error,
    })?;
    let foreign = |reason| OpenError::Foreign {
        path: path.clone(),
        reason,
    };
    let text = match content {
        None => return Ok(None),
        Some(Content::Whole(text)) => text,
        Some(Content::Damaged | Content::Unsealed(_)) => {
            if has_segments(directory)? {
                warn!(file = %path.display(), "the state of the log is damaged");
                return Ok(None);
            }
            return Err(foreign("it is damaged, or another program's".to_owned()));
        }
    };
    // Before the rest, which another version may have otherwise.
    let known: Format = serde_json::from_str(&text).map_err(|error| foreign(error.to_string()))?;
    if known.format != FORMAT {
        return Err(foreign(format!(
            "its format is {}, this program's is {FORMAT}",
            known.format
        )));
    }
    let state = serde_json::from_str(&text).map_err(|error| foreign(error.to_string()))?;
    Ok(Some(state))
}

/// Whether files are there that only a log leaves.
fn has_segments(directory: &Path) -> Result<bool, OpenError> {
    let files = fs::read_dir(directory).map_err(|error| OpenError::File {
        path: directory.to_owned(),
        error,
    })?;
    let mut names = files.filter_map(|file| Some(file.ok()?.file_name()));
    Ok(names.any(|name| name.to_str().and_then(first_of).is_some()))
}

/// Every segment of a directory, of whatever history, in the order of their offsets.
pub(super) fn segments(directory: &Path) -> Result<Vec<Segment>, OpenError> {
    let failed = |error| OpenError::File {
        path: directory.to_owned(),
        error,
    };
    let mut paths = Vec::new();
    for file in fs::read_dir(directory).map_err(failed)? {
        let file = file.map_err(failed)?;
        let first = file.file_name().to_str().and_then(first_of);
        paths.extend(first.map(|first| (first, file.path())));
    }
    paths.sort_by_key(|(first, _)| *first);
    let mut segments = Vec::new();
    for (_, path) in paths {
        match Segment::open(path, Relation::reserve_versions) {
            Ok(segment) => segments.push(segment),
            // It was being made when the process died.
            Err(SegmentError::Damaged { path, place: 0 }) => {
                warn!(file = %path.display(), "a file of the log has no beginning and is left out");
            }
            // Whoever uses the log has removed it meanwhile.
            Err(SegmentError::File { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(segments)
}

/// Unlinks a file that nobody needs any more. Where that fails it is tried again at the next
/// start.
pub(super) fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        warn!(file = %path.display(), %error, "a file of the log cannot be removed");
    }
}

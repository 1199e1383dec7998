//! The mirrors in a file beside the log, so that a restart need not copy them again.
//!
//! The file is lines: a JSON object that says as of which place the mirrors are and what is in them,
//! one JSON array for each row, and a checksum of all before. It is replaced as a whole; one that is
//! damaged, or of another history, counts as none.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::follow::Followed;
use super::kept::Kept;
use crate::datum::{Datum, Jsonb, Type};
use crate::log::{Epoch, Offset};
use crate::lookup::Wanted;
use crate::pg::Oid;
use crate::source::lookups::Wishing;

/// Another form of the file has another number.
const FORMAT: u32 = 1;

/// The mirrors as of one place.
#[derive(Debug, Clone)]
pub(super) struct Checkpoint {
    pub(super) epoch: Epoch,
    pub(super) offset: Offset,
    pub(super) tables: Vec<(Oid, Kept)>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
    epoch: u64,
    offset: u64,
    tables: Vec<TableHead>,
}

#[derive(Serialize, Deserialize)]
struct TableHead {
    table: u32,
    wanted: String,
    identity: String,
    rows: usize,
}

/// What is compared of what is wanted: types with all that is known of them.
fn description(wanted: &Wanted) -> String {
    format!("{wanted:?}")
}

impl Checkpoint {
    /// Puts it in the place of what the file held, unless `still` says that it does not hold any
    /// more. Blocks on the disk.
    fn write(&self, path: &Path, still: impl Fn() -> bool) -> io::Result<()> {
        let tables = self.tables.iter().map(|(oid, kept)| TableHead {
            table: oid.0,
            wanted: description(&kept.followed.wanted),
            identity: kept.identity.to_string(),
            rows: kept.followed.mirror.len(),
        });
        let head = Head {
            format: FORMAT,
            epoch: self.epoch.0,
            offset: self.offset.0,
            tables: tables.collect(),
        };
        let fresh = fresh(path);
        let file = File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&fresh)?;
        let mut file = BufWriter::with_capacity(1 << 16, file);
        let mut seal = crc32fast::Hasher::new();
        let mut line = serde_json::to_vec(&head)?;
        let mut put = |line: &mut Vec<u8>| {
            line.push(b'\n');
            seal.update(line);
            let written = file.write_all(line);
            line.clear();
            written
        };
        put(&mut line)?;
        for (_, kept) in &self.tables {
            for row in kept.followed.mirror.rows() {
                let values: Vec<Value> = row.iter().map(|value| stored(value.as_ref())).collect();
                serde_json::to_writer(&mut line, &values)?;
                put(&mut line)?;
            }
        }
        let seal = seal.finalize();
        file.write_all(format!("{seal:08x}\n").as_bytes())?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        if !still() {
            return fs::remove_file(&fresh);
        }
        fs::rename(&fresh, path)?;
        path.parent()
            .map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    }
}

fn fresh(path: &Path) -> PathBuf {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    fresh.into()
}

/// Fills `followed`, which is without rows, with what the file has of its table; where that is as
/// of. `None` where it has nothing that fits. Blocks on the disk.
pub(super) fn load(
    path: &Path,
    epoch: Epoch,
    (oid, identity): (Oid, &str),
    mut followed: Followed,
) -> Option<(Followed, Offset)> {
    let file = File::open(path).ok()?;
    let mut file = BufReader::with_capacity(1 << 16, file);
    let mut seal = crc32fast::Hasher::new();
    let mut line = Vec::new();
    let mut next = |line: &mut Vec<u8>| {
        line.clear();
        file.read_until(b'\n', line).ok().filter(|read| *read > 0)
    };
    next(&mut line)?;
    seal.update(&line);
    let head: Head = serde_json::from_slice(&line).ok()?;
    if head.format != FORMAT || head.epoch != epoch.0 {
        return None;
    }
    let mut found = false;
    for table in &head.tables {
        let fits = table.table == oid.0
            && table.identity == identity
            && table.wanted == description(&followed.wanted);
        found |= fits;
        for _ in 0..table.rows {
            next(&mut line)?;
            seal.update(&line);
            if !fits {
                continue;
            }
            let values: Vec<Value> = serde_json::from_slice(&line).ok()?;
            let columns = followed.mirror.columns();
            if values.len() != columns.len() {
                return None;
            }
            let row = columns.iter().zip(values);
            let row: Option<_> = row
                .map(|(column, value)| restored(&column.of, value))
                .collect();
            followed.add(row?).ok()?;
        }
    }
    next(&mut line)?;
    let whole = line == format!("{:08x}\n", seal.finalize()).into_bytes();
    if !whole {
        warn!(path = %path.display(), "the checkpoint of the lookups is damaged, they are copied");
        return None;
    }
    found.then_some((followed, Offset(head.offset)))
}

/// A value as the file has it.
fn stored(value: Option<&Datum>) -> Value {
    let Some(value) = value else {
        return Value::Null;
    };
    match value {
        Datum::Bool(value) => Value::from(*value),
        Datum::Int(value) | Datum::Timestamp(value) => Value::from(*value),
        Datum::Float(value) => Value::from(value.to_bits()),
        Datum::Date(days) => Value::from(*days),
        Datum::Bytes(bytes) => {
            use std::fmt::Write as _;
            let mut text = String::with_capacity(2 + 2 * bytes.len());
            text.push_str("\\x");
            for byte in &**bytes {
                // Writing to a String does not fail.
                let _written = write!(text, "{byte:02x}");
            }
            Value::from(text)
        }
        other => other
            .output()
            .map_or(Value::Null, |text| Value::from(&*text)),
    }
}

/// The value of what the file has; `None` where it is none of the type.
fn restored(of: &Type, value: Value) -> Option<Option<Datum>> {
    let datum = match (of, value) {
        (_, Value::Null) => return Some(None),
        (Type::Bool, Value::Bool(value)) => Datum::Bool(value),
        (Type::Int2 | Type::Int4 | Type::Int8 | Type::Oid, Value::Number(value)) => {
            Datum::Int(value.as_i64()?)
        }
        (Type::Timestamp | Type::Timestamptz, Value::Number(value)) => {
            Datum::Timestamp(value.as_i64()?)
        }
        (Type::Date, Value::Number(value)) => Datum::Date(i32::try_from(value.as_i64()?).ok()?),
        (Type::Float4 | Type::Float8, Value::Number(value)) => {
            Datum::Float(f64::from_bits(value.as_u64()?))
        }
        (Type::Bpchar(_), Value::String(text)) => Datum::text(&text),
        (Type::Jsonb, Value::String(text)) => Datum::Jsonb(Arc::new(Jsonb::parse(&text).ok()?)),
        (of, Value::String(text)) => Datum::from_output(of, &text).ok()?,
        _ => return None,
    };
    Some(Some(datum))
}

/// When the checkpoint is written, one at a time.
pub(super) struct Writing {
    path: Option<PathBuf>,
    every: Duration,
    stream: Wishing,
    last: Instant,
    /// As of where the last one is.
    at: Option<Offset>,
    running: Option<JoinHandle<()>>,
}

impl Writing {
    pub(super) fn new(path: Option<PathBuf>, every: Duration, stream: Wishing) -> Self {
        Self {
            path,
            every,
            stream,
            last: Instant::now(),
            at: None,
            running: None,
        }
    }

    /// Other mirrors are in force than the file has.
    pub(super) const fn touch(&mut self) {
        self.at = None;
    }

    /// Whether one is to be started, as of `place`.
    pub(super) fn is_due(&self, place: Offset) -> bool {
        self.path.is_some()
            && self.at != Some(place)
            && self.last.elapsed() >= self.every
            && self.running.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Writes it off this task.
    pub(super) fn start(&mut self, checkpoint: Checkpoint) {
        let Some(path) = self.path.clone() else {
            return;
        };
        self.last = Instant::now();
        self.at = Some(checkpoint.offset);
        let stream = self.stream.clone();
        self.running = Some(tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let of = |kept: &Kept| kept.stretch.is_none() || kept.stretch == stream.now().stretch;
            let still = || checkpoint.tables.iter().all(|(_, kept)| of(kept));
            match checkpoint.write(&path, still) {
                Ok(()) => debug!(
                    tables = checkpoint.tables.len(),
                    offset = %checkpoint.offset,
                    took_ms = began.elapsed().as_millis(),
                    "the lookups' checkpoint is written"
                ),
                Err(error) => warn!(
                    path = %path.display(),
                    %error,
                    "the lookups' checkpoint cannot be written; after a restart they are copied"
                ),
            }
        }));
    }

    /// Writes the last one, after the one that is being written.
    pub(super) async fn finish(&mut self, checkpoint: Checkpoint) {
        if let Some(running) = self.running.take() {
            // A panic there is no concern here.
            let _ended = running.await;
        }
        if self.at == Some(checkpoint.offset) {
            return;
        }
        self.start(checkpoint);
        if let Some(running) = self.running.take() {
            let _ended = running.await;
        }
    }
}

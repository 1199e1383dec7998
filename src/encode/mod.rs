//! A change as bytes: the JSON object that Supabase's wire calls `data`, written once for everybody
//! who may see the same columns of it.

mod body;

mod value;

use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;

use crate::change::{Change, ColumnSet, Kind, OldRow, Relation, Row, Value};
use crate::log::Cursor;
use crate::mutant::EncoderMutant;
use crate::policy::catalog::{Catalog, Table};
use value::Codec;

pub use body::{Body, Envelope};

/// How much of the row before an update or delete goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OldRecord {
    /// Nothing: its recipients may not know it.
    Hidden,
    /// The primary key only.
    Key,
    /// Whatever the stream carries.
    Carried,
    /// The primary key only, and nothing of the row after: to its recipients the row is gone.
    Left,
    /// The same with whatever the stream carries, for a table without a primary key.
    LeftWhole,
}

impl OldRecord {
    /// How many there are.
    pub const KINDS: usize = 5;

    /// Which of them it is, from 0.
    #[must_use]
    pub const fn number(self) -> usize {
        match self {
            Self::Hidden => 0,
            Self::Key => 1,
            Self::Carried => 2,
            Self::Left => 3,
            Self::LeftWhole => 4,
        }
    }
}

/// In a change that is too large, values whose JSON is longer than this are left out, but for the
/// primary key's.
const SMALL_VALUE: usize = 64;

/// A text longer than this is not tried: its JSON is longer than [`SMALL_VALUE`].
const SMALL_TEXT: usize = 16 * SMALL_VALUE;

/// What `errors` says of a change that is too large, in Supabase's words.
const TOO_LARGE: &str = "Error 413: Payload Too Large";

/// What `errors` says before the names of columns that a row has and the stream does not carry.
const NOT_CARRIED: &str = "Error 206: Partial Content, not carried by the stream: ";

/// What `errors` says of a row that was not deleted but is out of sight: of all members of a change
/// only this one and the row itself reach the callbacks of Supabase's clients.
const LEFT: &str = "Rowcast: the row left this view, it was not deleted";

/// How the rows of one relation version are written for one set of columns.
#[derive(Debug)]
pub struct Shape {
    /// `"schema":…,"table":…,"columns":[…],`
    head: Box<[u8]>,
    columns: Box<[ShapeColumn]>,
}

#[derive(Debug)]
struct ShapeColumn {
    position: usize,
    name: Arc<str>,
    /// `"name":`
    label: Box<[u8]>,
    codec: Arc<Codec>,
    /// Part of the primary key.
    key: bool,
    /// Part of the replica identity: what a key-only old row carries.
    identity: bool,
}

impl Shape {
    /// Prepares for the columns of `relation` that are in `visible`. Types that the catalog does
    /// not know are written as text.
    #[must_use]
    pub fn new(relation: &Relation, table: &Table, catalog: &Catalog, visible: &ColumnSet) -> Self {
        let mut head = Vec::new();
        head.extend_from_slice(b"\"schema\":");
        write_string(&mut head, &relation.schema);
        head.extend_from_slice(b",\"table\":");
        write_string(&mut head, &relation.name);
        head.extend_from_slice(b",\"columns\":[");
        let mut columns = Vec::new();
        for (position, column) in relation.columns.iter().enumerate() {
            if !visible.contains(position) {
                continue;
            }
            if !columns.is_empty() {
                head.push(b',');
            }
            let ty = if EncoderMutant::DomainIsNamedByBase.active() {
                catalog.base_type(column.type_oid)
            } else {
                catalog.types.get(&column.type_oid)
            };
            let type_name = ty.map_or("text", |ty| ty.name.as_str());
            head.extend_from_slice(b"{\"name\":");
            write_string(&mut head, &column.name);
            head.extend_from_slice(b",\"type\":");
            write_string(&mut head, type_name);
            head.push(b'}');
            let mut label = Vec::new();
            write_string(&mut label, &column.name);
            label.push(b':');
            columns.push(ShapeColumn {
                position,
                name: Arc::clone(&column.name),
                label: label.into(),
                codec: Codec::of(column.type_oid, catalog),
                key: table
                    .column(&column.name)
                    .is_some_and(|column| table.is_key(column)),
                identity: column.identity,
            });
        }
        head.extend_from_slice(b"],");
        Self {
            head: head.into(),
            columns: columns.into(),
        }
    }

    /// Writes one change, with when it committed and, as its last member, the place behind it in
    /// the log; `None` for kinds that have no row.
    ///
    /// A value that nothing carries is left out and `errors` names its column. A change whose
    /// values as text, or which as JSON, are larger than `max_bytes` keeps the primary key and
    /// what is small, and `errors` says so.
    #[must_use]
    pub fn encode(
        &self,
        change: &Change,
        (cursor, committed_at): (Cursor, i64),
        old: OldRecord,
        max_bytes: usize,
    ) -> Option<Bytes> {
        let rows = Rows::of(change, old)?;
        if self.text_fits(&rows, max_bytes) {
            let whole = self.write(&rows, (cursor, committed_at), false);
            if whole.len() <= max_bytes {
                return Some(whole.into());
            }
        }
        Some(self.write(&rows, (cursor, committed_at), true).into())
    }

    /// Writes one row as a change has it in `record`, and returns what the change's `errors` would
    /// say: a row whose values as text, or which as JSON, are larger than `max_bytes` keeps the
    /// primary key and what is small.
    pub fn write_record(
        &self,
        out: &mut Vec<u8>,
        row: &Row,
        max_bytes: usize,
    ) -> Option<&'static str> {
        let mut missing = vec![false; self.columns.len()];
        let begin = out.len();
        if row.size() <= max_bytes || self.shown_text(row) <= max_bytes {
            self.write_row(out, false, &mut missing, |column| row.get(column.position));
            if out.len() - begin <= max_bytes {
                return None;
            }
            out.truncate(begin);
        }
        self.write_row(out, true, &mut missing, |column| row.get(column.position));
        Some(TOO_LARGE)
    }

    fn shown_text(&self, row: &Row) -> usize {
        let text = |column: &ShapeColumn| match row.get(column.position) {
            Some(Value::Text(text)) => text.len(),
            Some(Value::Null | Value::Unchanged) | None => 0,
        };
        self.columns.iter().map(text).sum()
    }

    /// Whether what would be written is small enough as text: what is not need not be written to
    /// see that it is too large.
    fn text_fits(&self, rows: &Rows<'_>, max_bytes: usize) -> bool {
        if rows.size() <= max_bytes {
            return true;
        }
        let text = |value| match value {
            Some(Value::Text(text)) => text.len(),
            Some(Value::Null | Value::Unchanged) | None => 0,
        };
        let shown = |column: &ShapeColumn| {
            text(rows.record(column)).saturating_add(text(rows.old_record(column)))
        };
        self.columns.iter().map(shown).sum::<usize>() <= max_bytes
    }

    fn write(
        &self,
        rows: &Rows<'_>,
        (cursor, committed_at): (Cursor, i64),
        small: bool,
    ) -> Vec<u8> {
        let carried = if small { 0 } else { rows.size() };
        let mut out = Vec::with_capacity(self.head.len() + 192 + carried);
        let mut missing = vec![false; self.columns.len()];
        out.push(b'{');
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b"\"commit_timestamp\":\"");
        write_timestamp(&mut out, committed_at);
        out.extend_from_slice(match rows.new {
            Some(_) if rows.inserted => b"\",\"type\":\"INSERT\"",
            Some(_) => b"\",\"type\":\"UPDATE\"",
            None => b"\",\"type\":\"DELETE\"",
        });
        if rows.new.is_some() {
            out.extend_from_slice(b",\"record\":");
            self.write_row(&mut out, small, &mut missing, |column| rows.record(column));
        }
        if !rows.inserted {
            out.extend_from_slice(b",\"old_record\":");
            self.write_row(&mut out, small, &mut missing, |column| {
                rows.old_record(column)
            });
        }
        if rows.left {
            out.extend_from_slice(b",\"rowcast\":{\"leave\":true}");
        }
        out.extend_from_slice(b",\"errors\":");
        self.write_errors(&mut out, (small, rows.left), &missing);
        // Writing to a Vec does not fail.
        let _written = write!(out, ",\"cursor\":\"{cursor}\"");
        out.push(b'}');
        out
    }

    fn write_row<'row>(
        &self,
        out: &mut Vec<u8>,
        small: bool,
        missing: &mut [bool],
        value: impl Fn(&ShapeColumn) -> Option<Value<'row>>,
    ) {
        out.push(b'{');
        let begin = out.len();
        for (column, missing) in self.columns.iter().zip(missing) {
            let text = match value(column) {
                None => continue,
                Some(Value::Unchanged) => {
                    // The key is absent: a null would be a lie.
                    *missing = true;
                    continue;
                }
                Some(Value::Null) => None,
                Some(Value::Text(text)) => Some(text),
            };
            let mark = out.len();
            if mark > begin {
                out.push(b',');
            }
            out.extend_from_slice(&column.label);
            let written = out.len();
            match text {
                None => out.extend_from_slice(b"null"),
                Some(text) if small && !column.key && text.len() > SMALL_TEXT => {
                    out.truncate(mark);
                }
                Some(text) => {
                    column.codec.write(out, text);
                    if small && !column.key && out.len() - written > SMALL_VALUE {
                        out.truncate(mark);
                    }
                }
            }
        }
        out.push(b'}');
    }

    fn write_errors(&self, out: &mut Vec<u8>, (small, left): (bool, bool), missing: &[bool]) {
        let names: Vec<&str> = self
            .columns
            .iter()
            .zip(missing)
            .filter_map(|(column, missing)| missing.then_some(&*column.name))
            .collect();
        let too_large = small.then(|| TOO_LARGE.to_owned());
        let not_carried = (!names.is_empty()).then(|| format!("{NOT_CARRIED}{}", names.join(", ")));
        let left = left.then(|| LEFT.to_owned());
        let errors: Vec<String> = left
            .into_iter()
            .chain(too_large)
            .chain(not_carried)
            .collect();
        if errors.is_empty() {
            out.extend_from_slice(b"null");
        } else {
            // Writing to a Vec does not fail.
            let _written = serde_json::to_writer(out, &errors);
        }
    }
}

/// Writes that a table was emptied, with when that committed and, as its last member, the place
/// behind it in the log: a change without a row. Nothing in it depends on who may see which columns.
#[must_use]
pub fn truncate(relation: &Relation, (cursor, committed_at): (Cursor, i64)) -> Bytes {
    let mut out = Vec::with_capacity(192 + relation.schema.len() + relation.name.len());
    out.extend_from_slice(b"{\"schema\":");
    write_string(&mut out, &relation.schema);
    out.extend_from_slice(b",\"table\":");
    write_string(&mut out, &relation.name);
    // Clients look columns up by name, so the list is there.
    out.extend_from_slice(b",\"columns\":[],\"commit_timestamp\":\"");
    write_timestamp(&mut out, committed_at);
    // Writing to a Vec does not fail.
    let _written = write!(
        out,
        "\",\"type\":\"TRUNCATE\",\"errors\":null,\"cursor\":\"{cursor}\"}}"
    );
    out.into()
}

/// What a change carries, and how much of the row before goes out.
struct Rows<'a> {
    /// The row after; `None` for a delete, and for a row that is out of sight.
    new: Option<&'a Row>,
    before: Option<&'a OldRow>,
    /// What an update without a row before did not change is taken from.
    unchanged: Option<&'a Row>,
    inserted: bool,
    /// The row is out of sight.
    left: bool,
    old: OldRecord,
}

impl<'a> Rows<'a> {
    fn of(change: &'a Change, old: OldRecord) -> Option<Self> {
        let (new, before, inserted) = match &change.kind {
            Kind::Insert { new } => (Some(new), None, true),
            Kind::Update { old, new } => (Some(new), old.as_ref(), false),
            Kind::Delete { old } => (None, Some(old), false),
            Kind::Truncate | Kind::Rules | Kind::Lost(_) => return None,
        };
        let left = matches!(old, OldRecord::Left | OldRecord::LeftWhole);
        Some(Self {
            new: new.filter(|_| !left),
            before,
            unchanged: new,
            inserted,
            left,
            old,
        })
    }

    /// About how many bytes the values are.
    fn size(&self) -> usize {
        self.new.map_or(0, Row::size) + self.before.map_or(0, |before| before.row().size())
    }

    /// A column of the row after. What an update did not touch is taken from the row before, where
    /// that has it.
    fn record(&self, column: &ShapeColumn) -> Option<Value<'a>> {
        match self.new?.get(column.position) {
            Some(Value::Unchanged) => {
                let before = self.before.and_then(|before| carried(before, column));
                before.or(Some(Value::Unchanged))
            }
            value => value,
        }
    }

    /// A column of the row before, as far as it is carried and may be shown.
    fn old_record(&self, column: &ShapeColumn) -> Option<Value<'a>> {
        let shown = match self.old {
            OldRecord::Hidden => false,
            OldRecord::Key | OldRecord::Left => column.key,
            OldRecord::Carried | OldRecord::LeftWhole => true,
        };
        if !shown || self.inserted {
            return None;
        }
        match self.before {
            Some(before) => carried(before, column),
            // Without an old row in the stream the replica identity did not change.
            None => (column.identity && (column.key || self.old == OldRecord::LeftWhole))
                .then(|| self.unchanged?.get(column.position))
                .flatten(),
        }
    }
}

/// A column of an old row, where it carries it.
fn carried<'a>(old: &'a OldRow, column: &ShapeColumn) -> Option<Value<'a>> {
    match old {
        OldRow::Full(row) => row.get(column.position),
        OldRow::Key(row) => column.identity.then(|| row.get(column.position)).flatten(),
    }
}

/// Writes a text as a JSON string.
fn write_string(out: &mut Vec<u8>, text: &str) {
    if EncoderMutant::EscapeIsForgotten.active() {
        out.extend_from_slice(format!("\"{text}\"").as_bytes());
        return;
    }
    // Writing to a Vec does not fail, and a str is always valid JSON string content.
    let _written = serde_json::to_writer(out, text);
}

/// Writes microseconds since 1970 as `2026-08-21T12:03:56.123`, with a Z: UTC, cut to
/// milliseconds as Supabase does.
fn write_timestamp(out: &mut Vec<u8>, micros: i64) {
    let millis = micros.div_euclid(1000);
    let (days, milli) = (millis.div_euclid(86_400_000), millis.rem_euclid(86_400_000));
    let (year, month, day) = civil_from_days(days);
    let (hour, minute) = (milli / 3_600_000, milli / 60_000 % 60);
    let (second, milli) = (milli / 1000 % 60, milli % 1000);
    if (0..10_000).contains(&year) {
        write_digits::<4>(out, year);
    } else {
        // Writing to a Vec does not fail.
        let _written = write!(out, "{year:04}");
    }
    for (mark, number) in [
        (b'-', month),
        (b'-', day),
        (b'T', hour),
        (b':', minute),
        (b':', second),
    ] {
        out.push(mark);
        write_digits::<2>(out, number);
    }
    out.push(b'.');
    write_digits::<3>(out, milli);
    out.push(b'Z');
}

/// Writes the last `N` decimal digits of a number: each change has seven such.
fn write_digits<const N: usize>(out: &mut Vec<u8>, mut number: i64) {
    let mut digits = [b'0'; N];
    for digit in digits.iter_mut().rev() {
        *digit += u8::try_from(number.rem_euclid(10)).unwrap_or(0);
        number /= 10;
    }
    out.extend_from_slice(&digits);
}

/// The date of a day counted from 1970-01-01 in the proleptic Gregorian calendar, by counting in
/// 400-year eras of 146,097 days that begin on the first of March.
const fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timestamp(micros: i64) -> String {
        let mut out = Vec::new();
        write_timestamp(&mut out, micros);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn commit_timestamps_are_utc_cut_to_milliseconds() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(951_782_399_999_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(timestamp(951_868_799_000_000), "2000-02-29T23:59:59.000Z");
        assert_eq!(timestamp(1_787_313_836_123_999), "2026-08-21T12:03:56.123Z");
        assert_eq!(timestamp(-1), "1969-12-31T23:59:59.999Z");
    }
}

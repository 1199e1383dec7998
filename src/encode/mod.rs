//! A change as bytes: the JSON object that Supabase's wire calls `data`, written once for everybody
//! who may see the same columns of it.

mod value;

use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;

use crate::change::{Change, ColumnSet, Kind, Relation, Row, Value};
use crate::policy::catalog::{Catalog, Table};
use crate::policy::mutant::Mutant;
use value::Codec;

/// How much of the row before an update or delete goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OldRecord {
    /// Nothing: its recipients may not know it.
    Hidden,
    /// The primary key only.
    Key,
    /// Whatever the stream carries.
    Carried,
}

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
            let ty = if Mutant::DomainIsNamedByBase.active() {
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

    /// Writes one change; `None` for kinds that have no row.
    #[must_use]
    pub fn encode(&self, change: &Change, committed_at: i64, old: OldRecord) -> Option<Bytes> {
        let mut out = Vec::with_capacity(self.head.len() + 128 + change.size());
        out.push(b'{');
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b"\"commit_timestamp\":\"");
        write_timestamp(&mut out, committed_at);
        match &change.kind {
            Kind::Insert { new } => {
                out.extend_from_slice(b"\",\"type\":\"INSERT\",\"record\":");
                self.write_row(&mut out, |column| new.get(column.position));
            }
            Kind::Update { old: before, new } => {
                out.extend_from_slice(b"\",\"type\":\"UPDATE\",\"record\":");
                let before = before.as_ref();
                // Under the full identity the old row holds what this update did not touch.
                let full = before.and_then(|old| match old {
                    crate::change::OldRow::Full(row) => Some(row),
                    crate::change::OldRow::Key(_) => None,
                });
                self.write_row(&mut out, |column| match new.get(column.position) {
                    Some(Value::Unchanged) => full.and_then(|row| row.get(column.position)),
                    value => value,
                });
                out.extend_from_slice(b",\"old_record\":");
                // Without an old row in the stream the key did not change.
                let row = before.map_or(new, crate::change::OldRow::row);
                let carried_all = full.is_some();
                self.write_row(&mut out, |column| {
                    self.old_value(column, row, carried_all, before.is_some(), old)
                });
            }
            Kind::Delete { old: before } => {
                out.extend_from_slice(b"\",\"type\":\"DELETE\",\"old_record\":");
                let carried_all = matches!(before, crate::change::OldRow::Full(_));
                self.write_row(&mut out, |column| {
                    self.old_value(column, before.row(), carried_all, true, old)
                });
            }
            Kind::Truncate | Kind::Lost(_) => return None,
        }
        out.extend_from_slice(b",\"errors\":null}");
        Some(out.into())
    }

    #[expect(clippy::unused_self, reason = "reads as a sentence where it is called")]
    fn old_value<'row>(
        &self,
        column: &ShapeColumn,
        row: &'row Row,
        carried_all: bool,
        is_old: bool,
        old: OldRecord,
    ) -> Option<Value<'row>> {
        let carried = if is_old {
            carried_all || column.identity
        } else {
            column.key
        };
        let shown = match old {
            OldRecord::Hidden => false,
            OldRecord::Key => column.key,
            OldRecord::Carried => true,
        };
        (carried && shown)
            .then(|| row.get(column.position))
            .flatten()
    }

    fn write_row<'row>(
        &self,
        out: &mut Vec<u8>,
        value: impl Fn(&ShapeColumn) -> Option<Value<'row>>,
    ) {
        out.push(b'{');
        let mut first = true;
        for column in &self.columns {
            let text = match value(column) {
                // The key is absent: a null would be a lie.
                None | Some(Value::Unchanged) => continue,
                Some(Value::Null) => None,
                Some(Value::Text(text)) => Some(text),
            };
            if !first {
                out.push(b',');
            }
            first = false;
            out.extend_from_slice(&column.label);
            match text {
                None => out.extend_from_slice(b"null"),
                Some(text) => column.codec.write(out, text),
            }
        }
        out.push(b'}');
    }
}

/// Writes a text as a JSON string.
fn write_string(out: &mut Vec<u8>, text: &str) {
    if Mutant::EscapeIsForgotten.active() {
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
    // Writing to a Vec does not fail.
    let _written = write!(
        out,
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z"
    );
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

//! PostgreSQL's own words: positions, object identifiers, transaction numbers, and its quoting.

pub mod refusal;

mod address;

mod stream;

mod tls;

pub mod connect;

pub mod prepared;

pub mod snapshot;

pub mod throwaway;

use std::fmt;
use std::str::FromStr;

/// A position in the write-ahead log, in bytes. Its text form is PostgreSQL's `pg_lsn`
/// (`16/B374D848`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A text that is not a `pg_lsn`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a pg_lsn: two hexadecimal numbers joined by a slash were expected")]
pub struct InvalidLsn;

impl FromStr for Lsn {
    type Err = InvalidLsn;

    fn from_str(text: &str) -> Result<Self, InvalidLsn> {
        let (high, low) = text.split_once('/').ok_or(InvalidLsn)?;
        let high = u32::from_str_radix(high, 16).map_err(|_| InvalidLsn)?;
        let low = u32::from_str_radix(low, 16).map_err(|_| InvalidLsn)?;
        Ok(Self(u64::from(high) << 32 | u64::from(low)))
    }
}

/// An object identifier. Below 16384 it names the same object in every database of a major
/// version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Oid(pub u32);

impl Oid {
    /// The catalog of relations, as `pg_depend` names it.
    pub const PG_CLASS: Self = Self(1259);

    /// The catalog of functions.
    pub const PG_PROC: Self = Self(1255);
}

/// Reads the number, or its decimal text: `to_jsonb` of an `oid` is a string.
impl<'de> serde::Deserialize<'de> for Oid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Form<'a> {
            Number(u32),
            Text(std::borrow::Cow<'a, str>),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(number) => Ok(Self(number)),
            Form::Text(text) => text.parse().map(Self).map_err(serde::de::Error::custom),
        }
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A transaction number with its epoch (`xid8`): never reused, unlike the 32 bits in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Xid(pub u64);

impl Xid {
    /// Widens the 32 bits of a stream message to the `xid8` nearest to `self`, a transaction
    /// number known to be current. PostgreSQL keeps all numbers in use within 2^31 of each other.
    #[must_use]
    pub const fn widen(self, low: u32) -> Self {
        const EPOCH: u64 = 1 << 32;
        let candidate = (self.0 & !(EPOCH - 1)) | low as u64;
        if candidate > self.0 && candidate - self.0 > EPOCH / 2 && candidate >= EPOCH {
            Self(candidate - EPOCH)
        } else if candidate < self.0 && self.0 - candidate > EPOCH / 2 {
            Self(candidate + EPOCH)
        } else {
            Self(candidate)
        }
    }
}

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A name as it may stand in SQL: always in double quotes.
#[must_use]
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as it may stand in SQL, whatever `standard_conforming_strings` says.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_text_is_postgresqls() {
        let lsn: Lsn = "16/B374D848".parse().unwrap();
        assert_eq!(lsn, Lsn(0x16_B374_D848));
        assert_eq!(lsn.to_string(), "16/B374D848");
        for bad in ["", "16", "16/", "/1", "x/1", "1/100000000"] {
            assert_eq!(bad.parse::<Lsn>(), Err(InvalidLsn), "{bad}");
        }
    }

    #[test]
    fn a_transaction_number_is_widened_to_the_nearest_epoch() {
        let current = Xid(5 << 32 | 10);
        assert_eq!(current.widen(9), Xid(5 << 32 | 9));
        assert_eq!(current.widen(12), Xid(5 << 32 | 12));
        assert_eq!(
            current.widen(u32::MAX),
            Xid(4 << 32 | 0xFFFF_FFFF),
            "from before the wrap"
        );
        assert_eq!(
            Xid(4 << 32 | 0xFFFF_FFF0).widen(3),
            Xid(5 << 32 | 3),
            "from after the wrap"
        );
        assert_eq!(
            Xid(700).widen(u32::MAX),
            Xid(0xFFFF_FFFF),
            "there is no epoch before the first"
        );
    }

    #[test]
    fn quoting_cannot_be_left() {
        assert_eq!(quote_identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_literal("o'clock"), "'o''clock'");
        assert_eq!(quote_literal("\\'"), "E'\\\\'''");
    }
}

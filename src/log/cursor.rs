//! A place in the log as clients hold it.

use std::fmt;
use std::str::FromStr;

/// A change's place in one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Offset(pub u64);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Names one history of a log. A log that starts anew has a new one, so an old cursor is refused
/// instead of being misread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// A new history.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }
}

/// The only thing about the log that a client holds. The text form has a fixed width: within an
/// epoch the order of the texts is the order of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The history.
    pub epoch: Epoch,
    /// The place in it.
    pub offset: Offset,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}", self.epoch.0, self.offset.0)
    }
}

/// A text that is not a cursor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a cursor: two groups of 16 lower-case hexadecimal digits joined by a hyphen were expected"
)]
pub struct InvalidCursor;

impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let digits = |part: &str| {
            let valid = part.len() == 16
                && part
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            if valid {
                u64::from_str_radix(part, 16).map_err(|_| InvalidCursor)
            } else {
                Err(InvalidCursor)
            }
        };
        let (epoch, offset) = text.split_once('-').ok_or(InvalidCursor)?;
        Ok(Self {
            epoch: Epoch(digits(epoch)?),
            offset: Offset(digits(offset)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_and_sorts_as_the_log_does() {
        let cursor = |offset| Cursor {
            epoch: Epoch(7),
            offset: Offset(offset),
        };
        for offset in [0, 9, 10, 255, u64::MAX] {
            assert_eq!(cursor(offset).to_string().parse(), Ok(cursor(offset)));
        }
        assert!(cursor(9).to_string() < cursor(10).to_string());
        assert!(cursor(255).to_string() < cursor(256).to_string());
        for bad in [
            "",
            "-",
            "7-9",
            "0000000000000007-000000000000000G",
            "0000000000000007",
        ] {
            assert_eq!(bad.parse::<Cursor>(), Err(InvalidCursor), "{bad}");
        }
    }
}

//! A place in the log as clients hold it.

use std::fmt;
use std::str::FromStr;

use crate::pg::Lsn;

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
        // Each change has one, and `{:016x}` takes several times as long.
        let digit = |nibble| match nibble {
            0..=9 => b'0' + nibble,
            _ => b'a' + nibble - 10,
        };
        let digits = |number: u64| {
            let bytes = number.to_be_bytes().into_iter();
            bytes.flat_map(move |byte| [digit(byte >> 4), digit(byte & 15)])
        };
        let bytes = digits(self.epoch.0)
            .chain([b'-'])
            .chain(digits(self.offset.0));
        let mut text = [0; 33];
        for (to, from) in text.iter_mut().zip(bytes) {
            *to = from;
        }
        f.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

/// Whom a cursor was given to, as two numbers that say nothing about them: equal ones mean the
/// same, others with all that can be told at a distance somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Of the role and of all claims that stay with the user.
    pub claims: u32,
    /// Of the role and of what the policies of the channel's tables read of the claims.
    pub read: u32,
    /// Where in the write-ahead log the newest catalog was read that changed the rules of one of the
    /// channel's tables; `None` in texts of before this was said.
    pub rules: Option<Lsn>,
}

impl Holder {
    /// Whether both may see the same: all that is said of them is, or all that decides.
    #[must_use]
    pub const fn sees_as(self, other: Self) -> bool {
        self.claims == other.claims || self.read == other.read
    }
}

/// A cursor as it is written for a client: behind it stands whom it was given to. Texts of before
/// this was so have nothing there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldCursor {
    /// The place.
    pub cursor: Cursor,
    /// Whose it is, where it says so.
    pub holder: Option<Holder>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}{:08x}", self.claims, self.read)?;
        match self.rules {
            Some(rules) => write!(f, "-{:016x}", rules.0),
            None => Ok(()),
        }
    }
}

impl fmt::Display for HeldCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cursor.fmt(f)?;
        match self.holder {
            Some(holder) => write!(f, "-{holder}"),
            None => Ok(()),
        }
    }
}

/// A text that is not a cursor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a cursor: two to four groups of 16 lower-case hexadecimal digits joined by hyphens were \
     expected"
)]
pub struct InvalidCursor;

fn digits(part: &str) -> Result<u64, InvalidCursor> {
    let digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if part.len() == 16 && part.bytes().all(digit) {
        u64::from_str_radix(part, 16).map_err(|_| InvalidCursor)
    } else {
        Err(InvalidCursor)
    }
}

impl FromStr for HeldCursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let mut parts = text.split('-').map(digits);
        let mut next = || parts.next().transpose();
        let epoch = next()?.ok_or(InvalidCursor)?;
        let offset = next()?.ok_or(InvalidCursor)?;
        let both = next()?;
        let rules = next()?.map(Lsn);
        let holder = both.map(|both| {
            let [a, b, c, d, e, f, g, h] = both.to_be_bytes();
            Holder {
                claims: u32::from_be_bytes([a, b, c, d]),
                read: u32::from_be_bytes([e, f, g, h]),
                rules,
            }
        });
        if next()?.is_some() {
            return Err(InvalidCursor);
        }
        let cursor = Cursor {
            epoch: Epoch(epoch),
            offset: Offset(offset),
        };
        Ok(Self { cursor, holder })
    }
}

/// The place alone, of either form.
impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        text.parse().map(|held: HeldCursor| held.cursor)
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
            let padded = format!("{:016x}-{offset:016x}", cursor(offset).epoch.0);
            assert_eq!(cursor(offset).to_string(), padded);
        }
        assert!(cursor(9).to_string() < cursor(10).to_string());
        assert!(cursor(255).to_string() < cursor(256).to_string());
        for bad in [
            "",
            "-",
            "7-9",
            "0000000000000007-0000000000000009-",
            "0000000000000007-0000000000000009-1",
            "0000000000000007-0000000000000009-0000000000000001-",
            "0000000000000007-000000000000000G",
            "0000000000000007",
        ] {
            assert_eq!(bad.parse::<Cursor>(), Err(InvalidCursor), "{bad}");
        }
    }

    #[test]
    fn a_cursor_that_names_its_holder_reads_back_and_sorts_by_its_place_first() {
        let held = |offset, claims, read| HeldCursor {
            cursor: Cursor {
                epoch: Epoch(7),
                offset: Offset(offset),
            },
            holder: Some(Holder {
                claims,
                read,
                rules: None,
            }),
        };
        let (early, late) = (held(9, u32::MAX, 1), held(10, 0, 0x0a));
        let under = |rules| HeldCursor {
            holder: late.holder.map(|holder| Holder {
                rules: Some(Lsn(rules)),
                ..holder
            }),
            ..late
        };
        for one in [early, late, under(0), under(u64::MAX)] {
            assert_eq!(one.to_string().parse(), Ok(one));
            assert_eq!(one.to_string().parse(), Ok(one.cursor), "the place alone");
        }
        assert_eq!(
            late.to_string(),
            "0000000000000007-000000000000000a-000000000000000a"
        );
        assert_eq!(
            under(0xb).to_string(),
            "0000000000000007-000000000000000a-000000000000000a-000000000000000b"
        );
        assert!(early.to_string() < late.to_string());
        assert!(early.cursor.to_string() < early.to_string());
        let old = HeldCursor {
            holder: None,
            ..early
        };
        assert_eq!(early.cursor.to_string().parse(), Ok(old));
        let holder = |claims, read| Holder {
            claims,
            read,
            rules: None,
        };
        let other = holder(2, 1);
        assert!(other.sees_as(holder(3, 1)));
        assert!(other.sees_as(holder(2, 9)));
        assert!(!other.sees_as(holder(1, 2)));
    }
}

//! Which transactions a snapshot shows.

use std::fmt;
use std::str::FromStr;

use super::Xid;

/// A snapshot as `pg_current_snapshot()` gives it: `xmin:xmax:xip,…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    xmin: Xid,
    xmax: Xid,
    /// Those between the two that had not ended, in ascending order.
    running: Box<[Xid]>,
}

impl Snapshot {
    /// Whether it shows what a committed transaction did.
    #[must_use]
    pub fn shows(&self, xid: Xid) -> bool {
        xid < self.xmin || xid < self.xmax && self.running.binary_search(&xid).is_err()
    }

    /// Every transaction before this one had ended when it was taken.
    #[must_use]
    pub const fn xmin(&self) -> Xid {
        self.xmin
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (at, xid) in self.running.iter().enumerate() {
            write!(f, "{}{xid}", if at > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// A text that is not a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a snapshot: xmin:xmax:xip,… was expected")]
pub struct InvalidSnapshot;

impl FromStr for Snapshot {
    type Err = InvalidSnapshot;

    fn from_str(text: &str) -> Result<Self, InvalidSnapshot> {
        let xid = |text: &str| text.parse().map(Xid).map_err(|_| InvalidSnapshot);
        let (xmin, rest) = text.split_once(':').ok_or(InvalidSnapshot)?;
        let (xmax, running) = rest.split_once(':').ok_or(InvalidSnapshot)?;
        let (xmin, xmax) = (xid(xmin)?, xid(xmax)?);
        let running: Result<Vec<Xid>, _> = running
            .split(',')
            .filter(|one| !one.is_empty())
            .map(xid)
            .collect();
        let mut running = running?;
        running.sort_unstable();
        if xmin > xmax || running.iter().any(|xid| *xid < xmin || *xid >= xmax) {
            return Err(InvalidSnapshot);
        }
        Ok(Self {
            xmin,
            xmax,
            running: running.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_shows_what_had_ended_when_it_was_taken() {
        let snapshot: Snapshot = "10:20:11,15".parse().unwrap();
        let shown: Vec<u64> = (8..23).filter(|xid| snapshot.shows(Xid(*xid))).collect();
        assert_eq!(shown, [8, 9, 10, 12, 13, 14, 16, 17, 18, 19]);
        assert_eq!(snapshot.to_string(), "10:20:11,15");
        let idle: Snapshot = "10:10:".parse().unwrap();
        assert!(idle.shows(Xid(9)) && !idle.shows(Xid(10)));
        for bad in ["", "10", "10:20", "20:10:", "10:20:9", "10:20:20", "a:b:c"] {
            assert_eq!(bad.parse::<Snapshot>(), Err(InvalidSnapshot), "{bad}");
        }
    }
}

//! What of a collation decides natively.

use crate::pg::Oid;

/// What is known of a collation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Collation {
    /// Equal means equal bytes (`pg_collation.collisdeterministic`).
    pub deterministic: bool,
    /// The order is that of the bytes: `C`, `POSIX`, `ucs_basic`.
    pub bytewise: bool,
    /// `lower` and `upper` of ASCII text are the plain ones. Not so in Turkish, Azeri and
    /// Lithuanian locales.
    pub plain_case: bool,
}

impl Collation {
    /// `C` and `POSIX`.
    pub const C: Self = Self {
        deterministic: true,
        bytewise: true,
        plain_case: true,
    };

    /// What may be said of a database's default collation without looking: it is deterministic.
    pub const DEFAULT: Self = Self {
        deterministic: true,
        bytewise: false,
        plain_case: false,
    };

    /// The collations that are the same in every database.
    #[must_use]
    pub const fn built_in(oid: Oid) -> Option<Self> {
        match oid.0 {
            100 => Some(Self::DEFAULT),
            950 | 951 => Some(Self::C),
            _ => None,
        }
    }
}

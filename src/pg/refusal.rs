//! How PostgreSQL says no, and whether asking again can help.

use std::fmt;

/// Whether the same attempt can succeed later without anybody changing anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// It can: try again after a while.
    Soon,
    /// It cannot: somebody has to change a setting first.
    Never,
}

/// An error that PostgreSQL itself reported. Only its code and its message are kept: the detail
/// and the context can quote row values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The five characters of its SQLSTATE, empty where it had none.
    pub sqlstate: String,
    /// The message, in the language of the server.
    pub message: String,
}

impl Refusal {
    /// Whether asking again can help. An unknown code counts as one that heals: giving up on a
    /// healthy server is worse than one more attempt.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self.sqlstate.as_str() {
            // Authorization (class 28), a database that is not there, a privilege that is
            // missing, a name that cannot be one or is not known, a value that is not allowed.
            "28000" | "28P01" | "3D000" | "42501" | "42602" | "42704" | "22023" => Retry::Never,
            _ => Retry::Soon,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PostgreSQL says: {} (SQLSTATE {})",
            self.message, self.sqlstate
        )
    }
}

impl From<&tokio_postgres::error::DbError> for Refusal {
    fn from(error: &tokio_postgres::error::DbError) -> Self {
        Self {
            sqlstate: error.code().code().to_owned(),
            message: error.message().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_heal_is_given_up() {
        for (sqlstate, expected) in [
            ("28P01", Retry::Never),
            ("3D000", Retry::Never),
            ("57P03", Retry::Soon),
            ("53300", Retry::Soon),
            ("55006", Retry::Soon),
            ("XX000", Retry::Soon),
            ("", Retry::Soon),
        ] {
            let refusal = Refusal {
                sqlstate: sqlstate.to_owned(),
                message: String::new(),
            };
            assert_eq!(refusal.retry(), expected, "{sqlstate}");
        }
    }
}

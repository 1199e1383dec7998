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
            _ if self.is_poolers() => Retry::Never,
            // Authorization (class 28), a database that is not there, a privilege that is
            // missing, a name that cannot be one or is not known, a value that is not allowed.
            "28000" | "28P01" | "3D000" | "42501" | "42602" | "42704" | "22023" => Retry::Never,
            _ => Retry::Soon,
        }
    }

    /// Whether it is a connection pooler that answered: PostgreSQL knows the parameters that are
    /// sent.
    fn is_poolers(&self) -> bool {
        self.sqlstate == "08P01" && self.message.starts_with("unsupported startup parameter")
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_poolers() {
            return write!(
                f,
                "a connection pooler answers ({}): DATABASE_URL must lead to PostgreSQL itself",
                self.message
            );
        }
        write!(
            f,
            "PostgreSQL says: {} (SQLSTATE {})",
            self.message, self.sqlstate
        )
    }
}

/// An error and what caused it, in one line; tokio-postgres leaves the cause out of its own text.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
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
            ("08P01", Retry::Soon),
            ("", Retry::Soon),
        ] {
            let refusal = Refusal {
                sqlstate: sqlstate.to_owned(),
                message: String::new(),
            };
            assert_eq!(refusal.retry(), expected, "{sqlstate}");
        }
    }

    #[test]
    fn a_pooler_is_called_one_and_not_tried_again() {
        let refusal = Refusal {
            sqlstate: "08P01".to_owned(),
            message: "unsupported startup parameter: replication".to_owned(),
        };
        assert_eq!(refusal.retry(), Retry::Never);
        assert!(refusal.to_string().contains("pooler"), "{refusal}");
    }
}
